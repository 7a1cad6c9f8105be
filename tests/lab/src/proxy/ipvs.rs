//! kube-proxy's mode `ipvs` with kubelet's and flannel's rules: a dummy device with all virtual addresses, ipsets,
//! virtual servers, and a constant handful of rules.
//!
//! Source: kube-proxy, `syncProxyRules()`, `writeIptablesRules()` in pkg/proxy/ipvs/proxier.go (v1.33).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::Result;

use super::iptables::{
    FLANNEL_FORWARD, INPUT_OUTPUT, MANGLE, NAT, Table, firewall, flannel_postrouting,
};
use super::{Input, ServicePortRules};
use crate::address::Family;
use crate::command::{feed, ip_batch, run};
use crate::network::sysctl;
use crate::spec::Protocol;

/// The device that holds virtual addresses; it is never up.
const DEVICE: &str = "kube-ipvs0";

/// Settings that kube-proxy makes.
const SYSCTLS: [(&str, &str); 3] = [
    ("conntrack", "1"),
    ("expire_nodest_conn", "1"),
    ("expire_quiescent_template", "1"),
];

/// Takes away what an earlier call left. Runs once, before the families.
pub(super) fn clear() -> Result<()> {
    // Loads the module, too, without which there are no settings.
    run(&["ipvsadm", "-C"])?;
    for (name, value) in SYSCTLS {
        sysctl(&format!("net/ipv4/vs/{name}"), value)?;
    }
    if !Path::new("/sys/class/net").join(DEVICE).exists() {
        run(&["ip", "link", "add", DEVICE, "type", "dummy"])?;
    }
    run(&["ip", "address", "flush", "dev", DEVICE])?;
    Ok(())
}

/// Addresses, sets and servers of one family; rules that name the sets come behind.
pub(super) fn program(input: &Input) -> Result<()> {
    let mut addresses: Vec<IpAddr> = input.ports.iter().map(|port| port.cluster_ip).collect();
    addresses.sort();
    addresses.dedup();
    let lines: Vec<String> = addresses
        .iter()
        .map(|addr| format!("address add {addr}/{} dev {DEVICE}", input.family.bits()))
        .collect();
    ip_batch(&lines)?;
    feed(&["ipset", "-exist", "restore"], &sets(input, &addresses))?;
    feed(&["ipvsadm", "-R"], &servers(input))?;
    Ok(())
}

/// A set's name in a family.
fn set(family: Family, name: &str) -> String {
    match family {
        Family::V4 => format!("KUBE-{name}"),
        Family::V6 => format!("KUBE-6-{name}"),
    }
}

fn sets(input: &Input, addresses: &[IpAddr]) -> String {
    let family = match input.family {
        Family::V4 => "inet",
        Family::V6 => "inet6",
    };
    let mut lines = Vec::new();
    let mut make = |name: &str, kind: &str, members: Vec<String>| {
        let name = set(input.family, name);
        let family = if kind == "bitmap:port" {
            "range 0-65535".to_owned()
        } else {
            format!("family {family} hashsize 1024 maxelem 65536")
        };
        lines.push(format!("create {name} {kind} {family}"));
        lines.push(format!("flush {name}"));
        lines.extend(
            members
                .into_iter()
                .map(|member| format!("add {name} {member}")),
        );
    };
    let each = |member: &dyn Fn(&ServicePortRules) -> Vec<String>| {
        input.ports.iter().flat_map(member).collect::<Vec<String>>()
    };
    make(
        "CLUSTER-IP",
        "hash:ip,port",
        each(&|port| {
            vec![format!(
                "{},{}:{}",
                port.cluster_ip,
                port.protocol.lower(),
                port.port
            )]
        }),
    );
    let local = |endpoint: &&SocketAddr| {
        let own = input.node.pod_cidr(input.family);
        let prefix: netpath::model::Prefix = own
            .parse()
            .unwrap_or(netpath::model::Prefix::host(endpoint.ip()));
        prefix.contains(endpoint.ip())
    };
    make(
        "LOOP-BACK",
        "hash:ip,port,ip",
        each(&|port| {
            let own = port.endpoints.iter().filter(local);
            let member = |endpoint: &SocketAddr| {
                format!(
                    "{},{}:{},{}",
                    endpoint.ip(),
                    port.protocol.lower(),
                    endpoint.port(),
                    endpoint.ip()
                )
            };
            own.map(member).collect()
        }),
    );
    for (name, protocol) in [
        ("NODE-PORT-TCP", Protocol::Tcp),
        ("NODE-PORT-UDP", Protocol::Udp),
    ] {
        let ports = each(&|port| {
            let own = port.node_port.filter(|_| port.protocol == protocol);
            own.iter().map(u16::to_string).collect()
        });
        make(name, "bitmap:port", ports);
    }
    make("HEALTH-CHECK-NODE-PORT", "bitmap:port", Vec::new());
    make(
        "IPVS-IPS",
        "hash:ip",
        addresses.iter().map(IpAddr::to_string).collect(),
    );
    lines.join("\n") + "\n"
}

/// As `ipvsadm-save` would print them.
fn servers(input: &Input) -> String {
    let mut lines = Vec::new();
    let node = [
        input.node.node_ip(input.family),
        input.node.pod_ip(input.family, 1),
    ];
    for port in &input.ports {
        let option = match port.protocol {
            Protocol::Tcp => "-t",
            Protocol::Udp => "-u",
        };
        let own = [(port.cluster_ip, port.port)];
        let on_nodes = port
            .node_port
            .iter()
            .flat_map(|number| node.map(|addr| (addr, *number)));
        for (addr, number) in own.into_iter().chain(on_nodes) {
            let service = SocketAddr::new(addr, number);
            lines.push(format!("-A {option} {service} -s rr"));
            let servers = port.endpoints.iter();
            lines.extend(servers.map(|to| format!("-a {option} {service} -r {to} -m -w 1")));
        }
    }
    lines.join("\n") + "\n"
}

/// All rules of the node, as `iptables-restore` input.
pub(super) fn rules(input: &Input) -> String {
    let mangle = Table::new(
        "mangle",
        &MANGLE,
        &["KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY"],
    );
    let mut text = String::new();
    for table in [mangle, filter(input), nat(input)] {
        table.write(&mut text);
    }
    text
}

fn filter(input: &Input) -> Table {
    let mut table = Table::new(
        "filter",
        &INPUT_OUTPUT,
        &[
            "FLANNEL-FWD",
            "KUBE-FIREWALL",
            "KUBE-FORWARD",
            "KUBE-IPVS-FILTER",
            "KUBE-IPVS-OUT-FILTER",
            "KUBE-KUBELET-CANARY",
            "KUBE-NODE-PORT",
            "KUBE-PROXY-FIREWALL",
            "KUBE-SOURCE-RANGES-FIREWALL",
        ],
    );
    let family = input.family;
    table.rule("INPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-FILTER");
    table.rule("INPUT -m comment --comment \"kube-proxy firewall rules\" -j KUBE-PROXY-FIREWALL");
    table.rule("INPUT -m comment --comment \"kubernetes health check rules\" -j KUBE-NODE-PORT");
    table.rule("INPUT -j KUBE-FIREWALL");
    table.rule("FORWARD -m comment --comment \"kube-proxy firewall rules\" -j KUBE-PROXY-FIREWALL");
    table.rule("FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD");
    table.rule(FLANNEL_FORWARD);
    table.rule(
        "OUTPUT -m comment --comment \"kubernetes ipvs access filter\" -j KUBE-IPVS-OUT-FILTER",
    );
    table.rule("OUTPUT -j KUBE-FIREWALL");
    let cluster = input.cluster_cidr();
    for side in ["-s", "-d"] {
        table.rule(format!(
            "FLANNEL-FWD {side} {cluster} -m comment --comment \"flanneld forward\" -j ACCEPT"
        ));
    }
    firewall(input, &mut table);
    table.rule("KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT");
    table.rule("KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    table.rule(format!(
        "KUBE-NODE-PORT -m comment --comment \"Kubernetes health check node port\" -m set --match-set {} dst -j ACCEPT",
        set(family, "HEALTH-CHECK-NODE-PORT")
    ));
    table.rule(format!(
        "KUBE-IPVS-FILTER -m set --match-set {} dst,dst -j RETURN",
        set(family, "CLUSTER-IP")
    ));
    table.rule(format!(
        "KUBE-IPVS-FILTER -m set --match-set {} dst -j RETURN",
        set(family, "HEALTH-CHECK-NODE-PORT")
    ));
    table.rule(format!(
        "KUBE-IPVS-FILTER -m conntrack --ctstate NEW -m set --match-set {} dst -j REJECT",
        set(family, "IPVS-IPS")
    ));
    table
}

fn nat(input: &Input) -> Table {
    let mut table = Table::new(
        "nat",
        &NAT,
        &[
            "FLANNEL-POSTRTG",
            "KUBE-KUBELET-CANARY",
            "KUBE-LOAD-BALANCER",
            "KUBE-MARK-MASQ",
            "KUBE-NODE-PORT",
            "KUBE-POSTROUTING",
            "KUBE-SERVICES",
        ],
    );
    let family = input.family;
    table.rule("PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES");
    table.rule("OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES");
    table.rule(
        "POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING",
    );
    table.rule("POSTROUTING -m comment --comment \"flanneld masq\" -j FLANNEL-POSTRTG");
    flannel_postrouting(input, &mut table);
    table.rule("KUBE-LOAD-BALANCER -j KUBE-MARK-MASQ");
    table.rule("KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000");
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let (lower, upper) = (protocol.lower(), protocol.lower().to_uppercase());
        table.rule(format!(
            "KUBE-NODE-PORT -p {lower} -m comment --comment \"Kubernetes nodeport {upper} port for masquerade purpose\" -m set --match-set {} dst -j KUBE-MARK-MASQ",
            set(family, &format!("NODE-PORT-{upper}"))
        ));
    }
    table.rule(format!(
        "KUBE-POSTROUTING -m comment --comment \"Kubernetes endpoints dst ip:port, source ip for solving hairpin purpose\" -m set --match-set {} dst,dst,src -j MASQUERADE",
        set(family, "LOOP-BACK")
    ));
    table.rule("KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN");
    table.rule("KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0");
    table.rule("KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully");
    if family == Family::V4 {
        table.rule("KUBE-SERVICES -s 127.0.0.0/8 -j RETURN");
    }
    let cluster_ip = set(family, "CLUSTER-IP");
    table.rule(format!(
        "KUBE-SERVICES ! -s {} -m comment --comment \"Kubernetes service cluster ip + port for masquerade purpose\" -m set --match-set {cluster_ip} dst,dst -j KUBE-MARK-MASQ",
        input.cluster_cidr()
    ));
    table.rule("KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT");
    table.rule(format!(
        "KUBE-SERVICES -m set --match-set {cluster_ip} dst,dst -j ACCEPT"
    ));
    table
}
