//! Faults that are visible without a flow, node by node.
//!
//! Each kind of fault is a function from what was read of a node to findings: drift of kube-proxy's
//! rules, and what [`super::detect_place`] says of any place on a way.

use super::naming::Naming;
use super::{Ask, Finding, detect_place, drift};

/// What is wrong with some nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checkup {
    /// Nodes that were looked at, in the order they were named.
    pub nodes: Vec<NodeCheck>,
    /// What is wrong, errors first.
    pub findings: Vec<Finding>,
    /// What could not be read or compared, and where.
    pub unknown: Vec<String>,
}

/// What was looked at on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeCheck {
    /// Name.
    pub node: String,
    /// Sets of rules of a kube-proxy that are there: `nftables IPv4`, `iptables-legacy IPv6`.
    pub proxies: Vec<String>,
    /// Ports of Services that were compared with these, each once for a set.
    pub ports: usize,
    /// Findings there.
    pub findings: usize,
    /// What could not be read or compared there.
    pub unknown: usize,
}

/// Looks at nodes whose own namespaces were read whole. `ask` sends a packet past a node, as
/// `simulate::Prepared::pass` does.
pub fn check(naming: &Naming<'_>, nodes: &[String], ask: &mut Ask<'_>) -> Checkup {
    let mut checkup = Checkup::default();
    for node in nodes {
        let host = naming.topology.host(node);
        let read = host.and_then(|key| {
            let ns = naming.topology.netns(&key)?;
            Some((
                drift::of_node(naming, &key, ns, ask),
                detect_place::of_netns(naming, &key, ns),
            ))
        });
        let Some((mut drift, of_place)) = read else {
            let line = format!("nothing was read of the own network namespace of node {node}");
            checkup.unknown.push(line);
            checkup.nodes.push(NodeCheck {
                node: node.clone(),
                proxies: Vec::new(),
                ports: 0,
                findings: 0,
                unknown: 1,
            });
            continue;
        };
        drift.findings.extend(of_place);
        checkup.nodes.push(NodeCheck {
            node: node.clone(),
            proxies: drift.proxies,
            ports: drift.ports,
            findings: drift.findings.len(),
            unknown: drift.unknown.len(),
        });
        checkup.findings.extend(drift.findings);
        checkup.unknown.extend(drift.unknown);
    }
    checkup.findings.sort_by_key(Finding::rank);
    checkup
}
