//! VRFs: what comes in by a slave is the VRF's, what a socket sends by one passes the VRF first, and what is routed to the
//! VRF itself is looked up once more, in its table.
//!
//! Read first: `vrf_ip_rcv()`, `vrf_ip6_rcv()`, `vrf_ip_out()`, `vrf_xmit()` (drivers/net/vrf.c), `l3mdev_update_flow()`
//! (net/l3mdev/l3mdev.c), `inet_bound_dev_eq()` (include/net/inet_sock.h), v6.12. Not modelled: VRFs with a queueing
//! discipline of their own; sit devices that are bound to a device of one.

use std::net::IpAddr;

use super::Cx;
use super::fib::{self, FibAnswer, FibKey};
use super::skb::{CtRef, Devices};
use super::walk::{Next, Out, Walk, Ways};
use super::{device, input, output};
use crate::model::link::{Link, LinkKind};
use crate::model::netfilter::Hook;
use crate::model::netns::NetNs;
use crate::model::packet::{TCP, UDP};
use crate::model::route::RouteKind;
use crate::model::{IfIndex, Section};
use crate::trace::{Disposition, DropReason, Evidence, Step, StepKind};

/// Devices above each other that are followed.
const MASTERS: usize = 8;

/// Whether a device is a VRF (`netif_is_l3_master()`).
pub(crate) fn is(link: &Link) -> bool {
    matches!(link.kind, LinkKind::Vrf(_))
}

/// The VRF that a device belongs to, or is (`l3mdev_master_dev_rcu()`).
pub(crate) fn of(netns: &NetNs, dev: IfIndex) -> Option<&Link> {
    let link = netns.link(dev)?;
    if is(link) {
        return Some(link);
    }
    netns.link(link.master?).filter(|master| is(master))
}

/// Its index.
pub(crate) fn index_of(netns: &NetNs, dev: IfIndex) -> Option<IfIndex> {
    of(netns, dev).map(|vrf| vrf.index)
}

/// The VRF that a device is enslaved to.
pub(crate) fn above(netns: &NetNs, dev: IfIndex) -> Option<&Link> {
    of(netns, dev).filter(|vrf| vrf.index != dev)
}

/// Whether a device is in a VRF, or one.
pub(crate) fn in_vrf(cx: &Cx<'_>, walk: &Walk, link: &Link) -> bool {
    let netns = walk.netns(cx);
    netns.is_some_and(|netns| of(netns, link.index).is_some())
}

/// A key as lookups by rules change it: they know its VRF, and a VRF is no device that the route must leave by
/// (`l3mdev_update_flow()`).
pub(crate) fn updated(netns: &NetNs, key: &FibKey) -> FibKey {
    let by = key.oif.or(key.near).or(key.iif);
    let own = by.and_then(|dev| index_of(netns, dev));
    let leads = |dev: &IfIndex| own != Some(*dev);
    FibKey {
        vrf: key.vrf.or(own),
        oif: key.oif.filter(leads),
        near: key.near.filter(leads),
        ..key.clone()
    }
}

/// Whether policy rules of this kernel that name a VRF surely ask for the device itself: v6.15 asks for the VRF that a packet is
/// in (`fib_rule_iif_match()`), which later releases of v6.14 may have, too; before v5.18 the VRF took the device's place
/// (`l3mdev_update_flow()`). Of vendors whose releases take over much from later ones, it is not known.
pub(crate) fn rules_go_by_device(release: &str) -> bool {
    let vendors = [".el", "-default"];
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => {
            ((5, 18)..(6, 14)).contains(&(major, minor))
                && !vendors.iter().any(|mark| release.contains(mark))
        }
        _ => false,
    }
}

/// Whether an address is of one link only, or for many: IPv6 keeps such packets to the device itself (`rt6_need_strict()`).
pub(crate) fn is_strict(dst: IpAddr) -> bool {
    match dst {
        IpAddr::V6(dst) => dst.is_multicast() || dst.is_unicast_link_local() || dst.is_loopback(),
        IpAddr::V4(_) => false,
    }
}

/// Behind PREROUTING at a device: where that is a VRF's, PREROUTING once more at the VRF, then the route.
pub(crate) fn receive(cx: &mut Cx<'_>, mut walk: Walk, dev: IfIndex) -> Ways {
    let vrf = walk.netns(cx).and_then(|netns| above(netns, dev));
    let Some(vrf) = vrf else {
        return input::route_input(cx, walk, dev);
    };
    walk.skb.slave = Some(dev);
    if is_strict(walk.skb.packet.dst) {
        return input::route_input(cx, walk, dev);
    }
    // Packet sockets see it as one that the VRF sends (`dev_queue_xmit_nit()`).
    walk.tap(&vrf.name, true);
    let devices = Devices {
        iif: Some(vrf.index),
        physin: walk.physin,
        ..Devices::default()
    };
    walk.hook(cx, Hook::Prerouting, false, devices, |cx, walk| {
        input::route_input(cx, walk, dev)
    })
}

/// Device that a packet from `dev` is routed by, and the one that hooks and sockets see it come in by.
pub(crate) fn incoming(netns: &NetNs, dev: IfIndex, dst: IpAddr) -> (IfIndex, IfIndex) {
    match index_of(netns, dev) {
        // `ip_rcv_finish()` keeps the device for the lookup, `ip6_route_input()` asks the packet.
        Some(vrf) if dst.is_ipv4() || is_strict(dst) => (dev, vrf),
        Some(vrf) => (vrf, vrf),
        None => (dev, dev),
    }
}

/// Looks up what came in. For an address of the link itself, the VRF's table alone is asked (`vrf_ip6_input_dst()`).
pub(crate) fn lookup_input(cx: &mut Cx<'_>, walk: &Walk, dev: IfIndex, key: &FibKey) -> FibAnswer {
    let vrf = walk.netns(cx).and_then(|netns| above(netns, dev));
    match vrf.map(|vrf| &vrf.kind) {
        Some(LinkKind::Vrf(table)) if is_strict(key.dst) => {
            match fib::lookup_in(cx, &walk.ns, key, *table) {
                FibAnswer::NoRoute => FibAnswer::Unknown(format!(
                    "the VRF's table has no route to {}, an address of one link",
                    key.dst
                )),
                answer => answer,
            }
        }
        _ => fib::lookup(cx, &walk.ns, key),
    }
}

/// The device that stands for this host on a local route: the VRF of the route's device, or else loopback
/// (`ip_route_output_key_hash_rcu()`, `ip6_rt_get_dev_rcu()`).
pub(crate) fn loopback(netns: &NetNs, by: Option<IfIndex>, dst: IpAddr) -> Option<IfIndex> {
    let own = by.and_then(|dev| of(netns, dev).filter(|vrf| vrf.index == dev || !is_strict(dst)));
    let links = netns.links.known()?;
    let lo = || links.iter().find(|link| link.loopback);
    own.or_else(lo).map(|link| link.index)
}

/// The VRF that a packet which a socket sends passes before the slave that it leaves by (`l3mdev_ip_out()`). `Err`: why
/// that is not followed.
pub(crate) fn before<'t>(cx: &Cx<'t>, walk: &Walk, out: &Out) -> Result<Option<&'t Link>, String> {
    let packet = &walk.skb.packet;
    // `raw_send_hdrinc()` goes to OUTPUT itself; its IPv6 twin asks.
    let passes = packet.dst.is_ipv6() || !walk.skb.raw;
    let vrf = walk.netns(cx).and_then(|netns| above(netns, out.oif));
    let Some(vrf) = vrf.filter(|_| passes && !is_strict(packet.dst)) else {
        return Ok(None);
    };
    match vrf.qdisc.as_deref() {
        None | Some("noqueue") => Ok(Some(vrf)),
        Some(qdisc) => Err(format!(
            "{} has the queueing discipline {qdisc}, with which a VRF sends by itself: not followed",
            vrf.name
        )),
    }
}

/// OUTPUT and POSTROUTING at the VRF, without a connection of its own, then OUTPUT at the slave (`vrf_ip_out_direct()`).
pub(crate) fn out(cx: &mut Cx<'_>, mut walk: Walk, out: Out, vrf: &Link) -> Ways {
    walk.skb.through = Some(vrf.index);
    if walk.skb.ct == CtRef::None {
        walk.skb.ct = CtRef::Untracked;
    }
    let (index, name) = (vrf.index, vrf.name.as_str());
    let devices = Devices {
        oif: Some(index),
        via: out.via,
        ..Devices::default()
    };
    let leave = |cx: &mut Cx<'_>, walk: Walk, out: Out| {
        walk.hook(cx, Hook::Postrouting, false, devices, |cx, mut walk| {
            walk.tap(name, true);
            forget_untracked(&mut walk);
            output::at_output(cx, walk, out)
        })
    };
    walk.hook(
        cx,
        Hook::Output,
        false,
        devices,
        |cx, mut walk| match walk.skb.rerouted.take() {
            Some(key) => output::rerouted(cx, walk, &key, leave),
            None => leave(cx, walk, out),
        },
    )
}

/// `vrf_nf_reset_ct()`
fn forget_untracked(walk: &mut Walk) {
    if walk.skb.ct == CtRef::Untracked {
        walk.skb.ct = CtRef::None;
    }
}

/// The VRF itself sends: what was routed to it is looked up in its table, and comes back in by it, or leaves.
///
/// Source: `vrf_process_v4_outbound()`, `vrf_process_v6_outbound()`.
pub(crate) fn transmit(cx: &mut Cx<'_>, mut walk: Walk, vrf: &Link) -> Ways {
    let packet = &walk.skb.packet;
    let dst = packet.dst;
    if is_strict(dst) {
        return walk.unknown("what a VRF does with packets for one link is not followed");
    }
    let key = FibKey {
        src: Some(packet.src),
        vrf: Some(vrf.index),
        mark: if dst.is_ipv6() {
            walk.skb.mark
        } else {
            Some(0)
        },
        tos: packet.tos,
        protocol: packet.protocol(),
        ..FibKey::to(dst)
    };
    let answer = fib::lookup(cx, &walk.ns, &key);
    let owner = match &answer {
        FibAnswer::Found(found) if found.route.kind == RouteKind::Local => {
            found.hops.first().and_then(|(_, hop)| hop.link)
        }
        _ => None,
    };
    walk.skb.packet.eth = None;
    let index = vrf.index;
    let mut ways = Vec::new();
    for (mut walk, next) in output::routed(cx, walk, answer, |_, walk, out| {
        walk.then(Next::Postrouting(out))
    }) {
        ways.extend(match next {
            Next::Postrouting(out) if out.oif == index && out.local => {
                // Sockets that are bound to the device of the address take it, too (`inet_iif()`: rt_iif;
                // `ip6_rcv_core()`: ip6_dst_idev()).
                walk.skb.slave = owner.or(Some(index));
                walk.skb.owner = owner;
                back_in(cx, walk, index)
            }
            Next::Postrouting(out) if out.oif == index => {
                // Taken for a way to this host.
                walk.skb.attached = Some((out, dst));
                back_in(cx, walk, index)
            }
            Next::Postrouting(out) => onward(cx, walk, out, index),
            Next::End(Disposition::Rejected(_)) => {
                walk.end(Disposition::Dropped(DropReason::IpOutnoroutes))
            }
            next => walk.then(next),
        });
    }
    ways
}

/// As with loopback; packet sockets do not see it a second time (`vrf_local_xmit()`).
fn back_in(cx: &mut Cx<'_>, mut walk: Walk, vrf: IfIndex) -> Ways {
    walk.skb.uid = None;
    if !walk.is_new_here(vrf) {
        walk.step(Step::new(
            StepKind::Receive,
            "it was at the VRF before, unchanged",
        ));
        return walk.end(Disposition::Loop);
    }
    if !device::hooked(cx, &walk.ns, Hook::Ingress) {
        return walk.then(Next::Ip(vrf, false));
    }
    let devices = Devices {
        iif: Some(vrf),
        ..Devices::default()
    };
    walk.hook(cx, Hook::Ingress, false, devices, |_, walk| {
        walk.then(Next::Ip(vrf, false))
    })
}

/// What a route of the VRF led back to the VRF itself: IPv4 has nobody for it, IPv6 forwards it, to the VRF once more
/// (`dst_discard()`, `ip6_forward()`).
pub(crate) fn attached(mut walk: Walk, (out, to): (Out, IpAddr), forwards: bool) -> Ways {
    if walk.skb.packet.dst != to {
        return walk.unknown("what was translated at a VRF is routed anew, which is not followed");
    }
    let v6 = to.is_ipv6();
    if v6 && forwards {
        return walk.then(Next::Forward(
            out.oif,
            Out {
                iif: Some(out.oif),
                ..out
            },
        ));
    }
    let text = "the VRF's route leads to the VRF itself, where nobody takes it";
    walk.step(Step::new(StepKind::Receive, text));
    walk.end(Disposition::Dropped(DropReason::NotSpecified))
}

/// By another device: OUTPUT there, whoever sent it (`vrf_ip_local_out()`).
fn onward(cx: &mut Cx<'_>, mut walk: Walk, out: Out, vrf: IfIndex) -> Ways {
    let mtu = out.mtu.or(walk.link(cx, out.oif).map(|link| link.mtu));
    if mtu.is_none_or(|mtu| walk.skb.packet.len > mtu) {
        return walk.unknown("it is larger than the device behind the VRF takes: not followed");
    }
    walk.skb.through = Some(vrf);
    forget_untracked(&mut walk);
    output::at_output(cx, walk, out)
}

/// Whether sockets that are bound to no device take what came in by a VRF. `Err`: what is missing.
///
/// Source: `inet_sk_bound_dev_eq()`, `udp_sk_bound_dev_eq()`, `raw_sk_bound_dev_eq()`.
pub(crate) fn accepts(cx: &Cx<'_>, walk: &Walk) -> Result<bool, String> {
    if walk.skb.slave.is_none() {
        return Ok(true);
    }
    let sysctls = walk.netns(cx).and_then(|netns| netns.sysctls.known());
    let (name, own): (_, Option<&Section<Option<bool>>>) = match walk.skb.packet.protocol() {
        TCP => ("tcp", sysctls.map(|own| &own.tcp_l3mdev_accept)),
        UDP => ("udp", sysctls.map(|own| &own.udp_l3mdev_accept)),
        // Not asked of the sockets of `ping`.
        _ => ("raw", sysctls.map(|own| &own.raw_l3mdev_accept)),
    };
    let set = own.and_then(|own| own.known().copied().flatten());
    set.ok_or_else(|| format!("net.ipv4.{name}_l3mdev_accept of {} was not read", walk.ns))
}

/// The VRF that a tunnel's socket is bound to by the device below (`l3mdev_master_upper_ifindex_by_index()`), where that was in
/// the VRF already when the tunnel was set up, which no dump tells.
pub(crate) fn bound_by(netns: &NetNs, lower: Option<IfIndex>) -> Option<IfIndex> {
    let start = netns.link(lower?);
    let mut masters = std::iter::successors(start, |link| netns.link(link.master?));
    // A bridge's port, a bond's, and so on.
    let link = masters.by_ref().take(MASTERS).find(|link| is(link));
    link.map(|link| link.index)
}

/// Whether the socket of a tunnel that is bound to a VRF, or to none, takes what came in. `Err`: what is missing.
///
/// Source: `udp_sk_bound_dev_eq()`.
pub(crate) fn tunnel_takes(
    cx: &Cx<'_>,
    walk: &Walk,
    bound: Option<IfIndex>,
) -> Result<bool, String> {
    let slave = walk.netns(cx).zip(walk.skb.slave);
    let came_by = slave.and_then(|(netns, dev)| index_of(netns, dev));
    match (came_by, bound) {
        (Some(_), None) => accepts(cx, walk),
        (came_by, bound) => Ok(came_by == bound),
    }
}

/// A tunnel's packet that no socket takes, for the VRF that it came in by, or did not.
pub(crate) fn no_tunnel(mut walk: Walk) -> Ways {
    let (text, evidence) = if walk.skb.slave.is_some() {
        let text = "the tunnel's socket takes nothing that came in by a VRF";
        (text, Some(refusal(&walk)))
    } else {
        let text = "the tunnel's socket is bound to a VRF, and takes nothing else";
        (text, None)
    };
    let mut step = Step::new(StepKind::Decap, text);
    step.evidence.extend(evidence);
    walk.step(step);
    walk.end(Disposition::Dropped(DropReason::NoSocket))
}

/// The setting that keeps sockets from what came in by a VRF, as evidence.
pub(crate) fn refusal(walk: &Walk) -> Evidence {
    let name = match walk.skb.packet.protocol() {
        TCP => "tcp",
        UDP => "udp",
        _ => "raw",
    };
    Evidence::Sysctl {
        name: format!("net.ipv4.{name}_l3mdev_accept"),
        value: "0".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::rules_go_by_device;

    #[test]
    fn only_releases_before_the_change_go_by_the_device() {
        for (release, old) in [
            ("6.12.107+deb13-cloud-amd64", true),
            ("5.15.0-91-generic", false),
            ("5.18.0", true),
            ("6.4.0-150600.23-default", false),
            ("6.13-rc1", true),
            ("6.14.2-amd64", false),
            ("6.18.44", false),
            ("7.0.1", false),
            ("5.14.0-570.el9.x86_64", false),
            ("", false),
        ] {
            assert_eq!(rules_go_by_device(release), old, "{release}");
        }
    }
}
