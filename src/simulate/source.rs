//! Which address a packet that is sent here gets as its source.
//!
//! Read first: `inet_select_addr()` (net/ipv4/devinet.c), `ipv6_dev_get_saddr()`
//! (net/ipv6/addrconf.c; RFC 6724), v6.12. Not modelled: address labels set by hand, home addresses,
//! privacy preferences of a socket.

use std::net::{IpAddr, Ipv6Addr};

use super::fib::{Found, section};
use super::{Cx, vrf};
use crate::model::addr::Addr;
use crate::model::netns::NetNs;
use crate::model::route::RouteKind;
use crate::model::{IfIndex, NsKey};

/// Scope of addresses that are valid on this host only (RT_SCOPE_HOST).
const SCOPE_HOST: u8 = 254;
/// Scope of addresses that are valid on one link only (RT_SCOPE_LINK).
pub(crate) const SCOPE_LINK: u8 = 253;

/// Source for a route that was looked up without one. `vrf`: the one that it was looked up for.
///
/// Source: `ip_route_output_key_hash_rcu()`, `fib_result_prefsrc()`; `ip6_route_get_saddr()`.
pub(crate) fn for_route(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    found: &Found,
    dst: IpAddr,
    vrf: Option<IfIndex>,
) -> Result<Option<IpAddr>, String> {
    let by = found.hops.first().and_then(|(_, hop)| hop.link);
    let netns = cx.topology.netns(ns);
    let into = by.and_then(|dev| vrf::index_of(netns?, dev));
    let leaves = vrf.filter(|vrf| into != Some(*vrf));
    if let Some(vrf) = leaves.filter(|_| dst.is_ipv6() || found.route.kind != RouteKind::Local) {
        // Out of the VRF, the address is nonetheless one of it (`fib_select_path()`, `ip6_route_get_saddr()`).
        return if dst.is_ipv6() {
            select_v6(cx, ns, Some(vrf), dst)
        } else {
            select_v4(cx, ns, Some(vrf), None, SCOPE_LINK)
        };
    }
    if let Some(prefsrc) = found.route.prefsrc {
        return Ok(Some(prefsrc));
    }
    // IPv6 takes the destination only where it is an address of its own, as any other choice would.
    if found.route.kind == RouteKind::Local && dst.is_ipv4() {
        return Ok(Some(dst));
    }
    let hop = found.hops.first().map(|(_, hop)| hop);
    let link = hop.and_then(|hop| hop.link);
    if dst.is_ipv6() {
        select_v6(cx, ns, link, dst)
    } else {
        let via = hop.and_then(|hop| hop.via);
        let now = select_v4(cx, ns, link, via, found.route.scope)?;
        let Some(id) = found.route.nh_id else {
            return Ok(now);
        };
        // A nexthop object keeps the source that it was made with, by a scope of its own, until an address changes
        // (`nh_create_ipv4()`, `fib_result_prefsrc()`).
        let made_with = match via {
            None => SCOPE_HOST,
            Some(IpAddr::V4(_)) => SCOPE_LINK,
            Some(IpAddr::V6(_)) => return Ok(now),
        };
        let first = select_v4(cx, ns, link, via, made_with)?;
        if first == now {
            return Ok(now);
        }
        let one =
            |addr: Option<IpAddr>| addr.map_or_else(|| "none".to_owned(), |addr| addr.to_string());
        Err(format!(
            "nexthop object {id} may still have the source that it was made with, {} and not {}, which is not told",
            one(first),
            one(now)
        ))
    }
}

/// Whether an address is one of this namespace's.
pub(crate) fn has(cx: &mut Cx<'_>, ns: &NsKey, addr: IpAddr) -> Result<bool, String> {
    Ok(addrs(cx, ns)?.iter().any(|own| own.local == addr))
}

fn addrs<'t>(cx: &mut Cx<'t>, ns: &NsKey) -> Result<&'t [Addr], String> {
    let topology = cx.topology;
    match topology.netns(ns) {
        Some(netns) => section(cx, ns, &netns.addrs, "addresses"),
        None => Err(format!("{ns} was not read")),
    }
}

/// The devices whose addresses may stand for one another: those of one VRF, or of none.
struct Domain<'t> {
    netns: Option<&'t NetNs>,
    vrf: Option<IfIndex>,
}

impl<'t> Domain<'t> {
    fn of(cx: &Cx<'t>, ns: &NsKey, link: Option<IfIndex>) -> Self {
        let netns = cx.topology.netns(ns);
        let vrf = link.and_then(|dev| vrf::index_of(netns?, dev));
        Self { netns, vrf }
    }

    fn has(&self, dev: IfIndex) -> bool {
        let own = self.netns.and_then(|netns| vrf::index_of(netns, dev));
        own == self.vrf
    }
}

/// First primary address of the device that shares a subnet with `near`, else its first, else the
/// first of any other device that is not link scoped.
pub(crate) fn select_v4(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    link: Option<IfIndex>,
    near: Option<IpAddr>,
    scope: u8,
) -> Result<Option<IpAddr>, String> {
    let all = addrs(cx, ns)?;
    let primary = |addr: &&Addr| addr.local.is_ipv4() && !addr.secondary;
    let in_scope = |addr: &&Addr| addr.scope <= scope;
    let own: Vec<&Addr> = all
        .iter()
        .filter(|addr| Some(addr.link) == link)
        .filter(primary)
        .filter(in_scope)
        .collect();
    let shares = |addr: &&&Addr| {
        near.zip(addr.subnet())
            .is_some_and(|(near, subnet)| subnet.contains(near))
    };
    if let Some(addr) = own.iter().find(shares).or(own.first()) {
        return Ok(Some(addr.local));
    }
    // A VRF takes the place of loopback for its devices, whose addresses are nobody else's.
    let domain = Domain::of(cx, ns, link);
    let others = || {
        let here = all.iter().filter(primary);
        here.filter(|addr| addr.scope != SCOPE_LINK && addr.scope <= scope.min(SCOPE_HOST))
    };
    let by_vrf = others().find(|addr| Some(addr.link) == domain.vrf);
    if link.is_some() && link == domain.vrf && by_vrf.is_none() {
        // Of its devices the first is taken, by an order that is not told: 0x7c3ae1914e098bda of 6.12.107 takes another.
        let mut devices: Vec<IfIndex> = others().map(|addr| addr.link).collect();
        devices.retain(|dev| domain.has(*dev));
        devices.dedup();
        if devices.len() > 1 {
            return Err(
                "a VRF without an address of its own gives one of its devices' addresses, and which device comes first is not known"
                    .to_owned(),
            );
        }
    }
    let other = by_vrf.or_else(|| others().find(|addr| domain.has(addr.link)));
    Ok(other.map(|addr| addr.local))
}

/// Source that masquerading chooses for what leaves by `oif`, by its route's next hop (`inet_select_addr(out, nexthop,
/// RT_SCOPE_UNIVERSE)`, `ipv6_dev_get_saddr()`). `Ok(None)`: the device has none, and the kernel drops. `Err`: what is missing.
pub(crate) fn masquerade(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    oif: IfIndex,
    dst: IpAddr,
    via: Option<IpAddr>,
) -> Result<Option<IpAddr>, String> {
    if dst.is_ipv6() {
        return select_v6(cx, ns, Some(oif), dst);
    }
    let near = via.filter(IpAddr::is_ipv4).unwrap_or(dst);
    select_v4(cx, ns, Some(oif), Some(near), 0)
}

/// The best candidate by the rules of RFC 6724 that the kernel follows.
pub(crate) fn select_v6(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    link: Option<IfIndex>,
    dst: IpAddr,
) -> Result<Option<IpAddr>, String> {
    let IpAddr::V6(dst) = dst else {
        return Ok(None);
    };
    let all = addrs(cx, ns)?;
    let on_link_only = dst_scope(dst) <= LINK;
    let mut best: Option<(&Addr, Score)> = None;
    let domain = Domain::of(cx, ns, link);
    // Of equals the first, and the VRF's own before its devices'.
    let of_vrf = |addr: &&Addr| Some(addr.link) == domain.vrf;
    let others = all
        .iter()
        .filter(|addr| !of_vrf(addr) && domain.has(addr.link));
    for addr in all.iter().filter(of_vrf).chain(others) {
        let IpAddr::V6(local) = addr.local else {
            continue;
        };
        let foreign_link = on_link_only && link.is_some() && Some(addr.link) != link;
        let pending = addr.tentative && !addr.nodad;
        if foreign_link || pending || addr.dadfailed || local.is_multicast() {
            continue;
        }
        let score = score(addr, local, dst, link);
        if best.as_ref().is_none_or(|(_, old)| score > *old) {
            best = Some((addr, score));
        }
    }
    Ok(best.map(|(addr, _)| addr.local))
}

const LINK: u8 = 2;

/// Scope of an address as a number (IPV6_ADDR_SCOPE_*): 1 node, 2 link, 5 site, 14 global.
fn dst_scope(addr: Ipv6Addr) -> u8 {
    if addr.is_loopback() {
        1
    } else if addr.is_multicast() {
        addr.octets()[1] & 0xf
    } else if addr.is_unicast_link_local() {
        LINK
    } else if addr.segments()[0] & 0xffc0 == 0xfec0 {
        5
    } else {
        14
    }
}

/// Whether an address is one of fe80::/10; what IPv4 calls so is routed like others.
pub(crate) fn is_link_local(addr: IpAddr) -> bool {
    matches!(addr, IpAddr::V6(addr) if addr.is_unicast_link_local())
}

/// Compared field by field, larger is better: same address, scope, not deprecated, outgoing device,
/// label, not temporary, common prefix bits.
type Score = (bool, i16, bool, bool, bool, bool, u32);

fn score(addr: &Addr, local: Ipv6Addr, dst: Ipv6Addr, link: Option<IfIndex>) -> Score {
    let (own, wanted) = (i16::from(dst_scope(local)), i16::from(dst_scope(dst)));
    // Large enough is good, and then the smaller the better; too small is worse, the smaller the worse.
    let scope = if own >= wanted { 128 - own } else { own - 128 };
    let common = (u128::from(local) ^ u128::from(dst))
        .leading_zeros()
        .min(u32::from(addr.prefix_len));
    (
        local == dst,
        scope,
        !addr.deprecated,
        link.is_none() || Some(addr.link) == link,
        label(local) == label(dst),
        !addr.secondary,
        common,
    )
}

/// Default label table (`ip6addrlbl_init_table`).
fn label(addr: Ipv6Addr) -> u8 {
    let first = addr.segments()[0];
    match first {
        _ if addr.is_loopback() => 0,
        _ if addr.to_ipv4_mapped().is_some() => 4,
        0x2001 if addr.segments()[1] == 0 => 6,
        0x2001 if addr.segments()[1] & 0xfff0 == 0x10 => 7,
        0x2002 => 2,
        0x3ffe => 12,
        _ if first & 0xffc0 == 0xfec0 => 11,
        _ if first & 0xfe00 == 0xfc00 => 5,
        _ if u128::from(addr) >> 32 == 0 => 3,
        _ => 1,
    }
}
