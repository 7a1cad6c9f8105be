//! What is asked of the simulation for a probe, and the verdict. Nothing here needs a kernel.

use std::net::IpAddr;

use netpath::model::NsKey;
use netpath::model::packet::{L4, Packet, TCP, UDP};
use netpath::model::topology::Topology;
use netpath::simulate::{Flow, Limits, Outcome, Sent, send, simulate};
use netpath::trace::{Disposition, Hop, StepKind, Trace};

use super::fit::{self, Back, Manner, Observed};
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
    topology: &Topology,
    probe: &Probe,
    traces: &[Trace],
    name: &dyn Fn(&NsKey) -> String,
    observed: &Observed,
    limited: &dyn Fn(&Trace) -> bool,
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
    let manner = match probe.kind {
        Kind::Exchange => Manner {
            raw: false,
            protocol: probe.protocol,
            flags: 0,
        },
        Kind::Raw { flags, .. } => Manner {
            raw: true,
            protocol: probe.protocol,
            flags,
        },
    };
    let mut text = format!("{probe}\n");
    for (number, trace) in traces.iter().enumerate() {
        let mut lost = |trace: &Trace, back| {
            back == Back::Icmp && limited(trace) || is_lost(topology, trace, back)
        };
        match fit::fits(manner, trace, name, observed, &mut lost) {
            Ok(()) => return Verdict::Agrees(number),
            Err(why) => text.extend([" ", why.as_str(), "\n"]),
        }
    }
    text.push_str(&fit::show(traces, name, observed));
    Verdict::Differs(text)
}

/// The namespace whose routes refused a packet that came in, and to whom it says so: of IPv4, the kernel says it to
/// an address five times at once, then once in a second (`ip_error()`; error_burst, which no namespace has for itself).
pub fn refused_by_route(trace: &Trace) -> Option<(NsKey, IpAddr)> {
    let hop = trace.hops.last()?;
    let step = hop.steps.last()?;
    let route = step.kind == StepKind::Route && hop.iif.is_some() && trace.packet.src.is_ipv4();
    (route && matches!(trace.disposition, Disposition::Rejected(_)))
        .then(|| (hop.ns.clone(), trace.packet.src))
}

/// Whether what is sent back is lost where it is sent, before any device.
///
/// It is asked as a packet of no connection, so that rules which ask for states may say otherwise; where it was
/// seen, this is not asked.
fn is_lost(topology: &Topology, trace: &Trace, back: Back) -> bool {
    let Some(hop) = trace.hops.last() else {
        return false;
    };
    let mut packet = trace.packet.reply(64);
    match (back, &mut packet.l4) {
        (Back::Tcp(own), L4::Tcp { flags, .. }) => *flags = own,
        (Back::Tcp(_), _) => return false,
        (Back::Icmp, l4) => {
            *l4 = L4::Icmp {
                kind: if trace.packet.src.is_ipv6() { 1 } else { 3 },
                code: 0,
                id: None,
            };
        }
    }
    // Errors come from an address of the kernel's choice.
    if back == Back::Icmp {
        packet.src = own_address(topology, hop, trace.packet.src).unwrap_or(packet.src);
    }
    let sent = Sent {
        from: hop.ns.clone(),
        packet,
        mark: 0,
        uid: None,
        gid: None,
    };
    let outcome = send(topology, &sent, &Limits::default());
    outcome.traces.iter().any(|trace| {
        !matches!(
            trace.disposition,
            Disposition::Delivered | Disposition::LeavesCluster
        ) && trace.hops.iter().all(|hop| hop.taps.is_empty())
    })
}

/// An address of the device that a packet came in by.
fn own_address(topology: &Topology, hop: &Hop, of: IpAddr) -> Option<IpAddr> {
    let netns = topology.netns(&hop.ns)?;
    let dev = netns.link_named(hop.iif.as_deref()?)?.index;
    let mut addrs = netns.addrs.known()?.iter();
    let found = addrs.find(|addr| addr.link == dev && addr.local.is_ipv6() == of.is_ipv6());
    found.map(|addr| addr.local)
}

/// The question that a probe asks.
pub fn once(topology: &Topology, probe: &Probe, from: NsKey) -> Outcome {
    let limits = Limits {
        branches: BRANCHES,
        ..Limits::default()
    };
    let (id, len) = (Some(probe.id), probe.length());
    let Kind::Raw {
        flags,
        icmp,
        mark,
        ttl,
        tos,
        df,
        ..
    } = probe.kind
    else {
        let ports = matches!(probe.protocol, TCP | UDP);
        let flow = Flow {
            from,
            src: probe.src,
            sport: Some(probe.sport),
            dst: probe.dst,
            dport: ports.then_some(probe.dport),
            protocol: probe.protocol,
            len,
            uid: id,
            gid: id,
        };
        return simulate(topology, &flow, &limits);
    };
    let (sport, dport) = (Some(probe.sport), Some(probe.dport));
    let sent = Sent {
        from,
        packet: Packet {
            eth: None,
            src: probe.src.unwrap_or(probe.dst),
            dst: probe.dst,
            ttl,
            tos,
            df,
            len,
            l4: match probe.protocol {
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
            },
            inner: None,
        },
        mark,
        uid: id,
        gid: id,
    };
    send(topology, &sent, &limits)
}
