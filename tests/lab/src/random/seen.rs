//! What packet sockets saw of a probe, and where it was predicted to be seen, as data.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::{fmt, iter};

use netpath::model::NsKey;
use netpath::model::packet::{Packet, Wrap};
use netpath::trace::Trace;
use serde::{Deserialize, Serialize};

/// A packet at one device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// Namespace.
    pub place: String,
    /// Device.
    pub dev: String,
    /// It left by the device.
    pub out: bool,
    /// Source.
    pub src: IpAddr,
    /// Destination.
    pub dst: IpAddr,
    /// Source port.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
    /// TTL.
    pub ttl: u8,
    /// Differentiated services.
    pub tos: u8,
    /// Addresses and TTL inside a tunnel.
    pub inner: Option<(IpAddr, IpAddr, u8)>,
    /// The frame was for another station, at a device that passes none on.
    #[serde(default)]
    pub elsewhere: bool,
    /// A packet of WireGuard that carries something.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sealed: bool,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = |port: Option<u16>| port.map_or_else(|| "any".to_owned(), |p| p.to_string());
        write!(
            f,
            "{:<3} {} {:<8} {} {} > {} {} ttl {} tos {:#x}",
            self.place,
            if self.out { "out" } else { "in " },
            self.dev,
            self.src,
            port(self.sport),
            self.dst,
            port(self.dport),
            self.ttl,
            self.tos
        )?;
        if let Some((src, dst, ttl)) = self.inner {
            write!(f, " [{src} > {dst} ttl {ttl}]")?;
        }
        if self.sealed {
            write!(f, " [WireGuard]")?;
        }
        if self.elsewhere {
            write!(f, " (for another station)")?;
        }
        Ok(())
    }
}

/// How the sender was told no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// TCP reset.
    Reset,
    /// ICMP error.
    Icmp {
        /// ICMPv6.
        v6: bool,
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
    },
    /// The call failed with this number of Linux's, and nothing was seen.
    Call(i32),
}

/// What was seen of a probe.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Observed {
    /// Question, answer, and one more of each side.
    pub turns: [Vec<Point>; 4],
    /// The first refusal.
    pub refusal: Option<Refusal>,
    /// A socket or kernel took it and said so.
    pub taken: bool,
    /// Namespaces that ICMP errors of IPv4 came into, with the source of each.
    #[serde(default)]
    pub errors: Vec<(String, IpAddr)>,
    /// Namespaces that refused a packet of IPv4 aloud, as routes do, with its source.
    #[serde(default)]
    pub refused: Vec<(String, IpAddr)>,
    /// Namespaces that ICMP errors about packets of IP tunnels came into, until then, with the remote of each.
    #[serde(default)]
    pub told: BTreeSet<(String, IpAddr)>,
}

/// Tells a namespace's name.
pub type Name<'f> = &'f dyn Fn(&NsKey) -> String;

/// The packets of an exchange.
pub fn chain(trace: &Trace) -> impl Iterator<Item = &Trace> {
    iter::successors(Some(trace), |packet| packet.reply.as_deref())
}

/// Where a packet was predicted to be seen; `name` tells namespaces' names.
pub fn points(trace: &Trace, name: Name<'_>) -> Vec<Point> {
    let mut points = Vec::new();
    for hop in &trace.hops {
        let place = name(&hop.ns);
        points.extend(hop.taps.iter().map(|tap| Point {
            inner: inner(&tap.packet),
            place: place.clone(),
            dev: tap.dev.clone(),
            out: tap.out,
            src: tap.packet.src,
            dst: tap.packet.dst,
            sport: tap.packet.sport(),
            dport: tap.packet.dport(),
            ttl: tap.packet.ttl,
            tos: tap.packet.tos,
            elsewhere: false,
            sealed: is_sealed(innermost(&tap.packet)),
        }));
    }
    points
}

/// Whether a point is one of before again: a later packet of the same turn, or one that goes round by tunnels. TCP that
/// sends again has another hash, and so has its tunnel another source port (`sk_rethink_txhash()`).
pub fn is_repetition(before: &[Point], point: &Point) -> bool {
    before.iter().any(|one| {
        let like = Point {
            sport: one.sport,
            ..point.clone()
        };
        one == point || one.inner.is_some() && point.inner.is_some() && *one == like
    })
}

/// Whether a packet is one of WireGuard with another inside.
fn is_sealed(packet: &Packet) -> bool {
    let inner = packet.inner.as_ref();
    inner.is_some_and(|inner| matches!(inner.wrap, Wrap::Wireguard { .. }))
}

/// The last packet that can be seen of tunnels inside each other.
fn innermost(packet: &Packet) -> &Packet {
    iter::successors(Some(packet), |packet| carried(packet))
        .last()
        .unwrap_or(packet)
}

fn carried(packet: &Packet) -> Option<&Packet> {
    let open = packet.is_tunnel() && !is_sealed(packet);
    let inner = packet.inner.as_deref().filter(|_| open);
    inner.map(|inner| &inner.packet)
}

/// What a tunnel carries in the end; what an ICMP error quotes is no packet that is seen.
fn inner(packet: &Packet) -> Option<(IpAddr, IpAddr, u8)> {
    // Of tunnels inside each other, the innermost packet, as sockets tell it.
    let inner = iter::successors(carried(packet), |packet| carried(packet)).last()?;
    Some((inner.src, inner.dst, inner.ttl))
}

/// Traces, as far as they may be compared, for people.
pub fn show(traces: &[Trace], name: Name<'_>, observed: &Observed) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    for trace in traces {
        let _ = writeln!(text, " predicted, {:.4}:", trace.probability);
        for (number, packet) in chain(trace).enumerate() {
            let _ = writeln!(text, "  packet {}: {:?}", number + 1, packet.disposition);
            for point in points(packet, name) {
                let _ = writeln!(text, "    {point}");
            }
            for hop in packet.hops.iter().filter(|_| traces.len() < 3) {
                for step in &hop.steps {
                    let kind = step.kind.name();
                    let _ = writeln!(text, "      - {} {kind}: {}", name(&hop.ns), step.result);
                }
            }
        }
    }
    let (refusal, taken) = (observed.refusal, observed.taken);
    let _ = writeln!(text, " seen: refusal {refusal:?}, taken {taken}");
    for (number, points) in observed.turns.iter().enumerate() {
        let _ = writeln!(text, "  packet {}", number + 1);
        for point in points {
            let _ = writeln!(text, "    {point}");
        }
    }
    text
}
