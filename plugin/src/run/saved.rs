//! A saved file in place of a cluster.

use std::path::Path;

use anyhow::Context;
use netpath::contract::file::{self, SnapshotFile};
use netpath::model::names::Names;

use crate::resolve::objects::{
    Endpoint, NodeInfo, PodInfo, ServiceEndpoints, ServiceInfo, ServiceKind, ServicePort,
    TrafficPolicy, Unread,
};
use crate::resolve::{ClusterView, Protocol};

/// Reads and checks a file. Errors name it.
pub fn read(path: &Path) -> anyhow::Result<SnapshotFile> {
    let open = std::fs::File::open(path)
        .with_context(|| format!("open snapshot file {}", path.display()))?;
    let mut file = file::read(open).with_context(|| format!("snapshot file {}", path.display()))?;
    // Nobody can be asked any more: what is not in the file is unknown.
    for (node, hint) in &mut file.topology.hints {
        hint.reachable = file.topology.nodes.contains_key(node);
    }
    Ok(file)
}

/// Whether it was saved with `--local`.
pub fn is_local(file: &SnapshotFile) -> bool {
    file.names.nodes.is_empty() && file.names.pods.is_empty()
}

/// The only node of a local file.
pub fn local_node(file: &SnapshotFile) -> anyhow::Result<String> {
    match file.topology.nodes.keys().collect::<Vec<_>>().as_slice() {
        [only] => Ok((*only).clone()),
        _ => anyhow::bail!("the snapshot file holds no names and not exactly one machine"),
    }
}

/// Names as the resolver wants them. What the file does not hold is marked as unread.
pub fn view(names: &Names) -> ClusterView {
    let unread = ["deployments", "statefulsets", "daemonsets", "replicasets"];
    ClusterView {
        nodes: names
            .nodes
            .iter()
            .map(|node| NodeInfo {
                name: node.name.clone(),
                ready: Some(node.ready),
                reason: None,
                network_unavailable: false,
                ips: node.addresses.clone(),
                pod_cidrs: node.pod_cidrs.iter().map(ToString::to_string).collect(),
                os: "linux".to_owned(),
                arch: String::new(),
                kernel: String::new(),
                zone: node.zone.clone(),
                virtual_kubelet: false,
            })
            .collect(),
        pods: names
            .pods
            .iter()
            .map(|pod| PodInfo {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
                cgroup_uid: pod.uid.clone(),
                node: pod.node.clone(),
                host_network: pod.host_network,
                phase: pod.phase.clone(),
                ready: true,
                reason: None,
                terminating: false,
                ips: pod.ips.clone(),
                host_ips: Vec::new(),
                containers: Vec::new(),
                labels: std::collections::BTreeMap::new(),
                owner: None,
            })
            .collect(),
        services: names.services.iter().map(service).collect(),
        endpoints: names.services.iter().map(endpoints).collect(),
        workloads: Vec::new(),
        namespaces: Vec::new(),
        unread: unread
            .iter()
            .map(|resource| Unread {
                resource: (*resource).to_owned(),
                read_instead: Vec::new(),
                why: "a snapshot file holds pods, Services and nodes only".to_owned(),
            })
            .collect(),
    }
}

fn protocol(number: u8) -> Protocol {
    match number {
        17 => Protocol::Udp,
        132 => Protocol::Sctp,
        _ => Protocol::Tcp,
    }
}

fn service(service: &netpath::model::names::ServiceName) -> ServiceInfo {
    let kind = match service.kind.as_str() {
        "NodePort" => ServiceKind::NodePort,
        "LoadBalancer" => ServiceKind::LoadBalancer,
        "ExternalName" => ServiceKind::ExternalName,
        _ => ServiceKind::ClusterIp,
    };
    // Files of older versions do not hold it.
    let proxying = service.proxying.clone().unwrap_or_default();
    let policy = |local: bool| {
        if local {
            TrafficPolicy::Local
        } else {
            TrafficPolicy::Cluster
        }
    };
    ServiceInfo {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        kind,
        cluster_ips: service.cluster_ips.clone(),
        headless: kind != ServiceKind::ExternalName && service.cluster_ips.is_empty(),
        external_name: None,
        external_ips: service.external_ips.clone(),
        load_balancer_ips: Vec::new(),
        vip_ips: proxying.load_balancer_ips,
        source_ranges: proxying.source_ranges,
        ports: service
            .ports
            .iter()
            .map(|port| ServicePort {
                name: (!port.name.is_empty()).then(|| port.name.clone()),
                port: port.port,
                protocol: protocol(port.protocol),
                target: String::new(),
                node_port: port.node_port,
            })
            .collect(),
        internal_policy: policy(proxying.internal_local),
        external_policy: policy(proxying.external_local),
        affinity_seconds: proxying.affinity_seconds,
        selector: std::collections::BTreeMap::new(),
        other_proxy: proxying.other_proxy,
    }
}

fn endpoints(service: &netpath::model::names::ServiceName) -> ServiceEndpoints {
    ServiceEndpoints {
        namespace: service.namespace.clone(),
        service: service.name.clone(),
        endpoints: service
            .endpoints
            .iter()
            .map(|endpoint| Endpoint {
                ip: endpoint.ip,
                port: endpoint.port,
                port_name: (!endpoint.port_name.is_empty()).then(|| endpoint.port_name.clone()),
                protocol: protocol(endpoint.protocol),
                node: endpoint.node.clone(),
                pod: endpoint.pod.as_deref().and_then(|pod| {
                    let (namespace, name) = pod.split_once('/')?;
                    Some((namespace.to_owned(), name.to_owned()))
                }),
                ready: endpoint.ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
                zone: None,
                hint_zones: endpoint.hint_zones.clone(),
                hint_nodes: endpoint.hint_nodes.clone(),
                disputed: endpoint.disputed,
            })
            .collect(),
    }
}
