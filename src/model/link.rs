//! Network devices, as `ip -d link` shows them.
//!
//! Source: RTM_NEWLINK, include/uapi/linux/if_link.h (v6.12).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::packet::GreFields;
use super::tc::Qdisc;
use super::wireguard::Wireguard;
use super::{IfIndex, MacAddr, Section};

/// One network device of one namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Index in its namespace.
    pub index: IfIndex,
    /// Name, 1 to 15 bytes (IFLA_IFNAME).
    pub name: String,
    /// IFF_UP: administratively up.
    pub up: bool,
    /// IFF_LOWER_UP: carrier. A veth has it only while both ends are up.
    pub lower_up: bool,
    /// IFF_LOOPBACK.
    pub loopback: bool,
    /// IFF_NOARP: no neighbour resolution on this device.
    pub noarp: bool,
    /// IFF_POINTOPOINT.
    pub pointopoint: bool,
    /// IFF_PROMISC.
    pub promisc: bool,
    /// How many ask it to take all frames (IFLA_PROMISCUITY): programs, and devices on top with addresses of their own.
    #[serde(default)]
    pub promiscuity: u32,
    /// Link-layer address, where the device has an Ethernet one (IFLA_ADDRESS).
    pub mac: Option<MacAddr>,
    /// Largest network-layer packet in bytes (IFLA_MTU).
    pub mtu: u32,
    /// Kind with its own attributes (IFLA_LINKINFO).
    pub kind: LinkKind,
    /// Bridge, bond, VRF or OVS datapath it is enslaved to (IFLA_MASTER).
    pub master: Option<IfIndex>,
    /// IFLA_LINK: the peer of a veth, the parent of a VLAN, macvlan or ipvlan; an index in the
    /// namespace that [`Link::link_netnsid`] names, or in this one where that is absent. 0 is kept out.
    pub link: Option<IfIndex>,
    /// IFLA_LINK_NETNSID: id, in this namespace's own table of ids, of the namespace of `link`.
    pub link_netnsid: Option<i32>,
    /// Bridge port attributes, where the master is a bridge.
    pub port: Option<BridgePort>,
    /// IFLA_AF_SPEC/AF_INET: effective per-device settings, without the `all` row.
    pub inet: Option<InetConf>,
    /// IFLA_AF_SPEC/AF_INET6: the same for IPv6.
    pub inet6: Option<Inet6Conf>,
    /// An XDP program is attached (IFLA_XDP_ATTACHED not 0): what it does is unknown.
    pub xdp: bool,
    /// tc filters or programs that may redirect, change or drop are attached, by hook and kind
    /// (`ingress bpf cil_from_container`). Empty where none was seen.
    pub tc: Vec<String>,
    /// IFLA_QDISC: name of the root queueing discipline.
    pub qdisc: Option<String>,
    /// Queueing disciplines that may drop a single packet.
    #[serde(default)]
    pub qdiscs: Vec<Qdisc>,
    /// IFLA_GROUP: number that `ip link set group` gave; 0 unless set.
    #[serde(default)]
    pub group: u32,
    /// ARPHRD_* of the device (`ifi_type`): 1 Ethernet, 772 loopback; 0: not known.
    #[serde(default)]
    pub hardware: u16,
    /// Receive and transmit counters since the device was made (IFLA_STATS64).
    pub stats: Option<LinkStats>,
}

impl Link {
    /// An Ethernet device that is up, on its own, with nothing attached to it.
    pub fn new(index: IfIndex, name: impl Into<String>, kind: LinkKind) -> Self {
        Self {
            index,
            name: name.into(),
            up: true,
            lower_up: true,
            loopback: false,
            noarp: false,
            pointopoint: false,
            promisc: false,
            promiscuity: 0,
            mac: None,
            mtu: 1500,
            kind,
            master: None,
            link: None,
            link_netnsid: None,
            port: None,
            inet: None,
            inet6: None,
            xdp: false,
            tc: Vec::new(),
            qdisc: None,
            qdiscs: Vec::new(),
            group: 0,
            hardware: 1, // ARPHRD_ETHER
            stats: None,
        }
    }
}

/// Counters of a device. Absolute values prove nothing: compare two readings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkStats {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Received packets that were dropped.
    pub rx_dropped: u64,
    /// Packets to send that were dropped.
    pub tx_dropped: u64,
}

/// What kind of device it is (IFLA_INFO_KIND).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LinkKind {
    /// No kind: hardware, virtio, loopback.
    Device,
    /// One end of a veth pair.
    Veth,
    /// A bridge.
    Bridge(Bridge),
    /// A VXLAN tunnel endpoint.
    Vxlan(Vxlan),
    /// A macvlan on top of `link`.
    Macvlan(MacvlanMode),
    /// An ipvlan on top of `link`; modes l2, l3, l3s by name.
    Ipvlan(String),
    /// A VLAN on top of `link`; id 1 to 4094.
    Vlan(u16),
    /// A tun or tap device: packets go to a program.
    Tun,
    /// A dummy.
    Dummy,
    /// A VRF and its routing table.
    Vrf(u32),
    /// IP packets in IP packets (`ipip`, `sit`, `gre`).
    IpTunnel(IpTunnel),
    /// A WireGuard interface, and what is sent to whom.
    Wireguard(Section<Wireguard>),
    /// A Geneve tunnel endpoint.
    Geneve(Geneve),
    /// One end of a netkit pair.
    Netkit,
    /// Any other kind, by name.
    Other(String),
}

impl LinkKind {
    /// The kind as `ip -d link` prints it; `device` where the kernel gives none.
    pub fn name(&self) -> &str {
        match self {
            Self::Device => "device",
            Self::Veth => "veth",
            Self::Bridge(_) => "bridge",
            Self::Vxlan(_) => "vxlan",
            Self::Macvlan(_) => "macvlan",
            Self::Ipvlan(_) => "ipvlan",
            Self::Vlan(_) => "vlan",
            Self::Tun => "tun",
            Self::Dummy => "dummy",
            Self::Vrf(_) => "vrf",
            Self::IpTunnel(tunnel) => tunnel.kind.name(),
            Self::Wireguard(_) => "wireguard",
            Self::Geneve(_) => "geneve",
            Self::Netkit => "netkit",
            Self::Other(name) => name,
        }
    }
}

/// Attributes of a bridge (IFLA_BR_*).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// IFLA_BR_VLAN_FILTERING.
    pub vlan_filtering: bool,
    /// IFLA_BR_VLAN_PROTOCOL: EtherType of the tags that it takes for its VLANs.
    #[serde(default)]
    pub vlan_protocol: u16,
    /// VLANs of the bridge itself and of its ports, where it filters.
    #[serde(default)]
    pub vlans: Section<Vec<BridgeVlan>>,
    /// IFLA_BR_NF_CALL_IPTABLES: this bridge's own switch, OR-ed with the sysctl.
    pub nf_call_iptables: bool,
    /// IFLA_BR_NF_CALL_IP6TABLES.
    pub nf_call_ip6tables: bool,
    /// IFLA_BR_STP_STATE not 0.
    pub stp: bool,
    /// IFLA_BR_MCAST_SNOOPING.
    pub mcast_snooping: bool,
    /// IFLA_BR_AGEING_TIME in hundredths of a second.
    pub ageing_time: u32,
}

/// VLANs that a port, or the bridge itself, is a member of, with what they have in common.
///
/// Source: RTM_NEWVLAN, BRIDGE_VLANDB_ENTRY_*, include/uapi/linux/if_bridge.h (v6.12).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeVlan {
    /// The port, or the bridge.
    pub link: IfIndex,
    /// First id.
    pub first: u16,
    /// Last id.
    pub last: u16,
    /// What comes in without a tag is of it (BRIDGE_VLAN_INFO_PVID).
    pub pvid: bool,
    /// What goes out gets no tag (BRIDGE_VLAN_INFO_UNTAGGED).
    pub untagged: bool,
    /// State; only `Forwarding` forwards.
    pub state: PortState,
}

/// Attributes of a bridge port (IFLA_BRPORT_*).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgePort {
    /// STP state; only `Forwarding` forwards.
    pub state: PortState,
    /// IFLA_BRPORT_MODE: a frame may leave by the port it came in.
    pub hairpin: bool,
    /// IFLA_BRPORT_ISOLATED: no traffic to other isolated ports.
    pub isolated: bool,
    /// IFLA_BRPORT_LEARNING.
    pub learning: bool,
    /// IFLA_BRPORT_UNICAST_FLOOD: unknown unicast is sent here.
    pub unicast_flood: bool,
    /// IFLA_BRPORT_BCAST_FLOOD.
    pub bcast_flood: bool,
    /// IFLA_BRPORT_PROXYARP.
    pub proxy_arp: bool,
    /// IFLA_BRPORT_NEIGH_SUPPRESS.
    pub neigh_suppress: bool,
    /// IFLA_BRPORT_LOCKED: only known source addresses may enter.
    pub locked: bool,
    /// IFLA_BRPORT_NO: number of the port on its bridge.
    pub number: Option<u16>,
}

/// State of a bridge port (BR_STATE_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PortState {
    /// 0
    Disabled,
    /// 1
    Listening,
    /// 2
    Learning,
    /// 3
    Forwarding,
    /// 4
    Blocking,
    /// A state this program does not know.
    Other(u8),
}

impl From<u8> for PortState {
    fn from(state: u8) -> Self {
        match state {
            0 => Self::Disabled,
            1 => Self::Listening,
            2 => Self::Learning,
            3 => Self::Forwarding,
            4 => Self::Blocking,
            other => Self::Other(other),
        }
    }
}

/// Attributes of a VXLAN device (IFLA_VXLAN_*).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vxlan {
    /// Network identifier, 24 bits (IFLA_VXLAN_ID).
    pub vni: u32,
    /// Source address of outer packets (IFLA_VXLAN_LOCAL, _LOCAL6).
    pub local: Option<IpAddr>,
    /// Default destination (IFLA_VXLAN_GROUP, _GROUP6): a group or one remote.
    pub group: Option<IpAddr>,
    /// Device that outer packets leave by (IFLA_VXLAN_LINK).
    pub lower: Option<IfIndex>,
    /// UDP destination port (IFLA_VXLAN_PORT).
    pub port: u16,
    /// Learns source addresses (IFLA_VXLAN_LEARNING).
    pub learning: bool,
    /// Outer TTL; 0 means the default, or inherited for multicast (IFLA_VXLAN_TTL).
    pub ttl: u8,
    /// The outer TTL is that of the packet inside (IFLA_VXLAN_TTL_INHERIT).
    #[serde(default)]
    pub ttl_inherit: bool,
    /// Outer TOS; 1: that of the packet inside (IFLA_VXLAN_TOS).
    #[serde(default)]
    pub tos: u8,
    /// Don't fragment, over IPv4: 0 no, 1 yes, 2 as the packet inside (IFLA_VXLAN_DF).
    #[serde(default)]
    pub df: u8,
    /// Settings that are not followed, by name.
    #[serde(default)]
    pub unknown: Vec<String>,
    /// Tunnel parameters come from route metadata, not from here (IFLA_VXLAN_COLLECT_METADATA).
    pub collect_metadata: bool,
}

/// Attributes of a Geneve device with one remote (IFLA_GENEVE_*).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Geneve {
    /// Network identifier, 24 bits.
    pub vni: u32,
    /// Destination of outer packets, and whom such are taken from.
    pub remote: Option<IpAddr>,
    /// UDP destination port.
    pub port: u16,
    /// Outer TTL; 0: the default.
    pub ttl: u8,
    /// The outer TTL is that of the packet inside.
    pub ttl_inherit: bool,
    /// Outer TOS; 1: that of the packet inside.
    pub tos: u8,
    /// Don't fragment: 0 no, 1 yes, 2 as the packet inside.
    pub df: u8,
    /// Settings that are not followed, by name.
    pub unknown: Vec<String>,
}

/// Attributes of a tunnel without Ethernet headers over IPv4 (IFLA_IPTUN_*, IFLA_GRE_*).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpTunnel {
    /// Kind.
    pub kind: IpTunnelKind,
    /// Source of outer packets; `None`: the route's.
    pub local: Option<IpAddr>,
    /// Destination of outer packets; `None`: the next hop of the packet inside.
    pub remote: Option<IpAddr>,
    /// Device that outer packets leave and come in by, where it is bound to one.
    pub lower: Option<IfIndex>,
    /// Outer TTL; 0: that of the packet inside.
    pub ttl: u8,
    /// Outer TOS; bit 0 (1): that of the packet inside.
    pub tos: u8,
    /// Outer packets are not to be fragmented (IFLA_IPTUN_PMTUDISC).
    pub pmtudisc: bool,
    /// A `sit` that carries IPv4, too (IFLA_IPTUN_PROTO 0, `mode any`).
    #[serde(default)]
    pub any: bool,
    /// Fields of GRE that packets have to have that come in.
    #[serde(default)]
    pub input: GreFields,
    /// Fields of GRE that packets get.
    #[serde(default)]
    pub output: GreFields,
    /// Settings that change outer packets or which ones it takes, and that are not followed, by name.
    pub unknown: Vec<String>,
}

/// Kinds of tunnels of IP packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpTunnelKind {
    /// IPv4 in IPv4.
    Ipip,
    /// IPv6 in IPv4.
    Sit,
    /// Either in GRE, in IPv4.
    Gre,
}

impl IpTunnelKind {
    /// As `ip -d link` prints it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ipip => "ipip",
            Self::Sit => "sit",
            Self::Gre => "gre",
        }
    }

    /// IPPROTO_* of outer packets.
    pub fn protocol(self) -> u8 {
        match self {
            Self::Ipip => 4,
            Self::Sit => 41,
            Self::Gre => 47,
        }
    }
}

/// How a macvlan forwards (MACVLAN_MODE_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MacvlanMode {
    /// No traffic between macvlans of one parent.
    Private,
    /// Everything goes out by the parent.
    Vepa,
    /// Macvlans of one parent talk directly; never with the parent itself.
    Bridge,
    /// The parent's own traffic passes through.
    Passthru,
    /// By source address.
    Source,
    /// A mode this program does not know.
    Other(u32),
}

/// Per-device IPv4 settings (`net.ipv4.conf.DEV.*`), as the device holds them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InetConf {
    /// Packets that come in here and are not for this host are forwarded.
    pub forwarding: bool,
    /// 0 off, 1 strict, 2 loose; the larger of `all` and this one counts.
    pub rp_filter: u8,
    /// Own addresses as source are accepted (OR with `all`).
    pub accept_local: bool,
    /// 127.0.0.0/8 may be routed (OR with `all`).
    pub route_localnet: bool,
    /// ARP requests for others are answered when there is a route (OR with `all`).
    pub proxy_arp: bool,
    /// 0 to 8; the larger of `all` and this one counts. 1: only addresses of the receiving device.
    pub arp_ignore: u8,
    /// The larger of `all` and this one counts.
    pub arp_announce: u8,
    /// OR with `all`.
    pub arp_filter: bool,
    /// The mark takes part in the reverse-path lookup (OR with `all`).
    pub src_valid_mark: bool,
    /// Routes through a device without carrier are skipped (OR with `all`).
    pub ignore_routes_with_linkdown: bool,
    /// Who sends here by a longer way than it must is told so (OR with `all`).
    #[serde(default)]
    pub send_redirects: bool,
    /// `disable_policy`: packets that come in here are not checked against XFRM policies (OR with `all`).
    #[serde(default)]
    pub nopolicy: bool,
    /// `disable_xfrm`: packets that leave here are not (OR with `all`).
    #[serde(default)]
    pub noxfrm: bool,
}

/// Per-device IPv6 settings (`net.ipv6.conf.DEV.*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inet6Conf {
    /// IPv6 is off on this device.
    pub disable_ipv6: bool,
    /// Forwarding as this device holds it; `all` decides, this one only with `force_forwarding`.
    pub forwarding: bool,
    /// Neighbour solicitations for others are answered from proxy entries.
    pub proxy_ndp: bool,
    /// 2: router advertisements are taken although forwarding is on.
    pub accept_ra: u8,
    /// Routes through a device without carrier are skipped.
    pub ignore_routes_with_linkdown: bool,
    /// This device forwards even where `all` does not (6.17 and later).
    pub force_forwarding: bool,
    /// Hop limit of packets that this host sends here.
    #[serde(default)]
    pub hop_limit: Option<u8>,
}
