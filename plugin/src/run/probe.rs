//! `trace --probe`: real packets beside the prediction.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::bail;
use futures::future::join_all;
use netpath::explain::observe::dropped::{self, Loss};
use netpath::explain::observe::program::{self, Culprit};
use netpath::explain::observe::{Agreement, End, Observed, Sights, compare, counted};
use netpath::model::capture::{Answer, Counted, Counts, Probe, Probed};
use netpath::model::packet::{TCP, UDP};
use netpath::model::{NetNsId, NsKey, Section};
use netpath::simulate::{Flow, Outcome};
use netpath::trace::{Disposition, DropReason, Trace};

use super::drive;
use super::exchange::{Exchanged, Way, exchange, fresh, nanos, places};
use super::fleet::Fleet;
use crate::cli::TraceArgs;
use crate::render::observed;
use crate::resolve::Protocol;

/// Milliseconds that an answer may take: TCP repeats itself once in it.
const WAIT: u32 = 2_000;
/// The same where a refusal is predicted: the kernel says after three seconds that nobody answers its ARP requests.
const WAIT_REFUSED: u32 = 3_800;
/// Longest time for one probe with all that is read for it; more is no error, but helper pods end at some time.
pub const LONGEST: Duration = Duration::from_secs(8);
/// How long packets may take to be seen once the probe is over.
const AFTER: Duration = Duration::from_millis(250);
/// Ports tried until one is unused.
const TRIES: u16 = 8;

/// A probe that was sent.
#[derive(Debug)]
pub struct Sent {
    /// How its own socket saw it.
    pub probed: Probed,
    /// What was seen, beside the prediction.
    pub observed: Observed,
    /// What could not be watched.
    pub unwatched: Vec<String>,
    /// It is one that need not be answered.
    pub datagram: bool,
    /// What the kernels say that they dropped of it.
    pub dropped: Vec<Loss>,
    /// The program that it was lost at.
    pub program: Option<Culprit>,
    /// What counted packets where it was lost.
    pub counted: Vec<String>,
    /// The prediction from what was read again after it agrees with it.
    pub since: Option<String>,
}

/// What is sent.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Flows of the question; probes take turns.
    pub flows: &'a [Flow],
    /// Their predictions.
    pub outcomes: &'a [Outcome],
    /// What a datagram carries.
    pub data: Option<&'a str>,
    /// How many.
    pub count: u32,
}

/// Errors: no probe is of that protocol, or of that size, or carries that.
pub fn sendable(args: &TraceArgs, protocol: Protocol) -> anyhow::Result<()> {
    if !args.probe {
        return Ok(());
    }
    match protocol {
        Protocol::Sctp => bail!("--probe: sctp can't be probed; tcp, udp and icmp can"),
        // It begins with a packet of the kernel's own size, and ends before anything is said.
        Protocol::Tcp if args.data.is_some() => bail!(
            "--data: a connection is ended as soon as it stands, nothing is sent by it: leave it out, or ask by --protocol udp"
        ),
        Protocol::Tcp if args.size.is_some() => bail!(
            "--probe: a connection begins with a SYN, whose size is the kernel's: leave out --size, or ask by --protocol udp or icmp, or for the largest packets by --mtu"
        ),
        Protocol::Icmp if args.data.is_some() => {
            bail!(
                "--data: an echo request carries bytes of its own: leave it out, or ask by --protocol udp"
            )
        }
        Protocol::Tcp | Protocol::Udp | Protocol::Icmp => Ok(()),
    }
}

/// Errors: what is sent for this flag is not whose packets were asked about.
pub fn as_root(flag: &str, uid: Option<u32>, gid: Option<u32>) -> anyhow::Result<()> {
    if [uid, gid].into_iter().flatten().any(|id| id != 0) {
        bail!(
            "{flag}: the helper sends as root: rules for --uid and --gid of others would not be met; leave them out"
        );
    }
    Ok(())
}

/// Sends probes one after the other, each watched in all namespaces on the way and on their nodes.
///
/// Errors: one can't be sent at all; those before it are in `all`.
pub async fn send(fleet: &mut Fleet<'_>, job: Job<'_>, all: &mut Vec<Sent>) -> anyhow::Result<()> {
    let ways = job.flows.iter().zip(job.outcomes).cycle();
    let count = usize::try_from(job.count).unwrap_or(usize::MAX);
    for (number, (flow, outcome)) in ways.take(count).enumerate() {
        let mut sent = one(fleet, flow, outcome, job.data, number).await?;
        // Branches of an answer are those of all its flows.
        let before = job.outcomes.iter().take(number % job.flows.len().max(1));
        sent.observed.branch += before.map(|one| one.traces.len()).sum::<usize>();
        if count > 1 {
            // Who ends it before the last one is left with these.
            let (came, result) = (
                observed::came(&sent),
                observed::result(sent.observed.agreement),
            );
            super::say(&format!(
                "probe {} of {count}: {result}, {came}",
                number + 1
            ));
        }
        all.push(sent);
    }
    Ok(())
}

async fn one(
    fleet: &mut Fleet<'_>,
    flow: &Flow,
    outcome: &Outcome,
    data: Option<&str>,
    number: usize,
) -> anyhow::Result<Sent> {
    for turn in 0..TRIES {
        let port = flow.sport.unwrap_or_else(|| fresh(turn));
        let way = Way {
            from: &flow.from,
            protocol: flow.protocol,
            outcome,
        };
        let points = places(fleet, way, port, true).await;
        let probe = Probe {
            netns: flow.from.netns,
            src: flow.src,
            sport: Some(port),
            unused: flow.sport.is_none(),
            dst: flow.dst,
            dport: flow.dport,
            protocol: flow.protocol,
            payload: payload(flow, data, number),
            wait: wait(outcome),
            whole: false,
        };
        let watched: BTreeMap<String, Vec<NetNsId>> = points
            .iter()
            .map(|(node, points)| (node.clone(), points.iter().map(|one| one.netns).collect()))
            .collect();
        let before = counts(fleet, &watched).await;
        let Some(exchanged) = exchange(fleet, &flow.from.node, points, probe, AFTER).await? else {
            continue;
        };
        let Exchanged {
            probed,
            sightings,
            gone,
            untold,
            whole,
            mut unwatched,
        } = exchanged;
        let whole = |key: &NsKey| whole.contains(key);
        let sights = Sights {
            seen: &sightings,
            whole: &whole,
        };
        let ways = as_met(outcome, &probed.answer);
        let Some(mut observed) = compare(&ways, &probed, &sights) else {
            bail!("--probe: nothing was predicted for {}", flow.dst);
        };
        let dropped = dropped::losses(&ways, &probed, &sightings, &gone);
        let all = untold.is_empty();
        dropped::beside(&mut observed, &ways, &probed, (&dropped, all));
        let old = ways.get(observed.branch);
        let program =
            old.and_then(|trace| program::culprit(&observed, trace, &dropped, &fleet.topology));
        let mut since = None;
        let mut lines = Vec::new();
        if observed.agreement != Agreement::Confirmed || observed.end != End::Works {
            let after = counts(fleet, &watched).await;
            let again = again(fleet, flow).await;
            let again = as_met(&again.unwrap_or_default(), &probed.answer);
            let now = compare(&again, &probed, &sights);
            // What was read again may have other ways, or in another order.
            let new = now.as_ref().and_then(|now| again.get(now.branch));
            lines = told(&observed, (&before, &after), (old, new), number > 0);
            if let (Agreement::Differs, Some(now)) = (observed.agreement, now)
                && now.agreement == Agreement::Confirmed
            {
                let both = old.zip(new);
                if both.is_some_and(|(old, new)| is_lost_alike(old, new)) {
                    // Mostly a neighbour that nobody had asked for: now it is known that nobody answers.
                    observed = Observed {
                        branch: observed.branch,
                        ..now
                    };
                } else {
                    since = new.map(|trace| trace.outcome().name().to_owned());
                }
            }
            for key in [&before, &after].into_iter().flat_map(BTreeMap::values) {
                unwatched.extend(key.missing.iter().cloned());
            }
        }
        // Of what was not lost nobody asks why.
        if observed.end != End::Works {
            unwatched.extend(untold);
        }
        unwatched.sort();
        unwatched.dedup();
        return Ok(Sent {
            probed,
            observed,
            program,
            unwatched,
            datagram: flow.protocol == UDP,
            dropped,
            counted: lines,
            since,
        });
    }
    bail!("--probe: {TRIES} source ports were in use; name a free one with --source-port")
}

/// The ways as the sender meets them: a refusal that it does not hear of is a loss. Where it can't be told whether it
/// does, what it heard is right.
fn as_met(outcome: &Outcome, heard: &Answer) -> Vec<Trace> {
    let mut ways = outcome.traces.clone();
    let silent = *heard == Answer::Silent;
    for untold in &outcome.untold {
        let lost = untold.unknown.is_none() || silent;
        if let Some(way) = ways.get_mut(untold.way).filter(|_| lost) {
            way.disposition = Disposition::Dropped(DropReason::NotSpecified);
        }
    }
    ways
}

/// What a datagram or an echo carries: what was typed, else something that no protocol takes for a command and that is
/// another in each probe, as long as was asked for.
fn payload(flow: &Flow, data: Option<&str>, number: usize) -> Vec<u8> {
    if let (Some(data), UDP) = (data, flow.protocol) {
        return data.as_bytes().to_vec();
    }
    let mut text = format!("netpath {:x} {number}\n", nanos()).into_bytes();
    let headers = if flow.dst.is_ipv6() { 48 } else { 28 };
    let size = usize::try_from(flow.len).unwrap_or_default();
    if flow.protocol != TCP && size > headers + text.len() {
        text.resize(size - headers, b'.');
    }
    text
}

fn wait(outcome: &Outcome) -> u32 {
    let refused = |trace: &Trace| matches!(trace.disposition, Disposition::Rejected(_));
    if outcome.traces.iter().any(refused) {
        WAIT_REFUSED
    } else {
        WAIT
    }
}

/// What namespaces count now. What can't be had is named there.
async fn counts(
    fleet: &mut Fleet<'_>,
    watched: &BTreeMap<String, Vec<NetNsId>>,
) -> BTreeMap<NsKey, Counts> {
    let asking = fleet.sessions().iter_mut().filter_map(|(node, session)| {
        let spaces = watched.get(node)?;
        Some(async move {
            let counted = session.count(spaces.clone()).await;
            let counted = counted.unwrap_or_else(|error| {
                let missing = |netns: &NetNsId| Counted {
                    netns: *netns,
                    counts: Section::Missing(error.to_string()),
                };
                spaces.iter().map(missing).collect()
            });
            (node.clone(), counted)
        })
    });
    let mut all = BTreeMap::new();
    for (node, counted) in join_all(asking).await {
        for one in counted {
            let key = NsKey {
                node: node.clone(),
                netns: one.netns,
            };
            let counts = match one.counts {
                Section::Known(counts) => counts,
                Section::Missing(why) => Counts {
                    missing: vec![why],
                    ..Counts::default()
                },
                Section::NotAsked => continue,
            };
            all.insert(key, counts);
        }
    }
    all
}

/// The prediction from what is read anew; what was known before stays.
async fn again(fleet: &mut Fleet<'_>, flow: &Flow) -> Option<Outcome> {
    let before = fleet.afresh().await;
    let mut outcomes = drive::drive(fleet, std::slice::from_ref(flow)).await;
    fleet.topology = before;
    outcomes.pop()
}

/// Whether both predict that the packet itself does not arrive, from the same namespace on.
fn is_lost_alike(old: &Trace, new: &Trace) -> bool {
    let end = |trace: &Trace| trace.hops.last().map(|hop| hop.ns.clone());
    let lost = |trace: &Trace| matches!(trace.disposition, Disposition::Dropped(_));
    lost(old) && lost(new) && end(old) == end(new)
}

/// What counted packets in the namespaces where it was last seen and where it did not come to.
fn told(
    observed: &Observed,
    (before, after): (&BTreeMap<NsKey, Counts>, &BTreeMap<NsKey, Counts>),
    (predicted, again): (Option<&Trace>, Option<&Trace>),
    repeated: bool,
) -> Vec<String> {
    let mut spaces: Vec<&NsKey> = observed.last.iter().map(|(ns, _)| ns).collect();
    spaces.extend(observed.missed().map(|spot| &spot.ns));
    if spaces.is_empty() {
        let first = predicted.and_then(|trace| trace.hops.last());
        spaces.extend(first.map(|hop| &hop.ns));
    }
    let mut lines = Vec::new();
    let mut told = BTreeSet::new();
    for ns in spaces {
        if !told.insert(ns) {
            continue;
        }
        // Rules are read once before all probes, so that those before this one have counted, too.
        let since = if repeated {
            " since before the first probe"
        } else {
            ""
        };
        for (name, more) in counted::rules(ns, predicted, again) {
            lines.push(format!("{ns}: {name}: {more} more{since}"));
        }
        let counts = before.get(ns).zip(after.get(ns));
        for (name, more) in
            counts.map_or_else(Vec::new, |(before, after)| counted::rises(before, after))
        {
            lines.push(format!("{ns}: {name}: {more} more"));
        }
    }
    lines
}
