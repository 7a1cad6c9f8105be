//! Takes a cluster away: processes, then control groups, then files.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context, Result, bail};

use super::Cluster;
use crate::holder::cgroup_of;
use crate::state::{ClusterState, NodeState, STATE_ROOT};
use crate::{cgroup, process};

impl Cluster {
    /// Takes the laboratory down, saying what could not be taken away.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        self.take_down()
    }

    /// Takes down what is left of the laboratory called `name`, even without a state file.
    pub fn down_by_name(name: &str) -> Result<()> {
        if ClusterState::path(name).exists() {
            Self::load(name)?.down()
        } else if ClusterState::dir(name).exists() {
            remove_leftovers(name)
        } else {
            bail!("take down laboratory {name}: no such laboratory")
        }
    }

    /// Takes down every laboratory of which no node is alive; the answer names them.
    ///
    /// Such laboratories remain when their owner was killed rather than asked to end. One that is
    /// just being brought up has no state file yet and is left alone.
    pub fn prune() -> Result<Vec<String>> {
        let mut dead = Vec::new();
        for name in Self::names()? {
            let state = match ClusterState::load(&name) {
                Ok(state) => state,
                // Being brought up, or just taken down by its owner.
                Err(_) if !ClusterState::path(&name).exists() => continue,
                Err(error) => return Err(error),
            };
            let mut alive = false;
            for node in state.nodes.iter().chain([&state.underlay]) {
                alive |= process::is_in_group(node.holder_pid, &cgroup_of(&name, &node.name))?;
            }
            if !alive {
                remove_leftovers(&name)?;
                dead.push(name);
            }
        }
        Ok(dead)
    }

    /// Names of all laboratories of this machine, in order.
    pub fn names() -> Result<Vec<String>> {
        let entries = match fs::read_dir(STATE_ROOT) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(|| format!("list {STATE_ROOT}")),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.with_context(|| format!("list {STATE_ROOT}"))?;
            names.extend(entry.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }

    fn take_down(&mut self) -> Result<()> {
        let mut problems: Vec<String> = Vec::new();
        let mut note = |result: Result<()>| {
            if let Err(error) = result {
                problems.push(format!("{error:#}"));
            }
        };
        for node in self.state.nodes.iter().chain([&self.state.underlay]) {
            note(end_node(&self.state.name, node));
        }
        for mut holder in self.holders.drain(..) {
            drop(holder.lifeline);
            note(
                holder
                    .child
                    .wait()
                    .map(drop)
                    .context("wait for the end of a node"),
            );
        }
        note(remove_leftovers(&self.state.name));
        if problems.is_empty() {
            Ok(())
        } else {
            bail!(
                "take down laboratory {}: {}",
                self.state.name,
                problems.join("; ")
            )
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = self.take_down()
        {
            eprintln!("{error:#}");
        }
    }
}

fn end_node(lab: &str, node: &NodeState) -> Result<()> {
    if node.holder_pid == 0 || !process::is_in_group(node.holder_pid, &cgroup_of(lab, &node.name))?
    {
        return Ok(());
    }
    process::kill_and_wait(node.holder_pid).with_context(|| format!("end {}", node.name))
}

/// Control groups and files; processes must have been told to end before.
fn remove_leftovers(name: &str) -> Result<()> {
    cgroup::remove(&cgroup::hierarchies()?, &format!("/np-{name}"))?;
    let dir = ClusterState::dir(name);
    match fs::remove_dir_all(&dir) {
        Ok(()) => {}
        // Its owner and `prune` may do this at the same time.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("remove {}", dir.display())),
    }
    match fs::remove_dir(STATE_ROOT) {
        Ok(()) => Ok(()),
        // Other laboratories are up, or another process removed it first.
        Err(error)
            if matches!(
                error.kind(),
                ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("remove {STATE_ROOT}")),
    }
}
