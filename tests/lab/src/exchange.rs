//! One request and one answer over TCP or UDP, sent by the kernel of a namespace.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;

/// How an exchange ended, as an application sees it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// The listener answered.
    Connected {
        /// First line of the answer, `<pod name> <peer address>` from the laboratory's listeners.
        reply: String,
    },
    /// A reset, or an ICMP port unreachable, answered at once.
    Refused,
    /// Nothing answered within the time given.
    TimedOut,
    /// The kernel reported another error at once, for instance EHOSTUNREACH or EPERM.
    Unreachable(Errno),
}

impl Outcome {
    /// Whether the listener answered.
    pub fn connected(&self) -> bool {
        matches!(self, Self::Connected { .. })
    }

    /// Name of the pod that answered.
    pub fn pod(&self) -> Option<&str> {
        match self {
            Self::Connected { reply } => reply.split(' ').next(),
            _ => None,
        }
    }

    /// Source address and port that the listener saw.
    pub fn peer(&self) -> Option<SocketAddr> {
        match self {
            Self::Connected { reply } => reply.split(' ').nth(1)?.trim().parse().ok(),
            _ => None,
        }
    }

    fn of(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::TimedOut,
            ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Self::Refused,
            _ => Self::Unreachable(
                error
                    .raw_os_error()
                    .map_or(Errno::UnknownErrno, Errno::from_raw),
            ),
        }
    }
}

/// Connects, sends one line and reads the answer; every wait takes at most `timeout`.
///
/// Runs in the network namespace of the calling thread.
pub fn tcp(to: SocketAddr, timeout: Duration) -> Result<Outcome> {
    let mut stream = match TcpStream::connect_timeout(&to, timeout) {
        Ok(stream) => stream,
        Err(error) => return Ok(Outcome::of(&error)),
    };
    stream
        .set_read_timeout(Some(timeout))
        .context("set a read timeout")?;
    let mut reply = Vec::new();
    let talked = stream
        .write_all(b"hello\n")
        .and_then(|()| stream.shutdown(Shutdown::Write))
        .and_then(|()| stream.read_to_end(&mut reply));
    Ok(match talked {
        Ok(_) => connected(&reply),
        Err(error) => Outcome::of(&error),
    })
}

/// Sends one datagram and waits for one at most `timeout`.
///
/// Runs in the network namespace of the calling thread.
pub fn udp(to: SocketAddr, timeout: Duration) -> Result<Outcome> {
    let any: IpAddr = if to.is_ipv4() {
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        Ipv6Addr::UNSPECIFIED.into()
    };
    let socket = UdpSocket::bind((any, 0)).context("open a datagram socket")?;
    socket
        .set_read_timeout(Some(timeout))
        .context("set a read timeout")?;
    let mut buffer = [0; 2048];
    let talked = socket
        .connect(to)
        .and_then(|()| socket.send(b"hello\n"))
        .and_then(|_| socket.recv(&mut buffer));
    Ok(match talked {
        Ok(length) => connected(buffer.get(..length).unwrap_or_default()),
        Err(error) => Outcome::of(&error),
    })
}

fn connected(reply: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(reply);
    Outcome::Connected {
        reply: text.lines().next().unwrap_or_default().to_owned(),
    }
}
