//! Sockets that send and wait for packets.

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect,
    listen, setsockopt, socket, sockopt,
};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid};

use crate::cluster::Place;
use crate::random::world::{Listener, Probe};

/// Sockets that wait for packets, in any namespaces.
#[derive(Debug, Default)]
pub struct Servers {
    /// TCP.
    pub tcp: Vec<TcpListener>,
    /// UDP.
    pub udp: Vec<UdpSocket>,
}

impl Servers {
    /// Opens one in a namespace; `false` where that does not have the address.
    pub fn open(&mut self, place: &Place, one: &Listener) -> Result<bool> {
        let at = SocketAddr::new(one.addr, one.port);
        let opened = place.enter(|| {
            let opened = if let Some(dev) = &one.dev {
                open_bound(one, dev)
            } else if one.udp {
                UdpSocket::bind(at).and_then(|socket| {
                    socket.set_nonblocking(true)?;
                    Ok((None, Some(socket)))
                })
            } else {
                TcpListener::bind(at).and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    Ok((Some(listener), None))
                })
            };
            match opened {
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Ok((None, None)),
                other => other.with_context(|| format!("open a socket on {at}")),
            }
        });
        let (tcp, udp) = opened?;
        let is_there = tcp.is_some() || udp.is_some();
        self.tcp.extend(tcp);
        self.udp.extend(udp);
        Ok(is_there)
    }
}

/// A server's socket that is bound to a device.
fn open_bound(one: &Listener, dev: &str) -> io::Result<(Option<TcpListener>, Option<UdpSocket>)> {
    let (family, kind) = (
        if one.addr.is_ipv4() {
            AddressFamily::Inet
        } else {
            AddressFamily::Inet6
        },
        if one.udp {
            SockType::Datagram
        } else {
            SockType::Stream
        },
    );
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let own = socket(family, kind, flags, None)?;
    setsockopt(&own, sockopt::BindToDevice, &OsString::from(dev))?;
    bind(own.as_raw_fd(), &storage(one.addr, one.port))?;
    if one.udp {
        return Ok((None, Some(UdpSocket::from(own))));
    }
    setsockopt(&own, sockopt::ReuseAddr, &true)?;
    listen(&own, Backlog::MAXCONN)?;
    Ok((Some(TcpListener::from(own)), None))
}

pub(super) fn storage(addr: IpAddr, port: u16) -> SockaddrStorage {
    SockaddrStorage::from(SocketAddr::new(addr, port))
}

/// A socket whose file belongs to the probe's user and group. The thread ends soon.
pub(super) fn open_as(
    probe: &Probe,
    kind: SockType,
    protocol: impl Into<Option<SockProtocol>>,
) -> Result<OwnedFd> {
    let family = if probe.dst.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    setfsgid(Gid::from_raw(probe.id));
    setfsuid(Uid::from_raw(probe.id));
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let opened = socket(family, kind, flags, protocol);
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    let opened = opened.context("open a socket")?;
    if let Some(dev) = &probe.dev {
        setsockopt(&opened, sockopt::BindToDevice, &OsString::from(dev))
            .with_context(|| format!("bind to a device for {probe}"))?;
    }
    Ok(opened)
}

pub(super) fn reset_on_close(stream: &TcpStream) -> Result<()> {
    let gone = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(stream, sockopt::Linger, &gone).context("set linger")
}

/// Where a probe's socket is bound.
fn own(probe: &Probe) -> SockaddrStorage {
    let any = if probe.dst.is_ipv4() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    storage(probe.src.unwrap_or(any), probe.sport)
}

/// What was opened, or why the call failed.
pub(super) type Started<T> = (Option<T>, Option<Errno>);

pub(super) fn start_connection(probe: &Probe) -> Result<Started<OwnedFd>> {
    let socket = open_as(probe, SockType::Stream, None)?;
    setsockopt(&socket, sockopt::ReuseAddr, &true).context("share an address")?;
    bind(socket.as_raw_fd(), &own(probe)).with_context(|| format!("bind for {probe}"))?;
    let error = connect(socket.as_raw_fd(), &storage(probe.dst, probe.dport)).err();
    Ok((Some(socket), error))
}

pub(super) fn start_datagrams(probe: &Probe) -> Result<Started<UdpSocket>> {
    let socket = open_as(probe, SockType::Datagram, None)?;
    bind(socket.as_raw_fd(), &own(probe)).with_context(|| format!("bind for {probe}"))?;
    let error = connect(socket.as_raw_fd(), &storage(probe.dst, probe.dport)).err();
    let socket = UdpSocket::from(socket);
    if error.is_some() {
        return Ok((None, error));
    }
    let error = match socket.send(b"x") {
        Ok(_) => None,
        // Told already, by ICMP.
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => None,
        Err(error) => match error.raw_os_error() {
            Some(number) => Some(Errno::from_raw(number)),
            None => bail!("send a datagram: {error}"),
        },
    };
    Ok((Some(socket), error))
}
