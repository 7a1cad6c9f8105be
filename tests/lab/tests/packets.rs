//! `capture` in laboratories: every hop, the same packets as tcpdump, ends complete, tells what was lost. Needs root,
//! tcpdump and tshark.
#![allow(missing_docs, reason = "tests")]

mod programs;

use std::fs::File;
use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use netpath::contract::{Reply, Request};
use netpath::model::capture::{Answer, Point, Probe, Watch};
use netpath::model::packet::{ICMP, TCP, UDP};
use netpath_lab::random::cpu;
use netpath_lab::{Fault, Overlay, Proxy, Spec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use programs::capturing::{Capturing, tshark};
use programs::talk::Talk;
use programs::{Lab, Machine, Netns, Running, Said, bridged, plugin, run, tc, until, words};

#[test]
fn the_packets_are_those_of_tcpdump_at_every_hop() {
    // On two CPUs two packets may be sent at once, which each packet socket and each device then has in an order of its own.
    let cpu = *cpu::own().expect("CPUs").first().expect("one");
    cpu::keep_to(cpu).expect("this thread, and all that it starts, keeps to it");
    let ([one, other], bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let _listener = other.listen("--tcp 8080");
    let dir = tempfile::tempdir().expect("a directory");
    let (ours, theirs) = (dir.path().join("ours"), dir.path().join("theirs"));

    let mut tcpdump = Command::new("ip");
    tcpdump.args([
        "netns",
        "exec",
        &bridge.name,
        "tcpdump",
        "-U",
        "-i",
        "port0",
    ]);
    tcpdump.arg("-w").arg(&theirs).arg("tcp port 8080");
    let log = dir.path().join("log");
    tcpdump.stderr(File::create(&log).expect("a file"));
    let tcpdump = machine.spawn(tcpdump);
    until("tcpdump to listen", Duration::from_secs(10), || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("listening on"))
    });

    let line = format!(
        "capture --local {} 10.0.1.3:8080 --payload -w {}",
        one.end(),
        ours.display()
    );
    let capturing = Capturing::on(&machine, &line);
    assert!(one.tcp("10.0.1.3:8080").connected());
    let said = capturing.interrupt().exits(0);
    assert!(said.err.contains(" 0 lost"), "{}", said.err);

    let fields = [
        "tcp.seq_raw",
        "tcp.ack_raw",
        "tcp.flags",
        "frame.len",
        "tcp.payload",
    ];
    let all = tshark(&ours, "", &["frame.interface_name"]);
    let mut names: Vec<&str> = all
        .iter()
        .map(|name| name.split_once(' ').expect("node").1)
        .collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(
        names,
        [
            "netns host0 eth0",
            "netns host1 eth0",
            "netns middle port0",
            "netns middle port1"
        ]
    );
    // The last packet of the exchange may be under way to tcpdump's file.
    let wanted = || tshark(&theirs, "", &fields);
    until("tcpdump to write", Duration::from_secs(10), || {
        wanted().len() * 4 >= count
    });
    let port = |name: &str| {
        tshark(
            &ours,
            &format!("-Y frame.interface_name~\"{name}\""),
            &fields,
        )
    };
    assert_eq!(port("port0"), wanted());
    assert!(wanted().len() >= 8, "{:?}", wanted());
    // The same packets at each hop, in the order of their times.
    assert_eq!(port("port1"), wanted());
    drop(tcpdump);

    let mode =
        std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&ours).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn payload_is_left_out_and_limits_hold() {
    let ([one, other], _bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let _listener = other.listen("--tcp 8080");
    let dir = tempfile::tempdir().expect("a directory");
    let ours = dir.path().join("ours");
    let line = format!(
        "capture --local {} --count 9 -w {}",
        one.end(),
        ours.display()
    );
    let capturing = Capturing::on(&machine, &format!("{line} --filter tcp"));
    assert!(one.tcp("10.0.1.3:8080").connected());
    capturing.end().exits(0);
    assert_eq!(tshark(&ours, "", &["frame.number"]).len(), 9);
    let bytes = std::fs::read(&ours).expect("the file");
    assert!(
        !bytes.windows(5).any(|some| some == b"hello"),
        "payload is in the file"
    );

    let capturing = Capturing::on(
        &machine,
        &format!("capture --local {} --duration 300ms", one.end()),
    );
    capturing.end().exits(0);
    let wrong = format!("capture --local {} --filter no-such-word", one.end());
    machine
        .plugin(&words(&wrong))
        .exits(2)
        .complains(&["set the filter", "no-such-word"]);
    machine
        .plugin(&words("capture --local netns/none"))
        .exits(2)
        .complains(&["no namespace of that name"]);
    run(&words("capture --snapshot x.json web-0"))
        .exits(2)
        .complains(&["holds no packets"]);
}

#[test]
fn what_is_lost_is_told() {
    const SENT: u64 = 400_000;
    let ([one, _other], _bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let dir = tempfile::tempdir().expect("a directory");
    let ours = dir.path().join("ours");
    // Known already, so that nothing waits for an answer.
    one.ip("neigh replace 10.0.1.3 lladdr 02:00:00:00:00:01 dev eth0");
    let line = format!(
        "capture --local {} -w {} --filter udp.port.9",
        one.end(),
        ours.display()
    );
    let mut command = plugin();
    command.args(
        words(&line)
            .iter()
            .map(|word| word.replace("udp.port.9", "udp port 9")),
    );
    let capturing = Capturing::start(command, |command| machine.spawn(command));
    one.enter()
        .run(|| {
            let socket = UdpSocket::bind("10.0.1.2:0")?;
            socket.connect("10.0.1.3:9")?;
            for _ in 0..SENT {
                socket.send(b"x")?;
            }
            Ok(())
        })
        .expect("packets are sent");
    let said = capturing.interrupt().exits(0);
    // "N packets written, N seen by the filters, N lost by the kernels' buffers", of two devices.
    let line = said
        .err
        .lines()
        .find(|line| line.contains("packets written"));
    let line = line.unwrap_or_else(|| panic!("{}", said.err));
    let figures: Vec<u64> = line
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    let &[written, seen, lost] = figures.as_slice() else {
        panic!("{line}");
    };
    assert_eq!(seen, 2 * SENT, "{line}");
    assert_eq!(written + lost, seen, "{line}");
    assert_eq!(tshark(&ours, "", &["frame.number"]).len() as u64, written);
}

/// A device goes away in the middle: it is told at once, what it saw counts, and the others go on.
#[test]
fn a_device_that_goes_away_is_told_at_once() {
    let ([one, other], bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let _listener = other.listen("--tcp 8080");
    let dir = tempfile::tempdir().expect("a directory");
    let ours = dir.path().join("ours");
    let line = format!(
        "capture --local {} 10.0.1.3:8080 -w {}",
        one.end(),
        ours.display()
    );
    let mut capturing = Capturing::on(&machine, &line);
    assert!(one.tcp("10.0.1.3:8080").connected());
    bridge.ip("link del port1");
    // Both ends of the pair, each in a namespace of its own.
    let mut told = [capturing.line(), capturing.line()];
    told.sort();
    for (line, dev) in told.iter().zip(["eth0", "port1"]) {
        let wanted = format!("capture on {dev}: read packets: ");
        assert!(line.contains(&wanted), "{line}");
    }
    assert!(!one.tcp("10.0.1.3:8080").connected());
    let said = capturing.interrupt().exits(3);
    assert!(said.err.contains(" 0 lost"), "{}", said.err);
    let at = |name: &str| {
        let filter = format!("-Y frame.interface_name~\"{name}\"");
        tshark(&ours, &filter, &["frame.number"]).len()
    };
    assert!(at("port1") >= 8);
    // It has the packets of the second exchange, too.
    assert!(at("port0") > at("port1"));
}

/// Where nothing is left to watch, the capture ends.
#[test]
fn a_capture_whose_devices_are_all_gone_ends() {
    let ([one, _other], _bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let line = format!("capture --local {} --duration 9m", one.end());
    let capturing = Capturing::on(&machine, &line);
    // Set down it still may come back.
    one.ip("link set eth0 down");
    one.ip("link del eth0");
    let said = capturing.end().exits(3);
    assert!(
        said.err.contains("capture on eth0: read packets: "),
        "{}",
        said.err
    );
}

/// Captures a connection of web-0 to a pod on the other node.
fn exchange_captured(lab: &Lab) -> Said {
    let mut command = lab.plugin();
    command.args(words("capture -n shop web-0 10.244.2.4:8080"));
    let capturing = Capturing::start(command, |mut command| {
        Running(command.spawn().expect("the plugin starts"))
    });
    let place = lab.cluster.pod("shop/web-0").expect("a pod");
    let to = "10.244.2.4:8080".parse().expect("an address");
    let outcome = place.tcp_exchange(to, Duration::from_secs(5));
    assert!(outcome.expect("an exchange").connected());
    capturing.interrupt().exits(0)
}

#[test]
fn a_flow_is_seen_on_both_nodes_and_in_the_tunnel() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    let said = exchange_captured(&lab);
    said.says(&[
        "node-1  host",
        "node-2  host",
        "flannel.1",
        "vxlan vni 1: 10.244.",
        "pod shop/web-0",
    ]);
    lab.is_clean();
}

#[test]
fn behind_an_end_that_can_not_be_told_the_destination_is_watched() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    let veth = lab.cluster.pod_state("shop/web-0").expect("the pod");
    let veth = veth.host_veth.clone().expect("a veth");
    let node = lab.cluster.node("node-1").expect("a node");
    tc::with_program(tc::PASSES, |file| {
        let clsact = format!("tc qdisc add dev {veth} clsact");
        for line in [clsact, tc::add_line(&veth, "ingress", file)] {
            node.run(words(&line)).expect("a program at tc");
        }
    });
    let said = exchange_captured(&lab);
    said.says(&["node-1  host", "node-2  host", "pod shop/api-"]);
    lab.is_clean();
}

#[test]
fn where_the_way_is_predicted_to_end_is_told() {
    let mut lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    lab.cluster
        .fault_on(Fault::ForwardDrop, None)
        .expect("a fault");
    let said = lab.run("capture -n shop web-0 10.244.2.4:8080 --duration 1s");
    let said = said.exits(0);
    assert!(
        said.err.contains("the way is predicted to end in node"),
        "{said:?}"
    );
    lab.is_clean();
}

/// Nobody is surprised by what is not there.
#[test]
fn what_a_nodes_capture_leaves_out_is_told() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    let told = |filter: &[&str]| {
        let mut command = lab.plugin();
        command.args(words("capture node/node-1")).args(filter);
        let capturing = Capturing::start(command, |mut command| {
            Running(command.spawn().expect("the plugin starts"))
        });
        let head = capturing.head.clone();
        capturing.interrupt().exits(0);
        head.contains("tcp port 10250 is left out")
    };
    assert!(told(&[]));
    assert!(!told(&["--filter", ""]));
    assert!(!told(&["--filter", "icmp"]));
    lab.is_clean();
}

/// A node's helper dies in the middle: that is told at once, and the other node's packets go on.
#[test]
fn a_helper_that_ends_is_told_while_the_capture_goes_on() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    let mut command = lab.plugin();
    command.args(words("capture -n shop web-0 10.244.2.4:8080"));
    let mut capturing = Capturing::start(command, |mut command| {
        Running(command.spawn().expect("the plugin starts"))
    });
    let far = lab.cluster.state.node("node-2").expect("the node");
    let there = netpath_lab::process::ids_in_namespace_of(far.holder_pid).expect("processes");
    let pid = there.into_values().find(|pid| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.contains("netpath-helper\0serve"))
    });
    let pid = Pid::from_raw(pid.expect("the helper of node-2"));
    kill(pid, Signal::SIGKILL).expect("it runs");
    let line = capturing.line();
    assert!(
        line.starts_with("error: helper on node node-2: it "),
        "{line}"
    );
    let place = lab.cluster.pod("shop/web-0").expect("a pod");
    let to = "10.244.2.4:8080".parse().expect("an address");
    let outcome = place.tcp_exchange(to, Duration::from_secs(5));
    assert!(outcome.expect("an exchange").connected());
    let said = capturing.interrupt().exits(3);
    said.says(&["node-1  host", "pod shop/web-0"]);
    lab.is_clean();
}

/// Nobody reads for a while, so that all rings are full; what the helper takes of them at once is bounded.
#[test]
fn a_busy_node_does_not_fill_the_helper() {
    const DEVICES: u32 = 8;
    const SENT: usize = 200;
    const ROUND: usize = 4 << 20;
    let machine = Machine::up();
    let ns = Netns::add(&machine, "busy");
    let mut talk = Talk::start(&machine);
    let netns = talk.find(&ns);
    let point = Point {
        netns,
        dev: "lo".to_owned(),
        filter: "udp port 9".to_owned(),
        vxlan: Vec::new(),
        geneve: Vec::new(),
        ipip: false,
        gre: false,
        hosts: Vec::new(),
        dropped: false,
    };
    let watch = Watch {
        points: (0..DEVICES).map(|_| point.clone()).collect(),
        snaplen: 65_535,
        payload: true,
        promiscuous: false,
        decoded: false,
        bytes: true,
    };
    let watching = talk.ask(&Request::Watch { id: 2, watch });
    assert!(matches!(watching, Reply::Watching { .. }), "{watching:?}");
    ns.enter()
        .run(|| {
            let socket = UdpSocket::bind("127.0.0.1:0")?;
            let bytes = vec![0x5a; 60_000];
            for _ in 0..SENT {
                socket.send_to(&bytes, "127.0.0.1:9")?;
            }
            Ok(())
        })
        .expect("packets are sent");
    talk.send(&Request::Unwatch { id: 2 });
    let mut seen = [0_usize; DEVICES as usize];
    let mut largest = 0;
    loop {
        match talk.next() {
            Reply::Packets { packets, .. } => {
                let bytes = packets.iter().map(|seen| seen.bytes.len()).sum::<usize>();
                largest = largest.max(bytes);
                for one in &packets {
                    seen[one.point as usize] += 1;
                }
            }
            Reply::Watched { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    // One packet may pass the mark.
    assert!(largest < ROUND + 65_536, "{largest} bytes at once");
    // There was more than that to take.
    let total: usize = seen.iter().sum::<usize>() * 60_000;
    assert!(total > 2 * ROUND, "{total}");
    assert!(seen.iter().all(|count| *count > 20), "{seen:?}");
}

#[test]
fn the_helper_sends_probes_and_says_what_came_back() {
    let ([one, other], _bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let _listener = other.listen("--tcp 8080 --udp 8080");
    let mut talk = Talk::start(&machine);
    let netns = talk.find(&one);
    let mut probe = |protocol: u8, dport: Option<u16>| {
        let probe = Probe {
            netns,
            src: None,
            sport: None,
            unused: false,
            dst: [10, 0, 1, 3].into(),
            dport,
            protocol,
            payload: b"netpath probe\n".to_vec(),
            wait: 3_000,
            whole: false,
        };
        match talk.ask(&Request::Probe { id: 2, probe }) {
            Reply::Probed { id: 2, probed } => probed,
            other => panic!("{other:?}"),
        }
    };
    for (protocol, dport, answer) in [
        (ICMP, None, Answer::Answered),
        (TCP, Some(8080), Answer::Answered),
        (TCP, Some(81), Answer::Refused),
        (UDP, Some(8080), Answer::Answered),
        (UDP, Some(81), Answer::Refused),
    ] {
        let probed = probe(protocol, dport);
        assert_eq!(probed.answer, answer, "{protocol} {dport:?}: {probed:?}");
        let (from, port) = probed.from.expect("it was sent from somewhere");
        assert_eq!(from, std::net::IpAddr::from([10, 0, 1, 2]));
        assert_ne!(port, 0);
    }
    // Nothing is listened to and nothing is answered.
    other.tool("nft add table inet t");
    other.tool("nft add chain inet t in { type filter hook input priority 0 ; policy drop ; }");
    assert_eq!(probe(TCP, Some(8080)).answer, Answer::Silent);
}
