//! `trace --probe`: real packets beside the prediction.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{anyhow, bail};
use futures::future::join_all;
use netpath::explain::observe::dropped::{self, Gone, Loss};
use netpath::explain::observe::{Agreement, End, Observed, Sighting, Sights, compare, counted};
use netpath::model::capture::{ANY, Answer, Counted, Counts, Point, Probe, Probed, Seen, Watch};
use netpath::model::packet::{SCTP, TCP, UDP};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, NsTarget, Want};
use netpath::model::{IfIndex, NetNsId, NsKey, Section};
use netpath::simulate::{Flow, Outcome, Wants};
use netpath::trace::{Disposition, Trace};

use super::drive;
use super::fleet::Fleet;
use super::points::{self, Forms, Points, Tunnels, of_probe, turns};
use super::watch::{Sink, Spot, Watching, open, run as watch};

/// Bytes of a packet: headers of a tunnel and of what is in it.
const HEADERS: u32 = 256;
/// Milliseconds that an answer may take: TCP repeats itself once in it.
const WAIT: u32 = 2_000;
/// The same where a refusal is predicted: the kernel says after three seconds that nobody answers its ARP requests.
const WAIT_REFUSED: u32 = 3_800;
/// Longest time for one probe with all that is read for it; more is no error, but helper pods end at some time.
pub const LONGEST: Duration = Duration::from_secs(8);
/// How long packets may take to be seen once the probe is over.
const AFTER: Duration = Duration::from_millis(250);
/// Most packets that are looked at: a probe has some ten at each device.
const MOST: usize = 20_000;
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

/// Errors: no probe is of that protocol.
pub fn not_sctp(sctp: bool) -> anyhow::Result<()> {
    if sctp {
        bail!("--probe: sctp can't be probed; tcp, udp and icmp can");
    }
    Ok(())
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
        // It may be a Service's port's.
        not_sctp(flow.protocol == SCTP)?;
        let mut sent = one(fleet, flow, outcome, job.data, number).await?;
        // Branches of an answer are those of all its flows.
        let before = job.outcomes.iter().take(number % job.flows.len().max(1));
        sent.observed.branch += before.map(|one| one.traces.len()).sum::<usize>();
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
        let Some(mut observed) = compare(&outcome.traces, &probed, &sights) else {
            bail!("--probe: nothing was predicted for {}", flow.dst);
        };
        let dropped = dropped::losses(&outcome.traces, &probed, &sightings, &gone);
        dropped::beside(
            &mut observed,
            &outcome.traces,
            &probed,
            (&dropped, untold.is_empty()),
        );
        let mut since = None;
        let mut lines = Vec::new();
        if observed.agreement != Agreement::Confirmed || observed.end != End::Works {
            let after = counts(fleet, &watched).await;
            let again = again(fleet, flow).await;
            let again = again.unwrap_or_default();
            lines = told(
                &observed,
                (&before, &after),
                (&outcome.traces, &again.traces),
            );
            let now = compare(&again.traces, &probed, &sights);
            if let (Agreement::Differs, Some(now)) = (observed.agreement, now)
                && now.agreement == Agreement::Confirmed
            {
                since = again
                    .traces
                    .get(now.branch)
                    .map(|trace| trace.outcome().name().to_owned());
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
            unwatched,
            datagram: flow.protocol == UDP,
            dropped,
            counted: lines,
            since,
        });
    }
    bail!("--probe: {TRIES} source ports were in use; name a free one with --source-port")
}

/// What a probe met.
pub struct Exchanged {
    /// How its own socket saw it.
    pub probed: Probed,
    /// Packets of its forms that were seen.
    pub sightings: Vec<Sighting>,
    /// Those that the kernels dropped.
    pub gone: Vec<Gone>,
    /// Why not all that was dropped is told.
    untold: Vec<String>,
    /// Namespaces of which no packet went unseen.
    pub whole: BTreeSet<NsKey>,
    /// What went unseen, in words.
    pub unwatched: Vec<String>,
}

/// A prediction whose packet is to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// Namespace that it is sent from.
    pub from: &'a NsKey,
    /// IPPROTO_*
    pub protocol: u8,
    /// Where it may go.
    pub outcome: &'a Outcome,
}

/// Watches, sends, and watches a little longer. `None`: the port was in use.
pub async fn exchange(
    fleet: &mut Fleet<'_>,
    node: &str,
    points: Points,
    probe: Probe,
    after: Duration,
) -> anyhow::Result<Option<Exchanged>> {
    let template = Watch {
        snaplen: HEADERS,
        decoded: true,
        few: true,
        ..Watch::default()
    };
    let watching = open(fleet, points, &template).await?;
    let session = fleet.sessions().get_mut(node);
    let session = session.ok_or_else(|| anyhow!("--probe: there is no helper on {node}"))?;
    let sent = session.probe(probe).await;
    let mut all = All::default();
    // Nothing ends it early: a signal ends the program.
    let (_never, stop) = tokio::sync::watch::channel(false);
    let (probed, early) = match sent {
        Ok(sent) => sent,
        Err(error) => {
            // What watches must not go on for nobody. What failed first is what is told.
            let _ = watch(fleet, &watching, &mut all, Some(Duration::ZERO), stop).await;
            return Err(error.into());
        }
    };
    let taken = probed.answer == Answer::Taken;
    for seen in early {
        if let Some(at) = watching.place(node, seen.point) {
            all.packet(at, &seen)?;
        }
    }
    let time = if taken { Duration::ZERO } else { after };
    let (losses, mut wrong) = watch(fleet, &watching, &mut all, Some(time), stop).await?;
    if taken {
        return Ok(None);
    }
    let passing = watching.spots.iter().filter(|spot| !spot.point.dropped);
    let mut whole: BTreeSet<NsKey> = passing.map(Spot::key).collect();
    let mut untold = watching.untold.clone();
    if !wrong.is_empty() || all.seen.len() >= MOST {
        whole.clear();
    }
    for (spot, losses) in watching.spots.iter().zip(&losses) {
        if losses.dropped > 0 && spot.point.dropped {
            untold.push(format!(
                "{}: {} packets that the kernel dropped, of any namespace, went untold: its buffer was full, or the CPU was telling of another one",
                spot.node, losses.dropped
            ));
        } else if losses.dropped > 0 {
            whole.remove(&spot.key());
            wrong.push(format!(
                "{}: {} packets were lost by the kernel's buffer",
                spot.key(),
                losses.dropped
            ));
        }
    }
    wrong.extend(watching.closed.iter().cloned());
    if all.seen.len() >= MOST {
        wrong.push(format!("only the first {MOST} packets were looked at"));
    }
    Ok(Some(Exchanged {
        probed,
        sightings: sightings(&fleet.topology, &watching, &all.seen),
        gone: gone(&fleet.topology, &watching, &all.seen),
        untold,
        whole,
        unwatched: wrong,
    }))
}

/// All devices at once of each namespace on the way, and of the nodes' own: there a packet shows that strays.
/// Where `drops`, also what their kernels drop.
pub async fn places(fleet: &mut Fleet<'_>, way: Way<'_>, port: u16, drops: bool) -> Points {
    let Way {
        from,
        protocol,
        outcome,
    } = way;
    let mut forms = Forms::default();
    let mut keys: BTreeSet<NsKey> = [from.clone()].into();
    for trace in outcome.traces.iter().flat_map(turns) {
        for hop in &trace.hops {
            forms.add(&hop.packet);
            hop.taps.iter().for_each(|tap| forms.add(&tap.packet));
            keys.insert(hop.ns.clone());
        }
    }
    let mut nodes: BTreeSet<String> = keys.iter().map(|key| key.node.clone()).collect();
    nodes.extend(fleet.sessions().keys().cloned());
    let want = Want::NetNs {
        target: NsTarget::Host,
        depth: Depth::NoRules,
    };
    let hosts: Wants = nodes
        .iter()
        .filter(|node| fleet.topology.host(node).is_none())
        .map(|node| (node.clone(), [want.clone()].into()))
        .collect();
    fleet.ask(hosts).await;
    keys.extend(nodes.iter().filter_map(|node| fleet.topology.host(node)));
    let filter = of_probe(&forms, protocol, port);
    let hosts: Vec<_> = forms.hosts.iter().copied().collect();
    let mut points: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    let tunnels = Tunnels::of(&fleet.topology);
    for key in keys {
        if fleet.topology.netns(&key).is_some() {
            let point = tunnels.point(key.netns, ANY, &filter, &hosts);
            let points = points.entry(key.node).or_default();
            points.push(point.clone());
            points.extend(drops.then(|| points::dropped(point)));
        }
    }
    points
}

fn nanos() -> u128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_nanos()
}

/// A port that is likely unused, another one at each try.
pub fn fresh(turn: u16) -> u16 {
    let spread = u16::try_from(nanos() / 1_000 % 20_000).unwrap_or_default();
    40_000 + (spread + turn * 97) % 20_000
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

type Pair<'a, T> = (&'a T, &'a T);

/// What counted packets in the namespaces where it was last seen and where it did not come to.
fn told(
    observed: &Observed,
    (before, after): Pair<'_, BTreeMap<NsKey, Counts>>,
    (predicted, again): Pair<'_, Vec<Trace>>,
) -> Vec<String> {
    let mut spaces: Vec<&NsKey> = observed.last.iter().map(|(ns, _)| ns).collect();
    spaces.extend(observed.missed().map(|spot| &spot.ns));
    if spaces.is_empty() {
        let first = predicted.first().and_then(|trace| trace.hops.last());
        spaces.extend(first.map(|hop| &hop.ns));
    }
    let mut lines = Vec::new();
    let mut told = BTreeSet::new();
    for ns in spaces {
        if !told.insert(ns) {
            continue;
        }
        let mut risen = counted::rules(ns, predicted, again);
        if let (Some(before), Some(after)) = (before.get(ns), after.get(ns)) {
            risen.extend(counted::rises(before, after));
        }
        lines.extend(
            risen
                .into_iter()
                .map(|(name, more)| format!("{ns}: {name}: {more} more")),
        );
    }
    lines
}

fn device(topology: &Topology, ns: &NsKey, index: IfIndex) -> String {
    let link = topology.netns(ns).and_then(|ns| ns.link(index));
    link.map_or_else(|| format!("if{index}"), |link| link.name.clone())
}

fn sightings(topology: &Topology, watching: &Watching, all: &[(usize, Seen)]) -> Vec<Sighting> {
    let sighting = |(at, seen): &(usize, Seen)| {
        let spot = watching.spots.get(*at)?;
        let ns = spot.key();
        Some(Sighting {
            dev: device(topology, &ns, IfIndex::new(seen.ifindex?)?),
            ns,
            out: seen.out?,
            time: seen.time,
            packet: seen.packet.clone()?,
            mark: seen.mark,
        })
    };
    all.iter().filter_map(sighting).collect()
}

/// What the kernels dropped.
fn gone(topology: &Topology, watching: &Watching, all: &[(usize, Seen)]) -> Vec<Gone> {
    let gone = |(at, seen): &(usize, Seen)| {
        let spot = watching.spots.get(*at)?;
        let ns = spot.key();
        let index = seen.ifindex.and_then(IfIndex::new);
        let dev = index.map(|index| device(topology, &ns, index));
        Some(Gone {
            why: seen.dropped.clone()?,
            seen: Sighting {
                ns,
                dev: dev.unwrap_or_default(),
                out: false,
                time: seen.time,
                packet: seen.packet.clone()?,
                mark: seen.mark,
            },
        })
    };
    all.iter().filter_map(gone).collect()
}

/// Keeps packets.
#[derive(Default)]
struct All {
    seen: Vec<(usize, Seen)>,
}

impl Sink for All {
    fn packet(&mut self, at: usize, seen: &Seen) -> anyhow::Result<bool> {
        self.seen.push((at, seen.clone()));
        Ok(self.seen.len() < MOST)
    }

    fn flush(&mut self) -> anyhow::Result<bool> {
        Ok(true)
    }
}
