//! v1 Node.

use std::net::IpAddr;

use serde::Deserialize;

use super::super::objects::NodeInfo;
use super::{Condition, Meta, null_is_default, said};

/// v1 Node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::resolve) struct Node {
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
