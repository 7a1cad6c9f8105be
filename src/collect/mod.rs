//! Reads the kernel: wants in, facts out. Linux only; needs root for most of it.
//!
//! Nothing here changes anything: messages are checked against a list of reads before they are sent,
//! x_tables is asked only for tables that exist, and a subsystem whose module is not loaded is not asked.
//! A section that can't be read is [`Section::Missing`](crate::model::Section) with the reason, and the
//! others are still read.

#![allow(
    clippy::disallowed_methods,
    reason = "this room asks the clock: reads have deadlines"
)]

pub mod addr;
pub mod bpf;
pub mod bridge_vlan;
pub mod cgroup;
pub mod conntrack;
mod counters;
pub mod discovery;
pub mod error;
pub mod fdb;
mod hashlimit;
pub mod idle;
pub mod ipvs;
pub mod limits;
pub mod link;
pub mod link_kind;
pub mod module;
pub mod neigh;
pub mod netfilter;
pub mod netlink;
pub mod netns;
pub mod nexthop;
mod nfacct;
pub mod nfqueue;
pub mod nla;
pub mod nsid;
pub mod privileges;
mod proc_lists;
pub mod recent;
pub mod route;
pub mod rtnl;
pub mod rule;
pub mod serve;
pub mod socket;
pub mod sysctl;
pub mod tc;
pub mod wireguard;
pub mod xfrm;

#[cfg(any(test, feature = "fuzzing"))]
pub mod untrusted;

#[cfg(test)]
mod hostile;
#[cfg(test)]
#[path = "../../tests/pure/mutate.rs"]
mod mutate;

mod collector;
mod namespace;

pub use collector::Collector;
pub use discovery::Roots;
pub use error::{Error, Result};
