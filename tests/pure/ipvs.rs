//! Virtual services of IPVS in hand-made worlds, one rule of the kernel at a time.

use netpath::model::ipvs::{
    Ipvs, IpvsConn, IpvsConnKey, IpvsKey, IpvsMethod, IpvsServer, IpvsService, IpvsSysctls,
};
use netpath::model::want::Want;
use netpath::model::{NsKey, Section};
use netpath::simulate::{Flow, Limits, Outcome, simulate};
use netpath::trace::{Disposition, RejectWith};

use crate::walks::two_nodes;
use crate::world::{World, ip};

const VIRTUAL: &str = "10.96.0.10";
const PERSISTENT: u32 = 1;

fn server(addr: &str, weight: i32) -> IpvsServer {
    IpvsServer {
        addr: ip(addr),
        port: 8080,
        method: IpvsMethod::Masq,
        weight,
        upper: 0,
        lower: 0,
        active: 0,
        inactive: 0,
        persistent: 0,
        tunnel: 0,
    }
}

fn service(flags: u32, servers: Vec<IpvsServer>) -> IpvsService {
    IpvsService {
        key: IpvsKey::Address(6, ip(VIRTUAL), 80),
        scheduler: "rr".to_owned(),
        flags,
        timeout: 10800,
        netmask: 32,
        engine: None,
        servers,
    }
}

/// What kube-proxy sets, but for conntrack: there are no rules here that need it.
fn sysctls() -> IpvsSysctls {
    IpvsSysctls {
        conntrack: Section::Known(false),
        snat_reroute: Section::Known(true),
        expire_nodest_conn: Section::Known(true),
        expire_quiescent_template: Section::Known(true),
        conn_reuse_mode: Section::Known(1),
        sloppy_tcp: Section::Known(false),
        backup_only: Section::Known(false),
        cache_bypass: Section::Known(false),
        drop_packet: Section::Known(0),
    }
}

/// Two nodes with a pod each; the first node has the service.
fn world(service: Option<IpvsService>) -> (World, NsKey, NsKey) {
    let (mut world, [host, _], [pod, _]) = two_nodes();
    world.addr(&host, 1, VIRTUAL, 32);
    let services = service.into_iter();
    let services = services.map(|own| (own.key, Section::Known(Some(own))));
    world.get(&host).ipvs = Section::Known(Some(Ipvs {
        sysctls: sysctls(),
        services: services.collect(),
        complete: true,
        conns: Vec::new(),
    }));
    (world, host, pod)
}

fn ipvs<'a>(world: &'a mut World, host: &NsKey) -> &'a mut Ipvs {
    let ipvs = world.get(host).ipvs.known_mut().expect("read");
    ipvs.as_mut().expect("IPVS")
}

fn steps(outcome: &Outcome, branch: usize) -> Vec<String> {
    let hops = outcome.traces[branch].hops.iter();
    let steps = hops.flat_map(|hop| &hop.steps);
    steps
        .filter(|step| step.kind.name() == "ipvs")
        .map(|step| step.result.clone())
        .collect()
}

#[test]
fn a_server_on_another_node_gets_the_packet_and_its_answer_comes_back() {
    let (mut world, host, pod) = world(Some(service(0, vec![server("10.244.2.7", 1)])));
    let outcome = world.tcp(&pod, VIRTUAL, 80);
    let trace = &outcome.traces[0];
    assert!(trace.works(), "{trace:#?}");
    assert_eq!(trace.packet.dst, ip("10.244.2.7"));
    assert_eq!(trace.packet.dport(), Some(8080));
    // 64, less one at each node.
    assert_eq!(trace.packet.ttl, 62);
    let answer = trace.reply.as_ref().expect("an answer");
    assert_eq!(
        (answer.packet.src, answer.packet.sport()),
        (ip(VIRTUAL), Some(80))
    );
    // From the node itself, whose own address the virtual one is.
    let outcome = world.tcp(&host, VIRTUAL, 80);
    assert!(steps(&outcome, 0)[0].contains("by rr"), "{outcome:#?}");
    assert_eq!(outcome.traces[0].packet.dst, ip("10.244.2.7"));
    // A port that is no service's is the host's own.
    let outcome = world.tcp(&pod, VIRTUAL, 81);
    let end = &outcome.traces[0].disposition;
    assert_eq!(*end, Disposition::Rejected(RejectWith::PortClosed));
    // What was not read is asked for, by key.
    ipvs(&mut world, &host).complete = false;
    ipvs(&mut world, &host).services.clear();
    let outcome = world.tcp(&pod, VIRTUAL, 80);
    let wanted = &outcome.wants["n1"];
    let key = IpvsKey::Address(6, ip(VIRTUAL), 80);
    let netns = host.netns;
    assert!(
        wanted.contains(&Want::IpvsService { netns, key }),
        "{wanted:?}"
    );
}

#[test]
fn a_service_of_which_no_server_takes_connections_refuses() {
    for servers in [Vec::new(), vec![server("10.244.2.7", 0)]] {
        let (world, _, pod) = world(Some(service(0, servers)));
        let outcome = world.tcp(&pod, VIRTUAL, 80);
        let end = &outcome.traces[0].disposition;
        assert_eq!(*end, Disposition::Rejected(RejectWith::PortUnreachable));
    }
}

#[test]
fn each_server_is_a_branch_and_one_of_this_host_is_reached_there() {
    let own = IpvsServer {
        port: 9000,
        ..server("10.88.0.11", 1)
    };
    let (mut world, host, pod) = world(Some(service(0, vec![server("10.244.2.7", 1), own])));
    world.listen(&host, 6, "0.0.0.0", 9000);
    let outcome = world.tcp(&pod, VIRTUAL, 80);
    assert_eq!(outcome.traces.len(), 2);
    assert!(
        outcome.traces.iter().all(netpath::trace::Trace::works),
        "{outcome:#?}"
    );
    let shares: Vec<f64> = outcome
        .traces
        .iter()
        .map(|trace| trace.probability)
        .collect();
    assert_eq!(shares, [0.5, 0.5]);
    // Delivered there it is not forwarded, so that its TTL stays.
    assert_eq!(outcome.traces[1].packet.ttl, 64);
}

#[test]
fn a_client_of_a_persistent_service_keeps_its_server() {
    let servers = vec![server("10.244.2.7", 1), server("10.244.2.8", 1)];
    let (mut world, host, pod) = world(Some(service(PERSISTENT, servers)));
    let key = IpvsConnKey {
        protocol: 6,
        client: (ip("10.244.1.7"), 0),
        other: (ip(VIRTUAL), 80),
        answer: false,
    };
    let outcome = world.tcp(&pod, VIRTUAL, 80);
    let netns = host.netns;
    assert!(outcome.wants["n1"].contains(&Want::IpvsConn { netns, key }));
    let template = |last: u8| IpvsConn {
        protocol: 6,
        client: key.client,
        virt: key.other,
        server: (std::net::IpAddr::from([10, 244, 2, last]), 8080),
        state: "ESTABLISHED".to_owned(),
        expires: 100,
    };
    let mut ask = |found: Option<IpvsConn>| {
        ipvs(&mut world, &host).conns = vec![(key, Section::Known(found))];
        world.tcp(&pod, VIRTUAL, 80)
    };
    assert_eq!(ask(None).traces.len(), 2);
    let kept = ask(Some(template(7)));
    assert_eq!(kept.traces.len(), 1);
    assert_eq!(kept.traces[0].packet.dst, ip("10.244.2.7"));
    // Of a server that is gone the template counts no more.
    assert_eq!(ask(Some(template(9))).traces.len(), 2);
}

#[test]
fn a_connection_that_the_kernel_has_goes_on_with_its_server() {
    let servers = vec![server("10.244.2.7", 1), server("10.244.2.8", 1)];
    let (mut world, host, pod) = world(Some(service(0, servers)));
    let flow = Flow {
        from: pod,
        src: None,
        sport: Some(40000),
        dst: ip(VIRTUAL),
        dport: Some(80),
        protocol: 6,
        len: 60,
        uid: None,
        gid: None,
        bound: None,
    };
    let key = IpvsConnKey {
        protocol: 6,
        client: (ip("10.244.1.7"), 40000),
        other: (ip(VIRTUAL), 80),
        answer: false,
    };
    let conn = |state: &str| IpvsConn {
        protocol: 6,
        client: key.client,
        virt: key.other,
        server: (ip("10.244.2.7"), 8080),
        state: state.to_owned(),
        expires: 100,
    };
    // The client is no server of anybody's.
    let turned = IpvsConnKey {
        client: key.other,
        other: key.client,
        answer: true,
        ..key
    };
    let mut ask = |found: Option<IpvsConn>| {
        ipvs(&mut world, &host).conns =
            vec![(key, Section::Known(found)), (turned, Section::Known(None))];
        simulate(&world.topology, &flow, &Limits::default())
    };
    let kept = ask(Some(conn("ESTABLISHED")));
    assert!(steps(&kept, 0)[0].contains("existing"), "{kept:#?}");
    assert_eq!(kept.traces.len(), 1);
    // A SYN opens one anew where that is over.
    assert_eq!(ask(Some(conn("TIME_WAIT"))).traces.len(), 2);
    assert_eq!(ask(None).traces.len(), 2);
}

#[test]
fn what_is_not_followed_is_named() {
    let tunnel = IpvsServer {
        method: IpvsMethod::Tunnel,
        ..server("10.244.2.7", 1)
    };
    let (world, _, pod) = world(Some(service(0, vec![tunnel])));
    let outcome = world.tcp(&pod, VIRTUAL, 80);
    let Disposition::Inconclusive(why) = &outcome.traces[0].disposition else {
        panic!("{outcome:#?}");
    };
    assert!(why[0].contains("tunnel"), "{why:?}");
}
