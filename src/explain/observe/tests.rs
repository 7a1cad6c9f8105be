//! Predictions and sightings made by hand.

use super::*;
use crate::model::NetNsId;
use crate::trace::{DropReason, Hop};

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
    Sighting {
        ns: ns(ino),
        dev: dev.to_owned(),
        out,
        time,
        packet,
        mark: Some(Mark::Tcp {
            seq: if answer { 500 } else { 7 },
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
    }
}

fn observed(traces: &[Trace], answer: Answer, seen: &[Sighting]) -> Observed {
    compare(traces, &probed(answer), seen, &|_| true).expect("there is a trace")
}

#[test]
fn all_as_predicted_is_confirmed_on_the_branch_that_was_taken() {
    let traces = [
        trace(2, Disposition::Delivered),
        trace(3, Disposition::Delivered),
    ];
    let seen = observed(&traces, Answer::Answered, &all(3));
    assert_eq!(
        (seen.agreement, seen.branch),
        (Agreement::Confirmed, 1),
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
    let nowhere = observed(&[trace(2, Disposition::Delivered)], Answer::Silent, &[]);
    let why = nowhere.difference.expect("a difference");
    assert!(why.starts_with("the probe was seen nowhere"), "{why}");
}

#[test]
fn a_predicted_drop_is_confirmed_where_it_stops_and_refuted_where_it_goes_on() {
    let dropped = [trace(2, Disposition::Dropped(DropReason::NetfilterDrop))];
    let seen = observed(&dropped, Answer::Silent, &all(2)[..2]);
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
    let missing = Disposition::Inconclusive(vec!["a program".to_owned()]);
    let seen = observed(&[trace(2, missing)], Answer::Answered, &all(2));
    assert_eq!(seen.agreement, Agreement::Seen);
    assert!(seen.answered);
    assert_eq!(seen.spots.len(), 5);
}

#[test]
fn places_that_nobody_watched_are_no_difference() {
    let traces = [trace(2, Disposition::Delivered)];
    let watched = |key: &NsKey| key.netns.ino != 3;
    let seen: Vec<Sighting> = all(2).into_iter().filter(|one| watched(&one.ns)).collect();
    let seen = compare(&traces, &probed(Answer::Answered), &seen, &watched);
    assert_eq!(seen.map(|seen| seen.agreement), Some(Agreement::Confirmed));
}
