//! Stateful objects of nf_tables, by nfnetlink.
//!
//! Source: `enum nft_object_attributes`, include/uapi/linux/netfilter/nf_tables.h.

use super::expr;
use super::nft::{family, request, user_comment};
use crate::collect::error::{Error, Result};
use crate::collect::netlink::Netlink;
use crate::collect::nla::{Attrs, be16_at, be32, be64, text, u32_at};
use crate::model::netfilter::{Counters, Expectation, Family, Object, ObjectState};

const GET_OBJ: u16 = 0x0a13;
const HEADER: usize = 4;

/// Family, table and object.
pub(in crate::collect) type ObjectOf = (Family, String, Object);

/// Objects of all tables.
pub fn all(socket: &mut Netlink) -> Result<Vec<ObjectOf>> {
    let operation = "list nf_tables objects";
    let found = socket.dump(
        GET_OBJ,
        request(0).bytes(),
        operation,
        Vec::new,
        |found, _, body| found.push(object(body)),
    );
    let found = match found {
        // Kernels without objects (before 4.10) do not know the message.
        Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Vec::new(),
        other => other?,
    };
    found
        .into_iter()
        .map(|object| {
            object.ok_or_else(|| Error::malformed(operation, "an object without a name or a table"))
        })
        .collect()
}

pub(in crate::collect) fn object(body: &[u8]) -> Option<ObjectOf> {
    let attrs = Attrs(body.get(HEADER..)?);
    let kind = be32(attrs.find(3)?)?;
    let data = attrs.find(4).unwrap_or_default();
    let object = Object {
        name: text(attrs.find(2)?),
        state: state(kind, Attrs(data)).unwrap_or_else(|| ObjectState::Other {
            kind,
            data: data.to_vec(),
        }),
        comment: attrs.find(8).and_then(user_comment),
    };
    Some((family(*body.first()?)?, text(attrs.find(1)?), object))
}

fn state(kind: u32, attrs: Attrs<'_>) -> Option<ObjectState> {
    let half = |kind| be16_at(attrs.find(kind)?, 0);
    let word = |kind| attrs.find(kind).and_then(be32);
    let long = |kind| attrs.find(kind).and_then(be64);
    let byte = |kind| attrs.find(kind)?.first().copied();
    let flag = |kind| word(kind).unwrap_or(0) & 1 != 0;
    Some(match kind {
        1 => {
            let Counters { packets, bytes } = expr::counters(attrs)?;
            ObjectState::Counter(Counters { packets, bytes })
        }
        2 => ObjectState::Quota {
            bytes: long(1)?,
            inverted: flag(2),
            consumed: long(4).unwrap_or(0),
        },
        3 => ObjectState::Helper {
            helper: text(attrs.find(1)?),
            family: half(2).unwrap_or(0),
            protocol: byte(3)?,
        },
        4 => ObjectState::Limit {
            rate: long(1)?,
            unit: long(2)?,
            burst: word(3).unwrap_or(0),
            bytes: word(4) == Some(1),
            inverted: flag(5),
        },
        5 => ObjectState::Connlimit {
            count: word(1)?,
            inverted: flag(2),
        },
        7 => ObjectState::Timeout {
            family: half(1)?,
            protocol: byte(2)?,
            seconds: Attrs(attrs.find(3)?)
                .filter_map(|(state, seconds)| Some((state, be32(seconds)?)))
                .collect(),
        },
        8 => ObjectState::Secmark(text(attrs.find(1)?)),
        9 => ObjectState::Expectation(Expectation {
            family: half(1)?,
            protocol: byte(2)?,
            dport: half(3)?,
            // The one number here that is in host order.
            timeout: u32_at(attrs.find(4)?, 0)?,
            size: byte(5)?,
        }),
        10 => ObjectState::Synproxy {
            mss: half(1)?,
            wscale: byte(2)?,
            flags: word(3)?,
        },
        _ => return None,
    })
}
