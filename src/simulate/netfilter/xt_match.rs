//! x_tables matches and the head of legacy rules.
//!
//! Source: net/netfilter/xt_*.c, net/ipv4/netfilter/{ip_tables,ipt_*}.c (v6.12).

use std::net::IpAddr;

use super::bits::Tri;
use super::chain::Did;
use super::ct::{self, masked_equal, port_within};
use super::machine::{Eval, Vm};
use super::step::assume;
use super::{hashlimit, header, ipset, meta, nfacct, recent, reverse, time, xt_rare_match};
use crate::model::IfIndex;
use crate::model::packet::L4;
use crate::model::xtables::{HeaderMatch, RareMatch, Statistic, XtMatch};
use crate::simulate::skb::Skb;

/// Conditions in the head of a rule (`ip_packet_match()`).
pub(super) fn head(eval: &Eval<'_, '_>, skb: &Skb, head: &HeaderMatch) -> Tri {
    let packet = &skb.packet;
    let addr = |wanted: Option<(IpAddr, IpAddr, bool)>, own: IpAddr| {
        let hit = wanted.is_none_or(|(addr, mask, invert)| masked_equal(own, addr, mask) != invert);
        Tri::from(hit)
    };
    let device = |wanted: &Option<(String, bool)>, index: Option<IfIndex>| match wanted {
        None => Tri::Yes,
        Some((pattern, invert)) => match meta::device_name(eval, index) {
            Ok(name) => Tri::from(name_matches(pattern, name) != *invert),
            Err(why) => Tri::Unknown(why),
        },
    };
    let proto = head
        .proto
        .is_none_or(|(number, invert)| number == 0 || (number == packet.protocol()) != invert);
    // Fragments are not modelled: every packet is whole.
    let whole = head.fragment.is_none_or(|invert| invert);
    Tri::from(proto && whole)
        .and(|| addr(head.src, packet.src))
        .and(|| addr(head.dst, packet.dst))
        .and(|| device(&head.iif, eval.at.devices.iif))
        .and(|| device(&head.oif, eval.at.devices.oif))
}

/// Whether a device name fits; a trailing `+` matches any rest.
fn name_matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('+') {
        Some(start) => name.starts_with(start),
        None => name == pattern,
    }
}

/// Runs one match.
pub(super) fn eval(eval: &mut Eval<'_, '_>, vm: &mut Vm<'_>, condition: &XtMatch) -> Did {
    match condition {
        XtMatch::Statistic(Statistic::Random {
            probability,
            invert,
        }) => {
            let share = f64::from(*probability) / f64::from(1_u32 << 31);
            Did::Chance(if *invert { 1.0 - share } else { share }.clamp(0.0, 1.0))
        }
        XtMatch::Statistic(Statistic::Nth { every, invert, .. }) => {
            assume(
                vm,
                "statistic nth: which packet of a series this is is not known",
            );
            let share = 1.0 / (f64::from(*every) + 1.0);
            Did::Chance(if *invert { 1.0 - share } else { share })
        }
        XtMatch::Recent {
            name,
            seconds,
            hit_count,
            check_set,
            invert,
            side,
            mask,
        } => {
            let asked = recent::Asked {
                list: name,
                seconds: *seconds,
                hit_count: *hit_count,
                check_set: *check_set,
                invert: *invert,
                source: *side == 0,
                mask: *mask,
            };
            recent::eval(eval, vm, &asked)
        }
        XtMatch::Set {
            index,
            name,
            unnamed,
            dims,
            invert,
            flags,
            ..
        } => {
            let asked = ipset::Asked {
                index: *index,
                name: name.as_deref(),
                unnamed: unnamed.as_deref(),
                dims,
                invert: *invert,
                flags: *flags,
            };
            ipset::eval(eval, vm, &asked)
        }
        XtMatch::Hashlimit(asked) => hashlimit::eval(eval, vm, asked),
        XtMatch::Nfacct(name) => Did::when(nfacct::matches(eval, vm, name)),
        other => {
            if let XtMatch::Rare(rare) = other
                && let RareMatch::Time(asked) = **rare
            {
                assume(vm, time::READING);
                if asked.flags & time::KERNEL_ZONE != 0 {
                    assume(vm, time::ZONE);
                }
            }
            Did::when(holds(eval, vm, other))
        }
    }
}

fn holds(eval: &mut Eval<'_, '_>, vm: &Vm<'_>, condition: &XtMatch) -> Tri {
    let skb = &vm.skb;
    let packet = &skb.packet;
    match condition {
        XtMatch::Tcp {
            sports,
            dports,
            flag_mask,
            flag_cmp,
            option,
            invert,
        } => {
            let L4::Tcp {
                sport,
                dport,
                flags,
            } = packet.l4
            else {
                return Tri::No;
            };
            port_within(sport, *sports, skb.free)
                .negated(invert & 1 != 0)
                .and(|| port_within(dport, *dports, skb.free).negated(invert & 2 != 0))
                .and(|| Tri::from((flags & flag_mask == *flag_cmp) != (invert & 4 != 0)))
                .and(|| match option {
                    0 => Tri::Yes,
                    _ => Tri::Unknown("tcp options are not modelled".to_owned()),
                })
        }
        XtMatch::Udp {
            sports,
            dports,
            invert,
        } => {
            let L4::Udp { sport, dport } = packet.l4 else {
                return Tri::No;
            };
            port_within(sport, *sports, skb.free)
                .negated(invert & 1 != 0)
                .and(|| port_within(dport, *dports, skb.free).negated(invert & 2 != 0))
        }
        XtMatch::Icmp {
            kind: wanted,
            codes: (first, last),
            invert,
            v6,
        } => {
            let L4::Icmp { kind, code, .. } = packet.l4 else {
                return Tri::No;
            };
            if *v6 != packet.src.is_ipv6() {
                return Tri::No;
            }
            let any = *wanted == 255 && !v6;
            let hit = any || (kind == *wanted && (*first..=*last).contains(&code));
            Tri::from(hit != *invert)
        }
        XtMatch::Comment(_) => Tri::Yes,
        XtMatch::Conntrack(wanted) => ct::matches(eval, vm, wanted),
        XtMatch::Addrtype {
            source,
            dest,
            invert_source,
            invert_dest,
            limit_in,
            limit_out,
        } => {
            let dev = if *limit_in {
                eval.at.devices.iif
            } else if *limit_out {
                eval.at.devices.oif
            } else {
                None
            };
            let (src, dst) = (packet.src, packet.dst);
            let mut one = |mask: u16, addr: IpAddr, invert: bool| match mask {
                0 => Tri::Yes,
                mask => reverse::addrtype(eval, addr, mask, dev).negated(invert),
            };
            let first = one(*source, src, *invert_source);
            first.and(|| one(*dest, dst, *invert_dest))
        }
        XtMatch::Mark { mark, mask, invert } => mark_is(skb.mark, *mark, *mask).negated(*invert),
        XtMatch::Connmark { mark, mask, invert } => match ct::mark(eval, vm) {
            None => Tri::No,
            Some(own) => mark_is(own, *mark, *mask).negated(*invert),
        },
        XtMatch::Multiport {
            which,
            ports,
            invert,
        } => {
            match packet.l4 {
                L4::Tcp { .. } | L4::Udp { .. } | L4::Sctp { .. } => {}
                L4::Other(DCCP | UDPLITE) => {
                    return Tri::Unknown("ports of this protocol are not modelled".to_owned());
                }
                _ => return Tri::No,
            }
            let any = |port: Option<u16>| {
                let ranges = ports
                    .iter()
                    .map(|range| port_within(port, *range, skb.free));
                ranges.fold(Tri::No, |all, one| all.or(|| one))
            };
            let hit = match which {
                0 => any(packet.sport()),
                1 => any(packet.dport()),
                _ => any(packet.sport()).or(|| any(packet.dport())),
            };
            hit.negated(*invert)
        }
        XtMatch::Physdev {
            physin,
            physout,
            is_in,
            is_out,
            is_bridged,
        } => physdev(eval, (physin, physout), (*is_in, *is_out, *is_bridged)),
        XtMatch::Iprange { src, dst } => {
            let within = |range: &Option<(IpAddr, IpAddr, bool)>, own: IpAddr| {
                range.is_none_or(|(first, last, invert)| (first..=last).contains(&own) != invert)
            };
            Tri::from(within(src, packet.src) && within(dst, packet.dst))
        }
        XtMatch::Mac { addr, invert } => match packet.eth {
            Some((src, _)) => Tri::from((src == *addr) != *invert),
            None if skb.local => Tri::No,
            None => Tri::Unknown("link-layer source not known here".to_owned()),
        },
        XtMatch::Owner {
            uid,
            gid,
            socket,
            supplementary,
        } => owner(eval, skb, (*uid, *gid, *socket), *supplementary),
        XtMatch::Pkttype { kind, invert } => {
            if packet.dst.is_multicast() || meta::is_broadcast(eval, packet.dst) {
                return Tri::Unknown("packet type of a packet for many".to_owned());
            }
            Tri::from((*kind == 0) != *invert)
        }
        XtMatch::Length {
            range: (first, last),
            invert,
        } => {
            if !skb.sized {
                // No packet is shorter than its headers.
                let headers = header::least(packet);
                let answer = match (u32::from(*first) <= headers, *last) {
                    (true, u16::MAX) => Some(true),
                    (_, last) if u32::from(last) < headers => Some(false),
                    _ => None,
                };
                return Tri::from_option(answer, || {
                    "the length of later packets is not known".to_owned()
                })
                .negated(*invert);
            }
            let within = (u32::from(*first)..=u32::from(*last)).contains(&packet.len);
            Tri::from(within != *invert)
        }
        XtMatch::Ttl { mode, value, .. } => match mode {
            0 => Tri::from(packet.ttl == *value),
            1 => Tri::from(packet.ttl != *value),
            2 => Tri::from(packet.ttl < *value),
            3 => Tri::from(packet.ttl > *value),
            other => Tri::Unknown(format!("ttl mode {other}")),
        },
        XtMatch::Rpfilter { flags } => reverse::rpfilter(eval, vm, *flags),
        XtMatch::Dscp { dscp, invert } => Tri::from((packet.tos >> 2 == *dscp) != *invert),
        XtMatch::Rare(rare) => xt_rare_match::holds(eval, vm, rare),
        XtMatch::Other { name, .. } => {
            Tri::Unknown(format!("match {name} is not known to this program"))
        }
        // Answered by `eval`: they are not conditions of this packet alone.
        XtMatch::Statistic(_)
        | XtMatch::Recent { .. }
        | XtMatch::Set { .. }
        | XtMatch::Limit { .. }
        | XtMatch::Nfacct(_)
        | XtMatch::Hashlimit(_) => Tri::Unknown("a match with a memory".to_owned()),
    }
}

fn mark_is(own: Option<u32>, mark: u32, mask: u32) -> Tri {
    let answer = if mask == 0 {
        Some(mark == 0)
    } else {
        own.map(|own| own & mask == mark)
    };
    Tri::from_option(answer, || "the mark is not known".to_owned())
}

/// IPPROTO_DCCP
const DCCP: u8 = 33;
/// IPPROTO_UDPLITE
const UDPLITE: u8 = 136;

/// A device name to match, and whether it is negated.
type Pattern<'a> = &'a Option<(String, bool)>;

/// `physdev_mt()`: without bridge information only negated conditions hold.
fn physdev(
    eval: &Eval<'_, '_>,
    (physin, physout): (Pattern<'_>, Pattern<'_>),
    (is_in, is_out, is_bridged): (Option<bool>, Option<bool>, Option<bool>),
) -> Tri {
    let devices = eval.at.devices;
    if devices.physin.is_none() && devices.physout.is_none() {
        let negated = |wanted: &Option<(String, bool)>| wanted.as_ref().is_none_or(|(_, n)| *n);
        let absent = |wanted: Option<bool>| wanted != Some(true);
        let all = absent(is_in)
            && absent(is_out)
            && absent(is_bridged)
            && negated(physin)
            && negated(physout);
        return Tri::from(all);
    }
    let is = |wanted: Option<bool>, has: bool| wanted.is_none_or(|wanted| wanted == has);
    if !is(is_bridged, devices.physout.is_some())
        || !is(is_in, devices.physin.is_some())
        || !is(is_out, devices.physout.is_some())
    {
        return Tri::No;
    }
    let fits = |wanted: &Option<(String, bool)>, index: Option<IfIndex>, without: Tri| match (
        wanted, index,
    ) {
        (None, _) => Tri::Yes,
        (Some(_), None) => without,
        (Some((pattern, invert)), index) => match meta::device_name(eval, index) {
            Ok(name) => Tri::from(name_matches(pattern, name) != *invert),
            Err(why) => Tri::Unknown(why),
        },
    };
    fits(physin, devices.physin, Tri::Yes).and(|| fits(physout, devices.physout, Tri::No))
}

/// First and last id, and whether the range is negated.
type OwnerRange = Option<(u32, u32, bool)>;

/// `owner_mt()`.
fn owner(
    eval: &Eval<'_, '_>,
    skb: &Skb,
    (uid, gid, socket): (OwnerRange, OwnerRange, Option<bool>),
    supplementary: bool,
) -> Tri {
    let negated = |range: OwnerRange| range.is_none_or(|(_, _, negated)| negated);
    // Without a socket the kernel compares the flags of the rule only, and this one has no negated form.
    let nobody = negated(uid) && negated(gid) && !supplementary;
    match meta::no_socket(eval, skb) {
        Tri::Yes => Tri::from(nobody && socket != Some(true)),
        Tri::Unknown(why) => Tri::Unknown(why),
        Tri::No if skb.kernel => Tri::from(nobody && socket != Some(false)),
        Tri::No => {
            let within = |range: OwnerRange, own: Option<u32>, what: &str| match (range, own) {
                (None, _) => Tri::Yes,
                (Some((first, last, negated)), Some(own)) => {
                    Tri::from((first..=last).contains(&own) != negated)
                }
                (Some(_), None) => Tri::Unknown(format!("the sender's {what} is not known")),
            };
            let outside =
                |(first, last, _)| !skb.gid.is_some_and(|own| (first..=last).contains(&own));
            Tri::from(socket != Some(false))
                .and(|| within(uid, skb.uid, "uid"))
                .and(|| match gid {
                    Some(range) if supplementary && outside(range) => {
                        Tri::Unknown("the sender's supplementary groups are not known".to_owned())
                    }
                    _ => within(gid, skb.gid, "gid"),
                })
        }
    }
}
