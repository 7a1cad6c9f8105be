//! Packets as lines: one for each packet and device.

use std::net::IpAddr;

use netpath::explain::words;
use netpath::model::capture::{Mark, Seen};
use netpath::model::packet::{L4, Packet, Wrap};

/// Where a packet was seen, in columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Node.
    pub node: String,
    /// Namespace.
    pub netns: String,
    /// Device.
    pub dev: String,
}

/// Widths of the columns, so that all lines agree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Widths {
    node: usize,
    netns: usize,
    dev: usize,
}

impl Widths {
    /// Those that these spots take.
    pub fn of<'a>(spots: impl IntoIterator<Item = &'a Spot>) -> Self {
        spots.into_iter().fold(Self::default(), |all, spot| Self {
            node: all.node.max(spot.node.chars().count()),
            netns: all.netns.max(spot.netns.chars().count()),
            dev: all.dev.max(spot.dev.chars().count()),
        })
    }

    /// With names of devices beside them.
    pub fn with<'a>(self, devices: impl IntoIterator<Item = &'a String>) -> Self {
        let longest = devices.into_iter().map(|name| name.chars().count()).max();
        Self {
            dev: self.dev.max(longest.unwrap_or_default()),
            ..self
        }
    }
}

/// One packet at one device; of one that the kernel dropped why, and the device that it was last at.
pub fn line(spot: &Spot, widths: Widths, seen: &Seen, device: Option<&str>) -> String {
    let words = match &seen.packet {
        Some(found) => packet(found, seen.mark),
        None => format!("no IP packet, {} bytes", seen.len),
    };
    let (own, why) = match &seen.dropped {
        Some(why) => (device.unwrap_or("-"), format!("  {}", words::dropped(why))),
        None => (spot.dev.as_str(), String::new()),
    };
    let Widths { node, netns, dev } = widths;
    format!(
        "{}  {:node$}  {:netns$}  {own:dev$}  {words}{why}\n",
        clock(seen.time),
        spot.node,
        spot.netns,
    )
}

/// Time of day in UTC, to the microsecond.
pub fn clock(nanos: i64) -> String {
    let micros = nanos.div_euclid(1_000);
    let day = micros.rem_euclid(86_400_000_000);
    let (seconds, micros) = (day / 1_000_000, day % 1_000_000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{micros:06}", seconds % 60)
}

/// Headers in words, the packet inside a tunnel behind those of the tunnel.
pub fn packet(packet: &Packet, mark: Option<Mark>) -> String {
    if let Some(inner) = &packet.inner {
        let tunnel = match (inner.wrap, inner.vni) {
            (Wrap::Geneve, Some(vni)) => format!("geneve vni {vni}"),
            (Wrap::Wireguard { .. }, _) => "wireguard".to_owned(),
            (Wrap::Gre(_), _) => "gre".to_owned(),
            (_, Some(vni)) => format!("vxlan vni {vni}"),
            (_, None) => "ip in ip".to_owned(),
        };
        let inside = self::packet(&inner.packet, mark);
        return format!("{} > {} {tunnel}: {inside}", packet.src, packet.dst);
    }
    let end = |ip: IpAddr, port: Option<u16>| match (ip, port) {
        (ip, None) => ip.to_string(),
        (IpAddr::V6(ip), Some(port)) => format!("[{ip}]:{port}"),
        (ip, Some(port)) => format!("{ip}:{port}"),
    };
    let ends = format!(
        "{} > {}",
        end(packet.src, packet.sport()),
        end(packet.dst, packet.dport())
    );
    let about = match packet.l4 {
        L4::Tcp { flags, .. } => {
            let numbers = match mark {
                Some(Mark::Tcp { seq, ack }) if flags & 16 != 0 => format!(" seq {seq} ack {ack}"),
                Some(Mark::Tcp { seq, .. }) => format!(" seq {seq}"),
                _ => String::new(),
            };
            format!("tcp {}{numbers}", tcp_flags(flags))
        }
        L4::Icmp { kind, code, id } => icmp(packet.src.is_ipv6(), kind, code, id),
        L4::Arp { op: 1 } => {
            return format!("arp who-has {} tell {}", packet.dst, packet.src);
        }
        L4::Arp { op } => return format!("arp op {op} {ends}"),
        L4::Udp { .. } | L4::Sctp { .. } | L4::Other(_) => words::protocol(packet.protocol()),
    };
    format!("{ends} {about} ttl {} length {}", packet.ttl, packet.len)
}

fn tcp_flags(flags: u8) -> String {
    let names = [(2, "SYN"), (1, "FIN"), (4, "RST"), (8, "PSH"), (16, "ACK")];
    let set = names.iter().filter(|(bit, _)| flags & bit != 0);
    let set: Vec<&str> = set.map(|(_, name)| *name).collect();
    set.join("+")
}

/// Types of messages about packets, and of echoes, by name.
fn icmp(v6: bool, kind: u8, code: u8, id: Option<u16>) -> String {
    let name = match (v6, kind, code) {
        (false, 8, _) | (true, 128, _) => "echo request",
        (false, 0, _) | (true, 129, _) => "echo reply",
        (false, 3, 0) => "network unreachable",
        (false, 3, 1) => "host unreachable",
        (false, 3, 3) | (true, 1, 4) => "port unreachable",
        (false, 3, 4) => "fragmentation needed",
        (false, 3, 9 | 10 | 13) | (true, 1, 1) => "administratively prohibited",
        (false, 11, _) | (true, 3, _) => "time exceeded",
        (true, 1, 0) => "no route",
        (true, 2, _) => "packet too big",
        (true, 135, _) => "neighbour solicitation",
        (true, 136, _) => "neighbour advertisement",
        _ => return format!("icmp type {kind} code {code}"),
    };
    match id {
        Some(id) => format!("icmp {name} id {id}"),
        None => format!("icmp {name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netpath::model::packet::Inner;

    fn syn() -> Packet {
        Packet {
            ttl: 63,
            ..Packet::new(
                IpAddr::from([10, 244, 1, 7]),
                IpAddr::from([10, 244, 2, 4]),
                L4::Tcp {
                    sport: Some(40_000),
                    dport: Some(8080),
                    flags: 2,
                },
            )
        }
    }

    #[test]
    fn a_line_has_place_and_headers() {
        let spot = Spot {
            node: "worker-1".to_owned(),
            netns: "host".to_owned(),
            dev: "cni0".to_owned(),
        };
        let seen = Seen {
            point: 0,
            time: 3_661_000_001_000,
            len: 74,
            bytes: Vec::new(),
            ifindex: None,
            out: None,
            packet: Some(syn()),
            mark: Some(Mark::Tcp { seq: 5, ack: 0 }),
            dropped: None,
        };
        assert_eq!(
            line(&spot, Widths::of([&spot]), &seen, None),
            "01:01:01.000001  worker-1  host  cni0  \
             10.244.1.7:40000 > 10.244.2.4:8080 tcp SYN seq 5 ttl 63 length 60\n"
        );
    }

    #[test]
    fn what_is_in_a_tunnel_stands_behind_it() {
        let inner = Inner {
            vni: Some(1),
            wrap: Wrap::Plain,
            packet: syn(),
        };
        let outer = Packet {
            src: IpAddr::from([192, 0, 2, 11]),
            dst: IpAddr::from([192, 0, 2, 12]),
            inner: Some(Box::new(inner)),
            ..syn()
        };
        assert_eq!(
            packet(&outer, None),
            "192.0.2.11 > 192.0.2.12 vxlan vni 1: \
             10.244.1.7:40000 > 10.244.2.4:8080 tcp SYN ttl 63 length 60"
        );
    }
}
