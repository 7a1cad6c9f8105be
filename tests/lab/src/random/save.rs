//! Cases that disagreed, as scenarios that need no kernel: facts, packet, and what was seen.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use netpath::contract::file;
use netpath::model::names::Names;
use serde::Serialize;

use super::ask::Verdict;
use super::reader::NODE;
use super::seen::Observed;
use super::shrink::attempt;
use super::world::{Case, Probe};

/// What is saved beside the snapshot.
#[derive(Debug, Serialize)]
struct Saved<'s> {
    /// Names of namespaces by their inode numbers.
    places: std::collections::BTreeMap<u64, String>,
    /// The packet.
    probe: &'s Probe,
    /// What the kernel did with it.
    observed: &'s Observed,
}

/// Sends a case once more and saves it under `dir`, with what the kernel did.
pub fn save(dir: &Path, case: &Option<Case>, seed: u64, number: usize) -> Result<Option<PathBuf>> {
    let Some(case) = case else { return Ok(None) };
    let tried = attempt(case)?;
    let path = dir.join(format!("seed-{seed:x}-{number}"));
    fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    let mut places = std::collections::BTreeMap::new();
    let mut topology = tried.judge.topology().clone();
    let name = tried.judge.namer();
    for (key, _) in topology.all() {
        places.insert(key.netns.ino, name(&key));
    }
    if let Some(node) = topology.nodes.get_mut(NODE) {
        for netns in node.netns.values_mut() {
            let name = places.get(&netns.identity.id.ino).cloned();
            netns.identity.paths = vec![format!("/run/netns/{}", name.unwrap_or_default())];
            netns.identity.processes.clear();
        }
    }
    let probe = case.probes.last().context("a case without packets")?;
    let saved = Saved {
        places,
        probe,
        observed: &tried.observed,
    };
    let write = |name: &str, bytes: Vec<u8>| {
        let at = path.join(name);
        fs::write(&at, bytes).with_context(|| format!("write {}", at.display()))
    };
    let mut snapshot = Vec::new();
    file::write(&mut snapshot, &topology, &Names::default())?;
    write("snapshot.json", snapshot)?;
    write("seen.json", serde_json::to_vec_pretty(&saved)?)?;
    write("case.json", serde_json::to_vec_pretty(case)?)?;
    if let Verdict::Differs(text) = &tried.verdict {
        write("difference.txt", text.clone().into_bytes())?;
    }
    Ok(Some(path))
}
