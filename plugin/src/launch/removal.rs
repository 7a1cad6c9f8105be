//! Taking helper pods away: after success, failure or a signal, and when nobody asked.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::DeleteParams;
use tokio::time::Instant;

use super::error::LaunchError;
use super::pods::{Creation, Launcher, Noted, PAUSE};
use crate::kube_client::Kube;
use crate::kube_error::{ApiError, Doing, Refusal};

/// How long `close` waits for creations that are under way.
const CREATION_LIMIT: Duration = Duration::from_secs(10);
/// How long a pod whose creation was never answered is looked for, to delete it when it appears.
const UNANSWERED_LIMIT: Duration = Duration::from_secs(3);
/// How long a removal is tried again while the API server cannot be reached or is overloaded.
const PASSING_LIMIT: Duration = Duration::from_secs(8);
/// Bound on removing one pod.
const REMOVAL_LIMIT: Duration = Duration::from_secs(30);

impl Launcher {
    /// Ends the run as the flags say: with `--keep`, helpers that were started stay for the next call
    /// (`failed` says that they are not worth it); otherwise all are removed.
    ///
    /// Errors: each pod that could not be removed, with the command that does.
    pub async fn close(&self, failed: bool) -> Result<(), Vec<LaunchError>> {
        // Notes go only as pods do: a caller that gives up still learns what is left.
        let mut noted = self
            .noted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if self.flags.keep.is_some() && !failed {
            noted.retain(|noted| !noted.ready);
        }
        let left = self.remove_all(noted).await;
        self.take_noted();
        left
    }

    /// Gives up: every pod that may still exist, as an error with the command that removes it.
    pub(super) fn abandoned(&self) -> Vec<LaunchError> {
        let left = |noted| (noted, "interrupted".to_owned());
        self.left_behind(self.take_noted().into_iter().map(left).collect())
    }

    /// Pods that stay, with the reasons: those of one reason in one error, with the command that removes
    /// them by hand.
    fn left_behind(&self, left: Vec<(Noted, String)>) -> Vec<LaunchError> {
        let mut reasons: BTreeMap<String, Vec<Noted>> = BTreeMap::new();
        for (noted, cause) in left {
            reasons.entry(cause).or_default().push(noted);
        }
        let error = |(cause, pods): (String, Vec<Noted>)| {
            let each = |noted: &Noted| {
                let path = format!("{}/{}", self.namespace, noted.name);
                format!("helper pod {path} from node {}", noted.node)
            };
            let names: Vec<&str> = pods.iter().map(|noted| noted.name.as_str()).collect();
            LaunchError::LeftBehind {
                pods: pods.iter().map(each).collect::<Vec<_>>().join(", "),
                command: format!(
                    "kubectl delete pod -n {} {} --grace-period=0{}",
                    self.namespace,
                    names.join(" "),
                    self.kube.flags_of_kubectl()
                ),
                cause,
            }
        };
        reasons.into_iter().map(error).collect()
    }

    async fn remove_all(&self, noted: Vec<Noted>) -> Result<(), Vec<LaunchError>> {
        let removed = join_all(noted.into_iter().map(async |noted| {
            let removal = self.remove(noted.clone());
            let cause = match tokio::time::timeout(REMOVAL_LIMIT, removal).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error.text,
                Err(_) => format!("no success within {}s", REMOVAL_LIMIT.as_secs()),
            };
            Err((noted, cause))
        }))
        .await;
        let left: Vec<(Noted, String)> = removed.into_iter().filter_map(Result::err).collect();
        if left.is_empty() {
            Ok(())
        } else {
            Err(self.left_behind(left))
        }
    }

    async fn remove(&self, mut noted: Noted) -> Result<(), ApiError> {
        let answered = noted
            .creation
            .wait_for(|creation| *creation != Creation::UnderWay);
        let creation = match tokio::time::timeout(CREATION_LIMIT, answered).await {
            Ok(Ok(creation)) => *creation,
            // The task died or hangs: the pod may exist.
            _ => Creation::Unanswered,
        };
        let until = match creation {
            Creation::Refused => return Ok(()),
            Creation::Done => None,
            Creation::UnderWay | Creation::Unanswered => Some(Instant::now() + UNANSWERED_LIMIT),
        };
        let give_up = Instant::now() + PASSING_LIMIT;
        // Without a name: one error tells of all pods of one reason, and names them.
        let doing = deleting(&self.namespace);
        loop {
            match delete_pod(&self.kube, &doing, &self.namespace, &noted.name).await {
                Ok(true) => return Ok(()),
                Ok(false) => match until {
                    // An unanswered creation may still come through.
                    Some(until) if Instant::now() < until => {}
                    _ => return Ok(()),
                },
                Err(error) => {
                    let passing = matches!(
                        error.refusal,
                        Refusal::Unreachable | Refusal::Busy | Refusal::TimedOut
                    );
                    if !passing || Instant::now() >= give_up {
                        return Err(error);
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Drop for Launcher {
    /// The last resort, for a panic: [`Launcher::close`] has normally emptied the notes.
    fn drop(&mut self) {
        let noted = self.take_noted();
        if noted.is_empty() {
            return;
        }
        let config = self.kube.config.clone();
        let namespace = self.namespace.clone();
        let mut kube = self.kube.clone();
        // The runtime may be going down, so this runs on a thread with one of its own.
        let thread = std::thread::spawn(move || {
            let Ok(runtime) = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
            else {
                return;
            };
            runtime.block_on(async {
                let Ok(client) = kube::Client::try_from(config) else {
                    return;
                };
                kube.client = client;
                let doing = deleting(&namespace);
                for noted in noted {
                    let deletion = delete_pod(&kube, &doing, &namespace, &noted.name);
                    // Nobody is left to hear of a failure; the pod's deadline and `cleanup` remain.
                    let _ = tokio::time::timeout(UNANSWERED_LIMIT, deletion).await;
                }
            });
        });
        // Joining makes sure that the process does not end first.
        let _ = thread.join();
    }
}

/// What errors of [`delete_pod`] are about.
pub(super) fn deleting(namespace: &str) -> Doing {
    Doing::new("delete", "pods", Some(namespace))
}

/// Deletes a pod at once. `false`: there was none.
pub(super) async fn delete_pod(
    kube: &Kube,
    doing: &Doing,
    namespace: &str,
    name: &str,
) -> Result<bool, ApiError> {
    let api: Api<Pod> = Api::namespaced(kube.client.clone(), namespace);
    let params = DeleteParams {
        grace_period_seconds: Some(0),
        ..DeleteParams::default()
    };
    match kube.ask(doing, api.delete(name, &params)).await {
        Ok(_) => Ok(true),
        Err(error) if error.refusal == Refusal::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
