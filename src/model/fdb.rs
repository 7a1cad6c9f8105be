//! Forwarding databases of bridges and VXLAN devices, as `bridge fdb` shows them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{IfIndex, MacAddr};

/// One entry. Source: RTM_NEWNEIGH of family AF_BRIDGE.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdbEntry {
    /// The port, the bridge itself, or the VXLAN device.
    pub link: IfIndex,
    /// The bridge that holds it, for entries of a bridge (NDA_MASTER).
    pub master: Option<IfIndex>,
    /// Link-layer address; zero is a VXLAN device's entry for everyone else.
    pub mac: MacAddr,
    /// VLAN, where the bridge filters (NDA_VLAN).
    pub vlan: Option<u16>,
    /// NTF_SELF: an entry of the device `link` itself (VXLAN), not of its bridge.
    pub own: bool,
    /// NUD_PERMANENT on a bridge: an address of the bridge or its port, delivered locally.
    /// On VXLAN: set by hand or by the CNI.
    pub permanent: bool,
    /// NTF_STICKY: stays at its port whatever the bridge learns.
    #[serde(default)]
    pub sticky: bool,
    /// NTF_EXT_LEARNED: set by a control plane.
    pub ext_learned: bool,
    /// Remote tunnel endpoint (NDA_DST), on VXLAN.
    pub dst: Option<IpAddr>,
    /// UDP port where it is not the device's own (NDA_PORT).
    pub port: Option<u16>,
    /// VNI where it is not the device's own (NDA_VNI).
    pub vni: Option<u32>,
    /// Outgoing device where set (NDA_IFINDEX).
    pub via: Option<IfIndex>,
    /// Nexthop object that names the remotes (NDA_NH_ID), on VXLAN.
    #[serde(default)]
    pub nexthop: Option<u32>,
}
