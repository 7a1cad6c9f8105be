//! Routes, neighbours, tunnels, devices and sockets that do not let a packet through.

use crate::model::packet::Packet;
use crate::model::route::RouteKind;
use crate::model::rule::RuleAction;
use crate::trace::{Evidence, Hop, StepKind};

use super::Case;
use crate::explain::codes::{self, Code};
use crate::explain::words;

impl<'a> Case<'a> {
    pub(super) fn too_big(&self, mtu: Option<u32>) -> (Code, String) {
        let limit = mtu
            .map(|mtu| format!(" to {mtu} bytes or less"))
            .unwrap_or_default();
        let mend = format!(
            "lower the pods' MTU{limit} in the CNI's configuration and recreate them, or raise the MTU {}",
            self.here()
        );
        (codes::MTU, mend)
    }

    pub(super) fn in_tunnel(&self) -> bool {
        self.is_outer() || {
            let dev = self
                .step
                .evidence
                .iter()
                .find_map(|evidence| match evidence {
                    Evidence::Neigh { dev, .. } | Evidence::Link { dev, .. } => Some(dev.as_str()),
                    _ => None,
                });
            let link = dev.and_then(|dev| self.ns()?.link_named(dev));
            link.is_some_and(|link| link.kind.name() == "vxlan")
        }
    }

    pub(super) fn unresolved(&self, packet: &Packet) -> (Code, String) {
        let down = |evidence: &Evidence| matches!(evidence, Evidence::Link { .. });
        if self.step.evidence.iter().any(down) {
            return self.link_down();
        }
        if self.in_tunnel() {
            return self.tunnel();
        }
        if self.rule().is_some() {
            let mend = format!(
                "accept {} before that rule, in both directions: without it nobody on this link finds {}",
                if packet.dst.is_ipv4() {
                    "ARP"
                } else {
                    "neighbour discovery (ICMPv6 types 135 and 136)"
                },
                packet.dst
            );
            return (codes::FILTERED, mend);
        }
        let mend = format!(
            "{}: is the next hop for {} alive and on this link? ip neigh show; where the entry is stale: ip neigh flush dev {}",
            self.here(),
            packet.dst,
            self.hop.oif.clone().unwrap_or_else(|| "DEVICE".to_owned())
        );
        (codes::NEIGH_UNRESOLVED, mend)
    }

    pub(super) fn tunnel(&self) -> (Code, String) {
        let mend = format!(
            "restart the CNI's agent {}, which writes the tunnel's neighbour and fdb entries anew; compare them with the remote's own address (ip -d link)",
            self.here()
        );
        (codes::STALE_TUNNEL, mend)
    }

    pub(super) fn other_station(&self, packet: &Packet) -> (Code, String) {
        if self.in_tunnel() {
            return self.tunnel();
        }
        let mend = format!(
            "{}: the sender's neighbour entry for {} is wrong: ip neigh del it there, and see what set it or changed the device's address",
            self.here(),
            packet.dst
        );
        (codes::WRONG_MAC, mend)
    }

    pub(super) fn has_route_kind(&self) -> bool {
        self.step.evidence.iter().any(|evidence| match evidence {
            Evidence::Route { route, .. } => {
                !matches!(route.kind, RouteKind::Unicast | RouteKind::Local)
            }
            Evidence::PolicyRule { rule } => !matches!(rule.action, RuleAction::Table(_)),
            _ => false,
        })
    }

    pub(super) fn no_route(&self, packet: &Packet) -> (Code, String) {
        let here = self.here();
        if self.has_route_kind() {
            let mend = format!(
                "{here}: the longer route for {} is missing (recreate the pod, or restart the CNI's agent), or this route is to be removed",
                packet.dst
            );
            return (codes::ROUTE_REFUSES, mend);
        }
        let mend = match self.naming.node_of(packet.dst) {
            Some(node) if node != self.hop.ns.node => {
                let hint = self.naming.topology.hints.get(&node);
                let cidr = hint.and_then(|hint| {
                    let cidrs = hint.pod_cidrs.iter();
                    cidrs.copied().find(|cidr| cidr.contains(packet.dst))
                });
                let what = cidr.map_or_else(|| packet.dst.to_string(), |cidr| cidr.to_string());
                format!(
                    "{here}: restart the CNI's agent, which should have added the route to {what}, where {node} is"
                )
            }
            _ => format!("{here}: add a route for {}: ip route add", packet.dst),
        };
        (codes::NO_ROUTE, mend)
    }

    /// A namespace that is no node's was to forward, and does not hold the address.
    pub(super) fn misled(&self, packet: &Packet) -> bool {
        let Some(ns) = self.ns().filter(|ns| !ns.identity.host) else {
            return false;
        };
        let router = self.trace.hops.len() > 1 && self.naming.names.pods.is_empty();
        let holds = ns
            .addrs
            .known()
            .is_some_and(|addrs| addrs.iter().any(|addr| addr.local == packet.dst));
        !router && !holds && self.hop.iif.is_some()
    }

    pub(super) fn wrong_owner(&self, packet: &Packet) -> (Code, String) {
        let holders = self.naming.holders(packet.dst);
        let owner = match holders.first() {
            Some(key) => format!("{} on {} holds it", self.naming.netns(key), key.node),
            None => "no namespace that was read holds it".to_owned(),
        };
        let mend = format!(
            "{} does not hold {}; {owner}: remove the old route or device, or delete the pod that has its address twice",
            self.naming.netns(&self.hop.ns),
            packet.dst
        );
        (codes::WRONG_OWNER, mend)
    }

    pub(super) fn no_listener(&self, packet: &Packet) -> (Code, String) {
        let here = self.here();
        let port = packet.dport();
        let sockets = self.ns().and_then(|ns| ns.sockets.known());
        let elsewhere: Vec<String> = sockets
            .into_iter()
            .flatten()
            .filter(|s| s.listening && s.protocol == packet.protocol() && Some(s.port) == port)
            .map(|socket| words::socket_addr(socket.addr, Some(socket.port)))
            .collect();
        let wanted = words::socket_addr(packet.dst, port);
        if elsewhere.is_empty() {
            let others: Vec<String> = sockets
                .into_iter()
                .flatten()
                .filter(|s| s.listening && s.protocol == packet.protocol())
                .map(|socket| socket.port.to_string())
                .take(8)
                .collect();
            let listening = if others.is_empty() {
                String::new()
            } else {
                format!(" (listening there: {})", others.join(", "))
            };
            let mend = format!(
                "{here}: start what should listen on {wanted}, or correct the port or targetPort{listening}"
            );
            return (codes::NO_LISTENER, mend);
        }
        let mend = format!(
            "{here}: the program listens on {} only; let it listen on every address",
            elsewhere.join(" and ")
        );
        (codes::LISTENER_ELSEWHERE, mend)
    }

    pub(super) fn link_down(&self) -> (Code, String) {
        let dev = self
            .step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::Link { dev, .. } => Some(dev.clone()),
                _ => None,
            });
        let dev = dev.unwrap_or_else(|| self.dev());
        (
            codes::LINK_DOWN,
            format!(
                "{}: ip link set {dev} up (a veth needs both ends up)",
                self.here()
            ),
        )
    }

    pub(super) fn not_from_peer(&self) -> (Code, String) {
        if let Some((hop, name)) = self.bypassing_bridge() {
            let mend = format!(
                "on {}: modprobe br_netfilter; sysctl -w {name}=1",
                hop.ns.node
            );
            return (codes::BRIDGE_NF_OFF, mend);
        }
        let mend = "let the answer take the way of the request, or masquerade the request; look for NOTRACK rules".to_owned();
        (codes::NOT_FROM_PEER, mend)
    }

    /// A bridge that the answer crossed without meeting rules, and the setting that makes it so.
    pub(super) fn bypassing_bridge(&self) -> Option<(&'a Hop, &'static str)> {
        let hop = self.trace.hops.iter().find(|hop| {
            let crossed = hop.steps.iter().any(|step| step.kind == StepKind::Bridge);
            let v4 = hop.packet.dst.is_ipv4();
            let sysctls = self
                .naming
                .topology
                .netns(&hop.ns)
                .and_then(|ns| ns.sysctls.known());
            let calls = sysctls.and_then(|sysctls| {
                let setting = if v4 {
                    &sysctls.bridge_nf_call_iptables
                } else {
                    &sysctls.bridge_nf_call_ip6tables
                };
                setting.known().copied()
            });
            crossed && calls.is_some_and(|value| value != Some(true))
        })?;
        let name = if hop.packet.dst.is_ipv4() {
            "net.bridge.bridge-nf-call-iptables"
        } else {
            "net.bridge.bridge-nf-call-ip6tables"
        };
        Some((hop, name))
    }
}
