//! Which finding follows from how a trace ended.
//!
//! The disposition and the evidence of the last step decide; what a CNI is supposed to do never does.
//! Chain and map names of kube-proxy and of policy engines only tell apart who made a rule that was
//! met anyway.

mod down;
mod filter;
mod port;
mod reach;
mod service;
mod stray;
mod title;

use crate::model::NsKey;
use crate::model::netfilter::Policy;
use crate::model::netns::NetNs;
use crate::model::packet::Packet;
use crate::trace::evidence::ChainRef;
use crate::trace::{Disposition, DropReason, Evidence, Hop, RejectWith, Step, StepKind, Trace};

pub(super) use service::UNTAKEN;

use super::codes::{self, Code, Severity};
use super::naming::Naming;
use super::steps::{base_name, object, words_of};
use super::words;
use super::{Finding, Place, existing};

/// What is wrong with one trace and with the way of its answer.
pub(super) fn of_trace(naming: &Naming<'_>, trace: &Trace) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut way = Some(trace);
    let mut turn = 0;
    while let Some(trace) = way {
        if let Some(cause) = Case::of(naming, trace, turn).and_then(|case| case.finding()) {
            findings.push(cause);
        }
        findings.extend(stale_conntrack(naming, trace));
        way = trace.reply.as_deref();
        turn += 1;
    }
    findings
}

/// The end of a trace that did not arrive.
struct Case<'a> {
    naming: &'a Naming<'a>,
    trace: &'a Trace,
    hop: &'a Hop,
    step: &'a Step,
    /// Position of the packet in the exchange: 0 the question, 1 the answer, then one more of each side.
    turn: usize,
}

impl<'a> Case<'a> {
    fn of(naming: &'a Naming<'a>, trace: &'a Trace, turn: usize) -> Option<Self> {
        let (hop, step) = trace.last_step()?;
        Some(Self {
            naming,
            trace,
            hop,
            step,
            turn,
        })
    }

    fn finding(&self) -> Option<Finding> {
        let untranslated = self.untranslated();
        let (code, mend) = match (&self.trace.disposition, untranslated) {
            (Disposition::Delivered | Disposition::LeavesCluster, _) => return None,
            (_, Some(found)) => found,
            (Disposition::Dropped(reason), _) => self.dropped(*reason),
            (Disposition::Rejected(how), _) => self.rejected(*how),
            (Disposition::Loop, _) => self.goes_round(),
            // It goes astray where a route is missing.
            (Disposition::Inconclusive(_), _) if self.switched_off().is_some() => self.link_down(),
            (Disposition::Inconclusive(_), _) => (codes::UNKNOWN, self.read_it()),
        };
        let severity = match self.trace.disposition {
            Disposition::Inconclusive(_) => Severity::Warning,
            _ => Severity::Error,
        };
        let mut evidence: Vec<String> = Vec::new();
        let end = match self.trace.disposition {
            Disposition::Inconclusive(_) => "whose end can't be told",
            _ => "that fails",
        };
        let before = match self.turn {
            0 => None,
            1 => Some("the request arrives; it is the answer"),
            turn if turn % 2 == 0 => {
                Some("request and answer arrive; it is the client's next packet")
            }
            _ => Some("request and answer arrive; it is the server's next packet"),
        };
        evidence.extend(before.map(|before| format!("{before} {end}")));
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
        // Rules that only led to the deciding one are in the trace. Behind that one stands what sets said.
        let decides = |found: &Evidence| {
            matches!(
                found,
                Evidence::NetfilterRule { .. } | Evidence::Chain { .. }
            )
        };
        let last = self.step.evidence.len().saturating_sub(1);
        let leading = self.step.evidence.iter().rposition(decides).unwrap_or(last);
        let by_rules = matches!(self.step.kind, StepKind::Netfilter | StepKind::Nat);
        let objects = self
            .step
            .evidence
            .iter()
            .skip(if by_rules { leading } else { 0 });
        // What could not be read is the step's own text.
        let objects = objects.filter(|found| !matches!(found, Evidence::Unreadable { .. }));
        let packet = self.packet();
        let astray = [codes::NEIGH_UNRESOLVED, codes::NO_ROUTE].contains(&code);
        let stray = self.stray(&packet).filter(|_| astray);
        // It is there, and does not decide.
        let hidden = stray.is_some();
        let objects = objects.filter(|found| !hidden || !matches!(found, Evidence::Absent { .. }));
        evidence.extend(objects.map(|found| self.object(found)));
        if let Some(stray) = &stray {
            evidence.extend(self.stray_evidence(stray));
        }
        if code == codes::UNTRANSLATED
            && let Some(service) = self.service()
        {
            let led = self.led_by(service);
            evidence.extend(led.into_iter().map(|found| self.object(found)));
        }
        if code == codes::STALE_TUNNEL {
            // The entry that chose the remote stands in an earlier step.
            let encaps = self
                .hop
                .steps
                .iter()
                .filter(|step| step.kind == StepKind::Encap);
            for found in encaps.flat_map(|step| &step.evidence) {
                let line = self.object(found);
                if !evidence.contains(&line) {
                    evidence.push(line);
                }
            }
        }
        let mut place = self.place();
        if code == codes::LINK_DOWN
            && let Some((key, dev, state)) = self.down_end()
        {
            if self.down().is_none() {
                evidence.push(format!("link {dev}: {state}"));
            }
            place = Place {
                node: key.node.clone(),
                netns: self.naming.netns(&key),
                object: Some(dev),
            };
        }
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
            title: self.title(code),
            code,
            severity,
            place,
            evidence,
            mend,
            branches: Vec::new(),
        })
    }

    fn object(&self, evidence: &Evidence) -> String {
        self.naming.text(&object(self.naming, self.hop, evidence))
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
        self.within(&self.hop.ns)
    }

    fn within(&self, key: &NsKey) -> String {
        self.naming.within(key)
    }

    fn dev(&self) -> String {
        self.hop
            .iif
            .clone()
            .or_else(|| self.hop.oif.clone())
            .unwrap_or_else(|| "DEVICE".to_owned())
    }

    /// The device that received the packet last: behind a tunnel or a bridge not that of the hop.
    pub(super) fn came_by(&self) -> String {
        let seen = self.hop.taps.iter().rev().find(|tap| !tap.out);
        seen.map_or_else(|| self.dev(), |tap| tap.dev.clone())
    }

    /// The setting that decided, with its value.
    pub(super) fn setting(&self) -> Option<(&'a str, &'a str)> {
        self.step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::Sysctl { name, value } => Some((name.as_str(), value.as_str())),
                _ => None,
            })
    }

    fn dropped(&self, reason: DropReason) -> (Code, String) {
        let packet = self.packet();
        let here = self.here();
        match reason {
            DropReason::NetfilterDrop | DropReason::QdiscDrop | DropReason::NotSpecified => {
                self.filtered()
            }
            DropReason::ForwardingOff | DropReason::IpInnoroutes if self.misled(&packet) => {
                self.wrong_owner(&packet)
            }
            DropReason::ForwardingOff => {
                let name = if packet.dst.is_ipv4() {
                    "net.ipv4.ip_forward"
                } else {
                    "net.ipv6.conf.all.forwarding"
                };
                // The node may forward in general, and this device not.
                let sysctls = self.ns().and_then(|ns| ns.sysctls.known());
                let in_general = sysctls
                    .and_then(|all| all.inet_all.known())
                    .is_some_and(|all| all.forwarding && packet.dst.is_ipv4());
                let own = self.setting().map(|(name, _)| name);
                let name = own.filter(|_| in_general).unwrap_or(name);
                let mend = format!(
                    "{here}: {}, and find the file in /etc/sysctl.d that switches it off",
                    words::sysctl(name, 1)
                );
                (codes::FORWARDING_OFF, mend)
            }
            DropReason::IpRpfilter => {
                // `all` names no device; that of its own names it even where no packet was seen there.
                let setting = self.setting();
                let of_setting = setting.and_then(|(name, _)| {
                    name.strip_prefix("net.ipv4.conf.")?
                        .strip_suffix(".rp_filter")
                        .filter(|dev| *dev != "all")
                });
                let dev = of_setting.map_or_else(|| self.came_by(), str::to_owned);
                let loose = setting.is_some_and(|(_, value)| value == "2");
                let routed = |evidence: &Evidence| matches!(evidence, Evidence::Route { .. });
                let mend = if loose && !self.step.evidence.iter().any(routed) {
                    format!("{here}: add a route back to {}", packet.src)
                } else if loose {
                    format!(
                        "{here}: route {} by {dev}, or give {dev} an address: without one the loose check is strict there",
                        packet.src
                    )
                } else {
                    format!(
                        "{here}: route {} by {dev}, or make the check loose: {}",
                        packet.src,
                        self.typed(&words::sysctl(&format!("net.ipv4.conf.{dev}.rp_filter"), 2))
                    )
                };
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
            DropReason::ListenOverflow => {
                let mend = format!(
                    "{here}: see whether the program hangs or starves: {}; restart its pod, give it more CPU, or a larger backlog for bursts",
                    self.typed("ss -ltnp")
                );
                (codes::BACKLOG_FULL, mend)
            }
            DropReason::DevReady => self.link_down(),
            DropReason::BridgeHairpinOff => {
                let port = self.hop.iif.clone().unwrap_or_else(|| "PORT".to_owned());
                let mend = format!(
                    "{here}: bridge link set dev {port} hairpin on, and \"hairpinMode\": true in the CNI's configuration"
                );
                (codes::HAIRPIN_OFF, mend)
            }
            DropReason::BridgeNoPort if self.switched_off().is_some() => self.link_down(),
            DropReason::BridgePortState if self.bridge_of_port().is_some() => self.link_down(),
            DropReason::BridgePortState
            | DropReason::BridgeNoPort
            | DropReason::BridgeIsolated
            | DropReason::VlanFilter => (codes::BRIDGE_BLOCKS, self.open_port(reason)),
            DropReason::NotFromPeer => self.not_from_peer(),
            DropReason::XfrmPolicy => {
                let mend = format!(
                    "{here}: ip xfrm policy list, and find who set the one that the trace names (an IKE daemon, the CNI's encryption)"
                );
                (codes::XFRM_BLOCKS, mend)
            }
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
                if self.rule().is_some() || self.no_endpoint().is_some() {
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
            RejectWith::TtlExceeded => self.goes_round(),
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
            // Then [`super::unknown`] says so.
            if fits || service.endpoints_unread.is_some() {
                continue;
            }
            findings.push(Finding {
                code: codes::STALE_CONNTRACK,
                title: format!(
                    "a conntrack entry on {} leads to {}, which is no endpoint of {}/{}",
                    hop.ns.node, entry.reply.src, service.namespace, service.name
                ),
                severity: Severity::Error,
                place: Place {
                    node: hop.ns.node.clone(),
                    netns: naming.netns(&hop.ns),
                    object: None,
                },
                evidence: vec![object(naming, hop, evidence)],
                mend: existing::mend(&hop.ns.node, entry),
                branches: Vec::new(),
            });
        }
    }
    findings
}
