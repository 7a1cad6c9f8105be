//! Who is on a link: everything that a broadcast from a device would reach, as far as kernels that
//! were read can tell.
//!
//! Read first: `br_flood()`, net/bridge/br_forward.c; `arp_process()`, net/ipv4/arp.c;
//! `ndisc_recv_ns()`, net/ipv6/ndisc.c, v6.12.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Cx;
use super::fib::{FibAnswer, FibKey, addr_type, lookup};
use super::peer::{Peer, peer};
use crate::model::link::{Link, LinkKind, MacvlanMode, PortState};
use crate::model::route::RouteKind;
use crate::model::want::{Depth, NsTarget, Want};
use crate::model::{IfIndex, MacAddr, NsKey};

/// What a broadcast reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Devices whose IP layer gets it.
    pub(crate) stations: BTreeSet<(NsKey, IfIndex)>,
    /// Part of the link is out of view; which device leads there.
    pub(crate) outside: Option<String>,
    /// Part of the link could not be followed; why.
    pub(crate) unknown: Option<String>,
}

/// The segment behind a device: what a broadcast sent by it reaches.
pub(crate) fn segment(cx: &mut Cx<'_>, ns: &NsKey, dev: IfIndex) -> Segment {
    let mut found = Segment::default();
    let mut open = vec![(ns.clone(), dev, false)];
    let mut seen = BTreeSet::new();
    while let Some((ns, dev, arriving)) = open.pop() {
        if !seen.insert((ns.clone(), dev, arriving)) {
            continue;
        }
        let topology = cx.topology;
        let Some(link) = topology.netns(&ns).and_then(|netns| netns.link(dev)) else {
            found.unknown = Some(format!("device {dev} of {ns} was not read"));
            continue;
        };
        if !link.up {
            continue;
        }
        if arriving {
            arrive(cx, &ns, link, &mut open, &mut found);
        } else {
            emit(cx, &ns, link, &mut open, &mut found);
        }
    }
    found.stations.remove(&(ns.clone(), dev));
    found
}

type Open = Vec<(NsKey, IfIndex, bool)>;

/// A frame comes in by `link`.
fn arrive(cx: &Cx<'_>, ns: &NsKey, link: &Link, open: &mut Open, found: &mut Segment) {
    let netns = cx.topology.netns(ns);
    let master = link.master.and_then(|master| netns?.link(master));
    if let Some(bridge) = master.filter(|master| matches!(master.kind, LinkKind::Bridge(_))) {
        if forwards(link) {
            found.stations.insert((ns.clone(), bridge.index));
            open.extend(ports(cx, ns, bridge.index).map(|port| (ns.clone(), port, false)));
        }
        return;
    }
    found.stations.insert((ns.clone(), link.index));
    for (child_ns, child) in macvlans(cx, ns, link.index) {
        found.stations.insert((child_ns, child));
    }
}

/// A frame leaves by `link`.
fn emit(cx: &mut Cx<'_>, ns: &NsKey, link: &Link, open: &mut Open, found: &mut Segment) {
    match &link.kind {
        LinkKind::Veth | LinkKind::Netkit => match peer(cx.topology, ns, link) {
            Peer::Found(peer_ns, index) => open.push((peer_ns, index, true)),
            Peer::Unread(peer_ns) => {
                found.unknown = Some(format!("{peer_ns}, behind {}, was not read", link.name));
                want_netns(cx, &peer_ns);
            }
            Peer::OutsideView(_) => found.outside = Some(link.name.clone()),
            Peer::Ambiguous(_) => {
                found.unknown = Some(format!("the peer of {} is ambiguous", link.name));
            }
            Peer::NotVeth => {}
            Peer::Unknown(why) => found.unknown = Some(why),
        },
        LinkKind::Bridge(_) => {
            open.extend(ports(cx, ns, link.index).map(|port| (ns.clone(), port, false)));
        }
        LinkKind::Macvlan(mode) => match parent(cx, ns, link) {
            Some((parent_ns, parent)) => {
                if *mode == MacvlanMode::Bridge {
                    found.stations.extend(macvlans(cx, &parent_ns, parent));
                }
                open.push((parent_ns, parent, false));
            }
            None => found.unknown = Some(format!("the parent of {} was not read", link.name)),
        },
        // A VXLAN device floods only to the remotes of its entry for everyone else; see neigh.
        LinkKind::Vxlan(_) | LinkKind::Dummy => {}
        _ if link.loopback => {}
        _ => found.outside = Some(link.name.clone()),
    }
}

/// Asks for a namespace.
pub(crate) fn want_netns(cx: &mut Cx<'_>, ns: &NsKey) {
    let want = Want::NetNs {
        target: NsTarget::Id(ns.netns),
        depth: Depth::Likely,
    };
    cx.want(&ns.node, want);
}

fn forwards(port: &Link) -> bool {
    port.port
        .as_ref()
        .is_none_or(|port| port.state == PortState::Forwarding)
}

/// Ports of a bridge that a broadcast leaves by.
fn ports<'t>(cx: &Cx<'t>, ns: &NsKey, bridge: IfIndex) -> impl Iterator<Item = IfIndex> + use<'t> {
    let links = cx.topology.netns(ns).and_then(|netns| netns.links.known());
    links
        .into_iter()
        .flatten()
        .filter(move |link| link.master == Some(bridge) && link.up && forwards(link))
        .filter(|link| link.port.as_ref().is_none_or(|port| port.bcast_flood))
        .map(|link| link.index)
}

/// The device that a macvlan, ipvlan or VLAN sits on.
pub(crate) fn parent(cx: &Cx<'_>, ns: &NsKey, link: &Link) -> Option<(NsKey, IfIndex)> {
    let index = link.link?;
    let Some(id) = link.link_netnsid else {
        return Some((ns.clone(), index));
    };
    let nsids = cx.topology.netns(ns)?.nsids.known()?;
    let netns = nsids.iter().find(|(nsid, _)| *nsid == id)?.1;
    Some((
        NsKey {
            node: ns.node.clone(),
            netns,
        },
        index,
    ))
}

/// Macvlans on top of a device, in any namespace of its node.
pub(crate) fn macvlans(cx: &Cx<'_>, ns: &NsKey, dev: IfIndex) -> Vec<(NsKey, IfIndex)> {
    let on_node = cx.topology.all().filter(|(key, _)| key.node == ns.node);
    on_node
        .flat_map(|(key, netns)| {
            let links = netns.links.known().map(Vec::as_slice).unwrap_or_default();
            let on_top = |link: &&Link| {
                matches!(link.kind, LinkKind::Macvlan(_))
                    && link.up
                    && parent(cx, &key, link) == Some((ns.clone(), dev))
            };
            let found: Vec<_> = links
                .iter()
                .filter(on_top)
                .map(|l| (key.clone(), l.index))
                .collect();
            found
        })
        .collect()
}

/// Who answers when a device asks for an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Devices that answer, with the address they tell.
    pub(crate) by: Vec<(NsKey, IfIndex, MacAddr)>,
    /// The segment that was searched.
    pub(crate) segment: Segment,
}

/// Asks everyone on the link of `dev` for `addr` (ARP, neighbour solicitation).
pub(crate) fn who_has(cx: &mut Cx<'_>, ns: &NsKey, dev: IfIndex, addr: IpAddr) -> Answers {
    let segment = segment(cx, ns, dev);
    let mut answers = Answers {
        by: Vec::new(),
        segment: segment.clone(),
    };
    for (station, index) in segment.stations {
        let topology = cx.topology;
        let Some(link) = topology.netns(&station).and_then(|netns| netns.link(index)) else {
            continue;
        };
        match answers_for(cx, &station, link, addr) {
            Ok(true) => answers.by.extend(link.mac.map(|mac| (station, index, mac))),
            Ok(false) => {}
            Err(why) => answers.segment.unknown = Some(why),
        }
    }
    answers
}

/// Whether the kernel behind a device answers for an address.
fn answers_for(cx: &mut Cx<'_>, ns: &NsKey, link: &Link, addr: IpAddr) -> Result<bool, String> {
    let topology = cx.topology;
    let Some(netns) = topology.netns(ns) else {
        return Ok(false);
    };
    if link.noarp {
        return Ok(false);
    }
    let proxied = |neighs: &[crate::model::neigh::Neigh]| {
        neighs
            .iter()
            .any(|entry| entry.proxy && entry.dst == addr && entry.link == link.index)
    };
    let has_proxy = netns.neighs.known().is_some_and(|neighs| proxied(neighs));
    let addrs = super::fib::section(cx, ns, &netns.addrs, "addresses")?;
    let on_dev = addrs
        .iter()
        .any(|own| own.local == addr && own.link == link.index);
    if addr.is_ipv6() {
        let usable = |own: &&crate::model::addr::Addr| {
            own.local == addr
                && own.link == link.index
                && !own.dadfailed
                && (!own.tentative || own.nodad)
        };
        let proxy = has_proxy && link.inet6.is_some_and(|conf| conf.proxy_ndp);
        return Ok(addrs.iter().any(|own| usable(&own)) || proxy);
    }
    let sysctls = netns.sysctls.known();
    let all = sysctls.and_then(|sysctls| sysctls.inet_all.known().copied());
    let (Some(own), Some(all)) = (link.inet, all) else {
        return Err(format!(
            "ARP settings of {} in {ns} were not read",
            link.name
        ));
    };
    if addr_type(cx, ns, addr, None)? == RouteKind::Local {
        return match own.arp_ignore.max(all.arp_ignore) {
            0 => Ok(true),
            1 | 2 => Ok(on_dev),
            3 => Err(format!("arp_ignore 3 of {} asks for scopes", link.name)),
            _ => Ok(false),
        };
    }
    if has_proxy {
        return Ok(true);
    }
    if !(own.proxy_arp || all.proxy_arp) || !own.forwarding {
        return Ok(false);
    }
    let key = FibKey {
        iif: Some(link.index),
        ..FibKey::to(addr)
    };
    match lookup(cx, ns, &key) {
        FibAnswer::Found(found) => Ok(found.route.kind == RouteKind::Unicast
            && found
                .hops
                .iter()
                .any(|(_, hop)| hop.link != Some(link.index))),
        FibAnswer::Unknown(why) => Err(why),
        FibAnswer::NoRoute | FibAnswer::Refused(_) => Ok(false),
    }
}
