//! What follows from a probe and its prediction: whether they agree, and what is said where they do not.

use std::collections::BTreeSet;

use super::{Agreement, End, Met, Observed, Sighting, Sights, Spot, followed, was_seen};
use crate::explain::{
    Explanation, Finding, Naming, Place, Severity, Verdict, codes, together, words,
};
use crate::model::capture::{Answer, Probed};
use crate::model::packet::{TCP, UDP};
use crate::trace::{Disposition, Trace};

/// What a question's probes say of its prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The least that one of them says.
    pub agreement: Agreement,
    /// Probes that were sent.
    pub count: usize,
    /// Of these, those with an agreement as the least, and, where that is none, with such an end.
    pub least: usize,
    /// Branches that those took, and all that there are.
    pub ways: (usize, usize),
    /// What was predicted.
    pub predicted: Verdict,
    /// How the least ended, and what differs.
    pub end: End,
    /// In words.
    pub difference: Option<String>,
}

/// Whether silence is no sign: whether a program answers a datagram, and who is outside, no kernel here tells.
pub(super) fn need_not_answer(trace: &Trace, probed: &Probed) -> bool {
    probed.answer == Answer::Silent
        && match trace.disposition {
            Disposition::Delivered => trace.packet_protocol() == UDP,
            Disposition::LeavesCluster => true,
            _ => false,
        }
}

/// The first packet of those that are sent which does not arrive; the last one where all do.
pub(super) fn predicted<'a>(trace: &'a Trace, probed: &Probed) -> (usize, &'a Trace) {
    let mut end = (0, trace);
    for (turn, trace) in followed(trace, probed).enumerate() {
        end = (turn, trace);
        if !trace.arrives() {
            break;
        }
    }
    end
}

/// The whole answer.
pub(super) fn of(
    trace: &Trace,
    probed: &Probed,
    branch: usize,
    spots: Vec<Spot>,
    (sights, turns): (&Sights<'_>, &[Vec<&Sighting>]),
) -> Observed {
    let (turn, ended) = predicted(trace, probed);
    let disposition = &ended.disposition;
    let unknown = matches!(disposition, Disposition::Inconclusive(_));
    let mut difference = on_the_way(&spots);
    if difference.is_none() && !unknown {
        difference = at_the_end(trace, probed, (turn, disposition), &spots);
    }
    // Of a connection that went another way, the rest was not predicted.
    let seen = turns.get(turn).map(Vec::as_slice);
    let goes_on = difference.is_none() && goes_on(seen, turn, ended);
    let agreement = match (&difference, unknown) {
        (Some(_), _) => Agreement::Differs,
        (None, true) => Agreement::Seen,
        (None, false) if goes_on => Agreement::Unwatched,
        // An answer vouches for both ends, silence only where nothing goes unseen.
        (None, false)
            if spots.iter().any(|spot| spot.met == Met::Confirmed)
                && (probed.answer == Answer::Answered || end_watched(ended, sights)) =>
        {
            Agreement::Confirmed
        }
        // What its own kernel refuses is seen at no device.
        (None, false) if !trace.hops.iter().any(|hop| !hop.taps.is_empty()) => Agreement::Confirmed,
        (None, false) => Agreement::Unwatched,
    };
    let missed = |from: usize| {
        spots
            .iter()
            .any(|spot| spot.turn >= from && spot.met == Met::NotSeen)
    };
    let wrong_before = |turn: usize| {
        let wrong = |spot: &Spot| matches!(spot.met, Met::NotSeen | Met::Changed(_));
        spots.iter().any(|spot| spot.turn < turn && wrong(spot))
    };
    let end = match &probed.answer {
        // Of a connection that went another way from the beginning, the rest was not predicted.
        Answer::Answered if missed(2) && !wrong_before(2) => End::Lost,
        Answer::Answered if goes_on || unknown && turn >= 2 && trace.packet_protocol() == TCP => {
            End::Connected
        }
        Answer::Answered => End::Works,
        Answer::Refused | Answer::Failed(_) | Answer::Taken => End::Refused,
        Answer::Silent
            if need_not_answer(trace, probed) && !missed(0) && !spots.iter().any(was_seen(1)) =>
        {
            End::Unanswered
        }
        Answer::Silent => End::Lost,
    };
    let last = (end == End::Lost).then(|| last(&spots)).flatten();
    Observed {
        agreement,
        difference,
        end,
        branch,
        spots,
        last,
        sent: 0,
        sealed: None,
    }
}

/// Whether a connection's packets without data come further than one with data, which no probe sends, is predicted to.
fn goes_on(seen: Option<&[&Sighting]>, turn: usize, ended: &Trace) -> bool {
    let predicted = |one: &Sighting| {
        ended
            .taps()
            .any(|(ns, tap)| one.ns == *ns && one.dev == tap.dev && one.out == tap.out)
    };
    turn >= 2 && !ended.arrives() && seen.unwrap_or_default().iter().any(|one| !predicted(one))
}

/// Whether all packets were seen in the namespace where one is predicted to end.
fn end_watched(ended: &Trace, sights: &Sights<'_>) -> bool {
    let end = ended.hops.last();
    end.is_some_and(|hop| (sights.whole)(&hop.ns))
}

/// Where what was lost was last seen: behind all that was predicted, where it went on.
fn last(spots: &[Spot]) -> Option<(crate::model::NsKey, String)> {
    let turn = usize::from(spots.iter().any(was_seen(1)));
    let seen = || spots.iter().filter(|spot| was_seen(turn)(spot));
    let along = seen().take_while(|spot| spot.met != Met::Elsewhere).last();
    // Times of one node only.
    let mut beyond = seen().filter(|spot| {
        spot.met == Met::Elsewhere
            && along.is_none_or(|along| along.ns.node != spot.ns.node || along.after < spot.after)
    });
    let last = beyond.next_back().or(along)?;
    Some((last.ns.clone(), last.dev.clone()))
}

fn place(spot: &Spot) -> String {
    format!("{} in {}", spot.dev, spot.ns)
}

fn name(turn: usize) -> &'static str {
    match turn {
        0 => "the probe",
        1 => "the answer",
        2 => "the client's next packet",
        _ => "the server's next packet",
    }
}

/// The first device where it is not as predicted, in words.
fn on_the_way(spots: &[Spot]) -> Option<String> {
    let wrong = spots
        .iter()
        .find(|spot| matches!(spot.met, Met::NotSeen | Met::Changed(_)))?;
    let turn = name(wrong.turn);
    if let Met::Changed(fields) = &wrong.met {
        let fields = fields.iter();
        let fields: Vec<String> = fields
            .map(|field| format!("{} {} in place of {}", field.field, field.to, field.from))
            .collect();
        return Some(format!(
            "{turn} had {} at {}",
            fields.join(", "),
            place(wrong)
        ));
    }
    let of_turn = |spot: &&Spot| spot.turn == wrong.turn;
    let before = spots.iter().filter(of_turn);
    let last = before.take_while(|spot| spot.met != Met::NotSeen).last();
    let behind = spots.iter().filter(of_turn);
    let mut behind = behind.skip_while(|spot| spot.met != Met::NotSeen);
    let behind =
        behind.find(|spot| matches!(spot.met, Met::Confirmed | Met::Bypassed | Met::Changed(_)));
    let stray = spots
        .iter()
        .filter(of_turn)
        .find(|spot| spot.met == Met::Elsewhere);
    let missed = place(wrong);
    let elsewhere = stray.map_or_else(String::new, |spot| {
        format!("; it was seen at {}", place(spot))
    });
    Some(match (last, behind) {
        (_, Some(other)) => format!("{turn} was not seen at {missed}, but at {}", place(other)),
        (None, None) if wrong.turn == 1 && spots.iter().any(was_seen(0)) => {
            format!("the probe came to its end, and no answer was seen at {missed}{elsewhere}")
        }
        (None, None) => {
            format!("{turn} was seen nowhere, not at {missed} either{elsewhere}")
        }
        (Some(last), None) => format!(
            "{turn} was last seen at {} and did not come to {missed}{elsewhere}",
            place(last)
        ),
    })
}

/// What came of it, where that is not as predicted; all devices are.
fn at_the_end(
    trace: &Trace,
    probed: &Probed,
    (turn, disposition): (usize, &Disposition),
    spots: &[Spot],
) -> Option<String> {
    let came = match &probed.answer {
        Answer::Answered => "it was answered",
        Answer::Refused | Answer::Taken => "it was refused",
        Answer::Failed(_) => "it failed",
        Answer::Silent => "no answer came",
    };
    let refused = matches!(probed.answer, Answer::Refused | Answer::Failed(_));
    let answered = probed.answer == Answer::Answered;
    let fits = match (turn, disposition) {
        _ if need_not_answer(trace, probed) => true,
        // Whether somebody outside takes it, no kernel here tells.
        (0, Disposition::LeavesCluster) => answered || refused,
        (2.., _) | (_, Disposition::Delivered | Disposition::LeavesCluster) => answered,
        (0, Disposition::Rejected(_)) => refused,
        // Its own kernel may tell the sender of what it drops itself; nobody else does.
        (0, Disposition::Dropped(_)) if trace.hops.len() > 1 => probed.answer == Answer::Silent,
        (0, _) => matches!(probed.answer, Answer::Silent | Answer::Failed(_)),
        // Whoever was refused an answer hears nothing.
        _ => probed.answer == Answer::Silent,
    };
    if !fits {
        let what = match turn {
            1 if !matches!(
                disposition,
                Disposition::Delivered | Disposition::LeavesCluster
            ) =>
            {
                "its answer was predicted to be"
            }
            _ => "it was predicted to be",
        };
        return Some(format!("{came}, where {what} {}", disposition.name()));
    }
    if trace.arrives() {
        return None;
    }
    // Beyond where it was to end. Copies that a bridge floods before are none.
    let passed = trace.hops.iter().rev().skip(1);
    let before = |spot: &Spot| passed.clone().any(|hop| hop.ns == spot.ns);
    let beyond = spots
        .iter()
        .find(|spot| spot.turn == 0 && spot.met == Met::Elsewhere && !before(spot))?;
    Some(format!(
        "the probe was seen at {}, where none was predicted",
        place(beyond)
    ))
}

/// The finding that follows where a probe and the prediction differ. `counted`: what went up where it was last seen.
pub fn finding(observed: &Observed, counted: &[String], naming: &Naming<'_>) -> Option<Finding> {
    let why = observed.difference.as_deref()?;
    let spots = observed.spots.iter();
    let wrong = spots
        .filter(|spot| spot.met != Met::Confirmed)
        .min_by_key(|spot| spot.turn);
    let spot = wrong.or_else(|| observed.spots.last());
    let (ns, object) = match (&observed.last, spot) {
        (Some((ns, dev)), _) => (ns, dev),
        (None, Some(spot)) => (&spot.ns, &spot.dev),
        (None, None) => return None,
    };
    let mut evidence = vec![naming.text(why)];
    evidence.extend(counted.iter().cloned());
    Some(Finding {
        code: codes::OBSERVED_OTHERWISE,
        title: codes::OBSERVED_OTHERWISE.title.to_owned(),
        severity: Severity::Error,
        place: Place {
            node: ns.node.clone(),
            netns: naming.netns(ns),
            object: Some(object.clone()),
        },
        evidence,
        mend: between(observed).unwrap_or_else(|| "what was seen counts: look at what stands between the last device that is confirmed and this one; where nothing explains it, report it with --save-disagreement FILE".to_owned()),
        branches: vec![observed.branch],
    })
}

/// What to look at where a packet left one node and did not come to the next.
pub(super) fn between(observed: &Observed) -> Option<String> {
    let missed = observed.missed()?;
    let of_turn = observed
        .spots
        .iter()
        .filter(|spot| spot.turn == missed.turn);
    let last = of_turn.take_while(|spot| *spot != missed).last()?;
    if last.ns.node == missed.ns.node || !last.out || last.met != Met::Confirmed {
        return None;
    }
    if let Some(outer) = &observed.sealed {
        let port = outer
            .dport()
            .map_or_else(|| "?".to_owned(), |port| port.to_string());
        return Some(format!(
            "it went into the tunnel at {} of {} and did not come out at {} of {}, and nobody sees it between: look there and on the way for packets from {} to {}, UDP port {port} (`tcpdump` on both nodes' devices below the tunnel), and at keys, allowed IPs and the last handshake (`wg show`) of both",
            last.dev, last.ns.node, missed.dev, missed.ns.node, outer.src, outer.dst
        ));
    }
    let packet = &last.packet;
    let what = match (&packet.inner, packet.dport()) {
        (Some(_), Some(port)) => format!("the tunnel's packets, UDP port {port}"),
        (Some(_), None) => format!(
            "the tunnel's packets, {}",
            words::protocol(packet.protocol())
        ),
        (None, _) => "where these are addresses of pods, they must be told to take them".to_owned(),
    };
    Some(format!(
        "it left {} by {} and did not come to {} by {}: look at the network between them (firewalls, security groups, routers) for packets from {} to {}: {what}",
        last.ns.node, last.dev, missed.ns.node, missed.dev, packet.src, packet.dst
    ))
}

impl Explanation {
    /// Takes over what probes show: where they and the prediction differ, what was seen is the verdict.
    pub fn prove(&mut self, probes: &[Observed], findings: Vec<Finding>) {
        let rank = |one: &&Observed| {
            let agreement = match one.agreement {
                Agreement::Differs => 0,
                Agreement::Seen => 1,
                Agreement::Unwatched => 2,
                Agreement::Confirmed => 3,
            };
            let end = match one.end {
                End::Lost => 0,
                End::Refused => 1,
                End::Unanswered => 2,
                End::Connected => 3,
                End::Works => 4,
            };
            (agreement, end)
        };
        let Some(least) = probes.iter().min_by_key(rank) else {
            return;
        };
        let same = |one: &&Observed| {
            let ends = least.agreement.stands() || one.end == least.end;
            one.agreement == least.agreement && ends
        };
        let taken: Vec<usize> = probes.iter().filter(same).map(|one| one.branch).collect();
        let ways: BTreeSet<&usize> = taken.iter().collect();
        self.proof = Some(Proof {
            ways: (ways.len(), self.branches.len()),
            agreement: least.agreement,
            count: probes.len(),
            least: taken.len(),
            predicted: self.verdict,
            end: least.end,
            difference: least.difference.clone(),
        });
        let verdict = |one: &Observed| match one.end {
            End::Works => Verdict::Delivered,
            End::Refused => Verdict::Rejected,
            End::Lost => Verdict::Dropped,
            End::Unanswered | End::Connected => Verdict::Inconclusive,
        };
        if !least.agreement.stands() && self.branches.is_empty() {
            self.verdict = verdict(least);
        } else if !least.agreement.stands() {
            // Of branches that no probe took, the prediction stands.
            let seen = |at: usize| {
                let own = probes.iter().filter(|one| one.branch == at);
                let otherwise = own.filter(|one| !one.agreement.stands());
                otherwise.min_by_key(rank).map(verdict)
            };
            let branches = self.branches.iter().enumerate();
            self.verdict =
                together(branches.map(|(at, branch)| seen(at).unwrap_or(branch.verdict)));
        }
        for mut finding in findings {
            finding
                .branches
                .retain(|branch| *branch < self.branches.len());
            if finding.code == codes::PROGRAM_DROPS {
                // What could not be told is shown.
                self.findings.retain_mut(|own| {
                    let shown = |branch: &usize| finding.branches.contains(branch);
                    if own.code == codes::UNKNOWN {
                        own.branches.retain(|branch| !shown(branch));
                    }
                    own.code != codes::UNKNOWN || !own.branches.is_empty()
                });
            }
            // What counts went up differs from probe to probe.
            let known = |own: &&mut Finding| {
                own.code == finding.code
                    && own.place == finding.place
                    && own.evidence.first() == finding.evidence.first()
            };
            if let Some(own) = self.findings.iter_mut().find(known) {
                let new = finding.branches.into_iter();
                let new: Vec<usize> = new.filter(|one| !own.branches.contains(one)).collect();
                own.branches.extend(new);
                own.branches.sort_unstable();
                for line in finding.evidence {
                    if !own.evidence.contains(&line) {
                        own.evidence.push(line);
                    }
                }
                continue;
            }
            self.findings.insert(0, finding);
        }
    }
}
