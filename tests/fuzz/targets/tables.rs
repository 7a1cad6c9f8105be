//! Tables of x_tables: `struct ipt_getinfo`, then the entries.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netpath::collect::untrusted::table;

fuzz_target!(|data: &[u8]| {
    let Some((info, entries)) = data.split_at_checked(84) else {
        return;
    };
    table(false, info, entries.to_vec());
    table(true, info, entries.to_vec());
});
