//! How a connection of TCP goes on with a packet, by its flags: sequence numbers are taken to fit.
//!
//! Source: `nf_conntrack_tcp_packet()`, `tcp_error()`, `tcp_new()` and the table of states in
//! net/netfilter/nf_conntrack_proto_tcp.c (v6.12).

use crate::model::conntrack::ConntrackEntry;
use crate::model::packet::{L4, Packet};

/// TCP_CONNTRACK_SYN_SENT
pub(super) const SYN_SENT: u8 = 1;
const SYN_RECV: u8 = 2;
const ESTABLISHED: u8 = 3;
const FIN_WAIT: u8 = 4;
const CLOSE_WAIT: u8 = 5;
const LAST_ACK: u8 = 6;
const TIME_WAIT: u8 = 7;
const CLOSE: u8 = 8;
/// TCP_CONNTRACK_SYN_SENT2
const SYN_SENT2: u8 = 9;

/// IP_CT_TCP_FLAG_CLOSE_INIT
const CLOSE_INIT: u8 = 4;

/// What a packet does to the connection that it belongs to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is in this state now; `None`: not known, or no TCP.
    Becomes(Option<u8>),
    /// The packet passes as one of the connection, which stays as it is.
    Ignored,
    /// The packet is one of no connection.
    Invalid(&'static str),
    /// The connection is over, and the packet begins another.
    Reopens,
}

/// Kind of a segment (`enum tcp_bit_set`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Segment {
    Syn,
    SynAck,
    Fin,
    Ack,
    Rst,
}

/// `None`: flags that go together in no segment (`tcp_valid_flags`).
fn segment(flags: u8) -> Option<Segment> {
    // PSH, ECE and CWR say nothing.
    match flags & 0x37 {
        0x02 | 0x22 => Some(Segment::Syn),
        0x12 => Some(Segment::SynAck),
        0x11 | 0x31 => Some(Segment::Fin),
        0x10 | 0x30 => Some(Segment::Ack),
        0x04 | 0x14 => Some(Segment::Rst),
        _ => None,
    }
}

const ODD: &str = "tcp flags that no segment has";

/// State of a connection that a packet with these flags begins, or why it begins none.
pub(super) fn begins(flags: u8) -> Result<u8, &'static str> {
    match segment(flags) {
        Some(Segment::Syn) => Ok(SYN_SENT),
        Some(Segment::Ack) => Ok(ESTABLISHED),
        Some(Segment::SynAck) => Err("an answer (syn ack) whose question was not seen here"),
        Some(Segment::Fin | Segment::Rst) => Err("no connection, and these tcp flags open none"),
        None => Err(ODD),
    }
}

/// How the connection goes on.
pub(super) fn turn(packet: &Packet, state: Option<u8>, reply: bool) -> Turn {
    let L4::Tcp { flags, .. } = packet.l4 else {
        return Turn::Becomes(None);
    };
    let Some(segment) = segment(flags) else {
        return Turn::Invalid(ODD);
    };
    let Some(state) = state else {
        return Turn::Becomes(None);
    };
    let becomes = |state: u8| Turn::Becomes(Some(state));
    let opening = matches!(state, SYN_SENT | SYN_SENT2);
    match (segment, state) {
        (Segment::Rst, _) => becomes(CLOSE),
        (Segment::Syn, SYN_SENT) if reply => becomes(SYN_SENT2),
        (Segment::Syn, SYN_SENT | SYN_SENT2) => becomes(state),
        (Segment::Syn, TIME_WAIT) => Turn::Reopens,
        (Segment::Syn, CLOSE) if !reply => Turn::Reopens,
        (Segment::Syn, _) if reply => {
            Turn::Invalid("the side that was asked can't open the connection (syn)")
        }
        (Segment::Syn, _) => Turn::Ignored,
        (Segment::SynAck, _) if reply && opening => becomes(SYN_RECV),
        (Segment::SynAck, _) if reply => Turn::Ignored,
        (Segment::SynAck, SYN_RECV | SYN_SENT2) => becomes(SYN_RECV),
        (Segment::SynAck, _) => Turn::Invalid("the side that asked can't answer (syn ack)"),
        (Segment::Ack, _) if reply && opening => Turn::Ignored,
        (Segment::Ack | Segment::Fin, _) if opening => {
            Turn::Invalid("no answer (syn ack) to the connection's question was seen here")
        }
        (Segment::Fin, SYN_RECV | ESTABLISHED) => becomes(FIN_WAIT),
        (Segment::Fin, FIN_WAIT | CLOSE_WAIT | LAST_ACK) => becomes(LAST_ACK),
        (Segment::Ack, SYN_RECV) if !reply => becomes(ESTABLISHED),
        (Segment::Ack, FIN_WAIT | CLOSE_WAIT) => becomes(CLOSE_WAIT),
        (Segment::Ack, LAST_ACK) => becomes(TIME_WAIT),
        (Segment::Ack | Segment::Fin, _) => becomes(state),
    }
}

/// Whether a SYN that finds this closed connection surely begins a new one; else what is taken to be so.
///
/// Source: case TCP_CONNTRACK_SYN_SENT: one side closed first, or the side that asks now was the last, by a reset;
/// of resets the kernel doesn't tell whose they were.
pub(super) fn reopens_surely(entry: &ConntrackEntry) -> Result<(), String> {
    let (orig, reply) = entry.tcp_flags.unwrap_or((0, 0));
    if entry.tcp_state == Some(TIME_WAIT) || (orig | reply) & CLOSE_INIT != 0 {
        return Ok(());
    }
    let left = entry.timeout.map_or_else(
        || "soon".to_owned(),
        |seconds| format!("in {seconds} seconds"),
    );
    Err(format!(
        "the connection was reset, by the side that asks again: had the other side done it, packets would go the old connection's way until its entry ends {left}"
    ))
}

/// Whether a connection is over, or may be at any moment.
pub(crate) fn is_closing(state: u8) -> bool {
    state >= FIN_WAIT
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn with(flags: u8) -> Packet {
        Packet::new(
            IpAddr::from([10, 0, 0, 1]),
            IpAddr::from([10, 0, 0, 2]),
            L4::Tcp {
                sport: Some(1),
                dport: Some(2),
                flags,
            },
        )
    }

    #[test]
    fn a_connection_opens_and_closes() {
        let mut state = begins(0x02).expect("a syn begins");
        for (flags, reply, next) in [
            (0x12, true, SYN_RECV),
            (0x10, false, ESTABLISHED),
            (0x18, true, ESTABLISHED),
            (0x11, false, FIN_WAIT),
            (0x10, true, CLOSE_WAIT),
            (0x11, true, LAST_ACK),
            (0x10, false, TIME_WAIT),
        ] {
            assert_eq!(
                turn(&with(flags), Some(state), reply),
                Turn::Becomes(Some(next)),
                "{flags:#x} in {state}"
            );
            state = next;
        }
        assert_eq!(turn(&with(0x02), Some(state), false), Turn::Reopens);
        assert_eq!(turn(&with(0x02), Some(CLOSE), false), Turn::Reopens);
    }

    /// The answer went another way: what follows belongs to no connection.
    #[test]
    fn an_unanswered_connection_carries_nothing() {
        let data = turn(&with(0x18), Some(SYN_SENT), false);
        assert!(matches!(data, Turn::Invalid(_)));
        assert_eq!(turn(&with(0x10), Some(SYN_SENT), true), Turn::Ignored);
        assert_eq!(turn(&with(0x02), Some(ESTABLISHED), false), Turn::Ignored);
    }
}
