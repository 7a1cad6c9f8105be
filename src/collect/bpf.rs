//! BPF programs at devices that rtnetlink does not show: tcx and netkit, by BPF_PROG_QUERY.
//!
//! Only their number is asked. Source: include/uapi/linux/bpf.h (6.7 and later).
#![allow(unsafe_code, reason = "libc, nix and std do not wrap bpf(2)")]

use std::collections::BTreeMap;
use std::io;

/// BPF_PROG_QUERY
const PROG_QUERY: libc::c_long = 16;
/// BPF_TCX_INGRESS, BPF_TCX_EGRESS, BPF_NETKIT_PRIMARY, BPF_NETKIT_PEER
const HOOKS: [(u32, &str); 4] = [
    (46, "ingress tcx"),
    (47, "egress tcx"),
    (54, "primary netkit"),
    (55, "peer netkit"),
];

/// The `query` member of `union bpf_attr`.
#[repr(C, align(8))]
#[derive(Default)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    padding: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Programs at these devices of the calling thread's namespace, by device, each as `HOOK KIND`. A hook
/// that may not be asked is listed as such: whether something is there is then unknown.
pub fn programs(devices: &[u32]) -> BTreeMap<u32, Vec<String>> {
    let mut found: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for (hook, name) in HOOKS {
        for index in devices {
            let text = match count(*index, hook) {
                Ok(0) => continue,
                Ok(count) => format!("{name} bpf ({count} programs)"),
                Err(error) => match error.raw_os_error() {
                    // The device is of another kind, or went away.
                    Some(libc::ENXIO | libc::ENODEV | libc::ENOENT) => continue,
                    // This kernel has no such hook, or no BPF: nothing can be there.
                    Some(libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP) => break,
                    Some(libc::EPERM | libc::EACCES) => {
                        let why = super::error::not_permitted();
                        format!("{name} can't be read: {error}{why}")
                    }
                    _ => format!("{name} can't be read: {error}"),
                },
            };
            found.entry(*index).or_default().push(text);
        }
    }
    found
}

fn count(index: u32, hook: u32) -> io::Result<u32> {
    let mut query = Query {
        target_ifindex: index,
        attach_type: hook,
        ..Query::default()
    };
    // SAFETY: `query` is a live, initialised structure laid out as the kernel's, and its size is given;
    // the kernel writes within it. It holds no pointers: those for ids are 0, which asks for the number
    // only.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            PROG_QUERY,
            &raw mut query,
            std::mem::size_of::<Query>(),
        )
    };
    if result == 0 {
        Ok(query.count)
    } else {
        Err(io::Error::last_os_error())
    }
}
