//! Places of a cluster that packets can be sent from and programs run in.

use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

use super::Cluster;
use crate::command;
use crate::exchange::{self, Outcome};
use crate::namespace::Namespaces;
use crate::state::PodState;

/// A place packets can be sent from: a node, a pod, or the host outside of the cluster.
#[derive(Debug)]
pub struct Place {
    /// How the laboratory calls it: `node-1`, `shop/web-0`, `underlay`.
    pub name: String,
    namespaces: Namespaces,
}

impl Place {
    /// The network namespace of a process that no laboratory knows; everything else is as it is here.
    pub fn of_process(name: &str, pid: i32) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            namespaces: Namespaces::net_of(pid)?,
        })
    }

    /// A network namespace by the path of its file; everything else is as it is here.
    pub fn at(name: &str, path: &std::path::Path) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            namespaces: Namespaces::net_at(path)?,
        })
    }

    /// Runs a program there and returns its standard output; a failing program is an error.
    pub fn run<S: AsRef<str> + Sync>(&self, argv: impl AsRef<[S]>) -> Result<String> {
        let argv = argv.as_ref();
        self.enter(|| command::run(argv))
    }

    /// Runs a program there with this process's own standard streams.
    pub fn run_attached(&self, argv: &[String]) -> Result<ExitStatus> {
        let (program, arguments) = argv.split_first().context("no program named")?;
        self.enter(|| {
            Command::new(program)
                .args(arguments)
                .status()
                .with_context(|| format!("run {program} in {}", self.name))
        })
    }

    /// Runs `work` on a thread that lives there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.namespaces
            .run(work)
            .with_context(|| format!("in {}", self.name))
    }

    /// The network namespace.
    pub fn netns_fd(&self) -> Result<BorrowedFd<'_>> {
        self.namespaces
            .net_fd()
            .with_context(|| format!("{} has no network namespace", self.name))
    }

    /// Sends one request over TCP from here.
    pub fn tcp_exchange(&self, to: SocketAddr, timeout: Duration) -> Result<Outcome> {
        self.enter(|| exchange::tcp(to, timeout))
    }

    /// Sends one echo request from here.
    pub fn echo(&self, to: std::net::IpAddr, timeout: Duration) -> Result<Outcome> {
        self.enter(|| exchange::echo(to, timeout))
    }

    /// Sends one request over UDP from here.
    pub fn udp_exchange(&self, to: SocketAddr, timeout: Duration) -> Result<Outcome> {
        self.enter(|| exchange::udp(to, timeout))
    }
}

impl Cluster {
    /// Every place of the laboratory: nodes, pods with a namespace of their own, and the underlay.
    pub fn places(&self) -> Result<Vec<Place>> {
        let mut places = vec![self.outside()?];
        for node in &self.state.nodes {
            places.push(self.node(&node.name)?);
        }
        for pod in self.state.pods.iter().filter(|pod| !pod.host_network) {
            places.push(self.pod(&format!("{}/{}", pod.namespace, pod.name))?);
        }
        Ok(places)
    }

    /// The node called `name`.
    pub fn node(&self, name: &str) -> Result<Place> {
        let node = self
            .state
            .node(name)
            .with_context(|| format!("laboratory {} has no node {name}", self.state.name))?;
        Ok(Place {
            name: name.to_owned(),
            namespaces: Namespaces::of_node(node.holder_pid)?,
        })
    }

    /// The pod called `namespace/name`.
    pub fn pod(&self, path: &str) -> Result<Place> {
        let pod = self.pod_state(path)?;
        let node = self.node(&pod.node)?;
        Ok(Place {
            name: path.to_owned(),
            namespaces: node.namespaces.with_net_of(pod.pause_pid)?,
        })
    }

    /// What is known of the pod called `namespace/name`.
    pub fn pod_state(&self, path: &str) -> Result<&PodState> {
        self.state
            .pod(path)
            .with_context(|| format!("laboratory {} has no running pod {path}", self.state.name))
    }

    /// The host outside of the cluster, which carries the underlay.
    pub fn outside(&self) -> Result<Place> {
        Ok(Place {
            name: "underlay".to_owned(),
            namespaces: Namespaces::of_node(self.state.underlay.holder_pid)?,
        })
    }

    /// A node, a pod (`namespace/name`), or `underlay`.
    pub fn place(&self, name: &str) -> Result<Place> {
        if name == "underlay" || name == "outside" {
            self.outside()
        } else if name.contains('/') {
            self.pod(name)
        } else {
            self.node(name)
        }
    }
}
