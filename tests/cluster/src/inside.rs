//! The namespaces of a cluster that stands on this machine, seen from outside: its nodes' processes tell them.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netpath_lab::process::ids_in_namespace_of;
use netpath_lab::{Capture, Outcome, Place};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::flows;
use crate::workload::{Objects, Pod};
use netpath_cluster::undo::Undo;

/// A cluster that tests/cluster/up raised.
pub struct Inside {
    /// What `up` wrote about it: `iptables bridge vxlan`, and on a line of its own `dual policy=own`.
    pub variant: Variant,
    pids: BTreeMap<String, i32>,
    pods: BTreeMap<String, i32>,
}

/// The words of $state/up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// `iptables` or `nftables`.
    pub proxy: String,
    /// `bridge` or `ptp`.
    pub cni: String,
    /// `routes`, `vxlan` or `host-gw`.
    pub overlay: String,
    /// What else stands there: `policy=own`, `dual`.
    pub more: Vec<String>,
}

impl Variant {
    /// Whether something enforces NetworkPolicies.
    pub fn has_policies(&self) -> bool {
        let mut more = self.more.iter();
        more.any(|word| word.starts_with("policy="))
    }

    /// Reads the line that `up` writes.
    pub fn parse(line: &str) -> Result<Self> {
        let mut words = line.split_whitespace();
        let mut next = || {
            let word = words.next().map(str::to_owned);
            word.with_context(|| format!("read the variant {line:?}: PROXY CNI OVERLAY are wanted"))
        };
        let (proxy, cni, overlay) = (next()?, next()?, next()?);
        Ok(Self {
            proxy,
            cni,
            overlay,
            more: words.map(str::to_owned).collect(),
        })
    }
}

impl Inside {
    /// Finds the namespaces of nodes and of the workload's pods.
    pub fn find(state: &Path, objects: &Objects) -> Result<Self> {
        let read = |name: &str| {
            let path = state.join(name);
            fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
        };
        let mut pids = BTreeMap::new();
        for node in &objects.nodes {
            let pid = read(&format!("{}.pid", node.name))?;
            let pid = pid
                .trim()
                .parse()
                .with_context(|| format!("read the pid of {}", node.name))?;
            pids.insert(node.name.clone(), pid);
        }
        let mut pods = BTreeMap::new();
        let own: Vec<&Pod> = objects
            .pods
            .values()
            .filter(|pod| !pod.host_network)
            .collect();
        for entry in fs::read_dir("/proc").context("list /proc")? {
            let entry = entry.context("list /proc")?;
            let pid = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok());
            // Processes come and go.
            let Some((pid, groups)) = pid.zip(fs::read_to_string(entry.path().join("cgroup")).ok())
            else {
                continue;
            };
            let pod = own
                .iter()
                .find(|pod| groups.contains(&format!("/pod{}/", pod.uid)));
            pods.extend(pod.map(|pod| (pod.name.clone(), pid)));
        }
        if let Some(pod) = own.iter().find(|pod| !pods.contains_key(&pod.name)) {
            bail!(
                "find a process of pod {} ({}) in /proc/*/cgroup: there is none",
                pod.name,
                pod.uid
            );
        }
        Ok(Self {
            variant: Variant::parse(&read("up")?)?,
            pids,
            pods,
        })
    }

    /// The network of a node.
    pub fn node(&self, name: &str) -> Result<Place> {
        let pid = self
            .pids
            .get(name)
            .with_context(|| format!("find node {name}"))?;
        Place::of_process(name, *pid)
    }

    /// The network of a pod of the workload.
    pub fn pod(&self, objects: &Objects, name: &str) -> Result<Place> {
        let place = flows::place(objects, name)?;
        match self.pods.get(name) {
            Some(pid) => Place::of_process(&place, *pid),
            None => self.node(&place),
        }
    }

    /// Packet sockets in all nodes and pods.
    pub fn capture(&self, objects: &Objects) -> Result<Capture> {
        let mut places = Vec::new();
        for name in self.pids.keys() {
            places.push(self.node(name)?);
        }
        for name in self.pods.keys() {
            places.push(self.pod(objects, name)?);
        }
        Capture::start(places)
    }

    /// Keeps the nodes' neighbour entries of the pods until the end: which way a bridged packet takes inside its
    /// node depends on whether its neighbour was confirmed a moment ago, and that may change between a trace and
    /// a packet.
    pub fn pin_neighbours(&self, objects: &Objects) -> Result<Vec<Undo<'static>>> {
        let mut pinned = Vec::new();
        if self.variant.cni != "bridge" {
            return Ok(pinned);
        }
        for pod in objects.pods.values().filter(|pod| !pod.host_network) {
            let links = self
                .pod(objects, &pod.name)?
                .run(["ip", "-o", "link", "show", "eth0"])?;
            let mac = links
                .split_whitespace()
                .skip_while(|word| *word != "link/ether")
                .nth(1);
            let mac =
                mac.with_context(|| format!("find the link-layer address of {}", pod.name))?;
            let pid = *self.pids.get(&pod.node).context("find the pod's node")?;
            let node = Place::of_process(&pod.node, pid)?;
            for ip in pod.ips.iter().map(ToString::to_string) {
                let entry = ["neigh", "replace", &ip, "lladdr", mac, "dev", "cni0", "nud"];
                node.run([&["ip"], &entry[..], &["permanent"]].concat())?;
                let node = Place::of_process(&pod.node, pid)?;
                let what = format!("forget {ip} on {}", pod.node);
                pinned.push(Undo::new(what, move || {
                    node.run(["ip", "neigh", "del", ip.as_str(), "dev", "cni0"])
                        .map(|_| ())
                }));
            }
        }
        Ok(pinned)
    }

    /// Stops the daemons of this name on a node; the mend lets them go on.
    pub fn stop(&self, node: &str, daemon: &str) -> Result<Undo<'static>> {
        let member = *self
            .pids
            .get(node)
            .with_context(|| format!("find node {node}"))?;
        let ids = ids_in_namespace_of(member)?;
        let named = |pid: &i32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm"));
            name.is_ok_and(|name| name.trim() == daemon)
        };
        let found: Vec<Pid> = ids.into_values().filter(named).map(Pid::from_raw).collect();
        ensure!(
            !found.is_empty(),
            "stop {daemon} on {node}: it does not run"
        );
        let undo = {
            let found = found.clone();
            Undo::new(format!("let {daemon} on {node} go on"), move || {
                found
                    .iter()
                    .try_for_each(|pid| kill(*pid, Signal::SIGCONT).context("signal it"))
            })
        };
        for pid in found {
            kill(pid, Signal::SIGSTOP).with_context(|| format!("stop {daemon} on {node}"))?;
        }
        Ok(undo)
    }
}

/// One exchange from a place.
pub fn exchange(place: &Place, to: SocketAddr, udp: bool, wait: Duration) -> Result<Outcome> {
    if udp {
        place.udp_exchange(to, wait)
    } else {
        place.tcp_exchange(to, wait)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_has_three_words_and_more_by_name() {
        let variant = Variant::parse("nftables ptp routes\ndual policy=own\n").unwrap();
        let words = [&variant.proxy, &variant.cni, &variant.overlay];
        assert_eq!(words, ["nftables", "ptp", "routes"]);
        assert!(variant.has_policies());
        let plain = Variant::parse("nftables ptp routes\nipv4\n").unwrap();
        assert!(!plain.has_policies());
        assert!(Variant::parse("iptables bridge").is_err());
    }
}
