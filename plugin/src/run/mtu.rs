//! `trace --mtu`: the largest packet that passes each way, predicted and tried.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use netpath::explain::mtu::{Budget, Fate, LARGEST, Measure, Room, Tried, limit, rooms};
use netpath::explain::observe::dropped::Gone;
use netpath::explain::observe::{Sighting, innermost};
use netpath::explain::words;
use netpath::model::NsKey;
use netpath::model::capture::{Answer, Probe};
use netpath::model::packet::{ICMP, ICMPV6, L4, Packet, UDP};
use netpath::model::topology::Topology;
use netpath::simulate::{Outcome, Sent};
use netpath::trace::{Disposition, Trace};

use super::exchange::{Exchanged, Way, exchange, fresh, places};
use super::fleet::Fleet;
use super::{BROKEN, INCONCLUSIVE, drive};

/// How long packets are watched: of one that arrives, and of one that was lost, since neighbours are asked for once more
/// after a second.
const BRIEFLY: Duration = Duration::from_millis(250);
const LONGER: Duration = Duration::from_millis(1_500);
/// A packet with nothing behind its headers: IPv4 or IPv6, and the echo's.
const EMPTY: u32 = 28;
const EMPTY_V6: u32 = 48;

/// Most ends, as of a Service's endpoints, that are tried.
pub const MOST: u32 = 4;

/// One direction between two ends.
struct Direction {
    from: NsKey,
    /// Where it ends, as far as that can be told; `None` also where nobody who is read has the address.
    to: Option<NsKey>,
    ends: (IpAddr, IpAddr),
    /// The question is about datagrams of UDP.
    datagrams: bool,
}

/// Longest that one end takes: a search without a prediction, both ways. More is no error, but helper pods end at
/// some time.
pub const LONGEST: Duration = Duration::from_secs(90);

/// 0 where what was predicted is proven or nothing was, 1 where less arrives than was predicted, or connections hang, 3
/// where it could not be tried.
pub fn exit_code(budget: &Budget) -> u8 {
    match (budget.measure(), &budget.predicted) {
        (Measure::Nothing, _) => BROKEN,
        (Measure::Differs(size), Ok(predicted)) if size < *predicted => BROKEN,
        (Measure::Untried, _) => INCONCLUSIVE,
        _ if budget.black_hole() => BROKEN,
        _ => 0,
    }
}

/// Predicts and tries both directions to each end at which a way arrives, the likeliest first; the way back only where
/// the other end is one whose packets can be sent and seen.
pub async fn measure(fleet: &mut Fleet<'_>, outcomes: &[Outcome]) -> Sizes {
    let traces = outcomes.iter().flat_map(|outcome| &outcome.traces);
    let unknown = |trace: &Trace| matches!(trace.disposition, Disposition::Inconclusive(_));
    let arrives = traces.filter(|trace| trace.arrives() || unknown(trace));
    let mut arrives: Vec<&Trace> = arrives.collect();
    // Of an end that some ways are known to come to, those tell more.
    arrives.sort_by(|a, b| {
        let known = unknown(a).cmp(&unknown(b));
        known.then(b.probability.total_cmp(&a.probability))
    });
    let mut seen = BTreeSet::new();
    arrives.retain(|trace| seen.insert(innermost(&trace.packet).dst));
    let most = usize::try_from(MOST).unwrap_or(usize::MAX);
    let mut sizes = Sizes {
        left: arrives.len().saturating_sub(most),
        ..Sizes::default()
    };
    for trace in arrives.into_iter().take(most) {
        sizes
            .budgets
            .extend(of_end(fleet, &directions(trace, &fleet.topology)).await);
    }
    sizes
}

/// What was found out.
#[derive(Debug, Default)]
pub struct Sizes {
    /// Both directions of each end.
    pub budgets: Vec<Budget>,
    /// Ends that were not tried, since there are more than [`MOST`].
    pub left: usize,
}

/// Both directions of a way, as far as the way back can be sent.
fn directions(trace: &Trace, topology: &Topology) -> Vec<Direction> {
    let (Some(first), Some(last)) = (trace.hops.first(), trace.hops.last()) else {
        return Vec::new();
    };
    let (near, far) = (innermost(&first.packet).src, innermost(&trace.packet).dst);
    let within = trace.disposition == Disposition::Delivered;
    let to = match &trace.disposition {
        Disposition::Delivered => Some(last.ns.clone()),
        Disposition::Inconclusive(_) => holder(topology, far),
        _ => None,
    };
    let datagrams = innermost(&first.packet).protocol() == UDP;
    let mut directions = vec![Direction {
        from: first.ns.clone(),
        to,
        ends: (near, far),
        datagrams,
    }];
    if within {
        directions.push(Direction {
            from: last.ns.clone(),
            to: Some(first.ns.clone()),
            ends: (far, near),
            datagrams,
        });
    }
    directions
}

/// The one namespace that has an address, whatever happens on the way there.
fn holder(topology: &Topology, addr: IpAddr) -> Option<NsKey> {
    let mut all = topology.all().filter(|(_, netns)| {
        let addrs = netns.addrs.known().map(Vec::as_slice).unwrap_or_default();
        addrs.iter().any(|own| own.local == addr)
    });
    let (key, _) = all.next()?;
    all.next().is_none().then_some(key)
}

async fn of_end(fleet: &mut Fleet<'_>, directions: &[Direction]) -> Vec<Budget> {
    let mut predicted = Vec::new();
    for direction in directions {
        predicted.push(budget(fleet, direction).await);
    }
    let own = |budget: &Budget| budget.rooms.first().map(|room| room.mtu);
    let all = predicted.iter();
    let both = all.filter_map(|(budget, _)| own(budget)).min();
    let mut budgets = Vec::new();
    for (direction, (mut budget, small)) in directions.iter().zip(predicted) {
        let segment = if budget.datagrams { own(&budget) } else { both };
        budget.segment = segment.unwrap_or(LARGEST);
        attempt(fleet, direction, &small, &mut budget).await;
        budgets.push(budget);
    }
    budgets
}

/// An echo request of a size.
fn echo((src, dst): (IpAddr, IpAddr), len: u32) -> Packet {
    let l4 = L4::Icmp {
        kind: if dst.is_ipv6() { 128 } else { 8 },
        code: 0,
        id: Some(1),
    };
    Packet {
        len,
        df: true,
        ..Packet::new(src, dst, l4)
    }
}

fn smallest(direction: &Direction) -> u32 {
    if direction.ends.1.is_ipv6() {
        EMPTY_V6
    } else {
        EMPTY
    }
}

async fn predict(fleet: &mut Fleet<'_>, direction: &Direction, len: u32) -> Outcome {
    let sent = Sent {
        from: direction.from.clone(),
        packet: echo(direction.ends, len),
        mark: 0,
        uid: Some(0),
        gid: Some(0),
        kernel: false,
        raw: true,
        untied: false,
        bound: None,
    };
    drive::sent(fleet, sent).await
}

/// Whether a size is predicted to arrive. `Err`: it can't be told, and why.
fn verdict(outcome: &Outcome) -> Result<bool, String> {
    for trace in &outcome.traces {
        if let Disposition::Inconclusive(why) = &trace.disposition {
            return Err(why.join("; "));
        }
    }
    Ok(!outcome.traces.is_empty() && outcome.traces.iter().all(Trace::arrives))
}

fn unmeasured(direction: &Direction) -> Budget {
    Budget {
        from: (direction.from.clone(), direction.ends.0),
        to: (direction.to.clone(), direction.ends.1),
        least: smallest(direction),
        segment: LARGEST,
        datagrams: direction.datagrams,
        predicted: Err(String::new()),
        limit: None,
        rooms: Vec::new(),
        tried: Vec::new(),
        untried: None,
    }
}

/// What is predicted, by halving (a packet that is too large stays so), and the way of the smallest.
async fn budget(fleet: &mut Fleet<'_>, direction: &Direction) -> (Budget, Outcome) {
    let mut budget = unmeasured(direction);
    let (mut good, mut bad) = (smallest(direction), LARGEST + 1);
    let least = predict(fleet, direction, good).await;
    if let Some(trace) = least.traces.first() {
        budget.rooms = rooms(trace, &fleet.topology);
    }
    match verdict(&least) {
        Ok(true) => {}
        Ok(false) => {
            let how = least.traces.iter().find(|trace| !trace.arrives());
            let name = how.map_or("lost", |trace| trace.disposition.name());
            let place = how.and_then(limit).map_or_else(String::new, |limit| {
                format!(" in {}: {}", limit.ns, limit.why)
            });
            let why = format!("even a small echo request is predicted to be {name}{place}");
            budget.untried = Some(why.clone());
            budget.predicted = Err(why);
            return (budget, least);
        }
        Err(why) => {
            budget.predicted = Err(why);
            return (budget, least);
        }
    }
    // Mostly the smallest room is it.
    let room = budget.rooms.iter().map(Room::bytes).min();
    let room = room.unwrap_or(LARGEST).clamp(good, LARGEST);
    let mut likely = [room, room + 1].into_iter();
    while good + 1 < bad {
        let next = likely.next().unwrap_or_else(|| good.midpoint(bad));
        if next <= good || next >= bad {
            continue;
        }
        let outcome = predict(fleet, direction, next).await;
        match verdict(&outcome) {
            Ok(true) => good = next,
            Ok(false) => {
                bad = next;
                let ended = outcome.traces.iter().find(|trace| !trace.arrives());
                budget.limit = ended.and_then(limit);
            }
            Err(why) => {
                budget.predicted = Err(why);
                return (budget, least);
            }
        }
    }
    budget.predicted = Ok(good);
    (budget, least)
}

/// Sends what tells most until all is known.
async fn attempt(
    fleet: &mut Fleet<'_>,
    direction: &Direction,
    small: &Outcome,
    budget: &mut Budget,
) {
    let mut sure = budget.predicted.is_ok();
    while budget.untried.is_none() {
        // Without a prediction the largest is sent once more: the first packet that is too large for a tunnel may pass, and
        // leave a smaller MTU for those that follow (`skb_tunnel_check_pmtu()`).
        let len = match (budget.next(), budget.arrived()) {
            (Some(len), _) => len,
            (None, Some(len)) if !sure => len,
            (None, _) => break,
        };
        let again = budget.tried.iter_mut().find(|one| one.len == len);
        match (one(fleet, direction, small, len).await, again) {
            (Ok(fate), Some(before)) => {
                sure = fate == Fate::Arrived;
                before.fate = fate;
            }
            (Ok(fate), None) => budget.tried.push(Tried { len, fate }),
            (Err(why), _) => budget.untried = Some(format!("{why:#}")),
        }
    }
    let lost = |one: &Tried| matches!(one.fate, Fate::Lost { .. });
    // Who is outside, or not known, need not answer, nor answer all sizes.
    if direction.to.is_none() && budget.tried.iter().any(lost) {
        budget.untried = Some(format!(
            "{} left some of it unanswered, and what is there can't be watched",
            direction.ends.1
        ));
    }
}

/// Sends one packet of a size; once more, and watched for longer, where it was lost.
async fn one(
    fleet: &mut Fleet<'_>,
    direction: &Direction,
    small: &Outcome,
    len: u32,
) -> anyhow::Result<Fate> {
    let first = send(fleet, direction, small, (len, BRIEFLY)).await?;
    match first {
        Fate::Lost { .. } => send(fleet, direction, small, (len, LONGER)).await,
        fate => Ok(fate),
    }
}

async fn send(
    fleet: &mut Fleet<'_>,
    direction: &Direction,
    small: &Outcome,
    (len, after): (u32, Duration),
) -> anyhow::Result<Fate> {
    let (src, dst) = direction.ends;
    let protocol = if dst.is_ipv6() { ICMPV6 } else { ICMP };
    let id = fresh(0);
    let way = Way {
        from: &direction.from,
        protocol,
        outcome: small,
    };
    // Why it was dropped is asked where it was.
    let points = places(fleet, way, id, after > BRIEFLY).await;
    let data = len.saturating_sub(smallest(direction));
    let probe = Probe {
        netns: direction.from.netns,
        src: Some(src),
        sport: Some(id),
        unused: false,
        dst,
        dport: None,
        protocol,
        payload: vec![b'.'; usize::try_from(data).unwrap_or_default()],
        wait: 0,
        whole: true,
    };
    let Some(met) = exchange(fleet, &direction.from.node, points, probe, after).await? else {
        anyhow::bail!("--mtu: the id of the echo request is in use: try again");
    };
    if let Answer::Failed(why) = &met.probed.answer {
        // As the helper names errors of the kernel.
        if why.starts_with("EMSGSIZE") {
            return Ok(Fate::TooLarge(format!(
                "the sender's own kernel ({why}: a device, a route, or a path MTU that it remembers, which `ip route get {dst}` there shows and `ip route flush cache` forgets)"
            )));
        }
        anyhow::bail!("--mtu: send {len} bytes to {dst}: {why}");
    }
    let fate = fate(&met, direction, small, (len, id));
    // That something was not seen says something only where all is.
    let blind = |key: &&NsKey| !met.whole.contains(*key);
    let ends = [&direction.from].into_iter().chain(&direction.to);
    if fate != Fate::Arrived
        && let Some(key) = ends.into_iter().find(blind)
    {
        anyhow::bail!(
            "--mtu: not all packets of {key} were seen: {}",
            met.unwatched.join("; ")
        );
    }
    Ok(fate)
}

fn fate(met: &Exchanged, direction: &Direction, small: &Outcome, (len, id): (u32, u16)) -> Fate {
    let seen = &met.sightings;
    let (near, _) = direction.ends;
    // As it was sent, and as the sender's own rules left it: masquerading may give it another.
    let left = met.probed.expects.and_then(|answer| answer.sport);
    let is_own = |other: Option<u16>| other.is_some() && (other == Some(id) || other == left);
    let asked = |one: &&Sighting| {
        let packet = innermost(&one.packet);
        let echo = matches!(packet.l4, L4::Icmp { kind: 8 | 128, id, .. } if is_own(id));
        echo && packet.len == len
    };
    let answered = |one: &&Sighting| {
        let l4 = innermost(&one.packet).l4;
        matches!(l4, L4::Icmp { kind: 0 | 129, id, .. } if is_own(id))
    };
    // An answer that left, whatever becomes of it: the other direction is tried by itself.
    if seen.iter().any(|one| answered(&one)) {
        return Fate::Arrived;
    }
    let own = |one: &&Sighting| one.ns == direction.from;
    let sent = seen.iter().filter(own).filter(asked).map(|one| one.time);
    let sent = sent.min().unwrap_or(i64::MAX);
    // One that the sender gets, later: ICMP_DEST_UNREACH with ICMP_FRAG_NEEDED, ICMPV6_PKT_TOOBIG
    let told = |one: &&Sighting| {
        let too_large = matches!(
            one.packet.l4,
            L4::Icmp {
                kind: 3,
                code: 4,
                ..
            } | L4::Icmp { kind: 2, .. }
        );
        too_large && !one.out && one.packet.dst == near && one.time >= sent
    };
    if let Some(error) = seen.iter().filter(own).find(told) {
        return Fate::TooLarge(error.packet.src.to_string());
    }
    // By the order of the way, since clocks of nodes differ.
    let taps = small.traces.iter().flat_map(Trace::taps);
    let came = |ns: &NsKey, dev: &str, out: bool| {
        let mut all = seen.iter().filter(asked);
        all.any(|one| one.ns == *ns && one.dev == dev && one.out == out)
    };
    let mut taps = taps.filter(|(ns, tap)| came(ns, &tap.dev, tap.out));
    let last = taps.next_back();
    let last = last.map(|(ns, tap)| (ns.clone(), tap.dev.clone()));
    let here = |one: &&Gone| {
        let there = last.as_ref().is_none_or(|(ns, _)| one.seen.ns == *ns);
        there && asked(&&one.seen)
    };
    let why = met.gone.iter().find(here);
    let why = why.map(|one| words::dropped(&one.why));
    Fate::Lost { last, why }
}
