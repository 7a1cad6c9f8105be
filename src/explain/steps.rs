//! Decisions in an operator's words.

#![expect(
    clippy::format_push_string,
    reason = "writing to a String cannot fail, and its result would have to be ignored"
)]

use std::net::IpAddr;

use crate::model::netfilter::{Backend, Counters, Hook, Policy};
use crate::model::nfqueue;
use crate::trace::evidence::ChainRef;
use crate::trace::{Evidence, FieldChange, Hop, Step, StepKind};

use super::naming::Naming;
use super::{ipvs, words};

/// One decision, ready to be shown.
#[derive(Clone, Debug, PartialEq)]
pub struct StepView {
    /// Kind of decision.
    pub kind: StepKind,
    /// A short word for the left column: `route`, `dnat`, `filter`.
    pub label: &'static str,
    /// What was decided and by what, on one line.
    pub words: String,
    /// Every object that decided, one line each, as `ip`, `bridge`, `nft` and so on would print it.
    pub objects: Vec<String>,
    /// Whether a short answer should show it: it chose the way, changed the packet, or ended it.
    pub key: bool,
    /// What the simulation said.
    pub result: String,
    /// The objects themselves.
    pub evidence: Vec<Evidence>,
    /// What it changed in the packet.
    pub changes: Vec<FieldChange>,
}

/// Puts one step of a hop into words.
pub fn view(naming: &Naming<'_>, hop: &Hop, step: &Step) -> StepView {
    let last = hop
        .steps
        .last()
        .is_some_and(|last| std::ptr::eq(last, step));
    StepView {
        kind: step.kind,
        label: label(step),
        words: naming.text(&words_of(naming, hop, step)),
        objects: step
            .evidence
            .iter()
            .map(|evidence| naming.text(&object(naming, hop, evidence)))
            .collect(),
        key: is_key(step, last && hop.oif.is_none()),
        result: naming.text(&step.result),
        evidence: step.evidence.clone(),
        changes: step.changes.clone(),
    }
}

fn is_key(step: &Step, ends: bool) -> bool {
    let telling = step.evidence.iter().any(|evidence| {
        matches!(
            evidence,
            Evidence::Assumed { .. } | Evidence::Unreadable { .. }
        )
    });
    let changed = step
        .changes
        .iter()
        .any(|change| !matches!(change.field.as_str(), "ttl" | "mark"));
    let kind = matches!(
        step.kind,
        StepKind::Route
            | StepKind::Bridge
            | StepKind::Nat
            | StepKind::Ipvs
            | StepKind::Encap
            | StepKind::Decap
            | StepKind::Mtu
            | StepKind::Underlay
            | StepKind::Socket
            | StepKind::Unknown
    );
    ends || telling || changed || kind
}

fn label(step: &Step) -> &'static str {
    let changes = |field: &str| step.changes.iter().any(|change| change.field == field);
    match step.kind {
        StepKind::Nat | StepKind::Netfilter if changes("dst") || changes("dport") => "dnat",
        StepKind::Nat | StepKind::Netfilter if changes("src") || changes("sport") => "snat",
        StepKind::Nat => "nat",
        StepKind::Netfilter => "filter",
        StepKind::SourceAddress => "source",
        StepKind::Origin => "send",
        StepKind::RpFilter => "rp_filter",
        StepKind::Encap => "encap",
        StepKind::Decap => "decap",
        other => other.name(),
    }
}

pub(super) fn words_of(naming: &Naming<'_>, hop: &Hop, step: &Step) -> String {
    let by_kind = match step.kind {
        StepKind::Route => route(naming, hop, step),
        StepKind::Netfilter | StepKind::Nat => rules(naming, hop, step),
        StepKind::Unknown => step.evidence.iter().find_map(|evidence| match evidence {
            // The label says that it is not known.
            Evidence::Unreadable { what } => Some(what.clone()),
            _ => None,
        }),
        StepKind::Neigh => step.evidence.iter().find_map(|evidence| match evidence {
            Evidence::Neigh { neigh, dev } => Some(words::neigh(neigh, dev)),
            _ => None,
        }),
        StepKind::Bridge | StepKind::Encap => {
            step.evidence.iter().find_map(|evidence| match evidence {
                Evidence::Fdb { fdb, .. } => Some(format!(
                    "{}, fdb {}",
                    step.result,
                    words::fdb(fdb, &|index| naming.dev(&hop.ns, index))
                )),
                _ => None,
            })
        }
        _ => None,
    };
    let mut words = by_kind.unwrap_or_else(|| step.result.clone());
    let ends = hop.oif.is_none()
        && hop
            .steps
            .last()
            .is_some_and(|last| std::ptr::eq(last, step));
    let mut absent = false;
    for evidence in &step.evidence {
        let why = match evidence {
            // The reason is long and stands once, below all branches.
            Evidence::Assumed { .. } => "assumed".to_owned(),
            Evidence::Unreadable { what } if words.contains(what) => continue,
            Evidence::Unreadable { what } => format!("unknown: {what}"),
            Evidence::Sysctl { name, value } => format!("{name} = {value}"),
            // The first one is the one that counts.
            Evidence::Absent { what }
                if ends
                    && step.kind != StepKind::Neigh
                    && !std::mem::replace(&mut absent, true) =>
            {
                format!("not there: {what}")
            }
            Evidence::Link { dev, state } if ends && step.kind == StepKind::Neigh => {
                format!("{dev} is {state}")
            }
            Evidence::Socket { socket } if ends && words.contains("nothing listens") => format!(
                "there is {}",
                words::socket(socket, &|index| naming.dev(&hop.ns, index))
            ),
            _ => continue,
        };
        if !words.contains(&why) {
            words.push_str(&format!(" ({why})"));
        }
    }
    words
}

fn route(naming: &Naming<'_>, hop: &Hop, step: &Step) -> Option<String> {
    let found = step.evidence.iter().find_map(|evidence| match evidence {
        Evidence::Route { route, .. } => Some(words::route_short(route, &|index| {
            naming.dev(&hop.ns, index)
        })),
        _ => None,
    })?;
    // Only a rule that is not one of the three every system has is worth a word.
    let rule = step.evidence.iter().find_map(|evidence| match evidence {
        Evidence::PolicyRule { rule } if !matches!(rule.priority, 0 | 32_766 | 32_767) => {
            Some(words::rule(rule))
        }
        _ => None,
    });
    Some(match rule {
        Some(rule) => format!("{found} (rule {rule})"),
        None => found,
    })
}

/// Table and base chain as their own tools name them: `filter FORWARD`, `inet firewalld filter_FWD`.
pub(super) fn base_name(base: &ChainRef) -> String {
    let xtables = base.chain.chars().any(|c| c.is_ascii_uppercase())
        && !base.chain.chars().any(|c| c.is_ascii_lowercase());
    match base.backend {
        Backend::Legacy => format!("{} {} (iptables-legacy)", base.table, base.chain),
        Backend::Nft if xtables => format!("{} {}", base.table, base.chain),
        Backend::Nft => format!(
            "{} {} {} ({} {})",
            base.family.name(),
            base.table,
            base.chain,
            base.hook.name(),
            base.priority
        ),
    }
}

fn rules(naming: &Naming<'_>, hop: &Hop, step: &Step) -> Option<String> {
    let mut base = None;
    let mut path: Vec<String> = Vec::new();
    let mut deciding = None;
    let mut last_comment: Option<&str> = None;
    for evidence in &step.evidence {
        match evidence {
            Evidence::NetfilterRule {
                base: of,
                chain,
                handle,
                text,
                comment,
                ..
            } => {
                base = Some(of);
                // An endpoint's chain needs no name: the translation that it makes follows.
                let service = naming.chain(chain, comment.as_deref().or(last_comment));
                let said = |name: &String| path.iter().any(|p| p.ends_with(&format!("({name})")));
                let named = match service.filter(|_| !chain.starts_with("KUBE-SEP-")) {
                    Some(name) if !said(&name) => format!("{chain} ({name})"),
                    _ => chain.clone(),
                };
                if *chain != of.chain && path.last() != Some(&named) {
                    path.push(named);
                }
                last_comment = comment.as_deref();
                deciding = Some((chain, handle, text, comment));
            }
            Evidence::Chain { chain, policy, .. } => {
                base = base.or(Some(chain));
                if let Some(policy) = policy {
                    let word = match policy {
                        Policy::Accept => "accept",
                        Policy::Drop => "drop",
                    };
                    // The step before says between which devices.
                    let between = hop.steps.iter().rev().find(|s| s.kind == StepKind::Forward);
                    let what = match (policy, between) {
                        (Policy::Drop, Some(forward)) if chain.hook == Hook::Forward => {
                            format!("no rule accepts {}", forward.result)
                        }
                        _ => step.result.clone(),
                    };
                    return Some(format!("{}, policy {word}: {what}", base_name(chain)));
                }
            }
            _ => {}
        }
    }
    let base = base?;
    let mut words = base_name(base);
    if !path.is_empty() {
        words.push_str(&format!(": {}", path.join(" › ")));
    }
    words.push_str(" → ");
    words.push_str(&translation(step).unwrap_or_else(|| step.result.clone()));
    let Some((chain, handle, text, comment)) = deciding else {
        return Some(words);
    };
    if step.changes.is_empty() {
        let comment = comment
            .as_ref()
            .map(|comment| format!(" \"{comment}\""))
            .unwrap_or_default();
        words.push_str(&format!(", {chain} {} {handle}: {text}", number_word(base)));
        if !text.contains(comment.trim()) {
            words.push_str(&comment);
        }
    } else {
        words.push_str(&format!(" ({} {handle})", number_word(base)));
    }
    Some(words)
}

/// `10.96.14.3:80 → 10.244.1.9:8080`, for what a step translated.
fn translation(step: &Step) -> Option<String> {
    let change = |field: &str| step.changes.iter().find(|change| change.field == field);
    let side = |addr: &str, port: &str| {
        let (addr, port) = (change(addr), change(port));
        let from = |change: Option<&FieldChange>| change.map(|c| c.from.clone());
        let to = |change: Option<&FieldChange>| change.map(|c| c.to.clone());
        match (addr, port) {
            (None, None) => None,
            _ => Some(format!(
                "{} to {}",
                end(from(addr), from(port)),
                end(to(addr), to(port))
            )),
        }
    };
    let parts: Vec<String> = [
        side("dst", "dport").map(|words| format!("destination {words}")),
        side("src", "sport").map(|words| format!("source {words}")),
    ]
    .into_iter()
    .flatten()
    .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn end(addr: Option<String>, port: Option<String>) -> String {
    match (addr, port) {
        (Some(addr), Some(port)) => match addr.parse::<IpAddr>() {
            Ok(IpAddr::V6(_)) => format!("[{addr}]:{port}"),
            _ => format!("{addr}:{port}"),
        },
        (Some(addr), None) => addr,
        (None, port) => format!("port {}", port.unwrap_or_default()),
    }
}

/// nf_tables numbers rules by handle, x_tables by place.
fn number_word(base: &ChainRef) -> &'static str {
    match base.backend {
        Backend::Nft => "handle",
        Backend::Legacy => "rule",
    }
}

fn counted(counters: Option<Counters>) -> String {
    counters
        .map(|count| {
            format!(
                ", counted {} packets {} bytes so far",
                count.packets, count.bytes
            )
        })
        .unwrap_or_default()
}

/// One object that decided, on one line.
pub(super) fn object(naming: &Naming<'_>, hop: &Hop, evidence: &Evidence) -> String {
    let dev = |index| naming.dev(&hop.ns, index);
    match evidence {
        Evidence::PolicyRule { rule } => format!("ip rule: {}", words::rule(rule)),
        Evidence::Route { route, .. } => format!("ip route: {}", words::route(route, &dev)),
        Evidence::Neigh { neigh, dev } => format!("ip neigh: {}", words::neigh(neigh, dev)),
        Evidence::Fdb { fdb, .. } => format!("bridge fdb: {}", words::fdb(fdb, &dev)),
        Evidence::Link { dev, state } => format!("link {dev}: {state}"),
        Evidence::Chain {
            chain,
            policy,
            counters,
        } => {
            let policy = match policy {
                Some(Policy::Accept) => ", policy accept",
                Some(Policy::Drop) => ", policy drop",
                None => "",
            };
            format!("chain {}{policy}{}", base_name(chain), counted(*counters))
        }
        Evidence::NetfilterRule {
            base,
            chain,
            handle,
            text,
            counters,
            comment,
        } => {
            let number = format!("{} {handle}", number_word(base));
            let service = naming
                .chain_label(&base.table, chain, comment.as_deref())
                .map(|name| format!(" ({name})"))
                .unwrap_or_default();
            format!(
                "rule: {} {} {chain}{service}, {number}: {text}{}",
                base.family.name(),
                base.table,
                counted(*counters)
            )
        }
        Evidence::SetElement { set, text } => format!("set {set}: {text}"),
        Evidence::Conntrack { entry, existing } => format!(
            "conntrack{}: {}",
            if *existing { "" } else { " (new)" },
            super::conntrack::words(entry)
        ),
        Evidence::IpvsServer {
            service,
            scheduler,
            server,
        } => format!(
            "ipvs: {} -s {scheduler} {}",
            ipvs::key(service),
            ipvs::server(server)
        ),
        Evidence::IpvsService { service } => format!("ipvs: {}", ipvs::lines(service).join(", ")),
        Evidence::Sysctl { name, value } => format!("sysctl {name} = {value}"),
        Evidence::XfrmPolicy { policy } => format!("xfrm policy: {policy}"),
        Evidence::Socket { socket } => format!("socket: {}", words::socket(socket, &dev)),
        Evidence::Address { addr, dev } => format!("address {addr} on {dev}"),
        Evidence::Absent { what } => format!("not there: {what}"),
        Evidence::UnheardQueue { num, last } => {
            format!(
                "not there: a program that listens on {}",
                nfqueue::range(*num, *last)
            )
        }
        Evidence::Assumed { why } => format!("assumed: {why}"),
        Evidence::Unreadable { what } => format!("could not be read: {what}"),
    }
}
