//! Routes and policy rules: most lead where they should.

use super::dice::Dice;
use super::plan::{Goal, Plan, Station};

const TABLES: [u32; 2] = [100, 200];
/// Marks that rules of netfilter set and policy rules ask for.
pub const MARKS: [u32; 3] = [0x1, 0x2, 0x10];

/// Writes them for all namespaces.
pub fn draw(dice: &mut Dice, plan: &mut Plan) {
    let goals = plan.goals();
    for place in 0..plan.world.places.len() {
        let mut lines = Vec::new();
        let stations = plan.stations_of(place);
        if stations.is_empty() {
            continue;
        }
        for v6 in [false, true] {
            if v6 && !plan.v6 {
                continue;
            }
            family(dice, plan, &goals, place, v6, &mut lines);
            if dice.percent(25) {
                policy(dice, plan, &stations, place, v6, &mut lines);
            }
        }
        plan.world.places[place].ip.extend(lines);
    }
}

fn family(
    dice: &mut Dice,
    plan: &Plan,
    goals: &[Goal],
    place: usize,
    v6: bool,
    lines: &mut Vec<String>,
) {
    let dash = if v6 { "-6 " } else { "" };
    let alone = plan.stations.iter().filter(|s| s.place == place).count() == 1;
    let by_default = alone && dice.percent(80);
    let everyone: Vec<usize> = vec![plan.routers[0]];
    let any = dice.percent(60) || by_default;
    if any {
        let hops = plan.next_hops(place, &everyone);
        if let Some((own, other)) = hops.first() {
            lines.push(format!(
                "{dash}route add default via {} dev {}",
                other.addr(v6),
                own.dev
            ));
        }
    }
    for goal in goals.iter().filter(|goal| goal.v6 == v6) {
        if goal.owners.contains(&place) {
            if dice.percent(4) {
                oddity(dice, plan, goal, place, lines);
            }
            continue;
        }
        let hops = plan.next_hops(place, &goal.owners);
        if hops.is_empty() || dice.percent(3) {
            continue;
        }
        if by_default && dice.percent(85) {
            continue;
        }
        let mut line = format!("{dash}route add {}", goal.prefix);
        if hops.len() > 1 && dice.percent(50) {
            for (own, other) in hops.iter().take(3) {
                line.push_str(&format!(
                    " nexthop via {} dev {} weight {}",
                    other.addr(v6),
                    own.dev,
                    1 + dice.below(3)
                ));
            }
        } else {
            let (own, other) = dice.one(&hops);
            line.push_str(&format!(" via {} dev {}", other.addr(v6), own.dev));
            if dice.percent(10) {
                let own = plan.addrs(place, v6);
                line.push_str(&format!(" src {}", dice.one(&own)));
            }
            if dice.percent(8) {
                line.push_str(&format!(" metric {}", dice.one(&[10, 100, 2000])));
            }
            if dice.percent(5) {
                line.push_str(&format!(" mtu {}", dice.one(&[1300, 1400, 1280])));
            }
            if dice.percent(3) && !v6 {
                line.push_str(" onlink");
            }
        }
        lines.push(line);
        if dice.percent(7) {
            oddity(dice, plan, goal, place, lines);
        }
    }
}

/// A route that is nested in another, or one of a kind that refuses.
fn oddity(dice: &mut Dice, plan: &Plan, goal: &Goal, place: usize, lines: &mut Vec<String>) {
    let v6 = goal.v6;
    let dash = if v6 { "-6 " } else { "" };
    let inside: Vec<String> = goal
        .owners
        .iter()
        .flat_map(|owner| plan.addrs(*owner, v6))
        .filter(|addr| !plan.addrs(place, v6).contains(addr))
        .map(|addr| addr.to_string())
        .collect();
    if inside.is_empty() {
        return;
    }
    let addr = dice.one(&inside);
    let len = match (v6, dice.below(3)) {
        (false, 0) => 30,
        (false, _) => 32,
        (true, 0) => 126,
        (true, _) => 128,
    };
    // Host bits must be none.
    let prefix = if len == 32 || len == 128 {
        format!("{addr}/{len}")
    } else {
        masked(&addr, len)
    };
    let own = plan.stations_of(place);
    let line = match dice.below(6) {
        0 => format!("{dash}route add blackhole {prefix}"),
        1 => format!("{dash}route add unreachable {prefix}"),
        2 => format!("{dash}route add prohibit {prefix}"),
        3 => format!("{dash}route add throw {prefix}"),
        4 => format!("{dash}route add {prefix} dev {}", dice.one(&own).dev),
        _ => {
            let station = dice.one(&own);
            let others: Vec<&Station> = plan
                .stations
                .iter()
                .filter(|other| other.segment == station.segment && other.place != place)
                .collect();
            let Some(other) = others.first() else { return };
            format!(
                "{dash}route add {prefix} via {} dev {} metric 5",
                other.addr(v6),
                station.dev
            )
        }
    };
    lines.push(line);
}

/// The prefix of this length that an address is in.
fn masked(addr: &str, len: u8) -> String {
    let addr: std::net::IpAddr = match addr.parse() {
        Ok(addr) => addr,
        Err(_) => return format!("{addr}/{len}"),
    };
    match addr {
        std::net::IpAddr::V4(addr) => {
            let bits = u32::from(addr) & !0x3;
            format!("{}/{len}", std::net::Ipv4Addr::from(bits))
        }
        std::net::IpAddr::V6(addr) => {
            let bits = u128::from(addr) & !0x3;
            format!("{}/{len}", std::net::Ipv6Addr::from(bits))
        }
    }
}

/// Policy rules and the tables that they lead to.
fn policy(
    dice: &mut Dice,
    plan: &Plan,
    stations: &[Station],
    place: usize,
    v6: bool,
    lines: &mut Vec<String>,
) {
    let dash = if v6 { "-6 " } else { "" };
    for table in TABLES {
        let station = dice.one(stations);
        let others: Vec<&Station> = plan
            .stations
            .iter()
            .filter(|other| other.segment == station.segment && other.place != place)
            .collect();
        let Some(other) = others.get(dice.below(others.len())) else {
            continue;
        };
        if dice.percent(75) {
            lines.push(format!(
                "{dash}route add default via {} dev {} table {table}",
                other.addr(v6),
                station.dev
            ));
        }
        let goals = plan.goals();
        let mut goals: Vec<&Goal> = goals.iter().filter(|goal| goal.v6 == v6).collect();
        while goals.len() > 2 {
            goals.remove(dice.below(goals.len()));
        }
        for goal in goals {
            let prefix = &goal.prefix;
            lines.push(match dice.below(5) {
                0 => format!("{dash}route add throw {prefix} table {table}"),
                1 => format!("{dash}route add unreachable {prefix} table {table}"),
                2 => format!("{dash}route add {prefix} dev {} table {table}", station.dev),
                _ => format!(
                    "{dash}route add {prefix} via {} dev {} table {table}",
                    other.addr(v6),
                    station.dev
                ),
            });
        }
    }
    let addrs: Vec<String> = (0..plan.world.places.len())
        .flat_map(|place| plan.addrs(place, v6))
        .map(|addr| addr.to_string())
        .collect();
    let prefixes: Vec<String> = plan
        .goals()
        .into_iter()
        .filter(|goal| goal.v6 == v6)
        .map(|goal| goal.prefix)
        .collect();
    let priorities = [50, 1000, 1100, 1200, 20000, 32800];
    for _ in 0..=dice.below(3) {
        let mut line = format!("{dash}rule add pref {}", dice.one(&priorities));
        if dice.percent(10) {
            line.push_str(" not");
        }
        for _ in 0..=dice.below(2) {
            let word = match dice.below(9) {
                0 | 1 => format!(" from {}", dice.one(&addrs)),
                2 => format!(" to {}", dice.one(&prefixes)),
                3 | 4 => format!(" fwmark {:#x}", dice.one(&MARKS)),
                5 => format!(" iif {}", dice.one(stations).dev),
                6 => " ipproto tcp dport 80".to_owned(),
                7 => " uidrange 1000-2000".to_owned(),
                _ => " iif lo".to_owned(),
            };
            let name = word.split(' ').nth(1).unwrap_or_default().to_owned();
            if !line.contains(&format!(" {name} ")) {
                line.push_str(&word);
            }
        }
        line.push_str(&match dice.below(12) {
            0 => " prohibit".to_owned(),
            1 => " unreachable".to_owned(),
            2 => " blackhole".to_owned(),
            3 => " goto 32800".to_owned(),
            4 => " lookup main suppress_prefixlength 0".to_owned(),
            _ => format!(" lookup {}", dice.one(&TABLES)),
        });
        lines.push(line);
    }
}
