//! Pods: those that run, one that no node takes, and one that has ended.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::owner::{owner_names, template_hash};
use super::{CREATED, condition, metadata, owner_reference, selects};
use crate::address::{Family, NodePlan, pod_ips};
use crate::cluster::{container_id, pod_uid};
use crate::names;
use crate::spec::{Owner, PodSpec, Spec};
use crate::state::ClusterState;

pub(super) fn pod_spec(pod: &PodSpec) -> Value {
    let ports: Vec<Value> = pod
        .ports
        .iter()
        .map(|port| {
            let mut object = json!({
                "name": port.name, "containerPort": port.port, "protocol": port.protocol.upper(),
            });
            if pod.host_network {
                object["hostPort"] = json!(port.port);
            }
            object
        })
        .collect();
    let mut spec = json!({
        "containers": [{
            "name": "server",
            "image": "registry.example/server:1",
            "imagePullPolicy": "IfNotPresent",
            "ports": ports,
            "resources": { "requests": { "cpu": "10m" } },
        }],
        "dnsPolicy": "ClusterFirst",
        "restartPolicy": "Always",
        "serviceAccountName": "default",
        "terminationGracePeriodSeconds": 30,
    });
    if pod.host_network {
        spec["hostNetwork"] = json!(true);
    }
    spec
}

fn pod_metadata(spec: &Spec, pod: &PodSpec) -> Value {
    let mut meta = metadata(spec, "Pod", &pod.namespace, &pod.name);
    meta["uid"] = json!(pod_uid(spec, pod));
    meta["labels"] = json!(pod.labels);
    let (name, replica_set) = owner_names(pod);
    let owner = match (pod.owner, replica_set) {
        (Owner::Deployment, Some(set)) => {
            meta["labels"]["pod-template-hash"] = json!(template_hash(&set));
            meta["generateName"] = json!(format!("{set}-"));
            Some(("ReplicaSet", set))
        }
        (Owner::StatefulSet, _) => {
            meta["labels"]["statefulset.kubernetes.io/pod-name"] = json!(pod.name);
            Some(("StatefulSet", name))
        }
        (Owner::DaemonSet, _) => {
            meta["generateName"] = json!(format!("{name}-"));
            Some(("DaemonSet", name))
        }
        _ => None,
    };
    if let Some((kind, name)) = owner {
        meta["ownerReferences"] = owner_reference(spec, kind, &pod.namespace, &name);
    }
    meta
}

fn addresses(ips: &[IpAddr]) -> Value {
    json!(ips.iter().map(|ip| json!({ "ip": ip })).collect::<Vec<_>>())
}

pub(super) fn is_ready(state: &ClusterState, pod: &PodSpec) -> bool {
    !state
        .spec
        .services
        .iter()
        .any(|service| state.emptied_services.contains(&service.path()) && selects(service, pod))
}

pub(super) fn running_pod(state: &ClusterState, pod: &PodSpec) -> Value {
    let spec = &state.spec;
    let plan = NodePlan(pod.node);
    let ips = pod_ips(pod);
    let host_ips = Family::BOTH.map(|family| plan.node_ip(family));
    let ready = is_ready(state, pod);
    let word = if ready { "True" } else { "False" };
    let reason = if ready { "" } else { "ContainersNotReady" };
    let mut body = pod_spec(pod);
    body["nodeName"] = json!(plan.name());
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": pod_metadata(spec, pod),
        "spec": body,
        "status": {
            "phase": "Running",
            "conditions": [
                condition("PodReadyToStartContainers", "True", ""),
                condition("Initialized", "True", ""),
                condition("Ready", word, reason),
                condition("ContainersReady", word, reason),
                condition("PodScheduled", "True", ""),
            ],
            "hostIP": host_ips[0],
            "hostIPs": addresses(&host_ips),
            "podIP": ips.first(),
            "podIPs": addresses(&ips),
            "qosClass": "Burstable",
            "startTime": CREATED,
            "containerStatuses": [{
                "name": "server",
                "containerID": format!("containerd://{}", container_id(spec, pod)),
                "image": "registry.example/server:1",
                "imageID": format!("registry.example/server@sha256:{}", names::hex("server:1", 64)),
                "ready": ready,
                "started": true,
                "restartCount": 0,
                "state": { "running": { "startedAt": CREATED } },
            }],
        },
    })
}

/// A pod that no node takes.
pub(super) fn pending_pod(spec: &Spec) -> Value {
    let pod = PodSpec::new("shop", "cache-0", 1, 200, "cache");
    let mut unscheduled = condition("PodScheduled", "False", "Unschedulable");
    unscheduled["message"] = json!("0/2 nodes are available: 2 Insufficient memory.");
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": pod_metadata(spec, &pod),
        "spec": pod_spec(&pod),
        "status": { "phase": "Pending", "qosClass": "Burstable", "conditions": [unscheduled] },
    })
}

/// A pod that has done its work; its address is free again.
pub(super) fn completed_pod(spec: &Spec) -> Value {
    let pod = PodSpec::new("shop", "migrate-n4c8t", 1, 201, "migrate");
    let plan = NodePlan(pod.node);
    let ips = pod_ips(&pod);
    let mut body = pod_spec(&pod);
    body["nodeName"] = json!(plan.name());
    body["restartPolicy"] = json!("Never");
    let id = format!("containerd://{}", container_id(spec, &pod));
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": pod_metadata(spec, &pod),
        "spec": body,
        "status": {
            "phase": "Succeeded",
            "qosClass": "Burstable",
            "startTime": CREATED,
            "hostIP": plan.node_ip(Family::V4),
            "hostIPs": addresses(&Family::BOTH.map(|family| plan.node_ip(family))),
            "podIP": ips.first(),
            "podIPs": addresses(&ips),
            "conditions": [
                condition("Ready", "False", "PodCompleted"),
                condition("ContainersReady", "False", "PodCompleted"),
                condition("PodScheduled", "True", ""),
            ],
            "containerStatuses": [{
                "name": "server",
                "containerID": id,
                "image": "registry.example/server:1",
                "imageID": format!("registry.example/server@sha256:{}", names::hex("server:1", 64)),
                "ready": false,
                "started": false,
                "restartCount": 0,
                "state": { "terminated": {
                    "exitCode": 0, "reason": "Completed", "containerID": id,
                    "startedAt": CREATED, "finishedAt": CREATED,
                } },
            }],
        },
    })
}
