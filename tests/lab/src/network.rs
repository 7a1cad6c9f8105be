//! Links, addresses, routes and sysctls of the underlay, the nodes and the pods.
//!
//! Shaped like flannel with its `bridge` delegate. IPv6 addresses skip duplicate address detection,
//! so that they can be used at once.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::address::{Family, NodePlan, pod_ips};
use crate::command::{bridge_batch, ip_batch, run};
use crate::names;
use crate::namespace::Namespaces;
use crate::spec::{OUTSIDE4, OUTSIDE6, Overlay, PodSpec, Proxy, Spec};

/// Underlay gateway address of the family; also the host outside of the cluster.
fn gateway(family: Family) -> &'static str {
    match family {
        Family::V4 => "10.88.0.1",
        Family::V6 => "fd00:88::1",
    }
}

/// Writes a sysctl of the calling thread's network namespace; `name` is its path below `/proc/sys`.
pub fn sysctl(name: &str, value: &str) -> Result<()> {
    let path = Path::new("/proc/sys").join(name);
    fs::write(&path, value).with_context(|| format!("set {} to {value}", path.display()))
}

/// What every namespace needs before it gets links.
fn plain_sysctls() -> Result<()> {
    for scope in ["all", "default"] {
        sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
        sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "0")?;
    }
    Ok(())
}

/// Builds the underlay bridge and plugs the nodes, given by number and pid, into it.
///
/// Runs in the underlay's network namespace.
pub fn build_underlay(nodes: &[(usize, i32)]) -> Result<()> {
    plain_sysctls()?;
    sysctl("net/bridge/bridge-nf-call-iptables", "0")?;
    sysctl("net/bridge/bridge-nf-call-ip6tables", "0")?;
    let mut lines = vec![
        "link set lo up".to_owned(),
        format!("address add {OUTSIDE4}/32 dev lo"),
        format!("address add {OUTSIDE6}/128 dev lo nodad"),
        "link add br0 type bridge".to_owned(),
        "link set br0 up".to_owned(),
        format!("address add {}/24 dev br0", gateway(Family::V4)),
        format!("address add {}/64 dev br0 nodad", gateway(Family::V6)),
    ];
    for (number, pid) in nodes {
        let port = NodePlan(*number).name();
        lines.push(format!(
            "link add {port} type veth peer name eth0 netns {pid}"
        ));
        lines.push(format!("link set {port} master br0 up"));
    }
    ip_batch(&lines)
}

/// Sets up a node's own links, addresses and routes. Runs in the node's network namespace.
pub fn build_node(spec: &Spec, number: usize) -> Result<()> {
    plain_sysctls()?;
    sysctl("net/ipv4/conf/eth0/rp_filter", "0")?;
    sysctl("net/ipv6/conf/eth0/accept_dad", "0")?;
    sysctl("net/ipv4/ip_forward", "1")?;
    sysctl("net/ipv6/conf/all/forwarding", "1")?;
    sysctl("net/bridge/bridge-nf-call-iptables", "1")?;
    sysctl("net/bridge/bridge-nf-call-ip6tables", "1")?;
    if matches!(spec.proxy, Proxy::IptablesNft | Proxy::IptablesLegacy) {
        sysctl("net/ipv4/conf/all/route_localnet", "1")?;
    }
    let plan = NodePlan(number);
    let mac = names::mac(&format!("{}/{}/cni0", spec.name, plan.name()));
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!(
            "link add cni0 address {mac} mtu {} type bridge",
            spec.pod_mtu()
        ),
        "link set cni0 up".to_owned(),
    ];
    for family in Family::BOTH {
        let nodad = nodad(family);
        let underlay = match family {
            Family::V4 => 24,
            Family::V6 => 64,
        };
        lines.push(format!(
            "address add {}/{underlay} dev eth0{nodad}",
            plan.node_ip(family)
        ));
        lines.push(format!("route add default via {}", gateway(family)));
        lines.push(format!(
            "address add {}/{} dev cni0{nodad}",
            plan.pod_ip(family, 1),
            NodePlan::pod_prefix(family)
        ));
        if spec.overlay == Overlay::Vxlan {
            lines.extend(vxlan_device(&spec.name, plan, family));
        }
    }
    let mut fdb = Vec::new();
    for peer in (1..=spec.nodes).filter(|peer| *peer != number) {
        for family in Family::BOTH {
            lines.push(format!(
                "route add {}",
                peer_route(spec.overlay, NodePlan(peer), family)
            ));
            if spec.overlay == Overlay::Vxlan {
                let mac = NodePlan(peer).vtep_mac(&spec.name, family);
                lines.push(format!(
                    "neigh add {}",
                    peer_neigh(NodePlan(peer), family, &mac)
                ));
                fdb.push(format!(
                    "fdb append {mac} dev {} dst {} self permanent",
                    family.vxlan(),
                    NodePlan(peer).node_ip(family)
                ));
            }
        }
    }
    ip_batch(&lines)?;
    bridge_batch(&fdb)
}

/// Arguments of `ip route add` for the way to a peer's pod network.
pub fn peer_route(overlay: Overlay, peer: NodePlan, family: Family) -> String {
    let cidr = peer.pod_cidr(family);
    match overlay {
        Overlay::Vxlan => format!(
            "{cidr} via {} dev {} onlink",
            peer.pod_ip(family, 0),
            family.vxlan()
        ),
        Overlay::Routed => format!("{cidr} via {} dev eth0", peer.node_ip(family)),
    }
}

/// Arguments of `ip neigh add` for a peer's tunnel end with this MAC address.
pub fn peer_neigh(peer: NodePlan, family: Family, mac: &str) -> String {
    format!(
        "{} lladdr {mac} dev {} nud permanent",
        peer.pod_ip(family, 0),
        family.vxlan()
    )
}

fn vxlan_device(lab: &str, plan: NodePlan, family: Family) -> Vec<String> {
    let name = family.vxlan();
    // Outer headers: 20 or 40 (IP) + 8 (UDP) + 8 (VXLAN) + 14 (inner Ethernet) bytes.
    let mtu = match family {
        Family::V4 => 1450,
        Family::V6 => 1430,
    };
    vec![
        format!(
            "link add {name} address {} mtu {mtu} type vxlan id 1 local {} dev eth0 dstport 8472 nolearning",
            plan.vtep_mac(lab, family),
            plan.node_ip(family)
        ),
        format!("link set {name} up"),
        format!(
            "address add {}/{} dev {name}{}",
            plan.pod_ip(family, 0),
            family.bits(),
            nodad(family)
        ),
    ]
}

fn nodad(family: Family) -> &'static str {
    match family {
        Family::V4 => "",
        Family::V6 => " nodad",
    }
}

/// Name of a pod's veth end on its node.
pub fn host_veth(lab: &str, pod: &PodSpec) -> String {
    format!(
        "veth{}",
        names::hex(&format!("{lab}/{}/veth", pod.path()), 8)
    )
}

/// File name of a pod's network namespace in `/run/netns`.
pub fn netns_name(lab: &str, pod: &PodSpec) -> String {
    format!("cni-{}", names::uid(&format!("{lab}/{}/netns", pod.path())))
}

/// Makes the namespaces and links of `pods`, all on the node whose namespaces the thread is in.
///
/// The answer holds the pods' network namespaces in the same order.
pub fn build_pods(spec: &Spec, pods: &[&PodSpec]) -> Result<Vec<Namespaces>> {
    let mtu = spec.pod_mtu();
    let mut lines = Vec::new();
    for pod in pods {
        let (veth, netns) = (host_veth(&spec.name, pod), netns_name(&spec.name, pod));
        let mac = names::mac(&format!("{}/{}/eth0", spec.name, pod.path()));
        lines.push(format!("netns add {netns}"));
        lines.push(format!(
            "link add {veth} mtu {mtu} type veth peer name eth0 address {mac} mtu {mtu} netns {netns}"
        ));
        lines.push(format!("link set {veth} master cni0 up"));
        lines.push(format!("link set {veth} type bridge_slave hairpin on"));
    }
    ip_batch(&lines)?;
    pods.iter()
        .map(|pod| Namespaces::net_at(&Path::new("/run/netns").join(netns_name(&spec.name, pod))))
        .collect()
}

/// Sets up a pod's own links, addresses and routes. Runs in the pod's network namespace.
pub fn build_pod(pod: &PodSpec) -> Result<()> {
    plain_sysctls()?;
    sysctl("net/ipv6/conf/eth0/accept_dad", "0")?;
    let plan = NodePlan(pod.node);
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    for ip in pod_ips(pod) {
        let family = Family::of(ip);
        lines.push(format!(
            "address add {ip}/{} dev eth0{}",
            NodePlan::pod_prefix(family),
            nodad(family)
        ));
        lines.push(format!("route add default via {}", plan.pod_ip(family, 1)));
    }
    ip_batch(&lines)
}

/// Waits until every link of the thread's network namespace carries packets and no address is tentative.
pub fn wait_until_usable() -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let waiting = not_usable()?;
        if waiting.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("wait for links and addresses: not usable after 5 s: {waiting:?}");
        }
        #[allow(clippy::disallowed_methods, reason = "polls the condition above")]
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn not_usable() -> Result<Vec<String>> {
    let mut waiting = Vec::new();
    for link in json(&["ip", "-d", "-j", "link"])? {
        let name = link["ifname"].as_str().unwrap_or_default();
        let port = &link["linkinfo"]["info_slave_data"]["state"];
        if link["linkinfo"]["info_kind"] == "veth" && link["operstate"] != "UP"
            || port.is_string() && port != "forwarding"
        {
            waiting.push(name.to_owned());
        }
    }
    for link in json(&["ip", "-6", "-j", "address", "show", "tentative"])? {
        if let Some(name) = link["ifname"].as_str() {
            waiting.push(format!("tentative address on {name}"));
        }
    }
    Ok(waiting)
}

fn json(argv: &[&str]) -> Result<Vec<Value>> {
    let text = run(argv)?;
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&text).with_context(|| format!("decode output of {argv:?}"))
}
