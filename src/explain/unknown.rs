//! What could not be read or decoded, and what was assumed instead of known.

use crate::model::want::NsTarget;
use crate::trace::{Disposition, Evidence, Trace};

use super::naming::Naming;

fn ways<'a>(traces: impl Iterator<Item = &'a Trace>) -> impl Iterator<Item = &'a Trace> {
    traces.flat_map(|trace| std::iter::successors(Some(trace), |way| way.reply.as_deref()))
}

/// Adds what is not there yet.
pub(super) fn push(list: &mut Vec<String>, text: String) {
    if !list.contains(&text) {
        list.push(text);
    }
}

/// What could not be read or decoded, and where, each once.
pub(super) fn unknown<'a>(
    naming: &Naming<'_>,
    traces: impl Iterator<Item = &'a Trace>,
) -> Vec<String> {
    let mut list = Vec::new();
    for way in ways(traces) {
        for hop in &way.hops {
            let place = format!("{} on {}", naming.netns(&hop.ns), hop.ns.node);
            for evidence in hop.steps.iter().flat_map(|step| &step.evidence) {
                if let Evidence::Unreadable { what } = evidence {
                    push(&mut list, format!("{} ({place})", naming.text(what)));
                }
                if let Evidence::Conntrack {
                    entry,
                    existing: true,
                } = evidence
                    && let Some(service) = naming.names.service_by_ip(entry.orig.dst)
                    && let Some(why) = &service.endpoints_unread
                {
                    push(
                        &mut list,
                        format!(
                            "whether {}, to which a conntrack entry leads, is an endpoint of {}/{}: its EndpointSlices could not be listed: {why} ({place})",
                            entry.reply.src, service.namespace, service.name
                        ),
                    );
                }
            }
            if let Some(ns) = naming.topology.netns(&hop.ns) {
                for (section, why) in ns.missing() {
                    push(&mut list, format!("{section} of {place}: {why}"));
                }
            }
        }
        if let Disposition::Inconclusive(missing) = &way.disposition {
            for what in missing {
                let what = naming.text(what);
                // A step has said the same, with its place.
                if !list.iter().any(|known| known.starts_with(&what)) {
                    push(&mut list, what);
                }
            }
        }
    }
    for (node, target, why) in &naming.topology.absent {
        let read = naming.topology.nodes.get(node);
        if *target == NsTarget::All && read.is_some_and(|node| !node.netns.is_empty()) {
            // There may be more namespaces than were found; one that the way needs is named by itself.
            continue;
        }
        let what = match target {
            NsTarget::Host => "its own namespace".to_owned(),
            NsTarget::PodUid(uid) => match naming.names.pod_by_uid(uid) {
                Some(pod) => format!("the namespace of pod {}/{}", pod.namespace, pod.name),
                None => format!("the namespace of the pod with uid {uid}"),
            },
            NsTarget::Id(id) => format!("namespace net:[{}]", id.ino),
            NsTarget::Pid(pid) => format!("the namespace of pid {pid}"),
            NsTarget::Named(name) => format!("namespace {name}"),
            NsTarget::All => "its namespaces".to_owned(),
        };
        push(&mut list, format!("{what} on {node}: {why}"));
    }
    list
}

/// What was taken to be so without a kernel object that says it, each once.
pub(super) fn assumed<'a>(
    naming: &Naming<'_>,
    traces: impl Iterator<Item = &'a Trace>,
) -> Vec<String> {
    let mut list = Vec::new();
    for way in ways(traces) {
        for step in way.hops.iter().flat_map(|hop| &hop.steps) {
            for evidence in &step.evidence {
                if let Evidence::Assumed { why } = evidence {
                    push(&mut list, naming.text(why));
                }
            }
        }
    }
    list
}
