//! The helper only reads: every system call that could change a node is watched with strace while it
//! serves whole traces and snapshots. Needs root and strace.
#![allow(missing_docs, reason = "tests")]

mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use netpath_lab::api::Options;
use netpath_lab::{Overlay, Proxy, Spec};
use programs::{Lab, Machine, Netns, plugin, program, words};
use tempfile::TempDir;

/// A helper that runs under strace; what it did lies in files of `dir`, one per thread.
fn watched(dir: &TempDir) -> PathBuf {
    let found = Command::new("strace").arg("--version").output();
    assert!(
        found.is_ok(),
        "strace is not installed: apt-get install strace"
    );
    let path = dir.path().join("netpath-helper");
    let text = format!(
        "#!/bin/sh\nexec strace -f -ff -yy -s 200 -e trace=all -e write=all -o $(mktemp {}/calls.XXXXXXXX) {} \"$@\"\n",
        dir.path().display(),
        program("netpath-helper").display()
    );
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A system call with the bytes that it sent.
#[derive(Debug)]
struct Call {
    name: String,
    text: String,
    sent: Vec<u8>,
}

fn calls_of(path: &Path) -> Vec<Call> {
    let mut calls: Vec<Call> = Vec::new();
    for line in std::fs::read_to_string(path).unwrap().lines() {
        if let Some(dump) = line.strip_prefix(" | ") {
            // ` | 00010  20 00 00 00 12 00 01 03  01 00 00 00 00 00 00 00   ............... |`
            let bytes = dump.get(7..55).unwrap_or_default().split_whitespace();
            let bytes = bytes.map(|byte| u8::from_str_radix(byte, 16).unwrap());
            calls.last_mut().unwrap().sent.extend(bytes);
        } else if let Some((name, _)) = line.split_once('(') {
            calls.push(Call {
                name: name.to_owned(),
                text: line.to_owned(),
                sent: Vec::new(),
            });
        }
    }
    calls
}

/// All calls of all threads of all helpers.
fn calls(dir: &TempDir) -> Vec<Call> {
    let files = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    // mktemp's own files stay empty: strace adds the thread's number to the name.
    files
        .filter(|path| {
            path.file_name()
                .unwrap()
                .to_str()
                .unwrap()
                .starts_with("calls.")
        })
        .flat_map(|path| calls_of(&path))
        .collect()
}

/// What stands between `<NETLINK:[` and `]`.
fn netlink_tag(text: &str) -> Option<&str> {
    text.split_once("<NETLINK:[")?
        .1
        .split_once(']')
        .map(|(tag, _)| tag)
}

/// Whether a message is a get or a dump, by its protocol.
fn is_read(protocol: &str, kind: u16, body: &[u8]) -> bool {
    match protocol {
        // RTM_NEW, RTM_DEL, RTM_GET, RTM_SET in turn from 16 on.
        "ROUTE" => kind >= 16 && kind % 4 == 2,
        // SOCK_DIAG_BY_FAMILY; SOCK_DESTROY is 21.
        "SOCK_DIAG" => kind == 20,
        // XFRM_MSG_GETPOLICY, XFRM_MSG_GETDEFAULT
        "XFRM" => matches!(kind, 21 | 40),
        "NETFILTER" => match (kind >> 8, kind & 0xff) {
            // IPCTNL_MSG_CT_GET, _GET_STATS_CPU, _GET_STATS
            (1, message) => matches!(message, 1 | 4 | 5),
            // PROTOCOL, LIST, HEADER, TYPE, GET_BYNAME, GET_BYINDEX
            (6, message) => matches!(message, 1 | 7 | 12..=15),
            // NFNL_MSG_ACCT_GET; GET_CTRZERO is 2
            (7, message) => message == 1,
            // NFT_MSG_GET{TABLE,CHAIN,RULE,SET,SETELEM,GEN,OBJ,FLOWTABLE}
            (10, message) => matches!(message, 1 | 4 | 7 | 10 | 13 | 16 | 19 | 23),
            _ => false,
        },
        // CTRL_CMD_GETFAMILY of the controller.
        "GENERIC" => match kind {
            16 => body.first() == Some(&3),
            // WG_CMD_GET_DEVICE, IPVS_CMD_GET_SERVICE, IPVS_CMD_GET_DEST
            _ => matches!(body.first(), Some(0 | 4 | 8)),
        },
        _ => false,
    }
}

/// Looks at every call; gives the netlink messages by protocol and type.
fn check(calls: &[Call]) -> BTreeMap<String, usize> {
    let mut protocols: BTreeMap<String, String> = BTreeMap::new();
    for call in calls.iter().filter(|call| call.name == "socket") {
        let family = call.text.split(['(', ',']).nth(1).unwrap();
        assert!(
            ["AF_NETLINK", "AF_INET", "AF_INET6"].contains(&family),
            "{}",
            call.text
        );
        if family != "AF_NETLINK" {
            // For getsockopt of x_tables: a raw socket of protocol 255 that never sends.
            assert!(call.text.contains("SOCK_RAW"), "{}", call.text);
            continue;
        }
        let protocol = call.text.split("NETLINK_").nth(1).unwrap();
        let protocol = protocol.split(')').next().unwrap();
        if let Some(tag) = netlink_tag(&call.text) {
            protocols.insert(tag.to_owned(), protocol.to_owned());
        }
    }
    let mut messages = BTreeMap::new();
    let mut names = BTreeSet::new();
    let mut programs = 0;
    for call in calls {
        names.insert(call.name.as_str());
        let text = &call.text;
        match call.name.as_str() {
            "sendto" | "sendmsg" => {
                let tag = netlink_tag(text).unwrap_or_else(|| panic!("no netlink: {text}"));
                let protocol = match tag.split_once(':') {
                    Some((protocol, _)) => protocol,
                    None => protocols
                        .get(tag)
                        .unwrap_or_else(|| panic!("unknown: {text}")),
                };
                let mut rest = call.sent.as_slice();
                assert!(rest.len() >= 16, "its bytes were not seen: {text}");
                while rest.len() >= 16 {
                    let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
                    let kind = u16::from_ne_bytes(rest[4..6].try_into().unwrap());
                    assert!((16..=rest.len()).contains(&length), "{text} {rest:?}");
                    let body = &rest[16..length];
                    assert!(
                        is_read(protocol, kind, body),
                        "{protocol} {kind:#x}: {text}"
                    );
                    *messages.entry(format!("{protocol} {kind:#x}")).or_default() += 1;
                    rest = &rest[length.next_multiple_of(4).min(rest.len())..];
                }
            }
            "open" | "openat" | "openat2" => {
                for flag in ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_APPEND"] {
                    assert!(!text.contains(flag), "{text}");
                }
            }
            "write" | "writev" | "pwrite64" => {
                let own = ["(1<", "(2<", "eventfd]"];
                assert!(own.iter().any(|to| text.contains(to)), "{text}");
            }
            // IPT_SO_SET_REPLACE and the like.
            "setsockopt" => {
                let known = ["SOL_SOCKET", "SOL_NETLINK"];
                assert!(known.iter().any(|level| text.contains(level)), "{text}");
            }
            "ioctl" => {
                let known = ["FIONBIO", "FIOCLEX", "TCGETS", "NS_GET_"];
                assert!(known.iter().any(|request| text.contains(request)), "{text}");
            }
            "bpf" => {
                let known = ["BPF_PROG_QUERY", "_GET_"];
                assert!(known.iter().any(|command| text.contains(command)), "{text}");
            }
            // strace shows the start of the helper itself.
            "execve" => programs += 1,
            "clone" | "clone3" => assert!(text.contains("CLONE_THREAD"), "{text}"),
            "kill" | "tgkill" | "ptrace" | "fork" | "vfork" | "execveat" | "listen" | "accept"
            | "accept4" | "connect" | "sendmmsg" | "mount" | "umount2" | "move_mount"
            | "fsconfig" | "pivot_root" | "chroot" | "unlink" | "unlinkat" | "rename"
            | "renameat" | "renameat2" | "mkdir" | "mkdirat" | "rmdir" | "link" | "linkat"
            | "symlink" | "symlinkat" | "mknod" | "mknodat" | "creat" | "truncate"
            | "ftruncate" | "chmod" | "fchmod" | "fchmodat" | "chown" | "fchown" | "fchownat"
            | "setxattr" | "utimensat" | "init_module" | "finit_module" | "delete_module"
            | "reboot" | "swapon" | "sethostname" | "settimeofday" | "clock_settime"
            | "process_vm_writev" | "keyctl" | "add_key" | "io_uring_setup" | "memfd_create"
            | "copy_file_range" | "splice" | "sendfile" | "fallocate" => panic!("{text}"),
            _ => {}
        }
    }
    assert_eq!(programs, starts(calls), "{names:?}");
    eprintln!("{} calls, {} kinds: {names:?}", calls.len(), names.len());
    eprintln!("netlink messages: {messages:?}");
    messages
}

/// Helpers that were started: one program each.
fn starts(calls: &[Call]) -> usize {
    let helper = format!("execve(\"{}\"", program("netpath-helper").display());
    let starts = calls.iter().filter(|call| call.text.starts_with(&helper));
    let count = starts.count();
    assert!(count > 0, "no helper was watched");
    count
}

#[test]
fn in_a_cluster() {
    for proxy in [Proxy::IptablesLegacy, Proxy::Nftables, Proxy::IptablesNft] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            helper: watched(&dir),
            ..Options::default()
        };
        let lab = Lab::with(Spec::new(Overlay::Vxlan, proxy), options);
        let rules = |lab: &Lab| {
            let mut all = String::new();
            for node in &lab.cluster.state.nodes {
                let place = lab.cluster.node(&node.name).unwrap();
                for line in [
                    "ip link show",
                    "ip addr show",
                    "ip route show table all",
                    "ip rule show",
                    "nft list ruleset",
                    "cat /proc/net/ip_tables_names /proc/net/ip6_tables_names",
                    "ls /run /var/run/netns /tmp",
                ] {
                    all += &place.run(words(line)).unwrap();
                }
            }
            // Counters go on by themselves.
            let counter = |word: &str| word.parse::<u64>().is_ok();
            all.lines()
                .filter(|line| !line.starts_with("calls.") && !line.starts_with(".tmp"))
                .map(|line| {
                    line.split(' ')
                        .filter(|word| !counter(word))
                        .collect::<Vec<_>>()
                        .join(" ")
                })
                .collect::<Vec<_>>()
        };
        let before = rules(&lab);
        lab.run("trace pod-a svc-b --source-port 44444").exits(0);
        lab.run("trace pod-a svc-b -6").exits(0);
        lab.run("map").exits(0);
        let file = lab.file("net.json");
        lab.run(&format!("snapshot save {}", file.display()))
            .exits(0);
        lab.is_clean();
        assert_eq!(rules(&lab), before);
        let messages = check(&calls(&dir));
        assert!(messages.len() > 8, "{messages:?}");
        // A conntrack entry was looked up, by its tuple.
        assert!(messages.contains_key("NETFILTER 0x101"), "{messages:?}");
    }
}

#[test]
fn on_this_machine_and_without_making_tables() {
    let dir = tempfile::tempdir().unwrap();
    let helper = watched(&dir);
    let machine = Machine::up();
    let fresh = Netns::add(&machine, "fresh");
    let used = Netns::add(&machine, "used");
    fresh.ip("link add veth0 type veth peer name veth1 netns used");
    for (ns, device, address) in [
        (&fresh, "veth0", "10.0.1.2/24"),
        (&used, "veth1", "10.0.1.3/24"),
    ] {
        ns.ip(&format!("addr add {address} dev {device}"));
        ns.ip(&format!("link set {device} up"));
    }
    used.tool("iptables-legacy -t filter -A INPUT -p tcp --dport 9 -j DROP");
    let tables = |ns: &Netns| {
        ns.tool("cat /proc/net/ip_tables_names /proc/net/ip6_tables_names")
            + &ns.tool("nft list ruleset")
    };
    let before = [tables(&fresh), tables(&used)];
    assert_eq!(before, [String::new(), "filter\n".to_owned()]);
    let file = dir.path().join("net.json");
    for (line, code) in [
        ("trace --local netns/fresh 10.0.1.3".to_owned(), 0),
        ("trace --local netns/fresh 10.0.1.3:9".to_owned(), 1),
        (
            "trace --local netns/fresh 10.0.1.3:80 --source-port 4000".to_owned(),
            1,
        ),
        (format!("snapshot save --local {}", file.display()), 0),
        ("dump netfilter netns/fresh --local".to_owned(), 0),
        ("map --local".to_owned(), 0),
    ] {
        let mut command = plugin();
        command.args(words(&line)).env("NETPATH_HELPER", &helper);
        machine.output(command).exits(code);
        assert_eq!([tables(&fresh), tables(&used)], before, "{line}");
    }
    check(&calls(&dir));
}
