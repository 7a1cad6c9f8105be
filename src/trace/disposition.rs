//! How a trace can end. docs/dispositions.md holds the table of conditions.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a trace ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Disposition {
    /// A socket (or, for echo, a kernel) took it.
    Delivered,
    /// It left for an address that no node known here owns.
    LeavesCluster,
    /// It is gone, and nobody is told.
    Dropped(DropReason),
    /// It is gone, and the sender is told.
    Rejected(RejectWith),
    /// It came back to where it was, unchanged; or the TTL ran out on the way.
    Loop,
    /// What was read does not suffice; what is missing, by name.
    Inconclusive(Vec<String>),
}

impl Disposition {
    /// The word used in output.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::LeavesCluster => "leaves-cluster",
            Self::Dropped(_) => "dropped",
            Self::Rejected(_) => "rejected",
            Self::Loop => "loop",
            Self::Inconclusive(_) => "inconclusive",
        }
    }
}

/// Why a packet is gone. Names are the kernel's `skb_drop_reason` where one exists
/// (include/net/dropreason-core.h, v6.12); the others say in their text what the kernel does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum DropReason {
    /// A netfilter rule or policy.
    NetfilterDrop,
    /// Reverse-path filter.
    IpRpfilter,
    /// Own address as source of a packet from outside.
    IpLocalSource,
    /// A source that can't be (multicast, broadcast, zero).
    IpInvalidSource,
    /// 127.0.0.0/8 on the wire.
    IpLocalnet,
    /// No route for a packet that is to be forwarded, or a blackhole route.
    IpInnoroutes,
    /// No route for a packet that is sent here.
    IpOutnoroutes,
    /// Nobody answers for the next hop.
    NeighFailed,
    /// The frame is addressed to another station.
    Otherhost,
    /// Larger than the MTU, with fragmentation forbidden.
    PktTooBig,
    /// No socket takes it, and the protocol sends no refusal.
    NoSocket,
    /// The listener has more connections that wait to be accepted than it allows (the kernel counts
    /// ListenOverflows).
    ListenOverflow,
    /// The receiver's or sender's device is down (the kernel counts it at the device).
    DevReady,
    /// Forwarding is off (the kernel counts InAddrErrors).
    ForwardingOff,
    /// The bridge port does not forward (state).
    BridgePortState,
    /// The frame would leave by the port it came in, and hairpin is off.
    BridgeHairpinOff,
    /// Both bridge ports are isolated.
    BridgeIsolated,
    /// The bridge does not know the address and does not flood, or has no other port.
    BridgeNoPort,
    /// Handed to a gateway that, by all that is known here, does not lead to the node it is for.
    NoRouteToNode,
    /// A VXLAN device has no forwarding entry for the address, or one that leads to nobody.
    VxlanNoRemote,
    /// The outer packet reached a node that has no such tunnel.
    VxlanVniNotFound,
    /// The frame's VLAN is not allowed on the port.
    VlanFilter,
    /// The answer does not belong to the connection that was asked for (the client resets it).
    NotFromPeer,
    /// An XFRM policy.
    XfrmPolicy,
    /// A queueing discipline.
    QdiscDrop,
    /// Another reason, in the step's text.
    NotSpecified,
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetfilterDrop => "NETFILTER_DROP",
            Self::IpRpfilter => "IP_RPFILTER",
            Self::IpLocalSource => "IP_LOCAL_SOURCE",
            Self::IpInvalidSource => "IP_INVALID_SOURCE",
            Self::IpLocalnet => "IP_LOCALNET",
            Self::IpInnoroutes => "IP_INNOROUTES",
            Self::IpOutnoroutes => "IP_OUTNOROUTES",
            Self::NeighFailed => "NEIGH_FAILED",
            Self::Otherhost => "OTHERHOST",
            Self::PktTooBig => "PKT_TOO_BIG",
            Self::NoSocket => "NO_SOCKET",
            Self::ListenOverflow => "LISTEN_OVERFLOW",
            Self::DevReady => "DEV_READY",
            Self::ForwardingOff => "FORWARDING_OFF",
            Self::BridgePortState => "BRIDGE_PORT_STATE",
            Self::BridgeHairpinOff => "BRIDGE_HAIRPIN_OFF",
            Self::BridgeIsolated => "BRIDGE_ISOLATED",
            Self::BridgeNoPort => "BRIDGE_NO_PORT",
            Self::NoRouteToNode => "NO_ROUTE_TO_NODE",
            Self::VxlanNoRemote => "VXLAN_NO_REMOTE",
            Self::VxlanVniNotFound => "VXLAN_VNI_NOT_FOUND",
            Self::VlanFilter => "VLAN_FILTER",
            Self::NotFromPeer => "NOT_FROM_PEER",
            Self::XfrmPolicy => "XFRM_POLICY",
            Self::QdiscDrop => "QDISC_DROP",
            Self::NotSpecified => "NOT_SPECIFIED",
        })
    }
}

/// What the sender is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RejectWith {
    /// TCP reset by a rule.
    TcpReset,
    /// TCP reset because nothing listens.
    PortClosed,
    /// ICMP port unreachable: a UDP port where nothing listens.
    PortUnreachable,
    /// ICMP unreachable by a rule; ICMP or ICMPv6 code.
    Icmp(u8),
    /// ICMP network unreachable: no route (locally: ENETUNREACH).
    NetUnreachable,
    /// ICMP host unreachable: route or neighbour (locally: EHOSTUNREACH).
    HostUnreachable,
    /// ICMP administratively prohibited, by a route (locally: EACCES).
    Prohibited,
    /// ICMP fragmentation needed, packet too big; the MTU (locally: EMSGSIZE).
    TooBig(u32),
    /// ICMP time exceeded.
    TtlExceeded,
    /// The call itself fails: a blackhole route or bad source (EINVAL).
    InvalidArgument,
}

impl fmt::Display for RejectWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TcpReset => f.write_str("tcp reset"),
            Self::PortClosed => f.write_str("connection refused (tcp reset)"),
            Self::PortUnreachable => f.write_str("icmp port unreachable"),
            Self::Icmp(code) => write!(f, "icmp unreachable, code {code}"),
            Self::NetUnreachable => f.write_str("network unreachable"),
            Self::HostUnreachable => f.write_str("host unreachable"),
            Self::Prohibited => f.write_str("administratively prohibited"),
            Self::TooBig(mtu) => write!(f, "too big for mtu {mtu}"),
            Self::TtlExceeded => f.write_str("ttl exceeded"),
            Self::InvalidArgument => f.write_str("invalid argument"),
        }
    }
}
