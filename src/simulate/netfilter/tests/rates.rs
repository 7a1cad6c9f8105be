//! Rates, quotas and numbers of connections: what the kernel tells of them bounds what is left.

use std::net::IpAddr;

use super::fixture::*;
use crate::model::Section;
use crate::model::hashlimit::{HashlimitEntry, HashlimitTable};
use crate::model::netfilter::*;
use crate::model::netns::NetNs;
use crate::model::xtables::{HashlimitMatch, RareMatch, XtMatch};
use crate::simulate::netfilter::HookVerdict;
use crate::simulate::skb::Flows;

const LIMIT: Expr = Expr::Limit {
    rate: 1,
    unit: 60,
    burst: 2,
    bytes: false,
    inverted: false,
};

fn counter(packets: u64) -> Expr {
    Expr::Counter(Counters {
        packets,
        bytes: packets * 60,
    })
}

fn hooked(rules: Vec<Vec<Expr>>, sets: Vec<Set>) -> NetNs {
    let mut base = base(Hook::Forward, 0, ChainKind::Filter);
    base.policy = Policy::Drop;
    with_nft(vec![table(
        Family::Ip,
        "f",
        vec![chain("c", Some(base), rules)],
        sets,
    )])
}

/// What becomes of so many packets one after the other: accepted, dropped, unknown.
fn letters(ns: NetNs, number: usize) -> String {
    let mut world = World::new(ns);
    let mut flows = Flows::default();
    let mut said = String::new();
    for _ in 0..number {
        let packet = skb(tcp("10.244.1.7", Some(4000), "10.244.2.2", 8080), false);
        let outcome = world.one(Hook::Forward, (3, 2), packet, flows);
        flows = outcome.flows;
        said.push(match outcome.verdict {
            HookVerdict::Accept => 'a',
            HookVerdict::Drop(_) => 'd',
            _ => '?',
        });
    }
    said
}

fn accepts(mut conditions: Vec<Expr>) -> Vec<Expr> {
    conditions.push(Expr::Verdict(Verdict::Accept));
    conditions
}

#[test]
fn a_bucket_that_nobody_used_lets_its_burst_through() {
    let of = |exprs: Vec<Expr>, number| letters(hooked(vec![accepts(exprs)], vec![]), number);
    assert_eq!(of(vec![LIMIT], 1), "?");
    assert_eq!(of(vec![LIMIT, counter(0)], 4), "aadd");
    // One of two may be back meanwhile, or not.
    assert_eq!(of(vec![LIMIT, counter(1)], 2), "a?");
    assert_eq!(of(vec![LIMIT, counter(2)], 1), "?");
    // What stands between may have refused packets that took their share.
    let port = Expr::Cmp {
        op: CmpOp::Eq,
        sreg: 8,
        data: vec![6],
    };
    let protocol = Expr::Meta {
        key: MetaKey::L4proto,
        dreg: 8,
    };
    let between = vec![LIMIT, protocol.clone(), port.clone(), counter(0)];
    assert_eq!(of(between, 1), "?");
    assert_eq!(of(vec![protocol, port, counter(0), LIMIT], 3), "aad");
    // Fast ones fill up under way.
    let fast = Expr::Limit {
        rate: 100,
        unit: 1,
        burst: 1,
        bytes: false,
        inverted: false,
    };
    assert_eq!(of(vec![fast, counter(0)], 2), "a?");
    let limit = XtMatch::Limit {
        cost: 600_000,
        burst: 1,
    };
    assert_eq!(of(vec![Expr::Match(limit), counter(0)], 2), "ad");
}

#[test]
fn rates_that_are_exceeded_match_later() {
    let over = Expr::Limit {
        rate: 1,
        unit: 60,
        burst: 2,
        bytes: false,
        inverted: true,
    };
    let drop = |mut exprs: Vec<Expr>| {
        exprs.push(Expr::Verdict(Verdict::Drop));
        letters(hooked(vec![exprs, accepts(vec![])], vec![]), 3)
    };
    assert_eq!(drop(vec![counter(0), over.clone()]), "aad");
    // Behind it those are counted that came too fast.
    assert_eq!(drop(vec![over, counter(0)]), "???");
    let bytes = Expr::Limit {
        rate: 100,
        unit: 60,
        burst: 20,
        bytes: true,
        inverted: true,
    };
    assert_eq!(drop(vec![counter(0), bytes]), "aa?");
}

#[test]
fn a_limit_that_ends_alike_both_ways_does_not_matter() {
    let ns = hooked(vec![accepts(vec![LIMIT]), accepts(vec![])], vec![]);
    assert_eq!(letters(ns, 1), "a");
    // Known to be left or not, what the ways took out of rates is no difference.
    let known = hooked(
        vec![accepts(vec![LIMIT, counter(0)]), accepts(vec![])],
        vec![],
    );
    assert_eq!(letters(known, 3), "aaa");
}

#[test]
fn quotas_and_numbers_of_connections_are_bounded() {
    let quota = |bytes| {
        XtMatch::Rare(Box::new(RareMatch::Quota {
            bytes,
            invert: false,
        }))
    };
    let of = |exprs: Vec<Expr>, connections: u32| {
        let mut ns = hooked(vec![accepts(exprs)], vec![]);
        ns.sysctls = Section::Known(crate::model::sysctl::Sysctls {
            nf_conntrack_count: Section::Known(Some(connections)),
            ..crate::model::sysctl::Sysctls::default()
        });
        letters(ns, 1)
    };
    assert_eq!(of(vec![Expr::Match(quota(1 << 30)), counter(9)], 0), "a");
    assert_eq!(of(vec![Expr::Match(quota(1000)), counter(9)], 0), "?");
    let native = |consumed| Expr::Quota {
        inverted: false,
        bytes: 1 << 30,
        consumed,
    };
    assert_eq!(of(vec![native(0)], 0), "a");
    assert_eq!(of(vec![native(1 << 30)], 0), "d");
    let connections = |count, inverted| Expr::Connlimit { count, inverted };
    assert_eq!(of(vec![connections(20, false)], 10), "a");
    assert_eq!(of(vec![connections(20, false)], 15), "?");
    assert_eq!(of(vec![connections(20, true)], 10), "d");
    assert_eq!(of(vec![connections(0, true)], 10), "a");
}

/// Packets of 60 bytes over what is left of a quota: what they took themselves counts.
#[test]
fn a_quota_is_used_up_by_the_questions_own_packets() {
    let of = |bytes, consumed, inverted| {
        let quota = Expr::Quota {
            inverted,
            bytes,
            consumed,
        };
        letters(hooked(vec![accepts(vec![quota])], vec![]), 4)
    };
    assert_eq!(of(1000, 0, false), "aaaa");
    assert_eq!(of(1150, 1000, false), "aa??");
    assert_eq!(of(1060, 1000, false), "dddd");
    assert_eq!(of(1150, 1000, true), "dd??");
}

#[test]
fn an_element_that_is_made_now_has_its_whole_rate() {
    let dynset = vec![
        Expr::Payload {
            base: PayloadBase::Network,
            offset: 12,
            len: 4,
            dreg: 8,
        },
        Expr::Dynset {
            set: "s".to_owned(),
            sreg: 8,
            op: 1,
            data: None,
            timeout_ms: None,
            exprs: vec![LIMIT],
        },
    ];
    let set = |elements| Set {
        name: "s".to_owned(),
        flags: SetFlags {
            dynamic: true,
            ..SetFlags::default()
        },
        key_len: 4,
        field_lens: Vec::new(),
        data_len: 0,
        elements,
        decl: SetDecl::default(),
    };
    let of = |elements| {
        letters(
            hooked(vec![accepts(dynset.clone())], vec![set(elements)]),
            3,
        )
    };
    assert_eq!(of(Elements::Known(Vec::new())), "aad");
    assert_eq!(of(Elements::NotAsked), "???");
    let elem = SetElem {
        key: vec![10, 244, 1, 7],
        key_end: None,
        interval_end: false,
        catchall: false,
        data: None,
        comment: None,
        expires_ms: None,
        timeout_ms: None,
        exprs: vec![LIMIT],
    };
    assert_eq!(of(Elements::Known(vec![elem])), "???");
}

/// A rate by single sources, in the table `web`.
fn hashlimit(mode: u32, average: u64, burst: u64) -> HashlimitMatch {
    HashlimitMatch {
        name: "web".to_owned(),
        mode,
        average,
        burst,
        scale: 1_000_000,
        size: 0,
        max: 0,
        gc_interval: 1000,
        expire: 60_000,
        interval: 0,
        masks: (32, 32),
    }
}

#[test]
fn hashlimit_is_asked_for_what_its_table_shows() {
    let asked = HashlimitMatch {
        masks: (24, 32),
        ..hashlimit(4, 60_000_000, 2)
    };
    let entry = |expires_s, credit: u64| HashlimitEntry {
        expires_s,
        src: IpAddr::from([10, 244, 1, 0]),
        sport: 0,
        dst: IpAddr::from([0, 0, 0, 0]),
        dport: 0,
        // As large as on a real kernel.
        credit: credit * 80_000_000_000_000,
        most: 200 * 80_000_000_000_000,
        cost: 100 * 80_000_000_000_000,
    };
    let of = |entries, cut, mode| {
        let mut asked = asked.clone();
        asked.mode = mode;
        let matched = Expr::Match(XtMatch::Hashlimit(Box::new(asked)));
        let mut ns = hooked(vec![accepts(vec![matched])], vec![]);
        ns.hashlimits = Section::Known(vec![HashlimitTable {
            name: "web".to_owned(),
            v6: false,
            entries,
            cut,
        }]);
        letters(ns, 3)
    };
    assert_eq!(of(vec![], false, 4), "aad");
    assert_eq!(of(vec![], true, 4), "???");
    assert_eq!(of(vec![entry(50, 150)], false, 4), "add");
    assert_eq!(of(vec![entry(50, 99)], false, 4), "???", "almost full");
    assert_eq!(of(vec![entry(50, 0)], false, 4), "ddd");
    assert_eq!(of(vec![entry(1, 0)], false, 4), "???", "soon forgotten");
    assert_eq!(of(vec![entry(50, 0)], false, 0x14), "aaa");
    // By destination it is another entry.
    assert_eq!(of(vec![entry(50, 0)], false, 1), "aad");
    // A rate that is measured.
    assert_eq!(of(vec![], false, 0x44), "???");
}

/// `--hashlimit-upto 16mb/s`: a large number of bytes is a small one in the rule.
#[test]
fn the_first_packet_of_a_byte_rate_passes() {
    let average = |bytes: u64| u64::from(u32::MAX) / (bytes / 16 + 1);
    for bytes in [1 << 10, 16 << 20, 1 << 30] {
        let asked = hashlimit(0x24, average(bytes), 0);
        let matched = Expr::Match(XtMatch::Hashlimit(Box::new(asked)));
        let mut ns = hooked(vec![accepts(vec![matched])], vec![]);
        ns.hashlimits = Section::Known(vec![HashlimitTable {
            name: "web".to_owned(),
            v6: false,
            entries: Vec::new(),
            cut: false,
        }]);
        assert_eq!(letters(ns, 2), "a?", "{bytes} bytes per second");
    }
}
