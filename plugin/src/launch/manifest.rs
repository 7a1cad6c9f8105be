//! The helper pod as a manifest: pure, so that `--dry-run` prints exactly what is created.
//!
//! What each capability is for stands in docs/security.md. Field meanings: v1 Pod, Kubernetes 1.33.

use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Label that every helper pod carries, for `cleanup` and for admission exceptions.
pub const NAME_LABEL: (&str, &str) = ("app.kubernetes.io/name", "netpath");
/// Who manages it.
pub const MANAGED_LABEL: (&str, &str) = ("app.kubernetes.io/managed-by", "kubectl-netpath");
/// Label with the run that created it.
pub const RUN_LABEL: &str = "kubectl-netpath/run";
/// Label with a hash of the user and server, since user names do not fit a label.
pub const USER_LABEL: &str = "kubectl-netpath/user";
/// Label with a hash of everything that makes two helpers interchangeable.
pub const SETUP_LABEL: &str = "kubectl-netpath/setup";
/// Label on warm helpers: seconds since 1970, by the client's clock, up to which they may be reused.
pub const EXPIRES_LABEL: &str = "kubectl-netpath/expires";
/// Name of the only container.
pub const CONTAINER: &str = "helper";
/// Path of the program in the image.
pub const PROGRAM: &str = "/netpath-helper";

/// Deadline of a helper that is not kept, in seconds: the kubelet ends it if this client cannot.
pub(super) const DEADLINE: u64 = 900;
/// A pod that runs is connected to within a minute, however short the time was in which it had to start.
const MINUTE: u64 = 60;
// A release knows where its image was pushed to.
const DEFAULT_IMAGE: &str = match option_env!("NETPATH_RELEASE_IMAGE") {
    Some(image) => image,
    None => concat!("netpath-helper:v", env!("CARGO_PKG_VERSION")),
};

/// Flags about helper pods.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Helper pods")]
pub struct HelperFlags {
    /// Image of the helper
    #[arg(long, global = true, env = "NETPATH_IMAGE", value_name = "IMAGE", default_value = DEFAULT_IMAGE)]
    pub image: String,
    /// When nodes pull the image
    #[arg(long, global = true, value_name = "POLICY", default_value = "IfNotPresent",
          value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: String,
    /// Secret in the helper's namespace for a private registry; may be repeated
    #[arg(long, global = true, value_name = "NAME")]
    pub image_pull_secret: Vec<String>,
    /// Namespace for helper pods [default: the current one]
    #[arg(
        long,
        global = true,
        env = "NETPATH_HELPER_NAMESPACE",
        value_name = "NAME"
    )]
    pub helper_namespace: Option<String>,
    /// Run helpers as privileged containers, where a node's policy needs that
    #[arg(long, global = true)]
    pub privileged: bool,
    /// Keep helpers running for the next calls, for this long
    #[arg(long, global = true, value_name = "DURATION", value_parser = crate::kube_flags::parse_duration)]
    pub keep: Option<Duration>,
    /// Only print the pods that would be created, and the rights that it takes
    #[arg(long, global = true)]
    pub dry_run: bool,
    /// How long a helper pod may take to start; a kubelet that stays silent is told earlier
    #[arg(long, global = true, value_name = "DURATION", default_value = "60s",
          value_parser = crate::kube_flags::parse_duration)]
    pub launch_timeout: Duration,
    /// How long the work itself may last, beside what every helper is given.
    #[arg(skip)]
    pub lasts: Duration,
}

impl Default for HelperFlags {
    fn default() -> Self {
        Self {
            image: DEFAULT_IMAGE.to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            image_pull_secret: Vec::new(),
            helper_namespace: None,
            privileged: false,
            keep: None,
            dry_run: false,
            launch_timeout: Duration::from_secs(60),
            lasts: Duration::ZERO,
        }
    }
}

/// What tells one helper pod from another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// Pod name, chosen by the client so that it can be removed even if the answer to its creation
    /// never came.
    pub name: &'a str,
    /// Namespace.
    pub namespace: &'a str,
    /// Node.
    pub node: &'a str,
    /// Id of this run.
    pub run: &'a str,
    /// User by name, for an annotation.
    pub user: &'a str,
    /// Hash of user and server.
    pub user_hash: &'a str,
    /// Up to when it may be reused (seconds since 1970); only for kept helpers.
    pub expires: Option<u64>,
}

/// The first 16 hexadecimal digits of the SHA-256 of some parts: fits a label.
pub fn short_hash(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.as_bytes());
        hash.update([0]);
    }
    let digits = hash
        .finalize()
        .iter()
        .take(8)
        .fold(0_u64, |all, byte| all << 8 | u64::from(*byte));
    format!("{digits:016x}")
}

/// Hash of what makes two helpers interchangeable: image, this program's version, privileges.
pub fn setup_hash(flags: &HelperFlags) -> String {
    short_hash(&[
        &flags.image,
        env!("CARGO_PKG_VERSION"),
        if flags.privileged {
            "privileged"
        } else {
            "capabilities"
        },
    ])
}

/// Seconds until the kubelet ends the pod.
pub fn deadline(flags: &HelperFlags) -> u64 {
    let keep = flags.keep.map_or(0, |keep| keep.as_secs().max(1));
    keep.saturating_add(flags.lasts.as_secs())
        .saturating_add(DEADLINE)
}

/// Seconds that the pod waits for somebody to serve before it ends for want of that.
fn grace(flags: &HelperFlags) -> u64 {
    match flags.keep {
        Some(keep) => keep.as_secs().max(1),
        None => flags.launch_timeout.as_secs().max(MINUTE),
    }
}

/// The helper pod for one node.
pub fn manifest(flags: &HelperFlags, identity: &Identity<'_>) -> Value {
    let deadline = deadline(flags);
    let mut labels = json!({
        (NAME_LABEL.0): NAME_LABEL.1,
        (MANAGED_LABEL.0): MANAGED_LABEL.1,
        "app.kubernetes.io/version": env!("CARGO_PKG_VERSION"),
        (RUN_LABEL): identity.run,
        (USER_LABEL): identity.user_hash,
        (SETUP_LABEL): setup_hash(flags),
        // Meshes look at a label or an annotation, depending on their version.
        "sidecar.istio.io/inject": "false",
    });
    if let (Some(expires), Some(labels)) = (identity.expires, labels.as_object_mut()) {
        labels.insert(EXPIRES_LABEL.to_owned(), json!(expires.to_string()));
    }
    let secrets: Vec<Value> = flags
        .image_pull_secret
        .iter()
        .map(|name| json!({"name": name}))
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": identity.name,
            "namespace": identity.namespace,
            "labels": labels,
            "annotations": {
                "kubectl-netpath/user-name": identity.user,
                "sidecar.istio.io/inject": "false",
                "linkerd.io/inject": "disabled",
                "kuma.io/sidecar-injection": "disabled",
                // Nodes before 1.30 read this instead of the field.
                (format!("container.apparmor.security.beta.kubernetes.io/{CONTAINER}")): "unconfined",
                "cluster-autoscaler.kubernetes.io/safe-to-evict": "true",
            },
        },
        "spec": {
            "nodeName": identity.node,
            "hostPID": true,
            "hostNetwork": true,
            "restartPolicy": "Never",
            "activeDeadlineSeconds": deadline,
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "dnsPolicy": "Default",
            "tolerations": [{"operator": "Exists"}],
            "imagePullSecrets": secrets,
            "securityContext": {"runAsUser": 0, "runAsNonRoot": false},
            "containers": [{
                "name": CONTAINER,
                "image": flags.image,
                "imagePullPolicy": flags.image_pull_policy,
                // Waits and ends by itself; the work is done by `serve`, which exec starts.
                "command": [PROGRAM, "idle", grace(flags).to_string(), deadline.to_string()],
                "securityContext": security(flags.privileged),
                "resources": {
                    "requests": {"cpu": "10m", "memory": "16Mi"},
                    "limits": {"cpu": "500m", "memory": "256Mi"},
                },
            }],
        },
    })
}

fn security(privileged: bool) -> Value {
    if privileged {
        return json!({"privileged": true, "readOnlyRootFilesystem": true});
    }
    json!({
        "privileged": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {
            "drop": ["ALL"],
            "add": ["SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "NET_RAW"],
        },
        "seccompProfile": {"type": "RuntimeDefault"},
        "appArmorProfile": {"type": "Unconfined"},
        // SELinux nodes confine containers to their own /proc otherwise; others ignore it.
        "seLinuxOptions": {"type": "spc_t"},
    })
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
