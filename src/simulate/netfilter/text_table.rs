//! Whole tables in the words of `nft list ruleset`, so that `nft -f` makes the same tables of them.

use super::text;
use super::text_set;
use super::text_statement;
use super::text_value::quoted;
use crate::model::Section;
use crate::model::netfilter::{
    BaseChain, Chain, ChainKind, Expr, Flowtable, ObjectState, Policy, Rule, Ruleset, Table,
};

/// Tables of nf_tables, one line to an entry of the result. What can't be said so that `nft` makes the same
/// of it stands in a comment before it, by name.
pub fn nft_ruleset<'a>(ruleset: &'a Ruleset, only: impl Fn(&Table) -> bool + 'a) -> Vec<String> {
    let tables = ruleset.tables.iter().filter(move |table| only(table));
    tables.flat_map(table).collect()
}

fn table(table: &Table) -> Vec<String> {
    let mut lines = vec![format!("table {} {} {{", table.family.name(), table.name)];
    if let Some(comment) = &table.comment {
        lines.push(format!("  comment {}", quoted(comment)));
    }
    if table.dormant {
        lines.push("  flags dormant".to_owned());
    }
    for object in &table.objects {
        match text_statement::object(&object.state) {
            None => lines.push(format!(
                "  # lost: object {}: nft has no words for its type",
                object.name
            )),
            Some((kind, inside)) => {
                let sealed = inside.ends_with(';');
                lines.push(format!("  {kind} {} {{", object.name));
                if let Some(comment) = &object.comment {
                    lines.push(format!("    comment {}", quoted(comment)));
                }
                let secmark = matches!(object.state, ObjectState::Secmark(_));
                let end = if sealed || !secmark { "" } else { ";" };
                lines.push(format!("    {inside}{end}"));
                lines.push("  }".to_owned());
            }
        }
    }
    for set in table.sets.values().filter(|set| !set.flags.anonymous) {
        let kind = if set.flags.map || set.flags.object {
            "map"
        } else {
            "set"
        };
        let (inside, lost) = text_set::declaration(set);
        lines.extend(
            lost.iter()
                .map(|what| format!("  # lost: {kind} {}: {what}", set.name)),
        );
        // Without words for its types `nft` would refuse the whole table.
        let hidden = if text_set::has_types(set) { "" } else { "# " };
        lines.push(format!("  {hidden}{kind} {} {{", set.name));
        let inside = inside.iter().flat_map(|line| line.split('\n'));
        lines.extend(inside.map(|line| format!("  {hidden}  {line}")));
        lines.push(format!("  {hidden}}}"));
    }
    if !table.sets_complete {
        lines.push("  # lost: sets that were not read".to_owned());
    }
    for (name, flowtable) in &table.flowtables {
        lines.extend(flowtable_lines(name, flowtable));
    }
    for chain in table.chains.values().filter(|chain| !chain.bound) {
        lines.extend(chain_lines(table, chain));
    }
    if !table.chains_complete {
        lines.push("  # lost: chains that were not read".to_owned());
    }
    lines.push("}".to_owned());
    lines
}

fn flowtable_lines(name: &str, flowtable: &Flowtable) -> Vec<String> {
    let mut lines = vec![
        format!("  flowtable {name} {{"),
        format!("    hook ingress priority {}", flowtable.priority),
    ];
    if !flowtable.devices.is_empty() {
        let devices: Vec<String> = flowtable.devices.iter().map(|name| quoted(name)).collect();
        lines.push(format!("    devices = {{ {} }}", devices.join(", ")));
    }
    if flowtable.flags & 1 != 0 {
        lines.push("    flags offload;".to_owned());
    }
    if flowtable.flags & 2 != 0 {
        lines.push("    counter".to_owned());
    }
    lines.push("  }".to_owned());
    lines
}

fn chain_lines(table: &Table, chain: &Chain) -> Vec<String> {
    let mut lines = vec![format!("  chain {} {{", chain.name)];
    if let Some(comment) = &chain.comment {
        lines.push(format!("    comment {}", quoted(comment)));
    }
    if let Some(base) = &chain.base {
        lines.push(format!("    {}", base_line(base)));
    }
    match &chain.rules {
        Section::Known(rules) => {
            for rule in rules {
                let (text, mut lost) = text::nft(rule, Some(table));
                lost.extend(unsaid(table, rule).map(|set| format!("set {set} is lost")));
                if lost.is_empty() {
                    lines.push(format!("    {text}"));
                } else {
                    // A rule that says less than it means must not be loaded.
                    let why = lost.join(", ");
                    lines.push(format!("    # lost: handle {}: {why}: {text}", rule.handle));
                }
            }
        }
        Section::Missing(why) => lines.push(format!("    # lost: could not be read: {why}")),
        Section::NotAsked => lines.push("    # lost: not read".to_owned()),
    }
    lines.push("  }".to_owned());
    lines
}

/// Sets that a rule names and that have no words.
fn unsaid<'a>(table: &'a Table, rule: &'a Rule) -> impl Iterator<Item = &'a str> {
    let named = rule.exprs.iter().filter_map(|expr| match expr {
        Expr::Lookup { set, .. } | Expr::Dynset { set, .. } | Expr::ObjrefMap { set, .. } => {
            table.sets.get(set)
        }
        _ => None,
    });
    let lost = named.filter(|set| !set.flags.anonymous && !text_set::has_types(set));
    lost.map(|set| set.name.as_str())
}

/// `type filter hook input priority 0; policy accept;`
fn base_line(base: &BaseChain) -> String {
    let kind = match base.kind {
        ChainKind::Filter => "filter",
        ChainKind::Nat => "nat",
        ChainKind::Route => "route",
    };
    let devices = match base.devices.as_slice() {
        [] => String::new(),
        [one] => format!(" device {}", quoted(one)),
        many => {
            let names: Vec<String> = many.iter().map(|name| quoted(name)).collect();
            format!(" devices = {{ {} }}", names.join(", "))
        }
    };
    let policy = match base.policy {
        Policy::Accept => "accept",
        Policy::Drop => "drop",
    };
    format!(
        "type {kind} hook {}{devices} priority {}; policy {policy};",
        base.hook.name(),
        base.priority
    )
}
