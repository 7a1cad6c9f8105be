//! A bridge that finds no port for a frame: the device that should be one, or the entry that named another's address.

use crate::model::link::{Link, LinkKind};
use crate::model::netns::NetNs;
use crate::trace::{Disposition, DropReason};

use super::Case;

impl Case<'_> {
    /// What makes the bridge find one, where it is plain whose the address is.
    pub(super) fn behind_no_port(&self) -> Option<String> {
        self.no_port().or_else(|| self.wrong_station())
    }

    /// The bridge that the frame was in, or that it was to leave by.
    fn bridge(&self, bridged: bool) -> Option<&Link> {
        let ns = self.ns()?;
        let is_bridge = |link: &&Link| matches!(link.kind, LinkKind::Bridge(_));
        let way_out = || ns.link_named(&self.way_out()).filter(is_bridge);
        let mut devices = self.hop.iif.iter().chain(&self.hop.oif);
        let mut of_port = || {
            devices.find_map(|name| {
                let link = ns.link_named(name)?;
                let master = link.master.and_then(|master| ns.link(master));
                master.or(Some(link)).filter(is_bridge)
            })
        };
        if bridged { of_port() } else { way_out() }
    }

    /// Somebody has the address that is looked for, behind a device that is no port of this bridge.
    pub(super) fn no_port(&self) -> Option<String> {
        let bridged = self.trace.disposition == Disposition::Dropped(DropReason::BridgeNoPort);
        let (bridge, hop) = (self.bridge(bridged)?, self.next_hop());
        // It has one as soon as a bridge has the frame.
        let mac = self.trace.packet.eth.filter(|_| bridged);
        let mac = mac.map(|(_, mac)| mac);
        let wanted = |ns: &NetNs, link: &Link| {
            if mac.is_some() {
                return link.mac == mac;
            }
            let mut addrs = ns.addrs.known().into_iter().flatten();
            addrs.any(|addr| addr.local == hop && addr.link == link.index)
        };
        let topology = self.naming.topology;
        let (owner, port) = topology.all().find_map(|(key, ns)| {
            let mut links = ns.links.known()?.iter();
            let link = links.find(|link| wanted(ns, link))?;
            let (at, port) = self.peer(&key, link)?;
            // A port of another bridge is meant to be, and a macvlan's parent is no end of a pair.
            let pair = link.kind == LinkKind::Veth && port.kind == LinkKind::Veth;
            let apart = at == self.hop.ns && port.master.is_none();
            (pair && apart).then_some((key, port))
        })?;
        let set = format!("ip link set dev {} master {}", port.name, bridge.name);
        Some(format!(
            "{}: {}, behind which {} is, is no port of {}: {}; the CNI plugin made it one when the pod began, so recreate the pod where this happens again",
            self.here(),
            port.name,
            self.naming.place(&owner),
            bridge.name,
            self.typed(&set)
        ))
    }

    /// Nobody has it: the entry that it is from is wrong.
    fn wrong_station(&self) -> Option<String> {
        let (_, mac) = self.trace.packet.eth?;
        let (at, addr, dev) = self.believed()?;
        let [holder] = self.naming.holders(addr).try_into().ok()?;
        let ns = self.naming.topology.netns(&holder)?;
        let own = ns.addrs.known()?.iter().find(|own| own.local == addr)?;
        let right = ns.link(own.link)?.mac.filter(|right| *right != mac)?;
        let ip = if addr.is_ipv4() { "ip" } else { "ip -6" };
        let del = format!("{ip} neigh del {addr} dev {dev}");
        Some(format!(
            "{} takes {addr} to be at {mac}, but {} has {right} there; delete the entry, and see who set it: {}",
            self.naming.place(&at),
            self.naming.place(&holder),
            self.naming.typed(&at, &del)
        ))
    }
}
