//! A network of namespaces as data: what is given to `ip`, `bridge`, `iptables-restore`, `nft` and `/proc/sys`,
//! line by line, so that a case can be saved, made smaller and made again.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct World {
    /// Namespaces.
    pub places: Vec<Place>,
}

impl World {
    /// How many lines for `ip` and `bridge` and settings it has.
    pub fn lines(&self) -> usize {
        let lines = |place: &Place| {
            let settings = place.early.len() + place.late.len();
            settings
                + place.links.len()
                + place.ip.len()
                + place.bridge.len()
                + place.wireguard.len()
        };
        self.places.iter().map(lines).sum()
    }
}

/// One namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Name, which lines of other namespaces use as `@NAME@`.
    pub name: String,
    /// Settings before there are devices.
    pub early: Vec<Setting>,
    /// Lines for `ip -batch` that make devices, in all namespaces before any other line.
    pub links: Vec<String>,
    /// Other lines for `ip -batch`.
    pub ip: Vec<String>,
    /// Lines for `bridge -batch`.
    pub bridge: Vec<String>,
    /// What `wg` is told, a line each; private and preshared keys stand in the line, and `of KEY` is a private key's public one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub wireguard: Vec<String>,
    /// Settings once there are devices.
    pub late: Vec<Setting>,
    /// Lines for `ipset restore`.
    pub ipsets: Vec<String>,
    /// Rules.
    pub rules: Vec<Rules>,
    /// Sockets that wait for packets.
    pub listeners: Vec<Listener>,
}

/// A value below `/proc/sys/net`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting(pub String, pub String);

/// A rule set for one loader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rules {
    /// For `iptables-restore` of either backend.
    Iptables {
        /// The legacy backend.
        legacy: bool,
        /// IPv6.
        v6: bool,
        /// Tables.
        tables: Vec<Table>,
    },
    /// Commands for `nft -f`.
    Nft(Vec<String>),
}

/// A table for `iptables-restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Name.
    pub name: String,
    /// Lines that declare chains.
    pub chains: Vec<String>,
    /// Lines that append rules.
    pub rules: Vec<String>,
}

impl Table {
    /// As `iptables-restore` takes it.
    pub fn text(&self) -> String {
        let lines = [self.chains.as_slice(), self.rules.as_slice()].concat();
        format!("*{}\n{}\nCOMMIT\n", self.name, lines.join("\n"))
    }
}

/// A socket that waits for packets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// UDP; TCP otherwise.
    pub udp: bool,
    /// Address that it is bound to.
    pub addr: IpAddr,
    /// Port.
    pub port: u16,
    /// Device that it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A connection, datagrams or echoes there and back, by sockets.
    Exchange,
    /// One packet from a raw socket.
    Raw {
        /// TCP flags.
        flags: u8,
        /// ICMP type and code.
        icmp: (u8, u8),
        /// SO_MARK.
        mark: u32,
        /// TTL.
        ttl: u8,
        /// Differentiated services.
        tos: u8,
        /// Don't fragment.
        df: bool,
        /// Bytes behind the transport header.
        payload: u16,
    },
    /// An ICMP error about a packet from the probe's source to its destination, sent to that source.
    Error {
        /// Type and code.
        icmp: (u8, u8),
        /// Whose error it is.
        by: IpAddr,
    },
}

impl Kind {
    /// A raw packet with nothing special in its IP header.
    pub fn raw(flags: u8, icmp: (u8, u8), payload: u16) -> Self {
        Self::Raw {
            flags,
            icmp,
            mark: 0,
            ttl: 64,
            tos: 0,
            df: true,
            payload,
        }
    }
}

/// A packet to send.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// Namespace.
    pub from: String,
    /// How.
    pub kind: Kind,
    /// IPPROTO_*.
    pub protocol: u8,
    /// Address it is sent from; `None`: the kernel chooses.
    pub src: Option<IpAddr>,
    /// Destination.
    pub dst: IpAddr,
    /// Source port, or id of an echo.
    pub sport: u16,
    /// Destination port.
    pub dport: u16,
    /// User and group of the socket.
    pub id: u32,
    /// Device that the socket is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.protocol {
            6 => "tcp",
            17 => "udp",
            _ => "icmp",
        };
        let src = self
            .src
            .map_or_else(|| "any".to_owned(), |src| src.to_string());
        write!(
            f,
            "{} {name} {src} port {} > {} port {}",
            self.from, self.sport, self.dst, self.dport
        )?;
        if let Kind::Raw {
            flags,
            icmp,
            mark,
            ttl,
            tos,
            df,
            payload,
        } = self.kind
        {
            write!(
                f,
                " raw flags {flags:#x} icmp {icmp:?} mark {mark:#x} ttl {ttl} tos {tos:#x} df {df} payload {payload}"
            )?;
        }
        if let Kind::Error { icmp, by } = self.kind {
            write!(f, " error {icmp:?} by {by}")?;
        }
        if let Some(dev) = &self.dev {
            write!(f, " dev {dev}")?;
        }
        write!(f, " id {}", self.id)
    }
}

impl Probe {
    /// Bytes from the IP header on.
    pub fn length(&self) -> u32 {
        let head = if self.dst.is_ipv6() { 40 } else { 20 };
        head + match (self.kind, self.protocol) {
            (Kind::Exchange, 6) => 40,
            (Kind::Raw { payload, .. }, 6) => 20 + u32::from(payload),
            (Kind::Exchange, 17) => 9,
            (Kind::Raw { payload, .. }, _) => 8 + u32::from(payload),
            (Kind::Error { .. }, _) => 8 + self.quoted().length(),
            _ => 8,
        }
    }

    /// The packet that an error is about.
    #[must_use]
    pub fn quoted(&self) -> Self {
        let echo = if self.dst.is_ipv6() { 128 } else { 8 };
        Self {
            kind: Kind::raw(2, (echo, 0), u16::from(self.protocol == 17)),
            ..self.clone()
        }
    }
}

/// A network and packets that are sent through it one after the other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// Network.
    pub world: World,
    /// Packets; the last one is the one that is judged.
    pub probes: Vec<Probe>,
}
