//! Who is on a link: everything that a broadcast from a device would reach, as far as kernels that
//! were read can tell.
//!
//! Read first: `br_flood()`, net/bridge/br_forward.c; `arp_process()`, net/ipv4/arp.c;
//! `ndisc_recv_ns()`, net/ipv6/ndisc.c, v6.12.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::bridge_vlan::{self, Passage};
use super::fib::{FibAnswer, FibKey, Found, addr_type, lookup};
use super::input::inet6_all;
use super::memory::Lessons;
use super::peer::{Peer, peer};
use super::solicit::{self, Stop, Way};
use super::{Cx, vlan, vrf};
use crate::model::link::{Bridge, Link, LinkKind, MacvlanMode, PortState};
use crate::model::route::RouteKind;
use crate::model::{IfIndex, MacAddr, NsKey, Prefix};
use crate::trace::Step;

/// What a broadcast reaches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    /// Devices whose IP layer gets it, each with the devices that the frame passes on its way there.
    pub(crate) stations: BTreeMap<(NsKey, IfIndex), Vec<Leg>>,
    /// Part of the link is out of view; which device leads there.
    pub(crate) outside: Option<String>,
    /// Part of the link could not be followed; why.
    pub(crate) unknown: Option<String>,
}

/// One device that a frame passes. Bridges are no legs, their ports are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Leg {
    /// Namespace.
    pub(crate) ns: NsKey,
    /// Device.
    pub(crate) dev: IfIndex,
    /// The frame comes in by it; it leaves by it where false.
    pub(crate) arriving: bool,
    /// VLAN of the frame's tag there.
    pub(crate) tag: Option<u16>,
}

/// The segment behind a device: what a broadcast sent by it, with a tag or without, reaches.
pub(crate) fn segment(cx: &mut Cx<'_>, ns: &NsKey, dev: IfIndex, tag: Option<u16>) -> Segment {
    let mut found = Segment::default();
    let start = Leg {
        ns: ns.clone(),
        dev,
        arriving: false,
        tag,
    };
    let mut open = vec![(start, Vec::new())];
    let mut seen = BTreeSet::new();
    while let Some((leg, mut way)) = open.pop() {
        if !seen.insert(leg.clone()) {
            continue;
        }
        let Leg {
            ns,
            dev,
            arriving,
            tag,
        } = leg.clone();
        let topology = cx.topology;
        let Some(link) = topology.netns(&ns).and_then(|netns| netns.link(dev)) else {
            found.unknown = Some(format!("device {dev} of {ns} was not read"));
            continue;
        };
        if !link.up {
            continue;
        }
        if !matches!(link.kind, LinkKind::Bridge(_)) {
            way.push(leg);
        }
        let mut onward = Vec::new();
        if arriving {
            arrive(cx, &ns, (link, tag), &way, &mut onward, &mut found);
        } else {
            emit(cx, &ns, (link, tag), &way, &mut onward, &mut found);
        }
        open.extend(onward.into_iter().map(|leg| (leg, way.clone())));
    }
    found.stations.remove(&(ns.clone(), dev));
    found
}

/// A frame comes in by `link`.
fn arrive(
    cx: &Cx<'_>,
    ns: &NsKey,
    (link, tag): (&Link, Option<u16>),
    way: &[Leg],
    onward: &mut Vec<Leg>,
    found: &mut Segment,
) {
    let on_top = |link: &Link, tag| {
        let (ns, own) = vlan::on_top(cx, ns, link.index, tag)?;
        Some(Leg {
            ns,
            dev: own.index,
            arriving: true,
            tag: None,
        })
    };
    if let Some(leg) = tag.and_then(|tag| on_top(link, tag)) {
        onward.push(leg);
        return;
    }
    let netns = cx.topology.netns(ns);
    let master = link.master.and_then(|master| netns?.link(master));
    let mut station = |ns: &NsKey, dev| {
        let key = (ns.clone(), dev);
        found.stations.entry(key).or_insert_with(|| way.to_vec());
    };
    if let Some((bridge, own)) = master.and_then(bridge_of) {
        if !forwards(link) {
            return;
        }
        let vid = match bridge_vlan::ingress(bridge, own, link, tag) {
            Passage::Yes(vid) => vid,
            Passage::No(_) => return,
            Passage::Unknown(why) => {
                found.unknown = Some(why);
                return;
            }
        };
        // Up to the bridge's own device, with its tag there or without.
        let up = match vid {
            Some(vid) => bridge_vlan::egress(bridge, own, bridge, vid),
            None => Passage::Yes(tag),
        };
        match up {
            Passage::Yes(None) => station(ns, bridge.index),
            Passage::Yes(Some(tag)) => onward.extend(on_top(bridge, tag)),
            Passage::No(_) | Passage::Unknown(_) => {}
        }
        ports(cx, ns, (bridge, own), Some(link), (vid, tag), onward);
        return;
    }
    let above = macvlans(cx, ns, link.index);
    if tag.is_some() {
        if !above.is_empty() {
            let why = format!(
                "what macvlans on {} do with tagged frames is not followed",
                link.name
            );
            found.unknown = Some(why);
        }
        return;
    }
    station(ns, link.index);
    for (child_ns, child) in above {
        station(&child_ns, child);
    }
}

/// A frame leaves by `link`.
fn emit(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    (link, tag): (&Link, Option<u16>),
    way: &[Leg],
    onward: &mut Vec<Leg>,
    found: &mut Segment,
) {
    match &link.kind {
        LinkKind::Veth | LinkKind::Netkit => match peer(cx.topology, ns, link) {
            Peer::Found(ns, dev) => onward.push(Leg {
                ns,
                dev,
                arriving: true,
                tag,
            }),
            Peer::Unread(peer_ns) => {
                found.unknown = Some(format!("{peer_ns}, behind {}, was not read", link.name));
                cx.want_netns(&peer_ns);
            }
            Peer::OutsideView(_) => found.outside = Some(link.name.clone()),
            Peer::Ambiguous(_) => {
                found.unknown = Some(format!("the peer of {} is ambiguous", link.name));
            }
            Peer::NotVeth => {}
            Peer::Unknown(why) => found.unknown = Some(why),
        },
        LinkKind::Bridge(own) => match bridge_vlan::ingress(link, own, link, tag) {
            Passage::Yes(vid) => ports(cx, ns, (link, own), None, (vid, tag), onward),
            Passage::No(_) => {}
            Passage::Unknown(why) => found.unknown = Some(why),
        },
        LinkKind::Vlan(id) if !super::underlay::faces_out(cx, ns, link) => {
            let below = parent(cx, ns, link).filter(|_| tag.is_none());
            if below.is_none() {
                let why = format!("who is on the VLAN of {} is not followed", link.name);
                found.unknown = Some(why);
            }
            onward.extend(below.map(|(ns, dev)| Leg {
                ns,
                dev,
                arriving: false,
                tag: Some(*id),
            }));
        }
        _ if tag.is_some() && link.kind != LinkKind::Device => {
            let why = format!("what {} does with tagged frames is not followed", link.name);
            found.unknown = Some(why);
        }
        LinkKind::Macvlan(mode) => match parent(cx, ns, link) {
            Some((ns, dev)) => {
                if *mode == MacvlanMode::Bridge {
                    let bridged = |(ns, dev): &(NsKey, IfIndex)| {
                        let link = cx.topology.netns(ns).and_then(|netns| netns.link(*dev));
                        link.is_some_and(|link| link.kind == LinkKind::Macvlan(MacvlanMode::Bridge))
                    };
                    let siblings = macvlans(cx, &ns, dev);
                    for sibling in siblings.into_iter().filter(bridged) {
                        let entry = found.stations.entry(sibling);
                        entry.or_insert_with(|| way.to_vec());
                    }
                }
                onward.push(Leg {
                    ns,
                    dev,
                    arriving: false,
                    tag: None,
                });
            }
            None => found.unknown = Some(format!("the parent of {} was not read", link.name)),
        },
        // Its remotes for everyone else, if it has any, are not followed.
        LinkKind::Vxlan(_) if super::neigh::link_floods(cx, ns, link) => {
            found.unknown = Some(format!(
                "{} floods to its remotes, which is not followed",
                link.name
            ));
        }
        LinkKind::Vxlan(_) | LinkKind::Dummy => {}
        _ if link.loopback => {}
        _ => found.outside = Some(link.name.clone()),
    }
}

/// A link and its attributes, where it is a bridge.
fn bridge_of(link: &Link) -> Option<(&Link, &Bridge)> {
    match &link.kind {
        LinkKind::Bridge(own) => Some((link, own)),
        _ => None,
    }
}

fn forwards(port: &Link) -> bool {
    port.port
        .as_ref()
        .is_none_or(|port| port.state == PortState::Forwarding)
}

/// Ports of a bridge that a broadcast leaves by, which came in by another port or was sent here.
/// `vid`: of its VLAN, where the bridge filters; else with that tag.
fn ports(
    cx: &Cx<'_>,
    ns: &NsKey,
    (bridge, own): (&Link, &Bridge),
    from: Option<&Link>,
    (vid, tag): (Option<u16>, Option<u16>),
    onward: &mut Vec<Leg>,
) {
    let links = cx.topology.netns(ns).and_then(|netns| netns.links.known());
    let isolated = |link: &Link| link.port.as_ref().is_some_and(|port| port.isolated);
    let cut_off = from.is_some_and(isolated);
    // `should_deliver()`
    let returns = |link: &Link| {
        let hairpin = link.port.as_ref().is_some_and(|port| port.hairpin);
        hairpin || from.is_none_or(|from| from.index != link.index)
    };
    let all = links
        .into_iter()
        .flatten()
        .filter(|link| link.master == Some(bridge.index) && link.up && forwards(link))
        .filter(|link| link.port.as_ref().is_none_or(|port| port.bcast_flood))
        .filter(|link| !(cut_off && isolated(link)))
        .filter(|link| returns(link));
    for link in all {
        let tag = match vid {
            Some(vid) => match bridge_vlan::egress(bridge, own, link, vid) {
                Passage::Yes(tag) => tag,
                Passage::No(_) | Passage::Unknown(_) => continue,
            },
            None => tag,
        };
        onward.push(Leg {
            ns: ns.clone(),
            dev: link.index,
            arriving: false,
            tag,
        });
    }
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

/// Whether a VLAN or macvlan on top of a device, in any namespace of its node, has a link-layer address.
pub(crate) fn is_above(cx: &Cx<'_>, ns: &NsKey, dev: IfIndex, mac: MacAddr) -> bool {
    let mut on_node = cx.topology.all().filter(|(key, _)| key.node == ns.node);
    on_node.any(|(key, netns)| {
        let mut links = netns.links.known().into_iter().flatten();
        links.any(|link| {
            matches!(link.kind, LinkKind::Macvlan(_) | LinkKind::Vlan(_))
                && link.mac == Some(mac)
                && parent(cx, &key, link) == Some((ns.clone(), dev))
        })
    })
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
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Answers {
    /// Devices that answer.
    pub(crate) by: Vec<Answer>,
    /// Devices that would answer, but rules on the way take the question or the answer: the step of
    /// the rule, with the namespace it is in.
    pub(crate) lost: Vec<(NsKey, Step)>,
    /// The segment that was searched, without its stations.
    pub(crate) segment: Segment,
}

/// A device that answers for an address.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    /// Its namespace.
    pub(crate) ns: NsKey,
    /// The device.
    pub(crate) dev: IfIndex,
    /// The address that it tells.
    pub(crate) mac: MacAddr,
    /// What question and answer teach.
    pub(crate) lessons: Lessons,
}

/// Asks everyone on the link of `link` for `addr` (ARP, neighbour solicitation). `src`: source of the
/// packet that the question is for.
pub(crate) fn who_has(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    link: &Link,
    addr: IpAddr,
    src: Option<IpAddr>,
) -> Answers {
    let mut segment = segment(cx, ns, link.index, None);
    let stations = std::mem::take(&mut segment.stations);
    let mut answers = Answers {
        segment,
        ..Answers::default()
    };
    let sender = match solicit::sender(cx, ns, link, addr, src) {
        Ok(sender) => sender,
        Err(why) => {
            answers.segment.unknown = Some(why);
            return answers;
        }
    };
    for ((station, index), legs) in stations {
        let topology = cx.topology;
        let Some(to) = topology.netns(&station).and_then(|netns| netns.link(index)) else {
            continue;
        };
        let Some(mac) = to.mac else {
            continue;
        };
        match answers_for(cx, &station, to, addr, sender) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(why) => {
                answers.segment.unknown = Some(why);
                continue;
            }
        }
        let way = Way {
            from: (ns.clone(), link),
            legs,
            to: (station.clone(), to),
        };
        match solicit::ask(cx, &way, addr, sender) {
            Ok(lessons) => answers.by.push(Answer {
                ns: station,
                dev: index,
                mac,
                lessons,
            }),
            Err(Stop::Lost(ns, step)) => answers.lost.push((ns, *step)),
            Err(Stop::Unknown(why)) => answers.segment.unknown = Some(why),
        }
    }
    answers
}

/// Whether the kernel behind a device answers `sender` for an address.
fn answers_for(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    link: &Link,
    addr: IpAddr,
    sender: IpAddr,
) -> Result<bool, String> {
    let topology = cx.topology;
    let Some(netns) = topology.netns(ns) else {
        return Ok(false);
    };
    if link.noarp {
        return Ok(false);
    }
    let mut neighs = netns.neighs.known().into_iter().flatten();
    let has_proxy =
        neighs.any(|entry| entry.proxy && entry.dst == addr && entry.link == link.index);
    let addrs = super::fib::section(cx, ns, &netns.addrs, "addresses")?;
    if addr.is_ipv6() {
        let usable = |own: &&crate::model::addr::Addr| {
            own.local == addr
                && own.link == link.index
                && !own.dadfailed
                && (!own.tentative || own.nodad)
        };
        if addrs.iter().any(|own| usable(&own)) {
            return Ok(true);
        }
        // `ndisc_recv_ns()`: the device forwards, and it or all may be a proxy.
        return match (has_proxy, link.inet6, inet6_all(cx, ns)) {
            (false, ..) => Ok(false),
            (true, Some(own), Ok(all)) => Ok(own.forwarding && (own.proxy_ndp || all.proxy_ndp)),
            (true, ..) => Err(format!("proxy_ndp of {} in {ns} was not read", link.name)),
        };
    }
    let (own, all) = solicit::inet(cx, ns, link)?;
    let vrf = vrf::of(netns, link.index);
    let is_local = if vrf.is_none() {
        addr_type(cx, ns, addr, None, None)? == RouteKind::Local
    } else {
        // Rules lead to a VRF's table, behind those that come first (`arp_process()`: `ip_route_input_noref()`).
        let key = FibKey {
            iif: Some(link.index),
            src: Some(sender),
            ..FibKey::to(addr)
        };
        match lookup(cx, ns, &key) {
            FibAnswer::Found(found) => found.route.kind == RouteKind::Local,
            FibAnswer::Unknown(why) => return Err(why),
            FibAnswer::NoRoute | FibAnswer::Refused(_) => false,
        }
    };
    if is_local {
        let mut near = addrs.iter().filter(|own| own.link == link.index);
        let on_dev = near.clone().any(|own| own.local == addr);
        // `arp_ignore()`
        let silent = match own.arp_ignore.max(all.arp_ignore) {
            1 => !on_dev,
            // Any subnet of the device that both are in (`confirm_addr_indev()`).
            2 => {
                let both = |subnet: Prefix| subnet.contains(sender) && subnet.contains(addr);
                !on_dev || !near.any(|own| own.subnet().is_some_and(both))
            }
            3 => return Err(format!("arp_ignore 3 of {} asks for scopes", link.name)),
            8 => true,
            _ => false,
        };
        if silent {
            return Ok(false);
        }
        if !(own.arp_filter || all.arp_filter) || sender.is_unspecified() {
            return Ok(true);
        }
        // `arp_filter()`: only by the device that answers to the asking side leave by.
        let key = FibKey {
            src: Some(addr),
            vrf: vrf.map(|vrf| vrf.index),
            ..FibKey::to(sender)
        };
        return match lookup(cx, ns, &key) {
            FibAnswer::Found(found) => leaves_by(&found, link, ("arp_filter", sender)),
            FibAnswer::Unknown(why) => Err(why),
            FibAnswer::NoRoute | FibAnswer::Refused(_) => Ok(false),
        };
    }
    // For others: forwarding is on, the route leaves by another device, and the setting or an entry says so.
    if !(has_proxy || own.proxy_arp || all.proxy_arp) || !own.forwarding {
        return Ok(false);
    }
    let key = FibKey {
        iif: Some(link.index),
        ..FibKey::to(addr)
    };
    match lookup(cx, ns, &key) {
        // `arp_fwd_proxy()`
        FibAnswer::Found(found) if found.route.kind == RouteKind::Unicast => {
            leaves_by(&found, link, ("proxy_arp", addr)).map(|back| !back)
        }
        FibAnswer::Unknown(why) => Err(why),
        FibAnswer::Found(_) | FibAnswer::NoRoute | FibAnswer::Refused(_) => Ok(false),
    }
}

/// Whether what is sent to `to`, for a setting that asks so, leaves by a device. Of several next hops the kernel takes one by a hash with a key of its
/// own (6.12), or rather the one that has the answered address as its source (6.18; `fib_select_multipath()`).
fn leaves_by(found: &Found, link: &Link, (setting, to): (&str, IpAddr)) -> Result<bool, String> {
    let mut by = found
        .hops
        .iter()
        .map(|(_, hop)| hop.link == Some(link.index));
    let first = by.next().unwrap_or(false);
    if by.all(|next| next == first) {
        return Ok(first);
    }
    Err(format!(
        "{setting} of {} asks by which device {to} is reached, and which of several next hops the kernel takes is not known",
        link.name
    ))
}
