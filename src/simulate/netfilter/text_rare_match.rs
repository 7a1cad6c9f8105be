//! x_tables matches that few rule sets have, in the words of `iptables-save`.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::text::hex_bytes;
use super::text_xt::{named, not, quoted, range, with_mask};
use crate::model::xtables::{PolicyElement, RareMatch, SpiHeader, TimeMatch, U32Test};

/// One match, with `-m` and its name.
pub(super) fn condition(condition: &RareMatch) -> String {
    match condition {
        RareMatch::Spi {
            header,
            spis,
            invert,
            length,
            reserved,
        } => spi(*header, *spis, *invert, *length, *reserved),
        RareMatch::Bpf(program) => {
            let mut text = format!("-m bpf --bytecode \"{}", program.len());
            for (code, yes, no, operand) in program {
                let _ = write!(text, ",{code} {yes} {no} {operand}");
            }
            text + "\""
        }
        RareMatch::BpfObject(path) => format!("-m bpf --object-pinned {path}"),
        RareMatch::Cgroup { path, class } => {
            let mut text = "-m cgroup".to_owned();
            if let Some((path, invert)) = path {
                let _ = write!(text, " {}--path {}", not(*invert), quoted(path));
            }
            if let Some((class, invert)) = class {
                let _ = write!(text, " {}--cgroup {class}", not(*invert));
            }
            text
        }
        RareMatch::Cluster {
            total,
            nodes,
            seed,
            invert,
        } => format!(
            "-m cluster {}--cluster-local-nodemask {nodes:#010x} --cluster-total-nodes {total} \
             --cluster-hash-seed {seed:#010x}",
            not(*invert)
        ),
        RareMatch::Connbytes {
            from,
            to,
            what,
            direction,
        } => {
            let (invert, first, last) = if from > to {
                (true, to, from)
            } else {
                (false, from, to)
            };
            let last = match *last {
                u64::MAX => String::new(),
                last => format!(":{last}"),
            };
            let mode = ["packets", "bytes", "avgpkt"].get(usize::from(*what));
            let side = ["original", "reply", "both"].get(usize::from(*direction));
            let (mode, side) = (mode.unwrap_or(&"?"), side.unwrap_or(&"?"));
            let not = not(invert);
            format!(
                "-m connbytes {not}--connbytes {first}{last} --connbytes-mode {mode} --connbytes-dir {side}"
            )
        }
        RareMatch::Connlabel { bit, invert, set } => {
            let set = if *set { " --set" } else { "" };
            format!("-m connlabel {}--label \"{bit}\"{set}", not(*invert))
        }
        RareMatch::Connlimit {
            mask,
            limit,
            upto,
            daddr,
        } => {
            let word = if *upto { "upto" } else { "above" };
            let side = if *daddr { "daddr" } else { "saddr" };
            format!(
                "-m connlimit --connlimit-{word} {limit} --connlimit-mask {} --connlimit-{side}",
                ones(*mask)
            )
        }
        RareMatch::Cpu { cpu, invert } => format!("-m cpu {}--cpu {cpu}", not(*invert)),
        RareMatch::Dccp {
            sports,
            dports,
            types,
            option,
            flags,
            invert,
        } => {
            let mut words = vec!["-m dccp".to_owned()];
            let mut add = |bit: u16, flag: &str, value: String| {
                if flags & bit != 0 {
                    words.push(format!("{}{flag} {value}", not(invert & bit != 0)));
                }
            };
            add(1, "--sport", range(*sports));
            add(2, "--dport", range(*dports));
            add(4, "--dccp-types", named(*types, &DCCP));
            add(8, "--dccp-option", option.to_string());
            words.join(" ")
        }
        RareMatch::Devgroup { src, dst } => {
            let mut text = "-m devgroup".to_owned();
            for (flag, side) in [("--src-group", src), ("--dst-group", dst)] {
                if let Some((group, mask, invert)) = side {
                    let _ = write!(text, " {}{flag} {group:#x}", not(*invert));
                    if *mask != u32::MAX {
                        let _ = write!(text, "/{mask:#x}");
                    }
                }
            }
            text
        }
        RareMatch::Ecn {
            operation,
            invert,
            ect,
        } => {
            let mut text = "-m ecn".to_owned();
            for (bit, flag) in [
                (0x10, "--ecn-tcp-ece".to_owned()),
                (0x20, "--ecn-tcp-cwr".to_owned()),
                (1, format!("--ecn-ip-ect {ect}")),
            ] {
                if operation & bit != 0 {
                    let _ = write!(text, " {}{flag}", not(invert & bit != 0));
                }
            }
            text
        }
        RareMatch::Helper { name, invert } => {
            format!("-m helper {}--helper {}", not(*invert), quoted(name))
        }
        RareMatch::Ipvs {
            vaddr,
            vport,
            proto,
            method,
            vportctl,
            flags,
            invert,
        } => {
            if flags & 0x7f == 1 {
                return format!("-m ipvs {}--ipvs", not(invert & 1 != 0));
            }
            let way = if invert & 0x10 == 0 {
                "ORIGINAL"
            } else {
                "REPLY"
            };
            let methods = ["MASQ", "?", "IPIP", "GATE"];
            let method = methods.get(usize::from(*method)).unwrap_or(&"?");
            let mut words = vec!["-m ipvs".to_owned()];
            let mut add = |bit: u8, flag: &str, value: String| {
                if flags & bit != 0 {
                    let not = not(invert & bit != 0 && bit != 0x10);
                    words.push(format!("{not}{flag} {value}"));
                }
            };
            add(2, "--vproto", proto.to_string());
            add(4, "--vaddr", without_whole(vaddr.0, vaddr.1));
            add(8, "--vport", vport.to_string());
            add(0x10, "--vdir", way.to_owned());
            add(0x20, "--vmethod", (*method).to_owned());
            add(0x40, "--vportctl", vportctl.to_string());
            words.join(" ")
        }
        RareMatch::L2tp {
            tunnel,
            session,
            version,
            kind,
            flags,
        } => {
            let kind = if *kind == 0 { "control" } else { "data" };
            let mut text = "-m l2tp".to_owned();
            for (bit, flag, value) in [
                (1, "--tid", tunnel.to_string()),
                (2, "--sid", session.to_string()),
                (4, "--pversion", version.to_string()),
                (8, "--type", kind.to_owned()),
            ] {
                if flags & bit != 0 {
                    let _ = write!(text, " {flag} {value}");
                }
            }
            text
        }
        RareMatch::Osf {
            genre,
            flags,
            log_level,
            ttl,
        } => {
            let mut text = format!("-m osf {}--genre {genre}", not(flags & 8 != 0));
            if flags & 2 != 0 {
                let _ = write!(text, " --ttl {ttl}");
            }
            if flags & 4 != 0 {
                let _ = write!(text, " --log {log_level}");
            }
            text
        }
        RareMatch::Policy { flags, elements } => policy(*flags, elements),
        RareMatch::Quota { bytes, invert } => format!("-m quota {}--quota {bytes}", not(*invert)),
        RareMatch::Rateest {
            names,
            flags,
            mode,
            bps,
            pps,
        } => rateest(names, *flags, *mode, *bps, *pps),
        RareMatch::Realm { id, mask, invert } => {
            let mask = match *mask {
                u32::MAX => String::new(),
                mask => format!("/{mask:#x}"),
            };
            format!("-m realm {}--realm {id:#x}{mask}", not(*invert))
        }
        RareMatch::Sctp {
            sports,
            dports,
            chunks,
            how,
            chunk_flags,
            flags,
            invert,
        } => {
            let mut words = vec!["-m sctp".to_owned()];
            let mut add = |bit: u32, flag: &str, value: String| {
                if flags & bit != 0 {
                    words.push(format!("{}{flag} {value}", not(invert & bit != 0)));
                }
            };
            add(1, "--sport", range(*sports));
            add(2, "--dport", range(*dports));
            add(4, "--chunk-types", chunk_types(chunks, *how, chunk_flags));
            words.join(" ")
        }
        RareMatch::Socket(flags) => with_flags(
            "-m socket",
            u32::from(*flags),
            &[
                (1, "--transparent"),
                (2, "--nowildcard"),
                (4, "--restore-skmark"),
            ],
        ),
        RareMatch::Text {
            from,
            to,
            algorithm,
            pattern,
            invert,
            ignore_case,
        } => {
            let plain = pattern.iter().all(|byte| (0x20..0x7f).contains(byte));
            let mut text = format!("-m string {}", not(*invert));
            if plain && pattern.last() != Some(&b'\\') {
                let shown = String::from_utf8_lossy(pattern);
                let shown = shown.replace('\\', "\\\\").replace('"', "\\\"");
                let _ = write!(text, "--string \"{shown}\"");
            } else {
                let _ = write!(text, "--hex-string \"|{}|\"", hex_bytes(pattern));
            }
            let _ = write!(text, " --algo {algorithm}");
            if *from != 0 {
                let _ = write!(text, " --from {from}");
            }
            if *to != 0 && *to != u16::MAX {
                let _ = write!(text, " --to {to}");
            }
            if *ignore_case {
                text.push_str(" --icase");
            }
            text
        }
        RareMatch::Tcpmss { mss, invert } => {
            format!("-m tcpmss {}--mss {}", not(*invert), range(*mss))
        }
        RareMatch::Time(time) => time_of(time),
        RareMatch::Tos {
            value,
            mask,
            invert,
        } => format!("-m tos {}--tos {value:#04x}/{mask:#04x}", not(*invert)),
        RareMatch::U32 { tests, invert } => {
            let tests: Vec<String> = tests.iter().map(u32_test).collect();
            format!("-m u32 {}--u32 \"{}\"", not(*invert), tests.join("&&"))
        }
        other => header6(other),
    }
}

const DCCP: [(u16, &str); 11] = [
    (1, "REQUEST"),
    (2, "RESPONSE"),
    (4, "DATA"),
    (8, "ACK"),
    (16, "DATAACK"),
    (32, "CLOSEREQ"),
    (64, "CLOSE"),
    (128, "RESET"),
    (256, "SYNC"),
    (512, "SYNCACK"),
    (1024, "INVALID"),
];

fn with_flags(head: &str, flags: u32, names: &[(u32, &str)]) -> String {
    let set = names.iter().filter(|(bit, _)| flags & bit != 0);
    set.fold(head.to_owned(), |text, (_, name)| format!("{text} {name}"))
}

/// Length of a prefix mask.
pub(super) fn ones(mask: IpAddr) -> u32 {
    match mask {
        IpAddr::V4(mask) => u32::from(mask).count_ones(),
        IpAddr::V6(mask) => u128::from(mask).count_ones(),
    }
}

fn without_whole(addr: IpAddr, mask: IpAddr) -> String {
    let text = with_mask(addr, mask);
    let whole = if addr.is_ipv4() { "/32" } else { "/128" };
    text.strip_suffix(whole).unwrap_or(&text).to_owned()
}

fn wide((first, last): (u32, u32)) -> String {
    if first == last {
        first.to_string()
    } else {
        format!("{first}:{last}")
    }
}

fn spi(
    header: SpiHeader,
    spis: (u32, u32),
    invert: bool,
    (length, other_length): (u32, bool),
    reserved: bool,
) -> String {
    let (name, flag) = match header {
        SpiHeader::Ah | SpiHeader::Ah6 => ("ah", "--ahspi"),
        SpiHeader::Esp => ("esp", "--espspi"),
        SpiHeader::Ipcomp => ("ipcomp", "--ipcompspi"),
    };
    let mut text = format!("-m {name}");
    if spis != (0, u32::MAX) || invert {
        let _ = write!(text, " {}{flag} {}", not(invert), wide(spis));
    }
    if length != 0 || other_length {
        let _ = write!(text, " {}--ahlen {length}", not(other_length));
    }
    if reserved {
        let word = if header == SpiHeader::Ipcomp {
            "--compres"
        } else {
            "--ahres"
        };
        let _ = write!(text, " {word}");
    }
    text
}

fn policy(flags: u16, elements: &[PolicyElement]) -> String {
    let dir = if flags & 1 != 0 { "in" } else { "out" };
    let pol = if flags & 4 != 0 { "none" } else { "ipsec" };
    let mut text = format!("-m policy --dir {dir} --pol {pol}");
    if flags & 8 != 0 {
        text.push_str(" --strict");
    }
    for (number, element) in elements.iter().enumerate() {
        if number > 0 {
            text.push_str(" --next");
        }
        let proto = match element.proto {
            50 => "esp".to_owned(),
            51 => "ah".to_owned(),
            108 => "ipcomp".to_owned(),
            other => other.to_string(),
        };
        let mode = if element.mode == 0 {
            "transport"
        } else {
            "tunnel"
        };
        let mut add = |bit: u8, flag: &str, value: String| {
            if element.wanted & bit != 0 {
                let _ = write!(text, " {}{flag} {value}", not(element.invert & bit != 0));
            }
        };
        add(32, "--reqid", element.reqid.to_string());
        add(16, "--spi", format!("{:#x}", element.spi));
        add(4, "--proto", proto);
        add(8, "--mode", mode.to_owned());
        let (daddr, saddr) = (element.daddr, element.saddr);
        add(2, "--tunnel-dst", without_whole(daddr.0, daddr.1));
        add(1, "--tunnel-src", without_whole(saddr.0, saddr.1));
    }
    text
}

fn rateest(
    names: &(String, String),
    flags: u16,
    mode: u16,
    bps: (u32, u32),
    pps: (u32, u32),
) -> String {
    let word = match mode {
        1 => "--rateest-eq",
        2 => "--rateest-lt",
        _ => "--rateest-gt",
    };
    let word = format!("{}{word}", not(flags & 1 != 0));
    let (delta, of_bytes, of_packets) = (flags & 8 != 0, flags & 0x10 != 0, flags & 0x20 != 0);
    let sides = [
        (of_bytes, "bps", bps, true),
        (of_packets, "pps", pps, false),
    ];
    let sides = || sides.iter().filter(|(on, ..)| *on);
    let mut text = "-m rateest".to_owned();
    if delta {
        text.push_str(" --rateest-delta");
    }
    let relative = flags & 4 != 0;
    let number = if relative { "1" } else { "" };
    let _ = write!(text, " --rateest{number} {}", names.0);
    for (_, name, rates, bytes) in sides().filter(|_| delta) {
        let _ = write!(text, " --rateest-{name}1 {}", rate(rates.0, *bytes));
    }
    let _ = write!(text, " {word}");
    for (_, name, rates, bytes) in sides() {
        let _ = match (relative, delta) {
            (true, false) => write!(text, " --rateest-{name}"),
            (_, true) => write!(text, " --rateest-{name}2 {}", rate(rates.1, *bytes)),
            (false, false) => write!(text, " --rateest-{name} {}", rate(rates.1, *bytes)),
        };
    }
    if relative {
        let _ = write!(text, " --rateest2 {}", names.1);
    }
    text
}

/// A rate of `rateest`; bytes are told in bits.
fn rate(number: u32, bytes: bool) -> String {
    if bytes {
        format!("{}bit", u64::from(number) * 8)
    } else {
        number.to_string()
    }
}

/// Chunk types by number, with the letters of their flags from the lowest bit on.
const CHUNKS: [(u8, &str, &str); 20] = [
    (0, "DATA", "EBUI"),
    (1, "INIT", ""),
    (2, "INIT_ACK", ""),
    (3, "SACK", ""),
    (4, "HEARTBEAT", ""),
    (5, "HEARTBEAT_ACK", ""),
    (6, "ABORT", "T"),
    (7, "SHUTDOWN", ""),
    (8, "SHUTDOWN_ACK", ""),
    (9, "ERROR", ""),
    (10, "COOKIE_ECHO", ""),
    (11, "COOKIE_ACK", ""),
    (12, "ECN_ECNE", ""),
    (13, "ECN_CWR", ""),
    (14, "SHUTDOWN_COMPLETE", "T"),
    (64, "I_DATA", "EBUI"),
    (128, "ASCONF_ACK", ""),
    (130, "RE_CONFIG", ""),
    (132, "PAD", ""),
    (192, "FORWARD_TSN", ""),
];

fn chunk_types(chunks: &[u32; 8], how: u32, chunk_flags: &[(u8, u8, u8)]) -> String {
    let how = match how {
        1 => "any",
        2 => "all",
        _ => "only",
    };
    if chunks.iter().all(|bits| *bits == 0) {
        return format!("{how} NONE");
    }
    if chunks.iter().all(|bits| *bits == u32::MAX) {
        return format!("{how} ALL");
    }
    let set = |number: u8| {
        let bits = chunks.get(usize::from(number >> 5)).copied();
        bits.is_some_and(|bits| bits >> (number & 31) & 1 == 1)
    };
    let word = |number: u8| {
        let known = CHUNKS.iter().find(|(own, ..)| *own == number);
        let (name, letters) = match known {
            Some((_, name, letters)) => ((*name).to_owned(), *letters),
            None => (format!("0x{number:x}"), ""),
        };
        let wanted = chunk_flags.iter().find(|(own, ..)| *own == number);
        let Some((_, flags, mask)) = wanted else {
            return name;
        };
        let shown: String = letters
            .chars()
            .enumerate()
            .filter(|(bit, _)| mask >> bit & 1 == 1)
            .map(|(bit, letter)| match flags >> bit & 1 {
                1 => letter,
                _ => letter.to_ascii_lowercase(),
            })
            .collect::<Vec<_>>()
            .into_iter()
            .rev()
            .collect();
        format!("{name}:{shown}")
    };
    let words: Vec<String> = (0..=u8::MAX).filter(|n| set(*n)).map(word).collect();
    format!("{how} {}", words.join(","))
}

fn clock(seconds: u32) -> String {
    format!(
        "{:02}:{:02}:{:02}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60
    )
}

/// Seconds since 1970 as date and time of day, by the civil calendar.
fn date(seconds: u32) -> String {
    let (days, rest) = (u64::from(seconds / 86_400), seconds % 86_400);
    // Years begin in March, so that leap days come last. 719,468 days lie between year 0 and 1970.
    let day = days + 719_468;
    let (era, day) = (day / 146_097, day % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    let year = era * 400 + year + next;
    format!("{year:04}-{month:02}-{day:02}T{}", clock(rest))
}

fn time_of(time: &TimeMatch) -> String {
    const LAST: u32 = 86_399;
    let mut text = "-m time".to_owned();
    if time.day_start != 0 || time.day_stop != LAST {
        let (start, stop) = (clock(time.day_start), clock(time.day_stop));
        let _ = write!(text, " --timestart {start} --timestop {stop}");
    }
    if time.monthdays != 0xffff_fffe {
        let days = (1..32).filter(|day| time.monthdays >> day & 1 == 1);
        let days: Vec<String> = days.map(|day: u32| day.to_string()).collect();
        let _ = write!(text, " --monthdays {}", days.join(","));
    }
    if time.weekdays != 0xfe {
        let names = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];
        let days = (1..).zip(names);
        let days = days.filter(|(day, _)| time.weekdays >> day & 1 == 1);
        let days: Vec<&str> = days.map(|(_, name)| name).collect();
        let _ = write!(text, " --weekdays {}", days.join(","));
    }
    for (flag, seconds) in [
        ("--datestart", time.date_start),
        ("--datestop", time.date_stop),
    ] {
        if seconds != 0 {
            let _ = write!(text, " {flag} {}", date(seconds));
        }
    }
    with_flags(
        &text,
        u32::from(time.flags),
        &[(1, "--kerneltz"), (2, "--contiguous")],
    )
}

fn u32_test(test: &U32Test) -> String {
    let mut text = String::new();
    for (number, (value, how)) in test.location.iter().enumerate() {
        text.push_str(match (number, how) {
            (0, _) => "",
            (_, 0) => "&",
            (_, 1) => "<<",
            (_, 2) => ">>",
            _ => "@",
        });
        let _ = write!(text, "{value:#x}");
    }
    let values: Vec<String> = test
        .values
        .iter()
        .map(|(first, last)| {
            if first == last {
                format!("{first:#x}")
            } else {
                format!("{first:#x}:{last:#x}")
            }
        })
        .collect();
    format!("{text}={}", values.join(","))
}

/// Matches on IPv6 headers.
fn header6(condition: &RareMatch) -> String {
    match condition {
        RareMatch::Eui64 => "-m eui64".to_owned(),
        RareMatch::Frag {
            ids,
            length,
            flags,
            invert,
        } => {
            let mut text = "-m frag".to_owned();
            if *ids != (0, u32::MAX) || invert & 1 != 0 {
                let _ = write!(text, " {}--fragid {}", not(invert & 1 != 0), wide(*ids));
            }
            if *length != 0 || invert & 2 != 0 {
                let _ = write!(text, " {}--fraglen {length}", not(invert & 2 != 0));
            }
            with_flags(
                &text,
                u32::from(*flags),
                &[
                    (4, "--fragres"),
                    (8, "--fragfirst"),
                    (16, "--fragmore"),
                    (32, "--fraglast"),
                ],
            )
        }
        RareMatch::Options {
            hop_by_hop,
            length,
            flags,
            invert,
            options,
        } => {
            let name = if *hop_by_hop { "hbh" } else { "dst" };
            let mut text = format!("-m {name}");
            if flags & 1 != 0 {
                let _ = write!(text, " {}--{name}-len {length}", not(invert & 1 != 0));
            }
            if flags & 2 != 0 {
                let words = options.iter().map(|option| match option & 0xff {
                    0xff => (option >> 8).to_string(),
                    length => format!("{}:{length}", option >> 8),
                });
                let words: Vec<String> = words.collect();
                let _ = write!(text, " --{name}-opts {}", words.join(","));
            }
            if flags & 4 != 0 {
                let _ = write!(text, " --{name}-not-strict");
            }
            text
        }
        RareMatch::Ipv6header {
            headers,
            invert,
            soft,
        } => {
            let names = [
                (128, "hop-by-hop"),
                (64, "ipv6-opts"),
                (32, "ipv6-route"),
                (16, "ipv6-frag"),
                (8, "ah"),
                (4, "esp"),
                (2, "ipv6-nonxt"),
                (1, "prot"),
            ];
            let soft = if *soft { " --soft" } else { "" };
            let list = named(u16::from(*headers), &names);
            format!("-m ipv6header {}--header {list}{soft}", not(*invert != 0))
        }
        RareMatch::Mh { types, invert } => {
            let types = (u16::from(types.0), u16::from(types.1));
            if types == (0, 255) && !invert {
                return "-m mh".to_owned();
            }
            format!("-m mh {}--mh-type {}", not(*invert), range(types))
        }
        RareMatch::Rt {
            kind,
            left,
            length,
            flags,
            invert,
            addrs,
        } => {
            let mut text = "-m rt".to_owned();
            if flags & 1 != 0 {
                let _ = write!(text, " {}--rt-type {kind}", not(invert & 1 != 0));
            }
            if *left != (0, u32::MAX) || invert & 2 != 0 {
                let _ = write!(
                    text,
                    " {}--rt-segsleft {}",
                    not(invert & 2 != 0),
                    wide(*left)
                );
            }
            if flags & 4 != 0 {
                let _ = write!(text, " {}--rt-len {length}", not(invert & 4 != 0));
            }
            if flags & 8 != 0 {
                text.push_str(" --rt-0-res");
            }
            if flags & 0x10 != 0 {
                let list: Vec<String> = addrs.iter().map(ToString::to_string).collect();
                let _ = write!(text, " --rt-0-addrs {}", list.join(","));
            }
            if flags & 0x20 != 0 {
                text.push_str(" --rt-0-not-strict");
            }
            text
        }
        RareMatch::Srh {
            next,
            length,
            left,
            last,
            tag,
            flags,
            invert,
            segments,
        } => {
            let mut text = "-m srh".to_owned();
            let mut add = |bit: u16, flag: &str, value: String| {
                if flags & bit != 0 {
                    let _ = write!(text, " {}--srh-{flag} {value}", not(invert & bit != 0));
                }
            };
            add(1, "next-hdr", next.to_string());
            for (bit, flag, value) in [
                (2, "hdr-len", length),
                (0x10, "segs-left", left),
                (0x80, "last-entry", last),
            ] {
                add(bit, &format!("{flag}-eq"), value.to_string());
                add(bit << 1, &format!("{flag}-gt"), value.to_string());
                add(bit << 2, &format!("{flag}-lt"), value.to_string());
            }
            add(0x400, "tag", tag.to_string());
            for ((bit, flag), (addr, mask)) in [(0x800, "psid"), (0x1000, "nsid"), (0x2000, "lsid")]
                .into_iter()
                .zip(segments)
            {
                let mask = ones(IpAddr::V6(*mask));
                add(bit, flag, format!("{addr}/{mask}"));
            }
            text
        }
        _ => String::new(),
    }
}
