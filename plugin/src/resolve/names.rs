//! A [`ClusterView`] as the names that the engine and the output use.

use netpath::model::names::{
    Endpoint, Names, NodeName, PodName, Proxying, ServiceName, ServicePort,
};

use super::objects::{ClusterView, ServiceKind, TrafficPolicy};
use super::parse::Protocol;

/// IANA protocol number; ICMP's stands for both families, since only Services ask here.
pub fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Icmp => 1,
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
        Protocol::Sctp => 132,
    }
}

/// Names of everything in the view. A pod CIDR that is not a prefix is left out.
pub fn names(view: &ClusterView) -> Names {
    let pods = view.pods.iter().map(|pod| PodName {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.cgroup_uid.clone(),
        node: pod.node.clone(),
        host_network: pod.host_network,
        ips: pod.ips.clone(),
        phase: pod.phase.clone(),
    });
    let services = view.services.iter().map(|service| ServiceName {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        kind: match service.kind {
            ServiceKind::ClusterIp => "ClusterIP",
            ServiceKind::NodePort => "NodePort",
            ServiceKind::LoadBalancer => "LoadBalancer",
            ServiceKind::ExternalName => "ExternalName",
        }
        .to_owned(),
        cluster_ips: service.cluster_ips.clone(),
        external_ips: [service.external_ips.as_slice(), &service.load_balancer_ips].concat(),
        ports: service
            .ports
            .iter()
            .map(|port| ServicePort {
                name: port.name.clone().unwrap_or_default(),
                port: port.port,
                protocol: protocol_number(port.protocol),
                node_port: port.node_port,
            })
            .collect(),
        endpoints: view
            .endpoints_of(&service.namespace, &service.name)
            .iter()
            .map(|endpoint| Endpoint {
                ip: endpoint.ip,
                port: endpoint.port,
                port_name: endpoint.port_name.clone().unwrap_or_default(),
                protocol: protocol_number(endpoint.protocol),
                node: endpoint.node.clone(),
                pod: endpoint
                    .pod
                    .as_ref()
                    .map(|(ns, name)| format!("{ns}/{name}")),
                ready: endpoint.ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
                hint_zones: endpoint.hint_zones.clone(),
                hint_nodes: endpoint.hint_nodes.clone(),
                disputed: endpoint.disputed,
            })
            .collect(),
        endpoints_unread: (!view.knows("endpointslices", &service.namespace)).then(|| {
            let mut unread = view.unread.iter();
            let why = unread.find(|unread| unread.resource == "endpointslices");
            why.map_or_else(String::new, |unread| unread.why.clone())
        }),
        proxying: Some(Proxying {
            internal_local: service.internal_policy == TrafficPolicy::Local,
            external_local: service.external_policy == TrafficPolicy::Local,
            affinity_seconds: service.affinity_seconds,
            load_balancer_ips: service.vip_ips.clone(),
            external_ips: service.external_ips.clone(),
            source_ranges: service.source_ranges.clone(),
            other_proxy: service.other_proxy.clone(),
        }),
    });
    let nodes = view.nodes.iter().map(|node| NodeName {
        name: node.name.clone(),
        addresses: node.ips.clone(),
        pod_cidrs: node
            .pod_cidrs
            .iter()
            .filter_map(|cidr| cidr.parse().ok())
            .collect(),
        ready: node.ready == Some(true),
        zone: node.zone.clone(),
    });
    Names {
        pods: pods.collect(),
        services: services.collect(),
        nodes: nodes.collect(),
    }
}
