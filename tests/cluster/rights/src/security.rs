//! Pod Security of the helpers' namespace.

use anyhow::Result;
use serde_json::json;

use crate::cluster::{Cluster, Said, differing, steady};

/// Namespaces that do not admit helpers say so; one that does works.
pub fn pod_security(cluster: &Cluster) -> Result<()> {
    let _undo = cluster.undo(&[
            "kubectl delete namespace netpath-baseline netpath-restricted netpath-privileged --ignore-not-found >/dev/null",
        ],
    );
    for level in ["baseline", "restricted", "privileged"] {
        let name = format!("netpath-{level}");
        cluster.apply(&[json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"pod-security.kubernetes.io/enforce": level}}})])?;
        for line in [
            "trace client svc/web",
            "trace client svc/web --privileged",
            "map",
        ] {
            let said = cluster.run(&format!("{line} --helper-namespace {name}"))?;
            if level == "privileged" {
                said.exits(0).and_then(Said::silent)?;
                continue;
            }
            said.exits(2)?
                .complains(&[
                    &format!("violates \"{level}:latest\""),
                    "host namespaces (hostNetwork=true, hostPID=true)",
                    "use --helper-namespace with a namespace labelled pod-security.kubernetes.io/enforce=privileged",
                ])?
                .once(&format!("create pods in namespace {name}"))?;
        }
        cluster.clean()?;
    }
    Ok(())
}

/// The fallback gives the same answers.
pub fn privileged(cluster: &Cluster) -> Result<()> {
    for line in [
        "trace client svc/web",
        "dump netfilter node/node-1",
        "dump sockets web-2",
    ] {
        let plain = cluster.run(line)?.exits(0)?;
        let privileged = cluster.run(&format!("{line} --privileged"))?.exits(0)?;
        let (one, other) = (steady(&plain.out), steady(&privileged.out));
        anyhow::ensure!(one == other, "{line}: {}", differing(&one, &other));
        privileged.silent()?;
    }
    Ok(())
}
