//! Simulate, fetch what was lacking, simulate again, until nothing new can be had.

use netpath::simulate::{Flow, Limits, Outcome, Wants, simulate};

use super::fleet::Fleet;

/// Bound on rounds. A trace takes two or three; each round reveals the facts of at least one more
/// table or namespace on the way.
const ROUNDS: usize = 24;

/// Follows all flows. Facts that can't be had make traces inconclusive, never this function fail.
pub async fn drive(fleet: &mut Fleet<'_>, flows: &[Flow]) -> Vec<Outcome> {
    let limits = Limits::default();
    let mut outcomes: Vec<Outcome> = Vec::new();
    for _ in 0..ROUNDS {
        outcomes = flows
            .iter()
            .map(|flow| simulate(&fleet.topology, flow, &limits))
            .collect();
        let mut wants = Wants::new();
        for (node, more) in outcomes.iter().flat_map(|outcome| &outcome.wants) {
            wants
                .entry(node.clone())
                .or_default()
                .extend(more.iter().cloned());
        }
        if !fleet.ask(wants).await {
            break;
        }
    }
    outcomes
}
