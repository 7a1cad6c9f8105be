//! How large a packet may be on its way: what each device leaves for it, what is predicted, and what probes showed.
//!
//! Sizes are bytes from the IP header on, as `ip link` counts an MTU.

mod finding;

use std::net::IpAddr;

use crate::model::NsKey;
use crate::model::topology::Topology;
use crate::trace::{Evidence, Trace};

pub use finding::{beyond, ends, fate, findings, limited, named};

use super::observe::innermost;

/// Largest IP packet, in bytes.
pub const LARGEST: u32 = 65_535;
/// What is tried first where nothing is predicted: links mostly take it, with some room for tunnels (RFC 8200: 1280 is
/// the least of IPv6).
const SMALL: u32 = 1_200;

/// What a device leaves for a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Namespace.
    pub ns: NsKey,
    /// Device.
    pub dev: String,
    /// Its MTU.
    pub mtu: u32,
    /// Bytes of the headers that tunnels put around the packet there.
    pub around: u32,
}

impl Room {
    /// What is left.
    pub fn bytes(&self) -> u32 {
        self.mtu.saturating_sub(self.around)
    }
}

/// The devices that a packet is sent by, in order.
pub fn rooms(trace: &Trace, topology: &Topology) -> Vec<Room> {
    let mut rooms = Vec::new();
    for hop in &trace.hops {
        let links = topology.netns(&hop.ns).and_then(|ns| ns.links.known());
        for tap in hop.taps.iter().filter(|tap| tap.out) {
            let inner = innermost(&tap.packet);
            let link = links
                .into_iter()
                .flatten()
                .find(|link| link.name == tap.dev);
            // Questions for neighbours are on their own way.
            let Some(link) = link.filter(|_| inner.protocol() == trace.packet.protocol()) else {
                continue;
            };
            rooms.push(Room {
                ns: hop.ns.clone(),
                dev: tap.dev.clone(),
                mtu: link.mtu,
                around: tap.packet.len.saturating_sub(inner.len),
            });
        }
    }
    rooms
}

/// Where a packet that is too large ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Namespace.
    pub ns: NsKey,
    /// The device and its MTU, the rule, or what is said there.
    pub why: String,
    /// It is a rule that ends it.
    pub by_rule: bool,
}

/// Where a packet that is too large ends; `None` where nothing was decided about it.
pub fn limit(trace: &Trace) -> Option<Limit> {
    let (hop, step) = trace.last_step()?;
    let at = |why: String, by_rule| Limit {
        ns: hop.ns.clone(),
        why,
        by_rule,
    };
    let named = step.evidence.iter().find_map(|one| match one {
        Evidence::Link { dev, state } => Some(at(format!("{dev} {state}: {}", step.result), false)),
        _ => one
            .rule()
            .map(|rule| at(format!("{} by {rule}", step.result), true)),
    });
    named.or_else(|| Some(at(step.result.clone(), false)))
}

/// What became of a packet of some size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It came to its end.
    Arrived,
    /// Somebody said that it is too large.
    TooLarge(String),
    /// It was lost without a word.
    Lost {
        /// Behind this device, where it was seen at any.
        last: Option<(NsKey, String)>,
        /// What that kernel says of it.
        why: Option<String>,
    },
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// Its size.
    pub len: u32,
    /// What became of it.
    pub fate: Fate,
}

/// One direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Who sends, and its address.
    pub from: (NsKey, IpAddr),
    /// To whom; nobody that was read where there is no namespace.
    pub to: (Option<NsKey>, IpAddr),
    /// The smallest packet there is: its headers alone.
    pub least: u32,
    /// The largest size that is sent: TCP sends none that is larger than both ends' own devices take, of datagrams the
    /// sender's own device decides.
    pub segment: u32,
    /// It is for datagrams of UDP.
    pub datagrams: bool,
    /// The largest size that is predicted to arrive, or why that can't be told.
    pub predicted: Result<u32, String>,
    /// Where one byte more ends, and what is said of it there.
    pub limit: Option<Limit>,
    /// Devices that it is sent by.
    pub rooms: Vec<Room>,
    /// What was tried.
    pub tried: Vec<Tried>,
    /// Why there was nothing, or nothing more, to try.
    pub untried: Option<String>,
}

/// What comes of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// The predicted size arrives and one byte more does not.
    Proven(u32),
    /// So much arrives, and something else was predicted.
    Differs(u32),
    /// So much arrives; nothing was predicted.
    Measured(u32),
    /// Not even a small one arrives.
    Nothing,
    /// It could not be tried to the end.
    Untried,
}

impl Budget {
    /// The largest that arrived.
    pub fn arrived(&self) -> Option<u32> {
        let arrived = self.tried.iter().filter(|one| one.fate == Fate::Arrived);
        arrived.map(|one| one.len).max()
    }

    /// The smallest that did not arrive.
    pub fn stopped(&self) -> Option<&Tried> {
        let stopped = self.tried.iter().filter(|one| one.fate != Fate::Arrived);
        stopped.min_by_key(|one| one.len)
    }

    /// The size to try next. `None`: all is known.
    pub fn next(&self) -> Option<u32> {
        let stopped = self.stopped().map_or(LARGEST + 1, |one| one.len);
        let first = self.predicted.as_ref().copied().unwrap_or(SMALL);
        let Some(arrived) = self.arrived() else {
            return if self.tried.is_empty() {
                Some(first)
            } else {
                (stopped > self.least).then_some(self.least)
            };
        };
        if arrived + 1 >= stopped {
            return None;
        }
        Some(match &self.predicted {
            Ok(predicted) if arrived == *predicted => arrived + 1,
            // Links mostly are Ethernet's.
            _ if stopped > 1_501 && arrived < 1_501 => 1_501,
            _ => arrived.midpoint(stopped),
        })
    }

    /// What is known by now.
    pub fn measure(&self) -> Measure {
        if self.untried.is_some() || self.next().is_some() {
            return Measure::Untried;
        }
        match (self.arrived(), &self.predicted) {
            (None, _) => Measure::Nothing,
            (Some(arrived), Ok(predicted)) if arrived == *predicted => Measure::Proven(arrived),
            (Some(arrived), Ok(_)) => Measure::Differs(arrived),
            (Some(arrived), Err(_)) => Measure::Measured(arrived),
        }
    }

    /// Larger packets, up to what is sent ([`Self::segment`]), are lost, and whoever sends them is not told; known only where
    /// all was tried.
    pub fn black_hole(&self) -> bool {
        self.measure() != Measure::Untried
            && self.arrived().is_some_and(|size| size < self.segment)
            && matches!(
                self.stopped(),
                Some(Tried {
                    fate: Fate::Lost { .. },
                    ..
                })
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NetNsId;

    fn tried(predicted: Option<u32>, limit: u32) -> Budget {
        let ns = NsKey {
            node: "n1".to_owned(),
            netns: NetNsId { dev: 4, ino: 1 },
        };
        let mut budget = Budget {
            from: (ns, [10, 0, 0, 1].into()),
            to: (None, [10, 0, 0, 2].into()),
            least: 28,
            segment: LARGEST,
            datagrams: false,
            predicted: predicted.ok_or_else(|| "unknown".to_owned()),
            limit: None,
            rooms: Vec::new(),
            tried: Vec::new(),
            untried: None,
        };
        while let Some(len) = budget.next() {
            let fate = if len <= limit {
                Fate::Arrived
            } else {
                Fate::Lost {
                    last: None,
                    why: None,
                }
            };
            assert!(budget.tried.iter().all(|one| one.len != len), "{budget:?}");
            budget.tried.push(Tried { len, fate });
        }
        budget
    }

    #[test]
    fn a_right_prediction_takes_two_probes() {
        let budget = tried(Some(1_450), 1_450);
        assert_eq!(budget.measure(), Measure::Proven(1_450));
        assert_eq!(budget.tried.len(), 2);
        assert!(budget.black_hole());
        let segment = 1_450;
        assert!(!Budget { segment, ..budget }.black_hole());
        let all = tried(Some(LARGEST), LARGEST);
        assert_eq!(all.measure(), Measure::Proven(LARGEST));
    }

    #[test]
    fn a_wrong_prediction_is_found_out() {
        assert_eq!(tried(Some(1_450), 1_400).measure(), Measure::Differs(1_400));
        assert_eq!(tried(Some(1_450), 1_480).measure(), Measure::Differs(1_480));
        assert_eq!(tried(Some(9_000), 27).measure(), Measure::Nothing);
        assert_eq!(tried(Some(1_000), 68).measure(), Measure::Differs(68));
        assert_eq!(
            tried(Some(LARGEST), 1_500).measure(),
            Measure::Differs(1_500)
        );
        assert_eq!(tried(None, 100).measure(), Measure::Measured(100));
        for limit in [SMALL, 1_500, 8_951, LARGEST] {
            let budget = tried(None, limit);
            assert_eq!(budget.measure(), Measure::Measured(limit));
            assert!(budget.tried.len() < 22, "{}", budget.tried.len());
        }
    }
}
