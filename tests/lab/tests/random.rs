//! Packets through random networks go where they were predicted to go. Needs root, ip, bridge, iptables, nft, ipset.
//!
//! `netpath-lab oracle` sends more; docs/accuracy.md says what is compared.
#![allow(missing_docs, reason = "tests")]

use netpath_lab::random::frequency::ask_all;
use netpath_lab::random::kinds::Kinds;
use netpath_lab::random::run::{FIXED, FIXED_CASES, PROBES, Plan, Report, run_fixed};

/// The fixed set: all go where they were predicted to go, but for a few of which nothing can be said.
#[test]
fn packets_through_random_networks_go_where_they_were_predicted_to_go() {
    assert!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces: run it as root"
    );
    let report = run_fixed(&Plan {
        seed: 0,
        kinds: Kinds::none(),
        cases: 0,
        save: None,
        record: None,
        most: 20,
        jobs: 2,
        seconds: u64::MAX,
    })
    .expect("a run");
    eprint!("{}", report.text());
    assert!(report.differ.is_empty(), "{}", report.differ.join("\n"));
    assert!(report.failed.is_empty(), "{}", report.failed.join("\n"));
    is_something(&report);
    assert!(
        report.inconclusive() * 100 <= report.cases,
        "{} of {} are inconclusive",
        report.inconclusive(),
        report.cases
    );
    // Rules of each kind are met.
    for kind in [
        "netfilter: ",
        "nat: ",
        "route: ",
        "neigh: ",
        "bridge: ",
        "socket: ",
    ] {
        let mut met = report.coverage.steps.keys();
        assert!(met.any(|step| step.starts_with(kind)), "no step is {kind}");
    }
}

/// Networks of which nothing was made, or through which nothing was sent, would agree, too.
fn is_something(report: &Report) {
    assert_eq!(report.networks, FIXED.len() * FIXED_CASES / PROBES);
    assert_eq!(report.cases + report.skipped, report.networks * PROBES);
    assert!(report.cases >= 2000, "{report:?}");
    assert!(report.skipped * 20 <= report.cases, "{report:?}");
    assert!(report.refused * 100 <= report.lines, "{report:?}");
    for end in ["delivered", "dropped", "rejected"] {
        let count = report.ends.get(end).copied().unwrap_or_default();
        assert!(count * 50 >= report.cases, "{count} of the agreeing {end}");
    }
}

/// Where the kernel chooses, each way is taken as often as was predicted: a right prediction fails once in a hundred
/// thousand runs at most.
#[test]
fn random_choices_are_made_as_often_as_predicted() {
    let all = ask_all(300).expect("questions");
    for asked in &all {
        eprintln!("{}: {:?}", asked.what, asked.ways);
        assert!(asked.ways.len() > 1, "{}: {:?}", asked.what, asked.ways);
        assert!(
            asked.chance() > 1e-6,
            "{}: chance {:e}: {:#?}",
            asked.what,
            asked.chance(),
            asked.ways
        );
    }
}
