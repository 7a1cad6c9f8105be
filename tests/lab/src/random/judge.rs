//! What the product says of a probe, beside what was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpath::model::link::{Link, LinkKind, PortState};
use netpath::model::neigh::NeighState;
use netpath::model::topology::Topology;
use netpath::model::want::Depth;
use netpath::model::{IfIndex, NsKey};
use netpath::simulate::peer::{Peer, peer};
use netpath::simulate::{Limits, send};
use netpath::trace::Trace;

use super::again::keep_rules;
use super::ask::{self, Own, Question, Verdict, refused_by_route};
use super::fit::{self, Back, Holds, Manner};
use super::raise::Raised;
use super::reader::{NODE, Reader};
use super::seen::{Observed, chain};
use super::world::Probe;
use crate::command::run;

/// Refusals that a namespace sends to an address at once.
const BURST: usize = 5;

/// The reader of a random network, and what its namespaces have told so far.
pub struct Judge {
    reader: Reader,
    /// How often routes of a namespace may have refused packets of an address.
    told: BTreeMap<(NsKey, IpAddr), usize>,
    /// How often they were seen to: also what nobody predicts (what a kernel answers to a raw packet).
    shown: BTreeMap<(NsKey, IpAddr), usize>,
}

impl Judge {
    /// Starts the reader.
    pub fn up() -> Result<Self> {
        Ok(Self {
            reader: Reader::up()?,
            told: BTreeMap::new(),
            shown: BTreeMap::new(),
        })
    }

    /// What was read.
    pub fn topology(&self) -> &Topology {
        &self.reader.topology
    }

    /// Reads until devices whose other end is up are up, ports of bridges forward and addresses can be used.
    pub fn await_usable(&mut self, raised: &Raised) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            self.read(raised)?;
            let waiting = self.not_usable();
            if waiting.is_empty() {
                self.forget_questions(raised)?;
                return raised.show_stations();
            }
            ensure!(
                Instant::now() < deadline,
                "wait for devices and addresses: not usable after 5 s: {waiting:?}"
            );
        }
    }

    /// Questions for neighbours that devices which were not up yet lost (tunnels send by themselves): the kernel asks again
    /// after a second only, and what is sent waits behind them.
    fn forget_questions(&self, raised: &Raised) -> Result<()> {
        let name = self.namer();
        for (key, netns) in self.topology().all() {
            let mut neighs = netns.neighs.known().into_iter().flatten();
            if neighs.any(|neigh| neigh.state == NeighState::Incomplete) {
                let place = raised.places.place(&name(&key))?;
                place.enter(|| run(&["ip", "neigh", "flush", "nud", "incomplete"]))?;
            }
        }
        Ok(())
    }

    fn not_usable(&self) -> Vec<String> {
        let mut waiting = Vec::new();
        let name = self.namer();
        for (key, netns) in self.topology().all() {
            let place = name(&key);
            for link in netns.links.known().into_iter().flatten() {
                let peer_is_up = match peer(self.topology(), &key, link) {
                    Peer::Found(ns, index) => {
                        let peer = self.topology().netns(&ns).and_then(|ns| ns.link(index));
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
        self.reader.forget();
        self.read_to(raised, Depth::Full)
    }

    /// Reads all namespaces anew but for rules, which packets do not change.
    pub fn read_again(&mut self, raised: &Raised) -> Result<()> {
        let before = self.reader.forget();
        self.read_to(raised, Depth::NoRules)?;
        let Some(node) = before.nodes.get(NODE) else {
            return Ok(());
        };
        let read = self.reader.topology.nodes.get_mut(NODE);
        for (id, new) in read.into_iter().flat_map(|node| &mut node.netns) {
            if let Some(old) = node.netns.get(id) {
                keep_rules(new, old);
            }
        }
        Ok(())
    }

    fn read_to(&mut self, raised: &Raised, depth: Depth) -> Result<()> {
        let places = &raised.places;
        self.reader.read(places, places.names(), depth)
    }

    /// Devices that pass on frames for other stations: ports of bridges, parents of macvlans.
    pub fn ports(&self) -> BTreeSet<(String, String)> {
        let mut ports = BTreeSet::new();
        let name = self.namer();
        for (key, netns) in self.topology().all() {
            let place = name(&key);
            for link in netns.links.known().into_iter().flatten() {
                let master = link.master.and_then(|master| netns.link(master));
                if master.is_some_and(|master| !matches!(master.kind, LinkKind::Vrf(_))) {
                    ports.insert((place.clone(), link.name.clone()));
                }
                if matches!(link.kind, LinkKind::Vlan(_)) {
                    // It may have an address of its own.
                    let below = below(self.topology(), &key, link);
                    // What a promiscuous bridge takes besides goes no further.
                    let below = below.filter(|(_, dev)| !matches!(dev.kind, LinkKind::Bridge(_)));
                    ports.extend(below.map(|(ns, dev)| (name(&ns), dev.name.clone())));
                }
                if matches!(link.kind, LinkKind::Macvlan(_)) {
                    // Its parent may be in any namespace; names of parents are unlike all others.
                    for (key, netns) in self.topology().all() {
                        let parent = netns.links.known().into_iter().flatten();
                        for parent in parent.filter(|parent| Some(parent.index) == link.link) {
                            if parent.name.starts_with("mp") {
                                ports.insert((name(&key), parent.name.clone()));
                            }
                        }
                    }
                }
            }
        }
        ports
    }

    /// Whether a probe's source is an address of its namespace, and its device is there.
    pub fn can_send(&self, probe: &Probe) -> bool {
        let ns = self.reader.key(&probe.from).ok();
        let ns = ns.and_then(|key| self.topology().netns(&key));
        let there = |dev: &str| ns.is_some_and(|ns| ns.link_named(dev).is_some());
        if !probe.dev.as_deref().is_none_or(there) {
            return false;
        }
        let Some(src) = probe.src.filter(|src| !src.is_loopback()) else {
            return true;
        };
        let addrs = ns.and_then(|ns| ns.addrs.known());
        // Addresses of a VRF are its sockets' alone.
        let vrf = |dev: IfIndex| {
            let link = ns?.link(dev)?;
            let is_vrf = |link: &&Link| matches!(link.kind, LinkKind::Vrf(_));
            let master = || ns?.link(link.master?).filter(is_vrf);
            Some(link)
                .filter(is_vrf)
                .or_else(master)
                .map(|vrf| vrf.index)
        };
        let bound = probe.dev.as_deref().and_then(|dev| ns?.link_named(dev));
        let of = bound.and_then(|link| vrf(link.index));
        let mut addrs = addrs.into_iter().flatten();
        addrs.any(|addr| addr.local == src && vrf(addr.link) == of)
    }

    /// All ways that a probe may take.
    pub fn predict(&mut self, probe: &Probe) -> Result<Vec<Trace>> {
        let from = self.reader.key(&probe.from)?;
        let question = Question::of(probe, from, self.topology());
        Ok(self
            .reader
            .ask(|topology| question.ask(topology, &ask::limits())))
    }

    /// Tells names of the namespaces that were read until now.
    pub fn namer(&self) -> impl Fn(&NsKey) -> String + use<> {
        self.reader.namer()
    }

    /// Holds what was seen against the ways predicted: it must be one of them.
    pub fn compare(&mut self, probe: &Probe, traces: &[Trace], observed: &Observed) -> Verdict {
        let name = self.namer();
        // An error that routes refuse is not answered, but counts.
        for (place, from) in &observed.errors {
            if let Ok(key) = self.reader.key(place) {
                *self.told.entry((key, *from)).or_default() += 1;
            }
        }
        let manner = Manner::of(probe);
        let key = self.reader.key(&probe.from).ok();
        let question = key.map(|from| Question::of(probe, from, self.topology()));
        let mut lost = |trace: &Trace, back| self.is_lost(question.as_ref(), trace, back);
        let verdict = ask::compare(probe, traces, &name, observed, &mut |trace, observed| {
            fit::fits(manner, trace, &name, observed, &mut lost)
        });
        for packet in traces.iter().flat_map(chain) {
            if let Some(key) = refused_by_route(packet) {
                *self.told.entry(key).or_default() += 1;
            }
        }
        for (place, from) in &observed.refused {
            if let Ok(key) = self.reader.key(place) {
                *self.shown.entry((key, *from)).or_default() += 1;
            }
        }
        verdict
    }

    /// Whether a tunnel sends from an address: what its namespace says on it by itself (router solicitations and the
    /// like) may be refused, too, at any time.
    fn babbles(&self, addr: IpAddr) -> bool {
        self.topology().all().any(|(_, netns)| {
            let has = || {
                let mut addrs = netns.addrs.known().into_iter().flatten();
                addrs.any(|own| own.local == addr)
            };
            let mut links = netns.links.known().into_iter().flatten();
            links.any(|link| match &link.kind {
                LinkKind::Vxlan(vxlan) => vxlan.local == Some(addr),
                LinkKind::IpTunnel(tunnel) if tunnel.local.is_some() => tunnel.local == Some(addr),
                LinkKind::IpTunnel(_) => link.up && has(),
                LinkKind::Geneve(_) | LinkKind::Wireguard(_) => has(),
                _ => false,
            })
        })
    }

    fn is_lost(&mut self, question: Option<&Question>, trace: &Trace, back: Back) -> Holds {
        if back == Back::Icmp
            && let Some(key) = refused_by_route(trace)
            && ([&self.told, &self.shown]
                .iter()
                .any(|all| all.get(&key).is_some_and(|times| *times >= BURST))
                || self.babbles(key.1))
        {
            return Holds::Yes;
        }
        let sent = match ask::sent_back(self.topology(), trace, back) {
            Ok(sent) => sent,
            Err(holds) => return holds,
        };
        let own = question.map_or(Own::Not, |_| ask::by_own_flow(trace, back));
        if own != Own::Alone {
            let limits = Limits::default();
            let ways = self
                .reader
                .ask_apart(|topology| send(topology, &sent, &limits));
            let holds = ask::is_lost(&ways);
            if own == Own::Not || holds != Holds::No {
                return holds;
            }
        }
        let Some(question) = question else {
            return Holds::No;
        };
        let ways = self
            .reader
            .ask_beside(|topology| question.ask_back(topology, trace, &sent));
        ask::is_lost(&ways)
    }
}

/// The device that another sits on, with its namespace.
fn below<'t>(topology: &'t Topology, ns: &NsKey, link: &Link) -> Option<(NsKey, &'t Link)> {
    let mut ns = ns.clone();
    if let Some(id) = link.link_netnsid {
        let nsids = topology.netns(&ns)?.nsids.known()?;
        ns.netns = nsids.iter().find(|(nsid, _)| *nsid == id)?.1;
    }
    let below = topology.netns(&ns)?.link(link.link?)?;
    Some((ns, below))
}
