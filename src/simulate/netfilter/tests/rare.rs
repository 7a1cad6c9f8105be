//! Matches and targets that few rule sets have.

use super::fixture::*;
use crate::model::netfilter::*;
use crate::model::packet::L4;
use crate::model::xtables::*;
use crate::simulate::netfilter::HookVerdict;
use crate::simulate::skb::{Flows, Skb};

fn packet() -> Skb {
    let mut packet = tcp("10.244.1.7", Some(4000), "10.244.2.2", 80);
    packet.tos = 0x2a;
    packet.ttl = 64;
    skb(packet, false)
}

fn world(rule: Vec<Expr>) -> World {
    let forward = base(Hook::Forward, 0, ChainKind::Filter);
    let chain = chain("FORWARD", Some(forward), vec![rule]);
    World::new(with_nft(vec![table(
        Family::Ip,
        "filter",
        vec![chain],
        Vec::new(),
    )]))
}

/// Whether a match holds; `None`: unknown.
fn holds(condition: RareMatch, skb: Skb) -> Option<bool> {
    let rule = vec![
        Expr::Match(XtMatch::Rare(Box::new(condition))),
        Expr::Target(XtTarget::Standard(Verdict::Drop)),
    ];
    let outcome = world(rule).one(Hook::Forward, (3, 2), skb, Flows::default());
    match outcome.verdict {
        HookVerdict::Drop(_) => Some(true),
        HookVerdict::Accept => Some(false),
        _ => None,
    }
}

/// `--u32 "LOCATION=FIRST:LAST"` with the numbers that the kernel holds.
fn u32_is(location: &[(u32, u8)], range: (u32, u32)) -> Option<bool> {
    let test = U32Test {
        location: location.to_vec(),
        values: vec![range],
    };
    let condition = RareMatch::U32 {
        tests: vec![test],
        invert: false,
    };
    holds(condition, packet())
}

#[test]
fn u32_looks_at_header_bytes() {
    // The protocol: 6&0xff=6, and 6&0xff=17.
    assert_eq!(u32_is(&[(6, 0), (0xff, 0)], (6, 6)), Some(true));
    assert_eq!(u32_is(&[(6, 0), (0xff, 0)], (17, 17)), Some(false));
    // The destination port, behind the header's length: 0>>22&0x3c@0&0xffff=80.
    let port = [(0, 0), (22, 2), (0x3c, 0), (0, 3), (0xffff, 0)];
    assert_eq!(u32_is(&port, (80, 80)), Some(true));
    assert_eq!(u32_is(&port, (81, 90)), Some(false));
    // The packet's id is not known; any id is.
    assert_eq!(u32_is(&[(4, 0), (16, 2)], (7, 7)), None);
    assert_eq!(u32_is(&[(4, 0), (16, 2)], (0, 0xffff)), Some(true));
    // Behind the packet nothing can match.
    assert_eq!(u32_is(&[(4000, 0)], (0, u32::MAX)), Some(false));
}

#[test]
fn bits_of_the_second_byte() {
    let tos = |value, mask, invert| {
        let condition = RareMatch::Tos {
            value,
            mask,
            invert,
        };
        holds(condition, packet())
    };
    assert_eq!(tos(0x2a, 0xff, false), Some(true));
    assert_eq!(tos(0x02, 0x03, false), Some(true));
    assert_eq!(tos(0x02, 0x03, true), Some(false));
    let ecn = |operation, invert, ect| {
        let condition = RareMatch::Ecn {
            operation,
            invert,
            ect,
        };
        holds(condition, packet())
    };
    assert_eq!(ecn(1, 0, 2), Some(true));
    assert_eq!(ecn(1, 1, 2), Some(false));
    // Neither ECE nor CWR is set.
    assert_eq!(ecn(0x10, 0, 0), Some(false));
    assert_eq!(ecn(0x30, 0x30, 0), Some(true));
}

#[test]
fn what_is_not_in_the_packet_is_not_found() {
    let frag = RareMatch::Frag {
        ids: (0, u32::MAX),
        length: 0,
        flags: 0,
        invert: 1,
    };
    assert_eq!(holds(frag, packet()), Some(false));
    let mss = |invert| RareMatch::Tcpmss {
        mss: (1, 2),
        invert,
    };
    assert_eq!(holds(mss(false), packet()), None);
    let mut later = packet();
    if let L4::Tcp { flags, .. } = &mut later.packet.l4 {
        *flags = 0x10;
    }
    assert_eq!(holds(mss(false), later.clone()), Some(false));
    assert_eq!(holds(mss(true), later), Some(true));
    let policy = |flags| RareMatch::Policy {
        flags,
        elements: Vec::new(),
    };
    assert_eq!(holds(policy(5), packet()), Some(true));
    assert_eq!(holds(policy(1), packet()), Some(false));
    let time = RareMatch::Time(TimeMatch {
        date_start: 0,
        date_stop: u32::MAX,
        day_start: 0,
        day_stop: 86_399,
        monthdays: 2,
        weekdays: 2,
        flags: 0,
    });
    assert_eq!(holds(time, packet()), None);
}

#[test]
fn headers_are_changed() {
    let changed = |targets: Vec<RareTarget>| {
        let own = |target| Expr::Target(XtTarget::Rare(Box::new(target)));
        let rule = targets.into_iter().map(own).collect();
        world(rule)
            .one(Hook::Forward, (3, 2), packet(), Flows::default())
            .skb
            .packet
    };
    let ttl = |mode, value| RareTarget::Ttl {
        mode,
        value,
        v6: false,
    };
    assert_eq!(changed(vec![ttl(0, 9)]).ttl, 9);
    assert_eq!(changed(vec![ttl(1, 250)]).ttl, 255);
    assert_eq!(changed(vec![ttl(2, 4)]).ttl, 60);
    assert_eq!(changed(vec![RareTarget::Dscp(1)]).tos, 0x06);
    let tos = RareTarget::Tos {
        value: 0x10,
        mask: 0xff,
    };
    assert_eq!(changed(vec![tos, RareTarget::Trace]).tos, 0x10);
}

#[test]
fn a_load_that_is_not_known_leaves_nothing_behind() {
    // tcp dport 80 socket mark 80 drop: what the register held before is not the socket's mark.
    let rule = vec![
        Expr::Payload {
            base: PayloadBase::Transport,
            offset: 2,
            len: 2,
            dreg: 4,
        },
        Expr::Socket {
            key: 1,
            level: 0,
            dreg: 4,
        },
        Expr::Cmp {
            op: CmpOp::Eq,
            sreg: 4,
            data: vec![1, 0, 0, 0],
        },
        Expr::Verdict(Verdict::Drop),
    ];
    let outcome = world(rule).one(Hook::Forward, (3, 2), packet(), Flows::default());
    assert!(matches!(outcome.verdict, HookVerdict::Unknown(_)));
}
