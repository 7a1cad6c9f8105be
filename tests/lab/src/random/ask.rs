//! What is asked of the simulation for a probe, and the verdict. Nothing here needs a kernel.

use std::net::IpAddr;

use netpath::model::packet::{Inner, L4, Packet, TCP, UDP, Wrap};
use netpath::model::topology::Topology;
use netpath::model::{IfIndex, NsKey};
use netpath::simulate::{
    Asked, Flow, Limits, Outcome, Prepared, Sent, Wants, refusal, send, simulate,
};
use netpath::trace::{Disposition, Evidence, StepKind, Trace};

use super::fit::{self, Back, Holds, Unfit};
use super::seen::{self, Name, Observed, chain};
use super::world::{Kind, Probe};

/// Ways that are followed; where next hops are chosen again and again in a loop, there are more than can be.
const BRANCHES: usize = 128;

/// How prediction and kernel compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// One of the ways was seen; its position among the traces.
    Agrees(usize),
    /// Why nothing can be said.
    Unknown(String),
    /// In words.
    Differs(String),
}

/// Holds what was seen against the ways predicted: it must be one of them.
pub fn compare(
    probe: &Probe,
    traces: &[Trace],
    name: Name<'_>,
    observed: &Observed,
    fits: &mut dyn FnMut(&Trace, &Observed) -> Result<(), Unfit>,
) -> Verdict {
    let sum: f64 = traces.iter().map(|trace| trace.probability).sum();
    if (sum - 1.0).abs() > 1e-6 {
        return Verdict::Differs(format!("{probe}: probabilities add up to {sum}"));
    }
    for trace in traces {
        if let Disposition::Inconclusive(why) = trace.outcome() {
            return Verdict::Unknown(why.join("; "));
        }
    }
    let mut text = format!("{probe}\n");
    let mut unknown = None;
    for (number, trace) in traces.iter().enumerate() {
        match fits(trace, observed) {
            Ok(()) => return Verdict::Agrees(number),
            Err(Unfit::Differs(why)) => text.extend([" ", why.as_str(), "\n"]),
            Err(Unfit::Unknown(why)) => unknown = Some(why),
        }
    }
    if let Some(why) = unknown {
        return Verdict::Unknown(why);
    }
    // What chance refuses in one of the ways it may refuse later, too: one segment of a side and not the next, a packet
    // that goes round.
    let rest = Observed {
        refusal: None,
        ..observed.clone()
    };
    // The client's data may be refused before any device, where its ACK passed.
    let [asked, answered, ..] = observed.turns.clone();
    let bare = Observed {
        turns: [asked, answered, Vec::new(), Vec::new()],
        ..observed.clone()
    };
    for (number, trace) in traces.iter().enumerate() {
        let tcp = trace.packet.protocol() == TCP && trace.disposition == Disposition::Delivered;
        let later = match &trace.disposition {
            Disposition::Loop => is_refused(traces, trace, name, (observed, 0)),
            _ => {
                tcp && chain(trace).all(Trace::arrives)
                    && is_refused(traces, trace, name, (observed, 1))
            }
        };
        let third = chain(trace).nth(2).filter(|_| tcp && !observed.taken);
        let unsent = third.is_some_and(|packet| !packet.arrives())
            && traces
                .iter()
                .any(|other| passes_third(other, name, observed));
        if later && fits(trace, &rest).is_ok() || unsent && fits(trace, &bare).is_ok() {
            return Verdict::Agrees(number);
        }
    }
    if let Some(why) = fit::told_before(traces, name, observed) {
        return Verdict::Unknown(why);
    }
    text.push_str(&seen::show(traces, name, observed));
    Verdict::Differs(text)
}

/// Whether another way, which is the same until then, has a packet refused as was seen, but for so many first ones of the
/// exchange.
fn is_refused(
    traces: &[Trace],
    own: &Trace,
    name: Name<'_>,
    (observed, skipped): (&Observed, usize),
) -> bool {
    let same = |other: &Trace, count: usize| {
        let mut both = chain(own).zip(chain(other)).take(count);
        both.all(|(own, other)| seen::points(own, name) == seen::points(other, name))
    };
    traces.iter().any(|other| {
        let mut packets = chain(other).enumerate().skip(skipped);
        packets.any(
            |(at, packet)| match (&packet.disposition, observed.refusal) {
                (Disposition::Rejected(with), Some(refusal)) => {
                    fit::told(*with, refusal) && same(other, at)
                }
                _ => false,
            },
        )
    })
}

/// Whether a way has the third packet arrive, as was seen.
fn passes_third(trace: &Trace, name: Name<'_>, observed: &Observed) -> bool {
    let third = chain(trace).nth(2).filter(|packet| packet.arrives());
    let [_, _, seen, after] = &observed.turns;
    third.is_some_and(|packet| {
        let points = seen::points(packet, name);
        let free = fit::free_ports(trace);
        let mut both = points.iter().zip(seen);
        after.is_empty()
            && points.len() == seen.len()
            && both.all(|(own, one)| fit::same(own, one, &free))
    })
}

/// The namespace whose routes refused a packet that came in, and to whom it says so: of IPv4, the kernel says it to
/// an address five times at once, then once in a second (`ip_error()`; error_burst, which no namespace has for itself).
pub fn refused_by_route(trace: &Trace) -> Option<(NsKey, IpAddr)> {
    let (hop, step) = trace.last_step()?;
    let route = step.kind == StepKind::Route && hop.iif.is_some() && trace.packet.src.is_ipv4();
    (route && matches!(trace.disposition, Disposition::Rejected(_)))
        .then(|| (hop.ns.clone(), trace.packet.src))
}

/// What is sent back from where a packet ended. `Err`: whether it is lost, where nothing can be sent.
///
/// An error by ICMP quotes the packet: conntrack finds its connection by that.
pub fn sent_back(topology: &Topology, trace: &Trace, back: Back) -> Result<Sent, Holds> {
    let Back::Tcp(own) = back else {
        let mut wants = Wants::new();
        return refusal::error(&mut Prepared::new(topology), trace, &limits(), &mut wants)
            .map_err(Holds::from);
    };
    let hop = trace.hops.last().ok_or(Holds::No)?;
    // A socket answers to what opens a connection.
    let kernel = own != 0x12;
    let mut packet = trace.packet.reply(64);
    match &mut packet.l4 {
        L4::Tcp { flags, .. } => *flags = own,
        _ => return Err(Holds::No),
    }
    Ok(Sent {
        from: hop.ns.clone(),
        packet,
        mark: 0,
        uid: kernel.then_some(0),
        gid: kernel.then_some(0),
        kernel,
        raw: false,
        untied: false,
        bound: socket_of(trace).or_else(|| refusal::vrf_of(topology, trace)),
    })
}

/// The device that the socket which took a packet is bound to.
fn socket_of(trace: &Trace) -> Option<IfIndex> {
    let (_, step) = trace.last_step()?;
    let taken = trace.disposition == Disposition::Delivered;
    step.evidence
        .iter()
        .filter(|_| taken)
        .find_map(|one| match one {
            Evidence::Socket { socket } => socket.bound_dev,
            _ => None,
        })
}

/// Whether what is sent back is lost where it is sent, before any device, on some of its ways.
pub fn is_lost(ways: &[Trace]) -> Holds {
    let mut holds = Holds::No;
    let unseen = |trace: &&Trace| trace.hops.iter().all(|hop| hop.taps.is_empty());
    for way in ways.iter().filter(unseen) {
        match &way.disposition {
            Disposition::Delivered | Disposition::LeavesCluster => {}
            Disposition::Inconclusive(why) => {
                let why = why.join("; ");
                holds = Holds::Unknown(format!("whether what is sent back is lost: {why}"));
            }
            _ if is_not_own(way) => {
                let why = "whether what is sent back is lost: its source is not known";
                holds = Holds::Unknown(why.to_owned());
            }
            _ => return Holds::Yes,
        }
    }
    holds
}

/// Whether a packet has no address of its namespace as its source.
fn is_not_own(way: &Trace) -> bool {
    way.ended_by(StepKind::SourceAddress)
}

/// Whether a rule ended it.
fn by_rule(trace: &Trace) -> bool {
    trace.ended_by(StepKind::Netfilter)
}

/// Whether the flow that the packet itself makes tells what becomes of what is sent back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// It alone: an error about what a rule or a route refused belongs to a connection that is in no table.
    Alone,
    /// It, where what is read does not say that it is lost: of a reset, and of an error about a port that nobody knows.
    Also,
    /// What is read does.
    Not,
}

/// Whether the flow of the packet itself tells what becomes of what is sent back.
pub fn by_own_flow(trace: &Trace, back: Back) -> Own {
    let ends = trace.packet.tuple();
    match back {
        Back::Icmp if trace.ended_by(StepKind::Route) || by_rule(trace) => Own::Alone,
        Back::Icmp if ends.sport.is_some() && ends.dport.is_some() => Own::Not,
        _ => Own::Also,
    }
}

/// Whether what is sent back is lost, by what was read before the packet was sent, and by what the packet made of that.
pub fn is_lost_as_read(
    topology: &Topology,
    question: &Question,
    trace: &Trace,
    back: Back,
) -> Holds {
    let sent = match sent_back(topology, trace, back) {
        Ok(sent) => sent,
        Err(holds) => return holds,
    };
    let by_own = || is_lost(&question.ask_back(topology, trace, &sent).traces);
    let own = by_own_flow(trace, back);
    if own == Own::Alone {
        return by_own();
    }
    match is_lost(&send(topology, &sent, &Limits::default()).traces) {
        Holds::No if own == Own::Also => by_own(),
        holds => holds,
    }
}

/// How far the ways of a packet through a random network are followed.
pub fn limits() -> Limits {
    Limits {
        branches: BRANCHES,
        ..Limits::default()
    }
}

/// The question that a probe asks.
#[derive(Clone, Debug)]
pub enum Question {
    /// Of an exchange.
    Flow(Flow),
    /// Of one packet.
    Sent(Sent),
}

impl Question {
    /// That of a probe from a namespace.
    pub fn of(probe: &Probe, from: NsKey, topology: &Topology) -> Self {
        let id = Some(probe.id);
        let netns = topology.netns(&from);
        let dev = probe.dev.as_deref();
        let bound = dev.and_then(|dev| Some(netns?.link_named(dev)?.index));
        let Some(packet) = packet(probe) else {
            let ports = matches!(probe.protocol, TCP | UDP);
            return Self::Flow(Flow {
                from,
                src: probe.src,
                sport: Some(probe.sport),
                dst: probe.dst,
                dport: ports.then_some(probe.dport),
                protocol: probe.protocol,
                len: probe.length(),
                uid: id,
                gid: id,
                bound,
            });
        };
        Self::Sent(Sent {
            from,
            packet,
            mark: match probe.kind {
                Kind::Raw { mark, .. } => mark,
                Kind::Exchange | Kind::Error { .. } => 0,
            },
            uid: id,
            gid: id,
            kernel: false,
            raw: true,
            untied: false,
            bound,
        })
    }

    /// All ways, as far as they are followed.
    pub fn ask(&self, topology: &Topology, limits: &Limits) -> Outcome {
        match self {
            Self::Flow(flow) => simulate(topology, flow, limits),
            Self::Sent(sent) => send(topology, sent, limits),
        }
    }

    /// The ways of what is sent back from where a packet ended, with the connections that the packet itself made. A reset
    /// ends its connection, which is gone when connections are read anew.
    pub fn ask_back(&self, topology: &Topology, way: &Trace, sent: &Sent) -> Outcome {
        let asked = match self {
            Self::Flow(flow) => Asked::Flow(flow),
            Self::Sent(sent) => Asked::Sent(sent),
        };
        Prepared::new(topology).send_after(asked, way, sent, &limits())
    }
}

/// The packet of a raw socket; `None` where the kernel makes it.
fn packet(probe: &Probe) -> Option<Packet> {
    let src = probe.src.unwrap_or(probe.dst);
    let (sport, dport) = (Some(probe.sport), Some(probe.dport));
    let (ends, ttl, tos, df, l4) = match probe.kind {
        Kind::Exchange => return None,
        Kind::Raw {
            flags,
            icmp,
            ttl,
            tos,
            df,
            ..
        } => {
            let l4 = match probe.protocol {
                TCP => L4::Tcp {
                    sport,
                    dport,
                    flags,
                },
                UDP => L4::Udp { sport, dport },
                _ => L4::Icmp {
                    kind: icmp.0,
                    code: icmp.1,
                    id: sport,
                },
            };
            ((src, probe.dst), ttl, tos, df, l4)
        }
        Kind::Error { icmp, by } => {
            let l4 = L4::Icmp {
                kind: icmp.0,
                code: icmp.1,
                id: Some(0),
            };
            ((by, src), 64, 0, true, l4)
        }
    };
    let about = match probe.kind {
        Kind::Error { .. } => packet(&probe.quoted()),
        _ => None,
    };
    Some(Packet {
        ttl,
        tos,
        df,
        len: probe.length(),
        inner: about.map(|packet| {
            Box::new(Inner {
                vni: None,
                wrap: Wrap::Plain,
                packet,
            })
        }),
        ..Packet::new(ends.0, ends.1, l4)
    })
}
