//! The Kubernetes objects that describe a laboratory, as an API server would hand them out.
//!
//! Only what a network tool reads is filled in, with real field names and forms.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::{Map, Value, json};

use crate::address::{Family, NodePlan, pod_ips};
use crate::cluster::{container_id, pod_uid};
use crate::names;
use crate::spec::{Owner, PodSpec, ServiceKind, ServiceSpec, Spec};
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
        objects.push(node(spec, NodePlan(number)));
    }
    objects.extend(owners(spec));
    for pod in &spec.pods {
        objects.push(running_pod(state, pod));
    }
    objects.push(pending_pod(spec));
    objects.push(completed_pod(spec));
    for service in &spec.services {
        objects.push(service_object(spec, service));
    }
    for service in &spec.services {
        if matches!(service.kind, ServiceKind::ExternalName(_)) {
            continue;
        }
        for family in Family::BOTH {
            objects.push(endpoint_slice(state, service, family));
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

fn node(spec: &Spec, plan: NodePlan) -> Value {
    let name = plan.name();
    let mut meta = metadata(spec, "Node", "", &name);
    meta["labels"] = json!({
        "kubernetes.io/arch": "amd64",
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "topology.kubernetes.io/zone": "lab-a",
    });
    meta["annotations"] = json!({
        "flannel.alpha.coreos.com/backend-type": match spec.overlay {
            crate::spec::Overlay::Vxlan => "vxlan",
            crate::spec::Overlay::Routed => "host-gw",
        },
        "flannel.alpha.coreos.com/kube-subnet-manager": "true",
        "flannel.alpha.coreos.com/public-ip": plan.node_ip(Family::V4),
        "flannel.alpha.coreos.com/public-ipv6": plan.node_ip(Family::V6),
    });
    if spec.overlay == crate::spec::Overlay::Vxlan {
        for (key, family) in [
            ("backend-data", Family::V4),
            ("backend-v6-data", Family::V6),
        ] {
            let mac = plan.vtep_mac(&spec.name, family);
            meta["annotations"][format!("flannel.alpha.coreos.com/{key}")] =
                json!(format!("{{\"VNI\":1,\"VtepMAC\":\"{mac}\"}}"));
        }
    }
    let cidrs = Family::BOTH.map(|family| plan.pod_cidr(family));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": meta,
        "spec": { "podCIDR": cidrs[0], "podCIDRs": cidrs },
        "status": {
            "addresses": [
                { "type": "InternalIP", "address": plan.node_ip(Family::V4) },
                { "type": "InternalIP", "address": plan.node_ip(Family::V6) },
                { "type": "Hostname", "address": name },
            ],
            "capacity": { "cpu": "2", "memory": "4Gi", "pods": "110" },
            "allocatable": { "cpu": "2", "memory": "4Gi", "pods": "110" },
            "conditions": [
                condition("NetworkUnavailable", "False", "FlannelIsUp"),
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                condition("Ready", "True", "KubeletReady"),
            ],
            "nodeInfo": {
                "architecture": "amd64",
                "bootID": names::uid(&format!("{}/{name}/boot", spec.name)),
                "containerRuntimeVersion": "containerd://2.1.4",
                "kernelVersion": kernel_release(),
                "kubeProxyVersion": "",
                "kubeletVersion": "v1.36.2",
                "machineID": names::hex(&format!("{}/{name}/machine", spec.name), 32),
                "operatingSystem": "linux",
                "osImage": "netpath laboratory",
                "systemUUID": names::uid(&format!("{}/{name}/system", spec.name)),
            },
        },
    })
}

/// Kernel release as `uname -r` prints it; says so where the kernel does not tell.
fn kernel_release() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/osrelease") {
        Ok(release) => release.trim().to_owned(),
        Err(error) => format!("unknown ({error})"),
    }
}

/// Name of the object that owns `pod`, and for a Deployment also the ReplicaSet between.
fn owner_names(pod: &PodSpec) -> (String, Option<String>) {
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
fn owners(spec: &Spec) -> Vec<Value> {
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

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// The last part of a ReplicaSet's name.
fn template_hash(replica_set: &str) -> String {
    replica_set
        .rsplit_once('-')
        .map_or(replica_set, |(_, hash)| hash)
        .to_owned()
}

fn pod_spec(pod: &PodSpec) -> Value {
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

fn is_ready(state: &ClusterState, pod: &PodSpec) -> bool {
    !state
        .spec
        .services
        .iter()
        .any(|service| state.emptied_services.contains(&service.path()) && selects(service, pod))
}

fn running_pod(state: &ClusterState, pod: &PodSpec) -> Value {
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
fn pending_pod(spec: &Spec) -> Value {
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
fn completed_pod(spec: &Spec) -> Value {
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

fn selects(service: &ServiceSpec, pod: &PodSpec) -> bool {
    !matches!(service.kind, ServiceKind::ExternalName(_))
        && service
            .selector
            .iter()
            .all(|(key, value)| pod.labels.get(key) == Some(value))
}

fn service_object(spec: &Spec, service: &ServiceSpec) -> Value {
    let ports: Vec<Value> = service
        .ports
        .iter()
        .map(|port| {
            let mut object = json!({
                "port": port.port, "targetPort": port.target, "protocol": port.protocol.upper(),
            });
            if !port.name.is_empty() {
                object["name"] = json!(port.name);
            }
            if let Some(node_port) = port.node_port {
                object["nodePort"] = json!(node_port);
            }
            object
        })
        .collect();
    let dual = json!({
        "selector": service.selector,
        "ports": ports,
        "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster",
        "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "PreferDualStack",
    });
    let body = match &service.kind {
        ServiceKind::ExternalName(name) => {
            json!({ "type": "ExternalName", "externalName": name, "sessionAffinity": "None" })
        }
        ServiceKind::Headless => {
            let mut body = dual;
            merge(
                &mut body,
                json!({ "type": "ClusterIP", "clusterIP": "None", "clusterIPs": ["None"] }),
            );
            body
        }
        ServiceKind::ClusterIp(v4, v6) => {
            let mut body = dual;
            let is_node_port = service.ports.iter().any(|port| port.node_port.is_some());
            merge(
                &mut body,
                json!({ "clusterIP": v4, "clusterIPs": [v4, v6] }),
            );
            if is_node_port {
                merge(
                    &mut body,
                    json!({ "type": "NodePort", "externalTrafficPolicy": "Cluster" }),
                );
            } else {
                merge(&mut body, json!({ "type": "ClusterIP" }));
            }
            body
        }
    };
    let mut meta = metadata(spec, "Service", &service.namespace, &service.name);
    meta["labels"] = json!({ "app.kubernetes.io/name": service.name });
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": meta,
        "spec": body,
        "status": { "loadBalancer": {} },
    })
}

fn endpoint_slice(state: &ClusterState, service: &ServiceSpec, family: Family) -> Value {
    let spec = &state.spec;
    let address_type = match family {
        Family::V4 => "IPv4",
        Family::V6 => "IPv6",
    };
    let suffix = names::hex(
        &format!("{}/{}/{address_type}", spec.name, service.path()),
        5,
    );
    let name = format!("{}-{suffix}", service.name);
    let pods: Vec<&PodSpec> = spec
        .pods
        .iter()
        .filter(|pod| selects(service, pod))
        .collect();
    let endpoints: Vec<Value> = pods
        .iter()
        .filter_map(|pod| {
            let address = pod_ips(pod).into_iter().find(|ip| Family::of(*ip) == family)?;
            let ready = is_ready(state, pod);
            Some(json!({
                "addresses": [address],
                "conditions": { "ready": ready, "serving": ready, "terminating": false },
                "nodeName": NodePlan(pod.node).name(),
                "zone": "lab-a",
                "targetRef": {
                    "kind": "Pod", "namespace": pod.namespace, "name": pod.name, "uid": pod_uid(spec, pod),
                },
            }))
        })
        .collect();
    let ports: Vec<Value> = service
        .ports
        .iter()
        .filter_map(|port| {
            let target = pods
                .iter()
                .find_map(|pod| pod.ports.iter().find(|p| p.name == port.target))?;
            Some(json!({ "name": port.name, "port": target.port, "protocol": port.protocol.upper() }))
        })
        .collect();
    let mut meta = metadata(spec, "EndpointSlice", &service.namespace, &name);
    meta["generateName"] = json!(format!("{}-", service.name));
    meta["generation"] = json!(1);
    let mut labels = Map::new();
    labels.insert("kubernetes.io/service-name".to_owned(), json!(service.name));
    labels.insert(
        "endpointslice.kubernetes.io/managed-by".to_owned(),
        json!("endpointslice-controller.k8s.io"),
    );
    if service.kind == ServiceKind::Headless {
        labels.insert("service.kubernetes.io/headless".to_owned(), json!(""));
    }
    meta["labels"] = Value::Object(labels);
    meta["ownerReferences"] = owner_reference(spec, "Service", &service.namespace, &service.name);
    meta["ownerReferences"][0]["apiVersion"] = json!("v1");
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": meta,
        "addressType": address_type,
        "endpoints": endpoints,
        "ports": ports,
    })
}
