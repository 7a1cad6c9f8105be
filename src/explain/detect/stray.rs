//! A route that leads a packet astray, where a shorter one that leads on stands behind it.

use crate::explain::words;
use crate::model::link::LinkKind;
use crate::model::netns::NetNs;
use crate::model::packet::Packet;
use crate::model::route::{Route, RouteKind};
use crate::trace::Evidence;

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
        let met = self.hop.steps.iter().rev().flat_map(|step| &step.evidence);
        let decides = met.into_iter().find_map(|one| match one {
            Evidence::Route { route, .. } if route.dst.contains(packet.dst) => Some(route),
            _ => None,
        })?;
        let names = self.naming.names;
        let service = names.service_by_ip(packet.dst).is_some();
        let pod = names.pod_by_ip(packet.dst);
        let far = pod.is_some_and(|pod| pod.node.as_ref() != Some(&self.hop.ns.node));
        if decides.kind != RouteKind::Unicast || !(service || far) {
            return None;
        }
        let on_link = decides.nexthops.iter().all(|hop| hop.via.is_none());
        if on_link && tunnels(ns, decides) {
            return None;
        }
        let routes = ns.routes.known()?.iter();
        let shorter = routes.filter(|route| {
            route.table == decides.table
                && route.kind == RouteKind::Unicast
                && route.dst.contains(packet.dst)
                && route.dst.len() < decides.dst.len()
                && route.nexthops != decides.nexthops
                // Beside a gateway, the default route is no better.
                && (on_link || route.dst.len() > 0)
        });
        let hidden = shorter.max_by_key(|route| route.dst.len())?;
        Some(Stray { decides, hidden })
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
        let del = format!(
            "{} route del {}",
            self.ip(),
            self.route_words(stray.decides)
        );
        let link = if stray.decides.nexthops.iter().all(|hop| hop.via.is_none()) {
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
