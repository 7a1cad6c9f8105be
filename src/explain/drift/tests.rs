//! Rules of every form against a Service with two endpoints.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::explain::naming::ChainNames;
use crate::model::conntrack::NatRange;
use crate::model::names::{Endpoint, Names, NodeName, Proxying};
use crate::model::netfilter::{
    Backend, BaseChain, Chain, CmpOp, Elements, Expr, Family, MetaKey, PayloadBase, Policy, Rule,
    Ruleset, Set, SetData, SetDecl, SetElem, SetFlags, Sieved, Table, Verdict,
};
use crate::model::netfilter::{ChainKind, Hook};
use crate::model::netns::NsIdentity;
use crate::model::packet::{L4, Packet};
use crate::model::snapshot::NodeSnapshot;
use crate::model::topology::Topology;
use crate::model::xtables::{HeaderMatch, Statistic, XtMatch, XtTarget};
use crate::model::{NetNsId, Section};
use crate::trace::evidence::ChainRef;
use crate::trace::{Evidence, PassageEnd, Step, StepKind};

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
    vec![Expr::Header(Box::new(header)), Expr::Match(tcp)]
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
    asked(tables, names, &mut |_| Vec::new())
}

/// The same where packets that are sent past the node end so.
fn asked(
    tables: &[Table],
    names: &Names,
    ask: &mut Ask<'_>,
) -> (Vec<(&'static str, String)>, Vec<String>) {
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
    let drift = of_node(&naming, &key, &ns, ask);
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

/// A way of a packet: the endpoint that it is led to, and whether its source is hidden.
fn passage(arrival: &Arrival, share: f64, to: Option<usize>, hidden: bool) -> Passage {
    let packet = Packet::new(
        arrival.from.unwrap_or([10, 88, 0, 11].into()),
        arrival.dst,
        L4::Tcp {
            sport: None,
            dport: Some(arrival.dport),
            flags: 2,
        },
    );
    let step = |kind, hook, chain: &str, text: &str| {
        Step::new(kind, "done").with(Evidence::NetfilterRule {
            base: ChainRef {
                backend: Backend::Legacy,
                family: Family::Ip,
                table: "nat".to_owned(),
                chain: "PREROUTING".to_owned(),
                hook,
                priority: -100,
                kind: ChainKind::Nat,
            },
            chain: chain.to_owned(),
            handle: 7,
            text: text.to_owned(),
            comment: None,
            counters: None,
        })
    };
    let hook = match arrival.from {
        Some(_) => Hook::Prerouting,
        None => Hook::Output,
    };
    let mut led = packet.clone();
    let mut steps = Vec::new();
    match to {
        Some(end) => {
            led.dst = ENDS[end].into();
            led.set_dport(Some(8080));
            steps.push(step(StepKind::Nat, hook, "KUBE-SEP-1", "-j DNAT"));
        }
        None => steps.push(step(StepKind::Netfilter, hook, "PREROUTING", "-j ACCEPT")),
    }
    let hairpin = to.is_some_and(|end| arrival.from == Some(ENDS[end].into()));
    if hidden || hairpin {
        steps.push(step(
            StepKind::Nat,
            Hook::Postrouting,
            "OTHER",
            "-j MASQUERADE",
        ));
    }
    Passage {
        share,
        asked: packet,
        packet: led,
        end: PassageEnd::Leaves("eth0".to_owned()),
        steps,
    }
}

/// A rule of somebody's own that keeps packets from kube-proxy's is the cause, whatever its set is called.
#[test]
fn a_rule_is_not_kube_proxys_by_its_words() {
    let told = |table: &'static str, chain: &'static str| {
        let (found, _) = asked(&[iptables()], &names(), &mut |arrival| {
            let mut kept = passage(arrival, 1.0, None, false);
            for evidence in kept.steps.iter_mut().flat_map(|step| &mut step.evidence) {
                if let Evidence::NetfilterRule {
                    base,
                    chain: own,
                    text,
                    ..
                } = evidence
                {
                    table.clone_into(&mut base.table);
                    chain.clone_into(own);
                    "ip daddr @cluster-ips accept".clone_into(text);
                }
            }
            vec![kept]
        });
        assert!(!found.is_empty());
        // The cause stands in the title.
        let titles = found.iter().filter_map(|(_, text)| text.lines().next());
        titles
            .filter(|title| title.contains("@cluster-ips"))
            .count()
    };
    assert_eq!(told("mine", "PREROUTING"), 1);
    assert_eq!(told("kube-proxy", "cluster-ips-check"), 0);
}

/// Rules are as they should be, and packets tell something else.
#[test]
fn what_packets_tell_counts() {
    let told = |names: &Names, ways: &[(f64, Option<usize>, bool)]| {
        let (found, unknown) = asked(&[iptables()], names, &mut |arrival| {
            let ways = ways.iter();
            ways.map(|(share, to, hidden)| passage(arrival, *share, *to, *hidden))
                .collect()
        });
        assert_eq!(unknown, Vec::<String>::new());
        found
    };
    let one = |found: Vec<(&'static str, String)>, code: &str, says: &[&str]| {
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, code);
        for part in says {
            assert!(found[0].1.contains(part), "{part:?} in {found:?}");
        }
    };
    let (first, second) = ((0.5, Some(0), false), (0.5, Some(1), false));
    assert_eq!(told(&names(), &[first, second]), []);
    let kept = told(&names(), &[(1.0, None, false)]);
    one(
        kept,
        "NP0146",
        &[
            "shop/api:http",
            "chain PREROUTING rule 7 of table ip nat (-j ACCEPT)",
        ],
    );
    let uneven = told(&names(), &[(0.3, Some(0), false), (0.7, Some(1), false)]);
    one(
        uneven,
        "NP0147",
        &["10.244.1.2:8080 gets 30.0%", "10.244.2.3:8080 gets 70.0%"],
    );
    let partly = told(
        &names(),
        &[
            (0.4, Some(0), false),
            (0.4, Some(1), false),
            (0.2, None, false),
        ],
    );
    one(
        partly,
        "NP0147",
        &["20.0% of their packets are translated to no endpoint"],
    );
    let fewer = told(&names(), &[(1.0, Some(0), false)]);
    one(
        fewer,
        "NP0140",
        &["10.244.2.3:8080", "though a chain for it is there"],
    );
    let mut unserved = names();
    unserved.services[0].endpoints.clear();
    let mut table = iptables();
    rules_of(&mut table, "KUBE-SERVICES").clear();
    let (found, _) = asked(&[table], &unserved, &mut |arrival| {
        vec![passage(arrival, 1.0, None, false)]
    });
    one(found, "NP0149", &["they leave by eth0"]);
}

/// A rule of others that is about one pod is asked about as that pod.
#[test]
fn pods_that_rules_single_out_are_asked_as() {
    let one = Ipv4Addr::new(10, 244, 1, 77);
    let mut table = iptables();
    let mut names = names();
    names.nodes = vec![NodeName {
        name: "n1".to_owned(),
        pod_cidrs: vec!["10.244.1.0/24".parse().expect("a prefix")],
        ..NodeName::default()
    }];
    let told = |table: &Table, names: &Names| {
        let mut senders = BTreeSet::new();
        let (found, unknown) = asked(std::slice::from_ref(table), names, &mut |arrival| {
            senders.insert(arrival.from);
            if arrival.from == Some(one.into()) {
                return vec![passage(arrival, 1.0, None, false)];
            }
            [0, 1]
                .map(|end| passage(arrival, 0.5, Some(end), false))
                .into()
        });
        assert_eq!(unknown, Vec::<String>::new());
        (senders.contains(&Some(one.into())), found)
    };
    assert_eq!(told(&table, &names), (false, Vec::new()));
    let saddr = [
        Expr::Payload {
            base: PayloadBase::Network,
            offset: 12,
            len: 4,
            dreg: 8,
        },
        Expr::Cmp {
            op: CmpOp::Eq,
            sreg: 8,
            data: one.octets().to_vec(),
        },
        Expr::Verdict(Verdict::Accept),
    ];
    let base = BaseChain {
        hook: Hook::Prerouting,
        priority: -100,
        kind: ChainKind::Nat,
        policy: Policy::Accept,
        devices: Vec::new(),
        counters: None,
    };
    table
        .chains
        .extend([chain("PREROUTING", vec![saddr.into()])]);
    if let Some(chain) = table.chains.get_mut("PREROUTING") {
        chain.base = Some(base);
    }
    let (was_asked, found) = told(&table, &names);
    assert!(was_asked);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "NP0146");
    assert!(
        found[0].1.contains("the pod at 10.244.1.77 on n1"),
        "{found:?}"
    );
}

/// Sources of clients outside are hidden with the policy Cluster, and seen with Local.
#[test]
fn sources_are_hidden_as_the_policy_asks() {
    let outside = |local: bool, hidden: bool| {
        let mut names = names();
        names.services[0].kind = "LoadBalancer".to_owned();
        names.services[0].endpoints[1].node = Some("n1".to_owned());
        names.services[0].proxying = Some(Proxying {
            external_local: local,
            load_balancer_ips: vec![[192, 0, 2, 1].into()],
            ..Proxying::default()
        });
        let mut table = iptables();
        let balanced = to(Ipv4Addr::new(192, 0, 2, 1), 80);
        let mut rule = rules_of(&mut table, "KUBE-SERVICES")[0].clone();
        rule.exprs = [balanced, vec![jump("KUBE-SVC-A")]].concat();
        rules_of(&mut table, "KUBE-SERVICES").push(rule);
        let (found, _) = asked(&[table], &names, &mut |arrival| {
            let external = arrival.dst == IpAddr::from([192, 0, 2, 1]);
            let hidden = external && hidden;
            [0, 1]
                .map(|end| passage(arrival, 0.5, Some(end), hidden))
                .into()
        });
        found.into_iter().map(|(code, _)| code).collect::<Vec<_>>()
    };
    assert_eq!(outside(false, true), Vec::<&str>::new());
    assert_eq!(outside(false, false), ["NP0148"]);
    assert_eq!(outside(true, false), Vec::<&str>::new());
    assert_eq!(outside(true, true), ["NP0148"]);
}

/// What nobody keeps up to date is told with its cause, not beside it.
#[test]
fn differences_of_a_set_that_was_left_follow_from_its_being_there() {
    let mut left = nftables();
    let data = [&[10, 244, 9, 9][..], &8080u16.to_be_bytes(), &[0, 0]].concat();
    let only = vec![(vec![0, 0, 0, 0], SetData::Value(data))];
    left.sets.extend([set("__map0", only)]);
    let (found, _) = drift(&[iptables(), left], &names());
    let codes: Vec<&str> = found.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, ["NP0145"]);
    assert!(found[0].1.contains("10.244.9.9:8080"), "{found:?}");
}

/// One cause has many effects: they are told together.
#[test]
fn many_differences_of_a_kind_are_one_finding() {
    let mut names = names();
    for number in 1..20u8 {
        let mut more = names.services[0].clone();
        more.name = format!("api-{number}");
        more.cluster_ips = vec![[10, 96, 1, number].into()];
        names.services.push(more);
    }
    let (found, _) = drift(&[iptables()], &names);
    let codes: Vec<&str> = found.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, ["NP0137"]);
    assert!(found[0].1.contains("19 of 20 Service ports"), "{found:?}");
}

#[test]
fn tables_that_do_not_act_are_named() {
    let mut dormant = iptables();
    dormant.dormant = true;
    let (found, _) = asked(&[dormant.clone()], &names(), &mut |arrival| {
        let mut way = passage(arrival, 1.0, None, false);
        way.steps.clear();
        vec![way]
    });
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].1.contains("table ip nat is dormant"), "{found:?}");
    // Beside one that acts it does not count.
    let found = drift(&[dormant, nftables()], &names());
    assert_eq!(found, (Vec::new(), Vec::new()));
}
