//! Devices of the kinds that not every kernel has: lines that make them, the stations that they make, and packets to
//! send through them. They have dice of their own.

use super::{Plan, Station};
use crate::random::dice::Dice;
use crate::random::kinds::{DeviceKind, Kinds};
use crate::random::topic::Ask;

impl Plan {
    /// Draws up to three of them.
    pub fn more(&mut self, seed: u64, kinds: &Kinds) -> Vec<Ask> {
        let mut dice = Dice::new(seed ^ 0x6465_7669_6365_7300);
        let dice = &mut dice;
        let all = [
            (2, DeviceKind::Dummy),
            (5, DeviceKind::Geneve),
            (5, DeviceKind::Gre),
            (4, DeviceKind::Ipip),
            (3, DeviceKind::Sit),
            (5, DeviceKind::Vlan),
            (8, DeviceKind::Vrf),
        ];
        let all: Vec<_> = all
            .into_iter()
            .filter(|(_, kind)| kinds.has(*kind))
            .collect();
        if all.is_empty() {
            return Vec::new();
        }
        let mut asks = Vec::new();
        for _ in 0..dice.weighted(&[(1, 0), (4, 1), (4, 2), (2, 3)]) {
            asks.extend(match dice.weighted(&all) {
                DeviceKind::Dummy => self.dummy(dice),
                DeviceKind::Vlan => self.vlan(dice),
                DeviceKind::Vrf => self.vrf(dice),
                DeviceKind::Ipip if dice.percent(35) => self.without_remote(dice),
                kind => self.between(dice, kind),
            });
        }
        asks
    }

    /// A device of which nothing comes back.
    fn dummy(&mut self, dice: &mut Dice) -> Vec<Ask> {
        let place = dice.below(self.world.places.len());
        let (segment, dev, mac) = (self.segment(), self.device(place, "du"), self.mac());
        self.link(place, format!("link add {dev} address {mac} type dummy"));
        self.ip(place, format!("link set {dev} up"));
        self.join(place, segment, &dev, &mac);
        Vec::new()
    }

    /// 802.1Q on both ends of a veth pair, or on two ports' other ends of one bridge.
    fn vlan(&mut self, dice: &mut Dice) -> Vec<Ask> {
        // What bridges do with tagged frames is not followed.
        let switched = dice.percent(8);
        let mut ways = if switched {
            Vec::new()
        } else {
            self.pairs.clone()
        };
        if switched {
            for one in &self.ports {
                let like = |other: &&super::Port| {
                    (other.at, &other.bridge) == (one.at, &one.bridge) && other.place != one.place
                };
                for other in self.ports.iter().filter(like) {
                    ways.push([
                        (one.place, one.peer.clone()),
                        (other.place, other.peer.clone()),
                    ]);
                }
            }
        }
        if ways.is_empty() {
            return Vec::new();
        }
        let (segment, id) = (self.segment(), 2 + dice.below(3));
        for (at, below) in dice.one(&ways) {
            let id = if dice.percent(6) { id + 1 } else { id };
            // Devices below are up by the time that those of later namespaces are set up.
            let last = self.world.places.len() - 1;
            let place = if dice.percent(8) { last } else { at };
            let dev = self.device(place, "vl");
            let mac = self.mac_of(dice, at, &below);
            let netns = if place == at {
                String::new()
            } else {
                format!(" netns {}", self.at(place))
            };
            // The device below may be made by a later namespace's lines.
            self.ip(
                at,
                format!("link add link {below} name {dev} address {mac}{netns} type vlan id {id}"),
            );
            self.ip(place, format!("link set {dev} up"));
            self.join(place, segment, &dev, &mac);
        }
        self.through(dice, segment)
    }

    /// The link-layer address of the device below, or one of its own.
    fn mac_of(&mut self, dice: &mut Dice, place: usize, below: &str) -> String {
        let mut stations = self.stations.iter();
        let known = stations.find(|own| own.place == place && own.dev == below);
        match known.filter(|_| dice.percent(50)) {
            Some(known) => known.mac.clone(),
            None => self.mac(),
        }
    }

    /// From each end of a segment to the other, and from someone to either.
    pub(super) fn through(&self, dice: &mut Dice, segment: usize) -> Vec<Ask> {
        let own = self.stations.iter().filter(|own| own.segment == segment);
        let own: Vec<&Station> = own.collect();
        let mut asks = Vec::new();
        for from in &own {
            for to in own.iter().filter(|to| to.place != from.place) {
                for v6 in [false, true] {
                    if v6 && !self.v6 {
                        continue;
                    }
                    let src = Some(from.addr(v6)).filter(|_| dice.percent(50));
                    asks.extend(Ask::usual(from.place, src, to.addr(v6)));
                    let third = dice.below(self.world.places.len());
                    if third != to.place && !self.addrs(third, v6).is_empty() {
                        asks.extend(Ask::usual(third, None, to.addr(v6)));
                    }
                }
            }
        }
        asks
    }
}
