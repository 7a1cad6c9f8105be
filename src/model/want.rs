//! Facts that can be asked of a node, and the answers.
//!
//! `simulate` returns the [`Want`]s it could not do without; the driver sends them to the node's
//! helper, and [`Topology::merge`](super::topology::Topology::merge) takes the [`Fact`]s in.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::conntrack::{ConntrackEntry, ConntrackFilter, ConntrackFlows, ConntrackStats, Tuple};
use super::ipset::Ipset;
use super::ipvs::{IpvsConn, IpvsConnKey, IpvsKey, IpvsService};
use super::netfilter::{Backend, Chain, Family, Set, SetElem};
use super::netns::NetNs;
use super::{NetNsId, Section};

/// How to find a namespace on a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum NsTarget {
    /// The node's own.
    Host,
    /// That of the pod with this UID (or static pod's hash).
    PodUid(String),
    /// One that was found before.
    Id(NetNsId),
    /// That of a process.
    Pid(u32),
    /// That of a file in `/run/netns`.
    Named(String),
    /// All that can be found.
    All,
}

/// How much of the rules to send with a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Depth {
    /// Identity, names and processes only; no tables at all.
    Identity,
    /// Everything but rules: base chains without their rules.
    NoRules,
    /// Base chains, and chains they lead to as long as a chain leads to few others.
    Likely,
    /// Everything, elements of all sets included.
    Full,
}

/// What the other wants of a request are about, so that the helper can leave out rules which no such
/// packet can match. Decides nothing: what was left out is said, and asked for where it is needed.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Packets {
    /// Where the packets may be sent on their way.
    pub to: Vec<Towards>,
}

/// A destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Towards {
    /// Address.
    pub addr: IpAddr,
    /// IPPROTO_* and port, where they are known.
    pub service: Option<(u8, u16)>,
}

/// A fact wanted from one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Want {
    /// A namespace with all light sections. Answered by one [`Fact::NetNs`] per namespace found, or
    /// one [`Fact::NoNetNs`].
    NetNs {
        /// Which.
        target: NsTarget,
        /// How much of its rules.
        depth: Depth,
    },
    /// A chain with its rules, and the chains it leads to as long as those are few, with the sets that
    /// these rules use.
    Chain {
        /// Namespace.
        netns: NetNsId,
        /// Backend.
        backend: Backend,
        /// Family of the table.
        family: Family,
        /// Table.
        table: String,
        /// Chain.
        chain: String,
    },
    /// A set with its elements.
    Set {
        /// Namespace.
        netns: NetNsId,
        /// Family of the table.
        family: Family,
        /// Table.
        table: String,
        /// Set.
        set: String,
    },
    /// One element of a set, by key.
    SetElem {
        /// Namespace.
        netns: NetNsId,
        /// Family of the table.
        family: Family,
        /// Table.
        table: String,
        /// Set.
        set: String,
        /// Key as the rule would look it up.
        key: Vec<u8>,
    },
    /// The conntrack entry that has this tuple in either direction, in a zone. Ports must be fixed.
    Conntrack {
        /// Namespace.
        netns: NetNsId,
        /// Tuple.
        tuple: Tuple,
        /// Zone of that direction.
        zone: u16,
    },
    /// Conntrack entries of all zones whose original direction has these ends, whatever its ports are where
    /// they are not fixed. The kernel filters; the table is not sent.
    ConntrackFlows {
        /// Namespace.
        netns: NetNsId,
        /// Ends.
        tuple: Tuple,
    },
    /// The conntrack table, all zones and both families, as far as a filter lets it pass. Answered by one
    /// [`Fact::ConntrackTable`] per namespace found, or one [`Fact::NoNetNs`].
    ConntrackTable {
        /// Which namespace.
        target: NsTarget,
        /// Which entries.
        filter: ConntrackFilter,
    },
    /// What conntrack counts, by CPU. Answered by one [`Fact::ConntrackStats`] per namespace found, or one
    /// [`Fact::NoNetNs`].
    ConntrackStats {
        /// Which namespace.
        target: NsTarget,
    },
    /// Conntrack entries whose original direction has this source (address, protocol, port), whatever their
    /// destination. The kernel filters, but goes through the table: only asked where it can matter.
    ConntrackFrom {
        /// Namespace.
        netns: NetNsId,
        /// Protocol, source address and port count.
        tuple: Tuple,
    },
    /// An ipset with its members, and the sets that a `list:set` names.
    Ipset {
        /// Namespace.
        netns: NetNsId,
        /// Set.
        set: String,
    },
    /// An IPVS service with its servers.
    IpvsService {
        /// Namespace.
        netns: NetNsId,
        /// Which.
        key: IpvsKey,
    },
    /// All IPVS services. Answered by one [`Fact::Ipvs`], or one [`Fact::NoNetNs`].
    Ipvs {
        /// Which namespace.
        target: NsTarget,
    },
    /// An IPVS connection.
    IpvsConn {
        /// Namespace.
        netns: NetNsId,
        /// Which.
        key: IpvsConnKey,
    },
    /// No fact: makes [`Depth::Likely`] and chains of this request leaner.
    About(Packets),
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// A namespace.
    NetNs(Box<NetNs>),
    /// No namespace fits the target.
    NoNetNs {
        /// The target.
        target: NsTarget,
        /// Why: not found, or what could not be read while looking.
        why: String,
    },
    /// A chain; `Known(None)`: the table has no such chain.
    Chain {
        /// Namespace.
        netns: NetNsId,
        /// Backend.
        backend: Backend,
        /// Family.
        family: Family,
        /// Table.
        table: String,
        /// Name that was asked for.
        name: String,
        /// The chain.
        chain: Section<Option<Chain>>,
    },
    /// A set; `Known(None)`: the table has no such set.
    Set {
        /// Namespace.
        netns: NetNsId,
        /// Family.
        family: Family,
        /// Table.
        table: String,
        /// Name that was asked for.
        name: String,
        /// The set.
        set: Section<Option<Set>>,
    },
    /// An element; `Known(None)`: not in the set.
    SetElem {
        /// Namespace.
        netns: NetNsId,
        /// Family.
        family: Family,
        /// Table.
        table: String,
        /// Set.
        set: String,
        /// Key that was asked for.
        key: Vec<u8>,
        /// The element.
        elem: Section<Option<SetElem>>,
    },
    /// A conntrack entry; `Known(None)`: there is none.
    Conntrack {
        /// Namespace.
        netns: NetNsId,
        /// Tuple that was asked for.
        tuple: Tuple,
        /// Zone.
        zone: u16,
        /// The entry.
        entry: Section<Option<ConntrackEntry>>,
    },
    /// Entries between two ends.
    ConntrackFlows {
        /// Namespace.
        netns: NetNsId,
        /// Ends that were asked for.
        tuple: Tuple,
        /// The entries.
        flows: Section<ConntrackFlows>,
    },
    /// The whole conntrack table of a namespace that is there.
    ConntrackTable {
        /// Namespace.
        netns: NetNsId,
        /// Its entries, in the kernel's order.
        entries: Section<Vec<ConntrackEntry>>,
    },
    /// Answer to [`Want::ConntrackStats`].
    ConntrackStats {
        /// Namespace.
        netns: NetNsId,
        /// Counts; `None`: nothing is tracked there.
        stats: Section<Option<ConntrackStats>>,
    },
    /// Answer to [`Want::ConntrackFrom`].
    ConntrackFrom {
        /// Namespace.
        netns: NetNsId,
        /// Source that was asked for.
        tuple: Tuple,
        /// Entries of all zones.
        entries: Section<Vec<ConntrackEntry>>,
    },
    /// An ipset; `Known(None)`: there is none of this name.
    Ipset {
        /// Namespace.
        netns: NetNsId,
        /// Name that was asked for.
        name: String,
        /// The set.
        set: Section<Option<Ipset>>,
    },
    /// An IPVS service; `Known(None)`: there is none such.
    IpvsService {
        /// Namespace.
        netns: NetNsId,
        /// Which was asked for.
        key: IpvsKey,
        /// The service.
        service: Section<Option<IpvsService>>,
    },
    /// All IPVS services, in the kernel's order.
    Ipvs {
        /// Namespace.
        netns: NetNsId,
        /// Services.
        services: Section<Vec<IpvsService>>,
    },
    /// An IPVS connection; `Known(None)`: there is none such.
    IpvsConn {
        /// Namespace.
        netns: NetNsId,
        /// Which was asked for.
        key: IpvsConnKey,
        /// The connection.
        conn: Section<Option<IpvsConn>>,
    },
}
