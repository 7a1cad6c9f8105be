//! All nodes' facts together, and what is known of them from outside.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::conntrack::ConntrackEntry;
use super::netfilter::{Elements, Ruleset, Set, Table};
use super::netns::NetNs;
use super::snapshot::NodeSnapshot;
use super::want::{Fact, NsTarget};
use super::{NetNsId, NsKey, Prefix, Section};

/// What a simulation works on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// Nodes by name.
    pub nodes: BTreeMap<String, NodeSnapshot>,
    /// What Kubernetes says of nodes, by name: where a packet may be looked for when the way between
    /// nodes can't be read. Never decides what a kernel does.
    pub hints: BTreeMap<String, NodeHint>,
    /// Addresses of Services, as Kubernetes says: a packet for one that no rule translates goes nowhere.
    #[serde(default)]
    pub service_ips: Vec<IpAddr>,
    /// What of Kubernetes could not be listed, so that owners of addresses may be unknown here.
    #[serde(default)]
    pub unlisted: Vec<String>,
    /// Targets that a helper looked for without success, by node: what was wanted, and why it is not
    /// there.
    pub absent: Vec<(String, NsTarget, String)>,
}

/// What Kubernetes says of a node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeHint {
    /// `status.addresses`.
    pub addresses: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<Prefix>,
    /// Addresses of pods that run there.
    pub pod_ips: Vec<IpAddr>,
    /// A helper can be asked about it; where false, what happens there is unknown.
    pub reachable: bool,
}

impl Topology {
    /// The namespace of this key.
    pub fn netns(&self, key: &NsKey) -> Option<&NetNs> {
        self.nodes.get(&key.node)?.netns.get(&key.netns)
    }

    /// The key of a node's own namespace.
    pub fn host(&self, node: &str) -> Option<NsKey> {
        let id = self.nodes.get(node)?.host()?.identity.id;
        Some(NsKey {
            node: node.to_owned(),
            netns: id,
        })
    }

    /// All namespaces, in a fixed order.
    pub fn all(&self) -> impl Iterator<Item = (NsKey, &NetNs)> {
        self.nodes.iter().flat_map(|(name, node)| {
            node.netns.iter().map(|(id, ns)| {
                (
                    NsKey {
                        node: name.clone(),
                        netns: *id,
                    },
                    ns,
                )
            })
        })
    }

    /// Takes an answer of a node's helper in.
    ///
    /// Facts about a namespace, table or set that is not there are ignored: nothing could use them.
    pub fn merge(&mut self, node: &str, fact: Fact) {
        if let Fact::NoNetNs { target, why } = fact {
            // Two wants of one target miss it alike.
            let absent = (node.to_owned(), target, why);
            if !self.absent.contains(&absent) {
                self.absent.push(absent);
            }
            return;
        }
        let snapshot = self
            .nodes
            .entry(node.to_owned())
            .or_insert_with(|| NodeSnapshot::new(node));
        match fact {
            Fact::NoNetNs { .. } => {}
            Fact::NetNs(ns) => {
                snapshot.netns.insert(ns.identity.id, *ns);
            }
            Fact::Chain {
                netns,
                backend,
                family,
                table,
                name,
                chain,
            } => {
                let Some(table) = table_mut(
                    snapshot,
                    netns,
                    |ns| match backend {
                        super::netfilter::Backend::Nft => &mut ns.nft,
                        super::netfilter::Backend::Legacy => &mut ns.legacy,
                    },
                    |t| t.family == family && t.name == table,
                ) else {
                    return;
                };
                match chain {
                    Section::Known(Some(chain)) => {
                        table.chains.insert(name, chain);
                    }
                    Section::Missing(why) => {
                        let entry = table.chains.entry(name.clone());
                        entry
                            .or_insert_with(|| super::netfilter::Chain {
                                name,
                                handle: 0,
                                base: None,
                                rules: Section::NotAsked,
                                sieved: None,
                            })
                            .rules = Section::Missing(why);
                    }
                    Section::Known(None) | Section::NotAsked => {
                        table.chains.entry(name.clone()).or_insert_with(|| {
                            super::netfilter::Chain {
                                name,
                                handle: 0,
                                base: None,
                                rules: Section::Missing(
                                    "the chain is not in its table (it went while it was read)"
                                        .to_owned(),
                                ),
                                sieved: None,
                            }
                        });
                    }
                }
            }
            Fact::Set {
                netns,
                family,
                table,
                name,
                set,
            } => {
                let Some(table) = table_mut(
                    snapshot,
                    netns,
                    |ns| &mut ns.nft,
                    |t| t.family == family && t.name == table,
                ) else {
                    return;
                };
                match set {
                    Section::Known(Some(set)) => {
                        table.sets.insert(name, set);
                    }
                    Section::Missing(why) => {
                        let entry = table.sets.entry(name.clone());
                        entry.or_insert_with(|| unread_set(name)).elements = Elements::Missing(why);
                    }
                    Section::Known(None) | Section::NotAsked => {
                        let why = "the set is not in its table (it went while it was read)";
                        let entry = table.sets.entry(name.clone());
                        entry.or_insert_with(|| unread_set(name)).elements =
                            Elements::Missing(why.to_owned());
                    }
                }
            }
            Fact::SetElem {
                netns,
                family,
                table,
                set,
                key,
                elem,
            } => {
                let Some(table) = table_mut(
                    snapshot,
                    netns,
                    |ns| &mut ns.nft,
                    |t| t.family == family && t.name == table,
                ) else {
                    return;
                };
                let Some(set) = table.sets.get_mut(&set) else {
                    return;
                };
                match (&mut set.elements, elem) {
                    (Elements::Known(_), _) => {}
                    (elements, Section::Missing(why)) => *elements = Elements::Missing(why),
                    (Elements::ByKey(answers), elem) => {
                        answers.push((key, elem.known().cloned().flatten()));
                    }
                    (elements, elem) => {
                        *elements = Elements::ByKey(vec![(key, elem.known().cloned().flatten())]);
                    }
                }
            }
            Fact::Conntrack {
                netns,
                tuple,
                entry,
            } => {
                if let Some(ns) = snapshot.netns.get_mut(&netns) {
                    ns.conntrack.retain(|(known, _)| *known != tuple);
                    ns.conntrack.push((tuple, entry));
                }
            }
            Fact::ConntrackTable { netns, entries } => {
                if let Some(ns) = snapshot.netns.get_mut(&netns) {
                    take_table(ns, entries);
                }
            }
        }
    }
}

/// A whole table replaces entries that were read one by one: it is newer.
fn take_table(ns: &mut NetNs, entries: Section<Vec<ConntrackEntry>>) {
    match entries {
        Section::Known(entries) => {
            // The table is bounded far below this.
            ns.conntrack_table = Section::Known(u32::try_from(entries.len()).unwrap_or(u32::MAX));
            ns.conntrack = entries
                .into_iter()
                .map(|entry| (entry.orig, Section::Known(Some(entry))))
                .collect();
        }
        Section::Missing(why) => ns.conntrack_table = Section::Missing(why),
        Section::NotAsked => {}
    }
}

fn unread_set(name: String) -> Set {
    Set {
        name,
        flags: super::netfilter::SetFlags::default(),
        key_len: 0,
        field_lens: Vec::new(),
        data_len: 0,
        elements: Elements::NotAsked,
    }
}

fn table_mut(
    snapshot: &mut NodeSnapshot,
    netns: NetNsId,
    ruleset: impl Fn(&mut NetNs) -> &mut Section<Ruleset>,
    wanted: impl Fn(&Table) -> bool,
) -> Option<&mut Table> {
    let ns = snapshot.netns.get_mut(&netns)?;
    ruleset(ns)
        .known_mut()?
        .tables
        .iter_mut()
        .find(|t| wanted(t))
}
