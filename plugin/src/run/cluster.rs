//! What is asked of a cluster before and beside helpers: objects, names, and hints for the walk.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use netpath::model::names::Names;
use netpath::model::topology::{NodeHint, Topology};

use crate::kube_client::Kube;
use crate::kube_flags::ConnectionFlags;
use crate::launch::{HelperFlags, SETUP_LABEL};
use crate::resolve::fetch::{Scope, fetch, near};
use crate::resolve::{Ask, ClusterView, EndSpec, Family, Protocol};
use crate::resolve::{names::names, parse_end};

use super::progress::Progress;

/// A cluster that was read.
pub struct Cluster {
    /// The client.
    pub kube: Kube,
    /// Objects.
    pub view: ClusterView,
    /// The same as names.
    pub names: Names,
    /// What to read where the view is not of all that there is.
    rest: Option<Scope>,
}

impl Cluster {
    /// The same with all that there is; `None` where it is so already.
    pub async fn whole(&self, progress: Progress) -> anyhow::Result<Option<Self>> {
        let Some(scope) = &self.rest else {
            return Ok(None);
        };
        let kube = self.kube.clone();
        let view = progress
            .during("reading the cluster", Box::pin(fetch(&kube, scope)))
            .await?;
        let names = names(&view);
        Ok(Some(Self {
            kube,
            view,
            names,
            rest: None,
        }))
    }
}

/// Connects and reads what a question from one end to the other needs: by name where that does, else all.
pub async fn read_between(
    flags: &ConnectionFlags,
    helpers: &HelperFlags,
    ends: (&EndSpec, &EndSpec),
    progress: Progress,
) -> anyhow::Result<Cluster> {
    let kube = flags.connect().await?;
    let mut scope = Scope::of(&[ends.0, ends.1], &kube.namespace);
    scope.namespaces.extend(helpers.helper_namespace.clone());
    let namespace = helpers.helper_namespace.as_ref().unwrap_or(&kube.namespace);
    let warm = (namespace.as_str(), SETUP_LABEL);
    let reading = Box::pin(near(&kube, ends, warm));
    let mut cluster = Cluster {
        view: ClusterView::default(),
        names: Names::default(),
        rest: Some(scope),
        kube: kube.clone(),
    };
    match progress.during("reading the cluster", reading).await? {
        Some(view) => {
            cluster.names = names(&view);
            cluster.view = view;
            Ok(cluster)
        }
        None => Ok(cluster.whole(progress).await?.unwrap_or(cluster)),
    }
}

/// Connects and reads the objects that `ends` and helpers may need.
pub async fn read(
    flags: &ConnectionFlags,
    helpers: &HelperFlags,
    ends: &[&EndSpec],
    progress: Progress,
) -> anyhow::Result<Cluster> {
    let kube = flags.connect().await?;
    let mut scope = Scope::of(ends, &kube.namespace);
    // Warm helpers are there.
    scope.namespaces.extend(helpers.helper_namespace.clone());
    let view = progress
        // The six lists' requests are large to carry about.
        .during("reading the cluster", Box::pin(fetch(&kube, &scope)))
        .await?;
    let names = names(&view);
    Ok(Cluster {
        kube,
        view,
        names,
        rest: None,
    })
}

/// The question for the resolver.
pub fn ask(
    source: &str,
    destination: &str,
    namespace: &str,
    command: &str,
    flags: Vec<String>,
    protocol: Option<Protocol>,
    family: Option<Family>,
) -> Ask {
    Ask {
        source: source.to_owned(),
        destination: destination.to_owned(),
        namespace: namespace.to_owned(),
        protocol,
        family,
        command: format!("kubectl netpath {command}"),
        flags,
    }
}

/// Parses an end, with the error that names it.
pub fn parse(text: &str) -> anyhow::Result<EndSpec> {
    Ok(parse_end(text)?)
}

/// Facts from outside, for a topology whose kernels are not read yet.
pub fn topology(view: &ClusterView, names: &Names) -> Topology {
    let mut hints: BTreeMap<String, NodeHint> = BTreeMap::new();
    for node in &names.nodes {
        let hint = NodeHint {
            addresses: node.addresses.clone(),
            pod_cidrs: node.pod_cidrs.clone(),
            pod_ips: Vec::new(),
            // Until a helper was wanted there and could not be had: then it is known why.
            reachable: true,
        };
        hints.insert(node.name.clone(), hint);
    }
    for pod in &view.pods {
        let Some(node) = pod.node.clone().filter(|_| pod.running()) else {
            continue;
        };
        let hint = hints.entry(node).or_insert_with(|| NodeHint {
            // Nodes that may not be listed are known by their pods only.
            addresses: pod.host_ips.clone(),
            reachable: true,
            ..NodeHint::default()
        });
        if !pod.host_network {
            hint.pod_ips.extend(&pod.ips);
        }
    }
    let services = names.services.iter();
    Topology {
        hints,
        service_ips: services
            .flat_map(|svc| svc.cluster_ips.iter().chain(&svc.external_ips).copied())
            .collect(),
        unlisted: view
            .unread
            .iter()
            .map(|unread| format!("{} could not be listed: {}", unread.resource, unread.why))
            .collect(),
        ..Topology::default()
    }
}

/// All nodes that are known: where they could not be listed, those with pods.
pub fn nodes(cluster: &Cluster) -> BTreeSet<String> {
    let listed = cluster.names.nodes.iter().map(|node| &node.name);
    let mut nodes: BTreeSet<String> = listed.cloned().collect();
    if !cluster.view.knows("nodes", "") {
        let pods = cluster.view.pods.iter();
        nodes.extend(pods.filter_map(|pod| pod.node.clone()));
    }
    nodes
}

/// The nodes that were typed, or all where none was. Errors: one that is not there.
pub fn chosen(cluster: &Cluster, typed: &[String]) -> anyhow::Result<BTreeSet<String>> {
    let known = nodes(cluster);
    let mut nodes = BTreeSet::new();
    for typed in typed {
        let name = typed.strip_prefix("node/").unwrap_or(typed);
        if !known.contains(name) && cluster.view.knows("nodes", "") {
            bail!("{}", no_such_node(name, &known));
        }
        nodes.insert(name.to_owned());
    }
    Ok(if nodes.is_empty() { known } else { nodes })
}

/// That there is no such node, and which there are.
pub fn no_such_node(name: &str, known: &BTreeSet<String>) -> String {
    let list: Vec<&str> = known.iter().map(String::as_str).take(12).collect();
    format!(
        "node {name:?}: not found in the cluster; there are {}",
        list.join(", ")
    )
}

/// What of these resources could not be listed, a line each, for answers that are about the whole cluster.
pub fn unlisted(view: &ClusterView, resources: &[&str]) -> Vec<String> {
    let unread = view.unread.iter();
    let unread = unread.filter(|unread| resources.contains(&unread.resource.as_str()));
    unread
        .map(|unread| {
            let instead = match (unread.resource.as_str(), unread.read_instead.as_slice()) {
                ("nodes", _) => "those with pods were taken".to_owned(),
                (_, []) => "their names are missing".to_owned(),
                (_, some) => format!("only those in {} were", some.join(", ")),
            };
            format!(
                "not all {} could be listed, {instead} ({}; check: kubectl auth can-i list {} --all-namespaces)",
                unread.resource, unread.why, unread.resource
            )
        })
        .collect()
}
