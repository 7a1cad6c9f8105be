//! Nodes that are not as they should be.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::cluster::{Cluster, Running, Said, finish, until};
use crate::pods::Slow;

const TRACE: &str = "trace client svc/web";

/// Taints and a cordon keep no helper away.
pub fn tainted(cluster: &Cluster) -> Result<()> {
    let _undo = cluster.undo(&[
        "kubectl taint node node-2 netpath- >/dev/null",
        "kubectl uncordon node-2 >/dev/null",
    ]);
    cluster.kubectl("taint node node-2 netpath=a:NoSchedule netpath=a:NoExecute")?;
    cluster.kubectl("cordon node-2")?;
    cluster.run(TRACE)?.exits(0)?.silent()?;
    cluster.run("map node/node-2")?.exits(0)?.silent().map(drop)
}

/// A node whose CNI is broken still runs a helper: it is the one that most needs looking at.
pub fn without_cni(cluster: &Cluster) -> Result<()> {
    let back = "in_node node-2 cp /etc/cni/10-pods.off /etc/cni/net.d/10-pods.conflist";
    let _undo = cluster.undo(&[
        back,
        "kubectl wait --for=condition=Ready node/node-2 --timeout=60s >/dev/null",
    ]);
    cluster.in_node(
        "node-2",
        "mv /etc/cni/net.d/10-pods.conflist /etc/cni/10-pods.off",
    )?;
    cluster.kubectl("wait --for=condition=Ready=False node/node-2 --timeout=60s")?;
    let said = cluster.run("trace client web-2:8080")?.exits(0)?;
    said.silent()?;
    cluster
        .run("dump routes node/node-2")?
        .exits(0)?
        .silent()
        .map(drop)
}

fn kubelet(cluster: &Cluster) -> Result<Vec<String>> {
    let line = cluster.in_node(
        "node-2",
        "sh -c 'tr \"\\\\0\" \"\\\\n\" </proc/$(pgrep -x kubelet)/cmdline'",
    )?;
    let words: Vec<String> = line.lines().map(str::to_owned).collect();
    ensure!(words.len() > 3, "the kubelet's command line is {words:?}");
    Ok(words)
}

/// The kubelet restarts in the middle of an answer.
pub fn kubelet_restarted(cluster: &Cluster) -> Result<()> {
    let words = kubelet(cluster)?;
    let start = format!(
        "in_node node-2 pgrep -x kubelet >/dev/null || daemon node-2 kubelet {}",
        words.join(" ")
    );
    let _undo = cluster.undo(&[
        &start,
        "kubectl wait --for=condition=Ready node/node-2 --timeout=60s >/dev/null",
    ]);
    let slow = Slow::on_node_2(cluster)?;
    let running = Running::start(cluster.plugin(&cluster.admin(), TRACE))?;
    slow.working()?;
    cluster.in_node("node-2", "pkill -KILL -x kubelet")?;
    until("the kubelet to end", Duration::from_secs(10), || {
        Ok(cluster.in_node("node-2", "pgrep -x kubelet").is_err())
    })?;
    cluster.script(&start)?;
    let said = finish(running)?.within(Duration::from_secs(45))?;
    match said.code {
        // The stream goes from the API server by the kubelet, so that it broke off.
        Some(3) => said.complains(&["node-2", "broke off"])?,
        // Had the kubelet not been asked yet, the helper was reached after its return.
        Some(0) => said,
        _ => bail!("exit code {:?}: {}", said.code, said.err),
    };
    slow.freely()?;
    // Back again, and nobody has to clean up first.
    until(
        "the kubelet to serve again",
        Duration::from_secs(30),
        || Ok(cluster.run(TRACE)?.code == Some(0)),
    )?;
    cluster.run("cleanup")?.exits(0).map(drop)
}

/// The kubelet stands still: told within seconds, before Kubernetes knows and after.
pub fn kubelet_stopped(cluster: &Cluster) -> Result<()> {
    let _undo = cluster.undo(&[
        "in_node node-2 pkill -CONT -x kubelet",
        "kubectl wait --for=condition=Ready node/node-2 --timeout=60s >/dev/null",
    ]);
    cluster
        .run("trace client web-2:8080 --keep 5m")?
        .exits(0)?
        .silent()?;
    cluster.in_node("node-2", "pkill -STOP -x kubelet")?;
    // A helper that is there already can't be reached either.
    let said = cluster.run("trace client web-2:8080 --keep 5m")?.exits(3)?;
    said.complains(&["warning: node node-2"])?
        .within(Duration::from_secs(30))?;
    cluster.run("cleanup")?.exits(0)?;
    let judge = |what: &str, limit: u64| -> Result<()> {
        let limit = Duration::from_secs(limit);
        let said = cluster
            .run("trace client web-2:8080")?
            .exits(3)?
            .within(limit)?;
        let unknown = said
            .out
            .split_once("\nunknown\n")
            .map(|(_, rest)| rest.to_owned());
        said.complains(&["warning: node node-2", what])?
            .once(what)?;
        let unknown = unknown.context("the answer lists what is unknown")?;
        ensure!(unknown.contains(what), "{what:?} is not in {unknown}");
        let said = cluster
            .run("dump routes node/node-2")?
            .exits(2)?
            .within(limit)?;
        said.complains(&["node node-2", what])?.once(what)?;
        cluster
            .run("dump routes node/node-1")?
            .exits(0)
            .and_then(Said::silent)?;
        cluster.clean()
    };
    judge("kubelet has not taken it up", 20).context("before Kubernetes knows")?;
    cluster.kubectl("wait --for=condition=Ready=Unknown node/node-2 --timeout=120s")?;
    judge("its kubelet is silent", 5).context("when Kubernetes knows")
}
