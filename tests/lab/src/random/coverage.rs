//! Which decisions of the simulation were exercised, of those that its source names.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

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

    /// Decisions that were met, and those that were not, by file.
    pub fn against(&self, all: &[Decision]) -> (usize, BTreeMap<String, Vec<String>>) {
        let met: Vec<Vec<&str>> = self
            .steps
            .keys()
            .filter_map(|step| Some(step.split_once(": ")?.1.split(' ').collect()))
            .collect();
        let mut count = 0;
        let mut missed = BTreeMap::<String, Vec<String>>::new();
        for decision in all {
            if met.iter().any(|step| decision.is(step)) {
                count += 1;
            } else {
                let file = missed.entry(decision.file.clone()).or_default();
                file.push(decision.words.clone());
            }
        }
        (count, missed)
    }

    /// How many of the decisions were met, in words.
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn share(&self) -> String {
        let all = match decisions() {
            Ok(all) => all,
            Err(error) => return format!("decision points: src/simulate was not read: {error}"),
        };
        let (met, missed) = self.against(&all);
        let share = 100.0 * met as f64 / all.len().max(1) as f64;
        let left: Vec<String> = missed
            .iter()
            .map(|(file, words)| format!("{file} {}", words.len()))
            .collect();
        format!(
            "decision points: {met} of {} met ({share:.1} %); not met: {}",
            all.len(),
            left.join(", ")
        )
    }

    /// As a table.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (file, words) in
            decisions().map_or_else(|_| BTreeMap::new(), |all| self.against(&all).1)
        {
            for words in words {
                let _ = writeln!(text, "not met: {file}: {words}");
            }
        }
        for (what, counts) in [("ends", &self.ends), ("decisions", &self.steps)] {
            let _ = writeln!(text, "{what}: {}", counts.len());
            for (name, count) in counts {
                let _ = writeln!(text, "  {count:>7} {name}");
            }
        }
        text
    }
}

/// What the source says of a decision in a step.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decision {
    /// Its file, below src/simulate.
    pub file: String,
    /// Its words, with braces where values stand.
    pub words: String,
}

impl Decision {
    /// Whether a step says this: all words that are fixed, in their order.
    fn is(&self, step: &[&str]) -> bool {
        let fixed = |word: &&str| !word.contains(['{', '…']) && *word == plain(word);
        let mut rest = step.iter();
        let mut wanted = self.words.split(' ').filter(fixed).peekable();
        wanted.peek().is_some() && wanted.all(|word| rest.any(|own| *own == word))
    }
}

/// All decisions that src/simulate leaves a step of with words of its own, those of subsystems that no kernel of
/// random networks has among them. What rules say of themselves is not.
pub fn decisions() -> io::Result<Vec<Decision>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/simulate");
    let mut found = BTreeSet::new();
    let mut open = vec![root.clone()];
    while let Some(at) = open.pop() {
        if at.is_dir() {
            for entry in fs::read_dir(&at)? {
                open.push(entry?.path());
            }
            continue;
        }
        let file = at.strip_prefix(&root).unwrap_or(&at).to_string_lossy();
        if file.contains("text") || file.contains("tests") {
            continue;
        }
        let source = fs::read_to_string(&at)?;
        let source = source.split("#[cfg(test)]").next().unwrap_or_default();
        for words in named(source) {
            found.insert(Decision {
                file: file.clone().into_owned(),
                words,
            });
        }
    }
    Ok(found.into_iter().collect())
}

/// Words that steps are made with, or that are put together for one.
fn named(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["Step::new(", "let text =", "let result ="] {
        for behind in source.split(start).skip(1) {
            let mut behind = behind.trim_start();
            if start == "Step::new(" {
                let Some((kind, rest)) = behind.split_once(',') else {
                    continue;
                };
                if !kind.starts_with("StepKind::") {
                    continue;
                }
                behind = rest.trim_start();
            }
            let literal = behind.strip_prefix("format!(").unwrap_or(behind);
            let Some(literal) = literal.trim_start().strip_prefix('"') else {
                continue;
            };
            let words = literal.split('"').next().unwrap_or_default();
            found.push(words.to_owned());
        }
    }
    found
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_of_the_source_are_found_and_met_by_their_words() {
        let source = "Step::new(\n  StepKind::Forward,\n format!(\"ttl is {}\", ttl),\n) let text = \"no route\"; \
                      let other = \"not this\"; Step::new(kind, text)";
        assert_eq!(named(source), ["ttl is {}", "no route"]);
        let ttl = Decision {
            file: String::new(),
            words: "ttl is {}".to_owned(),
        };
        assert!(ttl.is(&["ttl", "is", "…"]));
        assert!(!ttl.is(&["is", "ttl"]));
        let all = decisions().expect("the source");
        assert!(all.len() > 50, "{}", all.len());
        let mut coverage = Coverage::default();
        assert_eq!(coverage.against(&all).0, 0);
        coverage.steps.insert("route: no route".to_owned(), 1);
        assert!(coverage.against(&all).0 > 0);
    }
}
