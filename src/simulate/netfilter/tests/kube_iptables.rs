//! kube-proxy's iptables rules.

use super::fixture::*;
use crate::model::Section;
use crate::model::netfilter::{Backend, Family, Hook, Sieved};
use crate::model::recent::{RecentEntry, RecentList};
use crate::model::want::Want;
use crate::simulate::netfilter::{HookOutcome, HookVerdict};
use crate::simulate::skb::{CtRef, CtState, Flows};
use crate::trace::{Evidence, RejectWith, StepKind};

const RULES: &str = r#"
*nat
:PREROUTING ACCEPT
:INPUT ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:KUBE-SERVICES -
:KUBE-POSTROUTING -
:KUBE-MARK-MASQ -
:KUBE-SVC-A -
:KUBE-SEP-1 -
:KUBE-SEP-2 -
:KUBE-SEP-3 -
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SEP-3
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp -m comment --comment "demo/echo cluster IP" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SVC-A ! -s 10.244.0.0/16 -d 10.96.0.10/32 -p tcp -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SVC-A -m comment --comment "demo/echo -> 10.244.1.2:8080" -m statistic --mode random --probability 0.33333333349 -j KUBE-SEP-1
-A KUBE-SVC-A -m comment --comment "demo/echo -> 10.244.2.2:8080" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-2
-A KUBE-SVC-A -m comment --comment "demo/echo -> 10.244.2.3:8080" -j KUBE-SEP-3
-A KUBE-SEP-1 -s 10.244.1.2/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-1 -p tcp -m tcp -j DNAT --to-destination 10.244.1.2:8080
-A KUBE-SEP-2 -s 10.244.2.2/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-2 -p tcp -m tcp -j DNAT --to-destination 10.244.2.2:8080
-A KUBE-SEP-3 -s 10.244.2.3/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-3 -p tcp -m tcp -j DNAT --to-destination 10.244.2.3:8080
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -m comment --comment "kubernetes service traffic requiring SNAT" -j MASQUERADE --random-fully
*filter
:INPUT ACCEPT
:FORWARD DROP
:OUTPUT ACCEPT
:KUBE-FORWARD -
:KUBE-SERVICES -
-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES
-A FORWARD -j KUBE-FORWARD
-A FORWARD -s 10.244.0.0/16 -j ACCEPT
-A KUBE-SERVICES -d 10.96.0.50/32 -p tcp -m comment --comment "demo/noep has no endpoints" -m tcp --dport 80 -j REJECT --reject-with icmp-port-unreachable
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
"#;

#[test]
fn a_service_is_spread_evenly_over_three_endpoints() {
    let mut world = World::new(with_iptables(RULES));
    let packet = skb(tcp("10.244.1.7", None, "10.96.0.10", 80), false);
    let outcomes = world.run(Hook::Prerouting, (3, 0), packet, Flows::default());
    assert_eq!(outcomes.len(), 3);
    let backends = ["10.244.1.2", "10.244.2.2", "10.244.2.3"];
    for (outcome, backend) in outcomes.iter().zip(backends) {
        assert!(
            (outcome.share - 1.0 / 3.0).abs() < 1e-6,
            "{}",
            outcome.share
        );
        assert_eq!(outcome.skb.packet.dst, ip(backend));
        assert_eq!(outcome.skb.packet.dport(), Some(8080));
        assert_eq!(outcome.skb.mark, Some(0));
        assert_eq!(said(outcome), format!("dnat to {backend}:8080"));
    }
    let step = &outcomes[1].steps[0];
    assert_eq!(step.kind, StepKind::Nat);
    let chains: Vec<&str> = step
        .evidence
        .iter()
        .filter_map(|evidence| match evidence {
            Evidence::NetfilterRule { chain, .. } => Some(chain.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(
        chains,
        ["PREROUTING", "KUBE-SERVICES", "KUBE-SVC-A", "KUBE-SEP-2"]
    );
    let Some(Evidence::NetfilterRule { text, .. }) = step.evidence.last() else {
        panic!("a rule");
    };
    assert_eq!(
        text,
        "-p tcp -m tcp -j DNAT --to-destination 10.244.2.2:8080"
    );
    assert!(world.wants.is_empty());
}

#[test]
fn a_sieved_chain_is_good_for_its_destinations_only() {
    let mut world = World::new(with_iptables(RULES));
    let send = |world: &mut World, to: &str| {
        let packet = skb(tcp("10.244.1.7", None, to, 80), false);
        world.run(Hook::Prerouting, (3, 0), packet, Flows::default())
    };
    let whole = send(&mut world, "10.96.0.10");
    let mut ns = with_iptables(RULES);
    let tables = &mut ns.legacy.known_mut().unwrap().tables;
    let nat = tables.iter_mut().find(|table| table.name == "nat").unwrap();
    let chain = nat.chains.get_mut("KUBE-SERVICES").unwrap();
    chain.rules.known_mut().unwrap().remove(0);
    chain.sieved = Some(Sieved {
        to: vec![ip("10.96.0.10")],
        left_out: 1,
    });
    let mut world = World::new(ns);
    let lean = send(&mut world, "10.96.0.10");
    assert_eq!(format!("{lean:?}"), format!("{whole:?}"));
    assert!(world.wants.is_empty());
    let other = send(&mut world, "10.96.0.1");
    assert!(
        matches!(&other[..], [only] if matches!(only.verdict, HookVerdict::Unknown(_))),
        "{other:?}"
    );
    assert_eq!(
        world.wants[NODE].first(),
        Some(&Want::Chain {
            netns: key().netns,
            backend: Backend::Legacy,
            family: Family::Ip,
            table: "nat".to_owned(),
            chain: "KUBE-SERVICES".to_owned(),
        })
    );
}

#[test]
fn traffic_from_outside_is_masqueraded_and_its_answer_comes_back() {
    let mut world = World::new(with_iptables(RULES));
    let first = tcp("10.88.0.99", None, "10.96.0.10", 80);
    let outcomes = world.run(
        Hook::Prerouting,
        (2, 0),
        skb(first.clone(), false),
        Flows::default(),
    );
    let pre = outcomes.into_iter().nth(1).unwrap();
    assert_eq!(pre.skb.mark, Some(0x4000));
    assert_eq!(said(&pre), "mark 0x0 → 0x4000; dnat to 10.244.2.2:8080");
    let forward = world.one(Hook::Forward, (2, 2), pre.skb, pre.flows);
    assert!(is_accept(&forward));
    assert_eq!(said(&forward), "accepted");
    let post = world.one(Hook::Postrouting, (0, 2), forward.skb, forward.flows);
    assert_eq!(said(&post), "mark 0x4000 → 0x0; masquerade as 10.88.0.11");
    assert_eq!(post.skb.packet.src, ip("10.88.0.11"));
    assert_eq!(post.skb.packet.sport(), None);

    let answer = skb(post.skb.packet.reply(64), false);
    let back = world.one(Hook::Prerouting, (2, 0), answer, post.flows);
    assert_eq!(said(&back), "answer: destination back to 10.88.0.99");
    assert!(matches!(
        back.skb.ct,
        CtRef::Entry {
            reply: true,
            state: CtState::Established,
            ..
        }
    ));
    let back = world.one(Hook::Forward, (2, 2), back.skb, back.flows);
    assert!(is_accept(&back));
    let back = world.one(Hook::Postrouting, (0, 2), back.skb, back.flows);
    assert_eq!(back.skb.packet.tuple(), first.tuple().inverted());
    assert_eq!(said(&back), "answer: source back to 10.96.0.10:80");
}

#[test]
fn a_service_without_endpoints_is_refused() {
    let mut world = World::new(with_iptables(RULES));
    let packet = skb(tcp("10.244.1.7", None, "10.96.0.50", 80), false);
    let pre = world.one(Hook::Prerouting, (3, 0), packet, Flows::default());
    assert!(is_accept(&pre));
    assert_eq!(pre.steps, []);
    let forward = world.one(Hook::Forward, (3, 2), pre.skb, pre.flows);
    let wanted = HookVerdict::Reject(RejectWith::PortUnreachable);
    assert_eq!(forward.verdict, wanted);
}

#[test]
fn the_policy_drops_what_no_rule_accepts() {
    let mut world = World::new(with_iptables(RULES));
    let packet = skb(tcp("10.88.0.99", None, "10.244.1.2", 8080), false);
    let pre = world.one(Hook::Prerouting, (2, 0), packet, Flows::default());
    let forward = world.one(Hook::Forward, (2, 3), pre.skb, pre.flows);
    assert!(matches!(forward.verdict, HookVerdict::Drop(_)));
    assert_eq!(said(&forward), "dropped by policy");
}

#[test]
fn an_answer_whose_question_was_not_seen_is_invalid_and_dropped() {
    let mut world = World::new(with_iptables(RULES));
    let answer = tcp("10.244.1.7", None, "10.96.0.50", 80).reply(64);
    let pre = world.one(
        Hook::Prerouting,
        (3, 0),
        skb(answer, false),
        Flows::default(),
    );
    assert_eq!(pre.skb.ct, CtRef::Invalid);
    let forward = world.one(Hook::Forward, (3, 2), pre.skb, pre.flows);
    assert!(matches!(forward.verdict, HookVerdict::Drop(_)));
}

#[test]
fn a_client_in_an_affinity_list_keeps_its_backend() {
    let rules = r"
*nat
:PREROUTING ACCEPT
:SVC -
:SEP-1 -
:SEP-2 -
-A PREROUTING -j SVC
-A SVC -m recent --rcheck --seconds 10800 --reap --name SEP-1 --rsource -j SEP-1
-A SVC -m recent --rcheck --seconds 10800 --reap --name SEP-2 --rsource -j SEP-2
-A SVC -m statistic --mode random --probability 0.5 -j SEP-1
-A SVC -j SEP-2
-A SEP-1 -p tcp -m recent --set --name SEP-1 --rsource -m tcp -j DNAT --to-destination 10.244.1.2:8080
-A SEP-2 -p tcp -m recent --set --name SEP-2 --rsource -m tcp -j DNAT --to-destination 10.244.2.2:8080
";
    let list = |ages: &[Option<u64>]| RecentList {
        name: "SEP-2".to_owned(),
        entries: vec![RecentEntry {
            addr: "10.244.1.7".parse().unwrap(),
            ttl: 0,
            ages: ages.to_vec(),
        }],
        cut: false,
    };
    let outcomes = |lists: Section<Vec<RecentList>>| {
        let mut ns = with_iptables(rules);
        ns.recent = lists;
        let packet = skb(tcp("10.244.1.7", None, "10.96.0.10", 80), false);
        World::new(ns).run(Hook::Prerouting, (3, 0), packet, Flows::default())
    };
    let shares = |outcomes: &[HookOutcome]| outcomes.iter().map(|o| o.share).collect::<Vec<_>>();
    let new = outcomes(Section::Known(Vec::new()));
    assert_eq!(shares(&new), [0.5, 0.5]);
    let kept = outcomes(Section::Known(vec![list(&[Some(5000)])]));
    assert_eq!(shares(&kept), [1.0]);
    assert_eq!(said(&kept[0]), "dnat to 10.244.2.2:8080");
    let old = outcomes(Section::Known(vec![list(&[Some(10_801_000)])]));
    assert_eq!(shares(&old), [0.5, 0.5]);
    for unknown in [
        Section::Known(vec![list(&[None])]),
        Section::Missing("not readable".to_owned()),
    ] {
        let unknown = outcomes(unknown);
        assert!(matches!(unknown[0].verdict, HookVerdict::Unknown(_)));
    }
}

#[test]
fn ten_thousand_services_are_walked() {
    use std::fmt::Write as _;
    let mut save = "*nat\n:PREROUTING ACCEPT\n:KUBE-SERVICES -\n:SEP -\n\
                    -A PREROUTING -j KUBE-SERVICES\n"
        .to_owned();
    for service in 0..10_000 {
        let (high, low) = (service / 250, service % 250 + 1);
        writeln!(
            save,
            "-A KUBE-SERVICES -d 10.96.{high}.{low}/32 -p tcp -m comment --comment \"a service\" \
             -m tcp --dport 80 -j SEP"
        )
        .unwrap();
    }
    save.push_str("-A SEP -p tcp -m tcp -j DNAT --to-destination 10.244.2.2:8080\n");
    let mut world = World::new(with_iptables(&save));
    let packet = skb(tcp("10.244.1.7", None, "10.96.39.250", 80), false);
    let outcome = world.one(Hook::Prerouting, (3, 0), packet, Flows::default());
    assert_eq!(said(&outcome), "dnat to 10.244.2.2:8080");
}
