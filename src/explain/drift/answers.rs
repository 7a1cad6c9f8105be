//! What the kernel would make of packets for each Service, against what kube-proxy's rules should make of them.
//!
//! The rules are not read here but asked: packets of a pod, of the node itself and of a client outside are sent past
//! the node by the simulation. So whatever comes before kube-proxy's rules, or between them, is found as well.

mod ranges;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::expect::{Ends, Entry, Expected, Portal, Target};
use super::proxy::{Look, Proxy};
use super::sender::{Sender, Senders};
use super::way::{Rule, Way, way};
use super::{Ask, words};
use crate::explain::codes::{Code, Severity};
use crate::explain::naming::Naming;
use crate::model::NsKey;
use crate::model::netfilter::Hook;
use crate::model::netns::NetNs;
use crate::trace::Arrival;

/// Shares differ by more than this part of what they should be: statistic and numgen are far closer.
const UNEVEN: f64 = 0.01;
/// A share that counts as none or all.
const TINY: f64 = 1e-6;
/// Own addresses of a node that are tried for NodePorts.
const OWN: usize = 4;

/// What is known of a way in after its packets were sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Told {
    /// All of them end as they should.
    Agrees,
    /// Some don't.
    Differs,
    /// It can't be told of some.
    Unknown,
}

/// Answers of one node in one family.
pub(super) struct Answers<'a, 'f> {
    naming: &'a Naming<'a>,
    key: &'a NsKey,
    proxies: &'a [&'a Proxy<'a>],
    senders: Senders,
    ask: &'f mut Ask<'f>,
    found: BTreeMap<(&'static str, String), Group>,
    unknown: BTreeMap<String, BTreeSet<String>>,
    told: BTreeMap<Portal, Told>,
    /// Whether packets of clients outside for cluster addresses are masqueraded, which a setting decides for all.
    outside: BTreeSet<(String, Portal, bool)>,
    /// The own address that NodePorts are asked at, once one of them answered there.
    node_address: Option<IpAddr>,
    ports: usize,
}

/// What is wrong for one reason.
struct Group {
    code: Code,
    severity: Severity,
    cause: String,
    /// Some packets are translated to no endpoint.
    partly: bool,
    /// A rule that is not kube-proxy's leads them there.
    foreign: bool,
    ports: BTreeSet<String>,
    lines: Vec<String>,
}

/// One kind of packet of a way in.
struct Case<'e> {
    port: &'e Expected<'e>,
    portal: Portal,
    entry: Entry,
    sender: Sender,
}

/// What is wrong.
enum Wrong {
    Untranslated,
    Partly(f64),
    /// And whether a rule of kube-proxy leads there.
    Elsewhere(Target, bool),
    Missing,
    Uneven,
    NotMasqueraded,
    Masqueraded,
    NotRefused,
}

impl<'a, 'f> Answers<'a, 'f> {
    pub fn new(
        naming: &'a Naming<'a>,
        (key, ns): (&'a NsKey, &NetNs),
        (proxies, v6): (&'a [&'a Proxy<'a>], bool),
        ask: &'f mut Ask<'f>,
    ) -> Self {
        Self {
            naming,
            key,
            proxies,
            senders: Senders::of(naming.names, &key.node, ns, v6),
            ask,
            found: BTreeMap::new(),
            unknown: BTreeMap::new(),
            told: BTreeMap::new(),
            outside: BTreeSet::new(),
            node_address: None,
            ports: 0,
        }
    }

    /// Sends packets for a Service's port by all of its ways in.
    pub fn port(&mut self, port: &Expected<'_>) {
        self.ports = self.ports.saturating_add(1);
        for (portal, entry) in &port.portals {
            self.portal(port, *portal, *entry);
        }
        self.hairpins(port);
    }

    fn portal(&mut self, port: &Expected<'_>, portal: Portal, entry: Entry) {
        // A proxy may leave these out.
        if entry == Entry::Optional && !self.is_known(portal) {
            return;
        }
        if ranges::is_ranged(port, portal) {
            return self.ranged(port, portal, entry);
        }
        let usual = [Sender::Pod, Sender::Node, Sender::Outside];
        let singled: Vec<Sender> = self
            .senders
            .singled
            .iter()
            .copied()
            .map(Sender::One)
            .collect();
        for sender in usual.into_iter().chain(singled) {
            let case = Case {
                port,
                portal,
                entry,
                sender,
            };
            let ways = match sender {
                Sender::Pod => {
                    let Some(from) = self.senders.pod(&port.cluster.may) else {
                        continue;
                    };
                    self.sent(portal, sender, Some(from))
                }
                Sender::One(from) if port.cluster.may.iter().any(|(ip, _)| *ip == from) => continue,
                Sender::One(from) => self.sent(portal, sender, Some(from)),
                Sender::Node => self.sent(portal, sender, None),
                Sender::Outside => self.outside_sends(portal),
            };
            self.judge(&case, &ways);
        }
    }

    /// Whether some proxy has rules for a way in, or may have them.
    fn is_known(&self, portal: Portal) -> bool {
        let mut looks = self.proxies.iter().map(|proxy| proxy.look(portal));
        looks.any(|look| !matches!(look, Look::Nothing))
    }

    fn outside_sends(&mut self, portal: Portal) -> Vec<Way> {
        for from in self.senders.outside().to_vec() {
            let ways = self.sent(portal, Sender::Outside, Some(from));
            if !ways.is_empty() {
                return ways;
            }
        }
        Vec::new()
    }

    /// Ways of a packet; none where it can't come from there.
    fn sent(&mut self, portal: Portal, sender: Sender, from: Option<IpAddr>) -> Vec<Way> {
        if let Some(dst) = portal.addr.or(self.node_address) {
            return self.send(portal, sender, from, dst);
        }
        let mut first = Vec::new();
        let own: Vec<IpAddr> = self.senders.own.iter().copied().take(OWN).collect();
        for dst in own {
            let ways = self.send(portal, sender, from, dst);
            if ways.iter().any(|way| way.to.is_some()) {
                self.node_address = Some(dst);
                return ways;
            }
            if first.is_empty() {
                first = ways;
            }
        }
        first
    }

    fn send(
        &mut self,
        portal: Portal,
        sender: Sender,
        from: Option<IpAddr>,
        dst: IpAddr,
    ) -> Vec<Way> {
        let passages = (self.ask)(&Arrival {
            ns: self.key.clone(),
            from,
            protocol: portal.protocol,
            dst,
            dport: portal.port,
        });
        let hook = hook(sender);
        passages.iter().map(|passage| way(passage, hook)).collect()
    }

    fn judge(&mut self, case: &Case<'_>, ways: &[Way]) {
        if ways.is_empty() {
            return;
        }
        if let Some(why) = ways.iter().find_map(|way| way.unknown.clone()) {
            self.mark(case.portal, Told::Unknown);
            let names = self.unknown.entry(why).or_default();
            names.insert(case.port.name());
            return;
        }
        self.mark(case.portal, Told::Agrees);
        let (ends, certain) = wanted(case);
        let total: f64 = ways.iter().map(|way| way.share).sum();
        let mut shares: BTreeMap<Target, (f64, Rule)> = BTreeMap::new();
        for way in ways {
            if let Some((target, rule)) = &way.to {
                let own = shares.entry(*target).or_insert((0.0, rule.clone()));
                own.0 += way.share;
            }
        }
        let translated: f64 = shares.values().map(|(share, _)| share).sum();
        let untranslated = ways.iter().filter(|way| way.to.is_none());
        let untranslated: Vec<&Way> = untranslated.collect();
        if !certain || ends.must.is_empty() {
            if ends.may.is_empty() && certain {
                self.refused(case, &untranslated);
            }
        } else if translated < TINY {
            self.untranslated(case, &untranslated);
            return;
        } else if total - translated > TINY {
            self.wrong(
                case,
                &Wrong::Partly(1.0 - translated / total),
                untranslated.first().copied(),
            );
        }
        let mut complete = ends.must == ends.may && !ends.must.is_empty();
        for (target, (_, rule)) in &shares {
            if !ends.may.contains(target) {
                complete = false;
                self.elsewhere(case, *target, rule);
            }
        }
        // Where all are led elsewhere, that says it.
        let some = shares.keys().any(|target| ends.may.contains(target));
        if certain && some {
            for target in &ends.must {
                if !shares.contains_key(target) {
                    complete = false;
                    self.missing(case, *target);
                }
            }
        }
        if complete && certain {
            let count = u32::try_from(shares.len()).map_or(1.0, f64::from);
            let uneven =
                |(share, _): &&(f64, Rule)| (share * count / translated - 1.0).abs() > UNEVEN;
            if shares.values().any(|own| uneven(&own)) {
                let words: Vec<String> = shares
                    .iter()
                    .map(|(target, (share, _))| {
                        let addr = words::socket_addr(target.0, Some(target.1));
                        format!("{addr} gets {:.1}%", share / translated * 100.0)
                    })
                    .collect();
                self.line(case, &Wrong::Uneven, &words.join(", "));
            }
        }
        // Of what is led elsewhere, that is what counts.
        let astray = |way: &&Way| {
            let to = way.to.as_ref();
            certain && to.is_some_and(|(target, _)| !ends.may.contains(target))
        };
        let leaving = ways.iter().filter(|way| way.leaves.is_some());
        for way in leaving.filter(|way| !astray(way)) {
            self.sources(case, way);
        }
    }

    /// Whether its source is hidden where it has to be, and is seen where it has to be.
    fn sources(&mut self, case: &Case<'_>, way: &Way) {
        let Some((target, _)) = &way.to else { return };
        let own = matches!(case.entry, Entry::External | Entry::Optional);
        let outside = case.sender == Sender::Outside;
        let must = way.hairpin
            || outside && own && !case.port.is_local(case.entry)
            || way.marked.is_some();
        match (&way.masquerade, must) {
            (None, true) => self.wrong(case, &Wrong::NotMasqueraded, Some(way)),
            (Some(_), false) if outside && own => {
                self.wrong(case, &Wrong::Masqueraded, Some(way));
            }
            (Some(rule), false)
                if matches!(case.sender, Sender::Pod | Sender::One(_))
                    && case.entry == Entry::Cluster
                    && !rule.own
                    && self.senders.is_pod(target.0) =>
            {
                self.wrong(case, &Wrong::Masqueraded, Some(way));
            }
            _ => {}
        }
        if outside && case.entry == Entry::Cluster {
            let known = (case.port.name(), case.portal, way.masquerade.is_some());
            self.outside.insert(known);
        }
    }

    /// Pods that are led to themselves, on their own node.
    fn hairpins(&mut self, port: &Expected<'_>) {
        let portals = port.portals.iter();
        let mut cluster = portals.filter(|(_, entry)| *entry == Entry::Cluster);
        let Some((portal, entry)) = cluster.next() else {
            return;
        };
        let own = &port.ends(*entry).must;
        let ends = port.service.endpoints.iter();
        let here: BTreeSet<IpAddr> = ends
            .filter(|end| end.node.as_deref() == Some(self.key.node.as_str()))
            .map(|end| end.ip)
            .filter(|ip| own.iter().any(|(own, _)| own == ip) && !self.senders.own.contains(ip))
            .collect();
        for ip in here {
            let case = Case {
                port,
                portal: *portal,
                entry: *entry,
                sender: Sender::Pod,
            };
            let ways = self.sent(*portal, Sender::Pod, Some(ip));
            for way in ways
                .iter()
                .filter(|way| way.hairpin && way.leaves.is_some())
            {
                if way.masquerade.is_none() {
                    self.wrong(&case, &Wrong::NotMasqueraded, Some(way));
                }
            }
        }
    }

    /// Nobody serves it: senders should be told, or at least nothing should go astray.
    fn refused(&mut self, case: &Case<'_>, untranslated: &[&Way]) {
        let of_sender = match case.entry {
            Entry::Cluster => case.sender != Sender::Outside,
            Entry::External | Entry::Optional => case.sender == Sender::Outside,
        };
        let astray = untranslated.iter().find(|way| way.leaves.is_some());
        if let (true, Some(way)) = (of_sender, astray) {
            self.wrong(case, &Wrong::NotRefused, Some(way));
        }
    }

    fn untranslated(&mut self, case: &Case<'_>, ways: &[&Way]) {
        let Some(way) = ways.first() else { return };
        // Another program on the node serves the address itself, as NodeLocal DNSCache does.
        let served = case
            .portal
            .addr
            .is_some_and(|addr| self.senders.own.contains(&addr));
        if way.here && served {
            return;
        }
        // Setting nodePortAddresses: loopback addresses alone.
        let local = case.portal.addr.is_none();
        if local
            && self
                .proxies
                .iter()
                .any(|proxy| proxy.node_ports_are_local())
        {
            return;
        }
        // A firewall may keep clients outside away, and a policy a single pod.
        let foreign = way.kept.as_ref().is_none_or(|rule| !rule.own);
        let usual = matches!(case.sender, Sender::Pod | Sender::Node);
        if !usual && way.ended && foreign {
            return;
        }
        // Where no rule of its own is there, the comparison of rules says so.
        if !self.is_known(case.portal) {
            self.mark(case.portal, Told::Differs);
            return;
        }
        self.wrong(case, &Wrong::Untranslated, Some(way));
    }

    /// Led to what is no endpoint, by a rule that the comparison of rules does not meet.
    fn elsewhere(&mut self, case: &Case<'_>, target: Target, rule: &Rule) {
        let known = self.proxies.len() == 1
            && self.leads_say(case.portal, |always, sides| {
                always.contains(&target) || sides.contains(&target)
            });
        self.mark(case.portal, Told::Differs);
        if !known || !rule.own {
            let line = format!("translated by {}", rule.words);
            self.line(case, &Wrong::Elsewhere(target, rule.own), &line);
        }
    }

    fn missing(&mut self, case: &Case<'_>, target: Target) {
        self.mark(case.portal, Told::Differs);
        let known = self.proxies.len() == 1
            && self.leads_say(case.portal, |always, _| !always.contains(&target));
        if known {
            return;
        }
        let addr = words::socket_addr(target.0, Some(target.1));
        self.line(
            case,
            &Wrong::Missing,
            &format!("none of their packets is led to {addr}, though a chain for it is there"),
        );
    }

    /// Whether where some proxy's rules lead is so; false where they are not known.
    fn leads_say(
        &self,
        portal: Portal,
        is: impl Fn(&BTreeSet<Target>, &BTreeSet<Target>) -> bool,
    ) -> bool {
        self.proxies.iter().any(|proxy| match proxy.look(portal) {
            Look::Found(_, leads) => {
                leads.unknown.is_none()
                    && is(
                        &leads.always.keys().copied().collect(),
                        &leads.sides.keys().copied().collect(),
                    )
            }
            _ => false,
        })
    }
}

fn by(rule: Option<&Rule>) -> String {
    rule.map_or_else(String::new, |rule| format!(" ({})", rule.words))
}

/// Hook at which a sender's packets are translated.
fn hook(sender: Sender) -> Hook {
    match sender {
        Sender::Pod | Sender::One(_) | Sender::Outside => Hook::Prerouting,
        Sender::Node => Hook::Output,
    }
}

/// Endpoints for a case, and whether packets have to be led there.
fn wanted(case: &Case<'_>) -> (Ends, bool) {
    let port = case.port;
    if case.entry == Entry::Cluster || case.sender == Sender::Outside || !port.is_local(case.entry)
    {
        return (port.ends(case.entry).clone(), true);
    }
    // For those of the cluster itself the external policy Local counts as Cluster, as far as the proxy knows them.
    if case.sender == Sender::Node {
        return (port.cluster.clone(), true);
    }
    let may = port.cluster.may.union(&port.local.may).copied().collect();
    let must = BTreeSet::new();
    (Ends { must, may }, false)
}
