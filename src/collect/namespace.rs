//! One namespace with its open sockets, and the reading of its sections.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::runtime::Runtime;

use super::error::{Error, Result};
use super::module::{Modules, Presence, Subsystem};
use super::netfilter::{closure, ipset, iptables};
use super::netlink::{Netlink, Protocol};
use super::netns::{Hopper, NsFile};
use super::rtnl::{Route, Session};
use super::{
    addr, bpf, bridge_vlan, conntrack, fdb, hashlimit, ipvs, link, neigh, nfacct, nfqueue, nsid,
    recent, route, rule, socket as sockets, sysctl, tc, wireguard, xfrm,
};
use crate::model::conntrack::{
    ConntrackEntry, ConntrackFilter, ConntrackFlows, ConntrackStats, Tuple,
};
use crate::model::hashlimit::HashlimitTable;
use crate::model::ipset::{Ipset, IpsetPart};
use crate::model::ipvs::{Ipvs, IpvsConn, IpvsConnKey, IpvsKey, IpvsService};
use crate::model::link::{Link, LinkKind};
use crate::model::netfilter::{Chain, Family, Ruleset};
use crate::model::netns::{NetNs, NsIdentity};
use crate::model::nfacct::NfAcct;
use crate::model::nfqueue::NfQueue;
use crate::model::recent::RecentList;
use crate::model::sysctl::Sysctls;
use crate::model::want::{Depth, Packets, Towards};
use crate::model::xfrm::Xfrm;
use crate::model::{NetNsId, Section};

/// IPPROTO_UDP
const UDP: u8 = 17;

/// The legacy table that was read last, and which that is.
pub type KeptBlob = ((NetNsId, bool, String), iptables::Blob);

/// How a namespace is read.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// How much of its rules.
    pub depth: Depth,
    /// What [`Depth::Likely`] may keep to.
    pub about: Option<&'a Packets>,
    /// When reading ends.
    pub deadline: Instant,
}

/// What all namespaces share.
pub struct Shared {
    /// Enters namespaces.
    pub hopper: Hopper,
    /// Drives `rtnetlink`.
    pub runtime: Runtime,
    /// Mount point of proc.
    pub proc: PathBuf,
    /// What may be asked.
    pub modules: Modules,
}

/// Open sockets of one namespace.
pub struct Namespace {
    file: NsFile,
    route: Route,
    raw: Netlink,
    netfilter: Option<Netlink>,
    diag: Option<Netlink>,
    xfrm: Option<Netlink>,
    /// With the number that the family IPVS has.
    generic: Option<(Netlink, u16)>,
    /// When it was last used.
    pub used: Instant,
}

/// What can only be read on a thread that entered the namespace.
pub struct Inside {
    sysctls: Sysctls,
    ipvs: Result<Option<Ipvs>>,
    recent: Result<Vec<RecentList>>,
    hashlimits: Result<Vec<HashlimitTable>>,
    nfqueues: Result<Vec<NfQueue>>,
    legacy: [Section<Vec<String>>; 2],
    unread_tables: Section<Vec<String>>,
    programs: Result<BTreeMap<u32, Vec<String>>>,
    /// PF_KEY is there, the other way to make XFRM policies.
    pfkey: bool,
}

impl Inside {
    /// Reads it in the calling thread's namespace.
    pub fn read(proc: &Path) -> Self {
        Self {
            sysctls: sysctl::read(proc),
            ipvs: ipvs::read(proc),
            recent: recent::read(proc),
            hashlimits: hashlimit::read(proc),
            nfqueues: nfqueue::read(proc),
            legacy: [
                sysctl::legacy_tables(proc, false),
                sysctl::legacy_tables(proc, true),
            ],
            unread_tables: sysctl::unread_tables(proc),
            programs: programs(),
            pfkey: proc.join("thread-self/net/pfkey").exists(),
        }
    }
}

/// BPF programs by device; BPF_PROG_QUERY looks devices up in the namespace of the thread.
fn programs() -> Result<BTreeMap<u32, Vec<String>>> {
    let mut socket = Netlink::open(Protocol::Route)?;
    let devices = link::indices(&mut socket)?;
    Ok(bpf::programs(&devices))
}

/// Sockets that were opened in one namespace.
pub struct Sockets {
    route: Route,
    raw: Netlink,
    netfilter: Option<Netlink>,
    diag: Option<Netlink>,
    xfrm: Option<Netlink>,
}

/// Which protocols the kernel has: a socket of another would make it load a module.
#[derive(Clone, Copy, Debug)]
pub struct Registered {
    netfilter: bool,
    diag: bool,
    xfrm: bool,
}

impl Registered {
    /// As it is now.
    pub fn of(modules: &Modules) -> Self {
        Self {
            netfilter: modules.registered(Protocol::Netfilter),
            diag: modules.registered(Protocol::SockDiag),
            xfrm: modules.registered(Protocol::Xfrm),
        }
    }
}

/// A socket of a protocol that the kernel has; `None`: it has none such.
fn open_registered(registered: bool, protocol: Protocol) -> Result<Option<Netlink>> {
    if !registered {
        return Ok(None);
    }
    match Netlink::open(protocol) {
        Err(error) if error.errno() == Some(libc::EPROTONOSUPPORT) => Ok(None),
        other => other.map(Some),
    }
}

impl Sockets {
    /// Opens them in the calling thread's namespace.
    pub fn open(runtime: &tokio::runtime::Handle, registered: Registered) -> Result<Self> {
        Ok(Self {
            route: Route::open(runtime)?,
            raw: Netlink::open(Protocol::Route)?,
            netfilter: open_registered(registered.netfilter, Protocol::Netfilter)?,
            diag: open_registered(registered.diag, Protocol::SockDiag)?,
            xfrm: open_registered(registered.xfrm, Protocol::Xfrm)?,
        })
    }
}

impl Namespace {
    /// Enters a namespace and opens its sockets.
    pub fn open(shared: &Shared, file: NsFile) -> Result<Self> {
        let handle = shared.runtime.handle().clone();
        let registered = Registered::of(&shared.modules);
        let sockets = shared
            .hopper
            .run(&file, move || Sockets::open(&handle, registered))??;
        Ok(Self::new(file, sockets))
    }

    /// A namespace with its sockets.
    pub fn new(file: NsFile, sockets: Sockets) -> Self {
        Self {
            file,
            route: sockets.route,
            raw: sockets.raw,
            netfilter: sockets.netfilter,
            diag: sockets.diag,
            xfrm: sockets.xfrm,
            generic: None,
            used: Instant::now(),
        }
    }

    /// The open namespace file.
    pub fn file(&self) -> &NsFile {
        &self.file
    }

    /// Whether a socket was left in the middle of an answer.
    pub fn is_broken(&self) -> bool {
        self.route.is_broken()
            || self.raw.is_broken()
            || [&self.netfilter, &self.diag, &self.xfrm]
                .into_iter()
                .flatten()
                .chain(self.generic.iter().map(|(socket, _)| socket))
                .any(Netlink::is_broken)
    }

    /// Ends reads that would go on after this time.
    pub fn set_deadline(&mut self, deadline: Instant) {
        let others = [&mut self.netfilter, &mut self.diag, &mut self.xfrm];
        let generic = self.generic.iter_mut().map(|(socket, _)| socket);
        let others = others.into_iter().flatten().chain(generic);
        for socket in others.chain([&mut self.raw]) {
            socket.set_deadline(Some(deadline));
        }
    }

    /// Reads all light sections, and rules to a depth. `others` are the namespaces that ids are asked for.
    pub fn read(
        &mut self,
        shared: &mut Shared,
        identity: NsIdentity,
        asked: Asked<'_>,
        inside: Result<Inside>,
        others: Result<Vec<NsFile>>,
    ) -> NetNs {
        let mut ns = NetNs::new(identity);
        let mut session = Session {
            runtime: &shared.runtime,
            route: &self.route,
            raw: &mut self.raw,
            deadline: asked.deadline,
        };
        let mut found = links(&mut session);
        if let Ok(links) = &mut found {
            let deadline = asked.deadline;
            bridge_vlan::complete(links, session.raw);
            wireguard::complete(links, || {
                let open = || Netlink::open(Protocol::Generic);
                let mut socket = shared.hopper.run(&self.file, open)??;
                socket.set_deadline(Some(deadline));
                Ok(socket)
            });
        }
        ns.addrs = addr::read(&mut session).into();
        ns.rules = rule::read(&mut session).into();
        ns.routes = route::read(&mut session).into();
        ns.neighs = neigh::read(&mut session).into();
        ns.fdb = fdb::read(&mut session).into();
        ns.nsids = others
            .and_then(|others| nsid::read(&mut self.raw, &others))
            .into();
        ns.sockets = self.sockets(shared).into();
        let about = asked.about.map(|about| with_tunnels(about, &found));
        let asked = Asked {
            about: about.as_ref(),
            ..asked
        };
        ns.nft = self.nft(shared, asked).into();
        ns.xfrm = self.xfrm(shared, &inside).into();
        ns.nfacct = self.nfacct(shared).into();
        if asked.depth == Depth::Full {
            self.all_ipsets(shared, &mut ns);
        }
        match inside {
            Ok(inside) => {
                ns.sysctls = Section::Known(inside.sysctls);
                let ipvs = inside.ipvs.and_then(|ipvs| self.ipvs(shared, ipvs, asked));
                ns.ipvs = ipvs.into();
                ns.recent = inside.recent.into();
                ns.hashlimits = inside.hashlimits.into();
                ns.nfqueues = inside.nfqueues.into();
                ns.unread_tables = inside.unread_tables;
                ns.legacy = self.legacy(shared, &inside.legacy, asked).into();
                if let (Ok(links), Ok(programs)) = (&mut found, &inside.programs) {
                    for link in links {
                        let programs = programs.get(&link.index.get());
                        link.tc.extend(programs.into_iter().flatten().cloned());
                    }
                }
                // What tc and BPF do is part of a device: without it the devices are not known.
                ns.links = found
                    .and_then(|links| inside.programs.map(|_| links))
                    .into();
            }
            Err(error) => {
                ns.sysctls = Section::Missing(error.to_string());
                ns.ipvs = Section::Missing(error.to_string());
                ns.recent = Section::Missing(error.to_string());
                ns.hashlimits = Section::Missing(error.to_string());
                ns.nfqueues = Section::Missing(error.to_string());
                ns.unread_tables = Section::Missing(error.to_string());
                ns.legacy = Section::Missing(error.to_string());
                ns.links = Section::Missing(error.to_string());
            }
        }
        ns
    }

    fn sockets(&mut self, shared: &mut Shared) -> Result<Vec<crate::model::socket::Socket>> {
        if shared.modules.presence(Subsystem::InetDiag) == Presence::Ask
            && let Some(socket) = &mut self.diag
        {
            match sockets::read(socket) {
                // No handler for the protocol: the kernel has no inet_diag.
                Err(error) if error.errno() == Some(libc::ENOENT) => {}
                other => return other,
            }
        }
        let proc = shared.proc.clone();
        shared
            .hopper
            .run(&self.file, move || sockets::read_files(&proc))?
    }

    /// The socket of a subsystem's protocol; `None`: the kernel has no such subsystem, which therefore
    /// holds nothing.
    fn ask(
        &mut self,
        shared: &mut Shared,
        subsystem: Subsystem,
        operation: &str,
    ) -> Result<Option<&mut Netlink>> {
        let (socket, protocol) = match subsystem {
            Subsystem::InetDiag => (&mut self.diag, Protocol::SockDiag),
            _ => (&mut self.netfilter, Protocol::Netfilter),
        };
        // A kernel without the protocol has none of its subsystems.
        if !shared.modules.registered(protocol) {
            return Ok(None);
        }
        match shared.modules.presence(subsystem) {
            Presence::Absent => return Ok(None),
            Presence::Unsure(why) => {
                return Err(Error::Unasked {
                    operation: operation.to_owned(),
                    module: subsystem.module(),
                    why,
                });
            }
            Presence::Ask => {}
        }
        if socket.is_none() {
            // Its module was loaded after the other sockets were opened.
            *socket = shared
                .hopper
                .run(&self.file, move || open_registered(true, protocol))??;
        }
        Ok(socket.as_mut())
    }

    /// Socket for nf_tables; `None`: the kernel has no nf_tables, so there are no rules.
    pub fn nf_tables(&mut self, shared: &mut Shared) -> Result<Option<&mut Netlink>> {
        self.ask(shared, Subsystem::NfTables, "read nf_tables")
    }

    /// Names the ipsets that rules refer to.
    pub fn name_sets<'a>(
        &mut self,
        shared: &mut Shared,
        chains: impl Iterator<Item = &'a mut Chain>,
    ) {
        let socket = match self.ask(shared, Subsystem::IpSet, "name ipsets") {
            Ok(Some(socket)) => Ok(socket),
            Ok(None) => Err("name ipsets: the kernel has no ipset".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        ipset::fill_names(socket, chains);
    }

    /// An ipset with its members, and those that a `list:set` names; `None` for those that are not there.
    pub fn ipsets(
        &mut self,
        shared: &mut Shared,
        name: &str,
    ) -> BTreeMap<String, Result<Option<Ipset>>> {
        let mut found = BTreeMap::new();
        let mut wanted = vec![name.to_owned()];
        while let Some(name) = wanted.pop() {
            if found.contains_key(&name) {
                continue;
            }
            let set = match self.ask(shared, Subsystem::IpSet, &format!("read ipset {name}")) {
                Ok(Some(socket)) => ipset::read(socket, &name, ipset::MOST),
                Ok(None) => Ok(None),
                Err(error) => Err(error),
            };
            let parts = set.iter().flatten().flat_map(|set| &set.members);
            wanted.extend(
                parts
                    .flat_map(|member| &member.parts)
                    .filter_map(|part| match part {
                        IpsetPart::Set(name) => Some(name.clone()),
                        _ => None,
                    }),
            );
            found.insert(name, set);
        }
        found
    }

    /// All ipsets.
    fn all_ipsets(&mut self, shared: &mut Shared, ns: &mut NetNs) {
        let names = match self.ask(shared, Subsystem::IpSet, "list the names of ipsets") {
            Ok(Some(socket)) => ipset::names(socket),
            Ok(None) => Ok(Vec::new()),
            Err(error) => Err(error),
        };
        for name in names.iter().flatten() {
            if !ns.ipsets.contains_key(name) {
                for (name, set) in self.ipsets(shared, name) {
                    // One that went meanwhile is none of them.
                    if let Some(set) = set.transpose() {
                        ns.ipsets.insert(name, set.into());
                    }
                }
            }
        }
        ns.ipset_names = names.into();
    }

    /// Counters with names; none where the kernel has no such.
    fn nfacct(&mut self, shared: &mut Shared) -> Result<Vec<NfAcct>> {
        let Some(socket) = self.ask(shared, Subsystem::NfAcct, nfacct::OPERATION)? else {
            return Ok(Vec::new());
        };
        match nfacct::read(socket) {
            // A kernel that loads no modules and has no such subsystem says so (nfnetlink_rcv_msg()).
            Err(error) if error.errno() == Some(libc::EINVAL) => Ok(Vec::new()),
            other => other,
        }
    }

    /// XFRM policies; none where the kernel has nothing that could make them.
    fn xfrm(&mut self, shared: &mut Shared, inside: &Result<Inside>) -> Result<Xfrm> {
        if self.xfrm.is_none() && shared.modules.registered(Protocol::Xfrm) {
            self.xfrm = shared
                .hopper
                .run(&self.file, || open_registered(true, Protocol::Xfrm))??;
        }
        match &mut self.xfrm {
            Some(socket) => xfrm::read(socket),
            None if inside.as_ref().is_ok_and(|inside| !inside.pfkey) => Ok(Xfrm::default()),
            None => Err(Error::Module {
                operation: "list xfrm policies".to_owned(),
                module: "xfrm_user",
            }),
        }
    }

    fn nft(&mut self, shared: &mut Shared, asked: Asked<'_>) -> Result<Ruleset> {
        let mut ruleset = match self.nf_tables(shared)? {
            None => Ruleset::default(),
            Some(socket) => closure::ruleset(socket, asked.depth, asked.about)?,
        };
        let tables = ruleset.tables.iter_mut();
        self.name_sets(shared, tables.flat_map(|table| table.chains.values_mut()));
        Ok(ruleset)
    }

    fn legacy(
        &mut self,
        shared: &mut Shared,
        names: &[Section<Vec<String>>; 2],
        asked: Asked<'_>,
    ) -> Result<Ruleset> {
        let mut ruleset = Ruleset::default();
        for (v6, names) in [false, true].into_iter().zip(names) {
            let names = match names {
                Section::Known(names) => names,
                Section::Missing(why) => {
                    return Err(Error::malformed("list x_tables tables", why.clone()));
                }
                Section::NotAsked => continue,
            };
            if names.is_empty() {
                continue;
            }
            let socket = self.raw_socket(shared, v6)?;
            let family = if v6 { Family::Ip6 } else { Family::Ip };
            let rules = match asked.depth {
                Depth::Identity | Depth::NoRules => false,
                Depth::Likely => closure::meets(family, asked.about),
                Depth::Full => true,
            };
            for name in names {
                if !rules && let Some(table) = iptables::outline(&socket, v6, name)? {
                    ruleset.tables.push(table);
                    continue;
                }
                let blob = iptables::read(&socket, v6, name)?;
                let table = closure::legacy_table(&blob, asked.depth, asked.about)?;
                ruleset.tables.push(table);
            }
        }
        let tables = ruleset.tables.iter_mut();
        self.name_sets(shared, tables.flat_map(|table| table.chains.values_mut()));
        Ok(ruleset)
    }

    /// One chain of a legacy table with those it leads to; `None` where there is none such.
    pub fn legacy_chain(
        &mut self,
        shared: &mut Shared,
        (v6, table): (bool, &str),
        chain: &str,
        about: Option<&Packets>,
        kept: &mut Option<KeptBlob>,
    ) -> Result<Option<BTreeMap<String, Chain>>> {
        let key = (self.file.id(), v6, table.to_owned());
        if kept.as_ref().is_none_or(|(own, _)| *own != key) {
            // One at a time: a table may take a hundred megabytes.
            *kept = None;
            let blob = self.legacy_blob(shared, v6, table)?;
            *kept = blob.map(|blob| (key, blob));
        }
        let Some((_, blob)) = kept else {
            return Ok(None);
        };
        if blob.head(chain).is_none() {
            return Ok(None);
        }
        let mut chains = closure::legacy_reached(blob, vec![chain.to_owned()], about)?;
        self.name_sets(shared, chains.values_mut());
        Ok(Some(chains))
    }

    /// A legacy table; `None` where there is none such.
    fn legacy_blob(
        &mut self,
        shared: &mut Shared,
        v6: bool,
        table: &str,
    ) -> Result<Option<iptables::Blob>> {
        let proc = shared.proc.clone();
        let listed = shared
            .hopper
            .run(&self.file, move || sysctl::legacy_tables(&proc, v6))?;
        match listed {
            Section::Known(names) if names.iter().any(|known| known == table) => {
                let socket = self.raw_socket(shared, v6)?;
                iptables::read(&socket, v6, table).map(Some)
            }
            Section::Missing(why) => Err(Error::malformed("list x_tables tables", why)),
            _ => Ok(None),
        }
    }

    fn raw_socket(&self, shared: &Shared, v6: bool) -> Result<File> {
        let family = if v6 {
            AddressFamily::Inet6
        } else {
            AddressFamily::Inet
        };
        let open = move || {
            socket(
                family,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC,
                SockProtocol::Raw,
            )
            .map(File::from)
            .map_err(|errno| Error::nix("open a raw socket for x_tables", errno))
        };
        shared.hopper.run(&self.file, open)?
    }

    /// What IPVS holds of what a request is about.
    fn ipvs(
        &mut self,
        shared: &mut Shared,
        found: Option<Ipvs>,
        asked: Asked<'_>,
    ) -> Result<Option<Ipvs>> {
        let Some(mut ipvs) = found else {
            return Ok(None);
        };
        if asked.depth == Depth::Full {
            let services = self.ipvs_services(shared)?.into_iter();
            let keyed = services.map(|service| (service.key, Section::Known(Some(service))));
            ipvs.services = keyed.collect();
            ipvs.complete = true;
            return Ok(Some(ipvs));
        }
        for to in asked.about.map_or(&[][..], |about| &about.to) {
            if let Some((protocol, port)) = to.service {
                let key = IpvsKey::Address(protocol, to.addr, port);
                ipvs.services
                    .push((key, self.ipvs_service(shared, &key).into()));
            }
        }
        Ok(Some(ipvs))
    }

    /// The generic netlink socket, and the number of IPVS there; `None`: the kernel has no IPVS.
    fn ipvs_socket(&mut self, shared: &Shared) -> Result<Option<(&mut Netlink, u16)>> {
        if self.generic.is_none() {
            let proc = shared.proc.clone();
            // Only asked where it is: asking would load it.
            let opened = shared.hopper.run(&self.file, move || {
                let there = ipvs::read(&proc)?.is_some();
                there.then(|| Netlink::open(Protocol::Generic)).transpose()
            })??;
            let Some(mut socket) = opened else {
                return Ok(None);
            };
            let Some(family) = ipvs::family(&mut socket)? else {
                return Ok(None);
            };
            self.generic = Some((socket, family));
        }
        Ok(self
            .generic
            .as_mut()
            .map(|(socket, family)| (socket, *family)))
    }

    /// An IPVS service with its servers.
    pub fn ipvs_service(
        &mut self,
        shared: &mut Shared,
        key: &IpvsKey,
    ) -> Result<Option<IpvsService>> {
        match self.ipvs_socket(shared)? {
            Some((socket, family)) => ipvs::find(socket, family, key),
            None => Ok(None),
        }
    }

    /// All IPVS services.
    pub fn ipvs_services(&mut self, shared: &mut Shared) -> Result<Vec<IpvsService>> {
        match self.ipvs_socket(shared)? {
            Some((socket, family)) => ipvs::all(socket, family),
            None => Ok(Vec::new()),
        }
    }

    /// An IPVS connection.
    pub fn ipvs_conn(
        &mut self,
        shared: &mut Shared,
        key: &IpvsConnKey,
    ) -> Result<Option<IpvsConn>> {
        let (proc, key) = (shared.proc.clone(), *key);
        shared
            .hopper
            .run(&self.file, move || ipvs::connection(&proc, &key))?
    }

    /// The conntrack entry of a tuple.
    pub fn conntrack(
        &mut self,
        shared: &mut Shared,
        tuple: &Tuple,
        zone: u16,
    ) -> Result<Option<ConntrackEntry>> {
        match self.ctnetlink(shared, "look up a conntrack entry")? {
            Some(socket) => conntrack::find(socket, tuple, zone),
            None => Ok(None),
        }
    }

    /// Conntrack entries between two ends.
    pub fn conntrack_flows(
        &mut self,
        shared: &mut Shared,
        tuple: &Tuple,
    ) -> Result<ConntrackFlows> {
        match self.ctnetlink(shared, "look up conntrack entries")? {
            Some(socket) => conntrack::between(socket, tuple),
            None => Ok(ConntrackFlows::default()),
        }
    }

    /// Conntrack entries that have this source.
    pub fn conntrack_from(
        &mut self,
        shared: &mut Shared,
        tuple: &Tuple,
    ) -> Result<Vec<ConntrackEntry>> {
        match self.ctnetlink(shared, "look up conntrack entries")? {
            Some(socket) => conntrack::from(socket, tuple),
            None => Ok(Vec::new()),
        }
    }

    /// What conntrack counts; `None`: the kernel tracks nothing.
    pub fn conntrack_stats(&mut self, shared: &mut Shared) -> Result<Option<ConntrackStats>> {
        match self.ctnetlink(shared, "read conntrack's counts")? {
            Some(socket) => conntrack::stats::read(socket).map(Some),
            None => Ok(None),
        }
    }

    /// The conntrack entries that a filter lets pass, where there are not too many.
    pub fn conntrack_table(
        &mut self,
        shared: &mut Shared,
        filter: &ConntrackFilter,
    ) -> Result<Vec<ConntrackEntry>> {
        match self.ctnetlink(shared, "dump the conntrack table")? {
            Some(socket) => conntrack::table(socket, filter, conntrack::MOST),
            None => Ok(Vec::new()),
        }
    }

    /// Socket for conntrack; `None`: the kernel tracks nothing.
    fn ctnetlink(&mut self, shared: &mut Shared, operation: &str) -> Result<Option<&mut Netlink>> {
        if !tracked(&shared.proc) {
            return Ok(None);
        }
        if let Some(socket) = self.ask(shared, Subsystem::Conntrack, operation)? {
            return Ok(Some(socket));
        }
        Err(Error::Module {
            operation: operation.to_owned(),
            module: Subsystem::Conntrack.module(),
        })
    }
}

/// Whether the kernel tracks connections at all.
fn tracked(proc: &Path) -> bool {
    proc.join("sys/net/netfilter/nf_conntrack_max").exists()
}

/// The packets, and what carries them where tunnels start here.
fn with_tunnels(about: &Packets, links: &Result<Vec<Link>>) -> Packets {
    let kinds = links.iter().flatten().map(|link| &link.kind);
    let ports = kinds.filter_map(|kind| match kind {
        LinkKind::Vxlan(vxlan) => Some((UDP, vxlan.port)),
        _ => None,
    });
    let mut more = about.clone();
    for service in ports {
        let ends = about.to.iter().filter(|to| to.service.is_none());
        more.to.extend(ends.map(|to| Towards {
            addr: to.addr,
            service: Some(service),
        }));
    }
    more
}

/// Devices with the filters of tc.
fn links(session: &mut Session<'_>) -> Result<Vec<Link>> {
    let mut links = link::read(session)?;
    let mut filters = match tc::read(session.raw) {
        // A kernel without traffic control (CONFIG_NET_SCHED) has none of it.
        Err(error) if error.errno() == Some(libc::EOPNOTSUPP) => BTreeMap::default(),
        read => read?,
    };
    for link in &mut links {
        let found = filters.remove(&link.index.get()).unwrap_or_default();
        (link.tc, link.qdiscs) = (found.filters, found.qdiscs);
    }
    Ok(links)
}
