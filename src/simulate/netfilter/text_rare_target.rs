//! x_tables targets that few rule sets have, in the words of `iptables-save`.

use std::fmt::Write as _;

use super::text_rare_match::ones;
use super::text_xt::quoted;
use crate::model::xtables::{CtTarget, RareTarget};

/// One target, with `-j` and its name.
pub(super) fn target(target: &RareTarget) -> String {
    match target {
        RareTarget::Audit(kind) => {
            let kinds = ["accept", "drop", "reject"];
            let kind = kinds.get(usize::from(*kind)).unwrap_or(&"?");
            format!("-j AUDIT --type {kind}")
        }
        RareTarget::Checksum(operation) => match operation & 1 {
            0 => "-j CHECKSUM".to_owned(),
            _ => "-j CHECKSUM --checksum-fill".to_owned(),
        },
        RareTarget::Classify(priority) => {
            let (major, minor) = (priority >> 16, priority & 0xffff);
            format!("-j CLASSIFY --set-class {major:04x}:{minor:04x}")
        }
        RareTarget::Clusterip {
            flags,
            mac,
            total,
            local,
            mode,
            seed,
        } => {
            if flags & 1 == 0 {
                return "-j CLUSTERIP".to_owned();
            }
            let modes = [
                "sourceip",
                "sourceip-sourceport",
                "sourceip-sourceport-destport",
            ];
            let mode = usize::try_from(*mode).ok().and_then(|mode| modes.get(mode));
            let node = local.first().copied().unwrap_or_default();
            format!(
                "-j CLUSTERIP --new --hashmode {} --clustermac {} --total-nodes {total} --local-node {node} \
                 --hash-init {seed}",
                mode.unwrap_or(&"?"),
                mac.to_string().to_uppercase(),
            )
        }
        RareTarget::Connsecmark(1) => "-j CONNSECMARK --save".to_owned(),
        RareTarget::Connsecmark(_) => "-j CONNSECMARK --restore".to_owned(),
        RareTarget::Dscp(dscp) => format!("-j DSCP --set-dscp {dscp:#04x}"),
        RareTarget::Ecn {
            operation,
            ect,
            tcp,
        } => {
            let mut text = "-j ECN".to_owned();
            if operation & 0x30 == 0x30 && *tcp == 0 {
                text.push_str(" --ecn-tcp-remove");
            } else {
                for (bit, flag, set) in [(0x10, "ece", tcp & 1), (0x20, "cwr", tcp >> 1 & 1)] {
                    if operation & bit != 0 {
                        let _ = write!(text, " --ecn-tcp-{flag} {set}");
                    }
                }
            }
            if operation & 1 != 0 {
                let _ = write!(text, " --ecn-ip-ect {ect}");
            }
            text
        }
        RareTarget::Hmark {
            masks,
            port_masks,
            ports,
            flags,
            protocol,
            seed,
            modulus,
            offset,
        } => {
            let mut text = "-j HMARK".to_owned();
            let both = |(high, low): (u16, u16)| u32::from(high) << 16 | u32::from(low);
            for (bit, flag, value) in [
                (0, "src-prefix", ones(masks.0).to_string()),
                (1, "dst-prefix", ones(masks.1).to_string()),
                (3, "spi-mask", format!("{:#010x}", both(*port_masks))),
                (2, "spi", format!("{:#010x}", both(*ports))),
                (
                    6,
                    "sport-mask",
                    format!("{:#06x}", port_masks.0.swap_bytes()),
                ),
                (
                    7,
                    "dport-mask",
                    format!("{:#06x}", port_masks.1.swap_bytes()),
                ),
                (4, "sport", format!("{:#06x}", ports.0.swap_bytes())),
                (5, "dport", format!("{:#06x}", ports.1.swap_bytes())),
                (8, "proto-mask", format!("{protocol:#04x}")),
                (9, "rnd", format!("{seed:#010x}")),
                (10, "mod", modulus.to_string()),
                (11, "offset", offset.to_string()),
                (12, "tuple", "ct".to_owned()),
            ] {
                if flags >> bit & 1 == 1 {
                    let _ = write!(text, " --hmark-{flag} {value}");
                }
            }
            text
        }
        RareTarget::Idletimer {
            timeout,
            label,
            alarm,
        } => {
            let alarm = if *alarm { " --alarm" } else { "" };
            format!("-j IDLETIMER --timeout {timeout} --label {label}{alarm}")
        }
        RareTarget::Led {
            id,
            delay,
            always_blink,
        } => {
            let mut text = format!("-j LED --led-trigger-id {}", quoted(id));
            match delay {
                0 => {}
                -1 => text.push_str(" --led-delay inf"),
                delay => {
                    let _ = write!(text, " --led-delay {delay}");
                }
            }
            if *always_blink {
                text.push_str(" --led-always-blink");
            }
            text
        }
        RareTarget::Log {
            level,
            flags,
            prefix,
        } => {
            let mut text = "-j LOG".to_owned();
            if !prefix.is_empty() {
                let _ = write!(text, " --log-prefix {}", quoted(prefix));
            }
            // LOG_WARNING is what nobody has to say.
            if *level != 4 {
                let _ = write!(text, " --log-level {level}");
            }
            for (bit, word) in [
                (1, "tcp-sequence"),
                (2, "tcp-options"),
                (4, "ip-options"),
                (8, "uid"),
                (0x20, "macdecode"),
            ] {
                if flags & bit != 0 {
                    let _ = write!(text, " --log-{word}");
                }
            }
            text
        }
        RareTarget::Nflog {
            len,
            group,
            threshold,
            flags,
            prefix,
        } => {
            let size = match (flags & 1, len) {
                (1, len) => Some(("size", *len)),
                (_, 0) => None,
                (_, len) => Some(("range", *len)),
            };
            nflog(prefix, *group, size, *threshold)
        }
        RareTarget::Npt {
            destination,
            from,
            to,
        } => {
            let name = if *destination { "DNPT" } else { "SNPT" };
            let ((from, len), (to, other)) = (from, to);
            format!("-j {name} --src-pfx {from}/{len} --dst-pfx {to}/{other}")
        }
        RareTarget::Rateest {
            name,
            interval,
            ewma,
        } => {
            let shift = u32::try_from(interval.saturating_add(2)).unwrap_or_default();
            let interval = 250_000_u64.checked_shl(shift.min(32)).unwrap_or_default();
            let constant = interval
                .checked_shl(u32::from(*ewma).min(16))
                .unwrap_or_default();
            format!(
                "-j RATEEST --rateest-name {name} --rateest-interval {} --rateest-ewmalog {}",
                micros(interval),
                micros(constant)
            )
        }
        RareTarget::Secmark { context, .. } => format!("-j SECMARK --selctx {context}"),
        RareTarget::Synproxy {
            options,
            wscale,
            mss,
        } => {
            let mut text = "-j SYNPROXY".to_owned();
            for (bit, flag) in [
                (4, "--sack-perm".to_owned()),
                (8, "--timestamp".to_owned()),
                (2, format!("--wscale {wscale}")),
                (1, format!("--mss {mss}")),
                (0x10, "--ecn".to_owned()),
            ] {
                if options & bit != 0 {
                    let _ = write!(text, " {flag}");
                }
            }
            text
        }
        RareTarget::Tcpoptstrip(options) => {
            let list: Vec<String> = options.iter().map(ToString::to_string).collect();
            format!("-j TCPOPTSTRIP --strip-options {}", list.join(","))
        }
        RareTarget::Tee { gateway, oif } => {
            let oif = oif
                .as_ref()
                .map_or_else(String::new, |oif| format!(" --oif {oif}"));
            format!("-j TEE --gateway {gateway}{oif}")
        }
        RareTarget::Tos { value, mask } => format!("-j TOS --set-tos {value:#04x}/{mask:#04x}"),
        RareTarget::Trace => "-j TRACE".to_owned(),
        RareTarget::Ttl { mode, value, v6 } => {
            let (name, flag) = if *v6 { ("HL", "hl") } else { ("TTL", "ttl") };
            let how = match mode {
                0 => "set",
                1 => "inc",
                _ => "dec",
            };
            format!("-j {name} --{flag}-{how} {value}")
        }
    }
}

/// `NFLOG`, which iptables-nft writes as a native expression. `size`: word and bytes.
pub(super) fn nflog(prefix: &str, group: u16, size: Option<(&str, u32)>, threshold: u16) -> String {
    let mut text = "-j NFLOG".to_owned();
    if !prefix.is_empty() {
        let _ = write!(text, " --nflog-prefix {}", quoted(prefix));
    }
    if group != 0 {
        let _ = write!(text, " --nflog-group {group}");
    }
    if let Some((word, len)) = size {
        let _ = write!(text, " --nflog-{word} {len}");
    }
    if threshold != 0 {
        let _ = write!(text, " --nflog-threshold {threshold}");
    }
    text
}

/// A time in its largest unit, with one digit behind the point.
fn micros(time: u64) -> String {
    let tenths = |unit: u64| {
        let tenths = time / (unit / 10);
        format!("{}.{}", tenths / 10, tenths % 10)
    };
    match time {
        1_000_000.. => format!("{}s", tenths(1_000_000)),
        1_000.. => format!("{}ms", tenths(1_000)),
        _ => format!("{time}us"),
    }
}

/// `CT` and `NOTRACK`.
pub(super) fn ct(target: &CtTarget) -> String {
    if target.flags & 2 != 0 {
        return "-j NOTRACK".to_owned();
    }
    let mut text = "-j CT".to_owned();
    if target.notrack() {
        text.push_str(" --notrack");
    }
    for (flag, name) in [("--helper", &target.helper), ("--timeout", &target.timeout)] {
        if !name.is_empty() {
            let _ = write!(text, " {flag} {name}");
        }
    }
    let names = [
        "new",
        "related",
        "destroy",
        "reply",
        "assured",
        "protoinfo",
        "helper",
        "mark",
        "natseqinfo",
        "secmark",
    ];
    for (flag, bits) in [
        ("--ctevents", target.events),
        ("--expevents", target.expectation_events),
    ] {
        if bits != 0 {
            let set = (0..).zip(names).filter(|(bit, _)| bits >> bit & 1 == 1);
            let words: Vec<&str> = set.map(|(_, name): (u32, _)| name).collect();
            let _ = write!(text, " {flag} {}", words.join(","));
        }
    }
    let flag = match target.flags & 0xc {
        4 => "--zone-orig",
        8 => "--zone-reply",
        _ => "--zone",
    };
    if target.flags & 0x10 != 0 {
        let _ = write!(text, " {flag} mark");
    } else if target.zone != 0 {
        let _ = write!(text, " {flag} {}", target.zone);
    }
    text
}
