//! Connection tracking entries, against those that `conntrack` made.

use std::time::Duration;

use netpath::collect::conntrack;
use netpath::collect::netlink::{Netlink, Protocol};
use netpath::collect::netns::{Hopper, NsFile};
use netpath::explain::words;
use netpath::model::conntrack::{ConntrackEntry, Tuple, status};
use netpath::model::topology::Topology;
use netpath::model::want::{Depth, Fact, NsTarget, Want};
use netpath::model::{NsKey, Section};

use crate::ns::{Ns, collector};

fn find(ns: &Ns, tuple: Tuple) -> Option<ConntrackEntry> {
    let netns = ns.read(Depth::Identity).identity.id;
    let want = Want::Conntrack { netns, tuple };
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
    let want = Want::Conntrack { netns, tuple: open };
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
    let target = NsTarget::Named(ns.0.clone());
    let wants = [
        Want::ConntrackTable {
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

/// What both spellings of an entry have in common: everything but the protocol, the timeout, which
/// runs, and the use count.
fn words_of(line: &str) -> Vec<String> {
    let same = |word: &&str| {
        let kept = word.contains('=') && !word.starts_with("use=");
        kept || word.starts_with('[') || word.starts_with(|c: char| c.is_ascii_uppercase())
    };
    let words = line.split_whitespace().filter(same);
    // A zone stands beside the direction it is of, or after all.
    let (zones, mut rest): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains("zone"));
    rest.extend(zones);
    rest.into_iter()
        .map(|word| word.replace("zone-orig", "zone"))
        .collect()
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
        let text = ns.run(&format!("conntrack -L -f {family} -o extended"));
        // SCTP states are conntrack's own, not read here.
        listed.extend(text.lines().map(|line| {
            let line = if line.contains("sctp") {
                line.replace("ESTABLISHED", "")
            } else {
                line.to_owned()
            };
            words_of(&line)
        }));
    }
    let read = table(&ns);
    let mut own = Vec::new();
    for (tuple, entry) in &read.conntrack {
        let entry = entry.known().cloned().flatten().expect("an entry");
        assert_eq!(entry.orig, *tuple);
        assert!(entry.timeout.is_some_and(|left| left <= 300));
        own.push(words_of(&words::conntrack(&entry)));
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
    let mut whole = socket();
    assert_eq!(conntrack::table(&mut whole, 8).expect("all").len(), 8);
    assert!(!whole.is_broken());
    let mut cut = socket();
    let error = conntrack::table(&mut cut, 7).expect_err("one too many");
    assert_eq!(
        error.to_string(),
        "dump the conntrack table: it has more than 7 entries, which is where reading stops; trace a flow instead, which reads that flow's entry alone"
    );
    assert!(cut.is_broken());
}

#[test]
fn a_table_of_no_namespace() {
    let target = NsTarget::Named("npc-none".to_owned());
    let want = Want::ConntrackTable {
        target: target.clone(),
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
