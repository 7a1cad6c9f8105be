//! NAT: which mapping a rule asks for, and what becomes of the packet.
//!
//! Source: net/netfilter/nf_nat_core.c, nf_nat_masquerade.c, nf_nat_redirect.c (v6.12).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::HookPoint;
use super::bits::{FreePorts, UNPRIVILEGED};
use super::chain::Did;
use super::hook::BaseRef;
use super::machine::{Eval, Vm};
use super::masquerade;
use super::nat_addr::{netmap, spread};
use crate::model::conntrack::{ConntrackEntry, NatRange, Tuple, status};
use crate::model::netfilter::Hook;
use crate::model::packet::{ICMP, ICMPV6, L4, SCTP, TCP, UDP};
use crate::simulate::conntrack::{self, Manip, NewPort, error, set_up, translate};
use crate::simulate::skb::{CtRef, CtState, Flows, Sought};
use crate::simulate::source::{self, is_link_local};
use crate::trace::{Evidence, Step, StepKind};

/// NF_NAT_RANGE_MAP_IPS
pub(super) const MAP_IPS: u32 = 1;
/// NF_NAT_RANGE_PROTO_SPECIFIED
pub(super) const PROTO_SPECIFIED: u32 = 2;
/// NF_NAT_RANGE_PROTO_RANDOM and _RANDOM_FULLY
const PROTO_RANDOM_ALL: u32 = 4 | 16;
/// NF_NAT_RANGE_PROTO_OFFSET
const PROTO_OFFSET: u32 = 32;
/// NF_NAT_RANGE_NETMAP
const NETMAP: u32 = 64;

/// What a rule maps one end of a flow to.
#[derive(Clone, Debug)]
pub(super) struct Mapping {
    pub(super) share: f64,
    manip: Manip,
    addr: Option<IpAddr>,
    port: NewPort,
    /// What the port may be where it is any free one.
    free: Option<FreePorts>,
    word: &'static str,
    /// Why the flow will find no room in the table.
    clash: Option<String>,
    /// It is bound to the device that it leaves by.
    masquerades: bool,
}

/// Which end is translated at a hook (`HOOK2MANIP`).
fn manip_at(hook: Hook) -> Manip {
    match hook {
        Hook::Postrouting | Hook::Input => Manip::Src,
        _ => Manip::Dst,
    }
}

/// How NAT goes on at a hook.
pub(super) enum Turn<'a> {
    /// This chain is asked.
    Chain(BaseRef<'a>),
    /// The packet is translated.
    Done,
    /// The packet is dropped.
    Drop,
    /// Why that can't be told.
    Unknown(String),
}

/// The next NAT chain to ask, or the end of NAT at this hook with the packet translated (`nf_nat_inet_fn()`).
/// `chain`: the one whose turn it is.
pub(super) fn next_chain<'a>(
    eval: &mut Eval<'_, 'a>,
    vm: &mut Vm<'a>,
    chain: Option<BaseRef<'a>>,
) -> Turn<'a> {
    let at = eval.at;
    let manip = manip_at(at.hook);
    let CtRef::Entry {
        index,
        state,
        reply,
    } = vm.skb.ct
    else {
        vm.actor += 1;
        return Turn::Done;
    };
    let flow = vm.flows.get(at.ns, index);
    if error::is_error(&vm.skb.packet) && state == CtState::Related {
        vm.actor += 1;
        let entry = flow.map(|flow| flow.entry.clone());
        return match entry.map(|entry| quoted(vm, &entry, reply, manip)) {
            Some(true) => Turn::Done,
            Some(false) => Turn::Drop,
            None => Turn::Unknown("connection not known".to_owned()),
        };
    }
    // An entry of the kernel's table was decided on when it was made.
    let undecided = flow.filter(|flow| {
        state != CtState::Established
            && flow.entry.status & manip.done() == 0
            && !flow.existing
            && !flow.confirmed
    });
    if let Some(flow) = undecided {
        if let Some(chain) = chain {
            return Turn::Chain(chain);
        }
        let entry = flow.entry.clone();
        if let Err(why) = keep(eval, vm, &entry, manip) {
            return Turn::Unknown(why);
        }
        return Turn::Done;
    }
    if let Some(flow) = flow.filter(|_| at.hook == Hook::Postrouting && !reply) {
        match masquerade::leaves_elsewhere(eval, flow) {
            Ok(None) => {}
            Ok(Some(text)) => {
                vm.steps.push(Step::new(StepKind::Nat, text));
                return Turn::Drop;
            }
            Err(why) => return Turn::Unknown(why),
        }
    }
    finish(at, vm, None, false);
    Turn::Done
}

/// Translates an error and what it quotes; `false`: it is dropped.
fn quoted(vm: &mut Vm<'_>, entry: &ConntrackEntry, reply: bool, manip: Manip) -> bool {
    let before = vm.skb.packet.clone();
    match error::translate(&mut vm.skb.packet, entry, reply, manip) {
        Err(()) => {
            let text = "a redirect about a translated connection is dropped";
            vm.steps.push(Step::new(StepKind::Nat, text));
            false
        }
        Ok(false) => true,
        Ok(true) => {
            let after = &vm.skb.packet;
            let text = match manip {
                Manip::Src => format!("error: source to {}", after.src),
                Manip::Dst => format!("error: destination to {}", after.dst),
            };
            vm.steps
                .push(Step::new(StepKind::Nat, text).changing(&before, after));
            true
        }
    }
}

/// No rule translates: the address is kept, and so is the port, unless another flow's answers would look the same
/// (`__nf_nat_alloc_null_binding()`).
fn keep(
    eval: &mut Eval<'_, '_>,
    vm: &mut Vm<'_>,
    entry: &ConntrackEntry,
    manip: Manip,
) -> Result<(), String> {
    let current = entry.reply.inverted();
    let taken = is_taken(
        eval,
        &vm.flows,
        (entry, &current),
        manip,
        None,
        NewPort::Keep,
    )?;
    let (at, CtRef::Entry { index, .. }) = (eval.at, vm.skb.ct) else {
        return Ok(());
    };
    let port = if taken.is_some() {
        NewPort::Free
    } else {
        NewPort::Keep
    };
    if let Some(flow) = vm.flows.get_mut(at.ns, index) {
        set_up(&mut flow.entry, manip, None, port);
    }
    let Some(other) = taken else {
        finish(at, vm, None, false);
        return Ok(());
    };
    let free = beside(&current);
    vm.skb.free = (vm.skb.free.0.min(free.0), vm.skb.free.1.max(free.1));
    let text =
        format!("another source port, since answers to this one would be those of {other}: as");
    let given = Some(free).filter(|range| *range != UNPRIVILEGED);
    finish(at, vm, Some((Step::new(StepKind::Nat, text), given)), true);
    Ok(())
}

/// Makes the mapping and translates the packet.
pub(super) fn apply(
    at: &HookPoint<'_>,
    vm: &mut Vm<'_>,
    mapping: &Mapping,
    evidence: Vec<Evidence>,
    assumed: Vec<Evidence>,
) {
    if let CtRef::Entry { index, .. } = vm.skb.ct
        && let Some(flow) = vm.flows.get_mut(at.ns, index)
    {
        set_up(&mut flow.entry, mapping.manip, mapping.addr, mapping.port);
        if mapping.clash.is_some() {
            flow.clash.clone_from(&mapping.clash);
        }
        if mapping.masquerades {
            flow.masqueraded = at.devices.oif;
        }
    }
    if let Some((first, last)) = mapping.free {
        // One direction has the old port and one the new: both are covered.
        let old = vm.skb.free;
        vm.skb.free = (old.0.min(first), old.1.max(last));
    }
    let mut step = Step::new(StepKind::Nat, mapping.word);
    step.evidence = evidence;
    step.evidence.extend(assumed);
    // A range that the rule itself gives.
    let given = mapping.free.filter(|range| *range != UNPRIVILEGED);
    finish(at, vm, Some((step, given)), mapping.free.is_some());
}

/// Translates the packet as its entry says, and leaves the NAT actor. `drawn`: its port is any free one now.
fn finish(
    at: &HookPoint<'_>,
    vm: &mut Vm<'_>,
    by_rule: Option<(Step, Option<FreePorts>)>,
    drawn: bool,
) {
    vm.actor += 1;
    vm.nat_chain = 0;
    let CtRef::Entry { index, reply, .. } = vm.skb.ct else {
        return;
    };
    let Some(flow) = vm.flows.get(at.ns, index) else {
        return;
    };
    let manip = manip_at(at.hook);
    let before = vm.skb.packet.clone();
    let changed = translate(&mut vm.skb.packet, &flow.entry, reply, manip);
    let carried = vm.skb.packet.inner.as_ref();
    // Of a port that nobody knows, a new one is as unknown.
    vm.skb.resummed |= vm.skb.packet.is_tunnel()
        && (vm.skb.packet != before || drawn)
        && carried.is_some_and(|inner| matches!(inner.packet.l4, L4::Tcp { .. } | L4::Udp { .. }));
    let after = &vm.skb.packet;
    let (addr, port) = match manip {
        Manip::Src => (after.src, after.sport()),
        Manip::Dst => (after.dst, after.dport()),
    };
    let old_port = match manip {
        Manip::Src => before.sport(),
        Manip::Dst => before.dport(),
    };
    let target = match (addr, port) {
        (IpAddr::V6(addr), Some(port)) => format!("[{addr}]:{port}"),
        (addr, Some(port)) if manip == Manip::Dst || old_port != Some(port) => {
            format!("{addr}:{port}")
        }
        (addr, _) => addr.to_string(),
    };
    let step = if let Some((mut step, ports)) = by_rule {
        step.result = format!("{} {target}", step.result);
        if let (None, Some((first, last))) = (port, ports) {
            step.result = format!("{}, port {first} to {last}", step.result);
        }
        step
    } else if changed {
        let result = match (reply, manip) {
            (true, Manip::Src) => format!("answer: source back to {target}"),
            (true, Manip::Dst) => format!("answer: destination back to {target}"),
            (false, Manip::Src) => format!("snat to {target}, as the connection has it"),
            (false, Manip::Dst) => format!("dnat to {target}, as the connection has it"),
        };
        Step::new(StepKind::Nat, result).with(Evidence::Conntrack {
            entry: flow.entry.clone(),
            existing: flow.existing,
        })
    } else {
        return;
    };
    vm.steps.push(step.changing(&before, after));
}

/// What a rule asks for: addresses and ports with NF_NAT_RANGE_* flags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub(super) flags: u32,
    pub(super) addrs: Option<(IpAddr, IpAddr)>,
    pub(super) ports: Option<(u16, u16)>,
    /// Port that the first one stands for, with NF_NAT_RANGE_PROTO_OFFSET.
    pub(super) base: u16,
}

impl From<NatRange> for Range {
    fn from(range: NatRange) -> Self {
        Self {
            flags: range.flags,
            addrs: range.addrs.filter(|_| range.flags & MAP_IPS != 0),
            ports: range.ports.filter(|_| range.flags & PROTO_SPECIFIED != 0),
            base: range.base,
        }
    }
}

/// SNAT or DNAT to a range.
pub(super) fn to_range(
    eval: &mut Eval<'_, '_>,
    vm: &Vm<'_>,
    manip: Manip,
    range: Range,
    word: &'static str,
) -> Did {
    if !eval.in_nat(vm) {
        return Did::Blind("nat outside of a nat chain".to_owned());
    }
    if manip != manip_at(eval.at.hook) {
        return Did::Blind("nat that does not belong to this hook".to_owned());
    }
    let CtRef::Entry { index, .. } = vm.skb.ct else {
        return Did::Verdict(crate::model::netfilter::Verdict::Accept);
    };
    let Some(flow) = vm.flows.get(eval.at.ns, index) else {
        return Did::Blind("connection not known".to_owned());
    };
    let entry = flow.entry.clone();
    let current = entry.reply.inverted();
    let own = match manip {
        Manip::Src => current.src,
        Manip::Dst => current.dst,
    };
    let addr = match range.addrs {
        None => None,
        Some((first, last)) if range.flags & NETMAP != 0 => Some(netmap(own, first, last)),
        Some((first, last)) if first == last => Some(first),
        // An address that lies in the range already is kept where ports are not to be random.
        Some((first, last))
            if manip == Manip::Src
                && range.flags & PROTO_RANDOM_ALL == 0
                && (first..=last).contains(&own) =>
        {
            Some(own)
        }
        // The zone of both directions, or of the one that has its own.
        Some((first, last)) => {
            let zone = entry.zone | entry.reply_zone;
            Some(spread(&current, first, last, range.flags, zone))
        }
    };
    let mut port = port(&current, manip, range);
    let mut addr = addr;
    let mut word = word;
    match earlier(eval, (&entry, &current), manip, range) {
        Ok(None) => {}
        Ok(Some((old, sport))) => {
            let kept = sport.map_or(NewPort::Keep, NewPort::Is);
            match is_taken(eval, &vm.flows, (&entry, &current), manip, Some(old), kept) {
                Ok(None) => {
                    return Did::Map(vec![Mapping {
                        share: 1.0,
                        manip,
                        addr: Some(old),
                        port: kept,
                        free: None,
                        word: match word {
                            "masquerade as" => "masquerade, as other flows of this source, as",
                            _ => "snat, as other flows of this source, to",
                        },
                        clash: None,
                        masquerades: false,
                    }]);
                }
                Ok(Some(_)) => {}
                Err(why) => return Did::Blind(why),
            }
        }
        Err(why) => return Did::Blind(why),
    }
    let mut clash = None;
    match is_taken(eval, &vm.flows, (&entry, &current), manip, addr, port) {
        Ok(None) => {}
        Ok(Some(other)) => match range.ports {
            Some((first, last)) if first == last => {
                clash = Some(format!(
                    "no room in conntrack's table: the only port that the rule gives is taken by another flow ({other})"
                ));
            }
            _ => {
                port = NewPort::Free;
                word = match word {
                    "masquerade as" => "masquerade, its port being taken, as",
                    _ => "snat, its port being taken, to",
                };
            }
        },
        Err(why) => return Did::Blind(why),
    }
    let free = (port == NewPort::Free).then(|| range.ports.unwrap_or(beside(&current)));
    Did::Map(vec![Mapping {
        share: 1.0,
        manip,
        addr: addr.take(),
        port,
        free,
        word,
        clash,
        masquerades: false,
    }])
}

/// Source that another flow of this very source was given: it is given again where the rule allows it
/// (`find_appropriate_src()`), unless this flow's own source would do.
fn earlier(
    eval: &mut Eval<'_, '_>,
    (entry, current): (&ConntrackEntry, &Tuple),
    manip: Manip,
    range: Range,
) -> Result<Option<(IpAddr, Option<u16>)>, String> {
    let fits = |addr: IpAddr, port: Option<u16>| {
        let addrs = range.addrs;
        addrs.is_none_or(|(first, last)| (first..=last).contains(&addr))
            && range
                .ports
                .is_none_or(|(first, last)| port.is_some_and(|port| (first..=last).contains(&port)))
    };
    let asks = manip == Manip::Src && range.flags & PROTO_RANDOM_ALL == 0;
    // A flow to come has a port that no other has.
    let (true, Some(_)) = (asks, current.sport) else {
        return Ok(None);
    };
    if fits(current.src, current.sport) {
        return Ok(None);
    }
    let others = conntrack::of_source(eval.cx, eval.at.ns, &entry.orig)?;
    let given = others.iter().filter(|other| {
        other.zone == entry.zone
            && other.orig != entry.orig
            && other.status & status::SRC_NAT_DONE != 0
            && fits(other.reply.dst, other.reply.inverted().sport)
    });
    let mut given = given.map(|other| (other.reply.dst, other.reply.inverted().sport));
    let first = given.next();
    if given.any(|other| Some(other) != first) {
        return Err(
            "flows of this source were given several others: which one this flow gets is not told"
                .to_owned(),
        );
    }
    Ok(first)
}

/// Ports among which the kernel looks for a free one where the rule names none
/// (`nf_nat_l4proto_unique_tuple()`).
fn beside(current: &Tuple) -> FreePorts {
    if matches!(current.protocol, ICMP | ICMPV6) {
        return (0, u16::MAX);
    }
    match current.sport {
        Some(0..512) => (1, 511),
        Some(512..1024) => (600, 1023),
        _ => UNPRIVILEGED,
    }
}

/// Another flow of the kernel's table whose answers would look the same, so that the source can't be this one
/// (`nf_nat_used_tuple()`). Destinations are not looked at: no rule that names one takes another.
fn is_taken(
    eval: &mut Eval<'_, '_>,
    flows: &Flows,
    (entry, current): (&ConntrackEntry, &Tuple),
    manip: Manip,
    addr: Option<IpAddr>,
    port: NewPort,
) -> Result<Option<String>, String> {
    if manip == Manip::Dst || !matches!(current.protocol, TCP | UDP | SCTP | ICMP | ICMPV6) {
        return Ok(None);
    }
    let new = Tuple {
        src: addr.unwrap_or(current.src),
        sport: match port {
            NewPort::Keep => current.sport,
            NewPort::Free => None,
            NewPort::Is(port) => Some(port),
        },
        ..*current
    };
    let sought = Sought::as_reply(entry);
    let reply = new.inverted();
    let under_way = flows.find(eval.at.ns, &reply, sought);
    let under_way = under_way.and_then(|(index, _)| flows.get(eval.at.ns, index));
    let other = match under_way {
        Some(flow) => Some(flow.entry.clone()),
        None => conntrack::in_kernel(eval.cx, eval.at.ns, &reply, sought)?,
    };
    // The rest of a closed connection makes room for the same one anew.
    let other =
        other.filter(|other| other.orig != entry.orig && !flows.is_killed(eval.at.ns, &other.orig));
    // Two packets of one flow that each opened one (`nf_nat_used_tuple_new()`): these clash later.
    let nat = status::SRC_NAT | status::DST_NAT;
    let other = other.filter(|other| {
        !(current.protocol == UDP
            && new == *current
            && (other.status | entry.status) & nat == 0
            && other.orig == entry.reply)
    });
    // Where the rule gives this port alone, a connection that is over gives way, if its client had reached a lower sequence
    // number than this one begins with (`nf_nat_used_tuple_harder()`). One that is closing may be over by then.
    if let (NewPort::Is(_), Some(other)) = (port, &other)
        && other.tcp_state.is_some_and(conntrack::is_closing)
        && other.status & status::SRC_NAT != 0
        && other.status & (status::FIXED_TIMEOUT | status::DYING) == 0
    {
        return Err(format!(
            "the only port that the rule gives is that of a connection that is closing ({}): whether that gives way depends on sequence numbers",
            conntrack::words(&other.orig)
        ));
    }
    Ok(other.map(|other| conntrack::words(&other.orig)))
}

/// The new port (`get_unique_tuple()`, `nf_nat_l4proto_unique_tuple()`).
fn port(current: &Tuple, manip: Manip, range: Range) -> NewPort {
    let echo = matches!(current.protocol, ICMP | ICMPV6);
    if !echo && !matches!(current.protocol, TCP | UDP | SCTP) {
        return NewPort::Keep;
    }
    let own = match manip {
        Manip::Src => current.sport,
        Manip::Dst if echo => return NewPort::Keep,
        Manip::Dst => current.dport,
    };
    let random = range.flags & PROTO_RANDOM_ALL != 0;
    match range.ports {
        Some((first, last)) if first == last => NewPort::Is(first),
        Some((first, last)) if range.flags & PROTO_OFFSET != 0 => {
            let size = last.checked_sub(first).and_then(|more| more.checked_add(1));
            let Some((own, size)) = own.zip(size) else {
                return NewPort::Free;
            };
            NewPort::Is(first.wrapping_add(own.wrapping_sub(range.base) % size))
        }
        Some((first, last)) if !random && own.is_some_and(|p| (first..=last).contains(&p)) => {
            NewPort::Keep
        }
        Some((first, _)) if manip == Manip::Dst && !random => NewPort::Is(first),
        Some(_) => NewPort::Free,
        None if random && manip == Manip::Src => NewPort::Free,
        None => NewPort::Keep,
    }
}

/// MASQUERADE.
pub(super) fn masquerade(eval: &mut Eval<'_, '_>, vm: &Vm<'_>, range: Range) -> Did {
    let Some(oif) = eval.at.devices.oif else {
        return Did::Blind("masquerades without a device to leave by".to_owned());
    };
    let (dst, via) = (vm.skb.packet.dst, eval.at.devices.via);
    match source::masquerade(eval.cx, eval.at.ns, oif, dst, via) {
        Ok(Some(addr)) => {
            let range = Range {
                addrs: Some((addr, addr)),
                ..range
            };
            match to_range(eval, vm, Manip::Src, range, "masquerade as") {
                Did::Map(mut mappings) => {
                    for mapping in &mut mappings {
                        mapping.masquerades = true;
                    }
                    Did::Map(mappings)
                }
                other => other,
            }
        }
        Ok(None) => Did::Verdict(crate::model::netfilter::Verdict::Drop),
        Err(why) => Did::Blind(why),
    }
}

/// REDIRECT: loopback for local packets, else an address of the incoming device.
///
/// Source: `nf_nat_redirect_ipv4()`: the first address of scope universe, then any; `_ipv6()`.
pub(super) fn redirect(eval: &mut Eval<'_, '_>, vm: &Vm<'_>, range: Range) -> Did {
    let v6 = vm.skb.packet.src.is_ipv6();
    let addr = if eval.at.hook == Hook::Output {
        if v6 {
            IpAddr::V6(Ipv6Addr::LOCALHOST)
        } else {
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        }
    } else {
        let Some(iif) = eval.at.devices.iif else {
            return Did::Blind("redirects without an incoming device".to_owned());
        };
        let Some(addrs) = eval.ns.addrs.known() else {
            return Did::Blind("addresses of the incoming device not read".to_owned());
        };
        // `nf_nat_redirect_ipv6_usable()` (6.7): what is sent to an address of the link is not sent out of it.
        let scoped = is_link_local(vm.skb.packet.dst);
        let mut own = addrs.iter().filter(|addr| {
            addr.link == iif
                && addr.local.is_ipv6() == v6
                && !(v6 && addr.tentative)
                && (!scoped || is_link_local(addr.local))
        });
        match own.find(|addr| !addr.secondary || v6) {
            Some(addr) => addr.local,
            None => return Did::Verdict(crate::model::netfilter::Verdict::Drop),
        }
    };
    let range = Range {
        addrs: Some((addr, addr)),
        ..range
    };
    to_range(eval, vm, Manip::Dst, range, "redirect to")
}
