//! Neighbours, by RTM_GETNEIGH.

use std::net::IpAddr;

use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::error::Result;
use super::rtnl::{ByHand, Dumped, Session};
use crate::model::neigh::{Neigh, NeighState};
use crate::model::{IfIndex, MacAddr};

const RTM_GETNEIGH: u16 = 30;
const NTF_PROXY: u8 = 0x08;

/// Neighbours of both families, proxy entries included.
pub fn read(session: &mut Session<'_>) -> Result<Vec<Neigh>> {
    let mut neighs = Vec::new();
    for proxy in [false, true] {
        let flags = if proxy {
            NeighbourFlags::Proxy
        } else {
            NeighbourFlags::empty()
        };
        let dumped = dump(session, "list neighbours", AddressFamily::Unspec, flags)?;
        neighs.extend(dumped.iter().filter_map(|(message, _)| flatten(message)));
    }
    Ok(neighs)
}

/// Dumps one family. The proxy flag asks for proxy entries instead of the others.
pub(super) fn dump(
    session: &mut Session<'_>,
    operation: &str,
    family: AddressFamily,
    flags: NeighbourFlags,
) -> Result<Dumped<NeighbourMessage>> {
    let mut body = [0u8; 12];
    body[0] = u8::from(family);
    body[10] = flags.bits();
    let by_hand = ByHand {
        kind: RTM_GETNEIGH,
        body: &body,
        header: 12,
        take: |message| match message {
            RouteNetlinkMessage::NewNeighbour(message) => Some(message),
            _ => None,
        },
    };
    session.dump(
        operation,
        |handle| {
            handle
                .neighbours()
                .get()
                .set_address_family(family)
                .set_flags(flags)
                .execute()
        },
        &by_hand,
    )
}

pub(super) fn flatten(message: &NeighbourMessage) -> Option<Neigh> {
    let mut dst = None;
    let mut lladdr = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(address) => dst = ip(address),
            NeighbourAttribute::LinkLayerAddress(bytes) => lladdr = mac(bytes),
            _ => {}
        }
    }
    Some(Neigh {
        // Entries of other families (bridge FDB, phonet) have no IP address.
        link: IfIndex::new(message.header.ifindex)?,
        dst: dst?,
        lladdr,
        state: state(message.header.state),
        proxy: message.header.flags.bits() & NTF_PROXY != 0,
    })
}

pub(super) fn ip(address: &NeighbourAddress) -> Option<IpAddr> {
    match address {
        NeighbourAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        NeighbourAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        NeighbourAddress::Other(bytes) => super::nla::ip(bytes),
        _ => None,
    }
}

pub(super) fn mac(bytes: &[u8]) -> Option<MacAddr> {
    <[u8; 6]>::try_from(bytes).ok().map(MacAddr)
}

fn state(state: NeighbourState) -> NeighState {
    match state {
        NeighbourState::Incomplete => NeighState::Incomplete,
        NeighbourState::Reachable => NeighState::Reachable,
        NeighbourState::Stale => NeighState::Stale,
        NeighbourState::Delay => NeighState::Delay,
        NeighbourState::Probe => NeighState::Probe,
        NeighbourState::Failed => NeighState::Failed,
        NeighbourState::Noarp => NeighState::Noarp,
        NeighbourState::Permanent => NeighState::Permanent,
        other => NeighState::Other(u16::from(other)),
    }
}
