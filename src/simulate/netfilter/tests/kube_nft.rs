//! kube-proxy's nftables rules (since 1.35): `service-ips` map, then `dnat to numgen ... map`.

use super::fixture::*;
use crate::model::netfilter::*;
use crate::model::want::Want;
use crate::simulate::netfilter::HookVerdict;
use crate::simulate::skb::Flows;
use crate::trace::{Evidence, RejectWith};

fn set(name: &str, fields: &[u32], map: bool, elements: Vec<SetElem>) -> Set {
    Set {
        name: name.to_owned(),
        flags: SetFlags {
            map,
            ..SetFlags::default()
        },
        key_len: fields.iter().map(|len| len.next_multiple_of(4)).sum(),
        field_lens: fields.to_vec(),
        data_len: 0,
        decl: crate::model::netfilter::SetDecl::default(),
        elements: Elements::Known(elements),
    }
}

fn elem(key: &[u8], data: Option<SetData>) -> SetElem {
    SetElem {
        key: key.to_vec(),
        key_end: None,
        interval_end: false,
        catchall: false,
        data,
        comment: None,
        expires_ms: None,
        timeout_ms: None,
        exprs: Vec::new(),
    }
}

fn goto(chain: &str) -> SetData {
    SetData::Verdict(Verdict::Goto(chain.to_owned()))
}

/// `ip daddr . meta l4proto . th dport vmap @name`
fn dispatch(name: &str) -> Vec<Expr> {
    vec![
        Expr::Payload {
            base: PayloadBase::Network,
            offset: 16,
            len: 4,
            dreg: 4,
        },
        Expr::Meta {
            key: MetaKey::L4proto,
            dreg: 5,
        },
        Expr::Payload {
            base: PayloadBase::Transport,
            offset: 2,
            len: 2,
            dreg: 6,
        },
        Expr::Lookup {
            set: name.to_owned(),
            sreg: 4,
            dreg: Some(0),
            inverted: false,
        },
    ]
}

fn jump(chain: &str) -> Vec<Expr> {
    vec![Expr::Verdict(Verdict::Jump(chain.to_owned()))]
}

fn ruleset() -> Table {
    let service = |last: u8| [10, 96, 0, last, 6, 0, 0, 0, 0, 80, 0, 0];
    let backend = |n: u32, c: u8| {
        let value = [10, 244, c, 2, 0x1f, 0x90, 0, 0];
        elem(&n.to_le_bytes(), Some(SetData::Value(value.to_vec())))
    };
    let state_new = vec![
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
                mask: vec![8, 0, 0, 0],
                xor: vec![0; 4],
            },
        },
        Expr::Cmp {
            op: CmpOp::Neq,
            sreg: 4,
            data: vec![0; 4],
        },
        Expr::Verdict(Verdict::Jump("service-endpoints-check".to_owned())),
    ];
    let endpoints = vec![
        Expr::Meta {
            key: MetaKey::L4proto,
            dreg: 4,
        },
        Expr::Cmp {
            op: CmpOp::Eq,
            sreg: 4,
            data: vec![6],
        },
        Expr::Numgen {
            dreg: 4,
            modulus: 2,
            offset: 0,
            random: true,
        },
        Expr::Lookup {
            set: "__map0".to_owned(),
            sreg: 4,
            dreg: Some(4),
            inverted: false,
        },
        Expr::Nat {
            source: false,
            v6: false,
            addr_min: Some(4),
            addr_max: None,
            proto_min: Some(5),
            proto_max: None,
            flags: 3,
        },
    ];
    let hairpin = vec![
        Expr::Ct {
            key: CtKey::Status,
            dreg: 4,
            dir: None,
        },
        Expr::Bitwise {
            sreg: 4,
            dreg: 4,
            len: 4,
            op: BitwiseOp::MaskXor {
                mask: vec![0x20, 0, 0, 0],
                xor: vec![0; 4],
            },
        },
        Expr::Cmp {
            op: CmpOp::Neq,
            sreg: 4,
            data: vec![0; 4],
        },
        Expr::Payload {
            base: PayloadBase::Network,
            offset: 12,
            len: 4,
            dreg: 4,
        },
        Expr::Payload {
            base: PayloadBase::Network,
            offset: 16,
            len: 4,
            dreg: 5,
        },
        Expr::Meta {
            key: MetaKey::L4proto,
            dreg: 6,
        },
        Expr::Payload {
            base: PayloadBase::Transport,
            offset: 2,
            len: 2,
            dreg: 7,
        },
        Expr::Lookup {
            set: "hairpin-connections".to_owned(),
            sreg: 4,
            dreg: None,
            inverted: false,
        },
        Expr::Masq {
            proto_min: None,
            proto_max: None,
            flags: 16,
        },
    ];
    table(
        Family::Ip,
        "kube-proxy",
        vec![
            chain(
                "nat-prerouting",
                Some(base(Hook::Prerouting, -100, ChainKind::Nat)),
                vec![jump("services")],
            ),
            chain(
                "nat-postrouting",
                Some(base(Hook::Postrouting, 100, ChainKind::Nat)),
                vec![jump("masquerading")],
            ),
            chain(
                "filter-forward",
                Some(base(Hook::Forward, 0, ChainKind::Filter)),
                vec![state_new],
            ),
            chain("services", None, vec![dispatch("service-ips")]),
            chain(
                "service-endpoints-check",
                None,
                vec![dispatch("no-endpoint-services")],
            ),
            chain(
                "reject-chain",
                None,
                vec![vec![Expr::Reject { kind: 2, code: 1 }]],
            ),
            chain("service-a", None, vec![endpoints]),
            chain("masquerading", None, vec![hairpin]),
        ],
        vec![
            set(
                "service-ips",
                &[4, 1, 2],
                true,
                vec![elem(&service(10), Some(goto("service-a")))],
            ),
            set(
                "no-endpoint-services",
                &[4, 1, 2],
                true,
                vec![elem(&service(50), Some(goto("reject-chain")))],
            ),
            set(
                "hairpin-connections",
                &[4, 4, 1, 2],
                false,
                vec![elem(
                    &[10, 244, 1, 2, 10, 244, 1, 2, 6, 0, 0, 0, 0x1f, 0x90, 0, 0],
                    None,
                )],
            ),
            set("__map0", &[4], true, vec![backend(0, 1), backend(1, 2)]),
        ],
    )
}

#[test]
fn the_map_of_services_leads_to_the_endpoints() {
    let mut world = World::new(with_nft(vec![ruleset()]));
    let packet = skb(tcp("10.244.1.7", None, "10.96.0.10", 80), false);
    let outcomes = world.run(Hook::Prerouting, (3, 0), packet, Flows::default());
    let ends: Vec<(f64, String)> = outcomes.iter().map(|o| (o.share, said(o))).collect();
    assert_eq!(
        ends,
        [
            (0.5, "dnat to 10.244.1.2:8080".to_owned()),
            (0.5, "dnat to 10.244.2.2:8080".to_owned()),
        ]
    );
    let words: Vec<String> = outcomes[0].steps[0]
        .evidence
        .iter()
        .filter_map(|evidence| match evidence {
            Evidence::SetElement { set, text } => Some(format!("@{set} {text}")),
            Evidence::NetfilterRule { text, .. } => Some(text.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(
        words,
        [
            "jump services",
            "ip daddr . meta l4proto . th dport vmap @service-ips",
            "@service-ips 10.96.0.10 . tcp . 80 : goto service-a",
            "meta l4proto tcp dnat to numgen random mod 2 map @__map0",
            "@__map0 0 : 10.244.1.2 . 8080",
        ]
    );
}

#[test]
fn a_pod_that_meets_itself_is_masqueraded() {
    let mut world = World::new(with_nft(vec![ruleset()]));
    let packet = skb(tcp("10.244.1.2", None, "10.96.0.10", 80), false);
    let outcomes = world.run(Hook::Prerouting, (3, 0), packet, Flows::default());
    let own = outcomes.into_iter().next().unwrap();
    let post = world.one(Hook::Postrouting, (0, 3), own.skb, own.flows);
    assert_eq!(said(&post), "masquerade as 10.244.1.1");
}

#[test]
fn no_endpoints_is_a_refusal() {
    let mut world = World::new(with_nft(vec![ruleset()]));
    let packet = skb(tcp("10.244.1.7", None, "10.96.0.50", 80), false);
    let pre = world.one(Hook::Prerouting, (3, 0), packet, Flows::default());
    let forward = world.one(Hook::Forward, (3, 2), pre.skb, pre.flows);
    assert_eq!(
        forward.verdict,
        HookVerdict::Reject(RejectWith::PortUnreachable)
    );
}

#[test]
fn elements_that_were_not_read_are_asked_for_by_key() {
    let mut table = ruleset();
    table.sets.get_mut("service-ips").unwrap().elements = Elements::NotAsked;
    let mut world = World::new(with_nft(vec![table]));
    let packet = skb(tcp("10.244.1.7", None, "10.96.0.10", 80), false);
    let outcome = world.one(Hook::Prerouting, (3, 0), packet, Flows::default());
    assert!(matches!(outcome.verdict, HookVerdict::Unknown(_)));
    let wants: Vec<&Want> = world.wants[NODE].iter().collect();
    let [Want::SetElem { set, key, .. }] = wants.as_slice() else {
        panic!("{wants:?}");
    };
    assert_eq!(set, "service-ips");
    assert_eq!(key, &[10, 96, 0, 10, 6, 0, 0, 0, 0, 80, 0, 0]);
}

#[test]
fn sets_and_chains_that_were_not_read_are_asked_for() {
    let mut table = ruleset();
    table.sets.remove("__map0");
    table.sets_complete = false;
    table.chains.remove("masquerading");
    table.chains_complete = false;
    let mut world = World::new(with_nft(vec![table]));
    let packet = skb(tcp("10.244.1.7", None, "10.96.0.10", 80), false);
    let packet_2 = packet.clone();
    let pre = world.run(Hook::Prerouting, (3, 0), packet, Flows::default());
    assert!(
        pre.iter()
            .all(|o| matches!(o.verdict, HookVerdict::Unknown(_)))
    );
    let post = world.one(Hook::Postrouting, (0, 2), packet_2, Flows::default());
    // Without a connection NAT does nothing.
    assert!(is_accept(&post));
    let has = |wanted: &str| {
        world.wants[NODE].iter().any(|want| match want {
            Want::Set { set, .. } => set == wanted,
            Want::Chain { chain, .. } => chain == wanted,
            _ => false,
        })
    };
    assert!(has("__map0"));
}

/// The kernel hashes equal bytes alike: packets of one sender, and both directions of one flow, go one way.
#[test]
fn a_hash_is_drawn_once() {
    let mark_by = |jhash: Option<(Reg, u32, Option<u32>)>| {
        let (dreg, sreg) = (9, 9);
        let load = Expr::Payload {
            base: PayloadBase::Network,
            offset: 12,
            len: 4,
            dreg: 4,
        };
        let hash = Expr::Hash {
            dreg,
            modulus: 4,
            offset: 0,
            jhash,
        };
        let key = MetaKey::Mark;
        let exprs = vec![load, hash, Expr::MetaSet { key, sreg }];
        let base = base(Hook::Prerouting, -150, ChainKind::Filter);
        let chain = chain("prerouting", Some(base), vec![exprs]);
        World::new(with_nft(vec![table(
            Family::Ip,
            "t",
            vec![chain],
            Vec::new(),
        )]))
    };
    let to = |dport: u16| tcp("10.244.1.7", None, "10.96.0.10", dport);
    let answer = to(80).reply(64);
    let run = |world: &mut World, packet, flows| {
        world.run(Hook::Prerouting, (3, 0), skb(packet, false), flows)
    };
    let mut by_sender = mark_by(Some((4, 4, Some(7))));
    let ways = run(&mut by_sender, to(80), Flows::default());
    assert_eq!(ways.len(), 4);
    for way in ways {
        let later = run(&mut by_sender, to(81), way.flows.clone());
        assert_eq!(later.len(), 1);
        assert_eq!(later[0].skb.mark, way.skb.mark);
        assert_eq!(run(&mut by_sender, answer.clone(), way.flows).len(), 4);
    }
    let mut by_flow = mark_by(None);
    for way in run(&mut by_flow, to(80), Flows::default()) {
        let back = run(&mut by_flow, answer.clone(), way.flows.clone());
        assert_eq!(back.len(), 1);
        assert_eq!(back[0].skb.mark, way.skb.mark);
        assert_eq!(run(&mut by_flow, to(81), way.flows).len(), 4);
    }
}
