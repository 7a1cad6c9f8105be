//! Who makes tables, chains and sets of these names, and what for. Labels only name: nothing is decided
//! by them.
//!
//! A table of data, since names are all that is known of these programs here. Sources: the programs' own
//! sources and documentation, as of 2026.

/// Who made an object, and what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Program: `Calico`.
    pub name: &'static str,
    /// What the object is for: `packets to a pod`.
    pub role: &'static str,
}

/// Name, or with `*` at its end the start of a name; owner; role.
type Row = (&'static str, &'static str, &'static str);

/// Chains of x_tables and of iptables-nft. The first that fits is taken.
const CHAINS: &[Row] = &[
    ("KUBE-SVC-*", "kube-proxy", "endpoints of a Service's port"),
    (
        "KUBE-SVL-*",
        "kube-proxy",
        "the node's own endpoints of a Service's port",
    ),
    ("KUBE-EXT-*", "kube-proxy", "a Service's port from outside"),
    (
        "KUBE-XLB-*",
        "kube-proxy",
        "a Service's port from outside, until 1.23",
    ),
    (
        "KUBE-FW-*",
        "kube-proxy",
        "permitted sources of a load balancer",
    ),
    ("KUBE-SEP-*", "kube-proxy", "one endpoint"),
    ("KUBE-SERVICES", "kube-proxy", "addresses of Services"),
    (
        "KUBE-EXTERNAL-SERVICES",
        "kube-proxy",
        "external addresses of Services without endpoints",
    ),
    ("KUBE-NODEPORTS", "kube-proxy", "NodePorts"),
    ("KUBE-NODE-PORT", "kube-proxy", "NodePorts in mode ipvs"),
    (
        "KUBE-LOAD-BALANCER",
        "kube-proxy",
        "load balancers in mode ipvs",
    ),
    (
        "KUBE-SOURCE-RANGES-FIREWALL",
        "kube-proxy",
        "permitted sources of load balancers in mode ipvs",
    ),
    (
        "KUBE-IPVS-FILTER",
        "kube-proxy",
        "ports that a Service's address does not have, in mode ipvs",
    ),
    (
        "KUBE-IPVS-OUT-FILTER",
        "kube-proxy",
        "ports that a Service's address does not have, in mode ipvs",
    ),
    (
        "KUBE-POSTROUTING",
        "kube-proxy",
        "masquerades what was marked",
    ),
    (
        "KUBE-MARK-MASQ",
        "kube-proxy",
        "marks what is to be masqueraded",
    ),
    (
        "KUBE-FORWARD",
        "kube-proxy",
        "forwarding of Services' packets",
    ),
    (
        "KUBE-PROXY-FIREWALL",
        "kube-proxy",
        "permitted sources of load balancers",
    ),
    (
        "KUBE-PROXY-CANARY",
        "kube-proxy",
        "tells by its absence that rules were flushed",
    ),
    (
        "KUBE-FIREWALL",
        "kubelet",
        "packets from outside to loopback addresses",
    ),
    ("KUBE-MARK-DROP", "kubelet", "marks what is to be dropped"),
    (
        "KUBE-KUBELET-CANARY",
        "kubelet",
        "tells by its absence that rules were flushed",
    ),
    (
        "KUBE-IPTABLES-HINT",
        "kubelet",
        "tells others which backend is in use",
    ),
    (
        "KUBE-POD-FW-*",
        "kube-router",
        "network policies of one pod",
    ),
    (
        "KUBE-NWPLCY-DEFAULT",
        "kube-router",
        "pods without network policy",
    ),
    ("KUBE-NWPLCY-COMMON", "kube-router", "what every pod may"),
    ("KUBE-NWPLCY-*", "kube-router", "a network policy"),
    ("KUBE-ROUTER-SERVICES", "kube-router", "Services"),
    ("KUBE-ROUTER-*", "kube-router", "network policies"),
    ("cali-tw-*", "Calico", "packets to a pod's device"),
    ("cali-fw-*", "Calico", "packets from a pod's device"),
    ("cali-pi-*", "Calico", "a network policy, ingress"),
    ("cali-po-*", "Calico", "a network policy, egress"),
    ("cali-pri-*", "Calico", "a profile, ingress"),
    ("cali-pro-*", "Calico", "a profile, egress"),
    (
        "cali-thfw-*",
        "Calico",
        "packets to a host's device, forwarded",
    ),
    (
        "cali-fhfw-*",
        "Calico",
        "packets from a host's device, forwarded",
    ),
    ("cali-th-*", "Calico", "packets to a host's device"),
    ("cali-fh-*", "Calico", "packets from a host's device"),
    (
        "cali-from-wl-dispatch*",
        "Calico",
        "chooses the chain of the pod that sends",
    ),
    (
        "cali-to-wl-dispatch*",
        "Calico",
        "chooses the chain of the pod that is sent to",
    ),
    ("cali-wl-to-host", "Calico", "packets of pods to their node"),
    (
        "cali-nat-outgoing",
        "Calico",
        "masquerades what leaves the pod networks",
    ),
    ("cali-fip-*", "Calico", "floating addresses"),
    (
        "cali-rpf-skip",
        "Calico",
        "exceptions from the reverse-path check",
    ),
    ("cali-cidr-block", "Calico", "addresses that are not in use"),
    ("cali-*", "Calico", "its part of a hook"),
    (
        "FLANNEL-POSTRTG",
        "flannel",
        "masquerades what leaves the pod network",
    ),
    ("FLANNEL-FWD", "flannel", "accepts the pod network"),
    ("DOCKER-USER", "docker", "rules of the machine's owner"),
    (
        "DOCKER-ISOLATION-STAGE-*",
        "docker",
        "keeps its networks apart",
    ),
    ("DOCKER-INGRESS", "docker", "swarm's published ports"),
    ("DOCKER_OUTPUT", "docker", "its resolver in a container"),
    (
        "DOCKER_POSTROUTING",
        "docker",
        "its resolver in a container",
    ),
    ("DOCKER*", "docker", "its networks and published ports"),
    ("ufw-*", "ufw", "the machine's firewall"),
    ("ufw6-*", "ufw", "the machine's firewall"),
    ("INPUT_direct", "firewalld", "direct rules"),
    ("FORWARD_direct", "firewalld", "direct rules"),
    ("OUTPUT_direct", "firewalld", "direct rules"),
    ("INPUT_ZONES*", "firewalld", "chooses the zone"),
    ("FORWARD_IN_ZONES*", "firewalld", "chooses the zone"),
    ("FORWARD_OUT_ZONES*", "firewalld", "chooses the zone"),
    ("FORWARD_ZONES*", "firewalld", "chooses the zone"),
    ("PREROUTING_ZONES*", "firewalld", "chooses the zone"),
    ("POSTROUTING_ZONES*", "firewalld", "chooses the zone"),
    (
        "ISTIO_IN_REDIRECT",
        "Istio",
        "to the sidecar's port for what comes in",
    ),
    (
        "ISTIO_REDIRECT",
        "Istio",
        "to the sidecar's port for what goes out",
    ),
    ("ISTIO_INBOUND", "Istio", "what comes into the pod"),
    ("ISTIO_OUTPUT", "Istio", "what the pod sends"),
    ("ISTIO_*", "Istio", "the mesh's redirection"),
    (
        "PROXY_INIT_REDIRECT",
        "Linkerd",
        "what comes into the pod, to the proxy",
    ),
    (
        "PROXY_INIT_OUTPUT",
        "Linkerd",
        "what the pod sends, to the proxy",
    ),
    ("CNI-HOSTPORT-DNAT", "CNI portmap", "hostPorts"),
    (
        "CNI-HOSTPORT-SETMARK",
        "CNI portmap",
        "marks what is to be masqueraded",
    ),
    (
        "CNI-HOSTPORT-MASQ",
        "CNI portmap",
        "masquerades what was marked",
    ),
    ("CNI-DN-*", "CNI portmap", "hostPorts of one pod"),
    ("CNI-SN-*", "CNI portmap", "hostPorts of one pod"),
    ("CNI-FORWARD", "CNI firewall", "accepts pods"),
    ("CNI-ADMIN", "CNI firewall", "rules of the machine's owner"),
    (
        "CNI-ISOLATION-STAGE-*",
        "CNI firewall",
        "keeps bridges apart",
    ),
    ("CNI-*", "CNI ipMasq", "masquerades what one pod sends"),
    (
        "AWS-SNAT-CHAIN-*",
        "AWS VPC CNI",
        "source address of what leaves the VPC",
    ),
    (
        "AWS-CONNMARK-CHAIN-*",
        "AWS VPC CNI",
        "keeps answers on the device of the question",
    ),
    ("CILIUM_*", "Cilium", "its part of a hook"),
    ("OLD_CILIUM_*", "Cilium", "rules of its run before"),
    ("AZURE-NPM*", "Azure NPM", "network policies"),
    ("ANTREA-*", "Antrea", "its part of a hook"),
    (
        "OVN-KUBE-*",
        "OVN-Kubernetes",
        "NodePorts, external addresses, egress",
    ),
    ("WEAVE*", "Weave Net", "its part of a hook"),
    (
        "KIND-MASQ-AGENT",
        "kindnet",
        "masquerades what leaves the cluster",
    ),
    (
        "IP-MASQ*",
        "ip-masq-agent",
        "masquerades what leaves the cluster",
    ),
    ("SUBMARINER-*", "Submariner", "packets between clusters"),
    ("NETAVARK*", "podman", "its networks and published ports"),
    ("LIBVIRT_*", "libvirt", "networks of virtual machines"),
    ("ts-*", "Tailscale", "its device"),
    ("f2b-*", "fail2ban", "addresses that are kept out"),
];

/// Tables of nf_tables that belong to one program.
const TABLES: &[Row] = &[
    ("kube-proxy", "kube-proxy", "Services, mode nftables"),
    ("flannel-ipv4", "flannel", "the pod network"),
    ("flannel-ipv6", "flannel", "the pod network"),
    ("calico", "Calico", "network policies and addresses"),
    ("firewalld", "firewalld", "the machine's firewall"),
    (
        "docker-bridges",
        "docker",
        "its networks and published ports",
    ),
    ("cni_hostport", "CNI portmap", "hostPorts"),
    (
        "cni_plugins_masquerade",
        "CNI ipMasq",
        "masquerades what pods send",
    ),
    ("cni-*", "CNI", "a plugin's rules"),
    (
        "kube-network-policies",
        "kube-network-policies",
        "network policies",
    ),
    ("kindnet-*", "kindnet", "the pod network"),
    ("netavark", "podman", "its networks and published ports"),
    ("istio-*", "Istio", "the mesh's redirection"),
    ("ovn-kube-*", "OVN-Kubernetes", "Services and egress"),
    ("antrea", "Antrea", "its part of a hook"),
    ("libvirt_network", "libvirt", "networks of virtual machines"),
];

/// Ipsets.
const IPSETS: &[Row] = &[
    (
        "KUBE-SRC-*",
        "kube-router",
        "sources that a network policy names",
    ),
    (
        "KUBE-DST-*",
        "kube-router",
        "destinations that a network policy names",
    ),
    (
        "kube-router-*",
        "kube-router",
        "addresses of nodes, pods and Services",
    ),
    (
        "KUBE-CLUSTER-IP",
        "kube-proxy",
        "ClusterIPs with their ports",
    ),
    (
        "KUBE-LOOP-BACK",
        "kube-proxy",
        "endpoints that reach themselves",
    ),
    (
        "KUBE-EXTERNAL-IP*",
        "kube-proxy",
        "external addresses with their ports",
    ),
    (
        "KUBE-LOAD-BALANCER*",
        "kube-proxy",
        "load balancers' addresses with their ports",
    ),
    ("KUBE-NODE-PORT*", "kube-proxy", "NodePorts"),
    (
        "KUBE-HEALTH-CHECK-NODE-PORT",
        "kube-proxy",
        "ports for health checks",
    ),
    ("KUBE-IPVS-IPS", "kube-proxy", "addresses of Services"),
    (
        "KUBE-6-*",
        "kube-proxy",
        "the IPv6 set of the name without 6",
    ),
    ("cali40*", "Calico", "addresses that policies name, IPv4"),
    ("cali60*", "Calico", "addresses that policies name, IPv6"),
    ("azure-npm-*", "Azure NPM", "addresses that policies name"),
    ("cilium_*", "Cilium", "addresses of nodes"),
    ("weave-*", "Weave Net", "addresses that policies name"),
];

fn find(rows: &'static [Row], name: &str) -> Option<Owner> {
    let fits = |pattern: &str| match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    };
    let (_, owner, role) = rows.iter().find(|(pattern, _, _)| fits(pattern))?;
    Some(Owner { name: owner, role })
}

/// The owner of a chain in a table; that of the table, where its chains have common names.
pub fn of_chain(table: &str, chain: &str) -> Option<Owner> {
    find(TABLES, table).or_else(|| find(CHAINS, chain))
}

/// The owner of a table.
pub fn of_table(table: &str) -> Option<Owner> {
    find(TABLES, table)
}

/// The owner of an ipset.
pub fn of_ipset(name: &str) -> Option<Owner> {
    find(IPSETS, name)
}

/// `Calico: packets to a pod's device`
impl std::fmt::Display for Owner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.name, self.role)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(table: &str, chain: &str) -> String {
        of_chain(table, chain).map_or_else(String::new, |owner| owner.to_string())
    }

    #[test]
    fn chains_are_told_by_their_names() {
        assert_eq!(
            name("nat", "KUBE-SVC-XPGD46QRK7WJZT7O"),
            "kube-proxy: endpoints of a Service's port"
        );
        assert_eq!(
            name("filter", "cali-tw-cali1234567890a"),
            "Calico: packets to a pod's device"
        );
        assert_eq!(name("filter", "cali-FORWARD"), "Calico: its part of a hook");
        assert_eq!(
            name("filter", "DOCKER-USER"),
            "docker: rules of the machine's owner"
        );
        assert_eq!(
            name("firewalld", "filter_FWD_public"),
            "firewalld: the machine's firewall"
        );
        assert_eq!(name("filter", "FORWARD"), "");
        assert_eq!(name("filter", "KUBE-SERVICES-OTHER"), "");
        let set = of_ipset("cali40s:abc").map(|owner| owner.name);
        assert_eq!(set, Some("Calico"));
    }

    /// A row behind one that takes all its names says nothing.
    #[test]
    fn every_row_can_be_found() {
        for rows in [CHAINS, TABLES, IPSETS] {
            for (pattern, owner, role) in rows {
                let sample = pattern.replace('*', "x");
                let found = find(rows, &sample);
                assert_eq!(found, Some(Owner { name: owner, role }), "{pattern}");
            }
        }
    }
}
