//! Policy rules by protocol and port, that go to others, and that pass over what is too short.

use std::net::IpAddr;

use super::{Ask, Plan};
use crate::random::dice::Dice;

/// Table that refuses what is looked up in it.
const REFUSES: u32 = 300;

/// Namespace that rules are put into, sender, and destination.
fn place(dice: &mut Dice, plan: &Plan) -> Option<(usize, usize, IpAddr, &'static str)> {
    let way = plan.way(dice)?;
    let v6 = plan.family(dice);
    let dst = plan.address(way.to, v6)?;
    let at = if dice.percent(50) {
        way.router.place
    } else {
        way.own.place
    };
    Some((at, way.own.place, dst, if v6 { "-6 " } else { "" }))
}

fn refuse(dice: &mut Dice, plan: &mut Plan, at: usize, dash: &str) {
    let how = dice.one(&["unreachable", "prohibit", "blackhole"]);
    plan.ip(
        at,
        format!("{dash}route replace {how} default table {REFUSES}"),
    );
}

/// By protocol, and by ports of both sides.
pub fn protocol(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let Some((at, from, dst, dash)) = place(dice, plan) else {
        return Vec::new();
    };
    refuse(dice, plan, at, dash);
    let icmp = if dst.is_ipv6() { "ipv6-icmp" } else { "icmp" };
    let what = dice.one(&[
        "ipproto tcp".to_owned(),
        "ipproto udp".to_owned(),
        format!("ipproto {icmp}"),
        "dport 8080".to_owned(),
        "ipproto udp dport 50-60".to_owned(),
        "ipproto tcp sport 40000-40100".to_owned(),
        "sport 40050-60000".to_owned(),
    ]);
    plan.ip(
        at,
        format!("{dash}rule add pref 40 to {dst} {what} lookup {REFUSES}"),
    );
    let mut asks = Ask::usual(from, None, dst);
    asks.extend(Ask::usual(from, plan.address(from, dst.is_ipv6()), dst));
    asks
}

/// A rule behind those that refuse.
pub fn goto(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let Some((at, from, dst, dash)) = place(dice, plan) else {
        return Vec::new();
    };
    refuse(dice, plan, at, dash);
    let way = dice.one(&["", " ipproto tcp", " not ipproto udp"]);
    let way = match way.strip_prefix(" not") {
        Some(rest) => format!(" not to {dst}{rest}"),
        None => format!(" to {dst}{way}"),
    };
    plan.ip(at, format!("{dash}rule add pref 44 nop"));
    plan.ip(at, format!("{dash}rule add pref 41{way} goto 44"));
    plan.ip(
        at,
        format!("{dash}rule add pref 42 to {dst} lookup {REFUSES}"),
    );
    Ask::usual(from, None, dst)
}

/// The main table but for its short prefixes, then one that refuses.
pub fn suppressor(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let Some((at, from, dst, dash)) = place(dice, plan) else {
        return Vec::new();
    };
    refuse(dice, plan, at, dash);
    // The prefix that the destination is in, and those beside it.
    let mut stations = plan.stations.iter();
    let near = stations.find(|station| station.addr(dst.is_ipv6()) == dst);
    let len = match near {
        Some(_) if dst.is_ipv6() => 64,
        Some(station) => Plan::len4(station.segment),
        None => 0,
    };
    let limits = [0, len.saturating_sub(1), len, len, len + 1];
    let limit = dice.one(&limits);
    plan.ip(
        at,
        format!("{dash}rule add pref 45 lookup main suppress_prefixlength {limit}"),
    );
    plan.ip(
        at,
        format!("{dash}rule add pref 46 to {dst} lookup {REFUSES}"),
    );
    Ask::usual(from, None, dst)
}
