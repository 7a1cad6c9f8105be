//! The `hashlimit` match: rates by address and port, whose tables the kernel shows.
//!
//! Source: `hashlimit_mt_common()`, `rateinfo_init()`, net/netfilter/xt_hashlimit.c (v6.12).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::bits::Tri;
use super::chain::Did;
use super::machine::{Eval, Vm};
use crate::model::Section;
use crate::model::hashlimit::HashlimitEntry;
use crate::model::packet::L4;
use crate::model::xtables::HashlimitMatch;

/// XT_HASHLIMIT_HASH_DIP
const DIP: u32 = 1;
/// XT_HASHLIMIT_HASH_DPT
const DPT: u32 = 2;
/// XT_HASHLIMIT_HASH_SIP
const SIP: u32 = 4;
/// XT_HASHLIMIT_HASH_SPT
const SPT: u32 = 8;
/// XT_HASHLIMIT_BYTES
const BYTES: u32 = 0x20;
/// XT_HASHLIMIT_RATE_MATCH
const RATE: u32 = 0x40;
/// Seconds between reading and packet: what changes sooner is not foreseen.
const SOON: u64 = 5;

/// Runs the match.
pub(super) fn eval(eval: &mut Eval<'_, '_>, vm: &mut Vm<'_>, asked: &HashlimitMatch) -> Did {
    Did::when(below(eval, vm, asked).negated(asked.inverted()))
}

/// What a rule tells packets apart by; what it does not is zero, and a port that is any free one is `None`.
#[derive(Debug)]
struct Key {
    src: IpAddr,
    dst: IpAddr,
    sport: Option<u16>,
    dport: Option<u16>,
}

impl Key {
    fn of(vm: &Vm<'_>, asked: &HashlimitMatch) -> Self {
        let packet = &vm.skb.packet;
        let none = match packet.src {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let has_ports = matches!(packet.l4, L4::Tcp { .. } | L4::Udp { .. } | L4::Sctp { .. });
        let addr = |bit: u32, own: IpAddr, len: u8| match asked.mode & bit {
            0 => none,
            _ => under(own, len),
        };
        let port = |bit: u32, own: Option<u16>| match asked.mode & bit {
            0 => Some(0),
            _ if !has_ports => Some(0),
            _ => own,
        };
        Self {
            src: addr(SIP, packet.src, asked.masks.0),
            dst: addr(DIP, packet.dst, asked.masks.1),
            sport: port(SPT, packet.sport()),
            dport: port(DPT, packet.dport()),
        }
    }

    fn may_be(&self, entry: &HashlimitEntry) -> bool {
        let port = |own: Option<u16>, other: u16| own.is_none_or(|own| own == other);
        (self.src, self.dst) == (entry.src, entry.dst)
            && port(self.sport, entry.sport)
            && port(self.dport, entry.dport)
    }
}

/// Whether the packet's rate is not used up.
fn below(eval: &mut Eval<'_, '_>, vm: &mut Vm<'_>, asked: &HashlimitMatch) -> Tri {
    let unknown = |why: &str| Tri::Unknown(format!("hashlimit {}: {why}", asked.name));
    let tables = match &eval.ns.hashlimits {
        Section::Known(tables) => tables,
        Section::Missing(why) => return unknown(why),
        Section::NotAsked => {
            eval.cx.want_netns(eval.at.ns);
            return unknown("its table was not read");
        }
    };
    if asked.mode & RATE != 0 {
        return unknown("which rate was measured is not known");
    }
    let v6 = vm.skb.packet.src.is_ipv6();
    let table = tables
        .iter()
        .find(|table| table.name == asked.name && table.v6 == v6);
    let Some(table) = table else {
        return unknown("its table was not found");
    };
    let key = Key::of(vm, asked);
    let place = format!("hashlimit {} {key:?}", asked.name);
    let spent = vm.flows.spent(eval.at.ns, &place);
    let mut entries = table.entries.iter().filter(|entry| key.may_be(entry));
    let answer = match entries.next() {
        None if table.cut => return unknown("its table is too long to be read whole"),
        None => fresh(asked, spent),
        Some(_) if key.sport.is_none() || key.dport.is_none() => {
            return unknown("the port is any free one");
        }
        Some(entry) => known(vm, asked, entry, spent),
    };
    if answer == Some(true) {
        vm.flows.spend(eval.at.ns, place, 1);
    }
    Tri::from_option(answer, || {
        format!(
            "hashlimit {}: whether the rate is used up is not known",
            asked.name
        )
    })
}

/// Where no packet was seen for as long as entries live: what is made now is full.
fn fresh(asked: &HashlimitMatch, spent: u64) -> Option<bool> {
    if asked.mode & BYTES != 0 {
        // However large it is, one packet takes no more than what is in it (`hashlimit_byte_cost()`); of a second
        // one nothing is said.
        return (spent == 0).then_some(true);
    }
    if spent < asked.burst {
        return Some(true);
    }
    // A second fills in one packet at most.
    (asked.average >= asked.scale).then_some(false)
}

/// An entry as it was read.
fn known(vm: &Vm<'_>, asked: &HashlimitMatch, entry: &HashlimitEntry, spent: u64) -> Option<bool> {
    if asked.mode & BYTES != 0 {
        let cost = entry.cost.saturating_mul(chunks(vm));
        let fits = spent == 0 && vm.skb.sized && cost <= entry.credit;
        return fits.then_some(true);
    }
    let wanted = entry.cost.saturating_mul(spent.saturating_add(1));
    let Some(lacking) = wanted.checked_sub(entry.credit).filter(|own| *own > 0) else {
        return Some(true);
    };
    // It fills up meanwhile, and an entry that is forgotten is full again.
    let ticks = u128::from(asked.average).saturating_mul(lacking.into());
    let seconds = ticks / u128::from(entry.cost.max(1)) / u128::from(asked.scale.max(1));
    let stays = seconds >= SOON.into()
        && u64::try_from(entry.expires_s).is_ok_and(|seconds| seconds >= SOON);
    stays.then_some(false)
}

/// `xt_hashlimit_len_to_chunks()`
fn chunks(vm: &Vm<'_>) -> u64 {
    (u64::from(vm.skb.packet.len) >> 4).saturating_add(1)
}

fn under(addr: IpAddr, len: u8) -> IpAddr {
    match addr {
        IpAddr::V4(addr) => {
            let host = u32::MAX.checked_shr(len.into()).unwrap_or(0);
            IpAddr::V4(Ipv4Addr::from(u32::from(addr) & !host))
        }
        IpAddr::V6(addr) => {
            let host = u128::MAX.checked_shr(len.into()).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(u128::from(addr) & !host))
        }
    }
}
