//! An explanation in the shape of [`super::json_types`].

use netpath::explain::observe::Agreement;
use netpath::explain::{
    ExistingFlow, Explanation, Finding, HopView, Naming, Way, conntrack, words,
};
use netpath::model::capture::Answer;
use netpath::model::packet::Packet;
use netpath::trace::{Disposition, Tap};

use super::json_types::{
    BranchJson, DispositionJson, DroppedJson, EvidenceJson, ExistingJson, FindingJson, FlowJson,
    HopJson, LastSeenJson, LaterJson, ObservedJson, PacketJson, PlacedTapJson, ProbeJson,
    ReplyJson, SCHEMA, StepJson, TapJson, TraceJson,
};
use super::observed::{came, met, predicted, result};
use crate::run::fleet::Stats;
use crate::run::probe::Sent;

/// The answer as data; without the replies' hops where they were not wanted.
pub fn trace(answer: &Explanation, stats: Stats, replies: bool) -> TraceJson<'_> {
    TraceJson {
        schema: SCHEMA,
        flow: FlowJson {
            source: &answer.source,
            destination: &answer.destination,
            protocol: words::protocol(answer.protocol),
            port: answer.port,
            source_port: answer.source_port,
            size: answer.size,
        },
        verdict: answer.verdict.name(),
        predicted: predicted(answer.proof.as_ref()),
        branches: answer
            .branches
            .iter()
            .map(|branch| BranchJson {
                probability: (branch.probability * 10_000.0).round() / 10_000.0,
                verdict: branch.verdict.name(),
                disposition: disposition(&branch.way),
                hops: hops(&branch.way),
                reply: branch.way.reply.as_deref().map(|reply| ReplyJson {
                    disposition: disposition(reply),
                    hops: if replies { hops(reply) } else { Vec::new() },
                }),
                later: std::iter::successors(branch.way.reply.as_deref(), |way| {
                    way.reply.as_deref()
                })
                .skip(1)
                .map(|way| later(way, replies))
                .collect(),
            })
            .collect(),
        findings: answer.findings.iter().map(finding).collect(),
        unknown: &answer.unknown,
        assumed: &answer.assumed,
        notes: &answer.notes,
        existing: None,
        probes: None,
        mtu: None,
        stats,
    }
}

pub(super) fn finding(finding: &Finding) -> FindingJson<'_> {
    FindingJson {
        code: finding.code.code,
        severity: finding.severity.name(),
        title: &finding.title,
        place: &finding.place,
        evidence: &finding.evidence,
        mend: &finding.mend,
        branches: &finding.branches,
    }
}

/// An existing flow as data.
pub fn existing(flow: &ExistingFlow, stats: Stats, replies: bool) -> ExistingJson<'_> {
    ExistingJson {
        entry: conntrack::words(&flow.entry),
        count: flow.count,
        place: &flow.place,
        trace: trace(&flow.answer, stats, replies),
    }
}

/// A probe as data.
pub fn probe(sent: &Sent, naming: &Naming<'_>) -> ProbeJson {
    let observed = &sent.observed;
    let unknown = observed.agreement == Agreement::Seen;
    let text = |line: &String| naming.text(line);
    ProbeJson {
        result: result(observed.agreement),
        difference: observed.difference.as_ref().map(text),
        answer: came(sent),
        answered: sent.probed.answer == Answer::Answered,
        micros: sent.probed.micros,
        sent: observed.sent,
        branch: observed.branch,
        last_seen: observed.last.as_ref().map(|(ns, dev)| LastSeenJson {
            node: ns.node.clone(),
            netns: naming.netns(ns),
            device: dev.clone(),
        }),
        devices: observed
            .spots
            .iter()
            .map(|spot| ObservedJson {
                node: spot.ns.node.clone(),
                netns: naming.netns(&spot.ns),
                device: spot.dev.clone(),
                direction: if spot.out { "out" } else { "in" },
                turn: spot.turn,
                met: met(spot, unknown),
                after: spot.after.map(|nanos| nanos / 1_000),
                packet: packet(&spot.packet),
            })
            .collect(),
        dropped: sent
            .dropped
            .iter()
            .map(|loss| DroppedJson {
                node: loss.ns.node.clone(),
                netns: naming.netns(&loss.ns),
                device: loss.dev.clone(),
                turn: loss.turn,
                reason: loss.why.name.clone(),
                number: loss.why.reason,
                function: loss.why.function.clone(),
                count: loss.count,
            })
            .collect(),
        counted: sent.counted.iter().map(text).collect(),
        predicted_since: sent.since.clone(),
        unwatched: sent.unwatched.iter().map(text).collect(),
    }
}

fn later(way: &Way, replies: bool) -> LaterJson<'_> {
    let seen = way.hops.iter().filter(|_| replies).flat_map(|hop| {
        hop.taps.iter().map(|one| PlacedTapJson {
            node: &hop.node,
            netns: &hop.netns,
            tap: tap(one),
        })
    });
    LaterJson {
        disposition: disposition(way),
        hops: if replies && !way.arrives() {
            hops(way)
        } else {
            Vec::new()
        },
        taps: seen.collect(),
    }
}

fn disposition(way: &Way) -> DispositionJson<'_> {
    let reason = match &way.disposition {
        Disposition::Delivered | Disposition::LeavesCluster | Disposition::Loop => None,
        Disposition::Dropped(reason) => Some(reason.to_string()),
        Disposition::Rejected(how) => Some(how.to_string()),
        Disposition::Inconclusive(missing) => Some(missing.join("; ")),
    };
    DispositionJson {
        kind: way.disposition.name(),
        reason,
        node: way.end.as_ref().map(|place| place.node.as_str()),
        netns: way.end.as_ref().map(|place| place.netns.as_str()),
        step: &way.why,
    }
}

fn hops(way: &Way) -> Vec<HopJson<'_>> {
    way.hops.iter().map(hop).collect()
}

fn hop(hop: &HopView) -> HopJson<'_> {
    HopJson {
        node: &hop.node,
        netns: &hop.netns,
        netns_inode: hop.key.netns.ino,
        iif: hop.iif.as_deref(),
        oif: hop.oif.as_deref(),
        packet: packet(&hop.packet),
        steps: hop
            .steps
            .iter()
            .map(|step| StepJson {
                kind: step.kind.name(),
                result: &step.result,
                evidence: EvidenceJson {
                    text: &step.words,
                    lines: &step.objects,
                    objects: &step.evidence,
                },
                changes: &step.changes,
            })
            .collect(),
        taps: hop.taps.iter().map(tap).collect(),
    }
}

fn tap(from: &Tap) -> TapJson<'_> {
    TapJson {
        device: &from.dev,
        direction: if from.out { "out" } else { "in" },
        packet: packet(&from.packet),
    }
}

fn packet(from: &Packet) -> PacketJson {
    PacketJson {
        src: from.src.to_string(),
        dst: from.dst.to_string(),
        protocol: words::protocol(from.protocol()),
        sport: from.sport(),
        dport: from.dport(),
        ttl: from.ttl,
        length: from.len,
        src_mac: from.eth.map(|(src, _)| src.to_string()),
        dst_mac: from.eth.map(|(_, dst)| dst.to_string()),
        vni: from.inner.as_ref().and_then(|inner| inner.vni),
        inner: from
            .inner
            .as_ref()
            .map(|inner| Box::new(packet(&inner.packet))),
    }
}
