//! What tc may do to packets: filters at the ingress and egress hooks of devices.
//!
//! Only kinds and names are read; what a filter or program decides stays unknown. Source: RTM_GETQDISC,
//! RTM_GETTFILTER, include/uapi/linux/rtnetlink.h and pkt_cls.h.

use std::collections::BTreeMap;

use super::error::Result;
use super::netlink::Netlink;
use super::nla::{self, Attrs, Writer};

const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// `sizeof(struct tcmsg)`
const HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TC_H_INGRESS: u32 = 0xffff_fff1;
/// Parents of filters: TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS or _EGRESS).
const PARENTS: [(&str, u32); 2] = [("ingress", 0xffff_fff2), ("egress", 0xffff_fff3)];

/// Filters by device index, each as `HOOK KIND NAME`.
pub fn read(socket: &mut Netlink) -> Result<BTreeMap<u32, Vec<String>>> {
    let devices = socket.dump(
        RTM_GETQDISC,
        &[0; HEADER],
        "list queueing disciplines",
        Vec::new,
        |devices, kind, body| {
            if kind == RTM_NEWQDISC
                && nla::u32_at(body, 12) == Some(TC_H_INGRESS)
                && let Some(index) = nla::u32_at(body, 4)
            {
                devices.push(index);
            }
        },
    )?;
    let mut found = BTreeMap::new();
    for index in devices {
        let mut filters = Vec::new();
        for (hook, parent) in PARENTS {
            let mut header = [0u8; HEADER];
            header[4..8].copy_from_slice(&index.to_ne_bytes());
            header[12..16].copy_from_slice(&parent.to_ne_bytes());
            let list = socket.dump(
                RTM_GETTFILTER,
                Writer::new(&header).bytes(),
                "list tc filters",
                Vec::new,
                |filters, kind, body| {
                    if kind == RTM_NEWTFILTER {
                        filters.extend(filter(hook, body));
                    }
                },
            )?;
            filters.extend(list);
        }
        filters.dedup();
        if !filters.is_empty() {
            found.insert(index, filters);
        }
    }
    Ok(found)
}

pub(super) fn filter(hook: &str, body: &[u8]) -> Option<String> {
    // A filter's chain is also announced by itself, without a handle and options.
    let handle = nla::u32_at(body, 8)?;
    let attrs = Attrs(body.get(HEADER..)?);
    let kind = nla::text(attrs.find(TCA_KIND)?);
    let options = attrs.find(TCA_OPTIONS);
    if handle == 0 && options.is_none_or(<[u8]>::is_empty) {
        return None;
    }
    let name = (kind == "bpf")
        .then(|| options.and_then(|options| Attrs(options).find(TCA_BPF_NAME)))
        .flatten()
        .map(nla::text);
    Some(match name {
        Some(name) => format!("{hook} {kind} {name}"),
        None => format!("{hook} {kind}"),
    })
}
