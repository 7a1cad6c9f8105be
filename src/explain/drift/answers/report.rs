//! What was found, put together by its cause.

use std::collections::{BTreeMap, BTreeSet};

use super::super::compare::{self, words_of_portal};
use super::super::expect::Portal;
use super::super::way::{Rule, Way};
use super::{Answers, Case, Group, Told, Wrong, by, hook};
use crate::explain::codes::{self, Code, Severity};
use crate::explain::naming::Naming;
use crate::explain::{Finding, Place, words};

/// Service ports that are named one by one in a title.
const NAMED: usize = 3;
/// Lines of evidence of one finding.
const LINES: usize = 8;

impl Answers<'_, '_> {
    pub(super) fn wrong(&mut self, case: &Case<'_>, wrong: &Wrong, way: Option<&Way>) {
        let kept = way.and_then(|way| way.kept.as_ref());
        let line = match wrong {
            Wrong::Untranslated => match kept {
                Some(rule) => format!("kept from it by {}", rule.words),
                None => "no rule translates them".to_owned(),
            },
            Wrong::Partly(share) => format!(
                "{:.1}% of their packets are translated to no endpoint{}",
                share * 100.0,
                by(kept)
            ),
            Wrong::NotMasqueraded => match way.and_then(|way| way.marked.as_ref()) {
                Some(rule) => format!(
                    "marked to be masqueraded by {}, and leave with the sender's address",
                    rule.words
                ),
                None => "they leave with the sender's address".to_owned(),
            },
            Wrong::Masqueraded => match way.and_then(|way| way.masquerade.as_ref()) {
                Some(rule) => format!("their source is hidden by {}", rule.words),
                None => "their source is hidden".to_owned(),
            },
            Wrong::NotRefused => match way.and_then(|way| way.leaves.as_ref()) {
                Some(dev) => format!("no rule refuses them, and they leave by {dev}"),
                None => "no rule refuses them".to_owned(),
            },
            Wrong::Elsewhere(..) | Wrong::Missing | Wrong::Uneven => String::new(),
        };
        let cause = match wrong {
            Wrong::Untranslated => self.cause(case, kept),
            Wrong::NotMasqueraded => match way.map(|way| (way.hairpin, way.marked.is_some())) {
                Some((_, true)) => {
                    "packets that are marked to be masqueraded leave with the sender's address"
                        .to_owned()
                }
                Some((true, _)) => "pods that are led to themselves are not masqueraded".to_owned(),
                _ => "packets from outside are not masqueraded".to_owned(),
            },
            Wrong::Masqueraded => match way.and_then(|way| way.masquerade.as_ref()) {
                Some(rule) => format!("{} hides the sender's address", rule.words),
                None => String::new(),
            },
            Wrong::NotRefused => {
                "no rule refuses packets of Services that nobody serves".to_owned()
            }
            _ => String::new(),
        };
        self.add(case, wrong, cause, &line);
    }

    pub(super) fn line(&mut self, case: &Case<'_>, wrong: &Wrong, line: &str) {
        self.add(case, wrong, String::new(), line);
    }

    fn add(&mut self, case: &Case<'_>, wrong: &Wrong, cause: String, line: &str) {
        let foreign = matches!(wrong, Wrong::Elsewhere(_, false));
        self.mark(case.portal, Told::Differs);
        let name = case.port.name();
        let (code, severity) = match wrong {
            Wrong::Untranslated => (codes::BYPASSED, Severity::Error),
            Wrong::Partly(_) => (codes::UNEVEN, Severity::Error),
            Wrong::Elsewhere(..) => (codes::NO_SUCH_ENDPOINT, Severity::Error),
            Wrong::Missing => (codes::ENDPOINT_MISSING, Severity::Warning),
            Wrong::Uneven => (codes::UNEVEN, Severity::Warning),
            Wrong::NotMasqueraded => (codes::MASQUERADE_DIFFERS, Severity::Error),
            Wrong::Masqueraded => (codes::MASQUERADE_DIFFERS, Severity::Warning),
            Wrong::NotRefused => (codes::NOT_REFUSED, Severity::Warning),
        };
        let what = match wrong {
            Wrong::Elsewhere(target, _) => {
                format!(" to {}", words::socket_addr(target.0, Some(target.1)))
            }
            _ => String::new(),
        };
        let sender = case.sender.words(&self.key.node);
        let portal = words_of_portal(case.portal);
        let line = format!("{name}: {portal}{what}, {sender}: {line}");
        // What has no cause of its own is told Service by Service.
        let cause = if cause.is_empty() {
            name.clone()
        } else {
            cause
        };
        let group = self.group(code, severity, cause);
        group.severity = group.severity.min(severity);
        group.partly |= matches!(wrong, Wrong::Partly(_));
        group.foreign |= foreign;
        group.ports.insert(name);
        if !group.lines.contains(&line) {
            group.lines.push(line);
        }
    }

    pub(super) fn group(&mut self, code: Code, severity: Severity, cause: String) -> &mut Group {
        self.found
            .entry((code.code, cause.clone()))
            .or_insert_with(|| Group {
                code,
                severity,
                cause,
                partly: false,
                foreign: false,
                ports: BTreeSet::new(),
                lines: Vec::new(),
            })
    }

    pub(super) fn mark(&mut self, portal: Portal, told: Told) {
        let own = self.told.entry(portal).or_insert(told);
        *own = (*own).max(told);
    }

    /// Why rules that are there are not come to.
    fn cause(&self, case: &Case<'_>, kept: Option<&Rule>) -> String {
        // nftables mode refuses what its own rules should have translated: that is no cause.
        if let Some(rule) = kept.filter(|rule| !rule.untaken) {
            return rule.words.clone();
        }
        let hook = hook(case.sender);
        let why = self.proxies.iter().find_map(|proxy| {
            proxy.unreached(
                case.portal,
                self.node_address.or(self.senders.own.first().copied()),
                hook,
            )
        });
        why.unwrap_or_else(|| {
            format!(
                "no rule at hook {} translates them, though rules for their endpoints are there",
                hook.name()
            )
        })
    }

    /// Service ports whose packets from outside are not masqueraded, where those of most are.
    fn unlike_others(&mut self) {
        let masqueraded = self.outside.iter().filter(|(_, _, is)| *is).count();
        let others: Vec<(String, Portal)> = self
            .outside
            .iter()
            .filter(|(_, _, is)| !is)
            .map(|(name, portal, _)| (name.clone(), *portal))
            .collect();
        if others.len() >= masqueraded {
            return;
        }
        for (name, portal) in others {
            self.mark(portal, Told::Differs);
            let portal = words_of_portal(portal);
            let line = format!(
                "{name}: {portal}: packets from outside of the cluster leave with the sender's address, while those of {masqueraded} other ways in are masqueraded"
            );
            let cause = "packets from outside are not masqueraded".to_owned();
            let group = self.group(codes::MASQUERADE_DIFFERS, Severity::Warning, cause);
            group.ports.insert(name);
            group.lines.push(line);
        }
    }

    /// Gives out what was found, and what is told of each way in.
    pub fn finish(
        mut self,
        findings: &mut Vec<Finding>,
        unknown: &mut Vec<String>,
    ) -> BTreeMap<Portal, Told> {
        self.unlike_others();
        let node = &self.key.node;
        for group in self.found.into_values() {
            let some: Vec<&str> = group.ports.iter().map(String::as_str).take(NAMED).collect();
            let more = group.ports.len().saturating_sub(some.len());
            let names = match more {
                0 => some.join(", "),
                _ => format!(
                    "{} and {more} more of {} Service ports",
                    some.join(", "),
                    self.ports
                ),
            };
            let title = match group.code {
                codes::BYPASSED => format!(
                    "packets on {node} do not reach kube-proxy's rules for {names}: {}",
                    group.cause
                ),
                codes::UNEVEN if group.partly => {
                    format!("the rules on {node} translate some packets for {names} to no endpoint")
                }
                codes::UNEVEN => {
                    format!("the rules on {node} do not spread the load of {names} evenly")
                }
                codes::MASQUERADE_DIFFERS => format!("{} on {node}: {names}", group.cause),
                codes::NOT_REFUSED => format!(
                    "packets on {node} for {names}, which has no endpoint for them, are not refused"
                ),
                codes::RANGES_DIFFER => {
                    format!("the rules on {node} do not follow loadBalancerSourceRanges of {names}")
                }
                codes::ENDPOINT_MISSING => format!(
                    "packets on {node} for {names} are led to fewer endpoints than there are chains for"
                ),
                _ => format!("packets on {node} for {names} are led to what is no endpoint of it"),
            };
            let mut lines = group.lines;
            let more = lines.len().saturating_sub(LINES);
            lines.truncate(LINES);
            if more > 0 {
                lines.push(format!("and {more} more like these"));
            }
            findings.push(Finding {
                code: group.code,
                title,
                severity: group.severity,
                place: Place {
                    node: node.clone(),
                    netns: self.naming.netns(self.key),
                    object: None,
                },
                evidence: lines,
                mend: if group.foreign {
                    "remove the rule that translates them, which is not kube-proxy's, and find out who adds it".to_owned()
                } else {
                    mend(self.naming, node, group.code)
                },
                branches: Vec::new(),
            });
        }
        if self.senders.singled_more > 0 {
            unknown.push(format!(
                "rules on {node} name {} more pods as senders: what becomes of their packets was not asked",
                self.senders.singled_more
            ));
        }
        for (why, names) in self.unknown {
            unknown.push(compare::incomparable(&names, node, "packets for it", &why));
        }
        self.told
    }
}

fn mend(naming: &Naming<'_>, node: &str, code: Code) -> String {
    let anew = compare::mend(naming, node);
    match code {
        codes::BYPASSED => format!(
            "remove what comes before kube-proxy's rules, where a rule does, and find out who adds it; where rules or set elements of kube-proxy are gone, {anew}"
        ),
        codes::MASQUERADE_DIFFERS => format!(
            "look for rules of others in nat POSTROUTING; where kube-proxy's own are gone, {anew}"
        ),
        _ => anew,
    }
}
