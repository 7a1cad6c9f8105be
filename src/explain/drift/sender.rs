//! Who asks for a Service at a node: its pods, its own programs, and clients outside of the cluster.
//!
//! Addresses that nobody has will do, as long as the node's routes lead back to a pod's device or outside.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::expect::Target;
use super::rule::{Act, Facts, facts};
use super::way::is_own;
use crate::model::Prefix;
use crate::model::names::Names;
use crate::model::netfilter::{Chain, Family, Hook, Table};
use crate::model::netns::NetNs;
use crate::model::route::{RT_TABLE_MAIN, Route, RouteKind};

/// Pods that are tried for one Service: the first that is none of its endpoints asks.
const PODS: usize = 8;
/// Free addresses that are taken of one network of pods.
const OF_NETWORK: u128 = 3;

/// Pods that rules single out and that are asked as: more are only counted.
const SINGLED: usize = 16;

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Sender {
    /// A pod of the node.
    Pod,
    /// A pod of the node that some rule is about.
    One(IpAddr),
    /// A program on the node itself.
    Node,
    /// A client that is no part of the cluster.
    Outside,
}

impl Sender {
    /// `pods of n1`
    pub fn words(self, node: &str) -> String {
        match self {
            Self::Pod => format!("pods on {node}"),
            Self::One(addr) => format!("the pod at {addr} on {node}"),
            Self::Node => format!("programs on {node} itself"),
            Self::Outside => format!("clients outside that come by {node}"),
        }
    }
}

/// Addresses of senders at a node, in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Senders {
    pods: Vec<IpAddr>,
    /// Pods of the node that rules of others than kube-proxy single out.
    pub singled: Vec<IpAddr>,
    /// So many more.
    pub singled_more: usize,
    /// Networks of all nodes' pods.
    networks: Vec<Prefix>,
    /// The node's own addresses; the one that Kubernetes knows it by comes first.
    pub own: Vec<IpAddr>,
    outside: Vec<IpAddr>,
}

impl Senders {
    /// Those of a node.
    pub fn of(names: &Names, node: &str, ns: &NetNs, v6: bool) -> Self {
        let family = |addr: &IpAddr| addr.is_ipv6() == v6;
        let proxy_device = ns.link_named("kube-ipvs0").map(|link| link.index);
        let addrs = ns.addrs.known().into_iter().flatten();
        let held: Vec<IpAddr> = addrs
            .filter(|addr| Some(addr.link) != proxy_device)
            .map(|addr| addr.local)
            .filter(family)
            .collect();
        let known = names.nodes.iter().find(|known| known.name == node);
        let told = known.into_iter().flat_map(|known| &known.addresses);
        let mut own: Vec<IpAddr> = told.copied().filter(|addr| held.contains(addr)).collect();
        own.extend(held.iter().copied().filter(|addr| is_global(*addr)));
        let mut seen = BTreeSet::new();
        own.retain(|addr| seen.insert(*addr));
        let cidrs = |name: Option<&str>| -> Vec<Prefix> {
            let nodes = names.nodes.iter();
            let chosen = nodes.filter(|known| name.is_none_or(|name| known.name == name));
            let cidrs = chosen.flat_map(|known| &known.pod_cidrs).copied();
            cidrs.filter(|cidr| family(&cidr.addr())).collect()
        };
        let ends = names.services.iter().flat_map(|service| &service.endpoints);
        let ends: BTreeSet<IpAddr> = ends.map(|end| end.ip).filter(family).collect();
        let here = names.services.iter().flat_map(|service| &service.endpoints);
        let here: BTreeSet<IpAddr> = here
            .filter(|end| end.node.as_deref() == Some(node) && family(&end.ip))
            .map(|end| end.ip)
            .collect();
        let routes = ns.routes.known().map_or(&[][..], Vec::as_slice);
        let own_cidrs = cidrs(Some(node));
        let pods = pods(routes, &own_cidrs, &held, (&ends, &here));
        let is_here = |addr: &IpAddr| {
            !held.contains(addr)
                && (here.contains(addr) || own_cidrs.iter().any(|cidr| cidr.contains(*addr)))
        };
        let mut singled = singled_out(ns, v6, pods.first().copied());
        singled.retain(is_here);
        let singled_more = singled.len().saturating_sub(SINGLED);
        let outside: [IpAddr; 2] = if v6 {
            [
                [0x2001, 0xdb8, 0xff, 0, 0, 0, 0, 0x77],
                [0x3fff, 0, 0, 0, 0, 0, 0, 0x77],
            ]
            .map(IpAddr::from)
        } else {
            [[203, 0, 113, 77], [198, 51, 100, 177]].map(IpAddr::from)
        };
        let other_nodes = names.nodes.iter().filter(|known| known.name != node);
        let other_nodes = other_nodes.flat_map(|known| known.addresses.iter().copied());
        Self {
            pods,
            singled: singled.into_iter().take(SINGLED).collect(),
            singled_more,
            networks: cidrs(None),
            own,
            outside: outside
                .into_iter()
                .chain(other_nodes.filter(family))
                .collect(),
        }
    }

    /// A pod that is none of these endpoints.
    pub fn pod(&self, ends: &BTreeSet<Target>) -> Option<IpAddr> {
        let mut pods = self.pods.iter().copied();
        pods.find(|pod| ends.iter().all(|(ip, _)| ip != pod))
    }

    /// Clients outside, the likeliest first: documentation's own addresses, then other nodes.
    pub fn outside(&self) -> &[IpAddr] {
        &self.outside
    }

    /// Whether a pod of some node may have the address.
    pub fn is_pod(&self, addr: IpAddr) -> bool {
        self.networks.iter().any(|network| network.contains(addr))
    }

    /// A client that a prefix holds.
    pub fn in_range(&self, range: Prefix) -> Option<IpAddr> {
        let mut known = self.outside.iter().copied();
        if let Some(known) = known.find(|addr| range.contains(*addr)) {
            return Some(known);
        }
        last_of(range, 1).find(|addr| !self.own.contains(addr) && !self.is_pod(*addr))
    }
}

fn is_global(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(addr) => !addr.is_loopback() && !addr.is_link_local(),
        IpAddr::V6(addr) => !addr.is_loopback() && !addr.is_unicast_link_local(),
    }
}

/// A source of each rule that incoming packets meet and that is about some sources and not about `usual`, or about all
/// but some; kube-proxy's own are about endpoints that are led to themselves.
fn singled_out(ns: &NetNs, v6: bool, usual: Option<IpAddr>) -> BTreeSet<IpAddr> {
    let of_family = |table: &&Table| match table.family {
        Family::Ip => !v6,
        Family::Ip6 => v6,
        Family::Inet => true,
        Family::Arp | Family::Netdev | Family::Bridge => false,
    };
    let rulesets = [&ns.nft, &ns.legacy].into_iter();
    let rulesets = rulesets.filter_map(|ruleset| ruleset.known());
    let tables = rulesets.flat_map(|ruleset| &ruleset.tables);
    let mut found = BTreeSet::new();
    for table in tables.filter(of_family) {
        for rule in before_translation(table, v6) {
            let sources = rule.sources.into_iter();
            let others = sources.filter(|prefix| usual.is_none_or(|usual| !prefix.contains(usual)));
            found.extend(others.filter_map(|prefix| last_of(prefix, 1).next()));
        }
    }
    found
}

/// Rules that packets meet as they come in, but for kube-proxy's own.
fn before_translation(table: &Table, v6: bool) -> Vec<Facts<'_>> {
    let base = |chain: &&Chain| {
        chain
            .base
            .as_ref()
            .is_some_and(|base| base.hook == Hook::Prerouting)
    };
    let mut queue: Vec<&Chain> = table.chains.values().filter(base).collect();
    let mut seen: BTreeSet<&str> = queue.iter().map(|chain| chain.name.as_str()).collect();
    let mut met = Vec::new();
    while let Some(chain) = queue.pop() {
        for rule in chain.rules.known().into_iter().flatten() {
            let rule = facts(table, rule, v6);
            if let Some(Act::Jump(name) | Act::Goto(name)) = rule.act
                && !is_own(&table.name, name)
                && seen.insert(name)
            {
                queue.extend(table.chains.get(name));
            }
            if !is_own(&table.name, &chain.name) {
                met.push(rule);
            }
        }
    }
    met
}

/// Addresses that the node's routes lead to on a link, in its network of pods or of pods that it has.
fn pods(
    routes: &[Route],
    cidrs: &[Prefix],
    held: &[IpAddr],
    (ends, here): (&BTreeSet<IpAddr>, &BTreeSet<IpAddr>),
) -> Vec<IpAddr> {
    let on_link = |route: &&Route| {
        let mut hops = route.nexthops.iter();
        route.table == RT_TABLE_MAIN
            && route.kind == RouteKind::Unicast
            && route.dst.len() > 0
            && !route.nexthops.is_empty()
            && hops.all(|hop| hop.via.is_none() && hop.link.is_some() && !hop.dead)
    };
    let mut found: Vec<IpAddr> = Vec::new();
    for route in routes.iter().filter(on_link) {
        let inside = |cidr: &Prefix| {
            cidr.addr().is_ipv6() == route.dst.addr().is_ipv6()
                && cidr.len() <= route.dst.len()
                && cidr.contains(route.dst.addr())
        };
        if cidrs.iter().any(inside) {
            let free = last_of(route.dst, OF_NETWORK);
            found.extend(free.filter(|addr| !ends.contains(addr)));
        }
        found.extend(here.iter().copied().filter(|ip| route.dst.contains(*ip)));
        if found.len() >= PODS {
            break;
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|addr| !held.contains(addr) && seen.insert(*addr));
    found
}

/// The last addresses of a network but the very last, which may be a broadcast's; a single address is its own.
fn last_of(range: Prefix, number: u128) -> impl Iterator<Item = IpAddr> {
    let (first, whole) = match range.addr() {
        IpAddr::V4(addr) => (u128::from(u32::from(addr)), 32),
        IpAddr::V6(addr) => (u128::from(addr), 128u8),
    };
    let free = u32::from(whole.saturating_sub(range.len()));
    let size = 1u128.checked_shl(free).unwrap_or(0);
    let last = first.wrapping_add(size.wrapping_sub(1));
    let few = free < 2;
    (0..number.max(2)).filter_map(move |at| {
        let number = if few {
            let addr = first.checked_add(at)?;
            (addr <= last).then_some(addr)?
        } else {
            last.checked_sub(at.checked_add(1)?)
                .filter(|addr| *addr > first)?
        };
        Some(if whole == 32 {
            IpAddr::from(u32::try_from(number).ok()?.to_be_bytes())
        } else {
            IpAddr::from(number.to_be_bytes())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_addresses_of_a_network_are_its_last_but_one() {
        let last = |text: &str| {
            let range = text.parse().expect("a prefix");
            let found = last_of(range, 2).map(|addr| addr.to_string());
            found.collect::<Vec<_>>()
        };
        assert_eq!(last("10.244.1.0/24"), ["10.244.1.254", "10.244.1.253"]);
        assert_eq!(last("10.244.1.7/32"), ["10.244.1.7"]);
        assert_eq!(last("0.0.0.0/0"), ["255.255.255.254", "255.255.255.253"]);
        assert_eq!(last("fd00::/120"), ["fd00::fe", "fd00::fd"]);
        assert_eq!(last("::/0").len(), 2);
    }
}
