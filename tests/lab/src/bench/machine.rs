//! What the figures were taken on.

use std::fs;

use anyhow::{Context, Result};

/// Processor, kernel, date and load in a few lines.
pub(super) fn describe(runs: usize) -> Result<String> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
    let info = read("/proc/cpuinfo")?;
    // The field is called so on x86; elsewhere the architecture has to do.
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or(std::env::consts::ARCH, |(_, model)| model.trim());
    let cores = std::thread::available_parallelism().context("count the processors")?;
    let memory = read("/proc/meminfo")?;
    let memory = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .unwrap_or("unknown");
    let kernel = read("/proc/sys/kernel/osrelease")?;
    let load = read("/proc/loadavg")?;
    let date = crate::command::run(&["date", "-u", "+%Y-%m-%d %H:%M UTC"])?;
    Ok(format!(
        "{model}, {cores} cores, {} of memory, Linux {}, {}\nload before the start: {}; medians of {runs} runs of whole processes unless said otherwise",
        memory.trim(),
        kernel.trim(),
        date.trim(),
        load.split_whitespace()
            .take(3)
            .collect::<Vec<_>>()
            .join(" "),
    ))
}
