//! What is inside tunnels whose packets anybody may read.
//!
//! Header layouts: RFC 7348 (VXLAN), RFC 8926 (Geneve), RFC 2784 and 2890 (GRE).

use super::decode::{ETHERNET, RAW};
use crate::model::capture::Point;
use crate::model::packet::{GreFields, Wrap};

/// IPPROTO_IPIP, IPPROTO_IPV6, IPPROTO_GRE
const IP_IN_IP: [u8; 2] = [4, 41];
const GRE: u8 = 47;
/// ETH_P_TEB, ETH_P_IP, ETH_P_IPV6: a frame, a packet.
const FRAME: u16 = 0x6558;
const PACKET: [u16; 2] = [0x0800, 0x86dd];
/// GRE_CSUM, GRE_KEY, GRE_SEQ, and the version, include/net/gre.h
const CHECKSUM: u16 = 0x8000;
const KEY: u16 = 0x2000;
const SEQUENCE: u16 = 0x1000;
const VERSION: u16 = 0x0007;

/// UDP ports by which tunnels are known.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ports<'a> {
    /// Of VXLAN.
    pub vxlan: &'a [u16],
    /// Of Geneve.
    pub geneve: &'a [u16],
}

impl<'a> Ports<'a> {
    /// Those of a device that is watched.
    pub fn of(point: &'a Point) -> Self {
        Self {
            vxlan: &point.vxlan,
            geneve: &point.geneve,
        }
    }
}

/// Whether packets of tunnels are looked into at a device.
pub(super) fn any(point: &Point) -> bool {
    !point.vxlan.is_empty() || !point.geneve.is_empty() || point.ipip || point.gre
}

/// The packet or frame inside.
#[derive(Debug)]
pub(super) struct Inside<'a> {
    /// From its first header on.
    pub bytes: &'a [u8],
    /// LINKTYPE_*
    pub link: u32,
    /// Number of the network.
    pub vni: Option<u32>,
    /// What it is wrapped in.
    pub wrap: Wrap,
}

/// Inside a datagram for a port.
pub(super) fn in_udp<'a>(port: u16, payload: &'a [u8], ports: Ports<'_>) -> Option<Inside<'a>> {
    let ([first, _, high, low, a, b, c, _], rest) = payload.split_first_chunk()?;
    let number = u32::from_be_bytes([0, *a, *b, *c]);
    if ports.vxlan.contains(&port) {
        return Some(Inside {
            bytes: rest,
            link: ETHERNET,
            vni: (first & 0x08 != 0).then_some(number),
            wrap: Wrap::Plain,
        });
    }
    // Version 0; options are counted in words.
    if !ports.geneve.contains(&port) || first >> 6 != 0 {
        return None;
    }
    Some(Inside {
        bytes: rest.get(usize::from(first & 0x3f) * 4..)?,
        link: link(u16::from_be_bytes([*high, *low]))?,
        vni: Some(number),
        wrap: Wrap::Geneve,
    })
}

/// Inside an IP packet of a protocol.
pub(super) fn in_ip(protocol: u8, payload: &[u8]) -> Option<Inside<'_>> {
    if IP_IN_IP.contains(&protocol) {
        return Some(Inside {
            bytes: payload,
            link: RAW,
            vni: None,
            wrap: Wrap::Plain,
        });
    }
    if protocol != GRE {
        return None;
    }
    let ([high, low, kind @ ..], rest) = payload.split_first_chunk::<4>()?;
    let flags = u16::from_be_bytes([*high, *low]);
    if flags & VERSION != 0 {
        return None;
    }
    let mut fields = GreFields {
        key: None,
        checksum: flags & CHECKSUM != 0,
        sequence: flags & SEQUENCE != 0,
    };
    let mut rest = rest.get(if fields.checksum { 4 } else { 0 }..)?;
    if flags & KEY != 0 {
        let (key, behind) = rest.split_first_chunk()?;
        fields.key = Some(u32::from_be_bytes(*key));
        rest = behind;
    }
    Some(Inside {
        bytes: rest.get(if fields.sequence { 4 } else { 0 }..)?,
        link: link(u16::from_be_bytes(*kind))?,
        vni: None,
        wrap: Wrap::Gre(fields),
    })
}

fn link(ethertype: u16) -> Option<u32> {
    match ethertype {
        FRAME => Some(ETHERNET),
        _ => PACKET.contains(&ethertype).then_some(RAW),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_geneve_are_passed_over() {
        let ports = Ports {
            vxlan: &[],
            geneve: &[6081],
        };
        let bytes = [1, 0, 0x65, 0x58, 0, 1, 2, 0, 9, 9, 9, 9, 7];
        let inside = in_udp(6081, &bytes, ports).expect("a frame inside");
        assert_eq!((inside.bytes, inside.link), (&[7][..], ETHERNET));
        assert_eq!(inside.vni, Some(0x102));
        assert!(in_udp(6081, &bytes[..11], ports).is_none());
        assert!(in_udp(6082, &bytes, ports).is_none());
    }

    #[test]
    fn optional_fields_of_gre_are_passed_over() {
        let bytes = [0xb0, 0, 8, 0, 1, 1, 0, 0, 0, 0, 0, 5, 0, 0, 0, 1, 0x45, 0];
        let inside = in_ip(GRE, &bytes).expect("a packet inside");
        assert_eq!((inside.bytes, inside.link), (&[0x45, 0][..], RAW));
        let fields = GreFields {
            key: Some(5),
            checksum: true,
            sequence: true,
        };
        assert_eq!(inside.wrap, Wrap::Gre(fields));
        for len in 0..16 {
            assert!(in_ip(GRE, &bytes[..len]).is_none(), "{len}");
        }
        // PPTP's.
        assert!(in_ip(GRE, &[0x20, 1, 0x88, 0x0b, 0, 0, 0, 0]).is_none());
    }
}
