//! How much of the rules is read: base chains, the chains they lead to, or everything.
//!
//! A chain is followed to its targets as long as these are few: kube-proxy's `KUBE-SERVICES` leads to one
//! chain per Service, of which a trace needs one or two, and asks for them by name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::iptables::Blob;
use super::{nft, object, set, sieve};
use crate::collect::error::{Error, Result};
use crate::collect::netlink::Netlink;
use crate::model::Section;
use crate::model::netfilter::{
    Backend, Chain, Elements, Expr, Family, Rule, Ruleset, Set, SetData, SetElem, Table, Verdict,
};
use crate::model::want::{Depth, Packets};
use crate::model::xtables::XtTarget;

/// A chain with more different targets than this is not followed.
const FEW_TARGETS: usize = 64;
/// Most chains that one request follows to.
const MOST_CHAINS: usize = 512;
/// Named sets with more elements than this are asked by key.
const FEW_ELEMENTS: usize = 512;
/// Most elements read of one set.
const MOST_ELEMENTS: usize = 1 << 20;
/// How often a read is begun again because rules changed meanwhile.
const ATTEMPTS: usize = 5;

/// Rules of nf_tables at a depth, all from one generation. `about` makes [`Depth::Likely`] leaner.
pub fn ruleset(socket: &mut Netlink, depth: Depth, about: Option<&Packets>) -> Result<Ruleset> {
    for _ in 0..ATTEMPTS {
        let generation = nft::generation(socket)?;
        let tables = tables(socket, depth, about);
        if nft::generation(socket)? == generation {
            return Ok(Ruleset {
                generation: Some(generation),
                tables: tables?,
            });
        }
        // What went away while it was read is a change, not a fault: begin again.
    }
    Err(Error::Changing {
        operation: "list nf_tables rules".to_owned(),
    })
}

fn tables(socket: &mut Netlink, depth: Depth, about: Option<&Packets>) -> Result<Vec<Table>> {
    let heads = nft::tables(socket)?;
    if heads.is_empty() {
        return Ok(Vec::new());
    }
    let (chains, left_out) = nft::chains(socket, depth != Depth::Full)?;
    let flowtables = nft::flowtables(socket)?;
    let mut tables: Vec<Table> = heads
        .into_iter()
        .map(|head| Table {
            backend: Backend::Nft,
            chains_complete: !left_out
                .iter()
                .any(|(f, t)| *f == head.family && *t == head.name),
            family: head.family,
            name: head.name,
            dormant: head.dormant,
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
            sets_complete: false,
            flowtables: BTreeMap::new(),
            objects: Vec::new(),
            comment: head.comment,
        })
        .collect();
    for (family, name, chain) in chains {
        if let Some(table) = find(&mut tables, family, &name) {
            table.chains.insert(chain.name.clone(), chain);
        }
    }
    for (family, name, flowtable, state) in flowtables {
        if let Some(table) = find(&mut tables, family, &name) {
            table.flowtables.insert(flowtable, state);
        }
    }
    for (family, name, object) in object::all(socket)? {
        if let Some(table) = find(&mut tables, family, &name) {
            table.objects.push(object);
        }
    }
    let mut budget = MOST_CHAINS;
    for table in &mut tables {
        match depth {
            Depth::Identity | Depth::NoRules => {}
            Depth::Likely if !meets(table.family, about) => {}
            Depth::Likely => likely(socket, table, about, &mut budget)?,
            Depth::Full => full(socket, table)?,
        }
    }
    Ok(tables)
}

fn find<'a>(tables: &'a mut [Table], family: Family, name: &str) -> Option<&'a mut Table> {
    tables
        .iter_mut()
        .find(|table| table.family == family && table.name == name)
}

fn full(socket: &mut Netlink, table: &mut Table) -> Result<()> {
    for chain in table.chains.values_mut() {
        let (rules, _) = nft::rules(socket, table.family, &table.name, &chain.name, None)?;
        chain.rules = Section::Known(rules);
    }
    for mut set in set::heads(socket, table.family, &table.name)? {
        let elements = set::elements(socket, table.family, &table.name, &set.name, MOST_ELEMENTS)?;
        set.elements = elements.map_or_else(
            || Elements::Missing(format!("it has more than {MOST_ELEMENTS} elements")),
            Elements::Known,
        );
        table.sets.insert(set.name.clone(), set);
    }
    table.sets_complete = true;
    Ok(())
}

/// Whether tables of a family see any of the packets.
pub fn meets(family: Family, about: Option<&Packets>) -> bool {
    let any =
        |v6: bool| about.is_none_or(|about| about.to.iter().any(|to| to.addr.is_ipv6() == v6));
    match family {
        Family::Ip => any(false),
        Family::Ip6 => any(true),
        Family::Inet | Family::Arp | Family::Netdev | Family::Bridge => true,
    }
}

fn likely(
    socket: &mut Netlink,
    table: &mut Table,
    about: Option<&Packets>,
    budget: &mut usize,
) -> Result<()> {
    let bases: Vec<Chain> = std::mem::take(&mut table.chains).into_values().collect();
    let mut walk = Walk {
        socket,
        family: table.family,
        table: &table.name,
        about,
        chains: BTreeMap::new(),
        sets: BTreeMap::new(),
    };
    walk.follow(bases, budget)?;
    (table.chains, table.sets) = (walk.chains, walk.sets);
    Ok(())
}

/// Chains and the sets that their rules use, by name.
pub type Reached = (BTreeMap<String, Chain>, BTreeMap<String, Set>);

/// One chain with the chains it leads to and the sets these use. `None`: there is no such chain.
pub fn chain(
    socket: &mut Netlink,
    family: Family,
    table: &str,
    name: &str,
    about: Option<&Packets>,
) -> Result<Option<Reached>> {
    let Some(head) = nft::chain_head(socket, family, table, name)? else {
        return Ok(None);
    };
    let mut walk = Walk {
        socket,
        family,
        table,
        about,
        chains: BTreeMap::new(),
        sets: BTreeMap::new(),
    };
    walk.follow(vec![head], &mut { MOST_CHAINS })?;
    Ok(Some((walk.chains, walk.sets)))
}

/// A set with all its elements; `None`: there is no such set.
pub fn whole_set(
    socket: &mut Netlink,
    family: Family,
    table: &str,
    name: &str,
) -> Result<Option<Set>> {
    let Some(mut set) = set::find(socket, family, table, name)? else {
        return Ok(None);
    };
    set.elements = set::elements(socket, family, table, name, MOST_ELEMENTS)?.map_or_else(
        || Elements::Missing(format!("it has more than {MOST_ELEMENTS} elements")),
        Elements::Known,
    );
    Ok(Some(set))
}

struct Walk<'a> {
    socket: &'a mut Netlink,
    family: Family,
    table: &'a str,
    about: Option<&'a Packets>,
    chains: BTreeMap<String, Chain>,
    sets: BTreeMap<String, Set>,
}

impl Walk<'_> {
    fn follow(&mut self, start: Vec<Chain>, budget: &mut usize) -> Result<()> {
        let mut seen: BTreeSet<String> = start.iter().map(|chain| chain.name.clone()).collect();
        let mut queue = VecDeque::from(start);
        while let Some(mut chain) = queue.pop_front() {
            let (rules, sieved) = nft::rules(
                self.socket,
                self.family,
                self.table,
                &chain.name,
                self.about,
            )?;
            let mut targets = targets(&rules);
            for name in sets_of(&rules) {
                self.load_set(&name)?;
                targets.extend(self.sets.get(&name).map(map_targets).unwrap_or_default());
            }
            chain.rules = Section::Known(rules);
            chain.sieved = sieved;
            self.chains.insert(chain.name.clone(), chain);
            if targets.len() > FEW_TARGETS {
                continue;
            }
            for target in targets {
                if *budget == 0 || !seen.insert(target.clone()) {
                    continue;
                }
                *budget -= 1;
                let head = nft::chain_head(self.socket, self.family, self.table, &target)?;
                queue.extend(head);
            }
        }
        Ok(())
    }

    fn load_set(&mut self, name: &str) -> Result<()> {
        if self.sets.contains_key(name) {
            return Ok(());
        }
        let Some(mut set) = set::find(self.socket, self.family, self.table, name)? else {
            return Ok(());
        };
        let limit = if set.flags.anonymous {
            MOST_ELEMENTS
        } else {
            FEW_ELEMENTS
        };
        let elements = set::elements(self.socket, self.family, self.table, name, limit)?;
        set.elements = match elements {
            Some(elements) => Elements::Known(elements),
            None => self.by_key(&set)?,
        };
        self.sets.insert(name.to_owned(), set);
        Ok(())
    }

    /// Elements of a large set that the packets are likely to need.
    fn by_key(&mut self, set: &Set) -> Result<Elements> {
        let keys = self.about.map(|about| sieve::keys(set, self.family, about));
        let mut answers = Vec::new();
        for key in keys.unwrap_or_default() {
            let elem = set::element_by_key(self.socket, self.family, self.table, &set.name, &key)?;
            answers.push((key, elem));
        }
        Ok(if answers.is_empty() {
            Elements::NotAsked
        } else {
            Elements::ByKey(answers)
        })
    }
}

/// Chains that rules jump or go to.
fn targets(rules: &[Rule]) -> BTreeSet<String> {
    let exprs = rules.iter().flat_map(|rule| &rule.exprs);
    exprs
        .filter_map(|expr| match expr {
            Expr::Verdict(verdict) | Expr::Target(XtTarget::Standard(verdict)) => target(verdict),
            _ => None,
        })
        .collect()
}

fn target(verdict: &Verdict) -> Option<String> {
    match verdict {
        Verdict::Jump(chain) | Verdict::Goto(chain) => Some(chain.clone()),
        _ => None,
    }
}

fn sets_of(rules: &[Rule]) -> BTreeSet<String> {
    let exprs = rules.iter().flat_map(|rule| &rule.exprs);
    exprs
        .filter_map(|expr| match expr {
            Expr::Lookup { set, .. } | Expr::Dynset { set, .. } | Expr::ObjrefMap { set, .. } => {
                Some(set.clone())
            }
            _ => None,
        })
        .collect()
}

fn map_targets(set: &Set) -> Vec<String> {
    let elements: Vec<&SetElem> = match &set.elements {
        Elements::Known(elements) => elements.iter().collect(),
        Elements::ByKey(answers) => answers
            .iter()
            .filter_map(|(_, elem)| elem.as_ref())
            .collect(),
        Elements::NotAsked | Elements::Missing(_) => Vec::new(),
    };
    elements
        .into_iter()
        .filter_map(|element| match &element.data {
            Some(SetData::Verdict(verdict)) => target(verdict),
            _ => None,
        })
        .collect()
}

/// A legacy table at a depth. Only the chains that are sent are decoded.
pub fn legacy_table(blob: &Blob, depth: Depth, about: Option<&Packets>) -> Result<Table> {
    let mut table = blob.empty_table();
    match depth {
        Depth::Identity | Depth::NoRules => {
            for name in blob.base_chains() {
                table
                    .chains
                    .extend(blob.head(&name).map(|head| (name, head)));
            }
        }
        Depth::Likely => {
            table.chains = legacy_reached(blob, blob.base_chains(), about)?;
        }
        Depth::Full => {
            for name in blob.all_chains() {
                let chain = blob.chain(&name, None)?;
                table.chains.extend(chain.map(|chain| (name, chain)));
            }
        }
    }
    table.chains_complete = table.chains.len() == blob.count();
    Ok(table)
}

/// Some chains of a legacy table with those they lead to, by the same bounds as for nf_tables.
pub fn legacy_reached(
    blob: &Blob,
    start: Vec<String>,
    about: Option<&Packets>,
) -> Result<BTreeMap<String, Chain>> {
    let mut budget = MOST_CHAINS;
    let mut seen: BTreeSet<String> = start.iter().cloned().collect();
    let mut queue = VecDeque::from(start);
    let mut chains = BTreeMap::new();
    while let Some(name) = queue.pop_front() {
        let Some(chain) = blob.chain(&name, about)? else {
            continue;
        };
        let targets = chain.rules.known().map(|rules| targets(rules));
        chains.insert(name, chain);
        let few = targets.filter(|targets| targets.len() <= FEW_TARGETS);
        for target in few.unwrap_or_default() {
            if budget > 0 && seen.insert(target.clone()) {
                budget -= 1;
                queue.push_back(target);
            }
        }
    }
    Ok(chains)
}
