//! Which device of a host belongs to which pod: rows, their table, and the same as data.

#![expect(
    clippy::format_push_string,
    reason = "writing to a String cannot fail, and its result would have to be ignored"
)]

use netpath::explain::{ChainNames, Naming, words};
use netpath::model::link::Link;
use netpath::model::names::Names;
use netpath::model::netns::NetNs;
use netpath::model::topology::Topology;
use netpath::model::{IfIndex, NsKey};
use netpath::simulate::peer::{Peer, peer};
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

use super::paint::escaped;

/// The answer, schema `netpath.map/v1`.
#[derive(Debug, Serialize)]
pub struct Map {
    /// `netpath.map/v1`.
    pub schema: &'static str,
    /// Nodes.
    pub nodes: Vec<NodeRow>,
    /// Devices of namespaces other than the nodes' own.
    pub links: Vec<Row>,
}

/// A node.
#[derive(Debug, Serialize)]
pub struct NodeRow {
    /// Name.
    pub node: String,
    /// Addresses, as the API gives them; those of its devices without Kubernetes.
    pub addresses: Vec<String>,
    /// Pod CIDRs.
    pub pod_cidrs: Vec<String>,
    /// Kernel release.
    pub kernel: String,
    /// Inode of its own network namespace.
    pub netns_inode: Option<u64>,
}

/// One device of a pod (or another namespace), with the other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// `shop/web-0`, or what else names the namespace.
    pub pod: String,
    /// Node.
    pub node: String,
    /// Addresses on the device.
    pub ips: Vec<String>,
    /// Device in the pod.
    pub device: String,
    /// Its index.
    pub ifindex: u32,
    /// Its kind.
    pub kind: String,
    /// Its link-layer address.
    pub mac: Option<String>,
    /// Its MTU.
    pub mtu: u32,
    /// Administratively up, and with carrier.
    pub state: String,
    /// Index of the other end as the kernel gives it (the `12` of `eth0@if12`).
    pub peer_ifindex: Option<u32>,
    /// Where the other end is: `host`, another namespace, or why that is not known.
    pub peer_netns: String,
    /// Device at the other end.
    pub host_device: Option<String>,
    /// Its link-layer address.
    pub host_mac: Option<String>,
    /// Its MTU.
    pub host_mtu: Option<u32>,
    /// Its state.
    pub host_state: Option<String>,
    /// Bridge that it is a port of.
    pub bridge: Option<String>,
    /// Number and state of the port.
    pub port: Option<String>,
    /// Inode of the pod's namespace.
    pub netns_inode: u64,
    /// Id that the namespace at the other end has for this one.
    pub nsid: Option<i32>,
    /// File that keeps the namespace.
    pub nsfs: Option<String>,
    /// Its first process.
    pub process: Option<String>,
}

fn state(link: &Link) -> String {
    match (link.up, link.lower_up) {
        (true, true) => "up",
        (true, false) => "no carrier",
        (false, _) => "down",
    }
    .to_owned()
}

/// All devices of namespaces that are no node's own, and all nodes.
pub fn map(topology: &Topology, names: &Names) -> Map {
    let chains = ChainNames::new();
    let naming = Naming {
        topology,
        names,
        chains: &chains,
    };
    let mut links = Vec::new();
    for (key, ns) in topology.all().filter(|(_, ns)| !ns.identity.host) {
        let own = ns.links.known().into_iter().flatten();
        for link in own.filter(|link| !link.loopback) {
            links.push(row(&naming, &key, ns, link));
        }
    }
    links.sort_by(|a, b| (&a.node, &a.pod, a.ifindex).cmp(&(&b.node, &b.pod, b.ifindex)));
    let nodes = topology.nodes.values().map(|node| {
        let named = names.nodes.iter().find(|named| named.name == node.node);
        let own = node.host().and_then(|host| host.addrs.known());
        let addresses = match named {
            Some(named) => named.addresses.iter().map(ToString::to_string).collect(),
            None => own
                .into_iter()
                .flatten()
                .filter(|addr| addr.scope == 0)
                .map(|addr| addr.local.to_string())
                .collect(),
        };
        NodeRow {
            node: node.node.clone(),
            addresses,
            pod_cidrs: named.map_or(Vec::new(), |named| {
                named.pod_cidrs.iter().map(ToString::to_string).collect()
            }),
            kernel: node.kernel.clone(),
            netns_inode: node.host().map(|host| host.identity.id.ino),
        }
    });
    Map {
        schema: "netpath.map/v1",
        nodes: nodes.collect(),
        links,
    }
}

fn row(naming: &Naming<'_>, key: &NsKey, ns: &NetNs, link: &Link) -> Row {
    let found = peer(naming.topology, key, link);
    let other = match &found {
        Peer::Found(key, index) => Some((key.clone(), *index)),
        _ => None,
    };
    let other_ns = other
        .as_ref()
        .and_then(|(key, _)| naming.topology.netns(key));
    let other_link = other
        .as_ref()
        .zip(other_ns)
        .and_then(|((_, index), ns)| ns.link(*index));
    let peer_netns = match found {
        Peer::Found(key, _) => naming.netns(&key),
        Peer::Unread(key) => format!("net:[{}], which was not read", key.netns.ino),
        Peer::OutsideView(why) | Peer::Unknown(why) => format!("unknown: {why}"),
        Peer::Ambiguous(keys) => {
            let keys: Vec<String> = keys.iter().map(|key| naming.netns(key)).collect();
            format!("ambiguous: {}", keys.join(" or "))
        }
        Peer::NotVeth => "-".to_owned(),
    };
    let on_link = |index: IfIndex| {
        let addrs = ns.addrs.known().into_iter().flatten();
        addrs
            .filter(move |addr| addr.link == index && addr.scope != 253)
            .map(|addr| format!("{}/{}", addr.local, addr.prefix_len))
            .collect()
    };
    let nsid = other_ns.and_then(|ns| {
        let ids = ns.nsids.known()?;
        ids.iter()
            .find(|(_, id)| *id == key.netns)
            .map(|(id, _)| *id)
    });
    Row {
        pod: naming.netns(key).trim_start_matches("pod ").to_owned(),
        node: key.node.clone(),
        ips: on_link(link.index),
        device: link.name.clone(),
        ifindex: link.index.get(),
        kind: link.kind.name().to_owned(),
        mac: link.mac.map(|mac| mac.to_string()),
        mtu: link.mtu,
        state: state(link),
        peer_ifindex: link.link.map(IfIndex::get),
        peer_netns,
        host_device: other_link.map(|link| link.name.clone()),
        host_mac: other_link
            .and_then(|link| link.mac)
            .map(|mac| mac.to_string()),
        host_mtu: other_link.map(|link| link.mtu),
        host_state: other_link.map(state),
        bridge: other_link
            .and_then(|link| link.master)
            .and_then(|master| Some(other_ns?.link(master)?.name.clone())),
        port: other_link.and_then(|link| link.port.as_ref()).map(|port| {
            let number = port
                .number
                .map_or(String::new(), |number| format!("{number} "));
            let hairpin = if port.hairpin { ", hairpin" } else { "" };
            let isolated = if port.isolated { ", isolated" } else { "" };
            format!(
                "{number}{}{hairpin}{isolated}",
                words::port_state(port.state)
            )
        }),
        netns_inode: key.netns.ino,
        nsid,
        nsfs: ns.identity.paths.first().cloned(),
        process: pause(ns),
    }
}

/// The process that keeps a pod's namespace: the pause process where it is there.
fn pause(ns: &NetNs) -> Option<String> {
    let processes = &ns.identity.processes;
    let pause = processes.iter().find(|process| process.comm == "pause");
    pause
        .or_else(|| processes.first())
        .map(|process| format!("{} ({})", process.pid, process.comm))
}

/// The answer for people; `wide` with everything that is known.
pub fn text(map: &Map, wide: bool) -> String {
    let mut text = String::new();
    if !map.links.is_empty() {
        text.push_str(&if wide {
            blocks(&map.links)
        } else {
            table(&map.links)
        });
    }
    if map.links.is_empty() && map.nodes.is_empty() {
        text.push_str("nothing was found\n");
    }
    if !map.nodes.is_empty() {
        if !text.is_empty() {
            text.push('\n');
        }
        let mut builder = Builder::new();
        builder.push_record(["NODE", "ADDRESSES", "POD CIDRS", "KERNEL", "NETNS"]);
        for node in &map.nodes {
            builder.push_record(
                [
                    node.node.clone(),
                    joined(&node.addresses),
                    joined(&node.pod_cidrs),
                    node.kernel.clone(),
                    node.netns_inode
                        .map_or("-".to_owned(), |ino| ino.to_string()),
                ]
                .map(|cell| escaped(&cell).into_owned()),
            );
        }
        text.push_str(&build(builder));
    }
    text
}

fn joined(list: &[String]) -> String {
    if list.is_empty() {
        "-".to_owned()
    } else {
        list.join(",")
    }
}

fn build(builder: Builder) -> String {
    let mut table = builder.build();
    table.with(Style::empty()).with(Padding::new(0, 2, 0, 0));
    let mut text = String::new();
    for line in table.to_string().lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn head(row: &Row) -> String {
    match row.peer_ifindex {
        Some(index) => format!("{}@if{index}", row.device),
        None => row.device.clone(),
    }
}

fn table(rows: &[Row]) -> String {
    let mut builder = Builder::new();
    builder.push_record([
        "POD",
        "NODE",
        "POD IP",
        "IFINDEX",
        "DEVICE",
        "HOST DEVICE",
        "BRIDGE",
        "PORT",
        "MAC",
        "MTU",
        "NETNS",
    ]);
    for row in rows {
        let host = match &row.host_device {
            Some(device) => {
                let index = row
                    .peer_ifindex
                    .map_or(String::new(), |index| format!("{index}: "));
                let place = if row.peer_netns == "host" {
                    String::new()
                } else {
                    format!(" in {}", row.peer_netns)
                };
                format!("{index}{device}{place}")
            }
            None => row.peer_netns.clone(),
        };
        builder.push_record(
            [
                row.pod.clone(),
                row.node.clone(),
                joined(&row.ips),
                row.ifindex.to_string(),
                head(row),
                host,
                row.bridge.clone().unwrap_or_else(|| "-".to_owned()),
                row.port.clone().unwrap_or_else(|| "-".to_owned()),
                row.mac.clone().unwrap_or_else(|| "-".to_owned()),
                match row.host_mtu {
                    Some(host) if host != row.mtu => format!("{} (host {host})", row.mtu),
                    _ => row.mtu.to_string(),
                },
                row.netns_inode.to_string(),
            ]
            .map(|cell| escaped(&cell).into_owned()),
        );
    }
    build(builder)
}

fn blocks(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        if !text.is_empty() {
            text.push('\n');
        }
        let place = format!("{} on {}", row.pod, row.node);
        text.push_str(&format!("{}\n", escaped(&place)));
        let none = || "-".to_owned();
        let host = row.host_device.as_ref().map_or_else(
            || row.peer_netns.clone(),
            |device| {
                format!(
                    "{}: {device} in {}, {} mac {} mtu {}",
                    row.peer_ifindex.unwrap_or_default(),
                    row.peer_netns,
                    row.host_state.clone().unwrap_or_else(none),
                    row.host_mac.clone().unwrap_or_else(none),
                    row.host_mtu.unwrap_or_default()
                )
            },
        );
        let bridge = row.bridge.as_ref().map_or_else(none, |bridge| {
            format!("{bridge} port {}", row.port.clone().unwrap_or_else(none))
        });
        for (name, value) in [
            ("addresses", joined(&row.ips)),
            (
                "device",
                format!(
                    "{}: {} ({}), {} mac {} mtu {}",
                    row.ifindex,
                    head(row),
                    row.kind,
                    row.state,
                    row.mac.clone().unwrap_or_else(none),
                    row.mtu
                ),
            ),
            ("other end", host),
            ("bridge", bridge),
            (
                "netns",
                format!(
                    "net:[{}], nsid {} at the other end, file {}",
                    row.netns_inode,
                    row.nsid.map_or_else(none, |id| id.to_string()),
                    row.nsfs.clone().unwrap_or_else(none)
                ),
            ),
            ("process", row.process.clone().unwrap_or_else(none)),
        ] {
            text.push_str(&format!("  {name:11}{}\n", escaped(&value)));
        }
    }
    text
}
