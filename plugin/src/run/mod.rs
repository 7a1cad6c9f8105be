//! The one place where the stages are called in order.

#![expect(
    clippy::format_push_string,
    reason = "writing to a String cannot fail, and its result would have to be ignored"
)]

mod capture;
mod check;
pub mod cluster;
mod drive;
mod dump;
mod exchange;
mod existing;
pub mod fleet;
pub mod local;
mod map;
mod mtu;
mod out;
mod place;
mod plan;
mod points;
pub mod probe;
mod progress;
mod save;
mod saved;
mod stages;
pub mod trace;
mod watch;

use std::future::Future;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Context;
use netpath::explain::codes;

use crate::cli::{
    CleanupArgs, Cli, Command, CompletionFor, ExplainArgs, Format, GlobalFlags, SnapshotCommand,
};
use crate::launch::error::LaunchError;
use crate::launch::signals::Signals;
use crate::launch::{CleanupScope, Outcome, Signal, cleanup};
use crate::render::{self, Options};

/// Exit code: some branch is dropped, rejected or loops.
pub const BROKEN: u8 = 1;
/// Exit code: wrong usage, or the tool failed.
pub const TOOL_FAILURE: u8 = 2;
/// Exit code: it can't be told, or not everything was read.
pub const INCONCLUSIVE: u8 = 3;

/// Does what was typed. Errors are printed here, once.
pub async fn run(cli: Cli) -> ExitCode {
    let global = &cli.global;
    let done = match &cli.command {
        Command::Trace(args) => trace::run(args, global).await,
        Command::Map(args) => map::run(args, global).await,
        Command::Dump(args) => dump::run(args, global).await,
        Command::Check(args) => check::run(args, global).await,
        Command::Capture(args) => Box::pin(capture::run(args, global)).await,
        Command::Snapshot(SnapshotCommand::Save(args)) => save::run(args, global).await,
        Command::Explain(args) => explain(args),
        Command::Cleanup(args) => clean(args, global).await,
        Command::Version(args) => version(args.output),
        Command::Completion(args) => completion(args.shell),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            say(&format!("error: {error:#}"));
            ExitCode::from(TOOL_FAILURE)
        }
    }
}

/// How answers are to look.
pub fn options(global: &GlobalFlags) -> Options {
    Options::of(global.color)
}

/// Writes an answer to stdout. A reader that has gone away wants no more of it.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("write the answer to stdout"),
    }
}

/// Writes a line or more to stderr, without what a terminal would obey: servers and nodes chose some of
/// the words.
pub fn say(text: &str) {
    eprintln!("{}", render::without_commands(text));
}

/// Names the helper pods that could not be removed, each with the command that does, and gives the exit
/// code: that of the answer, which scripts key on, unless it says that all went well.
pub fn left_behind(left: &[LaunchError], code: u8) -> u8 {
    for error in left {
        say(&format!("error: {error}"));
    }
    match code {
        0 if !left.is_empty() => TOOL_FAILURE,
        code => code,
    }
}

/// Says how work with helper pods ended, and what it left behind; gives the exit code.
fn finish(outcome: Outcome<anyhow::Result<u8>>, left: &[LaunchError]) -> anyhow::Result<u8> {
    let code = match outcome {
        Outcome::Done(Ok(code)) => code,
        Outcome::Done(Err(error)) => {
            left_behind(left, TOOL_FAILURE);
            return Err(error);
        }
        Outcome::Signalled(signal) => interrupted(signal),
    };
    Ok(left_behind(left, code))
}

/// Writes a value as JSON or YAML.
pub fn print_data(value: &impl serde::Serialize, format: Format) -> anyhow::Result<()> {
    print(&render::data(value, format)?)
}

/// Runs work that has no helper pods to remove; a signal drops it, which ends its child process.
pub async fn interruptible(work: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    let mut signals = Signals::listen();
    tokio::select! {
        biased;
        signal = signals.next() => Ok(interrupted(signal)),
        done = work => done,
    }
}

/// Says that a signal ended the run, and gives the exit code for it.
pub fn interrupted(signal: Signal) -> u8 {
    let word = match signal {
        Signal::Interrupt => "interrupted",
        Signal::Terminate => "terminated",
        #[cfg(unix)]
        Signal::Hangup => "hung up",
    };
    eprintln!("{word}");
    signal.exit_code()
}

fn explain(args: &ExplainArgs) -> anyhow::Result<u8> {
    let Some(typed) = &args.code else {
        let mut text = String::new();
        for code in codes::ALL {
            text.push_str(&format!("{}  {}\n", code.code, code.title));
        }
        print(&text)?;
        return Ok(0);
    };
    let Some(code) = codes::find(typed) else {
        anyhow::bail!(
            "explain {typed:?}: there is no such finding; codes are {} to {}, list them with: kubectl netpath explain",
            codes::ALL.first().map_or("", |code| code.code),
            codes::ALL.last().map_or("", |code| code.code)
        );
    };
    print(code.page)?;
    Ok(0)
}

async fn clean(args: &CleanupArgs, global: &GlobalFlags) -> anyhow::Result<u8> {
    let kube = global.connection.connect().await?;
    let scope = CleanupScope {
        namespace: args.helper_namespace.clone(),
        usual: args.usual_namespace.clone(),
        all_users: args.all,
        dry_run: args.dry_run,
    };
    let (pods, searched) = cleanup(&kube, &scope).await?;
    let mut failed = false;
    let mut text = String::new();
    for pod in &pods {
        let what = format!("helper pod {}/{} on {}", pod.namespace, pod.name, pod.node);
        match &pod.removed {
            Ok(true) => text.push_str(&format!("removed {what}\n")),
            Ok(false) => text.push_str(&format!("would remove {what} ({})\n", pod.phase)),
            Err(error) => {
                failed = true;
                say(&format!("error: remove {what}: {error}"));
            }
        }
    }
    if pods.is_empty() {
        let place = searched.map_or_else(
            || "any namespace".to_owned(),
            |name| format!("namespace {name}"),
        );
        let whose = if args.all { "" } else { " of yours" };
        text.push_str(&format!("no helper pods{whose} in {place}\n"));
    }
    print(&text)?;
    Ok(if failed { TOOL_FAILURE } else { 0 })
}

#[derive(serde::Serialize)]
struct Version {
    schema: &'static str,
    client: &'static str,
    contract: u32,
    snapshot: &'static str,
}

fn version(format: Format) -> anyhow::Result<u8> {
    let version = Version {
        schema: "netpath.version/v1",
        client: env!("CARGO_PKG_VERSION"),
        contract: netpath::contract::SCHEMA_VERSION,
        snapshot: netpath::contract::file::SNAPSHOT_SCHEMA,
    };
    match format {
        Format::Text | Format::Wide => print(&format!(
            "kubectl-netpath {} (helper contract {}, {})\n",
            version.client, version.contract, version.snapshot
        ))?,
        Format::Json | Format::Yaml => print_data(&version, format)?,
    }
    Ok(0)
}

fn completion(shell: CompletionFor) -> anyhow::Result<u8> {
    use clap_complete::Shell;
    let shell = match shell {
        CompletionFor::Bash => Shell::Bash,
        CompletionFor::Elvish => Shell::Elvish,
        CompletionFor::Fish => Shell::Fish,
        CompletionFor::PowerShell => Shell::PowerShell,
        CompletionFor::Zsh => Shell::Zsh,
        CompletionFor::Kubectl => {
            print(crate::complete::SCRIPT)?;
            return Ok(0);
        }
    };
    let mut command = <Cli as clap::CommandFactory>::command();
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut command, "kubectl-netpath", &mut bytes);
    print(&String::from_utf8_lossy(&bytes))?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_left_behind_changes_only_the_code_of_success() {
        let left = || LaunchError::LeftBehind {
            pods: "helper pod shop/netpath-1 from node worker-1".to_owned(),
            command: "kubectl delete pod".to_owned(),
            cause: "forbidden".to_owned(),
        };
        assert_eq!(left_behind(&[], 0), 0);
        assert_eq!(left_behind(&[left()], 0), TOOL_FAILURE);
        assert_eq!(left_behind(&[left()], BROKEN), BROKEN);
        assert_eq!(left_behind(&[left()], INCONCLUSIVE), INCONCLUSIVE);
    }
}
