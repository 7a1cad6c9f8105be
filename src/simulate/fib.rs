//! Route lookup.

use std::net::IpAddr;

use super::Cx;
use crate::model::route::{NextHop, Route, RouteKind};
use crate::model::rule::Rule;
use crate::model::{IfIndex, NsKey};

/// What is looked up (`struct flowi4`, `struct flowi6`).
#[derive(Clone, Debug)]
pub(crate) struct FibKey {
    /// Destination.
    pub(crate) dst: IpAddr,
    /// Source; `None`: not chosen yet.
    pub(crate) src: Option<IpAddr>,
    /// Device it came in by; `None`: sent here.
    pub(crate) iif: Option<IfIndex>,
    /// Device it must leave by.
    pub(crate) oif: Option<IfIndex>,
    /// Mark; `None`: unknown.
    pub(crate) mark: Option<u32>,
    /// Differentiated services byte.
    pub(crate) tos: u8,
    /// IPPROTO_*.
    pub(crate) protocol: u8,
    /// Source port.
    pub(crate) sport: Option<u16>,
    /// Destination port.
    pub(crate) dport: Option<u16>,
    /// Sender's uid.
    pub(crate) uid: Option<u32>,
}

/// A route that was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The policy rule that led to its table.
    pub(crate) rule: Rule,
    /// The route.
    pub(crate) route: Route,
    /// Usable next hops with the share of flows that take each.
    pub(crate) hops: Vec<(f64, NextHop)>,
}

/// Answer of a lookup.
#[derive(Clone, Debug)]
pub(crate) enum FibAnswer {
    /// A route of any kind but throw.
    Found(Box<Found>),
    /// A rule refuses.
    Refused(Rule),
    /// No route.
    NoRoute,
    /// Can't be known; what is missing.
    Unknown(String),
}

/// Looks a destination up through policy rules and tables.
pub(crate) fn lookup(_cx: &mut Cx<'_>, _ns: &NsKey, _key: &FibKey) -> FibAnswer {
    FibAnswer::Unknown(String::new())
}

/// Type of an address (`inet_dev_addr_type()`): looked up in table local; unicast where nothing is
/// found. With `dev`, the route must leave by that device. `Err`: what is missing.
pub(crate) fn addr_type(
    _cx: &mut Cx<'_>,
    _ns: &NsKey,
    _addr: IpAddr,
    _dev: Option<IfIndex>,
) -> Result<RouteKind, String> {
    Err(String::new())
}

/// Source that masquerading chooses (`inet_select_addr(out, nexthop, RT_SCOPE_UNIVERSE)`,
/// `ipv6_dev_get_saddr()`). `Ok(None)`: the device has none, and the kernel drops. `Err`: what is
/// missing.
pub(crate) fn masquerade_source(
    _cx: &mut Cx<'_>,
    _ns: &NsKey,
    _oif: IfIndex,
    _dst: IpAddr,
) -> Result<Option<IpAddr>, String> {
    Err(String::new())
}
