//! Byte fixtures of real rules: what kernel 6.18 returned for the command quoted at each.

use super::{expr, xt_match, xt_target};
use crate::model::conntrack::NatRange;
use crate::model::netfilter::{
    BitwiseOp, CmpOp, Counters, CtKey, Expr, Family, FibResult, MetaKey, PayloadBase, Verdict,
};
use crate::model::xtables::{ConntrackMatch, Statistic, XtMatch, XtTarget};

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    let byte = |pair: &[u32]| u8::try_from(pair[0] << 4 | pair[1]).expect("a byte");
    digits.chunks(2).map(byte).collect()
}

fn padded(hex: &str, len: usize) -> Vec<u8> {
    let mut data = bytes(hex);
    data.resize(len, 0);
    data
}

fn check(name: &str, revision: u8, hex: &str, expected: &XtMatch) {
    assert_eq!(
        xt_match::decode(name, revision, &bytes(hex), false),
        *expected
    );
}

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().expect("an address")
}

#[test]
fn transport_matches() {
    // iptables-legacy -A INPUT -p tcp --sport 1024:65535 --dport 80 --tcp-flags SYN,ACK SYN
    let tcp = XtMatch::Tcp {
        sports: (1024, 65535),
        dports: (80, 80),
        flag_mask: 0x12,
        flag_cmp: 0x02,
        option: 0,
        invert: 0,
    };
    check("tcp", 0, "0004ffff500050000012020000000000", &tcp);
    // iptables-legacy -A INPUT -p udp ! --dport 53
    let udp = XtMatch::Udp {
        sports: (0, 65535),
        dports: (53, 53),
        invert: 2,
    };
    check("udp", 0, "0000ffff350035000200000000000000", &udp);
    // iptables-legacy -A INPUT -p icmp --icmp-type 3/4
    let icmp = XtMatch::Icmp {
        kind: 3,
        codes: (4, 4),
        invert: false,
        v6: false,
    };
    check("icmp", 0, "0304040000000000", &icmp);
    // iptables-legacy -A INPUT -p tcp -m multiport ! --dports 80,443,8000:8080
    let multiport = XtMatch::Multiport {
        which: 1,
        ports: vec![(80, 80), (443, 443), (8000, 8080)],
        invert: true,
    };
    check(
        "multiport",
        1,
        "01045000bb01401f901f0000000000000000000000000000000000000000000000000100000000000000000000000001",
        &multiport,
    );
}

#[test]
fn mark_and_type_matches() {
    // iptables-legacy -A INPUT -m mark ! --mark 0x4000/0x4000
    let mark = XtMatch::Mark {
        mark: 0x4000,
        mask: 0x4000,
        invert: true,
    };
    check("mark", 1, "00400000004000000100000000000000", &mark);
    // iptables-legacy -A INPUT -m connmark --mark 0x1/0xff
    let connmark = XtMatch::Connmark {
        mark: 1,
        mask: 0xff,
        invert: false,
    };
    check("connmark", 1, "01000000ff0000000000000000000000", &connmark);
    // iptables-legacy -A INPUT -m addrtype --src-type LOCAL ! --dst-type LOCAL,BROADCAST --limit-iface-in
    let addrtype = XtMatch::Addrtype {
        source: 4,
        dest: 0xc,
        invert_source: false,
        invert_dest: true,
        limit_in: true,
        limit_out: false,
    };
    check("addrtype", 1, "04000c0006000000", &addrtype);
    // iptables-legacy -A INPUT -m pkttype ! --pkt-type multicast
    let pkttype = XtMatch::Pkttype {
        kind: 2,
        invert: true,
    };
    check("pkttype", 0, "0200000001000000", &pkttype);
    // iptables-legacy -A INPUT -m dscp ! --dscp 10
    let dscp = XtMatch::Dscp {
        dscp: 10,
        invert: true,
    };
    check("dscp", 0, "0a01000000000000", &dscp);
    // iptables-legacy -A INPUT -m ttl --ttl-lt 5
    check(
        "ttl",
        0,
        "0205000000000000",
        &XtMatch::Ttl {
            mode: 2,
            value: 5,
            v6: false,
        },
    );
    // iptables-legacy -t raw -A PREROUTING -m rpfilter --loose --invert
    check(
        "rpfilter",
        0,
        "0900000000000000",
        &XtMatch::Rpfilter { flags: 9 },
    );
    // iptables-legacy -A INPUT -m tos --tos 0x10/0x3f
    let tos = XtMatch::Rare(Box::new(crate::model::xtables::RareMatch::Tos {
        value: 0x10,
        mask: 0x3f,
        invert: false,
    }));
    check("tos", 1, "3f10000000000000", &tos);
}

#[test]
fn statistics() {
    // kube-proxy, three endpoints: -m statistic --mode random --probability 0.33333333349
    let third = XtMatch::Statistic(Statistic::Random {
        probability: 715_827_883,
        invert: false,
    });
    let hex = "00000000abaaaa2a00000000abaaaa2a0000000000000000";
    check("statistic", 0, hex, &third);
    // iptables-legacy -A INPUT -m statistic --mode nth ! --every 3 --packet 1
    let nth = XtMatch::Statistic(Statistic::Nth {
        every: 2,
        packet: 1,
        invert: true,
    });
    let hex = "010001000200000001000000010000000000000000000000";
    check("statistic", 0, hex, &nth);
}

#[test]
fn names_and_addresses() {
    // iptables-legacy -A INPUT -m physdev --physdev-in veth+ ! --physdev-is-bridged
    let physdev = XtMatch::Physdev {
        physin: Some(("veth+".to_owned(), false)),
        physout: None,
        is_in: None,
        is_out: None,
        is_bridged: Some(false),
    };
    let hex = "766574682b0000000000000000000000ffffffff00000000000000000000000000000000000000000000000000000000000000000000000000000000000000000405000000000000";
    check("physdev", 0, hex, &physdev);
    // iptables-legacy -A INPUT -m iprange ! --src-range 10.0.0.1-10.0.0.9
    let iprange = XtMatch::Iprange {
        src: Some((ip("10.0.0.1"), ip("10.0.0.9"), true)),
        dst: None,
    };
    let hex = "0a0000010000000000000000000000000a00000900000000000000000000000000000000000000000000000000000000000000000000000000000000000000001100000000000000";
    check("iprange", 1, hex, &iprange);
    // kube-proxy: -m nfacct --nfacct-name ct_state_invalid_dropped_pkts
    let hex = "63745f73746174655f696e76616c69645f64726f707065645f706b74730000000000000000000000";
    let nfacct = XtMatch::Nfacct("ct_state_invalid_dropped_pkts".to_owned());
    check("nfacct", 1, hex, &nfacct);
    // iptables-legacy -A INPUT -m mac ! --mac-source 02:00:00:00:00:01
    let mac = XtMatch::Mac {
        addr: crate::model::MacAddr([2, 0, 0, 0, 0, 1]),
        invert: true,
    };
    check("mac", 0, "02000000000100000100000000000000", &mac);
    // iptables-legacy -A OUTPUT -m owner --uid-owner 0-99 ! --gid-owner 1000
    let owner = XtMatch::Owner {
        uid: Some((0, 99, false)),
        gid: Some((1000, 1000, true)),
        socket: None,
        supplementary: false,
    };
    check(
        "owner",
        1,
        "0000000063000000e8030000e80300000302000000000000",
        &owner,
    );
    // iptables-legacy -A INPUT -m set ! --match-set s src,dst
    let set = XtMatch::Set {
        index: 0,
        name: None,
        unnamed: None,
        dims: vec![true, false],
        invert: true,
        flags: 0,
        counters: None,
    };
    let data = padded("00000203", 48);
    assert_eq!(xt_match::decode("set", 4, &data, false), set);
    // iptables-legacy -A INPUT -m recent --name api --rcheck --seconds 10800 --hitcount 2 --reap --rsource
    // (iptables leaves what was on its stack behind the name)
    let recent = XtMatch::Recent {
        name: "api".to_owned(),
        seconds: 10800,
        hit_count: 2,
        check_set: 0x21,
        invert: false,
        side: 0,
        mask: "0.0.0.0".parse().ok(),
    };
    let data = padded("302a000002000000210061706900554c54", 232);
    assert_eq!(xt_match::decode("recent", 1, &data, false), recent);
}

#[test]
fn conntrack_and_state() {
    // iptables-legacy -A INPUT -m conntrack --ctorigsrc fd00::/64 (ip6tables)
    let mut data = padded("fd000000000000000000000000000000ffffffffffffffff", 168);
    data[146] = 4;
    let expected = ConntrackMatch {
        match_flags: 4,
        origsrc: Some((ip("fd00::"), ip("ffff:ffff:ffff:ffff::"))),
        ..ConntrackMatch::default()
    };
    let found = xt_match::decode("conntrack", 3, &data, true);
    assert_eq!(found, XtMatch::Conntrack(Box::new(expected)));
    // -m state --state INVALID,UNTRACKED, as revision 0 of `state` kept it
    let expected = ConntrackMatch {
        match_flags: 0x2001,
        state_mask: 0x101,
        ..ConntrackMatch::default()
    };
    check(
        "state",
        0,
        "4100000000000000",
        &XtMatch::Conntrack(Box::new(expected)),
    );
}

#[test]
fn short_structures_are_not_guessed() {
    for (name, revision) in [
        ("tcp", 0),
        ("conntrack", 3),
        ("statistic", 0),
        ("multiport", 1),
    ] {
        let found = xt_match::decode(name, revision, &[1], false);
        assert!(matches!(found, XtMatch::Other { .. }), "{name}");
    }
    let found = xt_target::decode("DNAT", 2, &[1], false);
    assert!(matches!(found, XtTarget::Other { .. }));
}

#[test]
fn nat_targets() {
    let target =
        |name: &str, revision, hex: &str| xt_target::decode(name, revision, &bytes(hex), false);
    let range = |flags, addrs: Option<(&str, &str)>, ports| NatRange {
        flags,
        addrs: addrs.map(|(first, last)| (ip(first), ip(last))),
        ports,
        base: 0,
    };
    // iptables-legacy -t nat -A PREROUTING -p tcp -j DNAT --to-destination 10.244.1.9-10.244.1.11:8080-8090
    // --random --persistent
    let hex = "0f0000000af401090000000000000000000000000af4010b0000000000000000000000001f901f9a0000000000000000";
    let both = Some(("10.244.1.9", "10.244.1.11"));
    assert_eq!(
        target("DNAT", 2, hex),
        XtTarget::Dnat(range(15, both, Some((8080, 8090))))
    );
    // iptables-legacy -t nat -A POSTROUTING -p tcp -j MASQUERADE --to-ports 1024-31000
    let hex = "010000000200000000000000000000000400791800000000";
    assert_eq!(
        target("MASQUERADE", 0, hex),
        XtTarget::Masquerade(range(2, None, Some((1024, 31000))))
    );
    // iptables-legacy -t nat -A POSTROUTING -j SNAT --to-source 192.0.2.1
    let hex = "0100000001000000c0000201c00002010000000000000000";
    let one = Some(("192.0.2.1", "192.0.2.1"));
    assert_eq!(target("SNAT", 0, hex), XtTarget::Snat(range(1, one, None)));
    // iptables-legacy -t nat -A POSTROUTING -d 10.1.0.0/16 -j NETMAP --to 10.2.0.0/16
    let hex = "01000000010000000a0200000a02ffff0000000000000000";
    let net = Some(("10.2.0.0", "10.2.255.255"));
    assert_eq!(
        target("NETMAP", 0, hex),
        XtTarget::Netmap(range(65, net, None))
    );
    // ip6tables-legacy -t nat -A PREROUTING -p tcp -j DNAT --to-destination [fd00::9]:8080
    let hex = "03000000fd000000000000000000000000000009fd0000000000000000000000000000091f901f900000000000000000";
    assert_eq!(
        xt_target::decode("DNAT", 2, &bytes(hex), true),
        XtTarget::Dnat(range(3, Some(("fd00::9", "fd00::9")), Some((8080, 8080))))
    );
}

#[test]
fn other_targets() {
    let check = |name: &str, revision, hex: &str, expected: XtTarget| {
        assert_eq!(
            xt_target::decode(name, revision, &bytes(hex), false),
            expected
        );
    };
    // kube-proxy: -j MARK --set-xmark 0x4000/0x4000, and --xor-mark 0x4000
    let mark = |mask| XtTarget::Mark { mark: 0x4000, mask };
    check("MARK", 2, "0040000000400000", mark(0x4000));
    check("MARK", 2, "0040000000000000", mark(0));
    // iptables-legacy -t mangle -A PREROUTING -j CONNMARK --restore-mark --nfmask 0xf --ctmask 0xf0
    let connmark = XtTarget::Connmark {
        mode: 2,
        ctmark: 0,
        ctmask: 0xf0,
        nfmask: 0x0f,
        shift: 0,
    };
    check("CONNMARK", 2, "00000000f00000000f00000000000200", connmark);
    // iptables-legacy -A INPUT -j REJECT --reject-with icmp-host-prohibited
    check(
        "REJECT",
        0,
        "0600000000000000",
        XtTarget::Reject { with: 6, v6: false },
    );
    // iptables-legacy -t mangle -A PREROUTING -p tcp -j TPROXY --on-port 15001 --on-ip 127.0.0.1
    // --tproxy-mark 0x1/0x1
    let tproxy = XtTarget::Tproxy {
        mark: (1, 1),
        addr: ip("127.0.0.1"),
        port: 15001,
    };
    check(
        "TPROXY",
        1,
        "01000000010000007f0000010000000000000000000000003a99000000000000",
        tproxy,
    );
    // iptables-legacy -t mangle -A PREROUTING -j NFQUEUE --queue-balance 3:6 --queue-bypass
    let queue = XtTarget::Queue {
        num: 3,
        total: 4,
        bypass: true,
        fanout: false,
    };
    check("NFQUEUE", 3, "0300040001000000", queue);
    // iptables-legacy -t raw -A PREROUTING -j CT --notrack
    let ct = XtTarget::Ct(Box::new(crate::model::xtables::CtTarget {
        flags: 1,
        ..crate::model::xtables::CtTarget::default()
    }));
    assert_eq!(xt_target::decode("CT", 2, &padded("0100", 72), false), ct);
}

#[test]
fn a_native_rule() {
    // nft add rule ip t c iifname "eth0" ip saddr '&' 255.0.0.0 == 10.0.0.0 tcp dport 80-90
    //   ct state established,related counter accept comment '"hi"'
    let hex = "24000100090001006d6574610000000014000200080002000000000608000100000000013800010008000100636d70002c00020008000100000000010800020000000000180003001400010065746830000000000000000000000000340001000c0001007061796c6f6164002400020008000100000000010800020000000001080003000000000c08000400000000044c0001000c00010062697477697365003c00020008000100000000010800020000000001080003000000000408000600000000000c00040008000100ff0000000c00050008000100000000002c00010008000100636d700020000200080001000000000108000200000000000c000300080001000a00000024000100090001006d6574610000000014000200080002000000001008000100000000012c00010008000100636d700020000200080001000000000108000200000000000c0003000500010006000000340001000c0001007061796c6f6164002400020008000100000000010800020000000002080003000000000208000400000000022c00010008000100636d700020000200080001000000000108000200000000050c00030006000100005000002c00010008000100636d700020000200080001000000000108000200000000030c00030006000100005a000020000100070001006374000014000200080002000000000008000100000000014c0001000c00010062697477697365003c00020008000100000000010800020000000001080003000000000408000600000000000c00040008000100060000000c00050008000100000000002c00010008000100636d700020000200080001000000000108000200000000010c00030008000100000000002c0001000c000100636f756e746572001c0002000c00010000000000000000000c0002000000000000000000300001000e000100696d6d6564696174650000001c0002000800010000000000100002000c0002000800010000000001";
    let cmp = |op, data: &[u8]| Expr::Cmp {
        op,
        sreg: 4,
        data: data.to_vec(),
    };
    let and = |mask: &[u8]| Expr::Bitwise {
        sreg: 4,
        dreg: 4,
        len: 4,
        op: BitwiseOp::MaskXor {
            mask: mask.to_vec(),
            xor: vec![0; 4],
        },
    };
    let load = |base, offset, len| Expr::Payload {
        base,
        offset,
        len,
        dreg: 4,
    };
    let meta = |key| Expr::Meta { key, dreg: 4 };
    let mut eth0 = b"eth0".to_vec();
    eth0.resize(16, 0);
    let expected = [
        meta(MetaKey::Iifname),
        cmp(CmpOp::Eq, &eth0),
        load(PayloadBase::Network, 12, 4),
        and(&[255, 0, 0, 0]),
        cmp(CmpOp::Eq, &[10, 0, 0, 0]),
        meta(MetaKey::L4proto),
        cmp(CmpOp::Eq, &[6]),
        load(PayloadBase::Transport, 2, 2),
        cmp(CmpOp::Gte, &[0, 80]),
        cmp(CmpOp::Lte, &[0, 90]),
        Expr::Ct {
            key: CtKey::State,
            dreg: 4,
            dir: None,
        },
        and(&[6, 0, 0, 0]),
        cmp(CmpOp::Neq, &[0, 0, 0, 0]),
        Expr::Counter(Counters::default()),
        Expr::Verdict(Verdict::Accept),
    ];
    assert_eq!(expr::decode_list(&bytes(hex), Family::Ip), expected);
    // nft's user data: type 0, length 3, "hi" and NUL
    assert_eq!(
        super::nft::user_comment(&bytes("0003686900")).as_deref(),
        Some("hi")
    );
}

#[test]
fn lookups_fib_and_numgen() {
    // nft add rule ip t c fib daddr type local numgen random mod 3 vmap { 0 : jump x, 1 : drop }
    let hex = "2800010008000100666962001c0002000800010000000001080002000000000308000300000000022c00010008000100636d700020000200080001000000000108000200000000000c0003000800010002000000340001000b0001006e756d67656e0000240002000800010000000001080002000000000308000300000000010800040000000000380001000b0001006c6f6f6b75700000280002000b0001005f5f6d6170300000080002000000000108000300000000000800050000000000";
    let expected = [
        Expr::Fib {
            dreg: 4,
            result: FibResult::Addrtype,
            saddr: false,
            daddr: true,
            mark: false,
            iif: false,
            oif: false,
            present: false,
        },
        Expr::Cmp {
            op: CmpOp::Eq,
            sreg: 4,
            data: vec![2, 0, 0, 0],
        },
        Expr::Numgen {
            dreg: 4,
            modulus: 3,
            offset: 0,
            random: true,
        },
        Expr::Lookup {
            set: "__map0".to_owned(),
            sreg: 4,
            dreg: Some(0),
            inverted: false,
        },
    ];
    assert_eq!(expr::decode_list(&bytes(hex), Family::Ip), expected);
}

#[test]
fn native_nat() {
    // nft add rule ip t n meta l4proto tcp dnat to 10.1.1.1:8080
    let hex = "24000100090001006d6574610000000014000200080002000000001008000100000000012c00010008000100636d700020000200080001000000000108000200000000000c00030005000100060000002c0001000e000100696d6d6564696174650000001800020008000100000000010c000200080001000a0101012c0001000e000100696d6d6564696174650000001800020008000100000000020c000200060001001f90000048000100080001006e6174003c0002000800010000000001080002000000000208000300000000010800040000000001080005000000000208000600000000020800070000000003";
    let found = expr::decode_list(&bytes(hex), Family::Ip);
    let expected = [
        Expr::Immediate {
            dreg: 4,
            data: vec![10, 1, 1, 1],
        },
        Expr::Immediate {
            dreg: 8,
            data: vec![0x1f, 0x90],
        },
        Expr::Nat {
            source: false,
            v6: false,
            addr_min: Some(4),
            addr_max: Some(4),
            proto_min: Some(8),
            proto_max: Some(8),
            flags: 3,
        },
    ];
    assert_eq!(found[2..], expected);
}

#[test]
fn unknown_expressions_keep_their_bytes() {
    // { name "xfrm", data { key 1 } }
    let hex = "1c00010009000100786672 6d00000000 0c000200 0800020000000001";
    let found = expr::decode_list(&bytes(hex), Family::Inet);
    let [Expr::Other { name, data }] = found.as_slice() else {
        panic!("{found:?}");
    };
    assert_eq!((name.as_str(), data.len()), ("xfrm", 8));
}

/// Structures of what the kernel of the tests has not, laid out after the header files.
#[test]
fn structures_from_the_header_files_alone() {
    use crate::model::xtables::{RareMatch, RareTarget};
    let rare = |found| match found {
        XtMatch::Rare(rare) => *rare,
        other => panic!("{other:?}"),
    };
    // iptables -m ipvs --vproto 6 ! --vaddr 10.0.0.1 --vport 22 --vdir REPLY
    let data = "0a000001000000000000000000000000ffffffff000000000000000000000000001606000000141e";
    assert_eq!(
        rare(xt_match::decode("ipvs", 0, &bytes(data), false)),
        RareMatch::Ipvs {
            vaddr: (ip("10.0.0.1"), ip("255.255.255.255")),
            vport: 22,
            proto: 6,
            method: 0,
            vportctl: 0,
            invert: 0x14,
            flags: 0x1e,
        }
    );
    // iptables -m l2tp --tid 5 --type data
    let found = rare(xt_match::decode(
        "l2tp",
        0,
        &bytes("050000000000000002010900"),
        false,
    ));
    assert_eq!(
        found,
        RareMatch::L2tp {
            tunnel: 5,
            session: 0,
            version: 2,
            kind: 1,
            flags: 9,
        }
    );
    let target =
        |name: &str, revision, data: &[u8]| match xt_target::decode(name, revision, data, false) {
            XtTarget::Rare(rare) => *rare,
            other => panic!("{other:?}"),
        };
    // iptables -j CLUSTERIP --new --hashmode sourceip --clustermac 01:02:03:04:05:06 --total-nodes 2 --local-node 1
    let data = padded("010000000102030405060200010001", 64);
    assert_eq!(
        target("CLUSTERIP", 0, &data),
        RareTarget::Clusterip {
            flags: 1,
            mac: crate::model::MacAddr([1, 2, 3, 4, 5, 6]),
            total: 2,
            local: vec![1],
            mode: 0,
            seed: 0,
        }
    );
    // iptables -j LED --led-trigger-id foo --led-delay 42 --led-always-blink
    let mut data = b"netfilter-foo".to_vec();
    data.resize(40, 0);
    (data[27], data[28]) = (1, 42);
    assert_eq!(
        target("LED", 0, &data),
        RareTarget::Led {
            id: "foo".to_owned(),
            delay: 42,
            always_blink: true,
        }
    );
    // iptables -j SECMARK --selctx system_u, of both revisions
    for (revision, at) in [(0, 8), (1, 1)] {
        let mut data = vec![0; 264];
        data[0] = 1;
        data[at..at + 8].copy_from_slice(b"system_u");
        assert_eq!(
            target("SECMARK", revision, &data),
            RareTarget::Secmark {
                mode: 1,
                context: "system_u".to_owned(),
            }
        );
    }
}
