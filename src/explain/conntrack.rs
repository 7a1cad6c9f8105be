//! Connections and what is counted of them, as `conntrack` prints them.
//!
//! Source: conntrack-tools 1.4.7 (`conntrack -L`, `conntrack -S`), but for the count of references.

use super::words::protocol;
use crate::model::conntrack::{ConntrackEntry, Counted, CpuStats, TCP_STATES, Tuple, status};
use crate::model::packet;

/// An entry as `conntrack -L` prints it.
pub fn line(entry: &ConntrackEntry) -> String {
    let protocol = entry.orig.protocol;
    format!("{:<8} {protocol} {}", name(protocol), rest(entry))
}

/// An entry in one sentence, without the columns.
pub fn words(entry: &ConntrackEntry) -> String {
    format!("{} {}", protocol(entry.orig.protocol), rest(entry))
}

fn rest(entry: &ConntrackEntry) -> String {
    let mut words = Vec::new();
    if entry.status & status::OFFLOAD == 0 {
        words.extend(entry.timeout.map(|seconds| seconds.to_string()));
        let state = entry.tcp_state.and_then(tcp_state);
        words.extend(state);
    }
    let both = entry.zone == entry.reply_zone;
    let counted = |side: Option<Counted>| {
        side.map(|side| format!("packets={} bytes={}", side.packets, side.bytes))
    };
    words.push(tuple(&entry.orig));
    if !both && entry.zone != 0 {
        words.push(format!("zone-orig={}", entry.zone));
    }
    words.extend(counted(entry.counters.map(|[there, _]| there)));
    if entry.status & status::SEEN_REPLY == 0 {
        words.push("[UNREPLIED]".to_owned());
    }
    words.push(tuple(&entry.reply));
    if !both && entry.reply_zone != 0 {
        words.push(format!("zone-reply={}", entry.reply_zone));
    }
    words.extend(counted(entry.counters.map(|[_, back]| back)));
    if entry.status & status::OFFLOAD != 0 {
        words.push("[OFFLOAD]".to_owned());
    } else if entry.status & status::ASSURED != 0 {
        words.push("[ASSURED]".to_owned());
    }
    words.push(format!("mark={}", entry.mark));
    if both && entry.zone != 0 {
        words.push(format!("zone={}", entry.zone));
    }
    if let Some(helper) = &entry.helper {
        words.push(format!("helper={helper}"));
    }
    words.join(" ")
}

/// What one CPU counted, as `conntrack -S` prints it; counts that a kernel does not tell are left out.
pub fn stats_line(cpu: &CpuStats) -> String {
    let counts = [
        ("found", cpu.found),
        ("invalid", cpu.invalid),
        ("insert", cpu.insert),
        ("insert_failed", cpu.insert_failed),
        ("drop", cpu.drop),
        ("early_drop", cpu.early_drop),
        ("error", cpu.error),
        ("search_restart", cpu.search_restart),
        ("clash_resolve", cpu.clash_resolve),
        ("chaintoolong", cpu.chaintoolong),
    ];
    let told = counts
        .into_iter()
        .filter_map(|(name, count)| Some(format!("{name}={}", count?)));
    format!("cpu={:<4}\t{}", cpu.cpu, told.collect::<Vec<_>>().join(" "))
}

/// Names as `conntrack` has them.
fn name(protocol: u8) -> &'static str {
    match protocol {
        packet::ICMP => "icmp",
        packet::TCP => "tcp",
        packet::UDP => "udp",
        33 => "dccp",
        47 => "gre",
        packet::ICMPV6 => "icmpv6",
        packet::SCTP => "sctp",
        136 => "udplite",
        _ => "unknown",
    }
}

fn tuple(tuple: &Tuple) -> String {
    let number =
        |number: Option<u16>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
    let addresses = format!("src={} dst={}", tuple.src, tuple.dst);
    if matches!(tuple.protocol, packet::ICMP | packet::ICMPV6) {
        let kind = tuple.dport.map(|both| both >> 8);
        let code = tuple.dport.map(|both| both & 0xff);
        return format!(
            "{addresses} type={} code={} id={}",
            number(kind),
            number(code),
            number(tuple.sport)
        );
    }
    if name(tuple.protocol) == "unknown" {
        return addresses;
    }
    format!(
        "{addresses} sport={} dport={}",
        number(tuple.sport),
        number(tuple.dport)
    )
}

/// TCP_CONNTRACK_* by name, as far as `conntrack` has one.
fn tcp_state(state: u8) -> Option<String> {
    let name = TCP_STATES.get(usize::from(state))?;
    Some(name.to_ascii_uppercase())
}
