//! Translation to a port, to the own host on the way through, and to loopback's addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Ask, Plan, with_port};
use crate::random::dice::Dice;

/// What is for others is taken by a router, and what is sent by the sender.
pub fn redirect(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let Some((way, v6, dst)) = plan.asked(dice) else {
        return Vec::new();
    };
    let (from, router) = (way.own.place, way.router.place);
    for place in [from, router] {
        plan.listen(place, 8080);
    }
    let through = vec![
        (
            "nat",
            format!("-A PREROUTING -d {dst} -p tcp -m tcp --dport 80 -j REDIRECT --to-ports 8080"),
        ),
        (
            "nat",
            format!("-A PREROUTING -d {dst} -p udp -m udp --dport 53 -j REDIRECT --to-ports 8053"),
        ),
    ];
    plan.first_rules(dice, router, v6, &through);
    if dice.percent(60) {
        let own = "-p tcp -m tcp --dport 81 -j REDIRECT --to-ports 8080";
        let rule = format!("-A OUTPUT -d {dst} {own}");
        plan.first_rules(dice, from, v6, &[("nat", rule)]);
    }
    vec![
        Ask::tcp(from, dst, 80),
        Ask::tcp(from, dst, 80),
        Ask::udp(from, dst, 53),
        Ask::tcp(from, dst, 81),
    ]
}

/// A router's port that is another's, as of a port of nodes; and the same for what the router itself sends.
pub fn port(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let Some((way, v6, server)) = plan.asked(dice) else {
        return Vec::new();
    };
    let (from, router) = (way.own.place, way.router.place);
    let dst = way.router.addr(v6);
    plan.listen(way.to, 8080);
    let (tcp, udp) = (with_port(server, 8080), with_port(server, 8053));
    let mut rules = Vec::new();
    for chain in ["PREROUTING", "OUTPUT"] {
        let own = [
            ("tcp", 81, &tcp),
            ("tcp", 30080, &tcp),
            ("udp", 30053, &udp),
        ];
        for (protocol, port, to) in own {
            rules.push((
                "nat",
                format!("-A {chain} -d {dst} -p {protocol} -m {protocol} --dport {port} -j DNAT --to-destination {to}"),
            ));
        }
    }
    if dice.percent(70) {
        let rule = format!("-A POSTROUTING -d {server} -m conntrack --ctstate DNAT -j MASQUERADE");
        rules.push(("nat", rule));
    }
    plan.first_rules(dice, router, v6, &rules);
    vec![
        Ask::tcp(from, dst, 81),
        Ask::tcp(from, dst, 30080),
        Ask::udp(from, dst, 30053),
        Ask::tcp(router, dst, 81),
    ]
}

/// Loopback's addresses as destination of what comes in, and as source of what goes out.
pub fn localnet(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let Some(way) = plan.way(dice) else {
        return Vec::new();
    };
    let (from, router) = (way.own.place, way.router.place);
    let v6 = plan.family(dice);
    let dst = way.router.addr(v6);
    let host: IpAddr = if v6 {
        Ipv6Addr::LOCALHOST.into()
    } else {
        Ipv4Addr::LOCALHOST.into()
    };
    plan.listen(router, 8080);
    let value = dice.one(&["0", "1"]);
    let name = format!("ipv4/conf/{}/route_localnet", way.router.dev);
    plan.set(router, &name, value);
    let own = with_port(host, 8080);
    let rule =
        format!("-A PREROUTING -d {dst} -p tcp -m tcp --dport 81 -j DNAT --to-destination {own}");
    plan.first_rules(dice, router, v6, &[("nat", rule)]);
    let mut asks = vec![Ask::tcp(from, dst, 81), Ask::tcp(from, dst, 81)];
    if dice.percent(60) {
        let server = plan.address(way.to, v6).unwrap_or(dst);
        plan.listen(way.to, 8080);
        let value = dice.one(&["0", "1"]);
        let name = format!("ipv4/conf/{}/route_localnet", way.own.dev);
        plan.set(from, &name, value);
        let to = with_port(server, 8080);
        let rules = [
            (
                "nat",
                format!(
                    "-A OUTPUT -d {host} -p tcp -m tcp --dport 30080 -j DNAT --to-destination {to}"
                ),
            ),
            (
                "nat",
                format!("-A POSTROUTING -s {host} -d {server} -j MASQUERADE"),
            ),
        ];
        plan.first_rules(dice, from, v6, &rules);
        asks.push(Ask {
            src: Some(host),
            ..Ask::tcp(from, host, 30080)
        });
    }
    asks
}
