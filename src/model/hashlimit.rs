//! Tables of hashlimit: how much of its rate each address has used up, as `/proc/net/ipt_hashlimit/*` and
//! `ip6t_hashlimit/*` show it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashlimitTable {
    /// Name (`--hashlimit-name`).
    pub name: String,
    /// For IPv6.
    pub v6: bool,
    /// Entries, at most [`HashlimitTable::MOST`].
    pub entries: Vec<HashlimitEntry>,
    /// There are more entries than were read.
    pub cut: bool,
}

impl HashlimitTable {
    /// Most entries of a table that are read.
    pub const MOST: usize = 4096;
}

/// One entry. What a rule does not tell apart is zero. Source: `dl_seq_print()`, net/netfilter/xt_hashlimit.c
/// (v6.12).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashlimitEntry {
    /// Seconds until it may be forgotten; less than 0: any time now.
    pub expires_s: i64,
    /// Source address, under the rule's mask.
    pub src: IpAddr,
    /// Source port.
    pub sport: u16,
    /// Destination address, under the rule's mask.
    pub dst: IpAddr,
    /// Destination port.
    pub dport: u16,
    /// What is left, in units of the kernel.
    pub credit: u64,
    /// Most that may be left; of rates of bytes, how often what is left may be filled up.
    pub most: u64,
    /// What one packet takes; of rates of bytes, 16 bytes.
    pub cost: u64,
}
