//! Ports that send back where a frame came from, and ports that do not talk to each other.

use super::{Ask, Plan, with_port};
use crate::random::dice::Dice;
use crate::random::plan::Port;
use crate::random::world::Place;

/// Most namespaces of a network.
const MOST: usize = 8;

/// A new namespace, where there is room for so many.
fn places(plan: &mut Plan, number: usize) -> Option<Vec<usize>> {
    let next = plan.world.places.len();
    if next + number > MOST {
        return None;
    }
    for name in ["a", "b", "c", "d", "e", "f", "g", "h"]
        .iter()
        .skip(next)
        .take(number)
    {
        plan.world.places.push(Place {
            name: (*name).to_owned(),
            ..Place::default()
        });
    }
    Some((next..next + number).collect())
}

/// A bridge with two ports, unless there is one.
pub fn switch(dice: &mut Dice, plan: &mut Plan) {
    let has_two = |port: &Port| {
        let like = |other: &&Port| (other.at, &other.bridge) == (port.at, &port.bridge);
        plan.ports.iter().filter(like).count() > 1
    };
    if plan.ports.iter().any(has_two) {
        return;
    }
    let Some(new) = places(plan, 2) else { return };
    let at = plan.routers[0];
    let (segment, bridge) = plan.bridge(dice, at, true);
    for place in new {
        plan.port(dice, at, &bridge, place, segment);
    }
}

/// Two macvlans that leave switching to the bridge at the other end of their parent (VEPA), which has to send back by
/// the port that a frame came in by.
pub fn reflector(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let Some(new) = places(plan, 2) else {
        return Vec::new();
    };
    let at = plan.routers[0];
    let (segment, bridge) = plan.bridge(dice, at, true);
    let hairpin = if dice.percent(70) { "on" } else { "off" };
    let parent = plan.reflected(at, &bridge, new[0], hairpin);
    for place in &new {
        plan.macvlan_of(new[0], &parent, *place, segment, "vepa");
    }
    let mut asks = Vec::new();
    for (from, to) in [(new[0], new[1]), (new[1], new[0])] {
        for v6 in [false, true] {
            let dst = plan.address(to, v6).filter(|_| !v6 || plan.v6);
            asks.extend(dst.into_iter().flat_map(|dst| Ask::usual(from, None, dst)));
        }
    }
    asks
}

/// A Service whose only server is who asks, behind the same port of a bridge that shows frames to IP's hooks.
pub fn hairpin(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let own = |plan: &Plan, port: &Port| {
        let mut all = plan.stations.iter();
        let inside = all
            .clone()
            .find(|s| s.place == port.at && s.dev == port.bridge)?;
        let pod = all.find(|s| s.place == port.place && s.dev == port.peer)?;
        Some((port.clone(), inside.clone(), pod.clone()))
    };
    let all: Vec<_> = plan.ports.iter().filter_map(|p| own(plan, p)).collect();
    if all.is_empty() {
        return Vec::new();
    }
    let (port, inside, pod) = dice.one(&all);
    let v6 = plan.family(dice);
    let services: Vec<_> = plan.services.iter().filter(|s| s.is_ipv6() == v6).collect();
    let Some(service) = services.first().map(|service| **service) else {
        return Vec::new();
    };
    let flag = if dice.percent(65) { "on" } else { "off" };
    plan.world.places[port.at]
        .bridge
        .push(format!("link set dev {} hairpin {flag}", port.dev));
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        plan.set(port.at, &format!("bridge/{name}"), "1");
    }
    let (addr, len) = (pod.addr(v6), if v6 { 128 } else { 32 });
    for (at, near, far) in [(port.at, &inside, &pod), (pod.place, &pod, &inside)] {
        plan.ip(
            at,
            format!(
                "neigh replace {} lladdr {} dev {} nud permanent",
                far.addr(v6),
                far.mac,
                near.dev
            ),
        );
    }
    let dash = if v6 { "-6 " } else { "" };
    plan.ip(
        pod.place,
        format!(
            "{dash}route replace {service}/{len} via {} dev {}",
            inside.addr(v6),
            pod.dev
        ),
    );
    let mut rules = Vec::new();
    for (protocol, port, own) in [("tcp", 80, 8080), ("udp", 53, 8053)] {
        let to = with_port(addr, own);
        rules.push((
            "nat",
            format!(
                "-A PREROUTING -d {service} -p {protocol} -m {protocol} --dport {port} -j DNAT --to-destination {to}"
            ),
        ));
    }
    if dice.percent(85) {
        let rule = format!("-A POSTROUTING -s {addr} -d {addr} -j MASQUERADE");
        rules.push(("nat", rule));
    }
    plan.first_rules(dice, port.at, v6, &rules);
    plan.listen(pod.place, 8080);
    let others: Vec<usize> = plan
        .stations
        .iter()
        .filter(|other| other.segment == pod.segment && other.place != pod.place)
        .map(|other| other.place)
        .collect();
    let mut asks = vec![
        Ask::tcp(pod.place, service, 80),
        Ask::tcp(pod.place, service, 80),
        Ask::udp(pod.place, service, 53),
    ];
    asks.extend(others.into_iter().map(|from| Ask::tcp(from, service, 80)));
    asks
}

/// Two ports of a bridge that are isolated, or one of them.
pub fn isolated(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let mut pairs = Vec::new();
    for one in &plan.ports {
        for other in &plan.ports {
            if (one.at, &one.bridge) == (other.at, &other.bridge) && one.place != other.place {
                pairs.push((one.clone(), other.clone()));
            }
        }
    }
    if pairs.is_empty() {
        return Vec::new();
    }
    let (one, other) = dice.one(&pairs);
    let second = if dice.percent(75) { "on" } else { "off" };
    let lines = &mut plan.world.places[one.at].bridge;
    lines.push(format!("link set dev {} isolated on", one.dev));
    lines.push(format!("link set dev {} isolated {second}", other.dev));
    let mut asks = Vec::new();
    for (from, to) in [(&one, &other), (&other, &one)] {
        for v6 in [false, true] {
            let mut stations = plan.stations.iter();
            let far = stations.find(|s| s.place == to.place && s.dev == to.peer);
            let dst = far.map(|far| far.addr(v6)).filter(|_| !v6 || plan.v6);
            asks.extend(
                dst.into_iter()
                    .flat_map(|dst| Ask::usual(from.place, None, dst)),
            );
        }
    }
    asks
}
