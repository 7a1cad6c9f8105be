//! Frames of macvlans: whose hooks see them.

use netpath::model::link::{LinkKind, MacvlanMode};
use netpath::model::netfilter::{
    Backend, BaseChain, Chain, ChainKind, CmpOp, CtKey, Expr, Family, Hook, Policy, Rule, Ruleset,
    Table, Verdict,
};
use netpath::model::{NsKey, Section};
use netpath::simulate::Outcome;
use netpath::trace::Disposition;

use crate::world::{World, index};

/// Two pods with a macvlan each on the node's eth0.
fn siblings() -> (World, NsKey, NsKey) {
    let mut world = World::new();
    let host = world.ns("n1", 1, true);
    world.link(&host, 3, "eth0", LinkKind::Device, |_| {});
    world.addr(&host, 3, "10.9.0.1", 24);
    let pods = [world.ns("n1", 2, false), world.ns("n1", 3, false)];
    for (pod, addr) in pods.iter().zip(["10.9.0.2", "10.9.0.3"]) {
        let id = world.nsid(pod, &host);
        let kind = LinkKind::Macvlan(MacvlanMode::Bridge);
        world.link(pod, 2, "eth0", kind, |link| {
            link.link = Some(index(3));
            link.link_netnsid = Some(id);
        });
        world.addr(pod, 2, addr, 24);
        world.listen(pod, 6, "0.0.0.0", 8080);
    }
    let [a, _] = pods;
    (world, host, a)
}

/// A netdev table with one rule, at eth0 where the hook is a device's.
pub fn chain(hook: Hook, exprs: Vec<Expr>) -> Table {
    let at_device = matches!(hook, Hook::Ingress | Hook::Egress);
    let rule = Rule {
        handle: 2,
        exprs,
        comment: None,
    };
    let chain = Chain {
        name: "c".to_owned(),
        handle: 1,
        base: Some(BaseChain {
            hook,
            priority: 0,
            kind: ChainKind::Filter,
            policy: Policy::Accept,
            devices: at_device.then(|| "eth0".to_owned()).into_iter().collect(),
            counters: None,
        }),
        rules: Section::Known(vec![rule]),
        sieved: None,
        comment: None,
        bound: false,
    };
    Table {
        backend: Backend::Nft,
        family: Family::Netdev,
        name: "t".to_owned(),
        dormant: false,
        chains: [("c".to_owned(), chain)].into(),
        chains_complete: true,
        sets: std::collections::BTreeMap::new(),
        sets_complete: true,
        flowtables: std::collections::BTreeMap::new(),
        objects: Vec::new(),
        comment: None,
    }
}

pub fn with(world: &mut World, ns: &NsKey, table: Table) {
    world.get(ns).nft = Section::Known(Ruleset {
        generation: Some(1),
        tables: vec![table],
    });
}

fn end(outcome: &Outcome) -> &Disposition {
    let [trace] = outcome.traces.as_slice() else {
        panic!("{outcome:#?}");
    };
    trace.outcome()
}

/// What passes from one to the other comes in by the parent, with all that looks at what comes in there.
#[test]
fn what_is_between_siblings_passes_the_parents_ingress() {
    let (world, host, a) = siblings();
    let outcome = world.tcp(&a, "10.9.0.3", 8080);
    assert_eq!(end(&outcome), &Disposition::Delivered, "{outcome:#?}");
    let places: Vec<&NsKey> = outcome.traces[0].hops.iter().map(|hop| &hop.ns).collect();
    assert_eq!(places.get(1), Some(&&host));

    let (mut programmed, host, a) = siblings();
    programmed.change(&host, 3, |link| link.tc = vec!["ingress bpf".to_owned()]);
    let outcome = programmed.tcp(&a, "10.9.0.3", 8080);
    let Disposition::Inconclusive(why) = end(&outcome) else {
        panic!("{outcome:#?}");
    };
    assert!(why[0].contains("ingress bpf"), "{why:?}");

    let (mut filtered, host, a) = siblings();
    let drop = vec![Expr::Verdict(Verdict::Drop)];
    with(&mut filtered, &host, chain(Hook::Ingress, drop));
    let outcome = filtered.tcp(&a, "10.9.0.3", 8080);
    assert!(
        matches!(end(&outcome), Disposition::Dropped(_)),
        "{outcome:#?}"
    );
}

/// Below, the packet still has its pod's connection, of which the node's rules see more than is followed.
#[test]
fn a_connection_of_the_namespace_above_is_not_taken_for_one_below() {
    let (mut world, host, a) = siblings();
    let tracked = vec![
        Expr::Ct {
            key: CtKey::State,
            dir: None,
            dreg: 8,
        },
        Expr::Cmp {
            op: CmpOp::Eq,
            sreg: 8,
            data: 1_u32.to_le_bytes().to_vec(),
        },
        Expr::Verdict(Verdict::Drop),
    ];
    with(&mut world, &host, chain(Hook::Egress, tracked.clone()));
    // The pod's own rules have it tracked.
    let mut table = chain(Hook::Output, tracked);
    table.family = Family::Ip;
    with(&mut world, &a, table);
    let outcome = world.tcp(&a, "10.9.0.9", 8080);
    let Disposition::Inconclusive(why) = end(&outcome) else {
        panic!("{outcome:#?}");
    };
    assert!(why[0].contains("namespace above"), "{why:?}");
}
