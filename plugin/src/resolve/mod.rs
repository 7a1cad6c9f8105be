//! From what was typed to Kubernetes objects.
//!
//! Read in this order: [`parse`] takes the text apart, [`fetch`] reads the API once, [`choose`] picks
//! the objects (pure, over a [`ClusterView`]), [`ends`] is the answer, [`names`] serves the output.
//! Network policies are not read here; what the kernel holds decides.

pub mod choose;
mod destination;
pub mod ends;
pub mod error;
pub mod fetch;
mod flow;
pub mod names;
pub mod objects;
pub mod parse;
mod port;
mod source;
mod wire;
mod words;

pub use choose::{Ask, resolve, resolve_place};
pub use ends::{Destination, Entry, Family, Resolved, Source};
pub use objects::ClusterView;
pub use parse::{EndSpec, PortSpec, Protocol, parse as parse_end, parse_local};

#[cfg(test)]
mod tests;
