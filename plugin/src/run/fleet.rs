//! Helpers that can be asked, and what they have told so far.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use futures::future::join_all;
use netpath::model::netfilter::Backend;
use netpath::model::topology::Topology;
use netpath::model::want::{Packets, Want};
use netpath::simulate::Wants;

use super::progress::Progress;
use super::stages::Stages;
use crate::launch::{Launcher, NodeTarget, Session, spawn_local};
use crate::resolve::ClusterView;

/// How helpers are come by.
pub enum Source<'a> {
    /// Helper pods, by node.
    Cluster {
        /// Starts them.
        launcher: &'a Launcher,
        /// The cluster.
        view: &'a ClusterView,
    },
    /// A child process.
    Local,
    /// Nobody can be asked: a saved file holds all there is.
    Nobody,
}

/// What the answer cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Times that helpers were asked, all of them at once counting as one.
    pub round_trips: u32,
    /// Helpers that were asked.
    pub helpers: u32,
    /// Bytes read from helpers.
    pub bytes_in: u64,
    /// Bytes sent to helpers.
    pub bytes_out: u64,
    /// Milliseconds from start to answer.
    pub millis: u64,
}

/// The helpers of one run.
pub struct Fleet<'a> {
    source: Source<'a>,
    sessions: BTreeMap<String, Session>,
    failed: BTreeMap<String, String>,
    asked: BTreeSet<(String, Want)>,
    progress: Progress,
    round_trips: u32,
    /// Where the time went so far.
    pub stages: Stages,
    /// What is known so far.
    pub topology: Topology,
    /// What the questions are about, so that helpers can leave out what is not.
    pub about: Option<Packets>,
}

impl<'a> Fleet<'a> {
    /// A fleet without helpers, and what is known without them.
    pub fn new(source: Source<'a>, topology: Topology, progress: Progress) -> Self {
        Self {
            source,
            sessions: BTreeMap::new(),
            failed: BTreeMap::new(),
            asked: BTreeSet::new(),
            progress,
            round_trips: 0,
            stages: Stages::default(),
            topology,
            about: None,
        }
    }

    /// Starts helpers on those of `nodes` that have none yet, all at once. What goes wrong is kept,
    /// see [`Self::failure`].
    async fn open(&mut self, nodes: &BTreeSet<String>) {
        let missing: Vec<&String> = nodes
            .iter()
            .filter(|node| !self.sessions.contains_key(*node) && !self.failed.contains_key(*node))
            .collect();
        if missing.is_empty() {
            return;
        }
        let begin = Instant::now();
        let started = match &self.source {
            Source::Nobody => return,
            Source::Local => {
                let session = async {
                    let pipe = spawn_local().map_err(|error| error.to_string())?;
                    let started = Session::start("this machine", pipe).await;
                    started.map_err(|error| chain(&error))
                };
                let session = session.await;
                missing
                    .first()
                    .map(|node| ((*node).clone(), session))
                    .into_iter()
                    .collect::<BTreeMap<_, _>>()
            }
            Source::Cluster { launcher, view } => {
                let targets: Vec<NodeTarget> = missing
                    .iter()
                    .map(|name| match view.node(name) {
                        Some(node) => NodeTarget::of(node),
                        None => NodeTarget::named(name),
                    })
                    .collect();
                let names: Vec<&str> = missing.iter().map(|name| name.as_str()).collect();
                let what = format!("starting helpers on {}", names.join(", "));
                let launched = self
                    .progress
                    .during(&what, launcher.launch(&targets, Some(view)))
                    .await;
                self.progress
                    .verbose(|| format!("{what}: {} ms", begin.elapsed().as_millis()));
                launched
                    .into_iter()
                    .map(|(node, session)| (node, session.map_err(|error| chain(&error))))
                    .collect()
            }
        };
        self.stages.launch += begin.elapsed();
        for (node, session) in started {
            match session {
                Ok(session) => {
                    let greeting = session.greeting();
                    self.progress.verbose(|| {
                        format!(
                            "{node}: helper {}, kernel {}",
                            greeting.version, greeting.kernel
                        )
                    });
                    self.sessions.insert(node, session);
                }
                Err(why) => self.lost(node, why),
            }
        }
    }

    fn lost(&mut self, node: String, why: String) {
        self.sessions.remove(&node);
        if let Some(hint) = self.topology.hints.get_mut(&node) {
            hint.reachable = false;
        }
        self.failed.insert(node, why);
    }

    /// Helpers that run, by node.
    pub fn sessions(&mut self) -> &mut BTreeMap<String, Session> {
        &mut self.sessions
    }

    /// Why a node has no helper, where that is so.
    pub fn failure(&self, node: &str) -> Option<&str> {
        self.failed.get(node).map(String::as_str)
    }

    /// Why nodes have no helper that was wanted there: what holds for several of them once.
    pub fn reasons(&self) -> Vec<String> {
        let distinct: BTreeSet<&String> = self.failed.values().collect();
        distinct.into_iter().cloned().collect()
    }

    /// Asks for what was not asked for yet, of all nodes at once, and takes the answers in. `false`
    /// where nothing new could be asked.
    pub async fn ask(&mut self, wants: Wants) -> bool {
        if matches!(self.source, Source::Nobody) {
            return false;
        }
        let mut wants: BTreeMap<String, Vec<Want>> = wants
            .into_iter()
            .map(|(node, wants)| {
                let asked = &mut self.asked;
                let new = wants.into_iter().filter(|want| {
                    // A conntrack entry may come and go; everything else is asked for once.
                    asked.insert((node.clone(), want.clone()))
                });
                let new: Vec<Want> = new.collect();
                (node, new)
            })
            .filter(|(node, wants)| !wants.is_empty() && !self.failed.contains_key(node))
            .collect();
        if wants.is_empty() {
            return false;
        }
        let nodes = wants.keys().cloned().collect();
        self.open(&nodes).await;
        let begin = Instant::now();
        let count: usize = wants.values().map(Vec::len).sum();
        if let Some(about) = &self.about {
            for (node, wants) in &mut wants {
                if !wants
                    .iter()
                    .any(|want| is_for_whole(&self.topology, node, want))
                {
                    wants.push(Want::About(about.clone()));
                }
            }
        }
        let asking = join_all(self.sessions.iter_mut().filter_map(|(node, session)| {
            let wants = wants.remove(node)?;
            Some(async move { (node.clone(), session.collect(wants).await) })
        }));
        let what = format!("asking {} helpers for {count} facts", nodes.len());
        let answers = self.progress.during(&what, asking).await;
        self.round_trips += 1;
        self.progress.verbose(|| {
            format!(
                "round {}: {what}: {} ms",
                self.round_trips,
                begin.elapsed().as_millis()
            )
        });
        for (node, answer) in answers {
            match answer {
                Ok(facts) => {
                    for fact in facts {
                        self.topology.merge(&node, fact);
                    }
                    let greeting = self.sessions.get(&node).map(Session::greeting);
                    if let (Some(greeting), Some(snapshot)) =
                        (greeting, self.topology.nodes.get_mut(&node))
                    {
                        snapshot.kernel.clone_from(&greeting.kernel);
                        snapshot.taken_at = greeting.now;
                    }
                }
                Err(error) => self.lost(node, chain(&error)),
            }
        }
        self.stages.collect += begin.elapsed();
        true
    }

    /// Asks for all that was asked for once more, in place of what is known. Gives what was known before.
    pub async fn afresh(&mut self) -> Topology {
        let before = self.topology.clone();
        self.topology.nodes.clear();
        self.topology.absent.clear();
        let mut wants = Wants::new();
        for (node, want) in std::mem::take(&mut self.asked) {
            wants.entry(node).or_default().insert(want);
        }
        self.ask(wants).await;
        before
    }

    /// What the answer cost so far. Goodbyes are not part of it: they come when it is out.
    pub fn stats(&self, start: Instant) -> Stats {
        let mut stats = Stats {
            round_trips: self.round_trips,
            millis: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
            ..Stats::default()
        };
        for session in self.sessions.values() {
            let figures = session.figures();
            stats.helpers += 1;
            stats.bytes_in += figures.bytes_in;
            stats.bytes_out += figures.bytes_out;
        }
        self.progress.verbose(|| {
            format!(
                "{} round trips, {} helpers, {} bytes read, {} bytes sent, {} ms",
                stats.round_trips, stats.helpers, stats.bytes_in, stats.bytes_out, stats.millis
            )
        });
        stats
    }

    /// Ends all helpers' runs, and leaves what they told.
    pub async fn close(self) -> Topology {
        join_all(self.sessions.into_values().map(Session::bye)).await;
        self.topology
    }
}

/// Whether a chain is wanted of which not all was needed before.
fn is_for_whole(topology: &Topology, node: &str, want: &Want) -> bool {
    let Want::Chain {
        netns,
        backend,
        family,
        table,
        chain,
    } = want
    else {
        return false;
    };
    let ns = topology
        .nodes
        .get(node)
        .and_then(|node| node.netns.get(netns));
    let rules = ns.and_then(|ns| match backend {
        Backend::Nft => ns.nft.known(),
        Backend::Legacy => ns.legacy.known(),
    });
    let mut tables = rules.iter().flat_map(|rules| &rules.tables);
    tables
        .find(|own| own.family == *family && own.name == *table)
        .and_then(|table| table.chains.get(chain))
        .is_some_and(|chain| chain.sieved.is_some())
}

/// An error with all its causes on one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
