//! What was predicted beside what was seen. Nothing here needs a kernel: saved cases are judged by the same code.

use std::fmt;
use std::iter;
use std::net::IpAddr;

use netpath::model::packet::Packet;
use netpath::trace::{Disposition, RejectWith, Trace};
use serde::{Deserialize, Serialize};

/// Linux's EPERM.
const EPERM: i32 = 1;
/// Linux's EACCES.
const EACCES: i32 = 13;
/// Linux's EINVAL.
const EINVAL: i32 = 22;
/// Linux's EMSGSIZE.
const EMSGSIZE: i32 = 90;
/// Linux's ENETUNREACH.
const ENETUNREACH: i32 = 101;
/// Linux's EHOSTUNREACH.
const EHOSTUNREACH: i32 = 113;

/// A packet at one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Namespace.
    pub place: String,
    /// Device.
    pub dev: String,
    /// It left by the device.
    pub out: bool,
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Source port.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
    /// TTL.
    pub ttl: u8,
    /// Differentiated services.
    pub tos: u8,
    /// Addresses and TTL inside a tunnel.
    pub inner: Option<(IpAddr, IpAddr, u8)>,
    /// The frame was for another station, at a device that passes none on.
    #[serde(default)]
    pub elsewhere: bool,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = |port: Option<u16>| port.map_or_else(|| "any".to_owned(), |p| p.to_string());
        write!(
            f,
            "{:<3} {} {:<8} {} {} > {} {} ttl {} tos {:#x}",
            self.place,
            if self.out { "out" } else { "in " },
            self.dev,
            self.src,
            port(self.sport),
            self.dst,
            port(self.dport),
            self.ttl,
            self.tos
        )?;
        if let Some((src, dst, ttl)) = self.inner {
            write!(f, " [{src} > {dst} ttl {ttl}]")?;
        }
        if self.elsewhere {
            write!(f, " (for another station)")?;
        }
        Ok(())
    }
}

/// How the sender was told no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// TCP reset.
    Reset,
    /// ICMP error.
    Icmp {
        /// ICMPv6.
        v6: bool,
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// The call failed with this number of Linux's, and nothing was seen.
    Call(i32),
}

/// What was seen of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Question, answer, and one more of each side.
    pub turns: [Vec<Point>; 4],
    /// The first refusal.
    pub refusal: Option<Refusal>,
    /// A socket or kernel took it and said so.
    pub taken: bool,
}

/// What of a probe decides how its end is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manner {
    /// One packet from a raw socket.
    pub raw: bool,
    /// IPPROTO_*.
    pub protocol: u8,
    /// TCP flags of a raw packet.
    pub flags: u8,
}

/// What is sent back from where a packet ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Back {
    /// TCP, with these flags.
    Tcp(u8),
    /// An ICMP error.
    Icmp,
}

impl Manner {
    /// A raw packet that begins a connection.
    fn syn(self) -> bool {
        self.raw && self.protocol == 6 && self.flags == 2
    }
}

/// Whether what is sent back from where a packet ended is seen nowhere: rules or routes there take it.
pub type IsLost<'f> = &'f mut dyn FnMut(&Trace, Back) -> bool;

/// The packets of an exchange.
pub fn chain(trace: &Trace) -> impl Iterator<Item = &Trace> {
    iter::successors(Some(trace), |packet| packet.reply.as_deref())
}

/// Where a packet was predicted to be seen; `name` tells namespaces' names.
pub fn points(trace: &Trace, name: &dyn Fn(&netpath::model::NsKey) -> String) -> Vec<Point> {
    let mut points = Vec::new();
    for hop in &trace.hops {
        let place = name(&hop.ns);
        points.extend(hop.taps.iter().map(|tap| Point {
            inner: inner(&tap.packet),
            place: place.clone(),
            dev: tap.dev.clone(),
            out: tap.out,
            src: tap.packet.src,
            dst: tap.packet.dst,
            sport: tap.packet.sport(),
            dport: tap.packet.dport(),
            ttl: tap.packet.ttl,
            tos: tap.packet.tos,
            elsewhere: false,
        }));
    }
    points
}

fn inner(packet: &Packet) -> Option<(IpAddr, IpAddr, u8)> {
    let inner = &packet.inner.as_ref()?.packet;
    Some((inner.src, inner.dst, inner.ttl))
}

/// Whether what was seen is this way. `Err`: why not.
pub fn fits(
    manner: Manner,
    trace: &Trace,
    name: &dyn Fn(&netpath::model::NsKey) -> String,
    observed: &Observed,
    is_lost: IsLost<'_>,
) -> Result<(), String> {
    let mut packets = chain(trace);
    let free = free_ports(trace);
    for (number, seen) in observed.turns.iter().enumerate() {
        let packet = packets.next();
        let points = packet
            .map(|packet| points(packet, name))
            .unwrap_or_default();
        if packet.is_none() && !manner.raw && matches!(manner.protocol, 1 | 58) {
            // Echoes have no socket that could tell that none came back, so that the next is sent anyway.
            continue;
        }
        let flooded = packet.is_some_and(floods);
        if packet.is_some_and(|packet| packet.disposition == Disposition::Loop) {
            // The prediction ends where it turns; the kernel goes on until the TTL runs out.
            if within(&points, seen, free) {
                continue;
            }
            return Err(format!("packet {} is not where it was seen", number + 1));
        }
        let equal = if flooded {
            within(&points, seen, free)
        } else {
            let mut rest = seen.iter();
            let last = points.len();
            // What another station was sent by a switch that knows no better is seen there and goes no further.
            let mut all = points.iter().enumerate().all(|(at, own)| {
                rest.by_ref()
                    .find(|one| !one.elsewhere || at + 1 == last && same(own, one, free))
                    .is_some_and(|one| same(own, one, free))
            });
            all &= rest.all(|one| one.elsewhere);
            all
        };
        if !equal {
            return Err(format!("packet {} is not where it was seen", number + 1));
        }
    }
    let refusal = observed.refusal;
    let ends = match &trace.disposition {
        Disposition::Delivered | Disposition::LeavesCluster if manner.raw => {
            let silent = !observed.taken && observed.refusal.is_none();
            taken_raw(manner, observed) || silent && manner.syn() && is_lost(trace, Back::Tcp(0x12))
        }
        Disposition::Delivered | Disposition::LeavesCluster => {
            // What becomes of lost answers their points tell.
            !trace.works() || observed.taken && refusal.is_none()
        }
        Disposition::Rejected(RejectWith::PortClosed) if manner.raw => match refusal {
            None if manner.flags & 4 != 0 => true,
            None => is_lost(trace, Back::Tcp(0x14)),
            Some(own) => manner.flags & 4 == 0 && own == Refusal::Reset,
        },
        // The refusal itself may be refused on its way.
        Disposition::Rejected(RejectWith::PortClosed | RejectWith::TcpReset)
            if refusal.is_none() =>
        {
            is_lost(trace, Back::Tcp(0x14))
        }
        Disposition::Rejected(_) if refusal.is_none() => is_lost(trace, Back::Icmp),
        Disposition::Rejected(with) => refusal.is_some_and(|own| is(*with, own)),
        // Nobody is told by a packet; the call of a local sender may fail.
        Disposition::Dropped(_) => {
            !observed.taken && matches!(refusal, None | Some(Refusal::Call(_)))
        }
        Disposition::Loop => {
            let over = refusal.is_none_or(|own| is(RejectWith::TtlExceeded, own));
            !observed.taken && over
        }
        Disposition::Inconclusive(_) => false,
    };
    if ends {
        Ok(())
    } else {
        Err(format!("{:?} is not what was seen", trace.disposition))
    }
}

/// Whether it may be seen elsewhere, too: a switch on the way sends it to all its ports.
fn floods(trace: &Trace) -> bool {
    let mut steps = trace.hops.iter().flat_map(|hop| &hop.steps);
    // What a bridge translates to a neighbour that was never used passes the bridge's own device, too: the kernel
    // keeps no header for it yet (docs/kernel-coverage.md).
    steps.any(|step| {
        step.result.ends_with(", flooded")
            || step.result.starts_with("no port leads to")
            || step
                .result
                .ends_with("translated to an address on the same bridge")
    })
}

/// Whether all predicted points were seen, in order, whatever else was.
fn within(predicted: &[Point], seen: &[Point], free: (u16, u16)) -> bool {
    let mut seen = seen.iter();
    predicted
        .iter()
        .all(|own| seen.by_ref().any(|one| same(own, one, free)))
}

/// A packet from a raw socket that reaches a socket or kernel: what is said of it, where anything is.
fn taken_raw(manner: Manner, observed: &Observed) -> bool {
    match manner.protocol {
        6 if manner.flags == 2 => observed.taken && observed.refusal.is_none(),
        // A listener resets what belongs to no connection, or passes over it.
        6 => !matches!(observed.refusal, Some(Refusal::Icmp { .. })),
        17 => observed.taken,
        _ => observed.refusal.is_none(),
    }
}

/// Ports that a source gets where it is any free one: those that a rule names, or those from 1024 on.
fn free_ports(trace: &Trace) -> (u16, u16) {
    let steps = chain(trace).flat_map(|packet| packet.hops.iter().flat_map(|hop| &hop.steps));
    let named = steps.filter_map(|step| {
        let (_, range) = step.result.split_once(", port ")?;
        let (first, last) = range.split_once(" to ")?;
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    named.last().unwrap_or((1024, u16::MAX))
}

/// Ports that the prediction leaves open are any of the free ones.
fn same(predicted: &Point, seen: &Point, free: (u16, u16)) -> bool {
    let port = |own: Option<u16>, other: Option<u16>| match (own, other) {
        (None, Some(other)) => (free.0..=free.1).contains(&other),
        (own, other) => own == other,
    };
    let rest = |point: &Point| Point {
        sport: None,
        dport: None,
        elsewhere: false,
        ..point.clone()
    };
    port(predicted.sport, seen.sport)
        && port(predicted.dport, seen.dport)
        && rest(predicted) == rest(seen)
}

fn is(with: RejectWith, seen: Refusal) -> bool {
    let icmp = |four: (u8, u8), six: (u8, u8)| match seen {
        Refusal::Icmp { v6, kind, code } => (kind, code) == if v6 { six } else { four },
        _ => false,
    };
    let call = |errors: &[i32]| matches!(seen, Refusal::Call(error) if errors.contains(&error));
    match with {
        RejectWith::TcpReset | RejectWith::PortClosed => seen == Refusal::Reset,
        // The call fails where OUTPUT refuses, whatever becomes of the error.
        RejectWith::Icmp(code) => icmp((3, code), (1, code)) || call(&[EPERM]),
        RejectWith::PortUnreachable => icmp((3, 3), (1, 4)),
        RejectWith::NetUnreachable => icmp((3, 0), (1, 0)) || call(&[ENETUNREACH]),
        RejectWith::HostUnreachable => icmp((3, 1), (1, 3)) || call(&[EHOSTUNREACH]),
        RejectWith::Prohibited => icmp((3, 13), (1, 1)) || call(&[EACCES]),
        RejectWith::TooBig(_) => icmp((3, 4), (2, 0)) || call(&[EMSGSIZE]),
        RejectWith::TtlExceeded => icmp((11, 0), (3, 0)),
        RejectWith::InvalidArgument => call(&[EINVAL, ENETUNREACH]),
    }
}

/// Traces, as far as they may be compared, for people.
pub fn show(
    traces: &[Trace],
    name: &dyn Fn(&netpath::model::NsKey) -> String,
    observed: &Observed,
) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for trace in traces {
        let _ = writeln!(text, " predicted, {:.4}:", trace.probability);
        for (number, packet) in chain(trace).enumerate() {
            let _ = writeln!(text, "  packet {}: {:?}", number + 1, packet.disposition);
            for point in points(packet, name) {
                let _ = writeln!(text, "    {point}");
            }
            for hop in packet.hops.iter().filter(|_| traces.len() < 3) {
                for step in &hop.steps {
                    let kind = step.kind.name();
                    let _ = writeln!(text, "      - {} {kind}: {}", name(&hop.ns), step.result);
                }
            }
        }
    }
    let (refusal, taken) = (observed.refusal, observed.taken);
    let _ = writeln!(text, " seen: refusal {refusal:?}, taken {taken}");
    for (number, points) in observed.turns.iter().enumerate() {
        let _ = writeln!(text, "  packet {}", number + 1);
        for point in points {
            let _ = writeln!(text, "    {point}");
        }
    }
    text
}
