//! Rules of netfilter in the words of the programs that made them.

use netpath::model::netfilter::{Backend, Expr, Family, Ruleset, Table};
use netpath::model::netns::NetNs;
use netpath::simulate::{iptables_save, is_iptables, nft_ruleset};

use crate::cli::RuleSyntax;

/// All rules, each table as its own program prints it, under headings.
pub fn all(ns: &NetNs) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(rules) = ns.nft.known() {
        for (family, name) in [(Family::Ip, "iptables"), (Family::Ip6, "ip6tables")] {
            let own = rules.tables.iter();
            let own = own.filter(|table| table.family == family && is_iptables(table));
            let own = Ruleset {
                generation: None,
                tables: own.cloned().collect(),
            };
            let saved = iptables_save(&own, Backend::Nft, family);
            push(
                &mut lines,
                &format!("nf_tables, in the words of {name}-save"),
                saved,
            );
        }
        let native = nft_ruleset(rules, |table| !is_iptables(table));
        push(&mut lines, "nf_tables, in the words of nft", native);
    }
    if let Some(rules) = ns.legacy.known() {
        for (family, name) in [(Family::Ip, "iptables"), (Family::Ip6, "ip6tables")] {
            let saved = iptables_save(rules, Backend::Legacy, family);
            let heading = format!("x_tables, in the words of {name}-legacy-save");
            push(&mut lines, &heading, saved);
        }
    }
    lines
}

fn push(lines: &mut Vec<String>, heading: &str, own: Vec<String>) {
    if !own.is_empty() {
        lines.push(format!("# {heading}"));
        lines.extend(own);
    }
}

/// The rules that one program prints, in its words alone.
pub fn only(ns: &NetNs, syntax: RuleSyntax) -> Vec<String> {
    let (rules, backend, family) = match syntax {
        RuleSyntax::IptablesSave => (&ns.nft, Backend::Nft, Family::Ip),
        RuleSyntax::Ip6tablesSave => (&ns.nft, Backend::Nft, Family::Ip6),
        RuleSyntax::IptablesLegacySave => (&ns.legacy, Backend::Legacy, Family::Ip),
        RuleSyntax::Ip6tablesLegacySave => (&ns.legacy, Backend::Legacy, Family::Ip6),
        RuleSyntax::Nft => return ns.nft.known().map(nft).unwrap_or_default(),
    };
    let rules = rules.known();
    rules.map_or_else(Vec::new, |rules| iptables_save(rules, backend, family))
}

/// Tables without matches and targets of x_tables; the others are named.
fn nft(rules: &Ruleset) -> Vec<String> {
    let mixed = rules.tables.iter().filter(|table| has_xtables(table));
    let mut lines: Vec<String> = mixed
        .map(|table| {
            let (family, name) = (table.family.name(), &table.name);
            let six = if table.family == Family::Ip6 { "6" } else { "" };
            format!(
                "# lost: table {family} {name}: iptables made it, use --syntax ip{six}tables-save"
            )
        })
        .collect();
    lines.extend(nft_ruleset(rules, |table| !has_xtables(table)));
    lines
}

fn has_xtables(table: &Table) -> bool {
    let rules = table
        .chains
        .values()
        .filter_map(|chain| chain.rules.known());
    let mut exprs = rules.flatten().flat_map(|rule| &rule.exprs);
    exprs.any(|expr| matches!(expr, Expr::Match(_) | Expr::Target(_)))
}
