//! Fields and values of native nf_tables expressions in words.

use super::header::addr_from;
use super::text::{data, hex, protocol_name};
use crate::model::netfilter::{CtKey, MetaKey};

/// How a value is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    Addr,
    Net16,
    Protocol,
    Name,
    HostHex,
    State,
    Status,
    AddrType,
    Raw,
}

/// What a register holds.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) nft: String,
    pub(super) xt: &'static str,
    pub(super) show: Show,
    pub(super) mask: Option<Vec<u8>>,
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
    let value = host_hex(xor);
    match (set && covers, full) {
        (true, _) => format!("{name} or {value}"),
        (_, true) => format!("{name} xor {value}"),
        _ => format!("{name} and {} xor {value}", host_hex(mask)),
    }
}

fn host_hex(bytes: &[u8]) -> String {
    match <[u8; 4]>::try_from(bytes) {
        Ok(four) => format!("{:#x}", u32::from_le_bytes(four)),
        Err(_) => hex(bytes),
    }
}

pub(super) fn show(held: &Held, bytes: &[u8]) -> String {
    let number = || <[u8; 4]>::try_from(bytes).ok().map(u32::from_le_bytes);
    match held.show {
        Show::Addr => {
            let mut full = bytes.to_vec();
            let width = if bytes.len() > 4 { 16 } else { 4 };
            full.resize(width, 0);
            let ones = |mask: &Vec<u8>| mask.iter().map(|byte| byte.count_ones()).sum::<u32>();
            let len = match &held.mask {
                Some(mask) => ones(mask),
                None => u32::try_from(bytes.len() * 8).unwrap_or(0),
            };
            match addr_from(&full) {
                Some(addr) if len == 32 && width == 4 || len == 128 => addr.to_string(),
                Some(addr) => format!("{addr}/{len}"),
                None => hex(bytes),
            }
        }
        Show::Net16 => match <[u8; 2]>::try_from(bytes) {
            Ok(two) => u16::from_be_bytes(two).to_string(),
            Err(_) => hex(bytes),
        },
        Show::Protocol => bytes
            .first()
            .map_or_else(String::new, |b| protocol_name(*b)),
        Show::Name => {
            let text: Vec<u8> = bytes.iter().copied().take_while(|b| *b != 0).collect();
            let rest = if bytes.last() == Some(&0) { "" } else { "*" };
            format!("\"{}{rest}\"", String::from_utf8_lossy(&text))
        }
        Show::HostHex => host_hex(bytes),
        Show::State => flags(
            number(),
            &[
                (1, "invalid"),
                (2, "established"),
                (4, "related"),
                (8, "new"),
                (64, "untracked"),
            ],
        ),
        Show::Status => flags(number(), &[(2, "seen-reply"), (16, "snat"), (32, "dnat")]),
        Show::AddrType => match number() {
            Some(1) => "unicast".to_owned(),
            Some(2) => "local".to_owned(),
            Some(3) => "broadcast".to_owned(),
            Some(5) => "multicast".to_owned(),
            Some(other) => other.to_string(),
            None => hex(bytes),
        },
        Show::Raw => data(bytes),
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

pub(super) fn meta(key: MetaKey) -> (String, &'static str, Show) {
    let (nft, xt, show) = match key {
        MetaKey::Mark => ("meta mark", "-m mark --mark", Show::HostHex),
        MetaKey::Iifname => ("iifname", "-i", Show::Name),
        MetaKey::Oifname => ("oifname", "-o", Show::Name),
        MetaKey::L4proto => ("meta l4proto", "-p", Show::Protocol),
        MetaKey::Iif => ("iif", "", Show::HostHex),
        MetaKey::Oif => ("oif", "", Show::HostHex),
        MetaKey::Nfproto => ("meta nfproto", "", Show::Raw),
        MetaKey::Skuid => ("meta skuid", "", Show::HostHex),
        other => {
            let word = format!("{other:?}").to_lowercase();
            return (format!("meta {word}"), "", Show::Raw);
        }
    };
    (nft.to_owned(), xt, show)
}

pub(super) fn ct(key: CtKey) -> (String, Show) {
    let (name, show) = match key {
        CtKey::State => ("state", Show::State),
        CtKey::Status => ("status", Show::Status),
        CtKey::Mark => ("mark", Show::HostHex),
        CtKey::Src | CtKey::SrcIp | CtKey::SrcIp6 => ("saddr", Show::Addr),
        CtKey::Dst | CtKey::DstIp | CtKey::DstIp6 => ("daddr", Show::Addr),
        CtKey::ProtoSrc => ("proto-src", Show::Net16),
        CtKey::ProtoDst => ("proto-dst", Show::Net16),
        CtKey::Protocol => ("protocol", Show::Protocol),
        CtKey::Direction => ("direction", Show::Raw),
        other => return (format!("{other:?}").to_lowercase(), Show::Raw),
    };
    (name.to_owned(), show)
}
