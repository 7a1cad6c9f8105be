//! Kinds of devices with their own attributes (IFLA_INFO_KIND, IFLA_INFO_DATA).

use std::net::IpAddr;

use netlink_packet_core::{DefaultNla, Nla};
use netlink_packet_route::link::{
    BridgeStpState, GreIOFlags, InfoBridge, InfoData, InfoGeneve, InfoGre, InfoIpTunnel,
    InfoIpVlan, InfoKind, InfoMacVlan, InfoVlan, InfoVrf, InfoVxlan, MacVlanMode, VlanProtocol,
};

use crate::model::link::{Bridge, Geneve, IpTunnel, IpTunnelKind, LinkKind, MacvlanMode, Vxlan};
use crate::model::packet::GreFields;
use crate::model::{IfIndex, Section};

/// SIT_ISATAP, include/uapi/linux/if_tunnel.h.
const SIT_ISATAP: u16 = 1;
/// An attribute that the library does not name.
const IFLA_GRE_IGNORE_DF: u16 = 19;

/// The model's kind.
pub fn kind(kind: &InfoKind, data: Option<&InfoData>) -> LinkKind {
    match (kind, data) {
        (InfoKind::Veth, _) => LinkKind::Veth,
        (InfoKind::Tun, _) => LinkKind::Tun,
        (InfoKind::Dummy, _) => LinkKind::Dummy,
        (InfoKind::Wireguard, _) => LinkKind::Wireguard(Section::NotAsked),
        (InfoKind::Geneve, Some(InfoData::Geneve(data))) => LinkKind::Geneve(geneve(data)),
        (InfoKind::Netkit, _) => LinkKind::Netkit,
        (InfoKind::Bridge, Some(InfoData::Bridge(data))) => LinkKind::Bridge(bridge(data)),
        (InfoKind::Vxlan, Some(InfoData::Vxlan(data))) => LinkKind::Vxlan(vxlan(data)),
        (InfoKind::MacVlan, Some(InfoData::MacVlan(data))) => macvlan(data),
        (InfoKind::IpVlan, Some(InfoData::IpVlan(data))) => ipvlan(data),
        (InfoKind::Vlan, Some(InfoData::Vlan(data))) => vlan(data),
        (InfoKind::Vrf, Some(InfoData::Vrf(data))) => vrf(data),
        (InfoKind::IpIp, Some(InfoData::IpTunnel(data))) => ip_tunnel(IpTunnelKind::Ipip, data),
        (InfoKind::SitTun, Some(InfoData::IpTunnel(data))) => ip_tunnel(IpTunnelKind::Sit, data),
        (InfoKind::GreTun, Some(InfoData::GreTun(data))) => gre(data),
        (other, _) => LinkKind::Other(other.to_string()),
    }
}

fn bridge(data: &[InfoBridge]) -> Bridge {
    let mut bridge = Bridge::default();
    for attribute in data {
        match attribute {
            InfoBridge::VlanFiltering(on) => bridge.vlan_filtering = *on,
            InfoBridge::VlanProtocol(protocol) => bridge.vlan_protocol = u16::from(*protocol),
            InfoBridge::NfCallIpTables(on) => bridge.nf_call_iptables = *on,
            InfoBridge::NfCallIp6Tables(on) => bridge.nf_call_ip6tables = *on,
            InfoBridge::StpState(state) => bridge.stp = *state != BridgeStpState::Disabled,
            InfoBridge::MulticastSnooping(on) => bridge.mcast_snooping = *on,
            InfoBridge::AgeingTime(time) => bridge.ageing_time = *time,
            _ => {}
        }
    }
    bridge
}

fn vxlan(data: &[InfoVxlan]) -> Vxlan {
    let mut vxlan = Vxlan::default();
    let mut lost = |what: &str| vxlan.unknown.push(what.to_owned());
    for attribute in data {
        match attribute {
            InfoVxlan::Id(vni) => vxlan.vni = *vni,
            InfoVxlan::Local(ip) => vxlan.local = Some(IpAddr::V4(*ip)),
            InfoVxlan::Local6(ip) => vxlan.local = Some(IpAddr::V6(*ip)),
            InfoVxlan::Group(ip) => vxlan.group = Some(IpAddr::V4(*ip)),
            InfoVxlan::Group6(ip) => vxlan.group = Some(IpAddr::V6(*ip)),
            InfoVxlan::Link(index) => vxlan.lower = IfIndex::new(*index),
            InfoVxlan::Port(port) => vxlan.port = *port,
            InfoVxlan::Learning(on) => vxlan.learning = *on,
            InfoVxlan::Ttl(ttl) => vxlan.ttl = *ttl,
            InfoVxlan::TtlInherit(on) => vxlan.ttl_inherit = *on != 0,
            InfoVxlan::Tos(tos) => vxlan.tos = *tos,
            InfoVxlan::Df(df) => vxlan.df = u8::from(*df),
            InfoVxlan::Gbp => lost("group policies, which carry marks (gbp)"),
            InfoVxlan::Gpe => lost("packets without Ethernet header (gpe)"),
            InfoVxlan::Rsc(true) => lost("short circuits between routers (rsc)"),
            InfoVxlan::CollectMetadata(on) => vxlan.collect_metadata = *on,
            _ => {}
        }
    }
    vxlan
}

fn geneve(data: &[InfoGeneve]) -> Geneve {
    let mut geneve = Geneve::default();
    let mut lost = |what: &str| geneve.unknown.push(what.to_owned());
    for attribute in data {
        match attribute {
            InfoGeneve::Id(vni) => geneve.vni = *vni,
            InfoGeneve::Remote(ip) => geneve.remote = set(IpAddr::V4(*ip)),
            InfoGeneve::Remote6(ip) => geneve.remote = set(IpAddr::V6(*ip)),
            InfoGeneve::Port(port) => geneve.port = *port,
            InfoGeneve::Ttl(ttl) => geneve.ttl = *ttl,
            InfoGeneve::TtlInherit(on) => geneve.ttl_inherit = *on,
            InfoGeneve::Tos(tos) => geneve.tos = *tos,
            InfoGeneve::Df(df) => geneve.df = u8::from(*df),
            InfoGeneve::CollectMetadata => lost("remotes from route metadata (external)"),
            InfoGeneve::InnerProtoInherit => {
                lost("packets without Ethernet header (innerprotoinherit)");
            }
            _ => {}
        }
    }
    geneve
}

fn macvlan(data: &[InfoMacVlan]) -> LinkKind {
    let mode = data.iter().find_map(|attribute| match attribute {
        InfoMacVlan::Mode(mode) => Some(*mode),
        _ => None,
    });
    let Some(mode) = mode else {
        return LinkKind::Other("macvlan".to_owned());
    };
    LinkKind::Macvlan(match mode {
        MacVlanMode::Private => MacvlanMode::Private,
        MacVlanMode::Vepa => MacvlanMode::Vepa,
        MacVlanMode::Bridge => MacvlanMode::Bridge,
        MacVlanMode::Passthrough => MacvlanMode::Passthru,
        MacVlanMode::Source => MacvlanMode::Source,
        other => MacvlanMode::Other(u32::from(other)),
    })
}

fn ipvlan(data: &[InfoIpVlan]) -> LinkKind {
    let mode = data.iter().find_map(|attribute| match attribute {
        InfoIpVlan::Mode(mode) => Some(format!("{mode:?}").to_ascii_lowercase()),
        _ => None,
    });
    mode.map_or_else(|| LinkKind::Other("ipvlan".to_owned()), LinkKind::Ipvlan)
}

fn vlan(data: &[InfoVlan]) -> LinkKind {
    let id = data.iter().find_map(|attribute| match attribute {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    });
    let other = data
        .iter()
        .any(|attribute| matches!(attribute, InfoVlan::Protocol(protocol) if *protocol != VlanProtocol::Ieee8021Q));
    match id {
        Some(id) if !other => LinkKind::Vlan(id),
        _ => LinkKind::Other("vlan of another protocol than 802.1Q".to_owned()),
    }
}

fn vrf(data: &[InfoVrf]) -> LinkKind {
    let table = data.iter().find_map(|attribute| match attribute {
        InfoVrf::TableId(table) => Some(*table),
        _ => None,
    });
    table.map_or_else(|| LinkKind::Other("vrf".to_owned()), LinkKind::Vrf)
}

fn bare(kind: IpTunnelKind) -> IpTunnel {
    IpTunnel {
        kind,
        local: None,
        remote: None,
        lower: None,
        ttl: 0,
        tos: 0,
        pmtudisc: false,
        any: false,
        input: GreFields::default(),
        output: GreFields::default(),
        unknown: Vec::new(),
    }
}

fn set(ip: IpAddr) -> Option<IpAddr> {
    (!ip.is_unspecified()).then_some(ip)
}

fn ip_tunnel(kind: IpTunnelKind, data: &[InfoIpTunnel]) -> LinkKind {
    let mut tunnel = bare(kind);
    let mut lost = |what: &str| tunnel.unknown.push(what.to_owned());
    for attribute in data {
        match attribute {
            InfoIpTunnel::Local(ip) => tunnel.local = set(*ip),
            InfoIpTunnel::Remote(ip) => tunnel.remote = set(*ip),
            InfoIpTunnel::Link(index) => tunnel.lower = IfIndex::new(*index),
            InfoIpTunnel::Ttl(ttl) => tunnel.ttl = *ttl,
            InfoIpTunnel::Tos(tos) => tunnel.tos = *tos,
            InfoIpTunnel::PMtuDisc(on) => tunnel.pmtudisc = *on,
            InfoIpTunnel::CollectMetadata => lost("remotes from route metadata (external)"),
            InfoIpTunnel::FwMark(mark) if *mark != 0 => lost("a mark for outer packets (fwmark)"),
            InfoIpTunnel::EncapType(how) if u16::from(*how) != 0 => {
                lost("another header around outer packets (encap)");
            }
            // 0 is any, which tunl0 is made with: IPv4 goes through as ever, and through sit both.
            InfoIpTunnel::Protocol(protocol) if u8::from(*protocol) == 0 => {
                tunnel.any = kind == IpTunnelKind::Sit;
            }
            InfoIpTunnel::Protocol(protocol) if u8::from(*protocol) != kind.protocol() => {
                lost("another mode than its kind's own");
            }
            InfoIpTunnel::Ipv6RdPrefixLen(len) if *len != 16 && *len != 0 => {
                lost("remotes out of IPv6 addresses (6rd)");
            }
            InfoIpTunnel::Ipv6SitFlags(flags) if *flags & SIT_ISATAP != 0 => lost("ISATAP"),
            _ => {}
        }
    }
    LinkKind::IpTunnel(tunnel)
}

/// Whether an attribute of one byte is not 0.
fn is_set(nla: &DefaultNla) -> bool {
    let mut value = vec![0; nla.value_len()];
    nla.emit_value(&mut value);
    value.iter().any(|byte| *byte != 0)
}

fn gre(data: &[InfoGre]) -> LinkKind {
    let mut tunnel = bare(IpTunnelKind::Gre);
    let (mut keys, mut fields) = ([0; 2], [GreIOFlags::empty(); 2]);
    let mut lost = |what: &str| tunnel.unknown.push(what.to_owned());
    for attribute in data {
        match attribute {
            InfoGre::Local(ip) => tunnel.local = set(IpAddr::V4(*ip)),
            InfoGre::Remote(ip) => tunnel.remote = set(IpAddr::V4(*ip)),
            InfoGre::Link(index) => tunnel.lower = IfIndex::new(*index),
            InfoGre::Ttl(ttl) => tunnel.ttl = *ttl,
            InfoGre::Tos(tos) => tunnel.tos = *tos,
            InfoGre::PathMTUDiscovery(on) => tunnel.pmtudisc = *on,
            InfoGre::CollectMetadata => lost("remotes from route metadata (external)"),
            InfoGre::FwMask(mark) if *mark != 0 => lost("a mark for outer packets (fwmark)"),
            InfoGre::EncapType(how) if u16::from(how) != 0 => {
                lost("another header around outer packets (encap)");
            }
            InfoGre::Other(nla) if nla.kind() == IFLA_GRE_IGNORE_DF && is_set(nla) => {
                lost("outer packets that are cut whatever is inside (ignore-df)");
            }
            InfoGre::IKey(key) => keys[0] = *key,
            InfoGre::OKey(key) => keys[1] = *key,
            InfoGre::IFlags(flags) => fields[0] = *flags,
            InfoGre::OFlags(flags) => fields[1] = *flags,
            _ => {}
        }
    }
    let known = GreIOFlags::Checksum | GreIOFlags::Key | GreIOFlags::Seq;
    if fields.iter().any(|flags| !known.contains(*flags)) {
        lost("fields of GRE that are not known");
    }
    let [input, output] = [0, 1].map(|side| GreFields {
        key: fields[side].contains(GreIOFlags::Key).then_some(keys[side]),
        checksum: fields[side].contains(GreIOFlags::Checksum),
        sequence: fields[side].contains(GreIOFlags::Seq),
    });
    (tunnel.input, tunnel.output) = (input, output);
    LinkKind::IpTunnel(tunnel)
}
