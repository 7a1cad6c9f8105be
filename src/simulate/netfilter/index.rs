//! Which rules of a long chain a packet can match at all, and the order of large sets: made when a chain or
//! set is first met, and kept while the topology stays as it is.
//!
//! kube-proxy writes one rule per Service into a few chains. What such rules ask first is an exact value of one
//! field (`-d ADDRESS`, `th dport PORT`, `-i DEVICE`): each rule is filed under it. A rule under another value
//! than the packet's fails there, before it had any effect, so that leaving it out changes no answer. Where a
//! packet's field is not known, the rules that ask for it are walked one by one as ever.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use super::header::{self, Load};
use super::hook::BaseRef;
use super::lookup::Order;
use super::machine::{Eval, Vm};
use super::meta;
use crate::model::netfilter::{
    BitwiseOp, Chain, CmpOp, Elements, Expr, MetaKey, PayloadBase, Reg, Rule, Ruleset, Set,
};
use crate::model::netns::NetNs;
use crate::model::xtables::{HeaderMatch, XtMatch};
use crate::trace::Evidence;

/// Shorter chains and sets are walked.
const MANY: usize = 32;
/// Fields that one chain's rules may ask for; what asks for more is walked.
const MOST_FIELDS: usize = 64;

/// What was made of the rules of a topology. Keys are places in that topology, which is borrowed and so stays.
#[derive(Debug, Default)]
pub(crate) struct Index<'a> {
    /// Nothing is made: every rule is walked.
    off: bool,
    chains: BTreeMap<*const Chain, Option<Filed>>,
    sets: BTreeMap<*const Set, Order>,
    bases: BTreeMap<*const Ruleset, Vec<BaseRef<'a>>>,
    tracked: BTreeMap<(*const NetNs, bool), bool>,
    shown: Shown,
}

/// Rules as evidence shows them: put in words when they first led somewhere. Ways that fork share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Shown(Rc<RefCell<BTreeMap<(*const Chain, *const Rule), Evidence>>>);

impl Shown {
    /// A rule under a base chain, as `make` gives it the first time.
    pub(super) fn of(
        &self,
        base: &Chain,
        rule: &Rule,
        make: impl FnOnce() -> Evidence,
    ) -> Evidence {
        let key = (std::ptr::from_ref(base), std::ptr::from_ref(rule));
        let known = self.0.try_borrow().ok();
        if let Some(known) = known.and_then(|all| all.get(&key).cloned()) {
            return known;
        }
        let made = make();
        if let Ok(mut all) = self.0.try_borrow_mut() {
            all.insert(key, made.clone());
        }
        made
    }
}

impl<'a> Index<'a> {
    /// One that stays empty.
    pub(crate) fn off() -> Self {
        Self {
            off: true,
            ..Self::default()
        }
    }

    /// Rules in words, for a walk to keep.
    pub(super) fn shown(&self) -> Shown {
        self.shown.clone()
    }

    /// Makes ready what `filed` gives of a chain.
    pub(super) fn meet_chain(&mut self, chain: &'a Chain) {
        let rules = chain.rules.known().map_or(&[][..], Vec::as_slice);
        if !self.off && rules.len() >= MANY {
            let entry = self.chains.entry(std::ptr::from_ref(chain));
            entry.or_insert_with(|| Filed::of(rules));
        }
    }

    /// A chain's rules by what they ask for; `None`: it is walked.
    pub(super) fn filed(&self, chain: &'a Chain) -> Option<&Filed> {
        self.chains.get(&std::ptr::from_ref(chain))?.as_ref()
    }

    /// The order of a set's elements; `None`: it is searched from its beginning.
    pub(super) fn order(&mut self, set: &'a Set) -> Option<&Order> {
        let Elements::Known(elements) = &set.elements else {
            return None;
        };
        if self.off || elements.len() < MANY {
            return None;
        }
        let entry = self.sets.entry(std::ptr::from_ref(set));
        Some(entry.or_insert_with(|| Order::of(set, elements)))
    }

    /// Base chains of a backend, as `find` gives them the first time.
    pub(super) fn bases(
        &mut self,
        rules: &'a Ruleset,
        find: impl FnOnce() -> Vec<BaseRef<'a>>,
    ) -> &[BaseRef<'a>] {
        let entry = self.bases.entry(std::ptr::from_ref(rules));
        entry.or_insert_with(find)
    }

    /// Whether connections of a family are tracked in a namespace, as `find` tells the first time.
    pub(crate) fn tracks(&mut self, ns: &'a NetNs, v6: bool, find: impl FnOnce() -> bool) -> bool {
        let entry = self.tracked.entry((std::ptr::from_ref(ns), v6));
        *entry.or_insert_with(find)
    }
}

/// What a condition looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    /// Bytes of the IP header (from, len).
    Network(u32, u32),
    /// Bytes of the transport header.
    Transport(u32, u32),
    /// Packet metadata, as nf_tables loads it.
    L4proto,
    Nfproto,
    Protocol,
    Iif,
    Oif,
    Iifname,
    Oifname,
    /// As x_tables reads them.
    Src,
    Dst,
    InDevice,
    OutDevice,
    Sport,
    Dport,
}

impl Field {
    fn of_payload(base: PayloadBase, offset: u32, len: u32) -> Option<Self> {
        match base {
            _ if len == 0 || len > 16 => None,
            PayloadBase::Network => Some(Self::Network(offset, len)),
            PayloadBase::Transport => Some(Self::Transport(offset, len)),
            _ => None,
        }
    }

    fn of_meta(key: MetaKey) -> Option<(Self, u32)> {
        Some(match key {
            MetaKey::L4proto => (Self::L4proto, 1),
            MetaKey::Nfproto => (Self::Nfproto, 1),
            MetaKey::Protocol => (Self::Protocol, 2),
            MetaKey::Iif => (Self::Iif, 4),
            MetaKey::Oif => (Self::Oif, 4),
            MetaKey::Iifname => (Self::Iifname, 16),
            MetaKey::Oifname => (Self::Oifname, 16),
            _ => return None,
        })
    }

    /// The packet's value; `None`: not known, or there is none.
    fn value(self, eval: &Eval<'_, '_>, vm: &Vm<'_>) -> Option<Value> {
        let (skb, packet) = (&vm.skb, &vm.skb.packet);
        let payload = |base, offset: u32, len: u32| {
            let known = header::Known {
                local: skb.local,
                free: skb.free,
                sized: skb.sized,
                tagged: skb.tagged,
            };
            let (from, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
            Value::of_load(&header::load(packet, known, base, from, len))
        };
        let family = vm.walk.as_ref().map(|walk| walk.base.table.family);
        let meta = |key| Value::of_load(&meta::load(eval, skb, key, family));
        let device = |index| Value::of(meta::device_name(eval, index).ok()?.as_bytes());
        let port = |port: Option<u16>| Value::of(&port?.to_be_bytes());
        match self {
            Self::Network(offset, len) => payload(PayloadBase::Network, offset, len),
            Self::Transport(offset, len) => payload(PayloadBase::Transport, offset, len),
            Self::L4proto => meta(MetaKey::L4proto),
            Self::Nfproto => meta(MetaKey::Nfproto),
            Self::Protocol => meta(MetaKey::Protocol),
            Self::Iif => meta(MetaKey::Iif),
            Self::Oif => meta(MetaKey::Oif),
            Self::Iifname => meta(MetaKey::Iifname),
            Self::Oifname => meta(MetaKey::Oifname),
            Self::Src => Value::of_addr(packet.src),
            Self::Dst => Value::of_addr(packet.dst),
            Self::InDevice => device(eval.at.devices.iif),
            Self::OutDevice => device(eval.at.devices.oif),
            Self::Sport => port(packet.sport()),
            Self::Dport => port(packet.dport()),
        }
    }
}

/// Bytes of a field, at most as many as an IPv6 address or the name of a device has, and how many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Value([u8; 16], u8);

impl Value {
    /// `None`: they are more.
    fn of(bytes: &[u8]) -> Option<Self> {
        let mut own = [0; 16];
        own.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self(own, u8::try_from(bytes.len()).ok()?))
    }

    fn of_addr(addr: IpAddr) -> Option<Self> {
        match addr {
            IpAddr::V4(addr) => Self::of(&addr.octets()),
            IpAddr::V6(addr) => Self::of(&addr.octets()),
        }
    }

    fn of_load(load: &Load) -> Option<Self> {
        match load {
            Load::Value(bits) => Self::of(bits.bytes()?),
            Load::Absent | Load::Unknown(_) => None,
        }
    }
}

/// A chain's rules by what they ask for.
#[derive(Debug)]
pub(super) struct Filed {
    /// Fields that any of the rules asks for; sets of them are bits.
    fields: Vec<Field>,
    /// Fields under which rules are filed, and those that some of these rules ask for before.
    drawers: Vec<(usize, u64)>,
    /// Rules by field, value and position.
    by_value: Vec<(usize, Value, usize)>,
    /// The same by field and position.
    by_field: Vec<(usize, usize)>,
    /// Rules that may match any packet.
    always: Vec<usize>,
}

impl Filed {
    fn of(rules: &[Rule]) -> Option<Self> {
        let mut scan = Scan::default();
        for (at, rule) in rules.iter().enumerate() {
            scan.rule(at, rule);
        }
        // A rule is filed where its chain's rules differ most.
        let mut values: Vec<(usize, Value)> =
            scan.found.iter().map(|a| (a.field, a.value)).collect();
        values.sort_unstable();
        values.dedup();
        let mut different = vec![0_usize; scan.fields.len()];
        for (field, _) in values {
            if let Some(count) = different.get_mut(field) {
                *count += 1;
            }
        }
        let mut before = vec![0_u64; scan.fields.len()];
        let (mut by_value, mut by_field, mut always) = (Vec::new(), Vec::new(), Vec::new());
        let mut asked = scan.found.chunk_by(|a, b| a.rule == b.rule).peekable();
        for at in 0..rules.len() {
            let own = asked.next_if(|asks| asks.first().is_some_and(|asks| asks.rule == at));
            let most = |asks: &&Asks| different.get(asks.field).copied();
            let Some(best) = own.and_then(|asks| asks.iter().max_by_key(most)) else {
                always.push(at);
                continue;
            };
            if let Some(before) = before.get_mut(best.field) {
                *before |= best.before;
            }
            by_value.push((best.field, best.value, at));
            by_field.push((best.field, at));
        }
        // Where most rules may match any packet, looking them up costs more than it saves.
        if always.len() * 2 >= rules.len() {
            return None;
        }
        by_value.sort_unstable();
        by_field.sort_unstable();
        let drawers = before.into_iter().enumerate();
        let used =
            |field: usize| first_from(&by_field, &(field, 0)).is_some_and(|(own, _)| *own == field);
        let drawers = drawers.filter(|(field, _)| used(*field)).collect();
        Some(Self {
            fields: scan.fields,
            drawers,
            by_value,
            by_field,
            always,
        })
    }

    /// The first rule from `from` on that the packet may match; past the last one where there is none.
    pub(super) fn next(&self, eval: &Eval<'_, '_>, vm: &Vm<'_>, from: usize, end: usize) -> usize {
        let mut best = first_from(&self.always, &from).copied().unwrap_or(end);
        if best == from {
            return best;
        }
        let values: Vec<Option<Value>> = self
            .fields
            .iter()
            .map(|field| field.value(eval, vm))
            .collect();
        let unknown = values.iter().zip(0..).fold(0_u64, |bits, (value, at)| {
            bits | u64::from(value.is_none()) << at
        });
        for (field, before) in &self.drawers {
            let value = values.get(*field).copied().flatten();
            let rule = match value.filter(|_| before & unknown == 0) {
                Some(value) => first_from(&self.by_value, &(*field, value, from))
                    .filter(|found| (found.0, found.1) == (*field, value))
                    .map(|found| found.2),
                None => first_from(&self.by_field, &(*field, from))
                    .filter(|found| found.0 == *field)
                    .map(|found| found.1),
            };
            best = best.min(rule.unwrap_or(end));
        }
        best
    }
}

fn first_from<'s, T: Ord>(sorted: &'s [T], from: &T) -> Option<&'s T> {
    sorted.get(sorted.partition_point(|own| own < from))
}

/// An exact value without which a rule does not match.
#[derive(Debug)]
struct Asks {
    rule: usize,
    field: usize,
    value: Value,
    /// Fields that the rule looks at before: where one is not known, whether this is looked at is not either.
    before: u64,
}

/// What a register holds.
#[derive(Debug)]
struct Held {
    reg: Reg,
    len: usize,
    /// The field itself, unchanged.
    plain: Option<usize>,
}

/// What rules ask for first, as long as their expressions do nothing but compare.
#[derive(Debug, Default)]
struct Scan {
    fields: Vec<Field>,
    found: Vec<Asks>,
    /// Of the rule under way: its position, fields that it looked at, registers.
    rule: usize,
    before: u64,
    held: Vec<Held>,
}

impl Scan {
    fn rule(&mut self, at: usize, rule: &Rule) {
        (self.rule, self.before) = (at, 0);
        self.held.clear();
        for expr in &rule.exprs {
            if self.expr(expr).is_none() {
                return;
            }
        }
    }

    /// Takes an expression in; `None`: it does more than compare, or compares what can't be told.
    fn expr(&mut self, expr: &Expr) -> Option<()> {
        match expr {
            Expr::Counter(_) | Expr::Match(XtMatch::Comment(_)) => {}
            Expr::Payload {
                base,
                offset,
                len,
                dreg,
            } => {
                let field = Field::of_payload(*base, *offset, *len)?;
                self.load(field, *len, *dreg)?;
            }
            Expr::Meta { key, dreg } => {
                let (field, len) = Field::of_meta(*key)?;
                self.load(field, len, *dreg)?;
            }
            Expr::Bitwise {
                sreg,
                dreg,
                len,
                op: BitwiseOp::MaskXor { .. },
            } => {
                let len = usize::try_from(*len).ok()?;
                self.held(*sreg).filter(|own| own.len == len)?;
                self.hold(*dreg, len, None);
            }
            Expr::Cmp { op, sreg, data } => {
                let own = self.held(*sreg).filter(|own| own.len >= data.len())?;
                if let (CmpOp::Eq, Some(field)) = (op, own.plain)
                    && let Some(value) = exact(data, own.len, self.fields.get(field))
                {
                    self.ask(field, value);
                }
            }
            Expr::Range { sreg, from, to, .. } => {
                let len = from.len().max(to.len());
                self.held(*sreg).filter(|own| own.len >= len)?;
            }
            Expr::Header(head) => self.header(head)?,
            Expr::Match(condition) => self.ports(condition)?,
            _ => return None,
        }
        Some(())
    }

    fn ask(&mut self, field: usize, value: Value) {
        let (rule, before) = (self.rule, self.before);
        self.found.push(Asks {
            rule,
            field,
            value,
            before,
        });
    }

    fn load(&mut self, field: Field, len: u32, dreg: Reg) -> Option<()> {
        let field = self.look_at(field)?;
        self.hold(dreg, usize::try_from(len).ok()?, Some(field));
        Some(())
    }

    fn held(&self, reg: Reg) -> Option<&Held> {
        self.held.iter().find(|own| own.reg == reg)
    }

    fn hold(&mut self, reg: Reg, len: usize, plain: Option<usize>) {
        let words = |reg: Reg, len: usize| (usize::from(reg), usize::from(reg) + len.div_ceil(4));
        let (first, end) = words(reg, len);
        self.held.retain(|own| {
            let (own_first, own_end) = words(own.reg, own.len);
            own_end <= first || end <= own_first
        });
        self.held.push(Held { reg, len, plain });
    }

    fn header(&mut self, head: &HeaderMatch) -> Option<()> {
        // One expression: whichever of its conditions fails, it does.
        for (wanted, field) in [(head.src, Field::Src), (head.dst, Field::Dst)] {
            let Some((addr, mask, false)) = wanted else {
                continue;
            };
            let whole = header::addr_bytes(mask).iter().all(|byte| *byte == 0xff);
            if whole && addr.is_ipv6() == mask.is_ipv6() {
                let field = self.intern(field)?;
                self.ask(field, Value::of_addr(addr)?);
            }
        }
        let devices = [(&head.iif, Field::InDevice), (&head.oif, Field::OutDevice)];
        for (wanted, field) in devices {
            if let Some((name, false)) = wanted
                && !name.ends_with('+')
                && let Some(value) = Value::of(name.as_bytes())
            {
                let field = self.intern(field)?;
                self.ask(field, value);
            }
        }
        for (wanted, field) in devices {
            if wanted.is_some() {
                self.look_at(field)?;
            }
        }
        Some(())
    }

    fn ports(&mut self, condition: &XtMatch) -> Option<()> {
        let (sports, dports, invert) = match condition {
            XtMatch::Tcp {
                sports,
                dports,
                option: 0,
                invert,
                ..
            }
            | XtMatch::Udp {
                sports,
                dports,
                invert,
            } => (*sports, *dports, *invert),
            _ => return None,
        };
        let both = [(sports, 1, Field::Sport), (dports, 2, Field::Dport)];
        for (range, bit, field) in both {
            if range.0 == range.1 && invert & bit == 0 {
                let field = self.intern(field)?;
                self.ask(field, Value::of(&range.0.to_be_bytes())?);
            }
        }
        for (range, bit, field) in both {
            if range != (0, u16::MAX) || invert & bit != 0 {
                self.look_at(field)?;
            }
        }
        Some(())
    }

    fn look_at(&mut self, field: Field) -> Option<usize> {
        let field = self.intern(field)?;
        self.before |= 1_u64.checked_shl(u32::try_from(field).ok()?)?;
        Some(field)
    }

    fn intern(&mut self, field: Field) -> Option<usize> {
        if let Some(known) = self.fields.iter().position(|own| *own == field) {
            return Some(known);
        }
        (self.fields.len() < MOST_FIELDS).then(|| {
            self.fields.push(field);
            self.fields.len() - 1
        })
    }
}

/// The one value of a field that begins with these bytes. iptables-nft compares the name of a device up to the
/// zero behind it.
fn exact(data: &[u8], len: usize, field: Option<&Field>) -> Option<Value> {
    let name = matches!(field, Some(Field::Iifname | Field::Oifname)) && data.ends_with(&[0]);
    let Value(bytes, own) = Value::of(data)?;
    if name {
        return Some(Value(bytes, u8::try_from(len).ok()?));
    }
    (usize::from(own) == len).then_some(Value(bytes, own))
}
