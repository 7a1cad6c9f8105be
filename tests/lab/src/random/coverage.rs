//! Which decisions of the simulation were exercised.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use netpath::trace::{Disposition, Trace};

use super::seen::chain;

/// Counts of decisions, by name.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Step kinds with their results, addresses and names left out.
    pub steps: BTreeMap<String, usize>,
    /// Ends.
    pub ends: BTreeMap<String, usize>,
}

impl Coverage {
    /// Counts what a way met.
    pub fn count(&mut self, trace: &Trace) {
        for packet in chain(trace) {
            let end = match &packet.disposition {
                Disposition::Dropped(reason) => format!("dropped {reason}"),
                Disposition::Rejected(with) => {
                    let words = format!("{with:?}");
                    let name = words.split('(').next().unwrap_or_default();
                    format!("rejected {name}")
                }
                other => other.name().to_owned(),
            };
            *self.ends.entry(end).or_default() += 1;
            for step in packet.hops.iter().flat_map(|hop| &hop.steps) {
                let key = format!("{}: {}", step.kind.name(), plain(&step.result));
                *self.steps.entry(key).or_default() += 1;
            }
        }
    }

    /// Adds another's counts.
    pub fn add(&mut self, other: &Self) {
        for (key, count) in &other.steps {
            *self.steps.entry(key.clone()).or_default() += count;
        }
        for (key, count) in &other.ends {
            *self.ends.entry(key.clone()).or_default() += count;
        }
    }

    /// As a table.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (what, counts) in [("ends", &self.ends), ("decisions", &self.steps)] {
            let _ = writeln!(text, "{what}: {}", counts.len());
            for (name, count) in counts {
                let _ = writeln!(text, "  {count:>7} {name}");
            }
        }
        text
    }
}

/// Words of a step or a reason without numbers, addresses and names of devices.
pub fn plain(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        if word.chars().any(|letter| letter.is_ascii_digit()) {
            "…"
        } else {
            word
        }
    });
    words.collect::<Vec<_>>().join(" ")
}
