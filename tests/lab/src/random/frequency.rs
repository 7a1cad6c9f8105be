//! How often each way is taken where the kernel chooses at random, beside the shares that are predicted.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netpath::model::NsKey;
use netpath::model::packet::UDP;
use netpath::trace::Trace;

use super::Raised;
use super::ask::Verdict;
use super::cpu;
use super::judge::Judge;
use super::plan::LOUD;
use super::seen::points;
use super::world::{Kind, Listener, Place, Probe, Rules, Setting, Table, World};

/// One of the ways of a question.
#[derive(Clone, Debug, PartialEq)]
pub struct Way {
    /// Where it leads, in words.
    pub words: String,
    /// Predicted share.
    pub share: f64,
    /// How often it was seen.
    pub seen: u64,
}

/// A question and its ways.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Who chooses.
    pub what: &'static str,
    /// How often it was asked.
    pub times: u64,
    /// Ways that differ in where the packet is seen, or in how it ends.
    pub ways: Vec<Way>,
}

impl Asked {
    /// The smallest chance, over all ways, that one is seen as seldom or as often as it was, or more so; all ways
    /// counted, a chance below `bound` comes up once in 1 / `bound` runs at most.
    pub fn chance(&self) -> f64 {
        let ways = self.ways.iter();
        let least = ways.map(|way| 2.0 * tail(self.times, way.seen, way.share));
        let count = u32::try_from(self.ways.len()).map_or(f64::from(u32::MAX), f64::from);
        least.fold(1.0, f64::min) * count
    }
}

/// The chance that of `times` things with chance `share` each as few as `seen`, or as many, come up: the smaller of both.
#[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
pub fn tail(times: u64, seen: u64, share: f64) -> f64 {
    if share <= 0.0 || share >= 1.0 {
        let sure = if share <= 0.0 { 0 } else { times };
        return if seen == sure { 1.0 } else { 0.0 };
    }
    let mut log = times as f64 * (1.0 - share).ln();
    let odds = (share / (1.0 - share)).ln();
    let (mut few, mut many) = (0.0, 0.0);
    for count in 0..=times {
        if count <= seen {
            few += log.exp();
        }
        if count >= seen {
            many += log.exp();
        }
        log += ((times - count) as f64 / (count + 1) as f64).ln() + odds;
    }
    f64::min(few, many).min(1.0)
}

/// Who chooses, and the destination that is asked.
const QUESTIONS: [(&str, &str); 9] = [
    ("numgen random, of 4, two of them alike", "10.96.0.1"),
    ("numgen inc, of 3", "10.96.0.2"),
    ("jhash of source and port, of 2", "10.96.0.3"),
    ("statistic random, 0.2, then 0.5", "10.96.0.4"),
    ("statistic nth, every 4, by the legacy backend", "10.96.0.5"),
    ("statistic random, 0.3, drops", "10.2.0.5"),
    ("numgen random, 1 of 5 is refused", "10.2.0.6"),
    ("two next hops of IPv4, weights 1 and 3", "10.9.0.1"),
    ("two next hops of IPv6, weights 2 and 1", "fd00:9::1"),
];

/// Asks each question so many times, by flows of their own, in a network in which all kinds of choices are made.
pub fn ask_all(times: u16) -> Result<Vec<Asked>> {
    cpu::keep_to(0)?;
    let world = world();
    let raised = Raised::up(&world)?;
    if let Some(line) = raised.refused.first() {
        bail!("make the network: {line}");
    }
    let mut judge = Judge::up()?;
    judge.await_usable(&raised)?;
    let (mut wire, _) = raised.wire(&world, judge.ports())?;
    raised.load_rules(&world)?;
    judge.read(&raised)?;
    let mut all = Vec::new();
    // No flow is another's: what was read of connections stands.
    let mut ports = 20000..;
    for (what, dst) in QUESTIONS {
        let dst: IpAddr = dst.parse().context("an address")?;
        let mut ways: BTreeMap<String, Way> = BTreeMap::new();
        for _ in 0..times {
            let src = if dst.is_ipv6() {
                "fd00:1::2"
            } else {
                "10.1.0.2"
            };
            let probe = Probe {
                from: "a".to_owned(),
                kind: Kind::raw(0, (8, 0), 0),
                protocol: UDP,
                src: Some(src.parse().context("an address")?),
                dst,
                sport: ports.next().context("a port")?,
                dport: 53,
                id: 0,
                dev: None,
            };
            let traces = judge.predict(&probe)?;
            let name = judge.namer();
            if ways.is_empty() {
                for trace in &traces {
                    let words = words(trace, &name);
                    let way = ways.entry(words.clone()).or_insert(Way {
                        words,
                        share: 0.0,
                        seen: 0,
                    });
                    way.share += trace.probability;
                }
            }
            let observed = wire.ask(&probe)?;
            let taken = match judge.compare(&probe, &traces, &observed) {
                Verdict::Agrees(taken) => taken,
                other => bail!("{what}: {other:?}"),
            };
            let trace = traces.get(taken).context("a way")?;
            let way = ways.get_mut(&words(trace, &name));
            way.with_context(|| format!("{what}: another way than at first"))?
                .seen += 1;
        }
        all.push(Asked {
            what,
            times: times.into(),
            ways: ways.into_values().collect(),
        });
    }
    Ok(all)
}

fn words(trace: &Trace, name: &dyn Fn(&NsKey) -> String) -> String {
    let points = points(trace, name);
    let last = points.last();
    let last = last.map_or_else(String::new, |last| format!("{} {}", last.place, last.dst));
    format!("{last} {:?}", trace.disposition)
}

fn lines(text: &str) -> Vec<String> {
    let lines = text.lines().map(str::trim);
    let lines = lines.filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

fn place(name: &str, links: &str, ip: &str, listens: &[&str]) -> Place {
    let setting = |(name, value): &(&str, &str)| Setting((*name).to_owned(), (*value).to_owned());
    let more = [
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/fib_multipath_hash_policy", "1"),
        ("ipv6/fib_multipath_hash_policy", "1"),
    ];
    let addrs = listens.iter().filter_map(|addr| addr.parse().ok());
    Place {
        name: name.to_owned(),
        early: LOUD.iter().chain(&more).map(setting).collect(),
        links: lines(links),
        ip: lines(ip),
        listeners: addrs
            .map(|addr: IpAddr| Listener {
                udp: true,
                addr,
                port: 53,
                dev: None,
            })
            .collect(),
        ..Place::default()
    }
}

/// A client, a router that chooses, and two that take what comes.
fn world() -> World {
    let mac = |number: u8| format!("02:00:00:00:00:{number:02x}");
    let veth = |dev: &str, own: u8, other: &str| {
        format!(
            "link add {dev} address {} type veth peer name e0 address {} netns @{other}@\n",
            mac(own),
            mac(own + 1)
        )
    };
    let near = |addrs: &[&str], number: u8, dev: &str| -> String {
        let line = |addr: &&str| {
            format!(
                "neigh replace {addr} lladdr {} dev {dev} nud permanent\n",
                mac(number)
            )
        };
        addrs.iter().map(line).collect()
    };
    let links = [veth("e0", 1, "a"), veth("e1", 3, "c"), veth("e2", 5, "d")].concat();
    let mut router = String::from(
        "link set lo up
        link set e0 up
        link set e1 up
        link set e2 up
        address add 10.1.0.1/24 dev e0
        address add 10.2.0.1/24 dev e1
        address add 10.3.0.1/24 dev e2
        address add fd00:1::1/64 dev e0 nodad
        address add fd00:2::1/64 dev e1 nodad
        address add fd00:3::1/64 dev e2 nodad
        route add 10.9.0.1 nexthop via 10.2.0.2 dev e1 weight 1 nexthop via 10.3.0.2 dev e2 weight 3
        -6 route add fd00:9::1 nexthop via fd00:2::2 dev e1 weight 2 nexthop via fd00:3::2 dev e2 weight 1
        ",
    );
    let servers = ["10.2.0.2", "10.2.0.3", "10.2.0.4", "10.2.0.5", "10.2.0.6"];
    router += &near(&["10.1.0.2", "fd00:1::2"], 2, "e0");
    router += &near(&servers, 4, "e1");
    router += &near(&["fd00:2::2"], 4, "e1");
    router += &near(&["10.3.0.2", "fd00:3::2"], 6, "e2");
    let client = "link set lo up
        link set e0 up
        address add 10.1.0.2/24 dev e0
        address add fd00:1::2/64 dev e0 nodad
        route add default via 10.1.0.1
        -6 route add default via fd00:1::1 dev e0
        "
    .to_owned()
        + &near(&["10.1.0.1", "fd00:1::1"], 1, "e0");
    let server = |net: u8, addrs: &[&str], gateway: u8| {
        let own = addrs
            .iter()
            .map(|addr| format!("address add {addr}/24 dev e0\n"));
        format!(
            "link set lo up
            link set e0 up
            {}
            address add fd00:{net}::2/64 dev e0 nodad
            address add 10.9.0.1/32 dev lo
            address add fd00:9::1/128 dev lo nodad
            route add default via 10.{net}.0.1
            -6 route add default via fd00:{net}::1 dev e0
            {}",
            own.collect::<String>(),
            near(
                &[&format!("10.{net}.0.1"), &format!("fd00:{net}::1")],
                gateway,
                "e0"
            )
        )
    };
    let shared = ["10.9.0.1", "fd00:9::1"];
    let c = server(2, &servers, 3);
    let d = server(3, &["10.3.0.2"], 5);
    let mut r = place("r", &links, &router, &[]);
    r.rules = rules();
    World {
        places: vec![
            r,
            place("a", "", &client, &[]),
            place("c", "", &c, &[&servers[..], &shared].concat()),
            place("d", "", &d, &[&["10.3.0.2"][..], &shared].concat()),
        ],
    }
}

/// What the router chooses by.
fn rules() -> Vec<Rules> {
    let nft = "add table ip t
        add chain ip t pre { type nat hook prerouting priority -100; }
        add rule ip t pre ip daddr 10.96.0.1 dnat to numgen random mod 4 map { 0 : 10.2.0.2, 1 : 10.2.0.3, 2-3 : 10.2.0.4 }
        add rule ip t pre ip daddr 10.96.0.2 dnat to numgen inc mod 3 map { 0 : 10.2.0.2, 1 : 10.2.0.3, 2 : 10.2.0.4 }
        add rule ip t pre ip daddr 10.96.0.3 dnat to jhash ip saddr . udp sport mod 2 map { 0 : 10.2.0.2, 1 : 10.2.0.3 }
        add chain ip t passing { type filter hook forward priority 0; }
        add rule ip t passing ip daddr 10.2.0.6 numgen random mod 5 < 1 reject with icmp type host-prohibited";
    let table = |name: &str, chain: &str, rules: &str| Table {
        name: name.to_owned(),
        chains: vec![format!(":{chain} ACCEPT")],
        rules: lines(rules),
    };
    let to = "-j DNAT --to-destination";
    let statistic = format!(
        "-A PREROUTING -d 10.96.0.4 -m statistic --mode random --probability 0.2 {to} 10.2.0.2
        -A PREROUTING -d 10.96.0.4 -m statistic --mode random --probability 0.5 {to} 10.2.0.3
        -A PREROUTING -d 10.96.0.4 {to} 10.2.0.4"
    );
    let nth = format!(
        "-A PREROUTING -d 10.96.0.5 -m statistic --mode nth --every 4 --packet 0 {to} 10.2.0.2
        -A PREROUTING -d 10.96.0.5 {to} 10.2.0.3"
    );
    let drops = "-A FORWARD -d 10.2.0.5 -m statistic --mode random --probability 0.3 -j DROP";
    vec![
        Rules::Nft(lines(nft)),
        Rules::Iptables {
            legacy: false,
            v6: false,
            tables: vec![
                table("nat", "PREROUTING", &statistic),
                table("filter", "FORWARD", drops),
            ],
        },
        Rules::Iptables {
            legacy: true,
            v6: false,
            tables: vec![table("nat", "PREROUTING", &nth)],
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_near(own: f64, wanted: f64) {
        assert!((own - wanted).abs() < wanted * 1e-9, "{own} and {wanted}");
    }

    #[test]
    fn tails_are_those_of_the_binomial_distribution() {
        is_near(tail(2, 0, 0.5), 0.25);
        is_near(tail(2, 1, 0.5), 0.75);
        is_near(tail(10, 10, 0.1), 1e-10);
        // Chances of 0 and 1 allow one count.
        is_near(tail(5, 5, 1.0), 1.0);
        assert!(tail(5, 4, 1.0) <= 0.0);
        assert!(tail(5, 1, 0.0) <= 0.0);
    }

    #[test]
    fn a_wrong_share_is_far_below_the_bound() {
        let asked = |share: f64, seen: u64| Asked {
            what: "a choice",
            times: 300,
            ways: vec![Way {
                words: String::new(),
                share,
                seen,
            }],
        };
        assert!(asked(0.25, 75).chance() > 0.5);
        assert!(asked(0.5, 75).chance() < 1e-6);
        assert!(asked(1.0 / 3.0, 150).chance() < 1e-6);
    }
}
