//! Packets whose fate hangs on connections that are there already: sources that clash, translations that are used
//! again, connections from their middle, errors by ICMP.

use anyhow::Result;
use netpath::model::packet::{TCP, UDP};
use netpath_lab::command::feed;
use netpath_lab::network::sysctl;
use netpath_lab::random::ask::Verdict;
use netpath_lab::random::world::{Kind, Probe};

use super::judge::Judge;
use super::net::Net;
use super::programs;

const POD_C: &str = "10.244.1.130";
const POD_D: &str = "10.244.1.131";
const NODE: &str = "10.88.0.11";
const OUT: &str = "198.51.100.1";
const OTHER: &str = "203.0.113.7";

/// A raw packet of TCP with these flags.
fn flags(flags: u8) -> Kind {
    Kind::raw(flags, (8, 0), 0)
}

fn question(from: &str, src: &str, dst: &str, (sport, dport): (u16, u16)) -> Probe {
    Probe {
        from: from.to_owned(),
        kind: Kind::Exchange,
        protocol: TCP,
        src: Some(src.parse().expect("an address")),
        dst: dst.parse().expect("an address"),
        sport,
        dport,
        id: 0,
        dev: None,
    }
}

/// Sends the questions one after the other over a node with these rules. Gives what was predicted to be done to
/// each, in words.
fn through(rules: &str, loose: bool, questions: &[Probe]) -> Result<Vec<String>> {
    let asked = ask(rules, loose, questions)?;
    let said = questions.iter().zip(asked);
    Ok(said
        .map(|(question, (verdict, said))| match verdict {
            Verdict::Agrees(_) => said,
            Verdict::Unknown(why) => panic!("{question}: unknown: {why}"),
            Verdict::Differs(text) => panic!("{text}"),
        })
        .collect())
}

/// The same with how each was judged.
fn ask(rules: &str, loose: bool, questions: &[Probe]) -> Result<Vec<(Verdict, String)>> {
    programs::needs_root();
    let net = Net::up()?;
    net.place("node").enter(|| {
        feed(&["nft", "-f", "-"], rules)?;
        sysctl(
            "net/netfilter/nf_conntrack_tcp_loose",
            if loose { "1" } else { "0" },
        )
    })?;
    let mut wire = net.wire()?;
    let mut judge = Judge::up()?;
    judge.read_all(&net)?;
    let mut said = Vec::new();
    for question in questions {
        let traces = judge.predict(question)?;
        let observed = wire.ask(question)?;
        let verdict = judge.compare(question, &traces, &observed);
        let steps = traces.iter().flat_map(|trace| &trace.hops);
        let steps = steps.flat_map(|hop| &hop.steps).map(|step| &step.result);
        said.push((verdict, steps.cloned().collect::<Vec<_>>().join("; ")));
    }
    Ok(said)
}

const MASQUERADE: &str = "
table ip nat {
	chain post {
		type nat hook postrouting priority srcnat;
		oifname eth0 masquerade
	}
}";

/// The port of one flow is another's; what a source was given is given to its other flows too.
#[test]
fn sources_clash_and_are_given_again() {
    let udp = |question: Probe| Probe {
        protocol: UDP,
        ..question
    };
    let said = through(
        MASQUERADE,
        true,
        &[
            question("c", POD_C, OUT, (40001, 80)),
            question("d", POD_D, OUT, (40001, 80)),
            question("d", POD_D, OTHER, (40001, 80)),
            question("c", POD_C, OTHER, (40001, 80)),
            udp(question("c", POD_C, OUT, (40001, 53))),
            udp(question("d", POD_D, OUT, (40001, 53))),
            udp(question("d", POD_D, OTHER, (40001, 53))),
            udp(question("node", NODE, OUT, (40001, 53))),
            question("node", NODE, OUT, (40001, 80)),
        ],
    )
    .expect("packets can be sent");
    assert!(said[0].contains("masquerade as"), "{}", said[0]);
    // The last two are the node's own.
    for taken in [1, 5, 7, 8] {
        assert!(
            said[taken].contains("its port being taken"),
            "{}",
            said[taken]
        );
    }
    for again in [2, 6] {
        assert!(
            said[again].contains("as other flows of this source"),
            "{}",
            said[again]
        );
    }
}

/// No rule translates the second flow's source, but its answers would be those of the first.
#[test]
fn a_flow_that_no_rule_translates_gets_another_port() {
    let rules = "
table ip nat {
	chain pre {
		type nat hook prerouting priority dstnat;
		ip daddr 10.88.0.11 tcp dport 30080 dnat to 10.244.1.130:8080
	}
	chain post {
		type nat hook postrouting priority srcnat;
		ip saddr 10.244.1.131 udp dport 53 snat to 10.88.0.11:5000
	}
}";
    let udp = |port: u16| Probe {
        protocol: UDP,
        ..question("d", POD_D, OUT, (port, 53))
    };
    let said = through(
        rules,
        true,
        &[
            question("out", OUT, NODE, (41000, 30080)),
            question("out", OUT, POD_C, (41000, 8080)),
            udp(41001),
            udp(41002),
        ],
    )
    .expect("packets can be sent");
    assert!(said[1].contains("another source port"), "{}", said[1]);
    assert!(said[3].contains("no room"), "{}", said[3]);
}

/// The kernel evicts a connection that is over for one whose sequence numbers begin above it: by chance, which is the
/// same from one start of the kernel to the next.
#[test]
fn a_connection_that_is_over_may_give_way() {
    let rules = "
table ip nat {
	chain post {
		type nat hook postrouting priority srcnat;
		ip saddr 10.244.1.131 tcp dport 8080 snat to 10.88.0.11:5000
	}
}";
    let questions = [41001, 41002].map(|port| question("d", POD_D, OUT, (port, 8080)));
    let asked = ask(rules, true, &questions).expect("packets can be sent");
    let [(Verdict::Agrees(_), _), (Verdict::Unknown(why), _)] = &asked[..] else {
        panic!("{asked:?}");
    };
    assert!(why.contains("whether that gives way"), "{why}");
}

const TRACKED: &str = "
table inet filter {
	chain forward {
		type filter hook forward priority filter;
		ct state invalid drop
		ct state related counter reject with icmpx admin-prohibited
	}
}
table ip nat {
	chain pre {
		type nat hook prerouting priority dstnat;
		ip daddr 10.96.0.20 tcp dport 80 dnat to 10.244.2.2:8080
	}
	chain post {
		type nat hook postrouting priority srcnat;
		ip saddr 10.244.1.130 oifname eth0 masquerade
	}
}";

/// Packets from the middle of a connection begin one, or none where nf_conntrack_tcp_loose is 0; an answer whose
/// question was not seen never does.
#[test]
fn connections_from_their_middle() {
    let raw = |own: u8, sport: u16| Probe {
        kind: flags(own),
        ..question("c", POD_C, OUT, (sport, 80))
    };
    for loose in [true, false] {
        let sent = [
            raw(0x10, 42000),
            raw(0x12, 42001),
            raw(0x18, 42002),
            raw(0x11, 42003),
        ];
        let said = through(TRACKED, loose, &sent).expect("packets can be sent");
        assert_eq!(
            !said[0].contains("nf_conntrack_tcp_loose"),
            loose,
            "{}",
            said[0]
        );
    }
}

/// A connection whose question alone was seen; a reset one; one that begins anew.
#[test]
fn connections_in_each_state() {
    let (syn, ack, fin) = (flags(0x02), flags(0x10), flags(0x11));
    let open = question("c", POD_C, OUT, (43000, 80));
    // Nobody answers there, and nobody refuses.
    let silent = question("c", POD_C, "10.88.0.201", (43001, 80));
    let with = |kind: Kind, question: &Probe| Probe {
        kind,
        ..question.clone()
    };
    through(
        TRACKED,
        true,
        &[
            open.clone(),
            with(syn, &open),
            with(syn, &silent),
            with(ack, &silent),
            with(fin, &silent),
        ],
    )
    .expect("packets can be sent");
}

/// Errors by ICMP are related to the flow that they are about, and translated with it; others are invalid.
#[test]
fn errors_belong_to_flows() {
    let error = |from: &str, by: &str, about: &Probe, icmp: (u8, u8)| Probe {
        from: from.to_owned(),
        kind: Kind::Error {
            icmp,
            by: by.parse().expect("an address"),
        },
        ..about.clone()
    };
    // As the server sees them: from the node, since the source is translated.
    let seen = question("out", NODE, "10.244.2.2", (44000, 8080));
    let unknown = question("out", NODE, "10.244.2.2", (44999, 8080));
    for related in ["accept", "drop"] {
        let rules = TRACKED.replace("counter reject with icmpx admin-prohibited", related);
        let said = through(
            &rules,
            true,
            &[
                question("c", POD_C, "10.96.0.20", (44000, 80)),
                // By the server, by a router on the way, and about nothing.
                error("out", "10.244.2.2", &seen, (3, 3)),
                error("out", "10.88.0.1", &seen, (3, 4)),
                error("out", "10.88.0.1", &seen, (11, 0)),
                error("out", "10.88.0.1", &unknown, (3, 1)),
            ],
        )
        .expect("packets can be sent");
        assert!(said[1].contains("related"), "{}", said[1]);
        assert!(said[4].contains("invalid"), "{}", said[4]);
    }
}
