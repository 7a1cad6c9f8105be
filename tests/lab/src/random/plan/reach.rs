//! Where packets can go: destinations, and the next hops on shortest ways to them.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use super::{Plan, Station};

/// Destination prefixes, as `ip` takes them, and who is there.
#[derive(Clone, Debug)]
pub struct Goal {
    /// Prefix.
    pub prefix: String,
    /// IPv6.
    pub v6: bool,
    /// Namespaces that are on it.
    pub owners: Vec<usize>,
}

impl Plan {
    /// All destinations that there are routes to.
    pub fn goals(&self) -> Vec<Goal> {
        let mut goals = Vec::new();
        for segment in 0..self.segments {
            let owners: Vec<usize> = self
                .stations
                .iter()
                .filter(|station| station.segment == segment)
                .map(|station| station.place)
                .collect();
            let number = segment * 4;
            goals.push(Goal {
                prefix: format!("10.1.{number}.0/{}", Self::len4(segment)),
                v6: false,
                owners: owners.clone(),
            });
            if self.v6 {
                goals.push(Goal {
                    prefix: format!("fd00:1:{segment:x}::/64"),
                    v6: true,
                    owners,
                });
            }
        }
        for (place, addr) in &self.loose {
            let len = if addr.is_ipv4() { 32 } else { 128 };
            goals.push(Goal {
                prefix: format!("{addr}/{len}"),
                v6: addr.is_ipv6(),
                owners: vec![*place],
            });
        }
        goals
    }

    /// Neighbours of a namespace by which one of `owners` is reached on a shortest way: own and other station.
    pub fn next_hops(&self, from: usize, owners: &[usize]) -> Vec<(Station, Station)> {
        let mut distance: BTreeMap<usize, usize> = owners.iter().map(|at| (*at, 0)).collect();
        let mut open: VecDeque<usize> = owners.iter().copied().collect();
        while let Some(at) = open.pop_front() {
            let far = distance.get(&at).copied().unwrap_or_default();
            // Only who forwards leads further.
            if far > 0 && !self.routers.contains(&at) {
                continue;
            }
            if far == 0 && !self.routers.contains(&at) && owners.len() > 1 {
                continue;
            }
            for own in self.stations.iter().filter(|station| station.place == at) {
                for other in &self.stations {
                    if other.segment == own.segment && !distance.contains_key(&other.place) {
                        distance.insert(other.place, far + 1);
                        open.push_back(other.place);
                    }
                }
            }
        }
        let Some(own) = distance.get(&from).copied().filter(|far| *far > 0) else {
            return Vec::new();
        };
        let mut hops = Vec::new();
        for station in self.stations.iter().filter(|station| station.place == from) {
            for other in &self.stations {
                let near = distance.get(&other.place).is_some_and(|far| far + 1 == own);
                let leads = self.routers.contains(&other.place) || own == 1;
                if near && leads && other.segment == station.segment && other.place != from {
                    hops.push((station.clone(), other.clone()));
                }
            }
        }
        hops
    }

    /// Devices with addresses of a namespace.
    pub fn stations_of(&self, place: usize) -> Vec<Station> {
        let own = self.stations.iter().filter(|own| own.place == place);
        own.cloned().collect()
    }

    /// All addresses of a namespace.
    pub fn addrs(&self, place: usize, v6: bool) -> Vec<IpAddr> {
        let own = self.stations.iter().filter(|s| s.place == place);
        let mut all: Vec<IpAddr> = own.map(|station| station.addr(v6)).collect();
        let loose = self.loose.iter().filter(|(at, _)| *at == place);
        all.extend(loose.map(|(_, addr)| *addr).filter(|a| a.is_ipv6() == v6));
        all
    }
}
