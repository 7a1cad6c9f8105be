//! Tunnels of IP packets in IP packets: `ipip` (Calico's), `sit` and `gre`, over IPv4.
//!
//! Read first: `ip_tunnel_xmit()`, `ip_tunnel_lookup()`, `ip_tunnel_rcv()` (net/ipv4/ip_tunnel.c),
//! `ipip_tunnel_xmit()`, `ipip6_tunnel_xmit()`, `ipgre_rcv()`, v6.12.

use std::net::{IpAddr, Ipv4Addr};

use super::Cx;
use super::skb::Inherited;
use super::socket::from_tunnel;
use super::walk::{Next, Walk, Ways};
use crate::model::IfIndex;
use crate::model::link::{IpTunnel, IpTunnelKind, Link, LinkKind};
use crate::model::packet::{GreFields, Inner, L4, Packet, Wrap};
use crate::trace::{Disposition, DropReason, Evidence, Step, StepKind};

/// An IPv4 header without options.
const IPV4: u32 = 20;
/// A GRE header without options.
const GRE: u32 = 4;
/// INET_ECN_MASK, and its values that are named here.
pub(crate) const ECN: u8 = 0x03;
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
        // `sit_tunnel_xmit()` sends both whatever its mode; the other end may not take both.
        IpTunnelKind::Sit | IpTunnelKind::Gre => true,
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
    let (depth, same) = nested(&inner, remote, protocol(tunnel, &inner));
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
    let like = match inherited(&walk, tunnel, &inner) {
        Ok(like) => (like.ttl, like.tos, like.df),
        Err(why) => return walk.unknown(format!("{}: {why}", link.name)),
    };
    walk.wrap(link.index, outer(tunnel, remote, inner, like));
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
fn nested(packet: &Packet, remote: IpAddr, protocol: u8) -> (usize, bool) {
    let (mut depth, mut same) = (0, false);
    let mut next = Some(packet);
    while let Some(packet) = next {
        next = packet.inner.as_ref().map(|inner| &inner.packet);
        if next.is_some() {
            depth += 1;
            same |= packet.dst == remote && packet.l4 == L4::Other(protocol);
        }
    }
    (depth, same)
}

/// Congestion bits that an outer header takes over (`INET_ECN_encapsulate()`): what was marked on the way here is not
/// marked again.
pub(crate) fn outer_ecn(inner: u8) -> u8 {
    match inner & ECN {
        ECN_CE => ECN_ECT_0,
        other => other,
    }
}

/// IPPROTO_* of the outer packet.
fn protocol(tunnel: &IpTunnel, inner: &Packet) -> u8 {
    match tunnel.kind {
        IpTunnelKind::Sit if inner.src.is_ipv4() => IpTunnelKind::Ipip.protocol(),
        kind => kind.protocol(),
    }
}

/// The packet that TTL, differentiated services and DF are taken from: of tunnels that are inside each other, on one machine, what
/// went into the first where a socket left its checksum to a device (`ip_tunnel_xmit()`: `skb_inner_network_header()`;
/// `ipip6_tunnel_xmit()` takes the packet itself).
fn inherited<'p>(walk: &Walk, tunnel: &IpTunnel, inner: &'p Packet) -> Result<&'p Packet, String> {
    if tunnel.kind == IpTunnelKind::Sit && inner.src.is_ipv6() {
        return Ok(inner);
    }
    match walk.skb.inherited {
        Inherited::Own => return Ok(inner),
        Inherited::Inside => {}
        Inherited::Unknown => return Err("whether it inherits from the tunnel's packet or from what that carries depends on who sums that: its sender or a device, which is not known".to_owned()),
    }
    let first = inner.inner.as_deref().map(|inside| &inside.packet);
    let first = first.unwrap_or(inner);
    if first.src.is_ipv4() != inner.src.is_ipv4() {
        return Err("it inherits fields of another version of IP, from what is inside of the tunnel's packet, which is not followed".to_owned());
    }
    Ok(first)
}

/// `like`: TTL, differentiated services and DF that it may inherit.
fn outer(tunnel: &IpTunnel, remote: IpAddr, inner: Packet, like: (u8, u8, bool)) -> Packet {
    let (inner_ttl, inner_tos, inner_df) = like;
    let inherits = tunnel.tos & 1 != 0;
    let tos = if inherits { inner_tos } else { tunnel.tos };
    let header = match tunnel.kind {
        IpTunnelKind::Gre => IPV4 + GRE + tunnel.output.bytes(),
        IpTunnelKind::Ipip | IpTunnelKind::Sit => IPV4,
    };
    Packet {
        eth: None,
        src: tunnel.local.unwrap_or(Ipv4Addr::UNSPECIFIED.into()),
        dst: remote,
        ttl: match tunnel.ttl {
            0 => inner_ttl,
            ttl => ttl,
        },
        tos: tos & !ECN | outer_ecn(inner_tos),
        df: tunnel.pmtudisc || inner.src.is_ipv4() && inner_df,
        len: inner.len.saturating_add(header),
        l4: L4::Other(protocol(tunnel, &inner)),
        inner: Some(Box::new(Inner {
            vni: None,
            wrap: match tunnel.kind {
                IpTunnelKind::Gre => Wrap::Gre(tunnel.output),
                IpTunnelKind::Ipip | IpTunnelKind::Sit => Wrap::Plain,
            },
            packet: Packet { eth: None, ..inner },
        })),
    }
}

/// An outer packet came in by `dev` and is for this host: which device does it belong to?
pub(crate) fn decapsulate(cx: &mut Cx<'_>, mut walk: Walk, dev: IfIndex) -> Ways {
    let packet = &walk.skb.packet;
    let (src, dst, protocol) = (packet.src, packet.dst, packet.protocol());
    let fields = match packet.inner.as_ref().map(|inner| inner.wrap) {
        Some(Wrap::Gre(fields)) => fields,
        _ => GreFields::default(),
    };
    let Some(links) = walk.netns(cx).and_then(|netns| netns.links.known()) else {
        return walk.unknown("the devices were not read");
    };
    let here = links.iter().filter(|link| link.link_netnsid.is_none());
    let fitting: Vec<Fit<'_>> = here
        .filter_map(|link| match &link.kind {
            LinkKind::IpTunnel(tunnel) if tunnel.kind.protocol() == protocol => Some(Fit {
                rank: rank(tunnel, src, dst).filter(|_| tunnel.input.key == fields.key)?,
                link,
                tunnel,
            }),
            _ => None,
        })
        .collect();
    // sit devices are asked for IPv4 where no ipip device takes it (`ipip_rcv()` of both, by priority).
    let sits: Vec<Fit<'_>> = links
        .iter()
        .filter(|link| link.link_netnsid.is_none() && protocol == IpTunnelKind::Ipip.protocol())
        .filter_map(|link| match &link.kind {
            LinkKind::IpTunnel(tunnel) if tunnel.kind == IpTunnelKind::Sit => Some(Fit {
                rank: rank(tunnel, src, dst)?,
                link,
                tunnel,
            }),
            _ => None,
        })
        .collect();
    let bound_sit =
        |fit: &Fit<'_>| fit.tunnel.kind == IpTunnelKind::Sit && fit.tunnel.lower.is_some();
    if walk.skb.slave.is_some() && fitting.iter().chain(&sits).any(bound_sit) {
        return walk.unknown("a sit device that is bound to another takes what comes in by that one's VRF, too, which is not followed");
    }
    let found = match lookup(&fitting, dev) {
        Ok(None) => lookup(&sits, dev),
        found => found,
    };
    let (link, tunnel) = match found {
        Ok(Some(fit)) if fit.tunnel.kind == IpTunnelKind::Sit && !carries(fit.tunnel, protocol) => {
            let state = "kind sit, mode ip6ip".to_owned();
            let dev = fit.link.name.clone();
            let text = format!("{dev} takes no IPv4");
            walk.step(Step::new(StepKind::Decap, text).with(Evidence::Link { dev, state }));
            return walk.end(Disposition::Dropped(DropReason::NotSpecified));
        }
        Ok(Some(fit)) => (fit.link, fit.tunnel.clone()),
        Err(why) => return walk.unknown(why),
        Ok(None) => {
            let (text, evidence, reason) =
                if let Some(fit) = fitting.iter().find(|fit| !fit.link.up) {
                    let (dev, state) = (fit.link.name.clone(), "down".to_owned());
                    let text = format!("{} does not take it", fit.link.name);
                    (text, Evidence::Link { dev, state }, DropReason::DevReady)
                } else {
                    let what = format!("a tunnel device for {src} to {dst}, protocol {protocol}");
                    let text = "no tunnel here".to_owned();
                    (text, Evidence::Absent { what }, DropReason::NotSpecified)
                };
            walk.step(Step::new(StepKind::Decap, text).with(evidence));
            return walk.end(Disposition::Dropped(reason));
        }
    };
    if let Some(what) = tunnel.unknown.first() {
        let why = format!("{} has {what}, which is not followed", link.name);
        return walk.unknown(why);
    }
    // `ip_tunnel_rcv()`: a checksum is there or not as the device has it; a number that nobody asked for does no harm.
    let lacks = match tunnel.input {
        input if input.checksum != fields.checksum => Some("checksum"),
        input if input.sequence && !fields.sequence => Some("sequence number"),
        _ => None,
    };
    if let Some(what) = lacks {
        let not = if fields.checksum { "" } else { "no " };
        let not = if what == "checksum" { not } else { "no " };
        let text = format!("{} does not take it: the packet has {not}{what}", link.name);
        let state = format!("kind {}", tunnel.kind.name());
        let dev = link.name.clone();
        walk.step(Step::new(StepKind::Decap, text).with(Evidence::Link { dev, state }));
        return walk.end(Disposition::Dropped(DropReason::NotSpecified));
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

/// Whether a device of kind sit carries what has this number.
fn carries(tunnel: &IpTunnel, protocol: u8) -> bool {
    tunnel.any || tunnel.kind.protocol() == protocol
}

/// A device whose ends are those of the packet.
#[derive(Clone, Copy)]
struct Fit<'t> {
    rank: u8,
    link: &'t Link,
    tunnel: &'t IpTunnel,
}

/// How much a device says of the packet's ends, 0 is most; `None`: something else.
fn rank(tunnel: &IpTunnel, src: IpAddr, dst: IpAddr) -> Option<u8> {
    let local = tunnel.local.map(|local| local == dst);
    let remote = tunnel.remote.map(|remote| remote == src);
    match (remote, local) {
        (Some(false), _) | (_, Some(false)) => None,
        (Some(true), Some(true)) => Some(0),
        (Some(true), None) => Some(1),
        (None, Some(true)) => Some(2),
        (None, None) => Some(3),
    }
}

/// The device that takes what came in by `dev`. `Err`: what is missing.
///
/// ipip and gre take one that is bound to `dev` before any other, and where none is, the first that has the ends, even
/// if it is bound to another device (`ip_tunnel_lookup()`). sit goes by the ends alone, among those that are bound to
/// `dev` or to none; of those that name no end it knows the newest, wherever that is bound (`ipip6_tunnel_lookup()`).
/// Which of several is the newest is not told.
fn lookup<'t>(fitting: &[Fit<'t>], dev: IfIndex) -> Result<Option<Fit<'t>>, String> {
    const ANY: u8 = 3;
    let sit = |fit: &Fit<'_>| fit.tunnel.kind == IpTunnelKind::Sit;
    let takes = |fit: &&Fit<'t>| {
        let elsewhere = fit.tunnel.lower.is_some_and(|lower| lower != dev);
        match (sit(fit), fit.rank) {
            (true, ANY) => true,
            (true, _) => fit.link.up && !elsewhere,
            (false, _) => fit.link.up,
        }
    };
    let taking = || fitting.iter().filter(takes);
    let bound = taking().filter(|fit| !sit(fit) && fit.tunnel.lower == Some(dev));
    let (bound, taking): (Vec<_>, Vec<_>) = (bound.collect(), taking().collect());
    let from = if bound.is_empty() { taking } else { bound };
    let best = from.iter().map(|fit| fit.rank).min();
    let mut first = from.iter().filter(|fit| Some(fit.rank) == best);
    match (first.next(), first.next()) {
        (Some(one), Some(other)) => Err(format!(
            "{} and {} both take such packets, and which of them was made last is not told",
            one.link.name, other.link.name
        )),
        // Of the kind sit, that may be one that is down.
        (one, _) => Ok(one.filter(|fit| fit.link.up).map(|fit| **fit)),
    }
}
