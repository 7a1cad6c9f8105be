//! Reads what `map`, `dump` and `snapshot save` need, wherever facts come from.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use netpath::model::names::Names;
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, NsTarget, Want};
use netpath::simulate::Wants;

use super::cluster::{self, Cluster};
use super::fleet::{Fleet, Source};
use super::progress::Progress;
use super::{local, plan, saved};
use crate::cli::GlobalFlags;
use crate::launch::{Launcher, Outcome as Guarded, guard};
use crate::request::Facts;
use crate::resolve::EndSpec;

/// What was read.
pub struct Read {
    /// Facts.
    pub topology: Topology,
    /// Names; empty without Kubernetes.
    pub names: Names,
    /// What could not be read, nodes or names, with the reason.
    pub failed: Vec<String>,
    /// Exit code where nothing else is to be said: not 0 where a helper was left behind.
    pub code: u8,
}

/// Which nodes, and what of them.
pub struct Wish<'a> {
    /// Ends that were typed, for the resolver's scope.
    pub ends: &'a [&'a EndSpec],
    /// With Kubernetes: what to ask for, once the cluster is known.
    pub cluster: &'a dyn Fn(&Cluster) -> anyhow::Result<Wants>,
    /// With Kubernetes: resources of which all should be known, so that the answer is whole.
    pub names: &'a [&'a str],
    /// Kinds of facts that the answer is made of (`None`: all that there are), for those who do not say themselves
    /// which are missing.
    pub sections: Option<&'a [&'a str]>,
    /// On one machine: how much of its namespaces.
    pub depth: Depth,
    /// On one machine: a process whose namespace must be among them.
    pub pid: Option<u32>,
    /// On one machine: what else to ask for, once its namespaces are known.
    pub more: &'a dyn Fn(&Topology) -> anyhow::Result<Wants>,
}

/// How reading ended.
pub enum Done {
    /// With this.
    Read(Box<Read>),
    /// By a signal, or before it began since only the plan was asked for; the exit code.
    Ended(u8),
}

/// Reads. Errors: nothing at all could be read.
pub async fn read(facts: &Facts, global: &GlobalFlags, wish: &Wish<'_>) -> anyhow::Result<Done> {
    let progress = Progress::new(global.verbose);
    match facts {
        Facts::File(path) => {
            let file = saved::read(path)?;
            Ok(Done::Read(Box::new(Read {
                topology: file.topology,
                names: file.names,
                failed: Vec::new(),
                code: 0,
            })))
        }
        Facts::Local => {
            let mut signals = crate::launch::signals::Signals::listen();
            let work = on_this_machine(progress, wish);
            tokio::select! {
                biased;
                signal = signals.next() => Ok(Done::Ended(super::interrupted(signal))),
                done = work => done.map(|read| Done::Read(Box::new(read))),
            }
        }
        Facts::Cluster(flags) => {
            let cluster = cluster::read(&global.connection, flags, wish.ends, progress).await?;
            let wants = (wish.cluster)(&cluster)?;
            let unlisted = cluster::unlisted(&cluster.view, wish.names);
            if wants.is_empty() {
                let why = match unlisted.as_slice() {
                    [] => "the cluster has none".to_owned(),
                    some => some.join("; "),
                };
                bail!("no node is known to look at: {why}");
            }
            let launcher = Launcher::new(cluster.kube.clone(), flags.clone());
            if flags.dry_run {
                let code = plan::print(&launcher, &cluster, wants.into_keys())?;
                return Ok(Done::Ended(code));
            }
            let work = async {
                let source = Source::Cluster {
                    launcher: &launcher,
                    view: &cluster.view,
                };
                let topology = cluster::topology(&cluster.view, &cluster.names);
                let mut fleet = Fleet::new(source, topology, progress);
                let nodes: BTreeSet<String> = wants.keys().cloned().collect();
                fleet.ask(wants).await;
                let mut failed = fleet.reasons();
                if nodes.iter().all(|node| fleet.failure(node).is_some()) {
                    bail!("{}", failed.join("; "));
                }
                let topology = fleet.close().await;
                failed.extend(unlisted);
                failed.extend(unread(&topology, wish.sections));
                Ok((topology, failed))
            };
            let (outcome, left) = guard(&launcher, work, Result::is_ok).await;
            let left_code = super::left_behind(&left, 0);
            match outcome {
                Guarded::Signalled(signal) => Ok(Done::Ended(super::interrupted(signal))),
                Guarded::Done(done) => {
                    let (topology, failed) = done?;
                    tell_ended(&topology);
                    for why in &failed {
                        super::say(&format!("warning: {why}"));
                    }
                    Ok(Done::Read(Box::new(Read {
                        topology,
                        names: cluster.names,
                        failed,
                        code: left_code,
                    })))
                }
            }
        }
    }
}

async fn on_this_machine(progress: Progress, wish: &Wish<'_>) -> anyhow::Result<Read> {
    let node = local::host_name();
    let mut fleet = Fleet::new(Source::Local, Topology::default(), progress);
    let mut wants = local::wants(&node, wish.depth);
    if let Some(pid) = wish.pid {
        let want = Want::NetNs {
            target: NsTarget::Pid(pid),
            depth: wish.depth,
        };
        wants.entry(node.clone()).or_default().insert(want);
    }
    fleet.ask(wants).await;
    if let Some(why) = fleet.failure(&node) {
        bail!("{why}");
    }
    let more = (wish.more)(&fleet.topology)?;
    fleet.ask(more).await;
    if let Some(why) = fleet.failure(&node) {
        bail!("{why}");
    }
    let topology = fleet.close().await;
    tell_ended(&topology);
    Ok(Read {
        topology,
        names: Names::default(),
        failed: Vec::new(),
        code: 0,
    })
}

/// What of these sections (`None`: of all) could not be read, and which namespaces were not found: a line for each
/// reason.
fn unread(topology: &Topology, sections: Option<&[&str]>) -> Vec<String> {
    let mut reasons: BTreeMap<(String, String), (BTreeSet<String>, usize)> = BTreeMap::new();
    let wanted = |name: &str| sections.is_none_or(|sections| sections.contains(&name));
    for (key, netns) in topology.all() {
        let missing = netns.missing().into_iter();
        let mut of_this: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (section, why) in missing.filter(|(name, _)| wanted(name)) {
            of_this.entry(why).or_default().insert(section);
        }
        for (why, names) in of_this {
            let (all, count) = reasons.entry((key.node.clone(), why)).or_default();
            all.extend(names);
            *count += 1;
        }
    }
    let sections_lost = reasons.into_iter().map(|((node, why), (names, count))| {
        let names: Vec<String> = names.into_iter().collect();
        format!("{node}: {} of {count} namespaces: {why}", names.join(", "))
    });
    let absent = topology.absent.iter();
    let some = sections.is_none_or(|sections| !sections.is_empty());
    let absent = absent.filter(|(_, target, _)| *target == NsTarget::All && some);
    sections_lost
        .chain(absent.map(|(node, _, why)| format!("{node}: not all namespaces were found: {why}")))
        .collect()
}

/// Names the namespaces that ended while they were read: nobody asked for them alone, so that they are
/// no failure.
fn tell_ended(topology: &Topology) {
    for (node, target, why) in &topology.absent {
        if matches!(target, NsTarget::Id(_)) {
            super::say(&format!("note: {node}: {why}"));
        }
    }
}

/// One want for each of these nodes.
pub fn everywhere(
    nodes: impl IntoIterator<Item = String>,
    target: &NsTarget,
    depth: Depth,
) -> Wants {
    let want = || Want::NetNs {
        target: target.clone(),
        depth,
    };
    nodes
        .into_iter()
        .map(|node| (node, [want()].into()))
        .collect()
}
