//! Whole walks through hand-made worlds, one kernel rule at a time.

use netpath::model::link::{InetConf, LinkKind, PortState, Vxlan};
use netpath::model::neigh::NeighState;
use netpath::model::netfilter::{ChainKind, Expr, Family, Hook, Table};
use netpath::model::rule::Rule;
use netpath::model::xtables::{RareTarget, XtTarget};
use netpath::model::{NsKey, Section};
use netpath::simulate::Outcome;
use netpath::trace::{Disposition, DropReason, Evidence, RejectWith, Trace};

use crate::tables::{chain, table, with};
use crate::world::{World, index, ip, mac};

fn only(outcome: &Outcome) -> &Trace {
    assert_eq!(outcome.traces.len(), 1, "{outcome:#?}");
    &outcome.traces[0]
}

fn ends(outcome: &Outcome, wanted: &Disposition) {
    let trace = only(outcome);
    assert_eq!(trace.outcome(), wanted, "{trace:#?}");
}

/// Two pods on a bridge of one node.
pub fn bridged() -> (World, NsKey, NsKey, NsKey) {
    let mut world = World::new();
    let host = world.ns("n1", 1, true);
    let (a, b) = (world.ns("n1", 2, false), world.ns("n1", 3, false));
    for (pod, port, addr) in [(&a, 12, "10.244.1.7"), (&b, 13, "10.244.1.9")] {
        world.veth((pod, 2, "eth0"), (&host, port, &format!("veth{port}")));
        world.addr(pod, 2, addr, 24);
        world.route(pod, "0.0.0.0/0", "10.244.1.1", 2);
        world.listen(pod, 6, "::", 8080);
    }
    world.bridge(&host, 4, "cni0", &[12, 13]);
    world.addr(&host, 4, "10.244.1.1", 24);
    (world, host, a, b)
}

/// The second node of [`bridged`]'s kind, joined by an underlay that is out of view.
pub fn two_nodes() -> (World, [NsKey; 2], [NsKey; 2]) {
    let mut world = World::new();
    let hosts = [world.ns("n1", 1, true), world.ns("n2", 5, true)];
    let pods = [world.ns("n1", 2, false), world.ns("n2", 6, false)];
    for node in 0..2 {
        let (host, pod) = (&hosts[node], &pods[node]);
        let (own, other) = (node + 1, 2 - node);
        world.veth((pod, 2, "eth0"), (host, 12, "veth12"));
        world.addr(pod, 2, &format!("10.244.{own}.7"), 24);
        world.route(pod, "0.0.0.0/0", &format!("10.244.{own}.1"), 2);
        world.listen(pod, 6, "0.0.0.0", 8080);
        world.bridge(host, 4, "cni0", &[12]);
        world.addr(host, 4, &format!("10.244.{own}.1"), 24);
        world.link(host, 3, "eth0", LinkKind::Device, |_| {});
        world.addr(host, 3, &format!("10.88.0.1{own}"), 24);
        world.route(
            host,
            &format!("10.244.{other}.0/24"),
            &format!("10.88.0.1{other}"),
            3,
        );
    }
    (world, hosts, pods)
}

#[test]
fn two_pods_on_one_bridge_talk() {
    let (world, host, a, b) = bridged();
    let outcome = world.tcp(&a, "10.244.1.9", 8080);
    ends(&outcome, &Disposition::Delivered);
    let trace = only(&outcome);
    let places: Vec<&NsKey> = trace.hops.iter().map(|hop| &hop.ns).collect();
    assert_eq!(places, [&a, &host, &b]);
    assert_eq!(trace.hops[0].packet.src, ip("10.244.1.7"));
    assert_eq!(trace.hops[1].iif.as_deref(), Some("veth12"));
    assert_eq!(trace.hops[1].oif.as_deref(), Some("veth13"));
    assert!(outcome.wants.is_empty(), "{:?}", outcome.wants);
}

#[test]
fn a_closed_port_is_refused_and_a_listener_on_localhost_does_not_help() {
    let (mut world, _, a, b) = bridged();
    ends(
        &world.tcp(&a, "10.244.1.9", 81),
        &Disposition::Rejected(RejectWith::PortClosed),
    );
    world.listen(&b, 6, "127.0.0.1", 81);
    ends(
        &world.tcp(&a, "10.244.1.9", 81),
        &Disposition::Rejected(RejectWith::PortClosed),
    );
}

#[test]
fn an_address_that_nobody_has_ends_at_the_neighbour() {
    let (world, _, a, _) = bridged();
    ends(
        &world.tcp(&a, "10.244.1.99", 8080),
        &Disposition::Rejected(RejectWith::HostUnreachable),
    );
}

/// However rules fork, one question has a bounded number of ways, over all packets of its exchange.
#[test]
fn ways_are_bounded_over_the_whole_exchange() {
    use netpath::model::netfilter::{
        BaseChain, Chain, ChainKind, Expr, Hook, Policy, Rule, Ruleset,
    };
    use netpath::model::xtables::{Statistic, XtMatch, XtTarget};
    let (mut world, _, a, b) = bridged();
    let fork = |handle: u64| Rule {
        handle,
        exprs: vec![
            Expr::Match(XtMatch::Statistic(Statistic::Random {
                probability: 1 << 30,
                invert: false,
            })),
            Expr::Target(XtTarget::Mark {
                mark: 1 << handle,
                mask: 1 << handle,
            }),
        ],
        comment: None,
    };
    let chain = Chain {
        name: "c".to_owned(),
        handle: 1,
        base: Some(BaseChain {
            hook: Hook::Input,
            priority: 0,
            kind: ChainKind::Filter,
            policy: Policy::Accept,
            devices: Vec::new(),
            counters: None,
        }),
        rules: Section::Known((0..8).map(fork).collect()),
        sieved: None,
        comment: None,
        bound: false,
    };
    let table = table(chain);
    for ns in [&a, &b] {
        world.get(ns).nft = Section::Known(Ruleset {
            generation: Some(1),
            tables: vec![table.clone()],
        });
    }
    let outcome = world.tcp(&a, "10.244.1.9", 8080);
    let limit = netpath::simulate::Limits::default().branches;
    assert!(
        outcome.traces.len() <= 2 * limit,
        "{}",
        outcome.traces.len()
    );
    let total: f64 = outcome.traces.iter().map(|trace| trace.probability).sum();
    assert!((total - 1.0).abs() < 1e-6, "{total}");
}

/// Rules of legacy arptables and ebtables are not read: where they may decide, that is said.
#[test]
fn tables_that_are_not_read_are_named() {
    let (mut world, host, a, b) = bridged();
    let ask = |world: &World| world.tcp(&a, "10.244.1.9", 8080).traces.remove(0);
    assert!(ask(&world).works());
    world.get(&b).unread_tables = Section::Known(vec!["arp filter".to_owned()]);
    let trace = ask(&world);
    let Disposition::Inconclusive(why) = trace.disposition else {
        panic!("{trace:?}");
    };
    assert!(why[0].contains("arptables"), "{why:?}");
    // An entry needs no question, there or back.
    world.neigh(&a, 2, "10.244.1.9", mac(3, 2));
    world.neigh(&b, 2, "10.244.1.7", mac(2, 2));
    assert!(ask(&world).works());
    world.get(&host).unread_tables = Section::Known(vec!["ebtable_filter".to_owned()]);
    let trace = ask(&world);
    assert!(trace.works());
    let mut steps = trace.hops.iter().flat_map(|hop| &hop.steps);
    let told = |evidence: &Evidence| matches!(evidence, Evidence::Assumed { why } if why.contains("ebtable_filter"));
    assert!(steps.any(|step| step.evidence.iter().any(told)));
}

#[test]
fn a_port_that_does_not_forward_and_a_device_that_is_down_drop() {
    let (mut world, host, a, _) = bridged();
    world.neigh(&a, 2, "10.244.1.9", mac(3, 2));
    world.change(&host, 12, |link| {
        if let Some(port) = &mut link.port {
            port.state = PortState::Blocking;
        }
    });
    ends(
        &world.tcp(&a, "10.244.1.9", 8080),
        &Disposition::Dropped(DropReason::BridgePortState),
    );
    let (mut world, host, a, _) = bridged();
    world.neigh(&a, 2, "10.244.1.9", mac(3, 2));
    world.change(&host, 13, |link| link.up = false);
    ends(
        &world.tcp(&a, "10.244.1.9", 8080),
        &Disposition::Dropped(DropReason::BridgeNoPort),
    );
}

/// All answers to echoes of IPv6 are looked up by the device that the request came in by (`icmpv6_echo_reply()`).
#[test]
fn echoes_are_answered_by_the_device_that_they_came_in_by() {
    let mut world = World::new();
    let (a, b) = (world.ns("n1", 1, true), world.ns("n1", 2, false));
    for dev in [2, 3] {
        world.veth((&a, dev, &format!("a{dev}")), (&b, dev, &format!("b{dev}")));
        world.addr(&b, dev, &format!("fd00::1{dev}"), 64);
    }
    world.addr(&a, 3, "fd00::1", 64);
    let flow = netpath::simulate::Flow {
        from: a,
        src: None,
        sport: Some(7),
        dst: ip("fd00::13"),
        dport: None,
        protocol: 58,
        len: 48,
        uid: Some(0),
        gid: Some(0),
        bound: None,
    };
    let limits = netpath::simulate::Limits::default();
    let outcome = netpath::simulate::simulate(&world.topology, &flow, &limits);
    let mut next = outcome.traces.first();
    for number in 0..4 {
        let packet = next.unwrap_or_else(|| panic!("no packet {number}: {outcome:#?}"));
        assert_eq!(
            packet.disposition,
            Disposition::Delivered,
            "packet {number}"
        );
        next = packet.reply.as_deref();
    }
}

#[test]
fn isolated_ports_do_not_talk() {
    let (mut world, host, a, _) = bridged();
    for port in [12, 13] {
        world.change(&host, port, |link| {
            if let Some(port) = &mut link.port {
                port.isolated = true;
            }
        });
    }
    world.neigh(&a, 2, "10.244.1.9", mac(3, 2));
    ends(
        &world.tcp(&a, "10.244.1.9", 8080),
        &Disposition::Dropped(DropReason::BridgeIsolated),
    );
}

#[test]
fn the_way_between_nodes_is_assumed_and_said_so() {
    let (world, _, pods) = two_nodes();
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    ends(&outcome, &Disposition::Delivered);
    assert_eq!(only(&outcome).hops.len(), 4);
    let text = format!("{:?}", only(&outcome));
    assert!(text.contains("Assumed"), "{text}");
}

#[test]
fn forwarding_off_a_missing_route_and_a_missing_way_back_are_told_apart() {
    let (mut world, hosts, pods) = two_nodes();
    world.change(&hosts[1], 3, |link| link.inet = Some(InetConf::default()));
    ends(
        &world.tcp(&pods[0], "10.244.2.7", 8080),
        &Disposition::Dropped(DropReason::ForwardingOff),
    );

    let (mut world, hosts, pods) = two_nodes();
    world
        .get(&hosts[0])
        .routes
        .known_mut()
        .expect("routes")
        .retain(|r| r.dst.addr() != ip("10.244.2.0"));
    ends(
        &world.tcp(&pods[0], "10.244.2.7", 8080),
        &Disposition::Rejected(RejectWith::NetUnreachable),
    );

    let (mut world, hosts, pods) = two_nodes();
    world
        .get(&hosts[1])
        .routes
        .known_mut()
        .expect("routes")
        .retain(|r| r.dst.addr() != ip("10.244.1.0"));
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    let trace = only(&outcome);
    assert_eq!(trace.disposition, Disposition::Delivered, "{trace:#?}");
    let reply = trace.reply.as_ref().expect("an answer");
    assert_eq!(
        reply.disposition,
        Disposition::Rejected(RejectWith::NetUnreachable)
    );
    assert!(!trace.works());
}

#[test]
fn strict_reverse_path_filtering_needs_the_way_back_by_the_same_device() {
    let (mut world, hosts, pods) = two_nodes();
    world.change(&hosts[1], 3, |link| {
        if let Some(conf) = &mut link.inet {
            conf.rp_filter = 1;
        }
    });
    ends(
        &world.tcp(&pods[0], "10.244.2.7", 8080),
        &Disposition::Delivered,
    );
    // The way back leaves by another device.
    world.link(&hosts[1], 9, "eth1", LinkKind::Device, |_| {});
    world.addr(&hosts[1], 9, "10.99.0.1", 24);
    let routes = world.get(&hosts[1]).routes.known_mut().expect("routes");
    routes.retain(|route| route.dst.addr() != ip("10.244.1.0"));
    world.route(&hosts[1], "10.244.1.0/24", "10.99.0.2", 9);
    ends(
        &world.tcp(&pods[0], "10.244.2.7", 8080),
        &Disposition::Dropped(DropReason::IpRpfilter),
    );
    world.change(&hosts[1], 3, |link| {
        if let Some(conf) = &mut link.inet {
            conf.rp_filter = 2;
        }
    });
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    assert_eq!(only(&outcome).disposition, Disposition::Delivered);
}

#[test]
fn routes_that_point_at_each_other_are_a_loop() {
    let (mut world, hosts, pods) = two_nodes();
    for (node, other) in [(0, 2), (1, 1)] {
        world.route(
            &hosts[node],
            "10.200.0.0/16",
            &format!("10.88.0.1{other}"),
            3,
        );
    }
    ends(&world.tcp(&pods[0], "10.200.0.1", 80), &Disposition::Loop);
}

#[test]
fn an_address_of_nobody_leaves_the_cluster() {
    let (mut world, hosts, pods) = two_nodes();
    world.route(&hosts[0], "0.0.0.0/0", "10.88.0.1", 3);
    ends(
        &world.tcp(&pods[0], "198.51.100.1", 80),
        &Disposition::LeavesCluster,
    );
}

/// [`two_nodes`] with flannel's VXLAN between them.
pub fn overlay() -> (World, [NsKey; 2], [NsKey; 2]) {
    let (mut world, hosts, pods) = two_nodes();
    for node in 0..2 {
        let (host, own, other) = (&hosts[node], node + 1, 2 - node);
        let routes = world.get(host).routes.known_mut().expect("routes");
        routes.retain(|route| route.dst.addr() != ip(&format!("10.244.{other}.0")));
        let vxlan = Vxlan {
            vni: 1,
            local: Some(ip(&format!("10.88.0.1{own}"))),
            port: 8472,
            ..Vxlan::default()
        };
        world.link(host, 7, "flannel.1", LinkKind::Vxlan(vxlan), |link| {
            link.mtu = 1450;
        });
        world.addr(host, 7, &format!("10.244.{own}.0"), 32);
        world.route(
            host,
            &format!("10.244.{other}.0/24"),
            &format!("10.244.{other}.0"),
            7,
        );
        let remote = mac(hosts[1 - node].netns.ino, 7);
        world.neigh(host, 7, &format!("10.244.{other}.0"), remote);
        world.fdb(host, 7, remote, &format!("10.88.0.1{other}"));
    }
    (world, hosts, pods)
}

#[test]
fn a_vxlan_overlay_carries_the_packet_and_its_answer() {
    let (world, _, pods) = overlay();
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    ends(&outcome, &Disposition::Delivered);
    let text = format!("{:?}", only(&outcome));
    assert!(text.contains("Encap") && text.contains("Decap"), "{text}");
}

#[test]
fn stale_tunnel_entries_are_found_where_they_act() {
    let (mut world, hosts, pods) = overlay();
    world.get(&hosts[0]).fdb.known_mut().expect("fdb").clear();
    ends(
        &world.tcp(&pods[0], "10.244.2.7", 8080),
        &Disposition::Dropped(DropReason::VxlanNoRemote),
    );

    let (mut world, hosts, pods) = overlay();
    let stale = mac(99, 7);
    world
        .get(&hosts[0])
        .neighs
        .known_mut()
        .expect("neighs")
        .clear();
    world.neigh(&hosts[0], 7, "10.244.2.0", stale);
    world.fdb(&hosts[0], 7, stale, "10.88.0.12");
    ends(
        &world.tcp(&pods[0], "10.244.2.7", 8080),
        &Disposition::Dropped(DropReason::Otherhost),
    );
}

#[test]
fn an_address_between_nodes_that_nobody_has_is_not_judged_but_where_it_was_set_by_hand() {
    let (mut world, hosts, pods) = two_nodes();
    world.neigh(&hosts[0], 3, "10.88.0.12", mac(99, 3));
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    ends(&outcome, &Disposition::Dropped(DropReason::Otherhost));
    let (_, step) = only(&outcome).last_step().expect("a step");
    let entry = |one: &Evidence| matches!(one, Evidence::Neigh { .. });
    assert!(step.evidence.iter().any(entry), "{step:?}");
    // A router or ARP proxy may have answered.
    let neighs = world.get(&hosts[0]).neighs.known_mut().expect("neighs");
    neighs.last_mut().expect("the entry").state = NeighState::Reachable;
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    let Disposition::Inconclusive(why) = &only(&outcome).disposition else {
        panic!("{outcome:?}");
    };
    assert!(why[0].contains("router or ARP proxy"), "{why:?}");
}

#[test]
fn the_rule_of_table_local_is_named() {
    let (world, _, pods) = two_nodes();
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    let rules = only(&outcome).steps().flat_map(|(_, step)| &step.evidence);
    let rules = rules.filter_map(|one| match one {
        Evidence::PolicyRule { rule } => Some(rule.priority),
        _ => None,
    });
    // Pod and two nodes on the way there lead it on; in the pod it is local.
    assert_eq!(rules.collect::<Vec<_>>(), [32_766, 32_766, 32_766, 0]);
}

#[test]
fn what_a_rule_writes_into_a_header_is_a_step_of_its_own() {
    let (mut world, hosts, pods) = two_nodes();
    let one = XtTarget::Rare(Box::new(RareTarget::Ttl {
        mode: 0,
        value: 1,
        v6: false,
    }));
    let rule = chain(Hook::Prerouting, vec![Expr::Target(one)]);
    let family = Family::Ip;
    with(&mut world, &hosts[0], Table { family, ..rule });
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    ends(&outcome, &Disposition::Rejected(RejectWith::TtlExceeded));
    let mut steps = only(&outcome).steps();
    let written = steps.find(|(_, step)| step.result == "ttl 64 → 1");
    let (hop, step) = written.expect("a step");
    assert_eq!(hop.ns, hosts[0]);
    assert!(
        step.evidence.iter().any(|one| one.rule().is_some()),
        "{step:?}"
    );
}

#[test]
fn another_network_number_is_named_beside_those_that_are_there() {
    let (mut world, hosts, pods) = overlay();
    let links = world.get(&hosts[1]).links.known_mut().expect("links");
    for link in links {
        if let LinkKind::Vxlan(vxlan) = &mut link.kind {
            vxlan.vni = 9;
        }
    }
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    ends(
        &outcome,
        &Disposition::Dropped(DropReason::VxlanVniNotFound),
    );
    let text = format!("{:?}", only(&outcome));
    for part in ["with vni 1 on udp port 8472", "vni 9 dstport 8472"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn a_tunnel_whose_remote_is_behind_itself_ends() {
    let (mut world, hosts, pods) = overlay();
    world.route(&hosts[0], "10.88.0.12/32", "10.244.2.0", 7);
    ends(&world.tcp(&pods[0], "10.244.2.7", 8080), &Disposition::Loop);

    // By way of another tunnel, and back.
    let (mut world, hosts, pods) = overlay();
    let other = Vxlan {
        vni: 2,
        local: Some(ip("10.88.0.11")),
        port: 4789,
        ..Vxlan::default()
    };
    world.link(&hosts[0], 8, "other", LinkKind::Vxlan(other), |_| {});
    world.route(&hosts[0], "10.88.0.12/32", "10.99.0.1", 8);
    world.neigh(&hosts[0], 8, "10.99.0.1", mac(99, 1));
    world.fdb(&hosts[0], 8, mac(99, 1), "10.88.0.99");
    world.route(&hosts[0], "10.88.0.99/32", "10.244.2.0", 7);
    ends(&world.tcp(&pods[0], "10.244.2.7", 8080), &Disposition::Loop);
}

#[test]
fn what_was_not_read_is_asked_for_and_what_cant_be_read_is_named() {
    let (mut world, host, a, _) = bridged();
    world.get(&host).fdb = Section::Missing("dump fdb: EPERM".to_owned());
    let outcome = world.tcp(&a, "10.244.1.9", 8080);
    let Disposition::Inconclusive(missing) = &only(&outcome).disposition else {
        panic!("{outcome:#?}");
    };
    assert!(missing[0].contains("EPERM"), "{missing:?}");

    let (mut world, _, a, b) = bridged();
    let node = world.topology.nodes.get_mut("n1").expect("the node");
    node.netns.remove(&b.netns);
    let outcome = world.tcp(&a, "10.244.1.9", 8080);
    assert!(
        matches!(only(&outcome).disposition, Disposition::Inconclusive(_)),
        "{outcome:#?}"
    );
    assert!(!outcome.wants.is_empty());
}

#[test]
fn localhost_and_own_addresses_stay_inside() {
    let (world, _, a, _) = bridged();
    for dst in ["127.0.0.1", "10.244.1.7"] {
        let outcome = world.tcp(&a, dst, 8080);
        ends(&outcome, &Disposition::Delivered);
        assert_eq!(only(&outcome).hops.len(), 1);
    }
}

/// What `/proc/net` does not tell of a socket is unknown where it decides, and only there.
#[test]
fn what_was_not_read_of_a_socket_is_named() {
    let (mut world, _, a, b) = bridged();
    let change = |world: &mut World, addr: &str, v6only: Option<bool>, unread: bool| {
        let sockets = world.get(&b).sockets.known_mut().expect("sockets");
        sockets.retain(|socket| socket.port != 82);
        world.listen(&b, 6, addr, 82);
        let sockets = world.get(&b).sockets.known_mut().expect("sockets");
        let socket = sockets.last_mut().expect("a socket");
        socket.v6only = v6only;
        socket.bound_dev_unread = unread;
    };
    let ask = |world: &World| {
        let outcome = world.tcp(&a, "10.244.1.9", 82);
        let trace = &outcome.traces[0];
        let (_, step) = trace.last_step().expect("a step");
        let assumed = step.evidence.iter().find_map(|evidence| match evidence {
            Evidence::Assumed { why } => Some(why.clone()),
            _ => None,
        });
        format!(
            "{} {}",
            trace.disposition.name(),
            assumed.unwrap_or_default()
        )
    };
    change(&mut world, "::", Some(false), false);
    assert_eq!(ask(&world), "delivered ");
    change(&mut world, "::", Some(true), false);
    assert_eq!(ask(&world), "rejected ");
    change(&mut world, "::", None, false);
    let said = ask(&world);
    assert!(
        said.starts_with("delivered") && said.contains("IPV6_V6ONLY"),
        "{said}"
    );
    change(&mut world, "0.0.0.0", Some(false), true);
    let said = ask(&world);
    assert!(
        said.starts_with("delivered") && said.contains("modprobe"),
        "{said}"
    );
    // Another address: whatever its device, it is not for this packet.
    change(&mut world, "10.244.1.77", Some(false), true);
    assert_eq!(ask(&world), "rejected ");
    // Another socket takes it anyway.
    change(&mut world, "::", None, true);
    world.listen(&b, 6, "0.0.0.0", 82);
    assert_eq!(ask(&world), "delivered ");
}

/// An ICMP error has the packet that it is about inside, and is no tunnel for all that.
#[test]
fn an_icmp_error_with_a_quote_reaches_its_host() {
    use netpath::model::packet::{Inner, L4, Packet, Wrap};
    use netpath::simulate::{Limits, Sent, send};
    let (world, _, pods) = two_nodes();
    let packet = |src: &str, dst: &str, l4: L4, inner: Option<Packet>| Packet {
        df: false,
        len: 56,
        inner: inner.map(|packet| {
            Box::new(Inner {
                vni: None,
                wrap: Wrap::Plain,
                packet,
            })
        }),
        ..Packet::new(ip(src), ip(dst), l4)
    };
    let udp = L4::Udp {
        sport: Some(1000),
        dport: Some(53),
    };
    let unreachable = L4::Icmp {
        kind: 3,
        code: 3,
        id: None,
    };
    let quote = packet("10.244.2.7", "10.244.1.7", udp, None);
    let sent = Sent {
        from: pods[0].clone(),
        packet: packet("10.244.1.7", "10.244.2.7", unreachable, Some(quote)),
        mark: 0,
        uid: Some(0),
        gid: Some(0),
        kernel: false,
        raw: true,
        untied: false,
        bound: None,
    };
    let outcome = send(&world.topology, &sent, &Limits::default());
    assert_eq!(
        only(&outcome).disposition,
        Disposition::Delivered,
        "{outcome:#?}"
    );
}

/// Of a device's addresses, masquerading takes one of the subnet of the next hop, which is that of the packet's own route
/// (`rt_nexthop(skb_rtable(skb))`).
#[test]
fn masquerading_goes_by_the_packets_own_route() {
    let mut world = World::new();
    let [router, host, other] = [1, 2, 3].map(|ino| world.ns("n1", ino, ino == 1));
    world.veth((&host, 2, "eth0"), (&router, 2, "p1"));
    world.veth((&other, 2, "eth0"), (&router, 3, "p2"));
    world.addr(&host, 2, "10.0.1.2", 24);
    world.route(&host, "0.0.0.0/0", "10.0.1.1", 2);
    world.addr(&router, 2, "10.0.1.1", 24);
    for own in ["10.1.0.1", "10.2.0.1"] {
        world.addr(&router, 3, own, 24);
    }
    world.addr(&other, 2, "10.2.0.9", 24);
    world.addr(&other, 2, "10.9.0.5", 32);
    world.listen(&other, 6, "0.0.0.0", 80);
    world.route(&router, "10.9.0.0/16", "10.1.0.9", 3);
    world.route(&router, "10.9.0.0/16", "10.2.0.9", 3);
    let ns = world.get(&router);
    let routes = ns.routes.known_mut().expect("routes");
    routes.last_mut().expect("the last").table = 200;
    let rule = Rule {
        iif: Some("p1".to_owned()),
        ..Rule::bare(false, 500, 200)
    };
    ns.rules.known_mut().expect("rules").push(rule);
    let masq = Expr::Masq {
        proto_min: None,
        proto_max: None,
        flags: 0,
    };
    let mut table = Table {
        family: Family::Ip,
        ..chain(Hook::Postrouting, vec![masq])
    };
    let base = table
        .chains
        .values_mut()
        .filter_map(|own| own.base.as_mut());
    base.for_each(|base| base.kind = ChainKind::Nat);
    with(&mut world, &router, table);
    let outcome = world.tcp(&host, "10.9.0.5", 80);
    let mut taps = outcome.traces[0].hops.iter().flat_map(|hop| &hop.taps);
    let beyond = taps.find(|tap| tap.dev == "p2");
    assert_eq!(
        beyond.map(|tap| tap.packet.src),
        Some(ip("10.2.0.1")),
        "{outcome:#?}"
    );
    assert_eq!(outcome.traces[0].disposition, Disposition::Delivered);
}

/// A socket of the address is asked before one of any, also where that is bound to the device (`__inet_lookup_listener()`).
#[test]
fn the_socket_of_the_address_comes_first() {
    let (mut world, _, pods) = two_nodes();
    let own = &mut world.get(&pods[1]).sockets;
    own.known_mut().expect("sockets").clear();
    for (addr, dev, uid) in [("0.0.0.0", Some(index(2)), 7), ("10.244.2.7", None, 8)] {
        world.listen(&pods[1], 6, addr, 8080);
        let own = world.get(&pods[1]).sockets.known_mut().expect("sockets");
        let own = own.last_mut().expect("the last");
        (own.bound_dev, own.uid) = (dev, uid);
    }
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    let steps = outcome.traces[0].hops.iter().flat_map(|hop| &hop.steps);
    let taken = steps
        .flat_map(|step| &step.evidence)
        .find_map(|one| match one {
            Evidence::Socket { socket } => Some(socket.uid),
            _ => None,
        });
    assert_eq!(taken, Some(8), "{outcome:#?}");
}
