//! Entering namespaces; the only place of this crate that calls `setns` and `unshare`.
//!
//! Work in a namespace is done on a thread that is made for it and ends with it, so that the
//! caller's own namespaces never change.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns, unshare};

/// Open namespaces of one process.
#[derive(Debug)]
pub struct Namespaces {
    members: Vec<(CloneFlags, File)>,
}

/// Kinds in the order in which they are entered: the mount namespace last, because `/proc` changes with it.
const NODE_KINDS: [(&str, CloneFlags); 6] = [
    ("net", CloneFlags::CLONE_NEWNET),
    ("uts", CloneFlags::CLONE_NEWUTS),
    ("ipc", CloneFlags::CLONE_NEWIPC),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP),
    ("pid", CloneFlags::CLONE_NEWPID),
    ("mnt", CloneFlags::CLONE_NEWNS),
];

impl Namespaces {
    /// Opens all six namespaces of the node whose pid 1 is `pid` here.
    pub fn of_node(pid: i32) -> Result<Self> {
        Self::open(pid, &NODE_KINDS)
    }

    /// Opens the network namespace of process `pid` alone.
    pub fn net_of(pid: i32) -> Result<Self> {
        Self::open(pid, &[("net", CloneFlags::CLONE_NEWNET)])
    }

    /// Opens a network namespace by the path of its file.
    pub fn net_at(path: &Path) -> Result<Self> {
        let file = File::open(path)
            .with_context(|| format!("open network namespace {}", path.display()))?;
        Ok(Self {
            members: vec![(CloneFlags::CLONE_NEWNET, file)],
        })
    }

    fn open(pid: i32, kinds: &[(&str, CloneFlags)]) -> Result<Self> {
        let mut members = Vec::new();
        for (name, kind) in kinds {
            let path = format!("/proc/{pid}/ns/{name}");
            let file = File::open(&path).with_context(|| format!("open namespace {path}"))?;
            members.push((*kind, file));
        }
        Ok(Self { members })
    }

    /// The same set of namespaces with the network namespace of `pid` instead of its own.
    pub fn with_net_of(mut self, pid: i32) -> Result<Self> {
        let mut net = Self::net_of(pid)?;
        self.members
            .retain(|(kind, _)| *kind != CloneFlags::CLONE_NEWNET);
        net.members.append(&mut self.members);
        Ok(net)
    }

    /// Descriptor of the network namespace, if it is among them.
    pub fn net_fd(&self) -> Option<BorrowedFd<'_>> {
        self.members
            .iter()
            .find(|(kind, _)| *kind == CloneFlags::CLONE_NEWNET)
            .map(|(_, file)| file.as_fd())
    }

    /// Runs `work` inside, on a thread of its own, and returns what it returns.
    ///
    /// Programs started by `work` live in these namespaces, the pid namespace included; threads cannot
    /// be started where that is another one (`copy_process()` refuses, kernel/fork.c). A panic of
    /// `work` goes on in the caller.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_thread(|| {
            // A mount namespace can be entered only by a thread that shares its root with no other.
            if self
                .members
                .iter()
                .any(|(kind, _)| *kind == CloneFlags::CLONE_NEWNS)
            {
                unshare(CloneFlags::CLONE_FS).context("unshare the file system context")?;
            }
            for (kind, file) in &self.members {
                setns(file, *kind).with_context(|| format!("enter namespace {kind:?}"))?;
            }
            work()
        })
    }
}

/// Leaves every namespace of the calling process for new ones.
///
/// Only for a process with one thread; the pid namespace begins with its next child.
pub fn leave_all() -> Result<()> {
    let kinds = NODE_KINDS
        .iter()
        .fold(CloneFlags::empty(), |all, (_, kind)| all | *kind);
    unshare(kinds).context("make the namespaces of a node (root is needed)")
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|error| anyhow!("start a thread for a namespace: {error}"))?;
        match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
