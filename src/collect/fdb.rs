//! Forwarding entries of bridges and VXLAN devices, by RTM_GETNEIGH of family AF_BRIDGE.

use netlink_packet_route::AddressFamily;
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};

use super::error::Result;
use super::neigh;
use super::rtnl::Session;
use netlink_packet_core::Nla;

use crate::model::fdb::FdbEntry;
use crate::model::{IfIndex, MacAddr};

/// Source: include/uapi/linux/neighbour.h.
const NDA_NH_ID: u16 = 13;

/// All entries of all bridges and VXLAN devices.
pub fn read(session: &mut Session<'_>) -> Result<Vec<FdbEntry>> {
    let dumped = neigh::dump(
        session,
        "list forwarding entries (FDB)",
        AddressFamily::Bridge,
        NeighbourFlags::empty(),
    )?;
    Ok(dumped
        .iter()
        .filter_map(|(message, _)| flatten(message))
        .collect())
}

pub(super) fn flatten(message: &NeighbourMessage) -> Option<FdbEntry> {
    let header = &message.header;
    let mut entry = FdbEntry {
        link: IfIndex::new(header.ifindex)?,
        master: None,
        mac: MacAddr::ZERO,
        vlan: None,
        own: header.flags.contains(NeighbourFlags::Own),
        permanent: u16::from(header.state) & u16::from(NeighbourState::Permanent) != 0,
        sticky: header.flags.contains(NeighbourFlags::Sticky),
        ext_learned: header.flags.contains(NeighbourFlags::ExtLearned),
        dst: None,
        port: None,
        vni: None,
        via: None,
        nexthop: None,
    };
    let mut found = false;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                entry.mac = neigh::mac(bytes)?;
                found = true;
            }
            NeighbourAttribute::Controller(index) => entry.master = IfIndex::new(*index),
            NeighbourAttribute::Vlan(vlan) => entry.vlan = Some(*vlan),
            NeighbourAttribute::Destination(address) => entry.dst = neigh::ip(address),
            NeighbourAttribute::Port(port) => entry.port = Some(*port),
            NeighbourAttribute::Vni(vni) => entry.vni = Some(*vni),
            NeighbourAttribute::IfIndex(index) => entry.via = IfIndex::new(*index),
            NeighbourAttribute::Other(other) if other.kind() == NDA_NH_ID => {
                let mut value = [0; 4];
                if other.value_len() == value.len() {
                    other.emit_value(&mut value);
                }
                entry.nexthop = Some(u32::from_ne_bytes(value));
            }
            _ => {}
        }
    }
    found.then_some(entry)
}
