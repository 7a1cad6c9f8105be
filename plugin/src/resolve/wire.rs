//! API JSON to [`super::objects`]: only the fields used are decoded, so that a list of ten thousand
//! pods costs little and a newer server's additions do no harm.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::objects::{
    ClusterView, ContainerInfo, ContainerPort, Endpoint, NodeInfo, PodInfo, ServiceEndpoints,
    ServiceInfo, ServiceKind, ServicePort, TrafficPolicy, WorkloadInfo,
};
use super::parse::{ObjectKind, Protocol};

/// A list answer with only its items.
#[derive(Debug, Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(super) struct List<T> {
    /// Decoded items; `null` (as Go prints an empty slice) is empty.
    #[serde(default = "Vec::new", deserialize_with = "null_is_default")]
    pub(super) items: Vec<T>,
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    namespace: String,
    uid: String,
    #[serde(deserialize_with = "null_is_default")]
    labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "null_is_default")]
    annotations: BTreeMap<String, String>,
    deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    owner_references: Vec<OwnerReference>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OwnerReference {
    kind: String,
    name: String,
    controller: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    reason: Option<String>,
    message: Option<String>,
}

/// v1 Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    metadata: Meta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: Option<String>,
    host_network: bool,
    #[serde(deserialize_with = "null_is_default")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "null_is_default")]
    init_containers: Vec<Container>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    name: String,
    restart_policy: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    ports: Vec<Port>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    name: Option<String>,
    container_port: u16,
    host_port: Option<u16>,
    protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
    reason: Option<String>,
    message: Option<String>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs", deserialize_with = "null_is_default")]
    pod_ips: Vec<IpEntry>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "hostIPs", deserialize_with = "null_is_default")]
    host_ips: Vec<IpEntry>,
    #[serde(deserialize_with = "null_is_default")]
    conditions: Vec<Condition>,
    #[serde(rename = "containerStatuses", deserialize_with = "null_is_default")]
    container_statuses: Vec<ContainerStatus>,
    #[serde(rename = "initContainerStatuses", deserialize_with = "null_is_default")]
    init_container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct IpEntry {
    ip: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerStatus {
    name: String,
    #[serde(rename = "containerID")]
    container_id: Option<String>,
    state: ContainerState,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ContainerState {
    waiting: Option<StateDetail>,
    terminated: Option<StateDetail>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct StateDetail {
    reason: Option<String>,
    message: Option<String>,
}

fn addresses(list: &[IpEntry], single: Option<&str>) -> Vec<IpAddr> {
    let mut found: Vec<IpAddr> = list
        .iter()
        .filter_map(|entry| entry.ip.parse().ok())
        .collect();
    if found.is_empty() {
        found.extend(single.and_then(|ip| ip.parse::<IpAddr>().ok()));
    }
    found
}

fn said(reason: Option<&str>, message: Option<&str>) -> Option<String> {
    match (
        reason.filter(|r| !r.is_empty()),
        message.filter(|m| !m.is_empty()),
    ) {
        (Some(reason), Some(message)) => Some(format!("{reason}: {message}")),
        (Some(one), None) | (None, Some(one)) => Some(one.to_owned()),
        (None, None) => None,
    }
}

impl PodStatus {
    /// The most telling line about a pod that is not well: a container's wait, else the pod's own
    /// reason, else the scheduler's.
    fn trouble(&self) -> Option<String> {
        let of = |detail: &StateDetail| said(detail.reason.as_deref(), detail.message.as_deref());
        let statuses = || {
            self.init_container_statuses
                .iter()
                .chain(&self.container_statuses)
        };
        let dull = |text: &String| text != "ContainerCreating" && text != "PodInitializing";
        statuses()
            .filter_map(|status| status.state.waiting.as_ref().and_then(of))
            .find(dull)
            .or_else(|| said(self.reason.as_deref(), self.message.as_deref()))
            .or_else(|| {
                self.conditions
                    .iter()
                    .find(|c| c.kind == "PodScheduled" && c.status == "False")
                    .and_then(|c| said(c.reason.as_deref(), c.message.as_deref()))
            })
            .or_else(|| {
                self.container_statuses
                    .iter()
                    .find_map(|status| status.state.terminated.as_ref().and_then(of))
            })
            .or_else(|| statuses().find_map(|status| status.state.waiting.as_ref().and_then(of)))
    }
}

impl From<Pod> for PodInfo {
    fn from(pod: Pod) -> Self {
        let Pod {
            metadata,
            spec,
            status,
        } = pod;
        let is_ready = status
            .conditions
            .iter()
            .any(|c| c.kind == "Ready" && c.status == "True");
        let ids: BTreeMap<&str, &str> = status
            .container_statuses
            .iter()
            .chain(&status.init_container_statuses)
            .filter_map(|s| Some((s.name.as_str(), s.container_id.as_deref()?)))
            .collect();
        let sidecars = spec
            .init_containers
            .iter()
            .filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let containers = spec
            .containers
            .iter()
            .chain(sidecars)
            .map(|container| ContainerInfo {
                name: container.name.clone(),
                id: ids
                    .get(container.name.as_str())
                    .map(|id| id.split_once("://").map_or(*id, |(_, id)| id).to_owned())
                    .filter(|id| !id.is_empty()),
                ports: container
                    .ports
                    .iter()
                    .map(|port| ContainerPort {
                        name: port.name.clone().filter(|n| !n.is_empty()),
                        port: port.container_port,
                        protocol: Protocol::from_api(port.protocol.as_deref()),
                        host_port: port.host_port.filter(|p| *p != 0),
                    })
                    .collect(),
            })
            .collect();
        let cgroup_uid = metadata
            .annotations
            .get("kubernetes.io/config.hash")
            .cloned()
            .unwrap_or_else(|| metadata.uid.clone());
        PodInfo {
            reason: if is_ready { None } else { status.trouble() },
            ready: is_ready,
            cgroup_uid,
            node: spec.node_name.filter(|n| !n.is_empty()),
            host_network: spec.host_network,
            ips: addresses(&status.pod_ips, status.pod_ip.as_deref()),
            host_ips: addresses(&status.host_ips, status.host_ip.as_deref()),
            containers,
            terminating: metadata.deletion_timestamp.is_some(),
            owner: metadata
                .owner_references
                .iter()
                .find(|o| o.controller)
                .map(|o| (o.kind.clone(), o.name.clone())),
            phase: status.phase,
            namespace: metadata.namespace,
            name: metadata.name,
            uid: metadata.uid,
            labels: metadata.labels,
        }
    }
}

/// v1 Node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    metadata: Meta,
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs", deserialize_with = "null_is_default")]
    pod_cidrs: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeStatus {
    #[serde(deserialize_with = "null_is_default")]
    addresses: Vec<NodeAddress>,
    #[serde(deserialize_with = "null_is_default")]
    conditions: Vec<Condition>,
    node_info: SystemInfo,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SystemInfo {
    kernel_version: String,
    operating_system: String,
    architecture: String,
}

impl From<Node> for NodeInfo {
    fn from(node: Node) -> Self {
        let Node {
            metadata,
            spec,
            status,
        } = node;
        let ready = status.conditions.iter().find(|c| c.kind == "Ready");
        let of_kind = |kind: &str| {
            status
                .addresses
                .iter()
                .filter(|a| a.kind == kind)
                .filter_map(|a| a.address.parse::<IpAddr>().ok())
                .collect::<Vec<_>>()
        };
        let label = |key: &str| metadata.labels.get(key).cloned();
        let or_label = |value: &str, key: &str| {
            if value.is_empty() {
                label(key).unwrap_or_default()
            } else {
                value.to_owned()
            }
        };
        let mut pod_cidrs = spec.pod_cidrs;
        if pod_cidrs.is_empty() {
            pod_cidrs.extend(spec.pod_cidr.filter(|c| !c.is_empty()));
        }
        let is_ready = ready.is_some_and(|c| c.status == "True");
        NodeInfo {
            ready: Some(is_ready),
            reason: ready
                .filter(|_| !is_ready)
                .and_then(|c| said(c.reason.as_deref(), c.message.as_deref())),
            network_unavailable: status
                .conditions
                .iter()
                .any(|c| c.kind == "NetworkUnavailable" && c.status == "True"),
            ips: [of_kind("InternalIP"), of_kind("ExternalIP")].concat(),
            pod_cidrs,
            os: or_label(&status.node_info.operating_system, "kubernetes.io/os"),
            arch: or_label(&status.node_info.architecture, "kubernetes.io/arch"),
            kernel: status.node_info.kernel_version.clone(),
            zone: label("topology.kubernetes.io/zone"),
            virtual_kubelet: label("type").as_deref() == Some("virtual-kubelet"),
            name: metadata.name,
        }
    }
}

/// v1 Service.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Service {
    metadata: Meta,
    spec: ServiceSpec,
    status: ServiceStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "null_is_default")]
    cluster_ips: Vec<String>,
    external_name: Option<String>,
    #[serde(rename = "externalIPs", deserialize_with = "null_is_default")]
    external_ips: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    ports: Vec<WirePort>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    session_affinity: Option<String>,
    session_affinity_config: Option<AffinityConfig>,
    #[serde(deserialize_with = "null_is_default")]
    selector: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientIp {
    timeout_seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WirePort {
    name: Option<String>,
    port: u16,
    protocol: Option<String>,
    target_port: Option<Value>,
    node_port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: LoadBalancer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    #[serde(deserialize_with = "null_is_default")]
    ingress: Vec<Ingress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Ingress {
    ip: Option<String>,
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") {
        TrafficPolicy::Local
    } else {
        TrafficPolicy::Cluster
    }
}

impl From<Service> for ServiceInfo {
    fn from(service: Service) -> Self {
        let Service {
            metadata,
            spec,
            status,
        } = service;
        let parse_all = |list: &[String]| {
            list.iter()
                .filter_map(|ip| ip.parse::<IpAddr>().ok())
                .collect::<Vec<_>>()
        };
        let mut cluster_ips = parse_all(&spec.cluster_ips);
        if cluster_ips.is_empty() {
            cluster_ips.extend(
                spec.cluster_ip
                    .as_deref()
                    .and_then(|ip| ip.parse::<IpAddr>().ok()),
            );
        }
        let affinity_seconds = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            spec.session_affinity_config
                .and_then(|config| config.client_ip)
                .and_then(|client| client.timeout_seconds)
                // The API's default, three hours.
                .unwrap_or(10_800)
        });
        ServiceInfo {
            kind: match spec.kind.as_deref() {
                Some("NodePort") => ServiceKind::NodePort,
                Some("LoadBalancer") => ServiceKind::LoadBalancer,
                Some("ExternalName") => ServiceKind::ExternalName,
                _ => ServiceKind::ClusterIp,
            },
            cluster_ips,
            headless: spec.cluster_ip.as_deref() == Some("None")
                || spec.cluster_ips.iter().any(|ip| ip == "None"),
            external_name: spec.external_name.filter(|n| !n.is_empty()),
            external_ips: parse_all(&spec.external_ips),
            load_balancer_ips: status
                .load_balancer
                .ingress
                .iter()
                .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
                .collect(),
            ports: spec
                .ports
                .into_iter()
                .map(|port| ServicePort {
                    name: port.name.filter(|n| !n.is_empty()),
                    protocol: Protocol::from_api(port.protocol.as_deref()),
                    target: match port.target_port {
                        Some(Value::String(name)) => name,
                        Some(Value::Number(number)) => number.to_string(),
                        // An absent targetPort equals the port (API default).
                        _ => port.port.to_string(),
                    },
                    node_port: port.node_port.filter(|p| *p != 0),
                    port: port.port,
                })
                .collect(),
            internal_policy: policy(spec.internal_traffic_policy.as_deref()),
            external_policy: policy(spec.external_traffic_policy.as_deref()),
            affinity_seconds,
            selector: spec.selector,
            other_proxy: metadata
                .labels
                .get("service.kubernetes.io/service-proxy-name")
                .cloned(),
            namespace: metadata.namespace,
            name: metadata.name,
        }
    }
}

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct EndpointSlice {
    metadata: Meta,
    address_type: String,
    #[serde(deserialize_with = "null_is_default")]
    endpoints: Vec<WireEndpoint>,
    #[serde(deserialize_with = "null_is_default")]
    ports: Vec<SlicePort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireEndpoint {
    #[serde(deserialize_with = "null_is_default")]
    addresses: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    conditions: EndpointConditions,
    node_name: Option<String>,
    zone: Option<String>,
    target_ref: Option<TargetRef>,
    hints: Option<Hints>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EndpointConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TargetRef {
    kind: String,
    namespace: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Hints {
    #[serde(deserialize_with = "null_is_default")]
    for_zones: Vec<NameOnly>,
    #[serde(deserialize_with = "null_is_default")]
    for_nodes: Vec<NameOnly>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NameOnly {
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct SlicePort {
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
}

/// Gathers slices by Service; an endpoint that two slices carry (as happens during updates) appears
/// once, with the later slice's word on readiness.
pub(super) fn gather_slices(slices: Vec<EndpointSlice>) -> Vec<ServiceEndpoints> {
    type Key = (IpAddr, Option<u16>, Option<String>, Protocol);
    let mut by_service: BTreeMap<(String, String), BTreeMap<Key, Endpoint>> = BTreeMap::new();
    for slice in slices {
        let Some(service) = slice.metadata.labels.get("kubernetes.io/service-name") else {
            continue;
        };
        let key = (slice.metadata.namespace.clone(), service.clone());
        let found = by_service.entry(key).or_default();
        if slice.address_type == "FQDN" {
            continue;
        }
        for wire in &slice.endpoints {
            // kube-proxy uses only the first address of an endpoint.
            let Some(ip) = wire
                .addresses
                .first()
                .and_then(|ip| ip.parse::<IpAddr>().ok())
            else {
                continue;
            };
            for port in &slice.ports {
                let endpoint = endpoint(wire, ip, port);
                let key = (
                    ip,
                    endpoint.port,
                    endpoint.port_name.clone(),
                    endpoint.protocol,
                );
                found.insert(key, endpoint);
            }
        }
    }
    by_service
        .into_iter()
        .map(|((namespace, service), endpoints)| ServiceEndpoints {
            namespace,
            service,
            endpoints: endpoints.into_values().collect(),
        })
        .collect()
}

fn endpoint(wire: &WireEndpoint, ip: IpAddr, port: &SlicePort) -> Endpoint {
    let ready = wire.conditions.ready.unwrap_or(true);
    let names = |list: &[NameOnly]| list.iter().map(|n| n.name.clone()).collect();
    Endpoint {
        ip,
        port: port.port,
        port_name: port.name.clone().filter(|n| !n.is_empty()),
        protocol: Protocol::from_api(port.protocol.as_deref()),
        node: wire.node_name.clone(),
        pod: wire
            .target_ref
            .as_ref()
            .filter(|target| target.kind == "Pod")
            .map(|target| (target.namespace.clone(), target.name.clone())),
        ready,
        serving: wire.conditions.serving.unwrap_or(ready),
        terminating: wire.conditions.terminating.unwrap_or(false),
        zone: wire.zone.clone(),
        hint_zones: wire
            .hints
            .as_ref()
            .map(|h| names(&h.for_zones))
            .unwrap_or_default(),
        hint_nodes: wire
            .hints
            .as_ref()
            .map(|h| names(&h.for_nodes))
            .unwrap_or_default(),
    }
}

/// apps/v1 workload of any kind.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Workload {
    metadata: Meta,
    spec: WorkloadSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct WorkloadSpec {
    replicas: Option<u32>,
    selector: Selector,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    #[serde(deserialize_with = "null_is_default")]
    match_labels: BTreeMap<String, String>,
}

impl Workload {
    /// With its kind, which a list answer's items do not carry.
    pub(super) fn into_info(self, kind: ObjectKind) -> WorkloadInfo {
        WorkloadInfo {
            kind,
            namespace: self.metadata.namespace,
            name: self.metadata.name,
            replicas: self.spec.replicas,
            match_labels: self.spec.selector.match_labels,
        }
    }
}

/// v1 Namespace.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Namespace {
    metadata: Meta,
}

impl Namespace {
    /// `metadata.name`.
    pub(super) fn into_name(self) -> String {
        self.metadata.name
    }
}

impl ClusterView {
    /// Builds a view from API objects of any kind (each with its `kind`), for tests and saved files.
    ///
    /// Objects of kinds that are not used are passed over. Errors: an object of a used kind that
    /// cannot be decoded, by its kind and name.
    pub fn from_objects(objects: &[Value]) -> Result<Self, String> {
        let mut view = Self::default();
        let mut slices = Vec::new();
        let mut namespaces = BTreeSet::new();
        for object in objects {
            let kind = object
                .get("kind")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let bad = |error: serde_json::Error| {
                let name = object.pointer("/metadata/name").and_then(Value::as_str);
                format!(
                    "decode {kind} {}: {error}",
                    name.unwrap_or("without a name")
                )
            };
            match kind {
                "Pod" => view
                    .pods
                    .push(Pod::deserialize(object).map_err(bad)?.into()),
                "Node" => view
                    .nodes
                    .push(Node::deserialize(object).map_err(bad)?.into()),
                "Service" => view
                    .services
                    .push(Service::deserialize(object).map_err(bad)?.into()),
                "EndpointSlice" => slices.push(EndpointSlice::deserialize(object).map_err(bad)?),
                "Namespace" => {
                    let namespace = Namespace::deserialize(object).map_err(bad)?;
                    namespaces.insert(namespace.into_name());
                }
                "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" => {
                    let workload = Workload::deserialize(object).map_err(bad)?;
                    let kind = match kind {
                        "Deployment" => ObjectKind::Deployment,
                        "StatefulSet" => ObjectKind::StatefulSet,
                        "DaemonSet" => ObjectKind::DaemonSet,
                        _ => ObjectKind::ReplicaSet,
                    };
                    view.workloads.push(workload.into_info(kind));
                }
                _ => {}
            }
        }
        view.endpoints = gather_slices(slices);
        view.namespaces = namespaces.into_iter().collect();
        Ok(view)
    }
}
