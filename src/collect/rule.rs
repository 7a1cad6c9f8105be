//! Policy rules, by RTM_GETRULE.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::rule::{RuleAction as Action, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::IpVersion;

use super::error::Result;
use super::rtnl::{ByHand, Session};
use crate::model::Prefix;
use crate::model::rule::{Rule, RuleAction};

const RTM_GETRULE: u16 = 34;
const FRA_TUN_ID: u16 = 12;
/// Conditions that `netlink-packet-route` 0.34 does not know: DSCP, FLOWLABEL and its mask, SPORT_MASK,
/// DPORT_MASK, DSCP_MASK (include/uapi/linux/fib_rules.h, v6.18). FRA_FLOW and FRA_PROTOCOL are none.
const FRA_DSCP: u16 = 25;
const FRA_SPORT_MASK: u16 = 28;
const FRA_DPORT_MASK: u16 = 29;
const FRA_DSCP_MASK: u16 = 30;
const FRA_CONDITIONS: [(u16, &str); 6] = [
    (FRA_DSCP, "dscp"),
    (26, "flowlabel"),
    (27, "flowlabel mask"),
    (FRA_SPORT_MASK, "sport mask"),
    (FRA_DPORT_MASK, "dport mask"),
    (FRA_DSCP_MASK, "dscp mask"),
];
/// Attributes without influence: FRA_PAD, FRA_FLOW, FRA_PROTOCOL.
const HARMLESS: [u16; 3] = [18, 11, 21];

/// Rules of both families, in the kernel's order.
pub fn read(session: &mut Session<'_>) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for (version, family) in [
        (IpVersion::V4, libc::AF_INET),
        (IpVersion::V6, libc::AF_INET6),
    ] {
        let mut body = [0u8; 12];
        body[0] = u8::try_from(family).unwrap_or_default();
        let v6 = family == libc::AF_INET6;
        let by_hand = ByHand {
            kind: RTM_GETRULE,
            body: &body,
            header: 12,
            take: |message| match message {
                RouteNetlinkMessage::NewRule(message) => Some(message),
                _ => None,
            },
        };
        let dumped = session.dump(
            "list policy rules",
            |handle| handle.rule().get(version.clone()).execute(),
            &by_hand,
        );
        match dumped {
            Ok(dumped) => rules.extend(
                dumped
                    .iter()
                    .map(|(message, lost)| flatten(v6, message, lost)),
            ),
            // IPv6 is not compiled in, or off by boot option.
            Err(error)
                if v6 && matches!(error.errno(), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rules)
}

pub(super) fn flatten(v6: bool, message: &RuleMessage, lost: &[u16]) -> Rule {
    let header = &message.header;
    let mut table = u32::from(header.table);
    let mut goto = None;
    let mut mark = None;
    let mut mask = None;
    let mut rule = Rule {
        invert: header.flags.contains(RuleFlags::Invert),
        tos: header.tos,
        action: RuleAction::Nop,
        unknown: lost.iter().map(|kind| format!("FRA_{kind}")).collect(),
        ..Rule::bare(v6, 0, table)
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Source(ip) => rule.src = Prefix::new(*ip, header.src_len).ok(),
            RuleAttribute::Destination(ip) => rule.dst = Prefix::new(*ip, header.dst_len).ok(),
            RuleAttribute::Iifname(name) => rule.iif = Some(name.clone()),
            RuleAttribute::Oifname(name) => rule.oif = Some(name.clone()),
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(number) => table = *number,
            RuleAttribute::Goto(priority) => goto = Some(*priority),
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = Some(*value),
            RuleAttribute::L3MDev(on) => rule.l3mdev = *on,
            RuleAttribute::UidRange(range) => rule.uid = Some((range.start, range.end)),
            RuleAttribute::IpProtocol(protocol) => rule.ip_proto = Some(u8::from(*protocol)),
            RuleAttribute::SourcePortRange(range) => rule.sport = Some((range.start, range.end)),
            RuleAttribute::DestinationPortRange(range) => {
                rule.dport = Some((range.start, range.end));
            }
            // The kernel sends -1 where nothing is suppressed.
            RuleAttribute::SuppressPrefixLen(len) => {
                rule.suppress_prefixlen = (*len != u32::MAX).then_some(*len);
            }
            RuleAttribute::SuppressIfGroup(group) => {
                rule.suppress_ifgroup = (*group != u32::MAX).then_some(*group);
            }
            RuleAttribute::Realm(realm) => {
                let (source, destination) = (u32::from(realm.source), realm.destination);
                rule.realm = Some(source << 16 | u32::from(destination));
            }
            RuleAttribute::TunId(id) if *id != 0 => {
                rule.unknown.push(format!("tun_id (FRA_{FRA_TUN_ID}) {id}"));
            }
            RuleAttribute::Other(nla) => other(&mut rule, nla),
            _ => {}
        }
    }
    // A mask without a value matches the mark 0 under it (`fwmark 0/0x1`).
    rule.fwmark = match (mark, mask) {
        (None, None) => None,
        (mark, mask) => Some((mark.unwrap_or(0), mask.unwrap_or(u32::MAX))),
    }
    .filter(|(_, mask)| *mask != 0);
    rule.action = match header.action {
        Action::ToTable => RuleAction::Table(table),
        Action::Goto => goto.map_or(RuleAction::Nop, RuleAction::Goto),
        Action::Nop => RuleAction::Nop,
        Action::Blackhole => RuleAction::Blackhole,
        Action::Unreachable => RuleAction::Unreachable,
        Action::Prohibit => RuleAction::Prohibit,
        action => RuleAction::Other(u8::from(action)),
    };
    rule
}

fn other(rule: &mut Rule, nla: &netlink_packet_core::DefaultNla) {
    use netlink_packet_core::Nla;
    let kind = nla.kind() & 0x3fff;
    let mut value = vec![0; nla.value_len()];
    nla.emit_value(&mut value);
    match (kind, value.as_slice()) {
        (kind, _) if HARMLESS.contains(&kind) => {}
        // The six bits stand in the upper part of the TOS byte.
        (FRA_DSCP, [dscp]) => {
            rule.tos = dscp << 2;
            rule.dscp = true;
        }
        // All bits: no mask.
        (FRA_DSCP_MASK, [0x3f]) | (FRA_SPORT_MASK | FRA_DPORT_MASK, [0xff, 0xff]) => {}
        (kind, _) => {
            let name = FRA_CONDITIONS.iter().find(|(known, _)| *known == kind);
            let name = name.map_or("condition", |(_, name)| name);
            rule.unknown.push(format!("{name} (FRA_{kind})"));
        }
    }
}
