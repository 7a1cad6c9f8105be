//! Connection tracking: which entry a packet belongs to, and what NAT does to it.
//!
//! Not modelled: what helpers expect (only entries that came of it), sequence numbers and windows.

mod active;
pub(super) mod error;
mod tcp;

pub(super) use active::is_active;
pub(crate) use tcp::is_closing;

use crate::model::conntrack::{ConntrackEntry, Tuple, status};
use crate::model::packet::{ICMP, ICMPV6, L4, Packet};
use crate::model::want::Want;
use crate::model::{NsKey, Section};
use crate::trace::{Evidence, Step, StepKind};

use super::Cx;
use super::skb::{CtRef, CtState, FlowEntry, Flows, Skb, Sought};

/// Port that a mapping gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NewPort {
    /// The one that was there.
    Keep,
    /// Any free one.
    Free,
    /// This one.
    Is(u16),
}

impl NewPort {
    fn instead_of(self, old: Option<u16>) -> Option<u16> {
        match self {
            Self::Keep => old,
            Self::Free => None,
            Self::Is(port) => Some(port),
        }
    }
}

/// Which end of a packet is translated (`enum nf_nat_manip_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manip {
    /// Source, in POSTROUTING and INPUT.
    Src,
    /// Destination, in PREROUTING and OUTPUT.
    Dst,
}

impl Manip {
    /// IPS_SRC_NAT or IPS_DST_NAT.
    pub(crate) fn bit(self) -> u32 {
        match self {
            Self::Src => status::SRC_NAT,
            Self::Dst => status::DST_NAT,
        }
    }

    /// IPS_SRC_NAT_DONE or IPS_DST_NAT_DONE.
    pub(crate) fn done(self) -> u32 {
        match self {
            Self::Src => status::SRC_NAT_DONE,
            Self::Dst => status::DST_NAT_DONE,
        }
    }
}

/// Zones of both directions, as a packet's template or an entry has them (`struct nf_conntrack_zone`).
pub(crate) type Zones = (u16, u16);

/// Finds or makes the entry of a packet (`nf_conntrack_in()`), in PREROUTING and OUTPUT.
///
/// Steps: what is worth telling. `Err`: what is missing.
pub(crate) fn track(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    skb: &mut Skb,
    flows: &mut Flows,
) -> Result<Vec<Step>, String> {
    let zones = match skb.ct {
        CtRef::Entry { .. } | CtRef::Untracked => return Ok(Vec::new()),
        CtRef::Template(zones) => zones,
        CtRef::ZoneOfMark { orig, reply } => {
            let mark = skb.mark.ok_or("the zone is a mark that is not known")?;
            let [low, high, ..] = mark.to_le_bytes();
            let zone = u16::from_le_bytes([low, high]);
            (if orig { zone } else { 0 }, if reply { zone } else { 0 })
        }
        CtRef::None | CtRef::Invalid | CtRef::Above => (0, 0),
    };
    skb.ct = CtRef::Invalid;
    if error::is_error(&skb.packet) {
        let step = error::track(cx, ns, skb, flows, zones)?;
        return Ok(step.into_iter().collect());
    }
    let tuple = skb.packet.tuple();
    let Some((index, reply, asked)) = find(cx, ns, flows, &tuple, zones)? else {
        let step = open(cx, ns, skb, flows, zones)?;
        return Ok(step.into_iter().collect());
    };
    let Some(flow) = flows.get_mut(ns, index) else {
        return Err("connection not known".to_owned());
    };
    match tcp::turn(&skb.packet, flow.entry.tcp_state, reply) {
        tcp::Turn::Becomes(state) => flow.entry.tcp_state = state,
        tcp::Turn::Ignored => {}
        tcp::Turn::Invalid(why) => {
            let step = Step::new(StepKind::Conntrack, format!("invalid: {why}"));
            return Ok(vec![step.with(Evidence::Conntrack {
                entry: flow.entry.clone(),
                existing: flow.existing,
            })]);
        }
        tcp::Turn::Reopens => {
            flow.confirmed = false;
            flow.killed = true;
            let assumed = tcp::reopens_surely(&flow.entry).err();
            let mut steps = Vec::from_iter(assumed.map(|why| {
                let text = "the rest of a closed connection makes room for a new one";
                Step::new(StepKind::Conntrack, text).with(Evidence::Assumed { why })
            }));
            steps.extend(open(cx, ns, skb, flows, zones)?);
            return Ok(steps);
        }
    }
    let state = if reply || flow.entry.status & status::SEEN_REPLY != 0 {
        CtState::Established
    } else if flow.entry.status & status::EXPECTED != 0 {
        CtState::Related
    } else {
        CtState::New
    };
    if reply {
        flow.entry.status |= status::SEEN_REPLY;
    }
    if !flow.existing || flow.entry.counters.is_some() {
        count(flow, &skb.packet, reply);
    }
    skb.ct = CtRef::Entry {
        index,
        reply,
        state,
    };
    let result = format!("{}: an entry of the kernel's table", state.word());
    let step = asked.then(|| {
        Step::new(StepKind::Conntrack, result).with(Evidence::Conntrack {
            entry: flow.entry.clone(),
            existing: true,
        })
    });
    Ok(step.into_iter().collect())
}

/// The entry that has a tuple: its position, whether it is its reply's, and whether the kernel's table has it and
/// nothing under way had met it.
fn find(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    flows: &mut Flows,
    tuple: &Tuple,
    zones: Zones,
) -> Result<Option<(usize, bool, bool)>, String> {
    let sought = Sought::by_packet(zones);
    if let Some((index, reply)) = flows.find(ns, tuple, sought) {
        return Ok(Some((index, reply, false)));
    }
    // NAT asks whether another's answers would look the same: both questions go at once.
    let back = in_kernel(cx, ns, &tuple.inverted(), sought);
    let found = in_kernel(cx, ns, tuple, sought)?;
    let Some(entry) = found.filter(|entry| !flows.is_killed(ns, &entry.orig)) else {
        back?;
        return Ok(None);
    };
    let reply = sought.side(&entry, tuple) == Some(true);
    let flow = FlowEntry {
        mark: Some(entry.mark),
        entry,
        existing: true,
        confirmed: true,
        killed: false,
        clash: None,
        masqueraded: None,
    };
    Ok(Some((flows.add(ns, flow), reply, true)))
}

/// Why a new entry may find no room: `__nf_conntrack_alloc()` gives up an old one or drops the packet.
fn full(cx: &Cx<'_>, ns: &NsKey) -> Option<String> {
    let sysctls = cx.topology.netns(ns)?.sysctls.known()?;
    let max = (*sysctls.nf_conntrack_max.known()?).filter(|max| *max > 0)?;
    let count = (*sysctls.nf_conntrack_count.known()?).filter(|count| *count >= max)?;
    Some(format!(
        "the conntrack table of {ns} is full ({count} of {max}): a new connection is dropped unless the kernel finds an old one to give up"
    ))
}

/// Makes an entry for a packet that has none, where it may open one.
fn open(
    cx: &Cx<'_>,
    ns: &NsKey,
    skb: &mut Skb,
    flows: &mut Flows,
    (zone, reply_zone): Zones,
) -> Result<Option<Step>, String> {
    let tuple = skb.packet.tuple();
    let begun = match opens(cx, ns, &skb.packet) {
        Opens::Yes(state) => state,
        Opens::Untracked => {
            skb.ct = CtRef::Untracked;
            return Ok(None);
        }
        Opens::No(why) => {
            skb.ct = CtRef::Invalid;
            let what = format!("conntrack entry of {}", words(&tuple));
            let step = Step::new(StepKind::Conntrack, format!("invalid: {why}"));
            return Ok(Some(step.with(Evidence::Absent { what })));
        }
        Opens::Unknown(why) => return Err(why),
    };
    if let Some(why) = full(cx, ns) {
        return Err(why);
    }
    let entry = ConntrackEntry {
        zone,
        reply_zone,
        tcp_state: begun,
        ..ConntrackEntry::new(tuple, tuple.inverted())
    };
    let mut flow = FlowEntry {
        entry,
        mark: Some(0),
        existing: false,
        confirmed: false,
        killed: false,
        clash: None,
        masqueraded: None,
    };
    count(&mut flow, &skb.packet, false);
    let index = flows.add(ns, flow);
    skb.ct = CtRef::Entry {
        index,
        reply: false,
        state: CtState::New,
    };
    Ok(None)
}

/// Counts a packet, as far as its length is known (`nf_ct_acct_update()`).
fn count(flow: &mut FlowEntry, packet: &Packet, reply: bool) {
    let [there, back] = flow.entry.counters.get_or_insert_default();
    let side = if reply { back } else { there };
    side.packets = side.packets.saturating_add(1);
    side.bytes = side.bytes.saturating_add(u64::from(packet.len));
}

/// The kernel's own entry that has a tuple. A flow whose port is any free one can't have one.
pub(crate) fn in_kernel(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    tuple: &Tuple,
    sought: Sought,
) -> Result<Option<ConntrackEntry>, String> {
    if tuple.sport.is_none() || tuple.dport.is_none() {
        return Ok(None);
    }
    let mut why = None;
    for zone in sought.zones() {
        match asked_of_kernel(cx, ns, tuple, zone) {
            Ok(Some(entry)) if sought.side(&entry, tuple).is_some() => return Ok(Some(entry)),
            Ok(_) => {}
            Err(error) => why = Some(error),
        }
    }
    why.map_or(Ok(None), Err)
}

/// The kernel's entries whose original direction has this source, of all zones.
pub(crate) fn of_source(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    tuple: &Tuple,
) -> Result<Vec<ConntrackEntry>, String> {
    // Its destination says nothing: flows to several ask once.
    let source = Tuple {
        dst: tuple.src,
        dport: None,
        ..*tuple
    };
    let known = cx.topology.netns(ns).map(|netns| &netns.conntrack_from);
    let answer = known.and_then(|list| list.iter().find(|(own, _)| *own == source));
    let what = || format!("conntrack entries from {}", words(tuple));
    match answer.map(|(_, entries)| entries) {
        Some(Section::Known(entries)) => Ok(entries.clone()),
        Some(Section::Missing(why)) => Err(format!("{}: {why}", what())),
        Some(Section::NotAsked) | None => {
            let want = Want::ConntrackFrom {
                netns: ns.netns,
                tuple: source,
            };
            cx.want(&ns.node, want);
            Err(format!("{} not read", what()))
        }
    }
}

fn asked_of_kernel(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    tuple: &Tuple,
    zone: u16,
) -> Result<Option<ConntrackEntry>, String> {
    let known = cx.topology.netns(ns).map(|netns| &netns.conntrack);
    let answer =
        known.and_then(|list| list.iter().find(|(own, of, _)| own == tuple && *of == zone));
    match answer.map(|(_, _, entry)| entry) {
        Some(Section::Known(entry)) => Ok(entry.clone()),
        Some(Section::Missing(why)) => Err(format!("conntrack entry of {}: {why}", words(tuple))),
        Some(Section::NotAsked) | None => {
            let want = Want::Conntrack {
                netns: ns.netns,
                tuple: *tuple,
                zone,
            };
            cx.want(&ns.node, want);
            Err(format!("conntrack entry of {} not read", words(tuple)))
        }
    }
}

enum Opens {
    /// TCP: in this state.
    Yes(Option<u8>),
    No(&'static str),
    Untracked,
    Unknown(String),
}

/// Whether a packet without entry makes one.
///
/// Source: `tcp_new()`, `nf_conntrack_icmp_packet()`, `nf_conntrack_icmpv6_error()`.
fn opens(cx: &Cx<'_>, ns: &NsKey, packet: &Packet) -> Opens {
    match packet.l4 {
        L4::Tcp { flags, .. } => match tcp::begins(flags) {
            Ok(state) if state == tcp::SYN_SENT => Opens::Yes(Some(state)),
            Ok(state) => match is_loose(cx, ns) {
                Ok(true) => Opens::Yes(Some(state)),
                Ok(false) => Opens::No(
                    "from the middle of a connection that was not seen here, and nf_conntrack_tcp_loose is 0",
                ),
                Err(why) => Opens::Unknown(why),
            },
            Err(why) => Opens::No(why),
        },
        L4::Icmp { kind, .. } if packet.protocol() == ICMPV6 => match kind {
            128 | 139 => Opens::Yes(None),
            // `noct_valid_new[]`
            130..=136 | 143 => Opens::Untracked,
            // `nf_conntrack_icmpv6_redirect()`: it belongs to the connection of the packet that it quotes.
            137 => {
                Opens::Unknown("which packet an icmpv6 redirect is about is not known".to_owned())
            }
            129 | 140 => Opens::No("an echo reply whose request was not seen here"),
            _ => Opens::No("an icmpv6 type that opens no connection"),
        },
        L4::Icmp { kind, .. } => match kind {
            8 | 13 | 15 | 17 => Opens::Yes(None),
            0 | 14 | 16 | 18 => Opens::No("an echo reply whose request was not seen here"),
            _ => Opens::No("an icmp type that opens no connection"),
        },
        L4::Arp { .. } => Opens::Untracked,
        L4::Udp { .. } | L4::Sctp { .. } | L4::Other(_) => Opens::Yes(None),
    }
}

/// Whether connections are begun by packets from their middle.
fn is_loose(cx: &Cx<'_>, ns: &NsKey) -> Result<bool, String> {
    let sysctls = cx.topology.netns(ns).map(|ns| &ns.sysctls);
    let own = sysctls.and_then(|own| own.known().map(|own| &own.nf_conntrack_tcp_loose));
    match own {
        Some(Section::Known(own)) => Ok(own.unwrap_or(true)),
        Some(Section::Missing(why)) => Err(format!("nf_conntrack_tcp_loose of {ns}: {why}")),
        Some(Section::NotAsked) | None => Err(format!("nf_conntrack_tcp_loose of {ns} not read")),
    }
}

/// Puts an entry into the table (`nf_confirm()`), at the end of POSTROUTING and INPUT. `Some`: why there is no place
/// for it, so that the packet is dropped (`__nf_conntrack_confirm()`).
pub(crate) fn confirm(ns: &NsKey, skb: &Skb, flows: &mut Flows) -> Option<String> {
    let CtRef::Entry { index, .. } = skb.ct else {
        return None;
    };
    let own = flows.get(ns, index).filter(|flow| !flow.confirmed);
    if let Some(own) = own {
        let other = own.clash.clone().or_else(|| {
            let other = flows.find_like(ns, &own.entry)?;
            Some(format!(
                "no room in conntrack's table: its packets would look like those of {}",
                words(&other.entry.orig)
            ))
        });
        if other.is_some() {
            return other;
        }
    }
    let flow = flows.get_mut(ns, index)?;
    flow.confirmed = true;
    flow.entry.status |= status::CONFIRMED;
    None
}

/// Decides one end of a flow (`nf_nat_setup_info()`). An `addr` of `None` keeps what is there.
pub(crate) fn set_up(
    entry: &mut ConntrackEntry,
    manip: Manip,
    addr: Option<std::net::IpAddr>,
    port: NewPort,
) {
    let current = entry.reply.inverted();
    let mut new = current;
    let echo = matches!(new.protocol, ICMP | ICMPV6);
    match manip {
        Manip::Src => {
            new.src = addr.unwrap_or(new.src);
            new.sport = port.instead_of(new.sport);
        }
        Manip::Dst => {
            new.dst = addr.unwrap_or(new.dst);
            if !echo {
                new.dport = port.instead_of(new.dport);
            }
        }
    }
    if new != current || port == NewPort::Free {
        entry.reply = new.inverted();
        entry.status |= manip.bit();
    }
    entry.status |= manip.done();
}

/// Translates a packet as its entry says (`nf_nat_packet()`, `nf_nat_manip_pkt()`). Tells whether
/// the entry has anything to say at this hook.
pub(crate) fn translate(
    packet: &mut Packet,
    entry: &ConntrackEntry,
    reply: bool,
    manip: Manip,
) -> bool {
    let opposite = match manip {
        Manip::Src => Manip::Dst,
        Manip::Dst => Manip::Src,
    };
    let bit = if reply { opposite.bit() } else { manip.bit() };
    if entry.status & bit == 0 {
        return false;
    }
    let target = if reply { entry.orig } else { entry.reply }.inverted();
    let echo = matches!(target.protocol, ICMP | ICMPV6);
    match manip {
        Manip::Src => packet.src = target.src,
        Manip::Dst => packet.dst = target.dst,
    }
    match manip {
        _ if echo => packet.set_sport(target.sport),
        Manip::Src => packet.set_sport(target.sport),
        Manip::Dst => packet.set_dport(target.dport),
    }
    true
}

/// A tuple in words.
pub(crate) fn words(tuple: &Tuple) -> String {
    let port = |port: Option<u16>| port.map_or_else(|| "any".to_owned(), |p| p.to_string());
    let end = |addr: std::net::IpAddr, number: Option<u16>| match addr {
        std::net::IpAddr::V4(addr) => format!("{addr}:{}", port(number)),
        std::net::IpAddr::V6(addr) => format!("[{addr}]:{}", port(number)),
    };
    let protocol = super::netfilter::protocol_name(tuple.protocol);
    if matches!(tuple.protocol, ICMP | ICMPV6) {
        let id = port(tuple.sport);
        return format!("{protocol} {} → {} id {id}", tuple.src, tuple.dst);
    }
    let (src, dst) = (end(tuple.src, tuple.sport), end(tuple.dst, tuple.dport));
    format!("{protocol} {src} → {dst}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(orig: Tuple) -> ConntrackEntry {
        ConntrackEntry::new(orig, orig.inverted())
    }

    fn packet(kind: L4) -> Packet {
        Packet::new(
            "10.244.1.7".parse().unwrap(),
            "10.96.0.10".parse().unwrap(),
            kind,
        )
    }

    fn round_trip(first: &Packet, dnat: &str, dport: u16, snat: &str, sport: Option<u16>) {
        let mut entry = entry(first.tuple());
        set_up(
            &mut entry,
            Manip::Dst,
            Some(dnat.parse().unwrap()),
            NewPort::Is(dport),
        );
        set_up(
            &mut entry,
            Manip::Src,
            Some(snat.parse().unwrap()),
            sport.map_or(NewPort::Free, NewPort::Is),
        );
        let mut there = first.clone();
        assert!(translate(&mut there, &entry, false, Manip::Dst));
        assert!(translate(&mut there, &entry, false, Manip::Src));
        assert_eq!(there.dst.to_string(), dnat);
        assert_eq!(there.src.to_string(), snat);
        let mut back = there.reply(64);
        assert_eq!(back.tuple(), entry.reply);
        assert!(translate(&mut back, &entry, true, Manip::Dst));
        assert!(translate(&mut back, &entry, true, Manip::Src));
        assert_eq!(back.tuple(), first.tuple().inverted());
    }

    #[test]
    fn replies_are_translated_back() {
        let tcp = L4::Tcp {
            sport: Some(40000),
            dport: Some(80),
            flags: 2,
        };
        round_trip(&packet(tcp), "10.244.2.2", 8080, "10.88.0.11", Some(5000));
        round_trip(&packet(tcp), "10.244.2.2", 8080, "10.88.0.11", None);
        let echo = L4::Icmp {
            kind: 8,
            code: 0,
            id: Some(7),
        };
        round_trip(&packet(echo), "10.244.2.2", 0, "10.88.0.11", Some(9));
    }

    #[test]
    fn only_what_changes_sets_the_nat_bits() {
        let udp = packet(L4::Udp {
            sport: None,
            dport: Some(53),
        });
        let mut entry = entry(udp.tuple());
        set_up(&mut entry, Manip::Dst, None, NewPort::Keep);
        assert_eq!(entry.status, status::DST_NAT_DONE);
        let mut same = udp.clone();
        assert!(!translate(&mut same, &entry, false, Manip::Dst));
        assert_eq!(same, udp);
    }
}
