//! XFRM policies, by XFRM_MSG_GETPOLICY. Source: include/uapi/linux/xfrm.h.

use super::error::{Error, Result};
use super::netlink::Netlink;
use super::nla::{self, Attrs};
use crate::model::xfrm::{Xfrm, XfrmDefault, XfrmDir, XfrmPolicy, XfrmSelector};
use crate::model::{IfIndex, Prefix};

const XFRM_MSG_NEWPOLICY: u16 = 19;
const XFRM_MSG_GETPOLICY: u16 = 21;
const XFRM_MSG_GETDEFAULT: u16 = 40;
/// `sizeof(struct xfrm_userpolicy_id)`, more than any header that the kernel expects here.
const REQUEST: usize = 64;
/// `sizeof(struct xfrm_userpolicy_info)`
const INFO: usize = 168;
/// `sizeof(struct xfrm_user_tmpl)`
const TEMPLATE: usize = 64;
const XFRMA_TMPL: u16 = 5;
const XFRMA_POLICY_TYPE: u16 = 16;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;
/// XFRM_USERPOLICY_BLOCK
const DEFAULT_BLOCK: u8 = 1;
/// XFRM_POLICY_BLOCK
const BLOCK: u8 = 1;

/// All policies of both families.
pub fn read(socket: &mut Netlink) -> Result<Xfrm> {
    let operation = "list xfrm policies";
    let policies: Option<Vec<XfrmPolicy>> = socket.dump(
        XFRM_MSG_GETPOLICY,
        &[0; REQUEST],
        operation,
        || Some(Vec::new()),
        |policies, kind, body| {
            if kind == XFRM_MSG_NEWPOLICY {
                match (policies.as_mut(), decode(body)) {
                    (Some(policies), Some(policy)) => policies.push(policy),
                    _ => *policies = None,
                }
            }
        },
    )?;
    let default = match socket.get(XFRM_MSG_GETDEFAULT, &[0; 4], "read the default xfrm policy") {
        Ok(answer) => answer.as_deref().and_then(defaults),
        // Kernels before 5.15 accept.
        Err(error) if error.errno() == Some(libc::EINVAL) => None,
        Err(error) => return Err(error),
    };
    let damaged = || Error::malformed(operation, "a policy can't be decoded");
    Ok(Xfrm {
        policies: policies.ok_or_else(damaged)?,
        default,
    })
}

fn defaults(body: &[u8]) -> Option<XfrmDefault> {
    let block = |at: usize| Some(*body.get(at)? == DEFAULT_BLOCK);
    Some(XfrmDefault {
        block_in: block(0)?,
        block_fwd: block(1)?,
        block_out: block(2)?,
    })
}

pub(super) fn decode(body: &[u8]) -> Option<XfrmPolicy> {
    let attrs = Attrs(body.get(INFO..)?);
    let pair = |bytes: &[u8]| Some((nla::u32_at(bytes, 0)?, nla::u32_at(bytes, 4)?));
    let templates = attrs.find(XFRMA_TMPL).map_or(0, <[u8]>::len) / TEMPLATE;
    Some(XfrmPolicy {
        dir: match *body.get(160)? {
            0 => XfrmDir::In,
            1 => XfrmDir::Out,
            2 => XfrmDir::Fwd,
            other => XfrmDir::Socket(other),
        },
        block: *body.get(161)? == BLOCK,
        selector: selector(body)?,
        priority: nla::u32_at(body, 152)?,
        index: nla::u32_at(body, 156)?,
        mark: match attrs.find(XFRMA_MARK) {
            Some(bytes) => pair(bytes)?,
            None => (0, 0),
        },
        if_id: match attrs.find(XFRMA_IF_ID) {
            Some(bytes) => nla::u32_at(bytes, 0)?,
            None => 0,
        },
        sub: match attrs.find(XFRMA_POLICY_TYPE) {
            Some(bytes) => *bytes.first()? != 0,
            None => false,
        },
        templates: u32::try_from(templates).ok()?,
    })
}

/// `struct xfrm_selector`: 56 bytes.
fn selector(body: &[u8]) -> Option<XfrmSelector> {
    let width = match i32::from(nla::u16_at(body, 40)?) {
        libc::AF_INET => 4,
        // A single socket's policy may leave the family out, and then fits any address.
        libc::AF_INET6 | libc::AF_UNSPEC => 16,
        _ => return None,
    };
    let prefix = |at: usize, len: usize| {
        let addr = nla::ip(body.get(at..at + width)?)?;
        Prefix::new(addr, *body.get(len)?).ok()
    };
    let port = |at: usize| Some((nla::be16_at(body, at)?, nla::be16_at(body, at + 2)?));
    Some(XfrmSelector {
        dst: prefix(0, 42)?,
        src: prefix(16, 43)?,
        dport: port(32)?,
        sport: port(36)?,
        protocol: *body.get(44)?,
        dev: IfIndex::new(nla::u32_at(body, 48)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded() -> Vec<XfrmPolicy> {
        let lines = include_str!("hostile.txt").lines();
        let hex = lines.filter_map(|line| line.strip_prefix("xfrm 19 "));
        let byte = |hex: &str, at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16);
        let bytes = hex.map(|hex| {
            let bytes = (0..hex.len() / 2).map(|at| byte(hex, at).expect("a byte"));
            bytes.collect::<Vec<u8>>()
        });
        bytes.map(|body| decode(&body).expect("a policy")).collect()
    }

    /// ip xfrm policy add src 10.0.0.0/24 dst 10.1.0.0/16 proto tcp dport 80 dir out action block priority 5 mark 1 mask 0xff
    /// ip xfrm policy add src fd00::/64 dst fd01::/64 dir in if_id 9 tmpl src fd00::1 dst fd01::1 proto esp mode tunnel reqid 4
    #[test]
    fn policies_of_both_families() {
        let [templated, block] = recorded().try_into().expect("two policies");
        let prefix = |text: &str| text.parse::<Prefix>().expect("a prefix");
        assert_eq!(
            block,
            XfrmPolicy {
                dir: XfrmDir::Out,
                block: true,
                selector: XfrmSelector {
                    src: prefix("10.0.0.0/24"),
                    dst: prefix("10.1.0.0/16"),
                    protocol: 6,
                    sport: (0, 0),
                    dport: (80, 0xffff),
                    dev: None,
                },
                priority: 5,
                index: block.index,
                mark: (1, 0xff),
                if_id: 0,
                sub: false,
                templates: 0,
            }
        );
        assert_eq!(templated.dir, XfrmDir::In);
        assert_eq!(templated.selector.src, prefix("fd00::/64"));
        assert_eq!((templated.if_id, templated.templates), (9, 1));
        assert!(!templated.block);
    }
}
