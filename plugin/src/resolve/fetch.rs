//! Reads what the ends may need from the API: every list at once, each cluster-wide if allowed, else
//! in the namespaces that the ends name.

use std::collections::BTreeSet;

use futures::future::{join_all, try_join_all};
use kube::api::ListParams;
use kube::core::Request;
use serde::de::DeserializeOwned;

use super::objects::{ClusterView, NodeInfo, PodInfo, ServiceKind, Unread};
use super::parse::{EndSpec, ObjectKind, readings};
use super::wire;
use crate::kube_client::Kube;
use crate::kube_error::{ApiError, Doing, Refusal};

/// What to read.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// Workload kinds that the ends name.
    pub workloads: BTreeSet<ObjectKind>,
    /// Namespaces that the ends may mean, for when whole-cluster lists are refused.
    pub namespaces: BTreeSet<String>,
    /// Nodes that the ends name, likewise.
    pub nodes: BTreeSet<String>,
    /// Pods or Services that the ends may mean, as (kind, namespace, name), likewise; no kind is either.
    pub names: BTreeSet<(Option<ObjectKind>, String, String)>,
}

impl Scope {
    /// The scope of some ends, with the default namespace.
    pub fn of(ends: &[&EndSpec], namespace: &str) -> Self {
        let mut scope = Self::default();
        scope.namespaces.insert(namespace.to_owned());
        for end in ends {
            let mut meant = None;
            let name = match end {
                EndSpec::Object { kind, name, .. } => {
                    meant = *kind;
                    match kind {
                        Some(ObjectKind::Node) => {
                            scope.nodes.insert(name.clone());
                            continue;
                        }
                        Some(kind) if kind.is_workload() => {
                            scope.workloads.insert(*kind);
                        }
                        _ => {}
                    }
                    name
                }
                EndSpec::Url { host, .. } => host,
                _ => continue,
            };
            for reading in readings(name) {
                let within = reading.namespace.as_deref().unwrap_or(namespace).to_owned();
                let kind = reading.implies.or(meant);
                if matches!(kind, None | Some(ObjectKind::Pod | ObjectKind::Service)) {
                    scope.names.insert((kind, within, reading.name));
                }
                scope.namespaces.extend(reading.namespace);
            }
        }
        scope
    }
}

/// Most pods that are asked for one by one.
const MOST_NAMES: usize = 32;

/// One list that was asked for.
struct Listed<T> {
    items: Vec<T>,
    unread: Option<Unread>,
}

/// Reads the cluster for `scope`.
///
/// A refused list is noted in [`ClusterView::unread`]. Errors: the server cannot be reached, the user
/// is not logged in, or a request fails for a reason other than missing rights.
pub async fn fetch(kube: &Kube, scope: &Scope) -> Result<ClusterView, ApiError> {
    let core = "/api/v1";
    let discovery = "/apis/discovery.k8s.io/v1";
    let workloads = try_join_all(scope.workloads.iter().map(async |kind| {
        let listed =
            list::<wire::Workload>(kube, scope, "/apis/apps/v1", kind.plural(), true).await?;
        Ok::<_, ApiError>((*kind, listed))
    }));
    let (pods, services, slices, nodes, namespaces, workloads) = futures::try_join!(
        list::<wire::Pod>(kube, scope, core, "pods", true),
        list::<wire::Service>(kube, scope, core, "services", true),
        list::<wire::EndpointSlice>(kube, scope, discovery, "endpointslices", true),
        list::<wire::Node>(kube, scope, core, "nodes", false),
        list::<wire::Namespace>(kube, scope, core, "namespaces", false),
        workloads,
    )?;
    let mut view = ClusterView {
        pods: pods.items.into_iter().map(Into::into).collect(),
        services: services.items.into_iter().map(Into::into).collect(),
        endpoints: wire::gather_slices(slices.items),
        nodes: nodes.items.into_iter().map(Into::into).collect(),
        namespaces: namespaces
            .items
            .into_iter()
            .map(wire::Namespace::into_name)
            .collect(),
        ..ClusterView::default()
    };
    // Namespaces only serve better messages: not being allowed to list them is no loss.
    view.unread.extend(
        [pods.unread, services.unread, slices.unread]
            .into_iter()
            .flatten(),
    );
    for (kind, listed) in workloads {
        view.workloads
            .extend(listed.items.into_iter().map(|w| w.into_info(kind)));
        view.unread.extend(listed.unread);
    }
    let named = futures::try_join!(
        by_name::<wire::Pod>(kube, scope, ObjectKind::Pod, &view),
        by_name::<wire::Service>(kube, scope, ObjectKind::Service, &view),
    )?;
    view.pods.extend(named.0.into_iter().map(Into::into));
    view.services.extend(named.1.into_iter().map(Into::into));
    if let Some(unread) = nodes.unread {
        let known = nodes_one_by_one(kube, scope, &view).await?;
        let read_instead = known.iter().map(|node| node.name.clone()).collect();
        view.nodes = known;
        view.unread.push(Unread {
            read_instead,
            ..unread
        });
    }
    Ok(view)
}

/// Reads what a question from a pod or node to a Service or pod needs, all of it by name or by the labels that
/// tie endpoints and pods to a Service: little, however much the cluster holds. `helpers`: where helpers run,
/// and the label that all of them have.
///
/// `None`: the ends need lists, or the user may not read one of these; [`fetch`] says what that is. Errors: as
/// there.
pub async fn near(
    kube: &Kube,
    ends: (&EndSpec, &EndSpec),
    helpers: (&str, &str),
) -> Result<Option<ClusterView>, ApiError> {
    match read_near(kube, ends, helpers).await {
        Err(error) if error.refusal == Refusal::Forbidden => Ok(None),
        other => other,
    }
}

async fn read_near(
    kube: &Kube,
    (source, destination): (&EndSpec, &EndSpec),
    helpers: (&str, &str),
) -> Result<Option<ClusterView>, ApiError> {
    let by_name = |end: &EndSpec, node: bool| match end {
        EndSpec::Object { kind, .. } => match kind {
            None | Some(ObjectKind::Pod | ObjectKind::Service) => true,
            Some(kind) => node && *kind == ObjectKind::Node,
        },
        _ => false,
    };
    if !by_name(source, true) || !by_name(destination, false) {
        return Ok(None);
    }
    let scope = Scope::of(&[source, destination], &kube.namespace);
    let labelled = |key: String| ListParams::default().labels(&key);
    let (core, nodes) = ("/api/v1", ListParams::default());
    let warm = labelled(helpers.1.to_owned());
    let (nodes, warm, pods, services) = futures::try_join!(
        get_list::<wire::Node>(kube, core, "nodes", None, &nodes),
        get_list::<wire::Pod>(kube, core, "pods", Some(helpers.0), &warm),
        get_named::<wire::Pod>(kube, &scope, ObjectKind::Pod),
        get_named::<wire::Service>(kube, &scope, ObjectKind::Service),
    )?;
    let mut view = ClusterView {
        nodes: nodes.into_iter().map(Into::into).collect(),
        pods: pods.into_iter().chain(warm).map(Into::into).collect(),
        services: services.into_iter().map(Into::into).collect(),
        ..ClusterView::default()
    };
    let behind = try_join_all(view.services.iter().map(async |service| {
        let namespace = Some(service.namespace.as_str());
        let slices = labelled(format!("kubernetes.io/service-name={}", service.name));
        let selector = service.selector.iter();
        let selector: Vec<String> = selector
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let discovery = "/apis/discovery.k8s.io/v1";
        let pods = labelled(selector.join(","));
        futures::try_join!(
            get_list::<wire::EndpointSlice>(kube, discovery, "endpointslices", namespace, &slices),
            async {
                if selector.is_empty() {
                    return Ok(Vec::new());
                }
                get_list::<wire::Pod>(kube, core, "pods", namespace, &pods).await
            },
        )
    }))
    .await?;
    // What leads out of the cluster or to another Service is looked up among all.
    let kinds = view.services.iter().map(|service| service.kind);
    if kinds
        .into_iter()
        .any(|kind| kind == ServiceKind::ExternalName)
    {
        return Ok(None);
    }
    let (mut slices, mut pods) = (Vec::new(), Vec::new());
    for (more, selected) in behind {
        slices.extend(more);
        pods.extend(selected.into_iter().map(PodInfo::from));
    }
    view.endpoints = wire::gather_slices(slices);
    for pod in pods {
        if view.pod(&pod.namespace, &pod.name).is_none() {
            view.pods.push(pod);
        }
    }
    // Slices may name pods that no selector does.
    let endpoints = view.endpoints.iter().flat_map(|set| &set.endpoints);
    let mut scope = Scope::default();
    for endpoint in endpoints {
        let Some((namespace, name)) = &endpoint.pod else {
            return Ok(None);
        };
        if view.pod(namespace, name).is_none() {
            let name = (Some(ObjectKind::Pod), namespace.clone(), name.clone());
            scope.names.insert(name);
        }
    }
    if scope.names.len() > MOST_NAMES {
        return Ok(None);
    }
    let named = get_named::<wire::Pod>(kube, &scope, ObjectKind::Pod).await?;
    view.pods.extend(named.into_iter().map(Into::into));
    Ok(Some(view))
}

/// Objects of a kind that the ends may mean, those that there are. Listed by name, which takes no other right
/// than listing all does.
async fn get_named<T: DeserializeOwned>(
    kube: &Kube,
    scope: &Scope,
    wanted: ObjectKind,
) -> Result<Vec<T>, ApiError> {
    let names = scope.names.iter();
    let meant = names.filter(|(kind, ..)| kind.is_none_or(|kind| kind == wanted));
    let found = try_join_all(meant.map(async |(_, namespace, name)| {
        let which = ListParams::default().fields(&format!("metadata.name={name}"));
        get_list(kube, "/api/v1", wanted.plural(), Some(namespace), &which).await
    }));
    Ok(found.await?.into_iter().flatten().collect())
}

async fn get<T: DeserializeOwned>(
    kube: &Kube,
    kind: ObjectKind,
    namespace: &str,
    name: &str,
) -> Result<T, ApiError> {
    let plural = kind.plural();
    let doing = Doing::new("get", plural, Some(namespace)).named(name);
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/{plural}"))
        .get(name, &kube::api::GetParams::default())
        .map_err(|error| kube.explain(&doing, &kube::Error::BuildRequest(error)))?;
    kube.ask(&doing, kube.client.request::<T>(request)).await
}

async fn get_list<T: DeserializeOwned>(
    kube: &Kube,
    group: &str,
    plural: &'static str,
    namespace: Option<&str>,
    which: &ListParams,
) -> Result<Vec<T>, ApiError> {
    let path = match namespace {
        Some(namespace) => format!("{group}/namespaces/{namespace}/{plural}"),
        None => format!("{group}/{plural}"),
    };
    let doing = Doing::new("list", plural, namespace);
    let request = Request::new(path)
        .list(which)
        .map_err(|error| kube.explain(&doing, &kube::Error::BuildRequest(error)))?;
    let list: wire::List<T> = kube.ask(&doing, kube.client.request(request)).await?;
    Ok(list.items)
}

async fn list<T: DeserializeOwned>(
    kube: &Kube,
    scope: &Scope,
    group: &str,
    plural: &'static str,
    namespaced: bool,
) -> Result<Listed<T>, ApiError> {
    let every = ListParams::default();
    let refused = match get_list(kube, group, plural, None, &every).await {
        Ok(items) => {
            return Ok(Listed {
                items,
                unread: None,
            });
        }
        Err(error) if error.refusal == Refusal::Forbidden => error,
        Err(error) => return Err(error),
    };
    let mut unread = Unread {
        resource: plural.to_owned(),
        read_instead: Vec::new(),
        why: refused.said,
    };
    let mut items = Vec::new();
    if namespaced {
        let answers = join_all(scope.namespaces.iter().map(async |namespace| {
            (
                namespace,
                get_list::<T>(kube, group, plural, Some(namespace), &every).await,
            )
        }))
        .await;
        for (namespace, answer) in answers {
            match answer {
                Ok(found) => {
                    items.extend(found);
                    unread.read_instead.push(namespace.clone());
                }
                Err(error) if error.refusal == Refusal::Forbidden => unread.why = error.said,
                Err(error) => return Err(error),
            }
        }
    }
    Ok(Listed {
        items,
        unread: Some(unread),
    })
}

/// Objects that the ends name, for users who may get but not list them; those refused are left out.
async fn by_name<T: DeserializeOwned>(
    kube: &Kube,
    scope: &Scope,
    wanted: ObjectKind,
    view: &ClusterView,
) -> Result<Vec<T>, ApiError> {
    let plural = wanted.plural();
    let meant = scope.names.iter().filter(|(kind, namespace, _)| {
        kind.is_none_or(|kind| kind == wanted) && !view.knows(plural, namespace)
    });
    let answers = meant.map(|(_, namespace, name)| get(kube, wanted, namespace, name));
    let answers = join_all(answers).await;
    let mut found = Vec::new();
    for answer in answers {
        match answer {
            Ok(object) => found.push(object),
            Err(error) if matches!(error.refusal, Refusal::Forbidden | Refusal::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// Nodes by name, for users who may get but not list them; those refused are left out.
async fn nodes_one_by_one(
    kube: &Kube,
    scope: &Scope,
    view: &ClusterView,
) -> Result<Vec<NodeInfo>, ApiError> {
    // Bounded: a whole cluster's nodes one by one would be a flood of requests.
    const MOST: usize = 32;
    let in_scope = view
        .pods
        .iter()
        .filter(|pod| scope.namespaces.contains(&pod.namespace));
    let mut names: BTreeSet<&str> = in_scope.filter_map(|pod| pod.node.as_deref()).collect();
    names.extend(scope.nodes.iter().map(String::as_str));
    let answers = join_all(names.into_iter().take(MOST).map(async |name| {
        let doing = Doing::new("get", "nodes", None).named(name);
        let request = Request::new("/api/v1/nodes")
            .get(name, &kube::api::GetParams::default())
            .map_err(|error| kube.explain(&doing, &kube::Error::BuildRequest(error)))?;
        kube.ask(&doing, kube.client.request::<wire::Node>(request))
            .await
    }))
    .await;
    let mut nodes = Vec::new();
    for answer in answers {
        match answer {
            Ok(node) => nodes.push(node.into()),
            Err(error) if matches!(error.refusal, Refusal::Forbidden | Refusal::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(nodes)
}
