//! rtnetlink: a connection per namespace, watched.
//!
//! `rtnetlink` hides three things that a truthful reader must know: that the kernel interrupted a dump
//! (NLM_F_DUMP_INTR), that a message could not be decoded (it is logged and dropped), and what is sent.
//! So its socket is wrapped in [`Watched`], which counts and checks the bytes that pass. Messages that
//! `netlink-packet-route` can't decode are read again by hand, without the attribute that stopped it.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::BufMut;
use futures::{Stream, StreamExt};
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{AsyncSocket, Socket, SocketAddr, TokioSocket};
use rtnetlink::Handle;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::error::{Error, Result};
use super::netlink::{KERNEL, Netlink, Protocol, is_read};
use super::nla::{self, Attrs};

const NLM_F_DUMP_INTR: u16 = 0x10;
/// First message type that is not netlink's own.
const NLMSG_MIN_TYPE: u16 = 0x10;
const ATTEMPTS: usize = 8;

/// What passed through a socket since it was last asked.
#[derive(Debug, Default)]
struct Watch {
    objects: AtomicUsize,
    interrupted: AtomicBool,
    /// An answer was left before its end.
    broken: AtomicBool,
}

/// A tokio netlink socket that counts what comes in and lets only reads out.
pub struct Watched {
    socket: TokioSocket,
    watch: Arc<Watch>,
}

impl Watched {
    fn see(&self, datagram: &[u8]) {
        let mut rest = datagram;
        while let (Some(len), Some(kind), Some(flags)) = (
            nla::u32_at(rest, 0),
            nla::u16_at(rest, 4),
            nla::u16_at(rest, 6),
        ) {
            if kind >= NLMSG_MIN_TYPE {
                self.watch.objects.fetch_add(1, Ordering::Relaxed);
            }
            if flags & NLM_F_DUMP_INTR != 0 {
                self.watch.interrupted.store(true, Ordering::Relaxed);
            }
            rest = rest
                .get(nla::align(len.max(16) as usize)..)
                .unwrap_or_default();
        }
    }
}

fn only_reads(message: &[u8]) -> io::Result<()> {
    match nla::u16_at(message, 4) {
        Some(kind) if is_read(Protocol::Route, kind, None) => Ok(()),
        _ => Err(io::Error::from(io::ErrorKind::PermissionDenied)),
    }
}

impl AsyncSocket for Watched {
    fn socket_ref(&self) -> &Socket {
        self.socket.socket_ref()
    }

    fn socket_mut(&mut self) -> &mut Socket {
        self.socket.socket_mut()
    }

    fn new(protocol: isize) -> io::Result<Self> {
        Ok(Self {
            socket: TokioSocket::new(protocol)?,
            watch: Arc::default(),
        })
    }

    fn poll_send(&self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        only_reads(buf)?;
        self.socket.poll_send(cx, buf)
    }

    fn poll_send_to(
        &self,
        cx: &mut Context<'_>,
        buf: &[u8],
        addr: &SocketAddr,
    ) -> Poll<io::Result<usize>> {
        only_reads(buf)?;
        self.socket.poll_send_to(cx, buf, addr)
    }

    fn poll_recv<B: BufMut>(&self, cx: &mut Context<'_>, buf: &mut B) -> Poll<io::Result<()>> {
        ready!(self.poll_recv_from(cx, buf))?;
        Poll::Ready(Ok(()))
    }

    fn poll_recv_from<B: BufMut>(
        &self,
        cx: &mut Context<'_>,
        buf: &mut B,
    ) -> Poll<io::Result<SocketAddr>> {
        let mut datagram = Vec::with_capacity(64 << 10);
        loop {
            let from = ready!(self.socket.poll_recv_from(cx, &mut datagram))?;
            // What another process sent is no answer.
            if from.port_number() == KERNEL {
                self.see(&datagram);
                buf.put_slice(&datagram);
                return Poll::Ready(Ok(from));
            }
            datagram.clear();
        }
    }

    fn poll_recv_from_full(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Vec<u8>, SocketAddr)>> {
        loop {
            let (datagram, from) = ready!(self.socket.poll_recv_from_full(cx))?;
            if from.port_number() == KERNEL {
                self.see(&datagram);
                return Poll::Ready(Ok((datagram, from)));
            }
        }
    }
}

/// A connection of `rtnetlink` in one namespace.
pub struct Route {
    handle: Handle,
    watch: Arc<Watch>,
    task: JoinHandle<()>,
}

impl Drop for Route {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Objects of a dump, each with the numbers of the attributes that could not be decoded.
pub type Dumped<T> = Vec<(T, Vec<u16>)>;

impl Route {
    /// Opens the connection in the calling thread's namespace; `runtime` drives it.
    pub fn open(runtime: &tokio::runtime::Handle) -> Result<Self> {
        let _inside = runtime.enter();
        let (mut connection, handle, _) = rtnetlink::new_connection_with_socket::<Watched>()
            .map_err(|error| Error::io("open a netlink socket (Route)", &error))?;
        let watch = connection.socket_mut().watch.clone();
        let task = runtime.spawn(connection);
        Ok(Self {
            handle,
            watch,
            task,
        })
    }

    /// Whether an answer was left before its end, so that a next one could not be told from it.
    pub fn is_broken(&self) -> bool {
        self.watch.broken.load(Ordering::Relaxed) || self.task.is_finished()
    }

    /// Dumps with `rtnetlink`. `None`: some message could not be decoded.
    fn dump<T, S>(
        &self,
        runtime: &Runtime,
        deadline: Instant,
        operation: &str,
        start: impl Fn(&Handle) -> S,
    ) -> Result<Option<Vec<T>>>
    where
        S: Stream<Item = std::result::Result<T, rtnetlink::Error>>,
    {
        for _ in 0..ATTEMPTS {
            self.watch.objects.store(0, Ordering::Relaxed);
            self.watch.interrupted.store(false, Ordering::Relaxed);
            let objects = in_time(runtime, deadline, operation, async {
                let mut objects = Vec::new();
                let mut stream = Box::pin(start(&self.handle));
                while let Some(object) = stream.next().await {
                    objects.push(object.map_err(|error| route_error(operation, error))?);
                }
                Ok(objects)
            });
            if matches!(
                objects,
                Err(Error::Timeout { .. } | Error::Malformed { .. })
            ) {
                self.watch.broken.store(true, Ordering::Relaxed);
            }
            let objects = objects?;
            if self.watch.interrupted.load(Ordering::Relaxed) {
                continue;
            }
            let seen = self.watch.objects.load(Ordering::Relaxed);
            return Ok((seen == objects.len()).then_some(objects));
        }
        Err(Error::Changing {
            operation: operation.to_owned(),
        })
    }
}

fn in_time<T>(
    runtime: &Runtime,
    deadline: Instant,
    operation: &str,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let late = |_| Error::Timeout {
        operation: operation.to_owned(),
    };
    runtime
        .block_on(async { tokio::time::timeout_at(deadline.into(), work).await })
        .map_err(late)?
}

fn route_error(operation: &str, error: rtnetlink::Error) -> Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => Error::Errno {
            operation: operation.to_owned(),
            errno: -message.raw_code(),
        },
        other => Error::malformed(operation, other.to_string()),
    }
}

/// What to dump by hand where `rtnetlink` could not decode.
pub struct ByHand<'a, T> {
    /// RTM_GET* type.
    pub kind: u16,
    /// Family header of the request.
    pub body: &'a [u8],
    /// Length of the family header in answers.
    pub header: usize,
    /// Takes the expected message out.
    pub take: fn(RouteNetlinkMessage) -> Option<T>,
}

/// Both ways to ask one namespace's rtnetlink.
pub struct Session<'a> {
    /// Runtime that drives [`Route`].
    pub runtime: &'a Runtime,
    /// Connection of `rtnetlink`.
    pub route: &'a Route,
    /// Plain socket.
    pub raw: &'a mut Netlink,
    /// When to give up.
    pub deadline: Instant,
}

impl Session<'_> {
    /// Dumps with `rtnetlink`; where a message can't be decoded, by hand.
    pub fn dump<T, S>(
        &mut self,
        operation: &str,
        start: impl Fn(&Handle) -> S,
        by_hand: &ByHand<'_, T>,
    ) -> Result<Dumped<T>>
    where
        S: Stream<Item = std::result::Result<T, rtnetlink::Error>>,
    {
        if let Some(objects) = self
            .route
            .dump(self.runtime, self.deadline, operation, start)?
        {
            return Ok(objects
                .into_iter()
                .map(|object| (object, Vec::new()))
                .collect());
        }
        let messages = self.raw.dump(
            by_hand.kind,
            by_hand.body,
            operation,
            Vec::new,
            |messages, kind, body| messages.push((kind, body.to_vec())),
        )?;
        let decode = |(kind, body): (u16, Vec<u8>)| {
            mend(kind, &body, by_hand.header)
                .and_then(|(message, dropped)| Some(((by_hand.take)(message)?, dropped)))
                .ok_or_else(|| {
                    Error::malformed(
                        operation,
                        format!("a message of type {kind} can't be decoded"),
                    )
                })
        };
        messages.into_iter().map(decode).collect()
    }
}

/// Decodes a message without the attributes that can't be decoded, and names those.
pub(super) fn mend(
    kind: u16,
    body: &[u8],
    header: usize,
) -> Option<(RouteNetlinkMessage, Vec<u16>)> {
    if let Some(message) = decode(kind, body) {
        return Some((message, Vec::new()));
    }
    let head = body.get(..header)?;
    let mut kept = head.to_vec();
    let mut dropped = Vec::new();
    let mut rest = body.get(header..)?;
    while let Some(len) = nla::u16_at(rest, 0) {
        let end = nla::align(usize::from(len)).min(rest.len()).max(4);
        let (Some(attr), Some(after)) = (rest.get(..end), rest.get(end..)) else {
            break;
        };
        let alone = [head, attr].concat();
        if decode(kind, &alone).is_some() {
            kept.extend_from_slice(attr);
        } else {
            dropped.extend(Attrs(attr).next().map(|(kind, _)| kind));
        }
        rest = after;
    }
    Some((decode(kind, &kept)?, dropped))
}

fn decode(kind: u16, body: &[u8]) -> Option<RouteNetlinkMessage> {
    let len = u32::try_from(body.len() + 16).ok()?;
    let mut bytes = Vec::with_capacity(body.len() + 16);
    bytes.extend_from_slice(&len.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&[0; 10]);
    bytes.extend_from_slice(body);
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&bytes)
        .ok()?
        .payload
    {
        NetlinkPayload::InnerMessage(message) => Some(message),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A veth as `ip link show` reads it, with an MTU attribute cut to one byte.
    #[test]
    fn one_damaged_attribute_costs_only_itself() {
        let mut body = vec![0u8; 16];
        body[4] = 2;
        let mut writer = nla::Writer::new(&body);
        writer
            .put_text(3, "eth0")
            .put(4, &[5])
            .put(5, &7u32.to_ne_bytes());
        let (message, dropped) = mend(16, writer.bytes(), 16).expect("mended");
        assert_eq!(dropped, [4]);
        let RouteNetlinkMessage::NewLink(link) = message else {
            panic!("not a link: {message:?}");
        };
        assert_eq!(link.header.index, 2);
        assert_eq!(link.attributes.len(), 2);
    }

    #[test]
    fn changes_never_leave_the_socket() {
        let mut message = [0u8; 32];
        message[4..6].copy_from_slice(&16u16.to_ne_bytes());
        assert!(only_reads(&message).is_err());
        message[4..6].copy_from_slice(&18u16.to_ne_bytes());
        assert!(only_reads(&message).is_ok());
    }
}
