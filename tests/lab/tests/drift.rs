//! What kube-proxy should have written, against what is there: faults in rules of all three forms, each
//! named by `check` and by `trace`. Needs root.
#![allow(missing_docs, reason = "tests")]

mod programs;

use netpath_lab::{Overlay, Proxy, Spec, names};
use programs::Lab;
use serde_json::Value;

/// Service that the faults are about.
const SERVICE: &str = "default/svc-b:http";

/// One fault on node-1, which is undone by taking the laboratory down.
struct Fault {
    /// What is broken.
    what: &'static str,
    /// Shell commands for mode iptables, with the variables of [`variables`].
    iptables: &'static str,
    /// The same for mode nftables.
    nftables: &'static str,
    /// The same for mode ipvs.
    ipvs: &'static str,
    /// Code of the finding.
    code: &'static str,
    /// What its title and evidence must say.
    says: &'static [&'static str],
    /// The flow that meets it, and whether its trace is to name it.
    trace: Option<&'static str>,
}

const FAULTS: [Fault; 5] = [
    Fault {
        what: "an endpoint is missing",
        iptables: "$I -D $SVC 2",
        nftables: "nft flush chain ip kube-proxy $NFT; nft add rule ip kube-proxy $NFT meta l4proto tcp dnat ip to numgen random mod 1 map '{ 0 : 10.244.2.12 . 8080 }'",
        ipvs: "ipvsadm -d -t 10.96.20.2:80 -r 10.244.1.12:8080",
        code: "NP0140",
        says: &[
            SERVICE,
            "miss 1 of 2",
            "10.244.1.12:8080",
            "pod default/pod-b-1 on node-1",
        ],
        trace: Some("trace pod-a svc-b"),
    },
    Fault {
        what: "an endpoint too many",
        iptables: "$I -N KUBE-SEP-MORE; $I -A KUBE-SEP-MORE -p tcp -m tcp -j DNAT --to-destination 10.244.9.9:8080; $I -I $SVC 2 -m statistic --mode random --probability 0.3 -j KUBE-SEP-MORE",
        nftables: "nft flush chain ip kube-proxy $NFT; nft add rule ip kube-proxy $NFT meta l4proto tcp dnat ip to numgen random mod 3 map '{ 0 : 10.244.1.12 . 8080, 1 : 10.244.2.12 . 8080, 2 : 10.244.9.9 . 8080 }'",
        ipvs: "ipvsadm -a -t 10.96.20.2:80 -r 10.244.9.9:8080 -m -w 1",
        code: "NP0141",
        says: &[SERVICE, "10.244.9.9:8080", "which no slice"],
        trace: Some("trace pod-a svc-b"),
    },
    Fault {
        what: "a wrong port",
        iptables: "$I -R $SEP 2 -p tcp -m tcp -j DNAT --to-destination 10.244.1.12:9999",
        nftables: "nft flush chain ip kube-proxy $NFT; nft add rule ip kube-proxy $NFT meta l4proto tcp dnat ip to numgen random mod 2 map '{ 0 : 10.244.1.12 . 9999, 1 : 10.244.2.12 . 8080 }'",
        ipvs: "ipvsadm -d -t 10.96.20.2:80 -r 10.244.1.12:8080; ipvsadm -a -t 10.96.20.2:80 -r 10.244.1.12:9999 -m -w 1",
        code: "NP0141",
        says: &[SERVICE, "10.244.1.12:9999", "whose port is 8080"],
        trace: Some("trace pod-a svc-b"),
    },
    Fault {
        what: "rules of a Service that is gone",
        iptables: "$I -I KUBE-SERVICES 1 -d 10.96.99.9/32 -p tcp -m tcp --dport 80 -j $SVC",
        nftables: "nft add element ip kube-proxy service-ips '{ 10.96.99.9 . tcp . 80 : goto '$NFT' }'",
        ipvs: "ip addr add 10.96.99.9/32 dev kube-ipvs0; ipvsadm -A -t 10.96.99.9:80 -s rr; ipvsadm -a -t 10.96.99.9:80 -r 10.244.1.12:8080 -m -w 1",
        code: "NP0142",
        says: &["no Service has 10.96.99.9:80/tcp"],
        trace: Some("trace pod-a 10.96.99.9:80"),
    },
    Fault {
        what: "no rule for a Service",
        iptables: "$I -D KUBE-SERVICES $($I -S KUBE-SERVICES | grep -n -e '--dport 80 .*'$SVC | cut -d: -f1 | awk '{print $1-1}')",
        nftables: "nft delete element ip kube-proxy service-ips '{ 10.96.20.2 . tcp . 80 }'",
        ipvs: "ipvsadm -D -t 10.96.20.2:80",
        code: "NP0137",
        says: &[SERVICE, "10.96.20.2:80/tcp"],
        // The trace names it by where the packet ends.
        trace: None,
    },
];

fn lab(proxy: Proxy, change: impl FnOnce(&mut Spec)) -> Lab {
    let mut spec = Spec::new(Overlay::Vxlan, proxy);
    change(&mut spec);
    Lab::up(spec)
}

/// Names of the chains of [`SERVICE`] for the shell.
fn variables(proxy: Proxy) -> String {
    let tool = match proxy {
        Proxy::IptablesLegacy => "iptables-legacy",
        Proxy::IptablesNft | Proxy::Nftables | Proxy::Ipvs => "iptables-nft",
    };
    format!(
        "set -e; I='{tool} -t nat'; SVC=KUBE-SVC-{}; SEP=KUBE-SEP-{}; NFT=service-{}",
        names::iptables_service(SERVICE, "tcp"),
        names::iptables_endpoint(SERVICE, "tcp", "10.244.1.12:8080"),
        names::nftables_service("default", "svc-b", "tcp", "http")
    )
}

fn on_node(lab: &Lab, proxy: Proxy, script: &str) {
    let node = lab.cluster.node("node-1").expect("a node");
    let script = format!("{}; {script}", variables(proxy));
    node.run(["sh", "-c", &script]).expect("rules are changed");
}

/// The findings of an answer with this code, as one text each.
fn with_code(answer: &Value, code: &str) -> Vec<String> {
    let findings = answer["findings"].as_array().expect("findings");
    let own = findings.iter().filter(|found| found["code"] == code);
    own.map(|found| {
        assert_eq!(found["where"]["node"], "node-1", "{found}");
        assert_eq!(found["where"]["netns"], "host", "{found}");
        assert!(
            found["mend"].as_str().is_some_and(|mend| !mend.is_empty()),
            "{found}"
        );
        format!("{} {}", found["title"], found["evidence"])
    })
    .collect()
}

#[track_caller]
fn named(answer: &Value, code: &str, says: &[&str], what: &str) {
    let found = with_code(answer, code);
    assert_eq!(found.len(), 1, "{what}: {code} once in {answer:#}");
    for part in says {
        assert!(found[0].contains(part), "{what}: {part:?} in {}", found[0]);
    }
}

#[test]
fn a_clean_laboratory_has_no_drift() {
    for proxy in Proxy::ALL {
        clean(proxy);
    }
}

#[test]
#[ignore = "needs a kernel with IPVS"]
fn a_clean_laboratory_in_mode_ipvs_has_no_drift() {
    clean(Proxy::Ipvs);
}

fn clean(proxy: Proxy) {
    let lab = lab(proxy, |_| {});
    let said = lab.run("check").exits(0);
    let set = match proxy {
        Proxy::IptablesNft => "iptables-nft",
        Proxy::IptablesLegacy => "iptables-legacy",
        Proxy::Nftables => "nftables",
        Proxy::Ipvs => "ipvs",
    };
    let both = format!("10 Service ports in {set} IPv4, {set} IPv6");
    said.says(&["node-1  ✓", "node-2  ✓", &both]);
    let traced = lab.run("trace pod-a svc-b -o json").exits(0).json();
    assert_eq!(traced["findings"], serde_json::json!([]));
    // Without endpoints nothing is expected, and nothing found.
    let answer = lab.run("check node-2 -o json").exits(0).json();
    assert_eq!(answer["schema"], "netpath.check/v1");
    assert_eq!(answer["verdict"], "ok");
    assert_eq!(answer["nodes"].as_array().map(Vec::len), Some(1));
    assert_eq!(answer["unknown"], serde_json::json!([]));
    lab.run("check node-9").exits(2).complains(&["node-9"]);
    lab.is_clean();
}

#[test]
fn faults_of_rules_are_named() {
    for proxy in Proxy::ALL {
        broken(proxy);
    }
}

#[test]
#[ignore = "needs a kernel with IPVS"]
fn faults_of_virtual_servers_are_named() {
    broken(Proxy::Ipvs);
}

fn broken(proxy: Proxy) {
    for fault in &FAULTS {
        let lab = lab(proxy, |_| {});
        let script = match proxy {
            Proxy::Nftables => fault.nftables,
            Proxy::IptablesNft | Proxy::IptablesLegacy => fault.iptables,
            Proxy::Ipvs => fault.ipvs,
        };
        on_node(&lab, proxy, script);
        let what = format!("{} ({proxy})", fault.what);
        let answer = lab.run("check -o json").exits(1).json();
        assert_eq!(answer["verdict"], "faulty", "{what}");
        named(&answer, fault.code, fault.says, &what);
        let others = answer["nodes"][1]["verdict"].as_str();
        assert_eq!(others, Some("ok"), "{what}: node-2 has none of it");
        if let Some(trace) = fault.trace {
            let answer = lab.run(&format!("{trace} -o json")).json();
            named(&answer, fault.code, fault.says, &what);
        }
        // The same from a file.
        let file = lab.file("net.json");
        lab.run(&format!("snapshot save {}", file.display()))
            .exits(0);
        let words = ["check", "-o", "json", "--snapshot"].map(str::to_owned);
        let words = [&words[..], &[file.display().to_string()]].concat();
        let saved = programs::run(&words).exits(1).json();
        named(&saved, fault.code, fault.says, &what);
        lab.is_clean();
    }
}

/// Rules that do not do what the Service asks for.
#[test]
fn policies_and_affinity_that_are_not_followed_are_named() {
    for proxy in Proxy::ALL {
        let lab = lab(proxy, |spec| {
            let mut services = spec.services.iter_mut();
            let own = services.find(|service| service.path() == "default/svc-b");
            let own = own.expect("a Service");
            own.affinity_seconds = Some(600);
            own.local = true;
        });
        let answer = lab.run("check node-1 -o json").exits(1).json();
        let trace = lab.run("trace pod-a svc-b -o json").json();
        for answer in [&answer, &trace] {
            let v4 = |found: &&String| found.contains("10.244.");
            let policy = with_code(answer, "NP0144");
            let policy = policy.iter().find(v4).expect("an ignored policy");
            for part in [
                SERVICE,
                "10.244.2.12:8080",
                "internalTrafficPolicy is Local",
            ] {
                assert!(policy.contains(part), "{part} in {policy}");
            }
            let affinity = with_code(answer, "NP0143");
            let affinity = affinity.iter().find(v4).expect("a missing affinity");
            for part in [SERVICE, "10.244.1.12:8080", "ClientIP"] {
                assert!(affinity.contains(part), "{part} in {affinity}");
            }
        }
    }
}

/// What another mode or backend left behind is found beside the rules that are kept up to date.
#[test]
fn two_sets_of_rules_are_named() {
    for (proxy, tool, left) in [
        (
            Proxy::IptablesNft,
            "iptables-legacy",
            "iptables-legacy IPv4",
        ),
        (Proxy::IptablesLegacy, "iptables-nft", "iptables-nft IPv4"),
        (Proxy::Nftables, "iptables-nft", "iptables-nft IPv4"),
    ] {
        let lab = lab(proxy, |_| {});
        let script = format!(
            "O='{tool} -t nat'; for c in KUBE-SERVICES KUBE-NODEPORTS KUBE-SVC-LEFT; do $O -N $c; done; \
             $O -A KUBE-SERVICES -d 10.96.20.2/32 -p tcp -m tcp --dport 80 -j KUBE-SVC-LEFT; \
             $O -A KUBE-SVC-LEFT -p tcp -m tcp -j DNAT --to-destination 10.244.2.99:8080; \
             $O -A PREROUTING -j KUBE-SERVICES; $O -A OUTPUT -j KUBE-SERVICES"
        );
        on_node(&lab, proxy, &script);
        let answer = lab.run("check node-1 -o json").exits(1).json();
        let says = [left, "2 kube-proxy modes", "10.244.2.99:8080"];
        named(&answer, "NP0145", &says, left);
        // The cause comes first, and what follows from it is not told again unless packets go astray.
        assert_eq!(answer["findings"][0]["code"], "NP0145", "{answer:#}");
        let others = answer["findings"]
            .as_array()
            .expect("findings")
            .iter()
            .skip(1);
        for other in others.filter(|other| other["code"] != "NP0102") {
            assert_eq!(other["code"], "NP0141", "{answer:#}");
            assert!(
                other["evidence"].to_string().contains("translated by"),
                "{other}"
            );
        }
        let trace = lab.run("trace pod-a svc-b -o json").json();
        named(&trace, "NP0145", &[left], left);
        named(&trace, "NP0141", &[SERVICE, "10.244.2.99:8080"], left);
    }
}

/// A fault that the rules of endpoints do not show: they are all there. Undone by writing the rules anew.
struct Hidden {
    /// What is broken.
    what: &'static str,
    /// Shell commands for mode iptables.
    iptables: &'static str,
    /// The same for mode nftables; empty: there is no such fault.
    nftables: &'static str,
    /// Code of the finding.
    code: &'static str,
    /// What its title and evidence must say in mode iptables, and in mode nftables.
    says: [&'static [&'static str]; 2],
}

const HIDDEN: [Hidden; 13] = [
    Hidden {
        what: "a RETURN before the Service's rule",
        iptables: "$I -I KUBE-SERVICES 1 -d 10.96.20.2/32 -j RETURN",
        nftables: "nft insert rule ip kube-proxy services ip daddr 10.96.20.2 return",
        code: "NP0146",
        says: [
            &[
                SERVICE,
                "chain KUBE-SERVICES",
                "-j RETURN",
                "pods on node-1",
                "programs on node-1",
            ],
            &[SERVICE, "chain services handle", "return", "pods on node-1"],
        ],
    },
    Hidden {
        what: "an ACCEPT before all",
        iptables: "$I -I PREROUTING 1 -d 10.96.20.2/32 -j ACCEPT",
        nftables: "nft insert rule ip kube-proxy nat-prerouting ip daddr 10.96.20.2 accept",
        code: "NP0146",
        says: [
            &[SERVICE, "chain PREROUTING", "-j ACCEPT"],
            &[SERVICE, "chain nat-prerouting", "accept"],
        ],
    },
    Hidden {
        what: "a DROP in another table",
        iptables: "$TOOL -t raw -I PREROUTING -d 10.96.20.2/32 -j DROP",
        nftables: "nft add table ip other '{ chain c { type filter hook prerouting priority raw; ip daddr 10.96.20.2 drop; }; }'",
        code: "NP0146",
        says: [
            &[SERVICE, "chain PREROUTING", "of table ip raw", "-j DROP"],
            &[SERVICE, "chain c handle", "of table ip other", "drop"],
        ],
    },
    Hidden {
        what: "a jump to another program's translation",
        iptables: "$I -N OTHER; $I -A OTHER -p tcp -d 10.96.20.2/32 -j DNAT --to-destination 10.244.9.9:1; $I -I PREROUTING 1 -j OTHER",
        nftables: "nft add chain ip kube-proxy other; nft add rule ip kube-proxy other ip daddr 10.96.20.2 tcp dport 80 dnat to 10.244.9.9:1; nft insert rule ip kube-proxy nat-prerouting jump other",
        code: "NP0141",
        says: [
            &[SERVICE, "10.244.9.9:1", "chain OTHER"],
            &[SERVICE, "10.244.9.9:1", "chain other"],
        ],
    },
    Hidden {
        what: "no jump from PREROUTING",
        iptables: "$I -F PREROUTING",
        nftables: "nft flush chain ip kube-proxy nat-prerouting",
        code: "NP0146",
        says: [
            &["no base chain at hook prerouting", SERVICE],
            &["no base chain at hook prerouting", SERVICE],
        ],
    },
    Hidden {
        what: "no base chain at OUTPUT",
        iptables: "$I -F OUTPUT",
        nftables: "nft flush chain ip kube-proxy nat-output; nft delete chain ip kube-proxy nat-output",
        code: "NP0146",
        says: [
            &["no base chain at hook output", "programs on node-1"],
            &["no base chain at hook output", "programs on node-1"],
        ],
    },
    Hidden {
        what: "no way to NodePorts",
        iptables: "$I -D KUBE-SERVICES $($I -S KUBE-SERVICES | grep -c '^-A')",
        nftables: "nft flush set ip kube-proxy nodeport-ips",
        code: "NP0146",
        says: [
            &["leads to KUBE-NODEPORTS", "NodePort 30"],
            &["set nodeport-ips does not hold", "NodePort 30"],
        ],
    },
    Hidden {
        what: "no map looked into",
        iptables: "",
        nftables: "nft flush chain ip kube-proxy services",
        code: "NP0146",
        says: [
            &[],
            &["no rule of chain services looks into map service-ips"],
        ],
    },
    Hidden {
        what: "uneven shares",
        iptables: "$I -R $SVC 2 -m statistic --mode random --probability 0.9 -j $SEP",
        nftables: "nft flush chain ip kube-proxy $NFT; nft add rule ip kube-proxy $NFT meta l4proto tcp dnat ip to numgen random mod 10 map '{ 0-8 : 10.244.1.12 . 8080, 9 : 10.244.2.12 . 8080 }'",
        code: "NP0147",
        says: [
            &[
                SERVICE,
                "10.244.1.12:8080 gets 90.0%",
                "10.244.2.12:8080 gets 10.0%",
            ],
            &[
                SERVICE,
                "10.244.1.12:8080 gets 90.0%",
                "10.244.2.12:8080 gets 10.0%",
            ],
        ],
    },
    Hidden {
        what: "a share that nobody gets",
        iptables: "$I -R $SVC 3 -m statistic --mode random --probability 0.5 -j KUBE-SEP-$SEP2",
        nftables: "nft flush chain ip kube-proxy $NFT; nft add rule ip kube-proxy $NFT meta l4proto tcp dnat ip to numgen random mod 4 map '{ 0 : 10.244.1.12 . 8080, 1 : 10.244.2.12 . 8080 }'",
        code: "NP0147",
        says: [
            &[
                SERVICE,
                "25.0% of their packets are translated to no endpoint",
            ],
            &[
                SERVICE,
                "50.0% of their packets are translated to no endpoint",
            ],
        ],
    },
    Hidden {
        what: "nobody masquerades",
        iptables: "$I -F KUBE-POSTROUTING",
        nftables: "nft flush chain ip kube-proxy masquerading",
        code: "NP0148",
        says: [
            &[
                "marked to be masqueraded",
                "leave with the sender's address",
            ],
            &[
                "marked to be masqueraded",
                "leave with the sender's address",
            ],
        ],
    },
    Hidden {
        what: "no hairpin mark",
        iptables: "$I -D $SEP 1",
        nftables: "nft flush set ip kube-proxy hairpin-connections",
        code: "NP0148",
        says: [
            &[
                SERVICE,
                "pods that are led to themselves are not masqueraded",
            ],
            &[
                SERVICE,
                "pods that are led to themselves are not masqueraded",
            ],
        ],
    },
    Hidden {
        what: "no mark for clients outside",
        iptables: "$I -F KUBE-MARK-MASQ; $I -F FLANNEL-POSTRTG",
        nftables: "nft flush chain ip flannel-ipv4 postrtg; nft flush chain ip kube-proxy masquerading",
        code: "NP0148",
        says: [
            &["packets from outside are not masqueraded", "NodePort 30"],
            &["leave with the sender's address", "NodePort 30"],
        ],
    },
];

/// What comes before kube-proxy's rules or between them, and what they do beside choosing an endpoint.
#[test]
fn faults_that_rules_of_endpoints_do_not_show_are_named() {
    for proxy in Proxy::ALL {
        let lab = lab(proxy, |_| {});
        let tool = match proxy {
            Proxy::IptablesLegacy => "iptables-legacy",
            Proxy::IptablesNft | Proxy::Nftables | Proxy::Ipvs => "iptables-nft",
        };
        let file = lab.file("rules");
        let file = file.display();
        let (save, restore) = if proxy == Proxy::Nftables {
            (
                format!(
                    "for t in kube-proxy flannel-ipv4; do echo \"delete table ip $t\"; nft list table ip $t; done >{file}"
                ),
                format!("nft delete table ip other 2>/dev/null || true; nft -f {file}"),
            )
        } else {
            (
                format!("{tool}-save >{file}"),
                format!("{tool} -t raw -F; {tool}-restore <{file}"),
            )
        };
        on_node(&lab, proxy, &save);
        for fault in &HIDDEN {
            let (script, says) = match proxy {
                Proxy::Nftables => (fault.nftables, fault.says[1]),
                _ => (fault.iptables, fault.says[0]),
            };
            if script.is_empty() {
                continue;
            }
            let sep = names::iptables_endpoint(SERVICE, "tcp", "10.244.2.12:8080");
            on_node(&lab, proxy, &format!("TOOL={tool}; SEP2={sep}; {script}"));
            let what = format!("{} ({proxy})", fault.what);
            let answer = lab.run("check -o json").exits(1).json();
            let found = with_code(&answer, fault.code);
            let all = found.join("\n");
            for part in says {
                assert!(all.contains(part), "{what}: {part:?} in {answer:#}");
            }
            let others = answer["nodes"][1]["verdict"].as_str();
            assert_eq!(others, Some("ok"), "{what}: node-2 has none of it");
            on_node(&lab, proxy, &restore);
            let answer = lab.run("check -o json");
            assert_eq!(
                answer.json()["findings"],
                serde_json::json!([]),
                "after {what}"
            );
        }
        if proxy == Proxy::IptablesNft || proxy == Proxy::Nftables {
            let table = if proxy == Proxy::Nftables {
                "kube-proxy"
            } else {
                "nat"
            };
            on_node(
                &lab,
                proxy,
                &format!("nft add table ip {table} '{{ flags dormant; }}'"),
            );
            let answer = lab.run("check node-1 -o json").exits(1).json();
            let says = format!("table ip {table} is dormant");
            named(&answer, "NP0146", &[&says, SERVICE], "a dormant table");
        }
        lab.is_clean();
    }
}

/// Nothing that could not be read counts as agreement.
#[test]
fn what_cannot_be_compared_is_said() {
    let lab = lab(Proxy::IptablesNft, |_| {});
    on_node(
        &lab,
        Proxy::IptablesNft,
        "$I -I $SVC 2 -m cpu --cpu 77 -j RETURN",
    );
    let said = lab.run("check node-1").exits(3);
    said.says(&["node-1  ?", "unknown", SERVICE, "can't be compared"]);
    // No rules of a kube-proxy at all.
    on_node(
        &lab,
        Proxy::IptablesNft,
        "nft delete table ip nat; nft delete table ip6 nat",
    );
    let said = lab.run("check node-1").exits(3);
    said.says(&["no IPv4 rules of a kube-proxy were found on node-1"]);
}
