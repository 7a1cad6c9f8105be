//! VLANs of bridges that filter them, by RTM_GETVLAN.
//!
//! Source: `br_vlan_rtm_dump()`, `br_vlan_fill_vids()`, net/bridge/br_vlan.c (v6.12). Kernels before 5.6 do not answer.

use super::error::{Error, Result};
use super::netlink::Netlink;
use super::nla::{self, Attrs};
use crate::model::IfIndex;
use crate::model::link::{BridgeVlan, Link, LinkKind, PortState};

const RTM_GETVLAN: u16 = 114;
const AF_BRIDGE: u8 = 7;
/// `sizeof(struct br_vlan_msg)`
const HEADER: usize = 8;
const BRIDGE_VLANDB_ENTRY: u16 = 1;
const ENTRY_INFO: u16 = 1;
const ENTRY_RANGE: u16 = 2;
const ENTRY_STATE: u16 = 3;
/// BRIDGE_VLAN_INFO_*
const PVID: u16 = 2;
const UNTAGGED: u16 = 4;

/// Fills in the VLANs of the namespace's bridges that filter, and of their ports. Where none does, nothing is asked.
pub fn complete(links: &mut [Link], socket: &mut Netlink) {
    let filters = |link: &Link| matches!(&link.kind, LinkKind::Bridge(own) if own.vlan_filtering);
    if !links.iter().any(filters) {
        return;
    }
    let all = read(socket);
    let ports: Vec<(IfIndex, Option<IfIndex>)> =
        links.iter().map(|link| (link.index, link.master)).collect();
    for link in links {
        let index = link.index;
        let LinkKind::Bridge(bridge) = &mut link.kind else {
            continue;
        };
        if !bridge.vlan_filtering {
            continue;
        }
        let of_bridge =
            |vlan: &&BridgeVlan| vlan.link == index || ports.contains(&(vlan.link, Some(index)));
        bridge.vlans = match &all {
            Ok(all) => Ok(all.iter().filter(of_bridge).cloned().collect()),
            Err(error) => Err(error),
        }
        .into();
    }
}

fn read(socket: &mut Netlink) -> Result<Vec<BridgeVlan>> {
    let operation = "list the VLANs of bridges";
    let mut body = [0; HEADER];
    body[0] = AF_BRIDGE;
    socket.try_dump(
        RTM_GETVLAN,
        &body,
        operation,
        Vec::new,
        |all, _, message| {
            take(all, message).ok_or_else(|| Error::malformed(operation, "it can't be decoded"))
        },
    )
}

/// Adds what one message tells of one device.
pub(super) fn take(all: &mut Vec<BridgeVlan>, message: &[u8]) -> Option<()> {
    // The index stands behind family and padding.
    let link = IfIndex::new(nla::u32_at(message, 4)?)?;
    for (kind, entry) in Attrs(message.get(HEADER..)?) {
        if kind != BRIDGE_VLANDB_ENTRY {
            continue;
        }
        let entry = Attrs(entry);
        let info = entry.find(ENTRY_INFO)?;
        let (flags, first) = (nla::u16_at(info, 0)?, nla::u16_at(info, 2)?);
        let last = entry
            .find(ENTRY_RANGE)
            .map_or(Some(first), |last| nla::u16_at(last, 0))?;
        let state = entry
            .find(ENTRY_STATE)
            .and_then(|state| state.first().copied());
        all.push(BridgeVlan {
            link,
            first,
            last,
            pvid: flags & PVID != 0,
            untagged: flags & UNTAGGED != 0,
            state: state.map_or(PortState::Forwarding, PortState::from),
        });
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collect::nla::Writer;

    /// `bridge vlan add dev p1 vid 10 pvid untagged; bridge vlan add dev p1 vid 20-22`, as `br_vlan_dump_dev()` tells it.
    fn message() -> Vec<u8> {
        let mut writer = Writer::new(&[7, 0, 0, 0, 9, 0, 0, 0]);
        let info = |flags: u16, vid: u16| [flags.to_ne_bytes(), vid.to_ne_bytes()].concat();
        writer.nest(BRIDGE_VLANDB_ENTRY, |entry| {
            entry
                .put(ENTRY_INFO, &info(PVID | UNTAGGED, 10))
                .put(ENTRY_STATE, &[3]);
        });
        writer.nest(BRIDGE_VLANDB_ENTRY, |entry| {
            entry
                .put(ENTRY_INFO, &info(0, 20))
                .put(ENTRY_RANGE, &22_u16.to_ne_bytes())
                .put(ENTRY_STATE, &[4]);
        });
        writer.bytes().to_vec()
    }

    #[test]
    fn ranges_and_flags_are_read() {
        let mut all = Vec::new();
        take(&mut all, &message()).expect("it decodes");
        let link = IfIndex::new(9).expect("an index");
        let one = |first, last, own: bool, state| BridgeVlan {
            link,
            first,
            last,
            pvid: own,
            untagged: own,
            state,
        };
        let expected = [
            one(10, 10, true, PortState::Forwarding),
            one(20, 22, false, PortState::Blocking),
        ];
        assert_eq!(all, expected);
    }

    #[test]
    fn what_is_cut_short_is_refused_or_less() {
        let message = message();
        for len in 0..message.len() {
            let mut all = Vec::new();
            let taken = take(&mut all, &message[..len]);
            assert!(taken.is_none() || all.len() < 2, "{len}: {all:?}");
        }
    }
}
