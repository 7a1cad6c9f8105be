//! Matches and targets of x_tables: a byte that says which, revision and family, its bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netpath::collect::untrusted::{MATCHES, TARGETS, extension};

fuzz_target!(|input: (u8, u8, &[u8])| {
    let (name, revision, data) = input;
    let mut names = MATCHES.iter().chain(TARGETS).cycle();
    let name = names.nth(usize::from(name)).unwrap_or(&"");
    extension(name, revision & 7, data, revision & 8 != 0);
});
