//! Why no helper could be had on a node, each with what to ask for.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::Api;
use kube::api::PostParams;

use super::session::SessionError;
use crate::kube_client::Kube;
use crate::kube_error::{ApiError, Doing};

/// Why there is no helper on a node.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The API refused a request or could not be reached.
    #[error(transparent)]
    Api(#[from] ApiError),
    /// The node cannot run it.
    #[error("node {node}: cannot run a helper: {cause}; {remedy}")]
    Node {
        /// Node name.
        node: String,
        /// Its condition.
        cause: String,
        /// What to do.
        remedy: String,
    },
    /// The image cannot be had there.
    #[error("node {node}: cannot get the helper image {image:?}: {reason}{}; use --image with one that the node can pull (--image-pull-secret for a private registry)", colon(.message))]
    Image {
        /// Node name.
        node: String,
        /// Image reference.
        image: String,
        /// The kubelet's reason, for instance ImagePullBackOff.
        reason: String,
        /// Its message.
        message: String,
    },
    /// The pod ended or cannot start.
    #[error("node {node}: helper pod {pod} cannot run: {reason}{}; {remedy}", colon(.message))]
    Pod {
        /// Node name.
        node: String,
        /// `namespace/name`.
        pod: String,
        /// The kubelet's reason.
        reason: String,
        /// Its message.
        message: String,
        /// What to do.
        remedy: String,
    },
    /// It did not start in time.
    #[error(
        "node {node}: helper pod {pod} did not start within {seconds}s: {last}; look at kubectl describe node {node}, or raise --launch-timeout"
    )]
    Slow {
        /// Node name.
        node: String,
        /// `namespace/name`.
        pod: String,
        /// Seconds waited.
        seconds: u64,
        /// Last state seen.
        last: String,
    },
    /// The exec connection could not be made.
    #[error("exec in pod {pod}: {cause}; {remedy}")]
    Exec {
        /// `namespace/name`.
        pod: String,
        /// What went wrong.
        cause: String,
        /// What to do.
        remedy: String,
    },
    /// The local helper cannot be started.
    #[error("start the helper {program}: {cause}; {remedy}")]
    Local {
        /// Program.
        program: String,
        /// What went wrong.
        cause: String,
        /// What to do.
        remedy: String,
    },
    /// It was started, but does not answer as it should.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A helper pod that could not be taken away.
    #[error("remove {pods}: {cause}; run {command}")]
    LeftBehind {
        /// Each as `helper pod NAMESPACE/NAME from node NODE`.
        pods: String,
        /// What removes them.
        command: String,
        /// Why.
        cause: String,
    },
}

fn colon(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

/// Asks the server whether this user has a right.
///
/// Errors: the review itself is refused or fails.
pub async fn allowed(kube: &Kube, doing: &Doing) -> Result<bool, ApiError> {
    let (resource, subresource) = match doing.resource.split_once('/') {
        Some((resource, sub)) => (resource, Some(sub.to_owned())),
        None => (doing.resource, None),
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                verb: Some(doing.verb.to_owned()),
                resource: Some(resource.to_owned()),
                subresource,
                namespace: doing.namespace.clone(),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(kube.client.clone());
    let asking = Doing::new("create", "selfsubjectaccessreviews", None);
    let answer = kube
        .ask(&asking, api.create(&PostParams::default(), &review))
        .await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

/// A refused upgrade often carries a status code but no text, so the cause is found by asking again.
pub(super) async fn upgrade_refused(
    kube: &Kube,
    namespace: &str,
    pod: &str,
    code: u16,
    said: &str,
) -> LaunchError {
    let path = format!("{namespace}/{pod}");
    let exec = |cause: String, remedy: &str| LaunchError::Exec {
        pod: path.clone(),
        cause,
        remedy: remedy.to_owned(),
    };
    match code {
        401 => exec(
            "not logged in".to_owned(),
            "log in again, then check with kubectl auth whoami",
        ),
        403 => {
            let mut missing = Vec::new();
            let mut unsure = None;
            for verb in ["get", "create"] {
                let doing = Doing::new(verb, "pods/exec", Some(namespace));
                match allowed(kube, &doing).await {
                    Ok(true) => {}
                    Ok(false) => missing.push(doing),
                    Err(error) => unsure = Some(error.to_string()),
                }
            }
            let Some(first) = missing.first() else {
                let why = unsure
                    .unwrap_or_else(|| "an admission rule for connections, perhaps".to_owned());
                return exec(
                    format!("not allowed, though the right itself is not what is missing ({why})"),
                    "ask who runs the cluster which policy refuses exec",
                );
            };
            let rights: Vec<String> = missing
                .iter()
                .map(|doing| format!("\"{} {}\"", doing.verb, doing.resource))
                .collect();
            // Of all helper pods alike, so that it is said once.
            LaunchError::Exec {
                pod: format!("{namespace}/netpath-..."),
                cause: format!(
                    "not allowed; your user lacks the right {} in namespace {namespace}",
                    rights.join(" and ")
                ),
                remedy: format!(
                    "ask for get and create on pods/exec (Kubernetes 1.35 wants both; check: {})",
                    first.can_i()
                ),
            }
        }
        404 => exec(
            "the pod or its container is gone".to_owned(),
            "someone or something removed it; try again",
        ),
        code => {
            // The server could not hand the connection on: the pod's state says more than the code.
            let doing = Doing::new("get", "pods", Some(namespace)).named(pod);
            let api: Api<k8s_openapi::api::core::v1::Pod> =
                Api::namespaced(kube.client.clone(), namespace);
            let state = match kube.ask(&doing, api.get(pod)).await {
                Ok(pod) => pod
                    .status
                    .and_then(|status| status.phase)
                    .unwrap_or_else(|| "of unknown phase".to_owned()),
                Err(error) => error.to_string(),
            };
            exec(
                format!(
                    "the API server answered {code}{} (the pod is {state})",
                    colon(said)
                ),
                "it may not reach the node's kubelet (port 10250), or the node has none \
                 (virtual nodes); try kubectl exec there",
            )
        }
    }
}
