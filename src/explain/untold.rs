//! A refusal that its sender does not hear of, since the error is lost on its way back.

use super::codes::{self, Severity};
use super::naming::Naming;
use super::steps::{object, words_of};
use super::{Finding, Place};
use crate::trace::{Disposition, Evidence, RejectWith, StepKind, Trace, Untold};

/// Why it can't be told whether a sender hears of a refusal, where that is so.
pub(super) fn unknown(naming: &Naming<'_>, untold: &Untold) -> Option<String> {
    let why = naming.text(untold.unknown.as_ref()?);
    Some(format!("whether the sender hears of the refusal: {why}"))
}

/// What is said of it; `None` where `way` is no refusal, or it can't be told.
pub(super) fn finding(naming: &Naming<'_>, way: &Trace, untold: &Untold) -> Option<Finding> {
    let (Disposition::Rejected(with), None) = (way.disposition.clone(), &untold.unknown) else {
        return None;
    };
    let refuses = way.hops.last()?;
    let here = naming.within(&refuses.ns);
    // Behind it, a translation may have given it another source.
    let sender = way.hops.first()?.packet.src;
    let mut evidence = vec![format!(
        "the packet is refused {here} ({with}), and {sender} is to be told so by ICMP"
    )];
    let lost = untold.back.iter().find_map(Trace::last_step);
    let (ns, mend) = if let Some((hop, step)) = lost {
        // A rule is spelled out by its own line below.
        let rule = |one: &Evidence| matches!(one, Evidence::NetfilterRule { .. });
        let words = if step.evidence.iter().any(rule) {
            step.result.clone()
        } else {
            words_of(naming, hop, step)
        };
        let place = naming.within(&hop.ns);
        evidence.push(naming.text(&format!("the error ends {place}: {words}")));
        let objects = step.evidence.iter();
        evidence.extend(objects.map(|one| object(naming, hop, one)));
        let mend = match step.kind {
            StepKind::Netfilter => "let the error pass",
            StepKind::Route => "lead the error back to its sender",
            _ => "mend what ends the error there",
        };
        (&hop.ns, format!("{place}: {mend}"))
    } else {
        evidence.push("that kernel finds no address to send it from".to_owned());
        let mend = format!("{here}: add an address, or a route to {sender}");
        (&refuses.ns, mend)
    };
    let (severity, mend) = match with {
        RejectWith::TooBig(mtu) => (
            Severity::Error,
            format!(
                "{mend} (ICMP \"fragmentation needed\", type 3 code 4; ICMPv6 type 2): without it connections hang as soon as they send more than {mtu} bytes at once; or lower the sender's MTU to {mtu}"
            ),
        ),
        _ => (
            Severity::Warning,
            format!(
                "{mend}: without it senders wait for their timeout in place of failing at once"
            ),
        ),
    };
    Some(Finding {
        code: codes::UNTOLD,
        title: "the sender is not told that its packet is refused".to_owned(),
        severity,
        place: Place {
            node: ns.node.clone(),
            netns: naming.netns(ns),
            object: None,
        },
        evidence,
        mend,
        branches: Vec::new(),
    })
}
