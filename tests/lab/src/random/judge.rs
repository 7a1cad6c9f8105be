//! What the product says of a probe, beside what was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpath::collect::{Collector, Roots};
use netpath::model::link::{LinkKind, PortState};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, Fact, NsTarget, Want};
use netpath::model::{NetNsId, NsKey};
use netpath::simulate::peer::{Peer, peer};
use netpath::trace::Trace;

use super::ask::{Verdict, compare, once, refused_by_route};
use super::fit::{Observed, chain};
use super::raise::Raised;
use super::world::Probe;

/// Name of the one node that a random network is.
pub const NODE: &str = "here";
/// Refusals that a namespace sends to an address at once.
const BURST: usize = 5;
const WAIT: Duration = Duration::from_secs(20);

/// The product's own reader, and what it read.
pub struct Judge {
    collector: Collector,
    /// What was read.
    pub topology: Topology,
    names: BTreeMap<NetNsId, String>,
    /// How often routes of a namespace may have refused packets of an address.
    told: BTreeMap<(NsKey, IpAddr), usize>,
}

impl Judge {
    /// Starts the reader.
    pub fn up() -> Result<Self> {
        let roots = Roots {
            proc: PathBuf::from("/proc"),
            netns: vec![PathBuf::from("/run/netns")],
        };
        Ok(Self {
            collector: Collector::new(roots)?,
            topology: Topology::default(),
            names: BTreeMap::new(),
            told: BTreeMap::new(),
        })
    }

    /// Reads until devices whose other end is up are up, ports of bridges forward and addresses can be used.
    pub fn await_usable(&mut self, raised: &Raised) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            self.read(raised)?;
            let waiting = self.not_usable();
            if waiting.is_empty() {
                return raised.show_stations();
            }
            ensure!(
                Instant::now() < deadline,
                "wait for devices and addresses: not usable after 5 s: {waiting:?}"
            );
        }
    }

    fn not_usable(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        for (key, netns) in self.topology.all() {
            let place = self.name(&key);
            for link in netns.links.known().into_iter().flatten() {
                let peer_is_up = match peer(&self.topology, &key, link) {
                    Peer::Found(ns, index) => {
                        let peer = self.topology.netns(&ns).and_then(|ns| ns.link(index));
                        peer.is_some_and(|peer| peer.up)
                    }
                    _ => false,
                };
                let blocked = link
                    .port
                    .as_ref()
                    .is_some_and(|port| port.state != PortState::Forwarding);
                if link.up && peer_is_up && (!link.lower_up || blocked) {
                    waiting.push(format!("{place} {}", link.name));
                }
            }
            for addr in netns.addrs.known().into_iter().flatten() {
                if addr.tentative {
                    waiting.push(format!("{place} {}", addr.local));
                }
            }
        }
        waiting
    }

    /// Reads all namespaces anew, with all their rules.
    pub fn read(&mut self, raised: &Raised) -> Result<()> {
        self.read_to(raised, Depth::Full)
    }

    /// Reads all namespaces anew but for rules, which packets do not change.
    pub fn read_again(&mut self, raised: &Raised) -> Result<()> {
        let before = std::mem::take(&mut self.topology);
        self.read_to(raised, Depth::NoRules)?;
        let Some(node) = before.nodes.get(NODE) else {
            return Ok(());
        };
        for (id, old) in &node.netns {
            let new = self
                .topology
                .nodes
                .get_mut(NODE)
                .and_then(|node| node.netns.get_mut(id));
            if let Some(new) = new {
                new.nft = old.nft.clone();
                new.legacy = old.legacy.clone();
                new.ipset_names = old.ipset_names.clone();
                new.ipsets = old.ipsets.clone();
            }
        }
        Ok(())
    }

    fn read_to(&mut self, raised: &Raised, depth: Depth) -> Result<()> {
        self.topology = Topology::default();
        self.names.clear();
        let wants: Vec<Want> = raised
            .places
            .iter()
            .map(|place| Want::NetNs {
                target: NsTarget::Named(raised.netns(&place.name)),
                depth,
            })
            .collect();
        for fact in self.collector.collect(&wants, WAIT) {
            if let Fact::NetNs(ns) = &fact {
                let paths = &ns.identity.paths;
                let place = raised.places.iter().find(|place| {
                    let name = raised.netns(&place.name);
                    paths.iter().any(|path| path.ends_with(&format!("/{name}")))
                });
                if let Some(place) = place {
                    self.names.insert(ns.identity.id, place.name.clone());
                }
            }
            self.topology.merge(NODE, fact);
        }
        ensure!(
            self.names.len() == raised.places.len(),
            "read namespaces: {} of {} were found",
            self.names.len(),
            raised.places.len()
        );
        Ok(())
    }

    /// Devices that pass on frames for other stations: ports of bridges, parents of macvlans.
    pub fn ports(&self) -> BTreeSet<(String, String)> {
        let mut ports = BTreeSet::new();
        for (key, netns) in self.topology.all() {
            let name = self.name(&key);
            for link in netns.links.known().into_iter().flatten() {
                if link.master.is_some() {
                    ports.insert((name.clone(), link.name.clone()));
                }
                if matches!(link.kind, LinkKind::Macvlan(_)) {
                    // Its parent may be in any namespace; names of parents are unlike all others.
                    for (key, netns) in self.topology.all() {
                        let parent = netns.links.known().into_iter().flatten();
                        for parent in parent.filter(|parent| Some(parent.index) == link.link) {
                            if parent.name.starts_with("mp") {
                                ports.insert((self.name(&key), parent.name.clone()));
                            }
                        }
                    }
                }
            }
        }
        ports
    }

    /// A namespace's name in its network.
    pub fn name(&self, key: &NsKey) -> String {
        let name = self.names.get(&key.netns);
        name.cloned().unwrap_or_else(|| "?".to_owned())
    }

    fn key(&self, place: &str) -> Result<NsKey> {
        let found = self.names.iter().find(|(_, name)| *name == place);
        let (netns, _) = found.with_context(|| format!("{place} was not read"))?;
        Ok(NsKey {
            node: NODE.to_owned(),
            netns: *netns,
        })
    }

    /// Whether a probe's source is an address of its namespace.
    pub fn can_send(&self, probe: &Probe) -> bool {
        let Some(src) = probe.src.filter(|src| !src.is_loopback()) else {
            return true;
        };
        let ns = self.key(&probe.from).ok();
        let ns = ns.and_then(|key| self.topology.netns(&key));
        let addrs = ns.and_then(|ns| ns.addrs.known());
        addrs.into_iter().flatten().any(|addr| addr.local == src)
    }

    /// All ways that a probe may take.
    pub fn predict(&mut self, probe: &Probe) -> Result<Vec<Trace>> {
        let from = self.key(&probe.from)?;
        let mut asked = BTreeSet::new();
        loop {
            let mut outcome = once(&self.topology, probe, from.clone());
            let wants = outcome.wants.remove(NODE).unwrap_or_default();
            let new: Vec<Want> = wants.difference(&asked).cloned().collect();
            if new.is_empty() {
                return Ok(outcome.traces);
            }
            for fact in self.collector.collect(&new, WAIT) {
                self.topology.merge(NODE, fact);
            }
            asked.extend(new);
        }
    }

    /// Holds what was seen against the ways predicted: it must be one of them.
    pub fn compare(&mut self, probe: &Probe, traces: &[Trace], observed: &Observed) -> Verdict {
        let told = |trace: &Trace| {
            let key = refused_by_route(trace)?;
            self.told.get(&key).copied()
        };
        let verdict = compare(
            &self.topology,
            probe,
            traces,
            &|key| self.name(key),
            observed,
            &|trace| told(trace).is_some_and(|times| times >= BURST),
        );
        for packet in traces.iter().flat_map(chain) {
            if let Some(key) = refused_by_route(packet) {
                *self.told.entry(key).or_default() += 1;
            }
        }
        verdict
    }
}
