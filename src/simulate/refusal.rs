//! How a refusal comes back: the ICMP error that a kernel sends about a packet, and its way to who sent that.
//!
//! Read first: `__icmp_send()` in net/ipv4/icmp.c, `icmp6_send()` in net/ipv6/icmp.c (v6.12). Not followed: that kernels send
//! only so many errors a second, `icmp_errors_use_inbound_ifaddr`, `fwmark_reflect`, and refusals of answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::output::BY_ROUTE;
use super::source::is_link_local;
use super::{Asked, Flow, Limits, Outcome, Prepared, Sent, Wants, vrf};
use crate::model::netfilter::Family;
use crate::model::netns::NetNs;
use crate::model::packet::{ICMPV6, Inner, L4, Packet, Wrap};
use crate::model::topology::Topology;
use crate::model::{IfIndex, NsKey};
use crate::trace::{Disposition, Evidence, Hop, RejectWith, Step, StepKind, Trace, Untold};

/// Errors of IPv4 carry no more than 576 bytes in all (RFC 1812), of IPv6 1280 (`icmp6_send()`).
const MOST: (u32, u32) = (576, 1280);
/// Refusals of one question whose way back is followed.
const FOLLOWED: usize = 8;

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
pub fn untold(prepared: &mut Prepared<'_>, flow: &Flow, outcome: &mut Outcome, limits: &Limits) {
    let Outcome {
        traces,
        untold,
        wants,
    } = outcome;
    let refusals = traces
        .iter()
        .enumerate()
        .filter(|(_, way)| is_followed(way));
    for (number, (at, way)) in refusals.enumerate() {
        let mut back = Vec::new();
        if number >= FOLLOWED {
            untold.push(Untold {
                way: at,
                back,
                unknown: Some(format!(
                    "the errors about {FOLLOWED} ways are followed, and there are more"
                )),
            });
            continue;
        }
        let lost = match error(prepared, way, limits, wants) {
            Ok(sent) => {
                let sent = prepared.send_after(Asked::Flow(flow), way, &sent, limits);
                merge(wants, sent.wants);
                back = sent.traces;
                is_lost(&back, &flow.from)
            }
            Err(lost) => lost,
        };
        let unknown = match lost {
            Lost::No => continue,
            Lost::Yes => None,
            Lost::Unknown(why) => Some(why),
        };
        untold.push(Untold {
            way: at,
            back,
            unknown,
        });
    }
}

/// Whether a way ends by an error that a kernel routes like its other packets, to whom it is sent in the packet's name.
///
/// Not so: what its own kernel refuses, of which a socket is told without a packet (mostly); errors that rules of a bridge or
/// device send by the port that the packet came in by (`nft_reject_bridge.c`, `nft_reject_netdev.c`); those about a tunnel's
/// packet, of which who sent what it carries is told (`skb_tunnel_check_pmtu()`); and what comes in from an address of the
/// link alone, whose errors are looked up by that device.
fn is_followed(way: &Trace) -> bool {
    let Disposition::Rejected(with) = way.disposition else {
        return false;
    };
    let Some((hop, step)) = way.last_step() else {
        return false;
    };
    let routed = step.evidence.iter().all(|one| match one {
        Evidence::NetfilterRule { base, .. } => {
            !matches!(base.family, Family::Bridge | Family::Netdev)
        }
        _ => true,
    });
    icmp(with, way.packet.src.is_ipv6()).is_some()
        && hop.iif.is_some()
        && way.packet.inner.is_none()
        && !is_link_local(way.packet.src)
        && routed
}

/// Whether an error to the packets of a namespace is lost on all its ways.
fn is_lost(ways: &[Trace], from: &NsKey) -> Lost {
    let mut unknown = None;
    for way in ways {
        let there = way.hops.last().is_some_and(|hop| hop.ns == *from);
        match &way.disposition {
            Disposition::Delivered if !there => {
                unknown = Some("the error is taken by who did not send the packet".to_owned());
            }
            Disposition::Delivered | Disposition::LeavesCluster => return Lost::No,
            Disposition::Inconclusive(why) => unknown = Some(why.join("; ")),
            // It may have another source than is known here.
            _ if way.ended_by(StepKind::SourceAddress) => {
                unknown = Some("the source of the error is not known".to_owned());
            }
            _ => {}
        }
    }
    unknown.map_or(Lost::Yes, Lost::Unknown)
}

fn merge(wants: &mut Wants, more: Wants) {
    for (node, more) in more {
        wants.entry(node).or_default().extend(more);
    }
}

/// The error that the namespace where a packet ended sends about it; it quotes the packet, by which conntrack finds its
/// connection. `Err`: whether it is lost, where none can be sent. `wants`: what was lacking to tell is added.
pub fn error(
    prepared: &mut Prepared<'_>,
    way: &Trace,
    limits: &Limits,
    wants: &mut Wants,
) -> Result<Sent, Lost> {
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
        src: own_address(prepared, hop, about, (limits, wants))?,
        // IPTOS_PREC_INTERNETCONTROL.
        tos: if v6 { 0 } else { about.tos & 0x1e | 0xc0 },
        df: v6,
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
        untied: no_socket && way.ended_by(StepKind::Socket),
        bound: vrf_of(prepared.topology, way),
    })
}

/// The VRF in whose table the way of an error about a packet is looked up: that of its device, which is the one that it is to
/// leave by where a neighbour does not answer, and of IPv6 where it is too large (`icmp_route_lookup()`, `icmp6_send()`:
/// `skb->dev`; `ip6_forward()`, `arp_error_report()`).
pub fn vrf_of(topology: &Topology, way: &Trace) -> Option<IfIndex> {
    let hop = way.hops.last()?;
    let netns = topology.netns(&hop.ns)?;
    let too_big = matches!(
        way.disposition,
        Disposition::Rejected(RejectWith::TooBig(_))
    );
    let leaves = way.ended_by(StepKind::Neigh) || too_big && way.packet.src.is_ipv6();
    let looked_up = |step: &&Step| step.kind == StepKind::Route;
    let route = hop.steps.iter().rev().filter(looked_up).find_map(|step| {
        step.evidence.iter().find_map(|one| match one {
            Evidence::Route { route, .. } => Some(route),
            _ => None,
        })
    });
    let by = route.and_then(|route| route.nexthops.first()?.link);
    let dev = by.filter(|_| leaves);
    let came = || Some(netns.link_named(hop.iif.as_deref()?)?.index);
    vrf::index_of(netns, dev.or_else(came)?)
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

/// The address that an error about a packet comes from: its destination where that is the namespace's own, else the
/// one that the way back has (`icmp_send()`, `icmp6_send()`), which IPv4 finds as it is sent. `Err`: whether it is lost,
/// where it has none.
fn own_address(
    prepared: &mut Prepared<'_>,
    hop: &Hop,
    about: &Packet,
    (limits, wants): (&Limits, &mut Wants),
) -> Result<IpAddr, Lost> {
    let netns = prepared.topology.netns(&hop.ns);
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
        bound: None,
    };
    let asked = prepared.simulate(&flow, limits);
    merge(wants, asked.wants);
    let ways = asked.traces;
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
        None if ways
            .iter()
            .any(|way| matches!(way.disposition, Disposition::Inconclusive(_))) =>
        {
            Err(Lost::Unknown("its source can't be told".to_owned()))
        }
        None => Err(Lost::Yes),
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
