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
            (6, DeviceKind::VlanFiltering),
            (8, DeviceKind::Vrf),
            (6, DeviceKind::Wireguard),
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
                DeviceKind::VlanFiltering => self.vlan_filtering(dice),
                DeviceKind::Vrf => self.vrf(dice),
                DeviceKind::Wireguard => self.wireguard(dice),
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
