//! Packets that a socket or tunnel of this namespace sends: route, source, OUTPUT, POSTROUTING.
//!
//! Read first: `ip_route_output_key_hash_rcu()`, `__ip_local_out()`, `ip_output()`,
//! `ip_route_me_harder()` and their IPv6 twins, v6.12.

use std::net::{IpAddr, Ipv6Addr};

use super::fib::{FibAnswer, FibKey, Found, addr_type, lookup};
use super::pmtu::Entered;
use super::skb::{Devices, Skb};
use super::walk::{Next, Out, Walk, Ways};
use super::{Cx, fib, ipvs, pmtu, source, vrf, xfrm};

use crate::model::netfilter::{ChainKind, Hook};
use crate::model::netns::NetNs;
use crate::model::packet::{L4, Packet};
use crate::model::route::RouteKind;
use crate::model::rule::{Rule, RuleAction};
use crate::model::xfrm::XfrmDir;
use crate::model::{IfIndex, NsKey};
use crate::trace::{Disposition, DropReason, Evidence, RejectWith, Step, StepKind};

pub(crate) const IPPROTO_RAW: u8 = 255;

/// What a packet is looked up by.
pub(crate) fn key(walk: &Walk, iif: Option<IfIndex>, oif: Option<IfIndex>) -> FibKey {
    key_of(&walk.skb, iif, oif)
}

/// The same, where there is no walk.
pub(crate) fn key_of(skb: &Skb, iif: Option<IfIndex>, oif: Option<IfIndex>) -> FibKey {
    let packet = &skb.packet;
    if skb.raw && skb.local && iif.is_none() {
        // The lookup of a raw socket whose program writes the header knows nothing of what is in it
        // (`raw_sendmsg()`, `rawv6_sendmsg()`: IPPROTO_RAW) but the address that it is bound to.
        return FibKey {
            src: (!packet.src.is_unspecified()).then_some(packet.src),
            oif,
            mark: skb.mark,
            protocol: IPPROTO_RAW,
            sport: Some(0),
            dport: Some(0),
            uid: skb.uid,
            ..FibKey::to(packet.dst)
        };
    }
    let (sport, dport) = match packet.l4 {
        // What a socket sends has type and code in the place of ports (`fl4_icmp_type`).
        L4::Icmp { kind, code, .. } if iif.is_none() => {
            (Some(0), Some(u16::from(kind) << 8 | u16::from(code)))
        }
        L4::Icmp { .. } | L4::Arp { .. } | L4::Other(_) => (Some(0), Some(0)),
        L4::Tcp { .. } | L4::Udp { .. } | L4::Sctp { .. } => (packet.sport(), packet.dport()),
    };
    FibKey {
        dst: packet.dst,
        src: (!packet.src.is_unspecified()).then_some(packet.src),
        iif,
        oif,
        vrf: None,
        near: skb.near.filter(|_| iif.is_none()),
        plain: false,
        mark: skb.mark,
        tos: packet.tos,
        protocol: packet.protocol(),
        sport,
        dport,
        // A tunnel asks by itself, whoever sent what it carries (`udp_tunnel_dst_lookup()`, `ip_tunnel_init_flow()`).
        uid: if packet.is_tunnel() { Some(0) } else { skb.uid },
    }
}

/// The step of a route that was found.
pub(crate) fn route_step(cx: &Cx<'_>, walk: &Walk, found: &Found, taken: usize) -> Step {
    let devs: Vec<String> = found
        .route
        .nexthops
        .iter()
        .map(|hop| {
            hop.link
                .map_or_else(|| "none".to_owned(), |link| walk.dev(cx, link))
        })
        .collect();
    let result = match (found.route.kind, found.hops.get(taken)) {
        (RouteKind::Local | RouteKind::Anycast, _) => "for this host".to_owned(),
        (RouteKind::Unicast, Some((_, hop))) => {
            let dev = hop
                .link
                .map_or_else(|| "none".to_owned(), |link| walk.dev(cx, link));
            match hop.via {
                Some(via) => format!("via {via} dev {dev}"),
                None => format!("on link, dev {dev}"),
            }
        }
        (kind, _) => format!("{kind:?}").to_lowercase(),
    };
    let step = Step::new(StepKind::Route, result)
        .with(Evidence::Route {
            route: found.route.clone(),
            devs,
        })
        .with(Evidence::PolicyRule {
            rule: found.rule.clone(),
        });
    match (found.route.kind, found.hops.len()) {
        (RouteKind::Unicast, 2..) => step.with(Evidence::Assumed {
            why: format!(
                "route {}: which of the {} next hops a flow takes is decided by a hash with a secret seed; the shares are those of many {}",
                found.route.dst,
                found.hops.len(),
                if hashes_ports(cx, walk) {
                    "connections"
                } else {
                    "pairs of addresses, and one pair always takes the same next hop"
                }
            ),
        }),
        _ => step,
    }
}

/// Whether ports take part in the choice among next hops (fib_multipath_hash_policy).
fn hashes_ports(cx: &Cx<'_>, walk: &Walk) -> bool {
    let sysctls = walk.netns(cx).and_then(|netns| netns.sysctls.known());
    let policy = sysctls.and_then(|sysctls| {
        let policy = if walk.skb.packet.dst.is_ipv6() {
            &sysctls.fib_multipath_hash_policy6
        } else {
            &sysctls.fib_multipath_hash_policy
        };
        policy.known().copied()
    });
    matches!(policy, Some(1..))
}

/// The ways of a route with several next hops.
pub(crate) fn forks(walk: &Walk, found: &Found) -> Vec<(usize, Walk)> {
    let share = |hop: usize| found.hops.get(hop).map_or(0.0, |(share, _)| *share);
    walk.forks(found.hops.len(), share)
}

/// How a sender is told that a lookup failed.
pub(crate) fn refusal(kind: RouteKind) -> RejectWith {
    match kind {
        RouteKind::Unreachable => RejectWith::HostUnreachable,
        RouteKind::Prohibit => RejectWith::Prohibited,
        RouteKind::Blackhole => RejectWith::InvalidArgument,
        _ => RejectWith::NetUnreachable,
    }
}

/// The same for a policy rule that refuses (`fib4_rule_action()`, `fib6_rule_action()`).
pub(crate) fn rule_refusal(rule: &Rule) -> RejectWith {
    match rule.action {
        RuleAction::Prohibit => RejectWith::Prohibited,
        RuleAction::Blackhole => RejectWith::InvalidArgument,
        // FR_ACT_UNREACHABLE is -ENETUNREACH, unlike a route of that name.
        _ => RejectWith::NetUnreachable,
    }
}

/// The source must be an address of this host (`ip_route_output_key_hash_rcu()`; IPv6 does not ask).
fn own_source(cx: &mut Cx<'_>, walk: &mut Walk) -> Result<(), Ways> {
    let src = walk.skb.packet.src;
    if src.is_ipv6() || src.is_unspecified() || walk.any_source {
        return Ok(());
    }
    // `__ip_dev_find()`: an address, or else what table local has.
    let own = match source::has(cx, &walk.ns, src) {
        Ok(false) => addr_type(cx, &walk.ns, src, None, None).map(|kind| kind == RouteKind::Local),
        other => other,
    };
    match own {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        Err(why) => return Err(walk.clone().unknown(why)),
    }
    let what = format!("{src} as an address of this namespace");
    let text =
        format!("{src} is no address of this namespace, so that nothing can be sent from it");
    walk.step(Step::new(StepKind::SourceAddress, text).with(Evidence::Absent { what }));
    let refused = Disposition::Rejected(RejectWith::NetUnreachable);
    Err(walk.clone().end(refused))
}

/// TCP connects to no group (`tcp_v4_connect()`, `tcp_v6_connect()`); what else is sent to one is not
/// followed.
fn to_group(mut walk: Walk) -> Ways {
    if matches!(walk.skb.packet.l4, L4::Tcp { .. }) {
        let text = "a broadcast or multicast address, to which TCP does not connect";
        walk.step(Step::new(StepKind::Route, text));
        return walk.end(Disposition::Rejected(RejectWith::NetUnreachable));
    }
    walk.unknown("broadcast and multicast are not followed")
}

/// Output route, then OUTPUT.
pub(crate) fn local_out(cx: &mut Cx<'_>, walk: Walk, oif: Option<IfIndex>) -> Ways {
    if walk.skb.packet.dst.is_multicast() {
        return to_group(walk);
    }
    let netns = walk.netns(cx);
    let vrf = oif.and_then(|oif| vrf::of(netns?, oif));
    if let Some(vrf) = vrf.filter(|_| walk.tunnel.is_some()) {
        let why = format!(
            "the tunnel is bound to a device of VRF {}: not followed",
            vrf.name
        );
        return walk.unknown(why);
    }
    let mut ways = Vec::new();
    for way in with_source(cx, walk, oif) {
        match way {
            Sourced::Over(over) => ways.extend(over),
            Sourced::Found(walk, found) => {
                ways.extend(out_by(cx, *walk, FibAnswer::Found(found), oif));
            }
            Sourced::Open(walk) if walk.unsourced => {
                let answer = unsourced(cx, &walk, oif);
                ways.extend(out_by(cx, *walk, answer, oif));
            }
            Sourced::Open(mut walk) => {
                if let Err(over) = own_source(cx, &mut walk) {
                    ways.extend(over);
                    continue;
                }
                let answer = output_lookup(cx, &walk, oif);
                ways.extend(out_by(cx, *walk, answer, oif));
            }
        }
    }
    ways
}

/// A packet with the source that it goes out with.
enum Sourced {
    /// To be looked up (again).
    Open(Box<Walk>),
    /// The lookup that chose the source stands.
    Found(Box<Walk>, Box<Found>),
    /// It got none, and ends.
    Over(Ways),
}

/// Chooses the source where the socket has none, on every way that the route it is chosen by may take.
///
/// IPv4 looks up twice, without a source to choose one and then with it (`ip_route_connect()`); IPv6 only where the
/// first lookup failed (`ip6_dst_lookup_tail()`).
fn with_source(cx: &mut Cx<'_>, walk: Walk, oif: Option<IfIndex>) -> Vec<Sourced> {
    if !walk.skb.packet.src.is_unspecified() {
        return vec![Sourced::Open(Box::new(walk))];
    }
    let dst = walk.skb.packet.dst;
    let found = match output_lookup(cx, &walk, oif) {
        FibAnswer::Found(found) if is_way(found.route.kind) => found,
        FibAnswer::Unknown(why) => return vec![Sourced::Over(walk.unknown(why))],
        refused if dst.is_ipv4() => return vec![Sourced::Over(refuse(cx, walk, refused))],
        refused => {
            // Without a route, only a VRF is asked (`ip6_route_get_saddr()`).
            let by = oif.filter(|oif| {
                let link = walk.link(cx, *oif);
                !link.is_some_and(|link| vrf::in_vrf(cx, &walk, link))
            });
            let vrf = oif.and_then(|oif| vrf::index_of(walk.netns(cx)?, oif));
            let src = match source::select_v6(cx, &walk.ns, by.or(vrf), dst) {
                Ok(Some(src)) => src,
                Ok(None) => return vec![Sourced::Over(refuse(cx, walk, refused))],
                Err(why) => return vec![Sourced::Over(walk.unknown(why))],
            };
            return vec![Sourced::Open(Box::new(sourced(walk, src, false)))];
        }
    };
    let count = found.hops.len();
    let mut ways = Vec::new();
    for taken in 0..count.max(1) {
        let mut one = walk.clone();
        let mut by = found.clone();
        if let Some((share, hop)) = found.hops.get(taken) {
            by.hops = vec![(*share, hop.clone())];
            one.share *= share;
        }
        let vrf = key(&one, None, oif).oif.or(one.skb.near);
        let vrf = vrf.and_then(|dev| vrf::index_of(one.netns(cx)?, dev));
        let src = match source::for_route(cx, &one.ns, &by, dst, vrf) {
            Ok(Some(src)) => src,
            Ok(None) if dst.is_ipv6() || found.route.kind == RouteKind::Unicast => {
                let what = format!("an address of this family to send from, for {dst}");
                one.step(
                    Step::new(StepKind::SourceAddress, "no source address")
                        .with(Evidence::Absent { what }),
                );
                ways.push(Sourced::Over(
                    one.end(Disposition::Rejected(RejectWith::NetUnreachable)),
                ));
                continue;
            }
            Ok(None) => {
                ways.push(Sourced::Open(Box::new(one)));
                continue;
            }
            Err(why) => {
                ways.push(Sourced::Over(one.unknown(why)));
                continue;
            }
        };
        let mut one = sourced(one, src, found.route.prefsrc.is_some());
        // Errors of the kernel are looked up once (`icmp_route_lookup()`), and so are tunnels' packets (`ip_tunnel_xmit()`,
        // `udp_tunnel_dst_lookup()`), where rules ask for sources. Of several next hops they keep to one, which the second
        // lookup remembers.
        let once = one.skb.is_own_error() || (one.tunnel.is_some() && count < 2);
        if dst.is_ipv4() && !once {
            ways.push(Sourced::Open(Box::new(one)));
            continue;
        }
        if count > 1 {
            let tuple = one.skb.packet.tuple();
            let ns = one.ns.clone();
            one.memory.take(&ns, tuple, one.is_unlabelled(), taken);
        }
        ways.push(Sourced::Found(Box::new(one), found.clone()));
    }
    together(ways)
}

/// Ways of one source that are to be looked up again are one.
fn together(ways: Vec<Sourced>) -> Vec<Sourced> {
    let mut all: Vec<Sourced> = Vec::new();
    for way in ways {
        let same = all.iter_mut().find_map(|other| match (other, &way) {
            (Sourced::Open(other), Sourced::Open(walk))
                if other.skb.packet.src == walk.skb.packet.src =>
            {
                Some((other, walk.share))
            }
            _ => None,
        });
        match same {
            Some((other, share)) => other.share += share,
            None => all.push(way),
        }
    }
    all
}

/// What names a source that stands at the route.
pub(crate) const BY_ROUTE: &str = "the route's src";

fn sourced(mut walk: Walk, src: IpAddr, by_route: bool) -> Walk {
    walk.skb.packet.src = src;
    let made_here = walk
        .hops
        .last_mut()
        .filter(|hop| hop.packet.src.is_unspecified());
    if let Some(hop) = made_here {
        hop.packet.src = src;
    }
    let by = if by_route { BY_ROUTE } else { "the device" };
    let text = format!("{src}, from {by}");
    walk.step(Step::new(StepKind::SourceAddress, text));
    walk
}

/// The lookup of a socket that had no source yet, whose answer it keeps (`ip6_dst_lookup_tail()`).
fn unsourced(cx: &mut Cx<'_>, walk: &Walk, oif: Option<IfIndex>) -> FibAnswer {
    let mut before = walk.clone();
    before.skb.packet.src = Ipv6Addr::UNSPECIFIED.into();
    match output_lookup(cx, &before, oif) {
        FibAnswer::Found(found) if is_way(found.route.kind) => FibAnswer::Found(found),
        FibAnswer::Unknown(why) => FibAnswer::Unknown(why),
        _ => output_lookup(cx, walk, oif),
    }
}

/// Whether packets go by a route of this kind.
fn is_way(kind: RouteKind) -> bool {
    !matches!(
        kind,
        RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit | RouteKind::Throw
    )
}

/// The lookup of an own packet. Bound to a device, IPv4 takes what no route leads to, or what one refuses, to be on
/// that link (`ip_route_output_key_hash_rcu()`: make_route); not in a VRF.
fn output_lookup(cx: &mut Cx<'_>, walk: &Walk, oif: Option<IfIndex>) -> FibAnswer {
    let answer = lookup(cx, &walk.ns, &key(walk, None, oif));
    let refused = match &answer {
        FibAnswer::Found(found) => !is_way(found.route.kind),
        FibAnswer::Refused(_) | FibAnswer::NoRoute => true,
        FibAnswer::Unknown(_) => false,
    };
    let link = oif.and_then(|oif| walk.link(cx, oif));
    match link {
        Some(link) if refused && walk.skb.packet.dst.is_ipv4() && !vrf::in_vrf(cx, walk, link) => {
            FibAnswer::Found(Box::new(fib::on_link(walk.skb.packet.dst, link.index)))
        }
        _ => answer,
    }
}

/// Ends a packet that no route was found for, or one that refuses.
fn refuse(cx: &mut Cx<'_>, walk: Walk, answer: FibAnswer) -> Ways {
    routed(cx, walk, answer, |_, walk, out| {
        walk.then(Next::Postrouting(out))
    })
}

/// A route was looked up: OUTPUT, and another lookup where that changed what it depends on.
fn out_by(cx: &mut Cx<'_>, walk: Walk, answer: FibAnswer, oif: Option<IfIndex>) -> Ways {
    routed(cx, walk, answer, |cx, mut walk, out| {
        // `udp_tunnel_dst_lookup()`, `ip_tunnel_xmit()`: the tunnel's own packets would go into the tunnel.
        let entered = walk.tunnel.take();
        if entered.is_some_and(|entered| entered.link == out.oif) {
            let text = format!("{} leads to itself", walk.dev(cx, out.oif));
            walk.step(Step::new(StepKind::Encap, text));
            return walk.end(Disposition::Loop);
        }
        let walk = match pmtu::fits(cx, walk, entered, out) {
            Ok(walk) => walk,
            Err(ways) => return ways,
        };
        let walk = match xfrm::check(cx, walk, XfrmDir::Out, Some(out.oif)) {
            Ok(walk) => walk,
            Err(ways) => return ways,
        };
        let mut walk = match fits_raw(cx, walk, out.oif) {
            Ok(walk) => walk,
            Err(ways) => return ways,
        };
        hop_limit(cx, &mut walk, entered, out.oif);
        // What the kernel itself sends is looked up by a VRF, but its socket is not bound to that.
        walk.skb.bound = oif.filter(|_| !walk.skb.kernel);
        walk.skb.rerouted = None;
        match vrf::before(cx, &walk, &out) {
            Ok(None) => at_output(cx, walk, out),
            Ok(Some(vrf)) => vrf::out(cx, walk, out, vrf),
            Err(why) => walk.unknown(why),
        }
    })
}

/// OUTPUT at the device that it leaves by.
pub(crate) fn at_output(cx: &mut Cx<'_>, walk: Walk, out: Out) -> Ways {
    let seen = walk.skb.ipvs;
    let devices = Devices {
        oif: Some(out.oif),
        ..Devices::default()
    };
    walk.hook(
        cx,
        Hook::Output,
        false,
        devices,
        |cx, mut walk| match walk.skb.rerouted.take() {
            Some(key) => rerouted(cx, walk, &key, |_, walk, out| {
                walk.then(Next::Postrouting(out))
            }),
            None => ipvs::reroute(cx, walk, out, seen),
        },
    )
}

/// Goes on by what rules of OUTPUT made of a packet, or ends where that leads nowhere.
pub(crate) fn rerouted(
    cx: &mut Cx<'_>,
    mut walk: Walk,
    key: &FibKey,
    then: impl Fn(&mut Cx<'_>, Walk, Out) -> Ways,
) -> Ways {
    walk.skb.labelled = !walk.skb.raw;
    let answer = lookup(cx, &walk.ns, key);
    let waits = matches!(walk.skb.packet.l4, L4::Tcp { .. }) && !walk.skb.raw;
    let found = routed(cx, walk, answer, |_, walk, out| {
        walk.then(Next::Postrouting(out))
    });
    let mut ways = Vec::new();
    for (walk, mut next) in found {
        if let Next::Postrouting(out) = next {
            ways.extend(then(cx, walk, out));
            continue;
        }
        // TCP waits for an answer, as if the packet were lost on its way (`tcp_connect()`).
        if waits {
            untold(&mut next);
        }
        ways.push((walk, next));
    }
    ways
}

/// A refusal by a route that is told to nobody.
fn untold(next: &mut Next) {
    if matches!(next, Next::End(Disposition::Rejected(_))) {
        *next = Next::End(Disposition::Dropped(DropReason::IpOutnoroutes));
    }
}

/// A raw socket whose program writes the header cuts nothing, whatever the header says: more than the device takes is
/// refused before OUTPUT (`raw_send_hdrinc()`, `rawv6_send_hdrinc()`).
fn fits_raw(cx: &Cx<'_>, mut walk: Walk, oif: IfIndex) -> Result<Walk, Ways> {
    let len = walk.skb.packet.len;
    let link = walk.link(cx, oif).filter(|link| len > link.mtu);
    let Some(link) = link.filter(|_| walk.skb.raw) else {
        return Ok(walk);
    };
    let text = format!("{len} bytes do not fit, and the socket cuts nothing");
    let state = Evidence::Link {
        dev: link.name.clone(),
        state: format!("mtu {}", link.mtu),
    };
    walk.step(Step::new(StepKind::Mtu, text).with(state));
    Err(walk.end(Disposition::Rejected(RejectWith::TooBig(link.mtu))))
}

/// Hop limit that an own IPv6 packet gets by the device it leaves by (`ip6_dst_hoplimit()`), also as a tunnel's outer
/// packet where the tunnel has none of its own.
fn hop_limit(cx: &Cx<'_>, walk: &mut Walk, entered: Option<Entered>, oif: IfIndex) {
    let conf = walk.link(cx, oif).and_then(|link| link.inet6);
    let Some(limit) = conf.and_then(|conf| conf.hop_limit) else {
        return;
    };
    // A raw socket's program writes the whole header itself.
    if !walk.skb.packet.dst.is_ipv6() || walk.skb.raw {
        return;
    }
    if entered.is_some_and(|entered| entered.has_default_ttl(cx, walk)) {
        walk.skb.packet.ttl = limit;
    } else if !walk.skb.packet.is_tunnel() {
        walk.skb.packet.ttl = limit;
        if let Some(hop) = walk.hops.last_mut().filter(|hop| hop.iif.is_none()) {
            hop.packet.ttl = limit;
        }
    }
}

/// Whether a changed mark leads to a new lookup: only chains of type route (and x_tables' mangle) ask for
/// one (`nf_route_table_hook4()`, `ipt_mangle_out()`), NAT for a changed address.
pub(crate) fn reroutes_by_mark(netns: &NetNs) -> bool {
    let mut bases = netns.base_chains();
    bases.any(|base| base.hook == Hook::Output && base.kind == ChainKind::Route)
}

fn no_route(mut walk: Walk, answer: FibAnswer) -> Ways {
    match answer {
        FibAnswer::Unknown(why) => walk.unknown(why),
        FibAnswer::Refused(rule) => {
            let with = rule_refusal(&rule);
            walk.step(
                Step::new(StepKind::Route, "refused by a policy rule")
                    .with(Evidence::PolicyRule { rule }),
            );
            walk.end(Disposition::Rejected(with))
        }
        FibAnswer::NoRoute | FibAnswer::Found(_) => {
            let what = format!("a route to {}", walk.skb.packet.dst);
            walk.step(Step::new(StepKind::Route, "no route").with(Evidence::Absent { what }));
            walk.end(Disposition::Rejected(RejectWith::NetUnreachable))
        }
    }
}

/// Follows each next hop of an output route.
pub(crate) fn routed(
    cx: &mut Cx<'_>,
    mut walk: Walk,
    answer: FibAnswer,
    then: impl Fn(&mut Cx<'_>, Walk, Out) -> Ways,
) -> Ways {
    let found = match answer {
        FibAnswer::Found(found) => found,
        other => return no_route(walk, other),
    };
    let step = route_step(cx, &walk, &found, 0);
    match found.route.kind {
        RouteKind::Unicast | RouteKind::Local | RouteKind::Anycast => {}
        RouteKind::Broadcast | RouteKind::Multicast => {
            walk.step(step);
            return to_group(walk);
        }
        kind => {
            walk.step(step);
            return walk.end(Disposition::Rejected(refusal(kind)));
        }
    }
    let local = matches!(found.route.kind, RouteKind::Local | RouteKind::Anycast);
    let mut ways = Vec::new();
    for (taken, mut one) in forks(&walk, &found) {
        let Some((_, hop)) = found.hops.get(taken) else {
            continue;
        };
        one.step(route_step(cx, &walk, &found, taken));
        if let Some(encap) = &hop.encap {
            ways.extend(one.unknown(format!(
                "the route encapsulates ({encap}), which is not modelled"
            )));
            continue;
        }
        let dst = one.skb.packet.dst;
        let loopback = || vrf::loopback(one.netns(cx)?, hop.link, dst);
        let Some(oif) = (if local { loopback() } else { hop.link }) else {
            ways.extend(one.unknown("the route names no device"));
            continue;
        };
        let refused = match leaves_as_loopback(cx, &one.ns, &one.skb.packet, oif) {
            Ok(refused) => refused,
            Err(why) => {
                ways.extend(one.unknown(why));
                continue;
            }
        };
        if refused {
            let text = "a loopback source can't leave by another device";
            let name = format!("net.ipv4.conf.{}.route_localnet", one.dev(cx, oif));
            let value = "0".to_owned();
            one.step(Step::new(StepKind::Route, text).with(Evidence::Sysctl { name, value }));
            ways.extend(one.end(Disposition::Rejected(RejectWith::InvalidArgument)));
            continue;
        }
        let out = Out {
            oif,
            via: hop.via,
            mtu: found.route.mtu,
            iif: None,
            local,
        };
        // `rt_iif`, `rt6i_idev`
        one.skb.owner = hop.link.filter(|_| local);
        ways.extend(then(cx, one, out));
    }
    ways
}

/// Whether the kernel refuses the route for its source: 127.0.0.0/8 by a device that does not allow it.
/// `Err`: what is missing.
///
/// Source: `__mkroute_output()`, net/ipv4/route.c.
pub(crate) fn leaves_as_loopback(
    cx: &Cx<'_>,
    ns: &NsKey,
    packet: &Packet,
    oif: IfIndex,
) -> Result<bool, String> {
    if !(packet.src.is_ipv4() && packet.src.is_loopback()) {
        return Ok(false);
    }
    let netns = cx.topology.netns(ns);
    let link = netns.and_then(|netns| netns.link(oif));
    let Some(link) = link.filter(|link| !link.loopback && !vrf::is(link)) else {
        return Ok(false);
    };
    let all = super::input::inet_all(cx, ns)?;
    let own = link.inet.ok_or_else(|| {
        let name = format!("net.ipv4.conf.{}.route_localnet", link.name);
        format!("{name} of {ns} was not read")
    })?;
    Ok(!(all.route_localnet || own.route_localnet))
}

/// Size, POSTROUTING.
pub(crate) fn postrouting(cx: &mut Cx<'_>, mut walk: Walk, out: Out) -> Ways {
    let Some(link) = walk.link(cx, out.oif) else {
        let why = format!("device {} of {} was not read", out.oif, walk.ns);
        return walk.unknown(why);
    };
    let mtu = out.mtu.unwrap_or(link.mtu);
    if out.iif.is_none() && walk.skb.packet.len > mtu {
        let state = pmtu::limit(link, mtu);
        if walk.is_whole() {
            let text = format!(
                "{} bytes do not fit, and the socket cuts nothing",
                walk.skb.packet.len
            );
            walk.step(Step::new(StepKind::Mtu, text).with(state));
            return walk.end(Disposition::Rejected(RejectWith::TooBig(mtu)));
        }
        if pmtu::is_uncut(&walk.skb.packet) {
            let text = format!(
                "{} bytes do not fit, and must not be cut",
                walk.skb.packet.len
            );
            walk.step(Step::new(StepKind::Mtu, text).with(state));
            return walk.end(Disposition::Dropped(DropReason::PktTooBig));
        }
        let result = if matches!(walk.skb.packet.l4, L4::Tcp { .. }) {
            walk.skb.packet.len = mtu;
            format!("sent as segments of {mtu} bytes")
        } else {
            walk.skb.packet.df = false;
            walk.skb.packet.len = mtu;
            format!("sent as fragments of {mtu} bytes")
        };
        walk.step(Step::new(StepKind::Mtu, result).with(state));
    }
    let devices = Devices {
        iif: out.iif.or(walk.skb.through),
        oif: Some(out.oif),
        physin: walk.physin,
        via: out.via,
        ..Devices::default()
    };
    walk.hook(
        cx,
        Hook::Postrouting,
        false,
        devices,
        move |cx, mut walk| {
            // `__ip6_finish_output()`: only here, IPv6 that is forwarded is held against the route's own MTU.
            let packet = &walk.skb.packet;
            let most = out.mtu.filter(|mtu| packet.len > *mtu);
            if let (Some(mtu), Some(_), true) = (most, out.iif, packet.dst.is_ipv6())
                && let Some(link) = walk.link(cx, out.oif)
            {
                let text = format!("{} bytes do not fit, and must not be cut", packet.len);
                let state = pmtu::limit(link, mtu);
                walk.step(Step::new(StepKind::Mtu, text).with(state));
                return walk.end(Disposition::Rejected(RejectWith::TooBig(mtu)));
            }
            walk.then(Next::Neigh(out))
        },
    )
}
