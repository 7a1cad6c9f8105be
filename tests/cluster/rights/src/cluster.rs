//! The cluster of tests/cluster, and the programs as a user runs them.

use std::ffi::OsStr;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netpath_cluster::undo::Undo;
use nix::sys::signal::{Signal, kill};
use serde_json::Value;

/// Namespace of this program's pods.
pub const NAMESPACE: &str = "netpath-rights";
/// Namespace of helper pods, as docs/rbac.yaml has it.
pub const HELPERS: &str = "netpath";
/// The helper's image, which the nodes have.
pub const IMAGE: &str = "localhost/netpath-helper:test";
/// Label selector of helper pods.
const SELECTOR: &str = "app.kubernetes.io/managed-by=kubectl-netpath";
/// Nobody waits longer than this for an answer of the plugin.
const PATIENCE: Duration = Duration::from_secs(90);

/// Set by a signal: nothing new is begun, and what was changed is undone.
pub static STOPPED: AtomicBool = AtomicBool::new(false);

/// An error once a signal came.
pub fn go_on() -> Result<()> {
    ensure!(!STOPPED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}

/// What a program said.
#[derive(Debug)]
pub struct Said {
    /// Exit code; `None` after a signal.
    pub code: Option<i32>,
    /// Its output.
    pub out: String,
    /// Its errors.
    pub err: String,
    /// How long it took.
    pub took: Duration,
}

impl Said {
    fn of(output: &Output, took: Duration) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
            took,
        }
    }

    /// It must have ended with this code.
    pub fn exits(self, code: i32) -> Result<Self> {
        ensure!(
            self.code == Some(code),
            "exit code {:?}, not {code}: {}{}",
            self.code,
            self.err,
            self.out
        );
        ensure!(!self.err.contains("panicked"), "{}", self.err);
        Ok(self)
    }

    /// All of these must be in its output.
    pub fn says(self, parts: &[&str]) -> Result<Self> {
        for part in parts {
            ensure!(self.out.contains(part), "{part:?} is not in: {}", self.out);
        }
        Ok(self)
    }

    /// All of these must be among its errors.
    pub fn complains(self, parts: &[&str]) -> Result<Self> {
        for part in parts {
            ensure!(self.err.contains(part), "{part:?} is not in: {}", self.err);
        }
        Ok(self)
    }

    /// This must be among its errors exactly once.
    pub fn once(self, part: &str) -> Result<Self> {
        let count = self.err.matches(part).count();
        ensure!(count == 1, "{part:?} stands {count} times in: {}", self.err);
        Ok(self)
    }

    /// It must not have taken longer.
    pub fn within(self, limit: Duration) -> Result<Self> {
        ensure!(
            self.took <= limit,
            "it took {:?}, more than {limit:?}",
            self.took
        );
        Ok(self)
    }

    /// Nothing to complain of.
    pub fn silent(self) -> Result<Self> {
        let lines = self.err.lines();
        let bad: Vec<&str> = lines
            .filter(|line| line.contains("warning") || line.contains("error"))
            .collect();
        ensure!(bad.is_empty(), "{}", bad.join("\n"));
        Ok(self)
    }
}

/// The cluster, asked as its administrator.
pub struct Cluster {
    /// Directory with its kubeconfigs and keys.
    pub state: PathBuf,
    /// Control group of its nodes.
    group: String,
    /// A directory for what the cases write.
    pub work: tempfile::TempDir,
}

impl Cluster {
    /// The cluster that the environment names.
    pub fn open() -> Result<Self> {
        let state = std::env::var_os("NETPATH_STATE").context("run tests/cluster/rights/run")?;
        Ok(Self {
            state: PathBuf::from(state),
            group: std::env::var("NETPATH_GROUP").context("read NETPATH_GROUP")?,
            work: tempfile::tempdir().context("make a directory")?,
        })
    }

    /// A file of this run.
    pub fn file(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// Kubeconfig of the administrator.
    pub fn admin(&self) -> PathBuf {
        self.state.join("admin.kubeconfig")
    }

    /// Runs kubectl as administrator; it must succeed.
    pub fn kubectl(&self, line: &str) -> Result<String> {
        self.kubectl_with(line, None)
    }

    /// The same with something on stdin.
    pub fn kubectl_with(&self, line: &str, stdin: Option<&str>) -> Result<String> {
        let mut command = Command::new("kubectl");
        command
            .arg("--kubeconfig")
            .arg(self.admin())
            .args(line.split_whitespace())
            // Ctrl-C must not break off what undoes.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().context("start kubectl")?;
        if let Some(mut pipe) = child.stdin.take() {
            pipe.write_all(stdin.unwrap_or_default().as_bytes())
                .context("write to kubectl")?;
        }
        let output = child.wait_with_output().context("wait for kubectl")?;
        if !output.status.success() {
            bail!(
                "kubectl {line}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Applies objects.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.kubectl_with("apply -f -", Some(&list.to_string()))
            .map(drop)
    }

    /// The plugin with a kubeconfig and these words, not started yet.
    pub fn plugin(&self, kubeconfig: &Path, line: &str) -> Command {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut command = Command::new("kubectl-netpath");
        command
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.work.path())
            .env("KUBECONFIG", kubeconfig)
            .env("NETPATH_IMAGE", IMAGE)
            .env("NETPATH_HELPER_NAMESPACE", HELPERS)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Completion takes its word first.
        if words.first() != Some(&"__complete") {
            command.args(["-n", NAMESPACE]);
        }
        command.args(words);
        command
    }

    /// Runs the plugin as the administrator.
    pub fn run(&self, line: &str) -> Result<Said> {
        self.run_as(&self.admin(), line)
    }

    /// Runs the plugin with a kubeconfig.
    pub fn run_as(&self, kubeconfig: &Path, line: &str) -> Result<Said> {
        finish(Running::start(self.plugin(kubeconfig, line))?)
    }

    /// Runs a command in all namespaces of a node; it must succeed.
    pub fn in_node(&self, node: &str, line: &str) -> Result<String> {
        self.script(&format!("in_node {node} {line}"))
    }

    /// Runs words of tests/cluster/settings; they must succeed.
    pub fn script(&self, text: &str) -> Result<String> {
        let output = Command::new("bash")
            .args(["-euc", &format!(". tests/cluster/settings; {text}")])
            .env("KUBECONFIG", self.admin())
            .process_group(0)
            .stdin(Stdio::null())
            .output()
            .context("start bash")?;
        if !output.status.success() {
            bail!("{text}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Shell words as for [`Self::script`], each run at the end whatever becomes of the others.
    pub fn undo<'a>(&'a self, steps: &[&str]) -> Undo<'a> {
        let steps: Vec<String> = steps.iter().map(|&step| step.to_owned()).collect();
        Undo::new("undo what the case changed", move || {
            all(steps.iter().map(|step| self.script(step).map(drop)))
        })
    }

    /// Names of the helper pods that exist, each with its namespace.
    pub fn helpers(&self) -> Result<Vec<String>> {
        let found = self.kubectl(&format!(
            "get pods -A -l {SELECTOR} --no-headers -o custom-columns=S:.metadata.namespace,N:.metadata.name"
        ))?;
        Ok(found
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join("/"))
            .collect())
    }

    /// Removes every helper pod.
    pub fn sweep(&self) -> Result<()> {
        self.kubectl(&format!(
            "delete pods -A -l {SELECTOR} --grace-period=0 --force --wait=true"
        ))
        .map(drop)
    }

    /// No helper pod may be left.
    pub fn clean(&self) -> Result<()> {
        let left = self.helpers()?;
        ensure!(left.is_empty(), "left behind: {}", left.join(", "));
        Ok(())
    }

    /// Process ids, as this machine counts, of a program in a node's pods or daemons.
    pub fn processes(&self, node: &str, words: &[&str]) -> Result<Vec<i32>> {
        let place = format!("{}/{node}/", self.group);
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").context("read /proc")? {
            let entry = entry.context("read /proc")?;
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A process may end while it is looked at.
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let argv: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
            let same = argv
                .iter()
                .zip(words)
                .all(|(is, wanted)| *is == wanted.as_bytes());
            if argv.len() < words.len() || !same {
                continue;
            }
            let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            if groups.contains(&place) {
                found.push(pid);
            }
        }
        Ok(found)
    }
}

/// A plugin under way; killed if nobody waits for it.
pub struct Running {
    child: Option<Child>,
    since: Instant,
}

impl Running {
    /// Starts it.
    pub fn start(mut command: Command) -> Result<Self> {
        go_on()?;
        let child = command.spawn().context("start kubectl-netpath")?;
        Ok(Self {
            child: Some(child),
            since: Instant::now(),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Waits for the plugin's end, but not for ever.
pub fn finish(mut running: Running) -> Result<Said> {
    let since = running.since;
    let Some(child) = running.child.take() else {
        bail!("it was waited for already");
    };
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).context("read a pid")?);
    let (tell, told) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let output = child.wait_with_output();
        // The receiver waits below.
        let _ = tell.send(());
        output
    });
    let late = if let Ok(late) = answered(&told, PATIENCE) {
        late
    } else {
        // It takes its helper pods away before it ends.
        kill(pid, Signal::SIGTERM).context("interrupt it")?;
        told.recv_timeout(PATIENCE).is_err()
    };
    if late {
        kill(pid, Signal::SIGKILL).context("end it")?;
    }
    let output = waiter
        .join()
        .map_err(|_| anyhow::anyhow!("the waiting thread ended"))?
        .context("wait for kubectl-netpath")?;
    go_on()?;
    let said = Said::of(&output, since.elapsed());
    ensure!(!late, "no answer within {PATIENCE:?}: {}", said.err);
    Ok(said)
}

/// Whether it took too long; an error once a signal came.
fn answered(told: &std::sync::mpsc::Receiver<()>, patience: Duration) -> Result<bool> {
    let end = Instant::now() + patience;
    while told.recv_timeout(Duration::from_millis(20)).is_err() {
        go_on()?;
        if Instant::now() >= end {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Does all of these, whatever becomes of each; the errors in one.
pub fn all(steps: impl Iterator<Item = Result<()>>) -> Result<()> {
    let failed = steps.filter_map(Result::err);
    let failed: Vec<String> = failed.map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}

/// Waits until a condition holds.
pub fn until(what: &str, within: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + within;
    while !holds()? {
        go_on()?;
        ensure!(Instant::now() < end, "waited {within:?} for {what}");
        std::thread::park_timeout(Duration::from_millis(5));
    }
    Ok(())
}

/// `[12:720]`: packets and bytes as iptables-save prints them.
fn is_counted(word: &str) -> bool {
    let inner = word
        .strip_prefix('[')
        .and_then(|word| word.strip_suffix(']'));
    let pair = inner.and_then(|inner| inner.split_once(':'));
    let number = |word: &str| word.bytes().all(|byte| byte.is_ascii_digit());
    pair.is_some_and(|(packets, bytes)| number(packets) && number(bytes))
}

/// An answer without what moves on meanwhile: counters, and numbers beside these words.
pub fn steady(text: &str) -> String {
    let moves = |word: Option<&&str>| {
        word.is_some_and(|word| matches!(*word, "packets" | "bytes" | "expires" | "used" | "age"))
    };
    let mut kept = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let shown = words.iter().enumerate().map(|(at, word)| {
            let beside = moves(words.get(at + 1)) || (at > 0 && moves(words.get(at - 1)));
            let number = word.starts_with(|c: char| c.is_ascii_digit());
            if beside && number || is_counted(word) {
                "*"
            } else {
                word
            }
        });
        kept.push(shown.collect::<Vec<_>>().join(" "));
    }
    kept.join("\n")
}

/// The first line in which two answers differ.
pub fn differing(one: &str, other: &str) -> String {
    let mut lines = one.lines().zip(other.lines());
    let pair = lines.find(|(one, other)| one != other);
    pair.map_or("one is longer".to_owned(), |(one, other)| {
        format!("{one:?}, {other:?}")
    })
}

/// A path as text.
pub fn text(path: &Path) -> String {
    let path: &OsStr = path.as_ref();
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_moves_on_is_masked() {
        let text = |n| {
            format!(
                "  counter packets {n} bytes {n} drop, counted {n} packets {n} bytes so far\n[{n}:{n}] -A INPUT\n  dport 80"
            )
        };
        assert_eq!(steady(&text(1)), steady(&text(23)));
        assert!(steady(&text(1)).ends_with("dport 80"));
    }
}
