//! Discovery of pods, on a made-up proc: what container runtimes leave there.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use netpath::collect::Roots;
use netpath::collect::discovery::Discovery;

const POD: &str = "0f5b2d1c-5b8e-4c5e-9d5c-0a1b2c3d4e5f";
const HOST_POD: &str = "11111111-2222-3333-4444-555555555555";
const STATIC: &str = "0123456789abcdef0123456789abcdef";
const ID: &str = "3a1f0c9d8b7e6f5a4b3c2d1e0f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c4d3e2f1a";

fn process(proc: &Path, pid: u32, netns: u64, cgroup: &str) {
    let dir = proc.join(pid.to_string());
    fs::create_dir_all(dir.join("ns")).expect("a directory");
    symlink(format!("net:[{netns}]"), dir.join("ns/net")).expect("a link");
    fs::write(dir.join("cgroup"), cgroup).expect("a file");
}

fn pod_of(found: &Discovery, ino: u64) -> Option<&str> {
    let ns = found.namespaces.values().find(|ns| ns.id.ino == ino);
    ns.expect("the namespace").pod_uid.as_deref()
}

#[test]
fn pods_are_named_by_cgroups_and_the_host_by_pid_1() {
    let dir = tempfile::tempdir().expect("a directory");
    let proc = dir.path();
    fs::create_dir_all(proc.join("thread-self/ns")).expect("a directory");
    symlink("/proc/self/ns/net", proc.join("thread-self/ns/net")).expect("a link");
    let slice = POD.replace('-', "_");
    let pod = format!("0::/kubepods.slice/kubepods-pod{slice}.slice/cri-containerd-{ID}.scope");
    process(proc, 1, 1000, "0::/init.scope");
    process(proc, 9, 2000, &pod);
    process(proc, 10, 2000, &pod);
    // Docker in the pod makes a namespace of its own; its first process may be older.
    process(
        proc,
        8,
        3000,
        &format!("0::/kubepods/pod{POD}/{ID}/docker/{ID}"),
    );
    process(
        proc,
        30,
        4000,
        &format!("4:pids:/kubepods/burstable/pod{STATIC}/{ID}\n0::/\n"),
    );
    process(proc, 50, 1000, &format!("0::/kubepods/pod{HOST_POD}/{ID}"));
    process(proc, 60, 5000, "0::/system.slice/podman.service");
    let roots = Roots {
        proc: proc.to_owned(),
        netns: Vec::new(),
    };
    let found = roots.discover().expect("the namespaces");
    assert!(found.problems.is_empty(), "{:?}", found.problems);
    assert_eq!(pod_of(&found, 2000), Some(POD));
    assert_eq!(
        pod_of(&found, 3000),
        None,
        "a nested namespace is not the pod's"
    );
    assert_eq!(pod_of(&found, 4000), Some(STATIC));
    assert_eq!(pod_of(&found, 5000), None);
    let host = found
        .namespaces
        .values()
        .find(|ns| ns.host)
        .expect("the host");
    assert_eq!((host.id.ino, host.pod_uid.as_deref()), (1000, None));
    assert!(roots.pod_in(host, HOST_POD) && !roots.pod_in(host, POD));
    let pids = |ino: u64| {
        let ns = found.namespaces.values().find(|ns| ns.id.ino == ino);
        ns.expect("the namespace").pids.clone()
    };
    assert_eq!(pids(2000), [9, 10]);
}

#[test]
fn stale_files_and_fifos_are_no_namespaces() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("cni-stale"), "").expect("a file");
    nix::unistd::mkfifo(&dir.path().join("fifo"), nix::sys::stat::Mode::S_IRUSR).expect("a fifo");
    symlink("/proc/self/ns/net", dir.path().join("good")).expect("a link");
    let roots = Roots {
        proc: "/proc".into(),
        netns: vec![dir.path().to_owned(), "/does/not/exist".into()],
    };
    let found = roots.discover().expect("the namespaces");
    let files: Vec<_> = found.namespaces.values().flat_map(|ns| &ns.paths).collect();
    assert_eq!(files, [&dir.path().join("good")]);
}
