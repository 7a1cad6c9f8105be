//! The part of a kubelet that helper pods need: processes in a node's namespaces, and pod status.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use super::App;
use super::misbehave::HelperFate;
use crate::namespace::Namespaces;
use crate::state::NodeState;

/// Fixed, as all times of a laboratory.
const CREATED: &str = "2026-11-21T02:00:00Z";

/// What is started where.
pub(super) struct Kubelet {
    helper: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    nodes: Vec<NodeState>,
    /// Process groups by pod.
    running: BTreeMap<(String, String), Vec<u32>>,
}

impl Kubelet {
    pub(super) fn new(nodes: Vec<NodeState>, helper: PathBuf) -> Self {
        Self {
            helper,
            inner: Mutex::new(Inner {
                nodes,
                ..Inner::default()
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_nodes(&self, nodes: Vec<NodeState>) {
        self.lock().nodes = nodes;
    }

    /// Starts the helper program with `arguments` in a node, as the leader of a process group.
    pub(super) fn spawn(
        &self,
        pod: &(String, String),
        node: &str,
        arguments: &[String],
        streams: bool,
    ) -> Result<Child> {
        let stdio = || {
            if streams {
                Stdio::piped()
            } else {
                Stdio::null()
            }
        };
        let mut command = Command::new(&self.helper);
        command
            .args(arguments)
            .stdin(stdio())
            .stdout(stdio())
            .stderr(stdio())
            .process_group(0)
            .kill_on_drop(true);
        let mut inner = self.lock();
        let holder = inner
            .nodes
            .iter()
            .find(|state| state.name == node)
            .map(|state| state.holder_pid)
            .with_context(|| format!("find node {node}"))?;
        let mut start = move || {
            command
                .spawn()
                .with_context(|| format!("start {} on {node}", self.helper.display()))
        };
        let child = if holder == 0 {
            start()?
        } else {
            let runtime = tokio::runtime::Handle::current();
            Namespaces::of_node(holder)?.run(move || {
                let _inside = runtime.enter();
                start()
            })?
        };
        if let Some(id) = child.id() {
            inner.running.entry(pod.clone()).or_default().push(id);
        }
        Ok(child)
    }

    /// Notes that a process has ended, so that its number is not killed when it means another one.
    pub(super) fn ended(&self, pod: &(String, String), id: u32) {
        let mut inner = self.lock();
        if let Some(running) = inner.running.get_mut(pod) {
            running.retain(|other| *other != id);
        }
    }

    /// Kills everything of a pod.
    pub(super) fn kill(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        for id in self.lock().running.remove(&key).unwrap_or_default() {
            kill_group(id);
        }
    }

    /// Kills everything.
    pub(super) fn kill_all(&self) {
        let running = std::mem::take(&mut self.lock().running);
        for id in running.into_values().flatten() {
            kill_group(id);
        }
    }

    pub(super) fn processes(&self) -> Vec<u32> {
        self.lock().running.values().flatten().copied().collect()
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.kill_all();
    }
}

fn kill_group(id: u32) {
    let Ok(id) = i32::try_from(id) else { return };
    match killpg(Pid::from_raw(id), Signal::SIGKILL) {
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => eprintln!("netpath-lab api: kill process group {id}: {error}"),
    }
}

/// Fills in what an API server would: identity, and the status of a pod nobody has taken up.
pub(super) fn fill_in(pod: &mut Value, namespace: &str, name: &str, version: u64) {
    pod["kind"] = json!("Pod");
    pod["apiVersion"] = json!("v1");
    pod["metadata"]["name"] = json!(name);
    pod["metadata"]["namespace"] = json!(namespace);
    pod["metadata"]["uid"] = json!(crate::names::uid(&format!("{namespace}/{name}/{version}")));
    pod["metadata"]["creationTimestamp"] = json!(CREATED);
    pod["status"] = json!({"phase": "Pending"});
}

/// Takes a new pod up: starts its program and reports on it.
pub(super) fn start(app: &Arc<App>, namespace: &str, name: &str, fate: HelperFate) {
    let app = Arc::clone(app);
    let pod = (namespace.to_owned(), name.to_owned());
    tokio::spawn(async move {
        if let Err(error) = live(&app, &pod, fate).await {
            let message = format!("{error:#}");
            report(
                &app,
                &pod,
                "Failed",
                &terminated(128, "StartError", &message),
                false,
            );
        }
    });
}

async fn live(app: &Arc<App>, pod: &(String, String), fate: HelperFate) -> Result<()> {
    let Some(object) = app.store.get("pods", &pod.0, &pod.1) else {
        return Ok(());
    };
    let image = object
        .pointer("/spec/containers/0/image")
        .and_then(Value::as_str)
        .unwrap_or("");
    let waiting =
        |reason: &str, message: &str| json!({"waiting": {"reason": reason, "message": message}});
    match fate {
        HelperFate::Pending => return Ok(()),
        HelperFate::ImagePullBackOff => {
            let message = format!("Back-off pulling image \"{image}\"");
            report(
                app,
                pod,
                "Pending",
                &waiting(
                    "ErrImagePull",
                    &format!("failed to pull {image}: not found"),
                ),
                false,
            );
            report(
                app,
                pod,
                "Pending",
                &waiting("ImagePullBackOff", &message),
                false,
            );
            return Ok(());
        }
        HelperFate::ErrImageNeverPull => {
            let message =
                format!("Container image \"{image}\" is not present with pull policy of Never");
            report(
                app,
                pod,
                "Pending",
                &waiting("ErrImageNeverPull", &message),
                false,
            );
            return Ok(());
        }
        HelperFate::OutOfPods => {
            app.store.change("pods", &pod.0, &pod.1, |object| {
                object["status"] = json!({
                    "phase": "Failed", "reason": "OutOfpods",
                    "message": "Node didn't have enough resource: pods, requested: 1, used: 110, capacity: 110",
                });
            });
            return Ok(());
        }
        HelperFate::StartError => {
            let message =
                "exec: \"/netpath-helper\": stat /netpath-helper: no such file or directory";
            report(
                app,
                pod,
                "Failed",
                &terminated(128, "StartError", message),
                false,
            );
            return Ok(());
        }
        HelperFate::Run => {}
    }
    let node = object
        .pointer("/spec/nodeName")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if app
        .misbehave
        .get()
        .silent_nodes
        .iter()
        .any(|silent| silent == node)
    {
        return Ok(());
    }
    report(
        app,
        pod,
        "Pending",
        &waiting("ContainerCreating", ""),
        false,
    );
    let command: Vec<String> = object
        .pointer("/spec/containers/0/command")
        .and_then(Value::as_array)
        .map(|list| {
            list.iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default();
    let arguments = command.get(1..).unwrap_or_default();
    let mut child = app.kubelet.spawn(pod, node, arguments, false)?;
    let id = child.id().unwrap_or_default();
    // It may have been deleted before its process was noted.
    if app.store.get("pods", &pod.0, &pod.1).is_none() {
        app.kubelet.kill(&pod.0, &pod.1);
        return Ok(());
    }
    report(
        app,
        pod,
        "Running",
        &json!({"running": {"startedAt": CREATED}}),
        true,
    );
    let deadline = object
        .pointer("/spec/activeDeadlineSeconds")
        .and_then(Value::as_u64)
        .map_or(Duration::MAX, Duration::from_secs);
    let status = tokio::time::timeout(deadline, child.wait()).await;
    app.kubelet.ended(pod, id);
    let Ok(status) = status else {
        app.kubelet.kill(&pod.0, &pod.1);
        app.store.change("pods", &pod.0, &pod.1, |object| {
            object["status"] = json!({
                "phase": "Failed", "reason": "DeadlineExceeded",
                "message": "Pod was active on the node longer than the specified deadline",
            });
        });
        return Ok(());
    };
    let status = status.context("wait for the helper")?;
    // No code: a signal ended it, and 137 is what a runtime reports for SIGKILL.
    let code = status.code().unwrap_or(137);
    let (phase, reason) = match code {
        0 => ("Succeeded", "Completed"),
        _ => ("Failed", "Error"),
    };
    report(app, pod, phase, &terminated(code, reason, ""), false);
    Ok(())
}

fn terminated(code: i32, reason: &str, message: &str) -> Value {
    json!({"terminated": {"exitCode": code, "reason": reason, "message": message}})
}

fn report(app: &App, pod: &(String, String), phase: &str, state: &Value, ready: bool) {
    let ips: Vec<Value> = {
        let inner = app.kubelet.lock();
        let object = app.store.get("pods", &pod.0, &pod.1).unwrap_or_default();
        let node = object
            .pointer("/spec/nodeName")
            .and_then(Value::as_str)
            .unwrap_or_default();
        inner
            .nodes
            .iter()
            .find(|state| state.name == node)
            .map(|state| state.ips.iter().map(|ip| json!({"ip": ip})).collect())
            .unwrap_or_default()
    };
    app.store.change("pods", &pod.0, &pod.1, |object| {
        let container = object
            .pointer("/spec/containers/0")
            .cloned()
            .unwrap_or_default();
        let condition = if ready { "True" } else { "False" };
        let started = if phase == "Pending" {
            None
        } else {
            ips.first()
        };
        object["status"] = json!({
            "phase": phase,
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": condition},
            ],
            "hostIP": ips.first().map(|ip| ip["ip"].clone()),
            "hostIPs": ips,
            "podIP": started.map(|ip| ip["ip"].clone()),
            "podIPs": if started.is_some() { ips.clone() } else { Vec::new() },
            "containerStatuses": [{
                "name": container["name"], "image": container["image"], "imageID": "",
                "ready": ready, "restartCount": 0, "state": state,
            }],
        });
    });
}
