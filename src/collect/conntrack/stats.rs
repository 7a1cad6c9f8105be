//! What conntrack counts: IPCTNL_MSG_CT_GET_STATS and IPCTNL_MSG_CT_GET_STATS_CPU.
//!
//! Source: `ctnetlink_ct_stat_cpu_fill_info()`, net/netfilter/nf_conntrack_netlink.c (v6.12).

use super::HEADER;
use crate::collect::error::{Error, Result};
use crate::collect::netlink::Netlink;
use crate::collect::nla::{self, Attrs, Writer};
use crate::model::conntrack::{ConntrackStats, CpuStats};

const GET_STATS_CPU: u16 = 0x0104;
const GET_STATS: u16 = 0x0105;

/// Counts of the socket's namespace.
pub fn read(socket: &mut Netlink) -> Result<ConntrackStats> {
    let request = Writer::new(&[0; HEADER]);
    let operation = "read conntrack's counts";
    let answer = socket
        .get(GET_STATS, request.bytes(), operation)?
        .ok_or_else(|| Error::malformed(operation, "the kernel has none"))?;
    let all = Attrs(answer.get(HEADER..).unwrap_or_default());
    let entries = all.find(1).and_then(nla::be32);
    let cpus = socket.dump(
        GET_STATS_CPU,
        request.bytes(),
        "dump conntrack's counts by CPU",
        Vec::new,
        |cpus, _, payload| cpus.push(cpu(payload)),
    )?;
    Ok(ConntrackStats {
        entries: entries
            .ok_or_else(|| Error::malformed(operation, "it has no number of entries"))?,
        max: all.find(2).and_then(nla::be32),
        cpus,
    })
}

fn cpu(payload: &[u8]) -> CpuStats {
    let attrs = Attrs(payload.get(HEADER..).unwrap_or_default());
    let number = |kind| attrs.find(kind).and_then(nla::be32);
    CpuStats {
        // nfgenmsg.res_id
        cpu: nla::be16_at(payload, 2).unwrap_or_default(),
        found: number(2),
        invalid: number(4),
        insert: number(8),
        insert_failed: number(9),
        drop: number(10),
        early_drop: number(11),
        error: number(12),
        search_restart: number(13),
        clash_resolve: number(14),
        chaintoolong: number(15),
    }
}
