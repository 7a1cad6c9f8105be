//! Rules and policies that drop or reject.

use crate::model::netfilter::{Backend, Hook};
use crate::trace::evidence::ChainRef;
use crate::trace::{Disposition, DropReason, Evidence};

use super::Case;
use crate::explain::codes::{self, Code};
use crate::explain::owners;
use crate::model::nfqueue;

impl<'a> Case<'a> {
    pub(super) fn filtered(&self) -> (Code, String) {
        let here = self.here();
        if let Some(service) = self.no_endpoint() {
            let mend = format!(
                "kubectl get endpointslices: look for ready endpoints of {service}; compare its selector with the pods' labels, its targetPort with their ports, and its traffic policy with where they run"
            );
            return (codes::NO_ENDPOINT, mend);
        }
        let Some((base, by_policy)) = self.rule() else {
            let mend = match self.queueing() {
                Some(dev) => format!(
                    "{here}: find out who set it up, and take it away ({}) or give it room (tc qdisc replace)",
                    self.typed(&format!("tc qdisc del dev {dev} root"))
                ),
                None => format!("{here}: {}", self.naming.text(&self.step.result)),
            };
            return (codes::SWALLOWED, mend);
        };
        let chains: Vec<&str> = self.chains().collect();
        if self.step.evidence.iter().any(|evidence| {
            matches!(evidence, Evidence::NetfilterRule { text, .. }
                if text.contains("rpfilter") || text.contains("fib saddr"))
        }) {
            let mend = format!(
                "{here}: route {} by {}, or change the rule",
                self.packet().src,
                self.came_by()
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
        if let Some(queue) = self.unheard_queue() {
            let mend = format!(
                "{here}: start the program that is to listen on {queue} (a NetworkPolicy agent, an intrusion detection), see why it ended, or let the rule pass packets by without it (bypass)"
            );
            return (codes::FILTERED, mend);
        }
        let accept = self.accept(base, by_policy);
        if base.hook == Hook::Forward {
            (codes::FORWARD_FILTERED, format!("{here}: {accept}"))
        } else {
            (codes::FILTERED, format!("{here}: {accept}"))
        }
    }

    /// The device whose queueing discipline dropped it.
    fn queueing(&self) -> Option<&'a str> {
        if self.trace.disposition != Disposition::Dropped(DropReason::QdiscDrop) {
            return None;
        }
        self.step.evidence.iter().find_map(|found| match found {
            Evidence::Link { dev, .. } => Some(dev.as_str()),
            _ => None,
        })
    }

    pub(super) fn chains(&self) -> impl Iterator<Item = &'a str> {
        self.step
            .evidence
            .iter()
            .filter_map(|evidence| match evidence {
                Evidence::NetfilterRule { chain, .. } => Some(chain.as_str()),
                _ => None,
            })
    }

    /// The title with the program whose rule it is, where the chain's name tells it; of a policy, with the
    /// programs whose chains are called from there: one of them may have set it.
    pub(super) fn filtered_by(&self, code: Code) -> Option<String> {
        let (base, by_policy) = self.rule()?;
        let here = self.here();
        if !by_policy {
            let decides = self
                .step
                .evidence
                .iter()
                .rev()
                .find_map(|found| match found {
                    Evidence::NetfilterRule { chain, comment, .. } => {
                        Some((chain.as_str(), comment.as_deref()))
                    }
                    _ => None,
                });
            let (chain, comment) = decides?;
            let owner = owners::of_chain(&base.table, chain)?;
            let label = self.naming.chain_label(&base.table, chain, comment);
            let label = label.unwrap_or_else(|| owner.to_string());
            return Some(format!("{} {here} by {chain} ({label})", code.title));
        }
        let names = self.called_from(base);
        let policy = format!(
            "{} {here} by the policy of {} {}",
            code.title, base.table, base.chain
        );
        Some(match names.as_slice() {
            [] => policy,
            names => format!("{policy}, which {} may have set", names.join(" or ")),
        })
    }

    /// Programs that set policies of built-in chains, of those whose chains a base chain calls.
    fn called_from(&self, base: &ChainRef) -> Vec<&'static str> {
        const SET_POLICIES: [&str; 3] = ["docker", "ufw", "firewalld"];
        let rules = self.ns().and_then(|ns| match base.backend {
            Backend::Nft => ns.nft.known(),
            Backend::Legacy => ns.legacy.known(),
        });
        let mut tables = rules.into_iter().flat_map(|rules| &rules.tables);
        let table = tables.find(|own| own.family == base.family && own.name == base.table);
        let chains = table.into_iter().flat_map(|table| table.chains.keys());
        let owners = chains.filter_map(|chain| owners::of_chain(&base.table, chain));
        let mut names: Vec<&'static str> = owners
            .map(|owner| owner.name)
            .filter(|name| SET_POLICIES.contains(name))
            .collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The Service whose rule says that it has no endpoint, where that is what was met.
    pub(super) fn no_endpoint(&self) -> Option<String> {
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
                Evidence::SetElement { set, .. } if set.starts_with("no-endpoint-") => {
                    Some(self.asked_service())
                }
                Evidence::IpvsService { .. } => Some(self.asked_service()),
                _ => None,
            })
    }

    /// The queue of a rule for which no program listens.
    fn unheard_queue(&self) -> Option<String> {
        let unheard = |evidence: &Evidence| match evidence {
            Evidence::UnheardQueue { num, last } => Some(nfqueue::range(*num, *last)),
            _ => None,
        };
        self.step.evidence.iter().rev().find_map(unheard)
    }

    /// The Service whose address the packet has.
    fn asked_service(&self) -> String {
        let names = self.naming.names;
        let service = names.service_by_ip(self.packet().dst);
        let service = service.or_else(|| self.service_by_node_port());
        service.map_or_else(
            || "the Service".to_owned(),
            |service| format!("{}/{}", service.namespace, service.name),
        )
    }

    /// A command that lets the packet through.
    pub(super) fn accept(&self, base: &ChainRef, by_policy: bool) -> String {
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
}
