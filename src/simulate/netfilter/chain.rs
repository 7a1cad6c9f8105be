//! The rule walk of one base chain: jumps, returns, policies, and the step it leaves.
//!
//! Source: `nft_do_chain()`, net/netfilter/nf_tables_core.c; `ipt_do_table()`,
//! net/ipv4/netfilter/ip_tables.c.

use super::bits::Tri;
use super::hook::BaseRef;
use super::machine::{Eval, Frame, Next, Note, Via, Vm, Walk};
use super::nat::{self, Mapping};
use super::registers::Registers;
use super::step::{note, path, summed_up};
use super::{HookVerdict, expr, text, xt_rare_target};
use crate::model::Section;
use crate::model::netfilter::{Backend, Chain, Expr, Family, Hook, Policy, Rule, Table, Verdict};
use crate::model::want::Want;
use crate::model::xtables::{XtMatch, XtTarget};
use crate::simulate::skb::Hashed;
use crate::trace::{DropReason, RejectWith};

/// NFT_JUMP_STACK_SIZE: deeper jumps can't be loaded.
const NFT_DEPTH: usize = 16;
/// x_tables allows as many as there are chains; this many are walked.
const LEGACY_DEPTH: usize = 512;

/// One of several numbers that a register may hold: its share, the registers, what a hash gave.
pub(super) type Choice = (f64, Registers, Option<(Hashed, u32)>);

/// What an expression does.
pub(super) enum Did {
    /// Matches; the next expression follows.
    Next,
    /// Does not match.
    Break,
    /// Whether it matches is unknown.
    Doubt(String),
    /// Matches for this share of packets.
    Chance(f64),
    /// Registers differ from here on, by share, and what a hash gave, which later ones give too.
    Choose(Vec<Choice>),
    /// A verdict.
    Verdict(Verdict),
    /// Refuses.
    Reject(RejectWith),
    /// NAT; shares add up to 1.
    Map(Vec<Mapping>),
    /// What it does is unknown.
    Blind(String),
}

impl Did {
    /// A condition.
    pub(super) fn when(answer: Tri) -> Self {
        match answer {
            Tri::Yes => Self::Next,
            Tri::No => Self::Break,
            Tri::Unknown(why) => Self::Doubt(why),
        }
    }
}

/// How a base chain ends.
enum End<'a> {
    Rule(&'a Rule, HookVerdict),
    Policy(Policy),
}

/// Begins a base chain.
pub(super) fn enter_base<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &mut Vm<'a>,
    base: BaseRef<'a>,
) -> Next<'a> {
    if let Err(why) = readable(eval, vm, base.table, &base.chain.name) {
        return Next::End(HookVerdict::Unknown(why));
    }
    vm.walk = Some(Walk {
        base,
        frames: vec![Frame {
            chain: base.chain,
            rule: 0,
            via: Vec::new(),
        }],
        expr: 0,
        regs: Registers::new(),
        elements: Vec::new(),
        misses: Vec::new(),
        notes: Vec::new(),
        assumed: Vec::new(),
        shown: eval.cx.index.shown(),
    });
    Next::Go
}

/// The chain with rules that are known for this packet. Wishes for what was not read. `Err`: what is
/// missing.
fn readable<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &Vm<'a>,
    table: &'a Table,
    name: &str,
) -> Result<&'a Chain, String> {
    let place = || format!("{} {}", table.family.name(), table.name);
    let chain = table.chains.get(name);
    let whole = chain.is_none_or(|chain| is_whole(chain, vm));
    match chain.map(|chain| &chain.rules).filter(|_| whole) {
        Some(Section::Known(_)) => {}
        Some(Section::Missing(why)) => return Err(format!("chain {name} ({}): {why}", place())),
        None if table.chains_complete && whole => {
            return Err(format!("chain {name} is not in {}", place()));
        }
        None | Some(Section::NotAsked) => {
            let want = Want::Chain {
                netns: eval.at.ns.netns,
                backend: table.backend,
                family: table.family,
                table: table.name.clone(),
                chain: name.to_owned(),
            };
            eval.cx.want(&eval.at.ns.node, want);
            return Err(format!("chain {name} ({}) not read", place()));
        }
    }
    chain.ok_or_else(|| format!("chain {name} ({}) not read", place()))
}

/// Whether all rules of a chain were read that this packet can match.
fn is_whole(chain: &Chain, vm: &Vm<'_>) -> bool {
    let sieved = chain.sieved.as_ref();
    sieved.is_none_or(|sieved| sieved.to.contains(&vm.skb.packet.dst))
}

/// Runs the next rule.
pub(super) fn step<'a>(eval: &mut Eval<'_, 'a>, vm: &mut Vm<'a>) -> Next<'a> {
    let Some(frame) = vm.walk.as_ref().and_then(|walk| walk.frames.last()) else {
        return Next::End(HookVerdict::Unknown("a chain ended twice".to_owned()));
    };
    let chain = frame.chain;
    // A rule of this chain may have changed the destination.
    if !is_whole(chain, vm)
        && let Some(table) = vm.walk.as_ref().map(|walk| walk.base.table)
        && let Err(why) = readable(eval, vm, table, &chain.name)
    {
        return Next::End(HookVerdict::Unknown(why));
    }
    let rules = chain.rules.known().map_or(&[][..], Vec::as_slice);
    let at = frame.rule;
    let next = next_rule(eval, vm, chain, at, rules.len());
    let rule = rules.get(next);
    // Rules that are passed over count as if they were walked.
    if !eval.spend_rules(next.saturating_sub(at) + usize::from(rule.is_some())) {
        let limit = eval.cx.limits.rules;
        let why = format!("more than {limit} rules at one hook");
        return Next::End(HookVerdict::Unknown(why));
    }
    let Some(rule) = rule else {
        return go_back(eval, vm);
    };
    if let Some(frame) = vm.walk.as_mut().and_then(|walk| walk.frames.last_mut()) {
        frame.rule = next;
    }
    loop {
        let Some(walk) = vm.walk.as_mut() else {
            return Next::Go;
        };
        let Some(expr) = rule.exprs.get(walk.expr) else {
            vm.skip_rule();
            return Next::Go;
        };
        walk.expr += 1;
        let rest = rule.exprs.get(walk.expr..).unwrap_or_default();
        match expr::eval(eval, vm, rule, expr) {
            Did::Next => {}
            Did::Break => {
                vm.skip_rule();
                return Next::Go;
            }
            Did::Doubt(why) => {
                if rest.iter().all(is_harmless) {
                    vm.skip_rule();
                    return Next::Go;
                }
                let why = blame(vm, chain, rule, &why);
                let yes = Box::new(vm.clone());
                vm.skip_rule();
                return Next::Doubt(why, yes);
            }
            Did::Chance(share) => {
                let yes = Box::new(vm.clone());
                vm.skip_rule();
                return Next::Chance(share, yes);
            }
            Did::Choose(choices) => {
                let way = |(share, regs, drawn): Choice| {
                    let mut way = vm.clone();
                    way.share *= share;
                    if let Some(walk) = way.walk.as_mut() {
                        walk.regs = regs;
                    }
                    if let Some((hashed, number)) = drawn {
                        way.flows.draw(hashed, number);
                    }
                    way
                };
                return Next::Fork(choices.into_iter().map(way).collect());
            }
            Did::Verdict(verdict) => return follow(eval, vm, chain, rule, &verdict),
            Did::Reject(with) => return end(eval, vm, &End::Rule(rule, HookVerdict::Reject(with))),
            Did::Map(ways) => return map(eval, vm, rule, ways),
            Did::Blind(why) => return Next::Blind(blame(vm, chain, rule, &why)),
        }
    }
}

/// The first rule of a chain from `at` on that the packet may match, or past the last one.
fn next_rule<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &Vm<'a>,
    chain: &'a Chain,
    at: usize,
    end: usize,
) -> usize {
    // A way that forked within a rule goes on there.
    if at >= end || vm.walk.as_ref().is_some_and(|walk| walk.expr > 0) {
        return at;
    }
    eval.cx.index.meet_chain(chain);
    let filed = eval.cx.index.filed(chain);
    filed.map_or(at, |filed| filed.next(eval, vm, at, end))
}

/// Whether an expression neither ends the rule otherwise than by not matching nor changes anything
/// that later rules can see.
fn is_harmless(expr: &Expr) -> bool {
    match expr {
        Expr::Counter(_)
        | Expr::Meta { .. }
        | Expr::Payload { .. }
        | Expr::Bitwise { .. }
        | Expr::Byteorder { .. }
        | Expr::Immediate { .. }
        | Expr::Ct { .. }
        | Expr::Fib { .. }
        | Expr::Lookup { dreg: None, .. }
        | Expr::Log(_)
        | Expr::Last(_)
        | Expr::Dup { .. }
        | Expr::Exthdr { .. }
        | Expr::ExthdrSet { .. }
        | Expr::Socket { .. }
        | Expr::Rt { .. }
        | Expr::Osf { .. }
        | Expr::Xfrm { .. }
        | Expr::Tunnel { .. }
        | Expr::Inner { .. }
        | Expr::Connlimit { .. }
        | Expr::Limit { .. }
        | Expr::Quota { .. }
        | Expr::Cmp { .. }
        | Expr::Range { .. }
        | Expr::Header(_)
        | Expr::Match(
            XtMatch::Comment(_)
            | XtMatch::Limit { .. }
            | XtMatch::Hashlimit(_)
            | XtMatch::Tcp { .. }
            | XtMatch::Udp { .. }
            | XtMatch::Icmp { .. }
            | XtMatch::Conntrack(_)
            | XtMatch::Addrtype { .. }
            | XtMatch::Mark { .. }
            | XtMatch::Connmark { .. }
            | XtMatch::Multiport { .. }
            | XtMatch::Physdev { .. }
            | XtMatch::Iprange { .. }
            | XtMatch::Owner { .. }
            | XtMatch::Length { .. }
            | XtMatch::Nfacct(_),
        )
        | Expr::Target(XtTarget::Tcpmss(_)) => true,
        Expr::Target(XtTarget::Rare(rare)) => xt_rare_target::decides_nothing(rare),
        Expr::Verdict(verdict) | Expr::Target(XtTarget::Standard(verdict)) => {
            *verdict == Verdict::Continue
        }
        _ => false,
    }
}

fn blame(vm: &Vm<'_>, chain: &Chain, rule: &Rule, why: &str) -> String {
    let table = vm.walk.as_ref().map(|walk| walk.base.table);
    let place = table.map_or_else(String::new, |t| format!("{} {} ", t.family.name(), t.name));
    let word = match table.map(|table| table.backend) {
        Some(Backend::Nft) => "handle",
        _ => "rule",
    };
    format!(
        "{word} {} of {place}chain {} ({}): {why}",
        rule.handle,
        chain.name,
        text::rule(rule, table)
    )
}

/// Follows a verdict.
fn follow<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &mut Vm<'a>,
    chain: &'a Chain,
    rule: &'a Rule,
    verdict: &Verdict,
) -> Next<'a> {
    let verdict_of = |verdict| End::Rule(rule, verdict);
    match verdict {
        Verdict::Accept => end(eval, vm, &verdict_of(HookVerdict::Accept)),
        Verdict::Drop => {
            let drop = HookVerdict::Drop(DropReason::NetfilterDrop);
            end(eval, vm, &verdict_of(drop))
        }
        Verdict::Continue => {
            vm.skip_rule();
            Next::Go
        }
        Verdict::Return => {
            if witnessed(eval, vm) {
                note(vm, rule, "returned".to_owned(), Vec::new());
            }
            go_back(eval, vm)
        }
        Verdict::Jump(name) | Verdict::Goto(name) => {
            let goto = matches!(verdict, Verdict::Goto(_));
            call(eval, vm, chain, rule, name, goto)
        }
        Verdict::Queue(num) => {
            let why = format!("handed to the program that listens on queue {num}");
            Next::Blind(blame(vm, chain, rule, &why))
        }
        Verdict::Stolen => Next::Blind(blame(vm, chain, rule, "the packet is taken away")),
        Verdict::Other(code) => {
            let why = format!("verdict {code} is not known");
            Next::Blind(blame(vm, chain, rule, &why))
        }
    }
}

fn call<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &mut Vm<'a>,
    chain: &'a Chain,
    rule: &'a Rule,
    name: &str,
    goto: bool,
) -> Next<'a> {
    let Some(table) = vm.walk.as_ref().map(|walk| walk.base.table) else {
        return Next::Go;
    };
    let target = match readable(eval, vm, table, name) {
        Ok(target) => target,
        Err(why) => return Next::Blind(blame(vm, chain, rule, &why)),
    };
    let depth = match table.backend {
        Backend::Nft => NFT_DEPTH,
        Backend::Legacy => LEGACY_DEPTH,
    };
    let elements = vm.walk.as_mut().map(|walk| walk.elements.clone());
    let via = Via {
        chain,
        rule,
        elements: elements.unwrap_or_default(),
    };
    vm.skip_rule();
    let Some(walk) = vm.walk.as_mut() else {
        return Next::Go;
    };
    let last = walk.frames.last_mut();
    if let (true, Some(frame)) = (goto, last) {
        // A loop of gotos is cut by the number of rules; what led here is told only once.
        frame.via.truncate(LEGACY_DEPTH);
        frame.via.push(via);
        frame.chain = target;
        frame.rule = 0;
        return Next::Go;
    }
    if walk.frames.len() > depth {
        let why = format!("chains call each other more than {depth} deep at chain {name}");
        return Next::End(HookVerdict::Unknown(why));
    }
    walk.frames.push(Frame {
        chain: target,
        rule: 0,
        via: vec![via],
    });
    Next::Go
}

/// The end of a chain, or a return.
fn go_back<'a>(eval: &mut Eval<'_, 'a>, vm: &mut Vm<'a>) -> Next<'a> {
    let Some(walk) = vm.walk.as_mut() else {
        return Next::Go;
    };
    walk.expr = 0;
    walk.regs.clear();
    walk.elements.clear();
    if walk.frames.len() > 1 {
        walk.frames.pop();
        return Next::Go;
    }
    let policy = walk.base.base.policy;
    end(eval, vm, &End::Policy(policy))
}

/// Whether rules that keep the packet from a translation of its destination are to be told.
fn witnessed(eval: &Eval<'_, '_>, vm: &Vm<'_>) -> bool {
    eval.cx.witness && eval.in_nat(vm) && matches!(eval.at.hook, Hook::Prerouting | Hook::Output)
}

/// Ends the base chain and leaves its step.
fn end<'a>(eval: &mut Eval<'_, 'a>, vm: &mut Vm<'a>, how: &End<'a>) -> Next<'a> {
    let in_nat = eval.in_nat(vm);
    let witness = witnessed(eval, vm);
    let Some(mut walk) = vm.walk.take() else {
        return Next::Go;
    };
    let mut notes = std::mem::take(&mut walk.notes);
    let verdict = match how {
        End::Rule(rule, verdict) => {
            let result = match verdict {
                HookVerdict::Accept => "accepted".to_owned(),
                HookVerdict::Drop(_) => "dropped".to_owned(),
                HookVerdict::Reject(with) => format!("rejected with {with}"),
                HookVerdict::Ipvs(_) => "taken".to_owned(),
                HookVerdict::Unroutable => "no route".to_owned(),
                HookVerdict::Unknown(_) => "unknown".to_owned(),
            };
            // A NAT chain that accepts without a mapping decided nothing.
            if !(in_nat && *verdict == HookVerdict::Accept) || witness {
                let mut evidence = path(&walk, Some(rule));
                if *verdict != HookVerdict::Accept {
                    evidence.append(&mut walk.misses);
                }
                notes.push(Note {
                    result,
                    evidence,
                    changes: Vec::new(),
                });
            }
            verdict.clone()
        }
        End::Policy(Policy::Accept) => HookVerdict::Accept,
        End::Policy(Policy::Drop) => {
            let mut evidence = vec![walk.base.evidence(Some(Policy::Drop))];
            evidence.append(&mut walk.misses);
            notes.push(Note {
                result: "dropped by policy".to_owned(),
                evidence,
                changes: Vec::new(),
            });
            HookVerdict::Drop(DropReason::NetfilterDrop)
        }
    };
    vm.steps.extend(summed_up(notes, &walk.assumed));
    if verdict != HookVerdict::Accept {
        return Next::End(verdict);
    }
    if in_nat {
        vm.nat_chain += 1;
    } else {
        vm.actor += 1;
    }
    Next::Go
}

/// Ends a NAT chain with a mapping.
fn map<'a>(eval: &mut Eval<'_, 'a>, vm: &Vm<'a>, rule: &'a Rule, ways: Vec<Mapping>) -> Next<'a> {
    let mut forks = Vec::new();
    let tie = vm.walk.as_ref().and_then(|walk| eval.tied(vm, &walk.base));
    for mapping in ways {
        let mut way = vm.clone();
        way.share *= mapping.share;
        if let Some(mut walk) = way.walk.take() {
            walk.assumed.extend(tie.clone());
            let evidence = path(&walk, Some(rule));
            let notes = std::mem::take(&mut walk.notes);
            way.steps.extend(summed_up(notes, &[]));
            nat::apply(eval.at, &mut way, &mapping, evidence, walk.assumed);
        }
        forks.push(way);
    }
    Next::Fork(forks)
}

/// Family of the table being walked.
pub(super) fn family(vm: &Vm<'_>) -> Option<Family> {
    Some(vm.walk.as_ref()?.base.table.family)
}
