//! What is wrong in one line, with the objects of the case.

use std::net::IpAddr;

use crate::explain::codes::{self, Code};
use crate::explain::words;
use crate::model::route::RouteKind;
use crate::model::socket::Socket;
use crate::trace::{DropReason, Evidence, Hop, Step, StepKind};

use super::Case;

impl Case<'_> {
    /// The code's title with device, address, rule and place of this case; the bare one where the
    /// evidence names no more.
    pub(super) fn title(&self, code: Code) -> String {
        let packet = self.packet();
        let here = self.here();
        let wanted = || {
            let addr = words::socket_addr(packet.dst, packet.dport());
            match packet.dport() {
                Some(_) => format!("{} {addr}", words::protocol(packet.protocol())),
                None => addr,
            }
        };
        let named = match code {
            codes::DUPLICATE_ADDRESS => self.taken_here(&packet).map(|(pod, _)| {
                format!(
                    "{} is held {here}, and is the address of pod {}/{}",
                    packet.dst, pod.namespace, pod.name
                )
            }),
            codes::NO_LISTENER => Some(format!("nothing listens on {} {here}", wanted())),
            codes::SWALLOWED => self
                .setting()
                .map(|(name, value)| format!("{} {here}: {name} = {value}", self.step.result)),
            codes::LISTENER_ELSEWHERE if !self.bound_to_devices().is_empty() => Some(format!(
                "the listener {here} is bound to device {}, {} came in by {}",
                self.bound_to_devices().join(" and "),
                wanted(),
                self.came_by()
            )),
            codes::LISTENER_ELSEWHERE => Some(format!(
                "the listener {here} is bound to {}, not to {}",
                self.bound_elsewhere().join(" and "),
                wanted()
            )),
            codes::NO_ROUTE => Some(match self.trace.disposition {
                crate::trace::Disposition::Dropped(DropReason::NoRouteToNode) => {
                    format!("the next hop {here} does not lead to {}", packet.dst)
                }
                _ => format!("there is no route to {} {here}", packet.dst),
            }),
            codes::ROUTE_REFUSES => self
                .refusing()
                .map(|object| format!("{object} {here} refuses packets to {}", packet.dst)),
            codes::LINK_DOWN => self
                .down_end()
                .map(|(key, dev, state)| format!("{dev} {} is {state}", self.within(&key))),
            codes::NEIGH_UNRESOLVED => Some(format!(
                "nobody answers for {} on {} {here}",
                self.next_hop(),
                self.way_out()
            )),
            codes::WRONG_MAC => self.wrong_mac(),
            codes::BRIDGE_BLOCKS => Some(format!("{} {here}", self.step.result)),
            codes::STALE_TUNNEL if self.step.kind == StepKind::Decap => {
                self.step.evidence.iter().find_map(|found| match found {
                    Evidence::Absent { what } => Some(format!("there is not {what} {here}")),
                    _ => None,
                })
            }
            codes::LOOP => Some(format!(
                "packets to {} go round between {}",
                self.innermost(),
                self.circle().join(", ")
            )),
            codes::TTL => Some(format!("the packet's TTL runs out {here}")),
            codes::UNTRANSLATED => self.untranslated_title(),
            codes::FORWARD_FILTERED | codes::FILTERED | codes::POLICY_DENIES => {
                self.filtered_by(code)
            }
            codes::UNKNOWN => self
                .unreadable()
                .map(|what| format!("it can't be told {here}: {what}")),
            _ => None,
        };
        let title = named.unwrap_or_else(|| code.title.to_owned());
        self.naming.text(&title)
    }

    /// A command as it is to be typed on the node, so that it works in the namespace of the hop.
    pub(super) fn typed(&self, command: &str) -> String {
        self.naming.typed(&self.hop.ns, command)
    }

    /// Destination of the packet inside of all tunnels.
    pub(super) fn innermost(&self) -> IpAddr {
        self.trace.packet.innermost().dst
    }

    /// `ip`, or `ip -6` for the family of the packet.
    pub(super) fn ip(&self) -> &'static str {
        if self.trace.packet.dst.is_ipv4() {
            "ip"
        } else {
            "ip -6"
        }
    }

    /// Nodes that the packet came back to, in the order of its way; empty where it never came back.
    pub(super) fn circle(&self) -> Vec<String> {
        let hops = &self.trace.hops;
        let same = |a: &Hop, b: &Hop| a.iif.is_some() && a.ns == b.ns && a.iif == b.iif;
        let start = hops.iter().enumerate().find_map(|(at, hop)| {
            let mut later = hops.iter().enumerate().skip(at + 1);
            let end = later.find(|(_, other)| same(hop, other))?.0;
            Some((at, end))
        });
        let Some((start, end)) = start else {
            return Vec::new();
        };
        let places = hops.iter().skip(start).take(end.saturating_sub(start));
        let mut nodes: Vec<String> = Vec::new();
        for hop in places {
            let place = self.naming.place(&hop.ns);
            if !nodes.contains(&place) {
                nodes.push(place);
            }
        }
        nodes
    }

    /// The routes that a circle is made of, each once: `on worker-1: 10.0.0.0/8 via 192.0.2.12`.
    pub(super) fn routes_of_circle(&self) -> Vec<String> {
        let circle = self.circle();
        let mut routes = Vec::new();
        for hop in &self.trace.hops {
            let place = self.naming.place(&hop.ns);
            if !circle.contains(&place) {
                continue;
            }
            for evidence in hop.steps.iter().flat_map(|step| &step.evidence) {
                let Evidence::Route { route, .. } = evidence else {
                    continue;
                };
                if route.kind != RouteKind::Unicast {
                    continue;
                }
                let words = words::route_short(route, &|index| self.naming.dev(&hop.ns, index));
                let line = format!("on {place}: {words}");
                if !routes.contains(&line) {
                    routes.push(line);
                }
            }
        }
        routes
    }

    /// The route or policy rule that refuses, as `ip` prints it.
    pub(super) fn refusing(&self) -> Option<String> {
        self.step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::PolicyRule { rule } if super::reach::refuses(rule) => {
                    Some(format!("ip rule {}", words::rule(rule)))
                }
                Evidence::Route { route, .. } if super::reach::no_way(route) => {
                    let words =
                        words::route_short(route, &|index| self.naming.dev(&self.hop.ns, index));
                    Some(format!("route {words}"))
                }
                _ => None,
            })
    }

    /// The device by which the next hop was looked for.
    pub(super) fn way_out(&self) -> String {
        let of_neigh = self
            .step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::Neigh { dev, .. } => Some(dev.clone()),
                _ => None,
            });
        of_neigh
            .or_else(|| self.hop.oif.clone())
            .or_else(|| self.routed_by().and_then(|(_, dev)| dev))
            .unwrap_or_else(|| self.dev())
    }

    /// The address that was to answer: the gateway of the route, else the destination.
    pub(super) fn next_hop(&self) -> IpAddr {
        let of_neigh = self
            .step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::Neigh { neigh, .. } => Some(neigh.dst),
                _ => None,
            });
        of_neigh
            .or_else(|| self.routed_by().and_then(|(via, _)| via))
            .unwrap_or(self.trace.packet.dst)
    }

    /// Gateway and device of the last route that was met here, where it has one next hop.
    fn routed_by(&self) -> Option<(Option<IpAddr>, Option<String>)> {
        let routes = |step: &Step| {
            step.evidence.iter().find_map(|evidence| match evidence {
                Evidence::Route { route, .. } => match route.nexthops.as_slice() {
                    [only] => Some((
                        only.via,
                        only.link.map(|index| self.naming.dev(&self.hop.ns, index)),
                    )),
                    _ => None,
                },
                _ => None,
            })
        };
        self.hop.steps.iter().rev().find_map(routes)
    }

    fn wrong_mac(&self) -> Option<String> {
        let here = self.here();
        if self.step.kind == StepKind::Underlay {
            return Some(self.step.result.clone());
        }
        let (dev, state) = self.down()?;
        Some(format!("{dev} {here} has {state}"))
    }

    /// What could not be read or is not known, the first of several.
    pub(super) fn unreadable(&self) -> Option<String> {
        let said = self
            .step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::Unreadable { what } => Some(what.clone()),
                _ => None,
            });
        said.or_else(|| match &self.trace.disposition {
            crate::trace::Disposition::Inconclusive(missing) => missing.first().cloned(),
            _ => None,
        })
    }

    /// Devices whose packets alone are taken by what listens on the packet's address and port.
    pub(super) fn bound_to_devices(&self) -> Vec<String> {
        let packet = &self.trace.packet;
        let sockets = self.ns().and_then(|ns| ns.sockets.known());
        let fits = |socket: &&Socket| {
            socket.listening
                && socket.protocol == packet.protocol()
                && Some(socket.port) == packet.dport()
                && (socket.addr == packet.dst || socket.addr.is_unspecified())
        };
        let bound = sockets.into_iter().flatten().filter(fits);
        let mut devices: Vec<String> = bound
            .filter_map(|socket| socket.bound_dev)
            .map(|index| self.naming.dev(&self.hop.ns, index))
            .filter(|dev| *dev != self.came_by())
            .collect();
        devices.sort_unstable();
        devices.dedup();
        devices
    }

    /// Addresses on which something listens on the packet's port, though not on the packet's address.
    pub(super) fn bound_elsewhere(&self) -> Vec<String> {
        let packet = &self.trace.packet;
        let sockets = self.ns().and_then(|ns| ns.sockets.known());
        let listening = sockets.into_iter().flatten().filter(|socket| {
            socket.listening
                && socket.protocol == packet.protocol()
                && Some(socket.port) == packet.dport()
        });
        listening
            .map(|socket| words::socket_addr(socket.addr, Some(socket.port)))
            .collect()
    }
}
