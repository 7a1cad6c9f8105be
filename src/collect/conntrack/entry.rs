//! What one IPCTNL_MSG_CT_NEW message says.
//!
//! Source: `ctnetlink_fill_info()`, net/netfilter/nf_conntrack_netlink.c (v6.12).

use super::super::nla::{self, Attrs};
use crate::model::conntrack::{ConntrackEntry, Counted, Tuple};
use crate::model::packet::{ICMP, ICMPV6};

/// An entry; `None`: it can't be decoded.
pub(in crate::collect) fn decode(attrs: Attrs<'_>) -> Option<ConntrackEntry> {
    let number = |kind| attrs.find(kind).and_then(nla::be32);
    let (orig, reply) = (Attrs(attrs.find(1)?), Attrs(attrs.find(2)?));
    // CTA_ZONE is that of both directions, CTA_TUPLE_ZONE that of one.
    let zone = |tuple: Attrs<'_>| {
        let found = attrs.find(18).or_else(|| tuple.find(3));
        found.and_then(|b| nla::be16_at(b, 0)).unwrap_or(0)
    };
    let info = attrs.find(4).and_then(|info| Attrs(info).find(1));
    let tcp = |kind| {
        let found = info.and_then(|tcp| Attrs(tcp).find(kind));
        found.and_then(|bytes| bytes.first().copied())
    };
    let counted = |kind| {
        let own = Attrs(attrs.find(kind)?);
        let number = |kind| own.find(kind).and_then(nla::be64);
        Some(Counted {
            packets: number(1)?,
            bytes: number(2)?,
        })
    };
    Some(ConntrackEntry {
        status: number(3)?,
        mark: number(8).unwrap_or(0),
        zone: zone(orig),
        reply_zone: zone(reply),
        timeout: number(7),
        tcp_state: tcp(1),
        tcp_flags: tcp(4).zip(tcp(5)),
        labels: attrs.find(22).map(<[u8]>::to_vec).unwrap_or_default(),
        helper: attrs
            .find(5)
            .and_then(|help| Attrs(help).find(1))
            .map(nla::text),
        counters: counted(9)
            .zip(counted(10))
            .map(|(there, back)| [there, back]),
        master: attrs.find(14).and_then(|master| tuple(Attrs(master))),
        ..ConntrackEntry::new(tuple(orig)?, tuple(reply)?)
    })
}

fn tuple(attrs: Attrs<'_>) -> Option<Tuple> {
    let ip = Attrs(attrs.find(1)?);
    let address = |v4, v6| ip.find(v4).or_else(|| ip.find(v6)).and_then(nla::ip);
    let proto = Attrs(attrs.find(2)?);
    let port = |kind| proto.find(kind).and_then(|bytes| nla::be16_at(bytes, 0));
    let byte = |kind| proto.find(kind).and_then(|bytes| bytes.first().copied());
    let protocol = byte(1)?;
    let type_code = |kind, code| Some(u16::from_be_bytes([byte(kind)?, byte(code)?]));
    let (sport, dport) = match protocol {
        ICMP => (port(4), type_code(5, 6)),
        ICMPV6 => (port(7), type_code(8, 9)),
        // Protocols without ports have zeros as their tuple's ports.
        _ => (port(2).or(Some(0)), port(3).or(Some(0))),
    };
    Some(Tuple {
        src: address(1, 3)?,
        dst: address(2, 4)?,
        protocol,
        sport,
        dport,
    })
}
