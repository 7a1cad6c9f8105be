//! A route that leads a packet astray, where a shorter one that leads on stands behind it.

use crate::explain::words;
use crate::model::link::LinkKind;
use crate::model::netns::NetNs;
use crate::model::packet::Packet;
use crate::model::route::{Route, RouteKind};
use crate::trace::{Evidence, Step, StepKind};

use super::Case;

/// Two routes to one destination.
pub(super) struct Stray<'a> {
    /// The longer one, which decides.
    decides: &'a Route,
    /// The one that is asked where the other is not there.
    hidden: &'a Route,
}

impl<'a> Case<'a> {
    /// The route that led the packet out here, where it is for a pod or Service that is not there: on the link where the
    /// route says that it is on it, or, by a gateway, where nodes have routes of their own.
    pub(super) fn stray(&self, packet: &Packet) -> Option<Stray<'a>> {
        let ns = self.ns()?;
        // Steps of another kind may show how other nodes lead there.
        let looked_up = |step: &&Step| step.kind == StepKind::Route;
        let steps = self.hop.steps.iter().rev().filter(looked_up);
        let decides = steps
            .flat_map(|step| &step.evidence)
            .find_map(|one| match one {
                Evidence::Route { route, .. } if route.dst.contains(packet.dst) => Some(route),
                _ => None,
            })?;
        let names = self.naming.names;
        // Other addresses of a Service may be on a link.
        let service = names
            .service_by_ip(packet.dst)
            .is_some_and(|service| service.cluster_ips.contains(&packet.dst));
        let node = names
            .pod_by_ip(packet.dst)
            .and_then(|pod| pod.node.as_ref());
        let far = node.filter(|node| **node != self.hop.ns.node);
        if decides.kind != RouteKind::Unicast || !(service || far.is_some()) {
            return None;
        }
        let on_link = is_on_link(decides);
        if on_link && (tunnels(ns, decides) || far.is_some_and(|node| self.shares(node, decides))) {
            return None;
        }
        // The pod's own node does not answer: that is how it is reached.
        let mut gateways = decides.nexthops.iter().filter_map(|hop| hop.via);
        if gateways.any(|via| far.is_some() && self.naming.node_of(via).as_ref() == far) {
            return None;
        }
        let routes = ns.routes.known()?.iter();
        let shorter = routes.filter(|route| {
            route.table == decides.table
                && route.kind == RouteKind::Unicast
                && route.dst.contains(packet.dst)
                && route.dst.len() < decides.dst.len()
                && route.nexthops != decides.nexthops
                && route.nexthops.iter().any(|hop| !hop.dead && !hop.linkdown)
                // Beside a gateway, the default route is no better.
                && (on_link || route.dst.len() > 0)
        });
        let hidden = shorter.max_by_key(|route| route.dst.len())?;
        Some(Stray { decides, hidden })
    }

    /// Whether something on that node is on a link of the same prefix, as where all nodes and pods share one; of what was not
    /// read, that is not excluded where an address's own prefix makes the route.
    fn shares(&self, node: &str, route: &Route) -> bool {
        let Some(there) = self.naming.topology.nodes.get(node) else {
            return route.protocol == RTPROT_KERNEL;
        };
        let same = |own: &Route| own.dst == route.dst && is_on_link(own);
        let mut all = there.netns.values();
        all.any(|ns| ns.routes.known().is_some_and(|all| all.iter().any(same)))
    }

    /// Both routes, as lines of evidence.
    pub(super) fn stray_evidence(&self, stray: &Stray<'_>) -> [String; 2] {
        let [decides, hidden] = [stray.decides, stray.hidden].map(|route| self.route_words(route));
        [
            format!("this route decides: {decides}"),
            format!("it hides: {hidden}"),
        ]
    }

    /// What to do about it.
    pub(super) fn stray_mend(&self, stray: &Stray<'_>, packet: &Packet) -> String {
        let dev = |index| self.naming.dev(&self.hop.ns, index);
        let route = words::route_typed(stray.decides, &dev);
        let del = format!("{} route del {route}", self.ip());
        let link = if is_on_link(stray.decides) {
            let owner = self.naming.address(packet.dst).unwrap_or_default();
            format!("{owner} is not on that link; ")
        } else {
            String::new()
        };
        let made = if stray.decides.protocol == RTPROT_KERNEL {
            "the prefix length of the device's address makes this route (ip address): correct it"
                .to_owned()
        } else {
            format!(
                "delete the route, once you know who set it: {}",
                self.typed(&del)
            )
        };
        format!("{}: {link}{made}", self.here())
    }

    fn route_words(&self, route: &Route) -> String {
        words::route_short(route, &|index| self.naming.dev(&self.hop.ns, index))
    }
}

/// RTPROT_KERNEL
const RTPROT_KERNEL: u8 = 2;

fn is_on_link(route: &Route) -> bool {
    route.nexthops.iter().all(|hop| hop.via.is_none())
}

/// Whether a route leads into a device that has no link, or finds who is on it by itself.
fn tunnels(ns: &NetNs, route: &Route) -> bool {
    let mut links = route.nexthops.iter().filter_map(|hop| ns.link(hop.link?));
    links.any(|link| {
        matches!(
            link.kind,
            LinkKind::Vxlan(_)
                | LinkKind::IpTunnel(_)
                | LinkKind::Wireguard(_)
                | LinkKind::Geneve(_)
        )
    })
}
