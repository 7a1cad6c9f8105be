//! From a packet at a socket to where it ends, and back: a total function of what kernels hold.
//!
//! It never reads. Facts that it lacks come back as [`Wants`]; the driver fetches them and calls
//! again, until nothing is wanted or what is wanted can't be had, which makes the trace inconclusive.
//! Forks (a random rule, several next hops) become several traces, in the kernel's order of the
//! choices, so that equal input gives equal output.
//!
//! Read [`walk`] for the order of things on a node, then the file of each subsystem.

pub(crate) mod bridge;
pub(crate) mod bridge_vlan;
pub(crate) mod conntrack;
pub(crate) mod device;
mod exchange;
pub(crate) mod fib;
pub(crate) mod forward;
pub(crate) mod geneve;
pub(crate) mod input;
pub(crate) mod ip_tunnel;
pub(crate) mod ipvs;
pub(crate) mod l2;
pub(crate) mod memory;
pub(crate) mod neigh;
pub(crate) mod netfilter;
pub(crate) mod output;
mod pass;
pub mod peer;
pub(crate) mod pmtu;
pub mod refusal;
pub(crate) mod reroute;
mod routed;
pub(crate) mod skb;
pub(crate) mod socket;
pub(crate) mod solicit;
pub(crate) mod source;
pub(crate) mod tc;
pub(crate) mod underlay;
pub(crate) mod vlan;
pub(crate) mod vrf;
pub(crate) mod vxlan;
pub(crate) mod walk;
pub(crate) mod wireguard;
pub(crate) mod xfrm;

pub use netfilter::{element_text, iptables_save, is_iptables, nft_ruleset, rule_text};
#[doc(hidden)]
pub use routed::{Onward, Routed};

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use self::netfilter::{HookPoint, HookVerdict, Index};
use self::skb::{CtRef, CtState, Devices, Flows};
use self::walk::{Next, Walk, follow};
use crate::model::netfilter::Hook;
use crate::model::netns::NetNs;
use crate::model::packet::{ICMP, ICMPV6, L4, Packet, SCTP, TCP, UDP};
use crate::model::topology::Topology;
use crate::model::want::{Depth, NsTarget, Want};
use crate::model::{IfIndex, NsKey};
use crate::trace::{Arrival, Passage, Trace, Untold};

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
    /// Gid of the sender, likewise.
    #[serde(default)]
    pub gid: Option<u32>,
    /// Device that the sending socket is bound to (SO_BINDTODEVICE), a VRF or any other.
    #[serde(default)]
    pub bound: Option<IfIndex>,
}

/// One packet as a socket sends it, of any kind: flags, types and marks that no first packet of a [`Flow`] has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Namespace of the socket.
    pub from: NsKey,
    /// The packet.
    pub packet: Packet,
    /// The socket's mark (SO_MARK).
    pub mark: u32,
    /// Uid of the sender, where rules ask for it.
    pub uid: Option<u32>,
    /// Gid of the sender, likewise.
    pub gid: Option<u32>,
    /// The kernel itself sends it: an error about a packet, or a reset.
    pub kernel: bool,
    /// Its program wrote the whole header (IP_HDRINCL), so that the kernel routes it without protocol and ports and never cuts
    /// it; `false` for what a socket's kernel makes, such as a SYN ACK.
    pub raw: bool,
    /// It is the error about a datagram that no socket takes, whose connection the kernel has let go of by then
    /// (`nf_reset_ct()` in `__udp4_lib_rcv()`, v6.12): of others' errors, the connection is that of what they are about.
    pub untied: bool,
    /// Device that the socket is bound to; of an error that the kernel sends about a packet, the VRF that this came in by.
    pub bound: Option<IfIndex>,
}

/// What bounds a simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Namespaces that one packet may enter.
    pub hops: usize,
    /// Ways that one question may fork into, those of its answers and later packets counted; where there
    /// are more, what is left of a packet is one inconclusive way.
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
    /// Refusals that their senders do not hear of; empty where nobody asked for these ([`refusal::untold`]).
    pub untold: Vec<Untold>,
    /// Facts that were lacking.
    pub wants: Wants,
}

/// What all rooms of the simulation share: the facts, and the wish list.
pub(crate) struct Cx<'a> {
    /// Facts.
    pub(crate) topology: &'a Topology,
    /// What was made of their rules to find the ones that matter.
    pub(crate) index: Index<'a>,
    /// Bounds.
    pub(crate) limits: Limits,
    /// Facts that were lacking so far.
    pub(crate) wants: Wants,
    /// Ways that ended so far, of all packets of the question.
    pub(crate) ended: usize,
    /// Rules that keep packets from being translated leave a step, too.
    pub(crate) witness: bool,
}

impl Cx<'_> {
    /// Notes a fact that is lacking.
    pub(crate) fn want(&mut self, node: &str, want: Want) {
        self.wants.entry(node.to_owned()).or_default().insert(want);
    }

    /// Asks for what a question most likely needs of a namespace.
    pub(crate) fn want_netns(&mut self, ns: &NsKey) {
        let target = NsTarget::Id(ns.netns);
        let depth = Depth::Likely;
        self.want(&ns.node, Want::NetNs { target, depth });
    }
}

/// TTL of packets where the setting was not read (IPDEFTTL).
const DEFAULT_TTL: u8 = 64;

/// A topology with what was made of its rules so far, for several questions about it.
#[derive(Debug)]
pub struct Prepared<'a> {
    topology: &'a Topology,
    index: Index<'a>,
}

impl<'a> Prepared<'a> {
    /// Nothing is made before the first question needs it.
    pub fn new(topology: &'a Topology) -> Self {
        Self {
            topology,
            index: Index::default(),
        }
    }

    /// Walks every rule and searches sets from their beginning, to compare answers and times with.
    pub fn one_by_one(topology: &'a Topology) -> Self {
        Self {
            topology,
            index: Index::off(),
        }
    }

    /// Sends one new packet of a socket through one hook alone, and gives the ways that go on, each with its
    /// share: what a lookup in the rules costs, without what is around it.
    pub fn through(&mut self, ns: &NsKey, hook: Hook, packet: Packet) -> Vec<(f64, Packet)> {
        let mut cx = self.cx(&Limits::default());
        let at = HookPoint {
            ns,
            hook,
            bridge: false,
            devices: Devices::default(),
            reroutes: false,
        };
        let skb = exchange::first(ns.clone(), packet, (None, None)).skb;
        let outcomes = netfilter::run(&mut cx, &at, skb, Flows::default());
        self.index = cx.index;
        let gone = outcomes.into_iter();
        let accepted = gone.filter(|outcome| outcome.verdict == HookVerdict::Accept);
        accepted
            .map(|outcome| (outcome.share, outcome.skb.packet))
            .collect()
    }

    /// Sends a new packet past one node, and gives the ways it may take there; none where no device leads to its
    /// source. No neighbour is asked, and no answer followed.
    pub fn pass(&mut self, arrival: &Arrival, limits: &Limits) -> Vec<Passage> {
        let mut cx = self.cx(limits);
        cx.witness = true;
        let passages = pass::pass(&mut cx, arrival);
        self.index = cx.index;
        passages
    }

    fn cx(&mut self, limits: &Limits) -> Cx<'a> {
        Cx {
            topology: self.topology,
            index: std::mem::take(&mut self.index),
            limits: *limits,
            wants: Wants::new(),
            ended: 0,
            witness: false,
        }
    }

    /// As [`simulate`].
    pub fn simulate(&mut self, flow: &Flow, limits: &Limits) -> Outcome {
        let mut cx = self.cx(limits);
        let traces = traces(&mut cx, flow);
        self.outcome(cx, traces)
    }

    /// As [`send`].
    pub fn send(&mut self, sent: &Sent, limits: &Limits) -> Outcome {
        let mut cx = self.cx(limits);
        let walk = opening(&mut cx, Asked::Sent(sent));
        self.alone(cx, walk, sent.bound)
    }

    /// Follows what is sent about a packet that went one of its ways, as [`send`] does, with the connections and all else that
    /// the packet left behind; an error belongs to the packet's connection from the beginning. Where it has no such way, with
    /// nothing of it.
    ///
    /// A kernel forgets a connection that only a reset answered before OUTPUT sees the reset (`nf_conntrack_tcp_packet()`), so
    /// that nobody reads it afterwards.
    pub fn send_after(
        &mut self,
        asked: Asked<'_>,
        way: &Trace,
        sent: &Sent,
        limits: &Limits,
    ) -> Outcome {
        let mut cx = self.cx(limits);
        let walk = opening(&mut cx, asked);
        let ends = follow(&mut cx, walk, Next::LocalOut(asked.bound()));
        cx.ended = 0;
        let mut ends = ends.into_iter();
        let before =
            ends.find(|end| end.walk.hops == way.hops && end.disposition == way.disposition);
        let mut walk = opening(&mut cx, Asked::Sent(sent));
        if let Some(before) = before {
            let old = before.walk;
            walk.memory = old.memory;
            // `nf_conntrack_attach()`: also one that is not confirmed, and never will be.
            if let CtRef::Entry { index, reply, .. } = old.skb.ct
                && old.ns == sent.from
                && walk.skb.is_tied_error()
            {
                walk.skb.ct = CtRef::Entry {
                    index,
                    reply: !reply,
                    state: CtState::Related,
                };
            }
        }
        self.alone(cx, walk, sent.bound)
    }

    fn alone(&mut self, mut cx: Cx<'a>, walk: Walk, bound: Option<IfIndex>) -> Outcome {
        let ends = follow(&mut cx, walk, Next::LocalOut(bound));
        let traces = ends.into_iter().filter_map(exchange::alone).collect();
        self.outcome(cx, traces)
    }

    /// Keeps what was made of the rules for the next question.
    fn outcome(&mut self, cx: Cx<'a>, traces: Vec<Trace>) -> Outcome {
        self.index = cx.index;
        Outcome {
            traces,
            wants: cx.wants,
            ..Outcome::default()
        }
    }
}

/// Follows a flow's first packet on every way it may take, and the answer back.
///
/// Total: for any topology and flow there is at least one trace, and probabilities add up to 1.
pub fn simulate(topology: &Topology, flow: &Flow, limits: &Limits) -> Outcome {
    Prepared::new(topology).simulate(flow, limits)
}

fn traces(cx: &mut Cx<'_>, flow: &Flow) -> Vec<Trace> {
    let walk = opening(cx, Asked::Flow(flow));
    let mut traces = Vec::new();
    for end in follow(cx, walk, Next::LocalOut(flow.bound)) {
        traces.extend(exchange::of(cx, flow, end));
    }
    traces
}

/// Follows one packet on every way it may take, and no answer. Its ports should be fixed.
///
/// Total, as [`simulate`] is.
pub fn send(topology: &Topology, sent: &Sent, limits: &Limits) -> Outcome {
    Prepared::new(topology).send(sent, limits)
}

/// What a first packet is asked about by.
#[derive(Clone, Copy, Debug)]
pub enum Asked<'a> {
    /// As [`simulate`] is.
    Flow(&'a Flow),
    /// As [`send`] is.
    Sent(&'a Sent),
}

impl Asked<'_> {
    fn bound(self) -> Option<IfIndex> {
        match self {
            Self::Flow(flow) => flow.bound,
            Self::Sent(sent) => sent.bound,
        }
    }
}

/// The first packet, as its socket sends it.
fn opening(cx: &mut Cx<'_>, asked: Asked<'_>) -> Walk {
    let sent = match asked {
        Asked::Flow(flow) => {
            want_start(cx, &flow.from);
            let packet = first_packet(cx, flow);
            let mut walk = exchange::first(flow.from.clone(), packet, (flow.uid, flow.gid));
            let range = |netns: &NetNs| netns.sysctls.known()?.ip_local_port_range.known().copied();
            if let Some(range) = cx.topology.netns(&flow.from).and_then(range) {
                walk.skb.free = range;
            }
            return walk;
        }
        Asked::Sent(sent) => sent,
    };
    want_start(cx, &sent.from);
    let mut walk = exchange::first(sent.from.clone(), sent.packet.clone(), (sent.uid, sent.gid));
    walk.skb.mark = Some(sent.mark);
    walk.skb.raw = sent.raw;
    walk.skb.written = sent.raw;
    // Of resets, some have their checksum written (`nf_reject_ip6_tcphdr_put()`, `tcp_v4_send_reset()`).
    walk.skb.partial = if sent.raw {
        Some(false)
    } else {
        walk.skb.partial.filter(|_| !sent.kernel)
    };
    walk.skb.kernel = sent.kernel;
    walk.skb.untied = sent.untied;
    // Rules reset with the address of somebody else (`ip_route_me_harder()`: FLOWI_FLAG_ANYSRC).
    walk.any_source = sent.kernel && matches!(sent.packet.l4, L4::Tcp { .. });
    walk
}

/// Wishes for the namespace that a packet starts in, where it was not read.
fn want_start(cx: &mut Cx<'_>, from: &NsKey) {
    if cx.topology.netns(from).is_none() {
        cx.want_netns(from);
    }
}

fn first_packet(cx: &Cx<'_>, flow: &Flow) -> Packet {
    let unspecified: IpAddr = if flow.dst.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let (sport, dport) = (flow.sport, flow.dport);
    let l4 = match flow.protocol {
        TCP => L4::Tcp {
            sport,
            dport,
            flags: 0x02,
        },
        UDP => L4::Udp { sport, dport },
        SCTP => L4::Sctp { sport, dport },
        ICMP | ICMPV6 if flow.dst.is_ipv4() => L4::Icmp {
            kind: 8,
            code: 0,
            id: sport,
        },
        ICMP | ICMPV6 => L4::Icmp {
            kind: 128,
            code: 0,
            id: sport,
        },
        other => L4::Other(other),
    };
    Packet {
        ttl: ttl(cx, &flow.from),
        len: flow.len,
        ..Packet::new(flow.src.unwrap_or(unspecified), flow.dst, l4)
    }
}

/// TTL that a namespace gives its own packets.
pub(crate) fn ttl(cx: &Cx<'_>, ns: &NsKey) -> u8 {
    let sysctls = cx
        .topology
        .netns(ns)
        .and_then(|netns| netns.sysctls.known());
    let set = sysctls.and_then(|sysctls| sysctls.ip_default_ttl.known().copied());
    set.unwrap_or(DEFAULT_TTL)
}
