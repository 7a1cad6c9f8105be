//! One exchange that is watched everywhere on its way: where to watch, sending it, and what was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::anyhow;
use netpath::explain::observe::Sighting;
use netpath::explain::observe::dropped::Gone;
use netpath::model::capture::{ANY, Answer, Point, Probe, Probed, Seen, Watch};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, NsTarget, Want};
use netpath::model::{IfIndex, NsKey};
use netpath::simulate::{Outcome, Wants};

use super::fleet::Fleet;
use super::points::{self, Forms, Points, Tunnels, of_probe, turns};
use super::watch::{Sink, Spot, Watching, open, run as watch};

/// Bytes of a packet: headers of a tunnel and of what is in it.
const HEADERS: u32 = 256;
/// Most packets that are looked at: a probe has some ten at each device.
const MOST: usize = 20_000;

/// What a probe met.
pub struct Exchanged {
    /// How its own socket saw it.
    pub probed: Probed,
    /// Packets of its forms that were seen.
    pub sightings: Vec<Sighting>,
    /// Those that the kernels dropped.
    pub gone: Vec<Gone>,
    /// Why not all that was dropped is told.
    pub untold: Vec<String>,
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
        ..Watch::default()
    };
    let unreached = || anyhow!("send from {node}: no helper runs there");
    if !fleet.sessions().contains_key(node) {
        return Err(unreached());
    }
    let watching = open(fleet, points, &template).await?;
    let session = fleet.sessions().get_mut(node).ok_or_else(unreached)?;
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

/// Nanoseconds since 1970, for numbers that nobody had before.
pub fn nanos() -> u128 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default().as_nanos()
}

/// A port that is likely unused, another one at each try.
pub fn fresh(turn: u16) -> u16 {
    let spread = u16::try_from(nanos() / 1_000 % 20_000).unwrap_or_default();
    40_000 + (spread + turn * 97) % 20_000
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
