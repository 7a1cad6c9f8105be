//! Rules of nf_tables and x_tables in one shape, as `nft list ruleset` and `iptables-save` show them.
//!
//! Read first: include/uapi/linux/netfilter/nf_tables.h (v6.12). A legacy x_tables rule is the same
//! [`Rule`] with [`Expr::Header`], [`Expr::Match`] and [`Expr::Target`]; iptables-nft mixes these with
//! native expressions in one rule.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Section;

mod expr;
mod object;
mod set;

pub use expr::{
    BitwiseOp, CmpOp, CtKey, Expr, Exthdr, FibResult, Log, MetaKey, PayloadBase, Reg, Verdict,
};
pub use object::{Expectation, Object, ObjectState};
pub use set::{Elements, Set, SetData, SetDecl, SetElem, SetFlags};

/// All rules of one backend in one namespace, or as much of them as was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ruleset {
    /// nf_tables generation they were read at (NFTA_GEN_ID); `None` for x_tables.
    pub generation: Option<u32>,
    /// Tables, in the kernel's order.
    pub tables: Vec<Table>,
}

/// Which subsystem holds a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Backend {
    /// nf_tables: `nft`, `iptables-nft`.
    Nft,
    /// x_tables: `iptables-legacy`.
    Legacy,
}

/// Protocol family of a table (NFPROTO_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Family {
    /// 1: both IPv4 and IPv6.
    Inet,
    /// 2
    Ip,
    /// 3
    Arp,
    /// 5
    Netdev,
    /// 7
    Bridge,
    /// 10
    Ip6,
}

impl Family {
    /// The word `nft` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Arp => "arp",
            Self::Netdev => "netdev",
            Self::Bridge => "bridge",
            Self::Ip6 => "ip6",
        }
    }
}

/// One table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// Backend.
    pub backend: Backend,
    /// Family.
    pub family: Family,
    /// Name (NFTA_TABLE_NAME).
    pub name: String,
    /// NFT_TABLE_F_DORMANT: its chains are not hooked.
    pub dormant: bool,
    /// Chains that were read, by name. Whether others exist is told by `chains_complete`.
    pub chains: BTreeMap<String, Chain>,
    /// All chains of the table are in `chains` (their rules may still be unread).
    pub chains_complete: bool,
    /// Sets and maps that were read, by name.
    pub sets: BTreeMap<String, Set>,
    /// All sets of the table are in `sets` (their elements may still be unread).
    pub sets_complete: bool,
    /// Flowtables by name.
    pub flowtables: BTreeMap<String, Flowtable>,
    /// Stateful objects, where the whole table was read.
    #[serde(default)]
    pub objects: Vec<Object>,
    /// Comment (NFTA_TABLE_USERDATA).
    #[serde(default)]
    pub comment: Option<String>,
}

/// A flowtable: packets of flows that it holds skip rules.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flowtable {
    /// Devices that feed it.
    pub devices: Vec<String>,
    /// Priority at their ingress hook.
    #[serde(default)]
    pub priority: i32,
    /// NFT_FLOWTABLE_*: 1 by the device's hardware, 2 with counters.
    #[serde(default)]
    pub flags: u32,
}

/// One chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chain {
    /// Name.
    pub name: String,
    /// Handle (NFTA_CHAIN_HANDLE); 0 for x_tables.
    pub handle: u64,
    /// Where it is hooked, for a base chain.
    pub base: Option<BaseChain>,
    /// Rules in order.
    pub rules: Section<Vec<Rule>>,
    /// `Some`: of a long chain, only rules that packets to some destinations can match.
    #[serde(default)]
    pub sieved: Option<Sieved>,
    /// Comment (NFTA_CHAIN_USERDATA).
    #[serde(default)]
    pub comment: Option<String>,
    /// NFT_CHAIN_BINDING: belongs to the one rule that leads to it.
    #[serde(default)]
    pub bound: bool,
}

/// What was left out of a chain's rules. Each of these rules needs another destination, and neither
/// tracks connections nor does anything before it looks at the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sieved {
    /// Destinations for which the rules are as good as all.
    pub to: Vec<IpAddr>,
    /// Rules that were left out.
    pub left_out: u32,
}

/// What makes a chain a base chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BaseChain {
    /// Hook.
    pub hook: Hook,
    /// Lower runs first (NFTA_HOOK_PRIORITY).
    pub priority: i32,
    /// Type.
    pub kind: ChainKind,
    /// Verdict for packets that reach the end.
    pub policy: Policy,
    /// Devices it is bound to (ingress and egress); empty is all.
    pub devices: Vec<String>,
    /// Packets and bytes that met the policy, where the chain counts them.
    pub counters: Option<Counters>,
}

/// Packets and bytes since the rule was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// A netfilter hook (NF_INET_*, NF_BR_*, NF_NETDEV_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Hook {
    /// Before routing.
    Prerouting,
    /// For this host.
    Input,
    /// Through this host.
    Forward,
    /// From this host.
    Output,
    /// After routing.
    Postrouting,
    /// At a device, on the way in.
    Ingress,
    /// At a device, on the way out.
    Egress,
}

impl Hook {
    /// The word `nft` uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// Type of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChainKind {
    /// Filter.
    Filter,
    /// NAT: consulted by the first packet of a flow only.
    Nat,
    /// Route: local packets are routed again when mark or addresses change.
    Route,
}

/// Verdict at the end of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// Accept.
    Accept,
    /// Drop.
    Drop,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// Handle (NFTA_RULE_HANDLE); for x_tables, the position in its chain from 1.
    pub handle: u64,
    /// Expressions, run in order until one does not match.
    pub exprs: Vec<Expr>,
    /// Comment from user data or the `comment` match.
    pub comment: Option<String>,
}
