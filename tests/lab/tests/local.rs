//! `--local` and snapshot files on namespaces made by hand, with nothing of Kubernetes: what the
//! programs say agrees with what sockets in those namespaces see. Needs root.
#![allow(missing_docs, reason = "tests")]

mod programs;

use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use netpath_lab::proxy::accounting::{self, Quota};
use netpath_lab::{Outcome, exchange};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, bind, listen,
    socket,
};
use programs::{Machine, Netns, Said, bridged, program, run, steady, until, words};
use serde_json::Value;

/// One echo request; whether it was answered by who was asked.
fn echo(from: &Netns, to: Ipv4Addr) -> bool {
    let wait = Duration::from_millis(700);
    let asked = from.enter().run(|| exchange::echo(to.into(), wait));
    asked.expect("an echo request can be tried").connected()
}

/// Two namespaces joined by a veth pair, 10.0.1.2 and 10.0.1.3.
fn pair() -> (Netns, Netns) {
    let machine = Machine::up();
    let (net0, net1) = (Netns::add(&machine, "net0"), Netns::add(&machine, "net1"));
    net0.ip(&format!(
        "link add veth0 type veth peer name veth1 netns {}",
        net1.name
    ));
    for (ns, device, address) in [
        (&net0, "veth0", "10.0.1.2/24"),
        (&net1, "veth1", "10.0.1.3/24"),
    ] {
        ns.ip(&format!("addr add {address} dev {device}"));
        ns.ip(&format!("link set {device} up"));
    }
    (net0, net1)
}

fn mac(ns: &Netns) -> String {
    let links: Value = serde_json::from_str(&ns.ip("-j link show eth0")).unwrap();
    links[0]["address"].as_str().unwrap().to_owned()
}

fn trace(from: &Netns, to: &str, more: &str) -> Said {
    let mut line = words("trace --local");
    line.extend([from.end(), to.to_owned()]);
    line.extend(words(more));
    from.machine.plugin(&line)
}

fn verdict(said: &Said) -> String {
    said.json()["verdict"].as_str().unwrap().to_owned()
}

/// The verdict that what a socket saw allows.
fn expected(outcome: &Outcome) -> (&'static str, i32) {
    match outcome {
        Outcome::Connected { .. } => ("delivered", 0),
        Outcome::Refused | Outcome::Unreachable(_) => ("rejected", 1),
        Outcome::TimedOut => ("dropped", 1),
    }
}

/// Traces by echo, TCP and UDP say what the kernel does. Gives the verdicts.
#[track_caller]
fn agrees(from: &Netns, to: &str, port: u16) -> Vec<&'static str> {
    let at = format!("{to}:{port}");
    let place = std::panic::Location::caller().line();
    // Silence takes seconds: all are asked at once.
    // A device that has just come up may lose its first packet (linkwatch_event(), once a second): echoes
    // wait for that, TCP repeats itself, and the one datagram comes behind the echoes.
    let (reached, tcp, udp) = thread::scope(|scope| {
        let datagrams = scope.spawn(|| {
            let reached = (0..4).any(|_| echo(from, to.parse().unwrap()));
            (reached, from.udp(&at))
        });
        let tcp = from.tcp(&at);
        let (reached, udp) = datagrams.join().unwrap();
        (reached, tcp, udp)
    });
    let said = trace(from, to, "-o json");
    assert_eq!(
        verdict(&said) == "delivered",
        reached,
        "line {place}: {}",
        said.out
    );
    said.exits(i32::from(!reached));
    let mut verdicts = Vec::new();
    for (protocol, outcome) in [("tcp", tcp), ("udp", udp)] {
        let said = trace(from, &at, &format!("--protocol {protocol} -o json"));
        let (wanted, code) = expected(&outcome);
        let text = &said.out;
        // A datagram socket is told of closed ports only: the errors that are not fatal pass it by
        // (`icmp_err_convert`, `__udp4_lib_err()`), though its kernel sees them.
        let end = &said.json()["branches"][0]["disposition"]["reason"];
        if protocol == "udp" && wanted == "dropped" && end == "host unreachable" {
            said.exits(1);
            verdicts.push("rejected");
            continue;
        }
        assert_eq!(
            verdict(&said),
            wanted,
            "line {place}: {protocol} {outcome:?} {text}"
        );
        said.exits(code);
        verdicts.push(wanted);
    }
    verdicts
}

#[test]
fn a_veth_pair_with_and_without_a_listener() {
    let (net0, net1) = pair();
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), ["rejected", "rejected"]);
    let listener = net1.listen("--tcp 8080 --udp 8080");
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), ["delivered", "delivered"]);
    trace(&net0, "10.0.1.3", "")
        .exits(0)
        .says(&["✓ delivered", "veth0", "veth1", "10.0.1.0/24"]);
    trace(&net0, "10.0.1.3:8080", "-o wide").exits(0);
    // An end by its address, by a process, and the other way round.
    let pid = format!("pid/{}", listener.inner_pid());
    let machine = Arc::clone(&net0.machine);
    machine
        .plugin(&["trace", "--local", &pid, "10.0.1.2"])
        .exits(0);
    machine
        .plugin(&["trace", "--local", &net0.end(), &pid])
        .exits(0);
    machine
        .plugin(&["trace", "--local", &net0.end(), &net1.end()])
        .exits(0);
    machine
        .plugin(&["trace", "--local", "10.0.1.2", "10.0.1.3"])
        .exits(0);
    drop(listener);
    let local = net1.listen("--tcp 8080 --udp 8080 --localhost");
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), ["rejected", "rejected"]);
    assert_eq!(agrees(&net1, "127.0.0.1", 8080), ["delivered", "delivered"]);
    drop(local);
    trace(&net0, "10.0.1.3:8080", "")
        .exits(1)
        .says(&["NP0121", "nothing listens"]);
}

#[test]
fn faults_between_two_namespaces() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080 --udp 8080");
    // No route, and a route to nowhere.
    assert_eq!(agrees(&net0, "10.0.9.9", 8080), ["rejected", "rejected"]);
    net0.ip("route add blackhole 10.0.8.0/24");
    net0.ip("route add prohibit 10.0.7.0/24");
    agrees(&net0, "10.0.7.1", 8080);
    // A route for the right address by the wrong device.
    net0.ip("link add wrong0 type veth peer name wrong1");
    net0.ip("link set wrong0 up");
    net0.ip("link set wrong1 up");
    net0.ip("route add 10.0.1.3/32 dev wrong0");
    agrees(&net0, "10.0.1.3", 8080);
    trace(&net0, "10.0.1.3", "")
        .exits(1)
        .says(&["10.0.1.3 dev wrong0"]);
    net0.ip("route del 10.0.1.3/32 dev wrong0");
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), ["delivered", "delivered"]);
    // Nobody has the address.
    assert_eq!(agrees(&net0, "10.0.1.9", 8080), ["rejected", "rejected"]);
    // A filter that drops, and one that rejects.
    net1.tool("nft add table ip f");
    net1.tool("nft add chain ip f input { type filter hook input priority 0 ; }");
    net1.tool("nft add rule ip f input meta l4proto { tcp, udp } th dport 8080 drop");
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), ["dropped", "dropped"]);
    net1.tool("nft flush chain ip f input");
    net1.tool("nft add rule ip f input meta l4proto { tcp, udp } th dport 8080 reject");
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), ["rejected", "rejected"]);
    net1.tool("nft delete table ip f");
    // The way back is missing.
    net1.ip("addr flush dev veth1");
    net1.ip("addr add 10.0.1.3/32 dev veth1");
    agrees(&net0, "10.0.1.3", 8080);
    trace(&net0, "10.0.1.3:8080", "")
        .exits(1)
        .says(&["reply ✗"]);
    net1.ip("addr add 10.0.1.3/24 dev veth1");
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), ["delivered", "delivered"]);
    // The other end is down: no carrier here.
    net1.ip("link set veth1 down");
    agrees(&net0, "10.0.1.3", 8080);
    trace(&net0, "10.0.1.3", "").exits(1).says(&["NP"]);
    // This end is down.
    net0.ip("link set veth0 down");
    agrees(&net0, "10.0.1.3", 8080);
}

#[test]
fn a_bridge_between_three_namespaces() {
    let (hosts, bridge) = bridged::<3>();
    let _listener = hosts[1].listen("--tcp 8080 --udp 8080");
    assert_eq!(
        agrees(&hosts[0], "10.0.1.3", 8080),
        ["delivered", "delivered"]
    );
    assert_eq!(
        agrees(&hosts[2], "10.0.1.3", 8080),
        ["delivered", "delivered"]
    );
    assert_eq!(
        agrees(&hosts[0], "10.0.1.4", 8080),
        ["rejected", "rejected"]
    );
    let text = trace(&hosts[0], "10.0.1.3", "").exits(0);
    text.says(&["br0", "port0", "port1", "eth0", &hosts[1].name]);
    // Ports that must not talk to each other.
    bridge.tool("bridge link set dev port0 isolated on");
    bridge.tool("bridge link set dev port1 isolated on");
    agrees(&hosts[0], "10.0.1.3", 8080);
    assert_eq!(
        agrees(&hosts[2], "10.0.1.3", 8080),
        ["delivered", "delivered"]
    );
    bridge.tool("bridge link set dev port0 isolated off");
    bridge.tool("bridge link set dev port1 isolated off");
    assert_eq!(
        agrees(&hosts[0], "10.0.1.3", 8080),
        ["delivered", "delivered"]
    );
    // The port's own end is down.
    bridge.ip("link set port1 down");
    agrees(&hosts[0], "10.0.1.3", 8080);
    bridge.ip("link set port1 up");
    assert_eq!(
        agrees(&hosts[0], "10.0.1.3", 8080),
        ["delivered", "delivered"]
    );
    // The bridge itself is down.
    bridge.ip("link set br0 down");
    agrees(&hosts[0], "10.0.1.3", 8080);
}

/// What was asked for is not what answers: the first line says so. A policy rule that refuses and a
/// device that is down are named where they are, with the command that mends them, which works.
#[test]
fn first_lines_are_true_and_mends_work() {
    let (net0, net1) = pair();
    let _own = net0.listen("--tcp 15001");
    let dir = tempfile::tempdir().unwrap();
    let rules = dir.path().join("rules");
    let text = "table ip sidecar {\n chain out {\n type nat hook output priority -100\n meta l4proto tcp redirect to :15001\n }\n}\n";
    std::fs::write(&rules, text).unwrap();
    net0.tool(&format!("nft -f {}", rules.display()));
    let said = trace(&net0, "10.0.1.3:8080", "").exits(0);
    let first = said.out.lines().next().unwrap();
    assert!(
        first.contains("✓ delivered, but to 127.0.0.1:15001")
            && first.ends_with("by translation on the way"),
        "{first}"
    );
    net0.tool("nft flush ruleset");
    let _listener = net1.listen("--tcp 8080");
    let mend = |code: &str, part: &str| {
        let answer = trace(&net0, "10.0.1.3:8080", "-o json").exits(1).json();
        let found = answer["findings"][0].clone();
        assert_eq!(found["code"], code, "{found}");
        let title = found["title"].as_str().unwrap();
        assert!(title.contains(part), "{title}");
        let mend = found["mend"].as_str().unwrap();
        let (_, command) = mend.split_once(": ").unwrap();
        let command = command.split(" (").next().unwrap().to_owned();
        let argv = words(&command);
        let mut typed = std::process::Command::new(&argv[0]);
        typed.args(&argv[1..]);
        net0.machine.output(typed).exits(0);
        trace(&net0, "10.0.1.3:8080", "").exits(0);
    };
    net0.ip("rule add pref 100 to 10.0.1.0/24 prohibit");
    mend("NP0124", "ip rule 100: from all to 10.0.1.0/24 prohibit");
    net1.ip("link set veth1 down");
    mend("NP0125", "veth1");
}

/// Two namespaces have the address: the neighbour entry that there is decides; without one it is
/// open who answers, and the answer says so.
#[test]
fn a_duplicate_address() {
    let (hosts, _bridge) = bridged::<3>();
    let _listener = hosts[1].listen("--tcp 8080 --udp 8080");
    hosts[2].ip("addr del 10.0.1.4/24 dev eth0");
    hosts[2].ip("addr add 10.0.1.3/24 dev eth0");
    hosts[0].ip(&format!(
        "neigh replace 10.0.1.3 lladdr {} dev eth0",
        mac(&hosts[2])
    ));
    assert_eq!(
        agrees(&hosts[0], "10.0.1.3", 8080),
        ["rejected", "rejected"]
    );
    trace(&hosts[0], "10.0.1.3:8080", "")
        .exits(1)
        .says(&[&hosts[2].name]);
    hosts[0].ip(&format!(
        "neigh replace 10.0.1.3 lladdr {} dev eth0",
        mac(&hosts[1])
    ));
    assert_eq!(
        agrees(&hosts[0], "10.0.1.3", 8080),
        ["delivered", "delivered"]
    );
    hosts[0].ip("neigh flush all");
    hosts[0].ip("neigh del 10.0.1.3 dev eth0");
    let said = trace(&hosts[0], "10.0.1.3:8080", "-o json").exits(1);
    assert_eq!(verdict(&said), "mixed");
    let answer = said.json();
    let findings = answer["findings"].as_array().unwrap();
    let twice = findings.iter().find(|found| found["code"] == "NP0131");
    let twice = twice.expect("both are named");
    for host in &hosts[1..] {
        let title = twice["title"].as_str().unwrap();
        assert!(title.contains(&host.name), "{title}");
    }
    let branches = answer["branches"].as_array().unwrap();
    let ends: Vec<_> = branches
        .iter()
        .map(|branch| {
            let disposition = &branch["disposition"];
            let end = disposition["netns"].as_str().unwrap().to_owned();
            (
                branch["probability"].as_f64().unwrap(),
                end,
                branch["verdict"].clone(),
            )
        })
        .collect();
    let wanted = |host: &Netns| format!("netns {}", host.name);
    assert!(
        ends.contains(&(0.5, wanted(&hosts[1]), "delivered".into())),
        "{ends:?}"
    );
    assert!(
        ends.contains(&(0.5, wanted(&hosts[2]), "rejected".into())),
        "{ends:?}"
    );
    trace(&hosts[0], "10.0.1.3:8080", "")
        .exits(1)
        .says(&["duplicate address"]);
}

/// Rules may take the question for a neighbour, or its answer, at either end or at a bridge between.
#[test]
fn rules_that_take_neighbour_questions() {
    let (hosts, bridge) = bridged::<3>();
    for (host, at) in [(&hosts[0], "fd01::2/64"), (&hosts[1], "fd01::3/64")] {
        host.ip(&format!("addr add {at} dev eth0 nodad"));
    }
    let _listener = hosts[1].listen("--tcp 8080 --udp 8080");
    let nft = |ns: &Netns, line: &str| ns.tool(&format!("nft {line}"));
    // Who has no answer keeps asking, and what is learned meanwhile would be the old state's.
    let forget = || {
        for host in &hosts {
            host.ip("neigh flush all");
        }
        bridge.ip("neigh flush all");
    };
    let check = |to: &str, delivered: bool| {
        forget();
        let outcome = hosts[0].tcp(to);
        let said = trace(&hosts[0], to, "-o json");
        forget();
        let again = trace(&hosts[0], to, "");
        let works = matches!(outcome, Outcome::Connected { .. });
        assert_eq!(works, delivered, "{to}: {outcome:?}");
        said.exits(i32::from(!works));
        again.exits(i32::from(!works))
    };
    check("10.0.1.3:8080", true);
    check("[fd01::3]:8080", true);
    for (place, family, hook) in [
        (&hosts[1], "arp", "input"),
        (&hosts[1], "arp", "output"),
        (&hosts[0], "arp", "input"),
        (&hosts[0], "arp", "output"),
        (&bridge, "bridge", "forward"),
        (&bridge, "bridge", "prerouting"),
    ] {
        nft(place, &format!("add table {family} f"));
        nft(
            place,
            &format!("add chain {family} f c {{ type filter hook {hook} priority 0 ; }}"),
        );
        let rule = match family {
            "arp" => "arp operation { request, reply } arp daddr ip 10.0.1.0/24 drop",
            _ => "ether type arp arp operation reply drop",
        };
        nft(place, &format!("add rule {family} f c {rule}"));
        check("10.0.1.3:8080", false).says(&["nobody answers for 10.0.1.3", "NP0126", "ARP"]);
        check("[fd01::3]:8080", true);
        nft(place, &format!("delete table {family} f"));
    }
    for (place, hook) in [
        (&hosts[1], "input"),
        (&hosts[0], "input"),
        (&hosts[1], "output"),
    ] {
        nft(place, "add table ip6 f");
        nft(
            place,
            &format!("add chain ip6 f c {{ type filter hook {hook} priority 0 ; policy drop ; }}"),
        );
        nft(place, "add rule ip6 f c meta l4proto tcp accept");
        check("[fd01::3]:8080", false).says(&["nobody answers for fd01::3", "neighbour discovery"]);
        check("10.0.1.3:8080", true);
        nft(
            place,
            "add rule ip6 f c icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } ip6 hoplimit 255 accept",
        );
        check("[fd01::3]:8080", true);
        nft(place, "delete table ip6 f");
    }
    // Bridged packets are shown to the rules of IP.
    bridge.ip("link set br0 type bridge nf_call_ip6tables 1");
    nft(&bridge, "add table ip6 f");
    nft(
        &bridge,
        "add chain ip6 f c { type filter hook forward priority 0 ; policy drop ; }",
    );
    nft(&bridge, "add rule ip6 f c meta l4proto tcp accept");
    check("[fd01::3]:8080", false).says(&["nobody answers for fd01::3"]);
    nft(&bridge, "add rule ip6 f c icmpv6 type 135-136 accept");
    check("[fd01::3]:8080", true);
}

/// The first packet and its answer pass, a later one does not.
#[test]
fn rules_that_take_later_packets() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080 --udp 8080");
    let nft = |ns: &Netns, line: &str| ns.tool(&format!("nft {line}"));
    let stalls = |rule: &str, chain: &str, says: &[&str]| {
        nft(&net1, "add table ip f");
        nft(
            &net1,
            &format!("add chain ip f c {{ type filter hook {chain} priority 0 ; }}"),
        );
        nft(&net1, &format!("add rule ip f c {rule}"));
        let outcome = net0.tcp("10.0.1.3:8080");
        assert!(
            !matches!(outcome, Outcome::Connected { .. }),
            "{rule}: {outcome:?}"
        );
        trace(&net0, "10.0.1.3:8080", "").exits(1).says(says);
        let said = trace(&net0, "10.0.1.3:8080", "-o json");
        assert_eq!(verdict(&said), "dropped", "{}", said.out);
        nft(&net1, "delete table ip f");
    };
    stalls(
        "tcp dport 8080 tcp flags & (syn|ack) == ack drop",
        "input",
        &["once connected, the client's next packet", "NP0126"],
    );
    stalls(
        "tcp dport 8080 ct state established drop",
        "input",
        &["once connected, the client's next packet"],
    );
    stalls(
        "tcp sport 8080 tcp flags & psh == psh drop",
        "output",
        &["once connected, the server's next packet"],
    );
    trace(&net0, "10.0.1.3:8080", "").exits(0);
}

/// What rules ask is known as far as the kernel's own settings tell it.
#[test]
fn rules_on_ports_that_the_kernel_chooses_and_on_options() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080 --udp 8080");
    let asks = |rules: &[&str], code: i32| {
        net1.tool("nft add table ip f");
        net1.tool("nft add chain ip f c { type filter hook input priority 0 ; policy drop ; }");
        for rule in rules {
            net1.tool(&format!("nft add rule ip f c {rule}"));
        }
        let outcome = net0.tcp("10.0.1.3:8080");
        let works = matches!(outcome, Outcome::Connected { .. });
        let said = trace(&net0, "10.0.1.3:8080", "").exits(code);
        assert!(code == 3 || works == (code == 0), "{rules:?}: {outcome:?}");
        net1.tool("nft delete table ip f");
        said
    };
    // The range of the asking side decides (net.ipv4.ip_local_port_range).
    asks(&["tcp sport 32768-60999 accept"], 0);
    asks(&["tcp sport 1024-32767 accept"], 1);
    asks(&["tcp sport 40000-50000 accept"], 3).says(&["any free one"]);
    let range = || {
        Ok(std::fs::write(
            "/proc/sys/net/ipv4/ip_local_port_range",
            "41000 42000",
        )?)
    };
    net0.enter().run(range).expect("the range is set");
    asks(&["tcp sport 40000-50000 accept"], 0);
    // Options are set and read without a verdict.
    asks(
        &[
            "tcp flags syn tcp option maxseg size set 1200",
            "socket transparent 1 meta mark set 1",
            "accept",
        ],
        0,
    );
    asks(&["tcp option maxseg size 1-65535 drop", "accept"], 3)
        .says(&["an extension header or option is not known"]);
}

/// A listener that accepts nothing: once its backlog is full the kernel drops what comes.
#[test]
fn a_listener_whose_backlog_is_full() {
    let (net0, net1) = pair();
    let listener = net1.enter().run(|| {
        let stream = SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Stream, stream, None)?;
        bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, 8080))?;
        listen(&socket, Backlog::new(1)?)?;
        Ok(socket)
    });
    let listener = listener.expect("a listener");
    let connect = || {
        let connected = net0.enter().run(|| {
            let at = "10.0.1.3:8080".parse()?;
            Ok(std::net::TcpStream::connect_timeout(
                &at,
                Duration::from_secs(4),
            )?)
        });
        connected.ok()
    };
    let first = connect().expect("the backlog has room");
    trace(&net0, "10.0.1.3:8080", "").exits(0);
    let second = connect().expect("the backlog has room for one more");
    assert!(connect().is_none(), "the backlog is full");
    trace(&net0, "10.0.1.3:8080", "").exits(1).says(&[
        "LISTEN_OVERFLOW",
        "NP0136",
        "2 connections wait",
    ]);
    drop((first, second, listener));
}

/// Set-ups in which the kernel does what one would not expect: each is asked, and predicted.
#[test]
fn what_one_would_not_expect() {
    let (hosts, bridge) = bridged::<3>();
    let _listener = hosts[1].listen("--tcp 8080 --udp 8080");
    let sysctl = |ns: &Netns, name: &str, value: &str| {
        let path = format!("/proc/sys/net/{name}");
        let set = ns.enter().run(|| Ok(std::fs::write(&path, value)?));
        set.unwrap_or_else(|error| panic!("{path}: {error:#}"));
    };
    let agrees = |to: &str, works: bool, says: &[&str]| {
        for host in &hosts {
            host.ip("neigh flush all");
        }
        // An entry that failed says nothing of the next question.
        hosts[0].ip("link set eth0 down");
        hosts[0].ip("link set eth0 up");
        hosts[0].ip("route replace default via 10.0.1.1");
        hosts[0].ip("route replace 10.77.0.3/32 dev eth0");
        let outcome = hosts[0].tcp(to);
        let said = trace(&hosts[0], to, "");
        assert_eq!(outcome.connected(), works, "{to} {says:?}: {outcome:?}");
        said.exits(i32::from(!works)).says(says);
    };
    bridge.ip("addr add 10.0.1.1/24 dev br0");
    // A translated destination on the same bridge needs forwarding, though the frame never leaves the bridge.
    bridge.ip("link set br0 type bridge nf_call_iptables 1");
    bridge.tool("nft add table ip n");
    bridge.tool("nft add chain ip n c { type nat hook prerouting priority dstnat ; }");
    bridge.tool("nft add chain ip n s { type nat hook postrouting priority srcnat ; }");
    bridge.tool("nft add rule ip n c ip daddr 10.9.9.9 dnat to 10.0.1.3");
    bridge.tool("nft add rule ip n s ct status dnat masquerade");
    sysctl(&bridge, "ipv4/ip_forward", "1");
    agrees(
        "10.9.9.9:8080",
        true,
        &["translated to an address on the same bridge"],
    );
    sysctl(&bridge, "ipv4/ip_forward", "0");
    agrees("10.9.9.9:8080", false, &["FORWARDING_OFF", "NP0104"]);
    bridge.tool("nft delete table ip n");
    // Who is asked looks up the way back first.
    sysctl(&hosts[1], "ipv4/conf/eth0/rp_filter", "1");
    hosts[1].ip("addr flush dev eth0");
    hosts[1].ip("addr add 10.0.1.3/32 dev eth0");
    agrees("10.0.1.3:8080", false, &["nobody answers for 10.0.1.3"]);
    hosts[1].ip("addr flush dev eth0");
    hosts[1].ip("addr add 10.0.1.3/24 dev eth0");
    agrees("10.0.1.3:8080", true, &[]);
    // Only for askers of the address's own subnet; and an asker that shows another address.
    sysctl(&hosts[1], "ipv4/conf/eth0/arp_ignore", "2");
    agrees("10.0.1.3:8080", true, &[]);
    hosts[1].ip("addr add 10.77.0.3/24 dev eth0");
    agrees("10.77.0.3:8080", false, &["nobody answers for 10.77.0.3"]);
    sysctl(&hosts[1], "ipv4/conf/eth0/arp_ignore", "0");
    // A rule adds to a set that the next one looks into.
    hosts[1].tool("nft add table ip f");
    hosts[1].tool("nft add set ip f s { type ipv4_addr ; flags dynamic,timeout ; timeout 1h ; }");
    hosts[1].tool("nft add chain ip f c { type filter hook input priority 0 ; }");
    hosts[1].tool("nft add rule ip f c tcp dport 8080 add @s { ip saddr }");
    hosts[1].tool("nft add rule ip f c tcp dport 8080 ip saddr @s drop");
    agrees("10.0.1.3:8080", false, &["NP0126"]);
    hosts[1].tool("nft delete table ip f");
    // A queue with room for less than a packet.
    hosts[1].tool("tc qdisc add dev eth0 root bfifo limit 10");
    hosts[0].ip("neigh replace 10.0.1.3 lladdr 02:00:00:00:00:03 dev eth0");
    let outcome = hosts[0].tcp("10.0.1.3:8080");
    assert!(!outcome.connected(), "{outcome:?}");
    trace(&hosts[0], "10.0.1.3:8080", "").exits(1);
    hosts[1].tool("tc qdisc del dev eth0 root");
    // A policy rule that goes nowhere is passed over; TCP connects to no group.
    hosts[0].ip("rule add pref 50 goto 40000");
    agrees("10.0.1.3:8080", true, &[]);
    agrees("224.0.0.1:8080", false, &["network unreachable"]);
    agrees("10.0.1.255:8080", false, &["network unreachable"]);
}

/// Rules whose answer nobody can know beforehand are said to be so.
#[test]
fn what_can_not_be_known_is_not_guessed() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080 --udp 8080");
    for (kind, hook, rule) in [
        ("filter", "input", "tcp dport 8080 meta cpu 0 drop"),
        (
            "filter",
            "input",
            "tcp dport 8080 ct state established meta length 60 drop",
        ),
        (
            "filter",
            "input",
            "tcp dport 8080 quota over 100 bytes drop",
        ),
        (
            "nat",
            "prerouting",
            "tcp dport 8000 dnat to 10.0.1.3:8080-8081 random",
        ),
    ] {
        net1.tool("nft add table ip f");
        net1.tool(&format!(
            "nft add chain ip f c {{ type {kind} hook {hook} priority 0 ; }}"
        ));
        net1.tool(&format!("nft add rule ip f c {rule}"));
        let port = if kind == "nat" { 8000 } else { 8080 };
        trace(&net0, &format!("10.0.1.3:{port}"), "").exits(3);
        net1.tool("nft delete table ip f");
    }
}

/// Rules behind which everything is dropped, asked for and tried one after the other: what is foreseen of each
/// connection, `?` where it can't be, is what becomes of it.
fn in_turn(net0: &Netns, what: &str, foreseen: &str) {
    for (number, letter) in foreseen.chars().enumerate() {
        let said = trace(net0, "10.0.1.3:8080", "");
        let connected = matches!(net0.tcp("10.0.1.3:8080"), Outcome::Connected { .. });
        let code = match letter {
            '?' => 3,
            _ => i32::from(!connected),
        };
        if letter != '?' {
            assert_eq!(connected, letter == 'y', "{what}: connection {number}");
        }
        assert_eq!(
            said.code,
            Some(code),
            "{what}: connection {number}: {}",
            said.out
        );
    }
}

/// Rates, quotas and numbers of connections, as far as the kernel tells what is left of them.
#[test]
fn rates_are_asked_for_what_is_left() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080");
    for (number, iptables) in ["iptables-nft", "iptables-legacy"].into_iter().enumerate() {
        let hashed = format!("-m hashlimit --hashlimit-name web{number} --hashlimit-mode srcip");
        for (rule, foreseen) in [
            ("-m limit --limit 1/min --limit-burst 2 -j ACCEPT", "yy?"),
            ("-m limit --limit 1/min --limit-burst 1 -j LOG", "n"),
            (
                &format!("{hashed} --hashlimit-upto 1/min --hashlimit-burst 2 -j ACCEPT"),
                "yyn",
            ),
            (
                &format!("{hashed} --hashlimit-above 1/min --hashlimit-burst 1 -j DROP"),
                "n",
            ),
            ("-m quota --quota 100000000 -j ACCEPT", "yy"),
            ("-m quota --quota 60 -j ACCEPT", "?"),
            ("-m connlimit --connlimit-upto 1000 -j ACCEPT", "y"),
            ("-m connlimit --connlimit-above 0 -j ACCEPT", "y"),
            ("-m connlimit --connlimit-above 1000 -j ACCEPT", "n"),
            (
                "-m time --datestart 2020-01-01 --datestop 2035-01-01 -j ACCEPT",
                "y",
            ),
            ("-m time --datestop 2020-01-01 -j ACCEPT", "n"),
            ("-m time --kerneltz --datestart 2020-01-01 -j ACCEPT", "y"),
            ("-m devgroup --src-group 0x7 -j ACCEPT", "y"),
            ("-m devgroup --src-group 0x8 -j ACCEPT", "n"),
            ("-m realm --realm 0 -j ACCEPT", "y"),
            ("-m length --length 0:39 -j DROP", "n"),
        ] {
            net1.ip("link set veth1 group 7");
            let add = |words: &str| net1.tool(&format!("{iptables} -A INPUT {words}"));
            add("-m conntrack --ctstate ESTABLISHED -j ACCEPT");
            add(&format!("-p tcp --dport 8080 {rule}"));
            add("-j DROP");
            in_turn(&net0, &format!("{iptables} {rule}"), foreseen);
            net1.tool(&format!("{iptables} -F"));
        }
    }
    for (rule, foreseen) in [
        ("limit rate 1/minute burst 2 packets counter accept", "yy?"),
        ("limit rate 1/minute burst 2 packets accept", "?"),
        (
            "counter limit rate over 1/minute burst 2 packets drop; accept",
            "yy?",
        ),
        (
            "update @s { ip saddr limit rate 1/minute burst 1 packets } accept",
            "y?",
        ),
        ("add @c { ip saddr ct count over 1000 } drop; accept", "y"),
        ("quota 100 mbytes accept", "yy"),
        ("quota over 100 mbytes accept", "n"),
        ("quota name left accept", "yy"),
        ("quota name spent drop; accept", "n"),
        ("limit name often accept", "?"),
        ("meta time > \"2020-01-01\" accept", "y"),
        ("meta time < \"2020-01-01\" accept", "n"),
        (
            "meta hour < \"12:00\" accept; meta hour >= \"12:00\" accept",
            "y",
        ),
        ("meta day { 0, 1, 2, 3, 4, 5, 6 } accept", "y"),
        ("iifgroup 7 accept", "y"),
        ("iifgroup 8 accept", "n"),
        ("meta iiftype ether accept", "y"),
        ("meta iiftype loopback accept", "n"),
        ("rt classid 0 accept", "y"),
    ] {
        net1.tool("nft add table ip f");
        net1.tool("nft add set ip f s { type ipv4_addr ; flags dynamic ; timeout 1m ; }");
        net1.tool("nft add set ip f c { type ipv4_addr ; flags dynamic ; }");
        net1.tool("nft add quota ip f left { 100 mbytes ; }");
        net1.tool("nft add quota ip f spent { over 10 bytes ; }");
        net1.tool("nft add limit ip f often { rate 400/minute ; }");
        net1.tool("nft add chain ip f in { type filter hook input priority 0 ; policy drop ; }");
        net1.tool("nft add rule ip f in ct state established accept");
        for rule in rule.split("; ") {
            net1.tool(&format!("nft add rule ip f in tcp dport 8080 {rule}"));
        }
        in_turn(&net0, rule, foreseen);
        net1.tool("nft delete table ip f");
    }
    // Counters with names, which match above their quota; the first packet counts too.
    for (quota, foreseen) in [
        (None, "y"),
        (Some(Quota::Packets(0)), "yy"),
        (Some(Quota::Packets(2)), "?"),
        (Some(Quota::Packets(1_000_000)), "nn"),
        (Some(Quota::Bytes(1 << 40)), "n"),
    ] {
        let name = format!("{quota:?}").replace(['(', ')'], "");
        let made = net1.enter().run(|| accounting::ensure(&name, quota));
        assert!(made.expect("a counter is made"), "the kernel has none");
        let add = |words: &str| net1.tool(&format!("iptables-nft -A INPUT {words}"));
        add("-m conntrack --ctstate ESTABLISHED -j ACCEPT");
        add(&format!(
            "-p tcp --dport 8080 -m nfacct --nfacct-name {name} -j ACCEPT"
        ));
        add("-j DROP");
        in_turn(&net0, &name, foreseen);
        net1.tool("iptables-nft -F");
    }
    // A route that gives its packets a realm: which one this packet has is not followed.
    net1.ip("route add 10.9.0.0/24 via 10.0.1.2 realms 5");
    net1.tool("iptables-legacy -A INPUT -p tcp --dport 8080 -m realm --realm 5 -j DROP");
    trace(&net0, "10.0.1.3:8080", "").exits(3);
}

/// Header bytes that rules write: those that stay the packet it was, and those that make another.
#[test]
fn header_bytes_that_rules_write() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080");
    for (rule, code, works) in [
        ("ip dscp set 8", 0, true),
        ("ip id set 7", 0, true),
        ("ip protocol set 17", 3, false),
        ("tcp sequence set 1", 3, false),
    ] {
        net0.tool("nft add table ip f");
        net0.tool("nft add chain ip f c { type filter hook output priority 0 ; }");
        net0.tool(&format!(
            "nft add rule ip f c tcp dport 8080 tcp flags syn {rule}"
        ));
        let said = trace(&net0, "10.0.1.3:8080", "");
        let connected = matches!(net0.tcp("10.0.1.3:8080"), Outcome::Connected { .. });
        assert_eq!(
            (said.code, connected),
            (Some(code), works),
            "{rule}: {}",
            said.out
        );
        net0.tool("nft delete table ip f");
    }
}

/// Lists of recent addresses decide by what they hold: knocking at one port opens another.
#[test]
fn recent_addresses_are_looked_up() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080 --udp 8080");
    for iptables in ["iptables-nft", "iptables-legacy"] {
        let rule = |words: &str| net1.tool(&format!("{iptables} -A INPUT -p tcp {words}"));
        rule("--dport 8081 -m recent --name door --set -j REJECT");
        rule("--dport 8080 -m recent --name door --rcheck --seconds 600 --hitcount 2 -j ACCEPT");
        rule("--dport 8080 -j DROP");
        let drops = || {
            let outcome = net0.tcp("10.0.1.3:8080");
            assert!(matches!(outcome, Outcome::TimedOut), "{outcome:?}");
            trace(&net0, "10.0.1.3:8080", "").exits(1).says(&["NP0126"]);
        };
        drops();
        net0.tcp("10.0.1.3:8081");
        drops();
        net0.tcp("10.0.1.3:8081");
        let outcome = net0.tcp("10.0.1.3:8080");
        assert!(matches!(outcome, Outcome::Connected { .. }), "{outcome:?}");
        let said = trace(&net0, "10.0.1.3:8080", "-o wide").exits(0);
        said.says(&["recent door: 10.0.1.2, seen "]);
        net1.tool(&format!("{iptables} -F"));
    }
}

/// Bits that rules shift, and conditions that hold for nothing.
#[test]
fn rules_that_shift_and_rules_that_never_match() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080 --udp 8080");
    for (rules, works) in [
        (
            "meta mark set 3; meta mark set meta mark << 8; meta mark 0x300 drop",
            false,
        ),
        (
            "meta mark set 0x300; meta mark set meta mark >> 8; meta mark 3 drop",
            false,
        ),
        (
            "meta mark set 3; meta mark set meta mark << 8; meta mark 3 drop",
            true,
        ),
    ] {
        net1.tool("nft add table ip f");
        net1.tool("nft add chain ip f c { type filter hook input priority 0 ; }");
        for rule in rules.split("; ") {
            net1.tool(&format!("nft add rule ip f c {rule}"));
        }
        let connected = matches!(net0.tcp("10.0.1.3:8080"), Outcome::Connected { .. });
        assert_eq!(connected, works, "{rules}");
        trace(&net0, "10.0.1.3:8080", "").exits(i32::from(!works));
        net1.tool("nft delete table ip f");
    }
    for rule in ["! -s 0.0.0.0/0 -j DROP", "! -i + -j DROP"] {
        net1.tool(&format!("iptables-legacy -A INPUT {rule}"));
        let outcome = net0.tcp("10.0.1.3:8080");
        assert!(
            matches!(outcome, Outcome::Connected { .. }),
            "{rule}: {outcome:?}"
        );
        trace(&net0, "10.0.1.3:8080", "").exits(0);
        net1.tool("iptables-legacy -F");
    }
}

/// A range of ports stands for another one, port for port.
#[test]
fn ports_that_a_rule_shifts() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 9002 --udp 9002");
    for iptables in ["iptables-nft", "iptables-legacy"] {
        let rule = "-t nat -A PREROUTING -p tcp --dport 8000:8003 -j DNAT --to-destination 10.0.1.3:9000-9003/8000";
        net1.tool(&format!("{iptables} {rule}"));
        for (port, works) in [(8002, true), (8001, false)] {
            let at = format!("10.0.1.3:{port}");
            let connected = matches!(net0.tcp(&at), Outcome::Connected { .. });
            assert_eq!(connected, works, "{iptables} {at}");
            trace(&net0, &at, "").exits(i32::from(!works));
        }
        net1.tool(&format!("{iptables} -t nat -F"));
    }
}

/// Rules of service meshes ask for the sender's user, which nobody but the asker knows.
#[test]
fn rules_that_ask_who_sends() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080 --udp 8080");
    net0.tool("iptables-nft -A OUTPUT -p tcp -m owner --uid-owner 1337 --gid-owner 7 -j REJECT");
    let outcome = net0.tcp("10.0.1.3:8080");
    assert!(matches!(outcome, Outcome::Connected { .. }), "{outcome:?}");
    let at = |more: &str| trace(&net0, "10.0.1.3:8080", more);
    at("")
        .exits(3)
        .says(&["the sender's uid is not known", "--uid and --gid"]);
    at("--uid 0").exits(0);
    at("--uid 1337 --gid 7").exits(1).says(&["NP0126"]);
    at("--uid 1337 --gid 8").exits(0);
    net0.tool("iptables-nft -F");
    net0.tool("iptables-nft -A OUTPUT -p tcp -m owner --gid-owner 7 --suppl-groups -j REJECT");
    at("--gid 8").exits(3).says(&["supplementary groups"]);
    at("--gid 7").exits(1);
}

/// A program that takes the packets of queue 7 and never says what is to become of them.
fn silent_listener(ns: &Netns) -> std::os::fd::OwnedFd {
    let bound = ns.enter().run(|| {
        let netfilter = SockProtocol::NetlinkNetFilter;
        let listener = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            // What another test starts meanwhile would keep the queue.
            SockFlag::SOCK_CLOEXEC,
            netfilter,
        );
        let listener = listener.expect("a netlink socket");
        // nlmsghdr: 28 bytes, NFNL_SUBSYS_QUEUE << 8 | NFQNL_MSG_CONFIG, NLM_F_REQUEST | NLM_F_ACK;
        // nfgenmsg for queue 7; NFQA_CFG_CMD: NFQNL_CFG_CMD_BIND.
        let mut request = Vec::new();
        request.extend(28u32.to_ne_bytes());
        request.extend(0x0302u16.to_ne_bytes());
        request.extend(5u16.to_ne_bytes());
        request.extend([0; 8]);
        request.extend([0, 0, 0, 7]);
        request.extend(8u16.to_ne_bytes());
        request.extend(1u16.to_ne_bytes());
        request.extend([1, 0, 0, 0]);
        nix::sys::socket::send(listener.as_raw_fd(), &request, MsgFlags::empty()).expect("bound");
        let mut answer = [0; 64];
        nix::sys::socket::recv(listener.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("told");
        assert_eq!(answer[16..20], [0; 4], "bind to queue 7");
        Ok(listener)
    });
    bound.expect("a program behind the queue")
}

/// Without a program behind a queue the rule decides; with one nobody knows.
#[test]
fn queues_that_no_program_listens_on() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080 --udp 8080");
    for iptables in ["iptables-nft", "iptables-legacy"] {
        let rule = |words: &str| net1.tool(&format!("{iptables} -A INPUT -p tcp {words}"));
        rule("-j NFQUEUE --queue-num 7 --queue-bypass");
        let outcome = net0.tcp("10.0.1.3:8080");
        assert!(matches!(outcome, Outcome::Connected { .. }), "{outcome:?}");
        let said = trace(&net0, "10.0.1.3:8080", "-o wide").exits(0);
        said.says(&["no program listens on queue 7: passed by"]);

        net1.tool(&format!("{iptables} -F"));
        rule("-j NFQUEUE --queue-balance 7:9");
        let outcome = net0.tcp("10.0.1.3:8080");
        assert!(matches!(outcome, Outcome::TimedOut), "{outcome:?}");
        trace(&net0, "10.0.1.3:8080", "").exits(1).says(&[
            "NP0126",
            "not there: a program that listens on queues 7 to 9",
            "start the program that is to listen on queues 7 to 9",
        ]);

        let listener = silent_listener(&net1);
        trace(&net0, "10.0.1.3:8080", "")
            .exits(3)
            .says(&["handed to the program that listens on queue 7 (netlink port "]);
        drop(listener);
        net1.tool(&format!("{iptables} -F"));
    }
}

/// A bridge that has a station behind the wrong port learns better from the station's next frame.
#[test]
fn a_bridge_learns_from_the_packets_under_way() {
    let (hosts, bridge) = bridged::<3>();
    let _listener = hosts[1].listen("--tcp 8080 --udp 8080");
    let (asker, answerer) = (mac(&hosts[0]), mac(&hosts[1]));
    let wrong = |station: &str| {
        bridge.tool(&format!(
            "bridge fdb replace {station} dev port2 master dynamic"
        ));
    };
    let forget = || {
        for host in &hosts {
            host.ip("neigh flush all");
        }
    };
    // The question is a broadcast; the answer teaches the bridge.
    let cases: [(&[&String], bool); 3] = [
        (&[&answerer], true),
        (&[&asker], true),
        (&[&asker, &answerer], true),
    ];
    for (stations, works) in cases {
        forget();
        for station in stations {
            wrong(station);
        }
        let said = trace(&hosts[0], "10.0.1.3:8080", "-o json");
        let outcome = hosts[0].tcp("10.0.1.3:8080");
        assert_eq!(
            matches!(outcome, Outcome::Connected { .. }),
            works,
            "{outcome:?}"
        );
        said.exits(i32::from(!works));
    }
    // Nobody asks and the answerer keeps silent: frames go where the table says, and nothing comes back.
    hosts[1].tool("sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1");
    hosts[1].ip(&format!(
        "neigh replace 10.0.1.2 lladdr {asker} dev eth0 nud permanent"
    ));
    hosts[0].ip(&format!(
        "neigh replace 10.0.1.3 lladdr {answerer} dev eth0 nud permanent"
    ));
    wrong(&answerer);
    let said = trace(&hosts[0], "10.0.1.3:8080", "-o json");
    let outcome = hosts[0].tcp("10.0.1.3:8080");
    assert!(!matches!(outcome, Outcome::Connected { .. }), "{outcome:?}");
    said.exits(1);
}

/// What the kernel decides by cannot be decoded: it can't be told, and that is said with code 3.
#[test]
fn what_cannot_be_decoded_is_inconclusive() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080");
    net1.tool("nft add table ip f");
    net1.tool("nft add chain ip f input { type filter hook input priority 0 ; }");
    net1.tool("nft add rule ip f input tcp dport 8080 osf name Linux drop");
    let said = trace(&net0, "10.0.1.3:8080", "-o json");
    assert_eq!(verdict(&said), "inconclusive", "{}", said.out);
    let unknown = said.json()["unknown"].to_string();
    assert!(unknown.contains("osf"), "{unknown}");
    said.exits(3);
    // It matters to the flows only that come to it.
    trace(&net0, "10.0.1.3:8081", "")
        .exits(1)
        .says(&["nothing listens"]);
    trace(&net0, "10.0.1.3", "").exits(0);
}

/// The other end of a link is out of view: the packet leaves, and what is assumed stands there.
#[test]
fn what_is_out_of_view_is_said() {
    let (net0, net1) = pair();
    // The name goes, the device lives on with the open file.
    let kept = net1.enter();
    drop(net1);
    let said = trace(&net0, "10.0.1.3", "-o json");
    let answer = said.json();
    let kind = &answer["branches"][0]["disposition"]["kind"];
    assert_eq!(kind, "leaves-cluster", "{}", answer["unknown"]);
    assert!(answer["assumed"].to_string().contains("out of view"));
    let text = trace(&net0, "10.0.1.3", "");
    text.says(&["leaves", "out of view"]);
    drop(kept);
}

#[test]
fn mistakes_are_told_with_code_2() {
    let (net0, _net1) = pair();
    let end = net0.end();
    for (line, parts) in [
        (
            format!("trace --local netns/npl-none {end}"),
            vec!["npl-none", "no namespace of that name"],
        ),
        (
            format!("trace --local pid/999999999 {end}"),
            vec!["pid/999999999"],
        ),
        (
            format!("trace --local {end} 10.0.1.3:99999"),
            vec!["out of range"],
        ),
        (format!("trace --local {end} 10.0.1.3:http"), vec!["http"]),
        (
            format!("trace --local {end} 10.0.1.300"),
            vec!["10.0.1.300"],
        ),
        (
            format!("trace --local {end} 10.0.1.3 --protocol tcp"),
            vec!["needs a port"],
        ),
        (format!("trace --local {end}"), vec!["DST"]),
        (
            format!("trace --local --snapshot x {end} 10.0.1.3"),
            vec!["cannot be used with"],
        ),
        (
            "trace --snapshot /nonexistent/x a b".to_owned(),
            vec!["/nonexistent/x", "No such file"],
        ),
        (
            "snapshot save --local /nonexistent/x".to_owned(),
            vec!["no directory"],
        ),
        ("snapshot save --local /".to_owned(), vec!["directory"]),
        ("map --local netns/npl-none".to_owned(), vec!["npl-none"]),
        (
            format!("dump nothing {end} --local"),
            vec!["possible values"],
        ),
        ("trace --local web-0 10.0.1.3".to_owned(), vec!["web-0"]),
        ("explain NP9999".to_owned(), vec!["NP9999"]),
    ] {
        net0.machine
            .plugin(&words(&line))
            .exits(2)
            .complains(&parts);
    }
    // Without the helper's program.
    let mut command = programs::plugin();
    command
        .args(["trace", "--local", &end, "10.0.1.3"])
        .env("NETPATH_HELPER", "/nonexistent/helper");
    let said = net0.machine.output(command).exits(2);
    said.complains(&["/nonexistent/helper", "NETPATH_HELPER"]);
}

/// The plugin as user nobody, without any right; what it is copied to must live as long as it runs.
fn as_nobody(line: &[String]) -> (tempfile::TempDir, std::process::Command) {
    let directory = tempfile::tempdir().expect("a directory");
    // Built programs may lie where only root can look: nobody gets a copy.
    let copy = directory.path().join("kubectl-netpath");
    let helper = directory.path().join("netpath-helper");
    for (name, copy) in [("kubectl-netpath", &copy), ("netpath-helper", &helper)] {
        std::fs::copy(program(name), copy).expect("a copy");
    }
    for path in [directory.path(), &copy, &helper] {
        let rights = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(path, rights).expect("rights can be set");
    }
    let mut command = std::process::Command::new(&copy);
    command
        .env_clear()
        .env("NETPATH_HELPER", directory.path().join("netpath-helper"))
        .uid(65_534)
        .gid(65_534)
        .args(line);
    (directory, command)
}

fn same_answers(asked: &[(Vec<String>, Said)], file: &Path, run: impl Fn(&[String]) -> Said) {
    for (line, live) in asked {
        let mut line: Vec<String> = line.iter().filter(|w| *w != "--local").cloned().collect();
        line.extend(["--snapshot".to_owned(), file.to_str().unwrap().to_owned()]);
        let saved = run(&line);
        assert_eq!(
            saved.code, live.code,
            "{line:?}\n{}\n{}{}",
            live.out, saved.out, saved.err
        );
        if line.iter().any(|word| word == "json") {
            let (saved, live) = (steady(saved.json()), steady(live.json()));
            let text = |answer: &Value| serde_json::to_string_pretty(answer).unwrap();
            assert_eq!(text(&saved), text(&live), "{line:?}");
        } else {
            assert_eq!(saved.out, live.out, "{line:?}");
        }
    }
}

#[test]
fn a_snapshot_gives_the_same_answers_without_root_and_without_the_namespaces() {
    let (hosts, bridge) = bridged::<3>();
    for ns in hosts.iter().chain([&bridge]) {
        // Nothing shall happen by itself between one reading and the next.
        ns.tool("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
    }
    let listener = hosts[1].listen("--tcp 8080 --udp 8080");
    bridge.tool("nft add table bridge f");
    bridge.tool("nft add chain bridge f forward { type filter hook forward priority 0 ; }");
    hosts[1].tool("nft add table ip f");
    hosts[1].tool("nft add chain ip f input { type filter hook input priority 0 ; }");
    hosts[1].tool("nft add rule ip f input tcp dport 9090 drop");
    let end = hosts[0].end();
    let other = hosts[1].end();
    let mut lines = Vec::new();
    for (to, more) in [
        ("10.0.1.3", ""),
        ("10.0.1.3:8080", ""),
        ("10.0.1.3:8080", "--protocol udp"),
        ("10.0.1.3:9090", ""),
        ("10.0.1.3:81", ""),
        ("10.0.1.9:80", ""),
        ("10.9.9.9", ""),
    ] {
        for output in ["text", "wide", "json", "yaml"] {
            if output == "yaml" {
                continue;
            }
            lines.push(format!("trace --local {end} {to} {more} -o {output}"));
        }
    }
    for what in [
        "links",
        "addrs",
        "routes",
        "rules",
        "fdb",
        "netfilter",
        "sockets",
        "sysctls",
    ] {
        lines.push(format!("dump --local {what} {other}"));
        lines.push(format!("dump --local {what} {other} -o json"));
    }
    lines.push(format!("map --local {other}"));
    lines.push(format!("map --local {other} -o wide"));
    lines.push(format!("map --local {other} -o json"));
    // Traffic first, so that tables are at rest; entries that age would not stay the same.
    assert!(hosts[0].tcp("10.0.1.3:8080").connected());
    for (from, address, to) in [(0, "10.0.1.3", 1), (1, "10.0.1.2", 0)] {
        let mac = mac(&hosts[to]);
        hosts[from].ip(&format!(
            "neigh replace {address} lladdr {mac} dev eth0 nud permanent"
        ));
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("net.json");
    let path = file.to_str().unwrap().to_owned();
    let machine = Arc::clone(&bridge.machine);
    machine
        .plugin(&words(&format!("snapshot save --local {path}")))
        .exits(0);
    let asked: Vec<(Vec<String>, Said)> = lines
        .iter()
        .map(|line| (words(line), machine.plugin(&words(line))))
        .collect();
    let codes: Vec<Option<i32>> = asked.iter().map(|(_, said)| said.code).collect();
    assert!(
        codes.iter().all(|code| matches!(code, Some(0 | 1))),
        "{codes:?}"
    );
    same_answers(&asked, &file, run);
    // It holds addresses and rules: nobody else may read it until its owner says so.
    let mode = std::os::unix::fs::PermissionsExt::mode(&file.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let copy = tempfile::Builder::new().prefix("npl").tempfile().unwrap();
    std::fs::copy(&file, copy.path()).unwrap();
    programs::readable_by_all(copy.path());
    // Saved again, in place: whole or not at all.
    machine
        .plugin(&words(&format!("snapshot save --local {path}")))
        .exits(0);
    let entries = std::fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(entries, 1);
    drop((listener, hosts, bridge, machine));
    same_answers(&asked, copy.path(), |line| {
        let (_files, mut command) = as_nobody(line);
        Said::of(command.output().unwrap())
    });
}

#[test]
fn without_root_it_says_what_it_needs() {
    let (net0, _net1) = pair();
    let line = words(&format!("trace --local {} 10.0.1.3", net0.end()));
    let (_files, command) = as_nobody(&line);
    let said = net0.machine.output(command);
    assert!(matches!(said.code, Some(2 | 3)), "{said:?}");
    assert!(!said.err.contains("panicked"), "{said:?}");
}

/// Nothing is needed of a terminal, and a reader may go away.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (net0, _net1) = pair();
    let mut command = programs::plugin();
    command
        .args(["dump", "--local", "sysctls", &net0.end()])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut running = net0.machine.spawn(command);
    drop(running.0.stdout.take());
    let mut err = Vec::new();
    std::io::Read::read_to_end(&mut running.0.stderr.take().unwrap(), &mut err).unwrap();
    let output = std::process::Output {
        status: running.0.wait().unwrap(),
        stdout: Vec::new(),
        stderr: err,
    };
    let said = Said::of(output).exits(0);
    assert!(!said.err.contains("error"), "{}", said.err);
}

#[test]
fn xfrm_policies_block_where_the_kernel_blocks() {
    let (net0, net1) = pair();
    let machine = Arc::clone(&net0.machine);
    let net2 = Netns::add(&machine, "net2");
    net1.ip(&format!(
        "link add veth2 type veth peer name veth3 netns {}",
        net2.name
    ));
    net1.ip("addr add 10.0.2.2/24 dev veth2");
    net1.ip("link set veth2 up");
    net2.ip("addr add 10.0.2.3/24 dev veth3");
    net2.ip("link set veth3 up");
    net1.tool("sysctl -q -w net.ipv4.ip_forward=1");
    net0.ip("route add 10.0.2.0/24 via 10.0.1.3");
    net2.ip("route add 10.0.1.0/24 via 10.0.2.2");
    let _near = net1.listen("--tcp 8080 --udp 8080");
    let _far = net2.listen("--tcp 8080 --udp 8080");
    let through = ["delivered", "delivered"];
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), through);
    assert_eq!(agrees(&net0, "10.0.2.3", 8080), through);
    // For this host: TCP from one address, whatever the port.
    let tcp = "src 10.0.1.2/32 dst 10.0.1.3/32 proto tcp";
    net1.ip(&format!(
        "xfrm policy add {tcp} dir in action block priority 9"
    ));
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), ["dropped", "delivered"]);
    trace(&net0, "10.0.1.3:8080", "").exits(1).says(&[
        "NP0135",
        "src 10.0.1.2/32 dst 10.0.1.3/32 proto 6 dir in action block",
    ]);
    // One of a lower number that allows it.
    net1.ip(&format!(
        "xfrm policy add {tcp} dport 8080 dir in priority 3"
    ));
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), through);
    net1.ip("xfrm policy flush");
    // On the way through, both ways of policies: fwd and out.
    for dir in ["fwd", "out"] {
        let all = "src 10.0.1.0/24 dst 10.0.2.0/24";
        net1.ip(&format!("xfrm policy add {all} dir {dir} action block"));
        assert_eq!(agrees(&net0, "10.0.2.3", 8080), ["dropped", "dropped"]);
        assert_eq!(agrees(&net0, "10.0.1.3", 8080), through);
        net1.ip("xfrm policy flush");
    }
    // The answer is blocked.
    net2.ip("xfrm policy add src 10.0.2.3/32 dst 10.0.1.2/32 dir out action block");
    assert_eq!(agrees(&net0, "10.0.2.3", 8080), ["dropped", "dropped"]);
    net2.ip("xfrm policy flush");
    // The default.
    net1.ip("xfrm policy setdefault fwd block");
    assert_eq!(agrees(&net0, "10.0.2.3", 8080), ["dropped", "dropped"]);
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), through);
    net1.ip("xfrm policy setdefault fwd accept");
    // A policy that transforms is named, not followed.
    net1.ip("xfrm policy add src 10.0.1.0/24 dst 10.0.2.0/24 dir out tmpl src 10.0.2.2 dst 10.0.2.3 proto esp mode tunnel");
    let said = trace(&net0, "10.0.2.3:8080", "");
    said.exits(3)
        .says(&["IPsec", "src 10.0.1.0/24 dst 10.0.2.0/24 dir out"]);
    // Lo is exempt: the kernel sets disable_policy and disable_xfrm there.
    net1.ip("xfrm policy add src 127.0.0.0/8 dst 127.0.0.0/8 dir in action block");
    assert_eq!(agrees(&net1, "127.0.0.1", 8080), through);
}

#[test]
fn queueing_disciplines_drop_where_the_kernel_drops() {
    let (net0, net1) = pair();
    let _listener = net1.listen("--tcp 8080 --udp 8080");
    let through = ["delivered", "delivered"];
    // One that shapes lets a packet that comes alone through.
    net0.tool("tc qdisc add dev veth0 root tbf rate 8mbit burst 20000 latency 50ms");
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), through);
    net0.tool("tc qdisc del dev veth0 root");
    // A burst that is smaller than the packet; ARP fits (42 bytes). Answers of the other end pass.
    net0.ip("neigh replace 10.0.1.3 dev veth0 lladdr 02:00:00:00:00:09 nud permanent");
    net1.ip("link set veth1 address 02:00:00:00:00:09");
    net0.tool("tc qdisc add dev veth0 root tbf rate 8mbit burst 50 latency 50ms");
    trace(&net0, "10.0.1.3:8080", "")
        .exits(1)
        .says(&["NP0133", "qdisc tbf", "burst"]);
    assert!(!net0.tcp("10.0.1.3:8080").connected());
    net0.tool("tc qdisc del dev veth0 root");
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), through);
    net0.tool("tc qdisc add dev veth0 root blackhole");
    assert_eq!(agrees(&net0, "10.0.1.3", 8080), ["dropped", "dropped"]);
    trace(&net0, "10.0.1.3:8080", "").says(&["NP0133", "qdisc blackhole"]);
    net0.tool("tc qdisc del dev veth0 root");
    // On lo too.
    net1.tool("tc qdisc add dev lo root blackhole");
    agrees(&net1, "127.0.0.1", 8080);
}

/// One datagram from a fixed port; who answered.
fn datagram(from: &Netns, port: u16, to: &str) -> Option<std::net::IpAddr> {
    from.enter()
        .run(|| {
            let socket = std::net::UdpSocket::bind(("0.0.0.0", port)).expect("a free port");
            let wait = Some(Duration::from_millis(700));
            socket.set_read_timeout(wait).expect("a time");
            socket.send_to(b"who", to).expect("sent");
            let answer = socket.recv_from(&mut [0; 64]).ok();
            Ok::<_, anyhow::Error>(answer.map(|(_, peer)| peer.ip()))
        })
        .expect("a datagram can be tried")
}

/// A datagram flow keeps its translation after the rules have changed: found without knowing its port.
#[test]
fn a_stale_entry_is_found_without_its_port() {
    let (hosts, _bridge) = bridged::<3>();
    let [client, old, new] = &hosts[..] else {
        panic!("three hosts");
    };
    let _listeners = [old, new].map(|host| host.listen("--udp 5353 --tcp 5353"));
    client.ip("route add 10.9.9.0/24 dev eth0");
    client.tool("nft add table ip n");
    client.tool("nft add chain ip n out { type nat hook output priority -100 ; }");
    let lead_to = |address: &str| {
        client.tool("nft flush chain ip n out");
        for protocol in ["udp", "tcp"] {
            client.tool(&format!(
                "nft add rule ip n out ip daddr 10.9.9.9 {protocol} dport 5353 dnat to {address}"
            ));
        }
    };
    let service = "10.9.9.9:5353";
    lead_to("10.0.1.3");
    // The first one may be lost while the bridge's ports come up.
    until("the old server answers", Duration::from_secs(10), || {
        datagram(client, 40053, service).is_some()
    });
    let udp = "--protocol udp";
    let said = trace(client, service, udp).exits(0);
    assert!(!said.out.contains("NP0110"), "{}", said.out);
    let shown = trace(client, service, "--protocol udp --existing").exits(0);
    shown.says(&["existing flow: udp", "src=10.0.1.3", "sport=40053"]);

    lead_to("10.0.1.4");
    // The entry leads where the rules do not, yet to a server that still answers.
    assert!(datagram(client, 40053, service).is_some());
    let said = trace(client, service, udp).exits(0);
    assert!(!said.out.contains("NP0110"), "{}", said.out);

    old.ip("addr del 10.0.1.3/24 dev eth0");
    client.ip("neigh flush dev eth0");
    assert_eq!(datagram(client, 40053, service), None);
    assert!(datagram(client, 40054, service).is_some());
    let said = trace(client, service, udp).exits(0);
    said.says(&["NP0110", "leads to 10.0.1.3", "sport=40053"]);
    trace(client, service, "--protocol udp --source-port 40053").exits(1);
    // The new flow arrives; of those that were asked for too, one does not.
    let said = trace(client, service, "--protocol udp --existing -o json").exits(1);
    let flows = said.json()["existing"].as_array().unwrap().clone();
    let mut verdicts: Vec<&str> = flows
        .iter()
        .map(|flow| flow["trace"]["verdict"].as_str().unwrap())
        .collect();
    verdicts.sort_unstable();
    // The one that was just made, and the one to the old server, for whom nobody answers any more.
    assert_eq!(verdicts, ["delivered", "rejected"], "{}", said.out);
    // Connections of TCP make a new entry each.
    let said = trace(client, service, "").exits(0);
    assert!(!said.out.contains("NP0110"), "{}", said.out);
}

/// Two senders behind one address use the same port to the same server: the second one gets another.
#[test]
fn a_source_port_that_another_flow_has_is_not_given_twice() {
    let (hosts, router) = bridged::<3>();
    let machine = Arc::clone(&router.machine);
    let server = Netns::add(&machine, "server");
    router.ip(&format!(
        "link add out type veth peer name eth0 netns {}",
        server.name
    ));
    for (ns, device, address) in [
        (&router, "br0", "10.0.1.1/24"),
        (&router, "out", "10.0.2.1/24"),
        (&server, "eth0", "10.0.2.2/24"),
    ] {
        ns.ip(&format!("addr add {address} dev {device}"));
        ns.ip(&format!("link set {device} up"));
    }
    router.tool("sysctl -qw net.ipv4.ip_forward=1");
    router.tool("nft add table ip n");
    router.tool("nft add chain ip n post { type nat hook postrouting priority 100 ; }");
    router.tool("nft add rule ip n post oifname out masquerade");
    for host in &hosts {
        host.ip("route add default via 10.0.1.1");
    }
    let _listener = server.listen("--udp 5353");
    let to = "10.0.2.2:5353";
    let fixed = "--protocol udp --source-port 4000 -o wide";
    let taken = "to 10.0.2.1:any";
    until("the server answers", Duration::from_secs(10), || {
        datagram(&hosts[1], 4001, to).is_some()
    });
    let said = trace(&hosts[1], to, fixed).exits(0);
    assert!(!said.out.contains(taken), "{}", said.out);
    assert!(datagram(&hosts[0], 4000, to).is_some());
    trace(&hosts[1], to, fixed).exits(0).says(&[taken]);
    assert!(datagram(&hosts[1], 4000, to).is_some());
    let entries = router.tool("conntrack -L -p udp -s 10.0.1.3 --sport 4000");
    assert!(!entries.contains("dport=4000"), "{entries}");
    assert!(entries.contains("src=10.0.2.2 dst=10.0.2.1"), "{entries}");
}
