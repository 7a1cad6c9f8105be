//! Kubernetes names for kernel objects. They name; they never decide.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Prefix;

/// What the API says of pods, Services and nodes, as far as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    /// Pods.
    pub pods: Vec<PodName>,
    /// Services.
    pub services: Vec<ServiceName>,
    /// Nodes.
    pub nodes: Vec<NodeName>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// UID as it stands in cgroup paths: `metadata.uid`, or a static pod's
    /// `kubernetes.io/config.hash`.
    pub uid: String,
    /// `spec.nodeName`
    pub node: Option<String>,
    /// `spec.hostNetwork`
    pub host_network: bool,
    /// `status.podIPs`
    pub ips: Vec<IpAddr>,
    /// `status.phase`
    pub phase: String,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceName {
    /// `metadata.namespace`
    pub namespace: String,
    /// `metadata.name`
    pub name: String,
    /// `spec.type`
    pub kind: String,
    /// `spec.clusterIPs`, without `None`.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.externalIPs` and `status.loadBalancer.ingress[].ip`
    pub external_ips: Vec<IpAddr>,
    /// `spec.ports`
    pub ports: Vec<ServicePort>,
    /// From its EndpointSlices, each address and port once.
    pub endpoints: Vec<Endpoint>,
    /// Why its EndpointSlices could not be listed, where that is so: then no endpoint means nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoints_unread: Option<String>,
    /// What else decides which endpoints a node's proxy takes; `None` in files of older versions, where
    /// nothing can be expected of a proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxying: Option<Proxying>,
}

/// What a Service asks of the proxies on the nodes, besides addresses and ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proxying {
    /// `spec.internalTrafficPolicy` is Local: endpoints of the node at hand alone.
    pub internal_local: bool,
    /// `spec.externalTrafficPolicy` is Local, likewise for what comes by NodePorts and external addresses.
    pub external_local: bool,
    /// Seconds of ClientIP affinity, where it is asked for.
    pub affinity_seconds: Option<u32>,
    /// `status.loadBalancer.ingress[].ip` with `ipMode` VIP: those that nodes translate themselves.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `spec.externalIPs`
    pub external_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges` that are prefixes.
    pub source_ranges: Vec<Prefix>,
    /// Label `service.kubernetes.io/service-proxy-name`: kube-proxy leaves the Service alone.
    pub other_proxy: Option<String>,
}

/// A port of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// Name; empty for none.
    pub name: String,
    /// Port on the Service's addresses.
    pub port: u16,
    /// IPPROTO_*
    pub protocol: u8,
    /// Port on nodes.
    pub node_port: Option<u16>,
}

/// An endpoint of a Service's port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Address.
    pub ip: IpAddr,
    /// Port; `None`: all ports.
    pub port: Option<u16>,
    /// Name of the port.
    pub port_name: String,
    /// IPPROTO_*
    pub protocol: u8,
    /// Node it is on.
    pub node: Option<String>,
    /// `namespace/name` of the pod behind it.
    pub pod: Option<String>,
    /// `conditions.ready`
    pub ready: bool,
    /// `conditions.serving`
    pub serving: bool,
    /// `conditions.terminating`
    pub terminating: bool,
    /// `hints.forZones[].name`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hint_zones: Vec<String>,
    /// `hints.forNodes[].name`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hint_nodes: Vec<String>,
    /// Two slices differ about its conditions, and which of them a proxy believes can't be told.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disputed: bool,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeName {
    /// `metadata.name`
    pub name: String,
    /// `status.addresses` that are IP addresses.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`
    pub pod_cidrs: Vec<Prefix>,
    /// Condition Ready.
    pub ready: bool,
    /// Label `topology.kubernetes.io/zone`
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
}

impl Names {
    /// The pod that has this address, unless several have it or it is on the host's network.
    pub fn pod_by_ip(&self, ip: IpAddr) -> Option<&PodName> {
        let mut found = self
            .pods
            .iter()
            .filter(|pod| !pod.host_network && pod.ips.contains(&ip) && pod.phase == "Running");
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// The pod with this UID.
    pub fn pod_by_uid(&self, uid: &str) -> Option<&PodName> {
        self.pods.iter().find(|pod| pod.uid == uid)
    }

    /// The Service with this cluster or external address.
    pub fn service_by_ip(&self, ip: IpAddr) -> Option<&ServiceName> {
        self.services
            .iter()
            .find(|svc| svc.cluster_ips.contains(&ip) || svc.external_ips.contains(&ip))
    }

    /// The node with this address.
    pub fn node_by_ip(&self, ip: IpAddr) -> Option<&NodeName> {
        self.nodes.iter().find(|node| node.addresses.contains(&ip))
    }
}
