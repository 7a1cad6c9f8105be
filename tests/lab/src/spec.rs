//! What a laboratory should be: overlay, service proxy, number of nodes, pods and services.
//!
//! The defaults are the workload that the README and most tests speak of.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::workload;

/// Pod network of the whole cluster, IPv4.
pub const CLUSTER_CIDR4: &str = "10.244.0.0/16";
/// Pod network of the whole cluster, IPv6.
pub const CLUSTER_CIDR6: &str = "fd00:10:244::/48";
/// Service network, IPv4.
pub const SERVICE_CIDR4: &str = "10.96.0.0/16";
/// Service network, IPv6.
pub const SERVICE_CIDR6: &str = "fd00:10:96::/112";
/// Address of the host outside of the cluster, IPv4.
pub const OUTSIDE4: &str = "198.51.100.1";
/// Address of the host outside of the cluster, IPv6.
pub const OUTSIDE6: &str = "2001:db8:51::1";

/// How a packet gets from a pod network to another node's.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Overlay {
    /// flannel's `vxlan` backend: `flannel.1` and `flannel-v6.1`, VNI 1, UDP 8472.
    #[default]
    Vxlan,
    /// flannel's `host-gw` backend: routes through the node addresses.
    Routed,
}

/// How Services are programmed on the nodes.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// kube-proxy mode `iptables`, rules in nf_tables.
    #[default]
    IptablesNft,
    /// kube-proxy mode `iptables`, rules in x_tables.
    IptablesLegacy,
    /// kube-proxy mode `nftables`, rules as Kubernetes 1.35 and later write them.
    Nftables,
    /// kube-proxy mode `ipvs`, rules in nf_tables. Many kernels lack it.
    Ipvs,
}

impl Overlay {
    /// Both overlays.
    pub const ALL: [Self; 2] = [Self::Vxlan, Self::Routed];
}

impl Proxy {
    /// The proxies that every kernel here can do.
    pub const ALL: [Self; 3] = [Self::IptablesNft, Self::IptablesLegacy, Self::Nftables];
}

impl fmt::Display for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vxlan => "vxlan",
            Self::Routed => "routed",
        })
    }
}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        })
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`, as rules write it.
    pub fn lower(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }

    /// `TCP` or `UDP`, as the API writes it.
    pub fn upper(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// The API object that owns a pod.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Owner {
    /// A bare pod.
    None,
    /// Deployment and its ReplicaSet; the pod is called `<deployment>-<hash>-<suffix>`.
    Deployment,
    /// StatefulSet; the pod is called `<set>-<ordinal>`.
    StatefulSet,
    /// DaemonSet; the pod is called `<set>-<suffix>`.
    DaemonSet,
}

/// A port that a pod's listener opens.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PodPort {
    /// Name, which Services may use as target.
    pub name: String,
    /// Port number.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// One pod with processes.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct PodSpec {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Number of its node, from 1.
    pub node: usize,
    /// Last part of both addresses: `10.244.<node>.<host>`, `fd00:10:244:<node>::<host>`; 2 to 250.
    ///
    /// The digits are the same in both, so 12 gives `::12`. Not used with `host_network`.
    pub host: u8,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Ports of the listener.
    pub ports: Vec<PodPort>,
    /// Whether it runs in the node's network namespace.
    pub host_network: bool,
    /// Owning object.
    pub owner: Owner,
}

impl PodSpec {
    /// A bare pod with label `app`, listening on TCP 8080 (`http`) and UDP 8053 (`dns`).
    pub fn new(namespace: &str, name: &str, node: usize, host: u8, app: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            node,
            host,
            labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            ports: vec![
                port("http", 8080, Protocol::Tcp),
                port("dns", 8053, Protocol::Udp),
            ],
            host_network: false,
            owner: Owner::None,
        }
    }

    /// The same pod, owned by an object of kind `owner`.
    #[must_use]
    pub fn owned_by(mut self, owner: Owner) -> Self {
        self.owner = owner;
        self
    }

    /// `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

pub(crate) fn port(name: &str, port: u16, protocol: Protocol) -> PodPort {
    PodPort {
        name: name.to_owned(),
        port,
        protocol,
    }
}

/// A port of a Service.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ServicePort {
    /// Port name; empty for the only port of a Service.
    pub name: String,
    /// Port on the ClusterIP.
    pub port: u16,
    /// Name of the pods' port.
    pub target: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port on every node, for NodePort Services.
    pub node_port: Option<u16>,
}

/// What kind of Service it is.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum ServiceKind {
    /// ClusterIP, or NodePort when a port has one; the pair is (IPv4, IPv6).
    ClusterIp(String, String),
    /// `clusterIP: None`.
    Headless,
    /// ExternalName with this DNS name.
    ExternalName(String),
}

/// One Service.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct ServiceSpec {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service name.
    pub name: String,
    /// Kind and addresses.
    pub kind: ServiceKind,
    /// Labels that a pod must carry.
    pub selector: BTreeMap<String, String>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Seconds of ClientIP affinity that the API object asks for. The rules never follow it: a fault.
    #[serde(default)]
    pub affinity_seconds: Option<u32>,
    /// The API object's traffic policies are Local. The rules never follow them: a fault.
    #[serde(default)]
    pub local: bool,
}

impl ServiceSpec {
    /// A Service that selects pods by label `app`.
    pub fn new(namespace: &str, name: &str, app: &str, kind: ServiceKind) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            kind,
            selector: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            ports: Vec::new(),
            affinity_seconds: None,
            local: false,
        }
    }

    /// Adds a port.
    #[must_use]
    pub fn port(mut self, name: &str, port: u16, target: &str, protocol: Protocol) -> Self {
        self.ports.push(ServicePort {
            name: name.to_owned(),
            port,
            target: target.to_owned(),
            protocol,
            node_port: None,
        });
        self
    }

    /// Gives the port added last a node port.
    #[must_use]
    pub fn node_port(mut self, node_port: u16) -> Self {
        if let Some(last) = self.ports.last_mut() {
            last.node_port = Some(node_port);
        }
        self
    }

    /// `namespace/name`.
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A laboratory to be made.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Spec {
    /// Name of the laboratory, 1 to 40 of `a-z0-9-`; two of the same name cannot run at once.
    pub name: String,
    /// Overlay.
    pub overlay: Overlay,
    /// Service proxy.
    pub proxy: Proxy,
    /// Number of nodes, 2 to 4.
    pub nodes: usize,
    /// Pods with processes.
    pub pods: Vec<PodSpec>,
    /// Services.
    pub services: Vec<ServiceSpec>,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            name: "lab".to_owned(),
            overlay: Overlay::default(),
            proxy: Proxy::default(),
            nodes: 2,
            pods: workload::pods(2),
            services: workload::services(),
        }
    }
}

impl Spec {
    /// The default workload on this overlay and proxy.
    pub fn new(overlay: Overlay, proxy: Proxy) -> Self {
        Self {
            overlay,
            proxy,
            ..Self::default()
        }
    }

    /// Names the laboratory.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Sets the number of nodes and puts the default pods on them.
    #[must_use]
    pub fn with_nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self.pods = workload::pods(nodes);
        self
    }

    /// Adds Services with three endpoints each, as most have, up to a number.
    pub fn with_services(mut self, number: usize) -> Result<Self> {
        ensure!(
            number <= MOST_SERVICES,
            "{number} Services: at most {MOST_SERVICES} have addresses"
        );
        let own = self.services.len();
        self.services.extend((own..number).map(one_of_many));
        Ok(self)
    }

    /// MTU of pod interfaces, in bytes: what the overlay leaves of 1500.
    pub fn pod_mtu(&self) -> u32 {
        match self.overlay {
            Overlay::Vxlan => 1450,
            Overlay::Routed => 1500,
        }
    }

    /// Refuses what cannot be built, naming the field.
    pub fn check(&self) -> Result<()> {
        ensure!(
            (1..=40).contains(&self.name.len())
                && self
                    .name
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
            "laboratory name {:?}: 1 to 40 of a-z, 0-9 and -",
            self.name
        );
        ensure!(
            (2..=4).contains(&self.nodes),
            "{} nodes: 2 to 4 are possible",
            self.nodes
        );
        for pod in &self.pods {
            ensure!(
                (1..=self.nodes).contains(&pod.node),
                "pod {}: node {} does not exist",
                pod.path(),
                pod.node
            );
            ensure!(
                pod.host_network || (2..=250).contains(&pod.host),
                "pod {}: host part {} is not within 2 to 250",
                pod.path(),
                pod.host
            );
        }
        for service in &self.services {
            if let ServiceKind::ClusterIp(v4, v6) = &service.kind {
                ensure!(
                    v4.parse::<Ipv4Addr>().is_ok() && v6.parse::<Ipv6Addr>().is_ok(),
                    "service {}: {v4:?} and {v6:?} are not an IPv4 and an IPv6 address",
                    service.path()
                );
            }
        }
        Ok(())
    }
}

/// Bound of the Service network less what the laboratory's own Services take.
const MOST_SERVICES: usize = 40_000;

fn one_of_many(number: usize) -> ServiceSpec {
    // Above all addresses of the laboratory's own Services.
    let address = 0x4000 + number;
    let v4 = format!("10.96.{}.{}", address >> 8, address & 0xff);
    let v6 = format!("fd00:10:96::{address:x}");
    let kind = ServiceKind::ClusterIp(v4, v6);
    ServiceSpec::new("scale", &format!("s-{number}"), "api", kind).port(
        "http",
        80,
        "http",
        Protocol::Tcp,
    )
}
