//! Predictions and sightings made by hand.

use super::*;
use crate::model::NetNsId;
use crate::model::packet::Inner;
use crate::model::wireguard::PublicKey;
use crate::trace::{DropReason, Hop, RejectWith, Tap};

const PORT: u16 = 40_000;

fn ns(ino: u64) -> NsKey {
    NsKey {
        node: "n1".to_owned(),
        netns: NetNsId { dev: 4, ino },
    }
}

fn tcp(src: u8, dst: u8, ports: (Option<u16>, Option<u16>), flags: u8) -> Packet {
    let (sport, dport) = ports;
    Packet {
        eth: None,
        src: [10, 0, 0, src].into(),
        dst: [10, 0, 0, dst].into(),
        ttl: 64,
        tos: 0,
        df: true,
        len: 60,
        l4: L4::Tcp {
            sport,
            dport,
            flags,
        },
        inner: None,
    }
}

/// From 10.0.0.1 in namespace 1 through namespace 2, which translates 10.0.0.9 to 10.0.0.`to`, to namespace 3.
fn trace(to: u8, disposition: Disposition) -> Trace {
    let hop = |ino: u64, taps: &[(&str, bool, Packet)]| Hop {
        ns: ns(ino),
        iif: None,
        oif: None,
        packet: tcp(1, 9, (None, Some(80)), 2),
        steps: Vec::new(),
        taps: taps
            .iter()
            .map(|(dev, out, packet)| Tap {
                dev: (*dev).to_owned(),
                out: *out,
                packet: packet.clone(),
            })
            .collect(),
    };
    let (asked, changed) = (
        tcp(1, 9, (None, Some(80)), 2),
        tcp(1, to, (None, Some(8080)), 2),
    );
    let way = |hops, packet: Packet, disposition, reply| Trace {
        probability: 1.0,
        disposition,
        hops,
        packet,
        reply,
    };
    let answer = tcp(to, 1, (Some(8080), None), 18);
    let delivered = disposition == Disposition::Delivered;
    let reply = way(
        vec![hop(3, &[("eth0", true, answer.clone())])],
        answer,
        Disposition::Delivered,
        None,
    );
    let mut hops = vec![
        hop(1, &[("eth0", true, asked.clone())]),
        hop(2, &[("veth1", false, asked)]),
    ];
    if delivered {
        hops[1].taps.push(Tap {
            dev: "veth2".to_owned(),
            out: true,
            packet: changed.clone(),
        });
        hops.push(hop(3, &[("eth0", false, changed.clone())]));
    }
    way(
        hops,
        changed,
        disposition,
        delivered.then(|| Box::new(reply)),
    )
}

fn saw(ino: u64, dev: &str, out: bool, time: i64, packet: Packet) -> Sighting {
    let answer = matches!(packet.l4, L4::Tcp { flags: 18, .. });
    let packet_port = packet.sport();
    Sighting {
        ns: ns(ino),
        dev: dev.to_owned(),
        out,
        time,
        packet,
        mark: Some(Mark::Tcp {
            seq: match packet_port {
                _ if answer => 500,
                Some(PORT) => 7,
                _ => 9,
            },
            ack: if answer { 8 } else { 0 },
        }),
    }
}

/// What is seen where all goes well.
fn all(to: u8) -> Vec<Sighting> {
    let (asked, changed) = (
        tcp(1, 9, (Some(PORT), Some(80)), 2),
        tcp(1, to, (Some(PORT), Some(8080)), 2),
    );
    vec![
        saw(1, "eth0", true, 100, asked.clone()),
        saw(2, "veth1", false, 110, asked),
        saw(2, "veth2", true, 120, changed.clone()),
        saw(3, "eth0", false, 130, changed),
        saw(
            3,
            "eth0",
            true,
            140,
            tcp(to, 1, (Some(8080), Some(PORT)), 18),
        ),
        // The connection goes on, and others have theirs.
        saw(1, "eth0", true, 150, tcp(1, 9, (Some(PORT), Some(80)), 16)),
        saw(
            1,
            "eth0",
            true,
            90,
            tcp(1, 9, (Some(PORT + 1), Some(80)), 2),
        ),
    ]
}

fn probed(answer: Answer) -> Probed {
    Probed {
        from: Some(([10, 0, 0, 1].into(), PORT)),
        answer,
        micros: 900,
        expects: None,
    }
}

fn observed(traces: &[Trace], answer: Answer, seen: &[Sighting]) -> Observed {
    let sights = Sights {
        seen,
        whole: &|_| true,
    };
    compare(traces, &probed(answer), &sights).expect("there is a trace")
}

#[test]
fn all_as_predicted_is_confirmed_on_the_branch_that_was_taken() {
    let traces = [
        trace(2, Disposition::Delivered),
        trace(3, Disposition::Delivered),
    ];
    let seen = observed(&traces, Answer::Answered, &all(3));
    assert_eq!(
        (seen.agreement, seen.end, seen.branch),
        (Agreement::Confirmed, End::Works, 1),
        "{seen:?}"
    );
    assert!(
        seen.spots.iter().all(|spot| spot.met == Met::Confirmed),
        "{seen:?}"
    );
    assert_eq!(seen.spots.len(), 5);
    let times: Vec<Option<i64>> = seen.spots.iter().map(|spot| spot.after).collect();
    assert_eq!(times, [Some(0), Some(10), Some(20), Some(30), Some(40)]);
}

#[test]
fn where_it_was_last_seen_is_said() {
    let seen = &all(2)[..2];
    let seen = observed(&[trace(2, Disposition::Delivered)], Answer::Silent, seen);
    assert_eq!(seen.agreement, Agreement::Differs);
    assert_eq!(
        seen.difference.as_deref(),
        Some(
            "the probe was last seen at veth1 in n1/net:[2] and did not come to veth2 in n1/net:[2]"
        )
    );
    assert_eq!(seen.last, Some((ns(2), "veth1".to_owned())));
    let nowhere = observed(&[trace(2, Disposition::Delivered)], Answer::Silent, &[]);
    let why = nowhere.difference.expect("a difference");
    assert!(why.starts_with("the probe was seen nowhere"), "{why}");
    let seen = observed(
        &[trace(2, Disposition::Delivered)],
        Answer::Silent,
        &all(2)[..4],
    );
    let why = seen.difference.expect("a difference");
    assert!(
        why.contains("no answer was seen at eth0 in n1/net:[3]"),
        "{why}"
    );
}

#[test]
fn what_goes_on_after_it_was_not_seen_is_seen_elsewhere() {
    let mut seen = all(2);
    seen.remove(2);
    let seen = observed(&[trace(2, Disposition::Delivered)], Answer::Answered, &seen);
    assert_eq!((seen.agreement, seen.end), (Agreement::Differs, End::Works));
    let why = seen.difference.expect("a difference");
    assert_eq!(
        why,
        "the probe was not seen at veth2 in n1/net:[2], but at eth0 in n1/net:[3]"
    );
}

#[test]
fn a_predicted_drop_is_confirmed_where_it_stops_and_refuted_where_it_goes_on() {
    let dropped = [trace(2, Disposition::Dropped(DropReason::NetfilterDrop))];
    let seen = observed(&dropped, Answer::Silent, &all(2)[..2]);
    assert_eq!(seen.agreement, Agreement::Confirmed, "{seen:?}");
    // A refusal is no drop; what the sender's own kernel says of its own is.
    let failed = || Answer::Failed("EPERM".to_owned());
    for told in [Answer::Refused, failed()] {
        let seen = observed(&dropped, told, &all(2)[..2]);
        assert_eq!(seen.agreement, Agreement::Differs, "{seen:?}");
    }
    let mut here = dropped.clone();
    here[0].hops.truncate(1);
    let seen = observed(&here, failed(), &all(2)[..1]);
    assert_eq!(seen.agreement, Agreement::Confirmed, "{seen:?}");
    let seen = observed(&dropped, Answer::Answered, &all(2));
    assert_eq!(seen.agreement, Agreement::Differs);
    let elsewhere = seen.spots.iter().filter(|spot| spot.met == Met::Elsewhere);
    assert_eq!(elsewhere.count(), 3, "{seen:?}");
    // Lost behind the place, too.
    let seen = observed(&dropped, Answer::Silent, &all(2)[..3]);
    let why = seen.difference.expect("a difference");
    assert!(
        why.contains("veth2") && why.contains("none was predicted"),
        "{why}"
    );
}

#[test]
fn another_translation_is_told_by_its_fields() {
    let seen = observed(
        &[trace(2, Disposition::Delivered)],
        Answer::Answered,
        &all(3),
    );
    assert_eq!(seen.agreement, Agreement::Differs);
    assert_eq!(
        seen.difference.as_deref(),
        Some("the probe had dst 10.0.0.3 in place of 10.0.0.2 at veth2 in n1/net:[2]")
    );
}

#[test]
fn what_could_not_be_predicted_is_seen() {
    let missing = || Disposition::Inconclusive(vec!["a program".to_owned()]);
    let seen = observed(&[trace(2, missing())], Answer::Answered, &all(2));
    assert_eq!((seen.agreement, seen.end), (Agreement::Seen, End::Works));
    assert_eq!(seen.spots.len(), 5);
    // Before what can't be predicted, it can be wrong.
    let seen = observed(&[trace(2, missing())], Answer::Silent, &all(2)[..1]);
    assert_eq!((seen.agreement, seen.end), (Agreement::Differs, End::Lost));
}

#[test]
fn places_that_nobody_watched_are_no_difference() {
    let traces = [trace(2, Disposition::Delivered)];
    // The receiver's, and the sender's own.
    for unwatched in [3, 1] {
        let whole = |key: &NsKey| key.netns.ino != unwatched;
        let seen: Vec<Sighting> = all(2).into_iter().filter(|one| whole(&one.ns)).collect();
        let sights = Sights {
            seen: &seen,
            whole: &whole,
        };
        let seen = compare(&traces, &probed(Answer::Answered), &sights);
        assert_eq!(seen.map(|seen| seen.agreement), Some(Agreement::Confirmed));
    }
}

#[test]
fn an_end_alone_confirms_no_way() {
    let traces = [trace(2, Disposition::Delivered)];
    let sights = Sights {
        seen: &[],
        whole: &|_| false,
    };
    let seen = compare(&traces, &probed(Answer::Answered), &sights);
    assert_eq!(seen.map(|seen| seen.agreement), Some(Agreement::Unwatched));
}

#[test]
fn who_is_outside_may_refuse() {
    let outside = [trace(2, Disposition::LeavesCluster)];
    let seen = observed(&outside, Answer::Refused, &all(2)[..4]);
    assert_eq!(
        (seen.agreement, seen.end),
        (Agreement::Confirmed, End::Refused),
        "{seen:?}"
    );
}

#[test]
fn a_tunnel_that_leads_elsewhere_is_told_by_its_own_addresses() {
    let outer = |to: u8| Packet {
        l4: L4::Udp {
            sport: None,
            dport: Some(8472),
        },
        inner: Some(Box::new(crate::model::packet::Inner {
            vni: Some(1),
            wrap: crate::model::packet::Wrap::Plain,
            packet: tcp(1, 2, (None, Some(80)), 2),
        })),
        ..tcp(11, to, (None, None), 0)
    };
    assert_eq!(differs(&outer(12), &outer(12)), []);
    let [change] = differs(&outer(12), &outer(13))
        .try_into()
        .expect("one change");
    assert_eq!((&*change.field, &*change.to), ("outer dst", "10.0.0.13"));
}

/// A datagram from 10.0.0.1 in namespace 1 to 10.0.0.2 in namespace 3, and its answer.
fn datagram(disposition: Disposition) -> Trace {
    fn change(trace: &mut Trace) {
        let udp = |packet: &mut Packet| {
            let (sport, dport) = (packet.sport(), packet.dport());
            packet.l4 = L4::Udp { sport, dport };
        };
        udp(&mut trace.packet);
        for hop in &mut trace.hops {
            udp(&mut hop.packet);
            hop.taps.iter_mut().for_each(|tap| udp(&mut tap.packet));
        }
        if let Some(reply) = &mut trace.reply {
            change(reply);
        }
    }
    let mut trace = trace(2, Disposition::Delivered);
    change(&mut trace);
    trace.disposition = disposition;
    trace
}

#[test]
fn a_datagram_need_not_be_answered_and_still_arrives() {
    let mut seen = all(2);
    seen.truncate(4);
    for one in &mut seen {
        let (sport, dport) = (one.packet.sport(), one.packet.dport());
        one.packet.l4 = L4::Udp { sport, dport };
        one.mark = Some(Mark::Payload(5));
    }
    for end in [Disposition::Delivered, Disposition::LeavesCluster] {
        let observed = observed(&[datagram(end)], Answer::Silent, &seen);
        assert_eq!(
            (observed.agreement, observed.end),
            (Agreement::Confirmed, End::Unanswered),
            "{observed:?}"
        );
        assert_eq!(observed.spots.len(), 4);
    }
    // Lost on its way it is, all the same.
    let lost = observed(
        &[datagram(Disposition::Delivered)],
        Answer::Silent,
        &seen[..3],
    );
    assert_eq!((lost.agreement, lost.end), (Agreement::Differs, End::Lost));
}

#[test]
fn packets_of_a_connection_that_stands_are_looked_at() {
    let mut exchange = trace(2, Disposition::Delivered);
    let answer = exchange.reply.as_deref_mut().expect("an answer");
    let mut next = trace(2, Disposition::Dropped(DropReason::NetfilterDrop));
    for hop in &mut next.hops {
        for tap in &mut hop.taps {
            tap.packet = tcp(1, 9, (None, Some(80)), 0x18);
        }
    }
    answer.reply = Some(Box::new(next));
    let mut seen = all(2);
    let mut later = seen[5].clone();
    (later.ns, later.dev, later.out) = (ns(2), "veth1".to_owned(), false);
    seen.push(later);
    let observed_one = observed(&[exchange.clone()], Answer::Answered, &seen);
    assert_eq!(
        observed_one.agreement,
        Agreement::Confirmed,
        "{observed_one:?}"
    );
    assert_eq!(observed_one.spots.len(), 7);
    seen.pop();
    let lost = observed(&[exchange], Answer::Answered, &seen);
    assert_eq!(
        (lost.agreement, lost.end),
        (Agreement::Differs, End::Lost),
        "{lost:?}"
    );
}

/// To somebody outside through namespace 2, and his answer.
fn outside() -> (Trace, Vec<Sighting>) {
    let mut trace = trace(9, Disposition::Delivered);
    trace.disposition = Disposition::LeavesCluster;
    trace.hops.truncate(2);
    trace.hops[1].taps.truncate(1);
    let answer = |ttl: u8| Packet {
        ttl,
        ..tcp(9, 1, (Some(80), None), 18)
    };
    let reply = trace.reply.as_mut().expect("an answer");
    reply.hops = vec![Hop {
        ns: ns(2),
        taps: vec![
            Tap {
                dev: "uplink".to_owned(),
                out: false,
                packet: answer(64),
            },
            Tap {
                dev: "veth1".to_owned(),
                out: true,
                packet: answer(63),
            },
        ],
        ..reply.hops[0].clone()
    }];
    let asked = tcp(1, 9, (Some(PORT), Some(80)), 2);
    let came = |ttl: u8| Packet {
        ttl,
        ..tcp(9, 1, (Some(80), Some(PORT)), 18)
    };
    let seen = vec![
        saw(1, "eth0", true, 100, asked.clone()),
        saw(2, "veth1", false, 110, asked),
        saw(2, "uplink", false, 120, came(50)),
        saw(2, "veth1", true, 130, came(49)),
    ];
    (trace, seen)
}

#[test]
fn how_far_an_answer_from_outside_came_is_not_predicted_but_what_happens_here_is() {
    let (trace, mut seen) = outside();
    let observe =
        |seen: &[Sighting]| observed(std::slice::from_ref(&trace), Answer::Answered, seen);
    let near = observe(&seen);
    assert!(
        near.spots.iter().all(|spot| spot.met == Met::Confirmed),
        "{:#?}",
        near.spots
    );
    seen[3].packet.ttl = 50;
    let same = observe(&seen);
    assert!(
        matches!(same.spots.last().expect("a spot").met, Met::Changed(_)),
        "{:#?}",
        same.spots
    );
}

#[test]
fn loopback_shows_what_it_receives() {
    let mut trace = trace(9, Disposition::Delivered);
    let asked = tcp(1, 9, (None, Some(80)), 2);
    trace.hops.truncate(1);
    trace.hops[0].taps = [true, false]
        .map(|out| Tap {
            dev: LOOPBACK.to_owned(),
            out,
            packet: asked.clone(),
        })
        .to_vec();
    trace.reply = None;
    let seen = [saw(
        1,
        LOOPBACK,
        false,
        100,
        tcp(1, 9, (Some(PORT), Some(80)), 2),
    )];
    let observed = observed(&[trace], Answer::Answered, &seen);
    assert_eq!(observed.agreement, Agreement::Confirmed, "{observed:#?}");
    assert_eq!(observed.spots.len(), 1);
}

#[test]
fn the_reset_of_a_predicted_refusal_is_no_stray() {
    let mut trace = trace(4, Disposition::Delivered);
    trace.disposition = Disposition::Rejected(RejectWith::TcpReset);
    trace.reply = None;
    let mut seen = all(4);
    seen[4].packet = tcp(4, 1, (Some(8080), Some(PORT)), 20);
    seen.truncate(5);
    let observed = self::observed(std::slice::from_ref(&trace), Answer::Refused, &seen);
    assert_eq!(observed.agreement, Agreement::Confirmed, "{observed:#?}");
    assert_eq!(observed.spots.last().expect("a spot").met, Met::Told);
    // One by ICMP is another's.
    trace.disposition = Disposition::Rejected(RejectWith::Icmp(3));
    let observed = self::observed(&[trace], Answer::Refused, &seen);
    assert_eq!(observed.spots.last().expect("a spot").met, Met::Elsewhere);
}

#[test]
fn what_is_lost_between_nodes_is_looked_for_there() {
    let mut trace = trace(4, Disposition::Delivered);
    for hop in &mut trace.hops[2..] {
        hop.ns.node = "n2".to_owned();
    }
    let seen = &all(4)[..3];
    let mut sealed = trace.clone();
    let lost = observed(&[trace], Answer::Silent, seen);
    let said = verdict::between(&lost).expect("words");
    assert!(
        said.contains("left n1 by veth2 and did not come to n2 by eth0"),
        "{said}"
    );
    // What a tunnel seals is on its way under other addresses.
    let mut tunnel = all(4)[2].packet.clone();
    tunnel.src = [192, 0, 2, 1].into();
    tunnel.dst = [192, 0, 2, 2].into();
    tunnel.l4 = L4::Udp {
        sport: Some(51_820),
        dport: Some(51_820),
    };
    tunnel.inner = Some(Box::new(Inner {
        vni: None,
        wrap: Wrap::Wireguard {
            from: PublicKey([1; 32]),
            to: PublicKey([2; 32]),
            preshared: false,
        },
        packet: all(4)[2].packet.clone(),
    }));
    sealed.hops[1].taps.push(Tap {
        dev: "uplink".to_owned(),
        out: true,
        packet: tunnel,
    });
    let lost = observed(&[sealed], Answer::Silent, seen);
    let said = verdict::between(&lost).expect("words");
    assert!(
        said.contains("from 192.0.2.1 to 192.0.2.2, UDP port 51820"),
        "{said}"
    );
    // On one node it is something else.
    let lost = observed(
        &[self::trace(4, Disposition::Delivered)],
        Answer::Silent,
        seen,
    );
    assert_eq!(verdict::between(&lost), None);
}

#[test]
fn what_data_is_predicted_to_meet_is_not_confirmed_without_data() {
    let mut trace = trace(4, Disposition::Delivered);
    let mut next = trace.clone();
    next.reply = None;
    next.disposition = Disposition::Dropped(DropReason::NetfilterDrop);
    next.hops.truncate(1);
    let reply = trace.reply.as_mut().expect("an answer");
    reply.reply = Some(Box::new(next));
    let kept = observed(std::slice::from_ref(&trace), Answer::Answered, &all(4));
    assert_eq!(kept.agreement, Agreement::Confirmed, "{kept:#?}");
    // Acknowledgements come further.
    let ack = tcp(1, 9, (Some(PORT), Some(80)), 16);
    let further: Vec<Sighting> = all(4)
        .into_iter()
        .chain([saw(2, "veth1", false, 160, ack)])
        .collect();
    let stands = observed(std::slice::from_ref(&trace), Answer::Answered, &further);
    assert_eq!(stands.agreement, Agreement::Unwatched, "{stands:#?}");
    assert_eq!(stands.end, End::Connected);
    // Of a connection that went another way, the rest was not predicted.
    trace.hops[0].taps[0].packet.ttl = 9;
    let other = observed(&[trace], Answer::Answered, &further);
    assert_eq!(other.agreement, Agreement::Differs, "{other:#?}");
    assert_eq!(other.end, End::Works);
}

#[test]
fn what_needs_data_is_not_shown_by_a_connection() {
    let mut trace = trace(4, Disposition::Delivered);
    let why = "the length of later packets is not known".to_owned();
    let mut next = trace.clone();
    next.reply = None;
    next.disposition = Disposition::Inconclusive(vec![why]);
    next.hops.truncate(1);
    let reply = trace.reply.as_mut().expect("an answer");
    reply.reply = Some(Box::new(next));
    let stands = observed(&[trace], Answer::Answered, &all(4));
    assert_eq!(stands.agreement, Agreement::Seen, "{stands:#?}");
    assert_eq!(stands.end, End::Connected);
}
