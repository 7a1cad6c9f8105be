//! WireGuard: to the peer that an address belongs to, and from the peer whose key it is.
//!
//! Read first: `wg_xmit()`, `wg_socket_send_skb_to_peer()`, `wg_packet_consume_data_done()`, drivers/net/wireguard,
//! v6.12. Not modelled: what is queued while there is no handshake, handshakes that are lost on their way back, but where that is by a
//! VRF they are unknown.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::fib::{FibAnswer, FibKey, lookup};
use super::ip_tunnel::outer_ecn;
use super::memory::Heard;
use super::skb::Inherited;
use super::socket::from_tunnel;
use super::walk::{Next, Walk, Ways};
use super::{Cx, ttl, vrf};
use crate::model::link::{Link, LinkKind};
use crate::model::packet::{Inner, L4, Packet, UDP as UDP_PROTOCOL, Wrap};
use crate::model::wireguard::{PublicKey, Wireguard, WireguardPeer};
use crate::model::{IfIndex, Section};
use crate::trace::{Disposition, DropReason, Evidence, RejectWith, Step, StepKind};

/// `sizeof(struct message_data)` and the tag behind what is encrypted.
const HEADERS: u32 = 16 + 16;
const UDP: u32 = 8;
/// MESSAGE_PADDING_MULTIPLE
const PADDING: u32 = 16;
/// Tunnels inside each other that are followed.
const DEPTH: usize = 4;

/// Why the peers of a device are not known.
fn unread(link: &Link, own: &Section<Wireguard>) -> String {
    let why = own
        .missing()
        .map_or(String::new(), |why| format!(": {why}"));
    format!("the peers of {} were not read{why}", link.name)
}

/// Encrypts a packet for its peer and sends that.
pub(crate) fn encapsulate(
    cx: &mut Cx<'_>,
    mut walk: Walk,
    link: &Link,
    own: &Section<Wireguard>,
) -> Ways {
    let Some(device) = own.known() else {
        return walk.unknown(unread(link, own));
    };
    if link.link_netnsid.is_some() {
        let why = format!(
            "{} sends its outer packets in the namespace that it was made in, which is not followed",
            link.name
        );
        return walk.unknown(why);
    }
    let inner = walk.skb.packet.clone();
    let dev = link.name.clone();
    let Some((peer, prefix)) = device.peer_for(inner.dst) else {
        let what = format!("a peer with {} among its allowed IPs", inner.dst);
        let text = format!("{dev} has no peer for {}", inner.dst);
        walk.step(Step::new(StepKind::Encap, text).with(Evidence::Absent { what }));
        return walk.end(Disposition::Rejected(RejectWith::HostUnreachable));
    };
    let state = format!("peer {} allowed ips {prefix}", peer.key);
    let heard = walk.memory.heard(&walk.ns, link.index, peer.key).cloned();
    let set = peer.endpoint.map(|end| (end.ip(), Some(end.port())));
    let Some((remote, dport)) = heard.as_ref().map(|heard| heard.from).or(set) else {
        let text = format!("the peer of {dev} for {} has no endpoint", inner.dst);
        walk.step(Step::new(StepKind::Encap, text).with(Evidence::Link { dev, state }));
        return walk.end(Disposition::Rejected(RejectWith::HostUnreachable));
    };
    let Some(key) = device.key else {
        let text = format!("{dev} has no key, so that nothing is sent");
        walk.step(Step::new(StepKind::Encap, text).with(Evidence::Link { dev, state }));
        return walk.end(Disposition::Dropped(DropReason::NotSpecified));
    };
    if inner.depth() >= DEPTH {
        return walk.unknown(format!("more than {DEPTH} tunnels are inside each other"));
    }
    if peer.handshake.is_none() && leaves_by_a_vrf(cx, &walk, device, (remote, dport)) {
        return walk.unknown(format!(
            "{dev} had no handshake with this peer yet, whose answer comes in by a VRF: whether its socket takes that is not followed"
        ));
    }
    let any: IpAddr = match remote {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let at = match heard {
        Some(heard) => heard_at(cx, &walk, device, &heard),
        None => Ok(device.key.and_then(|own| told_at(cx, &walk, own, peer))),
    };
    let src = match at {
        Ok(at) => at
            .filter(|at| at.is_ipv4() == remote.is_ipv4())
            .unwrap_or(any),
        Err(why) => return walk.unknown(why),
    };
    let wrap = Wrap::Wireguard {
        from: key,
        to: peer.key,
        preshared: peer.preshared,
    };
    let at = dport.map_or_else(|| "?".to_owned(), |port| port.to_string());
    let shaken = if peer.handshake.is_some() {
        ""
    } else {
        ", no handshake yet"
    };
    let text = format!("{dev} encrypts it for {remote} udp port {at}");
    let state = format!("{state}{shaken}");
    let outer = Packet {
        eth: None,
        src,
        dst: remote,
        ttl: ttl(cx, &walk.ns),
        tos: outer_ecn(inner.tos),
        df: false,
        len: padded(inner.len, link.mtu) + HEADERS + UDP + if remote.is_ipv4() { 20 } else { 40 },
        l4: L4::Udp {
            sport: Some(device.port),
            dport,
        },
        inner: Some(Box::new(Inner {
            vni: None,
            wrap,
            packet: Packet { eth: None, ..inner },
        })),
    };
    walk.wrap(link.index, outer);
    // `wg_reset_packet()`
    walk.skb.inherited = Inherited::Own;
    walk.skb.mark = Some(device.fwmark);
    walk.step(Step::new(StepKind::Encap, text).with(Evidence::Link { dev, state }));
    walk.then(Next::LocalOut(None))
}

/// Whether packets for a peer leave by a device of a VRF, so that its answers come in by one, which sockets outside of it are
/// not let have.
fn leaves_by_a_vrf(
    cx: &mut Cx<'_>,
    walk: &Walk,
    device: &Wireguard,
    (remote, dport): (IpAddr, Option<u16>),
) -> bool {
    let key = FibKey {
        mark: Some(device.fwmark),
        protocol: UDP_PROTOCOL,
        sport: Some(device.port),
        dport,
        ..FibKey::to(remote)
    };
    let FibAnswer::Found(found) = lookup(cx, &walk.ns, &key) else {
        return false;
    };
    let mut devs = found.hops.iter().filter_map(|(_, hop)| hop.link);
    walk.netns(cx).is_some_and(|netns| {
        let sysctls = netns.sysctls.known();
        let accepts = sysctls.and_then(|own| own.udp_l3mdev_accept.known().copied().flatten());
        accepts != Some(true) && devs.any(|dev| vrf::index_of(netns, dev).is_some())
    })
}

/// The address that answers to a peer that was heard under way are sent from: where that was, but of IPv4 only where they leave
/// by the device that it came in by (`send4()`: `src_if4`).
fn heard_at(
    cx: &mut Cx<'_>,
    walk: &Walk,
    device: &Wireguard,
    heard: &Heard,
) -> Result<Option<IpAddr>, String> {
    if heard.at.is_ipv6() {
        return Ok(Some(heard.at));
    }
    let key = FibKey {
        src: Some(heard.at),
        mark: Some(device.fwmark),
        protocol: UDP_PROTOCOL,
        sport: Some(device.port),
        dport: heard.from.1,
        ..FibKey::to(heard.from.0)
    };
    match lookup(cx, &walk.ns, &key) {
        FibAnswer::Found(found) => {
            let mut by = found
                .hops
                .iter()
                .map(|(_, hop)| hop.link == Some(heard.iif));
            let first = by.next().unwrap_or(false);
            if by.any(|other| other != first) {
                return Err(format!(
                    "which address answers to {} are sent from depends on the next hop",
                    heard.from.0
                ));
            }
            Ok(first.then_some(heard.at))
        }
        FibAnswer::Unknown(why) => Err(why),
        FibAnswer::NoRoute | FibAnswer::Refused(_) => Ok(Some(heard.at)),
    }
}

/// The address at which a peer was heard last, which packets for it are sent from (`wg_socket_endpoint_from_skb()`) and which no
/// dump tells: where the peer itself, if it is in view, sends to.
fn told_at(cx: &Cx<'_>, walk: &Walk, own: PublicKey, peer: &WireguardPeer) -> Option<IpAddr> {
    peer.handshake?;
    let its = cx.topology.all().find_map(|(_, netns)| {
        let mut links = netns.links.known()?.iter();
        links.find_map(|link| match &link.kind {
            LinkKind::Wireguard(Section::Known(its)) if its.key == Some(peer.key) => its.peer(own),
            _ => None,
        })
    })?;
    let at = its.endpoint?.ip();
    let mut addrs = walk.netns(cx)?.addrs.known()?.iter();
    addrs.any(|addr| addr.local == at).then_some(at)
}

/// `calculate_skb_padding()`: to a multiple of 16, but not beyond the MTU.
fn padded(len: u32, mtu: u32) -> u32 {
    let whole = len.div_ceil(PADDING).saturating_mul(PADDING);
    whole.min(mtu.max(len)).min(u32::from(u16::MAX))
}

/// An outer packet reached this host: whose key is it for, and may its peer send what is inside?
pub(crate) fn decapsulate(cx: &mut Cx<'_>, mut walk: Walk, iif: IfIndex) -> Ways {
    let outer = walk.skb.packet.clone();
    let Some(Inner {
        wrap: Wrap::Wireguard {
            from,
            to,
            preshared,
        },
        packet,
        ..
    }) = outer.inner.as_deref()
    else {
        return walk.unknown("a tunnel packet without inside");
    };
    let Some(links) = walk.netns(cx).and_then(|netns| netns.links.known()) else {
        return walk.unknown("the devices were not read");
    };
    let devices = || {
        links.iter().filter_map(|link| match &link.kind {
            LinkKind::Wireguard(own) if link.link_netnsid.is_none() => Some((link, own)),
            _ => None,
        })
    };
    if let Some((link, own)) = devices().find(|(_, own)| own.known().is_none()) {
        return walk.unknown(unread(link, own));
    }
    let mut listening = devices().filter_map(|(link, own)| Some((link, own.known()?)));
    let Some((link, device)) =
        listening.find(|(link, own)| link.up && Some(own.port) == outer.dport())
    else {
        let port = outer
            .dport()
            .map_or_else(|| "?".to_owned(), |port| port.to_string());
        let what = format!("a WireGuard device that is up and listens on udp port {port}");
        walk.step(Step::new(StepKind::Decap, "no tunnel here").with(Evidence::Absent { what }));
        return walk.end(Disposition::Dropped(DropReason::NoSocket));
    };
    let dev = link.name.clone();
    let refusal = refused(device, *from, *to, *preshared);
    let peer = match (device.peer(*from), refusal) {
        (Some(peer), None) => peer,
        (_, why) => {
            let what = why.unwrap_or_default();
            let text = format!("{dev} and the sender agree on no keys");
            walk.step(Step::new(StepKind::Decap, text).with(Evidence::Link { dev, state: what }));
            return walk.end(Disposition::Dropped(DropReason::NotSpecified));
        }
    };
    // Only a handshake shows whether both sides' preshared keys are the same one.
    if *preshared && peer.handshake.is_none() {
        return walk.unknown(format!(
            "whether the preshared keys of {dev} and its peer {} are the same is not known before a handshake",
            peer.key
        ));
    }
    walk.memory.hear(Heard {
        ns: walk.ns.clone(),
        dev: link.index,
        peer: peer.key,
        from: (outer.src, outer.sport()),
        at: outer.dst,
        iif,
    });
    let state = match device.peer_for(packet.src) {
        Some((owner, prefix)) if owner.key == peer.key => {
            format!("peer {} allowed ips {prefix}", peer.key)
        }
        other => {
            let whose = other.map_or_else(
                || "of nobody".to_owned(),
                |(owner, prefix)| format!("of peer {} ({prefix})", owner.key),
            );
            let text = format!("{} is no allowed IP of the peer that sent it", packet.src);
            let state = format!("peer {} sent it, {} is {whose}", peer.key, packet.src);
            walk.step(Step::new(StepKind::Decap, text).with(Evidence::Link { dev, state }));
            return walk.end(Disposition::Dropped(DropReason::NotSpecified));
        }
    };
    let text = format!("decrypted by {dev}");
    walk.step(Step::new(StepKind::Decap, text).with(Evidence::Link { dev, state }));
    // `wg_reset_packet()` scrubs it as between namespaces.
    walk.skb.mark = Some(0);
    from_tunnel(walk, cx, link.index, packet.clone())
}

/// Why a handshake of these keys fails here.
fn refused(device: &Wireguard, from: PublicKey, to: PublicKey, preshared: bool) -> Option<String> {
    if device.key != Some(to) {
        let own = device
            .key
            .map_or_else(|| "none".to_owned(), |key| key.to_string());
        return Some(format!("its key is {own}, the packet is for {to}"));
    }
    match device.peer(from) {
        None => Some(format!("it has no peer {from}")),
        Some(peer) if peer.preshared != preshared => Some(format!(
            "peer {from}: only one of both sides has a preshared key"
        )),
        Some(_) => None,
    }
}
