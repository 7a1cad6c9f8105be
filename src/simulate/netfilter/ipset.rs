//! Sets of ipset: the `set` match and the `SET` target.
//!
//! Source: `set_match_v4()`, `set_target_v3()`, net/netfilter/xt_set.c; `ip_set_test()`,
//! net/netfilter/ipset/ip_set_core.c; `mtype_test()`, ip_set_hash_gen.h and ip_set_bitmap_gen.h; the `_kadt()`
//! functions of the types (v6.12).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::bits::{FreePorts, Tri, free_port_of};
use super::chain::Did;
use super::ipset_key::{self, Lack, Shown};
use super::machine::{Eval, Vm};
use super::step::set_mark;
use crate::model::Section;
use crate::model::ipset::{Ipset, IpsetField, IpsetMember, IpsetMethod, IpsetPart};
use crate::model::netfilter::Rule;
use crate::model::want::Want;
use crate::model::xtables::{SetRef, SetTarget};
use crate::trace::Evidence;

/// IPSET_FLAG_MATCH_COUNTERS
const COUNTERS: u32 = 0x20;
/// IPSET_FLAG_RETURN_NOMATCH
const RETURN_NOMATCH: u32 = 0x80;
/// IPSET_FLAG_MAP_SKBMARK
const MAP_MARK: u32 = 0x100;
/// Sets that a rule asked in vain, as many as a step tells of: the last ones.
const MOST_MISSES: usize = 8;
/// Where [`Flows`](crate::simulate::skb::Flows) note changes of ipsets: no table of nf_tables has this name.
const TABLE: &str = "";

/// What a rule asks of a set.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// Index of the set in the kernel.
    pub(super) index: u16,
    /// Its name.
    pub(super) name: Option<&'a str>,
    /// Why it has none.
    pub(super) unnamed: Option<&'a str>,
    /// Sides of the dimensions: true is the source.
    pub(super) dims: &'a [bool],
    /// Negated.
    pub(super) invert: bool,
    /// IPSET_FLAG_*.
    pub(super) flags: u32,
}

impl<'a> Asked<'a> {
    fn of(set: &'a SetRef) -> Self {
        Self {
            index: set.index,
            name: set.name.as_deref(),
            unnamed: set.unnamed.as_deref(),
            dims: &set.dims,
            invert: set.invert,
            flags: 0,
        }
    }

    fn name(&self) -> Result<&'a str, String> {
        let why = self.unnamed.unwrap_or("its name was not read");
        self.name
            .ok_or_else(|| format!("ipset number {}: {why}", self.index))
    }
}

/// What a set says of a packet.
struct Answer {
    hit: Tri,
    /// The member that decided, or that none did.
    said: String,
}

impl Answer {
    fn no(said: String) -> Self {
        Self { hit: Tri::No, said }
    }

    fn unknown(why: String) -> Self {
        Self {
            hit: Tri::Unknown(why),
            said: String::new(),
        }
    }
}

/// Runs the match.
pub(super) fn eval(eval: &mut Eval<'_, '_>, vm: &mut Vm<'_>, asked: &Asked<'_>) -> Did {
    let name = match asked.name() {
        Ok(name) => name,
        Err(why) => return Did::Doubt(why),
    };
    let answer = ask(eval, vm, name, asked, false);
    let matches = answer.hit.negated(asked.invert);
    match &matches {
        Tri::Yes => {
            if let Some(walk) = vm.walk.as_mut() {
                walk.elements.push(Evidence::SetElement {
                    set: name.to_owned(),
                    text: answer.said,
                });
            }
        }
        Tri::No => miss(vm, name, &answer.said),
        Tri::Unknown(_) => {}
    }
    Did::when(matches)
}

/// Keeps what a set said where it made a rule not match: a drop behind it follows from that.
fn miss(vm: &mut Vm<'_>, set: &str, said: &str) {
    let Some(walk) = vm.walk.as_mut() else { return };
    let Some(frame) = walk.frames.last() else {
        return;
    };
    let rules = frame.chain.rules.known().map_or(&[][..], Vec::as_slice);
    let handle = rules.get(frame.rule).map_or(0, |rule| rule.handle);
    let chain = &frame.chain.name;
    let missed = Evidence::SetElement {
        set: set.to_owned(),
        text: format!("{said}, so that rule {handle} of chain {chain} does not match"),
    };
    walk.misses.retain(|own| *own != missed);
    if walk.misses.len() >= MOST_MISSES {
        walk.misses.remove(0);
    }
    walk.misses.push(missed);
}

/// The set of this name. `Err`: what is missing.
fn find<'a>(eval: &mut Eval<'_, 'a>, name: &str) -> Result<&'a Ipset, String> {
    match eval.ns.ipsets.get(name) {
        Some(Section::Known(set)) => Ok(set),
        Some(Section::Missing(why)) => Err(format!("members of ipset {name}: {why}")),
        Some(Section::NotAsked) | None => {
            let want = Want::Ipset {
                netns: eval.at.ns.netns,
                set: name.to_owned(),
            };
            eval.cx.want(&eval.at.ns.node, want);
            Err(format!("members of ipset {name} not read"))
        }
    }
}

/// `ip_set_test()`. `within`: a `list:set` names it.
fn ask(
    eval: &mut Eval<'_, '_>,
    vm: &mut Vm<'_>,
    name: &str,
    asked: &Asked<'_>,
    within: bool,
) -> Answer {
    let set = match find(eval, name) {
        Ok(set) => set,
        Err(why) => return Answer::unknown(why),
    };
    let known = COUNTERS | RETURN_NOMATCH | ipset_key::PHYSDEV;
    if asked.flags & !known != 0 {
        let flags = asked.flags & !known;
        return Answer::unknown(format!("flags {flags:#x} of a set match are not known"));
    }
    if set.kind.method == IpsetMethod::List {
        return if within {
            Answer::unknown(format!("ipset {name} is a list in a list"))
        } else {
            ask_list(eval, vm, set, asked)
        };
    }
    let shown = match ipset_key::shown(eval, &vm.skb, set, asked.dims, asked.flags) {
        Ok(shown) => shown,
        Err(Lack::Never(why)) => return Answer::no(why),
        Err(Lack::Unknown(why)) => return Answer::unknown(why),
    };
    let text = ipset_key::text(&shown);
    let key = ipset_key::exact(&shown).map(|()| text.as_bytes());
    let counts = asked.flags & COUNTERS != 0 && set.head.counters;
    match vm.flows.changed(eval.at.ns, (TABLE, name), key) {
        None => {}
        Some(Some(there)) if !counts && !set.kind.has_nomatch() => {
            let said = if there { "was added" } else { "was deleted" };
            return Answer {
                hit: Tri::from(there),
                said: format!("{text} {said} by a rule before"),
            };
        }
        Some(_) => {
            let why = format!("ipset {name} is changed by a rule before this one");
            return Answer::unknown(why);
        }
    }
    let (answer, member) = lookup(set, &shown, asked.flags, vm.skb.free);
    let hit = match answer {
        Some(found) if counts && (found || member.is_some()) => {
            Tri::Unknown(format!("counters of ipset {name} are compared"))
        }
        Some(found) => Tri::from(found),
        None => Tri::Unknown(format!("whether {text} is in ipset {name} is not known")),
    };
    if let (Tri::Yes, Some(member)) = (&hit, member) {
        learn(eval, vm, set, member, &text);
    }
    let said = match member {
        Some(member) if member.nomatch => format!("{text} is taken out by {member}"),
        Some(member) if member.element() == text => member.to_string(),
        Some(member) => format!("{text} is in {member}"),
        None if hit == Tri::Yes => format!("{text} is in it"),
        None => {
            let count = set.members.len();
            let plural = if count == 1 { "" } else { "s" };
            format!("{text} is no member ({count} member{plural})")
        }
    };
    Answer { hit, said }
}

/// `list_set_ktest()`
fn ask_list(eval: &mut Eval<'_, '_>, vm: &mut Vm<'_>, list: &Ipset, asked: &Asked<'_>) -> Answer {
    if asked.dims.is_empty() {
        return Answer::no("the rule names no side".to_owned());
    }
    let counts = asked.flags & COUNTERS != 0 && list.head.counters;
    let inner = Asked {
        flags: asked.flags & !COUNTERS,
        ..*asked
    };
    let parts = list.members.iter().flat_map(|member| &member.parts);
    let names = parts.filter_map(|part| match part {
        IpsetPart::Set(name) => Some(name),
        _ => None,
    });
    let mut doubt = None;
    let mut said = Vec::new();
    for name in names {
        let answer = ask(eval, vm, name, &inner, true);
        match answer.hit {
            Tri::Yes if counts => {
                let why = format!("counters of ipset {} are compared", list.name);
                return Answer::unknown(why);
            }
            Tri::Yes => {
                let said = format!("{name}: {}", answer.said);
                return Answer {
                    hit: Tri::Yes,
                    said,
                };
            }
            Tri::No => said.push(format!("{name}: {}", answer.said)),
            Tri::Unknown(why) => doubt = doubt.or(Some(why)),
        }
    }
    match doubt {
        Some(why) => Answer::unknown(why),
        None if said.is_empty() => Answer::no("it lists no set".to_owned()),
        None => Answer::no(said.join("; ")),
    }
}

/// A member that fits a packet, as far as that is known.
struct Fit<'a> {
    member: &'a IpsetMember,
    sure: bool,
    /// Its port, where that of the packet is any free one.
    port: Option<u16>,
}

/// Whether a packet is in a set, and the member that decides; `None`: can't be told.
fn lookup<'a>(
    set: &'a Ipset,
    shown: &[Shown],
    flags: u32,
    free: FreePorts,
) -> (Option<bool>, Option<&'a IpsetMember>) {
    let mut fits: Vec<Fit<'a>> = Vec::new();
    // Of hash:net,iface: how long the networks are that fit, whatever the device.
    let (iface, mut nets) = (set.kind.fields.contains(&IpsetField::Iface), None);
    'members: for member in &set.members {
        let mut fit = Fit {
            member,
            sure: true,
            port: None,
        };
        let mut device = true;
        for (shown, part) in shown.iter().zip(&member.parts) {
            if let (Shown::Port(_, None), IpsetPart::Port(_, port)) = (shown, part) {
                fit.port = Some(*port);
            }
            match ipset_key::fits(shown, part) {
                Some(true) => {}
                Some(false) if ipset_key::is_other_device(shown, part) => device = false,
                Some(false) => continue 'members,
                None => fit.sure = false,
            }
        }
        if iface {
            nets = nets.max(Some(lens(set, member)));
        }
        if device {
            fits.push(fit);
        }
    }
    if iface {
        // A network that fits ends the search though none of its devices does (IP_SET_HASH_WITH_MULTI).
        fits.retain(|fit| Some(lens(set, fit.member)) == nets);
    }
    let inverted = flags & RETURN_NOMATCH != 0 && set.kind.has_nomatch();
    if shown
        .iter()
        .any(|shown| matches!(shown, Shown::Port(_, None)))
    {
        return (with_free_port(set, &fits, inverted, free), None);
    }
    decide(set, fits.iter().collect(), inverted)
}

/// Prefix lengths of a member's networks: the kernel tries longer ones first, the first network's before the
/// second's.
fn lens(set: &Ipset, member: &IpsetMember) -> Vec<u8> {
    let fields = set.kind.fields.iter().zip(&member.parts);
    let nets = fields.filter_map(|(field, part)| match (field, part) {
        (IpsetField::Net, IpsetPart::Net(_, len)) => Some(*len),
        _ => None,
    });
    nets.collect()
}

/// Which of the members that fit decides.
fn decide<'a>(
    set: &Ipset,
    mut fits: Vec<&Fit<'a>>,
    inverted: bool,
) -> (Option<bool>, Option<&'a IpsetMember>) {
    fits.sort_by_key(|fit| Reverse(lens(set, fit.member)));
    let mut sure: Option<&Fit<'a>> = None;
    let mut possible = Vec::new();
    for fit in fits {
        let behind = sure.is_some_and(|sure| lens(set, sure.member) != lens(set, fit.member));
        if behind {
            break;
        }
        possible.push(fit.member.nomatch == inverted);
        if fit.sure && sure.is_none() {
            sure = Some(fit);
        }
    }
    if sure.is_none() {
        possible.push(false);
    }
    let first = possible.first().copied();
    let alike = possible.iter().all(|one| Some(*one) == first);
    (first.filter(|_| alike), sure.map(|sure| sure.member))
}

/// Any free port in a set of ports.
fn with_free_port(
    set: &Ipset,
    fits: &[Fit<'_>],
    inverted: bool,
    (first, last): FreePorts,
) -> Option<bool> {
    let mut by_port: BTreeMap<u16, Vec<&Fit<'_>>> = BTreeMap::new();
    for fit in fits {
        if let Some(port) = fit.port.filter(|port| (first..=last).contains(port)) {
            by_port.entry(port).or_default().push(fit);
        }
    }
    let (mut named, mut doubtful) = (0, 0);
    for fits in by_port.into_values() {
        match decide(set, fits, inverted).0 {
            Some(true) => named += 1,
            Some(false) => {}
            None => doubtful += 1,
        }
    }
    free_port_of(named, doubtful, (first, last))
}

/// An address of `bitmap:ip,mac` without a link-layer address takes that of the first packet that asks
/// (`-EAGAIN` of `bitmap_ipmac_do_test()`).
fn learn(eval: &Eval<'_, '_>, vm: &mut Vm<'_>, set: &Ipset, member: &IpsetMember, text: &str) {
    if !member.parts.contains(&IpsetPart::Mac(None)) {
        return;
    }
    let place = (TABLE, set.name.as_str());
    // Others with this address do not match any more; only this one is told apart from what was there.
    vm.flows.change(eval.at.ns, place, None, true);
    let key = Some(text.as_bytes().to_vec());
    vm.flows.change(eval.at.ns, place, key, true);
}

/// Runs the target. It never ends a rule's chain.
pub(super) fn target(
    eval: &mut Eval<'_, '_>,
    vm: &mut Vm<'_>,
    rule: &Rule,
    target: &SetTarget,
) -> Did {
    for (set, added) in [(&target.add, true), (&target.del, false)] {
        if let Some(set) = set {
            let asked = Asked::of(set);
            match asked.name() {
                Ok(name) => change(eval, vm, name, &asked, added, false),
                Err(why) => return Did::Blind(format!("changes a set: {why}")),
            }
        }
    }
    let Some(map) = target.map.as_ref().filter(|_| target.flags & MAP_MARK != 0) else {
        return Did::Next;
    };
    let asked = Asked::of(map);
    let name = match asked.name() {
        Ok(name) => name,
        Err(why) => return Did::Blind(format!("takes a mark from a set: {why}")),
    };
    let answer = ask(eval, vm, name, &asked, false).hit;
    let marks = eval.ns.ipsets.get(name).and_then(Section::known);
    let marks = marks.is_none_or(|set| set.head.skbinfo || set.kind.method == IpsetMethod::List);
    if answer.negated(map.invert) != Tri::No && marks {
        // Marks of members are not read.
        set_mark(vm, rule, None);
    }
    Did::Next
}

/// Notes that a rule adds a packet to a set, or deletes it (`ip_set_add()`, `ip_set_del()`).
fn change(
    eval: &mut Eval<'_, '_>,
    vm: &mut Vm<'_>,
    name: &str,
    asked: &Asked<'_>,
    added: bool,
    within: bool,
) {
    let set = find(eval, name).ok();
    if let Some(list) = set.filter(|set| set.kind.method == IpsetMethod::List && !within) {
        for part in list.members.iter().flat_map(|member| &member.parts) {
            if let IpsetPart::Set(name) = part {
                // Which of them takes it is not followed.
                vm.flows.change(eval.at.ns, (TABLE, name), None, added);
            }
        }
        return;
    }
    let shown = set.map(|set| ipset_key::shown(eval, &vm.skb, set, asked.dims, asked.flags));
    let key = match (set, shown) {
        // The set takes no such packet.
        (Some(_), Some(Err(Lack::Never(_)))) => return,
        (Some(set), Some(Ok(shown))) => {
            let plain =
                |field| matches!(field, IpsetField::Ip | IpsetField::Port | IpsetField::Mark);
            let full = |most| usize::try_from(most).is_ok_and(|most| set.members.len() >= most);
            let sure = set.kind.fields.iter().all(|field| plain(*field))
                && !set.head.maxelem.is_some_and(|most| added && full(most));
            let exact = ipset_key::exact(&shown).filter(|()| sure);
            exact.map(|()| ipset_key::text(&shown).into_bytes())
        }
        _ => None,
    };
    vm.flows.change(eval.at.ns, (TABLE, name), key, added);
}
