//! Netfilter hooks: base chains of all tables, families and backends in priority order, with
//! conntrack and NAT at their places.
//!
//! Read first: [`hook`] for the order of things at one hook, [`machine`] for forks and unknowns,
//! [`chain`] for the rule walk, [`expr`] for nf_tables, [`xt_match`] and [`xt_target`] for x_tables.

mod bits;
mod chain;
mod ct;
mod expr;
mod hashlimit;
mod header;
mod hook;
mod index;
mod ipset;
mod ipset_key;
mod limit;
mod lookup;
mod machine;
mod masquerade;
mod meta;
mod nat;
mod nat_addr;
mod nfacct;
mod queue;
mod recent;
mod registers;
mod reject;
mod reverse;
mod step;
#[cfg(test)]
mod tests;
mod text;
mod text_field;
mod text_iptables;
mod text_nft;
mod text_rare_match;
mod text_rare_target;
mod text_save;
mod text_set;
mod text_statement;
mod text_table;
mod text_target;
mod text_value;
mod text_xt;
mod time;
mod tproxy;
mod want;
mod xt_match;
mod xt_rare_match;
mod xt_rare_target;
mod xt_target;

use super::Cx;
use super::ipvs::Sent;
use super::skb::{Devices, Flows, Skb};
use crate::model::NsKey;
use crate::model::netfilter::{Hook, Rule, Set, SetElem, Table};
use crate::trace::{DropReason, RejectWith, Step};

pub(crate) use bits::{FreePorts, UNPRIVILEGED};
pub(crate) use index::Index;
pub(crate) use text::protocol_name;

/// A rule in the words of `iptables-save` or `nft`, whichever most likely made its table.
pub fn rule_text(table: &Table, rule: &Rule) -> String {
    text::rule(rule, Some(table))
}

/// An element in the words of `nft`.
pub fn element_text(set: &Set, element: &SetElem) -> String {
    text_set::element(set, element)
}

pub use text_save::{iptables_save, is_iptables};
pub use text_table::nft_ruleset;

/// Where and at which hook.
#[derive(Clone, Debug)]
pub(crate) struct HookPoint<'a> {
    /// Namespace.
    pub(crate) ns: &'a NsKey,
    /// Hook.
    pub(crate) hook: Hook,
    /// Run the bridge family's chains rather than those of the packet's IP family.
    pub(crate) bridge: bool,
    /// Devices.
    pub(crate) devices: Devices,
    /// It is a packet whose way goes on from here: what OUTPUT changes of it is looked up again.
    pub(crate) reroutes: bool,
}

/// One way through a hook.
#[derive(Clone, Debug)]
pub(crate) struct HookOutcome {
    /// Share of packets, 0 to 1; those of one hook add up to 1.
    pub(crate) share: f64,
    /// What became of it.
    pub(crate) verdict: HookVerdict,
    /// The packet behind the hook.
    pub(crate) skb: Skb,
    /// Connections behind the hook.
    pub(crate) flows: Flows,
    /// Decisions. Chains that no rule matched in leave one step only where their policy drops.
    pub(crate) steps: Vec<Step>,
}

/// What a hook says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HookVerdict {
    /// Goes on.
    Accept,
    /// Gone.
    Drop(DropReason),
    /// Gone, and the sender is told.
    Reject(RejectWith),
    /// IPVS has taken it and sends it on.
    Ipvs(Sent),
    /// What was changed of it leads nowhere ([`Skb::rerouted`]).
    Unroutable,
    /// Can't be known; what is missing.
    Unknown(String),
}

/// Sends a packet through one hook.
pub(crate) fn run(cx: &mut Cx<'_>, at: &HookPoint<'_>, skb: Skb, flows: Flows) -> Vec<HookOutcome> {
    let unknown = |skb, flows, why| {
        vec![HookOutcome {
            share: 1.0,
            verdict: HookVerdict::Unknown(why),
            skb,
            flows,
            steps: Vec::new(),
        }]
    };
    match hook::agenda(cx, at, &skb.packet) {
        Ok((ns, agenda)) => machine::Eval::new(cx, at, ns, agenda).start(skb, flows),
        Err(why) => unknown(skb, flows, why),
    }
}
