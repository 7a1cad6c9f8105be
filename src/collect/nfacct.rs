//! Counters with names (nfnetlink_acct), by nfnetlink.
//!
//! Source: include/uapi/linux/netfilter/nfnetlink_acct.h; `nfnl_acct_fill_info()`,
//! net/netfilter/nfnetlink_acct.c (v6.12).

use super::error::{Error, Result};
use super::netfilter::nft::request;
use super::netlink::Netlink;
use super::nla::{Attrs, be32, be64, text};
use crate::model::nfacct::{NfAcct, NfAcctQuota};

/// NFNL_SUBSYS_ACCT, NFNL_MSG_ACCT_GET
const GET: u16 = 0x0701;
/// `sizeof(struct nfgenmsg)`
const HEADER: usize = 4;
/// NFACCT_F_QUOTA_PKTS
const QUOTA_PKTS: u32 = 1;
/// NFACCT_F_QUOTA_BYTES
const QUOTA_BYTES: u32 = 2;
/// What is done, for errors.
pub const OPERATION: &str = "list counters of nfnetlink_acct";
/// Most counters that are read.
const MOST: usize = 4096;

/// Reads all of them.
pub fn read(socket: &mut Netlink) -> Result<Vec<NfAcct>> {
    let all = socket.dump(
        GET,
        request(0).bytes(),
        OPERATION,
        Vec::new,
        |all, _, body| {
            if all.len() <= MOST {
                all.push(counter(body));
            }
        },
    )?;
    if all.len() > MOST {
        let why = format!("there are more than {MOST}");
        return Err(Error::malformed(OPERATION, why));
    }
    let all: Option<Vec<_>> = all.into_iter().collect();
    all.ok_or_else(|| Error::malformed(OPERATION, "a counter lacks its name, number or quota"))
}

fn counter(body: &[u8]) -> Option<NfAcct> {
    let attrs = Attrs(body.get(HEADER..)?);
    let number = |kind| attrs.find(kind).and_then(be64);
    // Only one with a quota has flags.
    let flags = attrs.find(5).map_or(Some(0), be32)?;
    let quota = match flags & (QUOTA_PKTS | QUOTA_BYTES) {
        0 => None,
        kind => Some(NfAcctQuota {
            of_bytes: kind == QUOTA_BYTES,
            most: number(6)?,
        }),
    };
    Some(NfAcct {
        name: text(attrs.find(1)?),
        packets: number(2)?,
        bytes: number(3)?,
        quota,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_the_kernel() {
        let body = |quota: Option<(u32, u64)>| {
            let mut message = request(0);
            message.put_text(1, "drops");
            message.put(2, &7_u64.to_be_bytes());
            message.put(3, &420_u64.to_be_bytes());
            if let Some((flags, most)) = quota {
                message.put(5, &flags.to_be_bytes());
                message.put(6, &most.to_be_bytes());
            }
            message.bytes().to_vec()
        };
        let told = |quota| counter(&body(quota)).expect("a counter");
        assert_eq!(
            told(None),
            NfAcct {
                name: "drops".to_owned(),
                packets: 7,
                bytes: 420,
                quota: None
            }
        );
        let quota = |of_bytes, most| Some(NfAcctQuota { of_bytes, most });
        assert_eq!(told(Some((QUOTA_PKTS, 9))).quota, quota(false, 9));
        // NFACCT_F_OVERQUOTA (4) is the kernel's own.
        assert_eq!(told(Some((QUOTA_BYTES | 4, 100))).quota, quota(true, 100));
        assert_eq!(counter(&body(None)[..20]), None);
        assert_eq!(counter(&[]), None);
    }
}
