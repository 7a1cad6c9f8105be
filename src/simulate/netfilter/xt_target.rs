//! x_tables targets.
//!
//! Source: net/netfilter/xt_*.c (v6.12).

use super::chain::Did;
use super::machine::{Eval, Vm};
use super::nat::{self, Range};
use super::step::{note, set_mark};
use super::{ct, ipset, queue, reject, tproxy, xt_rare_target};
use crate::model::netfilter::{Hook, Rule};
use crate::model::xtables::XtTarget;
use crate::simulate::conntrack::Manip;
use crate::simulate::skb::CtRef;
use crate::trace::NOT_TRACKED;

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
            shift,
        } => connmark(eval, vm, rule, *mode, (*ctmark, *ctmask, *nfmask), *shift),
        XtTarget::Reject { with, v6 } => reject::xt(&vm.skb.packet, *with, *v6),
        XtTarget::Tcpmss(_) => Did::Next,
        XtTarget::Rare(rare) => xt_rare_target::eval(vm, rule, rare),
        XtTarget::Ct(to) => {
            // Even of what was not tracked, errors have something there (`xt_ct_target()`: `_nfct`).
            if vm.skb.ct != CtRef::None || vm.skb.is_tied_error() {
                return Did::Next;
            }
            if to.notrack() {
                vm.skb.ct = CtRef::Untracked;
                note(vm, rule, NOT_TRACKED.to_owned(), Vec::new());
                return Did::Next;
            }
            let (orig, reply) = to.directions();
            if to.zone_is_mark() {
                vm.skb.ct = CtRef::ZoneOfMark { orig, reply };
                note(vm, rule, "in the zone of its mark".to_owned(), Vec::new());
            } else {
                ct::put_in_zone(vm, rule, to.zone, (orig, reply));
            }
            Did::Next
        }
        XtTarget::Set(set) => ipset::target(eval, vm, rule, set),
        XtTarget::Tproxy { mark, addr, port } => tproxy::xt(eval, vm, rule, *mark, (*addr, *port)),
        XtTarget::Queue {
            num, total, bypass, ..
        } => queue::hand_over(eval, vm, rule, (*num, *total), *bypass),
        XtTarget::Other { name, .. } => {
            Did::Blind(format!("target {name} is not known to this program"))
        }
    }
}

/// `connmark_tg_shift()`; `shift` is by how many bits to the left, or to the right where negative.
fn connmark(
    eval: &Eval<'_, '_>,
    vm: &mut Vm<'_>,
    rule: &Rule,
    mode: u8,
    (ctmark, ctmask, nfmask): (u32, u32, u32),
    shift: i16,
) -> Did {
    let shifted = |mark: u32| {
        let bits = u32::from(shift.unsigned_abs());
        let moved = if shift < 0 {
            mark.checked_shr(bits)
        } else {
            mark.checked_shl(bits)
        };
        moved.unwrap_or(0)
    };
    let Some(own) = ct::mark(eval, vm) else {
        return Did::Next;
    };
    match mode {
        0 => {
            let new = match own {
                _ if ctmask == u32::MAX => Some(ctmark),
                own => own.map(|own| own & !ctmask ^ ctmark),
            };
            let new = new.map(shifted);
            ct::set_mark(eval, vm, rule, new);
        }
        1 => {
            let both = own.zip(vm.skb.mark);
            let new = both.map(|(own, mark)| own & !ctmask ^ shifted(mark & nfmask));
            ct::set_mark(eval, vm, rule, new);
        }
        2 => {
            let both = own.zip(vm.skb.mark);
            let new = both.map(|(own, mark)| mark & !nfmask ^ shifted(own & ctmask));
            set_mark(vm, rule, new);
        }
        other => return Did::Blind(format!("CONNMARK mode {other}")),
    }
    Did::Next
}
