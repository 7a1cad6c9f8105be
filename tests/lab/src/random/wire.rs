//! Really sends packets, and tells what packet sockets saw of them.
//!
//! Nothing waits for time to pass: a thread keeps to one CPU, on which the kernel handles what it sends in
//! order, so that a few datagrams to itself come back only when all that was sent before has been handled.

use std::collections::BTreeSet;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use etherparse::PacketBuilder;
use netpath::model::packet::{TCP, UDP};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    sendto, setsockopt, socket, sockopt,
};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use super::fit::{Observed, Point, Refusal};
use super::raise::Raised;
use super::world::{Kind, Listener, Probe, World};
use crate::capture::{Capture, Direction, Seen};
use crate::command::run;
use crate::packet::{IpPacket, Transport};

/// More than the devices that four packets pass one after the other.
const PASSES: usize = 48;
const ACK_NUMBER: u32 = 0x0a0b_0c0d;
/// Ports from here on are those of clients, chosen by probes or by translation.
const CHOSEN: u16 = 32768;

/// Sockets of a network, and a capture everywhere.
pub struct Wire<'r> {
    raised: &'r Raised,
    capture: Capture,
    listeners: Vec<TcpListener>,
    datagrams: Vec<UdpSocket>,
    sentinel: UdpSocket,
    /// Devices that pass on what is for other stations.
    ports: BTreeSet<(String, String)>,
}

impl<'r> Wire<'r> {
    /// Opens sockets. `ports` are the devices, by namespace, that pass frames on.
    pub fn up(
        raised: &'r Raised,
        world: &World,
        ports: BTreeSet<(String, String)>,
    ) -> Result<Self> {
        let (mut listeners, mut datagrams) = (Vec::new(), Vec::new());
        for place in &world.places {
            let (tcp, udp) = raised
                .place(&place.name)?
                .enter(|| serve(&place.listeners))?;
            listeners.extend(tcp);
            datagrams.extend(udp);
        }
        let sentinel = UdpSocket::bind("127.0.0.1:0").context("open a socket on loopback")?;
        sentinel.set_read_timeout(Some(Duration::from_secs(10)))?;
        let own = sentinel.local_addr()?;
        sentinel.connect(own)?;
        Ok(Self {
            raised,
            capture: Capture::start(raised.again()?)?,
            listeners,
            datagrams,
            sentinel,
            ports,
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

    /// What was seen. Questions for neighbours that nobody answered are given up at once, as the kernel would
    /// after three seconds.
    fn seen(&mut self) -> Result<Vec<Seen>> {
        self.settle()?;
        let mut seen = self.capture.take()?;
        let asking: BTreeSet<&str> = unanswered(&seen);
        if asking.is_empty() {
            return Ok(seen);
        }
        let asking: Vec<String> = asking.into_iter().map(str::to_owned).collect();
        for place in asking {
            self.raised.place(&place)?.enter(|| {
                // Nothing to flush is no error here.
                for family in ["-4", "-6"] {
                    run(&["ip", family, "neigh", "flush", "nud", "incomplete"])?;
                }
                Ok(())
            })?;
        }
        self.settle()?;
        seen.extend(self.capture.take()?);
        Ok(seen)
    }

    /// Sends a probe, and what follows from it.
    pub fn ask(&mut self, probe: &Probe) -> Result<Observed> {
        self.settle()?;
        self.capture.take()?;
        match (probe.kind, probe.protocol) {
            (Kind::Raw { .. }, _) => self.raw(probe),
            (_, TCP) => self.connection(probe),
            (_, UDP) => self.datagrams(probe),
            _ => self.echoes(probe),
        }
    }

    fn connection(&mut self, probe: &Probe) -> Result<Observed> {
        let (client, error) = self.inside(probe, || start_connection(probe))?;
        let mut seen = self.seen()?;
        let mut observed = Observed::default();
        let first = seen.iter().find_map(|one| match one.frame.innermost() {
            Some(ip) if one.place == probe.from && ip.is_syn() => match ip.transport {
                // Its port may be another one by now.
                Transport::Tcp { sequence, .. } => Some(sequence),
                _ => None,
            },
            _ => None,
        });
        observed.refusal = refusal(probe, &seen, first, None);
        if observed.refusal.is_none()
            && let Some(error) = error.filter(|error| *error != Errno::EINPROGRESS)
        {
            observed.refusal = Some(Refusal::Call(error as i32));
        }
        let client = client.map(TcpStream::from);
        if let Some(mut client) = client {
            if observed.refusal.is_none()
                && let Some(number) = client.take_error()?.and_then(|error| error.raw_os_error())
            {
                observed.refusal = Some(Refusal::Call(number));
            }
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
                }) = one.frame.innermost()
                else {
                    continue;
                };
                let near = |number: u32| number.wrapping_sub(first) < 1 << 16;
                let turn = match flags & 0x17 {
                    0x02 if near(*sequence) => 0,
                    0x12 if near(*acknowledgment) => 1,
                    0x10 if near(*sequence) => 2,
                    0x10 if near(*acknowledgment) => 3,
                    _ => continue,
                };
                self.push(&mut observed.turns[turn], one);
            }
        }
        Ok(observed)
    }

    fn datagrams(&mut self, probe: &Probe) -> Result<Observed> {
        let mut observed = Observed::default();
        let (client, error) = self.inside(probe, || start_datagrams(probe))?;
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
            for one in &seen {
                if matches!(transport(one), Some(Transport::Udp { .. })) {
                    self.push(&mut observed.turns[turn], one);
                }
            }
            match turn {
                0 => {
                    observed.refusal = refusal(probe, &seen, None, None);
                    let told = client.and_then(|client| client.take_error().ok().flatten());
                    let number = told.and_then(|error| error.raw_os_error());
                    if observed.refusal.is_none() {
                        observed.refusal = number.map(Refusal::Call);
                    }
                }
                1 => observed.taken = sent,
                _ => {}
            }
            if !sent {
                break;
            }
        }
        if observed.refusal.is_none() {
            observed.refusal = error.map(|error| Refusal::Call(error as i32));
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

    fn echoes(&mut self, probe: &Probe) -> Result<Observed> {
        let mut observed = Observed::default();
        let (ask, tell) = if probe.dst.is_ipv6() {
            (128, 129)
        } else {
            (8, 0)
        };
        let probe = &Probe {
            kind: raw_echo(probe, self.inside(probe, || default_ttl(probe))?),
            ..probe.clone()
        };
        for round in 0..2 {
            let error = self.send_raw(probe)?;
            let seen = self.seen()?;
            for one in &seen {
                match transport(one) {
                    Some(Transport::Icmp { kind, .. }) if *kind == ask => {
                        self.push(&mut observed.turns[round * 2], one);
                    }
                    Some(Transport::Icmp { kind, .. }) if *kind == tell => {
                        self.push(&mut observed.turns[round * 2 + 1], one);
                    }
                    _ => {}
                }
            }
            if round == 0 {
                let call = || error.map(|error| Refusal::Call(error as i32));
                observed.refusal = refusal(probe, &seen, None, None).or_else(call);
                observed.taken = !observed.turns[1].is_empty();
            }
            let mut back = observed.turns[1].iter();
            if !back.any(|point| !point.out && point.place == probe.from) {
                break;
            }
        }
        Ok(observed)
    }

    fn raw(&mut self, probe: &Probe) -> Result<Observed> {
        let Kind::Raw {
            flags: sent, icmp, ..
        } = probe.kind
        else {
            bail!("{probe} is no raw packet");
        };
        let mut observed = Observed::default();
        let error = self.send_raw(probe)?;
        let seen = self.seen()?;
        let first = first_number(probe);
        for one in &seen {
            let ours = match transport(one) {
                Some(Transport::Tcp {
                    sequence, flags, ..
                }) => *sequence == first && *flags == sent,
                Some(Transport::Udp { .. }) => probe.protocol == UDP,
                Some(Transport::Icmp { kind, code, about }) => {
                    (*kind, *code) == icmp
                        && about.is_none()
                        && !matches!(probe.protocol, TCP | UDP)
                }
                _ => false,
            };
            if ours {
                self.push(&mut observed.turns[0], one);
            }
            if let Some(Transport::Tcp {
                flags: 0x12,
                acknowledgment,
                ..
            }) = transport(one)
                && (1..=1 + payload_of(probe)).contains(&acknowledgment.wrapping_sub(first))
            {
                observed.taken = true;
            }
        }
        observed.refusal = refusal(probe, &seen, Some(first), Some(ACK_NUMBER))
            .or_else(|| error.map(|error| Refusal::Call(error as i32)));
        for socket in &self.datagrams {
            while socket.recv_from(&mut [0; 8]).is_ok() {
                observed.taken = true;
            }
        }
        Ok(observed)
    }

    fn send_raw(&self, probe: &Probe) -> Result<Option<Errno>> {
        let Kind::Raw { mark, .. } = probe.kind else {
            bail!("{probe} is no raw packet");
        };
        let bytes = bytes(probe)?;
        self.inside(probe, || {
            let socket = open_as(probe, SockType::Raw, SockProtocol::Raw)?;
            if mark != 0 {
                setsockopt(&socket, sockopt::Mark, &mark).context("set a mark")?;
            }
            if probe.dst.is_ipv4() {
                setsockopt(&socket, sockopt::Broadcast, &true).context("allow broadcast")?;
            }
            if let Some(src) = probe.src {
                bind(socket.as_raw_fd(), &storage(src, 0))
                    .with_context(|| format!("bind for {probe}"))?;
            }
            let to = storage(probe.dst, 0);
            let sent = sendto(socket.as_raw_fd(), &bytes, &to, MsgFlags::empty());
            Ok(sent.err())
        })
    }

    fn inside<T: Send>(&self, probe: &Probe, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.raised.place(&probe.from)?.enter(work)
    }

    fn push(&self, points: &mut Vec<Point>, one: &Seen) {
        let (Some(ip), Some(innermost)) = (&one.frame.ip, one.frame.innermost()) else {
            return;
        };
        let port = self
            .ports
            .contains(&(one.place.clone(), one.ifname.clone()));
        let ports = ip.ports();
        let inner = (!std::ptr::eq(ip, innermost)).then_some(innermost);
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
            inner: inner.map(|inner| (inner.source, inner.destination, inner.ttl)),
            elsewhere: one.for_other_host && one.direction == Direction::In && !port,
        };
        // A repetition is a later packet of the same turn.
        if !points.contains(&point) {
            points.push(point);
        }
    }
}

/// Namespaces that asked for a neighbour whom nobody told them.
fn unanswered(seen: &[Seen]) -> BTreeSet<&str> {
    let mut asking = BTreeSet::new();
    for one in seen {
        let out = one.direction == Direction::Out;
        let (question, answer) = match (&one.frame.arp, transport(one)) {
            (Some(arp), _) => (arp.operation == 1, arp.operation == 2),
            (None, Some(Transport::Icmp { kind, .. })) => (*kind == 135, *kind == 136),
            _ => (false, false),
        };
        if question && out {
            asking.insert(one.place.as_str());
        }
        if answer && !out {
            asking.remove(one.place.as_str());
        }
    }
    asking
}

/// TTL that the namespace gives its own packets.
fn default_ttl(probe: &Probe) -> Result<u8> {
    let name = "/proc/sys/net/ipv4/ip_default_ttl";
    if probe.dst.is_ipv6() {
        return Ok(64);
    }
    let text = std::fs::read_to_string(name).with_context(|| format!("read {name}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("decode {name}"))
}

fn raw_echo(probe: &Probe, ttl: u8) -> Kind {
    Kind::Raw {
        flags: 0,
        icmp: (if probe.dst.is_ipv6() { 128 } else { 8 }, 0),
        mark: 0,
        ttl,
        tos: 0,
        df: true,
        payload: 0,
    }
}

fn payload_of(probe: &Probe) -> u32 {
    match probe.kind {
        Kind::Raw { payload, .. } => u32::from(payload),
        Kind::Exchange => 0,
    }
}

fn first_number(probe: &Probe) -> u32 {
    0x5000_0000 | u32::from(probe.sport) << 8
}

fn serve(listeners: &[Listener]) -> Result<(Vec<TcpListener>, Vec<UdpSocket>)> {
    let (mut tcp, mut udp) = (Vec::new(), Vec::new());
    for one in listeners {
        let at = SocketAddr::new(one.addr, one.port);
        if one.udp {
            let socket = match UdpSocket::bind(at) {
                // The address is gone where a case was made smaller.
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => continue,
                other => other.with_context(|| format!("open a datagram socket on {at}"))?,
            };
            socket.set_nonblocking(true)?;
            udp.push(socket);
        } else {
            let listener = match TcpListener::bind(at) {
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => continue,
                other => other.with_context(|| format!("open a listener on {at}"))?,
            };
            listener.set_nonblocking(true)?;
            tcp.push(listener);
        }
    }
    Ok((tcp, udp))
}

fn storage(addr: IpAddr, port: u16) -> SockaddrStorage {
    SockaddrStorage::from(SocketAddr::new(addr, port))
}

/// A socket whose file belongs to the probe's user and group. The thread ends soon.
fn open_as(
    probe: &Probe,
    kind: SockType,
    protocol: impl Into<Option<SockProtocol>>,
) -> Result<OwnedFd> {
    let family = if probe.dst.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    setfsgid(Gid::from_raw(probe.id));
    setfsuid(Uid::from_raw(probe.id));
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

/// Where a probe's socket is bound.
fn own(probe: &Probe) -> SockaddrStorage {
    let any = if probe.dst.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    storage(probe.src.unwrap_or(any), probe.sport)
}

type Started<T> = (Option<T>, Option<Errno>);

fn start_connection(probe: &Probe) -> Result<Started<OwnedFd>> {
    let socket = open_as(probe, SockType::Stream, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true).context("share an address")?;
    bind(socket.as_raw_fd(), &own(probe)).with_context(|| format!("bind for {probe}"))?;
    let error = connect(socket.as_raw_fd(), &storage(probe.dst, probe.dport)).err();
    Ok((Some(socket), error))
}

fn start_datagrams(probe: &Probe) -> Result<Started<UdpSocket>> {
    let socket = open_as(probe, SockType::Datagram, None)?;
    bind(socket.as_raw_fd(), &own(probe)).with_context(|| format!("bind for {probe}"))?;
    let error = connect(socket.as_raw_fd(), &storage(probe.dst, probe.dport)).err();
    let socket = UdpSocket::from(socket);
    if error.is_some() {
        return Ok((None, error));
    }
    let error = match socket.send(b"x") {
        Ok(_) => None,
        // Told already, by ICMP.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
        Err(error) => match error.raw_os_error() {
            Some(number) => Some(Errno::from_raw(number)),
            None => bail!("send a datagram: {error}"),
        },
    };
    Ok((Some(socket), error))
}

fn transport(one: &Seen) -> Option<&Transport> {
    Some(&one.frame.innermost()?.transport)
}

/// The first refusal of a packet with this sequence and acknowledgment number; of any, where OUTPUT refused it
/// and it was seen nowhere.
fn refusal(
    probe: &Probe,
    seen: &[Seen],
    first: Option<u32>,
    acknowledged: Option<u32>,
) -> Option<Refusal> {
    seen.iter().find_map(|one| match transport(one)? {
        Transport::Icmp {
            kind,
            code,
            about: Some(about),
        } => {
            // Those about earlier probes may come late, and some are about the answer.
            let other = about.ports().is_some_and(|(source, destination)| {
                is_of_another(source, probe.sport) || source < CHOSEN && destination >= CHOSEN
            });
            let sent = match probe.kind {
                Kind::Raw { icmp, .. } => Some(icmp.0),
                Kind::Exchange => None,
            };
            let answer = match about.transport {
                Transport::Icmp { kind, .. } => sent.is_some_and(|sent| sent != kind),
                _ => false,
            };
            (!other && !answer).then_some(Refusal::Icmp {
                v6: one.frame.innermost()?.source.is_ipv6(),
                kind: *kind,
                code: *code,
            })
        }
        Transport::Tcp {
            flags,
            sequence,
            acknowledgment,
            ..
        } if flags & 4 != 0 => {
            let near = |first: u32| acknowledgment.wrapping_sub(first) < 3 + payload_of(probe);
            let told = flags & 0x10 != 0 && first.is_none_or(near);
            (told || Some(*sequence) == acknowledged).then_some(Refusal::Reset)
        }
        _ => None,
    })
}

/// Whether a port is one that probes are sent from, and not this one.
fn is_of_another(port: u16, own: u16) -> bool {
    port != own && super::probe::SOURCE_PORTS.contains(&port)
}

/// The packet from the IP header on.
fn bytes(probe: &Probe) -> Result<Vec<u8>> {
    let Kind::Raw {
        flags,
        icmp,
        ttl,
        tos,
        df,
        payload,
        ..
    } = probe.kind
    else {
        bail!("{probe} is no raw packet");
    };
    let src = probe.src.context("a raw packet has a source")?;
    let payload = vec![b'x'; usize::from(payload)];
    let builder = match (src, probe.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut head = etherparse::Ipv4Header::new(
                0,
                ttl,
                etherparse::IpNumber(0),
                src.octets(),
                dst.octets(),
            )
            .context("make an IPv4 header")?;
            head.dscp = etherparse::IpDscp::try_new(tos >> 2).context("make an IPv4 header")?;
            head.ecn = etherparse::IpEcn::try_new(tos & 3).context("make an IPv4 header")?;
            head.dont_fragment = df;
            PacketBuilder::ip(etherparse::IpHeaders::Ipv4(
                head,
                etherparse::Ipv4Extensions::default(),
            ))
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let head = etherparse::Ipv6Header {
                traffic_class: tos,
                hop_limit: ttl,
                source: src.octets(),
                destination: dst.octets(),
                ..etherparse::Ipv6Header::default()
            };
            PacketBuilder::ip(etherparse::IpHeaders::Ipv6(
                head,
                etherparse::Ipv6Extensions::default(),
            ))
        }
        _ => bail!("{probe} has addresses of two families"),
    };
    let mut out = Vec::new();
    match (probe.protocol, src) {
        (TCP, _) => {
            let mut head =
                etherparse::TcpHeader::new(probe.sport, probe.dport, first_number(probe), u16::MAX);
            head.fin = flags & 1 != 0;
            head.syn = flags & 2 != 0;
            head.rst = flags & 4 != 0;
            head.psh = flags & 8 != 0;
            head.ack = flags & 16 != 0;
            head.urg = flags & 32 != 0;
            if head.ack {
                head.acknowledgment_number = ACK_NUMBER;
            }
            builder.tcp_header(head).write(&mut out, &payload)
        }
        (UDP, _) => builder
            .udp(probe.sport, probe.dport)
            .write(&mut out, &payload),
        (_, IpAddr::V4(_)) => {
            let rest = rest_of_icmp(probe.sport);
            builder
                .icmpv4_raw(icmp.0, icmp.1, rest)
                .write(&mut out, &payload)
        }
        (_, IpAddr::V6(_)) => {
            let rest = rest_of_icmp(probe.sport);
            builder
                .icmpv6_raw(icmp.0, icmp.1, rest)
                .write(&mut out, &payload)
        }
    }
    .context("make a packet")?;
    Ok(out)
}

/// Identifier, and number 1.
fn rest_of_icmp(id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [high, low, 0, 1]
}
