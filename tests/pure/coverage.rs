//! The table in docs/kernel-coverage.md against the code: what is decoded, what of it has an answer, and
//! which rules of the decoder oracle hold it. `NETPATH_RECORD=1 cargo pure coverage` writes it anew.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

const HEAD: &str = "## Every expression, match and target\n";
const NEXT: &str = "\n## ";

fn read(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    let text =
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.replace("\r\n", "\n")
}

/// Text of a function, up to the next one.
fn function<'a>(source: &'a str, head: &str) -> &'a str {
    let (_, rest) = source.split_once(head).expect("the function");
    rest.split("\n}\n").next().unwrap_or(rest)
}

/// Words in quotes of a text.
fn quoted(text: &str) -> Vec<String> {
    text.split('"')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect()
}

/// Names and revisions of the arms `("name" | "other", 0 | 1) => ...` of a decoder.
fn decoded(source: &str) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let arms: Vec<usize> = source
        .match_indices("        (\"")
        .map(|(at, _)| at)
        .collect();
    for (number, at) in arms.iter().enumerate() {
        let end = arms.get(number + 1).copied().unwrap_or(source.len());
        let arm = &source[*at..end];
        let Some((pattern, _)) = arm.split_once("=>") else {
            continue;
        };
        let pattern = pattern.trim().trim_start_matches('(');
        let Some((names, revision)) = pattern.rsplit_once(", ") else {
            continue;
        };
        let revision = revision.split(')').next().unwrap_or_default();
        for name in quoted(names) {
            let revision = revision.replace("..=", " to ").replace('|', "and");
            found.entry(name).or_default().push(revision);
        }
    }
    found
}

/// Computed as the kernel does: expressions, matches, targets.
const YES: &[&str] = &[
    "byteorder",
    "cmp",
    "counter",
    "dup",
    "fib",
    "immediate",
    "last",
    "log",
    "lookup",
    "masq",
    "nat",
    "notrack",
    "numgen",
    "range",
    "redir",
    "reject",
    "hash",
    "xfrm",
    "addrtype",
    "comment",
    "connmark",
    "conntrack",
    "devgroup",
    "dscp",
    "ecn",
    "iprange",
    "mark",
    "multiport",
    "physdev",
    "policy",
    "rpfilter",
    "state",
    "statistic",
    "time",
    "tos",
    "udp",
    "icmp",
    "icmp6",
    "AUDIT",
    "CHECKSUM",
    "CLASSIFY",
    "CONNMARK",
    "CONNSECMARK",
    "DNAT",
    "DSCP",
    "ECN",
    "HL",
    "IDLETIMER",
    "LED",
    "LOG",
    "MARK",
    "MASQUERADE",
    "NETMAP",
    "NFLOG",
    "NOTRACK",
    "RATEEST",
    "REDIRECT",
    "REJECT",
    "SECMARK",
    "SNAT",
    "TCPMSS",
    "TCPOPTSTRIP",
    "TEE",
    "TOS",
    "TRACE",
    "TTL",
];

/// Computed where what it asks for is modelled.
const IN_PART: &[&str] = &[
    "set",
    "bitwise",
    "ct",
    "dynset",
    "exthdr",
    "meta",
    "objref",
    "payload",
    "quota",
    "ah",
    "connbytes",
    "connlabel",
    "dccp",
    "dst",
    "esp",
    "frag",
    "hbh",
    "helper",
    "hl",
    "ipcomp",
    "ipv6header",
    "l2tp",
    "length",
    "mac",
    "mh",
    "owner",
    "pkttype",
    "recent",
    "sctp",
    "srh",
    "tcp",
    "tcpmss",
    "ttl",
    "u32",
    "CT",
    "SET",
    "queue",
    "tproxy",
    "NFQUEUE",
    "TPROXY",
    "flow_offload",
    "nfacct",
    "connlimit",
    "hashlimit",
    "limit",
    "realm",
    "rt",
];

/// Named wherever it can decide. HMARK sets a mark that is not known.
const UNKNOWN: &[&str] = &[
    "fwd",
    "inner",
    "socket",
    "synproxy",
    "tunnel",
    "bpf",
    "cgroup",
    "cluster",
    "cpu",
    "eui64",
    "ipvs",
    "rateest",
    "string",
    "CLUSTERIP",
    "DNPT",
    "HMARK",
    "SNPT",
    "SYNPROXY",
];

/// Names that mean one thing as an expression and another as a match.
const TWICE: &[(&str, &str, &str)] = &[
    ("match", "osf", "in part"),
    ("expression", "osf", "unknown"),
    ("match", "socket", "in part"),
    ("expression", "match", "see below"),
    ("expression", "target", "see below"),
];

/// How much of an answer there is; what is decoded must be in one of the lists.
fn answer(what: &str, name: &str) -> &'static str {
    let twice = TWICE
        .iter()
        .find(|(own, word, _)| *own == what && *word == name);
    if let Some((_, _, answer)) = twice {
        return answer;
    }
    match name {
        _ if YES.contains(&name) => "yes",
        _ if IN_PART.contains(&name) => "in part",
        _ if UNKNOWN.contains(&name) => "unknown",
        _ => panic!("{what} {name}: tests/pure/coverage.rs does not say how it is answered"),
    }
}

/// Whether the rules of the decoder oracle hold an extension.
fn held(rules: &str, flag: &str, name: &str) -> &'static str {
    let word = format!("{flag} {name}");
    let whole = |line: &str| {
        line.match_indices(&word)
            .any(|(at, _)| matches!(line.as_bytes().get(at + word.len()), None | Some(b' ')))
    };
    if rules.lines().any(whole) {
        "the tools"
    } else {
        "bytes"
    }
}

fn extensions(table: &mut String, what: &str, flag: &str, sources: [&str; 2]) {
    let rules = read("tests/lab/tests/collect/rules/iptables.txt")
        + &read("tests/lab/tests/collect/rules/ip6tables.txt");
    let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for path in sources {
        for (name, revisions) in decoded(&read(path)) {
            rows.entry(name).or_default().extend(revisions);
        }
    }
    for (name, mut revisions) in rows {
        revisions.sort();
        revisions.dedup();
        let _ = writeln!(
            table,
            "| {what} | {name} | {} | {} | {} |",
            revisions.join(", "),
            answer(what, &name),
            held(&rules, flag, &name)
        );
    }
}

fn expressions(table: &mut String) {
    let decoder = read("src/collect/netfilter/expr.rs");
    let rules = read("tests/lab/tests/collect/rules/ruleset.nft");
    let words: BTreeMap<&str, &str> = [
        ("masq", "masquerade"),
        ("redir", "redirect"),
        ("exthdr", "tcp option"),
        ("payload", "ip saddr"),
        ("cmp", "ip saddr 10"),
        ("range", "!= 10.0.0.1-"),
        ("bitwise", "&"),
        ("byteorder", "100-1500"),
        ("immediate", "accept"),
        ("lookup", "@pods"),
        ("dynset", "update @"),
        ("hash", "jhash"),
        ("nat", "dnat"),
        ("connlimit", "ct count"),
        ("objref", "counter name"),
        ("flow_offload", "flow add"),
        ("xfrm", "ipsec in"),
        ("match", "none by itself"),
        ("target", "none by itself"),
        ("last", "\n    last"),
        ("inner", "vxlan"),
        ("tunnel", "tunnel "),
        ("rt", "rt classid"),
    ]
    .into();
    let known = function(&decoder, "fn known(name: &str");
    let mut all: Vec<String> = known
        .lines()
        .filter(|line| line.starts_with("        \"") && line.contains("=>"))
        .flat_map(|line| quoted(line.split("=>").next().unwrap_or_default()))
        .collect();
    all.sort();
    for name in all {
        let word = words.get(name.as_str()).copied().unwrap_or(&name);
        let held = match name.as_str() {
            "match" | "target" => "the tools",
            _ if rules.contains(word) => "nft",
            _ => "bytes",
        };
        let answer = answer("expression", &name);
        let _ = writeln!(table, "| expression | {name} | | {answer} | {held} |");
    }
}

fn table() -> String {
    let mut table =
        "| | name | revisions | answered | printed as by |\n|---|---|---|---|---|\n".to_owned();
    expressions(&mut table);
    let sources = [
        "src/collect/netfilter/xt_match.rs",
        "src/collect/netfilter/xt_rare_match.rs",
    ];
    extensions(&mut table, "match", "-m", sources);
    let sources = [
        "src/collect/netfilter/xt_target.rs",
        "src/collect/netfilter/xt_rare_target.rs",
    ];
    extensions(&mut table, "target", "-j", sources);
    table
}

#[test]
fn the_page_lists_what_the_code_decodes() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/kernel-coverage.md");
    let page = read("docs/kernel-coverage.md");
    let (before, rest) = page.split_once(HEAD).expect("the section");
    let (section, after) = match rest.split_once(NEXT) {
        Some((section, after)) => (section, format!("{NEXT}{after}")),
        None => (rest, String::new()),
    };
    let at = section.find("| | name").unwrap_or(section.len());
    let table = table();
    if std::env::var_os("NETPATH_RECORD").is_some() {
        let text = format!("{before}{HEAD}{}{table}{after}", &section[..at]);
        fs::write(&path, text).expect("the page can be written");
        return;
    }
    assert_eq!(
        section[at..].trim_end(),
        table.trim_end(),
        "docs/kernel-coverage.md differs from the code: NETPATH_RECORD=1 cargo pure coverage writes it"
    );
}
