//! Mode ipvs: virtual servers, and the real ones that they choose among.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::Section;
use crate::model::ipvs::{Ipvs, IpvsKey, IpvsService};
use crate::model::netns::NetNs;

use super::expect::Portal;
use super::leads::{Leads, Way};
use super::proxy::{Known, Look, words};
use super::rule::Sticky;
use crate::explain::ipvs as text;

/// Virtual servers of a namespace, of one family.
pub(super) struct Servers<'a> {
    ipvs: &'a Ipvs,
    /// Addresses of the node itself: a NodePort is a virtual server of each.
    own: BTreeSet<IpAddr>,
}

impl<'a> Servers<'a> {
    /// IPVS is used by others, too: kube-proxy's mode has a dummy device with all addresses of Services.
    pub fn of(ns: &'a NetNs, v6: bool) -> Option<Self> {
        let device = ns.link_named("kube-ipvs0")?;
        let ipvs = ns.ipvs.known()?.as_ref()?;
        let of_family = ipvs.services.iter().any(|(key, _)| key.is_ipv6() == v6);
        let addrs = ns.addrs.known().into_iter().flatten();
        let own = addrs.filter(|addr| addr.link != device.index);
        (of_family || !ipvs.complete).then(|| Self {
            ipvs,
            own: own.map(|addr| addr.local).collect(),
        })
    }

    /// What stands there for a portal.
    pub fn look(&self, portal: Portal, v6: bool) -> Look {
        let fits = |key: &IpvsKey| {
            matches!(key, IpvsKey::Address(protocol, addr, port)
                if *protocol == portal.protocol && *port == portal.port
                    && addr.is_ipv6() == v6
                    && portal.addr.map_or(self.own.contains(addr), |own| own == *addr))
        };
        let asked = self.ipvs.services.iter().filter(|(key, _)| fits(key));
        let mut absent = self.ipvs.complete;
        for (key, service) in asked {
            match service {
                Section::Known(Some(service)) => {
                    let by = format!("ipvs virtual server {}", text::key(key));
                    return Look::Found(by, Box::new(leads(service)));
                }
                Section::Known(None) => absent = true,
                Section::Missing(why) => {
                    return Look::Unknown(format!("{}: {why}", text::key(key)));
                }
                Section::NotAsked => return Look::NotRead,
            }
        }
        if absent { Look::Nothing } else { Look::NotRead }
    }

    /// All portals; `None` where not all were read.
    pub fn all(&self, v6: bool) -> Option<Vec<Known<'static>>> {
        if !self.ipvs.complete {
            return None;
        }
        let mut all: Vec<Known<'static>> = Vec::new();
        for (key, _) in &self.ipvs.services {
            let IpvsKey::Address(protocol, addr, port) = key else {
                continue;
            };
            if addr.is_ipv6() != v6 {
                continue;
            }
            let portal = Portal {
                addr: (!self.own.contains(addr)).then_some(*addr),
                protocol: *protocol,
                port: *port,
            };
            if !all.iter().any(|known| known.portal == portal) {
                all.push(Known {
                    portal,
                    by: format!("ipvs virtual server {}", words(portal)),
                    chain: None,
                    addr: Some(*addr),
                    comment: None,
                });
            }
        }
        Some(all)
    }
}

/// Servers of weight 0 get no new clients: kube-proxy leaves them so while they end.
fn leads(service: &IpvsService) -> Leads {
    let sticky = if service.persistent() {
        Sticky::Seconds(service.timeout)
    } else {
        Sticky::Not
    };
    let servers = service.servers.iter().filter(|server| server.weight > 0);
    let ways = servers.map(|server| {
        let way = Way {
            by: format!("-a {}", text::server(server)),
            fresh: true,
            sticky,
        };
        ((server.addr, server.port), way)
    });
    Leads {
        always: ways.collect(),
        ..Leads::default()
    }
}
