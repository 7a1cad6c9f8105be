//! What a probe met, beside what was predicted for it.
//!
//! The probe's packets are known by what no translation changes (TCP's sequence number, the payload) once one of
//! them was seen where it was sent; the answer's by being the reverse of a form that the probe had somewhere. Times
//! of different nodes are never compared.

use std::collections::BTreeMap;

use super::{Finding, Naming, Place, Severity, codes};
use crate::model::NsKey;
use crate::model::capture::{Answer, Mark, Probed};
use crate::model::packet::{L4, Packet};
use crate::trace::{Disposition, FieldChange, Tap, Trace};

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
    /// It was not seen there.
    NotSeen,
    /// It was seen there, and no packet was predicted.
    Elsewhere,
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
    /// Part of the answer's way.
    pub reply: bool,
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
    /// Everything that was predicted was seen, it ended as predicted, and nothing else was seen.
    Confirmed,
    /// The prediction said that it can't tell; what was seen fills that in.
    Seen,
    /// They differ.
    Differs,
}

/// The probe beside the prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// How they agree.
    pub agreement: Agreement,
    /// In words, where they do not: where it was last seen, what came back.
    pub difference: Option<String>,
    /// The probe was answered.
    pub answered: bool,
    /// Position of the trace, among all of the question, that the probe took (or that agrees best).
    pub branch: usize,
    /// Devices in order of the prediction, then those that it does not have.
    pub spots: Vec<Spot>,
}

/// Sets a probe beside the traces of its flow. `watched` tells whether a device's packets would have been seen.
pub fn compare(
    traces: &[Trace],
    probed: &Probed,
    sightings: &[Sighting],
    watched: &dyn Fn(&NsKey) -> bool,
) -> Option<Observed> {
    let (requests, replies) = recognise(traces, probed, sightings);
    let spots_of = |trace: &Trace| {
        let mut spots = along(trace, false, &requests, watched);
        if let Some(reply) = &trace.reply {
            spots.extend(along(reply, true, &replies, watched));
        }
        spots
    };
    let score = |spots: &[Spot]| {
        let good = spots
            .iter()
            .filter(|spot| spot.met == Met::Confirmed)
            .count();
        let bad = spots.len() - good;
        (good, usize::MAX - bad)
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
    let strays = |seen: &[&Sighting], reply: bool| -> Vec<Spot> {
        let mut strays: Vec<Spot> = Vec::new();
        for one in seen {
            let same = |spot: &Spot| {
                spot.reply == reply
                    && spot.ns == one.ns
                    && spot.dev == one.dev
                    && spot.out == one.out
            };
            if !spots.iter().chain(&strays).any(same) {
                strays.push(spot(one, reply, Met::Elsewhere));
            }
        }
        strays
    };
    let mut more = strays(&requests, false);
    more.extend(strays(&replies, true));
    spots.extend(more);
    times(&mut spots, &requests, &replies);
    let answered = probed.answer == Answer::Answered;
    let difference = difference(trace, probed, &spots);
    let unknown = matches!(trace.outcome(), Disposition::Inconclusive(_));
    let agreement = match (&difference, unknown) {
        (_, true) => Agreement::Seen,
        (None, false) => Agreement::Confirmed,
        (Some(_), false) => Agreement::Differs,
    };
    Some(Observed {
        agreement,
        difference,
        answered,
        branch,
        spots,
    })
}

/// The finding that follows where a probe and the prediction differ.
pub fn finding(observed: &Observed, naming: &Naming<'_>) -> Option<Finding> {
    let why = observed.difference.as_deref()?;
    if observed.agreement != Agreement::Differs {
        return None;
    }
    let spots = observed.spots.iter();
    let first = spots
        .filter(|spot| spot.met != Met::Confirmed)
        .min_by_key(|spot| spot.reply);
    let spot = first.or_else(|| observed.spots.last())?;
    Some(Finding {
        code: codes::OBSERVED_OTHERWISE,
        title: codes::OBSERVED_OTHERWISE.title.to_owned(),
        severity: Severity::Error,
        place: Place {
            node: spot.ns.node.clone(),
            netns: naming.netns(&spot.ns),
            object: Some(spot.dev.clone()),
        },
        evidence: vec![naming.text(why)],
        mend: "what was seen counts: look at what stands between the last device that is confirmed and this one; where nothing explains it, report it with --save-disagreement FILE".to_owned(),
        branches: vec![observed.branch],
    })
}

/// The packet out of its tunnel.
fn innermost(packet: &Packet) -> &Packet {
    match &packet.inner {
        Some(inner) => innermost(&inner.packet),
        None => packet,
    }
}

/// The probe's packets among all that was seen, and its answer's.
fn recognise<'a>(
    traces: &[Trace],
    probed: &Probed,
    sightings: &'a [Sighting],
) -> (Vec<&'a Sighting>, Vec<&'a Sighting>) {
    let Some((src, port)) = probed.from else {
        return (Vec::new(), Vec::new());
    };
    let first = traces.first().and_then(|trace| trace.hops.first());
    let of_probe = |seen: &&Sighting| {
        let packet = innermost(&seen.packet);
        let own = match packet.l4 {
            L4::Icmp { kind, id, .. } => matches!(kind, 8 | 128) && id == Some(port),
            _ => packet.sport() == Some(port),
        };
        own && packet.src == src && first.is_some_and(|hop| hop.ns == seen.ns)
    };
    let Some(origin) = sightings.iter().find(of_probe) else {
        return (Vec::new(), Vec::new());
    };
    let is_request = |seen: &&Sighting| {
        let (packet, own) = (innermost(&seen.packet), innermost(&origin.packet));
        let same_kind = match (packet.l4, own.l4) {
            // The SYN, again where it was repeated; not what follows it.
            (L4::Tcp { flags, .. }, L4::Tcp { .. }) => flags == 2,
            (L4::Icmp { kind, .. }, L4::Icmp { kind: own, .. }) => kind == own,
            (one, other) => std::mem::discriminant(&one) == std::mem::discriminant(&other),
        };
        // Programs may answer UDP with what they were sent: not the other way round.
        let back = packet.src == own.dst && packet.sport() == own.dport();
        same_kind && !back && seen.mark == origin.mark
    };
    let requests: Vec<&Sighting> = sightings.iter().filter(is_request).collect();
    let is_reply = |seen: &&Sighting| {
        let packet = innermost(&seen.packet);
        let reversed = |request: &&Sighting| {
            let request = innermost(&request.packet);
            let ports = match (request.l4, packet.l4) {
                (L4::Icmp { id, .. }, L4::Icmp { kind, id: own, .. }) => {
                    matches!(kind, 0 | 129) && id == own
                }
                (L4::Tcp { .. }, L4::Tcp { flags, .. }) => {
                    // What answers the SYN, not what comes later.
                    (flags & 0x12 == 0x12 || flags & 4 != 0)
                        && packet.sport() == request.dport()
                        && packet.dport() == request.sport()
                }
                _ => {
                    packet.protocol() == request.protocol()
                        && packet.sport() == request.dport()
                        && packet.dport() == request.sport()
                }
            };
            ports && packet.src == request.dst && packet.dst == request.src
        };
        requests.iter().any(reversed)
    };
    let replies = sightings.iter().filter(is_reply).collect();
    (requests, replies)
}

/// A turn's predicted devices with what was seen there.
fn along(
    trace: &Trace,
    reply: bool,
    seen: &[&Sighting],
    watched: &dyn Fn(&NsKey) -> bool,
) -> Vec<Spot> {
    let hops = trace.hops.iter().filter(|hop| watched(&hop.ns));
    let taps = hops.flat_map(|hop| hop.taps.iter().map(move |tap| (&hop.ns, tap)));
    // Requests of neighbours are not the probe.
    let taps = taps.filter(|(_, tap)| !matches!(tap.packet.l4, L4::Arp { .. }));
    let taps = taps.filter(|(_, tap)| {
        innermost(&tap.packet).protocol() == innermost(&trace.packet).protocol()
    });
    taps.map(|(ns, tap)| {
        let here = seen
            .iter()
            .filter(|one| one.ns == *ns && one.dev == tap.dev && one.out == tap.out);
        let mut here: Vec<&&Sighting> = here.collect();
        here.sort_by_key(|one| one.time);
        let as_predicted = here.iter().find(|one| differs(tap, &one.packet).is_empty());
        match (as_predicted, here.first()) {
            (Some(one), _) => spot(one, reply, Met::Confirmed),
            (None, Some(one)) => spot(one, reply, Met::Changed(differs(tap, &one.packet))),
            (None, None) => Spot {
                ns: ns.clone(),
                dev: tap.dev.clone(),
                out: tap.out,
                reply,
                packet: tap.packet.clone(),
                met: Met::NotSeen,
                after: None,
            },
        }
    })
    .collect()
}

fn spot(seen: &Sighting, reply: bool, met: Met) -> Spot {
    Spot {
        ns: seen.ns.clone(),
        dev: seen.dev.clone(),
        out: seen.out,
        reply,
        packet: seen.packet.clone(),
        met,
        after: Some(seen.time),
    }
}

/// Ends and hop counts that are not as predicted. What was not known before can't differ.
fn differs(tap: &Tap, seen: &Packet) -> Vec<FieldChange> {
    let (predicted, seen) = (innermost(&tap.packet), innermost(seen));
    let port = |predicted: Option<u16>, seen: Option<u16>, field: &str| match (predicted, seen) {
        (Some(predicted), Some(seen)) => FieldChange::new(field, &predicted, &seen),
        _ => None,
    };
    [
        FieldChange::new("src", &predicted.src, &seen.src),
        FieldChange::new("dst", &predicted.dst, &seen.dst),
        port(predicted.sport(), seen.sport(), "sport"),
        port(predicted.dport(), seen.dport(), "dport"),
        FieldChange::new("ttl", &predicted.ttl, &seen.ttl),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Times from each node's first sight of the probe on.
fn times(spots: &mut [Spot], requests: &[&Sighting], replies: &[&Sighting]) {
    let mut first: BTreeMap<&str, i64> = BTreeMap::new();
    for one in requests.iter().chain(replies) {
        let earliest = first.entry(&one.ns.node).or_insert(one.time);
        *earliest = one.time.min(*earliest);
    }
    for spot in spots {
        let begin = first
            .get(spot.ns.node.as_str())
            .copied()
            .unwrap_or_default();
        spot.after = spot.after.map(|time| time.saturating_sub(begin));
    }
}

/// What differs, in words.
fn difference(trace: &Trace, probed: &Probed, spots: &[Spot]) -> Option<String> {
    let place = |spot: &Spot| format!("{} in {}", spot.dev, spot.ns);
    let turn = |reply: bool| if reply { "the answer" } else { "the probe" };
    if let Some(missed) = spots.iter().find(|spot| spot.met == Met::NotSeen) {
        let before = spots.iter().take_while(|spot| spot.met != Met::NotSeen);
        let last = before.filter(|spot| spot.reply == missed.reply).last();
        let last = match last {
            Some(last) => format!("was last seen at {}", place(last)),
            None => "was seen nowhere".to_owned(),
        };
        let turn = turn(missed.reply);
        return Some(format!(
            "{turn} {last} and did not come to {}",
            place(missed)
        ));
    }
    let changed = spots.iter().find_map(|spot| match &spot.met {
        Met::Changed(fields) => Some((spot, fields)),
        _ => None,
    });
    if let Some((spot, fields)) = changed {
        let fields = fields.iter();
        let fields: Vec<String> = fields
            .map(|field| format!("{} {} in place of {}", field.field, field.to, field.from))
            .collect();
        let turn = turn(spot.reply);
        return Some(format!(
            "{turn} had {} at {}",
            fields.join(", "),
            place(spot)
        ));
    }
    let came = match &probed.answer {
        Answer::Answered => "it was answered",
        Answer::Refused => "it was refused",
        Answer::Failed(_) => "it failed",
        Answer::Silent => "no answer came",
    };
    let fits = match (trace.outcome(), &probed.answer) {
        (Disposition::Delivered | Disposition::LeavesCluster, Answer::Answered)
        | (Disposition::Rejected(_), Answer::Refused | Answer::Failed(_))
        | (Disposition::Dropped(_) | Disposition::Loop, Answer::Silent | Answer::Failed(_)) => true,
        // Whether a program answers a datagram, or who is outside, no kernel here tells.
        (Disposition::Delivered, Answer::Silent) => {
            innermost(&trace.packet).protocol() == crate::model::packet::UDP
        }
        (Disposition::LeavesCluster, _) | (Disposition::Inconclusive(_), _) => true,
        // Whoever was refused an answer hears nothing.
        (Disposition::Rejected(_), Answer::Silent) => {
            !matches!(trace.disposition, Disposition::Rejected(_))
        }
        _ => false,
    };
    if !fits {
        return Some(format!(
            "{came}, where it was predicted to be {}",
            trace.outcome().name()
        ));
    }
    // Beyond where it was to end.
    let ends = !matches!(
        trace.outcome(),
        Disposition::Delivered | Disposition::LeavesCluster
    );
    let beyond = spots
        .iter()
        .find(|spot| ends && spot.met == Met::Elsewhere && !spot.reply);
    beyond.map(|spot| {
        format!(
            "the probe was seen at {}, where none was predicted",
            place(spot)
        )
    })
}

#[cfg(test)]
mod tests;
