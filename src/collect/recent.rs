//! Lists of recently seen addresses, from `/proc/net/xt_recent` of the calling thread's namespace.
//!
//! The files tell times in jiffies. What jiffies are now, and how many a second has, is told by
//! `/proc/timer_list` or `/proc/schedstat`; where neither can be read, ages are unknown.

use std::fs;
use std::path::Path;

use nix::time::{ClockId, clock_gettime};

use super::error::Result;
use super::proc_lists;
use crate::model::recent::{RecentEntry, RecentList};

/// Bytes of one file that are read; an entry takes at most about 3 kB.
const MOST_BYTES: u64 = 4 << 20;

/// Reads all lists; none where the kernel has no such match. `proc` is the mount point of proc.
pub fn read(proc: &Path) -> Result<Vec<RecentList>> {
    let dir = proc.join("thread-self/net/xt_recent");
    let mut clock = None;
    let mut lists = proc_lists::read(&dir, MOST_BYTES, |name, text, cut| {
        let clock = clock.get_or_insert_with(|| Clock::read(proc));
        list(name, text, cut, clock.as_ref())
    })?;
    lists.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(lists)
}

fn list(name: String, text: &str, cut: bool, clock: Option<&Clock>) -> Option<RecentList> {
    let lines: Vec<&str> = text.lines().collect();
    let whole = lines
        .len()
        .saturating_sub(usize::from(cut))
        .min(RecentList::MOST);
    let entries: Option<Vec<RecentEntry>> = lines
        .iter()
        .take(whole)
        .map(|line| entry(line, clock))
        .collect();
    Some(RecentList {
        name,
        entries: entries?,
        cut: whole < lines.len(),
    })
}

/// `src=10.0.0.1 ttl: 63 last_seen: 4295 oldest_pkt: 2 4290, 4295`
fn entry(line: &str, clock: Option<&Clock>) -> Option<RecentEntry> {
    let rest = line.strip_prefix("src=")?;
    let (addr, rest) = rest.split_once(" ttl: ")?;
    let (ttl, rest) = rest.split_once(" last_seen: ")?;
    let (_, rest) = rest.split_once(" oldest_pkt: ")?;
    // The number is the place of the next stamp in the ring; the stamps follow.
    let (_, stamps) = rest.split_once(' ').unwrap_or((rest, ""));
    let ages = stamps
        .split(',')
        .map(str::trim)
        .filter(|stamp| !stamp.is_empty())
        .map(|stamp| {
            let stamp: u64 = stamp.parse().ok()?;
            Some(clock.map(|clock| clock.age(stamp)))
        })
        .collect::<Option<Vec<_>>>()?;
    Some(RecentEntry {
        addr: addr.parse().ok()?,
        ttl: ttl.parse().ok()?,
        ages,
    })
}

/// The kernel's jiffies.
struct Clock {
    now: u64,
    per_second: u64,
}

/// Values of CONFIG_HZ.
const RATES: [u64; 5] = [100, 250, 300, 1000, 1024];
/// Jiffies start five minutes before they would overflow 32 bits (INITIAL_JIFFIES).
const START: u64 = 1 << 32;

impl Clock {
    fn read(proc: &Path) -> Option<Self> {
        let uptime = clock_gettime(ClockId::CLOCK_MONOTONIC).ok()?;
        let word = |file: &str, key: &str| {
            let text = fs::read_to_string(proc.join(file)).ok()?;
            let line = text.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().parse::<u64>().ok()
        };
        let now = word("timer_list", "jiffies: ").or_else(|| word("schedstat", "timestamp "))?;
        let millis = u64::try_from(uptime.tv_sec()).ok()? * 1000
            + u64::try_from(uptime.tv_nsec()).ok()? / 1_000_000;
        let per_second = rate(now, millis)?;
        Some(Self { now, per_second })
    }

    /// Milliseconds since a stamp.
    fn age(&self, stamp: u64) -> u64 {
        self.now.saturating_sub(stamp) * 1000 / self.per_second
    }
}

/// Jiffies per second, from how many there were since the start; `None` where several would fit (about five
/// minutes after the start) or none does.
fn rate(jiffies: u64, uptime_millis: u64) -> Option<u64> {
    let fits = |rate: &&u64| {
        let expected = START + **rate * uptime_millis / 1000;
        // Within two seconds: ticks are counted late on an idle machine.
        (jiffies + 300 * **rate).abs_diff(expected) <= 2 * **rate
    };
    let mut rates = RATES.iter().filter(fits);
    match (rates.next(), rates.next()) {
        (Some(rate), None) => Some(*rate),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_become_ages() {
        let clock = Clock {
            now: 4_295_494_582,
            per_second: 250,
        };
        let text = "src=10.244.1.7 ttl: 0 last_seen: 4295494332 oldest_pkt: 2 4295492082, 4295494332\n\
            src=fd00:0010:0244:0001:0000:0000:0000:0007 ttl: 63 last_seen: 4295494582 oldest_pkt: 1 4295494582\n";
        let found = list("SEP".to_owned(), text, false, Some(&clock)).expect("a list");
        assert_eq!(found.entries[0].ages, [Some(10_000), Some(1000)]);
        assert_eq!(
            found.entries[1].addr,
            "fd00:10:244:1::7".parse::<std::net::IpAddr>().unwrap()
        );
        assert_eq!(
            (found.entries[1].ttl, found.entries[1].ages.clone()),
            (63, vec![Some(0)])
        );
        let blind = list("SEP".to_owned(), text, false, None).expect("a list");
        assert_eq!(blind.entries[0].ages, [None, None]);
        assert!(list("SEP".to_owned(), "what is this\n", false, None).is_none());
    }

    #[test]
    fn the_rate_follows_from_the_time_since_the_start() {
        // Read on a machine with CONFIG_HZ=250.
        assert_eq!(rate(4_295_494_582, 2_409_393), Some(250));
        assert_eq!(rate(START, 300_000), None);
        assert_eq!(rate(5, 2_409_393), None);
    }
}
