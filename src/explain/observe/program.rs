//! A program at a device, of which the prediction could say no more than that it is there, and which a probe showed to
//! drop the packet.

use super::dropped::Loss;
use super::{End, Observed};
use crate::explain::{Finding, Naming, Place, Severity, codes};
use crate::model::NsKey;
use crate::model::link::Link;
use crate::model::topology::Topology;
use crate::trace::{Disposition, Trace};

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
    let turns = std::iter::successors(Some(trace), |trace| trace.reply.as_deref());
    let mut turns = turns.enumerate();
    let (turn, ended) =
        turns.find(|(_, trace)| matches!(trace.disposition, Disposition::Inconclusive(_)))?;
    let hop = ended.hops.last()?;
    let ns = topology.netns(&hop.ns)?;
    let mut here = losses
        .iter()
        .filter(|loss| loss.ns == hop.ns && loss.turn == turn);
    here.find_map(|loss| {
        let dev = loss.dev.as_deref()?;
        let at_end = hop.oif.as_deref() == Some(dev) || hop.iif.as_deref() == Some(dev);
        let link = ns.link_named(dev).filter(|_| at_end)?;
        Some(Culprit {
            ns: hop.ns.clone(),
            dev: dev.to_owned(),
            what: program(link, loss.why.name.as_deref()?)?,
        })
    })
}

/// The program at a device that drops for this reason (SKB_DROP_REASON_XDP, _TC_INGRESS, _TC_EGRESS), in words.
fn program(link: &Link, reason: &str) -> Option<String> {
    let at = |ingress: bool| {
        let all = link.tc.iter();
        let all = all.filter(|one| one.starts_with("ingress") == ingress || one.contains("netkit"));
        let all: Vec<&str> = all.map(String::as_str).collect();
        (!all.is_empty()).then(|| all.join(", "))
    };
    match reason {
        "XDP" => link.xdp.then(|| "an XDP program".to_owned()),
        "TC_INGRESS" => at(true),
        "TC_EGRESS" => at(false),
        _ => None,
    }
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
