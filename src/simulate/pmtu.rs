//! Tunnels and what is too large for the way of their outer packets: refused, lost, or sent in pieces.
//!
//! Read first: `skb_tunnel_check_pmtu()`, `iptunnel_pmtud_check_icmp()` (net/ipv4/ip_tunnel_core.c), `tnl_update_pmtu()`
//! (net/ipv4/ip_tunnel.c), `ipip6_tunnel_xmit()` (net/ipv6/sit.c), `ip_fragment()`, `ip6_fragment()`, v6.12.
//!
//! Such a packet leaves a smaller MTU at the route inside (an exception, for ten minutes). No dump tells all of them, so
//! that what is held against them is unknown: what sockets of this namespace send, and IPv6; IPv4 that is forwarded is not.

use std::net::IpAddr;

use super::Cx;
use super::skb::{CtRef, Inherited};
use super::walk::{Out, Walk, Ways};
use crate::model::IfIndex;
use crate::model::link::{IpTunnel, IpTunnelKind, Link, LinkKind};
use crate::model::packet::{GreFields, ICMP, ICMPV6, L4, Packet, Wrap};
use crate::trace::{Disposition, DropReason, Evidence, RejectWith, Step, StepKind};

/// IPV6_MIN_MTU
const V6_MIN_MTU: u32 = 1280;
/// The least that a tunnel's bridge port tells of (`iptunnel_pmtud_check_icmp()`).
const V4_TOLD_MTU: u32 = 576;

/// VXLAN_DF_SET and VXLAN_DF_INHERIT, as Geneve's.
const DF_SET: u8 = 1;
const DF_INHERIT: u8 = 2;

/// Whether an outer IPv4 packet must not be cut, by a device's setting.
pub(crate) fn df(setting: u8, inner: &Packet) -> bool {
    match setting {
        DF_INHERIT => is_whole(inner),
        own => own == DF_SET,
    }
}

/// The TTL of an outer packet, by its device's setting; `None`: that of what this namespace sends by itself.
pub(crate) fn outer_ttl(setting: u8, inherits: bool, inner: u8) -> Option<u8> {
    match setting {
        _ if inherits => Some(inner),
        0 => None,
        own => Some(own),
    }
}

/// A tunnel device that has just put a packet into an outer one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entered {
    /// The device.
    pub(crate) link: IfIndex,
    by: By,
}

impl Entered {
    /// Whether the outer packet has the TTL of what this namespace sends by itself (`vxlan_xmit_one()`,
    /// `geneve6_xmit_skb()`, `send6()` of WireGuard).
    pub(crate) fn has_default_ttl(self, cx: &Cx<'_>, walk: &Walk) -> bool {
        let is_default = |setting, inherits| outer_ttl(setting, inherits, 0).is_none();
        match walk.link(cx, self.link).map(|link| &link.kind) {
            Some(LinkKind::Vxlan(own)) => is_default(own.ttl, own.ttl_inherit),
            Some(LinkKind::Geneve(own)) => is_default(own.ttl, own.ttl_inherit),
            Some(LinkKind::Wireguard(_)) => true,
            _ => false,
        }
    }
}

/// Who sent what is inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// Somebody elsewhere.
    Forwarded,
    /// A socket of this namespace, which heeds exceptions and cuts what is too large.
    Socket,
    /// A socket of this namespace whose program writes the header.
    Raw,
    /// Another tunnel of this namespace.
    Tunnel,
}

impl Walk {
    /// Puts the packet into another one, which a tunnel device sends.
    pub(crate) fn wrap(&mut self, link: IfIndex, outer: Packet) {
        let by = match &self.skb {
            skb if !skb.local => By::Forwarded,
            skb if skb.raw => By::Raw,
            skb if skb.packet.is_tunnel() => By::Tunnel,
            _ => By::Socket,
        };
        self.tunnel = Some(Entered { link, by });
        self.skb.packet = outer;
        self.skb.ct = CtRef::None;
        self.skb.local = true;
        self.skb.raw = false;
        let summed = self.skb.inherited == Inherited::Inside;
        let partial = self.skb.partial.map(|partial| partial && !summed);
        self.skb.inherited = self.skb.inherited.behind(partial);
        // `udp_set_csum()`, `gre_build_header()`
        self.skb.partial = match self.skb.packet.inner.as_ref().map(|inner| inner.wrap) {
            Some(Wrap::Gre(GreFields { checksum: true, .. }) | Wrap::Wireguard { .. }) => {
                Some(true)
            }
            Some(Wrap::Gre(_)) | None => partial,
            Some(_) if matches!(self.skb.packet.l4, L4::Other(_)) => partial,
            // Whether theirs are summed is not read.
            Some(_) => partial.filter(|partial| *partial),
        };
        // A hash decides on the source port: of VXLAN within a range that is not read, of Geneve any (`geneve_xmit_skb()`).
        let free = std::mem::replace(&mut self.skb.free, (1, u16::MAX));
        self.inside.push((free, partial));
    }
}

/// What becomes of it.
enum Fate {
    /// It fits, or goes on in pieces.
    GoesOn,
    /// It goes on in pieces, whatever its header said.
    Cut,
    /// Its sender is told how much fits.
    Told(u32),
    /// It is lost, and its sender is told nothing.
    Lost,
    /// That is up to what was sent before.
    Unknown,
}

/// A tunnel's outer packet was routed: does it fit?
pub(crate) fn fits(
    cx: &Cx<'_>,
    mut walk: Walk,
    entered: Option<Entered>,
    out: Out,
) -> Result<Walk, Ways> {
    let (Some(entered), Some(lower)) = (entered, walk.link(cx, out.oif)) else {
        return Ok(walk);
    };
    let mtu = out.mtu.unwrap_or(lower.mtu);
    let outer = &walk.skb.packet;
    let Some(inner) = outer.inner.as_deref().map(|inner| &inner.packet) else {
        return Ok(walk);
    };
    let Some(device) = walk.link(cx, entered.link).filter(|_| outer.len > mtu) else {
        return Ok(walk);
    };
    let room = mtu.saturating_sub(outer.len.saturating_sub(inner.len));
    let fate = match &device.kind {
        LinkKind::Vxlan(_) | LinkKind::Geneve(_) if is_bridge_port(cx, &walk, device) => {
            of_port(outer, inner, entered.by, room)
        }
        LinkKind::Vxlan(_) | LinkKind::Geneve(_) => of_frames(outer, inner, entered.by),
        LinkKind::IpTunnel(tunnel) => of_packets(tunnel, outer, inner, entered.by, room),
        // WireGuard's are cut as needed, whatever they carry (`ignore_df`).
        _ => Fate::GoesOn,
    };
    let name = device.name.clone();
    let lower = limit(lower, mtu);
    let own = Evidence::Link {
        dev: name.clone(),
        state: format!("mtu {}, of which its headers leave {room}", device.mtu),
    };
    let (len, within) = (outer.len, inner.len);
    let step = |text: String| Step::new(StepKind::Mtu, text).with(lower).with(own);
    let depends = match fate {
        // Others note nothing where the outer packet may be cut.
        Fate::GoesOn => {
            is_whole(inner) && matches!(device.kind, LinkKind::Vxlan(_) | LinkKind::Geneve(_))
        }
        Fate::Told(_) | Fate::Lost => true,
        Fate::Cut | Fate::Unknown => false,
    };
    let by_route = entered.by == By::Forwarded && !is_bridge_port(cx, &walk, device);
    if by_route && depends {
        match heeds_exceptions(cx, &walk, inner, most(device, room)) {
            Ok(false) => {}
            Ok(true) => return Err(untold(walk, &name)),
            Err(why) => return Err(walk.unknown(why)),
        }
    }
    match fate {
        Fate::GoesOn => Ok(walk),
        Fate::Cut => {
            walk.skb.packet.df = false;
            Ok(walk)
        }
        Fate::Told(most) => {
            let text = format!(
                "{within} bytes are {len} with the headers of {name}: too many, and what is inside must not be cut"
            );
            walk.step(step(text));
            walk.told = true;
            Err(walk.end(Disposition::Rejected(RejectWith::TooBig(most))))
        }
        Fate::Lost => {
            let text = format!(
                "{within} bytes are {len} with the headers of {name}: too many, the outer packet must not be cut, and the sender is not told"
            );
            walk.step(step(text));
            Err(walk.end(Disposition::Dropped(DropReason::PktTooBig)))
        }
        Fate::Unknown => Err(untold(walk, &name)),
    }
}

/// What sets the limit: a device, or the route that leads to it.
pub(crate) fn limit(link: &Link, mtu: u32) -> Evidence {
    let state = if mtu == link.mtu {
        format!("mtu {mtu}")
    } else {
        format!("the route's mtu {mtu} (the device's own is {})", link.mtu)
    };
    Evidence::Link {
        dev: link.name.clone(),
        state,
    }
}

/// Nobody may cut it.
fn is_whole(packet: &Packet) -> bool {
    packet.df || packet.src.is_ipv6()
}

/// Whether it is a tunnel's outer packet, which is never cut (`ip_fragment()`, `ip6_fragment()`): WireGuard's are.
pub(crate) fn is_uncut(packet: &Packet) -> bool {
    let wrap = packet.inner.as_ref().map(|inner| inner.wrap);
    packet.is_tunnel() && is_whole(packet) && !matches!(wrap, Some(Wrap::Wireguard { .. }))
}

fn untold(walk: Walk, tunnel: &str) -> Ways {
    let why = format!(
        "{} sends more than fits with the headers of {tunnel}: whether the route inside keeps a smaller MTU since an earlier packet (a route exception) is not read",
        walk.ns
    );
    walk.unknown(why)
}

/// The most that the tunnel notes as what fits.
fn most(device: &Link, room: u32) -> u32 {
    match &device.kind {
        LinkKind::IpTunnel(tunnel) if tunnel.kind == IpTunnelKind::Sit => room.max(V6_MIN_MTU),
        _ => room,
    }
}

/// Whether what is forwarded is held against exceptions: IPv4's by `ip_forward_use_pmtu` (`ip_dst_mtu_maybe_forward()`),
/// IPv6's as they leave (`ip6_finish_output()`), where there can be one (`__ip6_rt_update_pmtu()`). `Err`: the setting was
/// not read.
fn heeds_exceptions(cx: &Cx<'_>, walk: &Walk, inner: &Packet, most: u32) -> Result<bool, String> {
    if inner.src.is_ipv6() {
        return Ok(most >= V6_MIN_MTU);
    }
    let sysctls = walk.netns(cx).and_then(|netns| netns.sysctls.known());
    let own = sysctls.and_then(|all| all.ip_forward_use_pmtu.known());
    own.copied()
        .ok_or_else(|| format!("net.ipv4.ip_forward_use_pmtu of {} was not read", walk.ns))
}

/// `netif_is_any_bridge_port()`; Open vSwitch's are not followed at all.
fn is_bridge_port(cx: &Cx<'_>, walk: &Walk, link: &Link) -> bool {
    let master = link.master.and_then(|master| walk.link(cx, master));
    master.is_some_and(|master| matches!(master.kind, LinkKind::Bridge(_)))
}

/// Frames that a bridge passes on have no route of their own: the device itself answers for who is asked. What this
/// namespace sends by the bridge has one, which keeps an exception.
fn of_port(outer: &Packet, inner: &Packet, by: By, room: u32) -> Fate {
    let least = if inner.src.is_ipv4() {
        V4_TOLD_MTU
    } else {
        V6_MIN_MTU
    };
    match (is_whole(inner) && room >= least && is_told(inner), by) {
        (true, By::Forwarded | By::Raw) => Fate::Told(room),
        (false, _) if !is_whole(outer) => Fate::GoesOn,
        (false, By::Forwarded) => Fate::Lost,
        _ => Fate::Unknown,
    }
}

/// Whom errors are told (`iptunnel_pmtud_check_icmp()`, `iptunnel_pmtud_check_icmpv6()`).
fn is_told(inner: &Packet) -> bool {
    let error = match &inner.l4 {
        L4::Icmp { kind, .. } if inner.src.is_ipv4() => matches!(kind, 3 | 4 | 5 | 11 | 12),
        // Errors, and NDISC_REDIRECT.
        L4::Icmp { kind, .. } => *kind < 128 || *kind == 137,
        L4::Other(ICMP | ICMPV6) => true,
        _ => false,
    };
    let stray = match (inner.src, inner.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let group = |addr: std::net::Ipv4Addr| addr.is_multicast() || addr.is_broadcast();
            group(src) || group(dst) || src.is_loopback() || src.octets()[0] == 0
        }
        _ => inner.src.is_multicast() || inner.src.is_unspecified() || inner.src.is_loopback(),
    };
    !error && !stray
}

fn of_frames(outer: &Packet, inner: &Packet, by: By) -> Fate {
    match by {
        By::Forwarded if is_whole(outer) => Fate::Lost,
        By::Forwarded => Fate::GoesOn,
        By::Raw | By::Tunnel if is_whole(inner) => Fate::Unknown,
        _ if is_whole(outer) => Fate::Unknown,
        _ => Fate::GoesOn,
    }
}

fn of_packets(tunnel: &IpTunnel, outer: &Packet, inner: &Packet, by: By, room: u32) -> Fate {
    let told = |most: u32| match by {
        By::Forwarded => Fate::Told(most),
        // A raw socket's is refused before the device where the route inside has an exception.
        By::Raw | By::Socket | By::Tunnel => Fate::Unknown,
    };
    let lost = match by {
        By::Forwarded => Fate::Lost,
        _ => Fate::Unknown,
    };
    if !outer.df {
        return Fate::GoesOn;
    }
    match inner.src {
        IpAddr::V4(_) if inner.df => told(room),
        IpAddr::V4(_) => lost,
        IpAddr::V6(_) if room >= V6_MIN_MTU => told(room),
        IpAddr::V6(_) if tunnel.kind != IpTunnelKind::Sit => lost,
        IpAddr::V6(_) if inner.len > V6_MIN_MTU => told(V6_MIN_MTU),
        IpAddr::V6(_) => Fate::Cut,
    }
}
