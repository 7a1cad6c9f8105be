//! Lists of recently seen addresses (xt_recent), as `/proc/net/xt_recent` shows them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentList {
    /// Name (`--name`).
    pub name: String,
    /// Addresses in it, at most [`RecentList::MOST`].
    pub entries: Vec<RecentEntry>,
    /// There are more entries than were read.
    pub cut: bool,
}

impl RecentList {
    /// Most entries of a list that are read. The kernel's default limit is 100 (ip_list_tot).
    pub const MOST: usize = 4096;
}

/// One address. Source: `recent_seq_show()`, net/netfilter/xt_recent.c (v6.12).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentEntry {
    /// The address, under the rule's mask.
    pub addr: IpAddr,
    /// TTL of its last packet; 0 where the rule does not ask for it.
    pub ttl: u8,
    /// Milliseconds since each packet that was noted; `None`: the kernel's clock could not be read.
    pub ages: Vec<Option<u64>>,
}
