//! A laboratory for netpath: Kubernetes-like clusters made of network namespaces on one Linux
//! machine, ways to break them, and captures that show where packets really went.

pub mod fault;
pub mod spec;
pub mod state;
