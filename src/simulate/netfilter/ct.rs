//! What rules ask of and tell a connection.
//!
//! Source: net/netfilter/nft_ct.c, xt_conntrack.c, xt_connmark.c (v6.12).

use std::net::IpAddr;

use super::bits::{Bits, FreePorts, Tri, free_port_within};
use super::chain::{self, Did};
use super::header::{Load, addr_bytes};
use super::machine::{Eval, Vm};
use super::step;
use crate::model::Section;
use crate::model::conntrack::{Counted, Tuple, status};
use crate::model::netfilter::{CtKey, Family, Reg, Rule};
use crate::model::xtables::ConntrackMatch;
use crate::simulate::skb::{CtRef, CtState, FlowEntry};

/// `NF_CT_STATE_INVALID_BIT`
const INVALID: u32 = 1;
/// `NF_CT_STATE_UNTRACKED_BIT`
const UNTRACKED: u32 = 1 << 6;
/// `NF_CT_STATE_BIT(IP_CT_ESTABLISHED)`
const ESTABLISHED: u32 = 2;
/// `NF_CT_STATE_BIT(IP_CT_RELATED)`
const RELATED: u32 = 4;
/// `NF_CT_STATE_BIT(IP_CT_NEW)`
const NEW: u32 = 8;

/// Why nothing is known of a [`CtRef::Above`].
const ABOVE: &str = "its connection is one of the namespace above, which is not followed here";

/// State bits of a packet; the same in `ct state` and `--ctstate` but for untracked. `None`: not known.
fn state(ct: CtRef) -> Option<u32> {
    Some(match ct {
        CtRef::None | CtRef::Invalid => INVALID,
        CtRef::Untracked => UNTRACKED,
        // The template's own.
        CtRef::Template(_) | CtRef::ZoneOfMark { .. } => NEW,
        CtRef::Entry { state, .. } => match state {
            CtState::New => NEW,
            CtState::Established => ESTABLISHED,
            CtState::Related => RELATED,
        },
        CtRef::Above => return None,
    })
}

fn entry<'v>(eval: &Eval<'_, '_>, vm: &'v Vm<'_>) -> Option<(&'v FlowEntry, bool)> {
    let CtRef::Entry { index, reply, .. } = vm.skb.ct else {
        return None;
    };
    Some((vm.flows.get(eval.at.ns, index)?, reply))
}

/// The packet's connection, where it has one.
pub(super) fn flow<'v>(eval: &Eval<'_, '_>, vm: &'v Vm<'_>) -> Option<&'v FlowEntry> {
    entry(eval, vm).map(|(flow, _)| flow)
}

/// Loads part of the connection.
pub(super) fn load(eval: &Eval<'_, '_>, vm: &Vm<'_>, key: CtKey, dir: Option<u8>) -> Load {
    if chain::family(vm) == Some(Family::Bridge) {
        return Load::Unknown("connection tracking in bridges is not evaluated".to_owned());
    }
    let Some(state) = state(vm.skb.ct) else {
        return Load::Unknown(ABOVE.to_owned());
    };
    if key == CtKey::State {
        return Load::Value(Bits::host32(Some(state)));
    }
    let Some((flow, reply)) = entry(eval, vm) else {
        return Load::Absent;
    };
    let entry = &flow.entry;
    let backwards = dir.map_or(reply, |dir| dir == 1);
    let tuple = if backwards { entry.reply } else { entry.orig };
    let v4_only = |addr: IpAddr, v6: bool| {
        if addr.is_ipv6() == v6 {
            Load::Value(Bits::known(addr_bytes(addr)))
        } else {
            Load::Absent
        }
    };
    let value = match key {
        CtKey::Direction => Bits::known([u8::from(reply)]),
        CtKey::Status => Bits::host32(Some(entry.status)),
        CtKey::Mark => Bits::host32(flow.mark),
        CtKey::L3proto => Bits::known([if tuple.src.is_ipv6() { 10 } else { 2 }]),
        CtKey::Protocol => Bits::known([tuple.protocol]),
        CtKey::Src => Bits::known(addr_bytes(tuple.src)),
        CtKey::Dst => Bits::known(addr_bytes(tuple.dst)),
        CtKey::ProtoSrc => Bits::port(tuple.sport, vm.skb.free),
        CtKey::ProtoDst => Bits::port(tuple.dport, vm.skb.free),
        CtKey::SrcIp => return v4_only(tuple.src, false),
        CtKey::DstIp => return v4_only(tuple.dst, false),
        CtKey::SrcIp6 => return v4_only(tuple.src, true),
        CtKey::DstIp6 => return v4_only(tuple.dst, true),
        CtKey::Labels if !flow.existing => Bits::known([0; 16]),
        CtKey::Labels if entry.labels.len() == 16 => Bits::known(entry.labels.clone()),
        CtKey::Zone => {
            let zone = match dir {
                Some(0) => entry.zone,
                Some(1) => entry.reply_zone,
                // The other direction's is 0 where it is for one only.
                _ => entry.zone | entry.reply_zone,
            };
            Bits::known(zone.to_le_bytes())
        }
        // That of the connection that led to this one.
        CtKey::Helper if entry.status & status::EXPECTED == 0 => return Load::Absent,
        CtKey::Labels | CtKey::Helper => Bits::unknown(16),
        CtKey::Pkts | CtKey::Bytes | CtKey::Avgpkt => return counted(eval, vm, flow, (key, dir)),
        CtKey::State | CtKey::Expiration | CtKey::Eventmask | CtKey::Id => Bits::unknown(4),
        CtKey::Other(number) => return Load::Unknown(format!("ct {number} is not known")),
    };
    Load::Value(value)
}

/// Changes the connection.
pub(super) fn store(
    eval: &Eval<'_, '_>,
    vm: &mut Vm<'_>,
    rule: &Rule,
    (key, dir): (CtKey, Option<u8>),
    sreg: Reg,
) -> Did {
    match key {
        CtKey::Zone => {
            let regs = vm.walk.as_ref().map(|walk| &walk.regs);
            let bits = regs.map(|regs| regs.load(sreg, 2));
            let zone = bits.as_ref().and_then(|bits| match bits.bytes()? {
                [low, high] => Some(u16::from_le_bytes([*low, *high])),
                _ => None,
            });
            if vm.skb.ct != CtRef::None {
                return Did::Next;
            }
            let Some(zone) = zone else {
                return Did::Blind("sets a zone that is not known".to_owned());
            };
            put_in_zone(vm, rule, zone, (dir != Some(1), dir != Some(0)));
            Did::Next
        }
        CtKey::Mark => {
            let regs = vm.walk.as_ref().map(|walk| &walk.regs);
            let mark = regs.and_then(|regs| regs.load(sreg, 4).host_u32());
            set_mark(eval, vm, rule, mark);
            Did::Next
        }
        CtKey::Labels | CtKey::Helper | CtKey::Eventmask => Did::Next,
        other => Did::Blind(format!("sets ct {other:?}")),
    }
}

/// Chooses the zone of a packet that conntrack has not seen yet, in these directions (`nf_ct_zone_id()`).
pub(super) fn put_in_zone(vm: &mut Vm<'_>, rule: &Rule, zone: u16, (orig, reply): (bool, bool)) {
    let of = |own: bool| if own { zone } else { 0 };
    vm.skb.ct = CtRef::Template((of(orig), of(reply)));
    let text = match (orig, reply) {
        (true, false) => format!("conntrack zone {zone} in the original direction"),
        (false, true) => format!("conntrack zone {zone} in the reply direction"),
        _ => format!("conntrack zone {zone}"),
    };
    step::note(vm, rule, text, Vec::new());
}

/// Packets and bytes of a connection (`nf_conn_acct_find()`), this packet included.
pub(super) enum Counts {
    /// It is not counted.
    Off,
    /// Original direction and reply.
    Of([Counted; 2]),
}

/// What a connection has carried; `Err`: why that is not known.
pub(super) fn counts(eval: &Eval<'_, '_>, flow: &FlowEntry) -> Result<Counts, String> {
    let of = |[there, back]: [Counted; 2]| Counts::Of([there, back]);
    if flow.existing {
        return Ok(flow.entry.counters.map_or(Counts::Off, of));
    }
    let sysctls = eval.ns.sysctls.known();
    match sysctls.map(|own| &own.nf_conntrack_acct) {
        Some(Section::Known(Some(true))) => Ok(of(flow.entry.counters.unwrap_or_default())),
        Some(Section::Known(_)) => Ok(Counts::Off),
        Some(Section::Missing(why)) => Err(format!("nf_conntrack_acct: {why}")),
        Some(Section::NotAsked) | None => Err("nf_conntrack_acct not read".to_owned()),
    }
}

/// Packets, bytes or bytes per packet, of one direction or of both.
fn counted(
    eval: &Eval<'_, '_>,
    vm: &Vm<'_>,
    flow: &FlowEntry,
    (key, dir): (CtKey, Option<u8>),
) -> Load {
    let all = match counts(eval, flow) {
        Ok(Counts::Off) => return Load::Value(Bits::known([0; 8])),
        Ok(Counts::Of([there, back])) => match dir {
            Some(0) => vec![there],
            Some(1) => vec![back],
            _ => vec![there, back],
        },
        Err(why) => return Load::Unknown(why),
    };
    // A data packet stands for all that follow it, of any length.
    if !vm.skb.sized {
        return Load::Value(Bits::unknown(8));
    }
    let sum = |of: fn(&Counted) -> u64| all.iter().map(of).fold(0, u64::saturating_add);
    let (packets, bytes) = (sum(|own| own.packets), sum(|own| own.bytes));
    let number = match key {
        CtKey::Pkts => packets,
        CtKey::Bytes => bytes,
        _ => bytes.checked_div(packets).unwrap_or(0),
    };
    Load::Value(Bits::known(number.to_le_bytes()))
}

/// Mark of the packet's connection; `None`: it has none.
#[allow(
    clippy::option_option,
    reason = "no connection and an unknown mark differ"
)]
pub(super) fn mark(eval: &Eval<'_, '_>, vm: &Vm<'_>) -> Option<Option<u32>> {
    entry(eval, vm).map(|(flow, _)| flow.mark)
}

/// Sets the mark of the packet's connection.
pub(super) fn set_mark(eval: &Eval<'_, '_>, vm: &mut Vm<'_>, rule: &Rule, mark: Option<u32>) {
    let CtRef::Entry { index, .. } = vm.skb.ct else {
        return;
    };
    let Some(flow) = vm.flows.get_mut(eval.at.ns, index) else {
        return;
    };
    if flow.mark == mark {
        return;
    }
    flow.mark = mark;
    flow.entry.mark = mark.unwrap_or(flow.entry.mark);
    let words = mark.map_or_else(|| "unknown".to_owned(), |mark| format!("{mark:#x}"));
    step::note(vm, rule, format!("connection mark {words}"), Vec::new());
}

/// The `conntrack` match (`conntrack_mt()`).
pub(super) fn matches(eval: &Eval<'_, '_>, vm: &Vm<'_>, wanted: &ConntrackMatch) -> Tri {
    let has = |bit: u16| wanted.match_flags & bit != 0;
    let inverted = |bit: u16| wanted.invert_flags & bit != 0;
    let found = entry(eval, vm);
    if has(1) {
        let mut bits = match state(vm.skb.ct) {
            Some(UNTRACKED) => 0x100,
            Some(other) => other,
            None => return Tri::Unknown(ABOVE.to_owned()),
        };
        if let Some((flow, _)) = found {
            let nat = |bit: u32, flag: u32| {
                if flow.entry.status & bit != 0 {
                    flag
                } else {
                    0
                }
            };
            bits |= nat(status::SRC_NAT, 64) | nat(status::DST_NAT, 128);
        }
        if (u32::from(wanted.state_mask) & bits != 0) == inverted(1) {
            return Tri::No;
        }
    }
    let Some((flow, reply)) = found else {
        return Tri::from(has(1));
    };
    let entry = &flow.entry;
    let free = vm.skb.free;
    let mut answer = Tri::Yes;
    let mut also = |bit: u16, condition: Tri| {
        if has(bit) {
            let before = std::mem::replace(&mut answer, Tri::Yes);
            answer = before.and(|| condition.negated(inverted(bit)));
        }
    };
    also(0x1000, Tri::from(!reply));
    also(2, Tri::from(u16::from(entry.orig.protocol) == wanted.proto));
    let addr = |pair: Option<(IpAddr, IpAddr)>, own: IpAddr| {
        Tri::from(pair.is_none_or(|(addr, mask)| masked_equal(own, addr, mask)))
    };
    also(4, addr(wanted.origsrc, entry.orig.src));
    also(8, addr(wanted.origdst, entry.orig.dst));
    also(0x10, addr(wanted.replsrc, entry.reply.src));
    also(0x20, addr(wanted.repldst, entry.reply.dst));
    also(0x100, port(wanted.origsrc_port, entry.orig, true, free));
    also(0x200, port(wanted.origdst_port, entry.orig, false, free));
    also(0x400, port(wanted.replsrc_port, entry.reply, true, free));
    also(0x800, port(wanted.repldst_port, entry.reply, false, free));
    also(
        0x40,
        Tri::from(u32::from(wanted.status_mask) & entry.status != 0),
    );
    also(
        0x80,
        Tri::Unknown("time to live of the connection".to_owned()),
    );
    answer
}

fn port(range: (u16, u16), tuple: Tuple, source: bool, free: FreePorts) -> Tri {
    let own = if source { tuple.sport } else { tuple.dport };
    port_within(own, range, free)
}

/// Whether a port lies in a range, ends included; `None` is any of the free ones.
pub(super) fn port_within(port: Option<u16>, (first, last): (u16, u16), free: FreePorts) -> Tri {
    let answer = match port {
        Some(port) => Some((first..=last).contains(&port)),
        None => free_port_within(first, last, free),
    };
    Tri::from_option(answer, || {
        format!("the port is any free one, which may lie in {first} to {last}")
    })
}

/// Whether an address equals another under a mask.
pub(super) fn masked_equal(own: IpAddr, addr: IpAddr, mask: IpAddr) -> bool {
    match (own, addr, mask) {
        (IpAddr::V4(own), IpAddr::V4(addr), IpAddr::V4(mask)) => {
            (u32::from(own) ^ u32::from(addr)) & u32::from(mask) == 0
        }
        (IpAddr::V6(own), IpAddr::V6(addr), IpAddr::V6(mask)) => {
            (u128::from(own) ^ u128::from(addr)) & u128::from(mask) == 0
        }
        _ => false,
    }
}
