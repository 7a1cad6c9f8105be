//! Which flows are traced, and what their traces have to say.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

use crate::expect::Expect;
use crate::kubectl::NAMESPACE;
use crate::workload::{Objects, of_family};

/// An address outside of the cluster that answers, by family; tests/cluster/up sees to that.
pub const OUTSIDE: [&str; 2] = ["198.51.100.1", "2001:db8:51::1"];
/// The name that it answers with.
pub const OUTSIDE_NAME: &str = "outside";

/// One question.
#[derive(Clone, Debug)]
pub struct Case {
    /// For people.
    pub name: String,
    /// Source as it is typed.
    pub source: String,
    /// Destination as it is typed.
    pub destination: String,
    /// Pod in whose network the packets start.
    pub pod: String,
    /// Where real packets are sent.
    pub to: SocketAddr,
    /// UDP instead of TCP.
    pub udp: bool,
    /// `-4` or `-6`, where the cluster has both.
    pub family: Option<&'static str>,
    /// The largest packets each way are asked for, too, which has to prove the predicted ones.
    pub mtu: bool,
    /// What the trace has to say.
    pub expect: Expect,
}

/// Makes cases of one family.
pub struct Maker<'a> {
    objects: &'a Objects,
    v6: bool,
}

impl<'a> Maker<'a> {
    /// Cases of this family.
    pub fn new(objects: &'a Objects, v6: bool) -> Self {
        Self { objects, v6 }
    }

    /// A question from a pod, or `node/N` for the node of pod `host-N`, to a pod's port (`web-1:8080`), a Service
    /// with its first port (`svc/host`), or the one that is named (`svc/web:dns`), an address, or the port that a
    /// Service has on a node (`nodeport/host/1`, `nodeport/web:dns/1`).
    pub fn case(&self, name: &str, source: &str, destination: &str, udp: bool) -> Result<Case> {
        let (typed, pod) = match source.strip_prefix("node/") {
            Some(number) => {
                let pod = format!("host-{number}");
                (format!("node/{}", self.objects.pod(&pod)?.node), pod)
            }
            None => (source.to_owned(), source.to_owned()),
        };
        let (written, to) = self.destination(destination)?;
        let protocol = if udp { ", udp" } else { "" };
        let family = if self.v6 { ", v6" } else { "" };
        Ok(Case {
            name: format!("{name}{protocol}{family}"),
            source: typed,
            destination: written,
            pod,
            to,
            udp,
            mtu: false,
            family: self
                .objects
                .dual
                .then_some(if self.v6 { "-6" } else { "-4" }),
            expect: Expect::verdict("delivered"),
        })
    }

    fn destination(&self, text: &str) -> Result<(String, SocketAddr)> {
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok((text.to_owned(), address));
        }
        let numbered = || format!("read destination {text}");
        if let Some(rest) = text.strip_prefix("nodeport/") {
            let (service, number) = rest.split_once('/').with_context(numbered)?;
            let index: usize = number.parse().with_context(numbered)?;
            let node = self.objects.nodes.get(index.wrapping_sub(1));
            let ip = of_family(&node.with_context(numbered)?.ips, self.v6)?;
            let (name, port) = port_name(service);
            let port = self.objects.service(name)?.port(port);
            let port = port.and_then(|port| port.node_port);
            let port = port.with_context(numbered)?;
            let to = SocketAddr::new(ip, port);
            return Ok((to.to_string(), to));
        }
        if let Some(rest) = text.strip_prefix("svc/") {
            let (name, port) = port_name(rest);
            let service = self.objects.service(name)?;
            let port = service.port(port).with_context(numbered)?;
            let to = SocketAddr::new(of_family(&service.ips, self.v6)?, port.number);
            return Ok((text.to_owned(), to));
        }
        let (pod, port) = text.split_once(':').with_context(numbered)?;
        let ip: IpAddr = of_family(&self.objects.pod(pod)?.ips, self.v6)?;
        let port = port.parse().with_context(numbered)?;
        Ok((text.to_owned(), SocketAddr::new(ip, port)))
    }
}

/// A Service and its port's name, where there is one.
fn port_name(text: &str) -> (&str, Option<&str>) {
    text.split_once(':')
        .map_or((text, None), |(name, port)| (name, Some(port)))
}

/// Name, source, destination, UDP too, number of branches where there is more than one.
type Row = (&'static str, &'static str, &'static str, bool, usize);

const WELL: &[Row] = &[
    ("pod to pod, same node", "client-1", "web-1:8080", true, 1),
    (
        "pod to pod, across nodes",
        "client-1",
        "web-2:8080",
        true,
        1,
    ),
    (
        "pod to pod, the other way",
        "client-2",
        "web-1:8080",
        true,
        1,
    ),
    (
        "pod to its own address",
        "client-1",
        "client-1:8080",
        false,
        1,
    ),
    (
        "pod to host-network pod, same node",
        "client-1",
        "host-1:19080",
        true,
        1,
    ),
    (
        "pod to host-network pod, across nodes",
        "client-1",
        "host-2:19080",
        true,
        1,
    ),
    (
        "pod to host-network pods' ClusterIP",
        "client-1",
        "svc/host",
        false,
        2,
    ),
    (
        "pod to host-network pods' NodePort",
        "client-1",
        "nodeport/host/2",
        false,
        2,
    ),
    (
        "host-network pod to pod, same node",
        "host-1",
        "web-1:8080",
        true,
        1,
    ),
    (
        "host-network pod to pod, across nodes",
        "host-1",
        "web-2:8080",
        true,
        1,
    ),
    ("node to pod", "node/2", "web-1:8080", false, 1),
];

/// Name, source, destination over TCP, over UDP.
const SERVICES: &[(&str, &str, &str, &str)] = &[
    (
        "pod to ClusterIP",
        "client-1",
        "svc/web:http",
        "svc/web:dns",
    ),
    (
        "pod to ClusterIP, other node",
        "client-2",
        "svc/web:http",
        "svc/web:dns",
    ),
    (
        "host-network pod to ClusterIP",
        "host-1",
        "svc/web:http",
        "svc/web:dns",
    ),
    ("node to ClusterIP", "node/1", "svc/web:http", "svc/web:dns"),
    (
        "pod to itself through its Service",
        "client-1",
        "svc/self:http",
        "svc/self:dns",
    ),
    (
        "pod to NodePort of its node",
        "client-1",
        "nodeport/web:http/1",
        "nodeport/web:dns/1",
    ),
    (
        "pod to NodePort of the other node",
        "client-1",
        "nodeport/web:http/2",
        "nodeport/web:dns/2",
    ),
    (
        "host-network pod to NodePort of its node",
        "host-1",
        "nodeport/web:http/1",
        "nodeport/web:dns/1",
    ),
    (
        "host-network pod to NodePort of the other",
        "host-1",
        "nodeport/web:http/2",
        "nodeport/web:dns/2",
    ),
];

/// Flows of a cluster in which all is well; `outside` says whether something answers there.
pub fn well(objects: &Objects, outside: bool) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &v6 in objects.families() {
        let maker = Maker::new(objects, v6);
        let mut add = |name, source, destination: &str, udp, branches| -> Result<()> {
            let mut case = maker.case(name, source, destination, udp)?;
            case.expect.branches = Some(branches);
            case.mtu = name.starts_with("pod to pod") && !udp;
            cases.push(case);
            Ok(())
        };
        for (name, source, destination, also_udp, branches) in WELL {
            add(name, source, destination, false, *branches)?;
            if *also_udp {
                add(name, source, destination, true, *branches)?;
            }
        }
        for (name, source, tcp, udp) in SERVICES {
            add(name, source, tcp, false, 2)?;
            add(name, source, udp, true, 2)?;
        }
        if outside {
            let ip: IpAddr = OUTSIDE[usize::from(v6)].parse().context("an address")?;
            let at = |port| SocketAddr::new(ip, port).to_string();
            for (name, source) in [
                ("pod to outside", "client-1"),
                ("pod to outside, other node", "client-2"),
                ("host-network pod to outside", "host-1"),
            ] {
                add(name, source, &at(80), false, 1)?;
                add(name, source, &at(53), true, 1)?;
            }
        }
    }
    Ok(cases)
}

/// Flows that fail by what the workload's objects say.
pub fn broken(objects: &Objects) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for &v6 in objects.families() {
        let maker = Maker::new(objects, v6);
        for (name, service, code) in [
            ("the selector matches nothing", "svc/nobody", "NP0112"),
            ("wrong targetPort", "svc/wrong-port", "NP0121"),
            ("the pod listens on loopback only", "svc/lonely", "NP0122"),
        ] {
            let mut case = maker.case(name, "client-1", service, false)?;
            case.expect = Expect::verdict("rejected").code(code);
            if code == "NP0122" {
                case.expect.node = Some(objects.pod("lonely")?.node.clone());
            }
            cases.push(case);
        }
    }
    Ok(cases)
}

/// NAMESPACE/POD or the node's name: how traces and captures call the place of a pod.
pub fn place(objects: &Objects, pod: &str) -> Result<String> {
    let pod = objects.pod(pod)?;
    Ok(if pod.host_network {
        pod.node.clone()
    } else {
        format!("{NAMESPACE}/{}", pod.name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Node, Pod, Service, ServicePort};

    fn objects() -> Objects {
        let ips = |last: u8| -> Vec<IpAddr> {
            vec![
                format!("10.0.0.{last}").parse().unwrap(),
                format!("fd00::{last}").parse().unwrap(),
            ]
        };
        let mut objects = Objects {
            dual: true,
            ..Objects::default()
        };
        for number in [1, 2] {
            objects.nodes.push(Node {
                name: format!("n{number}"),
                ips: ips(number),
                pod_cidrs: Vec::new(),
            });
        }
        let port = |name: &str, number, node_port| ServicePort {
            name: name.to_owned(),
            number,
            node_port: Some(node_port),
        };
        let pods = [
            "client-1", "client-2", "web-1", "web-2", "host-1", "host-2", "lonely",
        ];
        for (number, name) in (10..).zip(pods) {
            let pod = Pod {
                name: name.to_owned(),
                uid: String::new(),
                node: if name.ends_with('1') { "n1" } else { "n2" }.to_owned(),
                host_network: name.starts_with("host"),
                ips: ips(number),
            };
            objects.pods.insert(name.to_owned(), pod);
        }
        for (number, name) in (50..).zip(["web", "host", "self", "lonely", "nobody", "wrong-port"])
        {
            let service = Service {
                ips: ips(number),
                ports: vec![port("http", 80, 30080), port("dns", 53, 30053)],
            };
            objects.services.insert(name.to_owned(), service);
        }
        objects
    }

    #[test]
    fn every_flow_has_addresses_of_its_family() {
        let objects = objects();
        let cases = well(&objects, true).unwrap();
        assert!(cases.iter().all(|case| {
            let v6 = case.name.ends_with("v6");
            case.to.is_ipv6() == v6 && case.family == Some(if v6 { "-6" } else { "-4" })
        }));
        let of = |name: &str| cases.iter().find(|case| case.name == name).unwrap();
        assert_eq!(of("node to ClusterIP, udp").source, "node/n1");
        assert_eq!(of("node to ClusterIP, udp").to.to_string(), "10.0.0.50:53");
        assert_eq!(
            of("pod to NodePort of the other node, v6").destination,
            "[fd00::2]:30080"
        );
        for (name, to) in [
            ("pod to NodePort of its node, udp", "10.0.0.1:30053"),
            (
                "host-network pod to NodePort of the other, udp",
                "10.0.0.2:30053",
            ),
            ("pod to itself through its Service, udp", "10.0.0.52:53"),
        ] {
            assert_eq!(
                (of(name).to.to_string(), of(name).udp),
                (to.to_owned(), true)
            );
        }
        let unknown = Maker::new(&objects, false).case("n", "client-1", "svc/web:ftp", false);
        assert!(unknown.is_err());
        assert_eq!(broken(&objects).unwrap().len(), 6);
        let single = Objects {
            dual: false,
            ..objects
        };
        let cases = well(&single, false).unwrap();
        assert!(
            cases
                .iter()
                .all(|case| case.family.is_none() && case.to.is_ipv4())
        );
    }
}
