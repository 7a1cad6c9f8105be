//! Answers that no kernel gives: recorded ones, damaged. Decoders give a value or nothing.

use netlink_packet_route::RouteNetlinkMessage;

use super::mutate::Rng;
use super::netfilter::{expr, ipset, iptables, nft, set, xt_match, xt_target};
use super::nla::Attrs;
use super::{addr, conntrack, fdb, link, neigh, nexthop, route, rtnl, rule, socket, tc, xfrm};
use crate::model::netfilter::Family;
use crate::model::packet::{TCP, UDP};

/// What was asked, message type, body.
fn recorded() -> Vec<(&'static str, u16, Vec<u8>)> {
    let lines = include_str!("hostile.txt").lines();
    let answers = lines.filter(|line| !line.starts_with('#')).map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, kind, hex] = words[..] else {
            panic!("{line}")
        };
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("a byte");
        let body = (0..hex.len() / 2).map(|at| byte(2 * at)).collect();
        (what, kind.parse().expect("a number"), body)
    });
    answers.collect()
}

/// Whether something was made of it.
fn decode(what: &str, kind: u16, body: &[u8]) -> bool {
    let rtnetlink = |header| {
        let Some((message, lost)) = rtnl::mend(kind, body, header) else {
            return false;
        };
        match message {
            RouteNetlinkMessage::NewLink(message) => link::flatten(&message, &lost).is_some(),
            RouteNetlinkMessage::NewAddress(message) => addr::flatten(&message).is_some(),
            RouteNetlinkMessage::NewRoute(message) => route::flatten(&message, &lost).is_some(),
            RouteNetlinkMessage::NewNeighbour(message) => {
                neigh::flatten(&message).is_some() | fdb::flatten(&message).is_some()
            }
            RouteNetlinkMessage::NewRule(message) => {
                rule::flatten(false, &message, &lost);
                rule::flatten(true, &message, &lost);
                true
            }
            _ => false,
        }
    };
    let attrs = Attrs(body.get(4..).unwrap_or_default());
    match what {
        "link" => rtnetlink(16),
        "addr" => rtnetlink(8),
        "route" | "neigh" | "fdb" | "rule" => rtnetlink(12),
        "nexthop" => nexthop::decode(body).is_some(),
        "qdisc" => tc::qdisc(body).is_some(),
        "filter" => tc::filter("ingress", body).is_some(),
        "table" => nft::table(body).is_some(),
        "chain" => nft::chain(body).is_ok(),
        "nftrule" => nft::rule(Family::Inet, body).is_some(),
        "set" => set::head(Family::Inet, body).is_some(),
        "ipset" => ipset::take(&mut None, body).is_ok(),
        "elem" => set::list(Family::Inet, body).any(|elem| elem.is_some()),
        "ct" => conntrack::zone(attrs).is_some() | conntrack::decode(attrs).is_some(),
        "xfrm" => xfrm::decode(body).is_some(),
        "sock6" => socket::decode(TCP, body).is_some(),
        "sock17" => socket::decode(UDP, body).is_some(),
        _ => false,
    }
}

#[test]
fn damaged_answers_give_a_value_or_nothing() {
    let recorded = recorded();
    let whole = |(what, kind, body): &&(&str, u16, Vec<u8>)| decode(what, *kind, body);
    let good: Vec<_> = recorded.iter().filter(whole).collect();
    assert!(good.len() > 50, "{}", good.len());
    let mut rng = Rng::new(6);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..40_000 {
        let (what, kind, body) = good[rng.below(good.len())];
        let other = good[rng.below(good.len())];
        let damaged = rng.damage(body, &other.2);
        if decode(what, *kind, &damaged) {
            taken += 1;
        } else {
            refused += 1;
        }
        // An answer to another question.
        decode(other.0, other.1, &damaged);
    }
    assert!(taken > 5_000 && refused > 2_000, "{taken} {refused}");
}

#[test]
fn damaged_extensions_give_a_value_or_nothing() {
    let matches = [
        "tcp",
        "udp",
        "icmp",
        "icmp6",
        "sctp",
        "multiport",
        "mark",
        "connmark",
        "addrtype",
        "pkttype",
        "dscp",
        "ttl",
        "hl",
        "rpfilter",
        "comment",
        "statistic",
        "limit",
        "conntrack",
        "state",
        "physdev",
        "set",
        "iprange",
        "owner",
        "mac",
        "length",
        "recent",
        "socket",
    ];
    let targets = [
        "",
        "ERROR",
        "DNAT",
        "SNAT",
        "MASQUERADE",
        "REDIRECT",
        "MARK",
        "CONNMARK",
        "REJECT",
        "LOG",
        "NFLOG",
        "CT",
        "NOTRACK",
        "TPROXY",
        "TCPMSS",
        "NETMAP",
        "NFQUEUE",
    ];
    let mut rng = Rng::new(7);
    let mut known = 0;
    for _ in 0..40_000 {
        let mut data: Vec<u8> = (0..rng.below(260)).map(|_| 0).collect();
        data = rng.damage(&data, b"KUBE-SERVICES\0\xff\xff\x01\x00\x02\x00\x00\x00");
        let (revision, v6) = (u8::try_from(rng.below(5)).unwrap_or(0), rng.below(2) == 0);
        let name = matches[rng.below(matches.len())];
        let found = xt_match::decode(name, revision, &data, v6);
        known += usize::from(!matches!(
            found,
            crate::model::xtables::XtMatch::Other { .. }
        ));
        xt_target::decode(targets[rng.below(targets.len())], revision, &data, v6);
        expr::decode_list(&data, Family::Ip);
        nft::user_comment(&data);
    }
    assert!(known > 5_000, "{known}");
}

/// `iptables-legacy -t nat -A PREROUTING -p tcp -m comment --comment c -j KUBE` and the like, put together
/// as the kernel lays them out.
#[test]
fn damaged_tables_give_a_value_or_nothing() {
    let entry = |name: &str, data: &[u8]| {
        let mut bytes = vec![0u8; 112];
        let size = 32 + data.len();
        bytes[88..90].copy_from_slice(&112u16.to_ne_bytes());
        let next = u16::try_from(112 + size).expect("small");
        bytes[90..92].copy_from_slice(&next.to_ne_bytes());
        let mut target = u16::try_from(size).expect("small").to_ne_bytes().to_vec();
        target.extend_from_slice(name.as_bytes());
        target.resize(32, 0);
        target.extend_from_slice(data);
        bytes.extend(target);
        bytes
    };
    let verdict = |number: i32| {
        let mut data = number.to_ne_bytes().to_vec();
        data.resize(8, 0);
        entry("", &data)
    };
    let mut user = b"KUBE-SERVICES".to_vec();
    user.resize(32, 0);
    let mut error = b"ERROR".to_vec();
    error.resize(32, 0);
    // PREROUTING: a jump and the policy; a user chain with one rule; the end.
    let start = 40;
    let (jump, policy) = (verdict(152 * 2 + 176), verdict(-2));
    let offset = jump.len();
    let parts = [
        vec![0; start],
        jump,
        policy,
        entry("ERROR", &user),
        verdict(-1),
        verdict(-5),
        entry("ERROR", &error),
    ];
    let bytes = parts.concat();
    let mut info = vec![0u8; 84];
    info[32..36].copy_from_slice(&1u32.to_ne_bytes());
    info[56..60].copy_from_slice(&u32::try_from(offset).expect("small").to_ne_bytes());
    let read = |info: &[u8], bytes: Vec<u8>| {
        let blob = iptables::Blob::index(false, "nat", info, bytes)?;
        let chains = blob.all_chains();
        let chains: Vec<String> = chains.collect();
        let rules = chains.iter().map(|name| blob.chain(name, None));
        Some((chains.len(), rules.flatten().count()))
    };
    assert_eq!(read(&info, bytes.clone()), Some((2, 2)));
    let mut rng = Rng::new(8);
    let mut taken = 0;
    for _ in 0..20_000 {
        let damaged_info = match rng.below(4) {
            0 => rng.damage(&info, &bytes),
            _ => info.clone(),
        };
        let damaged = rng.damage(&bytes, &info);
        taken += usize::from(read(&damaged_info, damaged).is_some());
    }
    assert!(taken > 1_000, "{taken}");
    // Every verdict: also the smallest number there is.
    for number in [i32::MIN, i32::MIN + 1, i32::MAX, -1, -6, 0] {
        let mut bytes = bytes.clone();
        let at = start + offset + 112 + 32;
        bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
        read(&info, bytes);
    }
}
