//! A Service's address that reached an end untranslated.

use super::mends::topology_of;
use super::*;
use crate::model::ipvs::{IpvsKey, IpvsService};
use crate::model::names::{NodeName, ServicePort};
use crate::model::netfilter::{Backend, ChainKind, Family, Hook};
use crate::trace::NOT_TRACKED;
use crate::trace::evidence::ChainRef;

/// Service shop/api with port 80 and NodePort 30080, on node n1.
fn names() -> Names {
    Names {
        services: vec![ServiceName {
            namespace: "shop".to_owned(),
            name: "api".to_owned(),
            cluster_ips: vec!["10.0.0.2".parse().expect("an address")],
            ports: vec![ServicePort {
                name: "http".to_owned(),
                port: 80,
                protocol: TCP,
                node_port: Some(30080),
            }],
            ..ServiceName::default()
        }],
        nodes: vec![NodeName {
            name: "n1".to_owned(),
            addresses: vec!["10.88.0.11".parse().expect("an address")],
            ..NodeName::default()
        }],
        ..Names::default()
    }
}

fn rule(chain: &str, text: &str) -> Evidence {
    Evidence::NetfilterRule {
        base: ChainRef {
            backend: Backend::Nft,
            family: Family::Ip,
            table: "nat".to_owned(),
            chain: "PREROUTING".to_owned(),
            hook: Hook::Prerouting,
            priority: -100,
            kind: ChainKind::Nat,
        },
        chain: chain.to_owned(),
        handle: 1,
        text: text.to_owned(),
        comment: None,
        counters: None,
    }
}

/// What the simulation says where a Service's address left the nodes.
fn left() -> Trace {
    let said = Disposition::Inconclusive(vec!["10.0.0.2 is a Service's".to_owned()]);
    trace(1.0, said, step(StepKind::Underlay, "left"))
}

fn only(trace: &Trace) -> Finding {
    let mut found = with_names(std::slice::from_ref(trace), &names()).findings;
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn a_service_without_rules_is_named_with_the_node_that_lacks_them() {
    let found = only(&left());
    assert_eq!(found.code.code, "NP0137");
    assert_eq!(found.severity, Severity::Warning);
    assert_eq!(found.place.node, "n1");
    assert!(
        found.title.contains("10.0.0.2:80 of Service shop/api"),
        "{}",
        found.title
    );
    assert!(
        found.mend.contains("kube-proxy on n1 has not written"),
        "{}",
        found.mend
    );
}

#[test]
fn rules_that_lead_nowhere_are_shown() {
    let mut trace = left();
    let jump = rule(
        "KUBE-SERVICES",
        "-m comment --comment \"shop/api:http cluster IP\" -j KUBE-SVC-X",
    );
    let other = rule(
        "KUBE-SERVICES",
        "-m comment --comment \"shop/api-2:http cluster IP\" -j KUBE-SVC-Y",
    );
    let nat = step(StepKind::Nat, "met").with(other).with(jump);
    trace.hops[0].steps.insert(0, nat);
    let found = only(&trace);
    assert!(found.mend.contains("only a part of"), "{}", found.mend);
    let shown = |word: &str| found.evidence.iter().any(|line| line.contains(word));
    assert!(
        shown("KUBE-SVC-X") && !shown("KUBE-SVC-Y"),
        "{:?}",
        found.evidence
    );
}

/// No rule is asked for packets of a flow that stood before: that rules are lacking is not known of these.
#[test]
fn a_flow_from_before_the_rules_is_no_sign_that_they_are_lacking() {
    let mut trace = left();
    let end = |addr: &str, to: &str| Tuple {
        src: addr.parse().expect("an address"),
        dst: to.parse().expect("an address"),
        protocol: TCP,
        sport: Some(40000),
        dport: Some(80),
    };
    let entry = ConntrackEntry::new(end("10.0.0.1", "10.0.0.2"), end("10.0.0.2", "10.0.0.1"));
    let found = step(StepKind::Conntrack, "an entry").with(Evidence::Conntrack {
        entry,
        existing: true,
    });
    trace.hops[0].steps.insert(0, found);
    let answer = with_names(&[trace], &names());
    let codes: Vec<&str> = answer.findings.iter().map(|own| own.code.code).collect();
    assert!(!codes.is_empty() && !codes.contains(&"NP0137"), "{codes:?}");
}

#[test]
fn a_port_that_the_service_has_not_is_not_kube_proxys_fault() {
    let mut trace = left();
    trace.packet.l4 = L4::Tcp {
        sport: None,
        dport: Some(81),
        flags: 2,
    };
    let found = only(&trace);
    assert_eq!(found.code.code, "NP0137");
    assert!(
        found
            .mend
            .starts_with("shop/api has no port 81/tcp; it has http 80/tcp"),
        "{}",
        found.mend
    );
}

#[test]
fn the_check_for_untaken_addresses_is_no_firewall() {
    let drop = step(StepKind::Netfilter, "dropped").with(rule("cluster-ips-check", "drop"));
    let found = only(&trace(
        1.0,
        Disposition::Dropped(DropReason::NetfilterDrop),
        drop,
    ));
    assert_eq!(
        (found.code.code, found.severity),
        ("NP0137", Severity::Error)
    );
}

#[test]
fn a_node_without_rules_for_a_node_port_is_told_from_a_closed_port() {
    let at_node = |port| {
        let refused = Disposition::Rejected(RejectWith::PortClosed);
        let mut trace = trace(1.0, refused, step(StepKind::Socket, "no listener"));
        trace.packet.dst = "10.88.0.11".parse().expect("an address");
        trace.packet.l4 = L4::Tcp {
            sport: None,
            dport: Some(port),
            flags: 2,
        };
        only(&trace).code.code
    };
    assert_eq!(at_node(30080), "NP0137");
    assert_eq!(at_node(80), "NP0121");
}

#[test]
fn an_end_for_another_reason_keeps_its_finding() {
    let dropped = Disposition::Dropped(DropReason::ForwardingOff);
    assert_eq!(
        only(&trace(1.0, dropped, step(StepKind::Forward, "off")))
            .code
            .code,
        "NP0104"
    );
}

#[test]
fn a_virtual_service_without_servers_is_a_service_without_endpoints() {
    let refused = Disposition::Rejected(RejectWith::PortUnreachable);
    let service = IpvsService {
        key: IpvsKey::Address(6, "10.0.0.2".parse().expect("an address"), 80),
        scheduler: "rr".to_owned(),
        flags: 1,
        timeout: 10800,
        netmask: 24,
        engine: None,
        servers: Vec::new(),
    };
    let met = step(StepKind::Ipvs, "no server").with(Evidence::IpvsService { service });
    let found = only(&trace(1.0, refused, met));
    assert_eq!(found.code.code, "NP0112");
    assert!(found.mend.contains("shop/api"), "{}", found.mend);
    let shown = "ipvs: -A -t 10.0.0.2:80 -s rr -p 10800 -M 255.255.255.0";
    assert!(
        found.evidence.iter().any(|line| line == shown),
        "{:?}",
        found.evidence
    );
}

/// Where the packet was not tracked on a node, the rule that did it is to blame; in a pod, or for the packets of a tunnel, it
/// changes nothing for the Service.
#[test]
fn what_was_not_tracked_on_the_node_is_not_translated() {
    let untracked = |host: bool, before: &[StepKind]| {
        let mut trace = left();
        let mut steps: Vec<Step> = before.iter().map(|kind| step(*kind, "before")).collect();
        let notrack = rule("raw-rules", "notrack");
        steps.push(step(StepKind::Netfilter, NOT_TRACKED).with(notrack));
        let mut hop = trace.hops[0].clone();
        hop.ns.netns.ino = 8;
        hop.steps = steps;
        trace.hops.insert(0, hop);
        let mut topology = topology_of(|_| {});
        let mut other = NetNs::new(NsIdentity {
            id: NetNsId { dev: 4, ino: 8 },
            host,
            pod_uid: None,
            paths: Vec::new(),
            processes: Vec::new(),
        });
        other.identity.pod_uid = (!host).then(|| "uid".to_owned());
        let node = topology.nodes.get_mut("n1").expect("a node");
        node.netns.insert(other.identity.id, other);
        let mut found = in_topology(&[trace], &names(), &topology).findings;
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    };
    let found = untracked(true, &[]);
    assert_eq!(found.code.code, "NP0137");
    assert!(found.title.contains("not tracked"), "{}", found.title);
    assert!(found.mend.contains("raw-rules"), "{}", found.mend);
    for other in [untracked(false, &[]), untracked(true, &[StepKind::Encap])] {
        assert_eq!(other.code.code, "NP0137");
        assert!(
            other.mend.contains("kube-proxy on n1 has not written"),
            "{}",
            other.mend
        );
    }
}
