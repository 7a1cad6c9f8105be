//! What `kubectl netpath trace -o json` said, reduced to what can be compared with packets.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result};
use netpath_lab::oracle::Point;
use serde::Deserialize;

/// How an exchange ends for the one who asks.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// A pod with a network of its own answers.
    Pod(String),
    /// A process in a node's network answers.
    Node(String),
    /// Something outside of the cluster answers.
    Outside,
    /// Something answers by a name that neither the workload nor the server outside has.
    Stranger(String),
    /// He is told that it can't be.
    Refused,
    /// He hears nothing.
    Silence,
    /// It can't be told.
    Unknown,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(name) => f.write_str(name),
            Self::Node(name) => write!(f, "host@{name}"),
            Self::Outside => f.write_str("outside"),
            Self::Stranger(name) => write!(f, "a stranger, {name:?}"),
            Self::Refused => f.write_str("refused"),
            Self::Silence => f.write_str("silence"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// `delivered`, `dropped`, ...
    pub verdict: String,
    /// Ways.
    pub branches: Vec<Branch>,
    /// What is wrong.
    pub findings: Vec<Finding>,
    /// What could not be read or decoded.
    pub unknown: Vec<String>,
}

/// One way.
#[derive(Debug)]
pub struct Branch {
    /// How it ends.
    pub end: End,
    /// Share of packets.
    pub probability: f64,
    /// Where packets are seen: the question, its answer, the client's next packet, the server's.
    pub turns: Vec<Vec<Point>>,
    /// Node on which the packet itself ends.
    pub node: Option<String>,
    /// How the packet itself ends, for people.
    pub text: String,
}

/// Something wrong.
#[derive(Debug, Deserialize)]
pub struct Finding {
    /// NP0101, ...
    pub code: String,
    /// In one line.
    pub title: String,
    /// Where.
    #[serde(rename = "where")]
    pub place: Place,
    /// Objects that show it.
    pub evidence: Vec<String>,
}

/// Where something is wrong.
#[derive(Debug, Deserialize)]
pub struct Place {
    /// Node.
    pub node: String,
    /// Namespace.
    pub netns: String,
    /// Device or other object.
    pub object: Option<String>,
}

#[derive(Deserialize)]
struct TraceJson {
    verdict: String,
    branches: Vec<BranchJson>,
    findings: Vec<Finding>,
    unknown: Vec<String>,
}

#[derive(Deserialize)]
struct BranchJson {
    probability: f64,
    verdict: String,
    disposition: DispositionJson,
    hops: Vec<HopJson>,
    reply: Option<ReplyJson>,
    later: Vec<LaterJson>,
}

#[derive(Deserialize)]
struct ReplyJson {
    disposition: DispositionJson,
    hops: Vec<HopJson>,
}

#[derive(Deserialize)]
struct LaterJson {
    taps: Vec<PlacedTapJson>,
}

#[derive(Deserialize)]
struct DispositionJson {
    kind: String,
    reason: Option<String>,
    node: Option<String>,
    netns: Option<String>,
    step: String,
}

#[derive(Deserialize)]
struct HopJson {
    node: String,
    netns: String,
    taps: Vec<TapJson>,
}

#[derive(Deserialize)]
struct PlacedTapJson {
    node: String,
    netns: String,
    #[serde(flatten)]
    tap: TapJson,
}

#[derive(Deserialize)]
struct TapJson {
    device: String,
    direction: String,
    packet: PacketJson,
}

#[derive(Deserialize)]
struct PacketJson {
    src: IpAddr,
    dst: IpAddr,
    dport: Option<u16>,
    ttl: u8,
    inner: Option<Box<PacketJson>>,
}

/// Reads an answer.
pub fn parse(json: &[u8]) -> Result<Answer> {
    let trace: TraceJson = serde_json::from_slice(json).context("read a trace's JSON")?;
    Ok(Answer {
        verdict: trace.verdict,
        branches: trace.branches.iter().map(branch).collect(),
        findings: trace.findings,
        unknown: trace.unknown,
    })
}

fn branch(from: &BranchJson) -> Branch {
    let mut turns = vec![of_hops(&from.hops)];
    turns.extend(from.reply.iter().map(|reply| of_hops(&reply.hops)));
    turns.extend(from.later.iter().map(|later| {
        let taps = later.taps.iter();
        taps.map(|one| point(&one.node, &one.netns, &one.tap))
            .collect()
    }));
    let said = |way: &DispositionJson| {
        format!(
            "{} {} [{} {}] {}",
            way.kind,
            way.reason.as_deref().unwrap_or_default(),
            way.node.as_deref().unwrap_or_default(),
            way.netns.as_deref().unwrap_or_default(),
            way.step
        )
    };
    let mut text = said(&from.disposition);
    if let Some(reply) = &from.reply {
        text = format!("{text}; answer: {}", said(&reply.disposition));
    }
    Branch {
        end: end(from),
        probability: from.probability,
        turns,
        node: from.disposition.node.clone(),
        text,
    }
}

fn end(branch: &BranchJson) -> End {
    match branch.verdict.as_str() {
        "delivered" if branch.disposition.kind == "leaves-cluster" => End::Outside,
        "delivered" => match branch.hops.last() {
            Some(hop) if hop.netns == "host" => End::Node(hop.node.clone()),
            Some(hop) => End::Pod(hop.netns.rsplit('/').next().unwrap_or_default().to_owned()),
            None => End::Unknown,
        },
        "rejected" => End::Refused,
        "dropped" | "loop" => End::Silence,
        _ => End::Unknown,
    }
}

fn of_hops(hops: &[HopJson]) -> Vec<Point> {
    let taps = hops.iter().flat_map(|hop| {
        let taps = hop.taps.iter();
        taps.map(|tap| point(&hop.node, &hop.netns, tap))
    });
    taps.collect()
}

fn point(node: &str, netns: &str, tap: &TapJson) -> Point {
    let inner = tap.packet.inner.as_ref();
    Point {
        place: match netns {
            "host" => node.to_owned(),
            other => other.strip_prefix("pod ").unwrap_or(other).to_owned(),
        },
        dev: tap.device.clone(),
        out: tap.direction == "out",
        src: tap.packet.src,
        dst: tap.packet.dst,
        dport: tap.packet.dport,
        ttl: tap.packet.ttl,
        inner: inner.map(|inner| (inner.src, inner.dst, inner.ttl)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(verdict: &str, kind: &str, netns: &str) -> Answer {
        let packet = serde_json::json!({
            "src": "10.244.1.2", "dst": "10.244.2.3", "dport": 80, "ttl": 63,
            "inner": {"src": "10.0.0.1", "dst": "10.0.0.2", "dport": null, "ttl": 62, "inner": null},
        });
        let way = serde_json::json!({"kind": kind, "reason": null, "node": "n2", "netns": netns, "step": "s"});
        let tap = serde_json::json!({"device": "eth0", "direction": "out", "packet": packet});
        let mut later = tap.clone();
        later["node"] = "n1".into();
        later["netns"] = "host".into();
        let json = serde_json::json!({
            "verdict": verdict,
            "branches": [{
                "probability": 1.0, "verdict": verdict, "disposition": way,
                "hops": [{"node": "n2", "netns": netns, "taps": [tap]}],
                "reply": {"disposition": way, "hops": []},
                "later": [{"disposition": way, "hops": [], "taps": [later]}],
            }],
            "findings": [], "unknown": [],
        });
        parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn ends_are_those_that_a_client_sees() {
        let end = |verdict, kind, netns| said(verdict, kind, netns).branches[0].end.clone();
        assert_eq!(
            end("delivered", "delivered", "pod a/web"),
            End::Pod("web".to_owned())
        );
        assert_eq!(
            end("delivered", "delivered", "host"),
            End::Node("n2".to_owned())
        );
        assert_eq!(end("delivered", "leaves-cluster", "host"), End::Outside);
        assert_eq!(end("rejected", "rejected", "host"), End::Refused);
        assert_eq!(end("dropped", "delivered", "pod a/web"), End::Silence);
        assert_eq!(end("inconclusive", "inconclusive", "host"), End::Unknown);
    }

    #[test]
    fn every_packet_of_the_exchange_has_its_points() {
        let answer = said("delivered", "delivered", "pod a/web");
        let turns = &answer.branches[0].turns;
        assert_eq!(
            turns.iter().map(Vec::len).collect::<Vec<_>>(),
            [1, 0, 1],
            "question, answer, client"
        );
        assert_eq!(turns[0][0].place, "a/web");
        assert_eq!(turns[2][0].place, "n1");
        assert_eq!(turns[0][0].dport, Some(80));
        let inner = ["10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        assert_eq!(turns[0][0].inner, Some((inner[0], inner[1], 62)));
    }
}
