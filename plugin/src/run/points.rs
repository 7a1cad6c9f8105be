//! Which devices to watch, and by which filters: from what was read alone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpath::explain::Naming;
use netpath::model::capture::{ANY, Point};
use netpath::model::link::{IpTunnelKind, Link, LinkKind};
use netpath::model::netns::NetNs;
use netpath::model::packet::{ICMP, ICMPV6, Packet, SCTP, TCP, UDP};
use netpath::model::topology::Topology;
use netpath::model::{NetNsId, NsKey};
use netpath::simulate::peer::{Peer, peer};
use netpath::trace::{Disposition, Trace};

/// Pairs of ends that a filter names; of more, only the sender's side is named.
const MOST_PAIRS: usize = 48;
/// VXLAN ports that are looked into where no device tells: Linux's own and IANA's.
const USUAL_VXLAN: [u16; 2] = [8472, 4789];

/// Points of each node.
pub type Points = BTreeMap<String, Vec<Point>>;

/// The filter of a node's devices where none was typed: the kubelet's port is the way of the stream to the client, of
/// which watching would make more.
pub const WITHOUT_STREAM: &str = "not tcp port 10250";

/// A pod's or another namespace's devices, their other ends, and uplinks and tunnels of the node.
pub fn of_place(naming: &Naming<'_>, key: &NsKey, filter: Option<&str>) -> Points {
    let Some(ns) = naming.topology.netns(key) else {
        return Points::new();
    };
    let mut chosen = Chosen::new(naming);
    let host = naming.topology.host(&key.node);
    if host.as_ref() == Some(key) {
        let filter = match filter {
            None if !naming.names.nodes.is_empty() => WITHOUT_STREAM,
            typed => typed.unwrap_or_default(),
        };
        chosen.outside(key, ns, filter, &[]);
        return chosen.points;
    }
    let filter = filter.unwrap_or_default();
    chosen.pairs(naming.topology, (key, ns), filter, &[]);
    let hosts: Vec<IpAddr> = addresses(ns).collect();
    if let Some(host) = host
        && let Some(ns) = naming.topology.netns(&host)
        && !hosts.is_empty()
        && chosen
            .points
            .get(&key.node)
            .is_some_and(|all| all.iter().any(|one| one.netns == host.netns))
    {
        let words: Vec<String> = hosts.iter().map(|ip| format!("host {ip}")).collect();
        let of_pod = both(&words.join(" or "), filter);
        chosen.outside(&host, ns, &of_pod, &hosts);
    }
    chosen.points
}

/// Devices where a predicted path's packets are seen, and the filter for them.
pub fn of_path(naming: &Naming<'_>, traces: &[&Trace], filter: &str) -> Points {
    let mut forms = Forms::default();
    let mut devices: BTreeSet<(NsKey, &str)> = BTreeSet::new();
    for trace in traces.iter().flat_map(|trace| turns(trace)) {
        for hop in &trace.hops {
            for tap in &hop.taps {
                forms.add(&tap.packet);
                devices.insert((hop.ns.clone(), &tap.dev));
            }
        }
    }
    let filter = both(&forms.filter(), filter);
    let hosts: Vec<IpAddr> = forms.hosts.iter().copied().collect();
    let mut chosen = Chosen::new(naming);
    for (key, dev) in devices {
        if naming.topology.netns(&key).is_some() {
            chosen.add(&key, dev, &filter, &hosts);
        }
    }
    for key in beyond(naming, traces) {
        let Some(ns) = naming.topology.netns(&key) else {
            continue;
        };
        if ns.identity.host {
            chosen.outside(&key, ns, &filter, &hosts);
        } else {
            chosen.pairs(naming.topology, (&key, ns), &filter, &hosts);
        }
    }
    chosen.points
}

/// Where packets may be seen whose way can't be told: in the destination's namespace, and in those of the nodes where the
/// way ends and where it leads.
fn beyond(naming: &Naming<'_>, traces: &[&Trace]) -> BTreeSet<NsKey> {
    let mut keys = BTreeSet::new();
    for trace in traces.iter().flat_map(|trace| turns(trace)) {
        if !matches!(trace.disposition, Disposition::Inconclusive(_)) {
            continue;
        }
        let holders = naming.holders(trace.packet.innermost().dst);
        let ends = trace.hops.last().map(|hop| hop.ns.node.clone());
        let nodes = holders.iter().map(|key| key.node.clone()).chain(ends);
        let hosts: Vec<NsKey> = nodes
            .filter_map(|node| naming.topology.host(&node))
            .collect();
        keys.extend(holders.into_iter().chain(hosts));
    }
    keys
}

/// What the kernel drops in a place's namespace, and of its packets in the node's own.
pub fn dropped_of_place(naming: &Naming<'_>, key: &NsKey, filter: Option<&str>) -> Points {
    let filter = filter.unwrap_or_default();
    let mut points = Points::new();
    let Some(ns) = naming.topology.netns(key) else {
        return points;
    };
    let own = points.entry(key.node.clone()).or_default();
    let tunnels = Tunnels::of(naming.topology);
    own.push(dropped(tunnels.point(key.netns, ANY, filter, &[])));
    let hosts: Vec<IpAddr> = addresses(ns).collect();
    if let Some(host) = naming.topology.host(&key.node)
        && host != *key
        && naming.topology.netns(&host).is_some()
        && !hosts.is_empty()
    {
        let words: Vec<String> = hosts.iter().map(|ip| format!("host {ip}")).collect();
        let of_place = both(&words.join(" or "), filter);
        own.push(dropped(tunnels.point(host.netns, ANY, &of_place, &hosts)));
    }
    points
}

/// What the kernels drop of a predicted path's packets in its namespaces.
pub fn dropped_of_path(naming: &Naming<'_>, traces: &[&Trace], filter: &str) -> Points {
    let mut points = of_path(naming, traces, filter);
    for list in points.values_mut() {
        let mut told = BTreeSet::new();
        list.retain(|point| told.insert(point.netns));
        for point in list {
            ANY.clone_into(&mut point.dev);
            point.dropped = true;
        }
    }
    points
}

/// The same for packets that are dropped.
pub fn dropped(point: Point) -> Point {
    Point {
        dropped: true,
        ..point
    }
}

/// A packet's trace, its answer's, and those of the packets that follow.
pub fn turns(trace: &Trace) -> impl Iterator<Item = &Trace> {
    std::iter::successors(Some(trace), |trace| trace.reply.as_deref())
}

/// Tunnels of watched namespaces that nobody looks into, in words: what is in them is seen at their devices
/// alone.
pub fn opaque(naming: &Naming<'_>, points: &Points) -> Vec<String> {
    let mut filtered: BTreeSet<NsKey> = BTreeSet::new();
    for (node, points) in points {
        let points = points
            .iter()
            .filter(|point| !point.filter.trim().is_empty());
        filtered.extend(points.map(|point| NsKey {
            node: node.clone(),
            netns: point.netns,
        }));
    }
    let told = filtered.into_iter().filter_map(|key| {
        let tunnels = links(naming.topology.netns(&key)?)
            .filter(|link| link.up && matches!(link.kind, LinkKind::Wireguard(_)));
        let names: Vec<&str> = tunnels.map(|link| link.name.as_str()).collect();
        let place = naming.netns(&key);
        (!names.is_empty()).then(|| {
            format!(
                "{} {place}: what {} encrypts is seen at these devices, not at those below them",
                key.node,
                names.join(", ")
            )
        })
    });
    told.collect()
}

/// Both expressions, where there are two.
pub fn both(one: &str, other: &str) -> String {
    match (one.trim(), other.trim()) {
        (one, "") => one.to_owned(),
        ("", other) => other.to_owned(),
        (one, other) => format!("({one}) and ({other})"),
    }
}

/// The forms that a flow's packets have on their way.
#[derive(Debug, Default)]
pub struct Forms {
    pairs: BTreeSet<(IpAddr, IpAddr, u8, Option<u16>)>,
    /// All ends.
    pub hosts: BTreeSet<IpAddr>,
    /// The first packet's source.
    source: Option<IpAddr>,
}

impl Forms {
    /// Takes in the form that a packet has, out of its tunnel.
    pub fn add(&mut self, packet: &Packet) {
        let packet = packet.innermost();
        let (low, high) = (packet.src.min(packet.dst), packet.src.max(packet.dst));
        // The port of the one that was asked: of the other nothing is known before.
        let port = match (packet.sport(), packet.dport()) {
            (None, port) | (port, None) => port,
            (Some(_), Some(_)) => None,
        };
        if packet.protocol() != 0 {
            self.pairs.insert((low, high, packet.protocol(), port));
            self.hosts.extend([packet.src, packet.dst]);
            self.source.get_or_insert(packet.src);
        }
    }

    /// A filter for them, and for messages about them.
    pub fn filter(&self) -> String {
        let Some(source) = self.source else {
            return String::new();
        };
        let about = |ip: IpAddr| if ip.is_ipv6() { "icmp6" } else { "icmp" };
        if self.pairs.len() > MOST_PAIRS {
            return format!("host {source}");
        }
        let mut parts: Vec<String> = Vec::new();
        for (one, other, protocol, port) in &self.pairs {
            let name = match *protocol {
                TCP => "tcp",
                UDP => "udp",
                SCTP => "sctp",
                ICMP => "icmp",
                ICMPV6 => "icmp6",
                _ => "ip or ip6",
            };
            let port = port.map_or_else(String::new, |port| format!(" and port {port}"));
            parts.push(format!("(({name}) and host {one} and host {other}{port})"));
        }
        // Messages about a packet come from anyone on its way, to whoever sent it.
        let senders = self.hosts.iter().take(MOST_PAIRS);
        let errors = senders.map(|ip| match about(*ip) {
            "icmp" => format!("(icmp[icmptype] != 0 and icmp[icmptype] != 8 and dst host {ip})"),
            _ => format!("(icmp6 and ip6[40] < 128 and dst host {ip})"),
        });
        parts.extend(errors);
        parts.join(" or ")
    }
}

/// A filter for a probe from this port (or with this id, of an echo), whatever becomes of its addresses; and for the
/// forms that are predicted, whatever becomes of its port.
pub fn of_probe(forms: &Forms, protocol: u8, port: u16) -> String {
    let own = match protocol {
        TCP => format!("(tcp and port {port})"),
        UDP => format!("(udp and port {port})"),
        ICMPV6 => format!("(icmp6 and ip6[44:2] = {port})"),
        _ => format!("(icmp and icmp[4:2] = {port})"),
    };
    match forms.filter() {
        filter if filter.is_empty() => own,
        filter => format!("{own} or {filter}"),
    }
}

fn links(ns: &NetNs) -> impl Iterator<Item = &Link> {
    ns.links.known().into_iter().flatten()
}

/// Addresses by which others reach a namespace.
fn addresses(ns: &NetNs) -> impl Iterator<Item = IpAddr> {
    let all = ns.addrs.known().into_iter().flatten();
    all.filter(|addr| addr.scope == 0).map(|addr| addr.local)
}

fn is_tunnel(link: &Link) -> bool {
    match &link.kind {
        LinkKind::Vxlan(_)
        | LinkKind::IpTunnel(_)
        | LinkKind::Wireguard(_)
        | LinkKind::Geneve(_)
        | LinkKind::Tun => true,
        LinkKind::Other(kind) => {
            ["sit", "ip6tnl", "gre", "gretap", "ip6gre", "geneve"].contains(&kind.as_str())
        }
        _ => false,
    }
}

/// Whether packets leave the node by it: it has a subnet of its own and is no bridge's port, or a default route.
fn is_uplink(ns: &NetNs, link: &Link) -> bool {
    if link.loopback {
        return false;
    }
    let mut routes = ns.routes.known().into_iter().flatten();
    let default = routes.any(|route| {
        let mut hops = route.nexthops.iter();
        route.dst.len() == 0 && hops.any(|hop| hop.link == Some(link.index))
    });
    let addrs = ns.addrs.known().into_iter().flatten();
    let subnet = addrs
        .filter(|addr| addr.link == link.index && addr.scope == 0)
        // The host's end of a routed pod's pair has an address alone.
        .any(|addr| addr.prefix_len < if addr.local.is_ipv6() { 128 } else { 32 });
    let inward =
        matches!(link.kind, LinkKind::Bridge(_) | LinkKind::Dummy) || link.master.is_some();
    default || subnet && !inward
}

/// Points that are collected.
struct Chosen {
    points: Points,
    tunnels: Tunnels,
}

impl Chosen {
    fn new(naming: &Naming<'_>) -> Self {
        Self {
            points: Points::new(),
            tunnels: Tunnels::of(naming.topology),
        }
    }

    fn add(&mut self, key: &NsKey, dev: &str, filter: &str, hosts: &[IpAddr]) {
        let list = self.points.entry(key.node.clone()).or_default();
        let there = |one: &Point| one.netns == key.netns && one.dev == dev;
        if !list.iter().any(there) {
            list.push(self.tunnels.point(key.netns, dev, filter, hosts));
        }
    }

    /// Devices of a namespace, and their other ends.
    fn pairs(
        &mut self,
        topology: &Topology,
        (key, ns): (&NsKey, &NetNs),
        filter: &str,
        hosts: &[IpAddr],
    ) {
        for link in links(ns).filter(|link| link.up && !link.loopback) {
            self.add(key, &link.name, filter, hosts);
            if let Peer::Found(at, index) = peer(topology, key, link)
                && let Some(other) = topology.netns(&at)
                && let Some(link) = other.link(index)
            {
                self.add(&at, &link.name, filter, hosts);
            }
        }
    }

    /// Uplinks and tunnels of a node's own namespace.
    fn outside(&mut self, key: &NsKey, ns: &NetNs, filter: &str, hosts: &[IpAddr]) {
        for link in links(ns).filter(|link| link.up && (is_tunnel(link) || is_uplink(ns, link))) {
            self.add(key, &link.name, filter, hosts);
        }
    }
}

/// The tunnels that may pass a device, whoever's they are: what is in them is looked into.
#[derive(Debug, Default)]
pub struct Tunnels {
    vxlan: BTreeSet<u16>,
    geneve: BTreeSet<u16>,
    ipip: bool,
    gre: bool,
}

impl Tunnels {
    /// Those of all devices that were read.
    pub fn of(topology: &Topology) -> Self {
        let mut all = Self::default();
        for link in topology.all().flat_map(|(_, ns)| links(ns)) {
            match &link.kind {
                LinkKind::Vxlan(own) => drop(all.vxlan.insert(own.port)),
                LinkKind::Geneve(own) => drop(all.geneve.insert(own.port)),
                LinkKind::IpTunnel(own) if own.kind == IpTunnelKind::Gre => all.gre = true,
                LinkKind::IpTunnel(_) => all.ipip = true,
                LinkKind::Other(kind) if kind == "ip6tnl" => all.ipip = true,
                LinkKind::Other(kind) if kind.contains("gre") => all.gre = true,
                _ => {}
            }
        }
        if all.vxlan.is_empty() {
            all.vxlan.extend(USUAL_VXLAN);
        }
        all
    }

    /// A device to watch.
    pub fn point(&self, netns: NetNsId, dev: &str, filter: &str, hosts: &[IpAddr]) -> Point {
        Point {
            netns,
            dev: dev.to_owned(),
            filter: filter.to_owned(),
            vxlan: self.vxlan.iter().copied().collect(),
            geneve: self.geneve.iter().copied().collect(),
            ipip: self.ipip,
            gre: self.gre,
            hosts: hosts.to_vec(),
            dropped: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpath::explain::ChainNames;
    use netpath::model::names::Names;
    use netpath::model::netns::NsIdentity;
    use netpath::model::packet::L4;
    use netpath::model::snapshot::NodeSnapshot;
    use netpath::model::{IfIndex, Section};

    fn packet(src: [u8; 4], dst: [u8; 4], sport: Option<u16>, dport: Option<u16>) -> Packet {
        Packet::new(
            src.into(),
            dst.into(),
            L4::Tcp {
                sport,
                dport,
                flags: 2,
            },
        )
    }

    #[test]
    fn a_flow_and_its_answer_are_one_form() {
        let mut forms = Forms::default();
        forms.add(&packet([10, 0, 0, 1], [10, 0, 0, 2], None, Some(80)));
        forms.add(&packet([10, 0, 0, 2], [10, 0, 0, 1], Some(80), None));
        assert_eq!(
            forms.filter(),
            "((tcp) and host 10.0.0.1 and host 10.0.0.2 and port 80) \
             or (icmp[icmptype] != 0 and icmp[icmptype] != 8 and dst host 10.0.0.1) \
             or (icmp[icmptype] != 0 and icmp[icmptype] != 8 and dst host 10.0.0.2)"
        );
        for last in 3..=u8::MAX {
            forms.add(&packet([10, 0, 0, 1], [10, 0, 0, last], None, Some(80)));
        }
        assert_eq!(forms.filter(), "host 10.0.0.1");
    }

    #[test]
    fn tunnels_that_nobody_looks_into_are_named() {
        let id = NetNsId { dev: 4, ino: 1 };
        let mut ns = NetNs::new(NsIdentity {
            id,
            host: true,
            pod_uid: None,
            paths: Vec::new(),
            processes: Vec::new(),
        });
        let link = |index: u32, name: &str| {
            let kind = LinkKind::Wireguard(Section::NotAsked);
            Link::new(IfIndex::new(index).expect("an index"), name, kind)
        };
        let mut down = link(4, "wg1");
        down.up = false;
        ns.links = Section::Known(vec![link(3, "wg0"), down]);
        let node = NodeSnapshot {
            node: "n1".to_owned(),
            kernel: String::new(),
            taken_at: 0,
            netns: [(id, ns)].into(),
        };
        let topology = Topology {
            nodes: [("n1".to_owned(), node)].into(),
            ..Topology::default()
        };
        let (names, chains) = (Names::default(), ChainNames::new());
        let naming = Naming {
            topology: &topology,
            names: &names,
            chains: &chains,
        };
        let told = |filter: &str| {
            let tunnels = Tunnels::of(&topology);
            let points = [(
                "n1".to_owned(),
                vec![tunnels.point(id, "eth0", filter, &[])],
            )];
            opaque(&naming, &points.into())
        };
        let [line] = told("icmp").try_into().expect("one line");
        assert!(line.contains("what wg0 encrypts"), "{line}");
        assert_eq!(told(""), [""; 0]);
    }

    #[test]
    fn a_typed_filter_narrows_and_stands_alone() {
        assert_eq!(both("host 10.0.0.1", ""), "host 10.0.0.1");
        assert_eq!(both("", "tcp or udp"), "tcp or udp");
        assert_eq!(
            both("host 10.0.0.1", "tcp or udp"),
            "(host 10.0.0.1) and (tcp or udp)"
        );
    }
}
