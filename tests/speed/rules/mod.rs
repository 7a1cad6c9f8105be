//! What kube-proxy writes for many Services of two endpoints, as texts for the tools: eight rules each in iptables.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

/// Who holds the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    Legacy,
    IptablesNft,
    Nftables,
}

pub const BACKENDS: [Backend; 3] = [Backend::Legacy, Backend::IptablesNft, Backend::Nftables];
pub const ENDPOINTS: u32 = 2;
pub const PORT: u16 = 80;
pub const TARGET_PORT: u16 = 8080;

impl Backend {
    /// What loads its rules.
    pub fn restore(self) -> &'static [&'static str] {
        match self {
            Self::Legacy => &["iptables-legacy-restore"],
            Self::IptablesNft => &["iptables-nft-restore"],
            Self::Nftables => &["nft", "-f", "-"],
        }
    }

    /// What else reads them.
    pub fn tools(self) -> &'static [&'static [&'static str]] {
        match self {
            Self::Legacy => &[&["iptables-legacy-save", "-c"]],
            Self::IptablesNft => &[
                &["iptables-nft-save", "-c"],
                &["nft", "-j", "list", "ruleset"],
            ],
            Self::Nftables => &[&["nft", "-j", "list", "ruleset"]],
        }
    }

    /// Milliseconds that reading for one Service's trace may take.
    pub fn goal(self) -> u32 {
        match self {
            Self::Nftables => 20,
            Self::Legacy | Self::IptablesNft => 60,
        }
    }
}

pub fn service(which: u32) -> IpAddr {
    Ipv4Addr::from(0x0a60_0000 + 10 + which).into()
}

pub fn endpoint(which: u32, end: u32) -> IpAddr {
    Ipv4Addr::from(0x0af4_0000 + which * ENDPOINTS + end).into()
}

pub fn text(backend: Backend, services: u32) -> String {
    match backend {
        Backend::Nftables => nftables(services),
        Backend::Legacy | Backend::IptablesNft => iptables(services),
    }
}

fn iptables(services: u32) -> String {
    let mut heads = String::from("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n");
    let mut rules = String::from(
        "-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
         -A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000\n",
    );
    let mut line = |text: std::fmt::Arguments<'_>| writeln!(rules, "{text}").expect("a text");
    for number in 0..services {
        let name = format!("ns/svc-{number}:http");
        let chain = format!("KUBE-SVC-{number:016}");
        writeln!(heads, ":{chain} - [0:0]").expect("a text");
        let to = service(number);
        line(format_args!(
            "-A KUBE-SERVICES -d {to}/32 -p tcp -m comment --comment \"{name} cluster IP\" -m tcp --dport {PORT} -j {chain}"
        ));
        line(format_args!(
            "-A {chain} ! -s 10.244.0.0/16 -d {to}/32 -p tcp -m comment --comment \"{name} cluster IP\" -m tcp --dport {PORT} -j KUBE-MARK-MASQ"
        ));
        for end in 0..ENDPOINTS {
            let (own, addr) = (
                format!("KUBE-SEP-{number:012}{end:04}"),
                endpoint(number, end),
            );
            writeln!(heads, ":{own} - [0:0]").expect("a text");
            let chance = match end {
                0 => "-m statistic --mode random --probability 0.50000000000 ",
                _ => "",
            };
            line(format_args!(
                "-A {chain} -m comment --comment \"{name} -> {addr}:{TARGET_PORT}\" {chance}-j {own}"
            ));
            line(format_args!(
                "-A {own} -s {addr}/32 -m comment --comment \"{name}\" -j KUBE-MARK-MASQ"
            ));
            line(format_args!(
                "-A {own} -p tcp -m comment --comment \"{name}\" -m tcp -j DNAT --to-destination {addr}:{TARGET_PORT}"
            ));
        }
    }
    format!("{heads}{rules}COMMIT\n*filter\nCOMMIT\n")
}

fn nftables(services: u32) -> String {
    let mut all = String::from(
        "add table ip kube-proxy\n\
         add chain ip kube-proxy mark-for-masquerade\n\
         add rule ip kube-proxy mark-for-masquerade mark set mark or 0x4000\n\
         add chain ip kube-proxy services\n\
         add map ip kube-proxy service-ips { type ipv4_addr . inet_proto . inet_service : verdict ; }\n",
    );
    for hook in ["prerouting", "output"] {
        write!(
            all,
            "add chain ip kube-proxy nat-{hook} {{ type nat hook {hook} priority -100 ; }}\n\
             add rule ip kube-proxy nat-{hook} jump services\n"
        )
        .expect("a text");
    }
    let mut elements = Vec::new();
    for number in 0..services {
        let chain = format!("service-{number:08}-ns/svc-{number}/tcp/http");
        let to = service(number);
        let mut choices = Vec::new();
        for end in 0..ENDPOINTS {
            let addr = endpoint(number, end);
            let own =
                format!("endpoint-{number:08}-ns/svc-{number}/tcp/http__{addr}/{TARGET_PORT}");
            write!(
                all,
                "add chain ip kube-proxy {own}\n\
                 add rule ip kube-proxy {own} ip saddr {addr} jump mark-for-masquerade\n\
                 add rule ip kube-proxy {own} meta l4proto tcp dnat to {addr}:{TARGET_PORT}\n"
            )
            .expect("a text");
            choices.push(format!("{end} : goto {own}"));
        }
        write!(
            all,
            "add chain ip kube-proxy {chain}\n\
             add rule ip kube-proxy {chain} ip daddr {to} tcp dport {PORT} ip saddr != 10.244.0.0/16 jump mark-for-masquerade\n\
             add rule ip kube-proxy {chain} numgen random mod {ENDPOINTS} vmap {{ {} }}\n",
            choices.join(", ")
        )
        .expect("a text");
        elements.push(format!("{to} . tcp . {PORT} : goto {chain}"));
    }
    for some in elements.chunks(1000) {
        writeln!(
            all,
            "add element ip kube-proxy service-ips {{ {} }}",
            some.join(", ")
        )
        .expect("a text");
    }
    all += "add rule ip kube-proxy services ip daddr . meta l4proto . th dport vmap @service-ips\n";
    all
}
