//! Ids that a namespace gives to others, by RTM_GETNSID.
//!
//! An id stands in the table of the namespace that is asked; IFLA_LINK_NETNSID of its devices refers to
//! it. Reading links makes the kernel give out ids for peers, so links are read first.

use std::os::fd::AsRawFd;

use super::error::Result;
use super::netlink::Netlink;
use super::netns::NsFile;
use super::nla::{self, Attrs, Writer};
use crate::model::NetNsId;

const RTM_GETNSID: u16 = 90;
/// `sizeof(struct rtgenmsg)`, aligned.
const HEADER: usize = 4;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// Ids that the socket's namespace has for these others. Those without an id are left out.
pub fn read(socket: &mut Netlink, others: &[NsFile]) -> Result<Vec<(i32, NetNsId)>> {
    let mut ids = Vec::new();
    for other in others {
        let mut request = Writer::new(&[0; HEADER]);
        request.put(NETNSA_FD, &other.file().as_raw_fd().to_ne_bytes());
        let answer = socket.get(RTM_GETNSID, request.bytes(), "read namespace ids")?;
        let id = answer
            .as_deref()
            .and_then(|body| nla::u32_at(Attrs(body.get(HEADER..)?).find(NETNSA_NSID)?, 0))
            .map(u32::cast_signed);
        // NETNSA_NSID_NOT_ASSIGNED is -1.
        ids.extend(id.filter(|id| *id >= 0).map(|id| (id, other.id())));
    }
    Ok(ids)
}
