//! What finding a flow's entry costs in a full table: `cargo bench --features collect --bench conntrack`, as root.
//!
//! The table is that of a namespace of this program's own. The kernel bounds all namespaces' entries together;
//! that bound is raised meanwhile, and put back.
#![allow(missing_docs, reason = "criterion's macros make public items")]
#![allow(clippy::expect_used, reason = "a benchmark")]
#![allow(clippy::disallowed_methods, reason = "loads the table with conntrack")]

use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{Seek, Write};
use std::process::Command;
use std::{env, fs};

use criterion::Criterion;
use netpath::collect::conntrack;
use netpath::collect::netlink::{Netlink, Protocol};
use netpath::model::conntrack::Tuple;

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
/// Entries of one sender: each port below the ephemeral ones' end.
const PORTS: u32 = 10_000;

/// The bound as it was. Its file stays open: no other namespace than the first may change it.
struct Bound(fs::File, String);

impl Bound {
    fn raise(entries: u32) -> Self {
        let old = fs::read_to_string(MAX).expect("conntrack is there");
        let file = fs::File::options().write(true).open(MAX);
        let mut file = file.expect("the bound can be raised in the machine's own namespace");
        let more = entries + 65_536;
        write!(file, "{more}").expect("the bound can be raised");
        Self(file, old.trim().to_owned())
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let back = self.0.rewind().and_then(|()| write!(self.0, "{}", self.1));
        if let Err(error) = back {
            eprintln!("put {MAX} back to {}: {error}", self.1);
        }
    }
}

fn tuple(number: u32) -> Tuple {
    let src = 0x0af4_0000 + number / PORTS;
    Tuple {
        src: src.to_be_bytes().into(),
        dst: [10, 96, 0, 10].into(),
        protocol: 17,
        sport: u16::try_from(1024 + number % PORTS).ok(),
        dport: Some(53),
    }
}

fn fill(entries: u32) {
    let mut lines = String::new();
    for number in 0..entries {
        let Tuple { src, sport, .. } = tuple(number);
        let sport = sport.expect("a port");
        writeln!(
            lines,
            "-A -p udp -s {src} -d 10.96.0.10 --sport {sport} --dport 53 -r 10.244.2.4 -q {src} --reply-port-src 5353 --reply-port-dst {sport} -t 3600"
        )
        .expect("a line");
    }
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("entries");
    fs::write(&file, lines).expect("a file");
    let status = Command::new("conntrack").arg("-R").arg(&file).status();
    assert!(
        status.expect("conntrack runs").success(),
        "entries are made"
    );
}

/// Most memory that this program had, in KiB.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").expect("an own status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    number
        .and_then(|number| number.parse().ok())
        .expect("a peak")
}

fn main() {
    let entries = env::var("ENTRIES").map_or(1_000_000, |text| text.parse().expect("a number"));
    let _bound = Bound::raise(entries);
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a namespace, as root");
    fill(entries);
    // What filling took is no part of it.
    fs::write("/proc/self/clear_refs", "5").expect("the peak begins anew");
    let mut socket = Netlink::open(Protocol::Netfilter).expect("a socket");
    let mut criterion = Criterion::default().sample_size(20).configure_from_args();
    criterion.bench_function(&format!("conntrack/{entries}/one flow by its tuple"), |b| {
        let mut number = 0;
        b.iter(|| {
            number = (number + 7919) % entries;
            let found = conntrack::find(&mut socket, &tuple(number), 0).expect("an answer");
            assert!(black_box(found).is_some(), "it is there");
        });
    });
    criterion.bench_function(
        &format!("conntrack/{entries}/flows between two ends"),
        |b| {
            let ends = Tuple {
                sport: None,
                ..tuple(entries / 2)
            };
            b.iter(|| {
                let found = conntrack::between(&mut socket, &ends).expect("an answer");
                let count: u32 = found.groups.iter().map(|group| group.count).sum();
                assert_eq!(black_box(count), PORTS, "all ports of one sender");
            });
        },
    );
    criterion.final_summary();
    println!("memory of this program while asking: {} KiB", peak());
}
