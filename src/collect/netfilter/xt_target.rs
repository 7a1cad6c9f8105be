//! x_tables targets, from the structures the kernel holds.
//!
//! Source: include/uapi/linux/netfilter/xt_*.h, nf_nat.h (v6.1 headers).

use std::net::{IpAddr, Ipv4Addr};

use super::xt_match::{inet_addr, set_dims, set_info, set_is_inverted};
use super::xt_rare_target;
use crate::collect::nla::{be16_at, text, u16_at, u32_at};
use crate::model::conntrack::NatRange;
use crate::model::xtables::{CtTarget, SetRef, SetTarget, XtTarget};

const MAP_IPS: u32 = 1;
const PROTO_SPECIFIED: u32 = 2;
const NETMAP: u32 = 64;

/// Decodes a target. `v6`: it stands in a table of IPv6.
pub fn decode(name: &str, revision: u8, data: &[u8], v6: bool) -> XtTarget {
    let rare = || {
        let target = xt_rare_target::decode(name, revision, data, v6)?;
        Some(XtTarget::Rare(Box::new(target)))
    };
    known(name, revision, data, v6)
        .or_else(rare)
        .unwrap_or_else(|| XtTarget::Other {
            name: name.to_owned(),
            revision,
            data: data.to_vec(),
        })
}

fn known(name: &str, revision: u8, data: &[u8], v6: bool) -> Option<XtTarget> {
    Some(match (name, revision) {
        ("DNAT", 0) if !v6 => XtTarget::Dnat(old_range(data)?),
        ("SNAT", 0) if !v6 => XtTarget::Snat(old_range(data)?),
        ("DNAT", 2) => XtTarget::Dnat(NatRange {
            base: be16_at(data, 40)?,
            ..range(data, v6)?
        }),
        ("DNAT", 1) => XtTarget::Dnat(range(data, v6)?),
        ("SNAT", 1 | 2) => XtTarget::Snat(range(data, v6)?),
        ("MASQUERADE", 0) => XtTarget::Masquerade(by_family(data, v6)?),
        ("REDIRECT", 0) => XtTarget::Redirect(by_family(data, v6)?),
        ("NETMAP", 0) => {
            let mut range = by_family(data, v6)?;
            range.flags |= NETMAP;
            XtTarget::Netmap(range)
        }
        ("MARK", 2) => XtTarget::Mark {
            mark: u32_at(data, 0)?,
            mask: u32_at(data, 4)?,
        },
        ("CONNMARK", 1) => connmark(data, *data.get(12)?, 0)?,
        // Direction, bits, mode.
        ("CONNMARK", 2) => {
            let bits = i16::from(*data.get(13)?);
            let right = *data.get(12)? != 0;
            connmark(data, *data.get(14)?, if right { -bits } else { bits })?
        }
        ("REJECT", 0) => XtTarget::Reject {
            with: u32_at(data, 0)?,
            v6,
        },
        ("NOTRACK", 0) => XtTarget::Ct(Box::new(CtTarget {
            flags: 3,
            ..CtTarget::default()
        })),
        ("CT", 0..=2) => XtTarget::Ct(Box::new(CtTarget {
            flags: u16_at(data, 0)?,
            zone: u16_at(data, 2)?,
            events: u32_at(data, 4)?,
            expectation_events: u32_at(data, 8)?,
            helper: text(data.get(12..28)?),
            timeout: match revision {
                0 => String::new(),
                _ => text(data.get(28..60)?),
            },
        })),
        ("TPROXY", 0) => XtTarget::Tproxy {
            mark: (u32_at(data, 4)?, u32_at(data, 0)?),
            addr: IpAddr::V4(Ipv4Addr::from(*data.get(8..)?.first_chunk::<4>()?)),
            port: be16_at(data, 12)?,
        },
        ("TPROXY", 1) => XtTarget::Tproxy {
            mark: (u32_at(data, 4)?, u32_at(data, 0)?),
            addr: inet_addr(data, 8, v6)?,
            port: be16_at(data, 24)?,
        },
        ("TCPMSS", 0) => XtTarget::Tcpmss(u16_at(data, 0)?),
        ("NFQUEUE", 0..=3) => XtTarget::Queue {
            num: u16_at(data, 0)?,
            total: if revision == 0 { 1 } else { u16_at(data, 2)? },
            bypass: revision >= 2 && u16_at(data, 4)? & 1 != 0,
            fanout: revision >= 3 && u16_at(data, 4)? & 2 != 0,
        },
        ("SET", 0..=3) => XtTarget::Set(Box::new(set(revision, data)?)),
        _ => return None,
    })
}

/// `struct xt_set_info_target_v0` to `_v3`.
fn set(revision: u8, data: &[u8]) -> Option<SetTarget> {
    let reference = |at: usize| {
        let (index, dim, flags) = set_info(revision == 0, data, at)?;
        // IPSET_INVALID_ID: none. The outer option is of a structure that is cut short.
        Some((index != u16::MAX).then(|| SetRef {
            index,
            name: None,
            unnamed: None,
            dims: set_dims(dim, flags),
            invert: set_is_inverted(flags),
        }))
    };
    let size = if revision == 0 { 32 } else { 4 };
    let rest = match revision {
        0 | 1 => None,
        2 => Some(8),
        _ => Some(12),
    };
    Some(SetTarget {
        add: reference(0)?,
        del: reference(size)?,
        map: if revision == 3 { reference(8)? } else { None },
        flags: rest.map_or(Some(0), |at| u32_at(data, at))?,
        timeout: rest.map_or(Some(u32::MAX), |at| u32_at(data, at + 4))?,
    })
}

fn connmark(data: &[u8], mode: u8, shift: i16) -> Option<XtTarget> {
    Some(XtTarget::Connmark {
        mode,
        shift,
        ctmark: u32_at(data, 0)?,
        ctmask: u32_at(data, 4)?,
        nfmask: u32_at(data, 8)?,
    })
}

fn by_family(data: &[u8], v6: bool) -> Option<NatRange> {
    if v6 { range(data, v6) } else { old_range(data) }
}

/// `struct nf_nat_range` and `nf_nat_range2`.
fn range(data: &[u8], v6: bool) -> Option<NatRange> {
    let flags = u32_at(data, 0)?;
    let addrs = (inet_addr(data, 4, v6)?, inet_addr(data, 20, v6)?);
    let ports = (be16_at(data, 36)?, be16_at(data, 38)?);
    Some(nat_range(flags, addrs, ports))
}

/// `struct nf_nat_ipv4_multi_range_compat`, of which the kernel uses the first range only.
fn old_range(data: &[u8]) -> Option<NatRange> {
    let flags = u32_at(data, 4)?;
    let addrs = (inet_addr(data, 8, false)?, inet_addr(data, 12, false)?);
    let ports = (be16_at(data, 16)?, be16_at(data, 18)?);
    Some(nat_range(flags, addrs, ports))
}

fn nat_range(flags: u32, addrs: (IpAddr, IpAddr), ports: (u16, u16)) -> NatRange {
    NatRange {
        flags,
        addrs: (flags & MAP_IPS != 0).then_some(addrs),
        ports: (flags & PROTO_SPECIFIED != 0).then_some(ports),
        base: 0,
    }
}
