//! The helper's conversation: requests on one stream, answers on the other.
//!
//! Ends when the input ends, on a goodbye, or when nothing was asked for a while. Answers are cut into
//! frames so that neither side must hold a whole node's rules as one message.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::collector::Collector;
use super::netlink::REQUEST;
use crate::contract::frame::{Decoder, FrameError, encode};
use crate::contract::{MAGIC, Reply, Request, SCHEMA_VERSION};
use crate::model::capture::{Counted, Ended, Losses, Opened, Probe, Probed, Seen, Watch};
use crate::model::want::{Depth, Fact, NsTarget, Want};

/// The helper ends after this long without a request.
pub const IDLE: Duration = Duration::from_secs(600);
/// Facts of about this many bytes make a frame.
const FRAME: usize = 4 << 20;
/// Largest request in bytes: some thousand wants.
const MOST_PENDING: usize = 4 << 20;

/// How often taps are looked at that are silent. A device that goes away wakes the helper when it is set down, which
/// is before it is gone, and not again.
const LOOK: Duration = Duration::from_millis(500);
/// Longest time for the last packets of a watch.
const LAST: Duration = Duration::from_secs(2);

/// Why a conversation ended otherwise than by its end.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The streams failed.
    #[error("serve requests: the connection failed: {0}")]
    Io(#[from] io::Error),
    /// What came is no request.
    #[error("serve requests: {0}")]
    Frame(#[from] FrameError),
    /// The first request was not a hello.
    #[error("serve requests: the first request is not a hello; is the peer netpath?")]
    NoHello,
    /// A request that never ends.
    #[error("serve requests: a request is larger than {MOST_PENDING} bytes")]
    TooLarge,
}

/// What sees packets and sends some. Reading does without, so the program brings it.
pub trait Watcher {
    /// Opens all points of a watch in place of the last one's. Errors: the watch can't be as a whole.
    fn watch(&mut self, watch: Watch, collector: &mut Collector) -> Result<Vec<Opened>, String>;
    /// What becomes readable when packets come.
    fn fds(&self) -> Vec<BorrowedFd<'_>>;
    /// Packets that came, some of them where they are many; `None` where nothing came. Never waits.
    fn take(&mut self) -> Result<Option<Vec<Seen>>, String>;
    /// Points that ended since the last call.
    fn ended(&mut self) -> Vec<Ended>;
    /// Ends the watch.
    fn stop(&mut self) -> Vec<Losses>;
    /// Sends a probe and waits for what comes of it.
    fn probe(&mut self, probe: &Probe, collector: &mut Collector) -> Result<Probed, String>;
}

/// Sees nothing: this program was built without libpcap.
pub struct Blind;

const BLIND: &str =
    "this helper was built without captures (feature `capture`); use a released one";

impl Watcher for Blind {
    fn watch(&mut self, _: Watch, _: &mut Collector) -> Result<Vec<Opened>, String> {
        Err(BLIND.to_owned())
    }
    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
    fn take(&mut self) -> Result<Option<Vec<Seen>>, String> {
        Ok(None)
    }
    fn ended(&mut self) -> Vec<Ended> {
        Vec::new()
    }
    fn stop(&mut self) -> Vec<Losses> {
        Vec::new()
    }
    fn probe(&mut self, _: &Probe, _: &mut Collector) -> Result<Probed, String> {
        Err(BLIND.to_owned())
    }
}

/// Answers requests until the conversation ends. `idle` is how long it waits for one.
pub fn serve(
    mut input: impl Read + AsFd,
    output: impl Write,
    collector: &mut Collector,
    watcher: &mut impl Watcher,
    idle: Duration,
) -> Result<(), ServeError> {
    let mut peer = Peer {
        output,
        greeted: false,
        watch: None,
    };
    let mut decoder = Decoder::default();
    let mut chunk = vec![0u8; 64 << 10];
    loop {
        let request = match decoder.message::<Request>() {
            Ok(request) => request,
            Err(error) => {
                peer.send(&Reply::Error {
                    id: 0,
                    message: error.to_string(),
                })?;
                return Err(error.into());
            }
        };
        if let Some(request) = request {
            if !peer.answer(request, collector, watcher)? {
                return Ok(());
            }
            continue;
        }
        if decoder.pending() > MOST_PENDING {
            return Err(ServeError::TooLarge);
        }
        // While it watches, silence of the client is not the end: its stream's end is.
        let wait = if peer.watch.is_some() { LOOK } else { idle };
        match ready(&input, &watcher.fds(), wait)? {
            Ready::Input => {}
            Ready::Nothing if peer.watch.is_none() => return Ok(()),
            Ready::Packets | Ready::Nothing => {
                peer.packets(watcher)?;
                continue;
            }
        }
        let len = match input.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(len) => len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error.into()),
        };
        decoder.push(chunk.get(..len).unwrap_or_default());
    }
}

enum Ready {
    Input,
    Packets,
    Nothing,
}

/// Waits for input or packets, as long as that.
fn ready(input: &impl AsFd, taps: &[BorrowedFd<'_>], idle: Duration) -> io::Result<Ready> {
    let deadline = Instant::now().checked_add(idle);
    loop {
        let timeout = match deadline {
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
            None => PollTimeout::NONE,
        };
        let waits = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![waits(input.as_fd())];
        fds.extend(taps.iter().copied().map(waits));
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(Ready::Nothing),
            // Requests first: a flood of packets must not keep the end of the watch from being heard.
            Ok(_) if fds.first().is_some_and(|fd| fd.any() == Some(true)) => {
                return Ok(Ready::Input);
            }
            Ok(_) => return Ok(Ready::Packets),
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

struct Peer<W> {
    output: W,
    greeted: bool,
    /// Id of the watch that goes on.
    watch: Option<u32>,
}

impl<W: Write> Peer<W> {
    fn send(&mut self, reply: &Reply) -> Result<(), ServeError> {
        let frame = encode(reply)?;
        self.output.write_all(&frame)?;
        self.output.flush()?;
        Ok(())
    }

    /// `false`: the conversation is over.
    fn answer(
        &mut self,
        request: Request,
        collector: &mut Collector,
        watcher: &mut impl Watcher,
    ) -> Result<bool, ServeError> {
        match request {
            Request::Hello { .. } => {
                self.greeted = true;
                self.send(&hello())?;
            }
            _ if !self.greeted => return Err(ServeError::NoHello),
            Request::Ping { id } => self.send(&Reply::Pong { id })?,
            Request::Bye => return Ok(false),
            Request::Collect { id, wants } => self.collect(id, &wants, collector)?,
            Request::Watch { id, watch } => {
                let reply = match watcher.watch(watch, collector) {
                    Ok(points) => {
                        self.watch = Some(id);
                        Reply::Watching { id, points }
                    }
                    Err(message) => Reply::Error { id, message },
                };
                self.send(&reply)?;
            }
            Request::Unwatch { id } if self.watch != Some(id) => {
                let message = format!("end watch {id}: there is no such watch");
                self.send(&Reply::Error { id, message })?;
            }
            Request::Unwatch { id } => {
                // What came until now waits in the rings. More may come without end.
                let enough = Instant::now() + LAST;
                while self.packets(watcher)? && Instant::now() < enough {}
                // It may have failed meanwhile, which was told.
                if self.watch.take().is_none() {
                    return Ok(true);
                }
                let losses = watcher.stop();
                self.tell_ended(id, watcher)?;
                self.send(&Reply::Watched { id, losses })?;
            }
            Request::Count { id, namespaces } => {
                let counted = namespaces.into_iter().map(|netns| Counted {
                    netns,
                    counts: collector.counts(netns).into(),
                });
                let counted = counted.collect();
                self.send(&Reply::Counted { id, counted })?;
            }
            Request::Probe { id, probe } => {
                let reply = match watcher.probe(&probe, collector) {
                    Ok(probed) => Reply::Probed { id, probed },
                    Err(message) => Reply::Error { id, message },
                };
                self.send(&reply)?;
            }
        }
        Ok(true)
    }

    /// Sends packets that came, then word of taps that ended; `false`: neither.
    fn packets(&mut self, watcher: &mut impl Watcher) -> Result<bool, ServeError> {
        let Some(id) = self.watch else {
            return Ok(false);
        };
        match watcher.take() {
            Ok(taken) => {
                let some = taken.is_some();
                if let Some(packets) = taken.filter(|packets| !packets.is_empty()) {
                    self.send(&Reply::Packets { id, packets })?;
                }
                Ok(self.tell_ended(id, watcher)? || some)
            }
            Err(message) => {
                self.watch = None;
                watcher.stop();
                self.send(&Reply::Error { id, message })?;
                Ok(false)
            }
        }
    }

    fn tell_ended(&mut self, id: u32, watcher: &mut impl Watcher) -> Result<bool, ServeError> {
        let all = watcher.ended();
        let some = !all.is_empty();
        for ended in all {
            self.send(&Reply::PointEnded { id, ended })?;
        }
        Ok(some)
    }

    fn collect(
        &mut self,
        id: u32,
        wants: &[Want],
        collector: &mut Collector,
    ) -> Result<(), ServeError> {
        let begun = Instant::now();
        let mut pending = Vec::new();
        let mut weight = 0;
        let mut result = Ok(());
        collector.each(wants, REQUEST, |fact| {
            weight += weigh(&fact);
            pending.push(fact);
            if weight >= FRAME && result.is_ok() {
                weight = 0;
                result = self.send(&facts(id, std::mem::take(&mut pending), false, begun));
            }
        });
        result?;
        self.send(&facts(id, pending, true, begun))
    }
}

fn facts(id: u32, facts: Vec<Fact>, last: bool, begun: Instant) -> Reply {
    Reply::Facts {
        id,
        facts,
        last,
        micros: u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
    }
}

/// About how many bytes a fact takes: the length of its encoding without the compression.
fn weigh(fact: &Fact) -> usize {
    postcard::experimental::serialized_size(fact).unwrap_or(FRAME)
}

/// Longest time that printing all facts may take to read.
const DUMP: Duration = Duration::from_secs(120);

/// Prints all facts of all namespaces as JSON. A reader that has seen enough is no error.
pub fn dump(output: impl Write, collector: &mut Collector) -> io::Result<()> {
    let everything = Want::NetNs {
        target: NsTarget::All,
        depth: Depth::Full,
    };
    let facts = collector.collect(&[everything], DUMP);
    let mut output = io::BufWriter::new(output);
    let written = serde_json::to_writer(&mut output, &facts)
        .map_err(io::Error::from)
        .and_then(|()| output.write_all(b"\n"))
        .and_then(|()| output.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// What the helper says of itself.
pub fn hello() -> Reply {
    let kernel = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Reply::Hello {
        magic: MAGIC.to_owned(),
        schema: SCHEMA_VERSION,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel,
        now: now.as_secs(),
    }
}

#[cfg(test)]
mod tests;
