//! VLANs: devices of 802.1Q, and bridges that filter.

use super::{Plan, Port, Station};
use crate::random::dice::Dice;
use crate::random::topic::Ask;

/// One VLAN of a bridge.
struct Vlan {
    id: usize,
    segment: usize,
}

impl Plan {
    /// 802.1Q on both ends of a veth pair, or on two ports' other ends of one bridge.
    pub(super) fn vlan(&mut self, dice: &mut Dice) -> Vec<Ask> {
        let switched = dice.percent(30);
        let mut ways = if switched {
            Vec::new()
        } else {
            self.pairs.clone()
        };
        if switched {
            for one in &self.ports {
                let like = |other: &&Port| {
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
            self.tagged(dice, (at, &below, None), place, (segment, id));
        }
        self.through(dice, segment)
    }

    /// A device for a VLAN on top of another, which may be in another namespace.
    fn tagged(
        &mut self,
        dice: &mut Dice,
        (at, below, mac): (usize, &str, Option<&str>),
        place: usize,
        (segment, id): (usize, usize),
    ) {
        let dev = self.device(place, "vl");
        let mac = match mac {
            Some(mac) => mac.to_owned(),
            None => self.mac_of(dice, at, below),
        };
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

    /// The link-layer address of the device below, or one of its own.
    fn mac_of(&mut self, dice: &mut Dice, place: usize, below: &str) -> String {
        let mut stations = self.stations.iter();
        let known = stations.find(|own| own.place == place && own.dev == below);
        match known.filter(|_| dice.percent(50)) {
            Some(known) => known.mac.clone(),
            None => self.mac(),
        }
    }

    /// A bridge that filters VLANs: ports that are each in one, a trunk or two with devices for them, and itself.
    pub(super) fn vlan_filtering(&mut self, dice: &mut Dice) -> Vec<Ask> {
        let number = self.world.places.len();
        let at = dice.below(number);
        let (bridge, mac) = (self.device(at, "br"), self.mac());
        let default = dice.weighted(&[
            (4, ""),
            (3, " vlan_default_pvid 0"),
            (2, " vlan_default_pvid 10"),
        ]);
        let nf = dice.weighted(&[
            (6, ""),
            (1, " nf_call_iptables 1"),
            (1, " nf_call_ip6tables 1"),
        ]);
        self.link(
            at,
            format!(
                "link add {bridge} address {mac} type bridge stp_state 0 mcast_snooping 0 forward_delay 0 vlan_filtering 1{default}{nf}"
            ),
        );
        self.ip(at, format!("link set {bridge} up"));
        self.bridges.push((at, bridge.clone()));
        let vlans = [10, 20].map(|id| Vlan {
            id,
            segment: self.segment(),
        });
        self.vlans_of_itself(dice, at, (&bridge, &mac), &vlans);
        for _ in 0..2 + dice.below(3) {
            let other = dice.below(number);
            if other == at {
                continue;
            }
            if dice.percent(30) {
                self.trunk(dice, (at, &bridge), other, &vlans);
            } else {
                self.access(dice, (at, &bridge), other, &vlans);
            }
        }
        let mut asks = self.through(dice, vlans[0].segment);
        asks.extend(self.through(dice, vlans[1].segment));
        asks
    }

    /// Its own address in one of them, and a device for the other, or none.
    fn vlans_of_itself(
        &mut self,
        dice: &mut Dice,
        at: usize,
        (bridge, mac): (&str, &str),
        vlans: &[Vlan; 2],
    ) {
        let [one, other] = vlans;
        if dice.percent(50) {
            self.join(at, one.segment, bridge, mac);
            // Without this, it is in the default one, if there is any.
            if dice.percent(90) {
                self.member(
                    at,
                    &format!("dev {bridge} vid {} pvid untagged self", one.id),
                );
            }
        }
        if dice.percent(40) {
            // The kernel gives it the bridge's address; with another one, the bridge takes all frames.
            let address = (!dice.percent(6)).then_some(mac);
            self.tagged(dice, (at, bridge, address), at, (other.segment, other.id));
            if dice.percent(90) {
                self.member(at, &format!("dev {bridge} vid {} self", other.id));
            }
        }
        if dice.percent(20) {
            self.member(at, &format!("dev {bridge} vid {} untagged self", other.id));
        }
    }

    fn member(&mut self, at: usize, what: &str) {
        self.world.places[at]
            .bridge
            .push(format!("vlan add {what}"));
    }

    /// A port, and the device of a namespace at its other end.
    fn filtered_port(
        &mut self,
        dice: &mut Dice,
        (at, bridge): (usize, &str),
        other: usize,
    ) -> (String, Station) {
        let (dev, peer) = (self.device(at, "p"), self.device(other, "e"));
        let (own, its) = (self.mac(), self.mac());
        self.link(
            at,
            format!(
                "link add {dev} address {own} type veth peer name {peer} address {its} netns {}",
                self.at(other)
            ),
        );
        self.ip(at, format!("link set {dev} master {bridge} up"));
        self.ip(other, format!("link set {peer} up"));
        self.ports.push(Port {
            at,
            bridge: bridge.to_owned(),
            dev: dev.clone(),
            place: other,
            peer: peer.clone(),
        });
        for (share, flag) in [
            (15, "hairpin on"),
            (8, "isolated on"),
            (5, "learning off"),
            (4, "flood off"),
        ] {
            if dice.percent(share) {
                let line = format!("link set dev {dev} {flag}");
                self.world.places[at].bridge.push(line);
            }
        }
        let station = Station {
            place: other,
            segment: usize::MAX,
            dev: peer,
            mac: its,
            v4: std::net::Ipv4Addr::UNSPECIFIED,
            v6: std::net::Ipv6Addr::UNSPECIFIED,
        };
        (dev, station)
    }

    /// A port in one VLAN.
    fn access(
        &mut self,
        dice: &mut Dice,
        (at, bridge): (usize, &str),
        other: usize,
        vlans: &[Vlan; 2],
    ) {
        let (dev, own) = self.filtered_port(dice, (at, bridge), other);
        let [first, second] = vlans;
        let (vlan, rest) = if dice.percent(65) {
            (first, second)
        } else {
            (second, first)
        };
        self.join(other, vlan.segment, &own.dev, &own.mac);
        let how = dice.weighted(&[
            (12, " pvid untagged"),
            (1, " pvid"),
            (1, " untagged"),
            (1, ""),
        ]);
        self.member(at, &format!("dev {dev} vid {}{how}", vlan.id));
        // What it sends, and what it is sent, are of two VLANs.
        if dice.percent(10) {
            self.member(at, &format!("dev {dev} vid {} untagged", rest.id));
        }
        if dice.percent(50) {
            self.world.places[at]
                .bridge
                .push(format!("vlan del dev {dev} vid 1"));
        }
        if dice.percent(10) {
            let line = format!(
                "fdb replace {} dev {dev} master static vlan {}",
                own.mac, vlan.id
            );
            self.world.places[at].bridge.push(line);
        }
    }

    /// A port in several, with a device for each at its other end; what has no tag is of one of them, maybe.
    fn trunk(
        &mut self,
        dice: &mut Dice,
        (at, bridge): (usize, &str),
        other: usize,
        vlans: &[Vlan; 2],
    ) {
        let (dev, own) = self.filtered_port(dice, (at, bridge), other);
        let native = dice.weighted(&[(5, None), (1, Some(0)), (1, Some(1))]);
        if dice.percent(30) {
            self.member(at, &format!("dev {dev} vid 10-20"));
        }
        for (number, vlan) in vlans.iter().enumerate() {
            if native == Some(number) {
                self.join(other, vlan.segment, &own.dev, &own.mac);
                self.member(at, &format!("dev {dev} vid {} pvid untagged", vlan.id));
                continue;
            }
            self.tagged(
                dice,
                (other, &own.dev, None),
                other,
                (vlan.segment, vlan.id),
            );
            if dice.percent(92) {
                self.member(at, &format!("dev {dev} vid {}", vlan.id));
            }
        }
    }
}
