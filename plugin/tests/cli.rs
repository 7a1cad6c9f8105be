//! The program from outside: help, exit codes, and what it says to wrong input.
#![cfg(unix)]
#![allow(missing_docs, reason = "tests")]

use std::path::{Path, PathBuf};

use assert_cmd::Command;
use netpath::contract::{MAGIC, Reply, SCHEMA_VERSION, file, frame};
use netpath::model::addr::Addr;
use netpath::model::conntrack::{ConntrackEntry, Tuple};
use netpath::model::link::{Inet6Conf, InetConf, Link, LinkKind};
use netpath::model::names::{Names, NodeName, PodName};
use netpath::model::netfilter::Ruleset;
use netpath::model::netns::{NetNs, NsIdentity};
use netpath::model::route::{NextHop, RT_TABLE_LOCAL, Route, RouteKind};
use netpath::model::rule::Rule;
use netpath::model::socket::Socket;
use netpath::model::sysctl::Sysctls;
use netpath::model::topology::Topology;
use netpath::model::want::{Fact, NsTarget};

use netpath::model::{IfIndex, NetNsId, Section};

/// Runs it with nothing of this machine's settings; gives exit code, stdout and stderr.
fn run_with(args: &[&str], vars: &[(&str, &Path)]) -> (i32, String, String) {
    let mut command = Command::cargo_bin("kubectl-netpath").expect("it is built");
    command.env_clear().args(args);
    for (name, value) in vars {
        command.env(name, value);
    }
    let output = command
        .timeout(std::time::Duration::from_secs(60))
        .output()
        .expect("it runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let stderr = text(&output.stderr);
    assert!(!stderr.contains("panicked"), "{stderr}");
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        stderr,
    )
}

fn run(args: &[&str]) -> (i32, String, String) {
    run_with(args, &[])
}

/// Fails with code 2, says nothing on stdout, and all of `words` on stderr.
fn refused(args: &[&str], words: &[&str]) {
    refused_with(args, &[], words);
}

fn refused_with(args: &[&str], vars: &[(&str, &Path)], words: &[&str]) {
    let (code, stdout, stderr) = run_with(args, vars);
    assert_eq!(code, 2, "{args:?}: {stdout}{stderr}");
    assert_eq!(stdout, "", "{args:?}");
    for word in words {
        assert!(
            stderr.contains(word),
            "{args:?}: {word:?} is not in: {stderr}"
        );
    }
}

#[test]
fn help_of_every_command() {
    for command in [
        "",
        "trace",
        "map",
        "dump",
        "capture",
        "check",
        "snapshot",
        "snapshot save",
        "explain",
        "cleanup",
        "version",
        "completion",
    ] {
        let mut args: Vec<&str> = command.split(' ').filter(|word| !word.is_empty()).collect();
        args.push("--help");
        let (code, stdout, _) = run(&args);
        assert_eq!(code, 0, "{command}");
        assert!(stdout.contains("Usage: kubectl netpath"), "{stdout}");
        let name = if command.is_empty() { "all" } else { command };
        let stdout = stdout.replace(env!("CARGO_PKG_VERSION"), "VERSION");
        insta::assert_snapshot!(format!("help_{}", name.replace(' ', "_")), stdout);
    }
}

#[test]
fn wrong_usage_is_refused() {
    refused(&[], &["Usage: kubectl netpath"]);
    refused(&["nonsense"], &["nonsense"]);
    refused(&["trace"], &["<SRC>", "<DST>"]);
    refused(&["trace", "a"], &["<DST>"]);
    refused(&["trace", "-4", "-6", "a", "b"], &["--ipv6"]);
    refused(
        &["trace", "a", "b", "--protocol", "smtp"],
        &["smtp", "sctp"],
    );
    refused(
        &["trace", "a", "b", "--source-port", "0"],
        &["--source-port"],
    );
    refused(&["trace", "a", "b", "--size", "9"], &["28..=65535"]);
    refused(&["trace", "a", "b", "-o", "xml"], &["xml", "yaml"]);
    refused(
        &["trace", "--local", "--snapshot", "f", "a", "b"],
        &["--snapshot"],
    );
    refused(&["trace", "a", "b:99999"], &["99999", "65535"]);
    refused(&["trace", "Thing/a", "b"], &["Thing", "deploy"]);
    refused(
        &[
            "trace",
            "a",
            "b",
            "--protocol",
            "icmp",
            "--source-port",
            "1",
        ],
        &["no ports"],
    );
    refused(&["dump", "everything", "a"], &["everything", "netfilter"]);
    refused(&["explain", "NP9999"], &["NP9999", "NP0101"]);
    refused(&["map", "ifindex/zero"], &["zero"]);
    refused(
        &["snapshot", "save", "f", "--snapshot", "g"],
        &["--snapshot"],
    );
    refused(&["snapshot", "save", "f", "node", "--local"], &["--local"]);
    refused(
        &["snapshot", "save", "/nonexistent/dir/f", "--local"],
        &["/nonexistent/dir"],
    );
}

#[test]
fn a_kubeconfig_that_cannot_be_used() {
    let dir = tempfile::tempdir().unwrap();
    refused(
        &["trace", "a", "b", "--kubeconfig", "/nonexistent"],
        &["/nonexistent"],
    );
    let bad = dir.path().join("bad");
    std::fs::write(&bad, b"\xff\xfe: [").unwrap();
    let path = bad.to_str().unwrap();
    refused(&["trace", "a", "b", "--kubeconfig", path], &[path]);
    refused_with(
        &["trace", "a", "b"],
        &[("HOME", dir.path())],
        &["no cluster is configured", "--kubeconfig"],
    );
}

#[test]
fn findings_are_explained() {
    let (code, list, _) = run(&["explain"]);
    assert_eq!(code, 0);
    assert!(list.contains("NP0101  forwarding is filtered"), "{list}");
    for line in list.lines() {
        let (code, page, _) = run(&["explain", line.split(' ').next().unwrap()]);
        assert_eq!(code, 0);
        assert!(page.contains("## Mend"), "{page}");
    }
}

#[test]
fn versions_and_completions() {
    let (code, text, _) = run(&["version"]);
    assert_eq!(code, 0);
    assert!(text.contains("netpath.snapshot/v1"), "{text}");
    let (code, json, _) = run(&["version", "-o", "json"]);
    assert_eq!(code, 0);
    assert!(json.contains("\"contract\""), "{json}");
    let (code, script, _) = run(&["completion", "bash"]);
    assert_eq!(code, 0);
    assert!(script.contains("kubectl-netpath"));
    let (code, script, _) = run(&["completion", "kubectl"]);
    assert_eq!(code, 0);
    assert!(
        script.contains("exec kubectl-netpath __complete"),
        "{script}"
    );
    // No cluster is configured here: other words are completed all the same, and nothing is said.
    let completed = |words: &[&str]| run(&[&["__complete"], words].concat());
    assert_eq!(
        completed(&["trace", ""]),
        (0, ":4\n".to_owned(), String::new())
    );
    let (code, text, _) = completed(&["dump", "ne"]);
    assert_eq!(code, 0);
    assert!(
        text.starts_with("neigh\t") && text.contains("netfilter\t"),
        "{text}"
    );
}

fn index(number: u32) -> IfIndex {
    IfIndex::new(number).unwrap()
}

/// A namespace with only a loopback, where something listens on port 80.
fn alone(name: &str, ino: u64) -> NetNs {
    let mut ns = NetNs::new(NsIdentity {
        id: NetNsId { dev: 4, ino },
        host: false,
        pod_uid: None,
        paths: vec![format!("/run/netns/{name}")],
        processes: Vec::new(),
    });
    let local = "127.0.0.1".parse().unwrap();
    ns.links = Section::Known(vec![Link {
        loopback: true,
        mtu: 65536,
        inet: Some(InetConf::default()),
        inet6: Some(Inet6Conf::default()),
        ..Link::new(index(1), "lo", LinkKind::Device)
    }]);
    ns.addrs = Section::Known(vec![Addr {
        link: index(1),
        local,
        prefix_len: 8,
        peer: None,
        scope: 254,
        secondary: false,
        tentative: false,
        dadfailed: false,
        deprecated: false,
        nodad: false,
    }]);
    ns.rules = Section::Known(vec![Rule::bare(false, 0, RT_TABLE_LOCAL)]);
    ns.routes = Section::Known(vec![Route {
        table: RT_TABLE_LOCAL,
        dst: "127.0.0.0/8".parse().unwrap(),
        src: None,
        tos: 0,
        metric: 0,
        kind: RouteKind::Local,
        scope: 254,
        protocol: 2,
        prefsrc: Some(local),
        nexthops: vec![NextHop {
            via: None,
            link: Some(index(1)),
            weight: 1,
            dead: false,
            linkdown: false,
            onlink: false,
            encap: None,
        }],
        nh_id: None,
        mtu: None,
        pref: 0,
        realm: None,
        unknown: Vec::new(),
    }]);
    ns.neighs = Section::Known(Vec::new());
    ns.fdb = Section::Known(Vec::new());
    ns.nsids = Section::Known(Vec::new());
    ns.sysctls = Section::Known(Sysctls {
        inet_all: Section::Known(InetConf::default()),
        inet6_all: Section::Known(Inet6Conf::default()),
        bridge_nf_call_iptables: Section::Known(None),
        bridge_nf_call_ip6tables: Section::Known(None),
        bridge_nf_filter_vlan_tagged: Section::Known(None),
        ip_default_ttl: Section::Known(64),
        ip_nonlocal_bind: Section::Known(false),
        ip_forward_use_pmtu: Section::Known(false),
        fib_multipath_hash_policy: Section::Known(0),
        fib_multipath_hash_policy6: Section::Known(0),
        ip_local_port_range: Section::Known((32768, 60999)),
        nf_conntrack_max: Section::Known(None),
        nf_conntrack_count: Section::Known(None),
        nf_conntrack_tcp_be_liberal: Section::Known(None),
        nf_conntrack_tcp_loose: Section::Known(None),
        nf_conntrack_acct: Section::Known(None),
        icmp_echo_ignore_all: Section::Known(false),
        icmp6_echo_ignore_all: Section::Known(Some(false)),
        tcp_l3mdev_accept: Section::Known(Some(false)),
        udp_l3mdev_accept: Section::Known(Some(false)),
        raw_l3mdev_accept: Section::Known(Some(false)),
    });
    ns.sockets = Section::Known(vec![Socket {
        protocol: 6,
        addr: "0.0.0.0".parse().unwrap(),
        port: 80,
        v6only: None,
        listening: true,
        remote: None,
        bound_dev: None,
        bound_dev_unread: false,
        backlog: None,
        transparent: None,
        uid: 0,
        inode: 1,
    }]);
    ns.nft = Section::Known(Ruleset::default());
    ns.legacy = Section::Known(Ruleset::default());
    ns.ipvs = Section::Known(None);
    ns.recent = Section::Known(Vec::new());
    ns.nfqueues = Section::Known(Vec::new());
    ns.nfacct = Section::Known(Vec::new());
    ns.unread_tables = Section::Known(Vec::new());
    ns
}

fn saved(dir: &Path, name: &str, spaces: Vec<NetNs>, names: &Names) -> PathBuf {
    let mut topology = Topology::default();
    for ns in spaces {
        topology.merge("here", Fact::NetNs(Box::new(ns)));
    }
    let path = dir.join(name);
    file::write(std::fs::File::create(&path).unwrap(), &topology, names).unwrap();
    path
}

#[test]
fn exit_codes_tell_how_it_ended() {
    let dir = tempfile::tempdir().unwrap();
    let mut blind = alone("b", 2);
    blind.routes = Section::Missing("read routes: permission denied".to_owned());
    let path = saved(
        dir.path(),
        "net.json",
        vec![alone("a", 1), blind],
        &Names::default(),
    );
    let path = path.to_str().unwrap();
    let trace =
        |source: &str, destination: &str| run(&["trace", "--snapshot", path, source, destination]);
    let (code, stdout, stderr) = trace("netns/a", "127.0.0.1:80");
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("✓ delivered"), "{stdout}");
    let (code, stdout, stderr) = trace("netns/a", "127.0.0.1:81");
    assert_eq!(code, 1, "{stdout}{stderr}");
    assert!(stdout.contains("NP0121"), "{stdout}");
    let (code, stdout, stderr) = trace("netns/b", "127.0.0.1:80");
    assert_eq!(code, 3, "{stdout}{stderr}");
    assert!(stdout.contains("permission denied"), "{stdout}");
    let json = |destination: &str| {
        let args = [
            "trace",
            "--snapshot",
            path,
            "netns/a",
            destination,
            "-o",
            "json",
        ];
        let (code, stdout, _) = run(&args);
        let value: serde_json::Value = serde_json::from_str(&stdout).unwrap();
        (code, value)
    };
    let (code, value) = json("127.0.0.1:81");
    assert_eq!((code, &value["verdict"]), (1, &"rejected".into()));
    assert_eq!(value["schema"], "netpath.trace/v1");
    assert_eq!(value["branches"][0]["hops"][0]["netns"], "netns a");
    let (code, value) = json("127.0.0.1:80");
    assert_eq!((code, &value["verdict"]), (0, &"delivered".into()));
    assert_eq!(
        value["branches"][0]["reply"]["disposition"]["kind"],
        "delivered"
    );
}

#[test]
fn ends_of_a_local_file_are_checked() {
    let dir = tempfile::tempdir().unwrap();
    let path = saved(
        dir.path(),
        "net.json",
        vec![alone("a", 1)],
        &Names::default(),
    );
    let path = path.to_str().unwrap();
    let refused = |source: &str, destination: &str, more: &[&str], words: &[&str]| {
        let mut args = vec!["trace", "--snapshot", path, source, destination];
        args.extend(more);
        refused_with(&args, &[], words);
    };
    refused("netns/zz", "127.0.0.1", &[], &["netns/zz", "there are a"]);
    refused("pid/77", "127.0.0.1", &[], &["pid/77"]);
    refused(
        "10.9.9.9",
        "127.0.0.1",
        &[],
        &["no namespace of this machine"],
    );
    refused(
        "netns/a",
        "127.0.0.1",
        &["--protocol", "tcp"],
        &["needs a port"],
    );
    refused(
        "netns/a",
        "127.0.0.1:80",
        &["--protocol", "icmp"],
        &["has no port"],
    );
    refused("netns/a", "127.0.0.1:http", &[], &["http"]);
    refused(
        "netns/a",
        "netns/a:80",
        &[],
        &["no address that others could reach"],
    );
    refused("netns/a", "127.0.0.1:80", &["-6"], &["IPv6"]);
    refused("web-0", "api", &[], &["web-0"]);
}

#[test]
fn ends_of_a_cluster_s_file_are_looked_up_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let names = Names {
        pods: vec![PodName {
            namespace: "default".to_owned(),
            name: "web-0".to_owned(),
            uid: "u".to_owned(),
            node: Some("here".to_owned()),
            ips: vec!["10.0.0.1".parse().unwrap()],
            phase: "Running".to_owned(),
            ..PodName::default()
        }],
        nodes: vec![NodeName {
            name: "here".to_owned(),
            ready: true,
            ..NodeName::default()
        }],
        ..Names::default()
    };
    let mut ns = alone("cni-1", 1);
    ns.identity.pod_uid = Some("u".to_owned());
    let path = saved(dir.path(), "net.json", vec![ns], &names);
    let path = path.to_str().unwrap();
    let (code, stdout, stderr) = run(&["trace", "--snapshot", path, "web-0", "127.0.0.1:80"]);
    assert_eq!(code, 0, "{stdout}{stderr}");
    assert!(stdout.contains("pod default/web-0"), "{stdout}");
    refused(
        &["trace", "--snapshot", path, "web-9", "127.0.0.1:80"],
        &["web-9"],
    );
    let (code, stdout, _) = run(&["dump", "routes", "web-0", "--snapshot", path]);
    assert_eq!(code, 0);
    assert_eq!(
        stdout,
        "local 127.0.0.0/8 dev lo table local proto kernel scope host src 127.0.0.1\n"
    );
}

#[test]
fn a_conntrack_table_is_printed_where_there_is_one() {
    let dir = tempfile::tempdir().unwrap();
    let dump = |name: &str, entries: Option<Section<Vec<ConntrackEntry>>>, more: &[&str]| {
        let ns = alone("net0", 1);
        let netns = ns.identity.id;
        let mut topology = Topology::default();
        topology.merge("here", Fact::NetNs(Box::new(ns)));
        if let Some(entries) = entries {
            topology.merge("here", Fact::ConntrackTable { netns, entries });
        }
        let path = dir.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file::write(file, &topology, &Names::default()).unwrap();
        let path = path.to_str().unwrap();
        let args = ["dump", "conntrack", "netns/net0", "--snapshot", path];
        let (code, stdout, stderr) = run(&[&args, more].concat());
        assert_eq!(stderr, "");
        (code, stdout)
    };
    let tuple = |src: &str, dst: &str, sport, dport| Tuple {
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        protocol: 6,
        sport: Some(sport),
        dport: Some(dport),
    };
    let entry = ConntrackEntry {
        status: 0x0e,
        mark: 7,
        timeout: Some(117),
        tcp_state: Some(3),
        ..ConntrackEntry::new(
            tuple("10.244.1.7", "10.96.0.10", 40000, 80),
            tuple("10.244.2.4", "10.244.1.7", 8080, 40000),
        )
    };
    let known = || Some(Section::Known(vec![entry.clone()]));
    let line = "tcp      6 117 ESTABLISHED src=10.244.1.7 dst=10.96.0.10 sport=40000 dport=80 \
        src=10.244.2.4 dst=10.244.1.7 sport=8080 dport=40000 [ASSURED] mark=7\n";
    assert_eq!(dump("one", known(), &[]), (0, line.to_owned()));
    let (code, json) = dump("json", known(), &["-o", "json"]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(code, 0);
    assert_eq!(json["items"][0]["orig"]["src"], "10.244.1.7", "{json}");
    assert_eq!(json["items"][0]["tcp_state"], 3);
    let nothing = "# netns net0 on here: conntrack: no entry\n";
    let empty = Some(Section::Known(Vec::new()));
    assert_eq!(dump("empty", empty, &[]), (0, nothing.to_owned()));
    let why = "# netns net0 on here: conntrack: it has too many\n";
    let missing = Some(Section::Missing("it has too many".to_owned()));
    assert_eq!(dump("missing", missing, &[]), (3, why.to_owned()));
    let (code, stdout) = dump("none", None, &[]);
    assert_eq!(code, 3);
    assert!(
        stdout.contains("snapshot files hold no tables of flows"),
        "{stdout}"
    );
}

#[test]
fn hostile_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let whole = saved(
        dir.path(),
        "net.json",
        vec![alone("a", 1)],
        &Names::default(),
    );
    let bytes = std::fs::read(&whole).unwrap();
    let path = dir.path().join("hostile.json");
    let text = path.to_str().unwrap().to_owned();
    let args = ["trace", "--snapshot", &text, "netns/a", "127.0.0.1:80"];
    refused(&args, &["hostile.json"]);
    for size in [0, 1, 40, bytes.len() / 2, bytes.len() - 2] {
        std::fs::write(&path, &bytes[..size]).unwrap();
        refused(&args, &["hostile.json"]);
    }
    for other in [
        "{}",
        "[]",
        "{\"schema\":\"netpath.snapshot/v9\"}",
        "{\"schema\":\"netpath.snapshot/v1\"}",
        "\u{0}\u{1}\u{2}",
    ] {
        std::fs::write(&path, other).unwrap();
        refused(&args, &["hostile.json"]);
    }
    let deep = format!("{{\"schema\":{}1", "[".repeat(100_000));
    std::fs::write(&path, deep).unwrap();
    refused(&args, &["hostile.json"]);
    let empty = saved(dir.path(), "empty.json", Vec::new(), &Names::default());
    refused(
        &[
            "trace",
            "--snapshot",
            empty.to_str().unwrap(),
            "netns/a",
            "127.0.0.1",
        ],
        &["machine"],
    );
}

/// A program that stands for the helper. A shell writes it: were it open for writing here, a fork of
/// another test's thread could hold it open, and executing it would fail (ETXTBSY).
fn helper(dir: &Path, script: &str) -> PathBuf {
    let path = dir.join("helper");
    let status = std::process::Command::new("sh")
        .args([
            "-c",
            "printf '#!/bin/sh\n%s\n' \"$1\" > \"$0\" && chmod 755 \"$0\"",
        ])
        .arg(&path)
        .arg(script)
        .status();
    assert!(status.unwrap().success());
    path
}

#[cfg(target_os = "linux")]
#[test]
fn helpers_that_misbehave_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["trace", "--local", "netns/a", "10.0.0.1"];
    let says = |script: &str, words: &[&str]| {
        let path = helper(dir.path(), script);
        refused_with(&args, &[("NETPATH_HELPER", &path)], words);
    };
    says(
        "echo bash: netpath-helper: not found; cat >/dev/null",
        &["does not speak", "bash: netpath"],
    );
    says(
        "echo out of memory >&2; exit 7",
        &["exited with code 7", "out of memory"],
    );
    says("kill -9 $$", &["killed"]);
    refused_with(
        &args,
        &[("NETPATH_HELPER", Path::new("/nonexistent"))],
        &["/nonexistent"],
    );
    // A helper of another version, and one that dies after its hello.
    let hello = |schema| {
        frame::encode(&Reply::Hello {
            magic: MAGIC.to_owned(),
            schema,
            version: "9.9.9".to_owned(),
            kernel: "6.12".to_owned(),
            now: 0,
        })
        .unwrap()
    };
    let bytes = dir.path().join("bytes");
    let script = format!("cat {}; head -c 8 >/dev/null", bytes.display());
    std::fs::write(&bytes, hello(SCHEMA_VERSION + 1)).unwrap();
    says(&script, &["9.9.9", "contract"]);
    std::fs::write(&bytes, hello(SCHEMA_VERSION)).unwrap();
    says(&script, &["while collecting"]);
    // Answers without end: each frame takes little on the wire and 60 MiB in memory.
    let mut flood = hello(SCHEMA_VERSION);
    let big = frame::encode(&Reply::Facts {
        id: 1,
        facts: vec![Fact::NoNetNs {
            target: NsTarget::Host,
            why: "x".repeat(60 << 20),
        }],
        last: false,
        micros: 0,
    });
    flood.extend(big.unwrap().repeat(5));
    std::fs::write(&bytes, flood).unwrap();
    says(
        &format!("cat {}; cat >/dev/null", bytes.display()),
        &["this machine", "more than 256 MiB", "ask for less"],
    );
    // A frame of 12 bytes that claims to become 100 MiB.
    let mut liar = hello(SCHEMA_VERSION);
    liar.extend(b"\x0d\x00\x00\x00\x01\x00\x00\x40\x06\x1f\x00\x01\x00\xff\xff\xff\x00");
    std::fs::write(&bytes, liar).unwrap();
    says(
        &format!("cat {}; cat >/dev/null", bytes.display()),
        &["this machine", "claim"],
    );
    // Garbage where facts should come.
    let mut garbage = hello(SCHEMA_VERSION);
    garbage.extend(b"\x05\x00\x00\x00\x00\xff\xff\xff\xff");
    std::fs::write(&bytes, garbage).unwrap();
    says(
        &format!("cat {}; cat >/dev/null", bytes.display()),
        &["this machine"],
    );
}
