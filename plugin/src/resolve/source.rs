//! The end that a packet starts from.

use std::net::IpAddr;

use super::choose::{Chooser, Side};
use super::ends::{Destination, Source};
use super::error::{Choices, Error};
use super::objects::{Endpoint, ServiceInfo};
use super::parse::{EndSpec, ObjectKind, PortSpec};

impl Chooser<'_> {
    /// A bare name is a pod. Returns the source port beside the source, where one was typed.
    pub(super) fn source(&mut self, spec: &EndSpec) -> Result<(Source, Option<u16>), Error> {
        let port = match spec.port() {
            None => None,
            Some(PortSpec::Number(number)) => Some(number.get()),
            Some(PortSpec::Name(name)) => {
                return Err(self.unfit_source(format!(
                    "a source port is a number, not the name {name:?}; leave it out for any port"
                )));
            }
        };
        let source = match spec {
            EndSpec::Object { kind, name, .. } => self.source_object(spec, *kind, name)?,
            EndSpec::Address { ip, .. } => self.source_address(*ip)?,
            EndSpec::Url { .. } => {
                return Err(self.unfit_source(
                    "a URL names a destination; give a pod, a node or an address".to_owned(),
                ));
            }
            EndSpec::Netns { .. } | EndSpec::Pid { .. } | EndSpec::Host { .. } => {
                return Err(self.local_only(Side::Source));
            }
        };
        self.note_node(&source);
        Ok((source, port))
    }

    fn unfit_source(&self, why: String) -> Error {
        Error::Unfit {
            end: self.typed(Side::Source).to_owned(),
            why,
            choices: Choices::default(),
        }
    }

    fn source_object(
        &mut self,
        spec: &EndSpec,
        kind: Option<ObjectKind>,
        name: &str,
    ) -> Result<Source, Error> {
        let readings = Self::readings_of(name);
        let port = Self::port_text(spec);
        match kind {
            None | Some(ObjectKind::Pod) => {
                let pods = self.pods_named(&readings);
                if let [first, second, ..] = pods.as_slice() {
                    let choices = [first, second].map(|pod| {
                        let end = self.spell(ObjectKind::Pod, &pod.namespace, &pod.name);
                        self.choice(Side::Source, &end, format!("pod {}", pod.path()))
                    });
                    return Err(Error::Ambiguous {
                        end: self.typed(Side::Source).to_owned(),
                        why: "it names two pods".to_owned(),
                        choices: Choices(choices.to_vec()),
                    });
                }
                if let Some(pod) = pods.first() {
                    return Ok(Source::Pod {
                        pod: self.running(pod)?,
                    });
                }
                if kind.is_none() {
                    if let Some(service) = self.services_named(&readings).first() {
                        return Err(self.service_as_source(service));
                    }
                    if self.find_node(name).is_some() {
                        let end = format!("node/{name}");
                        return Err(Error::Unfit {
                            end: name.to_owned(),
                            why: "it is a node, and a bare name is a pod; type".to_owned(),
                            choices: Choices(vec![self.choice(Side::Source, &end, "")]),
                        });
                    }
                }
                Err(self.not_found(Side::Source, &[ObjectKind::Pod], &readings, &port))
            }
            Some(ObjectKind::Node) => match self.find_node(name) {
                Some(node) => Ok(Source::Node { node }),
                None => Err(self.no_such_node(Side::Source, name, &port)),
            },
            Some(ObjectKind::Service) => match self.services_named(&readings).first() {
                Some(service) => Err(self.service_as_source(service)),
                None => Err(self.not_found(Side::Source, &[ObjectKind::Service], &readings, &port)),
            },
            Some(kind) => {
                let pod = self.pod_of_workload(Side::Source, kind, &readings, &port)?;
                Ok(Source::Pod { pod })
            }
        }
    }

    fn source_address(&mut self, ip: IpAddr) -> Result<Source, Error> {
        if let Some(pod) = self.pod_of_ip(ip) {
            self.notes.push(format!("{ip} is pod {}", pod.path()));
            let mut pod = self.running(pod)?;
            // The address typed decides the family, so it goes first.
            pod.ips.sort_by_key(|other| *other != ip);
            return Ok(Source::Pod { pod });
        }
        if let Some(mut node) = self.node_of_ip(ip) {
            self.notes.push(format!("{ip} is node {}", node.name));
            node.ips.sort_by_key(|other| *other != ip);
            return Ok(Source::Node { node });
        }
        if let Some((service, _)) = self.service_of_ip(ip) {
            return Err(self.service_as_source(service));
        }
        self.notes.push(format!(
            "{ip} belongs to no pod and no node that could be listed"
        ));
        Ok(Source::Address { ip })
    }

    /// The error for a packet that no helper sees start, with the nearest questions that can be answered.
    pub(super) fn outside(&self, ip: IpAddr, destination: &Destination) -> Error {
        let own = match destination {
            Destination::Node { node, .. } => Some(node.name.as_str()),
            Destination::Pod { pod } => pod.node.as_deref(),
            _ => None,
        };
        // From another node, the packet comes in by the uplink as one from outside does.
        let mut nodes = self.view.nodes.iter().map(|node| node.name.as_str());
        let other = nodes.find(|name| Some(*name) != own).or(own);
        let choices = other.map(|name| {
            let meaning = match own {
                Some(own) if own != name => "from another machine on the nodes' network",
                _ => "from a node itself",
            };
            self.choice(Side::Source, &format!("node/{name}"), meaning)
        });
        Error::Unfit {
            end: self.typed(Side::Source).to_owned(),
            why: format!(
                "no pod and no node has {ip}: packets from outside the cluster are not followed, since no helper is where they start{}",
                if choices.is_some() {
                    "; the nearest that can be asked"
                } else {
                    "; name a pod or a node"
                }
            ),
            choices: Choices(choices.into_iter().collect()),
        }
    }

    pub(super) fn no_such_node(&self, side: Side, name: &str, port: &str) -> Error {
        let whole = super::parse::Reading {
            name: name.to_owned(),
            namespace: None,
            implies: Some(ObjectKind::Node),
        };
        if self.view.nodes.is_empty() && !self.view.knows("nodes", "") {
            return self.unreadable(side, "nodes");
        }
        self.not_found(side, &[ObjectKind::Node], &[whole], port)
    }

    fn service_as_source(&self, service: &ServiceInfo) -> Error {
        let mut choices = Vec::new();
        let endpoints = self.view.endpoints_of(&service.namespace, &service.name);
        let mut pods: Vec<&Endpoint> = endpoints.iter().filter(|e| e.pod.is_some()).collect();
        pods.sort_by_key(|endpoint| (!endpoint.ready, endpoint.pod.clone()));
        pods.dedup_by_key(|endpoint| endpoint.pod.clone());
        for endpoint in pods.into_iter().take(3) {
            if let Some((namespace, name)) = &endpoint.pod {
                let end = self.spell(ObjectKind::Pod, namespace, name);
                let on = endpoint.node.as_deref().unwrap_or("an unknown node");
                choices.push(self.choice(Side::Source, &end, format!("on {on}")));
            }
        }
        let remedy = if choices.is_empty() {
            "name the pod that sends"
        } else {
            "name one of its pods"
        };
        Error::Unfit {
            end: self.typed(Side::Source).to_owned(),
            why: format!("Service {} sends no packets; {remedy}", service.path()),
            choices: Choices(choices),
        }
    }

    fn note_node(&mut self, source: &Source) {
        let node = source.node().and_then(|name| self.view.node(name));
        if let Some(node) = node.filter(|node| node.ready == Some(false)) {
            let why = node.reason.as_deref().unwrap_or("no reason given");
            self.notes
                .push(format!("node {} is not ready ({why})", node.name));
        }
    }
}
