//! VRFs: pods and a direct link of both nodes in one, the router between the nodes outside of it.

use crate::net::{Ask, Case, echo, judge, raw, tcp, udp};

const V4: &str = "10.2.0.2";
const V6: &str = "fd02::2";
/// Addresses of node 1: the pod's gateway and of the direct link, in the VRF, and of the link to the router.
const NEAR: &str = "10.1.0.1";
const DIRECT: &str = "172.16.0.1";
const OUTSIDE: &str = "192.0.2.1";

fn vrf(name: &str) -> Case {
    Case::joined(name)
        .both("link add red type vrf table 100")
        .both("link set red up")
        .both("link set direct0 address 02:00:00:00:01:0{my} master red")
        .both("link set pod0 master red")
        // What a device loses as it becomes a slave.
        .both("addr add fd0{my}::1/64 dev pod0 nodad")
        .both("addr add 172.16.0.{my}/24 dev direct0")
        .both("addr add fd00:d::{my}/64 dev direct0 nodad")
        .both(
            "neigh replace 172.16.0.{your} lladdr 02:00:00:00:01:0{your} dev direct0 nud permanent",
        )
        .both("route add 10.{your}.0.0/24 via 172.16.0.{your} table 100")
        .both("-6 route add fd0{your}::/64 via fd00:d::{your} table 100")
}

/// Sent by node 1, in the VRF or by another device.
fn own(ask: Ask, dev: Option<&str>) -> Ask {
    ask.from("n1").dev(dev)
}

const RED: Option<&str> = Some("red");

#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn vrf_slaves() {
    judge(vec![
        vrf("through both")
            .ask(tcp(V4, 80), "delivered")
            .ask(udp(V4, 53), "delivered")
            .ask(udp(V4, 54), "rejected")
            .ask(echo(V4), "delivered")
            .ask(tcp(V6, 80), "delivered")
            .ask(udp(V6, 54), "rejected")
            .ask(echo(V6), "delivered")
            .ask(raw(V4).ttl(1), "rejected")
            .ask(raw(V4).ttl(2), "rejected")
            .ask(echo("10.2.0.77"), "rejected")
            .ask(tcp("203.0.113.1", 80), "rejected"),
        vrf("reverse path")
            .late(1, "ipv4/conf/pod0/rp_filter", "1")
            .ask(tcp(V4, 80), "delivered"),
        vrf("no way out of it")
            .at(1, "route del 10.2.0.0/24 table 100")
            .at(1, "route add unreachable default table 100")
            .ask(tcp(V4, 80), "rejected"),
    ]);
}

#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn vrf_sockets() {
    // Outside of a VRF nobody may be bound to an address in it.
    let with = |name: &str, dev: Option<&str>| {
        let addrs: &[&str] = if dev.is_some() {
            &[NEAR, DIRECT]
        } else {
            &["0.0.0.0"]
        };
        vrf(name).listen(1, addrs, dev)
    };
    judge(vec![
        with("unbound", None)
            .ask(echo(NEAR), "delivered")
            .ask(echo(DIRECT), "delivered")
            .ask(tcp(NEAR, 80), "rejected")
            .ask(udp(NEAR, 53), "rejected"),
        with("let in", None)
            .early(1, "ipv4/tcp_l3mdev_accept", "1")
            .ask(tcp(NEAR, 80), "delivered")
            .ask(tcp(DIRECT, 80), "delivered")
            .ask(udp(NEAR, 53), "rejected"),
        with("bound to it", RED)
            .ask(tcp(NEAR, 80), "delivered")
            .ask(udp(DIRECT, 53), "delivered"),
        with("bound to a slave", Some("pod0"))
            .ask(tcp(NEAR, 80), "delivered")
            .ask(udp(NEAR, 53), "delivered"),
        with("bound to another slave", Some("direct0")).ask(tcp(NEAR, 80), "rejected"),
        with("sent from it", RED)
            .ask(own(tcp(V4, 80), RED), "delivered")
            .ask(own(udp(V4, 53), RED), "delivered")
            .ask(own(tcp(V6, 80), RED), "delivered")
            .ask(own(tcp(V4, 80), Some("direct0")), "delivered")
            .ask(own(tcp(V4, 80), Some("pod0")), "rejected")
            .ask(own(tcp(V4, 81), RED), "rejected")
            .ask(own(tcp(V4, 80), None), "rejected")
            .ask(own(tcp(NEAR, 80), RED), "delivered")
            .ask(own(udp(DIRECT, 53), RED), "delivered"),
    ]);
}

#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn vrf_rules() {
    let rule = |rule: &str| vrf(rule).rule(1, rule);
    judge(vec![
        rule("FORWARD -i red -p tcp -j DROP")
            .ask(echo(V4), "delivered")
            .ask(tcp(V4, 80), "dropped"),
        rule("FORWARD -i pod0 -j DROP").ask(tcp(V4, 80), "delivered"),
        rule("FORWARD -o direct0 -p tcp -j REJECT").ask(tcp(V4, 80), "rejected"),
        rule("INPUT -i red -j DROP").ask(echo(NEAR), "dropped"),
        rule("INPUT -i pod0 -j DROP").ask(echo(NEAR), "delivered"),
        rule("OUTPUT -o red -p tcp -j REJECT").ask(own(tcp(V4, 80), RED), "rejected"),
        rule("OUTPUT -o direct0 -p tcp -j REJECT").ask(own(tcp(V4, 80), RED), "rejected"),
        // The VRF has no connections of its own.
        rule("OUTPUT -o red -m conntrack ! --ctstate UNTRACKED -j REJECT")
            .ask(own(tcp(V4, 80), RED), "delivered"),
        rule("OUTPUT -o direct0 -m conntrack --ctstate UNTRACKED -j REJECT")
            .ask(own(tcp(V4, 80), RED), "delivered"),
    ]);
}

/// Between the table of the VRF and the main one.
#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn vrf_leaks() {
    let leak = |name: &str| {
        vrf(name)
            .both("route add {your-net} via {gateway} dev under0 table 100")
            .both("route add 10.{my}.0.0/24 dev red")
    };
    judge(vec![
        leak("to the outside, and back by the VRF's device")
            .ask(echo("198.51.100.2"), "rejected")
            .ask(echo("192.0.2.254"), "rejected"),
        leak("from outside to a pod by the VRF's device")
            // Without one of its own, the kernel takes one of its devices'.
            .both("addr add 10.9.0.{my}/32 dev red")
            // What comes back by the VRF is not the socket's.
            .ask(own(tcp("10.1.0.2", 80), None), "dropped")
            .ask(own(echo("10.1.0.2"), None), "delivered"),
        vrf("a rule that leads into it")
            .at(1, "rule add pref 900 to 10.2.0.0/24 lookup 100")
            .ask(own(echo(V4), None), "delivered")
            .ask(own(udp(V4, 54), None), "rejected"),
        vrf("the other way round")
            .listen(1, &[OUTSIDE], None)
            .at(1, "rule add pref 900 to 192.0.2.0/24 lookup main")
            .ask(tcp(OUTSIDE, 80), "rejected"),
    ]);
}
