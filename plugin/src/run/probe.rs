//! `trace --probe`: real packets beside the prediction.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{anyhow, bail};
use netpath::explain::observe::{Observed, Sighting, compare};
use netpath::model::capture::{ANY, Point, Probe, Probed, Seen, Watch};
use netpath::model::packet::{SCTP, UDP};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, NsTarget, Want};
use netpath::model::{IfIndex, NsKey};
use netpath::simulate::{Flow, Outcome, Wants};

use super::fleet::Fleet;
use super::points::{Forms, Points, point, turns};
use super::watch::{Sink, Watching, open, run as watch};

/// Bytes of a packet: headers of a tunnel and of what is in it.
const HEADERS: u32 = 256;
/// How long an answer may take: TCP repeats itself once in it.
const WAIT: u32 = 2_000;
/// How long packets may take to be seen once the probe is over.
const AFTER: Duration = Duration::from_millis(250);
/// Most packets that are looked at: a probe has some ten at each device.
const MOST: usize = 20_000;

/// A probe that was sent.
#[derive(Debug)]
pub struct Sent {
    /// How its own socket saw it.
    pub probed: Probed,
    /// What was seen, beside the prediction.
    pub observed: Option<Observed>,
    /// What could not be watched.
    pub unwatched: Vec<String>,
}

/// Sends probes of a flow one after the other, each watched in all namespaces on the way and on their nodes.
///
/// Errors: it can't be sent at all.
pub async fn send(
    fleet: &mut Fleet<'_>,
    flow: &Flow,
    outcome: &Outcome,
    data: Option<&str>,
    count: u32,
) -> anyhow::Result<Vec<Sent>> {
    if flow.protocol == SCTP {
        bail!("--probe: sctp can't be probed; tcp, udp and icmp can");
    }
    let mut all = Vec::new();
    for number in 0..count {
        all.push(one(fleet, flow, outcome, data, number).await?);
    }
    Ok(all)
}

async fn one(
    fleet: &mut Fleet<'_>,
    flow: &Flow,
    outcome: &Outcome,
    data: Option<&str>,
    number: u32,
) -> anyhow::Result<Sent> {
    let points = places(fleet, flow, outcome).await;
    let template = Watch {
        snaplen: HEADERS,
        decoded: true,
        ..Watch::default()
    };
    let watching = open(fleet, points, &template).await?;
    let probe = Probe {
        netns: flow.from.netns,
        src: flow.src,
        sport: flow.sport,
        dst: flow.dst,
        dport: flow.dport,
        protocol: flow.protocol,
        payload: payload(flow, data, number),
        wait: WAIT,
    };
    let node = &flow.from.node;
    let session = fleet.sessions().get_mut(node);
    let session = session.ok_or_else(|| anyhow!("--probe: there is no helper on {node}"))?;
    let (probed, early) = session.probe(probe).await?;
    let mut all = All::default();
    for seen in early {
        if let Some(at) = watching.place(node, seen.point) {
            all.packet(at, &seen)?;
        }
    }
    // Nothing ends it early: a signal ends the program.
    let (_never, stop) = tokio::sync::watch::channel(false);
    let (losses, mut wrong) = watch(fleet, &watching, &mut all, Some(AFTER), stop).await?;
    if losses.iter().any(|one| one.dropped > 0) {
        wrong.push("some packets were lost by the kernels' buffers".to_owned());
    }
    wrong.extend(watching.closed.iter().cloned());
    let sightings = sightings(&fleet.topology, &watching, &all.seen);
    let spots: BTreeSet<(&String, netpath::model::NetNsId)> = watching
        .spots
        .iter()
        .map(|spot| (&spot.node, spot.point.netns))
        .collect();
    let watched = |key: &NsKey| spots.contains(&(&key.node, key.netns));
    Ok(Sent {
        observed: compare(&outcome.traces, &probed, &sightings, &watched),
        probed,
        unwatched: wrong,
    })
}

/// All devices at once of each namespace on the way, and of its node's own.
async fn places(fleet: &mut Fleet<'_>, flow: &Flow, outcome: &Outcome) -> Points {
    let mut forms = Forms::default();
    let mut keys: BTreeSet<NsKey> = [flow.from.clone()].into();
    for trace in outcome.traces.iter().flat_map(turns) {
        for hop in &trace.hops {
            forms.add(&hop.packet);
            hop.taps.iter().for_each(|tap| forms.add(&tap.packet));
            keys.insert(hop.ns.clone());
        }
    }
    let nodes: BTreeSet<String> = keys.iter().map(|key| key.node.clone()).collect();
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
    let filter = match forms.filter() {
        filter if filter.is_empty() => format!("host {}", flow.dst),
        filter => filter,
    };
    let hosts: Vec<_> = forms.hosts.iter().copied().collect();
    let mut points: BTreeMap<String, Vec<Point>> = BTreeMap::new();
    for key in keys {
        if let Some(ns) = fleet.topology.netns(&key) {
            let point = point(key.netns, ns, ANY, &filter, &hosts);
            points.entry(key.node).or_default().push(point);
        }
    }
    points
}

/// What a datagram or an echo carries: what was typed, else something that no protocol takes for a command, and that
/// is another in each probe.
fn payload(flow: &Flow, data: Option<&str>, number: u32) -> Vec<u8> {
    if let (Some(data), UDP) = (data, flow.protocol) {
        return data.as_bytes().to_vec();
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.unwrap_or_default().as_nanos();
    format!("netpath probe {nanos:x} {number}\n").into_bytes()
}

fn sightings(topology: &Topology, watching: &Watching, all: &[(usize, Seen)]) -> Vec<Sighting> {
    let sighting = |(at, seen): &(usize, Seen)| {
        let spot = watching.spots.get(*at)?;
        let ns = NsKey {
            node: spot.node.clone(),
            netns: spot.point.netns,
        };
        let index = IfIndex::new(seen.ifindex?)?;
        let link = topology.netns(&ns).and_then(|ns| ns.link(index));
        Some(Sighting {
            dev: link.map_or_else(|| format!("if{index}"), |link| link.name.clone()),
            ns,
            out: seen.out?,
            time: seen.time,
            packet: seen.packet.clone()?,
            mark: seen.mark,
        })
    };
    all.iter().filter_map(sighting).collect()
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
