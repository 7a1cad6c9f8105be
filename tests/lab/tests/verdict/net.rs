//! The namespaces that packets are sent through: the corpus's address plan (corpus/README.md).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use anyhow::{Context, Result, ensure};
use netpath_lab::Place;
use netpath_lab::command::{bridge_batch, ip_batch};
use netpath_lab::network::sysctl;
use netpath_lab::random::places::Places;
use netpath_lab::random::wire::{Servers, Wire};
use netpath_lab::random::world::Listener;
use nix::sys::socket::{setsockopt, sockopt};

/// Namespaces, by the names that tables and messages use.
pub const PLACES: [&str; 7] = ["node", "out", "a", "b", "c", "d", "k"];

/// Ports of servers; those of proxies are in pod a only.
const PORTS: [u16; 5] = [53, 80, 8080, 9000, 9002];
const PROXIES: [u16; 7] = [15001, 15006, 15008, 15053, 15021, 4140, 4143];

/// A namespace's own addresses, those that are most interesting first.
pub fn addrs(place: &str) -> Vec<IpAddr> {
    let text: &[&str] = match place {
        "node" => &[
            "10.88.0.11",
            "fd00:88::11",
            "10.244.1.1",
            "fd00:10:244:1::1",
            "172.17.0.1",
            "fd00:172:17::1",
            "169.254.20.10",
            "fd00:169:254::10",
        ],
        "out" => &[
            "10.88.0.1",
            "fd00:88::1",
            "10.88.0.12",
            "fd00:88::12",
            "198.51.100.1",
            "2001:db8:51::1",
            "203.0.113.7",
            "2001:db8:113::7",
            "203.0.113.8",
            "2001:db8:113::8",
            "10.244.2.2",
            "fd00:10:244:2::2",
        ],
        "a" => &["10.244.1.2", "fd00:10:244:1::2"],
        "b" => &["10.244.1.3", "fd00:10:244:1::3"],
        "c" => &["10.244.1.130", "fd00:10:244:1::130"],
        "d" => &["10.244.1.131", "fd00:10:244:1::131"],
        _ => &["172.17.0.2", "fd00:172:17::2"],
    };
    text.iter()
        .map(|addr| addr.parse().expect("an address"))
        .collect()
}

/// Device on the node that leads to a namespace, its link-layer address, and that of the other end.
fn port(place: &str) -> (&'static str, &'static str, &'static str) {
    match place {
        "out" => ("eth0", "02:00:00:00:01:0e", "02:00:00:00:00:0e"),
        "a" => ("veth0000000a", "02:00:00:00:01:0a", "02:00:00:00:00:0a"),
        "b" => ("veth0000000b", "02:00:00:00:01:0b", "02:00:00:00:00:0b"),
        "c" => ("caliaaaaaaaaaac", "ee:ee:ee:ee:ee:ee", "02:00:00:00:00:0c"),
        "d" => ("caliaaaaaaaaaad", "ee:ee:ee:ee:ee:ee", "02:00:00:00:00:0d"),
        _ => ("vethdocker0", "02:00:00:00:01:0f", "02:00:00:00:00:0f"),
    }
}

/// Link-local address that the kernel makes of ee:ee:ee:ee:ee:ee.
const CALI: &str = "fe80::ecee:eeff:feee:eeee";
/// Addresses of Calico's floating kind.
const FLOATING: [&str; 2] = ["10.88.0.201", "fd00:88::201"];
/// Where NETMAP of the load balancers' addresses leads; nobody has these.
fn netmap_addrs() -> Vec<IpAddr> {
    let hosts = [20, 30, 50, 60, 70];
    let text = hosts.map(|host| [format!("10.244.1.{host}"), format!("fd00:10:244:1::{host}")]);
    let addrs = text.iter().flatten().map(|addr| addr.parse());
    addrs.collect::<Result<_, _>>().expect("addresses")
}

const CNI0: &str = "02:00:00:00:02:01";
const DOCKER0: &str = "02:00:00:00:02:02";

/// The namespaces.
pub struct Net {
    pub places: Places,
}

impl Net {
    /// Makes them, without rules. Neighbours and bridge ports are fixed, so that nothing is asked or learned.
    pub fn up() -> Result<Self> {
        let net = Self {
            places: Places::make("npv", PLACES)?,
        };
        for place in net.places.all() {
            place.enter(|| plain_sysctls(&place.name))?;
        }
        let mut lines = Vec::new();
        for place in &PLACES[1..] {
            let (dev, own, other) = port(place);
            lines.push(format!(
                "link add {dev} address {own} type veth peer name eth0 address {other} netns {}",
                net.places.netns(place)
            ));
        }
        lines.extend(node_lines());
        net.place("node").enter(|| {
            ip_batch(&lines)?;
            let fdb: Vec<String> = ["a", "b", "k"]
                .iter()
                .map(|place| {
                    let (dev, _, other) = port(place);
                    format!("fdb replace {other} dev {dev} master static")
                })
                .collect();
            bridge_batch(&fdb)
        })?;
        for place in &net.places.all()[1..] {
            place.enter(|| {
                ip_batch(&other_lines(&place.name))?;
                netpath_lab::network::wait_until_usable()
            })?;
        }
        net.place("node").enter(|| {
            netpath_lab::network::wait_until_usable()?;
            warm()
        })?;
        Ok(net)
    }

    /// Makes the addresses of Services the node's own, as kube-proxy does in IPVS mode.
    pub fn own_services(&self) -> Result<()> {
        let mut lines = Vec::new();
        for host in [1, 10, 20, 30, 40] {
            lines.push(format!("address add 10.96.0.{host}/32 dev lo"));
            lines.push(format!("address add fd00:10:96::{host}/128 dev lo nodad"));
        }
        for host in [20, 30, 60] {
            lines.push(format!("address add 192.0.2.{host}/32 dev lo"));
            lines.push(format!("address add 2001:db8:192::{host}/128 dev lo nodad"));
        }
        self.place("node").enter(|| ip_batch(&lines))
    }

    /// A namespace.
    pub fn place(&self, name: &str) -> &Place {
        self.places.place(name).expect("a place of the plan")
    }

    /// Servers everywhere, and a capture.
    pub fn wire(&self) -> Result<Wire<'_>> {
        let mut servers = Servers::default();
        for place in self.places.all() {
            let mut ports = PORTS.to_vec();
            if place.name == "a" {
                ports.extend(PROXIES);
            }
            serve(place, &ports, &mut servers)?;
        }
        // Ports of bridges pass on what is for others.
        let passing = ["a", "b", "k"].map(|place| ("node".to_owned(), port(place).0.to_owned()));
        Wire::up(&self.places, servers, BTreeSet::from(passing))
    }
}

/// TCP listeners on all addresses, and a datagram socket for each, so that answers come from where was asked.
fn serve(place: &Place, ports: &[u16], servers: &mut Servers) -> Result<()> {
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    for port in ports {
        let all = Ipv6Addr::UNSPECIFIED.into();
        let tcp = [(false, all)].into_iter();
        let own = addrs(&place.name).into_iter().chain(loopback);
        for (udp, addr) in tcp.chain(own.map(|addr| (true, addr))) {
            let port = *port;
            let is_there = servers.open(
                place,
                &Listener {
                    udp,
                    addr,
                    port,
                    dev: None,
                },
            )?;
            ensure!(is_there, "{} has no address {addr}", place.name);
        }
        if PROXIES.contains(port)
            && let Some(listener) = servers.tcp.last()
        {
            setsockopt(listener, sockopt::IpTransparent, &true)
                .context("make a socket transparent")?;
        }
    }
    Ok(())
}

/// Sends something to each neighbour: only then is its header kept (`hh_cache`), without which a bridged packet
/// with a translated destination takes another way (`br_nf_pre_routing_finish_bridge()`).
fn warm() -> Result<()> {
    let known = PLACES[1..].iter().flat_map(|place| addrs(place));
    for addr in known.chain(netmap_addrs()) {
        let any = if addr.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(any).context("open a datagram socket")?;
        socket
            .send_to(b"x", (addr, 9))
            .with_context(|| format!("send to {addr}"))?;
    }
    Ok(())
}

fn plain_sysctls(place: &str) -> Result<()> {
    for scope in ["all", "default"] {
        sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
        sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        sysctl(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "0")?;
    }
    // Each refusal is to be heard.
    sysctl("net/ipv4/icmp_ratelimit", "0")?;
    sysctl("net/ipv6/icmp/ratelimit", "0")?;
    if place == "node" {
        sysctl("net/ipv4/ip_forward", "1")?;
        sysctl("net/ipv6/conf/all/forwarding", "1")?;
        sysctl("net/ipv4/conf/all/route_localnet", "1")?;
        sysctl("net/bridge/bridge-nf-call-iptables", "1")?;
        sysctl("net/bridge/bridge-nf-call-ip6tables", "1")
            .context("the kernel needs br_netfilter (modprobe br_netfilter)")?;
    }
    Ok(())
}

fn node_lines() -> Vec<String> {
    let mut lines = vec![
        format!("link add cni0 address {CNI0} type bridge"),
        format!("link add docker0 address {DOCKER0} type bridge"),
        "link set lo up".to_owned(),
    ];
    for (place, bridge) in [("a", "cni0"), ("b", "cni0"), ("k", "docker0")] {
        let dev = port(place).0;
        lines.push(format!("link set {dev} master {bridge}"));
        lines.push(format!("link set {dev} type bridge_slave hairpin on"));
    }
    for dev in [
        "cni0",
        "docker0",
        port("out").0,
        port("a").0,
        port("b").0,
        port("c").0,
        port("d").0,
        port("k").0,
    ] {
        lines.push(format!("link set {dev} up"));
    }
    for (addr, dev) in [
        ("10.88.0.11/24", "eth0"),
        ("fd00:88::11/64", "eth0"),
        ("10.244.1.1/25", "cni0"),
        ("fd00:10:244:1::1/120", "cni0"),
        ("172.17.0.1/16", "docker0"),
        ("fd00:172:17::1/64", "docker0"),
        ("169.254.20.10/32", "lo"),
        ("fd00:169:254::10/128", "lo"),
    ] {
        let nodad = if addr.contains("::") { " nodad" } else { "" };
        lines.push(format!("address add {addr} dev {dev}{nodad}"));
    }
    for route in [
        "default via 10.88.0.1",
        "default via fd00:88::1",
        "10.244.2.0/24 via 10.88.0.12",
        "fd00:10:244:2::/64 via fd00:88::12",
        "10.244.1.130/32 dev caliaaaaaaaaaac",
        "fd00:10:244:1::130/128 dev caliaaaaaaaaaac",
        "10.244.1.131/32 dev caliaaaaaaaaaad",
        "fd00:10:244:1::131/128 dev caliaaaaaaaaaad",
    ] {
        lines.push(format!("route add {route}"));
    }
    for place in &PLACES[1..] {
        let (dev, _, other) = port(place);
        let dev = match *place {
            "a" | "b" => "cni0",
            "k" => "docker0",
            _ => dev,
        };
        let onlink = addrs(place);
        let near = if *place == "out" {
            &onlink[..4]
        } else {
            &onlink[..]
        };
        for addr in near {
            lines.push(format!(
                "neigh replace {addr} lladdr {other} dev {dev} nud permanent"
            ));
        }
    }
    // Where NETMAP of the load balancers' addresses leads: pod b, which passes nothing on. The floating address
    // is the node's own only where Calico's rules translate it.
    for addr in netmap_addrs() {
        let mac = port("b").2;
        lines.push(format!(
            "neigh replace {addr} lladdr {mac} dev cni0 nud permanent"
        ));
    }
    for addr in FLOATING {
        let mac = port("out").2;
        lines.push(format!(
            "neigh replace {addr} lladdr {mac} dev eth0 nud permanent"
        ));
    }
    lines
}

fn other_lines(place: &str) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    let own = addrs(place);
    for (number, addr) in own.iter().enumerate() {
        let v4 = addr.is_ipv4();
        let nodad = if v4 { "" } else { " nodad" };
        let (len, dev) = match (place, number, v4) {
            ("out", 0..4, true) => (24, "eth0"),
            ("out", 0..4, false) | ("k", _, false) => (64, "eth0"),
            ("out", _, true) => (32, "lo"),
            ("out", _, false) => (128, "lo"),
            ("a" | "b", _, true) => (25, "eth0"),
            ("a" | "b", _, false) => (120, "eth0"),
            ("k", _, true) => (16, "eth0"),
            (_, _, true) => (32, "eth0"),
            _ => (128, "eth0"),
        };
        lines.push(format!("address add {addr}/{len} dev {dev}{nodad}"));
    }
    let (_, mac, _) = port(place);
    let mut neighbours = Vec::new();
    match place {
        "out" => {
            for net in [
                "10.96.0.0/16",
                "10.244.0.0/16",
                "192.0.2.0/24",
                "172.17.0.0/16",
            ] {
                lines.push(format!("route add {net} via 10.88.0.11"));
            }
            for net in [
                "fd00:10:96::/112",
                "fd00:10:244::/48",
                "2001:db8:192::/64",
                "fd00:172:17::/64",
            ] {
                lines.push(format!("route add {net} via fd00:88::11"));
            }
            lines.push("route add 169.254.20.0/24 via 10.88.0.11".to_owned());
            lines.push("route add fd00:169:254::/64 via fd00:88::11".to_owned());
            neighbours.extend([("10.88.0.11", mac), ("fd00:88::11", mac)]);
            neighbours.extend(FLOATING.map(|addr| (addr, mac)));
        }
        "a" | "b" => {
            lines.push("route add default via 10.244.1.1".to_owned());
            lines.push("route add default via fd00:10:244:1::1".to_owned());
            let other = if place == "a" { "b" } else { "a" };
            let peer = port(other).2;
            let (v4, v6) = if place == "a" {
                ("10.244.1.3", "fd00:10:244:1::3")
            } else {
                ("10.244.1.2", "fd00:10:244:1::2")
            };
            neighbours.extend([
                ("10.244.1.1", CNI0),
                ("fd00:10:244:1::1", CNI0),
                (v4, peer),
                (v6, peer),
            ]);
        }
        "k" => {
            lines.push("route add default via 172.17.0.1".to_owned());
            lines.push("route add default via fd00:172:17::1".to_owned());
            neighbours.extend([("172.17.0.1", DOCKER0), ("fd00:172:17::1", DOCKER0)]);
        }
        _ => {
            lines.push("route add 169.254.1.1 dev eth0 scope link".to_owned());
            lines.push("route add default via 169.254.1.1 dev eth0".to_owned());
            lines.push(format!("route add default via {CALI} dev eth0"));
            neighbours.extend([("169.254.1.1", mac), (CALI, mac)]);
        }
    }
    for (addr, mac) in neighbours {
        lines.push(format!(
            "neigh replace {addr} lladdr {mac} dev eth0 nud permanent"
        ));
    }
    lines
}
