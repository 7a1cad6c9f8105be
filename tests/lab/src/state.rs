//! What a running laboratory is, as a file: `/run/netpath-lab/<name>/state.json`.
//!
//! Read this first when something outside this crate needs the cluster: the API server serves
//! [`ClusterState::objects`] word for word, and enters a node by [`NodeState::holder_pid`].

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::spec::Spec;

/// Where every laboratory of this machine keeps its state file.
pub const STATE_ROOT: &str = "/run/netpath-lab";

/// One laboratory: processes that hold its namespaces, and the Kubernetes objects that describe it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ClusterState {
    /// Name of the laboratory; also the name of its state directory and part of its cgroup path.
    pub name: String,
    /// Kubernetes nodes, in order of their number.
    pub nodes: Vec<NodeState>,
    /// Kubernetes API objects as `kubectl get -o json` would show them (`apiVersion` and `kind` set).
    ///
    /// `v1` Namespace, Node, Pod and Service, `discovery.k8s.io/v1` EndpointSlice, `apps/v1`
    /// Deployment, ReplicaSet, StatefulSet and DaemonSet.
    pub objects: Vec<Value>,
    /// The namespace that carries the underlay bridge and plays the host outside of the cluster.
    pub underlay: NodeState,
    /// Pods that have processes; Pending and Completed pods appear in `objects` only.
    pub pods: Vec<PodState>,
    /// What the laboratory was asked to be.
    pub spec: Spec,
    /// Faults that are on now.
    #[serde(default)]
    pub faults: Vec<crate::fault::ActiveFault>,
    /// Services whose endpoints a fault has taken away, as `namespace/name`.
    #[serde(default)]
    pub emptied_services: Vec<String>,
}

/// One machine of the laboratory.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct NodeState {
    /// Node name as in the API (`node-1`), or `underlay`.
    pub name: String,
    /// Process id, in the pid namespace of who ran `up`, of the node's pid 1.
    ///
    /// Its net, mnt, pid, uts, ipc and cgroup namespaces are the node's. Killing it ends the node.
    pub holder_pid: i32,
    /// Node addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
}

/// One pod that has processes.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PodState {
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Name of the node that runs it.
    pub node: String,
    /// `metadata.uid`.
    pub uid: String,
    /// Whether it lives in the node's own network namespace.
    pub host_network: bool,
    /// Pod addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
    /// Name of the host end of the pod's veth; none with `host_network`.
    pub host_veth: Option<String>,
    /// Path, in the node's mount namespace, of the bind-mounted network namespace; none with `host_network`.
    pub netns_path: Option<String>,
    /// Process id of the sandbox (pause) process, in the pid namespace of who ran `up`.
    pub pause_pid: i32,
    /// Process id of the listener, likewise; none while a fault has taken it away.
    pub serve_pid: Option<i32>,
    /// Sandbox id, 64 hexadecimal digits.
    pub sandbox_id: String,
    /// Container id, 64 hexadecimal digits.
    pub container_id: String,
}

impl ClusterState {
    /// Directory of the laboratory called `name`.
    pub fn dir(name: &str) -> PathBuf {
        Path::new(STATE_ROOT).join(name)
    }

    /// State file of the laboratory called `name`.
    pub fn path(name: &str) -> PathBuf {
        Self::dir(name).join("state.json")
    }

    /// Reads the state of the laboratory called `name`; says so when there is none.
    pub fn load(name: &str) -> Result<Self> {
        Self::load_from(&Self::path(name))
    }

    /// Reads a state file from anywhere.
    pub fn load_from(path: &Path) -> Result<Self> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => bail!(
                "read laboratory state {}: no such laboratory; start one with `netpath-lab up`",
                path.display()
            ),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("read laboratory state {}", path.display()));
            }
        };
        serde_json::from_slice(&text)
            .with_context(|| format!("decode laboratory state {}", path.display()))
    }

    /// Writes the state file in one step, so that a reader never sees half of it.
    pub fn save(&self) -> Result<()> {
        let path = Self::path(&self.name);
        let fresh = path.with_extension("json.new");
        let text = serde_json::to_vec_pretty(self).context("encode laboratory state")?;
        fs::write(&fresh, text).with_context(|| format!("write {}", fresh.display()))?;
        fs::rename(&fresh, &path).with_context(|| format!("rename to {}", path.display()))
    }

    /// The node called `name`.
    pub fn node(&self, name: &str) -> Option<&NodeState> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// The pod called `namespace/name`.
    pub fn pod(&self, path: &str) -> Option<&PodState> {
        let (namespace, name) = path.split_once('/')?;
        self.pods
            .iter()
            .find(|pod| pod.namespace == namespace && pod.name == name)
    }
}
