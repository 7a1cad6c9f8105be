//! Waiting as a pod's main process: until a deadline, or until the kubelet asks to end.

use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use std::os::fd::AsFd;

/// Waits for SIGTERM, SIGINT or SIGHUP, or until the time is over.
///
/// A pid 1 does not die of a signal that it does not handle, so these are taken in by a descriptor.
pub fn wait(time: Option<Duration>) -> Result<(), String> {
    let failed = |errno: nix::Error| format!("wait for a signal: {errno}");
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block().map_err(failed)?;
    let fd = SignalFd::new(&signals).map_err(failed)?;
    let deadline = time.map(|time| Instant::now() + time);
    loop {
        let left = deadline.map(|end| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(());
        }
        let timeout = match left {
            // Longer waits go round the loop.
            Some(left) => PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX),
            None => PollTimeout::NONE,
        };
        let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(0) | Err(nix::Error::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(errno) => return Err(failed(errno)),
        }
    }
}
