//! Devices and addresses: lines for `ip` and `bridge`, and the stations that they make.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{Plan, Port, Station};
use crate::random::dice::Dice;

/// Port of VXLAN in the laboratory.
const VXLAN_PORT: u16 = 8472;

impl Plan {
    /// Name of a namespace in lines.
    pub(super) fn at(&self, place: usize) -> String {
        format!("@{}@", self.world.places[place].name)
    }

    pub(super) fn device(&mut self, place: usize, prefix: &str) -> String {
        let next = self.devices.entry(place).or_default();
        *next += 1;
        format!("{prefix}{}", *next - 1)
    }

    pub(super) fn mac(&mut self) -> String {
        self.macs += 1;
        format!(
            "02:00:00:00:{:02x}:{:02x}",
            self.macs / 256,
            self.macs % 256
        )
    }

    pub(super) fn link(&mut self, place: usize, line: String) {
        self.world.places[place].links.push(line);
    }

    pub(in crate::random) fn ip(&mut self, place: usize, line: String) {
        self.world.places[place].ip.push(line);
    }

    pub(super) fn segment(&mut self) -> usize {
        self.segments += 1;
        self.segments - 1
    }

    /// Prefix length of a segment's IPv4 addresses.
    pub fn len4(segment: usize) -> usize {
        [24, 24, 25, 28, 22][segment % 5]
    }

    pub(super) fn join(&mut self, place: usize, segment: usize, dev: &str, mac: &str) {
        let host = self
            .stations
            .iter()
            .filter(|station| station.segment == segment)
            .count()
            + 1;
        let (byte, number) = (
            u8::try_from(host).unwrap_or(u8::MAX),
            u8::try_from(segment * 4).unwrap_or(u8::MAX),
        );
        let v4 = Ipv4Addr::new(10, 1, number, byte);
        let (group, own) = (
            u16::try_from(segment).unwrap_or(u16::MAX),
            u16::try_from(host).unwrap_or(u16::MAX),
        );
        let v6 = Ipv6Addr::new(0xfd00, 1, group, 0, 0, 0, 0, own);
        self.ip(
            place,
            format!("address add {v4}/{} dev {dev}", Self::len4(segment)),
        );
        if self.v6 {
            self.ip(place, format!("address add {v6}/64 dev {dev} nodad"));
        }
        self.stations.push(Station {
            place,
            segment,
            dev: dev.to_owned(),
            mac: mac.to_owned(),
            v4,
            v6,
        });
    }

    fn mtu(dice: &mut Dice) -> usize {
        dice.weighted(&[(12, 1500), (2, 1400), (2, 1280), (1, 1000), (1, 9000)])
    }

    /// A veth pair with addresses at both ends.
    pub(super) fn pair(&mut self, dice: &mut Dice, one: usize, other: usize) {
        let segment = self.segment();
        let (dev, peer) = (self.device(one, "e"), self.device(other, "e"));
        let (own, its) = (self.mac(), self.mac());
        let mtu = Self::mtu(dice);
        self.link(
            one,
            format!(
                "link add {dev} address {own} mtu {mtu} type veth peer name {peer} address {its} mtu {mtu} netns {}",
                self.at(other)
            ),
        );
        self.ip(one, format!("link set {dev} up"));
        self.ip(other, format!("link set {peer} up"));
        self.join(one, segment, &dev, &own);
        self.join(other, segment, &peer, &its);
        self.pairs.push([(one, dev), (other, peer)]);
    }

    /// A bridge, with an address of its namespace or without.
    pub(in crate::random) fn bridge(
        &mut self,
        dice: &mut Dice,
        place: usize,
        own: bool,
    ) -> (usize, String) {
        let segment = self.segment();
        let bridge = self.device(place, "br");
        let mac = self.mac();
        let mut more = String::new();
        if dice.percent(15) {
            more.push_str(" nf_call_iptables 1");
        }
        if dice.percent(10) {
            more.push_str(" nf_call_ip6tables 1");
        }
        self.link(
            place,
            format!(
                "link add {bridge} address {mac} type bridge stp_state 0 mcast_snooping 0 forward_delay 0{more}"
            ),
        );
        self.ip(place, format!("link set {bridge} up"));
        if own {
            self.join(place, segment, &bridge, &mac);
        }
        self.bridges.push((place, bridge.clone()));
        (segment, bridge)
    }

    /// A port of a bridge, and a namespace behind it.
    pub(in crate::random) fn port(
        &mut self,
        dice: &mut Dice,
        at: usize,
        bridge: &str,
        other: usize,
        segment: usize,
    ) {
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
        self.join(other, segment, &peer, &its);
        self.ports.push(Port {
            at,
            bridge: bridge.to_owned(),
            dev: dev.clone(),
            place: other,
            peer,
        });
        let flags = [
            (25, "hairpin on"),
            (10, "isolated on"),
            (5, "learning off"),
            (4, "flood off"),
        ];
        for (share, flag) in flags {
            if dice.percent(share) {
                self.world.places[at]
                    .bridge
                    .push(format!("link set dev {dev} {flag}"));
            }
        }
        if dice.percent(8) {
            self.world.places[at]
                .bridge
                .push(format!("fdb replace {its} dev {dev} master static"));
        }
    }

    /// A pair of devices of which one carries macvlans and the other is the namespace's own.
    pub(super) fn parent(&mut self, place: usize) -> (usize, String) {
        let segment = self.segment();
        let (dev, parent) = (self.device(place, "e"), self.device(place, "mp"));
        let (own, its) = (self.mac(), self.mac());
        self.link(
            place,
            format!("link add {dev} address {own} type veth peer name {parent} address {its}"),
        );
        self.ip(place, format!("link set {dev} up"));
        self.ip(place, format!("link set {parent} up"));
        self.join(place, segment, &dev, &own);
        (segment, parent)
    }

    /// A port of a bridge whose other end, without addresses, carries macvlans.
    pub(in crate::random) fn reflected(
        &mut self,
        at: usize,
        bridge: &str,
        other: usize,
        hairpin: &str,
    ) -> String {
        let (dev, parent) = (self.device(at, "p"), self.device(other, "mp"));
        let (own, its) = (self.mac(), self.mac());
        self.link(
            at,
            format!(
                "link add {dev} address {own} type veth peer name {parent} address {its} netns {}",
                self.at(other)
            ),
        );
        self.ip(at, format!("link set {dev} master {bridge} up"));
        self.ip(other, format!("link set {parent} up"));
        self.world.places[at]
            .bridge
            .push(format!("link set dev {dev} hairpin {hairpin}"));
        parent
    }

    pub(super) fn macvlan(
        &mut self,
        dice: &mut Dice,
        at: usize,
        parent: &str,
        other: usize,
        segment: usize,
    ) {
        let mode = dice.weighted(&[(6, "bridge"), (1, "private"), (1, "vepa")]);
        self.macvlan_of(at, parent, other, segment, mode);
    }

    /// A macvlan of one mode.
    pub(in crate::random) fn macvlan_of(
        &mut self,
        at: usize,
        parent: &str,
        other: usize,
        segment: usize,
        mode: &str,
    ) {
        let dev = self.device(other, "m");
        let mac = self.mac();
        self.link(
            at,
            format!(
                "link add link {parent} name {dev} address {mac} netns {} type macvlan mode {mode}",
                self.at(other)
            ),
        );
        self.ip(other, format!("link set {dev} up"));
        self.join(other, segment, &dev, &mac);
    }

    /// A VXLAN between two namespaces that reach each other by IPv4.
    pub(super) fn tunnel(&mut self, dice: &mut Dice) {
        let number = self.world.places.len();
        let (one, other) = (dice.below(number), dice.below(number));
        let of = |place: usize| self.stations.iter().find(|station| station.place == place);
        let (Some(near), Some(far)) = (of(one).map(|s| s.v4), of(other).map(|s| s.v4)) else {
            return;
        };
        if one == other {
            return;
        }
        let segment = self.segment();
        let vni = 1 + dice.below(2);
        let by_entry = dice.percent(50);
        let mut ends = Vec::new();
        for (place, local, remote) in [(one, near, far), (other, far, near)] {
            let (dev, mac) = (self.device(place, "vx"), self.mac());
            let how = if by_entry {
                "nolearning".to_owned()
            } else {
                format!("remote {remote}")
            };
            self.link(
                place,
                format!(
                    "link add {dev} address {mac} mtu 1400 type vxlan id {vni} local {local} dstport {VXLAN_PORT} {how}"
                ),
            );
            self.ip(place, format!("link set {dev} up"));
            self.join(place, segment, &dev, &mac);
            ends.push((place, dev, mac, local));
        }
        if by_entry && ends.len() == 2 {
            for (own, its) in [(0, 1), (1, 0)] {
                let (place, dev, _, _) = ends[own].clone();
                let (_, _, mac, remote) = ends[its].clone();
                let lines = &mut self.world.places[place].bridge;
                lines.push(format!(
                    "fdb replace {mac} dev {dev} dst {remote} self permanent"
                ));
                if dice.percent(60) {
                    lines.push(format!(
                        "fdb append 00:00:00:00:00:00 dev {dev} dst {remote} self permanent"
                    ));
                }
            }
        }
    }

    /// Addresses on loopback, second addresses of devices, and what every namespace has.
    pub(super) fn extra_addresses(&mut self, dice: &mut Dice) {
        for place in 0..self.world.places.len() {
            self.ip(place, "link set lo up".to_owned());
            let byte = u8::try_from(place).unwrap_or(u8::MAX);
            if dice.percent(40) {
                let addr = Ipv4Addr::new(10, 200, byte, 1);
                self.ip(place, format!("address add {addr}/32 dev lo"));
                self.loose.push((place, addr.into()));
                if self.v6 {
                    let group = u16::try_from(place).unwrap_or(u16::MAX);
                    let addr = Ipv6Addr::new(0xfd00, 0x200, group, 0, 0, 0, 0, 1);
                    self.ip(place, format!("address add {addr}/128 dev lo nodad"));
                    self.loose.push((place, addr.into()));
                }
            }
            let own = self.stations_of(place);
            for station in own {
                if dice.percent(12) {
                    let [a, b, c, d] = station.v4.octets();
                    let second = Ipv4Addr::new(a, b, c, d + 8);
                    let len = dice.one(&[32, Self::len4(station.segment)]);
                    self.ip(
                        place,
                        format!("address add {second}/{len} dev {}", station.dev),
                    );
                    if len == 32 {
                        self.loose.push((place, second.into()));
                    }
                }
            }
        }
    }
}
