//! Flows that stand already: which conntrack entries there are between the ends of a question, and where their
//! packets go.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netpath::model::conntrack::{ConntrackGroup, Tuple};
use netpath::model::packet::UDP;
use netpath::model::topology::Topology;
use netpath::model::want::Want;
use netpath::model::{NsKey, Section};
use netpath::simulate::{Flow, Outcome, Wants};
use netpath::trace::{Hop, StepKind, Trace};

use super::drive;
use super::fleet::Fleet;

/// Most flows that are followed.
const MOST: usize = 8;
/// Entries of a table that is searched unasked: the kernel looks at each, some microsecond apiece.
const SEARCHED: u32 = 200_000;

/// Entries that lead to the same place.
pub struct Found {
    /// Namespace whose table they are in.
    pub ns: NsKey,
    /// One of them, and how many they are.
    pub group: ConntrackGroup,
    /// A flow that has this entry.
    pub flow: Flow,
    /// Where its packets go.
    pub outcome: Outcome,
}

/// What was found.
#[derive(Default)]
pub struct Existing {
    /// Flows, followed.
    pub flows: Vec<Found>,
    /// What could not be read, or is more than is followed.
    pub unknown: Vec<String>,
}

/// Finds and follows existing flows like those that were asked about. `all`: every one; else only those of
/// datagrams that lead elsewhere than new ones: a program keeps its port and with it the entry, whereas each
/// new TCP connection makes its own.
pub async fn find(
    fleet: &mut Fleet<'_>,
    flows: &[Flow],
    outcomes: &[Outcome],
    all: bool,
) -> Existing {
    let mut existing = Existing::default();
    let mut places: BTreeSet<(NsKey, Tuple, usize)> = BTreeSet::new();
    for (at, (flow, outcome)) in flows.iter().zip(outcomes).enumerate() {
        if flow.sport.is_none() && (all || flow.protocol == UDP) {
            let asked = outcome.traces.iter().flat_map(|trace| {
                asked(&fleet.topology, trace, all).map(move |(ns, tuple)| (ns, tuple, at))
            });
            places.extend(asked);
        }
    }
    if !all {
        places.retain(|(ns, _, _)| match entries(&fleet.topology, ns) {
            Some(count) if count > SEARCHED => {
                let why = format!(
                    "existing flows in {ns}: not searched for among {count} entries; --existing does"
                );
                if !existing.unknown.contains(&why) {
                    existing.unknown.push(why);
                }
                false
            }
            _ => true,
        });
    }
    let mut wants = Wants::new();
    for (ns, tuple, _) in &places {
        let want = Want::ConntrackFlows {
            netns: ns.netns,
            tuple: *tuple,
        };
        wants.entry(ns.node.clone()).or_default().insert(want);
    }
    fleet.ask(wants).await;
    let mut chosen: Vec<(NsKey, ConntrackGroup, Flow)> = Vec::new();
    let mut more = 0;
    for (ns, tuple, at) in places {
        let (Some(flow), Some(outcome)) = (flows.get(at), outcomes.get(at)) else {
            continue;
        };
        let read = fleet.topology.netns(&ns).map(|ns| &ns.conntrack_flows);
        let answer = read.and_then(|all| all.iter().find(|(own, _)| *own == tuple));
        let found = match answer.map(|(_, found)| found) {
            Some(Section::Known(found)) => found,
            Some(Section::Missing(why)) => {
                existing
                    .unknown
                    .push(format!("existing flows in {ns}: {why}"));
                continue;
            }
            Some(Section::NotAsked) | None => {
                existing
                    .unknown
                    .push(format!("existing flows in {ns}: not read"));
                continue;
            }
        };
        more += found.left_out;
        let new: BTreeSet<IpAddr> = outcome
            .traces
            .iter()
            .map(|trace| trace.packet.dst)
            .collect();
        for group in &found.groups {
            // One flow is seen in each namespace that it crosses.
            let seen =
                |(_, _, flow): &(NsKey, ConntrackGroup, Flow)| flow.sport == group.entry.orig.sport;
            let elsewhere = !new.contains(&group.entry.reply.src);
            if (!all && !elsewhere) || group.entry.zone != 0 || chosen.iter().any(seen) {
                continue;
            }
            if chosen.len() == MOST {
                more += group.count;
                continue;
            }
            let flow = Flow {
                sport: group.entry.orig.sport,
                ..flow.clone()
            };
            chosen.push((ns.clone(), group.clone(), flow));
        }
    }
    if more > 0 {
        existing
            .unknown
            .push(format!("existing flows: {more} more are not followed"));
    }
    if chosen.is_empty() {
        return existing;
    }
    let asked: Vec<Flow> = chosen.iter().map(|(_, _, flow)| flow.clone()).collect();
    let outcomes = drive::drive(fleet, &asked).await;
    let found = chosen.into_iter().zip(outcomes);
    existing.flows = found
        .map(|((ns, group, flow), outcome)| Found {
            ns,
            group,
            flow,
            outcome,
        })
        .collect();
    existing
}

/// Entries of a namespace's table, where that is known.
fn entries(topology: &Topology, ns: &NsKey) -> Option<u32> {
    let sysctls = topology.netns(ns)?.sysctls.known()?;
    *sysctls.nf_conntrack_count.known()?
}

/// Namespaces that a first packet crosses before its source is translated, with its ends there, the port any.
fn asked<'t>(
    topology: &'t Topology,
    trace: &'t Trace,
    all: bool,
) -> impl Iterator<Item = (NsKey, Tuple)> + 't {
    let source = trace.hops.first().map(|hop| hop.packet.src);
    let untranslated = move |hop: &&Hop| Some(hop.packet.src) == source;
    let chooses = move |hop: &&Hop| {
        all || topology.service_ips.contains(&hop.packet.dst)
            || hop.steps.iter().any(|step| step.kind == StepKind::Nat)
    };
    let tracks = |hop: &&Hop| {
        let ns = topology.netns(&hop.ns);
        let sysctls = ns.and_then(|ns| ns.sysctls.known());
        sysctls.is_none_or(|own| own.nf_conntrack_max != Section::Known(None))
    };
    let hops = trace.hops.iter().take_while(untranslated);
    hops.filter(chooses).filter(tracks).map(|hop| {
        let tuple = Tuple {
            sport: None,
            ..hop.packet.tuple()
        };
        (hop.ns.clone(), tuple)
    })
}
