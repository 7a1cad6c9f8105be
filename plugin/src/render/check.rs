//! What `check` found, as text or as data of schema `netpath.check/v1`: docs/output.md describes it.

#![expect(
    clippy::format_push_string,
    reason = "writing to a String cannot fail, and its result would have to be ignored"
)]

use netpath::explain::{Checkup, NodeCheck};
use serde::Serialize;

use super::findings;
use super::json::finding;
use super::json_types::FindingJson;
use super::paint::{Options, Style};

/// Name of the schema.
pub const SCHEMA: &str = "netpath.check/v1";

/// The whole answer.
#[derive(Serialize)]
pub struct CheckJson<'a> {
    schema: &'static str,
    /// `ok`, `faulty` or `inconclusive`.
    verdict: &'static str,
    nodes: Vec<NodeJson<'a>>,
    findings: Vec<FindingJson<'a>>,
    unknown: &'a [String],
}

#[derive(Serialize)]
struct NodeJson<'a> {
    node: &'a str,
    verdict: &'static str,
    proxies: &'a [String],
    service_ports: usize,
    findings: usize,
    unknown: usize,
}

/// `faulty` where something was found, else `inconclusive` where something could not be told, else `ok`.
fn verdict(findings: usize, unknown: usize) -> &'static str {
    match (findings, unknown) {
        (0, 0) => "ok",
        (0, _) => "inconclusive",
        _ => "faulty",
    }
}

/// The answer as data.
pub fn data(checkup: &Checkup) -> CheckJson<'_> {
    let nodes = checkup.nodes.iter().map(|node| NodeJson {
        node: &node.node,
        verdict: verdict(node.findings, node.unknown),
        proxies: &node.proxies,
        service_ports: node.ports,
        findings: node.findings,
        unknown: node.unknown,
    });
    CheckJson {
        schema: SCHEMA,
        verdict: verdict(checkup.findings.len(), checkup.unknown.len()),
        nodes: nodes.collect(),
        findings: checkup.findings.iter().map(finding).collect(),
        unknown: &checkup.unknown,
    }
}

/// The answer for people.
pub fn text(checkup: &Checkup, options: &Options) -> String {
    let mut text = String::new();
    let width = checkup.nodes.iter().map(|node| node.node.chars().count());
    let width = width.max().unwrap_or(0);
    for node in &checkup.nodes {
        let (style, sign, words) = match verdict(node.findings, node.unknown) {
            "ok" => (Style::Good, "✓", "endpoints agree".to_owned()),
            "inconclusive" => (Style::Unsure, "?", "can't be told".to_owned()),
            _ if node.findings == 1 => (Style::Bad, "✗", "1 finding".to_owned()),
            _ => (Style::Bad, "✗", format!("{} findings", node.findings)),
        };
        let words = options.paint(style, &format!("{sign} {words}"));
        text.push_str(&format!("{:width$}  {words}{}\n", node.node, seen(node)));
    }
    findings::findings(&mut text, &checkup.findings, options);
    findings::list(&mut text, "unknown", &checkup.unknown, options);
    options.plain(&text)
}

/// What was compared.
fn seen(node: &NodeCheck) -> String {
    match (node.proxies.as_slice(), node.ports) {
        ([], _) => String::new(),
        (proxies, 1) => format!("   1 Service port in {}", proxies.join(", ")),
        (proxies, ports) => format!("   {ports} Service ports in {}", proxies.join(", ")),
    }
}
