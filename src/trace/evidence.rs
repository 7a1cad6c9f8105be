//! Kernel objects that decide, copied as they were read.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::model::conntrack::ConntrackEntry;
use crate::model::fdb::FdbEntry;
use crate::model::ipvs::{IpvsKey, IpvsServer, IpvsService};
use crate::model::neigh::Neigh;
use crate::model::netfilter::{Backend, ChainKind, Counters, Family, Hook, Policy};
use crate::model::route::Route;
use crate::model::rule::Rule;
use crate::model::socket::Socket;
use crate::model::xfrm::XfrmPolicy;

/// An object, or its absence, that decided a step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "object", rename_all = "kebab-case")]
pub enum Evidence {
    /// A policy rule.
    PolicyRule {
        /// The rule.
        rule: Rule,
    },
    /// A route, with the names of its devices in the order of its next hops.
    Route {
        /// The route.
        route: Route,
        /// Device names.
        devs: Vec<String>,
    },
    /// A neighbour entry.
    Neigh {
        /// The entry.
        neigh: Neigh,
        /// Device name.
        dev: String,
    },
    /// A forwarding entry of a bridge or VXLAN device.
    Fdb {
        /// The entry.
        fdb: FdbEntry,
        /// Name of its port or device.
        dev: String,
    },
    /// A device.
    Link {
        /// Name.
        dev: String,
        /// What of it counts, as `ip -d link` words: `down`, `mtu 1450`, `hairpin off`.
        state: String,
    },
    /// A base chain that a packet went through, or its policy.
    Chain {
        /// Which.
        chain: ChainRef,
        /// Its policy, where that decided.
        policy: Option<Policy>,
        /// Packets that met the policy.
        counters: Option<Counters>,
    },
    /// A rule. The last one in a step decided; those before it led there.
    NetfilterRule {
        /// Its base chain.
        base: ChainRef,
        /// Chain it is in.
        chain: String,
        /// Handle; in x_tables its position from 1.
        handle: u64,
        /// Rule as `iptables-save` or `nft list` would word it, as far as that is possible.
        text: String,
        /// Comment.
        comment: Option<String>,
        /// Packets and bytes, where it counts.
        counters: Option<Counters>,
    },
    /// An element of a set or map.
    SetElement {
        /// Set.
        set: String,
        /// Element in words.
        text: String,
    },
    /// A conntrack entry that existed or that this packet makes.
    Conntrack {
        /// The entry.
        entry: ConntrackEntry,
        /// It was in the kernel's table when it was read; made by this flow otherwise.
        existing: bool,
    },
    /// A server that IPVS chose for a new connection.
    IpvsServer {
        /// Virtual service.
        service: IpvsKey,
        /// Its scheduler.
        scheduler: String,
        /// Server.
        server: IpvsServer,
    },
    /// A virtual service of which no server takes new connections.
    IpvsService {
        /// With its servers.
        service: IpvsService,
    },
    /// A setting.
    Sysctl {
        /// Name with dots.
        name: String,
        /// Value.
        value: String,
    },
    /// An XFRM policy.
    XfrmPolicy {
        /// The policy.
        policy: XfrmPolicy,
    },
    /// A socket.
    Socket {
        /// The socket.
        socket: Socket,
    },
    /// An address of this namespace.
    Address {
        /// Address.
        addr: IpAddr,
        /// Device it is on.
        dev: String,
    },
    /// Queues that rules hand packets to and no program listens on.
    UnheardQueue {
        /// The first.
        num: u16,
        /// The last.
        last: u16,
    },
    /// Something that would have decided and is not there.
    Absent {
        /// What was looked for.
        what: String,
    },
    /// Taken to be so without a kernel object that says it.
    Assumed {
        /// Why.
        why: String,
    },
    /// Could not be read or decoded.
    Unreadable {
        /// What, where and why.
        what: String,
    },
}

impl Evidence {
    /// A rule's name: its place and what it says.
    pub fn rule(&self) -> Option<String> {
        match self {
            Self::NetfilterRule {
                base,
                chain,
                handle,
                text,
                ..
            } => Some(format!("rule {handle} of {} {chain}: {text}", base.table)),
            _ => None,
        }
    }
}

/// A base chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChainRef {
    /// Backend.
    pub backend: Backend,
    /// Family of its table.
    pub family: Family,
    /// Table.
    pub table: String,
    /// Chain.
    pub chain: String,
    /// Hook.
    pub hook: Hook,
    /// Priority.
    pub priority: i32,
    /// Type.
    pub kind: ChainKind,
}
