//! Waiting as a pod's main process: until nobody is served any more, a deadline, or the kubelet asks to end.
//!
//! Helpers that serve hold a shared lock on their own program's file, which only their container sees; who waits tries to
//! get it alone.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;

const PROGRAM: &str = "/proc/self/exe";
/// How often it is looked whether anybody is still served.
const LOOK: Duration = Duration::from_secs(1);
/// How often a lock that another holds is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// Held while this process serves; its end lets a pod end that only waited for it.
#[derive(Debug)]
pub struct Serving(#[expect(dead_code, reason = "its end is what counts")] Flock<File>);

/// Says to those who [`wait`] in this container that this process serves, until it is dropped.
///
/// Errors: the program's file can't be locked, or somebody else keeps its lock; those who wait then do so until their
/// deadline.
pub fn serving() -> Result<Serving, String> {
    // Who waits holds the lock for a moment only.
    let patience = Instant::now() + LOOK;
    loop {
        match locked(FlockArg::LockSharedNonblock) {
            Ok(lock) => return Ok(Serving(lock)),
            Err(Errno::EWOULDBLOCK) if Instant::now() < patience => {
                std::thread::sleep(AGAIN);
            }
            Err(errno) => return Err(format!("lock {PROGRAM}: {errno}")),
        }
    }
}

fn locked(how: FlockArg) -> Result<Flock<File>, Errno> {
    let file = File::open(PROGRAM);
    let file = file.map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or_default()))?;
    Flock::lock(file, how).map_err(|(_, errno)| errno)
}

/// Waits for SIGTERM, SIGINT or SIGHUP, until `limit` is over, or, once `grace` is over, until nobody serves here.
///
/// A pid 1 does not die of a signal that it does not handle, so these are taken in by a descriptor.
///
/// Errors: signals can't be waited for.
pub fn wait(grace: Option<Duration>, limit: Option<Duration>) -> Result<(), String> {
    let failed = |errno: Errno| format!("wait for a signal: {errno}");
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().map_err(failed)?;
    let fd = SignalFd::new(&signals).map_err(failed)?;
    let begin = Instant::now();
    let deadline = limit.map(|limit| begin + limit);
    let mut look = grace.map(|grace| begin + grace);
    loop {
        let now = Instant::now();
        if deadline.is_some_and(|deadline| deadline <= now) {
            return Ok(());
        }
        if look.is_some_and(|look| look <= now) {
            look = match locked(FlockArg::LockExclusiveNonblock) {
                Ok(_) => return Ok(()),
                Err(Errno::EWOULDBLOCK) => Some(now + LOOK),
                Err(errno) => {
                    eprintln!("netpath-helper: lock {PROGRAM}: {errno}; waits until its deadline");
                    None
                }
            };
        }
        let next = [deadline, look].into_iter().flatten().min();
        let timeout = match next {
            // Longer waits go round the loop.
            Some(next) => PollTimeout::try_from(next.saturating_duration_since(now))
                .unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        }
    }
}
