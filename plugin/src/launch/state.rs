//! What a helper pod's status says: keep waiting, ready, or hopeless (pure).

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use super::error::LaunchError;
use crate::kube_error::one_line;

/// Judgement of one status.
#[derive(Debug)]
pub(super) enum State {
    /// The container runs.
    Running,
    /// Not yet; the text is for the message if time runs out.
    Waiting(String),
    /// It will not run.
    Hopeless(LaunchError),
}

/// Reasons after which the kubelet goes on trying, but a person must do something first.
const IMAGE_REASONS: [&str; 7] = [
    "ImagePullBackOff",
    "ErrImagePull",
    "ErrImageNeverPull",
    "InvalidImageName",
    "ImageInspectError",
    "RegistryUnavailable",
    "SignatureValidationFailed",
];
const START_REASONS: [&str; 6] = [
    "CreateContainerConfigError",
    "CreateContainerError",
    "RunContainerError",
    "CrashLoopBackOff",
    "PreCreateHookError",
    "PostStartHookError",
];

/// Whether the node's kubelet has said anything of the pod.
pub(super) fn is_taken_up(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| {
        status.start_time.is_some()
            || status.reason.is_some()
            || status
                .container_statuses
                .as_ref()
                .is_some_and(|all| !all.is_empty())
            || !matches!(status.phase.as_deref(), None | Some("Pending"))
    })
}

/// Judges a helper pod.
///
/// Source: kubelet's container reasons, pkg/kubelet/images/types.go and
/// pkg/kubelet/kuberuntime (Kubernetes 1.33).
pub(super) fn judge(pod: &Pod, node: &str, image: &str) -> State {
    let path = format!(
        "{}/{}",
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.name.as_deref().unwrap_or_default()
    );
    let hopeless = |reason: &str, message: &str, remedy: &str| {
        State::Hopeless(LaunchError::Pod {
            node: node.to_owned(),
            pod: path.clone(),
            reason: reason.to_owned(),
            message: one_line(message),
            remedy: remedy.to_owned(),
        })
    };
    if pod.metadata.deletion_timestamp.is_some() {
        return hopeless(
            "deleted",
            "someone or something is removing it",
            "try again",
        );
    }
    let Some(status) = &pod.status else {
        return State::Waiting("no status yet".to_owned());
    };
    let phase = status.phase.as_deref().unwrap_or("Pending");
    let containers = status.container_statuses.as_deref().unwrap_or_default();
    if let "Failed" | "Succeeded" = phase {
        return ended(status, containers, &hopeless);
    }
    if phase == "Running" && containers.iter().any(runs) {
        return State::Running;
    }
    let waiting = containers
        .iter()
        .filter_map(|status| status.state.as_ref()?.waiting.as_ref())
        .find_map(|waiting| {
            Some((
                waiting.reason.clone()?,
                one_line(waiting.message.as_deref().unwrap_or_default()),
            ))
        });
    match waiting {
        Some((reason, message)) if IMAGE_REASONS.contains(&reason.as_str()) => {
            State::Hopeless(LaunchError::Image {
                node: node.to_owned(),
                image: image.to_owned(),
                reason,
                message,
            })
        }
        Some((reason, message)) if START_REASONS.contains(&reason.as_str()) => hopeless(
            &reason,
            &message,
            "look at kubectl describe of the pod, or try --privileged",
        ),
        Some((reason, message)) if message.is_empty() => {
            State::Waiting(format!("{phase}, {reason}"))
        }
        Some((reason, message)) => State::Waiting(format!("{phase}, {reason}: {message}")),
        None => State::Waiting(match status.reason.as_deref() {
            Some(reason) => format!("{phase}, {reason}"),
            None if containers.is_empty() => {
                format!("{phase}, the node's kubelet has not taken it up")
            }
            None => phase.to_owned(),
        }),
    }
}

fn runs(status: &ContainerStatus) -> bool {
    status
        .state
        .as_ref()
        .is_some_and(|state| state.running.is_some())
}

fn ended(
    status: &k8s_openapi::api::core::v1::PodStatus,
    containers: &[ContainerStatus],
    hopeless: &dyn Fn(&str, &str, &str) -> State,
) -> State {
    let terminated = containers
        .iter()
        .find_map(|status| status.state.as_ref()?.terminated.as_ref());
    if let Some(end) = terminated {
        let reason = end.reason.as_deref().unwrap_or("ended");
        let message = end
            .message
            .as_deref()
            .filter(|m| !m.is_empty())
            .map_or_else(|| format!("exit code {}", end.exit_code), str::to_owned);
        return hopeless(
            reason,
            &message,
            "check that --image is a netpath helper image for the node's architecture",
        );
    }
    let reason = status.reason.as_deref().unwrap_or("ended");
    let message = status.message.as_deref().unwrap_or_default();
    let remedy = match reason {
        "DeadlineExceeded" => "it reached its deadline; try again",
        "Evicted" => "the node is short of resources",
        // The kubelet's own admission: OutOfcpu, OutOfpods, NodeAffinity, UnexpectedAdmissionError...
        _ => "the node refused the pod; look at kubectl describe of the node",
    };
    hopeless(reason, message, remedy)
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
