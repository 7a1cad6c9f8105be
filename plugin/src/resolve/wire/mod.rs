//! API JSON to [`super::objects`]: only the fields used are decoded, so that a list of ten thousand
//! pods costs little and a newer server's additions do no harm.

mod endpoints;
mod node;
mod pod;
mod service;

use std::collections::BTreeMap;
#[cfg(test)]
use std::collections::BTreeSet;

use serde::Deserialize;
#[cfg(test)]
use serde_json::Value;

#[cfg(test)]
use super::objects::ClusterView;
use super::objects::WorkloadInfo;
use super::parse::ObjectKind;
pub(super) use endpoints::{EndpointSlice, gather_slices};
pub(super) use node::Node;
pub(super) use pod::Pod;
pub(super) use service::Service;

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

#[cfg(test)]
impl ClusterView {
    /// Builds a view from API objects of any kind (each with its `kind`), for tests.
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
