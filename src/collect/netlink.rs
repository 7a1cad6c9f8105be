//! A small synchronous netlink socket that can only read.
//!
//! Read first: Documentation/userspace-api/netlink/intro.rst. A socket stays in the namespace of the
//! thread that opened it, wherever it is used later. Every message is checked against a list of reads
//! before it is sent.

use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::setsockopt;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::time::{TimeVal, TimeValLike};

use super::error::{Error, Result};
use super::nla;

const NLM_F_REQUEST: u16 = 0x01;
const NLM_F_DUMP: u16 = 0x300;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const HEADER: usize = 16;
/// Type of messages for the controller of generic netlink.
pub(super) const GENL_ID_CTRL: u16 = 16;
/// The kernel makes datagrams of at most 32 KiB for dumps that are read with a buffer this large.
const BUFFER: usize = 64 << 10;
/// `nl_pid` of the kernel's own sockets.
pub(super) const KERNEL: u32 = 0;
/// How often a dump that was interrupted by a change is begun again.
const ATTEMPTS: usize = 8;
/// Longest wait for one datagram.
const RECEIVE: i64 = 5;

/// Netlink protocol of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// NETLINK_ROUTE
    Route,
    /// NETLINK_NETFILTER
    Netfilter,
    /// NETLINK_SOCK_DIAG
    SockDiag,
    /// NETLINK_XFRM
    Xfrm,
    /// NETLINK_GENERIC
    Generic,
}

impl Protocol {
    /// NETLINK_*
    pub(super) fn number(self) -> isize {
        match self {
            Self::Route => netlink_sys::protocols::NETLINK_ROUTE,
            Self::SockDiag => netlink_sys::protocols::NETLINK_SOCK_DIAG,
            Self::Netfilter => netlink_sys::protocols::NETLINK_NETFILTER,
            Self::Xfrm => netlink_sys::protocols::NETLINK_XFRM,
            Self::Generic => netlink_sys::protocols::NETLINK_GENERIC,
        }
    }
}

/// Whether a message type only reads. RTM_GET*, nfnetlink gets without their "and reset" variants, and
/// SOCK_DIAG_BY_FAMILY. A generic family has its type by chance: `command` (genlmsghdr) tells what is asked of it.
pub fn is_read(protocol: Protocol, kind: u16, command: Option<u8>) -> bool {
    match protocol {
        // LINK, ADDR, ROUTE, NEIGH, RULE, QDISC, TFILTER, NETCONF, NSID, NEXTHOP, VLAN
        Protocol::Route => matches!(kind, 18 | 22 | 26 | 30 | 34 | 38 | 46 | 82 | 90 | 106 | 114),
        Protocol::Netfilter => match (kind >> 8, kind & 0xff) {
            // IPCTNL_MSG_CT_GET, _GET_STATS_CPU and _GET_STATS; not _GET_CTRZERO.
            (1, message) => matches!(message, 1 | 4 | 5),
            // IPSET_CMD_LIST and _GET_BYINDEX
            (6, message) => matches!(message, 7 | 15),
            // NFNL_MSG_ACCT_GET; not _GET_CTRZERO.
            (7, message) => message == 1,
            // NFT_MSG_GETTABLE, CHAIN, RULE, SET, SETELEM, GEN, OBJ, FLOWTABLE; none of the _RESET kind.
            (10, message) => matches!(message, 1 | 4 | 7 | 10 | 13 | 16 | 19 | 23),
            _ => false,
        },
        // SOCK_DIAG_BY_FAMILY; not SOCK_DESTROY (21).
        Protocol::SockDiag => kind == 20,
        // XFRM_MSG_GETPOLICY and _GETDEFAULT; states hold keys and are not asked for.
        Protocol::Xfrm => matches!(kind, 21 | 40),
        // Of the controller (GENL_ID_CTRL) CTRL_CMD_GETFAMILY; of the only other families that are asked,
        // IPVS_CMD_GET_SERVICE and _GET_DEST, and WG_CMD_GET_DEVICE, a number that IPVS gives to nothing.
        Protocol::Generic => match kind {
            GENL_ID_CTRL => command == Some(3),
            _ => matches!(command, Some(0 | 4 | 8)),
        },
    }
}

/// A socket of one protocol in one namespace.
pub struct Netlink {
    socket: Socket,
    protocol: Protocol,
    sequence: u32,
    buffer: Vec<u8>,
    deadline: Option<Instant>,
    broken: bool,
}

impl Netlink {
    /// Opens a socket in the calling thread's namespace.
    pub fn open(protocol: Protocol) -> Result<Self> {
        let operation = || format!("open a netlink socket ({protocol:?})");
        let socket = Socket::new(protocol.number()).map_err(|e| Error::io(operation(), &e))?;
        let wait = TimeVal::seconds(RECEIVE);
        setsockopt(&socket, ReceiveTimeout, &wait).map_err(|e| Error::nix(operation(), e))?;
        Ok(Self {
            socket,
            protocol,
            sequence: 0,
            buffer: Vec::new(),
            deadline: None,
            broken: false,
        })
    }

    /// Ends dumps that would go on after this time.
    pub fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// Overwrites what was received last, where that may hold secrets.
    pub fn overwrite(&mut self) {
        let room = self.buffer.capacity();
        self.buffer.clear();
        self.buffer.resize(room, 0);
    }

    /// Whether a dump was left before its end, so that the socket can't be used any more.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Asks for one object. `None`: the kernel has none (ENOENT).
    pub fn get(&mut self, kind: u16, body: &[u8], operation: &str) -> Result<Option<Vec<u8>>> {
        let mut answer = None;
        let result = self.exchange(kind, NLM_F_REQUEST, body, operation, &mut |_, payload| {
            answer = Some(payload.to_vec());
            Ok(())
        });
        match result {
            Ok(_) => Ok(answer),
            Err(Error::Errno { errno, .. }) if errno == libc::ENOENT => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Dumps objects. `start` makes room for the answer and is called again when the kernel says that
    /// the dump was interrupted by a change; `each` gets message type and body.
    pub fn dump<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        operation: &str,
        start: impl FnMut() -> T,
        mut each: impl FnMut(&mut T, u16, &[u8]),
    ) -> Result<T> {
        self.try_dump(kind, body, operation, start, |answer, kind, payload| {
            each(answer, kind, payload);
            Ok(())
        })
    }

    /// As [`Self::dump`], until `each` fails. The rest of the dump is not read then: the socket
    /// [is broken](Self::is_broken), and the kernel drops the rest when it is closed.
    pub fn try_dump<T>(
        &mut self,
        kind: u16,
        body: &[u8],
        operation: &str,
        mut start: impl FnMut() -> T,
        mut each: impl FnMut(&mut T, u16, &[u8]) -> Result<()>,
    ) -> Result<T> {
        for _ in 0..ATTEMPTS {
            let mut answer = start();
            let whole = self.exchange(
                kind,
                NLM_F_REQUEST | NLM_F_DUMP,
                body,
                operation,
                &mut |kind, payload| each(&mut answer, kind, payload),
            )?;
            if whole {
                return Ok(answer);
            }
        }
        Err(Error::Changing {
            operation: operation.to_owned(),
        })
    }

    /// Sends one message and takes in all that answers it. `false`: the dump was interrupted.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        body: &[u8],
        operation: &str,
        each: &mut dyn FnMut(u16, &[u8]) -> Result<()>,
    ) -> Result<bool> {
        if !is_read(self.protocol, kind, body.first().copied()) {
            return Err(Error::NotARead {
                operation: operation.to_owned(),
                kind,
            });
        }
        self.sequence = self.sequence.wrapping_add(1);
        let message = message(kind, flags, self.sequence, body);
        self.socket
            .send_to(&message, &SocketAddr::new(0, 0), 0)
            .map_err(|error| Error::io(operation, &error))?;
        let result = self.receive(flags, operation, each);
        // Anything but the kernel's own last word leaves messages behind that a later dump would meet.
        self.broken |= !matches!(result, Ok(_) | Err(Error::Errno { .. }));
        result
    }

    fn receive(
        &mut self,
        flags: u16,
        operation: &str,
        each: &mut dyn FnMut(u16, &[u8]) -> Result<()>,
    ) -> Result<bool> {
        let mut whole = true;
        let expected = self.sequence;
        loop {
            let mut rest = self.datagram(operation)?;
            while let Some(len) = nla::u32_at(rest, 0) {
                let len = len as usize;
                let (Some(kind), Some(message_flags), Some(sequence), Some(payload)) = (
                    nla::u16_at(rest, 4),
                    nla::u16_at(rest, 6),
                    nla::u32_at(rest, 8),
                    rest.get(HEADER..len),
                ) else {
                    return Err(Error::malformed(
                        operation,
                        "a netlink message is cut short",
                    ));
                };
                rest = rest.get(nla::align(len)..).unwrap_or_default();
                if sequence != expected {
                    continue;
                }
                if message_flags & NLM_F_DUMP_INTR != 0 {
                    whole = false;
                }
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        // An error's and a dump's last word start with a negative errno, or 0.
                        let code = nla::u32_at(payload, 0).unwrap_or(0).cast_signed();
                        if code < 0 {
                            return Err(Error::Errno {
                                operation: operation.to_owned(),
                                errno: -code,
                            });
                        }
                        return Ok(whole);
                    }
                    NLMSG_OVERRUN => {
                        return Err(Error::malformed(operation, "netlink messages were lost"));
                    }
                    1 => {}
                    kind => each(kind, payload)?,
                }
                if flags & NLM_F_DUMP == 0 {
                    return Ok(whole);
                }
            }
        }
    }

    fn datagram(&mut self, operation: &str) -> Result<&[u8]> {
        self.buffer.clear();
        self.buffer.reserve(BUFFER);
        loop {
            if self.deadline.is_some_and(|end| Instant::now() > end) {
                return Err(Error::Timeout {
                    operation: operation.to_owned(),
                });
            }
            match self.socket.recv_from(&mut self.buffer, libc::MSG_TRUNC) {
                // Only the kernel has port 0; any process in the namespace may send here otherwise.
                Ok((_, from)) if from.port_number() != KERNEL => {
                    self.buffer.clear();
                    self.buffer.reserve(BUFFER);
                }
                Ok((len, _)) if len > self.buffer.len() => {
                    return Err(Error::malformed(
                        operation,
                        format!("a netlink datagram of {len} bytes is larger than the buffer"),
                    ));
                }
                Ok(_) => return Ok(&self.buffer),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    return Err(Error::Timeout {
                        operation: operation.to_owned(),
                    });
                }
                Err(error) => {
                    self.broken = true;
                    return Err(Error::io(operation, &error));
                }
            }
        }
    }
}

/// A whole message.
fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    // Bodies are requests of this program: some hundred bytes.
    let len = u32::try_from(HEADER + body.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend_from_slice(&len.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0u32.to_ne_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// Time that a whole request may take.
pub const REQUEST: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_are_sent() {
        for kind in 0..=u16::MAX {
            // RTM_* come in fours: new, del, get, set.
            if is_read(Protocol::Route, kind, None) {
                assert_eq!(kind % 4, 2, "{kind}");
            }
        }
        for (protocol, kind) in [
            (Protocol::Route, 16),
            (Protocol::Route, 17),
            (Protocol::Route, 19),
            (Protocol::Netfilter, 0x0a00),
            (Protocol::Netfilter, 0x0a15),
            (Protocol::Netfilter, 0x0a19),
            (Protocol::Netfilter, 0x0103),
            (Protocol::Netfilter, 0x0602),
            (Protocol::Netfilter, 0x0702),
            (Protocol::SockDiag, 21),
            (Protocol::Xfrm, 18),
            (Protocol::Xfrm, 19),
            (Protocol::Xfrm, 29),
        ] {
            assert!(!is_read(protocol, kind, Some(4)), "{protocol:?} {kind:#x}");
        }
        for command in (0..=u8::MAX).filter(|command| !matches!(command, 0 | 4 | 8)) {
            assert!(!is_read(Protocol::Generic, 30, Some(command)), "{command}");
        }
        assert!(!is_read(Protocol::Generic, GENL_ID_CTRL, Some(4)));
        assert!(!is_read(Protocol::Generic, 30, None));
        let mut socket = Netlink::open(Protocol::Route).expect("a socket");
        let refused = socket.get(16, &[0; 16], "make a device");
        assert!(matches!(refused, Err(Error::NotARead { kind: 16, .. })));
    }
}
