//! A packet under way, with what the kernel keeps beside it (`struct sk_buff`), and the flows that it
//! has made on its way.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::fib::FibKey;
use super::ipvs::Conn;
use super::netfilter::{FreePorts, UNPRIVILEGED};
use super::walk::Out;
use crate::model::conntrack::{ConntrackEntry, Tuple};
use crate::model::packet::{L4, Packet, SCTP, TCP, UDP};
use crate::model::socket::Socket;
use crate::model::{IfIndex, NsKey};

/// A packet under way in one namespace.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Skb {
    /// Headers.
    pub(crate) packet: Packet,
    /// `skb->mark`; `None`: unknown.
    pub(crate) mark: Option<u32>,
    /// Its connection in this namespace (`skb->_nfct`).
    pub(crate) ct: CtRef,
    /// Uid of the sending socket, while it is in the namespace that sent it; `None`: no socket, or
    /// unknown.
    pub(crate) uid: Option<u32>,
    /// Gid, likewise.
    pub(crate) gid: Option<u32>,
    /// The kernel itself sends it: its socket has no owner.
    pub(crate) kernel: bool,
    /// See [`super::Sent::untied`].
    pub(crate) untied: bool,
    /// Socket that TPROXY gave it to (`skb->sk` of an incoming packet).
    pub(crate) proxy: Option<Box<Socket>>,
    /// Namespace of the socket that has the connection it is for, and whether that socket is transparent.
    pub(crate) party: Option<(NsKey, bool)>,
    /// It comes from a socket of this namespace (`skb->sk`).
    pub(crate) local: bool,
    /// Its sender, a socket of this namespace, wrote the whole IP header (IP_HDRINCL).
    pub(crate) raw: bool,
    /// The device that its socket or tunnel is bound to.
    pub(crate) bound: Option<IfIndex>,
    /// The VRF's slave that it came in by (`inet_sdif()`): sockets that are bound to it take it, those that are bound to none
    /// maybe not.
    pub(crate) slave: Option<IfIndex>,
    /// The device that has the address it is for, where that is this host's and it comes by loopback or a VRF.
    pub(crate) owner: Option<IfIndex>,
    /// A route of the VRF that led back to the VRF itself, and is still attached to it (`vrf_local_xmit()`), and to where.
    pub(crate) attached: Option<(Out, IpAddr)>,
    /// The VRF that it passed on its way out (`skb->dev` at OUTPUT).
    pub(crate) through: Option<IfIndex>,
    /// The device that an echo request of IPv6 came in by: its answer is looked up by that (`icmpv6_echo_reply()`:
    /// `icmp6_iif()`, v6.12).
    pub(crate) near: Option<IfIndex>,
    /// What it was looked up by again, last, for what rules of OUTPUT changed.
    pub(crate) rerouted: Option<Box<FibKey>>,
    /// It has been given its flow label, and is looked up once more by that.
    pub(crate) labelled: bool,
    /// It is a tunnel's, was translated, and what it carries may have left its checksum to a device.
    pub(crate) resummed: bool,
    /// Its sender wrote its checksum: nothing was left to a device (`CHECKSUM_NONE`).
    pub(crate) written: bool,
    /// Hop limit and traffic class when conntrack summed it here, the header of IPv6 with it, which nothing keeps the sum
    /// in step with (`nf_ip6_checksum()`).
    pub(crate) summed: Option<(u8, u8)>,
    /// Its checksum, or that of what it carries, is left to a device (`CHECKSUM_PARTIAL`); `None`: not known.
    pub(crate) partial: Option<bool>,
    /// The headers that tunnels of addresses inherit from.
    pub(crate) inherited: Inherited,
    /// VLAN of its frame's tag, which rules see in its link-layer header (`nft_payload_copy_vlan()`).
    pub(crate) tagged: Option<u16>,
    /// IPVS had to do with it (`skb->ipvs_property`), and passes it over from now on.
    pub(crate) ipvs: bool,
    /// Its length is that of the question, and so is its number; a data packet stands for all that follow it, which
    /// may have any.
    pub(crate) sized: bool,
    /// What its ports may be where they are any free ones.
    pub(crate) free: FreePorts,
}

impl Skb {
    /// A packet that nobody has marked, nobody knows and no socket of this namespace sent.
    pub(crate) fn new(packet: Packet) -> Self {
        Self {
            mark: Some(0),
            ct: CtRef::None,
            uid: None,
            gid: None,
            kernel: false,
            untied: false,
            proxy: None,
            party: None,
            local: false,
            raw: false,
            bound: None,
            slave: None,
            owner: None,
            attached: None,
            through: None,
            near: None,
            rerouted: None,
            labelled: false,
            resummed: false,
            written: false,
            summed: None,
            partial: Some(matches!(packet.protocol(), TCP | UDP | SCTP)),
            inherited: Inherited::Own,
            tagged: None,
            ipvs: false,
            sized: true,
            free: UNPRIVILEGED,
            packet,
        }
    }

    /// An error that the kernel itself sends.
    pub(crate) fn is_own_error(&self) -> bool {
        let error = matches!(self.packet.l4, L4::Icmp { .. }) && self.packet.inner.is_some();
        self.kernel && error
    }

    /// An error that the kernel itself sends, which has got the connection of what it is about before any rule
    /// (`nf_conntrack_attach()`, called by `icmp_glue_bits()` and `icmpv6_getfrag()`, v6.12).
    pub(crate) fn is_tied_error(&self) -> bool {
        self.is_own_error() && !self.untied
    }
}

/// The packet whose headers a tunnel inherits from (`skb_inner_network_header()`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inherited {
    /// The one that goes in (`skb->encapsulation` is not set).
    Own,
    /// What is in it, which went into the tunnel before.
    Inside,
    /// Not known.
    Unknown,
}

impl Inherited {
    /// Behind another tunnel, for what has its checksum left to a device or not (`iptunnel_handle_offloads()`, v6.12). The second
    /// one's device sums it before (`netif_skb_features()`: hw_enc_features).
    pub(crate) fn behind(self, partial: Option<bool>) -> Self {
        match (partial, self) {
            (_, Self::Inside) | (Some(false), Self::Own) => Self::Own,
            (Some(true), Self::Own) => Self::Inside,
            (None, Self::Own) | (_, Self::Unknown) => Self::Unknown,
        }
    }
}

/// Connection of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CtRef {
    /// Conntrack has not seen it yet.
    None,
    /// A rule chose the zones of both directions before conntrack has seen it.
    Template((u16, u16)),
    /// Likewise; these directions' zones are what the mark will be by then, the other's is 0.
    ZoneOfMark {
        /// Original.
        orig: bool,
        /// Reply.
        reply: bool,
    },
    /// NOTRACK.
    Untracked,
    /// No entry can be made for it.
    Invalid,
    /// An entry of the namespace above: what it is like is not followed.
    Above,
    /// An entry of [`Flows`].
    Entry {
        /// Position in its namespace's list.
        index: usize,
        /// The packet goes against the direction of the first one.
        reply: bool,
        /// How the packet stands to the connection.
        state: CtState,
    },
}

/// How a packet stands to its connection (`enum ip_conntrack_info` without the direction).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CtState {
    /// No packet of the other direction was seen yet.
    New,
    /// A packet of the other direction was seen before, or this one is such a packet.
    Established,
    /// An error about a packet of the connection, or the connection was expected and not yet answered.
    Related,
}

impl CtState {
    /// As rules call it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Related => "related",
        }
    }
}

/// An entry made or found under way.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct FlowEntry {
    /// The entry. For a flow under way, tuples may hold unfixed ports.
    pub(crate) entry: ConntrackEntry,
    /// Connection mark; `None`: unknown.
    pub(crate) mark: Option<u32>,
    /// It was in the kernel's table.
    pub(crate) existing: bool,
    /// Confirmed: later packets find it.
    pub(crate) confirmed: bool,
    /// It was over, and made room for a new one.
    pub(crate) killed: bool,
    /// Why it can't be put into the table.
    pub(crate) clash: Option<String>,
    /// Device that a rule masqueraded it for, under way (`nat->masq_index`). No dump tells that of others.
    pub(crate) masqueraded: Option<IfIndex>,
}

/// Connections of all namespaces as one walk has made them. A fork takes a copy.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Flows {
    entries: BTreeMap<NsKey, Vec<FlowEntry>>,
    /// Addresses that rules noted in lists (xt_recent) or removed from them, by namespace and list, in order.
    noted: Vec<(NsKey, String, IpAddr, bool)>,
    /// Connections of IPVS, by namespace.
    ipvs: Vec<(NsKey, Conn)>,
    /// What hashes gave.
    drawn: Vec<(Hashed, u32)>,
    /// Keys that rules added to sets of nf_tables or deleted from them, in order; `None`: one that is not known.
    changed: Vec<Changed>,
    /// What packets took out of rates, by namespace and what keeps the rate.
    spent: Vec<(NsKey, String, u64)>,
}

/// A hash that a rule makes. Equal ones give equal numbers, which ones can't be told: kernels draw their seeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hashed {
    /// Namespace.
    pub(crate) ns: NsKey,
    /// What is hashed: bytes, or all of a flow whose bytes are not known.
    pub(crate) of: HashedOf,
    /// Seed; `None`: the kernel's own, of flows.
    pub(crate) seed: Option<u32>,
    /// How many numbers there are, and the first.
    pub(crate) range: (u32, u32),
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HashedOf {
    /// These bytes.
    Bytes(Vec<u8>),
    /// Something of this flow, as this register holds it.
    Flow(Tuple, Option<(u8, u32)>),
}

/// A key that a rule added to a set or deleted from it.
#[derive(Clone, Debug, PartialEq)]
struct Changed {
    ns: NsKey,
    table: String,
    set: String,
    key: Option<Vec<u8>>,
    added: bool,
}

impl Flows {
    /// The entry at this position.
    pub(crate) fn get(&self, ns: &NsKey, index: usize) -> Option<&FlowEntry> {
        self.entries.get(ns)?.get(index)
    }

    /// The entry at this position, to change it.
    pub(crate) fn get_mut(&mut self, ns: &NsKey, index: usize) -> Option<&mut FlowEntry> {
        self.entries.get_mut(ns)?.get_mut(index)
    }

    /// Adds an entry and gives its position.
    pub(crate) fn add(&mut self, ns: &NsKey, entry: FlowEntry) -> usize {
        let list = self.entries.entry(ns.clone()).or_default();
        list.push(entry);
        list.len() - 1
    }

    /// Connections of IPVS in a namespace.
    pub(crate) fn ipvs(&self, ns: &NsKey) -> impl Iterator<Item = &Conn> {
        let here = self.ipvs.iter().filter(move |(own, _)| own == ns);
        here.map(|(_, conn)| conn)
    }

    /// Adds a connection of IPVS, unless it is there.
    pub(crate) fn add_ipvs(&mut self, ns: &NsKey, conn: Conn) {
        if self.ipvs(ns).all(|own| *own != conn) {
            self.ipvs.push((ns.clone(), conn));
        }
    }

    /// Makes the marks of connections unknown that differ from those of the same ones elsewhere.
    pub(crate) fn forget_marks_unlike(&mut self, other: &Self) {
        for (ns, list) in &mut self.entries {
            let others = other.entries.get(ns).map_or(&[][..], Vec::as_slice);
            for (own, other) in list.iter_mut().zip(others) {
                if own.mark != other.mark {
                    own.mark = None;
                    // Only shown; rules ask the one above.
                    own.entry.mark = 0;
                }
            }
        }
    }

    /// Notes an address in a list.
    pub(crate) fn note(&mut self, ns: &NsKey, list: &str, addr: IpAddr) {
        self.noted.push((ns.clone(), list.to_owned(), addr, true));
    }

    /// Removes an address from a list.
    pub(crate) fn remove(&mut self, ns: &NsKey, list: &str, addr: IpAddr) {
        self.noted.push((ns.clone(), list.to_owned(), addr, false));
    }

    /// Whether an address was removed from a list under way, so that what the kernel had of it is gone.
    pub(crate) fn removed(&self, ns: &NsKey, list: &str, addr: IpAddr) -> bool {
        let mut noted = self.noted.iter();
        noted.any(|own| own.0 == *ns && own.1 == list && own.2 == addr && !own.3)
    }

    /// Notes that a rule adds a key to a set, or deletes it.
    pub(crate) fn change(
        &mut self,
        ns: &NsKey,
        (table, set): (&str, &str),
        key: Option<Vec<u8>>,
        added: bool,
    ) {
        let (table, set) = (table.to_owned(), set.to_owned());
        self.changed.push(Changed {
            ns: ns.clone(),
            table,
            set,
            key,
            added,
        });
    }

    /// What rules under way made of a key in a set: there or not; `Some(None)`: can't be told; `None`:
    /// nothing.
    #[allow(clippy::option_option, reason = "nothing and not known differ")]
    pub(crate) fn changed(
        &self,
        ns: &NsKey,
        (table, set): (&str, &str),
        key: Option<&[u8]>,
    ) -> Option<Option<bool>> {
        let here = self
            .changed
            .iter()
            .filter(|own| own.ns == *ns && own.table == table && own.set == set);
        let mut last = None;
        for change in here {
            match (change.key.as_deref(), key) {
                (Some(changed), Some(key)) if changed == key => last = Some(Some(change.added)),
                (Some(_), Some(_)) => {}
                _ => last = Some(None),
            }
        }
        last
    }

    /// What packets under way took out of a rate.
    pub(crate) fn spent(&self, ns: &NsKey, rate: &str) -> u64 {
        let mut spent = self.spent.iter();
        let own = spent.find(|own| own.0 == *ns && own.1 == rate);
        own.map_or(0, |own| own.2)
    }

    /// Takes something out of a rate.
    pub(crate) fn spend(&mut self, ns: &NsKey, rate: String, much: u64) {
        let mut spent = self.spent.iter_mut();
        match spent.find(|own| own.0 == *ns && own.1 == rate) {
            Some(own) => own.2 = own.2.saturating_add(much),
            None => self.spent.push((ns.clone(), rate, much)),
        }
    }

    /// Takes as much out of each rate as another way did, where that took more.
    pub(crate) fn spend_like(&mut self, other: &Self) {
        for (ns, rate, much) in &other.spent {
            let own = self.spent(ns, rate);
            if *much > own {
                self.spend(ns, rate.clone(), much.saturating_sub(own));
            }
        }
        self.spent.sort();
    }

    /// What a hash gave before.
    pub(crate) fn drawn(&self, hashed: &Hashed) -> Option<u32> {
        let mut drawn = self.drawn.iter();
        drawn.find(|own| own.0 == *hashed).map(|own| own.1)
    }

    /// Notes what a hash gives.
    pub(crate) fn draw(&mut self, hashed: Hashed, number: u32) {
        self.drawn.push((hashed, number));
    }

    /// How often an address was noted in a list under way.
    pub(crate) fn noted(&self, ns: &NsKey, list: &str, addr: IpAddr) -> usize {
        let here = self
            .noted
            .iter()
            .filter(|own| own.0 == *ns && own.1 == list && own.2 == addr);
        here.fold(0, |count, own| if own.3 { count + 1 } else { 0 })
    }

    /// Whether the entry with this original tuple made room for a new one.
    pub(crate) fn is_killed(&self, ns: &NsKey, orig: &Tuple) -> bool {
        let mut here = self.entries.get(ns).into_iter().flatten();
        here.any(|flow| flow.killed && flow.entry.orig == *orig)
    }

    /// A confirmed entry that has one of the tuples of one that is not (`__nf_conntrack_confirm()`).
    pub(crate) fn find_like(&self, ns: &NsKey, own: &ConntrackEntry) -> Option<&FlowEntry> {
        let orig = self.find(ns, &own.orig, Sought::as_orig(own));
        // A port that is any free one is another one than each flow before has.
        let free = own.reply.dport.is_none() || own.reply.sport.is_none();
        let reply = || self.find(ns, &own.reply, Sought::as_reply(own));
        let found = if free { orig } else { orig.or_else(reply) };
        self.get(ns, found?.0)
    }

    /// Position of the confirmed entry that has this tuple, and whether it is its reply tuple.
    pub(crate) fn find(&self, ns: &NsKey, tuple: &Tuple, sought: Sought) -> Option<(usize, bool)> {
        let list = self.entries.get(ns)?;
        list.iter().enumerate().find_map(|(index, flow)| {
            match (flow.confirmed, sought.side(&flow.entry, tuple)) {
                (true, Some(reply)) => Some((index, reply)),
                _ => None,
            }
        })
    }
}

/// Zones in which an entry is sought by a tuple that may be that of either direction; `None`: not as that one.
///
/// Source: `nf_ct_key_equal()`: entries lie in the bucket of the zone of each direction, and the zone of that
/// direction must be that of the seeker's same direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sought {
    /// As the original direction.
    pub(crate) orig: Option<u16>,
    /// As the reply direction.
    pub(crate) reply: Option<u16>,
}

impl Sought {
    /// By a packet whose template has these zones (`resolve_normal_ct()`).
    pub(crate) fn by_packet((orig, reply): (u16, u16)) -> Self {
        Self {
            orig: Some(orig),
            reply: Some(reply),
        }
    }

    /// By an entry, with its original tuple.
    fn as_orig(own: &ConntrackEntry) -> Self {
        Self {
            orig: Some(own.zone),
            reply: Some(own.reply_zone).filter(|zone| *zone == own.zone),
        }
    }

    /// By an entry, with what may be its reply tuple (`nf_conntrack_tuple_taken()`).
    pub(crate) fn as_reply(own: &ConntrackEntry) -> Self {
        Self {
            orig: Some(own.zone).filter(|zone| *zone == own.reply_zone),
            reply: Some(own.reply_zone),
        }
    }

    /// Zones that hold what is sought.
    pub(crate) fn zones(self) -> impl Iterator<Item = u16> {
        let reply = self.reply.filter(|zone| self.orig != Some(*zone));
        self.orig.into_iter().chain(reply)
    }

    /// Whether an entry is it: `Some(true)` by its reply tuple.
    pub(crate) fn side(self, entry: &ConntrackEntry, tuple: &Tuple) -> Option<bool> {
        let orig = entry.orig == *tuple && self.orig == Some(entry.zone);
        let reply = entry.reply == *tuple && self.reply == Some(entry.reply_zone);
        (orig || reply).then_some(!orig)
    }
}

/// Devices that a hook sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Devices {
    /// `in`.
    pub(crate) iif: Option<IfIndex>,
    /// `out`.
    pub(crate) oif: Option<IfIndex>,
    /// Bridge port it came in by, where br_netfilter remembers it.
    pub(crate) physin: Option<IfIndex>,
    /// Bridge port it leaves by, on a bridged way.
    pub(crate) physout: Option<IfIndex>,
    /// Next hop of its route, where that is not its destination (`rt_nexthop()`).
    pub(crate) via: Option<IpAddr>,
}
