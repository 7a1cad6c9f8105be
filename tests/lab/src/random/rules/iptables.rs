//! Random tables for `iptables-restore`.

use super::Scene;
use crate::random::dice::Dice;
use crate::random::routes::MARKS;
use crate::random::world::{Rules, Table};

const PORTS: [&str; 6] = ["53", "80", "8053", "8080", "81", "30080"];

/// A chain's rules are drawn for the hook that it is at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum At {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    /// A chain of the user's, which any of them may jump to.
    User,
}

struct Pen<'d, 's> {
    dice: &'d mut Dice,
    scene: &'s Scene,
    ipsets: &'d mut Vec<String>,
    v6: bool,
}

/// All tables of a family.
pub fn draw(
    dice: &mut Dice,
    scene: &Scene,
    ipsets: &mut Vec<String>,
    legacy: bool,
    v6: bool,
) -> Rules {
    let mut pen = Pen {
        dice,
        scene,
        ipsets,
        v6,
    };
    let mut tables = Vec::new();
    if pen.dice.percent(15) {
        tables.push(pen.raw());
    }
    if pen.dice.percent(45) {
        tables.push(pen.mangle());
    }
    if pen.dice.percent(70) {
        tables.push(pen.nat());
    }
    if pen.dice.percent(75) || tables.is_empty() {
        tables.push(pen.filter());
    }
    Rules::Iptables { legacy, v6, tables }
}

impl Pen<'_, '_> {
    fn raw(&mut self) -> Table {
        let mut rules = Vec::new();
        for (chain, at) in [("PREROUTING", At::Prerouting), ("OUTPUT", At::Output)] {
            for _ in 0..self.dice.below(3) {
                let matches = self.matches(at, true);
                let target = self.dice.weighted(&[
                    (2, "CT --notrack"),
                    (3, "ACCEPT"),
                    (1, "DROP"),
                    (1, "RETURN"),
                ]);
                rules.push(format!("-A {chain}{matches} -j {target}"));
            }
        }
        Table {
            name: "raw".to_owned(),
            chains: vec![":PREROUTING ACCEPT".to_owned(), ":OUTPUT ACCEPT".to_owned()],
            rules,
        }
    }

    fn mangle(&mut self) -> Table {
        let all = [
            ("PREROUTING", At::Prerouting),
            ("INPUT", At::Input),
            ("FORWARD", At::Forward),
            ("OUTPUT", At::Output),
            ("POSTROUTING", At::Postrouting),
        ];
        let mut rules = Vec::new();
        for (chain, at) in all {
            for _ in 0..self.dice.below(3) {
                let matches = self.matches(at, false);
                let mark = self.dice.one(&MARKS);
                let ttl = if self.v6 { "HL --hl" } else { "TTL --ttl" };
                let target = match self.dice.below(12) {
                    0..=2 => format!("MARK --set-mark {mark:#x}"),
                    3 => format!("MARK --or-mark {mark:#x}"),
                    4 => format!("CONNMARK --set-mark {mark:#x}"),
                    5 => "CONNMARK --save-mark".to_owned(),
                    6 => "CONNMARK --restore-mark".to_owned(),
                    7 => "DSCP --set-dscp 0x2e".to_owned(),
                    8 => format!("{ttl}-dec 1"),
                    9 => format!("{ttl}-set 64"),
                    10 => "TOS --set-tos 0x10".to_owned(),
                    _ => "ACCEPT".to_owned(),
                };
                rules.push(format!("-A {chain}{matches} -j {target}"));
            }
        }
        Table {
            name: "mangle".to_owned(),
            chains: all
                .iter()
                .map(|(chain, _)| format!(":{chain} ACCEPT"))
                .collect(),
            rules,
        }
    }

    /// `-p` with ports, for targets that want them.
    fn protocol(&mut self) -> (&'static str, &'static str) {
        if self.dice.percent(55) {
            ("tcp", self.dice.one(&["80", "8080", "81"]))
        } else {
            ("udp", self.dice.one(&["53", "8053", "54"]))
        }
    }

    fn to(&self, addr: &str, port: Option<&str>) -> String {
        match (port, self.v6) {
            (None, _) => addr.to_owned(),
            (Some(port), false) => format!("{addr}:{port}"),
            (Some(port), true) => format!("[{addr}]:{port}"),
        }
    }

    fn nat(&mut self) -> Table {
        let mut chains: Vec<String> = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]
            .iter()
            .map(|chain| format!(":{chain} ACCEPT"))
            .collect();
        let mut rules = Vec::new();
        for chain in ["PREROUTING", "OUTPUT"] {
            for _ in 0..=self.dice.below(3) {
                let (protocol, port) = self.protocol();
                let target = if self.dice.percent(60) {
                    self.scene.service(self.dice, self.v6)
                } else {
                    Some(self.dice.one(self.scene.addrs(self.v6)))
                };
                let Some(dst) = target else { continue };
                let other = self.dice.one(self.scene.addrs(self.v6));
                let own_port = match protocol {
                    "tcp" => self.dice.one(&["80", "8080"]),
                    _ => self.dice.one(&["53", "8053"]),
                };
                let action = match self.dice.below(8) {
                    0 => format!("REDIRECT --to-ports {own_port}"),
                    1 => format!("DNAT --to-destination {}", self.to(&other, None)),
                    2 => "ACCEPT".to_owned(),
                    _ => format!("DNAT --to-destination {}", self.to(&other, Some(own_port))),
                };
                let random = match self.dice.below(10) {
                    0 => " -m statistic --mode random --probability 0.50000000000",
                    _ => "",
                };
                rules.push(format!(
                    "-A {chain} -d {dst} -p {protocol} -m {protocol} --dport {port}{random} -j {action}"
                ));
            }
        }
        for _ in 0..self.dice.below(3) {
            let matches = self.matches(At::Postrouting, false);
            let own = self.dice.one(self.scene.own(self.v6));
            let with_ports = matches.contains(" -p tcp") || matches.contains(" -p udp");
            let action = match self.dice.below(8) {
                0..=3 => "MASQUERADE".to_owned(),
                4 => format!("SNAT --to-source {own}"),
                5 if with_ports => {
                    let range = self.to(&own, Some("20000-20100"));
                    format!("SNAT --to-source {range}")
                }
                6 if with_ports => "MASQUERADE --to-ports 21000-21100".to_owned(),
                7 => "MASQUERADE --random-fully".to_owned(),
                _ => "ACCEPT".to_owned(),
            };
            rules.push(format!("-A POSTROUTING{matches} -j {action}"));
        }
        if self.dice.percent(25) {
            chains.push(":KUBE - [0:0]".to_owned());
            rules.push("-A PREROUTING -j KUBE".to_owned());
            if let Some(dst) = self.scene.service(self.dice, self.v6) {
                let other = self.dice.one(self.scene.addrs(self.v6));
                rules.push(format!("-A KUBE -d {dst} -j DNAT --to-destination {other}"));
            }
        }
        Table {
            name: "nat".to_owned(),
            chains,
            rules,
        }
    }

    fn filter(&mut self) -> Table {
        let mut chains = Vec::new();
        let mut rules = Vec::new();
        let all = [
            ("INPUT", At::Input),
            ("FORWARD", At::Forward),
            ("OUTPUT", At::Output),
        ];
        for (chain, at) in all {
            let closed = self.dice.percent(12);
            chains.push(format!(
                ":{chain} {}",
                if closed { "DROP" } else { "ACCEPT" }
            ));
            if closed || self.dice.percent(25) {
                rules.push(format!(
                    "-A {chain} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
                ));
            }
            if self.dice.percent(20) {
                rules.push(format!("-A {chain} -m conntrack --ctstate INVALID -j DROP"));
            }
            for _ in 0..self.dice.below(4) {
                let matches = self.matches(at, false);
                let target = self.verdict(&matches);
                rules.push(format!("-A {chain}{matches} {target}"));
            }
            if closed {
                let matches = self.matches(at, false);
                rules.push(format!("-A {chain}{matches} -j ACCEPT"));
            }
        }
        for chain in ["one", "two"] {
            chains.push(format!(":{chain} - [0:0]"));
            for _ in 0..self.dice.below(3) {
                let matches = self.matches(At::User, false);
                let target = match self.verdict(&matches) {
                    // No chain leads back to itself.
                    jump if jump.ends_with("one") || jump.ends_with("two") => {
                        "-j RETURN".to_owned()
                    }
                    other => other,
                };
                rules.push(format!("-A {chain}{matches} {target}"));
            }
        }
        Table {
            name: "filter".to_owned(),
            chains,
            rules,
        }
    }

    fn verdict(&mut self, matches: &str) -> String {
        let tcp = matches.contains(" -p tcp");
        let refusals: &[&str] = if self.v6 {
            &[
                "icmp6-port-unreachable",
                "icmp6-adm-prohibited",
                "icmp6-addr-unreachable",
                "icmp6-no-route",
            ]
        } else {
            &[
                "icmp-port-unreachable",
                "icmp-admin-prohibited",
                "icmp-host-unreachable",
                "icmp-net-unreachable",
            ]
        };
        match self.dice.below(16) {
            0..=5 => "-j ACCEPT".to_owned(),
            6 | 7 => "-j DROP".to_owned(),
            8 | 9 => format!("-j REJECT --reject-with {}", self.dice.one(refusals)),
            10 if tcp => "-j REJECT --reject-with tcp-reset".to_owned(),
            10 | 11 => "-j one".to_owned(),
            12 => "-g two".to_owned(),
            13 => "-j RETURN".to_owned(),
            _ => "-j two".to_owned(),
        }
    }

    fn set(&mut self) -> String {
        let family = if self.v6 { "inet6" } else { "inet" };
        let number = self.ipsets.len();
        let kind = self.dice.one(&["hash:ip", "hash:net", "hash:ip,port"]);
        let name = format!("s{}{number}", if self.v6 { 6 } else { 4 });
        self.ipsets
            .push(format!("create {name} {kind} family {family}"));
        for _ in 0..=self.dice.below(3) {
            let addr = self.dice.one(self.scene.addrs(self.v6));
            let member = match kind {
                "hash:net" if self.dice.percent(50) => {
                    format!("{addr}/{}", if self.v6 { 64 } else { 24 })
                }
                "hash:ip,port" => format!("{addr},{}", self.dice.one(&["tcp:80", "udp:53"])),
                _ => addr,
            };
            self.ipsets.push(format!("add {name} {member} -exist"));
        }
        let direction = if kind == "hash:ip,port" {
            "dst,dst"
        } else {
            self.dice.one(&["src", "dst"])
        };
        format!(" -m set --match-set {name} {direction}")
    }

    /// Some conditions; `early`: conntrack has seen nothing yet.
    fn matches(&mut self, at: At, early: bool) -> String {
        let mut text = String::new();
        if self.dice.percent(45) {
            let prefix = self.scene.prefix(self.dice, self.v6);
            text.push_str(&format!(" -d {prefix}"));
        }
        if self.dice.percent(30) {
            let not = if self.dice.percent(15) { " !" } else { "" };
            let prefix = self.scene.prefix(self.dice, self.v6);
            text.push_str(&format!("{not} -s {prefix}"));
        }
        let comes = matches!(at, At::Prerouting | At::Input | At::Forward);
        let goes = matches!(at, At::Output | At::Forward | At::Postrouting);
        let device = |pen: &mut Self| pen.dice.one(&pen.scene.devices);
        if comes && self.dice.percent(20) {
            text.push_str(&format!(" -i {}", device(self)));
        }
        if goes && self.dice.percent(20) {
            text.push_str(&format!(" -o {}", device(self)));
        }
        let icmp = if self.v6 { "ipv6-icmp" } else { "icmp" };
        match self.dice.below(10) {
            0..=3 => {
                let protocol = self.dice.one(&["tcp", "udp"]);
                text.push_str(&format!(" -p {protocol}"));
                match self.dice.below(6) {
                    0..=2 => {
                        text.push_str(&format!(" -m {protocol} --dport {}", self.dice.one(&PORTS)));
                    }
                    3 => text.push_str(" -m multiport --dports 53,80,8000:8100"),
                    4 => text.push_str(&format!(" -m {protocol} --sport 1024:65535")),
                    _ if protocol == "tcp" => {
                        text.push_str(" -m tcp --tcp-flags FIN,SYN,RST,ACK SYN");
                    }
                    _ => {}
                }
            }
            4 => {
                let kind = if self.v6 {
                    " -m icmp6 --icmpv6-type echo-request"
                } else {
                    " -m icmp --icmp-type echo-request"
                };
                text.push_str(&format!(" -p {icmp}{kind}"));
            }
            _ => {}
        }
        if self.dice.percent(35) {
            text.push_str(&self.extra(at, early));
        }
        if text.is_empty() {
            let prefix = self.scene.prefix(self.dice, self.v6);
            text = format!(" -d {prefix}");
        }
        text
    }

    fn extra(&mut self, at: At, early: bool) -> String {
        let mark = self.dice.one(&MARKS);
        match self.dice.below(15) {
            0 | 1 if !early => {
                let state = self.dice.one(&["NEW", "ESTABLISHED", "NEW,ESTABLISHED"]);
                format!(" -m conntrack --ctstate {state}")
            }
            2 if !early => " -m conntrack --ctstate DNAT".to_owned(),
            3 => format!(" -m mark --mark {mark:#x}"),
            4 => format!(" -m mark ! --mark {mark:#x}/{mark:#x}"),
            5 if !early => format!(" -m connmark --mark {mark:#x}"),
            6 => {
                let kind = self.dice.one(&["LOCAL", "UNICAST"]);
                format!(" -m addrtype --dst-type {kind}")
            }
            7 => " -m addrtype --src-type LOCAL".to_owned(),
            8 => self.set(),
            9 => " -m statistic --mode random --probability 0.50000000000".to_owned(),
            10 if at == At::Output => " -m owner --uid-owner 1000".to_owned(),
            11 if self.v6 => " -m hl --hl-gt 62".to_owned(),
            11 => " -m ttl --ttl-gt 62".to_owned(),
            12 => " -m dscp --dscp 0x2e".to_owned(),
            13 => " -m length --length 0:200".to_owned(),
            14 if matches!(at, At::Forward) && !self.scene.ports.is_empty() => {
                let port = self.dice.one(&self.scene.ports);
                format!(" -m physdev --physdev-in {port}")
            }
            _ => " -m comment --comment \"random rule\"".to_owned(),
        }
    }
}
