//! What the sender is told by a rule.

use super::chain::Did;
use crate::model::packet::{L4, Packet};
use crate::trace::RejectWith;

/// `reject` of nf_tables. Source: net/netfilter/nft_reject.c, nft_reject_inet.c (v6.12).
pub(super) fn nft(packet: &Packet, kind: u32, code: u8) -> Did {
    let v6 = packet.src.is_ipv6();
    match kind {
        0 => Did::Reject(icmp(v6, code)),
        1 => reset(packet),
        2 => match (code, v6) {
            // NFT_REJECT_ICMPX_*: no route, port, host, administratively prohibited.
            (0, _) => Did::Reject(icmp(v6, 0)),
            (1, _) => Did::Reject(RejectWith::PortUnreachable),
            (2, false) | (3, true) => Did::Reject(icmp(v6, 1)),
            (2, true) => Did::Reject(icmp(v6, 3)),
            (3, false) => Did::Reject(icmp(v6, 13)),
            _ => Did::Blind(format!("reject with icmpx code {code}")),
        },
        _ => Did::Blind(format!("reject of type {kind}")),
    }
}

/// `REJECT`. Source: enum ipt_reject_with, enum ip6t_reject_with.
pub(super) fn xt(packet: &Packet, with: u32, v6: bool) -> Did {
    let code = match (with, v6) {
        (7, false) | (6, true) => return reset(packet),
        (0, _) => 0,
        (1, _) => 1,
        (2, _) => 2,
        (3, _) => 3,
        (5, false) => 9,
        (6, false) => 10,
        (8, false) => 13,
        (4, true) => 4,
        (7, true) => 5,
        (8, true) => 6,
        _ => return Did::Blind(format!("reject with {with}")),
    };
    Did::Reject(icmp(v6, code))
}

fn icmp(v6: bool, code: u8) -> RejectWith {
    match (v6, code) {
        (false, 3) | (true, 4) => RejectWith::PortUnreachable,
        _ => RejectWith::Icmp(code),
    }
}

/// Only TCP is reset, and never by a reset; other packets are dropped silently.
fn reset(packet: &Packet) -> Did {
    match packet.l4 {
        L4::Tcp { flags, .. } if flags & 4 == 0 => Did::Reject(RejectWith::TcpReset),
        _ => Did::Verdict(crate::model::netfilter::Verdict::Drop),
    }
}
