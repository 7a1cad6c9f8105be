//! IPVS services in the words of `ipvsadm-save -n`, which `ipvsadm-restore` takes. Bounds of servers, which that
//! leaves out, are there too.

#![expect(
    clippy::format_push_string,
    reason = "writing to a String cannot fail, and its result would have to be ignored"
)]

use std::net::{IpAddr, Ipv4Addr};

use super::words;
use crate::model::ipvs::{IpvsKey, IpvsMethod, IpvsServer, IpvsService};
use crate::model::packet::{SCTP, TCP, UDP};

/// IP_VS_SVC_F_SCHED1 and those behind it.
const SCHEDULER_FLAGS: [u32; 3] = [0x08, 0x10, 0x20];

/// A service and its servers, one line each.
pub fn lines(service: &IpvsService) -> Vec<String> {
    let key = key(&service.key);
    let mut head = format!("-A {key} -s {}", service.scheduler);
    let mut add = |words: &str| {
        head.push(' ');
        head.push_str(words);
    };
    if service.persistent() {
        add(&format!("-p {}", service.timeout));
        if let Some(mask) = mask(service) {
            add(&format!("-M {mask}"));
        }
    }
    if let Some(engine) = &service.engine {
        add(&format!("--pe {engine}"));
    }
    if service.one_packet() {
        add("-o");
    }
    let flags = flags(service);
    if !flags.is_empty() {
        add(&format!("-b {}", flags.join(",")));
    }
    let servers = service.servers.iter();
    let servers = servers.map(|own| format!("-a {key} {}", server(own)));
    std::iter::once(head).chain(servers).collect()
}

/// Which service: `-t 10.96.0.10:53`.
pub fn key(key: &IpvsKey) -> String {
    match key {
        IpvsKey::Address(protocol, addr, port) => {
            let option = match *protocol {
                TCP => "-t".to_owned(),
                UDP => "-u".to_owned(),
                SCTP => "--sctp-service".to_owned(),
                other => words::protocol(other),
            };
            format!("{option} {}", words::socket_addr(*addr, Some(*port)))
        }
        IpvsKey::Fwmark(mark, false) => format!("-f {mark}"),
        IpvsKey::Fwmark(mark, true) => format!("-f {mark} -6"),
    }
}

/// A server: `-r 10.244.1.9:8080 -m -w 1`.
pub fn server(server: &IpvsServer) -> String {
    let method = match server.method {
        IpvsMethod::Masq => "-m".to_owned(),
        IpvsMethod::Tunnel => "-i".to_owned(),
        IpvsMethod::Direct | IpvsMethod::Local => "-g".to_owned(),
        IpvsMethod::Bypass => "bypass".to_owned(),
        IpvsMethod::Other(number) => format!("method {number}"),
    };
    let addr = words::socket_addr(server.addr, Some(server.port));
    let mut text = format!("-r {addr} {method} -w {}", server.weight);
    if server.method == IpvsMethod::Tunnel {
        text.push_str(&format!(" --tun-type {}", tunnel(server.tunnel)));
    }
    for (option, bound) in [("-x", server.upper), ("-y", server.lower)] {
        if bound > 0 {
            text.push_str(&format!(" {option} {bound}"));
        }
    }
    text
}

fn tunnel(kind: u8) -> String {
    match kind {
        0 => "ipip".to_owned(),
        1 => "gue".to_owned(),
        2 => "gre".to_owned(),
        other => other.to_string(),
    }
}

/// The mask of clients, where it is not each client by itself.
fn mask(service: &IpvsService) -> Option<String> {
    let bits = u32::from(service.netmask);
    if service.key.is_ipv6() {
        return (bits < 128).then(|| bits.to_string());
    }
    let mask = u32::MAX
        .checked_shl(32_u32.saturating_sub(bits))
        .unwrap_or(0);
    (bits < 32).then(|| IpAddr::V4(Ipv4Addr::from(mask)).to_string())
}

fn flags(service: &IpvsService) -> Vec<&'static str> {
    let names = match service.scheduler.as_str() {
        "sh" => ["sh-fallback", "sh-port", "flag-3"],
        "mh" => ["mh-fallback", "mh-port", "flag-3"],
        _ => ["flag-1", "flag-2", "flag-3"],
    };
    let set = SCHEDULER_FLAGS.into_iter().zip(names);
    set.filter(|(flag, _)| service.flags & flag != 0)
        .map(|(_, name)| name)
        .collect()
}
