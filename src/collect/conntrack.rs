//! Connection tracking entries, one by its tuple, those between two ends, or all of a namespace, by IPCTNL_MSG_CT_GET.
//!
//! Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h. The kernel finds an entry by the tuple of
//! either direction in the zone of that direction. A dump has all zones.

pub(super) mod entry;
pub mod stats;

use std::net::IpAddr;

use super::error::{Error, Result};
use super::netlink::Netlink;
use super::nla::{Attrs, Writer};
use crate::model::Prefix;
use crate::model::conntrack::{
    ConntrackEntry, ConntrackFilter, ConntrackFlows, ConntrackGroup, Tuple, status,
};
use crate::model::packet::{ICMP, ICMPV6, TCP, UDP};
use entry::decode;

const CT_GET: u16 = 0x0101;
/// `sizeof(struct nfgenmsg)`
const HEADER: usize = 4;
/// CTA_STATUS, CTA_MARK, CTA_ZONE, CTA_MARK_MASK, CTA_STATUS_MASK
const CTA_STATUS: u16 = 3;
const CTA_MARK: u16 = 8;
const CTA_ZONE: u16 = 18;
const CTA_MARK_MASK: u16 = 21;
const CTA_STATUS_MASK: u16 = 26;
/// CTA_FILTER
const CTA_FILTER: u16 = 25;
/// CTA_FILTER_FLAG() of addresses and protocol: CTA_IP_SRC, CTA_IP_DST, CTA_PROTO_NUM
/// (net/netfilter/nf_internals.h, v6.12).
const FILTER_BY: u32 = 1 << 0 | 1 << 1 | 1 << 3;
/// CTA_PROTO_NUM alone. Since 5.8 and up to 6.18 at least, kernels that are asked for IPv6 addresses tell of all
/// others (`ipv6_addr_cmp()` in `ctnetlink_filter_match_tuple()`; 6.12.117 has it mended): these are not asked.
const FILTER_BY_V6: u32 = 1 << 3;
/// Most places that entries between two ends may lead to.
const MOST_PLACES: usize = 64;
/// Most entries of a table that are read: about 15 MB here, 5 MB on the wire.
pub const MOST: usize = 65_536;

/// The entry that has this tuple in either direction, in this zone of that direction. Ports must be fixed.
pub fn find(socket: &mut Netlink, tuple: &Tuple, zone: u16) -> Result<Option<ConntrackEntry>> {
    let operation = format!(
        "look up the conntrack entry of {} to {} protocol {}",
        tuple.src, tuple.dst, tuple.protocol
    );
    let (Some(sport), Some(dport)) = (tuple.sport, tuple.dport) else {
        return Err(Error::malformed(operation, "its ports are not fixed"));
    };
    let ports = Some((sport, dport));
    let mut request = request(tuple, ports);
    if zone != 0 {
        request.put(CTA_ZONE, &zone.to_be_bytes());
    }
    let Some(answer) = socket.get(CT_GET, request.bytes(), &operation)? else {
        return Ok(None);
    };
    let entry = answer.get(HEADER..).and_then(|attrs| decode(Attrs(attrs)));
    entry
        .map(Some)
        .ok_or_else(|| Error::malformed(operation, "the entry can't be decoded"))
}

/// A request with a tuple in its original direction. Without ports it names addresses and protocol.
fn request(tuple: &Tuple, ports: Option<(u16, u16)>) -> Writer {
    let family = if tuple.src.is_ipv6() {
        libc::AF_INET6
    } else {
        libc::AF_INET
    };
    let mut request = Writer::new(&[u8::try_from(family).unwrap_or_default(), 0, 0, 0]);
    request.nest(1, |orig| {
        orig.nest(1, |ip| {
            let (src, dst) = if tuple.src.is_ipv6() { (3, 4) } else { (1, 2) };
            ip.put(src, &octets(tuple.src)).put(dst, &octets(tuple.dst));
        });
        orig.nest(2, |proto| {
            proto.put(1, &[tuple.protocol]);
            let Some((sport, dport)) = ports else {
                return;
            };
            let [kind, code] = dport.to_be_bytes();
            match tuple.protocol {
                ICMP => {
                    proto
                        .put(4, &sport.to_be_bytes())
                        .put(5, &[kind])
                        .put(6, &[code]);
                }
                ICMPV6 => {
                    proto
                        .put(7, &sport.to_be_bytes())
                        .put(8, &[kind])
                        .put(9, &[code]);
                }
                _ => {
                    proto
                        .put(2, &sport.to_be_bytes())
                        .put(3, &dport.to_be_bytes());
                }
            }
        });
    });
    request
}

/// Entries whose original direction has these ends; where a port is not fixed, with any.
///
/// The kernel filters by CTA_FILTER (`ctnetlink_alloc_filter()`, since 5.8); an older one sends all, so that
/// what comes is looked at again. At most [`MOST_PLACES`] entries are kept, however many come.
pub fn between(socket: &mut Netlink, tuple: &Tuple) -> Result<ConntrackFlows> {
    let operation = format!(
        "look up conntrack entries of {} to {} protocol {}",
        tuple.src, tuple.dst, tuple.protocol
    );
    let mut request = request(tuple, None);
    request.nest(CTA_FILTER, |filter| {
        let by = if tuple.src.is_ipv6() {
            FILTER_BY_V6
        } else {
            FILTER_BY
        };
        filter.put(1, &by.to_ne_bytes());
    });
    let any = |wanted: Option<u16>, own: Option<u16>| wanted.is_none() || wanted == own;
    socket.try_dump(
        CT_GET,
        request.bytes(),
        &operation,
        ConntrackFlows::default,
        |flows, _, payload| {
            let attrs = Attrs(payload.get(HEADER..).unwrap_or_default());
            let entry = decode(attrs)
                .ok_or_else(|| Error::malformed(&operation, "an entry can't be decoded"))?;
            let own = &entry.orig;
            if (own.src, own.dst, own.protocol) == (tuple.src, tuple.dst, tuple.protocol)
                && any(tuple.sport, own.sport)
                && any(tuple.dport, own.dport)
            {
                put(flows, entry);
            }
            Ok(())
        },
    )
}

/// Puts an entry to those that lead to the same place.
fn put(flows: &mut ConntrackFlows, entry: ConntrackEntry) {
    let place = |entry: &ConntrackEntry| {
        let reply = &entry.reply;
        (reply.src, reply.sport, reply.dst, entry.zone)
    };
    let full = flows.groups.len() >= MOST_PLACES;
    let known = flows
        .groups
        .iter_mut()
        .find(|group| place(&group.entry) == place(&entry));
    match known {
        Some(group) => {
            group.count = group.count.saturating_add(1);
            if entry.timeout > group.entry.timeout {
                group.entry = entry;
            }
        }
        None if full => flows.left_out = flows.left_out.saturating_add(1),
        None => flows.groups.push(ConntrackGroup { entry, count: 1 }),
    }
}

/// Entries whose original direction has this source, of all zones: of those that were given the same one, two, so that
/// one is there beside a flow's own. At most [`MOST_PLACES`].
///
/// The kernel filters by address and, of TCP and UDP, by port (`ctnetlink_filter_match_tuple()`).
pub fn from(socket: &mut Netlink, tuple: &Tuple) -> Result<Vec<ConntrackEntry>> {
    let filter = ConntrackFilter {
        v6: Some(tuple.src.is_ipv6()),
        protocol: Some(tuple.protocol),
        orig: (Some(Prefix::host(tuple.src)), None),
        ..ConntrackFilter::default()
    };
    let operation = format!(
        "look up what entries of source {} port {} were translated to",
        tuple.src,
        tuple
            .sport
            .map_or_else(|| "any".to_owned(), |port| port.to_string())
    );
    dump(
        socket,
        &filter,
        tuple.sport,
        &operation,
        |entries, entry| {
            // Ids of echoes are no ports to a filter, but are to sources.
            if entry.orig.sport == tuple.sport {
                keep_source(entries, entry, &operation)?;
            }
            Ok(())
        },
    )
}

/// Keeps an entry, where not two are there already that were given the same source.
fn keep_source(
    entries: &mut Vec<ConntrackEntry>,
    entry: ConntrackEntry,
    operation: &str,
) -> Result<()> {
    let given = |entry: &ConntrackEntry| {
        let reply = entry.reply.inverted();
        let chosen = entry.status & status::SRC_NAT_DONE;
        (entry.zone, entry.reply.dst, reply.sport, chosen)
    };
    let alike = entries.iter().filter(|own| given(own) == given(&entry));
    if alike.count() >= 2 {
        return Ok(());
    }
    if entries.len() >= MOST_PLACES {
        return Err(Error::TooMany {
            operation: operation.to_owned(),
            most: MOST_PLACES,
            remedy: "they were given too many different ones to tell the next; trace another --source-port",
        });
    }
    entries.push(entry);
    Ok(())
}

/// Entries of the socket's namespace, of both families and all zones, in the kernel's order, that a filter lets
/// pass; at most `most`. Error [`Error::TooMany`] where there are more: reading stops there.
///
/// The kernel filters by what it can (`ctnetlink_alloc_filter()`); what comes is looked at again, since older ones
/// can less.
pub fn table(
    socket: &mut Netlink,
    filter: &ConntrackFilter,
    most: usize,
) -> Result<Vec<ConntrackEntry>> {
    let operation = "dump the conntrack table";
    dump(
        socket,
        filter,
        filter.orig_ports.0,
        operation,
        |entries, entry| {
            if entries.len() >= most {
                return Err(Error::TooMany {
                    operation: operation.to_owned(),
                    most,
                    remedy: "say which entries are wanted (--src, --dst, --address, --port, ...), or trace a flow, which reads that flow's entry alone",
                });
            }
            entries.push(entry);
            Ok(())
        },
    )
}

fn dump(
    socket: &mut Netlink,
    filter: &ConntrackFilter,
    sport: Option<u16>,
    operation: &str,
    mut keep: impl FnMut(&mut Vec<ConntrackEntry>, ConntrackEntry) -> Result<()>,
) -> Result<Vec<ConntrackEntry>> {
    let request = filtered(filter, sport);
    socket.try_dump(
        CT_GET,
        request.bytes(),
        operation,
        Vec::new,
        |entries, _, payload| {
            let entry = decode(Attrs(payload.get(HEADER..).unwrap_or_default()));
            let entry =
                entry.ok_or_else(|| Error::malformed(operation, "an entry can't be decoded"))?;
            if filter.lets_pass(&entry) {
                keep(entries, entry)?;
            }
            Ok(())
        },
    )
}

/// A dump request that lets the kernel pass over what is not wanted.
fn filtered(filter: &ConntrackFilter, sport: Option<u16>) -> Writer {
    // One address of each side, where the whole of it counts.
    let host = |prefix: Option<Prefix>| {
        let addr = prefix?.addr();
        (prefix == Some(Prefix::host(addr))).then_some(addr)
    };
    let all = [
        filter.orig.0,
        filter.orig.1,
        filter.reply.0,
        filter.reply.1,
        filter.any,
    ];
    let family = all.iter().flatten().next();
    let v6 = filter.v6.or(family.map(|prefix| prefix.addr().is_ipv6()));
    let family = match v6 {
        Some(true) => libc::AF_INET6,
        Some(false) => libc::AF_INET,
        // Both (`ctnetlink_dump_table()`).
        None => libc::AF_UNSPEC,
    };
    let mut request = Writer::new(&[u8::try_from(family).unwrap_or_default(), 0, 0, 0]);
    if let Some((value, mask)) = filter.mark {
        request
            .put(CTA_MARK, &(value & mask).to_be_bytes())
            .put(CTA_MARK_MASK, &mask.to_be_bytes());
    }
    // Entries with a zone in one direction only are in zone 0 too, which the kernel sees otherwise.
    if let Some(zone) = filter.zone.filter(|zone| *zone != 0) {
        request.put(CTA_ZONE, &zone.to_be_bytes());
    }
    let (set, unset) = filter.status;
    if set | unset != 0 {
        request
            .put(CTA_STATUS, &set.to_be_bytes())
            .put(CTA_STATUS_MASK, &(set | unset).to_be_bytes());
    }
    let Some(v6) = v6 else {
        return request;
    };
    let mut flags = [0_u32; 2];
    let sides = [
        (1, filter.orig, sport, filter.orig_ports.1),
        (2, filter.reply, filter.reply_ports.0, filter.reply_ports.1),
    ];
    for ((kind, (src, dst), sport, dport), flags) in sides.into_iter().zip(&mut flags) {
        let (src, dst) = (host(src), host(dst));
        // See FILTER_BY_V6.
        let same = |addr: &IpAddr| addr.is_ipv4() && !v6;
        let (src, dst) = (src.filter(same), dst.filter(same));
        let protocol = filter.protocol;
        let with_ports = matches!(protocol, Some(TCP | UDP));
        let (sport, dport) = (sport.filter(|_| with_ports), dport.filter(|_| with_ports));
        let bits = [
            src.is_some(),
            dst.is_some(),
            false,
            protocol.is_some(),
            sport.is_some(),
            dport.is_some(),
        ];
        *flags = (0..)
            .zip(bits)
            .fold(0, |all, (bit, own)| all | u32::from(own) << bit);
        if *flags == 0 {
            continue;
        }
        request.nest(kind, |tuple| {
            tuple.nest(1, |ip| {
                for (kind, addr) in [(1, src), (2, dst)] {
                    if let Some(addr) = addr {
                        ip.put(kind, &octets(addr));
                    }
                }
            });
            tuple.nest(2, |proto| {
                for (kind, bytes) in [
                    (1, protocol.map(|own| vec![own])),
                    (2, sport.map(|own| own.to_be_bytes().to_vec())),
                    (3, dport.map(|own| own.to_be_bytes().to_vec())),
                ] {
                    if let Some(bytes) = bytes {
                        proto.put(kind, &bytes);
                    }
                }
            });
        });
    }
    if flags != [0, 0] {
        request.nest(CTA_FILTER, |filter| {
            for (kind, flags) in (1..).zip(flags).filter(|(_, flags)| *flags != 0) {
                filter.put(kind, &flags.to_ne_bytes());
            }
        });
    }
    request
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A flow to this host that was given this source.
    fn entry(to: u8, given: [u8; 4]) -> ConntrackEntry {
        let orig = Tuple {
            src: [10, 0, 0, 1].into(),
            dst: [10, 0, 1, to].into(),
            protocol: UDP,
            sport: Some(5000),
            dport: Some(53),
        };
        let reply = Tuple {
            dst: given.into(),
            ..orig.inverted()
        };
        ConntrackEntry {
            status: status::SRC_NAT_DONE,
            ..ConntrackEntry::new(orig, reply)
        }
    }

    #[test]
    fn flows_that_were_given_the_same_source_count_as_few() {
        let mut entries = Vec::new();
        for to in 0..200 {
            keep_source(&mut entries, entry(to, [192, 0, 2, 1]), "look").expect("it is kept");
        }
        assert_eq!(entries.len(), 2);
        let other = [192, 0, 2, 2];
        keep_source(&mut entries, entry(7, other), "look").expect("it is kept");
        assert_eq!(entries[2], entry(7, other));
        let all = (3..=255).map(|last| entry(7, [192, 0, 2, last]));
        let error = all
            .map(|entry| keep_source(&mut entries, entry, "look up it"))
            .find_map(Result::err)
            .expect("there are too many");
        let text = error.to_string();
        assert!(text.starts_with("look up it: "), "{text}");
        assert!(text.ends_with("trace another --source-port"), "{text}");
        assert_eq!(entries.len(), MOST_PLACES);
    }
}
