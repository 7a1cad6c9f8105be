//! Properties that hold for every world, named above each test.

use netpath::model::netns::NetNs;
use netpath::model::{NsKey, Section};
use netpath::simulate::Outcome;
use netpath::trace::{Disposition, Trace};
use proptest::prelude::*;

use crate::walks::{bridged, overlay, two_nodes};
use crate::world::World;

/// Sections that a fault can take away.
const SECTIONS: usize = 11;

fn take(ns: &mut NetNs, section: usize, asked: bool) {
    fn lose<T>(section: &mut Section<T>, asked: bool) {
        *section = if asked {
            Section::Missing("EPERM".to_owned())
        } else {
            Section::NotAsked
        };
    }
    match section {
        0 => lose(&mut ns.links, asked),
        1 => lose(&mut ns.addrs, asked),
        2 => lose(&mut ns.rules, asked),
        3 => lose(&mut ns.routes, asked),
        4 => lose(&mut ns.neighs, asked),
        5 => lose(&mut ns.fdb, asked),
        6 => lose(&mut ns.nsids, asked),
        7 => lose(&mut ns.sysctls, asked),
        8 => lose(&mut ns.sockets, asked),
        9 => lose(&mut ns.nft, asked),
        _ => lose(&mut ns.legacy, asked),
    }
}

fn worlds(which: usize) -> (World, NsKey, &'static str) {
    match which {
        0 => {
            let (world, _, a, _) = bridged();
            (world, a, "10.244.1.9")
        }
        1 => {
            let (world, _, pods) = two_nodes();
            (world, pods[0].clone(), "10.244.2.7")
        }
        _ => {
            let (world, _, pods) = overlay();
            (world, pods[0].clone(), "10.244.2.7")
        }
    }
}

fn whole(outcome: &Outcome) -> f64 {
    outcome.traces.iter().map(|trace| trace.probability).sum()
}

fn end(trace: &Trace) -> &Disposition {
    trace.outcome()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Taking facts away never turns one certain answer into another: only into "not known", which
    /// names what is missing.
    #[test]
    fn less_knowledge_never_changes_the_answer(
        which in 0usize..3,
        port in prop_oneof![Just(8080u16), Just(81)],
        losses in prop::collection::vec((0usize..8, 0usize..SECTIONS, any::<bool>()), 1..4),
    ) {
        let (mut world, from, dst) = worlds(which);
        let before = world.tcp(&from, dst, port);
        let wanted = end(&before.traces[0]).clone();
        let all: Vec<NsKey> = world.topology.all().map(|(key, _)| key).collect();
        for (ns, section, asked) in losses {
            take(world.get(&all[ns % all.len()]), section, asked);
        }
        let after = world.tcp(&from, dst, port);
        prop_assert!((whole(&after) - 1.0).abs() < 1e-9);
        for trace in &after.traces {
            match end(trace) {
                Disposition::Inconclusive(missing) => prop_assert!(!missing.is_empty()),
                other => prop_assert_eq!(other, &wanted, "{:#?}", trace),
            }
        }
    }

    /// Equal input gives equal output.
    #[test]
    fn the_simulation_is_a_function(which in 0usize..3, port in 1u16..10_000) {
        let (world, from, dst) = worlds(which);
        let (one, two) = (world.tcp(&from, dst, port), world.tcp(&from, dst, port));
        prop_assert_eq!(one.traces, two.traces);
        prop_assert_eq!(one.wants, two.wants);
    }
}
