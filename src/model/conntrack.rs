//! Connection tracking, as `conntrack -L` shows it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One direction of a flow, as conntrack keys it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Tuple {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// IPPROTO_*.
    pub protocol: u8,
    /// Source port; ICMP: id. `None`: not fixed (the flow is to come, its port is any free one).
    pub sport: Option<u16>,
    /// Destination port; ICMP: type << 8 | code. `None` as above.
    pub dport: Option<u16>,
}

impl Tuple {
    /// The tuple of packets that come back where nothing is translated.
    ///
    /// Source: `nf_ct_invert_tuple()`; ICMP echo request and reply are each other's answer.
    #[must_use]
    pub fn inverted(self) -> Self {
        const ICMP: u8 = 1;
        const ICMPV6: u8 = 58;
        if matches!(self.protocol, ICMP | ICMPV6) {
            let dport = self.dport.map(|type_code| {
                let kind = match (self.protocol, type_code >> 8) {
                    (ICMP, 8) => 0,
                    (ICMP, 0) => 8,
                    (ICMPV6, 128) => 129,
                    (ICMPV6, 129) => 128,
                    (_, other) => other,
                };
                kind << 8 | type_code & 0xff
            });
            return Self {
                src: self.dst,
                dst: self.src,
                dport,
                ..self
            };
        }
        Self {
            src: self.dst,
            dst: self.src,
            protocol: self.protocol,
            sport: self.dport,
            dport: self.sport,
        }
    }
}

/// An entry of the table. Source: IPCTNL_MSG_CT_NEW,
/// include/uapi/linux/netfilter/nfnetlink_conntrack.h.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackEntry {
    /// Packets of the side that opened the flow, before translation.
    pub orig: Tuple,
    /// Packets that come back, before they are translated back.
    pub reply: Tuple,
    /// IPS_* bits (see [`status`]).
    pub status: u32,
    /// Connection mark.
    pub mark: u32,
    /// Zone; 0 is the default.
    pub zone: u16,
    /// Seconds until it ends without further packets; `None` where not told (offloaded).
    pub timeout: Option<u32>,
    /// TCP_CONNTRACK_*: 1 SYN_SENT, 2 SYN_RECV, 3 ESTABLISHED ...
    pub tcp_state: Option<u8>,
    /// Label bits, as far as told.
    pub labels: Vec<u8>,
    /// Helper by name.
    pub helper: Option<String>,
}

/// Entries between two ends, put together by where they lead.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackFlows {
    /// One for each place that they lead to, in the kernel's order.
    pub groups: Vec<ConntrackGroup>,
    /// Entries that lead to more places than are kept.
    pub left_out: u32,
}

/// Entries that are translated alike: same reply source, port and destination, same zone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackGroup {
    /// That of them which lasts longest.
    pub entry: ConntrackEntry,
    /// How many there are.
    pub count: u32,
}

/// IPS_* bits of [`ConntrackEntry::status`].
pub mod status {
    /// A reply was seen.
    pub const SEEN_REPLY: u32 = 1 << 1;
    /// Not dropped early.
    pub const ASSURED: u32 = 1 << 2;
    /// In the table.
    pub const CONFIRMED: u32 = 1 << 3;
    /// The source is translated.
    pub const SRC_NAT: u32 = 1 << 4;
    /// The destination is translated.
    pub const DST_NAT: u32 = 1 << 5;
    /// Source translation was decided on.
    pub const SRC_NAT_DONE: u32 = 1 << 7;
    /// Destination translation was decided on.
    pub const DST_NAT_DONE: u32 = 1 << 8;
    /// In a flowtable.
    pub const OFFLOAD: u32 = 1 << 14;
}

/// Where translated addresses come from (`struct nf_nat_range2`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NatRange {
    /// NF_NAT_RANGE_*: 1 addresses, 2 ports, 4 random, 8 persistent, 16 fully random,
    /// 32 port offset, 64 netmap.
    pub flags: u32,
    /// First and last address, where flag 1 is set.
    pub addrs: Option<(IpAddr, IpAddr)>,
    /// First and last port, where flag 2 is set.
    pub ports: Option<(u16, u16)>,
    /// Port that the first port stands for, where flag 32 is set (`base_proto`).
    #[serde(default)]
    pub base: u16,
}
