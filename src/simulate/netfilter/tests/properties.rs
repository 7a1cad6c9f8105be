//! Properties of all rule sets, over small domains so that rules meet packets.

use proptest::prelude::*;

use super::fixture::*;
use crate::model::Section;
use crate::model::netfilter::Hook;
use crate::simulate::netfilter::{HookOutcome, HookVerdict};
use crate::simulate::skb::Flows;

fn condition() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "",
        "-s 10.244.1.7",
        "! -s 10.244.1.0/24",
        "-d 10.96.0.10",
        "-p tcp -m tcp --dport 80",
        "-p udp -m udp --dport 80",
        "-m statistic --mode random --probability 0.25",
        "-m mark --mark 0x4000/0x4000",
        "-m mark ! --mark 0x1/0x1",
        "-m conntrack --ctstate NEW",
        "-m conntrack ! --ctstate NEW,ESTABLISHED",
        "-m mystery",
    ])
}

fn target() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "-j A",
        "-j B",
        "-g A",
        "-g B",
        "-j ACCEPT",
        "-j DROP",
        "-j RETURN",
        "-j MARK --set-xmark 0x4000/0x4000",
        "-j MARK --set-xmark 0x1/0x0",
        "-j LOG",
    ])
}

fn rules(
    chain: &'static str,
    condition: BoxedStrategy<&'static str>,
) -> impl Strategy<Value = String> {
    prop::collection::vec((condition, target()), 0..5).prop_map(move |rules| {
        rules
            .iter()
            .map(|(condition, target)| format!("-A {chain} {condition} {target}\n"))
            .collect()
    })
}

fn save(condition: BoxedStrategy<&'static str>) -> impl Strategy<Value = String> {
    let chains = ["PREROUTING", "A", "B"].map(|name| rules(name, condition.clone()));
    chains.prop_map(|rules: [String; 3]| {
        format!(
            "*mangle\n:PREROUTING ACCEPT\n:A -\n:B -\n{}",
            rules.concat()
        )
    })
}

fn through(save: &str, forget: Option<&str>) -> Vec<HookOutcome> {
    let mut ns = with_iptables(save);
    let tables = &mut ns.legacy.known_mut().unwrap().tables;
    if let Some(chain) = forget {
        tables[0].chains.get_mut(chain).unwrap().rules = Section::NotAsked;
    }
    let mut world = World::new(ns);
    world.limits.rules = 2000;
    world.limits.branches = 64;
    let packet = skb(tcp("10.244.1.7", None, "10.96.0.10", 80), false);
    world.run(Hook::Prerouting, (3, 0), packet, Flows::default())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any rule set ends, cycles too, and shares add up.
    #[test]
    fn shares_add_up_to_one(save in save(condition().boxed())) {
        let outcomes = through(&save, None);
        let total: f64 = outcomes.iter().map(|outcome| outcome.share).sum();
        prop_assert!((total - 1.0).abs() < 1e-9, "{total}: {save}");
        prop_assert!(outcomes.iter().all(|outcome| outcome.share > 0.0));
    }

    /// Facts that are missing make a verdict unknown, never another one.
    #[test]
    fn forgetting_a_chain_never_turns_a_verdict(save in save(
        condition().prop_filter("no forks", |c| !c.contains("statistic")).boxed()
    ), chain in prop::sample::select(vec!["A", "B", "PREROUTING"])) {
        let full = through(&save, None);
        let part = through(&save, Some(chain));
        prop_assert_eq!(part.len(), 1);
        let unknown = matches!(part[0].verdict, HookVerdict::Unknown(_));
        prop_assert!(unknown || part[0].verdict == full[0].verdict, "{}", save);
    }

    /// Equal input, equal output.
    #[test]
    fn the_same_again(save in save(condition().boxed())) {
        let words = |outcomes: Vec<HookOutcome>| format!("{outcomes:?}");
        prop_assert_eq!(words(through(&save, None)), words(through(&save, None)));
    }

    /// The answer of a translated flow comes back to who asked, from whom was asked.
    #[test]
    fn answers_map_back(
        sport in prop::option::of(1024_u16..1030),
        dport in 80_u16..82,
        dnat in prop::sample::select(vec!["10.244.2.2:8080", "10.244.2.2", "10.244.2.3-10.244.2.6"]),
        snat in prop::sample::select(vec![
            "-j MASQUERADE --random-fully",
            "-j MASQUERADE",
            "-j SNAT --to-source 10.88.0.20:2000-2003",
            "-j ACCEPT",
        ]),
    ) {
        let save = format!(
            "*nat\n:PREROUTING ACCEPT\n:POSTROUTING ACCEPT\n\
             -A PREROUTING -p tcp -j DNAT --to-destination {dnat}\n\
             -A POSTROUTING -p tcp {snat}\n"
        );
        let first = tcp("10.244.1.7", sport, "10.96.0.10", dport);
        let mut ns = with_iptables(&save);
        ns.conntrack = vec![(first.tuple(), Section::Known(None))];
        let mut world = World::new(ns);
        let out = world.one(Hook::Prerouting, (3, 0), skb(first.clone(), false), Flows::default());
        let out = world.one(Hook::Postrouting, (0, 2), out.skb, out.flows);
        prop_assert_ne!(out.skb.packet.dst, first.dst);
        let answer = skb(out.skb.packet.reply(64), false);
        let back = world.one(Hook::Prerouting, (2, 0), answer, out.flows);
        let back = world.one(Hook::Postrouting, (0, 3), back.skb, back.flows);
        prop_assert_eq!(back.skb.packet.tuple(), first.tuple().inverted());
    }
}
