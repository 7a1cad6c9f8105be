//! The decoder oracle: rules that were decoded and printed again are those that the kernel's own tools print,
//! or load.

use std::fmt::Write as _;

use netpath::model::Section;
use netpath::model::netfilter::{
    Backend, Elements, Expr, Family, ObjectState, Ruleset, SetData, Table, Verdict,
};
use netpath::model::want::Depth;
use netpath::model::xtables::{XtMatch, XtTarget};
use netpath::simulate::{iptables_save, nft_ruleset};
use netpath_lab::corpus::{self, Loader, RuleSet};

use crate::ns::Ns;

/// Devices that rule sets name where the kernel looks them up.
const DEVICES: [&str; 4] = ["eth0", "cni0", "docker0", "veth0000000a"];

fn load(ns: &Ns, set: &RuleSet, loader: Loader) {
    let file = |name: &str| set.file(name).expect("the file can be read");
    for device in DEVICES {
        ns.run(&format!("ip link add {device} type bridge"));
    }
    ns.account(&file("nfacct.names").unwrap_or_default());
    if let Some(sets) = file("ipset.rules") {
        ns.feed("ipset restore", &sets);
    }
    let backend = match loader {
        Loader::Nft => {
            let text = file("ruleset.nft").expect("its rules");
            return ns.feed("nft -f -", &text);
        }
        Loader::IptablesNft => "nft",
        Loader::IptablesLegacy => "legacy",
    };
    for tool in ["iptables", "ip6tables"] {
        if let Some(rules) = file(&format!("{tool}.rules")) {
            ns.feed(&format!("{tool}-{backend}-restore"), &rules);
        }
    }
}

/// Lines without comments.
fn lines<'a>(text: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    text.filter(|line| !line.starts_with('#') && !line.is_empty())
        .collect()
}

/// What differs between the tool's lines and ours, and what of ours was lost.
fn differences(tool: &str, ours: &[String]) -> Vec<String> {
    let theirs = lines(tool.lines());
    let own = lines(ours.iter().map(String::as_str));
    let mut wrong: Vec<String> = ours
        .iter()
        .filter(|line| line.contains("# lost"))
        .cloned()
        .collect();
    if theirs != own {
        let missing = theirs.iter().filter(|line| !own.contains(line));
        let more = own.iter().filter(|line| !theirs.contains(line));
        let before = wrong.len();
        wrong.extend(missing.map(|line| format!("  tool {line}")));
        wrong.extend(more.map(|line| format!("  ours {line}")));
        if wrong.len() == before {
            wrong.push(format!("another order:\n{theirs:#?}\n{own:#?}"));
        }
    }
    wrong
}

/// Names of what was not decoded.
fn unknown(rules: &Ruleset) -> Vec<String> {
    let mut found = Vec::new();
    for table in &rules.tables {
        for chain in table.chains.values() {
            for rule in chain.rules.known().into_iter().flatten() {
                found.extend(rule.exprs.iter().filter_map(other));
            }
        }
        for set in table.sets.values() {
            found.extend(set.decl.exprs.iter().filter_map(other));
        }
        for object in &table.objects {
            if let ObjectState::Other { kind, .. } = object.state {
                found.push(format!("object of type {kind}"));
            }
        }
    }
    found
}

fn other(expr: &Expr) -> Option<String> {
    match expr {
        Expr::Other { name, .. } => Some(format!("expression {name}")),
        Expr::Match(XtMatch::Other { name, revision, .. }) => {
            Some(format!("match {name} {revision}"))
        }
        Expr::Target(XtTarget::Other { name, revision, .. }) => {
            Some(format!("target {name} {revision}"))
        }
        _ => None,
    }
}

/// Both families of a namespace beside what the tools save.
fn saved(ns: &Ns, backend: Backend) -> Vec<String> {
    let read = ns.read(Depth::Full);
    let (rules, tool) = match backend {
        Backend::Nft => (&read.nft, "nft"),
        Backend::Legacy => (&read.legacy, "legacy"),
    };
    let rules = rules
        .known()
        .unwrap_or_else(|| panic!("no rules: {:?}", rules.missing()));
    let mut wrong = unknown(rules);
    for (family, name) in [(Family::Ip, "iptables"), (Family::Ip6, "ip6tables")] {
        let theirs = ns.run(&format!("{name}-{tool}-save -c"));
        wrong.extend(differences(&theirs, &iptables_save(rules, backend, family)));
    }
    wrong
}

/// Rules without what a second loading gives anew: handles, names of sets and chains without a name of their
/// own, and how long elements live on.
fn normal(rules: &Ruleset) -> Vec<Table> {
    let mut tables = rules.tables.clone();
    for table in &mut tables {
        let mut names: Vec<(String, String)> = Vec::new();
        let mut chains = std::mem::take(&mut table.chains);
        // Chains without a name of their own are met where a rule leads to them.
        let named = chains.values().filter(|chain| !chain.bound);
        let mut queue: Vec<(String, String)> = named
            .map(|own| (own.name.clone(), own.name.clone()))
            .collect();
        while let Some((old, new)) = queue.pop() {
            let mut chain = chains.remove(&old).expect("a chain");
            chain.name.clone_from(&new);
            chain.handle = 0;
            if let Some(base) = &mut chain.base {
                base.devices.sort();
            }
            let Section::Known(own) = &mut chain.rules else {
                panic!("rules of {old}");
            };
            for (place, rule) in own.iter_mut().enumerate() {
                rule.handle = 0;
                for expr in &mut rule.exprs {
                    let name = match expr {
                        Expr::Lookup { set, .. } | Expr::ObjrefMap { set, .. } => set,
                        Expr::Verdict(Verdict::Jump(chain)) => chain,
                        _ => continue,
                    };
                    if !name.starts_with("__") {
                        continue;
                    }
                    let own = format!("of rule {place} of {new}");
                    let to = if name.starts_with("__chain") {
                        &mut queue
                    } else {
                        &mut names
                    };
                    to.push((name.clone(), own.clone()));
                    *name = own;
                }
            }
            table.chains.insert(new, chain);
        }
        for mut set in std::mem::take(&mut table.sets).into_values() {
            if let Some((_, new)) = names.iter().find(|(old, _)| *old == set.name) {
                set.name.clone_from(new);
            }
            if let Elements::Known(elements) = &mut set.elements {
                for element in elements.iter_mut() {
                    element.expires_ms = None;
                }
                let order = |data: &Option<SetData>| format!("{data:?}");
                elements.sort_by(|a, b| {
                    let both = a.key.cmp(&b.key).then(a.interval_end.cmp(&b.interval_end));
                    both.then_with(|| order(&a.data).cmp(&order(&b.data)))
                });
            }
            table.sets.insert(set.name.clone(), set);
        }
        table.objects.sort_by(|a, b| a.name.cmp(&b.name));
    }
    tables.sort_by(|a, b| (a.family, &a.name).cmp(&(b.family, &b.name)));
    tables
}

/// What a namespace's rules of nf_tables become when they are printed, loaded elsewhere and read again.
fn reloaded(ns: &Ns) -> Vec<String> {
    let read = ns.read(Depth::Full);
    let rules = read
        .nft
        .known()
        .unwrap_or_else(|| panic!("no rules: {:?}", read.nft.missing()));
    let printed = nft_ruleset(rules, |_| true);
    let mut wrong = unknown(rules);
    wrong.extend(
        printed
            .iter()
            .filter(|line| line.contains("# lost"))
            .cloned(),
    );
    let fresh = Ns::new();
    for device in DEVICES {
        fresh.run(&format!("ip link add {device} type bridge"));
    }
    let text = printed.join("\n") + "\n";
    if let Err(error) = fresh.try_feed("nft -f -", &text) {
        wrong.push(format!("nft refuses it: {error}"));
        return wrong;
    }
    let again = fresh.read(Depth::Full);
    let (first, second) = (normal(rules), normal(again.nft.known().expect("rules")));
    assert_eq!(first.len(), second.len());
    for (first, second) in first.iter().zip(&second) {
        wrong.extend(changed(first, second));
    }
    wrong
}

/// Parts of a table that differ.
fn changed(first: &Table, second: &Table) -> Vec<String> {
    let mut wrong = Vec::new();
    let place = format!("{} {}", first.family.name(), first.name);
    for (name, chain) in &first.chains {
        let Some(other) = second.chains.get(name) else {
            wrong.push(format!("{place}: chain {name} is gone"));
            continue;
        };
        let rules =
            |own: &netpath::model::netfilter::Chain| own.rules.known().cloned().unwrap_or_default();
        for (a, b) in rules(chain).iter().zip(&rules(other)) {
            if a != b {
                let text = netpath::simulate::rule_text(first, a);
                wrong.push(format!("{place} {name}: {text}\n  was {a:?}\n  now {b:?}"));
            }
        }
        if (&chain.base, &chain.comment) != (&other.base, &other.comment)
            || rules(chain).len() != rules(other).len()
        {
            wrong.push(format!(
                "{place}: chain {name} differs in its head or its length"
            ));
        }
    }
    for (name, set) in &first.sets {
        match second.sets.get(name) {
            Some(other) if other == set => {}
            other => wrong.push(format!(
                "{place}: set {name}\n  was {set:?}\n  now {other:?}"
            )),
        }
    }
    if wrong.is_empty() && first != second {
        wrong.push(format!("{place}: was {first:?}\n  now {second:?}"));
    }
    wrong
}

fn none(wrong: &[String]) {
    assert!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn the_corpus_reads_as_its_tools_print_it_or_load_it() {
    let mut wrong = Vec::new();
    for set in corpus::all().expect("the corpus") {
        for loader in set.loaders() {
            let ns = Ns::new();
            load(&ns, &set, *loader);
            let own = match loader {
                Loader::Nft => reloaded(&ns),
                Loader::IptablesNft => saved(&ns, Backend::Nft),
                Loader::IptablesLegacy => saved(&ns, Backend::Legacy),
            };
            let place = format!("{} by {}", set.name, loader.name());
            wrong.extend(own.into_iter().map(|what| format!("{place}:\n{what}")));
        }
    }
    none(&wrong);
}

/// Rules of one table and chain: `TABLE[:CHAIN] RULE`. Without a chain, one that nothing leads to.
fn restore_text(rules: &str) -> String {
    let mut text = String::new();
    for table in ["raw", "mangle", "nat", "filter"] {
        let _ = writeln!(text, "*{table}\n:T - [0:0]\n:U - [0:0]");
        for line in rules.lines().filter(|line| !line.is_empty()) {
            let (place, rule) = line.split_once(' ').unwrap_or((line, ""));
            let (own, chain) = place.split_once(':').unwrap_or((place, "T"));
            if own == table {
                let _ = writeln!(text, "-A {chain} {rule}");
            }
        }
        text.push_str("COMMIT\n");
    }
    text
}

/// One rule for each match and target that this kernel and the tools of Debian 12 take.
fn synthetic(backend: Backend) {
    let ns = Ns::new();
    for device in DEVICES {
        ns.run(&format!("ip link add {device} type bridge"));
    }
    ns.account("netpath\n");
    ns.run("ipset create foo hash:ip,port counters skbinfo");
    ns.run("ipset create foo6 hash:ip family inet6");
    let tool = match backend {
        Backend::Nft => "nft",
        Backend::Legacy => "legacy",
    };
    let (v4, v6) = (
        include_str!("rules/iptables.txt"),
        include_str!("rules/ip6tables.txt"),
    );
    // It becomes a name that no device has; iptables-legacy leaves it out of what it prints, so that rules which
    // nothing matches read as if all did: we don't.
    let v4 = match backend {
        Backend::Nft => format!("{v4}\nfilter ! -i + -j ACCEPT\nfilter ! -o + -j ACCEPT\n"),
        Backend::Legacy => v4.to_owned(),
    };
    ns.feed(&format!("iptables-{tool}-restore"), &restore_text(&v4));
    ns.feed(&format!("ip6tables-{tool}-restore"), &restore_text(v6));
    none(&saved(&ns, backend));
}

#[test]
fn every_match_and_target_reads_as_iptables_nft_prints_it() {
    synthetic(Backend::Nft);
}

#[test]
fn every_match_and_target_reads_as_iptables_legacy_prints_it() {
    synthetic(Backend::Legacy);
}

#[test]
fn every_expression_of_nf_tables_is_loaded_as_it_was() {
    let ns = Ns::new();
    for device in DEVICES {
        ns.run(&format!("ip link add {device} type bridge"));
    }
    ns.feed("nft -f -", include_str!("rules/ruleset.nft"));
    none(&reloaded(&ns));
}

/// What `kubectl-netpath dump netfilter` prints of a namespace of this machine.
fn dumped(ns: &Ns, rest: &str) -> (Option<i32>, String) {
    let target = std::env::current_exe().expect("this test");
    let programs = target.ancestors().nth(2).expect("its directory");
    let output = std::process::Command::new(programs.join("kubectl-netpath"))
        .args(["dump", "netfilter", &format!("netns/{}", ns.0), "--local"])
        .args(rest.split_whitespace())
        .env("NETPATH_HELPER", programs.join("netpath-helper"))
        .output()
        .expect("the plugin starts");
    let text = String::from_utf8(output.stdout).expect("text");
    (output.status.code(), text)
}

#[test]
fn the_command_prints_what_can_be_piped() {
    let ns = Ns::new();
    ns.run("ipset create foo hash:ip");
    ns.feed(
        "iptables-nft-restore",
        "*filter\n-A INPUT -p tcp -m tcp --dport 80 -m limit --limit 3/sec -j ACCEPT\nCOMMIT\n",
    );
    ns.feed(
        "iptables-legacy-restore",
        "*nat\n-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\nCOMMIT\n",
    );
    ns.feed(
        "nft -f -",
        "table inet t { set s { type ipv4_addr; elements = { 10.0.0.1, 10.0.0.2 } }\nchain c { ip saddr @s accept\n}\n}\n",
    );
    for (syntax, tool) in [
        ("iptables-save", "iptables-nft-save -c"),
        ("iptables-legacy-save", "iptables-legacy-save -c"),
    ] {
        let (code, ours) = dumped(&ns, &format!("--syntax {syntax}"));
        assert_eq!(code, Some(0), "{ours}");
        let theirs = ns.run(tool);
        assert_eq!(lines(theirs.lines()), lines(ours.lines()), "{syntax}");
    }
    let (code, ours) = dumped(&ns, "--syntax nft");
    assert_eq!(code, Some(0), "{ours}");
    let fresh = Ns::new();
    fresh.feed("nft -f -", &ours);
    assert_eq!(
        fresh.run("nft list ruleset inet"),
        ns.run("nft list ruleset inet")
    );
    // Types that only `typeof` names have no words: what needs them is left out and said, the rest loads.
    let hidden = Ns::new();
    hidden.feed(
        "nft -f -",
        "table inet t { set s { typeof meta length; }\nchain c { meta length @s accept\nct original zone set 3\n}\n}\n",
    );
    let (code, ours) = dumped(&hidden, "--syntax nft");
    assert_eq!(code, Some(3), "{ours}");
    let fresh = Ns::new();
    fresh.feed("nft -f -", &ours);
    let loaded = fresh.run("nft list ruleset");
    assert!(loaded.contains("ct original zone set 3"), "{loaded}");
    assert!(!loaded.contains("@s"), "{loaded}");
    let (_, all) = dumped(&ns, "");
    for line in [
        "# nf_tables, in the words of iptables-save",
        "[0:0] -A INPUT -p tcp -m tcp --dport 80 -m limit --limit 3/sec -j ACCEPT",
        "# nf_tables, in the words of nft",
        "    ip saddr @s accept",
        "# x_tables, in the words of iptables-legacy-save",
        "[0:0] -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE",
    ] {
        assert!(all.lines().any(|own| own == line), "{line} is not in {all}");
    }
    // An argument that makes no sense is refused before anything is read.
    let (code, _) = dumped(&ns, "--syntax nft -o json");
    assert_eq!(code, Some(2));
}
