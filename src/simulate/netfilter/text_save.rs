//! Whole tables in the words of `iptables-save -c`.
//!
//! Source: iptables 1.8.9, as far as its output tells.

use super::text_iptables;
use crate::model::Section;
use crate::model::netfilter::{
    Backend, BaseChain, Chain, ChainKind, Expr, Family, Hook, Policy, Rule, Ruleset, Table,
};

/// Tables of one backend and family, one line to an entry of the result. Tables that `iptables` did not make
/// and rules that it has no words for stand in comments, by name.
pub fn iptables_save(ruleset: &Ruleset, backend: Backend, family: Family) -> Vec<String> {
    let tables = ruleset.tables.iter();
    let own = tables.filter(|table| table.backend == backend && table.family == family);
    let mut own: Vec<&Table> = own.collect();
    if backend == Backend::Nft {
        // iptables-nft has an order of its own; tables that are not its own come last.
        let order = ["mangle", "security", "raw", "filter", "nat"];
        own.sort_by_key(|table| {
            let place = order.iter().position(|name| *name == table.name);
            place.unwrap_or(order.len())
        });
    }
    own.into_iter().flat_map(table).collect()
}

/// Whether `iptables` knows a table: its name, and where its base chains stand.
pub(super) fn is_known(table: &Table) -> bool {
    let mut bases = table
        .chains
        .values()
        .filter_map(|chain| Some((chain, chain.base.as_ref()?)));
    let own_name = ["filter", "nat", "mangle", "raw", "security"].contains(&table.name.as_str());
    own_name
        && matches!(table.family, Family::Ip | Family::Ip6)
        && bases.all(|(chain, base)| is_built_in(&table.name, chain, base))
}

/// Whether a table reads best as `iptables-save` prints it: `iptables` made it, or could have.
pub fn is_iptables(table: &Table) -> bool {
    let known = |chain: &Chain| {
        let rules = chain.rules.known().into_iter().flatten();
        rules
            .clone()
            .all(|rule| text_iptables::rule(rule, table.family).is_some())
    };
    table.backend == Backend::Legacy || is_known(table) && table.chains.values().all(known)
}

/// Hooks of a table that `iptables` makes.
fn hooks(table: &str) -> &'static [Hook] {
    match table {
        "filter" | "security" => &[Hook::Input, Hook::Forward, Hook::Output],
        "nat" => &[
            Hook::Prerouting,
            Hook::Input,
            Hook::Output,
            Hook::Postrouting,
        ],
        "raw" => &[Hook::Prerouting, Hook::Output],
        _ => &[
            Hook::Prerouting,
            Hook::Input,
            Hook::Forward,
            Hook::Output,
            Hook::Postrouting,
        ],
    }
}

fn is_built_in(table: &str, chain: &Chain, base: &BaseChain) -> bool {
    let (priority, kind) = match (table, base.hook) {
        ("nat", Hook::Prerouting | Hook::Output) => (-100, ChainKind::Nat),
        ("nat", _) => (100, ChainKind::Nat),
        ("mangle", Hook::Output) => (-150, ChainKind::Route),
        ("mangle", _) => (-150, ChainKind::Filter),
        ("raw", _) => (-300, ChainKind::Filter),
        ("security", _) => (50, ChainKind::Filter),
        _ => (0, ChainKind::Filter),
    };
    hooks(table).contains(&base.hook)
        && chain.name == base.hook.name().to_ascii_uppercase()
        && base.kind == kind
        && base.priority == priority
        && base.devices.is_empty()
}

fn table(table: &Table) -> Vec<String> {
    let name = &table.name;
    if table.backend == Backend::Nft && !is_known(table) {
        return vec![format!("# table `{name}' is incompatible, use 'nft' tool")];
    }
    let mut lines = vec![format!("*{name}")];
    // Base chains come first, in the order of the hooks; those that are not there are shown as if they were.
    let base = |hook: &Hook| {
        let own = |chain: &&Chain| chain.base.as_ref().is_some_and(|base| base.hook == *hook);
        (*hook, table.chains.values().find(own))
    };
    let bases: Vec<(Hook, Option<&Chain>)> = hooks(name).iter().map(base).collect();
    let complete = table.backend == Backend::Nft && table.chains_complete;
    for (hook, chain) in &bases {
        let own = hook.name().to_ascii_uppercase();
        match chain.and_then(|chain| chain.base.as_ref()) {
            None if !complete => {}
            None => lines.push(format!(":{own} ACCEPT [0:0]")),
            Some(base) => {
                let policy = match base.policy {
                    Policy::Accept => "ACCEPT",
                    Policy::Drop => "DROP",
                };
                let count = base.counters.unwrap_or_default();
                lines.push(format!(
                    ":{own} {policy} [{}:{}]",
                    count.packets, count.bytes
                ));
            }
        }
    }
    let others = table.chains.values().filter(|own| own.base.is_none());
    lines.extend(others.clone().map(|own| format!(":{} - [0:0]", own.name)));
    let chains = bases
        .into_iter()
        .filter_map(|(_, chain)| chain)
        .chain(others);
    let chains: Vec<&Chain> = chains.collect();
    for chain in &chains {
        match &chain.rules {
            Section::Known(rules) => {
                lines.extend(rules.iter().map(|own| rule(table, chain, own)));
            }
            Section::Missing(why) => {
                lines.push(format!("# lost: chain {}: {why}", chain.name));
            }
            Section::NotAsked => lines.push(format!("# lost: chain {}: not read", chain.name)),
        }
    }
    if !table.chains_complete {
        lines.push("# lost: chains that were not read".to_owned());
    }
    lines.push("COMMIT".to_owned());
    lines
}

fn rule(table: &Table, chain: &Chain, rule: &Rule) -> String {
    let name = &chain.name;
    let Some(text) = text_iptables::rule(rule, table.family) else {
        let text = super::text::nft(rule, Some(table)).0;
        let word = match table.backend {
            Backend::Nft => "handle",
            Backend::Legacy => "rule",
        };
        return format!(
            "# lost: {word} {} of chain {name}: iptables has no words for it: {text}",
            rule.handle
        );
    };
    let count = rule.exprs.iter().find_map(|expr| match expr {
        Expr::Counter(count) => Some(*count),
        _ => None,
    });
    let count = count.unwrap_or_default();
    let space = if text.is_empty() { "" } else { " " };
    format!("[{}:{}] -A {name}{space}{text}", count.packets, count.bytes)
}
