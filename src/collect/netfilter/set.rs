//! Sets, maps and their elements, by nfnetlink.
//!
//! The kernel finds a set by walking the list of its table's sets, so that reading all elements of ten
//! thousand sets takes seconds; a single element is found in microseconds. Hence sets are read by name.

use super::expr;
use super::nft::{family_number, request, user_comment, user_data};
use crate::collect::error::{Error, Result};
use crate::collect::netlink::Netlink;
use crate::collect::nla::{Attrs, be32, be64, text};
use crate::model::netfilter::{Elements, Family, Set, SetData, SetDecl, SetElem, SetFlags};

const GET_SET: u16 = 0x0a0a;
const GET_SETELEM: u16 = 0x0a0d;
const HEADER: usize = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;
const NFT_SET_ELEM_CATCHALL: u32 = 2;

/// Heads of all sets of a table.
pub fn heads(socket: &mut Netlink, family: Family, table: &str) -> Result<Vec<Set>> {
    let operation = format!("list nf_tables sets of {} {table}", family.name());
    let mut message = request(family_number(family));
    message.put_text(1, table);
    let sets = socket.dump(
        GET_SET,
        message.bytes(),
        &operation,
        Vec::new,
        |sets, _, body| sets.push(head(family, body)),
    )?;
    sets.into_iter()
        .map(|set| set.ok_or_else(|| Error::malformed(&operation, "a set that can't be decoded")))
        .collect()
}

/// Head of one set; `None` where the table has no such set.
pub fn find(socket: &mut Netlink, family: Family, table: &str, name: &str) -> Result<Option<Set>> {
    let operation = format!("read nf_tables set {} {table} {name}", family.name());
    let mut message = request(family_number(family));
    message.put_text(1, table).put_text(2, name);
    let Some(body) = socket.get(GET_SET, message.bytes(), &operation)? else {
        return Ok(None);
    };
    head(family, &body)
        .map(Some)
        .ok_or_else(|| Error::malformed(operation, "the set can't be decoded"))
}

pub(in crate::collect) fn head(family: Family, body: &[u8]) -> Option<Set> {
    let attrs = Attrs(body.get(HEADER..)?);
    let number = |kind| attrs.find(kind).and_then(be32).unwrap_or(0);
    let flags = number(3);
    let verdicts = number(6) == NFT_DATA_VERDICT;
    let field_lens = attrs
        .find(9)
        .and_then(|desc| Attrs(desc).find(2))
        .map(|list| {
            Attrs(list)
                .filter_map(|(_, field)| be32(Attrs(field).find(1)?))
                .collect()
        })
        .unwrap_or_default();
    Some(Set {
        name: text(attrs.find(2)?),
        flags: SetFlags {
            anonymous: flags & 0x1 != 0,
            constant: flags & 0x2 != 0,
            interval: flags & 0x4 != 0,
            map: flags & 0x8 != 0,
            timeout: flags & 0x10 != 0,
            dynamic: flags & 0x20 != 0,
            object: flags & 0x40 != 0,
        },
        key_len: number(5),
        field_lens,
        data_len: if verdicts { 0 } else { number(7) },
        elements: Elements::NotAsked,
        decl: decl(family, attrs),
    })
}

/// What decides nothing.
fn decl(family: Family, attrs: Attrs<'_>) -> SetDecl {
    /// NFTNL_UDATA_SET_*, numbered by libnftnl.
    const KEY_ORDER: u8 = 0;
    const MERGE: u8 = 2;
    const KEY_TYPEOF: u8 = 3;
    const DATA_TYPEOF: u8 = 4;
    const DATA_INTERVAL: u8 = 6;
    const COMMENT: u8 = 7;
    /// BYTEORDER_HOST_ENDIAN of nft
    const HOST: u8 = 1;
    let number = |kind| attrs.find(kind).and_then(be32).unwrap_or(0);
    let milliseconds = |kind| attrs.find(kind).and_then(be64).unwrap_or(0);
    let data = attrs.find(13).unwrap_or_default();
    let user = |kind| user_data(data, kind);
    // Numbers in user data are in the order of the machine that wrote them.
    let is = |kind, wanted| user(kind).is_some_and(|value| value.contains(&wanted));
    SetDecl {
        key_type: number(4),
        data_type: number(6),
        object_type: number(15),
        host_order: is(KEY_ORDER, HOST),
        typeof_key: user(KEY_TYPEOF).unwrap_or_default().to_vec(),
        typeof_data: user(DATA_TYPEOF).unwrap_or_default().to_vec(),
        data_interval: is(DATA_INTERVAL, 1),
        timeout_ms: milliseconds(11),
        gc_interval_ms: number(12),
        size: attrs
            .find(9)
            .and_then(|desc| Attrs(desc).find(1).and_then(be32))
            .unwrap_or(0),
        policy: attrs.find(8).and_then(be32),
        exprs: expr::stateful(attrs.find(17), attrs.find(18), family),
        auto_merge: is(MERGE, 1),
        comment: user(COMMENT).map(text),
    }
}

/// Elements of a set. More than `limit` of them: `None`.
pub fn elements(
    socket: &mut Netlink,
    family: Family,
    table: &str,
    set: &str,
    limit: usize,
) -> Result<Option<Vec<SetElem>>> {
    let operation = format!(
        "list elements of nf_tables set {} {table} {set}",
        family.name()
    );
    let mut message = request(family_number(family));
    message.put_text(1, table).put_text(2, set);
    let elements = socket.dump(
        GET_SETELEM,
        message.bytes(),
        &operation,
        || Ok(Vec::new()),
        |elements, _, body| take(elements, family, body, limit),
    )?;
    match elements {
        Ok(elements) => Ok(Some(elements)),
        Err(TooFar::Limit) => Ok(None),
        Err(TooFar::Damaged) => Err(Error::malformed(
            operation,
            "an element that can't be decoded",
        )),
    }
}

enum TooFar {
    Limit,
    Damaged,
}

fn take(
    elements: &mut std::result::Result<Vec<SetElem>, TooFar>,
    family: Family,
    body: &[u8],
    limit: usize,
) {
    let Ok(known) = elements else { return };
    for elem in list(family, body) {
        match elem {
            _ if known.len() >= limit => {
                *elements = Err(TooFar::Limit);
                return;
            }
            Some(elem) => known.push(elem),
            None => {
                *elements = Err(TooFar::Damaged);
                return;
            }
        }
    }
}

/// Elements of one message.
pub(in crate::collect) fn list(
    family: Family,
    body: &[u8],
) -> impl Iterator<Item = Option<SetElem>> + '_ {
    let attrs = Attrs(body.get(HEADER..).unwrap_or_default());
    let list = attrs.find(3).unwrap_or_default();
    Attrs(list)
        .filter(|(kind, _)| *kind == NFTA_LIST_ELEM)
        .map(move |(_, elem)| element(family, elem))
}

fn element(family: Family, bytes: &[u8]) -> Option<SetElem> {
    let attrs = Attrs(bytes);
    let key = |kind| Some(Attrs(attrs.find(kind)?).find(1)?.to_vec());
    let flags = attrs.find(3).and_then(be32).unwrap_or(0);
    let catchall = flags & NFT_SET_ELEM_CATCHALL != 0;
    let data = match attrs.find(2) {
        Some(data) => Some(expr::data(data)?),
        // What a map of objects maps to is an object's name.
        None => attrs
            .find(9)
            .map(|name| SetData::Value(text(name).into_bytes())),
    };
    Some(SetElem {
        key: if catchall { Vec::new() } else { key(1)? },
        key_end: key(10),
        interval_end: flags & 1 != 0,
        catchall,
        data,
        comment: attrs.find(6).and_then(user_comment),
        expires_ms: attrs.find(5).and_then(be64),
        timeout_ms: attrs.find(4).and_then(be64),
        exprs: expr::stateful(attrs.find(7), attrs.find(11), family),
    })
}

/// The element that a lookup of `key` would find; `None`: none. In a set of intervals it is the first
/// key of the interval.
pub fn element_by_key(
    socket: &mut Netlink,
    family: Family,
    table: &str,
    set: &str,
    key: &[u8],
) -> Result<Option<SetElem>> {
    let operation = format!(
        "look up an element of nf_tables set {} {table} {set}",
        family.name()
    );
    let by_key = ask(socket, family, table, set, Some(key), &operation)?;
    if by_key.is_some() {
        return Ok(by_key);
    }
    // A catch-all element matches where no key does; kernels before 5.13 know none.
    match ask(socket, family, table, set, None, &operation) {
        Err(error) if error.errno() == Some(libc::EINVAL) => Ok(None),
        other => other,
    }
}

fn ask(
    socket: &mut Netlink,
    family: Family,
    table: &str,
    set: &str,
    key: Option<&[u8]>,
    operation: &str,
) -> Result<Option<SetElem>> {
    let mut message = request(family_number(family));
    message.put_text(1, table).put_text(2, set).nest(3, |list| {
        list.nest(NFTA_LIST_ELEM, |elem| {
            if let Some(key) = key {
                elem.nest(1, |data| {
                    data.put(1, key);
                });
            } else {
                elem.put(3, &NFT_SET_ELEM_CATCHALL.to_be_bytes());
            }
        });
    });
    let Some(body) = socket.get(GET_SETELEM, message.bytes(), operation)? else {
        return Ok(None);
    };
    match list(family, &body).next() {
        Some(Some(elem)) => Ok(Some(elem)),
        _ => Err(Error::malformed(operation, "the element can't be decoded")),
    }
}
