//! Ways to break a cluster, by name; each can be undone.
//!
//! A fault acts on a node, a pod or a Service and has a default target, so that `fault on NAME`
//! breaks something that the default workload uses: traffic from node-1 to node-2.

mod listener;
mod network;

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::address::NodePlan;
use crate::cluster::Cluster;
use crate::command::ip_batch;
use crate::network::sysctl;

/// A kind of fault.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// On a node: policy DROP of FORWARD, and no rule of flannel's that accepts pod traffic.
    ForwardDrop,
    /// On a node: no route to the pod networks of the other nodes.
    MissingRoute,
    /// Of a pod: the host end of its veth is down.
    VethDown,
    /// Of a Service: no endpoints, in slices and rules.
    NoEndpoints,
    /// On a node: the FDB sends the other nodes' VTEP addresses to a host that does not exist.
    StaleFdb,
    /// On a node: strict reverse-path filter, and the way back to node-1 leaves by another interface.
    RpFilter,
    /// On a node: bridged packets bypass netfilter.
    BridgeNfOff,
    /// Of a pod: its listener has ended.
    ListenerGone,
    /// Of a pod: it listens on the loopback addresses only.
    ListenerLocalhost,
    /// On a node: wrong MAC addresses of the other nodes' tunnel ends (or of the nodes, when routed).
    StaleNeigh,
    /// On a node: it forwards no packets.
    IpForwardOff,
    /// Of a pod: its bridge port sends nothing back to where it came from.
    HairpinOff,
    /// Of a pod: the host end of its veth is no port of the bridge.
    PortGone,
    /// Of a pod: its node takes it to be at an address that nobody has.
    WrongNeigh,
}

/// What a fault acts on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TargetKind {
    /// A node, `node-2`.
    Node,
    /// A pod, `namespace/name`.
    Pod,
    /// A Service, `namespace/name`.
    Service,
}

/// A fault that is on.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ActiveFault {
    /// Which.
    pub fault: Fault,
    /// Node, pod (`namespace/name`) or Service (`namespace/name`) that it was applied to.
    pub target: String,
    /// What was done, in words.
    pub description: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_possible_value() {
            Some(value) => f.write_str(value.get_name()),
            None => write!(f, "{self:?}"),
        }
    }
}

impl Fault {
    /// What it acts on.
    pub fn target_kind(self) -> TargetKind {
        match self {
            Self::VethDown
            | Self::ListenerGone
            | Self::ListenerLocalhost
            | Self::HairpinOff
            | Self::PortGone
            | Self::WrongNeigh => TargetKind::Pod,
            Self::NoEndpoints => TargetKind::Service,
            _ => TargetKind::Node,
        }
    }

    /// Target when none is named.
    pub fn default_target(self) -> &'static str {
        match self {
            Self::ForwardDrop | Self::RpFilter => "node-2",
            Self::VethDown
            | Self::ListenerGone
            | Self::ListenerLocalhost
            | Self::PortGone
            | Self::WrongNeigh => "default/pod-b-2",
            Self::HairpinOff => "shop/web-0",
            Self::NoEndpoints => "shop/api",
            _ => "node-1",
        }
    }
}

impl Cluster {
    /// Switches `fault` on for `target`, or for its default target; the answer says what was done.
    pub fn fault_on(&mut self, fault: Fault, target: Option<&str>) -> Result<String> {
        let target = target.unwrap_or(fault.default_target()).to_owned();
        ensure!(
            !self
                .state
                .faults
                .iter()
                .any(|f| f.fault == fault && f.target == target),
            "switch {fault} on for {target}: it is on already"
        );
        let description = self
            .apply(fault, &target, true)
            .with_context(|| format!("switch {fault} on for {target}"))?;
        self.state.faults.push(ActiveFault {
            fault,
            target,
            description: description.clone(),
        });
        self.state.save()?;
        Ok(description)
    }

    /// Undoes what [`Cluster::fault_on`] did; the answer says what was done.
    pub fn fault_off(&mut self, fault: Fault, target: Option<&str>) -> Result<String> {
        let target = target.unwrap_or(fault.default_target()).to_owned();
        let Some(index) = self
            .state
            .faults
            .iter()
            .position(|f| f.fault == fault && f.target == target)
        else {
            bail!("switch {fault} off for {target}: it is not on");
        };
        let description = self
            .apply(fault, &target, false)
            .with_context(|| format!("switch {fault} off for {target}"))?;
        self.state.faults.remove(index);
        self.state.save()?;
        Ok(description)
    }

    fn apply(&mut self, fault: Fault, target: &str, on: bool) -> Result<String> {
        match fault {
            Fault::ForwardDrop => self.forward_drop(target, on),
            Fault::MissingRoute => self.missing_route(target, on),
            Fault::VethDown => {
                let veth = self.host_veth(target)?;
                let word = if on { "down" } else { "up" };
                self.on_node_of(target, || ip_batch(&[format!("link set {veth} {word}")]))?;
                Ok(format!(
                    "{veth}, the host end of {target}'s veth, is {word}"
                ))
            }
            Fault::NoEndpoints => self.no_endpoints(target, on),
            Fault::StaleFdb => self.stale_fdb(target, on),
            Fault::RpFilter => self.rp_filter(target, on),
            Fault::BridgeNfOff => {
                let value = if on { "0" } else { "1" };
                self.node(target)?.enter(|| {
                    sysctl("net/bridge/bridge-nf-call-iptables", value)?;
                    sysctl("net/bridge/bridge-nf-call-ip6tables", value)
                })?;
                Ok(format!(
                    "bridge-nf-call-iptables and -ip6tables are {value} on {target}"
                ))
            }
            Fault::ListenerGone => {
                if on {
                    self.stop_listener(target)?;
                    Ok(format!("the listener of {target} has ended"))
                } else {
                    self.start_listener(target, false)?;
                    Ok(format!("the listener of {target} runs again"))
                }
            }
            Fault::ListenerLocalhost => {
                self.stop_listener(target)?;
                self.start_listener(target, on)?;
                let place = if on {
                    "127.0.0.1 and ::1 only"
                } else {
                    "every address"
                };
                Ok(format!("{target} listens on {place}"))
            }
            Fault::StaleNeigh => self.stale_neigh(target, on),
            Fault::IpForwardOff => {
                let value = if on { "0" } else { "1" };
                self.node(target)?.enter(|| {
                    sysctl("net/ipv4/ip_forward", value)?;
                    sysctl("net/ipv6/conf/all/forwarding", value)
                })?;
                Ok(format!(
                    "ip_forward and IPv6 forwarding are {value} on {target}"
                ))
            }
            Fault::PortGone => {
                let veth = self.host_veth(target)?;
                let (word, said) = if on {
                    ("nomaster", "no port of cni0")
                } else {
                    ("master cni0", "a port of cni0")
                };
                self.on_node_of(target, || ip_batch(&[format!("link set {veth} {word}")]))?;
                Ok(format!(
                    "{veth}, the host end of {target}'s veth, is {said}"
                ))
            }
            Fault::WrongNeigh => self.wrong_neigh(target, on),
            Fault::HairpinOff => {
                let veth = self.host_veth(target)?;
                let word = if on { "off" } else { "on" };
                self.on_node_of(target, || {
                    ip_batch(&[format!("link set {veth} type bridge_slave hairpin {word}")])
                })?;
                Ok(format!(
                    "hairpin mode of {veth}, the bridge port of {target}, is {word}"
                ))
            }
        }
    }

    fn number(&self, node: &str) -> Result<usize> {
        self.state
            .nodes
            .iter()
            .position(|n| n.name == node)
            .map(|index| index + 1)
            .with_context(|| format!("no node {node}"))
    }

    fn peers(&self, number: usize) -> Vec<NodePlan> {
        (1..=self.state.nodes.len())
            .filter(|peer| *peer != number)
            .map(NodePlan)
            .collect()
    }

    fn host_veth(&self, pod: &str) -> Result<String> {
        self.pod_state(pod)?
            .host_veth
            .clone()
            .with_context(|| format!("{pod} is in the host network and has no veth"))
    }

    pub(super) fn on_node_of<T: Send>(
        &self,
        pod: &str,
        work: impl FnOnce() -> Result<T> + Send,
    ) -> Result<T> {
        self.node(&self.pod_state(pod)?.node)?.enter(work)
    }

    fn no_endpoints(&mut self, target: &str, on: bool) -> Result<String> {
        ensure!(
            self.state.spec.services.iter().any(|s| s.path() == target),
            "no Service {target}"
        );
        self.state.emptied_services.retain(|name| name != target);
        if on {
            self.state.emptied_services.push(target.to_owned());
        }
        self.reprogram()?;
        // Writing all rules put the policies of FORWARD back.
        let again: Vec<String> = self
            .state
            .faults
            .iter()
            .filter(|f| f.fault == Fault::ForwardDrop)
            .map(|f| f.target.clone())
            .collect();
        for node in again {
            self.forward_drop(&node, true)?;
        }
        Ok(if on {
            format!("no pod of {target} is ready; slices and rules say so")
        } else {
            format!("the pods of {target} are ready again")
        })
    }
}
