//! Nexthop objects, by RTM_GETNEXTHOP (no crate decodes them).
//!
//! Source: include/uapi/linux/nexthop.h.

use std::collections::BTreeMap;

use netlink_packet_route::route::RouteLwEnCapType;

use super::error::Result;
use super::netlink::Netlink;
use super::nla::{self, Attrs};
use super::route::encap;
use crate::model::IfIndex;
use crate::model::route::NextHop;

const RTM_GETNEXTHOP: u16 = 106;
const RTM_NEWNEXTHOP: u16 = 104;
/// `sizeof(struct nhmsg)`
const HEADER: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const RTNH_F_DEAD: u32 = 1;
const RTNH_F_ONLINK: u32 = 4;
const RTNH_F_LINKDOWN: u32 = 16;

pub(super) enum Object {
    Hop(Option<NextHop>),
    Group(Vec<(u32, u16)>),
}

/// Hops by object id; a group has those of its members.
pub fn read(socket: &mut Netlink) -> Result<BTreeMap<u32, Vec<NextHop>>> {
    let objects = socket.dump(
        RTM_GETNEXTHOP,
        &[0; HEADER],
        "list nexthop objects",
        BTreeMap::new,
        |objects, kind, body| {
            if kind == RTM_NEWNEXTHOP
                && let Some((id, object)) = decode(body)
            {
                objects.insert(id, object);
            }
        },
    )?;
    let hops = objects.iter().map(|(id, object)| {
        let hops = match object {
            Object::Hop(hop) => hop.iter().cloned().collect(),
            Object::Group(members) => members
                .iter()
                .filter_map(|(id, weight)| match objects.get(id)? {
                    Object::Hop(Some(hop)) => Some(NextHop {
                        weight: *weight,
                        ..hop.clone()
                    }),
                    _ => None,
                })
                .collect(),
        };
        (*id, hops)
    });
    Ok(hops.collect())
}

pub(super) fn decode(body: &[u8]) -> Option<(u32, Object)> {
    let flags = nla::u32_at(body, 4)?;
    let attrs = Attrs(body.get(HEADER..)?);
    let id = nla::u32_at(attrs.find(NHA_ID)?, 0)?;
    if let Some(group) = attrs.find(NHA_GROUP) {
        // struct nexthop_grp: id, weight - 1, its upper byte (6.12), reserved.
        let member = |entry: &[u8]| {
            let weight = u16::from(*entry.get(4)?) + 1;
            Some((nla::u32_at(entry, 0)?, weight))
        };
        let members = group.chunks_exact(8).filter_map(member).collect();
        return Some((id, Object::Group(members)));
    }
    let link = attrs
        .find(NHA_OIF)
        .and_then(|bytes| IfIndex::new(nla::u32_at(bytes, 0)?));
    let hop = NextHop {
        via: attrs.find(NHA_GATEWAY).and_then(nla::ip),
        link,
        weight: 1,
        dead: flags & RTNH_F_DEAD != 0,
        linkdown: flags & RTNH_F_LINKDOWN != 0,
        onlink: flags & RTNH_F_ONLINK != 0,
        encap: attrs
            .find(NHA_ENCAP_TYPE)
            .and_then(|bytes| nla::u16_at(bytes, 0))
            .map(|kind| encap(RouteLwEnCapType::from(kind))),
    };
    // A blackhole object has no device.
    Some((id, Object::Hop(link.map(|_| hop))))
}
