//! Devices, addresses, rules, routes, neighbours and forwarding entries, against `ip` and `bridge`.

use std::collections::BTreeSet;
use std::path::Path;

use netpath::model::link::{LinkKind, MacvlanMode, PortState};
use netpath::model::neigh::NeighState;
use netpath::model::netns::NetNs;
use netpath::model::route::RouteKind;
use netpath::model::rule::RuleAction;
use netpath::model::tc::{Qdisc, QdiscKind};
use netpath::model::want::Depth;
use netpath_lab::namespace::Namespaces;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::Value;

use crate::ns::{Ns, run};

/// A node with a bridge, a VXLAN device, a macvlan and a pod behind a veth.
fn node() -> (Ns, Ns) {
    let (node, pod) = (Ns::new(), Ns::new());
    for command in [
        "ip link add br0 type bridge ageing_time 12300 nf_call_iptables 1",
        "ip link set br0 up",
        &format!("ip link add veth1 type veth peer name eth0 netns {}", pod.0),
        "ip link set veth1 master br0 up",
        "bridge link set dev veth1 hairpin on isolated on learning off flood off",
        "ip addr add 10.244.1.1/24 dev br0",
        "ip link add under0 type veth peer name under1",
        "ip link set under0 up",
        "ip link set under1 up",
        "ip addr add 192.0.2.11/24 dev under0",
        "ip link add flannel.1 type vxlan id 1 local 192.0.2.11 dev under0 dstport 8472 nolearning",
        "ip link set flannel.1 mtu 1450 up",
        "ip link add mv0 link under0 type macvlan mode bridge",
        "bridge fdb append 02:00:00:00:02:00 dev flannel.1 dst 192.0.2.12 self permanent",
        "bridge fdb append 02:00:00:00:03:00 dev flannel.1 dst 192.0.2.13 port 4789 vni 7 via under0 self permanent",
        "bridge fdb add 02:00:00:00:09:00 dev veth1 master static",
        "ip neigh add 10.244.2.0 lladdr 02:00:00:00:02:00 dev flannel.1 nud permanent",
        "ip neigh add 10.244.1.99 dev br0 nud failed",
        "ip neigh add proxy 10.244.1.200 dev br0",
        "ip route add 10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink",
        "ip route add 10.50.0.0/16 nexthop via 192.0.2.12 weight 3 nexthop via 192.0.2.13 dev under0",
        "ip route add blackhole 10.99.0.0/16 metric 7",
        "ip route add unreachable 10.98.0.0/16 table 100",
        "ip route add 10.97.0.0/16 dev br0 src 10.244.1.1 mtu 1400 table 100",
        "ip nexthop add id 5 via 192.0.2.12 dev under0",
        "ip route add 10.96.0.0/16 nhid 5",
        "ip rule add priority 512 from 10.244.1.0/24 to 10.0.0.0/8 fwmark 0x80/0xff table 100",
        "ip rule add priority 513 not iif veth1 ipproto tcp dport 80-90 uidrange 0-10 table 101",
        "ip rule add priority 514 prohibit tos 0x10",
        "ip rule add priority 515 table main suppress_prefixlength 0",
        "ip rule add priority 516 goto 32766",
        "ip rule add priority 517 ipproto udp sport 5353 dport 53 table 102",
        "ip -6 rule add priority 600 from fd00::/64 blackhole",
        "ip -6 addr add fd00::1/64 dev br0 nodad",
        "ip -6 route add fd01::/64 via fd00::2 dev br0 metric 33",
        "ip -6 route add fd02::/64 nexthop via fd00::3 dev br0 nexthop via fd00::4 dev br0 weight 5",
        "sysctl -q -w net.ipv4.conf.br0.rp_filter=2 net.ipv4.conf.br0.route_localnet=1",
        "sysctl -q -w net.ipv4.conf.br0.arp_ignore=1 net.ipv6.conf.br0.proxy_ndp=1",
        "sysctl -q -w net.ipv4.ip_forward=1 net.ipv4.conf.all.src_valid_mark=1",
    ] {
        node.run(command);
    }
    for command in [
        "ip link set eth0 up",
        "ip addr add 10.244.1.7/24 dev eth0",
        "ip addr add 10.244.1.8/24 dev eth0",
        "ip addr add 10.5.0.1 peer 10.5.0.2/32 dev eth0",
        "ip route add default via 10.244.1.1",
    ] {
        pod.run(command);
    }
    (node, pod)
}

fn name(ns: &NetNs, index: netpath::model::IfIndex) -> String {
    ns.link(index).expect("the device is known").name.clone()
}

fn text(value: &Value, key: &str) -> String {
    match &value[key] {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[test]
fn nothing_is_missing_and_links_are_as_ip_says() {
    let (node, pod) = node();
    for ns in [&node, &pod] {
        let read = ns.read(Depth::NoRules);
        assert!(read.missing().is_empty(), "{:?}", read.missing());
        let links = read.links.known().expect("links");
        let ours: BTreeSet<String> = links
            .iter()
            .map(|link| {
                let master = link
                    .master
                    .map(|index| name(&read, index))
                    .unwrap_or_default();
                let kind = match link.kind.name() {
                    "device" => "",
                    kind => kind,
                };
                let mac = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
                let netnsid = link
                    .link_netnsid
                    .map(|id| id.to_string())
                    .unwrap_or_default();
                let (index, mtu, up) = (link.index, link.mtu, link.up);
                format!(
                    "{index} {} {mtu} {mac} {kind} {master} {netnsid} {up}",
                    link.name
                )
            })
            .collect();
        let theirs: BTreeSet<String> = ns
            .json("ip -j -d link")
            .iter()
            .map(|link| {
                let mac = match text(link, "link_type").as_str() {
                    "ether" | "loopback" => text(link, "address"),
                    _ => String::new(),
                };
                let flags = link["flags"].as_array().expect("flags");
                format!(
                    "{} {} {} {mac} {} {} {} {}",
                    text(link, "ifindex"),
                    text(link, "ifname"),
                    text(link, "mtu"),
                    text(&link["linkinfo"], "info_kind"),
                    text(link, "master"),
                    text(link, "link_netnsid"),
                    flags.iter().any(|flag| flag == "UP"),
                )
            })
            .collect();
        assert_eq!(ours, theirs);
    }
}

#[test]
fn attributes_of_kinds_ports_and_settings() {
    let (node, _pod) = node();
    let read = node.read(Depth::NoRules);
    let link = |name| read.link_named(name).expect("the device").clone();
    let LinkKind::Bridge(bridge) = link("br0").kind else {
        panic!("br0 is no bridge");
    };
    assert!(bridge.nf_call_iptables && !bridge.vlan_filtering && !bridge.nf_call_ip6tables);
    assert_eq!(bridge.ageing_time, 12300);
    let LinkKind::Vxlan(vxlan) = link("flannel.1").kind else {
        panic!("flannel.1 is no VXLAN device");
    };
    assert_eq!((vxlan.vni, vxlan.port, vxlan.learning), (1, 8472, false));
    assert_eq!(vxlan.local, "192.0.2.11".parse().ok());
    assert_eq!(vxlan.lower, Some(link("under0").index));
    assert_eq!(link("mv0").kind, LinkKind::Macvlan(MacvlanMode::Bridge));
    assert_eq!(link("mv0").link, Some(link("under0").index));
    let port = link("veth1").port.expect("a port");
    assert!(port.hairpin && port.isolated && !port.learning && !port.unicast_flood);
    assert_eq!(port.state, PortState::Forwarding);
    assert!(port.bcast_flood && !port.locked && port.number.is_some());
    let inet = link("br0").inet.expect("IPv4 settings");
    assert_eq!(
        (inet.rp_filter, inet.route_localnet, inet.arp_ignore),
        (2, true, 1)
    );
    assert!(inet.forwarding);
    assert!(link("br0").inet6.expect("IPv6 settings").proxy_ndp);
    assert!(link("br0").stats.is_some());
    let sysctls = read.sysctls.known().expect("settings");
    let all = sysctls.inet_all.known().expect("settings of all");
    assert!(all.forwarding && all.src_valid_mark);
    assert_eq!(sysctls.ip_default_ttl.known(), Some(&64));
    assert!(
        sysctls
            .ip_local_port_range
            .known()
            .is_some_and(|(a, b)| a < b)
    );
}

#[test]
fn a_veth_pair_finds_itself_by_namespace_ids() {
    let (node, pod) = node();
    let (node, pod) = (node.read(Depth::NoRules), pod.read(Depth::NoRules));
    let (host_end, pod_end) = (node.link_named("veth1"), pod.link_named("eth0"));
    let (host_end, pod_end) = (host_end.expect("veth1"), pod_end.expect("eth0"));
    assert_eq!(
        (host_end.link, pod_end.link),
        (Some(pod_end.index), Some(host_end.index))
    );
    let id = |ns: &NetNs, other: &NetNs| {
        let ids = ns.nsids.known().expect("ids");
        let found = ids.iter().find(|(_, id)| *id == other.identity.id);
        found.map(|(number, _)| *number)
    };
    assert_eq!(id(&node, &pod), host_end.link_netnsid);
    assert_eq!(id(&pod, &node), pod_end.link_netnsid);
    // Both ends in one namespace have no id.
    assert_eq!(
        node.link_named("under0").and_then(|link| link.link_netnsid),
        None
    );
}

#[test]
fn addresses_are_as_ip_says() {
    let (node, pod) = node();
    for ns in [&node, &pod] {
        let read = ns.read(Depth::NoRules);
        let ours: BTreeSet<String> = (read.addrs.known().expect("addresses").iter())
            .map(|addr| {
                let peer = addr.peer.map(|peer| peer.to_string()).unwrap_or_default();
                let (local, len) = (addr.local, addr.prefix_len);
                format!(
                    "{} {local} {len} {peer} {}",
                    name(&read, addr.link),
                    addr.secondary
                )
            })
            .collect();
        let theirs: BTreeSet<String> = (ns.json("ip -j addr").iter())
            .flat_map(|link| {
                let infos = link["addr_info"].as_array().expect("addresses").clone();
                let device = text(link, "ifname");
                infos.into_iter().map(move |info| {
                    format!(
                        "{device} {} {} {} {}",
                        text(&info, "local"),
                        text(&info, "prefixlen"),
                        text(&info, "address"),
                        info["secondary"] == true || info["temporary"] == true,
                    )
                })
            })
            .collect();
        assert_eq!(ours, theirs);
    }
}

#[test]
fn routes_are_as_ip_says() {
    let (node, pod) = node();
    for ns in [&node, &pod] {
        let read = ns.read(Depth::NoRules);
        let mut ours = Vec::new();
        for route in read.routes.known().expect("routes") {
            let kind = format!("{:?}", route.kind).to_lowercase();
            let (table, dst, metric) = (route.table, route.dst, route.metric);
            let head = format!("{table} {dst} {kind} {metric}");
            if route.nexthops.is_empty() {
                ours.push(format!("{head} - -"));
            }
            for hop in &route.nexthops {
                let via = hop.via.map_or("-".to_owned(), |via| via.to_string());
                let device = hop.link.map_or("-".to_owned(), |link| name(&read, link));
                let weight = if route.nexthops.len() > 1 {
                    hop.weight
                } else {
                    1
                };
                ours.push(format!("{head} {via} {device} {weight}"));
            }
        }
        let mut theirs = Vec::new();
        for family in ["-4", "-6"] {
            for route in ns.json(&format!("ip -j -d {family} route show table all")) {
                theirs.extend(route_lines(&route, family));
            }
        }
        let clean = |lines: Vec<String>| {
            let drop_zeros = |line: String| line.replace(" - - 1", " - -");
            lines
                .into_iter()
                .map(drop_zeros)
                .collect::<BTreeSet<String>>()
        };
        assert_eq!(clean(ours), clean(theirs));
    }
}

fn route_lines(route: &Value, family: &str) -> Vec<String> {
    let table = match text(route, "table").as_str() {
        "" | "main" => "254".to_owned(),
        "local" => "255".to_owned(),
        other => other.to_owned(),
    };
    let dst = match (text(route, "dst").as_str(), family) {
        ("default", "-4") => "0.0.0.0/0".to_owned(),
        ("default", _) => "::/0".to_owned(),
        (prefix, _) if prefix.contains('/') => prefix.to_owned(),
        (host, "-4") => format!("{host}/32"),
        (host, _) => format!("{host}/128"),
    };
    let kind = match text(route, "type").as_str() {
        "" => "unicast".to_owned(),
        kind => kind.to_owned(),
    };
    let metric = match text(route, "metric").as_str() {
        "" => "0".to_owned(),
        metric => metric.to_owned(),
    };
    let head = format!("{table} {dst} {kind} {metric}");
    let or_dash = |value: &Value, key: &str| match text(value, key).as_str() {
        "" => "-".to_owned(),
        found => found.to_owned(),
    };
    if ["blackhole", "unreachable", "prohibit"].contains(&kind.as_str()) {
        return vec![format!("{head} - -")];
    }
    let Some(hops) = route["nexthops"].as_array() else {
        let (via, device) = (or_dash(route, "gateway"), or_dash(route, "dev"));
        return vec![format!("{head} {via} {device} 1")];
    };
    let line = |hop: &Value| {
        let (via, device) = (or_dash(hop, "gateway"), or_dash(hop, "dev"));
        format!("{head} {via} {device} {}", text(hop, "weight"))
    };
    hops.iter().map(line).collect()
}

#[test]
fn routes_keep_their_details() {
    let (node, _pod) = node();
    let read = node.read(Depth::NoRules);
    let routes = read.routes.known().expect("routes");
    let find = |dst: &str, table: u32| {
        let found = routes
            .iter()
            .find(|r| r.dst.to_string() == dst && r.table == table);
        found.unwrap_or_else(|| panic!("no route to {dst}"))
    };
    assert_eq!(find("10.97.0.0/16", 100).mtu, Some(1400));
    assert_eq!(find("10.97.0.0/16", 100).prefsrc, "10.244.1.1".parse().ok());
    assert!(find("10.244.2.0/24", 254).nexthops[0].onlink);
    assert_eq!(find("10.99.0.0/16", 254).kind, RouteKind::Blackhole);
    assert_eq!(find("10.96.0.0/16", 254).nh_id, Some(5));
    assert_eq!(find("10.96.0.0/16", 254).nexthops.len(), 1);
    assert!(
        routes.iter().all(|route| route.unknown.is_empty()),
        "{routes:?}"
    );
}

#[test]
fn hops_of_nexthop_objects_are_found_where_routes_leave_them_out() {
    let (node, _pod) = node();
    node.run("ip nexthop add id 6 via 192.0.2.13 dev under0");
    node.run("ip nexthop add id 7 group 5,2/6");
    node.run("ip route add 10.95.0.0/16 nhid 7");
    node.run("sysctl -q -w net.ipv4.nexthop_compat_mode=0");
    let read = node.read(Depth::NoRules);
    let routes = read.routes.known().expect("routes");
    let route = routes
        .iter()
        .find(|r| r.dst.to_string() == "10.95.0.0/16")
        .expect("the route");
    let hops: Vec<String> = (route.nexthops.iter())
        .map(|hop| format!("{:?} {}", hop.via.expect("a gateway"), hop.weight))
        .collect();
    assert_eq!(hops, ["192.0.2.12 2", "192.0.2.13 1"]);
}

#[test]
fn policy_rules_are_as_they_were_made() {
    let (node, _pod) = node();
    let read = node.read(Depth::NoRules);
    let rules = read.rules.known().expect("rules");
    let rule = |priority| {
        rules
            .iter()
            .find(|r| r.priority == priority)
            .expect("the rule")
    };
    let order: Vec<(bool, u32)> = rules.iter().map(|r| (r.v6, r.priority)).collect();
    let v4 = [0, 512, 513, 514, 515, 516, 517, 32766, 32767].map(|p| (false, p));
    let v6 = [0, 600, 32766].map(|p| (true, p));
    assert_eq!(order, [v4.as_slice(), v6.as_slice()].concat());
    assert_eq!(rule(512).src.expect("from").to_string(), "10.244.1.0/24");
    assert_eq!(rule(512).dst.expect("to").to_string(), "10.0.0.0/8");
    assert_eq!(rule(512).fwmark, Some((0x80, 0xff)));
    assert_eq!(rule(512).action, RuleAction::Table(100));
    assert!(rule(513).invert);
    assert_eq!(rule(513).iif.as_deref(), Some("veth1"));
    assert_eq!(
        (rule(513).ip_proto, rule(513).dport),
        (Some(6), Some((80, 90)))
    );
    assert_eq!(rule(513).uid, Some((0, 10)));
    assert_eq!(
        (rule(514).tos, rule(514).action),
        (0x10, RuleAction::Prohibit)
    );
    assert_eq!(rule(515).suppress_prefixlen, Some(0));
    assert_eq!(rule(516).action, RuleAction::Goto(32766));
    // A single port comes with a mask of all its bits from v6.15 on.
    assert_eq!(
        (rule(517).sport, rule(517).dport),
        (Some((5353, 5353)), Some((53, 53)))
    );
    assert_eq!(rule(600).action, RuleAction::Blackhole);
    assert_eq!(rule(0).action, RuleAction::Table(255));
    assert!(
        rules.iter().all(|rule| rule.unknown.is_empty()),
        "{rules:?}"
    );
}

#[test]
fn neighbours_are_as_ip_says() {
    let (node, _pod) = node();
    let read = node.read(Depth::NoRules);
    let neighs = read.neighs.known().expect("neighbours");
    let find = |dst: &str| {
        let dst = dst.parse::<std::net::IpAddr>().expect("an address");
        neighs.iter().find(|n| n.dst == dst).expect("the neighbour")
    };
    assert_eq!(find("10.244.2.0").state, NeighState::Permanent);
    assert_eq!(
        find("10.244.2.0").lladdr.map(|m| m.to_string()).as_deref(),
        Some("02:00:00:00:02:00")
    );
    assert_eq!(find("10.244.1.99").state, NeighState::Failed);
    assert!(find("10.244.1.200").proxy);
    // Group memberships are reported, and entries for that made, whenever the kernel sees fit.
    let single = |dst: &str| !dst.starts_with("224.") && !dst.starts_with("ff02::");
    let ours: BTreeSet<String> = (neighs.iter().filter(|n| !n.proxy))
        .filter(|n| single(&n.dst.to_string()))
        .map(|n| format!("{} {}", n.dst, name(&read, n.link)))
        .collect();
    let theirs: BTreeSet<String> = (node.json("ip -j neigh show nud all").iter())
        .filter(|n| single(&text(n, "dst")))
        .map(|n| format!("{} {}", text(n, "dst"), text(n, "dev")))
        .collect();
    assert_eq!(ours, theirs);
}

#[test]
fn forwarding_entries_are_as_bridge_says() {
    let (node, _pod) = node();
    let read = node.read(Depth::NoRules);
    let fdb = read.fdb.known().expect("forwarding entries");
    let ours: BTreeSet<String> = (fdb.iter())
        .map(|entry| {
            let or_empty = |value: Option<String>| value.unwrap_or_default();
            format!(
                "{} {} {} {} {} {} {} {} {}",
                entry.mac,
                name(&read, entry.link),
                or_empty(entry.master.map(|index| name(&read, index))),
                entry.own,
                entry.permanent,
                or_empty(entry.dst.map(|ip| ip.to_string())),
                or_empty(entry.port.map(|port| port.to_string())),
                or_empty(entry.vni.map(|vni| vni.to_string())),
                or_empty(entry.via.map(|index| name(&read, index))),
            )
        })
        .collect();
    let theirs: BTreeSet<String> = (node.json("bridge -j fdb show").iter())
        .map(|entry| {
            let flags = entry["flags"].as_array().cloned().unwrap_or_default();
            format!(
                "{} {} {} {} {} {} {} {} {}",
                text(entry, "mac"),
                text(entry, "ifname"),
                text(entry, "master"),
                flags.iter().any(|flag| flag == "self"),
                text(entry, "state") == "permanent",
                text(entry, "dst"),
                text(entry, "port"),
                text(entry, "vni"),
                text(entry, "viaIf"),
            )
        })
        .collect();
    assert_eq!(ours, theirs);
}

#[test]
fn tc_programs_are_seen_and_quiet_devices_are_not() {
    let (node, _pod) = node();
    node.run("tc qdisc add dev veth1 clsact");
    node.run("tc filter add dev veth1 ingress protocol ip u32 match u32 0 0 classid 1:1");
    // One classic instruction: return 0.
    let filter = [
        "tc", "-n", &node.0, "filter", "add", "dev", "veth1", "egress",
    ];
    run(&[&filter[..], &["bpf", "da", "bytecode", "1,6 0 0 0"]].concat());
    let read = node.read(Depth::NoRules);
    let tc = |name| read.link_named(name).expect("the device").tc.clone();
    assert_eq!(tc("veth1"), ["ingress u32", "egress bpf"]);
    assert!(tc("br0").is_empty());
}

/// A plain ingress qdisc gives its filters whatever parent is asked for: they are none of the egress.
#[test]
fn an_ingress_qdisc_has_no_egress_and_a_classful_root_has_filters() {
    let (node, _pod) = node();
    node.run("tc qdisc add dev veth1 ingress");
    node.run("tc filter add dev veth1 parent ffff: protocol ip u32 match u32 0 0 classid 1:1");
    node.run("tc qdisc add dev br0 root handle 1: htb");
    let read = node.read(Depth::NoRules);
    let link = |name| read.link_named(name).expect("the device").clone();
    assert_eq!(link("veth1").tc, ["ingress u32"]);
    assert!(link("br0").tc.is_empty() && link("br0").qdiscs.is_empty());
    node.run("tc filter add dev br0 parent 1: protocol ip u32 match u32 0 0 classid 1:1");
    node.run("tc class add dev br0 parent 1: classid 1:1 htb rate 1mbit");
    node.run("tc qdisc add dev br0 parent 1:1 handle 2: tbf rate 1mbit burst 2000 latency 10ms");
    let read = node.read(Depth::NoRules);
    let br0 = read.link_named("br0").expect("the device");
    assert_eq!(br0.tc, ["egress root u32"]);
    let inner = Qdisc {
        handle: 0x2_0000,
        root: false,
        kind: QdiscKind::Tbf(2000),
    };
    assert_eq!(br0.qdiscs, [inner]);
}

#[test]
fn tcx_programs_are_counted() {
    let (node, _pod) = node();
    let read = node.read(Depth::NoRules);
    let index = read.link_named("veth1").expect("the device").index;
    assert!(read.link_named("veth1").expect("the device").tc.is_empty());
    node.tcx(index.get());
    let read = node.read(Depth::NoRules);
    let tc = |name| read.link_named(name).expect("the device").tc.clone();
    assert_eq!(tc("veth1"), ["ingress tcx bpf (1 programs)"]);
    assert!(tc("br0").is_empty());
}

#[test]
fn sockets_are_as_they_were_opened() {
    let (_node, pod) = node();
    let inside = Namespaces::net_at(&Path::new("/run/netns").join(&pod.0)).expect("the namespace");
    let server = inside
        .run(|| Ok(std::net::TcpListener::bind("[::]:8080")?))
        .expect("a server");
    let read = pod.read(Depth::NoRules);
    let mut sockets = read.sockets.known().expect("sockets").iter();
    let socket = sockets
        .find(|socket| socket.port == 8080)
        .expect("the listening socket");
    drop(server);
    assert_eq!(
        (socket.protocol, socket.listening, socket.v6only),
        (6, true, Some(false))
    );
    assert!(socket.addr.is_unspecified() && socket.addr.is_ipv6() && socket.inode != 0);
    assert_eq!(socket.transparent, Some(false));
    // A transparent proxy's.
    let proxy = inside
        .run(|| {
            let server = std::net::TcpListener::bind("127.0.0.1:15006")?;
            setsockopt(&server, sockopt::IpTransparent, &true)?;
            Ok(server)
        })
        .expect("a transparent server");
    let read = pod.read(Depth::NoRules);
    let mut sockets = read.sockets.known().expect("sockets").iter();
    let socket = sockets.find(|socket| socket.port == 15006);
    drop(proxy);
    assert_eq!(socket.and_then(|socket| socket.transparent), Some(true));
}
