//! Single packets from raw sockets.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use netpath::model::packet::{TCP, UDP};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, SockProtocol, SockType, bind, sendto, setsockopt, sockopt};

use super::bytes::{self, ACK_NUMBER, first_number, payload_of};
use super::socket::{open_as, storage};
use super::{Wire, sealed, transport};
use crate::capture::Seen;
use crate::packet::Transport;
use crate::random::seen::{Observed, Refusal};
use crate::random::world::{Kind, Probe};

impl Wire<'_> {
    pub(super) fn raw(&mut self, probe: &Probe) -> Result<Observed> {
        let Kind::Raw {
            flags: sent, icmp, ..
        } = probe.kind
        else {
            bail!("{probe} is no raw packet");
        };
        let mut observed = Observed::default();
        let error = self.send_raw(probe)?;
        let seen = self.seen(probe)?;
        let first = first_number(probe);
        let is_ours = |one: &Seen| match transport(one) {
            Some(Transport::Tcp {
                sequence, flags, ..
            }) => *sequence == first && *flags == sent,
            Some(Transport::Udp { .. }) => probe.protocol == UDP,
            Some(Transport::Icmp { kind, code, about }) => {
                (*kind, *code) == icmp && about.is_none() && !matches!(probe.protocol, TCP | UDP)
            }
            _ => false,
        };
        for (turn, one) in sealed::with_sealed(&seen, |one| is_ours(one).then_some(0)) {
            self.push(&mut observed.turns[turn], one);
        }
        for one in &seen {
            let ours = is_ours(one);
            if let Some(Transport::Tcp {
                flags,
                acknowledgment,
                ..
            }) = transport(one)
            {
                let near = acknowledgment.wrapping_sub(first);
                observed.taken |= match flags {
                    0x12 => (1..=1 + payload_of(probe)).contains(&near),
                    // A connection that an earlier probe half opened stands in the way, and says so.
                    0x10 => sent == 2 && !ours,
                    _ => false,
                };
            }
        }
        observed.refusal = self
            .refusal(probe, &seen, Some(first), Some(ACK_NUMBER))
            .or_else(|| error.map(|error| Refusal::Call(error as i32)));
        for socket in &self.servers.udp {
            while socket.recv_from(&mut [0; 8]).is_ok() {
                observed.taken = true;
            }
        }
        Ok(observed)
    }

    /// Sends an error about a packet, and tells where it was seen.
    pub(super) fn error(&mut self, probe: &Probe, icmp: (u8, u8)) -> Result<Observed> {
        let mut observed = Observed::default();
        let error = self.send_raw(probe)?;
        let is_ours = |one: &Seen| match transport(one) {
            Some(Transport::Icmp { kind, code, .. }) => (*kind, *code) == icmp,
            _ => false,
        };
        let seen = self.seen(probe)?;
        for (turn, one) in sealed::with_sealed(&seen, |one| is_ours(one).then_some(0)) {
            self.push(&mut observed.turns[turn], one);
        }
        observed.refusal = error.map(|error| Refusal::Call(error as i32));
        Ok(observed)
    }

    /// Sends the packet of a raw socket, bound to the source that it is sent from.
    pub(super) fn send_raw(&self, probe: &Probe) -> Result<Option<Errno>> {
        let (src, dst) = bytes::ends(probe)?;
        let bytes = bytes::of(probe)?;
        self.inside(probe, || {
            let socket = open_as(probe, SockType::Raw, SockProtocol::Raw)?;
            if let Kind::Raw { mark, .. } = probe.kind
                && mark != 0
            {
                setsockopt(&socket, sockopt::Mark, &mark).context("set a mark")?;
            }
            if dst.is_ipv4() {
                setsockopt(&socket, sockopt::Broadcast, &true).context("allow broadcast")?;
            }
            bind(socket.as_raw_fd(), &storage(src, 0))
                .with_context(|| format!("bind for {probe}"))?;
            let to = storage(dst, 0);
            let sent = sendto(socket.as_raw_fd(), &bytes, &to, MsgFlags::empty());
            Ok(sent.err())
        })
    }

    /// Sends an echo request, whose IP header the kernel writes.
    pub(super) fn send_echo(&self, probe: &Probe, kind: u8) -> Result<Option<Errno>> {
        let echo = bytes::echo(probe, kind);
        let protocol = match probe.dst {
            IpAddr::V4(_) => SockProtocol::Icmp,
            IpAddr::V6(_) => SockProtocol::IcmpV6,
        };
        self.inside(probe, || {
            let socket = open_as(probe, SockType::Raw, protocol)?;
            if let Some(src) = probe.src {
                bind(socket.as_raw_fd(), &storage(src, 0))
                    .with_context(|| format!("bind for {probe}"))?;
            }
            let to = storage(probe.dst, 0);
            let sent = sendto(socket.as_raw_fd(), &echo, &to, MsgFlags::empty());
            Ok(sent.err())
        })
    }
}
