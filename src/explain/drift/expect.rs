//! Which endpoints a node's kube-proxy should lead a Service's port to.
//!
//! Source: `CategorizeEndpoints()` and `topologyModeFromHints()`, pkg/proxy/topology.go;
//! `newBaseServiceInfo()`, pkg/proxy/serviceport.go; `ShouldSkipService()`, pkg/proxy/util/utils.go
//! (Kubernetes 1.36).

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::model::names::{Endpoint, NodeName, Proxying, ServiceName, ServicePort};

/// Address and port of an endpoint.
pub(super) type Target = (IpAddr, u16);

/// Where packets of a Service's port come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Portal {
    /// Address; `None`: any of the node's own, which is a NodePort.
    pub addr: Option<IpAddr>,
    /// IPPROTO_*
    pub protocol: u8,
    /// Port there.
    pub port: u16,
}

/// What kind of address a portal has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// `clusterIPs`: the internal traffic policy holds.
    Cluster,
    /// A NodePort or a load balancer's address: the external one holds.
    External,
    /// `externalIPs`, which kube-proxy can be told to leave out (gate AllowServiceExternalIPs).
    Optional,
}

/// Endpoints that rules must lead to, and those that they may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ends {
    /// They have to be there.
    pub must: BTreeSet<Target>,
    /// All that may be there.
    pub may: BTreeSet<Target>,
}

/// What is to be found on a node for one port of a Service, in one family.
#[derive(Clone, Debug)]
pub(super) struct Expected<'a> {
    /// Service.
    pub service: &'a ServiceName,
    /// Its port.
    pub port: &'a ServicePort,
    /// Ways in.
    pub portals: Vec<(Portal, Entry)>,
    /// For the traffic policy Cluster.
    pub cluster: Ends,
    /// For the traffic policy Local.
    pub local: Ends,
    /// What it asks of proxies.
    pub asks: &'a Proxying,
}

impl Expected<'_> {
    /// The policy Local holds for what comes in there.
    pub fn is_local(&self, entry: Entry) -> bool {
        match entry {
            Entry::Cluster => self.asks.internal_local,
            Entry::External | Entry::Optional => self.asks.external_local,
        }
    }

    /// Endpoints for what comes in there.
    pub fn ends(&self, entry: Entry) -> &Ends {
        if self.is_local(entry) {
            &self.local
        } else {
            &self.cluster
        }
    }

    /// `shop/api:http`
    pub fn name(&self) -> String {
        super::port_name(self.service, self.port)
    }
}

/// Why nothing can be expected of a Service.
pub(super) enum Skipped {
    /// No proxy has to do anything for it.
    Rightly,
    /// What it takes to tell was not read.
    Unknown(String),
}

/// What is expected of `node` for a Service, port by port. A node of which nothing is known but its
/// name has no zone, as for kube-proxy a node without that label.
pub(super) fn expected<'a>(
    service: &'a ServiceName,
    node: &str,
    known: Option<&NodeName>,
    v6: bool,
) -> Result<Vec<Expected<'a>>, Skipped> {
    let cluster_ips: Vec<IpAddr> = of_family(&service.cluster_ips, v6).collect();
    if service.kind == "ExternalName" || cluster_ips.is_empty() {
        return Err(Skipped::Rightly);
    }
    let Some(asks) = &service.proxying else {
        return Err(Skipped::Unknown(
            "the snapshot file is of an older version, which does not hold what Services ask of proxies"
                .to_owned(),
        ));
    };
    if asks.other_proxy.is_some() {
        return Err(Skipped::Rightly);
    }
    if let Some(why) = &service.endpoints_unread {
        return Err(Skipped::Unknown(format!(
            "its EndpointSlices could not be listed: {why}"
        )));
    }
    let zone = known.map(|node| node.zone.as_deref().unwrap_or_default());
    let ports = service.ports.iter().map(|port| {
        let mut portals = Vec::new();
        let mut add = |addr: Option<IpAddr>, number: u16, entry: Entry| {
            let portal = Portal {
                addr,
                protocol: port.protocol,
                port: number,
            };
            if !portals.iter().any(|(known, _)| *known == portal) {
                portals.push((portal, entry));
            }
        };
        for ip in &cluster_ips {
            add(Some(*ip), port.port, Entry::Cluster);
        }
        for ip in of_family(&asks.load_balancer_ips, v6) {
            add(Some(ip), port.port, Entry::External);
        }
        for ip in of_family(&asks.external_ips, v6) {
            add(Some(ip), port.port, Entry::Optional);
        }
        if let Some(number) = port.node_port {
            add(None, number, Entry::External);
        }
        let of_port: Vec<&Endpoint> = service
            .endpoints
            .iter()
            .filter(|end| end.port_name == port.name && end.protocol == port.protocol)
            .filter(|end| end.ip.is_ipv6() == v6 && end.port.is_some_and(|port| port != 0))
            .collect();
        let (cluster, local) = ends(&of_port, node, zone);
        Expected {
            service,
            port,
            portals,
            cluster,
            local,
            asks,
        }
    });
    Ok(ports.collect())
}

fn of_family(ips: &[IpAddr], v6: bool) -> impl Iterator<Item = IpAddr> {
    ips.iter().copied().filter(move |ip| ip.is_ipv6() == v6)
}

/// Endpoints for both policies. Where two slices differ about one, or the node's zone is not known, all
/// that it may be is tried.
fn ends(endpoints: &[&Endpoint], node: &str, zone: Option<&str>) -> (Ends, Ends) {
    let hinted = endpoints.iter().any(|end| !end.hint_zones.is_empty());
    let disputed = endpoints.iter().any(|end| end.disputed);
    let mut readings = vec![Reading {
        node,
        zone: zone.unwrap_or_default(),
        flipped: false,
    }];
    if zone.is_none() && hinted {
        let zones: BTreeSet<&String> = endpoints.iter().flat_map(|end| &end.hint_zones).collect();
        readings.extend(zones.into_iter().map(|zone| Reading {
            node,
            zone,
            flipped: false,
        }));
    }
    if disputed {
        let flipped = readings.clone().into_iter().map(|reading| Reading {
            flipped: true,
            ..reading
        });
        readings.extend(flipped.collect::<Vec<_>>());
    }
    let (mut cluster, mut local) = (Ends::default(), Ends::default());
    for (at, reading) in readings.iter().enumerate() {
        cluster.take(reading.cluster(endpoints), at == 0);
        local.take(reading.local(endpoints), at == 0);
    }
    (cluster, local)
}

impl Ends {
    fn take(&mut self, more: BTreeSet<Target>, first: bool) {
        if first {
            self.must.clone_from(&more);
        } else {
            self.must.retain(|end| more.contains(end));
        }
        self.may.extend(more);
    }
}

/// One way to read what is known.
#[derive(Clone)]
struct Reading<'a> {
    node: &'a str,
    zone: &'a str,
    /// Endpoints of which slices differ are as the other slice says.
    flipped: bool,
}

impl Reading<'_> {
    fn ready(&self, end: &Endpoint) -> bool {
        end.ready != (end.disputed && self.flipped)
    }

    fn cluster(&self, endpoints: &[&Endpoint]) -> BTreeSet<Target> {
        let ready: Vec<&&Endpoint> = endpoints.iter().filter(|end| self.ready(end)).collect();
        if ready.is_empty() {
            return targets(endpoints.iter().filter(|end| leaving(end)));
        }
        let here = |end: &Endpoint| end.hint_nodes.iter().any(|hint| hint == self.node);
        let near = |end: &Endpoint| end.hint_zones.iter().any(|hint| hint == self.zone);
        let all =
            |hints: fn(&Endpoint) -> &Vec<String>| ready.iter().all(|end| !hints(end).is_empty());
        if all(|end| &end.hint_nodes) && ready.iter().any(|end| here(end)) {
            return targets(ready.into_iter().filter(|end| here(end)));
        }
        if all(|end| &end.hint_zones) && ready.iter().any(|end| near(end)) {
            return targets(ready.into_iter().filter(|end| near(end)));
        }
        targets(ready.into_iter())
    }

    fn local(&self, endpoints: &[&Endpoint]) -> BTreeSet<Target> {
        let own = |end: &&&Endpoint| end.node.as_deref() == Some(self.node);
        let ready = targets(endpoints.iter().filter(own).filter(|end| self.ready(end)));
        if ready.is_empty() {
            return targets(endpoints.iter().filter(own).filter(|end| leaving(end)));
        }
        ready
    }
}

/// It ends, but still answers.
fn leaving(end: &Endpoint) -> bool {
    end.serving && end.terminating
}

fn targets<'a>(endpoints: impl Iterator<Item = &'a &'a Endpoint>) -> BTreeSet<Target> {
    endpoints
        .filter_map(|end| Some((end.ip, end.port?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(last: u8, node: &str) -> Endpoint {
        Endpoint {
            ip: IpAddr::from([10, 244, 0, last]),
            port: Some(8080),
            port_name: "http".to_owned(),
            protocol: 6,
            node: Some(node.to_owned()),
            pod: None,
            ready: true,
            serving: true,
            terminating: false,
            hint_zones: Vec::new(),
            hint_nodes: Vec::new(),
            disputed: false,
        }
    }

    /// Last bytes of the addresses that must and may be there, for Cluster and for Local.
    fn told(endpoints: Vec<Endpoint>, zone: Option<&str>) -> [(Vec<u8>, Vec<u8>); 2] {
        let service = ServiceName {
            kind: "NodePort".to_owned(),
            cluster_ips: vec![IpAddr::from([10, 96, 0, 1])],
            ports: vec![ServicePort {
                name: "http".to_owned(),
                port: 80,
                protocol: 6,
                node_port: Some(30080),
            }],
            endpoints,
            proxying: Some(Proxying::default()),
            ..ServiceName::default()
        };
        let node = zone.map(|zone| NodeName {
            zone: Some(zone.to_owned()),
            ..NodeName::default()
        });
        let found = expected(&service, "n1", node.as_ref(), false);
        let found = found.unwrap_or_else(|_| panic!("something is expected"));
        let [port] = found.as_slice() else {
            panic!("one port: {found:?}");
        };
        assert_eq!(port.portals.len(), 2);
        let last = |ends: &BTreeSet<Target>| {
            let last = ends.iter().map(|(ip, _)| match ip {
                IpAddr::V4(ip) => ip.octets()[3],
                IpAddr::V6(_) => 0,
            });
            last.collect()
        };
        [&port.cluster, &port.local].map(|ends| (last(&ends.must), last(&ends.may)))
    }

    fn both(list: &[u8]) -> (Vec<u8>, Vec<u8>) {
        (list.to_vec(), list.to_vec())
    }

    #[test]
    fn ready_ones_count_and_of_those_that_end_the_serving_where_none_is_ready() {
        let unready = Endpoint {
            ready: false,
            serving: false,
            ..end(2, "n1")
        };
        let ending = Endpoint {
            ready: false,
            terminating: true,
            ..end(3, "n1")
        };
        let all = vec![end(1, "n2"), unready.clone(), ending.clone()];
        assert_eq!(told(all, Some("a")), [both(&[1]), both(&[3])]);
        assert_eq!(
            told(vec![unready.clone(), ending], Some("a")),
            [both(&[3]), both(&[3])]
        );
        assert_eq!(told(vec![unready], Some("a")), [both(&[]), both(&[])]);
    }

    #[test]
    fn hints_count_where_all_have_some_and_one_is_for_here() {
        let zoned = |last, zone: &str| Endpoint {
            hint_zones: vec![zone.to_owned()],
            ..end(last, "n2")
        };
        let two = || vec![zoned(1, "a"), zoned(2, "b")];
        assert_eq!(told(two(), Some("a"))[0], both(&[1]));
        assert_eq!(told(two(), Some("c"))[0], both(&[1, 2]));
        let mut one_without = two();
        one_without.push(end(3, "n2"));
        assert_eq!(told(one_without, Some("a"))[0], both(&[1, 2, 3]));
        // The zone is not known: any of these may be there.
        assert_eq!(told(two(), None)[0], (vec![], vec![1, 2]));
        let mut own = two();
        own[0].hint_nodes = vec!["n2".to_owned()];
        own[1].hint_nodes = vec!["n1".to_owned()];
        assert_eq!(told(own, Some("a"))[0], both(&[2]));
    }

    #[test]
    fn where_slices_differ_either_may_be_so() {
        let disputed = Endpoint {
            disputed: true,
            ..end(2, "n1")
        };
        let found = told(vec![end(1, "n1"), disputed], Some("a"));
        assert_eq!(found[0], (vec![1], vec![1, 2]));
    }

    #[test]
    fn endpoints_of_other_ports_families_and_without_port_do_not_count() {
        let mut named = end(2, "n1");
        named.port_name = "admin".to_owned();
        let mut v6 = end(3, "n1");
        v6.ip = "fd00::3".parse().expect("an address");
        let mut any = end(4, "n1");
        any.port = None;
        let found = told(vec![end(1, "n1"), named, v6, any], Some("a"));
        assert_eq!(found[0], both(&[1]));
    }
}
