//! The process that a node consists of, and the sandbox process of a pod.
//!
//! The node ends when its standard input does, unless a byte came first: a laboratory that a test
//! owns ends with the test, however that ends, and one made by `up` stays.
//!
//! `holder` leaves all namespaces and starts `init`, which is pid 1 of the node: killing it makes
//! the kernel kill every process of the node, and with the last of them the namespaces go.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, sethostname, setsid};

use crate::cgroup;
use crate::namespace;

/// Arguments of the internal subcommands `holder` and `init`.
#[derive(Args, Clone, Debug)]
pub struct HolderArgs {
    /// Laboratory.
    #[arg(long)]
    pub lab: String,
    /// Node.
    #[arg(long)]
    pub node: String,
}

/// Path of a node's control group below the root of every hierarchy.
pub fn cgroup_of(lab: &str, node: &str) -> String {
    format!("/np-{lab}/{node}")
}

/// Makes the node's namespaces, starts its pid 1 and prints that process's id, then lives as long as it.
pub fn hold(args: &HolderArgs) -> Result<()> {
    // Ctrl-C is for whoever runs `up`, which then ends the nodes in order.
    setsid().context("start a session of its own")?;
    let program = std::env::current_exe().context("find this program")?;
    cgroup::join(&cgroup::hierarchies()?, &cgroup_of(&args.lab, &args.node))?;
    namespace::leave_all()?;
    let mut child = Command::new(program)
        .args(["init", "--lab", &args.lab, "--node", &args.node])
        .stdout(Stdio::piped())
        .spawn()
        .context("start pid 1 of the node")?;
    // Its first line says that the mounts are made.
    let mut ready = String::new();
    if let Some(stdout) = child.stdout.take() {
        io::BufRead::read_line(&mut io::BufReader::new(stdout), &mut ready)
            .context("wait for pid 1 of the node")?;
    }
    ensure!(
        ready == "ready\n",
        "start pid 1 of {}: it ended early",
        args.node
    );
    println!("{}", child.id());
    io::stdout().flush().context("report the pid of the node")?;
    child.wait().context("wait for the end of the node")?;
    Ok(())
}

/// Pid 1 of a node: makes its mounts, then reaps orphans until SIGTERM or the end of its owner.
pub fn init(args: &HolderArgs) -> Result<()> {
    let mut mask = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGHUP,
    ] {
        mask.add(signal);
    }
    mask.thread_block().context("block signals")?;
    let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .context("open a signal descriptor")?;
    make_mounts()?;
    sethostname(&args.node).context("set the host name")?;
    println!("ready");
    io::stdout().flush().context("report readiness")?;

    let stdin = io::stdin();
    let mut owned = true;
    loop {
        let mut watched = vec![PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        if owned {
            watched.push(PollFd::new(stdin.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut watched, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("wait for a signal"),
        }
        let owner_spoke = watched.get(1).and_then(PollFd::any).unwrap_or(false);
        while let Some(info) = signals.read_signal().context("read a signal")? {
            if info.ssi_signo != Signal::SIGCHLD as u32 {
                return Ok(());
            }
            reap()?;
        }
        if owner_spoke {
            let mut word = [0; 1];
            // The owner says one byte to let the node live on; end of file means that it died.
            if stdin
                .lock()
                .read(&mut word)
                .context("listen to the owner")?
                == 0
            {
                return Ok(());
            }
            owned = false;
        }
    }
}

fn reap() -> Result<()> {
    loop {
        match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).context("reap an orphan"),
        }
    }
}

/// Private mounts with the node's own `/proc`, `/sys`, control groups and `/run`.
fn make_mounts() -> Result<()> {
    let hierarchies = cgroup::hierarchies()?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_PRIVATE,
        None::<&str>,
    )
    .context("make the mounts of the node private")?;
    // The machine's own are taken away rather than covered: mountinfo would still list them.
    umount2("/sys", MntFlags::MNT_DETACH).context("unmount the machine's /sys")?;
    umount2("/proc", MntFlags::MNT_DETACH).context("unmount the machine's /proc")?;
    let fresh = |kind: &str, place: &str, data: Option<&str>| {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some(kind), place, Some(kind), flags, data)
            .with_context(|| format!("mount {kind} on {place}"))
    };
    fresh("proc", "/proc", None)?;
    fresh("sysfs", "/sys", None)?;
    fresh("tmpfs", "/run", Some("mode=755"))?;
    fs::create_dir("/run/netns").context("create /run/netns")?;
    fresh("tmpfs", "/sys/fs/cgroup", Some("mode=755"))?;
    cgroup::mount_again(&hierarchies)
}

/// Sandbox process of a pod: does nothing until it is told to end.
pub fn pause() -> Result<()> {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGTERM);
    mask.add(Signal::SIGINT);
    mask.thread_block().context("block signals")?;
    println!("ready");
    io::stdout().flush().context("report readiness")?;
    mask.wait().context("wait for a signal")?;
    Ok(())
}
