//! Sends one packet or exchange from a namespace, by sockets of its own stack.
//!
//! Nothing but the packets themselves changes anything: a TCP connection is ended at once (FIN; a reset only where the
//! server goes on talking), UDP and echoes carry what the client says. Where the client names no port, or one that must be
//! unused, it is one that no conntrack entry has, so that rules for new connections decide.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockProtocol, SockType, SockaddrStorage, bind,
    connect, getsockname, getsockopt, recv, send as send_bytes, setsockopt, shutdown, socket,
    sockopt,
};

use crate::collect::Collector;
use crate::collect::netns::NsFile;
use crate::model::Section;
use crate::model::capture::{Answer, Probe, Probed};
use crate::model::conntrack::{ConntrackEntry, Tuple};
use crate::model::packet::{ICMP, ICMPV6, TCP, UDP};
use crate::model::want::{Fact, Want};

/// Ports tried until one has no conntrack entry.
const TRIES: usize = 8;
/// Longest that a probe may wait for its answer.
const LONGEST: Duration = Duration::from_secs(10);
/// How long the server may take to end its side of a connection, and what it may say until then.
const GOODBYE: Duration = Duration::from_millis(200);
const MOST_TAKEN: usize = 64 << 10;
/// Time to live of a packet whose header is ours.
const HOPS: u8 = 64;
/// Most bytes that a probe carries.
const MOST_PAYLOAD: usize = 65_507;

/// Sends a probe and waits for what comes of it.
///
/// Errors: the probe can't be sent at all; what it was refused by on its way is an answer.
pub fn send(probe: &Probe, collector: &mut Collector) -> Result<Probed, String> {
    let what = format!("send a probe to {}", probe.dst);
    let failed = |why: &dyn std::fmt::Display| format!("{what}: {why}");
    if probe.payload.len() > MOST_PAYLOAD {
        return Err(failed(&format!("it is larger than {MOST_PAYLOAD} bytes")));
    }
    if probe
        .src
        .is_some_and(|src| src.is_ipv6() != probe.dst.is_ipv6())
    {
        return Err(failed(&"its addresses are of different families"));
    }
    let ns = collector
        .namespace_file(probe.netns)
        .map_err(|error| failed(&error))?;
    let src = match probe.src {
        Some(src) => src,
        None => match source(probe, &ns, collector).map_err(|error| failed(&error))? {
            Ok(src) => src,
            // No route: what an application would meet.
            Err(error) => return Ok(at_once(None, &error)),
        },
    };
    let wait = Duration::from_millis(u64::from(probe.wait)).min(LONGEST);
    for last in (0..TRIES).rev() {
        let (inside, from) = (probe.clone(), src);
        let opened = collector.hopper().run(&ns, move || open(&inside, from));
        let (fd, port) = match opened.map_err(|error| failed(&error))? {
            Ok(opened) => opened,
            Err(Unopened::InUse) if probe.unused => {
                return Ok(taken(src, probe.sport.unwrap_or_default()));
            }
            Err(error) => return Err(failed(&error)),
        };
        let free = |collector: &mut Collector| entry(probe, src, port, collector).is_none();
        if probe.unused && !free(collector) {
            return Ok(taken(src, port));
        }
        if probe.sport.is_none() && last > 0 && !free(collector) {
            continue;
        }
        let begun = Instant::now();
        let answer = match probe.protocol {
            TCP => tcp(&fd, probe, wait),
            UDP => udp(&fd, probe, wait),
            _ if probe.whole => uncut(&fd, probe, src, port),
            _ => echo(&fd, probe, port, wait),
        };
        let answer = answer.unwrap_or_else(refused);
        let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        if probe.protocol == TCP && answer == Answer::Answered {
            goodbye(&fd);
        }
        return Ok(Probed {
            from: Some((src, port)),
            answer,
            micros,
            expects: entry(probe, src, port, collector).map(|entry| entry.reply),
        });
    }
    Err(failed(&"no source port is free"))
}

/// The address that the kernel sends from: a datagram socket that is connected tells it and sends nothing.
fn source(
    probe: &Probe,
    ns: &NsFile,
    collector: &Collector,
) -> Result<io::Result<IpAddr>, crate::collect::Error> {
    let to = SocketAddr::new(probe.dst, probe.dport.unwrap_or(9));
    collector.hopper().run(ns, move || {
        let socket = UdpSocket::bind((any(to.ip()), 0))?;
        socket.connect(to)?;
        Ok(socket.local_addr()?.ip())
    })
}

fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn taken(src: IpAddr, port: u16) -> Probed {
    Probed {
        from: Some((src, port)),
        answer: Answer::Taken,
        micros: 0,
        expects: None,
    }
}

/// Why a probe has no socket.
#[derive(Debug, thiserror::Error)]
enum Unopened {
    #[error("bind the probe's source port: it is in use")]
    InUse,
    #[error("{0}")]
    Other(String),
}

fn at_once(from: Option<(IpAddr, u16)>, error: &io::Error) -> Probed {
    let errno = error
        .raw_os_error()
        .map_or(Errno::UnknownErrno, Errno::from_raw);
    Probed {
        from,
        answer: refused(errno),
        micros: 0,
        expects: None,
    }
}

fn refused(errno: Errno) -> Answer {
    match errno {
        Errno::ECONNREFUSED | Errno::ECONNRESET => Answer::Refused,
        Errno::ETIMEDOUT => Answer::Silent,
        other => Answer::Failed(other.to_string()),
    }
}

/// A socket with its port; for an echo, its id. Runs inside the namespace.
fn open(probe: &Probe, src: IpAddr) -> Result<(OwnedFd, u16), Unopened> {
    let failed = |what: &'static str| {
        move |errno: Errno| match errno {
            Errno::EADDRINUSE => Unopened::InUse,
            errno => Unopened::Other(format!("{what}: {errno}")),
        }
    };
    let family = if src.is_ipv6() {
        AddressFamily::Inet6
    } else {
        AddressFamily::Inet
    };
    let (kind, protocol) = match probe.protocol {
        TCP => (SockType::Stream, SockProtocol::Tcp),
        UDP => (SockType::Datagram, SockProtocol::Udp),
        // Nothing comes to such a socket, so that no answer teaches the kernel another MTU through it.
        ICMP | ICMPV6 if probe.whole => (SockType::Raw, SockProtocol::Raw),
        ICMP => (SockType::Raw, SockProtocol::Icmp),
        ICMPV6 => (SockType::Raw, SockProtocol::IcmpV6),
        other => {
            return Err(Unopened::Other(format!(
                "protocol {other} can't be probed; tcp, udp and icmp can"
            )));
        }
    };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, kind, flags, protocol).map_err(failed("open a socket"))?;
    if probe.protocol != TCP && !probe.whole {
        // Else they are not told that a host or network can't be reached (`__udp4_lib_err()`, `raw_err()`).
        let told = if src.is_ipv6() {
            setsockopt(&fd, sockopt::Ipv6RecvErr, &true)
        } else {
            setsockopt(&fd, sockopt::Ipv4RecvErr, &true)
        };
        told.map_err(failed("ask for errors"))?;
    }
    let raw = kind == SockType::Raw;
    let sport = if raw { 0 } else { probe.sport.unwrap_or(0) };
    let own = SockaddrStorage::from(SocketAddr::new(src, sport));
    bind(fd.as_raw_fd(), &own).map_err(failed("bind the probe's source address and port"))?;
    if raw {
        // Ids are anybody's: one that differs from probe to probe.
        let id = probe.sport.unwrap_or_else(fresh);
        return Ok((fd, id));
    }
    let named: SockaddrStorage = getsockname(fd.as_raw_fd()).map_err(failed("ask for a port"))?;
    let port = named
        .as_sockaddr_in()
        .map(nix::sys::socket::SockaddrIn::port)
        .or_else(|| {
            named
                .as_sockaddr_in6()
                .map(nix::sys::socket::SockaddrIn6::port)
        });
    Ok((fd, port.unwrap_or_default()))
}

fn fresh() -> u16 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.unwrap_or_default().subsec_nanos();
    u16::try_from((nanos ^ nanos >> 16) & 0xffff)
        .unwrap_or_default()
        .max(1)
}

/// Conntrack's entry of a probe. Where that can't be told, there is none.
fn entry(
    probe: &Probe,
    src: IpAddr,
    port: u16,
    collector: &mut Collector,
) -> Option<ConntrackEntry> {
    let kind = match probe.protocol {
        ICMP => Some(8 << 8),
        ICMPV6 => Some(128 << 8),
        _ => probe.dport,
    };
    let tuple = Tuple {
        src,
        dst: probe.dst,
        protocol: probe.protocol,
        sport: Some(port),
        dport: kind,
    };
    let want = Want::Conntrack {
        netns: probe.netns,
        tuple,
        // Rules that set another zone are not looked at: an entry there only costs the probe its port.
        zone: 0,
    };
    let facts = collector.collect(&[want], Duration::from_secs(2));
    facts.into_iter().find_map(|fact| match fact {
        Fact::Conntrack {
            entry: Section::Known(entry),
            ..
        } => entry,
        _ => None,
    })
}

fn connect_to(fd: &OwnedFd, probe: &Probe) -> nix::Result<()> {
    let to = SocketAddr::new(probe.dst, probe.dport.unwrap_or(0));
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))
}

/// Waits until a descriptor is ready; `false`: not in time.
fn ready(fd: &impl AsFd, flags: PollFlags, deadline: Instant) -> nix::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd.as_fd(), flags)], timeout) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}

fn tcp(fd: &OwnedFd, probe: &Probe, wait: Duration) -> nix::Result<Answer> {
    let deadline = Instant::now() + wait;
    match connect_to(fd, probe) {
        Err(Errno::EINPROGRESS) => {}
        other => return other.map(|()| Answer::Answered),
    }
    if !ready(fd, PollFlags::POLLOUT, deadline)? {
        return Ok(Answer::Silent);
    }
    match getsockopt(fd, sockopt::SocketError)? {
        0 => Ok(Answer::Answered),
        errno => Err(Errno::from_raw(errno)),
    }
}

/// Ends a connection by FIN. What the server says meanwhile is taken, since closing before would reset the connection.
fn goodbye(fd: &OwnedFd) {
    let deadline = Instant::now() + GOODBYE;
    // It may be over already, by the server's will.
    if shutdown(fd.as_raw_fd(), Shutdown::Write).is_err() {
        return;
    }
    let mut taken = 0;
    while taken < MOST_TAKEN && ready(fd, PollFlags::POLLIN, deadline).unwrap_or(false) {
        match recv(fd.as_raw_fd(), &mut [0; 4096], MsgFlags::empty()) {
            Ok(0) => return,
            Ok(length) => taken += length,
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(_) => return,
        }
    }
}

fn udp(fd: &OwnedFd, probe: &Probe, wait: Duration) -> nix::Result<Answer> {
    let deadline = Instant::now() + wait;
    connect_to(fd, probe)?;
    send_bytes(fd.as_raw_fd(), &probe.payload, MsgFlags::empty())?;
    if !ready(fd, PollFlags::POLLIN, deadline)? {
        return Ok(Answer::Silent);
    }
    recv(fd.as_raw_fd(), &mut [0; 64], MsgFlags::empty()).map(|_| Answer::Answered)
}

/// An echo request without its checksum.
fn request(probe: &Probe, id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let kind = if probe.dst.is_ipv6() { 128 } else { 8 };
    // Type, code, checksum, identifier, sequence number 1.
    let mut message = vec![kind, 0, 0, 0, high, low, 0, 1];
    message.extend(&probe.payload);
    message
}

/// Puts the checksum of a message of ICMP or ICMPv6, and of what counts with it, to its place.
fn checked(message: &mut [u8], with: &[u8]) {
    let all = [with, message].concat();
    let [high, low] = checksum(&all).to_be_bytes();
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&[high, low]);
    }
}

/// Sends an echo request with a header of its own, which forbids that it is cut.
fn uncut(fd: &OwnedFd, probe: &Probe, src: IpAddr, id: u16) -> nix::Result<Answer> {
    let mut message = request(probe, id);
    let length = u16::try_from(message.len()).map_err(|_| Errno::EMSGSIZE)?;
    let mut packet = match (src, probe.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            checked(&mut message, &[]);
            // The kernel fills in length, identification and checksum (`raw_send_hdrinc()`).
            let fixed = [0x45, 0, 0, 0, 0, 0, 0x40, 0, HOPS, ICMP, 0, 0];
            [&fixed[..], &src.octets(), &dst.octets()].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let ends = [src.octets(), dst.octets()].concat();
            let [high, low] = length.to_be_bytes();
            // RFC 8200, 8.1
            let pseudo = [&ends[..], &[0, 0, high, low, 0, 0, 0, ICMPV6]].concat();
            checked(&mut message, &pseudo);
            [&[0x60, 0, 0, 0, high, low, ICMPV6, HOPS][..], &ends].concat()
        }
        _ => return Err(Errno::EAFNOSUPPORT),
    };
    packet.extend(message);
    connect_to(fd, probe)?;
    send_bytes(fd.as_raw_fd(), &packet, MsgFlags::empty())?;
    Ok(Answer::Silent)
}

fn echo(fd: &OwnedFd, probe: &Probe, id: u16, wait: Duration) -> nix::Result<Answer> {
    let v6 = probe.dst.is_ipv6();
    let deadline = Instant::now() + wait;
    connect_to(fd, probe)?;
    let [high, low] = id.to_be_bytes();
    let mut message = request(probe, id);
    if !v6 {
        // The kernel makes that of ICMPv6 itself.
        checked(&mut message, &[]);
    }
    send_bytes(fd.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut buffer = vec![0; 2048];
    while ready(fd, PollFlags::POLLIN, deadline)? {
        let length = match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Err(Errno::EAGAIN | Errno::EINTR) => continue,
            other => other?,
        };
        let got = buffer.get(..length).unwrap_or_default();
        // Only IPv4 gives the IP header too; what is for others is passed over.
        let header = match got.first() {
            Some(first) if !v6 => usize::from(first & 15) * 4,
            _ => 0,
        };
        let answer = got.get(header..).unwrap_or_default();
        let ours = answer.get(4..6) == Some(&[high, low]);
        if ours && answer.first() == Some(if v6 { &129 } else { &0 }) {
            return Ok(Answer::Answered);
        }
    }
    Ok(Answer::Silent)
}

/// RFC 1071.
fn checksum(message: &[u8]) -> u16 {
    let words = message.chunks(2).map(|pair| match *pair {
        [high, low] => u32::from(u16::from_be_bytes([high, low])),
        [high] => u32::from(high) << 8,
        _ => 0,
    });
    let mut sum: u64 = words.map(u64::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_with_itself_is_zero() {
        let mut message = vec![8, 0, 0, 0, 1, 2, 3, 4, 5];
        let [high, low] = checksum(&message).to_be_bytes();
        message[2] = high;
        message[3] = low;
        assert_eq!(checksum(&message), 0);
    }
}
