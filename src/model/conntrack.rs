//! Connection tracking, as `conntrack -L` shows it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::prefix::Prefix;

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

/// TCP_CONNTRACK_* by their numbers, as nft and `conntrack` (in capitals) call them.
///
/// Source: include/uapi/linux/netfilter/nf_conntrack_tcp.h.
pub const TCP_STATES: [&str; 10] = [
    "none",
    "syn_sent",
    "syn_recv",
    "established",
    "fin_wait",
    "close_wait",
    "last_ack",
    "time_wait",
    "close",
    "syn_sent2",
];

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
    /// Zone of the original direction; 0 is the default.
    pub zone: u16,
    /// Zone of the reply direction: the same, but where a rule gave one direction a zone of its own.
    #[serde(default)]
    pub reply_zone: u16,
    /// Seconds until it ends without further packets; `None` where not told (offloaded).
    pub timeout: Option<u32>,
    /// TCP_CONNTRACK_*: 1 SYN_SENT, 2 SYN_RECV, 3 ESTABLISHED ...
    pub tcp_state: Option<u8>,
    /// IP_CT_TCP_FLAG_* of the side that opened and of the other: 4, it closed first.
    #[serde(default)]
    pub tcp_flags: Option<(u8, u8)>,
    /// Label bits, as far as told.
    pub labels: Vec<u8>,
    /// Helper by name.
    pub helper: Option<String>,
    /// Packets and bytes of both directions; `None`: not counted (net.netfilter.nf_conntrack_acct).
    #[serde(default)]
    pub counters: Option<[Counted; 2]>,
    /// Original tuple of the connection whose helper expected this one.
    #[serde(default)]
    pub master: Option<Tuple>,
}

/// What one direction of a connection has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Packets.
    pub packets: u64,
    /// Bytes from the IP header on.
    pub bytes: u64,
}

impl ConntrackEntry {
    /// An entry of zone 0 of which only the tuples are known.
    #[must_use]
    pub fn new(orig: Tuple, reply: Tuple) -> Self {
        Self {
            orig,
            reply,
            status: 0,
            mark: 0,
            zone: 0,
            reply_zone: 0,
            timeout: None,
            tcp_state: None,
            tcp_flags: None,
            labels: Vec::new(),
            helper: None,
            counters: None,
            master: None,
        }
    }
}

/// Which entries are wanted; what is not set lets all pass.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ConntrackFilter {
    /// IPv6 entries, or IPv4 ones.
    pub v6: Option<bool>,
    /// IPPROTO_*.
    pub protocol: Option<u8>,
    /// Source and destination of the original direction.
    pub orig: (Option<Prefix>, Option<Prefix>),
    /// Source and destination of the reply direction.
    pub reply: (Option<Prefix>, Option<Prefix>),
    /// Any of the four addresses.
    pub any: Option<Prefix>,
    /// Source and destination port of the original direction.
    pub orig_ports: (Option<u16>, Option<u16>),
    /// Source and destination port of the reply direction.
    pub reply_ports: (Option<u16>, Option<u16>),
    /// Any of the four ports.
    pub any_port: Option<u16>,
    /// Mark, and which of its bits count.
    pub mark: Option<(u32, u32)>,
    /// Zone, of either direction.
    pub zone: Option<u16>,
    /// IPS_* bits that must be set, and bits that must not.
    pub status: (u32, u32),
    /// TCP_CONNTRACK_*.
    pub tcp_state: Option<u8>,
}

impl ConntrackFilter {
    /// Whether an entry is wanted.
    pub fn lets_pass(&self, entry: &ConntrackEntry) -> bool {
        let (orig, reply) = (&entry.orig, &entry.reply);
        let within =
            |wanted: Option<Prefix>, addr| wanted.is_none_or(|prefix| prefix.contains(addr));
        // An id and type are no ports.
        let ports = !matches!(orig.protocol, 1 | 58);
        let port =
            |wanted: Option<u16>, own: Option<u16>| wanted.is_none() || ports && wanted == own;
        let (set, unset) = self.status;
        self.v6.is_none_or(|v6| orig.src.is_ipv6() == v6)
            && self.protocol.is_none_or(|own| own == orig.protocol)
            && within(self.orig.0, orig.src)
            && within(self.orig.1, orig.dst)
            && within(self.reply.0, reply.src)
            && within(self.reply.1, reply.dst)
            && self.any.is_none_or(|prefix| {
                [orig.src, orig.dst, reply.src, reply.dst]
                    .into_iter()
                    .any(|addr| prefix.contains(addr))
            })
            && port(self.orig_ports.0, orig.sport)
            && port(self.orig_ports.1, orig.dport)
            && port(self.reply_ports.0, reply.sport)
            && port(self.reply_ports.1, reply.dport)
            && self.any_port.is_none_or(|wanted| {
                [orig.sport, orig.dport, reply.sport, reply.dport]
                    .into_iter()
                    .any(|own| port(Some(wanted), own))
            })
            && self
                .mark
                .is_none_or(|(value, mask)| entry.mark & mask == value & mask)
            && self
                .zone
                .is_none_or(|zone| zone == entry.zone || zone == entry.reply_zone)
            && entry.status & set == set
            && entry.status & unset == 0
            && self
                .tcp_state
                .is_none_or(|own| entry.tcp_state == Some(own))
    }
}

/// What conntrack counts in a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackStats {
    /// Entries that there are.
    pub entries: u32,
    /// Most entries that there may be; `None`: older than 4.18, which don't tell.
    pub max: Option<u32>,
    /// By CPU, in the kernel's order. The counts wrap.
    pub cpus: Vec<CpuStats>,
}

/// What one CPU counted since the namespace was made (`struct ip_conntrack_stat`); `None`: this kernel does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuStats {
    /// Number of the CPU.
    pub cpu: u16,
    /// Searches that found an entry where a new one was to be.
    pub found: Option<u32>,
    /// Packets that can't be tracked.
    pub invalid: Option<u32>,
    /// Entries put in by programs.
    pub insert: Option<u32>,
    /// Entries that found another in their place: the packet is dropped, unless the clash is resolved.
    pub insert_failed: Option<u32>,
    /// Packets dropped since no entry could be made.
    pub drop: Option<u32>,
    /// Entries given up for new ones, the table being full.
    pub early_drop: Option<u32>,
    /// Packets whose headers are broken.
    pub error: Option<u32>,
    /// Searches begun anew.
    pub search_restart: Option<u32>,
    /// Clashes of two packets of one flow that were resolved.
    pub clash_resolve: Option<u32>,
    /// Entries not made since too many share a bucket.
    pub chaintoolong: Option<u32>,
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
    /// A helper expected it.
    pub const EXPECTED: u32 = 1 << 0;
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
    /// About to go.
    pub const DYING: u32 = 1 << 9;
    /// Its time is set by a program, and not renewed by packets.
    pub const FIXED_TIMEOUT: u32 = 1 << 10;
    /// A helper was assigned.
    pub const HELPER: u32 = 1 << 13;
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
