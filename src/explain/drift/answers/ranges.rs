//! Addresses of load balancers that only some clients may use.

use super::super::compare::words_of_portal;
use super::super::expect::{Entry, Expected, Portal};
use super::super::sender::Sender;
use super::{Answers, Case, Told, by};
use crate::explain::codes::{self, Severity};
use crate::explain::words;
use crate::model::Prefix;

impl Answers<'_, '_> {
    /// A load balancer's address that only some clients may use.
    pub(super) fn ranged(&mut self, port: &Expected<'_>, portal: Portal, entry: Entry) {
        let ranges: Vec<_> = ranges(port, portal).collect();
        let inside = ranges
            .iter()
            .find_map(|range| self.senders.in_range(*range));
        let outside = self.senders.outside().iter().copied();
        let outside = outside
            .filter(|addr| !ranges.iter().any(|range| range.contains(*addr)))
            .find(|addr| {
                !self
                    .naming
                    .names
                    .nodes
                    .iter()
                    .any(|node| node.addresses.contains(addr))
            });
        let case = Case {
            port,
            portal,
            entry,
            sender: Sender::Outside,
        };
        if let Some(from) = inside {
            let ways = self.sent(portal, Sender::Outside, Some(from));
            if let Some(why) = ways.iter().find_map(|way| way.unknown.clone()) {
                self.mark(portal, Told::Unknown);
                self.unknown.entry(why).or_default().insert(port.name());
                return;
            }
            self.mark(portal, Told::Agrees);
            let must = !port.ends(entry).must.is_empty();
            let refused = ways.iter().find(|way| way.to.is_none());
            if let (true, Some(way)) = (must, refused) {
                let line = format!(
                    "{from}, which loadBalancerSourceRanges permits, is not led on{}",
                    by(way.kept.as_ref())
                );
                self.ranges_differ(&case, &line);
            }
        }
        if let Some(from) = outside {
            let ways = self.sent(portal, Sender::Outside, Some(from));
            if let Some(way) = ways.iter().find(|way| way.unknown.is_none() && !way.ended) {
                let led = match &way.to {
                    Some((target, rule)) => format!(
                        "is led to {} by {}",
                        words::socket_addr(target.0, Some(target.1)),
                        rule.words
                    ),
                    None => "is not dropped".to_owned(),
                };
                let line = format!("{from}, which loadBalancerSourceRanges does not permit, {led}");
                self.ranges_differ(&case, &line);
            }
        }
    }

    fn ranges_differ(&mut self, case: &Case<'_>, line: &str) {
        self.mark(case.portal, Told::Differs);
        let name = case.port.name();
        let portal = words_of_portal(case.portal);
        let group = self.group(codes::RANGES_DIFFER, Severity::Error, name.clone());
        group.ports.insert(name);
        group.lines.push(format!("{portal}: {line}"));
    }
}

pub(super) fn is_ranged(port: &Expected<'_>, portal: Portal) -> bool {
    portal
        .addr
        .is_some_and(|addr| port.asks.load_balancer_ips.contains(&addr))
        && ranges(port, portal).next().is_some()
}

/// Sources that a load balancer's address is for, of its own family.
fn ranges<'e>(port: &'e Expected<'_>, portal: Portal) -> impl Iterator<Item = Prefix> + 'e {
    let v6 = portal.addr.is_some_and(|addr| addr.is_ipv6());
    let ranges = port.asks.source_ranges.iter().copied();
    ranges.filter(move |range| range.addr().is_ipv6() == v6)
}
