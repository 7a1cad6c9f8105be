//! Answers wants with facts, and keeps namespaces open between requests.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::counters;
use super::discovery::{Discovery, Found, Roots};
use super::error::{Error, Result};
use super::module::Modules;
use super::namespace::{Asked, Inside, KeptBlob, Namespace, Registered, Shared, Sockets};
use super::netfilter::{closure, set};
use super::netns::{Hopper, NsFile};
use crate::model::capture::Counts;
use crate::model::netfilter::{Backend, Chain, Family, Set};
use crate::model::netns::NetNs;
use crate::model::want::{Depth, Fact, NsTarget, Packets, Want};
use crate::model::{NetNsId, Section};

/// Namespaces that stay open between requests. An open one is kept alive, so not for long.
const MOST_OPEN: usize = 64;
/// Namespaces that are entered in one go.
const AT_ONCE: usize = 32;
/// How long an unused namespace stays open.
const OPEN_FOR: Duration = Duration::from_secs(60);
/// Longest time for conntrack's statistics.
const COUNTING: Duration = Duration::from_secs(2);

/// Reads one node's kernel.
pub struct Collector {
    roots: Roots,
    shared: Shared,
    open: BTreeMap<NetNsId, Namespace>,
}

/// What is known while one request is answered.
struct Request {
    discovery: Option<Discovery>,
    files: Option<Vec<NsFile>>,
    deadline: Instant,
    about: Option<Packets>,
    blob: Option<KeptBlob>,
}

impl Collector {
    /// Starts the threads that reading needs. `roots` says where proc and namespace files are.
    pub fn new(roots: Roots) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(|error| Error::io("start the runtime of rtnetlink", &error))?;
        let kernel = nix::sys::utsname::uname()
            .map_err(|errno| Error::nix("read the kernel's release", errno))?;
        Ok(Self {
            shared: Shared {
                hopper: Hopper::start()?,
                runtime,
                proc: roots.proc.clone(),
                modules: Modules::new(&roots.proc, &kernel.release().to_string_lossy()),
            },
            roots,
            open: BTreeMap::new(),
        })
    }

    /// Answers wants, all at once.
    pub fn collect(&mut self, wants: &[Want], within: Duration) -> Vec<Fact> {
        let mut facts = Vec::new();
        self.each(wants, within, |fact| facts.push(fact));
        facts
    }

    /// Answers wants one fact at a time; what is not read within the time is missing by name.
    pub fn each(&mut self, wants: &[Want], within: Duration, mut answer: impl FnMut(Fact)) {
        let mut request = Request {
            discovery: None,
            files: None,
            deadline: Instant::now() + within,
            blob: None,
            about: wants.iter().find_map(|want| match want {
                Want::About(packets) => Some(packets.clone()),
                _ => None,
            }),
        };
        self.namespaces(wants, &mut request, &mut answer);
        for want in wants {
            match want {
                Want::NetNs { .. } | Want::About(_) => {}
                Want::Chain {
                    netns,
                    backend,
                    family,
                    table,
                    chain,
                } => self.chain(
                    &mut request,
                    *netns,
                    *backend,
                    *family,
                    table,
                    chain,
                    &mut answer,
                ),
                Want::Set {
                    netns,
                    family,
                    table,
                    set,
                } => {
                    let found = self.with(&mut request, *netns, |ns, shared| {
                        match ns.nf_tables(shared)? {
                            Some(socket) => closure::whole_set(socket, *family, table, set),
                            None => Ok(None),
                        }
                    });
                    answer(set_fact(*netns, *family, table, set, found.into()));
                }
                Want::SetElem {
                    netns,
                    family,
                    table,
                    set,
                    key,
                } => {
                    let elem = self.with(&mut request, *netns, |ns, shared| {
                        match ns.nf_tables(shared)? {
                            Some(socket) => set::element_by_key(socket, *family, table, set, key),
                            None => Ok(None),
                        }
                    });
                    answer(Fact::SetElem {
                        netns: *netns,
                        family: *family,
                        table: table.clone(),
                        set: set.clone(),
                        key: key.clone(),
                        elem: elem.into(),
                    });
                }
                Want::Conntrack { netns, tuple, zone } => {
                    let entry = self.with(&mut request, *netns, |ns, shared| {
                        ns.conntrack(shared, tuple, *zone)
                    });
                    answer(Fact::Conntrack {
                        netns: *netns,
                        tuple: *tuple,
                        zone: *zone,
                        entry: entry.into(),
                    });
                }
                Want::ConntrackFlows { netns, tuple } => {
                    let flows = self.with(&mut request, *netns, |ns, shared| {
                        ns.conntrack_flows(shared, tuple)
                    });
                    answer(Fact::ConntrackFlows {
                        netns: *netns,
                        tuple: *tuple,
                        flows: flows.into(),
                    });
                }
                Want::Ipset { netns, set } => {
                    let fact = |name, set| Fact::Ipset {
                        netns: *netns,
                        name,
                        set,
                    };
                    let found =
                        self.with(
                            &mut request,
                            *netns,
                            |ns, shared| Ok(ns.ipsets(shared, set)),
                        );
                    match found {
                        Ok(sets) => sets
                            .into_iter()
                            .for_each(|(name, set)| answer(fact(name, set.into()))),
                        Err(error) => {
                            answer(fact(set.clone(), Section::Missing(error.to_string())));
                        }
                    }
                }
                Want::IpvsService { netns, key } => {
                    let service = self.with(&mut request, *netns, |ns, shared| {
                        ns.ipvs_service(shared, key)
                    });
                    answer(Fact::IpvsService {
                        netns: *netns,
                        key: *key,
                        service: service.into(),
                    });
                }
                Want::IpvsConn { netns, key } => {
                    let conn =
                        self.with(&mut request, *netns, |ns, shared| ns.ipvs_conn(shared, key));
                    answer(Fact::IpvsConn {
                        netns: *netns,
                        key: *key,
                        conn: conn.into(),
                    });
                }
                Want::Ipvs { target } => match self.find(&mut request, target) {
                    Ok(ids) => {
                        for netns in ids {
                            let services = self.with(&mut request, netns, Namespace::ipvs_services);
                            answer(Fact::Ipvs {
                                netns,
                                services: services.into(),
                            });
                        }
                    }
                    Err(why) => answer(Fact::NoNetNs {
                        target: target.clone(),
                        why,
                    }),
                },
                Want::ConntrackTable { target, filter } => {
                    self.of_each(&mut request, target, &mut answer, |own, request, netns| {
                        let table = |ns: &mut Namespace, shared: &mut Shared| {
                            ns.conntrack_table(shared, filter)
                        };
                        Fact::ConntrackTable {
                            netns,
                            entries: own.with(request, netns, table).into(),
                        }
                    });
                }
                Want::ConntrackStats { target } => {
                    self.of_each(&mut request, target, &mut answer, |own, request, netns| {
                        Fact::ConntrackStats {
                            netns,
                            stats: own.with(request, netns, Namespace::conntrack_stats).into(),
                        }
                    });
                }
                Want::ConntrackFrom { netns, tuple } => {
                    let entries = self.with(&mut request, *netns, |ns, shared| {
                        ns.conntrack_from(shared, tuple)
                    });
                    answer(Fact::ConntrackFrom {
                        netns: *netns,
                        tuple: *tuple,
                        entries: entries.into(),
                    });
                }
            }
        }
        self.tidy();
    }

    /// Answers of the namespaces that a target names.
    fn of_each(
        &mut self,
        request: &mut Request,
        target: &NsTarget,
        answer: &mut impl FnMut(Fact),
        ask: impl Fn(&mut Self, &mut Request, NetNsId) -> Fact,
    ) {
        let ids = match self.find(request, target) {
            Ok(ids) => ids,
            Err(why) => {
                answer(Fact::NoNetNs {
                    target: target.clone(),
                    why,
                });
                return;
            }
        };
        for netns in ids {
            answer(ask(self, request, netns));
            self.tidy();
        }
    }

    /// An open file of a namespace, for who works inside it.
    pub fn namespace_file(&mut self, id: NetNsId) -> Result<NsFile> {
        let mut request = Request {
            discovery: None,
            files: None,
            deadline: Instant::now(),
            about: None,
            blob: None,
        };
        self.file(&mut request, id)
    }

    /// What a namespace counts now.
    pub fn counts(&mut self, id: NetNsId) -> Result<Counts> {
        let file = self.namespace_file(id)?;
        let proc = self.shared.proc.clone();
        let mut counts = self
            .shared
            .hopper
            .run(&file, move || counters::read(&proc))?;
        let target = NsTarget::Id(id);
        for fact in self.collect(&[Want::ConntrackStats { target }], COUNTING) {
            let Fact::ConntrackStats { stats, .. } = fact else {
                continue;
            };
            match stats {
                Section::Known(stats) => counters::add_conntrack(&mut counts, stats.as_ref()),
                Section::Missing(why) => counts.missing.push(why),
                Section::NotAsked => {}
            }
        }
        Ok(counts)
    }

    /// The thread that enters namespaces.
    pub fn hopper(&self) -> &Hopper {
        &self.shared.hopper
    }

    /// Closes namespaces that were not used lately, or whose sockets are in the middle of an answer.
    fn tidy(&mut self) {
        self.open
            .retain(|_, ns| !ns.is_broken() && ns.used.elapsed() < OPEN_FOR);
        while self.open.len() > MOST_OPEN {
            let oldest = self
                .open
                .iter()
                .min_by_key(|(_, ns)| ns.used)
                .map(|(id, _)| *id);
            let Some(oldest) = oldest else { return };
            self.open.remove(&oldest);
        }
    }

    fn namespaces(&mut self, wants: &[Want], request: &mut Request, answer: &mut impl FnMut(Fact)) {
        let targets: Vec<(&NsTarget, Depth)> = wants
            .iter()
            .filter_map(|want| match want {
                Want::NetNs { target, depth } => Some((target, *depth)),
                _ => None,
            })
            .collect();
        if targets.is_empty() {
            return;
        }
        // Each namespace is sent once, as deep as any want asks.
        let mut wanted: BTreeMap<NetNsId, Depth> = BTreeMap::new();
        let mut named: BTreeMap<NetNsId, &NsTarget> = BTreeMap::new();
        for (target, depth) in targets {
            match self.find(request, target) {
                Ok(ids) => {
                    let problems = match discovery(&self.roots, request) {
                        Ok(found) if *target == NsTarget::All => found.problems.join("; "),
                        _ => String::new(),
                    };
                    if !problems.is_empty() {
                        // There may be more than were found.
                        answer(Fact::NoNetNs {
                            target: NsTarget::All,
                            why: problems,
                        });
                    }
                    for id in ids {
                        if *target != NsTarget::All {
                            named.insert(id, target);
                        }
                        let entry = wanted.entry(id).or_insert(depth);
                        *entry = depth.max(*entry);
                    }
                }
                Err(why) => answer(Fact::NoNetNs {
                    target: target.clone(),
                    why,
                }),
            }
        }
        let wanted: Vec<(NetNsId, Depth)> = wanted.into_iter().collect();
        for some in wanted.chunks(AT_ONCE) {
            let entered = some.iter().filter(|(_, depth)| *depth != Depth::Identity);
            let mut inside = self.enter(request, entered.map(|(id, _)| *id).collect());
            for (id, depth) in some {
                let inside = inside.remove(id);
                match (self.namespace(request, *id, *depth, inside), named.get(id)) {
                    (Ok(ns), _) => answer(Fact::NetNs(Box::new(ns))),
                    // Pods come and go: what ended between the listing and its turn is named as gone.
                    (Err(why), target) => answer(Fact::NoNetNs {
                        target: target.map_or(NsTarget::Id(*id), |target| (*target).clone()),
                        why,
                    }),
                }
            }
            self.tidy();
        }
    }

    /// Enters namespaces one after the other, opens those that are not open, and reads what can only be
    /// read inside.
    fn enter(
        &mut self,
        request: &mut Request,
        ids: Vec<NetNsId>,
    ) -> BTreeMap<NetNsId, Result<Inside>> {
        let mut found = BTreeMap::new();
        let mut files = Vec::new();
        for id in ids {
            match self.file(request, id) {
                Ok(file) => files.push(file),
                Err(error) => {
                    found.insert(id, Err(error));
                }
            }
        }
        let missing: Vec<bool> = files
            .iter()
            .map(|file| !self.open.contains_key(&file.id()))
            .collect();
        let (handle, proc) = (
            self.shared.runtime.handle().clone(),
            self.shared.proc.clone(),
        );
        let registered = Registered::of(&self.shared.modules);
        let entered = self.shared.hopper.run_each(files.clone(), move |at| {
            let open = missing.get(at).is_some_and(|missing| *missing);
            let sockets = open
                .then(|| Sockets::open(&handle, registered))
                .transpose()?;
            Ok((sockets, Inside::read(&proc)))
        });
        // Where the thread is gone, each namespace says so when it is read.
        let Ok(entered) = entered else {
            return found;
        };
        for (file, result) in files.into_iter().zip(entered) {
            let id = file.id();
            let inside = result.and_then(|inner| inner).map(|(sockets, inside)| {
                if let Some(sockets) = sockets {
                    self.open.insert(id, Namespace::new(file, sockets));
                }
                inside
            });
            found.insert(id, inside);
        }
        found
    }

    /// The open file of a namespace, whether its sockets are open or not.
    fn file(&mut self, request: &mut Request, id: NetNsId) -> Result<NsFile> {
        if self.open.get(&id).is_some_and(Namespace::is_broken) {
            self.open.remove(&id);
        }
        if let Some(ns) = self.open.get(&id) {
            return Ok(ns.file().clone());
        }
        let found = discovery(&self.roots, request)?
            .namespaces
            .get(&id)
            .cloned();
        let gone = || {
            let operation = format!("open network namespace net:[{}]", id.ino);
            Error::Gone { operation }
        };
        self.roots.open(&found.ok_or_else(gone)?)
    }

    /// Identities of the namespaces that fit a target, or why there are none.
    fn find(
        &mut self,
        request: &mut Request,
        target: &NsTarget,
    ) -> std::result::Result<Vec<NetNsId>, String> {
        let roots = &self.roots;
        let discovery = discovery(roots, request).map_err(|error| error.to_string())?;
        let all = || discovery.namespaces.values();
        let ids = |found: Vec<&Found>| found.iter().map(|ns| ns.id).collect::<Vec<_>>();
        let found = match target {
            NsTarget::All => ids(all().collect()),
            NsTarget::Host => ids(all().filter(|ns| ns.host).collect()),
            NsTarget::Id(id) => ids(all().filter(|ns| ns.id == *id).collect()),
            NsTarget::Pid(pid) => ids(all().filter(|ns| ns.pids.contains(pid)).collect()),
            NsTarget::PodUid(uid) => ids(all()
                .filter(|ns| ns.pod_uid.as_ref() == Some(uid))
                .collect()),
            NsTarget::Named(name) => {
                let named = |ns: &&Found| {
                    ns.paths
                        .iter()
                        .any(|path| path.file_name().is_some_and(|file| file == &**name))
                };
                ids(all().filter(named).collect())
            }
        };
        if !found.is_empty() {
            return Ok(found);
        }
        Err(why_not(roots, discovery, target))
    }

    /// One namespace with its sections; `Err`: it has ended.
    fn namespace(
        &mut self,
        request: &mut Request,
        id: NetNsId,
        depth: Depth,
        inside: Option<Result<Inside>>,
    ) -> std::result::Result<NetNs, String> {
        let identity = discovery(&self.roots, request)
            .ok()
            .and_then(|discovery| discovery.namespaces.get(&id))
            .map(|found| self.roots.identity(found));
        // The identity was just found by discovery; without it there would be nothing to read.
        let identity = identity.unwrap_or_else(|| crate::model::netns::NsIdentity {
            id,
            host: false,
            pod_uid: None,
            paths: Vec::new(),
            processes: Vec::new(),
        });
        if depth == Depth::Identity {
            return Ok(NetNs::new(identity));
        }
        let inside = inside.unwrap_or_else(|| {
            let operation = format!("enter network namespace net:[{}]", id.ino);
            Err(Error::malformed(
                operation,
                "the thread that enters namespaces ended",
            ))
        });
        if let Err(error @ Error::Gone { .. }) = &inside {
            return Err(error.to_string());
        }
        let others = self.others(request);
        let (deadline, about) = (request.deadline, request.about.clone());
        let read = self.with(request, id, |ns, shared| {
            let asked = Asked {
                depth,
                about: about.as_ref(),
                deadline,
            };
            Ok(ns.read(shared, identity.clone(), asked, inside, others))
        });
        match read {
            Err(error @ Error::Gone { .. }) => Err(error.to_string()),
            Err(error) => Ok(all_missing(NetNs::new(identity), &error)),
            Ok(ns) => Ok(ns),
        }
    }

    /// Files of all namespaces, for their ids. One that went away meanwhile is left out.
    fn others(&mut self, request: &mut Request) -> Result<Vec<NsFile>> {
        if let Some(files) = &request.files {
            return Ok(files.clone());
        }
        let roots = &self.roots;
        let mut files = Vec::new();
        for ns in discovery(roots, request)?.namespaces.values() {
            match roots.open(ns) {
                Ok(file) => files.push(file),
                Err(error) if matches!(error.errno(), Some(libc::EMFILE | libc::ENFILE)) => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        request.files = Some(files.clone());
        Ok(files)
    }

    /// Does work in an open namespace, opening it first where needed.
    fn with<T>(
        &mut self,
        request: &mut Request,
        id: NetNsId,
        work: impl FnOnce(&mut Namespace, &mut Shared) -> Result<T>,
    ) -> Result<T> {
        let file = self.file(request, id)?;
        if !self.open.contains_key(&id) {
            self.open.insert(id, Namespace::open(&self.shared, file)?);
        }
        let Some(ns) = self.open.get_mut(&id) else {
            return Err(Error::malformed(
                "open network namespace",
                "it was not kept",
            ));
        };
        ns.used = Instant::now();
        ns.set_deadline(request.deadline);
        work(ns, &mut self.shared)
    }

    #[allow(clippy::too_many_arguments, reason = "the fields of Want::Chain")]
    fn chain(
        &mut self,
        request: &mut Request,
        netns: NetNsId,
        backend: Backend,
        family: Family,
        table: &str,
        name: &str,
        answer: &mut impl FnMut(Fact),
    ) {
        let (mut blob, about) = (request.blob.take(), request.about.clone());
        let about = about.as_ref();
        let found = self.with(request, netns, |ns, shared| match backend {
            Backend::Nft => {
                let Some(socket) = ns.nf_tables(shared)? else {
                    return Ok(None);
                };
                let mut found = closure::chain(socket, family, table, name, about)?;
                if let Some((chains, _)) = &mut found {
                    ns.name_sets(shared, chains.values_mut());
                }
                Ok(found)
            }
            Backend::Legacy => {
                let chains = ns.legacy_chain(
                    shared,
                    (family == Family::Ip6, table),
                    name,
                    about,
                    &mut blob,
                )?;
                Ok(chains.map(|chains| (chains, BTreeMap::new())))
            }
        });
        request.blob = blob;
        let fact = |name: String, chain: Section<Option<Chain>>| Fact::Chain {
            netns,
            backend,
            family,
            table: table.to_owned(),
            name,
            chain,
        };
        match found {
            Err(error) => answer(fact(name.to_owned(), Section::Missing(error.to_string()))),
            Ok(None) => answer(fact(name.to_owned(), Section::Known(None))),
            Ok(Some((chains, sets))) => {
                for (name, chain) in chains {
                    answer(fact(name, Section::Known(Some(chain))));
                }
                for (name, set) in sets {
                    answer(set_fact(
                        netns,
                        family,
                        table,
                        &name,
                        Section::Known(Some(set)),
                    ));
                }
            }
        }
    }
}

fn set_fact(
    netns: NetNsId,
    family: Family,
    table: &str,
    name: &str,
    set: Section<Option<Set>>,
) -> Fact {
    Fact::Set {
        netns,
        family,
        table: table.to_owned(),
        name: name.to_owned(),
        set,
    }
}

fn discovery<'a>(roots: &Roots, request: &'a mut Request) -> Result<&'a Discovery> {
    let found = match request.discovery.take() {
        Some(found) => found,
        None => roots.discover()?,
    };
    Ok(request.discovery.insert(found))
}

fn why_not(roots: &Roots, discovery: &Discovery, target: &NsTarget) -> String {
    let mut why = match target {
        NsTarget::Host => "the node's own network namespace was not found".to_owned(),
        NsTarget::PodUid(uid) => {
            let host = discovery.namespaces.values().find(|ns| ns.host);
            if host.is_some_and(|host| roots.pod_in(host, uid)) {
                format!("pod {uid} is in the node's own network namespace (hostNetwork)")
            } else {
                format!(
                    "no process in a namespace of its own belongs to pod {uid}; is it running on this node?"
                )
            }
        }
        NsTarget::Id(id) => format!("network namespace net:[{}] is not there any more", id.ino),
        NsTarget::Pid(pid) => format!("no process {pid} whose network namespace can be read"),
        NsTarget::Named(name) => format!("no namespace file is called '{name}'"),
        NsTarget::All => "no network namespace was found".to_owned(),
    };
    for problem in &discovery.problems {
        why.push_str("; ");
        why.push_str(problem);
    }
    why
}

fn all_missing(mut ns: NetNs, error: &Error) -> NetNs {
    let why = error.to_string();
    ns.links = Section::Missing(why.clone());
    ns.addrs = Section::Missing(why.clone());
    ns.rules = Section::Missing(why.clone());
    ns.routes = Section::Missing(why.clone());
    ns.neighs = Section::Missing(why.clone());
    ns.fdb = Section::Missing(why.clone());
    ns.nsids = Section::Missing(why.clone());
    ns.sysctls = Section::Missing(why.clone());
    ns.ipvs = Section::Missing(why.clone());
    ns.recent = Section::Missing(why.clone());
    ns.hashlimits = Section::Missing(why.clone());
    ns.nfacct = Section::Missing(why.clone());
    ns.nfqueues = Section::Missing(why.clone());
    ns.ipset_names = Section::Missing(why.clone());
    ns.unread_tables = Section::Missing(why.clone());
    ns.xfrm = Section::Missing(why.clone());
    ns.sockets = Section::Missing(why.clone());
    ns.nft = Section::Missing(why.clone());
    ns.legacy = Section::Missing(why);
    ns
}
