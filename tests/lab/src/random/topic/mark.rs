//! Marks: kept by connections, set in part, and left behind at the end of a namespace.

use super::{Ask, Plan, verdict};
use crate::random::dice::Dice;

/// A mark that the first packet of a connection gives to later ones, which a rule looks at.
pub fn connection(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let Some(way) = plan.way(dice) else {
        return Vec::new();
    };
    let v6 = plan.family(dice);
    let (Some(src), Some(dst)) = (plan.address(way.own.place, v6), plan.address(way.to, v6)) else {
        return Vec::new();
    };
    let (at, back) = if dice.percent(60) {
        (way.router.place, "PREROUTING")
    } else {
        (way.to, "OUTPUT")
    };
    let restore = dice.one(&[
        "--restore-mark",
        "--restore-mark --nfmask 0xf0 --ctmask 0xf0",
        "--restore-mark --nfmask 0xff --ctmask 0x20",
    ]);
    let save = dice.one(&["--save-mark", "--save-mark --nfmask 0x20 --ctmask 0xff"]);
    let forth = "PREROUTING";
    let mut rules = vec![
        (
            "mangle",
            format!("-A {forth} -s {src} -d {dst} -j MARK --set-mark 0x20"),
        ),
        (
            "mangle",
            format!("-A {forth} -s {src} -d {dst} -j CONNMARK {save}"),
        ),
        (
            "mangle",
            format!("-A {back} -s {dst} -d {src} -j CONNMARK {restore}"),
        ),
    ];
    let does = verdict(dice);
    let chain = if back == "OUTPUT" {
        "OUTPUT"
    } else {
        "FORWARD"
    };
    match dice.below(3) {
        0 => rules.push(("filter", format!("-A {chain} -s {dst} -m mark --mark 0x20 {does}"))),
        1 => rules.push((
            "filter",
            format!("-A {chain} -s {dst} -m conntrack --ctstate ESTABLISHED -m mark ! --mark 0x20/0x20 {does}"),
        )),
        _ => {
            let dash = if v6 { "-6 " } else { "" };
            plan.ip(at, format!("{dash}rule add pref 60 from {dst} fwmark 0x20/0xf0 prohibit"));
        }
    }
    plan.first_rules(dice, at, v6, &rules);
    Ask::usual(way.own.place, Some(src), dst)
}

/// A mark of which parts are set one after the other.
pub fn mask(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let Some((way, v6, dst)) = plan.asked(dice) else {
        return Vec::new();
    };
    let (at, set, ask) = match dice.below(3) {
        0 => (way.own.place, "OUTPUT", "OUTPUT"),
        1 => (way.to, "PREROUTING", "INPUT"),
        _ => (way.router.place, "PREROUTING", "FORWARD"),
    };
    let then = dice.one(&[
        "--or-mark 0x1",
        "--set-xmark 0x1/0x1",
        "--xor-mark 0x41",
        "--and-mark 0xffffffbf",
        "--set-mark 0x3/0x7",
    ]);
    let mut rules = vec![
        (
            "mangle",
            format!("-A {set} -d {dst} -j MARK --set-mark 0x40"),
        ),
        ("mangle", format!("-A {set} -d {dst} -p tcp -j MARK {then}")),
    ];
    let asked = dice.one(&["0x40/0x40", "0x41", "0x40", "0x1/0x1"]);
    let does = verdict(dice);
    if dice.percent(70) {
        rules.push((
            "filter",
            format!("-A {ask} -d {dst} -m mark --mark {asked} {does}"),
        ));
    } else {
        let dash = if v6 { "-6 " } else { "" };
        plan.ip(
            at,
            format!("{dash}rule add pref 61 to {dst} fwmark {asked} unreachable"),
        );
    }
    plan.first_rules(dice, at, v6, &rules);
    Ask::usual(way.own.place, None, dst)
}

/// A mark that is set in one namespace and asked for in the next.
pub fn between(dice: &mut Dice, plan: &mut Plan) -> Vec<Ask> {
    let Some((way, v6, dst)) = plan.asked(dice) else {
        return Vec::new();
    };
    let set = dice.one(&["OUTPUT", "POSTROUTING"]);
    let rule = format!("-A {set} -d {dst} -j MARK --set-mark 0x8");
    plan.first_rules(dice, way.own.place, v6, &[("mangle", rule)]);
    let not = if dice.percent(20) { " !" } else { "" };
    let does = verdict(dice);
    let router = way.router.place;
    match dice.below(3) {
        0 => {
            let dash = if v6 { "-6 " } else { "" };
            let line = format!("{dash}rule add pref 62{not} fwmark 0x8 to {dst} prohibit");
            plan.ip(router, line.replace("62 !", "62 not"));
        }
        at => {
            let (place, chain) = if at == 1 {
                (router, "FORWARD")
            } else {
                (way.to, "INPUT")
            };
            let rule = format!("-A {chain} -d {dst} -m mark{not} --mark 0x8 {does}");
            plan.first_rules(dice, place, v6, &[("filter", rule)]);
        }
    }
    Ask::usual(way.own.place, None, dst)
}
