//! kubectl plugin.
#![allow(
    dead_code,
    reason = "the command line that uses these rooms is not merged yet"
)]

mod kube_client;
mod kube_error;
mod launch;
mod resolve;

fn main() {}
