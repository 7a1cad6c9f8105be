//! Looking at processes through `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Process ids here of all processes of the pid namespace of `member`, by their ids there.
pub fn ids_in_namespace_of(member: i32) -> Result<BTreeMap<i32, i32>> {
    let namespace = fs::read_link(format!("/proc/{member}/ns/pid"))
        .with_context(|| format!("read the pid namespace of process {member}"))?;
    let mut ids = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("list /proc")? {
        let entry = entry.context("list /proc")?;
        let Some(outer) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        let Some(same) = gone_is_none(fs::read_link(entry.path().join("ns/pid")))? else {
            continue;
        };
        if same != namespace {
            continue;
        }
        let Some(status) = gone_is_none(fs::read_to_string(entry.path().join("status")))? else {
            continue;
        };
        let inner = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))
            .and_then(|ids| ids.split_whitespace().next_back())
            .and_then(|id| id.parse().ok());
        if let Some(inner) = inner {
            ids.insert(inner, outer);
        }
    }
    Ok(ids)
}

/// A process that ended while it was looked at is not an error.
fn gone_is_none<T>(result: std::io::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error)
            if error.kind() == ErrorKind::NotFound
                || error.raw_os_error() == Some(Errno::ESRCH as i32)
                // Kernel threads and a machine's pid 1 may hide their namespaces even from root.
                || error.kind() == ErrorKind::PermissionDenied =>
        {
            Ok(None)
        }
        Err(error) => Err(error).context("look at a process"),
    }
}

/// Whether process `pid` runs in control group `group` (a path from the root) or below it.
///
/// Process ids are used again; this tells whether a remembered one is still meant.
pub fn is_in_group(pid: i32, group: &str) -> Result<bool> {
    let Some(text) = gone_is_none(fs::read_to_string(format!("/proc/{pid}/cgroup")))? else {
        return Ok(false);
    };
    Ok(text.lines().any(|line| {
        line.splitn(3, ':').nth(2).is_some_and(|path| {
            path.strip_prefix(group)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }))
}

/// Kills process `pid` and waits until it has ended.
pub fn kill_and_wait(pid: i32) -> Result<()> {
    match kill(Pid::from_raw(pid), Signal::SIGKILL) {
        Ok(()) => {}
        Err(Errno::ESRCH) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("kill process {pid}")),
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    while !has_ended(pid)? {
        if Instant::now() > deadline {
            bail!("wait for the end of process {pid}: still there after 10 s");
        }
        #[allow(clippy::disallowed_methods, reason = "polls the condition above")]
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

/// Whether a process is gone, or a zombie that its parent has not looked at yet.
fn has_ended(pid: i32) -> Result<bool> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let Some(text) = gone_is_none(fs::read_to_string(path))? else {
        return Ok(true);
    };
    // The state follows the last parenthesis of the command name.
    Ok(text
        .rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with(['Z', 'X'])))
}
