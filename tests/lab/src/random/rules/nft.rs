//! Random tables for `nft -f`.

use super::Scene;
use crate::random::dice::Dice;
use crate::random::routes::MARKS;
use crate::random::world::Rules;

struct Pen<'d, 's> {
    dice: &'d mut Dice,
    scene: &'s Scene,
    /// The network has IPv6.
    six: bool,
    lines: Vec<String>,
    /// Family and name of the table.
    table: String,
    family: &'static str,
    /// Number of sets and maps so far.
    sets: usize,
}

/// A ruleset of one to three tables.
pub fn draw(dice: &mut Dice, scene: &Scene, six: bool) -> Rules {
    let mut lines = Vec::new();
    for number in 0..=dice.below(2) {
        let family = if six {
            dice.one(&["inet", "inet", "ip", "ip6"])
        } else {
            dice.one(&["inet", "ip"])
        };
        let mut pen = Pen {
            dice,
            scene,
            six,
            lines: Vec::new(),
            table: format!("{family} t{number}"),
            family,
            sets: 0,
        };
        pen.ip();
        lines.append(&mut pen.lines);
    }
    if !scene.ports.is_empty() && dice.percent(20) {
        let mut pen = Pen {
            dice,
            scene,
            six,
            lines: Vec::new(),
            table: "bridge b".to_owned(),
            family: "bridge",
            sets: 0,
        };
        pen.bridge();
        lines.append(&mut pen.lines);
    }
    if dice.percent(12) {
        let mut pen = Pen {
            dice,
            scene,
            six,
            lines: Vec::new(),
            table: "netdev d".to_owned(),
            family: "netdev",
            sets: 0,
        };
        pen.netdev();
        lines.append(&mut pen.lines);
    }
    Rules::Nft(lines)
}

impl Pen<'_, '_> {
    fn add(&mut self, what: &str, rest: &str) {
        let table = &self.table;
        self.lines.push(format!("add {what} {table} {rest}"));
    }

    fn is_v6(&mut self) -> bool {
        match self.family {
            "ip" => false,
            "ip6" => true,
            _ => self.six && self.dice.percent(40),
        }
    }

    fn ip(&mut self) {
        let table = self.table.clone();
        self.lines.push(format!("add table {table}"));
        for chain in ["one", "two"] {
            self.add("chain", chain);
        }
        let hooks = [
            ("prerouting", &["-300", "-150", "0"][..]),
            ("input", &["0", "-150", "10"]),
            ("forward", &["0", "-150", "10"]),
            ("output", &["0", "-300", "10"]),
            ("postrouting", &["0", "150"]),
        ];
        for (hook, priorities) in hooks {
            if !self.dice.percent(45) {
                continue;
            }
            let priority = self.dice.one(priorities);
            let chain = format!("f_{hook}");
            let closed = self.dice.percent(8) && hook != "prerouting" && hook != "postrouting";
            let policy = if closed { "drop" } else { "accept" };
            let kind = if hook == "output" && self.dice.percent(40) {
                "route"
            } else {
                "filter"
            };
            self.add(
                "chain",
                &format!(
                    "{chain} {{ type {kind} hook {hook} priority {priority}; policy {policy}; }}"
                ),
            );
            if closed || self.dice.percent(20) {
                self.add(
                    "rule",
                    &format!("{chain} ct state established,related accept"),
                );
            }
            if closed {
                let nd = "icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept";
                if self.family != "ip" {
                    self.add("rule", &format!("{chain} {nd}"));
                }
            }
            for _ in 0..=self.dice.below(3) {
                let matches = self.matches(hook);
                let verdict = self.verdict(hook, &matches);
                self.add("rule", &format!("{chain} {matches}{verdict}"));
            }
        }
        for chain in ["one", "two"] {
            for _ in 0..self.dice.below(3) {
                let matches = self.matches("any");
                let verdict = match self.verdict("any", &matches) {
                    jump if jump.contains("one") || jump.contains("two") => "return".to_owned(),
                    other => other,
                };
                self.add("rule", &format!("{chain} {matches}{verdict}"));
            }
        }
        if self.dice.percent(65) {
            self.nat();
        }
    }

    fn nat(&mut self) {
        for (hook, priority) in [("prerouting", -100), ("output", -100)] {
            if !self.dice.percent(75) {
                continue;
            }
            let chain = format!("n_{hook}");
            self.add(
                "chain",
                &format!("{chain} {{ type nat hook {hook} priority {priority}; policy accept; }}"),
            );
            for _ in 0..=self.dice.below(3) {
                let v6 = self.is_v6();
                let (ip, family) = if v6 { ("ip6", "ip6") } else { ("ip", "ip") };
                let family = if self.family == "inet" {
                    format!(" {family}")
                } else {
                    String::new()
                };
                let Some(dst) = (if self.dice.percent(60) {
                    self.scene.service(self.dice, v6)
                } else {
                    Some(self.dice.one(self.scene.addrs(v6)))
                }) else {
                    continue;
                };
                let (protocol, port, own) = if self.dice.percent(55) {
                    ("tcp", "80", "8080")
                } else {
                    ("udp", "53", "8053")
                };
                let one = self.dice.one(self.scene.addrs(v6));
                let two = self.dice.one(self.scene.addrs(v6));
                let to = |addr: &str| {
                    if v6 {
                        format!("[{addr}]:{own}")
                    } else {
                        format!("{addr}:{own}")
                    }
                };
                let action = match self.dice.below(9) {
                    0 => format!("redirect to :{own}"),
                    1 => format!("dnat{family} to {one}"),
                    2 if one != two => {
                        let source = self.dice.one(&["numgen random mod 2", "numgen inc mod 2"]);
                        format!("dnat{family} to {source} map {{ 0 : {one}, 1 : {two} }}")
                    }
                    3 if one != two => {
                        self.sets += 1;
                        let map = format!("m{}", self.sets);
                        let kind = if v6 { "ipv6_addr" } else { "ipv4_addr" };
                        self.add(
                            "map",
                            &format!(
                                "{map} {{ type {kind} . inet_service : {kind} . inet_service; elements = {{ {dst} . {port} : {one} . {own} }}; }}"
                            ),
                        );
                        format!("dnat{family} to {ip} daddr . {protocol} dport map @{map}")
                    }
                    4 => {
                        let source = self.dice.one(self.scene.addrs(v6));
                        format!("dnat{family} to {ip} saddr map {{ {source} : {one} }}")
                    }
                    5 => "accept".to_owned(),
                    _ => format!("dnat{family} to {}", to(&one)),
                };
                self.add(
                    "rule",
                    &format!("{chain} {ip} daddr {dst} {protocol} dport {port} {action}"),
                );
            }
        }
        if self.dice.percent(60) {
            let chain = "n_postrouting";
            self.add(
                "chain",
                &format!("{chain} {{ type nat hook postrouting priority 100; policy accept; }}"),
            );
            for _ in 0..=self.dice.below(2) {
                let v6 = self.is_v6();
                let matches = self.matches("postrouting");
                let (ip, family) = if v6 { ("ip6", "ip6") } else { ("ip", "ip") };
                let own = self.dice.one(self.scene.own(v6));
                let other = if self.family == "inet" {
                    format!("meta nfproto {} ", if v6 { "ipv6" } else { "ipv4" })
                } else {
                    String::new()
                };
                let named = if self.family == "inet" {
                    format!(" {family}")
                } else {
                    String::new()
                };
                // What matches one family and translates to the other never happens.
                let fits = !matches.contains("ip6 ") || v6;
                let fits = fits && (!matches.contains("ip ") || !v6);
                let matches = if fits {
                    matches
                } else {
                    format!("{ip} daddr {} ", self.dice.one(self.scene.addrs(v6)))
                };
                let action = match self.dice.below(6) {
                    0 => format!("{other}snat{named} to {own}"),
                    1 => "masquerade random".to_owned(),
                    2 => "meta l4proto { tcp, udp } masquerade to :22000-22100".to_owned(),
                    _ => "masquerade".to_owned(),
                };
                self.add("rule", &format!("{chain} {matches}{action}"));
            }
        }
    }

    fn bridge(&mut self) {
        self.lines.push("add table bridge b".to_owned());
        for hook in ["prerouting", "input", "forward", "output", "postrouting"] {
            if !self.dice.percent(35) {
                continue;
            }
            let chain = format!("b_{hook}");
            self.add(
                "chain",
                &format!("{chain} {{ type filter hook {hook} priority 0; policy accept; }}"),
            );
            let port = self.dice.one(&self.scene.ports);
            let addr = self.dice.one(&self.scene.v4);
            let matches = match (hook, self.dice.below(4)) {
                ("prerouting", 0) => format!("iifname {port} tcp dport 80"),
                ("forward" | "postrouting", 0) => format!("oifname {port} udp dport 53"),
                (_, 1) => format!("ip daddr {addr} tcp dport 80"),
                (_, 2) => format!("ether type ip ip saddr {addr} meta l4proto udp"),
                _ => "ip protocol icmp".to_owned(),
            };
            let verdict = self
                .dice
                .one(&["drop", "accept", "counter", "meta mark set 0x1"]);
            self.add("rule", &format!("{chain} {matches} {verdict}"));
        }
    }

    fn netdev(&mut self) {
        self.lines.push("add table netdev d".to_owned());
        let dev = self.dice.one(&self.scene.devices);
        let hook = self.dice.one(&["ingress", "egress"]);
        self.add(
            "chain",
            &format!("c {{ type filter hook {hook} device {dev} priority 0; policy accept; }}"),
        );
        let addr = self.dice.one(&self.scene.v4);
        let matches = self
            .dice
            .one(&["tcp dport 8080", "udp dport 8053", "meta l4proto icmp"]);
        self.add("rule", &format!("c ip daddr {addr} {matches} drop"));
    }

    /// Conditions, with a space behind.
    fn matches(&mut self, hook: &str) -> String {
        let mut words: Vec<String> = Vec::new();
        let v6 = self.is_v6();
        let ip = if v6 { "ip6" } else { "ip" };
        if self.dice.percent(45) {
            let prefix = self.prefix(v6);
            let not = if self.dice.percent(10) { "!= " } else { "" };
            words.push(format!("{ip} daddr {not}{prefix}"));
        }
        if self.dice.percent(30) {
            let prefix = self.prefix(v6);
            words.push(format!("{ip} saddr {prefix}"));
        }
        let comes = matches!(hook, "prerouting" | "input" | "forward");
        let goes = matches!(hook, "output" | "forward" | "postrouting");
        if comes && self.dice.percent(20) {
            let dev = self.dice.one(&self.scene.devices);
            let word = self.dice.one(&["iifname", "iif"]);
            words.push(format!("{word} {dev}"));
        }
        if goes && self.dice.percent(20) {
            words.push(format!("oifname {}", self.dice.one(&self.scene.devices)));
        }
        match self.dice.below(10) {
            0..=2 => words.push(format!(
                "tcp dport {}",
                self.dice.one(&["80", "{ 80, 8080 }", "1-100", "!= 80"])
            )),
            3 | 4 => words.push(format!(
                "udp dport {}",
                self.dice.one(&["53", "{ 53, 8053 }", "8000-9000"])
            )),
            5 => words.push(if v6 {
                "icmpv6 type echo-request".to_owned()
            } else {
                "icmp type echo-request".to_owned()
            }),
            6 => words.push("meta l4proto { tcp, udp }".to_owned()),
            _ => {}
        }
        if self.dice.percent(35) {
            let extra = self.extra(v6, hook);
            words.push(extra);
        }
        if words.is_empty() {
            let prefix = self.prefix(v6);
            words.push(format!("{ip} daddr {prefix}"));
        }
        words.join(" ") + " "
    }

    fn prefix(&mut self, v6: bool) -> String {
        let addr = self.dice.one(self.scene.addrs(v6));
        match (self.dice.below(4), v6) {
            (0, false) => format!("{addr}/24"),
            (0, true) => format!("{addr}/64"),
            _ => addr,
        }
    }

    fn extra(&mut self, v6: bool, hook: &str) -> String {
        let ip = if v6 { "ip6" } else { "ip" };
        let mark = self.dice.one(&MARKS);
        match self.dice.below(16) {
            0 | 1 => format!(
                "ct state {}",
                self.dice
                    .one(&["new", "established", "{ new, established }", "invalid"])
            ),
            2 => format!("meta mark {mark:#x}"),
            3 => format!("meta mark & {mark:#x} == 0"),
            4 => format!("ct mark {mark:#x}"),
            5 => "ct status dnat".to_owned(),
            6 => "fib daddr type local".to_owned(),
            7 if matches!(hook, "prerouting" | "input" | "forward") => {
                "fib saddr . iif oif exists".to_owned()
            }
            8 => {
                self.sets += 1;
                let set = format!("s{}", self.sets);
                let kind = if v6 { "ipv6_addr" } else { "ipv4_addr" };
                let (one, two) = (
                    self.dice.one(self.scene.addrs(v6)),
                    self.dice.one(self.scene.addrs(v6)),
                );
                let elements = if one == two {
                    one
                } else {
                    format!("{one}, {two}")
                };
                self.add(
                    "set",
                    &format!("{set} {{ type {kind}; elements = {{ {elements} }}; }}"),
                );
                format!("{ip} {} @{set}", self.dice.one(&["saddr", "daddr"]))
            }
            9 => {
                let (one, two) = (
                    self.dice.one(self.scene.addrs(v6)),
                    self.dice.one(self.scene.addrs(v6)),
                );
                format!("{ip} saddr . {ip} daddr {{ {one} . {two} }}")
            }
            10 => "numgen random mod 2 < 1".to_owned(),
            11 if hook == "output" => "meta skuid 1000".to_owned(),
            12 if v6 => "ip6 hoplimit > 62".to_owned(),
            12 => "ip ttl > 62".to_owned(),
            13 => format!("{ip} dscp ef"),
            14 => "meta length < 200".to_owned(),
            15 => "ct direction original".to_owned(),
            _ => "counter".to_owned(),
        }
    }

    fn verdict(&mut self, hook: &str, matches: &str) -> String {
        let mark = self.dice.one(&MARKS);
        // A refusal has a family; nft refuses to load what contradicts the conditions.
        let six = matches.contains("ip6 ") || matches.contains("icmpv6");
        let four = matches.contains("ip ") || matches.contains("icmp type");
        let may_reject = matches!(hook, "input" | "forward" | "output" | "prerouting");
        let refusal = match (self.family, six, four) {
            ("inet", false, false) => self.dice.one(&[
                "reject",
                "reject with icmpx type admin-prohibited",
                "reject with icmpx type no-route",
            ]),
            ("ip6", _, _) | (_, true, _) => self
                .dice
                .one(&["reject", "reject with icmpv6 type addr-unreachable"]),
            _ => self
                .dice
                .one(&["reject", "reject with icmp type host-unreachable"]),
        };
        match self.dice.below(20) {
            0..=5 => "accept".to_owned(),
            6 | 7 => "drop".to_owned(),
            8 | 9 if may_reject => refusal.to_owned(),
            10 if may_reject && matches.contains("tcp dport") => "reject with tcp reset".to_owned(),
            11 | 12 => format!("meta mark set {mark:#x}"),
            13 => "ct mark set meta mark".to_owned(),
            14 => "jump one".to_owned(),
            15 => "goto two".to_owned(),
            16 if matches.contains("tcp dport") => {
                "tcp dport vmap { 80 : accept, 8080 : jump one, 81 : drop }".to_owned()
            }
            16 | 17 => "counter".to_owned(),
            18 if matches!(hook, "prerouting" | "output") => "notrack".to_owned(),
            18 => "meta mark set ct mark".to_owned(),
            _ => "return".to_owned(),
        }
    }
}
