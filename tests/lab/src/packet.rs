//! Decoding of captured frames: Ethernet, ARP, IPv4, IPv6, TCP, UDP, ICMP, and tunnels (VXLAN, Geneve, IP in IP, GRE)
//! with what they carry.
//!
//! A frame that is cut short or of another kind decodes as far as it goes. Fragments after the first
//! have no ports.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// UDP port on which the laboratory's VXLAN runs.
const VXLAN_PORT: u16 = 8472;
/// UDP ports of Geneve: its own, and another in tests.
const GENEVE_PORTS: [u16; 2] = [6081, 6082];
/// UDP ports of WireGuard in tests.
const WIREGUARD_PORTS: std::ops::RangeInclusive<u16> = 51820..=51829;
/// IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_GRE.
const IPIP: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;

/// One Ethernet frame.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Frame {
    /// Source MAC address.
    pub source: [u8; 6],
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// EtherType, for instance 0x0800.
    pub ether_type: u16,
    /// IP packet; none for other EtherTypes.
    pub ip: Option<IpPacket>,
    /// ARP message.
    pub arp: Option<Arp>,
    /// Length of the frame in bytes, as captured.
    pub length: usize,
}

/// One ARP message for IPv4 over Ethernet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Sender's address.
    pub sender: Ipv4Addr,
    /// Address asked for, or asker's.
    pub target: Ipv4Addr,
}

/// One IP packet.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct IpPacket {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Differentiated services byte.
    pub tos: u8,
    /// IP protocol number, behind extension headers.
    pub protocol: u8,
    /// Transport header.
    pub transport: Transport,
}

/// Transport header, and what hides behind it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Transport {
    /// TCP.
    Tcp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// Flag byte: FIN 1, SYN 2, RST 4, PSH 8, ACK 16.
        flags: u8,
        /// Sequence number.
        sequence: u32,
        /// Acknowledgment number.
        acknowledgment: u32,
    },
    /// UDP.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// VXLAN or Geneve network identifier and inner frame, when it is such a packet.
        vxlan: Option<(u32, Box<Frame>)>,
        /// What WireGuard says by it, when it is such a packet.
        sealed: Option<Sealed>,
    },
    /// ICMP or ICMPv6.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The packet that an error message is about.
        about: Option<Box<IpPacket>>,
    },
    /// IP in IP or GRE, and the packet inside.
    Tunnel(Box<IpPacket>),
    /// Another protocol, a later fragment, or a header that is cut short.
    Other,
}

/// A packet of WireGuard, as far as it can be told from outside.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Sealed {
    /// Something for the other side is inside.
    Data,
    /// Its own: a handshake, or an empty packet that keeps the connection alive.
    Own,
}

impl Frame {
    /// Decodes a frame; `None` if it is shorter than an Ethernet header.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let ether_type = u16_at(bytes, 12)?;
        let payload = bytes.get(14..)?;
        Some(Self {
            destination: array(bytes, 0)?,
            source: array(bytes, 6)?,
            ether_type,
            ip: match ether_type {
                0x0800 => ipv4(payload),
                0x86dd => ipv6(payload),
                _ => None,
            },
            arp: (ether_type == 0x0806).then(|| arp(payload)).flatten(),
            length: bytes.len(),
        })
    }

    /// Decodes an IP packet, as devices without link-layer header have it; its addresses are zero.
    pub fn bare(bytes: &[u8]) -> Option<Self> {
        let v6 = bytes.first()? >> 4 == 6;
        Some(Self {
            destination: [0; 6],
            source: [0; 6],
            ether_type: if v6 { 0x86dd } else { 0x0800 },
            ip: if v6 { ipv6(bytes) } else { ipv4(bytes) },
            arp: None,
            length: bytes.len(),
        })
    }

    /// What WireGuard says by it, when it is such a packet.
    pub fn sealed(&self) -> Option<Sealed> {
        match self.innermost()?.transport {
            Transport::Udp { sealed, .. } => sealed,
            _ => None,
        }
    }

    /// The innermost IP packet: of the frame inside for VXLAN.
    pub fn innermost(&self) -> Option<&IpPacket> {
        self.ip.as_ref()?.innermost()
    }
}

impl IpPacket {
    fn innermost(&self) -> Option<&Self> {
        match &self.transport {
            Transport::Udp {
                vxlan: Some((_, inner)),
                ..
            } => inner.innermost(),
            Transport::Tunnel(inner) => inner.innermost(),
            _ => Some(self),
        }
    }

    /// Source and destination port of TCP and UDP.
    pub fn ports(&self) -> Option<(u16, u16)> {
        match self.transport {
            Transport::Tcp {
                source,
                destination,
                ..
            }
            | Transport::Udp {
                source,
                destination,
                ..
            } => Some((source, destination)),
            _ => None,
        }
    }

    /// Whether it is the first packet of a TCP connection.
    pub fn is_syn(&self) -> bool {
        matches!(self.transport, Transport::Tcp { flags, .. } if flags & 0x12 == 0x02)
    }
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array(bytes, at).map(u16::from_be_bytes)
}

fn arp(bytes: &[u8]) -> Option<Arp> {
    Some(Arp {
        operation: u16_at(bytes, 6)?,
        sender: Ipv4Addr::from(array::<4>(bytes, 14)?),
        target: Ipv4Addr::from(array::<4>(bytes, 24)?),
    })
}

fn ipv4(bytes: &[u8]) -> Option<IpPacket> {
    let header = usize::from(bytes.first()? & 0x0f) * 4;
    let protocol = *bytes.get(9)?;
    // The offset is what follows the three flags.
    let first_fragment = u16_at(bytes, 6)? << 3 == 0;
    let payload = bytes.get(header..).unwrap_or_default();
    Some(IpPacket {
        source: Ipv4Addr::from(array::<4>(bytes, 12)?).into(),
        destination: Ipv4Addr::from(array::<4>(bytes, 16)?).into(),
        ttl: *bytes.get(8)?,
        tos: *bytes.get(1)?,
        protocol,
        transport: if first_fragment {
            transport(protocol, payload)
        } else {
            Transport::Other
        },
    })
}

fn ipv6(bytes: &[u8]) -> Option<IpPacket> {
    let mut protocol = *bytes.get(6)?;
    let mut payload = bytes.get(40..)?;
    let mut first_fragment = true;
    // Hop-by-hop, routing, fragment and destination options. Each takes at least 8 bytes, so this ends.
    while matches!(protocol, 0 | 43 | 44 | 60) {
        let Some((&next, &units)) = payload.first().zip(payload.get(1)) else {
            break;
        };
        let length = if protocol == 44 {
            first_fragment = u16_at(payload, 2).is_some_and(|offset| offset & 0xfff8 == 0);
            8
        } else {
            8 + usize::from(units) * 8
        };
        protocol = next;
        payload = payload.get(length..).unwrap_or_default();
    }
    Some(IpPacket {
        source: Ipv6Addr::from(array::<16>(bytes, 8)?).into(),
        destination: Ipv6Addr::from(array::<16>(bytes, 24)?).into(),
        ttl: *bytes.get(7)?,
        // Between version and flow label.
        tos: (u16_at(bytes, 0)? >> 4).to_le_bytes()[0],
        protocol,
        transport: if first_fragment {
            transport(protocol, payload)
        } else {
            Transport::Other
        },
    })
}

fn transport(protocol: u8, bytes: &[u8]) -> Transport {
    let decoded = match protocol {
        1 | 58 => icmp(protocol, bytes),
        6 => tcp(bytes),
        17 => udp(bytes),
        IPIP => ipv4(bytes).map(Box::new).map(Transport::Tunnel),
        IPV6 => ipv6(bytes).map(Box::new).map(Transport::Tunnel),
        GRE => gre(bytes).map(Box::new).map(Transport::Tunnel),
        _ => None,
    };
    decoded.unwrap_or(Transport::Other)
}

fn tcp(bytes: &[u8]) -> Option<Transport> {
    Some(Transport::Tcp {
        source: u16_at(bytes, 0)?,
        destination: u16_at(bytes, 2)?,
        sequence: u32::from_be_bytes(array(bytes, 4)?),
        acknowledgment: u32::from_be_bytes(array(bytes, 8)?),
        flags: *bytes.get(13)?,
    })
}

/// Behind its header, which is longer by four bytes for each of checksum, key and sequence number.
fn gre(bytes: &[u8]) -> Option<IpPacket> {
    let flags = u16_at(bytes, 0)?;
    let more = [0x8000, 0x2000, 0x1000].map(|flag| usize::from(flags & flag != 0) * 4);
    let inside = bytes.get(4 + more.iter().sum::<usize>()..)?;
    match u16_at(bytes, 2)? {
        0x0800 => ipv4(inside),
        0x86dd => ipv6(inside),
        0x6558 => Frame::decode(inside)?.ip,
        _ => None,
    }
}

fn udp(bytes: &[u8]) -> Option<Transport> {
    let destination = u16_at(bytes, 2)?;
    let payload = bytes.get(8..)?;
    let is_vxlan = destination == VXLAN_PORT && payload.first() == Some(&0x08);
    // The two headers are alike but for options, which nobody here has.
    let is_geneve = GENEVE_PORTS.contains(&destination) && payload.first() == Some(&0);
    let vxlan = if is_vxlan || is_geneve {
        array::<4>(payload, 4)
            .map(|vni| u32::from_be_bytes(vni) >> 8)
            .zip(payload.get(8..).and_then(Frame::decode))
            .map(|(vni, frame)| (vni, Box::new(frame)))
    } else {
        None
    };
    let source = u16_at(bytes, 0)?;
    let is_wireguard = [source, destination]
        .iter()
        .any(|port| WIREGUARD_PORTS.contains(port));
    Some(Transport::Udp {
        source,
        destination,
        vxlan,
        sealed: is_wireguard.then(|| sealed(payload)).flatten(),
    })
}

/// By type and size: `struct message_handshake_initiation`, `_response`, `_cookie` and `message_data`
/// (drivers/net/wireguard/messages.h).
fn sealed(payload: &[u8]) -> Option<Sealed> {
    match (array::<4>(payload, 0)?, payload.len()) {
        ([1, 0, 0, 0], 148) | ([2, 0, 0, 0], 92) | ([3, 0, 0, 0], 64) | ([4, 0, 0, 0], 32) => {
            Some(Sealed::Own)
        }
        ([4, 0, 0, 0], 33..) => Some(Sealed::Data),
        _ => None,
    }
}

fn icmp(protocol: u8, bytes: &[u8]) -> Option<Transport> {
    let kind = *bytes.first()?;
    let quoted = bytes.get(8..).unwrap_or_default();
    let about = match (protocol, kind) {
        // Unreachable, time exceeded, parameter problem.
        (1, 3 | 11 | 12) => ipv4(quoted),
        // The same and packet too big.
        (58, 1..=4) => ipv6(quoted),
        _ => None,
    };
    Some(Transport::Icmp {
        kind,
        code: *bytes.get(1)?,
        about: about.map(Box::new),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tcpdump -xx` of a SYN from 10.244.1.7:40000 to 10.244.2.4:8080.
    fn syn() -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
        bytes.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 63, 6, 0, 0]);
        bytes.extend([10, 244, 1, 7, 10, 244, 2, 4]);
        bytes.extend([0x9c, 0x40, 0x1f, 0x90, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2]);
        bytes.extend([0; 6]);
        bytes
    }

    /// Ethernet's header of an IPv4 packet between two nodes.
    fn between_nodes() -> [u8; 14] {
        [2, 0, 0, 0, 0, 4, 2, 0, 0, 0, 0, 3, 8, 0]
    }

    /// IPv4's header, from 10.NET.0.11 to 10.NET.0.12.
    fn header(protocol: u8, net: u8) -> [u8; 20] {
        let mut header = [0; 20];
        header[0] = 0x45;
        header[8] = 64;
        header[9] = protocol;
        header[12..16].copy_from_slice(&[10, net, 0, 11]);
        header[16..].copy_from_slice(&[10, net, 0, 12]);
        header
    }

    #[test]
    fn a_syn_is_decoded() {
        let frame = Frame::decode(&syn()).unwrap();
        let ip = frame.ip.unwrap();
        assert_eq!(ip.source.to_string(), "10.244.1.7");
        assert_eq!(ip.ttl, 63);
        assert_eq!(ip.ports(), Some((40000, 8080)));
        assert!(ip.is_syn());
    }

    #[test]
    fn vxlan_shows_the_inner_frame() {
        let mut bytes = between_nodes().to_vec();
        bytes.extend(header(17, 88));
        bytes.extend([0xc0, 0, 0x21, 0x18, 0, 0, 0, 0]);
        bytes.extend([8, 0, 0, 0, 0, 0, 1, 0]);
        bytes.extend(syn());
        let frame = Frame::decode(&bytes).unwrap();
        assert_eq!(frame.innermost().unwrap().ports(), Some((40000, 8080)));
        let Transport::Udp {
            vxlan: Some((vni, _)),
            ..
        } = frame.ip.unwrap().transport
        else {
            panic!("not decoded as vxlan");
        };
        assert_eq!(vni, 1);
    }

    #[test]
    fn tunnels_inside_each_other_show_the_innermost_packet() {
        let mut bytes = between_nodes().to_vec();
        // IP in IP, and in that Geneve.
        bytes.extend(header(4, 88));
        bytes.extend(header(17, 89));
        bytes.extend([0xc0, 0, 0x17, 0xc1, 0, 0, 0, 0]);
        bytes.extend([0, 0, 0x65, 0x58, 0, 0, 1, 0]);
        bytes.extend(syn());
        let frame = Frame::decode(&bytes).unwrap();
        assert_eq!(frame.innermost().unwrap().ports(), Some((40000, 8080)));
    }

    #[test]
    fn every_cut_frame_decodes_without_panic() {
        let whole = syn();
        for length in 0..whole.len() {
            let _ = Frame::decode(&whole[..length]);
        }
    }
}
