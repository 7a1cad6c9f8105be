//! Whether a namespace tracks connections at all.

use crate::model::Section;
use crate::model::netfilter::{Expr, Family};
use crate::model::netns::NetNs;
use crate::model::xtables::{RareMatch, RareTarget, XtMatch, XtTarget};
use crate::simulate::Cx;

/// Whether connections of a family are tracked in a namespace: the kernel hooks conntrack in with the
/// first rule that needs it (`nf_ct_netns_get()`). Where rules were not all read it is taken to be
/// so; a rule that would show the difference would itself be the reason for tracking.
pub(crate) fn is_active<'a>(cx: &mut Cx<'a>, ns: &'a NetNs, v6: bool) -> bool {
    cx.index.tracks(ns, v6, || any_needs_ct(ns, v6))
}

fn any_needs_ct(ns: &NetNs, v6: bool) -> bool {
    if let Some(sysctls) = ns.sysctls.known()
        && sysctls.nf_conntrack_max == Section::Known(None)
    {
        return false;
    }
    [&ns.nft, &ns.legacy].into_iter().any(|section| {
        let Some(rules) = section.known() else {
            return true;
        };
        let tables = rules.tables.iter();
        let mut ours = tables.filter(|table| applies(table.family, v6));
        ours.any(|table| {
            !table.chains_complete
                || table.chains.values().any(|chain| match &chain.rules {
                    Section::Known(rules) => rules.iter().flat_map(|r| &r.exprs).any(needs_ct),
                    Section::NotAsked | Section::Missing(_) => true,
                })
        })
    })
}

fn applies(family: Family, v6: bool) -> bool {
    match family {
        Family::Inet => true,
        Family::Ip => !v6,
        Family::Ip6 => v6,
        Family::Arp | Family::Netdev | Family::Bridge => false,
    }
}

fn needs_ct(expr: &Expr) -> bool {
    match expr {
        Expr::Ct { .. }
        | Expr::CtSet { .. }
        | Expr::Nat { .. }
        | Expr::Masq { .. }
        | Expr::Redir { .. }
        | Expr::FlowOffload(_)
        | Expr::Connlimit { .. }
        | Expr::Synproxy { .. }
        | Expr::Match(XtMatch::Conntrack(_) | XtMatch::Connmark { .. })
        | Expr::Target(
            XtTarget::Dnat(_)
            | XtTarget::Snat(_)
            | XtTarget::Masquerade(_)
            | XtTarget::Redirect(_)
            | XtTarget::Netmap(_)
            | XtTarget::Connmark { .. }
            | XtTarget::Ct(_),
        ) => true,
        Expr::Match(XtMatch::Rare(rare)) => matches!(
            **rare,
            RareMatch::Connbytes { .. }
                | RareMatch::Connlabel { .. }
                | RareMatch::Connlimit { .. }
                | RareMatch::Cluster { .. }
                | RareMatch::Helper { .. }
        ),
        Expr::Target(XtTarget::Rare(rare)) => matches!(
            **rare,
            RareTarget::Connsecmark(_) | RareTarget::Synproxy { .. } | RareTarget::Clusterip { .. }
        ),
        // connlimit 5, helper 3, timeout 7, expectation 9.
        Expr::Objref { kind, .. } => matches!(kind, 3 | 5 | 7 | 9),
        Expr::Match(XtMatch::Other { name, .. }) | Expr::Other { name, .. } => {
            name.starts_with("conn") || name == "helper" || name == "synproxy"
        }
        _ => false,
    }
}
