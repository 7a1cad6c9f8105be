//! Connection tracking entries, against those that `conntrack` made.

use std::time::Duration;

use netpath::collect::conntrack;
use netpath::collect::netlink::{Netlink, Protocol};
use netpath::collect::netns::{Hopper, NsFile};
use netpath::explain::conntrack as words;
use netpath::model::conntrack::{ConntrackEntry, ConntrackFilter, Tuple, status};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, Fact, NsTarget, Want};
use netpath::model::{NsKey, Prefix, Section};

use crate::ns::{Ns, collector};

fn find(ns: &Ns, tuple: Tuple) -> Option<ConntrackEntry> {
    let netns = ns.read(Depth::Identity).identity.id;
    let want = Want::Conntrack {
        netns,
        tuple,
        zone: 0,
    };
    let facts = collector().collect(&[want], Duration::from_secs(5));
    match facts.as_slice() {
        [
            Fact::Conntrack {
                entry: Section::Known(entry),
                ..
            },
        ] => entry.clone(),
        other => panic!("{other:?}"),
    }
}

fn tuple(src: &str, dst: &str, protocol: u8, sport: u16, dport: u16) -> Tuple {
    Tuple {
        src: src.parse().expect("an address"),
        dst: dst.parse().expect("an address"),
        protocol,
        sport: Some(sport),
        dport: Some(dport),
    }
}

#[test]
fn an_entry_is_found_by_either_direction() {
    let ns = Ns::new();
    ns.run("conntrack -I -p tcp -s 10.244.1.7 -d 10.96.0.10 --sport 40000 --dport 80 -r 10.244.2.4 -q 10.244.1.7 --reply-port-src 8080 --reply-port-dst 40000 --state ESTABLISHED -u SEEN_REPLY,ASSURED -t 120 -m 7");
    let orig = tuple("10.244.1.7", "10.96.0.10", 6, 40000, 80);
    let reply = tuple("10.244.2.4", "10.244.1.7", 6, 8080, 40000);
    let entry = find(&ns, orig).expect("by the original direction");
    assert_eq!((entry.orig, entry.reply), (orig, reply));
    assert_eq!((entry.mark, entry.zone, entry.tcp_state), (7, 0, Some(3)));
    assert!(entry.timeout.is_some_and(|left| left <= 120));
    let wanted = status::SEEN_REPLY | status::ASSURED | status::CONFIRMED;
    assert_eq!(entry.status & wanted, wanted);
    assert_eq!(find(&ns, reply).map(|entry| entry.orig), Some(orig));
    assert_eq!(
        find(&ns, tuple("10.244.1.7", "10.96.0.10", 6, 40001, 80)),
        None
    );
    // The port of a flow to come is not fixed: that can't be asked.
    let netns = ns.read(Depth::Identity).identity.id;
    let open = Tuple {
        sport: None,
        ..orig
    };
    let want = Want::Conntrack {
        netns,
        tuple: open,
        zone: 0,
    };
    let facts = collector().collect(&[want], Duration::from_secs(5));
    assert!(matches!(
        facts.as_slice(),
        [Fact::Conntrack {
            entry: Section::Missing(_),
            ..
        }]
    ));
}

#[test]
fn udp_icmp_and_ipv6() {
    let ns = Ns::new();
    ns.run("conntrack -I -p udp -s 10.0.0.1 -d 10.0.0.2 --sport 1111 --dport 53 -t 60");
    ns.run("conntrack -I -p icmp -s 10.0.0.1 -d 10.0.0.2 --icmp-type 8 --icmp-code 0 --icmp-id 77 -t 60");
    ns.run(
        "conntrack -I -p tcp -s fd00::1 -d fd00::2 --sport 1111 --dport 80 --state SYN_SENT -t 60",
    );
    assert!(find(&ns, tuple("10.0.0.1", "10.0.0.2", 17, 1111, 53)).is_some());
    let echo = tuple("10.0.0.1", "10.0.0.2", 1, 77, 8 << 8);
    let entry = find(&ns, echo).expect("the echo");
    assert_eq!((entry.orig, entry.reply), (echo, echo.inverted()));
    let v6 = find(&ns, tuple("fd00::1", "fd00::2", 6, 1111, 80)).expect("the IPv6 flow");
    assert_eq!(v6.tcp_state, Some(1));
}

/// Answers of one request for a namespace's identity and its table, taken into a topology.
fn table(ns: &Ns) -> netpath::model::netns::NetNs {
    filtered(ns, ConntrackFilter::default())
}

fn filtered(ns: &Ns, filter: ConntrackFilter) -> netpath::model::netns::NetNs {
    let target = NsTarget::Named(ns.0.clone());
    let wants = [
        Want::ConntrackTable {
            target: target.clone(),
            filter,
        },
        Want::ConntrackStats {
            target: target.clone(),
        },
        Want::NetNs {
            target,
            depth: Depth::Identity,
        },
    ];
    let mut topology = Topology::default();
    for fact in collector().collect(&wants, Duration::from_secs(20)) {
        topology.merge("here", fact);
    }
    let mut all = topology.all();
    let (NsKey { .. }, read) = all.next().expect("the namespace");
    assert!(all.next().is_none());
    read.clone()
}

/// A line of `conntrack -L` without the timeout, which runs, and the use count.
fn line(text: &str) -> String {
    let mut words: Vec<&str> = text.split(' ').collect();
    words.retain(|word| !word.starts_with("use="));
    let number = |word: &&str| word.parse::<u32>().is_ok();
    // The first number is the protocol's.
    let mut numbers = words.iter().enumerate().filter(|(_, word)| number(word));
    if let Some((at, _)) = numbers.nth(1) {
        words.remove(at);
    }
    words.join(" ").trim_end().to_owned()
}

fn line_of_sctp(text: &str) -> String {
    line(&text.replace("ESTABLISHED ", ""))
}

/// Each filter lets pass what the same one of `conntrack -L` does.
#[test]
fn filters_are_those_of_conntrack() {
    let ns = Ns::new();
    for sport in 1000..1010 {
        ns.run(&format!("conntrack -I -p tcp -s 10.244.1.{} -d 10.96.0.10 --sport {sport} --dport 80 -r 10.244.2.4 -q 10.88.0.11 --reply-port-src 8080 --reply-port-dst {} --state {} -u SEEN_REPLY,ASSURED -t 300 -m {}", sport % 3 + 1, sport + 1, ["ESTABLISHED", "TIME_WAIT"][sport % 2], sport % 5));
        ns.run(&format!("conntrack -I -p udp -s 10.244.1.{} -d 10.96.0.10 --sport {sport} --dport 53 -t 300 -w {}", sport % 3 + 1, sport % 2));
        ns.run(&format!(
            "conntrack -I -p udp -s fd00::{} -d fd00::2:2 --sport {sport} --dport 53 -t 300",
            sport % 3 + 1
        ));
    }
    let prefix = |text: &str| Some(text.parse::<Prefix>().expect("a prefix"));
    let every = ConntrackFilter::default;
    let cases = [
        (
            "-s 10.244.1.1",
            ConntrackFilter {
                orig: (prefix("10.244.1.1/32"), None),
                ..every()
            },
        ),
        (
            "-s 10.244.1.0/31 -p tcp",
            ConntrackFilter {
                orig: (prefix("10.244.1.0/31"), None),
                protocol: Some(6),
                ..every()
            },
        ),
        (
            "-d 10.96.0.10 -p udp --sport 1003",
            ConntrackFilter {
                orig: (None, prefix("10.96.0.10/32")),
                protocol: Some(17),
                orig_ports: (Some(1003), None),
                ..every()
            },
        ),
        (
            "-r 10.244.2.4",
            ConntrackFilter {
                reply: (prefix("10.244.2.4/32"), None),
                ..every()
            },
        ),
        (
            "-q 10.88.0.11 -p tcp --state TIME_WAIT",
            ConntrackFilter {
                reply: (None, prefix("10.88.0.11/32")),
                protocol: Some(6),
                tcp_state: Some(7),
                ..every()
            },
        ),
        (
            "-m 3",
            ConntrackFilter {
                mark: Some((3, u32::MAX)),
                ..every()
            },
        ),
        (
            "-m 1/1",
            ConntrackFilter {
                mark: Some((1, 1)),
                ..every()
            },
        ),
        (
            "-w 1",
            ConntrackFilter {
                zone: Some(1),
                ..every()
            },
        ),
        (
            "-w 0",
            ConntrackFilter {
                zone: Some(0),
                ..every()
            },
        ),
        (
            "-u ASSURED",
            ConntrackFilter {
                status: (status::ASSURED, 0),
                ..every()
            },
        ),
        (
            "-n",
            ConntrackFilter {
                status: (status::SRC_NAT, 0),
                ..every()
            },
        ),
        (
            "-g",
            ConntrackFilter {
                status: (status::DST_NAT, 0),
                ..every()
            },
        ),
        (
            "-f ipv6 -s fd00::1",
            ConntrackFilter {
                v6: Some(true),
                orig: (prefix("fd00::1/128"), None),
                ..every()
            },
        ),
    ];
    for (options, filter) in cases {
        let family = if options.contains("ipv6") {
            ""
        } else {
            "-f ipv4 "
        };
        let listed = ns.run(&format!("conntrack -L {family}{options}"));
        let mut listed: Vec<String> = listed.lines().map(line).collect();
        let read = filtered(
            &ns,
            ConntrackFilter {
                v6: Some(family.is_empty()),
                ..filter
            },
        );
        assert!(
            read.conntrack_table.known().is_some(),
            "{options}: {:?}",
            read.conntrack_table
        );
        let entries = read.conntrack.iter();
        let mut own: Vec<String> = entries
            .filter_map(|(_, _, entry)| Some(line(&words::line(entry.known()?.as_ref()?))))
            .collect();
        listed.sort();
        own.sort();
        assert_eq!(own, listed, "{options}");
    }
}

/// `conntrack -L` has no words for flows without answer; the kernel has.
#[test]
fn flows_without_answer_are_filtered_too() {
    let ns = Ns::new();
    for sport in [1000, 1001] {
        ns.run(&format!(
            "conntrack -I -p udp -s 10.0.0.1 -d 10.0.0.2 --sport {sport} --dport 53 -t 300"
        ));
        ns.run(&format!("conntrack -I -p udp -s 10.0.0.1 -d 10.0.0.2 --sport {sport} --dport 54 -t 300 -u SEEN_REPLY"));
    }
    let unreplied = ConntrackFilter {
        status: (0, status::SEEN_REPLY),
        ..ConntrackFilter::default()
    };
    let read = filtered(&ns, unreplied);
    let ports = read.conntrack.iter().map(|(tuple, _, _)| tuple.dport);
    assert_eq!(ports.collect::<Vec<_>>(), [Some(53), Some(53)]);
}

/// Kernels up to 6.18 tell of all IPv6 entries but those that are asked for; the answer is right nevertheless.
#[test]
fn flows_between_two_ipv6_ends() {
    let ns = Ns::new();
    for (src, sport) in [("fd00::1", 1000), ("fd00::1", 1001), ("fd00::2", 1002)] {
        ns.run(&format!(
            "conntrack -I -p udp -s {src} -d fd00::9 --sport {sport} --dport 53 -t 300"
        ));
    }
    let netns = ns.read(Depth::Identity).identity.id;
    let tuple = Tuple {
        sport: None,
        ..tuple("fd00::1", "fd00::9", 17, 0, 53)
    };
    let facts = collector().collect(
        &[Want::ConntrackFlows { netns, tuple }],
        Duration::from_secs(5),
    );
    let [
        Fact::ConntrackFlows {
            flows: Section::Known(flows),
            ..
        },
    ] = facts.as_slice()
    else {
        panic!("{facts:?}");
    };
    let counts: Vec<u32> = flows.groups.iter().map(|group| group.count).collect();
    assert_eq!(counts, [2]);
}

/// Counts are those of `conntrack -S` and `-C`.
#[test]
fn counts_are_those_of_conntrack() {
    let ns = Ns::new();
    ns.run("ip link set lo up");
    ns.feed(
        "nft -f -",
        "table inet t {\nchain c {\ntype filter hook input priority 0\nct state invalid drop\n}\n}\n",
    );
    ns.feed(
        "bash",
        "echo x >/dev/udp/127.0.0.1/9; echo x >/dev/tcp/127.0.0.1/9; true",
    );
    let read = table(&ns);
    let stats = read
        .conntrack_stats
        .known()
        .cloned()
        .flatten()
        .expect("counts");
    let listed = ns.run("conntrack -S");
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let listed: Vec<String> = listed.lines().map(squeezed).collect();
    let own: Vec<String> = stats
        .cpus
        .iter()
        .map(|cpu| squeezed(&words::stats_line(cpu)))
        .collect();
    assert_eq!(own, listed);
    assert_eq!(stats.entries.to_string(), ns.run("conntrack -C").trim());
    assert!(stats.entries > 0);
    assert!(stats.max.is_some_and(|max| max > 0));
}

#[test]
fn a_whole_table_is_what_conntrack_lists() {
    let ns = Ns::new();
    let none = table(&ns);
    assert_eq!(none.conntrack_table, Section::Known(0));
    assert!(none.conntrack.is_empty());
    let states = ["SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE"];
    for (at, state) in states.iter().enumerate() {
        ns.run(&format!("conntrack -I -p tcp -s 10.244.1.7 -d 10.96.0.10 --sport {} --dport 80 -r 10.244.2.4 -q 10.244.1.7 --reply-port-src 8080 --reply-port-dst {} --state {state} -u SEEN_REPLY,ASSURED -t 300 -m {at}", 40000 + at, 40000 + at));
        ns.run(&format!(
            "conntrack -I -p udp -s 10.0.0.1 -d 10.0.0.2 --sport {} --dport 53 -t 300",
            1000 + at
        ));
        ns.run(&format!("conntrack -I -p tcp -s fd00::1 -d fd00::2 --sport {} --dport 80 --state SYN_SENT -t 300", 1000 + at));
    }
    ns.run("conntrack -I -p icmp -s 10.0.0.1 -d 10.0.0.2 --icmp-type 8 --icmp-code 0 --icmp-id 77 -t 300");
    ns.run("conntrack -I -p icmpv6 -s fd00::1 -d fd00::2 --icmpv6-type 128 --icmpv6-code 0 --icmpv6-id 78 -t 300");
    ns.run("conntrack -I -p udp -s 10.0.0.1 -d 10.0.0.2 --sport 1000 --dport 53 -w 7 -t 300");
    ns.run(
        "conntrack -I -p udp -s 10.0.0.9 -d 10.0.0.2 --sport 1000 --dport 53 --orig-zone 8 -t 300",
    );
    ns.run("conntrack -I -p sctp -s 10.0.0.1 -d 10.0.0.2 --sport 5 --dport 6 --state ESTABLISHED --orig-vtag 1 --reply-vtag 2 -t 300");

    let mut listed = Vec::new();
    for family in ["ipv4", "ipv6"] {
        let text = ns.run(&format!("conntrack -L -f {family}"));
        // SCTP states are conntrack's own, not read here.
        listed.extend(text.lines().map(|line| {
            if line.contains("sctp") {
                line_of_sctp(line)
            } else {
                self::line(line)
            }
        }));
    }
    let read = table(&ns);
    let mut own = Vec::new();
    for (tuple, _, entry) in &read.conntrack {
        let entry = entry.known().cloned().flatten().expect("an entry");
        assert_eq!(entry.orig, *tuple);
        assert!(entry.timeout.is_some_and(|left| left <= 300));
        own.push(line(&words::line(&entry)));
    }
    assert_eq!(listed.len(), 20);
    assert_eq!(read.conntrack_table, Section::Known(20));
    listed.sort();
    own.sort();
    assert_eq!(own, listed);
}

#[test]
fn a_table_that_is_too_large_is_left() {
    let ns = Ns::new();
    for port in 1..=8 {
        ns.run(&format!(
            "conntrack -I -p udp -s 10.0.0.1 -d 10.0.0.2 --sport {port} --dport 53 -t 300"
        ));
    }
    let file = NsFile::open(format!("/run/netns/{}", ns.0).as_ref()).expect("the namespace");
    let hopper = Hopper::start().expect("a thread");
    let open = || Netlink::open(Protocol::Netfilter);
    let socket = || {
        hopper
            .run(&file, open)
            .expect("the thread")
            .expect("a socket")
    };
    let every = ConntrackFilter::default();
    let mut whole = socket();
    assert_eq!(
        conntrack::table(&mut whole, &every, 8).expect("all").len(),
        8
    );
    assert!(!whole.is_broken());
    let mut cut = socket();
    let error = conntrack::table(&mut cut, &every, 7).expect_err("one too many");
    assert_eq!(
        error.to_string(),
        "dump the conntrack table: it has more than 7 entries, which is where reading stops; say which entries are wanted (--src, --dst, --address, --port, ...), or trace a flow, which reads that flow's entry alone"
    );
    assert!(cut.is_broken());
}

#[test]
fn a_table_of_no_namespace() {
    let target = NsTarget::Named("npc-none".to_owned());
    let want = Want::ConntrackTable {
        target: target.clone(),
        filter: ConntrackFilter::default(),
    };
    let facts = collector().collect(&[want], Duration::from_secs(5));
    assert!(
        matches!(facts.as_slice(), [Fact::NoNetNs { target: told, .. }] if *told == target),
        "{facts:?}"
    );
}

/// Of many entries between many ends, those between two: put together by where they lead.
#[test]
fn flows_between_two_ends_are_filtered_by_the_kernel() {
    let ns = Ns::new();
    let add = |src: &str, sport: u16, dport: u16, leads: &str, more: &str| {
        ns.run(&format!(
            "conntrack -I -p udp -s {src} -d 10.96.0.10 --sport {sport} --dport {dport} -r {leads} -q {src} --reply-port-src 5353 --reply-port-dst {sport} {more}"
        ));
    };
    for port in 0..5 {
        add("10.244.1.7", 40_000 + port, 53, "10.244.2.4", "-t 60");
    }
    add("10.244.1.7", 40_009, 53, "10.244.2.4", "-t 100");
    add("10.244.1.7", 41_000, 53, "10.244.2.5", "-t 60");
    add("10.244.1.7", 41_001, 53, "10.244.2.5", "-t 60 --zone 7");
    // Another port, another sender.
    add("10.244.1.7", 42_000, 54, "10.244.2.6", "-t 60");
    add("10.244.1.8", 43_000, 53, "10.244.2.6", "-t 60");
    ns.run("conntrack -I -p tcp -s 10.244.1.7 -d 10.96.0.10 --sport 44000 --dport 53 --state SYN_SENT -t 60");
    let netns = ns.read(Depth::Identity).identity.id;
    let ask = |sport: Option<u16>| {
        let tuple = Tuple {
            sport,
            ..tuple("10.244.1.7", "10.96.0.10", 17, 0, 53)
        };
        let want = Want::ConntrackFlows { netns, tuple };
        let facts = collector().collect(&[want], Duration::from_secs(5));
        match facts.as_slice() {
            [
                Fact::ConntrackFlows {
                    flows: Section::Known(flows),
                    ..
                },
            ] => {
                assert_eq!(flows.left_out, 0);
                let groups = flows.groups.iter();
                let mut found: Vec<_> = groups
                    .map(|g| (g.entry.reply.src.to_string(), g.entry.zone, g.count))
                    .collect();
                found.sort();
                (found, flows.groups.clone())
            }
            other => panic!("{other:?}"),
        }
    };
    let (found, groups) = ask(None);
    let wanted = [
        ("10.244.2.4", 0, 6),
        ("10.244.2.5", 0, 1),
        ("10.244.2.5", 7, 1),
    ];
    let wanted = wanted.map(|(to, zone, count)| (to.to_owned(), zone, count));
    assert_eq!(found, wanted);
    // The one that lasts longest speaks for its like.
    let lasting = groups.iter().find(|group| group.count == 6);
    assert_eq!(
        lasting.map(|group| group.entry.orig.sport),
        Some(Some(40_009))
    );
    assert_eq!(ask(Some(41_000)).0.len(), 1);
    assert_eq!(ask(Some(1)).0, []);
}
