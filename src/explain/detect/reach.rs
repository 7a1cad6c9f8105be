//! Routes, neighbours, tunnels, devices and sockets that do not let a packet through.

use std::net::IpAddr;

use crate::model::NsKey;
use crate::model::addr::Addr;
use crate::model::link::LinkKind;
use crate::model::names::PodName;
use crate::model::packet::Packet;
use crate::model::route::{Route, RouteKind};
use crate::model::rule::{Rule, RuleAction};
use crate::trace::{Disposition, DropReason, Evidence, Hop, StepKind};

use super::Case;
use crate::explain::codes::{self, Code};
use crate::explain::steps::object;
use crate::explain::words;

/// Whether a policy rule refuses packets itself.
pub(super) fn refuses(rule: &Rule) -> bool {
    matches!(
        rule.action,
        RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit
    )
}

/// Whether a route is one that leads nowhere.
pub(super) fn no_way(route: &Route) -> bool {
    !matches!(route.kind, RouteKind::Unicast | RouteKind::Local)
}

impl<'a> Case<'a> {
    /// The last rule on the way that set the packet's TTL or hop limit, with its place.
    fn set_ttl(&self) -> Option<String> {
        let mut found = self.trace.steps().rev();
        found.find_map(|(hop, step)| {
            step.evidence.iter().rev().find_map(|found| match found {
                Evidence::NetfilterRule { text, .. }
                    if ["-j TTL", "-j HL", "ttl set", "hoplimit set"]
                        .iter()
                        .any(|words| text.contains(words)) =>
                {
                    Some(format!("{} ({})", self.object(found), self.within(&hop.ns)))
                }
                _ => None,
            })
        })
    }

    /// A circle of routes; a TTL that runs out without one is none.
    pub(super) fn goes_round(&self) -> (Code, String) {
        let dst = self.innermost();
        if self.circle().is_empty() && self.trace.disposition != Disposition::Loop {
            if let Some(rule) = self.set_ttl() {
                let mend = format!(
                    "{}: the packet came with a TTL of 1 or less, which a rule on its way has set: delete it, or let it set more: {rule}",
                    self.here()
                );
                return (codes::TTL, mend);
            }
            let mend = format!(
                "{}: the packet came with a TTL of 1 or less; see what sets it so low at the sender (sysctl net.ipv4.ip_default_ttl, net.ipv6.conf.all.hop_limit) or on the way (a TTL or HL rule: iptables-save -t mangle)",
                self.here()
            );
            return (codes::TTL, mend);
        }
        if self.step.kind == StepKind::Encap {
            let mend = format!(
                "{}: the route to the tunnel's remote leads into the tunnel; see {} route get {}, and correct or delete (ip route del) that route",
                self.here(),
                self.ip(),
                self.trace.packet.dst
            );
            return (codes::LOOP, mend);
        }
        let routes = self.routes_of_circle();
        let owner = match self.naming.node_of(dst) {
            Some(node) => {
                format!("{dst} is on {node}: its routes must lead there, and {node} needs its own")
            }
            None => format!("no node that was read owns {dst}: none should pass it on"),
        };
        let mend = if routes.is_empty() {
            format!("{owner}; compare on each: ip route get {dst}")
        } else {
            format!(
                "{owner}; correct or delete (ip route del) the wrong one of these routes: {}",
                routes.join("; ")
            )
        };
        (codes::LOOP, mend)
    }

    /// What to do about something that could not be read or is not followed.
    pub(super) fn read_it(&self) -> String {
        let what = self.unreadable().unwrap_or_default();
        let here = self.here();
        let lower = what.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        if says(&["the sender's uid", "the sender's gid"]) {
            "a rule asks who sends: say it by --uid and --gid (kubectl exec POD -- id tells both)"
                .to_owned()
        } else if says(&["eperm", "eacces", "not permitted", "permission", "cap_"]) {
            format!(
                "the helper {here} lacks a right: try --privileged, or let its namespace allow the capabilities of docs/security.md"
            )
        } else if says(&[
            "was not read",
            "could not be read",
            "no helper",
            "not reachable",
            "not be listed",
        ]) {
            format!(
                "see on stderr or under unknown why that could not be read {here}, mend that, and ask again"
            )
        } else {
            format!(
                "netpath does not follow this: --probe sends a packet and shows what becomes of it, or send one yourself and watch it {here}: {}",
                self.typed(&format!("tcpdump -ni any host {}", self.innermost()))
            )
        }
    }

    /// What opens a bridge port, for each way of being closed.
    pub(super) fn open_port(&self, reason: DropReason) -> String {
        let here = self.here();
        let port = self
            .step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::Link { dev, .. } => Some(dev.clone()),
                _ => None,
            });
        let port = port
            .or_else(|| self.hop.iif.clone())
            .unwrap_or_else(|| "PORT".to_owned());
        let show = self.typed(&format!("bridge -d link show dev {port}"));
        let set = |what: &str| self.typed(&format!("bridge link set dev {port} {what}"));
        let known = (reason == DropReason::BridgeNoPort).then(|| self.behind_no_port());
        if let Some(mend) = known.flatten() {
            return mend;
        }
        match reason {
            DropReason::BridgePortState => format!(
                "{here}: {show} tells the port's state; without STP: {}, else look for the loop that STP cuts",
                set("state 3")
            ),
            DropReason::BridgeIsolated => {
                format!(
                    "{here}: {}, unless the isolation is meant",
                    set("isolated off")
                )
            }
            DropReason::VlanFilter => format!(
                "{here}: {} lists what the port takes; allow the frame's VLAN there",
                self.typed(&format!("bridge vlan show dev {port}"))
            ),
            _ => format!(
                "{here}: {} shows no port for the address: is the pod's device a port of the bridge ({}), and does flooding reach it ({})?",
                self.typed("bridge fdb show"),
                self.typed("bridge link show"),
                set("flood on")
            ),
        }
    }

    /// What removes a route or policy rule that refuses.
    fn remove_refusal(&self, packet: &Packet) -> String {
        let here = self.here();
        let ip = self.ip();
        let rule = self
            .step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::PolicyRule { rule } if refuses(rule) => Some(rule),
                _ => None,
            });
        if let Some(rule) = rule {
            let del = self.typed(&format!("{ip} rule del pref {}", rule.priority));
            return format!(
                "{here}: {del} (it reads: {}), once you know who set it",
                words::rule(rule)
            );
        }
        let route = self
            .step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::Route { route, .. } if no_way(route) => {
                    Some(words::route_typed(route, &|index| {
                        self.naming.dev(&self.hop.ns, index)
                    }))
                }
                _ => None,
            });
        let del = route.map_or_else(
            || "remove it".to_owned(),
            |route| self.typed(&format!("{ip} route del {route}")),
        );
        // A table that somebody's rule leads to has no pods' routes to be missing.
        let led = self
            .step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::PolicyRule { rule } if rule.fwmark.is_some() && !rule.invert => {
                    Some(rule)
                }
                _ => None,
            });
        if let Some(rule) = led {
            if let Some(marks) = self.marked_by(rule) {
                return format!(
                    "{here}: a policy rule leads there by the packet's mark ({}), which this rule sets: {marks}; correct that one, or, where this route is not to be: {del}",
                    words::rule(rule)
                );
            }
            return format!(
                "{here}: a policy rule leads there by the packet's mark ({}): see which rule marks it ({}), or, where this route is not to be: {del}",
                words::rule(rule),
                self.typed("nft list ruleset | grep -w mark; iptables-legacy-save | grep -i mark")
            );
        }
        format!(
            "{here}: the longer route for {} is missing (recreate the pod, or restart the CNI's agent); where this one is not to be: {del}",
            packet.dst
        )
    }

    /// The last rule here that gave the packet's mark what a policy rule asks for.
    fn marked_by(&self, by: &Rule) -> Option<String> {
        let (value, mask) = by.fwmark?;
        let asked = |mark: &str| {
            let mark = u32::from_str_radix(mark.strip_prefix("0x")?, 16).ok()?;
            Some(mark & mask == value & mask)
        };
        let mut steps = self.hop.steps.iter().rev();
        let step = steps.find(|step| {
            let mut marks = step.changes.iter().filter(|change| change.field == "mark");
            marks
                .any(|change| (asked(&change.from), asked(&change.to)) == (Some(false), Some(true)))
        })?;
        let mut rules = step.evidence.iter().rev();
        let rule = rules.find(|one| one.rule().is_some())?;
        Some(self.naming.text(&object(self.naming, self.hop, rule)))
    }

    /// Whether this is a pod without a default route.
    fn lacks_default(&self, packet: &Packet) -> bool {
        let pod = self.ns().filter(|ns| ns.identity.pod_uid.is_some());
        let routes = pod.and_then(|ns| ns.routes.known());
        routes.is_some_and(|routes| {
            let mut own = routes
                .iter()
                .filter(|route| route.dst.addr().is_ipv4() == packet.dst.is_ipv4());
            !own.any(|route| route.dst.len() == 0)
        })
    }

    /// What to do where the frame's address is right, and a bridge's entry led it to another station.
    fn misforwarded(&self, packet: &Packet) -> Option<String> {
        let mac = self.trace.packet.eth.map(|(_, dst)| dst)?;
        let holders = self.naming.holders(packet.dst);
        let [holder] = holders.as_slice() else {
            return None;
        };
        let links = self.naming.topology.netns(holder)?.links.known()?;
        let met = self.trace.steps();
        let mut entries = met
            .flat_map(|(hop, step)| step.evidence.iter().map(move |one| (hop, one)))
            .filter_map(|(hop, one)| match one {
                Evidence::Fdb { fdb, dev } if fdb.master.is_some() && fdb.mac == mac => {
                    Some((hop, fdb, dev))
                }
                _ => None,
            });
        // Of several bridges in a row, any may be the one that is wrong.
        let (hop, fdb, dev) = entries.next().filter(|_| entries.next().is_none())?;
        if !links.iter().any(|link| link.mac == Some(mac)) {
            return None;
        }
        let del = format!("bridge fdb del {} dev {dev} master", fdb.mac);
        Some(format!(
            "on {}: {} is the address of {} on {}, and this bridge's entry leads to another port: {}",
            hop.ns.node,
            fdb.mac,
            self.naming.netns(holder),
            holder.node,
            self.naming.typed(&hop.ns, &del)
        ))
    }

    /// Who sent the frame, and by which neighbour entry.
    pub(super) fn believed(&self) -> Option<(NsKey, IpAddr, String)> {
        self.trace.hops.iter().rev().find_map(|hop| {
            let found = hop.steps.iter().rev().flat_map(|step| &step.evidence);
            let mut entries = found.filter_map(|evidence| match evidence {
                Evidence::Neigh { neigh, dev } => Some((hop.ns.clone(), neigh.dst, dev.clone())),
                _ => None,
            });
            entries.next()
        })
    }

    pub(super) fn too_big(&self, mtu: Option<u32>) -> (Code, String) {
        if let Some((dev, most, true)) = self.too_narrow_a_way(mtu) {
            let mend = format!(
                "lower the pods' MTU to {most} bytes or less in the CNI's configuration and recreate them, or raise the MTU of the link below {dev}; {dev} itself, a bridge's port, would tell nobody with less"
            );
            return (codes::MTU, mend);
        }
        if let Some((dev, most, false)) = self.too_narrow_a_way(mtu) {
            let own = format!("ip link set dev {dev} mtu {most}");
            let mend = format!(
                "lower the MTU of {dev} to what its way leaves, {most} bytes, so that senders are told (by hand: {}), and in the CNI's configuration, for pods too; or raise the MTU of the link below",
                self.typed(&own)
            );
            return (codes::MTU, mend);
        }
        let limit = mtu
            .map(|mtu| format!(" to {mtu} bytes or less"))
            .unwrap_or_default();
        let mend = format!(
            "lower the pods' MTU{limit} in the CNI's configuration and recreate them, or raise the MTU {}",
            self.here()
        );
        (codes::MTU, mend)
    }

    /// A tunnel's device that takes more than the way of its outer packets, what that leaves, and whether it is a
    /// bridge's port.
    fn too_narrow_a_way(&self, told: Option<u32>) -> Option<(String, u32, bool)> {
        let mut devices = self.step.evidence.iter().filter_map(|one| match one {
            Evidence::Link { dev, state } => Some((self.ns()?.link_named(dev)?, state)),
            _ => None,
        });
        let ((lower, limit), (tunnel, _)) = (devices.next()?, devices.next()?);
        let outer = &self.trace.packet;
        let around = outer.len.checked_sub(outer.inner.as_ref()?.packet.len)?;
        // Of a route's limit, only what the sender is told is known here.
        let by_device = *limit == format!("mtu {}", lower.mtu);
        let most = told.or_else(|| lower.mtu.checked_sub(around).filter(|_| by_device))?;
        let port = tunnel.master.is_some();
        (self.step.kind == StepKind::Mtu).then(|| (tunnel.name.clone(), most, port))
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
        if self.down().is_some() || self.switched_off().is_some() {
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
        if let Some(mend) = self.no_port() {
            return (codes::BRIDGE_BLOCKS, mend);
        }
        if let Some(stray) = self.stray(packet) {
            return (codes::NEIGH_UNRESOLVED, self.stray_mend(&stray, packet));
        }
        let (hop, dev) = (self.next_hop(), self.way_out());
        let owner = match self.naming.address(hop) {
            Some(owner) => format!("see that {owner} is up and on the link of {dev}"),
            None if hop == packet.dst => {
                format!("nothing that was read has {hop}: is the address right?")
            }
            None => format!("see that the gateway {hop} is up and on the link of {dev}"),
        };
        let stale = |evidence: &Evidence| matches!(evidence, Evidence::Neigh { .. });
        let flush = if self.step.evidence.iter().any(stale) {
            let flush = format!("{} neigh flush to {hop} dev {dev}", self.ip());
            format!(
                "; where it is, and the entry is stale: {}",
                self.typed(&flush)
            )
        } else {
            String::new()
        };
        let mend = format!("{}: {owner}{flush}", self.here());
        (codes::NEIGH_UNRESOLVED, mend)
    }

    pub(super) fn tunnel(&self) -> (Code, String) {
        if let (StepKind::Decap, [Evidence::Link { dev, state }]) =
            (self.step.kind, self.step.evidence.as_slice())
            && (state == "down" || state.contains(" remote "))
        {
            let mend = if state == "down" {
                let up = self.typed(&format!("ip link set {dev} up"));
                format!("{}: {up}; see what took it down", self.here())
            } else {
                format!(
                    "{dev} {} takes only what its own remote sends ({state}): give it the sender's address, or have the sender send from that one",
                    self.here()
                )
            };
            return (codes::STALE_TUNNEL, mend);
        }
        if self.step.kind == StepKind::Decap {
            let mend = format!(
                "give both nodes' tunnels the same network number and port: compare ip -d link {} with the sender's (the CNI's configuration sets both), then restart the CNI's agent on the node that differs",
                self.here()
            );
            return (codes::STALE_TUNNEL, mend);
        }
        let mend = format!(
            "restart the CNI's agent {}, which writes the tunnel's neighbour and fdb entries anew; compare them with the remote's own address (ip -d link)",
            self.here()
        );
        (codes::STALE_TUNNEL, mend)
    }

    pub(super) fn other_station(&self, packet: &Packet) -> (Code, String) {
        // The entry of a tunnel's outer packet is no tunnel's.
        if self.in_tunnel() && self.step.kind != StepKind::Underlay {
            return self.tunnel();
        }
        if let Some(mend) = self.misforwarded(packet) {
            return (codes::WRONG_MAC, mend);
        }
        let believed = self.believed();
        let mend = match believed {
            Some((sender, dst, dev)) => format!(
                "on {}: {}; then see what set the entry or changed the device's address",
                sender.node,
                self.naming
                    .typed(&sender, &format!("{} neigh del {dst} dev {dev}", self.ip()))
            ),
            None => format!(
                "remove the neighbour entry for {} at the sender, and see what set it or changed the device's address",
                packet.dst
            ),
        };
        (codes::WRONG_MAC, mend)
    }

    pub(super) fn has_route_kind(&self) -> bool {
        self.step.evidence.iter().any(|evidence| match evidence {
            Evidence::Route { route, .. } => no_way(route),
            Evidence::PolicyRule { rule } => refuses(rule),
            _ => false,
        })
    }

    pub(super) fn no_route(&self, packet: &Packet) -> (Code, String) {
        let here = self.here();
        if self.has_route_kind() {
            return (codes::ROUTE_REFUSES, self.remove_refusal(packet));
        }
        let leads_elsewhere = Disposition::Dropped(DropReason::NoRouteToNode);
        if self.trace.disposition != leads_elsewhere && self.switched_off().is_some() {
            return self.link_down();
        }
        if let Some(stray) = self.stray(packet) {
            return (codes::NO_ROUTE, self.stray_mend(&stray, packet));
        }
        if self.lacks_default(packet) {
            let add = format!("{} route add default via GATEWAY dev DEVICE", self.ip());
            let mend = format!(
                "{here}: there is no default route, which the CNI plugin makes as a pod starts: recreate the pod, or by hand: {}",
                self.typed(&add)
            );
            return (codes::NO_ROUTE, mend);
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
            _ => {
                let dev = self.hop.iif.as_deref().filter(|_| self.hop.oif.is_none());
                let check = match dev {
                    Some(dev) => format!(
                        "{} route get {} from {} iif {dev}",
                        self.ip(),
                        packet.dst,
                        packet.src
                    ),
                    None => format!("{} route get {}", self.ip(), packet.dst),
                };
                format!(
                    "{here}: {} shows the same; restart what should have added the route (the CNI's agent), or by hand: {}",
                    self.typed(&check),
                    self.typed(&format!(
                        "{} route add {} via GATEWAY",
                        self.ip(),
                        packet.dst
                    ))
                )
            }
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
        let before = self.trace.hops.iter().rev();
        let before = before.skip_while(|hop| hop.ns == self.hop.ns);
        let routed = before
            .flat_map(|hop| hop.steps.iter().rev().map(move |step| (hop, step)))
            .find(|(_, step)| step.kind == StepKind::Route);
        let sender = routed.map_or_else(String::new, |(hop, step)| {
            let place = self.naming.netns(&hop.ns);
            format!(
                "{place} on {} sent it here ({}); ",
                hop.ns.node, step.result
            )
        });
        let mend = format!(
            "{} does not hold {}; {owner}; {sender}mend that route, remove an old device here, or, where two pods have one address, delete one",
            self.naming.netns(&self.hop.ns),
            packet.dst
        );
        (codes::WRONG_OWNER, mend)
    }

    /// A pod whose address a packet is for, where another namespace took it, and the address by which that did.
    pub(super) fn taken_here(&self, packet: &Packet) -> Option<(&'a PodName, &'a Addr)> {
        let ns = self.ns()?;
        let pod = self.naming.names.pod_by_ip(packet.dst)?;
        let other = match &ns.identity.pod_uid {
            Some(uid) => *uid != pod.uid,
            // Whose else it is may just not be known.
            None => ns.identity.host,
        };
        if !other {
            return None;
        }
        let addrs = ns.addrs.known()?;
        let held = addrs.iter().find(|addr| addr.local == packet.dst)?;
        Some((pod, held))
    }

    pub(super) fn no_listener(&self, packet: &Packet) -> (Code, String) {
        let here = self.here();
        if let Some((pod, held)) = self.taken_here(packet) {
            let dev = self.ns().and_then(|ns| ns.link(held.link));
            let dev = dev.map_or_else(|| held.link.to_string(), |link| link.name.clone());
            let mend = format!(
                "{here}: {}: the address is that of pod {}/{}, which gets nothing that is sent from here",
                self.typed(&format!(
                    "{} addr del {}/{} dev {dev}",
                    self.ip(),
                    held.local,
                    held.prefix_len
                )),
                pod.namespace,
                pod.name
            );
            return (codes::DUPLICATE_ADDRESS, mend);
        }
        if let Some((name, value)) = self.setting() {
            let mend = format!(
                "{here}: {}, or trace a port (:PORT): {name} = {value} says nothing of connections",
                self.typed(&words::sysctl(name, 0))
            );
            return (codes::SWALLOWED, mend);
        }
        let port = packet.dport();
        let devices = self.bound_to_devices();
        if !devices.is_empty() {
            let mend = format!(
                "{here}: the program takes packets from {} only, this one came in by {}: take the binding off (SO_BINDTODEVICE; its setting may be called interface, device or vrf), or send by that device; check: {}",
                devices.join(" and "),
                self.came_by(),
                self.typed(&format!("ss -ltunp sport = :{}", port.unwrap_or_default()))
            );
            return (codes::LISTENER_ELSEWHERE, mend);
        }
        let sockets = self.ns().and_then(|ns| ns.sockets.known());
        let elsewhere = self.bound_elsewhere();
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
                "{here}: start what should listen on {wanted}, or correct the port or targetPort{listening}; check: {}",
                self.typed("ss -ltunp")
            );
            return (codes::NO_LISTENER, mend);
        }
        let mend = format!(
            "{here}: the program listens on {} only; let it listen on {} (its setting may be called bind, host or listen); check: {}",
            elsewhere.join(" and "),
            if packet.dst.is_ipv4() {
                "0.0.0.0"
            } else {
                "::"
            },
            self.typed(&format!("ss -ltunp sport = :{}", port.unwrap_or_default()))
        );
        (codes::LISTENER_ELSEWHERE, mend)
    }

    pub(super) fn link_down(&self) -> (Code, String) {
        let (key, dev) = match self.down_end() {
            Some((key, dev, _)) => (key, dev),
            None => (self.hop.ns.clone(), self.dev()),
        };
        let up = self.naming.typed(&key, &format!("ip link set {dev} up"));
        let here = self.within(&key);
        let link = self.naming.topology.netns(&key);
        let link = link.and_then(|ns| ns.link_named(&dev));
        let both = match link.map(|link| &link.kind) {
            Some(LinkKind::Veth) => " (a veth needs both ends up)",
            _ => "",
        };
        (codes::LINK_DOWN, format!("{here}: {up}{both}"))
    }

    pub(super) fn not_from_peer(&self) -> (Code, String) {
        if let Some((hop, name)) = self.bypassing_bridge() {
            let mend = format!(
                "on {}: modprobe br_netfilter; sysctl -w {name}=1",
                hop.ns.node
            );
            return (codes::BRIDGE_NF_OFF, mend);
        }
        let mut steps = self.trace.steps();
        let by_rule = steps.find_map(|(hop, step)| {
            let source = step.changes.iter().find(|change| change.field == "src")?;
            let rule = step.evidence.iter().find_map(Evidence::rule)?;
            Some((hop, source, rule))
        });
        if let Some((hop, source, rule)) = by_rule {
            let mend = format!(
                "{}: {rule} gives the answer the source {}: let it leave out answers from {}",
                self.within(&hop.ns),
                source.to,
                source.from
            );
            return (codes::NOT_FROM_PEER, mend);
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
