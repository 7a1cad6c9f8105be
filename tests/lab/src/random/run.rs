//! Many networks, one after the other on each CPU.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::ask::Verdict;
use super::coverage::{Coverage, plain};
use super::cpu;
use super::dice::Dice;
use super::judge::Judge;
use super::kinds::Kinds;
use super::record::Recorder;
use super::seen::Refusal;
use super::world::{Case, Kind, Probe, World};
use super::{Raised, generate, save, shrink};

/// Packets that are sent through each network.
pub const PROBES: usize = 40;

/// Seeds of the fixed set, which CI runs.
pub const FIXED: [u64; 5] = [3, 2026, 7032, 7148, 7198];

/// Packets of each of them.
pub const FIXED_CASES: usize = 480;

/// Networks that take longer are named.
const SLOW: Duration = Duration::from_secs(20);

/// What to run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// First seed.
    pub seed: u64,
    /// Devices that networks are drawn with, beside those that every kernel has.
    pub kinds: Kinds,
    /// Packets in all.
    pub cases: usize,
    /// Where to save cases that disagree, made smaller; `None`: nowhere, and as they are.
    pub save: Option<PathBuf>,
    /// Where to keep what was read and seen of the cases that agree, for `--judge`.
    pub record: Option<PathBuf>,
    /// Stop at so many disagreements.
    pub most: usize,
    /// CPUs to use.
    pub jobs: usize,
    /// Begin no network after so many seconds.
    pub seconds: u64,
}

/// What came out.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Networks.
    pub networks: usize,
    /// Packets.
    pub cases: usize,
    /// Of these, how many were as predicted.
    pub agree: usize,
    /// How the predictions of the agreeing ended.
    pub ends: BTreeMap<&'static str, usize>,
    /// Inconclusive ones, by reason.
    pub unknown: BTreeMap<String, usize>,
    /// Disagreements, in words, with their seeds.
    pub differ: Vec<String>,
    /// Agreeing ones that could not be kept, where they were to be.
    pub left_out: usize,
    /// Packets that can't be sent: their source is no address, or they are too large for a raw socket.
    pub skipped: usize,
    /// Networks that could not be made, with their seeds.
    pub failed: Vec<String>,
    /// Lines for `ip` and `bridge`, and settings.
    pub lines: usize,
    /// Of these, how many the kernel or a tool refused.
    pub refused: usize,
    /// The same by their first words, with an example.
    pub refusals: BTreeMap<String, usize>,
    /// Decisions met.
    pub coverage: Coverage,
    /// How long it took.
    pub took: Duration,
    /// Of that, making and removing networks, reading, sending; of all CPUs together.
    pub parts: [Duration; 3],
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.networks += other.networks;
        self.cases += other.cases;
        self.agree += other.agree;
        for (end, count) in &other.ends {
            *self.ends.entry(end).or_default() += count;
        }
        for (why, count) in &other.unknown {
            *self.unknown.entry(why.clone()).or_default() += count;
        }
        for (why, count) in &other.refusals {
            *self.refusals.entry(why.clone()).or_default() += count;
        }
        self.differ.extend(other.differ.iter().cloned());
        self.failed.extend(other.failed.iter().cloned());
        self.lines += other.lines;
        self.refused += other.refused;
        self.skipped += other.skipped;
        self.left_out += other.left_out;
        self.coverage.add(&other.coverage);
        for (own, more) in self.parts.iter_mut().zip(other.parts) {
            *own += more;
        }
    }

    /// Inconclusive cases.
    pub fn inconclusive(&self) -> usize {
        self.unknown.values().sum()
    }

    /// In words.
    #[allow(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let seconds = self.took.as_secs_f64();
        let share = |count: usize| 100.0 * count as f64 / self.cases.max(1) as f64;
        let _ = writeln!(
            text,
            "{} cases through {} networks in {seconds:.1} s ({:.1} cases/s): {} agree, {} differ, {} inconclusive ({:.2} %), {} networks failed",
            self.cases,
            self.networks,
            self.cases as f64 / seconds.max(0.001),
            self.agree,
            self.differ.len(),
            self.inconclusive(),
            share(self.inconclusive()),
            self.failed.len(),
        );
        let ends: Vec<String> = self
            .ends
            .iter()
            .map(|(end, count)| format!("{end} {:.1} %", share(*count)))
            .collect();
        let [raise, read, send] = self.parts.map(|part| part.as_secs_f64());
        let _ = writeln!(text, "ends: {}", ends.join(", "));
        let _ = writeln!(
            text,
            "time of all CPUs: networks {raise:.1} s, reading and predicting {read:.1} s, sending {send:.1} s; {} of {} lines refused, {} packets that can't be sent",
            self.refused, self.lines, self.skipped
        );
        let _ = writeln!(text, "{}", self.coverage.share());
        for (why, count) in &self.unknown {
            let _ = writeln!(text, "  {count} inconclusive: {why}");
        }
        for (why, count) in &self.refusals {
            let _ = writeln!(text, "  {count} refused: {why}");
        }
        for why in &self.failed {
            let _ = writeln!(text, "  failed: {why}");
        }
        text
    }
}

/// Runs all cases of a plan on its CPUs; each network's seed follows from the plan's.
pub fn run(plan: &Plan) -> Result<Report> {
    let start = Instant::now();
    let networks = plan.cases.div_ceil(PROBES);
    let mut dice = Dice::new(plan.seed);
    let seeds: Vec<u64> = (0..networks).map(|_| dice.seed()).collect();
    let next = AtomicUsize::new(0);
    let total = Mutex::new(Report::default());
    cpu::on_each(plan.jobs, || {
        let Some(seed) = seeds.get(next.fetch_add(1, Ordering::Relaxed)) else {
            return Ok(false);
        };
        let began = Instant::now();
        let report = network(
            *seed,
            PROBES,
            &plan.kinds,
            plan.record.as_deref(),
            plan.save.as_deref(),
            None,
        );
        let Ok(mut total) = total.lock() else {
            return Ok(false);
        };
        if began.elapsed() > SLOW {
            let parts = report.parts;
            eprintln!("seed {seed:#x} took {:?}: {parts:?}", began.elapsed());
        }
        for text in &report.differ {
            println!("== {text}");
        }
        total.add(&report);
        Ok(total.differ.len() < plan.most && start.elapsed().as_secs() < plan.seconds)
    })?;
    let mut report = total
        .into_inner()
        .map_err(|_| anyhow::anyhow!("a thread panicked"))?;
    report.took = start.elapsed();
    Ok(report)
}

/// Runs the fixed set; of the plan, seed and number of cases do not count.
pub fn run_fixed(plan: &Plan) -> Result<Report> {
    let mut total = Report::default();
    for seed in FIXED {
        let report = run(&Plan {
            seed,
            cases: FIXED_CASES,
            ..plan.clone()
        })?;
        total.add(&report);
        total.took += report.took;
    }
    Ok(total)
}

/// All packets of one seed's network.
pub fn network(
    seed: u64,
    probes: usize,
    kinds: &Kinds,
    record: Option<&Path>,
    save: Option<&Path>,
    only: Option<usize>,
) -> Report {
    let (world, probes) = generate(seed, probes, kinds);
    let mut report = Report {
        networks: 1,
        ..Report::default()
    };
    let mut differing = Vec::new();
    let mut recorder = record.map(|_| Recorder::default());
    let sent = try_network(
        seed,
        (&world, &probes),
        &mut report,
        &mut differing,
        recorder.as_mut(),
    );
    let written = match (&recorder, record) {
        (Some(recorder), Some(dir)) => {
            report.left_out = recorder.left_out;
            recorder.write(dir, seed)
        }
        _ => Ok(()),
    };
    if let Err(error) = sent.and(written) {
        report.failed.push(format!("seed {seed:#x}: {error:#}"));
    }
    if let Some(dir) = save {
        let mut differing = differing.into_iter();
        let wanted = differing.find(|(number, _)| only.is_none_or(|only| only == *number));
        if let Some((number, text)) = wanted {
            let case = Case {
                world: world.clone(),
                probes: probes.get(..=number).unwrap_or_default().to_vec(),
            };
            match shrink::shrink(&case).and_then(|small| save::save(dir, &small, seed, number)) {
                Ok(Some(path)) => report.differ.push(format!(
                    "seed {seed:#x} packet {number}, made smaller in {}",
                    path.display()
                )),
                Ok(None) => report.differ.push(format!(
                    "seed {seed:#x} packet {number} agrees when sent again: {text}"
                )),
                Err(error) => report
                    .failed
                    .push(format!("make {seed:#x} smaller: {error:#}")),
            }
        }
    }
    report
}

fn try_network(
    seed: u64,
    (world, probes): (&World, &[Probe]),
    report: &mut Report,
    differing: &mut Vec<(usize, String)>,
    mut recorder: Option<&mut Recorder>,
) -> Result<()> {
    let start = Instant::now();
    let raised = Raised::up(world)?;
    report.lines += world.lines();
    let mut judge = Judge::up()?;
    judge.await_usable(&raised)?;
    let (mut wire, absent) = raised.wire(world, judge.ports())?;
    let refused = || raised.refused.iter().chain(&absent);
    report.refused += refused().count();
    for line in refused() {
        let why = line.rsplit(": ").next().unwrap_or_default();
        let words: Vec<&str> = line.split(' ').take(3).collect();
        let key = format!("{} ... {why}", words.join(" "));
        *report.refusals.entry(key).or_default() += 1;
    }
    raised.load_rules(world)?;
    judge.read(&raised)?;
    report.parts[0] += start.elapsed();
    for (number, probe) in probes.iter().enumerate() {
        let start = Instant::now();
        judge.read_again(&raised)?;
        if !judge.can_send(probe) {
            report.skipped += 1;
            continue;
        }
        let traces = judge.predict(probe)?;
        report.parts[1] += start.elapsed();
        let start = Instant::now();
        let observed = wire.ask(probe).with_context(|| format!("send {probe}"))?;
        report.parts[2] += start.elapsed();
        if matches!(probe.kind, Kind::Raw { .. }) && observed.refusal == Some(Refusal::Call(90)) {
            // EMSGSIZE: the socket itself takes no packet larger than its device's MTU.
            report.skipped += 1;
            continue;
        }
        report.cases += 1;
        match judge.compare(probe, &traces, &observed) {
            Verdict::Agrees(way) => {
                report.agree += 1;
                if let Some(recorder) = &mut recorder {
                    let name = judge.namer();
                    recorder.note((number, probe), judge.topology(), &name, &observed);
                }
                if let Some(trace) = traces.get(way) {
                    *report.ends.entry(trace.outcome().name()).or_default() += 1;
                    report.coverage.count(trace);
                }
            }
            Verdict::Unknown(why) => *report.unknown.entry(plain(&why)).or_default() += 1,
            Verdict::Differs(text) => {
                report
                    .differ
                    .push(format!("seed {seed:#x} packet {number}: {text}"));
                differing.push((number, text));
            }
        }
    }
    let start = Instant::now();
    drop(wire);
    drop(raised);
    report.parts[0] += start.elapsed();
    Ok(())
}
