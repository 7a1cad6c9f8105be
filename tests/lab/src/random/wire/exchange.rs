//! Connections, datagrams and echoes there and back: a question, its answer, and one more packet of each side.

use std::io::{Read, Write};
use std::net::TcpStream;

use anyhow::Result;
use nix::errno::Errno;

use super::socket::{reset_on_close, start_connection, start_datagrams};
use super::{Wire, sealed, transport};
use crate::capture::Seen;
use crate::packet::Transport;
use crate::random::seen::{Observed, Refusal};
use crate::random::world::Probe;

impl Wire<'_> {
    pub(super) fn connection(&mut self, probe: &Probe) -> Result<Observed> {
        let (client, error) = self.inside(probe, || start_connection(probe))?;
        let mut seen = self.seen(probe)?;
        let mut observed = Observed::default();
        let first = seen.iter().find_map(|one| match one.frame.innermost() {
            Some(ip) if one.place == probe.from && ip.is_syn() => match ip.transport {
                // Its port may be another one by now.
                Transport::Tcp { sequence, .. } => Some(sequence),
                _ => None,
            },
            _ => None,
        });
        observed.refusal = self.refusal(probe, &seen, first, None);
        if observed.refusal.is_none()
            && let Some(error) = error.filter(|error| *error != Errno::EINPROGRESS)
        {
            observed.refusal = Some(Refusal::Call(error as i32));
        }
        let client = client.map(TcpStream::from);
        if let Some(mut client) = client {
            if observed.refusal.is_none()
                && let Some(number) = client.take_error()?.and_then(|error| error.raw_os_error())
            {
                observed.refusal = Some(Refusal::Call(number));
            }
            // It may stand, or not.
            if client.write_all(b"x").is_ok() {
                seen.extend(self.seen(probe)?);
            }
            let mut accepted = Vec::new();
            for listener in &self.servers.tcp {
                while let Ok((stream, _)) = listener.accept() {
                    accepted.push(stream);
                }
            }
            for stream in &mut accepted {
                stream.set_nonblocking(true)?;
                // Where a rule lets the handshake pass by chance and not what follows, there is nothing to answer.
                if stream.read(&mut [0; 8]).is_ok_and(|length| length > 0) {
                    observed.taken = true;
                    let _ = stream.write_all(b"y");
                }
            }
            seen.extend(self.seen(probe)?);
            reset_on_close(&client)?;
            drop(client);
            self.settle()?;
            for stream in &accepted {
                reset_on_close(stream)?;
            }
        }
        if let Some(first) = first {
            let segments = sealed::with_sealed(&seen, |one| segment(one, first));
            let segments: Vec<(usize, bool, &Seen)> = segments
                .into_iter()
                .map(|((turn, data), one)| (turn, data, one))
                .collect();
            for (turn, data, one) in &segments {
                // Where rules decide at random, each segment of a side may go its own way: the one with data counts,
                // where there is one.
                let other = |(own, data, _): &(usize, bool, &Seen)| *data && own == turn;
                if *data || !segments.iter().any(other) {
                    self.push(&mut observed.turns[*turn], one);
                }
            }
        }
        Ok(observed)
    }

    pub(super) fn datagrams(&mut self, probe: &Probe) -> Result<Observed> {
        let mut observed = Observed::default();
        let (client, error) = self.inside(probe, || start_datagrams(probe))?;
        for turn in 0..4 {
            let client = client.as_ref();
            if turn == 2 && client.is_none_or(|client| client.recv(&mut [0; 8]).is_err()) {
                break;
            }
            let sent = match turn {
                0 => true,
                2 => client.is_some_and(|client| client.send(b"x").is_ok()),
                _ => self.answer(),
            };
            let seen = self.seen(probe)?;
            let ours =
                |one: &Seen| matches!(transport(one), Some(Transport::Udp { .. })).then_some(turn);
            for (turn, one) in sealed::with_sealed(&seen, ours) {
                self.push(&mut observed.turns[turn], one);
            }
            match turn {
                0 => {
                    observed.refusal = self.refusal(probe, &seen, None, None);
                    let told = client.and_then(|client| client.take_error().ok().flatten());
                    let number = told.and_then(|error| error.raw_os_error());
                    if observed.refusal.is_none() {
                        observed.refusal = number.map(Refusal::Call);
                    }
                }
                1 => observed.taken = sent,
                _ => {}
            }
            if !sent {
                break;
            }
        }
        if observed.refusal.is_none() {
            observed.refusal = error.map(|error| Refusal::Call(error as i32));
        }
        Ok(observed)
    }

    /// Answers what servers got; tells whether there was anything.
    fn answer(&self) -> bool {
        let mut answered = false;
        for socket in &self.servers.udp {
            while let Ok((_, peer)) = socket.recv_from(&mut [0; 8]) {
                answered = true;
                // Rules may refuse the answer.
                let _ = socket.send_to(b"y", peer);
            }
        }
        answered
    }

    pub(super) fn echoes(&mut self, probe: &Probe) -> Result<Observed> {
        let mut observed = Observed::default();
        let (ask, tell) = if probe.dst.is_ipv6() {
            (128, 129)
        } else {
            (8, 0)
        };
        for round in 0..2 {
            let error = self.send_echo(probe, ask)?;
            let seen = self.seen(probe)?;
            let turn = |one: &Seen| match transport(one) {
                Some(Transport::Icmp { kind, .. }) if *kind == ask => Some(round * 2),
                Some(Transport::Icmp { kind, .. }) if *kind == tell => Some(round * 2 + 1),
                _ => None,
            };
            for (turn, one) in sealed::with_sealed(&seen, turn) {
                self.push(&mut observed.turns[turn], one);
            }
            if round == 0 {
                let call = || error.map(|error| Refusal::Call(error as i32));
                observed.refusal = self.refusal(probe, &seen, None, None).or_else(call);
                observed.taken = !observed.turns[1].is_empty();
            }
            let mut back = observed.turns[1].iter();
            // What a VRF sends to itself is not seen to come in.
            let own = probe.dev.is_some() && probe.src == Some(probe.dst);
            if !back.any(|point| (!point.out || own) && point.place == probe.from) {
                break;
            }
        }
        Ok(observed)
    }
}

/// Which packet of a connection a segment is, and whether it has data. `first`: the number that the connection began
/// with.
fn segment(one: &Seen, first: u32) -> Option<(usize, bool)> {
    let Transport::Tcp {
        flags,
        sequence,
        acknowledgment,
        ..
    } = one.frame.innermost()?.transport
    else {
        return None;
    };
    let near = |number: u32| number.wrapping_sub(first) < 1 << 16;
    let turn = match flags & 0x17 {
        0x02 if near(sequence) => 0,
        0x12 if near(acknowledgment) => 1,
        0x10 if near(sequence) => 2,
        0x10 if near(acknowledgment) => 3,
        _ => return None,
    };
    Some((turn, flags & 0x08 != 0))
}
