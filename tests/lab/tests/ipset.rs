//! Random ipsets and random packets: what the simulation says of a rule with `-m set` is what the kernel does
//! with the packet. Needs root, ipset and iptables.
#![allow(missing_docs, reason = "tests")]

mod programs;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use netpath::collect::{Collector, Roots};
use netpath::model::packet::{ICMP, ICMPV6, TCP, UDP};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, Fact, NsTarget, Want};
use netpath::model::{NetNsId, NsKey};
use netpath::simulate::{Flow, Limits, simulate};
use netpath::trace::{Disposition, Evidence, Trace};
use netpath_lab::exchange;
use netpath_lab::namespace::Namespaces;
use netpath_lab::random::dice::Dice;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use programs::{Machine, Netns, needs_root, words};

const NODE: &str = "here";
const WAIT: Duration = Duration::from_secs(3);
const PORTS: [u16; 3] = [53, 80, 8080];
const SOURCE_PORTS: u64 = 4;
const FIRST_SOURCE: u16 = 40000;
const HOSTS: u64 = 4;

fn run(words: &[&str], input: &str) -> Result<String, String> {
    use std::io::Write;
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{words:?}: {error}"));
    let mut stdin = child.stdin.take().expect("its input");
    // A program that reads nothing may have ended.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).expect("text"));
    }
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{words:?}: {error}{input}"))
}

/// A namespace that is removed when the test ends.
struct Ns(String);

impl Ns {
    fn add(what: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("npi-{what}-{}-{number}", std::process::id());
        run(&["ip", "netns", "add", &name], "").expect("a namespace");
        let ns = Self(name);
        ns.tool("ip link set lo up");
        ns
    }

    fn feed(&self, line: &str, input: &str) -> String {
        let words: Vec<&str> = line.split_whitespace().collect();
        let inside = [&["ip", "netns", "exec", &self.0], words.as_slice()].concat();
        run(&inside, input).unwrap_or_else(|error| panic!("{error}"))
    }

    fn tool(&self, line: &str) -> String {
        self.feed(line, "")
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = PathBuf::from("/run/netns").join(&self.0);
        let spaces = Namespaces::net_at(Path::new(&path)).expect("the namespace opens");
        spaces.run(|| Ok(work())).expect("it can be entered")
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let removed = run(&["ip", "netns", "del", &self.0], "");
        assert!(removed.is_ok() || thread::panicking(), "{removed:?}");
    }
}

/// A packet to send.
#[derive(Clone, Copy, Debug)]
struct Sent {
    protocol: u8,
    src: IpAddr,
    dst: IpAddr,
    sport: u16,
    dport: u16,
}

/// A client and a server with a router between them, whose rules are tried: c0 leads to the client, s0 to the
/// server. All have several addresses of both families.
struct Net {
    client: Ns,
    router: Ns,
    server: Ns,
    collector: Collector,
}

fn client_addr(v6: bool, host: u64) -> IpAddr {
    addr(v6, 0, host)
}

fn server_addr(v6: bool, host: u64) -> IpAddr {
    addr(v6, 1, host)
}

fn addr(v6: bool, net: u64, host: u64) -> IpAddr {
    let text = if v6 {
        format!("fd09::{net}:{:x}", host + 2)
    } else {
        format!("10.9.{net}.{}", host + 2)
    };
    text.parse().expect("an address")
}

impl Net {
    fn up() -> Self {
        needs_root();
        let (client, router, server) = (Ns::add("c"), Ns::add("r"), Ns::add("s"));
        for (ns, net, port) in [(&client, 0, "c0"), (&server, 1, "s0")] {
            router.tool(&format!(
                "ip link add {port} type veth peer name eth0 netns {}",
                ns.0
            ));
            router.tool(&format!("ip link set {port} up"));
            router.tool(&format!("ip addr add 10.9.{net}.1/24 dev {port}"));
            router.tool(&format!("ip addr add fd09::{net}:1/112 dev {port} nodad"));
            ns.tool("ip link set eth0 up");
            for host in 0..HOSTS {
                let (v4, v6) = (addr(false, net, host), addr(true, net, host));
                ns.tool(&format!("ip addr add {v4}/24 dev eth0"));
                ns.tool(&format!("ip addr add {v6}/112 dev eth0 nodad"));
            }
            ns.tool(&format!("ip route add default via 10.9.{net}.1"));
            ns.tool(&format!("ip -6 route add default via fd09::{net}:1"));
        }
        for name in ["net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"] {
            router.tool(&format!("sysctl -qw {name}=1"));
        }
        // Each refusal is to be heard.
        for name in ["net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"] {
            router.tool(&format!("sysctl -qw {name}=0"));
        }
        server.inside(serve);
        let roots = Roots {
            proc: PathBuf::from("/proc"),
            netns: vec![PathBuf::from("/run/netns")],
        };
        let collector = Collector::new(roots).expect("a collector");
        let net = Self {
            client,
            router,
            server,
            collector,
        };
        // Link-local neighbours and routes settle with a first exchange.
        for v6 in [false, true] {
            let sent = Sent {
                protocol: TCP,
                src: client_addr(v6, 0),
                dst: server_addr(v6, 0),
                sport: FIRST_SOURCE,
                dport: PORTS[0],
            };
            assert!(
                net.arrives(&sent, true),
                "{sent:?} does not arrive without rules"
            );
        }
        net
    }

    /// What was read of the three, with rules as a first request gets them.
    fn read(&mut self) -> (Topology, NetNsId) {
        let mut topology = Topology::default();
        let mut from = None;
        for ns in [&self.client, &self.router, &self.server] {
            let want = Want::NetNs {
                target: NsTarget::Named(ns.0.clone()),
                depth: Depth::Likely,
            };
            for fact in self.collector.collect(&[want], WAIT * 5) {
                if let Fact::NetNs(found) = &fact {
                    from = from.or(Some(found.identity.id));
                }
                topology.merge(NODE, fact);
            }
        }
        (topology, from.expect("the client's namespace"))
    }

    /// The simulation's one trace, with what it wants read.
    fn predict(&mut self, topology: &mut Topology, from: NetNsId, sent: &Sent) -> Trace {
        let ports = matches!(sent.protocol, TCP | UDP);
        let flow = Flow {
            from: NsKey {
                node: NODE.to_owned(),
                netns: from,
            },
            // The kernel chooses that of an echo.
            src: ports.then_some(sent.src),
            sport: ports.then_some(sent.sport),
            dst: sent.dst,
            dport: ports.then_some(sent.dport),
            protocol: sent.protocol,
            len: 60,
            uid: Some(0),
            gid: Some(0),
            bound: None,
        };
        let mut asked = BTreeSet::new();
        loop {
            let mut outcome = simulate(topology, &flow, &Limits::default());
            let wants = outcome.wants.remove(NODE).unwrap_or_default();
            let new: Vec<Want> = wants.difference(&asked).cloned().collect();
            if new.is_empty() {
                assert_eq!(outcome.traces.len(), 1, "{:?}", outcome.traces);
                return outcome.traces.remove(0);
            }
            for fact in self.collector.collect(&new, WAIT * 5) {
                topology.merge(NODE, fact);
            }
            asked.extend(new);
        }
    }

    /// Whether the server answers. Nobody refuses an echo at once: silence is heard for longer where an answer is
    /// `expected`, which may come late on a busy machine.
    fn arrives(&self, sent: &Sent, expected: bool) -> bool {
        self.client.inside(|| match sent.protocol {
            TCP => connects(sent),
            UDP => answers(sent),
            _ => {
                let silence = Duration::from_millis(400);
                exchange::echo(sent.dst, if expected { WAIT } else { silence })
                    .expect("an echo request")
                    .connected()
            }
        })
    }

    /// Sends packets; gives what prediction and kernel differ in, and how many arrived.
    fn compare(&mut self, packets: &[Sent], about: &str) -> (Vec<String>, usize) {
        let (mut topology, from) = self.read();
        let (mut wrong, mut arrived) = (Vec::new(), 0);
        for sent in packets {
            let trace = self.predict(&mut topology, from, sent);
            let arrives = self.arrives(sent, matches!(trace.outcome(), Disposition::Delivered));
            arrived += usize::from(arrives);
            let agrees = match trace.outcome() {
                Disposition::Delivered => arrives,
                Disposition::Rejected(_) | Disposition::Dropped(_) => !arrives,
                _ => false,
            };
            if !agrees {
                let said = trace.outcome();
                wrong.push(format!(
                    "{sent:?}: arrives {arrives}, said {said:?}\n{about}"
                ));
            }
        }
        (wrong, arrived)
    }
}

/// Answers on all addresses and ports of the namespace.
fn serve() {
    for port in PORTS {
        let listener = TcpListener::bind(("::", port)).expect("a listener");
        thread::spawn(move || while listener.accept().is_ok() {});
        let addrs = (0..HOSTS).flat_map(|host| [server_addr(false, host), server_addr(true, host)]);
        for addr in addrs {
            let socket = UdpSocket::bind((addr, port)).expect("a datagram socket");
            thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok((len, from)) = socket.recv_from(&mut buffer) {
                    // A client that is gone hears nothing.
                    let _ = socket.send_to(&buffer[..len], from);
                }
            });
        }
    }
}

fn answers(sent: &Sent) -> bool {
    let socket = UdpSocket::bind((sent.src, sent.sport)).expect("a datagram socket");
    socket.set_read_timeout(Some(WAIT)).expect("a timeout");
    socket.connect((sent.dst, sent.dport)).expect("a route");
    let talked = socket.send(b"x").and_then(|_| socket.recv(&mut [0; 64]));
    match talked {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => false,
        Err(error) => panic!("{sent:?}: neither answered nor refused: {error}"),
    }
}

fn connects(sent: &Sent) -> bool {
    let storage = |addr, port| SockaddrStorage::from(SocketAddr::new(addr, port));
    let family = if sent.src.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let own = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    // The next one with these ports is not to meet the last one's TIME_WAIT.
    let gone = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&own, sockopt::Linger, &gone).expect("linger");
    setsockopt(&own, sockopt::ReuseAddr, &true).expect("an address used before");
    let wait = TimeVal::seconds(3);
    setsockopt(&own, sockopt::SendTimeout, &wait).expect("a timeout");
    bind(own.as_raw_fd(), &storage(sent.src, sent.sport)).expect("its own address");
    match connect(own.as_raw_fd(), &storage(sent.dst, sent.dport)) {
        Ok(()) => true,
        Err(Errno::ECONNREFUSED) => false,
        Err(error) => panic!("{sent:?}: neither answered nor refused: {error}"),
    }
}

/// Random parts of members, in ipset's words. Most are of a packet that will be sent, seen from the sides that the
/// rule will name: else hardly any would be met.
struct Parts<'a> {
    dice: &'a mut Dice,
    v6: bool,
    packets: Vec<Sent>,
    /// Sides of the rule: true is the source.
    sides: Vec<bool>,
    /// The packet that this member is like.
    like: Option<Sent>,
}

impl Parts<'_> {
    fn one<T: Copy>(&mut self, of: &[T]) -> T {
        self.dice.one(of)
    }

    fn rarely(&mut self) -> bool {
        self.dice.number(5) == 0
    }

    /// The packet and the side that a part is taken from.
    fn shown(&mut self, field: usize) -> Option<(Sent, bool)> {
        let side = self.sides.get(field).copied();
        let packet = self.like.filter(|packet| packet.src.is_ipv6() == self.v6);
        if self.rarely() {
            None
        } else {
            packet.zip(side)
        }
    }

    fn ip(&mut self, field: usize) -> String {
        if let Some((packet, source)) = self.shown(field) {
            return if source { packet.src } else { packet.dst }.to_string();
        }
        let (net, host) = (self.dice.number(2), self.dice.number(HOSTS));
        addr(self.v6, net, host).to_string()
    }

    /// Networks that lie within each other. `shortest`: the type's shortest prefix.
    fn net(&mut self, field: usize, shortest: u64) -> String {
        let whole = if self.v6 { 128 } else { 32 };
        let len = match self.dice.number(10) {
            0 => shortest,
            1 => whole - 20,
            _ => whole - self.dice.number(5),
        };
        format!("{}/{len}", self.ip(field))
    }

    fn port(&mut self, field: usize) -> String {
        let icmp = if self.v6 { "icmpv6" } else { "icmp" };
        if let Some((packet, source)) = self.shown(field) {
            let port = if source { packet.sport } else { packet.dport };
            return match packet.protocol {
                TCP => format!("tcp:{port}"),
                UDP => format!("udp:{port}"),
                _ => format!("{icmp}:echo-request"),
            };
        }
        let proto = self.one(&["tcp", "udp"]);
        format!("{proto}:70-90")
    }

    fn iface(&mut self, field: usize) -> &'static str {
        // `wildcard` is no option of every kernel's type.
        match self.sides.get(field) {
            Some(true) => self.one(&["c0", "s0", "eth7", "physdev:c0"]),
            _ => self.one(&["s0", "c0", "eth7", "physdev:s0"]),
        }
    }

    fn nomatch(&mut self) -> &'static str {
        if self.dice.number(3) == 0 {
            " nomatch"
        } else {
            ""
        }
    }

    fn member(&mut self, kind: &str) -> String {
        let some = self.packets.clone();
        self.like = (!self.rarely()).then(|| self.one(&some));
        match kind {
            "hash:ip" | "bitmap:ip" => self.ip(0),
            "hash:net" => self.net(0, 1) + self.nomatch(),
            "hash:ip,port" => format!("{},{}", self.ip(0), self.port(1)),
            "hash:net,port" => {
                let (net, port) = (self.net(0, 1), self.port(1));
                format!("{net},{port}{}", self.nomatch())
            }
            "hash:ip,port,ip" => format!("{},{},{}", self.ip(0), self.port(1), self.ip(2)),
            "hash:ip,port,net" => {
                let (ip, port, net) = (self.ip(0), self.port(1), self.net(2, 1));
                format!("{ip},{port},{net}{}", self.nomatch())
            }
            "hash:net,iface" => {
                let (net, iface) = (self.net(0, 0), self.iface(1));
                format!("{net},{iface}{}", self.nomatch())
            }
            "bitmap:port" => {
                let port = self.port(0);
                let number = port
                    .split(':')
                    .nth(1)
                    .filter(|port| *port != "echo-request");
                number.unwrap_or("2048").to_owned()
            }
            other => panic!("no members of {other}"),
        }
    }
}

/// Number of directions that a type takes.
fn dims(kind: &str) -> usize {
    if kind == "list:set" {
        3
    } else {
        kind.split(',').count()
    }
}

/// A set as `ipset restore` reads it.
fn set(parts: &mut Parts<'_>, name: &str, kind: &str) -> String {
    let family = if kind.starts_with("hash") && parts.v6 {
        " family inet6"
    } else {
        ""
    };
    let options = match kind {
        "bitmap:ip" => " range 10.9.0.0/16",
        "bitmap:port" => " range 50-41000",
        "hash:ip" if parts.dice.number(2) == 0 => {
            if parts.v6 {
                " netmask 126"
            } else {
                " netmask 30"
            }
        }
        _ => "",
    };
    let extras = parts.one(&["", "", " timeout 600", " counters", " comment", " skbinfo"]);
    let mut text = format!("create {name} {kind}{family}{options}{extras}\n");
    for _ in 0..=parts.dice.number(9) {
        let member = parts.member(kind);
        let _ = writeln!(text, "add {name} {member}");
    }
    text
}

fn packets(dice: &mut Dice, v6: bool) -> Vec<Sent> {
    let mut all = Vec::new();
    for number in 0..14 {
        let protocol = match number {
            0 if v6 => ICMPV6,
            0 => ICMP,
            n if n % 2 == 0 => TCP,
            _ => UDP,
        };
        all.push(Sent {
            protocol,
            src: client_addr(v6, dice.number(HOSTS)),
            dst: server_addr(v6, dice.number(HOSTS)),
            sport: FIRST_SOURCE + u16::try_from(dice.number(SOURCE_PORTS)).unwrap(),
            dport: PORTS[usize::try_from(dice.number(3)).unwrap()],
        });
    }
    all
}

const KINDS: [&str; 9] = [
    "hash:ip",
    "hash:net",
    "hash:ip,port",
    "hash:net,port",
    "hash:ip,port,ip",
    "hash:ip,port,net",
    "hash:net,iface",
    "bitmap:ip",
    "bitmap:port",
];

/// Refuses packets from the client that a set match lets through.
fn refuse(net: &Net, v6: bool, backend: &str, condition: &str) -> [String; 3] {
    let tool = format!("{}tables-{backend}", if v6 { "ip6" } else { "ip" });
    let unreachable = if v6 { "icmp6" } else { "icmp" };
    let rules = [
        format!("-i c0 {condition} -p tcp -j REJECT --reject-with tcp-reset"),
        format!("-i c0 {condition} -j REJECT --reject-with {unreachable}-port-unreachable"),
    ];
    for rule in &rules {
        net.router.tool(&format!("{tool} -A FORWARD {rule}"));
    }
    let [first, second] = rules;
    [tool, first, second]
}

/// Compares rounds with random sets of these kinds.
fn rounds(seed: u64, kinds: &[&str], number: u64) {
    let mut net = Net::up();
    let mut dice = Dice::new(seed);
    let (mut wrong, mut arrived, mut sent) = (Vec::new(), 0, 0);
    for round in 0..number {
        for kind in kinds {
            let v6 = round % 2 == 1 && *kind != "bitmap:ip";
            let packets = packets(&mut dice, v6);
            let given = match dice.number(8) {
                0 => 1,
                _ => dims(kind),
            };
            let sides: Vec<bool> = (0..given).map(|_| dice.number(2) == 0).collect();
            let mut parts = Parts {
                dice: &mut dice,
                v6,
                packets: packets.clone(),
                sides: sides.clone(),
                like: None,
            };
            let mut text = String::new();
            if *kind == "list:set" {
                let mut names = String::new();
                for number in 0..3 {
                    let inner = parts.one(&KINDS);
                    // A list's sets may be of either family.
                    let other = parts.dice.number(5) == 0;
                    parts.v6 = v6 != other && inner != "bitmap:ip";
                    let name = format!("inner{number}");
                    text += &set(&mut parts, &name, inner);
                    let _ = writeln!(names, "add x {name}");
                }
                parts.v6 = v6;
                text = format!("{text}create x list:set\n{names}");
            } else {
                text = set(&mut parts, "x", kind);
            }
            net.router.feed("ipset -exist restore", &text);
            let not = parts.one(&["", "", "! "]);
            let words: Vec<&str> = sides
                .iter()
                .map(|source| if *source { "src" } else { "dst" })
                .collect();
            let sides = words.join(",");
            let flag = parts.one(&["", "", " --return-nomatch"]);
            let backend = parts.one(&["nft", "legacy"]);
            let condition = format!("-m set {not}--match-set x {sides}{flag}");
            let [tool, ..] = refuse(&net, v6, backend, &condition);
            let about = format!("{tool} {condition}\n{text}");
            let (differ, through) = net.compare(&packets, &about);
            wrong.extend(differ);
            (arrived, sent) = (arrived + through, sent + packets.len());
            net.router.tool(&format!("{tool} -F FORWARD"));
            net.router.tool("ipset destroy x");
            net.router.tool("ipset destroy");
        }
    }
    eprintln!("{sent} packets, {arrived} arrived");
    assert!(
        wrong.is_empty(),
        "{} of {sent} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    // Neither all nor none: else nothing was compared.
    assert!(
        arrived * 10 > sent && arrived * 10 < sent * 9,
        "{arrived} of {sent}"
    );
}

#[test]
fn addresses_and_networks() {
    rounds(1, &["hash:ip", "hash:net", "bitmap:ip"], 12);
}

#[test]
fn ports() {
    rounds(2, &["hash:ip,port", "hash:net,port", "bitmap:port"], 12);
}

#[test]
fn three_parts() {
    rounds(3, &["hash:ip,port,ip", "hash:ip,port,net"], 16);
}

#[test]
fn devices() {
    rounds(4, &["hash:net,iface"], 32);
}

#[test]
fn lists() {
    rounds(5, &["list:set"], 24);
}

fn rule_evidence(trace: &Trace) -> Vec<String> {
    let steps = trace.hops.iter().flat_map(|hop| &hop.steps);
    let sets = steps.flat_map(|step| &step.evidence);
    let words = sets.filter_map(|evidence| match evidence {
        Evidence::SetElement { set, text } => Some(format!("{set}: {text}")),
        _ => None,
    });
    words.collect()
}

fn udp(src: u64, dport: u16) -> Sent {
    Sent {
        protocol: UDP,
        src: client_addr(false, src),
        dst: server_addr(false, 0),
        sport: FIRST_SOURCE,
        dport,
    }
}

#[test]
fn link_layer_addresses() {
    let mut net = Net::up();
    let links = net.client.tool("ip -br link show eth0");
    let mac = links.split_whitespace().nth(2).unwrap().to_owned();
    let sets = format!(
        "create x bitmap:ip,mac range 10.9.0.0/24\nadd x 10.9.0.2,{mac}\n\
         add x 10.9.0.3,02:00:00:00:00:09\nadd x 10.9.0.4\n"
    );
    net.router.feed("ipset restore", &sets);
    net.router.tool(
        "iptables-nft -t raw -A PREROUTING -i c0 -m set --match-set x src,src -j MARK --set-mark 7",
    );
    refuse(&net, false, "nft", "-m mark --mark 7");
    for (host, arrives) in [(0, false), (1, true), (2, false), (3, true)] {
        let sent = udp(host, 53);
        let (wrong, arrived) = net.compare(&[sent], &sets);
        assert_eq!(wrong, Vec::<String>::new());
        assert_eq!(arrived == 1, arrives, "{sent:?}");
    }
}

#[test]
fn a_policy_engine_denies_by_sets() {
    // The rules that kube-router makes of a NetworkPolicy, with its names.
    let mut net = Net::up();
    let sets = "create KUBE-SRC-A hash:ip timeout 0\nadd KUBE-SRC-A 10.9.0.2 timeout 0\n\
                add KUBE-SRC-A 10.9.0.3 timeout 0\n\
                create KUBE-DST-B hash:ip timeout 0\nadd KUBE-DST-B 10.9.1.2 timeout 0\n";
    net.router.feed("ipset restore", sets);
    for rule in [
        "-N KUBE-NWPLCY-X",
        "-N KUBE-POD-FW-Y",
        "-A FORWARD -d 10.9.1.2 -j KUBE-POD-FW-Y",
        "-A KUBE-POD-FW-Y -j KUBE-NWPLCY-X",
        "-A KUBE-POD-FW-Y -m mark ! --mark 0x10000/0x10000 -j REJECT --reject-with icmp-port-unreachable",
        "-A KUBE-NWPLCY-X -p udp -m set --match-set KUBE-SRC-A src -m set --match-set KUBE-DST-B dst -m udp --dport 53 -j MARK --set-xmark 0x10000/0x10000",
        "-A KUBE-NWPLCY-X -m mark --mark 0x10000/0x10000 -j RETURN",
    ] {
        net.router.tool(&format!("iptables-legacy {rule}"));
    }
    let packets = [udp(0, 53), udp(0, 80), udp(1, 53), udp(2, 53)];
    let (wrong, arrived) = net.compare(&packets, sets);
    assert_eq!((wrong, arrived), (Vec::new(), 2));
    let (mut topology, from) = net.read();
    let denied = net.predict(&mut topology, from, &udp(2, 53));
    let said = "KUBE-SRC-A: 10.9.0.4 is no member (2 members), so that rule 1 of chain KUBE-NWPLCY-X does not match";
    assert_eq!(rule_evidence(&denied), [said]);
    let allowed = net.predict(&mut topology, from, &udp(0, 53));
    let said = rule_evidence(&allowed);
    let found = ["KUBE-SRC-A: 10.9.0.2", "KUBE-DST-B: 10.9.1.2"];
    assert_eq!(said, found.map(|text| format!("{text} timeout 0")));
}

#[test]
fn rules_that_change_sets() {
    // A knock on port 53 opens port 80 for its sender; and a rule forgets it again.
    let mut net = Net::up();
    net.router.feed(
        "ipset restore",
        "create seen hash:ip timeout 60\ncreate marks hash:ip skbinfo\nadd marks 10.9.0.5 skbmark 0x7\n",
    );
    for rule in [
        "-A FORWARD -i c0 -p udp --dport 53 -j SET --add-set seen src",
        "-A FORWARD -i c0 -p udp --dport 8080 -j SET --del-set seen src",
        "-A FORWARD -i c0 -m set ! --match-set seen src -j REJECT",
    ] {
        net.router.tool(&format!("iptables-nft {rule}"));
    }
    // What is sent changes the sets, so that each is predicted anew.
    for (sent, arrives) in [
        (udp(0, 80), false),
        (udp(0, 53), true),
        (udp(0, 80), true),
        (udp(1, 80), false),
        (udp(0, 8080), false),
        (udp(0, 80), false),
    ] {
        let (wrong, arrived) = net.compare(&[sent], "a knock");
        assert_eq!(wrong, Vec::<String>::new());
        assert_eq!(arrived == 1, arrives, "{sent:?}");
    }
    // A mark from a set is not read: what follows from it is unknown.
    net.router.tool("iptables-nft -F FORWARD");
    net.router
        .tool("iptables-nft -t mangle -A PREROUTING -i c0 -j SET --map-set marks src --map-mark");
    refuse(&net, false, "nft", "-m mark --mark 7");
    let (wrong, arrived) = net.compare(&[udp(0, 80)], "no mark");
    assert_eq!((wrong, arrived), (Vec::new(), 1));
    let (mut topology, from) = net.read();
    let trace = net.predict(&mut topology, from, &udp(3, 80));
    let unknown = matches!(trace.outcome(), Disposition::Inconclusive(_));
    assert!(unknown, "{:?}", trace.outcome());
    assert!(!net.arrives(&udp(3, 80), false));
}

#[test]
fn large_sets_are_read() {
    let mut net = Net::up();
    let mut sets = "create x hash:ip maxelem 200000\n".to_owned();
    for number in 0..100_000_u32 {
        let [_, a, b, c] = (number + 1).to_be_bytes();
        let _ = writeln!(sets, "add x 11.{a}.{b}.{c}");
    }
    sets.push_str("add x 10.9.0.3\n");
    net.router.feed("ipset restore", &sets);
    refuse(&net, false, "nft", "-m set --match-set x src");
    let (wrong, arrived) = net.compare(&[udp(0, 53), udp(1, 53)], "100,001 members");
    assert_eq!((wrong, arrived), (Vec::new(), 1));
}

#[test]
fn a_denied_policy_is_explained_and_kept_in_a_file() {
    let machine = Machine::up();
    let (client, server) = (
        Netns::add(&machine, "client"),
        Netns::add(&machine, "server"),
    );
    client.ip("link add eth0 type veth peer name eth0 netns server");
    for (ns, address) in [(&client, "10.0.1.2/24"), (&server, "10.0.1.3/24")] {
        ns.ip(&format!("addr add {address} dev eth0"));
        ns.ip("link set eth0 up");
    }
    let _listener = server.listen("--tcp 8080");
    server.tool("ipset create KUBE-SRC-A hash:net comment");
    server.tool("ipset add KUBE-SRC-A 10.0.2.0/24 comment team-b");
    for rule in [
        "-N KUBE-NWPLCY-X",
        "-A KUBE-NWPLCY-X -m set --match-set KUBE-SRC-A src -j ACCEPT",
        "-A KUBE-NWPLCY-X -j DROP",
        "-A INPUT -p tcp -j KUBE-NWPLCY-X",
    ] {
        server.tool(&format!("iptables-legacy {rule}"));
    }
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("net.json").display().to_string();
    let trace = |from: &str| {
        let line = format!("trace {from} netns/client 10.0.1.3:8080");
        machine.plugin(&words(&line))
    };
    machine
        .plugin(&words(&format!("snapshot save --local {file}")))
        .exits(0);
    for from in ["--local".to_owned(), format!("--snapshot {file}")] {
        trace(&from).exits(1).says(&[
            "NP0119",
            "KUBE-NWPLCY-X (kube-router: a network policy), rule 2: -j DROP",
            "set KUBE-SRC-A: 10.0.1.2 is no member (1 member), so that rule 1 of chain KUBE-NWPLCY-X does not match",
        ]);
    }
    let dump = format!("dump netfilter netns/server --snapshot {file}");
    machine.plugin(&words(&dump)).exits(0).says(&[
        "ipset KUBE-SRC-A hash:net family inet",
        "  10.0.2.0/24 comment \"team-b\"",
    ]);
    assert!(!client.tcp("10.0.1.3:8080").connected());
    server.tool("ipset add KUBE-SRC-A 10.0.1.0/24");
    trace("--local").exits(0);
    assert!(client.tcp("10.0.1.3:8080").connected());
}
