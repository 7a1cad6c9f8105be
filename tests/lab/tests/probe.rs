//! `trace --probe` in laboratories: what is predicted is seen, device by device; with faults, the probe stops where
//! it was predicted; where the prediction is made wrong on purpose, or can't be made, what was seen stands in for it.
//! Needs root.
#![allow(missing_docs, reason = "tests")]

mod programs;

use std::io::Read;
use std::sync::Arc;

use programs::{Netns, Said, bridged, tc, words};
use serde_json::Value;

/// The only probe of an answer.
#[track_caller]
fn probe(said: &Said) -> Value {
    let probes = said.json()["probes"].clone();
    probes[0].clone()
}

/// Devices of a probe with what became of them.
fn devices(probe: &Value) -> Vec<(String, String)> {
    let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    let devices = probe["devices"].as_array().expect("a list").iter();
    devices
        .map(|one| (text(one, "device"), text(one, "met")))
        .collect()
}

#[track_caller]
fn confirmed(said: &Said) -> Value {
    let probe = probe(said);
    assert_eq!(probe["result"], "confirmed", "{probe:#}");
    assert_eq!(said.json()["verdict"], said.json()["predicted"]);
    let unwatched = probe["unwatched"].as_array().expect("a list");
    // Drops of others may go untold, which says nothing of the way.
    let of_way = |one: &&Value| !one.as_str().unwrap_or_default().contains("went untold");
    assert_eq!(unwatched.iter().find(of_way), None, "{probe:#}");
    for (device, met) in devices(&probe) {
        // Bridges show what passes them, too.
        assert!(
            met == "confirmed" || met.starts_with("seen"),
            "{device}: {met}\n{probe:#}"
        );
    }
    probe
}

/// Runs a trace with a probe between two namespaces.
fn local(from: &Netns, rest: &str) -> Said {
    let line = format!("trace --local {} {rest} --probe -o json", from.end());
    from.machine.plugin(&words(&line))
}

#[test]
fn what_arrives_is_confirmed_at_every_device() {
    let ([one, other], _bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let _listener = other.listen("--tcp 8080 --udp 8080");
    for more in [
        "10.0.1.3:8080",
        "10.0.1.3:8080 --protocol udp --data hello",
        "10.0.1.3:8080 --protocol udp --size 900",
        // In pieces, of which the first tells whose they are.
        "10.0.1.3:8080 --protocol udp --size 3000",
        "10.0.1.3 --protocol icmp --size 3000",
        "10.0.1.3",
    ] {
        let said = local(&one, more).exits(0);
        let probe = confirmed(&said);
        assert_eq!(probe["answered"], true, "{more}: {probe:#}");
        let ways: Vec<String> = devices(&probe)
            .into_iter()
            .map(|(device, _)| device)
            .collect();
        for device in ["eth0", "port0", "port1"] {
            assert!(
                ways.iter().filter(|own| *own == device).count() >= 2,
                "{more}: {ways:?}"
            );
        }
    }
    // Nobody listens there: refused, as predicted.
    let said = local(&one, "10.0.1.3:81").exits(1);
    confirmed(&said);
    let text = machine.plugin(&words(&format!(
        "trace --local {} 10.0.1.3:8080 --probe --count 2",
        one.end()
    )));
    let text = text.exits(0).says(&[
        "delivered, confirmed by 2 probes",
        "probe: from 10.0.1.2:",
        "answered after",
        "probe at ",
        "reply at ",
        "what follows once connected: confirmed at",
    ]);
    assert_eq!(text.out.matches("probe: from").count(), 2, "{}", text.out);
    for line in ["probe 1 of 2: confirmed, from", "probe 2 of 2: confirmed"] {
        assert!(text.err.contains(line), "{}", text.err);
    }
}

#[test]
fn a_predicted_drop_is_confirmed_where_it_happens_and_its_rule_has_counted() {
    let ([one, other], _bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    other.tool("nft add table inet t");
    other.tool("nft add chain inet t in { type filter hook input priority 0 ; }");
    other.tool("nft add rule inet t in tcp dport 8080 counter drop");
    let said = local(&one, "10.0.1.3:8080").exits(1);
    assert_eq!(said.json()["verdict"], "dropped");
    let probe = confirmed(&said);
    assert_eq!(probe["answered"], false);
    assert_eq!(probe["last_seen"]["device"], "eth0", "{probe:#}");
    let counted = probe["counted"].to_string();
    assert!(counted.contains("tcp dport 8080"), "{counted}");
}

#[test]
fn a_program_that_drops_is_seen_where_it_can_not_be_predicted() {
    let ([one, other], bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    bridge.tool("tc qdisc add dev port0 clsact");
    tc::add(&bridge, "port0", "ingress", tc::DROPS);
    let said = local(&one, "10.0.1.3:8080").exits(1);
    let found = probe(&said);
    let json = said.json();
    assert_eq!(
        (&json["predicted"], &json["verdict"], &found["result"]),
        (&"inconclusive".into(), &"dropped".into(), &"seen".into()),
        "{found:#}"
    );
    assert_eq!(found["last_seen"]["device"], "port0", "{found:#}");
    let findings = json["findings"].as_array().expect("findings");
    let codes: Vec<_> = findings.iter().map(|one| one["code"].clone()).collect();
    assert_eq!(codes, ["NP0161"], "{findings:#?}");
    let text = one.machine.plugin(&words(&format!(
        "trace --local {} 10.0.1.3:8080 --probe",
        one.end()
    )));
    text.exits(1).says(&[
        "✗ lost, as the probe saw; it can't be predicted",
        "the program at port0 drops the packet",
        "TC_INGRESS",
    ]);
}

#[test]
fn a_program_that_passes_packets_is_seen_to_do_so() {
    let ([one, other], bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    bridge.tool("tc qdisc add dev port0 clsact");
    tc::add(&bridge, "port0", "ingress", tc::PASSES);
    let said = local(&one, "10.0.1.3:8080").exits(0);
    let found = probe(&said);
    assert_eq!(
        (&said.json()["predicted"], &said.json()["verdict"]),
        (&"inconclusive".into(), &"delivered".into()),
        "{found:#}"
    );
    assert_eq!(found["result"], "seen", "{found:#}");
    let ways = devices(&found);
    assert!(
        ways.contains(&("port1".to_owned(), "seen".to_owned())),
        "{ways:?}"
    );
}

#[test]
fn a_program_on_the_way_back_is_seen_to_drop_the_answer() {
    let ([one, other], bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    bridge.tool("tc qdisc add dev port1 clsact");
    tc::add(&bridge, "port1", "ingress", tc::DROPS);
    let said = local(&one, "10.0.1.3:8080").exits(1);
    let found = probe(&said);
    assert_eq!(found["result"], "seen", "{found:#}");
    assert_eq!(found["last_seen"]["device"], "port1", "{found:#}");
    let turns = found["devices"].as_array().expect("a list").iter();
    assert!(turns.clone().any(|one| one["turn"] == 1), "{found:#}");
}

/// Binds queue 7 of the calling thread's namespace and never gives a verdict.
fn silent_queue() -> std::os::fd::OwnedFd {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
        socket,
    };
    use std::os::fd::AsRawFd;
    let fd = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )
    .expect("a socket");
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).expect("it is bound");
    // NFQNL_MSG_CONFIG for queue 7 with NFQA_CFG_CMD: NFQNL_CFG_CMD_BIND, and an answer.
    let config = [
        28, 0, 0, 0, 2, 3, 5, 0, 1, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr
        0, 0, 0, 7, // nfgenmsg
        8, 0, 1, 0, 1, 0, 0, 0, // the command
    ];
    send(fd.as_raw_fd(), &config, MsgFlags::empty()).expect("it is sent");
    let mut answer = [0; 64];
    recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty()).expect("it is answered");
    assert_eq!(answer[16..20], [0; 4], "the queue is bound");
    fd
}

#[test]
fn a_queue_whose_program_never_answers_is_seen_to_lose_packets() {
    let ([one, other], _bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    let _queue = other.enter().run(|| Ok(silent_queue())).expect("a queue");
    other.tool("iptables -A INPUT -p tcp --dport 8080 -j NFQUEUE --queue-num 7");
    let said = local(&one, "10.0.1.3:8080").exits(1);
    let found = probe(&said);
    assert_eq!(
        (&said.json()["predicted"], &found["result"]),
        (&"inconclusive".into(), &"seen".into()),
        "{found:#}"
    );
    assert_eq!(found["last_seen"]["device"], "eth0", "{found:#}");
}

/// Connections that a namespace's listeners took.
fn taken(ns: &Netns) -> u64 {
    let text = ns
        .enter()
        .run(|| Ok(std::fs::read_to_string("/proc/thread-self/net/snmp")?))
        .expect("counters");
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, numbers) = (lines.next(), lines.next());
    let names = names.expect("names").split_whitespace();
    let mut both = names.zip(numbers.expect("numbers").split_whitespace());
    let (_, number) = both.find(|(name, _)| *name == "PassiveOpens").expect("it");
    number.parse().expect("a number")
}

/// Probes of which the first finds what was predicted, and the last something that was changed in between.
#[track_caller]
fn changed(
    (one, other): (&Netns, &Netns),
    code: i32,
    change: impl FnOnce(),
) -> (Value, Value, Value) {
    let mut command = programs::plugin();
    let line = format!(
        "trace --local {} 10.0.1.3:8080 --probe --count 4 -o json",
        one.end()
    );
    command
        .args(words(&line))
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut running = one.machine.spawn(command);
    let long = std::time::Duration::from_secs(20);
    programs::until("the second probe", long, || taken(other) >= 2);
    change();
    let (mut out, mut err) = (String::new(), String::new());
    let (stdout, stderr) = (running.0.stdout.take(), running.0.stderr.take());
    stdout
        .expect("piped")
        .read_to_string(&mut out)
        .expect("text");
    stderr
        .expect("piped")
        .read_to_string(&mut err)
        .expect("text");
    let status = running.0.wait().expect("it ends");
    let said = Said {
        code: status.code(),
        out,
        err,
    };
    let said = said.exits(code);
    let json = said.json();
    let probes = json["probes"].as_array().expect("a list").clone();
    assert_eq!(probes[0]["result"], "confirmed", "{:#}", probes[0]);
    let last = probes.last().expect("four").clone();
    assert_eq!(last["result"], "differs", "{last:#}");
    assert!(json["findings"].to_string().contains("NP0160"), "{json:#}");
    let difference = last["difference"].clone();
    (json, last, difference)
}

#[track_caller]
fn says(text: &Value, part: &str) {
    assert!(text.to_string().contains(part), "{part:?} is not in {text}");
}

#[test]
fn a_rule_inserted_in_between_is_found_out() {
    let ([one, other], _bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    let (json, last, difference) = changed((&one, &other), 1, || {
        other.tool("nft add table inet t");
        other.tool("nft add chain inet t in { type filter hook input priority 0 ; }");
        other.tool("nft add rule inet t in tcp dport 8080 drop");
    });
    says(&difference, "no answer was seen at eth0");
    assert_eq!(
        (&json["predicted"], &json["verdict"]),
        (&"delivered".into(), &"dropped".into())
    );
    assert_eq!(last["predicted_since"], "dropped", "{last:#}");
    assert_eq!(last["last_seen"]["device"], "eth0", "{last:#}");
}

#[test]
fn a_translation_inserted_in_between_is_followed() {
    let ([one, other, third], _bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    let _third = third.listen("--tcp 8080");
    let (json, last, difference) = changed((&one, &other), 0, || {
        one.tool("nft add table ip n");
        one.tool("nft add chain ip n out { type nat hook output priority -100 ; }");
        one.tool("nft add rule ip n out ip daddr 10.0.1.3 dnat to 10.0.1.4");
    });
    says(&difference, "dst 10.0.1.4 in place of 10.0.1.3");
    assert_eq!(json["verdict"], "delivered");
    let ways = devices(&last);
    assert!(
        ways.contains(&("port2".to_owned(), "seen, not predicted".to_owned())),
        "{ways:?}"
    );
}

#[test]
fn a_wrong_forwarding_entry_is_found_out() {
    let ([one, other, _third], bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    let mac = other.tool("cat /sys/class/net/eth0/address");
    let (_, last, difference) = changed((&one, &other), 1, || {
        bridge.tool(&format!(
            "bridge fdb replace {} dev port2 master static sticky",
            mac.trim()
        ));
    });
    says(&difference, "did not come to port1");
    assert_eq!(last["sent"], 2, "{last:#}");
    let ways = devices(&last);
    assert!(
        ways.contains(&("port2".to_owned(), "seen, not predicted".to_owned())),
        "{ways:?}"
    );
    assert_eq!(last["last_seen"]["device"], "port2", "{last:#}");
}

#[test]
fn a_wrong_neighbour_is_found_out() {
    let ([one, other, third], _bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    let mac = third.tool("cat /sys/class/net/eth0/address");
    let (_, last, difference) = changed((&one, &other), 1, || {
        one.ip(&format!(
            "neigh replace 10.0.1.3 lladdr {} dev eth0 nud permanent",
            mac.trim()
        ));
    });
    says(&difference, "port1");
    says(&difference, "; it was seen at port2");
    let ways = devices(&last);
    assert!(
        ways.contains(&("port2".to_owned(), "seen, not predicted".to_owned())),
        "{ways:?}"
    );
}

#[test]
fn a_port_that_went_down_is_found_out() {
    let ([one, other], bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    let (_, last, difference) = changed((&one, &other), 1, || {
        bridge.ip("link set port1 down");
    });
    says(&difference, "did not come to port1");
    assert_eq!(last["predicted_since"], "dropped", "{last:#}");
}

#[test]
fn a_route_that_went_away_is_found_out() {
    let ([one, other], _bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    let (json, last, difference) = changed((&one, &other), 1, || {
        one.ip("route add unreachable 10.0.1.3/32");
    });
    says(&difference, "the probe was seen nowhere");
    says(&last["answer"], "failed");
    assert_eq!(json["verdict"], "rejected");
}

#[test]
fn a_listener_that_went_away_is_found_out() {
    let ([one, other], _bridge) = bridged();
    let listener = other.listen("--tcp 8080");
    let (json, _, difference) = changed((&one, &other), 1, || drop(listener));
    says(
        &difference,
        "it was refused, where it was predicted to be delivered",
    );
    assert_eq!(json["verdict"], "rejected");
}

#[test]
fn a_header_that_is_changed_otherwise_is_told() {
    let ([one, other], _bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    let (json, _, difference) = changed((&one, &other), 0, || {
        one.tool("nft add table ip n");
        one.tool("nft add chain ip n post { type filter hook postrouting priority 0 ; }");
        one.tool("nft add rule ip n post ip ttl set 9");
    });
    says(&difference, "ttl 9 in place of 64 at eth0");
    assert_eq!(json["verdict"], "delivered");
}

#[test]
fn a_rule_of_the_bridge_inserted_in_between_is_found_out() {
    let ([one, other], bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    let (_, last, difference) = changed((&one, &other), 1, || {
        bridge.tool("nft add table bridge b");
        bridge.tool("nft add chain bridge b f { type filter hook forward priority 0 ; }");
        bridge.tool("nft add rule bridge b f tcp dport 8080 counter drop");
    });
    says(&difference, "was last seen at");
    says(&difference, "did not come to port1");
    assert_eq!(last["predicted_since"], "dropped", "{last:#}");
}

#[test]
fn what_differs_is_saved_and_can_be_traced_again() {
    let ([one, other], _bridge) = bridged();
    let _listener = other.listen("--tcp 8080");
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("differs.json");
    let line = format!(
        "trace --local {} 10.0.1.3:8080 --probe --save-disagreement {}",
        one.end(),
        file.display()
    );
    // As predicted: nothing to save.
    one.machine.plugin(&words(&line)).exits(0);
    assert!(!file.exists());
    let line = format!(
        "trace --local {} 10.0.1.3:8080 --probe --count 4 --save-disagreement {}",
        one.end(),
        file.display()
    );
    let mut command = programs::plugin();
    command
        .args(words(&line))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let before = taken(&other);
    let mut running = one.machine.spawn(command);
    let long = std::time::Duration::from_secs(20);
    programs::until("the second probe", long, || taken(&other) >= before + 2);
    other.tool("nft add table inet t");
    other.tool("nft add chain inet t in { type filter hook input priority 0 ; policy drop ; }");
    assert_eq!(running.0.wait().expect("it ends").code(), Some(1));
    let text = std::fs::read_to_string(&file).expect("a file");
    let saved: Value = serde_json::from_str(&text).expect("JSON");
    says(&saved["disagreement"]["probes"], "differs");
    // What the prediction was made of.
    let again = format!(
        "trace --snapshot {} {} 10.0.1.3:8080",
        file.display(),
        one.end()
    );
    one.machine
        .plugin(&words(&again))
        .exits(0)
        .says(&["delivered"]);
}

#[test]
fn what_can_not_be_probed_is_refused() {
    let ([one, _other], _bridge) = bridged();
    let line = |rest: &str| words(&format!("trace --local {} 10.0.1.3:8080 {rest}", one.end()));
    one.machine
        .plugin(&line("--probe --protocol sctp"))
        .exits(2)
        .complains(&["sctp can't be probed"]);
    for rest in [
        "--count 3",
        "--probe --count 0",
        "--data x",
        "--probe --snapshot f",
    ] {
        one.machine.plugin(&line(rest)).exits(2);
    }
    one.machine
        .plugin(&line("--probe --save-disagreement /nonexistent/f"))
        .exits(2)
        .complains(&["there is no directory"]);
}
