//! One door to the decoders of what a kernel answers, for bytes that no kernel sent: the tests of damaged
//! answers, and tests/fuzz.

use netlink_packet_route::RouteNetlinkMessage;

use super::netfilter::{expr, ipset, iptables, nft, set, xt_match, xt_target};
use super::nla::Attrs;
use super::{addr, conntrack, fdb, link, neigh, nexthop, route, rtnl, rule, socket, tc, xfrm};
use crate::model::netfilter::Family;
use crate::model::packet::{TCP, UDP};

/// What [`answer`] takes as a question.
pub const ASKED: &[&str] = &[
    "link", "addr", "route", "neigh", "fdb", "rule", "nexthop", "qdisc", "filter", "table",
    "chain", "nftrule", "set", "ipset", "elem", "ct", "xfrm", "sock6", "sock17",
];
/// Matches of x_tables that are decoded.
pub const MATCHES: &[&str] = &[
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
/// Targets of x_tables that are decoded; the first is the standard one.
pub const TARGETS: &[&str] = &[
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

/// An answer to a question of netlink: what was asked (by the words of hostile.txt), the message's type, its body.
/// Whether something was made of it.
pub fn answer(what: &str, kind: u16, body: &[u8]) -> bool {
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
        "ct" => conntrack::entry::decode(attrs).is_some(),
        "xfrm" => xfrm::decode(body).is_some(),
        "sock6" => socket::decode(TCP, body).is_some(),
        "sock17" => socket::decode(UDP, body).is_some(),
        _ => false,
    }
}

/// A match or a target of x_tables by name, and its bytes taken as a list of expressions and as what a program
/// notes at a rule.
pub fn extension(name: &str, revision: u8, data: &[u8], v6: bool) {
    xt_match::decode(name, revision, data, v6);
    xt_target::decode(name, revision, data, v6);
    expr::decode_list(data, Family::Ip);
    nft::user_comment(data);
}

/// A table of x_tables as getsockopt gives it: `struct ipt_getinfo` and the entries. Chains and rules, where it
/// is one.
pub fn table(v6: bool, info: &[u8], entries: Vec<u8>) -> Option<(usize, usize)> {
    let blob = iptables::Blob::index(v6, "nat", info, entries)?;
    let chains: Vec<String> = blob.all_chains().collect();
    let rules = chains.iter().map(|name| blob.chain(name, None));
    Some((chains.len(), rules.flatten().count()))
}
