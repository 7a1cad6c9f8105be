//! `trace`: resolve, start helpers, follow the packet, explain, render.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use netpath::explain::mtu::Budget;
use netpath::explain::observe::Observed;
use netpath::explain::{
    Branch, ChainNames, End, ExistingFlow, Explanation, Finding, FlowTraces, HopView, Naming,
    Place, Question, Verdict, Way, explain, naming, observe,
};
use netpath::model::NsKey;
use netpath::model::names::Names;
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, NsTarget, Packets, Towards, Want};
use netpath::simulate::{Flow, Outcome, Wants};
use netpath::trace::Trace;

use super::capture::{Recording, Stop};
use super::cluster::{self, Cluster};
use super::existing::{self, Existing};
use super::fleet::{Fleet, Source as FleetSource, Stats};
use super::probe::{self, Sent};
use super::progress::Progress;
use super::{BROKEN, INCONCLUSIVE, drive, local, mtu, plan, saved};
use crate::cli::{CaptureArgs, Format, GlobalFlags, TraceArgs};
use crate::launch::{HelperFlags, Launcher, guard};
use crate::proxy_names::chain_names;
use crate::render;
use crate::request::{Facts, TraceRequest, file_flags, protocol_number};
use crate::resolve::{
    ClusterView, Destination, EndSpec, Entry, Protocol, Resolved, Source, parse_local, resolve,
};

/// Does it and gives the exit code.
pub async fn run(args: &TraceArgs, global: &GlobalFlags) -> anyhow::Result<u8> {
    let mut request = TraceRequest::of(args)?;
    if args.mtu {
        probe::as_root("--mtu", args.uid, args.gid)?;
    }
    if args.probe {
        probe::not_sctp(request.protocol == Some(Protocol::Sctp))?;
        probe::as_root("--probe", args.uid, args.gid)?;
        if let Some(path) = &args.save_disagreement {
            super::save::writable(path)?;
        }
    }
    if let Facts::Cluster(flags) = &mut request.facts {
        if args.probe {
            flags.lasts = probe::LONGEST.saturating_mul(args.count);
        }
        if args.mtu {
            flags.lasts += mtu::LONGEST;
        }
    }
    let job = Job {
        request: &request,
        args,
        global,
        progress: Progress::new(global.verbose),
        start: Instant::now(),
        recording: None,
    };
    match &request.facts {
        Facts::Cluster(flags) => Box::pin(job.cluster(flags)).await,
        Facts::Local => super::interruptible(job.local()).await,
        Facts::File(path) => super::interruptible(job.file(path)).await,
    }
}

/// Captures on the way of a trace in place of its answer.
pub async fn capture(
    capture: &CaptureArgs,
    global: &GlobalFlags,
    stop: &Stop,
) -> anyhow::Result<u8> {
    let args = capture.trace();
    let mut request = TraceRequest::of(&args)?;
    if let Facts::Cluster(flags) = &mut request.facts {
        flags.lasts = capture.lasts();
    }
    let job = Job {
        request: &request,
        args: &args,
        global,
        progress: Progress::new(global.verbose),
        start: Instant::now(),
        recording: Some(Recording {
            args: capture,
            stop,
        }),
    };
    match &request.facts {
        Facts::Cluster(flags) => Box::pin(job.cluster(flags)).await,
        _ => match stop.cut(Box::pin(job.local())).await {
            Ok(done) => done,
            Err(signal) => Ok(super::interrupted(signal)),
        },
    }
}

/// A question whose ends are known.
struct Ends {
    source: End,
    destination: End,
    protocol: Protocol,
    source_port: Option<u16>,
    notes: Vec<String>,
}

/// Probes that were sent, and why there are no more.
#[derive(Default)]
struct Probes {
    sent: Vec<Sent>,
    budgets: Vec<Budget>,
    failed: Option<String>,
}

struct Job<'a> {
    request: &'a TraceRequest,
    args: &'a TraceArgs,
    global: &'a GlobalFlags,
    progress: Progress,
    start: Instant,
    /// Packets on the way are wanted, not the answer.
    recording: Option<Recording<'a>>,
}

impl Job<'_> {
    async fn cluster(&self, flags: &HelperFlags) -> anyhow::Result<u8> {
        let source = cluster::parse(&self.request.source)?;
        let destination = cluster::parse(&self.request.destination)?.of_sender(self.request.family);
        let connection = &self.global.connection;
        let ends = (&source, &destination);
        let mut cluster = cluster::read_between(connection, flags, ends, self.progress).await?;
        let mut resolved = self.resolve_in(&cluster, ends).await;
        if resolved.is_err()
            && let Some(whole) = cluster.whole(self.progress).await?
        {
            // What is wrong is said with what there is instead.
            resolved = self.resolve_in(&whole, ends).await;
            cluster = whole;
        }
        let resolved = resolved?;
        let launcher = Launcher::new(cluster.kube.clone(), flags.clone());
        if flags.dry_run {
            let nodes = likely(&resolved, &cluster.view).into_keys();
            return plan::print(&launcher, &cluster, nodes);
        }
        let work = Box::pin(self.with_helpers(&launcher, &cluster, &resolved, ends));
        if let Some(recording) = &self.recording {
            return recording.guarded(&launcher, work).await;
        }
        let (outcome, left) = guard(&launcher, work, Result::is_ok).await;
        super::finish(outcome, &left)
    }

    async fn resolve(
        &self,
        view: &ClusterView,
        namespace: &str,
        flags: Vec<String>,
        specs: (&EndSpec, &EndSpec),
    ) -> anyhow::Result<Resolved> {
        let ask = cluster::ask(
            &self.request.source,
            &self.request.destination,
            namespace,
            "trace",
            flags,
            self.request.protocol,
            self.request.family,
        );
        let mut resolved = resolve(view, &ask)?;
        if let Destination::Name { host, .. } = &resolved.destination {
            let host = host.clone();
            let looked_up = tokio::net::lookup_host((host.as_str(), 0))
                .await
                .with_context(|| format!("look up {host}"))?;
            let addresses: Vec<std::net::IpAddr> = looked_up.map(|addr| addr.ip()).collect();
            let port = match specs.1 {
                EndSpec::Url { port, .. } => Some(port.get()),
                other => match other.port() {
                    Some(crate::resolve::PortSpec::Number(number)) => Some(number.get()),
                    _ => None,
                },
            };
            resolved.looked_up(&addresses, self.request.family, port)?;
            resolved.notes.push(format!(
                "{host} was looked up on this machine; the pod's own DNS may answer otherwise"
            ));
        }
        Ok(resolved)
    }

    async fn resolve_in(
        &self,
        cluster: &Cluster,
        ends: (&EndSpec, &EndSpec),
    ) -> anyhow::Result<Resolved> {
        let (namespace, flags) = (&cluster.kube.namespace, cluster.kube.typed_flags.clone());
        self.resolve(&cluster.view, namespace, flags, ends).await
    }

    async fn with_helpers(
        &self,
        launcher: &Launcher,
        cluster: &Cluster,
        resolved: &Resolved,
        specs: (&EndSpec, &EndSpec),
    ) -> anyhow::Result<u8> {
        let source = FleetSource::Cluster {
            launcher,
            view: &cluster.view,
        };
        let topology = cluster::topology(&cluster.view, &cluster.names);
        let mut fleet = Fleet::new(source, topology, self.progress);
        fleet.stages.resolve = self.start.elapsed();
        fleet.about = Some(about(resolved, &cluster.view));
        fleet.ask(likely(resolved, &cluster.view)).await;
        let node = resolved
            .source
            .node()
            .ok_or_else(|| anyhow!("source {}: it is on no node", resolved.source.describe()))?;
        if let Some(why) = fleet.failure(node) {
            bail!("{why}");
        }
        let from = self.source_namespace(&mut fleet, node, resolved).await?;
        let (flows, shares) = self.flows(&from, resolved)?;
        let outcomes = drive::drive(&mut fleet, &flows).await;
        if let Some(why) = fleet.failure(node) {
            bail!("{why}");
        }
        if let Some(recording) = &self.recording {
            let traces: Vec<&Trace> = outcomes.iter().flat_map(|one| &one.traces).collect();
            return Box::pin(recording.path(fleet, &cluster.names, &traces)).await;
        }
        let ends = ends_of(self.request, resolved);
        let sent = self.probe(&mut fleet, &flows, &outcomes).await;
        let existing = self.existing(&mut fleet, &flows, &outcomes).await;
        let topology = &fleet.topology;
        let mut answer = self.explain(topology, &cluster.names, &ends, &flows, &shares, &outcomes);
        let mut existing = self.compare(&mut answer, topology, &cluster.names, &ends, existing);
        // Whom else it concerns is only asked where something is wrong.
        if !is_plain(&answer, &fleet.topology, &cluster.names)
            && let Some(whole) = cluster.whole(self.progress).await?
        {
            let resolved = self.resolve_in(&whole, specs).await?;
            widen(
                &mut fleet.topology,
                cluster::topology(&whole.view, &whole.names),
            );
            fleet.about = Some(about(&resolved, &whole.view));
            let (flows, shares) = self.flows(&from, &resolved)?;
            let outcomes = drive::drive(&mut fleet, &flows).await;
            let ends = ends_of(self.request, &resolved);
            let found = self.existing(&mut fleet, &flows, &outcomes).await;
            let topology = &fleet.topology;
            answer = self.explain(topology, &whole.names, &ends, &flows, &shares, &outcomes);
            existing = self.compare(&mut answer, topology, &whole.names, &ends, found);
        }
        let failures = fleet.reasons();
        for why in &failures {
            super::say(&format!("warning: {why}"));
        }
        for why in failures {
            if !answer.unknown.contains(&why) {
                answer.unknown.push(why);
            }
        }
        self.finish(&mut answer, &existing, (&sent, &cluster.names), fleet)
            .await
    }

    /// The namespace of the source. A pod's is found by its UID; where the node's cgroups do not tell,
    /// by its address.
    async fn source_namespace(
        &self,
        fleet: &mut Fleet<'_>,
        node: &str,
        resolved: &Resolved,
    ) -> anyhow::Result<NsKey> {
        if let Some(found) = known_namespace(&fleet.topology, node, &resolved.source) {
            return Ok(found);
        }
        if matches!(resolved.source, Source::Pod { .. }) {
            fleet.ask(local::wants(node, Depth::Likely)).await;
            if let Some(found) = known_namespace(&fleet.topology, node, &resolved.source) {
                return Ok(found);
            }
        }
        let absent = fleet.topology.absent.iter();
        // What may hide any namespace is said of the one that was wanted.
        let whys = absent.filter(|(on, target, _)| on == node && *target != NsTarget::All);
        let whys: Vec<&str> = whys.map(|(_, _, why)| why.as_str()).collect();
        let why = if whys.is_empty() {
            "no namespace holds its address".to_owned()
        } else {
            whys.join("; ")
        };
        bail!(
            "find the network namespace of {} on node {node}: {why}; is it still running there (kubectl get pod -o wide), and does the helper see the node's processes (hostPID)?",
            resolved.source.describe()
        )
    }

    fn flows(&self, from: &NsKey, resolved: &Resolved) -> anyhow::Result<(Vec<Flow>, Vec<f64>)> {
        let mut flows = Vec::new();
        let mut shares = Vec::new();
        for flow in &resolved.flows {
            let v6 = flow.destination.is_ipv6();
            flows.push(Flow {
                from: from.clone(),
                src: None,
                sport: self.request.source_port.or(resolved.source_port),
                dst: flow.destination,
                dport: flow.port,
                protocol: protocol_number(resolved.protocol, v6),
                len: self.request.size(resolved.protocol, v6),
                uid: self.args.uid,
                gid: self.args.gid,
            });
            shares.push(flow.probability);
        }
        if flows.is_empty() {
            bail!(
                "{}: it has no address to send to",
                resolved.destination.describe()
            );
        }
        Ok((flows, shares))
    }

    async fn local(&self) -> anyhow::Result<u8> {
        let node = local::host_name();
        let specs = (
            parse_local(&self.request.source)?,
            parse_local(&self.request.destination)?,
        );
        let mut fleet = Fleet::new(FleetSource::Local, Topology::default(), self.progress);
        let mut pids = (None, None);
        if let EndSpec::Pid { pid, .. } = specs.0 {
            pids.0 = local::by_pid(&mut fleet, &node, pid).await;
            local::found(&self.request.source, pid, pids.0)?;
        }
        if let EndSpec::Pid { pid, .. } = specs.1 {
            pids.1 = local::by_pid(&mut fleet, &node, pid).await;
            local::found(&self.request.destination, pid, pids.1)?;
        }
        // Other namespaces may hold rules by the ten thousand: those on the way are asked for when the
        // packet comes to them.
        fleet.ask(local::wants(&node, Depth::NoRules)).await;
        if let Some(why) = fleet.failure(&node) {
            bail!("{why}");
        }
        self.local_answer(fleet, &node, pids).await
    }

    async fn local_answer(
        &self,
        mut fleet: Fleet<'_>,
        node: &str,
        pids: (
            Option<netpath::model::NetNsId>,
            Option<netpath::model::NetNsId>,
        ),
    ) -> anyhow::Result<u8> {
        let local = local::ends(
            &fleet.topology,
            node,
            (&self.request.source, &self.request.destination),
            pids,
            self.request.protocol,
            self.request.family,
        )?;
        let v6 = local.dst.is_ipv6();
        let flow = Flow {
            from: local.from.clone(),
            src: local.src,
            sport: self.request.source_port.or(local.source_port),
            dst: local.dst,
            dport: local.port,
            protocol: protocol_number(local.protocol, v6),
            len: self.request.size(local.protocol, v6),
            uid: self.args.uid,
            gid: self.args.gid,
        };
        fleet.about = Some(about_one(&fleet.topology, &flow));
        let flows = [flow];
        let outcomes = drive::drive(&mut fleet, &flows).await;
        if let Some(why) = fleet.failure(node) {
            bail!("{why}");
        }
        if let Some(recording) = &self.recording {
            let traces: Vec<&Trace> = outcomes.iter().flat_map(|one| &one.traces).collect();
            return Box::pin(recording.path(fleet, &Names::default(), &traces)).await;
        }
        let ends = Ends {
            source: local.source,
            destination: local.destination,
            protocol: local.protocol,
            source_port: self.request.source_port.or(local.source_port),
            notes: Vec::new(),
        };
        let names = Names::default();
        let sent = self.probe(&mut fleet, &flows, &outcomes).await;
        let existing = self.existing(&mut fleet, &flows, &outcomes).await;
        let topology = &fleet.topology;
        let mut answer = self.explain(topology, &names, &ends, &flows, &[1.0], &outcomes);
        let existing = self.compare(&mut answer, topology, &names, &ends, existing);
        if matches!(self.request.facts, Facts::Local) && exit_code(&answer) == INCONCLUSIVE {
            local::permitted(answer.unknown.iter().map(String::as_str))?;
        }
        self.finish(&mut answer, &existing, (&sent, &names), fleet)
            .await
    }

    async fn file(&self, path: &Path) -> anyhow::Result<u8> {
        let file = saved::read(path)?;
        if saved::is_local(&file) {
            let node = saved::local_node(&file)?;
            let fleet = Fleet::new(FleetSource::Nobody, file.topology, self.progress);
            return self.local_answer(fleet, &node, (None, None)).await;
        }
        let specs = (
            cluster::parse(&self.request.source)?,
            cluster::parse(&self.request.destination)?.of_sender(self.request.family),
        );
        let view = saved::view(&file.names);
        let namespace = self.global.connection.namespace.as_deref();
        let flags = file_flags(path);
        let resolved = self
            .resolve(
                &view,
                namespace.unwrap_or("default"),
                flags,
                (&specs.0, &specs.1),
            )
            .await?;
        let node = resolved.source.node().unwrap_or_default().to_owned();
        let mut fleet = Fleet::new(FleetSource::Nobody, file.topology, self.progress);
        let Some(from) = known_namespace(&fleet.topology, &node, &resolved.source) else {
            bail!(
                "{}: the snapshot file holds nothing of its network namespace on node {node}",
                resolved.source.describe()
            );
        };
        let (flows, shares) = self.flows(&from, &resolved)?;
        let outcomes = drive::drive(&mut fleet, &flows).await;
        let ends = ends_of(self.request, &resolved);
        let existing = self.existing(&mut fleet, &flows, &outcomes).await;
        let topology = &fleet.topology;
        let mut answer = self.explain(topology, &file.names, &ends, &flows, &shares, &outcomes);
        let existing = self.compare(&mut answer, topology, &file.names, &ends, existing);
        self.finish(
            &mut answer,
            &existing,
            (&Probes::default(), &file.names),
            fleet,
        )
        .await
    }

    /// Flows that stand already. A file has none of them.
    async fn existing(
        &self,
        fleet: &mut Fleet<'_>,
        flows: &[Flow],
        outcomes: &[Outcome],
    ) -> Existing {
        match (&self.request.facts, self.args.existing) {
            (Facts::File(_), false) => Existing::default(),
            (Facts::File(_), true) => Existing {
                flows: Vec::new(),
                unknown: vec![
                    "existing flows: snapshot files hold no tables of flows; trace the cluster itself"
                        .to_owned(),
                ],
            },
            (_, all) => existing::find(fleet, flows, outcomes, all).await,
        }
    }

    /// Existing flows in words, where they are to be shown. What is wrong with them goes into the answer.
    fn compare(
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

    fn explain(
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
    async fn finish(
        &self,
        answer: &mut Explanation,
        existing: &[ExistingFlow],
        (probes, names): (&Probes, &Names),
        fleet: Fleet<'_>,
    ) -> anyhow::Result<u8> {
        let begin = Instant::now();
        let Probes {
            sent,
            budgets,
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
            observe::finding(&one.observed, &told, &naming)
        });
        let findings: Vec<Finding> = findings.collect();
        let mut failed = failed.clone();
        if let (Some(path), false) = (&self.args.save_disagreement, findings.is_empty()) {
            let seen = sent.iter().map(|one| render::json::probe(one, &naming));
            let question = format!(
                "{} {} protocol {}",
                answer.source.typed, answer.destination.typed, answer.protocol
            );
            let seen: Vec<_> = seen.collect();
            let saved = super::save::disagreement(path, (naming.topology, names), &question, &seen);
            match saved {
                Ok(()) => super::say(&format!(
                    "what was predicted from, and what was seen: {}",
                    path.display()
                )),
                Err(error) => failed = failed.or(Some(format!("{error:#}"))),
            }
        }
        let observed: Vec<Observed> = sent.iter().map(|one| one.observed.clone()).collect();
        answer.prove(&observed, findings);
        let shown = (sent.as_slice(), budgets.as_slice(), &naming);
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
    async fn probe(&self, fleet: &mut Fleet<'_>, flows: &[Flow], outcomes: &[Outcome]) -> Probes {
        let mut probes = Probes::default();
        if self.args.mtu {
            let measuring = Box::pin(mtu::measure(fleet, outcomes));
            probes.budgets = self.progress.during("sizing", measuring).await;
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

    fn print(
        &self,
        answer: &Explanation,
        existing: &[ExistingFlow],
        (sent, budgets, naming): (&[Sent], &[Budget], &Naming<'_>),
        stats: Stats,
    ) -> anyhow::Result<u8> {
        match self.args.output {
            Format::Text | Format::Wide => {
                let mut options = super::options(self.global);
                options.wide = self.args.output == Format::Wide;
                options.reply = !self.args.no_reply;
                let mut text = render::text::trace(answer, &options);
                for flow in existing {
                    text.push_str(&render::text::existing(flow, &options));
                }
                for one in sent {
                    text.push_str(&render::observed::text(one, naming, &options));
                }
                if self.args.mtu {
                    text.push_str(&render::mtu::text(budgets, naming, &options));
                }
                super::print(&text)?;
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
                super::print_data(&data, self.args.output)?;
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
pub fn exit_code(answer: &Explanation) -> u8 {
    if answer.branches.is_empty() {
        return INCONCLUSIVE;
    }
    code_of(answer.branches.iter())
}

fn code_of<'a>(branches: impl Iterator<Item = &'a Branch>) -> u8 {
    let codes = branches.map(|branch| match branch.verdict {
        Verdict::Dropped | Verdict::Rejected | Verdict::Loop => BROKEN,
        Verdict::Inconclusive => INCONCLUSIVE,
        Verdict::Delivered | Verdict::Mixed => 0,
    });
    worst(codes).unwrap_or(0)
}

/// What was seen counts for the branches that probes took otherwise than predicted, the prediction for all others.
fn proven_code(answer: &Explanation, sent: &[Sent]) -> u8 {
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
fn is_plain(answer: &Explanation, topology: &Topology, names: &Names) -> bool {
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
fn ways(way: &Way) -> impl Iterator<Item = &Way> {
    std::iter::successors(Some(way), |way| way.reply.as_deref())
}

/// Takes what the whole cluster says over, but for what was found out of its nodes.
fn widen(topology: &mut Topology, whole: Topology) {
    let old = std::mem::replace(&mut topology.hints, whole.hints);
    for (node, hint) in &mut topology.hints {
        hint.reachable &= old.get(node).is_none_or(|old| old.reachable);
    }
    topology.service_ips = whole.service_ips;
    topology.unlisted = whole.unlisted;
}

/// Destinations that packets of the flows and their answers may have on their way.
fn about(resolved: &Resolved, view: &ClusterView) -> Packets {
    let mut to: BTreeSet<Towards> = BTreeSet::new();
    let mut add = |addr: IpAddr, port: Option<u16>| {
        let protocol = protocol_number(resolved.protocol, addr.is_ipv6());
        to.insert(Towards {
            addr,
            service: port.map(|port| (protocol, port)),
        });
    };
    for flow in &resolved.flows {
        add(flow.destination, flow.port);
        add(flow.source, None);
    }
    // The kernel may send from another address of the source.
    for ip in resolved.source.ips() {
        add(ip, None);
    }
    let service = resolved.destination.service();
    for endpoint in service.iter().flat_map(|end| end.usable()) {
        add(endpoint.ip, endpoint.port);
    }
    // Tunnels lead to nodes, as answers do where the source is translated.
    for node in resolved.nodes() {
        for ip in view.node(&node).iter().flat_map(|node| &node.ips) {
            add(*ip, None);
        }
    }
    // Rules of the other family are read when a packet of it comes.
    let v6 = |ip: IpAddr| {
        resolved
            .flows
            .iter()
            .any(|flow| flow.destination.is_ipv6() == ip.is_ipv6())
    };
    to.retain(|to| v6(to.addr));
    Packets {
        to: to.into_iter().collect(),
    }
}

/// The same where no names are known: the destination that was typed, and the source's addresses.
fn about_one(topology: &Topology, flow: &Flow) -> Packets {
    let ns = topology.netns(&flow.from);
    let own = ns.and_then(|ns| ns.addrs.known()).into_iter().flatten();
    let own = own.map(|addr| addr.local).chain(flow.src);
    let mut to: BTreeSet<Towards> = own
        .filter(|addr| addr.is_ipv6() == flow.dst.is_ipv6())
        .map(|addr| Towards {
            addr,
            service: None,
        })
        .collect();
    to.insert(Towards {
        addr: flow.dst,
        service: flow.dport.map(|port| (flow.protocol, port)),
    });
    Packets {
        to: to.into_iter().collect(),
    }
}

/// What the first request carries: the nodes' own namespaces and those of the pods at both ends.
fn likely(resolved: &Resolved, view: &ClusterView) -> Wants {
    let mut wants = Wants::new();
    let mut add = |node: &str, target: NsTarget| {
        let want = Want::NetNs {
            target,
            depth: Depth::Likely,
        };
        wants.entry(node.to_owned()).or_default().insert(want);
    };
    for node in resolved.nodes() {
        add(&node, NsTarget::Host);
    }
    if let Source::Pod { pod } = &resolved.source
        && let (Some(node), false) = (&pod.node, pod.host_network)
    {
        add(node, NsTarget::PodUid(pod.cgroup_uid.clone()));
    }
    if let Destination::Pod { pod } = &resolved.destination
        && let (Some(node), false) = (&pod.node, pod.host_network)
    {
        add(node, NsTarget::PodUid(pod.cgroup_uid.clone()));
    }
    let service = resolved.destination.service();
    for endpoint in service.iter().flat_map(|end| end.usable()) {
        let pod = endpoint.pod.as_ref();
        let pod = pod.and_then(|(namespace, name)| view.pod(namespace, name));
        if let Some((pod, node)) = pod.and_then(|pod| Some((pod, pod.node.as_ref()?)))
            && !pod.host_network
        {
            add(node, NsTarget::PodUid(pod.cgroup_uid.clone()));
        }
    }
    wants
}

fn known_namespace(topology: &Topology, node: &str, source: &Source) -> Option<NsKey> {
    let pod = match source {
        Source::Pod { pod } if !pod.host_network => pod,
        _ => return topology.host(node),
    };
    let snapshot = topology.nodes.get(node)?;
    let holds = |ns: &&netpath::model::netns::NetNs| {
        let addrs = ns.addrs.known();
        !ns.identity.host
            && addrs.is_some_and(|addrs| addrs.iter().any(|addr| pod.ips.contains(&addr.local)))
    };
    let found = snapshot
        .pod(&pod.cgroup_uid)
        .or_else(|| snapshot.netns.values().find(holds))?;
    Some(NsKey {
        node: node.to_owned(),
        netns: found.identity.id,
    })
}

fn ends_of(request: &TraceRequest, resolved: &Resolved) -> Ends {
    let flow = resolved.flows.first();
    let (kind, name) = match &resolved.source {
        Source::Pod { pod } => ("pod", Some(pod.path())),
        Source::Node { node } => ("node", Some(node.name.clone())),
        Source::Address { .. } => ("address", None),
    };
    let source = End {
        typed: request.source.clone(),
        kind: kind.to_owned(),
        name,
        ip: flow.map(|flow| flow.source),
        node: resolved.source.node().map(str::to_owned),
    };
    let (kind, name, node) = match &resolved.destination {
        Destination::Service(end) => {
            let mut name = end.service.path();
            if end.entry == Entry::Headless {
                name.push_str(" (headless)");
            }
            ("service", Some(name), None)
        }
        Destination::Pod { pod } => ("pod", Some(pod.path()), pod.node.clone()),
        Destination::Node { node, .. } => {
            ("node", Some(node.name.clone()), Some(node.name.clone()))
        }
        Destination::Address { .. } => ("address", None, None),
        Destination::Name { host, .. } => ("name", Some(host.clone()), None),
    };
    let destination = End {
        typed: request.destination.clone(),
        kind: kind.to_owned(),
        name,
        ip: flow.map(|flow| flow.destination),
        node,
    };
    Ends {
        source,
        destination,
        protocol: resolved.protocol,
        source_port: request.source_port.or(resolved.source_port),
        notes: resolved.notes.clone(),
    }
}
