//! What the two ends turned out to be: the answer of this room.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::objects::{Endpoint, NodeInfo, PodInfo, ServiceInfo, ServicePort};
use super::parse::Protocol;

/// Address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Family of an address.
    pub fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// `IPv4` or `IPv6`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

/// Where the packet starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Source {
    /// A process in a pod.
    Pod {
        /// The pod, running and on a node.
        pod: PodInfo,
    },
    /// A process of the node itself.
    Node {
        /// The node.
        node: NodeInfo,
    },
    /// An address that no pod and no node owns: the packet comes from outside.
    Address {
        /// The address.
        ip: IpAddr,
    },
}

impl Source {
    /// Node whose helper sees the first hop; `None` for an address outside the cluster.
    pub fn node(&self) -> Option<&str> {
        match self {
            Self::Pod { pod } => pod.node.as_deref(),
            Self::Node { node } => Some(&node.name),
            Self::Address { .. } => None,
        }
    }

    /// Addresses it can send from, primary first. The kernel of a node picks one by its routes.
    pub fn ips(&self) -> Vec<IpAddr> {
        match self {
            Self::Pod { pod } if pod.ips.is_empty() => pod.host_ips.clone(),
            Self::Pod { pod } => pod.ips.clone(),
            Self::Node { node } => node.ips.clone(),
            Self::Address { ip } => vec![*ip],
        }
    }

    /// `pod shop/web-0`, `node worker-1` or the address.
    pub fn describe(&self) -> String {
        match self {
            Self::Pod { pod } => format!("pod {}", pod.path()),
            Self::Node { node } => format!("node {}", node.name),
            Self::Address { ip } => ip.to_string(),
        }
    }
}

/// By which of its addresses a Service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Entry {
    /// `spec.clusterIPs`.
    ClusterIp,
    /// No address of its own: DNS gives those of its pods.
    Headless,
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress`.
    LoadBalancer,
    /// A node's address and `nodePort`.
    NodePort,
}

/// A Service as destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEnd {
    /// The Service.
    pub service: ServiceInfo,
    /// The port chosen; `None` for ICMP.
    pub port: Option<ServicePort>,
    /// By which address it is reached.
    pub entry: Entry,
    /// Endpoints of that port (of all ports for ICMP), ready or not.
    pub endpoints: Vec<Endpoint>,
}

impl ServiceEnd {
    /// Endpoints that get traffic: ready ones, else those that still serve while terminating.
    pub fn usable(&self) -> Vec<&Endpoint> {
        let ready: Vec<&Endpoint> = self.endpoints.iter().filter(|e| e.ready).collect();
        if ready.is_empty() {
            self.endpoints
                .iter()
                .filter(|e| e.serving && e.terminating)
                .collect()
        } else {
            ready
        }
    }
}

/// Where the packet is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub enum Destination {
    /// A Service, by one of its own addresses or headless.
    Service(ServiceEnd),
    /// A pod's own address.
    Pod {
        /// The pod.
        pod: PodInfo,
    },
    /// A node's own address; behind a node port stands a Service.
    Node {
        /// The node.
        node: NodeInfo,
        /// The Service whose `nodePort` was typed.
        service: Option<ServiceEnd>,
    },
    /// An address that nothing in the cluster owns.
    Address {
        /// The address.
        ip: IpAddr,
        /// The node whose pod range it is in: who is asked whether anybody there has it.
        node: Option<String>,
    },
    /// A host name outside the cluster (a URL's, or a Service of type ExternalName), to be looked up.
    Name {
        /// DNS name.
        host: String,
        /// Port, host order; `None` for ICMP.
        port: Option<u16>,
        /// `namespace/name` of the ExternalName Service, if one gave the name.
        service: Option<String>,
    },
}

impl Destination {
    /// `svc shop/api`, `pod shop/web-0`, `node worker-1`, the address or the host name.
    pub fn describe(&self) -> String {
        match self {
            Self::Service(end) => format!("svc {}", end.service.path()),
            Self::Pod { pod } => format!("pod {}", pod.path()),
            Self::Node { node, .. } => format!("node {}", node.name),
            Self::Address { ip, .. } => ip.to_string(),
            Self::Name { host, .. } => host.clone(),
        }
    }

    /// The Service in play, if any.
    pub fn service(&self) -> Option<&ServiceEnd> {
        match self {
            Self::Service(end)
            | Self::Node {
                service: Some(end), ..
            } => Some(end),
            _ => None,
        }
    }
}

/// One packet to trace. A headless Service gives one for each of its pods.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Source address: the pod's, or the node's primary one, of which the kernel may choose another.
    pub source: IpAddr,
    /// Destination address as the sender writes it, before any translation.
    pub destination: IpAddr,
    /// Destination port, host order; `None` for ICMP.
    pub port: Option<u16>,
    /// Chance that a client picks this flow: 1, or 1/n among a headless Service's addresses.
    pub probability: f64,
}

/// Everything that was found out about the two ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Resolved {
    /// Where it starts.
    pub source: Source,
    /// Where it goes.
    pub destination: Destination,
    /// Transport.
    pub protocol: Protocol,
    /// Source port, where one was typed.
    pub source_port: Option<u16>,
    /// Flows to trace; empty only while a [`Destination::Name`] waits to be looked up.
    pub flows: Vec<Flow>,
    /// What the user should know about the choice, one sentence each.
    pub notes: Vec<String>,
}

impl Resolved {
    /// Nodes whose kernels take part: those of the source, of the destination and of every endpoint.
    pub fn nodes(&self) -> BTreeSet<String> {
        let mut nodes: BTreeSet<String> =
            self.source.node().map(str::to_owned).into_iter().collect();
        match &self.destination {
            Destination::Pod { pod } => nodes.extend(pod.node.clone()),
            Destination::Node { node, .. } => {
                nodes.insert(node.name.clone());
            }
            Destination::Address { node, .. } => nodes.extend(node.clone()),
            _ => {}
        }
        if let Some(end) = self.destination.service() {
            nodes.extend(end.usable().into_iter().filter_map(|e| e.node.clone()));
        }
        nodes
    }
}
