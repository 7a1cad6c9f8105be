//! What IPVS holds, asked by key as the kernel does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Conn, End, FTP};
use crate::model::ipvs::{
    Ipvs, IpvsConn, IpvsConnKey, IpvsKey, IpvsMethod, IpvsServer, IpvsService,
};
use crate::model::packet::TCP;
use crate::model::want::Want;
use crate::model::{NsKey, Section};
use crate::simulate::Cx;
use crate::simulate::netfilter::protocol_name;
use crate::simulate::skb::Skb;

/// IPVS of a namespace; `None`: it does nothing there.
pub(super) fn of<'t>(cx: &mut Cx<'t>, ns: &NsKey) -> Result<Option<&'t Ipvs>, String> {
    let topology = cx.topology;
    match topology.netns(ns).map(|netns| &netns.ipvs) {
        Some(Section::Known(ipvs)) => Ok(ipvs.as_ref()),
        Some(Section::Missing(why)) => Err(format!("IPVS of {ns} can't be read: {why}")),
        Some(Section::NotAsked) | None => {
            cx.want_netns(ns);
            Err(format!("IPVS of {ns} was not read"))
        }
    }
}

/// A setting. `Err`: it was not read.
pub(super) fn setting(section: &Section<bool>, name: &str, ns: &NsKey) -> Result<bool, String> {
    let unread = || format!("net.ipv4.vs.{name} of {ns} was not read");
    section.known().copied().ok_or_else(unread)
}

/// The same for a number.
pub(super) fn number(section: &Section<u32>, name: &str, ns: &NsKey) -> Result<u32, String> {
    let unread = || format!("net.ipv4.vs.{name} of {ns} was not read");
    section.known().copied().ok_or_else(unread)
}

/// Services in words: `the IPVS service tcp 10.96.0.10:53`.
pub(super) fn name(key: &IpvsKey) -> String {
    match key {
        IpvsKey::Address(protocol, addr, port) => {
            let (protocol, end) = (protocol_name(*protocol), super::words((*addr, Some(*port))));
            format!("the IPVS service {protocol} {end}")
        }
        IpvsKey::Fwmark(mark, _) => format!("the IPVS service of mark {mark:#x}"),
    }
}

/// A service of this very key; asked for where that was not read.
fn by_key<'t>(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    ipvs: &'t Ipvs,
    key: IpvsKey,
) -> Result<Option<&'t IpvsService>, String> {
    let found = ipvs.services.iter().find(|(own, _)| *own == key);
    match found.map(|(_, service)| service) {
        Some(Section::Known(service)) => Ok(service.as_ref()),
        Some(Section::Missing(why)) => Err(format!("{} can't be read: {why}", name(&key))),
        None if ipvs.complete => Ok(None),
        Some(Section::NotAsked) | None => {
            let netns = ns.netns;
            cx.want(&ns.node, Want::IpvsService { netns, key });
            Err(format!("{} of {ns} was not read", name(&key)))
        }
    }
}

/// The service that takes a packet (`ip_vs_service_find()`).
pub(super) fn service<'t>(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    ipvs: &'t Ipvs,
    skb: &Skb,
    dport: u16,
) -> Result<Option<&'t IpvsService>, String> {
    let (protocol, dst) = (skb.packet.protocol(), skb.packet.dst);
    let at = |port| IpvsKey::Address(protocol, dst, port);
    let mut keys = Vec::new();
    match skb.mark {
        Some(0) => {}
        Some(mark) => keys.push(IpvsKey::Fwmark(mark, dst.is_ipv6())),
        None => {
            return Err(format!(
                "the mark of the packet is not known, and IPVS of {ns} may go by it"
            ));
        }
    }
    keys.push(at(dport));
    if dport != FTP && protocol == TCP {
        keys.push(at(FTP));
    }
    keys.push(at(0));
    // All that are not known are asked for at once.
    let found: Vec<_> = keys
        .into_iter()
        .map(|key| (key, by_key(cx, ns, ipvs, key)))
        .collect();
    for (key, service) in found {
        match service? {
            // It would be taken for one of its data connections where its port is no privileged one.
            Some(_) if key == at(FTP) && dport != FTP => {
                return Err(format!(
                    "{} is one of FTP, whose data connections are not followed",
                    name(&key)
                ));
            }
            Some(service) => return Ok(Some(service)),
            None => {}
        }
    }
    Ok(None)
}

/// A connection or template that the kernel has.
pub(super) fn in_kernel<'t>(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    ipvs: &'t Ipvs,
    key: &IpvsConnKey,
) -> Result<Option<&'t IpvsConn>, String> {
    let found = ipvs.conns.iter().find(|(own, _)| own == key);
    match found.map(|(_, conn)| conn) {
        Some(Section::Known(conn)) => Ok(conn.as_ref()),
        Some(Section::Missing(why)) => Err(format!("IPVS connections of {ns}: {why}")),
        Some(Section::NotAsked) | None => {
            let (netns, key) = (ns.netns, *key);
            cx.want(&ns.node, Want::IpvsConn { netns, key });
            Err(format!("IPVS connections of {ns} were not read"))
        }
    }
}

/// A connection that the kernel has.
pub(super) struct Found {
    pub(super) conn: Conn,
    /// State, in the kernel's word.
    pub(super) state: String,
    /// Its server, unless that is gone.
    pub(super) server: Option<IpvsServer>,
}

/// The connection of a packet, where the kernel can have one: a flow from any free port is a new one.
pub(super) fn connection(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    ipvs: &Ipvs,
    protocol: u8,
    client: End,
    other: End,
    answer: bool,
) -> Result<Option<Found>, String> {
    let (Some(port), Some(other_port)) = (client.1, other.1) else {
        return Ok(None);
    };
    let key = IpvsConnKey {
        protocol,
        client: (client.0, port),
        other: (other.0, other_port),
        answer,
    };
    let Some(conn) = in_kernel(cx, ns, ipvs, &key)? else {
        return Ok(None);
    };
    // The file does not tell how its packets get there: its server does, as long as that is one.
    let service = by_key(
        cx,
        ns,
        ipvs,
        IpvsKey::Address(protocol, conn.virt.0, conn.virt.1),
    )?;
    let Some(service) = service else {
        return Err(format!(
            "the IPVS connection of {} belongs to no service of its address: where its packets go is not known",
            super::words((conn.client.0, Some(conn.client.1)))
        ));
    };
    let same = |server: &&IpvsServer| {
        server.addr == conn.server.0 && (server.port == conn.server.1 || server.port == 0)
    };
    let server = service.servers.iter().find(same).copied();
    let end = |(addr, port): (IpAddr, u16)| (addr, Some(port));
    Ok(Some(Found {
        conn: Conn {
            protocol,
            client: end(conn.client),
            virt: end(conn.virt),
            server: end(conn.server),
            method: server.map_or(IpvsMethod::Masq, |server| server.method),
            one_packet: false,
        },
        state: conn.state.clone(),
        server,
    }))
}

/// The address by which templates name a mark (`ip_vs_sched_persist()`).
pub(super) fn mark_address(mark: u32, v6: bool) -> IpAddr {
    if v6 {
        let high = u128::from(mark) << 96;
        IpAddr::V6(Ipv6Addr::from(high))
    } else {
        IpAddr::V4(Ipv4Addr::from(mark))
    }
}

/// The network of a client.
pub(super) fn masked(addr: IpAddr, bits: u8) -> IpAddr {
    let bits = u32::from(bits);
    match addr {
        IpAddr::V4(v4) => {
            let mask = u32::MAX
                .checked_shl(32_u32.saturating_sub(bits))
                .unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask))
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX
                .checked_shl(128_u32.saturating_sub(bits))
                .unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask))
        }
    }
}
