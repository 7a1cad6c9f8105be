//! kube-proxy's mode `nftables` as Kubernetes 1.35 and later write it, and flannel's nftables rules.
//!
//! Source: kube-proxy, `setupNFTables()` and `syncProxyRules()` in pkg/proxy/nftables/proxier.go (v1.36).

use std::fmt::Write as _;
use std::net::SocketAddr;

use super::{Input, ServicePortRules};
use crate::address::Family;
use crate::names;

/// Takes a table away whether or not it is there, so that what follows makes it anew.
fn anew(family: &str, table: &str) -> String {
    format!("table {family} {table} {{ }}\ndelete table {family} {table}\n")
}

/// `elements = { ... }`, or nothing: nft refuses an empty list.
fn elements(list: &[String]) -> String {
    if list.is_empty() {
        String::new()
    } else {
        format!("elements = {{ {} }}", list.join(", "))
    }
}

fn name(port: &ServicePortRules) -> String {
    names::nftables_service(
        &port.namespace,
        &port.service,
        port.protocol.lower(),
        &port.port_name,
    )
}

/// The table `kube-proxy` of one family.
pub(super) fn kube_proxy(input: &Input) -> String {
    let ip = input.family.nft();
    let cluster_cidr = input.cluster_cidr();
    let service_cidr = input.service_cidr();
    let mut cluster_ips: Vec<String> = Vec::new();
    let mut service_ips = Vec::new();
    let mut service_nodeports = Vec::new();
    let mut no_endpoint_services = Vec::new();
    let mut no_endpoint_nodeports = Vec::new();
    let mut hairpin = Vec::new();
    let mut chains = String::new();
    for port in &input.ports {
        let address = port.cluster_ip.to_string();
        if !cluster_ips.contains(&address) {
            cluster_ips.push(address.clone());
        }
        let protocol = port.protocol.lower();
        let to = format!("{address} . {protocol} . {}", port.port);
        if port.endpoints.is_empty() {
            let label = port.label();
            no_endpoint_services.push(format!("{to} comment \"{label}\" : goto reject-chain"));
            if let Some(node_port) = port.node_port {
                no_endpoint_nodeports.push(format!(
                    "{protocol} . {node_port} comment \"{label}\" : goto reject-chain"
                ));
            }
            continue;
        }
        let name = name(port);
        service_ips.push(format!("{to} : goto service-{name}"));
        if let Some(node_port) = port.node_port {
            service_nodeports.push(format!("{protocol} . {node_port} : goto external-{name}"));
        }
        // A pod can only reach itself where it runs, so each node lists its own pods.
        let local = |e: &&SocketAddr| input.node.has_pod_ip(e.ip());
        for endpoint in port.endpoints.iter().filter(local) {
            let element = format!(
                "{0} . {0} . {protocol} . {1}",
                endpoint.ip(),
                endpoint.port()
            );
            if !hairpin.contains(&element) {
                hairpin.push(element);
            }
        }
        chains += &service_chains(ip, port, &name);
    }
    let kind = match input.family {
        Family::V4 => "ipv4_addr",
        Family::V6 => "ipv6_addr",
    };
    let node_ip = input.node.node_ip(input.family);
    anew(ip, "kube-proxy")
        + &format!(
            "table {ip} kube-proxy {{
    comment \"rules for kube-proxy\"
    set hairpin-connections {{ type {kind} . {kind} . inet_proto . inet_service; comment \"service hairpin connections\"; {hairpin} }}
    set cluster-ips {{ type {kind}; comment \"Active ClusterIPs\"; {cluster_ips} }}
    set nodeport-ips {{ type {kind}; comment \"IPs that accept NodePort traffic\"; elements = {{ {node_ip} }} }}
    map no-endpoint-services {{ type {kind} . inet_proto . inet_service : verdict; comment \"vmap to drop or reject packets to services with no endpoints\"; {no_endpoint_services} }}
    map no-endpoint-nodeports {{ type inet_proto . inet_service : verdict; comment \"vmap to drop or reject packets to service nodeports with no endpoints\"; {no_endpoint_nodeports} }}
    map firewall-ips {{ type {kind} . inet_proto . inet_service : verdict; comment \"destinations that are subject to LoadBalancerSourceRanges\"; }}
    map service-ips {{ type {kind} . inet_proto . inet_service : verdict; comment \"ClusterIP, ExternalIP and LoadBalancer IP traffic\"; {service_ips} }}
    map service-nodeports {{ type inet_proto . inet_service : verdict; comment \"NodePort traffic\"; {service_nodeports} }}
    chain reject-chain {{ comment \"helper for @no-endpoint-services / @no-endpoint-nodeports\"; reject; }}
    chain nodeport-endpoints-check {{ {ip} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports; }}
    chain service-endpoints-check {{ {ip} daddr . meta l4proto . th dport vmap @no-endpoint-services; }}
    chain firewall-check {{ {ip} daddr . meta l4proto . th dport vmap @firewall-ips; }}
    chain cluster-ips-check {{
        {ip} daddr @cluster-ips reject comment \"Reject traffic to invalid ports of ClusterIPs\"
        {ip} daddr {service_cidr} drop comment \"Drop traffic to unallocated ClusterIPs\"
    }}
    chain services {{
        {ip} daddr @cluster-ips {ip} saddr != {cluster_cidr} meta mark set meta mark or 0x4000 comment \"masquerade clusterIP traffic from outside cluster\"
        {ip} daddr . meta l4proto . th dport vmap @service-ips
        {ip} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
    }}
    chain masquerading {{
        meta mark & 0x4000 != 0 meta mark set meta mark xor 0x4000 masquerade fully-random
        ct status dnat {ip} saddr . {ip} daddr . meta l4proto . th dport @hairpin-connections masquerade fully-random
    }}
    chain filter-prerouting-pre-dnat {{ type filter hook prerouting priority dstnat - 10; policy accept; ct state new jump firewall-check; }}
    chain filter-output-pre-dnat {{ type filter hook output priority -110; policy accept; ct state new jump firewall-check; }}
    chain filter-input {{ type filter hook input priority filter; policy accept; ct state new jump nodeport-endpoints-check; ct state new jump service-endpoints-check; }}
    chain filter-forward {{ type filter hook forward priority filter; policy accept; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}
    chain filter-output {{ type filter hook output priority filter; policy accept; ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }}
    chain nat-prerouting {{ type nat hook prerouting priority dstnat; policy accept; jump services; }}
    chain nat-output {{ type nat hook output priority -100; policy accept; jump services; }}
    chain nat-postrouting {{ type nat hook postrouting priority srcnat; policy accept; jump masquerading; }}
{chains}}}
",
            hairpin = elements(&hairpin),
            cluster_ips = elements(&cluster_ips),
            no_endpoint_services = elements(&no_endpoint_services),
            no_endpoint_nodeports = elements(&no_endpoint_nodeports),
            service_ips = elements(&service_ips),
            service_nodeports = elements(&service_nodeports),
        )
}

fn service_chains(ip: &str, port: &ServicePortRules, name: &str) -> String {
    let choices: Vec<String> = port
        .endpoints
        .iter()
        .enumerate()
        .map(|(index, endpoint)| format!("{index} : {} . {}", endpoint.ip(), endpoint.port()))
        .collect();
    let mut text = format!(
        "    chain service-{name} {{ meta l4proto {} dnat {ip} to numgen random mod {} map {{ {} }}; }}\n",
        port.protocol.lower(),
        choices.len(),
        choices.join(", ")
    );
    if port.node_port.is_some() {
        // Writing to a String cannot fail.
        let _ = write!(
            text,
            "    chain external-{name} {{
        meta mark set meta mark or 0x4000 comment \"masquerade\"
        goto service-{name}
    }}\n"
        );
    }
    text
}

/// flannel's table of one family, as it writes it with `EnableNFTables`.
pub(super) fn flannel(input: &Input) -> String {
    let ip = input.family.nft();
    let (cluster, node) = (input.cluster_cidr(), input.node.pod_cidr(input.family));
    let multicast = input.multicast();
    let table = match input.family {
        Family::V4 => "flannel-ipv4",
        Family::V6 => "flannel-ipv6",
    };
    anew(ip, table)
        + &format!(
            "table {ip} {table} {{
    comment \"rules for {table}\"
    chain forward {{
        comment \"chain to accept flannel traffic\"
        type filter hook forward priority filter; policy accept;
        {ip} saddr {cluster} accept
        {ip} daddr {cluster} accept
    }}
    chain postrtg {{
        comment \"chain to manage traffic masquerading by flannel\"
        type nat hook postrouting priority srcnat; policy accept;
        meta mark 0x4000 return
        {ip} saddr {node} {ip} daddr {cluster} return
        {ip} saddr {cluster} {ip} daddr {node} return
        {ip} saddr != {cluster} {ip} daddr {node} return
        {ip} saddr {cluster} {ip} daddr != {multicast} masquerade fully-random
        {ip} saddr != {cluster} {ip} daddr {cluster} masquerade fully-random
    }}
}}
"
        )
}
