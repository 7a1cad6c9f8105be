//! Answers of netlink: a byte that says what was asked, the message's type, its body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netpath::collect::untrusted::{ASKED, answer};

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (asked, kind, body) = input;
    answer(ASKED[usize::from(asked) % ASKED.len()], kind, body);
});
