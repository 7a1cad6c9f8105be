//! Drift: what kube-proxy should have written on a node, from the Services and EndpointSlices as that
//! node sees them, against what the node's rules lead to.
//!
//! [`expect`] says which endpoints each port of a Service has from a node. Two comparisons follow. [`answers`] sends
//! packets of each kind of [`sender`] past the node and looks where they end ([`way`]): that finds whatever breaks a
//! Service. [`proxy`] finds the sets of rules that a kube-proxy has written (mode iptables in both backends, nftables,
//! ipvs), [`leads`] where they lead, [`compare`] what differs: that finds what no packet shows, and names the chain.
//! What can't be read is said and never taken for agreement.

mod answers;
mod compare;
mod expect;
mod ipvs;
mod leads;
mod proxy;
mod rule;
mod sender;
mod way;

use std::collections::{BTreeMap, BTreeSet};

use crate::model::NsKey;
use crate::model::names::{ServiceName, ServicePort};
use crate::model::netns::NetNs;
use crate::trace::{Arrival, Passage, Trace};

use super::naming::Naming;
use super::{Finding, Severity, words};
use answers::{Answers, Told};
use compare::Comparison;
use expect::{Expected, Portal, Skipped, expected};
use proxy::{Kind, Proxy, proxies};

/// Sends a packet past a node, and gives the ways that it may take there.
pub type Ask<'a> = dyn FnMut(&Arrival) -> Vec<Passage> + 'a;

/// Differences of a set of rules that nobody keeps up to date, which are told one by one.
const TOLD: usize = 5;

/// What was compared on a node, and what differs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDrift {
    /// Sets of rules of a kube-proxy that are there: `nftables ip`, `iptables-nft ip6`.
    pub proxies: Vec<String>,
    /// Ports of Services that were compared, each once for a family and set of rules.
    pub ports: usize,
    /// What differs.
    pub findings: Vec<Finding>,
    /// What could not be compared, and why.
    pub unknown: Vec<String>,
}

/// Compares all Services with the rules in a node's own namespace, which were read whole.
pub(super) fn of_node(
    naming: &Naming<'_>,
    key: &NsKey,
    ns: &NetNs,
    ask: &mut Ask<'_>,
) -> NodeDrift {
    let node = &key.node;
    let names = naming.names;
    let mut drift = NodeDrift::default();
    if names.services.is_empty() {
        drift.unknown.push(format!(
            "no Services are known: what kube-proxy should have written on {node} can't be told"
        ));
        return drift;
    }
    for (what, why) in [
        ("nf_tables", ns.nft.missing()),
        ("legacy x_tables", ns.legacy.missing()),
    ] {
        if let Some(why) = why {
            let line = format!("{what} rules on {node} could not be read: {why}");
            drift.unknown.push(line);
        }
    }
    let found = proxies(ns);
    let known = names.nodes.iter().find(|known| known.name == *node);
    let listed = services_listed(naming);
    if !listed {
        drift.unknown.push(format!(
            "not all Services could be listed: rules on {node} of those that are gone can't be told from others"
        ));
    }
    let mut unexpected = BTreeSet::new();
    for v6 in [false, true] {
        let of_family: Vec<&Proxy<'_>> = found.iter().filter(|proxy| proxy.v6 == v6).collect();
        let mut ports: Vec<Expected<'_>> = Vec::new();
        let mut portals: BTreeSet<Portal> = BTreeSet::new();
        for service in &names.services {
            match expected(service, node, known, v6) {
                Ok(own) => ports.extend(own),
                Err(Skipped::Rightly) => {}
                Err(Skipped::Unknown(_)) if of_family.is_empty() => {}
                Err(Skipped::Unknown(why)) => {
                    portals.extend(all_portals(service));
                    unexpected.insert((why, format!("{}/{}", service.namespace, service.name)));
                }
            }
        }
        if of_family.is_empty() {
            if ports.iter().any(|port| !port.cluster.must.is_empty()) {
                let family = if v6 { "IPv6" } else { "IPv4" };
                drift.unknown.push(format!(
                    "no {family} rules of a kube-proxy were found on {node}: either another program serves its Services, whose rules can't be compared, or kube-proxy has written none"
                ));
            }
            continue;
        }
        let all = ports.iter().flat_map(|port| &port.portals);
        portals.extend(all.map(|(portal, _)| *portal));
        drift.ports += ports.len().saturating_mul(of_family.len());
        let mut asked = Vec::new();
        let mut told = BTreeMap::new();
        // Mode ipvs is compared by its servers alone.
        let readable = ns.nft.missing().is_none() && ns.legacy.missing().is_none();
        if readable && of_family.iter().all(|proxy| proxy.kind != Kind::Ipvs) {
            let mut answers = Answers::new(naming, (key, ns), (&of_family, v6), &mut *ask);
            for port in &ports {
                answers.port(port);
            }
            told = answers.finish(&mut asked, &mut drift.unknown);
        }
        let mut sets = Vec::new();
        for proxy in &of_family {
            let mut comparison = Comparison::new(naming, key, proxy, true);
            comparison.told(told.clone());
            for port in &ports {
                comparison.port(port, None);
            }
            if listed {
                comparison.stale(&portals);
            }
            if told.values().all(|told| *told == Told::Unknown) {
                comparison.unhooked();
            }
            let mut differs = Vec::new();
            comparison.finish(&mut differs, &mut drift.unknown);
            sets.push((words_of(proxy), differs));
        }
        let several = compare::two_sets(naming, key, &found, v6);
        drift.findings.extend(together(several, sets, &asked));
        drift.findings.extend(asked);
    }
    for (why, service) in unexpected {
        drift.unknown.push(format!("{service} on {node}: {why}"));
    }
    drift.proxies = found.iter().map(words_of).collect();
    drift
}

/// Where several sets of rules act, the one that agrees best is the one that is kept up to date; what differs in
/// the others follows from their being there.
fn together(
    several: Option<Finding>,
    mut sets: Vec<(String, Vec<Finding>)>,
    asked: &[Finding],
) -> Vec<Finding> {
    let Some(mut cause) = several else {
        return sets.into_iter().flat_map(|(_, differs)| differs).collect();
    };
    let weight =
        |differs: &[Finding]| -> usize { differs.iter().map(|own| own.evidence.len()).sum() };
    sets.sort_by_key(|(_, differs)| weight(differs));
    let mut sets = sets.into_iter();
    let kept = sets.next().map(|(_, differs)| differs).unwrap_or_default();
    for (set, differs) in sets {
        let more = differs.len().saturating_sub(TOLD);
        for own in differs.into_iter().take(TOLD) {
            cause.evidence.push(format!("{set}: {}", own.title));
        }
        if more > 0 {
            cause
                .evidence
                .push(format!("{set}: and {more} more that differ"));
        }
    }
    if asked.iter().any(|own| own.severity == Severity::Error) {
        cause.severity = Severity::Error;
    }
    std::iter::once(cause).chain(kept).collect()
}

/// Compares what a flow asks for with the rules that its packets met, as far as these were read.
pub(super) fn of_flow<'a>(
    naming: &Naming<'_>,
    traces: impl Iterator<Item = &'a Trace>,
) -> Vec<Finding> {
    let names = naming.names;
    let mut findings = Vec::new();
    if names.services.is_empty() {
        return findings;
    }
    let mut asked: BTreeSet<(&NsKey, Portal)> = BTreeSet::new();
    for trace in traces {
        let Some(first) = trace.hops.first().map(|hop| &hop.packet) else {
            continue;
        };
        let Some(port) = first.dport() else { continue };
        for hop in &trace.hops {
            let packet = &hop.packet;
            if (packet.dst, packet.dport()) != (first.dst, Some(port)) {
                continue;
            }
            let portal = |addr| Portal {
                addr,
                protocol: packet.protocol(),
                port,
            };
            let node = names.nodes.iter().find(|node| node.name == hop.ns.node);
            let own = node.is_some_and(|node| node.addresses.contains(&packet.dst));
            asked.insert((&hop.ns, portal((!own).then_some(packet.dst))));
        }
    }
    for (key, portal) in asked {
        let host = naming.topology.netns(key).filter(|ns| ns.identity.host);
        let Some(ns) = host else { continue };
        let v6s = portal
            .addr
            .map_or(vec![false, true], |addr| vec![addr.is_ipv6()]);
        let found = proxies(ns);
        for v6 in v6s {
            findings.extend(of_portal(naming, key, &found, portal, v6));
            findings.extend(compare::two_sets(naming, key, &found, v6));
        }
    }
    findings
}

fn of_portal(
    naming: &Naming<'_>,
    key: &NsKey,
    found: &[Proxy<'_>],
    portal: Portal,
    v6: bool,
) -> Vec<Finding> {
    let names = naming.names;
    let known = names.nodes.iter().find(|known| known.name == key.node);
    let mut findings = Vec::new();
    let mut unknown = Vec::new();
    for proxy in found.iter().filter(|proxy| proxy.v6 == v6) {
        let mut comparison = Comparison::new(naming, key, proxy, false);
        let mut owned = false;
        for service in &names.services {
            if !all_portals(service).any(|own| own == portal) {
                continue;
            }
            owned = true;
            let Ok(ports) = expected(service, &key.node, known, v6) else {
                continue;
            };
            for port in &ports {
                comparison.port(port, Some(portal));
            }
        }
        if !owned && services_listed(naming) {
            comparison.gone(portal);
        }
        comparison.finish(&mut findings, &mut unknown);
    }
    findings
}

/// Every address and port that a Service has, whether or not a proxy has to do anything for it.
fn all_portals(service: &ServiceName) -> impl Iterator<Item = Portal> {
    service.ports.iter().flat_map(|port| {
        let portal = |addr, number| Portal {
            addr,
            protocol: port.protocol,
            port: number,
        };
        let ips = service.cluster_ips.iter().chain(&service.external_ips);
        let by_ip = ips.map(move |ip| portal(Some(*ip), port.port));
        by_ip.chain(port.node_port.map(|number| portal(None, number)))
    })
}

/// Whether a Service that is not known does not exist.
fn services_listed(naming: &Naming<'_>) -> bool {
    let unlisted = &naming.topology.unlisted;
    !unlisted.iter().any(|line| line.starts_with("services "))
}

/// kube-proxy's `ServicePortName`: `ns/name:port`, without the port where it has no name.
fn port_name(service: &ServiceName, port: &ServicePort) -> String {
    if port.name.is_empty() {
        format!("{}/{}", service.namespace, service.name)
    } else {
        format!("{}/{}:{}", service.namespace, service.name, port.name)
    }
}

fn words_of(proxy: &Proxy<'_>) -> String {
    let family = if proxy.v6 { "IPv6" } else { "IPv4" };
    format!("{} {family}", proxy.kind.name())
}

#[cfg(test)]
mod tests;
