//! Devices, by RTM_GETLINK.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, Inet6DevConf, InetDevConf, InfoBridgePort, InfoData,
    InfoKind, InfoPortData, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage,
    LinkXdp, XdpAttached,
};

use super::error::Result;
use super::link_kind;
use super::netlink::Netlink;
use super::nla;
use super::rtnl::{ByHand, Session};
use crate::model::link::{BridgePort, Inet6Conf, InetConf, Link, LinkKind, LinkStats, PortState};
use crate::model::{IfIndex, MacAddr};

const RTM_GETLINK: u16 = 18;
const IFLA_LINKINFO: u16 = 18;
/// Kind of a device whose IFLA_LINKINFO can't be decoded.
const UNDECODED: &str = "undecoded";

/// All devices of the namespace.
pub fn read(session: &mut Session<'_>) -> Result<Vec<Link>> {
    let by_hand = ByHand {
        kind: RTM_GETLINK,
        body: &[0; 16],
        header: 16,
        take: |message| match message {
            RouteNetlinkMessage::NewLink(message) => Some(message),
            _ => None,
        },
    };
    let dumped = session.dump(
        "list devices",
        |handle| handle.link().get().execute(),
        &by_hand,
    )?;
    Ok(dumped
        .iter()
        .filter_map(|(message, lost)| flatten(message, lost))
        .collect())
}

/// Indices of all devices, by a plain socket.
pub fn indices(socket: &mut Netlink) -> Result<Vec<u32>> {
    socket.dump(
        RTM_GETLINK,
        &[0; 16],
        "list devices",
        Vec::new,
        // ifi_index stands behind family and type.
        |indices, _, body| indices.extend(nla::u32_at(body, 4)),
    )
}

pub(super) fn flatten(message: &LinkMessage, lost: &[u16]) -> Option<Link> {
    let header = &message.header;
    let flag = |flag| header.flags.contains(flag);
    let mut link = Link {
        up: flag(LinkFlags::Up),
        lower_up: flag(LinkFlags::LowerUp),
        loopback: flag(LinkFlags::Loopback),
        noarp: flag(LinkFlags::Noarp),
        pointopoint: flag(LinkFlags::Pointopoint),
        promisc: flag(LinkFlags::Promisc),
        mtu: 0,
        hardware: u16::from(header.link_layer_type),
        ..Link::new(IfIndex::new(header.index)?, String::new(), LinkKind::Device)
    };
    if lost.contains(&IFLA_LINKINFO) {
        link.kind = LinkKind::Other(UNDECODED.to_owned());
    }
    let ethernet = matches!(
        header.link_layer_type,
        LinkLayerType::Ether | LinkLayerType::Loopback
    );
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Address(bytes) if ethernet => {
                link.mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(MacAddr);
            }
            LinkAttribute::Controller(index) => link.master = IfIndex::new(*index),
            LinkAttribute::Link(index) => link.link = IfIndex::new(*index),
            LinkAttribute::LinkNetNsId(id) => link.link_netnsid = Some(*id),
            LinkAttribute::Promiscuity(count) => link.promiscuity = *count,
            LinkAttribute::Group(group) => link.group = *group,
            LinkAttribute::Qdisc(name) => link.qdisc = Some(name.clone()),
            LinkAttribute::LinkInfo(infos) => take_info(&mut link, infos),
            LinkAttribute::AfSpecUnspec(specs) => take_af_spec(&mut link, specs),
            LinkAttribute::Xdp(attributes) => {
                link.xdp = attributes.iter().any(|attribute| {
                    matches!(attribute, LinkXdp::Attached(how) if *how != XdpAttached::None)
                });
            }
            LinkAttribute::Stats64(stats) => {
                link.stats = Some(LinkStats {
                    rx_packets: stats.rx_packets,
                    tx_packets: stats.tx_packets,
                    rx_dropped: stats.rx_dropped,
                    tx_dropped: stats.tx_dropped,
                });
            }
            _ => {}
        }
    }
    Some(link)
}

fn take_info(link: &mut Link, infos: &[LinkInfo]) {
    let mut kind = None::<&InfoKind>;
    let mut data = None::<&InfoData>;
    for info in infos {
        match info {
            LinkInfo::Kind(found) => kind = Some(found),
            LinkInfo::Data(found) => data = Some(found),
            LinkInfo::PortData(InfoPortData::BridgePort(attributes)) => {
                link.port = Some(bridge_port(attributes));
            }
            _ => {}
        }
    }
    if let Some(kind) = kind {
        link.kind = link_kind::kind(kind, data);
    }
}

fn bridge_port(attributes: &[InfoBridgePort]) -> BridgePort {
    let mut port = BridgePort {
        state: PortState::Disabled,
        hairpin: false,
        isolated: false,
        learning: false,
        unicast_flood: false,
        bcast_flood: false,
        proxy_arp: false,
        neigh_suppress: false,
        locked: false,
        number: None,
    };
    for attribute in attributes {
        match attribute {
            InfoBridgePort::State(state) => {
                port.state = PortState::from(u8::from(*state));
            }
            InfoBridgePort::HairpinMode(on) => port.hairpin = *on,
            InfoBridgePort::Isolated(on) => port.isolated = *on,
            InfoBridgePort::Learning(on) => port.learning = *on,
            InfoBridgePort::UnicastFlood(on) => port.unicast_flood = *on,
            InfoBridgePort::BroadcastFlood(on) => port.bcast_flood = *on,
            InfoBridgePort::ProxyARP(on) => port.proxy_arp = *on,
            InfoBridgePort::NeighSupress(on) => port.neigh_suppress = *on,
            InfoBridgePort::Locked(on) => port.locked = *on,
            InfoBridgePort::PortNumber(number) => port.number = Some(*number),
            _ => {}
        }
    }
    port
}

fn take_af_spec(link: &mut Link, specs: &[AfSpecUnspec]) {
    for spec in specs {
        match spec {
            AfSpecUnspec::Inet(attributes) => {
                link.inet = attributes.iter().find_map(|attribute| match attribute {
                    AfSpecInet::DevConf(conf) => Some(inet(conf)),
                    _ => None,
                });
            }
            AfSpecUnspec::Inet6(attributes) => {
                link.inet6 = attributes.iter().find_map(|attribute| match attribute {
                    AfSpecInet6::DevConf(conf) => Some(inet6(conf)),
                    _ => None,
                });
            }
            _ => {}
        }
    }
}

/// Settings with few values; a kernel with larger ones would be another kernel.
fn small(value: i32) -> u8 {
    u8::try_from(value).unwrap_or(u8::MAX)
}

fn inet(conf: &InetDevConf) -> InetConf {
    InetConf {
        forwarding: conf.forwarding != 0,
        rp_filter: small(conf.rp_filter),
        accept_local: conf.accept_local != 0,
        route_localnet: conf.route_localnet != 0,
        proxy_arp: conf.proxy_arp != 0,
        arp_ignore: small(conf.arp_ignore),
        arp_announce: small(conf.arp_announce),
        arp_filter: conf.arpfilter != 0,
        src_valid_mark: conf.src_vmark != 0,
        ignore_routes_with_linkdown: conf.ignore_routes_with_linkdown != 0,
        send_redirects: conf.send_redirects != 0,
        nopolicy: conf.nopolicy != 0,
        noxfrm: conf.noxfrm != 0,
    }
}

fn inet6(conf: &Inet6DevConf) -> Inet6Conf {
    Inet6Conf {
        disable_ipv6: conf.disable_ipv6 != 0,
        forwarding: conf.forwarding != 0,
        proxy_ndp: conf.proxy_ndp != 0,
        accept_ra: small(conf.accept_ra),
        ignore_routes_with_linkdown: conf.ignore_routes_with_linkdown != 0,
        force_forwarding: conf.force_forwarding != 0,
        hop_limit: u8::try_from(conf.hoplimit).ok().filter(|limit| *limit > 0),
    }
}
