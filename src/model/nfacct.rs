//! Counters with names (nfnetlink_acct), which the `nfacct` match counts with.

use serde::{Deserialize, Serialize};

/// One of them. Source: `nfnl_acct_fill_info()`, net/netfilter/nfnetlink_acct.c (v6.12).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NfAcct {
    /// Name (NFACCT_NAME).
    pub name: String,
    /// Packets counted.
    pub packets: u64,
    /// Bytes counted.
    pub bytes: u64,
    /// What it may count before the match does; without, the match always does.
    pub quota: Option<NfAcctQuota>,
}

/// A quota.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NfAcctQuota {
    /// Of bytes (NFACCT_F_QUOTA_BYTES); of packets where false.
    pub of_bytes: bool,
    /// How many.
    pub most: u64,
}
