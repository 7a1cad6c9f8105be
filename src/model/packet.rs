//! The packet whose way is looked for.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::MacAddr;
use super::conntrack::Tuple;
use super::wireguard::PublicKey;

/// IPPROTO_ICMP
pub const ICMP: u8 = 1;
/// IPPROTO_TCP
pub const TCP: u8 = 6;
/// IPPROTO_UDP
pub const UDP: u8 = 17;
/// IPPROTO_ICMPV6
pub const ICMPV6: u8 = 58;
/// IPPROTO_SCTP
pub const SCTP: u8 = 132;

/// One IP packet with what is known of its headers, and the packet inside where it is a tunnel's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Link-layer addresses (source, destination), while it is on a link that has them.
    pub eth: Option<(MacAddr, MacAddr)>,
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Time to live, hop limit.
    pub ttl: u8,
    /// Differentiated services byte.
    pub tos: u8,
    /// Don't fragment (IPv4).
    pub df: bool,
    /// Bytes from the IP header on.
    pub len: u32,
    /// What it carries.
    pub l4: L4,
    /// Packet inside a tunnel packet, and the tunnel's id (VNI); what an ICMP error quotes.
    pub inner: Option<Box<Inner>>,
}

/// A packet inside another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inner {
    /// VXLAN or Geneve network identifier, where it is such.
    pub vni: Option<u32>,
    /// What else the headers between say.
    #[serde(default)]
    pub wrap: Wrap,
    /// The packet.
    pub packet: Packet,
}

/// What headers between an outer packet and the one inside say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wrap {
    /// Nothing: IP in IP, VXLAN, or what an error quotes.
    #[default]
    Plain,
    /// GRE.
    Gre(GreFields),
    /// Geneve.
    Geneve,
    /// WireGuard: nobody on the way sees what is inside.
    Wireguard {
        /// The sender's key.
        from: PublicKey,
        /// The key of whom it is for.
        to: PublicKey,
        /// Both have to have a key that was shared beforehand.
        preshared: bool,
    },
}

/// Optional fields of a GRE header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GreFields {
    /// Key.
    pub key: Option<u32>,
    /// There is a checksum.
    pub checksum: bool,
    /// There is a sequence number.
    pub sequence: bool,
}

impl GreFields {
    /// Bytes that they take.
    pub fn bytes(self) -> u32 {
        4 * (u32::from(self.key.is_some()) + u32::from(self.checksum) + u32::from(self.sequence))
    }
}

/// Transport header. Ports of `None` are any free port that the sender's kernel will choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum L4 {
    /// TCP.
    Tcp {
        /// Source port.
        sport: Option<u16>,
        /// Destination port.
        dport: Option<u16>,
        /// Flags: 1 FIN, 2 SYN, 4 RST, 8 PSH, 16 ACK.
        flags: u8,
    },
    /// UDP.
    Udp {
        /// Source port.
        sport: Option<u16>,
        /// Destination port.
        dport: Option<u16>,
    },
    /// SCTP.
    Sctp {
        /// Source port.
        sport: Option<u16>,
        /// Destination port.
        dport: Option<u16>,
    },
    /// ICMP or ICMPv6 echo.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Identifier; any where `None`.
        id: Option<u16>,
    },
    /// No IP packet but an ARP one; its addresses are the protocol addresses of sender and target.
    Arp {
        /// ARPOP_*: 1 request, 2 reply.
        op: u16,
    },
    /// Another protocol, by number.
    Other(u8),
}

impl Packet {
    /// A packet of 60 bytes that is not to be cut, with a TTL of 64.
    pub fn new(src: IpAddr, dst: IpAddr, l4: L4) -> Self {
        Self {
            eth: None,
            src,
            dst,
            ttl: 64,
            tos: 0,
            df: true,
            len: 60,
            l4,
            inner: None,
        }
    }

    /// What is inside of all that is around it: out of every tunnel, and what an error quotes.
    pub fn innermost(&self) -> &Self {
        let mut packet = self;
        while let Some(inner) = &packet.inner {
            packet = &inner.packet;
        }
        packet
    }

    /// IPPROTO_* number of what it carries; 0 for ARP.
    pub fn protocol(&self) -> u8 {
        match self.l4 {
            L4::Tcp { .. } => TCP,
            L4::Udp { .. } => UDP,
            L4::Sctp { .. } => SCTP,
            L4::Icmp { .. } if self.src.is_ipv6() => ICMPV6,
            L4::Icmp { .. } => ICMP,
            L4::Arp { .. } => 0,
            L4::Other(number) => number,
        }
    }

    /// Ethertype (ETH_P_*).
    pub fn ethertype(&self) -> u16 {
        match self.l4 {
            L4::Arp { .. } => 0x0806,
            _ if self.src.is_ipv6() => 0x86dd,
            _ => 0x0800,
        }
    }

    /// Source port, where the protocol has ports and it is known.
    pub fn sport(&self) -> Option<u16> {
        match self.l4 {
            L4::Tcp { sport, .. } | L4::Udp { sport, .. } | L4::Sctp { sport, .. } => sport,
            L4::Icmp { .. } | L4::Arp { .. } | L4::Other(_) => None,
        }
    }

    /// Destination port, where the protocol has ports and it is known.
    pub fn dport(&self) -> Option<u16> {
        match self.l4 {
            L4::Tcp { dport, .. } | L4::Udp { dport, .. } | L4::Sctp { dport, .. } => dport,
            L4::Icmp { .. } | L4::Arp { .. } | L4::Other(_) => None,
        }
    }

    /// Sets the source port of a protocol that has ports; the id of an echo.
    pub fn set_sport(&mut self, port: Option<u16>) {
        match &mut self.l4 {
            L4::Tcp { sport, .. } | L4::Udp { sport, .. } | L4::Sctp { sport, .. } => *sport = port,
            L4::Icmp { id, .. } => *id = port,
            L4::Arp { .. } | L4::Other(_) => {}
        }
    }

    /// Sets the destination port of a protocol that has ports.
    pub fn set_dport(&mut self, port: Option<u16>) {
        match &mut self.l4 {
            L4::Tcp { dport, .. } | L4::Udp { dport, .. } | L4::Sctp { dport, .. } => *dport = port,
            L4::Icmp { .. } | L4::Arp { .. } | L4::Other(_) => {}
        }
    }

    /// Whether it is a tunnel's, with a packet inside; an ICMP error only quotes one.
    pub fn is_tunnel(&self) -> bool {
        self.inner.is_some() && !matches!(self.l4, L4::Icmp { .. })
    }

    /// Packets inside of each other within it, itself not counted.
    pub fn depth(&self) -> usize {
        let first = self.inner.as_deref();
        std::iter::successors(first, |inner| inner.packet.inner.as_deref()).count()
    }

    /// The tuple conntrack would key it by.
    ///
    /// Source: `nf_ct_get_tuple()`, net/netfilter/nf_conntrack_core.c.
    pub fn tuple(&self) -> Tuple {
        let (sport, dport) = match self.l4 {
            L4::Tcp { sport, dport, .. } | L4::Udp { sport, dport } | L4::Sctp { sport, dport } => {
                (sport, dport)
            }
            L4::Icmp { kind, code, id } => (id, Some(u16::from(kind) << 8 | u16::from(code))),
            L4::Arp { .. } | L4::Other(_) => (Some(0), Some(0)),
        };
        Tuple {
            src: self.src,
            dst: self.dst,
            protocol: self.protocol(),
            sport,
            dport,
        }
    }

    /// The answer that the destination's socket or kernel would send, link-layer addresses unset.
    ///
    /// An echo's answer has its differentiated services (`icmp_reply()`, `icmpv6_echo_reply()`); sockets have
    /// their own, which is 0 unless programs or net.ipv4.tcp_reflect_tos say otherwise.
    #[must_use]
    pub fn reply(&self, ttl: u8) -> Self {
        let l4 = match self.l4 {
            L4::Tcp { sport, dport, .. } => L4::Tcp {
                sport: dport,
                dport: sport,
                flags: 0x12,
            },
            L4::Udp { sport, dport } => L4::Udp {
                sport: dport,
                dport: sport,
            },
            L4::Sctp { sport, dport } => L4::Sctp {
                sport: dport,
                dport: sport,
            },
            L4::Icmp { id, .. } if self.src.is_ipv6() => L4::Icmp {
                kind: 129,
                code: 0,
                id,
            },
            L4::Icmp { id, .. } => L4::Icmp {
                kind: 0,
                code: 0,
                id,
            },
            L4::Arp { .. } => L4::Arp { op: 2 },
            L4::Other(number) => L4::Other(number),
        };
        Self {
            eth: None,
            src: self.dst,
            dst: self.src,
            ttl,
            tos: match self.l4 {
                L4::Icmp { .. } => self.tos,
                _ => 0,
            },
            df: self.df,
            len: self.len,
            l4,
            inner: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_echoes_give_differentiated_services_back() {
        let echo = L4::Icmp {
            kind: 8,
            code: 0,
            id: Some(1),
        };
        let udp = L4::Udp {
            sport: Some(40000),
            dport: Some(53),
        };
        for (l4, tos) in [(echo, 0x28), (udp, 0)] {
            let question = Packet {
                eth: None,
                src: IpAddr::from([10, 0, 0, 1]),
                dst: IpAddr::from([10, 0, 0, 2]),
                ttl: 63,
                tos: 0x28,
                df: true,
                len: 60,
                l4,
                inner: None,
            };
            assert_eq!(question.reply(64).tos, tos);
        }
    }
}
