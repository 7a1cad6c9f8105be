//! INPUT, and who takes the packet: a tunnel, a listener, or the socket that asked.
//!
//! Read first: `ip_local_deliver()`, `__inet_lookup_listener()` (net/ipv4/inet_hashtables.c),
//! `__udp4_lib_lookup()`, v6.12.

use std::net::IpAddr;

use super::conntrack::error;
use super::fib::section;
use super::netfilter::UNPRIVILEGED;
use super::skb::{Devices, Inherited, Skb};
use super::walk::{Goal, Next, Party, Walk, Ways};
use super::{Cx, geneve, ip_tunnel, vrf, vxlan, wireguard, xfrm};
use crate::model::IfIndex;
use crate::model::netfilter::Hook;
use crate::model::packet::{ICMP, ICMPV6, L4, Packet, SCTP, TCP, UDP, Wrap};
use crate::model::socket::Socket;
use crate::model::xfrm::XfrmDir;
use crate::trace::{Disposition, DropReason, Evidence, RejectWith, Step, StepKind};

/// INPUT, then the transport layer.
pub(crate) fn local_in(cx: &mut Cx<'_>, walk: Walk, dev: IfIndex) -> Ways {
    let devices = Devices {
        iif: Some(dev),
        physin: walk.physin,
        ..Devices::default()
    };
    walk.hook(cx, Hook::Input, false, devices, |cx, walk| {
        deliver(cx, walk, dev)
    })
}

fn deliver(cx: &mut Cx<'_>, walk: Walk, dev: IfIndex) -> Ways {
    let walk = match xfrm::check(cx, walk, XfrmDir::In, Some(dev)) {
        Ok(walk) => walk,
        Err(ways) => return ways,
    };
    if walk.skb.packet.is_tunnel() {
        let wrap = walk.skb.packet.inner.as_ref().map(|inner| inner.wrap);
        let in_udp = matches!(walk.skb.packet.l4, L4::Udp { .. });
        if walk.skb.resummed && in_udp && !matches!(wrap, Some(Wrap::Wireguard { .. })) {
            // `inet_proto_csum_replace4()` takes the outer checksum for the one that is left to a device (CHECKSUM_PARTIAL).
            return walk.unknown("the tunnel's packet was translated: the kernel makes its checksum wrong where what it carries has left its own to a device, and whether that is looked at depends on devices' offloads, which are not read");
        }
        if in_udp && matches!(wrap, Some(Wrap::Wireguard { .. } | Wrap::Geneve)) {
            match vrf::tunnel_takes(cx, &walk, None) {
                Ok(true) => {}
                Ok(false) => return vrf::no_tunnel(walk),
                Err(why) => return walk.unknown(why),
            }
        }
        return match (walk.skb.packet.l4, wrap) {
            (L4::Other(_), _) => ip_tunnel::decapsulate(cx, walk, dev),
            (_, Some(Wrap::Wireguard { .. })) => wireguard::decapsulate(cx, walk, dev),
            (_, Some(Wrap::Geneve)) => geneve::decapsulate(cx, walk),
            _ => vxlan::decapsulate(cx, walk),
        };
    }
    if is_misjudged(&walk.skb) {
        return walk.unknown("a rule changed the hop limit or the traffic class of a long datagram whose checksum its sender wrote: the kernel takes its own sum for wrong where conntrack made it before (net.netfilter.nf_conntrack_checksum, which is not read)");
    }
    let mut walk = walk;
    // The device that an echo of IPv6 came in by, which its answer is looked up by.
    let is_answer = matches!(&walk.goal, Goal::Party(party) if !party.sent);
    if walk.skb.packet.protocol() == ICMPV6 && !is_answer {
        let link = walk.link(cx, walk.skb.owner.unwrap_or(dev));
        walk.skb.near = link.filter(|link| !link.loopback).map(|link| link.index);
    }
    match walk.goal.clone() {
        Goal::Party(party) => to_party(cx, walk, &party, dev),
        Goal::Listener => to_listener(cx, walk, dev),
    }
}

/// Whether a datagram is lost for a sum that conntrack made and a rule spoiled, where conntrack made one: shorter ones
/// are summed again (`udp6_csum_init()`, `CHECKSUM_BREAK` of header and data, v6.12).
fn is_misjudged(skb: &Skb) -> bool {
    const CHECKSUM_BREAK: u32 = 76;
    const IPV6_HEADER: u32 = 40;
    let packet = &skb.packet;
    let changed = skb
        .summed
        .is_some_and(|was| was != (packet.ttl, packet.tos));
    let long = packet.len > IPV6_HEADER + CHECKSUM_BREAK;
    changed && long && packet.dst.is_ipv6() && matches!(packet.l4, L4::Udp { .. })
}

fn is_for(walk: &Walk, party: &Party) -> bool {
    let packet = &walk.skb.packet;
    let echo = matches!(packet.protocol(), ICMP | ICMPV6);
    let ports = echo || packet.sport() == party.dport && packet.dport() == party.sport;
    walk.ns == party.ns && packet.dst == party.src && packet.src == party.dst && ports
}

/// Whether a packet's socket here is found before its route is asked for (`tcp_v4_early_demux()` and the like): one
/// that is connected. What is sent by a server of UDP belongs to a socket that is not.
pub(crate) fn is_found_early(cx: &Cx<'_>, walk: &Walk, dev: IfIndex) -> bool {
    let Goal::Party(party) = &walk.goal else {
        return false;
    };
    let connected = match walk.skb.packet.protocol() {
        TCP => true,
        UDP => !party.sent,
        _ => false,
    };
    connected && is_for(walk, party) && is_by_its_device(cx, walk, party, dev) == Ok(true)
}

/// The device that sockets see a packet come in by: of what loops back, the one that has the address (`inet_iif()`,
/// `ip6_rcv_core()`, v6.12).
fn as_sockets_see(cx: &Cx<'_>, walk: &Walk, dev: IfIndex) -> IfIndex {
    let looped = walk.link(cx, dev).is_some_and(|link| link.loopback);
    walk.skb.owner.filter(|_| looped).unwrap_or(dev)
}

/// Whether a packet that came in by `dev` came by a device that its socket takes packets from.
fn is_by_its_device(cx: &Cx<'_>, walk: &Walk, party: &Party, dev: IfIndex) -> Result<bool, String> {
    let echo = matches!(walk.skb.packet.protocol(), ICMP | ICMPV6);
    match party.bound {
        // The kernel answers echoes itself.
        _ if echo && party.sent => Ok(true),
        Some(bound) => Ok(bound == as_sockets_see(cx, walk, dev) || walk.skb.slave == Some(bound)),
        None => vrf::accepts(cx, walk),
    }
}

/// A packet of an exchange must come from whom the socket talks to, to the socket's own port.
fn to_party(cx: &Cx<'_>, mut walk: Walk, party: &Party, dev: IfIndex) -> Ways {
    let by_its_device = match is_by_its_device(cx, &walk, party, dev) {
        Ok(own) => own,
        Err(why) => return walk.unknown(why),
    };
    if is_for(&walk, party) && !by_its_device {
        let by = walk.dev(cx, dev);
        let (text, evidence) = if let Some(bound) = party.bound {
            let bound = walk.dev(cx, bound);
            let state = format!("the socket is bound to {bound}");
            let text = format!("it came in by {by}, and its socket takes packets of {bound}");
            (text, Evidence::Link { dev: by, state })
        } else {
            let text = format!("it came in by VRF {by}, to which its socket is not bound");
            (text, vrf::refusal(&walk))
        };
        walk.step(Step::new(StepKind::Socket, text).with(evidence));
        return walk.end(Disposition::Dropped(DropReason::NotFromPeer));
    }
    let packet = &walk.skb.packet;
    if is_for(&walk, party) {
        let text = if party.sent {
            "the connection's next packet reaches its socket"
        } else {
            "the answer reaches the socket that asked"
        };
        walk.step(Step::new(StepKind::Socket, text));
        return walk.end(Disposition::Delivered);
    }
    let port = |port: Option<u16>| port.map_or_else(String::new, |port| format!(" port {port}"));
    let (what, whom) = if party.sent {
        ("the next packet", "the connection is with")
    } else {
        ("the answer", "the client asked")
    };
    let text = format!(
        "{what} comes from {}{}, but {whom} {}{}",
        packet.src,
        port(packet.sport()),
        party.dst,
        port(party.dport),
    );
    walk.step(Step::new(StepKind::Socket, text));
    walk.end(Disposition::Dropped(DropReason::NotFromPeer))
}

fn to_listener(cx: &mut Cx<'_>, mut walk: Walk, dev: IfIndex) -> Ways {
    let packet = walk.skb.packet.clone();
    let came_by_vrf = walk.skb.slave.is_some();
    match packet.protocol() {
        ICMP => {
            walk.answers_by = Some(dev).filter(|_| came_by_vrf);
            return echo(cx, walk);
        }
        ICMPV6 => return echo(cx, walk),
        TCP | UDP => {}
        SCTP => return walk.unknown("SCTP sockets are not read"),
        other => return walk.unknown(format!("who takes IP protocol {other} is not read")),
    }
    if let Some(socket) = walk.skb.proxy.take() {
        let text = format!(
            "taken by the transparent proxy's socket on {} port {}",
            socket.addr, socket.port
        );
        walk.taker = Some((socket.uid, true));
        let evidence = Evidence::Socket { socket: *socket };
        walk.step(Step::new(StepKind::Socket, text).with(evidence));
        return walk.end(Disposition::Delivered);
    }
    if packet.dport().is_none() {
        return walk.unknown(
            "a translation gives it one of several destination ports, which one is not known",
        );
    }
    let Some(netns) = walk.netns(cx) else {
        return walk.unknown("the namespace was not read");
    };
    let sockets = match section(cx, &walk.ns, &netns.sockets, "sockets") {
        Ok(sockets) => sockets,
        Err(why) => return walk.unknown(why),
    };
    let same_port = |socket: &&Socket| {
        socket.protocol == packet.protocol()
            && Some(socket.port) == packet.dport()
            && socket.listening
    };
    let accepts = match vrf::accepts(cx, &walk) {
        Ok(accepts) => accepts,
        Err(why) => return walk.unknown(why),
    };
    let into = Into {
        dev: as_sockets_see(cx, &walk, dev),
        slave: walk.skb.slave,
        accepts,
    };
    let fitting: Vec<(Fit, &Socket)> = sockets
        .iter()
        .filter(same_port)
        .filter_map(|socket| Some((score(socket, &packet, &into)?, socket)))
        .collect();
    let certain = || fitting.iter().filter(|(fit, _)| fit.doubt.is_none());
    if let Some((best, socket)) = certain().max_by_key(|(fit, _)| fit.score) {
        // Sockets that share the port (SO_REUSEPORT) take turns.
        let sharing = certain().filter(|(fit, _)| fit.score == best.score);
        let full = |(_, socket): &&(Fit, &Socket)| {
            socket.backlog.is_some_and(|(waiting, most)| waiting > most)
        };
        let (full, open): (Vec<_>, Vec<_>) = sharing.partition(full);
        let evidence = |socket: &Socket| Evidence::Socket {
            socket: socket.clone(),
        };
        if let Some((_, socket)) = full.first() {
            let (waiting, most) = socket.backlog.unwrap_or_default();
            let text = format!(
                "the socket on {} port {} takes no more: {waiting} connections wait to be accepted, {most} may",
                socket.addr, socket.port
            );
            if !open.is_empty() {
                return walk.unknown(format!(
                    "{text}; which of those that share the port is asked is decided by a hash"
                ));
            }
            walk.step(Step::new(StepKind::Socket, text).with(evidence(socket)));
            return walk.end(Disposition::Dropped(DropReason::ListenOverflow));
        }
        let text = format!(
            "taken by the socket on {} port {}",
            socket.addr, socket.port
        );
        walk.taker = Some((socket.uid, socket.transparent == Some(true)));
        // `inet_request_bound_dev_if()`
        let vrf = (came_by_vrf && packet.protocol() == TCP).then_some(dev);
        walk.answers_by = socket.bound_dev.or(vrf);
        walk.step(Step::new(StepKind::Socket, text).with(evidence(socket)));
        return walk.end(Disposition::Delivered);
    }
    let doubted = fitting.iter().max_by_key(|(fit, _)| fit.score);
    if let Some((fit, socket)) = doubted
        && let Some(doubt) = fit.doubt
    {
        // A node where nobody ever ran `ss` has neither module, and reading loads none.
        let why = format!(
            "of the socket on {} port {}, {doubt} was not read; it is taken to be for every device and both families (modprobe -a tcp_diag udp_diag on the node makes that readable)",
            socket.addr, socket.port
        );
        let text = format!(
            "taken by the socket on {} port {}",
            socket.addr, socket.port
        );
        let evidence = Evidence::Socket {
            socket: (*socket).clone(),
        };
        walk.step(
            Step::new(StepKind::Socket, text)
                .with(evidence)
                .with(Evidence::Assumed { why }),
        );
        return walk.end(Disposition::Delivered);
    }
    let name = if packet.protocol() == TCP {
        "tcp"
    } else {
        "udp"
    };
    let port = packet
        .dport()
        .map_or_else(|| "?".to_owned(), |port| port.to_string());
    let what = format!("a socket that listens on {name} {} port {port}", packet.dst);
    let mut step = Step::new(StepKind::Socket, "nothing listens").with(Evidence::Absent { what });
    // One that listens elsewhere on this port is the likely mistake.
    if !accepts
        && sockets
            .iter()
            .filter(same_port)
            .any(|own| own.bound_dev.is_none())
    {
        step = step.with(vrf::refusal(&walk));
    }
    for socket in sockets.iter().filter(same_port) {
        step = step.with(Evidence::Socket {
            socket: socket.clone(),
        });
    }
    walk.step(step);
    walk.end(Disposition::Rejected(if packet.protocol() == TCP {
        RejectWith::PortClosed
    } else {
        RejectWith::PortUnreachable
    }))
}

/// The listening socket that takes a packet from a device. `Err`: what could not be read of it.
pub(crate) fn listener<'t>(
    sockets: &'t [Socket],
    packet: &Packet,
    dev: IfIndex,
) -> Result<Option<&'t Socket>, &'static str> {
    let here = sockets.iter().filter(|socket| {
        socket.protocol == packet.protocol()
            && Some(socket.port) == packet.dport()
            && socket.listening
    });
    let into = Into {
        dev,
        slave: None,
        accepts: true,
    };
    let fitting = here.filter_map(|socket| Some((score(socket, packet, &into)?, socket)));
    match fitting.max_by_key(|(fit, _)| fit.score) {
        None => Ok(None),
        Some((fit, socket)) => fit.doubt.map_or(Ok(Some(socket)), Err),
    }
}

/// How well a socket fits.
struct Fit {
    score: u32,
    /// What could not be read and might make it not fit at all.
    doubt: Option<&'static str>,
}

/// How a packet came in.
struct Into {
    dev: IfIndex,
    /// The slave, where `dev` is a VRF.
    slave: Option<IfIndex>,
    /// Sockets that are bound to no device take it.
    accepts: bool,
}

/// More than all else that counts.
const EXACT: u32 = 16;

/// How well a socket fits; `None`: not at all. Source: `compute_score()`.
fn score(socket: &Socket, packet: &Packet, into: &Into) -> Option<Fit> {
    let mut score = 1;
    let mut doubt = None;
    if let Some(bound) = socket.bound_dev {
        if bound != into.dev && Some(bound) != into.slave {
            return None;
        }
        score += 4;
    } else if !into.accepts && !socket.bound_dev_unread {
        return None;
    } else if socket.bound_dev_unread {
        doubt = Some("which device it is bound to");
    }
    if let Some((addr, port)) = socket.remote {
        if addr != packet.src || Some(port) != packet.sport() {
            return None;
        }
        score += 8;
    }
    let any = socket.addr.is_unspecified();
    // Those of an address are asked before those of any (`__inet_lookup_listener()`, `__udp4_lib_lookup()`, v6.12).
    match (socket.addr, packet.dst) {
        (own, dst) if own == dst => score += EXACT,
        (IpAddr::V4(_), IpAddr::V4(_)) | (IpAddr::V6(_), IpAddr::V6(_)) if any => {}
        (IpAddr::V6(_), IpAddr::V4(_)) if any && socket.v6only != Some(true) => {
            if socket.v6only.is_none() {
                doubt = Some("whether it is for IPv6 only (IPV6_V6ONLY)");
            }
        }
        (IpAddr::V6(own), IpAddr::V4(dst)) if own.to_ipv4_mapped() == Some(dst) => score += EXACT,
        _ => return None,
    }
    Some(Fit { score, doubt })
}

/// The kernel answers echo requests itself.
fn echo(cx: &mut Cx<'_>, mut walk: Walk) -> Ways {
    if error::is_error(&walk.skb.packet) {
        walk.step(Step::new(
            StepKind::Socket,
            "the kernel tells the socket that the error is about",
        ));
        return walk.end(Disposition::Delivered);
    }
    let sysctls = walk.netns(cx).and_then(|ns| ns.sysctls.known());
    let v6 = walk.skb.packet.dst.is_ipv6();
    let (name, ignored) = if v6 {
        let own = sysctls.and_then(|own| own.icmp6_echo_ignore_all.known().copied());
        let name = "net.ipv6.icmp.echo_ignore_all";
        (name, own.map(|own| own.unwrap_or(false)))
    } else {
        let own = sysctls.and_then(|own| own.icmp_echo_ignore_all.known().copied());
        ("net.ipv4.icmp_echo_ignore_all", own)
    };
    match ignored {
        Some(false) => {
            let text = "the kernel answers the echo request";
            walk.step(Step::new(StepKind::Socket, text));
            walk.end(Disposition::Delivered)
        }
        Some(true) => {
            let evidence = Evidence::Sysctl {
                name: name.to_owned(),
                value: "1".to_owned(),
            };
            let text = "echo requests are ignored";
            walk.step(Step::new(StepKind::Socket, text).with(evidence));
            walk.end(Disposition::Dropped(DropReason::NoSocket))
        }
        None => {
            let why = format!("{name} of {} was not read", walk.ns);
            walk.unknown(why)
        }
    }
}

/// Sends the packet of a tunnel's inside on, as if its device had received it.
pub(crate) fn from_tunnel(mut walk: Walk, cx: &Cx<'_>, dev: IfIndex, packet: Packet) -> Ways {
    walk.skb.packet = packet;
    walk.skb.inherited = Inherited::Own;
    let (free, partial) = walk.inside.pop().unwrap_or((UNPRIVILEGED, None));
    walk.skb.free = free;
    // What was left to a device may have been summed on the way.
    walk.skb.partial = partial.filter(|partial| !partial);
    let ns = walk.ns.clone();
    let (mark, hop) = (walk.skb.mark, walk.hops.len());
    walk.enter(cx, ns, dev);
    // Same namespace: the mark stays (`skb_scrub_packet(skb, false)`), and it is the same hop.
    walk.skb.mark = mark;
    if walk.hops.len() > hop {
        walk.hops.truncate(hop);
    }
    walk.then(Next::Receive(dev))
}
