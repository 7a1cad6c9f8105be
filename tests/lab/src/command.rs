//! Running the programs that the laboratory is made with (`ip`, `bridge`, `nft`, `*-restore`).

use std::io::{self, Write};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `argv` in the namespaces of the calling thread and returns its standard output.
///
/// A program that cannot be started or that fails is an error with its standard error text.
pub fn run<S: AsRef<str>>(argv: &[S]) -> Result<String> {
    feed(argv, "")
}

/// As [`run`], with `input` on standard input.
pub fn feed<S: AsRef<str>>(argv: &[S], input: &str) -> Result<String> {
    let words: Vec<&str> = argv.iter().map(AsRef::as_ref).collect();
    let output = output(&words, input)?;
    if !output.status.success() {
        bail!(
            "run {:?}: {}: {}",
            words.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    String::from_utf8(output.stdout).with_context(|| format!("read output of {words:?}"))
}

/// As [`feed`], whatever the exit status is.
pub fn output(words: &[&str], input: &str) -> Result<Output> {
    let Some((program, arguments)) = words.split_first() else {
        bail!("run a program: no program named");
    };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    // The programs read all their input before they write more than a pipe holds.
    if let Some(mut stdin) = child.stdin.take() {
        match stdin.write_all(input.as_bytes()) {
            // It ended early; its exit status and error text say why.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            other => other.with_context(|| format!("write to {program}"))?,
        }
    }
    child
        .wait_with_output()
        .with_context(|| format!("wait for {program}"))
}

/// Runs `lines` through one `ip -batch -`, which stops at the first that fails.
pub fn ip_batch(lines: &[String]) -> Result<()> {
    batch("ip", lines)
}

/// Runs `lines` through one `bridge -batch -`, likewise.
pub fn bridge_batch(lines: &[String]) -> Result<()> {
    batch("bridge", lines)
}

fn batch(program: &str, lines: &[String]) -> Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let text = lines.join("\n") + "\n";
    feed(&[program, "-batch", "-"], &text)
        .with_context(|| format!("batch given to {program}:\n{text}"))?;
    Ok(())
}
