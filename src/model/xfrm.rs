//! XFRM (IPsec) policies, as `ip xfrm policy` shows them.
//!
//! States hold keys and are not read. Source: include/uapi/linux/xfrm.h (v6.12).

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{IfIndex, Prefix};

/// What a namespace holds for XFRM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xfrm {
    /// Policies, in the order of the kernel's dump: the newest first.
    pub policies: Vec<XfrmPolicy>,
    /// What happens to packets that no policy fits, where the kernel tells (5.15 and later); accepted
    /// otherwise.
    pub default: Option<XfrmDefault>,
}

/// Defaults by direction (`struct xfrm_userpolicy_default`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XfrmDefault {
    /// Packets for this host are blocked.
    pub block_in: bool,
    /// Packets on their way through are blocked.
    pub block_fwd: bool,
    /// Packets that leave are blocked.
    pub block_out: bool,
}

/// One policy (`struct xfrm_userpolicy_info` and its attributes).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XfrmPolicy {
    /// Direction.
    pub dir: XfrmDir,
    /// XFRM_POLICY_BLOCK; allowed otherwise.
    pub block: bool,
    /// Which packets.
    pub selector: XfrmSelector,
    /// The lowest decides.
    pub priority: u32,
    /// The kernel's number for it.
    pub index: u32,
    /// Value and mask of the packet's mark (XFRMA_MARK); a mask of 0 fits all.
    pub mark: (u32, u32),
    /// Only packets of the XFRM interface with this id; 0: only of none (XFRMA_IF_ID).
    pub if_id: u32,
    /// XFRM_POLICY_TYPE_SUB: looked up before the main ones.
    pub sub: bool,
    /// Number of transformations that it asks for (XFRMA_TMPL); none lets the packet pass as it is.
    pub templates: u32,
}

/// Direction of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XfrmDir {
    /// For this host.
    In,
    /// Leaving.
    Out,
    /// On its way through.
    Fwd,
    /// A single socket's own (XFRM_POLICY_MAX and above).
    Socket(u8),
}

impl XfrmDir {
    /// The word of iproute2.
    pub fn name(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Fwd => "fwd",
            Self::Socket(_) => "socket",
        }
    }
}

/// Packets that a policy is for (`struct xfrm_selector`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XfrmSelector {
    /// Source addresses.
    pub src: Prefix,
    /// Destination addresses.
    pub dst: Prefix,
    /// IPPROTO_*; 0 is any.
    pub protocol: u8,
    /// Value and mask of the source port (of ICMP: the type); a mask of 0 fits all.
    pub sport: (u16, u16),
    /// Value and mask of the destination port (of ICMP: the code).
    pub dport: (u16, u16),
    /// Device.
    pub dev: Option<IfIndex>,
}

impl fmt::Display for XfrmPolicy {
    /// As `ip xfrm policy` words it, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let selector = &self.selector;
        write!(f, "src {} dst {}", selector.src, selector.dst)?;
        if selector.protocol != 0 {
            write!(f, " proto {}", selector.protocol)?;
        }
        for (name, (port, mask)) in [("sport", selector.sport), ("dport", selector.dport)] {
            match mask {
                0 => {}
                0xffff => write!(f, " {name} {port}")?,
                mask => write!(f, " {name} {port}/{mask:#x}")?,
            }
        }
        write!(f, " dir {}", self.dir.name())?;
        if self.block {
            f.write_str(" action block")?;
        }
        write!(f, " priority {}", self.priority)?;
        if self.mark.1 != 0 {
            write!(f, " mark {:#x}/{:#x}", self.mark.0, self.mark.1)?;
        }
        if self.if_id != 0 {
            write!(f, " if_id {:#x}", self.if_id)?;
        }
        if self.templates != 0 {
            write!(f, " with {} templates", self.templates)?;
        }
        Ok(())
    }
}
