//! One filter for packets as they are and for packets inside tunnels.
//!
//! pcap's language can't look for an expression inside a tunnel. So the kernel passes packets that fit, and
//! packets of tunnels (as few as can be); of these, what is inside is then tried here, by the same filter.

use std::net::IpAddr;

use pcap::{BpfProgram, Capture, Linktype};

use super::decode::{COOKED_HEADER, DLT_RAW, ETHERNET, View};
use super::tunnel;
use crate::model::capture::Point;

/// The filter that the kernel runs.
pub fn of_kernel(point: &Point) -> String {
    if point.filter.trim().is_empty() {
        return String::new();
    }
    let mut parts = vec![format!("({})", point.filter)];
    let in_vxlan = |port: &u16| in_udp(*port, &point.hosts, None);
    parts.extend(point.vxlan.iter().map(in_vxlan));
    // Where there are options, what follows them is not where the filter looks.
    let in_geneve = |port: &u16| in_udp(*port, &point.hosts, Some("udp[8] & 0x3f != 0"));
    parts.extend(point.geneve.iter().map(in_geneve));
    let ipip: &[u8] = if point.ipip { &[4, 41] } else { &[] };
    let gre: &[u8] = if point.gre { &[47] } else { &[] };
    for protocol in ipip.iter().chain(gre) {
        parts.push(format!("ip proto {protocol}"));
        // Behind the destination options in which the kernel limits tunnels inside each other.
        parts.push(format!(
            "ip6 proto {protocol} or (ip6[6] = 60 and ip6[40] = {protocol})"
        ));
    }
    parts.join(" or ")
}

/// VXLAN or Geneve to a port, of these hosts where any are named. Offsets into UDP: 8 bytes of its header, 8 of the
/// tunnel's, 14 of Ethernet's, then IPv4 with its addresses at 12 and 16. They hold for outer IPv4 without more; other
/// packets of the tunnel are let through.
fn in_udp(port: u16, hosts: &[IpAddr], odd: Option<&str>) -> String {
    let any = format!("udp dst port {port}");
    if hosts.is_empty() {
        return any;
    }
    let of_hosts = hosts.iter().filter_map(|host| match host {
        IpAddr::V4(v4) => {
            let number = u32::from(*v4);
            Some(format!(
                "udp[42:4] = {number:#x} or udp[46:4] = {number:#x}"
            ))
        }
        IpAddr::V6(_) => None,
    });
    let mut fits: Vec<String> = vec!["udp[28:2] != 0x800".to_owned()];
    fits.extend(odd.map(str::to_owned));
    fits.extend(of_hosts);
    format!("({any} and (ip6 or {}))", fits.join(" or "))
}

/// Tries frames by a point's filter, and what is inside them.
pub struct Within {
    filters: Option<Compiled>,
}

struct Compiled {
    link: u32,
    outer: BpfProgram,
    ethernet: BpfProgram,
    raw: BpfProgram,
}

impl Within {
    /// Compiles the filter for a device's link type and for those of packets in tunnels.
    pub fn new(point: &Point, link: u32) -> Result<Self, pcap::Error> {
        let tunnels = tunnel::any(point);
        if point.filter.trim().is_empty() || !tunnels {
            // Whatever the kernel passed is wanted.
            return Ok(Self { filters: None });
        }
        let compile = |link: u32| {
            // Handles go by the numbers of this system, which differ from those of files for this one.
            let link = if link == super::decode::RAW {
                DLT_RAW
            } else {
                link
            };
            let link = Linktype(i32::try_from(link).unwrap_or_default());
            Capture::dead(link)?.compile(&point.filter, true)
        };
        Ok(Self {
            filters: Some(Compiled {
                link,
                outer: compile(link)?,
                ethernet: compile(ETHERNET)?,
                raw: compile(DLT_RAW)?,
            }),
        })
    }

    /// Whether a frame is wanted.
    pub fn fits(&self, frame: &[u8], view: Option<&View>) -> bool {
        let Some(filters) = &self.filters else {
            return true;
        };
        // A cooked handle's programs read the kernel's own offsets, which its frames do not have.
        if filters.link != super::decode::COOKED && filters.outer.filter(frame) {
            return true;
        }
        let Some((start, link)) = view.and_then(|view| view.inner) else {
            return filters.link == super::decode::COOKED;
        };
        let inner = frame.get(start..).unwrap_or_default();
        match link {
            ETHERNET => filters.ethernet.filter(inner),
            _ => filters.raw.filter(inner),
        }
    }
}

/// Tries packets that the kernel dropped, which no filter of the kernel has seen, by a point's filter.
pub struct OfDropped {
    outer: Option<BpfProgram>,
    within: Option<Within>,
}

impl OfDropped {
    /// Compiles the filter.
    pub fn new(point: &Point) -> Result<Self, pcap::Error> {
        if point.filter.trim().is_empty() {
            return Ok(Self {
                outer: None,
                within: None,
            });
        }
        let ethernet = Linktype(i32::try_from(ETHERNET).unwrap_or_default());
        let tunnels = tunnel::any(point);
        let within = tunnels.then(|| Within::new(point, super::decode::COOKED));
        Ok(Self {
            outer: Some(Capture::dead(ethernet)?.compile(&point.filter, true)?),
            within: within.transpose()?,
        })
    }

    /// Whether a cooked frame is wanted.
    pub fn fits(&self, cooked: &[u8], view: Option<&View>) -> bool {
        let Some(outer) = &self.outer else {
            return true;
        };
        // As it would be on a wire, with addresses of nobody: filters of cooked frames read what only the kernel has.
        let mut frame = vec![0; 12];
        frame.extend(cooked.get(..2).unwrap_or_default());
        frame.extend(cooked.get(COOKED_HEADER..).unwrap_or_default());
        outer.filter(&frame)
            || view.is_some_and(|view| view.inner.is_some())
                && (self.within.as_ref()).is_some_and(|within| within.fits(cooked, view))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NetNsId;

    fn point(filter: &str) -> Point {
        Point {
            netns: NetNsId { dev: 4, ino: 1 },
            dev: "eth0".to_owned(),
            filter: filter.to_owned(),
            vxlan: vec![8472],
            geneve: vec![6081],
            ipip: true,
            gre: true,
            hosts: vec![IpAddr::from([10, 0, 0, 1]), IpAddr::from([0xfd; 16])],
            dropped: false,
        }
    }

    #[test]
    fn the_kernels_filter_is_one_that_libpcap_takes() {
        let filter = of_kernel(&point("tcp port 80 or udp port 53"));
        let dead = Capture::dead(Linktype::ETHERNET).expect("a handle");
        dead.compile(&filter, true).expect(&filter);
        assert!(
            filter.starts_with("(tcp port 80 or udp port 53) or ("),
            "{filter}"
        );
        assert!(filter.contains("udp[42:4] = 0xa000001"), "{filter}");
        assert_eq!(of_kernel(&point(" ")), "");
    }

    #[test]
    fn a_filter_that_is_none_is_refused() {
        assert!(Within::new(&point("no such words"), ETHERNET).is_err());
    }
}
