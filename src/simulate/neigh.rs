//! The next hop's link-layer address: from the table, or by asking everyone on the link.
//!
//! Read first: `neigh_resolve_output()`, `__neigh_event_send()`, net/core/neighbour.c, v6.12.

use std::net::IpAddr;

use super::fib::section;
use super::l2::{self, Answers};
use super::memory::Lessons;
use super::peer::{Peer, peer};
use super::walk::{Next, Out, Walk, Ways};
use super::{Cx, device, underlay, vrf};
use crate::model::link::{Link, LinkKind};
use crate::model::neigh::{Neigh, NeighState};
use crate::model::{MacAddr, NsKey};
use crate::trace::{Disposition, DropReason, Evidence, RejectWith, Step, StepKind};

/// Finds the link-layer address and hands the frame to the device.
pub(crate) fn resolve(cx: &mut Cx<'_>, mut walk: Walk, out: &Out) -> Ways {
    let Some(link) = walk.link(cx, out.oif) else {
        let why = format!("device {} of {} was not read", out.oif, walk.ns);
        return walk.unknown(why);
    };
    if link.loopback || out.local && !vrf::is(link) {
        return device::loopback(cx, walk, link.index);
    }
    let next_hop = out.via.unwrap_or(walk.skb.packet.dst);
    walk.next_hop = Some(next_hop);
    if let Some(own) = link.mac.filter(|_| link.noarp && !link.pointopoint) {
        // Ethernet without ARP: an entry of the table, else the device's own address as destination
        // (`arp_constructor()`).
        let neighs = walk.netns(cx).and_then(|netns| netns.neighs.known());
        let entry = neighs.into_iter().flatten().find(|e| {
            e.link == link.index
                && e.dst == next_hop
                && !e.proxy
                && e.state == NeighState::Permanent
        });
        let to = entry.and_then(|entry| entry.lladdr).unwrap_or(own);
        let state = format!("noarp, frames go to {to}");
        let evidence = Evidence::Link {
            dev: link.name.clone(),
            state,
        };
        walk.step(
            Step::new(StepKind::Neigh, format!("{next_hop} is not asked for")).with(evidence),
        );
        walk.skb.packet.eth = Some((own, to));
        return walk.then(Next::Transmit(link.index));
    }
    if link.mac.is_none() || link.pointopoint {
        walk.skb.packet.eth = None;
        return walk.then(Next::Transmit(link.index));
    }
    let frame = |mut walk: Walk, station: Station| {
        walk.step(station.step);
        walk.memory.take_in(station.lessons);
        walk.skb.packet.eth = link.mac.map(|own| (own, station.mac));
        walk.then(Next::Transmit(link.index))
    };
    match address(cx, &walk, link, next_hop) {
        Resolved::Address(station) => frame(walk, station),
        Resolved::OneOf(stations) => walk.fork(stations, frame),
        Resolved::Assumed(step) => {
            walk.step(step);
            walk.skb.packet.eth = None;
            walk.then(Next::Transmit(link.index))
        }
        Resolved::Nobody(step) => {
            walk.step(step);
            if walk.skb.packet.inner.is_some() {
                // Nobody tells the sender of the packet inside.
                return walk.end(Disposition::Dropped(DropReason::NeighFailed));
            }
            // The sender is told after three tries: a socket by EHOSTUNREACH, others by ICMP.
            let with = RejectWith::HostUnreachable;
            if walk.skb.local || out.iif.is_some() {
                return walk.end(Disposition::Rejected(with));
            }
            walk.end(Disposition::Dropped(DropReason::NeighFailed))
        }
        Resolved::Unknown(why) => walk.unknown(why),
    }
}

/// A next hop's address, and how it is known.
pub(crate) struct Station {
    /// Address.
    pub(crate) mac: MacAddr,
    /// The entry, or who would answer.
    pub(crate) step: Step,
    /// What question and answer teach.
    pub(crate) lessons: Lessons,
}

impl Station {
    fn new(mac: MacAddr, step: Step) -> Self {
        Self {
            mac,
            step,
            lessons: Lessons::default(),
        }
    }
}

/// What is known of a next hop.
pub(crate) enum Resolved {
    /// Its address.
    Address(Station),
    /// Several have the address; who answers first decides.
    OneOf(Vec<Station>),
    /// Out of view, and nothing speaks against it.
    Assumed(Step),
    /// Nobody answers.
    Nobody(Step),
    /// Can't be known.
    Unknown(String),
}

/// The link-layer address of `addr` on the link of `link`, for a packet under way.
pub(crate) fn address(cx: &mut Cx<'_>, walk: &Walk, link: &Link, addr: IpAddr) -> Resolved {
    let ns = &walk.ns;
    let topology = cx.topology;
    let Some(netns) = topology.netns(ns) else {
        return Resolved::Unknown(format!("{ns} was not read"));
    };
    let neighs = match section(cx, ns, &netns.neighs, "neighbours") {
        Ok(neighs) => neighs,
        Err(why) => return Resolved::Unknown(why),
    };
    let entry = neighs
        .iter()
        .find(|e| e.link == link.index && e.dst == addr && !e.proxy);
    let fixed = |entry: &Neigh| entry.state.is_fixed();
    let usable = |entry: &Neigh| {
        !matches!(
            entry.state,
            NeighState::Incomplete | NeighState::Failed | NeighState::Other(_)
        )
    };
    // What a question tells of who asks leaves an entry with the same address as it is (`__neigh_update()`, NUD_STALE).
    let same = |entry: &Neigh, mac: MacAddr| usable(entry) && entry.lladdr == Some(mac);
    let met = walk.memory.met(ns, link.index, addr);
    if let Some(mac) =
        met.filter(|mac| !entry.is_some_and(|entry| fixed(entry) || same(entry, *mac)))
    {
        let text = format!("{addr} is at {mac}, as was told under way");
        return Resolved::Address(Station::new(mac, Step::new(StepKind::Neigh, text)));
    }
    if let Some((entry, mac)) = entry
        .filter(|e| usable(e))
        .and_then(|e| Some((e, e.lladdr?)))
    {
        let text = format!("{addr} is at {mac}");
        let evidence = Evidence::Neigh {
            neigh: entry.clone(),
            dev: link.name.clone(),
        };
        let step = Step::new(StepKind::Neigh, text).with(evidence);
        return Resolved::Address(Station::new(mac, step));
    }
    ask(cx, ns, link, addr, entry, Some(walk.skb.packet.src))
}

/// No usable entry: the kernel asks, and so do we.
fn ask(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    link: &Link,
    addr: IpAddr,
    entry: Option<&Neigh>,
    src: Option<IpAddr>,
) -> Resolved {
    let known = match entry {
        Some(entry) => Evidence::Neigh {
            neigh: entry.clone(),
            dev: link.name.clone(),
        },
        None => Evidence::Absent {
            what: format!("a neighbour entry for {addr} on {}", link.name),
        },
    };
    let Answers { by, lost, segment } = l2::who_has(cx, ns, link, addr, src);
    let count = by.len();
    let mut stations: Vec<Station> = by
        .into_iter()
        .map(|answer| Station {
            mac: answer.mac,
            step: answered(cx, addr, &answer, known.clone(), count),
            lessons: answer.lessons,
        })
        .collect();
    match (stations.pop(), stations.is_empty()) {
        (Some(station), true) => return Resolved::Address(station),
        (Some(last), false) => {
            stations.push(last);
            return Resolved::OneOf(stations);
        }
        (None, _) => {}
    }
    if let Some(why) = segment.unknown {
        return Resolved::Unknown(why);
    }
    if let Some((place, rule)) = lost.into_iter().next() {
        let text = format!(
            "nobody answers for {addr}: the question or the answer is lost in {place} ({})",
            rule.result
        );
        let mut step = Step::new(StepKind::Neigh, text);
        step.evidence = rule.evidence;
        return Resolved::Nobody(step.with(known));
    }
    let failed =
        entry.is_some_and(|e| matches!(e.state, NeighState::Failed | NeighState::Incomplete));
    if let Some((owner, mac)) = underlay::owner_on_link(cx, ns, addr)
        && segment.outside.is_some()
    {
        if failed {
            return Resolved::Unknown(format!(
                "{addr} is an address of {}, but the last question for it on {} had no answer ({}); what is between can't be read",
                owner.node,
                link.name,
                entry.map_or_else(String::new, |entry| format!("{:?}", entry.state)
                    .to_uppercase())
            ));
        }
        let text = format!("{addr} would be answered for by {}: {mac}", owner.node);
        let step = Step::new(StepKind::Neigh, text).with(known);
        return Resolved::Address(Station::new(mac, step));
    }
    if segment.outside.is_some()
        && let Some(why) = underlay::blind(cx)
    {
        return Resolved::Unknown(why);
    }
    match segment.outside {
        // Nobody that is known has it, and the kernel's own question had no answer.
        Some(_) if failed => Resolved::Nobody(
            Step::new(StepKind::Neigh, format!("nobody answers for {addr}")).with(known),
        ),
        Some(dev) => {
            let why = format!("who answers for {addr} is behind {dev}, out of view");
            let step = Step::new(StepKind::Neigh, format!("{addr} is not resolved yet"))
                .with(known)
                .with(Evidence::Assumed { why });
            Resolved::Assumed(step)
        }
        None => {
            let what = format!("anyone on the link of {} who has {addr}", link.name);
            let mut step = Step::new(StepKind::Neigh, format!("nobody answers for {addr}"))
                .with(known)
                .with(Evidence::Absent { what });
            step.evidence.extend(silent_owner(cx, ns, addr));
            Resolved::Nobody(step)
        }
    }
}

/// The step of one answer among `count`.
fn answered(cx: &Cx<'_>, addr: IpAddr, answer: &l2::Answer, known: Evidence, count: usize) -> Step {
    let (station, index, mac) = (&answer.ns, answer.dev, answer.mac);
    let dev = cx.topology.netns(station).and_then(|ns| ns.link(index));
    let dev = dev.map_or_else(|| format!("if{index}"), |link| link.name.clone());
    let known_state = match &known {
        Evidence::Neigh { neigh, .. } => match neigh.state {
            NeighState::Incomplete => Some("INCOMPLETE"),
            NeighState::Failed => Some("FAILED"),
            _ => None,
        },
        _ => None,
    };
    let text = format!("{addr} would be answered for by {dev} of {station}: {mac}");
    let step = Step::new(StepKind::Neigh, text)
        .with(Evidence::Address {
            addr,
            dev: dev.clone(),
        })
        .with(known);
    let step = match &known_state {
        // It may be from before something was mended: the kernel asks again for the next packet.
        Some(state) => step.with(Evidence::Assumed {
            why: format!(
                "{addr} was asked for before without an answer ({state}); by all that was read, {dev} of {station} answers now"
            ),
        }),
        None => step,
    };
    if count == 1 {
        return step;
    }
    let why = format!(
        "{count} answer for {addr} (duplicate address): the first answer decides, each is taken to be as likely"
    );
    step.with(Evidence::Assumed { why })
}

/// Why a namespace of this node that has the address does not hear the question.
fn silent_owner(cx: &Cx<'_>, ns: &NsKey, addr: IpAddr) -> Vec<Evidence> {
    let mut found = Vec::new();
    for (key, netns) in cx.topology.all().filter(|(key, _)| key.node == ns.node) {
        let addrs = netns.addrs.known().map(Vec::as_slice).unwrap_or_default();
        let own = addrs.iter().find(|own| own.local == addr);
        let Some(link) = own.and_then(|own| netns.link(own.link)) else {
            continue;
        };
        found.push(Evidence::Address {
            addr,
            dev: format!("{} of {key}", link.name),
        });
        let mut check = |link: &Link| {
            if !link.up || !link.lower_up {
                let state = if link.up {
                    "no carrier (the other end is down)"
                } else {
                    "down"
                };
                found.push(Evidence::Link {
                    dev: link.name.clone(),
                    state: state.to_owned(),
                });
            }
        };
        if let Peer::Found(peer_ns, index) = peer(cx.topology, &key, link) {
            let peer = cx
                .topology
                .netns(&peer_ns)
                .and_then(|netns| netns.link(index));
            if let Some(peer) = peer {
                check(peer);
            }
        }
        check(link);
    }
    found
}

/// Whether a VXLAN device sends what it has no entry for to anyone.
pub(crate) fn link_floods(cx: &Cx<'_>, ns: &NsKey, link: &Link) -> bool {
    let group = matches!(&link.kind, LinkKind::Vxlan(vxlan) if vxlan.group.is_some());
    let fdb = cx.topology.netns(ns).and_then(|netns| netns.fdb.known());
    let zero = |fdb: &Vec<crate::model::fdb::FdbEntry>| {
        fdb.iter()
            .any(|entry| entry.own && entry.link == link.index && entry.mac == MacAddr::ZERO)
    };
    group || fdb.is_none_or(zero)
}
