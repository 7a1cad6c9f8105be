//! Rules that ask for the time.

use super::fixture::*;
use crate::model::netfilter::*;
use crate::model::xtables::{RareMatch, TimeMatch, XtMatch};
use crate::simulate::netfilter::HookVerdict;
use crate::simulate::skb::Flows;
use crate::trace::Evidence;

/// Thursday, 29 February 2024, midnight.
const DAY: u64 = 1_709_164_800;

/// Whether a rule with these conditions fits at a second of that day, and what is assumed; `None`: not known.
fn fits(mut exprs: Vec<Expr>, second: u64) -> (Option<bool>, Vec<String>) {
    exprs.push(Expr::Verdict(Verdict::Drop));
    let base = base(Hook::Forward, 0, ChainKind::Filter);
    let chains = vec![chain("c", Some(base), vec![exprs])];
    let mut world = World::new(with_nft(vec![table(Family::Ip, "f", chains, vec![])]));
    for node in world.topology.nodes.values_mut() {
        node.taken_at = DAY + second;
    }
    let packet = skb(tcp("10.244.1.7", Some(4000), "10.244.2.2", 8080), false);
    let outcome = world.one(Hook::Forward, (3, 2), packet, Flows::default());
    let evidence = outcome.steps.iter().flat_map(|step| &step.evidence);
    let assumed = evidence.filter_map(|evidence| match evidence {
        Evidence::Assumed { why } => Some(why.clone()),
        _ => None,
    });
    let answer = match outcome.verdict {
        HookVerdict::Accept => Some(false),
        HookVerdict::Drop(_) => Some(true),
        _ => None,
    };
    (answer, assumed.collect())
}

const NINE: u64 = 9 * 3600;
const FIVE: u64 = 17 * 3600;

fn is_clear_but_at_its_ends(rule: impl Fn() -> Vec<Expr>) {
    for (second, wanted) in [
        (NINE - 60, Some(false)),
        (NINE - 2, None),
        (NINE, None),
        (NINE + 60, Some(true)),
        (FIVE - 60, Some(true)),
        (FIVE + 2, None),
        (FIVE + 60, Some(false)),
    ] {
        assert_eq!(fits(rule(), second).0, wanted, "{second}");
    }
}

#[test]
fn the_match_is_not_known_where_it_changes() {
    let rule = || {
        let time = RareMatch::Time(TimeMatch {
            date_start: 0,
            date_stop: u32::MAX,
            day_start: 9 * 3600,
            day_stop: 17 * 3600,
            monthdays: 0xffff_fffe,
            weekdays: 0xfe,
            flags: 0,
        });
        vec![Expr::Match(XtMatch::Rare(Box::new(time)))]
    };
    is_clear_but_at_its_ends(rule);
    let (_, assumed) = fits(rule(), FIVE - 60);
    assert!(assumed[0].contains("the node was read"), "{assumed:?}");
}

/// `meta hour 9:00-17:00` as nft writes it, the machine's zone being UTC.
#[test]
fn the_hour_is_not_known_where_it_changes() {
    let rule = || {
        vec![
            Expr::Meta {
                key: MetaKey::Other(32),
                dreg: 8,
            },
            Expr::Byteorder {
                sreg: 8,
                dreg: 8,
                hton: true,
                len: 4,
                size: 4,
            },
            Expr::Range {
                negate: false,
                sreg: 8,
                from: (9_u32 * 3600).to_be_bytes().to_vec(),
                to: (17_u32 * 3600).to_be_bytes().to_vec(),
            },
        ]
    };
    is_clear_but_at_its_ends(rule);
    let (_, assumed) = fits(rule(), FIVE - 60);
    assert!(assumed[0].contains("the node was read"), "{assumed:?}");
}

/// About midnight the day is not known.
#[test]
fn the_day_is_not_known_about_midnight() {
    let rule = || {
        vec![
            Expr::Meta {
                key: MetaKey::Other(31),
                dreg: 8,
            },
            Expr::Cmp {
                op: CmpOp::Eq,
                sreg: 8,
                data: vec![4],
            },
        ]
    };
    assert_eq!(fits(rule(), 60).0, Some(true));
    assert_eq!(fits(rule(), 86_398).0, None);
    assert_eq!(fits(rule(), 86_460).0, Some(false));
}
