//! Geneve with one remote: frames in UDP, and out again at the other end.
//!
//! Read first: `geneve_xmit_skb()`, `geneve_lookup_skb()`, drivers/net/geneve.c, v6.12. Not modelled: remotes from route
//! metadata (Cilium, OVN), options.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ip_tunnel::{ECN, outer_ecn};
use super::pmtu::{df, outer_ttl};
use super::socket::from_tunnel;
use super::walk::{Next, Walk, Ways};
use super::{Cx, ttl};
use crate::model::link::{Geneve, Link, LinkKind};
use crate::model::packet::{Inner, L4, Packet, Wrap};
use crate::trace::{Disposition, DropReason, Evidence, Step, StepKind};

/// Ethernet, Geneve and UDP header around the inner packet; the outer IP header comes on top.
const HEADERS: u32 = 14 + 8 + 8;
/// Tunnels inside each other that are followed.
const DEPTH: usize = 4;

/// Puts a frame into an outer packet and sends that.
pub(crate) fn encapsulate(cx: &mut Cx<'_>, mut walk: Walk, link: &Link, device: &Geneve) -> Ways {
    if let Some(what) = device.unknown.first() {
        return walk.unknown(format!("{} has {what}, which is not followed", link.name));
    }
    if link.link_netnsid.is_some() {
        let why = format!(
            "{} sends its outer packets in the namespace that it was made in, which is not followed",
            link.name
        );
        return walk.unknown(why);
    }
    if walk.skb.packet.eth.is_none() {
        let why = format!("the link-layer address behind {} is not known", link.name);
        return walk.unknown(why);
    }
    let Some(remote) = device.remote.filter(|remote| !remote.is_multicast()) else {
        return walk.unknown(format!("{} has no remote of its own", link.name));
    };
    let inner = walk.skb.packet.clone();
    if inner.depth() >= DEPTH {
        return walk.unknown(format!("more than {DEPTH} tunnels are inside each other"));
    }
    let (src, header): (IpAddr, u32) = match remote {
        IpAddr::V4(_) => (Ipv4Addr::UNSPECIFIED.into(), 20),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED.into(), 40),
    };
    let tos = if device.tos == 1 {
        inner.tos
    } else {
        device.tos
    };
    let outer = Packet {
        eth: None,
        src,
        dst: remote,
        ttl: outer_ttl(device.ttl, device.ttl_inherit, inner.ttl)
            .unwrap_or_else(|| ttl(cx, &walk.ns)),
        tos: tos & !ECN | outer_ecn(inner.tos),
        df: remote.is_ipv4() && df(device.df, &inner),
        len: inner.len.saturating_add(HEADERS + header),
        // The source port is a hash of the inner flow (`udp_flow_src_port()`).
        l4: L4::Udp {
            sport: None,
            dport: Some(device.port),
        },
        inner: Some(Box::new(Inner {
            vni: Some(device.vni),
            wrap: Wrap::Geneve,
            packet: inner,
        })),
    };
    walk.wrap(link.index, outer);
    let text = format!(
        "{} vni {} to {remote} udp port {}",
        link.name, device.vni, device.port
    );
    walk.step(Step::new(StepKind::Encap, text).with(of(link, device)));
    walk.then(Next::LocalOut(None))
}

fn of(link: &Link, device: &Geneve) -> Evidence {
    let remote = device
        .remote
        .map_or(String::new(), |remote| format!(" remote {remote}"));
    Evidence::Link {
        dev: link.name.clone(),
        state: format!("vni {} dstport {}{remote}", device.vni, device.port),
    }
}

/// An outer packet reached this host: the device with its port, network and sender.
pub(crate) fn decapsulate(cx: &mut Cx<'_>, mut walk: Walk) -> Ways {
    let outer = walk.skb.packet.clone();
    let Some(inner) = outer.inner.as_deref() else {
        return walk.unknown("a tunnel packet without inside");
    };
    let Some(links) = walk.netns(cx).and_then(|netns| netns.links.known()) else {
        return walk.unknown("the devices were not read");
    };
    let all = || {
        links.iter().filter_map(|link| match &link.kind {
            LinkKind::Geneve(own) if link.link_netnsid.is_none() => Some((link, own)),
            _ => None,
        })
    };
    let devices = || all().filter(|(_, own)| Some(own.port) == outer.dport());
    let takes = |own: &Geneve| Some(own.vni) == inner.vni && own.remote == Some(outer.src);
    if let Some((link, own)) =
        devices().find(|(link, own)| link.up && own.unknown.is_empty() && takes(own))
    {
        let text = format!("out of the tunnel at {}", link.name);
        walk.step(Step::new(StepKind::Decap, text).with(of(link, own)));
        return from_tunnel(walk, cx, link.index, inner.packet.clone());
    }
    if let Some((link, own)) = devices().find(|(_, own)| !own.unknown.is_empty()) {
        let what = own.unknown.first().cloned().unwrap_or_default();
        return walk.unknown(format!("{} has {what}, which is not followed", link.name));
    }
    let vni = inner.vni.unwrap_or_default();
    let step = match devices().find(|(_, own)| Some(own.vni) == inner.vni) {
        Some((link, _)) if !link.up => {
            let (dev, state) = (link.name.clone(), "down".to_owned());
            let text = format!("{dev} does not take it");
            Step::new(StepKind::Decap, text).with(Evidence::Link { dev, state })
        }
        Some((link, own)) => {
            let text = format!("{} takes none from {}", link.name, outer.src);
            Step::new(StepKind::Decap, text).with(of(link, own))
        }
        None => {
            if let Some((link, own)) = all().find(|(_, own)| Some(own.vni) == inner.vni) {
                let port = own.port;
                let text = format!(
                    "{} does not take it: it listens on udp port {port}",
                    link.name
                );
                Step::new(StepKind::Decap, text).with(of(link, own))
            } else {
                let what = format!("a Geneve device with vni {vni}");
                Step::new(StepKind::Decap, "no such network here").with(Evidence::Absent { what })
            }
        }
    };
    walk.step(step);
    walk.end(Disposition::Dropped(DropReason::VxlanVniNotFound))
}
