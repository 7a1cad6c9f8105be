//! Ways in which real API servers, kubelets and networks disappoint, to be switched on by name.

use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

/// A request by verb and resource; `*` fits any.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// RBAC verb: get, list, watch, create, delete.
    pub verb: String,
    /// Plural resource with subresource, for instance `pods/exec`.
    pub resource: String,
    /// Only in this namespace; `None` fits any, and the whole cluster.
    #[serde(default)]
    pub namespace: Option<String>,
    /// Only on the whole cluster, so that the same request in a namespace passes.
    #[serde(default)]
    pub cluster_only: bool,
}

impl Rule {
    /// A rule for any namespace.
    pub fn new(verb: &str, resource: &str) -> Self {
        Self {
            verb: verb.to_owned(),
            resource: resource.to_owned(),
            namespace: None,
            cluster_only: false,
        }
    }

    fn fits(&self, verb: &str, resource: &str, namespace: Option<&str>) -> bool {
        (self.verb == "*" || self.verb == verb)
            && (self.resource == "*" || self.resource == resource)
            && (!self.cluster_only || namespace.is_none())
            && (self.namespace.is_none() || self.namespace.as_deref() == namespace)
    }
}

/// An error answer, given some times.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Fail {
    /// Requests that it hits.
    pub rule: Rule,
    /// HTTP status.
    pub code: u16,
    /// How often.
    pub times: u32,
    /// Seconds after which to come back, as header `Retry-After`.
    #[serde(default)]
    pub retry_after: Option<u32>,
}

/// Which admission rule refuses helper pods.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Admission {
    /// None.
    #[default]
    Allow,
    /// Pod Security at level baseline.
    PodSecurity,
    /// A validating webhook.
    Webhook,
    /// A resource quota that is used up.
    Quota,
}

/// What becomes of helper pods.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HelperFate {
    /// They run.
    #[default]
    Run,
    /// They stay Pending, as when the kubelet is silent.
    Pending,
    /// Their image cannot be pulled.
    ImagePullBackOff,
    /// Their image is not there and may not be pulled.
    ErrImageNeverPull,
    /// The kubelet refuses them.
    OutOfPods,
    /// Their program does not exist in the image.
    StartError,
}

/// The whole of the misbehaviour; the default is none.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Misbehave {
    /// Rights that the user lacks.
    pub forbid: Vec<Rule>,
    /// Nobody is logged in.
    pub unauthorized: bool,
    /// Admission of helper pods.
    pub admission: Admission,
    /// Fate of helper pods.
    pub helpers: HelperFate,
    /// Nodes whose kubelet is silent.
    pub silent_nodes: Vec<String>,
    /// Milliseconds before each answer.
    pub delay_ms: u64,
    /// Milliseconds before the answer to a pod's creation, which happens at once.
    pub create_delay_ms: u64,
    /// Each pod is created, but the first answer is a gateway's 504.
    pub create_answer_lost: bool,
    /// Error answers.
    pub fail: Vec<Fail>,
    /// Exec connections break off after so many bytes of output.
    pub exec_drop_after: Option<u64>,
    /// Exec speaks only `v4.channel.k8s.io`.
    pub exec_v4_only: bool,
    /// Watches end after so many events.
    pub watch_ends_after: Option<u32>,
    /// Every connection breaks off, and new ones get no answer.
    pub gone: bool,
}

/// The current misbehaviour, shared and observable.
#[derive(Clone, Debug)]
pub(super) struct Switch {
    now: Arc<Mutex<Misbehave>>,
    gone: watch::Sender<bool>,
}

impl Switch {
    pub(super) fn new(first: Misbehave) -> Self {
        let (gone, _) = watch::channel(first.gone);
        Self {
            now: Arc::new(Mutex::new(first)),
            gone,
        }
    }

    pub(super) fn set(&self, how: Misbehave) {
        let gone = how.gone;
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = how;
        self.gone.send_replace(gone);
    }

    pub(super) fn get(&self) -> Misbehave {
        self.now
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Becomes true when every connection shall break off.
    pub(super) fn gone(&self) -> watch::Receiver<bool> {
        self.gone.subscribe()
    }

    pub(super) fn forbids(&self, verb: &str, resource: &str, namespace: Option<&str>) -> bool {
        let now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        now.forbid
            .iter()
            .any(|rule| rule.fits(verb, resource, namespace))
    }

    /// The error answer that is due for a request, counted down.
    pub(super) fn failure(
        &self,
        verb: &str,
        resource: &str,
        namespace: Option<&str>,
    ) -> Option<(u16, Option<u32>)> {
        let mut now = self.now.lock().unwrap_or_else(PoisonError::into_inner);
        let due = now
            .fail
            .iter_mut()
            .find(|fail| fail.times > 0 && fail.rule.fits(verb, resource, namespace))?;
        due.times -= 1;
        Some((due.code, due.retry_after))
    }
}
