//! Really sends packets, and tells what packet sockets saw of them.
//!
//! Nothing waits for time to pass: a thread keeps to one CPU ([`super::cpu`]), on which the kernel handles what it
//! sends in order, so that a few datagrams to itself come back only when all that was sent before has been handled.

mod bytes;
mod exchange;
mod order;
mod raw;
mod refusal;
mod sealed;
mod socket;

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use netpath::model::packet::{TCP, UDP};

use super::cpu;
use super::places::Places;
use super::seen::{Observed, Point, is_repetition};
use super::wireguard::Barrier;
use super::world::{Kind, Probe};
use crate::capture::{Capture, Direction, Seen};
use crate::command::run;
use crate::packet::{Sealed, Transport};

pub use socket::Servers;

/// More than the devices that four packets pass one after the other.
const PASSES: usize = 48;

/// IPTUNNEL_ERR_TIMEO in nanoseconds: a tunnel forgets what it was told before that (include/net/ip_tunnels.h).
const ERR_TIMEO: i128 = 30_000_000_000;

/// How often what is told of neighbours that nobody has waits for a neighbour itself.
const ROUNDS: usize = 4;

/// Sockets in a set of namespaces, and a capture everywhere.
pub struct Wire<'p> {
    places: &'p Places,
    capture: Capture,
    servers: Servers,
    sentinel: UdpSocket,
    ports: BTreeSet<(String, String)>,
    /// Ports that probes were sent from, where errors about them may come late.
    earlier: Option<BTreeSet<u16>>,
    /// Namespaces that ICMP errors of IPv4 came into since the last probe, with the source of each.
    errors: Vec<(String, IpAddr)>,
    /// Namespaces that refused a packet of IPv4 aloud since then, with its source.
    refused: Vec<(String, IpAddr)>,
    /// Namespaces that ICMP errors about packets of IP tunnels came into, with the remote of each, and when.
    told: Vec<(String, IpAddr, i128)>,
    /// How long to wait until nothing more comes, where the kernel works on packets in other threads (WireGuard).
    patience: Option<Duration>,
    /// What tells when such threads are done.
    barriers: Vec<Barrier>,
    sealed: BTreeSet<String>,
}

impl<'p> Wire<'p> {
    /// Starts a capture.
    ///
    /// `ports` are the devices, by namespace, that pass on frames for other stations.
    pub fn up(
        places: &'p Places,
        servers: Servers,
        ports: BTreeSet<(String, String)>,
    ) -> Result<Self> {
        let sentinel = UdpSocket::bind("127.0.0.1:0").context("open a socket on loopback")?;
        sentinel.set_read_timeout(Some(Duration::from_secs(10)))?;
        let own = sentinel.local_addr()?;
        sentinel.connect(own)?;
        Ok(Self {
            places,
            capture: Capture::start(places.again()?)?,
            servers,
            sentinel,
            ports,
            earlier: None,
            errors: Vec::new(),
            refused: Vec::new(),
            told: Vec::new(),
            patience: None,
            barriers: Vec::new(),
            sealed: BTreeSet::new(),
        })
    }

    /// See [`Capture::watch`].
    pub fn watch(&mut self, devices: &[(String, String)]) -> Result<()> {
        for (place, dev) in devices {
            self.capture.watch(place, dev)?;
        }
        Ok(())
    }

    /// Errors about other packets than the probe are passed over; without this, each one counts.
    #[must_use]
    pub fn passing_over_others(mut self) -> Self {
        self.earlier = Some(BTreeSet::new());
        self
    }

    /// Waits until nothing was seen for so long: nothing tells when threads that encrypt are done.
    #[must_use]
    pub fn patient(mut self, wait: Duration) -> Self {
        self.patience = Some(wait);
        self
    }

    /// Waits until the threads of these devices have nothing more to do.
    #[must_use]
    pub fn awaiting(mut self, barriers: Vec<Barrier>) -> Self {
        self.barriers = barriers;
        self
    }

    /// Returns when all that was sent before has been handled, with what was seen meanwhile.
    fn settled(&mut self) -> Result<Vec<Seen>> {
        self.settle()?;
        let mut seen = self.capture.take()?;
        // What a thread sends, another CPU may handle, and another device's thread after that.
        while !self.barriers.is_empty() {
            for barrier in &mut self.barriers {
                barrier.wait()?;
            }
            let own = cpu::own()?;
            for cpu in cpu::all()? {
                cpu::keep_to(cpu)?;
                self.settle()?;
            }
            cpu::keep_to_all(&own)?;
            let more = self.capture.take()?;
            if more.is_empty() {
                break;
            }
            seen.extend(more);
        }
        Ok(seen)
    }

    /// Returns when all that was sent before has been handled on this CPU.
    fn settle(&self) -> Result<()> {
        for _ in 0..PASSES {
            self.sentinel.send(&[0]).context("send to itself")?;
            self.sentinel.recv(&mut [0]).context("hear itself")?;
        }
        Ok(())
    }

    /// What was seen. Questions for neighbours that nobody answered are given up at once, as the kernel would
    /// after three seconds. Rules may take a question before any device: whoever had a packet last may wait, too.
    fn seen(&mut self, probe: &Probe) -> Result<Vec<Seen>> {
        let mut seen = self.settled()?;
        while let Some(wait) = self.patience {
            std::thread::park_timeout(wait);
            let more = self.capture.take()?;
            if more.is_empty() {
                break;
            }
            seen.extend(more);
        }
        order::sort(&mut seen);
        for one in &seen {
            self.note_sealed(one);
        }
        let mut asking = unanswered(&seen);
        if seen.is_empty() {
            asking.insert(probe.from.clone());
        }
        // What is told then may need a neighbour itself.
        for _ in 0..ROUNDS {
            if asking.is_empty() {
                break;
            }
            for place in &asking {
                // Nothing to flush is no error here.
                self.places
                    .place(place)?
                    .enter(|| run(&["ip", "neigh", "flush", "nud", "incomplete"]))?;
            }
            let more = self.settled()?;
            asking = unanswered(&more);
            seen.extend(more);
        }
        order::sort(&mut seen);
        self.told.extend(seen.iter().filter_map(told_tunnel));
        self.errors.extend(seen.iter().filter_map(error_in));
        self.refused.extend(refused(&seen));
        Ok(seen)
    }

    /// Sends a probe, and what follows from it.
    pub fn ask(&mut self, probe: &Probe) -> Result<Observed> {
        let before = self.settled()?;
        self.told.extend(before.iter().filter_map(told_tunnel));
        // What this probe itself makes a tunnel be told of is about later ones, or about its own later packets.
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = now.map_or(0, |now| i128::try_from(now.as_nanos()).unwrap_or(i128::MAX));
        self.told.retain(|(.., time)| now - time < ERR_TIMEO);
        let told = self.told.iter();
        let told = told
            .map(|(place, remote, _)| (place.clone(), *remote))
            .collect();
        let observed = match (probe.kind, probe.protocol) {
            (Kind::Raw { .. }, _) => self.raw(probe),
            (Kind::Error { icmp, .. }, _) => self.error(probe, icmp),
            (_, TCP) => self.connection(probe),
            (_, UDP) => self.datagrams(probe),
            _ => self.echoes(probe),
        };
        if let Some(earlier) = &mut self.earlier {
            earlier.insert(probe.sport);
        }
        let errors = std::mem::take(&mut self.errors);
        let refused = std::mem::take(&mut self.refused);
        observed.map(|observed| Observed {
            errors,
            refused,
            told,
            ..observed
        })
    }

    fn inside<T: Send>(&self, probe: &Probe, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        self.places.place(&probe.from)?.enter(work)
    }

    /// What is inside of WireGuard's packets can't be seen; they are kept apart.
    fn note_sealed(&mut self, one: &Seen) {
        let Some(ip) = &one.frame.ip else {
            return;
        };
        let Some((sport, dport)) = ip.ports().filter(|_| one.frame.sealed().is_some()) else {
            return;
        };
        let out = if one.direction == Direction::Out {
            "out"
        } else {
            "in"
        };
        let (place, dev) = (&one.place, &one.ifname);
        let text = format!(
            "{place} {out} {dev} {} {sport} > {} {dport} ttl {}",
            ip.source, ip.destination, ip.ttl
        );
        self.sealed.insert(text);
    }

    /// Packets of WireGuard since the last call, in words.
    pub fn take_sealed(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.sealed)
    }

    fn push(&self, points: &mut Vec<Point>, one: &Seen) {
        let (Some(ip), Some(innermost)) = (&one.frame.ip, one.frame.innermost()) else {
            return;
        };
        let port = self
            .ports
            .contains(&(one.place.clone(), one.ifname.clone()));
        let ports = ip.ports();
        let inner = (!std::ptr::eq(ip, innermost)).then_some(innermost);
        let point = Point {
            place: one.place.clone(),
            dev: one.ifname.clone(),
            out: one.direction == Direction::Out,
            src: ip.source,
            dst: ip.destination,
            sport: ports.map(|(source, _)| source),
            dport: ports.map(|(_, destination)| destination),
            ttl: ip.ttl,
            tos: ip.tos,
            inner: inner.map(|inner| (inner.source, inner.destination, inner.ttl)),
            sealed: one.frame.sealed() == Some(Sealed::Data),
            elsewhere: one.for_other_host && one.direction == Direction::In && !port,
        };
        if !is_repetition(points, &point) {
            points.push(point);
        }
    }
}

/// Namespaces that asked for a neighbour whom nobody told them, and the one that got the last packet and sent none on.
fn unanswered(seen: &[Seen]) -> BTreeSet<String> {
    // Who got an answer that rules drop still waits: only who then sends something does not.
    let (mut asking, mut answered) = (BTreeSet::new(), BTreeSet::new());
    for one in seen {
        let out = one.direction == Direction::Out;
        let (question, answer) = match (&one.frame.arp, transport(one)) {
            (Some(arp), _) => (arp.operation == 1, arp.operation == 2),
            (None, Some(Transport::Icmp { kind, .. })) => (*kind == 135, *kind == 136),
            _ => (false, false),
        };
        if question && out {
            asking.insert(one.place.clone());
        }
        if answer && !out {
            answered.insert(one.place.clone());
        }
        if out && !question && answered.contains(&one.place) {
            asking.remove(&one.place);
        }
    }
    let last = seen.last().filter(|one| one.direction == Direction::In);
    asking.extend(last.map(|one| one.place.clone()));
    asking
}

/// Refusals of IPv4 that namespaces give, as by routes: which, and the source of what each refuses. Those that only pass,
/// and the same at other devices, are none.
fn refused(seen: &[Seen]) -> Vec<(String, IpAddr)> {
    let mut known = BTreeSet::new();
    let mut found = Vec::new();
    for one in seen {
        let Some(ip) = one.frame.ip.as_ref().filter(|ip| ip.source.is_ipv4()) else {
            continue;
        };
        let Transport::Icmp {
            kind: 3,
            code: 0 | 1 | 13,
            about: Some(about),
            ..
        } = &ip.transport
        else {
            continue;
        };
        let error = (
            one.place.clone(),
            about.source,
            about.destination,
            about.ports(),
        );
        if known.insert(error) && one.direction == Direction::Out {
            found.push((one.place.clone(), about.source));
        }
    }
    found
}

/// An ICMP error of IPv4 that came into a namespace: which, and whose error it is.
fn error_in(one: &Seen) -> Option<(String, IpAddr)> {
    let ip = one.frame.ip.as_ref().filter(|ip| ip.source.is_ipv4())?;
    let Transport::Icmp { kind, .. } = ip.transport else {
        return None;
    };
    let error = one.direction == Direction::In && matches!(kind, 3..=5 | 11 | 12);
    error.then(|| (one.place.clone(), ip.source))
}

/// An ICMP error about the packet of an IP tunnel that came into a namespace and that the tunnel counts: where, with the
/// tunnel's remote, and when.
///
/// Source: `ipip_err()`, `ipgre_err()`, `ipip6_err()`. What is inside is told itself where it is IPv6
/// (`ip6_err_gen_icmpv6_unreach()`), and counts for nothing then.
fn told_tunnel(one: &Seen) -> Option<(String, IpAddr, i128)> {
    let Transport::Icmp {
        kind,
        code,
        about: Some(about),
    } = &one.frame.innermost()?.transport
    else {
        return None;
    };
    let counts = match (about.protocol, kind, code) {
        (4 | 41 | 47, 3, 4 | 5) | (47, 3, 3) => false,
        (4 | 41 | 47, 3, _) | (4 | 41 | 47, 11, 0) => true,
        _ => false,
    };
    let relayed = match &about.transport {
        Transport::Tunnel(inside) => inside.source.is_ipv6(),
        _ => false,
    };
    let tunnel = counts && !relayed && one.direction == Direction::In;
    tunnel.then(|| (one.place.clone(), about.destination, one.time))
}

fn transport(one: &Seen) -> Option<&Transport> {
    Some(&one.frame.innermost()?.transport)
}
