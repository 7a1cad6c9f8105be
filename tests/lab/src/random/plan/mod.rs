//! Who is connected with whom: the part of a network that its routes, rules and packets are made from.

mod devices;
mod kinds;
mod reach;
mod settings;
mod tunnels;
mod vlan;
mod vrf;
mod wireguard;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::dice::Dice;
use super::topic::Topics;
use super::world::{Place, World};

pub use reach::Goal;
pub(super) use settings::LOUD;

/// A device with addresses on a segment.
#[derive(Clone, Debug)]
pub struct Station {
    /// Position of its namespace.
    pub place: usize,
    /// Position of its segment.
    pub segment: usize,
    /// Device.
    pub dev: String,
    /// Link-layer address.
    pub mac: String,
    /// Addresses.
    pub v4: Ipv4Addr,
    /// Of the other family.
    pub v6: Ipv6Addr,
}

/// A port of a bridge.
#[derive(Clone, Debug)]
pub struct Port {
    /// Namespace of the bridge.
    pub at: usize,
    /// Bridge.
    pub bridge: String,
    /// Device.
    pub dev: String,
    /// Namespace behind it.
    pub place: usize,
    /// Its device.
    pub peer: String,
}

/// A network while it is made.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What is given to the tools.
    pub world: World,
    /// Devices with addresses.
    pub stations: Vec<Station>,
    /// Number of segments.
    pub segments: usize,
    /// Namespaces that forward.
    pub routers: Vec<usize>,
    /// Addresses that are on no segment, by namespace.
    pub loose: Vec<(usize, IpAddr)>,
    /// Addresses that only rules translate.
    pub services: Vec<IpAddr>,
    /// With IPv6.
    pub v6: bool,
    /// Bridges with the namespace that they are in.
    pub bridges: Vec<(usize, String)>,
    /// Ports of bridges with a namespace behind them.
    pub ports: Vec<Port>,
    /// Both ends of veth pairs, with the namespaces that they are in.
    pairs: Vec<[(usize, String); 2]>,
    vrfs: Vec<vrf::Vrf>,
    devices: BTreeMap<usize, usize>,
    macs: usize,
}

impl Station {
    /// Address of a family.
    pub fn addr(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

impl Plan {
    /// Namespaces, devices and addresses.
    pub fn draw(dice: &mut Dice, topics: &mut Topics) -> Self {
        let number = 2 + dice.weighted(&[(2, 0), (4, 1), (5, 2), (4, 3), (2, 4), (2, 5), (1, 6)]);
        let mut plan = Self {
            v6: dice.percent(70),
            ..Self::default()
        };
        for name in ["a", "b", "c", "d", "e", "f", "g", "h"].iter().take(number) {
            plan.world.places.push(Place {
                name: (*name).to_owned(),
                ..Place::default()
            });
        }
        plan.routers.push(0);
        let mut bridges: Vec<(usize, usize, String)> = Vec::new();
        let mut parents: Vec<(usize, usize, String)> = Vec::new();
        for new in 1..number {
            let router = dice.one(&plan.routers);
            match dice.weighted(&[(4, 0), (5, 1), (2, 2), (2, 3)]) {
                0 => {
                    plan.pair(dice, router, new);
                }
                1 => {
                    let known = bridges.iter().find(|(at, _, _)| *at == router).cloned();
                    let (segment, bridge) = match known.filter(|_| dice.percent(75)) {
                        Some((_, segment, bridge)) => (segment, bridge),
                        None => {
                            let (segment, bridge) = plan.bridge(dice, router, true);
                            bridges.push((router, segment, bridge.clone()));
                            (segment, bridge)
                        }
                    };
                    plan.port(dice, router, &bridge, new, segment);
                }
                2 => {
                    let known = parents.iter().find(|(at, _, _)| *at == router).cloned();
                    let (segment, parent) = match known {
                        Some((_, segment, parent)) => (segment, parent),
                        None => {
                            let (segment, parent) = plan.parent(router);
                            parents.push((router, segment, parent.clone()));
                            (segment, parent)
                        }
                    };
                    plan.macvlan(dice, router, &parent, new, segment);
                }
                _ => {
                    // A switch of its own between them.
                    if new + 1 < number && dice.percent(30) {
                        let (segment, bridge) = plan.bridge(dice, new, false);
                        plan.port(dice, new, &bridge, router, segment);
                        bridges.push((new, segment, bridge.clone()));
                        plan.port(dice, new, &bridge, new + 1, segment);
                        // The next namespace is connected again by its own turn.
                    } else {
                        plan.pair(dice, router, new);
                    }
                }
            }
            if plan.routers.len() < 4 && dice.percent(40) {
                plan.routers.push(new);
            }
        }
        for _ in 0..dice.weighted(&[(5, 0), (3, 1), (1, 2)]) {
            let (one, other) = (dice.below(number), dice.below(number));
            if one != other {
                plan.pair(dice, one, other);
            }
        }
        topics.devices(&mut plan);
        plan.extra_addresses(dice);
        if dice.percent(30) {
            plan.tunnel(dice);
        }
        plan.services = (1..4).map(|n| Ipv4Addr::new(10, 96, 0, n).into()).collect();
        if plan.v6 {
            for n in 1..4 {
                let addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, n);
                plan.services.push(addr.into());
            }
        }
        plan
    }
}
