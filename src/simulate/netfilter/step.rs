//! The steps that a base chain leaves, and what rules note on the way.

use super::machine::{Note, Vm, Walk};
use super::text;
use crate::model::netfilter::{Chain, Expr, Rule};
use crate::model::packet::Packet;
use crate::model::xtables::XtMatch;
use crate::trace::{Evidence, FieldChange, Step, StepKind};

/// One step of all that the rules of a chain did.
pub(super) fn summed_up(notes: Vec<Note>, assumed: &[Evidence]) -> Option<Step> {
    let results: Vec<String> = notes.iter().map(|note| note.result.clone()).collect();
    if results.is_empty() {
        return None;
    }
    let mut step = Step::new(StepKind::Netfilter, results.join(", "));
    for note in notes {
        for evidence in note.evidence {
            step.evidence.retain(|own| *own != evidence);
            step.evidence.push(evidence);
        }
        step.changes.extend(note.changes);
    }
    step.evidence.extend(assumed.iter().cloned());
    Some(step)
}

/// Rules that led to the current one, and that one last.
pub(super) fn path(walk: &Walk<'_>, rule: Option<&Rule>) -> Vec<Evidence> {
    let mut out = Vec::new();
    let mut add = |chain: &Chain, rule: &Rule, elements: &[Evidence]| {
        let make = || Evidence::NetfilterRule {
            base: walk.base.reference(),
            chain: chain.name.clone(),
            handle: rule.handle,
            text: text::rule(rule, Some(walk.base.table)),
            comment: rule.comment.clone().or_else(|| comment_match(rule)),
            counters: rule.exprs.iter().find_map(|expr| match expr {
                Expr::Counter(counters) => Some(*counters),
                _ => None,
            }),
        };
        out.push(walk.shown.of(walk.base.chain, rule, make));
        out.extend_from_slice(elements);
    };
    for frame in &walk.frames {
        for via in &frame.via {
            add(via.chain, via.rule, &via.elements);
        }
    }
    if let (Some(rule), Some(frame)) = (rule, walk.frames.last()) {
        add(frame.chain, rule, &walk.elements);
    }
    out
}

fn comment_match(rule: &Rule) -> Option<String> {
    rule.exprs.iter().find_map(|expr| match expr {
        Expr::Match(XtMatch::Comment(text)) => Some(text.clone()),
        _ => None,
    })
}

/// Notes that the current rule changed the packet.
pub(super) fn note(vm: &mut Vm<'_>, rule: &Rule, result: String, changes: Vec<FieldChange>) {
    if let Some(walk) = vm.walk.as_mut() {
        let evidence = path(walk, Some(rule));
        walk.notes.push(Note {
            result,
            evidence,
            changes,
        });
    }
}

/// Notes what the current rule wrote into the packet's headers.
pub(super) fn note_written(vm: &mut Vm<'_>, rule: &Rule, before: &Packet) {
    let changes = FieldChange::between(before, &vm.skb.packet);
    if changes.is_empty() {
        return;
    }
    let words: Vec<String> = changes
        .iter()
        .map(|change| format!("{} {} → {}", change.field, change.from, change.to))
        .collect();
    note(vm, rule, words.join(", "), changes);
}

/// Notes what is taken to be so, once.
pub(super) fn assume(vm: &mut Vm<'_>, why: &str) {
    if let Some(walk) = vm.walk.as_mut() {
        let assumed = Evidence::Assumed {
            why: why.to_owned(),
        };
        if !walk.assumed.contains(&assumed) {
            walk.assumed.push(assumed);
        }
    }
}

/// Changes the packet's mark and notes it.
pub(super) fn set_mark(vm: &mut Vm<'_>, rule: &Rule, mark: Option<u32>) {
    let old = vm.skb.mark;
    if old == mark {
        return;
    }
    vm.skb.mark = mark;
    let words =
        |mark: Option<u32>| mark.map_or_else(|| "unknown".to_owned(), |m| format!("{m:#x}"));
    let (from, to) = (words(old), words(mark));
    let change = FieldChange::new("mark", &from, &to);
    note(
        vm,
        rule,
        format!("mark {from} → {to}"),
        change.into_iter().collect(),
    );
}
