//! Values of native nf_tables expressions in the words of `nft`.

use super::header::addr_from;
use super::text::{data, hex, protocol_name};
use super::text_nft::unswapped;
use crate::model::netfilter::PayloadBase;

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
    /// The index of a device.
    Index,
    /// A group of devices.
    Group,
    /// A class of traffic: two numbers.
    Class,
    Mark,
    Hex,
    Protocol,
    Ethertype,
    ArpOp,
    Family,
    /// The name of a device, quoted; without its end any rest fits.
    Name,
    /// A text, quoted.
    Text,
    State,
    Status,
    Labels,
    /// Milliseconds.
    Time,
    Direction,
    AddrType,
    Present,
    PacketType,
    DeviceType,
    IcmpType,
    Icmp6Type,
    TcpFlags,
    /// The six bits where the header has them.
    Dscp,
    /// Likewise of IPv6.
    Dscp6,
    /// The six bits as a number.
    DscpNumber,
    Raw,
}

/// What a register holds.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) nft: String,
    /// The same by its place in the packet.
    pub(super) raw: Option<String>,
    /// That place: header, offset and length.
    pub(super) place: Option<(PayloadBase, u32, u32)>,
    pub(super) show: Show,
    pub(super) mask: Option<Vec<u8>>,
    /// The bytes themselves, where the rule gives them.
    pub(super) value: Option<Vec<u8>>,
    /// Bytes of each number whose order was reversed; 0: none was.
    pub(super) swapped: usize,
    /// It comes from a map.
    pub(super) mapped: bool,
}

impl Held {
    pub(super) fn named(nft: &str, show: Show) -> Self {
        Self {
            nft: nft.to_owned(),
            raw: None,
            place: None,
            show,
            mask: None,
            value: None,
            swapped: 0,
            mapped: false,
        }
    }

    /// Whether it is a number in host order.
    pub(super) fn is_host(&self) -> bool {
        is_host(self.show)
    }
}

/// Whether values are numbers in host order.
pub(super) fn is_host(show: Show) -> bool {
    matches!(
        show,
        Show::Host
            | Show::Index
            | Show::Group
            | Show::Class
            | Show::Mark
            | Show::State
            | Show::Status
            | Show::Time
            | Show::AddrType
            | Show::DeviceType
    )
}

/// Bytes of a value.
pub(super) fn width(show: Show) -> Option<usize> {
    Some(match show {
        Show::Addr
        | Show::Mark
        | Show::Index
        | Show::Group
        | Show::Class
        | Show::State
        | Show::Status
        | Show::Time
        | Show::AddrType => 4,
        Show::Addr6 | Show::Name | Show::Labels => 16,
        Show::Mac => 6,
        Show::Ethertype | Show::ArpOp | Show::DeviceType | Show::Dscp6 => 2,
        Show::Protocol
        | Show::Family
        | Show::Direction
        | Show::Present
        | Show::PacketType
        | Show::IcmpType
        | Show::Icmp6Type
        | Show::TcpFlags
        | Show::Dscp
        | Show::DscpNumber => 1,
        Show::Net | Show::Host | Show::Hex | Show::Text | Show::Raw => return None,
    })
}

/// Reverses the bytes of each number of `size`.
pub(super) fn swap(bytes: &[u8], size: usize) -> Vec<u8> {
    let chunks = bytes.chunks(size.max(1));
    chunks
        .flat_map(|chunk| chunk.iter().rev().copied())
        .collect()
}

/// A text in quotes.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{text}\"")
}

/// A time in the units that `nft` knows.
pub(super) fn seconds(milliseconds: u64) -> String {
    match (milliseconds / 1_000, milliseconds % 1_000) {
        (seconds, 0) => format!("{seconds}s"),
        (0, rest) => format!("{rest}ms"),
        (seconds, rest) => format!("{seconds}s{rest}ms"),
    }
}

/// Words for NF_NAT_RANGE_*.
pub(super) fn nat_flags(flags: u32) -> String {
    let words = [(4, "random"), (16, "fully-random"), (8, "persistent")];
    let set = words.iter().filter(|(bit, _)| flags & bit != 0);
    let words: Vec<&str> = set.map(|(_, word)| *word).collect();
    match words.as_slice() {
        [] => String::new(),
        words => format!(" {}", words.join(",")),
    }
}

/// `x & mask ^ xor` as `nft` writes it; `host`: numbers are in host order.
pub(super) fn bit_change(name: &str, mask: &[u8], xor: &[u8], host: bool) -> String {
    let set = mask.iter().zip(xor).all(|(mask, xor)| mask & xor == 0);
    let full = mask.iter().all(|mask| *mask == 0xff);
    let covers = mask.iter().zip(xor).all(|(mask, xor)| *mask == !xor);
    let bits = |bytes: &[u8]| {
        let number = if host { little(bytes) } else { net(bytes) };
        match number {
            Some(number) if bytes.len() == 4 => format!("{number:#010x}"),
            Some(number) => format!("{number:#x}"),
            None => hex(bytes),
        }
    };
    match (set, covers, full) {
        (true, true, _) => format!("{name} | {}", bits(xor)),
        (true, false, _) => format!("{name} & {} | {}", bits(mask), bits(xor)),
        (_, _, true) => format!("{name} ^ {}", bits(xor)),
        _ => format!("{name} & {} ^ {}", bits(mask), bits(xor)),
    }
}

fn little(bytes: &[u8]) -> Option<u64> {
    net(&bytes.iter().rev().copied().collect::<Vec<u8>>())
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

/// A value as `nft` prints it.
pub(super) fn show(held: &Held, bytes: &[u8]) -> String {
    let bytes = unswapped(held, bytes);
    let bytes = bytes.as_slice();
    let named = |names: &[(u64, &str)], number: Option<u64>| match number {
        Some(number) => names
            .iter()
            .find(|(own, _)| *own == number)
            .map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned()),
        None => hex(bytes),
    };
    let in_host = || little(bytes);
    let one = || bytes.first().map(|byte| u64::from(*byte));
    match held.show {
        Show::Addr | Show::Addr6 => {
            let width = if held.show == Show::Addr6 || bytes.len() > 4 {
                16
            } else {
                4
            };
            match prefix(bytes, width, held.mask.as_ref()) {
                Some((addr, _)) => addr,
                None => hex(bytes),
            }
        }
        Show::Mac => {
            let parts: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            parts.join(":")
        }
        Show::Net => net(bytes).map_or_else(|| hex(bytes), |number| number.to_string()),
        Show::Host | Show::Index => {
            in_host().map_or_else(|| hex(bytes), |number| number.to_string())
        }
        Show::Group => match in_host() {
            Some(0) => "\"default\"".to_owned(),
            Some(number) => number.to_string(),
            None => hex(bytes),
        },
        Show::Class => match in_host() {
            Some(0) => "none".to_owned(),
            Some(0xffff_ffff) => "root".to_owned(),
            Some(number) => format!("{:x}:{:x}", number >> 16, number & 0xffff),
            None => hex(bytes),
        },
        Show::Time => in_host().map_or_else(|| hex(bytes), seconds),
        Show::Text => {
            let text: Vec<u8> = bytes.iter().copied().take_while(|b| *b != 0).collect();
            quoted(&String::from_utf8_lossy(&text))
        }
        Show::Labels => {
            let set = bytes.iter().enumerate().flat_map(|(at, byte)| {
                let bits = (0..8_usize).filter(move |bit| byte >> bit & 1 == 1);
                bits.map(move |bit| (at * 8 + bit).to_string())
            });
            set.collect::<Vec<String>>().join(",")
        }
        Show::Mark => match host(bytes) {
            Some(number) => format!("{number:#010x}"),
            None => hex(bytes),
        },
        Show::Hex => net(bytes).map_or_else(|| hex(bytes), |number| format!("{number:#x}")),
        Show::Protocol => bytes
            .first()
            .copied()
            .map_or_else(String::new, protocol_name),
        Show::Ethertype => match net(bytes) {
            Some(0x0800) => "ip".to_owned(),
            Some(0x86dd) => "ip6".to_owned(),
            Some(0x0806) => "arp".to_owned(),
            Some(0x8100) => "8021q".to_owned(),
            Some(0x88a8) => "8021ad".to_owned(),
            _ => hex(bytes),
        },
        Show::ArpOp => named(
            &[
                (1, "request"),
                (2, "reply"),
                (3, "rrequest"),
                (4, "rreply"),
                (8, "inrequest"),
                (9, "inreply"),
                (10, "nak"),
            ],
            net(bytes),
        ),
        Show::Family => named(&[(2, "ipv4"), (10, "ipv6")], one()),
        Show::Name => {
            let text: Vec<u8> = bytes.iter().copied().take_while(|b| *b != 0).collect();
            let text = String::from_utf8_lossy(&text).into_owned();
            // An asterisk that is part of the name is no pattern.
            let text = text.replace('*', "\\*");
            if bytes.last() == Some(&0) || bytes.len() >= 16 {
                format!("\"{text}\"")
            } else {
                format!("\"{text}*\"")
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
        Show::PacketType => named(
            &[
                (0, "host"),
                (1, "broadcast"),
                (2, "multicast"),
                (3, "other"),
            ],
            one(),
        ),
        Show::DeviceType => named(
            &[
                (1, "ether"),
                (512, "ppp"),
                (768, "ipip"),
                (772, "loopback"),
                (776, "sit"),
                (778, "ipgre"),
            ],
            in_host(),
        ),
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
        Show::TcpFlags => tcp_flag_names(bytes),
        Show::Dscp => named(&DSCP, one().map(|byte| byte >> 2)),
        Show::Dscp6 => named(&DSCP, net(bytes).map(|two| two >> 6 & 0x3f)),
        Show::DscpNumber => named(&DSCP, one()),
        Show::Raw => data(bytes),
    }
}

const DSCP: [(u64, &str); 21] = [
    (0, "cs0"),
    (8, "cs1"),
    (16, "cs2"),
    (24, "cs3"),
    (32, "cs4"),
    (40, "cs5"),
    (48, "cs6"),
    (56, "cs7"),
    (10, "af11"),
    (12, "af12"),
    (14, "af13"),
    (18, "af21"),
    (20, "af22"),
    (22, "af23"),
    (26, "af31"),
    (28, "af32"),
    (30, "af33"),
    (34, "af41"),
    (36, "af42"),
    (38, "af43"),
    (46, "ef"),
];

/// Names of TCP flags, joined by commas.
pub(super) fn tcp_flag_names(bytes: &[u8]) -> String {
    const NAMES: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ecn", "cwr"];
    let bits = bytes.first().copied().unwrap_or_default();
    let set = NAMES
        .iter()
        .enumerate()
        .filter(|(at, _)| bits >> at & 1 == 1);
    let words: Vec<&str> = set.map(|(_, name)| *name).collect();
    match words.as_slice() {
        [] => "0x0".to_owned(),
        words => words.join(","),
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
