//! `trace --mtu`: the largest packet each way is found, by prediction and by packets; what limits it, and whether
//! senders are told. Needs root.
#![allow(missing_docs, reason = "tests")]

mod programs;

use std::time::Duration;

use netpath_lab::{Overlay, Proxy, Spec};
use programs::{Lab, Machine, Netns, tc, until, words};
use serde_json::{Value, json};

/// Two namespaces and a router between them, whose device to the other one takes 1,400 bytes.
fn routed() -> [Netns; 3] {
    let machine = Machine::up();
    let router = Netns::add(&machine, "router");
    router.tool("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
    let [one, other] = [1, 2].map(|n| {
        let own = Netns::add(&machine, &format!("end{n}"));
        let name = &own.name;
        router.ip(&format!(
            "link add port{n} type veth peer name eth0 netns {name}"
        ));
        router.ip(&format!("addr add 10.9.{n}.1/24 dev port{n}"));
        router.ip(&format!("addr add fd09:{n}::1/64 dev port{n} nodad"));
        router.ip(&format!("link set port{n} up"));
        own.ip(&format!("addr add 10.9.{n}.2/24 dev eth0"));
        own.ip(&format!("addr add fd09:{n}::2/64 dev eth0 nodad"));
        own.ip("link set eth0 up");
        own.ip(&format!("route add default via 10.9.{n}.1"));
        own.ip(&format!("-6 route add default via fd09:{n}::1"));
        own
    });
    router.ip("link set port2 mtu 1400");
    // Until then it asks for no neighbour on behalf of others.
    until("addresses are usable", Duration::from_secs(20), || {
        let tentative = |ns: &Netns| !ns.ip("-6 addr show tentative").trim().is_empty();
        ![&one, &router, &other].into_iter().any(tentative)
    });
    [one, router, other]
}

/// The whole answer, with the exit code.
#[track_caller]
fn answered(from: &Netns, to: &str, code: i32) -> Value {
    let line = format!("trace --local {} {to} --mtu -o json", from.end());
    from.machine.plugin(&words(&line)).exits(code).json()
}

/// Both directions of it.
#[track_caller]
fn directions(answer: &Value) -> [Value; 2] {
    let mut all = answer["mtu"].as_array().expect("a list").iter().cloned();
    [(); 2].map(|()| all.next().unwrap_or_default())
}

/// Both directions, with the exit code.
#[track_caller]
fn measured(from: &Netns, to: &str, code: i32) -> [Value; 2] {
    directions(&answered(from, to, code))
}

/// What a direction comes to: result, predicted and largest size, and whether it is a black hole.
#[track_caller]
fn judged(one: &Value, wanted: &Value) {
    let fields = ["result", "predicted", "largest", "black_hole"];
    let own: Vec<&Value> = fields.iter().map(|field| &one[field]).collect();
    assert_eq!(json!(own), *wanted, "{one:#}");
}

#[test]
fn the_smallest_device_is_found_and_named() {
    let [one, router, other] = routed();
    other.ip("link set eth0 mtu 1400");
    for to in ["10.9.2.2", "fd09:2::2"] {
        let [there, back] = measured(&one, to, 0);
        judged(&there, &json!(["proven", 1400, 1400, false]));
        judged(&back, &json!(["proven", 1400, 1400, false]));
        let limit = there["limit"].as_str().unwrap_or_default();
        assert!(limit.contains("port2 mtu 1400"), "{limit}");
        let fate = there["tried"][1]["fate"].as_str().unwrap_or_default();
        assert!(fate.contains("too large, says"), "{there:#}");
    }
    // No answer taught the kernel anything.
    let learned = one.ip("route show cache");
    assert_eq!(learned.trim(), "");
    drop(router);
}

#[test]
fn a_router_that_tells_nobody_is_a_black_hole() {
    let [one, router, _other] = routed();
    router.tool("nft add table ip t");
    router.tool("nft add chain ip t out { type filter hook output priority 0 ; }");
    router.tool("nft add rule ip t out icmp type destination-unreachable drop");
    let said = answered(&one, "10.9.2.2", 1);
    let [there, back] = directions(&said);
    judged(&there, &json!(["proven", 1400, 1400, true]));
    judged(&back, &json!(["proven", 1404, 1404, true]));
    let fate = there["tried"][1]["fate"].as_str().unwrap_or_default();
    assert!(fate.contains("lost behind port1"), "{fate}");
    // Both ways end there.
    assert_eq!(codes(&said), ["NP0163"], "{said:#}");
    let line = format!("trace --local {} 10.9.2.2 --mtu", one.end());
    let said = one.machine.plugin(&words(&line));
    said.exits(1).says(&[
        "← the least",
        "NP0163 error: larger packets are lost, and their sender is not told",
        "where     vm · netns router",
    ]);
}

#[test]
fn an_answer_that_is_cut_is_one() {
    let [one, router, other] = routed();
    router.ip("link set port2 mtu 1500");
    other.ip("link set eth0 mtu 1400");
    // The other end takes more than it sends in one piece, and TCP knows what it takes.
    let [there, back] = measured(&one, "10.9.2.2", 0);
    judged(&there, &json!(["proven", 1404, 1404, false]));
    judged(&back, &json!(["proven", 1400, 1400, false]));
}

#[test]
fn a_receiving_end_that_is_too_small_is_found() {
    // The router's end of the second pair takes 1,400 bytes and a VLAN tag's room, and tells nobody.
    let [one, _router, _other] = routed();
    let [_there, back] = measured(&one, "10.9.2.2", 1);
    judged(&back, &json!(["proven", 1404, 1404, true]));
}

#[test]
fn datagrams_are_as_large_as_their_sender_has_it() {
    let [one, router, other] = routed();
    router.ip("link set port2 mtu 1500");
    other.ip("link set eth0 mtu 1400");
    let _listener = other.listen("--udp 9000");
    let [there, back] = measured(&one, "10.9.2.2:9000 --protocol udp", 1);
    judged(&there, &json!(["proven", 1404, 1404, true]));
    judged(&back, &json!(["proven", 1400, 1400, false]));
}

#[test]
fn what_is_not_predicted_is_measured() {
    let [one, _router, other] = routed();
    // `ldh [12]; jne #0x800, pass; ldh [16]; jle #1300, pass; ret 2 (TC_ACT_SHOT); pass: ret 0`
    let program = "6,40 0 0 12,21 0 3 2048,40 0 0 16,37 0 1 1300,6 0 0 2,6 0 0 0,";
    other.tool("tc qdisc add dev eth0 clsact");
    tc::add(&other, "eth0", "ingress", program);
    let [there, none] = measured(&one, "10.9.2.2", 1);
    judged(&there, &json!(["measured", null, 1300, true]));
    assert_eq!(none, Value::Null);
}

#[test]
fn a_limit_that_is_no_mtu_is_found_too() {
    let [one, router, _other] = routed();
    // A token bucket drops what is longer than its burst, Ethernet's 14 bytes included.
    router.tool("tc qdisc add dev port2 root tbf rate 10mbit burst 1200 latency 50ms");
    let [there, _back] = measured(&one, "10.9.2.2", 1);
    judged(&there, &json!(["proven", 1186, 1186, true]));
    let limit = there["limit"].as_str().unwrap_or_default();
    assert!(limit.contains("qdisc tbf"), "{limit}");
}

#[test]
fn tunnels_take_their_share() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    let said = lab.run("trace web-0.shop 10.244.2.4:8080 --mtu -o json");
    let answer = said.exits(0).json();
    for one in answer["mtu"].as_array().expect("a list") {
        judged(one, &json!(["proven", 1450, 1450, false]));
        let devices = one["devices"].as_array().expect("a list").iter();
        let mut shares = devices.filter(|one| one["around"] == 50 && one["room"] == 1450);
        assert!(shares.next().is_some(), "{one:#}");
    }
    lab.is_clean();
}

/// What `trace --probe` of an echo of 1,450 bytes, which do not fit, says.
#[track_caller]
fn refused(from: &Netns, to: &str) -> Value {
    let line = format!(
        "trace --local {} {to} --protocol icmp --size 1450 --probe -o json",
        from.end()
    );
    from.machine.plugin(&words(&line)).exits(1).json()
}

fn codes(said: &Value) -> Vec<&str> {
    let findings = said["findings"].as_array().expect("findings");
    findings
        .iter()
        .filter_map(|one| one["code"].as_str())
        .collect()
}

#[test]
fn a_refusal_that_its_sender_does_not_hear_of_is_told() {
    let [one, router, other] = routed();
    for to in ["10.9.2.2", "fd09:2::2"] {
        let said = refused(&one, to);
        assert_eq!(codes(&said), ["NP0107"], "{said:#}");
        assert_eq!(said["probes"][0]["result"], "confirmed", "{said:#}");
    }
    router.tool("iptables -A OUTPUT -p icmp --icmp-type fragmentation-needed -j DROP");
    router.tool("ip6tables -A OUTPUT -p icmpv6 --icmpv6-type packet-too-big -j DROP");
    // What was told is remembered.
    for ns in [&one, &other] {
        ns.ip("route flush cache");
        ns.ip("-6 route flush cache");
    }
    for (to, kind) in [
        ("10.9.2.2", "--icmp-type 3/4"),
        ("fd09:2::2", "--icmpv6-type 2"),
    ] {
        let said = refused(&one, to);
        assert_eq!(codes(&said), ["NP0107", "NP0162"], "{said:#}");
        assert_eq!(said["verdict"], "rejected", "{said:#}");
        let evidence = said["findings"][1]["evidence"].to_string();
        assert!(evidence.contains(kind), "{evidence}");
        let probe = &said["probes"][0];
        assert_eq!(probe["result"], "confirmed", "{probe:#}");
        let answer = probe["answer"].as_str().expect("words");
        assert!(answer.contains("no answer"), "{answer}");
    }
    // Lost at the sender itself.
    router.tool("iptables -F OUTPUT");
    one.tool("iptables -A INPUT -p icmp -m conntrack --ctstate RELATED -j DROP");
    let said = refused(&one, "10.9.2.2");
    assert_eq!(codes(&said), ["NP0107", "NP0162"], "{said:#}");
    assert_eq!(said["probes"][0]["result"], "confirmed", "{said:#}");
}
