//! `netpath-check`: what `kubectl netpath` says of a real cluster, beside what happens to real packets in it.
//!
//! Runs on the cluster of tests/cluster/up, where packets are captured in every namespace and faults are made; or
//! on any other by its KUBECONFIG, where only the ends of exchanges can be compared. `tests/cluster/check` builds
//! it and calls it.

mod answer;
mod expect;
mod fault;
mod flows;
mod inside;
mod judge;
mod kubectl;
mod namespace;
mod probe;
mod settle;
mod tell;
mod times;
mod workload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use flows::Case;
use inside::Inside;
use judge::Judge;
use namespace::Namespace;
use netpath_cluster::undo::{FAILED, Undo};
use tell::{Told, tell};
use workload::Objects;

/// Traces and clients in pods that run at once, through kubectl.
const AT_ONCE: usize = 4;

/// Compares `kubectl netpath` with real packets. kubectl and kubectl-netpath have to be on PATH.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    /// State directory of a cluster that tests/cluster/up raised on this machine; none: any cluster, by KUBECONFIG
    #[arg(long)]
    state: Option<PathBuf>,
    /// A server outside of the cluster answers as `outside` on 198.51.100.1 and 2001:db8:51::1, TCP port 80 and UDP
    /// port 53
    #[arg(long)]
    outside: bool,
    /// Answers that disagree, and snapshots of their clusters, are written to a new directory whose path begins like
    /// this and ends in four random letters
    #[arg(long, default_value = "/tmp/netpath-check")]
    save: PathBuf,
    /// Image of the test pods
    #[arg(
        long,
        env = "TEST_IMAGE",
        default_value = "localhost/netpath-test:test"
    )]
    image: String,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: start the runtime that hears signals: {error}");
            return ExitCode::from(2);
        }
    };
    runtime.spawn(stop_at_signals());
    match check(&arguments) {
        Ok(true) if !FAILED.load(Ordering::Relaxed) => ExitCode::SUCCESS,
        Ok(true) => ExitCode::from(2),
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// A signal only keeps new work from beginning, so that what was broken is mended in order.
async fn stop_at_signals() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
    let [Ok(mut interrupt), Ok(mut terminate)] = kinds.map(signal) else {
        eprintln!("error: listen for signals: refused; Ctrl-C leaves faults behind");
        return;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        kubectl::STOPPED.store(true, Ordering::Relaxed);
    }
}

/// Whether all agree.
fn check(arguments: &Arguments) -> Result<bool> {
    let begin = Instant::now();
    let namespace = Namespace::make()?;
    let clean = Undo::new("remove what the check made", || namespace.remove());
    let objects = Objects::make(&arguments.image)?;
    let inside = arguments
        .state
        .as_ref()
        .map(|state| Inside::find(state, &objects));
    let inside = inside.transpose()?;
    let mut judge = Judge {
        objects,
        inside: inside.as_ref(),
        capture: None,
        failures: 0,
        cases: 0,
        save: arguments.save.clone(),
        saved: None,
    };
    settle::services(&judge)?;
    let ready = begin.elapsed().as_secs_f64();
    println!("== the workload is ready after {ready:.1} s");

    println!("== time of one trace across nodes through a Service, whole process");
    times::print()?;

    let pinned = match &inside {
        Some(inside) => inside.pin_neighbours(&judge.objects)?,
        None => Vec::new(),
    };
    if !arguments.outside {
        println!("== flows to the outside are left out: no server there is named");
    }
    let mut cases = flows::well(&judge.objects, arguments.outside)?;
    cases.extend(flows::broken(&judge.objects)?);
    println!("== {} flows", cases.len());
    let told = tell_all(&judge, &cases);
    // Begun behind the traces, whose own packets would fill the sockets.
    let capture = inside.as_ref().map(|inside| inside.capture(&judge.objects));
    judge.capture = capture.transpose()?;
    for (case, told) in cases.iter().zip(told) {
        judge.case(case, told)?;
    }
    if let Some(inside) = &inside {
        println!(
            "== broken inside a node, {:.1} s so far",
            begin.elapsed().as_secs_f64()
        );
        fault::all(&mut judge, inside)?;
    }
    pinned.into_iter().try_for_each(Undo::now)?;
    clean.now()?;
    println!(
        "== {} cases in {:.1} s",
        judge.cases,
        begin.elapsed().as_secs_f64()
    );
    match judge.failures {
        0 => println!("== all agree"),
        failures => println!("== {failures} disagree"),
    }
    Ok(judge.failures == 0)
}

/// What is told of each case, several at once.
fn tell_all(judge: &Judge<'_>, cases: &[Case]) -> Vec<Result<Told>> {
    let next = AtomicUsize::new(0);
    let told: Mutex<BTreeMap<usize, Result<Told>>> = Mutex::default();
    let (objects, once) = (&judge.objects, judge.inside.is_some());
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(case) = cases.get(index) else { return };
                    let one = tell(objects, case, once);
                    if let Ok(mut told) = told.lock() {
                        told.insert(index, one);
                    }
                }
            });
        }
    });
    let told = told.into_inner().unwrap_or_else(PoisonError::into_inner);
    told.into_values().collect()
}
