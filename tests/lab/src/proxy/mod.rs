//! Rules on a node, in the shape that kube-proxy, kubelet and flannel give them.

pub mod accounting;
mod iptables;
mod ipvs;
mod nftables;

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;

use crate::address::{Family, NodePlan, pod_ips};
use crate::command::feed;
use crate::spec::{
    CLUSTER_CIDR4, CLUSTER_CIDR6, Protocol, Proxy, SERVICE_CIDR4, SERVICE_CIDR6, ServiceKind, Spec,
};

/// One port of one Service in one family: what a proxy makes rules of.
#[derive(Clone, Debug)]
pub struct ServicePortRules {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Service name.
    pub service: String,
    /// Port name; may be empty.
    pub port_name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// ClusterIP.
    pub cluster_ip: IpAddr,
    /// Port on the ClusterIP.
    pub port: u16,
    /// Port on every node.
    pub node_port: Option<u16>,
    /// Usable endpoints, in order of address.
    pub endpoints: Vec<SocketAddr>,
}

impl ServicePortRules {
    /// kube-proxy's `ServicePortName`: `namespace/name:port`, without colon for an unnamed port.
    pub fn label(&self) -> String {
        if self.port_name.is_empty() {
            format!("{}/{}", self.namespace, self.service)
        } else {
            format!("{}/{}:{}", self.namespace, self.service, self.port_name)
        }
    }
}

/// Everything that the rules of one node in one family are made of.
pub(crate) struct Input {
    family: Family,
    node: NodePlan,
    ports: Vec<ServicePortRules>,
    /// Whether rules may count into the objects of [`ACCOUNTING`].
    accounting: bool,
}

/// Invalid packets dropped, and packets to a node port of a loopback address.
const ACCOUNTING: [&str; 2] = [
    "ct_state_invalid_dropped_pkts",
    "localhost_nps_accepted_pkts",
];

impl Input {
    fn cluster_cidr(&self) -> &'static str {
        match self.family {
            Family::V4 => CLUSTER_CIDR4,
            Family::V6 => CLUSTER_CIDR6,
        }
    }

    fn service_cidr(&self) -> &'static str {
        match self.family {
            Family::V4 => SERVICE_CIDR4,
            Family::V6 => SERVICE_CIDR6,
        }
    }

    fn multicast(&self) -> &'static str {
        match self.family {
            Family::V4 => "224.0.0.0/4",
            Family::V6 => "ff00::/8",
        }
    }
}

/// Service ports of `spec` in `family`; Services named in `emptied` have no endpoints.
pub fn service_ports(spec: &Spec, emptied: &[String], family: Family) -> Vec<ServicePortRules> {
    let mut rules = Vec::new();
    for service in &spec.services {
        let ServiceKind::ClusterIp(v4, v6) = &service.kind else {
            continue;
        };
        let text = match family {
            Family::V4 => v4,
            Family::V6 => v6,
        };
        let Ok(cluster_ip) = text.parse::<IpAddr>() else {
            // `Spec::check` refuses such a Service before anything is made of it.
            continue;
        };
        for port in &service.ports {
            let mut endpoints = Vec::new();
            for pod in &spec.pods {
                let selected = service
                    .selector
                    .iter()
                    .all(|(key, value)| pod.labels.get(key) == Some(value));
                if !selected || emptied.contains(&service.path()) {
                    continue;
                }
                let target = pod.ports.iter().find(|p| p.name == port.target);
                let address = pod_ips(pod)
                    .into_iter()
                    .find(|ip| Family::of(*ip) == family);
                if let (Some(target), Some(address)) = (target, address) {
                    endpoints.push(SocketAddr::new(address, target.port));
                }
            }
            endpoints.sort();
            rules.push(ServicePortRules {
                namespace: service.namespace.clone(),
                service: service.name.clone(),
                port_name: port.name.clone(),
                protocol: port.protocol,
                cluster_ip,
                port: port.port,
                node_port: port.node_port,
                endpoints,
            });
        }
    }
    rules
}

/// Writes all rules of node `number`. Runs in the node's network and mount namespaces.
///
/// Rules that are there already are replaced, the policies of built-in chains included.
pub fn program(spec: &Spec, emptied: &[String], number: usize) -> Result<()> {
    let mut accounting = matches!(spec.proxy, Proxy::IptablesNft | Proxy::IptablesLegacy);
    if accounting {
        for name in ACCOUNTING {
            accounting &= accounting::ensure(name, None)?;
        }
    }
    if spec.proxy == Proxy::Ipvs {
        ipvs::clear()?;
    }
    for family in Family::BOTH {
        let input = Input {
            family,
            node: NodePlan(number),
            accounting,
            ports: service_ports(spec, emptied, family),
        };
        let restore = restore_program(spec.proxy, family);
        match spec.proxy {
            Proxy::IptablesNft | Proxy::IptablesLegacy => {
                feed(&[restore], &iptables::kube_proxy(&input))?;
            }
            Proxy::Ipvs => {
                ipvs::program(&input)?;
                feed(&[restore], &ipvs::rules(&input))?;
            }
            Proxy::Nftables => {
                feed(&[restore], &iptables::kubelet_only(&input))?;
                feed(&["nft", "-f", "-"], &nftables::kube_proxy(&input))?;
                feed(&["nft", "-f", "-"], &nftables::flannel(&input))?;
            }
        }
    }
    Ok(())
}

fn restore_program(proxy: Proxy, family: Family) -> &'static str {
    match (proxy, family) {
        (Proxy::IptablesLegacy, Family::V4) => "iptables-legacy-restore",
        (Proxy::IptablesLegacy, Family::V6) => "ip6tables-legacy-restore",
        (_, Family::V4) => "iptables-nft-restore",
        (_, Family::V6) => "ip6tables-nft-restore",
    }
}

/// The `iptables` program that sees the same rules as kubelet and flannel on such a node.
pub fn iptables_program(proxy: Proxy, family: Family) -> &'static str {
    match (proxy, family) {
        (Proxy::IptablesLegacy, Family::V4) => "iptables-legacy",
        (Proxy::IptablesLegacy, Family::V6) => "ip6tables-legacy",
        (_, Family::V4) => "iptables-nft",
        (_, Family::V6) => "ip6tables-nft",
    }
}
