//! Addresses, as `ip addr` shows them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{IfIndex, Prefix};

/// One address on one device. Source: RTM_NEWADDR, include/uapi/linux/if_addr.h.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addr {
    /// Device.
    pub link: IfIndex,
    /// Our own address (IFA_LOCAL, or IFA_ADDRESS where there is no local one).
    pub local: IpAddr,
    /// Prefix length of the subnet.
    pub prefix_len: u8,
    /// The other end of a point-to-point link (IFA_ADDRESS where it differs).
    pub peer: Option<IpAddr>,
    /// Scope (RT_SCOPE_*): 0 universe, 200 site, 253 link, 254 host.
    pub scope: u8,
    /// IFA_F_SECONDARY (IPv4) / IFA_F_TEMPORARY (IPv6).
    pub secondary: bool,
    /// IFA_F_TENTATIVE: duplicate address detection is going on; unusable unless optimistic.
    pub tentative: bool,
    /// IFA_F_DADFAILED: a duplicate was found; unusable.
    pub dadfailed: bool,
    /// IFA_F_DEPRECATED: not chosen as source where another will do.
    pub deprecated: bool,
    /// IFA_F_NODAD or IFA_F_OPTIMISTIC.
    pub nodad: bool,
}

impl Addr {
    /// The subnet it is in: that of the other end on a point-to-point link. `None`: the prefix length is
    /// longer than the address.
    pub fn subnet(&self) -> Option<Prefix> {
        Prefix::new(self.peer.unwrap_or(self.local), self.prefix_len).ok()
    }
}
