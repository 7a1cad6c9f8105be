//! Route lookup: policy rules by priority, then the longest prefix, then the metric.
//!
//! Read first: `fib_lookup()`, `fib_table_lookup()` (net/ipv4), `fib6_rule_lookup()` (net/ipv6), v6.12.
//! Not modelled: IPv6 router reachability probing, route exceptions (PMTU, redirects), flow labels.

use std::net::IpAddr;

use super::Cx;
use super::source;
use crate::model::link::LinkKind;
use crate::model::netns::NetNs;
use crate::model::route::{NextHop, RT_TABLE_LOCAL, Route, RouteKind};
use crate::model::rule::{Rule, RuleAction};
use crate::model::{IfIndex, NsKey, Section};

/// What is looked up (`struct flowi4`, `struct flowi6`).
#[derive(Clone, Debug)]
pub(crate) struct FibKey {
    /// Destination.
    pub(crate) dst: IpAddr,
    /// Source; `None`: not chosen yet.
    pub(crate) src: Option<IpAddr>,
    /// Device it came in by; `None`: sent here.
    pub(crate) iif: Option<IfIndex>,
    /// Device it must leave by.
    pub(crate) oif: Option<IfIndex>,
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
    /// A key of addresses alone, mark 0, sent here.
    pub(crate) fn to(dst: IpAddr) -> Self {
        Self {
            dst,
            src: None,
            iif: None,
            oif: None,
            mark: Some(0),
            tos: 0,
            protocol: 0,
            sport: None,
            dport: None,
            uid: None,
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
    Ok(Tables {
        ns,
        rules: section(cx, key, &ns.rules, "policy rules")?,
        routes: section(cx, key, &ns.routes, "routes")?,
    })
}

/// What a lookup reads.
pub(crate) struct Tables<'t> {
    pub(crate) ns: &'t NetNs,
    rules: &'t [Rule],
    routes: &'t [Route],
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
    /// Looks a destination up through policy rules and tables.
    pub(crate) fn lookup(&self, key: &FibKey) -> FibAnswer {
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
            match self.table_lookup(table, key, rule) {
                Some(FibAnswer::Found(found)) => {
                    let short = rule
                        .suppress_prefixlen
                        .is_some_and(|limit| u32::from(found.route.dst.len()) <= limit);
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
        let dev = self.ns.link(key.oif.or(key.iif)?)?;
        let vrf = match dev.kind {
            LinkKind::Vrf(table) => return Some(table),
            _ => self.ns.link(dev.master?)?,
        };
        match vrf.kind {
            LinkKind::Vrf(table) => Some(table),
            _ => None,
        }
    }

    /// Whether a policy rule applies. Source: `fib_rule_match()`, `fib4_rule_match()`.
    fn rule_matches(&self, rule: &Rule, key: &FibKey) -> Result<bool, String> {
        let unknown = |what: &str| format!("policy rule {} asks for {what}", rule.priority);
        let named = |index: Option<IfIndex>, name: &str| match index {
            None => name == "lo",
            Some(index) => self.ns.link(index).is_some_and(|link| link.name == name),
        };
        let mut hit = true;
        let mut open = None;
        let mut check = |value: Option<bool>, what: &str| match value {
            Some(value) => hit &= value,
            None => open = Some(unknown(what)),
        };
        if let Some(iif) = &rule.iif {
            check(Some(named(key.iif, iif)), "iif");
        }
        if let Some(oif) = &rule.oif {
            check(Some(key.oif.is_some() && named(key.oif, oif)), "oif");
        }
        if let Some((value, mask)) = rule.fwmark {
            check(
                key.mark.map(|mark| (mark ^ value) & mask == 0),
                "a mark that is not known",
            );
        }
        if let Some(src) = rule.src {
            check(Some(key.src.is_some_and(|addr| src.contains(addr))), "from");
        }
        if let Some(dst) = rule.dst {
            check(Some(dst.contains(key.dst)), "to");
        }
        if rule.tos != 0 {
            check(Some(rule.tos == key.tos), "tos");
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
            // Forwarded packets are looked up with uid 0 (`INVALID_UID` never matches).
            let uid = if key.iif.is_some() {
                Some(false)
            } else {
                key.uid.map(|uid| (from..=to).contains(&uid))
            };
            check(uid, "the sender's uid, which is not known");
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
    fn table_lookup(&self, table: u32, key: &FibKey, rule: &Rule) -> Option<FibAnswer> {
        let mut candidates: Vec<&Route> = self
            .routes
            .iter()
            .filter(|route| route.table == table && route.dst.contains(key.dst))
            .filter(|route| route.tos == 0 || route.tos == key.tos)
            .filter(|route| match route.src {
                None => true,
                Some(prefix) => key.src.is_some_and(|src| prefix.contains(src)),
            })
            .collect();
        candidates.sort_by_key(|route| {
            let source_len = route.src.map_or(0, crate::model::Prefix::len);
            (
                std::cmp::Reverse(route.dst.len()),
                std::cmp::Reverse(source_len),
                std::cmp::Reverse(route.tos),
                route.metric,
                preference(route.pref),
            )
        });
        for route in candidates {
            if let Some(what) = route.unknown.first() {
                return Some(FibAnswer::Unknown(format!(
                    "route {} has {what}",
                    route.dst
                )));
            }
            match route.kind {
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
            let hops: Vec<NextHop> = route
                .nexthops
                .iter()
                .filter(|hop| self.usable(hop, key))
                .cloned()
                .collect();
            let total: u32 = hops.iter().map(|hop| u32::from(hop.weight.max(1))).sum();
            if total == 0 {
                continue;
            }
            let share = |hop: &NextHop| f64::from(hop.weight.max(1)) / f64::from(total);
            return Some(found(
                rule,
                route,
                hops.into_iter().map(|hop| (share(&hop), hop)).collect(),
            ));
        }
        None
    }

    fn usable(&self, hop: &NextHop, key: &FibKey) -> bool {
        if hop.dead {
            return false;
        }
        if let (Some(wanted), Some(link)) = (key.oif, hop.link)
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

/// Type of an address (`inet_dev_addr_type()`): looked up in table local; unicast where nothing is
/// found. With `dev`, the route must leave by that device. `Err`: what is missing.
pub(crate) fn addr_type(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    addr: IpAddr,
    dev: Option<IfIndex>,
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
    let mut best: Option<&Route> = None;
    for route in tables.routes {
        let better = best.is_none_or(|old| route.dst.len() > old.dst.len());
        if route.table == RT_TABLE_LOCAL && route.dst.contains(addr) && better {
            best = Some(route);
        }
    }
    let on_dev = |route: &Route| match dev {
        None => true,
        Some(dev) => route.nexthops.iter().any(|hop| hop.link == Some(dev)),
    };
    Ok(best
        .filter(|route| on_dev(route))
        .map_or(RouteKind::Unicast, |route| route.kind))
}

/// Source that masquerading chooses (`inet_select_addr(out, nexthop, RT_SCOPE_UNIVERSE)`,
/// `ipv6_dev_get_saddr()`). `Ok(None)`: the device has none, and the kernel drops. `Err`: what is
/// missing.
pub(crate) fn masquerade_source(
    cx: &mut Cx<'_>,
    ns: &NsKey,
    oif: IfIndex,
    dst: IpAddr,
    mark: Option<u32>,
) -> Result<Option<IpAddr>, String> {
    if dst.is_ipv6() {
        return source::select_v6(cx, ns, Some(oif), dst);
    }
    let key = FibKey {
        oif: Some(oif),
        mark,
        ..FibKey::to(dst)
    };
    let gateway = match lookup(cx, ns, &key) {
        FibAnswer::Found(found) => found.hops.first().and_then(|(_, hop)| hop.via),
        FibAnswer::Unknown(why) => return Err(why),
        FibAnswer::NoRoute | FibAnswer::Refused(_) => None,
    };
    source::select_v4(cx, ns, Some(oif), Some(gateway.unwrap_or(dst)), 0)
}
