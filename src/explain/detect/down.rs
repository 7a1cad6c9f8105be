//! Devices that are switched off, where the last step names them and where it only misses what they took with
//! them: the routes of their subnets, the port of a bridge.

use std::net::IpAddr;

use super::Case;
use crate::model::NsKey;
use crate::model::link::Link;
use crate::model::netns::NetNs;
use crate::trace::{Disposition, DropReason, Evidence, RejectWith};

impl Case<'_> {
    /// The device that is down, its namespace, and how: of a pair without carrier, the end that was
    /// switched off.
    pub(super) fn down_end(&self) -> Option<(NsKey, String, String)> {
        if let Some((key, dev)) = self.bridge_of_port() {
            return Some((key, dev, "down".to_owned()));
        }
        let Some((dev, state)) = self.down() else {
            let (key, dev) = self.switched_off()?;
            return Some((key, dev, "down".to_owned()));
        };
        let at = |key: &NsKey| self.naming.topology.netns(key)?.link_named(&dev);
        let off = |key: &NsKey| at(key).is_some_and(|link| !link.up || !link.lower_up);
        // The step may name a device behind the link of the hop.
        let mut others = self
            .naming
            .topology
            .all()
            .filter(|(key, _)| key.node == self.hop.ns.node && off(key));
        let key = match (off(&self.hop.ns), others.next(), others.next()) {
            (false, Some((only, _)), None) => only,
            _ => self.hop.ns.clone(),
        };
        let other = at(&key)
            .filter(|link| link.up)
            .and_then(|link| self.other_end(&key, link));
        match other {
            Some((key, name)) => Some((key, name, "down".to_owned())),
            None => Some((key, dev, state)),
        }
    }

    /// The other end of a pair, where it was read and is switched off.
    fn other_end(&self, key: &NsKey, link: &Link) -> Option<(NsKey, String)> {
        let (key, peer) = self.peer(key, link)?;
        (!peer.up).then(|| (key, peer.name.clone()))
    }

    /// The other end of a pair, where it was read.
    pub(super) fn peer(&self, key: &NsKey, link: &Link) -> Option<(NsKey, &Link)> {
        let ns = self.naming.topology.netns(key)?;
        let netns = match link.link_netnsid {
            None => key.netns,
            Some(id) => ns.nsids.known()?.iter().find(|(own, _)| *own == id)?.1,
        };
        let key = NsKey {
            node: key.node.clone(),
            netns,
        };
        let peer = self.naming.topology.netns(&key)?.link(link.link?)?;
        Some((key, peer))
    }

    /// The device of the last step that is down, and how.
    pub(super) fn down(&self) -> Option<(String, String)> {
        self.step
            .evidence
            .iter()
            .find_map(|evidence| match evidence {
                Evidence::Link { dev, state } => Some((dev.clone(), state.clone())),
                _ => None,
            })
    }

    /// A device that is switched off and took with it what the last step misses: whoever is on the link, the
    /// port of a bridge, the route to its subnet, or all routes of a pod that has no other device.
    pub(super) fn switched_off(&self) -> Option<(NsKey, String)> {
        match self.trace.disposition {
            Disposition::Dropped(DropReason::BridgeNoPort) => self.end_of_port(),
            Disposition::Dropped(DropReason::NeighFailed)
            | Disposition::Rejected(RejectWith::HostUnreachable) => self.link_off(),
            _ => self.route_off(),
        }
    }

    /// The bridge of a port that does not forward since the bridge is switched off.
    pub(super) fn bridge_of_port(&self) -> Option<(NsKey, String)> {
        if self.trace.disposition != Disposition::Dropped(DropReason::BridgePortState) {
            return None;
        }
        let (port, _) = self.down()?;
        let ns = self.ns()?;
        let bridge = ns.link(ns.link_named(&port)?.master?)?;
        (!bridge.up).then(|| (self.hop.ns.clone(), bridge.name.clone()))
    }

    fn route_off(&self) -> Option<(NsKey, String)> {
        let (ns, dst) = (self.ns()?, self.trace.packet.dst);
        let links = ns.links.known()?;
        let leads_out = |link: &Link| !link.loopback && link.link.is_some();
        let cut_off = !ns.identity.host && !links.iter().any(|link| leads_out(link) && link.up);
        let off = links
            .iter()
            .find(|link| !link.up && (cut_off && leads_out(link) || in_subnet(ns, link, dst)))?;
        Some((self.hop.ns.clone(), off.name.clone()))
    }

    fn end_of_port(&self) -> Option<(NsKey, String)> {
        let dst = self.trace.packet.dst;
        let holders = self.naming.holders(dst).into_iter();
        let mut ends = holders
            .filter(|holder| holder.node == self.hop.ns.node)
            .filter_map(|holder| {
                let ns = self.naming.topology.netns(&holder)?;
                let link = ns.link(ns.addrs.known()?.iter().find(|own| own.local == dst)?.link)?;
                if link.up {
                    return self.other_end(&holder, link);
                }
                Some((holder, link.name.clone()))
            });
        ends.next()
    }

    fn link_off(&self) -> Option<(NsKey, String)> {
        let link = self.ns()?.link_named(&self.way_out())?;
        let (key, port) = self.peer(&self.hop.ns, link)?;
        if !port.up {
            return Some((key, port.name.clone()));
        }
        let bridge = self.naming.topology.netns(&key)?.link(port.master?)?;
        (!bridge.up).then(|| (key, bridge.name.clone()))
    }
}

/// Whether a device's own subnet holds an address.
fn in_subnet(ns: &NetNs, link: &Link, addr: IpAddr) -> bool {
    let own = ns.addrs.known().into_iter().flatten();
    let mut own = own.filter(|own| own.link == link.index);
    own.any(|own| own.subnet().is_some_and(|subnet| subnet.contains(addr)))
}
