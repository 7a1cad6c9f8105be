//! What is being waited for, on stderr, once it takes longer than a second.

use std::future::Future;
use std::time::Duration;

/// Shorter waits are not worth a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// Tells about waits.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    verbose: bool,
}

impl Progress {
    /// With `verbose`, tells what was done, too.
    pub fn new(verbose: bool) -> Self {
        Self { verbose }
    }

    /// Awaits `work`, and says `what` is under way if that takes longer than a second.
    pub async fn during<T>(self, what: &str, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        tokio::select! {
            biased;
            done = &mut work => return done,
            () = tokio::time::sleep(PATIENCE) => super::say(&format!("{what} ...")),
        }
        work.await
    }

    /// Says what was done, with `--verbose`.
    pub fn verbose(self, what: impl FnOnce() -> String) {
        if self.verbose {
            super::say(&what());
        }
    }
}
