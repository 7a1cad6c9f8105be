//! Which kernel modules are there, so that asking never loads one.
//!
//! Opening a netlink socket of a protocol that is not registered, and asking nfnetlink or sock_diag for a
//! subsystem that is not registered, make the kernel call modprobe (`netlink_create()`, `nfnetlink_rcv_msg()`,
//! `sock_diag_lock_handler()`, v6.12). So where it can load modules, only what is there is asked: what is
//! loaded stands in /proc/modules, what is built in in the node's modules.builtin.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::{Path, PathBuf};

use super::error::Error;
use super::netlink::Protocol;

/// A subsystem that is asked by netlink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subsystem {
    /// nf_tables.
    NfTables,
    /// ctnetlink.
    Conntrack,
    /// tcp_diag and udp_diag.
    InetDiag,
    /// ipset.
    IpSet,
    /// nfnetlink_acct.
    NfAcct,
}

impl Subsystem {
    /// Name of the module that is loaded last, for modprobe.
    pub fn module(self) -> &'static str {
        self.modules().last().map_or("", |(name, _)| *name)
    }

    /// All modules that an answer takes, each with a symbol that only it has.
    fn modules(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::NfTables => &[
                ("nfnetlink", "nfnetlink_rcv"),
                ("nf_tables", "nft_do_chain"),
            ],
            Self::Conntrack => &[
                ("nfnetlink", "nfnetlink_rcv"),
                ("nf_conntrack_netlink", "ctnetlink_get_conntrack"),
            ],
            Self::InetDiag => &[
                ("inet_diag", "inet_diag_handler_cmd"),
                ("tcp_diag", "tcp_diag_dump"),
                ("udp_diag", "udp_diag_dump"),
            ],
            Self::IpSet => &[("nfnetlink", "nfnetlink_rcv"), ("ip_set", "ip_set_test")],
            Self::NfAcct => &[
                ("nfnetlink", "nfnetlink_rcv"),
                ("nfnetlink_acct", "nfnl_acct_update"),
            ],
        }
    }
}

/// Whether a subsystem answers without loading a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It may be asked: it is there, or the kernel loads nothing and says itself that it is not.
    Ask,
    /// It is not there, so that it holds nothing.
    Absent,
    /// That can't be told; why.
    Unsure(String),
}

/// Knowledge of modules. What is loaded is read again each time, since modules come and go; what is built
/// in stays and is looked for once.
#[derive(Debug)]
pub struct Modules {
    proc: PathBuf,
    release: String,
    built_in: Option<Result<BTreeSet<String>, String>>,
}

impl Modules {
    /// Nothing is read yet. `release` is that of the running kernel (`uname -r`).
    pub fn new(proc: &Path, release: &str) -> Self {
        Self {
            proc: proc.to_owned(),
            release: release.to_owned(),
            built_in: None,
        }
    }

    /// Whether a subsystem may be asked.
    pub fn presence(&mut self, subsystem: Subsystem) -> Presence {
        if !self.loads() {
            return Presence::Ask;
        }
        let loaded = match fs::read_to_string(self.proc.join("modules")) {
            Ok(text) => text,
            Err(error) => {
                let path = self.proc.join("modules");
                let why = Error::io(format!("read {}", path.display()), &error);
                return Presence::Unsure(why.to_string());
            }
        };
        let is_loaded = |name: &str| {
            loaded
                .lines()
                .any(|line| line.split(' ').next() == Some(name))
        };
        let missing: Vec<&(&str, &str)> = subsystem
            .modules()
            .iter()
            .filter(|(name, _)| !is_loaded(name))
            .collect();
        if missing.is_empty() {
            return Presence::Ask;
        }
        match self.built_in() {
            Ok(built_in) if missing.iter().all(|(name, _)| built_in.contains(*name)) => {
                Presence::Ask
            }
            Ok(_) => Presence::Absent,
            Err(why) => {
                let why = why.clone();
                // Symbols show what is there, but not surely what is not: compilers rename some.
                if self.has_symbols(&missing) {
                    Presence::Ask
                } else {
                    Presence::Unsure(why)
                }
            }
        }
    }

    /// Whether a socket of a protocol may be opened: the kernel has one of its own (port 0).
    pub fn registered(&self, protocol: Protocol) -> bool {
        if !self.loads() {
            return true;
        }
        let listed = fs::read_to_string(self.proc.join("thread-self/net/netlink"));
        // Where that can't be read, asking may load a module; not asking would make unread tables empty ones.
        listed.map_or(true, |text| {
            text.lines().skip(1).any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                let number = words.get(1).and_then(|word| word.parse().ok());
                number == Some(protocol.number()) && words.get(2) == Some(&"0")
            })
        })
    }

    /// Whether the kernel loads modules when something asks for them: it has modules at all, and a program
    /// to load them with (`call_modprobe()`). What can't be read counts as yes.
    fn loads(&self) -> bool {
        match fs::read_to_string(self.proc.join("sys/kernel/modprobe")) {
            Ok(program) => !program.trim().is_empty(),
            Err(error) => error.kind() != ErrorKind::NotFound,
        }
    }

    fn built_in(&mut self) -> &Result<BTreeSet<String>, String> {
        let (proc, release) = (&self.proc, &self.release);
        self.built_in
            .get_or_insert_with(|| read_built_in(proc, release))
    }

    fn has_symbols(&self, wanted: &[&(&str, &str)]) -> bool {
        let Ok(file) = File::open(self.proc.join("kallsyms")) else {
            return false;
        };
        let mut found = BTreeSet::new();
        let lines = BufReader::with_capacity(64 << 10, file).lines();
        for line in lines.map_while(Result::ok) {
            let symbol = line.split(' ').nth(2);
            // Symbols of modules carry their module's name in brackets behind a tab.
            let known = wanted.iter().find(|(_, known)| Some(*known) == symbol);
            found.extend(known.map(|(name, _)| *name));
        }
        found.len() == wanted.len()
    }
}

/// Names from modules.builtin: `kernel/net/netfilter/nf_tables.ko`, one per line.
fn read_built_in(proc: &Path, release: &str) -> Result<BTreeSet<String>, String> {
    let root = proc.join("1/root");
    let mut why = String::new();
    for dir in ["lib/modules", "usr/lib/modules"] {
        let path = root.join(dir).join(release).join("modules.builtin");
        match fs::read_to_string(&path) {
            Ok(text) => return Ok(text.lines().map(module_name).collect()),
            Err(error) => {
                why = Error::io(format!("read {}", path.display()), &error).to_string();
            }
        }
    }
    Err(why)
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split('.').next().unwrap_or(file);
    stem.replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "6.12.48+deb13-cloud-amd64";
    /// Lines of a Debian 13 cloud kernel's files.
    const BUILTIN: &str =
        "kernel/net/unix/unix.ko\nkernel/net/ipv6/ipv6.ko\nkernel/lib/crc-ccitt.ko\n";
    const LOADED: &str = "nf_tables 372736 13 nft_chain_nat, Live 0x0000000000000000\n\
        nfnetlink 20480 2 nf_tables, Live 0x0000000000000000\n\
        udp_diag 12288 0 - Live 0x0000000000000000\n\
        inet_diag 28672 1 udp_diag, Live 0x0000000000000000\n";
    const NETLINK: &str = "sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode\n\
        0000000000000000 0   812        00000111 0        0        0     2        0        5012    \n\
        0000000000000000 0   0          00000000 0        0        0     2        0        4       \n\
        0000000000000000 4   0          00000000 0        0        0     2        0        562     \n\
        0000000000000000 6   4711       00000000 0        0        0     2        0        563     \n\
        0000000000000000 12  0          00000000 0        0        0     2        0        564     \n";

    struct Node(tempfile::TempDir);

    impl Node {
        fn new(files: &[(&str, &str)]) -> Self {
            let node = Self(tempfile::tempdir().expect("a directory"));
            for (name, text) in files {
                let path = node.0.path().join(name);
                fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
                fs::write(path, text).expect("a file");
            }
            node
        }

        fn all(&self) -> Vec<&'static str> {
            let mut modules = Modules::new(self.0.path(), RELEASE);
            let all = [
                Subsystem::NfTables,
                Subsystem::Conntrack,
                Subsystem::InetDiag,
                Subsystem::IpSet,
            ];
            all.map(|subsystem| match modules.presence(subsystem) {
                Presence::Ask => "ask",
                Presence::Absent => "absent",
                Presence::Unsure(_) => "unsure",
            })
            .to_vec()
        }
    }

    fn built_in() -> String {
        format!("1/root/usr/lib/modules/{RELEASE}/modules.builtin")
    }

    #[test]
    fn only_what_is_there_is_asked() {
        let modprobe = ("sys/kernel/modprobe", "/sbin/modprobe\n");
        let path = built_in();
        let builtin = (path.as_str(), BUILTIN);
        let loaded = ("modules", LOADED);
        // udp_diag alone would let a question for TCP sockets load tcp_diag.
        assert_eq!(
            Node::new(&[modprobe, builtin, loaded]).all(),
            ["ask", "absent", "absent", "absent"]
        );
        // Built in: all but ip_set.
        let text = "kernel/net/netfilter/nfnetlink.ko\nkernel/net/netfilter/nf_tables.ko\n\
            kernel/net/netfilter/nf_conntrack_netlink.ko\n\
            kernel/net/ipv4/tcp_diag.ko\n";
        assert_eq!(
            Node::new(&[modprobe, (path.as_str(), text), loaded]).all(),
            ["ask", "ask", "ask", "absent"]
        );
        // What is built in can't be read: what is not loaded may be there or not.
        assert_eq!(
            Node::new(&[modprobe, loaded]).all(),
            ["ask", "unsure", "unsure", "unsure"]
        );
        // Symbols tell that something is built in.
        let symbols = (
            "kallsyms",
            "0 t ctnetlink_get_conntrack\n0 t ip_set_test\t[ip_set]\n",
        );
        assert_eq!(
            Node::new(&[modprobe, loaded, symbols]).all(),
            ["ask", "ask", "unsure", "unsure"]
        );
        // No list of modules.
        assert_eq!(Node::new(&[modprobe, builtin]).all(), ["unsure"; 4]);
    }

    #[test]
    fn a_kernel_that_loads_nothing_may_be_asked_anything() {
        // No modules at all; modules, but no program to load them with.
        assert_eq!(Node::new(&[]).all(), ["ask"; 4]);
        let none = ("sys/kernel/modprobe", "\n");
        assert_eq!(Node::new(&[none, ("modules", LOADED)]).all(), ["ask"; 4]);
    }

    #[test]
    fn sockets_are_opened_of_protocols_that_the_kernel_has() {
        let modprobe = ("sys/kernel/modprobe", "/sbin/modprobe\n");
        let node = Node::new(&[modprobe, ("thread-self/net/netlink", NETLINK)]);
        let modules = Modules::new(node.0.path(), RELEASE);
        assert!(modules.registered(Protocol::Route));
        assert!(modules.registered(Protocol::SockDiag));
        assert!(modules.registered(Protocol::Netfilter));
        // A process has a socket of XFRM's protocol, the kernel has none.
        assert!(!modules.registered(Protocol::Xfrm));
        assert!(Modules::new(Path::new("/nonexistent"), RELEASE).registered(Protocol::Xfrm));
    }
}
