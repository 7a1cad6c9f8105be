//! Rates, quotas and numbers of connections. The kernel tells nobody how much of a rate is used up; what bounds it
//! is told: how many packets the rule has counted, and how many connections there are in all.
//!
//! Source: net/netfilter/{xt_limit,xt_quota,xt_connlimit,nft_limit,nft_quota,nft_connlimit,nf_conncount}.c (v6.12).

use super::bits::Tri;
use super::chain::Did;
use super::lookup::{self, Found};
use super::machine::{Eval, Vm};
use super::step::assume;
use super::want::{asks_by_key, want_set};
use crate::model::netfilter::{Counters, Expr, Object, ObjectState, Reg, Rule};
use crate::model::xtables::{RareMatch, XtMatch};

/// Bytes that the packets of one question together are taken to stay below.
const MARGIN: u64 = 1 << 20;
/// Connections that the packets of one question together are taken to stay below.
const OWN: u32 = 8;

/// A bucket of a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bucket {
    /// Packets or bytes that it holds when it is full.
    holds: u64,
    /// Bytes.
    bytes: bool,
    /// A second fills in one packet at most.
    slow: bool,
}

/// How much was used up before, at most.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    packets: u64,
    bytes: u64,
    /// A rule's counter says so, which somebody may have set back.
    counted: bool,
}

impl From<Counters> for Used {
    fn from(counters: Counters) -> Self {
        Self {
            packets: counters.packets,
            bytes: counters.bytes,
            counted: true,
        }
    }
}

/// Whether an expression or match is answered here.
pub(super) fn is_one(expr: &Expr) -> bool {
    match expr {
        Expr::Limit { .. }
        | Expr::Quota { .. }
        | Expr::Connlimit { .. }
        | Expr::Match(XtMatch::Limit { .. }) => true,
        Expr::Match(XtMatch::Rare(rare)) => matches!(
            **rare,
            RareMatch::Quota { .. } | RareMatch::Connlimit { .. }
        ),
        _ => false,
    }
}

/// Runs one of them.
pub(super) fn eval(eval: &Eval<'_, '_>, vm: &mut Vm<'_>, rule: &Rule, expr: &Expr) -> Did {
    let at = vm.walk.as_ref().map_or(0, |walk| walk.expr);
    let at = at.saturating_sub(1);
    let used = counted(&rule.exprs, at, is_inverted(expr));
    let place = vm.walk.as_ref().map_or_else(String::new, |walk| {
        let (table, frame) = (walk.base.table, walk.frames.last());
        let chain = frame.map_or("", |frame| frame.chain.name.as_str());
        let (family, backend) = (table.family.name(), table.backend);
        format!(
            "{backend:?} {family} {} {chain} {} {at}",
            table.name, rule.handle
        )
    });
    Did::when(one(eval, vm, expr, used.map(Used::from), place))
}

/// A named object with such state; `None`: it has none.
pub(super) fn of_object(eval: &Eval<'_, '_>, vm: &mut Vm<'_>, object: &Object) -> Option<Did> {
    let expr = match object.state {
        ObjectState::Quota {
            bytes,
            consumed,
            inverted,
        } => Expr::Quota {
            inverted,
            bytes,
            consumed,
        },
        ObjectState::Limit {
            rate,
            unit,
            burst,
            bytes,
            inverted,
        } => Expr::Limit {
            rate,
            unit,
            burst,
            bytes,
            inverted,
        },
        ObjectState::Connlimit { count, inverted } => Expr::Connlimit { count, inverted },
        _ => return None,
    };
    let place = vm.walk.as_ref().map_or_else(String::new, |walk| {
        let table = walk.base.table;
        format!(
            "object {} {} {}",
            table.family.name(),
            table.name,
            object.name
        )
    });
    Some(Did::when(one(eval, vm, &expr, None, place)))
}

/// One of them, of which at most so much was used up before; `None`: that is not known. `place` names its state.
fn one(
    eval: &Eval<'_, '_>,
    vm: &mut Vm<'_>,
    expr: &Expr,
    used: Option<Used>,
    place: String,
) -> Tri {
    match expr {
        Expr::Limit {
            rate,
            unit,
            burst,
            bytes,
            inverted,
        } => {
            let bucket = Bucket {
                holds: if *bytes {
                    rate.saturating_add(u64::from(*burst))
                } else {
                    u64::from(*burst)
                },
                bytes: *bytes,
                slow: !bytes && rate <= unit,
            };
            take(eval, vm, bucket, used, place).negated(*inverted)
        }
        Expr::Match(XtMatch::Limit { cost, burst }) => {
            let bucket = Bucket {
                holds: u64::from(*burst),
                bytes: false,
                slow: *cost >= 10_000,
            };
            take(eval, vm, bucket, used, place)
        }
        Expr::Quota {
            inverted,
            bytes,
            consumed,
        } => {
            // What the packets of this question took is the most that is known to be gone beside what was read.
            let spent = vm.flows.spent(eval.at.ns, &place);
            let (least, most) = match (vm.skb.sized, u64::from(vm.skb.packet.len)) {
                (true, len) => (len, len),
                (false, _) => (0, MARGIN),
            };
            let over = if consumed.saturating_add(least) >= *bytes {
                Some(true)
            } else if consumed.saturating_add(spent).saturating_add(most) < *bytes {
                Some(false)
            } else {
                None
            };
            vm.flows.spend(eval.at.ns, place, most);
            Tri::from_option(over, || "whether the quota is used up by then".to_owned())
                .negated(!inverted)
        }
        Expr::Connlimit { count, inverted } => few_connections(eval, *count).negated(*inverted),
        Expr::Match(XtMatch::Rare(rare)) => match **rare {
            RareMatch::Connlimit { limit, upto, .. } => few_connections(eval, limit).negated(!upto),
            RareMatch::Quota { bytes, invert } => {
                let enough = |used: &Used| used.bytes.saturating_add(MARGIN) <= bytes;
                let left = used.filter(enough);
                if let Some(used) = left {
                    believe(vm, used, used.bytes, &format!("{bytes} bytes of its quota"));
                }
                Tri::from_option(left.map(|_| true), || {
                    "whether the quota is used up is not known".to_owned()
                })
                .negated(invert)
            }
            _ => Tri::Unknown("not a limit".to_owned()),
        },
        _ => Tri::Unknown("not a limit".to_owned()),
    }
}

/// Takes a packet's worth out of a bucket, where what is in it is known.
fn take(
    eval: &Eval<'_, '_>,
    vm: &mut Vm<'_>,
    bucket: Bucket,
    used: Option<Used>,
    place: String,
) -> Tri {
    let unknown = || Tri::Unknown("whether the rate is used up is not known".to_owned());
    let Some(used) = used else {
        return unknown();
    };
    let spent = vm.flows.spent(eval.at.ns, &place);
    let (before, own, what) = match (bucket.bytes, vm.skb.sized) {
        (false, _) => (used.packets, 1, "packets"),
        (true, true) => (used.bytes, u64::from(vm.skb.packet.len), "bytes"),
        (true, false) => (used.bytes, MARGIN, "bytes"),
    };
    let holds = bucket.holds;
    if before.saturating_add(spent).saturating_add(own) <= holds {
        believe(vm, used, before, &format!("{holds} {what} of its burst"));
        vm.flows.spend(eval.at.ns, place, own);
        return Tri::Yes;
    }
    // Only what the packets of this question took themselves is known to be gone.
    if before == 0 && bucket.slow && spent >= holds {
        return Tri::No;
    }
    unknown()
}

/// Says that a counter is believed.
fn believe(vm: &mut Vm<'_>, used: Used, number: u64, of: &str) {
    if used.counted {
        let why = format!("a rule's counter was never set back: at most {number} of {of} are gone");
        assume(vm, &why);
    }
}

/// Whether no more connections than so many can be counted: there are not more in all.
fn few_connections(eval: &Eval<'_, '_>, limit: u32) -> Tri {
    let sysctls = eval.ns.sysctls.known();
    let all = sysctls.and_then(|sysctls| *sysctls.nf_conntrack_count.known()?);
    let answer = match all {
        // The packet's own connection counts.
        _ if limit == 0 => Some(false),
        Some(all) if all.saturating_add(OWN) <= limit => Some(true),
        _ => None,
    };
    Tri::from_option(answer, || {
        "how many connections there are is not known".to_owned()
    })
}

/// What a rule's counter says of how much of the state at `at` is used up, at most. A counter before it saw all
/// packets that reached it; one behind it those that passed, where nothing between refuses any.
fn counted(exprs: &[Expr], at: usize, inverted: bool) -> Option<Counters> {
    let counter = |expr: &Expr| match expr {
        Expr::Counter(counters) => Some(*counters),
        _ => None,
    };
    let (before, rest) = exprs.split_at_checked(at)?;
    if let Some(counters) = before.iter().find_map(counter) {
        return Some(counters);
    }
    let passes = |expr: &&Expr| {
        matches!(
            expr,
            Expr::Log(_) | Expr::Last(_) | Expr::Match(XtMatch::Comment(_)) | Expr::Counter(_)
        )
    };
    let behind = rest.iter().skip(1).take_while(passes).find_map(counter);
    behind.filter(|_| !inverted)
}

fn is_inverted(expr: &Expr) -> bool {
    match expr {
        Expr::Limit { inverted, .. } => *inverted,
        Expr::Match(XtMatch::Rare(rare)) => matches!(**rare, RareMatch::Quota { invert: true, .. }),
        _ => false,
    }
}

/// A dynamic set whose elements have such state: that of an element that is made now is as the rule says.
pub(super) fn of_element<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &mut Vm<'a>,
    (name, sreg): (&str, Reg),
    exprs: &[Expr],
) -> Did {
    let Some(walk) = vm.walk.as_ref() else {
        return Did::Blind("no chain is walked".to_owned());
    };
    let table = walk.base.table;
    let Some(set) = table.sets.get(name) else {
        if !table.sets_complete {
            want_set(eval, table, name, None);
        }
        return Did::Doubt(format!("set {name} not read"));
    };
    let len = usize::try_from(set.key_len).unwrap_or(usize::MAX).min(4096);
    let key = walk.regs.load(sreg, len);
    let found = match key.bytes() {
        None => return Did::Doubt(format!("the key for set {name} is not known")),
        Some(bytes) => {
            let (bytes, order) = (bytes.to_vec(), eval.cx.index.order(set));
            match lookup::find(set, &key, order) {
                Found::Unread => {
                    let by_key = asks_by_key(set) && set.key_len > 0;
                    want_set(eval, table, name, by_key.then_some(bytes));
                    return Did::Doubt(format!("elements of set {name} not read"));
                }
                Found::Unknown(why) => return Did::Doubt(why),
                Found::Absent => (bytes, None),
                Found::Elem(elem) => (bytes, Some(elem)),
            }
        }
    };
    let (bytes, elem) = found;
    let mut all = Tri::Yes;
    for (number, expr) in exprs.iter().enumerate() {
        let place = format!("{} {name} {bytes:x?} {number}", table.name);
        // The kernel tells what an element's quota has used up, and of a rate what its counter saw.
        let own = elem.map_or(Some(expr), |elem| elem.exprs.get(number));
        let used = match elem {
            None => Some(Used::default()),
            Some(elem) => {
                let inverted = own.is_some_and(is_inverted);
                let counters = counted(&elem.exprs, number, inverted);
                counters.map(Used::from)
            }
        };
        let answer = match own {
            Some(Expr::Counter(_) | Expr::Last(_)) => Tri::Yes,
            Some(own) if is_one(own) => one(eval, vm, own, used, place),
            _ => Tri::Unknown("the set keeps state for each element".to_owned()),
        };
        match (&all, answer) {
            (Tri::Yes, answer) => all = answer,
            (Tri::Unknown(_), Tri::No) => all = Tri::No,
            _ => {}
        }
        // The kernel runs no further ones.
        if all == Tri::No {
            break;
        }
    }
    vm.flows
        .change(eval.at.ns, (&table.name, name), Some(bytes), true);
    Did::when(all)
}
