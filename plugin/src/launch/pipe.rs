//! What a way of starting helpers hands over: byte streams, the last words, and word of the end.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::watch;

/// Bytes of stderr kept for messages.
const STDERR_TAIL: usize = 2048;

/// How a helper's run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this code.
    Exited(i32),
    /// A signal killed it, or the container runtime says so.
    Killed(String),
    /// The connection to it broke off; whether it still runs is not known.
    Cut(String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "it exited with code {code}"),
            Self::Killed(how) => write!(f, "it was killed ({how})"),
            Self::Cut(how) => write!(f, "the connection to it broke off ({how})"),
        }
    }
}

/// Last bytes of a helper's stderr, filled while it runs.
#[derive(Clone, Debug, Default)]
pub struct StderrTail {
    kept: Arc<Mutex<Vec<u8>>>,
    /// It was read to its end.
    whole: watch::Sender<bool>,
}

impl StderrTail {
    /// Reads `from` to its end, so that it never blocks the other streams, and keeps the tail.
    pub async fn drain(self, mut from: impl AsyncRead + Unpin) {
        let mut chunk = [0; 4096];
        // A read error ends stderr like an end of file: the run's end is reported elsewhere.
        while let Ok(count @ 1..) = from.read(&mut chunk).await {
            let mut kept = self
                .kept
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            kept.extend(chunk.iter().take(count));
            let over = kept.len().saturating_sub(STDERR_TAIL);
            kept.drain(..over);
        }
        self.whole.send_replace(true);
    }

    /// Waits until it was read to its end, at most so long: an abrupt close ends the run but not always this.
    pub async fn end(&self, limit: Duration) {
        let mut whole = self.whole.subscribe();
        // Whatever was read until then is what there is.
        let _ = tokio::time::timeout(limit, whole.wait_for(|whole| *whole)).await;
    }

    /// What was kept, in one line.
    pub fn text(&self) -> String {
        let kept = self
            .kept
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept);
        let clean: String = text
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        clean.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// What a way of starting helpers hands over: byte streams, and word of the end.
pub struct Pipe {
    /// The helper's stdout.
    pub reader: Box<dyn AsyncRead + Send + Unpin>,
    /// The helper's stdin.
    pub writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// `Some` once its run has ended.
    pub end: watch::Receiver<Option<End>>,
    /// Its stderr.
    pub stderr: StderrTail,
    /// Dropped with the session: keeps the connection or the child alive until then.
    #[expect(dead_code, reason = "kept for its drop")]
    pub keep: Box<dyn Send>,
}
