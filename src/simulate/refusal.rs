//! How a refusal comes back: the ICMP error that a kernel sends about a packet, and its way to who sent that.
//!
//! Read first: `__icmp_send()` in net/ipv4/icmp.c, `icmp6_send()` in net/ipv6/icmp.c (v6.12). That kernels send only so many
//! errors a second is not followed.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::output::BY_ROUTE;
use super::{Asked, Flow, Limits, Outcome, Sent, send_after, simulate};
use crate::model::netns::NetNs;
use crate::model::packet::{ICMPV6, Inner, L4, Packet, Wrap};
use crate::model::topology::Topology;
use crate::trace::{Disposition, Hop, RejectWith, Step, StepKind, Trace, Untold};

/// Errors of IPv4 carry no more than 576 bytes in all (RFC 1812), of IPv6 1280 (`icmp6_send()`).
const MOST: (u32, u32) = (576, 1280);

/// Whether what is sent back is lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// On all its ways.
    Yes,
    /// On none, or not on all.
    No,
    /// Why that can't be told.
    Unknown(String),
}

/// Adds to an outcome which of its refusals are lost on their way back, and what is wanted to tell that.
pub fn untold(topology: &Topology, flow: &Flow, outcome: &mut Outcome, limits: &Limits) {
    for (at, way) in outcome.traces.iter().enumerate() {
        let back = match refusal(topology, flow, way, limits) {
            Some(Ok(back)) => back,
            Some(Err(Lost::Yes)) => Outcome::default(),
            Some(Err(Lost::No | Lost::Unknown(_))) | None => continue,
        };
        for (node, more) in back.wants {
            outcome.wants.entry(node).or_default().extend(more);
        }
        if is_lost(&back.traces) == Lost::Yes {
            outcome.untold.push(Untold {
                way: at,
                back: back.traces,
            });
        }
    }
}

/// The ways of the error by which a packet of this flow is refused, with what the packet left behind. `None`: its own kernel
/// refuses it, where no error is sent, or it is refused by a reset, or not at all.
///
/// `Err`: nothing can be sent, or it can't be told what.
pub fn refusal(
    topology: &Topology,
    flow: &Flow,
    way: &Trace,
    limits: &Limits,
) -> Option<Result<Outcome, Lost>> {
    let Disposition::Rejected(with) = way.disposition else {
        return None;
    };
    icmp(with, way.packet.src.is_ipv6())?;
    way.hops.last()?.iif.as_ref()?;
    let sent = match error(topology, way) {
        Ok(sent) => sent,
        Err(lost) => return Some(Err(lost)),
    };
    let asked = Asked::Flow(flow);
    Some(Ok(send_after(topology, asked, way, &sent, limits)))
}

/// Whether an error is lost on all its ways.
pub fn is_lost(ways: &[Trace]) -> Lost {
    let mut lost = Lost::Yes;
    for way in ways {
        match &way.disposition {
            Disposition::Delivered | Disposition::LeavesCluster => return Lost::No,
            Disposition::Inconclusive(why) => lost = Lost::Unknown(why.join("; ")),
            // It may have another source than is known here.
            _ if ended_by(way, StepKind::SourceAddress) => {
                lost = Lost::Unknown("the source of the error is not known".to_owned());
            }
            _ => {}
        }
    }
    lost
}

/// The error that the namespace where a packet ended sends about it; it quotes the packet, by which conntrack finds its
/// connection. `Err`: whether it is lost, where none can be sent.
pub fn error(topology: &Topology, way: &Trace) -> Result<Sent, Lost> {
    let hop = way.hops.last().ok_or(Lost::No)?;
    let about = &way.packet;
    let v6 = about.src.is_ipv6();
    let with = match way.disposition {
        Disposition::Rejected(with) => icmp(with, v6),
        _ => None,
    };
    let (kind, code) = with.unwrap_or((if v6 { 1 } else { 3 }, 0));
    let (headers, most) = if v6 { (48, MOST.1) } else { (28, MOST.0) };
    let packet = Packet {
        src: own_address(topology, hop, about)?,
        len: about.len.saturating_add(headers).min(most),
        l4: L4::Icmp {
            kind,
            code,
            id: None,
        },
        inner: Some(Box::new(Inner {
            vni: None,
            wrap: Wrap::Plain,
            packet: about.clone(),
        })),
        ..about.reply(64)
    };
    let no_socket = way.disposition == Disposition::Rejected(RejectWith::PortUnreachable);
    Ok(Sent {
        from: hop.ns.clone(),
        packet,
        mark: 0,
        uid: Some(0),
        gid: Some(0),
        kernel: true,
        raw: false,
        untied: no_socket && !ended_by(way, StepKind::Netfilter),
    })
}

/// Type and code; `None`: it is not refused by an error.
fn icmp(with: RejectWith, v6: bool) -> Option<(u8, u8)> {
    let (four, six) = match with {
        RejectWith::TcpReset | RejectWith::PortClosed | RejectWith::InvalidArgument => {
            return None;
        }
        RejectWith::PortUnreachable => ((3, 3), (1, 4)),
        RejectWith::Icmp(code) => ((3, code), (1, code)),
        RejectWith::NetUnreachable => ((3, 0), (1, 0)),
        RejectWith::HostUnreachable => ((3, 1), (1, 3)),
        RejectWith::Prohibited => ((3, 13), (1, 1)),
        RejectWith::TooBig(_) => ((3, 4), (2, 0)),
        RejectWith::TtlExceeded => ((11, 0), (3, 0)),
    };
    Some(if v6 { six } else { four })
}

fn ended_by(way: &Trace, kind: StepKind) -> bool {
    way.last_step().is_some_and(|(_, step)| step.kind == kind)
}

/// The address that an error about a packet comes from: its destination where that is the namespace's own, else the
/// one that the way back has (`icmp_send()`, `icmp6_send()`), which IPv4 finds as it is sent. `Err`: whether it is lost,
/// where it has none.
fn own_address(topology: &Topology, hop: &Hop, about: &Packet) -> Result<IpAddr, Lost> {
    let netns = topology.netns(&hop.ns);
    let addrs = netns.and_then(|netns| netns.addrs.known());
    let is_own = |own: &IpAddr| addrs.into_iter().flatten().any(|addr| addr.local == *own);
    if is_own(&about.dst) {
        return Ok(about.dst);
    }
    // Refused before it was routed, it is answered in the name of who was asked, where that is nobody here: not at all
    // (`__icmp_send()` takes the destination for the source of an error to an own address).
    let routed = hop.steps.iter().any(|step| step.kind == StepKind::Route);
    if about.src.is_ipv4() && hop.iif.is_some() && !routed && is_own(&about.src) {
        return Err(Lost::Yes);
    }
    if about.src.is_ipv4() {
        return Ok(Ipv4Addr::UNSPECIFIED.into());
    }
    let flow = Flow {
        from: hop.ns.clone(),
        src: None,
        sport: None,
        dst: about.src,
        dport: None,
        protocol: ICMPV6,
        len: about.len,
        uid: Some(0),
        gid: Some(0),
    };
    let ways = simulate(topology, &flow, &Limits::default()).traces;
    let mut firsts = ways.iter().filter_map(|way| way.hops.first());
    let hinted =
        |step: &Step| step.kind == StepKind::SourceAddress && step.result.ends_with(BY_ROUTE);
    if !firsts.clone().any(|hop| hop.steps.iter().any(hinted))
        && let Some(addr) = netns.and_then(|netns| of_incoming(netns, hop, about.src))
    {
        return Ok(addr);
    }
    match firsts.find(|hop| is_own(&hop.packet.src)) {
        Some(hop) => Ok(hop.packet.src),
        None => Err(is_lost(&ways)),
    }
}

/// The address of the device that a packet came in by which is nearest to its sender: the one that errors of IPv6 come
/// from where no route names one (`icmp6_send()`, `ipv6_dev_get_saddr()`, v6.12).
fn of_incoming(netns: &NetNs, hop: &Hop, sender: IpAddr) -> Option<IpAddr> {
    let link = netns.link_named(hop.iif.as_deref()?)?;
    let IpAddr::V6(sender) = sender else {
        return None;
    };
    let own = netns
        .addrs
        .known()?
        .iter()
        .filter(|addr| addr.link == link.index);
    let usable = own.filter_map(|addr| match addr.local {
        IpAddr::V6(own) if !own.is_unicast_link_local() && !addr.tentative => Some(own),
        _ => None,
    });
    let alike = |own: &Ipv6Addr| (own.to_bits() ^ sender.to_bits()).leading_zeros();
    // Of equals the one that the kernel lists first.
    let nearest = usable.reduce(|best, own| {
        if alike(&own) > alike(&best) {
            own
        } else {
            best
        }
    });
    nearest.map(IpAddr::V6)
}
