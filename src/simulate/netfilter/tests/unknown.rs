//! What can't be evaluated.

use super::fixture::*;
use crate::model::Section;
use crate::model::conntrack::{ConntrackEntry, status};
use crate::model::netfilter::Hook;
use crate::model::want::Want;
use crate::simulate::netfilter::HookVerdict;
use crate::simulate::skb::{CtRef, Flows};

fn forward(rules: &str) -> (World, HookVerdict) {
    let save = format!("*filter\n:FORWARD DROP\n:SUB -\n{rules}");
    let mut world = World::new(with_iptables(&save));
    let packet = skb(tcp("10.244.1.7", None, "10.244.2.2", 8080), false);
    let outcome = world.one(Hook::Forward, (3, 2), packet, Flows::default());
    (world, outcome.verdict)
}

#[test]
fn an_unknown_match_that_decides_makes_the_outcome_unknown() {
    let (_, verdict) = forward("-A FORWARD -m mystery -j ACCEPT\n");
    let HookVerdict::Unknown(why) = verdict else {
        panic!("{verdict:?}");
    };
    assert!(why.contains("chain FORWARD"), "{why}");
    assert!(why.contains("-m mystery ... -j ACCEPT"), "{why}");
}

#[test]
fn an_unknown_match_that_changes_nothing_does_not_matter() {
    let (_, verdict) = forward("-A FORWARD -m mystery -j DROP\n");
    assert!(matches!(verdict, HookVerdict::Drop(_)));
    let (_, verdict) = forward("-A FORWARD -m mystery -j SUB\n-A FORWARD -j ACCEPT\n");
    assert_eq!(verdict, HookVerdict::Accept);
    let logs = "-A FORWARD -m limit -j LOG\n".repeat(300);
    let (_, verdict) = forward(&format!("{logs}-A FORWARD -j ACCEPT\n"));
    assert_eq!(verdict, HookVerdict::Accept);
}

#[test]
fn many_unknown_rules_are_given_up_on() {
    let rules = "-A FORWARD -m mystery -j SUB\n".repeat(40);
    let (_, verdict) = forward(&format!("{rules}-A FORWARD -j ACCEPT\n"));
    assert!(matches!(verdict, HookVerdict::Unknown(_)));
}

#[test]
fn an_unknown_target_makes_the_outcome_unknown() {
    let (_, verdict) = forward("-A FORWARD -p tcp -j MYSTERY\n-A FORWARD -j ACCEPT\n");
    assert!(matches!(verdict, HookVerdict::Unknown(_)));
    let (_, verdict) = forward("-A FORWARD -p udp -j MYSTERY\n-A FORWARD -j ACCEPT\n");
    assert_eq!(verdict, HookVerdict::Accept);
}

#[test]
fn rules_that_were_not_read_are_wanted_and_what_follows_too() {
    let save = "*nat\n:PREROUTING ACCEPT\n:A -\n:B -\n-A PREROUTING -j A\n-A PREROUTING -j B\n";
    let mut ns = with_iptables(save);
    let tables = &mut ns.legacy.known_mut().unwrap().tables;
    for chain in tables[0].chains.values_mut() {
        if chain.base.is_none() {
            chain.rules = Section::NotAsked;
        }
    }
    let mut world = World::new(ns);
    let packet = skb(tcp("10.244.1.7", None, "10.244.2.2", 8080), false);
    let outcome = world.one(Hook::Prerouting, (3, 0), packet, Flows::default());
    assert!(matches!(outcome.verdict, HookVerdict::Unknown(_)));
    assert_eq!(world.wants[NODE].len(), 2);
}

#[test]
fn a_namespace_whose_rules_nobody_read_is_wanted() {
    let mut ns = node();
    ns.nft = Section::NotAsked;
    let mut world = World::new(ns);
    let packet = skb(tcp("10.244.1.7", None, "10.244.2.2", 8080), false);
    let outcome = world.one(Hook::Forward, (3, 2), packet, Flows::default());
    assert!(matches!(outcome.verdict, HookVerdict::Unknown(_)));
    assert!(matches!(
        world.wants[NODE].first(),
        Some(Want::NetNs { .. })
    ));
}

#[test]
fn a_flow_with_fixed_ports_is_looked_for_in_the_kernel_table() {
    let save = "
*nat
:PREROUTING ACCEPT
:POSTROUTING ACCEPT
-A PREROUTING -p tcp -j DNAT --to-destination 10.244.2.2:8080
";
    let mut ns = with_iptables(save);
    let first = tcp("10.244.1.7", Some(4000), "10.96.0.10", 80);
    let mut world = World::new(ns.clone());
    let packet = skb(first.clone(), false);
    let outcome = world.one(Hook::Prerouting, (3, 0), packet.clone(), Flows::default());
    assert!(matches!(outcome.verdict, HookVerdict::Unknown(_)));
    assert!(matches!(
        world.wants[NODE].first(),
        Some(Want::Conntrack { .. })
    ));

    let none = |tuple| (tuple, 0, Section::Known(None));
    ns.conntrack = vec![none(first.tuple()), none(first.tuple().inverted())];
    let outcome =
        World::new(ns.clone()).one(Hook::Prerouting, (3, 0), packet.clone(), Flows::default());
    assert_eq!(said(&outcome), "dnat to 10.244.2.2:8080");

    // An entry made when the rules led elsewhere.
    let orig = first.tuple();
    let mut reply = orig.inverted();
    reply.src = ip("10.244.9.9");
    reply.sport = Some(8080);
    let entry = ConntrackEntry {
        status: status::CONFIRMED | status::DST_NAT | status::DST_NAT_DONE | status::SRC_NAT_DONE,
        mark: 7,
        timeout: Some(100),
        tcp_state: Some(1),
        ..ConntrackEntry::new(orig, reply)
    };
    ns.conntrack = vec![(orig, 0, Section::Known(Some(entry)))];
    let outcome = World::new(ns).one(Hook::Prerouting, (3, 0), packet, Flows::default());
    assert_eq!(outcome.skb.packet.dst, ip("10.244.9.9"));
    assert!(matches!(outcome.skb.ct, CtRef::Entry { reply: false, .. }));
}
