//! The helper as a process: its conversation, and what it does to the system.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use netpath::collect::netlink::{Protocol, is_read};
use netpath::contract::frame::{Decoder, encode};
use netpath::contract::{MAGIC, Reply, Request, SCHEMA_VERSION};
use netpath::model::want::{Depth, Fact, NsTarget, Want};

use crate::ns::Ns;

/// The program that is tested; NETPATH_HELPER names another build.
pub fn helper() -> PathBuf {
    if let Ok(path) = std::env::var("NETPATH_HELPER") {
        return PathBuf::from(path);
    }
    let test = std::env::current_exe().expect("the test's path");
    let dir = test
        .parent()
        .and_then(|deps| deps.parent())
        .expect("the target directory");
    let helper = dir.join("netpath-helper");
    assert!(
        helper.exists(),
        "build it: cargo build -p netpath --bin netpath-helper --features capture"
    );
    helper
}

pub struct Talk {
    pub child: Child,
    decoder: Decoder,
}

impl Talk {
    pub fn start() -> Self {
        Self::to(&helper())
    }

    fn to(program: &Path) -> Self {
        let child = Command::new(program)
            .arg("serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the helper starts");
        Self {
            child,
            decoder: Decoder::default(),
        }
    }

    pub fn send(&mut self, request: &Request) {
        let frame = encode(request).expect("a frame");
        let input = self.child.stdin.as_mut().expect("its input");
        input.write_all(&frame).expect("it reads");
    }

    pub fn reply(&mut self) -> Reply {
        loop {
            if let Some(reply) = self.decoder.message().expect("a good frame") {
                return reply;
            }
            let mut chunk = vec![0; 65536];
            let output = self.child.stdout.as_mut().expect("its output");
            let len = output.read(&mut chunk).expect("it writes");
            assert_ne!(len, 0, "the helper ended");
            self.decoder.push(&chunk[..len]);
        }
    }

    pub fn ends(mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.child.try_wait().expect("its state").is_none() {
            assert!(Instant::now() < deadline, "the helper does not end");
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_conversation() {
    let ns = Ns::new();
    let mut talk = Talk::start();
    talk.send(&Request::Hello {
        schema: SCHEMA_VERSION,
    });
    match talk.reply() {
        Reply::Hello {
            magic,
            schema,
            kernel,
            ..
        } => {
            assert_eq!((magic.as_str(), schema), (MAGIC, SCHEMA_VERSION));
            assert!(!kernel.is_empty());
        }
        other => panic!("{other:?}"),
    }
    talk.send(&Request::Ping { id: 7 });
    assert_eq!(talk.reply(), Reply::Pong { id: 7 });
    let target = NsTarget::Named(ns.0.clone());
    let depth = Depth::NoRules;
    let absent = NsTarget::PodUid("0f5b2d1c-5b8e-4c5e-9d5c-0a1b2c3d4e5f".to_owned());
    let wants = vec![
        Want::NetNs {
            target: NsTarget::Host,
            depth,
        },
        Want::NetNs { target, depth },
        Want::NetNs {
            target: absent.clone(),
            depth,
        },
    ];
    talk.send(&Request::Collect { id: 8, wants });
    let Reply::Facts {
        id: 8,
        facts,
        last: true,
        ..
    } = talk.reply()
    else {
        panic!("no facts");
    };
    let namespaces = facts
        .iter()
        .filter(|fact| matches!(fact, Fact::NetNs(_)))
        .count();
    assert_eq!(namespaces, 2);
    assert!(
        facts
            .iter()
            .any(|fact| matches!(fact, Fact::NetNs(ns) if ns.identity.host))
    );
    assert!(
        facts
            .iter()
            .any(|fact| matches!(fact, Fact::NoNetNs { target, .. } if *target == absent))
    );
    talk.send(&Request::Bye);
    talk.ends();
}

#[test]
fn it_ends_with_its_input() {
    let mut talk = Talk::start();
    drop(talk.child.stdin.take());
    talk.ends();
}

#[test]
fn it_ends_on_nonsense() {
    let mut talk = Talk::start();
    let input = talk.child.stdin.as_mut().expect("its input");
    input
        .write_all(b"GET / HTTP/1.1\r\n\r\n")
        .expect("it reads");
    assert!(matches!(talk.reply(), Reply::Error { id: 0, .. }));
    talk.ends();
}

#[test]
fn idle_ends_on_its_deadline_and_on_a_signal() {
    let done = Command::new(helper()).args(["idle", "0"]).status();
    assert!(done.expect("it starts").success());
    let mut child = Command::new(helper())
        .arg("idle")
        .spawn()
        .expect("it starts");
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().expect("a pid"));
    // It blocks the signal before it waits; a signal before that ends it as well.
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("a signal");
    child.wait().expect("it ended");
}

#[test]
fn idle_ends_once_nobody_is_served() {
    // A program of its own, as in a container: others serve beside this test.
    let own = tempfile::tempdir().expect("a directory");
    let own = own.path().join("netpath-helper");
    // By another process: what this one has open for writing, those that it starts beside have, too (ETXTBSY).
    let copied = Command::new("cp").arg(helper()).arg(&own).status();
    assert!(copied.expect("it starts").success());
    let mut serving = Talk::to(&own);
    serving.send(&Request::Hello {
        schema: SCHEMA_VERSION,
    });
    assert!(matches!(serving.reply(), Reply::Hello { .. }));
    let idle = |times: [&str; 2]| {
        let begin = Instant::now();
        let done = Command::new(&own).arg("idle").args(times).status();
        assert!(done.expect("it starts").success());
        begin.elapsed()
    };
    assert!(idle(["0", "2"]) >= Duration::from_secs(2));
    serving.send(&Request::Bye);
    serving.ends();
    assert!(idle(["0", "60"]) < Duration::from_secs(50));
    // Not before its time, even so.
    assert!(idle(["1", "60"]) >= Duration::from_secs(1));
}

/// All messages that reach the kernel are reads, and nothing listens, writes or runs.
#[test]
fn it_only_reads() {
    let ns = Ns::new();
    ns.run("ip link add br0 type bridge");
    ns.run("ip link add v0 type veth peer name v1");
    ns.run("iptables-legacy -t nat -A POSTROUTING -j MASQUERADE");
    ns.run("nft add table ip t");
    let trace = tempfile::NamedTempFile::new().expect("a file");
    let status = Command::new("strace")
        .args(["-f", "-qq", "-X", "raw", "-s", "64", "-o"])
        .arg(trace.path())
        .arg(helper())
        .arg("dump")
        .stdout(Stdio::null())
        .status()
        .expect("strace starts");
    assert!(status.success());
    let text = std::fs::read_to_string(trace.path()).expect("the trace");
    let mut protocols = BTreeMap::new();
    let mut sent = BTreeMap::<Protocol, usize>::new();
    for line in &whole_calls(&text) {
        let call = line
            .split_once(' ')
            .map_or("", |(_, call)| call.trim_start());
        let (name, args) = call.split_once('(').unwrap_or((call, ""));
        let args: Vec<&str> = args.split(", ").collect();
        let number = |at: usize| args.get(at).and_then(|arg| parse(arg)).unwrap_or(0);
        match name {
            "listen" | "accept" | "accept4" | "unlink" | "unlinkat" | "rename" | "renameat2"
            | "mkdir" | "mount" | "init_module" | "finit_module" | "kill" | "ptrace" | "fork"
            | "vfork" => panic!("{line}"),
            "execve" => assert!(line.contains("netpath-helper"), "{line}"),
            // Processes are not made, threads are (CLONE_THREAD).
            "clone" | "clone3" => assert!(line.contains("flags=0x3d0f00"), "{line}"),
            "openat" | "open" => {
                let writes = libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC;
                let flags = number(if name == "open" { 1 } else { 2 });
                assert_eq!(flags & u64::try_from(writes).expect("flags"), 0, "{line}");
            }
            "socket" => {
                let fd = call
                    .rsplit("= ")
                    .next()
                    .and_then(|fd| fd.parse::<u64>().ok());
                let protocol = match (number(0), number(2)) {
                    (0x10, 0) => Some(Protocol::Route),
                    (0x10, 4) => Some(Protocol::SockDiag),
                    (0x10, 6) => Some(Protocol::Xfrm),
                    (0x10, 12) => Some(Protocol::Netfilter),
                    // Raw, for getsockopt.
                    (2 | 10, 255) => None,
                    _ => panic!("{line}"),
                };
                protocols.insert(fd.expect("a descriptor"), protocol);
            }
            "sendto" | "sendmsg" => {
                let protocol = protocols.get(&number(0)).copied().flatten();
                let protocol = protocol.unwrap_or_else(|| panic!("{line}"));
                let kind = line.split("nlmsg_type=").nth(1).expect("a netlink message");
                let kind = parse(kind.split([',', ' ']).next().expect("a type")).expect("a number");
                assert!(
                    is_read(protocol, u16::try_from(kind).expect("a type"), None),
                    "{line}"
                );
                *sent.entry(protocol).or_default() += 1;
            }
            // SOL_SOCKET, SO_RCVTIMEO
            "setsockopt" => assert_eq!((number(1), number(2)), (1, 20), "{line}"),
            _ => {}
        }
    }
    for protocol in [Protocol::Route, Protocol::Netfilter, Protocol::SockDiag] {
        assert!(
            sent.get(&protocol).is_some_and(|count| *count >= 4),
            "{sent:?}"
        );
    }
}

/// Lines of a trace, those that strace cut in two because threads alternated made whole.
fn whole_calls(text: &str) -> Vec<String> {
    let mut begun = BTreeMap::new();
    let mut whole = Vec::new();
    for line in text.lines() {
        let (thread, call) = line.split_once(' ').expect("a thread id");
        let call = call.trim_start();
        if let Some(start) = call.strip_suffix("<unfinished ...>") {
            begun.insert(thread, start.trim_end());
        } else if let Some((_, end)) = call.split_once(" resumed>") {
            let start = begun.remove(thread).unwrap_or_default();
            whole.push(format!("{thread} {start}{end}"));
        } else {
            whole.push(format!("{thread} {call}"));
        }
    }
    whole
}

/// A number, shifted where strace writes it so, or several joined by `|`.
fn parse(number: &str) -> Option<u64> {
    let plain = |number: &str| match number.trim().strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None => number.trim().parse().ok(),
    };
    let one = |number: &str| match number.split_once("<<") {
        Some((number, by)) => Some(plain(number)? << plain(by)?),
        None => plain(number),
    };
    let number = number.split([')', ' ']).next().unwrap_or_default();
    number.split('|').map(one).sum()
}
