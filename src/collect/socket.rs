//! Sockets that wait for packets, by SOCK_DIAG; from `/proc/net` where a kernel has no inet_diag.
//!
//! Source: include/uapi/linux/inet_diag.h.

use std::fs::File;
use std::io::BufReader;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use procfs::net::{TcpNetEntries, TcpState, UdpNetEntries, UdpState};
use procfs::{FromBufReadSI, current_system_info};

use super::error::{Error, Result};
use super::netlink::Netlink;
use super::nla::{self, Attrs};
use crate::model::IfIndex;
use crate::model::packet::{TCP, UDP};
use crate::model::socket::Socket;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// `struct inet_diag_sockopt`, kernels 5.10 and later.
const INET_DIAG_SOCKOPT: u16 = 22;
/// Its sixth bit field.
const TRANSPARENT: u8 = if cfg!(target_endian = "big") {
    0x04
} else {
    0x20
};
/// `sizeof(struct inet_diag_req_v2)`
const REQUEST: usize = 56;
/// `sizeof(struct inet_diag_msg)`
const ANSWER: usize = 72;
const TCP_ESTABLISHED: u8 = 1;
const TCP_LISTEN: u8 = 10;

/// Listening TCP and all UDP sockets of both families.
pub fn read(socket: &mut Netlink) -> Result<Vec<Socket>> {
    let mut sockets = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        for (protocol, states) in [(TCP, 1u32 << TCP_LISTEN), (UDP, u32::MAX)] {
            let mut request = [0u8; REQUEST];
            request[0] = u8::try_from(family).unwrap_or_default();
            request[1] = protocol;
            request[4..8].copy_from_slice(&states.to_ne_bytes());
            let found = socket.dump(
                SOCK_DIAG_BY_FAMILY,
                &request,
                "list sockets",
                Vec::new,
                |found, _, body| found.extend(decode(protocol, body)),
            )?;
            sockets.extend(found);
        }
    }
    Ok(sockets)
}

pub(super) fn decode(protocol: u8, body: &[u8]) -> Option<Socket> {
    let (family, state) = (i32::from(*body.first()?), *body.get(1)?);
    let width = if family == libc::AF_INET6 { 16 } else { 4 };
    let address = |at: usize| nla::ip(body.get(at..at + width)?);
    let remote = (address(24)?, nla::be16_at(body, 6)?);
    let connected = protocol == UDP && state == TCP_ESTABLISHED;
    let v6only = Attrs(body.get(ANSWER..)?)
        .find(INET_DIAG_SKV6ONLY)
        .and_then(|flag| flag.first())
        .map(|flag| *flag != 0);
    let transparent = Attrs(body.get(ANSWER..)?)
        .find(INET_DIAG_SOCKOPT)
        .and_then(|flags| flags.first())
        .map(|flags| flags & TRANSPARENT != 0);
    Some(Socket {
        protocol,
        addr: address(8)?,
        port: nla::be16_at(body, 4)?,
        v6only: if family == libc::AF_INET6 {
            v6only
        } else {
            Some(false)
        },
        listening: !connected,
        remote: connected.then_some(remote),
        bound_dev: IfIndex::new(nla::u32_at(body, 40)?),
        bound_dev_unread: false,
        // Of a listener, these are no bytes (`inet_diag_msg_common_fill()`, `tcp_diag_get_info()`).
        backlog: (protocol == TCP)
            .then(|| Some((nla::u32_at(body, 56)?, nla::u32_at(body, 60)?)))
            .flatten(),
        transparent,
        uid: nla::u32_at(body, 64)?,
        inode: u64::from(nla::u32_at(body, 68)?),
    })
}

/// The same from the files of the calling thread's namespace; what they do not tell is unknown.
pub fn read_files(proc: &Path) -> Result<Vec<Socket>> {
    let dir = proc.join("thread-self/net");
    let mut sockets = Vec::new();
    for name in ["tcp", "tcp6"] {
        if let Some(table) = file::<TcpNetEntries>(&dir.join(name))? {
            let listening = table.0.into_iter().filter(|e| e.state == TcpState::Listen);
            sockets.extend(listening.map(|e| entry(TCP, e.local_address, None, e.uid, e.inode)));
        }
    }
    for name in ["udp", "udp6"] {
        if let Some(table) = file::<UdpNetEntries>(&dir.join(name))? {
            sockets.extend(table.0.into_iter().map(|e| {
                let remote = (e.state == UdpState::Established).then_some(e.remote_address);
                entry(UDP, e.local_address, remote, e.uid, e.inode)
            }));
        }
    }
    Ok(sockets)
}

fn file<T: FromBufReadSI>(path: &Path) -> Result<Option<T>> {
    let operation = || format!("read {}", path.display());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
        Err(error) => return Err(Error::io(operation(), &error)),
    };
    T::from_buf_read(BufReader::new(file), current_system_info())
        .map(Some)
        .map_err(|error| Error::malformed(operation(), error.to_string()))
}

fn entry(
    protocol: u8,
    local: SocketAddr,
    remote: Option<SocketAddr>,
    uid: u32,
    inode: u64,
) -> Socket {
    let addr: IpAddr = local.ip();
    Socket {
        protocol,
        addr,
        port: local.port(),
        v6only: addr.is_ipv4().then_some(false),
        listening: remote.is_none(),
        remote: remote.map(|remote| (remote.ip(), remote.port())),
        // The files do not name the device.
        bound_dev: None,
        bound_dev_unread: true,
        backlog: None,
        transparent: None,
        uid,
        inode,
    }
}
