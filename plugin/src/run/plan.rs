//! `--dry-run`: the helper pods that would be created and the rights that it takes.

#![expect(
    clippy::format_push_string,
    reason = "writing to a String cannot fail, and its result would have to be ignored"
)]

use super::cluster::Cluster;
use crate::cli::Format;
use crate::launch::{Launcher, NodeTarget};
use crate::render;

/// Rights on helper pods, in their namespace.
const ON_PODS: &str = "create, watch (or get), delete pods; get, create pods/exec";
/// Rights by which names are looked up. Without those on pods, Services and workloads, ends named so are an error;
/// without the others the answer says what is missing in it.
const ON_NAMES: &str = "list pods, services, nodes, namespaces, endpointslices.discovery.k8s.io, \
    and the workloads named (deployments.apps and so on)";

/// Prints manifests for `nodes`, as YAML that `kubectl apply` would take. Creates nothing.
///
/// Errors: the answer can't be written.
pub fn print(
    launcher: &Launcher,
    cluster: &Cluster,
    nodes: impl Iterator<Item = String>,
) -> anyhow::Result<u8> {
    let targets: Vec<NodeTarget> = nodes
        .map(|name| match cluster.view.node(&name) {
            Some(node) => NodeTarget::of(node),
            None => NodeTarget::named(&name),
        })
        .collect();
    let mut text = format!(
        "# Nothing was created. These pods would be, and removed with the answer.\n\
         # Should the packet come to other nodes, they get one each, too.\n\
         # Rights (as roles: docs/rbac.yaml) in namespace {}: {ON_PODS}\n\
         # Rights in the cluster: {ON_NAMES}\n\
         # Admission: hostPID, hostNetwork and the capabilities below (pod security level privileged)\n",
        launcher.namespace()
    );
    let mut code = 0;
    for pod in launcher.planned(&targets) {
        match pod {
            Ok(pod) => text.push_str(&format!("---\n{}", render::data(&pod, Format::Yaml)?)),
            Err(why) => {
                super::say(&format!("warning: {why}"));
                code = super::INCONCLUSIVE;
            }
        }
    }
    super::print(&render::without_commands(&text))?;
    Ok(code)
}
