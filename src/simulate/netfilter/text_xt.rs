//! The head and the matches of an x_tables rule in the words of `iptables-save`.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::text::protocol_name;
use super::text_rare_match;
use crate::model::xtables::{
    ConntrackMatch, HashlimitMatch, HeaderMatch, SetCounters, Statistic, XtMatch,
};

pub(super) fn not(invert: bool) -> &'static str {
    if invert { "! " } else { "" }
}

/// An address with a prefix length, or with a mask that is none.
pub(super) fn with_mask(addr: IpAddr, mask: IpAddr) -> String {
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

/// Both ends of a range, or the one number.
pub(super) fn range((first, last): (u16, u16)) -> String {
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
            option,
            invert,
        } => {
            let mut text = ports("tcp", *sports, *dports, *invert);
            if *option != 0 {
                let _ = write!(text, " {}--tcp-option {option}", not(invert & 8 != 0));
            }
            if *flag_mask != 0 || invert & 4 != 0 {
                let not = not(invert & 4 != 0);
                let (mask, set) = (tcp_flags(*flag_mask), tcp_flags(*flag_cmp));
                let _ = write!(text, " {not}--tcp-flags {mask} {set}");
            }
            text
        }
        XtMatch::Udp {
            sports,
            dports,
            invert,
        } => ports("udp", *sports, *dports, *invert),
        XtMatch::Icmp {
            kind,
            codes,
            invert,
            v6,
        } => {
            let name = if *v6 {
                "icmp6 --icmpv6-type"
            } else {
                "icmp --icmp-type"
            };
            let (name, flag) = name.split_once(' ').unwrap_or((name, ""));
            let kind = match (kind, codes) {
                (255, _) if !v6 => "any".to_owned(),
                (kind, (0, 255)) => kind.to_string(),
                (kind, (first, last)) if first == last => format!("{kind}/{first}"),
                (kind, (first, last)) => format!("{kind}/{first}-{last}"),
            };
            format!("-m {name} {}{flag} {kind}", not(*invert))
        }
        XtMatch::Comment(text) => format!("-m comment --comment {}", quoted(text)),
        XtMatch::Conntrack(wanted) => conntrack(wanted),
        XtMatch::Addrtype {
            source,
            dest,
            invert_source,
            invert_dest,
            limit_in,
            limit_out,
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
            if *limit_in {
                text.push_str(" --limit-iface-in");
            }
            if *limit_out {
                text.push_str(" --limit-iface-out");
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
            for (side, is, name) in [("in", is_in, physin), ("out", is_out, physout)] {
                if let Some(wanted) = is {
                    let _ = write!(text, " {}--physdev-is-{side}", not(!wanted));
                }
                if let Some((name, invert)) = name {
                    let _ = write!(text, " {}--physdev-{side} {name}", not(*invert));
                }
            }
            if let Some(wanted) = is_bridged {
                let _ = write!(text, " {}--physdev-is-bridged", not(!wanted));
            }
            text
        }
        XtMatch::Set {
            index,
            name,
            dims,
            invert,
            flags,
            counters,
            ..
        } => {
            let nomatch = if flags & 0x80 == 0 {
                ""
            } else {
                " --return-nomatch"
            };
            let counters = counters.as_ref().map(|counters| set_counters(counters));
            format!(
                "-m set {}--match-set {}{nomatch}{}",
                not(*invert),
                set_sides(*index, name.as_deref(), dims),
                counters.unwrap_or_default()
            )
        }
        XtMatch::Recent {
            name,
            seconds,
            hit_count,
            check_set,
            invert,
            side,
            mask,
        } => {
            let flag = match check_set & 15 {
                1 => "rcheck",
                2 => "set",
                4 => "update",
                _ => "remove",
            };
            let mut text = format!("-m recent {}--{flag}", not(*invert));
            if *seconds != 0 {
                let _ = write!(text, " --seconds {seconds}");
            }
            if check_set & 32 != 0 {
                text.push_str(" --reap");
            }
            if *hit_count != 0 {
                let _ = write!(text, " --hitcount {hit_count}");
            }
            if check_set & 16 != 0 {
                text.push_str(" --rttl");
            }
            if !name.is_empty() {
                let _ = write!(text, " --name {name}");
            }
            if let Some(mask) = mask {
                let _ = write!(text, " --mask {mask}");
            }
            text.push_str(if *side == 0 { " --rsource" } else { " --rdest" });
            text
        }
        XtMatch::Limit { cost, burst } => {
            let rate = rate(u64::from(*cost), 10_000);
            let burst = match burst {
                5 => String::new(),
                burst => format!(" --limit-burst {burst}"),
            };
            format!("-m limit --limit {}{burst}", rate.0)
        }
        XtMatch::Hashlimit(limit) => hashlimit(limit),
        XtMatch::Iprange { src, dst } => {
            let mut text = "-m iprange".to_owned();
            for (flag, part) in [("--src-range", src), ("--dst-range", dst)] {
                if let Some((first, last, invert)) = part {
                    text = format!("{text} {}{flag} {first}-{last}", not(*invert));
                }
            }
            text
        }
        XtMatch::Nfacct(name) => format!("-m nfacct --nfacct-name  {name}"),
        XtMatch::Mac { addr, invert } => format!("-m mac {}--mac-source {addr}", not(*invert)),
        XtMatch::Owner {
            uid,
            gid,
            socket,
            supplementary,
        } => {
            let mut text = "-m owner".to_owned();
            if let Some(wanted) = socket {
                let _ = write!(text, " {}--socket-exists", not(!wanted));
            }
            for (flag, part) in [("--uid-owner", uid), ("--gid-owner", gid)] {
                if let Some((first, last, invert)) = part {
                    let range = if first == last {
                        first.to_string()
                    } else {
                        format!("{first}-{last}")
                    };
                    let _ = write!(text, " {}{flag} {range}", not(*invert));
                }
            }
            if *supplementary {
                text.push_str(" --suppl-groups");
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
        XtMatch::Ttl { mode, value, v6 } => {
            let name = if *v6 { "hl" } else { "ttl" };
            let (not, word) = match mode {
                0 => ("", "eq"),
                1 => ("! ", "eq"),
                2 => ("", "lt"),
                _ => ("", "gt"),
            };
            format!("-m {name} {not}--{name}-{word} {value}")
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
        XtMatch::Rare(rare) => text_rare_match::condition(rare),
        XtMatch::Other { name, .. } => format!("-m {name} ..."),
    }
}

/// Flags of TCP by name.
pub(super) fn tcp_flags(bits: u8) -> String {
    const NAMES: [(u16, &str); 6] = [
        (1, "FIN"),
        (2, "SYN"),
        (4, "RST"),
        (8, "PSH"),
        (16, "ACK"),
        (32, "URG"),
    ];
    match named(u16::from(bits), &NAMES) {
        none if none.is_empty() => "NONE".to_owned(),
        names => names,
    }
}

/// A rate by the largest unit that it is told in without loss, and the milliseconds of that unit.
/// `cost` of `scale` parts of a second is what one packet takes.
fn rate(cost: u64, scale: u64) -> (String, u64) {
    let units = [(86_400, "day"), (3_600, "hour"), (60, "min"), (1, "sec")];
    let mut best = (86_400, "day");
    for (seconds, name) in units {
        let whole = scale.saturating_mul(seconds);
        let fits = whole
            .checked_rem(cost)
            .is_some_and(|rest| whole / cost >= rest);
        if seconds < best.0 && (cost > whole || !fits) {
            break;
        }
        best = (seconds, name);
    }
    let count = scale.saturating_mul(best.0).checked_div(cost);
    let count = count.map_or_else(|| "inf".to_owned(), |count| count.to_string());
    (format!("{count}/{}", best.1), best.0 * 1_000)
}

/// A number of bytes in its largest whole unit.
fn in_bytes(number: u64) -> String {
    match number {
        n if n >= 1 << 20 && n % (1 << 20) == 0 => format!("{}mb", n >> 20),
        n if n >= 1 << 10 && n % (1 << 10) == 0 => format!("{}kb", n >> 10),
        n => format!("{n}b"),
    }
}

fn hashlimit(limit: &HashlimitMatch) -> String {
    let word = if limit.inverted() { "above" } else { "upto" };
    let mut text = format!("-m hashlimit --hashlimit-{word}");
    let expire = if limit.mode & 0x20 != 0 {
        // XT_HASHLIMIT_BYTE_SHIFT: sixteen bytes at a time, of which 2^32 are told apart.
        let cost = u64::from(u32::MAX).checked_div(limit.average);
        let bytes = cost.map_or(0, |cost| cost.saturating_sub(1)) << 4;
        let _ = write!(text, " {}/s", in_bytes(bytes));
        if limit.burst == 0 {
            15_000
        } else {
            let burst = in_bytes(bytes.saturating_mul(limit.burst));
            let _ = write!(text, " --hashlimit-burst {burst}");
            60_000
        }
    } else {
        let (rate, unit) = if limit.mode & 0x40 == 0 {
            rate(limit.average, limit.scale)
        } else {
            let rate = limit.scale.checked_div(limit.average).unwrap_or(0);
            (format!("{rate}/sec"), 1_000)
        };
        let _ = write!(text, " {rate} --hashlimit-burst {}", limit.burst);
        unit
    };
    let modes = [(4, "srcip"), (8, "srcport"), (1, "dstip"), (2, "dstport")];
    let mode = u16::try_from(limit.mode & 15).unwrap_or_default();
    if mode != 0 {
        let _ = write!(text, " --hashlimit-mode {}", named(mode, &modes));
    }
    let _ = write!(text, " --hashlimit-name {}", limit.name);
    for (flag, value, usual) in [
        ("size", limit.size, 0),
        ("max", limit.max, 0),
        ("gcinterval", limit.gc_interval, 1_000),
    ] {
        if value != usual {
            let _ = write!(text, " --hashlimit-htable-{flag} {value}");
        }
    }
    if u64::from(limit.expire) != expire {
        let _ = write!(text, " --hashlimit-htable-expire {}", limit.expire);
    }
    // Who masks nothing has 32 or 128; a mask of IPv4 is never longer than 32.
    for (flag, len) in [("srcmask", limit.masks.0), ("dstmask", limit.masks.1)] {
        if len != 32 && len != 128 {
            let _ = write!(text, " --hashlimit-{flag} {len}");
        }
    }
    if limit.mode & 0x40 != 0 {
        text.push_str(" --hashlimit-rate-match");
        if limit.interval != 1 {
            let _ = write!(text, " --hashlimit-rate-interval {}", limit.interval);
        }
    }
    text
}

fn set_counters(counters: &SetCounters) -> String {
    let mut text = String::new();
    for (bit, flag) in [(8, "update-counters"), (16, "update-subcounters")] {
        if counters.left_alone & bit != 0 {
            let _ = write!(text, " ! --{flag}");
        }
    }
    for (name, (how, value)) in [("packets", counters.packets), ("bytes", counters.bytes)] {
        let (not, word) = match how {
            0 => continue,
            1 => ("", "eq"),
            2 => ("! ", "eq"),
            3 => ("", "lt"),
            _ => ("", "gt"),
        };
        let _ = write!(text, " {not}--{name}-{word} {value}");
    }
    text
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
pub(super) fn quoted(text: &str) -> String {
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

/// Names of the bits that are set, joined by commas.
pub(super) fn named(bits: u16, names: &[(u16, &str)]) -> String {
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
            (512, "THROW"),
            (1024, "NAT"),
            (2048, "XRESOLVE"),
        ],
    )
}

fn conntrack(wanted: &ConntrackMatch) -> String {
    let state = wanted.match_flags & 0x2000 != 0;
    let mut text = if state { "-m state" } else { "-m conntrack" }.to_owned();
    let mut add = |bit: u16, flag: &str, value: String| {
        if wanted.match_flags & bit != 0 {
            // A direction is negated by naming the other.
            let not = not(wanted.invert_flags & bit != 0 && bit != 0x1000);
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
    add(1, if state { "--state" } else { "--ctstate" }, states);
    add(2, "--ctproto", wanted.proto.to_string());
    add(4, "--ctorigsrc", addr(wanted.origsrc));
    add(8, "--ctorigdst", addr(wanted.origdst));
    add(0x10, "--ctreplsrc", addr(wanted.replsrc));
    add(0x20, "--ctrepldst", addr(wanted.repldst));
    add(0x100, "--ctorigsrcport", range(wanted.origsrc_port));
    add(0x200, "--ctorigdstport", range(wanted.origdst_port));
    add(0x400, "--ctreplsrcport", range(wanted.replsrc_port));
    add(0x800, "--ctrepldstport", range(wanted.repldst_port));
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
    let (first, last) = wanted.expires;
    let expires = if first == last {
        first.to_string()
    } else {
        format!("{first}:{last}")
    };
    add(0x80, "--ctexpire", expires);
    let reply = wanted.invert_flags & 0x1000 != 0;
    let direction = if reply { "REPLY" } else { "ORIGINAL" };
    add(0x1000, "--ctdir", direction.to_owned());
    text
}
