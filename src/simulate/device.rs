//! Devices: what happens to a frame that is handed to one, and to a frame that comes out of one.
//!
//! Read first: `__dev_queue_xmit()`, `__netif_receive_skb_core()` (net/core/dev.c), `veth_xmit()`,
//! `loopback_xmit()`, v6.12. Not modelled: what XDP and tc programs do (a device that has any makes the
//! way unknown).

use super::l2;
use super::peer::{Peer, peer};
use super::skb::Devices;
use super::walk::{Next, Walk, Ways};
use super::{Cx, geneve, ip_tunnel, tc, underlay, vlan, vrf, vxlan, wireguard};
use crate::model::link::{Link, LinkKind, MacvlanMode};
use crate::model::netfilter::Hook;
use crate::model::{IfIndex, NsKey};
use crate::trace::{Disposition, DropReason, Evidence, Step, StepKind};

/// What a receiving veth allows beyond its MTU (`is_skb_forwardable()` counts a VLAN tag).
pub(crate) const VLAN_HLEN: u32 = 4;

/// A device sends a frame.
pub(crate) fn transmit(cx: &mut Cx<'_>, mut walk: Walk, dev: IfIndex) -> Ways {
    let Some(link) = walk.link(cx, dev) else {
        let why = format!("device {dev} of {} was not read", walk.ns);
        return walk.unknown(why);
    };
    if let Some(hop) = walk.hops.last_mut() {
        hop.oif = Some(link.name.clone());
    }
    if !link.up || !link.lower_up {
        let state = if link.up {
            "no carrier (the other end is down)"
        } else {
            "down"
        };
        let evidence = Evidence::Link {
            dev: link.name.clone(),
            state: state.to_owned(),
        };
        walk.step(
            Step::new(StepKind::Transmit, format!("{} is {state}", link.name)).with(evidence),
        );
        return walk.end(Disposition::Dropped(DropReason::DevReady));
    }
    if let Some(program) = link
        .tc
        .iter()
        .find(|program| program.starts_with("egress") || program.contains("netkit"))
    {
        let why = format!("{} has {program}, which may do anything", link.name);
        return walk.unknown(why);
    }
    if hooked(cx, &walk.ns, Hook::Egress) {
        let devices = Devices {
            oif: Some(dev),
            ..Devices::default()
        };
        return walk.hook(cx, Hook::Egress, false, devices, move |cx, walk| {
            send(cx, walk, dev)
        });
    }
    send(cx, walk, dev)
}

/// Whether any chain is hooked at devices of this way in the namespace: there rarely is one.
pub(crate) fn hooked(cx: &Cx<'_>, ns: &NsKey, hook: Hook) -> bool {
    let ruleset = cx.topology.netns(ns).and_then(|netns| netns.nft.known());
    let chains = ruleset
        .into_iter()
        .flat_map(|ruleset| &ruleset.tables)
        .flat_map(|t| t.chains.values());
    let mut bases = chains.filter_map(|chain| chain.base.as_ref());
    bases.any(|base| base.hook == hook)
}

/// The device's own work, behind its egress hook.
fn send(cx: &mut Cx<'_>, mut walk: Walk, dev: IfIndex) -> Ways {
    let Some(link) = walk.link(cx, dev) else {
        return walk.unknown("the device was not read");
    };
    walk = match tc::enqueue(walk, link) {
        Ok(walk) => walk,
        Err(ways) => return ways,
    };
    walk.tap(&link.name, true);
    let passes = matches!(
        link.kind,
        LinkKind::Veth
            | LinkKind::Netkit
            | LinkKind::Vlan(_)
            | LinkKind::Bridge(_)
            | LinkKind::Device
    );
    if let Some(id) = walk.tags.last().filter(|_| !passes) {
        let kind = link.kind.name();
        let why = format!(
            "what {} ({kind}) does with frames of VLAN {id} is not followed",
            link.name
        );
        return walk.unknown(why);
    }
    match &link.kind {
        LinkKind::Veth | LinkKind::Netkit => to_peer(cx, walk, link),
        LinkKind::Bridge(_) => walk.then(Next::Bridge(dev, None, false)),
        LinkKind::Vxlan(attributes) => vxlan::encapsulate(cx, walk, link, attributes),
        LinkKind::IpTunnel(tunnel) => ip_tunnel::encapsulate(cx, walk, link, tunnel),
        LinkKind::Wireguard(own) => wireguard::encapsulate(cx, walk, link, own),
        LinkKind::Geneve(own) => geneve::encapsulate(cx, walk, link, own),
        LinkKind::Vlan(own) => vlan::transmit(cx, walk, link, *own),
        LinkKind::Vrf(_) => vrf::transmit(cx, walk, link),
        LinkKind::Macvlan(_) => macvlan(cx, walk, link),
        LinkKind::Device => underlay::cross(cx, walk, link),
        LinkKind::Dummy => {
            let evidence = Evidence::Link {
                dev: link.name.clone(),
                state: "kind dummy".to_owned(),
            };
            walk.step(Step::new(StepKind::Transmit, "a dummy swallows everything").with(evidence));
            walk.end(Disposition::Dropped(DropReason::NotSpecified))
        }
        other => {
            let why = format!(
                "what a device of kind {} does ({}) is not modelled",
                other.name(),
                link.name
            );
            walk.unknown(why)
        }
    }
}

/// Packets to this host come back in by the loopback device, with their connection.
pub(crate) fn loopback(cx: &Cx<'_>, mut walk: Walk, lo: IfIndex) -> Ways {
    walk.skb.packet.eth = None;
    if let Some(link) = walk.link(cx, lo) {
        walk = match tc::enqueue(walk, link) {
            Ok(walk) => walk,
            Err(ways) => return ways,
        };
    }
    walk.tap(&walk.dev(cx, lo), true);
    walk.skb.uid = None;
    walk.then(Next::Receive(lo))
}

fn to_peer(cx: &mut Cx<'_>, mut walk: Walk, link: &Link) -> Ways {
    match peer(cx.topology, &walk.ns, link) {
        Peer::Found(ns, index) => arrive(cx, walk, &link.name, ns, index),
        Peer::Unread(ns) => {
            cx.want_netns(&ns);
            walk.unknown(format!("{ns}, behind {}, was not read", link.name))
        }
        Peer::OutsideView(_) => underlay::cross(cx, walk, link),
        Peer::Ambiguous(all) => {
            let names: Vec<String> = all.iter().map(ToString::to_string).collect();
            walk.step(Step::new(StepKind::Transmit, "the peer is ambiguous"));
            walk.unknown(format!(
                "the peer of {} may be in {}",
                link.name,
                names.join(" or ")
            ))
        }
        Peer::NotVeth => walk.unknown(format!("{} is no veth", link.name)),
        Peer::Unknown(why) => walk.unknown(why),
    }
}

/// A frame comes out of a device of this or another namespace, which does not take what is too long for it
/// (`is_skb_forwardable()`).
pub(crate) fn arrive(cx: &Cx<'_>, mut walk: Walk, from: &str, ns: NsKey, dev: IfIndex) -> Ways {
    let to = cx.topology.netns(&ns).and_then(|netns| netns.link(dev));
    let short = to.filter(|link| walk.skb.packet.len > link.mtu.saturating_add(VLAN_HLEN));
    let Some(link) = short else {
        return hand_over(cx, walk, from, ns, dev);
    };
    walk.step(Step::new(
        StepKind::Transmit,
        format!("{from} → {}", link.name),
    ));
    // It is the receiving end that is too small, in its own namespace.
    walk.enter(cx, ns, dev);
    let evidence = Evidence::Link {
        dev: link.name.clone(),
        state: format!("mtu {}", link.mtu),
    };
    let text = format!(
        "{} bytes are more than the receiving end takes",
        walk.skb.packet.len
    );
    walk.step(Step::new(StepKind::Mtu, text).with(evidence));
    walk.end(Disposition::Dropped(DropReason::PktTooBig))
}

/// A frame comes out of a device, however long it is.
fn hand_over(cx: &Cx<'_>, mut walk: Walk, from: &str, ns: NsKey, dev: IfIndex) -> Ways {
    let to = cx.topology.netns(&ns).and_then(|netns| netns.link(dev));
    let name = to.map_or_else(|| format!("if{dev}"), |link| link.name.clone());
    walk.step(Step::new(StepKind::Transmit, format!("{from} → {name}")));
    walk.enter(cx, ns, dev);
    walk.then(Next::Receive(dev))
}

/// A macvlan whose mode is not followed, in words.
fn odd_macvlan(link: &Link) -> Option<String> {
    match link.kind {
        LinkKind::Macvlan(mode @ (MacvlanMode::Source | MacvlanMode::Other(_))) => Some(format!(
            "{} is a macvlan of mode {mode:?}, which is not modelled",
            link.name
        )),
        _ => None,
    }
}

/// A device got a frame: programs, then whoever owns the device, then the IP layer.
pub(crate) fn receive(cx: &mut Cx<'_>, mut walk: Walk, dev: IfIndex) -> Ways {
    let Some(link) = walk.link(cx, dev) else {
        let why = format!("device {dev} of {} was not read", walk.ns);
        cx.want_netns(&walk.ns);
        return walk.unknown(why);
    };
    if !link.up {
        let evidence = Evidence::Link {
            dev: link.name.clone(),
            state: "down".to_owned(),
        };
        walk.step(Step::new(StepKind::Receive, format!("{} is down", link.name)).with(evidence));
        return walk.end(Disposition::Dropped(DropReason::DevReady));
    }
    // XDP runs before the taps.
    if link.xdp {
        let why = format!("{} has an XDP program, which may do anything", link.name);
        return walk.unknown(why);
    }
    walk.tap(&link.name, false);
    if let Some(program) = link
        .tc
        .iter()
        .find(|program| program.starts_with("ingress") || program.contains("netkit"))
    {
        let why = format!("{} has {program}, which may do anything", link.name);
        return walk.unknown(why);
    }
    if hooked(cx, &walk.ns, Hook::Ingress) {
        let devices = Devices {
            iif: Some(dev),
            ..Devices::default()
        };
        return walk.hook(cx, Hook::Ingress, false, devices, move |cx, walk| {
            hand_on(cx, walk, dev)
        });
    }
    hand_on(cx, walk, dev)
}

/// Behind the ingress hook: whoever owns the device, then the IP layer.
fn hand_on(cx: &mut Cx<'_>, mut walk: Walk, dev: IfIndex) -> Ways {
    let Some(link) = walk.link(cx, dev) else {
        return walk.unknown("the device was not read");
    };
    if !walk.is_new_here(dev) {
        let text = format!("it was at {} before, unchanged", link.name);
        walk.step(Step::new(StepKind::Receive, text));
        return walk.end(Disposition::Loop);
    }
    if let Some(id) = walk.tags.last().copied() {
        return vlan::receive(cx, walk, link, id);
    }
    let master = link.master.and_then(|master| walk.link(cx, master));
    // A VRF's IP layer gets it behind PREROUTING.
    if let Some(master) = master.filter(|master| !vrf::is(master)) {
        return match &master.kind {
            LinkKind::Bridge(bridge) => super::bridge::receive(cx, walk, link, master, bridge),
            other => {
                let why = format!(
                    "{} belongs to {} ({}), which is not modelled",
                    link.name,
                    master.name,
                    other.name()
                );
                walk.unknown(why)
            }
        };
    }
    let macvlans = l2::macvlans(cx, &walk.ns, dev);
    for (ns, child) in macvlans {
        let topology = cx.topology;
        let found = topology.netns(&ns).and_then(|netns| netns.link(child));
        let to = walk.skb.packet.eth.map(|(_, dst)| dst);
        if let Some(found) = found.filter(|found| found.mac.is_some() && found.mac == to) {
            if let Some(why) = odd_macvlan(found) {
                return walk.unknown(why);
            }
            // It takes frames of any length (`macvlan_handle_frame()`).
            let name = link.name.clone();
            let mark = walk.skb.mark;
            let mut ways = hand_over(cx, walk, &name, ns, child);
            // Nothing is scrubbed on the way up, whatever the namespace.
            for (walk, _) in &mut ways {
                walk.skb.mark = mark;
            }
            return ways;
        }
    }
    let prerouted = std::mem::take(&mut walk.prerouted);
    walk.then(Next::Ip(dev, prerouted))
}

/// A macvlan sends to its siblings directly, and to everyone else through its parent.
fn macvlan(cx: &mut Cx<'_>, walk: Walk, link: &Link) -> Ways {
    let Some((ns, dev)) = l2::parent(cx, &walk.ns, link) else {
        let why = format!("the parent of {} was not read", link.name);
        return walk.unknown(why);
    };
    let LinkKind::Macvlan(mode) = link.kind else {
        return walk.unknown(format!("{} is no macvlan", link.name));
    };
    if let Some(why) = odd_macvlan(link) {
        return walk.unknown(why);
    }
    let to = walk.skb.packet.eth.map(|(_, dst)| dst);
    // Only bridge mode forwards between siblings, where both have it (`macvlan_queue_xmit()`).
    let siblings = match mode {
        MacvlanMode::Bridge => l2::macvlans(cx, &ns, dev),
        _ => Vec::new(),
    };
    for (sibling_ns, sibling) in siblings {
        let netns = cx.topology.netns(&sibling_ns);
        let found = netns.and_then(|netns| netns.link(sibling));
        let own = found.and_then(|link| link.mac);
        let takes = found.is_some_and(|link| link.kind == LinkKind::Macvlan(MacvlanMode::Bridge));
        if own.is_some() && own == to && takes {
            // It comes in by the parent first, as what comes from outside does: its programs and hooks see it
            // (`dev_forward_skb(vlan->lowerdev, skb)`).
            let name = link.name.clone();
            return arrive(cx, walk, &name, ns, dev);
        }
    }
    let topology = cx.topology;
    let Some(parent) = topology.netns(&ns).and_then(|netns| netns.link(dev)) else {
        cx.want_netns(&ns);
        return walk.unknown(format!("{ns}, below {}, was not read", link.name));
    };
    let mut walk = walk;
    walk.step(Step::new(
        StepKind::Transmit,
        format!("{} → {}", link.name, parent.name),
    ));
    walk.below(&ns);
    transmit(cx, walk, parent.index)
}
