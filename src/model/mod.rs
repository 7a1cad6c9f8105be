//! Plain facts that were read from kernels: one file per kernel subsystem, no decisions, no I/O.
//!
//! Names are iproute2's and the kernel UAPI's. Numbers and strings are checked when they enter
//! (`TryFrom`, `FromStr`), so that the rooms behind this one cannot meet a wrong one. Numbers are in
//! host byte order unless a field says otherwise. Anything that may be absent because nobody asked,
//! or because the kernel refused, is a [`Section`].

pub mod addr;
pub mod capture;
pub mod conntrack;
pub mod fdb;
pub mod hashlimit;
pub mod ids;
pub mod ipset;
pub mod ipvs;
pub mod link;
pub mod mac;
pub mod names;
pub mod neigh;
pub mod netfilter;
pub mod netns;
pub mod nfacct;
pub mod nfqueue;
pub mod packet;
pub mod prefix;
pub mod recent;
pub mod route;
pub mod rule;
pub mod section;
pub mod snapshot;
pub mod socket;
pub mod sysctl;
pub mod tc;
pub mod topology;
pub mod want;
pub mod wireguard;
pub mod xfrm;
pub mod xtables;

pub use ids::{IfIndex, NetNsId, NsKey};
pub use mac::MacAddr;
pub use prefix::Prefix;
pub use section::Section;
