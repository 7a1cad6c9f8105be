//! A trace beside real exchanges.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::{File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use netpath_lab::oracle::{Point, Turn, difference, observed, of_exchange};
use netpath_lab::{Capture, Seen};

use crate::answer::{Answer, Branch, End};
use crate::flows::{Case, place};
use crate::inside::{Inside, exchange};
use crate::kubectl::{self, NAMESPACE};
use crate::probe::Mtu;
use crate::tell::{ASKED, LONG, SHORT, Told, end, unheard, unseen};
use crate::workload::Objects;

/// Ports of servers; no client has one of them.
const SERVER_PORTS: &[u16] = &[53, 80, 8080, 9999, 19080];
/// Exchanges in which every way has to be seen: of two equal ones, the second fails to come once in 2^59.
const EXCHANGES: usize = 60;
/// What a case is judged by.
pub struct Judge<'a> {
    /// The workload.
    pub objects: Objects,
    /// The cluster's namespaces, where it stands on this machine.
    pub inside: Option<&'a Inside>,
    /// Packet sockets in them.
    pub capture: Option<Capture>,
    /// Cases that disagreed.
    pub failures: usize,
    /// Cases so far.
    pub cases: usize,
    /// Begin of the path of a directory to which disagreements are written.
    pub save: PathBuf,
    /// That directory, once one was made.
    pub saved: Option<PathBuf>,
}

impl Judge<'_> {
    /// Judges a case and says the result.
    pub fn case(&mut self, case: &Case, told: Result<Told>) -> Result<()> {
        kubectl::go_on()?;
        self.cases += 1;
        let told = match told {
            Ok(told) => told,
            Err(error) => {
                self.failures += 1;
                println!("FAIL  {}: {error:#}", case.name);
                return Ok(());
            }
        };
        match self.agrees(case, &told)? {
            Ok(seen) => println!("ok    {:<50} {:<12} {seen}", case.name, told.answer.verdict),
            Err(why) => {
                self.failures += 1;
                println!("FAIL  {}: {why}", case.name);
                print!("{}", details(&told.answer));
                self.keep(&told)?;
            }
        }
        Ok(())
    }

    /// What was seen, or how it differs.
    fn agrees(&mut self, case: &Case, told: &Told) -> Result<Result<String, String>> {
        if let Some(lacks) = case.expect.lacks(&told.answer) {
            return Ok(Err(lacks));
        }
        if let Some(lacks) = case.expect.probe_lacks(&told.probe, &told.answer) {
            return Ok(Err(lacks));
        }
        if let Some(lacks) = told.mtu.iter().find_map(Mtu::lacks) {
            return Ok(Err(lacks));
        }
        let total: f64 = told.answer.branches.iter().map(|one| one.probability).sum();
        if (total - 1.0).abs() > 1e-3 {
            return Ok(Err(format!("probabilities add up to {total}")));
        }
        let branches = &told.answer.branches;
        let strange = |end: &&End| !branches.iter().any(|branch| fits(branch, end));
        if let Some(end) = told.asked.iter().find(strange) {
            let ends = ends(branches);
            return Ok(Err(format!(
                "the trace says {ends}, a client in the pod {end}"
            )));
        }
        if let [silent, ..] = unheard(branches, &told.asked)[..] {
            return Ok(Err(format!(
                "silence was not heard in {ASKED} exchanges: {}",
                silent.text
            )));
        }
        match self.inside {
            Some(inside) => self.captured(inside, case, branches),
            None => Ok(match unseen(branches, &told.asked)[..] {
                [] => Ok(list(told.asked.iter().map(ToString::to_string))),
                [first, ..] => Err(format!("not seen in {ASKED} exchanges: {}", first.text)),
            }),
        }
    }

    /// Exchanges in the client's namespace, until every way was seen at every device; no other may be seen.
    fn captured(
        &mut self,
        inside: &Inside,
        case: &Case,
        branches: &[Branch],
    ) -> Result<Result<String, String>> {
        let from = inside.pod(&self.objects, &case.pod)?;
        let open = branches.iter().any(|branch| branch.end == End::Unknown);
        let wait = patience(branches);
        // Neighbours and forwarding entries settle, so that ARP is not in the way.
        if branches.iter().all(arrives) {
            for _ in 0..3 {
                exchange(&from, case.to, case.udp, wait)?;
            }
        }
        let name = place(&self.objects, &case.pod)?;
        let ports = [SERVER_PORTS, &[case.to.port()]].concat();
        let mut met = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut points = 0;
        for number in 0..EXCHANGES {
            kubectl::go_on()?;
            let capture = self.capture.as_mut().context("packets are not captured")?;
            capture.take()?;
            let outcome = exchange(&from, case.to, case.udp, wait)?;
            let frames = of_exchange(capture.take()?, &name, &ports);
            let end = end(&self.objects, &outcome);
            let turns = turns(&frames, &ports, case.udp);
            points += turns.iter().map(Vec::len).sum::<usize>();
            match which(branches, &end, &turns) {
                Ok(indexes) => met.extend(indexes),
                Err(differs) => {
                    return Ok(Err(format!(
                        "exchange {number} ended as {outcome:?}\n{differs}"
                    )));
                }
            }
            seen.insert(end.to_string());
            if met.len() == branches.len() || open {
                let seen = list(seen.into_iter());
                let exchanges = number + 1;
                return Ok(Ok(format!(
                    "{seen:<24} {exchanges} exchanges, {points} points"
                )));
            }
        }
        let branches = (0..).zip(branches);
        let unseen = branches.filter(|(index, _)| !met.contains(index));
        let unseen = list(unseen.map(|(_, branch)| branch.text.clone()));
        Ok(Err(format!("not seen in {EXCHANGES} exchanges: {unseen}")))
    }

    /// Writes an answer that disagrees, and what it was made from, to new files.
    fn keep(&mut self, told: &Told) -> Result<()> {
        let directory = match &self.saved {
            Some(directory) => directory,
            None => self.saved.insert(fresh_directory(&self.save)?),
        };
        let path = directory.join(format!("{}.json", self.failures));
        File::create_new(&path)
            .and_then(|mut file| file.write_all(&told.json))
            .with_context(|| format!("write {}", path.display()))?;
        let snapshot = path.with_extension("snapshot").display().to_string();
        let arguments = ["netpath", "-n", NAMESPACE, "snapshot", "save", &snapshot];
        let saved = kubectl::output(&[&arguments[..], &["--keep", "10m"]].concat(), "")?;
        println!("      {} {snapshot}", path.display());
        // A snapshot of a broken cluster is often partial, which its exit code tells.
        let text = String::from_utf8_lossy(&saved.stderr);
        text.lines().for_each(|line| println!("      {line}"));
        Ok(())
    }
}

/// A directory that was not there, for nobody else; its path begins like this.
fn fresh_directory(begin: &Path) -> Result<PathBuf> {
    let doing = || format!("make a directory {}-XXXX", begin.display());
    let mut prefix = begin.file_name().with_context(doing)?.to_owned();
    prefix.push("-");
    let parent = begin.parent().with_context(doing)?;
    let parent = std::path::absolute(if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    })
    .with_context(doing)?;
    let mut new = tempfile::Builder::new();
    new.prefix(&prefix)
        .rand_bytes(4)
        .permissions(Permissions::from_mode(0o700));
    Ok(new.tempdir_in(parent).with_context(doing)?.keep())
}

/// Points of the four packets that are compared: question, answer, and the next of either side.
fn turns(frames: &[Seen], ports: &[u16], udp: bool) -> Vec<Vec<Point>> {
    // Datagrams are seen of the first turns only: the others would look the same.
    let turns = [Turn::Question, Turn::Answer, Turn::Client, Turn::Server];
    let turns = turns.iter().take(if udp { 2 } else { 4 });
    turns.map(|turn| observed(frames, ports, *turn)).collect()
}

/// How long to wait for the end of one exchange; that a silence lasts, the client in the pod has shown.
fn patience(branches: &[Branch]) -> Duration {
    let silent = |branch: &Branch| matches!(branch.end, End::Silence | End::Unknown);
    if branches.iter().any(silent) {
        SHORT
    } else {
        LONG
    }
}

/// Whether a branch ends like this.
fn fits(branch: &Branch, end: &End) -> bool {
    branch.end == *end || branch.end == End::Unknown
}

/// Whether a branch ends with an answer.
fn arrives(branch: &Branch) -> bool {
    matches!(branch.end, End::Pod(_) | End::Node(_) | End::Outside)
}

/// The first of so many packets, counted from 1, for which a branch tells no device.
fn untold(branch: &Branch, packets: usize) -> Option<usize> {
    (1..=packets).find(|turn| branch.turns.get(turn - 1).is_none_or(Vec::is_empty))
}

/// The branches that an exchange may have taken: those that end so and whose points are those that were seen. Where
/// there is none, how each differs.
fn which(branches: &[Branch], end: &End, seen: &[Vec<Point>]) -> Result<Vec<usize>, String> {
    let mut like = Vec::new();
    let mut text = String::new();
    for (index, branch) in branches.iter().enumerate() {
        if !fits(branch, end) {
            let _ = writeln!(text, "      branch {index} ends otherwise: {}", branch.text);
            continue;
        }
        if arrives(branch)
            && let Some(turn) = untold(branch, seen.len())
        {
            let _ = writeln!(
                text,
                "      branch {index} arrives, and tells no device for packet {turn} of {}",
                seen.len()
            );
            continue;
        }
        let mut packets = (0..).zip(branch.turns.iter().zip(seen));
        let wrong: Vec<String> = if branch.end == End::Unknown {
            // Nothing is said of what follows the place at which it can't be told.
            let all = packets.next().into_iter();
            all.filter_map(|(_, (told, seen))| {
                difference(told, seen.get(..told.len()).unwrap_or(seen))
            })
            .collect()
        } else {
            packets
                .filter_map(|(turn, (told, seen))| {
                    let from_outside = branch.end == End::Outside && turn % 2 == 1;
                    let seen = if from_outside {
                        next_door(told, seen)
                    } else {
                        seen.clone()
                    };
                    difference(told, &seen)
                })
                .collect()
        };
        if wrong.is_empty() {
            like.push(index);
            continue;
        }
        let _ = writeln!(
            text,
            "      branch {index}: {}\n{}",
            branch.text,
            wrong.concat()
        );
    }
    if like.is_empty() { Err(text) } else { Ok(like) }
}

/// A packet from outside as if it came from next door, as traces tell it: how far it came, no kernel here knows.
fn next_door(told: &[Point], seen: &[Point]) -> Vec<Point> {
    let ttl = |points: &[Point]| points.first().map_or(0, |point| point.ttl);
    let far = ttl(told).saturating_sub(ttl(seen));
    let nearer = |point: &Point| Point {
        ttl: point.ttl.saturating_add(far),
        ..point.clone()
    };
    seen.iter().map(nearer).collect()
}

/// Ends of all branches, for people.
fn ends(branches: &[Branch]) -> String {
    let all: BTreeSet<String> = branches
        .iter()
        .map(|branch| branch.end.to_string())
        .collect();
    list(all.into_iter())
}

fn list(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(" ")
}

/// An answer, for people.
fn details(answer: &Answer) -> String {
    let mut text = String::new();
    for branch in &answer.branches {
        let node = branch.node.as_deref().unwrap_or_default();
        let _ = writeln!(
            text,
            "      {:.2} {node} {}",
            branch.probability, branch.text
        );
    }
    for finding in &answer.findings {
        let place = &finding.place;
        let object = place.object.as_deref().unwrap_or_default();
        let _ = writeln!(
            text,
            "      {} {} [{} {} {object}] {}",
            finding.code,
            finding.title,
            place.node,
            place.netns,
            finding.evidence.join(" | ")
        );
    }
    for unknown in &answer.unknown {
        let _ = writeln!(text, "      unknown: {unknown}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(dev: &str) -> Point {
        Point {
            place: "n1".to_owned(),
            dev: dev.to_owned(),
            out: true,
            src: "10.0.0.1".parse().unwrap(),
            dst: "10.0.0.2".parse().unwrap(),
            dport: Some(80),
            ttl: 64,
            inner: None,
        }
    }

    fn branch(end: End, devices: &[&str]) -> Branch {
        Branch {
            end,
            probability: 0.5,
            turns: vec![devices.iter().map(|dev| point(dev)).collect()],
            node: None,
            text: String::new(),
        }
    }

    #[test]
    fn an_exchange_takes_the_branch_that_ends_so_at_the_same_devices() {
        let web = |number| End::Pod(format!("web-{number}"));
        let branches = [branch(web(1), &["eth0"]), branch(web(2), &["eth0", "eth1"])];
        let seen = |devices: &[&str]| vec![devices.iter().map(|dev| point(dev)).collect()];
        assert_eq!(
            which(&branches, &web(2), &seen(&["eth0", "eth1"])),
            Ok(vec![1])
        );
        assert!(which(&branches, &web(2), &seen(&["eth0"])).is_err());
        // Two that are refused before they part can't be told apart.
        let refused = [0, 1].map(|_| branch(End::Refused, &["eth0"]));
        let both = which(&refused, &End::Refused, &seen(&["eth0"]));
        assert_eq!(both, Ok(vec![0, 1]));
        assert!(which(&branches, &End::Silence, &seen(&["eth0"])).is_err());
    }

    #[test]
    fn how_far_an_answer_from_outside_came_is_open_but_not_what_happens_here() {
        let far = |ttl| Point {
            ttl,
            ..point("eth0")
        };
        let outside = Branch {
            turns: vec![vec![far(64)], vec![far(64), far(63)]],
            ..branch(End::Outside, &[])
        };
        let branches = [outside];
        let seen = |first, second| [vec![far(64)], vec![far(first), far(second)]];
        assert_eq!(which(&branches, &End::Outside, &seen(61, 60)), Ok(vec![0]));
        assert!(which(&branches, &End::Outside, &seen(61, 61)).is_err());
    }

    #[test]
    fn disagreements_are_written_where_nobody_else_writes() {
        let place = tempfile::tempdir().unwrap();
        let begin = place.path().join("check-one");
        let [first, second] = [(), ()].map(|()| fresh_directory(&begin).unwrap());
        assert_ne!(first, second);
        let name = first.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("check-one-"), "{name}");
        let mode = first.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(fresh_directory(Path::new("/")).is_err());
    }

    #[test]
    fn a_way_that_arrives_tells_devices_for_every_packet_that_is_compared() {
        let turns = |count: usize| vec![vec![point("eth0")]; count];
        let agrees = |end: &End, told: Vec<Vec<Point>>, seen: usize| {
            let turns_seen = turns(seen);
            let branch = Branch {
                turns: told,
                ..branch(end.clone(), &[])
            };
            which(&[branch], end, &turns_seen).is_ok()
        };
        let ends = [
            End::Pod("web-1".to_owned()),
            End::Node("n1".to_owned()),
            End::Outside,
        ];
        for end in &ends {
            // TCP has four, UDP two, of which a trace may tell more.
            assert!(agrees(end, turns(4), 4));
            assert!(agrees(end, turns(4), 2));
            assert!(!agrees(end, turns(2), 4));
            assert!(!agrees(end, turns(1), 2));
            let mut hole = turns(4);
            hole[2].clear();
            assert!(!agrees(end, hole.clone(), 4));
            assert!(agrees(end, hole, 2));
        }
        // A question that is lost has no answer.
        assert!(agrees(&End::Silence, turns(1), 1));
    }

    #[test]
    fn of_an_open_way_its_begin_is_compared() {
        let branches = [branch(End::Unknown, &["eth0"])];
        let seen = |devices: &[&str]| vec![devices.iter().map(|dev| point(dev)).collect()];
        assert_eq!(
            which(&branches, &End::Silence, &seen(&["eth0", "eth1"])),
            Ok(vec![0])
        );
        assert!(which(&branches, &End::Silence, &seen(&["eth1"])).is_err());
        assert!(which(&branches, &End::Silence, &seen(&[])).is_err());
    }
}
