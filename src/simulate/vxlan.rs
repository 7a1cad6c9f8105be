//! VXLAN: into an outer packet by the device's forwarding entries, and out again at the other end.
//!
//! Read first: `vxlan_xmit()`, `vxlan_xmit_one()`, `vxlan_rcv()`, drivers/net/vxlan/vxlan_core.c, v6.12.
//! Not modelled: multicast groups, metadata mode, ARP reduction, MDB.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::ip_tunnel::{ECN, outer_ecn};
use super::pmtu::{df, outer_ttl};
use super::socket::from_tunnel;
use super::walk::{Next, Walk, Ways};
use super::{Cx, fib, ttl, vrf};
use crate::model::MacAddr;
use crate::model::fdb::FdbEntry;
use crate::model::link::{Link, LinkKind, Vxlan};
use crate::model::packet::{Inner, L4, Packet, Wrap};
use crate::model::{IfIndex, NsKey};
use crate::trace::{Disposition, DropReason, Evidence, Step, StepKind};

/// Ethernet, VXLAN and UDP header around the inner packet; the outer IP header comes on top.
const HEADERS: u32 = 14 + 8 + 8;

/// XMIT_RECURSION_LIMIT (v6.12): a packet that goes out by more devices on top of each other is dropped.
const DEEPEST: usize = 8;

/// Puts a frame into an outer packet and sends that.
pub(crate) fn encapsulate(cx: &mut Cx<'_>, mut walk: Walk, link: &Link, device: &Vxlan) -> Ways {
    if device.collect_metadata {
        let why = format!(
            "{} takes its remotes from route metadata, which is not modelled",
            link.name
        );
        return walk.unknown(why);
    }
    if let Some(what) = device.unknown.first() {
        return walk.unknown(format!("{} has {what}, which is not followed", link.name));
    }
    if link.link_netnsid.is_some() {
        // The device was moved: outer packets leave by the namespace that it was made in.
        let why = format!(
            "{} sends its outer packets in the namespace that it was made in, which is not followed",
            link.name
        );
        return walk.unknown(why);
    }
    let Some((_, mac)) = walk.skb.packet.eth else {
        return walk.unknown(format!(
            "the link-layer address behind {} is not known",
            link.name
        ));
    };
    let Some(netns) = walk.netns(cx) else {
        return walk.unknown("the namespace was not read");
    };
    let fdb = match fib::section(cx, &walk.ns, &netns.fdb, "forwarding entries") {
        Ok(fdb) => fdb,
        Err(why) => return walk.unknown(why),
    };
    let mut entries = fdb.iter();
    let group = entries.find(|e| {
        e.own
            && e.link == link.index
            && (e.mac == mac || e.mac == MacAddr::ZERO)
            && e.nexthop.is_some()
    });
    if let Some(id) = group.and_then(|entry| entry.nexthop) {
        let why = format!(
            "{} takes its remotes for {mac} from nexthop object {id}, which is not followed",
            link.name
        );
        return walk.unknown(why);
    }
    let own = |wanted: MacAddr| {
        let of_device = move |e: &&FdbEntry| e.own && e.link == link.index && e.mac == wanted;
        fdb.iter()
            .filter(of_device)
            .filter(|entry| entry.dst.is_some())
    };
    let entries: Vec<&FdbEntry> = own(mac).collect();
    let entries = if entries.is_empty() {
        own(MacAddr::ZERO).collect()
    } else {
        entries
    };
    let (remote, evidence) = match entries.as_slice() {
        [entry] => (
            entry.dst,
            Evidence::Fdb {
                fdb: (*entry).clone(),
                dev: link.name.clone(),
            },
        ),
        [] => {
            if let Some(group) = device.group {
                let why = format!("the device's default remote is {group}");
                (Some(group), Evidence::Assumed { why })
            } else {
                let what = format!("a forwarding entry for {mac} on {}", link.name);
                walk.step(
                    Step::new(
                        StepKind::Encap,
                        format!("{} has no remote for {mac}", link.name),
                    )
                    .with(Evidence::Absent { what }),
                );
                return walk.end(Disposition::Dropped(DropReason::VxlanNoRemote));
            }
        }
        many => {
            let why = format!(
                "{} sends {mac} to {} remotes at once",
                link.name,
                many.len()
            );
            return walk.unknown(why);
        }
    };
    let Some(remote) = remote.filter(|remote| !remote.is_multicast()) else {
        return walk.unknown(format!(
            "{} floods to a multicast group, which is not followed",
            link.name
        ));
    };
    let entry = entries.first();
    let port = entry.and_then(|entry| entry.port).unwrap_or(device.port);
    let vni = entry.and_then(|entry| entry.vni).unwrap_or(device.vni);
    let lower = entry.and_then(|entry| entry.via).or(device.lower);
    // The kernel drops what a route leads back into the device that it comes from (`vxlan_xmit_one()`: "circular
    // route"), and what goes from tunnel to tunnel without end (`dev_xmit_recursion()`).
    let packet = &walk.skb.packet;
    let itself = packet.is_tunnel()
        && (packet.dst, packet.dport()) == (remote, Some(port))
        && packet
            .inner
            .as_ref()
            .is_some_and(|own| own.vni == Some(vni));
    if itself || packet.depth() >= DEEPEST {
        let text = format!(
            "{} puts the tunnel's own packets into the tunnel",
            link.name
        );
        walk.step(Step::new(StepKind::Encap, text).with(evidence));
        return walk.end(Disposition::Loop);
    }
    let inner = walk.skb.packet.clone();
    let outer = outer(cx, &walk.ns, device, remote, port, vni, inner);
    walk.wrap(link.index, outer);
    walk.step(
        Step::new(
            StepKind::Encap,
            format!("{} vni {vni} to {remote} udp port {port}", link.name),
        )
        .with(evidence),
    );
    walk.then(Next::LocalOut(lower))
}

fn outer(
    cx: &Cx<'_>,
    ns: &NsKey,
    device: &Vxlan,
    remote: IpAddr,
    port: u16,
    vni: u32,
    inner: Packet,
) -> Packet {
    let unspecified: IpAddr = match remote {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let header = if remote.is_ipv4() { 20 } else { 40 };
    let tos = if device.tos == 1 {
        inner.tos
    } else {
        device.tos
    };
    Packet {
        eth: None,
        src: device
            .local
            .filter(|local| local.is_ipv4() == remote.is_ipv4())
            .unwrap_or(unspecified),
        dst: remote,
        ttl: outer_ttl(device.ttl, device.ttl_inherit, inner.ttl).unwrap_or_else(|| ttl(cx, ns)),
        tos: tos & !ECN | outer_ecn(inner.tos),
        df: remote.is_ipv4() && df(device.df, &inner),
        len: inner.len + HEADERS + header,
        // The source port is a hash of the inner flow (`udp_flow_src_port()`).
        l4: L4::Udp {
            sport: None,
            dport: Some(port),
        },
        inner: Some(Box::new(Inner {
            vni: Some(vni),
            wrap: Wrap::Plain,
            packet: inner,
        })),
    }
}

/// Devices that are named where none takes a packet.
const OTHERS: usize = 3;

/// An outer packet reached this host: which device does it belong to?
pub(crate) fn decapsulate(cx: &mut Cx<'_>, mut walk: Walk) -> Ways {
    let Some(inner) = walk.skb.packet.inner.take() else {
        return walk.unknown("a tunnel packet without inside");
    };
    let port = walk.skb.packet.dport();
    // A device without any IPv6 address has an IPv4 socket (`vxlan_config_validate()`).
    let v6 = walk.skb.packet.dst.is_ipv6();
    let takes = |vxlan: &Vxlan| {
        let own = vxlan
            .local
            .or(vxlan.group)
            .is_some_and(|addr| addr.is_ipv6());
        Some(vxlan.port) == port && own == v6
    };
    let links = walk.netns(cx).and_then(|netns| netns.links.known());
    let tunnels = || {
        links
            .into_iter()
            .flatten()
            .filter_map(|link| match &link.kind {
                LinkKind::Vxlan(vxlan) if takes(vxlan) && link.up => Some((link, vxlan)),
                _ => None,
            })
    };
    // Of several sockets, one that is bound to the VRF comes first (`compute_score()`).
    let mut sockets = BTreeSet::new();
    for (_, vxlan) in tunnels() {
        let bound = walk
            .netns(cx)
            .and_then(|netns| vrf::bound_by(netns, vxlan.lower));
        match vrf::tunnel_takes(cx, &walk, bound) {
            Ok(true) => drop(sockets.insert(bound)),
            Ok(false) => {}
            Err(why) => return walk.unknown(why),
        }
    }
    let socket = sockets.pop_last();
    if socket.is_none() && tunnels().next().is_some() {
        return vrf::no_tunnel(walk);
    }
    let netns = walk.netns(cx);
    let tunnels = || {
        let by = |vxlan: &Vxlan| netns.and_then(|netns| vrf::bound_by(netns, vxlan.lower));
        tunnels().filter(move |(_, vxlan)| Some(by(vxlan)) == socket)
    };
    let number = port.map_or_else(|| "?".to_owned(), |port| port.to_string());
    let vni = inner.vni.unwrap_or_default();
    let found = tunnels().find(|(_, vxlan)| vxlan.vni == vni);
    if found.is_none()
        && let Some((link, vxlan)) = links
            .into_iter()
            .flatten()
            .find_map(|link| match &link.kind {
                LinkKind::Vxlan(vxlan) if vxlan.vni == vni => Some((link, vxlan)),
                _ => None,
            })
    {
        // The network is here, but its device does not take this packet.
        let (reason, state) = if link.up {
            let state = format!(
                "vni {vni} dstport {}, the packet is for port {number}",
                vxlan.port
            );
            (DropReason::VxlanVniNotFound, state)
        } else {
            (DropReason::DevReady, "down".to_owned())
        };
        let text = format!("{} does not take it", link.name);
        let dev = link.name.clone();
        walk.step(Step::new(StepKind::Decap, text).with(Evidence::Link { dev, state }));
        return walk.end(Disposition::Dropped(reason));
    }
    // What is there in its place.
    let others: Vec<Evidence> = links
        .into_iter()
        .flatten()
        .filter_map(|link| match &link.kind {
            LinkKind::Vxlan(vxlan) => Some(Evidence::Link {
                dev: link.name.clone(),
                state: format!("vni {} dstport {}", vxlan.vni, vxlan.port),
            }),
            _ => None,
        })
        .take(OTHERS)
        .collect();
    let without = |what: String, text: &str| {
        let step = Step::new(StepKind::Decap, text).with(Evidence::Absent { what });
        others.iter().cloned().fold(step, Step::with)
    };
    if tunnels().next().is_none() {
        let what = format!("a VXLAN device that is up and takes udp port {number}");
        walk.step(without(what, "no tunnel here"));
        // The other node may be told; who sent the packet inside is not.
        return walk.end(Disposition::Dropped(DropReason::VxlanVniNotFound));
    }
    if let Some((link, own)) = found
        && let Some(what) = own.unknown.first()
    {
        return walk.unknown(format!("{} has {what}, which is not followed", link.name));
    }
    let Some((name, index)) = found.map(|(link, _)| (link.name.clone(), link.index)) else {
        let what = format!("a VXLAN device with vni {vni} on udp port {number}");
        walk.step(without(what, "no such network here"));
        return walk.end(Disposition::Dropped(DropReason::VxlanVniNotFound));
    };
    let evidence = Evidence::Link {
        dev: name.clone(),
        state: format!("vni {vni} dstport {number}"),
    };
    let text = format!("out of the tunnel at {name}");
    let mut step = Step::new(StepKind::Decap, text).with(evidence);
    if socket.flatten().is_some() {
        let why = format!(
            "the device below {name} was in its VRF before {name} was set up, so that its socket is bound to that"
        );
        step = step.with(Evidence::Assumed { why });
    }
    walk.step(step);
    let index: IfIndex = index;
    from_tunnel(walk, cx, index, inner.packet)
}
