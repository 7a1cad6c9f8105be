//! Kinds of devices that this machine's kernel may lack: what is predicted of packets through them, both ways and
//! inside and outside of tunnels, is what packet sockets see. Needs root; run by `tests/vm/check`.
#![allow(missing_docs, reason = "tests")]

mod large;
mod net;
mod vrf;

use net::{Case, echo, judge, raw, tcp, udp};

/// Two nodes with a tunnel of this kind between them; `{me}` and `{you}` are the ends of its outer packets.
fn tunnel(name: &str, kind: &str) -> Case {
    let case = Case::nodes(name);
    let case = case.both(&format!("link add tun0 type {kind}"));
    let case = case.both("link set tun0 up");
    case.both("route add 10.{your}.0.0/24 dev tun0")
        .both("-6 route add fd0{your}::/64 dev tun0")
}

const V4: &str = "10.2.0.2";
const V6: &str = "fd02::2";
/// Bytes behind the header of an echo request that a device takes, but no tunnel.
const LARGE: u16 = 1460;

#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn ipip() {
    let ends = "ipip remote {you} local {me}";
    judge(vec![
        tunnel("plain", ends)
            .ask(tcp(V4, 80), "delivered")
            .ask(udp(V4, 53), "delivered")
            .ask(udp(V4, 54), "rejected")
            .ask(tcp(V4, 81), "rejected")
            .ask(echo(V4), "delivered")
            .ask(echo("10.2.0.77"), "rejected")
            .ask(raw(V4).tos(0x2b).ttl(9), "delivered")
            .ask(raw(V4).ttl(1), "rejected")
            .ask(raw(V4).payload(LARGE), "rejected"),
        tunnel("ttl and tos", &format!("{ends} ttl 33 tos 0x10"))
            .ask(tcp(V4, 80), "delivered")
            .ask(raw(V4).tos(0x2a), "delivered"),
        tunnel("tos of the inside", &format!("{ends} tos inherit"))
            .ask(raw(V4).tos(0x2b), "delivered")
            .ask(raw(V4).tos(0xfc), "delivered"),
        tunnel("outer packets expire", &format!("{ends} ttl 1")).ask(tcp(V4, 80), "dropped"),
        tunnel("nopmtudisc", &format!("{ends} nopmtudisc"))
            .ask(tcp(V4, 80), "delivered")
            .ask(raw(V4).payload(LARGE), "rejected")
            .ask(raw(V4).payload(LARGE).fragments(), "delivered"),
        tunnel("no remote", "ipip local {me}").ask(echo(V4), "loop"),
        tunnel("wrong remote", ends)
            .at(2, "link set tun0 type ipip remote 192.0.2.77 local {me}")
            .ask(echo(V4), "dropped"),
        tunnel("down", ends)
            .at(2, "-6 link set tun0 down")
            .ask(echo(V4), "dropped"),
        tunnel("no way to the remote", ends)
            .at(1, "route del {your-net}")
            .ask(echo(V4), "dropped"),
        tunnel("a way that refuses", ends)
            .at(1, "route replace prohibit {your-net}")
            .ask(echo(V4), "dropped"),
        tunnel("through itself", "ipip remote {you}")
            .at(1, "route add {you}/32 dev tun0")
            .ask(echo(V4), "loop"),
        tunnel("only IPv4", ends).ask(echo(V6), "dropped"),
        tunnel("bound", &format!("{ends} dev under0")).ask(tcp(V4, 80), "delivered"),
        tunnel("bound elsewhere", ends)
            .at(2, "link add other type dummy")
            .at(
                2,
                "link set tun0 type ipip remote {you} local {me} dev other",
            )
            .ask(echo(V4), "dropped"),
        tunnel("reverse path", ends)
            .late(2, "ipv4/conf/tun0/rp_filter", "1")
            .at(2, "route replace 10.1.0.0/24 via {gateway}")
            .ask(echo(V4), "dropped"),
        tunnel("rules", ends)
            .rule(2, "INPUT -p 4 -j DROP")
            .ask(echo(V4), "dropped"),
        tunnel("rules of the tunnel", ends)
            .rule(2, "FORWARD -i tun0 -p tcp -j REJECT")
            .ask(echo(V4), "delivered")
            .ask(tcp(V4, 80), "rejected"),
    ]);
}

/// As Calico has it: the device that the module makes, the next hop as remote.
#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn ipip_without_remote() {
    let calico = |name: &str| {
        let case = Case::nodes(name).both("link set tunl0 up mtu 1480");
        let case = case.both("addr add 10.{my}.0.64/32 dev tunl0");
        case.both("route add 10.{your}.0.0/24 via {you} dev tunl0 onlink")
    };
    judge(vec![
        calico("plain")
            .ask(tcp(V4, 80), "delivered")
            .ask(udp(V4, 53), "delivered")
            .ask(raw(V4).payload(LARGE), "rejected")
            .ask(tcp(V4, 80).from("n1"), "delivered"),
        calico("rules")
            .rule(2, "INPUT -p 4 -j DROP")
            .ask(echo(V4), "dropped"),
        calico("no device")
            .at(2, "link set tunl0 down")
            .ask(echo(V4), "dropped"),
    ]);
}

#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn gre() {
    let ends = "gre remote {you} local {me}";
    judge(vec![
        tunnel("plain", ends)
            .ask(tcp(V4, 80), "delivered")
            .ask(tcp(V6, 80), "delivered")
            .ask(echo(V6), "delivered")
            .ask(udp(V4, 54), "rejected")
            .ask(raw(V4).payload(LARGE), "rejected"),
        tunnel("ttl", &format!("{ends} ttl 44"))
            .ask(tcp(V4, 80), "delivered")
            .ask(tcp(V6, 80), "delivered"),
        tunnel("keys", &format!("{ends} key 7"))
            .ask(tcp(V4, 80), "delivered")
            .ask(tcp(V6, 80), "delivered"),
        tunnel("other key", &format!("{ends} key 7"))
            .at(2, "link set tun0 type gre remote {you} local {me} key 8")
            .ask(echo(V4), "dropped"),
        tunnel("checksums and numbers", &format!("{ends} csum seq")).ask(tcp(V4, 80), "delivered"),
        tunnel("wrong remote", ends)
            // What IPv6 says by itself would be refused there, and for the refusal the sender's device tells the next
            // packet's sender that the host can't be reached (`err_count`, net/ipv4/ip_tunnel.c).
            .late(1, "ipv6/conf/tun0/disable_ipv6", "1")
            .at(2, "link set tun0 type gre remote 192.0.2.77 local {me}")
            .ask(echo(V4), "dropped"),
    ]);
}

fn sit_modes(name: &str, modes: [&str; 2]) -> Case {
    let mut case = Case::nodes(name);
    for node in [1, 2] {
        let mode = modes[node - 1];
        let line = format!("link add tun0 type sit remote {{you}} local {{me}} mode {mode}");
        case = case.at(node, &line);
    }
    case.both("link set tun0 up")
        .both("route add 10.{your}.0.0/24 dev tun0")
        .both("-6 route add fd0{your}::/64 dev tun0")
}

#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn sit() {
    let ends = "sit remote {you} local {me}";
    judge(vec![
        tunnel("plain", ends)
            .ask(tcp(V6, 80), "delivered")
            .ask(udp(V6, 53), "delivered")
            .ask(udp(V6, 54), "rejected")
            .ask(raw(V6).payload(LARGE), "rejected"),
        tunnel("ttl", &format!("{ends} ttl 44")).ask(tcp(V6, 80), "delivered"),
        tunnel("only IPv6", &format!("{ends} mode ip6ip")).ask(echo(V4), "dropped"),
        tunnel("both", &format!("{ends} mode any"))
            .ask(tcp(V4, 80), "delivered")
            .ask(tcp(V6, 80), "delivered"),
        sit_modes("one of both", ["any", "ip6ip"])
            .ask(echo(V4), "dropped")
            .ask(tcp(V6, 80), "delivered"),
        tunnel("wrong remote", ends)
            .at(2, "link set tun0 type sit remote 192.0.2.77 local {me}")
            .ask(echo(V6), "dropped"),
    ]);
}

#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn wireguard() {
    const BOTH: [&str; 2] = [
        "endpoint {you}:51820 allowed-ips 10.2.0.0/24,fd02::/64",
        "endpoint {you}:51820 allowed-ips 10.1.0.0/24,fd01::/64",
    ];
    let plain = |name: &str| Case::nodes(name).wireguard(BOTH, &[]);
    let with = |name: &str, more: &[(usize, &str)]| Case::nodes(name).wireguard(BOTH, more);
    let set = |name: &str, settings: [&str; 2]| Case::nodes(name).wireguard(settings, &[]);
    judge(vec![
        plain("plain")
            .ask(tcp(V4, 80), "delivered")
            .ask(tcp(V6, 80), "delivered")
            .ask(udp(V4, 53), "delivered")
            .ask(udp(V4, 54), "rejected")
            .ask(raw(V4).tos(0x2b).ttl(9), "delivered")
            .ask(raw(V4).payload(LARGE), "rejected"),
        set("over IPv6", [
            "endpoint [2001:db8:2::1]:51820 allowed-ips 10.2.0.0/24",
            "endpoint [2001:db8:1::1]:51820 allowed-ips 10.1.0.0/24",
        ])
        .ask(tcp(V4, 80), "delivered"),
        set("only one knows the other's endpoint", [BOTH[0], "allowed-ips 10.1.0.0/24"])
            .ask(tcp(V4, 80), "delivered"),
        set("no endpoint", ["allowed-ips 10.2.0.0/24", BOTH[1]])
            .ask(echo(V4), "rejected"),
        set("nobody's address", ["endpoint {you}:51820 allowed-ips 10.2.0.64/26", BOTH[1]])
            .ask(echo(V4), "rejected")
            .ask(tcp(V4, 80), "rejected"),
        set("not allowed to send", [BOTH[0], "endpoint {you}:51820 allowed-ips 10.1.0.64/26"])
            .ask(echo(V4), "dropped"),
        with("longest prefix", &[(1, "wg set wg0 peer $(echo aBcDz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBk= | wg pubkey) endpoint {gateway}:51820 allowed-ips 10.2.0.0/28")])
            .ask(echo(V4), "dropped"),
        with("another key", &[(2, "wg set wg0 private-key <(echo aBcDz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBk=)")])
            .ask(echo(V4), "dropped"),
        with("no key", &[(1, "wg set wg0 private-key /dev/null")])
            .ask(echo(V4), "dropped"),
        with("unknown there", &[(2, "wg set wg0 peer {peer} remove")])
            .ask(echo(V4), "dropped"),
        with("preshared on one side", &[(2, "wg set wg0 peer {peer} preshared-key <(echo aBcDz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBk=)")])
            .ask(echo(V4), "dropped"),
        with("other port", &[(2, "wg set wg0 listen-port 51821")])
            .ask(echo(V4), "dropped"),
        with("down", &[(2, "ip link set wg0 down")]).ask(echo(V4), "dropped"),
        plain("rules")
            .rule(2, "INPUT -p udp --dport 51820 -j DROP")
            .ask(echo(V4), "dropped"),
        with("mark, as Calico and Cilium have it", &[
            (1, "wg set wg0 fwmark 0x100"),
            (1, "ip rule add not fwmark 0x100 lookup 200"),
            (1, "ip route add {you-net} dev wg0 table 200"),
        ])
        .ask(tcp(V4, 80), "delivered"),
        with("no way to the peer", &[(1, "ip route replace prohibit {your-net}")])
            .ask(echo(V4), "dropped"),
    ]);
}

#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn geneve() {
    let with = |name: &str, kinds: [&str; 2]| {
        let mut case = Case::nodes(name);
        for node in [1, 2] {
            case = case
                .at(node, &format!("link add tun0 address 02:00:00:00:01:0{{my}} type geneve {}", kinds[node - 1]))
                .at(node, "link set tun0 up")
                .at(node, "addr add 172.16.0.{my}/24 dev tun0")
                .at(node, "neigh replace 172.16.0.{your} lladdr 02:00:00:00:01:0{your} dev tun0 nud permanent")
                .at(node, "route add 10.{your}.0.0/24 via 172.16.0.{your}");
        }
        case
    };
    let plain = "id 7 remote {you}";
    judge(vec![
        with("plain", [plain, plain])
            .ask(tcp(V4, 80), "delivered")
            .ask(udp(V4, 54), "rejected")
            .ask(raw(V4).tos(0x2b).ttl(9), "delivered")
            .ask(raw(V4).payload(LARGE), "rejected"),
        with(
            "ttl and tos",
            [
                "id 7 remote {you} ttl 9 tos 0x10",
                "id 7 remote {you} ttl inherit tos inherit",
            ],
        )
        .ask(tcp(V4, 80), "delivered"),
        with(
            "over IPv6",
            ["id 7 remote 2001:db8:2::1", "id 7 remote 2001:db8:1::1"],
        )
        .ask(tcp(V4, 80), "delivered"),
        with("another network", [plain, "id 8 remote {you}"]).ask(echo(V4), "dropped"),
        with("another sender", [plain, "id 7 remote {gateway}"]).ask(echo(V4), "dropped"),
        with("another port", [plain, "id 7 remote {you} dstport 6082"]).ask(echo(V4), "dropped"),
        with("down", [plain, plain])
            .at(2, "-6 link set tun0 down")
            .ask(echo(V4), "dropped"),
    ]);
}

#[test]
#[ignore = "this machine's kernel may have no such devices: tests/vm/check"]
fn vlan() {
    let with = |name: &str, ids: [&str; 2]| {
        let mut case = Case::joined(name);
        for node in [1, 2] {
            case = case
                .at(node, "link set direct0 address 02:00:00:00:01:0{my}")
                .at(node, &format!("link add link direct0 name vlan0 type vlan {}", ids[node - 1]))
                .at(node, "link set vlan0 up")
                .at(node, "addr add 172.16.0.{my}/24 dev vlan0")
                .at(node, "neigh replace 172.16.0.{your} lladdr 02:00:00:00:01:0{your} dev vlan0 nud permanent")
                .at(node, "route add 10.{your}.0.0/24 via 172.16.0.{your}");
        }
        case
    };
    judge(vec![
        with("plain", ["id 7", "id 7"])
            .ask(tcp(V4, 80), "delivered")
            .ask(udp(V4, 54), "rejected")
            .ask(raw(V4).payload(LARGE), "delivered"),
        with("another one", ["id 7", "id 8"]).ask(echo(V4), "dropped"),
        with("down", ["id 7", "id 7"])
            .at(2, "link set vlan0 down")
            .ask(echo(V4), "dropped"),
        with("rules", ["id 7", "id 7"])
            .rule(2, "FORWARD -i vlan0 -p tcp -j REJECT")
            .ask(echo(V4), "delivered")
            .ask(tcp(V4, 80), "rejected"),
    ]);
}
