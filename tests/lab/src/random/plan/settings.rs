//! Fixed neighbours, and settings below `/proc/sys/net`.

use super::Plan;
use crate::random::dice::Dice;
use crate::random::world::Setting;

/// Settings that make every refusal heard, at once.
pub(in crate::random) const LOUD: [(&str, &str); 17] = [
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

/// Beginnings of names of devices on which nobody is asked: macvlan, VXLAN, Geneve.
const LATE: [&str; 3] = ["m", "vx", "gv"];

impl Plan {
    /// Fixes who has which link-layer address, so that nobody is asked: everywhere, or only where answers come late
    /// (macvlan hands on what is for all by a work queue) or by ways that are not followed.
    pub fn pin(&mut self, dice: &mut Dice, everywhere: bool) {
        let stations = self.stations.clone();
        for own in &stations {
            for other in &stations {
                let same = own.segment == other.segment && own.place != other.place;
                // Tunnels of IP have no neighbours.
                let same = same && !own.mac.is_empty() && !other.mac.is_empty();
                let mut here = stations.iter().filter(|s| s.segment == own.segment);
                let late = here.any(|s| LATE.iter().any(|kind| s.dev.starts_with(kind)));
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
        let routers = self.routers.clone();
        let nf = dice.percent(50);
        for (number, place) in self.world.places.iter_mut().enumerate() {
            let mut set = |name: &str, value: &str| {
                place.early.push(Setting(name.to_owned(), value.to_owned()));
            };
            for (name, value) in LOUD {
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
            // Answers for others come at once, not at some time in the next second.
            let name = format!("ipv4/neigh/{dev}/proxy_delay");
            late.push(Setting(name, "0".to_owned()));
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
}
