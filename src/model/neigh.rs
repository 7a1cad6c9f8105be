//! Neighbours, as `ip neigh` shows them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{IfIndex, MacAddr};

/// One neighbour entry. Source: RTM_NEWNEIGH, include/uapi/linux/neighbour.h.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neigh {
    /// Device.
    pub link: IfIndex,
    /// Protocol address (NDA_DST).
    pub dst: IpAddr,
    /// Link-layer address, where it is known (NDA_LLADDR).
    pub lladdr: Option<MacAddr>,
    /// State.
    pub state: NeighState,
    /// NTF_PROXY: we answer for this address.
    pub proxy: bool,
}

/// State of a neighbour (NUD_*). Everything but incomplete, failed and none has a usable address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NeighState {
    /// 0x01: being asked for, no answer so far.
    Incomplete,
    /// 0x02
    Reachable,
    /// 0x04: used, and confirmed at the next use.
    Stale,
    /// 0x08
    Delay,
    /// 0x10
    Probe,
    /// 0x20: nobody answered.
    Failed,
    /// 0x40: needs no resolution.
    Noarp,
    /// 0x80: set by hand or by the CNI.
    Permanent,
    /// 0x00 or a state this program does not know.
    Other(u16),
}

impl NeighState {
    /// Whether the entry stays as it was set, so that nobody is asked (NUD_PERMANENT, NUD_NOARP).
    pub fn is_fixed(self) -> bool {
        matches!(self, Self::Permanent | Self::Noarp)
    }
}
