//! VRFs: some devices of a namespace belong to one, with a table of its own; most routes by these are in that table, some
//! lead from one table to the other. They have dice of their own.

use std::net::IpAddr;

use super::Plan;
use crate::random::dice::Dice;
use crate::random::topic::Ask;
use crate::random::world::{Kind, Probe, Setting};

/// The first VRF's table; the next ones have the next.
const TABLE: usize = 300;

/// A VRF.
#[derive(Clone, Debug)]
pub struct Vrf {
    /// Position of its namespace.
    place: usize,
    /// Device.
    dev: String,
    /// Its table.
    table: usize,
    /// Devices that belong to it.
    slaves: Vec<String>,
}

impl Plan {
    /// A VRF of one or more devices of a namespace that has several, mostly.
    pub(super) fn vrf(&mut self, dice: &mut Dice) -> Vec<Ask> {
        let place = if dice.percent(70) {
            dice.one(&self.routers)
        } else {
            dice.below(self.world.places.len())
        };
        let taken: Vec<String> = self
            .vrfs_of(place)
            .flat_map(|vrf| vrf.slaves.clone())
            .collect();
        let stations = self.stations_of(place);
        let mut slaves: Vec<String> = stations.into_iter().map(|own| own.dev).collect();
        slaves.retain(|dev| !taken.contains(dev));
        while slaves.len() > 1 && dice.percent(35) {
            slaves.remove(dice.below(slaves.len()));
        }
        if slaves.is_empty() {
            return Vec::new();
        }
        let (dev, table) = (self.device(place, "vrf"), TABLE + self.vrfs.len());
        self.link(place, format!("link add {dev} type vrf table {table}"));
        self.link(place, format!("link set {dev} up"));
        for slave in &slaves {
            // Before it has addresses: those of IPv6 go where a device is set down (`cycle_netdev()`).
            let ip = &mut self.world.places[place].ip;
            let by = format!(" dev {slave}");
            let at = ip.iter().position(|line| {
                line.starts_with("address add") && format!("{line} ").contains(&format!("{by} "))
            });
            ip.insert(
                at.unwrap_or(ip.len()),
                format!("link set {slave} master {dev}"),
            );
        }
        if taken.is_empty() {
            for (name, share) in [("tcp", 50), ("udp", 30), ("raw", 90)] {
                let set = if dice.percent(share) { "1" } else { "0" };
                let name = format!("ipv4/{name}_l3mdev_accept");
                let early = &mut self.world.places[place].early;
                early.push(Setting(name, set.to_owned()));
            }
        }
        self.vrfs.push(Vrf {
            place,
            dev,
            table,
            slaves,
        });
        self.by_vrf(dice)
    }

    fn vrfs_of(&self, place: usize) -> impl Iterator<Item = &Vrf> {
        self.vrfs.iter().filter(move |vrf| vrf.place == place)
    }

    /// To its addresses and past it, and from it to its neighbours.
    fn by_vrf(&self, dice: &mut Dice) -> Vec<Ask> {
        let Some(vrf) = self.vrfs.last() else {
            return Vec::new();
        };
        let own: Vec<_> = self.stations_of(vrf.place);
        let own = own.iter().filter(|own| vrf.slaves.contains(&own.dev));
        let mut asks = Vec::new();
        for own in own {
            let near =
                |other: &&super::Station| other.segment == own.segment && other.place != vrf.place;
            for v6 in [false, true].into_iter().filter(|v6| !v6 || self.v6) {
                asks.extend(Ask::usual(vrf.place, Some(own.addr(v6)), own.addr(v6)));
                for other in self.stations.iter().filter(near) {
                    let src = Some(own.addr(v6)).filter(|_| dice.percent(50));
                    asks.extend(Ask::usual(vrf.place, src, other.addr(v6)));
                    asks.extend(Ask::usual(other.place, None, own.addr(v6)));
                    let far = dice.below(self.world.places.len());
                    if let Some(dst) = self.addrs(far, v6).first() {
                        asks.extend(Ask::usual(other.place, None, *dst));
                    }
                }
            }
        }
        asks
    }

    /// Routes and rules of VRFs, made of those that there are, and listeners that are bound to them.
    pub fn vrf_lines(&mut self, seed: u64) {
        let mut dice = Dice::new(seed ^ 0x7672_6673_2e6c_6e73);
        for vrf in self.vrfs.clone() {
            self.vrf_routes(&mut dice, &vrf);
            self.vrf_rules(&mut dice, &vrf);
            let own = self.stations_of(vrf.place);
            let own = own.iter().filter(|own| vrf.slaves.contains(&own.dev));
            let own: Vec<IpAddr> = own
                .flat_map(|own| [own.addr(false), own.addr(true)])
                .collect();
            for listener in &mut self.world.places[vrf.place].listeners {
                // An address of a VRF is there for who is bound to it (`inet_addr_valid_or_nonlocal()`, v6.12), others are
                // there for those that are bound to none.
                let is_own = own.contains(&listener.addr);
                if listener.dev.is_none() && (is_own || listener.addr.is_unspecified()) {
                    listener.dev = dice.weighted(&[
                        (if is_own { 0 } else { 9 }, None),
                        (9, Some(vrf.dev.clone())),
                        (2, vrf.slaves.first().cloned()),
                    ]);
                }
            }
        }
    }

    fn vrf_routes(&mut self, dice: &mut Dice, vrf: &Vrf) {
        let mut lines = Vec::new();
        for line in std::mem::take(&mut self.world.places[vrf.place].ip) {
            let is_route = line.trim_start_matches("-6 ").starts_with("route add");
            if !is_route || line.contains(" table ") {
                lines.push(line);
                continue;
            }
            let words: Vec<&str> = line.split(' ').collect();
            let devs = words.windows(2).filter(|pair| pair[0] == "dev");
            let devs: Vec<&str> = devs.map(|pair| pair[1]).collect();
            let slaves = devs
                .iter()
                .filter(|dev| vrf.slaves.iter().any(|own| own == *dev));
            // Routes that go back and forth between devices of the table and others are there, too.
            let share = match (slaves.count(), devs.len()) {
                (0, 0) => [60, 20, 20],
                (0, _) => [80, 0, 20],
                _ => [10, 75, 15],
            };
            let [here, there, _] = share;
            let drawn = dice.below(100);
            if drawn < here || drawn >= here + there {
                lines.push(line.clone());
            }
            if drawn >= here {
                // Next hops come last.
                let (head, hops) = match line.split_once(" nexthop ") {
                    Some((head, hops)) => (head.to_owned(), format!(" nexthop {hops}")),
                    None => (line, String::new()),
                };
                lines.push(format!("{head} table {}{hops}", vrf.table));
            }
        }
        self.world.places[vrf.place].ip = lines;
        let goals = self.goals();
        for goal in goals {
            let dash = if goal.v6 { "-6 " } else { "" };
            let mine = self.stations_of(vrf.place);
            let mut mine = mine.iter().filter(|own| vrf.slaves.contains(&own.dev));
            let near = mine.any(|own| goal.prefix.contains(&segment_of(own.segment, goal.v6)));
            // From the main table to the VRF's.
            if dice.percent(if near { 30 } else { 3 }) {
                let line = format!("{dash}route add {} dev {} metric 7", goal.prefix, vrf.dev);
                self.ip(vrf.place, line);
            }
        }
        for dash in ["", "-6 "] {
            if dice.percent(30) && (dash.is_empty() || self.v6) {
                let line = format!(
                    "{dash}route add unreachable default table {} metric 4278198272",
                    vrf.table
                );
                self.ip(vrf.place, line);
            }
        }
    }

    fn vrf_rules(&mut self, dice: &mut Dice, vrf: &Vrf) {
        for v6 in [false, true].into_iter().filter(|v6| !v6 || self.v6) {
            let dash = if v6 { "-6 " } else { "" };
            let mut rule = |words: &str| {
                self.world.places[vrf.place]
                    .ip
                    .push(format!("{dash}rule {words}"));
            };
            if dice.percent(25) {
                rule("add pref 32765 lookup local");
                rule("del pref 0");
            }
            if dice.percent(3) {
                let word = dice.one(&["iif", "oif"]);
                rule(&format!(
                    "add pref 900 {word} {} lookup {}",
                    vrf.dev, vrf.table
                ));
            }
            if dice.percent(12) {
                let slave = dice.one(&vrf.slaves);
                rule(&format!("add pref 910 iif {slave} lookup main"));
            }
            if dice.percent(20) {
                let own = self.addrs(vrf.place, v6);
                let addr = dice.one(&own);
                let rules = &mut self.world.places[vrf.place].ip;
                rules.push(format!(
                    "{dash}rule add pref 920 from {addr} lookup {}",
                    vrf.table
                ));
            }
        }
    }

    /// Binds the sockets of some packets from namespaces with VRFs to devices.
    pub fn bind(&self, seed: u64, probes: &mut [Probe]) {
        let mut dice = Dice::new(seed ^ 0x7672_6673_2e62_6e64);
        for probe in probes {
            let named = |vrf: &&Vrf| self.world.places[vrf.place].name == probe.from;
            let own: Vec<&Vrf> = self.vrfs.iter().filter(named).collect();
            let sends = !matches!(probe.kind, Kind::Error { .. });
            if own.is_empty() || !sends || probe.dst.is_loopback() {
                continue;
            }
            // An address can be bound to by who is bound to a device of its VRF alone.
            let station = self
                .stations
                .iter()
                .find(|own| Some(own.addr(probe.dst.is_ipv6())) == probe.src);
            let of =
                station.and_then(|own_by| own.iter().find(|vrf| vrf.slaves.contains(&own_by.dev)));
            let vrf = match (probe.src, of) {
                (None, _) => dice.one(&own),
                (Some(_), Some(vrf)) => vrf,
                (Some(_), None) => continue,
            };
            let others: Vec<String> = self
                .stations_of(vrf.place)
                .into_iter()
                .map(|s| s.dev)
                .collect();
            probe.dev = match dice.below(10) {
                6 => Some(dice.one(&vrf.slaves)),
                7 if probe.src.is_none() => Some(dice.one(&others)),
                8 | 9 if probe.src.is_none() => None,
                _ => Some(vrf.dev.clone()),
            };
        }
    }
}

/// What prefixes of a segment begin with.
fn segment_of(segment: usize, v6: bool) -> String {
    if v6 {
        format!("fd00:1:{segment:x}::/")
    } else {
        format!("10.1.{}.0/", segment * 4)
    }
}
