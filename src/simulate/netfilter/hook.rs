//! What happens at one hook, and in which order.

use super::HookPoint;
use crate::model::Section;
use crate::model::link::Link;
use crate::model::netfilter::{
    Backend, BaseChain, Chain, ChainKind, Family, Hook, Policy, Ruleset, Table,
};
use crate::model::netns::NetNs;
use crate::model::packet::Packet;
use crate::model::want::Want;
use crate::simulate::{Cx, conntrack, vrf};
use crate::trace::Evidence;
use crate::trace::evidence::ChainRef;

/// NF_IP_PRI_CONNTRACK
const PRI_CONNTRACK: i32 = -200;
/// NF_IP_PRI_NAT_DST
const PRI_NAT_DST: i32 = -100;
/// NF_IP_PRI_NAT_SRC
const PRI_NAT_SRC: i32 = 100;

/// A base chain with its table.
#[derive(Clone, Copy, Debug)]
pub(super) struct BaseRef<'a> {
    pub(super) table: &'a Table,
    pub(super) chain: &'a Chain,
    pub(super) base: &'a BaseChain,
}

impl BaseRef<'_> {
    /// The chain as evidence names it.
    pub(super) fn reference(&self) -> ChainRef {
        ChainRef {
            backend: self.table.backend,
            family: self.table.family,
            table: self.table.name.clone(),
            chain: self.chain.name.clone(),
            hook: self.base.hook,
            priority: self.base.priority,
            kind: self.base.kind,
        }
    }

    /// The chain as evidence, with its policy where that decided.
    pub(super) fn evidence(&self, policy: Option<Policy>) -> Evidence {
        Evidence::Chain {
            chain: self.reference(),
            policy,
            counters: self.base.counters,
        }
    }
}

const ETH_P_IP: u16 = 0x0800;
const ETH_P_ARP: u16 = 0x0806;
const ETH_P_IPV6: u16 = 0x86dd;

/// Something that acts at a hook.
#[derive(Clone, Debug)]
pub(super) enum Actor<'a> {
    /// A base chain that is not a NAT chain.
    Chain(BaseRef<'a>),
    /// Finds or makes the connection.
    Conntrack,
    /// NAT with its chains in their order.
    Nat(Vec<BaseRef<'a>>),
    /// IPVS: an answer of a server.
    IpvsAnswer,
    /// IPVS: a packet for a virtual service.
    IpvsRequest,
    /// Puts a new connection into the table.
    Confirm,
}

/// The namespace, and what acts on a packet at this hook, in order. `Err`: what is missing.
///
/// Of equal priorities the one that was registered last runs first (`nf_hook_entries_grow()`), which
/// is taken from table order and chain handles. NAT is registered with the first NAT chain.
pub(super) fn agenda<'a>(
    cx: &mut Cx<'a>,
    at: &HookPoint<'_>,
    packet: &Packet,
) -> Result<(&'a NetNs, Vec<Actor<'a>>), String> {
    let v6 = packet.src.is_ipv6();
    let arp = packet.ethertype() == ETH_P_ARP;
    let Some(ns) = cx.topology.netns(at.ns) else {
        cx.want_netns(at.ns);
        return Err(format!("namespace {} not read", at.ns));
    };
    let mut chains: Vec<BaseRef<'a>> = Vec::new();
    for (section, name) in [(&ns.legacy, "iptables-legacy"), (&ns.nft, "nf_tables")] {
        match section {
            Section::Known(rules) => {
                let bases = cx.index.bases(rules, || bases(rules)).iter().copied();
                chains.extend(bases.filter(|base| runs_for(base, at, packet.ethertype())));
            }
            Section::NotAsked => {
                cx.want_netns(at.ns);
                return Err(format!("{name} rules of {} not read", at.ns));
            }
            Section::Missing(why) => return Err(format!("{name} rules of {}: {why}", at.ns)),
        }
    }
    want_unread(cx, at, &chains);
    let nat_age = chains
        .iter()
        .position(|chain| chain.base.kind == ChainKind::Nat);
    let device = device(ns, at);
    let here = chains
        .into_iter()
        .enumerate()
        .filter(|(_, chain)| runs_here(chain, at.hook, device));
    let (mut nat, others): (Vec<_>, Vec<_>) =
        here.partition(|(_, chain)| chain.base.kind == ChainKind::Nat);
    let order = |priority: i32, age: usize| (priority, std::cmp::Reverse(age));
    nat.sort_by_key(|(age, chain)| order(chain.base.priority, *age));
    let nat: Vec<_> = nat.into_iter().map(|(_, chain)| chain).collect();
    let mut actors: Vec<_> = others
        .into_iter()
        .map(|(age, chain)| (order(chain.base.priority, age), Actor::Chain(chain)))
        .collect();
    let mut place = |priority: i32, age: usize, actor: Actor<'a>| {
        actors.push((order(priority, age), actor));
    };
    let ip = !at.bridge && !arp && !matches!(at.hook, Hook::Ingress | Hook::Egress);
    // Translated and confirmed at the device behind it, or where it comes back in (`in_vrf_postrouting()`).
    let out = at.devices.oif.and_then(|dev| ns.link(dev));
    let by_vrf = at.hook == Hook::Postrouting && out.is_some_and(vrf::is);
    if ip && !by_vrf && conntrack::is_active(cx, ns, v6) {
        match at.hook {
            Hook::Prerouting | Hook::Output => {
                if let Some(age) = nat_age {
                    place(PRI_NAT_DST, age, Actor::Nat(nat));
                }
                place(PRI_CONNTRACK, usize::MAX, Actor::Conntrack);
            }
            Hook::Postrouting | Hook::Input => {
                if let Some(age) = nat_age {
                    place(PRI_NAT_SRC, age, Actor::Nat(nat));
                }
                place(i32::MAX, 0, Actor::Confirm);
            }
            Hook::Forward | Hook::Ingress | Hook::Egress => {}
        }
    }
    // `ip_vs_ops4`, `ip_vs_ops6`: there as long as there is a service.
    if ip && ns.ipvs != Section::Known(None) {
        let newest = usize::MAX;
        match at.hook {
            Hook::Input => {
                place(PRI_NAT_SRC - 2, newest, Actor::IpvsAnswer);
                place(PRI_NAT_SRC - 1, newest, Actor::IpvsRequest);
            }
            Hook::Output => {
                place(PRI_NAT_DST + 1, newest, Actor::IpvsAnswer);
                place(PRI_NAT_DST + 2, newest, Actor::IpvsRequest);
            }
            Hook::Forward => place(PRI_NAT_SRC, newest, Actor::IpvsAnswer),
            Hook::Prerouting | Hook::Postrouting | Hook::Ingress | Hook::Egress => {}
        }
    }
    actors.sort_by_key(|(order, _)| *order);
    Ok((ns, actors.into_iter().map(|(_, actor)| actor).collect()))
}

/// Base chains of a backend, at all hooks, oldest first as far as that can be told.
fn bases(rules: &Ruleset) -> Vec<BaseRef<'_>> {
    let mut found = Vec::new();
    for table in &rules.tables {
        let mut here: Vec<_> = table
            .chains
            .values()
            .filter_map(|chain| {
                let base = chain.base.as_ref()?;
                Some(BaseRef { table, chain, base })
            })
            .collect();
        if table.backend == Backend::Nft {
            here.sort_by_key(|chain| chain.chain.handle);
        }
        found.extend(here);
    }
    found
}

/// Whether a base chain sees this kind of packet.
fn runs_for(base: &BaseRef<'_>, at: &HookPoint<'_>, ethertype: u16) -> bool {
    !base.table.dormant && family_runs(base.table.family, at, ethertype)
}

/// Wishes for all base chains that were not read, of all hooks at once, where this hook has one: the
/// packet will meet the others too.
fn want_unread(cx: &mut Cx<'_>, at: &HookPoint<'_>, chains: &[BaseRef<'_>]) {
    let unread = |chain: &&BaseRef<'_>| chain.chain.rules.is_not_asked();
    let here = |chain: &BaseRef<'_>| chain.base.hook == at.hook;
    if !chains.iter().filter(unread).any(here) {
        return;
    }
    for chain in chains.iter().filter(unread) {
        let want = Want::Chain {
            netns: at.ns.netns,
            backend: chain.table.backend,
            family: chain.table.family,
            table: chain.table.name.clone(),
            chain: chain.chain.name.clone(),
        };
        cx.want(&at.ns.node, want);
    }
}

/// Device whose ingress or egress hook this is.
fn device<'a>(ns: &'a NetNs, at: &HookPoint<'_>) -> Option<&'a Link> {
    let index = match at.hook {
        Hook::Ingress => at.devices.iif,
        Hook::Egress => at.devices.oif,
        _ => None,
    };
    ns.link(index?)
}

/// A device's name, or with `*` behind it the beginning of names (6.16 and later).
fn stands_for(own: &str, name: &str) -> bool {
    match own.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => own == name,
    }
}

fn runs_here(chain: &BaseRef<'_>, hook: Hook, device: Option<&Link>) -> bool {
    let devices = &chain.base.devices;
    // A chain at devices whose devices are gone stays, and sees nothing.
    let bound = match hook {
        Hook::Ingress | Hook::Egress => {
            device.is_some_and(|link| devices.iter().any(|own| stands_for(own, &link.name)))
        }
        _ => true,
    };
    chain.base.hook == hook && bound
}

fn family_runs(family: Family, at: &HookPoint<'_>, ethertype: u16) -> bool {
    let device_hook = matches!(at.hook, Hook::Ingress | Hook::Egress);
    let ip_hook = !at.bridge && !device_hook;
    match family {
        Family::Netdev => device_hook,
        Family::Bridge => at.bridge && !device_hook,
        // At a device it has an ingress hook only, which passes over what is no IP.
        Family::Inet => !at.bridge && ethertype != ETH_P_ARP,
        Family::Ip => ip_hook && ethertype == ETH_P_IP,
        Family::Ip6 => ip_hook && ethertype == ETH_P_IPV6,
        Family::Arp => ip_hook && ethertype == ETH_P_ARP,
    }
}
