//! Snapshot files.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netpath::contract::file;

fuzz_target!(|data: &[u8]| {
    let _ = file::read(data);
});
