//! What the rules of 10,000 Services cost: read whole, each time beside the bare floor that throws the bytes away, and
//! beside the tools; on the wire; made into an index; looked up; and what one Service's trace reads of them.
//!
//! `cargo bench --features collect --bench inventory`, as root; SERVICES and RUNS set other numbers,
//! BACKEND (legacy, iptablesnft or nftables) leaves the others out. Rules are
//! loaded into namespaces of this program's own; no packet is sent.
#![allow(missing_docs, reason = "a program")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a benchmark")]
#![allow(clippy::disallowed_methods, reason = "loads rules with the tools")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

mod rules;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, hint};

use netpath::collect::netfilter::{set, sockopt};
use netpath::collect::netlink::{Netlink, Protocol};
use netpath::collect::netns::{Hopper, NsFile};
use netpath::collect::nla::{Attrs, Writer};
use netpath::collect::{Collector, Roots};
use netpath::contract::{Reply, frame};
use netpath::model::NsKey;
use netpath::model::netfilter::{Elements, Family, Hook, Ruleset};
use netpath::model::netns::NetNs;
use netpath::model::packet::{L4, Packet, TCP};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, Fact, NsTarget, Packets, Towards, Want};
use netpath::simulate::{Flow, Limits, Prepared};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use rules::{BACKENDS, Backend, PORT, TARGET_PORT, endpoint, service, text};

const WITHIN: Duration = Duration::from_secs(120);
const NODE: &str = "node";
const LOOKUPS: u32 = 1000;

fn number(name: &str, default: u32) -> u32 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn middle<T: Copy + PartialOrd>(mut all: Vec<T>) -> T {
    all.sort_by(|a, b| a.partial_cmp(b).expect("comparable"));
    all[all.len() / 2]
}

fn timed<T>(runs: u32, mut run: impl FnMut() -> T) -> f64 {
    let one = |_| {
        let start = Instant::now();
        hint::black_box(run());
        ms(start.elapsed())
    };
    middle((0..runs).map(one).collect())
}

/// A namespace that goes with the value.
struct Space(String);

impl Space {
    fn new(backend: Backend) -> Self {
        let name = format!("np-speed-{}-{backend:?}", std::process::id());
        run("ip", &["netns", "add", &name]);
        let space = Self(name);
        for words in [
            "link set lo up",
            "link add d0 type bridge",
            "addr add 10.88.0.11/24 dev d0",
            "link set d0 up",
            "route add default via 10.88.0.1",
        ] {
            let all: Vec<&str> = ["-n", &space.0]
                .into_iter()
                .chain(words.split(' '))
                .collect();
            run("ip", &all);
        }
        space
    }

    fn program(&self, program: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).args(program);
        command
    }

    fn feed(&self, program: &[&str], text: &str) {
        let mut command = self.program(program);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("it starts");
        let mut stdin = child.stdin.take().expect("its input");
        stdin.write_all(text.as_bytes()).expect("it reads");
        drop(stdin);
        assert!(child.wait().expect("it ends").success(), "{program:?}");
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.0)
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.0]);
    }
}

fn run(program: &str, words: &[&str]) {
    let done = Command::new(program).args(words).status();
    assert!(done.expect("it starts").success(), "{program} {words:?}");
}

fn message(table: &str) -> Writer {
    let mut message = Writer::new(&[2, 0, 0, 0]);
    message.put_text(1, table);
    message
}

/// Dumps all rules chain by chain and all elements set by set, and counts bytes.
fn nft_floor(socket: &mut Netlink, table: &str) -> usize {
    const CHAINS: u16 = 0x0a04;
    const RULES: u16 = 0x0a07;
    const ELEMENTS: u16 = 0x0a0d;
    let listed = socket.dump(CHAINS, &[2, 0, 0, 0], "chains", Vec::new, |all, _, body| {
        let attrs = Attrs(&body[4..]);
        let name = attrs.find(3).expect("a name");
        all.push(String::from_utf8_lossy(&name[..name.len() - 1]).into_owned());
    });
    let sum = |sum: &mut usize, _, body: &[u8]| *sum += body.len();
    let mut bytes = 0;
    for chain in listed.expect("the chains") {
        let mut message = message(table);
        message.put_text(2, &chain);
        let read = socket.dump(RULES, message.bytes(), "floor", || 0, sum);
        bytes += read.expect("a dump");
    }
    for set in set::heads(socket, Family::Ip, table).expect("the sets") {
        let mut message = message(table);
        message.put_text(2, &set.name);
        let read = socket.dump(ELEMENTS, message.bytes(), "floor", || 0, sum);
        bytes += read.expect("a dump");
    }
    bytes
}

/// What one Service's trace can't do without: which chains are at hooks only the list of all tells, and in
/// kube-proxy's iptables mode one chain has a rule for every Service.
fn nft_trace_floor(socket: &mut Netlink, backend: Backend) {
    const CHAINS: u16 = 0x0a04;
    const RULES: u16 = 0x0a07;
    let sum = |sum: &mut usize, _, body: &[u8]| *sum += body.len();
    let listed = socket.dump(CHAINS, &[2, 0, 0, 0], "chains", || 0, sum);
    hint::black_box(listed.expect("the chains"));
    if backend == Backend::IptablesNft {
        let mut message = message("nat");
        message.put_text(2, "KUBE-SERVICES");
        let read = socket.dump(RULES, message.bytes(), "floor", || 0, sum);
        hint::black_box(read.expect("a dump"));
    }
}

/// Asks for the entries of each table and throws them away.
fn legacy_floor(socket: &File) -> usize {
    let mut bytes = 0;
    for table in ["nat", "filter"] {
        let mut info = vec![0_u8; 84];
        info[..table.len()].copy_from_slice(table.as_bytes());
        sockopt::getsockopt(socket, false, sockopt::GET_INFO, &mut info).expect("the table");
        let size = u32::from_ne_bytes(info[80..84].try_into().expect("four bytes"));
        let size = usize::try_from(size).expect("fits");
        let mut entries = vec![0_u8; 40 + size];
        entries[..table.len()].copy_from_slice(table.as_bytes());
        entries[32..36].copy_from_slice(&info[80..84]);
        let entries = hint::black_box(&mut entries);
        sockopt::getsockopt(socket, false, sockopt::GET_ENTRIES, entries).expect("its entries");
        bytes += size;
    }
    bytes
}

/// Milliseconds of the floor and bytes, and the floor of one trace.
fn floor(space: &Space, backend: Backend, runs: u32) -> (f64, usize, f64) {
    let hopper = Hopper::start().expect("a thread that enters namespaces");
    let file = NsFile::open(&space.path()).expect("the namespace");
    if backend == Backend::Legacy {
        let opened = hopper.run(&file, || {
            let (kind, flags) = (SockType::Raw, SockFlag::SOCK_CLOEXEC);
            socket(AddressFamily::Inet, kind, flags, SockProtocol::Raw)
        });
        let socket = File::from(opened.expect("entered").expect("a raw socket"));
        let time = timed(runs, || legacy_floor(&socket));
        return (time, legacy_floor(&socket), time);
    }
    let opened = hopper.run(&file, || Netlink::open(Protocol::Netfilter));
    let mut socket = opened.expect("entered").expect("a socket");
    let table = if backend == Backend::IptablesNft {
        "nat"
    } else {
        "kube-proxy"
    };
    let bytes = nft_floor(&mut socket, table);
    let time = timed(runs, || nft_floor(&mut socket, table));
    let of_trace = timed(runs, || nft_trace_floor(&mut socket, backend));
    (time, bytes, of_trace)
}

fn collector() -> Collector {
    let roots = Roots {
        proc: PathBuf::from("/proc"),
        netns: vec![PathBuf::from("/run/netns")],
    };
    Collector::new(roots).expect("a collector")
}

fn want(name: &str, depth: Depth) -> Want {
    Want::NetNs {
        target: NsTarget::Named(name.to_owned()),
        depth,
    }
}

fn namespace(facts: Vec<Fact>) -> NetNs {
    let found = facts.into_iter().find_map(|fact| match fact {
        Fact::NetNs(ns) => Some(*ns),
        _ => None,
    });
    found.expect("the namespace")
}

fn wire(facts: Vec<Fact>) -> usize {
    let reply = Reply::Facts {
        id: 1,
        facts,
        last: true,
        micros: 0,
    };
    frame::encode(&reply).expect("a frame").len()
}

/// In a process of its own, so that its memory is that of reading: prints milliseconds and VmHWM.
fn inside(name: &str, runs: u32) {
    let mut collector = collector();
    let all = [want(name, Depth::Full)];
    let time = timed(runs, || collector.collect(&all, WITHIN));
    let status = fs::read_to_string("/proc/self/status").expect("its status");
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let peak = line.and_then(|line| line.split_whitespace().nth(1));
    println!("{time} {}", peak.expect("its peak"));
}

fn inventory(space: &Space, runs: u32) -> (f64, u64) {
    let own = env::current_exe().expect("this program");
    let runs = runs.to_string();
    let done = Command::new(own).args(["inside", &space.0, &runs]).output();
    let text = String::from_utf8(done.expect("it starts").stdout).expect("a text");
    let (time, peak) = text.trim().split_once(' ').expect("two numbers");
    (time.parse().unwrap(), peak.parse::<u64>().unwrap() >> 10)
}

/// Chains, rules and elements of sets.
fn objects(ns: &NetNs) -> [usize; 3] {
    let rulesets = [ns.nft.known(), ns.legacy.known()];
    let mut sum = [0; 3];
    for table in rulesets
        .into_iter()
        .flatten()
        .flat_map(|rules: &Ruleset| &rules.tables)
    {
        sum[0] += table.chains.len();
        let rules = table
            .chains
            .values()
            .filter_map(|chain| chain.rules.known());
        sum[1] += rules.map(Vec::len).sum::<usize>();
        for set in table.sets.values() {
            sum[2] += match &set.elements {
                Elements::Known(all) => all.len(),
                Elements::ByKey(answers) => answers.len(),
                _ => 0,
            };
        }
    }
    sum
}

/// Reads what a trace to one Service needs of the node: milliseconds of reading, round trips, bytes, objects.
fn one_trace(space: &Space, which: u32) -> (f64, usize, usize, [usize; 3]) {
    let mut collector = collector();
    let towards = |addr, port| Towards {
        addr,
        service: Some((TCP, port)),
    };
    let ends = (0..rules::ENDPOINTS).map(|end| towards(endpoint(which, end), TARGET_PORT));
    let about = Packets {
        to: [towards(service(which), PORT)]
            .into_iter()
            .chain(ends)
            .collect(),
    };
    // Namespaces are known and open by then.
    collector.collect(&[want(&space.0, Depth::NoRules)], WITHIN);
    let mut topology = Topology::default();
    let mut wants = vec![want(&space.0, Depth::Likely)];
    let mut asked: BTreeSet<Want> = BTreeSet::new();
    let (mut time, mut turns, mut bytes) = (0.0, 0, 0);
    while !wants.is_empty() {
        asked.extend(wants.iter().cloned());
        wants.push(Want::About(about.clone()));
        let start = Instant::now();
        let facts = collector.collect(&wants, WITHIN);
        time += ms(start.elapsed());
        (turns, bytes) = (turns + 1, bytes + wire(facts.clone()));
        for fact in facts {
            topology.merge(NODE, fact);
        }
        let outcome =
            Prepared::new(&topology).simulate(&flow(&topology, which), &Limits::default());
        let lacking = outcome.wants.into_values().flatten();
        wants = lacking.filter(|want| !asked.contains(want)).collect();
    }
    let read = objects(topology.all().next().expect("the namespace").1);
    (time, turns, bytes, read)
}

fn flow(topology: &Topology, which: u32) -> Flow {
    Flow {
        from: topology.all().next().expect("the namespace").0,
        src: None,
        sport: None,
        dst: service(which),
        dport: Some(PORT),
        protocol: TCP,
        len: 60,
        uid: Some(0),
        gid: Some(0),
        bound: None,
    }
}

fn packet(which: u32) -> Packet {
    Packet::new(
        [10, 88, 0, 11].into(),
        service(which),
        L4::Tcp {
            sport: None,
            dport: Some(PORT),
            flags: 2,
        },
    )
}

/// Milliseconds until the first answer, microseconds of each further one.
fn lookups(topology: &Topology, key: &NsKey, services: u32) -> (f64, f64) {
    let mut prepared = Prepared::new(topology);
    let mut ask = |which| {
        let ways = prepared.through(key, Hook::Output, packet(which));
        assert!(!ways.is_empty(), "a way");
        ways
    };
    let first = timed(1, || ask(services - 1));
    // Each Service's words are made the first time.
    let others = timed(1, || {
        (0..LOOKUPS).for_each(|n| drop(ask(n * 7919 % services)));
    });
    (first, others * 1e3 / f64::from(LOOKUPS))
}

fn figures(backend: Backend, services: u32, runs: u32) {
    let space = Space::new(backend);
    space.feed(backend.restore(), &text(backend, services));
    let (bare, bytes, of_trace) = floor(&space, backend, runs);
    let (time, peak) = inventory(&space, runs);
    let facts = collector().collect(&[want(&space.0, Depth::Full)], WITHIN);
    let ns = namespace(facts.clone());
    let sent = wire(facts);
    let read = objects(&ns);
    let mut topology = Topology::default();
    topology.merge(NODE, Fact::NetNs(Box::new(ns)));
    let key = topology.all().next().expect("the namespace").0;
    let (first, each) = lookups(&topology, &key, services);
    println!(
        "\n{backend:?}, {services} Services: {} chains, {} rules, {} elements",
        read[0], read[1], read[2]
    );
    println!("| figure | value | beside the floor |\n|---|---|---|");
    let ratio = |value: f64| format!("{:.2}x", value / bare);
    println!(
        "| floor: bytes thrown away | {bare:.0} ms, {:.1} MiB | 1x |",
        mib(bytes)
    );
    println!(
        "| all read and decoded (goal 1.3x, 64 MiB) | {time:.0} ms, VmHWM {peak} MiB | {} |",
        ratio(time)
    );
    for tool in backend.tools() {
        let time = timed(runs.min(3), || {
            let mut command = space.program(tool);
            let done = command.stdout(Stdio::null()).status();
            assert!(done.expect("it starts").success(), "{tool:?}");
        });
        println!("| {} | {time:.0} ms | {} |", tool.join(" "), ratio(time));
    }
    println!("| all on the wire | {:.1} MiB | |", mib(sent));
    println!("| first lookup, index made | {first:.1} ms | |");
    println!("| each lookup, another Service each time (goal 20 us) | {each:.1} us | |");
    let traces: Vec<_> = (0..runs).map(|_| one_trace(&space, services - 1)).collect();
    let time = middle(traces.iter().map(|own| own.0).collect());
    let (_, turns, bytes, read) = traces[0];
    println!(
        "| one Service's trace reads (goal {} ms) | {time:.1} ms, {turns} turns, {:.1} kB: {} chains, {} rules, {} elements | {:.2}x of {of_trace:.1} ms |",
        backend.goal(),
        bytes as f64 / 1e3,
        read[0],
        read[1],
        read[2],
        time / of_trace
    );
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn main() {
    let words: Vec<String> = env::args().collect();
    if let [_, mode, name, runs] = words.as_slice()
        && mode == "inside"
    {
        return inside(name, runs.parse().expect("a number"));
    }
    assert!(
        nix::unistd::geteuid().is_root(),
        "run as root: it makes network namespaces"
    );
    let only = env::var("BACKEND").ok();
    let asked = |backend: &Backend| {
        let name = format!("{backend:?}").to_lowercase();
        only.as_ref().is_none_or(|only| *only == name)
    };
    for backend in BACKENDS.into_iter().filter(asked) {
        figures(backend, number("SERVICES", 10_000), number("RUNS", 7));
    }
}
