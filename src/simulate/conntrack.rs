//! Connection tracking: which entry a packet belongs to, and what NAT does to it.
//!
//! Not modelled: expectations and helpers (RELATED), zones other than 0, windows.

use crate::model::conntrack::{ConntrackEntry, Tuple, status};
use crate::model::netfilter::{Expr, Family};
use crate::model::netns::NetNs;
use crate::model::packet::{ICMP, ICMPV6, L4, Packet};
use crate::model::want::Want;
use crate::model::xtables::{RareMatch, RareTarget, XtMatch, XtTarget};
use crate::model::{NsKey, Section};
use crate::trace::{Evidence, Step, StepKind};

use super::Cx;
use super::skb::{CtRef, FlowEntry, Flows, Skb};

/// TCP_CONNTRACK_TIME_WAIT: from here on a SYN opens the connection anew.
const TCP_TIME_WAIT: u8 = 7;
/// TCP_CONNTRACK_CLOSE
const TCP_CLOSE: u8 = 8;

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

/// Whether connections of a family are tracked in a namespace: the kernel hooks conntrack in with the
/// first rule that needs it (`nf_ct_netns_get()`). Where rules were not all read it is taken to be
/// so; a rule that would show the difference would itself be the reason for tracking.
pub(crate) fn is_active<'a>(cx: &mut Cx<'a>, ns: &'a NetNs, v6: bool) -> bool {
    cx.index.tracks(ns, v6, || any_needs_ct(ns, v6))
}

fn any_needs_ct(ns: &NetNs, v6: bool) -> bool {
    if let Some(sysctls) = ns.sysctls.known()
        && sysctls.nf_conntrack_max == Section::Known(None)
    {
        return false;
    }
    [&ns.nft, &ns.legacy].into_iter().any(|section| {
        let Some(rules) = section.known() else {
            return true;
        };
        let tables = rules.tables.iter();
        let mut ours = tables.filter(|table| applies(table.family, v6));
        ours.any(|table| {
            !table.chains_complete
                || table.chains.values().any(|chain| match &chain.rules {
                    Section::Known(rules) => rules.iter().flat_map(|r| &r.exprs).any(needs_ct),
                    Section::NotAsked | Section::Missing(_) => true,
                })
        })
    })
}

fn applies(family: Family, v6: bool) -> bool {
    match family {
        Family::Inet => true,
        Family::Ip => !v6,
        Family::Ip6 => v6,
        Family::Arp | Family::Netdev | Family::Bridge => false,
    }
}

fn needs_ct(expr: &Expr) -> bool {
    match expr {
        Expr::Ct { .. }
        | Expr::CtSet { .. }
        | Expr::Nat { .. }
        | Expr::Masq { .. }
        | Expr::Redir { .. }
        | Expr::FlowOffload(_)
        | Expr::Connlimit { .. }
        | Expr::Synproxy { .. }
        | Expr::Match(XtMatch::Conntrack(_) | XtMatch::Connmark { .. })
        | Expr::Target(
            XtTarget::Dnat(_)
            | XtTarget::Snat(_)
            | XtTarget::Masquerade(_)
            | XtTarget::Redirect(_)
            | XtTarget::Netmap(_)
            | XtTarget::Connmark { .. }
            | XtTarget::Ct(_),
        ) => true,
        Expr::Match(XtMatch::Rare(rare)) => matches!(
            **rare,
            RareMatch::Connbytes { .. }
                | RareMatch::Connlabel { .. }
                | RareMatch::Connlimit { .. }
                | RareMatch::Cluster { .. }
                | RareMatch::Helper { .. }
        ),
        Expr::Target(XtTarget::Rare(rare)) => matches!(
            **rare,
            RareTarget::Connsecmark(_) | RareTarget::Synproxy { .. } | RareTarget::Clusterip { .. }
        ),
        // connlimit 5, helper 3, timeout 7, expectation 9.
        Expr::Objref { kind, .. } => matches!(kind, 3 | 5 | 7 | 9),
        Expr::Match(XtMatch::Other { name, .. }) | Expr::Other { name, .. } => {
            name.starts_with("conn") || name == "helper" || name == "synproxy"
        }
        _ => false,
    }
}

/// Finds or makes the entry of a packet (`nf_conntrack_in()`), in PREROUTING and OUTPUT.
///
/// `Ok(Some)`: a step worth telling. `Err`: what is missing.
pub(crate) fn track(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    skb: &mut Skb,
    flows: &mut Flows,
) -> Result<Option<Step>, String> {
    if matches!(skb.ct, CtRef::Entry { .. } | CtRef::Untracked) {
        return Ok(None);
    }
    let tuple = skb.packet.tuple();
    let (found, asked) = match flows.find(ns, &tuple) {
        Some(found) => (Some(found), false),
        None => match in_kernel(cx, ns, &tuple)? {
            Some(entry) => {
                let reply = entry.orig != tuple;
                let flow = FlowEntry {
                    mark: Some(entry.mark),
                    entry,
                    existing: true,
                    confirmed: true,
                };
                (Some((flows.add(ns, flow), reply)), true)
            }
            None => (None, false),
        },
    };
    let reopened = |flow: &FlowEntry, reply| is_reopened(&skb.packet, &flow.entry, reply);
    if let Some((index, reply)) = found
        && let Some(flow) = flows.get_mut(ns, index)
    {
        if reopened(flow, reply) {
            flow.confirmed = false;
            return open(cx, ns, skb, flows);
        }
        if reply {
            flow.entry.status |= status::SEEN_REPLY;
        }
        let established = reply || flow.entry.status & status::SEEN_REPLY != 0;
        skb.ct = CtRef::Entry {
            index,
            reply,
            established,
        };
        let state = if established { "established" } else { "new" };
        let result = format!("{state}: an entry of the kernel's table");
        let step = asked.then(|| {
            Step::new(StepKind::Conntrack, result).with(Evidence::Conntrack {
                entry: flow.entry.clone(),
                existing: true,
            })
        });
        return Ok(step);
    }
    open(cx, ns, skb, flows)
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
fn open(cx: &Cx<'_>, ns: &NsKey, skb: &mut Skb, flows: &mut Flows) -> Result<Option<Step>, String> {
    let tuple = skb.packet.tuple();
    match opens(&skb.packet) {
        Opens::Yes => {}
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
    }
    if let Some(why) = full(cx, ns) {
        return Err(why);
    }
    let entry = ConntrackEntry {
        orig: tuple,
        reply: tuple.inverted(),
        status: 0,
        mark: 0,
        zone: 0,
        timeout: None,
        tcp_state: None,
        labels: Vec::new(),
        helper: None,
    };
    let index = flows.add(
        ns,
        FlowEntry {
            entry,
            mark: Some(0),
            existing: false,
            confirmed: false,
        },
    );
    skb.ct = CtRef::Entry {
        index,
        reply: false,
        established: false,
    };
    Ok(None)
}

/// The kernel's own entry. A flow whose port is any free one can't have one.
pub(crate) fn in_kernel(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    tuple: &Tuple,
) -> Result<Option<ConntrackEntry>, String> {
    if tuple.sport.is_none() || tuple.dport.is_none() {
        return Ok(None);
    }
    let known = cx.topology.netns(ns).map(|netns| &netns.conntrack);
    // A whole table has entries of other zones too, under tuples that zone 0 may have as well.
    let zone_0 = |entry: &Section<Option<ConntrackEntry>>| !matches!(entry, Section::Known(Some(entry)) if entry.zone != 0);
    let answer = known.and_then(|list| {
        list.iter()
            .find(|(own, entry)| own == tuple && zone_0(entry))
    });
    match answer.map(|(_, entry)| entry) {
        Some(Section::Known(entry)) => Ok(entry.clone()),
        Some(Section::Missing(why)) => Err(format!("conntrack entry of {}: {why}", words(tuple))),
        Some(Section::NotAsked) | None => {
            let want = Want::Conntrack {
                netns: ns.netns,
                tuple: *tuple,
            };
            cx.want(&ns.node, want);
            Err(format!("conntrack entry of {} not read", words(tuple)))
        }
    }
}

/// A SYN finds the rest of a closed connection: the kernel deletes that and starts anew.
///
/// Source: `nf_conntrack_tcp_packet()`, case TCP_CONNTRACK_SYN_SENT.
fn is_reopened(packet: &Packet, entry: &ConntrackEntry, reply: bool) -> bool {
    let L4::Tcp { flags, .. } = packet.l4 else {
        return false;
    };
    let closed = matches!(entry.tcp_state, Some(TCP_TIME_WAIT | TCP_CLOSE));
    !reply && closed && flags & 0x17 == 0x02
}

enum Opens {
    Yes,
    No(&'static str),
    Untracked,
    Unknown(String),
}

/// Whether a packet without entry makes one.
///
/// Source: `tcp_new()` with nf_conntrack_tcp_loose 1 (its default), `icmp_new`, `icmpv6_new`.
fn opens(packet: &Packet) -> Opens {
    match packet.l4 {
        L4::Tcp { flags, .. } => match flags & 0x17 {
            0x02 | 0x10 => Opens::Yes,
            0x12 => Opens::No("an answer (syn ack) whose question was not seen here"),
            _ => Opens::No("no connection, and these tcp flags open none"),
        },
        L4::Icmp { kind, .. } if packet.protocol() == ICMPV6 => match kind {
            128 | 139 => Opens::Yes,
            130..=137 | 143 => Opens::Untracked,
            129 | 140 => Opens::No("an echo reply whose request was not seen here"),
            _ => Opens::Unknown("icmpv6 errors are not matched with their flow".to_owned()),
        },
        L4::Icmp { kind, .. } => match kind {
            8 | 13 | 15 | 17 => Opens::Yes,
            0 | 14 | 16 | 18 => Opens::No("an echo reply whose request was not seen here"),
            _ => Opens::Unknown("icmp errors are not matched with their flow".to_owned()),
        },
        L4::Arp { .. } => Opens::Untracked,
        L4::Udp { .. } | L4::Sctp { .. } | L4::Other(_) => Opens::Yes,
    }
}

/// Puts an entry into the table (`nf_confirm()`), at the end of POSTROUTING and INPUT.
pub(crate) fn confirm(ns: &NsKey, skb: &Skb, flows: &mut Flows) {
    if let CtRef::Entry { index, .. } = skb.ct
        && let Some(flow) = flows.get_mut(ns, index)
    {
        flow.confirmed = true;
        flow.entry.status |= status::CONFIRMED;
    }
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
        ConntrackEntry {
            orig,
            reply: orig.inverted(),
            status: 0,
            mark: 0,
            zone: 0,
            timeout: None,
            tcp_state: None,
            labels: Vec::new(),
            helper: None,
        }
    }

    fn packet(kind: L4) -> Packet {
        Packet {
            eth: None,
            src: "10.244.1.7".parse().unwrap(),
            dst: "10.96.0.10".parse().unwrap(),
            ttl: 64,
            tos: 0,
            df: true,
            len: 60,
            l4: kind,
            inner: None,
        }
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
