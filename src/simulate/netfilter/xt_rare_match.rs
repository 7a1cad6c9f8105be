//! x_tables matches that few rule sets have.
//!
//! Source: net/netfilter/xt_*.c, net/ipv6/netfilter/ip6t_*.c (v6.12).

use super::bits::Tri;
use super::ct::{self, port_within};
use super::header::{self, Load};
use super::machine::{Eval, Vm};
use super::{meta, time};
use crate::model::IfIndex;
use crate::model::conntrack::Counted;
use crate::model::netfilter::PayloadBase;
use crate::model::packet::{L4, Packet};
use crate::model::xtables::{RareMatch, SpiHeader, U32Test};

/// Numbers of protocols that few packets have.
const ESP: u8 = 50;
const AH: u8 = 51;
const DCCP: u8 = 33;
const IPCOMP: u8 = 108;
const L2TP: u8 = 115;
const MOBILITY: u8 = 135;
const SYN: u8 = 2;

/// Whether a match holds.
pub(super) fn holds(eval: &Eval<'_, '_>, vm: &Vm<'_>, condition: &RareMatch) -> Tri {
    let skb = &vm.skb;
    let packet = &skb.packet;
    let unknown = |what: &str| Tri::Unknown(format!("{what} is not known"));
    // Of a protocol whose header is not modelled only that it is another is known.
    let inside = |protocol: u8, what: &str| {
        if packet.protocol() == protocol {
            unknown(what)
        } else {
            Tri::No
        }
    };
    match condition {
        RareMatch::Spi { header, .. } => {
            let protocol = match header {
                SpiHeader::Ah | SpiHeader::Ah6 => AH,
                SpiHeader::Esp => ESP,
                SpiHeader::Ipcomp => IPCOMP,
            };
            inside(protocol, "the security parameter index")
        }
        RareMatch::Bpf(_) | RareMatch::BpfObject(_) => unknown("the answer of a bpf program"),
        RareMatch::Cgroup { .. } => match meta::no_socket(eval, skb) {
            Tri::Yes => Tri::No,
            _ => unknown("the sender's control group"),
        },
        RareMatch::Cluster { .. } => unknown("which node of a cluster takes the flow"),
        RareMatch::Connbytes {
            from,
            to,
            what,
            direction,
        } => connbytes(eval, vm, (*from, *to), *what, *direction),
        RareMatch::Connlabel { invert, .. } => match ct::flow(eval, vm) {
            None => Tri::from(*invert),
            Some(_) => unknown("a label of the connection"),
        },
        RareMatch::Cpu { .. } => unknown("the cpu"),
        RareMatch::Dccp { .. } => inside(DCCP, "the dccp header"),
        RareMatch::Devgroup { src, dst } => match (src, dst) {
            (None, None) => Tri::Yes,
            (src, dst) => {
                let devices = eval.at.devices;
                in_group(eval, devices.iif, *src).and(|| in_group(eval, devices.oif, *dst))
            }
        },
        RareMatch::Ecn {
            operation,
            invert,
            ect,
        } => ecn(packet, *operation, *invert, *ect),
        RareMatch::Helper { invert, .. } => match ct::flow(eval, vm) {
            // IPS_EXPECTED: a connection that another one led to.
            Some(flow) if flow.existing && flow.entry.status & 1 != 0 => {
                unknown("the helper of the connection that led to this one")
            }
            _ => Tri::from(*invert),
        },
        RareMatch::Ipvs { .. } => unknown("what ipvs knows of the packet"),
        RareMatch::L2tp { .. } => match packet.l4 {
            L4::Udp { .. } => unknown("whether a tunnel's packet is in it"),
            _ => inside(L2TP, "the tunnel's header"),
        },
        RareMatch::Osf { .. } => match packet.l4 {
            L4::Tcp { flags, .. } if flags & SYN != 0 => unknown("the sender's system"),
            _ => Tri::No,
        },
        // Packets that pass a transform are not followed, so that none came through or is bound for one.
        RareMatch::Policy { flags, .. } => Tri::from(flags & 4 != 0),
        RareMatch::Rateest { .. } => unknown("a rate"),
        // Answered before: they have a memory.
        RareMatch::Connlimit { .. } | RareMatch::Quota { .. } => unknown("a limit"),
        RareMatch::Realm { id, mask, invert } => match meta::realm(eval, skb) {
            Load::Value(realm) => {
                let realm = realm.host_u32().unwrap_or(0);
                Tri::from((realm & mask == *id) != *invert)
            }
            Load::Absent | Load::Unknown(_) => unknown("the realm of the route"),
        },
        RareMatch::Sctp {
            sports,
            dports,
            flags,
            invert,
            ..
        } => {
            let L4::Sctp { sport, dport } = packet.l4 else {
                return Tri::No;
            };
            let side = |bit: u32, port, range| match flags & bit {
                0 => Tri::Yes,
                _ => port_within(port, range, skb.free).negated(invert & bit != 0),
            };
            side(1, sport, *sports)
                .and(|| side(2, dport, *dports))
                .and(|| match flags & 4 {
                    0 => Tri::Yes,
                    _ => unknown("which chunks are in it"),
                })
        }
        RareMatch::Socket(_) => match packet.l4 {
            L4::Tcp { .. } | L4::Udp { .. } | L4::Icmp { .. } => {
                unknown("whether a socket takes it already here")
            }
            _ => Tri::No,
        },
        RareMatch::Text { .. } => unknown("the text in the packet"),
        RareMatch::Tcpmss { invert, .. } => match packet.l4 {
            L4::Tcp { flags, .. } if flags & SYN != 0 => unknown("the segment size"),
            // No other packet bears the option.
            L4::Tcp { .. } => Tri::from(*invert),
            _ => Tri::No,
        },
        RareMatch::Time(asked) => time::holds(eval, asked),
        RareMatch::Tos {
            value,
            mask,
            invert,
        } => Tri::from((packet.tos & mask == *value) != *invert),
        RareMatch::U32 { tests, invert } => {
            let known = header::Known {
                local: skb.local,
                free: skb.free,
                sized: skb.sized,
                tagged: skb.tagged,
            };
            let all = tests.iter().fold(Tri::Yes, |all, test| {
                all.and(|| u32_test(packet, known, test))
            });
            all.negated(*invert)
        }
        RareMatch::Eui64 => unknown("whether the source is made of the link-layer address"),
        // Packets with extension headers are not modelled: what is looked for is not there.
        RareMatch::Frag { .. }
        | RareMatch::Options { .. }
        | RareMatch::Rt { .. }
        | RareMatch::Srh { .. } => match packet.l4 {
            L4::Other(_) => unknown("an extension header"),
            _ => Tri::No,
        },
        RareMatch::Mh { .. } => inside(MOBILITY, "the mobility header"),
        RareMatch::Ipv6header {
            headers,
            invert,
            soft,
        } => {
            let there = match packet.l4 {
                L4::Other(_) => return unknown("an extension header"),
                // MASK_PROTO
                _ => 1_u8,
            };
            Tri::from(if *soft {
                (there ^ headers ^ invert) & headers == 0
            } else {
                (there == *headers) != (*invert != 0)
            })
        }
    }
}

/// `devgroup_mt()`
fn in_group(eval: &Eval<'_, '_>, index: Option<IfIndex>, wanted: Option<(u32, u32, bool)>) -> Tri {
    let Some((group, mask, invert)) = wanted else {
        return Tri::Yes;
    };
    let own = index.and_then(|index| eval.ns.link(index));
    let answer = own.map(|link| (link.group ^ group) & mask == 0);
    Tri::from_option(answer, || "the group of a device is not known".to_owned()).negated(invert)
}

/// `connbytes_mt()`: this packet is counted already.
fn connbytes(
    eval: &Eval<'_, '_>,
    vm: &Vm<'_>,
    (from, to): (u64, u64),
    what: u8,
    direction: u8,
) -> Tri {
    let Some(flow) = ct::flow(eval, vm) else {
        return Tri::No;
    };
    let [there, back] = match ct::counts(eval, flow) {
        Ok(ct::Counts::Of(both)) => both,
        Ok(ct::Counts::Off) => return Tri::No,
        Err(why) => return Tri::Unknown(why),
    };
    let sum = |of: fn(&Counted) -> u64| match direction {
        0 => of(&there),
        1 => of(&back),
        _ => of(&there).saturating_add(of(&back)),
    };
    let packets = sum(|own| own.packets);
    let bytes = || vm.skb.sized.then(|| sum(|own| own.bytes));
    // A data packet stands for all that follow it.
    if what == 0 && !vm.skb.sized {
        let answer = match (from <= to, packets) {
            (true, least) if least > to => Some(false),
            (true, least) if least >= from && to == u64::MAX => Some(true),
            _ => None,
        };
        return Tri::from_option(answer, || {
            "how many packets came before it is not known".to_owned()
        });
    }
    let counted = match what {
        0 => Some(packets),
        1 => bytes(),
        2 => bytes().map(|bytes| bytes.checked_div(packets).unwrap_or(0)),
        _ => None,
    };
    let within = |number: u64| {
        if from <= to {
            (from..=to).contains(&number)
        } else {
            !(to..=from).contains(&number)
        }
    };
    Tri::from_option(counted.map(within), || {
        "the length of the packet is not known".to_owned()
    })
}

/// `ecn_mt4()`
fn ecn(packet: &Packet, operation: u8, invert: u8, ect: u8) -> Tri {
    let tcp = |bit: u8, flag: u8| {
        if operation & bit == 0 {
            return true;
        }
        let L4::Tcp { flags, .. } = packet.l4 else {
            return false;
        };
        (flags & flag != 0) != (invert & bit != 0)
    };
    let ip = operation & 1 == 0 || (packet.tos & 3 == ect) != (invert & 1 != 0);
    Tri::from(ip && tcp(0x10, 0x40) && tcp(0x20, 0x80))
}

/// A number of which some bits may be unknown; these are 0 in `value`.
#[derive(Clone, Copy)]
struct Partly {
    value: u32,
    known: u32,
}

/// One comparison (`u32_match_it()`).
fn u32_test(packet: &Packet, known: header::Known, test: &U32Test) -> Tri {
    let read = |place: u32| {
        let place = usize::try_from(place).unwrap_or(usize::MAX);
        match header::load(packet, known, PayloadBase::Network, place, 4) {
            Load::Value(bits) => {
                let number = |bytes: Vec<u8>| {
                    let bytes: Option<[u8; 4]> = bytes.try_into().ok();
                    bytes.map(u32::from_be_bytes)
                };
                let (low, high) = (number(bits.min())?, number(bits.max())?);
                Some(Ok(Partly {
                    value: low,
                    known: !(low ^ high),
                }))
            }
            Load::Absent => None,
            Load::Unknown(why) => Some(Err(why)),
        }
    };
    let Some((first, rest)) = test.location.split_first() else {
        return Tri::Unknown("a u32 test without a place".to_owned());
    };
    let mut now = match read(first.0) {
        Some(Ok(now)) => now,
        Some(Err(why)) => return Tri::Unknown(why),
        None => return Tri::No,
    };
    let mut base = 0_u32;
    for (number, how) in rest {
        now = match how {
            0 => Partly {
                value: now.value & number,
                known: now.known | !number,
            },
            1 => Partly {
                value: now.value.checked_shl(*number).unwrap_or(0),
                known: !(!now.known).checked_shl(*number).unwrap_or(0),
            },
            2 => Partly {
                value: now.value.checked_shr(*number).unwrap_or(0),
                known: !(!now.known).checked_shr(*number).unwrap_or(0),
            },
            _ if now.known != u32::MAX => {
                return Tri::Unknown("where a u32 test looks is not known".to_owned());
            }
            _ => {
                let Some(there) = base.checked_add(now.value) else {
                    return Tri::No;
                };
                base = there;
                match base.checked_add(*number).map(read) {
                    Some(Some(Ok(now))) => now,
                    Some(Some(Err(why))) => return Tri::Unknown(why),
                    _ => return Tri::No,
                }
            }
        };
    }
    // The bits that are unknown make it anything between both.
    let (low, high) = (now.value, now.value | !now.known);
    let within = |(first, last): &(u32, u32)| {
        let answer = match (*first <= low && high <= *last, high < *first || *last < low) {
            (true, _) => Some(true),
            (_, true) => Some(false),
            _ if low == high => Some(false),
            _ => None,
        };
        Tri::from_option(answer, || "bytes of the packet are not known".to_owned())
    };
    let ranges = test.values.iter();
    ranges.fold(Tri::No, |any, range| any.or(|| within(range)))
}
