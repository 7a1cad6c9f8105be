//! Mends name the object that decided, not the next best one.

use super::*;
use crate::model::addr::Addr;
use crate::model::conntrack::{ConntrackStats, CpuStats};
use crate::model::link::{Link, LinkKind};
use crate::model::netns::{NetNs, NsIdentity};
use crate::model::snapshot::NodeSnapshot;
use crate::model::socket::Socket;
use crate::model::sysctl::Sysctls;
use crate::model::{IfIndex, Section};
use crate::trace::Tap;

pub(super) fn dropped(reason: DropReason, step: Step) -> Trace {
    trace(1.0, Disposition::Dropped(reason), step)
}

fn sysctl(name: &str, value: &str) -> Evidence {
    Evidence::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
    }
}

/// The only finding of one trace.
fn finding(trace: Trace) -> Finding {
    let mut found = explained(&[trace]).findings;
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn the_reverse_path_filter_of_all_names_the_device_that_received() {
    let all = |value| {
        let step = step(StepKind::RpFilter, "came in by flannel.1")
            .with(sysctl("net.ipv4.conf.all.rp_filter", value));
        let mut trace = dropped(DropReason::IpRpfilter, step);
        trace.hops[0].oif = Some("eth1".to_owned());
        let packet = trace.packet.clone();
        trace.hops[0].taps = [("eth0", false), ("flannel.1", false), ("lo", true)]
            .map(|(dev, out)| Tap {
                dev: dev.to_owned(),
                out,
                packet: packet.clone(),
            })
            .to_vec();
        trace
    };
    let strict = finding(all("1")).mend;
    assert!(strict.contains("route 10.0.0.1 by flannel.1,"), "{strict}");
    assert!(
        strict.ends_with("sysctl -w net/ipv4/conf/flannel.1/rp_filter=2"),
        "{strict}"
    );
    let loose = finding(all("2")).mend;
    assert!(loose.contains("add a route back to 10.0.0.1"), "{loose}");
}

/// A topology with one namespace, that of [`trace`].
pub(super) fn topology_of(fill: impl FnOnce(&mut NetNs)) -> Topology {
    let mut netns = NetNs::new(NsIdentity {
        id: NetNsId { dev: 4, ino: 7 },
        host: true,
        pod_uid: None,
        paths: Vec::new(),
        processes: Vec::new(),
    });
    fill(&mut netns);
    let node = NodeSnapshot {
        node: "n1".to_owned(),
        kernel: String::new(),
        taken_at: 0,
        netns: [(netns.identity.id, netns)].into(),
    };
    Topology {
        nodes: [("n1".to_owned(), node)].into(),
        ..Topology::default()
    }
}

/// The only finding of one trace there.
pub(super) fn finding_in(trace: Trace, names: &Names, fill: impl FnOnce(&mut NetNs)) -> Finding {
    let mut found = in_topology(&[trace], names, &topology_of(fill)).findings;
    assert_eq!(found.len(), 1, "{found:?}");
    found.remove(0)
}

#[test]
fn an_ignored_echo_request_names_the_setting() {
    let name = "net.ipv4.icmp_echo_ignore_all";
    let step = step(StepKind::Socket, "echo requests are ignored").with(sysctl(name, "1"));
    let found = finding(dropped(DropReason::NoSocket, step));
    assert_eq!(found.code, codes::SWALLOWED);
    assert_eq!(
        found.title,
        "echo requests are ignored in net:[7] on n1: net.ipv4.icmp_echo_ignore_all = 1"
    );
    assert!(
        found
            .mend
            .contains("sysctl -w net.ipv4.icmp_echo_ignore_all=0"),
        "{}",
        found.mend
    );
}

/// Entries that were given up last year say nothing of a table that is empty today.
#[test]
fn a_conntrack_table_is_full_by_what_it_holds_not_by_what_it_counted() {
    let found = |count: u32| {
        let topology = topology_of(|netns| {
            netns.sysctls = Section::Known(Sysctls {
                nf_conntrack_max: Section::Known(Some(1000)),
                nf_conntrack_count: Section::Known(Some(count)),
                ..Sysctls::default()
            });
            netns.conntrack_stats = Section::Known(Some(ConntrackStats {
                entries: count,
                max: Some(1000),
                cpus: vec![CpuStats {
                    early_drop: Some(7),
                    ..CpuStats::default()
                }],
            }));
        });
        let delivered = trace(
            1.0,
            Disposition::Delivered,
            step(StepKind::Socket, "takes it"),
        );
        in_topology(&[delivered], &Names::default(), &topology).findings
    };
    assert_eq!(found(3), []);
    let [full] = found(950).try_into().expect("one finding");
    assert_eq!(full.code, codes::CONNTRACK_FULL);
    assert!(full.evidence[1].contains("early_drop 7"), "{full:?}");
}

#[test]
fn a_listener_on_another_device_is_not_told_to_listen_on_any_address() {
    let refused = trace(
        1.0,
        Disposition::Rejected(RejectWith::PortClosed),
        step(StepKind::Socket, "nothing listens"),
    );
    let found = finding_in(refused, &Names::default(), |netns| {
        netns.sockets = Section::Known(vec![Socket {
            protocol: TCP,
            addr: "0.0.0.0".parse().expect("an address"),
            port: 80,
            v6only: None,
            listening: true,
            remote: None,
            bound_dev: IfIndex::new(3),
            bound_dev_unread: false,
            backlog: None,
            transparent: None,
            uid: 0,
            inode: 1,
        }]);
    });
    assert_eq!(found.code, codes::LISTENER_ELSEWHERE);
    assert_eq!(
        found.title,
        "the listener on n1 is bound to device if3, tcp 10.0.0.2:80 came in by eth0"
    );
    assert!(found.mend.contains("from if3 only"), "{}", found.mend);
    assert!(!found.mend.contains("0.0.0.0"), "{}", found.mend);
}

#[test]
fn of_pods_with_one_address_the_one_that_took_the_packet_is_named() {
    let pod = |name: &str, ip: &str| crate::model::names::PodName {
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        ips: vec![ip.parse().expect("an address")],
        phase: "Running".to_owned(),
        ..Default::default()
    };
    let names = Names {
        pods: vec![pod("owner", "10.0.0.2"), pod("other", "10.0.0.9")],
        ..Names::default()
    };
    let named = |uid: Option<&str>| {
        let topology = topology_of(|netns| {
            netns.identity.host = uid.is_none();
            netns.identity.pod_uid = uid.map(str::to_owned);
        });
        let arrived = trace(1.0, Disposition::Delivered, step(StepKind::Socket, "taken"));
        let mut answer = in_topology(&[arrived], &names, &topology);
        answer.branches.remove(0).way.to
    };
    assert_eq!(named(Some("uid-owner")).as_deref(), Some("pod shop/owner"));
    assert_eq!(named(Some("uid-other")).as_deref(), Some("pod shop/other"));
    assert_eq!(named(None).as_deref(), Some("pod shop/owner"));
}

pub(super) fn device(index: u32, name: &str, up: bool, other_end: Option<u32>) -> Link {
    Link {
        up,
        lower_up: up,
        link: other_end.and_then(IfIndex::new),
        ..Link::new(
            IfIndex::new(index).expect("an index"),
            name,
            LinkKind::Device,
        )
    }
}

/// A namespace with `devices`, of which the first has an address.
pub(super) fn with_devices(
    host: bool,
    subnet: &str,
    devices: Vec<Link>,
) -> impl FnOnce(&mut NetNs) {
    let addr = Addr {
        link: devices[0].index,
        local: subnet.parse().expect("an address"),
        prefix_len: 24,
        peer: None,
        scope: 0,
        secondary: false,
        tentative: false,
        dadfailed: false,
        deprecated: false,
        nodad: false,
    };
    move |netns| {
        netns.identity.host = host;
        netns.links = Section::Known(devices);
        netns.addrs = Section::Known(vec![addr]);
    }
}

#[test]
fn a_device_that_took_the_route_with_it_is_named() {
    // As it is where the packet begins.
    let unrouted = || {
        let step = step(StepKind::Route, "no route to 10.0.0.2");
        let mut trace = dropped(DropReason::IpOutnoroutes, step);
        trace.hops[0].iif = None;
        trace
    };
    let down = |up| vec![device(3, "cni0", up, None)];

    let of_node = finding_in(
        unrouted(),
        &Names::default(),
        with_devices(true, "10.0.0.1", down(false)),
    );
    assert_eq!(of_node.title, "cni0 on n1 is down");
    assert_eq!(of_node.code, codes::LINK_DOWN);
    assert_eq!(of_node.place.object.as_deref(), Some("cni0"));
    assert!(of_node.mend.contains("ip link set cni0 up"));
    // One of another subnet has nothing to do with it, nor has one that is up.
    let elsewhere = with_devices(true, "10.9.0.1", down(false));
    let up = with_devices(true, "10.0.0.1", down(true));
    let others = [
        finding_in(unrouted(), &Names::default(), elsewhere),
        finding_in(unrouted(), &Names::default(), up),
    ];
    for other in others {
        assert_eq!(other.code, codes::NO_ROUTE, "{other:?}");
    }

    // A pod's only device takes the default route with it, but not where another one is up.
    let eth0 = || device(2, "eth0", false, Some(9));
    let cut_off = finding_in(
        unrouted(),
        &Names::default(),
        with_devices(false, "10.9.0.1", vec![eth0()]),
    );
    assert_eq!(cut_off.code, codes::LINK_DOWN, "{cut_off:?}");
    let both = vec![eth0(), device(3, "net1", true, Some(8))];
    let connected = finding_in(
        unrouted(),
        &Names::default(),
        with_devices(false, "10.9.0.1", both),
    );
    assert_eq!(connected.code, codes::NO_ROUTE, "{connected:?}");
}

#[test]
fn a_device_that_took_the_port_of_its_bridge_with_it_is_named() {
    let step = step(StepKind::Bridge, "no port leads to 0a:00:00:00:00:02");
    let found = finding_in(
        dropped(DropReason::BridgeNoPort, step),
        &Names::default(),
        with_devices(false, "10.0.0.2", vec![device(2, "eth0", false, Some(9))]),
    );
    assert_eq!(found.code, codes::LINK_DOWN);
    assert!(found.title.starts_with("eth0 "), "{}", found.title);
}
