//! What is too large for the way of a tunnel's outer packets, though the tunnel's device takes it.

use super::net::{Case, echo, judge, raw};
use super::{LARGE, V4, V6, tunnel};

/// Nodes with a tunnel of frames that takes 1,500 bytes; over IPv4 where the line has `{you}`.
fn frames(name: &str, kind: &str) -> Case {
    let case = Case::nodes(name);
    let case = case.both(&format!(
        "link add tun0 address 02:00:00:00:01:0{{my}} mtu 1500 type {kind}"
    ));
    case.both("link set tun0 up")
}

/// Pods are reached by routes through it.
fn routed(name: &str, kind: &str) -> Case {
    let case = frames(name, kind)
        .both("addr add 172.16.0.{my}/24 dev tun0")
        .both("addr add fd16::{my}/64 dev tun0 nodad");
    let lladdr = "lladdr 02:00:00:00:01:0{your} dev tun0 nud permanent";
    case.both(&format!("neigh replace 172.16.0.{{your}} {lladdr}"))
        .both(&format!("-6 neigh replace fd16::{{your}} {lladdr}"))
        .both("route add 10.{your}.0.0/24 via 172.16.0.{your}")
        .both("-6 route add fd0{your}::/64 via fd16::{your}")
}

/// Pods are on one bridge with it, and its other end.
fn bridged(name: &str, kind: &str) -> Case {
    let case = frames(name, kind)
        .both("link add name bridge0 type bridge")
        .both("link set bridge0 up")
        .both("link set pod0 master bridge0")
        .both("link set tun0 master bridge0");
    pinned(case)
}

/// Pods know each other on their link.
fn pinned(case: Case) -> Case {
    case.pods("link set eth0 address 02:00:00:00:02:0{my}")
        .pods("route replace 10.{your}.0.0/24 dev eth0")
        .pods("-6 route replace fd0{your}::/64 dev eth0")
        .pods("neigh replace 10.{your}.0.2 lladdr 02:00:00:00:02:0{your} dev eth0 nud permanent")
        .pods("-6 neigh replace fd0{your}::2 lladdr 02:00:00:00:02:0{your} dev eth0 nud permanent")
}

/// The same for both kinds, which share the code.
fn of_frames(kind: &str) -> Vec<Case> {
    let over_v4 = format!("{kind} id 7 remote {{you}} local {{me}}");
    let over_v4 = if kind == "geneve" {
        "geneve id 7 remote {you}".to_owned()
    } else {
        over_v4
    };
    let df = |set: &str| format!("{over_v4} df {set}");
    let over_v6 = format!("{kind} id 7 remote 2001:db8:{{your}}::1");
    let named = |what: &str| format!("{kind}, {what}");
    let whole = || raw(V4).payload(LARGE);
    let cut = || raw(V4).payload(LARGE).fragments();
    let small = || raw(V4).payload(1_300);
    vec![
        routed(&named("routed"), &over_v4)
            .ask(echo(V4), "delivered")
            .ask(whole(), "delivered")
            .ask(cut(), "delivered")
            .ask(raw(V6).payload(LARGE - 20), "inconclusive"),
        routed(&named("routed, never cut"), &df("set"))
            .ask(small(), "delivered")
            .ask(whole(), "dropped")
            .ask(cut(), "dropped"),
        routed(&named("routed, cut as what is inside"), &df("inherit"))
            .ask(whole(), "dropped")
            .ask(cut(), "delivered"),
        routed(&named("routed, over IPv6"), &over_v6)
            .ask(small(), "delivered")
            .ask(whole(), "dropped")
            .ask(cut(), "dropped"),
        bridged(&named("bridged"), &over_v4)
            .ask(echo(V4), "delivered")
            .ask(small(), "delivered")
            .ask(whole(), "rejected")
            .ask(cut(), "delivered")
            .ask(echo(V6), "delivered")
            .ask(raw(V6).payload(LARGE - 20), "rejected"),
        bridged(&named("bridged, never cut"), &df("set"))
            .ask(small(), "delivered")
            .ask(whole(), "rejected")
            .ask(cut(), "dropped"),
        bridged(&named("bridged, over IPv6"), &over_v6)
            .ask(small(), "delivered")
            .ask(whole(), "rejected")
            .ask(cut(), "dropped"),
    ]
}

/// Pods on one bridge of both nodes, whose last port takes 1,000 bytes; `shown`: IP's rules are asked.
fn switched(name: &str, shown: bool) -> Case {
    let case = Case::joined(name)
        .both("link add name bridge0 type bridge")
        .both("link set bridge0 up")
        .both("link set direct0 master bridge0")
        .both("link set pod0 master bridge0");
    let value = if shown { "1" } else { "0" };
    let case = case.late(2, "bridge/bridge-nf-call-iptables", value);
    pinned(case.late(2, "bridge/bridge-nf-call-ip6tables", value))
}

#[test]
fn ports_of_bridges() {
    let narrow = |case: Case| case.at(2, "link set pod0 mtu 1000");
    // 28 bytes are headers; a port has room for a VLAN tag, but for what br_netfilter has seen and must not cut.
    let whole = |len: u16| raw(V4).payload(len - 28);
    let cut = |len: u16| raw(V4).payload(len - 28).fragments();
    judge(vec![
        narrow(switched("IP's rules are not asked", false))
            .ask(whole(1_004), "delivered")
            .ask(whole(1_005), "dropped")
            .ask(cut(1_005), "dropped"),
        narrow(switched("IP's rules are asked", true))
            .ask(whole(1_000), "delivered")
            .ask(whole(1_001), "dropped")
            .ask(cut(1_004), "delivered")
            .ask(cut(1_400), "delivered"),
        narrow(switched("IP's rules are asked, a wide bridge", true))
            .at(2, "link set bridge0 mtu 1500")
            .ask(whole(1_001), "dropped")
            .ask(cut(1_004), "delivered")
            .ask(cut(1_005), "dropped"),
    ]);
}

#[test]
fn vxlan() {
    judge(of_frames("vxlan dstport 8472"));
}

#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn geneve() {
    judge(of_frames("geneve"));
}

#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn packets() {
    let large = |name: &str, kind: &str| {
        let case = tunnel(name, &format!("{kind} remote {{you}} local {{me}}"));
        case.both("link set tun0 mtu 1500")
    };
    let whole = || raw(V4).payload(LARGE);
    let cut = || raw(V4).payload(LARGE).fragments();
    let v6 = |payload: u16| raw(V6).payload(payload);
    let mut cases = Vec::new();
    for kind in ["ipip", "gre"] {
        cases.push(
            large(kind, kind)
                .ask(raw(V4).payload(1_300), "delivered")
                .ask(whole(), "rejected")
                .ask(cut(), "dropped"),
        );
        cases.push(
            large(&format!("{kind} nopmtudisc"), &format!("{kind} nopmtudisc"))
                .ask(whole(), "rejected")
                .ask(cut(), "delivered"),
        );
    }
    cases.push(
        large("IPv6 in gre", "gre")
            .ask(v6(1_300), "delivered")
            .ask(v6(LARGE - 20), "inconclusive"),
    );
    cases.push(large("IPv6 in gre, nopmtudisc", "gre nopmtudisc").ask(v6(LARGE - 20), "delivered"));
    cases.push(
        large("IPv6 in sit", "sit")
            .ask(v6(1_300), "delivered")
            .ask(v6(LARGE - 15), "inconclusive"),
    );
    cases.push(large("IPv6 in sit, nopmtudisc", "sit nopmtudisc").ask(v6(LARGE - 20), "delivered"));
    // The least that IPv6 must be let through, over less.
    let narrow = |name: &str, kind: &str| {
        large(name, kind)
            .at(1, "link set under0 mtu 1290")
            .at(2, "link set under0 mtu 1290")
    };
    cases.push(
        narrow("IPv6 in sit, narrow", "sit")
            .ask(v6(1_232), "delivered")
            .ask(v6(1_233), "inconclusive"),
    );
    cases.push(narrow("IPv6 in gre, narrow", "gre").ask(v6(1_232), "dropped"));
    judge(cases);
}
