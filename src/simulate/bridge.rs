//! Linux bridges: the forwarding database, ports, and br_netfilter, which shows bridged IP packets to
//! the IP hooks.
//!
//! Read first: `br_handle_frame_finish()` (net/bridge/br_input.c), `should_deliver()` (br_forward.c),
//! `br_nf_pre_routing()` and what follows it (br_netfilter_hooks.c), v6.12; VLANs are in [`super::bridge_vlan`]. Not
//! modelled: multicast snooping, STP's own frames.

use super::bridge_vlan::Passage;
use super::device::{VLAN_HLEN, hooked};
use super::fib::{self, FibAnswer, lookup};
use super::input::{forwarding, martian, validate_source};
use super::memory::Learned;
use super::neigh::{Resolved, Station, address};
use super::output::key;
use super::skb::Devices;
use super::walk::{Next, Walk, Ways};
use super::{Cx, bridge_vlan, device, l2, vlan};
use crate::model::link::{Bridge, Link, LinkKind, PortState};
use crate::model::neigh::NeighState;
use crate::model::netfilter::Hook;
use crate::model::packet::L4;
use crate::model::route::RouteKind;
use crate::model::{IfIndex, MacAddr, NsKey};
use crate::trace::{Disposition, DropReason, Evidence, RejectWith, Step, StepKind};

/// A frame comes in by a port.
pub(crate) fn receive(
    cx: &mut Cx<'_>,
    mut walk: Walk,
    port: &Link,
    master: &Link,
    bridge: &Bridge,
) -> Ways {
    if let Some(attributes) = &port.port {
        if attributes.state != PortState::Forwarding {
            let state = format!("port state {:?}", attributes.state).to_lowercase();
            let evidence = Evidence::Link {
                dev: port.name.clone(),
                state,
            };
            walk.step(
                Step::new(StepKind::Bridge, format!("{} does not forward", port.name))
                    .with(evidence),
            );
            return walk.end(Disposition::Dropped(DropReason::BridgePortState));
        }
        if attributes.locked {
            return walk.unknown(format!("{} is locked, which is not modelled", port.name));
        }
    }
    let v6 = walk.skb.packet.dst.is_ipv6();
    let nf = calls_iptables(cx, &walk.ns, v6, master, bridge);
    // IP's hooks are shown no tagged frame (`IS_IP()`).
    let nf = match nf {
        Ok(nf) if nf && !walk.tags.is_empty() => {
            bridge_vlan::shows_tagged(cx, &walk.ns, master).map(|()| false)
        }
        nf => nf,
    };
    let nf = match nf {
        Ok(nf) => nf,
        Err(why) => return walk.unknown(why),
    };
    walk.vid = None;
    let (port, master) = (port.index, master.index);
    let devices = Devices {
        iif: Some(port),
        ..Devices::default()
    };
    walk.hook(cx, Hook::Prerouting, true, devices, move |cx, mut walk| {
        if !nf {
            return decide(cx, walk, master, port, false);
        }
        walk.physin = Some(port);
        let before = walk.skb.packet.dst;
        let devices = Devices {
            iif: Some(master),
            physin: Some(port),
            ..Devices::default()
        };
        walk.hook(cx, Hook::Prerouting, false, devices, move |cx, walk| {
            if walk.skb.packet.dst == before {
                decide(cx, walk, master, port, true)
            } else {
                translated(cx, walk, master, port)
            }
        })
    })
}

/// Whether this bridge shows its packets to the IP hooks, by itself or by the sysctl.
///
/// Source: `br_nf_pre_routing()`.
pub(crate) fn calls_iptables(
    cx: &Cx<'_>,
    ns: &NsKey,
    v6: bool,
    master: &Link,
    bridge: &Bridge,
) -> Result<bool, String> {
    if v6 && bridge.nf_call_ip6tables || !v6 && bridge.nf_call_iptables {
        return Ok(true);
    }
    let sysctls = cx
        .topology
        .netns(ns)
        .and_then(|netns| netns.sysctls.known());
    let setting = sysctls.map(|sysctls| {
        if v6 {
            &sysctls.bridge_nf_call_ip6tables
        } else {
            &sysctls.bridge_nf_call_iptables
        }
    });
    let name = if v6 {
        "bridge-nf-call-ip6tables"
    } else {
        "bridge-nf-call-iptables"
    };
    let value = setting.and_then(|section| section.known().copied());
    value.map(|value| value.unwrap_or(false)).ok_or_else(|| {
        format!(
            "{name} of {ns}, which decides about {}, was not read",
            master.name
        )
    })
}

/// Up to the IP layer, or on to a port.
fn decide(cx: &mut Cx<'_>, walk: Walk, master: IfIndex, port: IfIndex, nf: bool) -> Ways {
    let (bridge, by) = (walk.link(cx, master), walk.link(cx, port));
    let (Some(bridge), Some(by)) = (bridge, by) else {
        return walk.unknown("the bridge or its port was not read");
    };
    let walk = match let_in_and_learn(walk, bridge, by) {
        Ok(walk) => walk,
        Err(ways) => return ways,
    };
    let Some((_, dst)) = walk.skb.packet.eth else {
        // The frame was put around it by a router out of view: it can only be for this host.
        return up(cx, walk, master, nf);
    };
    let vid = walk.vid;
    let own = vid.is_none() && bridge.mac == Some(dst);
    let Some(netns) = walk.netns(cx) else {
        return walk.unknown("the namespace was not read");
    };
    let fdb = netns.fdb.known();
    if vid.is_some() && fdb.is_none() {
        return match fib::section(cx, &walk.ns, &netns.fdb, "forwarding entries") {
            Ok(_) => walk.unknown("forwarding entries were not read"),
            Err(why) => walk.unknown(why),
        };
    }
    let local = fdb.into_iter().flatten().any(|entry| {
        entry.mac == dst
            && entry.permanent
            && !entry.own
            && (entry.master == Some(master) || entry.link == master)
            && !entry.ext_learned
            && (vid.is_none() || entry.vlan == vid)
    });
    if own || local {
        return up(cx, walk, master, nf);
    }
    // A copy goes up, which only a device on top takes that has the frame's address (`br_pass_frame_up()`: promisc).
    if bridge.promiscuity > 0 && l2::is_above(cx, &walk.ns, master, dst) {
        let why = format!(
            "{} takes frames for a device on top of it that has an address of its own, and passes them on, too: not modelled",
            bridge.name
        );
        return walk.unknown(why);
    }
    walk.then(Next::Bridge(master, Some(port), nf))
}

/// Of a frame's VLAN, where the bridge filters, and who sent it is behind the port. `Err`: it ends here.
fn let_in_and_learn(walk: Walk, bridge: &Link, by: &Link) -> Result<Walk, Ways> {
    let mut walk = bridge_vlan::let_in(walk, bridge, by)?;
    let learns = by.port.as_ref().is_none_or(|port| port.learning);
    if let Some((mac, _)) = walk.skb.packet.eth.filter(|_| learns) {
        walk.memory.learn([Learned {
            ns: walk.ns.clone(),
            bridge: bridge.index,
            mac,
            vid: walk.vid,
            port: by.index,
        }]);
    }
    Ok(walk)
}

/// The bridge itself receives it (`br_pass_frame_up()`).
fn up(cx: &mut Cx<'_>, walk: Walk, master: IfIndex, prerouted: bool) -> Ways {
    let Some(link) = walk.link(cx, master) else {
        return walk.unknown("the bridge was not read");
    };
    let mut walk = match bridge_vlan::let_out(walk, link, link) {
        Ok(walk) => walk,
        Err(ways) => return ways,
    };
    if !link.up {
        let evidence = Evidence::Link {
            dev: link.name.clone(),
            state: "down".to_owned(),
        };
        walk.step(Step::new(StepKind::Bridge, format!("{} is down", link.name)).with(evidence));
        return walk.end(Disposition::Dropped(DropReason::DevReady));
    }
    let text = format!("{}: for this host", link.name);
    walk.step(Step::new(StepKind::Bridge, text));
    let devices = Devices {
        iif: Some(master),
        ..Devices::default()
    };
    walk.hook(cx, Hook::Input, true, devices, move |cx, mut walk| {
        walk.tap(&link.name, false);
        let mut programs = link.tc.iter();
        if let Some(program) = programs.find(|program| program.starts_with("ingress")) {
            let why = format!("{} has {program}, which may do anything", link.name);
            return walk.unknown(why);
        }
        if hooked(cx, &walk.ns, Hook::Ingress) {
            return walk.hook(cx, Hook::Ingress, false, devices, move |cx, walk| {
                taken(cx, walk, link, prerouted)
            });
        }
        taken(cx, walk, link, prerouted)
    })
}

/// Behind the hooks of the bridge's device: by that of the frame's VLAN on top of it, or by itself.
fn taken(cx: &mut Cx<'_>, mut walk: Walk, link: &Link, prerouted: bool) -> Ways {
    walk.prerouted = prerouted;
    if let Some(id) = walk.tags.last().copied() {
        return vlan::receive(cx, walk, link, id);
    }
    walk.prerouted = false;
    walk.then(Next::Ip(link.index, prerouted))
}

/// The IP hooks changed the destination of a bridged packet (`br_nf_pre_routing_finish()`).
fn translated(cx: &mut Cx<'_>, mut walk: Walk, master: IfIndex, port: IfIndex) -> Ways {
    let Some(link) = walk.link(cx, master) else {
        return walk.unknown("the bridge was not read");
    };
    // IPv4 asks for the whole route of what comes in, and nobody sees what that refuses (`ip_route_input()`).
    let v4 = walk.skb.packet.dst.is_ipv4();
    if v4 && let Err(ways) = martian(cx, &mut walk, link) {
        return ways;
    }
    let found = match lookup(cx, &walk.ns, &key(&walk, Some(master), None)) {
        FibAnswer::Unknown(why) => return walk.unknown(why),
        // `br_nf_pre_routing_finish_ipv6()` tells nobody.
        answer if walk.skb.packet.dst.is_ipv6() && is_refusal(&answer) => {
            let what = format!("a route to {}", walk.skb.packet.dst);
            let text = format!("{}: translated, and no route leads there", link.name);
            walk.step(Step::new(StepKind::Bridge, text).with(Evidence::Absent { what }));
            return walk.end(Disposition::Dropped(DropReason::IpInnoroutes));
        }
        FibAnswer::Found(found) => found,
        // The input path finds the same and says so.
        FibAnswer::NoRoute | FibAnswer::Refused(_) => return for_bridge(cx, walk, master, port),
    };
    let hop = found.hops.first().map(|(_, hop)| hop.clone());
    let back = hop
        .as_ref()
        .filter(|hop| found.route.kind == RouteKind::Unicast && hop.link == Some(master));
    let Some(hop) = back else {
        let out = match (found.route.kind, forwarding(cx, &walk, link)) {
            (RouteKind::Local, _) if v4 => Some(None),
            (RouteKind::Unicast, Ok((true, _))) if v4 => Some(hop.and_then(|hop| hop.link)),
            _ => None,
        };
        if let Some(out) = out
            && let Err(ways) = validate_source(cx, &mut walk, link, out)
        {
            return ways;
        }
        return for_bridge(cx, walk, master, port);
    };
    // Where forwarding is off, the IPv4 route lookup gives an error route by no device of the bridge, and the
    // packet goes up to meet it (`ip_route_input_slow()`: no_route). IPv6 does not ask here.
    match forwarding(cx, &walk, link) {
        _ if walk.skb.packet.dst.is_ipv6() => {}
        Ok((true, _)) => {}
        Ok((false, _)) => return for_bridge(cx, walk, master, port),
        Err(why) => return walk.unknown(why),
    }
    if let Err(ways) = validate_source(cx, &mut walk, link, Some(master)) {
        return ways;
    }
    let next_hop = hop.via.unwrap_or(walk.skb.packet.dst);
    let text = format!("{}: translated to an address on the same bridge", link.name);
    walk.step(Step::new(StepKind::Bridge, text));
    let asked = walk.memory.asked(&walk.ns, link.index, next_hop);
    match address(cx, &walk, link, next_hop) {
        Resolved::Address(station) => readdress(cx, walk, link, station, port, asked),
        Resolved::OneOf(stations) => walk.fork(stations, |walk, station| {
            readdress(cx, walk, link, station, port, asked)
        }),
        Resolved::Nobody(step) => {
            walk.step(step);
            // Who sent it to the bridge itself is told, as by routers: errors are about packets for this host alone.
            let to = walk.skb.packet.eth.map(|(_, to)| to);
            if to.is_some() && to == link.mac && walk.skb.packet.inner.is_none() {
                return walk.end(Disposition::Rejected(RejectWith::HostUnreachable));
            }
            walk.end(Disposition::Dropped(DropReason::NeighFailed))
        }
        Resolved::Assumed(_) => walk.unknown(format!(
            "who has {next_hop} on {} is out of view",
            link.name
        )),
        Resolved::Unknown(why) => walk.unknown(why),
    }
}

fn is_refusal(answer: &FibAnswer) -> bool {
    match answer {
        FibAnswer::Found(found) => found.route.kind.refuses(),
        FibAnswer::NoRoute | FibAnswer::Refused(_) => true,
        FibAnswer::Unknown(_) => false,
    }
}

/// The frame goes on to its new neighbour's address. `asked`: an earlier packet under way asked for that.
fn readdress(
    cx: &Cx<'_>,
    mut walk: Walk,
    bridge: &Link,
    station: Station,
    port: IfIndex,
    asked: bool,
) -> Ways {
    let Station { mac, step, lessons } = station;
    walk.memory.take_in(lessons);
    // Only a confirmed neighbour has its header at hand; any other takes the long way, through
    // the bridge's own device (`br_nf_pre_routing_finish_bridge()`, NUD_CONNECTED).
    if !asked && !step.evidence.iter().any(is_connected) {
        walk.tap(&bridge.name, true);
    }
    walk.step(step);
    walk.skb.packet.eth = walk.skb.packet.eth.map(|(src, _)| (src, mac));
    match walk.link(cx, port) {
        // `br_handle_frame_finish()` comes behind that.
        Some(by) => match let_in_and_learn(walk, bridge, by) {
            Ok(walk) => walk.then(Next::Bridge(bridge.index, Some(port), true)),
            Err(ways) => ways,
        },
        None => walk.unknown("the port was not read"),
    }
}

fn is_connected(evidence: &Evidence) -> bool {
    let Evidence::Neigh { neigh, .. } = evidence else {
        return false;
    };
    matches!(
        neigh.state,
        NeighState::Reachable | NeighState::Permanent | NeighState::Noarp
    )
}

/// The frame is readdressed to the bridge and goes up.
fn for_bridge(cx: &mut Cx<'_>, mut walk: Walk, master: IfIndex, port: IfIndex) -> Ways {
    let own = walk.link(cx, master).and_then(|link| link.mac);
    if let (Some((src, _)), Some(own)) = (walk.skb.packet.eth, own) {
        walk.skb.packet.eth = Some((src, own));
    }
    decide(cx, walk, master, port, true)
}

/// Which port a frame leaves by.
pub(crate) fn forward(
    cx: &mut Cx<'_>,
    mut walk: Walk,
    bridge: IfIndex,
    port: Option<IfIndex>,
    nf: bool,
) -> Ways {
    let Some(master) = walk.link(cx, bridge) else {
        return walk.unknown("the bridge was not read");
    };
    if port.is_none() {
        // By the bridge's own device (`br_dev_xmit()`).
        walk.vid = None;
        walk = match bridge_vlan::let_in(walk, master, master) {
            Ok(walk) => walk,
            Err(ways) => return ways,
        };
    }
    let vid = walk.vid;
    let Some((_, dst)) = walk.skb.packet.eth else {
        return walk.unknown(format!(
            "the link-layer address behind {} is not known",
            master.name
        ));
    };
    let Some(netns) = walk.netns(cx) else {
        return walk.unknown("the namespace was not read");
    };
    let fdb = match fib::section(cx, &walk.ns, &netns.fdb, "forwarding entries") {
        Ok(fdb) => fdb,
        Err(why) => return walk.unknown(why),
    };
    let entry = fdb.iter().find(|e| {
        e.mac == dst && e.master == Some(bridge) && !e.own && e.vlan == vid && e.link != bridge
    });
    let learned = walk.memory.learned(&walk.ns, bridge, dst, vid);
    let moved = learned.filter(|port| {
        entry.is_some_and(|entry| entry.link != *port && !entry.permanent && !entry.sticky)
    });
    let (out, evidence, how) = match entry {
        None if let Some(port) = learned => {
            let why = format!(
                "{} has no entry for {dst}, and learns from the packets of this exchange that it is behind {}",
                master.name,
                walk.dev(cx, port)
            );
            (port, Evidence::Assumed { why }, ", learned under way")
        }
        Some(entry) if let Some(port) = moved => {
            let why = format!(
                "{} learns from the packets of this exchange that {dst} is behind {}, not behind {} as its table says",
                master.name,
                walk.dev(cx, port),
                walk.dev(cx, entry.link)
            );
            (port, Evidence::Assumed { why }, ", learned under way")
        }
        Some(entry) => {
            let dev = walk.dev(cx, entry.link);
            (
                entry.link,
                Evidence::Fdb {
                    fdb: entry.clone(),
                    dev,
                },
                "",
            )
        }
        None => match flood(cx, &walk, master, port, dst) {
            Flood::To(out, evidence) => (out, *evidence, ", flooded"),
            Flood::Nowhere => {
                let what = format!("a port of {} behind which {dst} is", master.name);
                let absent = Evidence::Absent { what };
                walk.step(
                    Step::new(StepKind::Bridge, format!("no port leads to {dst}")).with(absent),
                );
                return walk.end(Disposition::Dropped(DropReason::BridgeNoPort));
            }
            Flood::Unknown(why) => return walk.unknown(why),
        },
    };
    let Some(out) = walk.link(cx, out) else {
        return walk.unknown(format!("a port of {} was not read", master.name));
    };
    let input = port.and_then(|port| walk.link(cx, port));
    if let Some((reason, state)) = refused(input, out) {
        let state = Evidence::Link {
            dev: out.name.clone(),
            state,
        };
        let text = format!("{}: port {} does not take it{how}", master.name, out.name);
        walk.step(Step::new(StepKind::Bridge, text).with(state).with(evidence));
        return walk.end(Disposition::Dropped(reason));
    }
    let from = input.map_or_else(|| master.name.clone(), |link| link.name.clone());
    let text = format!("{}: {from} → port {}{how}", master.name, out.name);
    let mut step = Step::new(StepKind::Bridge, text).with(evidence);
    let mut unread = netns.unread_tables.known().into_iter().flatten();
    if let Some(module) = unread.find(|name| name.starts_with("ebtable_")) {
        let why = format!(
            "legacy ebtables may have rules on {} ({module} is loaded): they can't be read without making tables, and are taken to be none",
            walk.ns.node
        );
        step = step.with(Evidence::Assumed { why });
    }
    walk.step(step);
    let walk = match bridge_vlan::let_out(walk, master, out) {
        Ok(walk) => walk,
        Err(ways) => return ways,
    };
    // Nor do IP's hooks see a frame that goes on with a tag.
    let nf = nf && port.is_some();
    if nf
        && !walk.tags.is_empty()
        && let Err(why) = bridge_vlan::shows_tagged(cx, &walk.ns, master)
    {
        return walk.unknown(why);
    }
    let nf = nf && walk.tags.is_empty();
    hooks(cx, walk, bridge, port, out.index, nf)
}

/// Source: `should_deliver()`.
fn refused(input: Option<&Link>, out: &Link) -> Option<(DropReason, String)> {
    let attributes = out.port.as_ref();
    let state = attributes.map_or(PortState::Forwarding, |port| port.state);
    if !out.up {
        return Some((DropReason::DevReady, "down".to_owned()));
    }
    if state != PortState::Forwarding {
        return Some((
            DropReason::BridgePortState,
            format!("port state {state:?}").to_lowercase(),
        ));
    }
    let input = input?;
    if input.index == out.index && !attributes.is_some_and(|port| port.hairpin) {
        return Some((DropReason::BridgeHairpinOff, "hairpin off".to_owned()));
    }
    let isolated = |link: &Link| link.port.as_ref().is_some_and(|port| port.isolated);
    if isolated(input) && isolated(out) {
        return Some((DropReason::BridgeIsolated, "isolated on".to_owned()));
    }
    None
}

enum Flood {
    To(IfIndex, Box<Evidence>),
    Nowhere,
    Unknown(String),
}

/// No entry: the frame goes to every port; the one behind which its station is takes it.
fn flood(
    cx: &mut Cx<'_>,
    walk: &Walk,
    master: &Link,
    port: Option<IfIndex>,
    dst: MacAddr,
) -> Flood {
    let links = walk.netns(cx).and_then(|netns| netns.links.known());
    let ports: Vec<&Link> = links
        .into_iter()
        .flatten()
        .filter(|link| link.master == Some(master.index) && link.up)
        .filter(|link| {
            link.port
                .as_ref()
                .is_none_or(|attributes| attributes.unicast_flood)
        })
        .filter(|link| Some(link.index) != port || link.port.as_ref().is_some_and(|p| p.hairpin))
        .collect();
    let mut outside = None;
    let mut unknown = None;
    let mut tag = walk.tags.last().copied();
    for out in ports {
        if let (Some(vid), LinkKind::Bridge(bridge)) = (walk.vid, &master.kind) {
            tag = match bridge_vlan::egress(master, bridge, out, vid) {
                Passage::Yes(tag) => tag,
                Passage::No(_) => continue,
                Passage::Unknown(why) => return Flood::Unknown(why),
            };
        }
        let segment = l2::segment(cx, &walk.ns, out.index, tag);
        let here = segment.stations.keys().any(|(ns, index)| {
            let link = cx.topology.netns(ns).and_then(|netns| netns.link(*index));
            link.is_some_and(|link| link.mac == Some(dst))
        });
        if here {
            let what = format!(
                "a forwarding entry for {dst}; sent to every port, taken behind {}",
                out.name
            );
            return Flood::To(out.index, Box::new(Evidence::Absent { what }));
        }
        outside = outside.or(segment.outside.map(|_| out));
        unknown = unknown.or(segment.unknown);
    }
    match (unknown, outside) {
        (Some(why), _) => Flood::Unknown(why),
        (None, Some(out)) => {
            let why = format!(
                "no entry for {dst}: sent to every port, of which {} leads out of view",
                out.name
            );
            Flood::To(out.index, Box::new(Evidence::Assumed { why }))
        }
        (None, None) => Flood::Nowhere,
    }
}

/// FORWARD (or OUTPUT) and POSTROUTING, of the bridge family and, where br_netfilter says so, of IP.
fn hooks(
    cx: &mut Cx<'_>,
    walk: Walk,
    bridge: IfIndex,
    port: Option<IfIndex>,
    out: IfIndex,
    nf: bool,
) -> Ways {
    let ports = Devices {
        iif: port,
        oif: Some(out),
        ..Devices::default()
    };
    let first = if port.is_some() {
        Hook::Forward
    } else {
        Hook::Output
    };
    let ip = Devices {
        iif: Some(bridge),
        oif: Some(bridge),
        physin: port,
        physout: Some(out),
        via: None,
    };
    walk.hook(cx, first, true, ports, move |cx, walk| {
        let behind = move |cx: &mut Cx<'_>, walk: Walk| {
            walk.hook(cx, Hook::Postrouting, true, ports, move |cx, walk| {
                leave(cx, walk, bridge, out, nf && port.is_some())
            })
        };
        if !(nf && port.is_some()) {
            return behind(cx, walk);
        }
        walk.hook(cx, Hook::Forward, false, ip, move |cx, walk| {
            walk.hook(cx, Hook::Postrouting, false, ip, behind)
        })
    })
}

/// An IPv4 header without options.
const V4_HEADER: u32 = 20;

/// `by_nf`: br_netfilter showed it to the IP hooks.
fn leave(cx: &mut Cx<'_>, walk: Walk, bridge: IfIndex, out: IfIndex, by_nf: bool) -> Ways {
    let (mtu, name) = walk
        .link(cx, bridge)
        .map_or((u32::MAX, String::new()), |l| (l.mtu, l.name.clone()));
    let port_mtu = walk.link(cx, out).map_or(u32::MAX, |link| link.mtu);
    let mut walk = walk;
    let packet = &walk.skb.packet;
    // `br_nf_dev_queue_xmit()` cuts what may be cut to the bridge's MTU, and leaves no room for a tag to what may not.
    let cuts = by_nf && packet.len > port_mtu && !matches!(packet.l4, L4::Arp { .. });
    let whole = packet.df || packet.dst.is_ipv6();
    let room = if cuts && whole {
        port_mtu
    } else {
        port_mtu.saturating_add(VLAN_HLEN)
    };
    if cuts && !whole && mtu < packet.len {
        // What a piece holds behind its header is a multiple of 8.
        walk.skb.packet.len = V4_HEADER + mtu.saturating_sub(V4_HEADER) / 8 * 8;
        let text = format!("br_netfilter cuts it to fragments of {mtu} bytes");
        let (dev, state) = (name.clone(), format!("mtu {mtu}"));
        walk.step(Step::new(StepKind::Mtu, text).with(Evidence::Link { dev, state }));
    }
    // `ip6_fragment()` tells the sender what the bridge takes.
    if cuts && walk.skb.packet.dst.is_ipv6() && walk.skb.packet.len > mtu {
        let text = format!(
            "{} bytes do not fit, and must not be cut",
            walk.skb.packet.len
        );
        let (dev, state) = (name, format!("mtu {mtu}"));
        walk.step(Step::new(StepKind::Mtu, text).with(Evidence::Link { dev, state }));
        return walk.end(Disposition::Rejected(RejectWith::TooBig(mtu)));
    }
    // `is_skb_forwardable()`: the port's own MTU counts, with room for one VLAN tag.
    if walk.skb.packet.len > room {
        let state = Evidence::Link {
            dev: walk.dev(cx, out),
            state: format!("mtu {port_mtu}"),
        };
        let text = format!(
            "{} bytes do not fit the port of {name} (mtu {mtu})",
            walk.skb.packet.len
        );
        walk.step(Step::new(StepKind::Mtu, text).with(state));
        return walk.end(Disposition::Dropped(DropReason::PktTooBig));
    }
    device::transmit(cx, walk, out)
}
