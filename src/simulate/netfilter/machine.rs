//! One packet's way through a hook: forks, and conditions that can't be evaluated.
//!
//! A condition that is unknown is tried both ways to the end of the hook. Where both ways end alike
//! that is the answer, with marks unknown where only these differ; else the outcome is unknown and
//! names the rule.

use super::hook::{Actor, BaseRef};
use super::index::Shown;
use super::registers::Registers;
use super::{HookOutcome, HookPoint, HookVerdict, chain, nat};
use crate::model::netfilter::{Chain, ChainKind, Hook, Rule};
use crate::model::netns::NetNs;
use crate::simulate::skb::{CtRef, Flows, Skb};
use crate::simulate::{Cx, conntrack, ipvs, reroute};
use crate::trace::{DropReason, Evidence, FieldChange, Step, StepKind};

/// Conditions that may be tried both ways at one hook.
const MAX_DOUBTS: usize = 256;
/// Forks within forks: bounds the stack that evaluation takes.
const MAX_DEPTH: usize = 96;

/// Evaluation of one hook.
pub(super) struct Eval<'c, 'a> {
    pub(super) cx: &'c mut Cx<'a>,
    pub(super) at: &'c HookPoint<'c>,
    pub(super) ns: &'a NetNs,
    agenda: Vec<Actor<'a>>,
    rules_left: usize,
    doubts_left: usize,
    branches_left: usize,
    depth: usize,
}

/// One way under evaluation. A fork takes a copy.
#[derive(Clone, Debug)]
pub(super) struct Vm<'a> {
    pub(super) share: f64,
    pub(super) skb: Skb,
    pub(super) flows: Flows,
    pub(super) steps: Vec<Step>,
    /// Position in the agenda.
    pub(super) actor: usize,
    /// The actor that began last, and the packet as it met that.
    begun: (usize, reroute::State),
    /// Position among the chains of a NAT actor.
    pub(super) nat_chain: usize,
    /// Chain that is being walked.
    pub(super) walk: Option<Walk<'a>>,
    /// IPVS has taken the packet.
    pub(super) sent: Option<ipvs::Sent>,
}

/// A walk through one base chain.
#[derive(Clone, Debug)]
pub(super) struct Walk<'a> {
    pub(super) base: BaseRef<'a>,
    /// Chains, the base chain first. Never empty while it is walked.
    pub(super) frames: Vec<Frame<'a>>,
    /// Next expression of the current rule.
    pub(super) expr: usize,
    pub(super) regs: Registers,
    /// Set elements that the current rule found.
    pub(super) elements: Vec<Evidence>,
    /// What sets said where they made a rule not match.
    pub(super) misses: Vec<Evidence>,
    /// What rules of this chain did so far.
    pub(super) notes: Vec<Note>,
    /// What was taken to be so on the way.
    pub(super) assumed: Vec<Evidence>,
    /// Rules in words.
    pub(super) shown: Shown,
}

/// A chain under way, and the rules by which it was entered.
#[derive(Clone, Debug)]
pub(super) struct Frame<'a> {
    pub(super) chain: &'a Chain,
    pub(super) rule: usize,
    pub(super) via: Vec<Via<'a>>,
}

/// A rule that led on, with the set elements that it found.
#[derive(Clone, Debug)]
pub(super) struct Via<'a> {
    pub(super) chain: &'a Chain,
    pub(super) rule: &'a Rule,
    pub(super) elements: Vec<Evidence>,
}

/// Something that a rule did.
#[derive(Clone, Debug)]
pub(super) struct Note {
    pub(super) result: String,
    pub(super) evidence: Vec<Evidence>,
    pub(super) changes: Vec<FieldChange>,
}

/// How evaluation goes on.
pub(super) enum Next<'a> {
    /// With the same way.
    Go,
    /// The hook is done.
    End(HookVerdict),
    /// The condition is unknown: the way given is the one where it holds.
    Doubt(String, Box<Vm<'a>>),
    /// A share takes the way given.
    Chance(f64, Box<Vm<'a>>),
    /// These ways instead.
    Fork(Vec<Vm<'a>>),
    /// What the rule does is unknown. The way is walked on only to see what else would be wanted.
    Blind(String),
}

impl<'c, 'a> Eval<'c, 'a> {
    pub(super) fn new(
        cx: &'c mut Cx<'a>,
        at: &'c HookPoint<'c>,
        ns: &'a NetNs,
        agenda: Vec<Actor<'a>>,
    ) -> Self {
        let limits = cx.limits;
        Self {
            cx,
            at,
            ns,
            agenda,
            rules_left: limits.rules,
            doubts_left: MAX_DOUBTS,
            branches_left: limits.branches,
            depth: 0,
        }
    }

    /// Sends the packet through.
    pub(super) fn start(mut self, skb: Skb, flows: Flows) -> Vec<HookOutcome> {
        self.run(Box::new(Vm {
            share: 1.0,
            begun: (0, reroute::State::of(&skb)),
            skb,
            flows,
            steps: Vec::new(),
            actor: 0,
            nat_chain: 0,
            walk: None,
            sent: None,
        }))
    }

    /// Counts rules; false when there were too many.
    pub(super) fn spend_rules(&mut self, number: usize) -> bool {
        self.rules_left = self.rules_left.saturating_sub(number);
        number == 0 || self.rules_left > 0
    }

    fn run(&mut self, vm: Box<Vm<'a>>) -> Vec<HookOutcome> {
        if self.depth >= MAX_DEPTH {
            let why = format!("the rules fork more than {MAX_DEPTH} times one after the other");
            return vec![vm.end(HookVerdict::Unknown(why))];
        }
        self.depth += 1;
        let done = self.follow(vm);
        self.depth -= 1;
        done
    }

    fn follow(&mut self, mut vm: Box<Vm<'a>>) -> Vec<HookOutcome> {
        let mut done = Vec::new();
        loop {
            match self.advance(&mut vm) {
                Next::Go => {}
                Next::End(verdict) => {
                    done.push(vm.end(verdict));
                    return done;
                }
                Next::Doubt(why, yes) => {
                    done.extend(self.doubt(&why, yes, vm));
                    return done;
                }
                Next::Blind(why) => {
                    done.push(vm.clone().end(HookVerdict::Unknown(why)));
                    if self.doubts_left > 0 {
                        self.doubts_left -= 1;
                        vm.skip_rule();
                        // Only for the facts it asks for.
                        let _ = self.run(vm);
                    }
                    return done;
                }
                Next::Chance(share, mut yes) => {
                    if share >= 1.0 {
                        vm = yes;
                    } else if share > 0.0 {
                        if !self.spend_branches(1) {
                            done.push(vm.end(self.too_many()));
                            return done;
                        }
                        yes.share *= share;
                        vm.share *= 1.0 - share;
                        done.extend(self.run(yes));
                    }
                }
                Next::Fork(ways) => {
                    if !self.spend_branches(ways.len().saturating_sub(1)) {
                        done.push(vm.end(self.too_many()));
                        return done;
                    }
                    for way in ways.into_iter().filter(|way| way.share > 0.0) {
                        done.extend(self.run(Box::new(way)));
                    }
                    return done;
                }
            }
        }
    }

    fn spend_branches(&mut self, number: usize) -> bool {
        let left = self.branches_left.checked_sub(number);
        self.branches_left = left.unwrap_or(0);
        left.is_some()
    }

    fn too_many(&self) -> HookVerdict {
        let limit = self.cx.limits.branches;
        HookVerdict::Unknown(format!("the rules fork into more than {limit} ways"))
    }

    /// Tries both answers of a condition that can't be evaluated.
    fn doubt(&mut self, why: &str, yes: Box<Vm<'a>>, no: Box<Vm<'a>>) -> Vec<HookOutcome> {
        if self.doubts_left == 0 {
            let why = format!("{why} (and more such rules than can be tried both ways)");
            return vec![no.end(HookVerdict::Unknown(why))];
        }
        self.doubts_left -= 1;
        let blank = no.clone();
        let with = self.run(yes);
        let without = self.run(no);
        let ends = both_ends(&with, &without);
        joined(&with, without).unwrap_or_else(|| {
            let why = format!("{why}{ends}");
            vec![blank.end(HookVerdict::Unknown(why))]
        })
    }

    fn advance(&mut self, vm: &mut Vm<'a>) -> Next<'a> {
        if vm.walk.is_some() {
            return chain::step(self, vm);
        }
        if let Some(sent) = vm.sent {
            return Next::End(HookVerdict::Ipvs(sent));
        }
        if let Some(verdict) = self.rerouted(vm) {
            return Next::End(verdict);
        }
        match self.agenda.get(vm.actor) {
            None => Next::End(HookVerdict::Accept),
            Some(Actor::Chain(base)) => {
                let base = *base;
                chain::enter_base(self, vm, base)
            }
            Some(Actor::Conntrack) => {
                vm.actor += 1;
                match conntrack::track(self.cx, self.at.ns, &mut vm.skb, &mut vm.flows) {
                    Ok(steps) => {
                        vm.steps.extend(steps);
                        let skb = &mut vm.skb;
                        let tracked = !matches!(skb.ct, CtRef::Untracked);
                        if self.at.hook == Hook::Prerouting && skb.written && tracked {
                            skb.summed = Some((skb.packet.ttl, skb.packet.tos));
                        }
                        Next::Go
                    }
                    Err(why) => Next::End(HookVerdict::Unknown(why)),
                }
            }
            Some(Actor::Nat(chains)) => {
                let chain = chains.get(vm.nat_chain).copied();
                match nat::next_chain(self, vm, chain) {
                    nat::Turn::Chain(base) => chain::enter_base(self, vm, base),
                    nat::Turn::Done => Next::Go,
                    nat::Turn::Drop => Next::End(HookVerdict::Drop(DropReason::NetfilterDrop)),
                    nat::Turn::Unknown(why) => Next::End(HookVerdict::Unknown(why)),
                }
            }
            Some(Actor::IpvsAnswer) => {
                vm.actor += 1;
                let at = (self.at.ns, self.at.hook);
                match ipvs::answer(self.cx, at, &mut vm.skb, &mut vm.flows) {
                    Ok(step) => {
                        vm.steps.extend(step);
                        Next::Go
                    }
                    Err(why) => Next::End(HookVerdict::Unknown(why)),
                }
            }
            Some(Actor::IpvsRequest) => {
                vm.actor += 1;
                self.ipvs(vm)
            }
            Some(Actor::Confirm) => {
                vm.actor += 1;
                match conntrack::confirm(self.at.ns, &vm.skb, &mut vm.flows) {
                    None => Next::Go,
                    Some(why) => {
                        vm.steps.push(Step::new(StepKind::Conntrack, why));
                        Next::End(HookVerdict::Drop(DropReason::NetfilterDrop))
                    }
                }
            }
        }
    }

    /// Behind an actor of OUTPUT that changed what the way depends on: looks it up again.
    fn rerouted(&mut self, vm: &mut Vm<'a>) -> Option<HookVerdict> {
        if vm.actor == vm.begun.0 {
            return None;
        }
        let now = (vm.actor, reroute::State::of(&vm.skb));
        let (done, before) = std::mem::replace(&mut vm.begun, now);
        if self.at.hook != Hook::Output || !self.at.reroutes {
            return None;
        }
        let by = match self.agenda.get(done)? {
            Actor::Chain(base) if base.base.kind == ChainKind::Route => reroute::By::Chain,
            Actor::Nat(_) => reroute::By::Nat,
            _ => return None,
        };
        match reroute::behind(self.cx, self.at, &mut vm.skb, by, &before) {
            Ok(true) => None,
            Ok(false) => Some(HookVerdict::Unroutable),
            Err(why) => Some(HookVerdict::Unknown(why)),
        }
    }

    /// Lets IPVS have a look at the packet.
    fn ipvs(&mut self, vm: &mut Vm<'a>) -> Next<'a> {
        let link = self.at.devices.iif.and_then(|index| self.ns.link(index));
        let from_here = link.is_none_or(|link| link.loopback);
        match ipvs::request(self.cx, self.at.ns, from_here, &vm.skb, &vm.flows) {
            Ok(ipvs::Request::Pass) => Next::Go,
            Ok(ipvs::Request::Gone(verdict, step)) => {
                vm.steps.push(step);
                Next::End(verdict)
            }
            Ok(ipvs::Request::To(ways)) => {
                let goes = |way: ipvs::Way| {
                    let mut one = vm.clone();
                    one.share *= way.share;
                    one.skb = way.skb;
                    one.flows = way.flows;
                    one.steps.push(way.step);
                    one.sent = way.sent;
                    one
                };
                Next::Fork(ways.into_iter().map(goes).collect())
            }
            Err(why) => Next::End(HookVerdict::Unknown(why)),
        }
    }

    /// Whether the chain being walked is run by NAT.
    pub(super) fn in_nat(&self, vm: &Vm<'_>) -> bool {
        matches!(self.agenda.get(vm.actor), Some(Actor::Nat(_)))
    }

    /// A NAT chain of the other backend with the priority of `own`: the last one registered is asked first, and
    /// neither tells when that was.
    pub(super) fn tied(&self, vm: &Vm<'_>, own: &BaseRef<'_>) -> Option<Evidence> {
        let Some(Actor::Nat(chains)) = self.agenda.get(vm.actor) else {
            return None;
        };
        let other = chains.iter().find(|other| {
            other.base.priority == own.base.priority && other.table.backend != own.table.backend
        })?;
        let name = |base: &BaseRef<'_>| {
            let place = base.table.family.name();
            format!("{place} {} {}", base.table.name, base.chain.name)
        };
        Some(Evidence::Assumed {
            why: format!(
                "{} and {}, of x_tables and nf_tables, have one priority: which of them translates first is not told, that of nf_tables is taken to",
                name(own),
                name(other)
            ),
        })
    }
}

impl Vm<'_> {
    pub(super) fn end(self: Box<Self>, verdict: HookVerdict) -> HookOutcome {
        HookOutcome {
            share: self.share,
            verdict,
            skb: self.skb,
            flows: self.flows,
            steps: self.steps,
        }
    }

    /// Goes on with the next rule.
    pub(super) fn skip_rule(&mut self) {
        if let Some(walk) = self.walk.as_mut() {
            walk.expr = 0;
            walk.regs.clear();
            walk.elements.clear();
            if let Some(frame) = walk.frames.last_mut() {
                frame.rule += 1;
            }
        }
    }
}

/// How both answers of a condition end, where each ends in one way.
fn both_ends(with: &[HookOutcome], without: &[HookOutcome]) -> String {
    let end = |outcomes: &[HookOutcome]| match outcomes {
        [HookOutcome { verdict, .. }] => match verdict {
            HookVerdict::Accept => Some("goes on"),
            HookVerdict::Drop(_) => Some("is dropped"),
            HookVerdict::Reject(_) => Some("is rejected"),
            HookVerdict::Ipvs(_) | HookVerdict::Unroutable | HookVerdict::Unknown(_) => None,
        },
        _ => None,
    };
    match (end(with), end(without)) {
        (Some(with), Some(without)) if with != without => {
            format!(" (the packet {with} where it holds, else it {without})")
        }
        _ => String::new(),
    }
}

/// Two sets of outcomes as one, where they are the same but for how they came about and for marks,
/// which are unknown where they differ.
fn joined(a: &[HookOutcome], b: Vec<HookOutcome>) -> Option<Vec<HookOutcome>> {
    if a.len() != b.len() {
        return None;
    }
    a.iter()
        .zip(b)
        .map(|(a, mut b)| {
            if a.skb.mark != b.skb.mark {
                b.skb.mark = None;
            }
            let mut other = a.clone();
            if let (Some(own), Some(key)) = (&mut other.skb.rerouted, &mut b.skb.rerouted)
                && own.mark != key.mark
            {
                (own.mark, key.mark) = (None, None);
            }
            b.flows.forget_marks_unlike(&a.flows);
            b.flows.spend_like(&a.flows);
            other.flows.spend_like(&b.flows);
            other.skb.mark = b.skb.mark;
            other.flows.forget_marks_unlike(&b.flows);
            let alike = (other.share - b.share).abs() < 1e-9
                && other.verdict == b.verdict
                && other.skb == b.skb
                && other.flows == b.flows;
            alike.then_some(b)
        })
        .collect()
}
