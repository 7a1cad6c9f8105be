//! Which kernel modules are there, so that asking never loads one.
//!
//! nfnetlink and sock_diag load a module when a request needs it. A kernel without loadable modules can't;
//! elsewhere a subsystem is asked only if its module is listed, or built in.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

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
}

impl Subsystem {
    /// Name of the module.
    pub fn module(self) -> &'static str {
        match self {
            Self::NfTables => "nf_tables",
            Self::Conntrack => "nf_conntrack_netlink",
            Self::InetDiag => "udp_diag",
            Self::IpSet => "ip_set",
        }
    }

    /// A symbol that only it has.
    fn symbol(self) -> &'static str {
        match self {
            Self::NfTables => "nft_do_chain",
            Self::Conntrack => "ctnetlink_get_conntrack",
            Self::InetDiag => "udp_diag_dump",
            Self::IpSet => "ip_set_test",
        }
    }
}

const ALL: [Subsystem; 4] = [
    Subsystem::NfTables,
    Subsystem::Conntrack,
    Subsystem::InetDiag,
    Subsystem::IpSet,
];

/// Knowledge of modules, read again for each request, since modules come and go. What is built in stays
/// and is looked for once.
#[derive(Debug)]
pub struct Modules {
    proc: PathBuf,
    built_in: Option<BTreeSet<Subsystem>>,
}

impl Modules {
    /// Nothing is read yet.
    pub fn new(proc: &Path) -> Self {
        Self {
            proc: proc.to_owned(),
            built_in: None,
        }
    }

    /// Whether a subsystem answers without loading a module. Where that can't be told, it is asked.
    pub fn has(&mut self, subsystem: Subsystem) -> bool {
        // No such file: the kernel has no loadable modules, so that asking can't load one.
        let Ok(listed) = fs::read_to_string(self.proc.join("modules")) else {
            return true;
        };
        let loaded = listed
            .lines()
            .any(|line| line.split(' ').next() == Some(subsystem.module()));
        loaded || self.built_in().contains(&subsystem)
    }

    fn built_in(&mut self) -> &BTreeSet<Subsystem> {
        let proc = &self.proc;
        self.built_in.get_or_insert_with(|| {
            // Symbols of modules carry their module's name in brackets behind a tab.
            let Ok(file) = File::open(proc.join("kallsyms")) else {
                return ALL.into_iter().collect();
            };
            let mut found = BTreeSet::new();
            for line in BufReader::with_capacity(64 << 10, file)
                .lines()
                .map_while(Result::ok)
            {
                let Some(symbol) = line.split(' ').nth(2) else {
                    continue;
                };
                found.extend(ALL.into_iter().filter(|known| symbol == known.symbol()));
            }
            found
        })
    }
}
