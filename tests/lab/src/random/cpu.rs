//! Threads that keep to one CPU each, on which the kernel handles what they send in order.

use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// Keeps this thread to one CPU.
pub fn keep_to(cpu: usize) -> Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu).context("name a CPU")?;
    sched_setaffinity(Pid::from_raw(0), &only)
        .with_context(|| format!("keep a thread to CPU {cpu}"))
}

/// Lets this thread use these CPUs.
pub fn keep_to_all(cpus: &[usize]) -> Result<()> {
    let mut only = CpuSet::new();
    for cpu in cpus {
        only.set(*cpu).context("name a CPU")?;
    }
    sched_setaffinity(Pid::from_raw(0), &only).context("let a thread use its CPUs")
}

/// CPUs that this program may use, whatever this thread is kept to.
pub fn all() -> Result<Vec<usize>> {
    let main = i32::try_from(std::process::id()).context("number of this program")?;
    of(Pid::from_raw(main))
}

/// CPUs that this thread may use.
pub fn own() -> Result<Vec<usize>> {
    of(Pid::from_raw(0))
}

fn of(thread: Pid) -> Result<Vec<usize>> {
    let own = sched_getaffinity(thread).context("ask for the CPUs of this program")?;
    let cpus = (0..CpuSet::count()).filter(|cpu| own.is_set(*cpu).unwrap_or(false));
    Ok(cpus.collect())
}

/// Does the same again and again on at most so many of this program's CPUs at once, each time until it tells that
/// there is no more.
///
/// # Errors
/// The first one; the other threads do what there is nevertheless.
pub fn on_each(most: usize, again: impl Fn() -> Result<bool> + Sync) -> Result<()> {
    let first = Mutex::new(Ok(()));
    let cpus = own()?;
    thread::scope(|scope| {
        for cpu in cpus.into_iter().take(most.max(1)) {
            let (first, again) = (&first, &again);
            scope.spawn(move || {
                let work = || {
                    keep_to(cpu)?;
                    while again()? {}
                    Ok(())
                };
                if let Err(error) = work()
                    && let Ok(mut first) = first.lock()
                    && first.is_ok()
                {
                    *first = Err(error);
                }
            });
        }
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn each_is_done_once() {
        let next = AtomicUsize::new(0);
        on_each(2, || Ok(next.fetch_add(1, Ordering::Relaxed) < 9)).unwrap();
        // Each thread is told once that there is no more.
        assert!((10..=11).contains(&next.into_inner()));
    }

    #[test]
    fn what_a_thread_could_not_do_is_told() {
        let told = on_each(2, || anyhow::bail!("no")).unwrap_err();
        assert_eq!(told.to_string(), "no");
    }

    #[test]
    fn a_cpu_that_is_not_there_is_an_error() {
        let told = keep_to(CpuSet::count()).unwrap_err();
        assert_eq!(told.to_string(), "name a CPU");
    }
}
