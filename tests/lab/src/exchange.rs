//! One request and one answer over TCP or UDP, or an echo, sent by the kernel of a namespace.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, SocketAddrV4, SocketAddrV6, TcpStream,
    UdpSocket,
};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, recv,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// How an exchange ended, as an application sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The listener answered.
    Connected {
        /// First line of the answer, `<pod name> <peer address>` from the laboratory's listeners.
        reply: String,
    },
    /// A reset, or an ICMP port unreachable, answered at once.
    Refused,
    /// Nothing answered within the time given.
    TimedOut,
    /// The kernel reported another error at once, for instance EHOSTUNREACH or EPERM.
    Unreachable(Errno),
}

impl Outcome {
    /// Whether the listener answered.
    pub fn connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }

    /// Name of the pod that answered.
    pub fn pod(&self) -> Option<&str> {
        match self {
            Self::Connected { reply } => reply.split(' ').next(),
            _ => None,
        }
    }

    /// Source address and port that the listener saw.
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Connected { reply } => reply.split(' ').nth(1)?.trim().parse().ok(),
            _ => None,
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Self::Refused,
            _ => Self::Unreachable(
                error
                    .raw_os_error()
                    .map_or(Errno::UnknownErrno, Errno::from_raw),
            ),
        }
    }
}

/// Connects, sends one line and reads the answer; every wait takes at most `timeout`.
///
/// Runs in the network namespace of the calling thread.
pub fn tcp(to: SocketAddr, timeout: Duration) -> Result<Outcome> {
    let mut stream = match TcpStream::connect_timeout(&to, timeout) {
        Ok(stream) => stream,
        Err(error) => return Ok(Outcome::of(&error)),
    };
    stream
        .set_read_timeout(Some(timeout))
        .context("set a read timeout")?;
    let mut reply = Vec::new();
    let talked = stream
        .write_all(b"hello\n")
        .and_then(|()| stream.shutdown(Shutdown::Write))
        .and_then(|()| stream.read_to_end(&mut reply));
    Ok(match talked {
        Ok(_) => connected(&reply),
        Err(error) => Outcome::of(&error),
    })
}

/// Sends one datagram and waits for one at most `timeout`.
///
/// Runs in the network namespace of the calling thread.
pub fn udp(to: SocketAddr, timeout: Duration) -> Result<Outcome> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).context("open a datagram socket")?;
    socket
        .set_read_timeout(Some(timeout))
        .context("set a read timeout")?;
    let mut buffer = [0; 2048];
    let talked = socket
        .connect(to)
        .and_then(|()| socket.send(b"hello\n"))
        .and_then(|_| socket.recv(&mut buffer));
    Ok(match talked {
        Ok(length) => connected(buffer.get(..length).unwrap_or_default()),
        Err(error) => Outcome::of(&error),
    })
}

/// Sends one echo request and waits for its answer at most `timeout`; the answer names nobody.
///
/// Runs in the network namespace of the calling thread. Needs CAP_NET_RAW.
pub fn echo(to: IpAddr, timeout: Duration) -> Result<Outcome> {
    let v6 = to.is_ipv6();
    let (family, protocol) = if v6 {
        (AddressFamily::Inet6, SockProtocol::IcmpV6)
    } else {
        (AddressFamily::Inet, SockProtocol::Icmp)
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
        .context("open a raw socket")?;
    let end = Instant::now() + timeout;
    let [high, low] = ID.to_be_bytes();
    // Type, code, checksum, identifier, sequence number 1.
    let mut message = [if v6 { 128 } else { 8 }, 0, 0, 0, high, low, 0, 1];
    if !v6 {
        // The kernel makes that of ICMPv6 itself.
        let words = message
            .chunks(2)
            .filter_map(|pair| <[u8; 2]>::try_from(pair).ok())
            .map(|pair| u32::from(u16::from_be_bytes(pair)));
        let sum: u32 = words.sum();
        let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap_or_default();
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    let sent = match to {
        IpAddr::V4(to) => {
            let at = SockaddrIn::from(SocketAddrV4::new(to, 0));
            sendto(raw.as_raw_fd(), &message, &at, MsgFlags::empty())
        }
        IpAddr::V6(to) => {
            let at = SockaddrIn6::from(SocketAddrV6::new(to, 0, 0, 0));
            sendto(raw.as_raw_fd(), &message, &at, MsgFlags::empty())
        }
    };
    if let Err(error) = sent {
        return Ok(Outcome::Unreachable(error));
    }
    let mut buffer = [0; 1500];
    loop {
        let Some(left) = end.checked_duration_since(Instant::now()) else {
            return Ok(Outcome::TimedOut);
        };
        let micros = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
        let wait = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
        setsockopt(&raw, sockopt::ReceiveTimeout, &wait).context("set a read timeout")?;
        let length = match recv(raw.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EINTR | Errno::EAGAIN) => continue,
            Err(error) => return Ok(Outcome::Unreachable(error)),
        };
        let got = buffer.get(..length).unwrap_or_default();
        // Only IPv4 gives the IP header too; what is for others is passed over.
        let header = if v6 { 0 } else { usize::from(got[0] & 15) * 4 };
        let answer = got.get(header..).unwrap_or_default();
        let kind = if v6 { 129 } else { 0 };
        if answer.first() == Some(&kind) && answer.get(4..6) == Some(&[high, low]) {
            return Ok(Outcome::Connected {
                reply: String::new(),
            });
        }
    }
}

/// Identifier of the laboratory's echo requests.
const ID: u16 = 0x4e50;

fn connected(reply: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(reply);
    Outcome::Connected {
        reply: text.lines().next().unwrap_or_default().to_owned(),
    }
}
