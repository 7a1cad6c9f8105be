//! IPVS virtual services, as `/proc/net/ip_vs` lists them. Where their packets go is not modelled: a
//! packet for one is unknown from there on, by name.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// One virtual service. Source: `ip_vs_info_seq_show()`, net/netfilter/ipvs/ip_vs_ctl.c (v6.12).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpvsService {
    /// By protocol (IPPROTO_*), address and port; port 0 takes all.
    Address(u8, IpAddr, u16),
    /// By packet mark.
    Fwmark(u32),
    /// A line that this program does not know.
    Other(String),
}
