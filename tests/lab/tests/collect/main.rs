//! The collector against the kernel: what it reads must be what iproute2, nft and iptables say.
//!
//! Needs root: namespaces called `npc-*` are made and removed again. The helper binary must have been
//! built (`cargo build -p netpath --bin netpath-helper --features capture`).

mod decoder;
mod discovery;
mod flows;
mod helper;
mod links;
mod measure;
mod ns;
mod rules;
mod safe;
mod words;
