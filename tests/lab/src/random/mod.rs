//! The kernel as the oracle: random networks, random packets through them, and whether what the product predicts
//! from what it read before is what packet sockets saw.
//!
//! Everything follows from a seed. A network is data ([`World`]), so that a case that disagrees can be made smaller
//! and saved; docs/accuracy.md says what is compared.
#![allow(
    clippy::format_push_string,
    clippy::single_match_else,
    reason = "lines are put together once, from parts that are there or not"
)]

pub mod again;
pub mod ask;
pub mod coverage;
pub mod cpu;
pub mod dice;
pub mod fit;
pub mod frequency;
pub mod judge;
pub mod kinds;
pub mod places;
mod plan;
mod probe;
mod raise;
pub mod reader;
pub mod record;
mod routes;
mod rules;
pub mod run;
pub mod save;
pub mod seen;
pub mod shrink;
mod topic;
pub mod wire;
mod wireguard;
pub mod world;

use dice::Dice;
use kinds::Kinds;
use plan::Plan;
pub use raise::Raised;
use topic::Topics;
use world::{Probe, World};

/// The network of a seed, with devices of such kinds, and packets to send through it.
pub fn generate(seed: u64, probes: usize, kinds: &Kinds) -> (World, Vec<Probe>) {
    let mut dice = Dice::new(seed);
    let mut topics = Topics::draw(seed);
    let mut plan = Plan::draw(&mut dice, &mut topics);
    let more = plan.more(seed, kinds);
    plan.settings(&mut dice);
    routes::draw(&mut dice, &mut plan);
    let everywhere = dice.percent(65);
    plan.pin(&mut dice, everywhere);
    if !topics.alone() {
        rules::draw(&mut dice, &mut plan);
    }
    probe::listeners(&mut dice, &mut plan);
    let mut asks = topics.lines(&mut plan);
    asks.extend(more);
    plan.vrf_lines(seed);
    let mut probes = probe::draw(&mut dice, &plan, &asks, probes);
    plan.bind(seed, &mut probes);
    (plan.world, probes)
}
