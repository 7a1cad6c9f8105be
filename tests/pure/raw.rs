//! Packets of raw sockets whose program writes the header.

use netpath::model::NsKey;
use netpath::model::netfilter::{Family, Hook};
use netpath::model::packet::{L4, Packet};
use netpath::simulate::{Limits, Outcome, Sent, send};
use netpath::trace::{Disposition, RejectWith, StepKind};

use crate::tables::{chain, drops_state, with};
use crate::walks::{bridged, overlay};
use crate::world::{World, ip};

fn udp(world: &World, from: &NsKey, (src, dst): (&str, &str), len: u32, df: bool) -> Outcome {
    let l4 = L4::Udp {
        sport: Some(4000),
        dport: Some(8080),
    };
    let packet = Packet {
        df,
        len,
        ..packet(src, dst, l4)
    };
    raw(world, from, packet)
}

fn packet(src: &str, dst: &str, l4: L4) -> Packet {
    Packet {
        ttl: 255,
        df: false,
        ..Packet::new(ip(src), ip(dst), l4)
    }
}

fn raw(world: &World, from: &NsKey, packet: Packet) -> Outcome {
    let sent = Sent {
        from: from.clone(),
        packet,
        mark: 0,
        uid: Some(0),
        gid: Some(0),
        kernel: false,
        raw: true,
        untied: false,
        bound: None,
    };
    send(&world.topology, &sent, &Limits::default())
}

#[test]
fn more_than_the_device_takes_is_refused_before_output_with_or_without_df() {
    let (world, _, a, _) = bridged();
    for df in [false, true] {
        let outcome = udp(&world, &a, ("10.244.1.7", "10.244.1.9"), 1501, df);
        let [trace] = outcome.traces.as_slice() else {
            panic!("{outcome:#?}");
        };
        let refused = Disposition::Rejected(RejectWith::TooBig(1500));
        assert_eq!(trace.outcome(), &refused, "df {df}");
        let kinds = |step: &netpath::trace::Step| step.kind;
        let last = trace.hops[0].steps.last().map(kinds);
        assert_eq!(last, Some(StepKind::Mtu));
    }
}

/// The tunnel's own packets are no raw socket's: those that do not fit are cut.
#[test]
fn what_a_tunnel_makes_of_a_raw_packet_is_the_kernels() {
    let (mut world, hosts, _) = overlay();
    world.change(&hosts[0], 3, |link| link.mtu = 1400);
    let sent = |df| udp(&world, &hosts[0], ("10.244.1.0", "10.244.2.7"), 1400, df);
    let outcome = sent(false);
    let steps = outcome.traces.iter().flat_map(|trace| &trace.hops);
    let steps = steps.flat_map(|hop| &hop.steps);
    let results: Vec<&str> = steps
        .filter(|step| step.kind == StepKind::Mtu)
        .map(|step| step.result.as_str())
        .collect();
    assert_eq!(results, ["sent as fragments of 1400 bytes"], "{outcome:#?}");
    // What may not be cut meets the MTU that an earlier packet left, which is not read.
    let outcome = sent(true);
    let Disposition::Inconclusive(why) = outcome.traces[0].outcome() else {
        panic!("{outcome:#?}");
    };
    assert!(why[0].contains("a route exception"), "{why:?}");
}

/// A router solicitation is not tracked; a redirect belongs to the connection of what it quotes, as errors do.
#[test]
fn an_icmpv6_redirect_is_not_untracked() {
    let (mut world, _, a, b) = bridged();
    world.addr(&a, 2, "fd00::7", 64);
    world.addr(&b, 2, "fd00::9", 64);
    let untracked = drops_state(64);
    let mut table = chain(Hook::Output, untracked);
    table.family = Family::Ip6;
    with(&mut world, &a, table);
    let end = |kind: u8| {
        let l4 = L4::Icmp {
            kind,
            code: 0,
            id: None,
        };
        let outcome = raw(&world, &a, packet("fd00::7", "fd00::9", l4));
        outcome.traces[0].outcome().clone()
    };
    assert!(
        matches!(end(133), Disposition::Dropped(_)),
        "{:?}",
        end(133)
    );
    let Disposition::Inconclusive(why) = end(137) else {
        panic!("{:?}", end(137));
    };
    assert!(why[0].contains("redirect"), "{why:?}");
}
