//! Topics: what chance alone puts together too rarely for a fault in it to be seen. A network gets some of them, each
//! with packets that it matters to; they have dice of their own.

mod bridge;
mod mark;
mod nat;
mod neigh;
mod rule;

use std::net::{IpAddr, Ipv6Addr};

use netpath::model::packet::{ICMP, ICMPV6, TCP, UDP};

use super::dice::Dice;
use super::plan::{Plan, Station};
use super::world::{Listener, Rules, Setting, Table};

/// Tables of iptables at the hooks that rules of topics are at.
const CHAINS: [(&str, &[&str]); 3] = [
    (
        "mangle",
        &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
    ),
    ("nat", &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]),
    ("filter", &["INPUT", "FORWARD", "OUTPUT"]),
];

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Topic {
    Hairpin,
    Reflector,
    Isolated,
    ProxyArp,
    ArpIgnore,
    Connmark,
    MarkMask,
    MarkBetween,
    Redirect,
    Port,
    Localnet,
    RuleProtocol,
    RuleGoto,
    RuleSuppressor,
}

/// A packet that a topic matters to.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Position of the namespace that it is sent from.
    pub from: usize,
    /// IPPROTO_*.
    pub protocol: u8,
    /// Address it is sent from; `None`: the kernel chooses.
    pub src: Option<IpAddr>,
    /// Destination.
    pub dst: IpAddr,
    /// Its port.
    pub dport: u16,
}

/// Topics of a network.
pub struct Topics {
    dice: Dice,
    all: Vec<Topic>,
    asks: Vec<Ask>,
}

/// A way by a router.
#[derive(Clone, Debug)]
struct Way {
    /// Where it begins.
    own: Station,
    /// The router's device on the first segment.
    router: Station,
    /// Namespace at its end.
    to: usize,
}

impl Topics {
    /// Those of a seed: of three networks, one has none.
    pub fn draw(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x746f_7069_6373);
        let number = dice.weighted(&[(3, 0), (4, 1), (2, 2)]);
        let all = [
            (3, Topic::Hairpin),
            (2, Topic::Reflector),
            (2, Topic::Isolated),
            (2, Topic::ProxyArp),
            (3, Topic::ArpIgnore),
            (2, Topic::Connmark),
            (2, Topic::MarkMask),
            (2, Topic::MarkBetween),
            (2, Topic::Redirect),
            (2, Topic::Port),
            (3, Topic::Localnet),
            (2, Topic::RuleProtocol),
            (2, Topic::RuleGoto),
            (2, Topic::RuleSuppressor),
        ];
        let mut own: Vec<Topic> = Vec::new();
        for _ in 0..number {
            let topic = dice.weighted(&all);
            if !own.contains(&topic) {
                own.push(topic);
            }
        }
        Self {
            dice,
            all: own,
            asks: Vec::new(),
        }
    }

    /// Whether the network's other rules are left out, so that packets get as far as what matters.
    pub fn alone(&mut self) -> bool {
        !self.all.is_empty() && self.dice.percent(60)
    }

    /// Devices that topics need, before there are addresses of loopback, routes and neighbours.
    pub fn devices(&mut self, plan: &mut Plan) {
        for topic in self.all.clone() {
            match topic {
                Topic::Hairpin | Topic::Isolated => bridge::switch(&mut self.dice, plan),
                Topic::Reflector => self.asks.extend(bridge::reflector(&mut self.dice, plan)),
                _ => {}
            }
        }
    }

    /// Lines and rules, behind and before those that there are, and the packets that they matter to.
    pub fn lines(mut self, plan: &mut Plan) -> Vec<Ask> {
        let dice = &mut self.dice;
        for topic in self.all {
            let asks = match topic {
                Topic::Hairpin => bridge::hairpin(dice, plan),
                Topic::Isolated => bridge::isolated(dice, plan),
                Topic::Reflector => Vec::new(),
                Topic::ProxyArp => neigh::proxy(dice, plan),
                Topic::ArpIgnore => neigh::ignore(dice, plan),
                Topic::Connmark => mark::connection(dice, plan),
                Topic::MarkMask => mark::mask(dice, plan),
                Topic::MarkBetween => mark::between(dice, plan),
                Topic::Redirect => nat::redirect(dice, plan),
                Topic::Port => nat::port(dice, plan),
                Topic::Localnet => nat::localnet(dice, plan),
                Topic::RuleProtocol => rule::protocol(dice, plan),
                Topic::RuleGoto => rule::goto(dice, plan),
                Topic::RuleSuppressor => rule::suppressor(dice, plan),
            };
            self.asks.extend(asks);
        }
        self.asks
    }
}

impl Ask {
    /// TCP and UDP to ports of servers, and an echo.
    pub fn usual(from: usize, src: Option<IpAddr>, dst: IpAddr) -> Vec<Self> {
        let echo = if dst.is_ipv6() { ICMPV6 } else { ICMP };
        [(TCP, 80), (TCP, 8080), (UDP, 53), (echo, 0)]
            .map(|(protocol, dport)| Self {
                from,
                protocol,
                src,
                dst,
                dport,
            })
            .to_vec()
    }

    fn tcp(from: usize, dst: IpAddr, dport: u16) -> Self {
        Self {
            from,
            protocol: TCP,
            src: None,
            dst,
            dport,
        }
    }

    fn udp(from: usize, dst: IpAddr, dport: u16) -> Self {
        Self {
            protocol: UDP,
            ..Self::tcp(from, dst, dport)
        }
    }
}

impl Plan {
    /// All ways that lead by a router.
    fn ways(&self) -> Vec<Way> {
        let mut ways = Vec::new();
        for from in 0..self.world.places.len() {
            for to in 0..self.world.places.len() {
                let hops = self.next_hops(from, &[to]);
                let hops = hops.into_iter().filter(|(_, other)| other.place != to);
                ways.extend(hops.map(|(own, router)| Way { own, router, to }));
            }
        }
        ways
    }

    fn way(&self, dice: &mut Dice) -> Option<Way> {
        let ways = self.ways();
        (!ways.is_empty()).then(|| dice.one(&ways))
    }

    /// A family that the network has.
    fn family(&self, dice: &mut Dice) -> bool {
        self.v6 && dice.percent(35)
    }

    /// A way, a family, and the address at the way's end that is asked for.
    fn asked(&self, dice: &mut Dice) -> Option<(Way, bool, IpAddr)> {
        let way = self.way(dice)?;
        let v6 = self.family(dice);
        let dst = self.address(way.to, v6)?;
        Some((way, v6, dst))
    }

    /// An address on a segment of a namespace.
    fn address(&self, place: usize, v6: bool) -> Option<IpAddr> {
        self.addrs(place, v6).first().copied()
    }

    /// A setting after all others.
    fn set(&mut self, place: usize, name: &str, value: &str) {
        let late = &mut self.world.places[place].late;
        late.push(Setting(name.to_owned(), value.to_owned()));
    }

    /// A server of TCP on all addresses.
    fn listen(&mut self, place: usize, port: u16) {
        let all = &mut self.world.places[place].listeners;
        all.retain(|own| own.udp || own.port != port);
        all.push(Listener {
            udp: false,
            addr: Ipv6Addr::UNSPECIFIED.into(),
            port,
            dev: None,
        });
    }

    /// Rules of iptables before all others of a namespace, by its backend: tables with their rules.
    fn first_rules(&mut self, dice: &mut Dice, place: usize, v6: bool, rules: &[(&str, String)]) {
        let own = &mut self.world.places[place].rules;
        let known = own.iter().find_map(|rules| match rules {
            Rules::Iptables { legacy, .. } => Some(*legacy),
            Rules::Nft(_) => None,
        });
        let legacy = match known {
            Some(legacy) => legacy,
            None => own.is_empty() && dice.percent(40),
        };
        let mut tables = Vec::new();
        for (name, chains) in CHAINS {
            let of_table = rules.iter().filter(|(table, _)| *table == name);
            let rules: Vec<String> = of_table.map(|(_, rule)| rule.clone()).collect();
            if !rules.is_empty() {
                tables.push(Table {
                    name: name.to_owned(),
                    chains: chains.iter().map(|at| format!(":{at} ACCEPT")).collect(),
                    rules,
                });
            }
        }
        own.insert(0, Rules::Iptables { legacy, v6, tables });
    }
}

/// What becomes of packets that a rule of filter is about.
fn verdict(dice: &mut Dice) -> &'static str {
    dice.weighted(&[(3, "-j DROP"), (2, "-j REJECT"), (1, "-j ACCEPT")])
}

/// An address as rules of NAT take it, with a port.
fn with_port(addr: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(addr, port).to_string()
}
