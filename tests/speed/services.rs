//! Rules of many Services, three endpoints each, in the shapes that kube-proxy writes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use netpath::model::conntrack::NatRange;
use netpath::model::netfilter::{
    Backend, BaseChain, Chain, ChainKind, CmpOp, Counters, Elements, Expr, Family, Hook, MetaKey,
    PayloadBase, Policy, Reg, Rule, Ruleset, Set, SetData, SetDecl, SetElem, SetFlags, Table,
    Verdict,
};
use netpath::model::netns::{NetNs, NsIdentity};
use netpath::model::packet::{L4, Packet};
use netpath::model::snapshot::NodeSnapshot;
use netpath::model::topology::Topology;
use netpath::model::xtables::{HeaderMatch, Statistic, XtMatch, XtTarget};
use netpath::model::{NetNsId, NsKey, Section};

/// Who wrote the rules.
#[derive(Clone, Copy, Debug)]
pub enum Proxy {
    Nftables,
    IptablesNft,
    IptablesLegacy,
}

pub const PROXIES: [Proxy; 3] = [Proxy::Nftables, Proxy::IptablesNft, Proxy::IptablesLegacy];
const ENDPOINTS: u32 = 3;
const PORT: u16 = 80;
/// Loads the destination address.
const TO: (PayloadBase, u32, u32) = (PayloadBase::Network, 16, 4);
const TO_PORT: (PayloadBase, u32, u32) = (PayloadBase::Transport, 2, 2);

pub fn key() -> NsKey {
    NsKey {
        node: "n1".to_owned(),
        netns: NetNsId { dev: 4, ino: 1 },
    }
}

fn service(number: u32) -> [u8; 4] {
    (0x0a60_0000_u32 + 10 + number).to_be_bytes()
}

fn endpoint(number: u32, which: u32) -> [u8; 4] {
    (0x0af4_0000_u32 + number * ENDPOINTS + which).to_be_bytes()
}

/// The first packet of a connection from this node to a Service.
pub fn packet(number: u32) -> Packet {
    Packet::new(
        Ipv4Addr::new(10, 88, 0, 11).into(),
        IpAddr::from(service(number)),
        L4::Tcp {
            sport: None,
            dport: Some(PORT),
            flags: 2,
        },
    )
}

/// One node whose rules have this many Services.
pub fn topology(proxy: Proxy, services: u32) -> Topology {
    let mut ns = NetNs::new(NsIdentity {
        id: key().netns,
        host: true,
        pod_uid: None,
        paths: Vec::new(),
        processes: Vec::new(),
    });
    let table = match proxy {
        Proxy::Nftables => nftables(services),
        Proxy::IptablesNft => iptables(services, Backend::Nft),
        Proxy::IptablesLegacy => iptables(services, Backend::Legacy),
    };
    let (mut nft, mut legacy) = (Ruleset::default(), Ruleset::default());
    match table.backend {
        Backend::Nft => nft.tables.push(table),
        Backend::Legacy => legacy.tables.push(table),
    }
    (ns.nft, ns.legacy) = (Section::Known(nft), Section::Known(legacy));
    ns.ipvs = Section::Known(None);
    let mut node = NodeSnapshot::new("n1");
    node.netns.insert(key().netns, ns);
    let mut topology = Topology::default();
    topology.nodes.insert("n1".to_owned(), node);
    topology
}

fn table(backend: Backend, name: &str, chains: Vec<Chain>, sets: Vec<Set>) -> Table {
    Table {
        backend,
        family: Family::Ip,
        name: name.to_owned(),
        dormant: false,
        chains: chains.into_iter().map(|c| (c.name.clone(), c)).collect(),
        chains_complete: true,
        sets: sets.into_iter().map(|s| (s.name.clone(), s)).collect(),
        sets_complete: true,
        flowtables: BTreeMap::new(),
        objects: Vec::new(),
        comment: None,
    }
}

fn chain(name: &str, base: Option<BaseChain>, rules: Vec<Vec<Expr>>) -> Chain {
    let rule = |(exprs, handle)| Rule {
        handle,
        exprs,
        comment: None,
    };
    Chain {
        name: name.to_owned(),
        handle: 1,
        base,
        rules: Section::Known(rules.into_iter().zip(1..).map(rule).collect()),
        sieved: None,
        comment: None,
        bound: false,
    }
}

fn output() -> BaseChain {
    BaseChain {
        hook: Hook::Output,
        priority: -100,
        kind: ChainKind::Nat,
        policy: Policy::Accept,
        devices: Vec::new(),
        counters: None,
    }
}

fn load((base, offset, len): (PayloadBase, u32, u32), dreg: Reg) -> Expr {
    Expr::Payload {
        base,
        offset,
        len,
        dreg,
    }
}

fn protocol(dreg: Reg) -> Expr {
    Expr::Meta {
        key: MetaKey::L4proto,
        dreg,
    }
}

fn is(sreg: Reg, data: &[u8]) -> Expr {
    Expr::Cmp {
        op: CmpOp::Eq,
        sreg,
        data: data.to_vec(),
    }
}

fn jump(name: String) -> Expr {
    Expr::Verdict(Verdict::Jump(name))
}

fn goto(name: String) -> SetData {
    SetData::Verdict(Verdict::Goto(name))
}

fn elem(key: Vec<u8>, data: SetData) -> SetElem {
    SetElem {
        key,
        key_end: None,
        interval_end: false,
        catchall: false,
        data: Some(data),
        comment: None,
        expires_ms: None,
        timeout_ms: None,
        exprs: Vec::new(),
    }
}

fn map(name: String, key_len: u32, elements: Vec<SetElem>) -> Set {
    let flags = SetFlags {
        map: true,
        ..SetFlags::default()
    };
    Set {
        name,
        flags,
        key_len,
        field_lens: Vec::new(),
        data_len: 0,
        elements: Elements::Known(elements),
        decl: SetDecl::default(),
    }
}

/// One verdict map for all Services, one map of endpoints for each.
fn nftables(services: u32) -> Table {
    let look_up = |set: String, sreg| Expr::Lookup {
        set,
        sreg,
        dreg: Some(0),
        inverted: false,
    };
    let dispatch = vec![
        load(TO, 4),
        protocol(5),
        load(TO_PORT, 6),
        look_up("service-ips".to_owned(), 4),
    ];
    let mut chains = vec![
        chain(
            "nat-output",
            Some(output()),
            vec![vec![jump("services".to_owned())]],
        ),
        chain("services", None, vec![dispatch]),
    ];
    let mut sets = Vec::new();
    let mut all = Vec::new();
    for number in 0..services {
        let name = format!("service-{number:08}-ns/svc/tcp/http");
        let mut key = service(number).to_vec();
        key.extend([6, 0, 0, 0, 0, 80, 0, 0]);
        all.push(elem(key, goto(name.clone())));
        let choose = Expr::Numgen {
            dreg: 4,
            modulus: ENDPOINTS,
            offset: 0,
            random: true,
        };
        let anonymous = format!("__map{number}");
        let mut choices = Vec::new();
        for which in 0..ENDPOINTS {
            let end = format!("endpoint-{number:08}-{which}");
            let to = Expr::Immediate {
                dreg: 4,
                data: endpoint(number, which).to_vec(),
            };
            let port = Expr::Immediate {
                dreg: 5,
                data: PORT.to_be_bytes().to_vec(),
            };
            let dnat = Expr::Nat {
                source: false,
                v6: false,
                addr_min: Some(4),
                addr_max: None,
                proto_min: Some(5),
                proto_max: None,
                flags: 3,
            };
            chains.push(chain(
                &end,
                None,
                vec![vec![protocol(4), is(4, &[6]), to, port, dnat]],
            ));
            choices.push(elem(which.to_le_bytes().to_vec(), goto(end)));
        }
        sets.push(map(anonymous.clone(), 4, choices));
        chains.push(chain(
            &name,
            None,
            vec![vec![choose, look_up(anonymous, 4)]],
        ));
    }
    sets.push(map("service-ips".to_owned(), 12, all));
    table(Backend::Nft, "kube-proxy", chains, sets)
}

/// A rule for each Service in one chain, a chain for each and one for each endpoint.
fn iptables(services: u32, backend: Backend) -> Table {
    let counter = || Expr::Counter(Counters::default());
    let standard = |name: String| match backend {
        Backend::Nft => jump(name),
        Backend::Legacy => Expr::Target(XtTarget::Standard(Verdict::Jump(name))),
    };
    let legacy = |to: Option<[u8; 4]>| {
        Expr::Header(Box::new(HeaderMatch {
            src: None,
            dst: to.map(|to| (to.into(), Ipv4Addr::BROADCAST.into(), false)),
            iif: None,
            oif: None,
            proto: to.map(|_| (6, false)),
            fragment: None,
        }))
    };
    let tcp = |dports| {
        Expr::Match(XtMatch::Tcp {
            sports: (0, u16::MAX),
            dports,
            flag_mask: 0,
            flag_cmp: 0,
            option: 0,
            invert: 0,
        })
    };
    let mut dispatch = Vec::new();
    let mut chains = vec![chain(
        "OUTPUT",
        Some(output()),
        vec![vec![counter(), standard("KUBE-SERVICES".to_owned())]],
    )];
    for number in 0..services {
        let name = format!("KUBE-SVC-{number:016}");
        let comment = Expr::Match(XtMatch::Comment(format!("ns/svc-{number} cluster IP")));
        let mut rule = match backend {
            Backend::Nft => vec![
                load(TO, 4),
                is(4, &service(number)),
                protocol(4),
                is(4, &[6]),
                comment,
            ],
            Backend::Legacy => vec![legacy(Some(service(number))), comment],
        };
        rule.extend([tcp((PORT, PORT)), counter(), standard(name.clone())]);
        dispatch.push(rule);
        let mut choices = Vec::new();
        for which in 0..ENDPOINTS {
            let end = format!("KUBE-SEP-{number:012}{which:04}");
            let mut rule = Vec::new();
            if which + 1 < ENDPOINTS {
                let probability = (1_u32 << 31) / (ENDPOINTS - which);
                rule.push(Expr::Match(XtMatch::Statistic(Statistic::Random {
                    probability,
                    invert: false,
                })));
            }
            rule.extend([counter(), standard(end.clone())]);
            choices.push(rule);
            let to: IpAddr = endpoint(number, which).into();
            let dnat = Expr::Target(XtTarget::Dnat(NatRange {
                flags: 3,
                addrs: Some((to, to)),
                ports: Some((PORT, PORT)),
                base: 0,
            }));
            chains.push(chain(
                &end,
                None,
                vec![vec![tcp((0, u16::MAX)), counter(), dnat]],
            ));
        }
        chains.push(chain(&name, None, choices));
    }
    chains.push(chain("KUBE-SERVICES", None, dispatch));
    table(backend, "nat", chains, Vec::new())
}
