//! The pods and Services that the check speaks of, as the cluster gave them addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::kubectl::{self, NAMESPACE};

const WORKLOAD: &str = include_str!("../workload.yaml");

/// A node.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Internal addresses.
    pub ips: Vec<IpAddr>,
    /// Prefixes of its pods.
    pub pod_cidrs: Vec<String>,
}

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Node's name.
    pub node: String,
    /// It is in its node's network.
    pub host_network: bool,
    /// Addresses.
    pub ips: Vec<IpAddr>,
}

/// A Service.
#[derive(Clone, Debug)]
pub struct Service {
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Ports, in order.
    pub ports: Vec<ServicePort>,
}

/// A port of a Service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Name; empty if it has none.
    pub name: String,
    /// Number at the Service's addresses.
    pub number: u16,
    /// Number at the nodes' addresses.
    pub node_port: Option<u16>,
}

impl Service {
    /// The port of a name, or the first one.
    pub fn port(&self, name: Option<&str>) -> Option<&ServicePort> {
        match name {
            Some(name) => self.ports.iter().find(|port| port.name == name),
            None => self.ports.first(),
        }
    }
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// The two nodes that the check uses.
    pub nodes: Vec<Node>,
    /// Pods by name.
    pub pods: BTreeMap<String, Pod>,
    /// Services by name.
    pub services: BTreeMap<String, Service>,
    /// Both families have addresses.
    pub dual: bool,
}

impl Objects {
    /// Puts the workload onto two nodes, into the namespace that was made for it, and waits until its pods are ready.
    pub fn make(image: &str) -> Result<Self> {
        let text = kubectl::run(&["get", "nodes", "-o", "json"], "")?;
        let list: Value = serde_json::from_str(&text).context("read the list of nodes")?;
        let items = list["items"].as_array().map_or(&[][..], Vec::as_slice);
        let nodes: Vec<&Value> = items.iter().take(2).collect();
        let [first, second] = nodes[..] else {
            bail!("look for two nodes: found {}", nodes.len());
        };
        let text = WORKLOAD
            .replace("NODE-1", &name(first)?)
            .replace("NODE-2", &name(second)?)
            .replace("IMAGE", image);
        kubectl::run(&["apply", "--namespace", NAMESPACE, "-f", "-"], &text)?;
        let ready = ["wait", "--for=condition=Ready", "pod", "--all"];
        let ready = [&ready[..], &["--namespace", NAMESPACE, "--timeout=60s"]].concat();
        kubectl::run(&ready, "")?;
        let mut objects = Self {
            nodes: nodes
                .iter()
                .map(|node| of_node(node))
                .collect::<Result<_>>()?,
            dual: nodes.iter().all(|node| {
                node["spec"]["podCIDRs"]
                    .as_array()
                    .is_some_and(|all| all.len() == 2)
            }),
            ..Self::default()
        };
        for pod in kubectl::get("pods")? {
            let pod = of_pod(&pod)?;
            objects.pods.insert(pod.name.clone(), pod);
        }
        objects.read_services()?;
        Ok(objects)
    }

    /// Reads the Services again.
    pub fn read_services(&mut self) -> Result<()> {
        for service in kubectl::get("services")? {
            self.services.insert(name(&service)?, of_service(&service)?);
        }
        Ok(())
    }

    /// Whether to look at IPv6, for each family that the cluster has.
    pub fn families(&self) -> &'static [bool] {
        if self.dual { &[false, true] } else { &[false] }
    }

    /// The prefix of a node's pods.
    pub fn pod_cidr(&self, node: &str, v6: bool) -> Result<String> {
        let node = self.nodes.iter().find(|one| one.name == node);
        let cidrs = node.into_iter().flat_map(|node| &node.pod_cidrs);
        let mut cidrs = cidrs.filter(|cidr| cidr.contains(':') == v6);
        cidrs
            .next()
            .cloned()
            .context("find the prefix of a node's pods")
    }

    /// A pod that the workload has.
    pub fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods
            .get(name)
            .with_context(|| format!("find pod {name} of the workload"))
    }

    /// A Service that the workload has.
    pub fn service(&self, name: &str) -> Result<&Service> {
        let found = self.services.get(name);
        found.with_context(|| format!("find Service {name} of the workload"))
    }
}

/// The address of a family.
pub fn of_family(ips: &[IpAddr], v6: bool) -> Result<IpAddr> {
    let found = ips.iter().copied().find(|ip| ip.is_ipv6() == v6);
    let family = if v6 { 6 } else { 4 };
    found.with_context(|| format!("find an address of IPv{family} among {ips:?}"))
}

fn name(object: &Value) -> Result<String> {
    let name = object["metadata"]["name"].as_str();
    Ok(name.context("an object has no name")?.to_owned())
}

fn of_node(node: &Value) -> Result<Node> {
    let addresses = node["status"]["addresses"].as_array();
    let internal = addresses
        .into_iter()
        .flatten()
        .filter(|address| address["type"] == "InternalIP");
    let cidrs = node["spec"]["podCIDRs"].as_array();
    Ok(Node {
        pod_cidrs: cidrs
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        name: name(node)?,
        ips: internal
            .filter_map(|address| address["address"].as_str()?.parse().ok())
            .collect(),
    })
}

fn of_pod(pod: &Value) -> Result<Pod> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let ips = pod["status"]["podIPs"].as_array();
    Ok(Pod {
        name: name(pod)?,
        uid: text(&pod["metadata"]["uid"]),
        node: text(&pod["spec"]["nodeName"]),
        host_network: pod["spec"]["hostNetwork"] == true,
        ips: ips
            .into_iter()
            .flatten()
            .filter_map(|ip| ip["ip"].as_str()?.parse().ok())
            .collect(),
    })
}

fn of_service(service: &Value) -> Result<Service> {
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    let ips = service["spec"]["clusterIPs"].as_array();
    let ports = service["spec"]["ports"].as_array();
    Ok(Service {
        ips: ips
            .into_iter()
            .flatten()
            .filter_map(|ip| ip.as_str()?.parse().ok())
            .collect(),
        ports: ports
            .into_iter()
            .flatten()
            .map(|one| {
                let number = port(&one["port"]).context("a Service's port is no number")?;
                Ok(ServicePort {
                    name: one["name"].as_str().unwrap_or_default().to_owned(),
                    number,
                    node_port: port(&one["nodePort"]),
                })
            })
            .collect::<Result<_>>()?,
    })
}
