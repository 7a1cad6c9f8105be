//! A network namespace: what it is, who is in it, and what its kernel tables hold.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::addr::Addr;
use super::conntrack::{ConntrackEntry, ConntrackFlows, ConntrackStats, Tuple};
use super::fdb::FdbEntry;
use super::hashlimit::HashlimitTable;
use super::ipset::Ipset;
use super::ipvs::Ipvs;
use super::link::Link;
use super::neigh::Neigh;
use super::netfilter::{BaseChain, Ruleset};
use super::nfacct::NfAcct;
use super::nfqueue::NfQueue;
use super::recent::RecentList;
use super::route::Route;
use super::rule::Rule;
use super::socket::Socket;
use super::sysctl::Sysctls;
use super::xfrm::Xfrm;
use super::{IfIndex, NetNsId, Section};

/// One namespace with what was read of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetNs {
    /// Identity.
    pub identity: NsIdentity,
    /// Devices.
    pub links: Section<Vec<Link>>,
    /// Addresses.
    pub addrs: Section<Vec<Addr>>,
    /// Policy rules of both families, in the kernel's order.
    pub rules: Section<Vec<Rule>>,
    /// Routes of all tables and both families.
    pub routes: Section<Vec<Route>>,
    /// Neighbours of both families.
    pub neighs: Section<Vec<Neigh>>,
    /// Bridge and VXLAN forwarding entries.
    pub fdb: Section<Vec<FdbEntry>>,
    /// Ids that this namespace gives to others (RTM_GETNSID), for those namespaces that were found.
    pub nsids: Section<Vec<(i32, NetNsId)>>,
    /// Settings.
    pub sysctls: Section<Sysctls>,
    /// Sockets that wait for packets.
    pub sockets: Section<Vec<Socket>>,
    /// nf_tables.
    pub nft: Section<Ruleset>,
    /// Legacy x_tables.
    pub legacy: Section<Ruleset>,
    /// IPVS; `Known(None)`: no service is there, so that it does nothing.
    #[serde(default, deserialize_with = "super::ipvs::of_any_file")]
    pub ipvs: Section<Option<Ipvs>>,
    /// Tables whose rules are not read, by name: of legacy arptables (`arp filter`), and modules of legacy
    /// ebtables that are loaded (`ebtable_filter`).
    #[serde(default)]
    pub unread_tables: Section<Vec<String>>,
    /// Lists of recently seen addresses.
    #[serde(default)]
    pub recent: Section<Vec<RecentList>>,
    /// Tables of hashlimit.
    #[serde(default)]
    pub hashlimits: Section<Vec<HashlimitTable>>,
    /// Counters with names.
    #[serde(default)]
    pub nfacct: Section<Vec<NfAcct>>,
    /// Queues that programs listen on.
    #[serde(default)]
    pub nfqueues: Section<Vec<NfQueue>>,
    /// Names of all ipsets, where they were listed.
    #[serde(default)]
    pub ipset_names: Section<Vec<String>>,
    /// Ipsets that were asked for, by name.
    #[serde(default)]
    pub ipsets: BTreeMap<String, Section<Ipset>>,
    /// XFRM (IPsec) policies.
    #[serde(default)]
    pub xfrm: Section<Xfrm>,
    /// Conntrack entries that were asked for, by tuple and zone; `Known(None)`: there is none. Where
    /// a table was read: its entries, by the tuple and zone of their original direction.
    pub conntrack: Vec<(Tuple, u16, Section<Option<ConntrackEntry>>)>,
    /// Conntrack entries by their ends, where ports are not fixed, as they were asked for.
    #[serde(default)]
    pub conntrack_flows: Vec<(Tuple, Section<ConntrackFlows>)>,
    /// Number of entries of the conntrack table that were let pass, where that was read.
    #[serde(default)]
    pub conntrack_table: Section<u32>,
    /// Conntrack entries by their source, as they were asked for.
    #[serde(default)]
    pub conntrack_from: Vec<(Tuple, Section<Vec<ConntrackEntry>>)>,
    /// What conntrack counts; `Known(None)`: nothing is tracked.
    #[serde(default)]
    pub conntrack_stats: Section<Option<ConntrackStats>>,
}

impl NetNs {
    /// A namespace of which nothing was read yet.
    pub fn new(identity: NsIdentity) -> Self {
        Self {
            identity,
            links: Section::NotAsked,
            addrs: Section::NotAsked,
            rules: Section::NotAsked,
            routes: Section::NotAsked,
            neighs: Section::NotAsked,
            fdb: Section::NotAsked,
            nsids: Section::NotAsked,
            sysctls: Section::NotAsked,
            sockets: Section::NotAsked,
            nft: Section::NotAsked,
            legacy: Section::NotAsked,
            ipvs: Section::NotAsked,
            unread_tables: Section::NotAsked,
            recent: Section::NotAsked,
            hashlimits: Section::NotAsked,
            nfacct: Section::NotAsked,
            nfqueues: Section::NotAsked,
            ipset_names: Section::NotAsked,
            ipsets: BTreeMap::new(),
            xfrm: Section::NotAsked,
            conntrack: Vec::new(),
            conntrack_flows: Vec::new(),
            conntrack_table: Section::NotAsked,
            conntrack_from: Vec::new(),
            conntrack_stats: Section::NotAsked,
        }
    }

    /// Base chains of both backends, as far as they were read.
    pub fn base_chains(&self) -> impl Iterator<Item = &BaseChain> {
        let rulesets = [self.nft.known(), self.legacy.known()];
        let tables = rulesets
            .into_iter()
            .flatten()
            .flat_map(|rules| &rules.tables);
        let chains = tables.flat_map(|table| table.chains.values());
        chains.filter_map(|chain| chain.base.as_ref())
    }

    /// The device of this index, where the devices are known.
    pub fn link(&self, index: IfIndex) -> Option<&Link> {
        self.links.known()?.iter().find(|link| link.index == index)
    }

    /// The device of this name, where the devices are known.
    pub fn link_named(&self, name: &str) -> Option<&Link> {
        self.links.known()?.iter().find(|link| link.name == name)
    }
}

/// What a namespace is and how it was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NsIdentity {
    /// Identity on its node.
    pub id: NetNsId,
    /// Whether it is the node's own (that of pid 1 of the helper's pid namespace).
    pub host: bool,
    /// Pod UID found in the cgroup of a process in it; with dashes as the API spells it, or the 32
    /// hexadecimal digits of a static pod's hash.
    pub pod_uid: Option<String>,
    /// Files that keep it, as seen by the helper (`/run/netns/cni-...`).
    pub paths: Vec<String>,
    /// Processes in it, lowest pid first; at most some dozens are listed.
    pub processes: Vec<NsProcess>,
}

/// A process in a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NsProcess {
    /// Pid in the helper's pid namespace.
    pub pid: u32,
    /// `/proc/PID/comm`.
    pub comm: String,
    /// Container id (64 hexadecimal digits) from its cgroup.
    pub container_id: Option<String>,
}

impl NsIdentity {
    /// Short name for people: `host`, a `/run/netns` name, or the inode.
    pub fn label(&self) -> String {
        if self.host {
            return "host".to_owned();
        }
        let file_name = |path: &String| path.rsplit('/').next().map(str::to_owned);
        self.paths
            .first()
            .and_then(file_name)
            .unwrap_or_else(|| format!("net:[{}]", self.id.ino))
    }
}

/// Sections by name, for what could not be read.
pub type MissingSections = BTreeMap<String, String>;

impl NetNs {
    /// Sections that were asked for and can't be had, by name, with the reason.
    pub fn missing(&self) -> MissingSections {
        let all = [
            ("links", self.links.missing()),
            ("addrs", self.addrs.missing()),
            ("rules", self.rules.missing()),
            ("routes", self.routes.missing()),
            ("neigh", self.neighs.missing()),
            ("fdb", self.fdb.missing()),
            ("nsids", self.nsids.missing()),
            ("sysctls", self.sysctls.missing()),
            ("sockets", self.sockets.missing()),
            ("nftables", self.nft.missing()),
            ("iptables-legacy", self.legacy.missing()),
            ("ipvs", self.ipvs.missing()),
            ("arp_tables_names", self.unread_tables.missing()),
            ("xt_recent", self.recent.missing()),
            ("xt_hashlimit", self.hashlimits.missing()),
            ("nfnetlink_acct", self.nfacct.missing()),
            ("nfnetlink_queue", self.nfqueues.missing()),
            ("xfrm", self.xfrm.missing()),
            ("conntrack", self.conntrack_table.missing()),
            ("ipset", self.ipset_names.missing()),
        ];
        let sets = self.ipsets.iter();
        let sets = sets.filter_map(|(name, set)| Some((format!("ipset {name}"), set.missing()?)));
        all.into_iter()
            .filter_map(|(name, why)| Some((name.to_owned(), why?)))
            .chain(sets)
            .map(|(name, why)| (name, why.to_owned()))
            .collect()
    }
}
