//! Refusals whose error is lost on its way back; that kernels lose it there, tests/lab/tests/mtu.rs shows.

use netpath::model::NsKey;
use netpath::model::netfilter::{Expr, Family, Hook, Table, Verdict};
use netpath::model::packet::TCP;
use netpath::simulate::refusal::untold;
use netpath::simulate::{Flow, Limits, Outcome, Prepared};
use netpath::trace::{Disposition, RejectWith};

use crate::tables::{chain, drops_state, with};
use crate::walks::two_nodes;
use crate::world::{World, ip};

/// NF_CT_STATE_BIT of IP_CT_RELATED.
const RELATED: u32 = 4;

fn asked(world: &World, from: &NsKey) -> Outcome {
    let flow = Flow {
        from: from.clone(),
        src: None,
        sport: None,
        dst: ip("10.244.2.7"),
        dport: Some(8080),
        protocol: TCP,
        len: 1400,
        uid: Some(0),
        gid: Some(0),
        bound: None,
    };
    let limits = Limits::default();
    let mut prepared = Prepared::new(&world.topology);
    let mut outcome = prepared.simulate(&flow, &limits);
    untold(&mut prepared, &flow, &mut outcome, &limits);
    outcome
}

fn drops(hook: Hook, exprs: Vec<Expr>) -> Table {
    Table {
        family: Family::Ip,
        ..chain(hook, exprs)
    }
}

/// Where the error is lost.
#[track_caller]
fn lost_at(outcome: &Outcome) -> Vec<NsKey> {
    let too_big = Disposition::Rejected(RejectWith::TooBig(1300));
    assert_eq!(outcome.traces.len(), 1);
    assert_eq!(outcome.traces[0].disposition, too_big);
    let untold = outcome.untold.iter().filter(|one| one.unknown.is_none());
    let back = untold.flat_map(|one| &one.back);
    let ends = back.filter_map(|way| way.last_step());
    ends.map(|(hop, _)| hop.ns.clone()).collect()
}

#[test]
fn a_refusal_is_lost_where_rules_drop_the_error() {
    let (mut world, hosts, pods) = two_nodes();
    world.change(&hosts[0], 3, |link| link.mtu = 1300);
    assert!(lost_at(&asked(&world, &pods[0])).is_empty());
    // By the router that refuses it, also as one that belongs to the packet's connection.
    let all = vec![Expr::Verdict(Verdict::Drop)];
    for rule in [all.clone(), drops_state(RELATED)] {
        with(&mut world, &hosts[0], drops(Hook::Output, rule));
        assert_eq!(lost_at(&asked(&world, &pods[0])), [hosts[0].clone()]);
    }
    // By the sender itself.
    let (mut world, hosts, pods) = two_nodes();
    world.change(&hosts[0], 3, |link| link.mtu = 1300);
    with(&mut world, &pods[0], drops(Hook::Input, all));
    assert_eq!(lost_at(&asked(&world, &pods[0])), [pods[0].clone()]);
}

#[test]
fn what_is_not_sure_to_be_lost_is_not_called_so() {
    let (mut world, _, pods) = two_nodes();
    // Its own kernel tells a socket itself.
    world.change(&pods[0], 2, |link| link.mtu = 1300);
    let refuses = drops(Hook::Input, vec![Expr::Verdict(Verdict::Drop)]);
    with(&mut world, &pods[0], refuses);
    assert!(asked(&world, &pods[0]).untold.is_empty());
    // A rule that can't be decoded may let it pass.
    let (mut world, hosts, pods) = two_nodes();
    world.change(&hosts[0], 3, |link| link.mtu = 1300);
    let strange = Expr::Other {
        name: "strange".to_owned(),
        data: Vec::new(),
    };
    let rule = vec![strange, Expr::Verdict(Verdict::Drop)];
    with(&mut world, &hosts[0], drops(Hook::Output, rule));
    let outcome = asked(&world, &pods[0]);
    assert!(lost_at(&outcome).is_empty());
    let why = outcome.untold[0].unknown.as_deref().unwrap_or_default();
    assert!(why.contains("strange"), "{why}");
}
