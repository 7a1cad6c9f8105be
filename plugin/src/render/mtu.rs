//! The largest packets, each way, as text and as data.

use netpath::explain::mtu::{Budget, Measure, Room, beyond, ends, fate, limited, named};
use netpath::explain::{Naming, codes};

use super::json_types::{MtuJson, RoomJson, TriedJson};
use super::paint::{Options, Style, fold, fold_painted};

/// All directions.
pub fn text(budgets: &[Budget], naming: &Naming<'_>, options: &Options) -> String {
    let mut text = String::new();
    for budget in budgets {
        let (style, words) = verdict(budget, naming);
        let (from, to) = ends(budget, naming);
        let head = format!("mtu: {from} → {to}: {}", options.paint(style, &words));
        text.push('\n');
        text.push_str(&fold_painted(options, "", "  ", &head));
        let mut place = String::new();
        let least = budget.rooms.iter().map(Room::bytes).min();
        for room in &budget.rooms {
            let own = named(naming, &room.ns);
            if own != place {
                text.push_str(&fold(options, "  ", "      ", &own));
                place = own;
            }
            let share = match room.around {
                0 => String::new(),
                around => format!(" - {around} of tunnels = {}", room.bytes()),
            };
            let mut line = format!("out {:<15} mtu {:>5}{share}", room.dev, room.mtu);
            if Some(room.bytes()) == least && budget.predicted.as_ref().ok() == least.as_ref() {
                line += "  ← the least";
            }
            text.push_str(&fold(options, "    ", "        ", &line));
        }
        if let (Ok(size), Some(limit)) = (&budget.predicted, &budget.limit) {
            let line = format!("{} at {}", size + 1, limited(limit, naming));
            let head = match budget.measure() {
                Measure::Differs(_) => "  predicted limit: ",
                _ => "  limit: ",
            };
            text.push_str(&fold(options, head, "      ", &line));
        }
        if budget.black_hole() {
            let words = format!(
                "larger packets are lost and their sender is not told: {}",
                codes::BLACK_HOLE.code
            );
            text.push_str(&fold(options, "  ! ", "    ", &words));
        }
    }
    if budgets.is_empty() {
        text.push_str(&fold(
            options,
            "\nmtu: ",
            "  ",
            "no way arrives, so that there is nothing to measure",
        ));
    }
    options.plain(&text)
}

fn verdict(budget: &Budget, naming: &Naming<'_>) -> (Style, String) {
    let beyond = beyond(budget, naming).unwrap_or_default();
    let predicted = match &budget.predicted {
        Ok(size) => format!("{size} bytes were predicted"),
        Err(why) => format!("it can't be predicted: {}", naming.text(why)),
    };
    match budget.measure() {
        Measure::Proven(size) if beyond.is_empty() => (
            Style::Good,
            format!("{size} bytes, as predicted; there are no larger packets"),
        ),
        Measure::Proven(size) => (
            Style::Good,
            format!("{size} bytes, as predicted: {size} arrive, {beyond}"),
        ),
        Measure::Differs(size) => (
            Style::Bad,
            format!("{size} bytes arrive, where {predicted}; {beyond}"),
        ),
        Measure::Measured(size) => (
            Style::Unsure,
            format!("{size} bytes arrive, {beyond}; {predicted}"),
        ),
        Measure::Nothing => (
            Style::Bad,
            format!("no echo request arrives: {beyond}; {predicted}"),
        ),
        Measure::Untried => {
            let why = budget.untried.as_deref().unwrap_or("it was not tried");
            let why = naming.text(why);
            (
                Style::Unsure,
                match &budget.predicted {
                    Ok(_) => format!("{predicted}, which could not be tried: {why}"),
                    Err(_) => format!("not measured: {why}"),
                },
            )
        }
    }
}

/// One direction as data.
pub fn json(budget: &Budget, naming: &Naming<'_>) -> MtuJson {
    let (from, to) = ends(budget, naming);
    MtuJson {
        from,
        to,
        result: match budget.measure() {
            Measure::Proven(_) => "proven",
            Measure::Differs(_) => "differs",
            Measure::Measured(_) => "measured",
            Measure::Nothing => "nothing",
            Measure::Untried => "untried",
        },
        predicted: budget.predicted.as_ref().ok().copied(),
        limit: budget.limit.as_ref().map(|limit| limited(limit, naming)),
        unpredicted: budget.predicted.as_ref().err().map(|why| naming.text(why)),
        largest: budget.arrived(),
        black_hole: budget.black_hole(),
        tried: budget
            .tried
            .iter()
            .map(|one| TriedJson {
                length: one.len,
                fate: fate(one, naming),
            })
            .collect(),
        untried: budget.untried.as_deref().map(|why| naming.text(why)),
        devices: budget
            .rooms
            .iter()
            .map(|room| RoomJson {
                node: room.ns.node.clone(),
                netns: naming.netns(&room.ns),
                device: room.dev.clone(),
                mtu: room.mtu,
                around: room.around,
                room: room.bytes(),
            })
            .collect(),
    }
}
