//! Bytes of a captured frame -> packet.

use std::net::IpAddr;

use etherparse::{
    EtherType, Icmpv4Slice, Icmpv6Slice, Ipv6ExtensionSlice, LaxNetSlice, LaxSlicedPacket,
    LinkSlice, TcpSlice, TransportSlice, UdpSlice,
};

use super::tunnel::{self, Ports};
use crate::model::MacAddr;
use crate::model::capture::Mark;
use crate::model::packet::{ICMP, ICMPV6, Inner, L4, Packet, TCP, UDP};

/// LINKTYPE_ETHERNET
pub const ETHERNET: u32 = 1;
/// LINKTYPE_LINUX_SLL2: Linux cooked capture, of all devices at once.
pub const COOKED: u32 = 276;
/// LINKTYPE_RAW as files have it.
pub const RAW: u32 = 101;
/// DLT_RAW as libpcap on Linux has it.
pub(super) const DLT_RAW: u32 = 12;

/// Bytes of a cooked header.
pub(super) const COOKED_HEADER: usize = 20;
/// Tunnels inside tunnels that are looked into.
const DEEPEST: u8 = 3;

/// What a frame holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Its headers.
    pub packet: Packet,
    /// Bytes of the frame up to where the innermost header ends.
    pub headers: usize,
    /// Where the packet inside begins, and its link type; of the innermost tunnel.
    pub inner: Option<(usize, u32)>,
    /// What no translation changes.
    pub mark: Option<Mark>,
    /// Device, of a cooked frame.
    pub ifindex: Option<u32>,
    /// Whether it was sent, of a cooked frame.
    pub out: Option<bool>,
}

/// Decodes an Ethernet frame, and the frame inside where it is UDP to `vxlan_port`. `None` for anything
/// that is no IP packet, or is cut before its addresses.
pub fn decode(frame: &[u8], vxlan_port: Option<u16>) -> Option<Packet> {
    let ports = Ports {
        vxlan: vxlan_port.as_slice(),
        ..Ports::default()
    };
    let view = look(ETHERNET, frame, ports)?;
    (!matches!(view.packet.l4, L4::Arp { .. })).then_some(view.packet)
}

/// Decodes a frame of a link type, and what is inside tunnels. `None` for anything that is no IP or ARP
/// packet, or is cut before its addresses.
pub fn look(link: u32, frame: &[u8], ports: Ports<'_>) -> Option<View> {
    within(link, frame, 0, ports, DEEPEST)
}

fn within(link: u32, frame: &[u8], begin: usize, ports: Ports<'_>, depth: u8) -> Option<View> {
    let bytes = frame.get(begin..)?;
    // Frames are cut at the snap length, so that their lengths promise more than there is.
    let (sliced, cooked) = match link {
        ETHERNET => (LaxSlicedPacket::from_ethernet(bytes).ok()?, None),
        RAW | DLT_RAW => (LaxSlicedPacket::from_ip(bytes).ok()?, None),
        COOKED => {
            let (header, rest) = bytes.split_at_checked(COOKED_HEADER)?;
            let [high, low, _, _, a, b, c, d, _, _, kind, ..] = *header else {
                return None;
            };
            let ethertype = EtherType(u16::from_be_bytes([high, low]));
            let sliced = LaxSlicedPacket::from_ether_type(ethertype, rest);
            // PACKET_OUTGOING, include/uapi/linux/if_packet.h
            let about = (u32::from_be_bytes([a, b, c, d]), kind == 4);
            (sliced, Some(about))
        }
        _ => return None,
    };
    let eth = match &sliced.link {
        Some(LinkSlice::Ethernet2(header)) => {
            Some((MacAddr(header.source()), MacAddr(header.destination())))
        }
        _ => None,
    };
    // Addresses of slices of one buffer.
    let at = |part: &[u8]| (part.as_ptr() as usize).saturating_sub(frame.as_ptr() as usize);
    let mut net = headers(sliced.net.as_ref()?)?;
    net.packet.eth = eth;
    let mut view = View {
        headers: at(net.payload),
        packet: net.packet,
        inner: None,
        mark: None,
        ifindex: cooked.map(|(ifindex, _)| ifindex),
        out: cooked.map(|(_, out)| out),
    };
    let mut inside = None;
    let net_slice = sliced.net.as_ref()?;
    let fragment = || first_fragment(net_slice, view.packet.protocol(), net.payload);
    if let Some(transport) = sliced.transport.clone().or_else(fragment) {
        let (l4, payload, mark) = transport_of(&transport);
        view.packet.l4 = l4;
        view.headers = at(payload);
        view.mark = mark;
        if let L4::Udp {
            dport: Some(port), ..
        } = l4
        {
            inside = tunnel::in_udp(port, payload, ports);
        }
    } else if let L4::Other(protocol) = view.packet.l4
        && fragment_offset(net_slice).is_none()
    {
        inside = tunnel::in_ip(protocol, net.payload);
    }
    let Some(inside) = inside.filter(|_| depth > 0) else {
        return Some(view);
    };
    let (start, link) = (at(inside.bytes), inside.link);
    if let Some(inner) = within(link, frame, start, ports, depth - 1) {
        view.headers = inner.headers;
        view.mark = inner.mark;
        view.inner = inner.inner.or(Some((start, link)));
        view.packet.inner = Some(Box::new(Inner {
            vni: inside.vni,
            wrap: inside.wrap,
            packet: inner.packet,
        }));
    }
    Some(view)
}

struct Net<'a> {
    packet: Packet,
    payload: &'a [u8],
}

fn headers<'a>(net: &LaxNetSlice<'a>) -> Option<Net<'a>> {
    let (src, dst, ttl, tos, df, len, protocol, payload): (
        IpAddr,
        IpAddr,
        u8,
        u8,
        bool,
        u32,
        _,
        _,
    );
    match net {
        LaxNetSlice::Ipv4(v4) => {
            let header = v4.header();
            (src, dst) = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            ttl = header.ttl();
            tos = header.dcp().value() << 2 | header.ecn().value();
            df = header.dont_fragment();
            len = u32::from(header.total_len());
            protocol = header.protocol();
            payload = v4.payload().payload;
        }
        LaxNetSlice::Ipv6(v6) => {
            let header = v6.header();
            (src, dst) = (
                header.source_addr().into(),
                header.destination_addr().into(),
            );
            ttl = header.hop_limit();
            tos = header.traffic_class();
            df = false;
            len = u32::from(header.payload_length()) + 40;
            protocol = v6.payload().ip_number;
            payload = v6.payload().payload;
        }
        LaxNetSlice::Arp(arp) => {
            let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
            let slice = arp.slice();
            let packet = Packet {
                eth: None,
                src: address(arp.sender_protocol_addr())?,
                dst: address(arp.target_protocol_addr())?,
                ttl: 0,
                tos: 0,
                df: false,
                len: u32::try_from(slice.len()).unwrap_or(u32::MAX),
                l4: L4::Arp {
                    op: arp.operation().0,
                },
                inner: None,
            };
            return Some(Net {
                packet,
                payload: slice.get(slice.len()..).unwrap_or_default(),
            });
        }
    }
    let packet = Packet {
        eth: None,
        src,
        dst,
        ttl,
        tos,
        df,
        len,
        l4: L4::Other(protocol.0),
        inner: None,
    };
    Some(Net { packet, payload })
}

/// Where a piece of a packet belongs in it, in units of eight bytes; `None` for a whole packet.
fn fragment_offset(net: &LaxNetSlice<'_>) -> Option<u16> {
    match net {
        LaxNetSlice::Ipv4(v4) => {
            let header = v4.header();
            let offset = header.fragments_offset().value();
            (header.more_fragments() || offset > 0).then_some(offset)
        }
        LaxNetSlice::Ipv6(v6) => {
            let mut extensions = v6.extensions().clone().into_iter();
            extensions.find_map(|extension| match extension {
                Ipv6ExtensionSlice::Fragment(header) if header.is_fragmenting_payload() => {
                    Some(header.fragment_offset().value())
                }
                _ => None,
            })
        }
        LaxNetSlice::Arp(_) => None,
    }
}

/// The transport's header of the first piece of a packet, whose lengths are those of the whole.
fn first_fragment<'a>(
    net: &LaxNetSlice<'a>,
    protocol: u8,
    payload: &'a [u8],
) -> Option<TransportSlice<'a>> {
    if fragment_offset(net) != Some(0) {
        return None;
    }
    match protocol {
        TCP => TcpSlice::from_slice(payload).ok().map(TransportSlice::Tcp),
        UDP => UdpSlice::from_slice_lax(payload)
            .ok()
            .map(TransportSlice::Udp),
        ICMP => Icmpv4Slice::from_slice(payload)
            .ok()
            .map(TransportSlice::Icmpv4),
        ICMPV6 => Icmpv6Slice::from_slice(payload)
            .ok()
            .map(TransportSlice::Icmpv6),
        _ => None,
    }
}

fn transport_of<'a>(transport: &TransportSlice<'a>) -> (L4, &'a [u8], Option<Mark>) {
    match transport {
        TransportSlice::Tcp(tcp) => {
            let flag = |set: bool, bit: u8| if set { bit } else { 0 };
            let l4 = L4::Tcp {
                sport: Some(tcp.source_port()),
                dport: Some(tcp.destination_port()),
                flags: flag(tcp.fin(), 1)
                    | flag(tcp.syn(), 2)
                    | flag(tcp.rst(), 4)
                    | flag(tcp.psh(), 8)
                    | flag(tcp.ack(), 16),
            };
            let mark = Mark::Tcp {
                seq: tcp.sequence_number(),
                ack: tcp.acknowledgment_number(),
            };
            (l4, tcp.payload(), Some(mark))
        }
        TransportSlice::Udp(udp) => {
            let l4 = L4::Udp {
                sport: Some(udp.source_port()),
                dport: Some(udp.destination_port()),
            };
            (l4, udp.payload(), Some(mark(udp.payload())))
        }
        TransportSlice::Icmpv4(icmp) => {
            let l4 = echo(icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8());
            (l4, icmp.payload(), Some(mark(icmp.payload())))
        }
        TransportSlice::Icmpv6(icmp) => {
            let l4 = echo(icmp.type_u8(), icmp.code_u8(), icmp.bytes5to8());
            (l4, icmp.payload(), Some(mark(icmp.payload())))
        }
        TransportSlice::Igmp(igmp) => (L4::Other(2), igmp.payload(), None),
    }
}

/// What a probe's payload is recognised by.
pub fn mark(payload: &[u8]) -> Mark {
    let hash = payload
        .iter()
        .take(32)
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    Mark::Payload(hash)
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

#[cfg(test)]
mod tests {
    use super::*;

    /// `tcpdump -x` of an echo request of 10.0.0.1 to 10.0.0.2, id 7, with four bytes of data and two of padding.
    const ECHO: [u8; 48] = [
        2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, // Ethernet
        0x45, 0, 0, 32, 0, 1, 0x40, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, // IPv4
        8, 0, 0, 0, 0, 7, 0, 1, 1, 2, 3, 4, 0, 0, // ICMP
    ];

    /// What it says.
    const ASKS: L4 = L4::Icmp {
        kind: 8,
        code: 0,
        id: Some(7),
    };

    #[test]
    fn headers_end_where_data_begins() {
        let view = look(ETHERNET, &ECHO, Ports::default()).expect("an IP packet");
        assert_eq!(view.headers, 42);
        assert_eq!(view.mark, Some(mark(&[1, 2, 3, 4])));
        assert_eq!(view.packet.l4, ASKS);
    }

    #[test]
    fn a_frame_in_vxlan_is_seen_with_its_place() {
        let mut outer = ECHO[..14].to_vec();
        let len = u16::try_from(20 + 8 + 8 + ECHO.len())
            .unwrap()
            .to_be_bytes();
        outer.extend([0x45, 0, len[0], len[1], 0, 1, 0, 0, 64, 17, 0, 0]);
        outer.extend([192, 0, 2, 1, 192, 0, 2, 2]);
        let len = u16::try_from(8 + 8 + ECHO.len()).unwrap().to_be_bytes();
        outer.extend([0xc0, 0, 0x21, 0x18, len[0], len[1], 0, 0]);
        outer.extend([8, 0, 0, 0, 0, 0, 5, 0]);
        outer.extend(ECHO);
        let vxlan = |ports: &'static [u16]| Ports {
            vxlan: ports,
            geneve: &[],
        };
        let view = look(ETHERNET, &outer, vxlan(&[8472])).expect("an IP packet");
        let inner = view.packet.inner.as_deref().expect("a packet inside");
        assert_eq!((inner.vni, inner.packet.ttl), (Some(5), 64));
        assert_eq!(view.inner, Some((50, ETHERNET)));
        assert_eq!(view.headers, 50 + 42);
        let view = look(ETHERNET, &outer, vxlan(&[4789])).expect("an IP packet");
        assert_eq!((view.packet.inner, view.headers), (None, 42));
        for len in 0..outer.len() {
            // Cut anywhere: never a panic, never more than there is.
            if let Some(view) = look(ETHERNET, &outer[..len], vxlan(&[8472])) {
                assert!(view.headers <= len);
            }
        }
    }

    #[test]
    fn the_first_piece_of_a_packet_tells_who_sent_it_and_no_other_does() {
        let mut first = ECHO;
        first[20] = 0x20; // more fragments
        let view = look(ETHERNET, &first, Ports::default()).expect("an IP packet");
        assert_eq!(view.packet.l4, ASKS);
        let mut second = ECHO;
        second[20..22].copy_from_slice(&[0, 185]); // at 1,480
        let view = look(ETHERNET, &second, Ports::default()).expect("an IP packet");
        assert_eq!((view.packet.l4, view.mark), (L4::Other(ICMP), None));
    }

    #[test]
    fn a_cooked_frame_tells_device_and_direction() {
        let mut cooked = vec![8, 0, 0, 0, 0, 0, 0, 9, 0, 1, 4, 6, 2, 0, 0, 0, 0, 1, 0, 0];
        cooked.extend(&ECHO[14..]);
        let view = look(COOKED, &cooked, Ports::default()).expect("an IP packet");
        assert_eq!((view.ifindex, view.out), (Some(9), Some(true)));
        assert_eq!(view.packet.eth, None);
    }
}
