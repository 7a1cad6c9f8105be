//! All taps of one client, behind the helper's conversation.
//!
//! Nothing is kept here but what is sent just then, a round of some MiB: what is not taken waits in the kernel's rings,
//! and what does not fit there is lost and counted. So a client that reads slowly, or not at all, costs no more memory.

use std::os::fd::{AsFd, BorrowedFd};
use std::thread;

use super::decode::{COOKED, View, look};
use super::dropped::{Drops, Lost};
use super::filter::{OfDropped, Within, of_kernel};
use super::tunnel::Ports;
use super::{CaptureError, Frame, Setup, Tap, probe};
use crate::collect::Collector;
use crate::collect::netns::{Hopper, NsFile};
use crate::collect::serve::Watcher;
use crate::model::capture::{Ended, Losses, Opened, Point, Probe, Probed, Seen, Watch};

/// Most devices watched at once: those whose rings, of [`super::RING`] each at least, are within [`RINGS`].
const MOST_POINTS: usize = 128;
/// Bytes of all rings together at most, and of one.
const RINGS: u32 = 32 << 20;
const MOST_RING: u32 = 4 << 20;
/// Most bytes of one packet: a super-packet of segmentation offload.
const MOST_BYTES: u32 = 65_535;
/// Frames taken of one tap before the next one's turn.
const TURN: usize = 512;
/// Bytes of frames, with what is said of each, from which on a round of all taps ends. The message of it and its
/// compressed form take as much again.
const ROUND: usize = 4 << 20;
/// Opening a tap waits for the kernel some ten milliseconds: so many wait at once.
const AT_ONCE: usize = 16;

/// What is watched now.
#[derive(Default)]
pub struct Taps {
    watch: Watch,
    /// A tap of each point, or what was lost by one that is open no more.
    places: Vec<Result<Watched, Losses>>,
    ended: Vec<Ended>,
    /// Where the next round begins.
    next: usize,
    /// What the kernel drops.
    drops: Option<Dropping>,
}

struct Watched {
    tap: Tap,
    within: Within,
}

/// Points of packets that are dropped: one program sees those of all.
struct Dropping {
    drops: Drops,
    /// Each with its position.
    points: Vec<(usize, Result<OfDropped, String>)>,
    received: Vec<u32>,
}

impl Watcher for Taps {
    fn watch(&mut self, watch: Watch, collector: &mut Collector) -> Result<Vec<Opened>, String> {
        let passing = || watch.points.iter().filter(|point| !point.dropped);
        let count = passing().count();
        if count > MOST_POINTS || watch.points.len() - count > MOST_POINTS {
            return Err(format!(
                "watch {} devices: that is more than {MOST_POINTS}; name fewer",
                watch.points.len()
            ));
        }
        let ring = ring(count);
        let setups: Vec<(Result<NsFile, String>, Setup, &Point)> = passing()
            .map(|point| {
                let ns = collector.namespace_file(point.netns);
                let setup = Setup {
                    dev: point.dev.clone(),
                    filter: of_kernel(point),
                    snaplen: watch.snaplen.clamp(64, MOST_BYTES),
                    ring,
                    promiscuous: watch.promiscuous,
                };
                (ns.map_err(|error| error.to_string()), setup, point)
            })
            .collect();
        let mut taps = Vec::new();
        self.places.clear();
        self.ended.clear();
        for some in setups.chunks(AT_ONCE) {
            let some: Vec<Result<Watched, String>> = thread::scope(|scope| {
                let threads: Vec<_> = some
                    .iter()
                    .map(|(ns, setup, point)| {
                        scope.spawn(move || open(ns.as_ref().map_err(Clone::clone)?, setup, point))
                    })
                    .collect();
                let ended = threads.into_iter().map(thread::ScopedJoinHandle::join);
                ended
                    .map(|tap| tap.unwrap_or_else(|_| Err("its thread ended".to_owned())))
                    .collect()
            });
            taps.extend(some);
        }
        let mut dropped = self.dropped(&watch).into_iter();
        let mut taps = taps.into_iter();
        let mut opened = Vec::new();
        for point in &watch.points {
            let (link, place) = if point.dropped {
                let opened = dropped.next().unwrap_or(Ok(()));
                (opened.map(|()| COOKED), Err(Losses::default()))
            } else {
                let tap = taps
                    .next()
                    .unwrap_or_else(|| Err("it was not opened".to_owned()));
                let link = tap.as_ref().map(|watched| watched.tap.link());
                (
                    link.map_err(Clone::clone),
                    tap.map_err(|_| Losses::default()),
                )
            };
            opened.push(Opened { link });
            self.places.push(place);
        }
        self.watch = watch;
        Ok(opened)
    }

    fn fds(&self) -> Vec<BorrowedFd<'_>> {
        let open = self.places.iter().flatten();
        let taps = open.map(|watched| watched.tap.as_fd());
        taps.chain(self.drops.iter().map(|one| one.drops.as_fd()))
            .collect()
    }

    fn take(&mut self) -> Result<Option<Vec<Seen>>, String> {
        let mut all = Vec::new();
        let mut some = false;
        let mut left = ROUND;
        let count = self.places.len();
        // All taps once, from the one on whose turn the last round left out.
        let turns = (self.next..count).chain(0..self.next.min(count));
        for at in turns {
            if left == 0 {
                self.next = at;
                break;
            }
            let Some(watched) = self.places.get_mut(at) else {
                continue;
            };
            let Ok(Watched { tap, within }) = watched else {
                continue;
            };
            let Some(point) = self.watch.points.get(at) else {
                continue;
            };
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            let mut frames = Vec::new();
            let taken = tap.take(TURN, left, &mut frames);
            let bytes = frames.iter().map(|frame| frame.bytes.len());
            let beside = frames.len().saturating_mul(size_of::<Seen>());
            left = left.saturating_sub(bytes.sum::<usize>().saturating_add(beside));
            some |= !frames.is_empty();
            let ports = Ports::of(point);
            for frame in frames {
                let view = look(tap.link(), &frame.bytes, ports);
                if within.fits(&frame.bytes, view.as_ref()) {
                    all.push(seen(&self.watch, at, frame, view));
                }
            }
            // A device that was removed ends its own tap only.
            if let Err(error) = taken {
                let ended = ended(at, tap, &error);
                *watched = Err(ended.losses);
                self.ended.push(ended);
            }
        }
        if let Some(dropping) = &mut self.drops {
            let lost = dropping.drops.take(TURN);
            some |= !lost.is_empty();
            for one in lost {
                all.extend(dropping.seen(&self.watch, &one));
            }
        }
        Ok(some.then_some(all))
    }

    fn ended(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.ended)
    }

    fn stop(&mut self) -> Vec<Losses> {
        let mut closing = std::mem::take(&mut self.places);
        let losses = closing.iter_mut().zip(0..).map(|(watched, at)| {
            let tap = match watched {
                Ok(watched) => &mut watched.tap,
                Err(losses) => return *losses,
            };
            match tap.losses() {
                Ok(losses) => losses,
                Err(error) => {
                    self.ended.push(ended(at, tap, &error));
                    Losses::default()
                }
            }
        });
        let mut losses: Vec<Losses> = losses.collect();
        if let Some(dropping) = self.drops.take() {
            dropping.count(&mut losses, &mut self.ended);
            thread::spawn(move || drop(dropping));
        }
        // Closing waits for the kernel, too; nobody waits for it.
        thread::spawn(move || drop(closing));
        losses
    }

    fn probe(&mut self, probe: &Probe, collector: &mut Collector) -> Result<Probed, String> {
        probe::send(probe, collector)
    }
}

impl Taps {
    /// Has what is dropped told, in place of the last watch's; of each point whether it is.
    fn dropped(&mut self, watch: &Watch) -> Vec<Result<(), String>> {
        self.drops = None;
        let points = watch.points.iter().enumerate();
        let points: Vec<(usize, &Point)> = points.filter(|(_, point)| point.dropped).collect();
        if points.is_empty() {
            return Vec::new();
        }
        let spaces: Vec<u64> = points.iter().map(|(_, point)| point.netns.ino).collect();
        let drops = match Drops::open(&spaces) {
            Ok(drops) => drops,
            Err(error) => return vec![Err(error.to_string()); points.len()],
        };
        let filters = points.into_iter().map(|(at, point)| {
            let filter = OfDropped::new(point)
                .map_err(|error| format!("compile the filter {:?}: {error}", point.filter));
            (at, filter)
        });
        let points: Vec<(usize, Result<OfDropped, String>)> = filters.collect();
        let opened = points.iter().map(|(_, filter)| match filter {
            Ok(_) => Ok(()),
            Err(why) => Err(why.clone()),
        });
        let opened = opened.collect();
        self.drops = Some(Dropping {
            received: vec![0; points.len()],
            drops,
            points,
        });
        opened
    }
}

impl Dropping {
    /// A dropped packet as those points see it whose namespace and filter it fits.
    fn seen(&mut self, watch: &Watch, lost: &Lost) -> Vec<Seen> {
        let mut all = Vec::new();
        for ((at, filter), received) in self.points.iter().zip(&mut self.received) {
            let (Some(point), Ok(filter)) = (watch.points.get(*at), filter) else {
                continue;
            };
            if point.netns.ino != lost.space {
                continue;
            }
            let view = look(COOKED, &lost.frame.bytes, Ports::of(point));
            if filter.fits(&lost.frame.bytes, view.as_ref()) {
                *received = received.saturating_add(1);
                let at = u32::try_from(*at).unwrap_or(u32::MAX);
                let mut seen = seen(watch, at, lost.frame.clone(), view);
                // Where it was dropped does not tell which way it went.
                seen.out = None;
                seen.ifindex = seen.ifindex.filter(|index| *index > 0);
                seen.dropped = Some(lost.why.clone());
                all.push(seen);
            }
        }
        all
    }

    /// What was told, and what was not: of all points together, so that the first one has it.
    fn count(&self, losses: &mut [Losses], ended: &mut Vec<Ended>) {
        let lost = match self.drops.lost() {
            Ok(lost) => u32::try_from(lost).unwrap_or(u32::MAX),
            Err(error) => {
                ended.extend(self.points.first().map(|(at, _)| Ended {
                    point: u32::try_from(*at).unwrap_or(u32::MAX),
                    why: error.to_string(),
                    losses: Losses::default(),
                }));
                0
            }
        };
        let mut lost = Some(lost);
        for ((at, _), received) in self.points.iter().zip(&self.received) {
            if let Some(own) = losses.get_mut(*at) {
                let dropped = lost.take().unwrap_or_default();
                own.received = received.saturating_add(dropped);
                own.dropped = dropped;
            }
        }
    }
}

/// Bytes of the ring of each of so many devices.
fn ring(count: usize) -> u32 {
    let count = u32::try_from(count.max(1)).unwrap_or(u32::MAX);
    (RINGS / count).clamp(super::RING, MOST_RING)
}

/// Word of a tap that failed. Its socket still counts, whatever became of the device; where it does not, nothing is
/// known to be lost, and that it failed is told.
fn ended(point: u32, tap: &mut Tap, error: &CaptureError) -> Ended {
    Ended {
        point,
        why: error.to_string(),
        losses: tap.losses().unwrap_or_default(),
    }
}

fn open(ns: &NsFile, setup: &Setup, point: &Point) -> Result<Watched, String> {
    let hopper = Hopper::start().map_err(|error| error.to_string())?;
    let tap = Tap::open(&hopper, ns, setup.clone()).map_err(|error| error.to_string())?;
    let within = Within::new(point, tap.link())
        .map_err(|error| format!("compile the filter {:?}: {error}", point.filter))?;
    Ok(Watched { tap, within })
}

fn seen(watch: &Watch, point: u32, frame: Frame, view: Option<View>) -> Seen {
    let mut bytes = frame.bytes;
    if !watch.bytes {
        bytes = Vec::new();
    } else if !watch.payload {
        // Nothing of what can't be told from data, but for the headers that every frame has.
        bytes.truncate(view.as_ref().map_or(34, |view| view.headers));
    }
    Seen {
        point,
        time: frame.time,
        len: frame.len,
        bytes,
        ifindex: view.as_ref().and_then(|view| view.ifindex),
        out: view.as_ref().and_then(|view| view.out),
        mark: view.as_ref().and_then(|view| view.mark),
        packet: view.map(|view| view.packet).filter(|_| watch.decoded),
        dropped: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_are_within_their_bound_together() {
        for count in 1..=MOST_POINTS {
            let all = u64::from(ring(count)) * count as u64;
            assert!(all <= u64::from(RINGS), "{count}: {all}");
        }
        assert_eq!(ring(1), MOST_RING);
    }
}
