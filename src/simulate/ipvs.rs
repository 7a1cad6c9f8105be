//! IPVS: who takes a packet for a virtual service, and how it and its answers go on.
//!
//! Read first: `ip_vs_ops4`, `ip_vs_in_hook()`, `ip_vs_schedule()`, `ip_vs_sched_persist()`, `ip_vs_leave()`,
//! `ip_vs_out_hook()`, `handle_response()` (net/netfilter/ipvs/ip_vs_core.c), `ip_vs_nat_xmit()` and
//! `ip_vs_nat_send_or_cont()` (ip_vs_xmit.c), `ip_vs_update_conntrack()` (ip_vs_nfct.c), v6.1.
//!
//! Where a server is another host's, the packet is sent anew from inside the hook: route, OUTPUT, POSTROUTING.
//! Where it is this host's, the hook goes on with the rewritten packet.
//!
//! Not followed: tunnels, cache bypass, persistence engines, FTP, related ICMP errors, ESP and AH.

mod request;
mod schedule;
mod send;
mod table;

use std::net::IpAddr;

pub(crate) use self::request::request;
pub(crate) use self::send::{Sent, reroute, send};
use self::table::{Found, setting};
use super::Cx;
use super::netfilter::HookVerdict;
use super::skb::{CtRef, Flows, Skb};
use crate::model::NsKey;
use crate::model::conntrack::Tuple;
use crate::model::ipvs::{Ipvs, IpvsMethod};
use crate::model::netfilter::Hook;
use crate::model::packet::{Packet, SCTP, TCP, UDP};
use crate::trace::{Step, StepKind};

/// FTPPORT
const FTP: u16 = 21;

/// An address with its port; any free one where that is not fixed.
pub(crate) type End = (IpAddr, Option<u16>);

/// A connection of IPVS (`struct ip_vs_conn`) that a packet under way made, or that the kernel had.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Conn {
    /// IPPROTO_*.
    protocol: u8,
    client: End,
    /// What the client asks.
    virt: End,
    server: End,
    method: IpvsMethod,
    /// IP_VS_CONN_F_ONE_PACKET: later packets do not find it.
    one_packet: bool,
}

/// What IPVS does with a packet that comes in.
pub(crate) enum Request {
    /// It is none of its.
    Pass,
    /// It is gone.
    Gone(HookVerdict, Step),
    /// It goes to one of these servers.
    To(Vec<Way>),
}

/// A packet that goes to a server.
pub(crate) struct Way {
    /// Share of packets.
    pub(crate) share: f64,
    /// The packet, rewritten.
    pub(crate) skb: Skb,
    /// Connections.
    pub(crate) flows: Flows,
    /// Decision.
    pub(crate) step: Step,
    /// How it is sent; `None`: the hook goes on.
    pub(crate) sent: Option<Sent>,
}

/// Whether IPVS may act on packets of a protocol.
fn handles(packet: &Packet) -> bool {
    packet.inner.is_none() && matches!(packet.protocol(), TCP | UDP | SCTP)
}

/// An answer gets the address that the client asked (`ip_vs_out_hook()`), at LOCAL_IN, LOCAL_OUT and FORWARD.
/// `Err`: what is missing.
pub(crate) fn answer(
    cx: &mut Cx<'_>,
    (ns, hook): (&NsKey, Hook),
    skb: &mut Skb,
    flows: &mut Flows,
) -> Result<Option<Step>, String> {
    if skb.ipvs || !handles(&skb.packet) {
        return Ok(None);
    }
    let Some(ipvs) = table::of(cx, ns)? else {
        return Ok(None);
    };
    let packet = &skb.packet;
    let (from, to) = ((packet.src, packet.sport()), (packet.dst, packet.dport()));
    let own = flows.ipvs(ns).find(|conn| {
        conn.protocol == packet.protocol()
            && conn.server == from
            && conn.client == to
            && !conn.one_packet
    });
    let conn = match own.cloned() {
        Some(conn) => conn,
        None => match table::connection(cx, ns, ipvs, packet.protocol(), to, from, true)? {
            Some(Found { conn, .. }) => conn,
            None => return Ok(None),
        },
    };
    let before = skb.packet.clone();
    if conn.method == IpvsMethod::Masq {
        skb.packet.src = conn.virt.0;
        skb.packet.set_sport(conn.virt.1);
        if hook != Hook::Input {
            setting(&ipvs.sysctls.snat_reroute, "snat_reroute", ns)?;
        }
    }
    skb.ipvs = true;
    keep_track(ns, ipvs, skb, flows, |entry| {
        (entry.dst, entry.dport) = conn.virt;
    })?;
    let result = format!("answer: source back to {}", words(conn.virt));
    let step = Step::new(StepKind::Ipvs, result);
    Ok(Some(step.changing(&before, &skb.packet)))
}

/// With conntrack, what answers will look like; without, the packet is tracked no more
/// (`ip_vs_update_conntrack()`, `ip_vs_notrack()`).
fn keep_track(
    ns: &NsKey,
    ipvs: &Ipvs,
    skb: &mut Skb,
    flows: &mut Flows,
    alter: impl Fn(&mut Tuple),
) -> Result<(), String> {
    let CtRef::Entry { index, reply, .. } = skb.ct else {
        return Ok(());
    };
    if !setting(&ipvs.sysctls.conntrack, "conntrack", ns)? {
        skb.ct = CtRef::Untracked;
    } else if let Some(flow) = flows.get_mut(ns, index)
        && !flow.confirmed
        && !reply
    {
        alter(&mut flow.entry.reply);
    }
    Ok(())
}

/// An address and port in words.
fn words((addr, port): End) -> String {
    let port = port.map_or_else(|| "any".to_owned(), |port| port.to_string());
    match addr {
        IpAddr::V4(addr) => format!("{addr}:{port}"),
        IpAddr::V6(addr) => format!("[{addr}]:{port}"),
    }
}
