//! Packets that are handed to a program. Its verdict is unknown; what happens where no program listens is not.
//!
//! Source: `nf_queue()`, net/netfilter/nf_queue.c; `nfqnl_enqueue_packet()`, net/netfilter/nfnetlink_queue.c;
//! `nfqueue_tg_v3()`, net/netfilter/xt_NFQUEUE.c (v6.12).

use super::chain::Did;
use super::machine::{Eval, Vm};
use super::step::note;
use crate::model::netfilter::{Rule, Verdict};
use crate::model::nfqueue;
use crate::simulate::fib::section;
use crate::trace::Evidence;

/// Queues `num` to `num + total - 1`, of which the packet's hash or CPU chooses one.
pub(super) fn hand_over(
    eval: &mut Eval<'_, '_>,
    vm: &mut Vm<'_>,
    rule: &Rule,
    (num, total): (u16, u16),
    bypass: bool,
) -> Did {
    let last = num.saturating_add(total.saturating_sub(1));
    let queues = match section(
        eval.cx,
        eval.at.ns,
        &eval.ns.nfqueues,
        "programs behind queues",
    ) {
        Ok(queues) => queues,
        Err(why) => return Did::Blind(why),
    };
    let mut listening = queues
        .iter()
        .filter(|queue| (num..=last).contains(&queue.num));
    if let Some(queue) = listening.next() {
        return Did::Blind(format!(
            "handed to the program that listens on queue {} (netlink port {}, most likely its process id)",
            queue.num, queue.portid
        ));
    }
    if bypass {
        let bypassed = format!(
            "no program listens on {}: passed by",
            nfqueue::range(num, last)
        );
        note(vm, rule, bypassed, Vec::new());
        return Did::Verdict(Verdict::Accept);
    }
    if let Some(walk) = vm.walk.as_mut() {
        walk.elements.push(Evidence::UnheardQueue { num, last });
    }
    Did::Verdict(Verdict::Drop)
}
