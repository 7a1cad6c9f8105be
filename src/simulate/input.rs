//! Packets that come in: PREROUTING, the input route, and the checks of the source.
//!
//! Read first: `ip_rcv()`, `ip_route_input_slow()`, `fib_validate_source()` (net/ipv4), `ip6_rcv_core()`,
//! `ip6_route_input()` (net/ipv6), v6.12.

use std::net::IpAddr;

use super::Cx;
use super::fib::{FibAnswer, FibKey, Found, addr_type, dissects, is_customized, lookup, section};
use super::output::{forks, key, route_step, rule_refusal};
use super::skb::Devices;
use super::vrf;
use super::walk::{Next, Out, Walk, Ways};
use crate::model::link::{Inet6Conf, InetConf, Link};
use crate::model::netfilter::Hook;
use crate::model::route::RouteKind;
use crate::model::{IfIndex, NsKey};
use crate::trace::{Disposition, DropReason, Evidence, RejectWith, Step, StepKind};

/// IPV6_MIN_MTU
const IPV6_MIN_MTU: u32 = 1280;

/// The IP layer gets a packet from a device.
pub(crate) fn ip_receive(cx: &mut Cx<'_>, mut walk: Walk, dev: IfIndex, prerouted: bool) -> Ways {
    let Some(link) = walk.link(cx, dev) else {
        let why = format!("device {dev} of {} was not read", walk.ns);
        return walk.unknown(why);
    };
    if let (Some((_, dst)), Some(own)) = (walk.skb.packet.eth, link.mac)
        && dst != own
        && !dst.is_multicast()
        && !link.loopback
    {
        let state = format!("address {own}, the frame is for {dst}");
        let evidence = Evidence::Link {
            dev: link.name.clone(),
            state,
        };
        walk.step(Step::new(StepKind::Receive, "the frame is for another station").with(evidence));
        return walk.end(Disposition::Dropped(DropReason::Otherhost));
    }
    if walk.skb.packet.dst.is_ipv6() && link.inet6.is_none_or(|conf| conf.disable_ipv6) {
        if link.inet6.is_none() {
            // A device whose MTU is below 1280 bytes has no IPv6 at all (`addrconf_notify()`).
            if link.mtu >= IPV6_MIN_MTU {
                let why = format!(
                    "the IPv6 settings of {} in {} were not read",
                    link.name, walk.ns
                );
                return walk.unknown(why);
            }
            let evidence = Evidence::Link {
                dev: link.name.clone(),
                state: format!("mtu {}, IPv6 needs {IPV6_MIN_MTU}", link.mtu),
            };
            let text = "no IPv6 on this device";
            walk.step(Step::new(StepKind::Receive, text).with(evidence));
            return walk.end(Disposition::Dropped(DropReason::NotSpecified));
        }
        let name = format!("net.ipv6.conf.{}.disable_ipv6", link.name);
        walk.step(
            Step::new(StepKind::Receive, "IPv6 is off on this device").with(Evidence::Sysctl {
                name,
                value: "1".to_owned(),
            }),
        );
        return walk.end(Disposition::Dropped(DropReason::NotSpecified));
    }
    // IPv6 looks before PREROUTING, which may translate to such an address.
    if walk.skb.packet.dst.is_ipv6()
        && !link.loopback
        && !vrf::is(link)
        && let Err(ways) = martian(cx, &mut walk, link)
    {
        return ways;
    }
    // `ip_sabotage_in()`: not what a VRF's slave takes.
    let enslaved = walk
        .netns(cx)
        .is_some_and(|netns| vrf::above(netns, dev).is_some());
    if prerouted && !enslaved {
        return vrf::receive(cx, walk, dev);
    }
    let devices = Devices {
        iif: Some(dev),
        physin: walk.physin,
        ..Devices::default()
    };
    walk.hook(cx, Hook::Prerouting, false, devices, |cx, walk| {
        vrf::receive(cx, walk, dev)
    })
}

/// Local, forwarded, or neither.
pub(crate) fn route_input(cx: &mut Cx<'_>, mut walk: Walk, dev: IfIndex) -> Ways {
    let Some(link) = walk.link(cx, dev) else {
        return walk.unknown("the device was not read");
    };
    if link.loopback || vrf::is(link) {
        // The route that brought it here is still attached (`skb_valid_dst()`), unless it was
        // translated on the way.
        if let Some(attached) = walk.skb.attached.take() {
            return match forwarding(cx, &walk, link) {
                Ok((forwards, _)) => vrf::attached(walk, attached, forwards),
                Err(why) => walk.unknown(why),
            };
        }
        return walk.then(Next::LocalIn(dev));
    }
    if walk.skb.packet.dst.is_ipv4()
        && let Err(ways) = martian(cx, &mut walk, link)
    {
        return ways;
    }
    let dst = walk.skb.packet.dst;
    let netns = walk.netns(cx);
    let (routed_by, into) = netns.map_or((dev, dev), |netns| vrf::incoming(netns, dev, dst));
    let answer = vrf::lookup_input(cx, &walk, dev, &key(&walk, Some(routed_by), None));
    let forwarding = match forwarding(cx, &walk, link) {
        Ok(setting) => setting,
        Err(why) => return walk.unknown(why),
    };
    let v6 = walk.skb.packet.dst.is_ipv6();
    let found = match answer {
        FibAnswer::Unknown(why) => return walk.unknown(why),
        // IPv6 tells the sender before it asks whether it forwards (`ip6_pkt_discard()` is the route's own).
        FibAnswer::NoRoute | FibAnswer::Refused(_) if !forwarding.0 && !v6 => {
            return forwarding_off(walk, forwarding.1);
        }
        FibAnswer::NoRoute => {
            let what = format!("a route to {}", walk.skb.packet.dst);
            walk.step(Step::new(StepKind::Route, "no route").with(Evidence::Absent { what }));
            return walk.end(Disposition::Rejected(RejectWith::NetUnreachable));
        }
        FibAnswer::Refused(rule) => {
            let with = rule_refusal(&rule);
            walk.step(
                Step::new(StepKind::Route, "refused by a policy rule")
                    .with(Evidence::PolicyRule { rule }),
            );
            return match with {
                RejectWith::InvalidArgument => {
                    walk.end(Disposition::Dropped(DropReason::IpInnoroutes))
                }
                with => walk.end(Disposition::Rejected(with)),
            };
        }
        FibAnswer::Found(found) => found,
    };
    let step = route_step(cx, &walk, &found, 0);
    match found.route.kind {
        // An anycast address is for this host as well (`ip6_rt_init_dst()`: dst.input = ip6_input).
        RouteKind::Local | RouteKind::Anycast => {
            walk.step(step);
            if let Err(ways) = validate_source(cx, &mut walk, link, None) {
                return ways;
            }
            if into != dev {
                walk.skb.owner = found.hops.first().and_then(|(_, hop)| hop.link);
            }
            walk.then(Next::LocalIn(into))
        }
        RouteKind::Unicast if !forwarding.0 => forwarding_off(walk, forwarding.1),
        RouteKind::Blackhole if !forwarding.0 && !v6 => forwarding_off(walk, forwarding.1),
        RouteKind::Unicast => fork(cx, &walk, &found, link, into),
        RouteKind::Blackhole => {
            walk.step(step);
            walk.end(Disposition::Dropped(DropReason::IpInnoroutes))
        }
        // IPv4 looks at the switch first (`ip_error()`).
        RouteKind::Unreachable | RouteKind::Prohibit if !forwarding.0 && !v6 => {
            walk.step(step);
            forwarding_off(walk, forwarding.1)
        }
        // IPv6 has one answer for both (`ip6_pkt_discard()`).
        RouteKind::Unreachable if v6 => {
            walk.step(step);
            walk.end(Disposition::Rejected(RejectWith::NetUnreachable))
        }
        RouteKind::Unreachable | RouteKind::Prohibit => {
            walk.step(step);
            walk.end(Disposition::Rejected(super::output::refusal(
                found.route.kind,
            )))
        }
        _ => {
            walk.step(step);
            walk.unknown("broadcast and multicast are not followed")
        }
    }
}

fn fork(cx: &mut Cx<'_>, walk: &Walk, found: &Found, link: &Link, into: IfIndex) -> Ways {
    let mut ways = Vec::new();
    for (taken, mut one) in forks(walk, found) {
        let Some((_, hop)) = found.hops.get(taken) else {
            continue;
        };
        if let Err(refused) = validate_source(cx, &mut one, link, hop.link) {
            ways.extend(refused);
            continue;
        }
        one.step(route_step(cx, walk, found, taken));
        ways.extend(match (hop.link, &hop.encap) {
            (Some(oif), None) => {
                let out = Out {
                    oif,
                    via: hop.via,
                    mtu: found.route.mtu,
                    iif: Some(into),
                    local: false,
                };
                one.then(Next::Forward(into, out))
            }
            (_, Some(encap)) => one.unknown(format!(
                "the route encapsulates ({encap}), which is not modelled"
            )),
            (None, None) => one.unknown("the route names no device"),
        });
    }
    ways
}

fn forwarding_off(mut walk: Walk, name: String) -> Ways {
    walk.step(
        Step::new(
            StepKind::Forward,
            "not for this host, and forwarding is off",
        )
        .with(Evidence::Sysctl {
            name,
            value: "0".to_owned(),
        }),
    );
    walk.end(Disposition::Dropped(DropReason::ForwardingOff))
}

/// The `all` row of the IPv4 settings.
pub(crate) fn inet_all(cx: &Cx<'_>, ns: &NsKey) -> Result<InetConf, String> {
    let sysctls = cx.topology.netns(ns).and_then(|ns| ns.sysctls.known());
    sysctls
        .and_then(|sysctls| sysctls.inet_all.known().copied())
        .ok_or_else(|| format!("net.ipv4.conf.all of {ns} was not read"))
}

/// The `all` row of the IPv6 settings.
pub(crate) fn inet6_all(cx: &Cx<'_>, ns: &NsKey) -> Result<Inet6Conf, String> {
    let sysctls = cx.topology.netns(ns).and_then(|ns| ns.sysctls.known());
    sysctls
        .and_then(|sysctls| sysctls.inet6_all.known().copied())
        .ok_or_else(|| format!("net.ipv6.conf.all of {ns} was not read"))
}

/// Whether packets that come in by `link` are forwarded, and the setting that says so.
///
/// Source: `IN_DEV_FORWARD()`; IPv6: `ip6_forward()` asks `all`, or `force_forwarding` of the device.
pub(crate) fn forwarding(cx: &Cx<'_>, walk: &Walk, link: &Link) -> Result<(bool, String), String> {
    if walk.skb.packet.dst.is_ipv6() {
        let all = inet6_all(cx, &walk.ns)?;
        let own = link.inet6.is_some_and(|conf| conf.force_forwarding);
        return Ok((
            all.forwarding || own,
            "net.ipv6.conf.all.forwarding".to_owned(),
        ));
    }
    let name = format!("net.ipv4.conf.{}.forwarding", link.name);
    match link.inet {
        Some(conf) => Ok((conf.forwarding, name)),
        None => Err(format!("{name} of {} was not read", walk.ns)),
    }
}

/// Addresses that can't be on a wire. Source: the head of `ip_route_input_slow()`, `ip6_rcv_core()`.
pub(crate) fn martian(cx: &Cx<'_>, walk: &mut Walk, link: &Link) -> Result<(), Ways> {
    let (src, dst) = (walk.skb.packet.src, walk.skb.packet.dst);
    let (reason, text) = if src.is_multicast() || matches!(src, IpAddr::V4(v4) if v4.is_broadcast())
    {
        (
            DropReason::IpInvalidSource,
            "the source is no unicast address",
        )
    } else if src.is_loopback() || dst.is_loopback() {
        let allowed = match (src, link.inet, inet_all(cx, &walk.ns)) {
            (IpAddr::V6(_), _, _) => false,
            (IpAddr::V4(_), Some(own), Ok(all)) => own.route_localnet || all.route_localnet,
            (IpAddr::V4(_), _, _) => {
                let why = format!(
                    "route_localnet of {} in {} was not read",
                    link.name, walk.ns
                );
                return Err(walk.clone().unknown(why));
            }
        };
        if allowed {
            return Ok(());
        }
        (DropReason::IpLocalnet, "a loopback address from outside")
    } else {
        return Ok(());
    };
    walk.step(Step::new(StepKind::RpFilter, text).with(Evidence::Link {
        dev: link.name.clone(),
        state: format!("packet from {src} to {dst}"),
    }));
    Err(walk.clone().end(Disposition::Dropped(reason)))
}

/// Ends a packet whose source is this host's own.
fn local_source(walk: &mut Walk, link: &Link) -> Ways {
    let what = Evidence::Address {
        addr: walk.skb.packet.src,
        dev: "this namespace".to_owned(),
    };
    let text = "the source is an address of this namespace itself";
    walk.step(
        Step::new(StepKind::RpFilter, text)
            .with(what)
            .with(Evidence::Sysctl {
                name: format!("net.ipv4.conf.{}.accept_local", link.name),
                value: "0".to_owned(),
            }),
    );
    walk.clone()
        .end(Disposition::Dropped(DropReason::IpLocalSource))
}

/// Whether the device has an IPv4 address.
fn has_address(cx: &mut Cx<'_>, walk: &Walk, link: &Link) -> Result<bool, Ways> {
    let topology = cx.topology;
    let Some(netns) = topology.netns(&walk.ns) else {
        return Ok(false);
    };
    let addrs = section(cx, &walk.ns, &netns.addrs, "addresses");
    let addrs = addrs.map_err(|why| walk.clone().unknown(why))?;
    Ok(addrs
        .iter()
        .any(|addr| addr.link == link.index && addr.local.is_ipv4()))
}

/// Whether the source is one that a full check of the way back would only confirm (`fib_validate_source()`): then
/// it may be anything but an address of this host.
fn is_plain(cx: &mut Cx<'_>, walk: &Walk, redirects: bool) -> Result<bool, Ways> {
    if redirects {
        return Ok(false);
    }
    let customized = is_customized(cx, &walk.ns).map_err(|why| walk.clone().unknown(why))?;
    Ok(!customized)
}

/// The reverse path of a packet that is routed to the device `oif`, or to this host. Source: `fib_validate_source()`,
/// net/ipv4/fib_frontend.c. IPv6 has none.
pub(crate) fn validate_source(
    cx: &mut Cx<'_>,
    walk: &mut Walk,
    link: &Link,
    oif: Option<IfIndex>,
) -> Result<(), Ways> {
    let src = walk.skb.packet.src;
    if src.is_ipv6() {
        return Ok(());
    }
    let all = inet_all(cx, &walk.ns).map_err(|why| walk.clone().unknown(why))?;
    let Some(own) = link.inet else {
        let why = format!("settings of {} in {} were not read", link.name, walk.ns);
        return Err(walk.clone().unknown(why));
    };
    let mode = all.rp_filter.max(own.rp_filter);
    let accept_local = all.accept_local || own.accept_local;
    // Sending back where it came from, a router thinks of redirects, and looks closer.
    let redirects = oif == Some(link.index) && (all.send_redirects || own.send_redirects);
    if mode == 0 && !redirects && accept_local {
        return Ok(());
    }
    if mode == 0 && is_plain(cx, walk, redirects)? {
        let kind = addr_type(cx, &walk.ns, src, None, None);
        return match kind.map_err(|why| walk.clone().unknown(why))? {
            RouteKind::Local => Err(local_source(walk, link)),
            _ => Ok(()),
        };
    }
    let marked = all.src_valid_mark || own.src_valid_mark;
    let forward = key(walk, Some(link.index), None);
    let netns = walk.netns(cx);
    let back = FibKey {
        src: Some(walk.skb.packet.dst),
        // `flowi4_iif`: a VRF's, the device that it leaves by, or loopback.
        iif: oif,
        vrf: netns.and_then(|netns| vrf::index_of(netns, link.index)),
        mark: if marked { walk.skb.mark } else { Some(0) },
        tos: walk.skb.packet.tos,
        ..FibKey::to(src)
    };
    let dissects = dissects(cx, &walk.ns, false).map_err(|why| walk.clone().unknown(why))?;
    let back = if dissects {
        FibKey {
            protocol: forward.protocol,
            sport: forward.dport,
            dport: forward.sport,
            ..back
        }
    } else {
        back
    };
    let answer = lookup(cx, &walk.ns, &back);
    let (pass, route) = match &answer {
        FibAnswer::Unknown(why) => return Err(walk.clone().unknown(why.clone())),
        FibAnswer::NoRoute | FibAnswer::Refused(_) => (mode == 0, None),
        FibAnswer::Found(found) => match found.route.kind {
            RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit => {
                (mode == 0, Some(found))
            }
            RouteKind::Local if !accept_local => return Err(local_source(walk, link)),
            RouteKind::Unicast | RouteKind::Local => {
                let hops = found.route.nexthops.iter();
                // `nhc_l3mdev_matches_dev()`
                let same = hops.filter_map(|hop| hop.link).any(|by| {
                    let vrf = || netns.and_then(|netns| vrf::index_of(netns, by));
                    by == link.index || vrf() == Some(link.index)
                });
                // Loose mode is strict at a device without an address (`no_addr`: last_resort).
                let loose = mode == 0 || mode == 2 && has_address(cx, walk, link)?;
                (same || loose, Some(found))
            }
            // `e_inval`, whatever the mode is.
            _ => (false, Some(found)),
        },
    };
    if pass {
        return Ok(());
    }
    let name = if all.rp_filter >= own.rp_filter {
        "all"
    } else {
        link.name.as_str()
    };
    let setting = Evidence::Sysctl {
        name: format!("net.ipv4.conf.{name}.rp_filter"),
        value: mode.to_string(),
    };
    let mut step = match route {
        Some(found) => {
            let devs: Vec<String> = found
                .route
                .nexthops
                .iter()
                .map(|hop| {
                    hop.link
                        .map_or_else(|| "none".to_owned(), |link| walk.dev(cx, link))
                })
                .collect();
            let text = format!(
                "came in by {}, but answers to {src} leave by {}",
                link.name,
                devs.join(", ")
            );
            Step::new(StepKind::RpFilter, text)
                .with(setting)
                .with(Evidence::Route {
                    route: found.route.clone(),
                    devs,
                })
        }
        None => Step::new(
            StepKind::RpFilter,
            format!("there is no route back to {src}"),
        )
        .with(setting)
        .with(Evidence::Absent {
            what: format!("a route to {src}"),
        }),
    };
    step.changes.clear();
    walk.step(step);
    Err(walk
        .clone()
        .end(Disposition::Dropped(DropReason::IpRpfilter)))
}
