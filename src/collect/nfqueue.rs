//! Queues that programs listen on, from `/proc/net/netfilter/nfnetlink_queue` of the calling thread's namespace.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use super::error::{Error, Result};
use crate::model::nfqueue::NfQueue;

/// Reads the queues; none where the kernel has no such queues. `proc` is the mount point of proc.
pub fn read(proc: &Path) -> Result<Vec<NfQueue>> {
    let path = proc.join("thread-self/net/netfilter/nfnetlink_queue");
    let operation = || format!("read {}", path.display());
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(operation(), &error)),
    };
    let queues = text.lines().map(queue).collect::<Option<Vec<_>>>();
    queues.ok_or_else(|| Error::malformed(operation(), "a line is not as expected"))
}

/// Number, port, packets waiting, copy mode, copy range, dropped, dropped on the way to the program, last id, 1.
fn queue(line: &str) -> Option<NfQueue> {
    let numbers: Vec<&str> = line.split_whitespace().collect();
    let [num, portid, waiting, _, _, dropped, user_dropped, ..] = numbers[..] else {
        return None;
    };
    Some(NfQueue {
        num: num.parse().ok()?,
        portid: portid.parse().ok()?,
        waiting: waiting.parse().ok()?,
        dropped: dropped.parse().ok()?,
        user_dropped: user_dropped.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_kernel() {
        let line = "  100   4242     3 2 65531     7     1    12345  1";
        let expected = NfQueue {
            num: 100,
            portid: 4242,
            waiting: 3,
            dropped: 7,
            user_dropped: 1,
        };
        assert_eq!(queue(line), Some(expected));
        assert_eq!(queue("100 4242"), None);
        assert_eq!(queue("70000 1 0 2 0 0 0 0 1"), None);
    }
}
