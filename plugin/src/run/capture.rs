//! `capture`: packets at the hops of a place or of a predicted path, as lines or as one pcapng.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use anyhow::bail;
use netpath::explain::{ChainNames, Naming};
use netpath::model::capture::{Losses, Watch};
use netpath::model::names::Names;
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, NsTarget, Want};
use netpath::model::{NetNsId, NsKey};
use netpath::simulate::Wants;
use netpath::trace::{Disposition, Trace};
use tokio::sync::watch;

use super::cluster::{self, Cluster};
use super::fleet::{Fleet, Source};
use super::out::{Devices, Out, is_stdout, writable};
use super::points::{self, Points};
use super::progress::Progress;
use super::watch::{Sink as _, Spot, Watching, open, run as watch_all};
use super::{dump, local, plan};
use crate::cli::{CaptureArgs, GlobalFlags};
use crate::launch::signals::Signals;
use crate::launch::{Launcher, Signal, guard};
use crate::render::packets;
use crate::request::Facts;
use crate::resolve::{EndSpec, parse_local, resolve_place};

/// Bytes of a packet: headers of a tunnel and of what is in it, with options.
const HEADERS: u32 = 256;
/// Bytes of a packet where its payload is wanted.
const WHOLE: u32 = 65_535;

/// Does it and gives the exit code.
pub async fn run(args: &CaptureArgs, global: &GlobalFlags) -> anyhow::Result<u8> {
    let facts = Facts::of(&args.access)?;
    if let Facts::File(_) = facts {
        bail!("capture: a snapshot file holds no packets; leave out --snapshot");
    }
    if let Some(to) = args.write.as_deref().filter(|to| !is_stdout(to)) {
        writable(to)?;
    }
    let stop = Stop::listen();
    if args.destination.is_some() {
        return super::trace::capture(args, global, &stop).await;
    }
    let recording = Recording { args, stop: &stop };
    match &facts {
        Facts::File(_) => Ok(super::TOOL_FAILURE),
        Facts::Local => {
            let work = on_this_machine(&recording, Progress::new(global.verbose));
            Ok(match stop.cut(work).await {
                Err(signal) => super::interrupted(signal),
                Ok(done) => done?,
            })
        }
        Facts::Cluster(flags) => {
            let progress = Progress::new(global.verbose);
            let spec = cluster::parse(&args.place)?;
            let cluster = cluster::read(&global.connection, flags, &[&spec], progress).await?;
            let source = {
                let typed = cluster.kube.typed_flags.clone();
                let namespace = &cluster.kube.namespace;
                let ask = cluster::ask(&args.place, "", namespace, "capture", typed, None, None);
                resolve_place(&cluster.view, &ask)?.0
            };
            let (node, target) = dump::target(&source)?;
            let mut flags = flags.clone();
            flags.lasts = args.lasts();
            let launcher = Launcher::new(cluster.kube.clone(), flags.clone());
            if flags.dry_run {
                return plan::print(&launcher, &cluster, [node].into_iter());
            }
            let work = in_cluster(&recording, &launcher, &cluster, node, target, progress);
            recording.guarded(&launcher, work).await
        }
    }
}

async fn in_cluster(
    recording: &Recording<'_>,
    launcher: &Launcher,
    cluster: &Cluster,
    node: String,
    target: NsTarget,
    progress: Progress,
) -> anyhow::Result<u8> {
    let source = Source::Cluster {
        launcher,
        view: &cluster.view,
    };
    let topology = cluster::topology(&cluster.view, &cluster.names);
    let mut fleet = Fleet::new(source, topology, progress);
    let want = |target| Want::NetNs {
        target,
        depth: Depth::NoRules,
    };
    let wants = [want(target.clone()), want(NsTarget::Host)];
    fleet.ask([(node.clone(), wants.into())].into()).await;
    if let Some(why) = fleet.failure(&node) {
        bail!("{why}");
    }
    let Some(key) = fleet.topology.find(&node, &target) else {
        let absent = fleet.topology.absent.iter();
        let whys: Vec<&str> = absent.map(|(_, _, why)| why.as_str()).collect();
        bail!(
            "{}: its network namespace was not found: {}",
            recording.args.place,
            whys.join("; ")
        );
    };
    recording.place(fleet, &cluster.names, &key).await
}

async fn on_this_machine(recording: &Recording<'_>, progress: Progress) -> anyhow::Result<u8> {
    let node = local::host_name();
    let typed = &recording.args.place;
    let spec = parse_local(typed)?;
    let mut fleet = Fleet::new(Source::Local, Topology::default(), progress);
    let mut pid: Option<NetNsId> = None;
    if let EndSpec::Pid { pid: number, .. } = spec {
        pid = local::by_pid(&mut fleet, &node, number).await;
        local::found(typed, number, pid)?;
    }
    let wants: Wants = local::wants(&node, Depth::NoRules);
    fleet.ask(wants).await;
    if let Some(why) = fleet.failure(&node) {
        bail!("{why}");
    }
    let key = local::place(&fleet.topology, &node, typed, &spec, pid)?;
    recording.place(fleet, &Names::default(), &key).await
}

/// Signals: before packets are watched, one ends the program; afterwards the first one ends the capture, which then
/// is written to its last packet.
pub struct Stop {
    begun: AtomicBool,
    signals: watch::Receiver<Vec<Signal>>,
    ended: watch::Receiver<bool>,
    _keeps: watch::Sender<bool>,
}

impl Stop {
    /// Starts to listen.
    pub fn listen() -> Self {
        let (sender, signals) = watch::channel(Vec::new());
        let (ender, ended) = watch::channel(false);
        let mut heard = Signals::listen();
        let ending = ender.clone();
        tokio::spawn(async move {
            let mut last: Option<Instant> = None;
            loop {
                let signal = heard.next().await;
                // They come in bursts: `timeout` and terminals signal the process and its group.
                if last.is_none_or(|last| last.elapsed().as_millis() >= 1000) {
                    sender.send_modify(|all| all.push(signal));
                    ending.send_replace(true);
                }
                last = Some(Instant::now());
            }
        });
        Self {
            begun: AtomicBool::new(false),
            signals,
            ended,
            _keeps: ender,
        }
    }

    /// Does work until a signal comes that is not the one that ends a capture.
    pub async fn cut<T>(&self, work: impl Future<Output = T>) -> Result<T, Signal> {
        let mut signals = self.signals.clone();
        let signal = async {
            loop {
                let all = signals.borrow_and_update().clone();
                let patience = usize::from(self.begun.load(Ordering::Relaxed));
                if let (true, Some(last)) = (all.len() > patience, all.last()) {
                    return *last;
                }
                if signals.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            biased;
            signal = signal => Err(signal),
            done = work => Ok(done),
        }
    }
}

/// A capture to make.
pub struct Recording<'a> {
    /// What was typed.
    pub args: &'a CaptureArgs,
    /// What ends it.
    pub stop: &'a Stop,
}

/// Where predicted ways end before their destination, in words: devices behind are not on them.
fn ends_early(naming: &Naming<'_>, traces: &[&Trace]) -> BTreeSet<String> {
    let turns = traces
        .iter()
        .flat_map(|trace| points::turns(trace).enumerate());
    let early = turns.filter_map(|(turn, trace)| {
        let ns = &trace.hops.last()?.ns;
        let holders = naming.holders(trace.packet.innermost().dst);
        if trace.arrives() || holders.contains(ns) {
            return None;
        }
        let what = if turn % 2 == 0 {
            "the way"
        } else {
            "the answer's way"
        };
        let unknown = matches!(trace.disposition, Disposition::Inconclusive(_));
        let behind = if unknown && !holders.is_empty() {
            "behind it, only devices of the destination and of both nodes are watched"
        } else {
            "nothing behind it is captured; `capture POD` takes a pod's devices and its node's"
        };
        Some(format!(
            "{what} is predicted to end in {} ({}): {behind}",
            naming.text(&ns.to_string()),
            trace.disposition.name()
        ))
    });
    early.collect()
}

/// What must be read to watch where a way leads whose end can't be told: the destination's namespace, and its node's.
fn beyond(topology: &Topology, names: &Names, traces: &[&Trace]) -> Wants {
    let mut wants = Wants::new();
    for trace in traces.iter().flat_map(|trace| points::turns(trace)) {
        if !matches!(trace.disposition, Disposition::Inconclusive(_)) {
            continue;
        }
        let dst = trace.packet.innermost().dst;
        let pod = names.pod_by_ip(dst);
        let node = match (pod, names.node_by_ip(dst)) {
            (Some(pod), _) => pod.node.as_deref(),
            (None, node) => node.map(|node| node.name.as_str()),
        };
        let targets = [
            Some(NsTarget::Host),
            pod.map(|pod| NsTarget::PodUid(pod.uid.clone())),
        ];
        let Some(node) = node else {
            continue;
        };
        for target in targets.into_iter().flatten() {
            if topology.find(node, &target).is_none() {
                let depth = Depth::NoRules;
                let wanted = wants.entry(node.to_owned()).or_default();
                wanted.insert(Want::NetNs { target, depth });
            }
        }
    }
    wants
}

impl Recording<'_> {
    /// Work with helper pods, which go whatever becomes of it.
    pub async fn guarded(
        &self,
        launcher: &Launcher,
        work: impl Future<Output = anyhow::Result<u8>>,
    ) -> anyhow::Result<u8> {
        let (done, well) = match self.stop.cut(work).await {
            Ok(done) => {
                let well = done.is_ok();
                (done, well)
            }
            Err(signal) => (Ok(super::interrupted(signal)), false),
        };
        let (outcome, left) = guard(launcher, std::future::ready(done), |_| well).await;
        super::finish(outcome, &left)
    }

    async fn place(&self, fleet: Fleet<'_>, names: &Names, key: &NsKey) -> anyhow::Result<u8> {
        let filter = self.args.filter.as_deref();
        let points = with_naming(&fleet.topology, names, |naming| {
            if self.args.dropped {
                points::dropped_of_place(naming, key, filter)
            } else {
                points::of_place(naming, key, filter)
            }
        });
        let mut all = points.values().flatten();
        if all.any(|point| point.filter == points::WITHOUT_STREAM) {
            super::say(
                "tcp port 10250 is left out, the way of this stream; --filter '' takes it in, and more with each packet",
            );
        }
        self.record(fleet, names, points).await
    }

    /// At all hops of predicted traces and of their answers.
    pub async fn path(
        &self,
        mut fleet: Fleet<'_>,
        names: &Names,
        traces: &[&Trace],
    ) -> anyhow::Result<u8> {
        fleet.ask(beyond(&fleet.topology, names, traces)).await;
        let filter = self.args.filter.as_deref().unwrap_or_default();
        with_naming(&fleet.topology, names, |naming| {
            for why in ends_early(naming, traces) {
                super::say(&format!("warning: {why}"));
            }
        });
        let points = with_naming(&fleet.topology, names, |naming| {
            if self.args.dropped {
                points::dropped_of_path(naming, traces, filter)
            } else {
                points::of_path(naming, traces, filter)
            }
        });
        self.record(fleet, names, points).await
    }

    async fn record(
        &self,
        mut fleet: Fleet<'_>,
        names: &Names,
        points: Points,
    ) -> anyhow::Result<u8> {
        let args = self.args;
        if points.values().all(Vec::is_empty) {
            bail!("capture {}: there is no device to watch", args.place);
        }
        let file = args.write.is_some();
        let template = Watch {
            points: Vec::new(),
            snaplen: if args.payload { WHOLE } else { HEADERS },
            payload: args.payload,
            promiscuous: args.promiscuous,
            decoded: !file,
            bytes: file,
        };
        let opaque = with_naming(&fleet.topology, names, |naming| {
            points::opaque(naming, &points)
        });
        let watching = open(&mut fleet, points, &template).await?;
        let closed = watching.closed.iter().chain(&watching.untold);
        for why in closed.chain(&opaque) {
            super::say(&format!("warning: {why}"));
        }
        let spots = with_naming(&fleet.topology, names, |naming| {
            let spots = watching.spots.iter();
            spots.map(|spot| named(naming, spot)).collect::<Vec<_>>()
        });
        let devices = watching.spots.iter();
        let devices = devices.map(|spot| devices_of(&fleet.topology, spot));
        let devices = devices.collect();
        let mut sink = Out::new(args, &watching, (spots, devices), template.snaplen)?;
        self.stop.begun.store(true, Ordering::Relaxed);
        let count = watching.spots.len();
        super::say(&format!(
            "{}; Ctrl-C ends it{}",
            if args.dropped {
                format!("capturing what the kernel drops in {count} namespaces")
            } else {
                format!("capturing at {count} devices")
            },
            if args.payload {
                ""
            } else {
                " (headers only; --payload for all)"
            }
        ));
        sink.flush()?;
        // Ctrl-C may have come while devices were opened.
        let stop = self.stop.ended.clone();
        let lasts = Some(args.lasts());
        let (losses, wrong) = watch_all(&mut fleet, &watching, &mut sink, lasts, stop).await?;
        let written = sink.end(&losses)?;
        fleet.close().await;
        tell(written, &losses, &watching);
        Ok(
            if wrong.is_empty() && watching.closed.is_empty() && watching.untold.is_empty() {
                0
            } else {
                super::INCONCLUSIVE
            },
        )
    }
}

fn tell(written: u64, losses: &[Losses], watching: &Watching) {
    let lost: u64 = losses.iter().map(|one| u64::from(one.dropped)).sum();
    let received: u64 = losses.iter().map(|one| u64::from(one.received)).sum();
    super::say(&format!(
        "{written} packets written, {received} seen by the filters, {lost} lost by the kernels' buffers"
    ));
    for (spot, losses) in watching.spots.iter().zip(losses) {
        if losses.dropped > 0 || losses.if_dropped > 0 {
            super::say(&format!(
                "{} {}: {} of {} packets lost, {} more by the device; narrow --filter",
                spot.node, spot.point.dev, losses.dropped, losses.received, losses.if_dropped
            ));
        }
    }
}

fn with_naming<T>(topology: &Topology, names: &Names, work: impl FnOnce(&Naming<'_>) -> T) -> T {
    let chains = ChainNames::new();
    work(&Naming {
        topology,
        names,
        chains: &chains,
    })
}

/// A spot in words, for lines and for the file.
fn named(naming: &Naming<'_>, spot: &Spot) -> packets::Spot {
    let key = spot.key();
    packets::Spot {
        node: spot.node.clone(),
        netns: naming.netns(&key),
        dev: if spot.point.dropped {
            "dropped".to_owned()
        } else {
            spot.point.dev.clone()
        },
    }
}

/// Names of a namespace's devices by number, where packets of all of them are told.
fn devices_of(topology: &Topology, spot: &Spot) -> Devices {
    let key = spot.key();
    let ns = topology.netns(&key).filter(|_| spot.point.dropped);
    let links = ns.and_then(|ns| ns.links.known()).into_iter().flatten();
    links
        .map(|link| (link.index.get(), link.name.clone()))
        .collect()
}
