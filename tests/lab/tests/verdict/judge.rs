//! What the product says of a question, beside what was seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::iter;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpath::collect::{Collector, Roots};
use netpath::model::packet::{Inner, L4, Packet, TCP, UDP};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, Fact, NsTarget, Want};
use netpath::model::{NetNsId, NsKey};
use netpath::simulate::{Flow, Limits, Outcome, Sent, send, simulate};
use netpath::trace::{Disposition, RejectWith, Trace};
use nix::errno::Errno;

use super::net::{Net, PLACES};
use super::packets::{Kind, Question};
use super::wire::{Observed, Point, Refusal, length};

const NODE: &str = "here";
const WAIT: Duration = Duration::from_secs(20);

/// The product's own reader, and what it read.
pub struct Judge {
    collector: Collector,
    pub topology: Topology,
    names: BTreeMap<NetNsId, &'static str>,
}

/// How prediction and kernel compare.
pub enum Verdict {
    Agrees,
    /// Why.
    Unknown(String),
    /// In words.
    Differs(String),
}

impl Judge {
    pub fn up() -> Result<Self> {
        let roots = Roots {
            proc: PathBuf::from("/proc"),
            netns: vec![PathBuf::from("/run/netns")],
        };
        Ok(Self {
            collector: Collector::new(roots)?,
            topology: Topology::default(),
            names: BTreeMap::new(),
        })
    }

    /// Reads namespaces with all their rules.
    pub fn read(&mut self, net: &Net, places: &[&'static str]) -> Result<()> {
        for place in places {
            let want = Want::NetNs {
                target: NsTarget::Named(net.netns(place)),
                depth: Depth::Full,
            };
            let mut found = false;
            for fact in self.collector.collect(&[want], WAIT) {
                if let Fact::NetNs(ns) = &fact {
                    found = true;
                    self.names.insert(ns.identity.id, place);
                }
                self.topology.merge(NODE, fact);
            }
            ensure!(found, "read namespace {place}: it was not found");
        }
        Ok(())
    }

    pub fn read_all(&mut self, net: &Net) -> Result<()> {
        self.read(net, &PLACES)
    }

    fn key(&self, place: &str) -> Result<NsKey> {
        let found = self.names.iter().find(|(_, name)| **name == place);
        let (netns, _) = found.with_context(|| format!("{place} was not read"))?;
        Ok(NsKey {
            node: NODE.to_owned(),
            netns: *netns,
        })
    }

    /// All ways that a question may take.
    pub fn predict(&mut self, question: &Question) -> Result<Vec<Trace>> {
        let from = self.key(question.from)?;
        // Entries were made and changed since.
        if let Some(node) = self.topology.nodes.get_mut(NODE) {
            for ns in node.netns.values_mut() {
                ns.conntrack.clear();
                ns.conntrack_from.clear();
            }
        }
        self.ask(|topology| once(topology, question, from.clone()))
    }

    /// Runs a simulation until nothing is wanted.
    fn ask(&mut self, run: impl Fn(&Topology) -> Outcome) -> Result<Vec<Trace>> {
        let mut asked = BTreeSet::new();
        loop {
            let mut outcome = run(&self.topology);
            let wants = outcome.wants.remove(NODE).unwrap_or_default();
            let new: Vec<Want> = wants.difference(&asked).cloned().collect();
            if new.is_empty() {
                return Ok(outcome.traces);
            }
            for fact in self.collector.collect(&new, WAIT) {
                self.topology.merge(NODE, fact);
            }
            asked.extend(new);
        }
    }

    /// Holds what was seen against the ways predicted: it must be one of them.
    pub fn compare(
        &mut self,
        question: &Question,
        traces: &[Trace],
        observed: &Observed,
    ) -> Verdict {
        let sum: f64 = traces.iter().map(|trace| trace.probability).sum();
        if (sum - 1.0).abs() > 1e-6 {
            return Verdict::Differs(format!("{question}: probabilities add up to {sum}"));
        }
        for trace in traces {
            if let Disposition::Inconclusive(why) = trace.outcome() {
                return Verdict::Unknown(why.join("; "));
            }
        }
        let mut text = format!("{question}\n");
        for trace in traces {
            let Err(why) = self.fits(question, trace, observed) else {
                return Verdict::Agrees;
            };
            let _ = writeln!(text, " predicted: {why}");
            for (number, packet) in chain(trace).enumerate() {
                let _ = writeln!(text, "  packet {}: {:?}", number + 1, packet.disposition);
                for point in self.points(packet) {
                    let _ = writeln!(text, "    {point}");
                }
                if traces.len() == 1 {
                    for step in packet.hops.iter().flat_map(|hop| &hop.steps) {
                        let _ = writeln!(text, "      - {}: {:?}", step.result, step.evidence);
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
        Verdict::Differs(text)
    }

    fn points(&self, trace: &Trace) -> Vec<Point> {
        let mut points = Vec::new();
        for hop in &trace.hops {
            let place = self.names.get(&hop.ns.netns).copied().unwrap_or("?");
            points.extend(hop.taps.iter().map(|tap| Point {
                place: place.to_owned(),
                dev: tap.dev.clone(),
                out: tap.out,
                src: tap.packet.src,
                dst: tap.packet.dst,
                sport: tap.packet.sport(),
                dport: tap.packet.dport(),
                ttl: tap.packet.ttl,
                tos: tap.packet.tos,
            }));
        }
        points
    }

    /// Whether the reset that a closed port answers with is dropped where it is sent, before any device.
    fn reset_is_lost(&mut self, trace: &Trace) -> Result<bool> {
        let from = trace.hops.last().context("a trace has hops")?.ns.clone();
        let mut packet = trace.packet.reply(64);
        if let L4::Tcp { flags, .. } = &mut packet.l4 {
            *flags = 0x14;
        }
        let reset = Sent {
            from,
            packet,
            mark: 0,
            uid: None,
            gid: None,
        };
        let traces = self.ask(|topology| send(topology, &reset, &Limits::default()))?;
        Ok(traces.iter().all(|trace| {
            matches!(trace.disposition, Disposition::Dropped(_)) && self.points(trace).is_empty()
        }))
    }

    fn fits(
        &mut self,
        question: &Question,
        trace: &Trace,
        observed: &Observed,
    ) -> Result<(), String> {
        let raw = question.kind != Kind::Exchange;
        let predicted: Vec<_> = chain(trace).map(|packet| self.points(packet)).collect();
        let mut predicted = predicted.into_iter();
        let free = free_ports(trace);
        for (number, seen) in observed.turns.iter().enumerate() {
            let points = predicted.next().unwrap_or_default();
            let pairs = points.iter().zip(seen);
            let equal = points.len() == seen.len() && pairs.clone().all(|(a, b)| same(a, b, free));
            if !equal {
                return Err(format!("packet {} is not where it was seen", number + 1));
            }
        }
        let refusal = observed.refusal;
        let ends = match &trace.disposition {
            Disposition::Delivered | Disposition::LeavesCluster if raw => {
                taken_raw(question, observed)
            }
            Disposition::Delivered | Disposition::LeavesCluster => {
                // What becomes of lost answers their points tell.
                !trace.works() || observed.taken && refusal.is_none()
            }
            Disposition::Rejected(RejectWith::PortClosed) if raw => {
                let reset = matches!(question.kind, Kind::Raw { flags, .. } if flags & 4 != 0);
                match refusal {
                    None if reset => true,
                    None => self
                        .reset_is_lost(trace)
                        .map_err(|error| format!("{error:#}"))?,
                    Some(own) => !reset && own == Refusal::Reset,
                }
            }
            // The refusal itself may be refused on its way.
            Disposition::Rejected(RejectWith::PortClosed) if refusal.is_none() => self
                .reset_is_lost(trace)
                .map_err(|error| format!("{error:#}"))?,
            Disposition::Rejected(with) => refusal.is_some_and(|own| is(*with, own)),
            // Nobody is told by a packet; the call of a local sender may fail.
            Disposition::Dropped(_) | Disposition::Loop => {
                !observed.taken && matches!(refusal, None | Some(Refusal::Call(_)))
            }
            Disposition::Inconclusive(_) => false,
        };
        if ends {
            Ok(())
        } else {
            Err(format!("{:?} is not what was seen", trace.disposition))
        }
    }
}

fn once(topology: &Topology, question: &Question, from: NsKey) -> Outcome {
    let limits = Limits::default();
    let (id, len) = (Some(question.id), length(question));
    if let Kind::Error { icmp, by } = question.kind {
        let quoted = Question {
            kind: Kind::Raw {
                flags: 2,
                icmp: (8, 0),
            },
            ..*question
        };
        let mut packet = raw_packet(&quoted, (2, (8, 0)), length(&quoted));
        packet = Packet {
            src: by,
            dst: question.src,
            len,
            l4: L4::Icmp {
                kind: icmp.0,
                code: icmp.1,
                id: Some(0),
            },
            inner: Some(Box::new(Inner { vni: None, packet })),
            ..raw_packet(&quoted, (2, (8, 0)), len)
        };
        let sent = Sent {
            from,
            packet,
            mark: question.mark,
            uid: id,
            gid: id,
        };
        return send(topology, &sent, &limits);
    }
    let Kind::Raw { flags, icmp } = question.kind else {
        let ports = matches!(question.protocol, TCP | UDP);
        let flow = Flow {
            from,
            src: Some(question.src),
            sport: Some(question.sport),
            dst: question.dst,
            dport: ports.then_some(question.dport),
            protocol: question.protocol,
            len,
            uid: id,
            gid: id,
        };
        return simulate(topology, &flow, &limits);
    };
    let sent = Sent {
        from,
        packet: raw_packet(question, (flags, icmp), len),
        mark: question.mark,
        uid: id,
        gid: id,
    };
    send(topology, &sent, &limits)
}

fn raw_packet(question: &Question, (flags, icmp): (u8, (u8, u8)), len: u32) -> Packet {
    let (sport, dport) = (Some(question.sport), Some(question.dport));
    Packet {
        eth: None,
        src: question.src,
        dst: question.dst,
        ttl: 64,
        tos: 0,
        df: true,
        len,
        l4: match question.protocol {
            TCP => L4::Tcp {
                sport,
                dport,
                flags,
            },
            UDP => L4::Udp { sport, dport },
            _ => L4::Icmp {
                kind: icmp.0,
                code: icmp.1,
                id: sport,
            },
        },
        inner: None,
    }
}

fn chain(trace: &Trace) -> impl Iterator<Item = &Trace> {
    iter::successors(Some(trace), |packet| packet.reply.as_deref())
}

/// A packet from a raw socket that reaches a socket or kernel: what is said of it, where anything is.
fn taken_raw(question: &Question, observed: &Observed) -> bool {
    if let Kind::Error { .. } = question.kind {
        return true;
    }
    let Kind::Raw { flags, .. } = question.kind else {
        return false;
    };
    match question.protocol {
        TCP if flags == 2 => observed.taken && observed.refusal.is_none(),
        // A listener resets what belongs to no connection, or passes over it.
        TCP => !matches!(observed.refusal, Some(Refusal::Icmp { .. })),
        UDP => observed.taken,
        _ => observed.refusal.is_none(),
    }
}

/// Ports that a source gets where it is any free one: those that a rule names, or those from 1024 on.
fn free_ports(trace: &Trace) -> (u16, u16) {
    let steps = chain(trace).flat_map(|packet| packet.hops.iter().flat_map(|hop| &hop.steps));
    let named = steps.filter_map(|step| {
        let (_, range) = step.result.split_once(", port ")?;
        let (first, last) = range.split_once(" to ")?;
        Some((first.parse().ok()?, last.parse().ok()?))
    });
    named.last().unwrap_or((1024, u16::MAX))
}

/// Ports that the prediction leaves open are any of the free ones.
fn same(predicted: &Point, seen: &Point, free: (u16, u16)) -> bool {
    let port = |own: Option<u16>, other: Option<u16>| match (own, other) {
        (None, Some(other)) => (free.0..=free.1).contains(&other),
        (own, other) => own == other,
    };
    port(predicted.sport, seen.sport)
        && port(predicted.dport, seen.dport)
        && Point {
            sport: None,
            dport: None,
            ..predicted.clone()
        } == Point {
            sport: None,
            dport: None,
            ..seen.clone()
        }
}

fn is(with: RejectWith, seen: Refusal) -> bool {
    let icmp = |four: (u8, u8), six: (u8, u8)| match seen {
        Refusal::Icmp { v6, kind, code } => (kind, code) == if v6 { six } else { four },
        _ => false,
    };
    let call = |errors: &[Errno]| matches!(seen, Refusal::Call(error) if errors.contains(&error));
    match with {
        RejectWith::TcpReset | RejectWith::PortClosed => seen == Refusal::Reset,
        RejectWith::Icmp(code) => icmp((3, code), (1, code)),
        RejectWith::PortUnreachable => icmp((3, 3), (1, 4)),
        RejectWith::NetUnreachable => icmp((3, 0), (1, 0)) || call(&[Errno::ENETUNREACH]),
        RejectWith::HostUnreachable => icmp((3, 1), (1, 3)) || call(&[Errno::EHOSTUNREACH]),
        RejectWith::Prohibited => icmp((3, 13), (1, 1)) || call(&[Errno::EACCES]),
        RejectWith::TooBig(_) => icmp((3, 4), (2, 0)) || call(&[Errno::EMSGSIZE]),
        RejectWith::TtlExceeded => icmp((11, 0), (3, 0)),
        RejectWith::InvalidArgument => call(&[Errno::EINVAL, Errno::ENETUNREACH]),
    }
}
