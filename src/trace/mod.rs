//! What an answer is: a trace is hops and one disposition; a hop is one network namespace; a step is
//! one decision with the objects that made it.
//!
//! The words are Batfish's. Read [`disposition`] for how a trace can end, [`evidence`] for what can
//! decide.

pub mod disposition;
pub mod evidence;
pub mod passage;

use serde::{Deserialize, Serialize};

use crate::model::NsKey;
use crate::model::packet::Packet;

pub use disposition::{Disposition, DropReason, RejectWith};
pub use evidence::Evidence;
pub use passage::{Arrival, Passage, PassageEnd};

/// One way a packet may take, with the share of packets that take it, and the way of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trace {
    /// Share of packets of this flow's kind that take this way, 0 to 1. All traces of one question add
    /// up to 1.
    pub probability: f64,
    /// How it ends.
    pub disposition: Disposition,
    /// Namespaces in the order they are entered. Never empty.
    pub hops: Vec<Hop>,
    /// The packet as it was where it ended.
    pub packet: Packet,
    /// The way of the answer, where the packet reached a socket (or a kernel) that answers, or left
    /// for one that may.
    pub reply: Option<Box<Trace>>,
}

impl Trace {
    /// Whether the packet arrives and its answer comes back.
    pub fn works(&self) -> bool {
        let arrives = matches!(
            self.disposition,
            Disposition::Delivered | Disposition::LeavesCluster
        );
        arrives && self.reply.as_deref().is_none_or(Self::works)
    }

    /// How the whole exchange ends: the packet's own end, unless it arrives and its answer does not.
    pub fn outcome(&self) -> &Disposition {
        match &self.reply {
            Some(reply) if !reply.works() => reply.outcome(),
            _ => &self.disposition,
        }
    }

    /// Its decisions in order, each with where it was made.
    pub fn steps(&self) -> impl DoubleEndedIterator<Item = (&Hop, &Step)> {
        let hops = self.hops.iter();
        hops.flat_map(|hop| hop.steps.iter().map(move |step| (hop, step)))
    }

    /// Hop and step where it ended, if it has any step.
    pub fn last_step(&self) -> Option<(&Hop, &Step)> {
        self.steps().next_back()
    }

    /// Whether a decision of such a kind ended it.
    pub fn ended_by(&self, kind: StepKind) -> bool {
        self.last_step().is_some_and(|(_, step)| step.kind == kind)
    }

    /// Where it can be seen, in order.
    pub fn taps(&self) -> impl DoubleEndedIterator<Item = (&NsKey, &Tap)> {
        let hops = self.hops.iter();
        hops.flat_map(|hop| hop.taps.iter().map(move |tap| (&hop.ns, tap)))
    }
}

/// A refusal that its sender does not hear of, or may not: the error by which it is told is lost.
#[derive(Clone, Debug, PartialEq)]
pub struct Untold {
    /// Position of what is refused among the traces.
    pub way: usize,
    /// The ways of the error, all of which it is lost on; none where there is no address to send one from.
    pub back: Vec<Trace>,
    /// Why it can't be told whether it is lost, where that is so.
    pub unknown: Option<String>,
}

/// What happened in one namespace.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hop {
    /// Where.
    pub ns: NsKey,
    /// Device it came in by; `None` where it was sent here.
    pub iif: Option<String>,
    /// Device it left by; `None` where it ended here.
    pub oif: Option<String>,
    /// The packet as it came in or was made.
    pub packet: Packet,
    /// Decisions in order.
    pub steps: Vec<Step>,
    /// Where a capture (`tcpdump -i DEV`) in this namespace would see it, in order.
    pub taps: Vec<Tap>,
}

/// A place where a packet can be seen, and the packet as it is there.
///
/// Source: `dev_queue_xmit_nit()` and the taps of `__netif_receive_skb_core()`, net/core/dev.c, v6.12:
/// a received packet is seen before any rule, one that is sent behind all of them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tap {
    /// Device.
    pub dev: String,
    /// It leaves by the device; it comes in where false.
    pub out: bool,
    /// The packet.
    pub packet: Packet,
}

/// What a step says whose rule keeps a packet from connection tracking, and so from translation.
pub const NOT_TRACKED: &str = "not tracked";

/// One decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Step {
    /// What kind of decision.
    pub kind: StepKind,
    /// What was decided, in kernel words, one line without object names that are in the evidence.
    pub result: String,
    /// Objects that decided, the most telling one first.
    pub evidence: Vec<Evidence>,
    /// What it changed in the packet.
    pub changes: Vec<FieldChange>,
}

impl Step {
    /// A step that changes nothing.
    pub fn new(kind: StepKind, result: impl Into<String>) -> Self {
        Self {
            kind,
            result: result.into(),
            evidence: Vec::new(),
            changes: Vec::new(),
        }
    }

    /// Adds an object that decided.
    #[must_use]
    pub fn with(mut self, evidence: Evidence) -> Self {
        self.evidence.push(evidence);
        self
    }

    /// Adds what differs between two packets. Fields that are equal are not changes.
    #[must_use]
    pub fn changing(mut self, before: &Packet, after: &Packet) -> Self {
        self.changes.extend(FieldChange::between(before, after));
        self
    }
}

/// Kinds of decisions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StepKind {
    /// A socket sends.
    Origin,
    /// A source address was chosen.
    SourceAddress,
    /// A route was looked up.
    Route,
    /// The source was checked against the routes (reverse path, martians).
    RpFilter,
    /// A next hop's link-layer address was found.
    Neigh,
    /// A bridge chose a port.
    Bridge,
    /// A conntrack entry was found or made.
    Conntrack,
    /// Rules of one base chain.
    Netfilter,
    /// Addresses or ports were translated.
    Nat,
    /// IPVS took a packet for a virtual service, or an answer of a server.
    Ipvs,
    /// Forwarded: switches and TTL.
    Forward,
    /// Size against MTU.
    Mtu,
    /// Handed to a device.
    Transmit,
    /// Taken from a device.
    Receive,
    /// Put into a tunnel packet.
    Encap,
    /// Taken out of a tunnel packet.
    Decap,
    /// The way between nodes, which no kernel here can tell.
    Underlay,
    /// XFRM policies were looked at.
    Xfrm,
    /// A socket takes it.
    Socket,
    /// Something that can't be evaluated.
    Unknown,
}

impl StepKind {
    /// The word used in output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Origin => "origin",
            Self::SourceAddress => "source-address",
            Self::Route => "route",
            Self::RpFilter => "rp-filter",
            Self::Neigh => "neigh",
            Self::Bridge => "bridge",
            Self::Conntrack => "conntrack",
            Self::Netfilter => "netfilter",
            Self::Nat => "nat",
            Self::Ipvs => "ipvs",
            Self::Forward => "forward",
            Self::Mtu => "mtu",
            Self::Transmit => "transmit",
            Self::Receive => "receive",
            Self::Encap => "encap",
            Self::Decap => "decap",
            Self::Underlay => "underlay",
            Self::Xfrm => "xfrm",
            Self::Socket => "socket",
            Self::Unknown => "unknown",
        }
    }
}

/// One field of the packet that a step changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldChange {
    /// `src`, `dst`, `sport`, `dport`, `ttl`, `tos`, `mark`.
    pub field: String,
    /// Before.
    pub from: String,
    /// After.
    pub to: String,
}

impl FieldChange {
    /// A change, unless both are equal.
    pub fn new<T: ToString + PartialEq>(field: &str, from: &T, to: &T) -> Option<Self> {
        (from != to).then(|| Self {
            field: field.to_owned(),
            from: from.to_string(),
            to: to.to_string(),
        })
    }

    /// What differs between two packets, link-layer addresses and what is inside apart.
    pub fn between(before: &Packet, after: &Packet) -> Vec<Self> {
        let text = |port: Option<u16>| port.map_or_else(|| "any".to_owned(), |p| p.to_string());
        let port = |field, from, to| {
            let differs = (from != to).then(|| Self::new(field, &text(from), &text(to)));
            differs.flatten()
        };
        [
            Self::new("src", &before.src, &after.src),
            Self::new("dst", &before.dst, &after.dst),
            port("sport", before.sport(), after.sport()),
            port("dport", before.dport(), after.dport()),
            Self::new("ttl", &before.ttl, &after.ttl),
            Self::new("tos", &before.tos, &after.tos),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
