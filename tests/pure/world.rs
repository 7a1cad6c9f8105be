//! Small worlds made by hand: namespaces, veth pairs, bridges, routes.

use std::net::IpAddr;

use netpath::model::addr::Addr;
use netpath::model::fdb::FdbEntry;
use netpath::model::link::{Bridge, BridgePort, Inet6Conf, InetConf, Link, LinkKind, PortState};
use netpath::model::neigh::{Neigh, NeighState};
use netpath::model::netfilter::Ruleset;
use netpath::model::netns::{NetNs, NsIdentity};
use netpath::model::route::{
    NextHop, RT_TABLE_DEFAULT, RT_TABLE_LOCAL, RT_TABLE_MAIN, Route, RouteKind,
};
use netpath::model::rule::Rule;
use netpath::model::socket::Socket;
use netpath::model::sysctl::Sysctls;
use netpath::model::topology::Topology;
use netpath::model::{IfIndex, MacAddr, NetNsId, NsKey, Prefix, Section};
use netpath::simulate::{Flow, Limits, Outcome, simulate};

pub struct World {
    pub topology: Topology,
}

pub fn key(node: &str, ino: u64) -> NsKey {
    NsKey {
        node: node.to_owned(),
        netns: NetNsId { dev: 4, ino },
    }
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

pub fn index(number: u32) -> IfIndex {
    IfIndex::new(number).expect("not zero")
}

pub fn mac(ns: u64, dev: u32) -> MacAddr {
    let (ns, dev) = (
        u8::try_from(ns).expect("small"),
        u8::try_from(dev).expect("small"),
    );
    MacAddr([2, 0, 0, 0, ns, dev])
}

impl World {
    pub fn new() -> Self {
        Self {
            topology: Topology::default(),
        }
    }

    pub fn ns(&mut self, node: &str, ino: u64, host: bool) -> NsKey {
        let id = NetNsId { dev: 4, ino };
        let mut ns = NetNs::new(NsIdentity {
            id,
            host,
            pod_uid: None,
            paths: vec![format!("/run/netns/ns{ino}")],
            processes: Vec::new(),
        });
        let rule = |v6, priority, table| Rule::bare(v6, priority, table);
        ns.rules = Section::Known(vec![
            rule(false, 0, RT_TABLE_LOCAL),
            rule(false, 32766, RT_TABLE_MAIN),
            rule(false, 32767, RT_TABLE_DEFAULT),
            rule(true, 0, RT_TABLE_LOCAL),
            rule(true, 32766, RT_TABLE_MAIN),
        ]);
        ns.links = Section::Known(Vec::new());
        ns.addrs = Section::Known(Vec::new());
        ns.routes = Section::Known(Vec::new());
        ns.neighs = Section::Known(Vec::new());
        ns.fdb = Section::Known(Vec::new());
        ns.nsids = Section::Known(Vec::new());
        ns.sockets = Section::Known(Vec::new());
        ns.nft = Section::Known(Ruleset::default());
        ns.legacy = Section::Known(Ruleset::default());
        ns.ipvs = Section::Known(None);
        ns.recent = Section::Known(Vec::new());
        ns.hashlimits = Section::Known(Vec::new());
        ns.nfqueues = Section::Known(Vec::new());
        ns.nfacct = Section::Known(Vec::new());
        ns.unread_tables = Section::Known(Vec::new());
        ns.sysctls = Section::Known(Sysctls {
            inet_all: Section::Known(InetConf {
                forwarding: host,
                ..InetConf::default()
            }),
            inet6_all: Section::Known(Inet6Conf {
                forwarding: host,
                ..Inet6Conf::default()
            }),
            bridge_nf_call_iptables: Section::Known(Some(false)),
            bridge_nf_call_ip6tables: Section::Known(Some(false)),
            bridge_nf_filter_vlan_tagged: Section::Known(Some(false)),
            ip_default_ttl: Section::Known(64),
            ip_forward_use_pmtu: Section::Known(false),
            icmp_echo_ignore_all: Section::Known(false),
            icmp6_echo_ignore_all: Section::Known(Some(false)),
            ..Sysctls::default()
        });
        let node_facts = self
            .topology
            .nodes
            .entry(node.to_owned())
            .or_insert_with(|| netpath::model::snapshot::NodeSnapshot::new(node));
        node_facts.netns.insert(id, ns);
        let key = key(node, ino);
        self.link(&key, 1, "lo", LinkKind::Device, |link| {
            link.loopback = true;
            link.mac = Some(MacAddr::ZERO);
            link.mtu = 65536;
        });
        self.addr(&key, 1, "127.0.0.1", 8);
        key
    }

    pub fn get(&mut self, ns: &NsKey) -> &mut NetNs {
        let node = self.topology.nodes.get_mut(&ns.node).expect("a node");
        node.netns.get_mut(&ns.netns).expect("a namespace")
    }

    pub fn link(
        &mut self,
        ns: &NsKey,
        dev: u32,
        name: &str,
        kind: LinkKind,
        change: impl Fn(&mut Link),
    ) {
        let host = self.get(ns).identity.host;
        let mut link = Link {
            mac: Some(mac(ns.netns.ino, dev)),
            inet: Some(InetConf {
                forwarding: host,
                ..InetConf::default()
            }),
            inet6: Some(Inet6Conf::default()),
            ..Link::new(index(dev), name, kind)
        };
        change(&mut link);
        self.get(ns).links.known_mut().expect("links").push(link);
    }

    pub fn change(&mut self, ns: &NsKey, dev: u32, change: impl Fn(&mut Link)) {
        let links = self.get(ns).links.known_mut().expect("links");
        change(
            links
                .iter_mut()
                .find(|link| link.index == index(dev))
                .expect("a link"),
        );
    }

    /// A veth pair between two namespaces of one node.
    pub fn veth(&mut self, a: (&NsKey, u32, &str), b: (&NsKey, u32, &str)) {
        for ((ns, dev, name), (peer_ns, peer, _)) in [(a, b), (b, a)] {
            let id = if ns == peer_ns {
                None
            } else {
                Some(self.nsid(ns, peer_ns))
            };
            self.link(ns, dev, name, LinkKind::Veth, |link| {
                link.link = Some(index(peer));
                link.link_netnsid = id;
            });
        }
    }

    pub fn nsid(&mut self, ns: &NsKey, other: &NsKey) -> i32 {
        let ids = self.get(ns).nsids.known_mut().expect("nsids");
        if let Some((id, _)) = ids.iter().find(|(_, ns)| *ns == other.netns) {
            return *id;
        }
        let id = i32::try_from(ids.len()).expect("few");
        ids.push((id, other.netns));
        id
    }

    pub fn bridge(&mut self, ns: &NsKey, dev: u32, name: &str, ports: &[u32]) {
        self.link(ns, dev, name, LinkKind::Bridge(Bridge::default()), |_| {});
        for port in ports {
            self.change(ns, *port, |link| {
                link.master = Some(index(dev));
                link.port = Some(BridgePort {
                    state: PortState::Forwarding,
                    hairpin: false,
                    isolated: false,
                    learning: true,
                    unicast_flood: true,
                    bcast_flood: true,
                    proxy_arp: false,
                    neigh_suppress: false,
                    locked: false,
                    number: None,
                });
            });
        }
    }

    pub fn addr(&mut self, ns: &NsKey, dev: u32, addr: &str, len: u8) {
        let local = ip(addr);
        let scope = if local.is_loopback() { 254 } else { 0 };
        self.get(ns).addrs.known_mut().expect("addrs").push(Addr {
            link: index(dev),
            local,
            prefix_len: len,
            peer: None,
            scope,
            secondary: false,
            tentative: false,
            dadfailed: false,
            deprecated: false,
            nodad: true,
        });
        let to_us = if local.is_loopback() && local.is_ipv4() {
            8
        } else {
            u8::MAX
        };
        let to_us = if to_us == 8 {
            Prefix::new(local, 8).expect("a prefix")
        } else {
            Prefix::host(local)
        };
        self.route_in(
            ns,
            RT_TABLE_LOCAL,
            RouteKind::Local,
            to_us,
            None,
            dev,
            Some(local),
        );
        if !local.is_loopback() {
            let subnet = Prefix::new(local, len).expect("a prefix");
            let prefsrc = local.is_ipv4().then_some(local);
            self.route_in(
                ns,
                RT_TABLE_MAIN,
                RouteKind::Unicast,
                subnet,
                None,
                dev,
                prefsrc,
            );
        }
    }

    pub fn route(&mut self, ns: &NsKey, dst: &str, via: &str, dev: u32) {
        let dst = dst.parse().expect("a prefix");
        self.route_in(
            ns,
            RT_TABLE_MAIN,
            RouteKind::Unicast,
            dst,
            Some(ip(via)),
            dev,
            None,
        );
    }

    #[allow(clippy::too_many_arguments)]
    fn route_in(
        &mut self,
        ns: &NsKey,
        table: u32,
        kind: RouteKind,
        dst: Prefix,
        via: Option<IpAddr>,
        dev: u32,
        prefsrc: Option<IpAddr>,
    ) {
        self.get(ns)
            .routes
            .known_mut()
            .expect("routes")
            .push(Route {
                table,
                dst,
                src: None,
                tos: 0,
                metric: 0,
                kind,
                scope: match (kind, via) {
                    (RouteKind::Local, _) => 254,
                    (_, None) => 253,
                    _ => 0,
                },
                // RTPROT_KERNEL, RTPROT_BOOT
                protocol: if kind == RouteKind::Local { 2 } else { 3 },
                prefsrc,
                nexthops: vec![NextHop {
                    via,
                    link: Some(index(dev)),
                    weight: 1,
                    dead: false,
                    linkdown: false,
                    onlink: false,
                    encap: None,
                }],
                nh_id: None,
                mtu: None,
                pref: 0,
                realm: None,
                unknown: Vec::new(),
            });
    }

    pub fn neigh(&mut self, ns: &NsKey, dev: u32, dst: &str, lladdr: MacAddr) {
        self.get(ns)
            .neighs
            .known_mut()
            .expect("neighs")
            .push(Neigh {
                link: index(dev),
                dst: ip(dst),
                lladdr: Some(lladdr),
                state: NeighState::Permanent,
                proxy: false,
            });
    }

    pub fn fdb(&mut self, ns: &NsKey, dev: u32, mac: MacAddr, dst: &str) {
        self.get(ns).fdb.known_mut().expect("fdb").push(FdbEntry {
            link: index(dev),
            master: None,
            mac,
            vlan: None,
            own: true,
            permanent: true,
            sticky: false,
            ext_learned: false,
            nexthop: None,
            dst: Some(ip(dst)),
            port: None,
            vni: None,
            via: None,
        });
    }

    pub fn listen(&mut self, ns: &NsKey, protocol: u8, addr: &str, port: u16) {
        self.get(ns)
            .sockets
            .known_mut()
            .expect("sockets")
            .push(Socket {
                protocol,
                addr: ip(addr),
                port,
                v6only: Some(false),
                listening: true,
                remote: None,
                bound_dev: None,
                bound_dev_unread: false,
                backlog: None,
                transparent: None,
                uid: 0,
                inode: 1,
            });
    }

    pub fn tcp(&self, from: &NsKey, dst: &str, port: u16) -> Outcome {
        let flow = Flow {
            from: from.clone(),
            src: None,
            sport: None,
            dst: ip(dst),
            dport: Some(port),
            protocol: 6,
            len: 60,
            uid: Some(0),
            gid: Some(0),
            bound: None,
        };
        simulate(&self.topology, &flow, &Limits::default())
    }
}
