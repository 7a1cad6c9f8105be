//! The benchmark: what an answer costs, in whole processes on a laboratory of this machine.
//!
//! Nothing here is a test: figures are printed beside their goals and judged by people.

mod crowd;
mod inside;
mod machine;
mod overhead;
mod report;
mod scale;
mod trace;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::api::{Options, Server};
use crate::state::ClusterState;
use crate::{Cluster, Overlay, Proxy, Spec};

pub use inside::{InsideArgs, measure as inside};
use report::{Report, Row, Value};
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
    /// Runs of each figure, at least 7; 21 by default, 7 with --quick.
    #[arg(long)]
    pub runs: Option<usize>,
    /// Few runs, and nodes with 1000 Services at most: some three minutes.
    #[arg(long)]
    pub quick: bool,
    /// Numbers of Services of the scale figures; 0 leaves them out. 100,1000,10000 by default; bringing
    /// up 10000 takes some minutes.
    #[arg(long, value_delimiter = ',')]
    pub services: Option<Vec<usize>>,
    /// Service proxies of the scale figures; all by default.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Proxy::ALL)]
    pub proxy: Vec<Proxy>,
    /// Only what a bulk flow loses beside captures and probes of another one; some four minutes. Of use on a machine
    /// that does nothing else.
    #[arg(long)]
    pub overhead: bool,
}

impl BenchArgs {
    fn runs(&self) -> usize {
        self.runs.unwrap_or(if self.quick { FEWEST } else { 21 })
    }

    fn services(&self) -> Vec<usize> {
        self.services.clone().unwrap_or(if self.quick {
            vec![1000]
        } else {
            vec![100, 1000, 10_000]
        })
    }
}

/// Measures everything and prints the tables.
pub fn run(args: &BenchArgs) -> Result<()> {
    ensure!(
        args.runs() >= FEWEST,
        "--runs {}: a median of fewer than {FEWEST} runs says little",
        args.runs()
    );
    println!("{}\n", machine::describe(args.runs())?);
    if args.overhead {
        return overhead::figures(args);
    }
    let mut report = Report::new(["figure", "median", "p95", "min", "goal"]);
    sizes(args, &mut report)?;
    traces(args, &mut report)?;
    crowd::figures(args, &mut report)?;
    println!("{report}");
    let mut table = Report::new([
        "proxy",
        "Services",
        "warm trace (p95)",
        "of it without asking",
        "asking helpers",
        "round trips (goal 3)",
        "bytes read",
        "helper VmHWM (goal 32 MiB)",
        "client VmHWM",
        "tool that dumps the rules",
    ]);
    for proxy in &args.proxy {
        for services in args.services().into_iter().filter(|services| *services > 0) {
            table.push(scale::figures(args, *proxy, services)?);
        }
    }
    if !table.is_empty() {
        println!("{table}");
    }
    Ok(())
}

fn sizes(args: &BenchArgs, report: &mut Report) -> Result<()> {
    for (name, path, goal) in [
        ("helper binary", &args.helper, 3_000_000),
        ("client binary", &args.client, 8_000_000),
    ] {
        let size = std::fs::metadata(path)
            .with_context(|| format!("look at {}", path.display()))?
            .len();
        report.push(Row::one(name, Value::Bytes(size)).goal(Value::Bytes(goal)));
    }
    Ok(())
}

/// Cold and warm traces on the default laboratory.
fn traces(args: &BenchArgs, report: &mut Report) -> Result<()> {
    let lab = Lab::up(args, Spec::new(Overlay::Vxlan, Proxy::IptablesNft))?;
    let cold = lab.client.times(args.runs(), &[])?;
    let time = |millis| Value::Time(Duration::from_millis(millis));
    report.push(Row::of("cold trace: start to answer", cold.answer()).goal(time(1500)));
    report.push(Row::of("cold trace: start to exit", cold.exit()));
    let warm = lab.client.warm(args.runs())?;
    report.push(Row::of("warm trace: start to answer", warm.answer()).goal(time(250)));
    report.push(Row::of("warm trace: start to exit", warm.exit()));
    let stats = warm.stats()?;
    report.push(Row::one("round trips", Value::Count(stats.round_trips)).goal(Value::Count(3)));
    report.push(Row::one("bytes read", Value::Bytes(stats.bytes_in)));
    let peak = lab.client.peaks(&lab.server)?;
    let most = Value::Bytes(32 << 20);
    report.push(Row::one("helper memory, VmHWM", Value::Bytes(peak.helper)).goal(most));
    report.push(Row::one("client memory, VmHWM", Value::Bytes(peak.client)));
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
