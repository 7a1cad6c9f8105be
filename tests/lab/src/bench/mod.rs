//! The benchmark: what an answer costs, in whole processes on a laboratory of this machine.
//!
//! Nothing here is a test: figures are printed beside their goals and judged by people.

mod crowd;
mod inside;
mod machine;
mod report;
mod scale;
mod trace;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::api::{Options, Server};
use crate::state::ClusterState;
use crate::{Cluster, Overlay, Proxy, Spec};

pub use inside::{InsideArgs, measure as inside};
use report::{Report, Row};
use trace::Client;

/// Fewest runs that a median is made of.
const FEWEST: usize = 7;
/// Every trace of the benchmark: a Service with one backend on each node.
const ENDS: [&str; 2] = ["pod-a", "svc-b"];

/// Arguments of `netpath-lab bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// The client as it is shipped.
    #[arg(long)]
    pub client: PathBuf,
    /// The helper as it is shipped.
    #[arg(long)]
    pub helper: PathBuf,
    /// Runs of each figure, at least 7.
    #[arg(long, default_value_t = 9)]
    pub runs: usize,
    /// Numbers of Services of the scale figures; 0 leaves them out.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 10_000])]
    pub services: Vec<usize>,
    /// Service proxies of the scale figures; all by default.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Proxy::ALL)]
    pub proxy: Vec<Proxy>,
}

/// Measures everything and prints the tables.
pub fn run(args: &BenchArgs) -> Result<()> {
    ensure!(
        args.runs >= FEWEST,
        "--runs {}: a median of fewer than {FEWEST} runs says little",
        args.runs
    );
    println!("{}\n", machine::describe(args.runs)?);
    let mut report = Report::new(["figure", "median", "min", "max", "goal"]);
    sizes(args, &mut report)?;
    traces(args, &mut report)?;
    crowd::figures(args, &mut report)?;
    println!("{report}");
    let mut table = Report::new([
        "proxy",
        "Services",
        "warm trace",
        "asking helpers",
        "round trips",
        "bytes read",
        "helper VmHWM",
        "client VmHWM",
    ]);
    for proxy in &args.proxy {
        for services in args.services.iter().filter(|services| **services > 0) {
            table.push(scale::figures(args, *proxy, *services)?);
        }
    }
    if !table.is_empty() {
        println!("{table}");
    }
    Ok(())
}

fn sizes(args: &BenchArgs, report: &mut Report) -> Result<()> {
    for (name, path, goal) in [
        ("helper binary", &args.helper, "3 MB"),
        ("client binary", &args.client, "8 MB"),
    ] {
        let size = std::fs::metadata(path)
            .with_context(|| format!("look at {}", path.display()))?
            .len();
        report.push(Row::one(name, report::bytes(size)).goal(goal));
    }
    Ok(())
}

/// Cold and warm traces on the default laboratory.
fn traces(args: &BenchArgs, report: &mut Report) -> Result<()> {
    let lab = Lab::up(args, Spec::new(Overlay::Vxlan, Proxy::IptablesNft))?;
    let cold = lab.client.times(args.runs, &[])?;
    report.push(Row::of("cold trace: start to answer", cold.answer()).goal("1.5 s"));
    report.push(Row::of("cold trace: start to exit", cold.exit()));
    let warm = lab.client.warm(args.runs)?;
    report.push(Row::of("warm trace: start to answer", warm.answer()).goal("250 ms"));
    report.push(Row::of("warm trace: start to exit", warm.exit()));
    report.push(Row::one("round trips", warm.stats()?.round_trips));
    report.push(Row::one(
        "bytes read",
        report::bytes(warm.stats()?.bytes_in),
    ));
    let peak = lab.client.peaks(&lab.server)?;
    report.push(Row::one("helper memory, VmHWM", report::bytes(peak.helper)).goal("32 MiB"));
    report.push(Row::one("client memory, VmHWM", report::bytes(peak.client)));
    lab.down()
}

/// A laboratory with its API server, and a client that knows it.
struct Lab {
    cluster: Cluster,
    server: Server,
    runtime: tokio::runtime::Runtime,
    client: Client,
    _dir: Dir,
}

/// A directory that goes with the value.
struct Dir(PathBuf);

impl Drop for Dir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("netpath-lab bench: remove {}: {error}", self.0.display());
        }
    }
}

impl Lab {
    fn up(args: &BenchArgs, spec: Spec) -> Result<Self> {
        let name = format!("bench{}", std::process::id());
        let cluster = Cluster::up(spec.named(&name))?;
        let dir = std::env::temp_dir().join(&name);
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        let dir = Dir(dir);
        let kubeconfig = dir.0.join("kubeconfig");
        let runtime = tokio::runtime::Runtime::new().context("start a runtime")?;
        let options = Options {
            helper: absolute(&args.helper)?,
            kubeconfig: Some(kubeconfig.clone()),
            ..Options::default()
        };
        let server = runtime.block_on(Server::start(&ClusterState::path(&name), &options))?;
        Ok(Self {
            cluster,
            server,
            runtime,
            client: Client::new(absolute(&args.client)?, kubeconfig),
            _dir: dir,
        })
    }

    fn down(self) -> Result<()> {
        self.runtime.block_on(self.server.stop())?;
        self.cluster.down()
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).with_context(|| format!("find {}", path.display()))
}
