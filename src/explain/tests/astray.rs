//! Mends of what was led astray name the object that leads there.

use super::mends::{device, dropped, finding_in, topology_of, with_devices};
use super::*;
use crate::explain::observe::{self, Agreement, Observed};
use crate::model::fdb::FdbEntry;
use crate::model::mac::MacAddr;
use crate::model::names::{NodeName, PodName, ServiceName};
use crate::model::netfilter::{Backend, ChainKind, Family, Hook};
use crate::model::route::{NextHop, Route, RouteKind};
use crate::model::{IfIndex, Section};
use crate::trace::FieldChange;
use crate::trace::evidence::ChainRef;

fn route(dst: &str, via: Option<&str>, dev: u32, protocol: u8) -> Route {
    Route {
        table: 254,
        dst: dst.parse().expect("a prefix"),
        src: None,
        tos: 0,
        metric: 0,
        kind: RouteKind::Unicast,
        scope: 0,
        protocol,
        prefsrc: None,
        nexthops: vec![NextHop {
            via: via.map(|via| via.parse().expect("an address")),
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
    }
}

/// Of the cluster's pods, one on another node; its address is where traces of these tests end.
fn names() -> Names {
    Names {
        pods: vec![PodName {
            namespace: "shop".to_owned(),
            name: "far".to_owned(),
            node: Some("n2".to_owned()),
            ips: vec!["10.0.0.2".parse().expect("an address")],
            phase: "Running".to_owned(),
            ..PodName::default()
        }],
        ..Names::default()
    }
}

/// What is said of a packet that a route led to where its end came, among these routes.
fn led_by(decides: usize, routes: &[Route], reason: DropReason, names: &Names) -> Finding {
    let mut trace = dropped(reason, step(StepKind::Neigh, "nobody answers"));
    let way = Step::new(StepKind::Route, "by a route").with(Evidence::Route {
        route: routes[decides].clone(),
        devs: vec!["cni0".to_owned()],
    });
    trace.hops[0].steps.insert(0, way);
    let routes = routes.to_vec();
    finding_in(trace, names, move |netns: &mut NetNs| {
        netns.links = Section::Known(vec![device(3, "cni0", true, None)]);
        netns.addrs = Section::Known(Vec::new());
        netns.routes = Section::Known(routes);
    })
}

#[test]
fn a_route_that_hides_the_right_one_is_to_be_deleted() {
    let hidden = route("10.0.0.0/24", Some("10.88.0.12"), 4, 4);
    let stray = route("10.0.0.2/32", None, 3, 4);
    let found = led_by(
        0,
        &[stray, hidden.clone()],
        DropReason::NeighFailed,
        &names(),
    );
    assert_eq!(found.code, codes::NEIGH_UNRESOLVED);
    assert!(
        found.mend.contains("pod shop/far is not on that link"),
        "{}",
        found.mend
    );
    assert!(
        found.mend.contains("ip route del 10.0.0.2 dev cni0"),
        "{}",
        found.mend
    );
    let both = "it hides: 10.0.0.0/24 via 10.88.0.12";
    assert!(
        found.evidence.iter().any(|line| line.starts_with(both)),
        "{found:?}"
    );

    let by_gateway = route("10.0.0.2/32", Some("10.88.0.1"), 4, 4);
    let found = led_by(
        0,
        &[by_gateway.clone(), hidden],
        DropReason::NoRouteToNode,
        &names(),
    );
    assert_eq!(found.code, codes::NO_ROUTE);
    assert!(
        found.mend.contains("route del 10.0.0.2 via 10.88.0.1"),
        "{}",
        found.mend
    );
    // The default route is no better than a gateway.
    let default = route("0.0.0.0/0", Some("10.88.0.254"), 4, 4);
    let found = led_by(
        0,
        &[by_gateway, default.clone()],
        DropReason::NoRouteToNode,
        &names(),
    );
    assert!(!found.mend.contains("route del"), "{}", found.mend);

    // A Service's address on the link: the device's address says so.
    let wide = route("10.0.0.0/8", None, 3, 2);
    let service = ServiceName {
        cluster_ips: vec!["10.0.0.2".parse().expect("an address")],
        ..ServiceName::default()
    };
    let names = Names {
        services: vec![service],
        ..Names::default()
    };
    let found = led_by(0, &[wide, default], DropReason::NeighFailed, &names);
    assert!(found.mend.contains("prefix length"), "{}", found.mend);
}

#[test]
fn a_pod_that_does_not_answer_on_its_own_link_is_no_fault_of_the_route() {
    let mut names = names();
    names.pods[0].node = Some("n1".to_owned());
    let own = route("10.0.0.0/24", None, 3, 2);
    let default = route("0.0.0.0/0", Some("10.88.0.254"), 4, 4);
    let found = led_by(0, &[own, default], DropReason::NeighFailed, &names);
    assert_eq!(found.code, codes::NEIGH_UNRESOLVED);
    assert!(
        found.mend.contains("see that pod shop/far is up"),
        "{}",
        found.mend
    );
}

/// A node's route by the other node itself is right, also where that does not answer and a wider one stands behind it.
#[test]
fn a_route_by_the_pods_own_node_is_not_to_be_deleted() {
    let mut names = names();
    names.nodes = vec![NodeName {
        name: "n2".to_owned(),
        addresses: vec!["10.88.0.12".parse().expect("an address")],
        ..NodeName::default()
    }];
    let by_node = route("10.0.0.0/24", Some("10.88.0.12"), 3, 4);
    let wide = route("10.0.0.0/8", Some("10.88.0.254"), 3, 4);
    let found = led_by(0, &[by_node, wide], DropReason::NeighFailed, &names);
    assert!(!found.mend.contains("route del"), "{}", found.mend);
}

/// A route that a step of another kind shows is another node's.
#[test]
fn routes_of_other_nodes_are_not_this_nodes() {
    let default = route("0.0.0.0/0", Some("10.88.0.254"), 3, 4);
    let theirs = Step::new(StepKind::Underlay, "handed to a gateway").with(Evidence::Route {
        route: route("10.0.0.0/16", None, 3, 4),
        devs: vec!["flannel-wg".to_owned()],
    });
    let mut trace = dropped(DropReason::NoRouteToNode, theirs);
    let way = Step::new(StepKind::Route, "by a route").with(Evidence::Route {
        route: default.clone(),
        devs: vec!["eth0".to_owned()],
    });
    trace.hops[0].steps.insert(0, way);
    let found = finding_in(trace, &names(), move |netns: &mut NetNs| {
        netns.links = Section::Known(vec![device(3, "eth0", true, None)]);
        netns.addrs = Section::Known(Vec::new());
        netns.routes = Section::Known(vec![default]);
    });
    assert!(!found.mend.contains("route del"), "{}", found.mend);
}

/// Where an address's own prefix makes the route, whether the pod is on that link is not known while its node was not read.
#[test]
fn a_link_that_nodes_may_share_is_not_blamed() {
    let shared = route("10.0.0.0/16", None, 3, 2);
    let default = route("0.0.0.0/0", Some("10.88.0.254"), 4, 4);
    let found = led_by(0, &[shared, default], DropReason::NeighFailed, &names());
    assert!(
        !found.mend.contains("is not on that link"),
        "{}",
        found.mend
    );
}

#[test]
fn a_pod_without_a_default_route_is_told_so() {
    let trace = dropped(
        DropReason::IpOutnoroutes,
        step(StepKind::Route, "no route to 10.0.0.2"),
    );
    let found = finding_in(trace, &names(), |netns| {
        netns.identity.host = false;
        netns.identity.pod_uid = Some("uid-near".to_owned());
        netns.routes = Section::Known(vec![route("10.9.0.0/24", None, 3, 2)]);
    });
    assert_eq!(found.code, codes::NO_ROUTE);
    assert!(
        found.mend.contains("there is no default route"),
        "{}",
        found.mend
    );
}

/// One rule of a node's chains, and what it makes of the mark.
fn marking(handle: u64, from: &str, to: &str) -> Step {
    let mut marks = Step::new(StepKind::Netfilter, "marked").with(Evidence::NetfilterRule {
        base: ChainRef {
            backend: Backend::Nft,
            family: Family::Ip,
            table: "mangle".to_owned(),
            chain: "PREROUTING".to_owned(),
            hook: Hook::Prerouting,
            priority: -150,
            kind: ChainKind::Filter,
        },
        chain: "PREROUTING".to_owned(),
        handle,
        text: format!("meta mark set {to}"),
        comment: None,
        counters: None,
    });
    marks.changes.push(FieldChange {
        field: "mark".to_owned(),
        from: from.to_owned(),
        to: to.to_owned(),
    });
    marks
}

/// A rule behind it that sets other bits leads nowhere, nor does one before it that was written over.
#[test]
fn the_rule_that_gave_the_asked_mark_is_named() {
    let led = Rule {
        fwmark: Some((0x4000, 0x4000)),
        ..Rule::bare(false, 100, 100)
    };
    let refused = Step::new(StepKind::Route, "a blackhole route")
        .with(Evidence::PolicyRule { rule: led })
        .with(Evidence::Route {
            route: Route {
                kind: RouteKind::Blackhole,
                nexthops: Vec::new(),
                table: 100,
                ..route("0.0.0.0/0", None, 3, 4)
            },
            devs: Vec::new(),
        });
    let mut trace = dropped(DropReason::IpOutnoroutes, refused);
    let marks = [
        marking(1, "0x0", "0x4000"),
        marking(2, "0x4000", "0x1"),
        marking(3, "0x1", "0x4001"),
        marking(4, "0x4001", "0x4003"),
    ];
    trace.hops[0].steps.splice(0..0, marks);
    let found = finding_in(trace, &names(), |_| {});
    assert!(found.mend.contains("handle 3: "), "{}", found.mend);
    assert!(
        found
            .mend
            .contains("ip route del blackhole default table 100"),
        "{}",
        found.mend
    );
}

/// What is said of a frame that came to another station by bridges' entries for these addresses.
fn misled(entries: &[&str], holders: u32) -> Finding {
    let mac = |text: &str| text.parse::<MacAddr>().expect("an address");
    let mut trace = dropped(
        DropReason::Otherhost,
        step(StepKind::Receive, "for another"),
    );
    trace.packet.eth = Some((mac("0a:00:00:00:00:01"), mac("0a:00:00:00:00:02")));
    let mut bridged = Step::new(StepKind::Bridge, "by its entry");
    for entry in entries {
        bridged = bridged.with(Evidence::Fdb {
            fdb: FdbEntry {
                link: IfIndex::new(7).expect("an index"),
                master: IfIndex::new(9),
                mac: mac(entry),
                vlan: None,
                own: false,
                permanent: false,
                sticky: false,
                ext_learned: false,
                dst: None,
                port: None,
                vni: None,
                via: None,
                nexthop: None,
            },
            dev: "veth7".to_owned(),
        });
    }
    trace.hops[0].steps.insert(0, bridged);
    let mut topology = topology_of(|_| {});
    let node = topology.nodes.get_mut("n1").expect("a node");
    for at in 0..holders {
        let mut pod = NetNs::new(NsIdentity {
            id: NetNsId {
                dev: 4,
                ino: u64::from(20 + at),
            },
            host: false,
            pod_uid: None,
            paths: Vec::new(),
            processes: Vec::new(),
        });
        let mut eth0 = device(2, "eth0", true, Some(9));
        eth0.mac = Some(mac("0a:00:00:00:00:02"));
        with_devices(false, "10.0.0.2", vec![eth0])(&mut pod);
        node.netns.insert(pod.identity.id, pod);
    }
    let mut found = in_topology(&[trace], &names(), &topology).findings;
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn the_entry_that_misled_a_frame_is_named_where_it_is_sure() {
    let del = "bridge fdb del 0a:00:00:00:00:02 dev veth7 master";
    let found = misled(&["0a:00:00:00:00:02"], 1);
    assert_eq!(found.code.code, "NP0115");
    assert!(found.mend.contains(del), "{}", found.mend);
    for (entries, holders) in [
        // Of two bridges in a row, either; of two pods with the address, either; another frame's.
        (&["0a:00:00:00:00:02", "0a:00:00:00:00:02"][..], 1),
        (&["0a:00:00:00:00:02"], 2),
        (&["0a:00:00:00:00:03"], 1),
        (&[], 1),
    ] {
        let found = misled(entries, holders);
        assert!(!found.mend.contains("bridge fdb del"), "{}", found.mend);
    }
}

/// Silence from outside is a finding only where the probe left by a pod's own address.
#[test]
fn a_pods_own_address_outside_is_named_where_nobody_answers_it() {
    let answer = |src: &str, agreement: Agreement, end: observe::End| {
        let mut left = trace(
            1.0,
            Disposition::LeavesCluster,
            step(StepKind::Underlay, "left"),
        );
        left.packet.src = src.parse().expect("an address");
        let (names, topology) = (names(), Topology::default());
        let chains = ChainNames::new();
        let naming = Naming {
            topology: &topology,
            names: &names,
            chains: &chains,
        };
        let explained = in_topology(&[left], &names, &topology);
        let seen = Observed {
            agreement,
            difference: None,
            end,
            branch: 0,
            spots: Vec::new(),
            last: None,
            sent: 0,
            sealed: None,
        };
        observe::outside::finding(&seen, &explained.branches, &naming)
    };
    let (seen, silent) = (Agreement::Confirmed, observe::End::Unanswered);
    let found = answer("10.0.0.2", seen, silent).expect("a finding");
    assert_eq!(found.code.code, "NP0164");
    assert_eq!(found.severity, Severity::Warning);
    assert!(found.title.contains("pod shop/far"), "{}", found.title);
    assert!(found.mend.contains("ipMasq"), "{}", found.mend);
    assert!(answer("10.0.0.2", seen, observe::End::Works).is_none());
    assert!(answer("10.0.0.2", Agreement::Unwatched, silent).is_none());
    // A node's, as it is masqueraded.
    assert!(answer("10.88.0.11", seen, silent).is_none());
}
