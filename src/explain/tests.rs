use super::*;
use crate::model::NetNsId;
use crate::model::conntrack::{ConntrackEntry, Tuple};
use crate::model::names::{Endpoint, Names, PodName, ServiceName};
use crate::model::netns::{NetNs, NsIdentity};
use crate::model::packet::{L4, TCP};
use crate::model::rule::{Rule, RuleAction};
use crate::model::topology::Topology;
use crate::model::want::Fact;
use crate::trace::{DropReason, Evidence, Hop, RejectWith, Step, StepKind};

mod astray;
mod mends;
mod policies;
mod services;

fn trace(probability: f64, disposition: Disposition, step: Step) -> Trace {
    let packet = Packet::new(
        "10.0.0.1".parse().expect("an address"),
        "10.0.0.2".parse().expect("an address"),
        L4::Tcp {
            sport: None,
            dport: Some(80),
            flags: 2,
        },
    );
    Trace {
        probability,
        disposition,
        hops: vec![Hop {
            ns: NsKey {
                node: "n1".to_owned(),
                netns: NetNsId { dev: 4, ino: 7 },
            },
            iif: Some("eth0".to_owned()),
            oif: None,
            packet: packet.clone(),
            steps: vec![step],
            taps: Vec::new(),
        }],
        packet,
        reply: None,
    }
}

fn explained(traces: &[Trace]) -> Explanation {
    with_names(traces, &Names::default())
}

fn with_names(traces: &[Trace], names: &Names) -> Explanation {
    in_topology(traces, names, &Topology::default())
}

fn in_topology(traces: &[Trace], names: &Names, topology: &Topology) -> Explanation {
    let chains = ChainNames::new();
    explain(&Question {
        source: End::default(),
        destination: End::default(),
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
            topology,
            names,
            chains: &chains,
        },
        notes: Vec::new(),
    })
}

fn step(kind: StepKind, text: &str) -> Step {
    Step::new(kind, text)
}

#[test]
fn every_end_that_is_no_arrival_has_a_finding() {
    use DropReason as Drop;
    use RejectWith as Reject;
    let cases = [
        (Disposition::Dropped(Drop::IpRpfilter), "NP0105"),
        (Disposition::Dropped(Drop::ForwardingOff), "NP0104"),
        (Disposition::Dropped(Drop::PktTooBig), "NP0107"),
        (Disposition::Dropped(Drop::VxlanNoRemote), "NP0114"),
        (Disposition::Dropped(Drop::Otherhost), "NP0115"),
        (Disposition::Dropped(Drop::BridgeHairpinOff), "NP0116"),
        (Disposition::Dropped(Drop::NeighFailed), "NP0117"),
        (Disposition::Dropped(Drop::NoSocket), "NP0121"),
        (Disposition::Dropped(Drop::IpInnoroutes), "NP0123"),
        (Disposition::Dropped(Drop::NoRouteToNode), "NP0123"),
        (Disposition::Dropped(Drop::DevReady), "NP0125"),
        (Disposition::Dropped(Drop::BridgeIsolated), "NP0127"),
        (Disposition::Dropped(Drop::NotFromPeer), "NP0129"),
        (Disposition::Dropped(Drop::IpLocalSource), "NP0130"),
        (Disposition::Dropped(Drop::NotSpecified), "NP0133"),
        (Disposition::Dropped(Drop::XfrmPolicy), "NP0135"),
        (Disposition::Dropped(Drop::ListenOverflow), "NP0136"),
        (Disposition::Dropped(Drop::QdiscDrop), "NP0133"),
        (Disposition::Rejected(Reject::PortClosed), "NP0121"),
        (Disposition::Rejected(Reject::NetUnreachable), "NP0123"),
        (Disposition::Rejected(Reject::HostUnreachable), "NP0117"),
        (Disposition::Rejected(Reject::TooBig(1400)), "NP0107"),
        (Disposition::Rejected(Reject::TtlExceeded), "NP0134"),
        (Disposition::Loop, "NP0128"),
        (Disposition::Inconclusive(vec!["x".to_owned()]), "NP0132"),
    ];
    for (disposition, code) in cases {
        let answer = explained(&[trace(
            1.0,
            disposition.clone(),
            step(StepKind::Forward, "s"),
        )]);
        let codes: Vec<&str> = answer
            .findings
            .iter()
            .map(|found| found.code.code)
            .collect();
        assert_eq!(codes, [code], "{disposition:?}");
        assert!(!answer.findings.iter().any(|found| found.mend.is_empty()));
        assert_eq!(answer.verdict, Verdict::of(&disposition));
    }
}

#[test]
fn the_same_fault_of_two_branches_is_one_finding() {
    let dropped = || {
        let disposition = Disposition::Dropped(DropReason::ForwardingOff);
        trace(
            0.25,
            disposition,
            step(StepKind::Forward, "forwarding is off"),
        )
    };
    let mut fine = trace(0.5, Disposition::Delivered, step(StepKind::Socket, "taken"));
    fine.reply = Some(Box::new(trace(
        1.0,
        Disposition::Delivered,
        step(StepKind::Socket, "taken"),
    )));
    let answer = explained(&[dropped(), fine, dropped()]);
    assert_eq!(answer.verdict, Verdict::Mixed);
    assert_eq!(answer.findings.len(), 1);
    assert_eq!(answer.findings[0].branches, [0, 2]);
}

#[test]
fn a_branch_whose_answer_is_lost_is_not_delivered() {
    let mut lost = trace(1.0, Disposition::Delivered, step(StepKind::Socket, "taken"));
    lost.reply = Some(Box::new(trace(
        1.0,
        Disposition::Dropped(DropReason::IpRpfilter),
        step(StepKind::RpFilter, "answers leave elsewhere"),
    )));
    let answer = explained(&[lost]);
    assert_eq!(answer.verdict, Verdict::Dropped);
    assert_eq!(answer.findings[0].code, codes::RP_FILTER);
}

#[test]
fn what_is_missing_is_said_once_with_its_place() {
    let what = "rule 7 can't be decoded".to_owned();
    let unknown =
        step(StepKind::Unknown, "can't be known").with(Evidence::Unreadable { what: what.clone() });
    let answer = explained(&[trace(1.0, Disposition::Inconclusive(vec![what]), unknown)]);
    assert_eq!(answer.unknown, ["rule 7 can't be decoded (net:[7] on n1)"]);
    assert_eq!(answer.verdict, Verdict::Inconclusive);
}

#[test]
fn what_arrives_elsewhere_is_told_from_an_endpoint() {
    let mut redirected = trace(1.0, Disposition::Delivered, step(StepKind::Socket, "taken"));
    redirected.packet.dst = "127.0.0.1".parse().expect("an address");
    let plain = trace(1.0, Disposition::Delivered, step(StepKind::Socket, "taken"));
    let endpoint = Endpoint {
        ip: redirected.packet.dst,
        port: Some(80),
        port_name: String::new(),
        protocol: TCP,
        node: None,
        pod: None,
        ready: true,
        serving: true,
        terminating: false,
        hint_zones: Vec::new(),
        hint_nodes: Vec::new(),
        disputed: false,
    };
    let names = Names {
        services: vec![ServiceName {
            cluster_ips: vec!["10.0.0.2".parse().expect("an address")],
            endpoints: vec![endpoint],
            ..ServiceName::default()
        }],
        ..Names::default()
    };
    let traces = [redirected, plain];
    let diverted = |answer: &Explanation| -> Vec<bool> {
        answer
            .branches
            .iter()
            .map(|branch| branch.diverted)
            .collect()
    };
    assert_eq!(diverted(&explained(&traces)), [true, false]);
    assert_eq!(diverted(&with_names(&traces, &names)), [false, false]);
}

/// Neighbours know another pod's device by a pod's address.
#[test]
fn what_arrives_at_another_pod_than_the_one_with_the_address_is_told() {
    let pod = |name: &str, addr: &str| PodName {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        node: Some("n1".to_owned()),
        host_network: false,
        ips: vec![addr.parse().expect("an address")],
        phase: "Running".to_owned(),
    };
    let names = Names {
        pods: vec![pod("meant", "10.0.0.2"), pod("other", "10.0.0.3")],
        ..Names::default()
    };
    let taken = trace(1.0, Disposition::Delivered, step(StepKind::Socket, "taken"));
    let ask = |uid: &str| {
        let mut topology = Topology::default();
        let ns = NetNs::new(NsIdentity {
            id: NetNsId { dev: 4, ino: 7 },
            host: false,
            pod_uid: Some(uid.to_owned()),
            paths: Vec::new(),
            processes: Vec::new(),
        });
        topology.merge("n1", Fact::NetNs(Box::new(ns)));
        in_topology(std::slice::from_ref(&taken), &names, &topology)
    };
    let right = ask("uid-meant");
    assert!(!right.branches[0].diverted && right.findings.is_empty());
    let wrong = ask("uid-other");
    assert!(wrong.branches[0].diverted);
    let found = wrong.findings.first().expect("a finding");
    assert_eq!(
        (found.code, found.severity, found.title.as_str()),
        (
            codes::DUPLICATE_ADDRESS,
            Severity::Error,
            "pod shop/other gets what is for 10.0.0.2, the address of pod shop/meant"
        )
    );
}

#[test]
fn findings_name_the_objects_of_their_case() {
    let title = |disposition: &Disposition, step: Step| {
        let answer = explained(&[trace(1.0, disposition.clone(), step)]);
        let found = answer.findings.first().expect("a finding");
        (found.code.code, found.title.clone(), found.mend.clone())
    };
    let rule = Rule {
        dst: Some("10.0.0.0/8".parse().expect("a prefix")),
        action: RuleAction::Blackhole,
        ..Rule::bare(false, 100, 0)
    };
    let refused = Disposition::Rejected(RejectWith::InvalidArgument);
    let (code, head, mend) = title(
        &refused,
        step(StepKind::Route, "a rule refuses").with(Evidence::PolicyRule { rule }),
    );
    assert_eq!(code, "NP0124");
    assert_eq!(
        head,
        "ip rule 100: from all to 10.0.0.0/8 blackhole in net:[7] on n1 refuses packets to 10.0.0.2"
    );
    assert!(mend.contains("ip rule del pref 100"), "{mend}");
    let down = Evidence::Link {
        dev: "veth1".to_owned(),
        state: "down".to_owned(),
    };
    let dropped = Disposition::Dropped(DropReason::DevReady);
    let (code, head, mend) = title(&dropped, step(StepKind::Transmit, "down").with(down));
    assert_eq!(
        (code, head.as_str()),
        ("NP0125", "veth1 in net:[7] on n1 is down")
    );
    assert!(mend.contains("ip link set veth1 up"), "{mend}");
    let dropped = Disposition::Dropped(DropReason::NoSocket);
    let (code, head, _) = title(&dropped, step(StepKind::Socket, "nothing listens"));
    assert_eq!(
        (code, head.as_str()),
        (
            "NP0121",
            "nothing listens on tcp 10.0.0.2:80 in net:[7] on n1"
        )
    );
    let expired = Disposition::Rejected(RejectWith::TtlExceeded);
    let (code, head, _) = title(&expired, step(StepKind::Forward, "ttl is 1"));
    assert_eq!(
        (code, head.as_str()),
        ("NP0134", "the packet's TTL runs out in net:[7] on n1")
    );
    // The same place by the same device again is a circle.
    let mut round = trace(1.0, expired, step(StepKind::Forward, "ttl is 1"));
    round.hops.push(round.hops[0].clone());
    let answer = explained(&[round]);
    assert_eq!(answer.findings[0].code, codes::LOOP);
    assert_eq!(
        answer.findings[0].title,
        "packets to 10.0.0.2 go round between net:[7]"
    );
}

#[test]
fn two_answers_for_one_address_are_named() {
    let answered = |station: &str| {
        let addr = "10.0.0.2".parse().expect("an address");
        step(
            StepKind::Neigh,
            &format!("10.0.0.2 would be answered for by eth0 of {station}: 02:00:00:00:00:01"),
        )
        .with(Evidence::Address {
            addr,
            dev: "eth0".to_owned(),
        })
        .with(Evidence::Assumed {
            why: "2 answer for 10.0.0.2 (duplicate address): the first answer decides".to_owned(),
        })
    };
    let traces = ["n1/net:[8]", "n1/net:[9]"]
        .map(|station| trace(0.5, Disposition::LeavesCluster, answered(station)));
    let answer = explained(&traces);
    let found = &answer.findings[0];
    assert_eq!(found.code.code, "NP0131");
    assert!(
        found.title.contains("net:[8]") && found.title.contains("net:[9]"),
        "{}",
        found.title
    );
    // Two branches behind one answer are no duplicate that could be named twice.
    assert_eq!(answer.findings.len(), 1);
}

#[test]
fn endpoints_that_may_not_be_listed_make_no_finding() {
    let tuple = |src: &str, dst: &str| Tuple {
        src: src.parse().expect("an address"),
        dst: dst.parse().expect("an address"),
        protocol: 17,
        sport: Some(5353),
        dport: Some(53),
    };
    let entry = ConntrackEntry::new(
        tuple("10.0.0.1", "10.96.0.10"),
        tuple("10.244.2.4", "10.0.0.1"),
    );
    let found = step(StepKind::Conntrack, "an entry").with(Evidence::Conntrack {
        entry,
        existing: true,
    });
    let traces = [trace(1.0, Disposition::LeavesCluster, found)];
    let mut names = Names {
        services: vec![ServiceName {
            namespace: "kube-system".to_owned(),
            name: "dns".to_owned(),
            cluster_ips: vec!["10.96.0.10".parse().expect("an address")],
            ..ServiceName::default()
        }],
        ..Names::default()
    };
    let answer = with_names(&traces, &names);
    assert_eq!(answer.findings[0].code, codes::STALE_CONNTRACK);
    assert_eq!(answer.unknown, Vec::<String>::new());
    names.services[0].endpoints_unread = Some("forbidden".to_owned());
    let answer = with_names(&traces, &names);
    assert_eq!(answer.findings, []);
    assert_eq!(
        answer.unknown,
        [
            "whether 10.244.2.4, to which a conntrack entry leads, is an endpoint of kube-system/dns: its EndpointSlices could not be listed: forbidden (net:[7] on n1)"
        ]
    );
}
