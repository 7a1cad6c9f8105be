//! Flows that stand already between the ends of a question, beside what a new flow would do.

use super::{Explanation, Finding, Place, Severity, Verdict, codes, words};
use crate::model::conntrack::ConntrackEntry;

/// Entries of one namespace that lead to the same place, and where packets of such a flow go.
#[derive(Clone, Debug)]
pub struct ExistingFlow {
    /// One of them.
    pub entry: ConntrackEntry,
    /// How many there are.
    pub count: u32,
    /// Where they were found.
    pub place: Place,
    /// What becomes of packets that belong to it.
    pub answer: Explanation,
}

impl Explanation {
    /// Takes over what is wrong with existing flows for which a new one is no excuse: entries that lead to where
    /// nothing answers while a new flow arrives, or to what is no endpoint.
    pub fn compare(&mut self, existing: &[ExistingFlow]) {
        for flow in existing {
            let named = |finding: &&Finding| finding.code.code == codes::STALE_CONNTRACK.code;
            let mut found: Vec<Finding> =
                flow.answer.findings.iter().filter(named).cloned().collect();
            if found.is_empty() {
                found.extend(self.worse(flow));
            }
            for mut finding in found {
                // It is about none of the new flow's branches.
                finding.branches.clear();
                let same =
                    |own: &Finding| own.code == finding.code && own.evidence == finding.evidence;
                if !self.findings.iter().any(same) {
                    self.findings.push(finding);
                }
            }
        }
        self.findings
            .sort_by(|a, b| (a.severity, a.code.code).cmp(&(b.severity, b.code.code)));
    }

    /// An existing flow that is translated and does not arrive, while a new one does.
    fn worse(&self, flow: &ExistingFlow) -> Option<Finding> {
        let entry = &flow.entry;
        let lost = matches!(flow.answer.verdict, Verdict::Dropped | Verdict::Rejected);
        let translated = entry.reply.src != entry.orig.dst;
        if !lost || !translated || self.verdict != Verdict::Delivered {
            return None;
        }
        let ending = flow.answer.branches.first();
        let why = ending.map_or("", |branch| branch.way.why.as_str());
        Some(Finding {
            code: codes::STALE_CONNTRACK,
            title: format!(
                "a conntrack entry on {} leads to {}, from where no answer comes; a new flow is delivered",
                flow.place.node, entry.reply.src
            ),
            severity: Severity::Error,
            place: flow.place.clone(),
            evidence: vec![
                format!("conntrack: {}", super::conntrack::words(entry)),
                format!("its packets are {}: {why}", flow.answer.verdict.name()),
            ],
            mend: mend(&flow.place.node, entry),
            branches: Vec::new(),
        })
    }
}

/// The command that deletes entries like this one.
pub(super) fn mend(node: &str, entry: &ConntrackEntry) -> String {
    format!(
        "on {node}: conntrack -D -p {} --orig-dst {} --orig-port-dst {}",
        words::protocol(entry.orig.protocol),
        entry.orig.dst,
        entry.orig.dport.unwrap_or(0)
    )
}
