//! Stateful objects, which several rules share.
//!
//! Source: `enum nft_object_attributes` and those of each type, include/uapi/linux/netfilter/nf_tables.h.

use serde::{Deserialize, Serialize};

use super::Counters;

/// One object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Name.
    pub name: String,
    /// What it is and how it stands.
    pub state: ObjectState,
    /// Comment.
    pub comment: Option<String>,
}

/// Types of objects (NFT_OBJECT_*).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectState {
    /// 1
    Counter(Counters),
    /// 2
    Quota {
        /// Bytes allowed.
        bytes: u64,
        /// Bytes used up.
        consumed: u64,
        /// Matches once it is used up.
        inverted: bool,
    },
    /// 3: conntrack helper.
    Helper {
        /// Name of the helper.
        helper: String,
        /// 2, 10, or 1 for both.
        family: u16,
        /// Transport protocol.
        protocol: u8,
    },
    /// 4
    Limit {
        /// Packets or bytes per unit.
        rate: u64,
        /// Seconds.
        unit: u64,
        /// Packets or bytes at once.
        burst: u32,
        /// Bytes rather than packets.
        bytes: bool,
        /// Matches once the rate is used up.
        inverted: bool,
    },
    /// 5
    Connlimit {
        /// Connections.
        count: u32,
        /// Matches above.
        inverted: bool,
    },
    /// 7: conntrack timeouts.
    Timeout {
        /// Family.
        family: u16,
        /// Transport protocol.
        protocol: u8,
        /// State by number and seconds.
        seconds: Vec<(u16, u32)>,
    },
    /// 8: security context.
    Secmark(String),
    /// 9: conntrack expectation.
    Expectation(Expectation),
    /// 10
    Synproxy {
        /// Segment size.
        mss: u16,
        /// Window scale.
        wscale: u8,
        /// NF_SYNPROXY_OPT_*
        flags: u32,
    },
    /// A type that this program does not know.
    Other {
        /// NFT_OBJECT_*
        kind: u32,
        /// Attributes as they came.
        data: Vec<u8>,
    },
}

impl ObjectState {
    /// NFT_OBJECT_*
    pub fn kind(&self) -> u32 {
        match self {
            Self::Counter(_) => 1,
            Self::Quota { .. } => 2,
            Self::Helper { .. } => 3,
            Self::Limit { .. } => 4,
            Self::Connlimit { .. } => 5,
            Self::Timeout { .. } => 7,
            Self::Secmark(_) => 8,
            Self::Expectation(_) => 9,
            Self::Synproxy { .. } => 10,
            Self::Other { kind, .. } => *kind,
        }
    }
}

/// A conntrack expectation to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expectation {
    /// Family.
    pub family: u16,
    /// Transport protocol.
    pub protocol: u8,
    /// Destination port.
    pub dport: u16,
    /// Milliseconds.
    pub timeout: u32,
    /// How many.
    pub size: u8,
}
