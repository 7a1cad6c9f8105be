//! `cleanup`: removes helper pods that a killed client left, and warm ones.

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;

use super::manifest::{MANAGED_LABEL, NAME_LABEL, USER_LABEL};
use super::pods::user_hash;
use super::removal::{delete_pod, deleting};
use crate::kube_client::Kube;
use crate::kube_error::{ApiError, Doing, Refusal};

/// Which helper pods to remove.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CleanupScope {
    /// Only here; `None` looks in all namespaces, or in the current one where that is refused.
    pub namespace: Option<String>,
    /// Where to look if not everywhere is allowed; `None` is the current namespace.
    pub usual: Option<String>,
    /// Those of other users too.
    pub all_users: bool,
    /// Only list them.
    pub dry_run: bool,
}

/// A helper pod that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cleaned {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Node; empty if it has none.
    pub node: String,
    /// `status.phase`: finished ones are listed too.
    pub phase: String,
    /// Who started it, as its annotation says.
    pub user: String,
    /// Whether it is gone, or why not. With `dry_run` always `Ok(false)`.
    pub removed: Result<bool, ApiError>,
}

/// Finds and removes helper pods. The second value is the namespace that was searched, if not all.
///
/// Errors: the list is refused everywhere, or the server cannot be reached.
pub async fn cleanup(
    kube: &Kube,
    scope: &CleanupScope,
) -> Result<(Vec<Cleaned>, Option<String>), ApiError> {
    let mut selector = format!(
        "{}={},{}={}",
        NAME_LABEL.0, NAME_LABEL.1, MANAGED_LABEL.0, MANAGED_LABEL.1
    );
    if !scope.all_users {
        selector = format!("{selector},{USER_LABEL}={}", user_hash(kube));
    }
    let mut searched = scope.namespace.clone();
    let found = match list(kube, searched.as_deref(), &selector).await {
        Err(error) if error.refusal == Refusal::Forbidden && searched.is_none() => {
            let usual = scope.usual.as_ref().unwrap_or(&kube.namespace);
            searched = Some(usual.clone());
            list(kube, searched.as_deref(), &selector).await?
        }
        other => other?,
    };
    let cleaned = join_all(found.into_iter().map(async |pod| {
        let namespace = pod.metadata.namespace.unwrap_or_default();
        let name = pod.metadata.name.unwrap_or_default();
        let removed = if scope.dry_run {
            Ok(false)
        } else {
            let doing = deleting(&namespace).named(&name);
            delete_pod(kube, &doing, &namespace, &name).await
        };
        Cleaned {
            node: pod.spec.and_then(|spec| spec.node_name).unwrap_or_default(),
            phase: pod
                .status
                .and_then(|status| status.phase)
                .unwrap_or_default(),
            user: pod
                .metadata
                .annotations
                .and_then(|mut all| all.remove("kubectl-netpath/user-name"))
                .unwrap_or_default(),
            // Gone already is as good.
            removed: removed.map(|_| !scope.dry_run),
            namespace,
            name,
        }
    }))
    .await;
    Ok((cleaned, searched))
}

async fn list(kube: &Kube, namespace: Option<&str>, selector: &str) -> Result<Vec<Pod>, ApiError> {
    let api: Api<Pod> = match namespace {
        Some(namespace) => Api::namespaced(kube.client.clone(), namespace),
        None => Api::all(kube.client.clone()),
    };
    let doing = Doing::new("list", "pods", namespace);
    let params = ListParams::default().labels(selector);
    Ok(kube.ask(&doing, api.list(&params)).await?.items)
}
