//! Cases in which the simulation once disagreed with a kernel, found by random networks and made smaller: each folder
//! of tests/scenarios/oracle holds what was read, the packet, and what packet sockets saw; each of
//! tests/scenarios/inconclusive one that must not be predicted, since what decides it is not read.
//!
//! `netpath-lab oracle --save DIRECTORY` writes such folders; docs/accuracy.md says how.

#[path = "../lab/src/random/ask.rs"]
#[allow(dead_code, reason = "what many packets of a network need")]
mod ask;
#[path = "../lab/src/random/fit.rs"]
#[allow(dead_code, reason = "what the fixed rule sets need")]
mod fit;
#[path = "../lab/src/random/seen.rs"]
#[allow(dead_code, reason = "what fixed rule sets see")]
mod seen;
#[path = "../lab/src/random/world.rs"]
#[allow(dead_code, reason = "made where a kernel is")]
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use netpath::contract::file;
use netpath::model::NsKey;
use netpath::model::topology::Topology;
use netpath::simulate::send;
use netpath::trace::{Disposition, RejectWith, Trace};

use ask::Verdict;

#[derive(serde::Deserialize)]
struct Saved {
    places: BTreeMap<u64, String>,
    probe: world::Probe,
    observed: seen::Observed,
}

fn judged(dir: &Path) -> Verdict {
    let snapshot = fs::File::open(dir.join("snapshot.json")).expect("a snapshot");
    let file = file::read(std::io::BufReader::new(snapshot)).expect("a good snapshot");
    let seen = fs::read(dir.join("seen.json")).expect("what was seen");
    let saved: Saved = serde_json::from_slice(&seen).expect("a good record");
    let name = |key: &NsKey| {
        saved
            .places
            .get(&key.netns.ino)
            .cloned()
            .unwrap_or_default()
    };
    let mut all = file.topology.all().map(|(key, _)| key);
    let from = all.find(|key| name(key) == saved.probe.from);
    let from = from.expect("the sender's namespace");
    let question = ask::Question::of(&saved.probe, from, &file.topology);
    let outcome = question.ask(&file.topology, &ask::limits());
    let mut lost =
        |trace: &Trace, back| ask::is_lost_as_read(&file.topology, &question, trace, back);
    let manner = fit::Manner::of(&saved.probe);
    let observed = &saved.observed;
    ask::compare(
        &saved.probe,
        &outcome.traces,
        &name,
        observed,
        &mut |trace, observed| fit::fits(manner, trace, &name, observed, &mut lost),
    )
}

/// Judges all cases of a folder of tests/scenarios, each of which has to come out as `is_good` wants.
fn all_are(folder: &str, is_good: impl Fn(&Verdict) -> bool) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut dirs: Vec<_> = fs::read_dir(root.join(folder))
        .expect(folder)
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    dirs.sort();
    assert!(!dirs.is_empty(), "scenarios are there");
    let mut wrong = Vec::new();
    for dir in dirs {
        let verdict = judged(&dir);
        if !is_good(&verdict) {
            wrong.push(format!("{}: {verdict:?}", dir.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_kernels_did_is_what_is_predicted() {
    all_are("oracle", |verdict| matches!(verdict, Verdict::Agrees(_)));
}

/// What decided there can't be read.
#[test]
fn where_the_kernel_decides_by_what_is_not_read_nothing_is_predicted() {
    all_are("inconclusive", |verdict| {
        matches!(verdict, Verdict::Unknown(_))
    });
}

/// A packet that a node has no route for, as sent and as it is seen there; nobody hears a refusal.
fn unheard() -> (Topology, Trace, world::Probe, seen::Observed) {
    let (world, _, a, _) = crate::walks::bridged();
    let outcome = world.tcp(&a, "203.0.113.9", 80);
    let trace = outcome.traces.into_iter().next().expect("a way");
    assert_eq!(
        trace.disposition,
        Disposition::Rejected(RejectWith::NetUnreachable)
    );
    let probe = world::Probe {
        from: "a".to_owned(),
        kind: world::Kind::Exchange,
        protocol: 6,
        src: None,
        dst: trace.packet.dst,
        sport: 40000,
        dport: 80,
        id: 0,
        dev: None,
    };
    let mut observed = seen::Observed::default();
    observed.turns[0] = seen::points(&trace, &|_| String::new());
    (world.topology, trace, probe, observed)
}

#[test]
fn a_refusal_that_nobody_hears_agrees_only_where_it_is_known_to_be_lost() {
    let (_, trace, probe, observed) = unheard();
    let verdict = |lost: fit::Holds| {
        let name = |_: &NsKey| String::new();
        let traces = [trace.clone()];
        ask::compare(&probe, &traces, &name, &observed, &mut |trace, observed| {
            let manner = fit::Manner::of(&probe);
            fit::fits(manner, trace, &name, observed, &mut |_, back| {
                assert_eq!(back, fit::Back::Icmp);
                lost.clone()
            })
        })
    };
    assert_eq!(verdict(fit::Holds::Yes), Verdict::Agrees(0));
    let differs = verdict(fit::Holds::No);
    assert!(matches!(differs, Verdict::Differs(_)), "{differs:?}");
    let unknown = verdict(fit::Holds::Unknown("why".to_owned()));
    assert_eq!(unknown, Verdict::Unknown("why".to_owned()));
}

#[test]
fn what_is_sent_back_quotes_the_packet_and_may_be_unknown() {
    let (topology, trace, _, _) = unheard();
    let back = ask::sent_back(&topology, &trace, fit::Back::Icmp).expect("an error");
    let quoted = back.packet.inner.as_ref().expect("a quote");
    assert_eq!(quoted.packet, trace.packet);
    let ways = |topology: &Topology| send(topology, &back, &ask::limits()).traces;
    assert_eq!(ask::is_lost(&ways(&topology)), fit::Holds::No);
    // Nothing was read.
    let unknown = ask::is_lost(&ways(&Topology::default()));
    assert!(matches!(unknown, fit::Holds::Unknown(_)), "{unknown:?}");
}
