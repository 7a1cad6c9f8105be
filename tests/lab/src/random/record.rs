//! What was read and seen of a network, kept so that predictions can be judged again without a kernel: each fault that
//! is put into the simulation on purpose is held against the same truth (`tests/mutations`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use netpath::model::netns::NetNs;
use netpath::model::snapshot::NodeSnapshot;
use netpath::model::topology::Topology;
use netpath::model::{NetNsId, NsKey, Section};
use netpath::simulate::{Limits, send};
use netpath::trace::Trace;
use serde::{Deserialize, Serialize};

use super::ask::{self, Verdict};
use super::fit::{self, Manner};
use super::reader::NODE;
use super::seen::Observed;
use super::world::Probe;

/// A network's packets, in order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Names of namespaces by their inode numbers.
    places: BTreeMap<u64, String>,
    /// The node, without namespaces.
    node: Option<NodeSnapshot>,
    asked: Vec<Asked>,
}

/// One packet.
#[derive(Debug, Serialize, Deserialize)]
struct Asked {
    number: usize,
    /// Namespaces that are not as they were before the last packet; but for the first, without their rules.
    changed: Vec<(NetNsId, NetNs)>,
    probe: Probe,
    observed: Observed,
}

/// What judging came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// As predicted.
    pub agree: usize,
    /// Of which nothing can be said.
    pub unknown: usize,
}

/// Gives a namespace that was read again the rules of before, which packets do not change.
pub fn keep_rules(new: &mut NetNs, old: &NetNs) {
    new.nft = old.nft.clone();
    new.legacy = old.legacy.clone();
    new.ipset_names = old.ipset_names.clone();
    new.ipsets = old.ipsets.clone();
}

/// Writes down one network.
#[derive(Default)]
pub struct Recorder {
    record: Record,
    before: BTreeMap<NetNsId, NetNs>,
    /// Cases that need more than was kept: what became of refusals sent before.
    pub left_out: usize,
}

impl Recorder {
    /// Notes a packet that agreed: what was read before it was sent, and what was seen.
    pub fn note(
        &mut self,
        (number, probe): (usize, &Probe),
        topology: &Topology,
        name: &dyn Fn(&NsKey) -> String,
        observed: &Observed,
    ) {
        if !matches!(judged(topology, name, probe, observed), Verdict::Agrees(_)) {
            self.left_out += 1;
            return;
        }
        if self.record.node.is_none() {
            let mut node = topology.nodes.get(NODE).cloned();
            node.iter_mut().for_each(|node| node.netns.clear());
            self.record.node = node;
        }
        let mut changed = Vec::new();
        for (key, netns) in topology.all() {
            self.record.places.insert(key.netns.ino, name(&key));
            let before = self.before.get(&key.netns);
            if before == Some(netns) {
                continue;
            }
            let mut kept = netns.clone();
            kept.identity.processes.clear();
            if before.is_some() {
                kept.nft = Section::NotAsked;
                kept.legacy = Section::NotAsked;
                kept.ipset_names = Section::NotAsked;
                kept.ipsets.clear();
            }
            self.before.insert(key.netns, netns.clone());
            changed.push((key.netns, kept));
        }
        self.record.asked.push(Asked {
            number,
            changed,
            probe: probe.clone(),
            observed: observed.clone(),
        });
    }

    /// Writes the record.
    pub fn write(&self, dir: &Path, seed: u64) -> Result<()> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let path = dir.join(format!("{seed:016x}.json"));
        let text = serde_json::to_vec(&self.record).context("encode the record")?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }
}

/// Judges all packets of a record; stops at the first that is not as predicted, which it tells.
pub fn judge(path: &Path, count: &mut Count) -> Result<Option<String>> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let record: Record =
        serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()))?;
    let name = |key: &NsKey| {
        let place = record.places.get(&key.netns.ino).cloned();
        place.unwrap_or_default()
    };
    let mut topology = Topology::default();
    let mut all = BTreeMap::<NetNsId, NetNs>::new();
    topology.nodes = record
        .node
        .into_iter()
        .map(|node| (NODE.to_owned(), node))
        .collect();
    for asked in record.asked {
        for (id, mut netns) in asked.changed {
            if let Some(old) = all.get(&id) {
                keep_rules(&mut netns, old);
            }
            all.insert(id, netns);
        }
        if let Some(node) = topology.nodes.get_mut(NODE) {
            node.netns = std::mem::take(&mut all);
        }
        let verdict = judged(&topology, &name, &asked.probe, &asked.observed);
        if let Some(node) = topology.nodes.get_mut(NODE) {
            all = std::mem::take(&mut node.netns);
        }
        match verdict {
            Verdict::Agrees(_) => count.agree += 1,
            Verdict::Unknown(_) => count.unknown += 1,
            Verdict::Differs(text) => {
                let seed = path.file_stem().unwrap_or_default().to_string_lossy();
                let number = asked.number;
                return Ok(Some(format!("seed 0x{seed} packet {number}: {text}")));
            }
        }
    }
    Ok(None)
}

/// Judges one packet by what was read alone.
fn judged(
    topology: &Topology,
    name: &dyn Fn(&NsKey) -> String,
    probe: &Probe,
    observed: &Observed,
) -> Verdict {
    let mut all = topology.all().map(|(key, _)| key);
    let Some(from) = all.find(|key| name(key) == probe.from) else {
        return Verdict::Unknown("the sender's namespace is not there".to_owned());
    };
    let outcome = ask::once(topology, probe, from, &ask::limits());
    let limits = Limits::default();
    let mut lost = |trace: &Trace, back| match ask::sent_back(topology, trace, back) {
        Ok(sent) => ask::is_lost(&send(topology, &sent, &limits).traces),
        Err(holds) => holds,
    };
    let manner = Manner::of(probe);
    ask::compare(probe, &outcome.traces, name, observed, &mut |trace| {
        fit::fits(manner, trace, name, observed, &mut lost)
    })
}
