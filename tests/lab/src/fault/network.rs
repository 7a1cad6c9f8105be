//! Faults of routes, rules, tunnels and filters.

use anyhow::{Result, bail, ensure};

use crate::address::{Family, NodePlan};
use crate::cluster::Cluster;
use crate::command::{bridge_batch, ip_batch};
use crate::namespace::Namespaces;
use crate::network::{peer_neigh, peer_route, sysctl};
use crate::proxy::iptables_program;
use crate::spec::{Overlay, Proxy};

impl Cluster {
    pub(super) fn forward_drop(&self, target: &str, on: bool) -> Result<String> {
        let proxy = self.state.spec.proxy;
        let place = self.node(target)?;
        let policy = if on { "DROP" } else { "ACCEPT" };
        for family in Family::BOTH {
            let program = iptables_program(proxy, family);
            place.run([program, "-w", "-P", "FORWARD", policy])?;
            // In nftables mode flannel's own table accepts, but does not overrule this policy.
            if proxy != Proxy::Nftables {
                let operation = if on { "-D" } else { "-A" };
                let comment = ["-m", "comment", "--comment", "flanneld forward"];
                let mut argv = vec![program, "-w", operation, "FORWARD"];
                argv.extend(comment);
                argv.extend(["-j", "FLANNEL-FWD"]);
                place.run(argv)?;
            }
        }
        Ok(format!(
            "policy of filter FORWARD is {policy} on {target}{}",
            if proxy == Proxy::Nftables {
                ""
            } else if on {
                ", and flannel's jump to FLANNEL-FWD is gone"
            } else {
                ", and flannel's jump to FLANNEL-FWD is back"
            }
        ))
    }

    pub(super) fn missing_route(&self, target: &str, on: bool) -> Result<String> {
        let verb = if on { "delete" } else { "add" };
        let number = self.number(target)?;
        let mut lines = Vec::new();
        for peer in self.peers(number) {
            for family in Family::BOTH {
                let route = peer_route(self.state.spec.overlay, peer, family);
                lines.push(format!("route {verb} {route}"));
            }
        }
        self.node(target)?.enter(|| ip_batch(&lines))?;
        Ok(format!("on {target}: {}", lines.join("; ")))
    }

    pub(super) fn stale_fdb(&self, target: &str, on: bool) -> Result<String> {
        ensure!(
            self.state.spec.overlay == Overlay::Vxlan,
            "the routed overlay has no tunnel FDB"
        );
        let number = self.number(target)?;
        let mut lines = Vec::new();
        for peer in self.peers(number) {
            for family in Family::BOTH {
                let wrong = match family {
                    Family::V4 => "10.88.0.99".to_owned(),
                    Family::V6 => "fd00:88::99".to_owned(),
                };
                let remote = if on {
                    wrong
                } else {
                    peer.node_ip(family).to_string()
                };
                let (mac, dev) = (peer.vtep_mac(&self.state.name, family), family.vxlan());
                lines.push(format!("fdb del {mac} dev {dev} self"));
                lines.push(format!(
                    "fdb append {mac} dev {dev} dst {remote} self permanent"
                ));
            }
        }
        self.node(target)?.enter(|| bridge_batch(&lines))?;
        Ok(format!("on {target}: {}", lines.join("; ")))
    }

    /// The way back to node-1 leads over a second link between the two nodes.
    pub(super) fn rp_filter(&self, target: &str, on: bool) -> Result<String> {
        let number = self.number(target)?;
        ensure!(
            number != 1,
            "the way back to node-1 is what is changed: choose another node"
        );
        let overlay = self.state.spec.overlay;
        let pids: Vec<i32> = self
            .state
            .nodes
            .iter()
            .map(|node| node.holder_pid)
            .collect();
        let (Some(first), Some(own)) = (pids.first(), pids.get(number - 1)) else {
            bail!("node-1 and {target} are not both there");
        };
        let ingress = match overlay {
            Overlay::Vxlan => "flannel.1",
            Overlay::Routed => "eth0",
        };
        let here = Namespaces::net_of(*own)?;
        let there = Namespaces::net_of(*first)?;
        let cidr = NodePlan(1).pod_cidr(Family::V4);
        if on {
            here.run(|| {
                ip_batch(&[
                    format!("link add eth1 type veth peer name eth1 netns {first}"),
                    format!("address add 10.89.0.1{number}/24 dev eth1"),
                    "link set eth1 up".to_owned(),
                ])
            })?;
            there.run(|| {
                sysctl("net/ipv4/conf/eth1/rp_filter", "0")?;
                ip_batch(&[
                    "address add 10.89.0.11/24 dev eth1".to_owned(),
                    "link set eth1 up".to_owned(),
                ])
            })?;
            here.run(|| {
                ip_batch(&[format!("route replace {cidr} via 10.89.0.11 dev eth1")])?;
                sysctl(&format!("net/ipv4/conf/{ingress}/rp_filter"), "1")
            })?;
            Ok(format!(
                "on {target}: route {cidr} via 10.89.0.11 dev eth1, and rp_filter of {ingress} is 1 (strict)"
            ))
        } else {
            here.run(|| {
                sysctl(&format!("net/ipv4/conf/{ingress}/rp_filter"), "0")?;
                let route = peer_route(overlay, NodePlan(1), Family::V4);
                ip_batch(&[
                    format!("route replace {route}"),
                    "link delete eth1".to_owned(),
                ])
            })?;
            Ok(format!(
                "on {target}: route and rp_filter of {ingress} are back, eth1 is gone"
            ))
        }
    }

    pub(super) fn stale_neigh(&self, target: &str, on: bool) -> Result<String> {
        let number = self.number(target)?;
        let wrong = "0e:00:00:00:00:99";
        let mut lines = Vec::new();
        for peer in self.peers(number) {
            for family in Family::BOTH {
                match self.state.spec.overlay {
                    Overlay::Vxlan => {
                        let right = peer.vtep_mac(&self.state.name, family);
                        let mac = if on { wrong } else { &right };
                        lines.push(format!("neigh replace {}", peer_neigh(peer, family, mac)));
                    }
                    Overlay::Routed if on => lines.push(format!(
                        "neigh replace {} lladdr {wrong} dev eth0 nud permanent",
                        peer.node_ip(family)
                    )),
                    Overlay::Routed => {
                        lines.push(format!("neigh delete {} dev eth0", peer.node_ip(family)));
                    }
                }
            }
        }
        self.node(target)?.enter(|| ip_batch(&lines))?;
        Ok(format!("on {target}: {}", lines.join("; ")))
    }

    pub(super) fn wrong_neigh(&self, target: &str, on: bool) -> Result<String> {
        let wrong = "0e:00:00:00:00:98";
        let ips = self.pod_state(target)?.ips.clone();
        let lines: Vec<String> = ips
            .iter()
            .map(|ip| {
                if on {
                    format!("neigh replace {ip} lladdr {wrong} dev cni0 nud permanent")
                } else {
                    format!("neigh delete {ip} dev cni0")
                }
            })
            .collect();
        self.on_node_of(target, || ip_batch(&lines))?;
        Ok(format!("on the node of {target}: {}", lines.join("; ")))
    }
}
