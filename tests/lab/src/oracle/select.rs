//! The packets of one exchange among all that a busy network carries.

use std::net::SocketAddr;

use crate::capture::{Direction, Seen};
use crate::packet::Transport;

/// Bytes that one side of an exchange sends at most.
const WINDOW: u32 = 1 << 16;

/// Frames of the exchange that a client in `place` began with `to`.
///
/// A connection is told by its first sequence number, which no translation on the way changes: its client's
/// packets have it, the server's acknowledge it. Of the other protocols nothing is left out: datagrams carry no
/// mark of their exchange.
pub fn of_exchange(seen: Vec<Seen>, place: &str, to: SocketAddr) -> Vec<Seen> {
    let begins = |one: &Seen| match one.frame.innermost() {
        Some(ip)
            if one.place == place
                && one.direction == Direction::Out
                && ip.destination == to.ip() =>
        {
            match ip.transport {
                Transport::Tcp {
                    destination,
                    flags,
                    sequence,
                    ..
                } if destination == to.port() && flags & 0x17 == 0x02 => Some(sequence),
                _ => None,
            }
        }
        _ => None,
    };
    let first: Vec<u32> = seen.iter().filter_map(begins).collect();
    let belongs = |one: &Seen| match one.frame.innermost().map(|ip| &ip.transport) {
        Some(Transport::Tcp {
            sequence,
            acknowledgment,
            ..
        }) => first.iter().any(|first| {
            [sequence, acknowledgment]
                .iter()
                .any(|number| number.wrapping_sub(*first) < WINDOW)
        }),
        _ => true,
    };
    seen.into_iter().filter(belongs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{Frame, IpPacket};

    fn tcp(place: &str, to: u16, flags: u8, sequence: u32, acknowledgment: u32) -> Seen {
        let transport = Transport::Tcp {
            source: 40000,
            destination: to,
            flags,
            sequence,
            acknowledgment,
        };
        Seen {
            time: 0,
            place: place.to_owned(),
            ifname: "eth0".to_owned(),
            direction: Direction::Out,
            for_other_host: false,
            frame: Frame {
                source: [0; 6],
                destination: [0; 6],
                ether_type: 0x0800,
                ip: Some(IpPacket {
                    source: "10.0.0.1".parse().unwrap(),
                    destination: "10.0.0.2".parse().unwrap(),
                    ttl: 64,
                    protocol: 6,
                    transport,
                }),
                arp: None,
                length: 54,
            },
        }
    }

    #[test]
    fn a_connection_is_told_from_its_neighbours_through_translation() {
        let seen = vec![
            tcp("client", 80, 0x02, u32::MAX, 0),
            tcp("node", 8080, 0x02, u32::MAX, 0),
            tcp("node", 40000, 0x12, 77, 0),
            tcp("node", 8080, 0x10, 5, 78),
            tcp("node", 8080, 0x02, 500_000, 0),
            tcp("node", 40000, 0x12, 9, 500_001),
        ];
        let kept = of_exchange(seen.clone(), "client", "10.0.0.2:80".parse().unwrap());
        assert_eq!(kept.len(), 4);
        assert!(
            seen.iter()
                .take(4)
                .zip(&kept)
                .all(|(a, b)| a.frame == b.frame)
        );
        let other = of_exchange(seen, "client", "10.0.0.2:81".parse().unwrap());
        assert!(other.is_empty(), "no connection to that port was begun");
    }
}
