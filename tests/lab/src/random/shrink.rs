//! Makes a case that disagrees smaller, as long as it still does.

use anyhow::Result;
use netpath::trace::Trace;

use super::Raised;
use super::ask::Verdict;
use super::judge::Judge;
use super::seen::Observed;
use super::world::{Case, Rules, World};

/// What a case came to.
pub struct Tried {
    /// The reader with what it read before the last packet.
    pub judge: Judge,
    /// What was seen of the last packet.
    pub observed: Observed,
    /// How that compares.
    pub verdict: Verdict,
    /// How the first way was predicted to end, and what was seen instead.
    pub kind: String,
}

/// Makes a network, sends all packets of the case and judges the last one.
pub fn attempt(case: &Case) -> Result<Tried> {
    let raised = Raised::up(&case.world)?;
    let mut judge = Judge::up()?;
    judge.await_usable(&raised)?;
    let (mut wire, _) = raised.wire(&case.world, judge.ports())?;
    raised.load_rules(&case.world)?;
    judge.read(&raised)?;
    let Some((last, before)) = case.probes.split_last() else {
        anyhow::bail!("a case without packets");
    };
    for probe in before {
        wire.ask(probe)?;
    }
    judge.read(&raised)?;
    let traces = judge.predict(last)?;
    let observed = wire.ask(last)?;
    let verdict = judge.compare(last, &traces, &observed);
    let ends = traces.first().map(Trace::outcome);
    let kind = format!("{ends:?} {:?} {}", observed.refusal, observed.taken);
    Ok(Tried {
        judge,
        observed,
        verdict,
        kind,
    })
}

/// How a case disagrees; `None` where it does not, or can't be made.
fn kind(case: &Case) -> Option<String> {
    let tried = attempt(case).ok()?;
    matches!(tried.verdict, Verdict::Differs(_)).then_some(tried.kind)
}

/// The smallest case found that still disagrees; `None` where the case itself does not.
pub fn shrink(case: &Case) -> Result<Option<Case>> {
    let mut best = case.clone();
    let alone = Case {
        world: case.world.clone(),
        probes: case.probes.last().cloned().into_iter().collect(),
    };
    let wanted = match kind(&alone) {
        Some(kind) => {
            best = alone;
            kind
        }
        None => match kind(case) {
            Some(kind) => kind,
            None => return Ok(None),
        },
    };
    let disagrees = |case: &Case| kind(case).as_ref() == Some(&wanted);
    loop {
        let before = size(&best);
        best = fewer_probes(&best, &disagrees);
        best = fewer_places(&best, &disagrees);
        for list in LISTS {
            best = fewer_lines(best, *list, &disagrees);
        }
        if size(&best) == before {
            return Ok(Some(best));
        }
    }
}

/// Whether a smaller case still disagrees in the same way.
type Disagrees<'d> = &'d dyn Fn(&Case) -> bool;

fn size(case: &Case) -> usize {
    let lines = LISTS.iter().map(|list| {
        let mut world = case.world.clone();
        let places = 0..world.places.len();
        places
            .map(|place| {
                list(&mut world, place)
                    .iter()
                    .map(Lines::len)
                    .sum::<usize>()
            })
            .sum::<usize>()
    });
    lines.sum::<usize>() + case.probes.len() + case.world.places.len()
}

fn fewer_probes(case: &Case, disagrees: Disagrees<'_>) -> Case {
    let keep = |probes: &[super::world::Probe]| {
        let mut all = probes.to_vec();
        all.extend(case.probes.last().cloned());
        Case {
            world: case.world.clone(),
            probes: all,
        }
    };
    let before = case.probes.split_last().map(|(_, before)| before.to_vec());
    let before = fewer(before.unwrap_or_default(), |probes| {
        disagrees(&keep(probes))
    });
    keep(&before)
}

fn fewer_places(case: &Case, disagrees: Disagrees<'_>) -> Case {
    let with = |places: &[super::world::Place]| {
        let named = |name: &String| places.iter().any(|place| place.name == *name);
        let mut world = World {
            places: places.to_vec(),
        };
        let gone: Vec<String> = case
            .world
            .places
            .iter()
            .map(|place| place.name.clone())
            .filter(|name| !named(name))
            .collect();
        for place in &mut world.places {
            // Devices that lead there go, too; what names them is refused, which does no harm.
            place
                .links
                .retain(|line| gone.iter().all(|name| !line.contains(&format!("@{name}@"))));
        }
        let mut probes = case.probes.clone();
        probes.retain(|probe| named(&probe.from));
        Case { world, probes }
    };
    let from = case.probes.last().map(|probe| probe.from.clone());
    let places = fewer(case.world.places.clone(), |places| {
        let whole = places
            .iter()
            .any(|place| Some(&place.name) == from.as_ref());
        whole && disagrees(&with(places))
    });
    with(&places)
}

const LOOPBACK: &str = "link set lo up";

/// Lists of lines of a namespace that can be made shorter.
type Lists = for<'w> fn(&'w mut World, usize) -> Vec<Lines<'w>>;

/// A list of any of the types.
enum Lines<'w> {
    Text(&'w mut Vec<String>),
    Setting(&'w mut Vec<super::world::Setting>),
    Rules(&'w mut Vec<Rules>),
    Listener(&'w mut Vec<super::world::Listener>),
}

impl Lines<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Text(list) => list.len(),
            Self::Setting(list) => list.len(),
            Self::Rules(list) => list.len(),
            Self::Listener(list) => list.len(),
        }
    }

    fn keep(&mut self, kept: &[usize]) {
        fn only<T: Clone>(list: &mut Vec<T>, kept: &[usize]) {
            *list = kept
                .iter()
                .filter_map(|at| list.get(*at).cloned())
                .collect();
        }
        match self {
            Self::Text(list) => only(list, kept),
            Self::Setting(list) => only(list, kept),
            Self::Rules(list) => only(list, kept),
            Self::Listener(list) => only(list, kept),
        }
    }
}

const LISTS: &[Lists] = &[
    |world, place| vec![Lines::Rules(&mut world.places[place].rules)],
    |world, place| {
        let mut all = Vec::new();
        for rules in &mut world.places[place].rules {
            match rules {
                Rules::Nft(lines) => all.push(Lines::Text(lines)),
                Rules::Iptables { tables, .. } => {
                    for table in tables {
                        all.push(Lines::Text(&mut table.rules));
                        all.push(Lines::Text(&mut table.chains));
                    }
                }
            }
        }
        all
    },
    |world, place| vec![Lines::Text(&mut world.places[place].ip)],
    |world, place| vec![Lines::Text(&mut world.places[place].bridge)],
    |world, place| vec![Lines::Text(&mut world.places[place].wireguard)],
    |world, place| vec![Lines::Setting(&mut world.places[place].late)],
    |world, place| vec![Lines::Text(&mut world.places[place].ipsets)],
    |world, place| vec![Lines::Text(&mut world.places[place].links)],
    |world, place| vec![Lines::Listener(&mut world.places[place].listeners)],
];

fn fewer_lines(mut case: Case, list: Lists, disagrees: Disagrees<'_>) -> Case {
    for place in 0..case.world.places.len() {
        let count = list(&mut case.world, place).len();
        for number in 0..count {
            let len = list(&mut case.world, place)
                .get(number)
                .map_or(0, Lines::len);
            // Errors to the namespace itself come by loopback.
            let lo = match list(&mut case.world, place).get(number) {
                Some(Lines::Text(lines)) => lines.iter().position(|line| line.as_str() == LOOPBACK),
                _ => None,
            };
            let with = |kept: &[usize]| {
                let mut smaller = case.clone();
                let mut kept = kept.to_vec();
                kept.extend(lo.filter(|lo| !kept.contains(lo)));
                if let Some(lines) = list(&mut smaller.world, place).get_mut(number) {
                    lines.keep(&kept);
                }
                smaller
            };
            let kept = fewer((0..len).collect(), |kept| disagrees(&with(kept)));
            case = with(&kept);
        }
    }
    case
}

/// A small part of a list that still holds: halves, then quarters, down to single ones left out.
fn fewer<T: Clone>(mut all: Vec<T>, holds: impl Fn(&[T]) -> bool) -> Vec<T> {
    if all.is_empty() {
        return all;
    }
    if holds(&[]) {
        return Vec::new();
    }
    let mut chunk = all.len().div_ceil(2);
    loop {
        let mut at = 0;
        while at < all.len() {
            let end = (at + chunk).min(all.len());
            let mut without = all.clone();
            without.drain(at..end);
            if without.len() < all.len() && !without.is_empty() && holds(&without) {
                all = without;
            } else {
                at = end;
            }
        }
        if chunk == 1 {
            return all;
        }
        chunk = chunk.div_ceil(2);
    }
}
