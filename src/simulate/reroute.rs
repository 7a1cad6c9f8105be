//! What rules of OUTPUT change of a packet is looked up again, behind each chain that did.
//!
//! Read first: `ip_route_me_harder()`, `nf_route_table_hook4()`, `ipt_mangle_out()`, `nf_nat_ipv4_local_fn()` and their IPv6
//! twins, v6.12. A lookup that fails ends the packet there: chains behind it are not asked.

use std::net::IpAddr;

use super::Cx;
use super::fib::{FibAnswer, FibKey, dissects, lookup};
use super::netfilter::HookPoint;
use super::output::{key_of, leaves_as_loopback};
use super::skb::Skb;
use super::vrf;
use crate::model::packet::L4;
use crate::model::route::RouteKind;

/// Who changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// A chain of type route, or x_tables' mangle.
    Chain,
    /// NAT.
    Nat,
}

/// What is compared, also what the lookup does not ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    src: IpAddr,
    dst: IpAddr,
    mark: Option<u32>,
    tos: u8,
    hops: Option<u8>,
}

impl State {
    /// Of a packet.
    pub(crate) fn of(skb: &Skb) -> Self {
        let packet = &skb.packet;
        Self {
            src: packet.src,
            dst: packet.dst,
            mark: skb.mark,
            tos: packet.tos,
            hops: packet.dst.is_ipv6().then_some(packet.ttl),
        }
    }
}

/// Looks a packet up again where `by` changed it; whether there is a way. `Err`: what is missing to tell.
pub(crate) fn behind(
    cx: &mut Cx<'_>,
    at: &HookPoint<'_>,
    skb: &mut Skb,
    by: By,
    before: &State,
) -> Result<bool, String> {
    let after = State::of(skb);
    let asks = match by {
        By::Chain => after != *before,
        By::Nat => after.dst != before.dst,
    };
    if !asks {
        return Ok(true);
    }
    let key = key(cx, at, skb)?;
    let leads = leads(cx, at, &key, skb);
    skb.rerouted = Some(Box::new(key));
    leads
}

/// Of its protocol and ports, no more is known than rules make the kernel look at; IPv4 takes the sender for root.
fn key(cx: &mut Cx<'_>, at: &HookPoint<'_>, skb: &Skb) -> Result<FibKey, String> {
    let v6 = skb.packet.dst.is_ipv6();
    let near = match skb.packet.dst {
        IpAddr::V6(dst) => dst.is_multicast() || dst.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    };
    let oif = skb.bound.or(at.devices.oif.filter(|_| near));
    let own = key_of(skb, None, oif);
    // `l3mdev_master_ifindex(dev)`, of the device that it would leave by.
    let netns = cx.topology.netns(at.ns);
    let vrf = at.devices.oif.and_then(|oif| vrf::index_of(netns?, oif));
    let uid = if v6 { own.uid } else { Some(0) };
    let packet = &skb.packet;
    let (protocol, ports) = match (dissects(cx, at.ns, v6)?, &packet.l4) {
        (false, _) => (0, (Some(0), Some(0))),
        (true, L4::Tcp { .. } | L4::Udp { .. } | L4::Sctp { .. }) => {
            (packet.protocol(), (packet.sport(), packet.dport()))
        }
        (true, _) => (packet.protocol(), (Some(0), Some(0))),
    };
    Ok(FibKey {
        protocol,
        sport: ports.0,
        dport: ports.1,
        uid,
        vrf,
        // The header's, also a raw socket's.
        tos: packet.tos,
        near: None,
        ..own
    })
}

fn leads(cx: &mut Cx<'_>, at: &HookPoint<'_>, key: &FibKey, skb: &Skb) -> Result<bool, String> {
    let found = match lookup(cx, at.ns, key) {
        FibAnswer::Found(found) => found,
        FibAnswer::NoRoute | FibAnswer::Refused(_) => return Ok(false),
        FibAnswer::Unknown(why) => return Err(why),
    };
    let local = matches!(found.route.kind, RouteKind::Local | RouteKind::Anycast);
    match found.hops.as_slice() {
        _ if found.route.kind.refuses() => Ok(false),
        [(_, hop)] if !local => match hop.link {
            Some(oif) => leaves_as_loopback(cx, at.ns, &skb.packet, oif).map(|refused| !refused),
            None => Ok(true),
        },
        // Of several, whichever is taken decides.
        _ => Ok(true),
    }
}
