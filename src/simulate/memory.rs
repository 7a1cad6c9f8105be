//! What packets of an exchange leave behind in kernels, so that the next one meets it: connections,
//! bridges' forwarding entries, neighbours, and which of several next hops a flow takes.

use std::net::IpAddr;

use super::skb::Flows;
use crate::model::conntrack::Tuple;
use crate::model::wireguard::PublicKey;
use crate::model::{IfIndex, MacAddr, NsKey};

/// All of it. A fork takes a copy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Memory {
    /// Connections, in all namespaces.
    pub(crate) flows: Flows,
    taken: Vec<Taken>,
    /// The latest last.
    learned: Vec<Learned>,
    met: Vec<Met>,
    heard: Vec<Heard>,
}

/// A choice that a flow's packets make alike: which of several next hops (the kernel hashes addresses
/// or ports).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    ns: NsKey,
    tuple: Tuple,
    /// It had no flow label yet.
    unlabelled: bool,
    hop: usize,
}

/// A bridge learned from a frame under way behind which port a station is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Learned {
    /// Namespace of the bridge.
    pub(crate) ns: NsKey,
    /// Bridge.
    pub(crate) bridge: IfIndex,
    /// Station.
    pub(crate) mac: MacAddr,
    /// VLAN, where the bridge filters.
    pub(crate) vid: Option<u16>,
    /// Port.
    pub(crate) port: IfIndex,
}

/// A neighbour that a packet of the exchange made known: one that was asked for, or one that asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Met {
    /// Namespace.
    pub(crate) ns: NsKey,
    /// Device.
    pub(crate) dev: IfIndex,
    /// Its address.
    pub(crate) addr: IpAddr,
    /// Its link-layer address.
    pub(crate) mac: MacAddr,
    /// It answered a question of this namespace, and has been sent to; else it asked itself.
    pub(crate) asked: bool,
}

/// Where a WireGuard device heard a peer last: answers go there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    /// Namespace.
    pub(crate) ns: NsKey,
    /// Device.
    pub(crate) dev: IfIndex,
    /// The peer's key.
    pub(crate) peer: PublicKey,
    /// Its address and port.
    pub(crate) from: (IpAddr, Option<u16>),
    /// Address at which it was heard.
    pub(crate) at: IpAddr,
    /// Device by which that came in.
    pub(crate) iif: IfIndex,
}

/// What a question for a neighbour and its answer teach those who pass them on and both sides.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Lessons {
    /// Bridges, in order.
    pub(crate) learned: Vec<Learned>,
    /// Who asked and who answered.
    pub(crate) met: Vec<Met>,
}

impl Memory {
    /// The next hop that packets of this flow take here, of `hops`, where one chose before.
    pub(crate) fn taken(
        &self,
        ns: &NsKey,
        tuple: &Tuple,
        unlabelled: bool,
        hops: usize,
    ) -> Option<usize> {
        let same = |taken: &&Taken| {
            taken.ns == *ns && taken.tuple == *tuple && taken.unlabelled == unlabelled
        };
        let taken = self.taken.iter().find(same)?;
        Some(taken.hop).filter(|hop| *hop < hops)
    }

    /// Notes which next hop packets of this flow take here.
    pub(crate) fn take(&mut self, ns: &NsKey, tuple: Tuple, unlabelled: bool, hop: usize) {
        self.taken.push(Taken {
            ns: ns.clone(),
            tuple,
            unlabelled,
            hop,
        });
    }

    /// Notes what bridges learn, in order.
    pub(crate) fn learn(&mut self, lessons: impl IntoIterator<Item = Learned>) {
        for lesson in lessons {
            let same = |old: &Learned| {
                old.ns == lesson.ns
                    && old.bridge == lesson.bridge
                    && (old.mac, old.vid) == (lesson.mac, lesson.vid)
            };
            self.learned.retain(|old| !same(old));
            self.learned.push(lesson);
        }
    }

    /// The port of a bridge behind which it learned a station to be.
    pub(crate) fn learned(
        &self,
        ns: &NsKey,
        bridge: IfIndex,
        mac: MacAddr,
        vid: Option<u16>,
    ) -> Option<IfIndex> {
        let here = |own: &&Learned| {
            own.ns == *ns && own.bridge == bridge && (own.mac, own.vid) == (mac, vid)
        };
        self.learned.iter().find(here).map(|own| own.port)
    }

    /// Notes where a peer was heard.
    pub(crate) fn hear(&mut self, heard: Heard) {
        let same =
            |old: &Heard| old.ns == heard.ns && old.dev == heard.dev && old.peer == heard.peer;
        self.heard.retain(|old| !same(old));
        self.heard.push(heard);
    }

    /// Where a peer was heard.
    pub(crate) fn heard(&self, ns: &NsKey, dev: IfIndex, peer: PublicKey) -> Option<&Heard> {
        let here = |own: &&Heard| own.ns == *ns && own.dev == dev && own.peer == peer;
        self.heard.iter().find(here)
    }

    /// Notes what a question for a neighbour and its answer teach.
    pub(crate) fn take_in(&mut self, lessons: Lessons) {
        self.learn(lessons.learned);
        for met in lessons.met {
            let same = |old: &Met| old.ns == met.ns && old.dev == met.dev && old.addr == met.addr;
            // What was just learned stays for a second (`arp_process()`: locktime); IPv6 always takes the latest.
            if met.addr.is_ipv4() && self.met.iter().any(same) {
                continue;
            }
            self.met.retain(|old| !same(old));
            self.met.push(met);
        }
    }

    /// Whether a neighbour was asked for under way (NUD_REACHABLE), and got what waited for its answer.
    pub(crate) fn asked(&self, ns: &NsKey, dev: IfIndex, addr: IpAddr) -> bool {
        let here = |met: &Met| met.ns == *ns && met.dev == dev && met.addr == addr;
        self.met.iter().any(|met| met.asked && here(met))
    }

    /// The link-layer address of a neighbour that was made known.
    pub(crate) fn met(&self, ns: &NsKey, dev: IfIndex, addr: IpAddr) -> Option<MacAddr> {
        let here = |met: &&Met| met.ns == *ns && met.dev == dev && met.addr == addr;
        self.met.iter().find(here).map(|met| met.mac)
    }
}
