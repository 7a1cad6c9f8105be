//! Routes and next hops, as `ip route show table all` and `ip nexthop` show them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{IfIndex, Prefix};

/// Table 255: local and broadcast addresses.
pub const RT_TABLE_LOCAL: u32 = 255;
/// Table 254: where routes go that name no table.
pub const RT_TABLE_MAIN: u32 = 254;
/// Table 253.
pub const RT_TABLE_DEFAULT: u32 = 253;

/// One route. Source: RTM_NEWROUTE, include/uapi/linux/rtnetlink.h.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Table number (RTA_TABLE).
    pub table: u32,
    /// Destination.
    pub dst: Prefix,
    /// IPv6 source prefix (RTA_SRC), where it is not everything.
    pub src: Option<Prefix>,
    /// TOS it is for; 0 is any.
    pub tos: u8,
    /// Metric (RTA_PRIORITY); lower is preferred.
    pub metric: u32,
    /// What becomes of packets.
    pub kind: RouteKind,
    /// RT_SCOPE_*: 0 universe, 253 link, 254 host, 255 nowhere.
    pub scope: u8,
    /// RTPROT_*: who made it (2 kernel, 3 boot, 4 static, 12 bird, 80 felix, 186 bgp).
    pub protocol: u8,
    /// Preferred source address (RTA_PREFSRC).
    pub prefsrc: Option<IpAddr>,
    /// Where packets go; several are a multipath route. Empty for blackhole and the like.
    pub nexthops: Vec<NextHop>,
    /// Nexthop object id (RTA_NH_ID); the kernel also spells the hops out in `nexthops`.
    pub nh_id: Option<u32>,
    /// Largest packet in bytes (RTAX_MTU), where set.
    pub mtu: Option<u32>,
    /// IPv6 router preference (RTA_PREF) as the kernel numbers it: 0 medium, 1 high, 3 low.
    pub pref: u8,
    /// Realms that it or one of its hops gives to packets (RTA_FLOW), where it names any.
    #[serde(default)]
    pub realm: Option<u32>,
    /// Attributes that may change the way and that this program can't evaluate, by name.
    pub unknown: Vec<String>,
}

/// One way of a route (`struct rtnexthop`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextHop {
    /// Gateway (RTA_GATEWAY, or RTA_VIA of the other family); none: the destination is on the link.
    pub via: Option<IpAddr>,
    /// Output device.
    pub link: Option<IfIndex>,
    /// Share among its siblings: 1 to 256 (`rtnh_hops` + 1).
    pub weight: u16,
    /// RTNH_F_DEAD.
    pub dead: bool,
    /// RTNH_F_LINKDOWN: the device has no carrier.
    pub linkdown: bool,
    /// RTNH_F_ONLINK: the gateway is taken to be on the link.
    pub onlink: bool,
    /// Lightweight tunnel (RTA_ENCAP_TYPE) by name, where there is one: the way is unknown.
    pub encap: Option<String>,
}

/// What becomes of packets (RTN_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RouteKind {
    /// Forwarded or sent.
    Unicast,
    /// For this host.
    Local,
    /// To all on the link.
    Broadcast,
    /// For this host, shared address.
    Anycast,
    /// To a group.
    Multicast,
    /// Dropped silently.
    Blackhole,
    /// Refused with "host unreachable".
    Unreachable,
    /// Refused with "administratively prohibited".
    Prohibit,
    /// The lookup goes on with the next rule.
    Throw,
    /// A type this program does not know.
    Other(u8),
}

impl RouteKind {
    /// Whether such a route refuses what it is found for (`fib_props[].error`), rather than ending a table's search.
    pub fn refuses(self) -> bool {
        matches!(self, Self::Blackhole | Self::Unreachable | Self::Prohibit)
    }
}
