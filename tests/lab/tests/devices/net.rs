//! Networks with such devices, and what is asked of them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpath::model::NsKey;
use netpath::model::packet::{ICMP, ICMPV6, TCP, UDP, Wrap};
use netpath::trace::Trace;
use netpath_lab::command::run;
use netpath_lab::random::ask::Verdict;
use netpath_lab::random::judge::Judge;
use netpath_lab::random::seen::chain;
use netpath_lab::random::world::{Kind, Listener, Place, Probe, Rules, Setting, Table, World};
use netpath_lab::random::{Raised, cpu};
use serde_json::Value;

/// A network, and what is asked of it.
pub struct Case {
    name: String,
    world: World,
    asked: Vec<(Probe, &'static str)>,
    run: Vec<(usize, String)>,
}

/// A packet.
#[derive(Clone)]
pub struct Ask(Probe);

fn probe(dst: &str, protocol: u8, port: u16) -> Ask {
    Ask(Probe {
        from: "p1".to_owned(),
        kind: Kind::Exchange,
        protocol,
        src: None,
        dst: dst.parse().expect("an address"),
        sport: 40_000,
        dport: port,
        id: 0,
        dev: None,
    })
}

pub fn tcp(dst: &str, port: u16) -> Ask {
    probe(dst, TCP, port)
}

pub fn udp(dst: &str, port: u16) -> Ask {
    probe(dst, UDP, port)
}

pub fn echo(dst: &str) -> Ask {
    probe(dst, if dst.contains(':') { ICMPV6 } else { ICMP }, 0)
}

/// One echo request from a raw socket.
pub fn raw(dst: &str) -> Ask {
    let Ask(probe) = echo(dst);
    let icmp = (if probe.dst.is_ipv6() { 128 } else { 8 }, 0);
    Ask(Probe {
        kind: Kind::raw(0, icmp, 0),
        ..probe
    })
}

impl Ask {
    fn with(mut self, change: impl FnOnce(&mut u8, &mut u8, &mut bool, &mut u16)) -> Self {
        if let Kind::Raw {
            ttl,
            tos,
            df,
            payload,
            ..
        } = &mut self.0.kind
        {
            change(ttl, tos, df, payload);
        }
        self
    }

    pub fn ttl(self, value: u8) -> Self {
        self.with(|ttl, _, _, _| *ttl = value)
    }

    pub fn tos(self, value: u8) -> Self {
        self.with(|_, tos, _, _| *tos = value)
    }

    pub fn payload(self, value: u16) -> Self {
        self.with(|_, _, _, payload| *payload = value)
    }

    /// It may be cut in pieces.
    pub fn fragments(self) -> Self {
        self.with(|_, _, df, _| *df = false)
    }

    /// From a socket that is bound to a device.
    pub fn dev(mut self, dev: Option<&str>) -> Self {
        self.0.dev = dev.map(str::to_owned);
        self
    }

    pub fn from(mut self, place: &str) -> Self {
        place.clone_into(&mut self.0.from);
        self
    }
}

fn place(name: &str) -> Place {
    Place {
        name: name.to_owned(),
        early: ["ipv4/ip_forward", "ipv6/conf/all/forwarding"]
            .map(|name| Setting(name.to_owned(), "1".to_owned()))
            .to_vec(),
        ip: vec!["link set lo up".to_owned()],
        ..Place::default()
    }
}

/// The numbers of a node's own addresses, and those of the other one's.
fn named(line: &str, node: usize) -> String {
    let under = ["192.0.2", "198.51.100"];
    let (own, other) = (node - 1, 2 - node);
    let host = |node: usize| format!("{}.{}", under[node], node + 1);
    line.replace("{me}", &host(own))
        .replace("{you}", &host(other))
        .replace("{my}", &node.to_string())
        .replace("{your}", &(3 - node).to_string())
        .replace("{you-net}", &format!("{}.0/24", under[other]))
        .replace("{your-net}", &format!("{}.0/24", under[other]))
        .replace("{gateway}", &format!("{}.254", under[own]))
}

impl Case {
    /// Nodes n1 (192.0.2.1) and n2 (198.51.100.2), a router between them, and behind each a pod, p1 (10.1.0.2,
    /// fd01::2) and p2 (10.2.0.2, fd02::2).
    pub fn nodes(name: &str) -> Self {
        let mut places = Vec::new();
        let mut router = place("r");
        for node in [1, 2] {
            let mut own = place(&format!("n{node}"));
            own.links = vec![
                "link add under0 type veth peer name under{my} netns @r@".to_owned(),
                "link add pod0 type veth peer name eth0 netns @p{my}@".to_owned(),
            ];
            own.ip.extend(
                [
                    "link set under0 up",
                    "link set pod0 up",
                    "addr add {me}/24 dev under0",
                    "addr add 10.{my}.0.1/24 dev pod0",
                    "addr add fd0{my}::1/64 dev pod0 nodad",
                    "addr add 2001:db8:{my}::1/64 dev under0 nodad",
                    "route add {your-net} via {gateway}",
                    "-6 route add 2001:db8:{your}::/64 via 2001:db8:{my}::fe",
                ]
                .map(str::to_owned),
            );
            router.ip.extend(
                [
                    "link set under{my} up",
                    "addr add {gateway}/24 dev under{my}",
                    "addr add 2001:db8:{my}::fe/64 dev under{my} nodad",
                ]
                .map(|line| named(line, node)),
            );
            let mut pod = place(&format!("p{node}"));
            pod.ip.extend(
                [
                    "link set eth0 up",
                    "addr add 10.{my}.0.2/24 dev eth0",
                    "addr add fd0{my}::2/64 dev eth0 nodad",
                    "route add default via 10.{my}.0.1",
                    "-6 route add default via fd0{my}::1",
                ]
                .map(|line| named(line, node)),
            );
            let addrs = ["10.{my}.0.2", "fd0{my}::2"].map(|addr| named(addr, node));
            pod.listeners = servers(&addrs.map(|addr| addr.parse().expect("an address")));
            for line in own.links.iter_mut().chain(&mut own.ip) {
                *line = named(line, node);
            }
            places.extend([own, pod]);
        }
        places.push(router);
        Self {
            name: name.to_owned(),
            world: World { places },
            asked: Vec::new(),
            run: Vec::new(),
        }
    }

    /// The same, with a second link between the nodes, direct0.
    pub fn joined(name: &str) -> Self {
        let mut case = Self::nodes(name);
        let line = "link add direct0 type veth peer name direct0 netns @n2@";
        case.place("n1").links.push(line.to_owned());
        case.both("link set direct0 up")
    }

    fn place(&mut self, name: &str) -> &mut Place {
        let mut places = self.world.places.iter_mut();
        let found = places.find(|place| place.name == name);
        found.expect("a namespace of that name")
    }

    /// A line for `ip` on a node; as [`named`].
    pub fn at(mut self, node: usize, line: &str) -> Self {
        let line = named(line, node);
        self.place(&format!("n{node}")).ip.push(line);
        self
    }

    /// The same on both.
    pub fn both(self, line: &str) -> Self {
        self.at(1, line).at(2, line)
    }

    /// A line for `ip` in both pods; as [`named`].
    pub fn pods(mut self, line: &str) -> Self {
        for node in [1, 2] {
            let line = named(line, node);
            self.place(&format!("p{node}")).ip.push(line);
        }
        self
    }

    /// A setting on a node, when there are devices.
    pub fn late(mut self, node: usize, name: &str, value: &str) -> Self {
        let setting = Setting(name.to_owned(), value.to_owned());
        self.place(&format!("n{node}")).late.push(setting);
        self
    }

    /// A setting on a node, before there are devices.
    pub fn early(mut self, node: usize, name: &str, value: &str) -> Self {
        let setting = Setting(name.to_owned(), value.to_owned());
        self.place(&format!("n{node}")).early.push(setting);
        self
    }

    /// Servers on a node, as [`servers`], bound to a device or not.
    pub fn listen(mut self, node: usize, addrs: &[&str], dev: Option<&str>) -> Self {
        let addrs: Vec<IpAddr> = addrs
            .iter()
            .map(|addr| addr.parse().expect("an address"))
            .collect();
        let own = servers(&addrs).into_iter().map(|server| Listener {
            dev: dev.map(str::to_owned),
            ..server
        });
        self.place(&format!("n{node}")).listeners.extend(own);
        self
    }

    /// A rule of iptables on a node, in table filter.
    pub fn rule(mut self, node: usize, rule: &str) -> Self {
        self.place(&format!("n{node}")).rules.push(Rules::Iptables {
            legacy: false,
            v6: false,
            tables: vec![Table {
                name: "filter".to_owned(),
                chains: Vec::new(),
                rules: vec![format!("-A {rule}")],
            }],
        });
        self
    }

    /// WireGuard on both nodes, device wg0 on port 51820, each the other's peer with these settings; `{key}` and
    /// `{peer}` are the two public keys. Commands at the end are run after that, on their node.
    pub fn wireguard(mut self, settings: [&str; 2], more: &[(usize, &str)]) -> Self {
        const KEYS: [&str; 2] = [
            "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=",
            "uJPQsoJqPYHGBv4sdKbqOXzrQ4CeOnsqpJQAZPBrhE4=",
        ];
        let public = |node: usize| format!("$(echo {} | wg pubkey)", KEYS[node - 1]);
        for node in [1, 2] {
            let line = "wg set wg0 listen-port 51820 private-key <(echo KEY) peer PEER SETTINGS";
            let line = line
                .replace("KEY", KEYS[node - 1])
                .replace("PEER", &public(3 - node))
                .replace("SETTINGS", settings[node - 1]);
            self.run.push((node, named(&line, node)));
        }
        for (node, line) in more {
            let line = line
                .replace("{key}", &public(*node))
                .replace("{peer}", &public(3 - *node));
            self.run.push((*node, named(&line, *node)));
        }
        self.both("link add wg0 type wireguard")
            .both("link set wg0 up")
            .both("route add 10.{your}.0.0/24 dev wg0")
            .both("-6 route add fd0{your}::/64 dev wg0")
    }

    /// What is asked, and how it has to end, whatever was predicted.
    pub fn ask(mut self, ask: Ask, ends: &'static str) -> Self {
        let Ask(mut probe) = ask;
        // Each from a port of its own.
        probe.sport += u16::try_from(self.asked.len() * 7).expect("few are asked");
        self.asked.push((probe, ends));
        self
    }

    fn judged(&self) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        let raised = Raised::up(&self.world)?;
        wrong.extend(raised.refused.iter().map(|line| format!("refused: {line}")));
        for (node, line) in &self.run {
            // Words in one shell: keys come by files.

            let at = raised.places.place(&format!("n{node}"))?;
            at.enter(|| run(&["bash", "-c", line]))?;
        }
        let mut judge = Judge::up()?;
        judge.await_usable(&raised)?;
        let (mut wire, absent) = raised.wire(&self.world, judge.ports())?;
        ensure!(absent.is_empty(), "{absent:?}");
        if !self.run.is_empty() {
            wire = wire.patient(Duration::from_millis(250));
        }
        raised.load_rules(&self.world)?;
        judge.read(&raised)?;
        for (probe, ends) in &self.asked {
            judge.read_again(&raised)?;
            // A raw packet has its source from here.
            let probe = &sourced(probe);
            let traces = judge.predict(probe)?;
            let observed = wire.ask(probe).with_context(|| format!("send {probe}"))?;
            let name = judge.namer();
            wrong.extend(outer(probe, &traces, &name, &wire.take_sealed()));
            match judge.compare(probe, &traces, &observed) {
                Verdict::Agrees(way) => {
                    let end = traces
                        .get(way)
                        .map_or("none", |trace| trace.outcome().name());
                    if end != *ends {
                        wrong.push(format!("{probe}: {end}, as was seen, but {ends} was meant"));
                    }
                }
                Verdict::Unknown(why) if *ends == "inconclusive" => drop(why),
                Verdict::Unknown(why) => wrong.push(format!("{probe}: inconclusive: {why}")),
                Verdict::Differs(text) => wrong.push(text),
            }
        }
        wrong.extend(self.probed(&raised)?);
        Ok(wrong)
    }

    /// What a real probe of the product says other than "confirmed", of the first connection that is to work.
    fn probed(&self, raised: &Raised) -> Result<Option<String>> {
        let mut asked = self.asked.iter();
        let Some((probe, _)) = asked.find(|(probe, ends)| {
            *ends == "delivered" && probe.protocol == TCP && probe.from == "p1"
        }) else {
            return Ok(None);
        };
        let plugin = std::env::current_exe()?
            .ancestors()
            .nth(2)
            .context("the directory of the programs")?
            .join("kubectl-netpath");
        let from = format!("netns/{}", raised.places.netns("p1"));
        let to = std::net::SocketAddr::from((probe.dst, probe.dport)).to_string();
        let said = Command::new(&plugin)
            .args(["trace", "--local", &from, &to, "--probe", "-o", "json"])
            .output()
            .with_context(|| format!("run {}", plugin.display()))?;
        let answer: Value = serde_json::from_slice(&said.stdout)
            .with_context(|| String::from_utf8_lossy(&said.stderr).into_owned())?;
        let probed = &answer["probes"][0];
        let good = probed["result"] == "confirmed" && probed["answered"] == true;
        Ok((!good).then(|| format!("--probe to {to}: {probed:#}")))
    }
}

/// Packets of WireGuard: those that are predicted are seen, and no others but answers to them (handshakes).
fn outer(
    probe: &Probe,
    traces: &[Trace],
    name: &impl Fn(&NsKey) -> String,
    seen: &BTreeSet<String>,
) -> Vec<String> {
    let mut predicted = BTreeSet::new();
    let mut ends = BTreeSet::new();
    for hop in traces
        .iter()
        .flat_map(chain)
        .flat_map(|packet| &packet.hops)
    {
        for tap in &hop.taps {
            let packet = &tap.packet;
            let inner = packet.inner.as_ref();
            if !inner.is_some_and(|inner| matches!(inner.wrap, Wrap::Wireguard { .. })) {
                continue;
            }
            let port =
                |port: Option<u16>| port.map_or_else(|| "any".to_owned(), |port| port.to_string());
            let (sport, dport) = (port(packet.sport()), port(packet.dport()));
            let out = if tap.out { "out" } else { "in" };
            let (place, dev, src, dst, ttl) =
                (name(&hop.ns), &tap.dev, packet.src, packet.dst, packet.ttl);
            predicted.insert(format!(
                "{place} {out} {dev} {src} {sport} > {dst} {dport} ttl {ttl}"
            ));
            ends.insert(format!("{src} {sport} > {dst} {dport}"));
            ends.insert(format!("{dst} {dport} > {src} {sport}"));
        }
    }
    let mut wrong: Vec<String> = predicted
        .difference(seen)
        .map(|text| format!("{probe}: predicted, not seen: {text}; seen: {seen:#?}"))
        .collect();
    let other = seen
        .iter()
        .filter(|text| !ends.iter().any(|ends| text.contains(ends.as_str())));
    wrong.extend(other.map(|text| format!("{probe}: seen, not predicted: {text}")));
    wrong
}

fn sourced(probe: &Probe) -> Probe {
    let mut probe = probe.clone();
    if probe.src.is_none() && !matches!((probe.kind, probe.protocol), (Kind::Exchange, TCP | UDP)) {
        let node = probe.from.starts_with('n');
        let pod = probe.from.trim_start_matches(|c: char| !c.is_ascii_digit());
        let own = match probe.dst {
            IpAddr::V4(_) if node && probe.dev.is_none() => format!("192.0.2.{pod}"),
            IpAddr::V4(_) if node => format!("10.{pod}.0.1"),
            IpAddr::V4(_) => format!("10.{pod}.0.2"),
            IpAddr::V6(_) => format!("fd0{pod}::2"),
        };
        probe.src = Some(own.parse().expect("an address"));
    }
    probe
}

/// TCP 80 and UDP 53 on these addresses.
pub fn servers(addrs: &[IpAddr]) -> Vec<Listener> {
    let of = |addr: &IpAddr| {
        let addr = *addr;
        [(false, 80), (true, 53)].map(|(udp, port)| Listener {
            udp,
            addr,
            port,
            dev: None,
        })
    };
    addrs.iter().flat_map(of).collect()
}

/// Asks all; names all that was not as predicted, or ended otherwise than was meant.
#[track_caller]
pub fn judge(cases: Vec<Case>) {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces: run it as root"
    );
    let cases = Mutex::new(cases.into_iter());
    let wrong = Mutex::new(String::new());
    cpu::on_each(1, || {
        let Some(case) = cases.lock().expect("no thread panics").next() else {
            return Ok(false);
        };
        let found = match case.judged() {
            Ok(found) => found,
            Err(error) => vec![format!("{error:#}")],
        };
        eprintln!("{}: {found:#?}", case.name);
        let mut wrong = wrong.lock().expect("no thread panics");
        for text in found {
            let _ = writeln!(wrong, "== {}: {text}", case.name);
        }
        Ok(true)
    })
    .expect("a CPU");
    let wrong = wrong.into_inner().expect("no thread panics");
    assert!(wrong.is_empty(), "\n{wrong}");
}
