//! Route lookup: policy rules by priority, then the longest prefix, then the metric.
//!
//! Read first: `fib_lookup()`, `fib_table_lookup()` (net/ipv4), `fib6_rule_lookup()` (net/ipv6), v6.12.
//! Not modelled: IPv6 router reachability probing, route exceptions (PMTU, redirects), flow labels.

use std::net::{IpAddr, Ipv4Addr};

use super::Cx;
use super::output::IPPROTO_RAW;
use super::{source, vrf};
use crate::model::link::{Link, LinkKind};
use crate::model::netns::NetNs;
use crate::model::route::{
    NextHop, RT_TABLE_DEFAULT, RT_TABLE_LOCAL, RT_TABLE_MAIN, Route, RouteKind,
};
use crate::model::rule::{Rule, RuleAction};
use crate::model::{IfIndex, NsKey, Prefix, Section};

/// IPTOS_RT_MASK: bits of the differentiated services byte that IPv4 routes and rules of the old kind (`tos`) see.
const IPTOS_RT_MASK: u8 = 0x1c;
/// INET_DSCP_MASK: all but the two bits of ECN.
const DSCP_MASK: u8 = 0xfc;

/// What rules with a VRF as device ask for.
const BY_VRF: &str = "a VRF, for which some kernels (before 5.18, from 6.15 on) take any device of it, and others do not";

/// What is looked up (`struct flowi4`, `struct flowi6`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FibKey {
    /// Destination.
    pub(crate) dst: IpAddr,
    /// Source; `None`: not chosen yet.
    pub(crate) src: Option<IpAddr>,
    /// Device it came in by; `None`: sent here.
    pub(crate) iif: Option<IfIndex>,
    /// Device it must leave by.
    pub(crate) oif: Option<IfIndex>,
    /// The VRF whose table rules with `l3mdev` lead to; `None`: that of `oif`, or else of `iif` (`l3mdev_update_flow()`).
    pub(crate) vrf: Option<IfIndex>,
    /// Device that IPv6 would rather have it leave by, where there are several routes (`rt6_score_route()`), and that policy
    /// rules take for the one it must.
    pub(crate) near: Option<IfIndex>,
    /// IPv6 takes the first route of a destination, whatever its preference or the device that came in
    /// (`ip6_route_lookup()`: `rt6_device_match()`).
    pub(crate) plain: bool,
    /// Mark; `None`: unknown.
    pub(crate) mark: Option<u32>,
    /// Differentiated services byte.
    pub(crate) tos: u8,
    /// IPPROTO_*.
    pub(crate) protocol: u8,
    /// Source port.
    pub(crate) sport: Option<u16>,
    /// Destination port.
    pub(crate) dport: Option<u16>,
    /// Sender's uid.
    pub(crate) uid: Option<u32>,
}

impl FibKey {
    /// A key of addresses alone, mark 0, sent here by the kernel itself.
    pub(crate) fn to(dst: IpAddr) -> Self {
        Self {
            dst,
            src: None,
            iif: None,
            oif: None,
            vrf: None,
            near: None,
            plain: false,
            mark: Some(0),
            tos: 0,
            protocol: 0,
            sport: Some(0),
            dport: Some(0),
            uid: Some(0),
        }
    }
}

/// A route that was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    /// The policy rule that led to its table.
    pub(crate) rule: Rule,
    /// The route.
    pub(crate) route: Route,
    /// Usable next hops with the share of flows that take each.
    pub(crate) hops: Vec<(f64, NextHop)>,
}

/// Answer of a lookup.
#[derive(Clone, Debug)]
pub(crate) enum FibAnswer {
    /// A route of any kind but throw.
    Found(Box<Found>),
    /// A rule refuses.
    Refused(Rule),
    /// No route.
    NoRoute,
    /// Can't be known; what is missing.
    Unknown(String),
}

/// The namespace with links, addresses, rules and routes, or what is missing of it.
pub(crate) fn tables<'t>(cx: &mut Cx<'t>, key: &NsKey) -> Result<Tables<'t>, String> {
    let Some(ns) = cx.topology.netns(key) else {
        cx.want_netns(key);
        return Err(format!("{key} was not read"));
    };
    let node = cx.topology.nodes.get(&key.node);
    Ok(Tables {
        ns,
        by_device: node.is_some_and(|node| vrf::rules_go_by_device(&node.kernel)),
        rules: section(cx, key, &ns.rules, "policy rules")?,
        routes: section(cx, key, &ns.routes, "routes")?,
    })
}

/// What a lookup reads.
pub(crate) struct Tables<'t> {
    pub(crate) ns: &'t NetNs,
    /// Rules that name a VRF surely ask for the device itself.
    by_device: bool,
    rules: &'t [Rule],
    routes: &'t [Route],
}

/// Whether this namespace's IPv4 addresses alone don't say what is local: rules of its own, or local routes that
/// the kernel did not make (`fib4_has_custom_rules()`, `fib_has_custom_local_routes`).
pub(crate) fn is_customized(cx: &mut Cx<'_>, ns: &NsKey) -> Result<bool, String> {
    const KERNEL: u8 = 2;
    let tables = tables(cx, ns)?;
    let own_local = |route: &Route| {
        route.kind == RouteKind::Local && route.dst.addr().is_ipv4() && route.protocol != KERNEL
    };
    Ok(!tables.has_usual_rules() || tables.routes.iter().any(own_local))
}

/// Whether a lookup for a packet that stands looks at its protocol and ports: only where a rule of its family asks for
/// them, and not just of what is sent here (`fib_rule_requires_fldissect()`).
pub(crate) fn dissects(cx: &mut Cx<'_>, ns: &NsKey, v6: bool) -> Result<bool, String> {
    let asks =
        |rule: &Rule| rule.ip_proto.is_some() || rule.sport.is_some() || rule.dport.is_some();
    let mut rules = tables(cx, ns)?.rules.iter().filter(|rule| rule.v6 == v6);
    Ok(rules.any(|rule| rule.iif.as_deref() != Some("lo") && asks(rule)))
}

/// The value of a section, or a want and the words for what is missing.
pub(crate) fn section<'t, T>(
    cx: &mut Cx<'_>,
    key: &NsKey,
    section: &'t Section<Vec<T>>,
    what: &str,
) -> Result<&'t [T], String> {
    match section {
        Section::Known(list) => Ok(list),
        Section::NotAsked => {
            cx.want_netns(key);
            Err(format!("{what} of {key} were not read"))
        }
        Section::Missing(why) => Err(format!("{what} of {key} can't be read: {why}")),
    }
}

/// Looks a destination up through policy rules and tables.
pub(crate) fn lookup(cx: &mut Cx<'_>, ns: &NsKey, key: &FibKey) -> FibAnswer {
    match tables(cx, ns) {
        Ok(tables) => tables.lookup(key),
        Err(missing) => FibAnswer::Unknown(missing),
    }
}

impl Tables<'_> {
    /// Whether IPv4 has the three rules that it begins with, as it made them, and no other.
    fn has_usual_rules(&self) -> bool {
        let usual = [
            (0, RT_TABLE_LOCAL),
            (32_766, RT_TABLE_MAIN),
            (32_767, RT_TABLE_DEFAULT),
        ];
        let usual = usual.map(|(priority, table)| Rule::bare(false, priority, table));
        self.rules.iter().filter(|rule| !rule.v6).eq(&usual)
    }

    /// While nobody made a rule, IPv4 keeps tables local and main as one, so that the longer prefix wins whichever it
    /// is in, and what refuses there does not keep table default from being asked (`fib_lookup()`).
    fn merged_lookup(&self, key: &FibKey) -> FibAnswer {
        let rules = || self.rules.iter().filter(|rule| !rule.v6);
        let mut answer = None;
        if let Some(main) = rules().find(|rule| rule.priority == 32_766) {
            let mut found = self.table_lookup(&[RT_TABLE_LOCAL, RT_TABLE_MAIN], key, main);
            // The rule by which tables that are apart would be asked.
            if let Some(FibAnswer::Found(found)) = &mut found
                && found.route.table == RT_TABLE_LOCAL
            {
                found.rule = local_rule(key.dst);
            }
            let refuses = |found: &FibAnswer| matches!(found, FibAnswer::Found(found) if found.route.kind.refuses());
            match found {
                Some(found) if !refuses(&found) => return found,
                found => answer = found,
            }
        }
        let has_default = self
            .routes
            .iter()
            .any(|route| route.table == RT_TABLE_DEFAULT && route.dst.addr().is_ipv4());
        if let Some(rule) = rules()
            .find(|rule| rule.priority == 32_767)
            .filter(|_| has_default)
        {
            answer = self.table_lookup(&[RT_TABLE_DEFAULT], key, rule);
        }
        answer.unwrap_or(FibAnswer::NoRoute)
    }

    /// Looks a destination up through policy rules and tables.
    pub(crate) fn lookup(&self, key: &FibKey) -> FibAnswer {
        if key.dst.is_ipv4() && self.has_usual_rules() {
            return self.merged_lookup(key);
        }
        let key = &vrf::updated(self.ns, key);
        let mut rules: Vec<&Rule> = self
            .rules
            .iter()
            .filter(|rule| rule.v6 == key.dst.is_ipv6())
            .collect();
        rules.sort_by_key(|rule| rule.priority);
        let mut skip_below = 0;
        let targets: Vec<u32> = rules.iter().map(|rule| rule.priority).collect();
        for rule in rules {
            if rule.priority < skip_below {
                continue;
            }
            match self.rule_matches(rule, key) {
                Ok(false) => continue,
                Ok(true) => {}
                Err(why) => return FibAnswer::Unknown(why),
            }
            let table = match rule.action {
                RuleAction::Table(table) => table,
                // Without a rule to go to, the next one follows (FIB_RULE_UNRESOLVED).
                RuleAction::Goto(priority) if !targets.contains(&priority) => continue,
                RuleAction::Goto(priority) => {
                    // The kernel only takes targets behind the rule, so that this ends.
                    skip_below = priority.max(rule.priority.saturating_add(1));
                    continue;
                }
                RuleAction::Nop => continue,
                RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => {
                    return FibAnswer::Refused(rule.clone());
                }
                RuleAction::Other(number) => {
                    return FibAnswer::Unknown(format!(
                        "policy rule {} has action {number}, which is not known",
                        rule.priority
                    ));
                }
            };
            let table = if rule.l3mdev {
                self.vrf_table(key).unwrap_or(table)
            } else {
                table
            };
            match self.table_lookup(&[table], key, rule) {
                Some(FibAnswer::Found(found)) => {
                    if let Some(limit) = rule.suppress_prefixlen {
                        let short = |route: &Route| u32::from(route.dst.len()) <= limit;
                        if let Err(why) = self.is_like_its_twins(&found.route, short) {
                            return FibAnswer::Unknown(why);
                        }
                    }
                    // What refuses is not suppressed (`fib_rules_lookup()`: only where there is no error).
                    let short = !found.route.kind.refuses()
                        && rule
                            .suppress_prefixlen
                            .is_some_and(|limit| length(&found, key) <= limit);
                    if short {
                        continue;
                    }
                    if rule.suppress_ifgroup.is_some() {
                        return FibAnswer::Unknown(format!(
                            "policy rule {} suppresses by device group, which is not read",
                            rule.priority
                        ));
                    }
                    return FibAnswer::Found(found);
                }
                Some(other) => return other,
                None => {}
            }
        }
        FibAnswer::NoRoute
    }

    fn vrf_table(&self, key: &FibKey) -> Option<u32> {
        match self.ns.link(key.vrf?)?.kind {
            LinkKind::Vrf(table) => Some(table),
            _ => None,
        }
    }

    /// Whether a rule's device is one. Of a VRF, kernels from 6.15 on look at the VRF that the packet is in, others at the
    /// device itself (`fib_rule_iif_match()`). `None`: these differ.
    fn is_device(&self, name: &str, index: Option<IfIndex>, key: &FibKey) -> Option<bool> {
        let own = match index {
            None => name == "lo",
            Some(index) => self.ns.link(index).is_some_and(|link| link.name == name),
        };
        let vrf = self.ns.link_named(name).filter(|link| vrf::is(link));
        match vrf.filter(|_| !self.by_device) {
            Some(link) if own != (key.vrf == Some(link.index)) => None,
            _ => Some(own),
        }
    }

    /// Whether a policy rule applies. Source: `fib_rule_match()`, `fib4_rule_match()`.
    fn rule_matches(&self, rule: &Rule, key: &FibKey) -> Result<bool, String> {
        let unknown = |what: &str| format!("policy rule {} asks for {what}", rule.priority);
        let mut hit = true;
        let mut open = None;
        let mut check = |value: Option<bool>, what: &str| match value {
            Some(value) => hit &= value,
            None => open = Some(unknown(what)),
        };
        if let Some(iif) = &rule.iif {
            check(self.is_device(iif, key.iif, key), BY_VRF);
        }
        if let Some(oif) = &rule.oif {
            let by = key.oif.or(key.near);
            let is = self.is_device(oif, by, key);
            check(is.map(|is| is && (by.is_some() || oif != "lo")), BY_VRF);
        }
        if let Some((value, mask)) = rule.fwmark {
            check(
                key.mark.map(|mark| (mark ^ value) & mask == 0),
                "a mark that is not known",
            );
        }
        if let Some(src) = rule.src {
            // To IPv4, no source yet is 0.0.0.0; IPv6 knows the difference.
            let none = key.dst.is_ipv4().then_some(Ipv4Addr::UNSPECIFIED.into());
            let from = key.src.or(none);
            check(Some(from.is_some_and(|addr| src.contains(addr))), "from");
        }
        if let Some(dst) = rule.dst {
            check(Some(dst.contains(key.dst)), "to");
        }
        if rule.tos != 0 {
            check(Some(rule.tos == selectable(rule, key)), "tos");
        }
        if let Some(protocol) = rule.ip_proto {
            check(Some(protocol == key.protocol), "ipproto");
        }
        let within = |port: Option<u16>, (from, to)| port.map(|port| (from..=to).contains(&port));
        if let Some(range) = rule.sport {
            check(
                within(key.sport, range),
                "a source port that is not fixed (--source-port)",
            );
        }
        if let Some(range) = rule.dport {
            check(
                within(key.dport, range),
                "a destination port that is not fixed",
            );
        }
        if let Some((from, to)) = rule.uid {
            // Nobody sends what comes in: it is looked up as root's (`sock_net_uid(net, NULL)`).
            let uid = if key.iif.is_some() { Some(0) } else { key.uid };
            let within = uid.map(|uid| (from..=to).contains(&uid));
            check(within, "the sender's uid, which is not known");
        }
        if rule.l3mdev {
            check(Some(self.vrf_table(key).is_some()), "l3mdev");
        }
        if let Some(what) = rule.unknown.first() {
            check(None, what);
        }
        // One condition that surely fails decides, whatever the open ones would say.
        match (hit, open) {
            (false, _) => Ok(rule.invert),
            (true, None) => Ok(!rule.invert),
            (true, Some(why)) => Err(why),
        }
    }

    /// `None`: nothing here, go on with the next rule (also for a throw route).
    fn table_lookup(&self, of: &[u32], key: &FibKey, rule: &Rule) -> Option<FibAnswer> {
        let mut candidates: Vec<&Route> = self
            .routes
            .iter()
            .filter(|route| of.contains(&route.table) && route.dst.contains(key.dst))
            .filter(|route| route.tos == 0 || route.tos == key.tos & IPTOS_RT_MASK)
            .filter(|route| match route.src {
                None => true,
                Some(prefix) => key.src.is_some_and(|src| prefix.contains(src)),
            })
            .collect();
        candidates.sort_by_key(|route| {
            (
                std::cmp::Reverse(route.dst.len()),
                std::cmp::Reverse(route.src.map_or(0, Prefix::len)),
                std::cmp::Reverse(route.table),
                std::cmp::Reverse(route.tos),
                route.metric,
            )
        });
        if key.dst.is_ipv6() {
            self.by_score(&mut candidates, key);
        }
        let mut met = false;
        // IPv4 keeps prefixes that begin alike together. Where a nexthop object has no way, it looks at none of the
        // shorter ones among these (`fib_table_lookup()`: miss).
        let mut missed = None;
        for route in candidates {
            if missed == Some(route.dst.addr()) {
                continue;
            }
            if !met && self.is_hidden(route, key) {
                continue;
            }
            met = true;
            if let Some(what) = route.unknown.first() {
                return Some(FibAnswer::Unknown(format!(
                    "route {} has {what}",
                    route.dst
                )));
            }
            match route.kind {
                // IPv6 has these at the loopback device, where a socket that is bound to another finds none.
                RouteKind::Throw
                | RouteKind::Blackhole
                | RouteKind::Unreachable
                | RouteKind::Prohibit
                    if key.dst.is_ipv6()
                        && !is_dead_end(route)
                        && !self.may_leave_by_loopback(key) => {}
                RouteKind::Throw => return None,
                RouteKind::Blackhole | RouteKind::Unreachable | RouteKind::Prohibit => {
                    return Some(found(rule, route, Vec::new()));
                }
                RouteKind::Other(number) => {
                    return Some(FibAnswer::Unknown(format!(
                        "route {} is of type {number}, which is not known",
                        route.dst
                    )));
                }
                _ => {}
            }
            let usable = route.nexthops.iter().filter(|hop| self.usable(hop, key));
            // Bound to a device, IPv4 takes the first next hop by it (`fib_select_path()` chooses for others only).
            let most = match key.oif {
                Some(_) if key.dst.is_ipv4() => 1,
                _ => usize::MAX,
            };
            let hops: Vec<NextHop> = usable.take(most).cloned().collect();
            let total: u32 = hops.iter().map(|hop| u32::from(hop.weight.max(1))).sum();
            if total == 0 {
                if route.nh_id.is_some() && key.dst.is_ipv4() {
                    missed = Some(route.dst.addr());
                }
                continue;
            }
            let share = |hop: &NextHop| f64::from(hop.weight.max(1)) / f64::from(total);
            let hops: Vec<_> = hops.into_iter().map(|hop| (share(&hop), hop)).collect();
            let like = self.is_like_its_twins(route, |route| (route.mtu, route.prefsrc));
            if let Err(why) = like.and_then(|()| self.gateways_are_others(route, &hops)) {
                return Some(FibAnswer::Unknown(why));
            }
            return Some(found(rule, route, hops));
        }
        None
    }

    /// IPv6 keeps routes that ask for a source below their destination, and looks there first: where it has such
    /// routes and none is for this source, it goes on with a shorter destination, past the routes for any source.
    /// Only a lookup that met a route before, and had to leave it, sees those (`fib6_node_lookup_1()`,
    /// `fib6_backtrack()`).
    fn is_hidden(&self, route: &Route, key: &FibKey) -> bool {
        let of_source = |other: &Route| {
            other.table == route.table && other.dst == route.dst && other.src.is_some()
        };
        key.dst.is_ipv6()
            && route.src.is_none()
            && route.dst.len() > 0
            && self.routes.iter().any(of_source)
    }

    /// IPv6 takes the best of a destination's routes of the first metric, or else the best of all others: by router
    /// preference, then those by the device that the packet came in by, or that its socket is bound to
    /// (`find_rr_leaf()`, `rt6_score_route()`). A nexthop object that is a blackhole ends the search.
    fn by_score(&self, sorted: &mut [&Route], key: &FibKey) {
        let iif = key.iif.filter(|_| !key.plain);
        let wanted = key.oif.or(iif).or(key.near);
        let by_device = |route: &Route| {
            let Some(wanted) = wanted else {
                return true;
            };
            if !route.kind.refuses() && route.kind != RouteKind::Throw {
                let mut hops = route.nexthops.iter();
                return hops.any(|hop| hop.link == Some(wanted) && self.usable(hop, key));
            }
            // What refuses is at the loopback device.
            self.ns.link(wanted).is_some_and(|link| link.loopback)
        };
        for routes in sorted.chunk_by_mut(|a, b| (a.dst, a.src) == (b.dst, b.src)) {
            let first = routes.first().map(|route| route.metric);
            routes.sort_by_key(|route| {
                let preferred = (!key.plain).then(|| preference(route.pref));
                let best = (preferred, !by_device(route));
                (Some(route.metric) != first, !is_dead_end(route), best)
            });
        }
    }

    /// A gateway of IPv4 that was an address of this host when the route was made is not asked: what is behind it is on
    /// the link (`fib_check_nh_v4_gw()`, `rt_set_nexthop()`). `Err`: one may have been.
    fn gateways_are_others(&self, route: &Route, hops: &[(f64, NextHop)]) -> Result<(), String> {
        let tables = [route.table, RT_TABLE_LOCAL, RT_TABLE_MAIN];
        for (_, hop) in hops {
            let Some(via) = hop.via.filter(|via| via.is_ipv4() && !hop.onlink) else {
                continue;
            };
            let own = self.routes.iter().any(|local| {
                local.kind == RouteKind::Local
                    && local.dst.contains(via)
                    && tables.contains(&local.table)
                    && local.nexthops.iter().any(|at| at.link == hop.link)
            });
            if own {
                return Err(format!(
                    "route {} has the gateway {via}, which is this namespace's own, and whether it was so when the route was made is not told",
                    route.dst
                ));
            }
        }
        Ok(())
    }

    /// IPv6 routes of one nexthop object share what the kernel prepared when the first of them was used, on each
    /// processor (`rt6_get_pcpu_route()`). `Err`: they differ in this.
    fn is_like_its_twins<T: PartialEq>(
        &self,
        route: &Route,
        what: impl Fn(&Route) -> T,
    ) -> Result<(), String> {
        let Some(id) = route.nh_id.filter(|_| route.dst.addr().is_ipv6()) else {
            return Ok(());
        };
        let ways = |hop: &NextHop| (hop.via, hop.link);
        let shares = |other: &&Route| {
            let mut hops = other.nexthops.iter();
            other.nh_id.is_some()
                && other.dst.addr().is_ipv6()
                && hops.any(|hop| route.nexthops.iter().any(|own| ways(own) == ways(hop)))
        };
        let own = what(route);
        match self
            .routes
            .iter()
            .filter(shares)
            .find(|other| what(other) != own)
        {
            None => Ok(()),
            Some(other) => Err(format!(
                "routes {} and {} have nexthop object {id}, and which of the two the kernel prepared it for is not told",
                route.dst, other.dst
            )),
        }
    }

    fn may_leave_by_loopback(&self, key: &FibKey) -> bool {
        let link = device_of(key).map(|index| self.ns.link(index));
        link.is_none_or(|link| link.is_some_and(|link| link.loopback))
    }

    fn usable(&self, hop: &NextHop, key: &FibKey) -> bool {
        if hop.dead {
            return false;
        }
        if let (Some(wanted), Some(link)) = (device_of(key), hop.link)
            && wanted != link
        {
            return false;
        }
        if hop.linkdown {
            let link = hop.link.and_then(|index| self.ns.link(index));
            let own = link.is_some_and(|link| {
                if key.dst.is_ipv6() {
                    link.inet6
                        .is_some_and(|conf| conf.ignore_routes_with_linkdown)
                } else {
                    link.inet
                        .is_some_and(|conf| conf.ignore_routes_with_linkdown)
                }
            });
            let all = self.ns.sysctls.known().is_some_and(|sysctls| {
                if key.dst.is_ipv6() {
                    sysctls
                        .inet6_all
                        .known()
                        .is_some_and(|conf| conf.ignore_routes_with_linkdown)
                } else {
                    sysctls
                        .inet_all
                        .known()
                        .is_some_and(|conf| conf.ignore_routes_with_linkdown)
                }
            });
            return !(own || all);
        }
        true
    }
}

/// The prefix length that a suppressing rule looks at. IPv6 copies a route without a gateway for the one address
/// where the program writes the header (`ip6_pol_route()`: FLOWI_FLAG_KNOWN_NH).
fn length(found: &Found, key: &FibKey) -> u32 {
    let on_link = found.hops.first().is_some_and(|(_, hop)| hop.via.is_none());
    if key.dst.is_ipv6() && key.protocol == IPPROTO_RAW && on_link {
        return 128;
    }
    u32::from(found.route.dst.len())
}

/// The device that a route must be at: what came in for an address of one link, or for loopback's, is looked up
/// strictly (`rt6_need_strict()`).
fn device_of(key: &FibKey) -> Option<IfIndex> {
    let strict = match key.dst {
        IpAddr::V6(dst) => dst.is_unicast_link_local() || dst.is_loopback(),
        IpAddr::V4(_) => false,
    };
    key.oif.or(key.iif.or(key.near).filter(|_| strict))
}

/// The bits of the packet's differentiated services that a rule compares (`fib4_rule_match()`,
/// `fib6_rule_match()`).
fn selectable(rule: &Rule, key: &FibKey) -> u8 {
    key.tos
        & if rule.v6 || rule.dscp {
            DSCP_MASK
        } else {
            IPTOS_RT_MASK
        }
}

fn found(rule: &Rule, route: &Route, hops: Vec<(f64, NextHop)>) -> FibAnswer {
    FibAnswer::Found(Box::new(Found {
        rule: rule.clone(),
        route: route.clone(),
        hops,
    }))
}

/// Order of IPv6 router preferences: high, medium, low.
fn preference(pref: u8) -> u8 {
    match pref {
        1 => 0,
        3 => 2,
        _ => 1,
    }
}

/// The route that an IPv4 socket has which is bound to a device and for which none was found.
pub(crate) fn on_link(dst: IpAddr, dev: IfIndex) -> Found {
    let hop = NextHop {
        via: None,
        link: Some(dev),
        weight: 1,
        dead: false,
        linkdown: false,
        onlink: false,
        encap: None,
    };
    Found {
        rule: local_rule(dst),
        route: Route {
            table: 0,
            dst: Prefix::host(dst),
            src: None,
            tos: 0,
            metric: 0,
            kind: RouteKind::Unicast,
            scope: source::SCOPE_LINK,
            protocol: 0,
            prefsrc: None,
            nexthops: vec![hop.clone()],
            nh_id: None,
            mtu: None,
            pref: 0,
            realm: None,
            unknown: Vec::new(),
        },
        hops: vec![(1.0, hop)],
    }
}

/// Looks a destination up in one table alone.
pub(crate) fn lookup_in(cx: &mut Cx<'_>, ns: &NsKey, key: &FibKey, table: u32) -> FibAnswer {
    let rule = Rule::bare(key.dst.is_ipv6(), 0, table);
    match tables(cx, ns) {
        Ok(tables) => tables
            .table_lookup(&[table], key, &rule)
            .unwrap_or(FibAnswer::NoRoute),
        Err(missing) => FibAnswer::Unknown(missing),
    }
}

/// Type of an address (`inet_dev_addr_type()`): looked up in table local, which is one with main while nobody made a
/// rule; unicast where nothing is found. With `dev`, the route must leave by that device. In a VRF it is that one's table, and
/// IPv6 looks up as it does for packets of it. `Err`: what is missing.
pub(crate) fn addr_type(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    addr: IpAddr,
    dev: Option<IfIndex>,
    vrf: Option<&Link>,
) -> Result<RouteKind, String> {
    if addr.is_multicast() {
        return Ok(RouteKind::Multicast);
    }
    if let IpAddr::V4(v4) = addr
        && (v4.is_broadcast() || v4.octets()[0] == 0)
    {
        return Ok(RouteKind::Broadcast);
    }
    let tables = tables(cx, ns)?;
    let merged = addr.is_ipv4() && tables.has_usual_rules();
    let of: &[u32] = match vrf.map(|vrf| &vrf.kind) {
        Some(LinkKind::Vrf(table)) => &[*table],
        _ if merged => &[RT_TABLE_LOCAL, RT_TABLE_MAIN],
        _ => &[RT_TABLE_LOCAL],
    };
    let by_rules = vrf.filter(|_| addr.is_ipv6()).map(|vrf| FibKey {
        vrf: Some(vrf.index),
        plain: true,
        ..FibKey::to(addr)
    });
    let answer = match by_rules {
        Some(key) => Some(tables.lookup(&key)),
        None => tables.table_lookup(of, &FibKey::to(addr), &local_rule(addr)),
    };
    let best = match answer {
        Some(FibAnswer::Found(found)) => Some(found.route),
        Some(FibAnswer::Unknown(why)) => return Err(why),
        Some(FibAnswer::Refused(_) | FibAnswer::NoRoute) | None => None,
    };
    let on_dev = |route: &Route| match dev {
        None => true,
        Some(dev) => route.nexthops.iter().any(|hop| hop.link == Some(dev)),
    };
    // A lookup that ends in a refusal finds nothing (`fib_props[].error`).
    Ok(best
        .filter(|route| on_dev(route) && !route.kind.refuses())
        .map_or(RouteKind::Unicast, |route| route.kind))
}

/// Whether its nexthop object is a blackhole (`nexthop_is_blackhole()`).
fn is_dead_end(route: &Route) -> bool {
    route.nh_id.is_some() && route.kind == RouteKind::Blackhole
}

/// The rule that table local is looked up by where no rules are.
fn local_rule(addr: IpAddr) -> Rule {
    Rule::bare(addr.is_ipv6(), 0, RT_TABLE_LOCAL)
}
