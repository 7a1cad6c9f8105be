//! Properties of all rule sets, over small domains so that rules meet packets.

use proptest::prelude::*;

use super::fixture::*;
use crate::model::Section;
use crate::model::netfilter::*;
use crate::model::packet::{L4, Packet};
use crate::simulate::netfilter::{HookOutcome, HookVerdict};
use crate::simulate::skb::Flows;

fn condition() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "",
        "-s 10.244.1.7",
        "! -s 10.244.1.0/24",
        "-d 10.96.0.10",
        "-p tcp -m tcp --dport 80",
        "-p udp -m udp --dport 80",
        "-m statistic --mode random --probability 0.25",
        "-m mark --mark 0x4000/0x4000",
        "-m mark ! --mark 0x1/0x1",
        "-m conntrack --ctstate NEW",
        "-m conntrack ! --ctstate NEW,ESTABLISHED",
        "-m mystery",
    ])
}

fn target() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "-j A",
        "-j B",
        "-g A",
        "-g B",
        "-j ACCEPT",
        "-j DROP",
        "-j RETURN",
        "-j MARK --set-xmark 0x4000/0x4000",
        "-j MARK --set-xmark 0x1/0x0",
        "-j LOG",
    ])
}

fn rules(
    chain: &'static str,
    condition: BoxedStrategy<&'static str>,
) -> impl Strategy<Value = String> {
    prop::collection::vec((condition, target()), 0..5).prop_map(move |rules| {
        rules
            .iter()
            .map(|(condition, target)| format!("-A {chain} {condition} {target}\n"))
            .collect()
    })
}

fn save(condition: BoxedStrategy<&'static str>) -> impl Strategy<Value = String> {
    let chains = ["PREROUTING", "A", "B"].map(|name| rules(name, condition.clone()));
    chains.prop_map(|rules: [String; 3]| {
        format!(
            "*mangle\n:PREROUTING ACCEPT\n:A -\n:B -\n{}",
            rules.concat()
        )
    })
}

fn through(save: &str, forget: Option<&str>) -> Vec<HookOutcome> {
    let mut ns = with_iptables(save);
    let tables = &mut ns.legacy.known_mut().unwrap().tables;
    if let Some(chain) = forget {
        tables[0].chains.get_mut(chain).unwrap().rules = Section::NotAsked;
    }
    let mut world = World::new(ns);
    world.limits.rules = 2000;
    world.limits.branches = 64;
    let packet = skb(tcp("10.244.1.7", None, "10.96.0.10", 80), false);
    world.run(Hook::Prerouting, (3, 0), packet, Flows::default())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any rule set ends, cycles too, and shares add up.
    #[test]
    fn shares_add_up_to_one(save in save(condition().boxed())) {
        let outcomes = through(&save, None);
        let total: f64 = outcomes.iter().map(|outcome| outcome.share).sum();
        prop_assert!((total - 1.0).abs() < 1e-9, "{total}: {save}");
        prop_assert!(outcomes.iter().all(|outcome| outcome.share > 0.0));
    }

    /// Facts that are missing make a verdict unknown, never another one.
    #[test]
    fn forgetting_a_chain_never_turns_a_verdict(save in save(
        condition().prop_filter("no forks", |c| !c.contains("statistic")).boxed()
    ), chain in prop::sample::select(vec!["A", "B", "PREROUTING"])) {
        let full = through(&save, None);
        let part = through(&save, Some(chain));
        prop_assert_eq!(part.len(), 1);
        let unknown = matches!(part[0].verdict, HookVerdict::Unknown(_));
        prop_assert!(unknown || part[0].verdict == full[0].verdict, "{}", save);
    }

    /// Equal input, equal output.
    #[test]
    fn the_same_again(save in save(condition().boxed())) {
        let words = |outcomes: Vec<HookOutcome>| format!("{outcomes:?}");
        prop_assert_eq!(words(through(&save, None)), words(through(&save, None)));
    }

    /// The answer of a translated flow comes back to who asked, from whom was asked.
    #[test]
    fn answers_map_back(
        sport in prop::option::of(1024_u16..1030),
        dport in 80_u16..82,
        dnat in prop::sample::select(vec!["10.244.2.2:8080", "10.244.2.2", "10.244.2.3-10.244.2.6"]),
        snat in prop::sample::select(vec![
            "-j MASQUERADE --random-fully",
            "-j MASQUERADE",
            "-j SNAT --to-source 10.88.0.20:2000-2003",
            "-j ACCEPT",
        ]),
    ) {
        let save = format!(
            "*nat\n:PREROUTING ACCEPT\n:POSTROUTING ACCEPT\n\
             -A PREROUTING -p tcp -j DNAT --to-destination {dnat}\n\
             -A POSTROUTING -p tcp {snat}\n"
        );
        let first = tcp("10.244.1.7", sport, "10.96.0.10", dport);
        let mut ns = with_iptables(&save);
        ns.conntrack = vec![
            (first.tuple(), 0, Section::Known(None)),
            (first.tuple().inverted(), 0, Section::Known(None)),
        ];
        let mut world = World::new(ns);
        world.no_other_flows = true;
        let out = world.one(Hook::Prerouting, (3, 0), skb(first.clone(), false), Flows::default());
        let out = world.one(Hook::Postrouting, (0, 2), out.skb, out.flows);
        prop_assert_ne!(out.skb.packet.dst, first.dst);
        let answer = skb(out.skb.packet.reply(64), false);
        let back = world.one(Hook::Prerouting, (2, 0), answer, out.flows);
        let back = world.one(Hook::Postrouting, (0, 3), back.skb, back.flows);
        prop_assert_eq!(back.skb.packet.tuple(), first.tuple().inverted());
    }
}

/// A condition as nft and iptables-nft load it, all over a few values so that rules meet packets.
fn expressions() -> impl Strategy<Value = Vec<Expr>> {
    let load = |base, offset, len, dreg| Expr::Payload {
        base,
        offset,
        len,
        dreg,
    };
    let cmp = |op, sreg, data: &[u8]| Expr::Cmp {
        op,
        sreg,
        data: data.to_vec(),
    };
    let op = || {
        prop::sample::select(vec![
            CmpOp::Eq,
            CmpOp::Eq,
            CmpOp::Eq,
            CmpOp::Neq,
            CmpOp::Lte,
            CmpOp::Gte,
        ])
    };
    let reg = || prop::sample::select(vec![4_u8, 5, 8]);
    let payload = move |base, offset, len, values: Vec<Vec<u8>>| {
        (reg(), reg(), op(), prop::sample::select(values)).prop_map(
            move |(dreg, sreg, op, data)| {
                // Mostly the register that was loaded; else one that holds what is not known.
                let sreg = if sreg == 8 { sreg } else { dreg };
                vec![load(base, offset, len, dreg), cmp(op, sreg, &data)]
            },
        )
    };
    let (network, transport) = (PayloadBase::Network, PayloadBase::Transport);
    let to = vec![vec![10, 96, 0, 10], vec![10, 96, 0, 11], vec![10, 96]];
    let from = vec![vec![10, 244, 1, 7], vec![10, 244, 1, 8]];
    let ports = vec![vec![0, 80], vec![0, 81], vec![0x75, 0x30]];
    let masked = (op(), any::<bool>()).prop_map(move |(op, other)| {
        let mask = Expr::Bitwise {
            sreg: 4,
            dreg: 4,
            len: 4,
            op: BitwiseOp::MaskXor {
                mask: vec![255, 255, 255, 0],
                xor: vec![0; 4],
            },
        };
        let data = [10, 96, u8::from(other), 0];
        vec![load(network, 16, 4, 4), mask, cmp(op, 4, &data)]
    });
    let meta =
        |key, data: &'static [u8]| vec![Expr::Meta { key, dreg: 4 }, cmp(CmpOp::Eq, 4, data)];
    let others = vec![
        meta(MetaKey::L4proto, &[6]),
        meta(MetaKey::L4proto, &[17]),
        meta(MetaKey::Iifname, b"cni0\0"),
        meta(MetaKey::Iifname, b"cni1\0"),
        meta(MetaKey::Iifname, b"cni"),
        meta(MetaKey::Oifname, b"eth0\0"),
        meta(MetaKey::Mark, &[1, 0, 0, 0]),
        vec![Expr::Counter(Counters::default())],
        vec![Expr::Limit {
            rate: 1,
            unit: 1,
            burst: 5,
            bytes: false,
            inverted: false,
        }],
        vec![],
    ];
    let range = Just(vec![
        load(transport, 0, 2, 5),
        Expr::Range {
            negate: false,
            sreg: 5,
            from: vec![0x80, 0],
            to: vec![0x90, 0],
        },
    ]);
    let dispatch = Just(vec![
        load(network, 16, 4, 4),
        Expr::Lookup {
            set: "many".to_owned(),
            sreg: 4,
            dreg: None,
            inverted: false,
        },
    ]);
    prop_oneof![
        4 => payload(network, 16, 4, to.clone()),
        1 => payload(network, 16, 2, to),
        2 => payload(network, 12, 4, from),
        4 => payload(transport, 2, 2, ports.clone()),
        1 => payload(transport, 0, 2, ports),
        1 => payload(network, 4, 2, vec![vec![0, 60]]),
        1 => masked,
        4 => prop::sample::select(others),
        1 => range,
        1 => dispatch,
    ]
}

fn verdict() -> impl Strategy<Value = Expr> {
    prop_oneof![
        3 => Just(Expr::Verdict(Verdict::Jump("long".to_owned()))),
        1 => Just(Expr::Verdict(Verdict::Return)),
        1 => Just(Expr::Verdict(Verdict::Accept)),
        1 => Just(Expr::Verdict(Verdict::Drop)),
        6 => any::<u8>().prop_map(|mark| Expr::Target(crate::model::xtables::XtTarget::Mark {
            mark: u32::from(mark % 4),
            mask: 0xff,
        })),
    ]
}

/// Two long chains whose rules mix expressions and legacy conditions.
fn long_chains() -> impl Strategy<Value = Vec<Vec<Vec<Expr>>>> {
    let legacy = prop::sample::select(vec![
        "-d 10.96.0.10 -p tcp -m tcp --dport 80 -j X",
        "-d 10.96.0.11 -p tcp -m tcp --dport 80 -j X",
        "-d 10.96.0.0/16 -j X",
        "! -d 10.96.0.10 -j X",
        "-s 10.244.1.7 -j X",
        "-i cni0 -j X",
        "-i cni1 -j X",
        "-i eth+ -d 10.96.0.10 -j X",
        "-o eth0 -j X",
        "-p tcp -m tcp --sport 30000 -j X",
        "-p udp -m udp --dport 81 -j X",
        "-p tcp -m tcp --sport 1024:40000 --dport 80 -j X",
    ])
    .prop_map(|line| {
        let mut exprs = parse_rule(&split(line));
        exprs.pop();
        exprs
    });
    let conditions = prop_oneof![
        2 => prop::collection::vec(expressions(), 0..4).prop_map(|parts| parts.concat()),
        1 => legacy,
    ];
    let rule = (conditions, verdict()).prop_map(|(mut exprs, last)| {
        exprs.push(last);
        exprs
    });
    prop::collection::vec(prop::collection::vec(rule, 30..60), 2)
}

fn packets() -> impl Strategy<Value = Packet> {
    let port = || prop::option::of(prop::sample::select(vec![80_u16, 81, 30000]));
    let kinds = prop_oneof![
        4 => (port(), port()).prop_map(|(sport, dport)| L4::Tcp { sport, dport, flags: 2 }),
        2 => (port(), port()).prop_map(|(sport, dport)| L4::Udp { sport, dport }),
        1 => port().prop_map(|id| L4::Icmp { kind: 8, code: 0, id }),
        1 => Just(L4::Other(47)),
    ];
    (10_u8..13, 6_u8..9, kinds).prop_map(|(to, from, l4)| {
        let (src, dst) = (format!("10.244.1.{from}"), format!("10.96.0.{to}"));
        Packet {
            l4,
            ..tcp(&src, None, &dst, 80)
        }
    })
}

/// One address of a few in a set of many, some in ranges.
fn many(interval: bool, catchall: bool) -> Set {
    let elem = |last: u8, interval_end| SetElem {
        key: vec![10, 96, 0, last],
        key_end: None,
        interval_end,
        catchall: false,
        data: None,
        comment: None,
        expires_ms: None,
        timeout_ms: None,
        exprs: Vec::new(),
    };
    let mut elements: Vec<SetElem> = (0..60)
        .map(|at| elem(at * 4 % 241, interval && at % 2 == 1))
        .collect();
    if catchall {
        let rest = SetElem {
            key: Vec::new(),
            catchall: true,
            ..elem(0, false)
        };
        elements.insert(7, rest);
    }
    Set {
        name: "many".to_owned(),
        flags: SetFlags {
            interval,
            ..SetFlags::default()
        },
        key_len: 4,
        field_lens: Vec::new(),
        data_len: 0,
        elements: Elements::Known(elements),
        decl: crate::model::netfilter::SetDecl::default(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Rules that are passed over because of what they ask for change nothing: outcomes, steps, what would
    /// be wanted, and where too many rules end it are those of walking all.
    #[test]
    fn passing_over_rules_changes_nothing(
        chains in long_chains(),
        packet in packets(),
        iif in prop::sample::select(vec![2_u32, 3, 9]),
        mark in prop::option::of(0_u32..2),
        most in prop::sample::select(vec![50_usize, 70, 2000]),
        interval in any::<bool>(),
        catchall in any::<bool>(),
    ) {
        let [first, second] = &chains[..] else { panic!("two chains") };
        let base = base(Hook::Prerouting, -150, ChainKind::Filter);
        let chains = vec![
            chain("prerouting", Some(base), first.clone()),
            chain("long", None, second.iter().filter(|rule| !matches!(rule.last(), Some(Expr::Verdict(Verdict::Jump(_))))).cloned().collect()),
        ];
        let ns = with_nft(vec![table(Family::Ip, "t", chains, vec![many(interval, catchall)])]);
        let mut world = World::new(ns);
        world.limits.rules = most;
        let mut sent = skb(packet, false);
        sent.mark = mark;
        let mut say = |one_by_one| {
            world.one_by_one = one_by_one;
            let outcomes = world.run(Hook::Prerouting, (iif, 0), sent.clone(), Flows::default());
            format!("{outcomes:#?} {:#?}", std::mem::take(&mut world.wants))
        };
        prop_assert_eq!(say(false), say(true));
    }
}
