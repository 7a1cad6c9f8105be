//! `kubectl netpath`: where a packet goes between pods, Services and nodes, and what stops it.
//!
//! Read [`run`] for the order of things: what was typed ([`cli`]) is checked ([`request`]), names are
//! looked up ([`resolve`]), helpers are started ([`launch`]), the packet is followed, and the answer
//! is written ([`render`]).

mod cli;
mod complete;
mod conntrack_args;
mod credential;
mod kube_client;
mod kube_error;
mod kube_flags;
mod launch;
mod proxy_names;
mod render;
mod request;
mod resolve;
mod run;

use std::process::ExitCode;

/// Completes words for a shell, which wants no messages.
fn complete(words: Vec<std::ffi::OsString>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let Ok(runtime) = runtime else {
        return ExitCode::from(run::TOOL_FAILURE);
    };
    let text = runtime.block_on(complete::run(words));
    // A name lookup without an answer must not keep the shell waiting.
    runtime.shutdown_background();
    match run::print(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(run::TOOL_FAILURE),
    }
}

fn main() -> ExitCode {
    let mut words = std::env::args_os().peekable();
    let name = words.next();
    if name.is_some_and(|name| complete::is_completer(&name))
        || words.next_if(|word| word == complete::WORD).is_some()
    {
        return complete(words.collect());
    }
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        // Help and version go to stdout with code 0, mistakes to stderr with code 2.
        Err(error) => error.exit(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    match runtime {
        Ok(runtime) => {
            let code = runtime.block_on(run::run(cli));
            // A blocked name lookup must not keep the program from ending.
            runtime.shutdown_background();
            code
        }
        Err(error) => {
            eprintln!("error: start the runtime: {error}");
            ExitCode::from(run::TOOL_FAILURE)
        }
    }
}
