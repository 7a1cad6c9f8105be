//! Who is connected with whom: the part of a network that its routes, rules and packets are made from.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::dice::Dice;
use super::world::{Place, Setting, World};

/// Port of VXLAN in the laboratory.
const VXLAN_PORT: u16 = 8472;

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
    devices: BTreeMap<usize, usize>,
    macs: usize,
}

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

impl Station {
    /// Address of a family.
    pub fn addr(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}

impl Plan {
    /// Namespaces, devices and addresses.
    pub fn draw(dice: &mut Dice) -> Self {
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

    /// Name of a namespace in lines.
    fn at(&self, place: usize) -> String {
        format!("@{}@", self.world.places[place].name)
    }

    fn device(&mut self, place: usize, prefix: &str) -> String {
        let next = self.devices.entry(place).or_default();
        *next += 1;
        format!("{prefix}{}", *next - 1)
    }

    fn mac(&mut self) -> String {
        self.macs += 1;
        format!(
            "02:00:00:00:{:02x}:{:02x}",
            self.macs / 256,
            self.macs % 256
        )
    }

    fn link(&mut self, place: usize, line: String) {
        self.world.places[place].links.push(line);
    }

    fn ip(&mut self, place: usize, line: String) {
        self.world.places[place].ip.push(line);
    }

    fn segment(&mut self) -> usize {
        self.segments += 1;
        self.segments - 1
    }

    /// Prefix length of a segment's IPv4 addresses.
    pub fn len4(segment: usize) -> usize {
        [24, 24, 25, 28, 22][segment % 5]
    }

    fn join(&mut self, place: usize, segment: usize, dev: &str, mac: &str) {
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
    fn pair(&mut self, dice: &mut Dice, one: usize, other: usize) {
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
    }

    /// A bridge, with an address of its namespace or without.
    fn bridge(&mut self, dice: &mut Dice, place: usize, own: bool) -> (usize, String) {
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
    fn port(&mut self, dice: &mut Dice, at: usize, bridge: &str, other: usize, segment: usize) {
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
    fn parent(&mut self, place: usize) -> (usize, String) {
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

    fn macvlan(&mut self, dice: &mut Dice, at: usize, parent: &str, other: usize, segment: usize) {
        let dev = self.device(other, "m");
        let mac = self.mac();
        let mode = dice.weighted(&[(6, "bridge"), (1, "private"), (1, "vepa")]);
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
    fn tunnel(&mut self, dice: &mut Dice) {
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
    fn extra_addresses(&mut self, dice: &mut Dice) {
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
            let own: Vec<Station> = self
                .stations
                .iter()
                .filter(|station| station.place == place)
                .cloned()
                .collect();
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

    /// Fixes who has which link-layer address, so that nobody is asked: everywhere, or only where answers come late
    /// (macvlan hands on what is for all by a work queue) or by ways that are not followed.
    pub fn pin(&mut self, dice: &mut Dice, everywhere: bool) {
        let stations = self.stations.clone();
        for own in &stations {
            for other in &stations {
                let same = own.segment == other.segment && own.place != other.place;
                let mut here = stations.iter().filter(|s| s.segment == own.segment);
                let late = here.any(|s| s.dev.starts_with('m') || s.dev.starts_with("vx"));
                let asked = if everywhere { dice.percent(2) } else { true };
                if !same || asked && !late {
                    continue;
                }
                for v6 in [false, true] {
                    if v6 && !self.v6 {
                        continue;
                    }
                    let (addr, mac, dev) = (other.addr(v6), &other.mac, &own.dev);
                    self.ip(
                        own.place,
                        format!("neigh replace {addr} lladdr {mac} dev {dev} nud permanent"),
                    );
                }
            }
        }
    }

    /// Settings that make every refusal heard, at once.
    pub fn settings(&mut self, dice: &mut Dice) {
        let loud: [(&str, &str); 17] = [
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv6/conf/all/accept_dad", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/all/accept_ra", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv6/conf/all/disable_ipv6", "0"),
            ("ipv6/conf/default/disable_ipv6", "0"),
            ("ipv4/icmp_ratelimit", "0"),
            ("ipv4/icmp_ratemask", "0"),
            ("ipv4/icmp_msgs_per_sec", "1000000"),
            ("ipv4/icmp_msgs_burst", "1000000"),
            ("ipv6/icmp/ratelimit", "0"),
            ("ipv4/tcp_invalid_ratelimit", "0"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/default/send_redirects", "0"),
            ("ipv6/conf/default/accept_redirects", "0"),
        ];
        let routers = self.routers.clone();
        let nf = dice.percent(50);
        for (number, place) in self.world.places.iter_mut().enumerate() {
            let mut set = |name: &str, value: &str| {
                place.early.push(Setting(name.to_owned(), value.to_owned()));
            };
            for (name, value) in loud {
                set(name, value);
            }
            let forwards = if routers.contains(&number) {
                !dice.percent(4)
            } else {
                dice.percent(6)
            };
            if forwards {
                set("ipv4/ip_forward", "1");
                if !dice.percent(3) {
                    set("ipv6/conf/all/forwarding", "1");
                }
            }
            let on = if nf { "1" } else { "0" };
            set("bridge/bridge-nf-call-iptables", on);
            set("bridge/bridge-nf-call-ip6tables", on);
            if dice.percent(10) {
                let ttl = dice.one(&["2", "3", "5", "128", "255"]);
                set("ipv4/ip_default_ttl", ttl);
            }
            if dice.percent(5) {
                set("ipv4/icmp_echo_ignore_all", "1");
            }
        }
        for station in self.stations.clone() {
            let late = &mut self.world.places[station.place].late;
            let dev = &station.dev;
            let mut maybe = |share: usize, family: &str, name: &str, values: &[&str]| {
                if dice.percent(share) {
                    let value = dice.one(values).to_owned();
                    let name = format!("{family}/conf/{dev}/{name}");
                    late.push(Setting(name, value));
                }
            };
            maybe(15, "ipv4", "rp_filter", &["1", "2"]);
            maybe(4, "ipv4", "forwarding", &["0", "1"]);
            maybe(5, "ipv4", "proxy_arp", &["1"]);
            maybe(4, "ipv4", "arp_ignore", &["1", "2"]);
            maybe(4, "ipv4", "arp_announce", &["1", "2"]);
            maybe(3, "ipv4", "arp_filter", &["1"]);
            maybe(3, "ipv4", "accept_local", &["1"]);
            maybe(3, "ipv4", "route_localnet", &["1"]);
            maybe(3, "ipv4", "src_valid_mark", &["1"]);
            maybe(2, "ipv6", "disable_ipv6", &["1"]);
            maybe(2, "ipv6", "hop_limit", &["3", "70"]);
        }
    }

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

    /// All addresses of a namespace.
    pub fn addrs(&self, place: usize, v6: bool) -> Vec<IpAddr> {
        let own = self.stations.iter().filter(|s| s.place == place);
        let mut all: Vec<IpAddr> = own.map(|station| station.addr(v6)).collect();
        let loose = self.loose.iter().filter(|(at, _)| *at == place);
        all.extend(loose.map(|(_, addr)| *addr).filter(|a| a.is_ipv6() == v6));
        all
    }
}
