//! Tables of hashlimit, from `/proc/net/{ipt,ip6t}_hashlimit` of the calling thread's namespace.

use std::net::IpAddr;
use std::path::Path;

use super::error::Result;
use super::proc_lists;
use crate::model::hashlimit::{HashlimitEntry, HashlimitTable};

/// Bytes of one file that are read; a line takes some 60, of IPv6 120.
const MOST_BYTES: u64 = 1 << 20;

/// Reads all tables; none where the kernel has no such match. `proc` is the mount point of proc.
pub fn read(proc: &Path) -> Result<Vec<HashlimitTable>> {
    let mut tables = Vec::new();
    for (dir, v6) in [("ipt_hashlimit", false), ("ip6t_hashlimit", true)] {
        let dir = proc.join("thread-self/net").join(dir);
        tables.extend(proc_lists::read(&dir, MOST_BYTES, |name, text, cut| {
            table(name, v6, text, cut)
        })?);
    }
    tables.sort_by(|a, b| (a.v6, &a.name).cmp(&(b.v6, &b.name)));
    Ok(tables)
}

fn table(name: String, v6: bool, text: &str, cut: bool) -> Option<HashlimitTable> {
    let lines: Vec<&str> = text.lines().collect();
    // The last line of a text that was cut is none.
    let whole = lines.len().saturating_sub(usize::from(cut));
    let whole = whole.min(HashlimitTable::MOST);
    let entries: Option<Vec<_>> = lines.iter().take(whole).map(|line| entry(line)).collect();
    Some(HashlimitTable {
        name,
        v6,
        entries: entries?,
        cut: whole < lines.len(),
    })
}

/// `9 10.0.1.2:0->0.0.0.0:0 160000 160000 32000`
fn entry(line: &str) -> Option<HashlimitEntry> {
    let mut words = line.split_whitespace();
    let expires_s = words.next()?.parse().ok()?;
    let (from, to) = words.next()?.split_once("->")?;
    let (src, sport) = end(from)?;
    let (dst, dport) = end(to)?;
    let mut number = || words.next()?.parse().ok();
    Some(HashlimitEntry {
        expires_s,
        src,
        sport,
        dst,
        dport,
        credit: number()?,
        most: number()?,
        cost: number()?,
    })
}

fn end(text: &str) -> Option<(IpAddr, u16)> {
    let (addr, port) = text.rsplit_once(':')?;
    Some((addr.parse().ok()?, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_entries() {
        // Of `-m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 3 --hashlimit-mode srcip`, on a 6.18 kernel.
        let four = "9 10.0.1.2:0->0.0.0.0:0 65536 98304 32768\n";
        let six = "-1 fd00:0000:0000:0000:0000:0000:0000:0002:0->\
            0000:0000:0000:0000:0000:0000:0000:0000:443 1 2 3\n";
        let found = table("web".to_owned(), false, four, false).expect("a table");
        let entry = found.entries.first().expect("an entry");
        assert_eq!(entry.src, IpAddr::from([10, 0, 1, 2]));
        assert_eq!(
            (entry.credit, entry.most, entry.cost),
            (65536, 98304, 32768)
        );
        let found = table("web".to_owned(), true, six, false).expect("a table");
        let entry = found.entries.first().expect("an entry");
        assert_eq!((entry.expires_s, entry.dport), (-1, 443));
        assert_eq!(entry.src, "fd00::2".parse::<IpAddr>().expect("an address"));
        let cut = table("web".to_owned(), false, &four.repeat(2), true).expect("a table");
        assert_eq!((cut.entries.len(), cut.cut), (1, true));
        assert!(table("web".to_owned(), false, "what is this\n", false).is_none());
    }
}
