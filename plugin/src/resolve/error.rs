//! What can go wrong between a typed end and an object, each with what to type next.

use std::fmt::{self, Write as _};

use super::parse::{ParseError, TYPES};

/// A command that the user can paste, with what it would mean.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The whole command line.
    pub command: String,
    /// What it traces, in a few words; may be empty.
    pub meaning: String,
}

/// Choices, printed one to a line below the message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices(pub Vec<Choice>);

impl fmt::Display for Choices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self
            .0
            .iter()
            .map(|choice| choice.command.chars().count())
            .max()
            .unwrap_or(0);
        for Choice { command, meaning } in &self.0 {
            if meaning.is_empty() {
                write!(f, "\n  {command}")?;
            } else {
                write!(f, "\n  {command:width$}  # {meaning}")?;
            }
        }
        Ok(())
    }
}

/// Why an end could not be resolved.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The text is not an end.
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// No object of that name, in a place that was read.
    #[error("{what} {name:?}: not found in {place}{}", meant(.nearest))]
    NotFound {
        /// Kind or kinds looked for, for instance `pod` or `Service or pod`.
        what: String,
        /// Name looked for.
        name: String,
        /// `namespace shop` or `the cluster`.
        place: String,
        /// Commands with the nearest names.
        nearest: Choices,
    },
    /// The namespace does not exist.
    #[error("end {end:?}: there is no namespace {namespace:?}{}{}", no_type(.end, .namespace), meant(.nearest))]
    NoSuchNamespace {
        /// The end as typed.
        end: String,
        /// The namespace that it names, or that `-n` gives.
        namespace: String,
        /// Commands with the nearest names.
        nearest: Choices,
    },
    /// Several objects fit.
    #[error("end {end:?}: {why}; type one of{choices}")]
    Ambiguous {
        /// The end as typed.
        end: String,
        /// What makes it ambiguous.
        why: String,
        /// One command for each.
        choices: Choices,
    },
    /// The object has no such port.
    #[error("{object}: has no port {port:?}; {detail}{choices}")]
    NoSuchPort {
        /// For instance `Service shop/api`.
        object: String,
        /// Port typed.
        port: String,
        /// What it has instead.
        detail: String,
        /// One command for each port it has.
        choices: Choices,
    },
    /// The pod cannot send or receive now.
    #[error("pod {pod}: not running (phase {phase}{}); see kubectl describe pod -n {namespace} {name}", because(.reason.as_ref()))]
    PodNotRunning {
        /// `namespace/name`.
        pod: String,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// `status.phase`, or what stands in for it.
        phase: String,
        /// The kubelet's or scheduler's reason.
        reason: Option<String>,
    },
    /// A workload has no ready pod.
    #[error("{workload}: none of its {} pods is ready{pods}{choices}", .count)]
    NoReadyPod {
        /// For instance `deploy/api in namespace shop`.
        workload: String,
        /// How many pods it has.
        count: usize,
        /// One line for each pod with its state.
        pods: String,
        /// Commands that trace from a pod that runs though it is not ready.
        choices: Choices,
    },
    /// The two ends have no address family in common, or not the one asked for.
    #[error("{ends}: {why}; {remedy}")]
    Family {
        /// Both ends.
        ends: String,
        /// What is missing.
        why: String,
        /// What to type.
        remedy: String,
    },
    /// The end exists but cannot play this part.
    #[error("end {end:?}: {why}{choices}")]
    Unfit {
        /// The end as typed.
        end: String,
        /// Why, and what to do.
        why: String,
        /// Commands, if any.
        choices: Choices,
    },
    /// The API refused to tell, so that nothing can be said about the name.
    #[error(
        "end {end:?}: cannot look it up, {resource} were not readable ({why}); ask for the right to list {resource} (or to get it by name), or give an address"
    )]
    Unreadable {
        /// The end as typed.
        end: String,
        /// Plural resource.
        resource: String,
        /// The server's refusal.
        why: String,
    },
}

fn meant(nearest: &Choices) -> String {
    match nearest.0.len() {
        0 => String::new(),
        1 => format!("; did you mean{nearest}"),
        _ => format!("; did you mean one of{nearest}"),
    }
}

/// `NAMESPACE/NAME` may have been meant as `TYPE/NAME`.
fn no_type(end: &str, namespace: &str) -> String {
    let head = end.split_once('/').map(|(head, _)| head);
    if head == Some(namespace) {
        format!(", nor such a type (types are {TYPES})")
    } else {
        String::new()
    }
}

fn because(reason: Option<&String>) -> String {
    let mut text = String::new();
    if let Some(reason) = reason {
        // Writing to a String cannot fail.
        let _ = write!(text, ", {reason}");
    }
    text
}

/// Names nearest to `wanted`, best first, at most three; names too far off are left out.
pub(super) fn nearest<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let limit = (wanted.chars().count() / 3).clamp(1, 4);
    let mut close: Vec<(usize, &str)> = names
        .filter_map(|name| {
            let apart = distance(wanted, name);
            // A prefix is what people type when the rest is a generated suffix.
            let prefix = wanted.len() >= 2 && name.starts_with(wanted);
            (apart <= limit || prefix).then_some((if prefix { 1 } else { apart }, name))
        })
        .collect();
    close.sort_unstable();
    close.dedup();
    close.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Edit distance with transposed neighbours counted once (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let a: Vec<char> = a.chars().collect();
    let b: Vec<char> = b.chars().collect();
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, &ca) in a.iter().enumerate() {
        let mut row = Vec::with_capacity(b.len() + 1);
        row.push(i + 1);
        for (j, &cb) in b.iter().enumerate() {
            // Indices: `last` and `before` have b.len() + 1 entries, `row` has j + 1 so far.
            let mut best = (last[j] + usize::from(ca != cb))
                .min(last[j + 1] + 1)
                .min(row[j] + 1);
            if i > 0 && j > 0 && ca == b[j - 1] && a[i - 1] == cb {
                best = best.min(before[j - 1] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edit_distance() {
        assert_eq!(distance("", ""), 0);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("api", "api"), 0);
        assert_eq!(distance("shpo", "shop"), 1, "a swap counts once");
        assert_eq!(distance("kitten", "sitting"), 3);
    }

    #[test]
    fn nearest_names() {
        let names = ["api", "api-5d-x2", "web-0", "web-1", "db"];
        assert_eq!(nearest("web-2", names.iter().copied()), ["web-0", "web-1"]);
        assert_eq!(nearest("ap", names.iter().copied()), ["api", "api-5d-x2"]);
        assert!(nearest("zzzzzz", names.iter().copied()).is_empty());
    }

    #[test]
    fn choices_stand_below_each_other() {
        let choices = Choices(vec![
            Choice {
                command: "a b".into(),
                meaning: "one".into(),
            },
            Choice {
                command: "a bcd".into(),
                meaning: "two".into(),
            },
        ]);
        assert_eq!(choices.to_string(), "\n  a b    # one\n  a bcd  # two");
    }
}
