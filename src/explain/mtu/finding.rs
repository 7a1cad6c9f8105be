//! What is wrong with the sizes that pass, and what to do.

use super::super::codes::{self, Severity};
use super::super::naming::Naming;
use super::super::{Finding, Place};
use super::{Budget, Fate, Limit, Measure, Tried};
use crate::model::NsKey;

/// What is wrong with all directions; what several have in common is said once.
pub fn findings(budgets: &[Budget], naming: &Naming<'_>) -> Vec<Finding> {
    let mut all: Vec<Finding> = Vec::new();
    for finding in budgets.iter().filter_map(|one| of_one(one, naming)) {
        let same = |own: &&mut Finding| {
            (own.code, &own.title, &own.place, &own.mend)
                == (finding.code, &finding.title, &finding.place, &finding.mend)
        };
        match all.iter_mut().find(same) {
            Some(own) => {
                let new = finding.evidence.into_iter();
                let new: Vec<_> = new.filter(|line| !own.evidence.contains(line)).collect();
                own.evidence.extend(new);
            }
            None => all.push(finding),
        }
    }
    all
}

/// What is wrong with a direction: larger packets are lost and their sender is not told, or less arrives than was predicted.
fn of_one(budget: &Budget, naming: &Naming<'_>) -> Option<Finding> {
    let (code, title, mend) = if budget.black_hole() {
        let mend = if budget.limit.as_ref().is_some_and(|limit| limit.by_rule) {
            "narrow or remove the rule that the limit names, or lower the sender's MTU"
        } else {
            "let ICMP \"fragmentation needed\" (type 3 code 4; ICMPv6 type 2) of routers on the way pass, give the device where they are lost the MTU of the others, or lower the sender's MTU"
        };
        (codes::BLACK_HOLE, codes::BLACK_HOLE.title.to_owned(), mend)
    } else {
        let arrives = match (budget.measure(), &budget.predicted) {
            (Measure::Nothing, _) => "not even a small echo request arrives".to_owned(),
            (Measure::Differs(size), Ok(predicted)) if size < *predicted => {
                format!("{size} bytes arrive, where {predicted} were predicted")
            }
            _ => return None,
        };
        let mend =
            "see where the packets are lost, below, and trace with --probe what is sent there";
        (codes::OBSERVED_OTHERWISE, arrives, mend)
    };
    let (from, to) = ends(budget, naming);
    let mut evidence = vec![format!("from {from} to {to}: {}", measured(budget, naming))];
    if let (Ok(size), Some(limit)) = (&budget.predicted, &budget.limit) {
        evidence.push(format!(
            "predicted: {} at {}",
            size + 1,
            limited(limit, naming)
        ));
    }
    if code == codes::BLACK_HOLE {
        evidence.push(if budget.datagrams {
            format!("the sender's own device takes {} bytes", budget.segment)
        } else {
            format!(
                "both ends' own devices take {} bytes, and TCP sends so much at once unless its MSS is clamped",
                budget.segment
            )
        });
    }
    let proven = matches!(budget.measure(), Measure::Proven(_));
    let seen = budget.stopped().and_then(|one| match &one.fate {
        Fate::Lost { last, .. } => last.as_ref().map(|(ns, _)| ns),
        _ => None,
    });
    let predicted = budget.limit.as_ref().filter(|_| proven);
    let ns = predicted.map(|limit| &limit.ns).or(seen);
    let ns = ns.unwrap_or(&budget.from.0);
    Some(Finding {
        code,
        title,
        severity: Severity::Error,
        place: Place {
            node: ns.node.clone(),
            netns: naming.netns(ns),
            object: None,
        },
        evidence,
        mend: mend.to_owned(),
        branches: Vec::new(),
    })
}

fn measured(budget: &Budget, naming: &Naming<'_>) -> String {
    let arrived = budget.arrived().map(|size| format!("{size} bytes arrive"));
    let both: Vec<String> = arrived.into_iter().chain(beyond(budget, naming)).collect();
    both.join(", ")
}

/// The smallest size that did not arrive, and what became of it.
pub fn beyond(budget: &Budget, naming: &Naming<'_>) -> Option<String> {
    let one = budget.stopped()?;
    Some(format!("{} {}", one.len, fate(one, naming)))
}

/// A namespace with its node.
pub fn named(naming: &Naming<'_>, key: &NsKey) -> String {
    format!("{} {}", key.node, naming.netns(key))
}

/// Who sends and to whom, with addresses.
pub fn ends(budget: &Budget, naming: &Naming<'_>) -> (String, String) {
    let (from, ip) = &budget.from;
    let own = format!("{} {ip}", naming.netns(from));
    let (to, ip) = &budget.to;
    let other = match to {
        Some(to) => format!("{} {ip}", naming.netns(to)),
        None => ip.to_string(),
    };
    (own, other)
}

/// What became of a packet of some size, in words that follow its size.
pub fn fate(tried: &Tried, naming: &Naming<'_>) -> String {
    match &tried.fate {
        Fate::Arrived => "arrive".to_owned(),
        Fate::TooLarge(who) => format!("are too large, says {who}"),
        Fate::Lost { last, why } => {
            let place = last.as_ref().map_or_else(
                || "are seen nowhere".to_owned(),
                |(ns, dev)| format!("are lost behind {dev} of {}", named(naming, ns)),
            );
            let why = why.as_ref().map(|why| format!(" ({why})"));
            format!("{place}{}", why.unwrap_or_default())
        }
    }
}

/// Where a packet that is too large ends, and by what.
pub fn limited(limit: &Limit, naming: &Naming<'_>) -> String {
    format!("{}: {}", named(naming, &limit.ns), naming.text(&limit.why))
}
