//! Work that may be interrupted, and the cleaning up that may not.

use std::future::Future;
use std::time::{Duration, Instant};

use super::error::LaunchError;
use super::pods::Launcher;

/// Signals of one cause come in bursts: `timeout` and terminals signal the process and its group.
const REPEATED: Duration = Duration::from_secs(1);

/// A signal that ends the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// Ctrl-C.
    Interrupt,
    /// SIGTERM, or the closing of a Windows console.
    Terminate,
    /// The terminal went away.
    #[cfg(unix)]
    Hangup,
}

impl Signal {
    /// The exit code that shells expect: 128 plus the signal's number.
    pub fn exit_code(self) -> u8 {
        match self {
            #[cfg(unix)]
            Self::Hangup => 129,
            Self::Interrupt => 130,
            Self::Terminate => 143,
        }
    }
}

/// How guarded work ended.
#[derive(Debug)]
pub enum Outcome<T> {
    /// By itself.
    Done(T),
    /// By a signal.
    Signalled(Signal),
}

/// Runs `work`, which uses helpers of `launcher`; removes the helpers when it is done, fails or a
/// signal comes. A second signal gives the removal up, unless it comes within [`REPEATED`] of the first.
///
/// `worth_keeping` tells from the result whether `--keep` shall be honoured. Returned beside the
/// outcome: helper pods that could not be removed, each with the command that does it.
pub async fn guard<T>(
    launcher: &Launcher,
    work: impl Future<Output = T>,
    worth_keeping: impl FnOnce(&T) -> bool,
) -> (Outcome<T>, Vec<LaunchError>) {
    let mut signals = Signals::listen();
    let outcome = tokio::select! {
        biased;
        signal = signals.next() => Outcome::Signalled(signal),
        done = work => Outcome::Done(done),
    };
    let failed = match &outcome {
        Outcome::Done(result) => !worth_keeping(result),
        Outcome::Signalled(_) => true,
    };
    let mut outcome = outcome;
    let mut first = matches!(outcome, Outcome::Signalled(_)).then(Instant::now);
    let mut closing = std::pin::pin!(launcher.close(failed));
    let left = loop {
        tokio::select! {
            biased;
            closed = &mut closing => break closed.err().unwrap_or_default(),
            signal = signals.next() => match first {
                None => {
                    first = Some(Instant::now());
                    outcome = Outcome::Signalled(signal);
                }
                Some(at) if at.elapsed() >= REPEATED => {
                    return (Outcome::Signalled(signal), launcher.abandoned());
                }
                Some(_) => {}
            },
        }
    };
    (outcome, left)
}

/// Listens for the signals that end the program, which do not end it by themselves any more.
#[cfg(unix)]
pub struct Signals {
    streams: Vec<(Signal, tokio::signal::unix::Signal)>,
}

#[cfg(unix)]
impl Signals {
    /// Starts to listen.
    pub fn listen() -> Self {
        use tokio::signal::unix::{SignalKind, signal};
        let wanted = [
            (Signal::Interrupt, SignalKind::interrupt()),
            (Signal::Terminate, SignalKind::terminate()),
            (Signal::Hangup, SignalKind::hangup()),
        ];
        // A handler that cannot be installed leaves the default action, which ends the program; the
        // pods' deadline and `cleanup` then remain.
        let streams = wanted
            .into_iter()
            .filter_map(|(name, kind)| Some((name, signal(kind).ok()?)))
            .collect();
        Self { streams }
    }

    /// The next signal.
    pub async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            for (name, stream) in &mut self.streams {
                if stream.poll_recv(cx).is_ready() {
                    return std::task::Poll::Ready(*name);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }
}

/// Listens for the events that end the program, which do not end it by themselves any more.
#[cfg(windows)]
pub struct Signals {
    interrupted: Option<tokio::signal::windows::CtrlC>,
    closed: Option<tokio::signal::windows::CtrlClose>,
    shut_down: Option<tokio::signal::windows::CtrlShutdown>,
}

#[cfg(windows)]
impl Signals {
    /// Starts to listen.
    pub fn listen() -> Self {
        use tokio::signal::windows::{ctrl_c, ctrl_close, ctrl_shutdown};
        // As for Unix: what cannot be listened for ends the program by itself.
        Self {
            interrupted: ctrl_c().ok(),
            closed: ctrl_close().ok(),
            shut_down: ctrl_shutdown().ok(),
        }
    }

    /// The next event.
    pub async fn next(&mut self) -> Signal {
        std::future::poll_fn(|cx| {
            let mut interrupted = self.interrupted.iter_mut();
            if interrupted.any(|stream| stream.poll_recv(cx).is_ready()) {
                return std::task::Poll::Ready(Signal::Interrupt);
            }
            let mut closed = self.closed.iter_mut();
            let mut shut_down = self.shut_down.iter_mut();
            // Windows ends the program some seconds after these, whatever it does.
            if closed.any(|stream| stream.poll_recv(cx).is_ready())
                || shut_down.any(|stream| stream.poll_recv(cx).is_ready())
            {
                return std::task::Poll::Ready(Signal::Terminate);
            }
            std::task::Poll::Pending
        })
        .await
    }
}
