//! Order of chains, conntrack's place, and verdicts.

use super::fixture::*;
use crate::model::Section;
use crate::model::conntrack::{ConntrackEntry, Tuple};
use crate::model::netfilter::*;
use crate::simulate::netfilter::HookVerdict;
use crate::simulate::skb::{CtRef, Flows};
use crate::trace::RejectWith;

fn state_is(bits: u8) -> Vec<Expr> {
    vec![
        Expr::Ct {
            key: CtKey::State,
            dreg: 4,
            dir: None,
        },
        Expr::Bitwise {
            sreg: 4,
            dreg: 4,
            len: 4,
            op: BitwiseOp::MaskXor {
                mask: vec![bits, 0, 0, 0],
                xor: vec![0; 4],
            },
        },
        Expr::Cmp {
            op: CmpOp::Neq,
            sreg: 4,
            data: vec![0; 4],
        },
    ]
}

fn mark(bits: u32) -> Vec<Expr> {
    vec![
        Expr::Meta {
            key: MetaKey::Mark,
            dreg: 4,
        },
        Expr::Bitwise {
            sreg: 4,
            dreg: 4,
            len: 4,
            op: BitwiseOp::MaskXor {
                mask: (!bits).to_le_bytes().to_vec(),
                xor: bits.to_le_bytes().to_vec(),
            },
        },
        Expr::MetaSet {
            key: MetaKey::Mark,
            sreg: 4,
        },
    ]
}

fn input(priority: i32) -> Option<BaseChain> {
    Some(base(Hook::Input, priority, ChainKind::Filter))
}

fn pre(priority: i32) -> Option<BaseChain> {
    Some(base(Hook::Prerouting, priority, ChainKind::Filter))
}

#[test]
fn an_accept_does_not_stop_later_chains_but_a_drop_does() {
    let accept = vec![Expr::Verdict(Verdict::Accept)];
    let drop = vec![Expr::Verdict(Verdict::Drop)];
    let first = chain("first", input(-10), vec![accept.clone()]);
    let second = chain("second", input(10), vec![drop]);
    let tables = vec![table(Family::Inet, "t", vec![first, second], vec![])];
    let mut world = World::new(with_nft(tables));
    let packet = skb(tcp("10.244.1.7", None, "10.88.0.11", 22), false);
    let outcome = world.one(Hook::Input, (3, 0), packet, Flows::default());
    assert!(matches!(outcome.verdict, HookVerdict::Drop(_)));
    assert_eq!(said(&outcome), "accepted; dropped");
}

#[test]
fn conntrack_acts_at_minus_200() {
    let mut raw = state_is(1);
    raw.extend(mark(1));
    let mut mangle = state_is(8);
    mangle.extend(mark(2));
    let tables = vec![table(
        Family::Inet,
        "t",
        vec![
            chain("raw", pre(-300), vec![raw]),
            chain("mangle", pre(-150), vec![mangle]),
        ],
        vec![],
    )];
    let mut world = World::new(with_nft(tables));
    let packet = skb(tcp("10.244.1.7", None, "10.88.0.11", 22), false);
    let outcome = world.one(Hook::Prerouting, (3, 0), packet, Flows::default());
    assert_eq!(outcome.skb.mark, Some(3));
}

#[test]
fn untracked_packets_make_no_entry() {
    let raw = chain("raw", pre(-300), vec![vec![Expr::Notrack]]);
    let mut rule = state_is(64);
    rule.push(Expr::Verdict(Verdict::Drop));
    let after = chain("after", pre(-150), vec![rule]);
    let tables = vec![table(Family::Ip, "t", vec![raw, after], vec![])];
    let mut world = World::new(with_nft(tables));
    let packet = skb(tcp("10.244.1.7", None, "10.88.0.11", 22), false);
    let outcome = world.one(Hook::Prerouting, (3, 0), packet, Flows::default());
    assert_eq!(outcome.skb.ct, CtRef::Untracked);
    assert!(matches!(outcome.verdict, HookVerdict::Drop(_)));
}

#[test]
fn without_a_rule_that_needs_it_nothing_is_tracked() {
    let plain = chain(
        "in",
        pre(-300),
        vec![vec![Expr::Counter(Counters::default())]],
    );
    let mut world = World::new(with_nft(vec![table(Family::Ip, "t", vec![plain], vec![])]));
    let packet = skb(tcp("10.244.1.7", Some(4000), "10.88.0.11", 22), false);
    let outcome = world.one(Hook::Prerouting, (3, 0), packet, Flows::default());
    assert_eq!(outcome.skb.ct, CtRef::None);
    assert!(world.wants.is_empty());
}

#[test]
fn dormant_tables_and_other_families_do_not_act() {
    let drop = || vec![vec![Expr::Verdict(Verdict::Drop)]];
    let mut dormant = table(Family::Ip, "a", vec![chain("in", input(0), drop())], vec![]);
    dormant.dormant = true;
    let v6 = table(
        Family::Ip6,
        "b",
        vec![chain("in", input(0), drop())],
        vec![],
    );
    let mut world = World::new(with_nft(vec![dormant, v6]));
    let packet = skb(tcp("10.244.1.7", None, "10.88.0.11", 22), false);
    let outcome = world.one(Hook::Input, (3, 0), packet, Flows::default());
    assert!(is_accept(&outcome));
}

#[test]
fn of_equal_priorities_the_younger_chain_runs_first() {
    let drop = |name: &str| chain(name, input(0), vec![vec![Expr::Verdict(Verdict::Drop)]]);
    let reset = vec![vec![Expr::Reject { kind: 1, code: 0 }]];
    let older = table(Family::Ip, "a", vec![drop("in")], vec![]);
    let younger = table(
        Family::Inet,
        "b",
        vec![chain("in", input(0), reset)],
        vec![],
    );
    let mut world = World::new(with_nft(vec![older, younger]));
    let packet = skb(tcp("10.244.1.7", None, "10.88.0.11", 22), false);
    let outcome = world.one(Hook::Input, (3, 0), packet, Flows::default());
    assert_eq!(outcome.verdict, HookVerdict::Reject(RejectWith::TcpReset));
}

#[test]
fn nat_ranks_with_its_first_chain_among_equal_priorities() {
    // Seen in a kernel: a filter chain at -100 that is younger than the first NAT chain runs before
    // NAT, whatever the NAT chain's own priority.
    let nat = || {
        let redirect = Expr::Redir {
            proto_min: None,
            proto_max: None,
            flags: 0,
        };
        let kind = Some(base(Hook::Prerouting, -90, ChainKind::Nat));
        table(
            Family::Ip,
            "nat",
            vec![chain("nat", kind, vec![vec![redirect]])],
            vec![],
        )
    };
    let drop_original = || {
        let rule = vec![
            Expr::Payload {
                base: PayloadBase::Network,
                offset: 16,
                len: 4,
                dreg: 4,
            },
            Expr::Cmp {
                op: CmpOp::Eq,
                sreg: 4,
                data: vec![1, 1, 1, 1],
            },
            Expr::Verdict(Verdict::Drop),
        ];
        table(
            Family::Ip,
            "drop",
            vec![chain("drop", pre(-100), vec![rule])],
            vec![],
        )
    };
    let through = |tables| {
        let packet = skb(tcp("10.244.1.7", None, "1.1.1.1", 80), false);
        World::new(with_nft(tables)).one(Hook::Prerouting, (3, 0), packet, Flows::default())
    };
    let younger = through(vec![nat(), drop_original()]);
    assert!(matches!(younger.verdict, HookVerdict::Drop(_)));
    let older = through(vec![drop_original(), nat()]);
    assert!(is_accept(&older));
}

#[test]
fn goto_returns_to_the_caller_of_the_chain_that_used_it() {
    let go = |verdict| vec![Expr::Verdict(verdict)];
    let name = str::to_owned;
    let chains = vec![
        chain("in", input(0), vec![go(Verdict::Jump(name("a"))), mark(4)]),
        chain("a", None, vec![go(Verdict::Goto(name("b"))), mark(8)]),
        chain("b", None, vec![mark(1), go(Verdict::Return), mark(2)]),
    ];
    let mut world = World::new(with_nft(vec![table(Family::Ip, "t", chains, vec![])]));
    let packet = skb(tcp("10.244.1.7", None, "10.88.0.11", 22), false);
    let outcome = world.one(Hook::Input, (3, 0), packet, Flows::default());
    assert_eq!(outcome.skb.mark, Some(5));
    assert_eq!(said(&outcome), "mark 0x0 → 0x1, mark 0x1 → 0x5");
}

#[test]
fn snat_to_a_range_keeps_an_address_that_lies_in_it() {
    let rules = "
*nat
:POSTROUTING ACCEPT
:PREROUTING ACCEPT
-A POSTROUTING -o eth0 -j SNAT --to-source 10.88.0.20-10.88.0.23
";
    let mut world = World::new(with_iptables(rules));
    let mut through = |src: &str| {
        let packet = skb(tcp(src, None, "1.1.1.1", 80), false);
        let pre = world.one(Hook::Prerouting, (3, 0), packet, Flows::default());
        let post = world.one(Hook::Postrouting, (0, 2), pre.skb, pre.flows);
        post.skb.packet.src
    };
    assert_eq!(through("10.88.0.22"), ip("10.88.0.22"));
    let chosen = through("10.244.1.7");
    assert!((ip("10.88.0.20")..=ip("10.88.0.23")).contains(&chosen));
}

#[test]
fn a_redirect_of_local_packets_goes_to_loopback() {
    let rules = "
*nat
:PREROUTING ACCEPT
:OUTPUT ACCEPT
-A OUTPUT -p tcp -j REDIRECT
-A PREROUTING -p tcp -j REDIRECT
";
    let mut world = World::new(with_iptables(rules));
    let packet = skb(tcp("10.88.0.11", None, "1.1.1.1", 80), true);
    let out = world.one(Hook::Output, (0, 2), packet, Flows::default());
    assert_eq!(out.skb.packet.dst, ip("127.0.0.1"));
    let packet = skb(tcp("10.244.1.7", None, "1.1.1.1", 80), false);
    let pre = world.one(Hook::Prerouting, (3, 0), packet, Flows::default());
    assert_eq!(said(&pre), "redirect to 10.244.1.1:80");
}

/// A source that another flow's answers come back to is not given twice: the port is another one.
#[test]
fn a_port_that_is_taken_is_another() {
    let save = "*nat\n:POSTROUTING ACCEPT\n-A POSTROUTING -o eth0 -j MASQUERADE\n";
    let first = tcp("10.244.1.7", Some(4000), "198.51.100.1", 80);
    let reply = |sport: u16| {
        tcp("10.88.0.11", Some(sport), "198.51.100.1", 80)
            .tuple()
            .inverted()
    };
    let other = |src: &str| ConntrackEntry {
        tcp_state: Some(3),
        ..ConntrackEntry::new(
            tcp(src, Some(4000), "198.51.100.1", 80).tuple(),
            reply(4000),
        )
    };
    let through = |entry: Option<ConntrackEntry>| {
        let mut ns = with_iptables(save);
        ns.conntrack = vec![
            (first.tuple(), 0, Section::Known(None)),
            (first.tuple().inverted(), 0, Section::Known(None)),
            (reply(4000), 0, Section::Known(entry)),
        ];
        let source = Tuple {
            dst: first.src,
            dport: None,
            ..first.tuple()
        };
        ns.conntrack_from = vec![(source, Section::Known(Vec::new()))];
        let mut world = World::new(ns);
        let skb = skb(first.clone(), false);
        let out = world.one(Hook::Prerouting, (3, 0), skb, Flows::default());
        let out = world.one(Hook::Postrouting, (0, 2), out.skb, out.flows);
        (out.skb.packet.sport(), said(&out))
    };
    assert_eq!(
        through(None),
        (Some(4000), "masquerade as 10.88.0.11".to_owned())
    );
    let (port, words) = through(Some(other("10.244.1.8")));
    assert_eq!(port, None);
    assert_eq!(words, "masquerade, its port being taken, as 10.88.0.11");
    // The rest of the same connection makes room.
    assert_eq!(through(Some(other("10.244.1.7"))).0, Some(4000));
}
