//! IPVS, as `ipvsadm -Ln` shows it: virtual services, their servers, and connections.
//!
//! Source: include/uapi/linux/ip_vs.h, net/netfilter/ipvs/ip_vs_ctl.c (v6.12).

use std::net::IpAddr;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};

use super::Section;

/// What IPVS holds in a namespace that has any service. A kernel asks it by key, and so is it here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipvs {
    /// Settings.
    pub sysctls: IpvsSysctls,
    /// Services that were asked for; `Known(None)`: there is none such.
    pub services: Vec<(IpvsKey, Section<Option<IpvsService>>)>,
    /// [`Self::services`] are all there are, in the kernel's order.
    pub complete: bool,
    /// Connections that were asked for; `Known(None)`: there is none such.
    pub conns: Vec<(IpvsConnKey, Section<Option<IpvsConn>>)>,
}

/// IPVS as files have it: those before 0.2 list names of services alone, mostly none.
pub(super) fn of_any_file<'de, D>(from: D) -> Result<Section<Option<Ipvs>>, D::Error>
where
    D: Deserializer<'de>,
{
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Now(Box<Section<Option<Ipvs>>>),
        Then(Section<Vec<IgnoredAny>>),
    }
    if !from.is_human_readable() {
        return Section::deserialize(from);
    }
    Ok(match Either::deserialize(from)? {
        Either::Now(now) => *now,
        Either::Then(Section::Known(names)) if names.is_empty() => Section::Known(None),
        Either::Then(Section::Known(_)) => Section::Missing(
            "the file is of a version that kept no more of IPVS than the services' names"
                .to_owned(),
        ),
        Either::Then(Section::Missing(why)) => Section::Missing(why),
        Either::Then(Section::NotAsked) => Section::NotAsked,
    })
}

/// By what a service is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum IpvsKey {
    /// IPPROTO_*, address and port; port 0 takes packets to all of them.
    Address(u8, IpAddr, u16),
    /// Mark of packets of IPv6 (or of IPv4).
    Fwmark(u32, bool),
}

impl IpvsKey {
    /// Whether it is of IPv6.
    pub fn is_ipv6(&self) -> bool {
        match self {
            Self::Address(_, addr, _) => addr.is_ipv6(),
            Self::Fwmark(_, v6) => *v6,
        }
    }
}

/// A virtual service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsService {
    /// By what it is found.
    pub key: IpvsKey,
    /// Name of its scheduler (`rr`), `none` where it has none.
    pub scheduler: String,
    /// IP_VS_SVC_F_*.
    pub flags: u32,
    /// Seconds for which a client keeps its server, where the service is persistent.
    pub timeout: u32,
    /// Bits of a client's address that count for that.
    pub netmask: u8,
    /// Name of its persistence engine.
    pub engine: Option<String>,
    /// Servers, in the order in which the scheduler has them.
    pub servers: Vec<IpvsServer>,
}

impl IpvsService {
    /// IP_VS_SVC_F_PERSISTENT: a client keeps its server.
    pub fn persistent(&self) -> bool {
        self.flags & 1 != 0
    }

    /// IP_VS_SVC_F_ONEPACKET: each datagram is scheduled anew.
    pub fn one_packet(&self) -> bool {
        self.flags & 4 != 0
    }
}

/// A server of a service (its "destination").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsServer {
    /// Address.
    pub addr: IpAddr,
    /// Port; 0 keeps the one that was asked for.
    pub port: u16,
    /// How packets get there.
    pub method: IpvsMethod,
    /// Weight; 0 gets no new connections.
    pub weight: i32,
    /// Connections from which on it gets no new ones; 0: no bound.
    pub upper: u32,
    /// Connections below which it gets new ones again.
    pub lower: u32,
    /// Active connections.
    pub active: u32,
    /// Other connections.
    pub inactive: u32,
    /// Templates of persistent clients.
    pub persistent: u32,
    /// IP_VS_CONN_F_TUNNEL_TYPE_*: 0 IPIP, 1 GUE, 2 GRE.
    pub tunnel: u8,
}

/// IP_VS_CONN_F_FWD_MASK.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpvsMethod {
    /// Destination and port are rewritten.
    Masq,
    /// Handed to this host as it is.
    Local,
    /// Put into a tunnel packet.
    Tunnel,
    /// Sent to the server's link-layer address as it is.
    Direct,
    /// Sent to its own destination.
    Bypass,
    /// Another, by number.
    Other(u32),
}

/// By what a connection is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct IpvsConnKey {
    /// IPPROTO_*; 0: a template of a service that goes by mark.
    pub protocol: u8,
    /// Address and port of the client; port 0: a template.
    pub client: (IpAddr, u16),
    /// Address and port that the client asks; of an answer, those of the server that sends it.
    pub other: (IpAddr, u16),
    /// The packet comes from the server.
    pub answer: bool,
}

/// A connection, or a template: what a client's next one will be like.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsConn {
    /// IPPROTO_*; 0 as in [`IpvsConnKey`].
    pub protocol: u8,
    /// Client.
    pub client: (IpAddr, u16),
    /// What the client asks.
    pub virt: (IpAddr, u16),
    /// Server.
    pub server: (IpAddr, u16),
    /// State (`ESTABLISHED`).
    pub state: String,
    /// Seconds until it is forgotten.
    pub expires: u32,
}

impl IpvsConn {
    /// Whether this is what a key finds.
    pub fn is(&self, key: &IpvsConnKey) -> bool {
        let other = if key.answer { self.server } else { self.virt };
        self.protocol == key.protocol && self.client == key.client && other == key.other
    }
}

/// `net.ipv4.vs.*` of a namespace, those that decide about packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpvsSysctls {
    /// `conntrack`: connections stay in the conntrack table, so that rules can ask for them.
    pub conntrack: Section<bool>,
    /// `snat_reroute`: answers are routed anew.
    pub snat_reroute: Section<bool>,
    /// `expire_nodest_conn`: connections to servers that are gone end at once.
    pub expire_nodest_conn: Section<bool>,
    /// `expire_quiescent_template`: templates of servers of weight 0 count no more.
    pub expire_quiescent_template: Section<bool>,
    /// `conn_reuse_mode`: bit 0: a new connection from the port of a closed one is scheduled anew.
    pub conn_reuse_mode: Section<u32>,
    /// `sloppy_tcp`: any packet of TCP opens a connection.
    pub sloppy_tcp: Section<bool>,
    /// `backup_only`: nothing is scheduled here.
    pub backup_only: Section<bool>,
    /// `cache_bypass`: packets for which there is no server go on to their own destination.
    pub cache_bypass: Section<bool>,
    /// `drop_packet`: under memory pressure (or 3: always) new connections are dropped.
    pub drop_packet: Section<u32>,
}
