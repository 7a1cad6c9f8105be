//! x_tables targets that few rule sets have.
//!
//! Source: net/netfilter/xt_*.c, net/ipv4/netfilter/ipt_*.c (v6.12).

use super::chain::Did;
use super::machine::Vm;
use super::step::{note_written, set_mark};
use crate::model::netfilter::Rule;
use crate::model::packet::L4;
use crate::model::xtables::RareTarget;

/// Whether a target neither changes what later rules see nor ends the chain: it logs, counts, copies, or
/// changes what no rule is known to ask.
pub(super) fn decides_nothing(target: &RareTarget) -> bool {
    match target {
        RareTarget::Audit(_)
        | RareTarget::Checksum(_)
        | RareTarget::Classify(_)
        | RareTarget::Connsecmark(_)
        | RareTarget::Idletimer { .. }
        | RareTarget::Led { .. }
        | RareTarget::Log { .. }
        | RareTarget::Nflog { .. }
        | RareTarget::Rateest { .. }
        | RareTarget::Secmark { .. }
        | RareTarget::Tcpoptstrip(_)
        | RareTarget::Tee { .. }
        | RareTarget::Trace => true,
        RareTarget::Clusterip { .. }
        | RareTarget::Dscp(_)
        | RareTarget::Ecn { .. }
        | RareTarget::Hmark { .. }
        | RareTarget::Npt { .. }
        | RareTarget::Synproxy { .. }
        | RareTarget::Tos { .. }
        | RareTarget::Ttl { .. } => false,
    }
}

/// Runs one.
pub(super) fn eval(vm: &mut Vm<'_>, rule: &Rule, target: &RareTarget) -> Did {
    let before = vm.skb.packet.clone();
    let did = run(vm, rule, target);
    note_written(vm, rule, &before);
    did
}

fn run(vm: &mut Vm<'_>, rule: &Rule, target: &RareTarget) -> Did {
    let packet = &mut vm.skb.packet;
    match target {
        RareTarget::Dscp(dscp) => packet.tos = packet.tos & 3 | dscp << 2,
        RareTarget::Tos { value, mask } => packet.tos = packet.tos & !mask ^ value,
        RareTarget::Ttl { mode, value, .. } => {
            packet.ttl = match mode {
                0 => *value,
                1 => packet.ttl.saturating_add(*value),
                2 => packet.ttl.saturating_sub(*value),
                other => return Did::Blind(format!("TTL mode {other}")),
            };
        }
        RareTarget::Ecn {
            operation,
            ect,
            tcp,
        } => {
            if operation & 1 != 0 {
                packet.tos = packet.tos & !3 | ect & 3;
            }
            if let L4::Tcp { flags, .. } = &mut packet.l4 {
                // ECE is 0x40 and CWR 0x80 in the header, 1 and 2 in the rule.
                let set = (operation & 0x30) << 2;
                *flags = *flags & !set | tcp << 6 & set;
            }
        }
        RareTarget::Hmark { .. } => set_mark(vm, rule, None),
        RareTarget::Npt { .. } => {
            return Did::Blind("replaces a prefix without a memory".to_owned());
        }
        RareTarget::Synproxy { .. } => {
            return Did::Blind("answered in place of the server".to_owned());
        }
        RareTarget::Clusterip { .. } => {
            return Did::Blind("which node of a cluster takes it".to_owned());
        }
        _ => {}
    }
    Did::Next
}
