//! Which Kubernetes object an address, a port or a node belongs to: names for the output.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::objects::ClusterView;
use super::parse::{ObjectKind, Protocol};

/// An object by kind and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectName {
    /// Pod, Service or Node here.
    pub kind: ObjectKind,
    /// `None` for nodes.
    pub namespace: Option<String>,
    /// `metadata.name`.
    pub name: String,
}

impl std::fmt::Display for ObjectName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// A pod as one finds it on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// The uid that its cgroups carry.
    pub cgroup_uid: String,
    /// Container ids without the runtime's prefix.
    pub container_ids: Vec<String>,
    /// `status.podIPs`.
    pub ips: Vec<IpAddr>,
    /// Lives in the node's network namespace.
    pub host_network: bool,
}

/// What is known of one node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeNames {
    /// Its own addresses.
    pub ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<String>,
    /// Topology zone.
    pub zone: Option<String>,
    /// Running pods on it.
    pub pods: Vec<PodName>,
}

/// One port of a Service by which kernel rules can be named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePortName {
    /// Namespace of the Service.
    pub namespace: String,
    /// Name of the Service.
    pub name: String,
    /// Port name; `None` where the Service has one unnamed port.
    pub port_name: Option<String>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port, host order.
    pub port: u16,
    /// Node port, if any.
    pub node_port: Option<u16>,
    /// Cluster, external and load balancer addresses.
    pub ips: Vec<IpAddr>,
}

impl ServicePortName {
    /// kube-proxy's `ServicePortName`: `ns/name:portname`, or `ns/name` for an unnamed port.
    pub fn proxy_name(&self) -> String {
        match &self.port_name {
            Some(port) => format!("{}/{}:{port}", self.namespace, self.name),
            None => format!("{}/{}", self.namespace, self.name),
        }
    }
}

/// Names for everything that a trace can meet. Built from a [`ClusterView`]; plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterNames {
    /// Owners of each address, best first: a Service, a node, then pods (a finished pod's address is
    /// left out, since another may have it by now).
    pub by_ip: BTreeMap<IpAddr, Vec<ObjectName>>,
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeNames>,
    /// Every port of every Service.
    pub service_ports: Vec<ServicePortName>,
}

impl ClusterNames {
    /// Indexes a view.
    pub fn of(view: &ClusterView) -> Self {
        let mut names = Self::default();
        for service in &view.services {
            let object = ObjectName {
                kind: ObjectKind::Service,
                namespace: Some(service.namespace.clone()),
                name: service.name.clone(),
            };
            let ips: Vec<IpAddr> = [
                &service.cluster_ips,
                &service.external_ips,
                &service.load_balancer_ips,
            ]
            .into_iter()
            .flatten()
            .copied()
            .collect();
            for ip in &ips {
                names.by_ip.entry(*ip).or_default().push(object.clone());
            }
            for port in &service.ports {
                names.service_ports.push(ServicePortName {
                    namespace: service.namespace.clone(),
                    name: service.name.clone(),
                    port_name: port.name.clone(),
                    protocol: port.protocol,
                    port: port.port,
                    node_port: port.node_port,
                    ips: ips.clone(),
                });
            }
        }
        for node in &view.nodes {
            let object = ObjectName {
                kind: ObjectKind::Node,
                namespace: None,
                name: node.name.clone(),
            };
            for ip in &node.ips {
                names.by_ip.entry(*ip).or_default().push(object.clone());
            }
            let entry = names.nodes.entry(node.name.clone()).or_default();
            entry.ips.clone_from(&node.ips);
            entry.pod_cidrs.clone_from(&node.pod_cidrs);
            entry.zone.clone_from(&node.zone);
        }
        for pod in &view.pods {
            if matches!(pod.phase.as_str(), "Succeeded" | "Failed") {
                continue;
            }
            let object = ObjectName {
                kind: ObjectKind::Pod,
                namespace: Some(pod.namespace.clone()),
                name: pod.name.clone(),
            };
            for ip in &pod.ips {
                names.by_ip.entry(*ip).or_default().push(object.clone());
            }
            if let Some(node) = &pod.node {
                let entry = names.nodes.entry(node.clone()).or_default();
                if entry.ips.is_empty() {
                    entry.ips.clone_from(&pod.host_ips);
                }
                entry.pods.push(PodName {
                    namespace: pod.namespace.clone(),
                    name: pod.name.clone(),
                    uid: pod.uid.clone(),
                    cgroup_uid: pod.cgroup_uid.clone(),
                    container_ids: pod.containers.iter().filter_map(|c| c.id.clone()).collect(),
                    ips: pod.ips.clone(),
                    host_network: pod.host_network,
                });
            }
        }
        names
    }

    /// The best name of an address.
    pub fn of_ip(&self, ip: IpAddr) -> Option<&ObjectName> {
        self.by_ip.get(&ip)?.first()
    }

    /// Node that owns an address: its own, a running pod's, or by its pod CIDRs.
    pub fn node_of_ip(&self, ip: IpAddr) -> Option<&str> {
        let exact = |node: &NodeNames| {
            node.ips.contains(&ip) || node.pods.iter().any(|pod| pod.ips.contains(&ip))
        };
        let by_cidr = |node: &NodeNames| node.pod_cidrs.iter().any(|cidr| contains(cidr, ip));
        let find = |fits: &dyn Fn(&NodeNames) -> bool| {
            self.nodes
                .iter()
                .find(|(_, node)| fits(node))
                .map(|(name, _)| name.as_str())
        };
        find(&exact).or_else(|| find(&by_cidr))
    }

    /// Service port that an address and port lead to.
    pub fn service_at(
        &self,
        ip: IpAddr,
        port: u16,
        protocol: Protocol,
    ) -> Option<&ServicePortName> {
        self.service_ports
            .iter()
            .find(|s| s.port == port && s.protocol == protocol && s.ips.contains(&ip))
    }

    /// Service port that a node port leads to.
    pub fn service_at_node_port(&self, port: u16, protocol: Protocol) -> Option<&ServicePortName> {
        self.service_ports
            .iter()
            .find(|s| s.node_port == Some(port) && s.protocol == protocol)
    }
}

/// Whether `ADDRESS/LENGTH` contains `ip`; a text that is no CIDR contains nothing.
pub fn contains(cidr: &str, ip: IpAddr) -> bool {
    let Some((network, length)) = cidr.split_once('/') else {
        return false;
    };
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    match (network, ip) {
        (IpAddr::V4(network), IpAddr::V4(ip)) if length <= 32 => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            u32::from(network) & mask == u32::from(ip) & mask
        }
        (IpAddr::V6(network), IpAddr::V6(ip)) if length <= 128 => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            u128::from(network) & mask == u128::from(ip) & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::contains;

    #[test]
    fn cidrs() {
        let ip = |text: &str| text.parse().unwrap();
        assert!(contains("10.244.1.0/24", ip("10.244.1.7")));
        assert!(!contains("10.244.1.0/24", ip("10.244.2.7")));
        assert!(contains("0.0.0.0/0", ip("1.2.3.4")));
        assert!(contains("fd00:1::/64", ip("fd00:1::5")));
        assert!(contains("::/0", ip("fd00:1::5")));
        assert!(!contains("::/0", ip("1.2.3.4")));
        assert!(!contains("10.0.0.0/33", ip("10.0.0.1")));
        assert!(!contains("nonsense", ip("10.0.0.1")));
    }
}
