//! Addresses, by RTM_GETADDR.

use std::net::IpAddr;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};

use super::error::Result;
use super::rtnl::{ByHand, Session};
use crate::model::IfIndex;
use crate::model::addr::Addr;

const RTM_GETADDR: u16 = 22;
const IFA_F_SECONDARY: u32 = 0x01;
const IFA_F_NODAD: u32 = 0x02;
const IFA_F_OPTIMISTIC: u32 = 0x04;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_DEPRECATED: u32 = 0x20;
const IFA_F_TENTATIVE: u32 = 0x40;

/// Addresses of all devices, both families.
pub fn read(session: &mut Session<'_>) -> Result<Vec<Addr>> {
    let by_hand = ByHand {
        kind: RTM_GETADDR,
        body: &[0; 8],
        header: 8,
        take: |message| match message {
            RouteNetlinkMessage::NewAddress(message) => Some(message),
            _ => None,
        },
    };
    let dumped = session.dump(
        "list addresses",
        |handle| handle.address().get().execute(),
        &by_hand,
    )?;
    Ok(dumped
        .iter()
        .filter_map(|(message, _)| flatten(message))
        .collect())
}

pub(super) fn flatten(message: &AddressMessage) -> Option<Addr> {
    let (mut address, mut local) = (None::<IpAddr>, None::<IpAddr>);
    // IFA_FLAGS holds all 32 bits; the header only the first 8.
    let mut flags = u32::from(message.header.flags.bits());
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(ip) => address = Some(*ip),
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Flags(bits) => flags = bits.bits(),
            _ => {}
        }
    }
    let own = local.or(address)?;
    Some(Addr {
        link: IfIndex::new(message.header.index)?,
        local: own,
        prefix_len: message.header.prefix_len,
        peer: address.filter(|peer| *peer != own),
        scope: u8::from(message.header.scope),
        secondary: flags & IFA_F_SECONDARY != 0,
        tentative: flags & IFA_F_TENTATIVE != 0,
        dadfailed: flags & IFA_F_DADFAILED != 0,
        deprecated: flags & IFA_F_DEPRECATED != 0,
        nodad: flags & (IFA_F_NODAD | IFA_F_OPTIMISTIC) != 0,
    })
}
