//! Rules, against `nft`, `iptables-nft-save` and `iptables-legacy-save`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use netpath::model::Section;
use netpath::model::netfilter::{Backend, Elements, Expr, Family, Hook, Policy, Ruleset, SetData};
use netpath::model::want::{Depth, Fact, Want};
use netpath::model::xtables::{XtMatch, XtTarget};

use crate::ns::{Ns, collector, recorded};

fn no_unknown(rules: &Ruleset) {
    for table in &rules.tables {
        for chain in table.chains.values() {
            for rule in chain.rules.known().expect("rules were asked for") {
                let unknown = rule.exprs.iter().find(|expr| {
                    matches!(
                        expr,
                        Expr::Other { .. }
                            | Expr::Match(XtMatch::Other { .. })
                            | Expr::Target(XtTarget::Other { .. })
                    )
                });
                assert_eq!(unknown, None, "{} {}", table.name, chain.name);
            }
        }
    }
}

/// Rules per chain with their comments and counters, as `-save -c` prints them.
fn saved(text: &str) -> BTreeMap<String, Vec<(String, u64)>> {
    let mut table = "";
    let mut chains = BTreeMap::<String, Vec<(String, u64)>>::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name;
        } else if let Some((counters, rule)) = line.split_once("] -A ") {
            let chain = rule.split(' ').next().expect("a chain");
            let comment = rule.split_once("--comment ").map_or("", |(_, rest)| rest);
            let comment = match comment.strip_prefix('"') {
                Some(quoted) => quoted.split('"').next().unwrap_or_default(),
                None => comment.split(' ').next().unwrap_or_default(),
            };
            let bytes = counters.split_once(':').expect("counters").1;
            let bytes = bytes.parse().expect("bytes");
            let chain = chains.entry(format!("{table} {chain}")).or_default();
            chain.push((comment.to_owned(), bytes));
        }
    }
    chains
}

fn ours(rules: &Ruleset, family: Family) -> BTreeMap<String, Vec<(String, u64)>> {
    let mut chains = BTreeMap::new();
    for table in rules.tables.iter().filter(|table| table.family == family) {
        for chain in table.chains.values() {
            let rules = chain.rules.known().expect("rules");
            let rules: Vec<(String, u64)> = (rules.iter())
                .map(|rule| {
                    let bytes = rule.exprs.iter().find_map(|expr| match expr {
                        Expr::Counter(counters) => Some(counters.bytes),
                        _ => None,
                    });
                    (
                        rule.comment.clone().unwrap_or_default(),
                        bytes.expect("a counter"),
                    )
                })
                .collect();
            if !rules.is_empty() {
                chains.insert(format!("{} {}", table.name, chain.name), rules);
            }
        }
    }
    chains
}

#[test]
fn kube_proxys_iptables_nft_rules_decode_whole() {
    for node in ["n1", "n2"] {
        let ns = Ns::new();
        ns.accounting();
        for (tool, family) in [("iptables", Family::Ip), ("ip6tables", Family::Ip6)] {
            let text = recorded(&format!("iptables/{node}.{tool}-save"));
            ns.feed(&format!("{tool}-nft-restore -c"), &text);
            let read = ns.read(Depth::Full);
            let rules = read.nft.known().expect("nf_tables");
            no_unknown(rules);
            assert_eq!(
                ours(rules, family),
                saved(&ns.run(&format!("{tool}-nft-save -c")))
            );
        }
    }
}

#[test]
fn kube_proxys_legacy_rules_decode_whole() {
    let ns = Ns::new();
    ns.accounting();
    ns.feed(
        "iptables-legacy-restore -c",
        &recorded("iptables/n1.iptables-save"),
    );
    ns.feed(
        "ip6tables-legacy-restore -c",
        &recorded("iptables/n1.ip6tables-save"),
    );
    let read = ns.read(Depth::Full);
    assert!(read.missing().is_empty(), "{:?}", read.missing());
    let rules = read.legacy.known().expect("x_tables");
    no_unknown(rules);
    assert_eq!(
        ours(rules, Family::Ip),
        saved(&ns.run("iptables-legacy-save -c"))
    );
    assert_eq!(
        ours(rules, Family::Ip6),
        saved(&ns.run("ip6tables-legacy-save -c"))
    );
    // Every jump leads to a chain that was read.
    for table in &rules.tables {
        for rule in table
            .chains
            .values()
            .filter_map(|chain| chain.rules.known())
            .flatten()
        {
            for expr in &rule.exprs {
                if let Expr::Target(XtTarget::Standard(verdict)) = expr
                    && let netpath::model::netfilter::Verdict::Jump(chain) = verdict
                {
                    assert!(table.chains.contains_key(chain), "{chain}");
                }
            }
        }
    }
}

#[test]
fn legacy_chains_have_their_hooks_policies_and_gotos() {
    let ns = Ns::new();
    for command in [
        "iptables-legacy -P FORWARD DROP",
        "iptables-legacy -N USER",
        "iptables-legacy -A FORWARD -s 10.0.0.0/8 ! -d 10.1.0.0/16 -i cali+ ! -o eth0 -p tcp -g USER",
        "iptables-legacy -A USER -m comment --comment plain",
        "iptables-legacy -A USER -j RETURN",
        "iptables-legacy -t nat -A OUTPUT -j ACCEPT",
    ] {
        ns.run(command);
    }
    let read = ns.read(Depth::Full);
    let rules = read.legacy.known().expect("x_tables");
    let table = |name| {
        rules
            .tables
            .iter()
            .find(|table| table.name == name)
            .expect("the table")
    };
    let forward = &table("filter").chains["FORWARD"];
    let base = forward.base.as_ref().expect("a base chain");
    assert_eq!(
        (base.hook, base.priority, base.policy),
        (Hook::Forward, 0, Policy::Drop)
    );
    let rule = &forward.rules.known().expect("rules")[0];
    let Expr::Header(header) = &rule.exprs[0] else {
        panic!("no header: {rule:?}");
    };
    assert_eq!(header.iif, Some(("cali+".to_owned(), false)));
    assert_eq!(header.oif, Some(("eth0".to_owned(), true)));
    assert_eq!(header.proto, Some((6, false)));
    assert!(
        header
            .dst
            .is_some_and(|(_, mask, invert)| invert && mask.to_string() == "255.255.0.0")
    );
    let goto = netpath::model::netfilter::Verdict::Goto("USER".to_owned());
    assert_eq!(
        rule.exprs.last(),
        Some(&Expr::Target(XtTarget::Standard(goto)))
    );
    let user = table("filter").chains["USER"].rules.known().expect("rules");
    assert_eq!(user.len(), 2);
    // A rule without a target only counts.
    assert!(
        !user[0]
            .exprs
            .iter()
            .any(|expr| matches!(expr, Expr::Target(_)))
    );
    let base = |name: &str| {
        table("nat").chains[name]
            .base
            .as_ref()
            .map(|base| base.priority)
    };
    assert_eq!(
        (base("PREROUTING"), base("POSTROUTING")),
        (Some(-100), Some(100))
    );
}

#[test]
fn single_legacy_chains_come_with_what_they_lead_to() {
    let ns = Ns::new();
    ns.accounting();
    ns.feed(
        "iptables-legacy-restore -c",
        &recorded("iptables/n1.iptables-save"),
    );
    let likely = ns.read(Depth::Likely);
    let none = ns.read(Depth::NoRules);
    let table = |rules: &Section<Ruleset>| {
        let tables = &rules.known().expect("x_tables").tables;
        let nat = tables.iter().find(|table| table.name == "nat");
        nat.expect("nat").clone()
    };
    assert_eq!(table(&none.legacy).chains.len(), 4);
    assert!(!table(&none.legacy).chains_complete);
    assert!(table(&likely.legacy).chains.contains_key("KUBE-SERVICES"));
    let want = |chain: &str| Want::Chain {
        netns: none.identity.id,
        backend: Backend::Legacy,
        family: Family::Ip,
        table: "nat".to_owned(),
        chain: chain.to_owned(),
    };
    let mut collector = collector();
    let facts = collector.collect(&[want("KUBE-POSTROUTING")], Duration::from_secs(5));
    let [
        Fact::Chain {
            chain: Section::Known(Some(chain)),
            ..
        },
    ] = facts.as_slice()
    else {
        panic!("{facts:?}");
    };
    assert_eq!(
        Some(chain),
        table(&likely.legacy).chains.get("KUBE-POSTROUTING")
    );
    let facts = collector.collect(&[want("GONE")], Duration::from_secs(5));
    assert!(matches!(
        facts.as_slice(),
        [Fact::Chain {
            chain: Section::Known(None),
            ..
        }]
    ));
}

#[test]
fn native_nftables_decode_whole_and_in_order() {
    for node in ["n1", "n2"] {
        let ns = Ns::new();
        ns.feed("nft -f -", &recorded(&format!("nftables/{node}.nft")));
        let read = ns.read(Depth::Full);
        let rules = read.nft.known().expect("nf_tables");
        no_unknown(rules);
        let handles = |ruleset: &Ruleset| {
            let mut handles = BTreeMap::new();
            for table in &ruleset.tables {
                for chain in table.chains.values() {
                    let key = format!("{} {} {}", table.family.name(), table.name, chain.name);
                    let rules = chain.rules.known().expect("rules");
                    let list: Vec<u64> = rules.iter().map(|rule| rule.handle).collect();
                    handles.insert(key, list);
                }
            }
            handles
        };
        let mut theirs = BTreeMap::<String, Vec<u64>>::new();
        let mut sets = BTreeMap::<String, usize>::new();
        for object in ns.json("nft -j list ruleset")[0]["nftables"]
            .as_array()
            .expect("objects")
        {
            let key = |object: &serde_json::Value, name: &str| {
                let text = |key: &str| object[key].as_str().expect("a text").to_owned();
                format!("{} {} {}", text("family"), text("table"), text(name))
            };
            if let Some(chain) = object.get("chain") {
                theirs.entry(key(chain, "name")).or_default();
            } else if let Some(rule) = object.get("rule") {
                let handle = rule["handle"].as_u64().expect("a handle");
                theirs.entry(key(rule, "chain")).or_default().push(handle);
            } else if let Some(set) = object.get("set").or_else(|| object.get("map")) {
                let elements = set["elem"].as_array().map_or(0, Vec::len);
                sets.insert(key(set, "name"), elements);
            }
        }
        assert_eq!(handles(rules), theirs);
        for table in &rules.tables {
            for set in table.sets.values().filter(|set| !set.flags.anonymous) {
                let Elements::Known(elements) = &set.elements else {
                    panic!("{} has no elements", set.name);
                };
                let real = elements
                    .iter()
                    .filter(|element| !element.interval_end)
                    .count();
                let key = format!("{} {} {}", table.family.name(), table.name, set.name);
                assert_eq!(Some(&real), sets.get(&key), "{key}");
            }
        }
    }
}

#[test]
fn the_likely_set_follows_few_targets_and_asks_for_no_more() {
    let ns = Ns::new();
    ns.feed("nft -f -", &recorded("nftables/n1.nft"));
    let mut many = String::from("table ip big {\n");
    for number in 0..100 {
        write!(many, "chain leaf{number} {{\n counter\n }}\n").expect("a text");
    }
    many += "map named { type ipv4_addr : verdict; elements = {";
    for number in 0..600 {
        write!(many, "10.1.{}.{} : drop,", number / 200, number % 200).expect("a text");
    }
    many += "} }\nchain fan {\n";
    for number in 0..100 {
        writeln!(many, "ip daddr 10.0.0.{number} jump leaf{number}").expect("a text");
    }
    many += "ip saddr { 10.9.9.1, 10.9.9.2 } drop\nip daddr vmap @named\n}\n";
    many += "chain base {\n type filter hook forward priority 0\n jump fan\n }\n}\n";
    ns.feed("nft -f -", &many);
    let none = ns.read(Depth::NoRules);
    for table in &none.nft.known().expect("nf_tables").tables {
        assert!(
            table
                .chains
                .values()
                .all(|c| c.base.is_some() && c.rules == Section::NotAsked)
        );
    }
    let read = ns.read(Depth::Likely);
    let tables = &read.nft.known().expect("nf_tables").tables;
    let big = tables
        .iter()
        .find(|table| table.name == "big")
        .expect("the table");
    assert_eq!(big.chains.keys().collect::<Vec<_>>(), ["base", "fan"]);
    assert!(!big.chains_complete);
    assert_eq!(big.sets["named"].elements, Elements::NotAsked);
    let anonymous = big
        .sets
        .values()
        .find(|set| set.flags.anonymous)
        .expect("an anonymous set");
    assert!(matches!(&anonymous.elements, Elements::Known(known) if known.len() == 2));
    let full = ns.read(Depth::Full);
    let tables = &full.nft.known().expect("nf_tables").tables;
    let big = tables
        .iter()
        .find(|table| table.name == "big")
        .expect("the table");
    assert_eq!(big.chains.len(), 102);
    assert!(big.chains_complete && big.sets_complete);
    // A named set that fits comes along.
    let proxy = ns.read(Depth::Likely);
    let tables = &proxy.nft.known().expect("nf_tables").tables;
    let proxy = tables
        .iter()
        .find(|t| t.name == "kube-proxy" && t.family == Family::Ip);
    let services = &proxy.expect("kube-proxy").sets["service-ips"];
    assert!(matches!(services.elements, Elements::Known(_)));
}

#[test]
fn single_wants_are_answered_one_by_one() {
    let ns = Ns::new();
    ns.feed("nft -f -", &recorded("nftables/n1.nft"));
    ns.feed(
        "nft -f -",
        "table inet t {
            set ranges { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 comment \"ten\" } }
            map catch { type ipv4_addr : verdict; elements = { 10.1.1.1 : accept, * : drop } }
            map pairs { type ipv4_addr . inet_service : verdict; flags interval; elements = { 10.0.0.0/8 . 80-90 : accept } }
            chain c {
 ip saddr @ranges counter
 }
        }",
    );
    let full = ns.read(Depth::Full);
    let netns = full.identity.id;
    let mut collector = collector();
    let mut ask = |want: Want| collector.collect(&[want], Duration::from_secs(5));
    let elem = |set: &str, key: &[u8]| Want::SetElem {
        netns,
        family: Family::Inet,
        table: "t".to_owned(),
        set: set.to_owned(),
        key: key.to_vec(),
    };
    let found = |facts: Vec<Fact>| match facts.as_slice() {
        [
            Fact::SetElem {
                elem: Section::Known(elem),
                ..
            },
        ] => elem.clone(),
        other => panic!("{other:?}"),
    };
    let range = found(ask(elem("ranges", &[10, 2, 3, 4]))).expect("in the range");
    assert_eq!(
        (range.key.as_slice(), range.comment.as_deref()),
        (&[10, 0, 0, 0][..], Some("ten"))
    );
    assert_eq!(found(ask(elem("ranges", &[11, 2, 3, 4]))), None);
    assert!(
        !found(ask(elem("catch", &[10, 1, 1, 1])))
            .expect("the element")
            .catchall
    );
    assert!(
        found(ask(elem("catch", &[10, 1, 1, 2])))
            .expect("the catch-all")
            .catchall
    );
    let pair = found(ask(elem("pairs", &[10, 9, 9, 9, 0, 85, 0, 0]))).expect("in both ranges");
    assert_eq!(
        pair.key_end.as_deref(),
        Some(&[10, 255, 255, 255, 0, 90, 0, 0][..])
    );
    assert_eq!(found(ask(elem("pairs", &[10, 9, 9, 9, 0, 91, 0, 0]))), None);
    // Each element of kube-proxy's map is found by its key.
    let tables = &full.nft.known().expect("nf_tables").tables;
    let proxy = tables
        .iter()
        .find(|t| t.name == "kube-proxy" && t.family == Family::Ip);
    let Elements::Known(elements) = &proxy.expect("kube-proxy").sets["service-ips"].elements else {
        panic!("no elements");
    };
    assert!(!elements.is_empty());
    for element in elements {
        let want = Want::SetElem {
            netns,
            family: Family::Ip,
            table: "kube-proxy".to_owned(),
            set: "service-ips".to_owned(),
            key: element.key.clone(),
        };
        assert_eq!(found(ask(want)).as_ref(), Some(element));
        assert!(matches!(element.data, Some(SetData::Verdict(_))));
    }
    let chain = |name: &str| Want::Chain {
        netns,
        backend: Backend::Nft,
        family: Family::Inet,
        table: "t".to_owned(),
        chain: name.to_owned(),
    };
    let facts = ask(chain("c"));
    assert!(matches!(
        &facts[0],
        Fact::Chain {
            chain: Section::Known(Some(_)),
            ..
        }
    ));
    assert!(matches!(&facts[1], Fact::Set { name, .. } if name == "ranges"));
    assert!(matches!(
        ask(chain("gone")).as_slice(),
        [Fact::Chain {
            chain: Section::Known(None),
            ..
        }]
    ));
    let set = Want::Set {
        netns,
        family: Family::Inet,
        table: "t".to_owned(),
        set: "gone".to_owned(),
    };
    assert!(matches!(
        ask(set).as_slice(),
        [Fact::Set {
            set: Section::Known(None),
            ..
        }]
    ));
}

#[test]
fn both_backends_stand_side_by_side_and_ipsets_have_names() {
    let ns = Ns::new();
    ns.run("ipset create npc-set hash:ip,port");
    ns.run("iptables-nft -A FORWARD -m set --match-set npc-set src,dst -j DROP");
    ns.run("iptables-legacy -A FORWARD -m set --match-set npc-set dst,dst -j DROP");
    let read = ns.read(Depth::Likely);
    for (section, dims) in [(&read.nft, [true, false]), (&read.legacy, [false, false])] {
        let tables = &section.known().expect("rules").tables;
        let filter = tables
            .iter()
            .find(|table| table.name == "filter")
            .expect("filter");
        let rule = &filter.chains["FORWARD"].rules.known().expect("rules")[0];
        let set = rule.exprs.iter().find_map(|expr| match expr {
            Expr::Match(XtMatch::Set { name, dims, .. }) => Some((name.clone(), dims.clone())),
            _ => None,
        });
        assert_eq!(set, Some((Some("npc-set".to_owned()), dims.to_vec())));
    }
}

#[test]
fn reading_makes_no_tables() {
    let ns = Ns::new();
    let read = ns.read(Depth::Full);
    assert!(read.missing().is_empty(), "{:?}", read.missing());
    assert_eq!(ns.run("cat /proc/thread-self/net/ip_tables_names"), "");
    assert_eq!(ns.run("cat /proc/thread-self/net/ip6_tables_names"), "");
    assert_eq!(ns.run("nft list ruleset"), "");
}
