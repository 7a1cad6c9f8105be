//! The kernel as oracle: what the product predicts from a laboratory's kernels, beside what packet
//! sockets saw of a real exchange.
//!
//! The prediction is made by the code that the product ships: the helper's program reads in each node's
//! namespaces, `simulate` computes, wants are fetched until there are none.

mod compare;
mod select;
mod session;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use netpath::model::packet::{ICMP, ICMPV6};
use netpath::model::topology::{NodeHint, Topology};
use netpath::model::want::{Depth, NsTarget, Want};
use netpath::model::{NsKey, Prefix};
use netpath::simulate::{Flow, Limits, Outcome, Wants, simulate};

use crate::cluster::Cluster;

pub use compare::{Point, Turn, difference, observed, predicted};
pub use select::of_exchange;
pub use session::Session;

/// Rounds of asking after which a prediction is given up; the product needs two or three.
const ROUNDS: usize = 12;

/// Helpers in all nodes of a laboratory.
pub struct Oracle {
    sessions: BTreeMap<String, Session>,
    hints: BTreeMap<String, NodeHint>,
}

/// A prediction and what it was made from.
#[derive(Debug)]
pub struct Prediction {
    /// Facts.
    pub topology: Topology,
    /// Answer.
    pub outcome: Outcome,
    /// Round trips to the helpers, the first one included.
    pub rounds: usize,
}

impl Oracle {
    /// Starts a helper in each node of `cluster`.
    pub fn start(cluster: &Cluster) -> Result<Self> {
        let program = find_helper()?;
        let mut sessions = BTreeMap::new();
        let mut hints = BTreeMap::new();
        for (number, node) in (1..).zip(&cluster.state.nodes) {
            let place = cluster.node(&node.name)?;
            sessions.insert(node.name.clone(), Session::start(&place, &program)?);
            let plan = crate::address::NodePlan(number);
            let cidrs = crate::address::Family::BOTH.map(|family| plan.pod_cidr(family));
            let pods = cluster.state.pods.iter();
            let pod_ips = pods
                .filter(|pod| pod.node == node.name && !pod.host_network)
                .flat_map(|pod| pod.ips.iter().copied());
            hints.insert(
                node.name.clone(),
                NodeHint {
                    addresses: node.ips.clone(),
                    pod_cidrs: cidrs
                        .iter()
                        .map(|cidr| cidr.parse::<Prefix>())
                        .collect::<Result<_, _>>()
                        .context("parse pod CIDRs")?,
                    pod_ips: pod_ips.collect(),
                    reachable: true,
                },
            );
        }
        Ok(Self { sessions, hints })
    }

    /// Everything light of every namespace, as a first request would ask.
    pub fn read(&mut self, depth: Depth) -> Result<Topology> {
        let mut topology = Topology {
            hints: self.hints.clone(),
            ..Topology::default()
        };
        let want = Want::NetNs {
            target: NsTarget::All,
            depth,
        };
        for (node, session) in &mut self.sessions {
            for fact in session.collect(vec![want.clone()])? {
                topology.merge(node, fact);
            }
        }
        Ok(topology)
    }

    /// Predicts from the state of the kernels now.
    ///
    /// `from` is a node or NAMESPACE/POD of the laboratory.
    pub fn predict(
        &mut self,
        cluster: &Cluster,
        from: &str,
        protocol: u8,
        to: SocketAddr,
    ) -> Result<Prediction> {
        let mut topology = self.read(Depth::Likely)?;
        let flow = Flow {
            from: place_key(cluster, &topology, from)?,
            src: None,
            sport: None,
            dst: to.ip(),
            dport: (!matches!(protocol, ICMP | ICMPV6)).then_some(to.port()),
            protocol,
            len: 60,
            uid: Some(0),
            gid: Some(0),
            bound: None,
        };
        let mut asked = Wants::new();
        let mut rounds = 1;
        loop {
            let outcome = simulate(&topology, &flow, &Limits::default());
            let mut fresh = false;
            for (node, wants) in &outcome.wants {
                let known = asked.entry(node.clone()).or_default();
                let new: Vec<Want> = wants.difference(known).cloned().collect();
                if new.is_empty() {
                    continue;
                }
                known.extend(new.iter().cloned());
                let session = self
                    .sessions
                    .get_mut(node)
                    .context("a want for an unknown node")?;
                for fact in session.collect(new)? {
                    topology.merge(node, fact);
                }
                fresh = true;
            }
            if !fresh {
                return Ok(Prediction {
                    topology,
                    outcome,
                    rounds,
                });
            }
            rounds += 1;
            ensure!(
                rounds <= ROUNDS,
                "the simulation still wants after {ROUNDS} rounds"
            );
        }
    }
}

/// The namespace of a node or pod of the laboratory.
pub fn place_key(cluster: &Cluster, topology: &Topology, place: &str) -> Result<NsKey> {
    if !place.contains('/') {
        return topology
            .host(place)
            .with_context(|| format!("{place} was not read"));
    }
    let pod = cluster.pod_state(place)?;
    if pod.host_network {
        return topology
            .host(&pod.node)
            .with_context(|| format!("{} was not read", pod.node));
    }
    let node = topology
        .nodes
        .get(&pod.node)
        .context("the pod's node was not read")?;
    let ns = node
        .pod(&pod.uid)
        .with_context(|| format!("the helper found no namespace of {place}"))?;
    Ok(NsKey {
        node: pod.node.clone(),
        netns: ns.identity.id,
    })
}

/// The laboratory's name of a namespace.
pub fn place_name(cluster: &Cluster, topology: &Topology, key: &NsKey) -> Option<String> {
    let ns = topology.netns(key)?;
    if ns.identity.host {
        return Some(key.node.clone());
    }
    let uid = ns.identity.pod_uid.as_deref()?;
    let pod = cluster.state.pods.iter().find(|pod| pod.uid == uid)?;
    Some(format!("{}/{}", pod.namespace, pod.name))
}

fn find_helper() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("NETPATH_HELPER") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("find this program")?;
    let mut found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("netpath-helper"));
    let found = found.find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "find program netpath-helper near {}: build it with `cargo build -p netpath --bin netpath-helper --features capture`, or name it in NETPATH_HELPER",
            own.display()
        )
    })
}
