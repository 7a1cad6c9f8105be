//! Builds a node and starts the processes of its pods.

use std::path::Path;

use anyhow::{Context, Result};

use crate::address::pod_ips;
use crate::launch::{self, Launch};
use crate::namespace::Namespaces;
use crate::spec::{PodSpec, Protocol, Spec};
use crate::state::{ClusterState, NodeState, PodState};
use crate::{names, network, process, proxy};

/// Builds node `number`, whose namespaces and `eth0` exist, and answers with its pods.
pub(super) fn build_node(
    state: &ClusterState,
    program: &Path,
    number: usize,
    node: &NodeState,
) -> Result<Vec<PodState>> {
    let spec = &state.spec;
    let inside = Namespaces::of_node(node.holder_pid)?;
    let pods: Vec<&PodSpec> = spec.pods.iter().filter(|pod| pod.node == number).collect();
    let own: Vec<&PodSpec> = pods
        .iter()
        .copied()
        .filter(|pod| !pod.host_network)
        .collect();
    let namespaces = inside
        .run(|| {
            network::build_node(spec, number)?;
            proxy::program(spec, &[], number)?;
            network::build_pods(spec, &own)
        })
        .with_context(|| format!("build {}", node.name))?;
    for (pod, namespace) in own.iter().zip(&namespaces) {
        namespace
            .run(|| network::build_pod(pod))
            .with_context(|| format!("set up pod {}", pod.path()))?;
    }
    let mut list = Vec::new();
    for pod in &pods {
        list.push(pause_of(spec, pod));
        list.push(listener_of(spec, pod, false));
    }
    let inner = launch::in_node(&inside, program, &list)?;
    let outer = process::ids_in_namespace_of(node.holder_pid)?;
    let find = |id: Option<&i32>| {
        id.and_then(|id| outer.get(id))
            .copied()
            .context("find a pod's process: it is gone")
    };
    let mut states = Vec::new();
    for (pod, ids) in pods.iter().zip(inner.chunks(2)) {
        states.push(PodState {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            node: node.name.clone(),
            uid: pod_uid(spec, pod),
            host_network: pod.host_network,
            ips: pod_ips(pod),
            host_veth: (!pod.host_network).then(|| network::host_veth(&spec.name, pod)),
            netns_path: netns_path(spec, pod),
            pause_pid: find(ids.first())?,
            serve_pid: Some(find(ids.get(1))?),
            sandbox_id: sandbox_id(spec, pod),
            container_id: container_id(spec, pod),
        });
    }
    Ok(states)
}

/// `metadata.uid` of a pod.
pub(crate) fn pod_uid(spec: &Spec, pod: &PodSpec) -> String {
    names::uid(&format!("{}/pod/{}", spec.name, pod.path()))
}

fn sandbox_id(spec: &Spec, pod: &PodSpec) -> String {
    names::hex(&format!("{}/sandbox/{}", spec.name, pod.path()), 64)
}

/// Id of a pod's only container.
pub(crate) fn container_id(spec: &Spec, pod: &PodSpec) -> String {
    names::hex(&format!("{}/container/{}", spec.name, pod.path()), 64)
}

fn netns_path(spec: &Spec, pod: &PodSpec) -> Option<String> {
    (!pod.host_network).then(|| format!("/run/netns/{}", network::netns_name(&spec.name, pod)))
}

fn group(spec: &Spec, pod: &PodSpec, id: &str) -> String {
    format!("/kubepods/burstable/pod{}/{id}", pod_uid(spec, pod))
}

/// The sandbox process of a pod.
pub(crate) fn pause_of(spec: &Spec, pod: &PodSpec) -> Launch {
    Launch {
        title: "/pause".to_owned(),
        arguments: vec!["pause".to_owned()],
        cgroup: Some(group(spec, pod, &sandbox_id(spec, pod))),
        netns: netns_path(spec, pod),
    }
}

/// The listener of a pod, on the loopback addresses only if `localhost`.
pub(crate) fn listener_of(spec: &Spec, pod: &PodSpec, localhost: bool) -> Launch {
    let mut arguments = vec!["serve".to_owned(), "--name".to_owned(), pod.name.clone()];
    for port in &pod.ports {
        arguments.push(match port.protocol {
            Protocol::Tcp => "--tcp".to_owned(),
            Protocol::Udp => "--udp".to_owned(),
        });
        arguments.push(port.port.to_string());
    }
    if localhost {
        arguments.push("--localhost".to_owned());
    }
    Launch {
        title: "/server".to_owned(),
        arguments,
        cgroup: Some(group(spec, pod, &container_id(spec, pod))),
        netns: netns_path(spec, pod),
    }
}
