//! The FIB oracle: in random tables and rules, the kernel's answer to RTM_GETROUTE is one of the ways that the
//! product finds from what its collector read. Needs root.
//!
//! `NETPATH_LOOKUPS=5000000` looks up so many, `NETPATH_SEED=2` in others; both print the rate.
#![allow(missing_docs, reason = "tests")]

mod ask;
mod make;
#[path = "../collect/ns.rs"]
#[allow(dead_code, reason = "it serves several tests")]
mod ns;
#[path = "../programs/mod.rs"]
mod programs;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Lookups of one kind whose shares are counted.
const ASKED: u32 = 8_000;

use ask::{Answer, Question, ask};
use netpath::collect::netlink::{Netlink, Protocol};
use netpath::model::packet::{ICMP, ICMPV6, L4, Packet, TCP};
use netpath::model::route::{NextHop, RouteKind};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, Fact};
use netpath::model::{IfIndex, NsKey};
use netpath::simulate::{Onward, Prepared, Routed, Sent};
use netpath::trace::{Disposition, RejectWith};
use netpath_lab::namespace::Namespaces;
use netpath_lab::random::dice::Dice;
use ns::Ns;

/// Lookups of the suite.
const LOOKUPS: u64 = 60_000;
/// Lookups in one namespace.
const EACH: u64 = 3_000;
const NODE: &str = "this";

/// What the kernel and we say, in the same words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    Local(Option<IpAddr>),
    Out(u32, Option<IpAddr>, Option<IpAddr>),
    Error(&'static str),
    Dropped,
}

#[derive(Default)]
struct Tally {
    asked: u64,
    agree: u64,
    /// By how they ended.
    ends: BTreeMap<&'static str, u64>,
    unknown: BTreeMap<String, u64>,
    /// The kernel went by a route that it does not list.
    unlisted: u64,
    /// By what kind of difference it is, with one example.
    differ: BTreeMap<String, (u64, String)>,
    kernel: Duration,
    ours: Duration,
}

fn errno(errno: i32) -> &'static str {
    match errno {
        libc::ENETUNREACH => "ENETUNREACH",
        libc::EHOSTUNREACH => "EHOSTUNREACH",
        libc::EACCES => "EACCES",
        libc::EINVAL => "EINVAL",
        libc::EXDEV => "EXDEV",
        libc::ENODEV => "ENODEV",
        libc::EAGAIN => "EAGAIN",
        other => panic!("errno {other}"),
    }
}

/// Ours; `Err`: not known.
fn way(question: &Question, routed: &Routed) -> Result<Way, String> {
    let src = question.src.is_none().then_some(routed.src);
    Ok(match &routed.next {
        Onward::Local => Way::Local(src),
        Onward::Out { oif, via } => Way::Out(oif.get(), *via, src),
        Onward::End(Disposition::Rejected(with)) => Way::Error(match with {
            RejectWith::NetUnreachable => "ENETUNREACH",
            RejectWith::HostUnreachable => "EHOSTUNREACH",
            RejectWith::Prohibited => "EACCES",
            RejectWith::InvalidArgument => "EINVAL",
            other => return Err(format!("refused with {other:?}")),
        }),
        Onward::End(Disposition::Dropped(_)) => Way::Dropped,
        Onward::End(Disposition::Inconclusive(why)) => return Err(why.join(", ")),
        Onward::End(other) => return Err(format!("{other:?}")),
    })
}

/// The kernel's, told as ours would be: a packet that comes in is dropped where a route or a check says so.
fn kernel_way(question: &Question, answer: &Result<Answer, i32>) -> Way {
    match answer {
        Err(code) => Way::Error(errno(*code)),
        Ok(answer) => {
            let src = answer.prefsrc.filter(|_| question.src.is_none());
            match answer.kind {
                2 | 4 => Way::Local(src),
                _ => Way::Out(answer.oif.unwrap_or(0), answer.via, src),
            }
        }
    }
}

fn same(question: &Question, ours: &Way, kernel: &Way) -> bool {
    match (ours, kernel) {
        // Since 6.13 the kernel tells one error for all that it drops; a blackhole and forwarding that is off too.
        (Way::Dropped, Way::Error(_)) if question.dst.is_ipv4() => question.iif.is_some(),
        (Way::Dropped, Way::Error("EINVAL")) => question.iif.is_some(),
        // What ICMPv6 says of no route, it says of one that is unreachable (`ip6_pkt_discard()`).
        (Way::Error("ENETUNREACH"), Way::Error("EHOSTUNREACH")) => {
            question.iif.is_some() && question.dst.is_ipv6()
        }
        _ => ours == kernel,
    }
}

struct World {
    topology: Topology,
    key: NsKey,
    socket: Netlink,
    ns: Ns,
    devices: Vec<u32>,
    forwarding6: bool,
}

fn batch(ns: &Ns, words: &[&str], lines: &[String]) {
    let mut child = Command::new("ip")
        .args(["netns", "exec", &ns.0, "ip"])
        .args(words)
        .args(["-force", "-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(if std::env::var("NETPATH_SHOW").is_ok() {
            Stdio::inherit()
        } else {
            Stdio::null()
        })
        .spawn()
        .expect("ip starts");
    let mut input = child.stdin.take().expect("its input");
    input
        .write_all(lines.join("\n").as_bytes())
        .expect("ip reads");
    drop(input);
    child.wait().expect("ip ends");
}

impl World {
    fn up(dice: &mut Dice) -> Self {
        let ns = Ns::new();
        let vrf = Command::new("ip")
            .args([
                "-n", &ns.0, "link", "add", "vprobe", "type", "vrf", "table", "77",
            ])
            .stderr(Stdio::null())
            .status()
            .expect("ip runs")
            .success();
        if vrf {
            ns.run("ip link del vprobe");
        }
        Self::in_ns(ns, &make::plan(dice, vrf))
    }

    fn of(plan: &make::Plan) -> Self {
        Self::in_ns(Ns::new(), plan)
    }

    fn in_ns(ns: Ns, plan: &make::Plan) -> Self {
        let text = plan.base.join("\n");
        ns.feed("ip -batch -", &text);
        for setting in plan.settings.chunks(8) {
            ns.run(&format!("sysctl -q -w {}", setting.join(" ")));
        }
        batch(&ns, &[], &plan.random);
        batch(&ns, &["-6"], &plan.random6);
        for dev in ["e0", "e1", "e2", "e4", "e5"] {
            let text = format!("the carrier of {dev}");
            programs::until(&text, Duration::from_secs(20), || {
                ns.run(&format!("ip -o link show {dev}"))
                    .contains("LOWER_UP")
            });
        }
        let read = ns.read(Depth::NoRules);
        assert!(read.missing().is_empty(), "{:?}", read.missing());
        let index = |name: &str| read.link_named(name).expect("the device").index.get();
        let mut devices: Vec<u32> = (0..make::DEVICES)
            .map(|dev| index(&format!("e{dev}")))
            .collect();
        devices.push(index("lo"));
        let key = NsKey {
            node: NODE.to_owned(),
            netns: read.identity.id,
        };
        let mut topology = Topology::default();
        topology.merge(NODE, Fact::NetNs(Box::new(read)));
        let path = PathBuf::from(format!("/run/netns/{}", ns.0));
        let place = Namespaces::net_at(&path).expect("the namespace is there");
        let socket = place
            .run(|| Ok(Netlink::open(Protocol::Route)?))
            .expect("a socket");
        Self {
            topology,
            key,
            socket,
            ns,
            devices,
            forwarding6: plan.forwarding6,
        }
    }

    fn sent(&self, question: &Question) -> Sent {
        let unspecified: IpAddr = match question.dst {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let (sport, dport) = (Some(question.sport), Some(question.dport));
        Sent {
            from: self.key.clone(),
            packet: Packet {
                tos: question.tos,
                ..Packet::new(
                    question.src.unwrap_or(unspecified),
                    question.dst,
                    match question.protocol {
                        TCP => L4::Tcp {
                            sport,
                            dport,
                            flags: 2,
                        },
                        ICMP | ICMPV6 => L4::Icmp {
                            kind: if question.dst.is_ipv4() { 8 } else { 128 },
                            code: 0,
                            id: Some(0),
                        },
                        _ => L4::Udp { sport, dport },
                    },
                )
            },
            mark: question.mark,
            uid: Some(question.uid),
            gid: Some(0),
            kernel: false,
            raw: true,
            untied: false,
            bound: None,
        }
    }

    /// As a connection is looked up: IPv4 again with the source that the first lookup chose.
    fn kernel(&mut self, question: &Question) -> Result<Answer, i32> {
        let icmp = matches!(question.protocol, ICMP | ICMPV6) && question.iif.is_none();
        let dport = match (icmp, question.dst) {
            (false, _) => question.dport,
            (true, IpAddr::V4(_)) => 8 << 8,
            (true, IpAddr::V6(_)) => 128 << 8,
        };
        let question = &Question { dport, ..*question };
        let first = ask(&mut self.socket, question, false)?;
        if question.src.is_some() || question.dst.is_ipv6() {
            return Ok(first);
        }
        let src = first.prefsrc;
        let again = Question { src, ..*question };
        let mut second = ask(&mut self.socket, &again, false)?;
        second.prefsrc = src;
        Ok(second)
    }

    fn compare(&mut self, prepared: &mut Prepared<'_>, question: &Question, tally: &mut Tally) {
        tally.asked += 1;
        let index = |dev: Option<u32>| dev.and_then(IfIndex::new);
        let sent = self.sent(question);
        let start = Instant::now();
        let routed = prepared.route(&sent, index(question.iif), index(question.oif));
        tally.ours += start.elapsed();
        let start = Instant::now();
        let mut answer = self.kernel(question);
        // Where IPv6 finds none without a source, it looks up with one (`ip6_dst_lookup_tail()`).
        let src = routed.first().map(|one| one.src);
        let src = src.filter(|src| src.is_ipv6() && question.src.is_none() && answer.is_err());
        if src.is_some() && question.oif.is_some() {
            // A bound socket asks strictly then, which RTM_GETROUTE can't.
            tally.asked -= 1;
            return;
        }
        let mut question = *question;
        if src.is_some() {
            question.src = src;
            answer = self.kernel(&question);
        }
        let question = &question;
        tally.kernel += start.elapsed();
        let kernel = kernel_way(question, &answer);
        let ways: Result<Vec<Way>, String> = routed.iter().map(|one| way(question, one)).collect();
        let ways = match ways {
            Ok(ways) => ways,
            Err(why)
                if why.starts_with("broadcast and multicast")
                    && matches!(&answer, Ok(a) if a.kind == 3) =>
            {
                tally.agree += 1;
                *tally.ends.entry("to all on a link").or_default() += 1;
                return;
            }
            Err(why) => {
                *tally.unknown.entry(why).or_default() += 1;
                return;
            }
        };
        if question.dst.is_ipv6() && question.iif.is_some() && !self.forwarding6 {
            // The kernel finds a way, and refuses later to go it (`ip6_forward()`).
            let way_on = answer.as_ref().is_ok_and(|answer| answer.kind == 1);
            if way_on && ways == [Way::Dropped] {
                tally.agree += 1;
                *tally.ends.entry("out, were it a router").or_default() += 1;
                return;
            }
        }
        // How a socket is refused there is not the route's business.
        let to_all = |one: &Routed| {
            one.route
                .as_ref()
                .is_some_and(|r| r.kind == RouteKind::Broadcast)
        };
        if answer.as_ref().is_ok_and(|answer| answer.kind == 3) && routed.iter().any(to_all) {
            tally.agree += 1;
            *tally.ends.entry("to all on a link").or_default() += 1;
            return;
        }
        let found = ways.iter().any(|way| same(question, way, &kernel));
        // Of several ways the one that the kernel went.
        let mut pairs = routed.iter().zip(&ways);
        let one = pairs.find(|(_, way)| same(question, way, &kernel));
        let one = one.map(|(one, _)| one).or(routed.first());
        let table = match (&answer, one.and_then(|one| one.route.as_ref())) {
            // While nobody made a rule, tables local and main are one.
            (Ok(answer), Some(route)) if answer.table == 254 && route.table == 255 => {
                let rules = self
                    .topology
                    .netns(&self.key)
                    .and_then(|ns| ns.rules.known());
                let ipv4 = rules.into_iter().flatten().filter(|rule| !rule.v6);
                ipv4.count() == 3
            }
            (Ok(answer), Some(route)) => {
                let shared = route.dst.addr().is_ipv6() && route.nh_id.is_some();
                answer.table == route.table || shared
            }
            _ => true,
        };
        let matched = one.and_then(|one| self.matched(question, one, &answer));
        if found && table && matched.is_none() {
            tally.agree += 1;
            let end = match kernel {
                Way::Local(_) => "to this host",
                Way::Out(..) if ways.len() > 1 => "out by one of several",
                Way::Out(..) => "out",
                Way::Error(name) => name,
                Way::Dropped => "dropped",
            };
            *tally.ends.entry(end).or_default() += 1;
            return;
        }
        if question.dst.is_ipv6() && !self.is_listed(question) {
            tally.unlisted += 1;
            return;
        }
        let mut text = format!("{} {question}\n  kernel {answer:?}", self.ns.0);
        if let Some(matched) = matched {
            let _ = write!(text, "\n  match  {matched}");
        }
        for one in &routed {
            let route = one.route.as_ref();
            let _ = write!(
                text,
                "\n  ours   {:?} src {} by {:?}",
                one.next,
                one.src,
                route.map(|r| (r.table, r.dst.to_string(), r.metric, r.kind))
            );
        }
        let name = |way: &Way| match way {
            Way::Local(_) => "local".to_owned(),
            Way::Out(..) => "out".to_owned(),
            Way::Error(name) => (*name).to_owned(),
            Way::Dropped => "dropped".to_owned(),
        };
        let place = match (question.iif, question.oif) {
            (Some(_), _) => "in",
            (_, Some(_)) => "bound",
            _ => "sent",
        };
        let version = if question.dst.is_ipv6() { 6 } else { 4 };
        let ours = ways.first().map(name).unwrap_or_default();
        let kind = format!(
            "ipv{version} {place}: kernel {}, ours {ours}",
            name(&kernel)
        );
        tally.differ.entry(kind).or_insert((0, text)).0 += 1;
    }

    /// Whether the collector could read the route that the kernel goes by. A dump passes over the routes that stand
    /// between the next hops of a multipath route of the same metric (`fib6_dump_node()`).
    fn is_listed(&mut self, question: &Question) -> bool {
        let Ok(found) = ask(&mut self.socket, question, true) else {
            return true;
        };
        let routes = self.topology.netns(&self.key);
        let routes = routes.and_then(|ns| ns.routes.known()).expect("routes");
        routes.iter().any(|route| {
            let by = |hop: &NextHop| hop.link.map(IfIndex::get) == found.oif;
            let ours = (route.table, route.dst.len(), route.metric);
            ours == (found.table, found.dst_len, found.metric)
                && route.dst.contains(question.dst)
                && (route.nexthops.is_empty() || route.nexthops.iter().any(by))
        })
    }

    /// The route itself (RTM_F_FIB_MATCH), where it differs. IPv4 tells no such route for packets that are refused.
    fn matched(
        &mut self,
        question: &Question,
        routed: &Routed,
        answer: &Result<Answer, i32>,
    ) -> Option<String> {
        let route = routed.route.as_ref()?;
        let accepted = answer.is_ok() && !matches!(routed.next, Onward::End(_));
        if !accepted || route.kind != RouteKind::Unicast || route.table == 0 {
            return None;
        }
        let src = question.src.or(match question.dst {
            IpAddr::V4(_) => Some(routed.src),
            IpAddr::V6(_) => None,
        });
        let question = Question { src, ..*question };
        let found = match ask(&mut self.socket, &question, true) {
            Ok(found) => found,
            Err(code) => return Some(format!("errno {code}")),
        };
        let ours = (route.table, route.dst.len(), route.metric);
        let theirs = (found.table, found.dst_len, found.metric);
        // Routes of one nexthop object share what the kernel prepared for either (`rt6_get_pcpu_route()`), and it
        // tells the one that it was prepared for.
        if route.dst.addr().is_ipv6() && route.nh_id.is_some() {
            return None;
        }
        (ours != theirs).then(|| format!("{found:?}"))
    }
}

#[test]
fn routes_are_what_the_kernel_answers() {
    programs::needs_root();
    let number = |name: &str| {
        let text = std::env::var(name).ok()?;
        Some(text.parse::<u64>().expect("a number"))
    };
    let lookups = number("NETPATH_LOOKUPS").unwrap_or(LOOKUPS);
    let seed = number("NETPATH_SEED").unwrap_or(5);
    let mut tally = Tally::default();
    let start = Instant::now();
    let mut round = 0;
    while tally.asked < lookups {
        let mut dice = Dice::new(seed.wrapping_mul(1_000_003).wrapping_add(round * 7919 + 1) << 1);
        round += 1;
        let mut world = World::up(&mut dice);
        let topology = world.topology.clone();
        let mut prepared = Prepared::new(&topology);
        let before = tally.differ.len();
        for turn in 0..EACH {
            let devices = world.devices.clone();
            let question = make::question(&mut dice, turn % 2 == 1, &devices);
            world.compare(&mut prepared, &question, &mut tally);
        }
        if tally.differ.len() > before && std::env::var("NETPATH_KEEP").is_ok() {
            std::mem::forget(world);
            break;
        }
    }
    for (kind, (count, text)) in &tally.differ {
        eprintln!("{count} times {kind}, as\n{text}");
    }
    let unknown: u64 = tally.unknown.values().sum();
    eprintln!(
        "{} lookups in {round} namespaces, seed {seed}: {} agree, {unknown} unknown, {} differ; {:.1} s, kernel {:.2} s, ours {:.2} s",
        tally.asked,
        tally.agree,
        tally.differ.values().map(|(count, _)| count).sum::<u64>(),
        start.elapsed().as_secs_f64(),
        tally.kernel.as_secs_f64(),
        tally.ours.as_secs_f64()
    );
    eprintln!(
        "  {} by routes that the kernel does not list",
        tally.unlisted
    );
    for (end, count) in &tally.ends {
        eprintln!("  {count} {end}");
    }
    for (why, count) in &tally.unknown {
        eprintln!("  {count} unknown: {why}");
    }
    assert!(tally.differ.is_empty(), "the kernel answers otherwise");
    assert!(unknown * 20 < tally.asked, "{unknown} unknown");
    assert!(
        tally.unlisted * 200 < tally.asked,
        "unlisted: {}",
        tally.unlisted
    );
}

/// How often each of several next hops is chosen for packets that pass through, over many destinations.
#[test]
fn next_hops_are_chosen_as_often_as_their_weights_say() {
    programs::needs_root();
    let lines = |v6: bool| -> Vec<String> {
        let (net, via) = if v6 {
            ("fd20::/16", "fd00:")
        } else {
            ("10.60.0.0/16", "10.10.")
        };
        let host = if v6 { "::9" } else { ".9" };
        let hop = |dev: u32, weight: u32| {
            format!("nexthop via {via}{dev}{host} dev e{dev} weight {weight}")
        };
        let hops = [hop(0, 1), hop(1, 3), hop(2, 4)].join(" ");
        vec![format!("route add {net} {hops}")]
    };
    let mut plan = make::plan(&mut Dice::new(1), false);
    plan.settings.clear();
    plan.settings.push("net.ipv4.ip_forward=1".to_owned());
    plan.settings
        .push("net.ipv6.conf.all.forwarding=1".to_owned());
    plan.settings
        .push("net.ipv4.conf.all.rp_filter=0".to_owned());
    (plan.random, plan.random6) = (lines(false), lines(true));
    let mut world = World::of(&plan);
    let topology = world.topology.clone();
    let mut prepared = Prepared::new(&topology);
    let mut dice = Dice::new(77);
    for v6 in [false, true] {
        let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
        let mut shares: BTreeMap<u32, f64> = BTreeMap::new();
        for _ in 0..ASKED {
            let low = u16::try_from(dice.number(65_536)).expect("16 bits");
            let [high, tail] = low.to_be_bytes();
            let (dst, src): (IpAddr, IpAddr) = if v6 {
                let dst = Ipv6Addr::new(0xfd20, 0, 0, 0, 0, 0, low, 1);
                (
                    dst.into(),
                    Ipv6Addr::new(0xfd00, 4, 0, 0, 0, 0, 0, 7).into(),
                )
            } else {
                (
                    Ipv4Addr::new(10, 60, high, tail).into(),
                    Ipv4Addr::new(10, 10, 4, 7).into(),
                )
            };
            let question = Question {
                dst,
                src: Some(src),
                iif: Some(world.devices[4]),
                oif: None,
                mark: 0,
                tos: 0,
                protocol: 17,
                sport: 40_000,
                dport: 53,
                uid: 0,
            };
            let answer = world.kernel(&question).expect("a route");
            *seen.entry(answer.oif.expect("a device")).or_default() += 1;
            if shares.is_empty() {
                let sent = world.sent(&question);
                for one in prepared.route(&sent, IfIndex::new(world.devices[4]), None) {
                    let Onward::Out { oif, .. } = one.next else {
                        panic!("{one:?}");
                    };
                    shares.insert(oif.get(), one.share);
                }
            }
        }
        assert_eq!(shares.len(), 3, "{shares:?}");
        for (dev, share) in shares {
            let (count, asked) = (f64::from(seen[&dev]), f64::from(ASKED));
            // Five standard deviations.
            let far = 5.0 * (asked * share * (1.0 - share)).sqrt();
            let off = (count - asked * share).abs();
            assert!(
                off < far,
                "ipv6 {v6}: {count} of {asked} by {dev}, expected {share}"
            );
        }
    }
}
