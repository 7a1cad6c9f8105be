//! One packet under way: where it is, what it met, and what comes next.
//!
//! Order on a node: receive (device, bridge) → PREROUTING → input route → local: INPUT, socket;
//! else: FORWARD → POSTROUTING → neighbour → transmit. From a socket: output route → OUTPUT →
//! POSTROUTING → neighbour → transmit. Each stage turns a [`Next`] into one or more others.

use std::net::IpAddr;

use super::memory::Memory;
use super::netfilter::{FreePorts, HookPoint, HookVerdict, run};
use super::pmtu::Entered;
use super::skb::{CtRef, Devices, Skb};
use super::{Cx, bridge, device, forward, input, ipvs, neigh, output, socket};
use crate::model::link::{IpTunnelKind, Link};
use crate::model::netfilter::Hook;
use crate::model::netns::NetNs;
use crate::model::packet::L4;
use crate::model::{IfIndex, MacAddr, NsKey};
use crate::trace::{Disposition, DropReason, Evidence, Hop, RejectWith, Step, StepKind, Tap};

/// A packet under way.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    /// Where it is.
    pub(crate) ns: NsKey,
    /// The packet.
    pub(crate) skb: Skb,
    /// What happened so far.
    pub(crate) hops: Vec<Hop>,
    /// Share of packets that take this way.
    pub(crate) share: f64,
    /// Where it was, to notice loops.
    pub(crate) seen: Vec<Crumb>,
    /// Who must take it.
    pub(crate) goal: Goal,
    /// Bridge port it came in by, while br_netfilter remembers it.
    pub(crate) physin: Option<IfIndex>,
    /// Next hop that the last route named, as the sender of the frame knew it.
    pub(crate) next_hop: Option<IpAddr>,
    /// What packets of this exchange left behind so far.
    pub(crate) memory: Memory,
    /// Uid of the socket that took it, and whether it is transparent.
    pub(crate) taker: Option<(u32, bool)>,
    /// Device that what took it sends answers by: the one that its socket is bound to, or its VRF.
    pub(crate) answers_by: Option<IfIndex>,
    /// The sending socket may have any source (FLOWI_FLAG_ANYSRC).
    pub(crate) any_source: bool,
    /// The socket had no source when its route was looked up, by IPv6, and goes on by that route.
    pub(crate) unsourced: bool,
    /// VLAN tags of the frame, the outermost last.
    pub(crate) tags: Vec<u16>,
    /// VLAN that the bridge that it is in takes it for, where that filters.
    pub(crate) vid: Option<u16>,
    /// PREROUTING was done at the bridge below.
    pub(crate) prerouted: bool,
    /// Tunnel device that has just put it into an outer packet, until that is routed.
    pub(crate) tunnel: Option<Entered>,
    /// Who sent what is in the tunnel is told of its size.
    pub(crate) told: bool,
    /// Of packets in tunnels, as they were put in: what their ports may be where they are any free ones, and whose checksum
    /// was left to a device.
    pub(crate) inside: Vec<(FreePorts, Option<bool>)>,
}

/// A place and what was there: the same twice is a loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Crumb {
    ns: NsKey,
    dev: IfIndex,
    src: IpAddr,
    dst: IpAddr,
    sport: Option<u16>,
    dport: Option<u16>,
    inside: Option<(IpAddr, IpAddr)>,
    /// Station that the frame is for: a switch may get it twice, for another one each time (VEPA).
    station: Option<MacAddr>,
    tag: Option<u16>,
}

/// Who must take the packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Goal {
    /// Any socket that listens for it.
    Listener,
    /// The socket at the other end of the exchange.
    Party(Party),
}

/// A socket of the exchange, as its own kernel sees the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Party {
    /// Its namespace.
    pub(crate) ns: NsKey,
    /// Its address.
    pub(crate) src: IpAddr,
    /// Its port.
    pub(crate) sport: Option<u16>,
    /// Address at the other end.
    pub(crate) dst: IpAddr,
    /// Port at the other end.
    pub(crate) dport: Option<u16>,
    /// Device that it is bound to.
    pub(crate) bound: Option<IfIndex>,
    /// It has sent a packet of the connection that stands: what comes is not the first answer.
    pub(crate) sent: bool,
    /// Whether it is transparent (IP_TRANSPARENT).
    pub(crate) transparent: bool,
}

/// A way out that a route named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Out {
    /// Device.
    pub(crate) oif: IfIndex,
    /// Gateway; `None`: the destination itself.
    pub(crate) via: Option<IpAddr>,
    /// Largest packet, where the route sets one.
    pub(crate) mtu: Option<u32>,
    /// Device it came in by, where it is forwarded.
    pub(crate) iif: Option<IfIndex>,
    /// To this host.
    pub(crate) local: bool,
}

/// What comes next.
#[derive(Clone, Debug)]
pub(crate) enum Next {
    /// A socket or tunnel of this namespace sends it, bound to a device or not.
    LocalOut(Option<IfIndex>),
    /// Routed; POSTROUTING is next.
    Postrouting(Out),
    /// The next hop's link-layer address is next.
    Neigh(Out),
    /// A device sends the frame.
    Transmit(IfIndex),
    /// A device got the frame.
    Receive(IfIndex),
    /// A bridge looks for the port: bridge, port it came in by, whether it is bridged IP that
    /// br_netfilter shows to the IP hooks.
    Bridge(IfIndex, Option<IfIndex>, bool),
    /// The IP layer gets it from this device; whether PREROUTING was done at the bridge.
    Ip(IfIndex, bool),
    /// Routed to be forwarded, came in by this device.
    Forward(IfIndex, Out),
    /// For this host, came in by this device.
    LocalIn(IfIndex),
    /// Over.
    End(Disposition),
}

/// What a stage gives.
pub(crate) type Ways = Vec<(Walk, Next)>;

impl Walk {
    /// Notes a decision.
    pub(crate) fn step(&mut self, step: Step) {
        if let Some(hop) = self.hops.last_mut() {
            hop.steps.push(step);
        }
    }

    /// Notes that a device carries it.
    pub(crate) fn tap(&mut self, dev: &str, out: bool) {
        let packet = self.skb.packet.clone();
        if let Some(hop) = self.hops.last_mut() {
            hop.taps.push(Tap {
                dev: dev.to_owned(),
                out,
                packet,
            });
        }
    }

    /// Ends here.
    pub(crate) fn end(self, disposition: Disposition) -> Ways {
        vec![(self, Next::End(disposition))]
    }

    /// Ends here because something is missing, which is named in a step.
    pub(crate) fn unknown(mut self, why: impl Into<String>) -> Ways {
        let why = why.into();
        let what = Evidence::Unreadable { what: why.clone() };
        self.step(Step::new(StepKind::Unknown, "can't be known").with(what));
        self.end(Disposition::Inconclusive(vec![why]))
    }

    /// Goes on.
    pub(crate) fn then(self, next: Next) -> Ways {
        vec![(self, next)]
    }

    /// Goes on by several ways, each as likely as the others.
    pub(crate) fn fork<T>(self, choices: Vec<T>, go: impl Fn(Self, T) -> Ways) -> Ways {
        let count = u32::try_from(choices.len()).map_or(f64::from(u32::MAX), f64::from);
        let share = self.share / count.max(1.0);
        let mut ways = Vec::new();
        for choice in choices {
            let walk = Self {
                share,
                ..self.clone()
            };
            ways.extend(go(walk, choice));
        }
        ways
    }

    /// The next hops of a route that it may take, each by its position, with its own share: all of
    /// them, unless a packet of the same flow chose before.
    pub(crate) fn forks(&self, hops: usize, share: impl Fn(usize) -> f64) -> Vec<(usize, Self)> {
        let tuple = self.skb.packet.tuple();
        let unlabelled = self.is_unlabelled();
        if let Some(hop) = self.memory.taken(&self.ns, &tuple, unlabelled, hops) {
            return vec![(hop, self.clone())];
        }
        let mut ways = Vec::new();
        for hop in 0..hops {
            let mut way = self.clone();
            way.share *= share(hop);
            if hops > 1 {
                way.memory.take(&self.ns, tuple, unlabelled, hop);
            }
            ways.push((hop, way));
        }
        ways
    }

    /// Whether it is sent here, by IPv6: its flow label, which takes part in the choice of a next hop, is made behind
    /// that choice (`ip6_make_flowlabel()`), and everyone else sees it, as does another lookup behind OUTPUT.
    pub(crate) fn is_unlabelled(&self) -> bool {
        self.skb.local && !self.skb.labelled && self.skb.packet.dst.is_ipv6()
    }

    /// Whether it is never cut: its program wrote the whole header, and says so in it or does without such a bit.
    pub(crate) fn is_whole(&self) -> bool {
        self.skb.raw && (self.skb.packet.df || self.skb.packet.dst.is_ipv6())
    }

    /// How it ends: who sent into a tunnel is not told what became of the tunnel's own packet, but for its size.
    fn ended(&self, disposition: Disposition) -> Disposition {
        let tunnel = self.skb.packet.is_tunnel() && !self.skb.raw;
        match disposition {
            // The tunnel's device itself tells of what it can't send; a router on its way tells only that.
            Disposition::Rejected(RejectWith::TooBig(_)) if self.told => disposition,
            Disposition::Rejected(_) | Disposition::Dropped(_) if self.has_no_way() => {
                Disposition::Rejected(RejectWith::HostUnreachable)
            }
            Disposition::Rejected(_) if tunnel => {
                let hop = self.hops.last();
                let step = hop.and_then(|hop| hop.steps.last());
                Disposition::Dropped(match step.map(|step| step.kind) {
                    Some(StepKind::Neigh) => DropReason::NeighFailed,
                    Some(StepKind::Mtu) => DropReason::PktTooBig,
                    Some(StepKind::Route | StepKind::SourceAddress) => {
                        match hop.and_then(|hop| hop.iif.as_ref()) {
                            Some(_) => DropReason::IpInnoroutes,
                            None => DropReason::IpOutnoroutes,
                        }
                    }
                    _ => DropReason::NotSpecified,
                })
            }
            _ => disposition,
        }
    }

    /// Whether `sit` found no route for IPv6's outer packet, which it tells the sender (`ipip6_tunnel_xmit()`:
    /// tx_error_icmp, v6.12; `ip_tunnel_xmit()` does not).
    fn has_no_way(&self) -> bool {
        let packet = &self.skb.packet;
        let inner = packet.inner.as_ref().map(|inner| &inner.packet);
        let last = self.hops.last().and_then(|hop| hop.steps.last());
        self.tunnel.is_some()
            && packet.l4 == L4::Other(IpTunnelKind::Sit.protocol())
            && inner.is_some_and(|inner| inner.src.is_ipv6() && !inner.is_tunnel())
            && last.is_some_and(|step| step.kind == StepKind::Route)
    }

    /// The namespace it is in.
    pub(crate) fn netns<'t>(&self, cx: &Cx<'t>) -> Option<&'t NetNs> {
        cx.topology.netns(&self.ns)
    }

    /// A device of the namespace it is in.
    pub(crate) fn link<'t>(&self, cx: &Cx<'t>, index: IfIndex) -> Option<&'t Link> {
        self.netns(cx)?.link(index)
    }

    /// Name of a device, for texts.
    pub(crate) fn dev(&self, cx: &Cx<'_>, index: IfIndex) -> String {
        self.link(cx, index)
            .map_or_else(|| format!("if{index}"), |link| link.name.clone())
    }

    /// Enters another namespace: what the kernel keeps beside the packet is scrubbed.
    ///
    /// Source: `skb_scrub_packet(skb, true)`, net/core/skbuff.c.
    pub(crate) fn enter(&mut self, cx: &Cx<'_>, ns: NsKey, dev: IfIndex) {
        if ns != self.ns {
            self.skb.mark = Some(0);
            self.skb.ipvs = false;
        }
        self.skb.ct = CtRef::None;
        self.skb.uid = None;
        self.skb.gid = None;
        self.skb.kernel = false;
        self.skb.proxy = None;
        self.skb.local = false;
        self.skb.raw = false;
        self.skb.summed = None;
        self.skb.near = None;
        self.skb.slave = None;
        self.skb.owner = None;
        self.skb.attached = None;
        self.skb.through = None;
        self.physin = None;
        self.vid = None;
        self.prerouted = false;
        self.ns = ns;
        let iif = Some(self.dev(cx, dev));
        self.hops.push(Hop {
            ns: self.ns.clone(),
            iif,
            oif: None,
            packet: self.skb.packet.clone(),
            steps: Vec::new(),
            taps: Vec::new(),
        });
    }

    /// Goes on at a device of a namespace below, where that is another one. Nothing of it is scrubbed: it
    /// has not been received there (`macvlan_queue_xmit()`).
    pub(crate) fn below(&mut self, ns: &NsKey) {
        if *ns == self.ns {
            return;
        }
        self.ns = ns.clone();
        if matches!(self.skb.ct, CtRef::Entry { .. }) {
            self.skb.ct = CtRef::Above;
        }
        self.hops.push(Hop {
            ns: ns.clone(),
            iif: None,
            oif: None,
            packet: self.skb.packet.clone(),
            steps: Vec::new(),
            taps: Vec::new(),
        });
    }

    /// Notes where it is; `false` where it was here before, unchanged.
    pub(crate) fn is_new_here(&mut self, dev: IfIndex) -> bool {
        let packet = &self.skb.packet;
        let crumb = Crumb {
            ns: self.ns.clone(),
            dev,
            src: packet.src,
            dst: packet.dst,
            sport: packet.sport(),
            dport: packet.dport(),
            inside: packet
                .inner
                .as_ref()
                .map(|inner| (inner.packet.src, inner.packet.dst)),
            station: packet.eth.map(|(_, to)| to),
            tag: self.tags.last().copied(),
        };
        let new = !self.seen.contains(&crumb);
        self.seen.push(crumb);
        new
    }

    /// Sends it through a hook; `then` says what follows for packets that are accepted.
    pub(crate) fn hook(
        self,
        cx: &mut Cx<'_>,
        hook: Hook,
        bridge: bool,
        devices: Devices,
        then: impl Fn(&mut Cx<'_>, Walk) -> Ways,
    ) -> Ways {
        let ns = self.ns.clone();
        let at = HookPoint {
            ns: &ns,
            hook,
            bridge,
            devices,
            reroutes: !bridge,
        };
        let skb = Skb {
            tagged: self.tags.last().copied(),
            ..self.skb.clone()
        };
        let outcomes = run(cx, &at, skb, self.memory.flows.clone());
        let mut ways = Vec::new();
        for outcome in outcomes {
            let mut walk = Self {
                skb: outcome.skb,
                share: self.share * outcome.share,
                ..self.clone()
            };
            walk.memory.flows = outcome.flows;
            for step in outcome.steps {
                walk.step(step);
            }
            ways.extend(match outcome.verdict {
                HookVerdict::Accept => then(cx, walk),
                HookVerdict::Ipvs(sent) => ipvs::send(cx, walk, sent, devices),
                HookVerdict::Drop(reason) => walk.end(Disposition::Dropped(reason)),
                // Who sent the packet inside a tunnel's is not told.
                HookVerdict::Reject(_) if walk.skb.packet.inner.is_some() => {
                    walk.end(Disposition::Dropped(DropReason::NetfilterDrop))
                }
                HookVerdict::Reject(with) => walk.end(Disposition::Rejected(with)),
                HookVerdict::Unroutable => match walk.skb.rerouted.take() {
                    Some(key) => output::rerouted(cx, walk, &key, |_, walk, out| {
                        walk.then(Next::Postrouting(out))
                    }),
                    None => walk.unknown("what rules made of the packet leads nowhere"),
                },
                HookVerdict::Unknown(why) => walk.unknown(why),
            });
        }
        ways
    }
}

/// A walk that is over.
#[derive(Clone, Debug)]
pub(crate) struct Finished {
    /// The packet where it ended.
    pub(crate) walk: Walk,
    /// How.
    pub(crate) disposition: Disposition,
}

/// Follows every way to its end, in the order of the kernel's choices.
pub(crate) fn follow(cx: &mut Cx<'_>, start: Walk, next: Next) -> Vec<Finished> {
    let mut finished = Vec::new();
    let mut open = vec![(start, next)];
    // A packet that does not fork is followed whatever those before it did.
    let limit = cx.limits.branches.max(cx.ended + 2);
    while let Some((walk, next)) = open.pop() {
        if cx.ended + finished.len() + open.len() >= limit {
            // What is left is told as one way.
            let why = format!("the way forks more than {} times", cx.limits.branches);
            let rest: f64 = open.iter().map(|(walk, _)| walk.share).sum();
            let mut walk = walk;
            walk.share += rest;
            finished.push(Finished {
                walk,
                disposition: Disposition::Inconclusive(vec![why]),
            });
            break;
        }
        if let Next::End(disposition) = next {
            let disposition = walk.ended(disposition);
            finished.push(Finished { walk, disposition });
            continue;
        }
        if walk.hops.len() > cx.limits.hops {
            let why = format!("the way passes more than {} namespaces", cx.limits.hops);
            finished.push(Finished {
                walk,
                disposition: Disposition::Inconclusive(vec![why]),
            });
            continue;
        }
        let mut ways = stage(cx, walk, &next);
        ways.reverse();
        open.extend(ways);
    }
    cx.ended += finished.len().saturating_sub(1);
    finished
}

/// One stage.
pub(crate) fn stage(cx: &mut Cx<'_>, walk: Walk, next: &Next) -> Ways {
    match *next {
        Next::LocalOut(oif) => output::local_out(cx, walk, oif),
        Next::Postrouting(out) => output::postrouting(cx, walk, out),
        Next::Neigh(out) => neigh::resolve(cx, walk, &out),
        Next::Transmit(dev) => device::transmit(cx, walk, dev),
        Next::Receive(dev) => device::receive(cx, walk, dev),
        Next::Bridge(bridge, port, nf) => bridge::forward(cx, walk, bridge, port, nf),
        Next::Ip(dev, prerouted) => input::ip_receive(cx, walk, dev, prerouted),
        Next::Forward(iif, out) => forward::forward(cx, walk, iif, out),
        Next::LocalIn(dev) => socket::local_in(cx, walk, dev),
        Next::End(_) => Vec::new(),
    }
}
