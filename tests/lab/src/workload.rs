//! What runs in a laboratory unless told otherwise: the pods and Services that README and tests speak of.

use crate::spec::{Owner, PodSpec, Protocol, ServiceKind, ServiceSpec, port};

/// The pods of namespaces `shop`, `default` and `kube-system` on `nodes` nodes.
pub fn pods(nodes: usize) -> Vec<PodSpec> {
    let mut pods = Vec::new();
    for node in 1..=nodes {
        pods.push(
            PodSpec::new("shop", &format!("web-{}", node - 1), node, 7, "web")
                .owned_by(Owner::StatefulSet),
        );
    }
    for (suffix, node, host) in [("x2k7p", 1, 9), ("k9wqz", 2, 4), ("7pdmt", 2, 8)] {
        pods.push(
            PodSpec::new(
                "shop",
                &format!("api-5d4c7b9f6d-{suffix}"),
                node,
                host,
                "api",
            )
            .owned_by(Owner::Deployment),
        );
    }
    pods.push(PodSpec::new("default", "pod-a", 1, 11, "pod-a"));
    pods.push(PodSpec::new("default", "pod-b-1", 1, 12, "svc-b"));
    pods.push(PodSpec::new("default", "pod-b-2", 2, 12, "svc-b"));
    for (node, suffix) in (1..=nodes).zip(["4xq9d", "r8vnt", "m2c6k", "zw5hb"]) {
        let mut pod = PodSpec::new(
            "kube-system",
            &format!("node-exporter-{suffix}"),
            node,
            0,
            "node-exporter",
        )
        .owned_by(Owner::DaemonSet);
        pod.host_network = true;
        pod.ports = vec![port("metrics", 9100, Protocol::Tcp)];
        pods.push(pod);
    }
    pods
}

/// The Services of namespaces `shop` and `default`.
pub fn services() -> Vec<ServiceSpec> {
    let cluster_ip = |v4: &str, v6: &str| ServiceKind::ClusterIp(v4.to_owned(), v6.to_owned());
    vec![
        ServiceSpec::new(
            "shop",
            "api",
            "api",
            cluster_ip("10.96.14.3", "fd00:10:96::e03"),
        )
        .port("http", 80, "http", Protocol::Tcp)
        .node_port(30080)
        .port("dns", 53, "dns", Protocol::Udp),
        ServiceSpec::new(
            "shop",
            "web",
            "web",
            cluster_ip("10.96.14.4", "fd00:10:96::e04"),
        )
        .port("http", 80, "http", Protocol::Tcp),
        ServiceSpec::new("shop", "api-headless", "api", ServiceKind::Headless).port(
            "http",
            8080,
            "http",
            Protocol::Tcp,
        ),
        ServiceSpec::new(
            "shop",
            "empty",
            "nobody",
            cluster_ip("10.96.14.5", "fd00:10:96::e05"),
        )
        .port("http", 80, "http", Protocol::Tcp),
        ServiceSpec::new(
            "shop",
            "ext",
            "",
            ServiceKind::ExternalName("example.com".to_owned()),
        ),
        ServiceSpec::new(
            "default",
            "svc-b",
            "svc-b",
            cluster_ip("10.96.20.2", "fd00:10:96::1402"),
        )
        .port("http", 80, "http", Protocol::Tcp),
    ]
}
