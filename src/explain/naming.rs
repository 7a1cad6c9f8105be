//! Names for people: namespaces, addresses and kube-proxy's chains. They name; they never decide.

#![expect(
    clippy::format_push_string,
    reason = "writing to a String cannot fail, and its result would have to be ignored"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::model::link::LinkKind;
use crate::model::names::Names;
use crate::model::topology::Topology;
use crate::model::{IfIndex, NsKey};
use crate::trace::{Evidence, Trace};

use super::{owners, words};

/// What a chain of kube-proxy is for, by chain name: `shop/api:http`, or with the endpoint behind it.
///
/// The names hold hashes of Service and port, so that whoever knows the Services can tell; comments
/// may be missing (kube-proxy leaves them out in large clusters).
pub type ChainNames = BTreeMap<String, String>;

/// All that gives names.
#[derive(Clone, Copy, Debug)]
pub struct Naming<'a> {
    /// Facts.
    pub topology: &'a Topology,
    /// Kubernetes objects.
    pub names: &'a Names,
    /// Chains.
    pub chains: &'a ChainNames,
}

impl Naming<'_> {
    /// A namespace as a place: `on NODE` for the node's own, else `in NAME on NODE`.
    pub fn within(&self, key: &NsKey) -> String {
        match self.netns(key).as_str() {
            "host" => format!("on {}", key.node),
            other => format!("in {other} on {}", key.node),
        }
    }

    /// A namespace: `host`, `pod shop/web-0`, `netns net0`, or its inode where nothing names it.
    pub fn netns(&self, key: &NsKey) -> String {
        let Some(ns) = self.topology.netns(key) else {
            return format!("net:[{}]", key.netns.ino);
        };
        let identity = &ns.identity;
        if identity.host {
            return "host".to_owned();
        }
        if let Some(uid) = &identity.pod_uid {
            return match self.names.pod_by_uid(uid) {
                Some(pod) => format!("pod {}/{}", pod.namespace, pod.name),
                None => format!("pod with uid {uid}"),
            };
        }
        // Without a process's cgroup the pod's address tells, where one pod alone has it.
        if let Some(addrs) = ns.addrs.known() {
            let pods: BTreeSet<_> = addrs
                .iter()
                .filter(|addr| !addr.local.is_loopback())
                .filter_map(|addr| self.names.pod_by_ip(addr.local))
                .map(|pod| (&pod.namespace, &pod.name))
                .collect();
            if let (1, Some((namespace, name))) = (pods.len(), pods.first()) {
                return format!("pod {namespace}/{name}");
            }
        }
        if identity.paths.is_empty() {
            return match identity.processes.first() {
                Some(process) => format!("netns of pid {} ({})", process.pid, process.comm),
                None => format!("net:[{}]", key.netns.ino),
            };
        }
        format!("netns {}", identity.label())
    }

    /// A command as it is to be typed on the node, so that it works in this namespace.
    pub fn typed(&self, key: &NsKey, command: &str) -> String {
        let ns = self.topology.netns(key);
        let Some(ns) = ns.filter(|ns| !ns.identity.host) else {
            return command.to_owned();
        };
        let within = match (ns.identity.paths.first(), ns.identity.processes.first()) {
            (Some(path), _) => format!("--net={path}"),
            (None, Some(process)) => format!("-t {} -n", process.pid),
            (None, None) => return command.to_owned(),
        };
        format!("nsenter {within} {command}")
    }

    /// Who has an address: `pod shop/web-0`, `svc shop/api`, `node worker-1`, or the namespace that
    /// holds it where exactly one does.
    pub fn address(&self, ip: IpAddr) -> Option<String> {
        if let Some(pod) = self.names.pod_by_ip(ip) {
            return Some(format!("pod {}/{}", pod.namespace, pod.name));
        }
        if let Some(service) = self.names.service_by_ip(ip) {
            return Some(format!("svc {}/{}", service.namespace, service.name));
        }
        if let Some(node) = self.names.node_by_ip(ip) {
            return Some(format!("node {}", node.name));
        }
        if ip.is_loopback() {
            return None;
        }
        match self.holders(ip).as_slice() {
            [only] => Some(self.place(only)),
            _ => None,
        }
    }

    /// Namespaces that hold an address.
    pub fn holders(&self, ip: IpAddr) -> Vec<NsKey> {
        self.topology
            .all()
            .filter(|(_, ns)| {
                let addrs = ns.addrs.known();
                addrs.is_some_and(|addrs| addrs.iter().any(|addr| addr.local == ip))
            })
            .map(|(key, _)| key)
            .collect()
    }

    /// Node and namespace; the node alone for its own namespace.
    pub fn place(&self, key: &NsKey) -> String {
        match self.netns(key).as_str() {
            "host" => format!("node {}", key.node),
            other => other.to_owned(),
        }
    }

    /// Node on which an address is, by the namespaces read, else by what Kubernetes says.
    pub fn node_of(&self, ip: IpAddr) -> Option<String> {
        if let Some(pod) = self.names.pod_by_ip(ip) {
            return pod.node.clone();
        }
        if let Some(node) = self.names.node_by_ip(ip) {
            return Some(node.name.clone());
        }
        match self.holders(ip).as_slice() {
            [only] => Some(only.node.clone()),
            _ => None,
        }
    }

    /// A device by index.
    pub fn dev(&self, key: &NsKey, index: IfIndex) -> String {
        let ns = self.topology.netns(key);
        ns.and_then(|ns| ns.link(index))
            .map_or_else(|| format!("if{index}"), |link| link.name.clone())
    }

    /// A device with what else tells about it: `veth3fa2c1@if2, port 4 of cni0`.
    pub fn device(&self, key: &NsKey, name: &str) -> String {
        let link = self.topology.netns(key).and_then(|ns| ns.link_named(name));
        let Some(link) = link else {
            return name.to_owned();
        };
        let mut text = words::link_name(link, &|index| self.dev(key, index));
        if let (Some(port), Some(master)) = (&link.port, link.master) {
            let number = port
                .number
                .map_or(String::new(), |number| format!(" {number}"));
            text.push_str(&format!(", port{number} of {}", self.dev(key, master)));
        }
        if let LinkKind::Vxlan(vxlan) = &link.kind {
            text.push_str(&format!(", vxlan vni {}", vxlan.vni));
        }
        text
    }

    /// A text of the simulation, which names namespaces by node and inode, with their names instead.
    pub fn text(&self, text: &str) -> String {
        let mut named = text.to_owned();
        // Few texts name a namespace; the others are not searched for each.
        if named.contains("/net:[") {
            for (key, _) in self.topology.all() {
                named = named.replace(&key.to_string(), &self.place(&key));
            }
        }
        named
    }

    /// What a chain is for: the Service's port, where it is one of kube-proxy's and known, the pod, where
    /// kube-router's comment names it, else who makes chains of this name.
    pub fn chain_label(&self, table: &str, chain: &str, comment: Option<&str>) -> Option<String> {
        if let Some(service) = self.chain(chain, comment) {
            return Some(service);
        }
        let owner = owners::of_chain(table, chain)?;
        Some(match comment.and_then(pod_in_comment) {
            Some(pod) if owner.name == "kube-router" => format!("{owner}, {pod}"),
            _ => owner.to_string(),
        })
    }

    /// What a chain is for, where it is one of kube-proxy's; `comment` is that of a rule in it or
    /// leading to it.
    pub fn chain(&self, chain: &str, comment: Option<&str>) -> Option<String> {
        if let Some(known) = self.chains.get(chain) {
            return Some(known.clone());
        }
        if let Some(service) = nftables_service(chain) {
            return Some(service);
        }
        let of_service = [
            "KUBE-SVC-",
            "KUBE-SVL-",
            "KUBE-EXT-",
            "KUBE-FW-",
            "KUBE-SEP-",
        ];
        if !of_service.iter().any(|prefix| chain.starts_with(prefix)) {
            return None;
        }
        // "shop/api:http cluster IP", "shop/api:http -> 10.244.1.9:8080", "shop/api:http"
        let first = comment?.split_whitespace().next()?;
        (first.contains('/') && !first.contains("://")).then(|| first.to_owned())
    }
}

/// The Service port in the name of a chain or set of kube-proxy's nftables mode:
/// `service-ULMVA6XW-ns1/svc1/tcp/p80`, `endpoint-...-ns1/svc1/tcp/p80__10.180.0.1/80`.
fn nftables_service(chain: &str) -> Option<String> {
    let (prefix, rest) = chain.split_once('-')?;
    if ![
        "service", "local", "external", "firewall", "endpoint", "affinity",
    ]
    .contains(&prefix)
    {
        return None;
    }
    let (hash, rest) = rest.split_once('-')?;
    let base32 = |c: char| c.is_ascii_uppercase() || ('2'..='7').contains(&c);
    if hash.len() != 8 || !hash.chars().all(base32) {
        return None;
    }
    let (service, endpoint) = match rest.split_once("__") {
        Some((service, endpoint)) => (service, Some(endpoint)),
        None => (rest, None),
    };
    let mut parts = service.split('/');
    let (namespace, name, protocol) = (parts.next()?, parts.next()?, parts.next()?);
    let port = parts.next().unwrap_or_default();
    let mut words = match port {
        "" => format!("{namespace}/{name} {protocol}"),
        port => format!("{namespace}/{name}:{port}"),
    };
    if let Some(endpoint) = endpoint {
        words.push_str(&format!(" at {}", nftables_endpoint(endpoint)));
    }
    Some(words)
}

/// `10.180.0.1/80`; of an IPv6 address dots stand for its colons, and of a name with more than 240
/// characters the end is cut off and replaced by `...`.
fn nftables_endpoint(endpoint: &str) -> String {
    let parsed = endpoint.rsplit_once('/').and_then(|(ip, port)| {
        let own = ip.parse::<IpAddr>();
        let ip = own.or_else(|_| ip.replace('.', ":").parse()).ok()?;
        Some(words::socket_addr(ip, Some(port.parse().ok()?)))
    });
    parsed.unwrap_or_else(|| endpoint.to_owned())
}

/// The pod that a comment of kube-router names: `... POD name:web-0 namespace: shop ...`.
fn pod_in_comment(comment: &str) -> Option<String> {
    let (_, rest) = comment.split_once("POD name:")?;
    let (name, rest) = rest.split_once(" namespace:")?;
    let namespace = rest.split_whitespace().next()?;
    Some(format!("pod {namespace}/{}", name.trim()))
}

/// All chains that some traces went through, so that whoever knows the Services can name them.
pub fn chains_of<'a>(traces: impl IntoIterator<Item = &'a Trace>) -> BTreeSet<String> {
    let mut chains = BTreeSet::new();
    for trace in traces {
        let mut way = Some(trace);
        while let Some(trace) = way {
            let steps = trace.hops.iter().flat_map(|hop| &hop.steps);
            for evidence in steps.flat_map(|step| &step.evidence) {
                if let Evidence::NetfilterRule { chain, .. } = evidence {
                    chains.insert(chain.clone());
                }
            }
            way = trace.reply.as_deref();
        }
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_of_kube_router_name_the_pod() {
        let comment = "rule to REJECT traffic destined for POD name:web-0 namespace: shop";
        assert_eq!(pod_in_comment(comment).as_deref(), Some("pod shop/web-0"));
        assert_eq!(pod_in_comment("default/kubernetes:https"), None);
    }

    #[test]
    fn nftables_chain_names_tell_their_service() {
        let name = |chain| nftables_service(chain).unwrap_or_default();
        assert_eq!(name("service-ULMVA6XW-ns1/svc1/tcp/p80"), "ns1/svc1:p80");
        assert_eq!(name("service-ULMVA6XW-ns1/svc1/udp/"), "ns1/svc1 udp");
        assert_eq!(
            name("endpoint-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80"),
            "ns1/svc1:p80 at 10.180.0.1:80"
        );
        assert_eq!(
            name("endpoint-5OJB2KTY-ns1/svc1/tcp/p80__fd00.10.244..9/80"),
            "ns1/svc1:p80 at [fd00:10:244::9]:80"
        );
        // Cut: what is left of it.
        assert_eq!(
            name("endpoint-5OJB2KTY-ns1/svc1/tcp/p80__fd00.10.24..."),
            "ns1/svc1:p80 at fd00.10.24..."
        );
        assert_eq!(
            name("affinity-5OJB2KTY-ns1/svc1/tcp/p80__10.180.0.1/80"),
            "ns1/svc1:p80 at 10.180.0.1:80"
        );
        assert_eq!(name("service-endpoints-check"), "");
        assert_eq!(name("services"), "");
    }
}
