//! Settings of a namespace that decide about packets. Those of one device are in
//! [`link`](super::link).

use serde::{Deserialize, Serialize};

use super::Section;
use super::link::{Inet6Conf, InetConf};

/// `/proc/sys/net` of one namespace. A file that does not exist is `None`; one that could not be read
/// makes the field [`Section::Missing`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctls {
    /// `net.ipv4.conf.all.*`.
    pub inet_all: Section<InetConf>,
    /// `net.ipv6.conf.all.*`; [`Section::Missing`] where IPv6 is not compiled in.
    pub inet6_all: Section<Inet6Conf>,
    /// `net.bridge.bridge-nf-call-iptables`; `Known(None)`: br_netfilter is not there, so it does nothing.
    pub bridge_nf_call_iptables: Section<Option<bool>>,
    /// `net.bridge.bridge-nf-call-ip6tables`.
    pub bridge_nf_call_ip6tables: Section<Option<bool>>,
    /// `net.bridge.bridge-nf-filter-vlan-tagged`: tagged frames are shown to the IP hooks, too.
    #[serde(default)]
    pub bridge_nf_filter_vlan_tagged: Section<Option<bool>>,
    /// `net.ipv4.ip_default_ttl`.
    pub ip_default_ttl: Section<u8>,
    /// `net.ipv4.ip_nonlocal_bind`.
    pub ip_nonlocal_bind: Section<bool>,
    /// `net.ipv4.ip_forward_use_pmtu`.
    pub ip_forward_use_pmtu: Section<bool>,
    /// `net.ipv4.fib_multipath_hash_policy`: 0 addresses, 1 five-tuple, 2 inner addresses, 3 custom.
    pub fib_multipath_hash_policy: Section<u8>,
    /// `net.ipv6.fib_multipath_hash_policy`.
    pub fib_multipath_hash_policy6: Section<u8>,
    /// `net.ipv4.ip_local_port_range`: first and last port given to sockets that ask for none.
    pub ip_local_port_range: Section<(u16, u16)>,
    /// `net.netfilter.nf_conntrack_max`; `Known(None)`: no connection tracking in this namespace.
    pub nf_conntrack_max: Section<Option<u32>>,
    /// `net.netfilter.nf_conntrack_count`.
    pub nf_conntrack_count: Section<Option<u32>>,
    /// `net.netfilter.nf_conntrack_tcp_be_liberal`.
    pub nf_conntrack_tcp_be_liberal: Section<Option<bool>>,
    /// `net.netfilter.nf_conntrack_tcp_loose`: connections are also begun by packets from their middle.
    #[serde(default)]
    pub nf_conntrack_tcp_loose: Section<Option<bool>>,
    /// `net.netfilter.nf_conntrack_acct`: packets and bytes of new connections are counted.
    #[serde(default)]
    pub nf_conntrack_acct: Section<Option<bool>>,
    /// `net.ipv4.icmp_echo_ignore_all`.
    pub icmp_echo_ignore_all: Section<bool>,
    /// `net.ipv6.icmp.echo_ignore_all`; `Known(None)`: older than 5.0, which always answer.
    #[serde(default)]
    pub icmp6_echo_ignore_all: Section<Option<bool>>,
    /// `net.ipv4.tcp_l3mdev_accept`: sockets that are bound to no device take what comes in by VRFs, too, and so do IPv6's;
    /// this and the two below are `Known(None)` where the kernel has no VRFs.
    #[serde(default)]
    pub tcp_l3mdev_accept: Section<Option<bool>>,
    /// `net.ipv4.udp_l3mdev_accept`.
    #[serde(default)]
    pub udp_l3mdev_accept: Section<Option<bool>>,
    /// `net.ipv4.raw_l3mdev_accept`.
    #[serde(default)]
    pub raw_l3mdev_accept: Section<Option<bool>>,
}
