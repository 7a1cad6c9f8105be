//! Simulate, fetch what was lacking, simulate again, until nothing new can be had.

use std::time::Instant;

use netpath::model::topology::Topology;
use netpath::simulate::refusal::untold;
use netpath::simulate::{Flow, Limits, Outcome, Prepared, Sent, Wants, send};

use super::fleet::Fleet;

/// Bound on rounds. A trace takes two or three; each round reveals the facts of at least one more
/// table or namespace on the way.
const ROUNDS: usize = 24;

/// Follows all flows. Facts that can't be had make traces inconclusive, never this function fail.
pub async fn drive(fleet: &mut Fleet<'_>, flows: &[Flow]) -> Vec<Outcome> {
    let flows = flows.to_vec();
    rounds(fleet, move |topology, limits| {
        let mut prepared = Prepared::new(topology);
        let follow = |flow| {
            let mut outcome = prepared.simulate(flow, limits);
            untold(&mut prepared, flow, &mut outcome, limits);
            outcome
        };
        flows.iter().map(follow).collect()
    })
    .await
}

/// Follows one packet, and no answer to it.
pub async fn sent(fleet: &mut Fleet<'_>, sent: Sent) -> Outcome {
    let follow = move |topology: &Topology, limits: &Limits| vec![send(topology, &sent, limits)];
    rounds(fleet, follow).await.pop().unwrap_or_default()
}

async fn rounds(
    fleet: &mut Fleet<'_>,
    follow: impl Fn(&Topology, &Limits) -> Vec<Outcome> + Clone + Send + 'static,
) -> Vec<Outcome> {
    let limits = Limits::default();
    let mut outcomes: Vec<Outcome> = Vec::new();
    for _ in 0..ROUNDS {
        // On a thread of its own: a long simulation must not keep a signal from being heard.
        let begin = Instant::now();
        let topology = std::mem::take(&mut fleet.topology);
        let follow = follow.clone();
        let work = tokio::task::spawn_blocking(move || {
            let outcomes = follow(&topology, &limits);
            (topology, outcomes)
        });
        (fleet.topology, outcomes) = match work.await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        fleet.stages.simulate += begin.elapsed();
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use netpath::model::{NetNsId, NsKey};

    use super::super::fleet::Source;
    use super::super::progress::Progress;
    use super::*;

    #[test]
    fn a_signal_is_heard_while_the_simulation_goes_on() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let flow = Flow {
            from: NsKey {
                node: "n1".to_owned(),
                netns: NetNsId { dev: 4, ino: 1 },
            },
            src: None,
            sport: None,
            dst: "10.0.0.1".parse().unwrap(),
            dport: Some(80),
            protocol: 6,
            len: 60,
            uid: None,
            gid: None,
            bound: None,
        };
        runtime.block_on(async {
            // The one thread for simulations is busy, as with a simulation without end.
            let (free, wait) = std::sync::mpsc::channel::<()>();
            tokio::task::spawn_blocking(move || wait.recv());
            let mut fleet = Fleet::new(Source::Nobody, Topology::default(), Progress::new(false));
            let flows = [flow];
            let mut work = std::pin::pin!(drive(&mut fleet, &flows));
            let heard = tokio::select! {
                biased;
                _ = &mut work => false,
                () = tokio::time::sleep(Duration::from_millis(1)) => true,
            };
            assert!(heard);
            free.send(()).unwrap();
            assert_eq!(work.await.len(), 1);
        });
    }
}
