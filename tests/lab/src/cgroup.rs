//! Control groups: each node has `/np-<lab>/<node>`, its pods the kubelet's paths below.
//!
//! They carry no limits. They exist so that `/proc/PID/cgroup` reads as on a real node: inside the
//! node's cgroup namespace as `/kubepods/burstable/pod<uid>/<container id>`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};

/// One mounted hierarchy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Hierarchy {
    /// Mount point.
    pub mount_point: PathBuf,
    /// `cgroup` (version 1) or `cgroup2`.
    pub kind: String,
    /// Mount data for version 1: controllers, or `none,name=...`.
    pub data: String,
}

/// Version 1 hierarchies that are used beside the unified one: enough to be recognised, cheap to make.
const USED: [&str; 2] = ["name=systemd", "pids"];

/// The hierarchies of this machine that the laboratory uses, from `/proc/self/mounts`.
pub fn hierarchies() -> Result<Vec<Hierarchy>> {
    let text = fs::read_to_string("/proc/self/mounts").context("read /proc/self/mounts")?;
    let mut found: Vec<Hierarchy> = text.lines().filter_map(parse_mount).collect();
    found.dedup();
    if found.is_empty() {
        bail!("look for control groups in /proc/self/mounts: none of cgroup2, systemd, pids");
    }
    Ok(found)
}

/// One line of `/proc/self/mounts`; `None` unless it is a hierarchy that is used.
fn parse_mount(line: &str) -> Option<Hierarchy> {
    let mut fields = line.split(' ').skip(1);
    let mount_point = PathBuf::from(fields.next()?);
    let kind = fields.next()?.to_owned();
    let options = fields.next()?;
    let data = match kind.as_str() {
        "cgroup2" => String::new(),
        "cgroup" => {
            let used = options.split(',').find(|option| USED.contains(option))?;
            if used.starts_with("name=") {
                format!("none,{used}")
            } else {
                used.to_owned()
            }
        }
        _ => return None,
    };
    Some(Hierarchy {
        mount_point,
        kind,
        data,
    })
}

/// Mounts the hierarchies at the same places again, so that their root is this cgroup namespace's.
pub fn mount_again(hierarchies: &[Hierarchy]) -> Result<()> {
    for hierarchy in hierarchies {
        let place = &hierarchy.mount_point;
        fs::create_dir_all(place).with_context(|| format!("create {}", place.display()))?;
        mount(
            Some(hierarchy.kind.as_str()),
            place,
            Some(hierarchy.kind.as_str()),
            MsFlags::empty(),
            (!hierarchy.data.is_empty()).then_some(hierarchy.data.as_str()),
        )
        .with_context(|| format!("mount {} {}", hierarchy.kind, place.display()))?;
    }
    Ok(())
}

/// Makes `path` (relative to the root of each hierarchy) and moves the calling process there.
pub fn join(hierarchies: &[Hierarchy], path: &str) -> Result<()> {
    for hierarchy in hierarchies {
        let group = hierarchy.mount_point.join(path.trim_start_matches('/'));
        fs::create_dir_all(&group).with_context(|| format!("create {}", group.display()))?;
        let members = group.join("cgroup.procs");
        fs::write(&members, "0").with_context(|| format!("write {}", members.display()))?;
    }
    Ok(())
}

/// Removes `path` and everything below it from every hierarchy, waiting for its processes to be gone.
pub fn remove(hierarchies: &[Hierarchy], path: &str) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    for hierarchy in hierarchies {
        remove_tree(
            &hierarchy.mount_point.join(path.trim_start_matches('/')),
            deadline,
        )?;
    }
    Ok(())
}

fn remove_tree(group: &Path, deadline: Instant) -> Result<()> {
    let entries = match fs::read_dir(group) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("list {}", group.display())),
    };
    for entry in entries {
        let entry = entry.with_context(|| format!("list {}", group.display()))?;
        if entry
            .file_type()
            .with_context(|| format!("look at {}", entry.path().display()))?
            .is_dir()
        {
            remove_tree(&entry.path(), deadline)?;
        }
    }
    loop {
        match fs::remove_dir(group) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // Killed processes leave a control group only when they are reaped.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && Instant::now() < deadline => {
                #[allow(
                    clippy::disallowed_methods,
                    reason = "polls the condition above; the kernel has no event for it"
                )]
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => {
                return Err(error).with_context(|| format!("remove {}", group.display()));
            }
        }
    }
}
