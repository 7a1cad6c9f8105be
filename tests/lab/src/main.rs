//! `netpath-lab`: brings laboratories up and down, breaks them, and sends packets in them.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use netpath_lab::bench::{self, BenchArgs, InsideArgs};
use netpath_lab::holder::{self, HolderArgs};
use netpath_lab::relay::{self, RelayArgs};
use netpath_lab::serve::{self, ServeArgs};
use netpath_lab::state::ClusterState;
use netpath_lab::{Cluster, Fault, Outcome, Overlay, Proxy, Spec, api, exchange, launch, random};
use nix::sys::signal::{SigSet, Signal};

/// Clusters made of network namespaces.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Bring a laboratory up.
    Up {
        /// Name of the laboratory.
        #[arg(long, default_value = "lab")]
        name: String,
        /// How packets travel between nodes.
        #[arg(long, value_enum, default_value_t)]
        overlay: Overlay,
        /// How Services are programmed.
        #[arg(long, value_enum, default_value_t)]
        proxy: Proxy,
        /// Number of nodes, 2 to 4.
        #[arg(long, default_value_t = 2)]
        nodes: usize,
        /// Number of Services, the laboratory's own among them; the others have three endpoints each.
        #[arg(long, default_value_t = 0)]
        services: usize,
        /// Stay until Ctrl-C, then take it down.
        #[arg(long)]
        foreground: bool,
    },
    /// Take a laboratory down.
    Down {
        /// Name of the laboratory.
        #[arg(long, default_value = "lab")]
        name: String,
    },
    /// Remove what laboratories left whose owner was killed.
    Prune,
    /// Show the nodes, pods and faults of one laboratory or of all.
    Status {
        /// Name of the laboratory.
        #[arg(long)]
        name: Option<String>,
    },
    /// Break something, or mend it again.
    Fault {
        /// Name of the laboratory.
        #[arg(long, default_value = "lab")]
        name: String,
        /// On or off.
        #[arg(value_enum)]
        switch: Switch,
        /// Kind of fault.
        #[arg(value_enum)]
        fault: Fault,
        /// Node, NAMESPACE/POD or NAMESPACE/SERVICE, where the fault's default is not meant.
        target: Option<String>,
    },
    /// Run a program in a node, a pod (NAMESPACE/NAME), or `underlay`.
    Exec {
        /// Name of the laboratory.
        #[arg(long, default_value = "lab")]
        name: String,
        /// Node, NAMESPACE/POD or `underlay`.
        place: String,
        /// Program and arguments.
        #[arg(last = true, required = true)]
        argv: Vec<String>,
    },
    /// Send one request and show the answer.
    Curl {
        /// Name of the laboratory.
        #[arg(long, default_value = "lab")]
        name: String,
        /// Node, NAMESPACE/POD or `underlay` to send from.
        place: String,
        /// ADDRESS:PORT to send to.
        target: String,
        /// UDP instead of TCP.
        #[arg(long)]
        udp: bool,
        /// Milliseconds to wait.
        #[arg(long, default_value_t = 2000)]
        timeout: u64,
    },
    /// Send one request from where this program runs, and show the answer.
    Ask {
        /// ADDRESS:PORT to send to.
        target: String,
        /// UDP instead of TCP.
        #[arg(long)]
        udp: bool,
        /// Milliseconds to wait.
        #[arg(long, default_value_t = 2000)]
        timeout: u64,
    },
    /// Lead a TCP port of this namespace to an address in the namespace of a process.
    Relay(RelayArgs),
    /// Serve a laboratory's Kubernetes API on loopback until interrupted.
    Api {
        /// Name of the laboratory.
        #[arg(long, default_value = "lab", conflicts_with = "state")]
        name: String,
        /// State file, where it is not that of a laboratory of this machine.
        #[arg(long)]
        state: Option<PathBuf>,
        /// Program that stands for the helper image's.
        #[arg(long)]
        helper: PathBuf,
        /// TCP port on 127.0.0.1; 0 takes a free one.
        #[arg(long, default_value_t = 0)]
        port: u16,
        /// Where to write a kubeconfig.
        #[arg(long)]
        kubeconfig_out: Option<PathBuf>,
    },
    /// Send random packets through random networks, and hold what was seen against what was predicted.
    Oracle(OracleArgs),
    /// Measure what an answer costs, on laboratories of its own.
    Bench(BenchArgs),
    /// Internal: figures taken inside a node.
    #[command(hide = true)]
    BenchInside(InsideArgs),
    /// Internal: namespaces of a node.
    #[command(hide = true)]
    Holder(HolderArgs),
    /// Internal: pid 1 of a node.
    #[command(hide = true)]
    Init(HolderArgs),
    /// Internal: starts pod processes.
    #[command(hide = true)]
    Launch,
    /// Internal: sandbox process.
    #[command(hide = true)]
    Pause,
    /// Internal: listener.
    #[command(hide = true)]
    Serve(ServeArgs),
}

#[derive(Args)]
struct OracleArgs {
    /// Packets to send.
    #[arg(long, default_value_t = 2000)]
    cases: usize,
    /// Everything follows from it.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The fixed set that the tests run, whatever --cases and --seed say.
    #[arg(long, conflicts_with_all = ["network", "replay"])]
    fixed: bool,
    /// Kinds of devices that not every kernel has and networks are drawn with: names with commas between them, `all`, or
    /// `none`. Default: those that this kernel has; none for the fixed set.
    #[arg(long, conflicts_with = "replay")]
    kinds: Option<random::kinds::Kinds>,
    /// One network alone, by its own seed.
    #[arg(long)]
    network: Option<String>,
    /// The packet of that network to make smaller, by number.
    #[arg(long, requires = "network")]
    packet: Option<usize>,
    /// Show that network as data, and send nothing.
    #[arg(long, requires = "network")]
    show: bool,
    /// A saved case, sent again; with --save, saved with what this kernel did.
    #[arg(long, conflicts_with = "network")]
    replay: Option<PathBuf>,
    /// Directory for cases that disagree, made smaller.
    #[arg(long)]
    save: Option<PathBuf>,
    /// Directory to keep what was read and seen in, of cases that agree (`tests/mutations/run`).
    #[arg(long)]
    record: Option<PathBuf>,
    /// Disagreements after which it ends.
    #[arg(long, default_value_t = 20)]
    most: usize,
    /// CPUs to use.
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Seconds after which it begins no other network.
    #[arg(long, default_value_t = u64::MAX)]
    seconds: u64,
    /// Show which decisions were met.
    #[arg(long)]
    coverage: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Switch {
    On,
    Off,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("netpath-lab: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    match task {
        Task::Up {
            name,
            overlay,
            proxy,
            nodes,
            services,
            foreground,
        } => up(
            Spec::new(overlay, proxy)
                .named(&name)
                .with_nodes(nodes)
                .with_services(services)?,
            foreground,
        )?,
        Task::Down { name } => {
            Cluster::down_by_name(&name)?;
            println!("{name} is down");
        }
        Task::Prune => {
            for name in Cluster::prune()? {
                println!("{name} is removed");
            }
        }
        Task::Status { name } => {
            let names = match name {
                Some(name) => vec![name],
                None => Cluster::names()?,
            };
            for name in names {
                status(&ClusterState::load(&name)?);
            }
        }
        Task::Fault {
            name,
            switch,
            fault,
            target,
        } => {
            let mut cluster = Cluster::load(&name)?;
            println!(
                "{}",
                match switch {
                    Switch::On => cluster.fault_on(fault, target.as_deref())?,
                    Switch::Off => cluster.fault_off(fault, target.as_deref())?,
                }
            );
        }
        Task::Exec { name, place, argv } => {
            let status = Cluster::load(&name)?.place(&place)?.run_attached(&argv)?;
            return Ok(ExitCode::from(
                status
                    .code()
                    .and_then(|c| u8::try_from(c).ok())
                    .unwrap_or(255),
            ));
        }
        Task::Curl {
            name,
            place,
            target,
            udp,
            timeout,
        } => {
            let place = Cluster::load(&name)?.place(&place)?;
            let to = serve::parse_target(&target)?;
            let timeout = Duration::from_millis(timeout);
            let outcome = if udp {
                place.udp_exchange(to, timeout)?
            } else {
                place.tcp_exchange(to, timeout)?
            };
            return Ok(show(&outcome));
        }
        Task::Ask {
            target,
            udp,
            timeout,
        } => {
            let to = serve::parse_target(&target)?;
            let timeout = Duration::from_millis(timeout);
            let outcome = if udp {
                exchange::udp(to, timeout)?
            } else {
                exchange::tcp(to, timeout)?
            };
            return Ok(show(&outcome));
        }
        Task::Relay(args) => relay::relay(&args)?,
        Task::Api {
            name,
            state,
            helper,
            port,
            kubeconfig_out,
        } => {
            let state = state.unwrap_or_else(|| ClusterState::path(&name));
            let options = api::Options {
                helper,
                port,
                kubeconfig: kubeconfig_out,
                misbehave: api::Misbehave::default(),
            };
            tokio::runtime::Runtime::new()
                .context("start the runtime of the API server")?
                .block_on(api::serve(&state, &options))?;
        }
        Task::Oracle(args) => return oracle(&args),
        Task::Bench(args) => bench::run(&args)?,
        Task::BenchInside(args) => bench::inside(&args)?,
        Task::Holder(args) => holder::hold(&args)?,
        Task::Init(args) => holder::init(&args)?,
        Task::Launch => launch::launch()?,
        Task::Pause => {
            launch::join_cgroup()?;
            holder::pause()?;
        }
        Task::Serve(args) => {
            // `up` blocks signals, and its children inherit that.
            SigSet::all().thread_unblock().context("unblock signals")?;
            launch::join_cgroup()?;
            serve::serve(&args)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn oracle(args: &OracleArgs) -> Result<ExitCode> {
    if let Some(dir) = &args.replay {
        random::cpu::keep_to(0)?;
        let path = dir.join("case.json");
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let case = serde_json::from_slice(&text).context("decode the case")?;
        let tried = random::shrink::attempt(&case)?;
        println!("{:?}", tried.verdict);
        if let Some(to) = &args.save {
            let number = case.probes.len().saturating_sub(1);
            let saved = random::save::save(to, &Some(case), 0, number)?;
            println!("saved in {}", saved.unwrap_or_default().display());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let kinds = match &args.kinds {
        Some(kinds) => kinds.clone(),
        None if args.fixed => random::kinds::Kinds::none(),
        None => random::kinds::Kinds::of_kernel()?,
    };
    // On another kernel, a seed gives this network only if they are said.
    eprintln!("devices besides those of every kernel: {kinds}");
    let report = if let Some(text) = &args.network {
        random::cpu::keep_to(0)?;
        let digits = text.trim_start_matches("0x");
        let seed = u64::from_str_radix(digits, 16).context("decode the network's seed")?;
        if args.show {
            let (world, probes) = random::generate(seed, random::run::PROBES, &kinds);
            let case = random::world::Case { world, probes };
            let text = serde_json::to_string_pretty(&case).context("encode the network")?;
            println!("{text}");
            return Ok(ExitCode::SUCCESS);
        }
        let report = random::run::network(
            seed,
            random::run::PROBES,
            &kinds,
            args.record.as_deref(),
            args.save.as_deref(),
            args.packet,
        );
        for text in &report.differ {
            println!("== {text}");
        }
        report
    } else {
        let plan = random::run::Plan {
            seed: args.seed,
            kinds,
            cases: args.cases,
            save: args.save.clone(),
            record: args.record.clone(),
            most: args.most,
            jobs: args.jobs,
            seconds: args.seconds,
        };
        if args.fixed {
            random::run::run_fixed(&plan)?
        } else {
            random::run::run(&plan)?
        }
    };
    if args.coverage {
        print!("{}", report.coverage.text());
    }
    print!("{}", report.text());
    Ok(if report.differ.is_empty() && report.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

fn up(spec: Spec, foreground: bool) -> Result<()> {
    let start = Instant::now();
    let name = spec.name.clone();
    // Signals wait until the laboratory is complete or has been taken away again.
    let mut mask = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        mask.add(signal);
    }
    mask.thread_block().context("block signals")?;
    let cluster = Cluster::up(spec)?;
    if interrupted(&mask)? {
        cluster.down()?;
        bail!("bring up laboratory {name}: interrupted");
    }
    println!(
        "{name} is up: {} nodes, {} pods, {:.2} s",
        cluster.state.nodes.len(),
        cluster.state.pods.len(),
        start.elapsed().as_secs_f64()
    );
    if foreground {
        mask.wait().context("wait for a signal")?;
        cluster.down()
    } else {
        cluster.detach()
    }
}

/// Whether one of the blocked signals waits.
fn interrupted(mask: &SigSet) -> Result<bool> {
    use nix::sys::signalfd::{SfdFlags, SignalFd};
    let signals = SignalFd::with_flags(mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
        .context("open a signal descriptor")?;
    Ok(signals
        .read_signal()
        .context("look for a signal")?
        .is_some())
}

fn show(outcome: &Outcome) -> ExitCode {
    match outcome {
        Outcome::Connected { reply } => {
            println!("{reply}");
            return ExitCode::SUCCESS;
        }
        Outcome::Refused => println!("refused"),
        Outcome::TimedOut => println!("timed out"),
        Outcome::Unreachable(errno) => println!("unreachable: {errno}"),
    }
    ExitCode::FAILURE
}

fn status(state: &ClusterState) {
    println!(
        "{}: {} {}",
        state.name, state.spec.overlay, state.spec.proxy
    );
    for node in state.nodes.iter().chain([&state.underlay]) {
        println!("{}  pid {}  {:?}", node.name, node.holder_pid, node.ips);
    }
    for pod in &state.pods {
        println!(
            "{}/{}  {}  {}  {:?}",
            pod.namespace,
            pod.name,
            pod.node,
            pod.host_veth.as_deref().unwrap_or("host network"),
            pod.ips
        );
    }
    for fault in &state.faults {
        println!(
            "fault {} on {}: {}",
            fault.fault, fault.target, fault.description
        );
    }
}
