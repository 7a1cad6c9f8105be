//! What a helper sends to the client and the other way round: frames with a true length.
#![no_main]

use libfuzzer_sys::fuzz_target;
use netpath::contract::frame::Decoder;
use netpath::contract::{Reply, Request};

fuzz_target!(|data: &[u8]| {
    let frame = || {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let mut decoder = Decoder::limited(1 << 20);
        decoder.push(&length.to_le_bytes());
        decoder.push(data);
        decoder
    };
    let _ = frame().message::<Reply>();
    let _ = frame().message::<Request>();
});
