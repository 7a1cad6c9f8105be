//! x_tables targets in the words of `iptables-save`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::text::{Style, verdict};
use super::text_xt::{set_sides, with_mask};
use super::{text_rare_target, text_rare_target::ct};
use crate::model::conntrack::NatRange;
use crate::model::xtables::{SetTarget, XtTarget};

/// `NETMAP`: the bits that the two ends share are replaced.
fn netmap(to: &NatRange) -> String {
    let Some((first, last)) = to.addrs else {
        return "-j NETMAP".to_owned();
    };
    let mask = match (first, last) {
        (IpAddr::V4(first), IpAddr::V4(last)) => {
            IpAddr::from(Ipv4Addr::from(!(u32::from(first) ^ u32::from(last))))
        }
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            IpAddr::from(Ipv6Addr::from(!(u128::from(first) ^ u128::from(last))))
        }
        _ => return "-j NETMAP ...".to_owned(),
    };
    format!("-j NETMAP --to {}", with_mask(first, mask))
}

fn nat_range(to: &NatRange) -> String {
    let mut text = String::new();
    if let Some((first, last)) = to.addrs {
        text = if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        };
        if first.is_ipv6() && to.ports.is_some() {
            text = format!("[{text}]");
        }
    }
    if let (None, Some((first, last))) = (to.addrs, to.ports) {
        text = if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        };
    } else if let Some((first, last)) = to.ports {
        text = if first == last {
            format!("{text}:{first}")
        } else {
            format!("{text}:{first}-{last}")
        };
    }
    // NF_NAT_RANGE_PROTO_OFFSET
    if to.flags & 32 != 0 && to.ports.is_some() {
        text = format!("{text}/{}", to.base);
    }
    text
}

fn with_flags(mut text: String, flags: u32) -> String {
    for (bit, word) in [(4, "--random"), (16, "--random-fully"), (8, "--persistent")] {
        if flags & bit != 0 {
            text = format!("{text} {word}");
        }
    }
    text
}

/// One target.
pub(super) fn target(target: &XtTarget) -> String {
    let nat = |word: &str, flag: &str, to: &NatRange| {
        let mut range = nat_range(to);
        if to.addrs.is_none() && to.ports.is_some() && flag != "--to-ports" {
            range = format!(":{range}");
        }
        let text = if range.is_empty() {
            format!("-j {word}")
        } else {
            format!("-j {word} {flag} {range}")
        };
        with_flags(text, to.flags)
    };
    match target {
        XtTarget::Standard(to) => verdict(to, Style::Iptables),
        XtTarget::Dnat(to) => nat("DNAT", "--to-destination", to),
        XtTarget::Snat(to) => nat("SNAT", "--to-source", to),
        XtTarget::Masquerade(to) => nat("MASQUERADE", "--to-ports", to),
        XtTarget::Redirect(to) => nat("REDIRECT", "--to-ports", to),
        XtTarget::Netmap(to) => netmap(to),
        XtTarget::Mark { mark, mask } => format!("-j MARK --set-xmark {mark:#x}/{mask:#x}"),
        XtTarget::Connmark {
            mode,
            ctmark,
            ctmask,
            nfmask,
            shift,
        } => {
            let text = match mode {
                0 => format!("-j CONNMARK --set-xmark {ctmark:#x}/{ctmask:#x}"),
                1 => format!("-j CONNMARK --save-mark --nfmask {nfmask:#x} --ctmask {ctmask:#x}"),
                _ => {
                    format!("-j CONNMARK --restore-mark --nfmask {nfmask:#x} --ctmask {ctmask:#x}")
                }
            };
            match shift {
                0 => text,
                1.. => format!("{text} --left-shift-mark {shift}"),
                _ => format!("{text} --right-shift-mark {}", shift.unsigned_abs()),
            }
        }
        XtTarget::Reject { with, v6 } => format!("-j REJECT --reject-with {}", reject(*with, *v6)),
        XtTarget::Ct(to) => ct(to),
        XtTarget::Set(set) => set_target(set),
        XtTarget::Tproxy { mark, addr, port } => {
            let (value, mask) = mark;
            format!("-j TPROXY --on-port {port} --on-ip {addr} --tproxy-mark {value:#x}/{mask:#x}")
        }
        XtTarget::Tcpmss(0xffff) => "-j TCPMSS --clamp-mss-to-pmtu".to_owned(),
        XtTarget::Tcpmss(size) => format!("-j TCPMSS --set-mss {size}"),
        XtTarget::Queue {
            num,
            total,
            bypass,
            fanout,
        } => {
            let mut text = match total {
                0 | 1 => format!("-j NFQUEUE --queue-num {num}"),
                _ => format!(
                    "-j NFQUEUE --queue-balance {num}:{}",
                    num.saturating_add(total - 1)
                ),
            };
            if *bypass {
                text.push_str(" --queue-bypass");
            }
            if *fanout {
                text.push_str(" --queue-cpu-fanout");
            }
            text
        }
        XtTarget::Rare(rare) => text_rare_target::target(rare),
        XtTarget::Other { name, .. } => format!("-j {name} ..."),
    }
}

fn set_target(target: &SetTarget) -> String {
    let mut text = "-j SET".to_owned();
    let sets = [
        ("--add-set", &target.add),
        ("--del-set", &target.del),
        ("--map-set", &target.map),
    ];
    for (flag, set) in sets {
        if let Some(set) = set {
            let sides = set_sides(set.index, set.name.as_deref(), &set.dims);
            text = format!("{text} {flag} {sides}");
        }
    }
    if target.flags & 1 != 0 {
        text.push_str(" --exist");
    }
    if target.timeout != u32::MAX && target.add.is_some() {
        text = format!("{text} --timeout {}", target.timeout);
    }
    for (bit, flag) in [
        (0x100, "--map-mark"),
        (0x200, "--map-prio"),
        (0x400, "--map-queue"),
    ] {
        if target.flags & bit != 0 {
            text = format!("{text} {flag}");
        }
    }
    text
}

fn reject(with: u32, v6: bool) -> String {
    let names: &[(u32, &str)] = if v6 {
        &[
            (0, "icmp6-no-route"),
            (1, "icmp6-adm-prohibited"),
            (3, "icmp6-addr-unreachable"),
            (4, "icmp6-port-unreachable"),
            (6, "tcp-reset"),
            (7, "icmp6-policy-fail"),
            (8, "icmp6-reject-route"),
        ]
    } else {
        &[
            (0, "icmp-net-unreachable"),
            (1, "icmp-host-unreachable"),
            (2, "icmp-proto-unreachable"),
            (3, "icmp-port-unreachable"),
            (5, "icmp-net-prohibited"),
            (6, "icmp-host-prohibited"),
            (7, "tcp-reset"),
            (8, "icmp-admin-prohibited"),
        ]
    };
    let found = names.iter().find(|(number, _)| *number == with);
    found.map_or_else(|| with.to_string(), |(_, name)| (*name).to_owned())
}
