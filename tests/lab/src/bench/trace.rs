//! Runs the client and takes its time, its own figures, and the memory of what it started.

use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::ENDS;
use super::report::Times;
use crate::api::Server;

/// The client, and where its cluster is.
pub(super) struct Client {
    program: PathBuf,
    kubeconfig: PathBuf,
}

/// What the client says of its answer.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) struct Stats {
    pub(super) round_trips: u32,
    pub(super) bytes_in: u64,
}

#[derive(Deserialize)]
struct Answer {
    verdict: String,
    stats: Stats,
}

/// One whole process.
struct Run {
    answer: Duration,
    exit: Duration,
    /// What waiting for helpers' facts took of it, by the client's own account.
    asking: Duration,
    stats: Stats,
}

/// Several whole processes.
pub(super) struct Runs(Vec<Run>);

impl Runs {
    /// From the start to the last byte of the answer.
    pub(super) fn answer(&self) -> Times {
        self.0.iter().map(|run| run.answer).collect()
    }

    /// From the start to the end of the process.
    pub(super) fn exit(&self) -> Times {
        self.0.iter().map(|run| run.exit).collect()
    }

    /// What of it was waiting for facts from helpers that were running already.
    pub(super) fn asking(&self) -> Times {
        self.0.iter().map(|run| run.asking).collect()
    }

    /// The rest of it: mostly reading the cluster from the laboratory's API server.
    pub(super) fn without_asking(&self) -> Times {
        self.0
            .iter()
            .map(|run| run.answer.saturating_sub(run.asking))
            .collect()
    }

    /// The client's figures, of the run in the middle by bytes.
    pub(super) fn stats(&self) -> Result<Stats> {
        let mut all: Vec<Stats> = self.0.iter().map(|run| run.stats).collect();
        all.sort_by_key(|stats| (stats.round_trips, stats.bytes_in));
        all.get(all.len() / 2).copied().context("no run was made")
    }
}

/// Most memory that a process had, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peaks {
    pub(super) helper: u64,
    pub(super) client: u64,
}

impl Client {
    pub(super) fn new(program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self {
            program,
            kubeconfig,
        }
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn trace(&self, more: &[&str]) -> Command {
        let mut arguments = vec!["trace", ENDS[0], ENDS[1], "-o", "json", "--verbose"];
        arguments.extend(more);
        self.command(&arguments)
    }

    /// Times whole traces.
    pub(super) fn times(&self, runs: usize, more: &[&str]) -> Result<Runs> {
        (0..runs)
            .map(|_| self.one(more))
            .collect::<Result<_>>()
            .map(Runs)
    }

    /// The same with helpers that an earlier trace kept, which end here.
    pub(super) fn warm(&self, runs: usize) -> Result<Runs> {
        let keep = ["--keep", "10m"];
        self.one(&keep)?;
        let done = self.times(runs, &keep);
        self.cleanup()?;
        done
    }

    fn cleanup(&self) -> Result<()> {
        let output = self.command(&["cleanup"]).output();
        let output = output.with_context(|| format!("start {}", self.program.display()))?;
        ensure!(
            output.status.success(),
            "remove helpers: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn one(&self, more: &[&str]) -> Result<Run> {
        let start = Instant::now();
        let mut child = self.start(more)?;
        let mut stdout = child.stdout.take().context("take the client's output")?;
        let mut stderr = child.stderr.take().context("take the client's messages")?;
        let said = std::thread::spawn(move || {
            let mut text = String::new();
            stderr.read_to_string(&mut text).map(|_| text)
        });
        let mut text = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        let mut answer = Duration::ZERO;
        loop {
            let count = stdout.read(&mut chunk).context("read the answer")?;
            let Some(more @ [_, ..]) = chunk.get(..count) else {
                break;
            };
            text.extend_from_slice(more);
            answer = start.elapsed();
        }
        child.wait().context("wait for the client")?;
        let exit = start.elapsed();
        let said = said
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let said = said.context("read the client's messages")?;
        let decoded: Answer = serde_json::from_slice(&text)
            .with_context(|| format!("decode the client's answer; it said: {said}"))?;
        ensure!(
            decoded.verdict == "delivered",
            "the trace's verdict is {}: a benchmark of a wrong answer is of no use",
            decoded.verdict
        );
        Ok(Run {
            answer,
            exit,
            asking: said.lines().filter_map(asking).sum(),
            stats: decoded.stats,
        })
    }

    fn start(&self, more: &[&str]) -> Result<Child> {
        self.trace(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))
    }

    /// Most memory of helpers and client in a warm trace: looked at again and again while they run,
    /// since the kernel forgets a process's peak with the process.
    pub(super) fn peaks(&self, server: &Server) -> Result<Peaks> {
        let keep = ["--keep", "10m"];
        self.one(&keep)?;
        let mut peaks = Peaks::default();
        for _ in 0..3 {
            let mut child = self
                .trace(&keep)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| format!("start {}", self.program.display()))?;
            while child.try_wait().context("wait for the client")?.is_none() {
                for pid in server.processes() {
                    peaks.helper = peaks.helper.max(peak_of(pid).unwrap_or(0));
                }
                peaks.client = peaks.client.max(peak_of(child.id()).unwrap_or(0));
                #[allow(
                    clippy::disallowed_methods,
                    reason = "samples memory until the helper ends"
                )]
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        self.cleanup()?;
        Ok(peaks)
    }
}

/// `round N: asking ...: M ms`, as the client reports with `--verbose`.
fn asking(line: &str) -> Option<Duration> {
    let rest = line.strip_prefix("round ")?;
    let millis = rest.rsplit_once(": ")?.1.strip_suffix(" ms")?;
    Some(Duration::from_millis(millis.parse().ok()?))
}

/// `VmHWM` of a process in bytes. Between fork and exec a process still has its parent's name.
fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let name = field("Name:")?.trim();
    if !name.starts_with("netpath-helper") && !name.starts_with("kubectl-netpath") {
        return None;
    }
    let kib = field("VmHWM:")?.trim().strip_suffix(" kB")?;
    Some(kib.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_found_in_messages() {
        let line = "round 2: asking 2 helpers for 9 facts: 17 ms";
        assert_eq!(asking(line), Some(Duration::from_millis(17)));
        assert_eq!(asking("node-1: helper 0.1.0, kernel 6.18"), None);
    }
}
