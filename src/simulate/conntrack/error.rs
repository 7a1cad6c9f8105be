//! Errors by ICMP: they belong to the connection of the packet that they quote.
//!
//! Source: `nf_conntrack_inet_error()`, `nf_nat_icmp_reply_translation()`, `nf_nat_icmpv6_reply_translation()`
//! (v6.12).

use super::{Manip, Zones, find, words};
use crate::model::NsKey;
use crate::model::conntrack::{ConntrackEntry, status};
use crate::model::packet::{ICMPV6, L4, Packet};
use crate::simulate::Cx;
use crate::simulate::skb::{CtRef, CtState, Flows, Skb};
use crate::trace::{Evidence, Step, StepKind};

/// ICMP_REDIRECT
const REDIRECT: u8 = 5;

/// Whether a packet is an error (`icmp_is_err()`, `icmpv6_is_err()`).
pub(crate) fn is_error(packet: &Packet) -> bool {
    match packet.l4 {
        L4::Icmp { kind, .. } if packet.protocol() == ICMPV6 => kind < 128,
        L4::Icmp { kind, .. } => matches!(kind, 3..=5 | 11 | 12),
        _ => false,
    }
}

/// Finds the connection that an error is about.
pub(super) fn track(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    skb: &mut Skb,
    flows: &mut Flows,
    zones: Zones,
) -> Result<Option<Step>, String> {
    let Some(quoted) = skb.packet.inner.as_ref().map(|inner| &inner.packet) else {
        return Err("which packet an icmp error is about is not known".to_owned());
    };
    let tuple = quoted.tuple().inverted();
    let invalid = |why: &str| {
        let step = Step::new(StepKind::Conntrack, format!("invalid: {why}"));
        let what = format!("conntrack entry of {}", words(&tuple));
        Ok(Some(step.with(Evidence::Absent { what })))
    };
    let Some((index, reply, _)) = find(cx, ns, flows, &tuple, zones)? else {
        return invalid("an icmp error about no connection that is known here");
    };
    let Some(flow) = flows.get(ns, index) else {
        return Err("connection not known".to_owned());
    };
    let side = if reply {
        flow.entry.reply
    } else {
        flow.entry.orig
    };
    if skb.packet.dst != side.dst {
        return invalid("an icmp error to another than the packet's sender");
    }
    skb.ct = CtRef::Entry {
        index,
        reply,
        state: CtState::Related,
    };
    let text = format!("related: an error about {}", words(&flow.entry.orig));
    Ok(Some(Step::new(StepKind::Conntrack, text).with(
        Evidence::Conntrack {
            entry: flow.entry.clone(),
            existing: flow.existing,
        },
    )))
}

/// Translates an error and the packet that it quotes; `Err`: it is dropped.
pub(crate) fn translate(
    packet: &mut Packet,
    entry: &ConntrackEntry,
    reply: bool,
    manip: Manip,
) -> Result<bool, ()> {
    let nat = status::SRC_NAT | status::DST_NAT;
    if let L4::Icmp { kind: REDIRECT, .. } = packet.l4
        && packet.src.is_ipv4()
    {
        let done = status::SRC_NAT_DONE | status::DST_NAT_DONE;
        if entry.status & done != done || entry.status & nat != 0 {
            return Err(());
        }
    }
    let bit = if reply {
        manip.bit() ^ nat
    } else {
        manip.bit()
    };
    if entry.status & bit == 0 {
        return Ok(false);
    }
    let other = if reply { entry.orig } else { entry.reply };
    let Some(quoted) = packet.inner.as_mut().map(|inner| &mut inner.packet) else {
        return Err(());
    };
    let echo = matches!(quoted.l4, L4::Icmp { .. });
    match manip {
        // The quoted packet went the other way.
        Manip::Src => {
            quoted.dst = other.dst;
            if !echo {
                quoted.set_dport(other.dport);
            }
            packet.src = other.dst;
        }
        Manip::Dst => {
            quoted.src = other.src;
            if !echo {
                quoted.set_sport(other.sport);
            }
            packet.dst = other.src;
        }
    }
    if echo && let Some(inner) = packet.inner.as_mut() {
        inner.packet.set_sport(other.sport);
    }
    Ok(true)
}
