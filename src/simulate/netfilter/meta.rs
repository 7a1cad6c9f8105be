//! Packet metadata.
//!
//! Source: `nft_meta_get_eval()`, net/netfilter/nft_meta.c (v6.12).

use std::net::IpAddr;

use super::bits::{Bits, Tri};
use super::header::Load;
use super::machine::Eval;
use super::time;
use crate::model::IfIndex;
use crate::model::addr::Addr;
use crate::model::link::{Link, LinkKind};
use crate::model::netfilter::{Family, Hook, MetaKey};
use crate::model::packet::{L4, Packet};
use crate::simulate::skb::Skb;

/// Loads one item.
pub(super) fn load(eval: &Eval<'_, '_>, skb: &Skb, key: MetaKey, family: Option<Family>) -> Load {
    let packet = &skb.packet;
    let devices = eval.at.devices;
    let value = match key {
        MetaKey::Len => Bits::host32(skb.sized.then_some(skb.packet.len)),
        MetaKey::Protocol => Bits::net16(Some(packet.ethertype())),
        MetaKey::Mark => Bits::host32(skb.mark),
        MetaKey::Iif => Bits::host32(Some(devices.iif.map_or(0, IfIndex::get))),
        MetaKey::Oif => Bits::host32(Some(devices.oif.map_or(0, IfIndex::get))),
        MetaKey::Iifname => return name(eval, devices.iif),
        MetaKey::Oifname => return name(eval, devices.oif),
        MetaKey::Skuid => return owner(eval, skb, skb.uid, "uid"),
        MetaKey::Skgid => return owner(eval, skb, skb.gid, "gid"),
        MetaKey::Cgroup if no_socket(eval, skb) == Tri::Yes => {
            return Load::Absent;
        }
        MetaKey::Nfproto => Bits::known([nfproto(eval, packet, family)]),
        MetaKey::L4proto if matches!(packet.l4, L4::Arp { .. }) => return Load::Absent,
        MetaKey::L4proto => Bits::known([skb.packet.protocol()]),
        MetaKey::BriIifname => return bridge(eval, devices.iif),
        MetaKey::BriOifname => return bridge(eval, devices.oif),
        MetaKey::Pkttype
            if !skb.packet.dst.is_multicast() && !is_broadcast(eval, skb.packet.dst) =>
        {
            Bits::known([0])
        }
        MetaKey::Pkttype | MetaKey::Secpath => Bits::unknown(1),
        MetaKey::Iiftype => return hardware(eval, devices.iif),
        MetaKey::Oiftype => return hardware(eval, devices.oif),
        MetaKey::Iifgroup => return group(eval, devices.iif),
        MetaKey::Oifgroup => return group(eval, devices.oif),
        MetaKey::Rtclassid => return realm(eval, skb),
        MetaKey::Other(key @ (time::NFT_NANOSECONDS | time::NFT_DAY | time::NFT_HOUR)) => {
            return time::load(eval, key);
        }
        MetaKey::Iifkind => return kind(eval, devices.iif),
        MetaKey::Oifkind => return kind(eval, devices.oif),
        MetaKey::Priority
        | MetaKey::Nftrace
        | MetaKey::Cpu
        | MetaKey::Cgroup
        | MetaKey::Prandom => Bits::unknown(4),
        MetaKey::Other(number) => return Load::Unknown(format!("meta {number} is not known")),
    };
    Load::Value(value)
}

/// Family that a chain sees (`nft_pf()`): that of its hook; chains of family inet at a device's hook see
/// that of the packet.
fn nfproto(eval: &Eval<'_, '_>, packet: &Packet, family: Option<Family>) -> u8 {
    match (family, packet.ethertype()) {
        (Some(Family::Netdev), _) => 5,
        (Some(Family::Bridge), _) => 7,
        _ if eval.at.bridge => 7,
        (_, 0x0806) => 3,
        (_, 0x86dd) => 10,
        _ => 2,
    }
}

/// Name of a device; empty where there is none. `Err`: not known.
pub(super) fn device_name<'a>(
    eval: &Eval<'_, 'a>,
    index: Option<IfIndex>,
) -> Result<&'a str, String> {
    let Some(index) = index else {
        return Ok("");
    };
    let link = eval.ns.link(index);
    link.map(|link| link.name.as_str())
        .ok_or_else(|| format!("name of device {index} not read"))
}

fn name(eval: &Eval<'_, '_>, index: Option<IfIndex>) -> Load {
    match device_name(eval, index) {
        Ok(name) => Load::Value(Bits::name(name)),
        Err(why) => Load::Unknown(why),
    }
}

fn bridge(eval: &Eval<'_, '_>, index: Option<IfIndex>) -> Load {
    let master = index.and_then(|index| eval.ns.link(index)?.master);
    let is_bridge = |link: &&Link| matches!(link.kind, LinkKind::Bridge(_));
    match master
        .and_then(|index| eval.ns.link(index))
        .filter(is_bridge)
    {
        Some(link) => Load::Value(Bits::name(&link.name)),
        None => Load::Absent,
    }
}

/// ARPHRD_*; host order.
fn hardware(eval: &Eval<'_, '_>, index: Option<IfIndex>) -> Load {
    match index.map(|index| eval.ns.link(index).map(|link| link.hardware)) {
        None => Load::Absent,
        Some(Some(hardware)) if hardware != 0 => Load::Value(Bits::known(hardware.to_le_bytes())),
        Some(_) => Load::Unknown("type of the device not read".to_owned()),
    }
}

fn group(eval: &Eval<'_, '_>, index: Option<IfIndex>) -> Load {
    match index.map(|index| eval.ns.link(index).map(|link| link.group)) {
        None => Load::Absent,
        Some(Some(group)) => Load::Value(Bits::host32(Some(group))),
        Some(None) => Load::Unknown("group of the device not read".to_owned()),
    }
}

/// Realm of the packet's route (`dst->tclassid`): 0 as long as no route and no rule names one.
pub(super) fn realm(eval: &Eval<'_, '_>, skb: &Skb) -> Load {
    let routed = skb.local || !matches!(eval.at.hook, Hook::Prerouting | Hook::Ingress);
    if !routed {
        return Load::Absent;
    }
    let (routes, rules) = (eval.ns.routes.known(), eval.ns.rules.known());
    let none = routes.zip(rules).is_some_and(|(routes, rules)| {
        let named = routes.iter().any(|route| route.realm.is_some());
        !named && rules.iter().all(|rule| rule.realm.is_none())
    });
    if none || skb.packet.src.is_ipv6() {
        return Load::Value(Bits::host32(Some(0)));
    }
    Load::Unknown("the realm of the route is not known".to_owned())
}

fn kind(eval: &Eval<'_, '_>, index: Option<IfIndex>) -> Load {
    match index.map(|index| eval.ns.link(index).map(|link| &link.kind)) {
        None | Some(Some(LinkKind::Device)) => Load::Absent,
        Some(Some(kind)) => Load::Value(Bits::name(kind.name())),
        Some(None) => Load::Unknown("kind of the device not read".to_owned()),
    }
}

/// Whether no local socket belongs to the packet. Sockets of incoming packets are found after
/// PREROUTING already (early demux), which is not modelled.
pub(super) fn no_socket(eval: &Eval<'_, '_>, skb: &Skb) -> Tri {
    match (skb.local, eval.at.hook) {
        (true, _) => Tri::No,
        (false, Hook::Input) => Tri::Unknown("the receiving socket is not known here".to_owned()),
        (false, _) => Tri::Yes,
    }
}

/// Whether an address stands for all hosts of a link, as far as this namespace knows.
pub(super) fn is_broadcast(eval: &Eval<'_, '_>, dst: IpAddr) -> bool {
    let IpAddr::V4(dst) = dst else {
        return false;
    };
    let last = |addr: &Addr| {
        let mask = u32::MAX.checked_shr(addr.prefix_len.into()).unwrap_or(0);
        matches!(addr.local, IpAddr::V4(own) if mask > 1 && u32::from(own) | mask == u32::from(dst))
    };
    dst.is_broadcast() || eval.ns.addrs.known().into_iter().flatten().any(last)
}

fn owner(eval: &Eval<'_, '_>, skb: &Skb, id: Option<u32>, what: &str) -> Load {
    match (no_socket(eval, skb), id) {
        (Tri::Yes, _) => Load::Absent,
        _ if skb.kernel => Load::Absent,
        (Tri::No, Some(id)) => Load::Value(Bits::host32(Some(id))),
        (Tri::No, None) => Load::Unknown(format!("the sender's {what} is not known")),
        (Tri::Unknown(why), _) => Load::Unknown(why),
    }
}
