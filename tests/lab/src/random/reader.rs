//! The product's own reader, and what it read of a set of namespaces.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpath::collect::{Collector, Roots};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, Fact, NsTarget, Want};
use netpath::model::{NetNsId, NsKey};
use netpath::simulate::Outcome;
use netpath::trace::Trace;

use super::places::Places;

/// Name of the one node that all namespaces are on.
pub const NODE: &str = "here";
const WAIT: Duration = Duration::from_secs(20);

/// The reader.
pub struct Reader {
    collector: Collector,
    /// What was read.
    pub topology: Topology,
    names: BTreeMap<NetNsId, String>,
}

impl Reader {
    /// Starts it.
    pub fn up() -> Result<Self> {
        let roots = Roots {
            proc: PathBuf::from("/proc"),
            netns: vec![PathBuf::from("/run/netns")],
        };
        Ok(Self {
            collector: Collector::new(roots)?,
            topology: Topology::default(),
            names: BTreeMap::new(),
        })
    }

    /// Forgets all that was read.
    pub fn forget(&mut self) -> Topology {
        self.names.clear();
        std::mem::take(&mut self.topology)
    }

    /// Forgets connections: packets make and change them.
    pub fn forget_connections(&mut self) {
        let nodes = self.topology.nodes.values_mut();
        for ns in nodes.flat_map(|node| node.netns.values_mut()) {
            ns.conntrack.clear();
            ns.conntrack_from.clear();
        }
    }

    /// Reads these namespaces.
    pub fn read<N: AsRef<str>>(
        &mut self,
        places: &Places,
        which: &[N],
        depth: Depth,
    ) -> Result<()> {
        let files = which.iter().map(|place| places.netns(place.as_ref()));
        let wants: Vec<Want> = files
            .map(|file| Want::NetNs {
                target: NsTarget::Named(file),
                depth,
            })
            .collect();
        let mut found = BTreeSet::new();
        for fact in self.collector.collect(&wants, WAIT) {
            if let Fact::NetNs(ns) = &fact {
                let is = |place: &&N| {
                    let file = format!("/{}", places.netns(place.as_ref()));
                    ns.identity.paths.iter().any(|path| path.ends_with(&file))
                };
                if let Some(place) = which.iter().find(is) {
                    found.insert(place.as_ref());
                    let name = place.as_ref().to_owned();
                    self.names.insert(ns.identity.id, name);
                }
            }
            self.topology.merge(NODE, fact);
        }
        if let Some(node) = self.topology.nodes.get_mut(NODE) {
            // As the helper's greeting tells it.
            node.kernel = nix::sys::utsname::uname()?
                .release()
                .to_string_lossy()
                .into_owned();
        }
        let mut names = which.iter().map(AsRef::as_ref);
        let absent = names.find(|place| !found.contains(place));
        ensure!(
            absent.is_none(),
            "read namespace {}: it was not found",
            absent.unwrap_or_default()
        );
        Ok(())
    }

    /// Tells names of the namespaces that were read until now.
    pub fn namer(&self) -> impl Fn(&NsKey) -> String + use<> {
        let names = self.names.clone();
        move |key| {
            let name = names.get(&key.netns).cloned();
            name.unwrap_or_else(|| "?".to_owned())
        }
    }

    /// The namespace of a name.
    pub fn key(&self, place: &str) -> Result<NsKey> {
        let found = self.names.iter().find(|(_, name)| *name == place);
        let (netns, _) = found.with_context(|| format!("{place} was not read"))?;
        Ok(NsKey {
            node: NODE.to_owned(),
            netns: *netns,
        })
    }

    /// Runs a simulation until nothing is wanted that was not asked for.
    pub fn ask(&mut self, run: impl Fn(&Topology) -> Outcome) -> Vec<Trace> {
        let mut asked = BTreeSet::new();
        loop {
            let mut outcome = run(&self.topology);
            let wants = outcome.wants.remove(NODE).unwrap_or_default();
            let new: Vec<Want> = wants.difference(&asked).cloned().collect();
            if new.is_empty() {
                return outcome.traces;
            }
            for fact in self.collector.collect(&new, WAIT) {
                self.topology.merge(NODE, fact);
            }
            asked.extend(new);
        }
    }

    /// As [`Self::ask`], with connections as they are now; the topology stays as it was before the packet was sent.
    pub fn ask_apart(&mut self, run: impl Fn(&Topology) -> Outcome) -> Vec<Trace> {
        self.aside(|own| {
            own.forget_connections();
            own.ask(run)
        })
    }

    /// As [`Self::ask`]; the topology stays as it was before the packet was sent.
    pub fn ask_beside(&mut self, run: impl Fn(&Topology) -> Outcome) -> Vec<Trace> {
        self.aside(|own| own.ask(run))
    }

    fn aside<T>(&mut self, ask: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.topology.clone();
        let answer = ask(self);
        self.topology = before;
        answer
    }
}
