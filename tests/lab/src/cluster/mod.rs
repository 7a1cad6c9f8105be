//! A laboratory as tests use it: brought up, asked, broken, and taken down.

mod down;
mod place;
mod pods;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};

use crate::address::NodePlan;
use crate::launch::{self, Launch};
use crate::namespace::Namespaces;
use crate::spec::{OUTSIDE4, OUTSIDE6, Spec};
use crate::state::{ClusterState, NodeState, PodState};
use crate::{network, objects, proxy};

pub use place::Place;
pub(crate) use pods::{container_id, listener_of, pause_of, pod_uid};

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
        let program = find_program()?;
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
            program,
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
                .map(|(number, node)| {
                    scope.spawn(move || pods::build_node(state, program, number, node))
                })
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
