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
    fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
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
