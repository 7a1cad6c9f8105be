//! Answers as text or data: pure functions to strings, so that tests can pin them.

pub mod check;
pub mod dump;
mod findings;
pub mod json;
pub mod json_types;
pub mod map;
pub mod mtu;
mod netfilter;
pub mod observed;
pub mod packets;
mod paint;
pub mod pcapng;
pub mod text;
#[cfg(test)]
mod text_tests;
pub mod tree;

use anyhow::Context;

pub use paint::{Options, escaped, without_commands};

use crate::cli::Format;

/// A value as JSON or YAML, with a line break at its end.
pub fn data(value: &impl serde::Serialize, format: Format) -> anyhow::Result<String> {
    let mut text = match format {
        Format::Yaml => serde_saphyr::to_string(value).context("write the answer as YAML")?,
        _ => serde_json::to_string_pretty(value).context("write the answer as JSON")?,
    };
    if !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}
