//! Gets a helper running where the question needs one, talks to it, and takes it away again.
//!
//! Read in this order: [`manifest`] (the pod, pure), [`pods`] (create and wait), `removal`, [`exec`] and
//! [`local`] (two ways to a helper's stdin and stdout), [`pipe`] (what both hand over), [`session`] (the framed
//! contract over it), [`signals`] (nothing is left behind), [`cleanup`] (what a killed client left).

pub mod cleanup;
pub mod error;
pub mod exec;
pub mod local;
pub mod manifest;
pub mod pipe;
pub mod pods;
mod removal;
pub mod session;
pub mod signals;
mod state;

pub use cleanup::{CleanupScope, cleanup};
pub use local::spawn_local;
pub use manifest::{HelperFlags, SETUP_LABEL};
pub use pods::{Launcher, NodeTarget};
pub use session::Session;
pub use signals::{Outcome, Signal, guard};

#[cfg(all(test, target_os = "linux"))]
mod tests;
