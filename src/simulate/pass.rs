//! One packet past one node: the same stages as any walk, without the neighbours at both ends of them.

use super::fib::{FibAnswer, FibKey, lookup};
use super::skb::Skb;
use super::walk::{Next, Walk, Ways, stage};
use super::{Cx, DEFAULT_TTL, Flow, exchange, first_packet};
use crate::model::netfilter::Hook;
use crate::model::{IfIndex, NsKey};
use crate::simulate::skb::Devices;
use crate::trace::{Arrival, Disposition, Passage, PassageEnd};

/// Bytes of the packet: a SYN's.
const LEN: u32 = 60;
/// Stages of one way; a packet that goes round in a loop on one node ends here.
const STAGES: usize = 256;

/// All ways of an arrival.
pub(super) fn pass(cx: &mut Cx<'_>, arrival: &Arrival) -> Vec<Passage> {
    let Some((walk, next)) = start(cx, arrival) else {
        return Vec::new();
    };
    let mut passages = Vec::new();
    let mut open = vec![(walk, next, 0)];
    while let Some((walk, next, stages)) = open.pop() {
        let many = passages.len() + open.len() >= cx.limits.branches.max(1);
        if many || stages >= STAGES {
            let why = if many {
                format!("the way forks more than {} times", cx.limits.branches)
            } else {
                format!("the packet passes more than {STAGES} stages on one node")
            };
            let end = PassageEnd::Ended(Disposition::Inconclusive(vec![why]));
            passages.push(passed(walk, end));
            continue;
        }
        let mut ways: Ways = match next {
            Next::End(disposition) => {
                let end = match disposition {
                    Disposition::Delivered => PassageEnd::Here,
                    other => PassageEnd::Ended(other),
                };
                passages.push(passed(walk, end));
                continue;
            }
            Next::Neigh(out) if !is_loopback(cx, &walk.ns, out.oif) => {
                let dev = walk.dev(cx, out.oif);
                passages.push(passed(walk, PassageEnd::Leaves(dev)));
                continue;
            }
            Next::LocalIn(dev) => {
                let devices = Devices {
                    iif: Some(dev),
                    physin: walk.physin,
                    ..Devices::default()
                };
                walk.hook(cx, Hook::Input, false, devices, |_, walk| {
                    walk.end(Disposition::Delivered)
                })
            }
            next => stage(cx, walk, &next),
        };
        ways.reverse();
        let ways = ways.into_iter();
        open.extend(ways.map(|(walk, next)| (walk, next, stages + 1)));
    }
    passages
}

fn start(cx: &mut Cx<'_>, arrival: &Arrival) -> Option<(Walk, Next)> {
    let ns = &arrival.ns;
    let flow = Flow {
        from: ns.clone(),
        src: arrival.from,
        sport: None,
        dst: arrival.dst,
        dport: Some(arrival.dport),
        protocol: arrival.protocol,
        len: LEN,
        uid: Some(0),
        gid: Some(0),
        bound: None,
    };
    let mut packet = first_packet(cx, &flow);
    if arrival.from.is_some() {
        packet.ttl = DEFAULT_TTL;
    }
    // As root sends it.
    let mut walk = exchange::first(ns.clone(), packet, (flow.uid, flow.gid));
    let Some(from) = arrival.from else {
        return Some((walk, Next::LocalOut(None)));
    };
    let FibAnswer::Found(back) = lookup(cx, ns, &FibKey::to(from)) else {
        return None;
    };
    let dev = back.hops.first().and_then(|(_, hop)| hop.link)?;
    if is_loopback(cx, ns, dev) {
        return None;
    }
    walk.hops.clear();
    walk.enter(cx, ns.clone(), dev);
    Some((walk, Next::Ip(dev, false)))
}

fn is_loopback(cx: &Cx<'_>, ns: &NsKey, dev: IfIndex) -> bool {
    let link = cx.topology.netns(ns).and_then(|ns| ns.link(dev));
    link.is_some_and(|link| link.loopback)
}

fn passed(walk: Walk, end: PassageEnd) -> Passage {
    let Walk {
        hops, share, skb, ..
    } = walk;
    let Skb { packet, .. } = skb;
    let asked = hops
        .first()
        .map_or_else(|| packet.clone(), |hop| hop.packet.clone());
    Passage {
        share,
        asked,
        packet,
        end,
        steps: hops.into_iter().flat_map(|hop| hop.steps).collect(),
    }
}
