//! Bytes of a packet's headers, as far as they are known, and changes to them.
//!
//! Not modelled: IP options, extension headers and fragments; the bytes behind the headers are
//! unknown.

use std::net::IpAddr;

use super::bits::{Bits, FreePorts, UNPRIVILEGED};
use crate::model::MacAddr;
use crate::model::netfilter::PayloadBase;
use crate::model::packet::{L4, Packet};

/// What loading gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Load {
    /// A value, perhaps with unknown bits.
    Value(Bits),
    /// There is no such thing: the rule does not match (NFT_BREAK).
    Absent,
    /// Whether there is such a thing is unknown.
    Unknown(String),
}

/// Bytes of an address.
pub(super) fn addr_bytes(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// Address of 4 or 16 bytes.
pub(super) fn addr_from(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(four));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// What is known of a packet beside its headers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    /// It was made here, so that it has no link-layer header yet.
    pub(super) local: bool,
    /// What its ports may be where they are any free ones.
    pub(super) free: FreePorts,
    /// Its length is known.
    pub(super) sized: bool,
    /// VLAN of its frame's tag.
    pub(super) tagged: Option<u16>,
}

/// ETH_P_8021Q
const DOT1Q: u16 = 0x8100;

/// Loads bytes of a header.
///
/// Source: `nft_payload_eval()`, net/netfilter/nft_payload.c.
pub(super) fn load(
    packet: &Packet,
    known: Known,
    base: PayloadBase,
    from: usize,
    len: usize,
) -> Load {
    if let Some(bits) = usual(packet, known, base, (from, len)) {
        return Load::Value(bits);
    }
    let (bytes, total) = match base {
        PayloadBase::LinkLayer => match packet.eth {
            Some((src, dst)) => {
                let mut bytes = Bits::known(dst.0);
                bytes.push(&Bits::known(src.0));
                // A tag that the kernel keeps beside the frame is put back for rules (`nft_payload_copy_vlan()`).
                for half in known.tagged.into_iter().flat_map(|id| [DOT1Q, id]) {
                    bytes.push(&Bits::net16(Some(half)));
                }
                bytes.push(&Bits::net16(Some(packet.ethertype())));
                (bytes, if known.tagged.is_some() { 18 } else { 14 })
            }
            None if known.local => return Load::Absent,
            None => return Load::Unknown("link-layer header not known here".to_owned()),
        },
        PayloadBase::Network => {
            if let Some(bytes) = arp(packet) {
                let total = bytes.len();
                (bytes, total)
            } else {
                let mut bytes = network(packet, known.sized);
                bytes.push(&transport(packet, known.free));
                (bytes, total(packet))
            }
        }
        // ARP has no transport header (NFT_PKTINFO_L4PROTO is not set).
        PayloadBase::Transport if arp(packet).is_some() => return Load::Absent,
        PayloadBase::Transport => {
            let total = total(packet).saturating_sub(network_len(packet));
            (transport(packet, known.free), total)
        }
        PayloadBase::Inner | PayloadBase::Tunnel | PayloadBase::Other(_) => {
            return Load::Unknown("headers inside a tunnel are not evaluated".to_owned());
        }
    };
    if from.saturating_add(len) > total {
        return Load::Absent;
    }
    Load::Value(bytes.slice(from, len))
}

/// The fields that nearly all rules ask for, without laying out the whole packet.
fn usual(packet: &Packet, known: Known, base: PayloadBase, field: (usize, usize)) -> Option<Bits> {
    let addr = |addr: IpAddr| match addr {
        IpAddr::V4(addr) => Bits::known(addr.octets()),
        IpAddr::V6(addr) => Bits::known(addr.octets()),
    };
    let ports = matches!(packet.l4, L4::Tcp { .. } | L4::Udp { .. } | L4::Sctp { .. });
    match (base, field, packet.src) {
        _ if matches!(packet.l4, L4::Arp { .. }) => None,
        (PayloadBase::Network, (12, 4), IpAddr::V4(_))
        | (PayloadBase::Network, (8, 16), IpAddr::V6(_)) => Some(addr(packet.src)),
        (PayloadBase::Network, (16, 4), IpAddr::V4(_))
        | (PayloadBase::Network, (24, 16), IpAddr::V6(_)) => Some(addr(packet.dst)),
        (PayloadBase::Network, (9, 1), IpAddr::V4(_))
        | (PayloadBase::Network, (6, 1), IpAddr::V6(_)) => Some(Bits::known([packet.protocol()])),
        (PayloadBase::Transport, (0, 2), _) if ports => {
            Some(Bits::port(packet.sport(), known.free))
        }
        (PayloadBase::Transport, (2, 2), _) if ports => {
            Some(Bits::port(packet.dport(), known.free))
        }
        _ => None,
    }
}

/// Overwrites header bytes. `Err`: what can't be represented.
pub(super) fn store(
    packet: &mut Packet,
    base: PayloadBase,
    from: usize,
    value: &Bits,
) -> Result<(), String> {
    let doubt = || "writes header bytes that are not known".to_owned();
    if arp(packet).is_some() {
        return Err("rewrites an arp packet".to_owned());
    }
    match base {
        PayloadBase::Network => {
            let mut bytes = network(packet, true);
            if from.saturating_add(value.len()) > bytes.len() {
                return Err("writes behind the ip header".to_owned());
            }
            let old = bytes.clone();
            bytes.overwrite(from, value);
            // Version, header length, length, protocol, fragments: such packets are not modelled. Bytes that are
            // not known anyway (identification, checksum, flow label) decide nothing here.
            let kept: &[(usize, usize, u8)] = if packet.src.is_ipv6() {
                &[(0, 1, 0xf0), (4, 3, 0xff)]
            } else {
                &[
                    (0, 1, 0xff),
                    (2, 2, 0xff),
                    (6, 1, 0xbf),
                    (7, 1, 0xff),
                    (9, 1, 0xff),
                ]
            };
            for (at, len, mask) in kept {
                let part = |bytes: &Bits| bytes.slice(*at, *len).mask_xor(&vec![*mask; *len], &[]);
                if part(&old) != part(&bytes) {
                    return Err("changes version, length, fragments or protocol".to_owned());
                }
            }
            let byte = |at: usize| bytes.slice(at, 1).bytes().and_then(|b| b.first().copied());
            let addr = |at: usize, len: usize| {
                let part = bytes.slice(at, len);
                part.bytes().and_then(addr_from).ok_or_else(doubt)
            };
            if packet.src.is_ipv6() {
                let high = bytes.slice(0, 1).mask_xor(&[0x0f], &[]);
                let low = bytes.slice(1, 1).mask_xor(&[0xf0], &[]);
                let nibble = |part: &Bits| part.bytes().and_then(|b| b.first().copied());
                packet.tos =
                    nibble(&high).ok_or_else(doubt)? << 4 | nibble(&low).ok_or_else(doubt)? >> 4;
                packet.ttl = byte(7).ok_or_else(doubt)?;
                packet.src = addr(8, 16)?;
                packet.dst = addr(24, 16)?;
            } else {
                packet.tos = byte(1).ok_or_else(doubt)?;
                packet.df = byte(6).ok_or_else(doubt)? & 0x40 != 0;
                packet.ttl = byte(8).ok_or_else(doubt)?;
                packet.src = addr(12, 4)?;
                packet.dst = addr(16, 4)?;
            }
            Ok(())
        }
        PayloadBase::Transport => {
            let has_ports = matches!(packet.l4, L4::Tcp { .. } | L4::Udp { .. } | L4::Sctp { .. });
            let mut bytes = transport(packet, UNPRIVILEGED);
            if !has_ports || from.saturating_add(value.len()) > bytes.len() {
                return Err("writes transport bytes that are not modelled".to_owned());
            }
            let old = bytes.clone();
            bytes.overwrite(from, value);
            // Numbers and header length of TCP, length of UDP. nft writes back what stands beside a field.
            let (at, len) = match packet.l4 {
                L4::Tcp { .. } => (4, 9),
                L4::Udp { .. } => (4, 2),
                _ => (4, 8),
            };
            let part = |bytes: &Bits| (bytes.slice(at, len).min(), bytes.slice(at, len).max());
            if part(&old) != part(&bytes) {
                return Err("writes transport bytes that are not modelled".to_owned());
            }
            packet.set_sport(bytes.slice(0, 2).net_u16());
            packet.set_dport(bytes.slice(2, 2).net_u16());
            if let L4::Tcp { flags, .. } = &mut packet.l4 {
                let own = bytes.slice(13, 1);
                let own = own.bytes().and_then(|own| own.first().copied());
                *flags = own.ok_or_else(doubt)?;
            }
            Ok(())
        }
        PayloadBase::LinkLayer => Err("rewrites link-layer addresses".to_owned()),
        PayloadBase::Inner | PayloadBase::Tunnel | PayloadBase::Other(_) => {
            Err("rewrites headers inside a tunnel".to_owned())
        }
    }
}

/// The whole ARP packet, where it is one (RFC 826, Ethernet and IPv4).
fn arp(packet: &Packet) -> Option<Bits> {
    let L4::Arp { op } = packet.l4 else {
        return None;
    };
    let mut bytes = Bits::known([0, 1, 8, 0, 6, 4]);
    bytes.push(&Bits::net16(Some(op)));
    let (from, to) = packet.eth.unwrap_or((MacAddr::ZERO, MacAddr::ZERO));
    // A question has no target address yet.
    let to = if op == 1 { MacAddr::ZERO } else { to };
    for (mac, addr) in [(from, packet.src), (to, packet.dst)] {
        bytes.push(&Bits::known(mac.0));
        bytes.push(&Bits::known(addr_bytes(addr)));
    }
    Some(bytes)
}

fn network_len(packet: &Packet) -> usize {
    if packet.src.is_ipv6() { 40 } else { 20 }
}

/// Length of a packet's headers without options: no such packet is shorter.
pub(super) fn least(packet: &Packet) -> u32 {
    let network = if packet.src.is_ipv6() { 40 } else { 20 };
    network
        + match packet.l4 {
            L4::Tcp { .. } => 20,
            L4::Udp { .. } | L4::Icmp { .. } => 8,
            L4::Sctp { .. } => 12,
            L4::Arp { .. } | L4::Other(_) => 0,
        }
}

/// Length of the packet; never less than its headers.
fn total(packet: &Packet) -> usize {
    let len = packet.len.max(least(packet));
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn network(packet: &Packet, sized: bool) -> Bits {
    let total = total(packet);
    let len16 = |len: usize| Bits::net16(u16::try_from(len).ok().filter(|_| sized));
    let mut bytes;
    if packet.src.is_ipv6() {
        bytes = Bits::known([0x60 | packet.tos >> 4]);
        // The low half of this byte and the next two are the flow label, which is unknown.
        let low = Bits::unknown(1).mask_xor(&[0x0f], &[packet.tos << 4]);
        bytes.push(&low);
        bytes.push(&Bits::unknown(2));
        bytes.push(&len16(total.saturating_sub(40)));
        bytes.push(&Bits::known([packet.protocol(), packet.ttl]));
    } else {
        bytes = Bits::known([0x45, packet.tos]);
        bytes.push(&len16(total));
        bytes.push(&Bits::unknown(2));
        bytes.push(&Bits::known([u8::from(packet.df) << 6, 0]));
        bytes.push(&Bits::known([packet.ttl, packet.protocol()]));
        bytes.push(&Bits::unknown(2));
    }
    bytes.push(&Bits::known(addr_bytes(packet.src)));
    bytes.push(&Bits::known(addr_bytes(packet.dst)));
    bytes
}

fn transport(packet: &Packet, free: FreePorts) -> Bits {
    let ports = |sport, dport| {
        let mut bytes = Bits::port(sport, free);
        bytes.push(&Bits::port(dport, free));
        bytes
    };
    match packet.l4 {
        L4::Tcp {
            sport,
            dport,
            flags,
        } => {
            let mut bytes = ports(sport, dport);
            bytes.push(&Bits::unknown(9));
            bytes.push(&Bits::known([flags]));
            bytes.push(&Bits::unknown(6));
            bytes
        }
        L4::Udp { sport, dport } => {
            let mut bytes = ports(sport, dport);
            let len = usize::try_from(packet.len).unwrap_or(usize::MAX);
            let len = len.saturating_sub(network_len(packet)).max(8);
            bytes.push(&Bits::net16(u16::try_from(len).ok()));
            bytes.push(&Bits::unknown(2));
            bytes
        }
        L4::Sctp { sport, dport } => {
            let mut bytes = ports(sport, dport);
            bytes.push(&Bits::unknown(8));
            bytes
        }
        L4::Icmp { kind, code, id } => {
            let mut bytes = Bits::known([kind, code]);
            bytes.push(&Bits::unknown(2));
            bytes.push(&Bits::port(id, (0, u16::MAX)));
            bytes.push(&Bits::unknown(2));
            bytes
        }
        L4::Arp { .. } | L4::Other(_) => Bits::unknown(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: Known = Known {
        local: false,
        free: UNPRIVILEGED,
        sized: true,
        tagged: None,
    };

    fn packet(src: &str, dst: &str) -> Packet {
        Packet {
            tos: 0x28,
            ..Packet::new(
                src.parse().unwrap(),
                dst.parse().unwrap(),
                L4::Tcp {
                    sport: None,
                    dport: Some(80),
                    flags: 2,
                },
            )
        }
    }

    fn bytes(packet: &Packet, base: PayloadBase, from: usize, len: usize) -> Option<Vec<u8>> {
        match load(packet, KNOWN, base, from, len) {
            Load::Value(bits) => bits.bytes().map(<[u8]>::to_vec),
            _ => None,
        }
    }

    #[test]
    fn ipv4_fields_are_where_rfc_791_has_them() {
        let p = packet("10.0.0.1", "10.0.0.2");
        let net = PayloadBase::Network;
        assert_eq!(bytes(&p, net, 12, 8), Some(vec![10, 0, 0, 1, 10, 0, 0, 2]));
        assert_eq!(bytes(&p, net, 9, 1), Some(vec![6]));
        assert_eq!(bytes(&p, net, 6, 2), Some(vec![0x40, 0]));
        assert_eq!(bytes(&p, net, 4, 2), None);
        assert_eq!(bytes(&p, net, 22, 2), Some(vec![0, 80]));
        let th = PayloadBase::Transport;
        assert_eq!(bytes(&p, th, 2, 2), Some(vec![0, 80]));
        assert_eq!(bytes(&p, th, 0, 2), None);
        assert_eq!(bytes(&p, th, 13, 1), Some(vec![2]));
        assert_eq!(load(&p, KNOWN, th, 39, 2), Load::Absent);
    }

    #[test]
    fn usual_fields_are_those_of_the_whole_packet() {
        for p in [packet("10.0.0.1", "10.0.0.2"), packet("fd00::1", "fd00::2")] {
            let mut whole = network(&p, true);
            whole.push(&transport(&p, KNOWN.free));
            let headers = network_len(&p);
            let mut usuals = 0;
            for len in [1, 2, 4, 16] {
                for from in 0..whole.len() - len {
                    for (base, start) in
                        [(PayloadBase::Network, 0), (PayloadBase::Transport, headers)]
                    {
                        let Some(own) = usual(&p, KNOWN, base, (from, len)) else {
                            continue;
                        };
                        usuals += 1;
                        assert_eq!(own, whole.slice(start + from, len), "{base:?} {from} {len}");
                    }
                }
            }
            assert_eq!(usuals, 5);
        }
    }

    #[test]
    fn ipv6_traffic_class_straddles_two_bytes() {
        let p = packet("fd00::1", "fd00::2");
        let Load::Value(bits) = load(&p, KNOWN, PayloadBase::Network, 0, 2) else {
            panic!("loads");
        };
        let dscp = bits.mask_xor(&[0x0f, 0xc0], &[]);
        assert_eq!(dscp.bytes(), Some([0x02, 0x80].as_slice()));
    }

    #[test]
    fn writing_changes_the_packet() {
        let mut p = packet("10.0.0.1", "10.0.0.2");
        store(&mut p, PayloadBase::Network, 1, &Bits::known([0])).unwrap();
        assert_eq!(p.tos, 0);
        store(&mut p, PayloadBase::Transport, 2, &Bits::net16(Some(8080))).unwrap();
        assert_eq!(p.dport(), Some(8080));
        store(&mut p, PayloadBase::Transport, 13, &Bits::known([0x10])).unwrap();
        assert!(matches!(p.l4, L4::Tcp { flags: 0x10, .. }));
        assert!(store(&mut p, PayloadBase::Network, 16, &Bits::unknown(4)).is_err());
        // Protocol, fragment offset, total length, sequence number.
        for (base, at, byte) in [
            (PayloadBase::Network, 9, 17),
            (PayloadBase::Network, 7, 1),
            (PayloadBase::Network, 3, 1),
            (PayloadBase::Transport, 4, 1),
        ] {
            assert!(
                store(&mut p, base, at, &Bits::known([byte])).is_err(),
                "{at}"
            );
        }
        // As they were, or of no importance.
        store(&mut p, PayloadBase::Network, 9, &Bits::known([6])).unwrap();
        store(&mut p, PayloadBase::Network, 4, &Bits::known([1, 2])).unwrap();
        store(&mut p, PayloadBase::Network, 6, &Bits::known([0])).unwrap();
        assert!(!p.df);
    }
}
