//! discovery.k8s.io/v1 EndpointSlice.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::super::objects::{Endpoint, ServiceEndpoints};
use super::super::parse::Protocol;
use super::{Meta, null_is_default};

/// discovery.k8s.io/v1 EndpointSlice.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(in crate::resolve) struct EndpointSlice {
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
/// once. As in kube-proxy one that is not terminating wins (`addEndpoints()`, pkg/proxy/
/// endpointslicecache.go, v1.36): its address may have been given to a new pod. Between two of these
/// kube-proxy takes either, so that the endpoint is marked as disputed where they differ.
pub(in crate::resolve) fn gather_slices(slices: Vec<EndpointSlice>) -> Vec<ServiceEndpoints> {
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
                take(found, key, endpoint);
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

fn take<Key: Ord>(found: &mut BTreeMap<Key, Endpoint>, key: Key, endpoint: Endpoint) {
    let Some(known) = found.get_mut(&key) else {
        found.insert(key, endpoint);
        return;
    };
    match (known.terminating, endpoint.terminating) {
        (false, true) => {}
        (true, false) => *known = endpoint,
        (true, true) | (false, false) => {
            let said = |of: &Endpoint| (of.ready, of.serving);
            let disputed = known.disputed || said(known) != said(&endpoint);
            *known = Endpoint {
                disputed,
                ..endpoint
            };
        }
    }
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
        disputed: false,
    }
}
