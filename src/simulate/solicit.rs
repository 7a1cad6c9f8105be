//! ARP and neighbour discovery on their way: the question and the answer pass the hooks of everyone
//! between, who may take them.
//!
//! Read first: `arp_send_dst()`, `arp_rcv()` (net/ipv4/arp.c), `ndisc_send_skb()`, `ndisc_rcv()`
//! (net/ipv6/ndisc.c), `br_nf_forward_arp()` (net/bridge/br_netfilter_hooks.c), v6.12.

use std::net::{IpAddr, Ipv6Addr};

use super::bridge_vlan::Passage;
use super::fib::{FibAnswer, FibKey};
use super::input::{inet_all, validate_source};
use super::l2::Leg;
use super::memory::{Learned, Lessons, Met};
use super::netfilter::{HookPoint, HookVerdict, run};
use super::skb::{CtRef, Devices, Flows, Skb};
use super::walk::Next;
use super::{Cx, bridge, bridge_vlan, device, exchange, fib, output, source, vrf};
use crate::model::link::{Bridge, InetConf, Link, LinkKind};
use crate::model::netfilter::Hook;
use crate::model::packet::{ICMPV6, L4, Packet};
use crate::model::route::{NextHop, RouteKind};
use crate::model::{IfIndex, MacAddr, NsKey};
use crate::trace::{Disposition, Evidence, Step, StepKind};

/// From one station of a link to another.
pub(crate) struct Way<'t> {
    /// Who asks.
    pub(crate) from: (NsKey, &'t Link),
    /// Devices between, both ends included unless they are bridges.
    pub(crate) legs: Vec<Leg>,
    /// Who answers.
    pub(crate) to: (NsKey, &'t Link),
}

/// Why no answer comes back.
pub(crate) enum Stop {
    /// Rules or routes take the question or the answer, or the answerer refuses it: the step, and where.
    Lost(NsKey, Box<Step>),
    /// Can't be known.
    Unknown(String),
}

/// Sends the question for `addr` from `sender` and its answer through all hooks between two stations.
/// Gives what bridges and both sides learn from it.
pub(crate) fn ask(
    cx: &mut Cx<'_>,
    way: &Way<'_>,
    addr: IpAddr,
    sender: IpAddr,
) -> Result<Lessons, Stop> {
    let (Some(own), Some(theirs)) = (way.from.1.mac, way.to.1.mac) else {
        let why = format!("{} has no link-layer address", way.from.1.name);
        return Err(Stop::Unknown(why));
    };
    if addr.is_ipv6() && sender.is_unspecified() {
        // `ndisc_send_ns()`: not asked without an address to ask from.
        let text = format!("{} has no address of the link to ask from", way.from.1.name);
        let step = Step::new(StepKind::SourceAddress, text);
        return Err(Stop::Lost(way.from.0.clone(), Box::new(step)));
    }
    let question = question(own, sender, addr);
    let mut answer = question.reply(question.ttl);
    answer.src = addr;
    answer.dst = sender;
    answer.eth = Some((theirs, own));
    if let L4::Icmp { kind, .. } = &mut answer.l4 {
        *kind = ND_NEIGHBOR_ADVERT;
    }
    let back = Way {
        from: way.to.clone(),
        legs: way.legs.iter().rev().map(turned).collect(),
        to: way.from.clone(),
    };
    source_is_taken(cx, way, &question)?;
    let learned = send(cx, way, question, Vec::new())?;
    let learned = send(cx, &back, answer, learned)?;
    let neighbour = |(ns, link): &(NsKey, &Link), addr, mac, asked| Met {
        ns: ns.clone(),
        dev: link.index,
        addr,
        mac,
        asked,
    };
    let mut met = vec![neighbour(&way.from, addr, theirs, true)];
    if !sender.is_unspecified() {
        // The question tells who asks (`arp_process()`, `ndisc_recv_ns()`).
        met.push(neighbour(&way.to, sender, own, false));
    }
    Ok(Lessons { learned, met })
}

const ND_NEIGHBOR_SOLICIT: u8 = 135;
const ND_NEIGHBOR_ADVERT: u8 = 136;
/// Hop limit of neighbour discovery (`NDISC_HLIM` of RFC 4861).
const HOP_LIMIT: u8 = 255;

fn turned(leg: &Leg) -> Leg {
    Leg {
        arriving: !leg.arriving,
        ..leg.clone()
    }
}

/// Address that a question comes from: that of the packet where it is the asking side's own and the settings
/// allow it.
///
/// Source: `arp_solicit()`, `ndisc_solicit()`.
pub(crate) fn sender(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    link: &Link,
    addr: IpAddr,
    src: Option<IpAddr>,
) -> Result<IpAddr, String> {
    let netns = cx.topology.netns(ns);
    let addrs = netns.and_then(|netns| netns.addrs.known());
    let vrf = |dev| netns.and_then(|netns| vrf::index_of(netns, dev));
    let own = |wanted: &IpAddr| {
        let mut list = addrs.into_iter().flatten();
        list.any(|own| {
            let near =
                own.link == link.index || wanted.is_ipv4() && vrf(own.link) == vrf(link.index);
            own.local == *wanted && near
        })
    };
    let on_link = |wanted: &IpAddr| {
        let mut list = addrs
            .into_iter()
            .flatten()
            .filter(|own| own.link == link.index);
        list.any(|own| {
            let subnet = own.subnet();
            subnet.is_some_and(|subnet| subnet.contains(*wanted) && subnet.contains(addr))
        })
    };
    let mut usable = src.filter(|src| src.is_ipv4() == addr.is_ipv4() && own(src));
    if addr.is_ipv4() {
        let (conf, all) = inet(cx, ns, link)?;
        usable = match conf.arp_announce.max(all.arp_announce) {
            0 => usable,
            1 => usable.filter(on_link),
            _ => None,
        };
    }
    if let Some(src) = usable {
        return Ok(src);
    }
    if addr.is_ipv4() {
        let chosen = source::select_v4(cx, ns, Some(link.index), Some(addr), source::SCOPE_LINK)?;
        return Ok(chosen.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED)));
    }
    let list = addrs.into_iter().flatten();
    let mut own = list.filter(|own| own.link == link.index && own.local.is_ipv6());
    Ok(own
        .find(|own| source::is_link_local(own.local))
        .map_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED), |own| own.local))
}

/// ARP settings of a device and of all.
pub(crate) fn inet(cx: &Cx<'_>, ns: &NsKey, link: &Link) -> Result<(InetConf, InetConf), String> {
    link.inet
        .zip(inet_all(cx, ns).ok())
        .ok_or_else(|| format!("ARP settings of {} in {ns} were not read", link.name))
}

/// The answerer looks a route up for the question first, which checks its source (`arp_process()`).
fn source_is_taken(cx: &mut Cx<'_>, way: &Way<'_>, question: &Packet) -> Result<(), Stop> {
    let (ns, link) = &way.to;
    if question.src.is_ipv6() || question.src.is_unspecified() {
        return Ok(());
    }
    let mut walk = exchange::first(ns.clone(), question.clone(), exchange::NOBODY);
    let Err(ways) = validate_source(cx, &mut walk, link, None) else {
        return Ok(());
    };
    let end = ways.into_iter().next();
    match end {
        Some((walk, Next::End(Disposition::Inconclusive(why)))) => {
            let why = why.into_iter().next().unwrap_or_default();
            Err(Stop::Unknown(format!("{why} ({})", walk.ns)))
        }
        Some((walk, _)) => {
            let step = walk.hops.last().and_then(|hop| hop.steps.last()).cloned();
            let step = step.unwrap_or_else(|| Step::new(StepKind::RpFilter, "refused"));
            Err(Stop::Lost(ns.clone(), Box::new(step)))
        }
        None => Ok(()),
    }
}

fn question(own: MacAddr, sender: IpAddr, addr: IpAddr) -> Packet {
    let (dst, to, len, l4) = match addr {
        IpAddr::V4(_) => (addr, MacAddr::BROADCAST, 28, L4::Arp { op: 1 }),
        IpAddr::V6(v6) => {
            // The solicited-node group of the address, RFC 4291.
            let [.., a, b, c] = v6.octets();
            let group = Ipv6Addr::new(
                0xff02,
                0,
                0,
                0,
                0,
                1,
                0xff00 | u16::from(a),
                u16::from(b) << 8 | u16::from(c),
            );
            let to = MacAddr([0x33, 0x33, 0xff, a, b, c]);
            let l4 = L4::Icmp {
                kind: ND_NEIGHBOR_SOLICIT,
                code: 0,
                id: None,
            };
            (IpAddr::V6(group), to, 72, l4)
        }
    };
    Packet {
        eth: Some((own, to)),
        src: sender,
        dst,
        ttl: HOP_LIMIT,
        tos: 0,
        df: false,
        len,
        l4,
        inner: None,
    }
}

/// A bridge takes no such frame there.
fn not_of_vlan(ns: &NsKey, by: &Link, state: &str) -> Stop {
    let text = format!("{} does not take the frame's VLAN: {state}", by.name);
    Stop::Lost(ns.clone(), Box::new(Step::new(StepKind::Bridge, text)))
}

/// One frame on its way, at one place.
struct Frame<'c, 't> {
    cx: &'c mut Cx<'t>,
    packet: Packet,
    /// `skb->mark`, which stays with it inside of a namespace.
    mark: Option<u32>,
    /// Where it was received last, or sent.
    at: NsKey,
    local: bool,
    /// The port that it came into the current bridge by, and whether br_netfilter shows it to IP.
    inside: Option<(IfIndex, bool)>,
    /// VLAN that the bridge that it is in takes it for, where that filters.
    vid: Option<u16>,
    /// VLAN of its tag.
    tag: Option<u16>,
    /// The station is behind the device that it leaves by.
    last: bool,
    learned: Vec<Learned>,
}

fn send(
    cx: &mut Cx<'_>,
    way: &Way<'_>,
    packet: Packet,
    learned: Vec<Learned>,
) -> Result<Vec<Learned>, Stop> {
    let mut frame = Frame {
        cx,
        packet,
        mark: Some(0),
        at: way.from.0.clone(),
        local: true,
        inside: None,
        vid: None,
        tag: None,
        last: false,
        learned,
    };
    let (ns, link) = &way.from;
    let out = Devices {
        oif: Some(link.index),
        ..Devices::default()
    };
    let before = (frame.packet.tos, frame.packet.ttl);
    frame.hook(ns, Hook::Output, false, out)?;
    if frame.is_v6() {
        let changed = (frame.packet.tos, frame.packet.ttl) != before || frame.mark != Some(0);
        if changed {
            frame.reroute(ns, link)?;
        }
        frame.hook(ns, Hook::Postrouting, false, out)?;
    }
    for (at, leg) in way.legs.iter().enumerate() {
        frame.last = at + 2 >= way.legs.len();
        frame.pass(leg)?;
    }
    let (ns, link) = &way.to;
    frame.arrive(ns, link)?;
    Ok(frame.learned)
}

impl<'t> Frame<'_, 't> {
    fn is_v6(&self) -> bool {
        self.packet.src.is_ipv6()
    }

    /// What OUTPUT marked, or whose header it changed, is routed again, which may refuse it (`ip6_route_me_harder()`).
    fn reroute(&mut self, ns: &NsKey, link: &Link) -> Result<(), Stop> {
        let netns = self.cx.topology.netns(ns);
        if !netns.is_some_and(output::reroutes_by_mark) {
            return Ok(());
        }
        let dst = self.packet.dst;
        let dissects = fib::dissects(self.cx, ns, true).map_err(Stop::Unknown)?;
        let protocol = if dissects { ICMPV6 } else { 0 };
        let near =
            matches!(dst, IpAddr::V6(dst) if dst.is_multicast() || dst.is_unicast_link_local());
        let key = FibKey {
            src: (!self.packet.src.is_unspecified()).then_some(self.packet.src),
            oif: near.then_some(link.index),
            vrf: netns.and_then(|netns| vrf::index_of(netns, link.index)),
            mark: self.mark,
            protocol,
            ..FibKey::to(dst)
        };
        let refused = |text: &str| {
            let step = Step::new(
                StepKind::Route,
                format!("changed by rules and routed again: {text}"),
            );
            Err(Stop::Lost(ns.clone(), Box::new(step)))
        };
        match fib::lookup(self.cx, ns, &key) {
            FibAnswer::Unknown(why) => Err(Stop::Unknown(why)),
            FibAnswer::NoRoute => refused("no route"),
            FibAnswer::Refused(_) => refused("refused by a policy rule"),
            FibAnswer::Found(found) if found.route.kind.refuses() => refused("refused by a route"),
            FibAnswer::Found(found) => {
                let here = |hop: &NextHop| {
                    hop.link == Some(link.index) && hop.via.is_none_or(|via| via == dst)
                };
                if found.hops.iter().all(|(_, hop)| here(hop)) {
                    return Ok(());
                }
                Err(Stop::Unknown(format!(
                    "rules of {ns} lead questions for neighbours, or answers, elsewhere"
                )))
            }
        }
    }

    fn link(&self, ns: &NsKey, dev: IfIndex) -> Result<&'t Link, Stop> {
        let link = self.cx.topology.netns(ns).and_then(|netns| netns.link(dev));
        link.ok_or_else(|| Stop::Unknown(format!("device {dev} of {ns} was not read")))
    }

    /// The bridge that a device is a port of.
    fn bridge_of(&self, ns: &NsKey, link: &Link) -> Option<(&'t Link, &'t Bridge)> {
        let master = self.cx.topology.netns(ns)?.link(link.master?)?;
        match &master.kind {
            LinkKind::Bridge(bridge) => Some((master, bridge)),
            _ => None,
        }
    }

    /// Through one device.
    fn pass(&mut self, leg: &Leg) -> Result<(), Stop> {
        let link = self.link(&leg.ns, leg.dev)?;
        let port = self.bridge_of(&leg.ns, link);
        if !leg.arriving {
            if let Some((master, bridge)) = port {
                self.choose_vlan((&leg.ns, master, bridge), link, leg.tag)?;
                self.is_sent_by(&leg.ns, master, link)?;
                self.leave_bridge(&leg.ns, master.index, leg.dev)?;
            }
            self.tag = leg.tag;
            self.device(&leg.ns, leg.dev, Hook::Egress)?;
            if let LinkKind::Vlan(id) = link.kind {
                self.tag = Some(id);
            }
            return Ok(());
        }
        if leg.ns != self.at {
            self.mark = Some(0);
            self.at = leg.ns.clone();
        }
        self.local = false;
        self.tag = leg.tag;
        self.device(&leg.ns, leg.dev, Hook::Ingress)?;
        match port {
            Some((master, bridge)) => self.enter_bridge(&leg.ns, link, master, bridge),
            None => Ok(()),
        }
    }

    fn device(&mut self, ns: &NsKey, dev: IfIndex, hook: Hook) -> Result<(), Stop> {
        if !device::hooked(self.cx, ns, hook) {
            return Ok(());
        }
        let devices = match hook {
            Hook::Ingress => Devices {
                iif: Some(dev),
                ..Devices::default()
            },
            _ => Devices {
                oif: Some(dev),
                ..Devices::default()
            },
        };
        self.hook(ns, hook, false, devices)
    }

    /// Whether a bridge sends a frame for one station by a port: that it is known to be behind, or any that it floods
    /// to (`br_handle_frame_finish()`, `br_flood()`).
    fn is_sent_by(&self, ns: &NsKey, master: &Link, port: &Link) -> Result<(), Stop> {
        let station = self.packet.eth.map(|(_, to)| to);
        let Some(to) = station.filter(|to| to.0[0] & 1 == 0) else {
            return Ok(());
        };
        let floods = port.port.as_ref().is_none_or(|port| port.unicast_flood);
        let mut learned = self.learned.iter().rev();
        let known = learned.any(|lesson| {
            lesson.ns == *ns
                && lesson.bridge == master.index
                && (lesson.mac, lesson.vid) == (to, self.vid)
        });
        if floods || known {
            return Ok(());
        }
        let netns = self.cx.topology.netns(ns);
        let Some(fdb) = netns.and_then(|netns| netns.fdb.known()) else {
            return Err(Stop::Unknown(format!(
                "forwarding entries of {ns} were not read"
            )));
        };
        let mut entries = fdb.iter();
        let is_it = |entry: &crate::model::fdb::FdbEntry| {
            (entry.mac, entry.link) == (to, port.index) && !entry.own && entry.vlan == self.vid
        };
        if entries.any(is_it) {
            return Ok(());
        }
        let text = format!(
            "{}: does not know {to}, and {} does not flood",
            master.name, port.name
        );
        let step = Step::new(StepKind::Bridge, text);
        Err(Stop::Lost(ns.clone(), Box::new(step)))
    }

    /// Whether a bridge that filters VLANs lets the frame out by a port, with the tag that the way was found with.
    fn choose_vlan(
        &mut self,
        (ns, master, bridge): (&NsKey, &Link, &Bridge),
        out: &Link,
        tag: Option<u16>,
    ) -> Result<(), Stop> {
        if self.inside.is_none() {
            // Sent by the bridge's own device.
            self.vid = match bridge_vlan::ingress(master, bridge, master, self.tag) {
                Passage::Yes(vid) => vid,
                Passage::No(state) => return Err(not_of_vlan(ns, master, &state)),
                Passage::Unknown(why) => return Err(Stop::Unknown(why)),
            };
        }
        let Some(vid) = self.vid else {
            self.tag = tag;
            return Ok(());
        };
        match bridge_vlan::egress(master, bridge, out, vid) {
            Passage::Yes(own) if own == tag => {
                self.tag = tag;
                Ok(())
            }
            // The device that asked does not take it, whatever is on top of that.
            Passage::Yes(_) if self.last => Err(not_of_vlan(ns, out, "another VLAN tag")),
            Passage::Yes(_) => {
                let why = format!("{} sends the answer with another VLAN tag", out.name);
                Err(Stop::Unknown(why))
            }
            Passage::No(state) => Err(not_of_vlan(ns, out, &state)),
            Passage::Unknown(why) => Err(Stop::Unknown(why)),
        }
    }

    fn enter_bridge(
        &mut self,
        ns: &NsKey,
        port: &Link,
        master: &Link,
        bridge: &Bridge,
    ) -> Result<(), Stop> {
        self.vid = match bridge_vlan::ingress(master, bridge, port, self.tag) {
            Passage::Yes(vid) => vid,
            Passage::No(state) => return Err(not_of_vlan(ns, port, &state)),
            Passage::Unknown(why) => return Err(Stop::Unknown(why)),
        };
        if let Some((from, _)) = self.packet.eth
            && port.port.as_ref().is_none_or(|port| port.learning)
        {
            self.learned.push(Learned {
                ns: ns.clone(),
                bridge: master.index,
                mac: from,
                vid: self.vid,
                port: port.index,
            });
        }
        let devices = Devices {
            iif: Some(port.index),
            ..Devices::default()
        };
        self.hook(ns, Hook::Prerouting, true, devices)?;
        let tagged = self.tag.is_some();
        if tagged && self.is_v6() {
            bridge_vlan::shows_tagged(self.cx, ns, master).map_err(Stop::Unknown)?;
        }
        let nf = self.is_v6()
            && !tagged
            && bridge::calls_iptables(self.cx, ns, true, master, bridge).map_err(Stop::Unknown)?;
        self.inside = Some((port.index, nf));
        if nf {
            let devices = Devices {
                iif: Some(master.index),
                physin: Some(port.index),
                ..Devices::default()
            };
            self.hook(ns, Hook::Prerouting, false, devices)?;
        }
        Ok(())
    }

    fn leave_bridge(&mut self, ns: &NsKey, master: IfIndex, port: IfIndex) -> Result<(), Stop> {
        let inside = self.inside.take();
        let from = inside.map(|(from, _)| from);
        let ports = Devices {
            iif: from,
            oif: Some(port),
            ..Devices::default()
        };
        let ip = Devices {
            iif: Some(master),
            oif: Some(master),
            physin: from,
            physout: Some(port),
            via: None,
        };
        let hook = if from.is_some() {
            Hook::Forward
        } else {
            Hook::Output
        };
        self.hook(ns, hook, true, ports)?;
        let nf = inside.is_some_and(|(_, nf)| nf) && self.tag.is_none();
        if nf {
            self.hook(ns, Hook::Forward, false, ip)?;
        } else if !self.is_v6() && from.is_some() && self.tag.is_none() && self.filters_arp(ns) {
            // bridge-nf-call-arptables is not read.
            let why = format!("whether the arp rules of {ns} see bridged arp was not read");
            return Err(Stop::Unknown(why));
        }
        self.hook(ns, Hook::Postrouting, true, ports)?;
        if nf {
            self.hook(ns, Hook::Postrouting, false, ip)?;
        }
        Ok(())
    }

    /// Whether a chain of family arp is hooked at forward.
    fn filters_arp(&self, ns: &NsKey) -> bool {
        use crate::model::netfilter::Family;
        let rules = self
            .cx
            .topology
            .netns(ns)
            .and_then(|netns| netns.nft.known());
        let tables = rules.into_iter().flat_map(|rules| &rules.tables);
        let mut chains = tables
            .filter(|table| table.family == Family::Arp)
            .flat_map(|table| table.chains.values());
        chains.any(|chain| {
            let base = chain.base.as_ref();
            base.is_some_and(|base| base.hook == Hook::Forward)
        })
    }

    /// Up to the station itself.
    fn arrive(&mut self, ns: &NsKey, link: &Link) -> Result<(), Stop> {
        let into = Devices {
            iif: Some(link.index),
            ..Devices::default()
        };
        let inside = self.inside.take();
        if inside.is_some() {
            let own = self.bridge_below(ns, link)?;
            let by = Devices {
                iif: Some(own),
                ..Devices::default()
            };
            self.hook(ns, Hook::Input, true, by)?;
        }
        let prerouted = inside.is_some_and(|(_, nf)| nf);
        if self.is_v6() && !prerouted {
            self.hook(ns, Hook::Prerouting, false, into)?;
        }
        let netns = self.cx.topology.netns(ns);
        let vrf = netns.and_then(|netns| vrf::above(netns, link.index));
        if let Some(vrf) = vrf.filter(|_| self.is_v6()) {
            // Neighbour discovery stays the device's (`vrf_ip6_rcv()`).
            let into = Devices {
                iif: Some(vrf.index),
                ..Devices::default()
            };
            self.hook(ns, Hook::Prerouting, false, into)?;
        }
        if self.is_v6() {
            self.is_for_here(ns, link, vrf)?;
        }
        self.hook(ns, Hook::Input, false, into)?;
        // Whoever is farther away than the link could have sent it (`ndisc_rcv()`).
        if self.is_v6() && self.packet.ttl != HOP_LIMIT {
            let limit = self.packet.ttl;
            let text = format!("passed over: its hop limit is {limit}, rules having changed it");
            let step = Step::new(StepKind::Neigh, text);
            return Err(Stop::Lost(ns.clone(), Box::new(step)));
        }
        Ok(())
    }

    /// Routes may take it for somebody else's, those of the device itself also in a VRF (`ip6_route_input()`); what is for a group,
    /// a VRF looks up in its own table (`vrf_ip6_input_dst()`).
    fn is_for_here(&mut self, ns: &NsKey, link: &Link, vrf: Option<&Link>) -> Result<(), Stop> {
        let dst = self.packet.dst;
        if vrf.is_some() && vrf::is_strict(dst) {
            return Ok(());
        }
        let dissects = fib::dissects(self.cx, ns, true).map_err(Stop::Unknown)?;
        let key = FibKey {
            src: Some(self.packet.src),
            iif: Some(link.index),
            mark: self.mark,
            tos: self.packet.tos,
            protocol: if dissects { ICMPV6 } else { 0 },
            ..FibKey::to(dst)
        };
        let (text, evidence) = match fib::lookup(self.cx, ns, &key) {
            FibAnswer::Unknown(why) => return Err(Stop::Unknown(why)),
            FibAnswer::Refused(rule) => (
                "a policy rule refuses it",
                vec![Evidence::PolicyRule { rule }],
            ),
            // Each device has a route for groups, which is not always read.
            FibAnswer::NoRoute if dst.is_multicast() => return Ok(()),
            FibAnswer::NoRoute => {
                let what = format!("a route to {dst}");
                ("there is no route", vec![Evidence::Absent { what }])
            }
            FibAnswer::Found(found) => {
                let shown = |found: &fib::Found| {
                    vec![
                        Evidence::PolicyRule {
                            rule: found.rule.clone(),
                        },
                        Evidence::Route {
                            route: found.route.clone(),
                            devs: Vec::new(),
                        },
                    ]
                };
                match found.route.kind {
                    RouteKind::Local | RouteKind::Anycast => return Ok(()),
                    kind if kind.refuses() => ("a route refuses it", shown(&found)),
                    _ if dst.is_multicast() => return Ok(()),
                    _ => ("its route leads elsewhere", shown(&found)),
                }
            }
        };
        let what = if dst.is_multicast() {
            "question"
        } else {
            "answer"
        };
        let text = format!("the {what} came in by {}: {text}", link.name);
        let mut step = Step::new(StepKind::Route, text);
        step.evidence = evidence;
        Err(Stop::Lost(ns.clone(), Box::new(step)))
    }

    /// The bridge that hands a frame up: the station, or what its VLAN is on top of.
    fn bridge_below(&self, ns: &NsKey, link: &Link) -> Result<IfIndex, Stop> {
        let (master, tag) = match (link.kind.clone(), link.link) {
            (LinkKind::Vlan(id), Some(below)) if link.link_netnsid.is_none() => {
                (self.link(ns, below)?, Some(id))
            }
            _ => (link, None),
        };
        let LinkKind::Bridge(bridge) = &master.kind else {
            let why = format!("{} is on top of no bridge here", link.name);
            return Err(Stop::Unknown(why));
        };
        let Some(vid) = self.vid else {
            return Ok(master.index);
        };
        match bridge_vlan::egress(master, bridge, master, vid) {
            Passage::Yes(own) if own == tag => Ok(master.index),
            Passage::Yes(_) => Err(not_of_vlan(ns, link, "of another VLAN")),
            Passage::No(state) => Err(not_of_vlan(ns, master, &state)),
            Passage::Unknown(why) => Err(Stop::Unknown(why)),
        }
    }

    /// The legacy ARP table that decides at the hooks of ARP, whose rules are not read.
    fn legacy_arp(&self, ns: &NsKey) -> Option<String> {
        let netns = self.cx.topology.netns(ns)?;
        let mut names = netns.unread_tables.known()?.iter();
        names.find(|name| name.starts_with("arp ")).cloned()
    }

    fn hook(&mut self, ns: &NsKey, hook: Hook, bridge: bool, devices: Devices) -> Result<(), Stop> {
        let at_arp = !self.is_v6() && !bridge && matches!(hook, Hook::Input | Hook::Output);
        if at_arp && let Some(table) = self.legacy_arp(ns) {
            let why = format!(
                "rules of legacy arptables (table {table} of {ns}) are not read, and may take the question"
            );
            return Err(Stop::Unknown(why));
        }
        let at = HookPoint {
            ns,
            hook,
            bridge,
            devices,
            reroutes: false,
        };
        let skb = Skb {
            mark: self.mark,
            local: self.local,
            tagged: self.tag,
            ..Skb::new(self.packet.clone())
        };
        let skb = match (&hook, bridge, self.is_v6()) {
            // Conntrack has seen it at PREROUTING or OUTPUT, and passes it over (`icmpv6_error()`).
            (Hook::Input | Hook::Forward | Hook::Postrouting, false, true) => Skb {
                ct: CtRef::Untracked,
                ..skb
            },
            _ => skb,
        };
        let outcomes = run(self.cx, &at, skb, Flows::default());
        let mut packets: Vec<Packet> = Vec::new();
        let mut marks = Vec::new();
        let mut stops = Vec::new();
        for outcome in outcomes {
            match outcome.verdict {
                HookVerdict::Accept => {
                    packets.push(outcome.skb.packet);
                    marks.push(outcome.skb.mark);
                }
                HookVerdict::Drop(_) | HookVerdict::Reject(_) => {
                    stops.extend(outcome.steps.last().cloned());
                }
                // Asked for by nobody here.
                HookVerdict::Unroutable => {
                    return Err(Stop::Unknown("a question was routed again".to_owned()));
                }
                // It takes no such packets.
                HookVerdict::Ipvs(_) => {
                    return Err(Stop::Unknown(
                        "IPVS took a question for a neighbour".to_owned(),
                    ));
                }
                HookVerdict::Unknown(why) => return Err(Stop::Unknown(why)),
            }
        }
        packets.dedup();
        if packets.len() > 1 {
            return Err(Stop::Unknown(format!(
                "rules of {ns} change some of the questions for neighbours, or of the answers"
            )));
        }
        match (packets.pop(), stops.pop()) {
            (Some(packet), None) => {
                self.packet = packet;
                marks.dedup();
                self.mark = match marks.as_slice() {
                    [mark] => *mark,
                    _ => None,
                };
                Ok(())
            }
            (None, Some(step)) => Err(Stop::Lost(ns.clone(), Box::new(step))),
            (Some(_), Some(_)) => Err(Stop::Unknown(format!(
                "rules of {ns} take some of the questions for neighbours, or of the answers"
            ))),
            (None, None) => Err(Stop::Unknown(format!("rules of {ns} gave no answer"))),
        }
    }
}
