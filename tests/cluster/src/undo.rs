//! What is to be put right again, whatever happens meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

/// Set when something could not be put right and nobody but the log was told: such a run is no success.
pub static FAILED: AtomicBool = AtomicBool::new(false);

/// Puts something right when it is dropped: at the end of a scope, on an error, on a panic.
pub struct Undo<'a> {
    what: String,
    mend: Option<Box<dyn FnOnce() -> Result<()> + Send + 'a>>,
}

impl<'a> Undo<'a> {
    /// `what` as an order: "put the route back".
    pub fn new(what: impl Into<String>, mend: impl FnOnce() -> Result<()> + Send + 'a) -> Self {
        Self {
            what: what.into(),
            mend: Some(Box::new(mend)),
        }
    }

    /// Puts it right now.
    pub fn now(mut self) -> Result<()> {
        self.mend().with_context(|| self.what.clone())
    }

    fn mend(&mut self) -> Result<()> {
        self.mend.take().map_or(Ok(()), |mend| mend())
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.mend() {
            eprintln!("error: {}: {error:#}", self.what);
            FAILED.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn it_is_done_once_also_after_a_panic() {
        let done = AtomicU32::new(0);
        let undo = || {
            Undo::new("count", || {
                done.fetch_add(1, Ordering::Relaxed);
                Ok(())
            })
        };
        undo().now().unwrap();
        assert_eq!(done.load(Ordering::Relaxed), 1);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _kept = undo();
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        assert_eq!(done.load(Ordering::Relaxed), 2);
        assert!(!FAILED.load(Ordering::Relaxed));
        drop(Undo::new("fail", || anyhow::bail!("on purpose")));
        assert!(FAILED.load(Ordering::Relaxed));
    }
}
