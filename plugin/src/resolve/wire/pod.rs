//! v1 Pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::super::objects::{ContainerInfo, ContainerPort, PodInfo};
use super::super::parse::Protocol;
use super::{Condition, Meta, null_is_default, said};

/// v1 Pod.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::resolve) struct Pod {
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
    ports: Vec<DeclaredPort>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DeclaredPort {
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
    one_ip: Option<String>,
    #[serde(rename = "podIPs", deserialize_with = "null_is_default")]
    all_ips: Vec<IpEntry>,
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
            ips: addresses(&status.all_ips, status.one_ip.as_deref()),
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
