//! Starts pod processes inside a node, as its pid 1's orphans.
//!
//! A process that were a child of whoever runs `up` would have its parent outside of the node, and
//! the kernel would not let the node end before that parent reaps it. So `up` starts the internal
//! subcommand `launch` in the node; it starts the processes, waits until each is ready, and ends.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::command;
use crate::namespace::Namespaces;

/// One process to start.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Launch {
    /// What `ps` shows as the program.
    pub title: String,
    /// Arguments of this program: `pause` or `serve` with its options.
    pub arguments: Vec<String>,
    /// Control group in the node, from its root; none leaves it in the node's own.
    pub cgroup: Option<String>,
    /// Network namespace file; none for the node's own.
    pub netns: Option<String>,
}

/// Starts `list` in the node whose namespaces these are; the answer holds the ids within the node.
pub fn in_node(node: &Namespaces, program: &Path, list: &[Launch]) -> Result<Vec<i32>> {
    let input = serde_json::to_string(list).context("encode what is to be started")?;
    let program = program
        .to_str()
        .with_context(|| format!("path of this program {} is not UTF-8", program.display()))?;
    let answer = node.run(|| command::feed(&[program, "launch"], &input))?;
    serde_json::from_str(&answer).with_context(|| format!("decode started processes {answer:?}"))
}

/// The subcommand: reads the list from standard input and prints the process ids.
pub fn launch() -> Result<()> {
    let list: Vec<Launch> =
        serde_json::from_reader(io::stdin().lock()).context("read what is to be started")?;
    let program = std::env::current_exe().context("find this program")?;
    let mut started = Vec::new();
    for item in &list {
        started.push(start(&program, item).with_context(|| format!("start {:?}", item.title))?);
    }
    // All are on their way; now wait for each.
    let mut pids = Vec::new();
    for ((pid, stdout), item) in started.into_iter().zip(&list) {
        let mut line = String::new();
        BufReader::new(stdout)
            .read_line(&mut line)
            .with_context(|| format!("wait for {:?}", item.title))?;
        ensure!(line == "ready\n", "start {:?}: it ended early", item.title);
        pids.push(pid);
    }
    let answer = serde_json::to_string(&pids).context("encode process ids")?;
    io::stdout()
        .write_all(answer.as_bytes())
        .context("report process ids")
}

fn start(program: &PathBuf, item: &Launch) -> Result<(u32, ChildStdout)> {
    let mut command = Command::new(program);
    command
        .arg0(&item.title)
        .args(&item.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    if let Some(group) = &item.cgroup {
        command.env(CGROUP_VARIABLE, group);
    }
    let mut child = match &item.netns {
        Some(path) => Namespaces::net_at(Path::new(path))?.run(|| Ok(command.spawn()?))?,
        None => command.spawn()?,
    };
    let stdout = child.stdout.take().context("take its standard output")?;
    Ok((child.id(), stdout))
}

/// Environment variable that tells a started process which control group to join.
const CGROUP_VARIABLE: &str = "NETPATH_LAB_CGROUP";

/// Moves the calling process to the control group that its launcher named, if any.
pub fn join_cgroup() -> Result<()> {
    match std::env::var(CGROUP_VARIABLE) {
        Ok(path) => cgroup::join(&cgroup::hierarchies()?, &path),
        Err(std::env::VarError::NotPresent) => Ok(()),
        Err(error) => Err(error).context("read the control group to join"),
    }
}
