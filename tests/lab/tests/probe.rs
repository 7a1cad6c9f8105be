//! `trace --probe` in laboratories: what is predicted is seen, device by device; with faults, the probe stops where
//! it was predicted; and where a prediction can't be made, what was seen stands in for it. Needs root.
#![allow(missing_docs, reason = "tests")]

mod programs;

use std::sync::Arc;

use netpath_lab::{Fault, Overlay, Proxy, Spec};
use programs::{Lab, Said, bridged, words};
use serde_json::Value;

/// The only probe of an answer.
#[track_caller]
fn probe(said: &Said) -> Value {
    said.json()["probes"][0].clone()
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
    for (device, met) in devices(&probe) {
        // Bridges show what passes them, too.
        assert!(
            met == "confirmed" || met.starts_with("seen"),
            "{device}: {met}\n{probe:#}"
        );
    }
    probe
}

#[test]
fn what_arrives_is_confirmed_at_every_device() {
    let ([one, other], _bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let _listener = other.listen("--tcp 8080 --udp 8080");
    let said = |more: &str| {
        machine.plugin(&words(&format!(
            "trace --local {} {more} --probe -o json",
            one.end()
        )))
    };
    for more in [
        "10.0.1.3:8080",
        "10.0.1.3:8080 --protocol udp --data hello",
        "10.0.1.3",
    ] {
        let said = said(more).exits(0);
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
    let said = said("10.0.1.3:81").exits(1);
    confirmed(&said);
    let text = machine.plugin(&words(&format!(
        "trace --local {} 10.0.1.3:8080 --probe --count 2",
        one.end()
    )));
    let text = text
        .exits(0)
        .says(&["probe: from 10.0.1.2:", "answered after", "confirmed"]);
    assert_eq!(text.out.matches("probe: from").count(), 2, "{}", text.out);
}

#[test]
fn with_a_fault_the_probe_stops_where_it_was_predicted() {
    let ([one, other], _bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let _listener = other.listen("--tcp 8080");
    other.tool("nft add table inet t");
    other.tool("nft add chain inet t in { type filter hook input priority 0 ; policy drop ; }");
    let said = machine.plugin(&words(&format!(
        "trace --local {} 10.0.1.3:8080 --probe -o json",
        one.end()
    )));
    let said = said.exits(1);
    assert_eq!(said.json()["verdict"], "dropped");
    let probe = confirmed(&said);
    assert_eq!(probe["answered"], false);
}

#[test]
fn what_can_not_be_predicted_is_seen() {
    let ([one, other], bridge) = bridged();
    let machine = Arc::clone(&one.machine);
    let _listener = other.listen("--tcp 8080");
    // A filter at tc is not evaluated.
    bridge.tool("tc qdisc add dev port0 clsact");
    bridge.tool(
        "tc filter add dev port0 ingress protocol ip u32 match ip dst 10.0.1.3/32 action drop",
    );
    let said = machine.plugin(&words(&format!(
        "trace --local {} 10.0.1.3:8080 --probe -o json",
        one.end()
    )));
    assert_eq!(said.json()["verdict"], "inconclusive");
    let said = said.exits(1);
    let found = probe(&said);
    assert_eq!(
        (&found["result"], &found["answered"]),
        (&"seen".into(), &false.into()),
        "{found:#}"
    );
    let last = devices(&found)
        .into_iter()
        .filter(|(_, met)| met != "not seen")
        .next_back();
    assert_eq!(last.expect("a device").0, "port0", "{found:#}");
    bridge.tool("tc filter del dev port0 ingress");
    bridge.tool(
        "tc filter add dev port0 ingress protocol ip u32 match ip dst 10.0.1.9/32 action drop",
    );
    let said = machine.plugin(&words(&format!(
        "trace --local {} 10.0.1.3:8080 --probe -o json",
        one.end()
    )));
    let said = said.exits(0);
    assert_eq!(probe(&said)["answered"], true);
}

#[test]
fn flows_of_a_cluster_are_confirmed_across_nodes() {
    let mut lab = Lab::up(Spec::new(Overlay::Vxlan, Proxy::IptablesNft));
    for flow in [
        "web-0.shop 10.244.2.4:8080",
        "web-0.shop svc/api.shop:http",
        "web-0.shop 10.244.2.4 --protocol icmp",
    ] {
        let said = lab.run(&format!("trace {flow} --probe -o json")).exits(0);
        let probe = confirmed(&said);
        assert_eq!(probe["answered"], true, "{flow}: {probe:#}");
    }
    lab.cluster
        .fault_on(Fault::ForwardDrop, None)
        .expect("a fault");
    let said = lab
        .run("trace web-0.shop 10.244.2.4:8080 --probe -o json")
        .exits(1);
    let probe = confirmed(&said);
    assert_eq!(probe["answered"], false);
    lab.is_clean();
}
