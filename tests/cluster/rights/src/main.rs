//! `netpath-rights`: what `kubectl netpath` does on a real cluster when rights, nodes, images or credentials are
//! lacking. tests/cluster/rights/run starts it.

mod capabilities;
mod cluster;
mod credentials;
mod nodes;
mod pods;
mod rbac;
mod security;

use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpath_cluster::undo::{self, Undo};
use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};

use cluster::{Cluster, NAMESPACE, STOPPED, all, go_on, until};

type Case = (&'static str, fn(&Cluster) -> Result<()>);

const CASES: &[Case] = &[
    ("rights: docs/rbac.yaml suffices", rbac::suffices),
    ("rights: by name alone", rbac::by_name),
    ("rights: in one namespace", rbac::one_namespace),
    (
        "rights: each one is needed, or its lack is told",
        rbac::each_is_needed,
    ),
    ("rights: get instead of watch", rbac::get_instead_of_watch),
    ("pods: two people at once", pods::two_people),
    ("pods: an image that no node has", pods::absent_image),
    (
        "pods: a helper deleted while it reads",
        pods::helper_deleted,
    ),
    (
        "pods: the traced pod deleted meanwhile",
        pods::traced_deleted,
    ),
    ("nodes: tainted and cordoned", nodes::tainted),
    ("nodes: without a working CNI", nodes::without_cni),
    (
        "nodes: kubelet restarted while it is in use",
        nodes::kubelet_restarted,
    ),
    ("nodes: kubelet stopped", nodes::kubelet_stopped),
    (
        "credentials: an expired certificate, a revoked token",
        credentials::expired,
    ),
    ("credentials: a plugin", credentials::plugin),
    ("credentials: another user", credentials::impersonated),
    ("credentials: by a proxy", credentials::proxy),
    ("credentials: kubectl's flags", credentials::flags),
    ("security: Pod Security", security::pod_security),
    ("security: privileged", security::privileged),
    (
        "security: each capability is needed",
        capabilities::each_is_needed,
    ),
];

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the runtime that hears signals: {error}");
            return ExitCode::from(2);
        }
    };
    if let Err(error) = runtime.block_on(async { listen() }) {
        eprintln!("error: {error:#}");
        return ExitCode::from(2);
    }
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// From now on a signal only keeps new work from beginning, so that what was changed is undone in order.
fn listen() -> Result<()> {
    let listen = |kind| signal(kind).context("listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hang_up.recv() => {}
            }
            STOPPED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Runs the cases that have one of `words` in their name. `false`: some failed.
fn run(words: &[String]) -> Result<bool> {
    let cluster = Cluster::open()?;
    let clean = Undo::new("remove what the cases made", || {
        let namespace = format!("delete namespace {NAMESPACE} --ignore-not-found --wait=false");
        let steps: [&dyn Fn() -> Result<()>; 3] =
            [&|| cluster.sweep(), &|| rbac::take(&cluster), &|| {
                cluster.kubectl(&namespace).map(drop)
            }];
        all(steps.iter().map(|step| step()))
    });
    prepare(&cluster).context("prepare the cluster")?;
    let mut good = true;
    let wanted =
        |name: &str| words.is_empty() || words.iter().any(|word| name.contains(word.as_str()));
    for (name, case) in CASES.iter().filter(|(name, _)| wanted(name)) {
        go_on()?;
        let since = Instant::now();
        let done = case(&cluster)
            .and_then(|()| cluster.clean())
            .and_then(|()| {
                let undone = !undo::FAILED.swap(false, Ordering::Relaxed);
                ensure!(undone, "what it changed could not be undone, as said above");
                Ok(())
            });
        let took = since.elapsed().as_secs_f32();
        match done {
            Ok(()) => println!("ok    {name} ({took:.1} s)"),
            Err(error) => {
                good = false;
                println!("FAIL  {name}: {error:#}");
                go_on()?;
                undo::FAILED.store(false, Ordering::Relaxed);
                cluster.sweep()?;
                // What a case left undone must not fail the next one.
                prepare(&cluster).context("mend the cluster")?;
            }
        }
    }
    clean.now()?;
    Ok(good)
}

/// The pods and Services that the cases speak of, and the roles.
fn prepare(cluster: &Cluster) -> Result<()> {
    for namespace in [NAMESPACE, cluster::HELPERS] {
        until("an older namespace to go", Duration::from_secs(90), || {
            let line = format!(
                "get namespace {namespace} --ignore-not-found -o jsonpath={{.status.phase}}"
            );
            Ok(cluster.kubectl(&line)? != "Terminating")
        })?;
    }
    let pod = |name: &str, node: &str, app: &str| workload(name, Some(node), app);
    let account = |name: &str| json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}});
    cluster.apply(&[
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}),
        account("person"),
        account("local"),
        account("gets"),
        account("gone"),
        pod("client", "node-1", "client"),
        pod("web-1", "node-1", "web"),
        pod("web-2", "node-2", "web"),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": NAMESPACE},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "front", "namespace": NAMESPACE},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "front"}},
                "template": {"metadata": {"labels": {"app": "front"}}, "spec": workload("front", None, "front")["spec"]}}}),
    ])?;
    cluster.kubectl(&format!(
        "wait -n {NAMESPACE} --for=condition=Ready pod --all --timeout=60s"
    ))?;
    rbac::give(cluster)?;
    // Rules for the Service take a moment.
    until("a trace to be delivered", Duration::from_secs(30), || {
        Ok(cluster.run("trace client svc/web")?.code == Some(0))
    })
}

/// A pod that answers on port 8080, wherever it may run.
pub fn workload(name: &str, node: Option<&str>, app: &str) -> Value {
    let mut spec = json!({
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": false,
        "tolerations": [{"operator": "Exists"}],
        "containers": [{
            "name": "test", "image": "localhost/netpath-test:test", "imagePullPolicy": "Never",
            "command": ["/netpath-lab", "serve", "--name", name, "--tcp", "8080", "--udp", "8080"],
        }],
    });
    if let Some(node) = node {
        spec["nodeName"] = json!(node);
    }
    json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": app}}, "spec": spec})
}
