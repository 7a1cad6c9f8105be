//! `kubectl get` asks for tables; these are those of pods, nodes, Services and plain names.

use axum::http::request::Parts;
use serde_json::{Value, json};

/// Whether the request asks for a table.
pub(super) fn wanted(parts: &Parts) -> bool {
    parts
        .headers
        .get_all("accept")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("as=Table"))
}

/// Name of a column, and whether only `-o wide` shows it.
type Column = (&'static str, bool);

/// The table of some objects.
pub(super) fn of(resource: &str, objects: &[Value], version: u64) -> Value {
    let columns: &[Column] = match resource {
        "pods" => &[
            ("Name", false),
            ("Ready", false),
            ("Status", false),
            ("Restarts", false),
            ("Age", false),
            ("IP", true),
            ("Node", true),
            ("Nominated Node", true),
            ("Readiness Gates", true),
        ],
        "nodes" => &[
            ("Name", false),
            ("Status", false),
            ("Roles", false),
            ("Age", false),
            ("Version", false),
            ("Internal-IP", true),
            ("External-IP", true),
            ("OS-Image", true),
            ("Kernel-Version", true),
            ("Container-Runtime", true),
        ],
        "services" => &[
            ("Name", false),
            ("Type", false),
            ("Cluster-IP", false),
            ("External-IP", false),
            ("Port(s)", false),
            ("Age", false),
            ("Selector", true),
        ],
        _ => &[("Name", false), ("Age", false)],
    };
    let definitions: Vec<Value> = columns
        .iter()
        .map(|(name, wide)| {
            json!({
                "name": name, "type": "string", "description": "",
                "format": if *name == "Name" { "name" } else { "" },
                "priority": i32::from(*wide),
            })
        })
        .collect();
    let rows: Vec<Value> = objects
        .iter()
        .map(|object| {
            let cells = match resource {
                "pods" => pod(object),
                "nodes" => node(object),
                "services" => service(object),
                _ => vec![text(object, "/metadata/name"), age()],
            };
            let partial = json!({
                "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
            });
            json!({"cells": cells, "object": partial})
        })
        .collect();
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"resourceVersion": version.to_string()},
        "columnDefinitions": definitions, "rows": rows,
    })
}

fn text(object: &Value, pointer: &str) -> String {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or("<none>")
        .to_owned()
}

/// Objects of a laboratory have a fixed time of creation, so that their age would mean nothing.
fn age() -> String {
    "lab".to_owned()
}

fn array<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn pod(object: &Value) -> Vec<String> {
    let statuses = array(object, "/status/containerStatuses");
    let ready = statuses
        .iter()
        .filter(|status| status["ready"] == true)
        .count();
    let total = array(object, "/spec/containers").len();
    let reason = statuses
        .iter()
        .flat_map(|status| ["waiting", "terminated"].map(|state| &status["state"][state]["reason"]))
        .find_map(Value::as_str);
    let status = reason.map_or_else(|| text(object, "/status/phase"), str::to_owned);
    vec![
        text(object, "/metadata/name"),
        format!("{ready}/{total}"),
        status,
        "0".to_owned(),
        age(),
        text(object, "/status/podIP"),
        text(object, "/spec/nodeName"),
        "<none>".to_owned(),
        "<none>".to_owned(),
    ]
}

fn node(object: &Value) -> Vec<String> {
    let ready = array(object, "/status/conditions")
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
    let internal = array(object, "/status/addresses")
        .iter()
        .find(|address| address["type"] == "InternalIP")
        .and_then(|address| address["address"].as_str());
    vec![
        text(object, "/metadata/name"),
        if ready { "Ready" } else { "NotReady" }.to_owned(),
        "<none>".to_owned(),
        age(),
        text(object, "/status/nodeInfo/kubeletVersion"),
        internal.unwrap_or("<none>").to_owned(),
        "<none>".to_owned(),
        text(object, "/status/nodeInfo/osImage"),
        text(object, "/status/nodeInfo/kernelVersion"),
        text(object, "/status/nodeInfo/containerRuntimeVersion"),
    ]
}

fn service(object: &Value) -> Vec<String> {
    let ports: Vec<String> = array(object, "/spec/ports")
        .iter()
        .map(|port| {
            let protocol = port["protocol"].as_str().unwrap_or("TCP");
            match port["nodePort"].as_u64() {
                Some(node_port) => format!("{}:{node_port}/{protocol}", port["port"]),
                None => format!("{}/{protocol}", port["port"]),
            }
        })
        .collect();
    let selector: Vec<String> = object
        .pointer("/spec/selector")
        .and_then(Value::as_object)
        .map(|map| {
            map.iter()
                .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
                .collect()
        })
        .unwrap_or_default();
    let or_none = |list: Vec<String>| {
        if list.is_empty() {
            "<none>".to_owned()
        } else {
            list.join(",")
        }
    };
    vec![
        text(object, "/metadata/name"),
        text(object, "/spec/type"),
        text(object, "/spec/clusterIP"),
        text(object, "/spec/externalName"),
        or_none(ports),
        age(),
        or_none(selector),
    ]
}
