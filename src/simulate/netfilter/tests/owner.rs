//! Whom a packet belongs to: the sender's socket, and the one that TPROXY gives it to.

use super::fixture::*;
use crate::model::Section;
use crate::model::conntrack::NatRange;
use crate::model::netfilter::*;
use crate::model::packet::{Inner, L4, TCP, Wrap};
use crate::model::socket::Socket;
use crate::model::xtables::{RareMatch, XtMatch, XtTarget};
use crate::simulate::netfilter::HookVerdict;
use crate::simulate::skb::{CtRef, Flows};
use crate::trace::DropReason;

fn output(rule: Vec<Expr>) -> Vec<Table> {
    let policy = BaseChain {
        policy: Policy::Accept,
        ..base(Hook::Output, 0, ChainKind::Filter)
    };
    let chain = chain("OUTPUT", Some(policy), vec![rule]);
    vec![table(Family::Ip, "filter", vec![chain], Vec::new())]
}

fn owned(uid: Option<(u32, u32, bool)>, gid: Option<(u32, u32, bool)>) -> Vec<Expr> {
    let owner = XtMatch::Owner {
        uid,
        gid,
        socket: None,
        supplementary: false,
    };
    vec![
        Expr::Match(owner),
        Expr::Target(XtTarget::Standard(Verdict::Drop)),
    ]
}

#[test]
fn rules_ask_for_the_senders_user_and_group() {
    let group = Some((1337, 1337, false));
    for (gid, dropped) in [(Some(1337), true), (Some(0), false)] {
        let mut world = World::new(with_nft(output(owned(None, group))));
        let mut skb = skb(tcp("10.88.0.11", Some(40000), "10.88.0.12", 80), true);
        skb.gid = gid;
        let outcome = world.one(Hook::Output, (0, 2), skb, Flows::default());
        assert_eq!(!is_accept(&outcome), dropped, "{gid:?}");
    }
    let mut world = World::new(with_nft(output(owned(None, group))));
    let skb = skb(tcp("10.88.0.11", Some(40000), "10.88.0.12", 80), true);
    let outcome = world.one(Hook::Output, (0, 2), skb, Flows::default());
    let said = HookVerdict::Unknown(
        "handle 1 of ip filter chain OUTPUT (-m owner --gid-owner 1337 -j DROP): the sender's gid is not known (the packet is dropped where it holds, else it goes on)".to_owned(),
    );
    assert_eq!(outcome.verdict, said);
}

fn tproxy(transparent: Option<bool>, port: u16) -> World {
    let target = XtTarget::Tproxy {
        mark: (0x111, 0xfff),
        addr: ip("127.0.0.1"),
        port: 15006,
    };
    let chain = chain(
        "PREROUTING",
        Some(base(Hook::Prerouting, -150, ChainKind::Filter)),
        vec![vec![Expr::Target(target)]],
    );
    let mut ns = with_nft(vec![table(Family::Ip, "mangle", vec![chain], Vec::new())]);
    ns.sockets = Section::Known(vec![Socket {
        protocol: TCP,
        addr: ip("::"),
        port,
        v6only: Some(false),
        listening: true,
        remote: None,
        bound_dev: None,
        bound_dev_unread: false,
        backlog: None,
        transparent,
        uid: 1337,
        inode: 1,
    }]);
    World::new(ns)
}

#[test]
fn a_transparent_proxy_takes_a_packet_for_another_port() {
    let packet = || skb(tcp("10.244.1.7", Some(40000), "10.88.0.11", 80), false);
    let run = |world: &mut World| world.one(Hook::Prerouting, (2, 0), packet(), Flows::default());
    let outcome = run(&mut tproxy(Some(true), 15006));
    assert!(is_accept(&outcome), "{outcome:?}");
    assert_eq!(outcome.skb.mark, Some(0x111));
    let port = outcome.skb.proxy.as_ref().map(|socket| socket.port);
    assert_eq!((port, outcome.skb.packet.dport()), (Some(15006), Some(80)));
    // Neither a socket that is not transparent nor none takes it.
    for mut world in [tproxy(Some(false), 15006), tproxy(Some(true), 15008)] {
        let outcome = run(&mut world);
        let dropped = HookVerdict::Drop(DropReason::NetfilterDrop);
        assert_eq!(outcome.verdict, dropped);
    }
    let outcome = run(&mut tproxy(None, 15006));
    let unknown =
        matches!(&outcome.verdict, HookVerdict::Unknown(why) if why.contains("is transparent"));
    assert!(unknown, "{:?}", outcome.verdict);
    // What is for the connection's own socket goes to that.
    for (transparent, accepted) in [(true, true), (false, false)] {
        let mut skb = packet();
        skb.party = Some((key(), transparent));
        let mut world = tproxy(Some(true), 15006);
        let outcome = world.one(Hook::Prerouting, (2, 0), skb, Flows::default());
        assert_eq!(is_accept(&outcome), accepted);
    }
}

#[test]
fn no_packet_has_extension_headers() {
    // ip6tables -m rt
    let routing = RareMatch::Rt {
        kind: 0,
        left: (0, u32::MAX),
        length: 0,
        flags: 0,
        invert: 0,
        addrs: Vec::new(),
    };
    let rule = vec![
        Expr::Match(XtMatch::Rare(Box::new(routing))),
        Expr::Target(XtTarget::Standard(Verdict::Drop)),
    ];
    let chain = chain(
        "INPUT",
        Some(base(Hook::Input, 0, ChainKind::Filter)),
        vec![rule],
    );
    let filter = table(Family::Ip6, "filter", vec![chain], Vec::new());
    let mut world = World::new(with_nft(vec![filter]));
    let packet = tcp("fd00:88::12", Some(40000), "fd00:88::11", 80);
    let outcome = world.one(Hook::Input, (2, 0), skb(packet, false), Flows::default());
    assert!(is_accept(&outcome), "{outcome:?}");
}

#[test]
fn the_kernels_own_sockets_have_no_owner() {
    for (wanted, dropped) in [((0, 0, false), false), ((0, 0, true), true)] {
        let mut world = World::new(with_nft(output(owned(Some(wanted), None))));
        let mut skb = skb(tcp("10.88.0.11", Some(40000), "10.88.0.12", 80), true);
        skb.kernel = true;
        let outcome = world.one(Hook::Output, (0, 2), skb, Flows::default());
        assert_eq!(!is_accept(&outcome), dropped, "{wanted:?}");
    }
}

#[test]
fn errors_of_the_kernel_are_not_untracked_by_iptables() {
    let rules = "*raw\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -s 10.88.0.0/16 -j CT --notrack\nCOMMIT\n";
    for (kernel, untracked) in [(false, true), (true, false)] {
        let mut world = World::new(with_iptables(rules));
        let mut packet = tcp("10.88.0.11", None, "10.88.0.12", 0);
        let about = packet.reply(64);
        packet.l4 = L4::Icmp {
            kind: 3,
            code: 0,
            id: None,
        };
        packet.inner = Some(Box::new(Inner {
            vni: None,
            wrap: Wrap::Plain,
            packet: about,
        }));
        let mut skb = skb(packet, true);
        skb.kernel = kernel;
        let outcome = world.one(Hook::Output, (0, 2), skb, Flows::default());
        assert_eq!(outcome.skb.ct == CtRef::Untracked, untracked, "{outcome:?}");
    }
}

#[test]
fn the_ports_that_a_rule_gives_are_told() {
    // NF_NAT_RANGE_MAP_IPS, PROTO_SPECIFIED, PROTO_RANDOM.
    let range = NatRange {
        flags: 1 | 2 | 4,
        addrs: Some((ip("10.88.0.11"), ip("10.88.0.11"))),
        ports: Some((20000, 20100)),
        base: 0,
    };
    let chain = chain(
        "POSTROUTING",
        Some(base(Hook::Postrouting, 100, ChainKind::Nat)),
        vec![vec![Expr::Target(XtTarget::Snat(range))]],
    );
    let nat = table(Family::Ip, "nat", vec![chain], Vec::new());
    let mut world = World::new(with_nft(vec![nat]));
    let packet = tcp("10.244.1.7", None, "10.88.0.12", 80);
    let tracked = world.one(
        Hook::Prerouting,
        (3, 0),
        skb(packet, false),
        Flows::default(),
    );
    let outcome = world.one(Hook::Postrouting, (3, 2), tracked.skb, tracked.flows);
    assert_eq!(said(&outcome), "snat to 10.88.0.11, port 20000 to 20100");
    assert_eq!(outcome.skb.packet.sport(), None);
}
