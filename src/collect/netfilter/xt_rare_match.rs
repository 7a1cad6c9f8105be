//! x_tables matches that few rule sets have, from the structures the kernel holds.
//!
//! Source: include/uapi/linux/netfilter/xt_*.h, netfilter_ipv4/ipt_ah.h, netfilter_ipv6/ip6t_*.h (v6.1
//! headers). Numbers are in host order unless the header says `__be`.

use std::net::Ipv6Addr;

use super::xt_match::inet_addr;
use crate::collect::nla::{be16_at, text, u16_at, u32_at, u64_at};
use crate::model::xtables::{PolicyElement, RareMatch, SpiHeader, TimeMatch, U32Test};

/// Decodes a match; `None`: its name, revision or size is not known. `v6`: it stands in a table of IPv6.
pub fn decode(name: &str, revision: u8, data: &[u8], v6: bool) -> Option<RareMatch> {
    let byte = |at: usize| data.get(at).copied();
    let half = |at: usize| u16_at(data, at);
    let word = |at: usize| u32_at(data, at);
    let halves = |at: usize| Some((u16_at(data, at)?, u16_at(data, at + 2)?));
    let words = |at: usize| Some((u32_at(data, at)?, u32_at(data, at + 4)?));
    Some(match (name, revision) {
        ("ah", 0) if v6 => RareMatch::Spi {
            header: SpiHeader::Ah6,
            spis: words(0)?,
            invert: byte(13)? & 1 != 0,
            length: (word(8)?, byte(13)? & 2 != 0),
            reserved: byte(12)? != 0,
        },
        ("ah" | "esp" | "ipcomp", 0) => RareMatch::Spi {
            header: match name {
                "ah" => SpiHeader::Ah,
                "esp" => SpiHeader::Esp,
                _ => SpiHeader::Ipcomp,
            },
            spis: words(0)?,
            invert: byte(8)? & 1 != 0,
            length: (0, false),
            reserved: name == "ipcomp" && byte(9)? != 0,
        },
        ("bpf", 0 | 1) => bpf(revision, data)?,
        ("cgroup", 0) => RareMatch::Cgroup {
            path: None,
            class: Some((word(0)?, word(4)? != 0)),
        },
        ("cgroup", 1 | 2) => cgroup(revision, data)?,
        ("cluster", 0) => RareMatch::Cluster {
            total: word(0)?,
            nodes: word(4)?,
            seed: word(8)?,
            invert: word(12)? & 1 != 0,
        },
        ("connbytes", 0) => RareMatch::Connbytes {
            from: u64_at(data, 0)?,
            to: u64_at(data, 8)?,
            what: byte(16)?,
            direction: byte(17)?,
        },
        ("connlabel", 0 | 1) => RareMatch::Connlabel {
            bit: half(0)?,
            invert: half(2)? & 1 != 0,
            set: half(2)? & 2 != 0,
        },
        // Revision 0 has a number where the other has flags, and knows sources only.
        ("connlimit", 0 | 1) => RareMatch::Connlimit {
            mask: inet_addr(data, 0, v6)?,
            limit: word(16)?,
            upto: word(20)? & 1 != 0,
            daddr: revision == 1 && word(20)? & 2 != 0,
        },
        ("cpu", 0) => RareMatch::Cpu {
            cpu: word(0)?,
            invert: word(4)? != 0,
        },
        ("dccp", 0) => RareMatch::Dccp {
            dports: halves(0)?,
            sports: halves(4)?,
            flags: half(8)?,
            invert: half(10)?,
            types: half(12)?,
            option: byte(14)?,
        },
        ("devgroup", 0) => {
            let flags = word(0)?;
            let side = |looked: u32, at: usize| {
                if flags & looked == 0 {
                    return Some(None);
                }
                let (group, mask) = words(at)?;
                Some(Some((group, mask, flags & (looked << 1) != 0)))
            };
            RareMatch::Devgroup {
                src: side(1, 4)?,
                dst: side(4, 12)?,
            }
        }
        ("ecn", 0) => RareMatch::Ecn {
            operation: byte(0)?,
            invert: byte(1)?,
            ect: byte(2)?,
        },
        ("helper", 0) => RareMatch::Helper {
            invert: word(0)? != 0,
            name: text(data.get(4..34)?),
        },
        ("ipvs", 0) => RareMatch::Ipvs {
            vaddr: (inet_addr(data, 0, v6)?, inet_addr(data, 16, v6)?),
            vport: be16_at(data, 32)?,
            proto: byte(34)?,
            method: byte(35)?,
            vportctl: be16_at(data, 36)?,
            invert: byte(38)?,
            flags: byte(39)?,
        },
        ("l2tp", 0) => RareMatch::L2tp {
            tunnel: word(0)?,
            session: word(4)?,
            version: byte(8)?,
            kind: byte(9)?,
            flags: byte(10)?,
        },
        ("osf", 0) => RareMatch::Osf {
            genre: text(data.get(..32)?),
            flags: word(36)?,
            log_level: word(40)?,
            ttl: word(44)?,
        },
        ("policy", 0) => policy(data, v6)?,
        ("quota", 0) => RareMatch::Quota {
            bytes: u64_at(data, 8)?,
            invert: word(0)? & 1 != 0,
        },
        ("rateest", 0) => RareMatch::Rateest {
            names: (text(data.get(..16)?), text(data.get(16..32)?)),
            flags: half(32)?,
            mode: half(34)?,
            bps: (word(36)?, word(44)?),
            pps: (word(40)?, word(48)?),
        },
        ("realm", 0) => RareMatch::Realm {
            id: word(0)?,
            mask: word(4)?,
            invert: byte(8)? != 0,
        },
        ("sctp", 0) => sctp(data)?,
        ("socket", 0) => RareMatch::Socket(0),
        ("socket", 1..=3) => RareMatch::Socket(byte(0)?),
        ("string", 0 | 1) => {
            let len = usize::from(byte(148)?);
            let flags = byte(149)?;
            RareMatch::Text {
                from: half(0)?,
                to: half(2)?,
                algorithm: text(data.get(4..20)?),
                pattern: data.get(20..148)?.get(..len)?.to_vec(),
                invert: flags & 1 != 0,
                ignore_case: revision == 1 && flags & 2 != 0,
            }
        }
        ("tcpmss", 0) => RareMatch::Tcpmss {
            mss: halves(0)?,
            invert: byte(4)? != 0,
        },
        ("time", 0) => RareMatch::Time(TimeMatch {
            date_start: word(0)?,
            date_stop: word(4)?,
            day_start: word(8)?,
            day_stop: word(12)?,
            monthdays: word(16)?,
            weekdays: byte(20)?,
            flags: byte(21)?,
        }),
        ("tos", 1) => RareMatch::Tos {
            mask: byte(0)?,
            value: byte(1)?,
            invert: byte(2)? != 0,
        },
        ("u32", 0) => u32_tests(data)?,
        _ if v6 => header6(name, revision, data)?,
        _ => return None,
    })
}

fn bpf(revision: u8, data: &[u8]) -> Option<RareMatch> {
    let (count, at) = match (revision, u16_at(data, 0)?) {
        // The instructions stand at the next word.
        (0, count) => (count, 4),
        (_, 0) => (u16_at(data, 2)?, 8),
        (_, 1) => return Some(RareMatch::BpfObject(text(data.get(8..520)?))),
        _ => return None,
    };
    let code = data.get(at..)?.get(..usize::from(count.min(64)) * 8)?;
    let instruction = |bytes: &[u8]| {
        Some((
            u16_at(bytes, 0)?,
            *bytes.get(2)?,
            *bytes.get(3)?,
            u32_at(bytes, 4)?,
        ))
    };
    let program: Option<Vec<_>> = code.chunks(8).map(instruction).collect();
    program.map(RareMatch::Bpf)
}

fn cgroup(revision: u8, data: &[u8]) -> Option<RareMatch> {
    let flag = |at: usize| data.get(at).map(|byte| *byte != 0);
    // The first has room for both (PATH_MAX), the second for one of them.
    let (path, class) = if revision == 1 {
        (4..4100, 4100)
    } else {
        (4..516, 4)
    };
    Some(RareMatch::Cgroup {
        path: if flag(0)? {
            Some((text(data.get(path)?), flag(2)?))
        } else {
            None
        },
        class: if flag(1)? {
            Some((u32_at(data, class)?, flag(3)?))
        } else {
            None
        },
    })
}

fn policy(data: &[u8], v6: bool) -> Option<RareMatch> {
    /// `sizeof(struct xt_policy_elem)`
    const ELEMENT: usize = 76;
    let count = usize::from(u16_at(data, 4 * ELEMENT + 2)?);
    let element = |bytes: &[u8]| {
        Some(PolicyElement {
            saddr: (inet_addr(bytes, 0, v6)?, inet_addr(bytes, 16, v6)?),
            daddr: (inet_addr(bytes, 32, v6)?, inet_addr(bytes, 48, v6)?),
            spi: u32_at(bytes, 64)?,
            reqid: u32_at(bytes, 68)?,
            proto: *bytes.get(72)?,
            mode: *bytes.get(73)?,
            wanted: *bytes.get(74)?,
            invert: *bytes.get(75)?,
        })
    };
    let all = data.get(..4 * ELEMENT)?.chunks(ELEMENT);
    let elements: Option<Vec<_>> = all.take(count).map(element).collect();
    Some(RareMatch::Policy {
        flags: u16_at(data, 4 * ELEMENT)?,
        elements: elements?,
    })
}

fn sctp(data: &[u8]) -> Option<RareMatch> {
    let pair = |at: usize| Some((u16_at(data, at)?, u16_at(data, at + 2)?));
    // The kernel keeps four times the room that 256 bits need.
    let mut chunks = [0; 8];
    for (number, chunk) in chunks.iter_mut().enumerate() {
        *chunk = u32_at(data, 8 + 4 * number)?;
    }
    let count = usize::try_from(u32_at(data, 280)?).ok()?;
    let flag = |bytes: &[u8]| Some((*bytes.first()?, *bytes.get(1)?, *bytes.get(2)?));
    let chunk_flags: Option<Vec<_>> = data
        .get(268..280)?
        .chunks(3)
        .take(count)
        .map(flag)
        .collect();
    Some(RareMatch::Sctp {
        dports: pair(0)?,
        sports: pair(4)?,
        chunks,
        how: u32_at(data, 264)?,
        chunk_flags: chunk_flags?,
        flags: u32_at(data, 284)?,
        invert: u32_at(data, 288)?,
    })
}

fn u32_tests(data: &[u8]) -> Option<RareMatch> {
    /// Parts of a test: 11 places of 8 bytes, 11 ranges of 8 bytes, two numbers.
    const VALUES: usize = 88;
    const TEST: usize = 180;
    let count = usize::from(*data.get(11 * TEST)?);
    let test = |bytes: &[u8]| {
        let places = usize::from(*bytes.get(176)?);
        let ranges = usize::from(*bytes.get(177)?);
        let location: Option<Vec<_>> = bytes
            .get(..VALUES)?
            .chunks(8)
            .take(places)
            .map(|place| Some((u32_at(place, 0)?, *place.get(4)?)))
            .collect();
        let values: Option<Vec<_>> = bytes
            .get(VALUES..2 * VALUES)?
            .chunks(8)
            .take(ranges)
            .map(|range| Some((u32_at(range, 0)?, u32_at(range, 4)?)))
            .collect();
        Some(U32Test {
            location: location?,
            values: values?,
        })
    };
    let all = data.get(..11 * TEST)?.chunks(TEST);
    let tests: Option<Vec<_>> = all.take(count).map(test).collect();
    Some(RareMatch::U32 {
        tests: tests?,
        invert: *data.get(11 * TEST + 1)? != 0,
    })
}

/// Matches on IPv6 headers.
fn header6(name: &str, revision: u8, data: &[u8]) -> Option<RareMatch> {
    let byte = |at: usize| data.get(at).copied();
    let word = |at: usize| u32_at(data, at);
    let addr = |at: usize| Some(Ipv6Addr::from(*data.get(at..)?.first_chunk::<16>()?));
    Some(match (name, revision) {
        ("eui64", 0) => RareMatch::Eui64,
        ("frag", 0) => RareMatch::Frag {
            ids: (word(0)?, word(4)?),
            length: word(8)?,
            flags: byte(12)?,
            invert: byte(13)?,
        },
        ("hbh" | "dst", 0) => {
            let count = usize::from(byte(38)?);
            let options: Option<Vec<_>> = data
                .get(6..38)?
                .chunks(2)
                .take(count)
                .map(|option| u16_at(option, 0))
                .collect();
            RareMatch::Options {
                hop_by_hop: name == "hbh",
                length: word(0)?,
                flags: byte(4)?,
                invert: byte(5)?,
                options: options?,
            }
        }
        ("ipv6header", 0) => RareMatch::Ipv6header {
            headers: byte(0)?,
            invert: byte(1)?,
            soft: byte(2)? != 0,
        },
        ("mh", 0) => RareMatch::Mh {
            types: (byte(0)?, byte(1)?),
            invert: byte(2)? & 1 != 0,
        },
        ("rt", 0) => {
            let count = usize::from(byte(276)?).min(16);
            let addrs: Option<Vec<_>> = (0..count).map(|number| addr(20 + 16 * number)).collect();
            // Behind the numbers come two bytes of flags and two of padding.
            RareMatch::Rt {
                kind: word(0)?,
                left: (word(4)?, word(8)?),
                length: word(12)?,
                flags: byte(16)?,
                invert: byte(17)?,
                addrs: addrs?,
            }
        }
        ("srh", 0 | 1) => {
            let flags = if revision == 0 { 6 } else { 104 };
            let segments: Option<Vec<_>> = match revision {
                0 => Some(Vec::new()),
                _ => (0..3)
                    .map(|number| Some((addr(8 + 16 * number)?, addr(56 + 16 * number)?)))
                    .collect(),
            };
            RareMatch::Srh {
                next: byte(0)?,
                length: byte(1)?,
                left: byte(2)?,
                last: byte(3)?,
                tag: u16_at(data, 4)?,
                flags: u16_at(data, flags)?,
                invert: u16_at(data, flags + 2)?,
                segments: segments?,
            }
        }
        _ => return None,
    })
}
