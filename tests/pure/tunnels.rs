//! Tunnels of IP packets in IP packets.

use netpath::model::link::{IpTunnel, IpTunnelKind, LinkKind};
use netpath::model::packet::{GreFields, ICMP, Inner, L4, Packet, TCP, UDP, Wrap};
use netpath::model::wireguard::{PublicKey, Wireguard, WireguardPeer};
use netpath::model::{NsKey, Section};
use netpath::simulate::{Flow, Limits, Sent, send, simulate};
use netpath::trace::{Disposition, DropReason, RejectWith, StepKind, Trace};

use crate::walks::two_nodes;
use crate::world::{World, index, ip};

/// [`two_nodes`] whose pods are reached by an IPIP device without a remote, as Calico has it.
fn ipip() -> (World, [NsKey; 2], [NsKey; 2]) {
    let (mut world, hosts, pods) = two_nodes();
    for (host, other) in [(&hosts[0], 2), (&hosts[1], 1)] {
        let tunnel = IpTunnel {
            kind: IpTunnelKind::Ipip,
            local: None,
            remote: None,
            lower: None,
            ttl: 0,
            tos: 1,
            pmtudisc: true,
            any: false,
            input: GreFields::default(),
            output: GreFields::default(),
            unknown: Vec::new(),
        };
        world.link(host, 7, "tunl0", LinkKind::IpTunnel(tunnel), |link| {
            link.mac = None;
            link.noarp = true;
            link.mtu = 1480;
        });
        let routes = world.get(host).routes.known_mut().expect("routes");
        let route = routes
            .iter_mut()
            .find(|route| route.dst.addr() == ip(&format!("10.244.{other}.0")));
        route.expect("the other node's pods").nexthops[0].link = Some(index(7));
    }
    (world, hosts, pods)
}

#[test]
fn ipip_without_a_remote_goes_to_the_next_hop() {
    let (world, _, pods) = ipip();
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    let trace = &outcome.traces[0];
    assert_eq!(*trace.outcome(), Disposition::Delivered, "{trace:#?}");
    let taps = trace.hops.iter().flat_map(|hop| &hop.taps);
    let outer: Vec<&Packet> = taps
        .map(|tap| &tap.packet)
        .filter(|packet| packet.inner.is_some())
        .collect();
    assert!(!outer.is_empty());
    for packet in outer {
        assert_eq!(
            (packet.src, packet.dst),
            (ip("10.88.0.11"), ip("10.88.0.12"))
        );
        // The TTL of the packet inside, which was forwarded once.
        assert_eq!((packet.ttl, packet.l4), (63, L4::Other(4)));
        assert_eq!(packet.len, 80);
    }
}

/// Of tunnels inside each other, only the first notes whose header is inside, and only of what has its checksum left to a
/// device (`iptunnel_handle_offloads()`).
#[test]
fn a_tunnel_in_a_tunnel_inherits_from_what_went_into_the_first_where_a_device_sums_it() {
    let (mut world, hosts, pods) = ipip();
    world.change(&hosts[0], 7, |link| {
        if let LinkKind::IpTunnel(own) = &mut link.kind {
            own.ttl = 50;
        }
    });
    let first = world.get(&hosts[0]).link(index(7)).cloned();
    let mut kind = first.expect("the first").kind;
    if let LinkKind::IpTunnel(own) = &mut kind {
        (own.ttl, own.remote) = (0, Some(ip("10.88.0.112")));
    }
    world.link(&hosts[0], 8, "tunl1", kind, |link| link.noarp = true);
    world.route(&hosts[0], "10.88.0.12/32", "10.88.0.12", 8);
    let routes = world.get(&hosts[0]).routes.known_mut().expect("routes");
    routes.last_mut().expect("a route").nexthops[0].via = None;
    let ttls = |world: &World, protocol: u8| {
        let flow = Flow {
            from: pods[0].clone(),
            src: None,
            sport: None,
            dst: ip("10.244.2.7"),
            dport: (protocol != ICMP).then_some(8080),
            protocol,
            len: 60,
            uid: Some(0),
            gid: Some(0),
            bound: None,
        };
        let outcome = simulate(&world.topology, &flow, &Limits::default());
        let mut taps = outcome.traces[0].hops.iter().flat_map(|hop| &hop.taps);
        let outer = taps.find(|tap| tap.packet.dst == ip("10.88.0.112"));
        let packet = &outer.expect("an outer packet").packet;
        let middle = &packet.inner.as_ref().expect("one inside").packet;
        (packet.ttl, middle.ttl)
    };
    assert_eq!(ttls(&world, TCP), (63, 50));
    assert_eq!(ttls(&world, UDP), (63, 50));
    assert_eq!(ttls(&world, ICMP), (50, 50));
    // A GRE device that adds a checksum leaves that to a device, but has forgotten whose header it was.
    world.change(&hosts[0], 7, |link| {
        if let LinkKind::IpTunnel(own) = &mut link.kind {
            own.kind = IpTunnelKind::Gre;
            own.output.checksum = true;
        }
    });
    assert_eq!(ttls(&world, ICMP), (50, 50));
}

/// What a device has summed before the second tunnel is no longer left to one behind it.
#[test]
fn a_third_tunnel_inherits_from_what_goes_into_it() {
    let (mut world, hosts, pods) = ipip();
    let first = world.get(&hosts[0]).link(index(7)).cloned();
    let first = first.expect("the first").kind;
    let tunnels = [
        (8, "tunl1", 40, "10.88.0.112", "10.88.0.12/32"),
        (9, "tunl2", 0, "10.88.0.113", "10.88.0.112/32"),
    ];
    for (at, name, ttl, remote, dst) in tunnels {
        let mut kind = first.clone();
        if let LinkKind::IpTunnel(own) = &mut kind {
            (own.ttl, own.remote) = (ttl, Some(ip(remote)));
        }
        world.link(&hosts[0], at, name, kind, |link| link.noarp = true);
        world.route(&hosts[0], dst, "10.88.0.12", at);
        let routes = world.get(&hosts[0]).routes.known_mut().expect("routes");
        routes.last_mut().expect("a route").nexthops[0].via = None;
    }
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    let mut taps = outcome.traces[0].hops.iter().flat_map(|hop| &hop.taps);
    let outer = taps.find(|tap| tap.packet.dst == ip("10.88.0.113"));
    assert_eq!(outer.expect("the third's packet").packet.ttl, 40);
}

#[test]
fn packets_of_a_tunnel_keep_to_one_of_several_next_hops() {
    let (mut world, hosts, pods) = ipip();
    world.route(&hosts[0], "10.88.0.12/32", "10.88.0.12", 3);
    let routes = world.get(&hosts[0]).routes.known_mut().expect("routes");
    let hops = &mut routes.last_mut().expect("a route").nexthops;
    hops[0].via = None;
    hops.push(hops[0].clone());
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    let shares: Vec<f64> = outcome.traces.iter().map(|way| way.probability).collect();
    assert_eq!(shares, [0.5, 0.5]);
    let works = |way: &Trace| *way.outcome() == Disposition::Delivered;
    assert!(outcome.traces.iter().all(works), "{outcome:#?}");
}

#[test]
fn a_tunnel_that_is_down_takes_nothing() {
    let (mut world, hosts, pods) = ipip();
    world.change(&hosts[1], 7, |link| link.up = false);
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    let end = outcome.traces[0].outcome();
    assert_eq!(*end, Disposition::Dropped(DropReason::DevReady));
}

/// What takes an outer packet from 10.88.0.11 to 10.88.0.12 by eth0 (3) on a node with these devices: kind, name,
/// whether it is up, local, remote, lower device.
type Device<'t> = (IpTunnelKind, &'t str, bool, bool, bool, Option<u32>);

fn taken_by(devices: &[Device<'_>]) -> Result<String, Disposition> {
    let (mut world, hosts, _) = two_nodes();
    world.addr(&hosts[1], 3, "fd88::12", 64);
    let kind = devices[0].0;
    for (number, (kind, name, up, local, remote, lower)) in devices.iter().enumerate() {
        let tunnel = IpTunnel {
            kind: *kind,
            local: local.then(|| ip("10.88.0.12")),
            remote: remote.then(|| ip("10.88.0.11")),
            lower: lower.map(index),
            ttl: 0,
            tos: 0,
            pmtudisc: true,
            any: false,
            input: GreFields::default(),
            output: GreFields::default(),
            unknown: Vec::new(),
        };
        let dev = u32::try_from(number).expect("few") + 20;
        world.link(&hosts[1], dev, name, LinkKind::IpTunnel(tunnel), |link| {
            link.mac = None;
            link.noarp = true;
            link.up = *up;
        });
    }
    let packet = |src: &str, dst: &str, l4: L4, inner: Option<Packet>| Packet {
        len: 100,
        inner: inner.map(|packet| {
            Box::new(Inner {
                vni: None,
                wrap: Wrap::Plain,
                packet,
            })
        }),
        ..Packet::new(ip(src), ip(dst), l4)
    };
    let udp = L4::Udp {
        sport: Some(1000),
        dport: Some(53),
    };
    let inside = match kind {
        IpTunnelKind::Sit => packet("fd88::11", "fd88::12", udp, None),
        _ => packet("10.88.0.11", "10.88.0.12", udp, None),
    };
    let outer = L4::Other(kind.protocol());
    let sent = Sent {
        from: hosts[0].clone(),
        packet: packet("10.88.0.11", "10.88.0.12", outer, Some(inside)),
        mark: 0,
        uid: Some(0),
        gid: Some(0),
        kernel: false,
        raw: true,
        untied: false,
        bound: None,
    };
    let outcome = send(&world.topology, &sent, &Limits::default());
    assert_eq!(outcome.traces.len(), 1, "{outcome:#?}");
    let trace = &outcome.traces[0];
    let mut steps = trace.hops.iter().flat_map(|hop| &hop.steps);
    let out_of = steps.find_map(|step| {
        let decap = step.kind == StepKind::Decap;
        step.result
            .strip_prefix("out of the tunnel at ")
            .filter(|_| decap)
    });
    out_of
        .map(str::to_owned)
        .ok_or_else(|| trace.disposition.clone())
}

#[test]
fn the_device_that_a_tunnel_is_bound_to_comes_before_its_ends() {
    for kind in [IpTunnelKind::Ipip, IpTunnelKind::Gre] {
        let ends = (kind, "ends", true, true, true, None);
        let any = (kind, "any", true, false, false, None);
        let bound = (kind, "bound", true, false, false, Some(3));
        let elsewhere = (kind, "elsewhere", true, true, true, Some(4));
        let by = |devices: &[Device<'_>]| taken_by(devices);
        assert_eq!(by(&[any, ends]), Ok("ends".to_owned()));
        assert_eq!(by(&[any, ends, bound]), Ok("bound".to_owned()));
        // One that is bound to another device takes it, where none is bound to this one.
        assert_eq!(by(&[elsewhere, any]), Ok("elsewhere".to_owned()));
        assert_eq!(by(&[elsewhere, any, bound]), Ok("bound".to_owned()));
        assert_eq!(
            by(&[any, (kind, "down", false, true, true, Some(3))]),
            Ok("any".to_owned())
        );
        let local = (kind, "local", true, true, false, None);
        let remote = (kind, "remote", true, false, true, None);
        assert_eq!(by(&[local, any, remote]), Ok("remote".to_owned()));
        assert!(matches!(
            by(&[elsewhere, ends]),
            Err(Disposition::Inconclusive(_))
        ));
    }
}

#[test]
fn sit_takes_nothing_for_another_device_but_what_names_no_end() {
    let kind = IpTunnelKind::Sit;
    let ends = (kind, "ends", true, true, true, None);
    let any = (kind, "any", true, false, false, None);
    let bound = (kind, "bound", true, true, false, Some(3));
    let elsewhere = (kind, "elsewhere", true, true, true, Some(4));
    assert_eq!(taken_by(&[bound, ends]), Ok("ends".to_owned()));
    assert_eq!(taken_by(&[elsewhere, any]), Ok("any".to_owned()));
    assert_eq!(
        taken_by(&[(kind, "any", true, false, false, Some(4))]),
        Ok("any".to_owned())
    );
    let sit0 = (kind, "sit0", false, false, false, None);
    assert_eq!(
        taken_by(&[sit0]),
        Err(Disposition::Dropped(DropReason::DevReady))
    );
    let newer = (kind, "newer", true, false, false, Some(3));
    assert!(matches!(
        taken_by(&[sit0, newer]),
        Err(Disposition::Inconclusive(_))
    ));
}

/// [`two_nodes`] whose pods are reached by WireGuard, each other's peer.
fn wireguard(change: impl Fn(usize, &mut Wireguard)) -> (World, [NsKey; 2]) {
    let (mut world, hosts, pods) = two_nodes();
    for (node, host) in hosts.iter().enumerate() {
        let (own, other) = ([1, 2][node], [2, 1][node]);
        let mut device = Wireguard {
            key: Some(PublicKey([own; 32])),
            port: 51820,
            fwmark: 0,
            peers: vec![WireguardPeer {
                key: PublicKey([other; 32]),
                preshared: false,
                endpoint: Some(format!("10.88.0.1{other}:51820").parse().expect("one")),
                handshake: None,
                allowed: vec![format!("10.244.{other}.0/24").parse().expect("a prefix")],
            }],
        };
        change(node, &mut device);
        let kind = LinkKind::Wireguard(Section::Known(device));
        world.link(host, 7, "wg0", kind, |link| {
            link.mac = None;
            link.noarp = true;
            link.mtu = 1420;
        });
        let routes = world.get(host).routes.known_mut().expect("routes");
        let mut routes = routes.iter_mut();
        let route = routes.find(|route| route.dst.addr() == ip(&format!("10.244.{other}.0")));
        let hop = &mut route.expect("the other node's pods").nexthops[0];
        (hop.link, hop.via) = (Some(index(7)), None);
    }
    (world, pods)
}

#[test]
fn wireguard_goes_to_the_peer_and_back() {
    let (world, pods) = wireguard(|node, device| {
        if node == 1 {
            // It knows by the packet where its peer is.
            device.peers[0].endpoint = None;
        }
    });
    let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
    let trace = &outcome.traces[0];
    assert_eq!(*trace.outcome(), Disposition::Delivered, "{trace:#?}");
    let mut taps = trace.hops.iter().flat_map(|hop| &hop.taps);
    let outer = taps.find(|tap| tap.packet.inner.is_some());
    let packet = &outer.expect("an outer packet").packet;
    assert_eq!(
        (packet.src, packet.dst),
        (ip("10.88.0.11"), ip("10.88.0.12"))
    );
    assert_eq!((packet.sport(), packet.dport()), (Some(51820), Some(51820)));
    // 60 bytes are padded to 64.
    assert_eq!(packet.len, 64 + 32 + 8 + 20);
}

#[test]
fn preshared_keys_are_unknown_before_a_handshake() {
    for handshake in [None, Some(1)] {
        let (world, pods) = wireguard(|_, device| {
            (device.peers[0].preshared, device.peers[0].handshake) = (true, handshake);
        });
        let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
        let unknown = matches!(outcome.traces[0].outcome(), Disposition::Inconclusive(_));
        assert_eq!(unknown, handshake.is_none(), "{handshake:?}");
    }
}

/// What packets for a peer are sent from is where it sends to, once it was heard; nothing but its own endpoint tells that.
#[test]
fn wireguard_sends_from_where_its_peer_heard_it() {
    for (handshake, expected) in [(Some(1), "10.88.0.111"), (None, "10.88.0.11")] {
        let (mut world, pods) = wireguard(|node, device| {
            device.peers[0].handshake = handshake;
            if node == 1 {
                device.peers[0].endpoint = Some("10.88.0.111:51820".parse().expect("one"));
            }
        });
        let host = crate::world::key("n1", 1);
        world.addr(&host, 3, "10.88.0.111", 24);
        let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
        let mut taps = outcome.traces[0].hops.iter().flat_map(|hop| &hop.taps);
        let outer = taps.find(|tap| tap.packet.inner.is_some());
        let src = outer.expect("an outer packet").packet.src;
        assert_eq!(src, ip(expected), "{handshake:?}");
    }
}

#[test]
fn wireguard_refuses_what_no_peer_may_send_or_get() {
    type Change = fn(usize, &mut Wireguard);
    let nobody = Disposition::Rejected(RejectWith::HostUnreachable);
    let dropped = Disposition::Dropped(DropReason::NotSpecified);
    let cases: [(Change, &Disposition); 4] = [
        (
            |node, own| own.peers[0].allowed.retain(|_| node == 1),
            &nobody,
        ),
        (
            |node, own| own.peers[0].endpoint = own.peers[0].endpoint.filter(|_| node == 1),
            &nobody,
        ),
        (
            |node, own| own.peers[0].allowed.retain(|_| node == 0),
            &dropped,
        ),
        (|node, own| own.peers[0].preshared = node == 0, &dropped),
    ];
    for (number, (change, end)) in cases.into_iter().enumerate() {
        let (world, pods) = wireguard(change);
        let outcome = world.tcp(&pods[0], "10.244.2.7", 8080);
        assert_eq!(outcome.traces[0].outcome(), end, "{number}");
    }
}

/// How an echo request of 1,500 bytes ends that is sent by a raw socket of `from` to the other node's pod, where the
/// tunnel takes as much and its way does not.
fn large(world: &World, from: &NsKey, src: &str, df: bool) -> Disposition {
    let l4 = L4::Icmp {
        kind: 8,
        code: 0,
        id: Some(1),
    };
    let sent = Sent {
        from: from.clone(),
        packet: Packet {
            len: 1_500,
            df,
            ..Packet::new(ip(src), ip("10.244.2.7"), l4)
        },
        mark: 0,
        uid: Some(0),
        gid: Some(0),
        kernel: false,
        raw: true,
        untied: false,
        bound: None,
    };
    let outcome = send(&world.topology, &sent, &Limits::default());
    outcome.traces[0].disposition.clone()
}

#[test]
fn what_is_too_large_for_the_way_of_a_tunnel_is_refused_or_lost() {
    let lost = Disposition::Dropped(DropReason::PktTooBig);
    let told = |most| Disposition::Rejected(RejectWith::TooBig(most));
    let with = |pmtudisc: bool| {
        let (mut world, hosts, pods) = ipip();
        world.change(&hosts[0], 7, |link| {
            link.mtu = 1_500;
            if let LinkKind::IpTunnel(tunnel) = &mut link.kind {
                tunnel.pmtudisc = pmtudisc;
            }
        });
        (world, hosts, pods)
    };
    let (world, hosts, pods) = with(true);
    assert_eq!(large(&world, &pods[0], "10.244.1.7", true), told(1_480));
    assert_eq!(large(&world, &pods[0], "10.244.1.7", false), lost);
    // A socket of the node itself may meet what an earlier packet left.
    let own = large(&world, &hosts[0], "10.88.0.11", false);
    assert!(matches!(own, Disposition::Inconclusive(_)), "{own:?}");
    let (world, _, pods) = with(false);
    assert_eq!(large(&world, &pods[0], "10.244.1.7", true), told(1_480));
    let cut = large(&world, &pods[0], "10.244.1.7", false);
    assert_eq!(cut, Disposition::Delivered);
}

#[test]
fn forwarding_that_heeds_route_exceptions_is_not_predicted() {
    let (mut world, hosts, pods) = ipip();
    world.change(&hosts[0], 7, |link| link.mtu = 1_500);
    let sysctls = world.get(&hosts[0]).sysctls.known_mut().expect("sysctls");
    sysctls.ip_forward_use_pmtu = Section::Known(true);
    let end = large(&world, &pods[0], "10.244.1.7", false);
    assert!(matches!(end, Disposition::Inconclusive(_)), "{end:?}");
}
