//! Rules in words: what is printed must be what `nft list ruleset` and `iptables-save` print.

use netpath::model::netfilter::{Family, Ruleset};
use netpath::model::want::Depth;
use netpath::simulate::rule_text;

use crate::ns::Ns;

/// Rules of `nft`, each as the tool itself prints it.
const NFT: &[&str] = &[
    "meta nfproto ipv4 accept",
    "meta nfproto ipv6 drop",
    "meta l4proto tcp accept",
    "meta l4proto { tcp, udp } accept",
    "meta length 100 accept",
    "meta length 100-1500 accept",
    "meta mark 0x00004000 accept",
    "meta mark & 0x0000ff00 == 0x00004000 accept",
    "meta mark set 0x00004000",
    "meta mark set meta mark | 0x00004000",
    "meta pkttype broadcast drop",
    "meta skuid 1337 accept",
    "iifname \"eth0\" accept",
    "iifname \"veth*\" accept",
    "iifname != \"lo\" drop",
    "iif \"lo\" accept",
    "oifname \"eth0\" ip daddr 10.0.0.0/8 accept",
    "ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 accept",
    "ip saddr 10.0.0.1-10.0.0.9 accept",
    "ip protocol tcp accept",
    "ip ttl < 5 drop",
    "ip ttl 64 accept",
    "ip6 saddr fd00:10:244::/56 accept",
    "ip6 daddr fd00::1 accept",
    "ip6 hoplimit 255 accept",
    "ip6 nexthdr ipv6-icmp accept",
    "icmp type echo-request accept",
    "icmpv6 type nd-neighbor-solicit accept",
    "tcp dport 80 accept",
    "tcp dport 8000-9000 accept",
    "tcp sport != 22 accept",
    "udp dport 53 accept",
    "sctp dport 36412 accept",
    "th dport 53 accept",
    "tcp flags syn accept",
    "tcp flags & (fin | syn | rst | ack) == syn accept",
    "tcp flags & (fin | syn) == fin | syn drop",
    "ct state established,related accept",
    "ct state invalid drop",
    "ct state { established, related } accept",
    "ct state new accept",
    "ct status dnat accept",
    "ct mark 0x00000001 accept",
    "ct mark set meta mark",
    "meta mark set ct mark",
    "ct direction reply accept",
    "ct original ip daddr 10.96.0.1 accept",
    "meta l4proto tcp ct original proto-dst 80 accept",
    "fib daddr type local accept",
    "fib saddr . iif oif 0 drop",
    "fib saddr . iif oif missing drop",
    "fib saddr . mark . iif oif exists accept",
    "numgen random mod 2 0 accept",
    "numgen inc mod 4 offset 1 3 accept",
    "ip daddr @pods accept",
    "ip daddr != @pods drop",
    "ip daddr . tcp dport @pairs accept",
    "ip daddr . meta l4proto . th dport @triples accept",
    "tcp dport { 80, 443 } accept",
    "tcp dport vmap { 80 : accept, 443 : drop }",
    "ip daddr vmap @verdicts",
    "counter packets 0 bytes 0 accept",
    "counter packets 0 bytes 0 jump other",
    "goto other",
    "return",
    "notrack",
    "reject with tcp reset",
    "reject with icmp port-unreachable",
    "reject with icmpx admin-prohibited",
    "reject with icmpv6 no-route",
    "limit rate 10/second accept",
    "log prefix \"dropped \" drop",
    "accept comment \"let it pass\"",
    "ether saddr 02:00:00:00:00:01 accept",
    "ip dscp cs1 accept",
    "@nh,32,16 1234 accept",
];

/// Rules of a nat chain.
const NFT_NAT: &[&str] = &[
    "ip daddr 10.96.0.1 tcp dport 443 dnat ip to 10.0.0.1:6443",
    "dnat ip to 10.0.0.1",
    "meta l4proto tcp redirect to :15001",
    "redirect",
    "tcp dport 80 dnat ip6 to [fd00::1]:8080",
];

/// Rules of another nat chain.
const NFT_SNAT: &[&str] = &[
    "ip saddr 10.244.0.0/16 oifname \"eth0\" masquerade",
    "masquerade fully-random",
    "snat ip to 192.0.2.1",
    "meta l4proto tcp masquerade to :1024-65535",
];

/// What is printed otherwise: a rule holds the index of a device rather than its name.
const OTHERWISE: &[(&str, &str)] = &[("iif \"lo\" accept", "iif 1 accept")];

/// Rules of `iptables-save`.
const IPTABLES: &[&str] = &[
    "-A T -s 10.0.0.0/8 -j ACCEPT",
    "-A T ! -s 10.0.0.0/8 -d 10.244.1.9/32 -j DROP",
    "-A T -i eth0 -j ACCEPT",
    "-A T ! -i lo -o veth+ -j ACCEPT",
    "-A T -p tcp -j ACCEPT",
    "-A T ! -p tcp -j ACCEPT",
    "-A T -p tcp -m tcp --dport 80 -j ACCEPT",
    "-A T -p tcp -m tcp --sport 1024:65535 ! --dport 22 -j ACCEPT",
    "-A T -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -j ACCEPT",
    "-A T -p udp -m udp --dport 53 -j ACCEPT",
    "-A T -p icmp -m icmp --icmp-type 8 -j ACCEPT",
    "-A T -p tcp -m multiport --dports 80,443,8000:9000 -j ACCEPT",
    "-A T -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    "-A T -m conntrack --ctstate INVALID -j DROP",
    "-A T -m conntrack --ctstate DNAT -j ACCEPT",
    "-A T -m conntrack --ctorigdst 10.96.0.1/32 --ctorigdstport 443 --ctdir ORIGINAL -j ACCEPT",
    "-A T -m conntrack --ctstatus ASSURED -j ACCEPT",
    "-A T -m mark --mark 0x4000/0x4000 -j ACCEPT",
    "-A T -m mark ! --mark 0x1 -j ACCEPT",
    "-A T -m addrtype --dst-type LOCAL -j ACCEPT",
    "-A T -m addrtype ! --src-type UNICAST,LOCAL -j ACCEPT",
    "-A T -m statistic --mode random --probability 0.33333333349 -j ACCEPT",
    "-A T -m statistic --mode nth --every 3 --packet 1 -j ACCEPT",
    "-A T -m comment --comment \"with blanks\" -j ACCEPT",
    "-A T -m comment --comment word -j ACCEPT",
    "-A T -m limit --limit 10/sec -j ACCEPT",
    "-A T -m physdev --physdev-is-bridged -j ACCEPT",
    "-A T -m iprange --src-range 10.0.0.1-10.0.0.9 -j ACCEPT",
    "-A T -m owner --uid-owner 1337 -j ACCEPT",
    "-A T -m length --length 100:1500 -j ACCEPT",
    "-A T -m pkttype --pkt-type broadcast -j ACCEPT",
    "-A T -m ttl --ttl-lt 5 -j ACCEPT",
    "-A T -m dscp --dscp 0x08 -j ACCEPT",
    "-A T -j RETURN",
    "-A T -g U",
    "-A T -j U",
    "-A T -j REJECT --reject-with icmp-port-unreachable",
    "-A T -p tcp -j REJECT --reject-with tcp-reset",
    "-A T -j LOG --log-prefix \"dropped: \"",
    "-A T -j MARK --set-xmark 0x4000/0x4000",
    "-A T -j NFQUEUE --queue-num 3",
    "-A T",
];

/// Likewise of the nat table.
const IPTABLES_NAT: &[&str] = &[
    "-A T -p tcp -j DNAT --to-destination 10.0.0.1:6443",
    "-A T -j DNAT --to-destination 10.0.0.1",
    "-A T -p tcp -j REDIRECT --to-ports 15001",
    "-A U -j MASQUERADE",
    "-A U -j MASQUERADE --random-fully",
    "-A U -p tcp -j MASQUERADE --to-ports 1024-65535",
    "-A U -j SNAT --to-source 192.0.2.1",
];

fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The rules of a chain as they are printed.
fn printed(rules: &Ruleset, family: Family, table: &str, chain: &str) -> Vec<String> {
    let table = rules
        .tables
        .iter()
        .find(|own| own.family == family && own.name == table)
        .unwrap_or_else(|| panic!("table {table}"));
    let chain = table.chains.values().find(|own| own.name == chain);
    let chain = chain.expect("the chain");
    let rules = chain.rules.known().expect("its rules");
    rules
        .iter()
        .map(|rule| words(&rule_text(table, rule)))
        .collect()
}

/// Each rule that is printed otherwise than its tool prints it and than it is known to.
fn differences(tool: &[String], ours: &[String]) -> Vec<String> {
    assert_eq!(tool.len(), ours.len(), "{tool:#?}\n{ours:#?}");
    let pairs = tool.iter().zip(ours);
    pairs
        .filter(|(tool, ours)| {
            let known = OTHERWISE.iter().find(|(text, _)| text == tool);
            known.map_or(tool.as_str(), |(_, text)| text) != ours.as_str()
        })
        .map(|(tool, ours)| format!("\n  tool {tool}\n  ours {ours}"))
        .collect()
}

#[test]
fn rules_read_as_nft_prints_them() {
    let ns = Ns::new();
    let lines = |rules: &[&str]| rules.join("\n    ");
    let text = format!(
        "table inet t {{
  set pods {{ type ipv4_addr; elements = {{ 10.0.0.1 }} }}
  set pairs {{ type ipv4_addr . inet_service; elements = {{ 10.0.0.1 . 80 }} }}
  set triples {{ type ipv4_addr . inet_proto . inet_service; elements = {{ 10.0.0.1 . tcp . 80 }} }}
  map verdicts {{ type ipv4_addr : verdict; elements = {{ 10.0.0.1 : drop }} }}
  chain other {{ }}
  chain rules {{
    {}
  }}
  chain nat {{
    type nat hook prerouting priority -100;
    {}
  }}
  chain post {{
    type nat hook postrouting priority 100;
    {}
  }}
}}
",
        lines(NFT),
        lines(NFT_NAT),
        lines(NFT_SNAT)
    );
    ns.feed("nft -f -", &text);
    let read = ns.read(Depth::Full);
    let rules = read.nft.known().expect("rules");
    let mut wrong = Vec::new();
    for chain in ["rules", "nat", "post"] {
        let listed = ns.run(&format!("nft list chain inet t {chain}"));
        let tool: Vec<String> = listed
            .lines()
            .map(words)
            .filter(|line| {
                !line.starts_with("table ")
                    && !line.starts_with("chain ")
                    && !line.starts_with("type ")
                    && line != "}"
            })
            .collect();
        wrong.extend(differences(
            &tool,
            &printed(rules, Family::Inet, "t", chain),
        ));
    }
    assert!(
        wrong.is_empty(),
        "{} differ:{}",
        wrong.len(),
        wrong.join("")
    );
}

fn iptables(tool: &str, legacy: bool) {
    let ns = Ns::new();
    for (table, rules) in [("filter", IPTABLES), ("nat", IPTABLES_NAT)] {
        let text = format!(
            "*{table}\n:T - [0:0]\n:U - [0:0]\n{}\nCOMMIT\n",
            rules.join("\n")
        );
        ns.feed(&format!("{tool}-restore --noflush"), &text);
    }
    // nat checks from where its targets are reached; rules of chains that nothing leads to are read too.
    let read = ns.read(Depth::Full);
    let rules = if legacy { &read.legacy } else { &read.nft };
    let rules = rules.known().expect("rules");
    let saved = ns.run(&format!("{tool}-save"));
    let mut wrong = Vec::new();
    for table in ["filter", "nat"] {
        let (_, part) = saved.split_once(&format!("*{table}\n")).expect("the table");
        let (part, _) = part.split_once("COMMIT").expect("its end");
        for chain in ["T", "U"] {
            let head = format!("-A {chain}");
            let tool: Vec<String> = part
                .lines()
                .filter_map(|line| line.strip_prefix(&head))
                .map(words)
                .collect();
            wrong.extend(differences(
                &tool,
                &printed(rules, Family::Ip, table, chain),
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} differ:{}",
        wrong.len(),
        wrong.join("")
    );
}

#[test]
fn rules_read_as_iptables_nft_prints_them() {
    iptables("iptables-nft", false);
}

#[test]
fn rules_read_as_iptables_legacy_prints_them() {
    iptables("iptables-legacy", true);
}
