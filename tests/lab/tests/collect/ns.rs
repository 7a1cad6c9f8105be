//! Namespaces for one test, and the tools' view of them.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use netpath::collect::{Collector, Roots};
use netpath::model::netns::NetNs;
use netpath::model::want::{Depth, Fact, NsTarget, Want};
use serde_json::Value;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace that is removed when the test ends.
pub struct Ns(pub String);

impl Ns {
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("npc-{}-{number}", std::process::id());
        run(&["ip", "netns", "add", &name]);
        let ns = Self(name);
        ns.run("ip link set lo up");
        ns
    }

    /// Runs a command inside; words are separated by blanks.
    pub fn run(&self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        run(&[&["ip", "netns", "exec", &self.0], words.as_slice()].concat())
    }

    /// Runs a command inside that prints JSON.
    pub fn json(&self, command: &str) -> Vec<Value> {
        let text = self.run(command);
        match serde_json::from_str(&text) {
            Ok(Value::Array(list)) => list,
            Ok(other) => vec![other],
            Err(_) if text.trim().is_empty() => Vec::new(),
            Err(error) => panic!("{command}: {error}: {text}"),
        }
    }

    /// Runs a command inside that reads a text.
    pub fn feed(&self, command: &str, text: &str) {
        if let Err(error) = self.try_feed(command, text) {
            panic!("{command}: {error}");
        }
    }

    /// Likewise; what it says where it fails.
    pub fn try_feed(&self, command: &str, text: &str) -> Result<(), String> {
        use std::io::Write;
        let mut child = Command::new("ip")
            .args(["netns", "exec", &self.0])
            .args(command.split_whitespace())
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the command starts");
        let mut input = child.stdin.take().expect("its input");
        // A command that fails early does not read all.
        let fed = input.write_all(text.as_bytes());
        drop(input);
        let output = child.wait_with_output().expect("it ends");
        if output.status.success() && fed.is_ok() {
            return Ok(());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Makes the accounting objects that kube-proxy's rules name.
    pub fn accounting(&self) {
        self.account("ct_state_invalid_dropped_pkts\nlocalhost_nps_accepted_pkts\n");
    }

    /// Makes accounting objects (NFNL_MSG_ACCT_NEW), whose names stand one to a line.
    pub fn account(&self, names: &str) {
        if names.trim().is_empty() {
            return;
        }
        let list: Vec<String> = names
            .lines()
            .map(|name| format!("'{}'", name.trim()))
            .collect();
        let list = list.join(",");
        let script = format!(
            "import socket,struct\n\
            s=socket.socket(socket.AF_NETLINK,socket.SOCK_RAW,12)\n\
            for n in ({list},):\n \
            m=n.encode()+b'\\0'; a=struct.pack('=HH',4+len(m),1)+m; a+=b'\\0'*(-len(a)%4)\n \
            b=bytes(4)+a\n \
            s.send(struct.pack('=IHHII',16+len(b),0x700,0x405,1,0)+b); s.recv(4096)\n"
        );
        self.feed("python3 -", &script);
    }

    /// Attaches a program that does nothing at a device's tcx ingress (BPF_PROG_LOAD, BPF_PROG_ATTACH).
    pub fn tcx(&self, index: u32) {
        let script = format!(
            "import ctypes,struct\n\
            libc=ctypes.CDLL(None,use_errno=True)\n\
            code=struct.pack('=BBhiBBhi',0xb7,0,0,0,0x95,0,0,0)\n\
            code=ctypes.create_string_buffer(code); gpl=ctypes.create_string_buffer(b'GPL')\n\
            load=struct.pack('=IIQQ',3,2,ctypes.addressof(code),ctypes.addressof(gpl))+bytes(104)\n\
            fd=libc.syscall(321,5,ctypes.create_string_buffer(load),len(load))\n\
            assert fd>=0,ctypes.get_errno()\n\
            put=struct.pack('=IIII',{index},fd,46,0)+bytes(32)\n\
            assert libc.syscall(321,8,ctypes.create_string_buffer(put),len(put))==0,ctypes.get_errno()\n"
        );
        self.feed("python3 -", &script);
    }

    pub fn read(&self, depth: Depth) -> NetNs {
        let want = Want::NetNs {
            target: NsTarget::Named(self.0.clone()),
            depth,
        };
        let facts = collector().collect(&[want], Duration::from_secs(20));
        match facts.as_slice() {
            [Fact::NetNs(ns)] => (**ns).clone(),
            other => panic!("not one namespace: {other:?}"),
        }
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let removed = Command::new("ip").args(["netns", "del", &self.0]).status();
        assert!(removed.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

pub fn collector() -> Collector {
    let roots = Roots {
        proc: PathBuf::from("/proc"),
        netns: vec![PathBuf::from("/run/netns")],
    };
    Collector::new(roots).expect("a collector")
}

pub fn run(words: &[&str]) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .expect("the command starts");
    assert!(
        output.status.success(),
        "{words:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("text")
}

/// A rule set that kube-proxy 1.36 wrote on a two-node cluster.
pub fn recorded(name: &str) -> String {
    let path = format!(
        "{}/tests/collect/recorded/{name}",
        env!("CARGO_MANIFEST_DIR")
    );
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}
