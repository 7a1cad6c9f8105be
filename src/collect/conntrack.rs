//! Connection tracking entries, one by its tuple, those between two ends, or all of a namespace, by IPCTNL_MSG_CT_GET.
//!
//! Source: include/uapi/linux/netfilter/nfnetlink_conntrack.h. The kernel finds an entry by the tuple of
//! either direction, and only zone 0 is asked. A dump has all zones.

use std::net::IpAddr;

use super::error::{Error, Result};
use super::netlink::Netlink;
use super::nla::{self, Attrs, Writer};
use crate::model::conntrack::{ConntrackEntry, ConntrackFlows, ConntrackGroup, Tuple};
use crate::model::packet::{ICMP, ICMPV6};

const CT_GET: u16 = 0x0101;
/// `sizeof(struct nfgenmsg)`
const HEADER: usize = 4;
/// CTA_FILTER
const CTA_FILTER: u16 = 25;
/// CTA_FILTER_FLAG() of addresses and protocol: CTA_IP_SRC, CTA_IP_DST, CTA_PROTO_NUM
/// (net/netfilter/nf_internals.h, v6.12).
const FILTER_BY: u32 = 1 << 0 | 1 << 1 | 1 << 3;
/// Most places that entries between two ends may lead to.
const MOST_PLACES: usize = 64;
/// Most entries of a table that are read: about 15 MB here, 5 MB on the wire.
pub const MOST: usize = 65_536;

/// The entry that has this tuple in either direction. Ports must be fixed.
pub fn find(socket: &mut Netlink, tuple: &Tuple) -> Result<Option<ConntrackEntry>> {
    let operation = format!(
        "look up the conntrack entry of {} to {} protocol {}",
        tuple.src, tuple.dst, tuple.protocol
    );
    let (Some(sport), Some(dport)) = (tuple.sport, tuple.dport) else {
        return Err(Error::malformed(operation, "its ports are not fixed"));
    };
    let ports = Some((sport, dport));
    let request = request(tuple, ports);
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
        filter.put(1, &FILTER_BY.to_ne_bytes());
    });
    let any = |wanted: Option<u16>, own: Option<u16>| wanted.is_none() || wanted == own;
    socket.try_dump(
        CT_GET,
        request.bytes(),
        &operation,
        ConntrackFlows::default,
        |flows, _, payload| {
            let attrs = Attrs(payload.get(HEADER..).unwrap_or_default());
            let entry = decode(attrs).map(|entry| ConntrackEntry {
                zone: zone(attrs).unwrap_or(0),
                ..entry
            });
            let entry =
                entry.ok_or_else(|| Error::malformed(&operation, "an entry can't be decoded"))?;
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

/// All entries of the socket's namespace, of both families and all zones, in the kernel's order; at most
/// `most`. Error [`Error::TooMany`] where there are more: reading stops there.
pub fn table(socket: &mut Netlink, most: usize) -> Result<Vec<ConntrackEntry>> {
    let operation = "dump the conntrack table";
    // nfgen_family AF_UNSPEC: both (`ctnetlink_dump_table()`).
    let request = Writer::new(&[0; HEADER]);
    socket.try_dump(
        CT_GET,
        request.bytes(),
        operation,
        Vec::new,
        |entries, _, payload| {
            if entries.len() >= most {
                return Err(Error::TooMany {
                    operation: operation.to_owned(),
                    most,
                    remedy: "trace a flow instead, which reads that flow's entry alone",
                });
            }
            let attrs = Attrs(payload.get(HEADER..).unwrap_or_default());
            let entry = decode(attrs).map(|entry| ConntrackEntry {
                zone: zone(attrs).unwrap_or(0),
                ..entry
            });
            let bad = || Error::malformed(operation, "an entry can't be decoded");
            entries.push(entry.ok_or_else(bad)?);
            Ok(())
        },
    )
}

/// Zone of the original direction: CTA_ZONE, or CTA_TUPLE_ZONE where the directions differ.
pub(super) fn zone(attrs: Attrs<'_>) -> Option<u16> {
    let own = || Attrs(attrs.find(1)?).find(3);
    attrs.find(18).or_else(own).and_then(|b| nla::be16_at(b, 0))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

pub(super) fn decode(attrs: Attrs<'_>) -> Option<ConntrackEntry> {
    let number = |kind| attrs.find(kind).and_then(nla::be32);
    Some(ConntrackEntry {
        orig: tuple(Attrs(attrs.find(1)?))?,
        reply: tuple(Attrs(attrs.find(2)?))?,
        status: number(3)?,
        mark: number(8).unwrap_or(0),
        zone: attrs.find(18).and_then(|b| nla::be16_at(b, 0)).unwrap_or(0),
        timeout: number(7),
        tcp_state: attrs
            .find(4)
            .and_then(|info| Attrs(info).find(1))
            .and_then(|tcp| Attrs(tcp).find(1))
            .and_then(|state| state.first().copied()),
        labels: attrs.find(22).map(<[u8]>::to_vec).unwrap_or_default(),
        helper: attrs
            .find(5)
            .and_then(|help| Attrs(help).find(1))
            .map(nla::text),
    })
}

fn tuple(attrs: Attrs<'_>) -> Option<Tuple> {
    let ip = Attrs(attrs.find(1)?);
    let address = |v4, v6| ip.find(v4).or_else(|| ip.find(v6)).and_then(nla::ip);
    let proto = Attrs(attrs.find(2)?);
    let port = |kind| proto.find(kind).and_then(|bytes| nla::be16_at(bytes, 0));
    let byte = |kind| proto.find(kind).and_then(|bytes| bytes.first().copied());
    let protocol = byte(1)?;
    let type_code = |kind, code| Some(u16::from_be_bytes([byte(kind)?, byte(code)?]));
    let (sport, dport) = match protocol {
        ICMP => (port(4), type_code(5, 6)),
        ICMPV6 => (port(7), type_code(8, 9)),
        // Protocols without ports have zeros as their tuple's ports.
        _ => (port(2).or(Some(0)), port(3).or(Some(0))),
    };
    Some(Tuple {
        src: address(1, 3)?,
        dst: address(2, 4)?,
        protocol,
        sport,
        dport,
    })
}
