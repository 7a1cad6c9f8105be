//! What happens at one hook, and in which order.

use super::HookPoint;
use crate::model::Section;
use crate::model::netfilter::{
    Backend, BaseChain, Chain, ChainKind, Family, Hook, Policy, Ruleset, Table,
};
use crate::model::netns::NetNs;
use crate::model::want::{Depth, NsTarget, Want};
use crate::simulate::{Cx, conntrack};
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

/// Something that acts at a hook.
#[derive(Clone, Debug)]
pub(super) enum Actor<'a> {
    /// A base chain that is not a NAT chain.
    Chain(BaseRef<'a>),
    /// Finds or makes the connection.
    Conntrack,
    /// NAT with its chains in their order.
    Nat(Vec<BaseRef<'a>>),
    /// Puts a new connection into the table.
    Confirm,
}

/// The namespace, and what acts on a packet at this hook, in order. `Err`: what is missing.
///
/// Chains of equal priority: the one that was registered last runs first
/// (`nf_hook_entries_grow()`), which is taken from table order and chain handles.
pub(super) fn agenda<'a>(
    cx: &mut Cx<'a>,
    at: &HookPoint<'_>,
    v6: bool,
) -> Result<(&'a NetNs, Vec<Actor<'a>>), String> {
    let want = |cx: &mut Cx<'a>| {
        let want = Want::NetNs {
            target: NsTarget::Id(at.ns.netns),
            depth: Depth::Likely,
        };
        cx.want(&at.ns.node, want);
    };
    let Some(ns) = cx.topology.netns(at.ns) else {
        want(cx);
        return Err(format!("namespace {} not read", at.ns));
    };
    let mut chains = Vec::new();
    for (section, name) in [(&ns.legacy, "iptables-legacy"), (&ns.nft, "nf_tables")] {
        match section {
            Section::Known(rules) => chains.extend(hooked(rules, ns, at, v6)),
            Section::NotAsked => {
                want(cx);
                return Err(format!("{name} rules of {} not read", at.ns));
            }
            Section::Missing(why) => return Err(format!("{name} rules of {}: {why}", at.ns)),
        }
    }
    // Newest first, so that the stable sort below leaves it first among equals.
    chains.reverse();
    chains.sort_by_key(|chain| chain.base.priority);
    let (nat, others): (Vec<_>, Vec<_>) = chains
        .into_iter()
        .partition(|chain| chain.base.kind == ChainKind::Nat);
    let mut actors: Vec<(i32, Actor<'a>)> = others
        .into_iter()
        .map(|chain| (chain.base.priority, Actor::Chain(chain)))
        .collect();
    let mut place = |priority: i32, actor: Actor<'a>| {
        let index = actors.partition_point(|(own, _)| *own < priority);
        actors.insert(index, (priority, actor));
    };
    let ip = !at.bridge && !matches!(at.hook, Hook::Ingress | Hook::Egress);
    if ip && conntrack::is_active(ns, v6) {
        let has_nat = conntrack::has_nat(ns, v6);
        match at.hook {
            Hook::Prerouting | Hook::Output => {
                if has_nat {
                    place(PRI_NAT_DST, Actor::Nat(nat));
                }
                place(PRI_CONNTRACK, Actor::Conntrack);
            }
            Hook::Postrouting | Hook::Input => {
                if has_nat {
                    place(PRI_NAT_SRC, Actor::Nat(nat));
                }
                actors.push((i32::MAX, Actor::Confirm));
            }
            Hook::Forward | Hook::Ingress | Hook::Egress => {}
        }
    }
    let order = actors.into_iter().map(|(_, actor)| actor).collect();
    Ok((ns, order))
}

/// Base chains of a backend that this hook runs, oldest first as far as that can be told.
fn hooked<'a>(rules: &'a Ruleset, ns: &NetNs, at: &HookPoint<'_>, v6: bool) -> Vec<BaseRef<'a>> {
    let device = match at.hook {
        Hook::Ingress => at.devices.iif,
        Hook::Egress => at.devices.oif,
        _ => None,
    };
    let device = device.and_then(|index| ns.link(index));
    let mut found = Vec::new();
    for table in &rules.tables {
        if table.dormant || !family_runs(table.family, at, v6) {
            continue;
        }
        let mut here: Vec<_> = table
            .chains
            .values()
            .filter_map(|chain| {
                let base = chain.base.as_ref()?;
                let bound = base.devices.is_empty()
                    || device.is_some_and(|link| base.devices.contains(&link.name));
                (base.hook == at.hook && bound).then_some(BaseRef { table, chain, base })
            })
            .collect();
        if table.backend == Backend::Nft {
            here.sort_by_key(|chain| chain.chain.handle);
        }
        found.extend(here);
    }
    found
}

fn family_runs(family: Family, at: &HookPoint<'_>, v6: bool) -> bool {
    let device_hook = matches!(at.hook, Hook::Ingress | Hook::Egress);
    match family {
        Family::Netdev => device_hook,
        Family::Bridge => at.bridge && !device_hook,
        Family::Inet => !at.bridge,
        Family::Ip => !at.bridge && !device_hook && !v6,
        Family::Ip6 => !at.bridge && !device_hook && v6,
        Family::Arp => false,
    }
}
