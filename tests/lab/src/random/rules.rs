//! Rule sets over the addresses, ports and devices of a network: marks, jumps, sets, maps, states, NAT of every
//! kind, drops and refusals at every hook, on each backend; and Services in the shapes of kube-proxy.

mod iptables;
mod nft;
mod services;

use std::net::IpAddr;

use super::dice::Dice;
use super::plan::Plan;
use super::world::Rules;

/// What rules of a namespace are about.
pub(super) struct Scene {
    /// Devices of the namespace.
    pub devices: Vec<String>,
    /// Ports of its bridges.
    pub ports: Vec<String>,
    /// Addresses of all namespaces.
    pub v4: Vec<String>,
    /// Likewise.
    pub v6: Vec<String>,
    /// Addresses of its own.
    pub own4: Vec<String>,
    /// Likewise.
    pub own6: Vec<String>,
    /// Addresses of Services.
    pub services: Vec<IpAddr>,
}

impl Scene {
    fn of(plan: &Plan, place: usize) -> Self {
        let text = |addrs: Vec<IpAddr>| addrs.iter().map(ToString::to_string).collect();
        let all = |v6: bool| {
            let places = 0..plan.world.places.len();
            places.flat_map(|place| plan.addrs(place, v6)).collect()
        };
        let stations = plan.stations.iter().filter(|s| s.place == place);
        let ports = plan.world.places[place].ip.iter().filter_map(|line| {
            let rest = line.strip_prefix("link set ")?;
            let (port, rest) = rest.split_once(' ')?;
            rest.starts_with("master br").then(|| port.to_owned())
        });
        Self {
            devices: stations.map(|station| station.dev.clone()).collect(),
            ports: ports.collect(),
            v4: text(all(false)),
            v6: text(all(true)),
            own4: text(plan.addrs(place, false)),
            own6: text(plan.addrs(place, true)),
            services: plan.services.clone(),
        }
    }

    fn addrs(&self, v6: bool) -> &[String] {
        if v6 { &self.v6 } else { &self.v4 }
    }

    fn own(&self, v6: bool) -> &[String] {
        if v6 { &self.own6 } else { &self.own4 }
    }

    /// An address of anybody, or a prefix around it.
    fn prefix(&self, dice: &mut Dice, v6: bool) -> String {
        let addr = dice.one(self.addrs(v6));
        match (dice.below(3), v6) {
            (0, false) => format!("{addr}/24"),
            (0, true) => format!("{addr}/64"),
            (1, false) if dice.percent(30) => format!("{addr}/16"),
            _ => addr,
        }
    }

    fn service(&self, dice: &mut Dice, v6: bool) -> Option<String> {
        let own: Vec<&IpAddr> = self
            .services
            .iter()
            .filter(|addr| addr.is_ipv6() == v6)
            .collect();
        own.get(dice.below(own.len())).map(ToString::to_string)
    }
}

/// Writes them for some namespaces.
pub fn draw(dice: &mut Dice, plan: &mut Plan) {
    for place in 0..plan.world.places.len() {
        let router = plan.routers.contains(&place);
        let scene = Scene::of(plan, place);
        if scene.devices.is_empty() || !dice.percent(if router { 75 } else { 30 }) {
            continue;
        }
        let mut ipsets = Vec::new();
        let mut rules: Vec<Rules> = Vec::new();
        let families: &[bool] = if plan.v6 { &[false, true] } else { &[false] };
        match dice.below(10) {
            0..=3 => {
                let legacy = dice.percent(40);
                for v6 in families {
                    rules.push(iptables::draw(dice, &scene, &mut ipsets, legacy, *v6));
                }
            }
            4..=6 => rules.push(nft::draw(dice, &scene, plan.v6)),
            7 => {
                for v6 in families {
                    rules.push(iptables::draw(dice, &scene, &mut ipsets, false, *v6));
                }
                rules.push(nft::draw(dice, &scene, plan.v6));
            }
            _ => rules.extend(services::draw(dice, &scene, &mut ipsets, plan.v6)),
        }
        let place = &mut plan.world.places[place];
        place.ipsets = ipsets;
        place.rules = rules;
    }
}
