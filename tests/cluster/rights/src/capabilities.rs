//! Each capability of the helper taken away in turn: what it is for can't be read then, which is said with the
//! capability's name; whatever else is answered is right.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::cluster::{Cluster, NAMESPACE, Said, steady, until};
use crate::workload;

/// The pods that a kept helper would be, with a change.
fn kept(cluster: &Cluster, change: impl Fn(&mut Value)) -> Result<()> {
    for node in ["node-1", "node-2"] {
        let plan = cluster
            .run(&format!("dump links node/{node} --keep 5m --dry-run"))?
            .exits(0)?;
        let text = cluster.kubectl_with("create --dry-run=client -o json -f -", Some(&plan.out))?;
        let mut pod: Value = serde_json::from_str(&text).context("read the pod")?;
        change(&mut pod);
        cluster.apply(&[pod])?;
    }
    cluster.kubectl(
        "wait -n netpath --for=condition=Ready pod -l app.kubernetes.io/name=netpath --timeout=30s",
    )?;
    Ok(())
}

fn capabilities(pod: &mut Value) -> &mut Value {
    &mut pod["spec"]["containers"][0]["securityContext"]["capabilities"]["add"]
}

/// Commands, and the code with which each ends where nothing is lacking.
const COMMANDS: [&str; 8] = [
    "trace client svc/web",
    "trace client web-2:8080",
    "trace node/node-1 web-2:8080",
    "map client",
    "dump sockets client",
    "dump netfilter node/node-1",
    "dump netfilter legacy",
    "dump routes web-2",
];

/// Which of them say that a capability is lacking.
const NEEDED_BY: [(&str, &[&str]); 4] = [
    (
        "SYS_ADMIN",
        &[
            "trace client svc/web",
            "trace client web-2:8080",
            "trace node/node-1 web-2:8080",
            "map client",
            "dump sockets client",
            "dump netfilter legacy",
            "dump routes web-2",
        ],
    ),
    (
        "SYS_PTRACE",
        &[
            "trace client svc/web",
            "trace client web-2:8080",
            "trace node/node-1 web-2:8080",
            "map client",
            "dump sockets client",
            "dump netfilter legacy",
            "dump routes web-2",
        ],
    ),
    (
        "NET_ADMIN",
        &[
            "trace client svc/web",
            "trace client web-2:8080",
            "trace node/node-1 web-2:8080",
            "dump netfilter node/node-1",
            "dump netfilter legacy",
        ],
    ),
    ("NET_RAW", &["dump netfilter legacy"]),
];

/// Takes each away.
pub fn each_is_needed(cluster: &Cluster) -> Result<()> {
    let _undo = cluster.undo(&[&format!(
        "kubectl delete pod legacy -n {NAMESPACE} --ignore-not-found >/dev/null"
    )]);
    // A pod with rules of the older kind, which take a raw socket to read.
    cluster.apply(&[workload("legacy", Some("node-1"), "legacy")])?;
    cluster.kubectl(&format!(
        "wait -n {NAMESPACE} --for=condition=Ready pod/legacy --timeout=60s"
    ))?;
    // A container that has just started may not be its program yet.
    let words = ["/netpath-lab", "serve", "--name", "legacy"];
    let mut serving = Vec::new();
    until("the program of pod legacy", Duration::from_secs(30), || {
        serving = cluster.processes("node-1", &words)?;
        Ok(!serving.is_empty())
    })?;
    let [pid] = serving.as_slice() else {
        bail!("the pod legacy runs one process: {serving:?}");
    };
    cluster.script(&format!(
        "nsenter -t {pid} -n iptables-legacy -A INPUT -s 192.0.2.1 -j DROP"
    ))?;
    let all = {
        let plan = cluster.run("dump links node/node-1 --dry-run")?.exits(0)?;
        let text = cluster.kubectl_with("create --dry-run=client -o json -f -", Some(&plan.out))?;
        let mut pod: Value = serde_json::from_str(&text).context("read the pod")?;
        let names = capabilities(&mut pod)
            .as_array()
            .cloned()
            .unwrap_or_default();
        names
            .iter()
            .filter_map(|name| name.as_str().map(str::to_owned))
            .collect::<Vec<_>>()
    };
    ensure!(!all.is_empty(), "the helper has capabilities");
    let mut right = Vec::new();
    for line in COMMANDS {
        let said = cluster
            .run(line)?
            .exits(0)
            .with_context(|| line.to_owned())?;
        right.push(steady(&said.silent()?.out));
    }
    let mut wrong = Vec::new();
    for lacking in all {
        kept(cluster, |pod| {
            let add = capabilities(pod);
            let mut names = add.as_array().cloned().unwrap_or_default();
            names.retain(|name| *name != *lacking);
            *add = json!(names);
        })?;
        let mut told = Vec::new();
        for (line, right) in COMMANDS.iter().zip(&right) {
            let said = cluster.run(&format!("{line} --keep 5m"))?;
            match judge(&said, right, &lacking) {
                Ok(true) => told.push(*line),
                Ok(false) => {}
                Err(error) => wrong.push(format!("without {lacking}: {line}: {error:#}")),
            }
        }
        let known = NEEDED_BY.iter().find(|(name, _)| *name == lacking);
        if known.is_none_or(|(_, lines)| *lines != told) {
            wrong.push(format!("without {lacking} it is named by {told:?}"));
        }
        ensure!(
            cluster.helpers()?.len() == 2,
            "others were started: {:?}",
            cluster.helpers()?
        );
        cluster.sweep()?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n      "));
    Ok(())
}

/// The right answer (`false`), or one that names the capability (`true`).
fn judge(said: &Said, right: &str, lacking: &str) -> Result<bool> {
    match said.code {
        Some(0) => {
            let out = steady(&said.out);
            ensure!(out == right, "{out}\ninstead of\n{right}");
            Ok(false)
        }
        Some(2 | 3) => {
            let all = format!("{}{}", said.out, said.err);
            ensure!(
                all.contains(&format!("lacks CAP_{lacking}")),
                "CAP_{lacking} is not named: {all}"
            );
            Ok(true)
        }
        code => bail!("exit code {code:?}: {}{}", said.out, said.err),
    }
}
