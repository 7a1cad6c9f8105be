//! Frames of macvlans: whose hooks see them.

use netpath::model::NsKey;
use netpath::model::link::{Link, LinkKind, MacvlanMode};
use netpath::model::netfilter::{Expr, Family, Hook, Verdict};
use netpath::simulate::Outcome;
use netpath::trace::Disposition;

use crate::tables::{chain, drops_state, with};
use crate::world::{World, index};

/// Two pods with a macvlan each on the node's eth0.
fn siblings() -> (World, NsKey, NsKey) {
    let mut world = World::new();
    let host = world.ns("n1", 1, true);
    world.link(&host, 3, "eth0", LinkKind::Device, |_| {});
    let [a, _] = pods(&mut world, &host);
    (world, host, a)
}

fn pods(world: &mut World, host: &NsKey) -> [NsKey; 2] {
    world.addr(host, 3, "10.9.0.1", 24);
    let pods = [world.ns("n1", 2, false), world.ns("n1", 3, false)];
    for (pod, addr) in pods.iter().zip(["10.9.0.2", "10.9.0.3"]) {
        let id = world.nsid(pod, host);
        let kind = LinkKind::Macvlan(MacvlanMode::Bridge);
        world.link(pod, 2, "eth0", kind, |link| {
            link.link = Some(index(3));
            link.link_netnsid = Some(id);
        });
        world.addr(pod, 2, addr, 24);
        world.listen(pod, 6, "0.0.0.0", 8080);
    }
    pods
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
    let tracked = drops_state(1);
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

/// A macvlan takes what its parent took, however long it is; one of mode source only what it was told to take.
#[test]
fn a_macvlan_takes_frames_by_its_mode_not_by_its_mtu() {
    let ends = |change: &dyn Fn(&mut Link)| {
        let mut world = World::new();
        let (host, far) = (world.ns("n1", 1, true), world.ns("n1", 9, false));
        world.veth((&host, 3, "eth0"), (&far, 2, "eth0"));
        let [a, b] = pods(&mut world, &host);
        world.addr(&far, 2, "10.9.0.9", 24);
        world.change(&b, 2, change);
        [a, far].map(|from| {
            world.tcp(&from, "10.9.0.3", 8080).traces[0]
                .disposition
                .clone()
        })
    };
    let delivered = [Disposition::Delivered, Disposition::Delivered];
    assert_eq!(ends(&|link| link.mtu = 50), delivered);
    let [_, outside] = ends(&|link| link.kind = LinkKind::Macvlan(MacvlanMode::Vepa));
    assert_eq!(outside, Disposition::Delivered);
    let [_, outside] = ends(&|link| link.kind = LinkKind::Macvlan(MacvlanMode::Source));
    let Disposition::Inconclusive(why) = outside else {
        panic!("a macvlan of mode source was followed");
    };
    assert!(why[0].contains("of mode Source"), "{why:?}");
}
