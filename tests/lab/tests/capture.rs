//! What libpcap sees with a filter at one device is what packet sockets see there. Needs root.
#![allow(missing_docs, reason = "tests")]

use std::path::Path;
use std::time::{Duration, Instant};

use netpath::capture::{Frame, Setup, Tap, decode};
use netpath::collect::netns::{Hopper, NsFile};
use netpath::model::packet::{Packet, TCP};
use netpath_lab::packet::Transport;
use netpath_lab::{Capture, Cluster, Overlay, Proxy, Spec};

/// Waits until `tap` has what is expected, or time is up.
fn wait(tap: &mut Tap, wanted: usize) -> Vec<Frame> {
    let end = Instant::now() + Duration::from_secs(3);
    let mut all = Vec::new();
    while all.len() < wanted && Instant::now() < end {
        tap.take(usize::MAX, usize::MAX, &mut all).expect("packets");
        std::thread::yield_now();
    }
    all
}

#[test]
fn libpcap_and_packet_sockets_see_the_same() {
    let name = format!("c{}", std::process::id());
    let cluster = Cluster::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft).named(&name))
        .expect("a laboratory");
    let hopper = Hopper::start().expect("a thread that enters namespaces");
    let open = |pid: i32, dev: &str, filter: &str| {
        let ns = NsFile::open(Path::new(&format!("/proc/{pid}/ns/net"))).expect("a namespace");
        Tap::open(&hopper, &ns, Setup::new(dev, filter)).expect("a tap")
    };
    let pod = cluster.pod_state("shop/web-0").expect("the pod").clone();
    let node = cluster.state.node("node-1").expect("the node").holder_pid;
    let mut taps = [
        open(pod.pause_pid, "eth0", "tcp port 8080"),
        open(
            node,
            pod.host_veth.as_deref().expect("a veth"),
            "tcp port 8080",
        ),
        open(node, "eth0", "udp port 8472"),
    ];
    let mut other = open(pod.pause_pid, "eth0", "udp port 9");

    let sockets = Capture::of_cluster(&cluster).expect("a capture");
    let place = cluster.pod("shop/web-0").expect("a place");
    let to = "10.244.2.4:8080".parse().expect("an address");
    let outcome = place
        .tcp_exchange(to, Duration::from_secs(5))
        .expect("an exchange");
    assert!(outcome.connected(), "{outcome:?}");
    let seen = sockets.stop().expect("packets");

    for (tap, place) in taps.iter_mut().zip(["shop/web-0", "node-1", "node-1"]) {
        let here = seen
            .iter()
            .filter(|one| one.place == place && one.ifname == tap.dev());
        // Neighbour discovery and the like go on beside the exchange.
        let wanted: Vec<_> = here
            .filter_map(|one| one.frame.innermost())
            .filter(|ip| matches!(ip.transport, Transport::Tcp { .. }))
            .map(|ip| (ip.source, ip.destination, ip.ttl))
            .collect();
        assert!(wanted.len() >= 6, "{place} {}: {wanted:?}", tap.dev());
        let got: Vec<_> = wait(tap, wanted.len())
            .iter()
            .filter_map(|one| decode(&one.bytes, Some(8472)))
            .map(inside)
            .filter(|packet| packet.protocol() == TCP)
            .map(|packet| (packet.src, packet.dst, packet.ttl))
            .collect();
        assert_eq!(got, wanted, "{place} {}", tap.dev());
        let losses = tap.losses().expect("statistics");
        assert_eq!((losses.dropped, losses.if_dropped), (0, 0));
    }
    let mut all = Vec::new();
    other
        .take(usize::MAX, usize::MAX, &mut all)
        .expect("packets");
    assert_eq!(all, [], "the filter keeps other packets out");

    let ns = NsFile::open(Path::new("/proc/self/ns/net")).expect("own namespace");
    let Err(error) = Tap::open(&hopper, &ns, Setup::new("lo", "tcp port no-such-service")) else {
        panic!("a filter that is none was taken");
    };
    assert!(error.to_string().contains("set the filter"), "{error}");
    let Err(error) = Tap::open(&hopper, &ns, Setup::new("no-such-dev", "")) else {
        panic!("a device that is none was opened");
    };
    assert!(error.to_string().contains("no-such-dev"), "{error}");
    cluster.down().expect("down");
}

/// The packet inside a tunnel packet, or the packet itself.
fn inside(packet: Packet) -> Packet {
    match packet.inner {
        Some(inner) => inner.packet,
        None => packet,
    }
}
