//! What the product says of a probe, beside what was seen: each packet at each device, and nothing else.

use anyhow::Result;
use netpath::model::want::Depth;
use netpath::simulate::{Limits, send};
use netpath::trace::{Disposition, RejectWith, Trace};
use netpath_lab::random::ask::{self, Question, Verdict};
use netpath_lab::random::fit::{self, Back, Manner, Unfit};
use netpath_lab::random::reader::Reader;
use netpath_lab::random::seen::{Name, Observed, Point, Refusal, chain, points};
use netpath_lab::random::world::Probe;

use super::net::{Net, PLACES};

/// The product's own reader, and what it read.
pub struct Judge {
    reader: Reader,
}

impl Judge {
    pub fn up() -> Result<Self> {
        Ok(Self {
            reader: Reader::up()?,
        })
    }

    /// Reads namespaces with all their rules.
    pub fn read(&mut self, net: &Net, places: &[&str]) -> Result<()> {
        self.reader.read(&net.places, places, Depth::Full)
    }

    pub fn read_all(&mut self, net: &Net) -> Result<()> {
        self.read(net, &PLACES)
    }

    /// All ways that a probe may take.
    pub fn predict(&mut self, probe: &Probe) -> Result<Vec<Trace>> {
        // Entries were made and changed since.
        self.reader.forget_connections();
        let limits = Limits::default();
        let from = self.reader.key(&probe.from)?;
        let question = Question::of(probe, from, &self.reader.topology);
        Ok(self.reader.ask(|topology| question.ask(topology, &limits)))
    }

    /// Holds what was seen against the ways predicted: it must be one of them.
    pub fn compare(&mut self, probe: &Probe, traces: &[Trace], observed: &Observed) -> Verdict {
        let name = self.reader.namer();
        ask::compare(probe, traces, &name, observed, &mut |trace, observed| {
            self.fits(Manner::of(probe), trace, &name, observed)
        })
    }

    /// Whether the reset that a closed port answers with is dropped where it is sent, before any device.
    fn reset_is_lost(&mut self, trace: &Trace) -> bool {
        let topology = &self.reader.topology;
        let Ok(reset) = ask::sent_back(topology, trace, Back::Tcp(0x14)) else {
            return false;
        };
        let limits = Limits::default();
        let ways = self.reader.ask(|topology| send(topology, &reset, &limits));
        ways.iter().all(|way| {
            matches!(way.disposition, Disposition::Dropped(_))
                && way.hops.iter().all(|hop| hop.taps.is_empty())
        })
    }

    fn fits(
        &mut self,
        manner: Manner,
        trace: &Trace,
        name: Name<'_>,
        observed: &Observed,
    ) -> Result<(), Unfit> {
        let mut packets = chain(trace);
        let free = fit::free_ports(trace);
        for (number, seen) in observed.turns.iter().enumerate() {
            let points = packets.next().map(|packet| points(packet, name));
            let points = points.unwrap_or_default();
            // What was for another station is seen where bridges send it, too.
            let seen: Vec<&Point> = seen.iter().filter(|point| !point.elsewhere).collect();
            let mut pairs = points.iter().zip(&seen);
            if points.len() != seen.len() || !pairs.all(|(a, b)| fit::same(a, b, &free)) {
                return Err(fit::elsewhere(number));
            }
        }
        let ends = match (&trace.disposition, observed.refusal) {
            (Disposition::Delivered | Disposition::LeavesCluster, _) if manner.raw => {
                fit::taken_raw(manner, observed)
            }
            (Disposition::Rejected(RejectWith::PortClosed), refusal) if manner.raw => {
                let reset = manner.flags & 4 != 0;
                match refusal {
                    None => reset || self.reset_is_lost(trace),
                    Some(own) => !reset && own == Refusal::Reset,
                }
            }
            // The refusal itself may be refused on its way.
            (Disposition::Rejected(RejectWith::PortClosed), None) => self.reset_is_lost(trace),
            _ => fit::ends(trace, observed),
        };
        if ends {
            Ok(())
        } else {
            Err(fit::other_end(trace))
        }
    }
}
