//! `map`: from pods to host devices, and back.

use std::net::IpAddr;

use anyhow::bail;
use netpath::model::want::{Depth, NsTarget, Want};
use netpath::simulate::Wants;

use super::cluster;
use super::dump::target;
use super::place::{Done, Wish, everywhere, read};
use super::{local, saved};
use crate::cli::{Format, GlobalFlags, MapArgs};
use crate::render;
use crate::render::map::{Map, Row};
use crate::request::{Facts, file_flags};
use crate::resolve::{EndSpec, parse_local, resolve_place};

/// What was typed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// Everything.
    All,
    /// A pod or node, or a namespace of this machine.
    Place(String),
    /// A device by name, perhaps of one node.
    Device(String, Option<String>),
    /// A device by index.
    Index(u32, Option<String>),
    /// A namespace by inode.
    Inode(u64, Option<String>),
    /// An address.
    Ip(IpAddr),
    /// A link-layer address.
    Mac(String),
}

impl What {
    fn parse(typed: Option<&str>) -> anyhow::Result<Self> {
        let Some(typed) = typed else {
            return Ok(Self::All);
        };
        if let Ok(ip) = typed.parse() {
            return Ok(Self::Ip(ip));
        }
        let Some((kind, rest)) = typed.split_once('/') else {
            return Ok(Self::Place(typed.to_owned()));
        };
        let (value, node) = match rest.split_once('@') {
            Some((value, node)) if !node.is_empty() => (value, Some(node.to_owned())),
            _ => (rest, None),
        };
        match kind {
            "veth" | "dev" | "link" => {
                // `ip link` prints veth3fa2c1@if2: the part behind is no node then.
                let node = node.filter(|node| !is_peer_suffix(node));
                Ok(Self::Device(value.to_owned(), node))
            }
            "ifindex" => match value.parse() {
                Ok(index) if index > 0 => Ok(Self::Index(index, node)),
                _ => bail!("map {typed:?}: {value:?} is no interface index (a number from 1 on)"),
            },
            "netns" => match value.parse() {
                Ok(inode) => Ok(Self::Inode(inode, node)),
                Err(_) => Ok(Self::Place(typed.to_owned())),
            },
            "ip" => match value.parse() {
                Ok(ip) => Ok(Self::Ip(ip)),
                Err(_) => bail!("map {typed:?}: {value:?} is no address"),
            },
            "mac" => match value.parse::<netpath::model::MacAddr>() {
                Ok(mac) => Ok(Self::Mac(mac.to_string())),
                Err(error) => bail!("map {typed:?}: {error}"),
            },
            _ => Ok(Self::Place(typed.to_owned())),
        }
    }

    fn node(&self) -> Option<&str> {
        match self {
            Self::Device(_, node) | Self::Index(_, node) | Self::Inode(_, node) => node.as_deref(),
            _ => None,
        }
    }
}

fn is_peer_suffix(text: &str) -> bool {
    text.strip_prefix("if")
        .is_some_and(|rest| !rest.is_empty() && rest.chars().all(|c| c.is_ascii_digit()))
}

/// Does it and gives the exit code.
pub async fn run(args: &MapArgs, global: &GlobalFlags) -> anyhow::Result<u8> {
    let facts = Facts::of(&args.access)?;
    let what = What::parse(args.what.as_deref())?;
    let of_cluster = match &facts {
        Facts::Cluster(_) => true,
        Facts::Local => false,
        Facts::File(path) => !saved::is_local(&saved::read(path)?),
    };
    let spec = match &what {
        What::Place(typed) if of_cluster => Some(cluster::parse(typed)?),
        What::Place(typed) => Some(parse_local(typed)?),
        _ => None,
    };
    let ends: Vec<&EndSpec> = spec.iter().collect();
    let pid = match spec {
        Some(EndSpec::Pid { pid, .. }) => Some(pid),
        _ => None,
    };
    let wish = Wish {
        ends: &ends,
        cluster: &|read| {
            let all = cluster::nodes(read);
            if let What::Place(typed) = &what {
                let ask = cluster::ask(
                    typed,
                    "",
                    &read.kube.namespace,
                    "map",
                    read.kube.typed_flags.clone(),
                    None,
                    None,
                );
                let (source, _) = resolve_place(&read.view, &ask)?;
                let (node, wanted) = target(&source)?;
                if wanted == NsTarget::Host {
                    return Ok(everywhere([node], &NsTarget::All, Depth::NoRules));
                }
                let mut wants = everywhere([node.clone()], &NsTarget::Host, Depth::NoRules);
                let want = Want::NetNs {
                    target: wanted,
                    depth: Depth::NoRules,
                };
                wants.entry(node).or_default().insert(want);
                return Ok(wants);
            }
            if let Some(node) = what.node() {
                if !all.contains(node) && read.view.knows("nodes", "") {
                    bail!("node {node:?}: not found in the cluster");
                }
                return Ok(everywhere(
                    [node.to_owned()],
                    &NsTarget::All,
                    Depth::NoRules,
                ));
            }
            // The node of a pod's address is known without looking everywhere.
            if let What::Ip(ip) = what
                && let Some(node) = read.names.pod_by_ip(ip).and_then(|pod| pod.node.clone())
            {
                return Ok(everywhere([node], &NsTarget::All, Depth::NoRules));
            }
            Ok(everywhere(all, &NsTarget::All, Depth::NoRules))
        },
        // A pod's or a node's place is known, or there is an error.
        names: match what {
            What::Place(_) => &[],
            _ => &["nodes", "pods"],
        },
        sections: Some(&["links", "addrs", "nsids"]),
        depth: Depth::NoRules,
        pid,
        more: &|_| Ok(Wants::new()),
    };
    let read = match read(&facts, global, &wish).await? {
        Done::Read(read) => *read,
        Done::Ended(code) => return Ok(code),
    };
    let mut map = render::map::map(&read.topology, &read.names);
    let mut node_named = None;
    match (&what, &spec) {
        (What::Place(typed), Some(spec)) if !of_cluster => {
            let node = match read.topology.nodes.keys().next() {
                Some(node) => node.clone(),
                None => local::host_name(),
            };
            let key = local::place(&read.topology, &node, typed, spec, None)?;
            let host = read.topology.netns(&key).is_some_and(|ns| ns.identity.host);
            if !host {
                map.links.retain(|row| row.netns_inode == key.netns.ino);
                map.nodes.clear();
            }
        }
        (What::Place(typed), Some(_)) => {
            let view = saved::view(&read.names);
            let default = global.connection.namespace.as_deref().unwrap_or("default");
            if let Facts::File(path) = &facts {
                let ask = cluster::ask(typed, "", default, "map", file_flags(path), None, None);
                let (source, _) = resolve_place(&view, &ask)?;
                let (node, wanted) = target(&source)?;
                map.links.retain(|row| row.node == node);
                map.nodes.retain(|row| row.node == node);
                if let NsTarget::PodUid(uid) = wanted {
                    let snapshot = read.topology.nodes.get(&node);
                    let ns = snapshot.and_then(|snapshot| snapshot.pod(&uid));
                    let inode = ns.map(|ns| ns.identity.id.ino);
                    map.links.retain(|row| Some(row.netns_inode) == inode);
                }
            }
            node_named = Some(typed.clone());
        }
        _ => keep(&mut map, &what),
    }
    if map.links.is_empty() && (what != What::All || map.nodes.is_empty()) {
        let typed = args.what.as_deref().unwrap_or("everything");
        let whys: Vec<&str> = read
            .topology
            .absent
            .iter()
            .map(|(_, _, why)| why.as_str())
            .collect();
        if map.nodes.is_empty() || !whys.is_empty() || node_named.is_none() {
            let why = if whys.is_empty() {
                String::new()
            } else {
                format!(" ({})", whys.join("; "))
            };
            bail!(
                "map {typed}: nothing of that was found in {}{why}",
                searched(&read.topology)
            );
        }
    }
    match args.output {
        Format::Text | Format::Wide => {
            let options = super::options(global);
            let text = render::map::text(&map, args.output == Format::Wide);
            super::print(&options.plain(&text))?;
        }
        Format::Json | Format::Yaml => super::print_data(&map, args.output)?,
    }
    Ok(if read.failed.is_empty() {
        read.code
    } else {
        super::INCONCLUSIVE
    })
}

fn searched(topology: &netpath::model::topology::Topology) -> String {
    let spaces: usize = topology.nodes.values().map(|node| node.netns.len()).sum();
    let nodes: Vec<&str> = topology.nodes.keys().map(String::as_str).take(8).collect();
    format!("{spaces} namespaces of {}", nodes.join(", "))
}

/// Leaves what was asked for: matched from either end.
fn keep(map: &mut Map, what: &What) {
    let on = |row: &Row, node: &Option<String>| node.as_ref().is_none_or(|node| row.node == *node);
    match what {
        What::All | What::Place(_) => return,
        What::Device(name, node) => map.links.retain(|row| {
            on(row, node) && (row.host_device.as_ref() == Some(name) || row.device == *name)
        }),
        What::Index(index, node) => map.links.retain(|row| {
            on(row, node) && (row.peer_ifindex == Some(*index) && row.host_device.is_some())
        }),
        What::Inode(inode, node) => {
            map.links
                .retain(|row| on(row, node) && row.netns_inode == *inode);
            map.nodes.retain(|row| row.netns_inode == Some(*inode));
            return;
        }
        What::Ip(ip) => {
            let text = ip.to_string();
            let has = |ips: &[String]| {
                ips.iter()
                    .any(|other| other.split('/').next() == Some(text.as_str()))
            };
            map.links.retain(|row| has(&row.ips));
            map.nodes.retain(|row| has(&row.addresses));
            return;
        }
        What::Mac(mac) => map
            .links
            .retain(|row| row.mac.as_ref() == Some(mac) || row.host_mac.as_ref() == Some(mac)),
    }
    map.nodes.clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn what(typed: &str) -> What {
        What::parse(Some(typed)).unwrap()
    }

    #[test]
    fn what_was_typed() {
        let node = || Some("worker-1".to_owned());
        assert_eq!(what("web-0"), What::Place("web-0".to_owned()));
        assert_eq!(
            what("node/worker-1"),
            What::Place("node/worker-1".to_owned())
        );
        assert_eq!(
            what("veth/veth3fa2c1@worker-1"),
            What::Device("veth3fa2c1".to_owned(), node())
        );
        assert_eq!(
            what("veth/veth3fa2c1@if2"),
            What::Device("veth3fa2c1".to_owned(), None)
        );
        assert_eq!(what("ifindex/12@worker-1"), What::Index(12, node()));
        assert_eq!(what("netns/4026532621"), What::Inode(4_026_532_621, None));
        assert_eq!(what("netns/net0"), What::Place("netns/net0".to_owned()));
        assert_eq!(what("ip/10.0.0.1"), What::Ip("10.0.0.1".parse().unwrap()));
        assert_eq!(what("10.0.0.1"), What::Ip("10.0.0.1".parse().unwrap()));
        assert!(What::parse(Some("ifindex/0")).is_err());
        assert!(What::parse(Some("ip/nonsense")).is_err());
        assert!(What::parse(Some("mac/nonsense")).is_err());
    }
}
