//! What reading costs. Run alone, with an optimised helper named in NETPATH_HELPER:
//! `cargo test -p netpath-lab --test collect -- --ignored --nocapture measure`.

use std::fmt::Write;
use std::process::{Child, Command, Stdio};

use netpath::contract::{Reply, Request, SCHEMA_VERSION};
use netpath::model::NetNsId;
use netpath::model::conntrack::Tuple;
use netpath::model::netns::NsIdentity;
use netpath::model::want::{Depth, Fact, NsTarget, Want};

use crate::helper::Talk;
use crate::ns::Ns;

/// Fewer than the helper keeps open.
const NAMESPACES: u32 = 60;
const PROCESSES: u32 = 1500;

/// Processes that are ended when the test ends.
struct Crowd(Vec<Child>);

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            child.kill().expect("a process ends");
            child.wait().expect("a process ended");
        }
    }
}

fn ask(talk: &mut Talk, wants: Vec<Want>) -> (Vec<Fact>, u64) {
    talk.send(&Request::Collect { id: 1, wants });
    let mut all = Vec::new();
    loop {
        let Reply::Facts {
            facts,
            last,
            micros,
            ..
        } = talk.reply()
        else {
            panic!("no facts");
        };
        all.extend(facts);
        if last {
            return (all, micros);
        }
    }
}

fn best(talk: &mut Talk, wants: &[Want]) -> u64 {
    let times = (0..7).map(|_| ask(talk, wants.to_vec()).1);
    times.min().expect("some runs")
}

fn memory(talk: &Talk) -> String {
    let status = std::fs::read_to_string(format!("/proc/{}/status", talk.child.id()));
    let status = status.expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmHWM"));
    line.expect("its peak").to_owned()
}

fn talk() -> Talk {
    let mut talk = Talk::start();
    talk.send(&Request::Hello {
        schema: SCHEMA_VERSION,
    });
    talk.reply();
    talk
}

#[test]
#[ignore = "measures; run alone"]
#[allow(clippy::cast_precision_loss, reason = "microseconds for people")]
fn namespaces() {
    let spaces: Vec<Ns> = (0..NAMESPACES).map(|_| Ns::new()).collect();
    let sleep = |number: u32| {
        Command::new("ip")
            .args([
                "netns",
                "exec",
                &spaces[(number % NAMESPACES) as usize].0,
                "sleep",
                "600",
            ])
            .stdout(Stdio::null())
            .spawn()
            .expect("a process")
    };
    let _crowd = Crowd((0..PROCESSES).map(sleep).collect());
    let mut talk = talk();
    let none = NetNsId { dev: 0, ino: 0 };
    let target = NsTarget::Id(none);
    let depth = Depth::Identity;
    let discovery = best(&mut talk, &[Want::NetNs { target, depth }]);
    println!("discovery among {PROCESSES} processes: {discovery} µs");
    let (facts, _) = ask(
        &mut talk,
        vec![Want::NetNs {
            target: NsTarget::All,
            depth,
        }],
    );
    let own = |identity: &NsIdentity| spaces.iter().any(|ns| ns.0 == identity.label());
    let ids: Vec<NetNsId> = (facts.iter())
        .filter_map(|fact| match fact {
            Fact::NetNs(ns) if own(&ns.identity) => Some(ns.identity.id),
            _ => None,
        })
        .collect();
    let tuple = Tuple {
        src: "10.0.0.1".parse().expect("an address"),
        dst: "10.0.0.2".parse().expect("an address"),
        protocol: 6,
        sport: Some(1),
        dport: Some(2),
    };
    let wants: Vec<Want> = (ids.iter().map(|netns| Want::Conntrack {
        netns: *netns,
        tuple,
        zone: 0,
    }))
    .collect();
    // Each helper opens them once.
    let cold = (0..5).map(|_| ask(&mut self::talk(), wants.clone()).1);
    let cold = cold.min().expect("some runs");
    ask(&mut talk, wants.clone());
    let warm = best(&mut talk, &wants);
    let each = |micros: u64| micros as f64 / f64::from(NAMESPACES);
    let opened = each(cold.saturating_sub(discovery + warm));
    println!(
        "enter and open {} namespaces: {opened:.0} µs each",
        ids.len()
    );
    println!("conntrack by tuple: {:.1} µs each", each(warm));
    let depth = Depth::NoRules;
    let target = NsTarget::Id(ids[0]);
    let one = best(&mut talk, &[Want::NetNs { target, depth }]);
    println!("one namespace without rules: {one} µs, discovery included");
    assert_eq!(ids.len(), spaces.len());
    let target = NsTarget::All;
    let all = best(&mut talk, &[Want::NetNs { target, depth }]);
    println!(
        "all {} namespaces without rules: {all} µs; {}",
        ids.len() + 1,
        memory(&talk)
    );
}

#[test]
#[ignore = "measures; run alone"]
fn many_services() {
    let services: u32 = std::env::var("SERVICES").map_or(2000, |n| n.parse().expect("a number"));
    let ns = Ns::new();
    let mut text = String::from("*nat\n:KUBE-SERVICES - [0:0]\n");
    let mut rules = String::from("-A PREROUTING -m comment --comment portals -j KUBE-SERVICES\n");
    for number in 0..services {
        let (a, b) = (number >> 8, number & 255);
        writeln!(text, ":KUBE-SVC-{number:016} - [0:0]\n:KUBE-SEP-A{number:015} - [0:0]\n:KUBE-SEP-B{number:015} - [0:0]").expect("a text");
        writeln!(rules, "-A KUBE-SERVICES -d 10.96.{a}.{b}/32 -p tcp -m comment --comment \"ns/svc{number}:http cluster IP\" -m tcp --dport 80 -j KUBE-SVC-{number:016}").expect("a text");
        writeln!(rules, "-A KUBE-SVC-{number:016} -m comment --comment \"ns/svc{number} -> 1\" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-A{number:015}").expect("a text");
        writeln!(rules, "-A KUBE-SVC-{number:016} -m comment --comment \"ns/svc{number} -> 2\" -j KUBE-SEP-B{number:015}").expect("a text");
        for end in ["A", "B"] {
            writeln!(rules, "-A KUBE-SEP-{end}{number:015} -p tcp -m comment --comment \"ns/svc{number}\" -m tcp -j DNAT --to-destination 10.244.{a}.{b}:8080").expect("a text");
        }
    }
    ns.feed("iptables-nft-restore", &format!("{text}{rules}COMMIT\n"));
    for depth in [Depth::NoRules, Depth::Likely, Depth::Full] {
        let mut talk = talk();
        let target = NsTarget::Named(ns.0.clone());
        let micros = best(&mut talk, &[Want::NetNs { target, depth }]);
        println!(
            "nft, {services} services, {depth:?}: {micros} µs; {}",
            memory(&talk)
        );
    }
    ns.run("nft flush ruleset");
    ns.feed("iptables-legacy-restore", &format!("{text}{rules}COMMIT\n"));
    for depth in [Depth::Likely, Depth::Full] {
        let mut talk = talk();
        let target = NsTarget::Named(ns.0.clone());
        let micros = best(&mut talk, &[Want::NetNs { target, depth }]);
        println!(
            "legacy, {services} services, {depth:?}: {micros} µs; {}",
            memory(&talk)
        );
    }
}
