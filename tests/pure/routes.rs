//! Route lookups, one rule of the kernel at a time: what the FIB oracle (`tests/lab/tests/fib`) found.

use netpath::model::link::{IpTunnel, IpTunnelKind, LinkKind};
use netpath::model::packet::{L4, Packet};
use netpath::model::route::{RT_TABLE_LOCAL, RT_TABLE_MAIN, Route, RouteKind};
use netpath::model::rule::{Rule, RuleAction};
use netpath::model::{IfIndex, NsKey};
use netpath::simulate::{Onward, Prepared, Routed, Sent};
use netpath::trace::{Disposition, DropReason, RejectWith};

use crate::walks::two_nodes;
use crate::world::{World, index, ip};

/// A namespace with two devices: 10.1.0.1 and fd01::1 behind 2, 10.2.0.1 and fd02::1 behind 3.
fn host() -> (World, NsKey) {
    let mut world = World::new();
    let ns = world.ns("n1", 1, true);
    for dev in [2, 3] {
        world.link(&ns, dev, &format!("eth{dev}"), LinkKind::Device, |_| {});
        world.addr(&ns, dev, &format!("10.{}.0.1", dev - 1), 24);
        world.addr(&ns, dev, &format!("fd0{}::1", dev - 1), 64);
    }
    (world, ns)
}

fn packet(src: &str, dst: &str) -> Packet {
    Packet {
        eth: None,
        src: ip(src),
        dst: ip(dst),
        ttl: 64,
        tos: 0,
        df: true,
        len: 60,
        l4: L4::Udp {
            sport: Some(1000),
            dport: Some(53),
        },
        inner: None,
    }
}

fn ask(world: &World, ns: &NsKey, packet: Packet, iif: Option<u32>, oif: Option<u32>) -> Routed {
    let sent = Sent {
        from: ns.clone(),
        packet,
        mark: 0,
        uid: Some(1000),
        gid: Some(0),
    };
    let mut prepared = Prepared::new(&world.topology);
    let ways = prepared.route(&sent, iif.map(index), oif.map(index));
    assert_eq!(ways.len(), 1, "{ways:#?}");
    ways[0].clone()
}

fn out(oif: u32, via: Option<&str>) -> Onward {
    Onward::Out {
        oif: IfIndex::new(oif).expect("not 0"),
        via: via.map(ip),
    }
}

fn refused(with: RejectWith) -> Onward {
    Onward::End(Disposition::Rejected(with))
}

/// A route without a next hop, or the last one changed.
fn change(world: &mut World, ns: &NsKey, change: impl Fn(&mut Route)) {
    let routes = world.get(ns).routes.known_mut().expect("routes");
    change(routes.last_mut().expect("a route"));
}

fn kind(world: &mut World, ns: &NsKey, dst: &str, kind: RouteKind) {
    world.route(ns, dst, "10.1.0.9", 2);
    change(world, ns, |route| {
        route.kind = kind;
        if kind != RouteKind::Local {
            route.nexthops.clear();
        }
    });
}

fn rule(world: &mut World, ns: &NsKey, v6: bool, change: impl Fn(&mut Rule)) {
    let rules = world.get(ns).rules.known_mut().expect("rules");
    let mut rule = rules[0].clone();
    rule.v6 = v6;
    rule.priority = 100;
    rule.action = RuleAction::Table(100);
    change(&mut rule);
    rules.push(rule);
}

#[test]
fn what_refuses_is_not_suppressed() {
    let (mut world, ns) = host();
    world.route(&ns, "0.0.0.0/0", "10.1.0.9", 2);
    kind(&mut world, &ns, "10.0.0.0/8", RouteKind::Prohibit);
    change(&mut world, &ns, |route| route.table = 100);
    rule(&mut world, &ns, false, |rule| {
        rule.suppress_prefixlen = Some(8);
    });
    let routed = ask(&world, &ns, packet("0.0.0.0", "10.9.0.1"), None, None);
    assert_eq!(routed.next, refused(RejectWith::Prohibited));
}

#[test]
fn a_rule_that_says_unreachable_means_no_network() {
    let (mut world, ns) = host();
    rule(&mut world, &ns, false, |rule| {
        rule.action = RuleAction::Unreachable;
    });
    let routed = ask(&world, &ns, packet("0.0.0.0", "10.9.0.1"), None, None);
    assert_eq!(routed.next, refused(RejectWith::NetUnreachable));
}

#[test]
fn a_rules_from_takes_an_unset_source_of_ipv4_for_zero() {
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/24", "10.2.0.9", 3);
    change(&mut world, &ns, |route| route.table = 100);
    rule(&mut world, &ns, false, |rule| {
        rule.src = Some("0.0.0.0/1".parse().expect("a prefix"));
    });
    let routed = ask(&world, &ns, packet("0.0.0.0", "10.9.0.1"), None, None);
    assert_eq!(routed.next, out(3, Some("10.2.0.9")));
}

#[test]
fn what_comes_in_is_looked_up_as_roots() {
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/24", "10.2.0.9", 3);
    change(&mut world, &ns, |route| route.table = 100);
    rule(&mut world, &ns, false, |rule| rule.uid = Some((0, 0)));
    let come = ask(&world, &ns, packet("10.1.0.7", "10.9.0.1"), Some(2), None);
    assert_eq!(come.next, out(3, Some("10.2.0.9")));
    let sent = ask(&world, &ns, packet("0.0.0.0", "10.9.0.1"), None, None);
    assert_eq!(sent.next, refused(RejectWith::NetUnreachable));
}

#[test]
fn a_rules_tos_sees_three_bits_and_its_dscp_six() {
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/24", "10.2.0.9", 3);
    change(&mut world, &ns, |route| route.table = 100);
    rule(&mut world, &ns, false, |rule| rule.tos = 0x10);
    let mut sent = packet("0.0.0.0", "10.9.0.1");
    // CS1 and ECN beside it.
    sent.tos = 0x33;
    assert_eq!(
        ask(&world, &ns, sent.clone(), None, None).next,
        out(3, Some("10.2.0.9"))
    );
    let rules = world.get(&ns).rules.known_mut().expect("rules");
    rules.last_mut().expect("a rule").dscp = true;
    assert_eq!(
        ask(&world, &ns, sent, None, None).next,
        refused(RejectWith::NetUnreachable)
    );
}

#[test]
fn a_bound_socket_of_ipv4_takes_all_to_be_on_its_link() {
    let (mut world, ns) = host();
    kind(&mut world, &ns, "10.9.0.0/24", RouteKind::Blackhole);
    let routed = ask(&world, &ns, packet("0.0.0.0", "10.9.0.1"), None, Some(3));
    assert_eq!(routed.next, out(3, None));
    assert_eq!(routed.src, ip("10.2.0.1"));
}

#[test]
fn a_nexthop_object_without_a_way_hides_shorter_prefixes_that_begin_alike() {
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/16", "10.2.0.9", 3);
    world.route(&ns, "10.9.0.0/24", "10.1.0.9", 2);
    let bound = |world: &World| ask(world, &ns, packet("0.0.0.0", "10.9.0.1"), None, Some(3)).next;
    assert_eq!(bound(&world), out(3, Some("10.2.0.9")));
    change(&mut world, &ns, |route| route.nh_id = Some(5));
    assert_eq!(bound(&world), out(3, None));
}

#[test]
fn a_bound_socket_of_ipv6_does_not_see_routes_that_refuse() {
    let (mut world, ns) = host();
    world.route(&ns, "fd09::/16", "fd02::9", 3);
    kind(&mut world, &ns, "fd09::/64", RouteKind::Prohibit);
    let routed = ask(&world, &ns, packet("::", "fd09::1"), None, Some(3));
    assert_eq!(routed.next, out(3, Some("fd02::9")));
    let routed = ask(&world, &ns, packet("::", "fd09::1"), None, None);
    assert_eq!(routed.next, refused(RejectWith::Prohibited));
}

#[test]
fn routes_for_a_source_hide_those_for_any_at_their_prefix() {
    let (mut world, ns) = host();
    world.route(&ns, "fd00::/8", "fd01::9", 2);
    world.route(&ns, "fd09::/64", "fd01::8", 2);
    world.route(&ns, "fd09::/64", "fd02::9", 3);
    change(&mut world, &ns, |route| {
        route.src = Some("fd02::/64".parse().expect("a prefix"));
    });
    let from = |src: &str| ask(&world, &ns, packet(src, "fd09::1"), None, None).next;
    assert_eq!(from("fd02::1"), out(3, Some("fd02::9")));
    assert_eq!(from("fd01::1"), out(2, Some("fd01::9")));
}

#[test]
fn a_source_in_a_local_route_of_ones_own_is_refused_without_rp_filter() {
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/24", "10.2.0.9", 3);
    let come = packet("10.7.0.1", "10.9.0.1");
    assert_eq!(
        ask(&world, &ns, come.clone(), Some(2), None).next,
        out(3, Some("10.2.0.9"))
    );
    kind(&mut world, &ns, "10.7.0.0/16", RouteKind::Local);
    assert_eq!(
        ask(&world, &ns, come, Some(2), None).next,
        Onward::End(Disposition::Dropped(DropReason::IpLocalSource))
    );
}

#[test]
fn tables_local_and_main_are_one_until_a_rule_is_made() {
    let (mut world, ns) = host();
    kind(&mut world, &ns, "10.9.0.0/16", RouteKind::Local);
    change(&mut world, &ns, |route| route.table = RT_TABLE_LOCAL);
    world.route(&ns, "10.9.1.0/24", "10.2.0.9", 3);
    change(&mut world, &ns, |route| route.table = RT_TABLE_MAIN);
    let get = |world: &World| ask(world, &ns, packet("0.0.0.0", "10.9.1.1"), None, None).next;
    assert_eq!(get(&world), out(3, Some("10.2.0.9")));
    rule(&mut world, &ns, false, |_| {});
    assert_eq!(get(&world), Onward::Local);
}

/// [`two_nodes`] whose pods are reached by an IPIP device without a remote, as Calico has it.
fn ipip() -> (World, [NsKey; 2], [NsKey; 2]) {
    let (mut world, hosts, pods) = two_nodes();
    for (host, other) in [(&hosts[0], 2), (&hosts[1], 1)] {
        let tunnel = IpTunnel {
            kind: IpTunnelKind::Ipip,
            local: None,
            remote: None,
            lower: None,
            ttl: 0,
            tos: 1,
            pmtudisc: true,
            unknown: Vec::new(),
        };
        world.link(host, 7, "tunl0", LinkKind::IpTunnel(tunnel), |link| {
            link.mac = None;
            link.noarp = true;
            link.mtu = 1480;
        });
        let routes = world.get(host).routes.known_mut().expect("routes");
        let route = routes
            .iter_mut()
            .find(|route| route.dst.addr() == ip(&format!("10.244.{other}.0")));
        route.expect("the other node's pods").nexthops[0].link = Some(index(7));
    }
    (world, hosts, pods)
}

#[test]
fn ipip_without_a_remote_goes_to_the_next_hop() {
    let (world, _, pods) = ipip();
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    let trace = &outcome.traces[0];
    assert_eq!(*trace.outcome(), Disposition::Delivered, "{trace:#?}");
    let taps = trace.hops.iter().flat_map(|hop| &hop.taps);
    let outer: Vec<&Packet> = taps
        .map(|tap| &tap.packet)
        .filter(|packet| packet.inner.is_some())
        .collect();
    assert!(!outer.is_empty());
    for packet in outer {
        assert_eq!(
            (packet.src, packet.dst),
            (ip("10.88.0.11"), ip("10.88.0.12"))
        );
        // The TTL of the packet inside, which was forwarded once.
        assert_eq!((packet.ttl, packet.l4), (63, L4::Other(4)));
        assert_eq!(packet.len, 80);
    }
}

#[test]
fn a_tunnel_that_is_down_takes_nothing() {
    let (mut world, hosts, pods) = ipip();
    world.change(&hosts[1], 7, |link| link.up = false);
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    let end = outcome.traces[0].outcome();
    assert_eq!(*end, Disposition::Dropped(DropReason::DevReady));
}
