//! netpath traces a packet through the objects that Linux kernels hold, and says which of them
//! decided.
//!
//! ```text
//!  cli ─► resolve ─► launch ─► collect ─► model ─► simulate ─► explain ─► render
//!  └────── plugin ─────────┘  └ helper ┘  └──── this crate, pure ───┘  └ plugin ┘
//! ```
//!
//! Read [`model`] for the facts, [`trace`] for what an answer is, then [`simulate`], which is a total
//! function from the one to the other. Only `collect` and `capture` (features of the same names,
//! Linux only) touch a kernel.

pub mod contract;
pub mod explain;
pub mod model;
pub mod simulate;
pub mod trace;

#[cfg(all(target_os = "linux", feature = "capture"))]
pub mod capture;
#[cfg(all(target_os = "linux", feature = "collect"))]
pub mod collect;
