//! VLANs between nodes: the devices below see the frames, too, and another VLAN's do not.

use netpath::model::NsKey;
use netpath::model::link::LinkKind;
use netpath::model::netfilter::{Expr, Hook, Verdict};
use netpath::trace::Disposition;

use crate::tables::{chain, with};
use crate::world::{World, index, mac};

/// Two nodes whose eth0 carries a VLAN of these ids, with addresses there alone.
fn nodes(ids: [u16; 2]) -> (World, [NsKey; 2]) {
    let mut world = World::new();
    let nodes = [world.ns("n1", 1, true), world.ns("n2", 2, true)];
    for ((node, id), addr) in nodes.iter().zip(ids).zip(["10.9.0.1", "10.9.0.2"]) {
        world.link(node, 2, "eth0", LinkKind::Device, |_| {});
        world.link(node, 3, "eth0.10", LinkKind::Vlan(id), |link| {
            link.link = Some(index(2));
        });
        // As the kernel makes it, with the address of the device below.
        let own = world.get(node).link(index(2)).and_then(|link| link.mac);
        world.change(node, 3, |link| link.mac = own);
        world.addr(node, 3, addr, 24);
        world.listen(node, 6, "0.0.0.0", 8080);
    }
    (world, nodes)
}

fn end(world: &World, from: &NsKey) -> Disposition {
    let outcome = world.tcp(from, "10.9.0.2", 8080);
    let [trace] = outcome.traces.as_slice() else {
        panic!("{outcome:#?}");
    };
    trace.outcome().clone()
}

#[test]
fn the_devices_below_are_passed_on_both_sides() {
    let (world, [near, far]) = nodes([10, 10]);
    let outcome = world.tcp(&near, "10.9.0.2", 8080);
    let trace = &outcome.traces[0];
    assert_eq!(trace.outcome(), &Disposition::Delivered, "{outcome:#?}");
    let taps = trace.hops.iter().flat_map(|hop| &hop.taps);
    let seen: Vec<(&str, bool)> = taps.map(|tap| (tap.dev.as_str(), tap.out)).collect();
    let way = [
        ("eth0.10", true),
        ("eth0", true),
        ("eth0", false),
        ("eth0.10", false),
    ];
    assert_eq!(seen, way);
    for (node, hook) in [(&near, Hook::Egress), (&far, Hook::Ingress)] {
        let (mut world, _) = nodes([10, 10]);
        let mut table = chain(hook, vec![Expr::Verdict(Verdict::Drop)]);
        for base in table
            .chains
            .values_mut()
            .filter_map(|one| one.base.as_mut())
        {
            base.devices = vec!["eth0".to_owned()];
        }
        with(&mut world, node, table);
        let end = end(&world, &near);
        assert!(matches!(end, Disposition::Dropped(_)), "{node}: {end:?}");
    }
    for (node, of) in [(&near, "near"), (&far, "far")] {
        let (mut world, _) = nodes([10, 10]);
        world.change(node, 2, |link| link.up = false);
        let end = end(&world, &near);
        assert_ne!(end, Disposition::Delivered, "the {of} device below is down");
    }
}

#[test]
fn another_vlan_is_not_followed() {
    let (mut world, [near, far]) = nodes([10, 20]);
    let own = world.get(&far).link(index(2)).and_then(|link| link.mac);
    world.neigh(&near, 3, "10.9.0.2", own.unwrap_or_else(|| mac(2, 2)));
    let end = end(&world, &near);
    let Disposition::Inconclusive(why) = end else {
        panic!("{end:?}");
    };
    assert!(why[0].contains("of different VLANs"), "{why:?}");
}
