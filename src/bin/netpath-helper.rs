//! The node helper: reads the kernel for `kubectl netpath`, which speaks to it on stdin and stdout.
//!
//! It opens no port, writes nothing, runs no program and sends no netlink message that changes anything.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use netpath::collect::serve::{IDLE, dump, serve};
use netpath::collect::{Collector, Roots, idle, privileges};

const USAGE: &str = "usage: netpath-helper serve            answer requests on stdin and stdout
       netpath-helper idle [[GRACE] LIMIT]
                                       wait; for a pod's main process. Ends after LIMIT seconds, or after GRACE
                                       seconds as soon as no helper serves in its container
       netpath-helper dump             print all facts of this node as JSON
       netpath-helper version";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args.as_slice() {
        ["serve"] => run_serve(),
        ["dump"] => run_dump(),
        ["idle", times @ ..] => {
            let times = times
                .iter()
                .map(|time| time.parse().map(Duration::from_secs));
            match times.collect::<Result<Vec<_>, _>>().as_deref() {
                Ok([]) => run_idle(None, None),
                Ok([limit]) => run_idle(None, Some(*limit)),
                Ok([grace, limit]) => run_idle(Some(*grace), Some(*limit)),
                _ => return usage(),
            }
        }
        ["version" | "--version"] => {
            println!("netpath-helper {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => return usage(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("netpath-helper: {message}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("{USAGE}");
    ExitCode::from(2)
}

fn run_idle(grace: Option<Duration>, limit: Option<Duration>) -> Result<(), String> {
    privileges::keep_none().map_err(|error| error.to_string())?;
    idle::wait(grace, limit)
}

fn collector() -> Result<Collector, String> {
    // Without it, nodes with very many pods are read in part, and say so.
    if let Err(error) = netpath::collect::limits::raise_open_files() {
        eprintln!("netpath-helper: {error}");
    }
    // Before the collector starts threads: capabilities belong to threads.
    privileges::keep_needed().map_err(|error| error.to_string())?;
    Collector::new(Roots::default()).map_err(|error| error.to_string())
}

fn run_serve() -> Result<(), String> {
    let _serving = match idle::serving() {
        Ok(serving) => Some(serving),
        Err(error) => {
            eprintln!("netpath-helper: {error}; a pod that it runs in ends at its deadline");
            None
        }
    };
    let mut collector = collector()?;
    #[cfg(feature = "capture")]
    let mut watcher = netpath::capture::Taps::default();
    #[cfg(not(feature = "capture"))]
    let mut watcher = netpath::collect::serve::Blind;
    serve(
        io::stdin().lock(),
        io::stdout().lock(),
        &mut collector,
        &mut watcher,
        IDLE,
    )
    .map_err(|error| error.to_string())
}

fn run_dump() -> Result<(), String> {
    dump(io::stdout().lock(), &mut collector()?).map_err(|error| error.to_string())
}
