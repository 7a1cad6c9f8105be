//! Tunnels of IP packets in IP packets: `ipip` (Calico's), `sit` and `gre`, over IPv4.
//!
//! Read first: `ip_tunnel_xmit()`, `ip_tunnel_lookup()`, `ip_tunnel_rcv()` (net/ipv4/ip_tunnel.c),
//! `ipip_tunnel_xmit()`, `ipip6_tunnel_xmit()`, `ipgre_rcv()`, v6.12. Not modelled: path MTUs of outer routes.

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr};

use super::Cx;
use super::skb::CtRef;
use super::socket::from_tunnel;
use super::walk::{Next, Walk, Ways};
use crate::model::IfIndex;
use crate::model::link::{IpTunnel, IpTunnelKind, Link, LinkKind};
use crate::model::packet::{Inner, L4, Packet};
use crate::trace::{Disposition, DropReason, Evidence, Step, StepKind};

/// An IPv4 header without options.
const IPV4: u32 = 20;
/// A GRE header without options.
const GRE: u32 = 4;
/// INET_ECN_MASK, and its values that are named here.
const ECN: u8 = 0x03;
const ECN_CE: u8 = 0x03;
const ECN_ECT_0: u8 = 0x02;
/// Tunnels inside each other that are followed.
const DEPTH: usize = 4;

/// Puts a packet into an outer one and sends that.
pub(crate) fn encapsulate(cx: &mut Cx<'_>, mut walk: Walk, link: &Link, tunnel: &IpTunnel) -> Ways {
    if let Some(what) = tunnel.unknown.first() {
        let why = format!("{} has {what}, which is not followed", link.name);
        return walk.unknown(why);
    }
    if link.link_netnsid.is_some() {
        let why = format!(
            "{} sends its outer packets in the namespace that it was made in, which is not followed",
            link.name
        );
        return walk.unknown(why);
    }
    let inner = walk.skb.packet.clone();
    let fits = match tunnel.kind {
        IpTunnelKind::Ipip => inner.src.is_ipv4(),
        IpTunnelKind::Sit => inner.src.is_ipv6(),
        IpTunnelKind::Gre => true,
    };
    if !fits {
        let state = format!("kind {}", tunnel.kind.name());
        let dev = link.name.clone();
        let text = "it carries the other version of IP";
        walk.step(Step::new(StepKind::Encap, text).with(Evidence::Link { dev, state }));
        return walk.end(Disposition::Dropped(DropReason::NotSpecified));
    }
    let next_hop = walk.next_hop.unwrap_or(inner.dst);
    let (remote, evidence) = match tunnel.remote {
        Some(remote) => {
            let state = format!("{} remote {remote}", tunnel.kind.name());
            let dev = link.name.clone();
            (remote, Evidence::Link { dev, state })
        }
        // `rt_nexthop(skb_rtable(skb), inner_iph->daddr)`
        None if next_hop.is_ipv4() && inner.src.is_ipv4() => {
            let why = format!(
                "{} has no remote: the next hop {next_hop} is one",
                link.name
            );
            (next_hop, Evidence::Assumed { why })
        }
        None => {
            let why = format!(
                "{} takes its remotes from IPv6 addresses, which is not followed",
                link.name
            );
            return walk.unknown(why);
        }
    };
    if remote.is_multicast() {
        let why = format!(
            "{} sends to a multicast group, which is not followed",
            link.name
        );
        return walk.unknown(why);
    }
    if let Err(ways) = lookups_mark(cx, &walk, link) {
        return ways;
    }
    let (depth, same) = nested(&inner, remote, tunnel.kind);
    if same {
        let text = format!("the way to {remote} leads through {} itself", link.name);
        walk.step(Step::new(StepKind::Encap, text).with(evidence));
        return walk.end(Disposition::Dropped(DropReason::NotSpecified));
    }
    if depth >= DEPTH {
        let why = format!("more than {DEPTH} tunnels are inside each other");
        return walk.unknown(why);
    }
    let kind = tunnel.kind.name();
    walk.skb.packet = outer(tunnel, remote, inner);
    walk.skb.ct = CtRef::None;
    walk.skb.local = true;
    let text = format!("{kind} {} to {remote}", link.name);
    walk.step(Step::new(StepKind::Encap, text).with(evidence));
    walk.then(Next::LocalOut(tunnel.lower))
}

/// The outer route is looked up with the device's own mark (0), not the packet's, which stays for the rules.
fn lookups_mark(cx: &Cx<'_>, walk: &Walk, link: &Link) -> Result<(), Ways> {
    let rules = walk.netns(cx).and_then(|netns| netns.rules.known());
    let mut by_mark = rules.into_iter().flatten().filter(|rule| !rule.v6);
    if walk.skb.mark == Some(0) || !by_mark.any(|rule| rule.fwmark.is_some()) {
        return Ok(());
    }
    let why = format!(
        "policy rules ask for marks, and how {} looks up marked packets is not followed",
        link.name
    );
    Err(walk.clone().unknown(why))
}

/// How many tunnels are around the packet, and whether one is this very one.
fn nested(packet: &Packet, remote: IpAddr, kind: IpTunnelKind) -> (usize, bool) {
    let (mut depth, mut same) = (0, false);
    let mut next = Some(packet);
    while let Some(packet) = next {
        next = packet.inner.as_ref().map(|inner| &inner.packet);
        if next.is_some() {
            depth += 1;
            same |= packet.dst == remote && packet.l4 == L4::Other(kind.protocol());
        }
    }
    (depth, same)
}

fn outer(tunnel: &IpTunnel, remote: IpAddr, inner: Packet) -> Packet {
    let inherits = tunnel.tos & 1 != 0;
    let tos = if inherits { inner.tos } else { tunnel.tos };
    // `INET_ECN_encapsulate()`
    let ecn = match inner.tos & ECN {
        ECN_CE => ECN_ECT_0,
        other => other,
    };
    let header = match tunnel.kind {
        IpTunnelKind::Gre => IPV4 + GRE,
        IpTunnelKind::Ipip | IpTunnelKind::Sit => IPV4,
    };
    Packet {
        eth: None,
        src: tunnel.local.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        dst: remote,
        ttl: match tunnel.ttl {
            0 => inner.ttl,
            ttl => ttl,
        },
        tos: tos & !ECN | ecn,
        df: tunnel.pmtudisc || inner.src.is_ipv4() && inner.df,
        len: inner.len.saturating_add(header),
        l4: L4::Other(tunnel.kind.protocol()),
        inner: Some(Box::new(Inner {
            vni: None,
            packet: Packet { eth: None, ..inner },
        })),
    }
}

/// An outer packet came in by `dev` and is for this host: which device does it belong to?
pub(crate) fn decapsulate(cx: &mut Cx<'_>, mut walk: Walk, dev: IfIndex) -> Ways {
    let packet = &walk.skb.packet;
    let (src, dst, protocol) = (packet.src, packet.dst, packet.protocol());
    let Some(links) = walk.netns(cx).and_then(|netns| netns.links.known()) else {
        return walk.unknown("the devices were not read");
    };
    let of_kind = |link: &'_ Link| match &link.kind {
        LinkKind::IpTunnel(tunnel)
            if tunnel.kind.protocol() == protocol && link.link_netnsid.is_none() =>
        {
            Some(tunnel.clone())
        }
        _ => None,
    };
    // `ip_tunnel_lookup()`: the more it says of the packet, the better; then the one that is bound to the device.
    let rank = |tunnel: &IpTunnel| {
        let local = tunnel.local.map(|local| local == dst);
        let remote = tunnel.remote.map(|remote| remote == src);
        let bound = tunnel.lower.map(|lower| lower == dev);
        let fits = [local, remote, bound]
            .iter()
            .all(|said| *said != Some(false));
        fits.then_some((remote.is_some(), local.is_some(), bound.is_some()))
    };
    let mut fitting: Vec<_> = links
        .iter()
        .filter_map(|link| {
            let tunnel = of_kind(link)?;
            Some((rank(&tunnel)?, link, tunnel))
        })
        .collect();
    fitting.sort_by_key(|(rank, ..)| Reverse(*rank));
    let up = fitting.iter().find(|(_, link, _)| link.up);
    let Some((_, link, tunnel)) = up else {
        let (text, evidence, reason) = if let Some((_, link, _)) = fitting.first() {
            let (dev, state) = (link.name.clone(), "down".to_owned());
            let text = format!("{} does not take it", link.name);
            (text, Evidence::Link { dev, state }, DropReason::DevReady)
        } else {
            let what = format!("a tunnel device for {src} to {dst}, protocol {protocol}");
            let text = "no tunnel here".to_owned();
            (text, Evidence::Absent { what }, DropReason::NotSpecified)
        };
        walk.step(Step::new(StepKind::Decap, text).with(evidence));
        return walk.end(Disposition::Dropped(reason));
    };
    if let Some(what) = tunnel.unknown.first() {
        let why = format!("{} has {what}, which is not followed", link.name);
        return walk.unknown(why);
    }
    let Some(inner) = walk.skb.packet.inner.take() else {
        return walk.unknown("a tunnel packet without inside");
    };
    let ends = [("local", tunnel.local), ("remote", tunnel.remote)];
    let said = ends
        .iter()
        .filter_map(|(word, ip)| Some(format!(" {word} {}", (*ip)?)));
    let evidence = Evidence::Link {
        dev: link.name.clone(),
        state: format!("{}{}", tunnel.kind.name(), said.collect::<String>()),
    };
    let text = format!("out of the tunnel at {}", link.name);
    walk.step(Step::new(StepKind::Decap, text).with(evidence));
    let index = link.index;
    from_tunnel(walk, cx, index, inner.packet)
}
