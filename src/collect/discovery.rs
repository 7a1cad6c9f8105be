//! Which network namespaces there are on this node, without asking a container runtime.
//!
//! One pass over `/proc` reads each process's `ns/net` link; the cgroup of one or a few processes per
//! namespace names its pod; files in `/run/netns` add the namespaces that no process is in (CRI-O without
//! a pause process, `ip netns add`). Identity is device and inode of the nsfs file, never a pid.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statfs::statfs;
use procfs::process::Process;

use super::cgroup::{self, CgroupIdentity};
use super::error::{Error, Result};
use super::netns::NsFile;
use crate::model::NetNsId;
use crate::model::netns::{NsIdentity, NsProcess};

const NSFS_MAGIC: i64 = 0x6e73_6673;
/// Processes whose cgroup is read until one names a pod.
const CGROUPS: usize = 4;
/// Processes that are listed per namespace.
const LISTED: usize = 24;
/// PF_KTHREAD, include/linux/sched.h
const KERNEL_THREAD: u32 = 0x0020_0000;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Roots {
    /// Mount point of proc.
    pub proc: PathBuf,
    /// Directories with namespace files.
    pub netns: Vec<PathBuf>,
}

impl Default for Roots {
    fn default() -> Self {
        let proc = PathBuf::from("/proc");
        let host = proc.join("1/root");
        let dirs = [
            "run/netns",
            "var/run/netns",
            "run/docker/netns",
            "run/containerd/io.containerd.grpc.v1.cri/netns",
        ];
        let netns = dirs
            .iter()
            .map(|dir| Path::new("/").join(dir))
            .chain(dirs.iter().map(|dir| host.join(dir)))
            .collect();
        Self { proc, netns }
    }
}

/// A namespace that was found.
#[derive(Clone, Debug)]
pub struct Found {
    /// Identity on this kernel.
    pub id: NetNsId,
    /// The node's own.
    pub host: bool,
    /// Pod, where a cgroup names one.
    pub pod_uid: Option<String>,
    /// Processes in it, lowest first.
    pub pids: Vec<u32>,
    /// Files that keep it.
    pub paths: Vec<PathBuf>,
    depth: usize,
}

/// All that was found, and what could not be looked at.
#[derive(Debug, Default)]
pub struct Discovery {
    /// Namespaces by identity.
    pub namespaces: BTreeMap<NetNsId, Found>,
    /// Reasons, one line each.
    pub problems: Vec<String>,
}

impl Roots {
    /// Looks for all namespaces.
    pub fn discover(&self) -> Result<Discovery> {
        let own = NsFile::open(&self.proc.join("thread-self/ns/net"))?.id();
        let mut found = Discovery::default();
        self.processes(own, &mut found)?;
        self.files(&mut found);
        let host = self.pid_netns(1, own.dev).unwrap_or(own);
        found.entry(host).host = true;
        found.entry(own);
        for ns in found.namespaces.values_mut().filter(|ns| !ns.host) {
            self.name_pod(ns);
        }
        found.one_namespace_per_pod();
        Ok(found)
    }

    fn processes(&self, own: NetNsId, found: &mut Discovery) -> Result<()> {
        let operation = || format!("list processes in {}", self.proc.display());
        let entries = fs::read_dir(&self.proc).map_err(|e| Error::io(operation(), &e))?;
        let mut refused = 0usize;
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(operation(), &e))?;
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|s| s.parse::<u32>().ok())
            else {
                continue;
            };
            match self.read_pid_netns(pid, own.dev) {
                Ok(Some(id)) => found.entry(id).pids.push(pid),
                // Without a namespace any more, or ended since the directory was read.
                Ok(None) | Err(Some(libc::ENOENT | libc::ESRCH)) => {}
                Err(_) => refused += 1,
            }
        }
        if refused > 0 {
            found.problems.push(format!(
                "read the network namespace of {refused} processes: permission denied{}",
                super::error::not_permitted()
            ));
        }
        for ns in found.namespaces.values_mut() {
            ns.pids.sort_unstable();
        }
        Ok(())
    }

    fn files(&self, found: &mut Discovery) {
        for dir in &self.netns {
            let entries = match fs::read_dir(dir) {
                Ok(entries) => entries,
                Err(error) => {
                    let absent = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR));
                    if !absent {
                        let operation = format!("list namespace files in {}", dir.display());
                        found
                            .problems
                            .push(Error::io(operation, &error).to_string());
                    }
                    continue;
                }
            };
            for entry in entries.flatten() {
                let path = entry.path();
                // Stale plain files stay behind when a mount is lost; they are not namespaces.
                let nsfs = statfs(&path).is_ok_and(|fs| fs.filesystem_type().0 == NSFS_MAGIC);
                let Some(meta) = nsfs.then(|| fs::metadata(&path).ok()).flatten() else {
                    continue;
                };
                let id = NetNsId {
                    dev: meta.dev(),
                    ino: meta.ino(),
                };
                let ns = found.entry(id);
                // The same mount seen through another root is the same file.
                if !ns
                    .paths
                    .iter()
                    .any(|known| known.file_name() == path.file_name())
                {
                    ns.paths.push(path);
                }
            }
        }
    }

    /// Namespace of a process, where it can be read.
    pub fn pid_netns(&self, pid: u32, dev: u64) -> Option<NetNsId> {
        self.read_pid_netns(pid, dev).ok().flatten()
    }

    /// The link reads `net:[INODE]`; all nsfs inodes are on one device.
    fn read_pid_netns(
        &self,
        pid: u32,
        dev: u64,
    ) -> std::result::Result<Option<NetNsId>, Option<i32>> {
        let path = self.proc.join(format!("{pid}/ns/net"));
        let link = fs::read_link(path).map_err(|error| error.raw_os_error())?;
        let ino = link
            .to_str()
            .and_then(|text| text.strip_prefix("net:[")?.strip_suffix(']'))
            .and_then(|digits| digits.parse().ok());
        Ok(ino.map(|ino| NetNsId { dev, ino }))
    }

    fn name_pod(&self, ns: &mut Found) {
        let mut hidden = true;
        for pid in ns.pids.iter().take(CGROUPS) {
            let identity = self.cgroup(*pid);
            hidden &= identity.hidden;
            if identity.pod_uid.is_some() {
                ns.pod_uid = identity.pod_uid;
                ns.depth = identity.depth;
                return;
            }
        }
        // The kubelet's mounts into a container name the pod, too.
        let first = ns.pids.first().filter(|_| hidden);
        ns.pod_uid = first.and_then(|pid| self.mounted_pod(*pid));
        ns.depth = usize::from(ns.pod_uid.is_some());
    }

    fn cgroup(&self, pid: u32) -> CgroupIdentity {
        // A process that ended meanwhile has none.
        fs::read_to_string(self.proc.join(format!("{pid}/cgroup")))
            .map(|text| cgroup::parse(&text))
            .unwrap_or_default()
    }

    /// The pod whose `/var/lib/kubelet/pods/UID/` is mounted into a process's root (`etc-hosts`).
    fn mounted_pod(&self, pid: u32) -> Option<String> {
        let process = Process::new_with_root(self.proc.join(pid.to_string())).ok()?;
        let mounts = process.mountinfo().ok()?;
        mounts.0.iter().find_map(|mount| {
            let (_, rest) = mount.root.split_once("/pods/")?;
            let uid = rest.split('/').next()?;
            cgroup::parse(&format!("0::/pod{uid}")).pod_uid
        })
    }

    /// Pids of the processes of a pod that are in one of these namespaces' process lists.
    pub fn pod_in(&self, ns: &Found, uid: &str) -> bool {
        ns.pids
            .iter()
            .any(|pid| self.cgroup(*pid).pod_uid.as_deref() == Some(uid))
    }

    /// Identity with names and processes.
    pub fn identity(&self, ns: &Found) -> NsIdentity {
        let processes = ns.pids.iter().filter_map(|pid| {
            let process = Process::new_with_root(self.proc.join(pid.to_string())).ok()?;
            let stat = process.stat().ok()?;
            (stat.flags & KERNEL_THREAD == 0).then(|| NsProcess {
                pid: *pid,
                comm: stat.comm,
                container_id: self.cgroup(*pid).container_id,
            })
        });
        NsIdentity {
            id: ns.id,
            host: ns.host,
            pod_uid: ns.pod_uid.clone(),
            paths: ns
                .paths
                .iter()
                .map(|path| path.display().to_string())
                .collect(),
            processes: processes.take(LISTED).collect(),
        }
    }

    /// Opens a found namespace by any of its files that still stands for it.
    pub fn open(&self, ns: &Found) -> Result<NsFile> {
        let mut last = None;
        let by_pid = ns
            .pids
            .iter()
            .take(CGROUPS)
            .map(|pid| self.proc.join(format!("{pid}/ns/net")));
        let own = std::iter::once(self.proc.join("thread-self/ns/net"));
        for path in by_pid.chain(ns.paths.iter().cloned()).chain(own) {
            match NsFile::open(&path) {
                Ok(file) if file.id() == ns.id => return Ok(file),
                Ok(_) => {}
                // The process or the file has gone, or the file keeps no namespace any more.
                Err(error)
                    if matches!(
                        error.errno(),
                        None | Some(libc::ENOENT | libc::ESRCH | libc::EINVAL)
                    ) => {}
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| Error::Gone {
            operation: format!("open network namespace net:[{}]", ns.id.ino),
        }))
    }
}

impl Discovery {
    fn entry(&mut self, id: NetNsId) -> &mut Found {
        self.namespaces.entry(id).or_insert_with(|| Found {
            id,
            host: false,
            pod_uid: None,
            pids: Vec::new(),
            paths: Vec::new(),
            depth: 0,
        })
    }

    /// Containers can nest namespaces (docker in a pod): the pod's own is that of its outermost process.
    fn one_namespace_per_pod(&mut self) {
        let mut best: BTreeMap<String, (usize, u32, NetNsId)> = BTreeMap::new();
        for ns in self.namespaces.values() {
            let Some(uid) = &ns.pod_uid else { continue };
            let rank = (
                ns.depth,
                ns.pids.first().copied().unwrap_or(u32::MAX),
                ns.id,
            );
            let entry = best.entry(uid.clone()).or_insert(rank);
            *entry = rank.min(*entry);
        }
        for ns in self.namespaces.values_mut() {
            let own = ns.pod_uid.as_ref().and_then(|uid| best.get(uid));
            if own.is_some_and(|(_, _, id)| *id != ns.id) {
                ns.pod_uid = None;
            }
        }
    }
}
