//! The same trace on nodes with many Services.

use std::time::Instant;

use anyhow::Result;

use super::report::{Times, bytes, duration};
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
    let warm = lab.client.warm(args.runs())?;
    let peaks = lab.client.peaks(&lab.server)?;
    let stats = warm.stats()?;
    let peer = peer(&lab, proxy, args.runs())?;
    lab.down()?;
    Ok(vec![
        proxy.to_string(),
        services.to_string(),
        format!(
            "{} ({})",
            duration(warm.answer().median),
            duration(warm.answer().p95)
        ),
        duration(warm.without_asking().median),
        duration(warm.asking().median),
        stats.round_trips.to_string(),
        bytes(stats.bytes_in),
        bytes(peaks.helper),
        bytes(peaks.client),
        peer,
    ])
}

/// What a program that people use takes to dump this node's rules of one family, where it is there: no
/// like for a trace, but for the cost of reading all.
fn peer(lab: &Lab, proxy: Proxy, runs: usize) -> Result<String> {
    let program: &[&str] = match proxy {
        Proxy::IptablesNft | Proxy::Ipvs => &["iptables-nft-save"],
        Proxy::IptablesLegacy => &["iptables-legacy-save"],
        Proxy::Nftables => &["nft", "list", "table", "ip", "kube-proxy"],
    };
    let node = lab.cluster.node("node-1")?;
    let mut times = Vec::new();
    for _ in 0..runs {
        let start = Instant::now();
        node.run(program)?;
        times.push(start.elapsed());
    }
    let times: Times = times.into_iter().collect();
    Ok(format!("{}: {}", program.join(" "), duration(times.median)))
}
