//! The head and the matches of an x_tables rule in the words of `iptables-save`.

use std::net::IpAddr;

use super::text::{Style, protocol_name};
use super::text_value::tcp_flags;
use crate::model::xtables::{ConntrackMatch, HeaderMatch, Statistic, XtMatch};

fn not(invert: bool) -> &'static str {
    if invert { "! " } else { "" }
}

fn with_mask(addr: IpAddr, mask: IpAddr) -> String {
    let (ones, plain) = match mask {
        IpAddr::V4(mask) => {
            let bits = u32::from(mask);
            (
                bits.leading_ones(),
                bits.count_ones() == bits.leading_ones(),
            )
        }
        IpAddr::V6(mask) => {
            let bits = u128::from(mask);
            (
                bits.leading_ones(),
                bits.count_ones() == bits.leading_ones(),
            )
        }
    };
    if plain {
        format!("{addr}/{ones}")
    } else {
        format!("{addr}/{mask}")
    }
}

fn range((first, last): (u16, u16)) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}:{last}")
    }
}

/// The head of a legacy rule.
pub(super) fn header(head: &HeaderMatch) -> String {
    let mut words = Vec::new();
    for (flag, part) in [("-s", head.src), ("-d", head.dst)] {
        if let Some((addr, mask, invert)) = part {
            words.push(format!("{}{flag} {}", not(invert), with_mask(addr, mask)));
        }
    }
    for (flag, part) in [("-i", &head.iif), ("-o", &head.oif)] {
        if let Some((name, invert)) = part {
            words.push(format!("{}{flag} {name}", not(*invert)));
        }
    }
    if let Some((number, invert)) = head.proto {
        words.push(format!("{}-p {}", not(invert), protocol_name(number)));
    }
    if let Some(invert) = head.fragment {
        words.push(format!("{}-f", not(invert)));
    }
    words.join(" ")
}

fn ports(name: &str, sports: (u16, u16), dports: (u16, u16), invert: u8) -> String {
    let mut text = format!("-m {name}");
    for (flag, ports, bit) in [("--sport", sports, 1), ("--dport", dports, 2)] {
        if ports != (0, u16::MAX) {
            let not = not(invert & bit != 0);
            text = format!("{text} {not}{flag} {}", range(ports));
        }
    }
    text
}

/// One match.
pub(super) fn condition(condition: &XtMatch) -> String {
    match condition {
        XtMatch::Tcp {
            sports,
            dports,
            flag_mask,
            flag_cmp,
            invert,
            ..
        } => {
            let mut text = ports("tcp", *sports, *dports, *invert);
            if *flag_mask != 0 {
                let not = not(invert & 4 != 0);
                let (mask, set) = (u64::from(*flag_mask), u64::from(*flag_cmp));
                let (mask, set) = (
                    tcp_flags(mask, Style::Iptables),
                    tcp_flags(set, Style::Iptables),
                );
                text = format!("{text} {not}--tcp-flags {mask} {set}");
            }
            text
        }
        XtMatch::Udp {
            sports,
            dports,
            invert,
        } => ports("udp", *sports, *dports, *invert),
        XtMatch::Icmp {
            kind, invert, v6, ..
        } => {
            let name = if *v6 {
                "icmp6 --icmpv6-type"
            } else {
                "icmp --icmp-type"
            };
            format!("-m {name} {}{kind}", not(*invert))
        }
        XtMatch::Comment(text) => format!("-m comment --comment {}", quoted(text)),
        XtMatch::Conntrack(wanted) => conntrack(wanted),
        XtMatch::Addrtype {
            source,
            dest,
            invert_source,
            invert_dest,
            ..
        } => {
            let mut text = "-m addrtype".to_owned();
            for (flag, mask, invert) in [
                ("--src-type", *source, *invert_source),
                ("--dst-type", *dest, *invert_dest),
            ] {
                if mask != 0 {
                    text = format!("{text} {}{flag} {}", not(invert), types(mask));
                }
            }
            text
        }
        XtMatch::Mark { mark, mask, invert } => {
            format!("-m mark {}--mark {}", not(*invert), masked(*mark, *mask))
        }
        XtMatch::Connmark { mark, mask, invert } => {
            format!(
                "-m connmark {}--mark {}",
                not(*invert),
                masked(*mark, *mask)
            )
        }
        XtMatch::Statistic(Statistic::Random {
            probability,
            invert,
        }) => {
            let share = f64::from(*probability) / f64::from(1_u32 << 31);
            let not = not(*invert);
            format!("-m statistic --mode random {not}--probability {share:.11}")
        }
        XtMatch::Statistic(Statistic::Nth {
            every,
            packet,
            invert,
        }) => {
            let (not, every) = (not(*invert), u64::from(*every) + 1);
            format!("-m statistic --mode nth {not}--every {every} --packet {packet}")
        }
        XtMatch::Multiport {
            which,
            ports,
            invert,
        } => {
            let flag = match which {
                0 => "--sports",
                1 => "--dports",
                _ => "--ports",
            };
            let list: Vec<String> = ports.iter().map(|ports| range(*ports)).collect();
            format!("-m multiport {}{flag} {}", not(*invert), list.join(","))
        }
        XtMatch::Physdev {
            physin,
            physout,
            is_in,
            is_out,
            is_bridged,
        } => {
            let mut text = "-m physdev".to_owned();
            for (flag, part) in [("--physdev-in", physin), ("--physdev-out", physout)] {
                if let Some((name, invert)) = part {
                    text = format!("{text} {}{flag} {name}", not(*invert));
                }
            }
            for (flag, part) in [
                ("--physdev-is-in", is_in),
                ("--physdev-is-out", is_out),
                ("--physdev-is-bridged", is_bridged),
            ] {
                if let Some(wanted) = part {
                    text = format!("{text} {}{flag}", not(!wanted));
                }
            }
            text
        }
        XtMatch::Set {
            index,
            name,
            dims,
            invert,
            flags,
            ..
        } => {
            let nomatch = if flags & 0x80 == 0 {
                ""
            } else {
                " --return-nomatch"
            };
            format!(
                "-m set {}--match-set {}{nomatch}",
                not(*invert),
                set_sides(*index, name.as_deref(), dims)
            )
        }
        XtMatch::Recent {
            name,
            seconds,
            check_set,
            invert,
            ..
        } => {
            let flag = match check_set & 15 {
                1 => "--rcheck",
                2 => "--set",
                4 => "--update",
                _ => "--remove",
            };
            let seconds = match seconds {
                0 => String::new(),
                seconds => format!(" --seconds {seconds}"),
            };
            format!("-m recent {}{flag}{seconds} --name {name}", not(*invert))
        }
        XtMatch::Limit => "-m limit".to_owned(),
        XtMatch::Hashlimit { invert } => {
            let flag = if *invert { "above" } else { "upto" };
            format!("-m hashlimit --hashlimit-{flag} ...")
        }
        XtMatch::Iprange { src, dst } => {
            let mut text = "-m iprange".to_owned();
            for (flag, part) in [("--src-range", src), ("--dst-range", dst)] {
                if let Some((first, last, invert)) = part {
                    text = format!("{text} {}{flag} {first}-{last}", not(*invert));
                }
            }
            text
        }
        XtMatch::Nfacct(name) => format!("-m nfacct --nfacct-name {name}"),
        XtMatch::Mac { addr, invert } => format!("-m mac {}--mac-source {addr}", not(*invert)),
        XtMatch::Owner { uid, gid, socket } => {
            let mut text = "-m owner".to_owned();
            for (flag, part) in [("--uid-owner", uid), ("--gid-owner", gid)] {
                if let Some((first, last, invert)) = part {
                    let range = if first == last {
                        first.to_string()
                    } else {
                        format!("{first}-{last}")
                    };
                    text = format!("{text} {}{flag} {range}", not(*invert));
                }
            }
            if let Some(wanted) = socket {
                text = format!("{text} {}--socket-exists", not(!wanted));
            }
            text
        }
        XtMatch::Pkttype { kind, invert } => {
            let kind = match kind {
                0 => "unicast".to_owned(),
                1 => "broadcast".to_owned(),
                2 => "multicast".to_owned(),
                other => other.to_string(),
            };
            format!("-m pkttype {}--pkt-type {kind}", not(*invert))
        }
        XtMatch::Length {
            range: length,
            invert,
        } => format!("-m length {}--length {}", not(*invert), range(*length)),
        XtMatch::Ttl { mode, value } => {
            let flag = match mode {
                0 => "--ttl-eq",
                1 => "! --ttl-eq",
                2 => "--ttl-lt",
                _ => "--ttl-gt",
            };
            format!("-m ttl {flag} {value}")
        }
        XtMatch::Rpfilter { flags } => {
            let mut text = "-m rpfilter".to_owned();
            for (bit, flag) in [
                (1, "--loose"),
                (2, "--validmark"),
                (4, "--accept-local"),
                (8, "--invert"),
            ] {
                if flags & bit != 0 {
                    text = format!("{text} {flag}");
                }
            }
            text
        }
        XtMatch::Dscp { dscp, invert } => format!("-m dscp {}--dscp {dscp:#04x}", not(*invert)),
        XtMatch::Other { name, .. } => format!("-m {name} ..."),
    }
}

/// A set and the sides of its dimensions.
pub(super) fn set_sides(index: u16, name: Option<&str>, dims: &[bool]) -> String {
    let name = name.map_or_else(|| format!("#{index}"), str::to_owned);
    let sides: Vec<&str> = dims
        .iter()
        .map(|src| if *src { "src" } else { "dst" })
        .collect();
    format!("{name} {}", sides.join(","))
}

/// A text as `xtables_save_string()` prints it: in quotes where a shell would take it apart.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    let escaped: String = text
        .chars()
        .flat_map(|c| {
            let escape = matches!(c, '"' | '\\' | '\'').then_some('\\');
            escape.into_iter().chain([c])
        })
        .collect();
    format!("\"{escaped}\"")
}

fn masked(value: u32, mask: u32) -> String {
    if mask == u32::MAX {
        format!("{value:#x}")
    } else {
        format!("{value:#x}/{mask:#x}")
    }
}

fn named(bits: u16, names: &[(u16, &str)]) -> String {
    let words = names.iter().filter(|(bit, _)| bits & bit != 0);
    words.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}

fn types(mask: u16) -> String {
    named(
        mask,
        &[
            (1, "UNSPEC"),
            (2, "UNICAST"),
            (4, "LOCAL"),
            (8, "BROADCAST"),
            (16, "ANYCAST"),
            (32, "MULTICAST"),
            (64, "BLACKHOLE"),
            (128, "UNREACHABLE"),
            (256, "PROHIBIT"),
        ],
    )
}

fn conntrack(wanted: &ConntrackMatch) -> String {
    let mut text = "-m conntrack".to_owned();
    let mut add = |bit: u16, flag: &str, value: String| {
        if wanted.match_flags & bit != 0 {
            let not = not(wanted.invert_flags & bit != 0);
            text = format!("{text} {not}{flag} {value}");
        }
    };
    let states = named(
        wanted.state_mask,
        &[
            (1, "INVALID"),
            (8, "NEW"),
            (4, "RELATED"),
            (2, "ESTABLISHED"),
            (0x100, "UNTRACKED"),
            (64, "SNAT"),
            (128, "DNAT"),
        ],
    );
    let addr = |pair: Option<(IpAddr, IpAddr)>| {
        pair.map_or_else(String::new, |(addr, mask)| {
            let text = with_mask(addr, mask);
            // Here, other than in the head, a whole address stands without its length.
            let whole = if addr.is_ipv4() { "/32" } else { "/128" };
            text.strip_suffix(whole).unwrap_or(&text).to_owned()
        })
    };
    add(1, "--ctstate", states);
    add(2, "--ctproto", wanted.proto.to_string());
    add(4, "--ctorigsrc", addr(wanted.origsrc));
    add(8, "--ctorigdst", addr(wanted.origdst));
    add(0x10, "--ctreplsrc", addr(wanted.replsrc));
    add(0x20, "--ctrepldst", addr(wanted.repldst));
    let status = named(
        wanted.status_mask,
        &[
            (1, "EXPECTED"),
            (2, "SEEN_REPLY"),
            (4, "ASSURED"),
            (8, "CONFIRMED"),
        ],
    );
    add(
        0x40,
        "--ctstatus",
        if status.is_empty() {
            "NONE".to_owned()
        } else {
            status
        },
    );
    add(0x100, "--ctorigsrcport", range(wanted.origsrc_port));
    add(0x200, "--ctorigdstport", range(wanted.origdst_port));
    add(0x400, "--ctreplsrcport", range(wanted.replsrc_port));
    add(0x800, "--ctrepldstport", range(wanted.repldst_port));
    add(0x1000, "--ctdir", "ORIGINAL".to_owned());
    text
}
