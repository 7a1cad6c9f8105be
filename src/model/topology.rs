//! All nodes' facts together, and what is known of them from outside.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::conntrack::ConntrackEntry;
use super::ipvs::{Ipvs, IpvsService};
use super::netfilter::{Chain, Elements, Ruleset, Set, Table};
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
        self.find(node, &NsTarget::Host)
    }

    /// The namespace that a target names; `None`: it was not read, or the target is no single one of a topology's.
    pub fn find(&self, node: &str, target: &NsTarget) -> Option<NsKey> {
        let snapshot = self.nodes.get(node)?;
        let ns = match target {
            NsTarget::Host => snapshot.host()?,
            NsTarget::PodUid(uid) => snapshot.pod(uid)?,
            NsTarget::Id(id) => snapshot.netns.get(id)?,
            NsTarget::Pid(_) | NsTarget::Named(_) | NsTarget::All => return None,
        };
        Some(NsKey {
            node: node.to_owned(),
            netns: ns.identity.id,
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
                    Section::Known(Some(chain)) => take_chain(table, name, chain),
                    Section::Missing(why) => {
                        let entry = table.chains.entry(name.clone());
                        entry
                            .or_insert_with(|| super::netfilter::Chain {
                                name,
                                handle: 0,
                                base: None,
                                rules: Section::NotAsked,
                                sieved: None,
                                comment: None,
                                bound: false,
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
                                comment: None,
                                bound: false,
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
                    Section::Known(Some(set)) => take_set(table, name, set),
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
                zone,
                entry,
            } => {
                if let Some(ns) = snapshot.netns.get_mut(&netns) {
                    ns.conntrack
                        .retain(|(known, of, _)| *known != tuple || *of != zone);
                    ns.conntrack.push((tuple, zone, entry));
                }
            }
            Fact::ConntrackFlows {
                netns,
                tuple,
                flows,
            } => {
                if let Some(ns) = snapshot.netns.get_mut(&netns) {
                    ns.conntrack_flows.retain(|(known, _)| *known != tuple);
                    ns.conntrack_flows.push((tuple, flows));
                }
            }
            Fact::Ipset { netns, name, set } => {
                let set = match set {
                    Section::Known(Some(set)) => Section::Known(set),
                    Section::Missing(why) => Section::Missing(why),
                    Section::Known(None) | Section::NotAsked => Section::Missing(
                        "there is no set of this name (it went while it was read)".to_owned(),
                    ),
                };
                if let Some(ns) = snapshot.netns.get_mut(&netns) {
                    ns.ipsets.insert(name, set);
                }
            }
            Fact::IpvsService {
                netns,
                key,
                service,
            } => {
                if let Some(ipvs) = ipvs_mut(snapshot, netns) {
                    ipvs.services.retain(|(known, _)| *known != key);
                    ipvs.services.push((key, service));
                }
            }
            Fact::IpvsConn { netns, key, conn } => {
                if let Some(ipvs) = ipvs_mut(snapshot, netns) {
                    ipvs.conns.retain(|(known, _)| *known != key);
                    ipvs.conns.push((key, conn));
                }
            }
            Fact::Ipvs { netns, services } => take_services(snapshot, netns, services),
            Fact::ConntrackStats { netns, stats } => {
                if let Some(ns) = snapshot.netns.get_mut(&netns) {
                    ns.conntrack_stats = stats;
                }
            }
            Fact::ConntrackFrom {
                netns,
                tuple,
                entries,
            } => {
                if let Some(ns) = snapshot.netns.get_mut(&netns) {
                    ns.conntrack_from.retain(|(known, _)| *known != tuple);
                    ns.conntrack_from.push((tuple, entries));
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

/// A chain that came whole was asked for whole: one that comes with others does not undo that.
fn take_chain(table: &mut Table, name: String, chain: Chain) {
    let whole = |chain: &Chain| chain.sieved.is_none() && chain.rules.known().is_some();
    if chain.sieved.is_none() || !table.chains.get(&name).is_some_and(whole) {
        table.chains.insert(name, chain);
    }
}

/// Elements that were asked for stay where a set comes again without them.
fn take_set(table: &mut Table, name: String, mut set: Set) {
    if let Some(known) = table.sets.get_mut(&name) {
        set.elements = match (std::mem::take(&mut known.elements), set.elements) {
            (Elements::ByKey(mut answers), Elements::ByKey(more)) => {
                answers.retain(|(key, _)| more.iter().all(|(newer, _)| newer != key));
                answers.extend(more);
                Elements::ByKey(answers)
            }
            (Elements::Known(all), Elements::ByKey(_) | Elements::NotAsked) => Elements::Known(all),
            (Elements::ByKey(answers), Elements::NotAsked) => Elements::ByKey(answers),
            (_, newer) => newer,
        };
    }
    table.sets.insert(name, set);
}

fn ipvs_mut(snapshot: &mut NodeSnapshot, netns: NetNsId) -> Option<&mut Ipvs> {
    snapshot.netns.get_mut(&netns)?.ipvs.known_mut()?.as_mut()
}

/// All services at once, in place of those that were asked for one by one.
fn take_services(snapshot: &mut NodeSnapshot, netns: NetNsId, services: Section<Vec<IpvsService>>) {
    match services {
        Section::Known(services) => {
            if let Some(ipvs) = ipvs_mut(snapshot, netns) {
                ipvs.complete = true;
                let keyed = services.into_iter();
                ipvs.services = keyed
                    .map(|service| (service.key, Section::Known(Some(service))))
                    .collect();
            }
        }
        Section::Missing(why) => {
            if let Some(ns) = snapshot.netns.get_mut(&netns) {
                ns.ipvs = Section::Missing(why);
            }
        }
        Section::NotAsked => {}
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
                .map(|entry| (entry.orig, entry.zone, Section::Known(Some(entry))))
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
        decl: super::netfilter::SetDecl::default(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::netfilter::{Backend, Family, Sieved};
    use crate::model::netns::NsIdentity;

    fn table() -> Table {
        Table {
            backend: Backend::Nft,
            family: Family::Ip,
            name: "kube-proxy".to_owned(),
            dormant: false,
            chains: BTreeMap::new(),
            chains_complete: false,
            sets: BTreeMap::new(),
            sets_complete: false,
            flowtables: BTreeMap::new(),
            objects: Vec::new(),
            comment: None,
        }
    }

    fn world() -> (Topology, NetNsId) {
        let id = NetNsId { dev: 4, ino: 1 };
        let mut ns = NetNs::new(NsIdentity {
            id,
            host: true,
            pod_uid: None,
            paths: Vec::new(),
            processes: Vec::new(),
        });
        ns.nft = Section::Known(Ruleset {
            generation: Some(1),
            tables: vec![table()],
        });
        let mut topology = Topology::default();
        topology.merge("n", Fact::NetNs(Box::new(ns)));
        (topology, id)
    }

    fn only_table(topology: &Topology, id: NetNsId) -> &Table {
        let ns = &topology.nodes["n"].netns[&id];
        &ns.nft.known().expect("rules").tables[0]
    }

    #[test]
    fn what_was_asked_for_whole_stays_whole() {
        let (mut topology, netns) = world();
        let fact = |sieved: Option<Sieved>| Fact::Chain {
            netns,
            backend: Backend::Nft,
            family: Family::Ip,
            table: "kube-proxy".to_owned(),
            name: "services".to_owned(),
            chain: Section::Known(Some(Chain {
                name: "services".to_owned(),
                handle: 1,
                base: None,
                rules: Section::Known(Vec::new()),
                sieved,
                comment: None,
                bound: false,
            })),
        };
        let lean = || {
            Some(Sieved {
                to: Vec::new(),
                left_out: 9,
            })
        };
        for (comes, stays) in [(lean(), lean()), (None, None), (lean(), None)] {
            topology.merge("n", fact(comes));
            assert_eq!(
                only_table(&topology, netns).chains["services"].sieved,
                stays
            );
        }
    }

    #[test]
    fn answers_for_keys_outlast_a_set_that_comes_again() {
        let (mut topology, netns) = world();
        let fact = |elements: Elements| Fact::Set {
            netns,
            family: Family::Ip,
            table: "kube-proxy".to_owned(),
            name: "service-ips".to_owned(),
            set: Section::Known(Some(Set {
                elements,
                ..unread_set("service-ips".to_owned())
            })),
        };
        let keys =
            |keys: &[u8]| Elements::ByKey(keys.iter().map(|key| (vec![*key], None)).collect());
        for (comes, stays) in [
            (keys(&[1, 2]), keys(&[1, 2])),
            (Elements::NotAsked, keys(&[1, 2])),
            (keys(&[2, 3]), keys(&[1, 2, 3])),
            (Elements::Known(Vec::new()), Elements::Known(Vec::new())),
            (keys(&[4]), Elements::Known(Vec::new())),
        ] {
            topology.merge("n", fact(comes));
            assert_eq!(
                only_table(&topology, netns).sets["service-ips"].elements,
                stays
            );
        }
    }
}
