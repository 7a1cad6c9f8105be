//! Routes, by RTM_GETROUTE; where they only name a nexthop object, its hops by RTM_GETNEXTHOP.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteLwEnCapType, RouteMessage, RouteMetric,
    RouteNextHop, RouteNextHopFlags, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::Result;
use super::nexthop;
use super::rtnl::{ByHand, Session};
use crate::model::route::{NextHop, Route, RouteKind};
use crate::model::{IfIndex, Prefix};

const RTM_GETROUTE: u16 = 26;
/// RTM_F_CLONED: an exception (PMTU, redirect) of a route, not a route.
const RTM_F_CLONED: u32 = 0x200;

/// Routes of all tables, both families.
pub fn read(session: &mut Session<'_>) -> Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut body = [0u8; 12];
        body[0] = u8::from(family);
        let by_hand = ByHand {
            kind: RTM_GETROUTE,
            body: &body,
            header: 12,
            take: |message| match message {
                RouteNetlinkMessage::NewRoute(message) => Some(message),
                _ => None,
            },
        };
        let mut request = RouteMessage::default();
        request.header.address_family = family;
        let dumped = session.dump(
            "list routes",
            |handle| handle.route().get(request.clone()).execute(),
            &by_hand,
        );
        match dumped {
            Ok(dumped) => {
                // A kernel without a family dumps all that it has.
                let own = dumped
                    .iter()
                    .filter(|(message, _)| message.header.address_family == family);
                routes.extend(own.filter_map(|(message, lost)| flatten(message, lost)));
            }
            // IPv6 is not compiled in, or off by boot option.
            Err(error)
                if family == AddressFamily::Inet6
                    && matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
            Err(error) => return Err(error),
        }
    }
    let bare = |route: &Route| route.nh_id.is_some() && route.nexthops.is_empty();
    // net.ipv4.nexthop_compat_mode = 0 leaves the hops out.
    if routes.iter().any(bare) {
        let objects: BTreeMap<u32, Vec<NextHop>> = nexthop::read(session.raw)?;
        for route in routes.iter_mut().filter(|route| bare(route)) {
            let hops = route.nh_id.and_then(|id| objects.get(&id));
            match hops {
                Some(hops) => route.nexthops.clone_from(hops),
                None => route
                    .unknown
                    .push("nexthop object that is not listed".to_owned()),
            }
        }
    }
    Ok(routes)
}

pub(super) fn flatten(message: &RouteMessage, lost: &[u16]) -> Option<Route> {
    let header = &message.header;
    if header.flags.bits() & RTM_F_CLONED != 0 {
        return None;
    }
    let v6 = header.address_family == AddressFamily::Inet6;
    let like: IpAddr = if v6 {
        IpAddr::from([0u8; 16])
    } else {
        IpAddr::from([0u8; 4])
    };
    let mut route = Route {
        table: u32::from(header.table),
        dst: Prefix::default_of(like),
        src: None,
        tos: header.tos,
        metric: 0,
        kind: kind(u8::from(header.kind)),
        scope: u8::from(header.scope),
        protocol: u8::from(header.protocol),
        prefsrc: None,
        nexthops: Vec::new(),
        nh_id: None,
        mtu: None,
        pref: 0,
        realm: None,
        unknown: lost.iter().map(|kind| format!("RTA_{kind}")).collect(),
    };
    let mut hop = Hop::default();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(table) => route.table = *table,
            RouteAttribute::Destination(address) => {
                let dst = Prefix::new(ip(address)?, header.destination_prefix_length);
                route.dst = dst.ok()?;
            }
            RouteAttribute::Source(address) => {
                route.src = Prefix::new(ip(address)?, header.source_prefix_length).ok();
            }
            RouteAttribute::Priority(metric) => route.metric = *metric,
            RouteAttribute::PrefSource(address) => route.prefsrc = ip(address),
            RouteAttribute::NhId(id) => route.nh_id = Some(*id),
            RouteAttribute::Preference(pref) => route.pref = u8::from(*pref),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::MultiPath(hops) => {
                let mut realms = hops.iter().flat_map(|next| &next.attributes);
                route.realm = realms.find_map(realm);
                route.nexthops = hops
                    .iter()
                    .map(|next| next_hop(next, &mut route.unknown))
                    .collect();
            }
            other => {
                route.realm = realm(other).or(route.realm);
                hop.take(other, &mut route.unknown);
            }
        }
    }
    if route.nexthops.is_empty() && (hop.link.is_some() || hop.via.is_some()) {
        let flags = header.flags;
        route.nexthops.push(NextHop {
            via: hop.via,
            link: hop.link,
            weight: 1,
            dead: flags.contains(RouteFlags::Dead),
            linkdown: flags.contains(RouteFlags::Linkdown),
            onlink: flags.contains(RouteFlags::Onlink),
            encap: hop.encap,
        });
    }
    // Reject routes of IPv6 name the loopback device; no packet goes there.
    if !matches!(
        route.kind,
        RouteKind::Unicast
            | RouteKind::Local
            | RouteKind::Broadcast
            | RouteKind::Anycast
            | RouteKind::Multicast
    ) {
        route.nexthops.clear();
    }
    Some(route)
}

/// RTA_FLOW: the source's realm in the upper half.
fn realm(attribute: &RouteAttribute) -> Option<u32> {
    match attribute {
        RouteAttribute::Realm(realm) => {
            Some(u32::from(realm.source) << 16 | u32::from(realm.destination))
        }
        _ => None,
    }
}

/// Attributes that a route has for its only hop, and a multipath route per hop.
#[derive(Default)]
struct Hop {
    via: Option<IpAddr>,
    link: Option<IfIndex>,
    encap: Option<String>,
}

impl Hop {
    fn take(&mut self, attribute: &RouteAttribute, unknown: &mut Vec<String>) {
        use netlink_packet_core::Nla;
        match attribute {
            RouteAttribute::Oif(index) => self.link = IfIndex::new(*index),
            RouteAttribute::Gateway(address) => self.via = ip(address),
            RouteAttribute::Via(RouteVia::Inet(ip)) => self.via = Some(IpAddr::V4(*ip)),
            RouteAttribute::Via(RouteVia::Inet6(ip)) => self.via = Some(IpAddr::V6(*ip)),
            RouteAttribute::EncapType(RouteLwEnCapType::None)
            | RouteAttribute::Encap(_)
            | RouteAttribute::CacheInfo(_)
            | RouteAttribute::Realm(_)
            | RouteAttribute::Expires(_)
            | RouteAttribute::MulticastExpires(_)
            | RouteAttribute::MfcStats(_)
            | RouteAttribute::TtlPropagate(_)
            | RouteAttribute::Iif(_) => {}
            RouteAttribute::EncapType(kind) => self.encap = Some(encap(*kind)),
            other => unknown.push(format!("RTA_{}", other.kind() & 0x3fff)),
        }
    }
}

fn next_hop(next: &RouteNextHop, unknown: &mut Vec<String>) -> NextHop {
    let mut hop = Hop::default();
    for attribute in &next.attributes {
        hop.take(attribute, unknown);
    }
    NextHop {
        via: hop.via,
        link: IfIndex::new(next.interface_index),
        weight: u16::from(next.hops) + 1,
        dead: next.flags.contains(RouteNextHopFlags::Dead),
        linkdown: next.flags.contains(RouteNextHopFlags::Linkdown),
        onlink: next.flags.contains(RouteNextHopFlags::Onlink),
        encap: hop.encap,
    }
}

pub(super) fn encap(kind: RouteLwEnCapType) -> String {
    format!("{kind:?}").to_ascii_lowercase()
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// RTN_*, include/uapi/linux/rtnetlink.h.
pub(super) fn kind(kind: u8) -> RouteKind {
    match kind {
        1 => RouteKind::Unicast,
        2 => RouteKind::Local,
        3 => RouteKind::Broadcast,
        4 => RouteKind::Anycast,
        5 => RouteKind::Multicast,
        6 => RouteKind::Blackhole,
        7 => RouteKind::Unreachable,
        8 => RouteKind::Prohibit,
        9 => RouteKind::Throw,
        other => RouteKind::Other(other),
    }
}
