//! What a kernel holds, in the words of its own tools, or as data.

use std::collections::BTreeMap;

use netpath::explain::{ChainNames, Naming, conntrack, ipvs, owners, words};
use netpath::model::conntrack::ConntrackEntry;
use netpath::model::ipset::Ipset;
use netpath::model::ipvs::IpvsService;
use netpath::model::link::{Inet6Conf, InetConf};
use netpath::model::names::Names;
use netpath::model::netns::NetNs;
use netpath::model::sysctl::Sysctls;
use netpath::model::topology::Topology;
use netpath::model::{IfIndex, NsKey, Section};
use serde::Serialize;

use super::netfilter;
use super::paint::escaped;
use crate::cli::{DumpWhat, RuleSyntax};

/// Only `dump conntrack` asks for a table, so that one that was not asked for is one of a file.
const NO_TABLE: &str = "conntrack: the table was not read: snapshot files hold no tables of flows, \
    which change by the second; dump it from the node itself, without a file";

/// One namespace, and what of it is wanted.
pub struct Dump<'a> {
    ns: &'a NetNs,
    key: &'a NsKey,
    place: String,
    what: DumpWhat,
    syntax: Option<RuleSyntax>,
}

/// A dump as data, schema `netpath.dump/v1`: items are the objects as the snapshot file holds them.
#[derive(Serialize)]
pub struct DumpJson<'a> {
    schema: &'static str,
    node: &'a str,
    netns: &'a str,
    netns_inode: u64,
    what: &'static str,
    missing: Option<String>,
    items: serde_json::Value,
}

impl<'a> Dump<'a> {
    /// Of a namespace that was read. Errors: it was not.
    pub fn of(
        topology: &'a Topology,
        names: &Names,
        key: &'a NsKey,
        what: DumpWhat,
        syntax: Option<RuleSyntax>,
    ) -> anyhow::Result<Self> {
        let Some(ns) = topology.netns(key) else {
            anyhow::bail!("dump: nothing was read of {key}");
        };
        let chains = ChainNames::new();
        let naming = Naming {
            topology,
            names,
            chains: &chains,
        };
        Ok(Self {
            ns,
            key,
            place: format!("{} on {}", naming.netns(key), key.node),
            what,
            syntax,
        })
    }

    /// Entries that were read.
    fn conntrack(&self) -> impl Iterator<Item = &'a ConntrackEntry> {
        let read = self.ns.conntrack.iter();
        read.filter_map(|(_, _, entry)| entry.known()?.as_ref())
    }

    /// IPVS services that were read.
    fn ipvs(&self) -> impl Iterator<Item = &'a IpvsService> {
        let read = self.ns.ipvs.known().and_then(Option::as_ref);
        let services = read.into_iter().flat_map(|ipvs| &ipvs.services);
        services.filter_map(|(_, service)| service.known()?.as_ref())
    }

    fn dev(&self, index: IfIndex) -> String {
        self.ns
            .link(index)
            .map_or_else(|| format!("if{index}"), |link| link.name.clone())
    }

    /// Why what is wanted can't be had, section by section.
    fn missing(&self) -> Vec<String> {
        fn why<T>(name: &str, section: &Section<T>) -> Option<String> {
            match section {
                Section::Known(_) => None,
                Section::Missing(why) => Some(format!("{name}: {why}")),
                Section::NotAsked => Some(format!("{name}: not read")),
            }
        }
        let ns = self.ns;
        let found = match self.what {
            DumpWhat::Links => vec![why("links", &ns.links)],
            DumpWhat::Addrs => vec![why("addrs", &ns.addrs)],
            DumpWhat::Routes => vec![why("routes", &ns.routes)],
            DumpWhat::Rules => vec![why("rules", &ns.rules)],
            DumpWhat::Neigh => vec![why("neigh", &ns.neighs)],
            DumpWhat::Fdb => vec![why("fdb", &ns.fdb)],
            DumpWhat::Netfilter => {
                // A file of an older version tells of no ipsets.
                let names = ns.ipset_names.missing();
                let mut all = vec![
                    why("nftables", &ns.nft),
                    why("iptables-legacy", &ns.legacy),
                    names.map(|why| format!("ipset: {why}")),
                ];
                let sets = ns.ipsets.iter();
                all.extend(sets.map(|(name, set)| why(&format!("ipset {name}"), set)));
                all
            }
            DumpWhat::Ipvs => match &ns.ipvs {
                // Only `dump ipvs` and whole snapshots ask for all of them.
                Section::Known(Some(ipvs)) if !ipvs.complete => {
                    vec![Some("ipvs: not all services were read".to_owned())]
                }
                read => vec![why("ipvs", read)],
            },
            DumpWhat::Sockets => vec![why("sockets", &ns.sockets)],
            DumpWhat::Sysctls => vec![why("sysctls", &ns.sysctls)],
            DumpWhat::Conntrack => match (&ns.conntrack_table, &ns.conntrack_stats) {
                (Section::NotAsked, Section::NotAsked) => vec![Some(NO_TABLE.to_owned())],
                (table, Section::NotAsked) => vec![why("conntrack", table)],
                (_, stats) => vec![why("conntrack", stats)],
            },
        };
        found.into_iter().flatten().collect()
    }

    /// Whether anything wanted can't be had.
    pub fn is_missing(&self) -> bool {
        !self.missing().is_empty()
    }

    /// As the kernel's own tools print it.
    pub fn text(&self) -> String {
        let mut lines: Vec<String> = self
            .missing()
            .iter()
            .map(|why| format!("# {}: {why}", self.place))
            .collect();
        let dev = |index| self.dev(index);
        let ns = self.ns;
        match self.what {
            DumpWhat::Links => each(&mut lines, &ns.links, |link| words::link(link, &dev)),
            DumpWhat::Addrs => {
                each(&mut lines, &ns.addrs, |addr| {
                    words::addr(addr, &self.dev(addr.link))
                });
            }
            DumpWhat::Routes => each(&mut lines, &ns.routes, |route| words::route(route, &dev)),
            DumpWhat::Rules => each(&mut lines, &ns.rules, |rule| {
                let family = if rule.v6 { "inet6" } else { "inet" };
                format!("{family} {}", words::rule(rule))
            }),
            DumpWhat::Neigh => each(&mut lines, &ns.neighs, |neigh| {
                words::neigh(neigh, &self.dev(neigh.link))
            }),
            DumpWhat::Fdb => each(&mut lines, &ns.fdb, |entry| words::fdb(entry, &dev)),
            DumpWhat::Sockets => {
                each(&mut lines, &ns.sockets, |socket| {
                    words::socket(socket, &dev)
                });
            }
            DumpWhat::Conntrack => {
                if let Section::Known(0) = ns.conntrack_table {
                    lines.push(format!("# {}: conntrack: no entry", self.place));
                }
                match &ns.conntrack_stats {
                    Section::Known(Some(stats)) => {
                        let max = stats.max.map(|max| format!(" of {max}"));
                        lines.push(format!(
                            "# {}: conntrack: {} entries{}",
                            self.place,
                            stats.entries,
                            max.unwrap_or_default()
                        ));
                        lines.extend(stats.cpus.iter().map(conntrack::stats_line));
                    }
                    Section::Known(None) => {
                        lines.push(format!(
                            "# {}: conntrack: nothing is tracked there",
                            self.place
                        ));
                    }
                    Section::Missing(_) | Section::NotAsked => {}
                }
                lines.extend(self.conntrack().map(conntrack::line));
            }
            DumpWhat::Ipvs => lines.extend(self.ipvs().flat_map(ipvs::lines)),
            DumpWhat::Sysctls => {
                if let Some(all) = ns.sysctls.known() {
                    sysctls(&mut lines, all, ns);
                }
            }
            DumpWhat::Netfilter => {
                if let Some(syntax) = self.syntax {
                    lines.extend(netfilter::only(ns, syntax));
                    return said(&lines);
                }
                lines.extend(netfilter::all(ns));
                for set in ns.ipsets.values().filter_map(Section::known) {
                    ipset(&mut lines, set);
                }
            }
        }
        said(&lines)
    }

    /// What of the rules could not be said in the words of a program that was asked for.
    pub fn lost(&self) -> Vec<String> {
        let Some(syntax) = self.syntax else {
            return Vec::new();
        };
        let lines = netfilter::only(self.ns, syntax);
        let lost = lines
            .iter()
            .filter_map(|line| line.trim_start().strip_prefix("# lost: "))
            // Another program's tables are not lost: its own words tell them.
            .filter(|line| !line.starts_with("table "));
        lost.map(str::to_owned).collect()
    }

    /// Who makes the tables, chains and sets of a dump of rules, and what for: a line each, behind the dump.
    pub fn labels(&self, naming: &Naming<'_>) -> String {
        let mut lines = Vec::new();
        if self.what != DumpWhat::Netfilter {
            return String::new();
        }
        let rulesets = [&self.ns.nft, &self.ns.legacy].map(Section::known);
        for table in rulesets
            .into_iter()
            .flatten()
            .flat_map(|rules| &rules.tables)
        {
            let place = format!("{} {}", table.family.name(), table.name);
            if let Some(owner) = owners::of_table(&table.name) {
                lines.push(format!("# table {place}: {owner}"));
            }
            for chain in table.chains.values() {
                let rules = chain.rules.known();
                let comment =
                    rules.and_then(|rules| rules.iter().find_map(|r| r.comment.as_deref()));
                let label = naming.chain(&chain.name, comment);
                let label = match (label, owners::of_chain(&table.name, &chain.name)) {
                    (Some(service), Some(owner)) => format!("{owner}, {service}"),
                    (Some(only), None) => only,
                    (None, Some(_)) if owners::of_table(&table.name).is_some() => continue,
                    (None, Some(owner)) => owner.to_string(),
                    (None, None) => continue,
                };
                lines.push(format!("# chain {place} {}: {label}", chain.name));
            }
        }
        for name in self.ns.ipsets.keys() {
            if let Some(owner) = owners::of_ipset(name) {
                lines.push(format!("# ipset {name}: {owner}"));
            }
        }
        lines
            .iter()
            .flat_map(|line| [escaped(line).to_string(), "\n".to_owned()])
            .collect()
    }

    /// As data.
    pub fn data(&self) -> DumpJson<'_> {
        let ns = self.ns;
        let (what, items) = match self.what {
            DumpWhat::Links => ("links", value(ns.links.known())),
            DumpWhat::Addrs => ("addrs", value(ns.addrs.known())),
            DumpWhat::Routes => ("routes", value(ns.routes.known())),
            DumpWhat::Rules => ("rules", value(ns.rules.known())),
            DumpWhat::Neigh => ("neigh", value(ns.neighs.known())),
            DumpWhat::Fdb => ("fdb", value(ns.fdb.known())),
            DumpWhat::Sockets => ("sockets", value(ns.sockets.known())),
            DumpWhat::Sysctls => ("sysctls", value(ns.sysctls.known())),
            DumpWhat::Ipvs => {
                let services: Vec<_> = self.ipvs().collect();
                ("ipvs", value(ns.ipvs.known().map(|_| &services)))
            }
            DumpWhat::Conntrack if !ns.conntrack_stats.is_not_asked() => (
                "conntrack-stats",
                value(ns.conntrack_stats.known().and_then(Option::as_ref)),
            ),
            DumpWhat::Conntrack => {
                let entries: Vec<_> = self.conntrack().collect();
                let read = ns.conntrack_table.known().is_some() || !entries.is_empty();
                ("conntrack", value(read.then_some(&entries)))
            }
            DumpWhat::Netfilter => (
                "netfilter",
                serde_json::json!({
                    "nftables": value(ns.nft.known()),
                    "iptables-legacy": value(ns.legacy.known()),
                    "ipsets": value(Some(&known(&ns.ipsets))),
                }),
            ),
        };
        let missing = self.missing();
        DumpJson {
            schema: "netpath.dump/v1",
            node: &self.key.node,
            netns: &self.place,
            netns_inode: self.key.netns.ino,
            what,
            missing: (!missing.is_empty()).then(|| missing.join("; ")),
            items,
        }
    }
}

fn said(lines: &[String]) -> String {
    let lines: Vec<_> = lines.iter().map(|line| escaped(line)).collect();
    let mut text = lines.join("\n");
    if !text.is_empty() {
        text.push('\n');
    }
    text
}

/// The model's types serialise without fail: their maps have text keys.
fn value<T: Serialize>(from: Option<&T>) -> serde_json::Value {
    serde_json::to_value(from).unwrap_or(serde_json::Value::Null)
}

/// Those that were read.
fn known(sets: &BTreeMap<String, Section<Ipset>>) -> BTreeMap<&str, &Ipset> {
    let read = sets.iter();
    read.filter_map(|(name, set)| Some((name.as_str(), set.known()?)))
        .collect()
}

fn each<T>(lines: &mut Vec<String>, section: &Section<Vec<T>>, words: impl Fn(&T) -> String) {
    lines.extend(section.known().into_iter().flatten().map(words));
}

fn setting<T: ToString>(lines: &mut Vec<String>, name: &str, section: &Section<T>) {
    lines.push(match section {
        Section::Known(value) => format!("{name} = {}", value.to_string()),
        Section::Missing(why) => format!("# {name}: {why}"),
        Section::NotAsked => format!("# {name}: not read"),
    });
}

fn flag(on: bool) -> u8 {
    u8::from(on)
}

fn sysctls(lines: &mut Vec<String>, all: &Sysctls, ns: &NetNs) {
    fn maybe<T: Copy, U: ToString>(
        lines: &mut Vec<String>,
        name: &str,
        section: &Section<Option<T>>,
        show: impl Fn(T) -> U,
    ) {
        match section {
            Section::Known(None) => lines.push(format!("# {name}: there is no such file")),
            Section::Known(Some(value)) => {
                lines.push(format!("{name} = {}", show(*value).to_string()));
            }
            Section::Missing(why) => lines.push(format!("# {name}: {why}")),
            Section::NotAsked => lines.push(format!("# {name}: not read")),
        }
    }
    maybe(
        lines,
        "net.bridge.bridge-nf-call-iptables",
        &all.bridge_nf_call_iptables,
        flag,
    );
    maybe(
        lines,
        "net.bridge.bridge-nf-call-ip6tables",
        &all.bridge_nf_call_ip6tables,
        flag,
    );
    setting(lines, "net.ipv4.ip_default_ttl", &all.ip_default_ttl);
    let on = |section: &Section<bool>| match section {
        Section::Known(value) => Section::Known(flag(*value)),
        Section::Missing(why) => Section::Missing(why.clone()),
        Section::NotAsked => Section::NotAsked,
    };
    setting(
        lines,
        "net.ipv4.ip_nonlocal_bind",
        &on(&all.ip_nonlocal_bind),
    );
    setting(
        lines,
        "net.ipv4.ip_forward_use_pmtu",
        &on(&all.ip_forward_use_pmtu),
    );
    setting(
        lines,
        "net.ipv4.icmp_echo_ignore_all",
        &on(&all.icmp_echo_ignore_all),
    );
    setting(
        lines,
        "net.ipv4.fib_multipath_hash_policy",
        &all.fib_multipath_hash_policy,
    );
    setting(
        lines,
        "net.ipv6.fib_multipath_hash_policy",
        &all.fib_multipath_hash_policy6,
    );
    if let Section::Known((from, to)) = all.ip_local_port_range {
        lines.push(format!("net.ipv4.ip_local_port_range = {from} {to}"));
    }
    maybe(
        lines,
        "net.netfilter.nf_conntrack_max",
        &all.nf_conntrack_max,
        |n| n,
    );
    maybe(
        lines,
        "net.netfilter.nf_conntrack_count",
        &all.nf_conntrack_count,
        |n| n,
    );
    maybe(
        lines,
        "net.netfilter.nf_conntrack_tcp_be_liberal",
        &all.nf_conntrack_tcp_be_liberal,
        flag,
    );
    maybe(
        lines,
        "net.netfilter.nf_conntrack_tcp_loose",
        &all.nf_conntrack_tcp_loose,
        flag,
    );
    maybe(
        lines,
        "net.netfilter.nf_conntrack_acct",
        &all.nf_conntrack_acct,
        flag,
    );
    match &all.inet_all {
        Section::Known(conf) => inet(lines, "all", *conf),
        Section::Missing(why) => lines.push(format!("# net.ipv4.conf.all: {why}")),
        Section::NotAsked => {}
    }
    match &all.inet6_all {
        Section::Known(conf) => inet6(lines, "all", *conf),
        Section::Missing(why) => lines.push(format!("# net.ipv6.conf.all: {why}")),
        Section::NotAsked => {}
    }
    for link in ns.links.known().into_iter().flatten() {
        if let Some(conf) = link.inet {
            inet(lines, &link.name, conf);
        }
        if let Some(conf) = link.inet6 {
            inet6(lines, &link.name, conf);
        }
    }
}

fn inet(lines: &mut Vec<String>, dev: &str, conf: InetConf) {
    for (name, value) in [
        ("forwarding", flag(conf.forwarding)),
        ("rp_filter", conf.rp_filter),
        ("accept_local", flag(conf.accept_local)),
        ("route_localnet", flag(conf.route_localnet)),
        ("proxy_arp", flag(conf.proxy_arp)),
        ("arp_ignore", conf.arp_ignore),
        ("arp_announce", conf.arp_announce),
        ("arp_filter", flag(conf.arp_filter)),
        ("src_valid_mark", flag(conf.src_valid_mark)),
        (
            "ignore_routes_with_linkdown",
            flag(conf.ignore_routes_with_linkdown),
        ),
    ] {
        lines.push(format!("net.ipv4.conf.{dev}.{name} = {value}"));
    }
}

fn inet6(lines: &mut Vec<String>, dev: &str, conf: Inet6Conf) {
    for (name, value) in [
        ("disable_ipv6", flag(conf.disable_ipv6)),
        ("forwarding", flag(conf.forwarding)),
        ("proxy_ndp", flag(conf.proxy_ndp)),
        ("accept_ra", conf.accept_ra),
        (
            "ignore_routes_with_linkdown",
            flag(conf.ignore_routes_with_linkdown),
        ),
    ] {
        lines.push(format!("net.ipv6.conf.{dev}.{name} = {value}"));
    }
}

/// As `ipset list` names it, with what decides.
fn ipset(lines: &mut Vec<String>, set: &Ipset) {
    let family = match set.v6 {
        None => "",
        Some(false) => " family inet",
        Some(true) => " family inet6",
    };
    let count = set.members.len();
    lines.push(format!(
        "ipset {} {}{family} # revision {}, {count} members",
        set.name, set.kind, set.revision
    ));
    lines.extend(set.members.iter().map(|member| format!("  {member}")));
}
