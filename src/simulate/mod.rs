//! From a packet at a socket to where it ends, and back: a total function of what kernels hold.
//!
//! It never reads. Facts that it lacks come back as [`Wants`]; the driver fetches them and calls
//! again, until nothing is wanted or what is wanted can't be had, which makes the trace inconclusive.
//! Forks (a random rule, several next hops) become several traces, in the kernel's order of the
//! choices, so that equal input gives equal output.
//!
//! Read [`walk`] for the order of things on a node, then the file of each subsystem.

pub(crate) mod fib;
pub(crate) mod netfilter;
pub mod peer;
pub(crate) mod skb;
pub(crate) mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::NsKey;
use crate::model::topology::Topology;
use crate::model::want::Want;
use crate::trace::Trace;

/// Facts that were lacking, by node.
pub type Wants = BTreeMap<String, BTreeSet<Want>>;

/// The question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flow {
    /// Namespace of the sending socket.
    pub from: NsKey,
    /// Address the sending socket is bound to; `None`: the kernel chooses.
    pub src: Option<IpAddr>,
    /// Source port; `None`: any free one, so that the flow is a new one.
    pub sport: Option<u16>,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port; for echo, none.
    pub dport: Option<u16>,
    /// IPPROTO_*: 6, 17, 132, 1 or 58.
    pub protocol: u8,
    /// Bytes from the IP header on.
    pub len: u32,
    /// Uid of the sender, where rules ask for it.
    pub uid: Option<u32>,
}

/// What bounds a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Namespaces that one packet may enter.
    pub hops: usize,
    /// Ways that one question may fork into; further ones become one inconclusive trace.
    pub branches: usize,
    /// Rules that one packet may meet at one hook.
    pub rules: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            hops: 64,
            branches: 1024,
            rules: 1_000_000,
        }
    }
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// At least one trace; their probabilities add up to 1.
    pub traces: Vec<Trace>,
    /// Facts that were lacking.
    pub wants: Wants,
}

/// What all rooms of the simulation share: the facts, and the wish list.
pub(crate) struct Cx<'a> {
    /// Facts.
    pub(crate) topology: &'a Topology,
    /// Bounds.
    pub(crate) limits: Limits,
    /// Facts that were lacking so far.
    pub(crate) wants: Wants,
}

impl Cx<'_> {
    /// Notes a fact that is lacking.
    pub(crate) fn want(&mut self, node: &str, want: Want) {
        self.wants.entry(node.to_owned()).or_default().insert(want);
    }
}
