//! Queues of packets for programs (nfnetlink_queue), as `/proc/net/netfilter/nfnetlink_queue` lists them.

use serde::{Deserialize, Serialize};

/// A queue that a program listens on. Source: `seq_show()`, net/netfilter/nfnetlink_queue.c (v6.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NfQueue {
    /// Number that rules name.
    pub num: u16,
    /// Netlink port of the program; most take their process id for it.
    pub portid: u32,
    /// Packets that wait for its verdict.
    pub waiting: u32,
    /// Packets that were dropped since the queue was full.
    pub dropped: u32,
    /// Packets that were dropped since they could not be sent to the program.
    pub user_dropped: u32,
}

/// `queue 100`, `queues 100 to 103`.
pub fn range(num: u16, last: u16) -> String {
    if num == last {
        format!("queue {num}")
    } else {
        format!("queues {num} to {last}")
    }
}
