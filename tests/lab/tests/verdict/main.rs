//! The verdict oracle: through each rule set of the corpus random packets are really sent, and what packet sockets
//! on every device saw of them (delivered, dropped, refused and how, each rewritten header) is one of the ways
//! that the product predicts from what it read before. Needs root, iptables, nft and ipset.
//!
//! `NETPATH_VERDICT=docker` sends through that set only, `NETPATH_PACKETS=1000` so many, `NETPATH_SEED=2` others.
#![allow(missing_docs, reason = "tests")]

mod judge;
mod net;
mod packets;
#[path = "../programs/mod.rs"]
mod programs;
mod sequences;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};
use judge::Judge;
use net::Net;
use netpath_lab::corpus::{self, Loader, RuleSet};
use netpath_lab::random::ask::Verdict;
use netpath_lab::random::cpu;
use packets::questions;

/// Packets for each rule set and each way to load it.
const PACKETS: usize = 240;
const SHOWN: usize = 6;

/// What came out for one rule set.
struct Row {
    set: String,
    loader: &'static str,
    packets: usize,
    agree: usize,
    /// How the predictions of the agreeing ended.
    ends: BTreeMap<&'static str, usize>,
    unknown: BTreeMap<String, usize>,
    differ: Vec<String>,
    millis: u128,
}

fn wanted() -> Vec<(RuleSet, Loader)> {
    let only = std::env::var("NETPATH_VERDICT").ok();
    let sets = corpus::all().expect("the corpus can be listed");
    let named = |set: &RuleSet| only.as_ref().is_none_or(|only| *only == set.name);
    let sets = sets.into_iter().filter(named);
    sets.flat_map(|set| {
        let loaders = set.loaders();
        loaders.iter().map(move |loader| (set.clone(), *loader))
    })
    .collect()
}

/// Whether a packet changes what rules say of the next: lists of recent addresses, sets that rules fill, counters.
fn remembers(set: &RuleSet) -> Result<bool> {
    let mut all = String::new();
    for file in ["iptables.rules", "ip6tables.rules", "ruleset.nft"] {
        all += &set.file(file)?.unwrap_or_default();
    }
    let words = ["-m recent", "dynamic", "numgen inc", "--mode nth"];
    Ok(words.iter().any(|word| all.contains(word)))
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

fn seed(name: &str) -> u64 {
    let start = number("NETPATH_SEED").unwrap_or(7);
    name.bytes()
        .fold(start, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte))
}

fn try_set(set: &RuleSet, loader: Loader) -> Result<Row> {
    let start = Instant::now();
    let net = Net::up().context("make the namespaces")?;
    if set.name == "kube-proxy-ipvs" {
        net.own_services()?;
    }
    let home = if set.in_pod() { "a" } else { "node" };
    net.place(home).enter(|| set.load(loader))?;
    let mut wire = net.wire()?;
    let mut judge = Judge::up()?;
    judge.read_all(&net)?;
    let remembers = remembers(set)?;
    let number =
        number("NETPATH_PACKETS").map_or(PACKETS, |own| usize::try_from(own).expect("few"));
    let floating = set.name.starts_with("calico");
    let questions = questions(seed(&set.name), number, set.in_pod(), floating);
    let mut row = Row {
        set: set.name.clone(),
        loader: loader.name(),
        packets: number,
        agree: 0,
        ends: BTreeMap::new(),
        unknown: BTreeMap::new(),
        differ: Vec::new(),
        millis: 0,
    };
    for question in &questions {
        let traces = judge.predict(question)?;
        let observed = wire
            .ask(question)
            .with_context(|| format!("send {question}"))?;
        match judge.compare(question, &traces, &observed) {
            Verdict::Agrees(_) => {
                row.agree += 1;
                let end = traces.first().map_or("", |trace| trace.outcome().name());
                *row.ends.entry(end).or_default() += 1;
            }
            Verdict::Unknown(why) => *row.unknown.entry(why).or_default() += 1,
            Verdict::Differs(text) => row.differ.push(text),
        }
        if remembers {
            judge.read(&net, &[home])?;
        }
    }
    row.millis = start.elapsed().as_millis();
    Ok(row)
}

fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<24} {:<16} {:>7} {:>8} {:>7} {:>8} {:>8}  of the agreeing\n",
        "set", "loaded by", "packets", "agreeing", "unknown", "differing", "ms"
    );
    for row in rows {
        let unknown: usize = row.unknown.values().sum();
        let ends = row.ends.iter().map(|(end, count)| format!("{count} {end}"));
        let ends: Vec<String> = ends.collect();
        let _ = writeln!(
            text,
            "{:<24} {:<16} {:>7} {:>8} {:>7} {:>8} {:>8}  {}",
            row.set,
            row.loader,
            row.packets,
            row.agree,
            unknown,
            row.differ.len(),
            row.millis,
            ends.join(", ")
        );
        for (why, count) in &row.unknown {
            let _ = writeln!(text, "    {count} unknown: {why}");
        }
    }
    text
}

#[test]
fn packets_go_where_they_were_predicted_to_go() {
    programs::needs_root();
    let jobs = Mutex::new(wanted());
    let done = Mutex::new(Vec::new());
    let step = || {
        let job = jobs.lock().expect("no thread panicked").pop();
        let Some((set, loader)) = job else {
            return Ok(false);
        };
        let row = try_set(&set, loader).with_context(|| set.name.clone())?;
        done.lock().expect("no thread panicked").push(row);
        Ok(true)
    };
    cpu::on_each(usize::MAX, step).expect("every set can be tried");
    let mut rows = done.into_inner().expect("no thread panicked");
    rows.sort_by(|a, b| (&a.set, a.loader).cmp(&(&b.set, b.loader)));
    let (mut packets, mut agree, mut unknown) = (0, 0, 0);
    for row in &rows {
        packets += row.packets;
        agree += row.agree;
        unknown += row.unknown.values().sum::<usize>();
        for text in row.differ.iter().take(SHOWN) {
            eprintln!("== {} by {}: {text}", row.set, row.loader);
        }
    }
    eprintln!(
        "{}{packets} packets, {agree} agreeing, {unknown} unknown",
        table(&rows)
    );
    assert_eq!(packets - agree - unknown, 0, "packets went elsewhere");
    assert!(unknown * 100 < packets, "{unknown} of {packets} unknown");
}
