//! What a namespace counts: `/proc/net/{snmp,netstat,snmp6,xfrm_stat,dev,softnet_stat}` of the calling thread's
//! namespace, and conntrack's statistics. Names are those of `nstat`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::model::capture::Counts;
use crate::model::conntrack::{ConntrackStats, CpuStats};

/// Columns of `/proc/net/dev` behind the device's name; `dev_seq_printf_stats()`, net/core/net-procfs.c, v6.12.
const DEV: [&str; 16] = [
    "rx_bytes",
    "rx_packets",
    "rx_errors",
    "rx_dropped",
    "rx_fifo_errors",
    "rx_frame_errors",
    "rx_compressed",
    "multicast",
    "tx_bytes",
    "tx_packets",
    "tx_errors",
    "tx_dropped",
    "tx_fifo_errors",
    "collisions",
    "tx_carrier_errors",
    "tx_compressed",
];

/// Columns of `/proc/net/softnet_stat`, in hexadecimal, one line for each CPU; `softnet_seq_show()`, same place.
const SOFTNET: [&str; 3] = ["processed", "dropped", "time_squeeze"];

/// Takes a file's text in; `None`: it is not as expected.
type Parser = fn(&str, &mut Counts) -> Option<()>;
/// One of conntrack's counts.
type Column = fn(&CpuStats) -> Option<u32>;

/// Reads all but conntrack's. `proc` is the mount point of proc. Files that this kernel does not have are left out.
pub fn read(proc: &Path) -> Counts {
    let mut counts = Counts::default();
    let files: [(&str, Parser); 6] = [
        ("snmp", pairs),
        ("netstat", pairs),
        ("snmp6", single),
        ("xfrm_stat", single),
        ("dev", devices),
        ("softnet_stat", softnet),
    ];
    for (file, parse) in files {
        let path = proc.join("thread-self/net").join(file);
        match fs::read_to_string(&path) {
            Ok(text) if parse(&text, &mut counts).is_some() => {}
            Ok(_) => counts.missing.push(format!(
                "read {}: a line is not as expected",
                path.display()
            )),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => counts
                .missing
                .push(format!("read {}: {error}", path.display())),
        }
    }
    counts
}

/// A line of names and one of numbers, each behind `Ip:` or the like.
fn pairs(text: &str, counts: &mut Counts) -> Option<()> {
    let mut lines = text.lines();
    while let (Some(names), Some(numbers)) = (lines.next(), lines.next()) {
        let (group, names) = names.split_once(':')?;
        let (same, numbers) = numbers.split_once(':')?;
        if group != same {
            return None;
        }
        for (name, number) in names.split_whitespace().zip(numbers.split_whitespace()) {
            // One of them (MaxConn) may be -1.
            if let Ok(number) = number.parse() {
                counts.of.insert(format!("{group}{name}"), number);
            }
        }
    }
    Some(())
}

/// A name and a number on each line.
fn single(text: &str, counts: &mut Counts) -> Option<()> {
    for line in text.lines() {
        let (name, number) = line.split_once(char::is_whitespace)?;
        counts
            .of
            .insert(name.to_owned(), number.trim().parse().ok()?);
    }
    Some(())
}

fn devices(text: &str, counts: &mut Counts) -> Option<()> {
    // Two lines of headings.
    for line in text.lines().skip(2) {
        // Names may hold colons; numbers do not.
        let (dev, numbers) = line.rsplit_once(':')?;
        for (name, number) in DEV.iter().zip(numbers.split_whitespace()) {
            let name = format!("{} {name}", dev.trim());
            counts.of.insert(name, number.parse().ok()?);
        }
    }
    Some(())
}

fn softnet(text: &str, counts: &mut Counts) -> Option<()> {
    for line in text.lines() {
        for (name, number) in SOFTNET.iter().zip(line.split_whitespace()) {
            let number = u64::from_str_radix(number, 16).ok()?;
            let sum = counts.of.entry(format!("softnet {name}")).or_default();
            *sum = sum.saturating_add(number);
        }
    }
    Some(())
}

/// Adds what conntrack counts, of all CPUs together; nothing where nothing is tracked.
pub fn add_conntrack(counts: &mut Counts, stats: Option<&ConntrackStats>) {
    let Some(stats) = stats else { return };
    let columns: [(&str, Column); 6] = [
        ("invalid", |cpu| cpu.invalid),
        ("insert_failed", |cpu| cpu.insert_failed),
        ("drop", |cpu| cpu.drop),
        ("early_drop", |cpu| cpu.early_drop),
        ("error", |cpu| cpu.error),
        ("chaintoolong", |cpu| cpu.chaintoolong),
    ];
    for (name, column) in columns {
        let known = stats.cpus.iter().filter_map(column).map(u64::from);
        counts.of.insert(format!("conntrack {name}"), known.sum());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_kernel() {
        let mut counts = Counts::default();
        let snmp = "Ip: Forwarding InDiscards\nIp: 1 7\nTcp: MaxConn AttemptFails\nTcp: -1 3\n";
        assert!(pairs(snmp, &mut counts).is_some());
        assert!(single("Ip6InNoRoutes                   \t4\n", &mut counts).is_some());
        let dev = "Inter-|   Receive\n face |bytes\n  a:b: 10 2 0 5 0 0 0 0 20 3 0 6 0 0 0 0\n";
        assert!(devices(dev, &mut counts).is_some());
        let softnet_stat = "0000000a 00000001 00000000 0 0\n0000000b 00000002 00000001 0 0\n";
        assert!(softnet(softnet_stat, &mut counts).is_some());
        let of = |name: &str| counts.of.get(name).copied();
        assert_eq!(of("IpInDiscards"), Some(7));
        assert_eq!((of("TcpMaxConn"), of("TcpAttemptFails")), (None, Some(3)));
        assert_eq!(of("Ip6InNoRoutes"), Some(4));
        assert_eq!(
            (of("a:b rx_dropped"), of("a:b tx_dropped")),
            (Some(5), Some(6))
        );
        assert_eq!(
            (of("softnet dropped"), of("softnet processed")),
            (Some(3), Some(21))
        );
        assert!(pairs("Ip: A\nTcp: 1\n", &mut counts).is_none());
    }
}
