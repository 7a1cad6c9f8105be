//! Helper pods: created on all nodes at once, awaited, and removed in every case.
//!
//! A pod's name is chosen and noted here before its creation is asked for, and the request runs in a
//! task of its own. So [`Launcher::close`] knows every pod that may exist, even one whose creation
//! was under way when the caller's future was dropped.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{PostParams, WatchEvent, WatchParams};
use kube::core::Request;
use serde_json::Value;
use tokio::sync::watch;

use super::error::LaunchError;
use super::exec::exec;
use super::manifest::{
    CONTAINER, DEADLINE, EXPIRES_LABEL, HelperFlags, Identity, MANAGED_LABEL, PROGRAM, SETUP_LABEL,
    USER_LABEL, manifest, setup_hash, short_hash,
};
use super::pipe::Pipe;
use super::session::Session;
use super::state::{State, is_taken_up, judge};
use crate::kube_client::Kube;
use crate::kube_error::{ApiError, Doing, Refusal};
use crate::resolve::objects::{ClusterView, NodeInfo};

/// Pause between two attempts where the API offers nothing to wait on.
pub(super) const PAUSE: Duration = Duration::from_millis(200);
/// A kubelet that lives takes a pod up within a second, however long its image takes; a silent one is told
/// after this time, or after a sixth of a longer `--launch-timeout`.
const TAKEN_UP_LIMIT: Duration = Duration::from_secs(10);

/// Seconds beside a capture's own time: its questions before, its last packets behind.
const MARGIN: u64 = 60;

/// A node that shall have a helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeTarget {
    /// Node name.
    pub name: String,
    /// Why a helper cannot run there at all, with what to do; `None` to try.
    pub hopeless: Option<(String, String)>,
    /// What the node complains of though it may still start a pod.
    pub complaint: Option<String>,
}

impl NodeTarget {
    /// A node of which nothing is known.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            hopeless: None,
            complaint: None,
        }
    }

    /// A node as the API describes it.
    ///
    /// A node that is not ready for lack of a network still starts host-network pods, and is the one
    /// that most needs looking at; one whose kubelet is silent, or that is no Linux, does not.
    pub fn of(node: &NodeInfo) -> Self {
        let reason = node
            .reason
            .clone()
            .unwrap_or_else(|| "no reason given".to_owned());
        let silent = node.ready == Some(false) && reason.starts_with("NodeStatusUnknown");
        let hopeless = if !node.os.is_empty() && node.os != "linux" {
            let cause = format!("it runs {}, not Linux", node.os);
            Some((cause, "its network cannot be traced".to_owned()))
        } else if node.virtual_kubelet {
            let cause = "it is a virtual node without a kernel of its own".to_owned();
            Some((cause, "its network cannot be traced".to_owned()))
        } else if silent {
            let cause = format!("its kubelet is silent ({reason})");
            Some((
                cause,
                "look at the machine and its kubelet first".to_owned(),
            ))
        } else {
            None
        };
        let complaint = (node.ready == Some(false)).then(|| format!("node not ready ({reason})"));
        Self {
            name: node.name.clone(),
            hopeless,
            complaint,
        }
    }

    fn possible(&self) -> Result<(), LaunchError> {
        match &self.hopeless {
            None => Ok(()),
            Some((cause, remedy)) => Err(LaunchError::Node {
                node: self.name.clone(),
                cause: cause.clone(),
                remedy: remedy.clone(),
            }),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Creation {
    UnderWay,
    /// The server answered that it exists.
    Done,
    /// The server refused: it does not exist.
    Refused,
    /// No answer: it may exist.
    Unanswered,
}

/// A pod that may exist.
#[derive(Clone, Debug)]
pub(super) struct Noted {
    pub(super) name: String,
    pub(super) node: String,
    pub(super) creation: watch::Receiver<Creation>,
    /// Its helper has said hello, so that it is worth keeping.
    pub(super) ready: bool,
}

/// Creates, keeps count of and removes this run's helper pods.
///
/// Outlives the work that uses the helpers; see [`super::signals::guard`].
#[derive(Debug)]
pub struct Launcher {
    pub(super) kube: Kube,
    pub(super) flags: HelperFlags,
    pub(super) namespace: String,
    run: String,
    /// Pods that were named so far: a name is never used twice.
    next: AtomicUsize,
    /// Pods that had ended before are noted.
    swept: AtomicBool,
    user_hash: String,
    pub(super) noted: Mutex<Vec<Noted>>,
}

impl Launcher {
    /// A launcher that has created nothing yet.
    pub fn new(kube: Kube, flags: HelperFlags) -> Self {
        let namespace = flags
            .helper_namespace
            .clone()
            .unwrap_or_else(|| kube.namespace.clone());
        Self {
            namespace,
            run: random_name(),
            next: AtomicUsize::new(0),
            swept: AtomicBool::new(false),
            user_hash: user_hash(&kube),
            noted: Mutex::default(),
            kube,
            flags,
        }
    }

    /// Namespace of the helper pods.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Starts helpers on all `targets` at once, reusing warm ones that `view` shows, and returns a
    /// session or the reason for its absence for each.
    pub async fn launch(
        &self,
        targets: &[NodeTarget],
        view: Option<&ClusterView>,
    ) -> BTreeMap<String, Result<Session, LaunchError>> {
        let now = unix_now();
        if !self.swept.swap(true, Ordering::Relaxed) {
            for pod in view.into_iter().flat_map(|view| self.ended(view)) {
                self.note(pod);
            }
        }
        let started = join_all(targets.iter().map(async |target| {
            let warm = view.and_then(|view| self.warm(view, &target.name, now));
            (target.name.clone(), self.one(target, warm).await)
        }))
        .await;
        started.into_iter().collect()
    }

    async fn one(&self, target: &NodeTarget, warm: Option<String>) -> Result<Session, LaunchError> {
        target.possible()?;
        if let Some(pod) = warm {
            // A warm helper may have gone since it was listed, or its kubelet be silent: then a new one is
            // started, which finds out.
            let warm = tokio::time::timeout(TAKEN_UP_LIMIT, self.serve(&pod, &target.name));
            if let Ok(Ok(session)) = warm.await {
                return Ok(session);
            }
        }
        let name = self.name();
        let created = self.create(&name, &target.name).await?;
        self.running(&name, target, created).await?;
        let session = self.serve(&name, &target.name).await?;
        for noted in &mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner) {
            noted.ready |= noted.name == name;
        }
        Ok(session)
    }

    /// Connects to a helper pod that runs.
    async fn serve(&self, pod: &str, node: &str) -> Result<Session, LaunchError> {
        let pipe: Pipe = exec(
            &self.kube,
            &self.namespace,
            pod,
            CONTAINER,
            &[PROGRAM, "serve"],
        )
        .await?;
        Ok(Session::start(format!("node {node}"), pipe).await?)
    }

    /// A warm helper of this user's on a node.
    ///
    /// Up to its last second: the kubelet ends it a good while later, see [`super::manifest::deadline`]. For work
    /// that takes its time, only where that while is long enough.
    pub(super) fn warm(&self, view: &ClusterView, node: &str, now: u64) -> Option<String> {
        let setup = setup_hash(&self.flags);
        let label =
            |pod: &crate::resolve::objects::PodInfo, key: &str| pod.labels.get(key).cloned();
        view.pods
            .iter()
            .filter(|pod| pod.namespace == self.namespace && pod.node.as_deref() == Some(node))
            .filter(|pod| pod.running() && !pod.terminating)
            .filter(|pod| label(pod, SETUP_LABEL).as_ref() == Some(&setup))
            .filter(|pod| label(pod, USER_LABEL).as_ref() == Some(&self.user_hash))
            .find(|pod| {
                label(pod, EXPIRES_LABEL)
                    .and_then(|expires| expires.parse::<u64>().ok())
                    .is_some_and(|expires| {
                        let ended = expires.saturating_add(DEADLINE);
                        let lasts = self.flags.lasts.as_secs();
                        expires > now && ended >= now.saturating_add(lasts).saturating_add(MARGIN)
                    })
            })
            .map(|pod| pod.name.clone())
    }

    /// Helpers of this user's that have ended by themselves, kept ones or such of a client that was killed: their objects
    /// go with this run's. Those that failed are left to who started them, and to `cleanup`.
    fn ended<'a>(&'a self, view: &'a ClusterView) -> impl Iterator<Item = Noted> + 'a {
        let own = view.pods.iter().filter(|pod| {
            pod.namespace == self.namespace
                && pod.phase == "Succeeded"
                && pod.labels.get(MANAGED_LABEL.0).map(String::as_str) == Some(MANAGED_LABEL.1)
                && pod.labels.get(USER_LABEL) == Some(&self.user_hash)
        });
        own.map(|pod| Noted {
            name: pod.name.clone(),
            node: pod.node.clone().unwrap_or_default(),
            creation: watch::channel(Creation::Done).1,
            ready: false,
        })
    }

    /// The pods that [`Self::launch`] would create for `targets`, or why none can be; creates nothing.
    pub fn planned(&self, targets: &[NodeTarget]) -> Vec<Result<Value, LaunchError>> {
        let expires = self.expires();
        let pods = targets.iter().map(|target| {
            target.possible()?;
            Ok(self.pod(&self.name(), &target.name, expires))
        });
        pods.collect()
    }

    fn name(&self) -> String {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        format!("netpath-{}-{number}", self.run)
    }

    fn expires(&self) -> Option<u64> {
        let keep = self.flags.keep?;
        Some(unix_now().saturating_add(keep.as_secs()))
    }

    fn pod(&self, name: &str, node: &str, expires: Option<u64>) -> Value {
        let identity = Identity {
            name,
            namespace: &self.namespace,
            node,
            run: &self.run,
            user: &self.kube.user,
            user_hash: &self.user_hash,
            expires,
        };
        manifest(&self.flags, &identity)
    }

    async fn create(&self, name: &str, node: &str) -> Result<Pod, LaunchError> {
        let expires = self.expires();
        let doing = Doing::new("create", "pods", Some(&self.namespace));
        let body = self.pod(name, node, expires).to_string().into_bytes();
        let request = Request::new(format!("/api/v1/namespaces/{}/pods", self.namespace))
            .create(&PostParams::default(), body)
            .map_err(|error| self.kube.explain(&doing, &kube::Error::BuildRequest(error)))?;
        let (tell, creation) = watch::channel(Creation::UnderWay);
        self.note(Noted {
            name: name.to_owned(),
            node: node.to_owned(),
            creation,
            ready: false,
        });
        let kube = self.kube.clone();
        let (name, node) = (name.to_owned(), node.to_owned());
        // A task of its own: dropping this future must not leave it unknown whether the pod exists.
        let task = tokio::spawn(async move {
            let answer = kube.ask(&doing, kube.client.request::<Pod>(request)).await;
            let answer = match answer {
                // A retried request whose first answer was lost finds its own pod.
                Err(error) if error.refusal == Refusal::Conflict => {
                    let api: Api<Pod> = Api::namespaced(
                        kube.client.clone(),
                        doing.namespace.as_deref().unwrap_or(""),
                    );
                    let getting = Doing {
                        verb: "get",
                        ..doing.clone()
                    }
                    .named(&name);
                    match kube.ask(&getting, api.get(&name)).await {
                        Ok(pod) if !is_on(&pod, &node) => Err(error),
                        // Reading takes a right that is not needed otherwise. The name is this run's own: the pod
                        // is waited for, and removed, as if its creation had been answered.
                        Err(reading) if reading.refusal == Refusal::Forbidden => {
                            let mut pod = Pod::default();
                            pod.metadata.name = Some(name);
                            Ok(pod)
                        }
                        other => other,
                    }
                }
                other => other,
            };
            let outcome = match &answer {
                Ok(_) => Creation::Done,
                Err(error) => match error.refusal {
                    Refusal::Unreachable | Refusal::TimedOut | Refusal::Busy | Refusal::Other => {
                        Creation::Unanswered
                    }
                    _ => Creation::Refused,
                },
            };
            // The note holds a receiver for as long as the launcher lives.
            let _ = tell.send(outcome);
            answer
        });
        match task.await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(LaunchError::Api(ApiError::new(
                Refusal::Other,
                format!(
                    "create pods in namespace {}: the request was given up",
                    self.namespace
                ),
            ))),
        }
    }

    /// Waits until the pod runs, by a watch; fails as soon as its status is hopeless, or no kubelet takes it up.
    async fn running(
        &self,
        name: &str,
        target: &NodeTarget,
        created: Pod,
    ) -> Result<(), LaunchError> {
        let limit = self.flags.launch_timeout;
        let until_taken_up = (limit / 6).max(TAKEN_UP_LIMIT).min(limit);
        let mut last = "created".to_owned();
        let (taken_up, mut is_taken_up) = watch::channel(false);
        let waiting = self.await_running(name, &target.name, created, &mut last, &taken_up);
        let waited = {
            let mut waiting = std::pin::pin!(tokio::time::timeout(limit, waiting));
            let silent = async {
                let seen = is_taken_up.wait_for(|taken_up| *taken_up);
                if tokio::time::timeout(until_taken_up, seen).await.is_ok() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                biased;
                waited = &mut waiting => match waited {
                    Ok(done) => return done,
                    Err(_) => limit,
                },
                () = silent => until_taken_up,
            }
        };
        if let Some(complaint) = &target.complaint {
            last = format!("{last}; {complaint}");
        }
        Err(LaunchError::Slow {
            node: target.name.clone(),
            pod: format!("{}/{name}", self.namespace),
            seconds: waited.as_secs(),
            last,
        })
    }

    async fn await_running(
        &self,
        name: &str,
        node: &str,
        created: Pod,
        last: &mut String,
        taken_up: &watch::Sender<bool>,
    ) -> Result<(), LaunchError> {
        let api: Api<Pod> = Api::namespaced(self.kube.client.clone(), &self.namespace);
        let getting = Doing::new("get", "pods", Some(&self.namespace)).named(name);
        let mut pod = created;
        // A helper pod lives within a launch timeout; the server need not hold the watch for longer.
        let params = WatchParams::default().fields(&format!("metadata.name={name}"));
        let mut no_watch = None;
        loop {
            if is_taken_up(&pod) {
                taken_up.send_replace(true);
            }
            match judge(&pod, node, &self.flags.image) {
                State::Running => return Ok(()),
                State::Hopeless(error) => return Err(error),
                State::Waiting(why) => *last = why,
            }
            let version = pod.metadata.resource_version.clone().unwrap_or_default();
            if no_watch.is_none() {
                let watching = Doing {
                    verb: "watch",
                    ..getting.clone()
                };
                match self.kube.ask(&watching, api.watch(&params, &version)).await {
                    Ok(stream) => {
                        let mut stream = std::pin::pin!(stream);
                        // An error event (410 Gone, say) or the end of the watch falls out of the
                        // loop: the pod is then read anew.
                        while let Some(Ok(event)) = stream.next().await {
                            let (WatchEvent::Added(seen) | WatchEvent::Modified(seen)) = event
                            else {
                                if let WatchEvent::Deleted(_) = event {
                                    return Err(self.vanished(name, node));
                                }
                                continue;
                            };
                            if is_taken_up(&seen) {
                                taken_up.send_replace(true);
                            }
                            match judge(&seen, node, &self.flags.image) {
                                State::Running => return Ok(()),
                                State::Hopeless(error) => return Err(error),
                                State::Waiting(why) => *last = why,
                            }
                        }
                    }
                    Err(error) if error.refusal == Refusal::Forbidden => no_watch = Some(error),
                    // A server that fails a watch may still answer the plain request below.
                    Err(error) => *last = error.to_string(),
                }
            }
            // Without a watch there is nothing to wait on; with one that ends at once this keeps
            // the client from asking in a circle.
            tokio::time::sleep(PAUSE).await;
            pod = match self.kube.ask(&getting, api.get(name)).await {
                Ok(pod) => pod,
                Err(error) if error.refusal == Refusal::NotFound => {
                    return Err(self.vanished(name, node));
                }
                // One of the two rights suffices: without either, the one that is better to have is named;
                // with a watch alone, that is asked for again.
                Err(error) if error.refusal == Refusal::Forbidden => match no_watch {
                    Some(first) => return Err(first.into()),
                    None => pod,
                },
                Err(error) => return Err(error.into()),
            };
        }
    }

    fn vanished(&self, name: &str, node: &str) -> LaunchError {
        LaunchError::Pod {
            node: node.to_owned(),
            pod: format!("{}/{name}", self.namespace),
            reason: "deleted".to_owned(),
            message: "someone or something removed it".to_owned(),
            remedy: "try again".to_owned(),
        }
    }

    fn note(&self, noted: Noted) {
        self.noted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(noted);
    }

    pub(super) fn take_noted(&self) -> Vec<Noted> {
        std::mem::take(&mut *self.noted.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Hash of the user and the cluster, as helper pods carry it.
pub(super) fn user_hash(kube: &Kube) -> String {
    short_hash(&[&kube.user, &kube.server])
}

fn is_on(pod: &Pod, node: &str) -> bool {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.node_name.as_deref()) == Some(node)
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Ten random hexadecimal digits.
fn random_name() -> String {
    // RandomState is seeded by the operating system; the address and time make runs differ even if
    // two are seeded alike.
    let bits = RandomState::new().hash_one((unix_now(), std::process::id()));
    format!("{:010x}", bits & 0xff_ffff_ffff)
}
