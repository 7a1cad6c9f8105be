//! A router with a VRF of two ports and a third port outside of it.

use netpath::model::link::{LinkKind, Vxlan};
use netpath::model::netfilter::{ChainKind, CmpOp, Expr, Family, Hook, MetaKey, Table, Verdict};
use netpath::model::route::RouteKind;
use netpath::model::rule::{Rule, RuleAction};
use netpath::model::{NsKey, Prefix, Section};
use netpath::simulate::refusal::untold;
use netpath::simulate::{Flow, Limits, Outcome, Prepared, simulate};
use netpath::trace::{Disposition, DropReason, RejectWith, StepKind, Trace};

use crate::tables::{chain, with};
use crate::world::{World, index, ip, mac};

const TABLE: u32 = 100;
const RED: u32 = 10;

struct Net {
    world: World,
    router: NsKey,
    hosts: Vec<NsKey>,
}

/// Hosts 10.0.1.2 and 10.0.2.2 are behind ports of VRF red, 10.0.3.2 behind one that is in none.
fn net() -> Net {
    let mut world = World::new();
    let router = world.ns("n1", 1, true);
    let mut hosts = Vec::new();
    for number in 1..4_u32 {
        let host = world.ns("n1", u64::from(number) + 1, false);
        let name = format!("p{number}");
        world.veth((&host, 2, "eth0"), (&router, number + 1, &name));
        world.addr(&host, 2, &format!("10.0.{number}.2"), 24);
        world.route(&host, "0.0.0.0/0", &format!("10.0.{number}.1"), 2);
        world.listen(&host, 6, "0.0.0.0", 80);
        world.listen(&host, 17, "0.0.0.0", 53);
        world.addr(&router, number + 1, &format!("10.0.{number}.1"), 24);
        hosts.push(host);
    }
    world.link(&router, RED, "red", LinkKind::Vrf(TABLE), |link| {
        link.noarp = true;
        link.mtu = 65575;
    });
    let slaves = [index(2), index(3)];
    for dev in [2, 3] {
        world.change(&router, dev, |link| link.master = Some(index(RED)));
    }
    let ns = world.get(&router);
    for route in ns.routes.known_mut().unwrap() {
        let by = route.nexthops[0].link.unwrap();
        if slaves.contains(&by) {
            route.table = TABLE;
        }
    }
    for v6 in [false, true] {
        let rule = Rule {
            l3mdev: true,
            ..Rule::bare(v6, 1000, 0)
        };
        ns.rules.known_mut().unwrap().push(rule);
    }
    accept(&mut world, &router, false);
    Net {
        world,
        router,
        hosts,
    }
}

fn accept(world: &mut World, ns: &NsKey, set: bool) {
    let sysctls = world.get(ns).sysctls.known_mut().unwrap();
    for own in [
        &mut sysctls.tcp_l3mdev_accept,
        &mut sysctls.udp_l3mdev_accept,
    ] {
        *own = Section::Known(Some(set));
    }
    sysctls.raw_l3mdev_accept = Section::Known(Some(true));
}

impl Net {
    fn ask(&self, from: &NsKey, dst: &str, protocol: u8, bound: Option<u32>) -> Outcome {
        let flow = Flow {
            from: from.clone(),
            src: None,
            sport: None,
            dst: ip(dst),
            dport: match protocol {
                6 => Some(80),
                17 => Some(53),
                _ => None,
            },
            protocol,
            len: 60,
            uid: Some(0),
            gid: Some(0),
            bound: bound.map(index),
        };
        simulate(&self.world.topology, &flow, &Limits::default())
    }

    fn bind(&mut self, dev: u32) {
        let sockets = self.world.get(&self.router).sockets.known_mut().unwrap();
        for socket in sockets {
            socket.bound_dev = Some(index(dev));
        }
    }

    /// Drops IPv4 by these devices: `-i NAME`, `-o NAME`.
    fn drop(&mut self, hook: Hook, rule: &str) {
        let mut exprs = Vec::new();
        let words: Vec<&str> = rule.split(' ').collect();
        for pair in words.chunks(2) {
            let key = match pair[0] {
                "-i" => MetaKey::Iifname,
                _ => MetaKey::Oifname,
            };
            let mut name = pair[1].as_bytes().to_vec();
            name.resize(16, 0);
            exprs.push(Expr::Meta { key, dreg: 1 });
            exprs.push(Expr::Cmp {
                op: CmpOp::Eq,
                sreg: 1,
                data: name,
            });
        }
        exprs.push(Expr::Verdict(Verdict::Drop));
        let table = Table {
            family: Family::Ip,
            ..chain(hook, exprs)
        };
        with(&mut self.world, &self.router, table);
    }
}

fn only(outcome: &Outcome) -> &Trace {
    assert_eq!(outcome.traces.len(), 1, "{outcome:#?}");
    &outcome.traces[0]
}

fn ends(outcome: &Outcome, wanted: &Disposition) {
    let trace = only(outcome);
    assert_eq!(trace.outcome(), wanted, "{trace:#?}");
}

/// What packet sockets see of a trace's packet in the router.
fn seen(net: &Net, trace: &Trace) -> Vec<String> {
    let here = trace.hops.iter().filter(|hop| hop.ns == net.router);
    let taps = here.flat_map(|hop| &hop.taps);
    taps.map(|tap| format!("{} {}", if tap.out { "out" } else { "in" }, tap.dev))
        .collect()
}

#[test]
fn slaves_of_one_vrf_reach_each_other_and_nobody_else() {
    let net = net();
    let there = net.ask(&net.hosts[0], "10.0.2.2", 6, None);
    ends(&there, &Disposition::Delivered);
    assert_eq!(seen(&net, only(&there)), ["in p1", "out red", "out p2"]);
    ends(
        &net.ask(&net.hosts[0], "10.0.3.2", 6, None),
        &Disposition::Rejected(RejectWith::NetUnreachable),
    );
    ends(
        &net.ask(&net.hosts[2], "10.0.1.2", 6, None),
        &Disposition::Rejected(RejectWith::NetUnreachable),
    );
}

#[test]
fn who_is_bound_to_no_device_takes_only_what_the_settings_let() {
    let mut net = net();
    let (router, host) = (net.router.clone(), net.hosts[0].clone());
    net.world.listen(&router, 6, "0.0.0.0", 80);
    net.world.listen(&router, 17, "0.0.0.0", 53);
    ends(
        &net.ask(&host, "10.0.1.1", 1, None),
        &Disposition::Delivered,
    );
    // The other slave's address is one of the VRF.
    ends(
        &net.ask(&host, "10.0.2.1", 1, None),
        &Disposition::Delivered,
    );
    ends(
        &net.ask(&host, "10.0.1.1", 6, None),
        &Disposition::Rejected(RejectWith::PortClosed),
    );
    ends(
        &net.ask(&host, "10.0.1.1", 17, None),
        &Disposition::Rejected(RejectWith::PortUnreachable),
    );
    accept(&mut net.world, &router, true);
    ends(
        &net.ask(&host, "10.0.1.1", 6, None),
        &Disposition::Delivered,
    );
    // It is taken, but the answer is looked up without the VRF.
    let datagram = net.ask(&host, "10.0.1.1", 17, None);
    let trace = only(&datagram);
    assert_eq!(trace.disposition, Disposition::Delivered);
    assert_ne!(trace.outcome(), &Disposition::Delivered);
    accept(&mut net.world, &router, false);
    for dev in [2, RED] {
        net.bind(dev);
        for protocol in [6, 17] {
            ends(
                &net.ask(&host, "10.0.1.1", protocol, None),
                &Disposition::Delivered,
            );
        }
    }
    net.bind(3);
    ends(
        &net.ask(&host, "10.0.1.1", 6, None),
        &Disposition::Rejected(RejectWith::PortClosed),
    );
    net.world
        .get(&router)
        .sysctls
        .known_mut()
        .unwrap()
        .tcp_l3mdev_accept = Section::NotAsked;
    let trace = net.ask(&host, "10.0.1.1", 6, None);
    assert!(matches!(
        only(&trace).outcome(),
        Disposition::Inconclusive(_)
    ));
}

#[test]
fn a_socket_reaches_the_vrf_by_being_bound_to_it_or_to_a_slave() {
    let mut net = net();
    let router = net.router.clone();
    ends(
        &net.ask(&router, "10.0.2.2", 6, None),
        &Disposition::Rejected(RejectWith::NetUnreachable),
    );
    let by_vrf = net.ask(&router, "10.0.2.2", 6, Some(RED));
    ends(&by_vrf, &Disposition::Delivered);
    assert_eq!(seen(&net, only(&by_vrf)), ["out red", "out p2"]);
    ends(
        &net.ask(&router, "10.0.2.2", 17, Some(3)),
        &Disposition::Delivered,
    );
    // The wrong slave, for which no route is made up.
    ends(
        &net.ask(&router, "10.0.2.2", 6, Some(2)),
        &Disposition::Rejected(RejectWith::NetUnreachable),
    );
    // To an address of the VRF itself.
    net.world.listen(&router, 6, "0.0.0.0", 80);
    net.bind(RED);
    let own = net.ask(&router, "10.0.1.1", 6, Some(RED));
    ends(&own, &Disposition::Delivered);
    assert_eq!(seen(&net, only(&own)), ["out red"]);
    net.bind(2);
    ends(
        &net.ask(&router, "10.0.1.1", 6, Some(RED)),
        &Disposition::Delivered,
    );
}

/// Sockets see what loops back come in by the device that has the address (`inet_iif()`: rt_iif).
#[test]
fn a_bound_socket_is_reached_at_its_own_devices_address() {
    let mut net = net();
    let own = net.hosts[2].clone();
    for protocol in [6, 17, 1] {
        let outcome = net.ask(&own, "10.0.3.2", protocol, Some(2));
        ends(&outcome, &Disposition::Delivered);
    }
    let sockets = net.world.get(&own).sockets.known_mut().unwrap();
    for socket in sockets {
        socket.bound_dev = Some(index(2));
    }
    ends(&net.ask(&own, "10.0.3.2", 6, None), &Disposition::Delivered);
    ends(
        &net.ask(&own, "127.0.0.1", 6, None),
        &Disposition::Rejected(RejectWith::PortClosed),
    );
}

/// Without being bound, by a rule: what comes back is not the socket's, unless the setting lets it be.
#[test]
fn an_answer_by_a_vrf_is_not_for_a_socket_outside_of_it() {
    let mut net = net();
    let router = net.router.clone();
    let rule = Rule {
        dst: Some("10.0.2.0/24".parse::<Prefix>().unwrap()),
        action: RuleAction::Table(TABLE),
        ..Rule::bare(false, 500, TABLE)
    };
    net.world.get(&router).rules.known_mut().unwrap().push(rule);
    ends(
        &net.ask(&router, "10.0.2.2", 6, None),
        &Disposition::Dropped(DropReason::NotFromPeer),
    );
    ends(
        &net.ask(&router, "10.0.2.2", 1, None),
        &Disposition::Delivered,
    );
    accept(&mut net.world, &router, true);
    ends(
        &net.ask(&router, "10.0.2.2", 6, None),
        &Disposition::Delivered,
    );
}

#[test]
fn hooks_see_the_slave_and_then_the_vrf() {
    for (hook, rule, host) in [
        (Hook::Prerouting, "-i p1", true),
        (Hook::Prerouting, "-i red", true),
        (Hook::Forward, "-i red -o p2", true),
        (Hook::Postrouting, "-o p2", true),
        (Hook::Output, "-o red", false),
        (Hook::Output, "-o p2", false),
        (Hook::Postrouting, "-o red", false),
        (Hook::Postrouting, "-o p2", false),
    ] {
        let mut net = net();
        let from = if host {
            net.hosts[0].clone()
        } else {
            net.router.clone()
        };
        let bound = (!host).then_some(RED);
        net.drop(hook, rule);
        let outcome = net.ask(&from, "10.0.2.2", 6, bound);
        assert_eq!(
            only(&outcome).disposition,
            Disposition::Dropped(DropReason::NetfilterDrop),
            "{hook:?} {rule}"
        );
    }
    for (hook, rule) in [
        (Hook::Forward, "-i p1"),
        (Hook::Input, "-i p1"),
        (Hook::Output, "-o p1"),
    ] {
        let mut net = net();
        net.drop(hook, rule);
        ends(
            &net.ask(&net.hosts[0], "10.0.2.2", 6, None),
            &Disposition::Delivered,
        );
    }
}

/// From outside into the VRF: a route to the VRF's device, whose table says the rest.
#[test]
fn a_route_to_the_vrf_is_looked_up_in_its_table() {
    let mut net = net();
    let router = net.router.clone();
    net.world.route(&router, "10.0.1.0/24", "10.0.1.2", RED);
    net.world.route(&router, "10.0.3.0/24", "10.0.3.2", 4);
    for route in net.world.get(&router).routes.known_mut().unwrap() {
        if route.nexthops[0].via.is_some() {
            route.nexthops[0].via = None;
        }
    }
    // And back.
    let mut leak = net
        .world
        .get(&router)
        .routes
        .known_mut()
        .unwrap()
        .last()
        .cloned()
        .unwrap();
    leak.table = TABLE;
    net.world
        .get(&router)
        .routes
        .known_mut()
        .unwrap()
        .push(leak);
    let outcome = net.ask(&net.hosts[2], "10.0.1.2", 6, None);
    ends(&outcome, &Disposition::Delivered);
    let trace = only(&outcome);
    assert_eq!(seen(&net, trace), ["in p3", "out red", "out p1"]);
    let back = trace.reply.as_deref().unwrap();
    assert_eq!(seen(&net, back), ["in p1", "out red", "out p3"]);
    let routes = trace.hops.iter().flat_map(|hop| &hop.steps);
    let routes = routes.filter(|step| step.kind == StepKind::Route).count();
    assert_eq!(routes, 4, "{trace:#?}");
}

/// What a VRF sends to itself is translated where it comes in, not where it leaves (`in_vrf_postrouting()`).
#[test]
fn the_vrf_itself_translates_nothing_that_leaves() {
    for (hook, translated) in [(Hook::Postrouting, false), (Hook::Input, true)] {
        let mut net = net();
        let router = net.router.clone();
        net.world.listen(&router, 6, "0.0.0.0", 80);
        net.bind(RED);
        let exprs = vec![
            Expr::Immediate {
                dreg: 1,
                data: vec![10, 9, 9, 9],
            },
            Expr::Nat {
                source: true,
                v6: false,
                addr_min: Some(1),
                addr_max: Some(1),
                proto_min: None,
                proto_max: None,
                flags: 1,
            },
        ];
        let mut table = Table {
            family: Family::Ip,
            ..chain(hook, exprs)
        };
        for own in table.chains.values_mut() {
            if let Some(base) = &mut own.base {
                (base.kind, base.priority) = (ChainKind::Nat, 100);
            }
        }
        with(&mut net.world, &router, table);
        let outcome = net.ask(&router, "10.0.1.1", 6, Some(RED));
        let trace = only(&outcome);
        assert_eq!(
            trace.packet.src == ip("10.9.9.9"),
            translated,
            "{hook:?}: {trace:#?}"
        );
        // What leaves by a slave is translated there.
        let beyond = net.ask(&router, "10.0.2.2", 6, Some(RED));
        let src = only(&beyond).packet.src;
        assert_eq!(src == ip("10.9.9.9"), hook == Hook::Postrouting);
    }
}

/// Of who does not answer outside of the VRF, the error is looked up outside of it, where no way leads back
/// (`icmp_route_lookup()`: `skb->dev` is the device that it was to leave by).
#[test]
fn nobody_tells_a_host_in_a_vrf_that_nobody_answers_outside() {
    let mut net = net();
    let flow = |dst: &str| Flow {
        from: net.hosts[0].clone(),
        src: None,
        sport: None,
        dst: ip(dst),
        dport: Some(80),
        protocol: 6,
        len: 60,
        uid: Some(0),
        gid: Some(0),
        bound: None,
    };
    let (outside, inside) = (flow("10.0.3.99"), flow("10.0.2.99"));
    // A VRF's table that does not end: main is asked behind it.
    let routes = net.world.get(&net.router).routes.known_mut().unwrap();
    routes.retain(|route| route.table != TABLE || !route.kind.refuses());
    let limits = Limits::default();
    for (flow, told) in [(outside, false), (inside, true)] {
        let mut prepared = Prepared::new(&net.world.topology);
        let mut outcome = prepared.simulate(&flow, &limits);
        untold(&mut prepared, &flow, &mut outcome, &limits);
        assert_eq!(
            only(&outcome).disposition,
            Disposition::Rejected(RejectWith::HostUnreachable)
        );
        assert_eq!(outcome.untold.is_empty(), told, "{outcome:#?}");
    }
}

/// An answer of neighbour discovery stays the device's, and is routed as that (`vrf_ip6_rcv()`).
#[test]
fn a_rule_of_the_slave_may_lead_answers_of_neighbours_astray() {
    let mut net = net();
    let (router, host) = (net.router.clone(), net.hosts[0].clone());
    for (ns, dev, addr) in [(&router, 2, "fd00::1"), (&host, 2, "fd00::2")] {
        net.world.addr(ns, dev, addr, 64);
    }
    let routes = net.world.get(&router).routes.known_mut().unwrap();
    for route in routes.iter_mut().filter(|route| route.dst.addr().is_ipv6()) {
        route.table = TABLE;
    }
    let mut leak = routes.last().cloned().unwrap();
    (leak.table, leak.dst) = (254, "fd00::/64".parse().unwrap());
    (leak.kind, leak.nexthops[0].link) = (RouteKind::Unicast, Some(index(RED)));
    routes.push(leak);
    net.world.listen(&host, 6, "::", 80);
    let ask = |net: &Net| net.ask(&router, "fd00::2", 6, Some(RED));
    ends(&ask(&net), &Disposition::Delivered);
    let rule = Rule {
        iif: Some("p1".to_owned()),
        ..Rule::bare(true, 910, 254)
    };
    net.world.get(&router).rules.known_mut().unwrap().push(rule);
    ends(
        &ask(&net),
        &Disposition::Rejected(RejectWith::HostUnreachable),
    );
}

/// [`Net::ask`] through a VXLAN device of a host to one of the router, which is on top of `lower`.
fn tunnelled(from: usize, accepted: bool, lower: Option<u32>) -> Disposition {
    let mut net = net();
    let (router, host) = (net.router.clone(), net.hosts[from].clone());
    accept(&mut net.world, &router, accepted);
    let remote = format!("10.0.{}.1", from + 1);
    for (ns, own, other, lower) in [
        (&host, "10.5.0.2", Some(remote.as_str()), None),
        (&router, "10.5.0.1", None, lower),
    ] {
        let vxlan = Vxlan {
            vni: 1,
            port: 4789,
            lower: lower.map(index),
            ..Vxlan::default()
        };
        net.world.link(ns, 20, "vx", LinkKind::Vxlan(vxlan), |_| {});
        net.world.addr(ns, 20, own, 24);
        if let Some(other) = other {
            let mac = mac(router.netns.ino, 20);
            net.world.neigh(ns, 20, "10.5.0.1", mac);
            net.world.fdb(ns, 20, mac, other);
        }
    }
    only(&net.ask(&host, "10.5.0.1", 1, None))
        .disposition
        .clone()
}

/// A tunnel's socket is like any other: bound to the VRF by its device below, or to none (`udp_sk_bound_dev_eq()`).
#[test]
fn a_tunnel_takes_what_comes_in_by_a_vrf_as_sockets_do() {
    let refused = Disposition::Dropped(DropReason::NoSocket);
    for (from, accepted, lower, end) in [
        (0, false, None, &refused),
        (0, true, None, &Disposition::Delivered),
        (0, false, Some(3), &Disposition::Delivered),
        (2, false, None, &Disposition::Delivered),
        (2, true, Some(3), &refused),
    ] {
        let found = tunnelled(from, accepted, lower);
        assert_eq!(&found, end, "{from} {accepted} {lower:?}");
    }
}

/// A route to the VRF that its own table does not replace leads round: IPv4 ends there, IPv6 goes on (`vrf_local_xmit()`).
#[test]
fn a_route_of_the_vrf_to_itself_ends_there_or_goes_round() {
    let mut net = net();
    let (router, host) = (net.router.clone(), net.hosts[2].clone());
    for (ns, dev, addr) in [(&router, 4, "fd00:3::1"), (&host, 2, "fd00:3::2")] {
        net.world.addr(ns, dev, addr, 64);
    }
    net.world.route(&host, "::/0", "fd00:3::1", 2);
    for (dst, via) in [("10.7.0.0/16", "10.7.0.1"), ("fd07::/16", "fd07::1")] {
        net.world.route(&router, dst, via, RED);
        let routes = net.world.get(&router).routes.known_mut().unwrap();
        routes.last_mut().unwrap().nexthops[0].via = None;
    }
    let lost = Disposition::Dropped(DropReason::NotSpecified);
    ends(&net.ask(&host, "10.7.1.1", 6, None), &lost);
    ends(&net.ask(&host, "fd07::7", 6, None), &Disposition::Loop);
}
