//! The packets of one exchange among all that a busy network carries.

use crate::capture::{Direction, Seen};
use crate::packet::Transport;

/// Bytes that one side of an exchange sends at most.
const WINDOW: u32 = 1 << 16;

/// Frames of the exchange that a client in `place` began with a server on one of `ports`.
///
/// A connection is told by its first sequence number, which no translation on the way changes: its client's
/// packets have it, the server's acknowledge it. Of the other protocols nothing is left out: datagrams carry no
/// mark of their exchange.
pub fn of_exchange(seen: Vec<Seen>, place: &str, ports: &[u16]) -> Vec<Seen> {
    let begins = |one: &Seen| match one.frame.innermost()?.transport {
        Transport::Tcp {
            destination,
            flags,
            sequence,
            ..
        } if one.place == place
            && one.direction == Direction::Out
            && ports.contains(&destination)
            && flags & 0x17 == 0x02 =>
        {
            Some(sequence)
        }
        _ => None,
    };
    let first: Vec<u32> = seen.iter().filter_map(begins).collect();
    let belongs = |one: &Seen| match one.frame.innermost().map(|ip| &ip.transport) {
        Some(Transport::Tcp {
            sequence,
            acknowledgment,
            flags,
            ..
        }) => first.iter().any(|first| {
            let near = |number: &u32| number.wrapping_sub(*first) < WINDOW;
            near(sequence) || flags & 0x10 != 0 && near(acknowledgment)
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
                    tos: 0,
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
            tcp("node", 40000, 0x12, 1 << 30, 0),
            tcp("node", 8080, 0x10, 5, (1 << 30) + 1),
            tcp("node", 8080, 0x02, 500_000, 0),
            tcp("node", 40000, 0x12, 3 << 30, 500_001),
        ];
        let kept = of_exchange(seen.clone(), "client", &[80]);
        assert_eq!(kept.len(), 4);
        assert!(
            seen.iter()
                .take(4)
                .zip(&kept)
                .all(|(a, b)| a.frame == b.frame)
        );
        let other = of_exchange(seen, "client", &[81]);
        assert!(other.is_empty(), "no connection to that port was begun");
    }
}
