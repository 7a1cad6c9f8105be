//! x_tables targets.
//!
//! Source: net/netfilter/xt_*.c (v6.12).

use super::chain::Did;
use super::machine::{Eval, Vm};
use super::nat::{self, Range};
use super::step::{note, set_mark};
use super::{ct, ipset, queue, reject, tproxy};
use crate::model::netfilter::{Hook, Rule};
use crate::model::xtables::XtTarget;
use crate::simulate::conntrack::Manip;
use crate::simulate::skb::CtRef;

/// Runs one target.
pub(super) fn eval<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &mut Vm<'a>,
    rule: &'a Rule,
    target: &'a XtTarget,
) -> Did {
    match target {
        XtTarget::Standard(verdict) => Did::Verdict(verdict.clone()),
        XtTarget::Dnat(range) => {
            nat::to_range(eval, vm, Manip::Dst, Range::from(*range), "dnat to")
        }
        XtTarget::Snat(range) => {
            nat::to_range(eval, vm, Manip::Src, Range::from(*range), "snat to")
        }
        XtTarget::Masquerade(range) => nat::masquerade(eval, vm, Range::from(*range)),
        XtTarget::Redirect(range) => nat::redirect(eval, vm, Range::from(*range)),
        XtTarget::Netmap(range) => {
            let manip = match eval.at.hook {
                Hook::Prerouting | Hook::Output => Manip::Dst,
                _ => Manip::Src,
            };
            let mut range = Range::from(*range);
            range.flags |= 64;
            nat::to_range(eval, vm, manip, range, "netmap to")
        }
        XtTarget::Mark { mark, mask } => {
            let new = match vm.skb.mark {
                _ if *mask == u32::MAX => Some(*mark),
                own => own.map(|own| own & !mask ^ mark),
            };
            set_mark(vm, rule, new);
            Did::Next
        }
        XtTarget::Connmark {
            mode,
            ctmark,
            ctmask,
            nfmask,
        } => connmark(eval, vm, rule, *mode, (*ctmark, *ctmask, *nfmask)),
        XtTarget::Reject { with, v6 } => reject::xt(&vm.skb.packet, *with, *v6),
        XtTarget::Log(_) | XtTarget::Nop(_) | XtTarget::Tcpmss(_) => Did::Next,
        XtTarget::Ct { notrack, zone } => {
            if vm.skb.ct != CtRef::None {
                return Did::Next;
            }
            if *zone != 0 {
                return Did::Blind(format!("puts the connection in zone {zone}"));
            }
            if *notrack {
                vm.skb.ct = CtRef::Untracked;
                note(vm, rule, "not tracked".to_owned(), Vec::new());
            }
            Did::Next
        }
        XtTarget::Set(set) => ipset::target(eval, vm, rule, set),
        XtTarget::Tproxy { mark, addr, port } => tproxy::xt(eval, vm, rule, *mark, (*addr, *port)),
        XtTarget::Queue { num, total, bypass } => {
            queue::hand_over(eval, vm, rule, (*num, *total), *bypass)
        }
        XtTarget::Other { name, data, .. } if header(vm, name, data) => Did::Next,
        XtTarget::Other { name, .. } => {
            Did::Blind(format!("target {name} is not known to this program"))
        }
    }
}

/// Targets that rewrite the IP header; false for others.
///
/// Source: `struct ipt_TTL_info`, `struct xt_DSCP_info`, `struct xt_tos_target_info`.
fn header(vm: &mut Vm<'_>, name: &str, data: &[u8]) -> bool {
    let packet = &mut vm.skb.packet;
    match (name, data) {
        ("TTL" | "HL", [0, value, ..]) => packet.ttl = *value,
        ("TTL" | "HL", [1, value, ..]) => packet.ttl = packet.ttl.saturating_add(*value),
        ("TTL" | "HL", [2, value, ..]) => packet.ttl = packet.ttl.saturating_sub(*value),
        ("DSCP", [dscp, ..]) => packet.tos = packet.tos & 3 | dscp << 2,
        ("TOS", [value, mask, ..]) => packet.tos = packet.tos & !mask ^ value,
        _ => return false,
    }
    true
}

/// `connmark_tg_shift()` without shifts.
fn connmark(
    eval: &Eval<'_, '_>,
    vm: &mut Vm<'_>,
    rule: &Rule,
    mode: u8,
    (ctmark, ctmask, nfmask): (u32, u32, u32),
) -> Did {
    let Some(own) = ct::mark(eval, vm) else {
        return Did::Next;
    };
    match mode {
        0 => {
            let new = match own {
                _ if ctmask == u32::MAX => Some(ctmark),
                own => own.map(|own| own & !ctmask ^ ctmark),
            };
            ct::set_mark(eval, vm, rule, new);
        }
        1 => {
            let both = own.zip(vm.skb.mark);
            let new = both.map(|(own, mark)| own & !ctmask ^ (mark & nfmask));
            ct::set_mark(eval, vm, rule, new);
        }
        2 => {
            let both = own.zip(vm.skb.mark);
            let new = both.map(|(own, mark)| mark & !nfmask ^ (own & ctmask));
            set_mark(vm, rule, new);
        }
        other => return Did::Blind(format!("CONNMARK mode {other}")),
    }
    Did::Next
}
