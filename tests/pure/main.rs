//! Tests that need no kernel: they run on any operating system.
#![allow(missing_docs, reason = "tests")]

mod coverage;
mod hostile;
mod ipvs;
mod layering;
mod macvlan;
mod mutate;
mod oracle;
mod properties;
mod raw;
mod refusals;
mod routes;
mod scenarios;
mod tables;
mod tunnels;
mod vlan;
mod vlan_filtering;
mod vrf;
mod walks;
mod wire;
mod world;
