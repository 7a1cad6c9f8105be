//! A Service's address that no rule on the way translated.

use std::net::IpAddr;

use crate::model::names::{ServiceName, ServicePort};
use crate::trace::{Disposition, DropReason, Evidence, Hop, NOT_TRACKED, RejectWith, StepKind};

use super::Case;
use crate::explain::codes::{self, Code};
use crate::explain::steps::object;
use crate::explain::words;

/// Chain of kube-proxy's nftables mode for what its maps of Services did not take (kube-proxy,
/// proxier.go, `clusterIPsCheckChain`).
pub(in crate::explain) const UNTAKEN: &str = "cluster-ips-check";

impl<'a> Case<'a> {
    /// What to do where the packet met its end with a Service's address still on it.
    ///
    /// Only ends that follow from that are meant: it left the cluster's nodes, a check for such addresses
    /// took it, or a node found no listener on a NodePort.
    pub(super) fn untranslated(&self) -> Option<(Code, String)> {
        let service = self.service()?;
        if self.follows_a_flow() {
            return None;
        }
        if self.service_port(service).is_some()
            && let Some((hop, rule)) = self.untracked()
        {
            let mend = format!(
                "{}: narrow or delete the rule that keeps the packet from connection tracking, without which nothing translates it: {}",
                self.within(&hop.ns),
                self.naming.text(&object(self.naming, hop, rule))
            );
            return Some((codes::UNTRANSLATED, mend));
        }
        let here = self.here();
        let name = format!("{}/{}", service.namespace, service.name);
        let packet = self.packet();
        let Some(port) = self.service_port(service) else {
            let ports: Vec<String> = service.ports.iter().map(port_words).collect();
            let wanted = match packet.dport() {
                Some(port) => format!("port {port}/{}", words::protocol(packet.protocol())),
                None => format!("rule for {}", words::protocol(packet.protocol())),
            };
            let mend = format!(
                "{name} has no {wanted}; it has {}",
                if ports.is_empty() {
                    "none".to_owned()
                } else {
                    ports.join(", ")
                }
            );
            return Some((codes::UNTRANSLATED, mend));
        };
        let node = &self.hop.ns.node;
        let rules = match packet.dst {
            IpAddr::V4(_) => "iptables-save -t nat",
            IpAddr::V6(_) => "ip6tables-save -t nat",
        };
        let led = if self.led_by(service).is_empty() {
            "has not written"
        } else {
            "has written only a part of"
        };
        let mend = format!(
            "kube-proxy on {node} {led} port {} of {name}, if it is kube-proxy that serves it: kubectl get pods -A -o wide --field-selector spec.nodeName={node} shows whether it runs, its log why not; {here}: {} | grep {name}, or nft list ruleset | grep {name}",
            port_words(port),
            self.typed(rules)
        );
        Some((codes::UNTRANSLATED, mend))
    }

    /// The rule that kept the packet from connection tracking where Services are translated: on a node, or where it ended; not
    /// one for the outer packets of a tunnel.
    fn untracked(&self) -> Option<(&'a Hop, &'a Evidence)> {
        let is_host = |hop: &Hop| {
            let ns = self.naming.topology.netns(&hop.ns);
            hop.ns == self.hop.ns || ns.is_some_and(|ns| ns.identity.host)
        };
        let hops = self.trace.hops.iter().filter(|hop| is_host(hop));
        let mut steps = hops.flat_map(|hop| {
            let own = hop.steps.iter();
            let own = own.take_while(|step| step.kind != StepKind::Encap);
            own.map(move |step| (hop, step))
        });
        let (hop, step) = steps.find(|(_, step)| step.result == NOT_TRACKED)?;
        let mut rules = step.evidence.iter().rev();
        Some((hop, rules.find(|one| one.rule().is_some())?))
    }

    /// Whether a flow that stood before decided whether addresses are translated: no rule is asked for its packets.
    fn follows_a_flow(&self) -> bool {
        let mut evidence = self.hop.steps.iter().flat_map(|step| &step.evidence);
        evidence.any(|found| matches!(found, Evidence::Conntrack { existing: true, .. }))
    }

    /// The title of that.
    pub(super) fn untranslated_title(&self) -> Option<String> {
        let service = self.service()?;
        let packet = self.packet();
        let addr = words::socket_addr(packet.dst, packet.dport());
        if self.service_port(service).is_some()
            && let Some((hop, _)) = self.untracked()
        {
            return Some(format!(
                "packets to {addr} of Service {}/{} are not tracked {}, so that no rule translates them",
                service.namespace,
                service.name,
                self.within(&hop.ns)
            ));
        }
        Some(match self.service_port(service) {
            Some(_) => format!(
                "no rule {} translates {addr} of Service {}/{}",
                self.here(),
                service.namespace,
                service.name
            ),
            None => format!(
                "Service {}/{} has no port for {} {addr}",
                service.namespace,
                service.name,
                words::protocol(packet.protocol())
            ),
        })
    }

    /// Rules of the Service that the packet met on its way.
    pub(super) fn led_by(&self, service: &ServiceName) -> Vec<&'a Evidence> {
        let name = format!("{}/{}", service.namespace, service.name);
        let of_it = |text: &str| {
            text.match_indices(&name).any(|(at, _)| {
                let next = text
                    .get(at + name.len()..)
                    .and_then(|rest| rest.chars().next());
                !next.is_some_and(|next| next.is_ascii_alphanumeric() || matches!(next, '-' | '.'))
            })
        };
        let steps = self.trace.hops.iter().flat_map(|hop| &hop.steps);
        steps
            .flat_map(|step| &step.evidence)
            .filter(|evidence| match evidence {
                Evidence::NetfilterRule { text, comment, .. } => {
                    of_it(text) || comment.as_deref().is_some_and(of_it)
                }
                _ => false,
            })
            .collect()
    }

    /// The Service whose address the packet still has, where that is why it ended.
    pub(super) fn service(&self) -> Option<&'a ServiceName> {
        if self.turn != 0 {
            return None;
        }
        let names = self.naming.names;
        let dst = self.innermost();
        match &self.trace.disposition {
            Disposition::Inconclusive(_) if self.step.kind == StepKind::Underlay => {
                names.service_by_ip(dst)
            }
            Disposition::Dropped(DropReason::NetfilterDrop) | Disposition::Rejected(_)
                if self.chains().any(|chain| chain == UNTAKEN) =>
            {
                names.service_by_ip(dst)
            }
            Disposition::Rejected(RejectWith::PortClosed | RejectWith::PortUnreachable)
            | Disposition::Dropped(DropReason::NoSocket)
                if self.rule().is_none() =>
            {
                let node = names.node_by_ip(dst)?;
                (node.name == self.hop.ns.node).then_some(())?;
                self.service_by_node_port()
            }
            _ => None,
        }
    }

    /// The Service that has the packet's port on the nodes.
    pub(super) fn service_by_node_port(&self) -> Option<&'a ServiceName> {
        let packet = self.packet();
        let port = packet.dport()?;
        let own =
            |own: &ServicePort| own.node_port == Some(port) && own.protocol == packet.protocol();
        let mut services = self.naming.names.services.iter();
        services.find(|service| service.ports.iter().any(own))
    }

    fn service_port(&self, service: &'a ServiceName) -> Option<&'a ServicePort> {
        let packet = self.packet();
        let port = packet.dport()?;
        let by_node = self.naming.names.service_by_ip(packet.dst).is_none();
        service.ports.iter().find(|own| {
            let number = if by_node {
                own.node_port
            } else {
                Some(own.port)
            };
            number == Some(port) && own.protocol == packet.protocol()
        })
    }
}

/// `http 80/tcp`, or with the port of the nodes `80/tcp (NodePort 30080)`.
fn port_words(port: &ServicePort) -> String {
    let name = if port.name.is_empty() {
        String::new()
    } else {
        format!("{} ", port.name)
    };
    let node = port
        .node_port
        .map(|number| format!(" (NodePort {number})"))
        .unwrap_or_default();
    format!(
        "{name}{}/{}{node}",
        port.port,
        words::protocol(port.protocol)
    )
}
