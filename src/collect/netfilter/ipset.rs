//! Names of ipsets, which the `set` match refers to by index.
//!
//! Source: include/uapi/linux/netfilter/ipset/ip_set.h, protocol 7.

use std::collections::BTreeMap;

use super::nft::request;
use crate::collect::error::Result;
use crate::collect::netlink::Netlink;
use crate::collect::nla::{Attrs, text};
use crate::model::netfilter::{Chain, Expr};
use crate::model::xtables::XtMatch;

const GET_BYINDEX: u16 = 0x060f;
const HEADER: usize = 4;
const PROTOCOL: u8 = 7;
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_INDEX: u16 = 11;
/// NLA_F_NET_BYTEORDER
const NET_BYTEORDER: u16 = 0x4000;

/// Name of the set with this index.
fn name(socket: &mut Netlink, index: u16) -> Result<Option<String>> {
    let mut message = request(0);
    message
        .put(ATTR_PROTOCOL, &[PROTOCOL])
        .put(ATTR_INDEX | NET_BYTEORDER, &index.to_be_bytes());
    let operation = format!("read the name of ipset {index}");
    let answer = socket.get(GET_BYINDEX, message.bytes(), &operation)?;
    Ok(answer.as_deref().and_then(|body| {
        let name = Attrs(body.get(HEADER..)?).find(ATTR_SETNAME)?;
        Some(text(name))
    }))
}

/// Fills in the names of all sets that rules of these chains refer to. A name that can't be had stays
/// unknown.
pub fn fill_names<'a>(socket: &mut Netlink, chains: impl Iterator<Item = &'a mut Chain>) {
    let mut names: BTreeMap<u16, Option<String>> = BTreeMap::new();
    let rules = chains.filter_map(|chain| chain.rules.known_mut()).flatten();
    for expr in rules.flat_map(|rule| rule.exprs.iter_mut()) {
        let Expr::Match(XtMatch::Set {
            index, name: known, ..
        }) = expr
        else {
            continue;
        };
        let found = names
            .entry(*index)
            .or_insert_with(|| name(socket, *index).unwrap_or_default());
        known.clone_from(found);
    }
}
