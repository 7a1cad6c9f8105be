//! Packets of many helpers as they come: started together, merged by time, ended together.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::bail;
use futures::future::join_all;
use netpath::model::NsKey;
use netpath::model::capture::{Ended, Losses, Opened, Point, Seen, Watch};
use tokio::sync::{mpsc, watch};

use super::fleet::Fleet;
use super::points::Points;
use crate::launch::Session;
use crate::launch::session::{SessionError, Sight};

/// How long packets are held so that those of another node come between them.
const HOLD: Duration = Duration::from_millis(300);
/// How often held packets are looked at.
const TICK: Duration = Duration::from_millis(50);
/// How long a helper may take for its last packets.
const LAST: Duration = Duration::from_secs(10);
/// How often a helper is shown that somebody is there.
const ALIVE: Duration = Duration::from_secs(30);
/// Messages of helpers that wait to be taken; behind them, helpers wait, and behind those the kernels' rings.
const WAITING: usize = 16;

/// A device that is watched.
#[derive(Clone, Debug)]
pub struct Spot {
    /// Node.
    pub node: String,
    /// Device and filter.
    pub point: Point,
    /// LINKTYPE_*
    pub link: u32,
}

impl Spot {
    /// Namespace.
    pub fn key(&self) -> NsKey {
        NsKey {
            node: self.node.clone(),
            netns: self.point.netns,
        }
    }
}

/// Helpers that watch.
pub struct Watching {
    ids: BTreeMap<String, u32>,
    /// Positions in `spots` by node and by position of its points.
    places: BTreeMap<String, Vec<Option<usize>>>,
    /// Devices that are watched.
    pub spots: Vec<Spot>,
    /// Those that are not, and why.
    pub closed: Vec<String>,
    /// Why it is not told what kernels drop.
    pub untold: Vec<String>,
}

impl Watching {
    /// Position in `spots` of a node's point.
    pub fn place(&self, node: &str, point: u32) -> Option<usize> {
        let at = usize::try_from(point).ok()?;
        *self.places.get(node)?.get(at)?
    }
}

/// What comes of a helper.
enum News {
    Packets(Vec<Seen>),
    /// A device is watched no longer.
    Ended(Ended),
    /// The helper ended, or can't go on.
    Failed(String),
}

/// Has all points watched, all nodes at once. Errors: none can be.
pub async fn open(
    fleet: &mut Fleet<'_>,
    points: Points,
    template: &Watch,
) -> anyhow::Result<Watching> {
    let opening = fleet.sessions().iter_mut().filter_map(|(node, session)| {
        let points = points.get(node).cloned().unwrap_or_default();
        let watched = points.clone();
        let watch = Watch {
            points: watched.clone(),
            ..template.clone()
        };
        let opening = async move { (node.clone(), points, session.watch(watch).await) };
        (!watched.is_empty()).then_some(opening)
    });
    let opened = join_all(opening).await;
    let mut watching = Watching {
        ids: BTreeMap::new(),
        places: BTreeMap::new(),
        spots: Vec::new(),
        closed: Vec::new(),
        untold: Vec::new(),
    };
    for (node, points, result) in opened {
        let (id, states) = match result {
            Ok(done) => done,
            Err(error) => {
                watching.closed.push(error.to_string());
                continue;
            }
        };
        watching.ids.insert(node.clone(), id);
        let places = points.into_iter().zip(states);
        let places = places.map(|(point, Opened { link })| match link {
            Ok(link) => {
                let node = node.clone();
                watching.spots.push(Spot { node, point, link });
                Some(watching.spots.len() - 1)
            }
            Err(why) => {
                let why = format!("{node}: {why}");
                if !point.dropped {
                    watching.closed.push(why);
                } else if !watching.untold.contains(&why) {
                    // One program sees what is dropped in all namespaces: once is enough.
                    watching.untold.push(why);
                }
                None
            }
        });
        let places: Vec<Option<usize>> = places.collect();
        watching.places.insert(node.clone(), places);
    }
    if watching.spots.is_empty() {
        match watching.closed.iter().chain(&watching.untold).next() {
            Some(why) => bail!("{why}"),
            None => bail!("capture: no device is there to watch"),
        }
    }
    Ok(watching)
}

/// What takes packets.
pub trait Sink {
    /// Takes one packet of `spots[at]`. `false`: no more are wanted.
    fn packet(&mut self, at: usize, seen: &Seen) -> anyhow::Result<bool>;
    /// What was taken is to be seen now.
    fn flush(&mut self) -> anyhow::Result<bool>;
}

/// Gives packets on in the order of their times until the sink has enough, the time is over, or `stop` is set;
/// then the last ones. What goes wrong on the way is said as it happens. Gives what each spot lost, and what went
/// wrong.
pub async fn run(
    fleet: &mut Fleet<'_>,
    watching: &Watching,
    sink: &mut impl Sink,
    lasts: Option<Duration>,
    mut stop: watch::Receiver<bool>,
) -> anyhow::Result<(Vec<Losses>, Vec<String>)> {
    let (ending, end) = watch::channel(false);
    let (sender, mut receiver) = mpsc::channel::<(String, News)>(WAITING);
    let following = fleet.sessions().iter_mut().filter_map(|(node, session)| {
        let id = *watching.ids.get(node)?;
        let (sender, end) = (sender.clone(), end.clone());
        Some(async move {
            let losses = match follow(node, session, id, &sender, end).await {
                Ok(losses) => losses,
                Err(error) => {
                    let news = News::Failed(error.to_string());
                    let _ = sender.send((node.clone(), news)).await;
                    Vec::new()
                }
            };
            (node.clone(), losses)
        })
    });
    let following = join_all(following);
    drop(sender);
    let mut merge = Merge::default();
    let merging = async {
        let enough = async {
            match lasts {
                Some(time) => tokio::time::sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let mut enough = std::pin::pin!(enough);
        let mut tick = tokio::time::interval(TICK);
        let mut open = true;
        let mut result = Ok(());
        let mut wrong: Vec<String> = Vec::new();
        let mut watched = vec![true; watching.spots.len()];
        loop {
            tokio::select! {
                biased;
                Ok(_) = stop.wait_for(|stop| *stop), if open => open = false,
                () = &mut enough, if open => open = false,
                came = receiver.recv() => match came {
                    None => break,
                    Some((node, News::Packets(packets))) => {
                        for seen in packets {
                            if let Some(at) = watching.place(&node, seen.point) {
                                merge.add(at, seen);
                            }
                        }
                    }
                    Some((node, News::Ended(ended))) => {
                        let at = watching.place(&node, ended.point);
                        if let Some(own) = at.and_then(|at| watched.get_mut(at)) {
                            *own = false;
                        }
                        let why = format!("{node}: {}; what it saw until then counts", ended.why);
                        super::say(&format!("error: {why}"));
                        wrong.push(why);
                        // Nothing is watched any more: more time would show no more.
                        open &= watched.contains(&true);
                    }
                    Some((node, News::Failed(why))) => {
                        for (own, spot) in watched.iter_mut().zip(&watching.spots) {
                            *own &= spot.node != node;
                        }
                        super::say(&format!("error: {why}"));
                        wrong.push(why);
                        open &= watched.contains(&true);
                    }
                },
                _ = tick.tick() => {}
            }
            if result.is_ok() {
                match merge.give(sink, Some(HOLD)) {
                    Ok(true) => {}
                    Ok(false) => open = false,
                    Err(error) => {
                        open = false;
                        result = Err(error);
                    }
                }
            }
            if !open {
                ending.send_replace(true);
            }
        }
        result?;
        merge.give(sink, None)?;
        Ok::<_, anyhow::Error>(wrong)
    };
    let (ended, merged) = tokio::join!(following, merging);
    let wrong = merged?;
    let mut losses = vec![Losses::default(); watching.spots.len()];
    for (node, told) in ended {
        let places = watching.places.get(&node).into_iter().flatten();
        for (place, told) in places.zip(told) {
            if let Some(own) = place.and_then(|at| losses.get_mut(at)) {
                *own = told;
            }
        }
    }
    Ok((losses, wrong))
}

/// Gives one helper's packets on until its watch is over.
async fn follow(
    node: &str,
    session: &mut Session,
    id: u32,
    sender: &mpsc::Sender<(String, News)>,
    mut end: watch::Receiver<bool>,
) -> Result<Vec<Losses>, SessionError> {
    let mut ending = false;
    let mut alive = tokio::time::interval(ALIVE);
    loop {
        let sight = tokio::select! {
            biased;
            Ok(_) = end.wait_for(|end| *end), if !ending => None,
            _ = alive.tick() => {
                session.alive().await?;
                continue;
            }
            sight = session.seen(id, ending.then_some(LAST)) => Some(sight?),
        };
        let news = match sight {
            None => {
                ending = true;
                session.unwatch(id).await?;
                continue;
            }
            Some(Sight::Packets(packets)) => News::Packets(packets),
            Some(Sight::Ended(ended)) => News::Ended(ended),
            Some(Sight::End(losses)) => return Ok(losses),
        };
        // Nobody takes it any more only where all is over.
        let _ = sender.send((node.to_owned(), news)).await;
    }
}

/// Packets that wait for earlier ones.
#[derive(Default)]
struct Merge {
    held: Vec<(Instant, usize, Seen)>,
    over: bool,
}

impl Merge {
    fn add(&mut self, at: usize, seen: Seen) {
        if !self.over {
            self.held.push((Instant::now(), at, seen));
        }
    }

    /// Gives on what was held so long, all where no time is given. `false`: no more are wanted.
    fn give(&mut self, sink: &mut impl Sink, held: Option<Duration>) -> anyhow::Result<bool> {
        let ripe = |came: &Instant| held.is_none_or(|held| came.elapsed() >= held);
        if self.over || !self.held.first().is_some_and(|(came, ..)| ripe(came)) {
            return Ok(!self.over);
        }
        self.held.sort_by_key(|(_, _, seen)| seen.time);
        // All before the last ripe one, so that order holds.
        let count = self.held.iter().rposition(|(came, ..)| ripe(came));
        let rest = self.held.split_off(count.map_or(0, |last| last + 1));
        for (_, at, seen) in std::mem::replace(&mut self.held, rest) {
            if !sink.packet(at, &seen)? {
                self.over = true;
                self.held.clear();
                break;
            }
        }
        // By time of arrival again, for the next look at the first.
        self.held.sort_by_key(|(came, ..)| *came);
        self.over |= !sink.flush()?;
        Ok(!self.over)
    }
}
