//! What one trace takes, as a whole process.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::kubectl::{self, NAMESPACE};

/// Times a trace across nodes through a Service, with helper pods that are made for it, and with warm ones.
pub fn print() -> Result<()> {
    for (name, keep) in [
        ("cold", &[][..]),
        ("first, its helpers are kept", &["--keep", "10m"]),
        ("warm", &["--keep", "10m"]),
    ] {
        let arguments = [
            "netpath",
            "-n",
            NAMESPACE,
            "trace",
            "client-1",
            "svc/web:http",
        ];
        let arguments = [&arguments[..], &["-o", "json", "-v"], keep].concat();
        let begin = Instant::now();
        let output = kubectl::output(&arguments, "")?;
        let millis = begin.elapsed().as_millis();
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "kubectl {}: {}: {}",
            arguments.join(" "),
            output.status,
            said.trim()
        );
        println!("{name:<28} {millis} ms");
        println!("      {}", stages(&said)?);
    }
    Ok(())
}

/// The line of `-v` that tells the stages.
fn stages(said: &str) -> Result<&str> {
    let mut lines = said.lines();
    let found = lines.find(|line| line.starts_with("stages:"));
    found.with_context(|| format!("find the stages in what -v told: {}", said.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_that_are_not_told_are_an_error() {
        assert_eq!(stages("a\nstages: 1 ms\nb").unwrap(), "stages: 1 ms");
        assert!(stages("a").unwrap_err().to_string().ends_with(": a"));
    }
}
