//! What a packet shows to an ipset: addresses, ports, devices and marks, as far as the type asks for them.
//!
//! Source: the `_kadt()` functions, net/netfilter/ipset/ip_set_{hash,bitmap}_*.c; `get_port()`,
//! ip_set_getport.c (v6.12).

use std::net::IpAddr;

use super::machine::Eval;
use super::meta;
use crate::model::ipset::{Ipset, IpsetField, IpsetMethod, IpsetPart};
use crate::model::packet::{L4, TCP, UDP};
use crate::model::{MacAddr, Prefix};
use crate::simulate::skb::Skb;

/// IPSET_FLAG_PHYSDEV. No version of iptables sets it: members with `physdev:` match no rule of it.
pub(super) const PHYSDEV: u32 = 0x02;
/// IPPROTO_UDPLITE
const UDPLITE: u8 = 136;

/// Why a packet shows nothing.
pub(super) enum Lack {
    /// No such packet is in such a set; why.
    Never(String),
    /// What is missing to tell.
    Unknown(String),
}

/// What a packet shows for one field.
pub(super) enum Shown {
    /// Address, cut as the set cuts it.
    Addr(IpAddr),
    /// Protocol and port; `None`: any free one.
    Port(u8, Option<u16>),
    /// Link-layer address.
    Mac(MacAddr),
    /// Device.
    Iface {
        /// Its name.
        name: String,
        /// It is a bridge port.
        physdev: bool,
    },
    /// Mark; `None`: not known.
    Mark(Option<u32>),
}

/// What the packet shows for each field of the set.
pub(super) fn shown(
    eval: &Eval<'_, '_>,
    skb: &Skb,
    set: &Ipset,
    dims: &[bool],
    flags: u32,
) -> Result<Vec<Shown>, Lack> {
    let fields = &set.kind.fields;
    if dims.len() < fields.len() {
        let why = format!("the rule names fewer sides than {} has parts", set.kind);
        return Err(Lack::Never(why));
    }
    let v6 = skb.packet.src.is_ipv6();
    if set.v6.is_some_and(|own| own != v6) {
        let why = "the set is of the other IP version";
        return Err(Lack::Never(why.to_owned()));
    }
    let each = fields.iter().zip(dims).map(|(field, source)| match field {
        IpsetField::Ip | IpsetField::Net => address(skb, set, *source),
        IpsetField::Port => port(skb, set, *source),
        IpsetField::Mac => mac(skb, *source),
        IpsetField::Iface => device(eval, *source, flags & PHYSDEV != 0),
        IpsetField::Mark => {
            let mask = set.head.markmask.unwrap_or(u32::MAX);
            Ok(Shown::Mark(skb.mark.map(|mark| mark & mask)))
        }
        IpsetField::Set => Err(Lack::Unknown("a list of sets".to_owned())),
    });
    each.collect()
}

fn address(skb: &Skb, set: &Ipset, source: bool) -> Result<Shown, Lack> {
    let packet = &skb.packet;
    let addr = if source { packet.src } else { packet.dst };
    let outside = |(first, last): &(IpAddr, IpAddr)| !(*first..=*last).contains(&addr);
    if set.head.addrs.as_ref().is_some_and(outside) {
        return Err(Lack::Never(format!("{addr} is outside of its range")));
    }
    let cut = match (set.head.netmask, set.head.bitmask) {
        (Some(len), _) => Prefix::new(addr, len).map_or(addr, Prefix::addr),
        (None, Some(mask)) => and(addr, mask),
        (None, None) => addr,
    };
    // hash:ip and hash:ip,port hold no such address.
    let plain = matches!(
        set.kind.fields.as_slice(),
        [IpsetField::Ip] | [IpsetField::Ip, IpsetField::Port]
    );
    if plain && set.kind.method == IpsetMethod::Hash && cut.is_unspecified() {
        return Err(Lack::Never(format!("{cut} is never a member")));
    }
    Ok(Shown::Addr(cut))
}

fn port(skb: &Skb, set: &Ipset, source: bool) -> Result<Shown, Lack> {
    let packet = &skb.packet;
    let proto = packet.protocol();
    let port = match packet.l4 {
        L4::Tcp { sport, dport, .. } | L4::Udp { sport, dport } | L4::Sctp { sport, dport } => {
            if source {
                sport
            } else {
                dport
            }
        }
        // Whichever side is asked for.
        L4::Icmp { kind, code, .. } => Some(u16::from(kind) << 8 | u16::from(code)),
        L4::Arp { .. } => return Err(Lack::Never("the packet has no protocol".to_owned())),
        L4::Other(UDPLITE) => {
            return Err(Lack::Unknown(
                "the ports of UDP-Lite are not known".to_owned(),
            ));
        }
        L4::Other(_) => Some(0),
    };
    if set.kind.method == IpsetMethod::Bitmap && !matches!(proto, TCP | UDP) {
        let why = "only TCP and UDP are in a bitmap of ports";
        return Err(Lack::Never(why.to_owned()));
    }
    Ok(Shown::Port(proto, port))
}

fn mac(skb: &Skb, source: bool) -> Result<Shown, Lack> {
    let none = || Lack::Never("the packet has no link-layer address".to_owned());
    let mac = match skb.packet.eth {
        Some((src, dst)) => {
            if source {
                src
            } else {
                dst
            }
        }
        None if skb.local => return Err(none()),
        None => {
            let why = "link-layer addresses are not known here";
            return Err(Lack::Unknown(why.to_owned()));
        }
    };
    if mac == MacAddr::ZERO {
        return Err(none());
    }
    Ok(Shown::Mac(mac))
}

fn device(eval: &Eval<'_, '_>, source: bool, physdev: bool) -> Result<Shown, Lack> {
    let devices = eval.at.devices;
    let index = match (source, physdev) {
        (true, false) => devices.iif,
        (false, false) => devices.oif,
        (true, true) => devices.physin,
        (false, true) => devices.physout,
    };
    match meta::device_name(eval, index) {
        Ok("") => Err(Lack::Never("the packet has no such device here".to_owned())),
        Ok(name) => Ok(Shown::Iface {
            name: name.to_owned(),
            physdev,
        }),
        Err(why) => Err(Lack::Unknown(why)),
    }
}

/// Whether a part of a member fits; a port that is any free one fits each, and which ones these are is counted
/// elsewhere. `None`: not known.
pub(super) fn fits(shown: &Shown, part: &IpsetPart) -> Option<bool> {
    match (shown, part) {
        (Shown::Addr(addr), IpsetPart::Net(net, len)) => {
            Some(Prefix::new(*net, *len).ok()?.contains(*addr))
        }
        (Shown::Port(proto, port), IpsetPart::Port(own, number)) => {
            let same = port.is_none_or(|port| port == *number);
            Some(same && own.is_none_or(|own| own == *proto))
        }
        (Shown::Mac(_), IpsetPart::Mac(None)) => Some(true),
        (Shown::Mac(mac), IpsetPart::Mac(Some(own))) => Some(mac == own),
        (
            Shown::Iface { name, physdev },
            IpsetPart::Iface {
                name: own,
                physdev: port,
                wildcard,
            },
        ) => {
            let named = if *wildcard {
                name.starts_with(own.as_str())
            } else {
                name == own
            };
            Some(named && physdev == port)
        }
        (Shown::Mark(mark), IpsetPart::Mark(own)) => mark.map(|mark| mark == *own),
        _ => Some(false),
    }
}

/// Whether a part differs only by the device's name.
pub(super) fn is_other_device(shown: &Shown, part: &IpsetPart) -> bool {
    match (shown, part) {
        (Shown::Iface { physdev, .. }, IpsetPart::Iface { physdev: own, .. }) => physdev == own,
        _ => false,
    }
}

/// Whether all that is shown is known to the bit.
pub(super) fn exact(shown: &[Shown]) -> Option<()> {
    let open = |shown: &Shown| matches!(shown, Shown::Port(_, None) | Shown::Mark(None));
    (!shown.iter().any(open)).then_some(())
}

/// In the words of a member.
pub(super) fn text(shown: &[Shown]) -> String {
    let words = shown.iter().map(|shown| match shown {
        Shown::Addr(addr) => addr.to_string(),
        Shown::Port(proto, Some(port)) => IpsetPart::Port(Some(*proto), *port).to_string(),
        Shown::Port(proto, None) => {
            let any = IpsetPart::Port(Some(*proto), 0).to_string();
            format!("{}any free port", any.strip_suffix('0').unwrap_or_default())
        }
        Shown::Mac(mac) => mac.to_string(),
        Shown::Iface { name, .. } => name.clone(),
        Shown::Mark(Some(mark)) => IpsetPart::Mark(*mark).to_string(),
        Shown::Mark(None) => "an unknown mark".to_owned(),
    });
    words.collect::<Vec<_>>().join(",")
}

fn and(addr: IpAddr, mask: IpAddr) -> IpAddr {
    match (addr, mask) {
        (IpAddr::V4(addr), IpAddr::V4(mask)) => (addr & mask).into(),
        (IpAddr::V6(addr), IpAddr::V6(mask)) => (addr & mask).into(),
        _ => addr,
    }
}
