//! Who is outside of the cluster does not answer, and was asked by a pod's own address.

use super::super::codes::{self, Severity};
use super::super::naming::Naming;
use super::super::words;
use super::super::{Branch, Finding, Place};
use super::{Agreement, End, Observed};
use crate::model::packet::UDP;
use crate::trace::{Disposition, Evidence};

/// The finding that follows where a probe left the cluster as predicted, with a pod's address, and nobody answered.
pub fn finding(observed: &Observed, branches: &[Branch], naming: &Naming<'_>) -> Option<Finding> {
    let way = &branches.get(observed.branch)?.way;
    let left = way.disposition == Disposition::LeavesCluster
        && observed.agreement == Agreement::Confirmed
        && observed.end == End::Unanswered;
    // Programs of UDP need not answer.
    if !left || way.packet.protocol() == UDP {
        return None;
    }
    let src = way.packet.src;
    let pod = naming.names.pod_by_ip(src)?;
    let hop = way.hops.last()?;
    let steps = hop.steps.iter().flat_map(|step| &step.evidence);
    let assumed = steps.filter_map(|one| match one {
        Evidence::Assumed { why } => Some(naming.text(why)),
        _ => None,
    });
    let mut evidence = vec![format!(
        "the probe left {} as predicted, from {src}, and no answer came back to it",
        hop.node
    )];
    evidence.extend(assumed);
    let tables = if src.is_ipv4() {
        "iptables"
    } else {
        "ip6tables"
    };
    let list =
        format!("nft list ruleset | grep -w masquerade; {tables}-save -t nat | grep MASQUERADE");
    Some(Finding {
        code: codes::UNMASQUERADED,
        title: format!(
            "{} has no answer to {src}, the own address of pod {}/{}, with which the packet leaves {}",
            words::socket_addr(way.packet.dst, way.packet.dport()),
            pod.namespace,
            pod.name,
            hop.node
        ),
        severity: Severity::Warning,
        place: Place {
            node: hop.node.clone(),
            netns: hop.netns.clone(),
            object: hop.oif.clone(),
        },
        evidence,
        mend: format!(
            "where pods' addresses are not known outside, masquerade what leaves the cluster (the CNI's ipMasq, flannel's --ip-masq, Calico's natOutgoing, ip-masq-agent); on {} this lists the rules that do so: {list}; else see whether routers outside have a route to {src}, and whether {} is up",
            hop.node, way.packet.dst
        ),
        branches: vec![observed.branch],
    })
}
