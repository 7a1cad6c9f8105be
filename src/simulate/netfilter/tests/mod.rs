//! Tests of whole hooks with rule sets made by hand.

#![allow(
    clippy::wildcard_imports,
    clippy::unnecessary_wraps,
    clippy::format_collect,
    clippy::needless_pass_by_value,
    clippy::match_same_arms,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "fixtures are read, not reused"
)]

mod clock;
mod fixture;
mod ipset;
mod kube_iptables;
mod kube_nft;
mod order;
mod owner;
mod properties;
mod rare;
mod rates;
mod unknown;
