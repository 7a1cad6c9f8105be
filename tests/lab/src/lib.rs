//! A laboratory for netpath: Kubernetes-like clusters made of network namespaces on one Linux
//! machine, ways to break them, and captures that show where packets really went.

pub mod address;
pub mod api;
pub mod bench;
pub mod capture;
pub mod cgroup;
pub mod cluster;
pub mod command;
pub mod corpus;
pub mod exchange;
pub mod fault;
pub mod holder;
pub mod launch;
pub mod names;
pub mod namespace;
pub mod network;
pub mod objects;
pub mod oracle;
pub mod packet;
pub mod process;
pub mod proxy;
pub mod random;
pub mod relay;
pub mod serve;
pub mod spec;
pub mod state;
pub mod workload;

pub use capture::{Capture, Direction, Seen};
pub use cluster::{Cluster, Place};
pub use exchange::Outcome;
pub use fault::Fault;
pub use spec::{Overlay, Proxy, Spec};
