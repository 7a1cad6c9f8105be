//! Random packets over the interesting addresses, ports, protocols, flags and marks of the plan.

use std::net::IpAddr;

use netpath::model::packet::{ICMP, ICMPV6, TCP, UDP};
use netpath_lab::random::dice::Dice;
use netpath_lab::random::world::{Kind, Probe};

use super::net::addrs;

const SERVICES: [u16; 10] = [1, 10, 20, 30, 40, 50, 60, 70, 80, 99];
const EXTERNAL: [u16; 6] = [2, 20, 30, 50, 60, 70];
const NODE_PORTS: [u16; 24] = [
    30080, 30081, 30082, 30083, 30084, 30085, 30086, 32081, 80, 53, 8080, 8443, 9000, 9001, 9002,
    5353, 8000, 5300, 8088, 8089, 8090, 8091, 8104, 445,
];
const POD_PORTS: [u16; 9] = [80, 8080, 53, 9000, 9001, 9002, 445, 15008, 15021];
const MARKS: [u32; 5] = [0x4000, 0x8000, 0x2000, 0x539, 0x111];
/// SYN, ACK, FIN ACK, RST, SYN ACK, none, FIN PSH URG, SYN FIN, PSH ACK, SYN RST.
const FLAGS: [u8; 10] = [0x02, 0x10, 0x11, 0x04, 0x12, 0x00, 0x29, 0x03, 0x18, 0x06];

/// The packets of a set. `pod`: the rules are those of pod a, so that it takes part in most.
pub fn questions(seed: u64, number: usize, pod: bool, has_201: bool) -> Vec<Probe> {
    let mut dice = Dice::new(seed);
    let mut all: Vec<Probe> = Vec::new();
    for index in 0..number {
        let sport = 40000 + u16::try_from(index % 3600 * 7).expect("few packets");
        let again = dice.below(8) == 0;
        let before = all.last().cloned().filter(|_| again).and_then(once_more);
        let next = before.unwrap_or_else(|| question(&mut dice, sport, pod, has_201));
        all.push(next);
    }
    all
}

/// A packet of the same flow, for which conntrack has an entry by now. Later ones of TCP would have to lie in its
/// windows, but for one that begins anew.
fn once_more(before: Probe) -> Option<Probe> {
    let (flags, icmp) = match (before.kind, before.protocol) {
        (Kind::Raw { .. } | Kind::Error { .. }, _) => return None,
        (_, TCP) => (0x02, (0, 0)),
        (_, ICMPV6) => (0, (128, 0)),
        _ => (0, (8, 0)),
    };
    let kind = Kind::raw(flags, icmp, payload(before.protocol));
    Some(Probe { kind, ..before })
}

/// Bytes of a raw packet behind its transport header.
pub fn payload(protocol: u8) -> u16 {
    u16::from(protocol == UDP)
}

fn question(dice: &mut Dice, sport: u16, pod: bool, has_201: bool) -> Probe {
    let v6 = dice.below(5) < 2;
    let sources = if pod {
        ["a", "a", "a", "b", "out", "node", "a"]
    } else {
        ["a", "b", "out", "out", "c", "d", "node"]
    };
    let mut from = dice.one(&sources);
    if !pod && dice.below(12) == 0 {
        from = "k";
    }
    let own: Vec<IpAddr> = addrs(from)
        .into_iter()
        .filter(|addr| addr.is_ipv6() == v6)
        .collect();
    // A node's packets to others leave with the address of the device, unless bound otherwise.
    let src = match from {
        "node" if dice.below(4) > 0 => own[0],
        _ => dice.one(&own),
    };
    let to_pod = |place: &str| {
        let mut all = addrs(place).into_iter();
        all.find(|addr| addr.is_ipv6() == v6)
            .expect("both families")
    };
    let of = |v4: String, v6_text: String| -> IpAddr {
        if v6 { v6_text } else { v4 }.parse().expect("an address")
    };
    let (dst, ports): (IpAddr, &[u16]) = match dice.below(20) {
        0..=5 => {
            let host = dice.one(&SERVICES);
            let dst = of(format!("10.96.0.{host}"), format!("fd00:10:96::{host}"));
            let ports: &[u16] = match host {
                1 => &[443],
                10 => &[53, 53, 53, 8080],
                80 => &[53],
                _ => &[80, 80, 80, 81],
            };
            (dst, ports)
        }
        6 | 7 => {
            let host = dice.one(&EXTERNAL);
            (
                of(format!("192.0.2.{host}"), format!("2001:db8:192::{host}")),
                &[80, 80, 80, 8080],
            )
        }
        8..=11 => {
            let all: Vec<IpAddr> = addrs("node")
                .into_iter()
                .filter(|addr| addr.is_ipv6() == v6)
                .collect();
            let dst = if dice.below(3) > 0 {
                all[0]
            } else {
                dice.one(&all)
            };
            (dst, &NODE_PORTS)
        }
        12 if from != "out" => {
            let all: Vec<IpAddr> = addrs("out")
                .into_iter()
                .filter(|addr| addr.is_ipv6() == v6)
                .collect();
            (dice.one(&all), &POD_PORTS)
        }
        13 if has_201 => (of("10.88.0.201".into(), "fd00:88::201".into()), &POD_PORTS),
        14 if from == "node" || pod => (of("127.0.0.1".into(), "::1".into()), &NODE_PORTS),
        _ => {
            let place = if pod && from != "a" {
                "a"
            } else {
                dice.one(&["a", "b", "c", "d", "k", "out"])
            };
            let dst = match place {
                "out" => of("10.244.2.2".into(), "fd00:10:244:2::2".into()),
                place => to_pod(place),
            };
            (dst, &POD_PORTS)
        }
    };
    let src = if dst.is_loopback() { dst } else { src };
    let dport = dice.one(ports);
    let udp_port = matches!(dport, 53 | 5353 | 5300 | 30086 | 9000..=9002 | 8104);
    let protocol = match dice.below(10) {
        0 => {
            if v6 {
                ICMPV6
            } else {
                ICMP
            }
        }
        1 => UDP,
        2..=6 if udp_port => UDP,
        _ => TCP,
    };
    let mut kind = Kind::Exchange;
    if dice.below(4) == 0 {
        let icmp = match (v6, dice.below(4)) {
            (false, 0) => (13, 0),
            (false, 1) => (0, 0),
            (false, 2) => (17, 0),
            (true, 0) => (129, 0),
            (true, 1) => (128, 1),
            (true, _) => (128, 0),
            (false, _) => (8, 0),
        };
        kind = Kind::raw(dice.one(&FLAGS), icmp, payload(protocol));
        if let Kind::Raw { mark, .. } = &mut kind
            && dice.below(2) == 0
        {
            *mark = dice.one(&MARKS);
        }
    }
    let id = match dice.below(6) {
        0 => 1337,
        1 => 2102,
        2 => 1000,
        _ => 0,
    };
    Probe {
        from: from.to_owned(),
        kind,
        protocol,
        src: Some(src),
        dst,
        sport,
        dport,
        id,
        dev: None,
    }
}
