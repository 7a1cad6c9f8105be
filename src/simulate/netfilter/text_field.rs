//! What a native expression loads, by the name that `nft` and `iptables-save` give it.

use super::text_value::Show;
use crate::model::netfilter::{CtKey, FibResult, MetaKey, PayloadBase};

/// Name in `nft`, flag in `iptables-save` (empty: none), and how values are shown.
pub(super) type Field = (String, &'static str, Show);

/// A part of the packet. `network` is 4 or 6 where that is known, `transport` the protocol by name.
pub(super) fn payload(
    base: PayloadBase,
    offset: u32,
    len: u32,
    network: Option<u8>,
    transport: Option<&str>,
) -> Field {
    let fixed = match (base, offset, len) {
        (PayloadBase::LinkLayer, 0, 6) => ("ether daddr", "", Show::Mac),
        (PayloadBase::LinkLayer, 6, 6) => ("ether saddr", "", Show::Mac),
        (PayloadBase::LinkLayer, 12, 2) => ("ether type", "", Show::Ethertype),
        (PayloadBase::Network, 6, 1) if network == Some(6) => ("ip6 nexthdr", "", Show::NextHeader),
        (PayloadBase::Network, 7, 1) if network == Some(6) => ("ip6 hoplimit", "", Show::Net),
        (PayloadBase::Network, 4, 2) if network == Some(6) => ("ip6 length", "", Show::Net),
        (PayloadBase::Network, 8, 1..=16) if network == Some(6) || len == 16 => {
            ("ip6 saddr", "-s", Show::Addr6)
        }
        (PayloadBase::Network, 24, 1..=16) if network != Some(4) => {
            ("ip6 daddr", "-d", Show::Addr6)
        }
        (PayloadBase::Network, 1, 1) if network == Some(4) => ("ip dscp", "", Show::Dscp),
        (PayloadBase::Network, 2, 2) if network != Some(6) => ("ip length", "", Show::Net),
        (PayloadBase::Network, 4, 2) if network == Some(4) => ("ip id", "", Show::Net),
        (PayloadBase::Network, 8, 1) => ("ip ttl", "", Show::Net),
        (PayloadBase::Network, 9, 1) => ("ip protocol", "-p", Show::Protocol),
        (PayloadBase::Network, 12, 1..=4) => ("ip saddr", "-s", Show::Addr),
        (PayloadBase::Network, 16, 1..=4) => ("ip daddr", "-d", Show::Addr),
        (PayloadBase::Transport, 0, 1) if transport == Some("icmp") => {
            ("icmp type", "", Show::IcmpType)
        }
        (PayloadBase::Transport, 1, 1) if transport == Some("icmp") => ("icmp code", "", Show::Net),
        (PayloadBase::Transport, 0, 1) if is_icmp6(transport) => {
            ("icmpv6 type", "", Show::Icmp6Type)
        }
        (PayloadBase::Transport, 1, 1) if is_icmp6(transport) => ("icmpv6 code", "", Show::Net),
        (PayloadBase::Transport, 13, 1) if transport == Some("tcp") => {
            ("tcp flags", "--tcp-flags", Show::TcpFlags)
        }
        (PayloadBase::Transport, 0 | 2, 2) => {
            let (word, flag) = if offset == 0 {
                ("sport", "--sport")
            } else {
                ("dport", "--dport")
            };
            let name = transport.unwrap_or("th");
            return (format!("{name} {word}"), flag, Show::Net);
        }
        (base, offset, len) => {
            let word = match base {
                PayloadBase::LinkLayer => "ll",
                PayloadBase::Network => "nh",
                PayloadBase::Transport => "th",
                PayloadBase::Inner | PayloadBase::Tunnel | PayloadBase::Other(_) => "ih",
            };
            let name = format!("@{word},{},{}", offset * 8, len * 8);
            return (name, "", Show::Hex);
        }
    };
    let (nft, xt, show) = fixed;
    (nft.to_owned(), xt, show)
}

fn is_icmp6(transport: Option<&str>) -> bool {
    transport == Some("icmpv6")
}

/// What is known of the packet beside its bytes.
pub(super) fn meta(key: MetaKey) -> Field {
    let (nft, xt, show) = match key {
        MetaKey::Len => ("meta length", "", Show::Host),
        MetaKey::Protocol => ("meta protocol", "", Show::Ethertype),
        MetaKey::Mark => ("meta mark", "-m mark --mark", Show::Mark),
        MetaKey::Iifname => ("iifname", "-i", Show::Name),
        MetaKey::Oifname => ("oifname", "-o", Show::Name),
        MetaKey::L4proto => ("meta l4proto", "-p", Show::Protocol),
        MetaKey::Iif => ("iif", "", Show::Host),
        MetaKey::Oif => ("oif", "", Show::Host),
        MetaKey::Iifgroup => ("iifgroup", "", Show::Host),
        MetaKey::Oifgroup => ("oifgroup", "", Show::Host),
        MetaKey::Iiftype => ("meta iiftype", "", Show::DeviceType),
        MetaKey::Oiftype => ("meta oiftype", "", Show::DeviceType),
        MetaKey::Nfproto => ("meta nfproto", "", Show::Family),
        MetaKey::Skuid => ("meta skuid", "", Show::Host),
        MetaKey::Skgid => ("meta skgid", "", Show::Host),
        MetaKey::Cpu => ("meta cpu", "", Show::Host),
        MetaKey::Pkttype => ("meta pkttype", "-m pkttype --pkt-type", Show::PacketType),
        MetaKey::Nftrace => ("meta nftrace", "", Show::Host),
        other => {
            let word = format!("{other:?}").to_lowercase();
            return (format!("meta {word}"), "", Show::Raw);
        }
    };
    (nft.to_owned(), xt, show)
}

/// What is known of the packet's connection.
pub(super) fn ct(key: CtKey) -> (String, Show) {
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
        other => return (format!("{other:?}").to_lowercase(), Show::Raw),
    };
    (name.to_owned(), show)
}

/// The result of a lookup in the routing tables. `present`: only whether there is one.
pub(super) fn fib(result: FibResult, present: bool) -> (&'static str, Show) {
    match result {
        FibResult::Oif if present => ("oif", Show::Present),
        FibResult::Oif => ("oif", Show::Host),
        FibResult::Oifname if present => ("oifname", Show::Present),
        FibResult::Oifname => ("oifname", Show::Name),
        FibResult::Addrtype => ("type", Show::AddrType),
        FibResult::Other(_) => ("result", Show::Raw),
    }
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
