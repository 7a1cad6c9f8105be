//! nf_tables expressions.
//!
//! Source: net/netfilter/nft_*.c (v6.12).

use super::bits::{Bits, Tri};
use super::chain::Did;
use super::header::{self, Load};
use super::lookup::{self, Found};
use super::machine::{Eval, Vm};
use super::registers::Registers;
use super::step::{assume, note, note_written, set_mark};
use super::want::{asks_by_key, want_set};
use super::{
    ct, limit, meta, nat, queue, reject, reverse, text_set, time, tproxy, xt_match, xt_target,
};
use crate::model::netfilter::{
    BitwiseOp, CmpOp, Expr, Exthdr, MetaKey, Reg, Rule, SetData, SetElem,
};
use crate::model::packet::L4;
use crate::simulate::conntrack::Manip;
use crate::simulate::skb::{CtRef, Hashed, HashedOf};
use crate::trace::{Evidence, NOT_TRACKED};

/// IPPROTO_DCCP
const DCCP: u8 = 33;
const NO_CHAIN: &str = "no chain is walked";

/// Runs one expression.
pub(super) fn eval<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &mut Vm<'a>,
    rule: &'a Rule,
    expr: &'a Expr,
) -> Did {
    let Some(walk) = vm.walk.as_mut() else {
        return Did::Blind(NO_CHAIN.to_owned());
    };
    let regs = &mut walk.regs;
    match expr {
        Expr::Meta { key, dreg } => {
            let family = walk.base.table.family;
            let load = meta::load(eval, &vm.skb, *key, Some(family));
            if time::is_one(*key) {
                assume(vm, time::READING);
            }
            if *key == MetaKey::Other(time::NFT_DAY) {
                assume(vm, time::ZONE);
            }
            store(vm, *dreg, load)
        }
        Expr::MetaSet { key, sreg } => match key {
            MetaKey::Mark => {
                let mark = regs.load(*sreg, 4).host_u32();
                set_mark(vm, rule, mark);
                Did::Next
            }
            MetaKey::Priority | MetaKey::Nftrace | MetaKey::Rtclassid => Did::Next,
            other => Did::Blind(format!("sets meta {other:?}")),
        },
        Expr::Payload {
            base,
            offset,
            len,
            dreg,
        } => {
            let known = header::Known {
                local: vm.skb.local,
                free: vm.skb.free,
                sized: vm.skb.sized,
                tagged: vm.skb.tagged,
            };
            let load = header::load(&vm.skb.packet, known, *base, size(*offset), size(*len));
            store(vm, *dreg, load)
        }
        Expr::PayloadSet {
            base,
            offset,
            len,
            sreg,
        } => {
            let value = regs.load(*sreg, size(*len));
            let before = vm.skb.packet.clone();
            let stored = header::store(&mut vm.skb.packet, *base, size(*offset), &value);
            note_written(vm, rule, &before);
            match stored {
                Ok(()) => Did::Next,
                Err(why) => Did::Blind(why),
            }
        }
        Expr::Cmp { op, sreg, data } => {
            let value = regs.load(*sreg, data.len());
            if let (true, Some(last)) = (value.is_free_port(), end_of_range(rule, expr)) {
                // nft writes a range as two comparisons; a free port needs both at once.
                let within = value.within(data, last);
                return Did::when(Tri::from_option(within, || {
                    "the port is any free one".to_owned()
                }));
            }
            let answer = match op {
                CmpOp::Eq => value.equals(data),
                CmpOp::Neq => value.equals(data).map(|equal| !equal),
                CmpOp::Lt => value.at_least(data).map(|more| !more),
                CmpOp::Lte => value.at_most(data),
                CmpOp::Gt => value.at_most(data).map(|less| !less),
                CmpOp::Gte => value.at_least(data),
            };
            Did::when(Tri::from_option(answer, || {
                "a value is not known".to_owned()
            }))
        }
        Expr::Range {
            negate,
            sreg,
            from,
            to,
        } => {
            let answer = regs.load(*sreg, from.len()).within(from, to);
            let answer = Tri::from_option(answer, || "a value is not known".to_owned());
            Did::when(answer.negated(*negate))
        }
        Expr::Bitwise {
            sreg,
            dreg,
            len,
            op,
        } => {
            let value = regs.load(*sreg, size(*len));
            let result = match op {
                BitwiseOp::MaskXor { mask, xor } => Some(value.mask_xor(mask, xor)),
                BitwiseOp::Lshift(bits) => Some(value.shift(*bits, true)),
                BitwiseOp::Rshift(bits) => Some(value.shift(*bits, false)),
                BitwiseOp::Register { op, sreg2 } => {
                    value.combine(*op, &regs.load(*sreg2, size(*len)))
                }
            };
            regs.store(*dreg, &result.unwrap_or(Bits::unknown(size(*len))));
            Did::Next
        }
        Expr::Byteorder {
            sreg,
            dreg,
            len,
            size: width,
            ..
        } => {
            let value = regs.load(*sreg, size(*len)).swapped(size(*width));
            regs.store(*dreg, &value);
            Did::Next
        }
        Expr::Immediate { dreg, data } => {
            regs.store(*dreg, &Bits::known(data.clone()));
            Did::Next
        }
        Expr::Verdict(verdict) => Did::Verdict(verdict.clone()),
        Expr::Lookup {
            set,
            sreg,
            dreg,
            inverted,
        } => look_up(eval, vm, set, *sreg, *dreg, *inverted),
        Expr::Dynset {
            set,
            sreg,
            op,
            exprs,
            ..
        } if exprs.iter().all(only_counts) => {
            let table = walk.base.table;
            let len = table.sets.get(set).map_or(0, |set| size(set.key_len));
            let key = regs.load(*sreg, len);
            let key = key.bytes().filter(|_| len > 0).map(<[u8]>::to_vec);
            let place = (table.name.as_str(), set.as_str());
            // NFT_DYNSET_OP_DELETE is 2.
            vm.flows.change(eval.at.ns, place, key, *op != 2);
            Did::Next
        }
        Expr::Dynset {
            set, sreg, exprs, ..
        } => limit::of_element(eval, vm, (set, *sreg), exprs),
        Expr::Ct { key, dreg, dir } => {
            let load = ct::load(eval, vm, *key, *dir);
            store(vm, *dreg, load)
        }
        Expr::CtSet { key, sreg, dir } => ct::store(eval, vm, rule, (*key, *dir), *sreg),
        Expr::Fib { dreg, .. } => {
            let load = reverse::load(eval, vm, expr);
            store(vm, *dreg, load)
        }
        Expr::Numgen {
            dreg,
            modulus,
            offset,
            random,
        } => {
            if !*random {
                assume(
                    vm,
                    "numgen inc: which packet of a series this is is not known",
                );
            }
            choose(eval, vm, *dreg, (*modulus, *offset), None)
        }
        Expr::Hash {
            dreg,
            modulus,
            offset,
            jhash,
        } => {
            let range = (*modulus, *offset);
            let hashed = hashed(eval, vm, *jhash, range);
            if let Some(number) = vm.flows.drawn(&hashed) {
                let value = Bits::host32(Some(number));
                return store(vm, *dreg, Load::Value(value));
            }
            assume(
                vm,
                "hash of the flow: each flow always takes the same way, which one is not known",
            );
            choose(eval, vm, *dreg, range, Some(&hashed))
        }
        Expr::Nat {
            source,
            v6,
            addr_min,
            addr_max,
            proto_min,
            proto_max,
            flags,
        } => {
            let width = if *v6 { 16 } else { 4 };
            let addr = |reg: Reg| {
                let value = regs.load(reg, width);
                value.bytes().and_then(header::addr_from)
            };
            let pair = |first: &Option<Reg>, last: &Option<Reg>| {
                first.map(|first| (first, last.unwrap_or(first)))
            };
            let addrs = match pair(addr_min, addr_max) {
                None => None,
                Some((first, last)) => match (addr(first), addr(last)) {
                    (Some(first), Some(last)) => Some((first, last)),
                    _ => return Did::Blind("the new address is not known".to_owned()),
                },
            };
            let Some(ports) = ports(regs, *proto_min, *proto_max) else {
                return Did::Blind("the new port is not known".to_owned());
            };
            let range = nat::Range {
                flags: *flags,
                addrs,
                ports,
                base: 0,
            };
            let (manip, word) = if *source {
                (Manip::Src, "snat to")
            } else {
                (Manip::Dst, "dnat to")
            };
            nat::to_range(eval, vm, manip, range, word)
        }
        Expr::Masq {
            proto_min,
            proto_max,
            flags,
        }
        | Expr::Redir {
            proto_min,
            proto_max,
            flags,
        } => {
            let Some(ports) = ports(regs, *proto_min, *proto_max) else {
                return Did::Blind("the new port is not known".to_owned());
            };
            let range = nat::Range {
                flags: *flags,
                addrs: None,
                ports,
                base: 0,
            };
            if matches!(expr, Expr::Masq { .. }) {
                nat::masquerade(eval, vm, range)
            } else {
                nat::redirect(eval, vm, range)
            }
        }
        Expr::Reject { kind, code } => reject::nft(&vm.skb.packet, *kind, *code),
        Expr::Tproxy { family, addr, port } => {
            let v6 = vm.skb.packet.src.is_ipv6();
            if *family != 0 && (*family == 10) != v6 {
                return Did::Break;
            }
            let width = if v6 { 16 } else { 4 };
            let to = addr.map(|reg| regs.load(reg, width).bytes().and_then(header::addr_from));
            let port = port.map(|reg| regs.load(reg, 2).net_u16());
            match (to, port) {
                (Some(None), _) | (_, Some(None)) => {
                    Did::Blind("the proxy's address or port is not known".to_owned())
                }
                (to, port) => tproxy::nft(eval, vm, rule, (to.flatten(), port.flatten())),
            }
        }
        Expr::Exthdr {
            place,
            dreg,
            present,
        } => exthdr(vm, *place, *dreg, *present),
        // The value is unknown, or there is none and the rule does not match.
        Expr::Socket { dreg, .. } => {
            doubt(vm, *dreg, 8, "which socket takes the packet is not known")
        }
        Expr::Osf { dreg, .. } => doubt(vm, *dreg, 16, "the sender's system is not known"),
        Expr::Rt { dreg, key: 0 } => {
            let load = meta::realm(eval, &vm.skb);
            store(vm, *dreg, load)
        }
        Expr::Rt { dreg, key } => {
            let len = match key {
                2 => 16,
                3 => 2,
                4 => 1,
                _ => 4,
            };
            regs.store(*dreg, &Bits::unknown(len));
            Did::Next
        }
        // Packets that pass a transform are not followed: none came through one.
        Expr::Xfrm { .. } => Did::Break,
        Expr::Tunnel { dreg, .. } => doubt(vm, *dreg, 4, "the metadata of a tunnel are not known"),
        Expr::Inner { expr, .. } => match **expr {
            Expr::Payload { dreg, len, .. } => {
                doubt(vm, dreg, len, "headers inside a tunnel are not evaluated")
            }
            Expr::Meta { dreg, .. } => {
                doubt(vm, dreg, 16, "headers inside a tunnel are not evaluated")
            }
            _ => Did::Blind("headers inside a tunnel are not evaluated".to_owned()),
        },
        Expr::Synproxy { .. } => Did::Blind("answered in place of the server".to_owned()),
        Expr::Fwd { .. } => Did::Blind("sent out of another device".to_owned()),
        Expr::ObjrefMap { set, sreg } => {
            let kind = walk.base.table.sets.get(set);
            let kind = kind.map_or(0, |set| set.decl.object_type);
            match look_up(eval, vm, set, *sreg, None, false) {
                Did::Next => idle_object(&format!("that map {set} leads to"), kind),
                other => other,
            }
        }
        // Options of TCP are what ExthdrSet changes, and no rule is known to ask for them afterwards.
        Expr::ExthdrSet { .. }
        | Expr::Counter(_)
        | Expr::Log(_)
        | Expr::FlowOffload(_)
        | Expr::Last(_)
        | Expr::Dup { .. } => Did::Next,
        Expr::Queue { sreg: Some(_), .. } => Did::Blind(
            "handed to the program that listens on a queue of the packet's own".to_owned(),
        ),
        Expr::Queue {
            num, total, bypass, ..
        } => queue::hand_over(eval, vm, rule, (*num, *total), *bypass),
        Expr::Notrack if vm.skb.is_tied_error() => Did::Blind(
            "whether an error is tracked depends on what it is about, which is not followed"
                .to_owned(),
        ),
        Expr::Notrack => {
            if vm.skb.ct == CtRef::None {
                vm.skb.ct = CtRef::Untracked;
                note(vm, rule, NOT_TRACKED.to_owned(), Vec::new());
            }
            Did::Next
        }
        Expr::Objref { name, kind } => {
            let mut objects = walk.base.table.objects.iter();
            match objects.find(|object| object.name == *name && object.state.kind() == *kind) {
                Some(object) => {
                    limit::of_object(eval, vm, object).unwrap_or_else(|| idle_object(name, *kind))
                }
                None => idle_object(name, *kind),
            }
        }
        Expr::Header(header) => Did::when(xt_match::head(eval, &vm.skb, header)),
        Expr::Limit { .. } | Expr::Quota { .. } | Expr::Connlimit { .. } => {
            limit::eval(eval, vm, rule, expr)
        }
        Expr::Match(_) if limit::is_one(expr) => limit::eval(eval, vm, rule, expr),
        Expr::Match(condition) => xt_match::eval(eval, vm, condition),
        Expr::Target(target) => xt_target::eval(eval, vm, rule, target),
        Expr::Other { name, .. } => {
            Did::Blind(format!("expression {name} is not known to this program"))
        }
    }
}

/// Whether a stateful expression never refuses a packet.
fn only_counts(expr: &Expr) -> bool {
    matches!(expr, Expr::Counter(_) | Expr::Last(_))
}

/// Extension headers and options. Packets under way have neither IPv6 extension headers nor IPv4 options
/// (`nft_exthdr_ipv6_eval()`, `nft_exthdr_ipv4_eval()`); the options of TCP are not known.
fn exthdr(vm: &mut Vm<'_>, place: Exthdr, dreg: Reg, present: bool) -> Did {
    let packet = &vm.skb.packet;
    let there = match (place.op, packet.l4) {
        (0 | 2, L4::Other(_)) | (1, L4::Tcp { .. }) | (3, L4::Sctp { .. }) => None,
        (4, L4::Other(protocol)) if protocol == DCCP => None,
        (0..=4, _) => Some(false),
        _ => None,
    };
    let Some(walk) = vm.walk.as_mut() else {
        return Did::Blind(NO_CHAIN.to_owned());
    };
    match (there, present) {
        (Some(there), true) => {
            walk.regs.store(dreg, &Bits::known([u8::from(there)]));
            Did::Next
        }
        (Some(_), false) => Did::Break,
        (None, true) => {
            walk.regs.store(dreg, &Bits::unknown(1));
            Did::Next
        }
        (None, false) => doubt(
            vm,
            dreg,
            place.len,
            "an extension header or option is not known",
        ),
    }
}

/// A load of what is not known, where it is not known either whether there is anything to load.
fn doubt(vm: &mut Vm<'_>, dreg: Reg, len: u32, why: &str) -> Did {
    if let Some(walk) = vm.walk.as_mut() {
        // What the register held before must not be taken for what was asked.
        walk.regs.store(dreg, &Bits::unknown(size(len.min(64))));
    }
    Did::Doubt(why.to_owned())
}

/// Upper end of a range of which `expr` compares the lower one.
fn end_of_range<'a>(rule: &'a Rule, expr: &Expr) -> Option<&'a [u8]> {
    let Expr::Cmp {
        op: CmpOp::Gte,
        sreg,
        ..
    } = expr
    else {
        return None;
    };
    let index = rule.exprs.iter().position(|own| std::ptr::eq(own, expr))?;
    match rule.exprs.get(index + 1)? {
        Expr::Cmp {
            op: CmpOp::Lte,
            sreg: same,
            data,
        } if same == sreg => Some(data),
        _ => None,
    }
}

fn size(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX).min(4096)
}

fn store(vm: &mut Vm<'_>, dreg: Reg, load: Load) -> Did {
    match (load, vm.walk.as_mut()) {
        (Load::Value(value), Some(walk)) => {
            walk.regs.store(dreg, &value);
            Did::Next
        }
        (Load::Absent, _) => Did::Break,
        // The longest load that is not known has 16 bytes.
        (Load::Unknown(why), _) => doubt(vm, dreg, 16, &why),
        (_, None) => Did::Blind(NO_CHAIN.to_owned()),
    }
}

/// Ports by register. `None`: not known; `Some(None)`: none are given.
#[allow(
    clippy::option_option,
    reason = "absent and unknown are different answers"
)]
fn ports(regs: &Registers, min: Option<Reg>, max: Option<Reg>) -> Option<Option<(u16, u16)>> {
    let Some(min) = min else {
        return Some(None);
    };
    let first = regs.load(min, 2).net_u16()?;
    let last = regs.load(max.unwrap_or(min), 2).net_u16()?;
    Some(Some((first, last)))
}

/// What a hash is made of: that of a flow is the same for both directions (`__skb_get_hash_symmetric()`).
fn hashed(
    eval: &Eval<'_, '_>,
    vm: &Vm<'_>,
    jhash: Option<(Reg, u32, Option<u32>)>,
    range: (u32, u32),
) -> Hashed {
    let tuple = vm.skb.packet.tuple();
    let (of, seed) = match jhash {
        None => (HashedOf::Flow(tuple.min(tuple.inverted()), None), None),
        Some((reg, len, seed)) => {
            let value = vm.walk.as_ref().map(|walk| walk.regs.load(reg, size(len)));
            let of = match value.as_ref().and_then(Bits::bytes) {
                Some(bytes) => HashedOf::Bytes(bytes.to_vec()),
                None => HashedOf::Flow(tuple, Some((reg, len))),
            };
            (of, seed)
        }
    };
    Hashed {
        ns: eval.at.ns.clone(),
        of,
        seed,
        range,
    }
}

/// A number of which each value takes the same share; a hash gives the same one ever after.
fn choose(
    eval: &Eval<'_, '_>,
    vm: &Vm<'_>,
    dreg: Reg,
    (modulus, offset): (u32, u32),
    hashed: Option<&Hashed>,
) -> Did {
    let Some(walk) = vm.walk.as_ref() else {
        return Did::Blind(NO_CHAIN.to_owned());
    };
    if modulus == 0 || size(modulus) > eval.cx.limits.branches {
        return Did::Blind(format!("forks into {modulus} ways"));
    }
    let share = 1.0 / f64::from(modulus);
    let way = |number: u32| {
        let mut regs = walk.regs.clone();
        let number = offset.wrapping_add(number);
        regs.store(dreg, &Bits::host32(Some(number)));
        (share, regs, hashed.map(|hashed| (hashed.clone(), number)))
    };
    Did::Choose((0..modulus).map(way).collect())
}

fn look_up<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &mut Vm<'a>,
    name: &str,
    sreg: Reg,
    dreg: Option<Reg>,
    inverted: bool,
) -> Did {
    let Some(walk) = vm.walk.as_mut() else {
        return Did::Blind(NO_CHAIN.to_owned());
    };
    let table = walk.base.table;
    let lacking = |why: String| match dreg {
        // What a map leads to can't be tried both ways.
        Some(_) => Did::Blind(why),
        None => Did::Doubt(why),
    };
    let Some(set) = table.sets.get(name) else {
        if table.sets_complete {
            return lacking(format!("set {name} is not in its table"));
        }
        want_set(eval, table, name, None);
        return lacking(format!("set {name} not read"));
    };
    let key = walk.regs.load(sreg, size(set.key_len));
    let place = (table.name.as_str(), name);
    match (vm.flows.changed(eval.at.ns, place, key.bytes()), dreg) {
        (None, _) => {}
        (Some(Some(there)), None) => {
            return if there == inverted {
                Did::Break
            } else {
                Did::Next
            };
        }
        _ => return lacking(format!("set {name} is changed by a rule before this one")),
    }
    let order = eval.cx.index.order(set);
    match lookup::find(set, &key, order) {
        Found::Unread => {
            let by_key = asks_by_key(set) && set.key_len > 0;
            let exact = key.bytes().filter(|_| by_key).map(<[u8]>::to_vec);
            want_set(eval, table, name, exact);
            lacking(format!("elements of set {name} not read"))
        }
        Found::Unknown(why) => lacking(why),
        Found::Absent if inverted => Did::Next,
        Found::Absent => Did::Break,
        Found::Elem(_) if inverted => Did::Break,
        Found::Elem(elem) => {
            let state = elem.exprs.iter().find(|expr| !only_counts(expr));
            if let Some(state) = state {
                let state = state.name();
                return lacking(format!(
                    "the element found in set {name} has a {state} of its own"
                ));
            }
            walk.elements.push(Evidence::SetElement {
                set: name.to_owned(),
                text: text_set::element(set, elem),
            });
            found(vm, dreg, elem)
        }
    }
}

/// A stateful object of kind NFT_OBJECT_* of which nothing else is known.
fn idle_object(name: &str, kind: u32) -> Did {
    match kind {
        // counter, conntrack helper, timeout, secmark, expectation.
        1 | 3 | 7 | 8 | 9 => Did::Next,
        // quota, limit, connlimit.
        2 | 4 | 5 => Did::Doubt(format!("state of object {name} is not known")),
        _ => Did::Blind(format!("object {name} of type {kind} is not evaluated")),
    }
}

fn found(vm: &mut Vm<'_>, dreg: Option<Reg>, elem: &SetElem) -> Did {
    match (&elem.data, dreg) {
        (Some(SetData::Verdict(verdict)), Some(_)) => Did::Verdict(verdict.clone()),
        (Some(SetData::Value(value)), Some(dreg)) => {
            if let Some(walk) = vm.walk.as_mut() {
                walk.regs.store(dreg, &Bits::known(value.clone()));
            }
            Did::Next
        }
        (None, Some(_)) => Did::Blind("the element of the map has no data".to_owned()),
        (_, None) => Did::Next,
    }
}
