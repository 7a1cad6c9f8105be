//! What is to be watched, packets that were seen, and packets to send so that they are seen.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::conntrack::Tuple;
use super::packet::Packet;
use super::{NetNsId, Section};

/// Name of all devices of a namespace at once. Packets have no link-layer addresses there.
pub const ANY: &str = "any";

/// The loopback device. What it sends it receives at once, and libpcap shows only that (`linux_check_direction()`).
pub const LOOPBACK: &str = "lo";

/// Places to watch, all at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// Devices.
    pub points: Vec<Point>,
    /// Most bytes of each packet.
    pub snaplen: u32,
    /// Also what is behind the headers.
    pub payload: bool,
    /// Devices are told to take packets for other stations, too.
    pub promiscuous: bool,
    /// Headers are wanted in words ([`Seen::packet`]).
    pub decoded: bool,
    /// Bytes are wanted ([`Seen::bytes`]).
    pub bytes: bool,
}

/// One device to watch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Point {
    /// Its namespace.
    pub netns: NetNsId,
    /// Its name, or [`ANY`].
    pub dev: String,
    /// What is wanted, in pcap's language; empty for all.
    pub filter: String,
    /// UDP ports of VXLAN: packets inside are wanted by the same filter.
    pub vxlan: Vec<u16>,
    /// The same of Geneve.
    #[serde(default)]
    pub geneve: Vec<u16>,
    /// Packets inside IP packets (`ipip`, `sit`, `ip6tnl`) are wanted by the same filter.
    pub ipip: bool,
    /// The same of GRE.
    #[serde(default)]
    pub gre: bool,
    /// Ends of wanted packets inside VXLAN and Geneve, where they are known, so that the kernel leaves out others.
    pub hosts: Vec<IpAddr>,
    /// Packets that the kernel drops in the namespace, in place of those that pass; of all devices ([`ANY`]).
    #[serde(default)]
    pub dropped: bool,
}

/// Whether a point is watched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// LINKTYPE_* of its packets, or why it is not watched.
    pub link: Result<u32, String>,
}

/// A packet that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Position in [`Watch::points`].
    pub point: u32,
    /// Nanoseconds since 1970 by the node's clock.
    pub time: i64,
    /// Bytes on the wire, link-layer header included.
    pub len: u32,
    /// Its first bytes; empty where they were not wanted.
    pub bytes: Vec<u8>,
    /// Device, where all were watched.
    pub ifindex: Option<u32>,
    /// It was sent by the device; received where false. `None` where that can't be told.
    pub out: Option<bool>,
    /// Its headers; `None` where they were not wanted, or it is no IP or ARP packet.
    pub packet: Option<Packet>,
    /// What no translation changes.
    pub mark: Option<Mark>,
    /// Why the kernel dropped it, where that is what was watched.
    #[serde(default)]
    pub dropped: Option<Dropped>,
}

/// The kernel's word on a packet that it dropped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// `enum skb_drop_reason` of that kernel: numbers differ between versions.
    pub reason: u32,
    /// Its name without `SKB_DROP_REASON_`: `NETFILTER_DROP`. Of reasons of a kernel module, the subsystem and the
    /// number in it. `None` where the kernel's types have none.
    pub name: Option<String>,
    /// Function that dropped it; `None` where the kernel has no names of functions.
    pub function: Option<String>,
}

/// What tells a packet from others wherever it is seen, translated or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Mark {
    /// Sequence and acknowledgement number of TCP.
    Tcp {
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
    },
    /// FNV-1a of the first 32 bytes behind the header of UDP or an ICMP echo.
    Payload(u64),
}

/// Packets and losses of one point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Losses {
    /// Packets that fitted the filter.
    pub received: u32,
    /// Of these, lost because nobody took them in time.
    pub dropped: u32,
    /// Lost by the device or its driver.
    pub if_dropped: u32,
}

/// A point that is watched no longer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// Position in [`Watch::points`].
    pub point: u32,
    /// Operation, device and cause.
    pub why: String,
    /// What it saw and lost until then.
    pub losses: Losses,
}

/// One packet or exchange to send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Namespace that it is sent from.
    pub netns: NetNsId,
    /// Source address; the kernel's choice where `None`.
    pub src: Option<IpAddr>,
    /// Source port, or id of an echo; one without a conntrack entry where `None`.
    pub sport: Option<u16>,
    /// Nothing is sent where a socket or a conntrack entry has that port: [`Answer::Taken`].
    pub unused: bool,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port; none for an echo.
    pub dport: Option<u16>,
    /// IPPROTO_TCP, _UDP, _ICMP or _ICMPV6.
    pub protocol: u8,
    /// What a UDP packet or an echo carries.
    pub payload: Vec<u8>,
    /// Milliseconds that an answer may take.
    pub wait: u32,
    /// Of an echo: one packet that nobody may cut (DF), whatever is known of the path's MTU, and no waiting for its
    /// answer. [`Answer::Failed`] where the own kernel refuses it, else [`Answer::Silent`].
    #[serde(default)]
    pub whole: bool,
}

/// How a probe ended, as its own socket saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probed {
    /// Source address and port (or id of the echo) that it had.
    pub from: Option<(IpAddr, u16)>,
    /// What came back.
    pub answer: Answer,
    /// Microseconds from the sending to that.
    pub micros: u64,
    /// What conntrack of its namespace expects of an answer: the reverse of what the probe left as.
    pub expects: Option<Tuple>,
}

/// What came back to a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// A connection, or a packet.
    Answered,
    /// TCP reset, or ICMP port unreachable.
    Refused,
    /// Another error, in the kernel's words.
    Failed(String),
    /// Nothing in the time.
    Silent,
    /// Nothing was sent: the port is in use.
    Taken,
}

/// What a namespace counts, as the kernel names it: `IpInDiscards`, `TcpExtListenDrops`, `Ip6InNoRoutes`,
/// `XfrmInError`, `eth0 rx_dropped`, `conntrack invalid`, `softnet dropped` (of all namespaces).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// By name.
    pub of: BTreeMap<String, u64>,
    /// What can't be read, and why.
    pub missing: Vec<String>,
}

/// Counts of one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    /// Namespace.
    pub netns: NetNsId,
    /// What it counts.
    pub counts: Section<Counts>,
}
