//! Tests of whole hooks with rule sets made by hand.

mod fixture;
mod kube_iptables;
mod kube_nft;
mod order;
mod properties;
mod unknown;
