//! Judges again what was recorded of a network. Nothing here needs a kernel.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::{fs, io};

use netpath::contract::file;
use netpath::model::netns::NetNs;
use netpath::model::snapshot::NodeSnapshot;
use netpath::model::topology::Topology;
use netpath::model::{NetNsId, NsKey};
use netpath::trace::Trace;
use serde::{Deserialize, Serialize};

use super::ask::{self, Question, Verdict};
use super::fit::{self, Manner};
use super::seen::Observed;
use super::world::Probe;

/// A network's packets, in order.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// Names of namespaces by their inode numbers.
    pub places: BTreeMap<u64, String>,
    /// The node by its name, without namespaces.
    pub node: Option<(String, NodeSnapshot)>,
    /// Packets.
    pub asked: Vec<Asked>,
}

/// One packet.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    /// Its number.
    pub number: usize,
    /// Namespaces that are not as they were before the last packet; but for the first, without their rules.
    pub changed: Vec<(NetNsId, NetNs)>,
    /// The packet.
    pub probe: Probe,
    /// What was seen of it.
    pub observed: Observed,
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

/// Judges all packets of all networks of a directory; stops at the first that is not as predicted, which it tells.
pub fn judge_all(dir: &Path, count: &mut Count) -> Result<Option<String>, Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        files.push(entry?.path());
    }
    files.sort();
    for file in &files {
        if let Some(text) = judge(file, count)? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

/// A scenario of tests/scenarios/oracle, beside its snapshot.
#[derive(Deserialize)]
struct Saved {
    places: BTreeMap<u64, String>,
    probe: Probe,
    observed: Observed,
}

/// Judges all scenarios of a directory likewise.
pub fn judge_saved(dir: &Path, count: &mut Count) -> Result<Option<String>, Box<dyn Error>> {
    for entry in fs::read_dir(dir)? {
        let at = entry?.path();
        let file = file::read(io::BufReader::new(fs::File::open(
            at.join("snapshot.json"),
        )?))?;
        let saved: Saved = serde_json::from_slice(&fs::read(at.join("seen.json"))?)?;
        let name = |key: &NsKey| {
            let place = saved.places.get(&key.netns.ino).cloned();
            place.unwrap_or_default()
        };
        match judged(&file.topology, &name, &saved.probe, &saved.observed) {
            Verdict::Agrees(_) => count.agree += 1,
            Verdict::Unknown(_) => count.unknown += 1,
            Verdict::Differs(text) => {
                let name = at.file_name().unwrap_or_default().to_string_lossy();
                return Ok(Some(format!("scenario {name}: {text}")));
            }
        }
    }
    Ok(None)
}

fn judge(path: &Path, count: &mut Count) -> Result<Option<String>, Box<dyn Error>> {
    let record: Record = serde_json::from_slice(&fs::read(path)?)?;
    let name = |key: &NsKey| {
        let place = record.places.get(&key.netns.ino).cloned();
        place.unwrap_or_default()
    };
    let mut topology = Topology::default();
    let mut all = BTreeMap::<NetNsId, NetNs>::new();
    topology.nodes = record.node.into_iter().collect();
    for asked in record.asked {
        for (id, mut netns) in asked.changed {
            if let Some(old) = all.get(&id) {
                keep_rules(&mut netns, old);
            }
            all.insert(id, netns);
        }
        for node in topology.nodes.values_mut() {
            node.netns = std::mem::take(&mut all);
        }
        let verdict = judged(&topology, &name, &asked.probe, &asked.observed);
        for node in topology.nodes.values_mut() {
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
pub fn judged(
    topology: &Topology,
    name: &dyn Fn(&NsKey) -> String,
    probe: &Probe,
    observed: &Observed,
) -> Verdict {
    let mut all = topology.all().map(|(key, _)| key);
    let Some(from) = all.find(|key| name(key) == probe.from) else {
        return Verdict::Unknown("the sender's namespace is not there".to_owned());
    };
    let question = Question::of(probe, from, topology);
    let outcome = question.ask(topology, &ask::limits());
    let mut lost = |trace: &Trace, back| ask::is_lost_as_read(topology, &question, trace, back);
    let manner = Manner::of(probe);
    ask::compare(
        probe,
        &outcome.traces,
        name,
        observed,
        &mut |trace, observed| fit::fits(manner, trace, name, observed, &mut lost),
    )
}
