//! From two resolved ends to the packets to trace: address families and headless Services.

use std::net::IpAddr;

use super::choose::Chooser;
use super::destination::Target;
use super::ends::{Destination, Entry, Family, Flow, Resolved, Source};
use super::error::Error;
use super::parse::Protocol;

impl Chooser<'_> {
    pub(super) fn flows(
        self,
        source: Source,
        source_port: Option<u16>,
        target: Target,
    ) -> Result<Resolved, Error> {
        let Target {
            destination,
            protocol,
            port,
            address,
        } = target;
        let ends = format!("{} to {}", source.describe(), destination.describe());
        let candidates = match address {
            Some(ip) => vec![ip],
            None => destination_ips(&destination),
        };
        // Every kernel has the loopback addresses, and sends to them from them.
        let own = match candidates.as_slice() {
            [ip] if ip.is_loopback() => vec![*ip],
            _ => source.ips(),
        };
        let mut flows = Vec::new();
        if !matches!(destination, Destination::Name { .. }) {
            flows = pair(&own, &candidates, self.ask.family, port)
                .map_err(|(why, remedy)| Error::Family { ends, why, remedy })?;
            let headless = destination
                .service()
                .is_some_and(|end| end.entry == Entry::Headless);
            if !headless {
                flows.truncate(1);
            }
            let share = 1.0 / f64::from(u32::try_from(flows.len()).unwrap_or(u32::MAX).max(1));
            for flow in &mut flows {
                flow.probability = share;
            }
        }
        Ok(Resolved {
            source,
            destination,
            protocol,
            source_port,
            flows,
            notes: self.notes,
        })
    }
}

impl Resolved {
    /// Gives a [`Destination::Name`] its addresses once they were looked up. `port` is the number that
    /// was typed; without one the port that the destination itself knows is taken.
    ///
    /// Errors: none of the addresses is of a family that the source has.
    pub fn looked_up(
        &mut self,
        addresses: &[IpAddr],
        family: Option<Family>,
        port: Option<u16>,
    ) -> Result<(), Error> {
        let known = match &self.destination {
            Destination::Name { port, .. } => *port,
            _ => None,
        };
        let port = match self.protocol {
            Protocol::Icmp => None,
            _ => port.or(known),
        };
        let ends = format!(
            "{} to {}",
            self.source.describe(),
            self.destination.describe()
        );
        let mut flows = pair(&self.source.ips(), addresses, family, port)
            .map_err(|(why, remedy)| Error::Family { ends, why, remedy })?;
        flows.truncate(1);
        self.flows = flows;
        Ok(())
    }
}

fn destination_ips(destination: &Destination) -> Vec<IpAddr> {
    match destination {
        Destination::Service(end) if end.entry == Entry::Headless => {
            let mut ips: Vec<IpAddr> = end
                .endpoints
                .iter()
                .filter(|e| e.ready)
                .map(|e| e.ip)
                .collect();
            ips.dedup();
            ips
        }
        Destination::Service(end) => end.service.cluster_ips.clone(),
        Destination::Pod { pod } if pod.ips.is_empty() => pod.host_ips.clone(),
        Destination::Pod { pod } => pod.ips.clone(),
        Destination::Node { node, .. } => node.ips.clone(),
        Destination::Address { ip, .. } => vec![*ip],
        Destination::Name { .. } => Vec::new(),
    }
}

/// All destinations of the first family that both ends have, each with the source's address of it.
fn pair(
    sources: &[IpAddr],
    destinations: &[IpAddr],
    wanted: Option<Family>,
    port: Option<u16>,
) -> Result<Vec<Flow>, (String, String)> {
    if destinations.is_empty() {
        return Err((
            "the destination has no address now".to_owned(),
            "look at its endpoints or status with kubectl describe".to_owned(),
        ));
    }
    if sources.is_empty() {
        return Err((
            "the source has no address now".to_owned(),
            "look at its status with kubectl describe".to_owned(),
        ));
    }
    let allowed = |family: Family| wanted.is_none_or(|wanted| wanted == family);
    let family = destinations
        .iter()
        .map(|ip| Family::of(*ip))
        .find(|family| {
            allowed(*family) && sources.iter().any(|source| Family::of(*source) == *family)
        });
    let Some(family) = family else {
        let has = |ips: &[IpAddr]| {
            let mut names: Vec<&str> = ips.iter().map(|ip| Family::of(*ip).as_str()).collect();
            names.sort_unstable();
            names.dedup();
            names.join(" and ")
        };
        let why = format!(
            "the source has {} addresses, the destination {}",
            has(sources),
            has(destinations)
        );
        let remedy = match wanted {
            Some(wanted) => format!("{} was asked for; leave the flag out", wanted.as_str()),
            None => "no packet can go between them".to_owned(),
        };
        return Err((why, remedy));
    };
    let source = sources.iter().copied().find(|ip| Family::of(*ip) == family);
    let Some(source) = source else {
        // The family was picked because a source has it.
        return Err((
            "the source has no such address".to_owned(),
            "report this".to_owned(),
        ));
    };
    Ok(destinations
        .iter()
        .filter(|ip| Family::of(**ip) == family)
        .map(|ip| Flow {
            source,
            destination: *ip,
            port,
            probability: 1.0,
        })
        .collect())
}
