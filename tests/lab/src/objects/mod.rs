//! The Kubernetes objects that describe a laboratory, as an API server would hand them out.
//!
//! Only what a network tool reads is filled in, with real field names and forms.

mod node;
mod owner;
mod pod;
mod service;

use serde_json::{Value, json};

use crate::address::{Family, NodePlan};
use crate::names;
use crate::spec::{PodSpec, ServiceKind, ServiceSpec, Spec};
use crate::state::ClusterState;

/// When everything was made. Fixed, so that output does not change from run to run.
const CREATED: &str = "2026-11-21T02:00:00Z";

/// Objects of all kinds, in the order in which a cluster would have got them.
pub fn all(state: &ClusterState) -> Vec<Value> {
    let spec = &state.spec;
    let mut objects = Vec::new();
    for name in namespaces(spec) {
        objects.push(namespace(spec, &name));
    }
    for number in 1..=spec.nodes {
        objects.push(node::node(spec, NodePlan(number)));
    }
    objects.extend(owner::owners(spec));
    for pod in &spec.pods {
        objects.push(pod::running_pod(state, pod));
    }
    objects.push(pod::pending_pod(spec));
    objects.push(pod::completed_pod(spec));
    for service in &spec.services {
        objects.push(service::service_object(spec, service));
    }
    for service in &spec.services {
        if matches!(service.kind, ServiceKind::ExternalName(_)) {
            continue;
        }
        for family in Family::BOTH {
            objects.push(service::endpoint_slice(state, service, family));
        }
    }
    for (version, object) in (100_u64..).zip(&mut objects) {
        object["metadata"]["resourceVersion"] = json!(version.to_string());
    }
    objects
}

fn namespaces(spec: &Spec) -> Vec<String> {
    let mut names: Vec<String> = ["default", "kube-node-lease", "kube-public", "kube-system"]
        .map(str::to_owned)
        .into();
    names.extend(spec.pods.iter().map(|pod| pod.namespace.clone()));
    names.extend(
        spec.services
            .iter()
            .map(|service| service.namespace.clone()),
    );
    names.sort();
    names.dedup();
    names
}

/// Metadata of an object; `namespace` is empty for cluster-wide kinds.
fn metadata(spec: &Spec, kind: &str, namespace: &str, name: &str) -> Value {
    let mut meta = json!({
        "name": name,
        "uid": names::uid(&format!("{}/{kind}/{namespace}/{name}", spec.name)),
        "creationTimestamp": CREATED,
    });
    if !namespace.is_empty() {
        meta["namespace"] = json!(namespace);
    }
    meta
}

fn owner_reference(spec: &Spec, kind: &str, namespace: &str, name: &str) -> Value {
    json!([{
        "apiVersion": "apps/v1",
        "kind": kind,
        "name": name,
        "uid": names::uid(&format!("{}/{kind}/{namespace}/{name}", spec.name)),
        "controller": true,
        "blockOwnerDeletion": true,
    }])
}

fn namespace(spec: &Spec, name: &str) -> Value {
    let mut meta = metadata(spec, "Namespace", "", name);
    meta["labels"] = json!({ "kubernetes.io/metadata.name": name });
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": meta,
        "spec": { "finalizers": ["kubernetes"] },
        "status": { "phase": "Active" },
    })
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({ "type": kind, "status": status, "reason": reason, "lastTransitionTime": CREATED })
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

fn selects(service: &ServiceSpec, pod: &PodSpec) -> bool {
    !matches!(service.kind, ServiceKind::ExternalName(_))
        && service
            .selector
            .iter()
            .all(|(key, value)| pod.labels.get(key) == Some(value))
}
