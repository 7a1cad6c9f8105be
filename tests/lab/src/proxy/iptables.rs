//! kube-proxy's mode `iptables` with kubelet's and flannel's rules, as `iptables-restore` input.
//!
//! The order of rules is that of a recorded 1.36.2 cluster.
//!
//! Source: kube-proxy, `syncProxyRules()` in pkg/proxy/iptables/proxier.go (v1.36).

use std::fmt::Write as _;
use std::net::IpAddr;

use super::{ACCOUNTING, Input, ServicePortRules};
use crate::address::Family;
use crate::names;

/// Lines of one table.
pub(super) struct Table {
    name: &'static str,
    chains: Vec<String>,
    rules: Vec<String>,
}

impl Table {
    pub(super) fn new(name: &'static str, built_in: &[&str], own: &[&str]) -> Self {
        let built_in = built_in
            .iter()
            .map(|chain| format!(":{chain} ACCEPT [0:0]"));
        let own = own.iter().map(|chain| format!(":{chain} - [0:0]"));
        Self {
            name,
            chains: built_in.chain(own).collect(),
            rules: Vec::new(),
        }
    }

    fn chain(&mut self, name: &str) {
        self.chains.push(format!(":{name} - [0:0]"));
    }

    pub(super) fn rule(&mut self, rule: impl Into<String>) {
        self.rules.push(format!("-A {}", rule.into()));
    }

    pub(super) fn write(&self, to: &mut String) {
        // Writing to a String cannot fail.
        let _ = writeln!(
            to,
            "*{}\n{}\n{}\nCOMMIT",
            self.name,
            self.chains.join("\n"),
            self.rules.join("\n")
        );
    }
}

pub(super) const INPUT_OUTPUT: [&str; 3] = ["INPUT", "FORWARD", "OUTPUT"];
pub(super) const NAT: [&str; 4] = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"];
pub(super) const MANGLE: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

/// What kubelet alone leaves behind on a node in another proxy mode.
pub(super) fn kubelet_only(input: &Input) -> String {
    let mangle = Table::new(
        "mangle",
        &MANGLE,
        &["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"],
    );
    let mut filter = Table::new(
        "filter",
        &INPUT_OUTPUT,
        &["KUBE-FIREWALL", "KUBE-KUBELET-CANARY"],
    );
    filter.rule("INPUT -j KUBE-FIREWALL");
    filter.rule("OUTPUT -j KUBE-FIREWALL");
    firewall(input, &mut filter);
    let nat = Table::new("nat", &NAT, &["KUBE-KUBELET-CANARY"]);
    let mut text = String::new();
    for table in [mangle, filter, nat] {
        table.write(&mut text);
    }
    text
}

/// Everything on a node in mode `iptables`.
pub(super) fn kube_proxy(input: &Input) -> String {
    let mangle = Table::new(
        "mangle",
        &MANGLE,
        &[
            "KUBE-IPTABLES-HINT",
            "KUBE-KUBELET-CANARY",
            "KUBE-PROXY-CANARY",
        ],
    );
    let mut text = String::new();
    for table in [mangle, filter(input), nat(input)] {
        table.write(&mut text);
    }
    text
}

pub(super) fn firewall(input: &Input, filter: &mut Table) {
    if input.family == Family::V4 {
        filter.rule("KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP");
    }
}

fn filter(input: &Input) -> Table {
    let mut table = Table::new(
        "filter",
        &INPUT_OUTPUT,
        &[
            "FLANNEL-FWD",
            "KUBE-EXTERNAL-SERVICES",
            "KUBE-FIREWALL",
            "KUBE-FORWARD",
            "KUBE-KUBELET-CANARY",
            "KUBE-NODEPORTS",
            "KUBE-PROXY-CANARY",
            "KUBE-PROXY-FIREWALL",
            "KUBE-SERVICES",
        ],
    );
    let new = "-m conntrack --ctstate NEW -m comment --comment";
    table.rule(format!(
        "INPUT {new} \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL"
    ));
    table.rule(
        "INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS",
    );
    table.rule(format!(
        "INPUT {new} \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES"
    ));
    table.rule("INPUT -j KUBE-FIREWALL");
    table.rule(format!(
        "FORWARD {new} \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL"
    ));
    table.rule("FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD");
    table.rule(format!(
        "FORWARD {new} \"kubernetes service portals\" -j KUBE-SERVICES"
    ));
    table.rule(format!(
        "FORWARD {new} \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES"
    ));
    table.rule(FLANNEL_FORWARD);
    table.rule(format!(
        "OUTPUT {new} \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL"
    ));
    table.rule(format!(
        "OUTPUT {new} \"kubernetes service portals\" -j KUBE-SERVICES"
    ));
    table.rule("OUTPUT -j KUBE-FIREWALL");
    let cluster = input.cluster_cidr();
    for side in ["-s", "-d"] {
        table.rule(format!(
            "FLANNEL-FWD {side} {cluster} -m comment --comment \"flanneld forward\" -j ACCEPT"
        ));
    }
    firewall(input, &mut table);
    table.rule(format!(
        "KUBE-FORWARD -m conntrack --ctstate INVALID {}-j DROP",
        counting(input, 0)
    ));
    table.rule("KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT");
    table.rule("KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    for port in input.ports.iter().filter(|port| port.endpoints.is_empty()) {
        let (label, protocol) = (port.label(), port.protocol.lower());
        let reject = match input.family {
            Family::V4 => "icmp-port-unreachable",
            Family::V6 => "icmp6-port-unreachable",
        };
        table.rule(format!(
            "KUBE-SERVICES -d {} -p {protocol} -m comment --comment \"{label} has no endpoints\" -m {protocol} --dport {} -j REJECT --reject-with {reject}",
            one(port.cluster_ip), port.port
        ));
        if let Some(node_port) = port.node_port {
            table.rule(format!(
                "KUBE-EXTERNAL-SERVICES -p {protocol} -m comment --comment \"{label} has no endpoints\" -m addrtype --dst-type LOCAL -m {protocol} --dport {node_port} -j REJECT --reject-with {reject}"
            ));
        }
    }
    table
}

/// flannel's jump in filter FORWARD, as arguments of `iptables -A`.
pub(super) const FLANNEL_FORWARD: &str =
    "FORWARD -m comment --comment \"flanneld forward\" -j FLANNEL-FWD";

fn nat(input: &Input) -> Table {
    let mut table = Table::new(
        "nat",
        &NAT,
        &[
            "FLANNEL-POSTRTG",
            "KUBE-KUBELET-CANARY",
            "KUBE-MARK-MASQ",
            "KUBE-NODEPORTS",
            "KUBE-POSTROUTING",
            "KUBE-PROXY-CANARY",
            "KUBE-SERVICES",
        ],
    );
    table.rule("PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES");
    table.rule("OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES");
    table.rule(
        "POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING",
    );
    table.rule("POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG");
    flannel_postrouting(input, &mut table);
    table.rule("KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000");
    table.rule("KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN");
    table.rule("KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0");
    table.rule("KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully");
    for port in input.ports.iter().filter(|port| !port.endpoints.is_empty()) {
        service(input, port, &mut table);
    }
    let not_loopback = match input.family {
        Family::V4 => "",
        Family::V6 => "! -d ::1/128 ",
    };
    table.rule(format!("KUBE-SERVICES {not_loopback}-m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS"));
    table
}

pub(super) fn flannel_postrouting(input: &Input, table: &mut Table) {
    let (cluster, node) = (input.cluster_cidr(), input.node.pod_cidr(input.family));
    let comment = "-m comment --comment \"flanneld masq\"";
    table.rule(format!(
        "FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {comment} -j RETURN"
    ));
    table.rule(format!(
        "FLANNEL-POSTRTG -s {node} -d {cluster} {comment} -j RETURN"
    ));
    table.rule(format!(
        "FLANNEL-POSTRTG -s {cluster} -d {node} {comment} -j RETURN"
    ));
    table.rule(format!(
        "FLANNEL-POSTRTG ! -s {cluster} -d {node} {comment} -j RETURN"
    ));
    table.rule(format!(
        "FLANNEL-POSTRTG -s {cluster} ! -d {} {comment} -j MASQUERADE --random-fully",
        input.multicast()
    ));
    table.rule(format!(
        "FLANNEL-POSTRTG ! -s {cluster} -d {cluster} {comment} -j MASQUERADE --random-fully"
    ));
}

fn service(input: &Input, port: &ServicePortRules, table: &mut Table) {
    let (label, protocol) = (port.label(), port.protocol.lower());
    let hash = names::iptables_service(&label, protocol);
    let chain = format!("KUBE-SVC-{hash}");
    let to_cluster_ip = format!(
        "-d {} -p {protocol} -m comment --comment \"{label} cluster IP\" -m {protocol} --dport {}",
        one(port.cluster_ip),
        port.port
    );
    table.chain(&chain);
    table.rule(format!("KUBE-SERVICES {to_cluster_ip} -j {chain}"));
    if let Some(node_port) = port.node_port {
        let external = format!("KUBE-EXT-{hash}");
        table.chain(&external);
        if input.accounting && input.family == Family::V4 {
            table.rule(format!(
                "KUBE-NODEPORTS -d 127.0.0.0/8 -p {protocol} -m comment --comment \"{label}\" -m {protocol} --dport {node_port} {}-j {external}",
                counting(input, 1)
            ));
        }
        table.rule(format!("KUBE-NODEPORTS -p {protocol} -m comment --comment \"{label}\" -m {protocol} --dport {node_port} -j {external}"));
        table.rule(format!("{external} -m comment --comment \"masquerade traffic for {label} external destinations\" -j KUBE-MARK-MASQ"));
        table.rule(format!("{external} -j {chain}"));
    }
    table.rule(format!(
        "{chain} ! -s {} {to_cluster_ip} -j KUBE-MARK-MASQ",
        input.cluster_cidr()
    ));
    let count = port.endpoints.len();
    for (index, endpoint) in port.endpoints.iter().enumerate() {
        let target = format!(
            "KUBE-SEP-{}",
            names::iptables_endpoint(&label, protocol, &endpoint.to_string())
        );
        let left = count - index;
        let chance = if left > 1 {
            format!(
                "-m statistic --mode random --probability {} ",
                probability(left)
            )
        } else {
            String::new()
        };
        table.rule(format!(
            "{chain} -m comment --comment \"{label} -> {endpoint}\" {chance}-j {target}"
        ));
        table.chain(&target);
        table.rule(format!(
            "{target} -s {} -m comment --comment \"{label}\" -j KUBE-MARK-MASQ",
            one(endpoint.ip())
        ));
        table.rule(format!("{target} -p {protocol} -m comment --comment \"{label}\" -m {protocol} -j DNAT --to-destination {endpoint}"));
    }
}

/// Match that counts into accounting object `index`, or nothing.
fn counting(input: &Input, index: usize) -> String {
    match ACCOUNTING.get(index) {
        Some(name) if input.accounting => format!("-m nfacct --nfacct-name {name} "),
        _ => String::new(),
    }
}

/// 1/`n` with ten decimals, as kube-proxy prints it.
fn probability(n: usize) -> String {
    let billionths = (10_000_000_000_u64 + n as u64 / 2) / n as u64;
    format!("0.{billionths:010}")
}

fn one(address: IpAddr) -> String {
    format!("{address}/{}", Family::of(address).bits())
}
