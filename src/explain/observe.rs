//! What a probe met, beside what was predicted for it.
//!
//! Packets are compared turn by turn: the probe, its answer and, of TCP, what each side sends once connected. Of a
//! device the predicted packet is looked for among all that were seen there ([`recognise`]); times of different nodes
//! are never compared.

pub mod counted;
pub mod dropped;
pub mod outside;
pub mod program;
mod recognise;
mod verdict;

use std::collections::BTreeMap;

use crate::model::NsKey;
use crate::model::capture::{Answer, LOOPBACK, Mark, Probed};
use crate::model::packet::{L4, Packet, TCP, Wrap};
use crate::trace::{Disposition, FieldChange, RejectWith, Trace};

pub use verdict::{Proof, finding};

/// A packet that was seen somewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    /// Namespace.
    pub ns: NsKey,
    /// Device.
    pub dev: String,
    /// Sent by the device; received where false.
    pub out: bool,
    /// Nanoseconds since 1970 by that node's clock.
    pub time: i64,
    /// Headers.
    pub packet: Packet,
    /// What no translation changes.
    pub mark: Option<Mark>,
}

/// What became of the prediction at one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Met {
    /// The packet was seen there as predicted.
    Confirmed,
    /// It was seen there, with other headers than predicted.
    Changed(Vec<FieldChange>),
    /// It was not seen there, but behind it in the same namespace: a shorter way, as that of bridges around the
    /// stack for neighbours that were confirmed a moment ago.
    Bypassed,
    /// It was not seen there.
    NotSeen,
    /// It was seen there, and no packet was predicted.
    Elsewhere,
    /// The reset that tells of a predicted refusal was seen there; its way is not predicted.
    Told,
}

/// One device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Namespace.
    pub ns: NsKey,
    /// Device.
    pub dev: String,
    /// Sent by the device; received where false.
    pub out: bool,
    /// Which packet of the exchange: 0 the probe, 1 its answer, 2 and 3 what follows once connected.
    pub turn: usize,
    /// The packet as it was seen, as predicted where it was not.
    pub packet: Packet,
    /// Beside the prediction.
    pub met: Met,
    /// Nanoseconds since the probe was first seen on that node.
    pub after: Option<i64>,
}

/// How a probe and the prediction agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agreement {
    /// Everything that was predicted was seen, and it ended as predicted.
    Confirmed,
    /// It ended as predicted; of its way nothing was watched, or too much was lost.
    Unwatched,
    /// The prediction said that it can't tell; what was seen fills that in.
    Seen,
    /// They differ.
    Differs,
}

/// How the exchange ended, as far as it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was answered.
    Works,
    /// The connection stands; what becomes of its next packets can't be predicted, and the probe sends no data.
    Connected,
    /// It was refused.
    Refused,
    /// It, or its answer, was lost.
    Lost,
    /// It went all its way here and nobody answered: a program that need not, or somebody outside.
    Unanswered,
}

impl Agreement {
    /// Whether nothing speaks against the prediction, so that it stands.
    pub fn stands(self) -> bool {
        matches!(self, Self::Confirmed | Self::Unwatched)
    }
}

/// The probe beside the prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// How they agree.
    pub agreement: Agreement,
    /// In words, where they do not: where it was last seen, what came back.
    pub difference: Option<String>,
    /// How it ended.
    pub end: End,
    /// Position of the trace, among all of the question, that the probe took (or that agrees best).
    pub branch: usize,
    /// Devices in order of the prediction, then those that it does not have.
    pub spots: Vec<Spot>,
    /// Where it was last seen before it, or its answer, was lost.
    pub last: Option<(NsKey, String)>,
    /// How often its first packet was sent: more than once where TCP had to repeat it.
    pub sent: usize,
    /// The packet of a tunnel that nobody sees into, by which the one that is missed was to leave the last node.
    pub sealed: Option<Packet>,
}

impl Observed {
    /// The first device that it was to come to and did not.
    pub fn missed(&self) -> Option<&Spot> {
        self.spots.iter().find(|spot| spot.met == Met::NotSeen)
    }
}

/// What was watched, and what was seen there.
pub struct Sights<'a> {
    /// Packets.
    pub seen: &'a [Sighting],
    /// Whether all of a namespace's packets would have been seen.
    pub whole: &'a dyn Fn(&NsKey) -> bool,
}

/// Sets a probe beside the traces of its flow. `None`: there are none.
pub fn compare(traces: &[Trace], probed: &Probed, sights: &Sights<'_>) -> Option<Observed> {
    let turns = recognise::turns(traces, probed, sights.seen);
    let spots_of = |trace: &Trace| {
        let mut spots = Vec::new();
        // How far those came who answer from outside, no kernel here knows.
        let outside = trace.disposition == Disposition::LeavesCluster;
        for (turn, (trace, seen)) in followed(trace, probed).zip(&turns).enumerate() {
            let far = outside && turn % 2 == 1;
            spots.extend(along(trace, turn, seen, sights, far));
        }
        spots
    };
    let score = |spots: &[Spot]| {
        let good = spots.iter().filter(|spot| spot.met == Met::Confirmed);
        let good = good.count();
        (good, usize::MAX - (spots.len() - good))
    };
    let ways = traces.iter().map(spots_of).enumerate();
    // Of equals the first: the kernel's order of choices.
    let (branch, mut spots) = ways.reduce(|best, next| {
        if score(&next.1) > score(&best.1) {
            next
        } else {
            best
        }
    })?;
    let trace = traces.get(branch)?;
    if verdict::need_not_answer(trace, probed) && !spots.iter().any(was_seen(1)) {
        spots.retain(|spot| spot.turn == 0);
    }
    let mut strays: Vec<Spot> = Vec::new();
    for (turn, seen) in turns.iter().enumerate().take(2) {
        for one in seen {
            let same = |spot: &Spot| {
                spot.turn == turn && spot.ns == one.ns && spot.dev == one.dev && spot.out == one.out
            };
            if !spots.iter().chain(&strays).any(same) {
                let resets = matches!(
                    trace.disposition,
                    Disposition::Rejected(RejectWith::TcpReset | RejectWith::PortClosed)
                );
                let told = turn == 1 && resets && recognise::is_reset(innermost(&one.packet));
                let met = if told { Met::Told } else { Met::Elsewhere };
                strays.push(spot(one, turn, met));
            }
        }
    }
    strays.sort_by_key(|spot| (spot.turn, spot.after));
    spots.extend(strays);
    times(&mut spots, &turns);
    let mut observed = verdict::of(trace, probed, branch, spots, (sights, &turns));
    if let (Some(first), [probe, ..]) = (observed.spots.first(), &turns) {
        let there =
            |one: &&&Sighting| one.ns == first.ns && one.dev == first.dev && one.out == first.out;
        observed.sent = probe.iter().filter(there).count();
    }
    observed.sealed = sealed_before(trace, probed, &observed);
    Some(observed)
}

fn was_seen(turn: usize) -> impl Fn(&Spot) -> bool {
    move |spot| spot.turn == turn && !matches!(spot.met, Met::NotSeen | Met::Bypassed)
}

/// The packets of an exchange that a probe sends, and their answers.
fn followed<'a>(trace: &'a Trace, probed: &Probed) -> impl Iterator<Item = &'a Trace> + use<'a> {
    let connected = trace.packet_protocol() == TCP && probed.answer == Answer::Answered;
    let turns = std::iter::successors(Some(trace), |trace| trace.reply.as_deref());
    turns.take(if connected { 4 } else { 2 })
}

/// The packet out of its tunnel. What an ICMP error quotes is no packet.
pub fn innermost(packet: &Packet) -> &Packet {
    match (&packet.inner, packet.l4) {
        (Some(inner), L4::Udp { .. } | L4::Other(_)) => innermost(&inner.packet),
        _ => packet,
    }
}

/// Whether nobody can see what the packet holds, so that it is not recognised.
fn sealed(packet: &Packet) -> bool {
    packet
        .inner
        .as_deref()
        .is_some_and(|inner| matches!(inner.wrap, Wrap::Wireguard { .. }) || sealed(&inner.packet))
}

/// The packet of a tunnel that nobody sees into, where that was the last to leave a node before the device where the probe
/// is missed, or its answer.
fn sealed_before(trace: &Trace, probed: &Probed, observed: &Observed) -> Option<Packet> {
    let missed = observed.missed()?;
    let turn = followed(trace, probed).nth(missed.turn)?;
    let before = turn.taps().take_while(|(ns, tap)| {
        !(**ns == missed.ns && tap.dev == missed.dev && tap.out == missed.out)
    });
    let (_, tap) = before
        .filter(|(ns, tap)| ns.node != missed.ns.node && tap.out)
        .last()?;
    sealed(&tap.packet).then(|| tap.packet.clone())
}

/// A turn's predicted devices with what was seen there. `far`: from a distance that is not known, so that only where it
/// is seen first tells its TTL.
fn along(
    trace: &Trace,
    turn: usize,
    seen: &[&Sighting],
    sights: &Sights<'_>,
    far: bool,
) -> Vec<Spot> {
    // Questions for neighbours and messages about the packet are not the packet.
    let taps = trace.taps().filter(|(_, tap)| {
        innermost(&tap.packet).protocol() == trace.packet_protocol()
            && !matches!(innermost(&tap.packet).l4, L4::Arp { .. })
            && !sealed(&tap.packet)
    });
    let taps = taps.filter(|(_, tap)| !tap.out || tap.dev != LOOPBACK);
    let mut distance = None;
    let spots = taps.filter_map(|(ns, tap)| {
        let here = seen
            .iter()
            .filter(|one| one.ns == *ns && one.dev == tap.dev && one.out == tap.out);
        let mut here: Vec<&&Sighting> = here.collect();
        here.sort_by_key(|one| one.time);
        let ttl = |packet: &Packet| i16::from(innermost(packet).ttl);
        let off = |one: &Sighting| ttl(&one.packet) - ttl(&tap.packet);
        if let Some(first) = here.first().filter(|_| far) {
            distance.get_or_insert(off(first));
        }
        let changes = |one: &Sighting| {
            let mut changes = differs(&tap.packet, &one.packet);
            changes.retain(|change| change.field != "ttl" || distance != Some(off(one)));
            changes
        };
        let as_predicted = here.iter().find(|one| changes(one).is_empty());
        match (as_predicted, here.first()) {
            (Some(one), _) => Some(spot(one, turn, Met::Confirmed)),
            (None, Some(one)) => Some(spot(one, turn, Met::Changed(changes(one)))),
            // Where packets went unseen, that it was not seen says nothing.
            (None, None) if !(sights.whole)(ns) => None,
            (None, None) => Some(Spot {
                ns: ns.clone(),
                dev: tap.dev.clone(),
                out: tap.out,
                turn,
                packet: tap.packet.clone(),
                met: Met::NotSeen,
                after: None,
            }),
        }
    });
    let mut spots: Vec<Spot> = spots.collect();
    bypass(&mut spots);
    spots
}

/// Marks devices that were gone around.
fn bypass(spots: &mut [Spot]) {
    let seen: Vec<(usize, NsKey)> = spots
        .iter()
        .enumerate()
        .filter(|(_, spot)| spot.met == Met::Confirmed)
        .map(|(at, spot)| (at, spot.ns.clone()))
        .collect();
    for (at, spot) in spots.iter_mut().enumerate() {
        let here = || seen.iter().filter(|(_, ns)| *ns == spot.ns);
        let around = here().any(|(own, _)| *own < at) && here().any(|(own, _)| *own > at);
        if spot.met == Met::NotSeen && around {
            spot.met = Met::Bypassed;
        }
    }
}

fn spot(seen: &Sighting, turn: usize, met: Met) -> Spot {
    Spot {
        ns: seen.ns.clone(),
        dev: seen.dev.clone(),
        out: seen.out,
        turn,
        packet: seen.packet.clone(),
        met,
        after: Some(seen.time),
    }
}

/// Headers that are not as predicted, of tunnels and of what is in them. What was not known before can't differ.
fn differs(predicted: &Packet, seen: &Packet) -> Vec<FieldChange> {
    let mut changes = Vec::new();
    // Decoders do not look into all tunnels: then only what both have is compared.
    if let (Some(predicted_inner), Some(seen_inner)) = (&predicted.inner, &seen.inner) {
        changes.extend(FieldChange::new("outer src", &predicted.src, &seen.src));
        changes.extend(FieldChange::new("outer dst", &predicted.dst, &seen.dst));
        if let (Some(predicted), Some(seen)) = (predicted_inner.vni, seen_inner.vni) {
            changes.extend(FieldChange::new("vni", &predicted, &seen));
        }
    }
    let (predicted, seen) = (innermost(predicted), innermost(seen));
    let known = |field: &str, predicted: Option<u16>, seen: Option<u16>| match (predicted, seen) {
        (Some(predicted), Some(seen)) => FieldChange::new(field, &predicted, &seen),
        _ => None,
    };
    changes.extend(FieldChange::new("src", &predicted.src, &seen.src));
    changes.extend(FieldChange::new("dst", &predicted.dst, &seen.dst));
    changes.extend(known("sport", predicted.sport(), seen.sport()));
    changes.extend(known("dport", predicted.dport(), seen.dport()));
    changes.extend(FieldChange::new("ttl", &predicted.ttl, &seen.ttl));
    changes
}

/// Times from each node's first sight of the probe on.
fn times(spots: &mut [Spot], turns: &[Vec<&Sighting>]) {
    let mut first: BTreeMap<&str, i64> = BTreeMap::new();
    for one in turns.iter().flatten() {
        let earliest = first.entry(&one.ns.node).or_insert(one.time);
        *earliest = one.time.min(*earliest);
    }
    for spot in spots {
        let begin = first.get(spot.ns.node.as_str()).copied();
        let begin = begin.unwrap_or_default();
        spot.after = spot.after.map(|time| time.saturating_sub(begin));
    }
}

impl Trace {
    /// IPPROTO_* of its packet, out of tunnels.
    fn packet_protocol(&self) -> u8 {
        let first = self.hops.first().map(|hop| &hop.packet);
        innermost(first.unwrap_or(&self.packet)).protocol()
    }

    /// Whether it goes all its way, as far as that is here.
    pub fn arrives(&self) -> bool {
        matches!(
            self.disposition,
            Disposition::Delivered | Disposition::LeavesCluster
        )
    }
}

#[cfg(test)]
mod tests;
