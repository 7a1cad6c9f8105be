//! Tests that need no kernel: they run on any operating system.
#![allow(missing_docs, reason = "tests")]

mod layering;
mod properties;
mod scenarios;
mod walks;
mod world;
