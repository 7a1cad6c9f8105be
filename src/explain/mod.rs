//! From traces to an answer for people: verdict, branches, findings with their mend, and what stayed
//! unknown.
//!
//! Nothing is decided here about packets: dispositions and evidence of the traces decide, names come
//! from [`naming`]. Read [`Explanation`] for the answer, [`steps`] for how decisions are put into
//! words, [`detect`] for which finding follows from which evidence, [`codes`] for all that exist.

mod check;
pub mod codes;
pub mod conntrack;
mod detect;
mod detect_place;
mod drift;
mod existing;
pub mod ipvs;
pub mod mtu;
pub mod naming;
pub mod observe;
pub mod owners;
pub mod steps;
mod unknown;
mod untold;
pub mod words;

use std::net::IpAddr;

use serde::Serialize;

pub use check::{Checkup, NodeCheck, check};
pub use codes::{Code, Severity};
pub use drift::Ask;
pub use existing::ExistingFlow;
pub use naming::{ChainNames, Naming};
pub use steps::StepView;

use crate::model::NsKey;
use crate::model::packet::Packet;
use crate::trace::{Disposition, Tap, Trace, Untold};

/// One end of the flow, as it was asked for and what it turned out to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct End {
    /// What was typed.
    pub typed: String,
    /// `pod`, `service`, `node`, `address`, `name`, `netns`, `pid` or `host`.
    pub kind: String,
    /// `shop/web-0`, `worker-1`, `net0`; none for addresses.
    pub name: Option<String>,
    /// Address, where there is one; the first of several.
    pub ip: Option<IpAddr>,
    /// Node it is on, where that is one.
    pub node: Option<String>,
}

/// One flow's traces. Most questions have one flow; a headless Service has one for each address.
#[derive(Clone, Debug)]
pub struct FlowTraces<'a> {
    /// Share of this flow among the question's, 0 to 1.
    pub share: f64,
    /// What the simulation gave.
    pub traces: &'a [Trace],
    /// Which of their refusals their senders do not hear of.
    pub untold: &'a [Untold],
}

/// All that an explanation is made of.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Sender.
    pub source: End,
    /// Destination.
    pub destination: End,
    /// IPPROTO_*
    pub protocol: u8,
    /// Destination port.
    pub port: Option<u16>,
    /// Source port, where it was fixed.
    pub source_port: Option<u16>,
    /// Bytes of the packet, IP header included.
    pub size: u32,
    /// Traces.
    pub flows: Vec<FlowTraces<'a>>,
    /// Names.
    pub naming: Naming<'a>,
    /// What the user should know about how the ends were chosen.
    pub notes: Vec<String>,
}

/// How it ends, all branches together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Every branch arrives, and its answer comes back.
    Delivered,
    /// Every branch is dropped, or its answer is.
    Dropped,
    /// Every branch is refused.
    Rejected,
    /// Every branch loops.
    Loop,
    /// No branch can be told.
    Inconclusive,
    /// Branches differ.
    Mixed,
}

impl Verdict {
    /// The word used in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Dropped => "dropped",
            Self::Rejected => "rejected",
            Self::Loop => "loop",
            Self::Inconclusive => "inconclusive",
            Self::Mixed => "mixed",
        }
    }

    /// The verdict for one way that ends like this.
    pub fn of(disposition: &Disposition) -> Self {
        match disposition {
            Disposition::Delivered | Disposition::LeavesCluster => Self::Delivered,
            Disposition::Dropped(_) => Self::Dropped,
            Disposition::Rejected(_) => Self::Rejected,
            Disposition::Loop => Self::Loop,
            Disposition::Inconclusive(_) => Self::Inconclusive,
        }
    }

    /// The verdict for a packet and its answer. Who refuses an answer tells him who answered: the
    /// sender of the packet hears nothing, as if the answer had been dropped.
    pub fn of_exchange(trace: &Trace) -> Self {
        match Self::of(trace.outcome()) {
            Self::Rejected if !matches!(trace.disposition, Disposition::Rejected(_)) => {
                Self::Dropped
            }
            verdict => verdict,
        }
    }
}

/// The answer.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// Sender.
    pub source: End,
    /// Destination.
    pub destination: End,
    /// IPPROTO_*
    pub protocol: u8,
    /// Destination port.
    pub port: Option<u16>,
    /// Source port, where it was fixed.
    pub source_port: Option<u16>,
    /// Bytes of the packet.
    pub size: u32,
    /// All branches together.
    pub verdict: Verdict,
    /// Ways, in the kernel's order of its choices.
    pub branches: Vec<Branch>,
    /// What is wrong, errors first.
    pub findings: Vec<Finding>,
    /// What could not be read or decoded, and where.
    pub unknown: Vec<String>,
    /// What is taken to be so without a kernel object that says it.
    pub assumed: Vec<String>,
    /// What the user should know about how the ends were chosen.
    pub notes: Vec<String>,
    /// What probes show of it, where some were sent.
    pub proof: Option<observe::Proof>,
}

impl Explanation {
    /// Adds findings, each behind those that matter as much.
    pub fn add(&mut self, findings: Vec<Finding>) {
        for finding in findings {
            let before = |own: &Finding| own.severity <= finding.severity;
            let at = self.findings.partition_point(before);
            self.findings.insert(at, finding);
        }
    }
}

/// One way that packets take.
#[derive(Clone, Debug)]
pub struct Branch {
    /// Share of packets, 0 to 1.
    pub probability: f64,
    /// How the exchange ends: as the answer ends, where the packet itself arrives.
    pub verdict: Verdict,
    /// It arrives, but elsewhere: translated to what was not asked for (no endpoint of the Service in question), or at
    /// another pod than the one with that address.
    pub diverted: bool,
    /// The way.
    pub way: Way,
}

/// The way of one packet.
#[derive(Clone, Debug)]
pub struct Way {
    /// How it ends.
    pub disposition: Disposition,
    /// Where it ends.
    pub end: Option<Place>,
    /// The step that ended it, in words.
    pub why: String,
    /// The packet as it was at the end, out of any tunnel and translated.
    pub packet: Packet,
    /// Who owns the address that it was last sent to: `pod shop/api-5d-x2`.
    pub to: Option<String>,
    /// Namespaces in order.
    pub hops: Vec<HopView>,
    /// The way of the answer.
    pub reply: Option<Box<Way>>,
}

impl Way {
    /// Whether the packet itself arrives.
    pub fn arrives(&self) -> bool {
        Verdict::of(&self.disposition) == Verdict::Delivered
    }
}

/// A place in the cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Place {
    /// Node.
    pub node: String,
    /// Namespace, as [`Naming::netns`] names it.
    pub netns: String,
    /// Device or other object there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
}

/// One namespace on the way.
#[derive(Clone, Debug)]
pub struct HopView {
    /// Identity.
    pub key: NsKey,
    /// Node.
    pub node: String,
    /// Namespace, as [`Naming::netns`] names it.
    pub netns: String,
    /// Device it came in by.
    pub iif: Option<String>,
    /// Device it left by.
    pub oif: Option<String>,
    /// The device it came in by with what else tells about it: `veth3fa2c1, port 4 of cni0`.
    pub iif_words: Option<String>,
    /// The device it left by, likewise.
    pub oif_words: Option<String>,
    /// The packet as it came in.
    pub packet: Packet,
    /// Decisions.
    pub steps: Vec<StepView>,
    /// Where a capture in this namespace sees it, in order.
    pub taps: Vec<Tap>,
}

/// Something wrong, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which kind.
    pub code: Code,
    /// What is wrong, in one line, with the objects of this case.
    pub title: String,
    /// How much it matters here.
    pub severity: Severity,
    /// Where.
    pub place: Place,
    /// The objects that show it, one line each.
    pub evidence: Vec<String>,
    /// What to do, with the names of this case.
    pub mend: String,
    /// Branches that it breaks, by position.
    pub branches: Vec<usize>,
}

impl Finding {
    /// Errors come first, and of each severity what causes others.
    fn rank(&self) -> (Severity, bool, &'static str) {
        (self.severity, !self.code.is_cause(), self.code.code)
    }
}

/// Puts traces into words and finds what is wrong.
pub fn explain(question: &Question<'_>) -> Explanation {
    let naming = &question.naming;
    let mut branches = Vec::new();
    let mut findings = Vec::new();
    for flow in &question.flows {
        for (at, trace) in flow.traces.iter().enumerate() {
            let index = branches.len();
            for finding in detect::of_trace(naming, trace) {
                add(&mut findings, finding, index);
            }
            let mut untold = flow.untold.iter().filter(|one| one.way == at);
            if let Some(finding) = untold.find_map(|one| untold::finding(naming, trace, one)) {
                add(&mut findings, finding, index);
            }
            branches.push(Branch {
                probability: flow.share * trace.probability,
                verdict: Verdict::of_exchange(trace),
                diverted: diverted(naming, trace),
                way: way(naming, trace),
            });
        }
    }
    let traces = || question.flows.iter().flat_map(|flow| flow.traces);
    for finding in detect_place::of_places(naming, traces()) {
        findings.push(finding);
    }
    findings.extend(drift::of_flow(naming, traces()));
    findings.sort_by_key(Finding::rank);
    let mut unknown = unknown::unknown(naming, traces());
    for why in question.flows.iter().flat_map(|flow| flow.untold) {
        if let Some(why) = untold::unknown(naming, why) {
            unknown::push(&mut unknown, why);
        }
    }
    Explanation {
        source: question.source.clone(),
        destination: question.destination.clone(),
        protocol: question.protocol,
        port: question.port,
        source_port: question.source_port,
        size: question.size,
        verdict: together(branches.iter().map(|branch| branch.verdict)),
        branches,
        findings,
        unknown,
        assumed: unknown::assumed(naming, traces()),
        notes: question.notes.clone(),
        proof: None,
    }
}

/// The same finding of several branches is one.
fn add(findings: &mut Vec<Finding>, mut finding: Finding, branch: usize) {
    let same = |other: &&mut Finding| {
        other.code == finding.code
            && other.place == finding.place
            && other.evidence == finding.evidence
    };
    if let Some(known) = findings.iter_mut().find(same) {
        if !known.branches.contains(&branch) {
            known.branches.push(branch);
        }
        return;
    }
    finding.branches = vec![branch];
    findings.push(finding);
}

fn diverted(naming: &Naming<'_>, trace: &Trace) -> bool {
    let Some(first) = trace.hops.first().map(|hop| &hop.packet) else {
        return false;
    };
    if detect_place::other_pod(naming, trace).is_some() {
        return true;
    }
    let last = trace.packet.innermost();
    if Verdict::of(&trace.disposition) != Verdict::Delivered
        || (first.dst, first.dport()) == (last.dst, last.dport())
    {
        return false;
    }
    let mut asked = naming.names.services.iter().filter(|service| {
        let mut ports = service.ports.iter();
        service.cluster_ips.contains(&first.dst)
            || service.external_ips.contains(&first.dst)
            || ports.any(|port| port.node_port.is_some() && port.node_port == first.dport())
    });
    !asked.any(|service| {
        service.endpoints_unread.is_some() || service.endpoints.iter().any(|e| e.ip == last.dst)
    })
}

fn together(mut verdicts: impl Iterator<Item = Verdict>) -> Verdict {
    let Some(first) = verdicts.next() else {
        return Verdict::Inconclusive;
    };
    if verdicts.all(|verdict| verdict == first) {
        first
    } else {
        Verdict::Mixed
    }
}

fn way(naming: &Naming<'_>, trace: &Trace) -> Way {
    let hops: Vec<HopView> = trace
        .hops
        .iter()
        .map(|hop| HopView {
            key: hop.ns.clone(),
            node: hop.ns.node.clone(),
            netns: naming.netns(&hop.ns),
            iif: hop.iif.clone(),
            oif: hop.oif.clone(),
            iif_words: hop.iif.as_ref().map(|dev| naming.device(&hop.ns, dev)),
            oif_words: hop.oif.as_ref().map(|dev| naming.device(&hop.ns, dev)),
            packet: hop.packet.clone(),
            steps: hop
                .steps
                .iter()
                .map(|step| steps::view(naming, hop, step))
                .collect(),
            taps: hop.taps.clone(),
        })
        .collect();
    let end = hops.last().map(|hop| Place {
        node: hop.node.clone(),
        netns: hop.netns.clone(),
        object: None,
    });
    let why = hops
        .iter()
        .rev()
        .find_map(|hop| hop.steps.last())
        .map(|step| step.words.clone())
        .unwrap_or_default();
    let packet = trace.packet.innermost().clone();
    let is_pod = |name: &str| name.starts_with("pod ");
    let to = match (naming.address(packet.dst), &end) {
        // Of several pods with one address, the one that took it.
        (Some(owner), Some(end))
            if trace.disposition == Disposition::Delivered
                && is_pod(&owner)
                && is_pod(&end.netns) =>
        {
            Some(end.netns.clone())
        }
        (owner, _) => owner,
    };
    Way {
        disposition: trace.disposition.clone(),
        end,
        why,
        packet,
        to,
        hops,
        reply: trace
            .reply
            .as_deref()
            .map(|reply| Box::new(way(naming, reply))),
    }
}

#[cfg(test)]
mod tests;
