//! x_tables targets in the words of `iptables-save`.

use super::text::{Style, verdict};
use super::text_xt::set_sides;
use crate::model::conntrack::NatRange;
use crate::model::xtables::{SetTarget, XtTarget};

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
        let range = nat_range(to);
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
        XtTarget::Netmap(to) => nat("NETMAP", "--to", to),
        XtTarget::Mark { mark, mask } => format!("-j MARK --set-xmark {mark:#x}/{mask:#x}"),
        XtTarget::Connmark {
            mode,
            ctmark,
            ctmask,
            nfmask,
        } => match mode {
            0 => format!("-j CONNMARK --set-xmark {ctmark:#x}/{ctmask:#x}"),
            1 => format!("-j CONNMARK --save-mark --nfmask {nfmask:#x} --ctmask {ctmask:#x}"),
            _ => format!("-j CONNMARK --restore-mark --nfmask {nfmask:#x} --ctmask {ctmask:#x}"),
        },
        XtTarget::Reject { with, v6 } => format!("-j REJECT --reject-with {}", reject(*with, *v6)),
        XtTarget::Log(name) | XtTarget::Nop(name) => format!("-j {name}"),
        XtTarget::Ct { notrack, zone } => match (notrack, zone) {
            (true, _) => "-j CT --notrack".to_owned(),
            (false, 0) => "-j CT".to_owned(),
            (false, zone) => format!("-j CT --zone {zone}"),
        },
        XtTarget::Set(set) => set_target(set),
        XtTarget::Tproxy { addr, port, .. } => format!("-j TPROXY --on-ip {addr} --on-port {port}"),
        XtTarget::Tcpmss(0xffff) => "-j TCPMSS --clamp-mss-to-pmtu".to_owned(),
        XtTarget::Tcpmss(size) => format!("-j TCPMSS --set-mss {size}"),
        XtTarget::Queue { num, .. } => format!("-j NFQUEUE --queue-num {num}"),
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
