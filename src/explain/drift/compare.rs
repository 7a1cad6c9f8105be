//! What differs between what is expected of a node and what its rules lead to.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::model::NsKey;

use super::answers::Told;
use super::expect::{Ends, Entry, Expected, Portal, Target};
use super::leads::{Leads, Way};
use super::proxy::{Kind, Known, Look, Proxy, unhooked_words};
use super::rule::Sticky;
use super::{words, words_of};
use crate::explain::codes::{self, Code, Severity};
use crate::explain::naming::Naming;
use crate::explain::{Finding, Place};

/// Rules that could not be told apart are named one by one up to here.
const NAMED: usize = 3;
/// Findings of one kind up to here stand alone.
const MANY: usize = 5;
/// Lines of evidence of a finding that stands for many.
const LINES: usize = 50;

/// Comparison of one set of rules.
pub(super) struct Comparison<'a> {
    /// What the answers to packets tell of ways in.
    told: BTreeMap<Portal, Told>,
    /// Ports of Services that were compared.
    ports: usize,
    naming: &'a Naming<'a>,
    key: &'a NsKey,
    proxy: &'a Proxy<'a>,
    /// All of the rules should have been read: what was not is said.
    whole: bool,
    found: BTreeMap<(&'static str, String), Group>,
    /// Service ports by the reason for which they can't be compared.
    unknown: BTreeMap<String, BTreeSet<String>>,
}

/// One finding in the making: all that is wrong in the same way with one port of a Service.
struct Group {
    code: Code,
    object: String,
    lines: Vec<String>,
    targets: BTreeSet<Target>,
    of: usize,
    /// Ways in, where these are what is wrong.
    portals: BTreeSet<Portal>,
}

impl<'a> Comparison<'a> {
    pub fn new(naming: &'a Naming<'a>, key: &'a NsKey, proxy: &'a Proxy<'a>, whole: bool) -> Self {
        Self {
            told: BTreeMap::new(),
            ports: 0,
            naming,
            key,
            proxy,
            whole,
            found: BTreeMap::new(),
            unknown: BTreeMap::new(),
        }
    }

    /// Takes in what the answers to packets tell of ways in: where these tell it, rules that can't be read do not
    /// matter.
    pub fn told(&mut self, told: BTreeMap<Portal, Told>) {
        self.told = told;
    }

    /// Compares a Service's port, or of it one way in.
    pub fn port(&mut self, port: &Expected<'_>, only: Option<Portal>) {
        self.ports = self.ports.saturating_add(1);
        for (portal, entry) in &port.portals {
            if only.is_none_or(|only| only == *portal) {
                self.portal(port, *portal, *entry);
            }
        }
    }

    fn portal(&mut self, port: &Expected<'_>, portal: Portal, entry: Entry) {
        let name = port.name();
        let told = self.told.get(&portal).copied();
        let (by, leads) = match self.proxy.look(portal) {
            Look::Found(by, leads) => (by, leads),
            Look::Unknown(_) | Look::NotRead if told.is_some() => return,
            Look::Unknown(why) => return self.untold(why, name),
            Look::NotRead => return self.untold("its rules were not read".to_owned(), name),
            Look::Nothing => {
                // Of a flow without rules the trace says so itself.
                let must = !self.ends(port, entry).must.is_empty();
                let serves = told == Some(Told::Agrees);
                if self.whole && entry != Entry::Optional && must && !serves {
                    let line = format!("no rule takes {} in", words_of_portal(portal));
                    self.add(codes::UNTRANSLATED, name, "", line);
                }
                return;
            }
        };
        if told.is_some() && (leads.unknown.is_some() || leads.not_read) {
            return;
        }
        if let Some(why) = &leads.unknown {
            return self.untold(why.clone(), name);
        }
        if leads.not_read {
            return self.untold("its rules were not read".to_owned(), name);
        }
        self.endpoints(port, entry, &by, &leads);
        self.affinity(port, entry, &by, &leads);
    }

    fn endpoints(&mut self, port: &Expected<'_>, entry: Entry, by: &str, leads: &Leads) {
        let name = port.name();
        let ends = self.ends(port, entry);
        for target in &ends.must {
            let way = leads.always.get(target);
            if way.is_some_and(|way| way.fresh) {
                continue;
            }
            let but = if way.is_some() {
                ", but for clients that were led there before"
            } else {
                ""
            };
            let end = self.endpoint(*target);
            let line = match leads.chain.as_str() {
                "" => format!(
                    "{by} does not lead to {end}{but}, though the slices say that it should"
                ),
                chain => format!(
                    "chain {chain} does not lead to {end}{but}, though the slices say that it should ({by})"
                ),
            };
            let group = self.add(codes::ENDPOINT_MISSING, name.clone(), &leads.chain, line);
            group.targets.insert(*target);
            group.of = ends.must.len();
        }
        let side = |way: &Way| format!("{}, for some senders only", way.by);
        let sides = leads
            .sides
            .iter()
            .map(|(target, way)| (target, side(way), true));
        let always = leads.always.iter();
        let all = always.map(|(target, way)| (target, way.by.clone(), false));
        for (target, by, side) in all.chain(sides) {
            let elsewhere = port.cluster.may.contains(target);
            if ends.may.contains(target) || side && elsewhere {
                continue;
            }
            let end = self.endpoint(*target);
            let (code, line) = if elsewhere && port.is_local(entry) {
                let policy = match entry {
                    Entry::Cluster => "internalTrafficPolicy",
                    Entry::External | Entry::Optional => "externalTrafficPolicy",
                };
                let line = format!("{by}: leads to {end}, though {policy} is Local");
                (codes::POLICY_IGNORED, line)
            } else {
                let mut others = port.cluster.may.iter().chain(&port.local.may);
                let other = others.find(|other| other.0 == target.0);
                let why = match other {
                    Some(other) => format!("whose port is {} by the slices", other.1),
                    None => why_not(port, *target),
                };
                (
                    codes::NO_SUCH_ENDPOINT,
                    format!("{by}: leads to {end}, {why}"),
                )
            };
            let group = self.add(code, name.clone(), &leads.chain, line);
            group.targets.insert(*target);
        }
    }

    fn affinity(&mut self, port: &Expected<'_>, entry: Entry, by: &str, leads: &Leads) {
        let ends = self.ends(port, entry);
        let asked = port.asks.affinity_seconds;
        let ways = leads
            .always
            .iter()
            .filter(|(target, _)| ends.may.contains(target));
        let mut lines: BTreeSet<String> = BTreeSet::new();
        for (target, way) in ways {
            let end = words::socket_addr(target.0, Some(target.1));
            let chain = match leads.chain.as_str() {
                "" => by.to_owned(),
                chain => format!("chain {chain}"),
            };
            match (asked, way.sticky) {
                (Some(_), Sticky::Not) => lines.insert(format!(
                    "{chain} does not lead clients of {end} there again, though sessionAffinity is ClientIP"
                )),
                (Some(asked), Sticky::Seconds(seconds)) if asked != seconds => lines.insert(format!(
                    "{chain} leads clients of {end} there again for {seconds} s, though sessionAffinityConfig says {asked} s"
                )),
                (None, Sticky::Unsaid | Sticky::Seconds(_)) => lines.insert(format!(
                    "{chain} leads clients of {end} there again, though sessionAffinity is None"
                )),
                _ => continue,
            };
        }
        for line in lines {
            self.add(codes::AFFINITY_DIFFERS, port.name(), &leads.chain, line);
        }
    }

    /// What is expected; mode ipvs leads to all endpoints where the policy is Local and none is
    /// (`syncEndpoint()`, pkg/proxy/ipvs/proxier.go).
    fn ends<'e>(&self, port: &'e Expected<'_>, entry: Entry) -> Cow<'e, Ends> {
        let ends = port.ends(entry);
        if self.proxy.kind != Kind::Ipvs || !port.is_local(entry) || !ends.must.is_empty() {
            return Cow::Borrowed(ends);
        }
        if ends.may.is_empty() {
            return Cow::Borrowed(&port.cluster);
        }
        let may = ends.may.union(&port.cluster.may).copied().collect();
        Cow::Owned(Ends {
            must: BTreeSet::new(),
            may,
        })
    }

    /// Ways in that no Service has.
    pub fn stale(&mut self, expected: &BTreeSet<Portal>) {
        let Some(known) = self.proxy.all() else {
            let why = "its map or chain was not read whole".to_owned();
            return self.untold(why, "Services that are gone".to_owned());
        };
        let asked = |own: &Known<'_>| {
            let as_address = Portal {
                addr: own.addr,
                ..own.portal
            };
            expected.contains(&own.portal) || own.addr.is_some() && expected.contains(&as_address)
        };
        for own in known.iter().filter(|own| !asked(own)) {
            self.left(own);
        }
    }

    /// A way in that no Service has, where rules know it all the same.
    pub fn gone(&mut self, portal: Portal) {
        let known = self.proxy.all().unwrap_or_default();
        let found = known.iter().find(|own| own.portal == portal);
        match (found, self.proxy.look(portal)) {
            (Some(own), _) => self.left(own),
            (None, Look::Found(by, leads)) => {
                let name = self.naming.chain(&leads.chain, None);
                let line = format!("{by}: takes {} in", words_of_portal(portal));
                let name = name.unwrap_or_else(|| words_of_portal(portal));
                let group = self.add(codes::SERVICE_GONE, name, &leads.chain, line);
                group.portals.insert(portal);
            }
            _ => {}
        }
    }

    fn left(&mut self, own: &Known<'_>) {
        let words = words_of_portal(own.portal);
        let name = own
            .chain
            .and_then(|chain| self.naming.chain(chain, own.comment))
            .unwrap_or_else(|| words.clone());
        let line = format!("{}: takes {words} in", own.by);
        let chain = own.chain.unwrap_or_default();
        let group = self.add(codes::SERVICE_GONE, name, chain, line);
        group.portals.insert(own.portal);
    }

    /// Hooks from which nothing leads to the rules.
    pub fn unhooked(&mut self) {
        for hook in self.proxy.unhooked() {
            let line = unhooked_words(hook);
            let group = self.add(codes::BYPASSED, String::new(), "", line);
            hook.clone_into(&mut group.object);
        }
    }

    fn add(&mut self, code: Code, name: String, chain: &str, line: String) -> &mut Group {
        let group = self
            .found
            .entry((code.code, name))
            .or_insert_with(|| Group {
                code,
                object: chain.to_owned(),
                lines: Vec::new(),
                targets: BTreeSet::new(),
                of: 0,
                portals: BTreeSet::new(),
            });
        if !group.lines.contains(&line) {
            group.lines.push(line);
        }
        group
    }

    fn untold(&mut self, why: String, name: String) {
        if self.whole {
            self.unknown.entry(why).or_default().insert(name);
        }
    }

    /// `10.244.1.9:8080 (pod shop/api-0 on worker-2)`
    fn endpoint(&self, target: Target) -> String {
        let addr = words::socket_addr(target.0, Some(target.1));
        match (self.naming.address(target.0), self.naming.node_of(target.0)) {
            (Some(owner), Some(node)) if !owner.starts_with("node ") => {
                format!("{addr} ({owner} on {node})")
            }
            (Some(owner), _) => format!("{addr} ({owner})"),
            _ => addr,
        }
    }

    /// Gives out what was found.
    pub fn finish(self, findings: &mut Vec<Finding>, unknown: &mut Vec<String>) {
        let node = &self.key.node;
        let set = words_of(self.proxy);
        let before = findings.len();
        for ((_, name), group) in &self.found {
            let addrs: Vec<String> = group
                .targets
                .iter()
                .map(|(ip, port)| words::socket_addr(*ip, Some(*port)))
                .collect();
            let addrs = addrs.join(", ");
            let title = match group.code {
                codes::ENDPOINT_MISSING => format!(
                    "the rules on {node} miss {} of {} endpoints of {name}: {addrs}",
                    group.targets.len(),
                    group.of
                ),
                codes::NO_SUCH_ENDPOINT => {
                    format!("the rules on {node} lead {name} to what is no endpoint of it: {addrs}")
                }
                codes::POLICY_IGNORED => format!(
                    "the rules on {node} lead {name} to other nodes in spite of its traffic policy: {addrs}"
                ),
                codes::AFFINITY_DIFFERS => {
                    format!(
                        "the rules on {node} keep to another session affinity than {name} asks for"
                    )
                }
                codes::SERVICE_GONE => {
                    let portals = group.portals.iter().map(|portal| words_of_portal(*portal));
                    let portals: Vec<String> = portals.take(NAMED).collect();
                    let more = match group.portals.len().saturating_sub(portals.len()) {
                        0 => String::new(),
                        more => format!(" and {more} more"),
                    };
                    let led = match portals.as_slice() {
                        [only] if *only == *name => String::new(),
                        _ => format!(", which lead on as {name}"),
                    };
                    format!(
                        "no Service has {}{more}, and there are rules for it on {node}{led}",
                        portals.join(", ")
                    )
                }
                _ if name.is_empty() => {
                    format!("nothing leads packets on {node} to the rules of Services")
                }
                _ => format!("no rule on {node} translates {name}"),
            };
            let object = match group.object.as_str() {
                "" => set.clone(),
                chain => format!("{set}, {chain}"),
            };
            let mut mend = mend(self.naming, node);
            if group.code == codes::SERVICE_GONE {
                mend.push_str("; with NodePorts and addresses that are used again, packets go astray until then");
            }
            findings.push(Finding {
                code: group.code,
                title,
                severity: match group.code {
                    codes::UNTRANSLATED | codes::NO_SUCH_ENDPOINT | codes::BYPASSED => {
                        Severity::Error
                    }
                    // Nothing is left to be led to.
                    codes::ENDPOINT_MISSING if group.targets.len() == group.of => Severity::Error,
                    _ => Severity::Warning,
                },
                place: Place {
                    node: node.clone(),
                    netns: self.naming.netns(self.key),
                    object: Some(object),
                },
                evidence: group.lines.clone(),
                mend,
                branches: Vec::new(),
            });
        }
        for (why, names) in &self.unknown {
            unknown.push(incomparable(names, node, &set, why));
        }
        several(findings, before, self.ports);
    }
}

/// What can't be compared.
pub(super) fn incomparable(names: &BTreeSet<String>, node: &str, how: &str, why: &str) -> String {
    let some: Vec<&str> = names.iter().map(String::as_str).take(NAMED).collect();
    let more = match names.len().saturating_sub(some.len()) {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!(
        "{}{more} on {node} ({how}) can't be compared: {why}",
        some.join(", ")
    )
}

/// Makes one finding of many of a kind, from `first` on: they most likely have one cause.
fn several(findings: &mut Vec<Finding>, first: usize, ports: usize) {
    let new = findings.split_off(first.min(findings.len()));
    let mut kinds: Vec<(Code, Vec<Finding>)> = Vec::new();
    for finding in new {
        match kinds.iter_mut().find(|(code, _)| *code == finding.code) {
            Some((_, own)) => own.push(finding),
            None => kinds.push((finding.code, vec![finding])),
        }
    }
    for (code, own) in kinds {
        if own.len() <= MANY {
            findings.extend(own);
            continue;
        }
        let number = own.len();
        let lines = own.iter().map(|one| match one.evidence.first() {
            Some(line) => format!("{}: {line}", one.title),
            None => one.title.clone(),
        });
        let mut evidence: Vec<String> = lines.take(LINES).collect();
        let more = number.saturating_sub(evidence.len());
        if more > 0 {
            evidence.push(format!("and {more} more like these"));
        }
        let severity = own.iter().map(|one| one.severity).min();
        let Some(mut one) = own.into_iter().next() else {
            continue;
        };
        let node = &one.place.node;
        one.title = match code {
            codes::UNTRANSLATED => {
                format!("no rule on {node} translates {number} of {ports} Service ports")
            }
            codes::SERVICE_GONE => {
                format!("rules on {node} are left of {number} Services that are gone")
            }
            codes::ENDPOINT_MISSING => {
                format!("the rules on {node} miss endpoints of {number} of {ports} Service ports")
            }
            codes::NO_SUCH_ENDPOINT => format!(
                "the rules on {node} lead {number} of {ports} Service ports to what is no endpoint of theirs"
            ),
            _ => format!(
                "the same on {node} of {number} of {ports} Service ports: {}",
                code.title
            ),
        };
        one.severity = severity.unwrap_or(one.severity);
        one.evidence = evidence;
        let set = one.place.object.take();
        one.place.object = set.and_then(|set| set.split(", ").next().map(str::to_owned));
        findings.push(one);
    }
}

/// Several sets of rules of a kube-proxy in one family: all of them act.
pub(super) fn two_sets(
    naming: &Naming<'_>,
    key: &NsKey,
    found: &[Proxy<'_>],
    v6: bool,
) -> Option<Finding> {
    let node = &key.node;
    let sets: Vec<&Proxy<'_>> = found.iter().filter(|proxy| proxy.v6 == v6).collect();
    if sets.len() < 2 {
        return None;
    }
    let names: Vec<String> = sets.iter().map(|proxy| words_of(proxy)).collect();
    let evidence = sets.iter().map(|proxy| {
        let set = words_of(proxy);
        match proxy.all() {
            Some(all) => format!("{set}: ways in for {} addresses and ports", all.len()),
            None => format!("{set}: there, not read whole"),
        }
    });
    Some(Finding {
        code: codes::TWO_PROXIES,
        title: format!(
            "rules of {} kube-proxy modes act at once on {node}: {}",
            sets.len(),
            names.join(", ")
        ),
        severity: Severity::Warning,
        place: Place {
            node: node.clone(),
            netns: naming.netns(key),
            object: None,
        },
        evidence: evidence.collect(),
        mend: format!(
            "find out which mode kube-proxy on {node} runs in (curl http://127.0.0.1:10249/proxyMode there), and remove what the other left: drain the node and reboot it, or stop kube-proxy, run kube-proxy --cleanup there, and start it again"
        ),
        branches: Vec::new(),
    })
}

/// `10.96.0.10:80/tcp`, `NodePort 30080/tcp`.
pub(super) fn words_of_portal(portal: Portal) -> String {
    let protocol = words::protocol(portal.protocol);
    match portal.addr {
        Some(addr) => format!("{}/{protocol}", words::socket_addr(addr, Some(portal.port))),
        None => format!("NodePort {}/{protocol}", portal.port),
    }
}

/// How to mend rules that a kube-proxy should have written.
pub(super) fn mend(naming: &Naming<'_>, node: &str) -> String {
    let mut pods = naming.names.pods.iter();
    let own =
        pods.find(|pod| pod.node.as_deref() == Some(node) && pod.name.starts_with("kube-proxy"));
    match own {
        Some(pod) => format!(
            "see why kube-proxy on {node} lags behind: kubectl -n {} logs {}; kubectl -n {} delete pod {} starts it anew",
            pod.namespace, pod.name, pod.namespace, pod.name
        ),
        None => format!(
            "see why kube-proxy on {node} lags behind (does it run, what does its log say), and restart it: it writes all rules anew"
        ),
    }
}

/// Why an address is not among the endpoints.
fn why_not(port: &Expected<'_>, target: Target) -> String {
    let mut own = port.service.endpoints.iter();
    match own.find(|end| end.ip == target.0 && end.port == Some(target.1)) {
        Some(end) if end.terminating => "which is terminating".to_owned(),
        Some(end) if !end.ready => "which is not ready".to_owned(),
        Some(end) if end.port_name != port.port.name => "an endpoint of another port".to_owned(),
        Some(_) => "an endpoint that is for other nodes or zones".to_owned(),
        None => "which no slice of the Service holds".to_owned(),
    }
}
