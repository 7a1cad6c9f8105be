//! Really sends packets, and tells what packet sockets saw of them.
//!
//! Nothing waits for time to pass: a thread keeps to one CPU, on which the kernel handles what it sends in
//! order, so that a few datagrams to itself come back only when all that was sent before has been handled.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use netpath::model::packet::{ICMP, ICMPV6, TCP, UDP};
use netpath_lab::capture::{Capture, Direction, Seen};
use netpath_lab::packet::{IpPacket, Transport};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    sendto, setsockopt, socket, sockopt,
};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use super::net::{Net, PLACES, addrs};
use super::packets::{Kind, Question};

/// Ports of servers; those of proxies are in pod a only.
const PORTS: [u16; 5] = [53, 80, 8080, 9000, 9002];
const PROXIES: [u16; 7] = [15001, 15006, 15008, 15053, 15021, 4140, 4143];
/// More than the devices that four packets pass one after the other.
const PASSES: usize = 32;
const ACK_NUMBER: u32 = 0x0a0b_0c0d;

/// A packet at one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub place: String,
    pub dev: String,
    pub out: bool,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub sport: Option<u16>,
    pub dport: Option<u16>,
    pub ttl: u8,
    pub tos: u8,
}

impl std::fmt::Display for Point {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let port = |port: Option<u16>| port.map_or_else(|| "any".to_owned(), |p| p.to_string());
        write!(
            f,
            "{:<5} {} {:<16} {} {} > {} {} ttl {} tos {:#x}",
            self.place,
            if self.out { "out" } else { "in " },
            self.dev,
            self.src,
            port(self.sport),
            self.dst,
            port(self.dport),
            self.ttl,
            self.tos
        )
    }
}

/// How the sender was told no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    Reset,
    Icmp {
        v6: bool,
        kind: u8,
        code: u8,
    },
    /// The call failed, and nothing was seen.
    Call(Errno),
}

/// What was seen of a question.
#[derive(Debug, Default)]
pub struct Observed {
    /// Question, answer, and one more of each side.
    pub turns: [Vec<Point>; 4],
    pub refusal: Option<Refusal>,
    /// A socket or kernel took it and said so.
    pub taken: bool,
}

/// Servers everywhere, raw sockets, and a capture.
pub struct Wire<'n> {
    net: &'n Net,
    capture: Capture,
    listeners: Vec<TcpListener>,
    datagrams: Vec<UdpSocket>,
    sentinel: UdpSocket,
}

impl<'n> Wire<'n> {
    pub fn up(net: &'n Net) -> Result<Self> {
        let (mut listeners, mut datagrams) = (Vec::new(), Vec::new());
        for name in PLACES {
            let mut ports = PORTS.to_vec();
            if name == "a" {
                ports.extend(PROXIES);
            }
            let (tcp, udp) = net.place(name).enter(|| serve(name, &ports))?;
            listeners.extend(tcp);
            datagrams.extend(udp);
        }
        let sentinel = UdpSocket::bind("127.0.0.1:0").context("open a socket on loopback")?;
        sentinel.set_read_timeout(Some(Duration::from_secs(10)))?;
        let own = sentinel.local_addr()?;
        sentinel.connect(own)?;
        Ok(Self {
            net,
            capture: Capture::start(net.all()?)?,
            listeners,
            datagrams,
            sentinel,
        })
    }

    /// Returns when all that was sent before has been handled.
    fn settle(&self) -> Result<()> {
        for _ in 0..PASSES {
            self.sentinel.send(&[0]).context("send to itself")?;
            self.sentinel.recv(&mut [0]).context("hear itself")?;
        }
        Ok(())
    }

    fn seen(&mut self) -> Result<Vec<Seen>> {
        self.settle()?;
        self.capture.take()
    }

    /// Sends a question, and what follows from it.
    pub fn ask(&mut self, question: &Question) -> Result<Observed> {
        self.seen()?;
        match (question.kind, question.protocol) {
            (Kind::Raw { flags, icmp }, _) => self.raw(question, flags, icmp),
            (Kind::Error { icmp, by }, _) => self.error(question, icmp, by),
            (_, TCP) => self.connection(question),
            (_, UDP) => self.datagrams(question),
            _ => self.echoes(question),
        }
    }

    fn connection(&mut self, question: &Question) -> Result<Observed> {
        let (client, error) = self.inside(question, || start_connection(question))?;
        let mut seen = self.seen()?;
        let mut observed = Observed::default();
        let first = seen.iter().find_map(|one| match one.frame.ip.as_ref() {
            Some(ip) if one.place == question.from && ip.is_syn() => match ip.transport {
                Transport::Tcp { sequence, .. } => Some(sequence),
                _ => None,
            },
            _ => None,
        });
        observed.refusal = refusal(&seen, first, None);
        if observed.refusal.is_none()
            && let Some(error) = error.filter(|error| *error != Errno::EINPROGRESS)
        {
            observed.refusal = Some(Refusal::Call(error));
        }
        let client = client.map(TcpStream::from);
        if let Some(mut client) = client {
            // It may stand, or not.
            if client.write_all(b"x").is_ok() {
                seen.extend(self.seen()?);
            }
            let mut accepted = Vec::new();
            for listener in &self.listeners {
                while let Ok((stream, _)) = listener.accept() {
                    accepted.push(stream);
                }
            }
            for stream in &mut accepted {
                stream.set_nonblocking(true)?;
                observed.taken |= stream.read(&mut [0; 8]).is_ok_and(|length| length > 0);
                let _ = stream.write_all(b"y");
            }
            seen.extend(self.seen()?);
            reset_on_close(&client)?;
            drop(client);
            self.settle()?;
            for stream in &accepted {
                reset_on_close(stream)?;
            }
        }
        if let Some(first) = first {
            let [question, answer, ours, theirs] = &mut observed.turns;
            for one in &seen {
                let Some(IpPacket {
                    transport:
                        Transport::Tcp {
                            flags,
                            sequence,
                            acknowledgment,
                            ..
                        },
                    ..
                }) = &one.frame.ip
                else {
                    continue;
                };
                let near = |number: u32| number.wrapping_sub(first) < 1 << 16;
                match flags & 0x17 {
                    0x02 if near(*sequence) => push(question, one),
                    0x12 if near(*acknowledgment) => push(answer, one),
                    0x10 if near(*sequence) => push(ours, one),
                    0x10 if near(*acknowledgment) => push(theirs, one),
                    _ => {}
                }
            }
        }
        Ok(observed)
    }

    fn datagrams(&mut self, question: &Question) -> Result<Observed> {
        let mut observed = Observed::default();
        let (client, error) = self.inside(question, || start_datagrams(question))?;
        for turn in 0..4 {
            let client = client.as_ref();
            if turn == 2 && client.is_none_or(|client| client.recv(&mut [0; 8]).is_err()) {
                break;
            }
            let sent = match turn {
                0 => true,
                2 => client.is_some_and(|client| client.send(b"x").is_ok()),
                _ => self.answer(),
            };
            let seen = self.seen()?;
            let udp = seen
                .iter()
                .filter(|one| transport(one).is_some_and(|t| matches!(t, Transport::Udp { .. })));
            for one in udp {
                push(&mut observed.turns[turn], one);
            }
            match turn {
                0 => observed.refusal = refusal(&seen, None, None),
                1 => observed.taken = sent,
                _ => {}
            }
            if !sent {
                break;
            }
        }
        if observed.refusal.is_none() {
            observed.refusal = error.map(Refusal::Call);
        }
        Ok(observed)
    }

    /// Answers what servers got; tells whether there was anything.
    fn answer(&self) -> bool {
        let mut answered = false;
        for socket in &self.datagrams {
            while let Ok((_, peer)) = socket.recv_from(&mut [0; 8]) {
                answered = true;
                // Rules may refuse the answer.
                let _ = socket.send_to(b"y", peer);
            }
        }
        answered
    }

    fn echoes(&mut self, question: &Question) -> Result<Observed> {
        let mut observed = Observed::default();
        let v6 = question.src.is_ipv6();
        let (ask, tell) = if v6 { (128, 129) } else { (8, 0) };
        for round in 0..2 {
            let error = self.send_raw(question, 0, (ask, 0))?;
            let seen = self.seen()?;
            for one in &seen {
                match transport(one) {
                    Some(Transport::Icmp { kind, .. }) if *kind == ask => {
                        push(&mut observed.turns[round * 2], one);
                    }
                    Some(Transport::Icmp { kind, .. }) if *kind == tell => {
                        push(&mut observed.turns[round * 2 + 1], one);
                    }
                    _ => {}
                }
            }
            if round == 0 {
                observed.refusal = refusal(&seen, None, None).or_else(|| error.map(Refusal::Call));
                observed.taken = !observed.turns[1].is_empty();
            }
            let back = observed.turns[1].last();
            if back.is_none_or(|last| last.out || last.place != question.from) {
                break;
            }
        }
        Ok(observed)
    }

    fn raw(&mut self, question: &Question, flags: u8, icmp: (u8, u8)) -> Result<Observed> {
        let mut observed = Observed::default();
        let error = self.send_raw(question, flags, icmp)?;
        let seen = self.seen()?;
        let first = first_number(question);
        for one in &seen {
            let ours = match transport(one) {
                Some(Transport::Tcp {
                    sequence,
                    flags: own,
                    ..
                }) => *sequence == first && *own == flags,
                Some(Transport::Udp { .. }) => question.protocol == UDP,
                Some(Transport::Icmp { kind, code, about }) => {
                    (*kind, *code) == icmp && about.is_none() && question.protocol != UDP
                }
                _ => false,
            };
            if ours {
                push(&mut observed.turns[0], one);
            }
            if let Some(Transport::Tcp {
                flags: 0x12,
                acknowledgment,
                ..
            }) = transport(one)
                && *acknowledgment == first.wrapping_add(1)
            {
                observed.taken = true;
            }
        }
        observed.refusal =
            refusal(&seen, Some(first), Some(ACK_NUMBER)).or_else(|| error.map(Refusal::Call));
        for socket in &self.datagrams {
            while socket.recv_from(&mut [0; 8]).is_ok() {
                observed.taken = true;
            }
        }
        Ok(observed)
    }

    fn error(&mut self, question: &Question, icmp: (u8, u8), by: IpAddr) -> Result<Observed> {
        let mut observed = Observed::default();
        let quoted = bytes(question, 2, (8, 0));
        let bytes = error_bytes((by, question.src), icmp, &quoted);
        self.send_bytes(question, &bytes, question.src)?;
        let seen = self.seen()?;
        for one in &seen {
            if let Some(Transport::Icmp { kind, code, .. }) = transport(one)
                && (*kind, *code) == icmp
            {
                push(&mut observed.turns[0], one);
            }
        }
        Ok(observed)
    }

    fn send_raw(&self, question: &Question, flags: u8, icmp: (u8, u8)) -> Result<Option<Errno>> {
        self.send_bytes(question, &bytes(question, flags, icmp), question.dst)
    }

    fn send_bytes(&self, question: &Question, bytes: &[u8], to: IpAddr) -> Result<Option<Errno>> {
        self.inside(question, || {
            let socket = open_as(question, SockType::Raw, SockProtocol::Raw)?;
            if question.mark != 0 {
                setsockopt(&socket, sockopt::Mark, &question.mark).context("set a mark")?;
            }
            let to = storage(to, 0);
            let sent = sendto(socket.as_raw_fd(), bytes, &to, MsgFlags::empty());
            Ok(sent.err())
        })
    }

    fn inside<T: Send>(
        &self,
        question: &Question,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        self.net.place(question.from).enter(work)
    }
}

/// Length of a question from the IP header on.
pub fn length(question: &Question) -> u32 {
    let v6 = question.src.is_ipv6();
    let head = if v6 { 40 } else { 20 };
    head + match (question.kind, question.protocol) {
        (Kind::Error { .. }, TCP) => 8 + head + 20,
        (Kind::Error { .. }, UDP) => 8 + head + 9,
        (Kind::Error { .. }, _) => 8 + head + 8,
        (Kind::Exchange, TCP) => 40,
        (Kind::Raw { .. }, TCP) => 20,
        (_, UDP) => 9,
        _ => 8,
    }
}

fn first_number(question: &Question) -> u32 {
    0x5000_0000 | u32::from(question.sport) << 8
}

/// TCP listeners on all addresses, and a datagram socket for each, so that answers come from where was asked.
fn serve(place: &str, ports: &[u16]) -> Result<(Vec<TcpListener>, Vec<UdpSocket>)> {
    let (mut listeners, mut datagrams) = (Vec::new(), Vec::new());
    let mut own = addrs(place);
    own.extend(["127.0.0.1", "::1"].map(|addr| addr.parse::<IpAddr>().expect("an address")));
    for port in ports {
        let listener = TcpListener::bind(("::", *port)).context("open a listener")?;
        listener.set_nonblocking(true)?;
        if PROXIES.contains(port) {
            setsockopt(&listener, sockopt::IpTransparent, &true)
                .context("make a socket transparent")?;
        }
        listeners.push(listener);
        for addr in &own {
            let socket = UdpSocket::bind((*addr, *port))
                .with_context(|| format!("open a datagram socket on {addr}"))?;
            socket.set_nonblocking(true)?;
            datagrams.push(socket);
        }
    }
    Ok((listeners, datagrams))
}

fn storage(addr: IpAddr, port: u16) -> SockaddrStorage {
    SockaddrStorage::from(SocketAddr::new(addr, port))
}

/// A socket whose file belongs to the question's user and group. The thread ends soon.
fn open_as(
    question: &Question,
    kind: SockType,
    protocol: impl Into<Option<SockProtocol>>,
) -> Result<OwnedFd> {
    let family = if question.src.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    setfsgid(Gid::from_raw(question.id));
    setfsuid(Uid::from_raw(question.id));
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened = socket(family, kind, flags, protocol);
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    opened.context("open a socket")
}

fn reset_on_close(stream: &TcpStream) -> Result<()> {
    let gone = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(stream, sockopt::Linger, &gone).context("set linger")
}

fn start_connection(question: &Question) -> Result<(Option<OwnedFd>, Option<Errno>)> {
    let own = open_as(question, SockType::Stream, None)?;
    setsockopt(&own, sockopt::ReuseAddr, &true).context("share an address")?;
    bind(own.as_raw_fd(), &storage(question.src, question.sport))
        .with_context(|| format!("bind to {}", question.src))?;
    let error = connect(own.as_raw_fd(), &storage(question.dst, question.dport)).err();
    Ok((Some(own), error))
}

fn start_datagrams(question: &Question) -> Result<(Option<UdpSocket>, Option<Errno>)> {
    let own = open_as(question, SockType::Datagram, None)?;
    bind(own.as_raw_fd(), &storage(question.src, question.sport))
        .with_context(|| format!("bind to {}", question.src))?;
    let error = connect(own.as_raw_fd(), &storage(question.dst, question.dport)).err();
    let own = UdpSocket::from(own);
    if error.is_some() {
        return Ok((None, error));
    }
    let error = match own.send(b"x") {
        Ok(_) => None,
        // Told already, by ICMP.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
        Err(error) => match error.raw_os_error() {
            Some(number) => Some(Errno::from_raw(number)),
            None => bail!("send a datagram: {error}"),
        },
    };
    Ok((Some(own), error))
}

fn transport(one: &Seen) -> Option<&Transport> {
    Some(&one.frame.ip.as_ref()?.transport)
}

fn push(points: &mut Vec<Point>, one: &Seen) {
    let Some(ip) = &one.frame.ip else { return };
    // A bridge port receives frames for others by nature.
    if one.for_other_host && one.direction == Direction::In && !one.ifname.starts_with("veth") {
        return;
    }
    let ports = ip.ports();
    let point = Point {
        place: one.place.clone(),
        dev: one.ifname.clone(),
        out: one.direction == Direction::Out,
        src: ip.source,
        dst: ip.destination,
        sport: ports.map(|(source, _)| source),
        dport: ports.map(|(_, destination)| destination),
        ttl: ip.ttl,
        tos: ip.tos,
    };
    // A repetition is a later packet of the same turn.
    if !points.contains(&point) {
        points.push(point);
    }
}

/// The first refusal of a packet with this sequence and acknowledgment number; of any, where OUTPUT refused it
/// and it was seen nowhere.
fn refusal(seen: &[Seen], first: Option<u32>, acknowledged: Option<u32>) -> Option<Refusal> {
    seen.iter().find_map(|one| match transport(one)? {
        Transport::Icmp {
            kind,
            code,
            about: Some(_),
        } => Some(Refusal::Icmp {
            v6: one.frame.ip.as_ref()?.source.is_ipv6(),
            kind: *kind,
            code: *code,
        }),
        Transport::Tcp {
            flags,
            sequence,
            acknowledgment,
            ..
        } if flags & 4 != 0 => {
            let near = |first: u32| acknowledgment.wrapping_sub(first) < 3;
            let told = flags & 0x10 != 0 && first.is_none_or(near);
            (told || Some(*sequence) == acknowledged).then_some(Refusal::Reset)
        }
        _ => None,
    })
}

fn sum(words: &[u8], start: u32) -> u16 {
    let pairs = words.chunks(2).map(|pair| {
        let low = pair.get(1).copied().unwrap_or_default();
        u32::from(u16::from_be_bytes([pair[0], low]))
    });
    let mut sum = pairs.fold(start, |sum, word| sum + word);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or_default()
}

/// An ICMP error from the IP header on.
fn error_bytes((src, dst): (IpAddr, IpAddr), icmp: (u8, u8), quoted: &[u8]) -> Vec<u8> {
    let mut body = vec![icmp.0, icmp.1, 0, 0, 0, 0, 0, 0];
    body.extend(quoted);
    let length = u16::try_from(body.len()).expect("a short packet");
    let ends = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => [src.octets(), dst.octets()].concat(),
        (IpAddr::V6(src), IpAddr::V6(dst)) => [src.octets(), dst.octets()].concat(),
        _ => panic!("addresses of two families"),
    };
    let check = if src.is_ipv4() {
        sum(&body, 0)
    } else {
        sum(
            &[ends.as_slice(), &body].concat(),
            u32::from(length) + u32::from(ICMPV6),
        )
    };
    body[2..4].copy_from_slice(&check.to_be_bytes());
    let mut packet = if src.is_ipv4() {
        let [high, low] = (20 + length).to_be_bytes();
        vec![0x45, 0, high, low, 0, 0, 0x40, 0, 64, ICMP, 0, 0]
    } else {
        let [high, low] = length.to_be_bytes();
        vec![0x60, 0, 0, 0, high, low, ICMPV6, 64]
    };
    packet.extend(ends);
    packet.extend(body);
    packet
}

/// The packet from the IP header on.
fn bytes(question: &Question, flags: u8, icmp: (u8, u8)) -> Vec<u8> {
    let mut body: Vec<u8> = Vec::new();
    match question.protocol {
        TCP => {
            body.extend(question.sport.to_be_bytes());
            body.extend(question.dport.to_be_bytes());
            body.extend(first_number(question).to_be_bytes());
            let ack = if flags & 0x10 == 0 { 0 } else { ACK_NUMBER };
            body.extend(ack.to_be_bytes());
            body.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        }
        UDP => {
            body.extend(question.sport.to_be_bytes());
            body.extend(question.dport.to_be_bytes());
            body.extend([0, 9, 0, 0, b'x']);
        }
        _ => {
            body.extend([icmp.0, icmp.1, 0, 0]);
            body.extend(question.sport.to_be_bytes());
            body.extend([0, 1]);
        }
    }
    let length = u16::try_from(body.len()).expect("a short packet");
    let mut ends = Vec::new();
    match (question.src, question.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            ends.extend(src.octets());
            ends.extend(dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            ends.extend(src.octets());
            ends.extend(dst.octets());
        }
        _ => panic!("addresses of two families"),
    }
    let at = match question.protocol {
        TCP => 16,
        UDP => 6,
        _ => 2,
    };
    let check = if question.protocol == ICMP {
        sum(&body, 0)
    } else {
        let pseudo = [ends.as_slice(), &body].concat();
        sum(&pseudo, u32::from(length) + u32::from(question.protocol))
    };
    body[at..at + 2].copy_from_slice(&check.to_be_bytes());
    let mut packet = Vec::new();
    if question.src.is_ipv4() {
        packet.extend([0x45, 0]);
        packet.extend((20 + length).to_be_bytes());
        // The kernel fills in identification and checksum.
        packet.extend([0, 0, 0x40, 0, 64, question.protocol, 0, 0]);
    } else {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(length.to_be_bytes());
        packet.extend([question.protocol, 64]);
    }
    debug_assert!(question.protocol != ICMPV6 || question.src.is_ipv6());
    packet.extend(ends);
    packet.extend(body);
    packet
}
