//! From what was simulated and seen to the answer, how it is printed, and the exit code.

use std::time::Instant;

use anyhow::anyhow;
use netpath::explain::mtu::{Budget, findings as findings_of_sizes};
use netpath::explain::observe::{self, Observed, outside, program};
use netpath::explain::{
    Branch, ChainNames, ExistingFlow, Explanation, Finding, FlowTraces, HopView, Naming, Place,
    Question, Verdict, Way, codes, explain, naming,
};
use netpath::model::names::Names;
use netpath::model::topology::Topology;
use netpath::simulate::{Flow, Outcome};

use super::{Ends, Job, Probes};
use crate::cli::Format;
use crate::proxy_names::chain_names;
use crate::render;
use crate::run::existing::Existing;
use crate::run::fleet::{Fleet, Stats};
use crate::run::probe::{self, Sent};
use crate::run::{BROKEN, INCONCLUSIVE, mtu};

impl Job<'_> {
    /// Existing flows in words, where they are to be shown. What is wrong with them goes into the answer.
    pub(super) fn compare(
        &self,
        answer: &mut Explanation,
        topology: &Topology,
        names: &Names,
        ends: &Ends,
        existing: Existing,
    ) -> Vec<ExistingFlow> {
        let chains = ChainNames::default();
        let naming = Naming {
            topology,
            names,
            chains: &chains,
        };
        let flows = existing.flows.into_iter().map(|found| {
            let place = Place {
                node: found.ns.node.clone(),
                netns: naming.netns(&found.ns),
                object: None,
            };
            let ends = Ends {
                source_port: found.flow.sport,
                notes: Vec::new(),
                source: ends.source.clone(),
                destination: ends.destination.clone(),
                protocol: ends.protocol,
            };
            let (flows, outcomes) = ([found.flow], [found.outcome]);
            ExistingFlow {
                entry: found.group.entry,
                count: found.group.count,
                place,
                answer: self.explain(topology, names, &ends, &flows, &[1.0], &outcomes),
            }
        });
        let flows: Vec<ExistingFlow> = flows.collect();
        answer.compare(&flows);
        answer.unknown.extend(existing.unknown);
        if self.args.existing {
            flows
        } else {
            Vec::new()
        }
    }

    pub(super) fn explain(
        &self,
        topology: &Topology,
        names: &Names,
        ends: &Ends,
        flows: &[Flow],
        shares: &[f64],
        outcomes: &[Outcome],
    ) -> Explanation {
        let traces = outcomes.iter().flat_map(|outcome| &outcome.traces);
        let chains: ChainNames = chain_names(names, &naming::chains_of(traces));
        let first = flows.first();
        let question = Question {
            source: ends.source.clone(),
            destination: ends.destination.clone(),
            protocol: first.map_or(0, |flow| flow.protocol),
            port: first.and_then(|flow| flow.dport),
            source_port: ends.source_port,
            size: first.map_or(0, |flow| flow.len),
            flows: outcomes
                .iter()
                .zip(shares)
                .map(|(outcome, share)| FlowTraces {
                    share: *share,
                    traces: &outcome.traces,
                    untold: &outcome.untold,
                })
                .collect(),
            naming: Naming {
                topology,
                names,
                chains: &chains,
            },
            notes: ends.notes.clone(),
        };
        self.progress
            .verbose(|| format!("protocol {}", ends.protocol));
        explain(&question)
    }

    /// Gives the answer as soon as it is there; the helpers end afterwards, whether it could be written
    /// or not.
    pub(super) async fn finish(
        &self,
        answer: &mut Explanation,
        existing: &[ExistingFlow],
        (probes, names): (&Probes, &Names),
        fleet: Fleet<'_>,
    ) -> anyhow::Result<u8> {
        let begin = Instant::now();
        let Probes {
            sent,
            sizes,
            failed,
        } = probes;
        let mut stages = fleet.stages;
        let chains = ChainNames::new();
        let naming = Naming {
            topology: &fleet.topology,
            names,
            chains: &chains,
        };
        let findings = sent.iter().filter_map(|one| {
            let since = one.since.iter().map(|how| {
                format!(
                    "read again after the probe, the kernels' objects predict what was seen: {how}; they changed in between"
                )
            });
            let told: Vec<String> = since
                .chain(one.dropped.iter().map(|loss| naming.text(&loss.text())))
                .chain(one.counted.iter().map(|line| naming.text(line)))
                .collect();
            match &one.program {
                Some(culprit) if one.observed.difference.is_none() => {
                    let branch = one.observed.branch;
                    Some(program::finding(culprit, branch, &told, &naming))
                }
                _ => observe::finding(&one.observed, &told, &naming)
                    .or_else(|| outside::finding(&one.observed, &answer.branches, &naming)),
            }
        });
        let findings: Vec<Finding> = findings.collect();
        // What was never predicted is no disagreement.
        let agree = !findings
            .iter()
            .any(|finding| finding.code == codes::OBSERVED_OTHERWISE);
        let mut failed = failed.clone();
        if let (Some(path), true) = (&self.args.save_disagreement, agree) {
            crate::run::say(&format!(
                "--save-disagreement: {} is not written: no probe went another way than predicted",
                path.display()
            ));
        }
        if let (Some(path), false) = (&self.args.save_disagreement, agree) {
            let seen = sent.iter().map(|one| render::json::probe(one, &naming));
            let question = format!(
                "{} {} protocol {}",
                answer.source.typed, answer.destination.typed, answer.protocol
            );
            let seen: Vec<_> = seen.collect();
            let saved =
                crate::run::save::disagreement(path, (naming.topology, names), &question, &seen);
            match saved {
                Ok(()) => crate::run::say(&format!(
                    "what was predicted from, and what was seen: {}",
                    path.display()
                )),
                Err(error) => failed = failed.or(Some(format!("{error:#}"))),
            }
        }
        let observed: Vec<Observed> = sent.iter().map(|one| one.observed.clone()).collect();
        answer.prove(&observed, findings);
        answer.add(findings_of_sizes(&sizes.budgets, &naming));
        if sizes.left > 0 {
            answer.notes.push(format!(
                "--mtu tried {} ends of {}: trace another one by its address",
                mtu::MOST,
                sizes.left.saturating_add(mtu::MOST as usize)
            ));
        }
        let shown = (sent.as_slice(), sizes.budgets.as_slice(), &naming);
        let printed = self.print(answer, existing, shown, fleet.stats(self.start));
        stages.render = begin.elapsed();
        let begin = Instant::now();
        fleet.close().await;
        stages.close = begin.elapsed();
        self.progress
            .verbose(|| stages.since(self.start).to_string());
        // What is known by then is told all the same.
        match failed {
            Some(why) => printed.and(Err(anyhow!(why))),
            None => printed,
        }
    }

    /// Sends probes; none where none were asked for.
    pub(super) async fn probe(
        &self,
        fleet: &mut Fleet<'_>,
        flows: &[Flow],
        outcomes: &[Outcome],
    ) -> Probes {
        let mut probes = Probes::default();
        if self.args.mtu {
            let measuring = Box::pin(mtu::measure(fleet, outcomes));
            probes.sizes = self.progress.during("sizing", measuring).await;
        }
        if !self.args.probe {
            return probes;
        }
        let job = probe::Job {
            flows,
            outcomes,
            data: self.args.data.as_deref(),
            count: self.args.count,
        };
        let sending = probe::send(fleet, job, &mut probes.sent);
        let sending = self.progress.during("probing", Box::pin(sending));
        probes.failed = sending.await.err().map(|error| format!("{error:#}"));
        probes
    }

    pub(super) fn print(
        &self,
        answer: &Explanation,
        existing: &[ExistingFlow],
        (sent, budgets, naming): (&[Sent], &[Budget], &Naming<'_>),
        stats: Stats,
    ) -> anyhow::Result<u8> {
        match self.args.output {
            Format::Text | Format::Wide => {
                let mut options = crate::run::options(self.global);
                options.wide = self.args.output == Format::Wide;
                options.reply = !self.args.no_reply;
                let mut text = render::text::trace(answer, &options);
                for flow in existing {
                    text.push_str(&render::text::existing(flow, &options));
                }
                text.push_str(&render::observed::texts(sent, naming, &options));
                if self.args.mtu {
                    text.push_str(&render::mtu::text(budgets, naming, &options));
                }
                crate::run::print(&text)?;
            }
            Format::Json | Format::Yaml => {
                let reply = !self.args.no_reply;
                let mut data = render::json::trace(answer, stats, reply);
                if self.args.existing {
                    let flows = existing.iter();
                    let flows = flows.map(|flow| render::json::existing(flow, stats, reply));
                    data.existing = Some(flows.collect());
                }
                if self.args.probe {
                    let probes = sent.iter();
                    let probes = probes.map(|one| render::json::probe(one, naming));
                    data.probes = Some(probes.collect());
                }
                if self.args.mtu {
                    let budgets = budgets.iter();
                    let budgets = budgets.map(|one| render::mtu::json(one, naming));
                    data.mtu = Some(budgets.collect());
                }
                crate::run::print_data(&data, self.args.output)?;
            }
        }
        let flows = existing.iter().map(|flow| exit_code(&flow.answer));
        let own = proven_code(answer, sent);
        let flows = flows.chain(budgets.iter().map(mtu::exit_code));
        Ok(worst(flows.chain([own])).unwrap_or(own))
    }
}

/// What is broken counts more than what can't be told.
pub fn worst(codes: impl Iterator<Item = u8>) -> Option<u8> {
    let rank = |code: &u8| [0, INCONCLUSIVE, BROKEN].iter().position(|one| one == code);
    codes.max_by_key(rank)
}

/// 0 delivered on every branch, 1 broken on some, 3 where it can't be told.
pub(super) fn exit_code(answer: &Explanation) -> u8 {
    if answer.branches.is_empty() {
        return INCONCLUSIVE;
    }
    code_of(answer.branches.iter())
}

pub(super) fn code_of<'a>(branches: impl Iterator<Item = &'a Branch>) -> u8 {
    let codes = branches.map(|branch| match branch.verdict {
        Verdict::Dropped | Verdict::Rejected | Verdict::Loop => BROKEN,
        Verdict::Inconclusive => INCONCLUSIVE,
        Verdict::Delivered | Verdict::Mixed => 0,
    });
    worst(codes).unwrap_or(0)
}

/// What was seen counts for the branches that probes took otherwise than predicted, the prediction for all others.
pub(super) fn proven_code(answer: &Explanation, sent: &[Sent]) -> u8 {
    let overruled = |at: usize| {
        let mut sent = sent.iter().map(|one| &one.observed);
        sent.any(|one| one.branch == at && !one.agreement.stands())
    };
    let branches = answer.branches.iter().enumerate();
    let left = branches.filter(|(at, _)| !overruled(*at));
    let left: Vec<&Branch> = left.map(|(_, branch)| branch).collect();
    let predicted = if left.len() == answer.branches.len() {
        exit_code(answer)
    } else {
        code_of(left.iter().copied())
    };
    let seen = render::observed::exit_code(sent, predicted);
    worst([seen, predicted].into_iter()).unwrap_or(seen)
}

/// Whether all arrives at whom was asked for, nothing is wrong or unknown, and who is on the way has a name.
pub(super) fn is_plain(answer: &Explanation, topology: &Topology, names: &Names) -> bool {
    let named = |hop: &HopView| {
        let uid = topology
            .netns(&hop.key)
            .and_then(|ns| ns.identity.pod_uid.as_ref());
        uid.is_none_or(|uid| names.pods.iter().any(|pod| pod.uid == *uid))
    };
    answer.verdict == Verdict::Delivered
        && answer.findings.is_empty()
        && answer.unknown.is_empty()
        && answer.branches.iter().all(|branch| {
            !branch.diverted
                && branch.way.to.is_some()
                && ways(&branch.way).all(|way| way.hops.iter().all(named))
        })
}

/// The way of a packet and those of the packets that follow it.
pub(super) fn ways(way: &Way) -> impl Iterator<Item = &Way> {
    std::iter::successors(Some(way), |way| way.reply.as_deref())
}
