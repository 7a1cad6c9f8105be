//! The framed contract over a helper's stdin and stdout, wherever it runs.
//!
//! A broken WebSocket gives kube's reader no end of file (measured, kube 5.0), so every read and
//! write is raced against [`End`], which whoever started the helper reports.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
#[cfg(test)]
use std::time::Instant;

use netpath::contract::frame::{Decoder, FrameError, encode};
use netpath::contract::{MAGIC, Reply, Request, SCHEMA_VERSION};
use netpath::model::NetNsId;
use netpath::model::capture::{Counted, Ended, Losses, Opened, Probe, Probed, Seen, Watch};
use netpath::model::want::{Fact, Want};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::pipe::{End, Pipe};

/// How long a helper may take to say hello.
const HELLO_LIMIT: Duration = Duration::from_secs(15);
/// How long a helper may be silent while a request is open. It sends facts as it reads them.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long a helper may take to end after `Bye`.
const BYE_LIMIT: Duration = Duration::from_secs(1);
/// Bytes taken from stdout at once.
const READ_CHUNK: usize = 256 << 10;

/// Most bytes that all answers of one helper may take after decompression: many times what a node with
/// ten thousand Services and a full conntrack table answers.
const ANSWERS_LIMIT: usize = 256 << 20;

/// Why a helper gave no (good) answer.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// It ended before the answer was complete.
    #[error("helper on {place}: {end} {during}{}; {}", tail(.stderr), remedy(.end))]
    Ended {
        /// Node name or `this machine`.
        place: String,
        /// What it was doing.
        during: &'static str,
        /// How it ended.
        end: End,
        /// Last lines of its stderr.
        stderr: String,
    },
    /// It speaks another version of the contract.
    #[error(
        "helper on {place}: it speaks contract {theirs} (helper {version}), this client speaks {SCHEMA_VERSION} (client {}); use the helper image of the client's own version, or leave --image out",
        env!("CARGO_PKG_VERSION")
    )]
    Version {
        /// Node name.
        place: String,
        /// Contract version of the helper.
        theirs: u32,
        /// Package version of the helper.
        version: String,
    },
    /// It does not speak the contract at all.
    #[error("helper on {place}: it does not speak netpath's contract ({why}); it said {said:?}{}; check that --image is a netpath helper image", tail(.stderr))]
    Foreign {
        /// Node name.
        place: String,
        /// What about it is wrong.
        why: String,
        /// First bytes that it sent.
        said: String,
        /// Last lines of its stderr.
        stderr: String,
    },
    /// It is silent.
    #[error("helper on {place}: no answer {during} for {}s{}; the node may be overloaded, try again", .limit.as_secs(), tail(.stderr))]
    Silent {
        /// Node name.
        place: String,
        /// What it was doing.
        during: &'static str,
        /// How long was waited.
        limit: Duration,
        /// Last lines of its stderr.
        stderr: String,
    },
    /// Its answers would take too much memory.
    #[error(
        "helper on {place}: its answers take more than {} MiB, which is all that this client takes from one node; ask for less at a time (one pod instead of all, one subject of dump)",
        .limit >> 20
    )]
    TooMuch {
        /// Node name.
        place: String,
        /// Most bytes.
        limit: usize,
    },
    /// It refused the request.
    #[error("helper on {place}: {message}")]
    Refused {
        /// Node name.
        place: String,
        /// Its own words.
        message: String,
    },
    /// The request itself cannot be sent.
    #[error("encode a request for the helper on {place}")]
    Encode {
        /// Node name.
        place: String,
        /// Why.
        #[source]
        source: FrameError,
    },
}

fn tail(stderr: &str) -> String {
    if stderr.is_empty() {
        String::new()
    } else {
        format!("; its last words: {stderr}")
    }
}

fn remedy(end: &End) -> &'static str {
    match end {
        End::Exited(126 | 127) => "the image holds no such program, check --image",
        End::Exited(_) => "report this with the words above",
        End::Killed(_) => "look at the node's memory and at kubectl describe of the helper pod",
        End::Cut(_) => "the API server, the kubelet or a proxy between cut it, try again",
    }
}

/// Figures of one session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Requests answered.
    pub round_trips: u32,
    /// Bytes that came from the helper.
    pub bytes_in: u64,
    /// Bytes that went to it.
    pub bytes_out: u64,
}

/// What the helper said of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Package version.
    pub version: String,
    /// `uname -r` of its node.
    pub kernel: String,
    /// Seconds since 1970 by the node's clock.
    pub now: u64,
}

/// What comes of a watch.
#[derive(Debug)]
pub enum Sight {
    /// Packets.
    Packets(Vec<Seen>),
    /// A point is watched no longer.
    Ended(Ended),
    /// It is over; what each point lost.
    End(Vec<Losses>),
}

/// A helper that has said hello.
pub struct Session {
    place: String,
    pipe: Pipe,
    decoder: Decoder,
    chunk: Vec<u8>,
    next_id: u32,
    greeting: Greeting,
    figures: Figures,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("place", &self.place)
            .field("greeting", &self.greeting)
            .field("figures", &self.figures)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Exchanges hellos with a helper that was just started; `place` names it in messages.
    ///
    /// Errors: it ends, is silent, speaks another version or something else altogether.
    pub async fn start(place: impl Into<String>, pipe: Pipe) -> Result<Self, SessionError> {
        let nobody = Greeting {
            version: String::new(),
            kernel: String::new(),
            now: 0,
        };
        let mut session = Self {
            place: place.into(),
            pipe,
            decoder: Decoder::limited(ANSWERS_LIMIT),
            chunk: vec![0; READ_CHUNK],
            next_id: 1,
            greeting: nobody,
            figures: Figures::default(),
        };
        session
            .send(
                &Request::Hello {
                    schema: SCHEMA_VERSION,
                },
                "at its start",
            )
            .await?;
        match session.receive("at its start", HELLO_LIMIT).await? {
            Reply::Hello {
                magic,
                schema,
                version,
                kernel,
                now,
            } if magic == MAGIC => {
                if schema != SCHEMA_VERSION {
                    let place = session.place.clone();
                    return Err(SessionError::Version {
                        place,
                        theirs: schema,
                        version,
                    });
                }
                session.greeting = Greeting {
                    version,
                    kernel,
                    now,
                };
                Ok(session)
            }
            Reply::Error { message, .. } => Err(SessionError::Refused {
                place: session.place.clone(),
                message,
            }),
            _ => Err(session.foreign("its first message is no hello".to_owned())),
        }
    }

    /// What the helper said of itself.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// Figures so far; [`Session::bye`] gives the final ones.
    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// Asks for facts and waits for all of them. A session whose call was dropped half-way is good
    /// for nothing but dropping: part of a request may have been sent.
    ///
    /// Errors: the helper ends, is silent for a minute, or refuses the request.
    pub async fn collect(&mut self, wants: Vec<Want>) -> Result<Vec<Fact>, SessionError> {
        const DURING: &str = "while collecting";
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1).max(1);
        self.send(&Request::Collect { id, wants }, DURING).await?;
        let mut all = Vec::new();
        loop {
            match self.receive(DURING, SILENCE_LIMIT).await? {
                Reply::Facts {
                    id: answered,
                    facts,
                    last,
                    ..
                } if answered == id => {
                    all.extend(facts);
                    if last {
                        self.figures.round_trips += 1;
                        return Ok(all);
                    }
                }
                Reply::Error {
                    id: answered,
                    message,
                } if answered == id || answered == 0 => {
                    return Err(SessionError::Refused {
                        place: self.place.clone(),
                        message,
                    });
                }
                // Late answers to a request that was given up are passed over.
                _ => {}
            }
        }
    }

    /// Has devices watched; once this returns, they are. Packets come by [`Self::seen`].
    ///
    /// Errors: the helper ends, is silent, or can't watch at all.
    pub async fn watch(&mut self, watch: Watch) -> Result<(u32, Vec<Opened>), SessionError> {
        const DURING: &str = "while it opens devices";
        let id = self.id();
        self.send(&Request::Watch { id, watch }, DURING).await?;
        loop {
            match self.receive(DURING, SILENCE_LIMIT).await? {
                Reply::Watching {
                    id: answered,
                    points,
                } if answered == id => return Ok((id, points)),
                other => self.refusal(id, other)?,
            }
        }
    }

    /// The next that comes of a watch; waits for it without end, or for so long once it is to end. May be dropped
    /// and called again.
    ///
    /// Errors: the helper ends, or can't go on.
    pub async fn seen(&mut self, id: u32, limit: Option<Duration>) -> Result<Sight, SessionError> {
        // Far enough for a timer that never fires.
        const NEVER: Duration = Duration::from_secs(u32::MAX as u64);
        loop {
            // What came before was given on.
            self.decoder.refill();
            let reply = self
                .receive("while it watches", limit.unwrap_or(NEVER))
                .await?;
            match reply {
                Reply::Packets {
                    id: answered,
                    packets,
                } if answered == id => return Ok(Sight::Packets(packets)),
                Reply::PointEnded {
                    id: answered,
                    ended,
                } if answered == id => return Ok(Sight::Ended(ended)),
                Reply::Watched {
                    id: answered,
                    losses,
                } if answered == id => return Ok(Sight::End(losses)),
                other => self.refusal(id, other)?,
            }
        }
    }

    /// Has a watch end; its last packets come by [`Self::seen`].
    pub async fn unwatch(&mut self, id: u32) -> Result<(), SessionError> {
        self.send(&Request::Unwatch { id }, "at the end of the watch")
            .await
    }

    /// Shows that somebody is there, so that nothing between takes the connection for dead.
    pub async fn alive(&mut self) -> Result<(), SessionError> {
        let id = self.id();
        self.send(&Request::Ping { id }, "while it watches").await
    }

    /// Reads what namespaces count.
    ///
    /// Errors: the helper ends or is silent.
    pub async fn count(&mut self, namespaces: Vec<NetNsId>) -> Result<Vec<Counted>, SessionError> {
        const DURING: &str = "while it reads counters";
        let id = self.id();
        self.send(&Request::Count { id, namespaces }, DURING)
            .await?;
        loop {
            match self.receive(DURING, SILENCE_LIMIT).await? {
                Reply::Counted {
                    id: answered,
                    counted,
                } if answered == id => return Ok(counted),
                other => self.refusal(id, other)?,
            }
        }
    }

    /// Has a probe sent, and waits for what comes of it. Packets that a watch sees meanwhile are given back, too.
    ///
    /// Errors: the helper ends, is silent, or can't send it.
    pub async fn probe(&mut self, probe: Probe) -> Result<(Probed, Vec<Seen>), SessionError> {
        const DURING: &str = "while it sends a probe";
        let id = self.id();
        self.send(&Request::Probe { id, probe }, DURING).await?;
        let mut seen = Vec::new();
        loop {
            // What came before was given on.
            self.decoder.refill();
            match self.receive(DURING, SILENCE_LIMIT).await? {
                Reply::Probed {
                    id: answered,
                    probed,
                } if answered == id => return Ok((probed, seen)),
                Reply::Packets { packets, .. } => seen.extend(packets),
                other => self.refusal(id, other)?,
            }
        }
    }

    fn id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1).max(1);
        id
    }

    /// An error that answers a request is one; late answers to others are passed over.
    fn refusal(&self, id: u32, reply: Reply) -> Result<(), SessionError> {
        match reply {
            Reply::Error {
                id: answered,
                message,
            } if answered == id || answered == 0 => Err(SessionError::Refused {
                place: self.place.clone(),
                message,
            }),
            _ => Ok(()),
        }
    }

    /// Asks for a sign of life.
    #[cfg(test)]
    pub async fn ping(&mut self) -> Result<Duration, SessionError> {
        const DURING: &str = "on a ping";
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1).max(1);
        let start = Instant::now();
        self.send(&Request::Ping { id }, DURING).await?;
        loop {
            if let Reply::Pong { id: answered } = self.receive(DURING, HELLO_LIMIT).await?
                && answered == id
            {
                return Ok(start.elapsed());
            }
        }
    }

    /// Tells the helper to end, and waits a moment for it. What comes of it is no longer of interest.
    pub async fn bye(mut self) -> Figures {
        if self.send(&Request::Bye, "at its end").await.is_ok() {
            let mut end = self.pipe.end.clone();
            let ended = end.wait_for(Option::is_some);
            // Past the limit the pod is removed, or the child killed, anyway.
            let _ = tokio::time::timeout(BYE_LIMIT, ended).await;
        }
        self.figures
    }

    async fn send(&mut self, request: &Request, during: &'static str) -> Result<(), SessionError> {
        let frame = encode(request).map_err(|source| SessionError::Encode {
            place: self.place.clone(),
            source,
        })?;
        let mut end = self.pipe.end.clone();
        let writer = &mut self.pipe.writer;
        let write = async {
            writer.write_all(&frame).await?;
            writer.flush().await
        };
        let written = tokio::select! {
            biased;
            written = write => written,
            _ = end.wait_for(Option::is_some) => Err(std::io::ErrorKind::BrokenPipe.into()),
            () = tokio::time::sleep(SILENCE_LIMIT) => return Err(self.silent(during, SILENCE_LIMIT)),
        };
        match written {
            Ok(()) => {
                self.figures.bytes_out += frame.len() as u64;
                Ok(())
            }
            Err(error) => Err(self.ended(during, &error.to_string()).await),
        }
    }

    async fn receive(
        &mut self,
        during: &'static str,
        limit: Duration,
    ) -> Result<Reply, SessionError> {
        loop {
            match self.decoder.message::<Reply>() {
                Ok(Some(reply)) => return Ok(reply),
                Ok(None) => {}
                Err(FrameError::Budget { limit, .. }) => {
                    let place = self.place.clone();
                    return Err(SessionError::TooMuch { place, limit });
                }
                Err(error) => return Err(self.foreign(chain(&error))),
            }
            let mut end = self.pipe.end.clone();
            let read = tokio::select! {
                biased;
                read = self.pipe.reader.read(&mut self.chunk) => read,
                _ = end.wait_for(Option::is_some) => {
                    // What had arrived before the end still counts.
                    let rest = ReadyRead(&mut *self.pipe.reader, &mut self.chunk).await;
                    rest.unwrap_or(Ok(0))
                }
                () = tokio::time::sleep(limit) => return Err(self.silent(during, limit)),
            };
            match read {
                Ok(0) => return Err(self.ended(during, "end of its output").await),
                Ok(count) => {
                    self.figures.bytes_in += count as u64;
                    self.decoder
                        .push(self.chunk.get(..count).unwrap_or_default());
                }
                Err(error) => return Err(self.ended(during, &error.to_string()).await),
            }
        }
    }

    fn silent(&self, during: &'static str, limit: Duration) -> SessionError {
        let stderr = self.pipe.stderr.text();
        SessionError::Silent {
            place: self.place.clone(),
            during,
            limit,
            stderr,
        }
    }

    fn foreign(&self, why: String) -> SessionError {
        let said = String::from_utf8_lossy(self.decoder.peek()).into_owned();
        let stderr = self.pipe.stderr.text();
        SessionError::Foreign {
            place: self.place.clone(),
            why,
            said,
            stderr,
        }
    }

    /// The error for a stream that stopped. Word of the end follows the stream's stop closely.
    async fn ended(&mut self, during: &'static str, cause: &str) -> SessionError {
        let mut end = self.pipe.end.clone();
        let told = tokio::time::timeout(BYE_LIMIT, end.wait_for(Option::is_some)).await;
        let told = match told {
            Ok(Ok(end)) => end.clone(),
            _ => None,
        };
        let end = told.unwrap_or_else(|| End::Cut(cause.to_owned()));
        self.pipe.stderr.end(BYE_LIMIT).await;
        if self.greeting.version.is_empty() && self.decoder.pending() > 0 {
            return self.foreign(format!("{end} after its first bytes"));
        }
        let stderr = self.pipe.stderr.text();
        SessionError::Ended {
            place: self.place.clone(),
            during,
            end,
            stderr,
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Reads what is there without waiting: `None` when nothing is.
struct ReadyRead<'a>(&'a mut (dyn AsyncRead + Send + Unpin), &'a mut [u8]);

impl Future for ReadyRead<'_> {
    type Output = Option<std::io::Result<usize>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let mut buffer = tokio::io::ReadBuf::new(this.1);
        match Pin::new(&mut *this.0).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => Poll::Ready(Some(Ok(buffer.filled().len()))),
            Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
            Poll::Pending => Poll::Ready(None),
        }
    }
}
