//! v1 Service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::Value;

use super::super::objects::{ServiceInfo, ServiceKind, ServicePort, TrafficPolicy};
use super::super::parse::Protocol;
use super::{Meta, null_is_default};

/// v1 Service.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(in crate::resolve) struct Service {
    metadata: Meta,
    spec: ServiceSpec,
    status: ServiceStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", deserialize_with = "null_is_default")]
    cluster_ips: Vec<String>,
    external_name: Option<String>,
    #[serde(rename = "externalIPs", deserialize_with = "null_is_default")]
    external_ips: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    ports: Vec<WirePort>,
    internal_traffic_policy: Option<String>,
    external_traffic_policy: Option<String>,
    session_affinity: Option<String>,
    session_affinity_config: Option<AffinityConfig>,
    #[serde(deserialize_with = "null_is_default")]
    load_balancer_source_ranges: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    selector: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct AffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<ClientIp>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClientIp {
    timeout_seconds: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WirePort {
    name: Option<String>,
    port: u16,
    protocol: Option<String>,
    target_port: Option<Value>,
    node_port: Option<u16>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ServiceStatus {
    load_balancer: LoadBalancer,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LoadBalancer {
    #[serde(deserialize_with = "null_is_default")]
    ingress: Vec<Ingress>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Ingress {
    ip: Option<String>,
    ip_mode: Option<String>,
}

fn policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") {
        TrafficPolicy::Local
    } else {
        TrafficPolicy::Cluster
    }
}

impl From<Service> for ServiceInfo {
    fn from(service: Service) -> Self {
        let Service {
            metadata,
            spec,
            status,
        } = service;
        let parse_all = |list: &[String]| {
            list.iter()
                .filter_map(|ip| ip.parse::<IpAddr>().ok())
                .collect::<Vec<_>>()
        };
        let mut cluster_ips = parse_all(&spec.cluster_ips);
        if cluster_ips.is_empty() {
            cluster_ips.extend(
                spec.cluster_ip
                    .as_deref()
                    .and_then(|ip| ip.parse::<IpAddr>().ok()),
            );
        }
        let affinity_seconds = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            spec.session_affinity_config
                .and_then(|config| config.client_ip)
                .and_then(|client| client.timeout_seconds)
                // The API's default, three hours.
                .unwrap_or(10_800)
        });
        ServiceInfo {
            kind: match spec.kind.as_deref() {
                Some("NodePort") => ServiceKind::NodePort,
                Some("LoadBalancer") => ServiceKind::LoadBalancer,
                Some("ExternalName") => ServiceKind::ExternalName,
                _ => ServiceKind::ClusterIp,
            },
            cluster_ips,
            headless: spec.cluster_ip.as_deref() == Some("None")
                || spec.cluster_ips.iter().any(|ip| ip == "None"),
            external_name: spec.external_name.filter(|n| !n.is_empty()),
            external_ips: parse_all(&spec.external_ips),
            load_balancer_ips: status
                .load_balancer
                .ingress
                .iter()
                .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
                .collect(),
            vip_ips: status
                .load_balancer
                .ingress
                .iter()
                .filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
                .filter_map(|ingress| ingress.ip.as_deref()?.parse().ok())
                .collect(),
            // Validation lets blanks around them pass.
            source_ranges: spec
                .load_balancer_source_ranges
                .iter()
                .filter_map(|range| range.trim().parse().ok())
                .collect(),
            ports: spec
                .ports
                .into_iter()
                .map(|port| ServicePort {
                    name: port.name.filter(|n| !n.is_empty()),
                    protocol: Protocol::from_api(port.protocol.as_deref()),
                    target: match port.target_port {
                        Some(Value::String(name)) => name,
                        Some(Value::Number(number)) => number.to_string(),
                        // An absent targetPort equals the port (API default).
                        _ => port.port.to_string(),
                    },
                    node_port: port.node_port.filter(|p| *p != 0),
                    port: port.port,
                })
                .collect(),
            internal_policy: policy(spec.internal_traffic_policy.as_deref()),
            external_policy: policy(spec.external_traffic_policy.as_deref()),
            affinity_seconds,
            selector: spec.selector,
            other_proxy: metadata
                .labels
                .get("service.kubernetes.io/service-proxy-name")
                .cloned(),
            namespace: metadata.namespace,
            name: metadata.name,
        }
    }
}
