//! Rules that ask the routing tables: `fib`, `rpfilter`, `addrtype`.
//!
//! Source: net/ipv4/netfilter/nft_fib_ipv4.c, ipt_rpfilter.c, net/ipv6/netfilter/nft_fib_ipv6.c, ip6t_rpfilter.c,
//! net/netfilter/xt_addrtype.c (v6.12).

use std::net::IpAddr;

use super::bits::{Bits, Tri};
use super::header::Load;
use super::machine::{Eval, Vm};
use crate::model::IfIndex;
use crate::model::link::Link;
use crate::model::netfilter::{Expr, FibResult, Hook};
use crate::model::route::{NextHop, RouteKind};
use crate::simulate::fib::{self, FibAnswer, FibKey};
use crate::simulate::skb::Skb;
use crate::simulate::source::is_link_local;
use crate::simulate::vrf;

/// RTN_*
fn number(kind: RouteKind) -> u32 {
    match kind {
        RouteKind::Unicast => 1,
        RouteKind::Local => 2,
        RouteKind::Broadcast => 3,
        RouteKind::Anycast => 4,
        RouteKind::Multicast => 5,
        RouteKind::Blackhole => 6,
        RouteKind::Unreachable => 7,
        RouteKind::Prohibit => 8,
        RouteKind::Throw => 9,
        RouteKind::Other(number) => u32::from(number),
    }
}

/// The `fib` expression.
pub(super) fn load(eval: &mut Eval<'_, '_>, vm: &Vm<'_>, expr: &Expr) -> Load {
    let Expr::Fib {
        result,
        saddr,
        mark,
        iif,
        oif,
        present,
        ..
    } = expr
    else {
        return Load::Unknown("not a fib expression".to_owned());
    };
    let skb = &vm.skb;
    let dev = if *iif {
        eval.at.devices.iif
    } else if *oif {
        eval.at.devices.oif
    } else {
        None
    };
    let (addr, other) = if *saddr {
        (skb.packet.src, skb.packet.dst)
    } else {
        (skb.packet.dst, skb.packet.src)
    };
    match result {
        FibResult::Addrtype => {
            let vrf = vrf_at(eval, skb, dev);
            match fib::addr_type(eval.cx, eval.at.ns, addr, dev, vrf) {
                Ok(kind) => Load::Value(Bits::host32(Some(number(kind)))),
                Err(why) => Load::Unknown(why),
            }
        }
        FibResult::Oif | FibResult::Oifname => {
            let by_mark = if *mark { skb.mark } else { Some(0) };
            let found = if is_loopback(eval, skb) {
                Ok(eval.at.devices.iif)
            } else {
                let back = *saddr && *iif && eval.at.hook == Hook::Forward;
                let onward = eval.at.devices.oif.filter(|_| back);
                device(eval, skb, (addr, other), by_mark, (dev, onward))
            };
            let found = found.and_then(|index| by_version(eval, skb, index));
            let index = match found {
                Ok(index) => index,
                Err(why) => return Load::Unknown(why),
            };
            if *present {
                return Load::Value(Bits::host32(Some(u32::from(index.is_some()))));
            }
            if *result == FibResult::Oif {
                return Load::Value(Bits::host32(Some(index.map_or(0, IfIndex::get))));
            }
            match super::meta::device_name(eval, index) {
                Ok(name) => Load::Value(Bits::name(name)),
                Err(why) => Load::Unknown(why),
            }
        }
        FibResult::Other(number) => Load::Unknown(format!("fib result {number} is not known")),
    }
}

/// PREROUTING of loopback, or of what a VRF sends to itself (PACKET_LOOPBACK), which comes in by no slave before.
fn is_loopback(eval: &Eval<'_, '_>, skb: &Skb) -> bool {
    let link = eval.at.devices.iif.and_then(|index| eval.ns.link(index));
    let looped = |link: &Link| vrf::is(link) && skb.owner.is_some();
    eval.at.hook == Hook::Prerouting && link.is_some_and(|link| link.loopback || looped(link))
}

/// The VRF whose table `fib` asks: that of the device that it names, or else of the packet's
/// (`nft_fib_l3mdev_master_ifindex_rcu()`).
fn vrf_at<'a>(eval: &Eval<'_, 'a>, skb: &Skb, dev: Option<IfIndex>) -> Option<&'a Link> {
    let own = match eval.at.hook {
        Hook::Postrouting => eval.at.devices.oif,
        Hook::Output => skb.through,
        _ => eval.at.devices.iif,
    };
    vrf::of(eval.ns, dev.or(own)?)
}

/// Whether a next hop leaves by a device, or by one of the VRF that this is (`nhc_l3mdev_matches_dev()`).
fn leaves_by(eval: &Eval<'_, '_>, hop: &NextHop, dev: IfIndex) -> bool {
    let vrf = hop.link.and_then(|by| vrf::index_of(eval.ns, by));
    hop.link == Some(dev) || vrf == Some(dev)
}

/// At INPUT, newer kernels take the device that a packet came in by for the answer, without a lookup: on the loopback
/// device, and where its connection's socket got the last one there, too (`nft_fib_can_skip()`, in 6.12.117 and 6.18, not in
/// 6.1). `Err`: then the answers differ.
fn by_version(
    eval: &Eval<'_, '_>,
    skb: &Skb,
    found: Option<IfIndex>,
) -> Result<Option<IfIndex>, String> {
    let iif = eval.at.devices.iif;
    let link = iif.and_then(|index| eval.ns.link(index));
    let skips = link.is_some_and(|link| link.loopback) || skb.party.is_some();
    if eval.at.hook != Hook::Input || !skips || found == iif {
        return Ok(found);
    }
    Err("fib oif at INPUT: newer kernels answer with the device that the packet came in by, others look its route up".to_owned())
}

/// Device that a unicast address is reached by; with `dev`, that one or none. `onward`: the device that the packet leaves
/// by, where its way back is asked for in FORWARD: policy rules take it for the one that the answer comes in by.
fn device(
    eval: &mut Eval<'_, '_>,
    skb: &Skb,
    (addr, other): (IpAddr, IpAddr),
    mark: Option<u32>,
    (dev, onward): (Option<IfIndex>, Option<IfIndex>),
) -> Result<Option<IfIndex>, String> {
    let v6 = addr.is_ipv6();
    let key = FibKey {
        src: (!other.is_multicast()).then_some(other),
        iif: onward,
        plain: true,
        mark,
        tos: skb.packet.tos,
        protocol: skb.packet.protocol(),
        oif: dev.or(eval.at.devices.iif).filter(|_| is_link_local(addr)),
        vrf: vrf_at(eval, skb, dev).map(|vrf| vrf.index),
        ..FibKey::to(addr)
    };
    match fib::lookup(eval.cx, eval.at.ns, &key) {
        FibAnswer::Found(found) if found.route.kind == RouteKind::Unicast => {
            let hops = &found.route.nexthops;
            let hashed =
                || Err("fib: which next hop IPv6 chooses for the way back is a hash".to_owned());
            let Some(dev) = dev else {
                let first = found.hops.first().and_then(|(_, hop)| hop.link);
                let others = hops.iter().any(|hop| hop.link != first);
                return if v6 && others { hashed() } else { Ok(first) };
            };
            let by_it = hops.iter().filter(|hop| leaves_by(eval, hop, dev)).count();
            // IPv4 takes any of them (`fib_info_nh_uses_dev()`), IPv6 asks for the one that its hash chooses.
            if v6 && by_it > 0 && by_it < hops.len() {
                return hashed();
            }
            Ok((by_it > 0).then_some(dev))
        }
        FibAnswer::Found(_) | FibAnswer::Refused(_) | FibAnswer::NoRoute => Ok(None),
        FibAnswer::Unknown(why) => Err(why),
    }
}

/// The `rpfilter` match: 1 loose, 2 validmark, 4 accept_local, 8 invert.
pub(super) fn rpfilter(eval: &mut Eval<'_, '_>, vm: &Vm<'_>, flags: u8) -> Tri {
    let skb = &vm.skb;
    let invert = flags & 8 != 0;
    let Some(iif) = eval.at.devices.iif else {
        return Tri::Unknown("no incoming device".to_owned());
    };
    if is_loopback(eval, skb) {
        return Tri::from(!invert);
    }
    let v6 = skb.packet.src.is_ipv6();
    let key = FibKey {
        src: (!skb.packet.dst.is_multicast()).then_some(skb.packet.dst),
        mark: if flags & 2 != 0 { skb.mark } else { Some(0) },
        tos: skb.packet.tos,
        // `rpfilter_lookup_reverse6()` alone asks by protocol.
        protocol: if v6 { skb.packet.protocol() } else { 0 },
        // Only for addresses of one link must it be that device; of others the routes of one destination that have it come
        // first (`rt6_device_match()`).
        oif: Some(iif).filter(|_| is_link_local(skb.packet.src)),
        near: Some(iif).filter(|_| v6 && flags & 1 == 0),
        vrf: vrf::index_of(eval.ns, iif),
        plain: true,
        ..FibKey::to(skb.packet.src)
    };
    let answer = match fib::lookup(eval.cx, eval.at.ns, &key) {
        FibAnswer::Found(found) => {
            let kind = found.route.kind;
            let ok = kind == RouteKind::Unicast || (kind == RouteKind::Local && flags & 4 != 0);
            let mut hops = found.route.nexthops.iter();
            Tri::from(ok && (flags & 1 != 0 || hops.any(|hop| leaves_by(eval, hop, iif))))
        }
        FibAnswer::Refused(_) | FibAnswer::NoRoute => Tri::No,
        FibAnswer::Unknown(why) => Tri::Unknown(why),
    };
    answer.negated(invert)
}

/// Whether an address is of one of these types (`1 << RTN_*`).
pub(super) fn addrtype(
    eval: &mut Eval<'_, '_>,
    addr: IpAddr,
    mask: u16,
    dev: Option<IfIndex>,
) -> Tri {
    let mut mask = mask;
    if let IpAddr::V6(addr) = addr {
        // Of IPv6, these say what kind of address it is, whosever it is (`match_type6()`).
        let (group, none) = (addr.is_multicast(), addr.is_unspecified());
        let has = |kind| u32::from(mask) & 1 << number(kind) != 0;
        if has(RouteKind::Multicast) && !group
            || has(RouteKind::Unicast) && (group || none)
            || mask & 1 != 0 && !none
        {
            return Tri::No;
        }
        let looked_up = [RouteKind::Anycast, RouteKind::Local, RouteKind::Unreachable];
        if !looked_up.into_iter().any(has) {
            return Tri::Yes;
        }
        mask &= !(1 | 1 << number(RouteKind::Unicast) | 1 << number(RouteKind::Multicast));
    }
    let vrf = dev.and_then(|dev| vrf::of(eval.ns, dev));
    match fib::addr_type(eval.cx, eval.at.ns, addr, dev, vrf) {
        Ok(kind) => {
            let bit = 1_u32.checked_shl(number(kind)).unwrap_or(0);
            Tri::from(u32::from(mask) & bit != 0)
        }
        Err(why) => Tri::Unknown(why),
    }
}
