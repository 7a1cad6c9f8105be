//! What became of a packet for a Service, as far as the comparison is concerned.

use super::expect::Target;
use crate::explain::detect::UNTAKEN;
use crate::model::netfilter::{Backend, ChainKind, Hook};
use crate::trace::evidence::ChainRef;
use crate::trace::{Disposition, Evidence, Passage, PassageEnd, Step, StepKind};

/// One way of a packet past a node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Way {
    /// Share of packets.
    pub share: f64,
    /// Where its destination was translated to, and the rule that did.
    pub to: Option<(Target, Rule)>,
    /// It is for the node itself.
    pub here: bool,
    /// It goes no further.
    pub ended: bool,
    /// It leaves by this device.
    pub leaves: Option<String>,
    /// The rule that translates its source.
    pub masquerade: Option<Rule>,
    /// The rule of kube-proxy that marks it to be masqueraded.
    pub marked: Option<Rule>,
    /// It comes from the address that it is led to.
    pub hairpin: bool,
    /// The rule that drops it, refuses it, or keeps it from a translation.
    pub kept: Option<Rule>,
    /// Why it is not known.
    pub unknown: Option<String>,
}

/// A rule that decided.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rule {
    /// `chain PREROUTING rule 1 of table ip nat: -d 10.96.0.1/32 -j ACCEPT`
    pub words: String,
    /// Its chain is kube-proxy's.
    pub own: bool,
    /// It takes what kube-proxy's own rules should have translated and did not ([`UNTAKEN`]).
    pub untaken: bool,
}

/// Reads a passage; `hook` is where destinations are translated.
pub(super) fn way(passage: &Passage, hook: Hook) -> Way {
    let mut way = Way {
        share: passage.share,
        to: None,
        here: false,
        ended: false,
        leaves: None,
        masquerade: None,
        marked: None,
        hairpin: false,
        kept: None,
        unknown: None,
    };
    match &passage.end {
        PassageEnd::Here => way.here = true,
        PassageEnd::Leaves(dev) => way.leaves = Some(dev.clone()),
        PassageEnd::Ended(Disposition::Inconclusive(why)) => way.unknown = Some(why.join("; ")),
        PassageEnd::Ended(_) => way.ended = true,
    }
    for step in &passage.steps {
        let Some((base, rule)) = last_rule(step) else {
            continue;
        };
        let nat = step.kind == StepKind::Nat;
        let to_nat = matches!(base.hook, Hook::Prerouting | Hook::Output);
        if nat && to_nat {
            let port = passage.packet.dport().unwrap_or(0);
            way.hairpin = passage.asked.src == passage.packet.dst;
            way.to = Some(((passage.packet.dst, port), rule));
        } else if nat && base.hook == Hook::Postrouting {
            way.masquerade = Some(rule);
        } else if rule.own && base.hook != Hook::Postrouting && marks(step) {
            way.marked = Some(rule);
        } else if base.kind == ChainKind::Nat && base.hook == hook && way.to.is_none() {
            way.kept.get_or_insert(rule);
        }
    }
    // What keeps it from a translation comes before what refuses it as it is.
    if way.to.is_some() {
        way.kept = None;
    }
    if way.ended && way.kept.is_none() {
        way.kept = passage.steps.last().and_then(decided);
    }
    way
}

/// Whether it sets bits of the packet's mark.
fn marks(step: &Step) -> bool {
    step.changes.iter().any(|change| change.field == "mark")
}

/// The rule or policy that ended a packet.
fn decided(step: &Step) -> Option<Rule> {
    if let Some((_, rule)) = last_rule(step) {
        return Some(rule);
    }
    step.evidence.iter().find_map(|evidence| match evidence {
        Evidence::Chain {
            chain,
            policy: Some(_),
            ..
        } => Some(Rule {
            words: format!(
                "the policy of chain {} of table {} {}",
                chain.chain,
                chain.family.name(),
                chain.table
            ),
            own: false,
            untaken: false,
        }),
        _ => None,
    })
}

/// The last rule among a step's evidence, which decided.
fn last_rule(step: &Step) -> Option<(&ChainRef, Rule)> {
    if !matches!(step.kind, StepKind::Nat | StepKind::Netfilter) {
        return None;
    }
    step.evidence
        .iter()
        .rev()
        .find_map(|evidence| match evidence {
            Evidence::NetfilterRule {
                base,
                chain,
                handle,
                text,
                ..
            } => Some((
                base,
                Rule {
                    words: rule_words(base, chain, *handle, text),
                    own: is_own(&base.table, chain),
                    untaken: base.table == "kube-proxy" && chain == UNTAKEN,
                },
            )),
            _ => None,
        })
}

fn rule_words(base: &ChainRef, chain: &str, handle: u64, text: &str) -> String {
    let word = match base.backend {
        Backend::Nft => "handle",
        Backend::Legacy => "rule",
    };
    let family = base.family.name();
    format!(
        "chain {chain} {word} {handle} of table {family} {} ({})",
        base.table,
        shortened(text)
    )
}

/// Characters of a rule that are told.
const LONGEST: usize = 160;

fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(LONGEST).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// kube-proxy's own chains; those of the kubelet have the same prefix.
pub(super) fn is_own(table: &str, chain: &str) -> bool {
    table == "kube-proxy" || chain.starts_with("KUBE-")
}
