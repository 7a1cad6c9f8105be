//! Random tables and rules, and random packets to look up in them.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::ask::Question;
use netpath_lab::random::dice::Dice;

/// Devices `e0` to `e5`; the other end of `e3` is down.
pub const DEVICES: u64 = 6;
/// The device without carrier.
const LINKDOWN: u64 = 3;
const TABLES: [&str; 5] = ["main", "100", "101", "102", "1000"];
const MARKS: [u32; 6] = [0, 1, 2, 0x80, 0x81, 0xdead_0001];
const PORTS: [u16; 5] = [53, 80, 443, 8080, 40_000];
const PROTOCOLS: [(u8, &str); 3] = [(6, "tcp"), (17, "udp"), (1, "icmp")];

pub fn pick<T: Copy>(dice: &mut Dice, all: &[T]) -> T {
    let at = dice.number(all.len() as u64);
    all[usize::try_from(at).expect("small")]
}

pub fn chance(dice: &mut Dice, percent: u64) -> bool {
    dice.number(100) < percent
}

fn small(dice: &mut Dice, n: u64) -> u16 {
    u16::try_from(dice.number(n)).expect("small")
}

/// An address of few, so that prefixes nest.
fn near(dice: &mut Dice, v6: bool) -> IpAddr {
    if v6 {
        let step = [0, 1, 0x8000, 0xff00];
        let words = [(); 3].map(|()| pick(dice, &step));
        let low = small(dice, 4);
        return Ipv6Addr::new(0xfd10, words[0], 0, words[1], 0, 0, words[2], low).into();
    }
    let byte =
        |dice: &mut Dice| u8::try_from(dice.number(4) * 64 + dice.number(2)).expect("a byte");
    let second = 20 + u8::try_from(dice.number(4)).expect("a byte");
    Ipv4Addr::new(10, second, byte(dice), byte(dice)).into()
}

fn masked(addr: IpAddr, len: u8) -> IpAddr {
    match addr {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
            Ipv4Addr::from(u32::from(ip) & mask).into()
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
            Ipv6Addr::from(u128::from(ip) & mask).into()
        }
    }
}

fn prefix(dice: &mut Dice, v6: bool) -> String {
    let len = if v6 {
        pick(
            dice,
            &[0, 8, 16, 20, 32, 48, 56, 64, 65, 112, 120, 127, 128],
        )
    } else {
        pick(
            dice,
            &[
                0, 1, 8, 12, 14, 15, 16, 17, 18, 20, 23, 24, 25, 26, 28, 30, 31, 32,
            ],
        )
    };
    let addr = near(dice, v6);
    format!("{}/{len}", masked(addr, len))
}

/// An address of this namespace.
fn own(dice: &mut Dice, v6: bool) -> IpAddr {
    let dev = small(dice, DEVICES);
    if v6 {
        let low = pick(dice, &[1, 1, 1, 0x11]);
        return Ipv6Addr::new(0xfd00, dev, 0, 0, 0, 0, 0, low).into();
    }
    let dev = u8::try_from(dev).expect("small");
    let (net, low) = pick(dice, &[(10, 1), (10, 1), (10, 18), (11, 17)]);
    Ipv4Addr::new(10, net, dev, low).into()
}

fn gateway(dice: &mut Dice, dev: u64, v6: bool) -> String {
    let low = 2 + dice.number(6);
    if v6 {
        if chance(dice, 20) {
            return format!("fe80::{low}");
        }
        return format!("fd00:{dev}::{low}");
    }
    format!("10.10.{dev}.{low}")
}

/// One way: device, with a gateway or without.
fn hop(dice: &mut Dice, v6: bool) -> String {
    let dev = dice.number(DEVICES);
    if chance(dice, 30) {
        return format!("dev e{dev}");
    }
    if !v6 && chance(dice, 8) {
        return format!("via inet6 fe80::{} dev e{dev}", 2 + dice.number(4));
    }
    if chance(dice, 10) {
        let far = near(dice, v6);
        return format!("via {far} dev e{dev} onlink");
    }
    format!("via {} dev e{dev}", gateway(dice, dev, v6))
}

fn route(dice: &mut Dice, v6: bool) -> String {
    let mut text = String::from("route append ");
    let kind = pick(
        dice,
        &[
            "unicast",
            "unicast",
            "unicast",
            "unicast",
            "unicast",
            "unicast",
            "unicast",
            "unicast",
            "blackhole",
            "unreachable",
            "prohibit",
            "throw",
            "local",
            if v6 { "anycast" } else { "broadcast" },
        ],
    );
    let _ = write!(text, "{kind} {} ", prefix(dice, v6));
    if v6 && chance(dice, 12) {
        let from = pick(dice, &["fd00:1::/64", "fd00::/16", "fd00:2::1/128"]);
        let _ = write!(text, "from {from} ");
    }
    if !v6 && chance(dice, 10) {
        let _ = write!(text, "tos {} ", pick(dice, &["0x04", "0x08", "0x10"]));
    }
    let table = if kind == "local" && chance(dice, 50) {
        "local"
    } else {
        pick(dice, &TABLES)
    };
    let _ = write!(text, "table {table} ");
    if chance(dice, 30) {
        let _ = write!(text, "metric {} ", pick(dice, &[1, 10, 100, 1024, 5000]));
    }
    if matches!(kind, "unicast") && chance(dice, 20) {
        let _ = write!(text, "src {} ", own(dice, v6));
    }
    if v6 && kind == "unicast" && chance(dice, 15) {
        let _ = write!(text, "pref {} ", pick(dice, &["low", "medium", "high"]));
    }
    if kind == "unicast" && chance(dice, 10) {
        let _ = write!(text, "mtu 1400 ");
    }
    match kind {
        "unicast" => match dice.number(10) {
            0..=5 => text += &hop(dice, v6),
            6..=7 => {
                for _ in 0..2 + dice.number(3) {
                    let weight = 1 + dice.number(8);
                    // The flag stands behind the weight for iproute2.
                    let hop = hop(dice, v6);
                    let (hop, onlink) = match hop.strip_suffix(" onlink") {
                        Some(hop) => (hop.to_owned(), " onlink"),
                        None => (hop, ""),
                    };
                    let _ = write!(text, "nexthop {hop} weight {weight}{onlink} ");
                }
            }
            _ => {
                let id = pick(dice, &[1, 2, 3, 4, 11, 12]);
                let _ = write!(text, "nhid {}", if v6 { id + 100 } else { id });
            }
        },
        "local" => {
            let dev = dice.number(DEVICES);
            if chance(dice, 50) {
                text += "dev lo";
            } else {
                let _ = write!(text, "dev e{dev}");
            }
        }
        "anycast" | "broadcast" => {
            let _ = write!(text, "dev e{}", dice.number(DEVICES));
        }
        _ => {}
    }
    // Of routes of one destination with gateways, IPv6 makes one and does not tell the sources of the others.
    match text
        .split_once("src ")
        .map(|(before, after)| (before, after.split_once(' ')))
    {
        Some((before, Some((_, after)))) if v6 && after.contains("via") => {
            format!("{before}{after}")
        }
        _ => text,
    }
}

fn rule(dice: &mut Dice, v6: bool, priorities: &mut Vec<u64>) -> String {
    let priority = 1 + dice.number(32_000);
    let mut text = format!("rule add priority {priority} ");
    if chance(dice, 10) {
        text += "not ";
    }
    if chance(dice, 35) {
        let from = if chance(dice, 50) {
            prefix(dice, v6)
        } else if v6 {
            format!("fd00:{}::/{}", dice.number(DEVICES), pick(dice, &[32, 64]))
        } else {
            format!("10.10.{}.0/{}", dice.number(DEVICES), pick(dice, &[24, 32]))
        };
        let _ = write!(text, "from {from} ");
    }
    if chance(dice, 35) {
        let _ = write!(text, "to {} ", prefix(dice, v6));
    }
    if chance(dice, 25) {
        let mask = pick(dice, &[u32::MAX, 0xff, 0x80, 0xffff_0000]);
        let _ = write!(text, "fwmark {:#x}/{mask:#x} ", pick(dice, &MARKS) & mask);
    }
    if chance(dice, 15) {
        let dev = pick(dice, &["lo", "e0", "e1", "e2", "gone"]);
        let _ = write!(text, "iif {dev} ");
    }
    if chance(dice, 10) {
        let _ = write!(text, "oif {} ", pick(dice, &["e0", "e1", "lo", "gone"]));
    }
    if chance(dice, 12) {
        let tos = pick(dice, &["0x04", "0x08", "0x10"]);
        let _ = write!(text, "tos {tos} ");
    }
    if chance(dice, 15) {
        let name = pick(dice, &PROTOCOLS).1;
        let _ = write!(text, "ipproto {name} ");
    }
    if chance(dice, 10) {
        let _ = write!(
            text,
            "sport {} ",
            pick(dice, &["1024-65535", "53", "80-443"])
        );
    }
    if chance(dice, 15) {
        let _ = write!(
            text,
            "dport {} ",
            pick(dice, &["1-1023", "53", "80-443", "8080"])
        );
    }
    if chance(dice, 12) {
        let _ = write!(
            text,
            "uidrange {} ",
            pick(dice, &["0-0", "1000-1000", "0-999"])
        );
    }
    match dice.number(20) {
        0 => text += "blackhole",
        1 => text += "unreachable",
        2 => text += "prohibit",
        3 => text += "nop",
        4..=5 => {
            let later: Vec<u64> = priorities
                .iter()
                .copied()
                .filter(|p| *p > priority)
                .collect();
            let goto = if later.is_empty() || chance(dice, 20) {
                (priority + 1 + dice.number(300)).min(32_766)
            } else {
                pick(dice, &later)
            };
            let _ = write!(text, "goto {goto}");
        }
        _ => {
            let _ = write!(text, "table {} ", pick(dice, &TABLES));
            if chance(dice, 20) {
                let len = pick(dice, &[0, 8, 16, 24]);
                let _ = write!(text, "suppress_prefixlength {len}");
            }
        }
    }
    priorities.push(priority);
    text
}

/// What a namespace is made of.
pub struct Plan {
    /// For `ip -batch -`, devices first; these must succeed.
    pub base: Vec<String>,
    /// Random objects; the kernel may refuse some.
    pub random: Vec<String>,
    /// For `ip -6 -batch -`, likewise.
    pub random6: Vec<String>,
    /// `sysctl -w`.
    pub settings: Vec<String>,
    /// Whether IPv6 packets are forwarded.
    pub forwarding6: bool,
}

pub fn plan(dice: &mut Dice, vrf: bool) -> Plan {
    let mut base = vec!["link set lo up".to_owned()];
    for dev in 0..DEVICES {
        base.push(format!("link add e{dev} type veth peer name p{dev}"));
        base.push(format!("link set e{dev} addrgenmode none"));
        base.push(format!("link set p{dev} addrgenmode none"));
    }
    if vrf {
        base.push("link add v0 type vrf table 1000".to_owned());
        base.push("link set v0 up".to_owned());
        base.push("link set e5 master v0".to_owned());
    }
    for dev in 0..DEVICES {
        base.push(format!("link set e{dev} up"));
        if dev != LINKDOWN {
            base.push(format!("link set p{dev} up"));
        }
        base.push(format!("addr add 10.10.{dev}.1/24 dev e{dev}"));
        base.push(format!("addr add fd00:{dev}::1/64 dev e{dev} nodad"));
    }
    let mut settings: Vec<String> = ["net.ipv4.ip_forward=1".to_owned()].into();
    let forwarding6 = chance(dice, 70);
    settings.push(format!(
        "net.ipv6.conf.all.forwarding={}",
        u8::from(forwarding6)
    ));
    for dev in 0..DEVICES {
        if chance(dice, 40) {
            let scope = pick(dice, &["global", "link", "host"]);
            base.push(format!(
                "addr add 10.11.{dev}.17/24 dev e{dev} scope {scope}"
            ));
            base.push(format!("addr add 10.10.{dev}.18/24 dev e{dev}"));
            base.push(format!("addr add fd00:{dev}::11/128 dev e{dev} nodad"));
        }
        if chance(dice, 20) {
            let peer = near(dice, false);
            base.push(format!("addr add 10.9.{dev}.1 peer {peer}/32 dev e{dev}"));
        }
        for (name, values) in [
            ("rp_filter", [0, 0, 1, 2]),
            ("accept_local", [0, 0, 0, 1]),
            ("src_valid_mark", [0, 0, 0, 1]),
            ("forwarding", [1, 1, 1, 0]),
            ("ignore_routes_with_linkdown", [0, 0, 0, 1]),
        ] {
            let value = pick(dice, &values);
            settings.push(format!("net.ipv4.conf.e{dev}.{name}={value}"));
        }
        let value = u8::from(chance(dice, 30));
        settings.push(format!(
            "net.ipv6.conf.e{dev}.ignore_routes_with_linkdown={value}"
        ));
    }
    let (mut random, mut random6) = (Vec::new(), Vec::new());
    for (v6, list) in [(false, &mut random), (true, &mut random6)] {
        let off = if v6 { 100 } else { 0 };
        for id in 1..=4 {
            let what = match dice.number(8) {
                0 => "blackhole".to_owned(),
                _ => hop(dice, v6),
            };
            list.push(format!("nexthop add id {} {what}", id + off));
        }
        for id in [11, 12] {
            let (one, two) = (1 + dice.number(4) + off, 1 + dice.number(4) + off);
            let weight = 1 + dice.number(9);
            list.push(format!(
                "nexthop add id {} group {one},{weight}/{two}",
                id + off
            ));
        }
        for _ in 0..25 + dice.number(60) {
            list.push(route(dice, v6));
        }
        let mut priorities = vec![32_766, 32_767];
        for _ in 0..dice.number(12) {
            list.push(rule(dice, v6, &mut priorities));
        }
        if chance(dice, 10) {
            // Without table local first, own addresses are reached by other tables' routes.
            list.push("rule add priority 40000 table local".to_owned());
            list.push("rule del priority 0".to_owned());
        }
    }
    Plan {
        base,
        random,
        random6,
        settings,
        forwarding6,
    }
}

/// A packet to look up; `devices` are the indices of e0 and so on, the last of them lo.
pub fn question(dice: &mut Dice, v6: bool, devices: &[u32]) -> Question {
    let dst = match dice.number(20) {
        0..=1 => own(dice, v6),
        2 if !v6 => Ipv4Addr::new(10, 10, u8::try_from(dice.number(6)).expect("small"), 255).into(),
        3 if v6 => Ipv6Addr::from(u128::from(dice.number(1 << 48)) << 70 | 0xfd << 120).into(),
        3 => {
            Ipv4Addr::from(0x0100_0000 + u32::try_from(dice.number(0xdeff_ffff)).expect("32 bits"))
                .into()
        }
        4 => neighbour(dice, v6),
        5..=9 => {
            let len = pick(dice, if v6 { &[32, 64, 112] } else { &[16, 20, 24] });
            let base = masked(near(dice, v6), len);
            match base {
                IpAddr::V4(ip) => Ipv4Addr::from(
                    u32::from(ip) | u32::try_from(dice.number(1 << (32 - len))).expect("32 bits"),
                )
                .into(),
                IpAddr::V6(ip) => {
                    Ipv6Addr::from(u128::from(ip) | u128::from(dice.number(1 << 48))).into()
                }
            }
        }
        _ => near(dice, v6),
    };
    let iif = chance(dice, 45).then(|| pick(dice, &devices[..devices.len() - 1]));
    let src = if iif.is_some() {
        Some(match dice.number(10) {
            0 => own(dice, v6),
            1..=4 => neighbour(dice, v6),
            _ => near(dice, v6),
        })
    } else {
        match dice.number(10) {
            0..=4 => None,
            5 => Some(near(dice, v6)),
            _ => Some(own(dice, v6)),
        }
    };
    // A bound socket of IPv6 asks strictly whatever its source is; the kernel does so here only without one.
    let oif =
        (iif.is_none() && !(v6 && src.is_some()) && chance(dice, 15)).then(|| pick(dice, devices));
    let protocol = match pick(dice, &PROTOCOLS).0 {
        1 if v6 => 58,
        number => number,
    };
    let ports = protocol == 6 || protocol == 17;
    let mut port = || if ports { pick(dice, &PORTS) } else { 0 };
    let (sport, dport) = (port(), port());
    Question {
        dst,
        src,
        iif,
        oif,
        mark: pick(dice, &MARKS),
        tos: pick(dice, &[0, 0, 0, 4, 8, 0x10]),
        protocol,
        sport,
        dport,
        // What comes in is root's; IPv6 would take another one that is told here.
        uid: if iif.is_some() {
            0
        } else {
            pick(dice, &[0, 0, 1000, 500])
        },
    }
}

/// Someone on a link.
fn neighbour(dice: &mut Dice, v6: bool) -> IpAddr {
    let dev = small(dice, DEVICES);
    let low = 2 + small(dice, 6);
    if v6 {
        return Ipv6Addr::new(0xfd00, dev, 0, 0, 0, 0, 0, low).into();
    }
    let byte = |number: u16| u8::try_from(number).expect("small");
    Ipv4Addr::new(10, 10, byte(dev), byte(low)).into()
}
