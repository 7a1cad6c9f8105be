//! Services and their EndpointSlices.

use serde_json::{Map, Value, json};

use super::pod::is_ready;
use super::{merge, metadata, owner_reference, selects};
use crate::address::{Family, NodePlan, pod_ips};
use crate::cluster::pod_uid;
use crate::names;
use crate::spec::{PodSpec, ServiceKind, ServiceSpec, Spec};
use crate::state::ClusterState;

pub(super) fn service_object(spec: &Spec, service: &ServiceSpec) -> Value {
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
    let policy = if service.local { "Local" } else { "Cluster" };
    let mut dual = json!({
        "selector": service.selector,
        "ports": ports,
        "sessionAffinity": "None",
        "internalTrafficPolicy": policy,
        "ipFamilies": ["IPv4", "IPv6"],
        "ipFamilyPolicy": "PreferDualStack",
    });
    if let Some(seconds) = service.affinity_seconds {
        dual["sessionAffinity"] = json!("ClientIP");
        dual["sessionAffinityConfig"] = json!({ "clientIP": { "timeoutSeconds": seconds } });
    }
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
                    json!({ "type": "NodePort", "externalTrafficPolicy": policy }),
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

pub(super) fn endpoint_slice(state: &ClusterState, service: &ServiceSpec, family: Family) -> Value {
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
