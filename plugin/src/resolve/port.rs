//! Which port of a destination is meant, or which ones there are to choose from.

use super::choose::{Chooser, Side};
use super::error::{Choice, Choices, Error};
use super::objects::{PodInfo, ServiceInfo, ServicePort};
use super::parse::{ObjectKind, PortSpec, Protocol};

impl Chooser<'_> {
    /// Port of a node or of an address outside: a number. Without one the trace is an ICMP echo.
    pub(super) fn plain_port(
        &mut self,
        port: Option<&PortSpec>,
        object: &str,
    ) -> Result<(Protocol, Option<u16>), Error> {
        match (port, self.ask.protocol) {
            (_, Some(Protocol::Icmp)) => Ok((Protocol::Icmp, None)),
            (Some(PortSpec::Number(number)), protocol) => {
                Ok((protocol.unwrap_or(Protocol::Tcp), Some(number.get())))
            }
            (Some(PortSpec::Name(name)), _) => Err(Error::NoSuchPort {
                object: object.to_owned(),
                port: name.clone(),
                detail: "only Services and pods name their ports; give a number".to_owned(),
                choices: Choices::default(),
            }),
            (None, None) => {
                self.notes.push(
                    "no port given: traced as an ICMP echo; add :PORT for a connection".to_owned(),
                );
                Ok((Protocol::Icmp, None))
            }
            (None, Some(protocol)) => Err(Error::Unfit {
                end: self.typed(Side::Destination).to_owned(),
                why: format!("{protocol} needs a port; add :PORT"),
                choices: Choices::default(),
            }),
        }
    }

    pub(super) fn pod_port(
        &mut self,
        pod: &PodInfo,
        port: Option<&PortSpec>,
    ) -> Result<(Protocol, Option<u16>), Error> {
        let wanted = self.ask.protocol;
        if wanted == Some(Protocol::Icmp) {
            return Ok((Protocol::Icmp, None));
        }
        let declared: Vec<_> = pod
            .containers
            .iter()
            .flat_map(|container| &container.ports)
            .filter(|p| wanted.is_none_or(|wanted| wanted == p.protocol))
            .collect();
        let spelled = self.spell(ObjectKind::Pod, &pod.namespace, &pod.name);
        let choices = |chooser: &Self| {
            let list = declared.iter().map(|p| {
                let flag = ["--protocol", p.protocol.as_str()];
                // The flag is needed only where the default would be another protocol.
                let needed = p.protocol != Protocol::Tcp && wanted.is_none();
                let end = format!("{spelled}:{}", p.port);
                let more: &[&str] = if needed { &flag } else { &[] };
                Choice {
                    command: chooser.command(Side::Destination, &end, more),
                    meaning: p.name.clone().unwrap_or_default(),
                }
            });
            Choices(list.collect())
        };
        match port {
            Some(PortSpec::Number(number)) => {
                let number = number.get();
                let named = declared
                    .iter()
                    .find(|p| p.port == number)
                    .map(|p| p.protocol);
                Ok((wanted.or(named).unwrap_or(Protocol::Tcp), Some(number)))
            }
            Some(PortSpec::Name(name)) => {
                match declared.iter().find(|p| p.name.as_deref() == Some(name)) {
                    Some(p) => Ok((p.protocol, Some(p.port))),
                    None => Err(Error::NoSuchPort {
                        object: format!("pod {}", pod.path()),
                        port: name.clone(),
                        detail: if declared.is_empty() {
                            "its containers declare no ports; give a number".to_owned()
                        } else {
                            "its containers declare".to_owned()
                        },
                        choices: choices(self),
                    }),
                }
            }
            None => match declared.as_slice() {
                [] => self.plain_port(None, &pod.path()),
                [one] => Ok((one.protocol, Some(one.port))),
                several => Err(Error::Ambiguous {
                    end: self.typed(Side::Destination).to_owned(),
                    why: format!("pod {} has {} ports", pod.path(), several.len()),
                    choices: choices(self),
                }),
            },
        }
    }

    pub(super) fn service_port(
        &self,
        service: &ServiceInfo,
        port: Option<&PortSpec>,
    ) -> Result<ServicePort, Error> {
        let wanted = self.ask.protocol;
        let fits = |p: &&ServicePort| match port {
            None => true,
            Some(PortSpec::Number(number)) => p.port == number.get(),
            Some(PortSpec::Name(name)) => p.name.as_deref() == Some(name),
        };
        let of_protocol = |p: &&ServicePort| wanted.is_none_or(|wanted| p.protocol == wanted);
        let found: Vec<&ServicePort> = service
            .ports
            .iter()
            .filter(of_protocol)
            .filter(fits)
            .collect();
        let object = format!("Service {}", service.path());
        match found.as_slice() {
            [one] => Ok((*one).clone()),
            [] if service.ports.is_empty() && service.headless => match port {
                // A headless Service needs no ports: its DNS name gives addresses for any.
                Some(PortSpec::Number(number)) => Ok(ServicePort {
                    name: None,
                    port: number.get(),
                    protocol: wanted.unwrap_or(Protocol::Tcp),
                    target: number.to_string(),
                    node_port: None,
                }),
                _ => Err(Error::Unfit {
                    end: self.typed(Side::Destination).to_owned(),
                    why: format!("{object} is headless and lists no ports; add :PORT"),
                    choices: Choices::default(),
                }),
            },
            [] => {
                // Another protocol was asked for than that of the port.
                let of_any = service.ports.iter().any(|p| fits(&p));
                if let (Some(wanted), true) = (wanted, of_any) {
                    let what = port.map_or_else(
                        || format!("no {wanted} port"),
                        |port| format!("port {port}, but not for {wanted}"),
                    );
                    return Err(Error::Unfit {
                        end: self.typed(Side::Destination).to_owned(),
                        why: format!(
                            "{object} has {what}; type one of its ports without --protocol"
                        ),
                        choices: self
                            .port_choices(service, &service.ports.iter().collect::<Vec<_>>()),
                    });
                }
                let typed = port.map_or_else(String::new, ToString::to_string);
                Err(Error::NoSuchPort {
                    object,
                    detail: Self::port_hint(service, port),
                    choices: self.port_choices(service, &service.ports.iter().collect::<Vec<_>>()),
                    port: typed,
                })
            }
            several => Err(Error::Ambiguous {
                end: self.typed(Side::Destination).to_owned(),
                why: match port {
                    None => format!("{object} has {} ports", several.len()),
                    Some(port) => {
                        format!("{object} has port {port} for {} protocols", several.len())
                    }
                },
                choices: self.port_choices(service, several),
            }),
        }
    }

    /// Recognises the two numbers that people mistake for the port.
    fn port_hint(service: &ServiceInfo, port: Option<&PortSpec>) -> String {
        let Some(PortSpec::Number(number)) = port else {
            return "it has".to_owned();
        };
        let number = number.get();
        if let Some(p) = service
            .ports
            .iter()
            .find(|p| p.target == number.to_string())
        {
            return format!("{number} is the target port behind port {}; it has", p.port);
        }
        if let Some(p) = service.ports.iter().find(|p| p.node_port == Some(number)) {
            return format!(
                "{number} is the node port of port {}, reached as node/NAME:{number}; it has",
                p.port
            );
        }
        "it has".to_owned()
    }

    fn port_choices(&self, service: &ServiceInfo, ports: &[&ServicePort]) -> Choices {
        let spelled = self.spell(ObjectKind::Service, &service.namespace, &service.name);
        let list = ports.iter().map(|p| {
            // Two ports may share a number; their names differ.
            let twice = service
                .ports
                .iter()
                .filter(|other| other.port == p.port)
                .count()
                > 1;
            let port = match (&p.name, twice) {
                (Some(name), true) => name.clone(),
                _ => p.port.to_string(),
            };
            let meaning = match &p.name {
                Some(name) => format!("{name}, {}/{}", p.port, p.protocol),
                None => format!("{}/{}", p.port, p.protocol),
            };
            self.choice(Side::Destination, &format!("{spelled}:{port}"), meaning)
        });
        Choices(list.collect())
    }
}
