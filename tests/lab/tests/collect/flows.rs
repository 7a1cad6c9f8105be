//! Connection tracking entries, against those that `conntrack` made.

use std::time::Duration;

use netpath::model::Section;
use netpath::model::conntrack::{ConntrackEntry, Tuple, status};
use netpath::model::want::{Depth, Fact, Want};

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
