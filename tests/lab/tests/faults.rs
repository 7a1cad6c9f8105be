//! Each fault of the laboratory, switched on: the verdict, the place and the deciding object are right,
//! and no flow that works is called broken. The kernel is asked by real exchanges. Needs root.
#![allow(missing_docs, reason = "tests")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use netpath::trace::{Disposition, DropReason, Evidence, RejectWith, Trace};
use netpath_lab::oracle::Oracle;
use netpath_lab::{Cluster, Fault, Outcome, Overlay, Proxy, Spec};

const SHORT: Duration = Duration::from_millis(1500);

fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "f{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// Flows that are asked under every fault; those that a fault breaks are found out by the kernel.
const FLOWS: &[(&str, &str)] = &[
    ("shop/web-0", "10.244.1.9:8080"),
    ("shop/web-0", "10.244.2.4:8080"),
    ("shop/web-0", "10.244.1.7:8080"),
    ("default/pod-a", "10.244.2.12:8080"),
    ("default/pod-a", "10.244.1.12:8080"),
    ("node-1", "10.244.2.4:8080"),
    ("node-1", "10.244.1.9:8080"),
    ("shop/web-0", "198.51.100.1:80"),
    ("shop/web-0", "10.88.0.12:9100"),
];

/// Services: some branches may break; all that the kernel shows must be predicted.
const SERVICES: &[(&str, &str)] = &[
    ("shop/web-0", "10.96.14.3:80"),
    ("shop/web-0", "10.96.14.4:80"),
    ("default/pod-a", "10.96.20.2:80"),
];

fn fits(trace: &Trace, outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Connected { .. } => trace.works(),
        Outcome::Refused => matches!(trace.outcome(), Disposition::Rejected(_)),
        // Who is told too late, or whose answer is refused on the way back, just waits.
        Outcome::TimedOut | Outcome::Unreachable(_) => {
            !trace.works() && !matches!(trace.outcome(), Disposition::Inconclusive(_))
        }
    }
}

/// What the broken flow's trace must say.
struct Expected {
    fault: Fault,
    from: &'static str,
    to: &'static str,
    node: &'static str,
    end: fn(&Disposition) -> bool,
    /// Part of the deciding step or its evidence.
    object: &'static str,
}

const EXPECTED: &[Expected] = &[
    Expected {
        fault: Fault::ForwardDrop,
        from: "shop/web-0",
        to: "10.244.2.4:8080",
        node: "node-2",
        end: |end| *end == Disposition::Dropped(DropReason::NetfilterDrop),
        object: "FORWARD",
    },
    Expected {
        fault: Fault::MissingRoute,
        from: "shop/web-0",
        to: "10.244.2.4:8080",
        node: "node-1",
        end: |end| *end == Disposition::Dropped(DropReason::NoRouteToNode),
        object: "a route to 10.244.2.4",
    },
    Expected {
        fault: Fault::VethDown,
        from: "default/pod-a",
        to: "10.244.2.12:8080",
        node: "node-2",
        end: |end| !matches!(end, Disposition::Delivered | Disposition::Inconclusive(_)),
        object: "down",
    },
    Expected {
        fault: Fault::NoEndpoints,
        from: "shop/web-0",
        to: "10.96.14.3:80",
        node: "node-1",
        end: |end| *end == Disposition::Rejected(RejectWith::PortUnreachable),
        object: "reject",
    },
    Expected {
        fault: Fault::StaleFdb,
        from: "shop/web-0",
        to: "10.244.2.4:8080",
        node: "node-1",
        end: |end| {
            matches!(
                end,
                Disposition::Dropped(DropReason::VxlanNoRemote | DropReason::NeighFailed)
            )
        },
        object: "10.88.0.99",
    },
    Expected {
        fault: Fault::RpFilter,
        from: "shop/web-0",
        to: "10.244.2.4:8080",
        node: "node-2",
        end: |end| *end == Disposition::Dropped(DropReason::IpRpfilter),
        object: "rp_filter",
    },
    Expected {
        fault: Fault::ListenerGone,
        from: "default/pod-a",
        to: "10.244.2.12:8080",
        node: "node-2",
        end: |end| *end == Disposition::Rejected(RejectWith::PortClosed),
        object: "nothing listens",
    },
    Expected {
        fault: Fault::ListenerLocalhost,
        from: "default/pod-a",
        to: "10.244.2.12:8080",
        node: "node-2",
        end: |end| *end == Disposition::Rejected(RejectWith::PortClosed),
        object: "127.0.0.1",
    },
    Expected {
        fault: Fault::StaleNeigh,
        from: "shop/web-0",
        to: "10.244.2.4:8080",
        node: "node-1",
        end: |end| *end == Disposition::Dropped(DropReason::VxlanNoRemote),
        object: "0e:00:00:00:00:99",
    },
    Expected {
        fault: Fault::IpForwardOff,
        from: "shop/web-0",
        to: "10.244.2.4:8080",
        node: "node-1",
        end: |end| *end == Disposition::Dropped(DropReason::ForwardingOff),
        object: "forwarding",
    },
    Expected {
        fault: Fault::BridgeNfOff,
        from: "default/pod-a",
        to: "10.96.20.2:80",
        node: "node-1",
        end: |end| *end == Disposition::Dropped(DropReason::NotFromPeer),
        object: "the answer comes from 10.244.1.12",
    },
    Expected {
        fault: Fault::HairpinOff,
        from: "shop/web-0",
        to: "10.96.14.4:80",
        node: "node-1",
        end: |end| *end == Disposition::Dropped(DropReason::BridgeHairpinOff),
        object: "hairpin off",
    },
    Expected {
        fault: Fault::PortGone,
        from: "default/pod-a",
        to: "10.244.2.12:8080",
        node: "node-2",
        end: |end| {
            matches!(
                end,
                Disposition::Rejected(RejectWith::HostUnreachable)
                    | Disposition::Dropped(DropReason::BridgeNoPort)
            )
        },
        object: "cni0",
    },
    Expected {
        fault: Fault::WrongNeigh,
        from: "default/pod-a",
        to: "10.244.2.12:8080",
        node: "node-2",
        end: |end| *end == Disposition::Dropped(DropReason::BridgeNoPort),
        object: "0e:00:00:00:00:98",
    },
];

/// The flow's broken trace, and where and by what it ended.
fn broken(traces: &[Trace]) -> Option<(&Trace, String, String)> {
    let trace = traces.iter().find(|trace| !trace.works())?;
    let mut end = trace;
    while let Some(reply) = end.reply.as_deref().filter(|reply| !reply.works()) {
        end = reply;
    }
    let (hop, step) = end.last_step()?;
    let evidence: Vec<&Evidence> = step.evidence.iter().collect();
    Some((
        trace,
        hop.ns.node.clone(),
        format!("{} {evidence:?}", step.result),
    ))
}

fn check(cluster: &Cluster, oracle: &mut Oracle, fault: Fault) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut questions = Vec::new();
    for (from, to) in FLOWS.iter().chain(SERVICES) {
        let address: SocketAddr = to.parse().expect("an address");
        let prediction = oracle
            .predict(cluster, from, 6, address)
            .expect("a prediction");
        let tries = if SERVICES.contains(&(from, to)) { 6 } else { 1 };
        questions.push((*from, address, prediction, tries));
    }
    // All at once: most of the time goes into waiting for answers that do not come.
    thread::scope(|scope| {
        let mut answers = Vec::new();
        for (from, address, prediction, tries) in &questions {
            for _ in 0..*tries {
                let ask = || {
                    let place = cluster.place(from)?;
                    place.tcp_exchange(*address, SHORT)
                };
                answers.push((from, address, prediction, scope.spawn(ask)));
            }
        }
        for (from, address, prediction, answer) in answers {
            let outcome = answer.join().expect("no panic").expect("an exchange");
            let traces = &prediction.outcome.traces;
            if !traces.iter().any(|trace| fits(trace, &outcome)) {
                let ends: Vec<_> = traces.iter().map(Trace::outcome).collect();
                let text = format!(
                    "{fault:?}: {from} to {address}: kernel {outcome:?}, predicted {ends:?}"
                );
                if !wrong.contains(&text) {
                    wrong.push(text);
                }
            }
        }
    });
    for expected in EXPECTED.iter().filter(|expected| expected.fault == fault) {
        let address = expected.to.parse().expect("an address");
        let prediction = oracle
            .predict(cluster, expected.from, 6, address)
            .expect("a prediction");
        match broken(&prediction.outcome.traces) {
            Some((trace, node, text)) => {
                let good = (expected.end)(trace.outcome())
                    && node == expected.node
                    && text.contains(expected.object);
                if !good {
                    wrong.push(format!(
                        "{fault:?}: wanted {} by {}, got {:?} on {node} by {text}",
                        expected.node,
                        expected.object,
                        trace.outcome()
                    ));
                }
            }
            None => wrong.push(format!(
                "{fault:?}: {} to {} is not broken",
                expected.from, expected.to
            )),
        }
    }
    wrong
}

fn faults(overlay: Overlay, proxy: Proxy) {
    let mut cluster =
        Cluster::up(Spec::new(overlay, proxy).named(&unique())).expect("a laboratory");
    let mut wrong = Vec::new();
    for expected in EXPECTED {
        let fault = expected.fault;
        let needs_tunnel = matches!(fault, Fault::StaleFdb | Fault::StaleNeigh);
        if needs_tunnel && overlay == Overlay::Routed {
            continue;
        }
        cluster.fault_on(fault, None).expect("the fault");
        let mut oracle = Oracle::start(&cluster).expect("helpers");
        wrong.extend(check(&cluster, &mut oracle, fault));
        drop(oracle);
        cluster.fault_off(fault, None).expect("the fault mended");
    }
    cluster.down().expect("down");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn vxlan_iptables_nft() {
    faults(Overlay::Vxlan, Proxy::IptablesNft);
}

#[test]
fn routed_nftables() {
    faults(Overlay::Routed, Proxy::Nftables);
}

#[test]
fn vxlan_iptables_legacy() {
    faults(Overlay::Vxlan, Proxy::IptablesLegacy);
}
