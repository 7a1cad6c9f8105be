//! Netfilter accounting objects, which kube-proxy makes before it writes rules that count into them.
//!
//! Source: kube-proxy, `nfacct.Add()` in pkg/proxy/util/nfacct; uapi/linux/netfilter/nfnetlink_acct.h.

use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

/// `NFNL_SUBSYS_ACCT << 8 | NFNL_MSG_ACCT_NEW`.
const ACCT_NEW: u16 = 7 << 8;
/// `NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE`.
const FLAGS: u16 = 0x0405;
/// `NFACCT_NAME`.
const NAME: u16 = 1;
/// `NFACCT_FLAGS`.
const FLAGS_OF: u16 = 5;
/// `NFACCT_QUOTA`.
const QUOTA: u16 = 6;

/// What an object may count before it matches.
#[derive(Clone, Copy, Debug)]
pub enum Quota {
    /// `NFACCT_F_QUOTA_PKTS`.
    Packets(u64),
    /// `NFACCT_F_QUOTA_BYTES`.
    Bytes(u64),
}

/// Makes the object called `name` in the thread's network namespace unless it is there.
///
/// The answer is false where the kernel has no accounting objects; kube-proxy then does without.
pub fn ensure(name: &str, quota: Option<Quota>) -> Result<bool> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .context("open a netfilter netlink socket")?;
    let socket = socket.as_raw_fd();
    send(socket, &request(name, quota)?, MsgFlags::empty())
        .with_context(|| format!("make accounting object {name}"))?;
    let mut answer = [0; 256];
    let length = recv(socket, &mut answer, MsgFlags::empty())
        .with_context(|| format!("make accounting object {name}"))?;
    // struct nlmsgerr follows the header of 16 bytes; its first member is the negative errno.
    let code = answer
        .get(..length)
        .and_then(|bytes| bytes.get(16..20))
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes)
        .with_context(|| format!("make accounting object {name}: the answer is cut short"))?;
    match Errno::from_raw(-code) {
        _ if code == 0 => Ok(true),
        // It is there already.
        Errno::EBUSY | Errno::EEXIST => Ok(true),
        Errno::EINVAL | Errno::EOPNOTSUPP => Ok(false),
        other => bail!("make accounting object {name}: {other}"),
    }
}

fn request(name: &str, quota: Option<Quota>) -> Result<Vec<u8>> {
    let mut body = vec![0; 4];
    let mut put = |kind: u16, value: &[u8]| -> Result<()> {
        let length = u16::try_from(4 + value.len()).context("measure an attribute")?;
        body.extend(length.to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
        Ok(())
    };
    put(NAME, &[name.as_bytes(), &[0]].concat())?;
    if let Some(quota) = quota {
        let (flags, most) = match quota {
            Quota::Packets(most) => (1_u32, most),
            Quota::Bytes(most) => (2, most),
        };
        put(FLAGS_OF, &flags.to_be_bytes())?;
        put(QUOTA, &most.to_be_bytes())?;
    }
    let length = u32::try_from(16 + body.len()).context("measure a message")?;
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(ACCT_NEW.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    Ok(message)
}
