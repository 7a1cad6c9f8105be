//! Packets: to whom there is, on ports where somebody listens, and to the others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use netpath::model::packet::{ICMP, ICMPV6, TCP, UDP};

use super::dice::Dice;
use super::plan::Plan;
use super::topic::Ask;
use super::world::{Kind, Listener, Probe};

/// Ports of servers.
pub const TCP_PORTS: [u16; 2] = [80, 8080];
/// Likewise.
pub const UDP_PORTS: [u16; 2] = [53, 8053];
/// Ports that probes are sent from, each once in a network.
const SOURCE_PORTS: Range<u16> = 40000..61000;
/// SYN, ACK, FIN ACK, RST, SYN ACK, none, FIN PSH URG, SYN FIN, PSH ACK, SYN RST.
const FLAGS: [u8; 10] = [0x02, 0x10, 0x11, 0x04, 0x12, 0x00, 0x29, 0x03, 0x18, 0x06];

/// Opens sockets in most namespaces: on all addresses, on one, or none.
pub fn listeners(dice: &mut Dice, plan: &mut Plan) {
    for place in 0..plan.world.places.len() {
        let mut addrs = plan.addrs(place, false);
        if plan.v6 {
            addrs.extend(plan.addrs(place, true));
        }
        addrs.push(Ipv4Addr::LOCALHOST.into());
        let mut all = Vec::new();
        for port in TCP_PORTS {
            let addr = match dice.below(10) {
                0..=6 => Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)),
                7 => Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)),
                8 => Some(dice.one(&addrs)),
                _ => None,
            };
            all.extend(addr.map(|addr| Listener {
                udp: false,
                addr,
                port,
                dev: None,
            }));
        }
        for port in UDP_PORTS {
            if dice.percent(15) {
                continue;
            }
            let only = dice.percent(15).then(|| dice.one(&addrs));
            let own = addrs
                .iter()
                .filter(|addr| only.is_none_or(|own| own == **addr));
            all.extend(own.map(|addr| Listener {
                udp: true,
                addr: *addr,
                port,
                dev: None,
            }));
        }
        plan.world.places[place].listeners = all;
    }
}

/// So many packets for a network; many are what its topics ask for.
pub fn draw(dice: &mut Dice, plan: &Plan, asks: &[Ask], number: usize) -> Vec<Probe> {
    let mut probes: Vec<Probe> = Vec::new();
    let senders: Vec<usize> = (0..plan.world.places.len())
        .filter(|place| !plan.addrs(*place, false).is_empty())
        .collect();
    while probes.len() < number {
        let sport = SOURCE_PORTS.start + u16::try_from(probes.len() * 7 % 20000).unwrap_or(0);
        let again = probes.last().filter(|_| dice.percent(8)).cloned();
        if let Some(before) = again.and_then(once_more) {
            probes.push(before);
            continue;
        }
        if !asks.is_empty() && dice.percent(45) {
            let ask = dice.one(asks);
            probes.push(asked(dice, plan, &ask, sport));
            continue;
        }
        let from = dice.one(&senders);
        probes.push(one(dice, plan, from, sport));
    }
    probes
}

/// A packet of the same flow, which conntrack may know by now. Later ones of TCP would have to lie in its windows,
/// but for one that begins anew.
fn once_more(before: Probe) -> Option<Probe> {
    if before.kind != Kind::Exchange || before.src.is_none() {
        return None;
    }
    let icmp = if before.dst.is_ipv6() { 128 } else { 8 };
    let kind = Kind::Raw {
        flags: 2,
        icmp: (icmp, 0),
        mark: 0,
        ttl: 64,
        tos: 0,
        df: true,
        payload: 0,
    };
    Some(Probe { kind, ..before })
}

/// A packet that a topic asks for: mostly by sockets.
fn asked(dice: &mut Dice, plan: &Plan, ask: &Ask, sport: u16) -> Probe {
    let v6 = ask.dst.is_ipv6();
    // Neither echoes nor raw packets are sent without a source.
    let bound = ask
        .src
        .or_else(|| plan.addrs(ask.from, v6).first().copied());
    let has_ports = matches!(ask.protocol, TCP | UDP);
    let raw = ask.src.is_some() && dice.percent(20);
    Probe {
        from: plan.world.places[ask.from].name.clone(),
        kind: if raw {
            Kind::raw(2, (if v6 { 128 } else { 8 }, 0), 0)
        } else {
            Kind::Exchange
        },
        protocol: ask.protocol,
        src: if has_ports { ask.src } else { bound },
        dst: ask.dst,
        sport,
        dport: ask.dport,
        id: 0,
        dev: None,
    }
}

fn one(dice: &mut Dice, plan: &Plan, from: usize, sport: u16) -> Probe {
    let v6 = plan.v6 && dice.percent(40);
    let own = plan.addrs(from, v6);
    let dst = destination(dice, plan, from, v6);
    let protocol = match dice.below(10) {
        0..=4 => TCP,
        5..=7 => UDP,
        _ if v6 => ICMPV6,
        _ => ICMP,
    };
    let raw = dice.percent(30);
    let src = if dst.is_loopback() {
        Some(dst)
    } else if !raw && matches!(protocol, TCP | UDP) && dice.percent(45) {
        None
    } else if dice.percent(75) {
        own.first().copied()
    } else {
        Some(dice.one(&own))
    };
    let ports: &[u16] = match protocol {
        TCP => &[80, 80, 80, 8080, 8080, 81, 30080],
        _ => &[53, 53, 8053, 8053, 54, 30053],
    };
    let kind = if raw {
        let icmp = match (v6, dice.below(5)) {
            (false, 0) => (13, 0),
            (false, 1) => (0, 0),
            (true, 0) => (129, 0),
            (true, _) => (128, 0),
            (false, _) => (8, 0),
        };
        Kind::Raw {
            flags: dice.one(&FLAGS),
            icmp,
            mark: if dice.percent(40) {
                dice.one(&super::routes::MARKS)
            } else {
                0
            },
            ttl: dice.weighted(&[(6, 64), (1, 1), (1, 2), (1, 3), (1, 255)]),
            tos: dice.weighted(&[(7, 0), (1, 0x10), (1, 0xb8), (1, 0x02)]),
            df: dice.percent(70),
            payload: dice.weighted(&[(6, 0), (2, 100), (2, 1250), (1, 1380)]),
        }
    } else {
        Kind::Exchange
    };
    Probe {
        from: plan.world.places[from].name.clone(),
        kind,
        protocol,
        src,
        dst,
        sport,
        dport: dice.one(ports),
        id: dice.weighted(&[(5, 0), (1, 1000), (1, 1337)]),
        dev: None,
    }
}

fn destination(dice: &mut Dice, plan: &Plan, from: usize, v6: bool) -> IpAddr {
    let others: Vec<IpAddr> = (0..plan.world.places.len())
        .filter(|place| *place != from)
        .flat_map(|place| plan.addrs(place, v6))
        .collect();
    let services: Vec<IpAddr> = plan
        .services
        .iter()
        .copied()
        .filter(|addr| addr.is_ipv6() == v6)
        .collect();
    match dice.below(40) {
        0..=27 => dice.one(&others),
        28..=33 => dice.one(&services),
        34 | 35 => dice.one(&plan.addrs(from, v6)),
        36 if v6 => Ipv6Addr::LOCALHOST.into(),
        36 => Ipv4Addr::LOCALHOST.into(),
        37 if v6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 9).into(),
        37 => Ipv4Addr::new(203, 0, 113, 9).into(),
        _ => nobody(dice.one(&others)),
    }
}

/// An address beside another that nobody has.
fn nobody(addr: IpAddr) -> IpAddr {
    match addr {
        IpAddr::V4(addr) => {
            let [a, b, c, _] = addr.octets();
            Ipv4Addr::new(a, b, c, 7).into()
        }
        IpAddr::V6(addr) => {
            let bits = u128::from(addr) & !0xff | 0x77;
            Ipv6Addr::from(bits).into()
        }
    }
}
