//! x_tables matches, from the structures the kernel holds.
//!
//! Source: include/uapi/linux/netfilter/xt_*.h (v6.1 headers). Numbers are in host order unless the header
//! says `__be`. A name, revision or size that is not listed gives [`XtMatch::Other`] with the bytes.

use std::net::IpAddr;

use super::xt_rare_match;
use crate::collect::nla::{be16_at, ip, text, u16_at, u32_at, u64_at};
use crate::model::MacAddr;
use crate::model::xtables::{ConntrackMatch, HashlimitMatch, SetCounters, Statistic, XtMatch};

/// Bit of `state` for untracked packets, and of `conntrack` for the same.
const STATE_UNTRACKED: u32 = 1 << 6;
const CONNTRACK_UNTRACKED: u16 = 1 << 8;
/// XT_CONNTRACK_STATE_ALIAS: the rule was written with `state`.
const STATE_ALIAS: u16 = 1 << 13;

/// Decodes a match. `v6`: it stands in a table of IPv6, which decides how addresses are kept.
pub fn decode(name: &str, revision: u8, data: &[u8], v6: bool) -> XtMatch {
    let rare = || {
        let found = xt_rare_match::decode(name, revision, data, v6)?;
        Some(XtMatch::Rare(Box::new(found)))
    };
    known(name, revision, data, v6)
        .or_else(rare)
        .unwrap_or_else(|| XtMatch::Other {
            name: name.to_owned(),
            revision,
            data: data.to_vec(),
        })
}

fn known(name: &str, revision: u8, data: &[u8], v6: bool) -> Option<XtMatch> {
    let byte = |at: usize| data.get(at).copied();
    let flag = |at: usize| byte(at).map(|b| b != 0);
    let pair = |at: usize| Some((u16_at(data, at)?, u16_at(data, at + 2)?));
    Some(match (name, revision) {
        ("tcp", 0) => XtMatch::Tcp {
            sports: pair(0)?,
            dports: pair(4)?,
            option: byte(8)?,
            flag_mask: byte(9)?,
            flag_cmp: byte(10)?,
            invert: byte(11)?,
        },
        ("udp", 0) => XtMatch::Udp {
            sports: pair(0)?,
            dports: pair(4)?,
            invert: byte(8)?,
        },
        ("icmp" | "icmp6", 0) => XtMatch::Icmp {
            kind: byte(0)?,
            codes: (byte(1)?, byte(2)?),
            invert: byte(3)? & 1 != 0,
            v6: name == "icmp6",
        },
        ("comment", 0) => XtMatch::Comment(text(data)),
        ("state", 0) => state(u32_at(data, 0)?),
        ("conntrack", 1..=3) => conntrack(revision, data, v6)?,
        ("addrtype", 0) => XtMatch::Addrtype {
            source: u16_at(data, 0)?,
            dest: u16_at(data, 2)?,
            invert_source: u32_at(data, 4)? != 0,
            invert_dest: u32_at(data, 8)? != 0,
            limit_in: false,
            limit_out: false,
        },
        ("addrtype", 1) => {
            let flags = u32_at(data, 4)?;
            XtMatch::Addrtype {
                source: u16_at(data, 0)?,
                dest: u16_at(data, 2)?,
                invert_source: flags & 1 != 0,
                invert_dest: flags & 2 != 0,
                limit_in: flags & 4 != 0,
                limit_out: flags & 8 != 0,
            }
        }
        ("mark", 1) => XtMatch::Mark {
            mark: u32_at(data, 0)?,
            mask: u32_at(data, 4)?,
            invert: flag(8)?,
        },
        ("connmark", 1) => XtMatch::Connmark {
            mark: u32_at(data, 0)?,
            mask: u32_at(data, 4)?,
            invert: flag(8)?,
        },
        ("statistic", 0) => statistic(data)?,
        ("multiport", 0 | 1) => multiport(revision, data)?,
        ("physdev", 0) => physdev(data)?,
        ("set", 0..=4) => set(revision, data)?,
        ("recent", 0 | 1) => XtMatch::Recent {
            seconds: u32_at(data, 0)?,
            hit_count: u32_at(data, 4)?,
            check_set: byte(8)?,
            invert: flag(9)?,
            name: text(data.get(10..210)?),
            side: byte(210)?,
            // The first revision has none.
            mask: match (revision, v6) {
                (0, _) => None,
                (_, true) => ip(data.get(212..228)?),
                (_, false) => ip(data.get(212..216)?),
            },
        },
        ("limit", 0) => XtMatch::Limit {
            cost: u32_at(data, 0)?,
            burst: u32_at(data, 4)?,
        },
        ("hashlimit", 0..=3) => XtMatch::Hashlimit(Box::new(hashlimit(revision, data)?)),
        ("iprange", 1) => iprange(data, v6)?,
        ("nfacct", 0 | 1) => XtMatch::Nfacct(text(data.get(..32)?)),
        ("mac", 0) => XtMatch::Mac {
            addr: MacAddr(*data.first_chunk()?),
            invert: u32_at(data, 8)? != 0,
        },
        ("owner", 1) => owner(data)?,
        ("pkttype", 0) => XtMatch::Pkttype {
            kind: u32_at(data, 0)?,
            invert: u32_at(data, 4)? != 0,
        },
        ("length", 0) => XtMatch::Length {
            range: pair(0)?,
            invert: flag(4)?,
        },
        ("ttl" | "hl", 0) => XtMatch::Ttl {
            mode: byte(0)?,
            value: byte(1)?,
            v6: name == "hl",
        },
        ("rpfilter", 0) => XtMatch::Rpfilter { flags: byte(0)? },
        ("dscp", 0) => XtMatch::Dscp {
            dscp: byte(0)?,
            invert: flag(1)?,
        },
        _ => return None,
    })
}

/// `union nf_inet_addr` at an offset.
pub(super) fn inet_addr(data: &[u8], at: usize, v6: bool) -> Option<IpAddr> {
    ip(data.get(at..at + if v6 { 16 } else { 4 })?)
}

/// An interface name under a byte mask, as iptables writes it: a mask that ends before the NUL means any
/// rest. `None`: nothing is compared.
pub(super) fn masked_name(name: &[u8], mask: &[u8]) -> Option<String> {
    let compared = mask.iter().take_while(|byte| **byte != 0).count();
    if compared == 0 {
        return None;
    }
    let shown = text(name);
    Some(if compared > shown.len() {
        shown
    } else {
        format!("{}+", text(name.get(..compared).unwrap_or_default()))
    })
}

fn state(mask: u32) -> XtMatch {
    let untracked = if mask & STATE_UNTRACKED == 0 {
        0
    } else {
        CONNTRACK_UNTRACKED
    };
    let low = u16::try_from(mask & 0x3f).unwrap_or_default();
    XtMatch::Conntrack(Box::new(ConntrackMatch {
        match_flags: 1 | STATE_ALIAS,
        state_mask: low | untracked,
        ..ConntrackMatch::default()
    }))
}

fn conntrack(revision: u8, data: &[u8], v6: bool) -> Option<XtMatch> {
    let match_flags = u16_at(data, 146)?;
    let addr = |flag: u16, at: usize| {
        (match_flags & flag != 0)
            .then(|| Some((inet_addr(data, at, v6)?, inet_addr(data, at + 16, v6)?)))
            .flatten()
    };
    let ports = |low: usize, high: usize| {
        if revision == 3 {
            Some((u16_at(data, low)?, u16_at(data, high)?))
        } else {
            let port = be16_at(data, low)?;
            Some((port, port))
        }
    };
    let (state_mask, status_mask) = if revision == 1 {
        (u16::from(*data.get(150)?), u16::from(*data.get(151)?))
    } else {
        (u16_at(data, 150)?, u16_at(data, 152)?)
    };
    Some(XtMatch::Conntrack(Box::new(ConntrackMatch {
        match_flags,
        invert_flags: u16_at(data, 148)?,
        state_mask,
        status_mask,
        proto: u16_at(data, 136)?,
        origsrc: addr(0x04, 0),
        origdst: addr(0x08, 32),
        replsrc: addr(0x10, 64),
        repldst: addr(0x20, 96),
        origsrc_port: ports(138, 154)?,
        origdst_port: ports(140, 156)?,
        replsrc_port: ports(142, 158)?,
        repldst_port: ports(144, 160)?,
        expires: (u32_at(data, 128)?, u32_at(data, 132)?),
    })))
}

fn statistic(data: &[u8]) -> Option<XtMatch> {
    let invert = u16_at(data, 2)? & 1 != 0;
    Some(XtMatch::Statistic(match u16_at(data, 0)? {
        0 => Statistic::Random {
            probability: u32_at(data, 4)?,
            invert,
        },
        1 => Statistic::Nth {
            every: u32_at(data, 4)?,
            packet: u32_at(data, 8)?,
            invert,
        },
        _ => return None,
    }))
}

fn multiport(revision: u8, data: &[u8]) -> Option<XtMatch> {
    let count = usize::from(*data.get(1)?);
    let port = |index: usize| u16_at(data, 2 + 2 * index);
    // A set flag says that this port and the next are a range.
    let starts = |index: usize| revision == 1 && data.get(32 + index).is_some_and(|f| *f != 0);
    let mut ports = Vec::new();
    let mut index = 0;
    while index < count {
        let first = port(index)?;
        if starts(index) {
            ports.push((first, port(index + 1)?));
            index += 2;
        } else {
            ports.push((first, first));
            index += 1;
        }
    }
    Some(XtMatch::Multiport {
        which: *data.first()?,
        ports,
        invert: revision == 1 && *data.get(47)? != 0,
    })
}

fn physdev(data: &[u8]) -> Option<XtMatch> {
    let (invert, wanted) = (*data.get(64)?, *data.get(65)?);
    let name = |bit: u8, at: usize| {
        let found = masked_name(data.get(at..at + 16)?, data.get(at + 16..at + 32)?);
        let found = found.unwrap_or_else(|| "+".to_owned());
        (wanted & bit != 0).then_some((found, invert & bit != 0))
    };
    let is = |bit: u8| (wanted & bit != 0).then_some(invert & bit == 0);
    Some(XtMatch::Physdev {
        physin: name(0x01, 0),
        physout: name(0x02, 32),
        is_in: is(0x08),
        is_out: is(0x10),
        is_bridged: is(0x04),
    })
}

/// IPSET_INV_MATCH
const SET_INVERT: u8 = 0x01;

/// `struct xt_set_info` at an offset, or the first revision's, which the kernel keeps in the others' form behind
/// the flags that iptables gave (`compat_flags()`).
pub(super) fn set_info(first: bool, data: &[u8], at: usize) -> Option<(u16, u8, u8)> {
    let info = data.get(at..)?;
    let flags = if first { 28 } else { 2 };
    Some((u16_at(info, 0)?, *info.get(flags)?, *info.get(flags + 1)?))
}

/// Sides of a set's dimensions (IPSET_DIM_ONE_SRC and on).
pub(super) fn set_dims(dim: u8, flags: u8) -> Vec<bool> {
    (0..dim.min(6)).map(|d| flags & (2 << d) != 0).collect()
}

pub(super) fn set_is_inverted(flags: u8) -> bool {
    flags & SET_INVERT != 0
}

fn set(revision: u8, data: &[u8]) -> Option<XtMatch> {
    const RETURN_NOMATCH: u8 = 0x80;
    const MATCH_COUNTERS: u32 = 1 << 5;
    /// IPSET_FLAG_SKIP_COUNTER_UPDATE, _SKIP_SUBCOUNTER_UPDATE: no decision depends on them.
    const HARMLESS: u32 = 0x18;
    let (index, dim, flags) = set_info(revision == 0, data, 0)?;
    let mut compared = None;
    let other = if revision < 3 {
        u32::from(flags & RETURN_NOMATCH)
    } else {
        // Revision 3 has the operator before the value, revision 4 behind it.
        let (packets, bytes) = if revision == 3 { (8, 24) } else { (16, 32) };
        let value = |at: usize| if revision == 3 { at + 8 } else { at - 8 };
        let counters = SetCounters {
            packets: (*data.get(packets)?, u64_at(data, value(packets))?),
            bytes: (*data.get(bytes)?, u64_at(data, value(bytes))?),
            left_alone: u32_at(data, 40)? & HARMLESS,
        };
        let counted = counters.packets.0 != 0 || counters.bytes.0 != 0;
        compared = (counted || counters.left_alone != 0).then(|| Box::new(counters));
        let given = u32_at(data, 40)? & !(HARMLESS | MATCH_COUNTERS);
        given | if counted { MATCH_COUNTERS } else { 0 }
    };
    Some(XtMatch::Set {
        index,
        name: None,
        unnamed: None,
        dims: set_dims(dim, flags),
        invert: set_is_inverted(flags),
        flags: other,
        counters: compared,
    })
}

fn iprange(data: &[u8], v6: bool) -> Option<XtMatch> {
    let flags = *data.get(64)?;
    let range = |bit: u8, at: usize| {
        (flags & bit != 0)
            .then(|| {
                let ends = (inet_addr(data, at, v6)?, inet_addr(data, at + 16, v6)?);
                Some((ends.0, ends.1, flags & (bit << 4) != 0))
            })
            .flatten()
    };
    Some(XtMatch::Iprange {
        src: range(1, 0),
        dst: range(2, 32),
    })
}

fn owner(data: &[u8]) -> Option<XtMatch> {
    let (wanted, invert) = (*data.get(16)?, *data.get(17)?);
    let range = |bit: u8, at: usize| {
        (wanted & bit != 0)
            .then(|| Some((u32_at(data, at)?, u32_at(data, at + 4)?, invert & bit != 0)))
            .flatten()
    };
    Some(XtMatch::Owner {
        uid: range(1, 0),
        gid: range(2, 8),
        socket: (wanted & 4 != 0).then_some(invert & 4 == 0),
        supplementary: wanted & 8 != 0,
    })
}

/// `struct xt_hashlimit_info` and `struct xt_hashlimit_mtinfo1` to `3`.
fn hashlimit(revision: u8, data: &[u8]) -> Option<HashlimitMatch> {
    // Up to revision 1 numbers of 32 bits behind a short name, mode first; then of 64 bits behind a long one.
    let old = revision < 2;
    let wide = |at: usize| {
        if old {
            Some(u64::from(u32_at(data, at)?))
        } else {
            u64_at(data, at)
        }
    };
    let (name, mode, average, burst, rest) = if old {
        (0..16, 16, 20, 24, 28)
    } else {
        // The name takes 255 bytes, and what follows is aligned to 8.
        (0..255, 272, 256, 264, 276)
    };
    let masks = match revision {
        0 => (32, 32),
        3 => (*data.get(rest + 20)?, *data.get(rest + 21)?),
        _ => (*data.get(rest + 16)?, *data.get(rest + 17)?),
    };
    let mode = u32_at(data, mode)?;
    Some(HashlimitMatch {
        name: text(data.get(name)?),
        // The first revision can't invert.
        mode: if revision == 0 { mode & 0xf } else { mode },
        average: wide(average)?,
        burst: wide(burst)?,
        scale: if old { 10_000 } else { 1_000_000 },
        size: u32_at(data, rest)?,
        max: u32_at(data, rest + 4)?,
        gc_interval: u32_at(data, rest + 8)?,
        expire: u32_at(data, rest + 12)?,
        interval: if revision == 3 {
            u32_at(data, rest + 16)?
        } else {
            0
        },
        masks,
    })
}
