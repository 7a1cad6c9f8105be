//! Sets of ipset: what the laboratory's kernel has no types for, and what is not known.

use super::fixture::*;
use crate::model::ipset::*;
use crate::model::netfilter::*;
use crate::model::packet::{L4, Packet};
use crate::model::want::Want;
use crate::model::xtables::{XtMatch, XtTarget};
use crate::model::{MacAddr, Section};
use crate::simulate::netfilter::HookVerdict;
use crate::simulate::skb::{Flows, Skb};
use crate::trace::Evidence;

/// A part in ipset's words.
fn part(field: IpsetField, word: &str) -> IpsetPart {
    match field {
        IpsetField::Ip | IpsetField::Net => {
            let (addr, len) = word.split_once('/').unwrap_or((word, "32"));
            IpsetPart::Net(ip(addr), len.parse().unwrap())
        }
        IpsetField::Port => match word.split_once(':') {
            Some(("tcp", port)) => IpsetPart::Port(Some(6), port.parse().unwrap()),
            Some(("udp", port)) => IpsetPart::Port(Some(17), port.parse().unwrap()),
            Some((other, _)) => panic!("protocol {other}"),
            None => IpsetPart::Port(None, word.parse().unwrap()),
        },
        IpsetField::Mac => IpsetPart::Mac(word.parse().ok()),
        IpsetField::Iface => IpsetPart::Iface {
            name: word.trim_end_matches('+').to_owned(),
            physdev: false,
            wildcard: word.ends_with('+'),
        },
        IpsetField::Mark => IpsetPart::Mark(word.parse().unwrap()),
        IpsetField::Set => IpsetPart::Set(word.to_owned()),
    }
}

fn set(name: &str, kind: &str, members: &[&str]) -> Ipset {
    let kind = IpsetKind::named(kind).unwrap();
    let v6 = matches!(kind.method, IpsetMethod::Hash).then_some(false);
    let member = |line: &&str| {
        let element = line.trim_end_matches(" nomatch");
        let words = element.split(',').chain(std::iter::repeat("-"));
        let fields = kind.fields.iter().zip(words);
        IpsetMember {
            parts: fields.map(|(field, word)| part(*field, word)).collect(),
            nomatch: line.ends_with(" nomatch"),
            ..IpsetMember::default()
        }
    };
    Ipset {
        name: name.to_owned(),
        members: members.iter().map(member).collect(),
        v6,
        revision: 7,
        head: IpsetHead::default(),
        kind,
    }
}

fn asks(name: &str, sides: &str, invert: bool, flags: u32) -> XtMatch {
    XtMatch::Set {
        index: 3,
        name: Some(name.to_owned()),
        unnamed: None,
        dims: sides.split(',').map(|side| side == "src").collect(),
        invert,
        flags,
        counters: None,
    }
}

/// A world that drops what meets all these conditions on its way forward.
fn drops(sets: Vec<Ipset>, conditions: Vec<XtMatch>) -> World {
    let mut rule: Vec<Expr> = conditions.into_iter().map(Expr::Match).collect();
    rule.push(Expr::Target(XtTarget::Standard(Verdict::Drop)));
    let forward = chain(
        "FORWARD",
        Some(base(Hook::Forward, 0, ChainKind::Filter)),
        vec![rule],
    );
    let mut ns = with_nft(vec![table(Family::Ip, "filter", vec![forward], Vec::new())]);
    for set in sets {
        ns.ipsets.insert(set.name.clone(), Section::Known(set));
    }
    World::new(ns)
}

fn packet(dport: u16) -> Packet {
    tcp("10.244.1.7", Some(4000), "10.244.2.2", dport)
}

/// Some(true): dropped; `None`: unknown.
fn sent(world: &mut World, skb: Skb) -> Option<bool> {
    let outcome = world.one(Hook::Forward, (3, 2), skb, Flows::default());
    match outcome.verdict {
        HookVerdict::Drop(_) => Some(true),
        HookVerdict::Accept => Some(false),
        _ => None,
    }
}

/// Whether a set matches a packet.
fn hits(set: Ipset, sides: &str, flags: u32, skb: Skb) -> Option<bool> {
    let condition = asks(&set.name, sides, false, flags);
    let plain = sent(&mut drops(vec![set.clone()], vec![condition]), skb.clone());
    let negated = asks(&set.name, sides, true, flags);
    let inverse = sent(&mut drops(vec![set], vec![negated]), skb);
    assert_eq!(inverse, plain.map(|hit| !hit));
    plain
}

#[test]
fn two_networks_are_tried_by_the_first_ones_length() {
    let set = |members: &[&str]| set("x", "hash:net,net", members);
    let hit = |members: &[&str]| hits(set(members), "src,dst", 0, skb(packet(80), false));
    assert_eq!(hit(&["10.244.1.0/24,10.244.2.0/24"]), Some(true));
    assert_eq!(hit(&["10.244.1.0/24,10.244.3.0/24"]), Some(false));
    // The first network's length counts before the second's.
    let members = [
        "10.244.1.0/24,10.0.0.0/8 nomatch",
        "10.0.0.0/8,10.244.2.2/32",
    ];
    assert_eq!(hit(&members), Some(false));
    let members = [
        "10.244.1.0/24,10.0.0.0/8 nomatch",
        "10.244.1.0/24,10.244.2.2/32",
    ];
    assert_eq!(hit(&members), Some(true));
    assert_eq!(hit(&["0.0.0.0/0,0.0.0.0/0"]), Some(true));
    let kind = "hash:net,port,net";
    let three = super::ipset::set("x", kind, &["10.244.1.0/24,tcp:80,10.244.2.0/24"]);
    for (port, hit) in [(80, true), (81, false)] {
        let skb = skb(packet(port), false);
        assert_eq!(hits(three.clone(), "src,dst,dst", 0, skb), Some(hit));
    }
    // Too few sides: no packet is in it.
    let skb = skb(packet(80), false);
    assert_eq!(hits(three, "src,dst", 0, skb), Some(false));
}

#[test]
fn marks_are_cut_and_may_be_unknown() {
    let mut marks = set("x", "hash:ip,mark", &["10.244.1.7,16"]);
    marks.head.markmask = Some(0xf0);
    for (mark, hit) in [
        (Some(0x1f), Some(true)),
        (Some(0x2f), Some(false)),
        (None, None),
    ] {
        let mut skb = skb(packet(80), false);
        skb.mark = mark;
        assert_eq!(hits(marks.clone(), "src,src", 0, skb), hit);
    }
}

#[test]
fn link_layer_addresses_are_those_of_the_frame() {
    let own = MacAddr([2, 0, 0, 0, 0, 1]);
    let other = MacAddr([2, 0, 0, 0, 0, 9]);
    let framed = |eth| {
        let mut skb = skb(packet(80), false);
        skb.packet.eth = eth;
        skb
    };
    let macs = set("x", "hash:mac", &["02:00:00:00:00:01"]);
    let pairs = set("x", "hash:ip,mac", &["10.244.1.7,02:00:00:00:00:01"]);
    for (eth, src, dst) in [
        (Some((own, other)), Some(true), Some(false)),
        (Some((other, own)), Some(false), Some(true)),
        (Some((MacAddr::ZERO, own)), Some(false), Some(true)),
        (None, None, None),
    ] {
        assert_eq!(hits(macs.clone(), "src", 0, framed(eth)), src);
        assert_eq!(hits(macs.clone(), "dst", 0, framed(eth)), dst);
        assert_eq!(hits(pairs.clone(), "src,src", 0, framed(eth)), src);
        assert_eq!(hits(pairs.clone(), "src,dst", 0, framed(eth)), dst);
    }
    // What this node sends has no frame yet.
    let local = skb(packet(80), true);
    assert_eq!(hits(macs, "src", 0, local), Some(false));
}

#[test]
fn devices_by_the_start_of_their_names() {
    let devices = set("x", "hash:net,iface", &["10.0.0.0/8,cn+"]);
    let packet = || skb(packet(80), false);
    assert_eq!(hits(devices.clone(), "src,src", 0, packet()), Some(true));
    assert_eq!(hits(devices, "src,dst", 0, packet()), Some(false));
    // Two that fit alike, of which one takes out: the kernel's order is not known.
    let both = set(
        "x",
        "hash:net,iface",
        &["10.0.0.0/8,cn+", "10.0.0.0/8,cni0 nomatch"],
    );
    assert_eq!(hits(both, "src,src", 0, packet()), None);
}

#[test]
fn a_port_that_is_any_free_one_is_counted() {
    let any = || skb(tcp("10.244.1.7", None, "10.244.2.2", 80), false);
    let ports = |first: u16, last: u16| {
        let lines: Vec<String> = (first..=last).map(|port| port.to_string()).collect();
        let words: Vec<&str> = lines.iter().map(String::as_str).collect();
        set("x", "bitmap:port", &words)
    };
    assert_eq!(hits(ports(1024, 65535), "src", 0, any()), Some(true));
    assert_eq!(hits(ports(1, 1023), "src", 0, any()), Some(false));
    assert_eq!(hits(ports(4000, 4001), "src", 0, any()), Some(false));
    assert_eq!(hits(ports(30000, 60000), "src", 0, any()), None);
    let icmp = Packet {
        l4: L4::Icmp {
            kind: 8,
            code: 0,
            id: Some(1),
        },
        ..packet(80)
    };
    // Only TCP and UDP: 8/0 would be 2048.
    assert_eq!(
        hits(ports(2048, 2048), "src", 0, skb(icmp, false)),
        Some(false)
    );
}

#[test]
fn counters_are_not_compared() {
    let packet = || skb(packet(80), false);
    let mut counted = set("x", "hash:ip", &["10.244.1.7"]);
    // A set without counters has nothing to compare.
    assert_eq!(hits(counted.clone(), "src", 0x20, packet()), Some(true));
    counted.head.counters = true;
    assert_eq!(hits(counted.clone(), "src", 0x20, packet()), None);
    assert_eq!(hits(counted.clone(), "dst", 0x20, packet()), Some(false));
    assert_eq!(hits(counted, "src", 0, packet()), Some(true));
    // A flag that no kernel had when this was written.
    let plain = set("x", "hash:ip", &["10.244.1.7"]);
    assert_eq!(hits(plain, "src", 0x1000, packet()), None);
}

#[test]
fn sets_that_were_not_read_are_wanted() {
    let mut world = drops(Vec::new(), vec![asks("x", "src", false, 0)]);
    assert_eq!(sent(&mut world, skb(packet(80), false)), None);
    let wanted = world.wants[NODE].first();
    assert!(matches!(wanted, Some(Want::Ipset { set, .. }) if set == "x"));
    // A set of a list, too.
    let list = set("l", "list:set", &["x"]);
    let mut world = drops(vec![list], vec![asks("l", "src", false, 0)]);
    assert_eq!(sent(&mut world, skb(packet(80), false)), None);
    assert_eq!(world.wants[NODE].len(), 1);
}

#[test]
fn what_can_not_be_had_is_told_by_name() {
    let why = |world: &mut World| {
        let packet = skb(packet(80), false);
        let outcome = world.one(Hook::Forward, (3, 2), packet, Flows::default());
        match outcome.verdict {
            HookVerdict::Unknown(why) => why,
            other => panic!("{other:?}"),
        }
    };
    let mut world = drops(Vec::new(), vec![asks("x", "src", false, 0)]);
    let ns = world.topology.nodes.get_mut(NODE).unwrap();
    let ns = ns.netns.values_mut().next().unwrap();
    ns.ipsets
        .insert("x".to_owned(), Section::Missing("type y".to_owned()));
    let told = why(&mut world);
    assert!(told.contains("members of ipset x: type y"), "{told}");
    assert!(world.wants.is_empty());
    let nameless = XtMatch::Set {
        index: 3,
        name: None,
        unnamed: Some("EPERM".to_owned()),
        dims: vec![true],
        invert: false,
        flags: 0,
        counters: None,
    };
    let told = why(&mut drops(Vec::new(), vec![nameless]));
    assert!(told.contains("ipset number 3: EPERM"), "{told}");
}

#[test]
fn an_address_learns_its_first_link_layer_address() {
    let macs = set("x", "bitmap:ip,mac", &["10.244.1.7"]);
    let framed = |last| {
        let mut skb = skb(packet(80), false);
        skb.packet.eth = Some((MacAddr([2, 0, 0, 0, 0, last]), MacAddr::BROADCAST));
        skb
    };
    let mut world = drops(vec![macs], vec![asks("x", "src,src", false, 0)]);
    let first = world.one(Hook::Forward, (3, 2), framed(1), Flows::default());
    assert!(matches!(first.verdict, HookVerdict::Drop(_)));
    let same = world.one(Hook::Forward, (3, 2), framed(1), first.flows.clone());
    assert!(matches!(same.verdict, HookVerdict::Drop(_)));
    let other = world.one(Hook::Forward, (3, 2), framed(2), first.flows);
    assert!(matches!(other.verdict, HookVerdict::Unknown(_)));
}

#[test]
fn what_sets_said_stands_in_the_evidence() {
    let said = |world: &mut World| -> Vec<String> {
        let packet = skb(packet(80), false);
        let outcome = world.one(Hook::Forward, (3, 2), packet, Flows::default());
        let all = outcome.steps.iter().flat_map(|step| &step.evidence);
        let sets = all.filter_map(|found| match found {
            Evidence::SetElement { set, text } => Some(format!("{set}: {text}")),
            _ => None,
        });
        sets.collect()
    };
    let nets = || set("x", "hash:net", &["10.0.0.0/8", "10.244.2.0/24 nomatch"]);
    let found = said(&mut drops(vec![nets()], vec![asks("x", "src", false, 0)]));
    assert_eq!(found, ["x: 10.244.1.7 is in 10.0.0.0/8"]);
    let out = said(&mut drops(vec![nets()], vec![asks("x", "dst", true, 0)]));
    assert_eq!(out, ["x: 10.244.2.2 is taken out by 10.244.2.0/24 nomatch"]);
    let empty = || set("x", "hash:ip", &[]);
    let none = said(&mut drops(vec![empty()], vec![asks("x", "src", true, 0)]));
    assert_eq!(none, ["x: 10.244.1.7 is no member (0 members)"]);
    // A list says which of its sets holds it.
    let list = set("l", "list:set", &["e", "x"]);
    let sets = vec![list, nets(), set("e", "hash:ip", &["10.1.1.1"])];
    let found = said(&mut drops(sets, vec![asks("l", "src", false, 0)]));
    assert_eq!(found, ["l: x: 10.244.1.7 is in 10.0.0.0/8"]);
}
