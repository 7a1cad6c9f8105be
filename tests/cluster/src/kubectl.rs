//! The real kubectl, and through it the plugin as users run it.

use std::io::Read;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netpath_lab::Outcome;
use nix::errno::Errno;
use serde_json::Value;

/// Namespace of everything that the check makes.
pub const NAMESPACE: &str = "netpath-test";

/// A program that takes longer is ended; the longest wait in it is one for pods.
const PATIENCE: Duration = Duration::from_secs(90);

/// Set by a signal: nothing new is begun.
pub static STOPPED: AtomicBool = AtomicBool::new(false);

/// An error once a signal came.
pub fn go_on() -> Result<()> {
    ensure!(!STOPPED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// Runs kubectl and returns what it wrote, whatever its exit code is.
pub fn output(arguments: &[&str], input: &str) -> Result<Output> {
    let what = || format!("kubectl {}", arguments.join(" "));
    let mut child = Command::new("kubectl")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", what()))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let end = Instant::now() + PATIENCE;
    thread::scope(|scope| {
        let reader = |pipe: Option<Box<dyn Read + Send>>| {
            scope.spawn(move || {
                let mut bytes = Vec::new();
                pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut bytes))
                    .map(|_| bytes)
            })
        };
        let stdout = reader(stdout.map(|pipe| Box::new(pipe) as _));
        let stderr = reader(stderr.map(|pipe| Box::new(pipe) as _));
        if let Some(mut stdin) = stdin {
            // kubectl that failed early has said why.
            let _ = std::io::Write::write_all(&mut stdin, input.as_bytes());
        }
        let status = loop {
            if let Some(status) = child.try_wait().context("wait for kubectl")? {
                break Some(status);
            }
            if Instant::now() > end {
                child.kill().context("end kubectl")?;
                child.wait().context("wait for kubectl")?;
                break None;
            }
            pause();
        };
        let read =
            |thread: thread::ScopedJoinHandle<'_, std::io::Result<Vec<u8>>>| match thread.join() {
                Ok(bytes) => bytes.with_context(|| format!("read what {} wrote", what())),
                Err(panic) => std::panic::resume_unwind(panic),
            };
        let (stdout, stderr) = (read(stdout)?, read(stderr)?);
        let Some(status) = status else {
            bail!(
                "{}: not done after {} s: {}",
                what(),
                PATIENCE.as_secs(),
                String::from_utf8_lossy(&stderr).trim()
            );
        };
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    })
}

/// A moment between two looks at a condition.
pub fn pause() {
    #[expect(clippy::disallowed_methods, reason = "callers poll a condition")]
    thread::sleep(Duration::from_millis(2));
}

/// Runs kubectl; an exit code other than 0 is an error.
pub fn run(arguments: &[&str], input: &str) -> Result<String> {
    let output = output(arguments, input)?;
    ensure!(
        output.status.success(),
        "kubectl {}: {}: {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    String::from_utf8(output.stdout).context("read kubectl's output")
}

/// Objects of a kind in the check's namespace.
pub fn get(kind: &str) -> Result<Vec<Value>> {
    let text = run(&["get", kind, "--namespace", NAMESPACE, "-o", "json"], "")?;
    let mut list: Value =
        serde_json::from_str(&text).with_context(|| format!("read the list of {kind}"))?;
    match list.get_mut("items").map(Value::take) {
        Some(Value::Array(items)) => Ok(items),
        _ => bail!("read the list of {kind}: it has no items"),
    }
}

/// `kubectl exec POD -- /netpath-lab ask`: one exchange from inside a pod.
pub fn ask(pod: &str, to: std::net::SocketAddr, udp: bool, wait: Duration) -> Result<Outcome> {
    let (to, wait) = (to.to_string(), wait.as_millis().to_string());
    let mut arguments = vec!["exec", "--namespace", NAMESPACE, pod, "--"];
    arguments.extend(["/netpath-lab", "ask", &to, "--timeout", &wait]);
    if udp {
        arguments.push("--udp");
    }
    let output = output(&arguments, "")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    asked(&text).with_context(|| {
        format!(
            "kubectl {}: {}: {}",
            arguments.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        )
    })
}

/// What `netpath-lab ask` printed.
fn asked(text: &str) -> Result<Outcome> {
    let line = text.lines().next().unwrap_or_default();
    Ok(match line {
        "" => bail!("the client printed nothing"),
        "refused" => Outcome::Refused,
        "timed out" => Outcome::TimedOut,
        other if other.starts_with("unreachable: ") => Outcome::Unreachable(Errno::UnknownErrno),
        reply => Outcome::Connected {
            reply: reply.to_owned(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_client_prints_is_an_outcome() {
        assert_eq!(asked("refused\n").unwrap(), Outcome::Refused);
        assert_eq!(asked("timed out\n").unwrap(), Outcome::TimedOut);
        assert_eq!(
            asked("unreachable: EHOSTUNREACH: No route to host\n").unwrap(),
            Outcome::Unreachable(Errno::UnknownErrno)
        );
        assert_eq!(asked("web-1 10.0.0.1:4\n").unwrap().pod(), Some("web-1"));
        assert!(asked("").is_err());
    }
}
