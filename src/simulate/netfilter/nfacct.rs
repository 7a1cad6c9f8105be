//! The `nfacct` match: counters with names, and their quotas.
//!
//! Source: `nfacct_mt()`, net/netfilter/xt_nfacct.c; `nfnl_acct_update()`, `nfnl_acct_overquota()`,
//! net/netfilter/nfnetlink_acct.c (v6.12).

use super::bits::Tri;
use super::machine::{Eval, Vm};
use crate::model::Section;
use crate::model::nfacct::{NfAcct, NfAcctQuota};

/// Objects of kube-proxy: they count, without quota.
const PROXYS_OBJECTS: [&str; 2] = [
    "ct_state_invalid_dropped_pkts",
    "localhost_nps_accepted_pkts",
];
/// Bytes that others may send between reading and packet.
const MARGIN_BYTES: u64 = 1 << 20;
/// And packets.
const MARGIN_PACKETS: u64 = 1000;

/// Counts the packet; matches where the counter has no quota, or is above it then.
pub(super) fn matches(eval: &mut Eval<'_, '_>, vm: &mut Vm<'_>, name: &str) -> Tri {
    let unknown = |why: &str| Tri::Unknown(format!("nfacct {name}: {why}"));
    let counters = match &eval.ns.nfacct {
        Section::Known(counters) => counters,
        _ if PROXYS_OBJECTS.contains(&name) => return Tri::Yes,
        Section::Missing(why) => return unknown(why),
        Section::NotAsked => {
            eval.cx.want_netns(eval.at.ns);
            return unknown("its counter was not read");
        }
    };
    let Some(counter) = counters.iter().find(|counter| counter.name == name) else {
        return unknown("its counter was not found");
    };
    let Some(quota) = counter.quota else {
        return Tri::Yes;
    };
    let place = format!("nfacct {name}");
    let own = match (quota.of_bytes, vm.skb.sized) {
        (false, _) => Some(1),
        (true, true) => Some(u64::from(vm.skb.packet.len)),
        (true, false) => None,
    };
    let spent = vm.flows.spent(eval.at.ns, &place);
    let answer = above(counter, quota, spent, own);
    vm.flows.spend(eval.at.ns, place, own.unwrap_or_default());
    Tri::from_option(answer, || {
        format!("nfacct {name}: whether its quota is used up by then is not known")
    })
}

/// Whether the counter is above its quota once it has counted so much more. Others only ever add to it, but for
/// somebody who sets it back, which quotas are not made for.
fn above(counter: &NfAcct, quota: NfAcctQuota, spent: u64, own: Option<u64>) -> Option<bool> {
    let (read, margin) = if quota.of_bytes {
        (counter.bytes, MARGIN_BYTES)
    } else {
        (counter.packets, MARGIN_PACKETS)
    };
    let before = read.saturating_add(spent);
    if before.saturating_add(own.unwrap_or_default()) > quota.most {
        return Some(true);
    }
    (before.saturating_add(own?).saturating_add(margin) <= quota.most).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_above_once_more_was_counted() {
        let counter = NfAcct {
            name: "all".to_owned(),
            packets: 10,
            bytes: 5000,
            quota: None,
        };
        let ask = |of_bytes, most, spent, own| {
            above(&counter, NfAcctQuota { of_bytes, most }, spent, own)
        };
        // now > quota, the packet itself being counted
        assert_eq!(ask(false, 10, 0, Some(1)), Some(true));
        assert_eq!(ask(false, 12, 2, Some(1)), Some(true));
        // Others may come between.
        assert_eq!(ask(false, 11, 0, Some(1)), None);
        assert_eq!(ask(false, 11 + MARGIN_PACKETS, 0, Some(1)), Some(false));
        assert_eq!(ask(true, 4999, 0, None), Some(true));
        assert_eq!(ask(true, 1 << 30, 0, None), None);
        assert_eq!(ask(true, 1 << 30, 0, Some(1500)), Some(false));
    }
}
