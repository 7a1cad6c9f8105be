//! What was predicted beside what was seen. Nothing here needs a kernel: saved cases are judged by the same code.

use std::net::IpAddr;

use netpath::model::packet::{ICMP, ICMPV6, TCP, UDP};
use netpath::simulate::refusal::Lost;
use netpath::trace::{Disposition, Evidence, Hop, RejectWith, Step, StepKind, Trace};

use super::seen::{Name, Observed, Point, Refusal, chain, is_repetition, points};
use super::world::{Kind, Probe};

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

/// What of a probe decides how its end is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// That of a probe.
    pub fn of(probe: &Probe) -> Self {
        let (raw, protocol, flags) = match probe.kind {
            Kind::Exchange => (false, probe.protocol, 0),
            Kind::Raw { flags, .. } => (true, probe.protocol, flags),
            Kind::Error { .. } => (true, if probe.dst.is_ipv6() { ICMPV6 } else { ICMP }, 0),
        };
        Self {
            raw,
            protocol,
            flags,
        }
    }

    /// A raw packet that begins a connection.
    fn syn(self) -> bool {
        self.raw && self.protocol == TCP && self.flags == 2
    }
}

/// Whether something is so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holds {
    /// It is.
    Yes,
    /// It is not.
    No,
    /// Why that can't be told.
    Unknown(String),
}

impl From<Lost> for Holds {
    fn from(lost: Lost) -> Self {
        match lost {
            Lost::Yes => Self::Yes,
            Lost::No => Self::No,
            Lost::Unknown(why) => Self::Unknown(why),
        }
    }
}

impl From<bool> for Holds {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// Why what was seen is not, or may not be, a predicted way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// It is another.
    Differs(String),
    /// It can't be told.
    Unknown(String),
}

/// Whether what is sent back from where a packet ended is seen nowhere: rules or routes there take it.
pub type IsLost<'f> = &'f mut dyn FnMut(&Trace, Back) -> Holds;

/// Whether what was seen is this way. `Err`: why not.
pub fn fits(
    manner: Manner,
    trace: &Trace,
    name: Name<'_>,
    observed: &Observed,
    is_lost: IsLost<'_>,
) -> Result<(), Unfit> {
    let mut packets = chain(trace);
    let free = free_ports(trace);
    // Nothing is sent before a handshake, which is not followed; what it carries once there was one is.
    let sealed = !chain(trace).any(awaits_handshake);
    for (number, seen) in observed.turns.iter().enumerate() {
        let seen: Vec<Point> = seen
            .iter()
            .filter(|one| sealed || !one.sealed)
            .cloned()
            .collect();
        let seen = seen.as_slice();
        let packet = packets.next();
        let mut points = packet
            .map(|packet| points(packet, name))
            .unwrap_or_default();
        points.retain(|one| sealed || !one.sealed);
        without_repetitions(&mut points);
        if packet.is_none() && !manner.raw && matches!(manner.protocol, ICMP | ICMPV6) {
            // Echoes have no socket that could tell that none came back, so that the next is sent anyway.
            continue;
        }
        let flooded = packet.is_some_and(floods);
        if packet.is_some_and(|packet| packet.disposition == Disposition::Loop) {
            // The prediction ends where it turns; the kernel goes on until the TTL runs out.
            if within(&points, seen, &free) {
                continue;
            }
            return Err(elsewhere(number));
        }
        let equal = if flooded {
            within(&points, seen, &free)
        } else {
            are_seen(&points, seen, &free)
        };
        if !equal {
            return Err(elsewhere(number));
        }
    }
    let refusal = observed.refusal;
    let ends = match &trace.disposition {
        Disposition::Delivered | Disposition::LeavesCluster if manner.raw => {
            let silent = !observed.taken && refusal.is_none();
            if !taken_raw(manner, observed) && silent && manner.syn() {
                is_lost(trace, Back::Tcp(0x12))
            } else {
                taken_raw(manner, observed).into()
            }
        }
        Disposition::Rejected(RejectWith::PortClosed) if manner.raw => match refusal {
            None if manner.flags & 4 != 0 => Holds::Yes,
            None => is_lost(trace, Back::Tcp(0x14)),
            Some(own) => (manner.flags & 4 == 0 && own == Refusal::Reset).into(),
        },
        // The call fails where OUTPUT refuses, whatever becomes of the error.
        Disposition::Rejected(_) if refusal == Some(Refusal::Call(EPERM)) => {
            refused_as_sent(trace).into()
        }
        // The refusal itself may be refused on its way.
        Disposition::Rejected(RejectWith::PortClosed | RejectWith::TcpReset)
            if refusal.is_none() =>
        {
            is_lost(trace, Back::Tcp(0x14))
        }
        Disposition::Rejected(_) if refusal.is_none() => is_lost(trace, Back::Icmp),
        Disposition::Loop => {
            let over = refusal.is_none_or(|own| told(RejectWith::TtlExceeded, own));
            (!observed.taken && over).into()
        }
        _ => ends(trace, observed).into(),
    };
    match ends {
        Holds::Yes => Ok(()),
        Holds::No => Err(other_end(trace)),
        Holds::Unknown(why) => Err(Unfit::Unknown(why)),
    }
}

/// Whether a packet is for a peer of WireGuard that there was no handshake with.
fn awaits_handshake(packet: &Trace) -> bool {
    let mut steps = packet.hops.iter().flat_map(|hop| &hop.steps);
    steps.any(|step| {
        let new = |own: &Evidence| matches!(own, Evidence::Link { state, .. } if state.ends_with("no handshake yet"));
        step.kind == StepKind::Encap && step.evidence.iter().any(new)
    })
}

/// Whether rules refused a packet where it was sent, before any device.
fn refused_as_sent(trace: &Trace) -> bool {
    let rule = |hop: &Hop| {
        let last = hop.steps.last();
        hop.taps.is_empty() && last.is_some_and(|step| step.kind == StepKind::Netfilter)
    };
    matches!(trace.hops.as_slice(), [hop] if rule(hop))
}

/// Whether a packet's end is what was seen of it, where that does not depend on what came back from there.
pub fn ends(trace: &Trace, observed: &Observed) -> bool {
    let refusal = observed.refusal;
    match &trace.disposition {
        // What becomes of lost answers their points tell.
        Disposition::Delivered | Disposition::LeavesCluster => {
            !trace.works() || observed.taken && refusal.is_none()
        }
        Disposition::Rejected(with) => refusal.is_some_and(|own| told(*with, own)),
        // Nobody is told by a packet; the call of a local sender may fail.
        Disposition::Dropped(_) | Disposition::Loop => {
            !observed.taken && matches!(refusal, None | Some(Refusal::Call(_)))
        }
        Disposition::Inconclusive(_) => false,
    }
}

/// That a packet of an exchange, by its number, is not where it was seen.
pub fn elsewhere(number: usize) -> Unfit {
    Unfit::Differs(format!("packet {} is not where it was seen", number + 1))
}

/// That it ended otherwise.
pub fn other_end(trace: &Trace) -> Unfit {
    Unfit::Differs(format!("{:?} is not what was seen", trace.disposition))
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
fn within(predicted: &[Point], seen: &[Point], free: &[(u16, u16)]) -> bool {
    let mut seen = seen.iter();
    predicted
        .iter()
        .all(|own| seen.by_ref().any(|one| same(own, one, free)))
}

/// A packet from a raw socket that reaches a socket or kernel: what is said of it, where anything is.
pub fn taken_raw(manner: Manner, observed: &Observed) -> bool {
    match manner.protocol {
        TCP if manner.flags == 2 => observed.taken && observed.refusal.is_none(),
        // A listener resets what belongs to no connection, or passes over it.
        TCP => !matches!(observed.refusal, Some(Refusal::Icmp { .. })),
        UDP => observed.taken,
        _ => observed.refusal.is_none(),
    }
}

/// Why a tunnel on the way may have refused a packet for an error about an earlier one: for half a minute after such an
/// error, it tells as many senders that the host can't be reached, and sends their packets on nevertheless (`err_count`,
/// `ip_tunnel_xmit()`, `ipip6_tunnel_xmit()`). Nothing shows how many.
///
/// That ends an exchange, but changes no way: packets until then, the first at least, have to be where they were predicted.
pub fn told_before(traces: &[Trace], name: Name<'_>, observed: &Observed) -> Option<String> {
    let unreachable =
        |seen| matches!(seen, Refusal::Icmp { .. }) && told(RejectWith::HostUnreachable, seen);
    for trace in traces {
        let passes = |number: usize| {
            let packet = chain(trace).nth(number)?;
            packet
                .hops
                .iter()
                .find_map(|hop| told_there(hop, name, observed))
        };
        let fits = |number: usize| is_where_seen(trace, number, name, observed);
        let found = match observed.refusal {
            // The sender is told, and gives up; what it sent goes on, and may be answered.
            Some(seen) if unreachable(seen) => {
                let rest = observed.turns[2..].iter().all(Vec::is_empty);
                passes(0).filter(|_| fits(0) && rest && (observed.turns[1].is_empty() || fits(1)))
            }
            // Who answers is told: TCP forgets what it was to answer, and resets what comes then.
            None | Some(Refusal::Reset) => {
                let rest =
                    (2..observed.turns.len()).all(|n| observed.turns[n].is_empty() || fits(n));
                passes(1).filter(|_| fits(0) && fits(1) && rest)
            }
            _ => None,
        };
        if let Some(remote) = found {
            return Some(format!(
                "a tunnel to {remote} was told of an error before, which it may tell of now"
            ));
        }
    }
    None
}

/// The remote of a tunnel of this namespace that was told of an error, and that a packet goes into here.
fn told_there(hop: &Hop, name: Name<'_>, observed: &Observed) -> Option<IpAddr> {
    let place = name(&hop.ns);
    let told = observed.told.iter().filter(|(own, _)| *own == place);
    let mut remotes = told.map(|(_, remote)| *remote);
    remotes.find(|remote| {
        let to = format!(" to {remote}");
        let mut steps = hop.steps.iter();
        // Its packet may have gone no further.
        steps.any(|step| step.kind == StepKind::Encap && step.result.ends_with(&to))
    })
}

/// Whether a packet of an exchange, by its number, was seen where it was predicted to be, and nowhere else.
fn is_where_seen(trace: &Trace, number: usize, name: Name<'_>, observed: &Observed) -> bool {
    let (Some(packet), Some(seen)) = (chain(trace).nth(number), observed.turns.get(number)) else {
        return false;
    };
    let mut points = points(packet, name);
    without_repetitions(&mut points);
    are_seen(&points, seen, &free_ports(trace))
}

/// What is seen twice is told once.
fn without_repetitions(points: &mut Vec<Point>) {
    for at in (1..points.len()).rev() {
        if is_repetition(&points[..at], &points[at]) {
            points.remove(at);
        }
    }
}

/// Whether these points were seen, in order, and no others but where a switch that knows no better sends to.
fn are_seen(points: &[Point], seen: &[Point], free: &[(u16, u16)]) -> bool {
    let mut rest = seen.iter();
    let last = points.len();
    // What another station was sent is seen there and goes no further.
    let mut all = points.iter().enumerate().all(|(at, own)| {
        rest.by_ref()
            .find(|one| !one.elsewhere || at + 1 == last && same(own, one, free))
            .is_some_and(|one| same(own, one, free))
    });
    all &= rest.all(|one| one.elsewhere);
    all
}

/// Ports of Geneve: its own, and another in tests.
const GENEVE: [u16; 2] = [6081, 6082];

/// Ports that a source gets where it is any free one: those that rules name, or those from 1024 on.
pub fn free_ports(trace: &Trace) -> Vec<(u16, u16)> {
    let steps = || chain(trace).flat_map(|packet| packet.hops.iter().flat_map(|hop| &hop.steps));
    let range = |step: &Step| {
        let (_, range) = step.result.split_once(", port ")?;
        let (first, last) = range.split_once(" to ")?;
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    // Each translation of an exchange has its own.
    let mut named: Vec<(u16, u16)> = steps().filter_map(range).collect();
    let unnamed = |step: &Step| step.kind == StepKind::Nat && range(step).is_none();
    if named.is_empty() || steps().any(unnamed) {
        named.push((1024, u16::MAX));
    }
    named
}

/// Ports that the prediction leaves open are any of the free ones.
pub fn same(predicted: &Point, seen: &Point, free: &[(u16, u16)]) -> bool {
    // A tunnel's own source port is a hash of what it carries, whatever rules name for that; Geneve's is any.
    let first = if predicted.dport.is_some_and(|to| GENEVE.contains(&to)) {
        1
    } else {
        1024
    };
    let any = [(first, u16::MAX)];
    let free = if predicted.inner.is_some() {
        any.as_slice()
    } else {
        free
    };
    let port = |own: Option<u16>, other: Option<u16>| match (own, other) {
        (None, Some(other)) => free
            .iter()
            .any(|(first, last)| (first..=last).contains(&&other)),
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

/// Whether a refusal is the one that is predicted.
pub fn told(with: RejectWith, seen: Refusal) -> bool {
    let icmp = |four: (u8, u8), six: (u8, u8)| match seen {
        Refusal::Icmp { v6, kind, code } => (kind, code) == if v6 { six } else { four },
        _ => false,
    };
    let call = |errors: &[i32]| matches!(seen, Refusal::Call(error) if errors.contains(&error));
    match with {
        RejectWith::TcpReset | RejectWith::PortClosed => seen == Refusal::Reset,
        RejectWith::Icmp(code) => icmp((3, code), (1, code)),
        RejectWith::PortUnreachable => icmp((3, 3), (1, 4)),
        RejectWith::NetUnreachable => icmp((3, 0), (1, 0)) || call(&[ENETUNREACH]),
        RejectWith::HostUnreachable => icmp((3, 1), (1, 3)) || call(&[EHOSTUNREACH]),
        RejectWith::Prohibited => icmp((3, 13), (1, 1)) || call(&[EACCES]),
        RejectWith::TooBig(_) => icmp((3, 4), (2, 0)) || call(&[EMSGSIZE]),
        RejectWith::TtlExceeded => icmp((11, 0), (3, 0)),
        RejectWith::InvalidArgument => call(&[EINVAL, ENETUNREACH]),
    }
}
