//! What a kube-proxy has written on a node: one set of rules for each mode, backend and family.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::Section;
use crate::model::netfilter::{
    Backend, Elements, Expr, Family, Hook, Ruleset, Set, SetData, SetElem, Sieved, Table, Verdict,
};
use crate::model::netns::NetNs;

use super::expect::Portal;
use super::ipvs::Servers;
use super::leads::{Leads, leads, number};
use super::rule::{Act, facts};

/// Mode of kube-proxy, and where it keeps its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Mode iptables, in nf_tables.
    IptablesNft,
    /// Mode iptables, in x_tables.
    IptablesLegacy,
    /// Mode nftables.
    Nftables,
    /// Mode ipvs.
    Ipvs,
}

impl Kind {
    /// `iptables-nft`, `iptables-legacy`, `nftables` or `ipvs`.
    pub fn name(self) -> &'static str {
        match self {
            Self::IptablesNft => "iptables-nft",
            Self::IptablesLegacy => "iptables-legacy",
            Self::Nftables => "nftables",
            Self::Ipvs => "ipvs",
        }
    }
}

/// What is found for a portal.
pub(super) enum Look {
    /// It was not read.
    NotRead,
    /// It can't be told, and why.
    Unknown(String),
    /// There is nothing for it.
    Nothing,
    /// Rules lead on; the object that takes the packets in, and where they are led.
    Found(String, Box<Leads>),
}

/// One set of rules.
pub(super) struct Proxy<'a> {
    /// Mode and backend.
    pub kind: Kind,
    /// Family.
    pub v6: bool,
    /// Why none of it acts, where that is so.
    pub idle: Option<String>,
    rules: Rules<'a>,
}

enum Rules<'a> {
    Iptables(Iptables<'a>),
    Nftables(&'a Table),
    Ipvs(Servers<'a>),
}

/// Rules that lead to each portal, in order.
type Index<'a> = BTreeMap<Portal, Vec<Entry<'a>>>;

struct Iptables<'a> {
    table: &'a Table,
    services: Index<'a>,
    /// KUBE-SERVICES is known for these addresses alone.
    sieved: Option<&'a Sieved>,
    /// Why not all of KUBE-SERVICES is known.
    opaque: Option<String>,
    /// `None`: not read.
    node_ports: Option<Index<'a>>,
}

struct Entry<'a> {
    chain: &'a str,
    by: String,
    comment: Option<&'a str>,
}

/// A portal that rules know.
pub(super) struct Known<'a> {
    /// The portal.
    pub portal: Portal,
    /// The object that holds it.
    pub by: String,
    /// The chain that it leads to.
    pub chain: Option<&'a str>,
    /// The address, where that of a NodePort may also be one that a Service names.
    pub addr: Option<IpAddr>,
    /// The comment that it carries.
    pub comment: Option<&'a str>,
}

/// All sets of rules in a namespace, of both families.
pub(super) fn proxies(ns: &NetNs) -> Vec<Proxy<'_>> {
    let mut found = Vec::new();
    let rulesets = [&ns.nft, &ns.legacy].into_iter().filter_map(Section::known);
    for table in rulesets.flat_map(|rules: &Ruleset| &rules.tables) {
        let v6 = match table.family {
            Family::Ip => false,
            Family::Ip6 => true,
            _ => continue,
        };
        let kind = match (table.backend, table.name.as_str()) {
            (Backend::Nft, "kube-proxy") => Kind::Nftables,
            (Backend::Nft, "nat") => Kind::IptablesNft,
            (Backend::Legacy, "nat") => Kind::IptablesLegacy,
            _ => continue,
        };
        let entrance = entrance(kind);
        let rules = if kind == Kind::Nftables {
            let there = table.chains.contains_key(entrance) || table.chains_complete;
            there.then_some(Rules::Nftables(table))
        } else {
            Iptables::of(table, v6).map(Rules::Iptables)
        };
        let place = || format!("table {} {}", table.family.name(), table.name);
        let idle = if table.dormant {
            Some(format!("{} is dormant, none of its chains acts", place()))
        } else if table.chains.contains_key(entrance) {
            None
        } else {
            Some(format!("{} has no chain {entrance}", place()))
        };
        if let Some(rules) = rules {
            found.push(Proxy {
                kind,
                v6,
                idle,
                rules,
            });
        }
    }
    found.extend([false, true].into_iter().filter_map(|v6| {
        let rules = Rules::Ipvs(Servers::of(ns, v6)?);
        let kind = Kind::Ipvs;
        let idle = None;
        Some(Proxy {
            kind,
            v6,
            idle,
            rules,
        })
    }));
    // What does not act counts where nothing else does.
    let acts = |v6: bool, found: &[Proxy<'_>]| {
        let mut own = found.iter().filter(|own| own.v6 == v6);
        own.any(|own| own.idle.is_none())
    };
    let acting = [false, true].map(|v6| acts(v6, &found));
    found.retain(|own| own.idle.is_none() || !acting[usize::from(own.v6)]);
    found.sort_by_key(|proxy| (proxy.v6, proxy.kind));
    found
}

/// The chain by which packets come to the rules of Services.
fn entrance(kind: Kind) -> &'static str {
    if kind == Kind::Nftables {
        "services"
    } else {
        "KUBE-SERVICES"
    }
}

impl<'a> Proxy<'a> {
    /// What stands there for a portal.
    pub fn look(&self, portal: Portal) -> Look {
        match &self.rules {
            Rules::Iptables(rules) => rules.look(portal, self.v6),
            Rules::Nftables(table) => nftables(table, portal, self.v6),
            Rules::Ipvs(rules) => rules.look(portal, self.v6),
        }
    }

    /// All portals that it knows; `None` where not all were read.
    pub fn all(&self) -> Option<Vec<Known<'a>>> {
        match &self.rules {
            Rules::Iptables(rules) => rules.all(),
            Rules::Nftables(table) => {
                let mut all = Vec::new();
                for (name, by_address) in [("service-ips", true), ("service-nodeports", false)] {
                    let elements = match table.sets.get(name).map(|set| &set.elements) {
                        Some(Elements::Known(elements)) => elements,
                        None if table.sets_complete => continue,
                        _ => return None,
                    };
                    all.extend(elements.iter().filter_map(|element| {
                        let portal = portal_of(&element.key, by_address, self.v6)?;
                        let Some(SetData::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain))) =
                            &element.data
                        else {
                            return None;
                        };
                        Some(Known {
                            portal,
                            by: format!("map {name} element {}", words(portal)),
                            chain: Some(chain),
                            addr: None,
                            comment: element.comment.as_deref(),
                        })
                    }));
                }
                Some(all)
            }
            Rules::Ipvs(rules) => rules.all(self.v6),
        }
    }

    /// Hooks at which no base chain leads to the rules, by the name of the chain that should.
    pub fn unhooked(&self) -> Vec<&'static str> {
        let Some(table) = self.table().filter(|_| self.idle.is_none()) else {
            return Vec::new();
        };
        let to = entrance(self.kind);
        [Hook::Prerouting, Hook::Output]
            .into_iter()
            .filter(|hook| {
                let mut at_hook = table.chains.values().filter(|chain| {
                    let base = chain.base.as_ref();
                    base.is_some_and(|base| base.hook == *hook)
                });
                // One whose rules were not read or sieved may lead there.
                !at_hook.any(|chain| {
                    chain.rules.known().is_none_or(|rules| {
                        rules.iter().any(|rule| {
                            let found = facts(table, rule, self.v6);
                            matches!(found.act, Some(Act::Jump(own) | Act::Goto(own)) if own == to)
                                || found.opaque.is_some()
                        })
                    })
                }) && table.chains_complete
            })
            .map(Hook::name)
            .collect()
    }

    /// Whether NodePorts are for loopback addresses alone, as the rules say.
    pub fn node_ports_are_local(&self) -> bool {
        let Some(table) = self.table() else {
            return false;
        };
        let loopback = |key: &[u8]| match *key {
            [first, _, _, _] => first == 127,
            [.., last] => key.len() == 16 && last == 1 && key.iter().rev().skip(1).all(|b| *b == 0),
            [] => false,
        };
        if let Some(Elements::Known(elements)) =
            table.sets.get("nodeport-ips").map(|set| &set.elements)
        {
            return !elements.is_empty() && elements.iter().all(|element| loopback(&element.key));
        }
        let rules = table
            .chains
            .get(entrance(self.kind))
            .and_then(|chain| chain.rules.known());
        let to_ports = rules.into_iter().flatten().filter_map(|rule| {
            let found = facts(table, rule, self.v6);
            let own = matches!(found.act, Some(Act::Jump("KUBE-NODEPORTS")));
            own.then_some(found.dst)
        });
        let mut any = false;
        for dst in to_ports {
            any = true;
            if !matches!(dst, Some((prefix, false)) if prefix.addr().is_loopback()) {
                return false;
            }
        }
        any
    }

    fn table(&self) -> Option<&'a Table> {
        match &self.rules {
            Rules::Iptables(rules) => Some(rules.table),
            Rules::Nftables(table) => Some(table),
            Rules::Ipvs(_) => None,
        }
    }

    /// Why packets for a way in do not come to its rules at a hook, where that is plain from the rules. `own` is
    /// the address that they come to, where it is one of the node's own.
    pub fn unreached(&self, portal: Portal, own: Option<IpAddr>, hook: Hook) -> Option<String> {
        if let Some(why) = &self.idle {
            return Some(why.clone());
        }
        if self.unhooked().contains(&hook.name()) {
            return Some(unhooked_words(hook.name()));
        }
        let table = self.table()?;
        let rules = table.chains.get(entrance(self.kind))?.rules.known()?;
        let missing = if self.kind == Kind::Nftables {
            let map = if portal.addr.is_some() {
                "service-ips"
            } else {
                "service-nodeports"
            };
            let asks = |expr: &Expr| matches!(expr, Expr::Lookup { set, .. } if set == map);
            let asked = rules.iter().any(|rule| rule.exprs.iter().any(asks));
            (!asked).then(|| format!("no rule of chain services looks into map {map}"))
        } else {
            let leads = rules.iter().any(|rule| {
                let found = facts(table, rule, self.v6);
                matches!(
                    found.act,
                    Some(Act::Jump("KUBE-NODEPORTS") | Act::Goto("KUBE-NODEPORTS"))
                )
            });
            (portal.addr.is_none() && !leads)
                .then(|| "no rule of chain KUBE-SERVICES leads to KUBE-NODEPORTS".to_owned())
        };
        missing.or_else(|| {
            let set = table.sets.get("nodeport-ips")?;
            let own = own.filter(|_| portal.addr.is_none())?;
            let Elements::Known(elements) = &set.elements else {
                return None;
            };
            let key = match own {
                IpAddr::V4(own) => own.octets().to_vec(),
                IpAddr::V6(own) => own.octets().to_vec(),
            };
            let held = elements.iter().any(|element| element.key == key);
            (!held).then(|| format!("set nodeport-ips does not hold {own}"))
        })
    }
}

/// A hook from which nothing leads to the rules, in words.
pub(super) fn unhooked_words(hook: &str) -> String {
    format!("no base chain at hook {hook} leads to the rules of Services")
}

impl<'a> Iptables<'a> {
    fn of(table: &'a Table, v6: bool) -> Option<Self> {
        let Some(chain) = table.chains.get("KUBE-SERVICES") else {
            // The chains that it led to tell whose table it was.
            let left = |name: &String| {
                ["KUBE-SVC-", "KUBE-SEP-", "KUBE-EXT-"]
                    .iter()
                    .any(|own| name.starts_with(own))
            };
            let whole = table.chains_complete && table.chains.keys().any(left);
            return whole.then(|| Self {
                table,
                services: Index::new(),
                sieved: None,
                opaque: None,
                node_ports: Some(Index::new()),
            });
        };
        let mut opaque = None;
        let services = match &chain.rules {
            Section::Known(_) => index(table, "KUBE-SERVICES", v6, &mut opaque),
            Section::Missing(why) => {
                opaque = Some(format!("chain KUBE-SERVICES could not be read: {why}"));
                None
            }
            Section::NotAsked => return None,
        };
        let node_ports = index(table, "KUBE-NODEPORTS", v6, &mut opaque);
        let services = services.unwrap_or_default();
        // Mode ipvs has a chain KUBE-SERVICES, too, but no rule for a Service in it.
        if services.is_empty() && opaque.is_none() && !table.chains.contains_key("KUBE-NODEPORTS") {
            return None;
        }
        Some(Self {
            table,
            services,
            sieved: chain.sieved.as_ref(),
            opaque,
            node_ports,
        })
    }

    fn look(&self, portal: Portal, v6: bool) -> Look {
        let index = match portal.addr {
            Some(addr) => {
                if self.sieved.is_some_and(|sieved| !sieved.to.contains(&addr)) {
                    return Look::NotRead;
                }
                &self.services
            }
            // Rules that were sieved out name another destination: none of them is for all addresses.
            None => match &self.node_ports {
                Some(index) => index,
                None => return Look::NotRead,
            },
        };
        let Some(entry) = index.get(&portal).and_then(|entries| entries.first()) else {
            return match &self.opaque {
                Some(why) => Look::Unknown(why.clone()),
                None => Look::Nothing,
            };
        };
        Look::Found(
            entry.by.clone(),
            Box::new(leads(self.table, entry.chain, portal, v6)),
        )
    }

    fn all(&self) -> Option<Vec<Known<'a>>> {
        if self.sieved.is_some() {
            return None;
        }
        let indexes = [Some(&self.services), self.node_ports.as_ref()];
        let mut all = Vec::new();
        for (portal, entries) in indexes.into_iter().flatten().flatten() {
            let entries = entries.iter();
            all.extend(entries.map(|entry| Known {
                portal: *portal,
                by: entry.by.clone(),
                chain: Some(entry.chain),
                addr: None,
                comment: entry.comment,
            }));
        }
        Some(all)
    }
}

/// Rules of a chain that lead a portal's packets on without further conditions; `None`: not read.
fn index<'a>(
    table: &'a Table,
    chain: &str,
    v6: bool,
    opaque: &mut Option<String>,
) -> Option<Index<'a>> {
    let chain = table.chains.get(chain)?;
    let rules = chain.rules.known()?;
    let mut index = Index::new();
    let whole = if v6 { 128 } else { 32 };
    for rule in rules {
        let facts = facts(table, rule, v6);
        if let Some(what) = &facts.opaque {
            let number = number(table, chain, rule.handle);
            opaque.get_or_insert(format!("{number}: {what} is not known"));
        }
        let addr = match facts.dst {
            None => None,
            Some((prefix, false)) if prefix.len() == whole => Some(prefix.addr()),
            Some(_) => continue,
        };
        let to = match facts.act {
            Some(Act::Jump(to) | Act::Goto(to)) if !facts.other => to,
            _ => continue,
        };
        let (Some(protocol), Some(port)) = (facts.protocol, facts.dport) else {
            continue;
        };
        let portal = Portal {
            addr,
            protocol,
            port,
        };
        index.entry(portal).or_default().push(Entry {
            chain: to,
            by: number(table, chain, rule.handle),
            comment: rule.comment.as_deref(),
        });
    }
    Some(index)
}

fn nftables(table: &Table, portal: Portal, v6: bool) -> Look {
    let name = match portal.addr {
        Some(_) => "service-ips",
        None => "service-nodeports",
    };
    let Some(set) = table.sets.get(name) else {
        return if table.sets_complete {
            Look::Nothing
        } else {
            Look::NotRead
        };
    };
    let element = match element(set, portal, v6) {
        Ok(Some(element)) => element,
        Ok(None) => return Look::Nothing,
        Err(look) => return look,
    };
    let by = format!("map {name} element {}", words(portal));
    match &element.data {
        Some(SetData::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain))) => {
            Look::Found(by, Box::new(leads(table, chain, portal, v6)))
        }
        _ => Look::Unknown(format!("{by} leads to no chain")),
    }
}

fn element(set: &Set, portal: Portal, v6: bool) -> Result<Option<&SetElem>, Look> {
    let by_address = portal.addr.is_some();
    let fits = |key: &[u8]| portal_of(key, by_address, v6) == Some(portal);
    match &set.elements {
        Elements::Known(elements) => Ok(elements.iter().find(|own| fits(&own.key))),
        Elements::ByKey(answers) => {
            let answer = answers.iter().find(|(key, _)| fits(key));
            answer.map(|(_, own)| own.as_ref()).ok_or(Look::NotRead)
        }
        Elements::NotAsked => Err(Look::NotRead),
        Elements::Missing(why) => Err(Look::Unknown(format!(
            "map {} could not be read: {why}",
            set.name
        ))),
    }
}

/// `ADDRESS . PROTOCOL . PORT`, or without address; each field is padded to words of four bytes.
fn portal_of(key: &[u8], by_address: bool, v6: bool) -> Option<Portal> {
    let width = match (by_address, v6) {
        (false, _) => 0,
        (true, false) => 4,
        (true, true) => 16,
    };
    let (addr, rest) = key.split_at_checked(width)?;
    let addr = match addr.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(addr).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(addr).ok()?)),
        _ => None,
    };
    let [protocol, _, _, _, high, low, _, _] = rest else {
        return None;
    };
    Some(Portal {
        addr,
        protocol: *protocol,
        port: u16::from_be_bytes([*high, *low]),
    })
}

/// `10.96.0.10 . tcp . 80`
pub(super) fn words(portal: Portal) -> String {
    let protocol = super::words::protocol(portal.protocol);
    match portal.addr {
        Some(addr) => format!("{addr} . {protocol} . {}", portal.port),
        None => format!("{protocol} . {}", portal.port),
    }
}
