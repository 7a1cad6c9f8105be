//! The end that a packet is sent to: a Service first, then a pod.

use std::net::IpAddr;
use std::num::NonZeroU16;

use netpath::model::Prefix;

use super::choose::{Chooser, Side};
use super::ends::{Destination, Entry, ServiceEnd};
use super::error::{Choice, Choices, Error};
use super::objects::{Endpoint, PodInfo, ServiceInfo, ServiceKind, ServicePort};
use super::parse::{EndSpec, ObjectKind, PortSpec, Protocol};

/// A destination with the port and protocol that go with it.
pub(super) struct Target {
    pub(super) destination: Destination,
    pub(super) protocol: Protocol,
    /// Host order; `None` for ICMP.
    pub(super) port: Option<u16>,
    /// The literal address that was typed; `None` lets the family decide.
    pub(super) address: Option<IpAddr>,
}

impl<'a> Chooser<'a> {
    pub(super) fn destination(&mut self, spec: &EndSpec) -> Result<Target, Error> {
        match spec {
            EndSpec::Object { kind, name, port } => {
                self.destination_object(spec, *kind, name, port.as_ref())
            }
            EndSpec::Address { ip, port } => self.destination_address(*ip, port.as_ref()),
            EndSpec::Url { host, port } => self.destination_url(host, *port),
            EndSpec::Netns { .. } | EndSpec::Pid { .. } | EndSpec::Host { .. } => {
                Err(self.local_only(Side::Destination))
            }
        }
    }

    fn destination_object(
        &mut self,
        spec: &EndSpec,
        kind: Option<ObjectKind>,
        name: &str,
        port: Option<&PortSpec>,
    ) -> Result<Target, Error> {
        let readings = Self::readings_of(name);
        let text = Self::port_text(spec);
        let side = Side::Destination;
        match kind {
            None => {
                let services = self.services_named(&readings);
                let pods = self.pods_named(&readings);
                match (services.as_slice(), pods.as_slice()) {
                    ([service], []) => self.service(service, port),
                    ([], [pod]) => self.pod(pod, port, None),
                    ([], []) if self.find_node(name).is_some() => Err(Error::Unfit {
                        end: self.typed(side).to_owned(),
                        why: "it is a node, and a bare name is a Service or a pod; type".to_owned(),
                        choices: Choices(vec![self.choice(
                            side,
                            &format!("node/{name}{text}"),
                            "",
                        )]),
                    }),
                    ([], []) => {
                        let kinds = [ObjectKind::Service, ObjectKind::Pod];
                        Err(self.not_found(side, &kinds, &readings, &text))
                    }
                    _ => Err(self.ambiguous(&services, &pods, &text)),
                }
            }
            Some(ObjectKind::Service) => match self.services_named(&readings).as_slice() {
                [] => Err(self.not_found(side, &[ObjectKind::Service], &readings, &text)),
                [service] => self.service(service, port),
                several => Err(self.ambiguous(several, &[], &text)),
            },
            Some(ObjectKind::Pod) => match self.pods_named(&readings).as_slice() {
                [] => Err(self.not_found(side, &[ObjectKind::Pod], &readings, &text)),
                [pod] => self.pod(pod, port, None),
                several => Err(self.ambiguous(&[], several, &text)),
            },
            Some(ObjectKind::Node) => match self.find_node(name) {
                Some(node) => self.node(node, port, None),
                None => Err(self.no_such_node(side, name, &text)),
            },
            Some(kind) => {
                let pod = self.pod_of_workload(side, kind, &readings, &text)?;
                self.pod(&pod, port, None)
            }
        }
    }

    fn ambiguous(&self, services: &[&ServiceInfo], pods: &[&PodInfo], port: &str) -> Error {
        let side = Side::Destination;
        let mut choices: Vec<Choice> = Vec::new();
        for service in services {
            let end = self.spell(ObjectKind::Service, &service.namespace, &service.name);
            choices.push(self.choice(side, &(end + port), format!("Service {}", service.path())));
        }
        for pod in pods {
            let end = self.spell(ObjectKind::Pod, &pod.namespace, &pod.name);
            choices.push(self.choice(side, &(end + port), format!("pod {}", pod.path())));
        }
        let why = match (services.len(), pods.len()) {
            (_, 0) => "it names several Services",
            (0, _) => "it names several pods",
            _ => "it names both a Service and a pod",
        };
        Error::Ambiguous {
            end: self.typed(side).to_owned(),
            why: why.to_owned(),
            choices: Choices(choices),
        }
    }

    /// Which Service owns an address, and which of its addresses that is.
    pub(super) fn service_of_ip(&self, ip: IpAddr) -> Option<(&'a ServiceInfo, Entry)> {
        self.view.services.iter().find_map(|service| {
            let entry = if service.cluster_ips.contains(&ip) {
                Entry::ClusterIp
            } else if service.external_ips.contains(&ip) {
                Entry::ExternalIp
            } else if service.load_balancer_ips.contains(&ip) {
                Entry::LoadBalancer
            } else {
                return None;
            };
            Some((service, entry))
        })
    }

    fn destination_address(
        &mut self,
        ip: IpAddr,
        port: Option<&PortSpec>,
    ) -> Result<Target, Error> {
        if let Some((service, entry)) = self.service_of_ip(ip) {
            self.notes
                .push(format!("{ip} is Service {}", service.path()));
            let mut target = self.service(service, port)?;
            if let Destination::Service(end) = &mut target.destination {
                end.entry = entry;
            }
            target.address = Some(ip);
            return Ok(target);
        }
        if let Some(pod) = self.pod_of_ip(ip) {
            self.notes.push(format!("{ip} is pod {}", pod.path()));
            return self.pod(pod, port, Some(ip));
        }
        if let Some(node) = self.node_of_ip(ip) {
            self.notes.push(format!("{ip} is node {}", node.name));
            return self.node(node, port, Some(ip));
        }
        for resource in ["pods", "services", "nodes"] {
            if !ip.is_loopback()
                && self
                    .view
                    .unread
                    .iter()
                    .any(|unread| unread.resource == resource)
            {
                self.notes.push(format!(
                    "{ip} may belong to the cluster: not all {resource} could be listed"
                ));
            }
        }
        let node = self.node_of_range(ip);
        if let Some(node) = &node {
            self.notes.push(format!(
                "{ip} is in the pod range of node {node}, but no pod that could be listed has it"
            ));
        }
        if node.is_none()
            && let Some(near) = self.service_beside(ip)
        {
            self.notes.push(format!(
                "no Service has {ip}, though it begins as Services' addresses do ({near}): one that was deleted, or a name resolved long ago?"
            ));
        }
        let (protocol, port) = self.plain_port(port, &ip.to_string())?;
        Ok(Target {
            destination: Destination::Address { ip, node },
            protocol,
            port,
            address: Some(ip),
        })
    }

    /// A Service whose address begins as this one does: the API tells no range of them to everybody.
    fn service_beside(&self, ip: IpAddr) -> Option<String> {
        let begins = |own: &IpAddr| match (ip, own) {
            (IpAddr::V4(ip), IpAddr::V4(own)) => ip.octets()[..2] == own.octets()[..2],
            (IpAddr::V6(ip), IpAddr::V6(own)) => ip.octets()[..8] == own.octets()[..8],
            _ => false,
        };
        let services = self.view.services.iter();
        let mut all = services.filter_map(|service| {
            let own = service.cluster_ips.iter().find(|own| begins(own))?;
            Some(format!("{} has {own}", service.path()))
        });
        all.next()
    }

    /// The node whose pod range an address is in.
    fn node_of_range(&self, ip: IpAddr) -> Option<String> {
        let within = |cidr: &String| cidr.parse::<Prefix>().is_ok_and(|cidr| cidr.contains(ip));
        let mut nodes = self.view.nodes.iter();
        let found = nodes.find(|node| node.pod_cidrs.iter().any(within))?;
        Some(found.name.clone())
    }

    fn destination_url(&mut self, host: &str, port: NonZeroU16) -> Result<Target, Error> {
        let spec = PortSpec::Number(port);
        if let Ok(ip) = host.parse::<IpAddr>() {
            return self.destination_address(ip, Some(&spec));
        }
        let readings = Self::readings_of(host);
        if let Some(service) = self.services_named(&readings).first() {
            return self.service(service, Some(&spec));
        }
        if let Some(pod) = self.pods_named(&readings).first() {
            return self.pod(pod, Some(&spec), None);
        }
        // A short name can only be meant inside the cluster; anything else is looked up in DNS.
        let inside = readings.iter().any(|reading| reading.implies.is_some());
        if inside || !host.contains('.') {
            let text = format!(":{port}");
            return Err(self.not_found(
                Side::Destination,
                &[ObjectKind::Service],
                &readings,
                &text,
            ));
        }
        let protocol = self.ask.protocol.unwrap_or(Protocol::Tcp);
        let port = (protocol != Protocol::Icmp).then(|| port.get());
        let destination = Destination::Name {
            host: host.to_owned(),
            port,
            service: None,
        };
        Ok(Target {
            destination,
            protocol,
            port,
            address: None,
        })
    }

    fn node(
        &mut self,
        mut node: super::objects::NodeInfo,
        port: Option<&PortSpec>,
        address: Option<IpAddr>,
    ) -> Result<Target, Error> {
        let (protocol, port) = self.plain_port(port, &format!("node {}", node.name))?;
        if let Some(ip) = address {
            node.ips.sort_by_key(|other| *other != ip);
        }
        let service = port.and_then(|port| {
            self.view.services.iter().find_map(|service| {
                let found = service
                    .ports
                    .iter()
                    .find(|p| p.node_port == Some(port) && p.protocol == protocol)?;
                Some(self.service_end(service, Some(found), Entry::NodePort))
            })
        });
        if let Some(end) = &service {
            self.notes.push(format!(
                "port {} is the node port of Service {}",
                port.unwrap_or_default(),
                end.service.path()
            ));
            let end = end.clone();
            self.note_endpoints(&end);
        }
        Ok(Target {
            destination: Destination::Node { node, service },
            protocol,
            port,
            address,
        })
    }

    fn pod(
        &mut self,
        pod: &PodInfo,
        port: Option<&PortSpec>,
        address: Option<IpAddr>,
    ) -> Result<Target, Error> {
        let mut pod = self.running(pod)?;
        if let Some(ip) = address {
            pod.ips.sort_by_key(|other| *other != ip);
        }
        let (protocol, port) = self.pod_port(&pod, port)?;
        Ok(Target {
            destination: Destination::Pod { pod },
            protocol,
            port,
            address,
        })
    }

    fn service_end(
        &self,
        service: &ServiceInfo,
        port: Option<&ServicePort>,
        entry: Entry,
    ) -> ServiceEnd {
        let all = self.view.endpoints_of(&service.namespace, &service.name);
        let belongs = |e: &&Endpoint| {
            port.is_none_or(|p| {
                e.protocol == p.protocol && e.port_name.as_deref() == p.name.as_deref()
            })
        };
        ServiceEnd {
            service: service.clone(),
            port: port.cloned(),
            entry,
            endpoints: all.iter().filter(belongs).cloned().collect(),
        }
    }

    fn note_endpoints(&mut self, end: &ServiceEnd) {
        let path = end.service.path();
        let ready = end.endpoints.iter().filter(|e| e.ready).count();
        if ready > 0 {
            return;
        }
        if !self.view.knows("endpointslices", &end.service.namespace) {
            let mut unread = self.view.unread.iter();
            let why = unread.find(|unread| unread.resource == "endpointslices");
            let why = why.map_or("not listed", |unread| unread.why.as_str());
            self.notes.push(format!(
                "the endpoints of Service {path} could not be read ({why})"
            ));
            return;
        }
        let service = &end.service;
        let selected = |pod: &&PodInfo| {
            pod.namespace == service.namespace
                && !service.selector.is_empty()
                && pod.has_labels(&service.selector)
        };
        let chosen = self.view.pods.iter().find(selected);
        let note = if let (Some(pod), true) = (chosen, end.endpoints.is_empty()) {
            let target = end.port.as_ref().map(|port| port.target.as_str());
            format!(
                "Service {path} has no endpoints for this port, though pod {} is selected: {}",
                pod.name,
                match target {
                    Some(name) if name.parse::<u16>().is_err() =>
                        format!("does it name a port {name} (targetPort)?"),
                    _ => "is it running, and the controller manager too?".to_owned(),
                }
            )
        } else if end.endpoints.is_empty() {
            let selector: Vec<String> = end
                .service
                .selector
                .iter()
                .map(|(k, v)| format!("{k}={v}"))
                .collect();
            if selector.is_empty() {
                format!("Service {path} has no endpoints and no selector")
            } else {
                format!(
                    "Service {path} has no endpoints: no pod matches {}",
                    selector.join(",")
                )
            }
        } else {
            let names: Vec<String> = end
                .endpoints
                .iter()
                .take(3)
                .map(|e| {
                    e.pod
                        .as_ref()
                        .map_or_else(|| e.ip.to_string(), |(_, name)| name.clone())
                })
                .collect();
            format!(
                "Service {path} has no ready endpoints: {} not ready ({})",
                end.endpoints.len(),
                names.join(", ")
            )
        };
        self.notes.push(note);
    }

    fn service(&mut self, service: &ServiceInfo, port: Option<&PortSpec>) -> Result<Target, Error> {
        if service.kind == ServiceKind::ExternalName {
            return self.external_name(service, port);
        }
        let entry = if service.headless {
            Entry::Headless
        } else {
            Entry::ClusterIp
        };
        let (protocol, chosen) = if self.ask.protocol == Some(Protocol::Icmp) {
            if !service.headless {
                self.notes
                    .push("a Service address translates TCP, UDP and SCTP only".to_owned());
            }
            (Protocol::Icmp, None)
        } else {
            let chosen = self.service_port(service, port)?;
            (chosen.protocol, Some(chosen))
        };
        let end = self.service_end(service, chosen.as_ref(), entry);
        self.note_endpoints(&end);
        if let Some(chosen) = chosen.as_ref().filter(|_| service.headless) {
            let moved = end
                .endpoints
                .iter()
                .any(|e| e.port.is_some_and(|p| p != chosen.port));
            if moved {
                self.notes.push(format!(
                    "Service {} is headless: port {} is not translated to {}",
                    service.path(),
                    chosen.port,
                    chosen.target
                ));
            }
        }
        let number = chosen.map(|p| p.port);
        Ok(Target {
            destination: Destination::Service(end),
            protocol,
            port: number,
            address: None,
        })
    }

    fn external_name(
        &mut self,
        service: &ServiceInfo,
        port: Option<&PortSpec>,
    ) -> Result<Target, Error> {
        let host = service.external_name.clone().unwrap_or_default();
        let path = service.path();
        let readings = Self::readings_of(host.trim_end_matches('.'));
        let inside = readings
            .iter()
            .find(|r| r.implies == Some(ObjectKind::Service));
        if let Some(inside) = inside {
            let namespace = self.namespace_of(inside);
            // A CNAME to a CNAME ends here: following further could go round in circles.
            let target = self
                .view
                .service(namespace, &inside.name)
                .filter(|target| target.kind != ServiceKind::ExternalName);
            if let Some(target) = target {
                self.notes.push(format!(
                    "Service {path} is a CNAME for Service {}",
                    target.path()
                ));
                return self.service(target, port);
            }
        }
        let number = match port {
            Some(PortSpec::Number(number)) => Some(number.get()),
            Some(PortSpec::Name(name)) => service
                .ports
                .iter()
                .find(|p| p.name.as_deref() == Some(name))
                .map(|p| p.port),
            None => match service.ports.as_slice() {
                [one] => Some(one.port),
                _ => None,
            },
        };
        let protocol = self.ask.protocol.unwrap_or(Protocol::Tcp);
        if number.is_none() && protocol != Protocol::Icmp {
            return Err(Error::Unfit {
                end: self.typed(Side::Destination).to_owned(),
                why: format!("Service {path} is only a CNAME for {host}; add :PORT as a number"),
                choices: Choices::default(),
            });
        }
        self.notes.push(format!(
            "Service {path} is of type ExternalName: a CNAME for {host}, no kernel rule exists"
        ));
        let port = number.filter(|_| protocol != Protocol::Icmp);
        Ok(Target {
            destination: Destination::Name {
                host,
                port,
                service: Some(path),
            },
            protocol,
            port,
            address: None,
        })
    }
}
