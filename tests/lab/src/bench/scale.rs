//! The same trace on nodes with many Services.

use std::time::Instant;

use anyhow::Result;

use super::report::{bytes, duration};
use super::{BenchArgs, Lab};
use crate::{Overlay, Proxy, Spec};

pub(super) fn figures(args: &BenchArgs, proxy: Proxy, services: usize) -> Result<Vec<String>> {
    let spec = Spec::new(Overlay::Vxlan, proxy).with_services(services)?;
    let start = Instant::now();
    let lab = Lab::up(args, spec)?;
    eprintln!(
        "{proxy} with {services} Services: up after {}",
        duration(start.elapsed())
    );
    let warm = lab.client.warm(args.runs)?;
    let peaks = lab.client.peaks(&lab.server)?;
    let stats = warm.stats()?;
    lab.down()?;
    Ok(vec![
        proxy.to_string(),
        services.to_string(),
        duration(warm.answer().median),
        duration(warm.asking().median),
        stats.round_trips.to_string(),
        bytes(stats.bytes_in),
        bytes(peaks.helper),
        bytes(peaks.client),
    ])
}
