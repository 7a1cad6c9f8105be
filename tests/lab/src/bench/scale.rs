//! The same trace on nodes with many Services.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::report::{bytes, duration};
use super::{BenchArgs, Lab};
use crate::spec::{Protocol, ServiceKind, ServiceSpec};
use crate::{Overlay, Proxy, Spec};

/// Bound of the Service network less what the laboratory's own Services take.
const MOST: usize = 40_000;

pub(super) fn figures(args: &BenchArgs, proxy: Proxy, services: usize) -> Result<Vec<String>> {
    ensure!(
        services <= MOST,
        "--services {services}: at most {MOST} are possible"
    );
    let mut spec = Spec::new(Overlay::Vxlan, proxy);
    let own = spec.services.len();
    spec.services.extend((own..services).map(service));
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

/// One of many: three endpoints, as most have.
fn service(number: usize) -> ServiceSpec {
    // Above all addresses of the laboratory's own Services.
    let address = 0x4000 + number;
    let v4 = format!("10.96.{}.{}", address >> 8, address & 0xff);
    let v6 = format!("fd00:10:96::{address:x}");
    let kind = ServiceKind::ClusterIp(v4, v6);
    ServiceSpec::new("scale", &format!("s-{number}"), "api", kind).port(
        "http",
        80,
        "http",
        Protocol::Tcp,
    )
}
