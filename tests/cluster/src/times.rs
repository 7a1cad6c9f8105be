//! What one trace takes, as a whole process.

use std::time::Instant;

use anyhow::{Result, ensure};

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
        let stages = said.lines().find(|line| line.starts_with("stages:"));
        println!("      {}", stages.unwrap_or("-v tells no stages"));
    }
    Ok(())
}
