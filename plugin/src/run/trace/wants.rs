//! What is asked of the nodes for a question, and whose namespace it begins in.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netpath::model::NsKey;
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, NsTarget, Packets, Towards, Want};
use netpath::simulate::{Flow, Wants};

use crate::request::protocol_number;
use crate::resolve::{ClusterView, Destination, Resolved, Source};

/// Destinations that packets of the flows and their answers may have on their way.
pub(super) fn about(resolved: &Resolved, view: &ClusterView) -> Packets {
    let mut to: BTreeSet<Towards> = BTreeSet::new();
    let mut add = |addr: IpAddr, port: Option<u16>| {
        let protocol = protocol_number(resolved.protocol, addr.is_ipv6());
        to.insert(Towards {
            addr,
            service: port.map(|port| (protocol, port)),
        });
    };
    for flow in &resolved.flows {
        add(flow.destination, flow.port);
        add(flow.source, None);
    }
    // The kernel may send from another address of the source.
    for ip in resolved.source.ips() {
        add(ip, None);
    }
    let service = resolved.destination.service();
    for endpoint in service.iter().flat_map(|end| end.usable()) {
        add(endpoint.ip, endpoint.port);
    }
    // Tunnels lead to nodes, as answers do where the source is translated.
    for node in resolved.nodes() {
        for ip in view.node(&node).iter().flat_map(|node| &node.ips) {
            add(*ip, None);
        }
    }
    // Rules of the other family are read when a packet of it comes.
    let v6 = |ip: IpAddr| {
        resolved
            .flows
            .iter()
            .any(|flow| flow.destination.is_ipv6() == ip.is_ipv6())
    };
    to.retain(|to| v6(to.addr));
    Packets {
        to: to.into_iter().collect(),
    }
}

/// The same where no names are known: the destination that was typed, and the source's addresses.
pub(super) fn about_one(topology: &Topology, flow: &Flow) -> Packets {
    let ns = topology.netns(&flow.from);
    let own = ns.and_then(|ns| ns.addrs.known()).into_iter().flatten();
    let own = own.map(|addr| addr.local).chain(flow.src);
    let mut to: BTreeSet<Towards> = own
        .filter(|addr| addr.is_ipv6() == flow.dst.is_ipv6())
        .map(|addr| Towards {
            addr,
            service: None,
        })
        .collect();
    to.insert(Towards {
        addr: flow.dst,
        service: flow.dport.map(|port| (flow.protocol, port)),
    });
    Packets {
        to: to.into_iter().collect(),
    }
}

/// What the first request carries: the nodes' own namespaces and those of the pods at both ends.
pub(super) fn likely(resolved: &Resolved, view: &ClusterView) -> Wants {
    let mut wants = Wants::new();
    let mut add = |node: &str, target: NsTarget| {
        let want = Want::NetNs {
            target,
            depth: Depth::Likely,
        };
        wants.entry(node.to_owned()).or_default().insert(want);
    };
    for node in resolved.nodes() {
        add(&node, NsTarget::Host);
    }
    if let Source::Pod { pod } = &resolved.source
        && let (Some(node), false) = (&pod.node, pod.host_network)
    {
        add(node, NsTarget::PodUid(pod.cgroup_uid.clone()));
    }
    if let Destination::Pod { pod } = &resolved.destination
        && let (Some(node), false) = (&pod.node, pod.host_network)
    {
        add(node, NsTarget::PodUid(pod.cgroup_uid.clone()));
    }
    let service = resolved.destination.service();
    for endpoint in service.iter().flat_map(|end| end.usable()) {
        let pod = endpoint.pod.as_ref();
        let pod = pod.and_then(|(namespace, name)| view.pod(namespace, name));
        if let Some((pod, node)) = pod.and_then(|pod| Some((pod, pod.node.as_ref()?)))
            && !pod.host_network
        {
            add(node, NsTarget::PodUid(pod.cgroup_uid.clone()));
        }
    }
    wants
}

/// Takes what the whole cluster says over, but for what was found out of its nodes.
pub(super) fn widen(topology: &mut Topology, whole: Topology) {
    let old = std::mem::replace(&mut topology.hints, whole.hints);
    for (node, hint) in &mut topology.hints {
        hint.reachable &= old.get(node).is_none_or(|old| old.reachable);
    }
    topology.service_ips = whole.service_ips;
    topology.unlisted = whole.unlisted;
}

pub(super) fn known_namespace(topology: &Topology, node: &str, source: &Source) -> Option<NsKey> {
    let pod = match source {
        Source::Pod { pod } if !pod.host_network => pod,
        _ => return topology.host(node),
    };
    let snapshot = topology.nodes.get(node)?;
    let holds = |ns: &&netpath::model::netns::NetNs| {
        let addrs = ns.addrs.known();
        !ns.identity.host
            && addrs.is_some_and(|addrs| addrs.iter().any(|addr| pod.ips.contains(&addr.local)))
    };
    let found = snapshot
        .pod(&pod.cgroup_uid)
        .or_else(|| snapshot.netns.values().find(holds))?;
    Some(NsKey {
        node: node.to_owned(),
        netns: found.identity.id,
    })
}
