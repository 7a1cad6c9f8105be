//! A small Kubernetes API server for a laboratory: plain HTTP on the loopback address.
//!
//! It serves what `kubectl netpath` and a handful of kubectl commands ask, starts the real helper in
//! the right node's namespaces when a helper pod is created, and misbehaves when told to
//! ([`Misbehave`], `PUT /lab/misbehave`). It is no general API server: nothing is validated or stored.
//!
//! Read in this order: [`store`], [`routes`], [`kubelet`], [`exec`].

mod connection;
mod discovery;
mod exec;
mod kubelet;
mod misbehave;
mod protobuf;
mod request;
mod routes;
mod status;
mod store;
mod table;
mod watch;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::sync::watch as channel;

use crate::state::{ClusterState, NodeState};
pub use misbehave::{Admission, Fail, HelperFate, Misbehave, Rule};
use store::Store;

/// How often the state file is looked at for changes: faults rewrite it.
const REFRESH: Duration = Duration::from_millis(500);

/// What to serve and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Program that stands for the image's `/netpath-helper`.
    pub helper: PathBuf,
    /// TCP port; 0 takes a free one.
    pub port: u16,
    /// Where to write a kubeconfig, if anywhere.
    pub kubeconfig: Option<PathBuf>,
    /// How to misbehave from the start.
    pub misbehave: Misbehave,
}

/// A running API server. Dropping it without [`Server::stop`] kills its processes too.
pub struct Server {
    address: SocketAddr,
    app: Arc<App>,
    stop: channel::Sender<bool>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

/// What all requests share.
struct App {
    store: Store,
    kubelet: kubelet::Kubelet,
    misbehave: misbehave::Switch,
    state_file: Option<PathBuf>,
}

impl App {
    /// Takes over the objects of the state file if it has changed.
    fn refresh(&self, seen: &mut Option<SystemTime>) -> Result<()> {
        let Some(path) = &self.state_file else {
            return Ok(());
        };
        let changed = std::fs::metadata(path)
            .and_then(|meta| meta.modified())
            .with_context(|| format!("look at laboratory state {}", path.display()))?;
        if *seen == Some(changed) {
            return Ok(());
        }
        let state = ClusterState::load_from(path)?;
        self.store.replace_base(state.objects);
        self.kubelet.set_nodes(state.nodes);
        *seen = Some(changed);
        Ok(())
    }
}

impl Server {
    /// Serves the laboratory of a state file, following its changes.
    pub async fn start(state_file: &Path, options: &Options) -> Result<Self> {
        let state = ClusterState::load_from(state_file)?;
        Self::launch(
            Some(state_file.to_owned()),
            state.nodes,
            state.objects,
            options,
        )
        .await
    }

    /// Serves fixed objects. A node whose holder is process 0 has no namespaces of its own: its pods
    /// run in this machine's.
    pub async fn start_fixed(
        nodes: Vec<NodeState>,
        objects: Vec<Value>,
        options: &Options,
    ) -> Result<Self> {
        Self::launch(None, nodes, objects, options).await
    }

    async fn launch(
        state_file: Option<PathBuf>,
        nodes: Vec<NodeState>,
        objects: Vec<Value>,
        options: &Options,
    ) -> Result<Self> {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, options.port))
            .await
            .with_context(|| format!("listen on 127.0.0.1:{}", options.port))?;
        let address = listener
            .local_addr()
            .context("read the address listened on")?;
        if let Some(path) = &options.kubeconfig {
            std::fs::write(path, kubeconfig(address))
                .with_context(|| format!("write kubeconfig {}", path.display()))?;
        }
        let misbehave = misbehave::Switch::new(options.misbehave.clone());
        let app = Arc::new(App {
            store: Store::new(objects),
            kubelet: kubelet::Kubelet::new(nodes, options.helper.clone()),
            misbehave: misbehave.clone(),
            state_file,
        });
        if app.state_file.is_some() {
            tokio::spawn(follow(Arc::downgrade(&app)));
        }
        let (stop, mut stopped) = channel::channel(false);
        let router = routes::router(Arc::clone(&app));
        let listener = connection::Cuttable::new(listener, misbehave);
        let task = tokio::spawn(async move {
            let serving = axum::serve(listener, router).into_future();
            tokio::select! {
                served = serving => served,
                // Open watches would hold up a graceful end for ever.
                _ = stopped.wait_for(|stop| *stop) => Ok(()),
            }
        });
        Ok(Self {
            address,
            app,
            stop,
            task,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig for it.
    pub fn kubeconfig(&self) -> String {
        kubeconfig(self.address)
    }

    /// Changes how it misbehaves.
    pub fn misbehave(&self, how: Misbehave) {
        self.app.misbehave.set(how);
    }

    /// Names of the helper pods that exist, as `namespace/name`.
    pub fn helper_pods(&self) -> Vec<String> {
        self.app.store.added("pods")
    }

    /// Process ids of everything started for helper pods that still runs.
    pub fn processes(&self) -> Vec<u32> {
        self.app.kubelet.processes()
    }

    /// Stops serving and kills what was started.
    pub async fn stop(self) -> Result<()> {
        self.stop.send_replace(true);
        self.app.kubelet.kill_all();
        let Self { task, .. } = self;
        task.await
            .context("end the API server")?
            .context("serve the API")
    }
}

/// Arguments of `netpath-lab api`.
#[derive(clap::Args, Clone, Debug)]
pub struct ApiArgs {
    /// State file of the laboratory.
    #[arg(long)]
    pub state: PathBuf,
    /// Program that stands for the image's helper.
    #[arg(long)]
    pub helper: PathBuf,
    /// TCP port on 127.0.0.1; 0 takes a free one.
    #[arg(long, default_value_t = 0)]
    pub port: u16,
    /// Where to write a kubeconfig.
    #[arg(long)]
    pub kubeconfig_out: Option<PathBuf>,
    /// How to misbehave, as JSON.
    #[arg(long)]
    pub misbehave: Option<String>,
}

/// `netpath-lab api`, with a runtime of its own.
pub fn run(args: &ApiArgs) -> Result<()> {
    let misbehave = match &args.misbehave {
        Some(text) => serde_json::from_str(text).context("decode --misbehave")?,
        None => Misbehave::default(),
    };
    let options = Options {
        helper: args.helper.clone(),
        port: args.port,
        kubeconfig: args.kubeconfig_out.clone(),
        misbehave,
    };
    tokio::runtime::Runtime::new()
        .context("start a runtime")?
        .block_on(serve(&args.state, &options))
}

/// Serves until SIGINT or SIGTERM.
pub async fn serve(state_file: &Path, options: &Options) -> Result<()> {
    let server = Server::start(state_file, options).await?;
    println!("http://{}", server.address());
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .context("install a handler for SIGTERM")?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupt = tokio::signal::ctrl_c() => interrupt.context("wait for SIGINT")?,
    }
    server.stop().await
}

async fn follow(app: std::sync::Weak<App>) {
    let mut seen = None;
    let mut ticks = tokio::time::interval(REFRESH);
    loop {
        ticks.tick().await;
        let Some(app) = app.upgrade() else { return };
        if let Err(error) = app.refresh(&mut seen) {
            // A laboratory that was taken down: its last objects are served on.
            eprintln!("netpath-lab api: {error:#}");
            return;
        }
    }
}

fn kubeconfig(address: SocketAddr) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: lab\n\
         clusters:\n- name: lab\n  cluster:\n    server: http://{address}\n\
         users:\n- name: lab\n  user: {{}}\n\
         contexts:\n- name: lab\n  context:\n    cluster: lab\n    user: lab\n    namespace: default\n"
    )
}
