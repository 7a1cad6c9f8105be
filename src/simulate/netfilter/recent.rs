//! The `recent` match: lists of addresses that were seen before.
//!
//! Source: `recent_mt()`, net/netfilter/xt_recent.c (v6.12).

use std::net::IpAddr;

use super::bits::Tri;
use super::chain::Did;
use super::machine::{Eval, Vm};
use crate::model::Section;
use crate::model::recent::RecentEntry;
use crate::trace::Evidence;

/// XT_RECENT_SET
const SET: u8 = 2;
/// XT_RECENT_UPDATE
const UPDATE: u8 = 4;
/// XT_RECENT_REMOVE
const REMOVE: u8 = 8;
/// XT_RECENT_TTL
const TTL: u8 = 16;

/// What a rule asks.
pub(super) struct Asked<'a> {
    pub(super) list: &'a str,
    pub(super) seconds: u32,
    pub(super) hit_count: u32,
    pub(super) check_set: u8,
    pub(super) invert: bool,
    pub(super) source: bool,
    pub(super) mask: Option<IpAddr>,
}

/// Runs the match.
pub(super) fn eval(eval: &mut Eval<'_, '_>, vm: &mut Vm<'_>, asked: &Asked<'_>) -> Did {
    let packet = &vm.skb.packet;
    let addr = if asked.source { packet.src } else { packet.dst };
    let addr = under(addr, asked.mask);
    // As it was before this host forwarded it.
    let forwarded = eval.at.devices.oif.is_some() && !vm.skb.local;
    let ttl = packet.ttl.wrapping_add(u8::from(forwarded));
    if asked.check_set & SET != 0 {
        vm.flows.note(eval.at.ns, asked.list, addr);
        return Did::when(Tri::from(!asked.invert));
    }
    let now = vm.flows.noted(eval.at.ns, asked.list, addr);
    let gone = vm.flows.removed(eval.at.ns, asked.list, addr);
    let entry = match entry(eval, asked, addr, ttl).map(|entry| entry.filter(|_| !gone)) {
        Ok(entry) => entry,
        Err(why) if now == 0 && !gone => return Did::Doubt(why),
        Err(_) => None,
    };
    let hit = if entry.is_none() && now == 0 {
        Some(false)
    } else if asked.check_set & REMOVE != 0 {
        Some(true)
    } else {
        hits(asked, entry, now)
    };
    let Some(hit) = hit else {
        let list = asked.list;
        return Did::Doubt(format!("when list {list} saw {addr} is not known"));
    };
    if let (true, Some(walk)) = (hit, vm.walk.as_mut()) {
        let last = entry.and_then(|entry| entry.ages.iter().flatten().min());
        let when = last.map_or_else(String::new, |age| format!(", seen {} s ago", age / 1000));
        walk.elements.push(Evidence::SetElement {
            set: format!("recent {}", asked.list),
            text: format!("{addr}{when}"),
        });
    }
    if hit && asked.check_set & REMOVE != 0 {
        vm.flows.remove(eval.at.ns, asked.list, addr);
    }
    let matches = hit != asked.invert;
    if matches && asked.check_set & UPDATE != 0 && (entry.is_some() || now > 0) {
        vm.flows.note(eval.at.ns, asked.list, addr);
    }
    Did::when(Tri::from(matches))
}

/// Whether enough of its packets are young enough; `now` were seen under way.
fn hits(asked: &Asked<'_>, entry: Option<&RecentEntry>, now: usize) -> Option<bool> {
    let limit = u64::from(asked.seconds) * 1000;
    let ages = entry.map_or(&[][..], |entry| entry.ages.as_slice());
    let (mut sure, mut maybe) = (now, 0);
    for age in ages {
        match age {
            _ if limit == 0 => sure += 1,
            Some(age) if *age <= limit => sure += 1,
            Some(_) => {}
            None => maybe += 1,
        }
    }
    let needed = usize::try_from(asked.hit_count.max(1)).unwrap_or(usize::MAX);
    if sure >= needed {
        Some(true)
    } else if sure + maybe >= needed {
        None
    } else {
        Some(false)
    }
}

/// The address in its list. `Err`: what is missing.
fn entry<'a>(
    eval: &mut Eval<'_, 'a>,
    asked: &Asked<'_>,
    addr: IpAddr,
    ttl: u8,
) -> Result<Option<&'a RecentEntry>, String> {
    let name = asked.list;
    let lists = match &eval.ns.recent {
        Section::Known(lists) => lists,
        Section::Missing(why) => return Err(format!("list {name} of recent addresses: {why}")),
        Section::NotAsked => {
            eval.cx.want_netns(eval.at.ns);
            return Err(format!("list {name} of recent addresses was not read"));
        }
    };
    let Some(list) = lists.iter().find(|list| list.name == name) else {
        return Ok(None);
    };
    let fits = |entry: &&RecentEntry| {
        let same_ttl = asked.check_set & TTL == 0 || entry.ttl == 0 || entry.ttl == ttl;
        entry.addr == addr && same_ttl
    };
    match list.entries.iter().find(fits) {
        None if list.cut => Err(format!("list {name} is too long to be read whole")),
        found => Ok(found),
    }
}

fn under(addr: IpAddr, mask: Option<IpAddr>) -> IpAddr {
    match (addr, mask) {
        (IpAddr::V4(addr), Some(IpAddr::V4(mask))) => (addr & mask).into(),
        (IpAddr::V6(addr), Some(IpAddr::V6(mask))) => (addr & mask).into(),
        _ => addr,
    }
}
