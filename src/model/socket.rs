//! Sockets that wait for packets, as `ss -ltun` shows them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::IfIndex;

/// One bound socket. Source: SOCK_DIAG_BY_FAMILY (`struct inet_diag_msg`), or `/proc/net/{tcp,udp}{,6}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    /// IPPROTO_TCP (6), IPPROTO_UDP (17), IPPROTO_SCTP (132).
    pub protocol: u8,
    /// Address it is bound to; unspecified is any.
    pub addr: IpAddr,
    /// Port it is bound to.
    pub port: u16,
    /// An IPv6 socket bound to `::` takes IPv4 too, unless this is set (IPV6_V6ONLY).
    /// `None`: unknown.
    pub v6only: Option<bool>,
    /// TCP: in state LISTEN. UDP: always true, unless it is connected.
    pub listening: bool,
    /// Remote end of a connected socket.
    pub remote: Option<(IpAddr, u16)>,
    /// Bound to a device (SO_BINDTODEVICE).
    pub bound_dev: Option<IfIndex>,
    /// Whether it is bound to a device could not be read, so that no device there says nothing:
    /// `/proc/net` does not tell.
    #[serde(default)]
    pub bound_dev_unread: bool,
    /// Of a listening TCP socket: connections that wait to be accepted, and the most that may (the
    /// kernel drops a SYN where there are more; `sk_ack_backlog`, `sk_max_ack_backlog`). `None`: unknown, or
    /// no such socket.
    #[serde(default)]
    pub backlog: Option<(u32, u32)>,
    /// It takes packets for addresses that are not its own (IP_TRANSPARENT), as TPROXY demands. `None`: unknown.
    #[serde(default)]
    pub transparent: Option<bool>,
    /// Owner's uid.
    pub uid: u32,
    /// Socket inode.
    pub inode: u64,
}
