//! Values of native nf_tables expressions in words.

use super::header::addr_from;
use super::text::{Style, data, hex, protocol_name};

/// How a value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    Addr,
    Addr6,
    Mac,
    /// A number in network order.
    Net,
    /// A number in host order.
    Host,
    Mark,
    Hex,
    Protocol,
    /// The protocol of an IPv6 header, which `nft` names otherwise.
    NextHeader,
    Ethertype,
    Family,
    Name,
    State,
    Status,
    Direction,
    AddrType,
    Present,
    PacketType,
    DeviceType,
    IcmpType,
    Icmp6Type,
    TcpFlags,
    Dscp,
    Raw,
}

/// What a register holds.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) nft: String,
    pub(super) xt: &'static str,
    pub(super) show: Show,
    pub(super) mask: Option<Vec<u8>>,
    /// The bytes themselves, where the rule gives them.
    pub(super) value: Option<Vec<u8>>,
}

pub(super) fn random(flags: u32) -> &'static str {
    match flags {
        flags if flags & 16 != 0 => " fully-random",
        flags if flags & 4 != 0 => " random",
        _ => "",
    }
}

pub(super) fn bit_change(name: &str, mask: &[u8], xor: &[u8]) -> String {
    let set = mask.iter().zip(xor).all(|(mask, xor)| mask & xor == 0);
    let full = mask.iter().all(|mask| *mask == 0xff);
    let covers = mask.iter().zip(xor).all(|(mask, xor)| *mask == !xor);
    let bits = |bytes: &[u8]| host(bytes).map_or_else(|| hex(bytes), |n| format!("{n:#010x}"));
    match (set, covers, full) {
        (true, true, _) => format!("{name} | {}", bits(xor)),
        (true, false, _) => format!("{name} & {} | {}", bits(mask), bits(xor)),
        (_, _, true) => format!("{name} ^ {}", bits(xor)),
        _ => format!("{name} & {} ^ {}", bits(mask), bits(xor)),
    }
}

fn host(bytes: &[u8]) -> Option<u32> {
    <[u8; 4]>::try_from(bytes).ok().map(u32::from_le_bytes)
}

fn net(bytes: &[u8]) -> Option<u64> {
    let fits = !bytes.is_empty() && bytes.len() <= 8;
    fits.then(|| {
        bytes
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte))
    })
}

/// An address of a prefix whose last bytes need not be there.
fn prefix(bytes: &[u8], width: usize, mask: Option<&Vec<u8>>) -> Option<(String, bool)> {
    let mut full = bytes.to_vec();
    full.resize(width, 0);
    let addr = addr_from(&full)?;
    let bits = u32::try_from(width * 8).ok()?;
    let len = match mask {
        Some(mask) => mask.iter().map(|byte| byte.count_ones()).sum(),
        None => u32::try_from(bytes.len() * 8).ok()?,
    };
    if len == bits {
        Some((addr.to_string(), true))
    } else {
        Some((format!("{addr}/{len}"), false))
    }
}

/// A value as the tool of this style prints it.
pub(super) fn show(held: &Held, bytes: &[u8], style: Style) -> String {
    let named = |names: &[(u64, &str)], number: Option<u64>| match number {
        Some(number) => names
            .iter()
            .find(|(own, _)| *own == number)
            .map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned()),
        None => hex(bytes),
    };
    let in_host = || host(bytes).map(u64::from);
    let one = || bytes.first().map(|byte| u64::from(*byte));
    match held.show {
        Show::Addr | Show::Addr6 => {
            let width = if held.show == Show::Addr6 || bytes.len() > 4 {
                16
            } else {
                4
            };
            match prefix(bytes, width, held.mask.as_ref()) {
                Some((addr, true)) if style == Style::Iptables => format!("{addr}/{}", width * 8),
                Some((addr, _)) => addr,
                None => hex(bytes),
            }
        }
        Show::Mac => {
            let parts: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            parts.join(":")
        }
        Show::Net => net(bytes).map_or_else(|| hex(bytes), |number| number.to_string()),
        Show::Host => match *bytes {
            [byte] => byte.to_string(),
            [a, b] => u16::from_le_bytes([a, b]).to_string(),
            _ => host(bytes).map_or_else(|| hex(bytes), |number| number.to_string()),
        },
        Show::Mark => match (host(bytes), style) {
            (Some(number), Style::Iptables) => format!("{number:#x}"),
            (Some(number), Style::Nft) => format!("{number:#010x}"),
            (None, _) => hex(bytes),
        },
        Show::Hex => net(bytes).map_or_else(|| hex(bytes), |number| format!("{number:#x}")),
        Show::Protocol => one().map_or_else(String::new, |_| {
            protocol_name(bytes.first().copied().unwrap_or_default())
        }),
        Show::NextHeader => match bytes {
            [58] => "ipv6-icmp".to_owned(),
            [byte] => protocol_name(*byte),
            other => hex(other),
        },
        Show::Ethertype => match net(bytes) {
            Some(0x0800) => "ip".to_owned(),
            Some(0x86dd) => "ip6".to_owned(),
            Some(0x0806) => "arp".to_owned(),
            Some(0x8100) => "vlan".to_owned(),
            _ => hex(bytes),
        },
        Show::Family => named(&[(2, "ipv4"), (10, "ipv6")], one()),
        Show::Name => {
            let text: Vec<u8> = bytes.iter().copied().take_while(|b| *b != 0).collect();
            let text = String::from_utf8_lossy(&text).into_owned();
            let whole = bytes.last() == Some(&0);
            match (style, whole) {
                (Style::Nft, true) => format!("\"{text}\""),
                (Style::Nft, false) => format!("\"{text}*\""),
                (Style::Iptables, true) => text,
                (Style::Iptables, false) => format!("{text}+"),
            }
        }
        Show::State => flags(
            host(bytes),
            &[
                (1, "invalid"),
                (2, "established"),
                (4, "related"),
                (8, "new"),
                (64, "untracked"),
            ],
        ),
        Show::Status => flags(
            host(bytes),
            &[
                (1, "expected"),
                (2, "seen-reply"),
                (4, "assured"),
                (8, "confirmed"),
                (16, "snat"),
                (32, "dnat"),
                (512, "dying"),
            ],
        ),
        Show::Direction => named(&[(0, "original"), (1, "reply")], one()),
        Show::AddrType => named(
            &[
                (1, "unicast"),
                (2, "local"),
                (3, "broadcast"),
                (4, "anycast"),
                (5, "multicast"),
                (6, "blackhole"),
                (7, "unreachable"),
                (8, "prohibit"),
            ],
            in_host(),
        ),
        Show::Present => named(&[(0, "missing"), (1, "exists")], one()),
        Show::PacketType => {
            let other = if style == Style::Nft {
                "other"
            } else {
                "otherhost"
            };
            let names = [(0, "host"), (1, "broadcast"), (2, "multicast"), (3, other)];
            // `host` is what iptables calls unicast.
            match (style, one()) {
                (Style::Iptables, Some(0)) => "unicast".to_owned(),
                (_, number) => named(&names, number),
            }
        }
        Show::DeviceType => match *bytes {
            [1, 0] => "ether".to_owned(),
            [a, b] => u16::from_le_bytes([a, b]).to_string(),
            _ => hex(bytes),
        },
        Show::IcmpType => named(
            &[
                (0, "echo-reply"),
                (3, "destination-unreachable"),
                (5, "redirect"),
                (8, "echo-request"),
                (11, "time-exceeded"),
                (12, "parameter-problem"),
                (13, "timestamp-request"),
                (14, "timestamp-reply"),
            ],
            one(),
        ),
        Show::Icmp6Type => named(
            &[
                (1, "destination-unreachable"),
                (2, "packet-too-big"),
                (3, "time-exceeded"),
                (4, "parameter-problem"),
                (128, "echo-request"),
                (129, "echo-reply"),
                (130, "mld-listener-query"),
                (131, "mld-listener-report"),
                (132, "mld-listener-done"),
                (133, "nd-router-solicit"),
                (134, "nd-router-advert"),
                (135, "nd-neighbor-solicit"),
                (136, "nd-neighbor-advert"),
                (137, "nd-redirect"),
            ],
            one(),
        ),
        Show::TcpFlags => tcp_flags(one().unwrap_or_default(), style),
        Show::Dscp => named(
            &[
                (0, "cs0"),
                (8, "cs1"),
                (16, "cs2"),
                (24, "cs3"),
                (32, "cs4"),
                (40, "cs5"),
                (48, "cs6"),
                (56, "cs7"),
                (46, "ef"),
            ],
            one().map(|byte| byte >> 2),
        ),
        Show::Raw => data(bytes),
    }
}

/// Names of TCP flags, joined by commas.
pub(super) fn tcp_flags(bits: u64, style: Style) -> String {
    const NAMES: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"];
    let set = NAMES
        .iter()
        .enumerate()
        .filter(|(at, _)| bits >> at & 1 == 1);
    let words: Vec<&str> = set.map(|(_, name)| *name).collect();
    match (style, words.as_slice()) {
        (Style::Iptables, []) => "NONE".to_owned(),
        (Style::Iptables, _) => words.join(",").to_uppercase(),
        (Style::Nft, []) => "0x0".to_owned(),
        (Style::Nft, _) => words.join(","),
    }
}

fn flags(number: Option<u32>, names: &[(u32, &str)]) -> String {
    let Some(number) = number else {
        return String::new();
    };
    let known: u32 = names.iter().map(|(bit, _)| bit).sum();
    if number == 0 || number & !known != 0 {
        return format!("{number:#x}");
    }
    let words = names.iter().filter(|(bit, _)| number & bit != 0);
    words.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}
