//! What a trace has to say beside what packets can show: its verdict, and what is wrong where.

use crate::answer::Answer;
use crate::probe::Probe;

/// What a trace has to say beside what the packets show.
#[derive(Clone, Debug, Default)]
pub struct Expect {
    /// One of these.
    pub verdicts: Vec<&'static str>,
    /// Number of branches.
    pub branches: Option<usize>,
    /// Every finding, of which there is one at least, is on this node.
    pub node: Option<String>,
    /// One finding has this code.
    pub code: Option<&'static str>,
    /// An object that decided, as a part of a finding's evidence or place.
    pub object: Option<String>,
    /// What a probe has to say where it is not that the prediction is confirmed.
    pub probe: Option<&'static str>,
    /// Why the kernel of `node` says that it dropped the probe.
    pub dropped: Option<&'static str>,
}

impl Expect {
    /// Expects a verdict.
    pub fn verdict(verdict: &'static str) -> Self {
        Self {
            verdicts: vec![verdict],
            ..Self::default()
        }
    }

    /// Expects a verdict and findings on a node, one of which names an object.
    pub fn fault(verdict: &'static str, node: &str, object: &str) -> Self {
        Self {
            node: Some(node.to_owned()),
            object: Some(object.to_owned()),
            ..Self::verdict(verdict)
        }
    }

    /// Expects a finding of this code, too.
    pub fn code(mut self, code: &'static str) -> Self {
        self.code = Some(code);
        self
    }

    /// Expects another answer of a probe than that the prediction is confirmed.
    pub fn probe(mut self, result: &'static str) -> Self {
        self.probe = Some(result);
        self
    }

    /// Expects the kernel's own reason for the drop, too.
    pub fn dropped(mut self, reason: &'static str) -> Self {
        self.dropped = Some(reason);
        self
    }

    /// What of it a probe of what the answer predicts does not say; `None` if it says all.
    pub fn probe_lacks(&self, probe: &Probe, answer: &Answer) -> Option<String> {
        let result = self.probe.unwrap_or("confirmed");
        if let Some(lacks) = probe.lacks(result, &answer.branches) {
            return Some(lacks);
        }
        let reason = self.dropped?;
        let node = self.node.as_deref().unwrap_or_default();
        (!probe.was_dropped(node, reason)).then(|| {
            format!("the kernel of {node} does not say that it dropped the probe: {reason}; it says {:?}", probe.dropped)
        })
    }

    /// What of it the answer does not say; `None` if it says all.
    pub fn lacks(&self, answer: &Answer) -> Option<String> {
        if !self.verdicts.contains(&answer.verdict.as_str()) {
            let wanted = self.verdicts.join(" or ");
            return Some(format!("the trace says {}, not {wanted}", answer.verdict));
        }
        if let Some(wanted) = self.branches
            && answer.branches.len() != wanted
        {
            return Some(format!(
                "the trace has {} branches, not {wanted}",
                answer.branches.len()
            ));
        }
        if let Some(wanted) = &self.node {
            let elsewhere = answer.findings.iter().find(|one| one.place.node != *wanted);
            if let Some(other) = elsewhere {
                return Some(format!(
                    "{} is found on {}, not {wanted}",
                    other.code, other.place.node
                ));
            }
            if answer.findings.is_empty() {
                return Some(format!("nothing is found on {wanted}"));
            }
        }
        if let Some(wanted) = self.code
            && !answer.findings.iter().any(|one| one.code == wanted)
        {
            return Some(format!("{wanted} is not found"));
        }
        if let Some(wanted) = &self.object {
            let names = |text: &String| text.contains(wanted.as_str());
            let named = answer
                .findings
                .iter()
                .any(|one| one.evidence.iter().any(names) || one.place.object.iter().any(names));
            if !named {
                return Some(format!("no evidence names {wanted}"));
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Finding, Place};

    #[test]
    fn an_answer_that_lacks_what_is_expected_is_told() {
        let answer = |code: &str, node: &str| Answer {
            verdict: "dropped".to_owned(),
            branches: Vec::new(),
            findings: vec![Finding {
                code: code.to_owned(),
                title: String::new(),
                place: Place {
                    node: node.to_owned(),
                    netns: "host".to_owned(),
                    object: None,
                },
                evidence: vec!["chain FORWARD, policy drop".to_owned()],
            }],
            unknown: Vec::new(),
        };
        let expect = Expect::fault("dropped", "n2", "FORWARD").code("NP0101");
        let lacks = |expect: &Expect, code, node| expect.lacks(&answer(code, node));
        assert_eq!(lacks(&expect, "NP0101", "n2"), None);
        assert!(lacks(&expect, "NP0101", "n1").unwrap().contains("n1"));
        assert!(lacks(&expect, "NP0102", "n2").unwrap().contains("NP0101"));
        let other = Expect::fault("dropped", "n2", "OUTPUT");
        assert!(lacks(&other, "NP0101", "n2").unwrap().contains("OUTPUT"));
        let other = Expect::verdict("delivered");
        assert!(lacks(&other, "NP0101", "n2").unwrap().contains("dropped"));
    }
}
