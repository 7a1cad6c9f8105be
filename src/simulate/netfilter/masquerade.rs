//! Masqueraded connections, which belong to the device that they left by first.
//!
//! Read first: `nf_nat_oif_changed()`, net/netfilter/nf_nat_core.c; `nf_nat_masquerade_ipv4()`, nf_nat_masquerade.c (v6.12).

use super::machine::Eval;
use crate::model::IfIndex;
use crate::model::conntrack::status;
use crate::model::netfilter::Expr;
use crate::model::netns::NetNs;
use crate::model::xtables::XtTarget;
use crate::simulate::skb::FlowEntry;

/// Why a connection is dropped and forgotten that was masqueraded for another device than it leaves by now
/// (`nf_nat_oif_changed()`). `Err`: the entry was read, and does not tell.
pub(super) fn leaves_elsewhere(
    eval: &Eval<'_, '_>,
    flow: &FlowEntry,
) -> Result<Option<String>, String> {
    let Some(out) = eval.at.devices.oif else {
        return Ok(None);
    };
    let name = |dev: IfIndex| {
        let link = eval.ns.link(dev);
        link.map_or_else(|| format!("if{dev}"), |link| link.name.clone())
    };
    if let Some(dev) = flow.masqueraded.filter(|dev| *dev != out) {
        return Ok(Some(format!(
            "the connection was masqueraded for {}, and leaves by {} now: it is dropped and forgotten",
            name(dev),
            name(out)
        )));
    }
    let given = flow.entry.reply.dst;
    // Also where only a port was given.
    if !flow.existing || flow.entry.status & status::SRC_NAT == 0 {
        return Ok(None);
    }
    let addrs = eval.ns.addrs.known().into_iter().flatten();
    let holders: Vec<IfIndex> = addrs
        .filter(|addr| addr.local == given)
        .map(|addr| addr.link)
        .collect();
    match holders.first() {
        Some(dev) if !holders.contains(&out) && masquerades(eval.ns) => Err(format!(
            "whether the connection that conntrack has was masqueraded for {} is not told: by {}, it would be dropped then",
            name(*dev),
            name(out)
        )),
        _ => Ok(None),
    }
}

/// Whether any rule masquerades.
fn masquerades(ns: &NetNs) -> bool {
    let rulesets = ns.nft.known().into_iter().chain(ns.legacy.known());
    let tables = rulesets.flat_map(|ruleset| &ruleset.tables);
    let mut rules = tables
        .flat_map(|table| table.chains.values())
        .filter_map(|chain| chain.rules.known())
        .flatten();
    rules.any(|rule| {
        rule.exprs.iter().any(|expr| match expr {
            Expr::Masq { .. } => true,
            Expr::Target(target) => matches!(target, XtTarget::Masquerade(_)),
            _ => false,
        })
    })
}
