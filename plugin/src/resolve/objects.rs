//! Kubernetes objects reduced to what a packet's way needs: plain data, no client types.
//!
//! They are made from API JSON in [`super::wire`] and can be saved in a snapshot file.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netpath::model::Prefix;
use serde::{Deserialize, Serialize};

use super::parse::{ObjectKind, Protocol};

/// A pod. Source: v1 Pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfo {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// The id that the pod's cgroups carry: `metadata.uid`, but for a static pod the annotation
    /// `kubernetes.io/config.hash`.
    pub cgroup_uid: String,
    /// `spec.nodeName`; `None` while unscheduled.
    pub node: Option<String>,
    /// `spec.hostNetwork`: the pod lives in the node's own network namespace.
    pub host_network: bool,
    /// `status.phase`: Pending, Running, Succeeded, Failed, Unknown; empty when absent.
    pub phase: String,
    /// Condition `Ready` is `True`.
    pub ready: bool,
    /// Why it is not running or not ready, as the kubelet or scheduler says; `None` if nobody says.
    pub reason: Option<String>,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// `status.podIPs`, first is the primary one.
    pub ips: Vec<IpAddr>,
    /// `status.hostIPs` (or `hostIP`): addresses of its node.
    pub host_ips: Vec<IpAddr>,
    /// Containers in spec order, with init containers that keep running.
    pub containers: Vec<ContainerInfo>,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// Controlling owner, for instance (`ReplicaSet`, `api-5d`).
    pub owner: Option<(String, String)>,
}

impl PodInfo {
    /// `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether it has all of these labels.
    pub fn has_labels(&self, wanted: &BTreeMap<String, String>) -> bool {
        wanted.iter().all(|(k, v)| self.labels.get(k) == Some(v))
    }

    /// Runs, so that it has a network namespace.
    pub fn running(&self) -> bool {
        self.phase == "Running"
    }

    /// Its containers have ended, and are not started again.
    pub fn ended(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }
}

/// A container of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerInfo {
    /// `spec.containers[].name`.
    pub name: String,
    /// `status.containerStatuses[].containerID` without its `runtime://`; `None` before it starts.
    pub id: Option<String>,
    /// `spec.containers[].ports`.
    pub ports: Vec<ContainerPort>,
}

/// A declared container port. Declaring is documentation only: an undeclared port can be open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerPort {
    /// `name`.
    pub name: Option<String>,
    /// `containerPort`, host order.
    pub port: u16,
    /// `protocol`.
    pub protocol: Protocol,
    /// `hostPort`, if one is asked for.
    pub host_port: Option<u16>,
}

/// A node. Source: v1 Node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// `metadata.name`.
    pub name: String,
    /// Condition `Ready` is `True`; `None` when the node object could not be read.
    pub ready: Option<bool>,
    /// Reason and message of the condition `Ready` when it is not `True`.
    pub reason: Option<String>,
    /// Condition `NetworkUnavailable` is `True`.
    pub network_unavailable: bool,
    /// `status.addresses` of type `InternalIP`, then `ExternalIP`.
    pub ips: Vec<IpAddr>,
    /// `spec.podCIDRs` as text; empty where the CNI manages them elsewhere.
    pub pod_cidrs: Vec<String>,
    /// `status.nodeInfo.operatingSystem`, else label `kubernetes.io/os`.
    pub os: String,
    /// `status.nodeInfo.architecture`, else label `kubernetes.io/arch`.
    pub arch: String,
    /// `status.nodeInfo.kernelVersion`.
    pub kernel: String,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Label `type` is `virtual-kubelet`: no process can be started there.
    pub virtual_kubelet: bool,
}

/// `spec.type` of a Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ServiceKind {
    /// Reached by its cluster addresses.
    #[serde(rename = "ClusterIP")]
    ClusterIp,
    /// Also on a port of each node.
    NodePort,
    /// Also by a load balancer's address.
    LoadBalancer,
    /// A CNAME; the kernel knows nothing of it.
    ExternalName,
}

/// `internalTrafficPolicy` or `externalTrafficPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TrafficPolicy {
    /// Every endpoint may be chosen.
    Cluster,
    /// Only endpoints of the node at hand.
    Local,
}

/// A Service. Source: v1 Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceInfo {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.type`.
    pub kind: ServiceKind,
    /// `spec.clusterIPs`; empty for headless and ExternalName.
    pub cluster_ips: Vec<IpAddr>,
    /// `spec.clusterIP` is `None`: DNS gives pod addresses and no kernel rule exists.
    pub headless: bool,
    /// `spec.externalName`.
    pub external_name: Option<String>,
    /// `spec.externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// `status.loadBalancer.ingress[].ip`.
    pub load_balancer_ips: Vec<IpAddr>,
    /// Those of them whose `ipMode` is not `Proxy`: nodes translate packets to them themselves.
    pub vip_ips: Vec<IpAddr>,
    /// `spec.loadBalancerSourceRanges` that are prefixes.
    pub source_ranges: Vec<Prefix>,
    /// `spec.ports`.
    pub ports: Vec<ServicePort>,
    /// `spec.internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `spec.externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// Seconds of ClientIP affinity, where asked for.
    pub affinity_seconds: Option<u32>,
    /// `spec.selector`; empty means that someone else writes the endpoints.
    pub selector: BTreeMap<String, String>,
    /// Label `service.kubernetes.io/service-proxy-name`: kube-proxy leaves it alone.
    pub other_proxy: Option<String>,
}

impl ServiceInfo {
    /// `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePort {
    /// `name`; absent only where the Service has one port.
    pub name: Option<String>,
    /// `port`, host order.
    pub port: u16,
    /// `protocol`.
    pub protocol: Protocol,
    /// `targetPort` as written: a number, or the name of a container port, which each pod resolves.
    pub target: String,
    /// `nodePort`, where one is allotted.
    pub node_port: Option<u16>,
}

/// One address that a Service's port leads to. Source: discovery.k8s.io/v1 EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// `endpoints[].addresses[0]`, the only one kube-proxy uses.
    pub ip: IpAddr,
    /// `ports[].port`, host order; `None` means every port.
    pub port: Option<u16>,
    /// `ports[].name`.
    pub port_name: Option<String>,
    /// `ports[].protocol`.
    pub protocol: Protocol,
    /// `endpoints[].nodeName`.
    pub node: Option<String>,
    /// Pod that `targetRef` names, as (namespace, name).
    pub pod: Option<(String, String)>,
    /// `conditions.ready`; absent counts as true.
    pub ready: bool,
    /// `conditions.serving`; absent follows `ready`.
    pub serving: bool,
    /// `conditions.terminating`; absent counts as false.
    pub terminating: bool,
    /// `zone`.
    pub zone: Option<String>,
    /// `hints.forZones[].name`.
    pub hint_zones: Vec<String>,
    /// `hints.forNodes[].name`.
    pub hint_nodes: Vec<String>,
    /// Two slices differ about its conditions, and which of them a proxy believes can't be told.
    pub disputed: bool,
}

/// Endpoints of one Service, from all its slices, each once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoints {
    /// Namespace of the slices and of the Service.
    pub namespace: String,
    /// Label `kubernetes.io/service-name`.
    pub service: String,
    /// Sorted, without repetitions; of all ports.
    pub endpoints: Vec<Endpoint>,
}

/// An object that owns pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkloadInfo {
    /// Deployment, StatefulSet, DaemonSet or ReplicaSet.
    pub kind: ObjectKind,
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.replicas`; `None` for a DaemonSet.
    pub replicas: Option<u32>,
    /// `spec.selector.matchLabels`.
    pub match_labels: BTreeMap<String, String>,
}

/// Something of the API that could not be read, and what follows from it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unread {
    /// Plural resource, for instance `pods`.
    pub resource: String,
    /// Namespaces that were read instead of all; empty means nothing was.
    pub read_instead: Vec<String>,
    /// The server's refusal in one line.
    pub why: String,
}

/// What was read of the cluster's API for one question.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    /// All nodes that could be read.
    pub nodes: Vec<NodeInfo>,
    /// All pods that could be read.
    pub pods: Vec<PodInfo>,
    /// All Services that could be read.
    pub services: Vec<ServiceInfo>,
    /// Endpoints by Service.
    pub endpoints: Vec<ServiceEndpoints>,
    /// Workloads of the kinds and namespaces asked for.
    pub workloads: Vec<WorkloadInfo>,
    /// Names of all namespaces; empty when they could not be listed.
    pub namespaces: Vec<String>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

impl ClusterView {
    /// The pod of that name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&PodInfo> {
        self.pods
            .iter()
            .find(|pod| pod.name == name && pod.namespace == namespace)
    }

    /// The Service of that name.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&ServiceInfo> {
        self.services
            .iter()
            .find(|service| service.name == name && service.namespace == namespace)
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&NodeInfo> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Endpoints of a Service, of all its ports; empty if it has no slice.
    pub fn endpoints_of(&self, namespace: &str, service: &str) -> &[Endpoint] {
        self.endpoints
            .iter()
            .find(|set| set.service == service && set.namespace == namespace)
            .map_or(&[], |set| &set.endpoints)
    }

    /// Whether `resource` was read for `namespace`, so that absence means absence.
    pub fn knows(&self, resource: &str, namespace: &str) -> bool {
        self.unread
            .iter()
            .filter(|unread| unread.resource == resource)
            .all(|unread| unread.read_instead.iter().any(|read| read == namespace))
    }
}
