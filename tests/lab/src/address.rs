//! The addressing plan: which address every node, bridge, tunnel end and pod has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::names;
use crate::spec::PodSpec;

/// Address family of a packet or a rule set.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// IPv4, then IPv6.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// `ip` option that selects the family.
    pub fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }

    /// nftables word of the family, also that of its addresses in expressions.
    pub fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// Prefix length of one address, in bits.
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }

    /// Name of flannel's VXLAN device.
    pub fn vxlan(self) -> &'static str {
        match self {
            Self::V4 => "flannel.1",
            Self::V6 => "flannel-v6.1",
        }
    }
}

/// Decimal digits of `n`, read as hexadecimal: 12 becomes `::12` in an IPv6 address.
fn same_digits(n: u8) -> u16 {
    let n = u16::from(n);
    (n / 100) * 256 + (n / 10 % 10) * 16 + n % 10
}

/// Addresses of one node, by its number from 1.
#[derive(Clone, Copy, Debug)]
pub struct NodePlan(pub usize);

impl NodePlan {
    fn number(self) -> u8 {
        // `Spec::check` limits nodes to 4.
        u8::try_from(self.0).unwrap_or(u8::MAX)
    }

    /// Node name.
    pub fn name(self) -> String {
        format!("node-{}", self.0)
    }

    /// Address on the underlay: 10.88.0.1N or fd00:88::1N.
    pub fn node_ip(self, family: Family) -> IpAddr {
        let last = 10 + self.number();
        match family {
            Family::V4 => Ipv4Addr::new(10, 88, 0, last).into(),
            Family::V6 => Ipv6Addr::new(0xfd00, 0x88, 0, 0, 0, 0, 0, same_digits(last)).into(),
        }
    }

    /// Address `host` of the node's pod network.
    pub fn pod_ip(self, family: Family, host: u8) -> IpAddr {
        let n = self.number();
        match family {
            Family::V4 => Ipv4Addr::new(10, 244, n, host).into(),
            Family::V6 => Ipv6Addr::new(
                0xfd00,
                0x10,
                0x244,
                u16::from(n),
                0,
                0,
                0,
                same_digits(host),
            )
            .into(),
        }
    }

    /// The node's pod network.
    pub fn pod_cidr(self, family: Family) -> String {
        format!("{}/{}", self.pod_ip(family, 0), Self::pod_prefix(family))
    }

    /// Prefix length of a node's pod network, in bits.
    pub fn pod_prefix(family: Family) -> u8 {
        match family {
            Family::V4 => 24,
            Family::V6 => 64,
        }
    }

    /// Whether `ip` lies in the node's pod network.
    pub fn has_pod_ip(self, ip: IpAddr) -> bool {
        match (ip, self.pod_ip(Family::of(ip), 0)) {
            (IpAddr::V4(ip), IpAddr::V4(net)) => ip.octets().starts_with(&net.octets()[..3]),
            (IpAddr::V6(ip), IpAddr::V6(net)) => ip.octets().starts_with(&net.octets()[..8]),
            _ => false,
        }
    }

    /// MAC address of the node's VXLAN device in laboratory `lab`.
    pub fn vtep_mac(self, lab: &str, family: Family) -> String {
        names::mac(&format!("{lab}/{}/{}", self.name(), family.vxlan()))
    }
}

/// Addresses of a pod, IPv4 first.
pub fn pod_ips(pod: &PodSpec) -> Vec<IpAddr> {
    let plan = NodePlan(pod.node);
    Family::BOTH
        .iter()
        .map(|family| {
            if pod.host_network {
                plan.node_ip(*family)
            } else {
                plan.pod_ip(*family, pod.host)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_same_digits_in_both_families() {
        let plan = NodePlan(2);
        assert_eq!(plan.node_ip(Family::V4).to_string(), "10.88.0.12");
        assert_eq!(plan.node_ip(Family::V6).to_string(), "fd00:88::12");
        assert_eq!(
            plan.pod_ip(Family::V6, 112).to_string(),
            "fd00:10:244:2::112"
        );
        assert!(plan.has_pod_ip(plan.pod_ip(Family::V4, 9)));
        assert!(!plan.has_pod_ip(NodePlan(1).pod_ip(Family::V6, 9)));
        assert_eq!(plan.pod_cidr(Family::V6), "fd00:10:244:2::/64");
    }
}
