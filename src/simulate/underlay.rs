//! The way between nodes, which no kernel here can tell: switches, routers, a cloud's route table.
//!
//! The walk goes on at the node that the frame or the packet is for, and the step says that this is
//! assumed, and why. A packet for nobody known leaves the cluster.

use std::net::IpAddr;

use super::device::VLAN_HLEN;
use super::fib::{FibAnswer, FibKey, lookup};
use super::peer::{Peer, peer};
use super::skb::Inherited;
use super::walk::{Next, Walk, Ways};
use super::{Cx, vlan};
use crate::model::link::{Link, LinkKind};
use crate::model::netns::NetNs;
use crate::model::want::{Depth, NsTarget, Want};
use crate::model::{IfIndex, MacAddr, NsKey};
use crate::trace::{Disposition, DropReason, Evidence, Step, StepKind};

/// Whether a device leads out of what was read.
pub(crate) fn faces_out(cx: &Cx<'_>, ns: &NsKey, link: &Link) -> bool {
    match link.kind {
        LinkKind::Vlan(_) => {
            vlan::parent(cx, ns, link).is_some_and(|(ns, link)| faces_out(cx, &ns, link))
        }
        LinkKind::Device => !link.loopback,
        LinkKind::Veth => matches!(peer(cx.topology, ns, link), Peer::OutsideView(_)),
        _ => false,
    }
}

/// All devices that lead out, with their namespaces.
fn outward<'t>(cx: &Cx<'t>) -> Vec<Station<'t>> {
    let mut found = Vec::new();
    for (key, netns) in cx.topology.all() {
        for link in netns.links.known().map(Vec::as_slice).unwrap_or_default() {
            if link.up && faces_out(cx, &key, link) {
                found.push((key.clone(), netns, link));
            }
        }
    }
    found
}

/// What must be read before "nobody has it" can be said: devices and addresses of every namespace that
/// may lead out.
pub(crate) fn blind(cx: &mut Cx<'_>) -> Option<String> {
    let mut missing = None;
    let topology = cx.topology;
    for (key, netns) in topology.all() {
        let links = super::fib::section(cx, &key, &netns.links, "devices").err();
        let addrs = super::fib::section(cx, &key, &netns.addrs, "addresses").err();
        // A veth leads out only where no namespace of the node is its peer's.
        let nsids = super::fib::section(cx, &key, &netns.nsids, "namespace ids").err();
        missing = missing.or(links).or(addrs).or(nsids);
    }
    missing
}

/// Whether a device, or the bridge it is a port of, has an address.
fn holds(netns: &NetNs, link: &Link, addr: IpAddr) -> bool {
    let addrs = netns.addrs.known().map(Vec::as_slice).unwrap_or_default();
    addrs
        .iter()
        .any(|own| own.local == addr && (own.link == link.index || Some(own.link) == link.master))
}

/// Who, on another node, has an address on a device that leads out, and its link-layer address.
pub(crate) fn owner_on_link(cx: &Cx<'_>, from: &NsKey, addr: IpAddr) -> Option<(NsKey, MacAddr)> {
    outward(cx)
        .into_iter()
        .filter(|(key, ..)| key != from)
        .find_map(|(key, netns, link)| {
            let upper = link
                .master
                .and_then(|master| netns.link(master))
                .unwrap_or(link);
            holds(netns, link, addr).then_some((key, upper.mac?))
        })
}

/// A device that leads out, and where it is.
type Station<'t> = (NsKey, &'t NetNs, &'t Link);

/// The VLAN that a device is of.
fn tag(link: &Link) -> Option<u16> {
    match link.kind {
        LinkKind::Vlan(id) => Some(id),
        _ => None,
    }
}

/// The entry by which the frame got its address, where it is one that nobody answered for.
fn set_by_hand(walk: &Walk) -> Option<&Evidence> {
    let steps = walk.hops.last()?.steps.iter().rev();
    let mut entries = steps
        .flat_map(|step| &step.evidence)
        .filter_map(|one| match one {
            Evidence::Neigh { neigh, .. } => Some((one, neigh.state)),
            _ => None,
        });
    let (entry, state) = entries.next()?;
    state.is_fixed().then_some(entry)
}

/// A frame leaves what was read.
pub(crate) fn cross(cx: &mut Cx<'_>, mut walk: Walk, link: &Link) -> Ways {
    let dst = walk.skb.packet.dst;
    let next_hop = walk.next_hop.unwrap_or(dst);
    let unread = blind(cx);
    let stations = outward(cx);
    let vlan = walk.tags.last().copied();
    if walk.tags.len() > 1 {
        let why = format!(
            "what is beyond {} does with more than one VLAN tag is not known",
            link.name
        );
        return walk.unknown(why);
    }
    // A VLAN's device mostly has the address of the one below.
    let others = || {
        let other = |(key, _, theirs): &&Station<'_>| *key != walk.ns && tag(theirs) == vlan;
        stations.iter().filter(other)
    };
    let has = |(_, netns, link): &&Station<'_>, mac: MacAddr| {
        let upper = link.master.and_then(|master| netns.link(master));
        link.mac == Some(mac) || upper.is_some_and(|upper| upper.mac == Some(mac))
    };
    let named = |mac: MacAddr| others().find(|station| has(station, mac));
    let owner = others().find(|(_, netns, link)| holds(netns, link, next_hop));
    let mac = walk.skb.packet.eth.map(|(_, dst)| dst);
    if let Some(mac) = mac.filter(|mac| named(*mac).is_none())
        && let Some((key, _, theirs)) = stations
            .iter()
            .filter(|(key, ..)| *key != walk.ns)
            .find(|station| has(station, mac))
    {
        let why = format!(
            "{} and {} of {} are of different VLANs: what lies between can't be read",
            link.name, theirs.name, key.node
        );
        return walk.unknown(why);
    }
    let arrival = match (mac.and_then(named), owner) {
        (Some((key, _, device)), _) => {
            let why = format!(
                "its address {} is that of {} on {}",
                display(mac),
                device.name,
                key.node
            );
            Some((key.clone(), device.index, why))
        }
        (None, Some((key, netns, device))) => {
            if let Some(why) = unread {
                return walk.unknown(why);
            }
            let upper = device.master.and_then(|m| netns.link(m)).unwrap_or(device);
            if let Some(mac) = mac {
                let Some(entry) = set_by_hand(&walk).cloned() else {
                    return walk.unknown(format!(
                        "the frame leaves by {} for {mac}, which no device that was read has, though {next_hop} is {} of {}, which has {}: whether a router or ARP proxy between the nodes passes it on, or the neighbour entry is stale, can't be read",
                        link.name,
                        device.name,
                        key.node,
                        display(upper.mac)
                    ));
                };
                let (name, node) = (device.name.clone(), key.node.clone());
                let state = format!("address {}", display(upper.mac));
                let text = format!(
                    "the frame is for {mac}, but {next_hop} is {name} of {node}, which has {}",
                    display(upper.mac)
                );
                let evidence = Evidence::Link { dev: name, state };
                let step = Step::new(StepKind::Underlay, text).with(evidence);
                walk.step(step.with(entry));
                return walk.end(Disposition::Dropped(DropReason::Otherhost));
            }
            let why = format!(
                "{next_hop} is an address of {} on {}",
                device.name, key.node
            );
            Some((key.clone(), device.index, why))
        }
        (None, None) => match by_destination(cx, &walk, dst) {
            Target::At(key, index, why) => Some((key, index, why)),
            Target::Unread(key, why) => {
                cx.want_netns(&key);
                return walk.unknown(why);
            }
            Target::NoHelper(why) => return walk.unknown(why),
            Target::NoWay(step) => {
                walk.step(*step);
                return walk.end(Disposition::Dropped(DropReason::NoRouteToNode));
            }
            Target::Nobody => match unread {
                Some(why) => return walk.unknown(why),
                None => None,
            },
        },
    };
    let Some((ns, dev, why)) = arrival else {
        if walk.skb.packet.is_tunnel()
            && let Some(inner) = &walk.skb.packet.inner
        {
            let inside = inner.packet.eth.map(|(_, dst)| dst);
            return no_remote(cx, walk, inside);
        }
        if let Some(owner) = owned(cx, dst) {
            let why = format!(
                "the packet leaves by {} for {dst}, which is {owner}; what is beyond can't be read, and nothing here leads there",
                link.name
            );
            let what = Evidence::Unreadable { what: why.clone() };
            walk.step(Step::new(StepKind::Underlay, "can't be known").with(what));
            return walk.end(Disposition::Inconclusive(vec![why]));
        }
        if let Some(what) = cx.topology.unlisted.first() {
            return walk.unknown(format!("whose {dst} is: {what}"));
        }
        let text = format!("leaves by {} for {dst}, which no node here has", link.name);
        let mut step = Step::new(StepKind::Underlay, text);
        let src = walk.skb.packet.src;
        if is_pods(cx, src) {
            let why = format!(
                "it leaves with a pod's address as its source, since no rule masquerades it: answers come back only if what is outside has a route to {src}"
            );
            step = step.with(Evidence::Assumed { why });
        }
        walk.step(step);
        return walk.end(Disposition::LeavesCluster);
    };
    let own = own_mac(cx, &ns, dev);
    // It comes in by the device below, with the tag of that link: a router on the way puts another frame around it.
    walk.tags.clear();
    let device = cx.topology.netns(&ns).and_then(|netns| netns.link(dev));
    let (ns, dev) = match device.and_then(|device| Some((device, tag(device)?))) {
        Some((device, id)) => {
            let Some((below, parent)) = vlan::parent(cx, &ns, device) else {
                let why = format!(
                    "the device below {} of {} was not read",
                    device.name, ns.node
                );
                return walk.unknown(why);
            };
            walk.tags.push(id);
            (below, parent.index)
        }
        None => (ns, dev),
    };
    let there = cx.topology.netns(&ns).and_then(|netns| netns.link(dev));
    let name = there.map_or_else(|| format!("if{dev}"), |link| link.name.clone());
    let text = format!("{} → {} {name}", link.name, ns.node);
    let why = format!("the way between the nodes can't be read; {why}");
    walk.step(Step::new(StepKind::Underlay, text).with(Evidence::Assumed { why }));
    // A veth counts a VLAN tag as room (`is_skb_forwardable()`); what a NIC does with larger frames is its own affair.
    let len = walk.skb.packet.len;
    if let Some(there) = there
        && len > there.mtu.saturating_add(VLAN_HLEN)
    {
        if there.kind == LinkKind::Veth {
            let text = format!("{len} bytes are more than {name} of {} takes", ns.node);
            let state = format!("mtu {}", there.mtu);
            let evidence = Evidence::Link { dev: name, state };
            walk.step(Step::new(StepKind::Mtu, text).with(evidence));
            return walk.end(Disposition::Dropped(DropReason::PktTooBig));
        }
        return walk.unknown(format!(
            "{len} bytes are more than the mtu {} of {name} on {}: whether it takes them is up to its driver",
            there.mtu, ns.node
        ));
    }
    walk.enter(cx, ns, dev);
    // A device between nodes may leave the sum as it is, as virtual ones do.
    (walk.skb.inherited, walk.skb.partial) = (Inherited::Own, None);
    // A router on the way puts its own frame around it.
    if mac.is_none() || mac != own {
        walk.skb.packet.eth = None;
    }
    walk.then(Next::Receive(dev))
}

/// Whether an address is one of the cluster's pods, by what Kubernetes says.
fn is_pods(cx: &Cx<'_>, addr: IpAddr) -> bool {
    cx.topology.hints.values().any(|hint| {
        !hint.addresses.contains(&addr)
            && (hint.pod_ips.contains(&addr)
                || hint.pod_cidrs.iter().any(|cidr| cidr.contains(addr)))
    })
}

/// Whose an address is, where it is one of the cluster's or of a namespace that was read.
fn owned(cx: &Cx<'_>, addr: IpAddr) -> Option<String> {
    let topology = cx.topology;
    if topology.service_ips.contains(&addr) {
        return Some("a Service's (no rule on the way translates it)".to_owned());
    }
    let in_view = topology.all().find(|(_, netns)| {
        let addrs = netns.addrs.known().map(Vec::as_slice).unwrap_or_default();
        addrs.iter().any(|own| own.local == addr)
    });
    if let Some((key, _)) = in_view {
        return Some(format!("an address of {key}"));
    }
    let hinted = topology.hints.iter().find(|(_, hint)| {
        hint.addresses.contains(&addr)
            || hint.pod_ips.contains(&addr)
            || hint.pod_cidrs.iter().any(|cidr| cidr.contains(addr))
    });
    hinted.map(|(node, _)| format!("of node {node} by what Kubernetes says"))
}

fn own_mac(cx: &Cx<'_>, ns: &NsKey, dev: IfIndex) -> Option<MacAddr> {
    let netns = cx.topology.netns(ns)?;
    let link = netns.link(dev)?;
    let upper = link.master.and_then(|master| netns.link(master));
    upper.unwrap_or(link).mac
}

fn display(mac: Option<MacAddr>) -> String {
    mac.map_or_else(|| "none".to_owned(), |mac| mac.to_string())
}

enum Target {
    At(NsKey, IfIndex, String),
    Unread(NsKey, String),
    NoHelper(String),
    NoWay(Box<Step>),
    Nobody,
}

/// A tunnel packet for an address that no node has.
fn no_remote(cx: &Cx<'_>, mut walk: Walk, inside: Option<MacAddr>) -> Ways {
    let remote = walk.skb.packet.dst;
    let meant = cx.topology.all().find_map(|(key, netns)| {
        let links = netns.links.known()?.iter();
        let link = links
            .clone()
            .find(|link| inside.is_some() && link.mac == inside)?;
        match &link.kind {
            LinkKind::Vxlan(vxlan) => Some((key, link.name.clone(), vxlan.local?)),
            _ => None,
        }
    });
    let Some((key, dev, local)) = meant.filter(|(.., local)| *local != remote) else {
        return walk.unknown(format!(
            "the tunnel's remote {remote} is no node that was read"
        ));
    };
    let text = format!(
        "sent to {remote}, which no node here has; the frame inside is for {dev} of {}, which is at {local}",
        key.node
    );
    let state = format!(
        "address {}, local {local}, on {}",
        display(inside),
        key.node
    );
    walk.step(Step::new(StepKind::Underlay, text).with(Evidence::Link { dev, state }));
    walk.end(Disposition::Dropped(DropReason::VxlanNoRemote))
}

/// Whether a pod's packet that follows a general route to a gateway is lost: the nodes have routes of
/// their own to each other's pods, and this one lacks it.
///
/// That they do shows in the other node's kernel: its way back leads into a tunnel, or to this node's
/// address. Where it leads to a gateway too, gateways are how this network works.
fn lacks_route(cx: &mut Cx<'_>, walk: &Walk, dst: IpAddr, node: &str) -> Option<Step> {
    let topology = cx.topology;
    let own = topology.hints.get(&walk.ns.node)?;
    let same = |addr: &IpAddr| addr.is_ipv4() == dst.is_ipv4();
    let from_cidr = || own.pod_cidrs.iter().map(|cidr| cidr.addr());
    let pod = own.pod_ips.iter().copied().chain(from_cidr()).find(same)?;
    let other = topology.host(node)?;
    let FibAnswer::Found(found) = lookup(cx, &other, &FibKey::to(pod)) else {
        return None;
    };
    let hop = found.hops.first().map(|(_, hop)| hop.clone())?;
    let link = topology.netns(&other)?.link(hop.link?)?;
    let tunnel = matches!(
        link.kind,
        LinkKind::Vxlan(_) | LinkKind::IpTunnel(_) | LinkKind::Wireguard(_) | LinkKind::Geneve(_)
    );
    let direct = hop.via.is_some_and(|via| own.addresses.contains(&via));
    if !(tunnel || direct) {
        return None;
    }
    let gateway = walk
        .next_hop
        .map_or_else(String::new, |via| format!(" {via}"));
    let way = hop.via.map_or_else(
        || link.name.clone(),
        |via| format!("{via} dev {}", link.name),
    );
    let text = format!(
        "handed to gateway{gateway}, though {node} answers pods of {} by {way}: this gateway is not how {} reaches the pods of {node}",
        walk.ns.node, walk.ns.node
    );
    let what = format!("a route to {dst} that leads to {node}");
    let devs = vec![link.name.clone()];
    let why = format!("what the gateway{gateway} does with it can't be read; taken as lost");
    Some(
        Step::new(StepKind::Underlay, text)
            .with(Evidence::Absent { what })
            .with(Evidence::Route {
                route: found.route.clone(),
                devs,
            })
            .with(Evidence::Assumed { why }),
    )
}

/// The gateway is unknown: whose is the destination?
fn by_destination(cx: &mut Cx<'_>, walk: &Walk, dst: IpAddr) -> Target {
    let outward = outward(cx);
    let direct = outward.iter().find(|(key, netns, _)| {
        let addrs = netns.addrs.known().map(Vec::as_slice).unwrap_or_default();
        *key != walk.ns && addrs.iter().any(|own| own.local == dst)
    });
    if let Some((key, _, link)) = direct {
        return Target::At(
            key.clone(),
            link.index,
            format!("{dst} is an address of {}", key.node),
        );
    }
    let topology = cx.topology;
    let hints = &topology.hints;
    let owner = hints
        .iter()
        .find(|(_, hint)| hint.addresses.contains(&dst) || hint.pod_ips.contains(&dst))
        .or_else(|| {
            hints
                .iter()
                .find(|(_, hint)| hint.pod_cidrs.iter().any(|cidr| cidr.contains(dst)))
        });
    let Some((node, hint)) = owner.filter(|(node, _)| **node != walk.ns.node) else {
        return Target::Nobody;
    };
    if !hint.reachable {
        return Target::NoHelper(format!("{dst} belongs to node {node}, which was not read"));
    }
    if !hint.addresses.contains(&dst)
        && let Some(step) = lacks_route(cx, walk, dst, node)
    {
        return Target::NoWay(Box::new(step));
    }
    let why = format!("{dst} belongs to {node} by what Kubernetes says");
    let Some(host) = cx.topology.host(node) else {
        let want = Want::NetNs {
            target: NsTarget::Host,
            depth: Depth::Likely,
        };
        cx.want(node, want);
        return Target::NoHelper(format!(
            "{dst} belongs to node {node}, whose own namespace was not read"
        ));
    };
    let with_address = outward.iter().find(|(key, netns, link)| {
        *key == host && hint.addresses.iter().any(|addr| holds(netns, link, *addr))
    });
    match with_address.or_else(|| outward.iter().find(|(key, ..)| *key == host)) {
        Some((key, _, link)) => Target::At(key.clone(), link.index, why),
        None => Target::Unread(host, format!("node {node} has no device that leads out")),
    }
}
