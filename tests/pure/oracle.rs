//! Cases in which the simulation once disagreed with a kernel, found by random networks and made smaller: each folder
//! of tests/scenarios/oracle holds what was read, the packet, and what packet sockets saw.
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
use netpath::simulate::send;
use netpath::trace::Trace;

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
    let limits = ask::limits();
    let outcome = ask::once(&file.topology, &saved.probe, from, &limits);
    let mut lost = |trace: &Trace, back| {
        let sent = ask::sent_back(&file.topology, trace, back);
        sent.map_or(fit::Holds::No, |sent| {
            let ways = send(&file.topology, &sent, &limits).traces;
            ask::is_lost(&ways)
        })
    };
    let manner = fit::Manner::of(&saved.probe);
    let observed = &saved.observed;
    ask::compare(
        &saved.probe,
        &outcome.traces,
        &name,
        observed,
        &mut |trace| fit::fits(manner, trace, &name, observed, &mut lost),
    )
}

#[test]
fn what_kernels_did_is_what_is_predicted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios/oracle");
    let mut dirs: Vec<_> = fs::read_dir(root)
        .expect("tests/scenarios/oracle")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    dirs.sort();
    assert!(!dirs.is_empty(), "scenarios are there");
    let mut wrong = Vec::new();
    for dir in dirs {
        let verdict = judged(&dir);
        if !matches!(verdict, Verdict::Agrees(_)) {
            wrong.push(format!("{}: {verdict:?}", dir.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
