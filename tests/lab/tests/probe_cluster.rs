//! `trace --probe` across the nodes of laboratories: for each kind of flow, what is predicted is seen at every device;
//! with faults, the probe stops where it was predicted. Ended at any moment, it leaves nothing. Needs root.
#![allow(missing_docs, reason = "tests")]

mod programs;

use std::process::Stdio;
use std::time::Duration;

use netpath_lab::{Fault, Overlay, Proxy, Spec};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use programs::{Lab, words};
use serde_json::Value;

/// Kinds of flows: what is traced, and whether it is answered.
const FLOWS: &[(&str, bool)] = &[
    ("web-0.shop 10.244.1.9:8080", true),
    ("web-0.shop fd00:10:244:1::9 --protocol icmp", true),
    ("web-0.shop 10.244.2.4:8080", true),
    ("web-0.shop [fd00:10:244:2::4]:8080", true),
    ("web-0.shop 10.244.2.4:8053 --protocol udp", true),
    ("web-0.shop [fd00:10:244:2::4]:8053 --protocol udp", true),
    ("web-0.shop 10.244.2.4 --protocol icmp", true),
    ("web-0.shop 10.96.14.3:80", true),
    ("web-0.shop [fd00:10:96::e03]:80", true),
    ("web-0.shop 10.96.14.3:53 --protocol udp", true),
    ("web-0.shop 10.96.14.4:80", true),
    ("web-0.shop [fd00:10:96::e04]:80", true),
    ("web-0.shop 10.88.0.11:30080", true),
    ("web-0.shop 10.88.0.12:30080", true),
    ("web-0.shop [fd00:88::12]:30080", true),
    ("web-0.shop 198.51.100.1:80", true),
    ("web-0.shop [2001:db8:51::1]:80", true),
    ("web-0.shop 198.51.100.1 --protocol icmp", true),
    ("node/node-1 10.244.2.4:8080", true),
    ("node/node-1 10.96.14.3:80", true),
    ("node/node-1 10.88.0.11:30080", true),
    ("web-0.shop 10.244.2.4:81", false),
    ("web-0.shop 10.96.14.5:80", false),
];

/// What is not as predicted, in words.
fn wrong(flow: &str, answered: Option<bool>, answer: &Value) -> Vec<String> {
    let probe = &answer["probes"][0];
    let mut wrong = Vec::new();
    // Drops of others may go untold, which says nothing of the way.
    let of_way = |one: &Value| !one.as_str().unwrap_or_default().contains("went untold");
    let unwatched = probe["unwatched"].as_array();
    let unwatched = unwatched.is_none_or(|all| all.iter().any(of_way));
    if probe["result"] != "confirmed" || unwatched {
        wrong.push(format!("{flow}: {probe:#}"));
    }
    if answered.is_some_and(|answered| probe["answered"] != answered) {
        wrong.push(format!("{flow}: {}", probe["answer"]));
    }
    let devices = probe["devices"].as_array().into_iter().flatten();
    let confirmed = devices.filter(|one| one["met"] == "confirmed").count();
    if confirmed == 0 {
        wrong.push(format!("{flow}: confirmed nowhere: {probe:#}"));
    }
    wrong
}

fn all_are_confirmed(overlay: Overlay, proxy: Proxy) {
    let lab = Lab::up(Spec::new(overlay, proxy));
    let mut all = Vec::new();
    for (flow, answered) in FLOWS {
        // In emulation each takes seconds, and IPVS has a part in those to Services only.
        let service = ["10.96.", "fd00:10:96:", ":30080"];
        if proxy == Proxy::Ipvs && !service.iter().any(|part| flow.contains(part)) {
            continue;
        }
        let said = lab.run(&format!("trace {flow} --probe -o json"));
        if !matches!(said.code, Some(0 | 1)) || said.err.contains("panicked") {
            all.push(format!("{flow}: {said:?}"));
            continue;
        }
        all.extend(wrong(flow, Some(*answered), &said.json()));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
    lab.is_clean();
}

#[test]
fn flows_by_vxlan_and_iptables_are_confirmed() {
    all_are_confirmed(Overlay::Vxlan, Proxy::IptablesNft);
}

#[test]
fn flows_by_routes_and_nftables_are_confirmed() {
    all_are_confirmed(Overlay::Routed, Proxy::Nftables);
}

/// In a virtual machine, by tests/vm/check: many kernels have no IPVS.
#[test]
#[ignore = "needs a kernel with IPVS"]
fn flows_by_vxlan_and_ipvs_are_confirmed() {
    all_are_confirmed(Overlay::Vxlan, Proxy::Ipvs);
}

#[test]
fn with_each_fault_the_probe_stops_where_it_was_predicted() {
    let mut lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    let mut all = Vec::new();
    // The kernel's reason, where it has one for that alone.
    for (fault, flow, reason) in [
        (
            Fault::ForwardDrop,
            "web-0.shop 10.244.2.4:8080",
            "NETFILTER_DROP",
        ),
        (Fault::MissingRoute, "web-0.shop 10.244.2.4:8080", ""),
        (Fault::VethDown, "pod-a svc-b", ""),
        (Fault::NoEndpoints, "web-0.shop svc/api.shop:http", ""),
        (Fault::StaleFdb, "web-0.shop 10.244.2.4:8080", ""),
        (Fault::StaleNeigh, "web-0.shop 10.244.2.4:8080", ""),
        (Fault::RpFilter, "web-0.shop 10.244.2.4:8080", "IP_RPFILTER"),
        (Fault::IpForwardOff, "web-0.shop 10.244.2.4:8080", ""),
        (Fault::ListenerGone, "pod-a 10.244.2.12:8080", "NO_SOCKET"),
        (Fault::HairpinOff, "web-0.shop 10.96.14.4:80", ""),
    ] {
        lab.cluster.fault_on(fault, None).expect("a fault");
        let said = lab.run(&format!("trace {flow} --probe -o json"));
        let name = format!("{fault}, {flow}");
        let dropped = said.json()["probes"][0]["dropped"].clone();
        println!("{name}: {dropped}");
        let reasons = dropped.as_array().into_iter().flatten();
        if !reason.is_empty() && !reasons.clone().any(|one| one["reason"] == reason) {
            all.push(format!("{name}: {dropped:#}"));
        }
        if !matches!(said.code, Some(0 | 1 | 3)) || said.err.contains("panicked") {
            all.push(format!("{name}: {said:?}"));
        } else if fault == Fault::StaleFdb {
            // Whether a host outside has the wrong address is not known before: it is predicted to be sent there. The
            // probe makes the node ask, and what is read again knows that nobody answers.
            let probe = &said.json()["probes"][0];
            let last = &probe["last_seen"]["device"];
            if probe["result"] != "confirmed" || last != "flannel.1" {
                all.push(format!("{name}: {probe:#}"));
            }
        } else {
            all.extend(wrong(&name, None, &said.json()));
        }
        lab.cluster.fault_off(fault, None).expect("it is mended");
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
    lab.is_clean();
}

#[test]
fn ended_while_it_probes_it_leaves_nothing() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let mut command = lab.plugin();
        let line = "trace web-0.shop 10.244.2.4:8080 --probe --count 50 -v";
        command
            .args(words(line))
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("the plugin starts");
        // It has packet sockets while it probes.
        let held = || {
            let node = lab.cluster.place("node-1").expect("a place");
            let list = node.run(["cat", "/proc/net/packet"]);
            list.expect("a list").lines().count() > 1
        };
        programs::until("a watch", Duration::from_secs(20), held);
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a number"));
        kill(pid, signal).expect("a signal is sent");
        let status = child.wait().expect("it ends");
        if signal == Signal::SIGKILL {
            // Nobody is there to clean up, so that `cleanup` does.
            lab.run("cleanup").exits(0);
        } else {
            assert!(matches!(status.code(), Some(130 | 143)), "{status:?}");
        }
        lab.is_clean();
        programs::until("the end of the watch", Duration::from_secs(5), || !held());
    }
}

#[test]
fn the_largest_packets_are_proven_to_every_end() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    let results = |line: &str, code: i32, count: usize| -> Vec<(String, String, Option<u64>)> {
        let said = lab.run(&format!("trace {line} --mtu -o json"));
        let said = said.exits(code);
        let mtu = said.json()["mtu"].clone();
        let mtu = mtu.as_array().expect("a list");
        assert_eq!(mtu.len(), count, "{line}: {mtu:#?}");
        let word = |one: &Value, field: &str| one[field].as_str().unwrap_or_default().to_owned();
        mtu.iter()
            .map(|one| {
                (
                    word(one, "to"),
                    word(one, "result"),
                    one["largest"].as_u64(),
                )
            })
            .collect()
    };
    let all_proven = |line: &str, count| {
        let all = results(line, 0, count);
        assert!(
            all.iter().all(|(_, result, _)| result == "proven"),
            "{line}: {all:?}"
        );
    };
    // Both endpoints, each way.
    all_proven("pod-a svc-b", 4);
    // What a node sends to another's pods is masqueraded, which gives the echo another id.
    all_proven("pod-a node/node-2", 2);
    all_proven("pod-a node/node-1", 2);
    let pod = lab.cluster.pod_state("default/pod-b-1").expect("a pod");
    let veth = pod.host_veth.clone().expect("a veth");
    let node = lab.cluster.place("node-1").expect("a node");
    node.run(["ip", "link", "set", &veth, "mtu", "1000"])
        .expect("it is set");
    // The bridge's port takes no more, and tells nobody: br_netfilter leaves no room for a tag.
    let all = results("pod-a svc-b", 1, 4);
    let (small, other): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|(to, _, largest)| to.contains("pod-b-1") && *largest == Some(1_000));
    assert_eq!(small.len(), 1, "{small:?}, {other:?}");
    let proven = other.iter().filter(|(_, result, _)| result == "proven");
    assert!(proven.count() >= 2, "{small:?}, {other:?}");
    lab.is_clean();
}

#[test]
fn a_connection_has_no_size_to_probe() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    let said = lab.run("trace pod-a svc-b --protocol tcp --probe --size 900");
    let said = said.exits(2);
    assert!(said.err.contains("leave out --size"), "{said:?}");
    let said = lab.run("trace pod-a svc-b --protocol tcp --probe --data hello");
    let said = said.exits(2);
    assert!(said.err.contains("nothing is sent by it"), "{said:?}");
    lab.is_clean();
}

/// What no rule masquerades leaves with the pod's own address, which nobody outside has a route to.
#[test]
fn a_pods_own_address_that_nobody_outside_answers_is_named() {
    let lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    let flow = "trace web-0.shop 198.51.100.1:80 --probe";
    let node = lab.cluster.place("node-1").expect("a node");
    let rule = words("iptables -t nat -I POSTROUTING -s 10.244.1.7 -j ACCEPT");
    node.run(&rule).expect("a rule");
    let said = lab.run(flow).exits(3);
    said.says(&[
        "leaves the cluster, as the probe did, and nobody answered",
        "NP0164 warning: 198.51.100.1:80 has no answer to 10.244.1.7, the own address of pod shop/web-0",
    ]);
    lab.is_clean();
}
