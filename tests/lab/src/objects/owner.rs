//! Deployments, ReplicaSets, StatefulSets and DaemonSets.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::pod::pod_spec;
use super::{merge, metadata, owner_reference};
use crate::spec::{Owner, PodSpec, Spec};

/// Name of the object that owns `pod`, and for a Deployment also the ReplicaSet between.
pub(super) fn owner_names(pod: &PodSpec) -> (String, Option<String>) {
    let without_suffix = pod
        .name
        .rsplit_once('-')
        .map_or(pod.name.as_str(), |(set, _)| set);
    if pod.owner == Owner::Deployment {
        let deployment = without_suffix
            .rsplit_once('-')
            .map_or(without_suffix, |(deployment, _)| deployment);
        (deployment.to_owned(), Some(without_suffix.to_owned()))
    } else {
        (without_suffix.to_owned(), None)
    }
}

/// Deployments, ReplicaSets, StatefulSets and DaemonSets that the pods come from.
pub(super) fn owners(spec: &Spec) -> Vec<Value> {
    let mut groups: BTreeMap<(String, String), Vec<&PodSpec>> = BTreeMap::new();
    for pod in spec.pods.iter().filter(|pod| pod.owner != Owner::None) {
        let (name, _) = owner_names(pod);
        groups
            .entry((pod.namespace.clone(), name))
            .or_default()
            .push(pod);
    }
    let mut objects = Vec::new();
    for ((namespace, name), pods) in groups {
        let Some(first) = pods.first() else { continue };
        let count = pods.len();
        let template = json!({
            "metadata": { "labels": first.labels },
            "spec": pod_spec(first),
        });
        let object = |kind: &str, name: &str, spec_extra: Value, status: Value| {
            let mut meta = metadata(spec, kind, &namespace, name);
            meta["labels"] = json!(first.labels);
            meta["generation"] = json!(1);
            let mut body = json!({
                "selector": { "matchLabels": first.labels },
                "template": template,
            });
            merge(&mut body, spec_extra);
            json!({ "apiVersion": "apps/v1", "kind": kind, "metadata": meta, "spec": body, "status": status })
        };
        let replicas = json!({
            "replicas": count, "readyReplicas": count, "availableReplicas": count, "observedGeneration": 1,
        });
        match first.owner {
            Owner::Deployment => {
                objects.push(object(
                    "Deployment",
                    &name,
                    json!({ "replicas": count }),
                    replicas.clone(),
                ));
                if let (_, Some(set)) = owner_names(first) {
                    let mut replica_set =
                        object("ReplicaSet", &set, json!({ "replicas": count }), replicas);
                    replica_set["metadata"]["ownerReferences"] =
                        owner_reference(spec, "Deployment", &namespace, &name);
                    let hash = json!(template_hash(&set));
                    for path in [
                        "/metadata/labels",
                        "/spec/selector/matchLabels",
                        "/spec/template/metadata/labels",
                    ] {
                        if let Some(labels) = replica_set.pointer_mut(path) {
                            labels["pod-template-hash"] = hash.clone();
                        }
                    }
                    objects.push(replica_set);
                }
            }
            Owner::StatefulSet => objects.push(object(
                "StatefulSet",
                &name,
                json!({ "replicas": count, "serviceName": name }),
                replicas,
            )),
            Owner::DaemonSet => objects.push(object(
                "DaemonSet",
                &name,
                json!({}),
                json!({
                    "currentNumberScheduled": count, "desiredNumberScheduled": count,
                    "numberReady": count, "numberAvailable": count, "numberMisscheduled": 0,
                }),
            )),
            Owner::None => {}
        }
    }
    objects
}

/// The last part of a ReplicaSet's name.
pub(super) fn template_hash(replica_set: &str) -> String {
    replica_set
        .rsplit_once('-')
        .map_or(replica_set, |(_, hash)| hash)
        .to_owned()
}
