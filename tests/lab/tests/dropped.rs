//! What the kernel drops and its reasons, by `capture --dropped` and `trace --probe`, in laboratories: this kernel's own
//! word is the oracle. Needs root, a kernel with BTF (Linux 5.17 or later), iptables, tc, setpriv and tshark.
#![allow(missing_docs, reason = "tests")]

mod programs;

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use netpath::contract::{Reply, Request};
use netpath::model::capture::{ANY, Point, Watch};
use programs::capturing::{Capturing, tshark};
use programs::talk::Talk;
use programs::{Machine, Netns, Running, bridged, program, tc, until, words};

/// One datagram; nobody has to answer.
fn send(from: &Netns, source: &str, to: &str) {
    let sent = from.enter().run(|| {
        let socket = UdpSocket::bind(format!("{source}:0"))?;
        Ok(socket.send_to(b"x", to)?)
    });
    sent.expect("a datagram is sent");
}

fn sysctl(ns: &Netns, name: &str, value: &str) {
    ns.tool(&format!("sysctl -qw net.ipv4.{name}={value}"));
}

/// Lines of a capture about one packet, by its ends.
fn about<'a>(out: &'a str, ends: &str) -> Vec<&'a str> {
    out.lines().filter(|line| line.contains(ends)).collect()
}

#[test]
fn each_drop_is_told_with_the_kernels_reason() {
    let ([one, other], _bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    other.tool("iptables -A INPUT -p udp --dport 5001 -j DROP");
    other.tool("iptables -A OUTPUT -p udp --dport 5003 -j DROP");
    for ns in [&one, &other] {
        sysctl(ns, "conf.all.rp_filter", "1");
        sysctl(ns, "conf.eth0.rp_filter", "1");
    }
    sysctl(&other, "ip_forward", "1");
    // A neighbour's silence in 150 ms in place of three seconds.
    sysctl(&other, "neigh.eth0.retrans_time_ms", "50");
    one.ip("addr add 10.9.9.9/32 dev lo");
    one.ip("route add 10.7.7.7 via 10.0.1.3");
    other.tool("tc qdisc add dev eth0 clsact");

    let line = format!("capture --local {} --dropped", other.end());
    let capturing = Capturing::on(&machine, &line);
    send(&one, "10.0.1.2", "10.0.1.3:5001");
    send(&one, "10.0.1.2", "10.0.1.3:5002");
    send(&one, "10.9.9.9", "10.0.1.3:5004");
    send(&one, "10.0.1.2", "10.7.7.7:5005");
    // What a rule drops as it is sent is told to the sender, too.
    let refused = other.enter().run(|| {
        let socket = UdpSocket::bind("10.0.1.3:0")?;
        Ok(socket.send_to(b"x", "10.0.1.2:5003").is_err())
    });
    assert!(refused.expect("a socket"));
    send(&other, "10.0.1.3", "10.0.1.99:5006");
    until("nobody answers", Duration::from_secs(5), || {
        other.ip("neigh show 10.0.1.99").contains("FAILED")
    });
    // Of another namespace: nothing of it is told.
    send(&one, "127.0.0.1", "127.0.0.1:5007");
    tc::add(&other, "eth0", "egress", tc::DROPS);
    send(&other, "10.0.1.3", "10.0.1.2:5008");
    tc::add(&other, "eth0", "ingress", tc::DROPS);
    send(&one, "10.0.1.2", "10.0.1.3:5009");
    let said = capturing.interrupt().exits(0);
    let mut missing = Vec::new();
    for (ends, dev, why) in [
        ("> 10.0.1.3:5001 udp", "eth0", "NETFILTER_DROP in nf"),
        ("> 10.0.1.3:5002 udp", "eth0", "NO_SOCKET in "),
        ("> 10.0.1.2:5003 udp", "", "NETFILTER_DROP in nf"),
        ("10.9.9.9:", "eth0", "IP_RPFILTER in "),
        ("> 10.7.7.7:5005 udp", "eth0", "IP_INNOROUTES in "),
        ("> 10.0.1.99:5006 udp", "eth0", "NEIGH_FAILED in "),
        ("> 10.0.1.2:5008 udp", "eth0", "TC_EGRESS in "),
        ("> 10.0.1.3:5009 udp", "eth0", "TC_INGRESS in "),
    ] {
        let told = about(&said.out, ends);
        let line = match told.as_slice() {
            [line] => line,
            [] => {
                missing.push(ends);
                continue;
            }
            _ => panic!("{ends}: {}", said.out),
        };
        assert!(line.contains(&format!("  {why}")), "{line}");
        assert!(line.contains(&format!("  {dev}")), "{line}");
        assert!(line.contains(&other.end().replace('/', " ")), "{line}");
    }
    assert_eq!(about(&said.out, ":5007"), [""; 0]);
    // What is not told is counted: a CPU that is interrupted while it tells of one packet passes over others.
    let lost = said.err.split(" lost by").next().unwrap_or_default();
    let lost = lost.rsplit(' ').next().and_then(|count| count.parse().ok());
    let lost: usize = lost.unwrap_or_else(|| panic!("{}", said.err));
    assert!(
        missing.len() <= lost,
        "{missing:?}: {}\n{}",
        said.out,
        said.err
    );
}

#[test]
fn filters_limits_and_files_are_those_of_any_capture() {
    let ([one, other], _bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("dropped");
    let line = format!(
        "capture --local {} --dropped --count 2 --duration 20s -w {}",
        other.end(),
        file.display()
    );
    let capturing = Capturing::start(
        {
            let mut command = programs::plugin();
            command
                .args(words(&line))
                .args(["--filter", "dst port 5002"]);
            command
        },
        |command| machine.spawn(command),
    );
    for port in [5001, 5002, 5003, 5002, 5002] {
        send(&one, "10.0.1.2", &format!("10.0.1.3:{port}"));
    }
    capturing.end().exits(0);
    let fields = [
        "frame.interface_name",
        "ip.dst",
        "udp.dstport",
        "frame.comment",
    ];
    let told = tshark(&file, "", &fields);
    assert_eq!(told.len(), 2, "{told:?}");
    for line in told {
        let parts: Vec<&str> = line.split('\t').collect();
        let [interface, to, port, comment] = parts.as_slice() else {
            panic!("{line}");
        };
        assert!(interface.ends_with(" dropped"), "{line}");
        assert_eq!((*to, *port), ("10.0.1.3", "5002"));
        assert!(comment.starts_with("dropped: NO_SOCKET in "), "{line}");
        assert!(comment.ends_with(" at eth0"), "{line}");
    }
    let bytes = std::fs::read(&file).expect("the file");
    assert!(!bytes.is_empty());
}

#[test]
fn a_probe_tells_why_the_kernel_dropped_it() {
    let ([one, other], bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    other.tool("iptables -A INPUT -p tcp --dport 8080 -j DROP");
    let line = format!("trace --local {} 10.0.1.3:8080 --probe", one.end());
    let json = |line: &str| {
        let said = one.machine.plugin(&words(&format!("{line} -o json")));
        said.exits(1).json()["probes"][0].clone()
    };
    let probe = json(&line);
    assert_eq!(probe["result"], "confirmed", "{probe:#}");
    let told = &probe["dropped"][0];
    assert_eq!(told["reason"], "NETFILTER_DROP", "{probe:#}");
    // nf_hook_slow, or nft_do_chain in newer kernels.
    let function = told["function"].as_str().expect("a function");
    assert!(function.starts_with("nf"), "{probe:#}");
    assert_eq!(
        (&told["device"], &told["turn"]),
        (&"eth0".into(), &0.into())
    );
    let count = told["count"].as_u64();
    assert!(count >= Some(1), "{probe:#}");
    assert_eq!(probe["dropped"].as_array().map(Vec::len), Some(1));
    one.machine.plugin(&words(&line)).exits(1).says(&[
        &format!("the kernel dropped it: NETFILTER_DROP in {function}"),
        "at device eth0",
    ]);
    // What can't be predicted.
    bridge.tool("tc qdisc add dev port0 clsact");
    tc::add(&bridge, "port0", "ingress", tc::DROPS);
    let probe = json(&line);
    assert_eq!(probe["result"], "seen", "{probe:#}");
    let told = &probe["dropped"][0];
    assert_eq!(
        (&told["reason"], &told["device"]),
        (&"TC_INGRESS".into(), &"port0".into()),
        "{probe:#}"
    );
}

/// Lines of all open files of a machine's processes that tell of programs at tracepoints.
fn programs_of(machine: &Arc<Machine>) -> usize {
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "cat /proc/[0-9]*/fdinfo/* 2>/dev/null | grep -c kfree_skb",
    ]);
    let said = machine.output(command);
    said.out.trim().parse().expect("a number")
}

#[test]
fn nothing_of_it_is_left_whatever_ends_it() {
    let ([one, _other], _bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    assert_eq!(programs_of(&machine), 0);
    let line = format!("capture --local {} --dropped", one.end());
    for kills in [false, true] {
        let capturing = Capturing::on(&machine, &line);
        assert_eq!(programs_of(&machine), 1);
        if kills {
            let Running(child) = &capturing.running;
            let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a process id"));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("it runs");
        } else {
            capturing.interrupt().exits(0);
        }
        // Held by its process alone, it goes with that.
        until("the program is gone", Duration::from_secs(5), || {
            programs_of(&machine) == 0
        });
    }
}

#[test]
fn a_kernel_without_types_is_told_once_and_the_rest_works() {
    let ([one, other], _bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let _listener = other.listen("--tcp 8080");
    let mut hide = Command::new("mount");
    hide.args(["-t", "tmpfs", "none", "/sys/kernel/btf"]);
    machine.output(hide).exits(0);
    let why = "ask the kernel for what it drops and why: read /sys/kernel/btf/vmlinux: ENOENT";
    let line = format!("capture --local {} --dropped", one.end());
    machine.plugin(&words(&line)).exits(2).complains(&[why]);
    let line = format!("trace --local {} 10.0.1.3:8080 --probe -o json", one.end());
    let said = machine.plugin(&words(&line)).exits(0);
    let probe = said.json()["probes"][0].clone();
    assert_eq!(probe["result"], "confirmed", "{probe:#}");
    assert_eq!(probe["unwatched"], serde_json::json!([]), "{probe:#}");
    other.tool("iptables -A INPUT -p tcp --dport 8080 -j DROP");
    let said = machine.plugin(&words(&line)).exits(1);
    let probe = said.json()["probes"][0].clone();
    assert_eq!(probe["result"], "confirmed", "{probe:#}");
    let unwatched = probe["unwatched"].as_array().expect("a list");
    let [told] = unwatched.as_slice() else {
        panic!("{unwatched:?}");
    };
    assert!(
        told.as_str().is_some_and(|told| told.contains(why)),
        "{told}"
    );
}

#[test]
fn a_helper_that_may_not_says_so() {
    let machine = Machine::up();
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-sys_admin,-bpf,-perfmon"]);
    command.args(["--inh-caps", "-sys_admin,-bpf,-perfmon"]);
    command.arg(program("netpath-helper"));
    let mut talk = Talk::by(&machine, command);
    let netns = talk.host();
    let point = Point {
        netns,
        dev: ANY.to_owned(),
        filter: String::new(),
        vxlan: Vec::new(),
        geneve: Vec::new(),
        gre: false,
        ipip: false,
        hosts: Vec::new(),
        dropped: true,
    };
    let watch = Watch {
        points: vec![point],
        snaplen: 256,
        ..Watch::default()
    };
    let reply = talk.ask(&Request::Watch { id: 2, watch });
    let Reply::Watching { points, .. } = reply else {
        panic!("{reply:?}");
    };
    let why = points[0].link.as_ref().expect_err("it may not");
    assert!(
        why.starts_with("ask the kernel for what it drops and why: make a BPF ring: EPERM")
            && why.contains("the helper lacks CAP_SYS_ADMIN"),
        "{why}"
    );
}
