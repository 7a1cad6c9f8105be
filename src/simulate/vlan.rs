//! VLANs of 802.1Q: tagged on the way into the device below, and to the device of the tag on the way out of it.
//!
//! Read first: `vlan_dev_hard_start_xmit()`, `vlan_do_receive()`, net/8021q, v6.12. Not modelled: priorities, devices without `reorder_hdr`.

use super::walk::{Next, Walk, Ways};
use super::{Cx, device, l2, underlay};
use crate::model::link::{Link, LinkKind};
use crate::model::{IfIndex, NsKey};
use crate::trace::{Disposition, DropReason, Evidence, Step, StepKind};

/// VLAN tags inside each other that are followed.
const DEPTH: usize = 4;

/// The device that a VLAN sits on, with its namespace.
pub(crate) fn parent<'t>(cx: &Cx<'t>, ns: &NsKey, link: &Link) -> Option<(NsKey, &'t Link)> {
    let (ns, index) = l2::parent(cx, ns, link)?;
    let below = cx.topology.netns(&ns)?.link(index)?;
    Some((ns, below))
}

/// Tags a frame and hands it to the device below.
pub(crate) fn transmit(cx: &mut Cx<'_>, mut walk: Walk, link: &Link, id: u16) -> Ways {
    let Some((ns, below)) = parent(cx, &walk.ns, link) else {
        if let Some((ns, _)) = l2::parent(cx, &walk.ns, link) {
            cx.want_netns(&ns);
        }
        return walk.unknown(format!("the device below {} was not read", link.name));
    };
    if walk.tags.len() >= DEPTH {
        return walk.unknown(format!("more than {DEPTH} VLAN tags are inside each other"));
    }
    let text = format!("{} → {}, VLAN {id}", link.name, below.name);
    walk.step(Step::new(StepKind::Transmit, text));
    walk.tags.push(id);
    walk.below(&ns);
    device::transmit(cx, walk, below.index)
}

/// A tagged frame came in by a device: it is for the VLAN's own, in whatever namespace that is.
pub(crate) fn receive(cx: &mut Cx<'_>, mut walk: Walk, link: &Link, id: u16) -> Ways {
    let Some((ns, own)) = on_top(cx, &walk.ns, link.index, id) else {
        // It may be in one whose devices were not read.
        if let Some(why) = underlay::blind(cx) {
            return walk.unknown(why);
        }
        if let Some(master) = link.master {
            return match walk.link(cx, master).map(|master| (master, &master.kind)) {
                Some((master, LinkKind::Bridge(bridge))) => {
                    super::bridge::receive(cx, walk, link, master, bridge)
                }
                _ => walk.unknown(format!(
                    "what the master of {} does with frames of VLAN {id} is not followed",
                    link.name
                )),
            };
        }
        if !l2::macvlans(cx, &walk.ns, link.index).is_empty() {
            return walk.unknown(format!(
                "what macvlans on {} do with frames of VLAN {id} is not followed",
                link.name
            ));
        }
        let what = format!("a device for VLAN {id} on {}", link.name);
        let text = format!("nobody takes VLAN {id} here");
        walk.step(Step::new(StepKind::Receive, text).with(Evidence::Absent { what }));
        return walk.end(Disposition::Dropped(DropReason::Otherhost));
    };
    if !own.up {
        let (dev, state) = (own.name.clone(), "down".to_owned());
        let text = format!("{dev} is down");
        walk.step(Step::new(StepKind::Receive, text).with(Evidence::Link { dev, state }));
        return walk.end(Disposition::Dropped(DropReason::DevReady));
    }
    walk.tags.pop();
    walk.step(Step::new(
        StepKind::Receive,
        format!("{} → {}, VLAN {id}", link.name, own.name),
    ));
    let dev = own.index;
    // What a bridge below found is kept in the namespace.
    if ns != walk.ns {
        walk.enter(cx, ns, dev);
    }
    walk.then(Next::Receive(dev))
}

/// The VLAN device of an id on top of a device, in any namespace of the node.
pub(crate) fn on_top<'t>(
    cx: &Cx<'t>,
    ns: &NsKey,
    dev: IfIndex,
    id: u16,
) -> Option<(NsKey, &'t Link)> {
    let topology = cx.topology;
    let mut on_node = topology.all().filter(|(key, _)| key.node == ns.node);
    on_node.find_map(|(key, netns)| {
        let links = netns.links.known().map(Vec::as_slice).unwrap_or_default();
        let own = links.iter().find(|own| {
            own.kind == LinkKind::Vlan(id) && l2::parent(cx, &key, own) == Some((ns.clone(), dev))
        })?;
        Some((key.clone(), own))
    })
}
