//! Rules: nf_tables by nfnetlink, legacy x_tables by getsockopt. Both give [`crate::model::netfilter`].

pub mod closure;
pub mod expr;
pub mod ipset;
pub mod iptables;
pub mod nft;
pub mod object;
pub mod set;
pub mod sieve;
pub mod sockopt;
pub mod xt_match;
pub mod xt_rare_match;
pub mod xt_rare_target;
pub mod xt_target;

#[cfg(test)]
mod tests;
