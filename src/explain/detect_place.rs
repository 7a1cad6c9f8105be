//! Findings about the places that a flow passes, whether or not it fails there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::NsKey;
use crate::model::conntrack::CpuStats;
use crate::model::names::PodName;
use crate::model::netfilter::{Ruleset, Table};
use crate::model::netns::NetNs;
use crate::trace::{Disposition, Evidence, StepKind, Trace};

use super::codes::{self, Severity};
use super::naming::Naming;
use super::{Finding, Place};

/// Percentage of the conntrack table from which on it is worth a word.
const NEARLY_FULL: u64 = 90;

/// What is wrong with namespaces on the way.
pub(super) fn of_places<'a>(
    naming: &Naming<'_>,
    traces: impl Iterator<Item = &'a Trace>,
) -> Vec<Finding> {
    let mut places: BTreeSet<&NsKey> = BTreeSet::new();
    let mut twice = Vec::new();
    let mut findings = Vec::new();
    for trace in traces {
        duplicates(&mut twice, naming, trace);
        if let Some(finding) = taken_over(naming, trace)
            && !findings.contains(&finding)
        {
            findings.push(finding);
        }
        let ways = std::iter::successors(Some(trace), |way| way.reply.as_deref());
        places.extend(ways.flat_map(|way| &way.hops).map(|hop| &hop.ns));
    }
    let twice = twice.into_iter().map(|found| found.finding(naming));
    findings.extend(twice);
    for key in places {
        let Some(ns) = naming.topology.netns(key) else {
            continue;
        };
        findings.extend(of_netns(naming, key, ns));
    }
    findings
}

/// What is wrong with a namespace, whoever sends through it.
pub(super) fn of_netns(naming: &Naming<'_>, key: &NsKey, ns: &NetNs) -> Vec<Finding> {
    let place = || Place {
        node: key.node.clone(),
        netns: naming.netns(key),
        object: None,
    };
    let found = [two_backends(ns, place()), conntrack_full(ns, place())];
    found.into_iter().flatten().collect()
}

/// An address for which several stations of one link answer.
struct Duplicate {
    addr: IpAddr,
    asked: NsKey,
    place: Place,
    /// Device and namespace of each, with its link-layer address.
    stations: Vec<String>,
}

impl Duplicate {
    fn finding(self, naming: &Naming<'_>) -> Finding {
        let addr = self.addr;
        let removals: Vec<String> = naming
            .topology
            .all()
            .flat_map(|(key, ns)| {
                let own = ns.addrs.known().into_iter().flatten();
                let own = own.filter(move |own| own.local == addr);
                own.map(move |own| {
                    let dev = naming.dev(&key, own.link);
                    let del = format!("ip addr del {addr}/{} dev {dev}", own.prefix_len);
                    format!("on {}: {}", key.node, naming.typed(&key, &del))
                })
            })
            .collect();
        let removals = if removals.is_empty() {
            "ip addr del on the other".to_owned()
        } else {
            removals.join("; or ")
        };
        let names: Vec<&str> = self
            .stations
            .iter()
            .map(|station| {
                station
                    .split_once(": ")
                    .map_or(station.as_str(), |(name, _)| name)
            })
            .collect();
        Finding {
            code: codes::DUPLICATE_ADDRESS,
            title: format!("{} answer for {addr}", names.join(" and ")),
            // Which of them answers first, nobody can tell: the flow may work.
            severity: Severity::Warning,
            mend: format!(
                "keep {addr} on one of them: delete the pod that has it wrongly, or {removals}"
            ),
            evidence: self.stations,
            place: self.place,
            branches: Vec::new(),
        }
    }
}

/// The pod that gets a packet, and the one whose address it is for, where these are two.
pub(super) fn other_pod<'a>(
    naming: &Naming<'a>,
    trace: &Trace,
) -> Option<(&'a PodName, &'a PodName)> {
    if trace.disposition != Disposition::Delivered {
        return None;
    }
    let ns = naming.topology.netns(&trace.hops.last()?.ns)?;
    let got = naming.names.pod_by_uid(ns.identity.pod_uid.as_ref()?)?;
    let meant = naming.names.pod_by_ip(trace.packet.innermost().dst)?;
    (got.uid != meant.uid).then_some((got, meant))
}

/// A pod that gets what is for another one, since others on the link know its device by that address.
fn taken_over(naming: &Naming<'_>, trace: &Trace) -> Option<Finding> {
    let (got, meant) = other_pod(naming, trace)?;
    let addr = trace.packet.innermost().dst;
    let key = &trace.hops.last()?.ns;
    let name = |pod: &PodName| format!("pod {}/{}", pod.namespace, pod.name);
    let neighs = trace.hops.iter().flat_map(|hop| &hop.steps);
    let neighs = neighs.filter(|step| step.kind == StepKind::Neigh);
    let evidence = neighs.map(|step| naming.text(&step.result)).collect();
    let del = naming.typed(key, &format!("ip addr show to {addr}"));
    Some(Finding {
        code: codes::DUPLICATE_ADDRESS,
        title: format!(
            "{} gets what is for {addr}, the address of {}",
            name(got),
            name(meant)
        ),
        severity: Severity::Error,
        mend: format!(
            "keep {addr} on one of them; on {}: {del} shows whether {} has it, too; then flush what its neighbours know: ip neigh flush to {addr}",
            key.node,
            name(got)
        ),
        evidence,
        place: Place {
            node: key.node.clone(),
            netns: naming.netns(key),
            object: None,
        },
        branches: Vec::new(),
    })
}

/// Each answer is a branch of its own, so that all of a question's traces together name the stations.
fn duplicates(found: &mut Vec<Duplicate>, naming: &Naming<'_>, trace: &Trace) {
    let ways = std::iter::successors(Some(trace), |way| way.reply.as_deref());
    for hop in ways.flat_map(|way| &way.hops) {
        for step in hop.steps.iter().filter(|step| step.kind == StepKind::Neigh) {
            let several = step.evidence.iter().any(|evidence| {
                matches!(evidence, Evidence::Assumed { why } if why.contains("duplicate address"))
            });
            let addr = step.evidence.iter().find_map(|evidence| match evidence {
                Evidence::Address { addr, .. } => Some(*addr),
                _ => None,
            });
            let Some(addr) = addr.filter(|_| several) else {
                continue;
            };
            let text = naming.text(&step.result);
            let (_, station) = text.rsplit_once(" by ").unwrap_or(("", &text));
            let known = found
                .iter_mut()
                .find(|known| known.addr == addr && known.asked == hop.ns);
            match known {
                Some(known) if known.stations.iter().any(|s| s == station) => {}
                Some(known) => known.stations.push(station.to_owned()),
                None => found.push(Duplicate {
                    addr,
                    asked: hop.ns.clone(),
                    place: Place {
                        node: hop.ns.node.clone(),
                        netns: naming.netns(&hop.ns),
                        object: hop.oif.clone(),
                    },
                    stations: vec![station.to_owned()],
                }),
            }
        }
    }
}

fn rules(table: &Table) -> usize {
    let chains = table.chains.values();
    let known = chains.filter_map(|chain| Some((chain.rules.known()?, chain.sieved.as_ref())));
    known
        .map(|(rules, sieved)| {
            let left_out = sieved.map_or(0, |sieved| sieved.left_out);
            rules.len() + usize::try_from(left_out).unwrap_or(usize::MAX - rules.len())
        })
        .sum()
}

fn with_rules(ruleset: &Ruleset) -> Vec<(String, usize)> {
    let tables = ruleset.tables.iter();
    tables
        .map(|table| {
            (
                format!("{} {}", table.family.name(), table.name),
                rules(table),
            )
        })
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// Rules made by iptables in both backends: native nftables tables beside legacy ones are usual.
fn two_backends(ns: &NetNs, place: Place) -> Option<Finding> {
    const OF_IPTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];
    let legacy = with_rules(ns.legacy.known()?);
    let nft: Vec<(String, usize)> = with_rules(ns.nft.known()?)
        .into_iter()
        .filter(|(name, _)| {
            let table = name.split_once(' ');
            table.is_some_and(|(family, table)| {
                matches!(family, "ip" | "ip6") && OF_IPTABLES.contains(&table)
            })
        })
        .collect();
    if legacy.is_empty() || nft.is_empty() {
        return None;
    }
    let list = |tables: &[(String, usize)]| {
        let words: Vec<String> = tables
            .iter()
            .map(|(name, count)| format!("{name} (rules read: {count})"))
            .collect();
        words.join(", ")
    };
    Some(Finding {
        code: codes::TWO_BACKENDS,
        title: format!("{} on {}", codes::TWO_BACKENDS.title, place.node),
        severity: Severity::Warning,
        place,
        evidence: vec![
            format!("iptables-legacy: {}", list(&legacy)),
            format!("iptables-nft: {}", list(&nft)),
        ],
        mend: "let kubelet, kube-proxy and the CNI use one backend, then drain and reboot the node"
            .to_owned(),
        branches: Vec::new(),
    })
}

fn conntrack_full(ns: &NetNs, place: Place) -> Option<Finding> {
    let sysctls = ns.sysctls.known()?;
    let max = u64::from((*sysctls.nf_conntrack_max.known()?)?);
    let count = u64::from((*sysctls.nf_conntrack_count.known()?)?);
    let stats = ns.conntrack_stats.known().and_then(Option::as_ref);
    let counted = |of: fn(&CpuStats) -> Option<u32>| {
        let cpus = stats.into_iter().flat_map(|stats| &stats.cpus);
        cpus.filter_map(of).fold(0, |all, one| all + u64::from(one))
    };
    // What counted since the start says nothing of today: that alone is none.
    if max == 0 || count * 100 < max * NEARLY_FULL {
        return None;
    }
    let mut evidence = vec![format!(
        "sysctl net.netfilter.nf_conntrack_count = {count}, net.netfilter.nf_conntrack_max = {max}"
    )];
    if stats.is_some() {
        evidence.push(format!(
            "counted since the namespace was made: early_drop {}, drop {}, insert_failed {}",
            counted(|cpu| cpu.early_drop),
            counted(|cpu| cpu.drop),
            counted(|cpu| cpu.insert_failed)
        ));
    }
    Some(Finding {
        code: codes::CONNTRACK_FULL,
        title: format!(
            "the conntrack table of {} on {} holds {count} of {max} entries",
            place.netns, place.node
        ),
        severity: if count >= max {
            Severity::Error
        } else {
            Severity::Warning
        },
        place,
        evidence,
        mend: format!(
            "sysctl -w net.netfilter.nf_conntrack_max={}",
            max.saturating_mul(2)
        ),
        branches: Vec::new(),
    })
}
