//! The laboratory itself: clusters of every kind come up, carry real traffic, break as told, and
//! leave nothing behind. Needs root; without it these tests fail.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use netpath_lab::packet::Transport;
use netpath_lab::state::ClusterState;
use netpath_lab::{Capture, Cluster, Direction, Fault, Outcome, Overlay, Place, Proxy, Spec};

const LONG: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(400);

/// A laboratory name that no other test uses.
fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "t{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

fn up(overlay: Overlay, proxy: Proxy) -> Cluster {
    Cluster::up(Spec::new(overlay, proxy).named(&unique())).unwrap()
}

fn at(target: &str) -> SocketAddr {
    target.parse().unwrap()
}

fn tcp(from: &Place, target: &str) -> Outcome {
    from.tcp_exchange(at(target), LONG).unwrap()
}

fn udp(from: &Place, target: &str) -> Outcome {
    from.udp_exchange(at(target), LONG).unwrap()
}

/// Whether `pods` answer, each at least once, in the `n` exchanges that `send` makes.
fn all_answer(n: usize, pods: &[&str], send: impl Fn() -> Outcome) {
    let mut seen = BTreeSet::new();
    for _ in 0..n {
        let outcome = send();
        seen.insert(
            outcome
                .pod()
                .unwrap_or_else(|| panic!("{outcome:?}"))
                .to_owned(),
        );
        if seen.len() == pods.len() {
            break;
        }
    }
    assert_eq!(seen, pods.iter().map(|&p| p.to_owned()).collect());
}

const API: [&str; 3] = [
    "api-5d4c7b9f6d-7pdmt",
    "api-5d4c7b9f6d-k9wqz",
    "api-5d4c7b9f6d-x2k7p",
];

/// Every kind of exchange that the issue names, in both families.
fn real_exchanges_succeed(overlay: Overlay, proxy: Proxy) {
    let cluster = up(overlay, proxy);

    let web = cluster.pod("shop/web-0").unwrap();
    let node = cluster.node("node-1").unwrap();
    let outside = cluster.outside().unwrap();

    // Pod to pod: the source address stays.
    for (target, pod, peer) in [
        ("10.244.1.9:8080", API[2], "10.244.1.7"),
        ("[fd00:10:244:1::9]:8080", API[2], "fd00:10:244:1::7"),
        ("10.244.2.4:8080", API[1], "10.244.1.7"),
        ("[fd00:10:244:2::4]:8080", API[1], "fd00:10:244:1::7"),
    ] {
        let outcome = tcp(&web, target);
        assert_eq!(outcome.pod(), Some(pod), "{target}");
        assert_eq!(outcome.peer().unwrap().ip().to_string(), peer, "{target}");
        let datagram = udp(&web, &target.replace("8080", "8053"));
        assert_eq!(datagram.pod(), Some(pod), "udp {target}");
    }
    // Pod to ClusterIP, by TCP and UDP, reaching every backend.
    all_answer(100, &API, || tcp(&web, "10.96.14.3:80"));
    all_answer(100, &API, || tcp(&web, "[fd00:10:96::e03]:80"));
    all_answer(100, &API, || udp(&web, "10.96.14.3:53"));
    all_answer(100, &API, || udp(&web, "[fd00:10:96::e03]:53"));
    // The pair that the README traces.
    let pod_a = cluster.pod("default/pod-a").unwrap();
    all_answer(60, &["pod-b-1", "pod-b-2"], || tcp(&pod_a, "10.96.20.2:80"));
    // To a NodePort, from a pod and from outside, on either node.
    for target in [
        "10.88.0.11:30080",
        "10.88.0.12:30080",
        "[fd00:88::11]:30080",
        "[fd00:88::12]:30080",
    ] {
        all_answer(100, &API, || tcp(&web, target));
        all_answer(100, &API, || tcp(&outside, target));
    }
    // A pod to itself through its Service: the answer shows the masqueraded source.
    for target in ["10.96.14.4:80", "[fd00:10:96::e04]:80"] {
        all_answer(60, &["web-0", "web-1"], || {
            let outcome = tcp(&web, target);
            if outcome.pod() == Some("web-0") {
                let source = outcome.peer().unwrap().ip().to_string();
                assert!(
                    source.ends_with(".1") || source.ends_with("::1"),
                    "{source}"
                );
            }
            outcome
        });
    }
    // Node to pod and to ClusterIP.
    for target in [
        "10.244.1.9:8080",
        "10.244.2.4:8080",
        "[fd00:10:244:1::9]:8080",
        "[fd00:10:244:2::4]:8080",
    ] {
        assert!(tcp(&node, target).connected(), "{target}");
    }
    all_answer(100, &API, || tcp(&node, "10.96.14.3:80"));
    all_answer(100, &API, || tcp(&node, "[fd00:10:96::e03]:80"));
    // Pod to outside leaves with the node's address.
    for (target, source) in [
        ("198.51.100.1:80", "10.88.0.11"),
        ("[2001:db8:51::1]:80", "fd00:88::11"),
    ] {
        let outcome = tcp(&web, target);
        assert_eq!(outcome.pod(), Some("outside"));
        assert_eq!(outcome.peer().unwrap().ip().to_string(), source);
    }
    // A pod in the host network.
    assert!(tcp(&web, "10.88.0.12:9100").connected());
    // A Service without endpoints is refused at once.
    for target in ["10.96.14.5:80", "[fd00:10:96::e05]:80"] {
        assert_eq!(tcp(&web, target), Outcome::Refused, "{target}");
    }
    cluster.down().unwrap();
}

#[test]
fn vxlan_iptables_nft() {
    real_exchanges_succeed(Overlay::Vxlan, Proxy::IptablesNft);
}

#[test]
fn vxlan_iptables_legacy() {
    real_exchanges_succeed(Overlay::Vxlan, Proxy::IptablesLegacy);
}

#[test]
fn vxlan_nftables() {
    real_exchanges_succeed(Overlay::Vxlan, Proxy::Nftables);
}

#[test]
fn routed_iptables_nft() {
    real_exchanges_succeed(Overlay::Routed, Proxy::IptablesNft);
}

#[test]
fn routed_iptables_legacy() {
    real_exchanges_succeed(Overlay::Routed, Proxy::IptablesLegacy);
}

#[test]
fn routed_nftables() {
    real_exchanges_succeed(Overlay::Routed, Proxy::Nftables);
}

/// Switches `fault` on, checks that every one of `broken` ends in `expected` and every one of
/// `whole` still works, then switches it off and checks that all work. Ends are (place, target).
fn breaks(
    cluster: &mut Cluster,
    fault: Fault,
    expected: &Outcome,
    broken: &[(&str, &str)],
    whole: &[(&str, &str)],
) {
    // A refusal over IPv6 takes a second here: the ICMPv6 error comes back while connect() still
    // holds the socket, and counts only when the SYN is sent again (`tcp_v6_err()`).
    let wait = if *expected == Outcome::TimedOut {
        SHORT
    } else {
        LONG
    };
    let ask = |cluster: &Cluster, (place, target): (&str, &str), wait| {
        cluster
            .place(place)
            .unwrap()
            .tcp_exchange(at(target), wait)
            .unwrap()
    };
    let said = cluster.fault_on(fault, None).unwrap();
    assert!(!said.is_empty());
    for end in broken {
        let outcome = ask(cluster, *end, wait);
        assert_eq!(&outcome, expected, "{fault}: {end:?} ({said})");
    }
    for end in whole {
        let outcome = ask(cluster, *end, LONG);
        assert!(
            outcome.connected(),
            "{fault}: {end:?}: {outcome:?} ({said})"
        );
    }
    cluster.fault_off(fault, None).unwrap();
    for end in broken.iter().chain(whole) {
        let outcome = ask(cluster, *end, LONG);
        assert!(outcome.connected(), "after {fault}: {end:?}: {outcome:?}");
    }
}

const WEB: &str = "shop/web-0";
const HERE: (&str, &str) = (WEB, "10.244.1.9:8080");
const HERE6: (&str, &str) = (WEB, "[fd00:10:244:1::9]:8080");
const THERE: (&str, &str) = (WEB, "10.244.2.4:8080");
const THERE6: (&str, &str) = (WEB, "[fd00:10:244:2::4]:8080");
const POD_B: (&str, &str) = ("default/pod-a", "10.244.2.12:8080");
const POD_B6: (&str, &str) = ("default/pod-a", "[fd00:10:244:2::12]:8080");

/// Faults that act the same whatever the proxy is.
fn network_faults(overlay: Overlay) {
    let mut cluster = up(overlay, Proxy::IptablesNft);
    let lost = Outcome::TimedOut;
    breaks(
        &mut cluster,
        Fault::ForwardDrop,
        &lost,
        &[THERE, THERE6],
        &[HERE],
    );
    breaks(
        &mut cluster,
        Fault::MissingRoute,
        &lost,
        &[THERE, THERE6],
        &[HERE, HERE6],
    );
    breaks(
        &mut cluster,
        Fault::RpFilter,
        &lost,
        &[THERE],
        &[HERE, THERE6],
    );
    breaks(
        &mut cluster,
        Fault::StaleNeigh,
        &lost,
        &[THERE, THERE6],
        &[HERE, HERE6],
    );
    breaks(
        &mut cluster,
        Fault::IpForwardOff,
        &lost,
        &[THERE, THERE6],
        &[HERE, HERE6],
    );
    if overlay == Overlay::Vxlan {
        breaks(
            &mut cluster,
            Fault::StaleFdb,
            &lost,
            &[THERE, THERE6],
            &[HERE, HERE6],
        );
    }
    breaks(
        &mut cluster,
        Fault::ListenerGone,
        &Outcome::Refused,
        &[POD_B, POD_B6],
        &[HERE],
    );
    breaks(
        &mut cluster,
        Fault::ListenerLocalhost,
        &Outcome::Refused,
        &[POD_B, POD_B6],
        &[HERE],
    );
    // Somebody on the same bridge must notice that the neighbour is gone.
    let unreachable = cluster.fault_on(Fault::VethDown, None).unwrap();
    assert!(unreachable.contains("down"));
    for target in [POD_B.1, POD_B6.1] {
        let outcome = cluster
            .pod("default/pod-a")
            .unwrap()
            .tcp_exchange(at(target), SHORT)
            .unwrap();
        assert!(!outcome.connected(), "{outcome:?}");
    }
    cluster.fault_off(Fault::VethDown, None).unwrap();
    let outcome = tcp(&cluster.pod("default/pod-a").unwrap(), POD_B.1);
    assert!(outcome.connected(), "{outcome:?}");
}

#[test]
fn faults_of_the_vxlan_network() {
    network_faults(Overlay::Vxlan);
}

#[test]
fn faults_of_the_routed_network() {
    network_faults(Overlay::Routed);
}

/// The asymmetric route alone does no harm: it is the strict filter that drops.
#[test]
fn the_reverse_path_filter_is_what_drops() {
    for overlay in Overlay::ALL {
        let mut cluster = up(overlay, Proxy::Nftables);
        cluster.fault_on(Fault::RpFilter, None).unwrap();
        let web = cluster.pod(WEB).unwrap();
        assert_eq!(
            web.tcp_exchange(at(THERE.1), SHORT).unwrap(),
            Outcome::TimedOut
        );
        let interface = match overlay {
            Overlay::Vxlan => "flannel.1",
            Overlay::Routed => "eth0",
        };
        cluster
            .node("node-2")
            .unwrap()
            .enter(|| {
                netpath_lab::network::sysctl(&format!("net/ipv4/conf/{interface}/rp_filter"), "0")
            })
            .unwrap();
        assert!(tcp(&web, THERE.1).connected());
    }
}

/// Faults that touch the Service rules, in every proxy.
fn service_faults(proxy: Proxy) {
    let mut cluster = up(Overlay::Vxlan, proxy);
    breaks(
        &mut cluster,
        Fault::ForwardDrop,
        &Outcome::TimedOut,
        &[THERE, THERE6],
        &[HERE],
    );
    breaks(
        &mut cluster,
        Fault::NoEndpoints,
        &Outcome::Refused,
        &[
            (WEB, "10.96.14.3:80"),
            (WEB, "[fd00:10:96::e03]:80"),
            ("underlay", "10.88.0.12:30080"),
            ("underlay", "[fd00:88::12]:30080"),
        ],
        &[("default/pod-a", "10.96.20.2:80")],
    );
    // Without br_netfilter, a backend on the client's own node answers with its own address.
    cluster.fault_on(Fault::BridgeNfOff, None).unwrap();
    let pod_a = cluster.pod("default/pod-a").unwrap();
    let mut broken = 0;
    for _ in 0..20 {
        let outcome = pod_a.tcp_exchange(at("10.96.20.2:80"), SHORT).unwrap();
        if let Some(pod) = outcome.pod() {
            assert_eq!(pod, "pod-b-2");
        } else {
            assert_eq!(outcome, Outcome::TimedOut);
            broken += 1;
        }
    }
    assert!(
        broken > 0,
        "twenty connections in a row chose the remote backend"
    );
    cluster.fault_off(Fault::BridgeNfOff, None).unwrap();
    all_answer(60, &["pod-b-1", "pod-b-2"], || tcp(&pod_a, "10.96.20.2:80"));
    // Without hairpin mode a pod cannot reach itself through its Service.
    cluster.fault_on(Fault::HairpinOff, None).unwrap();
    let web = cluster.pod(WEB).unwrap();
    let mut broken = 0;
    for _ in 0..20 {
        match web.tcp_exchange(at("10.96.14.4:80"), SHORT).unwrap().pod() {
            Some(pod) => assert_eq!(pod, "web-1"),
            None => broken += 1,
        }
    }
    assert!(
        broken > 0,
        "twenty connections in a row chose the other pod"
    );
    cluster.fault_off(Fault::HairpinOff, None).unwrap();
    all_answer(60, &["web-0", "web-1"], || tcp(&web, "10.96.14.4:80"));
}

#[test]
fn faults_of_services_in_iptables_nft() {
    service_faults(Proxy::IptablesNft);
}

#[test]
fn faults_of_services_in_iptables_legacy() {
    service_faults(Proxy::IptablesLegacy);
}

#[test]
fn faults_of_services_in_nftables() {
    service_faults(Proxy::Nftables);
}

/// The oracle: the first packet of a connection is seen on every interface it crosses, in order.
#[test]
fn a_capture_shows_the_path_of_a_connection() {
    let cluster = up(Overlay::Vxlan, Proxy::IptablesNft);
    let web = cluster.pod(WEB).unwrap();
    tcp(&web, THERE.1);
    let capture = Capture::of_cluster(&cluster).unwrap();
    let outcome = tcp(&web, THERE.1);
    let seen = capture.stop().unwrap();
    let port = outcome.peer().unwrap().port();
    let path: Vec<String> = seen
        .iter()
        .filter(|s| {
            s.frame
                .innermost()
                .is_some_and(|ip| ip.is_syn() && ip.ports() == Some((port, 8080)))
        })
        .map(|s| {
            let name = s.ifname.trim_start_matches("veth");
            let name = if name.len() == 8 && s.ifname != name {
                "veth"
            } else {
                &s.ifname
            };
            let arrow = if s.direction == Direction::In {
                '>'
            } else {
                '<'
            };
            format!("{}{arrow}{name}", s.place)
        })
        .collect();
    assert_eq!(
        path,
        [
            "shop/web-0<eth0",
            "node-1>veth",
            "node-1>cni0",
            "node-1<flannel.1",
            "node-1<eth0",
            "underlay>node-1",
            "underlay<node-2",
            "node-2>eth0",
            "node-2>flannel.1",
            "node-2<cni0",
            "node-2<veth",
            "shop/api-5d4c7b9f6d-k9wqz>eth0",
        ]
    );
    let outer = seen
        .iter()
        .find(|s| {
            s.place == "underlay"
                && s.frame
                    .innermost()
                    .is_some_and(netpath_lab::packet::IpPacket::is_syn)
        })
        .unwrap();
    let Some(Transport::Udp {
        destination: 8472,
        vxlan: Some((1, _)),
        ..
    }) = outer.frame.ip.as_ref().map(|ip| ip.transport.clone())
    else {
        panic!("not VXLAN: {outer:?}");
    };
}

/// Names of the links of the machine's own network namespace.
fn own_links() -> BTreeSet<String> {
    fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Command lines of all processes that name laboratory `name`, and control groups of it.
fn remains_of(name: &str) -> Vec<String> {
    let mut remains = Vec::new();
    for entry in fs::read_dir("/proc").unwrap() {
        let dir = entry.unwrap().path();
        // Whoever adopted a detached node's process reaps it in its own time.
        let stat = fs::read_to_string(dir.join("stat")).unwrap_or_default();
        if stat
            .rsplit_once(") ")
            .is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
        {
            continue;
        }
        let line = fs::read(dir.join("cmdline")).unwrap_or_default();
        let group = fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&format!("--lab {name} ")) || group.contains(&format!("/np-{name}/")) {
            remains.push(line);
        }
    }
    for mount in ["pids", "systemd", "unified", "."] {
        let group = Path::new("/sys/fs/cgroup")
            .join(mount)
            .join(format!("np-{name}"));
        if group.exists() {
            remains.push(group.display().to_string());
        }
    }
    if ClusterState::dir(name).exists() {
        remains.push(ClusterState::dir(name).display().to_string());
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    remains.extend(
        mounts
            .lines()
            .filter(|l| l.contains(name))
            .map(str::to_owned),
    );
    remains
}

#[test]
fn nothing_is_left_behind() {
    let links = own_links();
    let name = unique();
    let spec = Spec::new(Overlay::Vxlan, Proxy::IptablesNft).named(&name);
    let mut cluster = Cluster::up(spec.clone()).unwrap();
    assert!(!remains_of(&name).is_empty(), "the check sees nothing");
    cluster.fault_on(Fault::RpFilter, None).unwrap();
    cluster.fault_on(Fault::ListenerGone, None).unwrap();
    let again = Cluster::up(spec.clone()).unwrap_err().to_string();
    assert!(again.contains("up already"), "{again}");
    drop(cluster);
    assert_eq!(remains_of(&name), Vec::<String>::new());
    assert_eq!(own_links(), links);

    // A laboratory that cannot be completed takes away what it had made.
    let mut spec = spec;
    spec.pods[1].host = spec.pods[0].host;
    spec.pods[1].node = spec.pods[0].node;
    spec.pods[1].name = spec.pods[0].name.clone();
    let error = format!("{:#}", Cluster::up(spec).unwrap_err());
    assert!(error.contains("node-1"), "{error}");
    assert_eq!(remains_of(&name), Vec::<String>::new());
}

#[test]
fn two_laboratories_do_not_meet() {
    let one = up(Overlay::Vxlan, Proxy::Nftables);
    let mut two = up(Overlay::Vxlan, Proxy::IptablesLegacy);
    two.fault_on(Fault::IpForwardOff, None).unwrap();
    assert!(tcp(&one.pod(WEB).unwrap(), THERE.1).connected());
    drop(two);
    assert!(tcp(&one.pod(WEB).unwrap(), THERE.1).connected());
}

/// `/proc/PID/cgroup` names the pod, from outside and from within the node.
#[test]
fn control_groups_name_the_pod() {
    let cluster = up(Overlay::Routed, Proxy::Nftables);
    let pod = cluster.pod_state(WEB).unwrap();
    let tail = format!("/kubepods/burstable/pod{}/{}", pod.uid, pod.container_id);
    let outside = fs::read_to_string(format!("/proc/{}/cgroup", pod.serve_pid.unwrap())).unwrap();
    let full = format!("/np-{}/node-1{tail}", cluster.state.name);
    assert!(
        outside.lines().any(|line| line.ends_with(&full)),
        "{outside}"
    );
    let within = cluster
        .node("node-1")
        .unwrap()
        .run(["sh", "-c", "cat /proc/[0-9]*/cgroup"])
        .unwrap();
    assert!(
        within
            .lines()
            .any(|line| line == format!("0::{tail}") || line.ends_with(&format!(":pids:{tail}"))),
        "{within}"
    );
}

/// The program, as a user calls it: a laboratory outlives `up` and ends with `down`.
#[test]
fn the_program_keeps_a_laboratory_until_down() {
    let name = unique();
    let program = |arguments: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_netpath-lab"))
            .args(arguments)
            .output()
            .unwrap();
        let text =
            String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap();
        (output.status.code().unwrap(), text)
    };
    let (code, text) = program(&["up", "--name", &name, "--nodes", "3", "--proxy", "nftables"]);
    assert_eq!(code, 0, "{text}");
    let (code, text) = program(&["curl", "--name", &name, WEB, "10.244.3.7:8080"]);
    assert!(code == 0 && text.starts_with("web-2 10.244.1.7:"), "{text}");
    let (code, text) = program(&[
        "fault",
        "on",
        "--name",
        &name,
        "listener-gone",
        "shop/web-2",
    ]);
    assert!(code == 0, "{text}");
    let (code, text) = program(&["curl", "--name", &name, WEB, "10.244.3.7:8080"]);
    assert!(code == 1 && text == "refused\n", "{text}");
    let (code, text) = program(&["exec", "--name", &name, "node-3", "--", "hostname"]);
    assert!(code == 0 && text == "node-3\n", "{text}");
    let (code, text) = program(&["down", "--name", &name]);
    assert_eq!(code, 0, "{text}");
    assert_eq!(remains_of(&name), Vec::<String>::new());
    let (code, text) = program(&["down", "--name", &name]);
    assert!(code == 2 && text.contains("no such laboratory"), "{text}");
}

/// A laboratory in the foreground ends in order on Ctrl-C; its nodes end even when it is killed.
#[test]
fn the_program_ends_what_it_holds() {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    let start = |name: &str| -> Child {
        let mut child = Command::new(env!("CARGO_BIN_EXE_netpath-lab"))
            .args(["up", "--foreground", "--name", name])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("is up"), "{line}");
        child
    };
    let signal = |child: &Child, signal| {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    };

    let name = unique();
    let mut child = start(&name);
    signal(&child, nix::sys::signal::Signal::SIGINT);
    assert!(child.wait().unwrap().success());
    assert_eq!(remains_of(&name), Vec::<String>::new());

    let name = unique();
    let mut child = start(&name);
    let state = ClusterState::load(&name).unwrap();
    signal(&child, nix::sys::signal::Signal::SIGKILL);
    child.wait().unwrap();
    let deadline = Instant::now() + LONG;
    for node in state.nodes.iter().chain([&state.underlay]) {
        while fs::read_link(format!("/proc/{}/ns/net", node.holder_pid)).is_ok() {
            assert!(
                Instant::now() < deadline,
                "{} outlived its owner",
                node.name
            );
            std::thread::yield_now();
        }
    }
    assert!(!remains_of(&name).is_empty());
    let other = up(Overlay::Routed, Proxy::Nftables);
    assert!(Cluster::names().unwrap().contains(&name));
    assert!(Cluster::prune().unwrap().contains(&name));
    assert_eq!(remains_of(&name), Vec::<String>::new());
    assert!(tcp(&other.pod(WEB).unwrap(), THERE.1).connected());
}
