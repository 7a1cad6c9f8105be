//! `trace`: resolve, start helpers, follow the packet, explain, render.

mod alone;
mod answer;
mod wants;

use std::time::Instant;

use anyhow::{Context, anyhow, bail};
use netpath::explain::End;
use netpath::model::NsKey;
use netpath::model::want::{Depth, NsTarget};
use netpath::simulate::{Flow, Outcome};
use netpath::trace::Trace;

use super::capture::{Recording, Stop};
use super::cluster::{self, Cluster};
use super::existing::{self, Existing};
use super::fleet::{Fleet, Source as FleetSource};
use super::probe::{self, Sent};
use super::progress::Progress;
use super::{drive, local, mtu, plan};
use crate::cli::{CaptureArgs, GlobalFlags, TraceArgs};
use crate::launch::{HelperFlags, Launcher, guard};
use crate::request::{Facts, TraceRequest, protocol_number};
use crate::resolve::{
    ClusterView, Destination, EndSpec, Entry, Protocol, Resolved, Source, resolve,
};
use answer::is_plain;
use wants::{about, known_namespace, likely, widen};

pub use answer::worst;

/// Does it and gives the exit code.
pub async fn run(args: &TraceArgs, global: &GlobalFlags) -> anyhow::Result<u8> {
    let mut request = TraceRequest::of(args)?;
    if args.mtu {
        probe::as_root("--mtu", args.uid, args.gid)?;
    }
    if args.probe {
        probe::as_root("--probe", args.uid, args.gid)?;
        request
            .protocol
            .map_or(Ok(()), |protocol| probe::sendable(args, protocol))?;
        if let Some(path) = &args.save_disagreement {
            super::save::writable(path)?;
        }
    }
    if let Facts::Cluster(flags) = &mut request.facts {
        if args.probe {
            flags.lasts = probe::LONGEST.saturating_mul(args.count);
        }
        if args.mtu {
            flags.lasts += mtu::LONGEST.saturating_mul(mtu::MOST);
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
    sizes: mtu::Sizes,
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
        // It may be a Service's port's protocol: before any helper is started.
        probe::sendable(self.args, resolved.protocol)?;
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
                bound: None,
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
