//! The helper as a child process, for `--local`.

use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use tokio::process::Command;
use tokio::sync::watch;

use super::error::LaunchError;
use super::pipe::{End, Pipe, StderrTail};

/// Environment variable that names the helper program.
pub const HELPER_VARIABLE: &str = "NETPATH_HELPER";

const HELPER_NAME: &str = if cfg!(windows) {
    "netpath-helper.exe"
} else {
    "netpath-helper"
};

/// Starts `netpath-helper serve` on this machine; the child is killed when the pipe is dropped.
///
/// The program is `$NETPATH_HELPER`, else the one beside this executable, else the first in `PATH`.
/// Errors: it is not found or cannot be started.
pub fn spawn_local() -> Result<Pipe, LaunchError> {
    let program = find_helper()?;
    spawn(&program, &["serve"])
}

/// Starts a program as helper.
pub(super) fn spawn(program: &std::path::Path, args: &[&str]) -> Result<Pipe, LaunchError> {
    let failed = |cause: String| LaunchError::Local {
        program: program.display().to_string(),
        cause,
        remedy: format!(
            "check that it is a netpath-helper for this machine, or set {HELPER_VARIABLE}"
        ),
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    let (Some(stdin), Some(stdout), Some(stderr)) =
        (child.stdin.take(), child.stdout.take(), child.stderr.take())
    else {
        return Err(failed("its streams are missing".to_owned()));
    };
    let tail = StderrTail::default();
    let drain = tokio::spawn(tail.clone().drain(stderr));
    let (send, end) = watch::channel(None);
    let waiter = tokio::spawn(async move {
        let ended = match child.wait().await {
            Ok(status) => how(status),
            Err(error) => End::Cut(error.to_string()),
        };
        // Nobody listens any more if the session was dropped.
        let _ = send.send(Some(ended));
    });
    Ok(Pipe {
        reader: Box::new(stdout),
        writer: Box::new(stdin),
        end,
        stderr: tail,
        keep: Box::new(Keep { drain, waiter }),
    })
}

/// Aborting the waiter drops the child, which kills it.
struct Keep {
    drain: tokio::task::JoinHandle<()>,
    waiter: tokio::task::JoinHandle<()>,
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.drain.abort();
        self.waiter.abort();
    }
}

fn how(status: ExitStatus) -> End {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        return End::Killed(format!("signal {signal}"));
    }
    End::Exited(status.code().unwrap_or(-1))
}

fn find_helper() -> Result<PathBuf, LaunchError> {
    if let Some(given) = std::env::var_os(HELPER_VARIABLE).filter(|v| !v.is_empty()) {
        return Ok(PathBuf::from(given));
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|exe| exe.canonicalize().ok())
        .and_then(|exe| Some(exe.parent()?.join(HELPER_NAME)));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<PathBuf> = std::env::split_paths(&path)
        .map(|dir| dir.join(HELPER_NAME))
        .collect();
    let found = beside
        .iter()
        .chain(&on_path)
        .find(|candidate| candidate.is_file());
    found.cloned().ok_or_else(|| LaunchError::Local {
        program: HELPER_NAME.to_owned(),
        cause: "not found beside kubectl-netpath nor in PATH".to_owned(),
        remedy: format!("install it there, or set {HELPER_VARIABLE} to its path"),
    })
}
