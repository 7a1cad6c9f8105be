//! The command line on a laboratory with its API server: every kind of end, every output, and every
//! fact that the answers name. Needs root.
#![allow(missing_docs, reason = "tests")]

mod programs;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{SocketAddr, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use netpath_lab::api::{Fail, Misbehave, Rule};
use netpath_lab::{Fault, Overlay, Proxy, Spec};
use programs::{Lab, Said, steady, words};
use serde_json::Value;

fn lab(overlay: Overlay, proxy: Proxy) -> Lab {
    Lab::up(Spec::new(overlay, proxy))
}

#[track_caller]
fn list<'a>(value: &'a Value, field: &str) -> &'a [Value] {
    let found = value[field].as_array();
    found.unwrap_or_else(|| panic!("{field} is a list in {value}"))
}

#[track_caller]
fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    let found = value[field].as_str();
    found.unwrap_or_else(|| panic!("{field} is a text in {value}"))
}

fn has(value: &Value, fields: &[&str]) {
    for field in fields {
        assert!(value.get(field).is_some(), "{field} is missing in {value}");
    }
}

fn check_disposition(end: &Value) {
    has(end, &["kind", "reason", "node", "netns", "step"]);
    let kinds = [
        "delivered",
        "leaves-cluster",
        "dropped",
        "rejected",
        "loop",
        "inconclusive",
    ];
    assert!(kinds.contains(&text(end, "kind")), "{end}");
}

fn check_hops(hops: &[Value]) {
    assert!(!hops.is_empty());
    for hop in hops {
        has(hop, &["node", "netns", "in", "out", "packet", "steps"]);
        has(
            &hop["packet"],
            &["src", "dst", "protocol", "sport", "dport", "ttl", "length"],
        );
        for step in list(hop, "steps") {
            has(step, &["kind", "result", "evidence"]);
            assert!(step["evidence"].is_object(), "{step}");
        }
    }
}

/// The shape that design and docs promise, and what must hold in every answer.
#[track_caller]
fn check_trace(answer: &Value) {
    assert_eq!(answer["schema"], "netpath.trace/v1");
    has(
        answer,
        &["flow", "verdict", "branches", "findings", "unknown"],
    );
    has(
        &answer["flow"],
        &["source", "destination", "protocol", "port"],
    );
    assert!(
        answer["unknown"]
            .as_array()
            .unwrap()
            .iter()
            .all(Value::is_string)
    );
    let mut sum = 0.0;
    let mut verdicts = BTreeSet::new();
    for branch in list(answer, "branches") {
        has(branch, &["probability", "disposition", "hops", "reply"]);
        sum += branch["probability"].as_f64().unwrap();
        verdicts.insert(text(branch, "verdict"));
        check_disposition(&branch["disposition"]);
        check_hops(list(branch, "hops"));
        if !branch["reply"].is_null() {
            has(&branch["reply"], &["disposition", "hops"]);
            check_disposition(&branch["reply"]["disposition"]);
            check_hops(list(&branch["reply"], "hops"));
        }
        // A branch whose reply cannot come back is not delivered.
        let end = text(&branch["disposition"], "kind");
        if end == "delivered" {
            let back = text(&branch["reply"]["disposition"], "kind");
            assert_eq!(
                text(branch, "verdict") == "delivered",
                back == "delivered",
                "{branch}"
            );
        }
    }
    assert!((sum - 1.0).abs() < 0.001, "probabilities sum to {sum}");
    let whole = text(answer, "verdict");
    match verdicts.iter().collect::<Vec<_>>().as_slice() {
        [only] => assert_eq!(**only, whole),
        _ => assert_eq!(whole, "mixed"),
    }
    for finding in list(answer, "findings") {
        has(
            finding,
            &["code", "severity", "title", "where", "evidence", "mend"],
        );
        assert!(!text(finding, "mend").is_empty() && !list(finding, "evidence").is_empty());
    }
}

/// Every name that a branch to this pod must hold, taken from the laboratory and its kernels.
fn names_on_the_way(lab: &Lab, pod: &str) -> Vec<String> {
    let state = lab.cluster.pod_state(pod).unwrap();
    vec![state.node.clone(), state.host_veth.clone().unwrap()]
}

#[test]
fn trace_pod_to_service() {
    for (overlay, proxy) in [
        (Overlay::Vxlan, Proxy::IptablesNft),
        (Overlay::Routed, Proxy::IptablesLegacy),
        (Overlay::Vxlan, Proxy::Nftables),
    ] {
        let lab = lab(overlay, proxy);
        let said = lab.run("trace pod-a svc-b").exits(0);
        let mut names = names_on_the_way(&lab, "default/pod-a");
        for pod in ["default/pod-b-1", "default/pod-b-2"] {
            names.extend(names_on_the_way(&lab, pod));
        }
        let mut parts: Vec<&str> = names.iter().map(String::as_str).collect();
        parts.extend([
            "cni0",
            "50%",
            "10.96.20.2:80",
            "10.244.1.12:8080",
            "10.244.2.12:8080",
            "pod default/pod-b-1",
            "pod default/pod-b-2",
            "default/svc-b",
            "dnat",
            "port ",
        ]);
        let first = said.out.lines().next().unwrap().to_owned();
        assert!(
            first.contains("delivered") && first.contains("default/svc-b"),
            "{first}"
        );
        let said = said.says(&parts);
        // Lines stay readable and free of colour on a pipe.
        assert!(!said.out.contains('\u{1b}'));
        assert!(
            !said.err.contains("warning") && !said.err.contains("error"),
            "{}",
            said.err
        );

        let answer = lab.run("trace pod-a svc-b -o json").exits(0).json();
        check_trace(&answer);
        assert_eq!(answer["verdict"], "delivered");
        assert_eq!(answer["flow"]["protocol"], "tcp");
        assert_eq!(answer["flow"]["port"], 80);
        assert!(
            answer["stats"]["round_trips"].as_u64().unwrap() <= 3,
            "{}",
            answer["stats"]
        );
        let branches = list(&answer, "branches");
        assert_eq!(branches.len(), 2);
        for (branch, pod) in branches.iter().zip(["default/pod-b-1", "default/pod-b-2"]) {
            assert_eq!(branch["probability"], 0.5);
            let end = &branch["disposition"];
            let state = lab.cluster.pod_state(pod).unwrap();
            assert_eq!(end["node"], *state.node);
            assert_eq!(end["netns"], format!("pod {pod}"));
            let hops = list(branch, "hops");
            let devices: Vec<&Value> = hops.iter().map(|hop| &hop["in"]).collect();
            let source = lab.cluster.pod_state("default/pod-a").unwrap();
            assert_eq!(*devices[1], **source.host_veth.as_ref().unwrap());
            assert_eq!(**devices.last().unwrap(), "eth0");
            let last = &hops[hops.len() - 2];
            assert_eq!(last["out"], **state.host_veth.as_ref().unwrap());
            // The rule that translates: with its chain and handle, or its place in the table.
            let nat = hops.iter().flat_map(|hop| list(hop, "steps"));
            let nat = { nat }.find(|step| step["kind"] == "nat").unwrap();
            let target = format!("dnat to {}:8080", state.ips[0]);
            assert!(text(nat, "result").contains(&target), "{nat}");
            let rules = list(&nat["evidence"], "objects");
            assert!(!rules.is_empty());
            let mut rules = rules
                .iter()
                .filter(|object| object["object"] == "netfilter-rule");
            assert!(rules.all(|rule| rule["handle"].is_number()), "{nat}");
        }
        // The kernel agrees: both backends answer, and no other.
        let place = lab.cluster.pod("default/pod-a").unwrap();
        let to: SocketAddr = "10.96.20.2:80".parse().unwrap();
        let mut seen = BTreeSet::new();
        for _ in 0..40 {
            let outcome = place.tcp_exchange(to, Duration::from_secs(2)).unwrap();
            seen.insert(outcome.pod().expect("a pod answers").to_owned());
        }
        assert_eq!(seen, ["pod-b-1", "pod-b-2"].map(str::to_owned).into());
        lab.is_clean();
    }
}

#[test]
fn ends_of_every_kind() {
    let lab = lab(Overlay::Vxlan, Proxy::IptablesNft);
    // What was typed; kind and name of the destination; branches; part of the text.
    for (line, code, parts) in [
        ("pod/pod-a svc/svc-b", 0, "both branches"),
        ("pod-a.default svc-b.default:80", 0, "both branches"),
        ("web-0.shop svc/api.shop:http", 0, "all 3 branches"),
        ("web-0 api:dns -n shop", 0, "10.96.14.3:53/udp"),
        (
            "web-0 api:53 -n shop --protocol udp",
            0,
            "10.96.14.3:53/udp",
        ),
        ("deploy/api.shop sts/web.shop:8080", 0, "one of 3 ready"),
        ("sts/web.shop deploy/api.shop:http", 0, "sts/web: pod"),
        ("ds/node-exporter.kube-system svc-b", 0, "both branches"),
        ("rs/api-5d4c7b9f6d.shop svc-b", 0, "both branches"),
        ("node/node-1 svc-b", 0, "both branches"),
        (
            "node/node-2 10.244.1.9:8080",
            0,
            "pod shop/api-5d4c7b9f6d-x2k7p",
        ),
        ("pod-a 10.96.14.3:80", 0, "svc shop/api"),
        ("10.244.1.11 svc-b", 0, "pod default/pod-a"),
        ("pod-a [fd00:10:96::e03]:80", 0, "all 3 branches"),
        ("pod-a svc-b -6", 0, "fd00:10:96::1402"),
        ("pod-a svc-b -4", 0, "10.96.20.2"),
        (
            "pod-a http://api.shop.svc.cluster.local/path?q=1",
            0,
            "svc shop/api",
        ),
        ("pod-a http://api.shop", 0, "svc shop/api"),
        ("pod-a http://10.244.2.4:8080/", 0, "k9wqz"),
        ("pod-a api-headless.shop:8080", 0, "(headless)"),
        (
            "pod-a node/node-2:30080",
            0,
            "node port of Service shop/api",
        ),
        ("pod-a 10.88.0.12:30080", 0, "all 3 branches"),
        ("node/node-1 node/node-2:30080", 0, "all 3 branches"),
        (
            "pod-a node-exporter-r8vnt.kube-system:9100",
            0,
            "10.88.0.12:9100",
        ),
        (
            "node-exporter-4xq9d.kube-system pod-b-2:8080",
            0,
            "pod default/pod-b-2",
        ),
        ("pod-a node/node-2", 0, "icmp echo"),
        ("pod-a pod-a:8080", 0, "delivered"),
        ("pod-a 127.0.0.1:8080", 0, "delivered"),
        ("web-0.shop web.shop", 0, "both branches"),
        ("pod-a 198.51.100.1:80", 0, "leaves the cluster"),
        ("pod-a pod-b-2:8053 --protocol udp", 0, "8053/udp"),
        ("pod-a pod-b-2 --protocol icmp", 0, "icmp echo"),
        ("pod-a pod-b-2:81", 1, "nothing listens"),
        ("pod-a empty.shop", 1, "has no endpoints"),
        (
            "pod-a svc-b --protocol icmp",
            3,
            "translates TCP, UDP and SCTP only",
        ),
    ] {
        let said = lab.run(&format!("trace {line}"));
        let shown = format!("{line}\n{}{}", said.out, said.err);
        assert_eq!(said.code, Some(code), "{shown}");
        assert!(said.out.contains(parts), "{parts:?} is not in {shown}");
        let answer = lab.run(&format!("trace {line} -o json")).exits(code).json();
        check_trace(&answer);
    }
    lab.is_clean();
}

#[test]
fn ends_that_cannot_be() {
    let lab = lab(Overlay::Routed, Proxy::Nftables);
    for (line, parts) in [
        (
            "pod-aa svc-b",
            vec![
                "\"pod-aa\": not found in namespace default",
                "trace pod/pod-a svc-b",
            ],
        ),
        ("pod-a svc-c", vec!["\"svc-c\": not found", "svc/svc-b"]),
        (
            "pod-a svc/svc-c",
            vec!["Service \"svc-c\": not found", "svc/svc-b"],
        ),
        (
            "deploy/apx.shop svc-b",
            vec![
                "Deployment \"apx\": not found in namespace shop",
                "deploy/api.shop",
            ],
        ),
        (
            "node/node-9 svc-b",
            vec!["node \"node-9\": not found", "node/node-1"],
        ),
        ("pod-a api", vec!["api", "not found in namespace default"]),
        (
            "pod-a api.shop",
            vec!["2 ports; type one of", "svc/api.shop:80", "svc/api.shop:53"],
        ),
        (
            "pod-a api.shop:99",
            vec!["has no port \"99\"", "svc/api.shop:80"],
        ),
        ("pod-a api.shop:htt", vec!["has no port \"htt\"", "# http"]),
        (
            "pod-a pod/web-0.shop",
            vec!["2 ports; type one of", "--protocol udp"],
        ),
        ("pod-a ext.shop", vec!["CNAME for example.com", ":PORT"]),
        (
            "cache-0.shop svc-b",
            vec![
                "not running (phase Pending, Unschedulable",
                "kubectl describe pod -n shop cache-0",
            ],
        ),
        ("pod-a cache-0.shop:80", vec!["not running (phase Pending"]),
        (
            "migrate-n4c8t.shop svc-b",
            vec!["not running (phase Succeeded"],
        ),
        (
            "pod-a pod/migrate-n4c8t.shop:8080",
            vec!["not running (phase Succeeded"],
        ),
        (
            "198.51.100.1 svc-b",
            vec!["packets from outside the cluster are not followed"],
        ),
        (
            "nosuch/thing svc-b",
            vec![
                "there is no namespace \"nosuch\", nor such a type",
                "deploy",
            ],
        ),
        ("pod-a 10.96.14.3:70000", vec!["out of range"]),
        ("pod-a [fd00::1", vec!["[fd00::1"]),
        ("pod-a svc-b:", vec!["svc-b:"]),
        ("netns/x svc-b", vec!["--local"]),
        ("pod-a svc-b --source-port 0", vec!["--source-port"]),
        ("pod-a svc-b --size 5", vec!["--size"]),
        ("pod-a", vec!["<DST>"]),
        ("pod-a svc-b -o xml", vec!["possible values"]),
        ("pod-a svc-b -n nowhere", vec!["nowhere"]),
    ] {
        let said = lab.run(&format!("trace {line}"));
        let shown = format!("{line}\n{}{}", said.out, said.err);
        assert_eq!(said.code, Some(2), "{shown}");
        for part in parts {
            assert!(said.err.contains(part), "{part:?} is not in {shown}");
        }
        assert_eq!(said.out, "", "{line}");
        assert!(!said.err.contains("panicked"), "{shown}");
    }
    // Where to connect.
    let mut command = programs::plugin();
    command.args([
        "trace",
        "pod-a",
        "svc-b",
        "--kubeconfig",
        "/nonexistent/kubeconfig",
    ]);
    Said::of(command.output().unwrap())
        .exits(2)
        .complains(&["/nonexistent/kubeconfig"]);
    let garbage = lab.file("garbage");
    std::fs::write(&garbage, "this: [is not\n a kubeconfig").unwrap();
    let mut command = programs::plugin();
    command.args([
        "trace",
        "pod-a",
        "svc-b",
        "--kubeconfig",
        garbage.to_str().unwrap(),
    ]);
    Said::of(command.output().unwrap())
        .exits(2)
        .complains(&[garbage.to_str().unwrap()]);
    lab.run("trace pod-a svc-b --context nosuch")
        .exits(2)
        .complains(&["nosuch"]);
    // An ambiguous name: a Service and a pod.
    lab.is_clean();
}

#[test]
fn formats_agree() {
    let lab = lab(Overlay::Routed, Proxy::IptablesNft);
    let json = steady(lab.run("trace pod-a svc-b -o json").exits(0).json());
    let yaml = lab.run("trace pod-a svc-b -o yaml").exits(0).out;
    for part in [
        "schema: netpath.trace/v1",
        "verdict: delivered",
        "probability: 0.5",
    ] {
        assert!(yaml.contains(part), "{part} is not in\n{yaml}");
    }
    let wide = lab.run("trace pod-a svc-b -o wide").exits(0).out;
    let plain = lab.run("trace pod-a svc-b").exits(0).out;
    assert!(wide.len() > plain.len());
    // Every rule's handle and every route that the data names stands in the wide text.
    let mut handles = BTreeSet::new();
    for branch in list(&json, "branches") {
        for step in list(branch, "hops")
            .iter()
            .flat_map(|hop| list(hop, "steps"))
        {
            for object in list(&step["evidence"], "objects") {
                if let Some(handle) = object["handle"].as_u64() {
                    handles.insert(format!("handle {handle}"));
                }
            }
        }
    }
    assert!(handles.len() > 4, "{handles:?}");
    for handle in handles {
        assert!(wide.contains(&handle), "{handle} is not in\n{wide}");
    }
    let quiet = lab.run("trace pod-a svc-b --no-reply").exits(0).out;
    assert!(!quiet.contains("reply ✓"), "{quiet}");
    lab.run("trace pod-a svc-b --color always")
        .exits(0)
        .says(&["\u{1b}["]);
    lab.run("version").exits(0).says(&["kubectl-netpath"]);
    let verbose = lab.run("trace pod-a svc-b -v").exits(0);
    assert!(verbose.err.contains("round"), "{}", verbose.err);
    lab.is_clean();
}

#[test]
fn faults_name_place_object_and_code() {
    let mut lab = lab(Overlay::Vxlan, Proxy::IptablesNft);
    for (fault, line, parts) in [
        (
            Fault::ForwardDrop,
            "trace web-0.shop 10.244.2.4:8080",
            vec!["NP0101", "node-2", "FORWARD"],
        ),
        (
            Fault::ListenerGone,
            "trace pod-a svc-b",
            vec!["NP0121", "50%", "✗", "✓", "pod default/pod-b-2"],
        ),
        (
            Fault::VethDown,
            "trace pod-a svc-b",
            vec!["node-2", "down", "50%"],
        ),
        (
            Fault::MissingRoute,
            "trace web-0.shop api.shop:80",
            vec!["node-1", "10.244.2"],
        ),
        (
            Fault::PortGone,
            "trace pod-a 10.244.2.12:8080",
            vec![
                "NP0127",
                "node-2",
                "behind which pod default/pod-b-2 is, is no port of cni0",
                "master cni0",
            ],
        ),
        (
            Fault::WrongNeigh,
            "trace pod-a 10.244.2.12:8080",
            vec![
                "NP0127",
                "node node-2 takes 10.244.2.12 to be at 0e:00:00:00:00:98",
                "ip neigh del 10.244.2.12 dev cni0",
            ],
        ),
    ] {
        lab.cluster.fault_on(fault, None).unwrap();
        let said = lab.run(line);
        assert_eq!(
            said.code,
            Some(1),
            "{fault:?} {line}\n{}{}",
            said.out,
            said.err
        );
        let said = said.says(&parts);
        assert!(
            said.out.lines().next().unwrap().contains('✗'),
            "{}",
            said.out
        );
        let answer = lab.run(&format!("{line} -o json")).exits(1).json();
        check_trace(&answer);
        assert!(!list(&answer, "findings").is_empty());
        for finding in list(&answer, "findings") {
            let page = lab
                .run(&format!("explain {}", text(finding, "code")))
                .exits(0);
            assert!(page.out.contains(text(finding, "code")));
        }
        lab.cluster.fault_off(fault, None).unwrap();
    }
    lab.run("trace pod-a svc-b").exits(0);
    lab.is_clean();
}

#[test]
fn a_node_that_holds_a_pods_address_is_named() {
    let lab = lab(Overlay::Vxlan, Proxy::IptablesNft);
    let pod = lab.cluster.pod_state("default/pod-b-2").unwrap();
    let ip = pod.ips.iter().find(|ip| ip.is_ipv4()).unwrap();
    let node = lab.cluster.place("node-1").unwrap();
    let held = format!("{ip}/32");
    node.run(["ip", "addr", "add", &held, "dev", "lo"]).unwrap();
    let said = lab.run("trace pod-a pod-b-2:8080").exits(1);
    said.says(&[
        "NP0131",
        &format!("{ip} is held on node-1, and is the address of pod default/pod-b-2"),
        &format!("ip addr del {held} dev lo"),
    ]);
    lab.is_clean();
}

#[test]
fn map_in_all_directions() {
    let lab = lab(Overlay::Vxlan, Proxy::IptablesNft);
    let all = lab.run("map -o json").exits(0).json();
    assert_eq!(all["schema"], "netpath.map/v1");
    let pods: Vec<_> = lab
        .cluster
        .state
        .pods
        .iter()
        .filter(|pod| !pod.host_network)
        .collect();
    assert_eq!(list(&all, "links").len(), pods.len());
    assert_eq!(list(&all, "nodes").len(), 2);
    for pod in &pods {
        let path = format!("{}/{}", pod.namespace, pod.name);
        let place = lab.cluster.pod(&path).unwrap();
        let node = lab.cluster.node(&pod.node).unwrap();
        let of = |text: String| serde_json::from_str::<Value>(&text).unwrap()[0].clone();
        let inside = of(place.run(words("ip -j -d link show eth0")).unwrap());
        let veth = pod.host_veth.as_ref().unwrap();
        let outside = of(node
            .run(words(&format!("ip -j -d link show {veth}")))
            .unwrap());
        let inode = std::fs::read_link(format!("/proc/{}/ns/net", pod.pause_pid)).unwrap();
        let inode = inode
            .to_str()
            .unwrap()
            .replace(['n', 'e', 't', ':', '[', ']'], "");
        // From the pod, from its device, from either index, from its namespace, from its addresses.
        let mut ways = vec![
            format!("{}.{}", pod.name, pod.namespace),
            format!("pod/{}.{}", pod.name, pod.namespace),
            format!("veth/{veth}"),
            format!("veth/{veth}@{}", pod.node),
            format!("ifindex/{}@{}", outside["ifindex"], pod.node),
            format!("netns/{inode}"),
            format!("mac/{}", text(&inside, "address")),
            format!("mac/{}", text(&outside, "address")),
        ];
        ways.extend(pod.ips.iter().map(ToString::to_string));
        for what in &ways {
            let found = lab.run(&format!("map {what} -o json")).exits(0).json();
            let rows: Vec<&Value> = list(&found, "links").iter().collect();
            let [row] = rows.as_slice() else {
                panic!("map {what}: {} rows", rows.len());
            };
            assert_eq!(row["pod"], *path, "map {what}");
            assert_eq!(row["node"], *pod.node);
            assert_eq!(row["device"], "eth0");
            assert_eq!(row["ifindex"], inside["ifindex"]);
            assert_eq!(row["mac"], inside["address"]);
            assert_eq!(row["mtu"], inside["mtu"]);
            assert_eq!(row["host_device"], **veth);
            assert_eq!(row["peer_ifindex"], outside["ifindex"]);
            assert_eq!(row["host_mac"], outside["address"]);
            assert_eq!(row["host_mtu"], outside["mtu"]);
            assert_eq!(row["bridge"], outside["master"]);
            let data = &outside["linkinfo"]["info_slave_data"];
            let port = data["no"]
                .as_str()
                .unwrap()
                .trim_start_matches("0x")
                .to_owned();
            let port = u32::from_str_radix(&port, 16).unwrap().to_string();
            assert!(text(row, "port").starts_with(&format!("{port} {}", text(data, "state"))));
            assert_eq!(row["netns_inode"].to_string(), inode);
            assert_eq!(row["nsfs"].as_str(), pod.netns_path.as_deref());
            assert_eq!(row["nsid"], outside["link_netnsid"], "{row}");
        }
    }
    let node = lab.run("map node/node-2 -o json").exits(0).json();
    assert!(
        list(&node, "links")
            .iter()
            .all(|row| row["node"] == "node-2")
    );
    assert_eq!(list(&node, "links").len(), 4);
    assert_eq!(node["nodes"][0]["addresses"][0], "10.88.0.12");
    assert_eq!(node["nodes"][0]["pod_cidrs"][0], "10.244.2.0/24");
    lab.run("map")
        .exits(0)
        .says(&["POD", "BRIDGE", "node-1", "node-2"]);
    lab.run("map pod-a -o wide")
        .exits(0)
        .says(&["net:[", "nsid"]);
    lab.run("map pod-a -o yaml")
        .exits(0)
        .says(&["schema: netpath.map/v1"]);
    for (what, part) in [
        ("nonesuch", "not found"),
        ("veth/nonesuch", "nothing of that was found"),
        ("10.9.9.9", "nothing of that was found"),
        ("ifindex/0", "no interface index"),
        ("veth/x@node-9", "node-9"),
        ("mac/zz", "mac/zz"),
    ] {
        lab.run(&format!("map {what}")).exits(2).complains(&[part]);
    }
    lab.is_clean();
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(|line| line.trim().to_owned()).collect()
}

#[test]
fn dump_shows_what_the_tools_show() {
    for proxy in [Proxy::IptablesNft, Proxy::Nftables, Proxy::IptablesLegacy] {
        let lab = lab(Overlay::Vxlan, proxy);
        let pod = lab.cluster.pod("default/pod-a").unwrap();
        // Something to be seen in conntrack.
        let to: SocketAddr = "10.96.20.2:80".parse().unwrap();
        assert!(
            pod.tcp_exchange(to, Duration::from_secs(2))
                .unwrap()
                .connected()
        );
        for (typed, place) in [("node/node-1", "node-1"), ("pod-a", "default/pod-a")] {
            let place = lab.cluster.place(place).unwrap();
            let tool = |line: &str| place.run(words(line)).unwrap_or_else(|e| panic!("{e:#}"));
            let data = |line: &str| serde_json::from_str::<Vec<Value>>(&tool(line)).unwrap();
            let dump = |what: &str| {
                let answer = lab
                    .run(&format!("dump {what} {typed} -o json"))
                    .exits(0)
                    .json();
                assert_eq!(answer["schema"], "netpath.dump/v1");
                lab.run(&format!("dump {what} {typed} -o yaml")).exits(0);
                answer["items"].clone()
            };
            let shown = |what: &str| lab.run(&format!("dump {what} {typed}")).exits(0).out;

            let links = dump("links");
            let index = |name: &str| {
                let link = links
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|link| link["name"] == name);
                link.unwrap()["index"].clone()
            };
            let theirs = data("ip -j -d link show");
            assert_eq!(links.as_array().unwrap().len(), theirs.len());
            for link in &theirs {
                let name = text(link, "ifname");
                let own = links
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|own| own["name"] == name);
                let own = own.unwrap_or_else(|| panic!("{name} is missing"));
                assert_eq!(own["index"], link["ifindex"]);
                assert_eq!(own["mtu"], link["mtu"]);
                assert_eq!(own["mac"], link["address"]);
                let up = list(link, "flags").iter().any(|flag| flag == "UP");
                assert_eq!(own["up"], up);
                assert_eq!(own["link_netnsid"], link["link_netnsid"]);
                if let Some(master) = link["master"].as_str() {
                    assert_eq!(own["master"], index(master));
                }
            }
            let count: usize = data("ip -j addr show")
                .iter()
                .map(|link| list(link, "addr_info").len())
                .sum();
            assert_eq!(dump("addrs").as_array().unwrap().len(), count);
            for link in data("ip -j addr show") {
                for addr in list(&link, "addr_info") {
                    let wanted = format!("{}/{}", text(addr, "local"), addr["prefixlen"]);
                    assert!(shown("addrs").contains(&wanted), "{wanted}");
                }
            }
            // Routes and rules, line by line in the words of ip.
            let mut theirs = lines(&tool("ip -4 route show table all"));
            let six = tool("ip -6 route show table all");
            let four: BTreeSet<String> = shown("routes")
                .lines()
                .filter(|line| !line.contains("::"))
                .map(str::to_owned)
                .collect();
            theirs.retain(|line| !line.is_empty());
            assert_eq!(four.len(), theirs.len(), "{four:#?}\n{theirs:#?}");
            for line in &theirs {
                // `ip` leaves out what is the default.
                let start: Vec<&str> = line.split(' ').take(3).collect();
                let start = start.join(" ");
                assert!(
                    four.iter().any(|own| own.starts_with(&start)),
                    "{line}\n{four:#?}"
                );
            }
            let own_six = shown("routes")
                .lines()
                .filter(|line| line.contains("::"))
                .count();
            assert_eq!(
                own_six,
                six.lines().filter(|line| line.contains("::")).count()
            );
            let rules = data("ip -j rule show").len() + data("ip -j -6 rule show").len();
            assert_eq!(dump("rules").as_array().unwrap().len(), rules);
            // Neighbours and forwarding entries come and go by themselves: those that stay are there.
            let neighs = shown("neigh");
            for entry in data("ip -j neigh show nud permanent") {
                let mac = text(&entry, "lladdr");
                assert!(neighs.contains(text(&entry, "dst")) && neighs.contains(mac));
            }
            let fdb = shown("fdb");
            for entry in data("bridge -j fdb show") {
                let wanted = format!("{} dev {}", text(&entry, "mac"), text(&entry, "ifname"));
                assert!(fdb.contains(&wanted), "{wanted} is not in\n{fdb}");
                if let Some(remote) = entry["dst"].as_str() {
                    assert!(fdb.contains(&format!("dst {remote}")));
                }
            }
            let sockets = shown("sockets");
            for line in tool("ss -Hltun").lines() {
                let local = line.split_whitespace().nth(4).unwrap();
                let (_, port) = local.rsplit_once(':').unwrap();
                assert!(
                    sockets.contains(&format!(":{port} ")),
                    "{local} is not in\n{sockets}"
                );
            }
            let settings = shown("sysctls");
            for name in [
                "net.ipv4.conf.all.rp_filter",
                "net.ipv4.conf.eth0.forwarding",
                "net.ipv4.conf.eth0.arp_ignore",
                "net.ipv6.conf.all.forwarding",
                "net.bridge.bridge-nf-call-iptables",
                "net.netfilter.nf_conntrack_max",
            ] {
                let wanted = tool(&format!("sysctl {name}"));
                assert!(
                    settings.contains(wanted.trim()),
                    "{wanted} is not in\n{settings}"
                );
            }
            netfilter(&tool, &shown("netfilter"), proxy);
            let conntrack = shown("conntrack");
            let theirs = tool("conntrack -L -p tcp");
            for line in theirs.lines().filter(|line| line.contains("src=")) {
                for part in line.split(' ').filter(|part| {
                    ["src=", "dst=", "sport=", "dport="]
                        .iter()
                        .any(|key| part.starts_with(key))
                }) {
                    assert!(
                        conntrack.contains(part),
                        "{part} of {line} is not in\n{conntrack}"
                    );
                }
            }
            if typed == "node/node-1" {
                assert!(
                    conntrack.contains("dst=10.96.20.2"),
                    "{conntrack}\n{theirs}"
                );
            }
        }
        lab.is_clean();
    }
}

/// The rules that the tools print: of iptables each as it is, of nft as many in each chain.
fn netfilter(tool: &dyn Fn(&str) -> String, own: &str, proxy: Proxy) {
    let rules = |text: &str| -> Vec<String> {
        let lines = text.lines().map(|line| match line.strip_prefix('[') {
            // Ours come with their counters: [18:1268] -A INPUT ...
            Some(counted) => counted.split_once("] ").unwrap().1,
            None => line,
        });
        let mut rules: Vec<String> = lines
            .filter(|line| line.starts_with("-A "))
            .map(str::to_owned)
            .collect();
        rules.sort();
        rules
    };
    let theirs = match proxy {
        Proxy::IptablesNft | Proxy::Ipvs => tool("iptables-nft-save") + &tool("ip6tables-nft-save"),
        // Asking for a table that is not there makes it: only what is listed is asked for.
        Proxy::IptablesLegacy if tool("cat /proc/net/ip_tables_names").is_empty() => String::new(),
        Proxy::IptablesLegacy => tool("iptables-legacy-save") + &tool("ip6tables-legacy-save"),
        Proxy::Nftables => {
            let mut theirs = nft_rules(&tool("nft list ruleset").replace('\t', "  "));
            // kubelet's, made by iptables.
            theirs.retain(|chain, _| chain.starts_with(char::is_lowercase));
            assert_eq!(nft_rules(own), theirs, "{own}");
            tool("iptables-nft-save") + &tool("ip6tables-nft-save")
        }
    };
    assert_eq!(rules(own), rules(&theirs), "{own}");
}

/// Rules in each chain: lines of four columns' indent, which no set's elements have.
fn nft_rules(text: &str) -> BTreeMap<String, usize> {
    let mut rules: BTreeMap<String, usize> = BTreeMap::new();
    let mut chain = None;
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("  chain ") {
            chain = Some(name);
        } else if line == "  }" {
            chain = None;
        } else if let (Some(name), Some(words)) = (chain, line.strip_prefix("    "))
            && !words.starts_with("type ")
            && !words.starts_with("comment ")
            && !words.starts_with(' ')
        {
            *rules.entry(name.to_owned()).or_default() += 1;
        }
    }
    rules
}

#[test]
fn a_snapshot_of_a_cluster_gives_the_same_answers() {
    let lab = lab(Overlay::Vxlan, Proxy::IptablesNft);
    let file = lab.file("net.json");
    let path = file.to_str().unwrap().to_owned();
    lab.run(&format!("snapshot save {path}")).exits(0);
    let asked = [
        "trace pod-a svc-b",
        "trace pod-a svc-b -o wide",
        "trace pod-a svc-b -o json",
        "trace pod-a svc-b -6 -o json",
        "trace web-0.shop svc/api.shop:dns -o json",
        "trace web-0.shop web.shop -o json",
        "trace node/node-1 node/node-2:30080 -o json",
        "trace pod-a pod-b-2:81 -o json",
        "trace pod-a api-headless.shop:8080 -o json",
        "trace pod-a 198.51.100.1:80 -o json",
        "map -o json",
        "map pod-a -o json",
        "map node/node-2 -o json",
        "dump routes node/node-1 -o json",
        "dump netfilter node/node-2 -o json",
        "dump links pod-a -o json",
        "dump sysctls pod-a",
    ];
    let live: Vec<Said> = asked.iter().map(|line| lab.run(line)).collect();
    lab.is_clean();
    drop(lab.cluster.outside().unwrap());
    let kept = tempfile::NamedTempFile::new().unwrap();
    std::fs::copy(&file, kept.path()).unwrap();
    drop(lab);
    for (line, live) in asked.iter().zip(live) {
        let mut offline = words(line);
        offline.extend([
            "--snapshot".to_owned(),
            kept.path().to_str().unwrap().to_owned(),
        ]);
        let saved = programs::run(&offline);
        assert_eq!(saved.code, live.code, "{line}\n{}{}", saved.out, saved.err);
        if line.ends_with("json") {
            assert_eq!(
                serde_json::to_string_pretty(&steady(saved.json())).unwrap(),
                serde_json::to_string_pretty(&steady(live.json())).unwrap(),
                "{line}"
            );
        } else if !line.ends_with("wide") {
            assert_eq!(saved.out, live.out, "{line}");
        }
    }
}

/// On nodes with many Services a trace reads little of the rules, in few rounds; the answer is that which
/// all rules give.
#[test]
fn lean_reads_give_the_whole_answer() {
    // More than the elements of a set that are sent unasked, and far more than the rules of a chain.
    const SERVICES: usize = 600;
    for proxy in Proxy::ALL {
        let spec = Spec::new(Overlay::Vxlan, proxy).with_services(SERVICES);
        let lab = Lab::up(spec.unwrap());
        let file = lab.file("net.json");
        let file = file.to_str().unwrap();
        lab.run(&format!("snapshot save {file}")).exits(0);
        for line in [
            "trace pod-a svc-b -o json",
            "trace pod-a svc-b -6 -o json",
            "trace web-0.shop svc/s-599.scale:80 -o json",
            "trace node/node-1 node/node-2:30080 -o json",
            "trace pod-a pod-b-2:81 -o json",
        ] {
            let live = lab.run(line);
            let whole = lab.run(&format!("{line} --snapshot {file}"));
            assert_eq!(whole.code, live.code, "{proxy}: {line}\n{}", live.err);
            let (live, whole) = (live.json(), whole.json());
            let rounds = live["stats"]["round_trips"].as_u64().unwrap();
            assert!(rounds <= 3, "{proxy}: {line}: {rounds} rounds");
            assert_eq!(
                serde_json::to_string_pretty(&steady(whole)).unwrap(),
                serde_json::to_string_pretty(&steady(live)).unwrap(),
                "{proxy}: {line}"
            );
        }
        lab.is_clean();
    }
}

/// The answer is out before the helpers are gone; who stops reading it leaves nothing behind.
#[test]
fn a_reader_that_goes_away_leaves_nothing_behind() {
    let lab = lab(Overlay::Routed, Proxy::IptablesLegacy);
    for line in ["trace pod-a svc-b", "trace pod-a pod-b-2:81", "map -o json"] {
        let whole = lab.run(line);
        let mut command = lab.plugin();
        command.args(words(line));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let said = Said::of(child.wait_with_output().unwrap());
        assert_eq!(said.code, whole.code, "{line}: {}", said.err);
        assert!(!said.err.contains("error"), "{line}: {}", said.err);
        lab.is_clean();
    }
}

#[test]
fn cleanup_and_warm_helpers() {
    let lab = lab(Overlay::Routed, Proxy::Nftables);
    lab.run("cleanup")
        .exits(0)
        .says(&["no helper pods of yours"]);
    let cold = lab.run("trace pod-a svc-b --keep 5m").exits(0);
    assert_eq!(lab.server().helper_pods().len(), 2);
    let warm = lab.run("trace pod-a svc-b --keep 5m").exits(0);
    assert_eq!(cold.out, warm.out);
    assert_eq!(lab.server().helper_pods().len(), 2);
    lab.run("cleanup --dry-run")
        .exits(0)
        .says(&["would remove", "node-1", "node-2"]);
    assert_eq!(lab.server().helper_pods().len(), 2);
    lab.run("cleanup").exits(0).says(&["removed helper pod"]);
    lab.is_clean();
}

/// An established connection is followed by its conntrack entry, not by what rules say today.
#[test]
fn a_live_connection_follows_its_entry() {
    for proxy in [Proxy::IptablesNft, Proxy::Nftables] {
        let lab = lab(Overlay::Vxlan, proxy);
        let pod = lab.cluster.pod("default/pod-a").unwrap();
        let to: SocketAddr = "10.96.20.2:80".parse().unwrap();
        let mut seen = BTreeSet::new();
        // Kept open: until both backends have one.
        let mut open = Vec::new();
        for _ in 0..24 {
            let stream = pod.enter(|| Ok(TcpStream::connect_timeout(&to, Duration::from_secs(2))?));
            let mut stream = stream.unwrap();
            let port = stream.local_addr().unwrap().port();
            let backend = {
                use std::io::{Read, Write};
                stream.write_all(b"hello\n").unwrap();
                let mut buffer = [0; 256];
                let length = stream.read(&mut buffer).unwrap();
                let line = String::from_utf8_lossy(&buffer[..length]).into_owned();
                line.split(' ').next().unwrap().to_owned()
            };
            open.push(stream);
            if !seen.insert(backend.clone()) {
                continue;
            }
            let line = format!("trace pod-a svc-b --source-port {port} -o json");
            let answer = lab.run(&line).exits(0).json();
            check_trace(&answer);
            let [branch] = list(&answer, "branches") else {
                panic!(
                    "an entry decides: {} branches",
                    list(&answer, "branches").len()
                );
            };
            let end = text(&branch["disposition"], "netns");
            assert_eq!(end, format!("pod default/{backend}"), "{proxy}");
            let steps = list(branch, "hops")
                .iter()
                .flat_map(|hop| list(hop, "steps"));
            let mut kinds = steps.map(|step| text(step, "kind"));
            assert!(kinds.any(|kind| kind == "conntrack"), "{branch}");
            if seen.len() == 2 {
                break;
            }
        }
        assert_eq!(seen.len(), 2, "{seen:?}");
        lab.is_clean();
    }
}

#[test]
fn a_dry_run_creates_nothing() {
    let lab = lab(Overlay::Routed, Proxy::Nftables);
    lab.server().misbehave(Misbehave {
        forbid: vec![Rule::new("create", "pods")],
        ..Misbehave::default()
    });
    for line in [
        "trace pod-a svc-b --dry-run",
        "map node/node-1 --dry-run",
        "dump routes pod-a --dry-run",
    ] {
        let said = lab.run(line).exits(0).says(&[
            "kind: Pod",
            "nodeName: node-1",
            "hostPID: true",
            "in namespace default: create, watch (or get), delete pods",
        ]);
        assert_eq!(
            said.out.contains("nodeName: node-2"),
            line.starts_with("trace")
        );
    }
    lab.run("dump routes host --local --dry-run")
        .exits(2)
        .complains(&["--dry-run"]);
    lab.is_clean();
}

/// Who may list pods only by namespace still finds the warm helpers of another one.
#[test]
fn warm_helpers_are_found_in_their_own_namespace() {
    let lab = lab(Overlay::Routed, Proxy::Nftables);
    lab.server().misbehave(Misbehave {
        forbid: vec![Rule {
            cluster_only: true,
            ..Rule::new("list", "pods")
        }],
        ..Misbehave::default()
    });
    for _ in 0..2 {
        lab.run("trace pod-a svc-b --keep 20s --helper-namespace kube-system")
            .exits(0);
        assert_eq!(lab.server().helper_pods().len(), 2);
    }
    lab.run("cleanup --helper-namespace kube-system").exits(0);
    lab.is_clean();
}

#[test]
fn an_address_that_no_pod_has_is_asked_for_on_its_node() {
    for overlay in [Overlay::Vxlan, Overlay::Routed] {
        let lab = lab(overlay, Proxy::IptablesNft);
        let said = lab.run("trace pod-a 10.244.2.77:8080").exits(1).says(&[
            "10.244.2.77 is in the pod range of node node-2",
            "nobody answers for 10.244.2.77",
        ]);
        let first = said.out.lines().next().unwrap();
        assert!(first.contains("on node-2"), "{first}");
    }
}

#[test]
fn words_are_completed_from_the_cluster() {
    let lab = lab(Overlay::Routed, Proxy::Nftables);
    let words = |line: &str| {
        let said = lab.run(&format!("__complete {line}")).exits(0);
        assert!(said.err.is_empty(), "{}", said.err);
        let (words, directive) = said.out.trim_end().rsplit_once(':').unwrap();
        assert_eq!(directive, "4");
        let words = words.lines().map(|line| line.split('\t').next().unwrap());
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(words("trace pod-"), ["pod-a", "pod-b-1", "pod-b-2"]);
    assert_eq!(words("trace pod-a svc-b"), ["svc-b"]);
    assert_eq!(words("trace pod-a svc/svc-b"), ["svc/svc-b"]);
    assert_eq!(words("trace -n shop web"), ["web-0", "web-1"]);
    assert_eq!(words("dump routes node/"), ["node/node-1", "node/node-2"]);
    assert_eq!(words("snapshot save net.json node-1"), ["node-1"]);
    assert_eq!(words("trace -n sh"), ["shop"]);
    // What may not be listed is left out, without a word about it.
    lab.server().misbehave(Misbehave {
        forbid: vec![Rule::new("list", "*")],
        ..Misbehave::default()
    });
    assert_eq!(words("trace pod-"), Vec::<String>::new());
    assert_eq!(lab.server().helper_pods(), Vec::<String>::new());
}

/// Who may not list EndpointSlices learns the nodes of a Service's pods on the way: helpers that start later
/// stand on their own nodes.
#[test]
fn nodes_that_are_learned_on_the_way_get_helpers_too() {
    let lab = lab(Overlay::Vxlan, Proxy::IptablesNft);
    let all = lab.run("trace pod-a svc-b -o json").exits(0).json();
    lab.server().misbehave(Misbehave {
        forbid: vec![Rule::new("list", "endpointslices")],
        ..Misbehave::default()
    });
    let said = lab.run("trace pod-a svc-b -o json").exits(0);
    let less = said.json();
    let way = |answer: &Value| steady(answer["branches"].clone());
    assert_eq!(way(&less), way(&all));
    lab.run("trace pod-a svc-b").exits(0).says(&[
        "the endpoints of Service default/svc-b could not be read",
        "cannot list resource \"endpointslices\"",
    ]);
    lab.is_clean();
}

/// Nodes and names that may not be listed are missing in answers about the whole cluster, which say so.
#[test]
fn answers_about_everything_say_what_they_lack() {
    let lab = lab(Overlay::Routed, Proxy::Nftables);
    let file = lab.file("net.json");
    let save = format!("snapshot save {}", file.to_str().unwrap());
    for (resource, part) in [
        (
            "nodes",
            "not all nodes could be listed, those with pods were taken",
        ),
        (
            "pods",
            "not all pods could be listed, their names are missing",
        ),
    ] {
        lab.server().misbehave(Misbehave {
            forbid: vec![Rule::new("list", resource), Rule::new("get", "nodes")],
            ..Misbehave::default()
        });
        for line in ["map", &save] {
            let said = lab.run(line).exits(3).complains(&[part]);
            assert_eq!(said.err.matches(part).count(), 1, "{}", said.err);
        }
        lab.run("dump routes node/node-2").exits(0);
    }
    // One reason for several nodes is said once.
    lab.server().misbehave(Misbehave {
        forbid: vec![Rule::new("create", "pods")],
        ..Misbehave::default()
    });
    let said = lab.run("map").exits(2);
    let right = "the right \"create pods\" in namespace default";
    assert_eq!(said.err.matches(right).count(), 1, "{}", said.err);
    lab.server().misbehave(Misbehave {
        forbid: vec![Rule::new("list", "*"), Rule::new("get", "nodes")],
        ..Misbehave::default()
    });
    lab.run("map").exits(2).complains(&[
        "no node is known to look at",
        "not all nodes could be listed",
        "kubectl auth can-i list nodes",
    ]);
    lab.is_clean();
}

/// A server that is slow or asks to come back later is waited for, within the bound on one request.
#[test]
fn a_busy_server_is_asked_again() {
    let lab = lab(Overlay::Routed, Proxy::Nftables);
    let busy = |code, retry_after, times| Misbehave {
        fail: vec![Fail {
            rule: Rule::new("list", "pods"),
            code,
            times,
            retry_after,
        }],
        ..Misbehave::default()
    };
    for how in [
        busy(429, Some(1), 1),
        busy(503, None, 3),
        Misbehave {
            delay_ms: 300,
            ..Misbehave::default()
        },
    ] {
        lab.server().misbehave(how);
        lab.run("trace pod-a svc-b").exits(0);
        lab.is_clean();
    }
    for (how, part) in [
        (busy(429, Some(600), 1), "or only asked to come back later"),
        (busy(500, None, 1), "failed with 500"),
        (
            Misbehave {
                delay_ms: 3000,
                ..Misbehave::default()
            },
            "gave no answer within 1s",
        ),
    ] {
        lab.server().misbehave(how);
        let said = lab.run("trace pod-a svc-b --request-timeout 1s").exits(2);
        let said = said.complains(&[part]);
        assert_eq!(said.err.matches("list ").count(), 1, "{}", said.err);
        lab.is_clean();
    }
}
