//! What was read and seen of a network, kept so that predictions can be judged again without a kernel: each fault that
//! is put into the simulation on purpose is held against the same truth (`tests/mutations`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use netpath::model::netns::NetNs;
use netpath::model::topology::Topology;
use netpath::model::{NetNsId, NsKey, Section};

use super::again::{Asked, Record, judged};
use super::ask::Verdict;
use super::reader::NODE;
use super::seen::Observed;
use super::world::Probe;

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
            let node = topology.nodes.get(NODE).cloned();
            self.record.node = node.map(|mut node| {
                node.netns.clear();
                (NODE.to_owned(), node)
            });
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
