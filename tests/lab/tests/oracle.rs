//! Predictions beside real packets: for each kind of laboratory and each kind of flow, the predicted
//! interfaces, headers and verdict equal what packet sockets saw, both ways. Needs root.
#![allow(missing_docs, reason = "tests")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use netpath::model::packet::{ICMP, TCP, UDP as UDP_PROTOCOL};
use netpath::trace::{Disposition, Trace};
use netpath_lab::oracle::{Oracle, Turn, difference, observed, place_name, predicted};
use netpath_lab::random::dice::Dice;
use netpath_lab::{Capture, Cluster, Outcome, Overlay, Place, Proxy, Spec};

const LONG: Duration = Duration::from_secs(5);

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "o{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Name, source, destination.
type Case = (&'static str, &'static str, &'static str);

/// Ports that servers of the laboratory have; no client has one of them.
const SERVER_PORTS: &[u16] = &[53, 8053, 80, 8080, 9100];

const UDP: &[Case] = &[
    (
        "udp, pod to pod, same node",
        "shop/web-0",
        "10.244.1.9:8053",
    ),
    (
        "udp, pod to pod, other node",
        "shop/web-0",
        "10.244.2.4:8053",
    ),
    (
        "udp, pod to pod, other node, v6",
        "shop/web-0",
        "[fd00:10:244:2::4]:8053",
    ),
    ("udp, pod to ClusterIP", "shop/web-0", "10.96.14.3:53"),
    (
        "udp, pod to ClusterIP, v6",
        "shop/web-0",
        "[fd00:10:96::e03]:53",
    ),
    ("udp, node to ClusterIP", "node-1", "10.96.14.3:53"),
    ("udp, pod to outside", "shop/web-0", "10.88.0.1:53"),
    ("udp, pod to a closed port", "shop/web-0", "10.244.2.4:54"),
];

/// The port is none: echoes have none.
const ECHO: &[Case] = &[
    ("echo, pod to pod, same node", "shop/web-0", "10.244.1.9:0"),
    ("echo, pod to pod, other node", "shop/web-0", "10.244.2.4:0"),
    (
        "echo, pod to pod, other node, v6",
        "shop/web-0",
        "[fd00:10:244:2::4]:0",
    ),
    ("echo, pod to the other node", "shop/web-0", "10.88.0.12:0"),
    ("echo, node to its pod", "node-1", "10.244.1.9:0"),
    (
        "echo, node to the other node's pod",
        "node-1",
        "10.244.2.4:0",
    ),
    ("echo, pod to outside", "shop/web-0", "198.51.100.1:0"),
    (
        "echo, pod to outside, v6",
        "shop/web-0",
        "[2001:db8:51::1]:0",
    ),
    ("echo, pod to its own address", "shop/web-0", "10.244.1.7:0"),
];

const CASES: &[Case] = &[
    ("pod to pod, same node", "shop/web-0", "10.244.1.9:8080"),
    (
        "pod to pod, same node, v6",
        "shop/web-0",
        "[fd00:10:244:1::9]:8080",
    ),
    ("pod to pod, other node", "shop/web-0", "10.244.2.4:8080"),
    (
        "pod to pod, other node, v6",
        "shop/web-0",
        "[fd00:10:244:2::4]:8080",
    ),
    ("pod to ClusterIP", "shop/web-0", "10.96.14.3:80"),
    ("pod to ClusterIP, v6", "shop/web-0", "[fd00:10:96::e03]:80"),
    (
        "pod to NodePort of its node",
        "shop/web-0",
        "10.88.0.11:30080",
    ),
    (
        "pod to NodePort of its node, v6",
        "shop/web-0",
        "[fd00:88::11]:30080",
    ),
    (
        "pod to NodePort of the other node",
        "shop/web-0",
        "10.88.0.12:30080",
    ),
    (
        "pod to NodePort of the other node, v6",
        "shop/web-0",
        "[fd00:88::12]:30080",
    ),
    (
        "pod to itself through its Service",
        "shop/web-0",
        "10.96.14.4:80",
    ),
    (
        "pod to itself through its Service, v6",
        "shop/web-0",
        "[fd00:10:96::e04]:80",
    ),
    ("node to its pod", "node-1", "10.244.1.9:8080"),
    ("node to its pod, v6", "node-1", "[fd00:10:244:1::9]:8080"),
    ("node to the other node's pod", "node-1", "10.244.2.4:8080"),
    (
        "node to the other node's pod, v6",
        "node-1",
        "[fd00:10:244:2::4]:8080",
    ),
    ("node to ClusterIP", "node-1", "10.96.14.3:80"),
    ("node to ClusterIP, v6", "node-1", "[fd00:10:96::e03]:80"),
    ("node to NodePort of itself", "node-1", "10.88.0.11:30080"),
    ("pod to outside", "shop/web-0", "198.51.100.1:80"),
    ("pod to outside, v6", "shop/web-0", "[2001:db8:51::1]:80"),
    ("pod to host-network pod", "shop/web-0", "10.88.0.12:9100"),
    (
        "pod to a Service without endpoints",
        "shop/web-0",
        "10.96.14.5:80",
    ),
    ("pod to a closed port", "shop/web-0", "10.244.2.4:81"),
    ("pod to its own address", "shop/web-0", "10.244.1.7:8080"),
    ("pod to localhost", "shop/web-0", "127.0.0.1:8080"),
];

fn exchange(place: &Place, protocol: u8, to: SocketAddr) -> anyhow::Result<Outcome> {
    match protocol {
        UDP_PROTOCOL => place.udp_exchange(to, LONG),
        ICMP => place.echo(to.ip(), LONG),
        _ => place.tcp_exchange(to, LONG),
    }
}

fn agrees(
    cluster: &Cluster,
    oracle: &mut Oracle,
    protocol: u8,
    (name, from, to): (&str, &str, &str),
) -> Result<(), String> {
    let to: SocketAddr = to.parse().expect("an address");
    let place = cluster.place(from).expect("a place");
    let text = |error: anyhow::Error| format!("{name}: {error:#}");
    let prediction = oracle.predict(cluster, from, protocol, to).map_err(text)?;
    let total: f64 = prediction
        .outcome
        .traces
        .iter()
        .map(|trace| trace.probability)
        .sum();
    if (total - 1.0).abs() > 1e-6 {
        return Err(format!("{name}: probabilities add up to {total}"));
    }
    let capture = Capture::of_cluster(cluster).map_err(text)?;
    let outcome = exchange(&place, protocol, to).map_err(text)?;
    let seen = capture.stop().map_err(text)?;
    let ports = [SERVER_PORTS, &[to.port()]].concat();
    let turns = [Turn::Question, Turn::Answer, Turn::Client, Turn::Server];
    let observed = turns.map(|turn| observed(&seen, &ports, turn));
    // Datagrams and echoes are seen of the first turns only: the others would look the same.
    let turns = if protocol == TCP { 4 } else { 2 };
    let topology = &prediction.topology;
    // The kernel chose one of the ways; the one whose points fit must be among those predicted.
    let mut differences = Vec::new();
    for trace in &prediction.outcome.traces {
        let ends_there = match &outcome {
            Outcome::Connected { reply } => {
                let last = trace.hops.last().map(|hop| &hop.ns);
                let place = last
                    .and_then(|ns| place_name(cluster, topology, ns))
                    .unwrap_or_default();
                let pod = reply.split(' ').next().unwrap_or_default();
                let named = place.ends_with(&format!("/{pod}")) || !place.contains('/');
                trace.works() && (named || protocol == ICMP)
            }
            Outcome::Refused | Outcome::Unreachable(_) => {
                matches!(trace.outcome(), Disposition::Rejected(_))
            }
            Outcome::TimedOut => {
                matches!(trace.outcome(), Disposition::Dropped(_) | Disposition::Loop)
            }
        };
        if !ends_there {
            differences.push(format!("verdict {:?} does not fit", trace.outcome()));
            continue;
        }
        let packets = std::iter::successors(Some(trace), |way: &&Trace| way.reply.as_deref());
        let wrong: Vec<String> = packets
            .take(turns)
            .zip(&observed)
            .filter_map(|(packet, seen)| difference(&predicted(cluster, topology, packet), seen))
            .collect();
        if wrong.is_empty() {
            return Ok(());
        }
        differences.extend(wrong);
    }
    Err(format!(
        "{name}: the exchange ended as {outcome:?}\n{}",
        differences.join("\n")
    ))
}

/// Which way a bridged packet takes inside its node depends on whether its neighbour was confirmed a
/// moment ago; pinned ones do not change between prediction and packet.
fn pin_neighbours(cluster: &Cluster) {
    for pod in cluster.state.pods.iter().filter(|pod| !pod.host_network) {
        let place = cluster
            .pod(&format!("{}/{}", pod.namespace, pod.name))
            .expect("a pod");
        let links = place
            .run(["ip", "-j", "link", "show", "eth0"])
            .expect("the pod's device");
        let links: serde_json::Value = serde_json::from_str(&links).expect("JSON");
        let mac = links[0]["address"].as_str().expect("an address").to_owned();
        let node = cluster.node(&pod.node).expect("a node");
        for ip in &pod.ips {
            let ip = ip.to_string();
            node.run([
                "ip",
                "neigh",
                "replace",
                &ip,
                "lladdr",
                &mac,
                "dev",
                "cni0",
                "nud",
                "permanent",
            ])
            .expect("a neighbour");
        }
    }
}

fn matrix(overlay: Overlay, proxy: Proxy) {
    let cluster = Cluster::up(Spec::new(overlay, proxy).named(&unique())).expect("a laboratory");
    let mut oracle = Oracle::start(&cluster).expect("helpers");
    pin_neighbours(&cluster);
    // Neighbours and forwarding entries settle in a first exchange, so that ARP is not in the way.
    let cases = || {
        let of = |protocol| move |case: &'static Case| (protocol, case);
        CASES
            .iter()
            .map(of(TCP))
            .chain(UDP.iter().map(of(UDP_PROTOCOL)))
            .chain(ECHO.iter().map(of(ICMP)))
    };
    for (protocol, (_, from, to)) in cases() {
        for _ in 0..4 {
            let place = cluster.place(from).expect("a place");
            exchange(&place, protocol, to.parse().expect("an address")).expect("an exchange");
        }
    }
    let wrong: Vec<String> = cases()
        .filter_map(|(protocol, case)| agrees(&cluster, &mut oracle, protocol, *case).err())
        .collect();
    drop(oracle);
    cluster.down().expect("down");
    assert!(
        wrong.is_empty(),
        "{} of {} disagree:\n{}",
        wrong.len(),
        cases().count(),
        wrong.join("\n")
    );
}

macro_rules! matrix {
    ($($name:ident: $overlay:ident, $proxy:ident;)*) => {$(
        #[test]
        fn $name() {
            matrix(Overlay::$overlay, Proxy::$proxy);
        }
    )*};
}

matrix! {
    vxlan_iptables_nft: Vxlan, IptablesNft;
    vxlan_iptables_legacy: Vxlan, IptablesLegacy;
    vxlan_nftables: Vxlan, Nftables;
    routed_iptables_nft: Routed, IptablesNft;
    routed_iptables_legacy: Routed, IptablesLegacy;
    routed_nftables: Routed, Nftables;
}

/// In a virtual machine, by tests/vm/check: many kernels have no IPVS.
#[test]
#[ignore = "needs a kernel with IPVS"]
fn vxlan_ipvs() {
    matrix(Overlay::Vxlan, Proxy::Ipvs);
}

/// A virtual service of node-1.
struct Virtual {
    /// As `ipvsadm-restore` takes it.
    text: String,
    /// Whom to ask.
    to: SocketAddr,
    protocol: u8,
    /// Mark by which packets to it are known.
    mark: Option<usize>,
}

/// One of those that are there, by number.
fn random_service(dice: &mut Dice, number: usize) -> Virtual {
    let v6 = dice.below(3) == 0;
    let addr = if v6 {
        format!("fd00:10:96::63:{number:x}")
    } else {
        format!("10.96.99.{number}")
    };
    let udp = dice.below(4) == 0;
    let mark = (dice.below(4) == 0).then_some(100 + number);
    let any_port = mark.is_none() && dice.below(5) == 0;
    let (served, asked) = if udp { (8053, 53) } else { (8080, 80) };
    // A service of all ports keeps the one that was asked.
    let asked = if any_port { served } else { asked };
    let to = SocketAddr::new(addr.parse().expect("an address"), asked);
    let own = SocketAddr::new(to.ip(), if any_port { 0 } else { asked });
    let key = match mark {
        Some(mark) if v6 => format!("-f {mark} -6"),
        Some(mark) => format!("-f {mark}"),
        None if udp => format!("-u {own}"),
        None => format!("-t {own}"),
    };
    let scheduler = dice.one(&[
        "rr", "rr", "wrr", "lc", "wlc", "sed", "nq", "sh", "sh", "dh", "mh", "fo",
    ]);
    let mut head = format!("-A {key} -s {scheduler}");
    let mut add = |words: &str| head.push_str(words);
    if any_port || dice.below(3) == 0 {
        add(" -p 300");
        add(match (dice.below(2), v6) {
            (0, false) => " -M 255.255.255.0",
            (0, true) => " -M 64",
            _ => "",
        });
    }
    if udp && dice.below(3) == 0 {
        add(" -o");
    }
    if scheduler == "sh" {
        add(dice.one(&[
            "",
            " -b sh-port",
            " -b sh-fallback",
            " -b sh-fallback,sh-port",
        ]));
    }
    // Pods of both nodes, a port where nothing listens, and what runs on the nodes themselves.
    let pods = if v6 {
        [
            "[fd00:10:244:1::9]",
            "[fd00:10:244:2::4]",
            "[fd00:10:244:2::8]",
            "[fd00:10:244:1::11]",
        ]
    } else {
        ["10.244.1.9", "10.244.2.4", "10.244.2.8", "10.244.1.11"]
    };
    let port = if any_port { 0 } else { served };
    let mut servers: Vec<String> = pods.iter().map(|addr| format!("{addr}:{port}")).collect();
    if !udp && !v6 && !any_port {
        let more = ["10.244.2.4:9100", "10.88.0.11:9100", "10.88.0.12:9100"];
        servers.extend(more.map(str::to_owned));
    }
    let mut lines = vec![head];
    for _ in 0..dice.below(4) {
        let server = servers.remove(dice.below(servers.len()));
        // What is sent as it is keeps its port, too. On another node it would be sent back into the underlay, of
        // which the laboratory's own ways are no matter here.
        let near = server.contains("244.1.") || server.contains("244:1::");
        let method = if near && dice.below(3) == 0 {
            "-g"
        } else {
            "-m"
        };
        let server = match server.rsplit_once(':') {
            Some((addr, _)) if method == "-g" => format!("{addr}:{}", own.port()),
            _ => server,
        };
        let bounds = dice.one(&["", "", "", "", " -x 100 -y 10"]);
        let weight = dice.one(&[0, 1, 1, 2, 3]);
        lines.push(format!("-a {key} -r {server} {method} -w {weight}{bounds}"));
    }
    lines.push(String::new());
    Virtual {
        text: lines.join("\n"),
        to,
        protocol: if udp { UDP_PROTOCOL } else { TCP },
        mark,
    }
}

/// Virtual services made at random: each is asked from a pod and from its node, several times, so that templates and
/// connections of earlier ones are there. Seeds: NETPATH_SEED, else a fixed one.
#[test]
#[ignore = "needs a kernel with IPVS"]
fn ipvs_services_at_random() {
    let seed = std::env::var("NETPATH_SEED").map_or(7, |seed| seed.parse().expect("a number"));
    let number =
        std::env::var("NETPATH_CASES").map_or(8, |number| number.parse().expect("a number"));
    let mut dice = Dice::new(seed);
    let spec = Spec::new(Overlay::Routed, Proxy::Ipvs).named(&unique());
    let cluster = Cluster::up(spec).expect("a laboratory");
    let mut oracle = Oracle::start(&cluster).expect("helpers");
    pin_neighbours(&cluster);
    let node = cluster.node("node-1").expect("a node");
    let mut wrong = Vec::new();
    for number in 1..=number {
        let Virtual {
            text,
            to,
            protocol,
            mark,
        } = random_service(&mut dice, number);
        let addr = to.ip().to_string();
        node.run(["ip", "address", "add", &addr, "dev", "kube-ipvs0"])
            .expect("an address");
        node.enter(|| netpath_lab::command::feed(&["ipvsadm", "-R"], &text))
            .expect("a service");
        // As kube-proxy has it: what a node sends to a virtual address gets the node's own for a source.
        let set = if to.is_ipv6() {
            "KUBE-6-CLUSTER-IP"
        } else {
            "KUBE-CLUSTER-IP"
        };
        let word = if protocol == TCP { "tcp" } else { "udp" };
        let member = format!("{addr},{word}:{}", to.port());
        node.run(["ipset", "add", set, &member]).expect("a member");
        if let Some(mark) = mark {
            let program = if to.is_ipv6() {
                "ip6tables-nft"
            } else {
                "iptables-nft"
            };
            for chain in ["PREROUTING", "OUTPUT"] {
                let rule =
                    format!("{program} -t mangle -A {chain} -d {addr} -j MARK --set-mark {mark}");
                node.run(rule.split(' ').collect::<Vec<_>>())
                    .expect("a rule");
            }
        }
        let to = to.to_string();
        for (from, times) in [("shop/web-0", 3), ("node-1", 1)] {
            for time in 0..times {
                let name = format!("seed {seed}, {text}time {time}, from {from}");
                let case = (name.as_str(), from, to.as_str());
                wrong.extend(agrees(&cluster, &mut oracle, protocol, case).err());
            }
        }
    }
    let marks = "-A -f 77 -s wlc -p 60 -M 255.255.255.0\n-a -f 77 -r 10.244.1.9:0 -i -w 3\n-A -f 78 -6 -s mh -b mh-port\n";
    node.enter(|| netpath_lab::command::feed(&["ipvsadm", "-R"], marks))
        .expect("services of marks");
    let saved = node.run(["ipvsadm", "-S", "-n"]).expect("ipvsadm");
    let own = std::env::current_exe().expect("this program has a path");
    let plugin = own
        .ancestors()
        .nth(2)
        .expect("a directory")
        .join("kubectl-netpath");
    let plugin = plugin.to_str().expect("a path");
    let dumped = node
        .run([plugin, "dump", "ipvs", "host", "--local"])
        .expect("dump ipvs");
    drop(oracle);
    cluster.down().expect("down");
    assert!(
        wrong.is_empty(),
        "{} disagree:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    let lines = |text: &str| {
        let mut lines: Vec<String> = text
            .lines()
            .map(|line| line.trim_end().to_owned())
            .collect();
        lines.sort();
        lines
    };
    // ipvsadm leaves bounds out.
    let dumped = dumped.replace(" -x 100 -y 10", "");
    assert_eq!(lines(&dumped), lines(&saved));
}
