//! A namespace with devices and routes, rules from `iptables-save` lines, and hooks to run.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::addr::Addr;
use crate::model::conntrack::NatRange;
use crate::model::link::{Link, LinkKind};
use crate::model::netfilter::*;
use crate::model::netns::{NetNs, NsIdentity};
use crate::model::packet::{L4, Packet};
use crate::model::route::{NextHop, Route, RouteKind};
use crate::model::rule as policy;
use crate::model::snapshot::NodeSnapshot;
use crate::model::topology::Topology;
use crate::model::want::Want;
use crate::model::xtables::*;
use crate::model::{IfIndex, NetNsId, NsKey, Prefix, Section};
use crate::simulate::netfilter::{HookOutcome, HookPoint, HookVerdict, Index, run};
use crate::simulate::skb::{Devices, Flows, Skb};
use crate::simulate::{Cx, Limits, Wants};

pub(super) const NODE: &str = "n1";

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub(super) fn key() -> NsKey {
    NsKey {
        node: NODE.to_owned(),
        netns: NetNsId { dev: 4, ino: 1 },
    }
}

fn link(index: u32, name: &str, kind: LinkKind) -> Link {
    Link {
        loopback: name == "lo",
        ..Link::new(IfIndex::new(index).unwrap(), name, kind)
    }
}

fn addr(index: u32, local: &str, len: u8) -> Addr {
    Addr {
        link: IfIndex::new(index).unwrap(),
        local: ip(local),
        prefix_len: len,
        peer: None,
        scope: if local.starts_with("127") { 254 } else { 0 },
        secondary: false,
        tentative: false,
        dadfailed: false,
        deprecated: false,
        nodad: false,
    }
}

fn route(table: u32, dst: &str, kind: RouteKind, index: u32, via: Option<&str>) -> Route {
    Route {
        table,
        dst: dst.parse().unwrap(),
        src: None,
        tos: 0,
        metric: 0,
        kind,
        scope: 0,
        protocol: 2,
        prefsrc: None,
        nexthops: vec![NextHop {
            via: via.map(ip),
            link: IfIndex::new(index),
            weight: 1,
            dead: false,
            linkdown: false,
            onlink: false,
            encap: None,
        }],
        nh_id: None,
        mtu: None,
        pref: 0,
        realm: None,
        unknown: Vec::new(),
    }
}

/// A node: lo 1, eth0 2 (10.88.0.11/24), cni0 3 (10.244.1.1/24), no rules.
pub(super) fn node() -> NetNs {
    let mut ns = NetNs::new(NsIdentity {
        id: key().netns,
        host: true,
        pod_uid: None,
        paths: Vec::new(),
        processes: Vec::new(),
    });
    ns.ipvs = Section::Known(None);
    ns.links = Section::Known(vec![
        link(1, "lo", LinkKind::Device),
        link(2, "eth0", LinkKind::Device),
        link(
            3,
            "cni0",
            LinkKind::Bridge(crate::model::link::Bridge::default()),
        ),
    ]);
    ns.addrs = Section::Known(vec![
        addr(1, "127.0.0.1", 8),
        addr(2, "10.88.0.11", 24),
        addr(3, "10.244.1.1", 24),
    ]);
    let rule = |priority, table| policy::Rule::bare(false, priority, table);
    ns.rules = Section::Known(vec![rule(0, 255), rule(32766, 254)]);
    ns.routes = Section::Known(vec![
        route(255, "127.0.0.0/8", RouteKind::Local, 1, None),
        route(255, "10.88.0.11/32", RouteKind::Local, 2, None),
        route(255, "10.244.1.1/32", RouteKind::Local, 3, None),
        route(254, "10.88.0.0/24", RouteKind::Unicast, 2, None),
        route(254, "10.244.1.0/24", RouteKind::Unicast, 3, None),
        route(
            254,
            "10.244.2.0/24",
            RouteKind::Unicast,
            2,
            Some("10.88.0.12"),
        ),
        route(254, "0.0.0.0/0", RouteKind::Unicast, 2, Some("10.88.0.1")),
    ]);
    ns.nft = Section::Known(Ruleset::default());
    ns.legacy = Section::Known(Ruleset::default());
    ns
}

/// Some default base chain.
pub(super) fn base(hook: Hook, priority: i32, kind: ChainKind) -> BaseChain {
    BaseChain {
        hook,
        priority,
        kind,
        policy: Policy::Accept,
        devices: Vec::new(),
        counters: None,
    }
}

pub(super) fn chain(name: &str, base: Option<BaseChain>, rules: Vec<Vec<Expr>>) -> Chain {
    let rules = rules.into_iter().zip(1..);
    Chain {
        name: name.to_owned(),
        handle: 1,
        base,
        sieved: None,
        comment: None,
        bound: false,
        rules: Section::Known(
            rules
                .map(|(exprs, handle)| Rule {
                    handle,
                    exprs,
                    comment: None,
                })
                .collect(),
        ),
    }
}

pub(super) fn table(family: Family, name: &str, chains: Vec<Chain>, sets: Vec<Set>) -> Table {
    Table {
        backend: Backend::Nft,
        family,
        name: name.to_owned(),
        dormant: false,
        chains: chains.into_iter().map(|c| (c.name.clone(), c)).collect(),
        chains_complete: true,
        sets: sets.into_iter().map(|s| (s.name.clone(), s)).collect(),
        sets_complete: true,
        flowtables: BTreeMap::new(),
        objects: Vec::new(),
        comment: None,
    }
}

pub(super) fn with_nft(tables: Vec<Table>) -> NetNs {
    let mut ns = node();
    ns.nft = Section::Known(Ruleset {
        generation: Some(1),
        tables,
    });
    ns
}

/// Legacy rules from lines of `iptables-save`.
pub(super) fn with_iptables(save: &str) -> NetNs {
    let mut ns = node();
    ns.legacy = Section::Known(Ruleset {
        generation: None,
        tables: parse_save(save),
    });
    ns
}

fn base_of(table: &str, name: &str) -> Option<BaseChain> {
    let hook = match name {
        "PREROUTING" => Hook::Prerouting,
        "INPUT" => Hook::Input,
        "FORWARD" => Hook::Forward,
        "OUTPUT" => Hook::Output,
        "POSTROUTING" => Hook::Postrouting,
        _ => return None,
    };
    let source = matches!(hook, Hook::Input | Hook::Postrouting);
    let (priority, kind) = match table {
        "raw" => (-300, ChainKind::Filter),
        "mangle" => (-150, ChainKind::Filter),
        "nat" if source => (100, ChainKind::Nat),
        "nat" => (-100, ChainKind::Nat),
        _ => (0, ChainKind::Filter),
    };
    Some(base(hook, priority, kind))
}

fn parse_save(save: &str) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for line in save.lines().map(str::trim) {
        let words = split(line);
        if let Some(name) = line.strip_prefix('*') {
            tables.push(table(Family::Ip, name, Vec::new(), Vec::new()));
            tables.last_mut().unwrap().backend = Backend::Legacy;
        } else if let Some(rest) = line.strip_prefix(':') {
            let table = tables.last_mut().unwrap();
            let mut words = rest.split_whitespace();
            let (name, policy) = (words.next().unwrap(), words.next().unwrap());
            let mut base = base_of(&table.name, name);
            if let Some(base) = base.as_mut().filter(|_| policy == "DROP") {
                base.policy = Policy::Drop;
            }
            table
                .chains
                .insert(name.to_owned(), chain(name, base, vec![]));
        } else if words.first().is_some_and(|word| word == "-A") {
            let table = tables.last_mut().unwrap();
            let rules = table.chains.get_mut(&words[1]).unwrap().rules.known_mut();
            let rules = rules.unwrap();
            rules.push(Rule {
                handle: rules.len() as u64 + 1,
                exprs: parse_rule(&words[2..]),
                comment: None,
            });
        }
    }
    tables
}

pub(super) fn split(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, part) in line.split('"').enumerate() {
        if index % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn masked(text: &str) -> (IpAddr, IpAddr) {
    let prefix: Prefix = if text.contains('/') {
        text.parse().unwrap()
    } else {
        Prefix::host(ip(text))
    };
    let bits = u32::MAX
        .checked_shl(32 - u32::from(prefix.len()))
        .unwrap_or(0);
    (prefix.addr(), IpAddr::from(bits.to_be_bytes()))
}

fn hex_pair(text: &str) -> (u32, u32) {
    let number = |t: &str| u32::from_str_radix(t.trim_start_matches("0x"), 16).unwrap();
    match text.split_once('/') {
        Some((value, mask)) => (number(value), number(mask)),
        None => (number(text), u32::MAX),
    }
}

fn range(text: &str) -> (u16, u16) {
    match text.split_once(':') {
        Some((a, b)) => (a.parse().unwrap(), b.parse().unwrap()),
        None => (text.parse().unwrap(), text.parse().unwrap()),
    }
}

fn states(text: &str) -> u16 {
    let one = |word: &str| match word {
        "INVALID" => 1,
        "ESTABLISHED" => 2,
        "RELATED" => 4,
        "NEW" => 8,
        "SNAT" => 64,
        "DNAT" => 128,
        "UNTRACKED" => 256,
        other => panic!("state {other}"),
    };
    text.split(',').map(one).sum()
}

fn nat_to(text: &str, flags: u32) -> NatRange {
    let (addrs, port) = match text.rsplit_once(':') {
        Some((addr, port)) => (addr, Some(port)),
        None => (text, None),
    };
    let (first, last) = addrs.split_once('-').unwrap_or((addrs, addrs));
    let ports = port.map(|port| {
        let (a, b) = port.split_once('-').unwrap_or((port, port));
        (a.parse().unwrap(), b.parse().unwrap())
    });
    let has_addr = !addrs.is_empty();
    NatRange {
        flags: flags | u32::from(has_addr) | if ports.is_some() { 2 } else { 0 },
        addrs: has_addr.then(|| (ip(first), ip(last))),
        ports,
        base: 0,
    }
}

pub(super) fn parse_rule(words: &[String]) -> Vec<Expr> {
    let mut head = HeaderMatch {
        src: None,
        dst: None,
        iif: None,
        oif: None,
        proto: None,
        fragment: None,
    };
    let mut matches: Vec<XtMatch> = Vec::new();
    let mut target = None;
    let mut not = false;
    let mut words = words.iter().map(String::as_str).peekable();
    while let Some(word) = words.next() {
        let mut next = || words.next().unwrap();
        match word {
            "!" => {
                not = true;
                continue;
            }
            "-s" => head.src = Some(masked(next())).map(|(a, m)| (a, m, not)),
            "-d" => head.dst = Some(masked(next())).map(|(a, m)| (a, m, not)),
            "-i" => head.iif = Some((next().to_owned(), not)),
            "-o" => head.oif = Some((next().to_owned(), not)),
            "-p" => {
                let number = match next() {
                    "tcp" => 6,
                    "udp" => 17,
                    "icmp" => 1,
                    other => panic!("protocol {other}"),
                };
                head.proto = Some((number, not));
            }
            "-m" => match next() {
                "tcp" => matches.push(XtMatch::Tcp {
                    sports: (0, u16::MAX),
                    dports: (0, u16::MAX),
                    flag_mask: 0,
                    flag_cmp: 0,
                    option: 0,
                    invert: 0,
                }),
                "udp" => matches.push(XtMatch::Udp {
                    sports: (0, u16::MAX),
                    dports: (0, u16::MAX),
                    invert: 0,
                }),
                "limit" => matches.push(XtMatch::Limit {
                    cost: 1000,
                    burst: 5,
                }),
                "mystery" => matches.push(XtMatch::Other {
                    name: "mystery".to_owned(),
                    revision: 0,
                    data: Vec::new(),
                }),
                _ => {}
            },
            "--dport" | "--sport" => {
                let ports = range(next());
                match matches.last_mut() {
                    Some(
                        XtMatch::Tcp { sports, dports, .. } | XtMatch::Udp { sports, dports, .. },
                    ) => {
                        *(if word == "--dport" { dports } else { sports }) = ports;
                    }
                    other => panic!("ports of {other:?}"),
                }
            }
            "--comment" => matches.push(XtMatch::Comment(next().to_owned())),
            "--ctstate" => matches.push(XtMatch::Conntrack(Box::new(ConntrackMatch {
                match_flags: 1,
                invert_flags: u16::from(not),
                state_mask: states(next()),
                ..ConntrackMatch::default()
            }))),
            "--mark" => {
                let (mark, mask) = hex_pair(next());
                let invert = not;
                matches.push(XtMatch::Mark { mark, mask, invert });
            }
            "--dst-type" | "--src-type" => {
                assert_eq!(next(), "LOCAL");
                let dst = word == "--dst-type";
                matches.push(XtMatch::Addrtype {
                    source: if dst { 0 } else { 4 },
                    dest: if dst { 4 } else { 0 },
                    invert_source: not,
                    invert_dest: not,
                    limit_in: false,
                    limit_out: false,
                });
            }
            "--probability" => {
                let share: f64 = next().parse().unwrap();
                matches.push(XtMatch::Statistic(Statistic::Random {
                    probability: (share * f64::from(1_u32 << 31)).round() as u32,
                    invert: not,
                }));
            }
            "--mode" | "--to-ports" | "--nfacct-name" => {
                next();
            }
            "--seconds" | "--name" => {
                let value = next();
                if let Some(XtMatch::Recent { name, seconds, .. }) = matches.last_mut() {
                    if word == "--name" {
                        value.clone_into(name);
                    } else {
                        *seconds = value.parse().unwrap();
                    }
                }
            }
            "--rcheck" | "--set" => matches.push(XtMatch::Recent {
                name: "list".to_owned(),
                seconds: 0,
                hit_count: 0,
                check_set: if word == "--set" { 2 } else { 1 },
                invert: not,
                side: 0,
                mask: None,
            }),
            "--reap" | "--rsource" => {}
            "-g" => target = Some(XtTarget::Standard(Verdict::Goto(next().to_owned()))),
            "-j" => target = Some(parse_target(next())),
            "--set-xmark" => {
                let (mark, mask) = hex_pair(next());
                target = Some(XtTarget::Mark { mark, mask });
            }
            "--to-destination" => target = Some(XtTarget::Dnat(nat_to(next(), 0))),
            "--to-source" => target = Some(XtTarget::Snat(nat_to(next(), 0))),
            "--random-fully" => {
                if let Some(XtTarget::Masquerade(range) | XtTarget::Snat(range)) = &mut target {
                    range.flags |= 16;
                }
            }
            "--reject-with" => {
                let with = match next() {
                    "icmp-port-unreachable" => 3,
                    "icmp-host-prohibited" => 6,
                    "tcp-reset" => 7,
                    other => panic!("reject {other}"),
                };
                target = Some(XtTarget::Reject { with, v6: false });
            }
            "--notrack" => {
                target = Some(XtTarget::Ct(Box::new(CtTarget {
                    flags: 1,
                    ..CtTarget::default()
                })));
            }
            other => panic!("iptables word {other}"),
        }
        not = false;
    }
    let mut exprs = vec![Expr::Header(Box::new(head))];
    exprs.extend(matches.into_iter().map(Expr::Match));
    exprs.extend(target.map(Expr::Target));
    exprs
}

fn parse_target(word: &str) -> XtTarget {
    let empty = NatRange {
        flags: 0,
        addrs: None,
        ports: None,
        base: 0,
    };
    match word {
        "ACCEPT" => XtTarget::Standard(Verdict::Accept),
        "DROP" => XtTarget::Standard(Verdict::Drop),
        "RETURN" => XtTarget::Standard(Verdict::Return),
        "MASQUERADE" => XtTarget::Masquerade(empty),
        "REDIRECT" => XtTarget::Redirect(empty),
        "REJECT" => XtTarget::Reject { with: 3, v6: false },
        "LOG" | "MARK" | "DNAT" | "SNAT" | "CT" => XtTarget::Rare(Box::new(RareTarget::Trace)),
        "MYSTERY" => XtTarget::Other {
            name: "MYSTERY".to_owned(),
            revision: 0,
            data: Vec::new(),
        },
        chain => XtTarget::Standard(Verdict::Jump(chain.to_owned())),
    }
}

/// A first TCP packet.
pub(super) fn tcp(src: &str, sport: Option<u16>, dst: &str, dport: u16) -> Packet {
    Packet::new(
        ip(src),
        ip(dst),
        L4::Tcp {
            sport,
            dport: Some(dport),
            flags: 2,
        },
    )
}

pub(super) fn skb(packet: Packet, local: bool) -> Skb {
    Skb {
        local,
        ..Skb::new(packet)
    }
}

/// One world to run hooks in.
pub(super) struct World {
    pub(super) topology: Topology,
    pub(super) wants: Wants,
    pub(super) limits: Limits,
    /// Entries that are asked for are not there.
    pub(super) no_other_flows: bool,
    /// Without the index.
    pub(super) one_by_one: bool,
}

impl World {
    pub(super) fn new(ns: NetNs) -> Self {
        let mut node = NodeSnapshot::new(NODE);
        node.netns.insert(ns.identity.id, ns);
        let mut topology = Topology::default();
        topology.nodes.insert(NODE.to_owned(), node);
        Self {
            topology,
            wants: Wants::new(),
            limits: Limits::default(),
            one_by_one: false,
            no_other_flows: false,
        }
    }

    /// Runs one hook; `devices`: incoming and outgoing index, 0 for none.
    pub(super) fn run(
        &mut self,
        hook: Hook,
        (iif, oif): (u32, u32),
        skb: Skb,
        flows: Flows,
    ) -> Vec<HookOutcome> {
        let before = (self.wants.clone(), skb.clone(), flows.clone());
        let mut cx = Cx {
            topology: &self.topology,
            index: if self.one_by_one {
                Index::off()
            } else {
                Index::default()
            },
            limits: self.limits,
            wants: std::mem::take(&mut self.wants),
            ended: 0,
            witness: false,
        };
        let at = HookPoint {
            ns: &key(),
            hook,
            bridge: false,
            devices: Devices {
                iif: IfIndex::new(iif),
                oif: IfIndex::new(oif),
                physin: None,
                physout: None,
                via: None,
            },
            reroutes: true,
        };
        let outcomes = run(&mut cx, &at, skb, flows);
        let wants = cx.wants;
        let mut asked = wants.values().flatten().filter_map(|want| match want {
            Want::Conntrack { tuple, zone, .. } => Some((*tuple, *zone)),
            _ => None,
        });
        let mut sources = wants.values().flatten().filter_map(|want| match want {
            Want::ConntrackFrom { tuple, .. } => Some(*tuple),
            _ => None,
        });
        let source = sources.next_back().filter(|_| self.no_other_flows);
        if let Some(tuple) = source {
            let ns = self.topology.nodes.get_mut(NODE).unwrap();
            let ns = ns.netns.get_mut(&key().netns).unwrap();
            ns.conntrack_from.push((tuple, Section::Known(Vec::new())));
            let (wants, skb, flows) = before;
            self.wants = wants;
            return self.run(hook, (iif, oif), skb, flows);
        }
        if let Some((tuple, zone)) = asked.next().filter(|_| self.no_other_flows) {
            let ns = self.topology.nodes.get_mut(NODE).unwrap();
            let ns = ns.netns.get_mut(&key().netns).unwrap();
            ns.conntrack.push((tuple, zone, Section::Known(None)));
            let (wants, skb, flows) = before;
            self.wants = wants;
            return self.run(hook, (iif, oif), skb, flows);
        }
        self.wants = wants;
        outcomes
    }

    /// Runs one hook that must give one outcome.
    pub(super) fn one(
        &mut self,
        hook: Hook,
        devices: (u32, u32),
        skb: Skb,
        flows: Flows,
    ) -> HookOutcome {
        let mut outcomes = self.run(hook, devices, skb, flows);
        assert_eq!(outcomes.len(), 1, "{outcomes:#?}");
        outcomes.remove(0)
    }
}

pub(super) fn is_accept(outcome: &HookOutcome) -> bool {
    outcome.verdict == HookVerdict::Accept
}

/// All steps of an outcome in words.
pub(super) fn said(outcome: &HookOutcome) -> String {
    let results = outcome.steps.iter().map(|step| step.result.as_str());
    results.collect::<Vec<_>>().join("; ")
}
