//! VLANs of a bridge: which frames a bridge that filters lets in and out, and with which tag.
//!
//! Read first: `__allowed_ingress()`, `br_allowed_egress()`, `br_handle_vlan()` (net/bridge/br_vlan.c), v6.12. Not
//! modelled: tags of 802.1ad, and what a bridge's device takes because it is promiscuous.

use super::Cx;
use super::walk::{Walk, Ways};
use crate::model::NsKey;
use crate::model::link::{Bridge, BridgeVlan, Link, LinkKind, PortState};
use crate::trace::{Disposition, DropReason, Evidence, Step, StepKind};

/// ETH_P_8021Q
const DOT1Q: u16 = 0x8100;

/// What becomes of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Passage<T> {
    /// It passes.
    Yes(T),
    /// It does not: state of the device, in words.
    No(String),
    /// Why that can't be told.
    Unknown(String),
}

/// The VLANs of a bridge; `Err`: why they are not known.
fn vlans<'t>(master: &Link, bridge: &'t Bridge) -> Result<&'t [BridgeVlan], String> {
    if bridge.vlan_protocol != DOT1Q {
        let why = format!(
            "{} filters VLANs of protocol {:#x}, which is not modelled",
            master.name, bridge.vlan_protocol
        );
        return Err(why);
    }
    bridge.vlans.known().map(Vec::as_slice).ok_or_else(|| {
        let why = bridge.vlans.missing();
        let why = why.map_or(String::new(), |why| format!(": {why}"));
        format!("the VLANs of {} were not read{why}", master.name)
    })
}

/// VLAN that a bridge takes a frame for that comes in by a port, or is sent by the bridge itself: `None` where it does not filter.
pub(crate) fn ingress(
    master: &Link,
    bridge: &Bridge,
    by: &Link,
    tag: Option<u16>,
) -> Passage<Option<u16>> {
    if !bridge.vlan_filtering {
        return Passage::Yes(None);
    }
    let all = match vlans(master, bridge) {
        Ok(all) => all,
        Err(why) => return Passage::Unknown(why),
    };
    let mut own = all.iter().filter(|own| own.link == by.index);
    let found = match tag.filter(|tag| *tag != 0) {
        Some(id) => own
            .find(|own| (own.first..=own.last).contains(&id))
            .map(|own| (id, own)),
        None => own.find(|own| own.pvid).map(|own| (own.first, own)),
    };
    match found {
        Some((id, own)) if own.state == PortState::Forwarding => Passage::Yes(Some(id)),
        Some((id, own)) => Passage::No(format!("VLAN {id} {:?}", own.state).to_lowercase()),
        None => Passage::No(match tag {
            Some(id) => format!("no member of VLAN {id}"),
            None => "no PVID".to_owned(),
        }),
    }
}

/// The tag that a frame of a VLAN gets where it goes out by a port, or up by the bridge itself.
pub(crate) fn egress(master: &Link, bridge: &Bridge, by: &Link, vid: u16) -> Passage<Option<u16>> {
    let all = match vlans(master, bridge) {
        Ok(all) => all,
        Err(why) => return Passage::Unknown(why),
    };
    let member = |own: &&BridgeVlan| own.link == by.index && (own.first..=own.last).contains(&vid);
    match all.iter().find(member) {
        Some(own) if own.state == PortState::Forwarding => {
            Passage::Yes((!own.untagged).then_some(vid))
        }
        Some(own) => Passage::No(format!("VLAN {vid} {:?}", own.state).to_lowercase()),
        None => Passage::No(format!("no member of VLAN {vid}")),
    }
}

/// As [`ingress`], of a frame under way; it loses its tag. `Err`: it ends here.
pub(crate) fn let_in(mut walk: Walk, master: &Link, by: &Link) -> Result<Walk, Ways> {
    let LinkKind::Bridge(bridge) = &master.kind else {
        return Err(walk.unknown(format!("{} is no bridge", master.name)));
    };
    match ingress(master, bridge, by, walk.tags.last().copied()) {
        Passage::Yes(None) => {}
        Passage::Yes(Some(vid)) => {
            walk.tags.pop();
            walk.vid = Some(vid);
        }
        Passage::No(state) => return Err(refused(walk, by, state)),
        Passage::Unknown(why) => return Err(walk.unknown(why)),
    }
    Ok(walk)
}

/// As [`egress`], of a frame under way; it gets its tag. `Err`: it ends here.
pub(crate) fn let_out(mut walk: Walk, master: &Link, by: &Link) -> Result<Walk, Ways> {
    let Some(vid) = walk.vid.take() else {
        return Ok(walk);
    };
    let LinkKind::Bridge(bridge) = &master.kind else {
        return Err(walk.unknown(format!("{} is no bridge", master.name)));
    };
    match egress(master, bridge, by, vid) {
        Passage::Yes(tag) => {
            walk.tags.extend(tag);
            Ok(walk)
        }
        Passage::No(state) => Err(refused(walk, by, state)),
        Passage::Unknown(why) => Err(walk.unknown(why)),
    }
}

fn refused(mut walk: Walk, by: &Link, state: String) -> Ways {
    let text = format!("{} does not take the frame's VLAN", by.name);
    let dev = by.name.clone();
    walk.step(Step::new(StepKind::Bridge, text).with(Evidence::Link { dev, state }));
    walk.end(Disposition::Dropped(DropReason::VlanFilter))
}

/// Whether br_netfilter shows tagged frames to the IP hooks (bridge-nf-filter-vlan-tagged), which is not followed.
///
/// Source: `is_vlan_ip()`, net/bridge/br_netfilter_hooks.c.
pub(crate) fn shows_tagged(cx: &Cx<'_>, ns: &NsKey, master: &Link) -> Result<(), String> {
    let sysctls = cx
        .topology
        .netns(ns)
        .and_then(|netns| netns.sysctls.known());
    let setting = sysctls.and_then(|own| own.bridge_nf_filter_vlan_tagged.known());
    match setting {
        Some(Some(true)) => Err(format!(
            "bridge-nf-filter-vlan-tagged of {ns} shows tagged frames of {} to the IP hooks, which is not modelled",
            master.name
        )),
        Some(_) => Ok(()),
        None => Err(format!("bridge-nf-filter-vlan-tagged of {ns} was not read")),
    }
}
