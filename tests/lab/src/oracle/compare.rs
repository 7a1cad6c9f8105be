//! One shape for what was predicted and what was seen.

use std::fmt;
use std::net::IpAddr;

use netpath::model::packet::{L4, Packet};
use netpath::model::topology::Topology;
use netpath::trace::Trace;

use super::place_name;
use crate::capture::{Direction, Seen};
use crate::cluster::Cluster;
use crate::packet::Transport;

/// A packet at one interface, reduced to what a prediction tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Node or NAMESPACE/POD.
    pub place: String,
    /// Interface.
    pub dev: String,
    /// It left by the interface.
    pub out: bool,
    /// Outermost addresses.
    pub src: IpAddr,
    /// Outermost destination.
    pub dst: IpAddr,
    /// Outermost destination port; none for the answer, whose port is any.
    pub dport: Option<u16>,
    /// TTL of the outermost header.
    pub ttl: u8,
    /// Addresses and destination port inside a tunnel.
    pub inner: Option<(IpAddr, IpAddr, u8)>,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arrow = if self.out { "out" } else { "in " };
        write!(
            f,
            "{:<28} {arrow} {:<14} {} > {}",
            self.place, self.dev, self.src, self.dst
        )?;
        if let Some(port) = self.dport {
            write!(f, " port {port}")?;
        }
        write!(f, " ttl {}", self.ttl)?;
        if let Some((src, dst, ttl)) = self.inner {
            write!(f, " [{src} > {dst} ttl {ttl}]")?;
        }
        Ok(())
    }
}

/// Points of a trace in order; those of the underlay are not the product's to tell.
pub fn predicted(cluster: &Cluster, topology: &Topology, trace: &Trace) -> Vec<Point> {
    let mut points = Vec::new();
    for hop in &trace.hops {
        let place = place_name(cluster, topology, &hop.ns).unwrap_or_else(|| hop.ns.to_string());
        for tap in &hop.taps {
            points.push(from_packet(&place, &tap.dev, tap.out, &tap.packet));
        }
    }
    points
}

fn from_packet(place: &str, dev: &str, out: bool, packet: &Packet) -> Point {
    let inner = packet.inner.as_ref().map(|inner| &inner.packet);
    Point {
        place: place.to_owned(),
        dev: dev.to_owned(),
        out,
        src: packet.src,
        dst: packet.dst,
        dport: match packet.l4 {
            L4::Tcp { dport, .. } | L4::Udp { dport, .. } => dport,
            _ => None,
        },
        ttl: packet.ttl,
        inner: inner.map(|inner| (inner.src, inner.dst, inner.ttl)),
    }
}

/// A packet of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// The first one.
    Question,
    /// Its answer.
    Answer,
    /// Of TCP, those of the client once the connection stands.
    Client,
    /// Those of the server.
    Server,
}

/// Whether a packet belongs to a turn.
///
/// Of TCP, the SYN, its answer, and what is neither SYN, FIN nor RST; of UDP, datagrams: to one of `ports`, the
/// ports that servers have, or from one. The client's own port is none of them. Of ICMP, echoes.
fn belongs(transport: &Transport, ports: &[u16], turn: Turn) -> bool {
    let forth = matches!(turn, Turn::Question | Turn::Client);
    let to_server = |source, destination| ports.contains(if forth { destination } else { source });
    match transport {
        Transport::Tcp {
            flags,
            source,
            destination,
            ..
        } => match turn {
            Turn::Question => flags & 0x17 == 0x02 && to_server(source, destination),
            Turn::Answer => flags & 0x17 == 0x12 && to_server(source, destination),
            Turn::Client | Turn::Server => flags & 0x17 == 0x10 && to_server(source, destination),
        },
        Transport::Udp {
            source,
            destination,
            ..
        } => matches!(turn, Turn::Question | Turn::Answer) && to_server(source, destination),
        Transport::Icmp { kind, .. } => match turn {
            Turn::Question => matches!(kind, 8 | 128),
            Turn::Answer => matches!(kind, 0 | 129),
            Turn::Client | Turn::Server => false,
        },
        Transport::Tunnel(_) | Transport::Other => false,
    }
}

/// Points of one turn of an exchange, in order of time.
pub fn observed(seen: &[Seen], ports: &[u16], turn: Turn) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::new();
    for one in seen.iter().filter(|one| one.place != "underlay") {
        let Some(ip) = &one.frame.ip else { continue };
        let Some(innermost) = one.frame.innermost() else {
            continue;
        };
        let wanted = belongs(&innermost.transport, ports, turn);
        let elsewhere =
            one.for_other_host && one.direction == Direction::In && !is_bridge_port(one);
        if !wanted || elsewhere {
            continue;
        }
        let inner = (!std::ptr::eq(innermost, ip)).then_some(innermost);
        let point = Point {
            place: one.place.clone(),
            dev: one.ifname.clone(),
            out: one.direction == Direction::Out,
            src: ip.source,
            dst: ip.destination,
            dport: match ip.transport {
                Transport::Tcp { destination, .. } | Transport::Udp { destination, .. } => {
                    Some(destination)
                }
                _ => None,
            },
            ttl: ip.ttl,
            inner: inner.map(|inner| (inner.source, inner.destination, inner.ttl)),
        };
        // A repetition is a retransmission.
        if !points.contains(&point) {
            points.push(point);
        }
    }
    points
}

/// A bridge port receives frames for others by nature.
fn is_bridge_port(seen: &Seen) -> bool {
    seen.ifname.starts_with("veth")
}

/// Where prediction and observation differ first, for people; `None` where they agree.
///
/// Ports that the prediction leaves open (the client's own) agree with any.
pub fn difference(predicted: &[Point], observed: &[Point]) -> Option<String> {
    let same = |a: &Point, b: &Point| {
        let port = a.dport.is_none() || a.dport == b.dport;
        port && Point {
            dport: None,
            ..a.clone()
        } == Point {
            dport: None,
            ..b.clone()
        }
    };
    let equal = predicted.len() == observed.len()
        && predicted.iter().zip(observed).all(|(a, b)| same(a, b));
    if equal {
        return None;
    }
    let list = |points: &[Point]| {
        points
            .iter()
            .map(|point| format!("  {point}\n"))
            .collect::<Vec<_>>()
            .concat()
    };
    Some(format!(
        "predicted:\n{}observed:\n{}",
        list(predicted),
        list(observed)
    ))
}
