//! Bytes of a captured Ethernet frame -> packet.

use std::net::IpAddr;

use etherparse::{LaxNetSlice, LaxSlicedPacket, LinkSlice, TransportSlice};

use crate::model::MacAddr;
use crate::model::packet::{Inner, L4, Packet};

/// Bytes of UDP and VXLAN header before the inner frame.
const VXLAN_HEADER: usize = 8;

/// Decodes a frame, and the frame inside where it is UDP to `vxlan_port`. `None` for anything that is
/// no IP packet, or is cut before its addresses.
pub fn decode(frame: &[u8], vxlan_port: Option<u16>) -> Option<Packet> {
    // Frames are cut at the snap length, so that their lengths promise more than there is.
    let sliced = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let eth = match sliced.link {
        Some(LinkSlice::Ethernet2(header)) => {
            Some((MacAddr(header.source()), MacAddr(header.destination())))
        }
        _ => None,
    };
    let (src, dst, ttl, tos, df, len): (IpAddr, IpAddr, u8, u8, bool, u32) = match sliced.net? {
        LaxNetSlice::Ipv4(v4) => {
            let header = v4.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                header.ttl(),
                header.dcp().value() << 2 | header.ecn().value(),
                header.dont_fragment(),
                u32::from(header.total_len()),
            )
        }
        LaxNetSlice::Ipv6(v6) => {
            let header = v6.header();
            (
                header.source_addr().into(),
                header.destination_addr().into(),
                header.hop_limit(),
                header.traffic_class(),
                false,
                u32::from(header.payload_length()) + 40,
            )
        }
        LaxNetSlice::Arp(_) => return None,
    };
    let mut inner = None;
    let l4 = match sliced.transport? {
        TransportSlice::Tcp(tcp) => {
            let flag = |set: bool, bit: u8| if set { bit } else { 0 };
            L4::Tcp {
                sport: Some(tcp.source_port()),
                dport: Some(tcp.destination_port()),
                flags: flag(tcp.fin(), 1)
                    | flag(tcp.syn(), 2)
                    | flag(tcp.rst(), 4)
                    | flag(tcp.psh(), 8)
                    | flag(tcp.ack(), 16),
            }
        }
        TransportSlice::Udp(udp) => {
            if Some(udp.destination_port()) == vxlan_port {
                inner = within(udp.payload());
            }
            L4::Udp {
                sport: Some(udp.source_port()),
                dport: Some(udp.destination_port()),
            }
        }
        TransportSlice::Icmpv4(icmp) => echo(icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()),
        TransportSlice::Igmp(_) => L4::Other(2),
        TransportSlice::Icmpv6(icmp) => echo(icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8()),
    };
    Some(Packet {
        eth,
        src,
        dst,
        ttl,
        tos,
        df,
        len,
        l4,
        inner,
    })
}

fn echo(kind: u8, code: u8, rest: [u8; 4]) -> L4 {
    let [high, low, ..] = rest;
    let has_id = matches!(kind, 0 | 8 | 128 | 129);
    L4::Icmp {
        kind,
        code,
        id: has_id.then(|| u16::from_be_bytes([high, low])),
    }
}

fn within(payload: &[u8]) -> Option<Box<Inner>> {
    let (header, frame) = payload.split_at_checked(VXLAN_HEADER)?;
    let [flags, _, _, _, a, b, c, _] = *header else {
        return None;
    };
    let vni = (flags & 0x08 != 0).then(|| u32::from_be_bytes([0, a, b, c]));
    Some(Box::new(Inner {
        vni,
        packet: decode(frame, None)?,
    }))
}
