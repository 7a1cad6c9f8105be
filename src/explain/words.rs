//! Kernel objects in the words of `ip`, `bridge` and `ss`, one line each.
//!
//! Devices are given by name through a function, because an index means nothing outside its
//! namespace.

#![expect(
    clippy::format_push_string,
    reason = "writing to a String cannot fail, and its result would have to be ignored"
)]

use crate::model::addr::Addr;
use crate::model::capture::Dropped;
use crate::model::fdb::FdbEntry;
use crate::model::link::{Link, LinkKind, PortState};
use crate::model::neigh::{Neigh, NeighState};
use crate::model::route::{NextHop, RT_TABLE_DEFAULT, RT_TABLE_LOCAL, RT_TABLE_MAIN};
use crate::model::route::{Route, RouteKind};
use crate::model::rule::{Rule, RuleAction};
use crate::model::socket::Socket;
use crate::model::{IfIndex, Prefix, Section, packet};

/// Name of a device, for the functions below.
pub type DevName<'a> = &'a dyn Fn(IfIndex) -> String;

/// Why the kernel dropped a packet, and which of its functions: `NETFILTER_DROP in nf_hook_slow`.
pub fn dropped(why: &Dropped) -> String {
    let name = why.name.clone();
    let name = name.unwrap_or_else(|| format!("reason {}", why.reason));
    match &why.function {
        Some(function) => format!("{name} in {function}"),
        None => name,
    }
}

/// Protocol by name; the number where it has none here.
pub fn protocol(number: u8) -> String {
    match number {
        packet::ICMP => "icmp".to_owned(),
        packet::TCP => "tcp".to_owned(),
        packet::UDP => "udp".to_owned(),
        packet::ICMPV6 => "icmpv6".to_owned(),
        packet::SCTP => "sctp".to_owned(),
        other => format!("proto {other}"),
    }
}

/// A routing table as `ip` names it.
pub fn table(number: u32) -> String {
    match number {
        RT_TABLE_LOCAL => "local".to_owned(),
        RT_TABLE_MAIN => "main".to_owned(),
        RT_TABLE_DEFAULT => "default".to_owned(),
        other => other.to_string(),
    }
}

fn prefix(prefix: Prefix) -> String {
    match (prefix.len(), prefix.addr().is_ipv4()) {
        (0, _) => "default".to_owned(),
        (32, true) | (128, false) => prefix.addr().to_string(),
        _ => prefix.to_string(),
    }
}

fn route_kind(kind: RouteKind) -> Option<String> {
    Some(match kind {
        RouteKind::Unicast => return None,
        RouteKind::Local => "local".to_owned(),
        RouteKind::Broadcast => "broadcast".to_owned(),
        RouteKind::Anycast => "anycast".to_owned(),
        RouteKind::Multicast => "multicast".to_owned(),
        RouteKind::Blackhole => "blackhole".to_owned(),
        RouteKind::Unreachable => "unreachable".to_owned(),
        RouteKind::Prohibit => "prohibit".to_owned(),
        RouteKind::Throw => "throw".to_owned(),
        RouteKind::Other(number) => format!("type {number}"),
    })
}

fn next_hop(hop: &NextHop, dev: Option<String>) -> Vec<String> {
    let mut words = Vec::new();
    if let Some(encap) = &hop.encap {
        words.push(format!("encap {encap}"));
    }
    if let Some(via) = hop.via {
        words.push(format!("via {via}"));
    }
    if let Some(dev) = dev {
        words.push(format!("dev {dev}"));
    }
    for (set, word) in [
        (hop.onlink, "onlink"),
        (hop.dead, "dead"),
        (hop.linkdown, "linkdown"),
    ] {
        if set {
            words.push(word.to_owned());
        }
    }
    words
}

/// A route in the few words that say where packets go: `default via 10.244.1.1 dev eth0`.
pub fn route_short(route: &Route, dev: DevName<'_>) -> String {
    let mut words = Vec::new();
    words.extend(route_kind(route.kind));
    words.push(prefix(route.dst));
    if let Some(src) = route.src {
        words.push(format!("from {src}"));
    }
    match route.nexthops.as_slice() {
        [only] => words.extend(next_hop(only, only.link.map(dev))),
        several => {
            for hop in several {
                let hop_words = next_hop(hop, hop.link.map(dev)).join(" ");
                words.push(format!("nexthop {hop_words} weight {}", hop.weight));
            }
        }
    }
    if !matches!(route.table, RT_TABLE_MAIN | RT_TABLE_LOCAL) {
        words.push(format!("table {}", table(route.table)));
    }
    words.join(" ")
}

/// A route as `ip route del` takes it, so that it finds this one and no other of its prefix.
pub fn route_typed(route: &Route, dev: DevName<'_>) -> String {
    let mut bare = route.clone();
    for hop in &mut bare.nexthops {
        // States, which no command takes.
        (hop.dead, hop.linkdown) = (false, false);
    }
    if bare.nh_id.is_some() {
        // Its next hops are not compared with those of a command.
        bare.nexthops.clear();
    }
    let mut words = vec![route_short(&bare, dev)];
    if route.table == RT_TABLE_LOCAL {
        words.push("table local".to_owned());
    }
    words.extend(route.nh_id.map(|id| format!("nhid {id}")));
    if route.tos != 0 {
        words.push(format!("tos {:#x}", route.tos));
    }
    if route.metric != 0 {
        words.push(format!("metric {}", route.metric));
    }
    words.join(" ")
}

/// A route as `ip route show table all` prints it.
pub fn route(route: &Route, dev: DevName<'_>) -> String {
    let mut words = vec![route_short(route, dev)];
    if route.table == RT_TABLE_LOCAL {
        words.push("table local".to_owned());
    }
    if let Some(id) = route.nh_id {
        words.push(format!("nhid {id}"));
    }
    let proto = match route.protocol {
        0 | 3 => None,
        2 => Some("kernel".to_owned()),
        4 => Some("static".to_owned()),
        9 => Some("ra".to_owned()),
        12 => Some("bird".to_owned()),
        16 => Some("dhcp".to_owned()),
        186 => Some("bgp".to_owned()),
        other => Some(other.to_string()),
    };
    words.extend(proto.map(|proto| format!("proto {proto}")));
    match route.scope {
        253 => words.push("scope link".to_owned()),
        254 => words.push("scope host".to_owned()),
        _ => {}
    }
    if let Some(src) = route.prefsrc {
        words.push(format!("src {src}"));
    }
    if route.metric != 0 {
        words.push(format!("metric {}", route.metric));
    }
    if let Some(mtu) = route.mtu {
        words.push(format!("mtu {mtu}"));
    }
    for name in &route.unknown {
        words.push(format!("[{name}: not evaluated]"));
    }
    words.join(" ")
}

/// A policy rule as `ip rule` prints it.
pub fn rule(rule: &Rule) -> String {
    let mut words = vec![format!("{}:", rule.priority)];
    if rule.invert {
        words.push("not".to_owned());
    }
    words.push(format!(
        "from {}",
        rule.src.map_or_else(|| "all".to_owned(), prefix)
    ));
    if let Some(dst) = rule.dst {
        words.push(format!("to {}", prefix(dst)));
    }
    if rule.tos != 0 {
        words.push(format!("tos {:#x}", rule.tos));
    }
    if let Some((value, mask)) = rule.fwmark {
        words.push(match mask {
            u32::MAX => format!("fwmark {value:#x}"),
            mask => format!("fwmark {value:#x}/{mask:#x}"),
        });
    }
    words.extend(rule.iif.as_ref().map(|name| format!("iif {name}")));
    words.extend(rule.oif.as_ref().map(|name| format!("oif {name}")));
    words.extend(
        rule.ip_proto
            .map(|number| format!("ipproto {}", protocol(number))),
    );
    for (word, range) in [("sport", rule.sport), ("dport", rule.dport)] {
        if let Some((from, to)) = range {
            words.push(if from == to {
                format!("{word} {from}")
            } else {
                format!("{word} {from}-{to}")
            });
        }
    }
    words.extend(rule.uid.map(|(from, to)| format!("uidrange {from}-{to}")));
    if rule.l3mdev {
        words.push("lookup [l3mdev-table]".to_owned());
    }
    match rule.action {
        RuleAction::Table(_) if rule.l3mdev => {}
        RuleAction::Table(number) => words.push(format!("lookup {}", table(number))),
        RuleAction::Goto(target) => words.push(format!("goto {target}")),
        RuleAction::Nop => words.push("nop".to_owned()),
        RuleAction::Blackhole => words.push("blackhole".to_owned()),
        RuleAction::Unreachable => words.push("unreachable".to_owned()),
        RuleAction::Prohibit => words.push("prohibit".to_owned()),
        RuleAction::Other(number) => words.push(format!("action {number}")),
    }
    if let Some(len) = rule.suppress_prefixlen {
        words.push(format!("suppress_prefixlength {len}"));
    }
    if let Some(group) = rule.suppress_ifgroup {
        words.push(format!("suppress_ifgroup {group}"));
    }
    for name in &rule.unknown {
        words.push(format!("[{name}: not evaluated]"));
    }
    words.join(" ")
}

/// State of a neighbour as `ip neigh` prints it.
pub fn neigh_state(state: NeighState) -> String {
    match state {
        NeighState::Incomplete => "INCOMPLETE".to_owned(),
        NeighState::Reachable => "REACHABLE".to_owned(),
        NeighState::Stale => "STALE".to_owned(),
        NeighState::Delay => "DELAY".to_owned(),
        NeighState::Probe => "PROBE".to_owned(),
        NeighState::Failed => "FAILED".to_owned(),
        NeighState::Noarp => "NOARP".to_owned(),
        NeighState::Permanent => "PERMANENT".to_owned(),
        NeighState::Other(0) => "NONE".to_owned(),
        NeighState::Other(raw) => format!("{raw:#x}"),
    }
}

/// A neighbour as `ip neigh` prints it.
pub fn neigh(neigh: &Neigh, dev: &str) -> String {
    let mut words = format!("{} dev {dev}", neigh.dst);
    if let Some(mac) = neigh.lladdr {
        words.push_str(&format!(" lladdr {mac}"));
    }
    if neigh.proxy {
        words.push_str(" proxy");
    }
    words.push(' ');
    words.push_str(&neigh_state(neigh.state));
    words
}

/// A forwarding entry as `bridge fdb` prints it.
pub fn fdb(entry: &FdbEntry, dev: DevName<'_>) -> String {
    let mut words = vec![entry.mac.to_string(), format!("dev {}", dev(entry.link))];
    words.extend(entry.dst.map(|dst| format!("dst {dst}")));
    words.extend(entry.port.map(|port| format!("port {port}")));
    words.extend(entry.vni.map(|vni| format!("vni {vni}")));
    words.extend(entry.via.map(|via| format!("via {}", dev(via))));
    words.extend(entry.vlan.map(|vlan| format!("vlan {vlan}")));
    words.extend(entry.master.map(|master| format!("master {}", dev(master))));
    for (set, word) in [
        (entry.own, "self"),
        (entry.ext_learned, "extern_learn"),
        (entry.permanent, "permanent"),
    ] {
        if set {
            words.push(word.to_owned());
        }
    }
    words.join(" ")
}

/// An address as `ip addr` prints it.
pub fn addr(addr: &Addr, dev: &str) -> String {
    let family = if addr.local.is_ipv4() {
        "inet"
    } else {
        "inet6"
    };
    let mut words = match addr.peer {
        Some(peer) => format!("{family} {} peer {peer}/{}", addr.local, addr.prefix_len),
        None => format!("{family} {}/{}", addr.local, addr.prefix_len),
    };
    let scope = match addr.scope {
        0 => "global".to_owned(),
        200 => "site".to_owned(),
        253 => "link".to_owned(),
        254 => "host".to_owned(),
        other => other.to_string(),
    };
    words.push_str(&format!(" scope {scope}"));
    for (set, word) in [
        (addr.secondary, "secondary"),
        (addr.tentative, "tentative"),
        (addr.dadfailed, "dadfailed"),
        (addr.deprecated, "deprecated"),
        (addr.nodad, "nodad"),
    ] {
        if set {
            words.push(' ');
            words.push_str(word);
        }
    }
    words.push(' ');
    words.push_str(dev);
    words
}

/// State of a bridge port as `bridge link` prints it.
pub fn port_state(state: PortState) -> String {
    match state {
        PortState::Disabled => "disabled".to_owned(),
        PortState::Listening => "listening".to_owned(),
        PortState::Learning => "learning".to_owned(),
        PortState::Forwarding => "forwarding".to_owned(),
        PortState::Blocking => "blocking".to_owned(),
        PortState::Other(raw) => format!("state {raw}"),
    }
}

/// Name of a device with that of its peer or parent, as `ip link` heads its lines: `eth0@if12`.
pub fn link_name(link: &Link, dev: DevName<'_>) -> String {
    match (link.link, link.link_netnsid) {
        (Some(other), Some(_)) => format!("{}@if{other}", link.name),
        (Some(other), None) => format!("{}@{}", link.name, dev(other)),
        (None, _) => link.name.clone(),
    }
}

/// A device as `ip -d link` prints it, on one line.
pub fn link(link: &Link, dev: DevName<'_>) -> String {
    let mut flags = Vec::new();
    for (set, word) in [
        (link.loopback, "LOOPBACK"),
        (link.pointopoint, "POINTOPOINT"),
        (link.noarp, "NOARP"),
        (link.promisc, "PROMISC"),
        (link.up, "UP"),
        (link.lower_up, "LOWER_UP"),
        (link.up && !link.lower_up, "NO-CARRIER"),
    ] {
        if set {
            flags.push(word);
        }
    }
    let mut words = vec![
        format!("{}:", link.index),
        format!("{}:", link_name(link, dev)),
        format!("<{}>", flags.join(",")),
        format!("mtu {}", link.mtu),
    ];
    words.extend(link.qdisc.as_ref().map(|qdisc| format!("qdisc {qdisc}")));
    words.extend(link.master.map(|master| format!("master {}", dev(master))));
    words.extend(link.mac.map(|mac| format!("link/ether {mac}")));
    words.extend(link.link_netnsid.map(|id| format!("link-netnsid {id}")));
    words.push(link_kind(&link.kind, dev));
    if let Some(port) = &link.port {
        words.push(format!("port {}", port_state(port.state)));
        for (set, word) in [
            (port.hairpin, "hairpin on"),
            (port.isolated, "isolated on"),
            (!port.learning, "learning off"),
            (!port.unicast_flood, "flood off"),
            (port.locked, "locked on"),
            (port.proxy_arp, "proxy_arp on"),
            (port.neigh_suppress, "neigh_suppress on"),
        ] {
            if set {
                words.push(word.to_owned());
            }
        }
    }
    if link.xdp {
        words.push("xdp".to_owned());
    }
    for filter in &link.tc {
        words.push(format!("tc[{filter}]"));
    }
    words.join(" ")
}

fn link_kind(kind: &LinkKind, dev: DevName<'_>) -> String {
    let mut words = vec![kind.name().to_owned()];
    match kind {
        LinkKind::Bridge(bridge) => {
            for (set, word) in [
                (bridge.vlan_filtering, "vlan_filtering 1"),
                (bridge.stp, "stp_state 1"),
                (bridge.nf_call_iptables, "nf_call_iptables 1"),
                (bridge.nf_call_ip6tables, "nf_call_ip6tables 1"),
            ] {
                if set {
                    words.push(word.to_owned());
                }
            }
        }
        LinkKind::Vxlan(vxlan) => {
            words.push(format!("id {}", vxlan.vni));
            words.extend(vxlan.local.map(|local| format!("local {local}")));
            words.extend(vxlan.group.map(|group| format!("remote {group}")));
            words.extend(vxlan.lower.map(|lower| format!("dev {}", dev(lower))));
            words.push(format!("dstport {}", vxlan.port));
            words.push(
                if vxlan.learning {
                    "learning"
                } else {
                    "nolearning"
                }
                .to_owned(),
            );
            if vxlan.collect_metadata {
                words.push("external".to_owned());
            }
        }
        LinkKind::Vlan(id) => words.push(format!("id {id}")),
        LinkKind::Vrf(number) => words.push(format!("table {}", table(*number))),
        LinkKind::Ipvlan(mode) => words.push(format!("mode {mode}")),
        LinkKind::IpTunnel(tunnel) => {
            words.extend(tunnel.remote.map(|remote| format!("remote {remote}")));
            words.extend(tunnel.local.map(|local| format!("local {local}")));
            for (side, fields) in [("i", tunnel.input), ("o", tunnel.output)] {
                words.extend(fields.key.map(|key| format!("{side}key {key}")));
                words.extend(fields.checksum.then(|| format!("{side}csum")));
                words.extend(fields.sequence.then(|| format!("{side}seq")));
            }
        }
        LinkKind::Geneve(geneve) => {
            words.push(format!("id {}", geneve.vni));
            words.extend(geneve.remote.map(|remote| format!("remote {remote}")));
            words.push(format!("dstport {}", geneve.port));
        }
        LinkKind::Wireguard(Section::Known(own)) => {
            words.push(format!("port {} peers {}", own.port, own.peers.len()));
        }
        _ => {}
    }
    words.join(" ")
}

/// `address:port`, with brackets where the address needs them.
pub fn socket_addr(ip: std::net::IpAddr, port: Option<u16>) -> String {
    match (port, ip.is_ipv6()) {
        (Some(port), true) => format!("[{ip}]:{port}"),
        (Some(port), false) => format!("{ip}:{port}"),
        (None, _) => ip.to_string(),
    }
}

/// A socket as `ss` prints it.
pub fn socket(socket: &Socket, dev: DevName<'_>) -> String {
    let state = match (socket.protocol, socket.listening) {
        (packet::TCP | packet::SCTP, true) => "LISTEN",
        (_, true) => "UNCONN",
        (_, false) => "ESTAB",
    };
    let mut words = format!(
        "{} {state} {}",
        protocol(socket.protocol),
        socket_addr(socket.addr, Some(socket.port))
    );
    if let Some((ip, port)) = socket.remote {
        words.push_str(&format!(" peer {}", socket_addr(ip, Some(port))));
    }
    if let Some((waiting, most)) = socket.backlog {
        words.push_str(&format!(" backlog {waiting} of {most}"));
    }
    if let Some(bound) = socket.bound_dev {
        words.push_str(&format!(" dev {}", dev(bound)));
    }
    if socket.addr.is_ipv6() && socket.v6only == Some(true) {
        words.push_str(" v6only");
    }
    words.push_str(&format!(" uid {} ino {}", socket.uid, socket.inode));
    words
}

/// A setting as `sysctl -w` takes it: with slashes where its device has a dot in its name, as VLANs' and flannel's do.
pub fn sysctl(name: &str, value: u8) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    let name = match &parts[..] {
        // net, ipv4, conf, DEVICE, key
        [first, second, third, device @ .., key] if device.len() > 1 => {
            format!("{first}/{second}/{third}/{}/{key}", device.join("."))
        }
        _ => name.to_owned(),
    };
    format!("sysctl -w {name}={value}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MacAddr;

    fn eth(_: IfIndex) -> String {
        "eth0".to_owned()
    }

    #[test]
    fn settings_of_devices_with_dots_are_typed_with_slashes() {
        assert_eq!(
            sysctl("net.ipv4.conf.flannel.1.rp_filter", 2),
            "sysctl -w net/ipv4/conf/flannel.1/rp_filter=2"
        );
        assert_eq!(
            sysctl("net.ipv4.conf.eth0.rp_filter", 0),
            "sysctl -w net.ipv4.conf.eth0.rp_filter=0"
        );
        assert_eq!(
            sysctl("net.ipv4.ip_forward", 1),
            "sysctl -w net.ipv4.ip_forward=1"
        );
    }

    #[test]
    fn routes_read_as_ip_route_prints_them() {
        let mut one = Route {
            table: RT_TABLE_MAIN,
            dst: "0.0.0.0/0".parse().expect("a prefix"),
            src: None,
            tos: 0,
            metric: 100,
            kind: RouteKind::Unicast,
            scope: 0,
            protocol: 16,
            prefsrc: Some("192.0.2.11".parse().expect("an address")),
            nexthops: vec![NextHop {
                via: Some("192.0.2.1".parse().expect("an address")),
                link: IfIndex::new(2),
                weight: 1,
                dead: false,
                linkdown: false,
                onlink: false,
                encap: None,
            }],
            nh_id: None,
            mtu: None,
            pref: 0,
            realm: None,
            unknown: Vec::new(),
        };
        assert_eq!(
            route(&one, &eth),
            "default via 192.0.2.1 dev eth0 proto dhcp src 192.0.2.11 metric 100"
        );
        assert_eq!(route_short(&one, &eth), "default via 192.0.2.1 dev eth0");
        assert_eq!(
            route_typed(&one, &eth),
            "default via 192.0.2.1 dev eth0 metric 100"
        );
        one.nh_id = Some(7);
        assert_eq!(route_typed(&one, &eth), "default nhid 7 metric 100");
        one.nh_id = None;
        one.nexthops[0].linkdown = true;
        one.table = RT_TABLE_LOCAL;
        assert_eq!(
            route_typed(&one, &eth),
            "default via 192.0.2.1 dev eth0 table local metric 100"
        );
        one.nexthops[0].linkdown = false;
        one.kind = RouteKind::Blackhole;
        one.nexthops.clear();
        one.table = 100;
        assert_eq!(route_short(&one, &eth), "blackhole default table 100");
    }

    #[test]
    fn neighbours_and_fdb_entries_read_as_iproute2_prints_them() {
        let mac: MacAddr = "aa:bb:cc:dd:ee:ff".parse().expect("an address");
        let entry = Neigh {
            link: IfIndex::new(2).expect("not zero"),
            dst: "10.244.2.0".parse().expect("an address"),
            lladdr: Some(mac),
            state: NeighState::Permanent,
            proxy: false,
        };
        assert_eq!(
            neigh(&entry, "flannel.1"),
            "10.244.2.0 dev flannel.1 lladdr aa:bb:cc:dd:ee:ff PERMANENT"
        );
        let entry = FdbEntry {
            link: IfIndex::new(2).expect("not zero"),
            master: None,
            mac,
            vlan: None,
            own: true,
            permanent: true,
            sticky: false,
            ext_learned: false,
            nexthop: None,
            dst: Some("192.0.2.12".parse().expect("an address")),
            port: None,
            vni: None,
            via: None,
        };
        assert_eq!(
            fdb(&entry, &eth),
            "aa:bb:cc:dd:ee:ff dev eth0 dst 192.0.2.12 self permanent"
        );
    }
}
