use netpath::explain::observe::{self, Agreement, Proof};
use netpath::explain::{ChainNames, End, FlowTraces, Naming, Question, Verdict, explain};
use netpath::model::link::{Link, LinkKind};
use netpath::model::names::{Endpoint, Names, NodeName, PodName, ServiceName};
use netpath::model::netfilter::{Backend, ChainKind, Counters, Family, Hook, Policy};
use netpath::model::netns::{NetNs, NsIdentity};
use netpath::model::packet::{L4, Packet, TCP};
use netpath::model::route::{NextHop, RT_TABLE_MAIN, Route, RouteKind};
use netpath::model::topology::Topology;
use netpath::model::{IfIndex, NetNsId, NsKey, Section};
use netpath::trace::evidence::ChainRef;
use netpath::trace::{
    Disposition, DropReason, Evidence, FieldChange, Hop, RejectWith, Step, StepKind, Tap, Trace,
};

use super::paint::Options;
use super::{data, json, observed, text};
use crate::cli::Format;
use crate::run::fleet::Stats;

fn key(node: &str, ino: u64) -> NsKey {
    NsKey {
        node: node.to_owned(),
        netns: NetNsId { dev: 4, ino },
    }
}

fn link(index: u32, name: &str, kind: LinkKind, peer: Option<u32>) -> Link {
    Link {
        mtu: 1450,
        link: peer.and_then(IfIndex::new),
        link_netnsid: peer.map(|_| 0),
        ..Link::new(IfIndex::new(index).unwrap(), name, kind)
    }
}

fn ns(topology: &mut Topology, key: &NsKey, uid: Option<&str>, links: Vec<Link>) {
    let mut ns = NetNs::new(NsIdentity {
        id: key.netns,
        host: uid.is_none(),
        pod_uid: uid.map(str::to_owned),
        paths: Vec::new(),
        processes: Vec::new(),
    });
    ns.links = Section::Known(links);
    topology.merge(&key.node, netpath::model::want::Fact::NetNs(Box::new(ns)));
}

fn topology() -> Topology {
    let mut all = Topology::default();
    let veth = |index, name, peer| link(index, name, LinkKind::Veth, Some(peer));
    ns(
        &mut all,
        &key("worker-1", 1),
        None,
        vec![
            veth(12, "veth3fa2c1", 2),
            veth(13, "veth91d0e7", 2),
            link(2, "eth0", LinkKind::Device, None),
        ],
    );
    ns(
        &mut all,
        &key("worker-1", 10),
        Some("u-web"),
        vec![veth(2, "eth0", 12)],
    );
    ns(
        &mut all,
        &key("worker-1", 11),
        Some("u-api-x2"),
        vec![veth(2, "eth0", 13)],
    );
    ns(
        &mut all,
        &key("worker-3", 3),
        None,
        vec![link(2, "eth0", LinkKind::Device, None)],
    );
    all
}

fn pod(name: &str, uid: &str, node: &str, ip: &str) -> PodName {
    PodName {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: uid.to_owned(),
        node: Some(node.to_owned()),
        host_network: false,
        ips: vec![ip.parse().unwrap()],
        phase: "Running".to_owned(),
    }
}

fn names() -> Names {
    Names {
        pods: vec![
            pod("web-0", "u-web", "worker-1", "10.244.1.7"),
            pod("api-5d-x2", "u-api-x2", "worker-1", "10.244.1.9"),
            pod("api-5d-7p", "u-api-7p", "worker-3", "10.244.3.8"),
        ],
        services: vec![ServiceName {
            endpoints: ["10.244.1.9", "10.244.2.4", "10.244.3.8"]
                .map(|ip| Endpoint {
                    ip: ip.parse().unwrap(),
                    port: Some(8080),
                    port_name: "http".to_owned(),
                    protocol: TCP,
                    node: None,
                    pod: None,
                    ready: true,
                    serving: true,
                    terminating: false,
                    hint_zones: Vec::new(),
                    hint_nodes: Vec::new(),
                    disputed: false,
                })
                .into(),
            namespace: "shop".to_owned(),
            name: "api".to_owned(),
            cluster_ips: vec!["10.96.14.3".parse().unwrap()],
            ..ServiceName::default()
        }],
        nodes: vec![NodeName {
            name: "worker-3".to_owned(),
            addresses: vec!["192.0.2.13".parse().unwrap()],
            ..NodeName::default()
        }],
    }
}

fn packet(src: &str, dst: &str, dport: u16) -> Packet {
    Packet::new(
        src.parse().unwrap(),
        dst.parse().unwrap(),
        L4::Tcp {
            sport: None,
            dport: Some(dport),
            flags: 2,
        },
    )
}

fn route(dst: &str, via: Option<&str>, dev: u32) -> Step {
    Step::new(StepKind::Route, "unicast").with(Evidence::Route {
        route: Route {
            table: RT_TABLE_MAIN,
            dst: dst.parse().unwrap(),
            src: None,
            tos: 0,
            metric: 0,
            kind: RouteKind::Unicast,
            scope: 0,
            protocol: 3,
            prefsrc: None,
            nexthops: vec![NextHop {
                via: via.map(|via| via.parse().unwrap()),
                link: IfIndex::new(dev),
                weight: 1,
                dead: false,
                linkdown: false,
                onlink: false,
                encap: None,
            }],
            nh_id: None,
            mtu: None,
            pref: 0,
            realm: None,
            unknown: Vec::new(),
        },
        devs: Vec::new(),
    })
}

fn base(table: &str, chain: &str, hook: Hook) -> ChainRef {
    ChainRef {
        backend: Backend::Nft,
        family: Family::Ip,
        table: table.to_owned(),
        chain: chain.to_owned(),
        hook,
        priority: 0,
        kind: ChainKind::Filter,
    }
}

fn rule(chain: &str, handle: u64, text: &str) -> Evidence {
    Evidence::NetfilterRule {
        base: base("nat", "PREROUTING", Hook::Prerouting),
        chain: chain.to_owned(),
        handle,
        text: text.to_owned(),
        comment: None,
        counters: Some(Counters {
            packets: 3,
            bytes: 180,
        }),
    }
}

fn dnat(to: &str) -> Step {
    let mut step = Step::new(StepKind::Netfilter, "destination translated")
        .with(rule("PREROUTING", 5, "-j KUBE-SERVICES"))
        .with(rule(
            "KUBE-SERVICES",
            40,
            "-d 10.96.14.3 -p tcp --dport 80 -j KUBE-SVC-XPGD46QRK7WJZT7O",
        ))
        .with(rule(
            "KUBE-SVC-XPGD46QRK7WJZT7O",
            42,
            "-j KUBE-SEP-AAAAAAAAAAAAAAAA",
        ))
        .with(rule(
            "KUBE-SEP-AAAAAAAAAAAAAAAA",
            51,
            &format!("-j DNAT --to-destination {to}:8080"),
        ));
    step.changes
        .extend(FieldChange::new("dst", &"10.96.14.3", &to));
    step.changes
        .extend(FieldChange::new("dport", &"80", &"8080"));
    step
}

fn hop(ns: NsKey, iif: Option<&str>, oif: Option<&str>, packet: &Packet, steps: Vec<Step>) -> Hop {
    Hop {
        ns,
        iif: iif.map(str::to_owned),
        oif: oif.map(str::to_owned),
        packet: packet.clone(),
        taps: iif
            .map(|dev| (dev, false))
            .into_iter()
            .chain(oif.map(|dev| (dev, true)))
            .map(|(dev, out)| Tap {
                dev: dev.to_owned(),
                out,
                packet: packet.clone(),
            })
            .collect(),
        steps,
    }
}

fn first_hop(to_service: &Packet) -> Hop {
    hop(
        key("worker-1", 10),
        None,
        Some("eth0"),
        to_service,
        vec![route("0.0.0.0/0", Some("10.244.1.1"), 2)],
    )
}

/// The backend on the same node: works, both ways.
fn delivered() -> Trace {
    let to_service = packet("10.244.1.7", "10.96.14.3", 80);
    let to_pod = packet("10.244.1.7", "10.244.1.9", 8080);
    let back = Packet {
        src: to_pod.dst,
        dst: to_pod.src,
        ..to_pod.clone()
    };
    let restored = Packet {
        src: to_service.dst,
        ..back.clone()
    };
    Trace {
        probability: 0.5,
        disposition: Disposition::Delivered,
        hops: vec![
            first_hop(&to_service),
            hop(
                key("worker-1", 1),
                Some("veth3fa2c1"),
                Some("veth91d0e7"),
                &to_service,
                vec![dnat("10.244.1.9"), route("10.244.1.9/32", None, 13)],
            ),
            hop(
                key("worker-1", 11),
                Some("eth0"),
                None,
                &to_pod,
                vec![Step::new(
                    StepKind::Socket,
                    "taken by the socket on :: port 8080",
                )],
            ),
        ],
        packet: to_pod,
        reply: Some(Box::new(Trace {
            probability: 1.0,
            disposition: Disposition::Delivered,
            hops: vec![
                hop(key("worker-1", 11), None, Some("eth0"), &back, vec![]),
                hop(
                    key("worker-1", 1),
                    Some("veth91d0e7"),
                    Some("veth3fa2c1"),
                    &back,
                    vec![],
                ),
                hop(
                    key("worker-1", 10),
                    Some("eth0"),
                    None,
                    &restored,
                    vec![Step::new(
                        StepKind::Socket,
                        "the answer reaches the socket that asked",
                    )],
                ),
            ],
            packet: restored,
            reply: None,
        })),
    }
}

/// The backend on another node: its FORWARD policy drops.
fn dropped() -> Trace {
    let to_service = packet("10.244.1.7", "10.96.14.3", 80);
    let to_pod = packet("10.244.1.7", "10.244.3.8", 8080);
    let policy = Step::new(StepKind::Netfilter, "dropped by policy").with(Evidence::Chain {
        chain: base("filter", "FORWARD", Hook::Forward),
        policy: Some(Policy::Drop),
        counters: Some(Counters {
            packets: 3,
            bytes: 180,
        }),
    });
    Trace {
        probability: 0.5,
        disposition: Disposition::Dropped(DropReason::NetfilterDrop),
        hops: vec![
            first_hop(&to_service),
            hop(
                key("worker-1", 1),
                Some("veth3fa2c1"),
                Some("eth0"),
                &to_service,
                vec![
                    dnat("10.244.3.8"),
                    route("10.244.3.0/24", Some("192.0.2.13"), 2),
                    Step::new(StepKind::Underlay, "eth0 → worker-3 eth0").with(Evidence::Assumed {
                        why: "the way between the nodes can't be read".to_owned(),
                    }),
                ],
            ),
            hop(
                key("worker-3", 3),
                Some("eth0"),
                None,
                &to_pod,
                vec![
                    route("10.244.3.0/24", None, 2),
                    Step::new(StepKind::Forward, "eth0 → cni0"),
                    policy,
                ],
            ),
        ],
        packet: to_pod,
        reply: None,
    }
}

fn refused_alone() -> Trace {
    let to_service = packet("10.244.1.7", "10.96.14.3", 80);
    let mut refusal = rule("KUBE-SERVICES", 31, "-d 10.96.14.3 -j REJECT");
    if let Evidence::NetfilterRule { base, comment, .. } = &mut refusal {
        base.table = "filter".to_owned();
        base.chain = "FORWARD".to_owned();
        base.hook = Hook::Forward;
        *comment = Some("shop/api:http has no endpoints".to_owned());
    }
    Trace {
        probability: 1.0,
        disposition: Disposition::Rejected(RejectWith::Icmp(3)),
        hops: vec![
            first_hop(&to_service),
            hop(
                key("worker-1", 1),
                Some("veth3fa2c1"),
                None,
                &to_service,
                vec![
                    Step::new(StepKind::Netfilter, "rejected with icmp port unreachable")
                        .with(refusal),
                ],
            ),
        ],
        packet: to_service,
        reply: None,
    }
}

fn unknown() -> Trace {
    let to_service = packet("10.244.1.7", "10.96.14.3", 80);
    let why = "rule 7 of filter FORWARD uses match xt_bpf, which is not known".to_owned();
    Trace {
        probability: 1.0,
        disposition: Disposition::Inconclusive(vec![why.clone()]),
        hops: vec![
            first_hop(&to_service),
            hop(
                key("worker-1", 1),
                Some("veth3fa2c1"),
                None,
                &to_service,
                vec![
                    Step::new(StepKind::Unknown, "can't be known")
                        .with(Evidence::Unreadable { what: why }),
                ],
            ),
        ],
        packet: to_service,
        reply: None,
    }
}

fn answer<T>(traces: &[Trace], use_it: impl FnOnce(&netpath::explain::Explanation) -> T) -> T {
    let (topology, names) = (topology(), names());
    let chains: ChainNames = [(
        "KUBE-SVC-XPGD46QRK7WJZT7O".to_owned(),
        "shop/api:http".to_owned(),
    )]
    .into();
    let end = |typed: &str, kind: &str, name: &str, ip: &str| End {
        typed: typed.to_owned(),
        kind: kind.to_owned(),
        name: Some(name.to_owned()),
        ip: Some(ip.parse().unwrap()),
        node: None,
    };
    let question = Question {
        source: end("web-0", "pod", "shop/web-0", "10.244.1.7"),
        destination: end("api", "service", "shop/api", "10.96.14.3"),
        protocol: TCP,
        port: Some(80),
        source_port: None,
        size: 60,
        flows: vec![FlowTraces {
            share: 1.0,
            traces,
            untold: &[],
        }],
        naming: Naming {
            topology: &topology,
            names: &names,
            chains: &chains,
        },
        notes: Vec::new(),
    };
    use_it(&explain(&question))
}

#[test]
fn one_backend_broken() {
    let text = answer(&[delivered(), dropped()], |answer| {
        text::trace(answer, &Options::default())
    });
    insta::assert_snapshot!("one_backend_broken", text);
}

#[test]
fn all_well() {
    let mut only = delivered();
    only.probability = 1.0;
    let traces = [only];
    let text = answer(&traces, |answer| text::trace(answer, &Options::default()));
    insta::assert_snapshot!("all_well", text);
    let wide = Options {
        wide: true,
        ..Options::default()
    };
    let text = answer(&traces, |answer| text::trace(answer, &wide));
    insta::assert_snapshot!("all_well_wide", text);
    let quiet = Options {
        reply: false,
        ..Options::default()
    };
    let text = answer(&traces, |answer| text::trace(answer, &quiet));
    assert!(!text.contains("reply"), "{text}");
}

#[test]
fn refused_for_want_of_endpoints() {
    let text = answer(&[refused_alone()], |answer| {
        text::trace(answer, &Options::default())
    });
    insta::assert_snapshot!("refused", text);
}

#[test]
fn what_is_unknown_is_said_and_not_called_broken() {
    let text = answer(&[unknown()], |answer| {
        text::trace(answer, &Options::default())
    });
    insta::assert_snapshot!("unknown", text);
}

/// A datagram was seen to arrive, what went outside was not.
#[test]
fn silence_is_told_from_an_arrival_that_nobody_saw() {
    let silent = Proof {
        agreement: Agreement::Confirmed,
        count: 2,
        least: 2,
        ways: (1, 1),
        predicted: Verdict::Delivered,
        end: observe::End::Unanswered,
        difference: None,
    };
    assert_eq!(
        observed::proof(&silent, false).2,
        "confirmed by 2 probes; no answer came, which programs of UDP need not give"
    );
    assert_eq!(
        observed::proof(&silent, true).2,
        "as 2 probes did, and nobody answered"
    );
}

#[test]
fn a_narrow_terminal_without_unicode() {
    let narrow = Options {
        width: Some(72),
        unicode: false,
        ..Options::default()
    };
    let text = answer(&[delivered(), dropped()], |answer| {
        text::trace(answer, &narrow)
    });
    assert!(text.is_ascii(), "{text}");
    assert!(text.lines().all(|line| line.len() <= 90), "{text}");
    insta::assert_snapshot!("narrow_ascii", text);
}

#[test]
fn as_json_and_yaml() {
    let traces = [delivered(), dropped()];
    let stats = Stats {
        round_trips: 2,
        helpers: 2,
        bytes_in: 1000,
        bytes_out: 100,
        millis: 42,
    };
    let json = answer(&traces, |answer| {
        data(&json::trace(answer, stats, true), Format::Json).unwrap()
    });
    insta::assert_snapshot!("json", json);
    let yaml = answer(&traces, |answer| {
        data(&json::trace(answer, stats, true), Format::Yaml).unwrap()
    });
    assert!(yaml.starts_with("schema: netpath.trace/v1\n"), "{yaml}");
    let again: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
    let first: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(again, first);
}

#[test]
fn the_first_line_says_where_a_redirected_packet_went() {
    let answer = |diverted: bool| {
        let topology = topology();
        let (names, chains) = (names(), ChainNames::new());
        let trace = delivered();
        let mut answer = explain(&Question {
            source: End {
                typed: "web-0".to_owned(),
                kind: "pod".to_owned(),
                name: Some("shop/web-0".to_owned()),
                ip: None,
                node: None,
            },
            destination: End {
                typed: "10.244.2.4:80".to_owned(),
                kind: "address".to_owned(),
                name: None,
                ip: Some("10.244.2.4".parse().unwrap()),
                node: None,
            },
            protocol: TCP,
            port: Some(80),
            source_port: None,
            size: 60,
            flows: vec![FlowTraces {
                share: 1.0,
                traces: &[trace],
                untold: &[],
            }],
            naming: Naming {
                topology: &topology,
                names: &names,
                chains: &chains,
            },
            notes: Vec::new(),
        });
        answer.branches[0].diverted = diverted;
        answer.branches[0].way.packet.dst = "10.244.1.7".parse().unwrap();
        answer.branches[0].way.to = Some("pod shop/web-0".to_owned());
        let text = text::trace(&answer, &Options::default());
        text.lines().next().unwrap().to_owned()
    };
    assert!(answer(false).ends_with("✓ delivered"), "{}", answer(false));
    assert!(
        answer(true).contains("✓ delivered, but to 10.244.1.7:")
            && answer(true).ends_with("(pod shop/web-0), by translation on the way"),
        "{}",
        answer(true)
    );
}
