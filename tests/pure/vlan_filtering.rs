//! VLANs of bridges: what a filtering one lets in, out and up, and tagged frames through one that does not filter.

use netpath::model::NsKey;
use netpath::model::Section;
use netpath::model::fdb::FdbEntry;
use netpath::model::link::{BridgeVlan, LinkKind, PortState};
use netpath::trace::{Disposition, DropReason, RejectWith};

use crate::walks::bridged;
use crate::world::{World, index, mac};

/// ETH_P_8021Q
const DOT1Q: u16 = 0x8100;

/// Member of one VLAN: device, id, PVID, untagged.
type Member = (u32, u16, bool, bool);

/// [`bridged`], of which the bridge filters and has these VLANs.
fn filtering(members: &[Member]) -> (World, NsKey, NsKey, NsKey) {
    let (mut world, host, a, b) = bridged();
    let vlans: Vec<BridgeVlan> = members
        .iter()
        .map(|(dev, id, pvid, untagged)| BridgeVlan {
            link: index(*dev),
            first: *id,
            last: *id,
            pvid: *pvid,
            untagged: *untagged,
            state: PortState::Forwarding,
        })
        .collect();
    world.change(&host, 4, |link| {
        if let LinkKind::Bridge(bridge) = &mut link.kind {
            bridge.vlan_filtering = true;
            bridge.vlan_protocol = DOT1Q;
            bridge.vlans = Section::Known(vlans.clone());
        }
    });
    // As the kernel has them: the bridge's own address, by VLAN of the bridge.
    let own = world.get(&host).link(index(4)).and_then(|link| link.mac);
    for (_, id, ..) in members.iter().filter(|(dev, ..)| *dev == 4) {
        entry(&mut world, &host, 4, own.expect("an address"), (*id, true));
    }
    (world, host, a, b)
}

fn entry(
    world: &mut World,
    host: &NsKey,
    dev: u32,
    station: netpath::model::MacAddr,
    (vlan, permanent): (u16, bool),
) {
    let fdb = world.get(host).fdb.known_mut().expect("fdb");
    fdb.push(FdbEntry {
        link: index(dev),
        master: Some(index(4)),
        mac: station,
        vlan: Some(vlan),
        own: false,
        permanent,
        sticky: false,
        ext_learned: false,
        nexthop: None,
        dst: None,
        port: None,
        vni: None,
        via: None,
    });
}

fn end(world: &World, from: &NsKey, to: &str) -> Disposition {
    let outcome = world.tcp(from, to, 8080);
    let [trace] = outcome.traces.as_slice() else {
        panic!("{outcome:#?}");
    };
    trace.outcome().clone()
}

#[test]
fn ports_of_one_vlan_talk_and_others_do_not() {
    let (world, _, a, _) = filtering(&[(12, 10, true, true), (13, 10, true, true)]);
    assert_eq!(end(&world, &a, "10.244.1.9"), Disposition::Delivered);
    // Nobody hears the question of another VLAN.
    let apart = [(12, 10, true, true), (13, 20, true, true)];
    let (mut world, host, a, _) = filtering(&apart);
    let unheard = Disposition::Rejected(RejectWith::HostUnreachable);
    assert_eq!(end(&world, &a, "10.244.1.9"), unheard);
    // Nor is a frame of one flooded into the other, whatever the station.
    world.neigh(&a, 2, "10.244.1.9", mac(3, 2));
    let nowhere = Disposition::Dropped(DropReason::BridgeNoPort);
    assert_eq!(end(&world, &a, "10.244.1.9"), nowhere);
    // An entry of the other VLAN counts for nothing, one of its own leads to a port that does not take it.
    entry(&mut world, &host, 13, mac(3, 2), (20, false));
    assert_eq!(end(&world, &a, "10.244.1.9"), nowhere);
    entry(&mut world, &host, 13, mac(3, 2), (10, false));
    let refused = Disposition::Dropped(DropReason::VlanFilter);
    assert_eq!(end(&world, &a, "10.244.1.9"), refused);
}

#[test]
fn what_has_no_tag_needs_a_pvid() {
    let (mut world, _, a, _) = filtering(&[(12, 10, false, true), (13, 10, true, true)]);
    world.neigh(&a, 2, "10.244.1.9", mac(3, 2));
    let refused = Disposition::Dropped(DropReason::VlanFilter);
    assert_eq!(end(&world, &a, "10.244.1.9"), refused);
}

/// A VLAN device of a pod on top of its eth0, which has its address.
fn tagged(world: &mut World, pod: &NsKey, id: u16) {
    world.link(pod, 3, "eth0.10", LinkKind::Vlan(id), |link| {
        link.link = Some(index(2));
    });
    let own = world.get(pod).link(index(2)).and_then(|link| link.mac);
    world.change(pod, 3, |link| link.mac = own);
    let ns = world.get(pod);
    for addr in ns.addrs.known_mut().expect("addresses") {
        addr.link = index(3);
    }
    let routes = ns.routes.known_mut().expect("routes").iter_mut();
    for hop in routes.flat_map(|route| &mut route.nexthops) {
        hop.link = Some(index(3));
    }
}

#[test]
fn a_trunk_has_tags() {
    for (id, expected) in [
        (10, Disposition::Delivered),
        (20, Disposition::Rejected(RejectWith::HostUnreachable)),
    ] {
        let (mut world, _, a, b) = filtering(&[(12, 10, true, true), (13, 10, false, false)]);
        tagged(&mut world, &b, id);
        assert_eq!(end(&world, &a, "10.244.1.9"), expected, "VLAN {id}");
    }
}

#[test]
fn the_bridge_itself_is_a_member_or_not() {
    let ports = [(12, 10, true, true), (13, 10, true, true)];
    for (own, expected) in [
        (vec![(4, 10, true, true)], true),
        (vec![(4, 20, true, true)], false),
        // Its answers would have no VLAN.
        (vec![(4, 10, false, true)], false),
    ] {
        let (mut world, host, a, _) = filtering(&[ports.to_vec(), own.clone()].concat());
        world.listen(&host, 6, "0.0.0.0", 8080);
        let end = end(&world, &a, "10.244.1.1");
        assert_eq!(end == Disposition::Delivered, expected, "{own:?}: {end:?}");
        assert!(!matches!(end, Disposition::Inconclusive(_)), "{own:?}");
    }
}

#[test]
fn a_bridge_that_does_not_filter_passes_tags_on() {
    for (ids, expected) in [([10, 10], true), ([10, 20], false)] {
        let (mut world, _, a, b) = bridged();
        tagged(&mut world, &a, ids[0]);
        tagged(&mut world, &b, ids[1]);
        let end = end(&world, &a, "10.244.1.9");
        assert_eq!(end == Disposition::Delivered, expected, "{ids:?}: {end:?}");
        assert!(!matches!(end, Disposition::Inconclusive(_)), "{ids:?}");
    }
}

#[test]
fn vlans_that_were_not_read_are_unknown() {
    let (mut world, host, a, _) = filtering(&[(12, 10, true, true), (13, 10, true, true)]);
    world.change(&host, 4, |link| {
        if let LinkKind::Bridge(bridge) = &mut link.kind {
            bridge.vlans = Section::Missing("refused".to_owned());
        }
    });
    world.neigh(&a, 2, "10.244.1.9", mac(3, 2));
    assert!(matches!(
        end(&world, &a, "10.244.1.9"),
        Disposition::Inconclusive(_)
    ));
}
