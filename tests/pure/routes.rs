//! Route lookups, one rule of the kernel at a time: what the FIB oracle (`tests/lab/tests/fib`) found.

use netpath::model::link::LinkKind;
use netpath::model::netfilter::{BaseChain, Chain, ChainKind, Expr, Hook, Policy, Ruleset, Table};
use netpath::model::packet::{L4, Packet};
use netpath::model::route::{RT_TABLE_LOCAL, RT_TABLE_MAIN, Route, RouteKind};
use netpath::model::rule::{Rule, RuleAction};
use netpath::model::xtables::XtTarget;
use netpath::model::{IfIndex, NsKey, Section};
use netpath::simulate::{Onward, Prepared, Routed, Sent};
use netpath::trace::{Disposition, DropReason, RejectWith};

use crate::tables::table;
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
    Packet::new(
        ip(src),
        ip(dst),
        L4::Udp {
            sport: Some(1000),
            dport: Some(53),
        },
    )
}

fn ask(world: &World, ns: &NsKey, packet: Packet, iif: Option<u32>, oif: Option<u32>) -> Routed {
    let ways = ways(world, ns, packet, iif, oif);
    assert_eq!(ways.len(), 1, "{ways:#?}");
    ways[0].clone()
}

fn ways(
    world: &World,
    ns: &NsKey,
    packet: Packet,
    iif: Option<u32>,
    oif: Option<u32>,
) -> Vec<Routed> {
    let sent = Sent {
        from: ns.clone(),
        packet,
        mark: 0,
        uid: Some(1000),
        gid: Some(0),
        kernel: false,
        raw: true,
        untied: false,
        bound: None,
    };
    let mut prepared = Prepared::new(&world.topology);
    prepared.route(&sent, iif.map(index), oif.map(index))
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
        if !matches!(kind, RouteKind::Local | RouteKind::Unicast) {
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

/// 32766 is the priority of the rule that leads to table main, but this one leads there from somewhere only.
#[test]
fn a_rule_of_ones_own_in_the_place_of_a_usual_one_is_asked() {
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/24", "10.2.0.9", 3);
    let from = |world: &World, src: &str| ask(world, &ns, packet(src, "10.9.0.1"), None, None).next;
    assert_eq!(from(&world, "10.1.0.1"), out(3, Some("10.2.0.9")));
    let own: [fn(&mut Rule); 4] = [
        |rule| rule.src = Some("10.2.0.0/16".parse().expect("a prefix")),
        |rule| rule.fwmark = Some((1, 1)),
        |rule| rule.suppress_prefixlen = Some(24),
        |rule| rule.invert = true,
    ];
    let usual = world.get(&ns).rules.known().cloned().expect("rules");
    for own in own {
        let mut rules = usual.clone();
        let main = rules.iter_mut().find(|rule| rule.priority == 32_766);
        own(main.expect("the rule"));
        world.get(&ns).rules = Section::Known(rules);
        assert_eq!(
            from(&world, "10.1.0.1"),
            refused(RejectWith::NetUnreachable)
        );
    }
    let mut rules = usual;
    let main = rules.iter_mut().find(|rule| rule.priority == 32_766);
    main.expect("the rule").unknown.push("news".to_owned());
    world.get(&ns).rules = Section::Known(rules);
    let Onward::End(Disposition::Inconclusive(_)) = from(&world, "10.1.0.1") else {
        panic!("known");
    };
}

/// IPv4 asks whether it forwards before it tells the sender anything; IPv6 tells of a route that refuses, or none.
#[test]
fn a_host_that_does_not_forward_refuses_in_ipv6_only() {
    let dropped = Onward::End(Disposition::Dropped(DropReason::ForwardingOff));
    for (kind_of, by_v6) in [
        (None, refused(RejectWith::NetUnreachable)),
        (Some(RouteKind::Unicast), dropped.clone()),
        (
            Some(RouteKind::Unreachable),
            refused(RejectWith::NetUnreachable),
        ),
        (Some(RouteKind::Prohibit), refused(RejectWith::Prohibited)),
        (
            Some(RouteKind::Blackhole),
            Onward::End(Disposition::Dropped(DropReason::IpInnoroutes)),
        ),
    ] {
        let (mut world, ns) = host();
        let sysctls = world.get(&ns).sysctls.known_mut().expect("settings");
        sysctls.inet6_all.known_mut().expect("of all").forwarding = false;
        world.change(&ns, 2, |link| {
            link.inet.as_mut().expect("of the device").forwarding = false;
        });
        for dst in ["10.9.0.0/24", "fd09::/64"] {
            if let Some(kind_of) = kind_of {
                kind(&mut world, &ns, dst, kind_of);
            }
        }
        let come = |src: &str, dst: &str| ask(&world, &ns, packet(src, dst), Some(2), None).next;
        assert_eq!(come("10.1.0.7", "10.9.0.1"), dropped, "IPv4 {kind_of:?}");
        assert_eq!(come("fd01::7", "fd09::1"), by_v6, "IPv6 {kind_of:?}");
    }
}

/// `__fib_validate_source()` looks the answer up, with the ports that an answer has.
#[test]
fn the_way_back_is_looked_up_with_ports_exchanged() {
    for (sport, dport, end) in [
        ((53, 53), (1000, 1000), Some(DropReason::IpRpfilter)),
        ((1000, 1000), (53, 53), None),
    ] {
        let (mut world, ns) = host();
        world.route(&ns, "10.9.0.0/24", "10.2.0.9", 3);
        world.change(&ns, 2, |link| {
            link.inet.as_mut().expect("of the device").rp_filter = 1;
        });
        rule(&mut world, &ns, false, |rule| {
            // Of the answers alone, to the sender.
            rule.dst = Some("10.1.0.7/32".parse().expect("a prefix"));
            (rule.sport, rule.dport) = (Some(sport), Some(dport));
            rule.action = RuleAction::Unreachable;
        });
        let come = ask(&world, &ns, packet("10.1.0.7", "10.9.0.1"), Some(2), None);
        let wanted = match end {
            Some(reason) => Onward::End(Disposition::Dropped(reason)),
            None => out(3, Some("10.2.0.9")),
        };
        assert_eq!(come.next, wanted, "sport {sport:?}");
    }
}

/// The way back is looked up for each next hop, as if the answer came in by that one's device (`__mkroute_input()`).
#[test]
fn each_next_hop_has_its_own_reverse_path() {
    let (mut world, ns) = host();
    world.link(&ns, 4, "eth4", LinkKind::Device, |_| {});
    world.addr(&ns, 4, "10.3.0.1", 24);
    world.route(&ns, "10.9.0.0/24", "10.2.0.9", 3);
    change(&mut world, &ns, |route| {
        let mut other = route.nexthops[0].clone();
        (other.via, other.link) = (Some(ip("10.3.0.9")), Some(index(4)));
        route.nexthops.push(other);
    });
    world.change(&ns, 2, |link| {
        link.inet.as_mut().expect("of the device").rp_filter = 1;
    });
    for (refused, left) in [(3, 4), (4, 3)] {
        let usual = world.get(&ns).rules.known().cloned().expect("rules");
        rule(&mut world, &ns, false, |rule| {
            rule.iif = Some(format!("eth{refused}"));
            rule.action = RuleAction::Unreachable;
        });
        let ways = ways(&world, &ns, packet("10.1.0.7", "10.9.0.1"), Some(2), None);
        let ends: Vec<_> = ways.into_iter().map(|way| way.next).collect();
        let dropped = Onward::End(Disposition::Dropped(DropReason::IpRpfilter));
        let gateway = format!("10.{}.0.9", left - 1);
        assert_eq!(ends.len(), 2);
        assert!(ends.contains(&dropped), "{ends:?}");
        assert!(ends.contains(&out(left, Some(&gateway))), "{ends:?}");
        world.get(&ns).rules = Section::Known(usual);
    }
}

#[test]
fn the_device_that_it_came_in_by_comes_before_others_of_one_metric_in_ipv6() {
    let (mut world, ns) = host();
    let come = |world: &World| {
        let come = packet("fd01::7", "fd09::1");
        ask(world, &ns, come, Some(2), None).next
    };
    kind(&mut world, &ns, "fd09::/64", RouteKind::Prohibit);
    world.route(&ns, "fd09::/64", "fd02::9", 3);
    assert_eq!(come(&world), refused(RejectWith::Prohibited));
    world.route(&ns, "fd09::/64", "fd01::9", 2);
    assert_eq!(come(&world), out(2, Some("fd01::9")));
    // The metric comes first, and the router preference before the device.
    change(&mut world, &ns, |route| route.metric = 1);
    assert_eq!(come(&world), refused(RejectWith::Prohibited));
    change(&mut world, &ns, |route| (route.metric, route.pref) = (0, 3));
    assert_eq!(come(&world), refused(RejectWith::Prohibited));
}

#[test]
fn a_nexthop_object_that_is_a_blackhole_ends_the_search_in_ipv6() {
    let (mut world, ns) = host();
    world.route(&ns, "fd09::/64", "fd01::9", 2);
    kind(&mut world, &ns, "fd09::/64", RouteKind::Blackhole);
    let get = |world: &World| ask(world, &ns, packet("fd01::1", "fd09::1"), None, None).next;
    assert_eq!(get(&world), out(2, Some("fd01::9")));
    change(&mut world, &ns, |route| route.nh_id = Some(3));
    assert_eq!(get(&world), refused(RejectWith::InvalidArgument));
}

#[test]
fn what_may_be_sent_from_is_looked_up_in_table_main_too_until_a_rule_is_made() {
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/24", "10.2.0.9", 3);
    kind(&mut world, &ns, "10.7.0.0/16", RouteKind::Local);
    change(&mut world, &ns, |route| route.table = RT_TABLE_LOCAL);
    let from = |world: &World, src: &str| ask(world, &ns, packet(src, "10.9.0.1"), None, None).next;
    assert_eq!(from(&world, "10.7.1.1"), out(3, Some("10.2.0.9")));
    // A longer one that leads elsewhere hides it, but an address stays one.
    world.route(&ns, "10.7.1.0/24", "10.2.0.9", 3);
    world.route(&ns, "10.1.0.1/32", "10.2.0.9", 3);
    assert_eq!(
        from(&world, "10.7.1.1"),
        refused(RejectWith::NetUnreachable)
    );
    assert_eq!(from(&world, "10.1.0.1"), out(3, Some("10.2.0.9")));
    rule(&mut world, &ns, false, |_| {});
    assert_eq!(from(&world, "10.7.1.1"), out(3, Some("10.2.0.9")));
}

#[test]
fn what_the_kernel_keeps_and_does_not_tell_is_unknown() {
    let unknown = |world: &World, ns: &NsKey, src: &str, dst: &str| {
        let next = ask(world, ns, packet(src, dst), None, None).next;
        matches!(next, Onward::End(Disposition::Inconclusive(_)))
    };
    // The source that a nexthop object was made with: by a scope of its own.
    let (mut world, ns) = host();
    world.addr(&ns, 3, "10.4.0.1", 24);
    let addrs = world.get(&ns).addrs.known_mut().expect("addresses");
    addrs.last_mut().expect("one").scope = 253;
    addrs.rotate_right(1);
    world.route(&ns, "10.9.0.0/24", "10.7.0.9", 3);
    assert!(!unknown(&world, &ns, "0.0.0.0", "10.9.0.1"));
    change(&mut world, &ns, |route| route.nh_id = Some(3));
    assert!(unknown(&world, &ns, "0.0.0.0", "10.9.0.1"));
    assert!(!unknown(&world, &ns, "10.2.0.1", "10.9.0.1"));

    // A gateway that is this host's own.
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/24", "10.2.0.1", 3);
    assert!(unknown(&world, &ns, "10.2.0.1", "10.9.0.1"));
    change(&mut world, &ns, |route| route.nexthops[0].onlink = true);
    assert!(!unknown(&world, &ns, "10.2.0.1", "10.9.0.1"));

    // IPv6 routes of one nexthop object.
    let (mut world, ns) = host();
    world.route(&ns, "fd08::/64", "fd02::9", 3);
    change(&mut world, &ns, |route| route.nh_id = Some(3));
    world.route(&ns, "fd09::/64", "fd02::9", 3);
    change(&mut world, &ns, |route| route.nh_id = Some(3));
    assert!(!unknown(&world, &ns, "fd02::1", "fd09::1"));
    change(&mut world, &ns, |route| route.mtu = Some(1400));
    assert!(unknown(&world, &ns, "fd02::1", "fd09::1"));
}

/// Rules for what is sent here are none that make the kernel look at the ports of what comes in.
#[test]
fn ports_of_the_way_back_are_seen_only_where_a_rule_asks_for_those_of_others() {
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/24", "10.2.0.9", 3);
    world.change(&ns, 2, |link| {
        link.inet.as_mut().expect("of the device").rp_filter = 1;
    });
    // To this host: the way back is looked up as if it were sent here.
    rule(&mut world, &ns, false, |rule| {
        rule.iif = Some("lo".to_owned());
        rule.sport = Some((53, 53));
        rule.action = RuleAction::Unreachable;
    });
    let come = |world: &World| ask(world, &ns, packet("10.1.0.7", "10.1.0.1"), Some(2), None).next;
    assert_eq!(come(&world), Onward::Local);
    rule(&mut world, &ns, false, |rule| {
        rule.priority = 200;
        rule.ip_proto = Some(6);
    });
    assert_eq!(
        come(&world),
        Onward::End(Disposition::Dropped(DropReason::IpRpfilter))
    );
}

#[test]
fn a_bound_socket_of_ipv4_takes_the_first_next_hop_by_its_device() {
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/24", "10.2.0.9", 3);
    change(&mut world, &ns, |route| {
        let mut other = route.nexthops[0].clone();
        other.via = Some(ip("10.2.0.8"));
        route.nexthops.push(other);
    });
    let routed = ask(&world, &ns, packet("10.2.0.1", "10.9.0.1"), None, Some(3));
    assert_eq!(routed.next, out(3, Some("10.2.0.9")));
    let free = ways(&world, &ns, packet("10.2.0.1", "10.9.0.1"), None, None);
    assert_eq!(free.len(), 2);
}

/// All that is sent gets mark 1, and is looked up again by that.
fn mark_at_output(world: &mut World, ns: &NsKey) {
    let mark = netpath::model::netfilter::Rule {
        handle: 1,
        exprs: vec![Expr::Target(XtTarget::Mark { mark: 1, mask: 1 })],
        comment: None,
    };
    let chain = Chain {
        name: "OUTPUT".to_owned(),
        handle: 1,
        base: Some(BaseChain {
            hook: Hook::Output,
            priority: -150,
            kind: ChainKind::Route,
            policy: Policy::Accept,
            devices: Vec::new(),
            counters: None,
        }),
        rules: Section::Known(vec![mark]),
        sieved: None,
        comment: None,
        bound: false,
    };
    let table = Table {
        name: "mangle".to_owned(),
        ..table(chain)
    };
    world.get(ns).nft = Section::Known(Ruleset {
        generation: Some(1),
        tables: vec![table],
    });
}

#[test]
fn what_output_marks_is_looked_up_again_by_ports_where_rules_look_at_those_of_others() {
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/24", "10.1.0.9", 2);
    world.route(&ns, "10.9.0.0/24", "10.2.0.9", 3);
    let routes = world.get(&ns).routes.known_mut().expect("routes");
    routes.last_mut().expect("one").table = 100;
    rule(&mut world, &ns, false, |rule| {
        rule.ip_proto = Some(17);
        rule.dport = Some((53, 53));
    });
    let asked = packet("10.1.0.1", "10.9.0.1");
    let next = |world: &World| ask(world, &ns, asked.clone(), None, None).next;
    assert_eq!(next(&world), out(3, Some("10.2.0.9")));
    mark_at_output(&mut world, &ns);
    assert_eq!(next(&world), out(3, Some("10.2.0.9")));
    let rules = world.get(&ns).rules.known_mut().expect("rules");
    for rule in rules.iter_mut().filter(|rule| rule.ip_proto.is_some()) {
        rule.iif = Some("lo".to_owned());
    }
    assert_eq!(next(&world), out(2, Some("10.1.0.9")));
}

#[test]
fn tcp_is_not_told_that_a_second_lookup_failed() {
    let (mut world, ns) = host();
    world.route(&ns, "10.9.0.0/24", "10.1.0.9", 2);
    mark_at_output(&mut world, &ns);
    rule(&mut world, &ns, false, |rule| {
        rule.fwmark = Some((1, 1));
        rule.action = RuleAction::Unreachable;
    });
    let mut asked = packet("10.1.0.1", "10.9.0.1");
    let next = |asked: &Packet| ask(&world, &ns, asked.clone(), None, None).next;
    assert_eq!(next(&asked), refused(RejectWith::NetUnreachable));
    asked.l4 = L4::Tcp {
        sport: Some(1000),
        dport: Some(53),
        flags: 2,
    };
    let lost = Disposition::Dropped(DropReason::IpOutnoroutes);
    assert_eq!(next(&asked), Onward::End(lost));
}

/// A question for a neighbour of IPv6 is for a group: whatever route that has, only one that refuses keeps it from who is asked.
/// The answer is routed as any packet.
#[test]
fn questions_for_neighbours_are_routed_where_they_come_in() {
    let pair = |change: &dyn Fn(&mut World, &NsKey, &NsKey)| {
        let mut world = World::new();
        let (a, b) = (world.ns("n1", 1, true), world.ns("n1", 2, false));
        world.veth((&a, 2, "eth0"), (&b, 2, "eth0"));
        world.addr(&a, 2, "fd01::1", 64);
        world.addr(&b, 2, "fd01::2", 64);
        world.listen(&b, 6, "::", 80);
        change(&mut world, &a, &b);
        let outcome = world.tcp(&a, "fd01::2", 80);
        outcome.traces[0].outcome().clone()
    };
    let refuse = |world: &mut World, ns: &NsKey| {
        let routes = world.get(ns).routes.known_mut().expect("routes");
        let last = routes.last_mut().expect("the last");
        (last.table, last.kind) = (RT_TABLE_LOCAL, RouteKind::Unreachable);
        last.nexthops.clear();
    };
    let silent = Disposition::Rejected(RejectWith::HostUnreachable);
    // No route for groups was read, but a default one; or it is of the kind unicast.
    for dst in ["::/0", "ff00::/8"] {
        let end = pair(&|world, _, b| world.route(b, dst, "fd01::9", 2));
        assert_eq!(end, Disposition::Delivered, "{dst}");
    }
    let refused = pair(&|world, _, b| {
        world.route(b, "ff02::/16", "fd01::9", 2);
        refuse(world, b);
    });
    assert_eq!(refused, silent);
    let answer_refused = pair(&|world, a, _| {
        let rule = Rule {
            iif: Some("eth0".to_owned()),
            action: RuleAction::Unreachable,
            ..Rule::bare(true, 0, 0)
        };
        let rules = world.get(a).rules.known_mut().expect("rules");
        rules.insert(0, rule);
    });
    assert_eq!(answer_refused, silent);
}
