//! Rules of every form against a Service with two endpoints.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::explain::naming::ChainNames;
use crate::model::conntrack::NatRange;
use crate::model::names::{Endpoint, Names, NodeName, Proxying};
use crate::model::netfilter::{
    Backend, Chain, CmpOp, Elements, Expr, Family, MetaKey, PayloadBase, Rule, Ruleset, Set,
    SetData, SetDecl, SetElem, SetFlags, Sieved, Table, Verdict,
};
use crate::model::netns::NsIdentity;
use crate::model::snapshot::NodeSnapshot;
use crate::model::topology::Topology;
use crate::model::xtables::{HeaderMatch, Statistic, XtMatch, XtTarget};
use crate::model::{NetNsId, Section};

const VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const ENDS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 244, 1, 2), Ipv4Addr::new(10, 244, 2, 3)];

fn names() -> Names {
    let endpoints = ENDS.map(|ip| Endpoint {
        ip: ip.into(),
        port: Some(8080),
        port_name: "http".to_owned(),
        protocol: 6,
        node: Some(format!("n{}", ip.octets()[2])),
        pod: None,
        ready: true,
        serving: true,
        terminating: false,
        hint_zones: Vec::new(),
        hint_nodes: Vec::new(),
        disputed: false,
    });
    Names {
        services: vec![ServiceName {
            namespace: "shop".to_owned(),
            name: "api".to_owned(),
            kind: "ClusterIP".to_owned(),
            cluster_ips: vec![VIP.into()],
            ports: vec![ServicePort {
                name: "http".to_owned(),
                port: 80,
                protocol: 6,
                node_port: None,
            }],
            endpoints: endpoints.into(),
            proxying: Some(Proxying::default()),
            ..ServiceName::default()
        }],
        nodes: vec![NodeName {
            name: "n1".to_owned(),
            ..NodeName::default()
        }],
        ..Names::default()
    }
}

fn chain(name: &str, rules: Vec<Vec<Expr>>) -> (String, Chain) {
    let rules = rules.into_iter().zip(1..).map(|(exprs, handle)| Rule {
        handle,
        exprs,
        comment: None,
    });
    let chain = Chain {
        name: name.to_owned(),
        handle: 0,
        base: None,
        rules: Section::Known(rules.collect()),
        sieved: None,
        comment: None,
        bound: false,
    };
    (name.to_owned(), chain)
}

fn jump(chain: &str) -> Expr {
    Expr::Target(XtTarget::Standard(Verdict::Jump(chain.to_owned())))
}

fn to(dst: Ipv4Addr, port: u16) -> Vec<Expr> {
    let header = HeaderMatch {
        src: None,
        dst: Some((dst.into(), Ipv4Addr::BROADCAST.into(), false)),
        iif: None,
        oif: None,
        proto: Some((6, false)),
        fragment: None,
    };
    let tcp = XtMatch::Tcp {
        sports: (0, u16::MAX),
        dports: (port, port),
        flag_mask: 0,
        flag_cmp: 0,
        option: 0,
        invert: 0,
    };
    vec![Expr::Header(header), Expr::Match(tcp)]
}

fn dnat(ip: Ipv4Addr, port: u16) -> Expr {
    let ip = IpAddr::from(ip);
    Expr::Target(XtTarget::Dnat(NatRange {
        flags: 3,
        addrs: Some((ip, ip)),
        ports: Some((port, port)),
        base: 0,
    }))
}

fn half() -> Expr {
    Expr::Match(XtMatch::Statistic(Statistic::Random {
        probability: 1 << 30,
        invert: false,
    }))
}

/// Rules of the legacy backend: KUBE-SVC with two choices, and one chain for each endpoint.
fn iptables() -> Table {
    let services = [to(VIP, 80), vec![jump("KUBE-SVC-A")]].concat();
    Table {
        backend: Backend::Legacy,
        family: Family::Ip,
        name: "nat".to_owned(),
        dormant: false,
        chains: BTreeMap::from([
            chain("KUBE-SERVICES", vec![services]),
            chain("KUBE-NODEPORTS", Vec::new()),
            chain(
                "KUBE-SVC-A",
                vec![vec![half(), jump("KUBE-SEP-1")], vec![jump("KUBE-SEP-2")]],
            ),
            chain("KUBE-SEP-1", vec![vec![dnat(ENDS[0], 8080)]]),
            chain("KUBE-SEP-2", vec![vec![dnat(ENDS[1], 8080)]]),
        ]),
        chains_complete: true,
        sets: BTreeMap::new(),
        sets_complete: true,
        flowtables: BTreeMap::new(),
        objects: Vec::new(),
        comment: None,
    }
}

fn set(name: &str, elements: Vec<(Vec<u8>, SetData)>) -> (String, Set) {
    let elements = elements.into_iter().map(|(key, data)| SetElem {
        key,
        key_end: None,
        interval_end: false,
        catchall: false,
        data: Some(data),
        comment: None,
        expires_ms: None,
        timeout_ms: None,
        exprs: Vec::new(),
    });
    let set = Set {
        name: name.to_owned(),
        flags: SetFlags::default(),
        key_len: 0,
        field_lens: Vec::new(),
        data_len: 0,
        elements: Elements::Known(elements.collect()),
        decl: SetDecl::default(),
    };
    (name.to_owned(), set)
}

/// Rules of mode nftables as Kubernetes 1.35 and later write them.
fn nftables() -> Table {
    let key = [&VIP.octets()[..], &[6, 0, 0, 0, 0, 80, 0, 0]].concat();
    let name = "service-AAAAAAAA-shop/api/tcp/http";
    let choices = ENDS.iter().zip(0u8..).map(|(ip, number)| {
        let data = [&ip.octets()[..], &8080u16.to_be_bytes(), &[0, 0]].concat();
        (vec![number, 0, 0, 0], SetData::Value(data))
    });
    let rule = vec![
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
    let verdict = SetData::Verdict(Verdict::Goto(name.to_owned()));
    Table {
        backend: Backend::Nft,
        name: "kube-proxy".to_owned(),
        chains: BTreeMap::from([chain("services", Vec::new()), chain(name, vec![rule])]),
        sets: BTreeMap::from([
            set("service-ips", vec![(key, verdict)]),
            set("service-nodeports", Vec::new()),
            set("__map0", choices.collect()),
        ]),
        ..iptables()
    }
}

/// Codes with evidence, and what is unknown, of node n1 with these tables.
fn drift(tables: &[Table], names: &Names) -> (Vec<(&'static str, String)>, Vec<String>) {
    let netns = NetNsId { dev: 4, ino: 1 };
    let mut ns = NetNs::new(NsIdentity {
        id: netns,
        host: true,
        pod_uid: None,
        paths: Vec::new(),
        processes: Vec::new(),
    });
    let of = |backend: Backend| {
        let own = tables.iter().filter(|table| table.backend == backend);
        Section::Known(Ruleset {
            generation: None,
            tables: own.cloned().collect(),
        })
    };
    ns.nft = of(Backend::Nft);
    ns.legacy = of(Backend::Legacy);
    let mut snapshot = NodeSnapshot::new("n1");
    snapshot.netns.insert(netns, ns.clone());
    let topology = Topology {
        nodes: BTreeMap::from([("n1".to_owned(), snapshot)]),
        ..Topology::default()
    };
    let naming = Naming {
        topology: &topology,
        names,
        chains: &ChainNames::new(),
    };
    let key = NsKey {
        node: "n1".to_owned(),
        netns,
    };
    let drift = of_node(&naming, &key, &ns);
    let findings = drift.findings.into_iter();
    let words = findings.map(|found| {
        let hook = |line: &String| line.contains("no base chain");
        assert!(!found.evidence.is_empty() && !found.mend.is_empty());
        // Tables of these tests have no base chains.
        let code = if found.evidence.iter().all(hook) {
            ""
        } else {
            found.code.code
        };
        (
            code,
            format!("{}\n{}", found.title, found.evidence.join("\n")),
        )
    });
    let words = words.filter(|(code, _)| !code.is_empty());
    (words.collect(), drift.unknown)
}

fn rules_of<'a>(table: &'a mut Table, chain: &str) -> &'a mut Vec<Rule> {
    let chain = table.chains.get_mut(chain).expect("a chain");
    chain.rules.known_mut().expect("its rules")
}

#[test]
fn rules_as_they_should_be_differ_in_nothing() {
    for table in [iptables(), nftables()] {
        let found = drift(&[table], &names());
        assert_eq!(found, (Vec::new(), Vec::new()));
    }
}

#[test]
fn what_differs_is_named_with_chain_and_address() {
    let mut missing = iptables();
    rules_of(&mut missing, "KUBE-SVC-A").remove(0);
    let mut wrong_port = iptables();
    rules_of(&mut wrong_port, "KUBE-SEP-1")[0].exprs = vec![dnat(ENDS[0], 99)];
    let mut gone = iptables();
    let exprs = [
        to(Ipv4Addr::new(10, 96, 0, 9), 80),
        vec![jump("KUBE-SVC-A")],
    ]
    .concat();
    let mut rule = rules_of(&mut gone, "KUBE-SERVICES")[0].clone();
    rule.exprs = exprs;
    rules_of(&mut gone, "KUBE-SERVICES").push(rule);
    let mut unwritten = iptables();
    rules_of(&mut unwritten, "KUBE-SERVICES").clear();
    let nft_of = |ends: &[(u8, u8)]| {
        let mut table = nftables();
        let data = ends.iter().map(|(node, last)| {
            let bytes = vec![10, 244, *node, *last, 0x1f, 0x90, 0, 0];
            (vec![*last], SetData::Value(bytes))
        });
        table.sets.extend([set("__map0", data.collect())]);
        table
    };
    for (table, wanted) in [
        (
            missing,
            vec![("NP0140", "KUBE-SVC-A does not lead to 10.244.1.2:8080")],
        ),
        (
            wrong_port,
            vec![
                ("NP0140", "10.244.1.2:8080"),
                ("NP0141", "10.244.1.2:99, whose port is 8080"),
            ],
        ),
        (gone, vec![("NP0142", "no Service has 10.96.0.9:80/tcp")]),
        (
            unwritten,
            vec![("NP0137", "no rule takes 10.96.0.1:80/tcp in")],
        ),
        (nft_of(&[(1, 2)]), vec![("NP0140", "10.244.2.3:8080")]),
        (
            nft_of(&[(1, 2), (2, 3), (9, 9)]),
            vec![("NP0141", "leads to 10.244.9.9:8080, which no slice")],
        ),
    ] {
        let (found, unknown) = drift(&[table], &names());
        assert_eq!(unknown, Vec::<String>::new());
        let codes: Vec<&str> = found.iter().map(|(code, _)| *code).collect();
        let codes_wanted: Vec<&str> = wanted.iter().map(|(code, _)| *code).collect();
        assert_eq!(codes, codes_wanted, "{found:?}");
        for ((_, text), (_, part)) in found.iter().zip(&wanted) {
            assert!(text.contains(part), "{part:?} in {text}");
        }
    }
}

#[test]
fn a_policy_and_an_affinity_that_rules_do_not_follow_are_named() {
    let mut names = names();
    names.services[0].proxying = Some(Proxying {
        internal_local: true,
        affinity_seconds: Some(600),
        ..Proxying::default()
    });
    let (found, unknown) = drift(&[iptables()], &names);
    let codes: Vec<&str> = found.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, ["NP0143", "NP0144"]);
    assert!(found[1].1.contains("10.244.2.3:8080"), "{found:?}");
    assert_eq!(unknown, Vec::<String>::new());
}

#[test]
fn affinity_is_that_of_the_rules_before_the_choice() {
    let recent = |seconds, check_set| {
        Expr::Match(XtMatch::Recent {
            name: "KUBE-SEP".to_owned(),
            seconds,
            hit_count: 0,
            check_set,
            invert: false,
            side: 0,
            mask: None,
        })
    };
    let sticky = |seconds| {
        let mut table = iptables();
        let before =
            ["KUBE-SEP-1", "KUBE-SEP-2"].map(|chain| vec![recent(seconds, 1), jump(chain)]);
        let plain = rules_of(&mut table, "KUBE-SVC-A").clone();
        let plain = plain.into_iter().map(|rule| rule.exprs);
        let rules = before.into_iter().chain(plain).collect();
        table.chains.extend([chain("KUBE-SVC-A", rules)]);
        // What only notes the client is no condition.
        rules_of(&mut table, "KUBE-SEP-1")[0]
            .exprs
            .insert(0, recent(0, 2));
        table
    };
    let asked = |seconds| {
        let mut names = names();
        names.services[0].proxying = Some(Proxying {
            affinity_seconds: seconds,
            ..Proxying::default()
        });
        names
    };
    let codes = |seconds, asks| {
        let (found, _) = drift(&[sticky(seconds)], &asked(asks));
        found.into_iter().map(|(code, _)| code).collect::<Vec<_>>()
    };
    assert_eq!(codes(600, Some(600)), Vec::<&str>::new());
    assert_eq!(codes(600, Some(30)), ["NP0143"]);
    assert_eq!(codes(600, None), ["NP0143"]);
}

#[test]
fn two_sets_act_at_once() {
    let (found, _) = drift(&[iptables(), nftables()], &names());
    let codes: Vec<&str> = found.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, ["NP0145"]);
}

#[test]
fn what_is_not_known_is_never_agreement() {
    let unknown = |table: Table| {
        let (found, unknown) = drift(&[table], &names());
        assert_eq!(found, Vec::new());
        assert!(!unknown.is_empty());
        unknown.join("\n")
    };
    let mut opaque = iptables();
    let other = Expr::Match(XtMatch::Other {
        name: "cluster".to_owned(),
        revision: 0,
        data: Vec::new(),
    });
    rules_of(&mut opaque, "KUBE-SVC-A")[0]
        .exprs
        .insert(0, other);
    let said = unknown(opaque);
    assert!(
        said.contains("shop/api:http") && said.contains("match cluster"),
        "{said}"
    );
    let mut unread = iptables();
    unread.chains.get_mut("KUBE-SEP-1").expect("a chain").rules =
        Section::Missing("EPERM".to_owned());
    assert!(unknown(unread).contains("EPERM"));
    let mut sieved = iptables();
    sieved
        .chains
        .get_mut("KUBE-SERVICES")
        .expect("a chain")
        .sieved = Some(Sieved {
        to: Vec::new(),
        left_out: 3,
    });
    unknown(sieved);
    let mut no_map = nftables();
    no_map.sets.get_mut("service-ips").expect("a map").elements = Elements::NotAsked;
    unknown(no_map);
    let (found, unknown) = drift(&[], &names());
    assert_eq!(found, Vec::new());
    assert!(
        unknown[0].contains("no IPv4 rules of a kube-proxy"),
        "{unknown:?}"
    );
}

/// A rule behind the one that takes all packets decides nothing.
#[test]
fn rules_that_no_packet_reaches_do_not_count() {
    let mut table = iptables();
    let mut rule = rules_of(&mut table, "KUBE-SVC-A")[1].clone();
    rule.exprs = vec![dnat(Ipv4Addr::new(10, 9, 9, 9), 1)];
    rules_of(&mut table, "KUBE-SVC-A").push(rule);
    assert_eq!(drift(&[table], &names()), (Vec::new(), Vec::new()));
}

#[test]
fn native_destinations_are_read_from_their_bytes() {
    let rule = Rule {
        handle: 1,
        exprs: vec![
            Expr::Payload {
                base: PayloadBase::Network,
                offset: 16,
                len: 3,
                dreg: 4,
            },
            Expr::Cmp {
                op: CmpOp::Eq,
                sreg: 4,
                data: vec![10, 96, 0],
            },
            Expr::Payload {
                base: PayloadBase::Transport,
                offset: 2,
                len: 2,
                dreg: 4,
            },
            Expr::Cmp {
                op: CmpOp::Eq,
                sreg: 4,
                data: vec![0, 80],
            },
            Expr::Verdict(Verdict::Jump("x".to_owned())),
        ],
        comment: None,
    };
    let table = iptables();
    let found = rule::facts(&table, &rule, false);
    let prefix = "10.96.0.0/24".parse().expect("a prefix");
    assert_eq!(found.dst, Some((prefix, false)));
    assert_eq!(found.dport, Some(80));
    assert_eq!(found.act, Some(rule::Act::Jump("x")));
    assert!(!found.other && found.opaque.is_none());
}
