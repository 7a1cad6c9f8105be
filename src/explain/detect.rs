//! Which finding follows from how a trace ended.
//!
//! The disposition and the evidence of the last step decide; what a CNI is supposed to do never does.
//! Chain and map names of kube-proxy and of policy engines only tell apart who made a rule that was
//! met anyway.

use crate::model::netfilter::{Backend, Hook, Policy};
use crate::model::netns::NetNs;
use crate::model::packet::Packet;
use crate::model::route::RouteKind;
use crate::model::rule::RuleAction;
use crate::trace::evidence::ChainRef;
use crate::trace::{Disposition, DropReason, Evidence, Hop, RejectWith, Step, StepKind, Trace};

use super::codes::{self, Code, Severity};
use super::naming::Naming;
use super::steps::{base_name, object, words_of};
use super::{Finding, Place, words};

/// What is wrong with one trace and with the way of its answer.
pub(super) fn of_trace(naming: &Naming<'_>, trace: &Trace) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut way = Some(trace);
    let mut answer = false;
    while let Some(trace) = way {
        if let Some(cause) = Case::of(naming, trace, answer).and_then(|case| case.finding()) {
            findings.push(cause);
        }
        findings.extend(stale_conntrack(naming, trace));
        way = trace.reply.as_deref();
        answer = true;
    }
    findings
}

/// The end of a trace that did not arrive.
struct Case<'a> {
    naming: &'a Naming<'a>,
    trace: &'a Trace,
    hop: &'a Hop,
    step: &'a Step,
    answer: bool,
}

impl<'a> Case<'a> {
    fn of(naming: &'a Naming<'a>, trace: &'a Trace, answer: bool) -> Option<Self> {
        let (hop, step) = trace.last_step()?;
        Some(Self {
            naming,
            trace,
            hop,
            step,
            answer,
        })
    }

    fn finding(&self) -> Option<Finding> {
        let (code, mend) = match &self.trace.disposition {
            Disposition::Delivered | Disposition::LeavesCluster => return None,
            Disposition::Dropped(reason) => self.dropped(*reason),
            Disposition::Rejected(how) => self.rejected(*how),
            Disposition::Loop => (
                codes::LOOP,
                format!(
                    "compare the routes for {} on every node of the circle: the node that owns it needs its own route, the others one to that node",
                    self.packet().dst
                ),
            ),
            Disposition::Inconclusive(_) => (
                codes::UNKNOWN,
                "give the helper the right that it lacks (see unknown), or look at that place by hand"
                    .to_owned(),
            ),
        };
        let severity = match self.trace.disposition {
            Disposition::Inconclusive(_) => Severity::Warning,
            _ => Severity::Error,
        };
        let mut evidence: Vec<String> = Vec::new();
        if self.answer {
            evidence.push("the request arrives; it is the answer that fails".to_owned());
        }
        // A rule is spelled out by its own line below.
        let by_rule = self.rule().is_some_and(|(_, by_policy)| !by_policy);
        let words = if by_rule {
            self.step.result.clone()
        } else {
            words_of(self.naming, self.hop, self.step)
        };
        if !words.is_empty() {
            evidence.push(self.naming.text(&words));
        }
        // Rules that only led to the deciding one are in the trace.
        let leading = self.step.evidence.len().saturating_sub(1);
        let by_rules = matches!(self.step.kind, StepKind::Netfilter | StepKind::Nat);
        let objects = self
            .step
            .evidence
            .iter()
            .skip(if by_rules { leading } else { 0 });
        evidence.extend(
            objects
                .rev()
                .take(3)
                .map(|e| object(self.naming, self.hop, e)),
        );
        let mut place = self.place();
        if code == codes::BRIDGE_NF_OFF
            && let Some((hop, name)) = self.bypassing_bridge()
        {
            place = Place {
                node: hop.ns.node.clone(),
                netns: self.naming.netns(&hop.ns),
                object: Some(name.to_owned()),
            };
            evidence.push(format!("sysctl {name} is not 1 there"));
        }
        Some(Finding {
            code,
            severity,
            place,
            evidence,
            mend,
            branches: Vec::new(),
        })
    }

    fn place(&self) -> Place {
        let object = self
            .step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::Link { dev, .. }
                | Evidence::Neigh { dev, .. }
                | Evidence::Fdb { dev, .. } => Some(dev.clone()),
                Evidence::Chain { chain, .. } => Some(base_name(chain)),
                Evidence::NetfilterRule { base, .. } => Some(base_name(base)),
                Evidence::Sysctl { name, .. } => Some(name.clone()),
                _ => None,
            });
        Place {
            node: self.hop.ns.node.clone(),
            netns: self.naming.netns(&self.hop.ns),
            object: object.or_else(|| self.hop.oif.clone().or_else(|| self.hop.iif.clone())),
        }
    }

    /// The packet as it was where it ended: the tunnel's, where it was in one.
    fn packet(&self) -> Packet {
        self.trace.packet.clone()
    }

    /// What the last step looked at is a tunnel packet between nodes.
    fn is_outer(&self) -> bool {
        self.trace.packet.inner.is_some()
    }

    fn ns(&self) -> Option<&'a NetNs> {
        self.naming.topology.netns(&self.hop.ns)
    }

    fn here(&self) -> String {
        match self.naming.netns(&self.hop.ns).as_str() {
            "host" => format!("on {}", self.hop.ns.node),
            other => format!("in {other} on {}", self.hop.ns.node),
        }
    }

    fn dev(&self) -> String {
        self.hop
            .iif
            .clone()
            .or_else(|| self.hop.oif.clone())
            .unwrap_or_else(|| "DEVICE".to_owned())
    }

    fn dropped(&self, reason: DropReason) -> (Code, String) {
        let packet = self.packet();
        let here = self.here();
        match reason {
            DropReason::NetfilterDrop | DropReason::NotSpecified => self.filtered(),
            DropReason::ForwardingOff | DropReason::IpInnoroutes if self.misled(&packet) => {
                self.wrong_owner(&packet)
            }
            DropReason::ForwardingOff => {
                let name = if packet.dst.is_ipv4() {
                    "net.ipv4.ip_forward"
                } else {
                    "net.ipv6.conf.all.forwarding"
                };
                let mend = format!(
                    "{here}: sysctl -w {name}=1, and find the file in /etc/sysctl.d that switches it off"
                );
                (codes::FORWARDING_OFF, mend)
            }
            DropReason::IpRpfilter => {
                // The setting names the device: behind a tunnel it is not the one of the frame.
                let of_setting = self
                    .step
                    .evidence
                    .iter()
                    .find_map(|evidence| match evidence {
                        Evidence::Sysctl { name, .. } => name
                            .strip_prefix("net.ipv4.conf.")?
                            .strip_suffix(".rp_filter")
                            .filter(|dev| *dev != "all"),
                        _ => None,
                    });
                let dev = of_setting.map_or_else(|| self.dev(), str::to_owned);
                let mend = format!(
                    "{here}: route {} by {dev}, or make the check loose: sysctl -w net.ipv4.conf.{dev}.rp_filter=2",
                    packet.src
                );
                (codes::RP_FILTER, mend)
            }
            DropReason::PktTooBig => self.too_big(None),
            DropReason::NeighFailed => self.unresolved(&packet),
            DropReason::Otherhost => self.other_station(&packet),
            DropReason::VxlanNoRemote | DropReason::VxlanVniNotFound => self.tunnel(),
            DropReason::IpInnoroutes | DropReason::IpOutnoroutes | DropReason::NoRouteToNode => {
                self.no_route(&packet)
            }
            DropReason::NoSocket => self.no_listener(&packet),
            DropReason::DevReady => self.link_down(),
            DropReason::BridgeHairpinOff => {
                let port = self.hop.iif.clone().unwrap_or_else(|| "PORT".to_owned());
                let mend = format!(
                    "{here}: bridge link set dev {port} hairpin on, and \"hairpinMode\": true in the CNI's configuration"
                );
                (codes::HAIRPIN_OFF, mend)
            }
            DropReason::BridgePortState
            | DropReason::BridgeIsolated
            | DropReason::BridgeNoPort
            | DropReason::VlanFilter => {
                let mend = format!(
                    "{here}: look at the port with bridge -d link, bridge vlan, bridge fdb; the trace names it"
                );
                (codes::BRIDGE_BLOCKS, mend)
            }
            DropReason::NotFromPeer => self.not_from_peer(),
            DropReason::IpLocalSource | DropReason::IpInvalidSource | DropReason::IpLocalnet => {
                let mend = format!(
                    "{here}: see who sends from {} to {}, and whether a translation is missing or wrong",
                    packet.src, packet.dst
                );
                (codes::MARTIAN, mend)
            }
        }
    }

    fn rejected(&self, how: RejectWith) -> (Code, String) {
        let packet = self.packet();
        match how {
            RejectWith::TcpReset | RejectWith::Icmp(_) => self.filtered(),
            RejectWith::PortClosed | RejectWith::PortUnreachable => {
                if self.rule().is_some() {
                    return self.filtered();
                }
                self.no_listener(&packet)
            }
            RejectWith::HostUnreachable if !self.has_route_kind() => self.unresolved(&packet),
            RejectWith::NetUnreachable
            | RejectWith::HostUnreachable
            | RejectWith::Prohibited
            | RejectWith::InvalidArgument => self.no_route(&packet),
            RejectWith::TooBig(mtu) => self.too_big(Some(mtu)),
            RejectWith::TtlExceeded => (
                codes::LOOP,
                format!(
                    "compare the routes for {} on every node of the circle",
                    packet.dst
                ),
            ),
        }
    }

    /// Base chain and hook of the deciding rule or policy.
    fn rule(&self) -> Option<(&'a ChainRef, bool)> {
        self.step
            .evidence
            .iter()
            .rev()
            .find_map(|evidence| match evidence {
                Evidence::NetfilterRule { base, .. } => Some((base, false)),
                Evidence::Chain {
                    chain,
                    policy: Some(Policy::Drop),
                    ..
                } => Some((chain, true)),
                _ => None,
            })
    }

    fn filtered(&self) -> (Code, String) {
        let here = self.here();
        let Some((base, by_policy)) = self.rule() else {
            return (codes::FILTERED, format!("{here}: {}", self.step.result));
        };
        if let Some(service) = self.no_endpoint() {
            let mend = format!(
                "kubectl get endpointslices: look for ready endpoints of {service}; compare its selector with the pods' labels, its targetPort with their ports, and its traffic policy with where they run"
            );
            return (codes::NO_ENDPOINT, mend);
        }
        let chains: Vec<&str> = self.chains().collect();
        if self.step.evidence.iter().any(|evidence| {
            matches!(evidence, Evidence::NetfilterRule { text, .. }
                if text.contains("rpfilter") || text.contains("fib saddr"))
        }) {
            let mend = format!(
                "{here}: route {} by {}, or change the rule",
                self.packet().src,
                self.dev()
            );
            return (codes::RP_FILTER, mend);
        }
        if self.is_outer() {
            let mend = format!(
                "{here}: accept the tunnel's packets from {} before this rule (UDP {})",
                self.packet().src,
                self.packet().dport().unwrap_or(0)
            );
            return (codes::TUNNEL_FILTERED, mend);
        }
        let policy_engine = [
            "cali-tw-",
            "cali-fw-",
            "cali-pi-",
            "cali-po-",
            "KUBE-NWPLCY",
            "KUBE-POD-FW",
            "kube-network-policies",
        ];
        if chains
            .iter()
            .any(|chain| policy_engine.iter().any(|p| chain.starts_with(p)))
        {
            let mend = "kubectl get networkpolicies -A: add an allow for this flow at the end that refuses it; where one exists, restart the policy agent on this node".to_owned();
            return (codes::POLICY_DENIES, mend);
        }
        let accept = self.accept(base, by_policy);
        if base.hook == Hook::Forward {
            (codes::FORWARD_FILTERED, format!("{here}: {accept}"))
        } else {
            (codes::FILTERED, format!("{here}: {accept}"))
        }
    }

    fn chains(&self) -> impl Iterator<Item = &'a str> {
        self.step
            .evidence
            .iter()
            .filter_map(|evidence| match evidence {
                Evidence::NetfilterRule { chain, .. } => Some(chain.as_str()),
                _ => None,
            })
    }

    /// The Service whose rule says that it has no endpoint, where that is what was met.
    fn no_endpoint(&self) -> Option<String> {
        let says = |text: &str| {
            text.contains("has no endpoints") || text.contains("has no local endpoints")
        };
        self.step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::NetfilterRule {
                    comment: Some(comment),
                    ..
                } if says(comment) => comment.split_whitespace().next().map(str::to_owned),
                Evidence::NetfilterRule { text, .. } if says(text) => {
                    Some("the Service".to_owned())
                }
                Evidence::SetElement { set, .. } if set.starts_with("no-endpoint-") => Some(
                    self.naming
                        .address(self.packet().dst)
                        .unwrap_or_else(|| "the Service".to_owned()),
                ),
                _ => None,
            })
    }

    /// A command that lets the packet through.
    fn accept(&self, base: &ChainRef, by_policy: bool) -> String {
        let packet = self.packet();
        let tool = match (base.backend, packet.dst.is_ipv4()) {
            (Backend::Legacy, true) => "iptables-legacy",
            (Backend::Legacy, false) => "ip6tables-legacy",
            (Backend::Nft, true) => "iptables",
            (Backend::Nft, false) => "ip6tables",
        };
        let own = base.chain == base.chain.to_uppercase();
        match (own, by_policy) {
            (true, true) => format!(
                "{tool} -t {} -P {} ACCEPT, or accept this flow: {tool} -t {} -A {} -s {} -d {} -j ACCEPT (and the way back)",
                base.table, base.chain, base.table, base.chain, packet.src, packet.dst
            ),
            (true, false) => format!(
                "accept the flow before that rule: {tool} -t {} -I {} -s {} -d {} -j ACCEPT (and the way back), or remove the rule once you know who set it",
                base.table, base.chain, packet.src, packet.dst
            ),
            (false, true) => format!(
                "nft chain {} {} {} '{{ policy accept; }}', or an accept rule for {} to {}",
                base.family.name(),
                base.table,
                base.chain,
                packet.src,
                packet.dst
            ),
            (false, false) => format!(
                "put an accept for {} to {} before that rule of table {} {}, or remove it once you know who set it",
                packet.src,
                packet.dst,
                base.family.name(),
                base.table
            ),
        }
    }

    fn too_big(&self, mtu: Option<u32>) -> (Code, String) {
        let limit = mtu
            .map(|mtu| format!(" to {mtu} bytes or less"))
            .unwrap_or_default();
        let mend = format!(
            "lower the pods' MTU{limit} in the CNI's configuration and recreate them, or raise the MTU {}",
            self.here()
        );
        (codes::MTU, mend)
    }

    fn in_tunnel(&self) -> bool {
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

    fn unresolved(&self, packet: &Packet) -> (Code, String) {
        let down = |evidence: &Evidence| matches!(evidence, Evidence::Link { .. });
        if self.step.evidence.iter().any(down) {
            return self.link_down();
        }
        if self.in_tunnel() {
            return self.tunnel();
        }
        let mend = format!(
            "{}: is the next hop for {} alive and on this link? ip neigh show; where the entry is stale: ip neigh flush dev {}",
            self.here(),
            packet.dst,
            self.hop.oif.clone().unwrap_or_else(|| "DEVICE".to_owned())
        );
        (codes::NEIGH_UNRESOLVED, mend)
    }

    fn tunnel(&self) -> (Code, String) {
        let mend = format!(
            "restart the CNI's agent {}, which writes the tunnel's neighbour and fdb entries anew; compare them with the remote's own address (ip -d link)",
            self.here()
        );
        (codes::STALE_TUNNEL, mend)
    }

    fn other_station(&self, packet: &Packet) -> (Code, String) {
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

    fn has_route_kind(&self) -> bool {
        self.step.evidence.iter().any(|evidence| match evidence {
            Evidence::Route { route, .. } => {
                !matches!(route.kind, RouteKind::Unicast | RouteKind::Local)
            }
            Evidence::PolicyRule { rule } => !matches!(rule.action, RuleAction::Table(_)),
            _ => false,
        })
    }

    fn no_route(&self, packet: &Packet) -> (Code, String) {
        let here = self.here();
        if self.has_route_kind() {
            let mend = format!(
                "{here}: the longer route for {} is missing (recreate the pod, or restart the CNI's agent), or this route is to be removed",
                packet.dst
            );
            return (codes::ROUTE_REFUSES, mend);
        }
        let mend = match self.naming.node_of(packet.dst) {
            Some(node) if node != self.hop.ns.node => format!(
                "{here}: add the route to {node}, where {} is, or restart the CNI's agent, which should have: ip route add {}/{} via ADDRESS_OF_{node}",
                packet.dst,
                packet.dst,
                if packet.dst.is_ipv4() { 32 } else { 128 }
            ),
            _ => format!("{here}: add a route for {}: ip route add", packet.dst),
        };
        (codes::NO_ROUTE, mend)
    }

    /// A namespace that is no node's was to forward, and does not hold the address.
    fn misled(&self, packet: &Packet) -> bool {
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

    fn wrong_owner(&self, packet: &Packet) -> (Code, String) {
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

    fn no_listener(&self, packet: &Packet) -> (Code, String) {
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

    fn link_down(&self) -> (Code, String) {
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

    fn not_from_peer(&self) -> (Code, String) {
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
    fn bypassing_bridge(&self) -> Option<(&'a Hop, &'static str)> {
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

/// Existing entries that translate to an address which is no endpoint of the Service asked for.
fn stale_conntrack(naming: &Naming<'_>, trace: &Trace) -> Vec<Finding> {
    let mut findings = Vec::new();
    for hop in &trace.hops {
        for evidence in hop.steps.iter().flat_map(|step| &step.evidence) {
            let Evidence::Conntrack {
                entry,
                existing: true,
            } = evidence
            else {
                continue;
            };
            let Some(service) = naming.names.service_by_ip(entry.orig.dst) else {
                continue;
            };
            let fits = service.endpoints.iter().any(|endpoint| {
                endpoint.ip == entry.reply.src && (endpoint.ready || endpoint.serving)
            });
            if fits {
                continue;
            }
            findings.push(Finding {
                code: codes::STALE_CONNTRACK,
                severity: Severity::Error,
                place: Place {
                    node: hop.ns.node.clone(),
                    netns: naming.netns(&hop.ns),
                    object: None,
                },
                evidence: vec![object(naming, hop, evidence)],
                mend: format!(
                    "on {}: conntrack -D -p {} --orig-dst {} --orig-port-dst {}",
                    hop.ns.node,
                    words::protocol(entry.orig.protocol),
                    entry.orig.dst,
                    entry.orig.dport.unwrap_or(0)
                ),
                branches: Vec::new(),
            });
        }
    }
    findings
}
