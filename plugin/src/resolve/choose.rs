//! From typed ends and a [`ClusterView`] to objects: pure, so that every message can be tested.
//!
//! Here is what both ends share: looking names up, and the errors when that fails. The sides are in
//! [`super::source`] and [`super::destination`].

use std::net::IpAddr;

use super::ends::{Family, Resolved};
use super::error::{Choice, Choices, Error, nearest};
use super::objects::{ClusterView, NodeInfo, PodInfo, ServiceInfo};
use super::parse::{EndSpec, ObjectKind, Protocol, Reading, readings};
use crate::kube_flags::quoted;

/// What is asked: two ends and what was said about the flow.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Source as typed.
    pub source: String,
    /// Destination as typed.
    pub destination: String,
    /// Namespace for names without one.
    pub namespace: String,
    /// `--protocol`.
    pub protocol: Option<Protocol>,
    /// `-4` or `-6`.
    pub family: Option<Family>,
    /// How the ready-to-paste commands start, for instance `kubectl netpath trace`.
    pub command: String,
    /// Flags that the ready-to-paste commands repeat, for instance `-n shop --context blue`.
    pub flags: Vec<String>,
}

/// Which end of the flow a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Source,
    Destination,
}

/// The state of one resolution.
pub(super) struct Chooser<'a> {
    pub(super) view: &'a ClusterView,
    pub(super) ask: &'a Ask,
    pub(super) notes: Vec<String>,
}

/// Resolves both ends against what was read of the cluster.
///
/// Errors: see [`Error`]; a Service without ready endpoints is not one.
pub fn resolve(view: &ClusterView, ask: &Ask) -> Result<Resolved, Error> {
    let source_spec = super::parse::parse(&ask.source)?;
    let destination_spec = super::parse::parse(&ask.destination)?.of_sender(ask.family);
    let mut chooser = Chooser {
        view,
        ask,
        notes: Vec::new(),
    };
    let (source, source_port) = chooser.source(&source_spec)?;
    let target = chooser.destination(&destination_spec)?;
    if let super::ends::Source::Address { ip } = source {
        return Err(chooser.outside(ip, &target.destination));
    }
    chooser.flows(source, source_port, target)
}

/// Resolves the one end of `map`, `dump` and `capture`: a pod, a node, or an address of either.
///
/// Returns the source and the notes. Errors: as [`resolve`].
pub fn resolve_place(
    view: &ClusterView,
    ask: &Ask,
) -> Result<(super::ends::Source, Vec<String>), Error> {
    let spec = super::parse::parse(&ask.source)?;
    let mut chooser = Chooser {
        view,
        ask,
        notes: Vec::new(),
    };
    let (source, _) = chooser.source(&spec)?;
    Ok((source, chooser.notes))
}

impl<'a> Chooser<'a> {
    pub(super) fn typed(&self, side: Side) -> &'a str {
        match side {
            Side::Source => &self.ask.source,
            Side::Destination => &self.ask.destination,
        }
    }

    /// The command line with one end replaced, and more flags.
    pub(super) fn command(&self, side: Side, end: &str, more: &[&str]) -> String {
        let (source, destination) = match side {
            Side::Source => (end, self.ask.destination.as_str()),
            Side::Destination => (self.ask.source.as_str(), end),
        };
        let (source, destination) = (quoted(source), quoted(destination));
        let mut parts = vec![self.ask.command.as_str(), &source];
        if !self.ask.destination.is_empty() {
            parts.push(&destination);
        }
        parts.extend(self.ask.flags.iter().map(String::as_str));
        parts.extend(more);
        parts.join(" ")
    }

    pub(super) fn choice(&self, side: Side, end: &str, meaning: impl Into<String>) -> Choice {
        Choice {
            command: self.command(side, end, &[]),
            meaning: meaning.into(),
        }
    }

    /// An object as one types it: with its namespace only where that is not the default one.
    pub(super) fn spell(&self, kind: ObjectKind, namespace: &str, name: &str) -> String {
        if kind == ObjectKind::Node {
            return format!("node/{name}");
        }
        if namespace == self.ask.namespace {
            format!("{}/{name}", kind.short())
        } else {
            format!("{}/{name}.{namespace}", kind.short())
        }
    }

    pub(super) fn namespace_of<'r>(&'r self, reading: &'r Reading) -> &'r str {
        reading.namespace.as_deref().unwrap_or(&self.ask.namespace)
    }

    pub(super) fn node_or_stub(&self, name: &str, ips: &[IpAddr]) -> NodeInfo {
        self.view.node(name).cloned().unwrap_or_else(|| NodeInfo {
            name: name.to_owned(),
            ready: None,
            reason: None,
            network_unavailable: false,
            ips: ips.to_vec(),
            pod_cidrs: Vec::new(),
            os: String::new(),
            arch: String::new(),
            kernel: String::new(),
            zone: None,
            virtual_kubelet: false,
        })
    }

    /// Node by name, else as its pods tell where nodes could not be listed.
    pub(super) fn find_node(&self, name: &str) -> Option<NodeInfo> {
        self.view.node(name).cloned().or_else(|| {
            let pod = self
                .view
                .pods
                .iter()
                .find(|pod| pod.node.as_deref() == Some(name))?;
            Some(self.node_or_stub(name, &pod.host_ips))
        })
    }

    /// The pod that owns an address: not a finished one, and not one that borrows its node's.
    pub(super) fn pod_of_ip(&self, ip: IpAddr) -> Option<&'a PodInfo> {
        let alive = |pod: &&PodInfo| !pod.ended();
        self.view
            .pods
            .iter()
            .filter(|pod| !pod.host_network && pod.ips.contains(&ip))
            .filter(alive)
            .max_by_key(|pod| pod.running())
    }

    /// The node that owns an address.
    pub(super) fn node_of_ip(&self, ip: IpAddr) -> Option<NodeInfo> {
        let by_node = self
            .view
            .nodes
            .iter()
            .find(|node| node.ips.contains(&ip))
            .cloned();
        by_node.or_else(|| {
            let pod = self
                .view
                .pods
                .iter()
                .find(|pod| pod.host_ips.contains(&ip))?;
            let name = pod.node.as_deref()?;
            Some(self.node_or_stub(name, &pod.host_ips))
        })
    }

    /// All pods or Services that a name can mean, in the order of its readings.
    pub(super) fn pods_named(&self, readings: &[Reading]) -> Vec<&'a PodInfo> {
        readings
            .iter()
            .filter(|reading| reading.implies.is_none_or(|kind| kind == ObjectKind::Pod))
            .filter_map(|reading| self.view.pod(self.namespace_of(reading), &reading.name))
            .collect()
    }

    pub(super) fn services_named(&self, readings: &[Reading]) -> Vec<&'a ServiceInfo> {
        readings
            .iter()
            .filter(|reading| {
                reading
                    .implies
                    .is_none_or(|kind| kind == ObjectKind::Service)
            })
            .filter_map(|reading| self.view.service(self.namespace_of(reading), &reading.name))
            .collect()
    }

    /// A pod that has a network namespace and an address.
    pub(super) fn running(&mut self, pod: &PodInfo) -> Result<PodInfo, Error> {
        let phase = match (pod.running(), pod.node.is_some(), pod.ips.is_empty()) {
            (true, true, false) => {
                if pod.terminating {
                    self.notes
                        .push(format!("pod {} is being deleted", pod.path()));
                } else if !pod.ready {
                    let why = pod.reason.as_deref().unwrap_or("no reason given");
                    self.notes
                        .push(format!("pod {} runs but is not ready ({why})", pod.path()));
                }
                return Ok(pod.clone());
            }
            (true, _, true) => "Running, but it has no address yet".to_owned(),
            (true, false, _) => "Running, but on no node".to_owned(),
            (false, ..) if pod.phase.is_empty() => "unknown".to_owned(),
            (false, ..) => pod.phase.clone(),
        };
        Err(Error::PodNotRunning {
            pod: pod.path(),
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            phase,
            reason: pod.reason.clone(),
        })
    }

    /// A ready pod of a workload, chosen by name so that the same question gives the same pod.
    pub(super) fn pod_of_workload(
        &mut self,
        side: Side,
        kind: ObjectKind,
        readings: &[Reading],
        port: &str,
    ) -> Result<PodInfo, Error> {
        let found = readings.iter().find_map(|reading| {
            let namespace = self.namespace_of(reading);
            self.view
                .workloads
                .iter()
                .find(|w| w.kind == kind && w.name == reading.name && w.namespace == namespace)
        });
        let Some(workload) = found else {
            return Err(self.not_found(side, &[kind], readings, port));
        };
        let owned = |pod: &&PodInfo| {
            let Some((owner_kind, owner)) = &pod.owner else {
                return false;
            };
            match kind {
                // A Deployment owns pods through ReplicaSets called NAME-HASH.
                ObjectKind::Deployment => {
                    owner_kind == "ReplicaSet"
                        && owner
                            .strip_prefix(workload.name.as_str())
                            .is_some_and(|rest| rest.starts_with('-'))
                }
                _ => owner_kind == kind.api_kind() && *owner == workload.name,
            }
        };
        let mut pods: Vec<&PodInfo> = self
            .view
            .pods
            .iter()
            .filter(|pod| pod.namespace == workload.namespace)
            .filter(|pod| pod.has_labels(&workload.match_labels))
            .filter(owned)
            .collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        let ready: Vec<&&PodInfo> = pods
            .iter()
            .filter(|pod| pod.ready && pod.running() && !pod.terminating)
            .collect();
        let spelled = format!(
            "{}/{} in namespace {}",
            kind.short(),
            workload.name,
            workload.namespace
        );
        if let Some(pod) = ready.first() {
            self.notes.push(format!(
                "{}/{}: pod {} on {} chosen, one of {} ready",
                kind.short(),
                workload.name,
                pod.name,
                pod.node.as_deref().unwrap_or("no node"),
                ready.len()
            ));
            let chosen = PodInfo::clone(pod);
            return self.running(&chosen);
        }
        if pods.is_empty() && !self.view.knows("pods", &workload.namespace) {
            return Err(self.unreadable(side, "pods"));
        }
        let mut lines = String::new();
        let mut choices = Vec::new();
        for pod in &pods {
            let why = pod
                .reason
                .as_deref()
                .map(|r| format!(" ({r})"))
                .unwrap_or_default();
            lines = format!("{lines}\n  pod {} {}{why}", pod.name, pod.phase);
            if pod.running() {
                let end = format!(
                    "{}{port}",
                    self.spell(ObjectKind::Pod, &pod.namespace, &pod.name)
                );
                choices.push(self.choice(side, &end, "runs, not ready"));
            }
        }
        if pods.is_empty() && workload.replicas == Some(0) {
            lines.push_str("; it is scaled to zero");
        }
        Err(Error::NoReadyPod {
            workload: spelled,
            count: pods.len(),
            pods: lines,
            choices: Choices(choices),
        })
    }

    /// The error for a name that nothing carries: an unknown namespace, an unreadable kind, or the
    /// nearest names.
    pub(super) fn not_found(
        &self,
        side: Side,
        kinds: &[ObjectKind],
        readings: &[Reading],
        port: &str,
    ) -> Error {
        for kind in kinds {
            for reading in readings {
                let namespace = reading.namespace.as_deref().unwrap_or(&self.ask.namespace);
                if !self.view.knows(kind.plural(), namespace) && self.exists(namespace) {
                    return self.unreadable(side, kind.plural());
                }
            }
        }
        // The first reading whose namespace exists is the one that was meant.
        let meant = readings
            .iter()
            .find(|r| self.exists(r.namespace.as_deref().unwrap_or(&self.ask.namespace)));
        let Some(meant) = meant.filter(|_| !self.wrong_namespace(side, readings)) else {
            let first = readings.first();
            let namespace = first
                .and_then(|r| r.namespace.as_deref())
                .unwrap_or(&self.ask.namespace);
            let name = first.map_or("", |r| r.name.as_str());
            let near = nearest(namespace, self.view.namespaces.iter().map(String::as_str));
            let kind = kinds.first().map_or("pod", |k| k.short());
            let near = near
                .into_iter()
                .map(|near| format!("{kind}/{name}.{near}{port}"));
            // `NAMESPACE/NAME` may be a slip of `TYPE/NAME`.
            let slip = self.typed(side).contains('/') && readings.len() > 1;
            let types = ["pod", "svc", "deploy", "sts", "ds", "rs", "node"];
            let types = nearest(namespace, types.into_iter().filter(|_| slip));
            let nearest = types
                .into_iter()
                .map(|kind| format!("{kind}/{name}{port}"))
                .chain(near)
                .map(|end| self.choice(side, &end, ""))
                .collect();
            return Error::NoSuchNamespace {
                end: self.typed(side).to_owned(),
                namespace: namespace.to_owned(),
                nearest: Choices(nearest),
            };
        };
        let namespace = meant.namespace.as_deref().unwrap_or(&self.ask.namespace);
        let mut choices = Vec::new();
        // `TYPE/NAME` was read, `NAMESPACE/NAME` may have been meant: some namespace may be called `svc`.
        if let Some((head, _)) = self.typed(side).split_once('/') {
            let name = meant.name.as_str();
            if self.view.service(head, name).is_some() && side == Side::Destination {
                let end = format!("svc/{name}.{head}{port}");
                choices.push(self.choice(side, &end, format!("Service {head}/{name}")));
            }
            if self.view.pod(head, name).is_some() {
                let end = format!("pod/{name}.{head}{port}");
                choices.push(self.choice(side, &end, format!("pod {head}/{name}")));
            }
        }
        for kind in kinds {
            for (near_namespace, near) in self.near(*kind, namespace, &meant.name) {
                let end = format!("{}{port}", self.spell(*kind, near_namespace, near));
                choices.push(self.choice(side, &end, ""));
            }
        }
        choices.truncate(5);
        let words: Vec<&str> = kinds
            .iter()
            .map(|kind| match kind {
                ObjectKind::Pod => "pod",
                ObjectKind::Node => "node",
                other => other.api_kind(),
            })
            .collect();
        Error::NotFound {
            what: words.join(" or "),
            name: meant.name.clone(),
            place: if kinds == [ObjectKind::Node] {
                "the cluster".to_owned()
            } else {
                format!("namespace {namespace}")
            },
            nearest: Choices(choices),
        }
    }

    /// `SOMETHING/NAME`, or `NAME.SOMETHING` where SOMETHING is nearly a namespace's name, while there is
    /// no such namespace.
    fn wrong_namespace(&self, side: Side, readings: &[Reading]) -> bool {
        let namespace = readings.first().and_then(|r| r.namespace.as_deref());
        let head = self.typed(side).split_once('/').map(|(head, _)| head);
        namespace.is_some_and(|namespace| {
            let near = || nearest(namespace, self.view.namespaces.iter().map(String::as_str));
            !self.exists(namespace) && (head == Some(namespace) || !near().is_empty())
        })
    }

    /// Whether a namespace exists; true where namespaces could not be listed.
    fn exists(&self, namespace: &str) -> bool {
        self.view.namespaces.is_empty() || self.view.namespaces.iter().any(|n| n == namespace)
    }

    fn near(&self, kind: ObjectKind, namespace: &str, name: &str) -> Vec<(&'a str, &'a str)> {
        let all: Vec<(&'a str, &'a str)> = match kind {
            ObjectKind::Pod => self
                .view
                .pods
                .iter()
                .map(|p| (p.namespace.as_str(), p.name.as_str()))
                .collect(),
            ObjectKind::Service => self
                .view
                .services
                .iter()
                .map(|s| (s.namespace.as_str(), s.name.as_str()))
                .collect(),
            ObjectKind::Node => self
                .view
                .nodes
                .iter()
                .map(|n| ("", n.name.as_str()))
                .collect(),
            workload => self
                .view
                .workloads
                .iter()
                .filter(|w| w.kind == workload)
                .map(|w| (w.namespace.as_str(), w.name.as_str()))
                .collect(),
        };
        let same_name = all.iter().filter(|(_, other)| *other == name).copied();
        let here = |place: &str| kind == ObjectKind::Node || place == namespace;
        let close = nearest(name, all.iter().filter(|(p, _)| here(p)).map(|(_, n)| *n));
        let place = all.iter().find(|(p, _)| here(p)).map_or("", |(p, _)| *p);
        let mut found: Vec<(&str, &str)> = same_name.collect();
        found.extend(close.into_iter().map(|n| (place, n)));
        found.truncate(3);
        found
    }

    pub(super) fn unreadable(&self, side: Side, resource: &str) -> Error {
        let why = self
            .view
            .unread
            .iter()
            .find(|unread| unread.resource == resource)
            .map_or("not read", |unread| unread.why.as_str());
        Error::Unreadable {
            end: self.typed(side).to_owned(),
            resource: resource.to_owned(),
            why: why.to_owned(),
        }
    }

    /// Refuses ends that only `--local` knows.
    pub(super) fn local_only(&self, side: Side) -> Error {
        Error::Unfit {
            end: self.typed(side).to_owned(),
            why: "this end exists with --local only".to_owned(),
            choices: Choices::default(),
        }
    }

    /// `:PORT` as typed, or nothing.
    pub(super) fn port_text(spec: &EndSpec) -> String {
        spec.port()
            .map(|port| format!(":{port}"))
            .unwrap_or_default()
    }

    pub(super) fn readings_of(name: &str) -> Vec<Reading> {
        readings(name)
    }
}
