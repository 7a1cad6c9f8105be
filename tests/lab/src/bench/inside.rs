//! Figures of single operations, taken inside a node: the namespace of processes must be the node's.

use std::time::Instant;

use anyhow::{Context, Result};
use clap::Args;
use netpath::collect::Roots;
use netpath::collect::netlink::{Netlink, Protocol};
use netpath::collect::netns::Hopper;
use netpath::collect::rtnl::Route;
use serde::{Deserialize, Serialize};

/// Arguments of the internal subcommand.
#[derive(Args, Clone, Debug)]
pub struct InsideArgs {
    /// Runs of each figure.
    #[arg(long)]
    pub runs: usize,
}

/// Nanoseconds of each run, and what was found.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Inside {
    pub(super) discover: Vec<u64>,
    pub(super) open: Vec<u64>,
    /// Of one among all of the node, entered one after the other.
    pub(super) together: Vec<u64>,
    pub(super) pods: usize,
    pub(super) processes: usize,
}

/// Takes the figures and prints them as JSON.
pub fn measure(args: &InsideArgs) -> Result<()> {
    let roots = Roots::default();
    let mut discover = Vec::new();
    for _ in 0..args.runs {
        let start = Instant::now();
        roots.discover().context("find namespaces")?;
        discover.push(nanoseconds(start));
    }
    let found = roots.discover().context("find namespaces")?;
    let pods: Vec<_> = found
        .namespaces
        .values()
        .filter(|ns| ns.pod_uid.is_some())
        .collect();
    let hopper = Hopper::start().context("start the thread that enters namespaces")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
        .context("start a runtime")?;
    let mut open = Vec::new();
    // Every time another namespace, as the helper meets them.
    for ns in pods.iter().cycle().take(args.runs.max(pods.len())) {
        let file = roots.open(ns).context("open a namespace file")?;
        let handle = runtime.handle().clone();
        let start = Instant::now();
        let sockets = hopper.run(&file, move || self::sockets(&handle));
        open.push(nanoseconds(start));
        drop(
            sockets
                .context("enter a namespace")?
                .context("open sockets")?,
        );
    }
    let files: Vec<_> = pods
        .iter()
        .map(|ns| roots.open(ns))
        .collect::<Result<_, _>>()
        .context("open namespace files")?;
    let mut together = Vec::new();
    for _ in 0..args.runs {
        let handle = runtime.handle().clone();
        let start = Instant::now();
        let sockets = hopper
            .run_each(files.clone(), move |_| self::sockets(&handle))
            .context("enter namespaces")?;
        together.push(nanoseconds(start) / u64::try_from(files.len().max(1))?);
        for sockets in sockets {
            sockets
                .context("enter a namespace")?
                .context("open sockets")?;
        }
    }
    let result = Inside {
        discover,
        open,
        together,
        pods: pods.len(),
        processes: found.namespaces.values().map(|ns| ns.pids.len()).sum(),
    };
    println!(
        "{}",
        serde_json::to_string(&result).context("encode the figures")?
    );
    Ok(())
}

/// What the helper opens in a namespace.
fn sockets(
    runtime: &tokio::runtime::Handle,
) -> netpath::collect::Result<(Route, Netlink, Netlink, Netlink)> {
    Ok((
        Route::open(runtime)?,
        Netlink::open(Protocol::Route)?,
        Netlink::open(Protocol::Netfilter)?,
        Netlink::open(Protocol::SockDiag)?,
    ))
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
