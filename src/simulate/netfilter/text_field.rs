//! What a native expression loads, by the name that `nft` gives it.

use super::text_value::Show;
use crate::model::netfilter::{CtKey, Exthdr, Family, FibResult, MetaKey, PayloadBase};

/// Name, and how values are shown.
pub(super) type Field = (String, Show);

/// Bytes of a header that have no name.
pub(super) fn raw(base: PayloadBase, offset: u32, len: u32) -> String {
    let word = match base {
        PayloadBase::LinkLayer => "ll",
        PayloadBase::Network => "nh",
        PayloadBase::Transport => "th",
        PayloadBase::Inner | PayloadBase::Tunnel | PayloadBase::Other(_) => "ih",
    };
    format!(
        "@{word},{},{}",
        offset.saturating_mul(8),
        len.saturating_mul(8)
    )
}

/// A part of the packet. `network` is 4 or 6 where that is known, 1 for ARP; `transport` the protocol by
/// name. What has a name only where these are known is told by place, since `nft` would add a condition.
pub(super) fn payload(
    base: PayloadBase,
    offset: u32,
    len: u32,
    family: Option<Family>,
    network: Option<u8>,
    transport: Option<&str>,
) -> Field {
    let named = match base {
        PayloadBase::LinkLayer => link_layer(offset, len),
        PayloadBase::Network => match network {
            Some(4) => ipv4(offset, len),
            Some(6) => ipv6(offset, len),
            Some(_) => arp(offset, len),
            None if family == Some(Family::Arp) => arp(offset, len),
            None => None,
        },
        PayloadBase::Transport => match transport {
            Some(name) => transport_field(name, offset, len),
            None => th(offset, len),
        },
        _ => None,
    };
    match named {
        Some((name, show)) => (name.to_owned(), show),
        None => (raw(base, offset, len), Show::Hex),
    }
}

fn link_layer(offset: u32, len: u32) -> Option<(&'static str, Show)> {
    Some(match (offset, len) {
        (0, 6) => ("ether daddr", Show::Mac),
        (6, 6) => ("ether saddr", Show::Mac),
        (12, 2) => ("ether type", Show::Ethertype),
        _ => return None,
    })
}

fn ipv4(offset: u32, len: u32) -> Option<(&'static str, Show)> {
    Some(match (offset, len) {
        (1, 1) => ("ip dscp", Show::Dscp),
        (2, 2) => ("ip length", Show::Net),
        (4, 2) => ("ip id", Show::Net),
        (6, 2) => ("ip frag-off", Show::Hex),
        (8, 1) => ("ip ttl", Show::Net),
        (9, 1) => ("ip protocol", Show::Protocol),
        (10, 2) => ("ip checksum", Show::Net),
        (12, 1..=4) => ("ip saddr", Show::Addr),
        (16, 1..=4) => ("ip daddr", Show::Addr),
        _ => return None,
    })
}

fn ipv6(offset: u32, len: u32) -> Option<(&'static str, Show)> {
    Some(match (offset, len) {
        (0, 2) => ("ip6 dscp", Show::Dscp6),
        (4, 2) => ("ip6 length", Show::Net),
        (6, 1) => ("ip6 nexthdr", Show::Protocol),
        (7, 1) => ("ip6 hoplimit", Show::Net),
        (8, 1..=16) => ("ip6 saddr", Show::Addr6),
        (24, 1..=16) => ("ip6 daddr", Show::Addr6),
        _ => return None,
    })
}

fn arp(offset: u32, len: u32) -> Option<(&'static str, Show)> {
    Some(match (offset, len) {
        (0, 2) => ("arp htype", Show::Net),
        (2, 2) => ("arp ptype", Show::Ethertype),
        (4, 1) => ("arp hlen", Show::Net),
        (5, 1) => ("arp plen", Show::Net),
        (6, 2) => ("arp operation", Show::ArpOp),
        (8, 6) => ("arp saddr ether", Show::Mac),
        (14, 4) => ("arp saddr ip", Show::Addr),
        (18, 6) => ("arp daddr ether", Show::Mac),
        (24, 4) => ("arp daddr ip", Show::Addr),
        _ => return None,
    })
}

/// Ports, of whichever protocol.
fn th(offset: u32, len: u32) -> Option<(&'static str, Show)> {
    match (offset, len) {
        (0, 2) => Some(("th sport", Show::Net)),
        (2, 2) => Some(("th dport", Show::Net)),
        _ => None,
    }
}

fn transport_field(name: &str, offset: u32, len: u32) -> Option<(&'static str, Show)> {
    Some(match (name, offset, len) {
        ("tcp", 0, 2) => ("tcp sport", Show::Net),
        ("tcp", 2, 2) => ("tcp dport", Show::Net),
        ("tcp", 4, 4) => ("tcp sequence", Show::Net),
        ("tcp", 8, 4) => ("tcp ackseq", Show::Net),
        ("tcp", 13, 1) => ("tcp flags", Show::TcpFlags),
        ("tcp", 14, 2) => ("tcp window", Show::Net),
        ("tcp", 16, 2) => ("tcp checksum", Show::Net),
        ("tcp", 18, 2) => ("tcp urgptr", Show::Net),
        ("udp", 0, 2) => ("udp sport", Show::Net),
        ("udp", 2, 2) => ("udp dport", Show::Net),
        ("udp", 4, 2) => ("udp length", Show::Net),
        ("udp", 6, 2) => ("udp checksum", Show::Net),
        ("sctp", 0, 2) => ("sctp sport", Show::Net),
        ("sctp", 2, 2) => ("sctp dport", Show::Net),
        ("dccp", 0, 2) => ("dccp sport", Show::Net),
        ("dccp", 2, 2) => ("dccp dport", Show::Net),
        ("icmp", 0, 1) => ("icmp type", Show::IcmpType),
        ("icmp", 1, 1) => ("icmp code", Show::Net),
        ("icmp", 2, 2) => ("icmp checksum", Show::Net),
        ("ipv6-icmp", 0, 1) => ("icmpv6 type", Show::Icmp6Type),
        ("ipv6-icmp", 1, 1) => ("icmpv6 code", Show::Net),
        ("ipv6-icmp", 2, 2) => ("icmpv6 checksum", Show::Net),
        ("igmp", 0, 1) => ("igmp type", Show::Net),
        ("igmp", 4, 4) => ("igmp group", Show::Addr),
        ("ah", 4, 4) => ("ah spi", Show::Net),
        ("ah", 8, 4) => ("ah sequence", Show::Net),
        ("esp", 0, 4) => ("esp spi", Show::Net),
        ("esp", 4, 4) => ("esp sequence", Show::Net),
        ("ipcomp", 2, 2) => ("comp cpi", Show::Net),
        ("tcp" | "udp" | "sctp" | "dccp" | "icmp" | "ipv6-icmp" | "igmp" | "ah" | "esp", ..) => {
            return None;
        }
        _ => return th(offset, len),
    })
}

/// What is known of the packet beside its bytes.
pub(super) fn meta(key: MetaKey) -> Field {
    let (nft, show) = match key {
        MetaKey::Len => ("meta length", Show::Host),
        MetaKey::Protocol => ("meta protocol", Show::Ethertype),
        MetaKey::Priority => ("meta priority", Show::Class),
        MetaKey::Mark => ("meta mark", Show::Mark),
        MetaKey::Iifname => ("iifname", Show::Name),
        MetaKey::Oifname => ("oifname", Show::Name),
        MetaKey::L4proto => ("meta l4proto", Show::Protocol),
        MetaKey::Iif => ("iif", Show::Index),
        MetaKey::Oif => ("oif", Show::Index),
        MetaKey::Iifgroup => ("iifgroup", Show::Group),
        MetaKey::Oifgroup => ("oifgroup", Show::Group),
        MetaKey::Iiftype => ("meta iiftype", Show::DeviceType),
        MetaKey::Oiftype => ("meta oiftype", Show::DeviceType),
        MetaKey::Nfproto => ("meta nfproto", Show::Family),
        MetaKey::Skuid => ("meta skuid", Show::Host),
        MetaKey::Skgid => ("meta skgid", Show::Host),
        MetaKey::Cpu => ("meta cpu", Show::Host),
        MetaKey::Cgroup => ("meta cgroup", Show::Host),
        MetaKey::Pkttype => ("meta pkttype", Show::PacketType),
        MetaKey::Nftrace => ("meta nftrace", Show::Host),
        MetaKey::Rtclassid => ("meta rtclassid", Show::Host),
        MetaKey::Prandom => ("meta random", Show::Net),
        MetaKey::Secpath => ("meta ipsec", Show::Present),
        MetaKey::BriIifname => ("meta ibrname", Show::Name),
        MetaKey::BriOifname => ("meta obrname", Show::Name),
        MetaKey::Iifkind => ("meta iifkind", Show::Name),
        MetaKey::Oifkind => ("meta oifkind", Show::Name),
        MetaKey::Other(28) => ("meta ibrpvid", Show::Host),
        MetaKey::Other(29) => ("meta ibrvproto", Show::Ethertype),
        MetaKey::Other(33) => ("meta sdif", Show::Index),
        MetaKey::Other(34) => ("meta sdifname", Show::Name),
        MetaKey::Other(number) => return (format!("meta {number}"), Show::Raw),
    };
    (nft.to_owned(), show)
}

/// What is known of the packet's connection.
pub(super) fn ct(key: CtKey) -> Field {
    let (name, show) = match key {
        CtKey::State => ("state", Show::State),
        CtKey::Status => ("status", Show::Status),
        CtKey::Mark => ("mark", Show::Mark),
        CtKey::Src => ("saddr", Show::Addr),
        CtKey::Dst => ("daddr", Show::Addr),
        CtKey::SrcIp => ("ip saddr", Show::Addr),
        CtKey::DstIp => ("ip daddr", Show::Addr),
        CtKey::SrcIp6 => ("ip6 saddr", Show::Addr6),
        CtKey::DstIp6 => ("ip6 daddr", Show::Addr6),
        CtKey::ProtoSrc => ("proto-src", Show::Net),
        CtKey::ProtoDst => ("proto-dst", Show::Net),
        CtKey::Protocol => ("protocol", Show::Protocol),
        CtKey::L3proto => ("l3proto", Show::Family),
        CtKey::Zone => ("zone", Show::Host),
        CtKey::Direction => ("direction", Show::Direction),
        CtKey::Expiration => ("expiration", Show::Time),
        CtKey::Helper => ("helper", Show::Text),
        CtKey::Labels => ("label", Show::Labels),
        CtKey::Pkts => ("packets", Show::Host),
        CtKey::Bytes => ("bytes", Show::Host),
        CtKey::Avgpkt => ("avgpkt", Show::Host),
        CtKey::Eventmask => ("event", Show::Host),
        CtKey::Id => ("id", Show::Net),
        CtKey::Other(number) => return (number.to_string(), Show::Raw),
    };
    (name.to_owned(), show)
}

/// The result of a lookup in the routing tables. `present`: only whether there is one.
pub(super) fn fib(result: FibResult, present: bool) -> (&'static str, Show) {
    match result {
        FibResult::Oif if present => ("oif", Show::Present),
        FibResult::Oif => ("oif", Show::Index),
        FibResult::Oifname if present => ("oifname", Show::Present),
        FibResult::Oifname => ("oifname", Show::Name),
        FibResult::Addrtype => ("type", Show::AddrType),
        FibResult::Other(_) => ("result", Show::Raw),
    }
}

/// Part of the socket that takes the packet.
pub(super) fn socket(key: u32, level: u32) -> Field {
    match key {
        0 => ("socket transparent".to_owned(), Show::Host),
        1 => ("socket mark".to_owned(), Show::Mark),
        2 => ("socket wildcard".to_owned(), Show::Host),
        _ => (format!("socket cgroupv2 level {level}"), Show::Host),
    }
}

/// Part of the route.
pub(super) fn rt(key: u32, family: Option<Family>) -> (&'static str, Show) {
    let inet = family == Some(Family::Inet);
    match key {
        0 => ("rt classid", Show::Host),
        1 if inet => ("rt ip nexthop", Show::Addr),
        1 => ("rt nexthop", Show::Addr),
        2 if inet => ("rt ip6 nexthop", Show::Addr6),
        2 => ("rt nexthop", Show::Addr6),
        3 => ("rt mtu", Show::Host),
        _ => ("rt ipsec", Show::Present),
    }
}

/// Part of an IPsec transform.
pub(super) fn xfrm(key: u32, dir: u8, spnum: u32) -> Field {
    let dir = if dir == 0 { "in" } else { "out" };
    let number = match spnum {
        0 => String::new(),
        number => format!(" spnum {number}"),
    };
    let (word, show) = match key {
        1 => ("ip daddr", Show::Addr),
        2 => ("ip6 daddr", Show::Addr6),
        3 => ("ip saddr", Show::Addr),
        4 => ("ip6 saddr", Show::Addr6),
        5 => ("reqid", Show::Host),
        _ => ("spi", Show::Net),
    };
    (format!("ipsec {dir}{number} {word}"), show)
}

/// An extension header or option, or a field of it.
pub(super) fn exthdr(place: &Exthdr, present: bool) -> Field {
    let (head, kinds): (&str, &[(u8, &str)]) = match place.op {
        0 => (
            "",
            &[
                (0, "hbh"),
                (43, "rt"),
                (44, "frag"),
                (60, "dst"),
                (135, "mh"),
            ],
        ),
        1 => (
            "tcp option ",
            &[
                (0, "eol"),
                (1, "nop"),
                (2, "maxseg"),
                (3, "window"),
                (4, "sack-perm"),
                (5, "sack"),
                (8, "timestamp"),
                (30, "mptcp"),
                (34, "fastopen"),
                (19, "md5sig"),
            ],
        ),
        2 => (
            "ip option ",
            &[(131, "lsrr"), (137, "ssrr"), (7, "rr"), (148, "ra")],
        ),
        3 => (
            "sctp chunk ",
            &[
                (0, "data"),
                (1, "init"),
                (2, "init-ack"),
                (3, "sack"),
                (4, "heartbeat"),
                (5, "heartbeat-ack"),
                (6, "abort"),
                (7, "shutdown"),
                (8, "shutdown-ack"),
                (9, "error"),
                (10, "cookie-echo"),
                (11, "cookie-ack"),
                (12, "ecne"),
                (13, "cwr"),
                (14, "shutdown-complete"),
            ],
        ),
        _ => ("dccp option ", &[]),
    };
    let found = kinds.iter().find(|(kind, _)| *kind == place.kind);
    let name = match (found, place.op) {
        (Some((_, name)), _) => (*name).to_owned(),
        (None, _) => place.kind.to_string(),
    };
    if present {
        let word = if place.op == 0 { "exthdr " } else { head };
        return (format!("{word}{name}"), Show::Present);
    }
    let field = match (place.op, name.as_str(), place.offset, place.len) {
        (0, _, 0, 1) => Some(("nexthdr", Show::Protocol)),
        (0, "hbh" | "dst" | "rt" | "mh", 1, 1) => Some(("hdrlength", Show::Net)),
        (0, "rt" | "mh", 2, 1) => Some(("type", Show::Net)),
        (0, "rt", 3, 1) => Some(("seg-left", Show::Net)),
        (0, "frag", 4, 4) => Some(("id", Show::Net)),
        (1, "maxseg", 2, 2) => Some(("size", Show::Net)),
        (1, "window", 2, 1) => Some(("count", Show::Net)),
        (1, "timestamp", 2, 4) => Some(("tsval", Show::Net)),
        (1, "timestamp", 6, 4) => Some(("tsecr", Show::Net)),
        (1 | 2, _, 1, 1) => Some(("length", Show::Net)),
        (2, "ra", 2, 2) => Some(("value", Show::Net)),
        (2, "lsrr" | "ssrr" | "rr", 2, 1) => Some(("ptr", Show::Net)),
        _ => None,
    };
    if let Some((field, show)) = field {
        return (format!("{head}{name} {field}"), show);
    }
    let (offset, len) = (place.offset.saturating_mul(8), place.len.saturating_mul(8));
    (format!("{head}@{},{offset},{len}", place.kind), Show::Hex)
}

/// Why a packet is refused, by ICMP code. `kind`: 0 ICMP of the packet's family, 2 of either.
pub(super) fn reject(kind: u32, code: u8, network: Option<u8>) -> String {
    let (word, names): (&str, &[(u8, &str)]) = match (kind, network) {
        (1, _) => return "reject with tcp reset".to_owned(),
        (2, _) => (
            "icmpx",
            &[
                (0, "no-route"),
                (1, "port-unreachable"),
                (2, "host-unreachable"),
                (3, "admin-prohibited"),
            ],
        ),
        (_, Some(6)) => (
            "icmpv6",
            &[
                (0, "no-route"),
                (1, "admin-prohibited"),
                (3, "addr-unreachable"),
                (4, "port-unreachable"),
                (5, "policy-fail"),
                (6, "reject-route"),
            ],
        ),
        _ => (
            "icmp",
            &[
                (0, "net-unreachable"),
                (1, "host-unreachable"),
                (2, "prot-unreachable"),
                (3, "port-unreachable"),
                (9, "net-prohibited"),
                (10, "host-prohibited"),
                (13, "admin-prohibited"),
            ],
        ),
    };
    let found = names.iter().find(|(number, _)| *number == code);
    let name = found.map_or_else(|| code.to_string(), |(_, name)| (*name).to_owned());
    format!("reject with {word} {name}")
}
