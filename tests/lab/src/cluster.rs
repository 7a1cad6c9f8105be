//! A laboratory as tests use it: brought up, asked, broken, and taken down.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::address::{NodePlan, pod_ips};
use crate::cgroup;
use crate::command;
use crate::exchange::{self, Outcome};
use crate::holder::cgroup_of;
use crate::launch::{self, Launch};
use crate::namespace::Namespaces;
use crate::spec::{OUTSIDE4, OUTSIDE6, PodSpec, Protocol, Spec};
use crate::state::{ClusterState, NodeState, PodState};
use crate::{names, network, objects, process, proxy};

/// A running laboratory. Dropping one that [`Cluster::up`] made takes it down.
#[derive(Debug)]
pub struct Cluster {
    /// What it consists of.
    pub state: ClusterState,
    pub(crate) program: PathBuf,
    holders: Vec<Holder>,
    owned: bool,
}

/// The process that stands for a node outside of it, and the pipe that keeps the node alive.
#[derive(Debug)]
struct Holder {
    child: Child,
    lifeline: ChildStdin,
}

/// A place packets can be sent from: a node, a pod, or the host outside of the cluster.
#[derive(Debug)]
pub struct Place {
    /// How the laboratory calls it: `node-1`, `shop/web-0`, `underlay`.
    pub name: String,
    namespaces: Namespaces,
}

impl Place {
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

    /// Sends one request over UDP from here.
    pub fn udp_exchange(&self, to: SocketAddr, timeout: Duration) -> Result<Outcome> {
        self.enter(|| exchange::udp(to, timeout))
    }
}

impl Cluster {
    /// Brings a laboratory up; needs root. It ends when the value is dropped or this process ends.
    ///
    /// The program `netpath-lab` must have been built: it is looked for in `NETPATH_LAB`, beside
    /// this program, and in the directory above (where cargo puts it for tests).
    pub fn up(spec: Spec) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "bring up laboratory {}: root is needed for namespaces",
            spec.name
        );
        spec.check()?;
        let dir = ClusterState::dir(&spec.name);
        fs::create_dir_all(crate::state::STATE_ROOT)
            .with_context(|| format!("create {}", crate::state::STATE_ROOT))?;
        fs::create_dir(&dir).with_context(|| {
            format!(
                "create {}: is laboratory {} up already? `netpath-lab down --name {}` ends it",
                dir.display(),
                spec.name,
                spec.name
            )
        })?;
        let node = |name: String, ips| NodeState {
            name,
            holder_pid: 0,
            ips,
        };
        let mut cluster = Self {
            state: ClusterState {
                name: spec.name.clone(),
                nodes: (1..=spec.nodes)
                    .map(|n| {
                        let plan = NodePlan(n);
                        node(
                            plan.name(),
                            crate::address::Family::BOTH.map(|f| plan.node_ip(f)).into(),
                        )
                    })
                    .collect(),
                objects: Vec::new(),
                underlay: node(
                    "underlay".to_owned(),
                    [OUTSIDE4, OUTSIDE6]
                        .iter()
                        .filter_map(|ip| ip.parse().ok())
                        .collect(),
                ),
                pods: Vec::new(),
                spec,
                faults: Vec::new(),
                emptied_services: Vec::new(),
            },
            program: find_program()?,
            holders: Vec::new(),
            owned: true,
        };
        // From here on a failure drops `cluster`, which takes away what there is of it.
        cluster.start_holders()?;
        cluster.build()?;
        cluster.state.objects = objects::all(&cluster.state);
        cluster.state.save()?;
        Ok(cluster)
    }

    /// Finds a running laboratory; dropping the value leaves it running.
    pub fn load(name: &str) -> Result<Self> {
        Ok(Self {
            state: ClusterState::load(name)?,
            program: find_program()?,
            holders: Vec::new(),
            owned: false,
        })
    }

    /// Lets the laboratory live on after this value and this process.
    pub fn detach(mut self) -> Result<()> {
        for holder in &mut self.holders {
            holder
                .lifeline
                .write_all(b"d")
                .context("let the node live on")?;
        }
        self.owned = false;
        Ok(())
    }

    /// Takes the laboratory down, saying what could not be taken away.
    pub fn down(mut self) -> Result<()> {
        self.owned = false;
        self.take_down()
    }

    /// Takes down what is left of the laboratory called `name`, even without a state file.
    pub fn down_by_name(name: &str) -> Result<()> {
        if ClusterState::path(name).exists() {
            Self::load(name)?.down()
        } else if ClusterState::dir(name).exists() {
            remove_leftovers(name)
        } else {
            bail!("take down laboratory {name}: no such laboratory")
        }
    }

    fn take_down(&mut self) -> Result<()> {
        let mut problems: Vec<String> = Vec::new();
        let mut note = |result: Result<()>| {
            if let Err(error) = result {
                problems.push(format!("{error:#}"));
            }
        };
        for node in self.state.nodes.iter().chain([&self.state.underlay]) {
            note(end_node(&self.state.name, node));
        }
        for mut holder in self.holders.drain(..) {
            drop(holder.lifeline);
            note(
                holder
                    .child
                    .wait()
                    .map(drop)
                    .context("wait for the end of a node"),
            );
        }
        note(remove_leftovers(&self.state.name));
        if problems.is_empty() {
            Ok(())
        } else {
            bail!(
                "take down laboratory {}: {}",
                self.state.name,
                problems.join("; ")
            )
        }
    }

    fn start_holders(&mut self) -> Result<()> {
        let name = self.state.name.clone();
        for node in self.state.nodes.iter().chain([&self.state.underlay]) {
            let log = ClusterState::dir(&name).join(format!("{}.log", node.name));
            let log =
                fs::File::create(&log).with_context(|| format!("create {}", log.display()))?;
            let mut child = Command::new(&self.program)
                .args(["holder", "--lab", &name, "--node", &node.name])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(log)
                .spawn()
                .with_context(|| format!("start {}", self.program.display()))?;
            let lifeline = child
                .stdin
                .take()
                .context("take the standard input of a node")?;
            self.holders.push(Holder { child, lifeline });
        }
        let nodes = self
            .state
            .nodes
            .iter_mut()
            .chain([&mut self.state.underlay]);
        for (node, holder) in nodes.zip(&mut self.holders) {
            let stdout = holder
                .child
                .stdout
                .take()
                .context("take the standard output of a node")?;
            let mut line = String::new();
            BufReader::new(stdout)
                .read_line(&mut line)
                .with_context(|| format!("wait for {}", node.name))?;
            node.holder_pid = line.trim().parse().map_err(|_| {
                let log = ClusterState::dir(&name).join(format!("{}.log", node.name));
                let said = fs::read_to_string(log).unwrap_or_else(|error| error.to_string());
                anyhow!("start {}: it ended early: {}", node.name, said.trim())
            })?;
        }
        Ok(())
    }

    fn build(&mut self) -> Result<()> {
        let pids: Vec<(usize, i32)> = (1..)
            .zip(self.state.nodes.iter().map(|n| n.holder_pid))
            .collect();
        // The underlay is entered with its network namespace alone: process ids are this namespace's.
        Namespaces::net_of(self.state.underlay.holder_pid)?
            .run(|| network::build_underlay(&pids))
            .context("build the underlay")?;
        let state = &self.state;
        let program = self.program.as_path();
        let built: Vec<Result<Vec<PodState>>> = thread::scope(|scope| {
            let workers: Vec<_> = (1..)
                .zip(&state.nodes)
                .map(|(number, node)| scope.spawn(move || build_node(state, program, number, node)))
                .collect();
            workers
                .into_iter()
                .map(|worker| match worker.join() {
                    Ok(result) => result,
                    Err(panic) => std::panic::resume_unwind(panic),
                })
                .collect()
        });
        for pods in built {
            self.state.pods.extend(pods?);
        }
        let outside = Launch {
            title: "/outside".to_owned(),
            arguments: [
                "serve", "--name", "outside", "--tcp", "80", "--tcp", "8080", "--udp", "53",
                "--udp", "8053",
            ]
            .map(str::to_owned)
            .into(),
            cgroup: None,
            netns: None,
        };
        let underlay = Namespaces::of_node(self.state.underlay.holder_pid)?;
        launch::in_node(&underlay, &self.program, &[outside])?;
        for place in self.places()? {
            place.enter(network::wait_until_usable)?;
        }
        Ok(())
    }

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

    /// Writes the rules of every node anew and brings the objects in line.
    pub(crate) fn reprogram(&mut self) -> Result<()> {
        for (number, node) in (1..).zip(&self.state.nodes) {
            self.node(&node.name)?
                .enter(|| proxy::program(&self.state.spec, &self.state.emptied_services, number))?;
        }
        self.state.objects = objects::all(&self.state);
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.owned
            && let Err(error) = self.take_down()
        {
            eprintln!("{error:#}");
        }
    }
}

fn build_node(
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

fn pause_of(spec: &Spec, pod: &PodSpec) -> Launch {
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

fn end_node(lab: &str, node: &NodeState) -> Result<()> {
    if node.holder_pid == 0 || !process::is_in_group(node.holder_pid, &cgroup_of(lab, &node.name))?
    {
        return Ok(());
    }
    process::kill_and_wait(node.holder_pid).with_context(|| format!("end {}", node.name))
}

/// Control groups and files; processes must have been told to end before.
fn remove_leftovers(name: &str) -> Result<()> {
    cgroup::remove(&cgroup::hierarchies()?, &format!("/np-{name}"))?;
    let dir = ClusterState::dir(name);
    fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    match fs::remove_dir(crate::state::STATE_ROOT) {
        Ok(()) => Ok(()),
        // Other laboratories are up, or another process removed it first.
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::DirectoryNotEmpty | std::io::ErrorKind::NotFound
            ) =>
        {
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("remove {}", crate::state::STATE_ROOT)),
    }
}

fn find_program() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("NETPATH_LAB") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("find this program")?;
    let found = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|dir| dir.join("netpath-lab"))
        .find(|path| path.is_file());
    found.with_context(|| {
        format!(
            "find program netpath-lab near {}: build it with `cargo build -p netpath-lab`, or name it in NETPATH_LAB",
            own.display()
        )
    })
}
