//! A program at a device, of which the prediction could say no more than that it is there, and which a probe showed to
//! drop the packet.

use super::dropped::Loss;
use super::{End, Observed};
use crate::explain::{Finding, Naming, Place, Severity, codes};
use crate::model::NsKey;
use crate::model::link::Link;
use crate::model::topology::Topology;
use crate::trace::{Disposition, Trace};

/// Reasons that kernels give for what programs drop: `SKB_DROP_REASON_TC_INGRESS`, `_TC_EGRESS`, `_XDP`.
const REASONS: [&str; 3] = ["TC_INGRESS", "TC_EGRESS", "XDP"];

/// The program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Culprit {
    /// Namespace of its device.
    pub ns: NsKey,
    /// The device.
    pub dev: String,
    /// What it is: `an XDP program`, `ingress bpf NAME`.
    pub what: String,
}

/// The program that the packet was lost at: the prediction ends there, and the kernel says so.
pub fn culprit(
    observed: &Observed,
    trace: &Trace,
    losses: &[Loss],
    topology: &Topology,
) -> Option<Culprit> {
    if observed.end != End::Lost {
        return None;
    }
    let mut turns = std::iter::successors(Some(trace), |trace| trace.reply.as_deref());
    let ended = turns.find(|trace| matches!(trace.disposition, Disposition::Inconclusive(_)))?;
    let hop = ended.hops.last()?;
    let ns = topology.netns(&hop.ns)?;
    let told = |dev: &str, reasons: &[&str]| {
        let here = losses.iter().filter(|loss| loss.ns == hop.ns);
        let mut here = here.filter(|loss| loss.dev.as_deref().is_none_or(|own| own == dev));
        here.any(|loss| {
            let name = loss.why.name.as_deref();
            name.is_some_and(|name| reasons.contains(&name))
        })
    };
    let devices = hop.oif.iter().chain(&hop.iif);
    devices
        .filter_map(|name| ns.link_named(name))
        .find_map(|link| {
            let what = program(link)?;
            told(&link.name, &REASONS).then(|| Culprit {
                ns: hop.ns.clone(),
                dev: link.name.clone(),
                what,
            })
        })
}

/// What stands at a device, in words.
fn program(link: &Link) -> Option<String> {
    if link.xdp {
        return Some("an XDP program".to_owned());
    }
    (!link.tc.is_empty()).then(|| link.tc.join(", "))
}

/// What is said of it. `told`: what the kernel and counters say.
pub fn finding(culprit: &Culprit, branch: usize, told: &[String], naming: &Naming<'_>) -> Finding {
    let Culprit { ns, dev, what } = culprit;
    let mut evidence = vec![format!(
        "{dev} has {what}; the probe came as far as that, and no further"
    )];
    evidence.extend(told.iter().cloned());
    let show = if what.contains("XDP") {
        format!("ip -d link show dev {dev}")
    } else {
        format!(
            "bpftool net show dev {dev}; tc filter show dev {dev} ingress; tc filter show dev {dev} egress"
        )
    };
    Finding {
        code: codes::PROGRAM_DROPS,
        title: format!("the program at {dev} drops the packet"),
        severity: Severity::Error,
        place: Place {
            node: ns.node.clone(),
            netns: naming.netns(ns),
            object: Some(dev.clone()),
        },
        evidence,
        mend: format!(
            "ask who put it there what it is to let through (Cilium, Calico's eBPF data plane, a firewall or policy agent: their own tools tell why); it shows by {}",
            naming.typed(ns, &show)
        ),
        branches: vec![branch],
    }
}
