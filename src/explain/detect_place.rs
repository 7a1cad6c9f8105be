//! Findings about the places that a flow passes, whether or not it fails there.

use std::collections::BTreeSet;

use crate::model::NsKey;
use crate::model::netfilter::{Ruleset, Table};
use crate::model::netns::NetNs;
use crate::trace::Trace;

use super::codes::{self, Severity};
use super::naming::Naming;
use super::{Finding, Place};

/// Percentage of the conntrack table from which on it is worth a word.
const NEARLY_FULL: u64 = 90;

/// What is wrong with namespaces on the way.
pub(super) fn of_places<'a>(
    naming: &Naming<'_>,
    traces: impl Iterator<Item = &'a Trace>,
) -> Vec<Finding> {
    let mut places: BTreeSet<&NsKey> = BTreeSet::new();
    for trace in traces {
        let ways = std::iter::successors(Some(trace), |way| way.reply.as_deref());
        places.extend(ways.flat_map(|way| &way.hops).map(|hop| &hop.ns));
    }
    let mut findings = Vec::new();
    for key in places {
        let Some(ns) = naming.topology.netns(key) else {
            continue;
        };
        let place = || Place {
            node: key.node.clone(),
            netns: naming.netns(key),
            object: None,
        };
        findings.extend(two_backends(ns, place()));
        findings.extend(conntrack_full(ns, place()));
    }
    findings
}

fn rules(table: &Table) -> usize {
    let chains = table.chains.values();
    let known = chains.filter_map(|chain| Some((chain.rules.known()?, chain.sieved.as_ref())));
    known
        .map(|(rules, sieved)| {
            let left_out = sieved.map_or(0, |sieved| sieved.left_out);
            rules.len() + usize::try_from(left_out).unwrap_or(usize::MAX - rules.len())
        })
        .sum()
}

fn with_rules(ruleset: &Ruleset) -> Vec<(String, usize)> {
    let tables = ruleset.tables.iter();
    tables
        .map(|table| {
            (
                format!("{} {}", table.family.name(), table.name),
                rules(table),
            )
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Rules made by iptables in both backends: native nftables tables beside legacy ones are usual.
fn two_backends(ns: &NetNs, place: Place) -> Option<Finding> {
    const OF_IPTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
    let legacy = with_rules(ns.legacy.known()?);
    let nft: Vec<(String, usize)> = with_rules(ns.nft.known()?)
        .into_iter()
        .filter(|(name, _)| {
            let table = name.split_once(' ');
            table.is_some_and(|(family, table)| {
                matches!(family, "ip" | "ip6") && OF_IPTABLES.contains(&table)
            })
        })
        .collect();
    if legacy.is_empty() || nft.is_empty() {
        return None;
    }
    let list = |tables: &[(String, usize)]| {
        let words: Vec<String> = tables
            .iter()
            .map(|(name, count)| format!("{name} (rules read: {count})"))
            .collect();
        words.join(", ")
    };
    Some(Finding {
        code: codes::TWO_BACKENDS,
        severity: Severity::Warning,
        place,
        evidence: vec![
            format!("iptables-legacy: {}", list(&legacy)),
            format!("iptables-nft: {}", list(&nft)),
        ],
        mend: "let kubelet, kube-proxy and the CNI use one backend, then drain and reboot the node"
            .to_owned(),
        branches: Vec::new(),
    })
}

fn conntrack_full(ns: &NetNs, place: Place) -> Option<Finding> {
    let sysctls = ns.sysctls.known()?;
    let max = u64::from((*sysctls.nf_conntrack_max.known()?)?);
    let count = u64::from((*sysctls.nf_conntrack_count.known()?)?);
    if max == 0 || count * 100 < max * NEARLY_FULL {
        return None;
    }
    Some(Finding {
        code: codes::CONNTRACK_FULL,
        severity: if count >= max {
            Severity::Error
        } else {
            Severity::Warning
        },
        place,
        evidence: vec![format!(
            "sysctl net.netfilter.nf_conntrack_count = {count}, net.netfilter.nf_conntrack_max = {max}"
        )],
        mend: format!(
            "sysctl -w net.netfilter.nf_conntrack_max={}",
            max.saturating_mul(2)
        ),
        branches: Vec::new(),
    })
}
