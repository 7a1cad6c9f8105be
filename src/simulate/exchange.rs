//! The packets of one exchange: the question, the answer, and one more of each side, which rules and
//! conntrack treat as those of a connection that stands.

use super::fib::{FibAnswer, FibKey, lookup};
use super::memory::Memory;
use super::skb::Skb;
use super::walk::{Finished, Goal, Next, Party, Walk, follow};
use super::{Cx, DEFAULT_TTL, Flow, source, ttl, vrf};
use crate::model::packet::{L4, Packet};
use crate::model::{IfIndex, NsKey};
use crate::trace::{Disposition, DropReason, Evidence, Hop, Step, StepKind, Trace};

/// Uid and gid of a sender, as far as they are known.
type Sender = (Option<u32>, Option<u32>);

/// A sender of whom neither is known.
pub(super) const NOBODY: Sender = (None, None);

/// Packets that are followed: question, answer, and one more of each side.
const PACKETS: usize = 4;
/// PSH and ACK: data of a TCP connection that stands.
const DATA: u8 = 0x18;

/// All ways of the exchange that `question` began, each as the trace of its first packet.
pub(super) fn of(cx: &mut Cx<'_>, flow: &Flow, question: Finished) -> Vec<Trace> {
    let mut done = Vec::new();
    go_on(cx, flow, vec![question], &mut done);
    done.into_iter().filter_map(nest).collect()
}

/// Follows the next packet of an exchange; forks of it are exchanges of their own.
fn go_on(cx: &mut Cx<'_>, flow: &Flow, packets: Vec<Finished>, done: &mut Vec<Vec<Finished>>) {
    let next = match packets.as_slice() {
        [.., last] if packets.len() < PACKETS && arrived(last) => next(cx, flow, &packets),
        _ => Vec::new(),
    };
    if next.is_empty() {
        done.push(packets);
        return;
    }
    for mut packet in next {
        let answer = packets.len() % 2 == 1;
        if answer && packet.disposition == Disposition::LeavesCluster {
            let text = format!(
                "the answer leaves for {}, not for who asked",
                packet.walk.skb.packet.dst
            );
            packet.walk.step(Step::new(StepKind::Socket, text));
            packet.disposition = Disposition::Dropped(DropReason::NotFromPeer);
        }
        let mut way = packets.clone();
        way.push(packet);
        go_on(cx, flow, way, done);
    }
}

fn arrived(end: &Finished) -> bool {
    matches!(
        end.disposition,
        Disposition::Delivered | Disposition::LeavesCluster
    )
}

/// One packet as a trace, without answers.
pub(super) fn alone(packet: Finished) -> Option<Trace> {
    nest(vec![packet])
}

/// The packets as traces, each with the one that follows it as its reply.
fn nest(packets: Vec<Finished>) -> Option<Trace> {
    let share = packets.last()?.walk.share;
    let mut reply = None;
    for end in packets.into_iter().rev() {
        let trace = Trace {
            probability: 1.0,
            disposition: end.disposition,
            hops: end.walk.hops,
            packet: end.walk.skb.packet,
            reply: reply.map(Box::new),
        };
        reply = Some(trace);
    }
    let mut first = reply?;
    first.probability = share;
    Some(first)
}

/// The packet that follows those that arrived.
fn next(cx: &mut Cx<'_>, flow: &Flow, packets: &[Finished]) -> Vec<Finished> {
    let (Some(first), Some(last)) = (packets.first(), packets.last()) else {
        return Vec::new();
    };
    match (packets.len(), &last.disposition) {
        (1 | 3, Disposition::LeavesCluster) => from_outside(cx, flow, packets),
        (1 | 3, _) => {
            let peer = Party {
                sent: packets.len() == 3,
                ..asker(flow, first)
            };
            let ns = first.walk.ns.clone();
            let mut packet = last.walk.skb.packet.reply(ttl(cx, &ns));
            if packets.len() == 3 {
                set_flags(&mut packet);
            }
            let taker = first.walk.taker;
            // Echoes are answered by the kernel (`icmp_reply()`).
            let kernel = matches!(packet.l4, L4::Icmp { .. });
            let sender = if kernel {
                (Some(0), Some(0))
            } else {
                (taker.map(|(uid, _)| uid), None)
            };
            let mut back = start(ns, packet, sender, last, Goal::Party(peer));
            back.skb.kernel = kernel;
            back.skb.near = last.walk.skb.near;
            back.any_source = taker.is_some_and(|(_, transparent)| transparent);
            let by = first.walk.answers_by;
            if let Some(why) = answers_from_elsewhere(cx, &back, by) {
                let evidence = Evidence::Assumed { why };
                back.step(Step::new(StepKind::Origin, "the answer's source").with(evidence));
            }
            follow(cx, back, Next::LocalOut(first.walk.answers_by))
        }
        _ => {
            // The asking side sends on what its socket sent before.
            let asked = first.walk.hops.first().map(|hop| hop.packet.clone());
            let mut packet = asked.unwrap_or_else(|| first.walk.skb.packet.clone());
            set_flags(&mut packet);
            let goal = match first.disposition {
                Disposition::LeavesCluster => Goal::Listener,
                _ => Goal::Party(answerer(first)),
            };
            let mut on = start(flow.from.clone(), packet, (flow.uid, flow.gid), last, goal);
            on.unsourced = flow.src.is_none() && flow.dst.is_ipv6();
            follow(cx, on, Next::LocalOut(flow.bound))
        }
    }
}

/// Whether a datagram socket on any address would answer from another one than was asked, unless its
/// program asks for the destination of each datagram (IP_PKTINFO).
fn answers_from_elsewhere(cx: &mut Cx<'_>, back: &Walk, by: Option<IfIndex>) -> Option<String> {
    let packet = &back.skb.packet;
    if !matches!(packet.l4, L4::Udp { .. }) {
        return None;
    }
    let sockets = back.netns(cx)?.sockets.known()?;
    let any = sockets.iter().any(|socket| {
        socket.protocol == packet.protocol()
            && Some(socket.port) == packet.sport()
            && socket.addr.is_unspecified()
    });
    if !any {
        return None;
    }
    let key = FibKey {
        oif: by,
        ..FibKey::to(packet.dst)
    };
    let FibAnswer::Found(found) = lookup(cx, &back.ns, &key) else {
        return None;
    };
    let vrf = by.and_then(|dev| vrf::index_of(back.netns(cx)?, dev));
    let chosen = source::for_route(cx, &back.ns, &found, packet.dst, vrf).ok()??;
    (chosen != packet.src).then(|| {
        format!(
            "the server answers from {}, the address that was asked: a program on any address that does not ask for it (IP_PKTINFO) would answer from {chosen}, and the client would not take that",
            packet.src
        )
    })
}

fn set_flags(packet: &mut Packet) {
    if let L4::Tcp { flags, .. } = &mut packet.l4 {
        *flags = DATA;
    }
}

/// The socket that asked, as the first packet shows it.
fn asker(flow: &Flow, first: &Finished) -> Party {
    let sent = first.walk.hops.first();
    let packet = sent.map_or(&first.walk.skb.packet, |hop| &hop.packet);
    Party {
        ns: flow.from.clone(),
        src: packet.src,
        sport: packet.sport(),
        dst: packet.dst,
        dport: packet.dport(),
        bound: flow.bound,
        sent: false,
        transparent: false,
    }
}

/// The socket that answered, as the first packet reached it.
fn answerer(first: &Finished) -> Party {
    let packet = &first.walk.skb.packet;
    Party {
        ns: first.walk.ns.clone(),
        src: packet.dst,
        sport: packet.dport(),
        dst: packet.src,
        dport: packet.sport(),
        bound: first.walk.answers_by,
        sent: true,
        transparent: first.walk.taker.is_some_and(|(_, transparent)| transparent),
    }
}

/// A packet that a socket sends.
pub(super) fn start(
    ns: NsKey,
    packet: Packet,
    sender: Sender,
    before: &Finished,
    goal: Goal,
) -> Walk {
    let text = match &goal {
        Goal::Listener => "the asking side sends on",
        Goal::Party(peer) if peer.sent => "the connection goes on",
        Goal::Party(_) => "the answer is sent",
    };
    let mut walk = first(ns, packet, sender);
    walk.memory = before.walk.memory.clone();
    walk.share = before.walk.share;
    walk.skb.free = before.walk.skb.free;
    walk.skb.sized = matches!(&goal, Goal::Party(party) if !party.sent);
    walk.skb.party = match &goal {
        Goal::Party(party) => Some((party.ns.clone(), party.transparent)),
        Goal::Listener => None,
    };
    walk.goal = goal;
    if let Some(hop) = walk.hops.first_mut() {
        hop.steps = vec![Step::new(StepKind::Origin, text)];
    }
    walk
}

/// The first packet of an exchange, as its socket sends it.
pub(super) fn first(ns: NsKey, packet: Packet, (uid, gid): Sender) -> Walk {
    let hop = Hop {
        ns: ns.clone(),
        iif: None,
        oif: None,
        packet: packet.clone(),
        steps: vec![Step::new(StepKind::Origin, "a socket sends")],
        taps: Vec::new(),
    };
    Walk {
        ns,
        skb: Skb {
            uid,
            gid,
            local: true,
            ..Skb::new(packet)
        },
        hops: vec![hop],
        share: 1.0,
        seen: Vec::new(),
        goal: Goal::Listener,
        physin: None,
        next_hop: None,
        memory: Memory::default(),
        taker: None,
        answers_by: None,
        any_source: false,
        unsourced: false,
        tags: Vec::new(),
        vid: None,
        prerouted: false,
        tunnel: None,
        told: false,
        inside: Vec::new(),
    }
}

/// The answer to a packet that left, should one come: back in by the device it left by.
fn from_outside(cx: &mut Cx<'_>, flow: &Flow, packets: &[Finished]) -> Vec<Finished> {
    let (Some(first), Some(end)) = (packets.first(), packets.last()) else {
        return Vec::new();
    };
    let left_by = end.walk.hops.last().and_then(|hop| hop.oif.as_deref());
    let netns = cx.topology.netns(&end.walk.ns);
    let Some(dev) = left_by
        .and_then(|name| netns?.link_named(name))
        .map(|link| link.index)
    else {
        return Vec::new();
    };
    let ns = end.walk.ns.clone();
    let mut packet = end.walk.skb.packet.reply(DEFAULT_TTL);
    if packets.len() == 3 {
        set_flags(&mut packet);
    }
    let goal = Goal::Party(asker(flow, first));
    let mut back = start(ns.clone(), packet, NOBODY, end, goal);
    back.hops.clear();
    back.enter(cx, ns, dev);
    back.step(Step::new(
        StepKind::Origin,
        "should an answer come, it comes in here",
    ));
    follow(cx, back, Next::Receive(dev))
}
