//! What may become of pods while they are looked at.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use netpath_cluster::undo::Undo;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::cluster::{Cluster, NAMESPACE, Running, Said, finish, until};
use crate::{rbac, workload};

/// A helper on node-2 that is kept, and so slow that it can be stopped before it answers; its quota is lifted when
/// dropped, and the sweep after a failed case removes one that stands still.
pub struct Slow<'a> {
    cluster: &'a Cluster,
    undo: Undo<'a>,
}

impl<'a> Slow<'a> {
    /// Starts it and slows it down.
    pub fn on_node_2(cluster: &'a Cluster) -> Result<Self> {
        cluster
            .run("dump links node/node-2 --keep 5m")?
            .exits(0)
            .and_then(Said::silent)?;
        let idle = cluster.processes("node-2", &["/netpath-helper", "idle"])?;
        let [pid] = idle.as_slice() else {
            bail!("one helper waits on node-2: {idle:?}");
        };
        let groups =
            std::fs::read_to_string(format!("/proc/{pid}/cgroup")).context("read its groups")?;
        let (quota, slow) = quota(&groups)
            .into_iter()
            .find(|(path, _)| path.exists())
            .context("find its control group's quota of processor time")?;
        let context = || format!("limit {}", quota.display());
        let before = std::fs::read_to_string(&quota).with_context(context)?;
        let place = quota.clone();
        let undo = Undo::new("let the helper run freely", move || {
            match std::fs::write(&place, before.trim()) {
                // The helper is gone, or goes just now.
                Err(error)
                    if !place.exists() || error.raw_os_error() == Some(Errno::ENODEV as i32) =>
                {
                    Ok(())
                }
                done => done.with_context(|| format!("write {}", place.display())),
            }
        });
        std::fs::write(&quota, slow).with_context(context)?;
        Ok(Self { cluster, undo })
    }

    /// Waits until the helper works, and makes it stand still there, before its first answer.
    pub fn working(&self) -> Result<()> {
        until("the helper to work", Duration::from_secs(30), || {
            let serving = self.serving()?;
            for pid in &serving {
                kill(Pid::from_raw(*pid), Signal::SIGSTOP).context("stop the helper")?;
            }
            Ok(!serving.is_empty())
        })
    }

    /// Lets it run freely.
    pub fn freely(self) -> Result<()> {
        for pid in self.serving()? {
            match kill(Pid::from_raw(pid), Signal::SIGCONT) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).context("let the helper go on"),
            }
        }
        self.undo.now()
    }

    fn serving(&self) -> Result<Vec<i32>> {
        self.cluster
            .processes("node-2", &["/netpath-helper", "serve"])
    }
}

/// Where the quota of a process with these control groups may stand, of version 1 or 2, and one hundredth of a
/// processor as it is written there.
fn quota(groups: &str) -> Vec<(PathBuf, &'static str)> {
    let lines = groups.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        if controllers.split(',').any(|name| name == "cpu") {
            let file = format!("/sys/fs/cgroup/cpu{path}/cpu.cfs_quota_us");
            return Some((PathBuf::from(file), "1000"));
        }
        let file = format!("/sys/fs/cgroup{path}/cpu.max");
        controllers
            .is_empty()
            .then(|| (PathBuf::from(file), "1000 100000"))
    });
    lines.collect()
}

/// Two people trace at the same time; what one cleans up is his own.
pub fn two_people(cluster: &Cluster) -> Result<()> {
    let person = rbac::kubeconfig(cluster, "person")?;
    let line = "trace client svc/web --keep 5m -o json";
    let both = [cluster.admin(), person.clone()];
    let started = both
        .iter()
        .map(|who| Running::start(cluster.plugin(who, line)));
    let started: Vec<Running> = started.collect::<Result<_>>()?;
    let mut answers = Vec::new();
    for running in started {
        let said = finish(running)?.exits(0)?.silent()?;
        let mut answer: serde_json::Value =
            serde_json::from_str(&said.out).context("read the answer")?;
        answer["stats"] = json!(null);
        answers.push(answer);
    }
    ensure!(
        answers.first() == answers.last(),
        "two answers: {answers:?}"
    );
    ensure!(cluster.helpers()?.len() == 4, "{:?}", cluster.helpers()?);
    let removed = cluster.run_as(&person, "cleanup")?.exits(0)?;
    ensure!(removed.out.lines().count() == 2, "{}", removed.out);
    let kept = cluster.helpers()?;
    ensure!(kept.len() == 2, "the other's stay: {kept:?}");
    cluster.run(line)?.exits(0)?.silent()?;
    ensure!(cluster.helpers()? == kept, "they are used again");
    cluster.run("cleanup")?.exits(0).map(drop)
}

/// An image that no node has is told within seconds, whether it may be pulled or not.
pub fn absent_image(cluster: &Cluster) -> Result<()> {
    for policy in ["Never", "IfNotPresent"] {
        for line in ["trace client svc/web", "map"] {
            let line = format!("{line} --image localhost:1/absent:1 --image-pull-policy {policy}");
            let said = cluster
                .run(&line)?
                .exits(2)?
                .within(Duration::from_secs(15))?;
            said.complains(&["localhost:1/absent:1", "use --image", "node node-1"])?;
        }
    }
    // An image without the helper.
    let said = cluster.run("map client --image localhost/netpath-test:test")?;
    said.exits(2)?
        .within(Duration::from_secs(15))?
        .complains(&[
            "/netpath-helper",
            "check that --image is a netpath helper image",
        ])
        .map(drop)
}

/// Someone deletes the helper while it reads.
pub fn helper_deleted(cluster: &Cluster) -> Result<()> {
    let slow = Slow::on_node_2(cluster)?;
    let running = Running::start(cluster.plugin(&cluster.admin(), "trace client svc/web"))?;
    slow.working()?;
    cluster.kubectl("delete pods -n netpath --field-selector spec.nodeName=node-2 --grace-period=0 --force --wait=true")?;
    let said = finish(running)?.within(Duration::from_secs(30))?;
    match said.code {
        // It had said hello: what it would have told is missing.
        Some(3) => said
            .complains(&["warning: helper on node node-2"])
            .map(drop),
        // It had not, so that another one was started in its place, and knows all that is asked.
        Some(0) => {
            ensure!(
                said.out.contains("delivered on both branches"),
                "{}",
                said.out
            );
            said.silent().map(drop)
        }
        code => bail!("exit code {code:?}: {}", said.err),
    }
}

/// The pod that is asked about goes away while the question is on its way.
pub fn traced_deleted(cluster: &Cluster) -> Result<()> {
    let _undo = cluster.undo(&[&format!(
        "kubectl delete pod victim -n {NAMESPACE} --ignore-not-found >/dev/null"
    )]);
    cluster.apply(&[workload("victim", Some("node-2"), "victim")])?;
    cluster.kubectl(&format!(
        "wait -n {NAMESPACE} --for=condition=Ready pod/victim --timeout=60s"
    ))?;
    let slow = Slow::on_node_2(cluster)?;
    let running = Running::start(cluster.plugin(&cluster.admin(), "trace victim svc/web"))?;
    slow.working()?;
    cluster.kubectl(&format!(
        "delete pod victim -n {NAMESPACE} --grace-period=0 --force --wait=true"
    ))?;
    let gone = || {
        Ok(cluster
            .processes("node-2", &["/netpath-lab", "serve", "--name", "victim"])?
            .is_empty())
    };
    until("its process to end", Duration::from_secs(20), gone)?;
    slow.freely()?;
    let said = finish(running)?;
    cluster.sweep()?;
    // It was still there when it was read, or the error says what is gone.
    if said.code == Some(0) {
        return Ok(());
    }
    said.exits(2)?
        .complains(&[
            "netpath-rights/victim",
            "on node node-2",
            "is it still running there",
        ])
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quota_of_both_versions_of_control_groups_is_found() {
        let old = quota("4:cpu,cpuacct:/pod/a\n1:name=systemd:/x\n0::/y\n");
        let v1 = PathBuf::from("/sys/fs/cgroup/cpu/pod/a/cpu.cfs_quota_us");
        assert_eq!(old.first(), Some(&(v1, "1000")));
        let v2 = PathBuf::from("/sys/fs/cgroup/pod/a/cpu.max");
        assert_eq!(quota("0::/pod/a\n"), [(v2, "1000 100000")]);
        assert_eq!(quota("3:memory:/pod/a\n"), []);
    }
}
