//! Services in the shapes of kube-proxy.

use super::Scene;
use crate::random::dice::Dice;
use crate::random::world::{Rules, Table};

/// Rules of one of the modes, for all Services of a network.
pub fn draw(dice: &mut Dice, scene: &Scene, _ipsets: &mut Vec<String>, six: bool) -> Vec<Rules> {
    let families: &[bool] = if six { &[false, true] } else { &[false] };
    if dice.percent(50) {
        let legacy = dice.percent(40);
        return families
            .iter()
            .map(|v6| iptables(dice, scene, legacy, *v6))
            .collect();
    }
    let lines = families.iter().flat_map(|v6| nftables(dice, scene, *v6));
    vec![Rules::Nft(lines.collect())]
}

/// Servers of a Service.
fn servers(dice: &mut Dice, scene: &Scene, v6: bool) -> Vec<String> {
    let mut servers: Vec<String> = Vec::new();
    for _ in 0..dice.below(4) {
        let addr = dice.one(scene.addrs(v6));
        if !servers.contains(&addr) {
            servers.push(addr);
        }
    }
    servers
}

fn iptables(dice: &mut Dice, scene: &Scene, legacy: bool, v6: bool) -> Rules {
    let mut chains: Vec<String> = ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"]
        .iter()
        .map(|chain| format!(":{chain} ACCEPT"))
        .collect();
    for chain in [
        "KUBE-SERVICES",
        "KUBE-NODEPORTS",
        "KUBE-POSTROUTING",
        "KUBE-MARK-MASQ",
    ] {
        chains.push(format!(":{chain} - [0:0]"));
    }
    let mut rules: Vec<String> = [
        "-A PREROUTING -j KUBE-SERVICES",
        "-A OUTPUT -j KUBE-SERVICES",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut filter = Vec::new();
    let services: Vec<_> = scene
        .services
        .iter()
        .filter(|addr| addr.is_ipv6() == v6)
        .collect();
    let bracket = |addr: &str, port: &str| {
        if v6 {
            format!("[{addr}]:{port}")
        } else {
            format!("{addr}:{port}")
        }
    };
    for (number, service) in services.iter().enumerate() {
        for (protocol, port, own) in [("tcp", "80", "8080"), ("udp", "53", "8053")] {
            let servers = servers(dice, scene, v6);
            let svc = format!("KUBE-SVC-{number}{protocol}");
            if servers.is_empty() {
                filter.push(format!(
                    "-A KUBE-SERVICES -d {service} -p {protocol} -m {protocol} --dport {port} -j REJECT"
                ));
                continue;
            }
            chains.push(format!(":{svc} - [0:0]"));
            rules.push(format!(
                "-A KUBE-SERVICES -d {service} -p {protocol} -m {protocol} --dport {port} -j {svc}"
            ));
            if protocol == "tcp" && dice.percent(40) {
                rules.push(format!(
                    "-A KUBE-NODEPORTS -p tcp -m tcp --dport 30080 -j {svc}"
                ));
            }
            if dice.percent(40) {
                let inside = scene.prefix(dice, v6);
                rules.push(format!(
                    "-A {svc} ! -s {inside} -d {service} -p {protocol} -m {protocol} --dport {port} -j KUBE-MARK-MASQ"
                ));
            }
            let count = servers.len();
            for (at, server) in servers.iter().enumerate() {
                let sep = format!("KUBE-SEP-{number}{protocol}{at}");
                chains.push(format!(":{sep} - [0:0]"));
                let share = match count - at {
                    3 => " -m statistic --mode random --probability 0.33333333349",
                    2 => " -m statistic --mode random --probability 0.50000000000",
                    _ => "",
                };
                rules.push(format!("-A {svc}{share} -j {sep}"));
                rules.push(format!("-A {sep} -s {server} -j KUBE-MARK-MASQ"));
                rules.push(format!(
                    "-A {sep} -p {protocol} -m {protocol} -j DNAT --to-destination {}",
                    bracket(server, own)
                ));
            }
        }
    }
    rules.push("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS".to_owned());
    let mut tables = vec![Table {
        name: "nat".to_owned(),
        chains,
        rules,
    }];
    let mut first: Vec<String> = [
        "-A INPUT -m conntrack --ctstate NEW -j KUBE-SERVICES",
        "-A FORWARD -j KUBE-FORWARD",
        "-A FORWARD -m conntrack --ctstate NEW -j KUBE-SERVICES",
        "-A OUTPUT -m conntrack --ctstate NEW -j KUBE-SERVICES",
        "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP",
        "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT",
        "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ]
    .map(str::to_owned)
    .to_vec();
    first.append(&mut filter);
    let closed = dice.percent(10);
    tables.push(Table {
        name: "filter".to_owned(),
        chains: vec![
            ":INPUT ACCEPT".to_owned(),
            format!(":FORWARD {}", if closed { "DROP" } else { "ACCEPT" }),
            ":OUTPUT ACCEPT".to_owned(),
            ":KUBE-SERVICES - [0:0]".to_owned(),
            ":KUBE-FORWARD - [0:0]".to_owned(),
        ],
        rules: first,
    });
    Rules::Iptables { legacy, v6, tables }
}

fn nftables(dice: &mut Dice, scene: &Scene, v6: bool) -> Vec<String> {
    let (ip, kind) = if v6 {
        ("ip6", "ipv6_addr")
    } else {
        ("ip", "ipv4_addr")
    };
    let t = format!("{ip} kube-proxy");
    let mut lines = vec![format!("add table {t}")];
    for chain in [
        "services",
        "mark-for-masquerade",
        "masquerading",
        "reject-chain",
    ] {
        lines.push(format!("add chain {t} {chain}"));
    }
    for (chain, kind, hook, priority) in [
        ("nat-prerouting", "nat", "prerouting", -100),
        ("nat-output", "nat", "output", -100),
        ("nat-postrouting", "nat", "postrouting", 100),
        ("filter-forward", "filter", "forward", -110),
        ("filter-output", "filter", "output", -110),
        ("filter-input", "filter", "input", -110),
    ] {
        lines.push(format!(
            "add chain {t} {chain} {{ type {kind} hook {hook} priority {priority}; }}"
        ));
    }
    lines.push(format!(
        "add map {t} service-ips {{ type {kind} . inet_proto . inet_service : verdict; }}"
    ));
    lines.push(format!(
        "add map {t} no-endpoint-services {{ type {kind} . inet_proto . inet_service : verdict; }}"
    ));
    let ask = format!("{ip} daddr . meta l4proto . th dport");
    lines.push(format!("add rule {t} services {ask} vmap @service-ips"));
    lines.push(format!(
        "add rule {t} mark-for-masquerade meta mark set meta mark or 0x4000"
    ));
    lines.push(format!(
        "add rule {t} masquerading meta mark & 0x4000 == 0 return"
    ));
    lines.push(format!(
        "add rule {t} masquerading meta mark set meta mark xor 0x4000"
    ));
    lines.push(format!("add rule {t} masquerading masquerade fully-random"));
    lines.push(format!("add rule {t} reject-chain reject"));
    lines.push(format!("add rule {t} nat-prerouting jump services"));
    lines.push(format!("add rule {t} nat-output jump services"));
    lines.push(format!("add rule {t} nat-postrouting jump masquerading"));
    for chain in ["filter-forward", "filter-output", "filter-input"] {
        lines.push(format!(
            "add rule {t} {chain} ct state new {ask} vmap @no-endpoint-services"
        ));
    }
    let services: Vec<_> = scene
        .services
        .iter()
        .filter(|addr| addr.is_ipv6() == v6)
        .collect();
    for (number, service) in services.iter().enumerate() {
        for (protocol, port, own) in [("tcp", "80", "8080"), ("udp", "53", "8053")] {
            let servers = servers(dice, scene, v6);
            if servers.is_empty() {
                lines.push(format!(
                    "add element {t} no-endpoint-services {{ {service} . {protocol} . {port} : goto reject-chain }}"
                ));
                continue;
            }
            let svc = format!("service-{number}-{protocol}");
            lines.push(format!("add chain {t} {svc}"));
            let mut choices = Vec::new();
            for (at, server) in servers.iter().enumerate() {
                let chain = format!("endpoint-{number}-{protocol}-{at}");
                lines.push(format!("add chain {t} {chain}"));
                lines.push(format!(
                    "add rule {t} {chain} {ip} saddr {server} jump mark-for-masquerade"
                ));
                let to = if v6 {
                    format!("[{server}]:{own}")
                } else {
                    format!("{server}:{own}")
                };
                lines.push(format!(
                    "add rule {t} {chain} meta l4proto {protocol} dnat to {to}"
                ));
                choices.push(format!("{at} : goto {chain}"));
            }
            if dice.percent(40) {
                let inside = scene.prefix(dice, v6);
                lines.push(format!(
                    "add rule {t} {svc} {ip} daddr {service} {protocol} dport {port} {ip} saddr != {inside} jump mark-for-masquerade"
                ));
            }
            lines.push(format!(
                "add rule {t} {svc} numgen random mod {} vmap {{ {} }}",
                choices.len(),
                choices.join(", ")
            ));
            lines.push(format!(
                "add element {t} service-ips {{ {service} . {protocol} . {port} : goto {svc} }}"
            ));
        }
    }
    lines
}
