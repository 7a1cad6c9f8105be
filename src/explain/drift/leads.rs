//! Where a chain leads packets of a Service: all destinations that its rules translate to.
//!
//! Chance and a client's affinity choose among them, so that either way counts. Ways that other
//! conditions lead to (what a node's own programs or its pods send) are kept apart.

use std::collections::BTreeMap;

use crate::model::Section;
use crate::model::netfilter::{Backend, Chain, Elements, SetData, Table, Verdict};

use super::expect::{Portal, Target};
use super::rule::{Act, Facts, Sticky, facts};

/// Chains called deeper than this are no kube-proxy's.
const DEEPEST: usize = 8;
/// Chains of kube-proxy that only mark packets. They are many rules' first jump, and may be unread.
const MARKS: [&str; 3] = ["KUBE-MARK-MASQ", "KUBE-MARK-DROP", "mark-for-masquerade"];
/// Chains that are left for the source's sake: a Service's permitted sources are what it asks for.
const OF_SOURCES: &str = "KUBE-FW-";
/// Chains of one endpoint each.
const OF_ENDPOINT: [&str; 2] = ["KUBE-SEP-", "endpoint-"];

/// Where packets may be led.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Leads {
    /// Whoever sends.
    pub always: BTreeMap<Target, Way>,
    /// Only where something about the sender is so.
    pub sides: BTreeMap<Target, Way>,
    /// Something that decides was not read.
    pub not_read: bool,
    /// Why it can't be told, where something that decides is not known.
    pub unknown: Option<String>,
    /// The chain that chooses.
    pub chain: String,
}

/// How a destination is come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Way {
    /// Chain and rule that lead there.
    pub by: String,
    /// New clients may be led there.
    pub fresh: bool,
    /// Clients that were there before are led there again.
    pub sticky: Sticky,
}

/// Whether packets go on behind a rule or chain.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// None does.
    Ended,
    /// Some or all do.
    Goes,
}

/// All that packets of a portal may be led to from a chain on.
pub(super) fn leads(table: &Table, chain: &str, portal: Portal, v6: bool) -> Leads {
    let mut walk = Walk {
        table,
        portal,
        v6,
        found: Leads {
            chain: chain.to_owned(),
            ..Leads::default()
        },
    };
    let from = From {
        side: false,
        sticky: Sticky::Not,
        by: String::new(),
        chain,
    };
    walk.chain(chain, &from, 0);
    walk.found
}

/// What a chain was come to by.
#[derive(Clone)]
struct From<'a> {
    side: bool,
    sticky: Sticky,
    by: String,
    chain: &'a str,
}

struct Walk<'a> {
    table: &'a Table,
    portal: Portal,
    v6: bool,
    found: Leads,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, name: &'a str, from: &From<'a>, depth: usize) -> Then {
        if MARKS.contains(&name) {
            return Then::Goes;
        }
        if depth > DEEPEST {
            self.unknown(format!("chains call each other, {name} among them"));
            return Then::Ended;
        }
        let Some(chain) = self.table.chains.get(name) else {
            if self.table.chains_complete {
                self.unknown(format!("there is no chain {name}, which a rule leads to"));
            } else {
                self.found.not_read = true;
            }
            return Then::Ended;
        };
        let rules = match &chain.rules {
            Section::Known(rules) if chain.sieved.is_none() => rules,
            Section::Known(_) | Section::NotAsked => {
                self.found.not_read = true;
                return Then::Ended;
            }
            Section::Missing(why) => {
                self.unknown(format!("chain {name} could not be read: {why}"));
                return Then::Ended;
            }
        };
        for rule in rules {
            let facts = facts(self.table, rule, self.v6);
            let number = number(self.table, chain, rule.handle);
            if let Some(what) = &facts.opaque {
                self.unknown(format!("{number}: {what} is not known"));
                return Then::Ended;
            }
            let Some(side) = self.fits(name, &facts) else {
                continue;
            };
            let next = From {
                side: from.side || side,
                sticky: match from.sticky {
                    Sticky::Not => facts.sticky,
                    before => before,
                },
                by: number,
                chain: name,
            };
            if side && matches!(facts.act, Some(Act::Return | Act::Ends(_))) {
                // kube-proxy writes no such rule.
                self.unknown(format!("{}: it takes some packets out of the way", next.by));
            }
            let surely = !side && !facts.random && facts.sticky == Sticky::Not;
            let Some(act) = &facts.act else { continue };
            let then = self.act(act, &next, from, depth);
            let leaves = matches!(act, Act::Goto(_) | Act::Choose(_));
            match (surely, then) {
                (true, Then::Ended) => return Then::Ended,
                (true, Then::Goes) if leaves || *act == Act::Return => return Then::Goes,
                _ => {}
            }
        }
        Then::Goes
    }

    fn act(&mut self, act: &Act<'a>, next: &From<'a>, from: &From<'a>, depth: usize) -> Then {
        match act {
            Act::Jump(chain) | Act::Goto(chain) => self.chain(chain, next, depth + 1),
            Act::Choose(map) => self.choose(map, next, depth),
            Act::Translate(targets) => {
                for (addr, port) in targets {
                    self.add((*addr, port.unwrap_or(self.portal.port)), next, from);
                }
                Then::Ended
            }
            Act::Return => Then::Goes,
            Act::Ends(_) => Then::Ended,
        }
    }

    /// A random choice among chains.
    fn choose(&mut self, map: &str, next: &From<'a>, depth: usize) -> Then {
        let elements = match self.table.sets.get(map).map(|set| &set.elements) {
            Some(Elements::Known(elements)) => elements,
            Some(Elements::Missing(why)) => {
                self.unknown(format!("map {map} could not be read: {why}"));
                return Then::Ended;
            }
            Some(Elements::NotAsked | Elements::ByKey(_)) | None => {
                self.found.not_read = true;
                return Then::Ended;
            }
        };
        let mut ended = Then::Ended;
        for element in elements {
            if let Some(SetData::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain))) =
                &element.data
                && self.chain(chain, next, depth + 1) == Then::Goes
            {
                ended = Then::Goes;
            }
        }
        ended
    }

    /// Whether packets of the portal can match, and whether something else about them decides.
    fn fits(&self, chain: &str, facts: &Facts<'_>) -> Option<bool> {
        let protocol = facts.protocol.is_none_or(|own| own == self.portal.protocol);
        let dport = facts.dport.is_none_or(|own| own == self.portal.port);
        if !protocol || !dport {
            return None;
        }
        let mut side = facts.other && !chain.starts_with(OF_SOURCES);
        match (facts.dst, self.portal.addr) {
            (Some((prefix, negated)), Some(addr)) if prefix.contains(addr) == negated => {
                return None;
            }
            // It comes to some of the node's addresses only.
            (Some(_), None) => side = true,
            _ => {}
        }
        Some(side)
    }

    fn add(&mut self, target: Target, next: &From<'_>, from: &From<'_>) {
        let of_one = OF_ENDPOINT.iter().any(|own| next.chain.starts_with(own));
        let (by, chain) = if of_one && !from.by.is_empty() {
            (format!("{} › {}", from.by, next.by), from.chain)
        } else {
            (next.by.clone(), next.chain)
        };
        chain.clone_into(&mut self.found.chain);
        let list = if next.side {
            &mut self.found.sides
        } else {
            &mut self.found.always
        };
        let way = list.entry(target).or_default();
        match next.sticky {
            Sticky::Not => way.fresh = true,
            before => way.sticky = before,
        }
        if way.by.is_empty() || next.sticky == Sticky::Not {
            way.by = by;
        }
    }

    fn unknown(&mut self, why: String) {
        self.found.unknown.get_or_insert(why);
    }
}

/// A rule as its own tool numbers it.
pub(super) fn number(table: &Table, chain: &Chain, handle: u64) -> String {
    let word = match table.backend {
        Backend::Nft => "handle",
        Backend::Legacy => "rule",
    };
    format!("chain {} {word} {handle}", chain.name)
}
