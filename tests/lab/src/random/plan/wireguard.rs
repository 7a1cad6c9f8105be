//! WireGuard between two or three namespaces: keys, peers, what is allowed to whom, and where each is.

use std::net::{IpAddr, SocketAddr};

use netpath::model::wireguard::PublicKey;

use super::tunnels::Ends;
use super::{Plan, Station};
use crate::random::dice::Dice;
use crate::random::routes::MARKS;
use crate::random::topic::Ask;
use crate::random::wireguard::PORTS;

/// What one end has otherwise than the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The peer's endpoint is somewhere else.
    Endpoint,
    /// Its port is another one.
    Port,
    /// It is not told at all.
    Unset,
    /// Another key of the peer.
    Key,
    /// A preshared key that the other does not know.
    Preshared,
}

/// One device.
struct Own {
    place: usize,
    dev: String,
    key: String,
    port: u16,
    station: Station,
}

impl Plan {
    /// One with a peer or two, and a device at each of these.
    pub(super) fn wireguard(&mut self, dice: &mut Dice) -> Vec<Ask> {
        let v6 = self.v6 && dice.percent(25);
        let Some(first) = self.ends(dice, v6, None) else {
            return Vec::new();
        };
        let [hub, spoke] = first.places;
        let mut all = vec![first];
        if dice.percent(30)
            && let Some(second) = self.ends(dice, v6, Some(hub))
            && second.places[1] != spoke
        {
            all.push(second);
        }
        let segment = self.segment();
        let mut devices = vec![self.wireguard_device(dice, hub, segment)];
        for ends in &all {
            self.lead(dice, ends);
            devices.push(self.wireguard_device(dice, ends.places[1], segment));
        }
        let preshared = dice.percent(25).then(|| key(dice));
        for (number, ends) in all.iter().enumerate() {
            let fault = dice.weighted(&[
                (18, None),
                (1, Some(Fault::Endpoint)),
                (1, Some(Fault::Port)),
                (3, Some(Fault::Unset)),
                (1, Some(Fault::Key)),
                (1, Some(Fault::Preshared)),
            ]);
            let broken = dice.below(2);
            let pair = [&devices[0], &devices[number + 1]];
            for (end, far) in [(0, 1), (1, 0)] {
                let fault = fault.filter(|_| end == broken);
                let line = self.peer(dice, ends, pair[end], pair[far], (end, fault, &preshared));
                let place = pair[end].place;
                self.world.places[place].wireguard.push(line);
            }
        }
        self.through(dice, segment)
    }

    fn wireguard_device(&mut self, dice: &mut Dice, place: usize, segment: usize) -> Own {
        let dev = self.device(place, "wg");
        let known = &self.world.places[place].wireguard;
        let before = known
            .iter()
            .filter(|line| line.contains(" listen-port "))
            .count();
        let port = PORTS.start() + u16::try_from(before).unwrap_or(0);
        let key = key(dice);
        let mtu = dice.weighted(&[(6, ""), (2, " mtu 1300"), (1, " mtu 1500")]);
        self.link(place, format!("link add {dev}{mtu} type wireguard"));
        self.ip(place, format!("link set {dev} up"));
        self.join(place, segment, &dev, "");
        let mark = if dice.percent(10) {
            format!(" fwmark {:#x}", dice.one(&MARKS))
        } else {
            String::new()
        };
        let line = format!("set {dev} listen-port {port} private-key {key}{mark}");
        self.world.places[place].wireguard.push(line);
        let mut own = self
            .stations
            .iter()
            .filter(|own| own.place == place && own.dev == dev);
        // It was joined above.
        let station = own
            .next()
            .cloned()
            .unwrap_or_else(|| self.stations[0].clone());
        Own {
            place,
            dev,
            key,
            port,
            station,
        }
    }

    /// What one end is told of the other.
    fn peer(
        &self,
        dice: &mut Dice,
        ends: &Ends,
        own: &Own,
        its: &Own,
        (end, fault, preshared): (usize, Option<Fault>, &Option<String>),
    ) -> String {
        let whose = match fault {
            Some(Fault::Key) => key(dice),
            _ => its.key.clone(),
        };
        let mut line = format!("set {} peer of {whose}", own.dev);
        let preshared = match fault {
            Some(Fault::Preshared) => Some(key(dice)),
            _ => preshared.clone(),
        };
        if let Some(key) = preshared {
            line.push_str(&format!(" preshared-key {key}"));
        }
        let addr = ends.addrs[1 - end];
        let endpoint = match fault {
            Some(Fault::Unset) => None,
            Some(Fault::Port) => Some(SocketAddr::new(addr, PORTS.end() - 1)),
            Some(Fault::Endpoint) => {
                let third = dice.below(self.world.places.len());
                let other = self.addrs(third, addr.is_ipv6()).last().copied();
                other.map(|other| SocketAddr::new(other, its.port))
            }
            _ => Some(SocketAddr::new(addr, its.port)),
        };
        if let Some(endpoint) = endpoint {
            line.push_str(&format!(" endpoint {endpoint}"));
        }
        let allowed = self.allowed(dice, ends, (own.place, its));
        if !allowed.is_empty() {
            line.push_str(&format!(" allowed-ips {}", allowed.join(",")));
        }
        line
    }

    /// Prefixes of a peer: its own addresses, what is behind it, all, or too few.
    fn allowed(&self, dice: &mut Dice, ends: &Ends, (place, its): (usize, &Own)) -> Vec<String> {
        let mut allowed = Vec::new();
        for v6 in [false, true] {
            if v6 && !self.v6 {
                continue;
            }
            let len = if v6 { 128 } else { 32 };
            if dice.percent(90) {
                allowed.push(format!("{}/{len}", its.station.addr(v6)));
            }
            if dice.percent(45) {
                allowed.push(if v6 { "::/0" } else { "0.0.0.0/0" }.to_owned());
            }
            for goal in self.goals().into_iter().filter(|goal| goal.v6 == v6) {
                let behind = goal.owners.contains(&its.place);
                if dice.percent(if behind { 70 } else { 8 }) {
                    allowed.push(goal.prefix);
                }
            }
        }
        // Overlapping ones of another peer are the longest's; the same one is the last's.
        if dice.percent(10) {
            let mut others = self.addrs(place, false);
            others.extend(ends.addrs.iter().filter(|addr: &&IpAddr| addr.is_ipv4()));
            if !others.is_empty() {
                allowed.push(format!("{}/32", dice.one(&others)));
            }
        }
        allowed
    }
}

/// A private key, as `wg genkey` prints one.
fn key(dice: &mut Dice) -> String {
    let mut bytes = [0; 32];
    for byte in &mut bytes {
        *byte = u8::try_from(dice.below(256)).unwrap_or(0);
    }
    bytes[0] &= 0xf8;
    bytes[31] = bytes[31] & 0x7f | 0x40;
    // Both kinds of keys are printed alike.
    PublicKey(bytes).to_string()
}
