//! The order in which frames were seen.

use crate::capture::{Direction, Seen};

/// Sorts by time. What comes out of a tunnel keeps the time at which the tunnel's packet came in; a VRF shows that packet once
/// more in between, at a time of its own (`dev_queue_xmit_nit()`), which is before what comes out.
pub(super) fn sort(seen: &mut [Seen]) {
    seen.sort_by_key(|one| one.time);
    let mut at = 0;
    while at < seen.len() {
        match shown_again(seen, at) {
            Some(again) => {
                if let Some(between) = seen.get_mut(at..=again) {
                    between.rotate_left(1);
                }
            }
            None => at += 1,
        }
    }
}

/// Where, behind what came out of a tunnel at `at`, a VRF shows the packet that it came in.
fn shown_again(seen: &[Seen], at: usize) -> Option<usize> {
    let (before, rest) = seen.split_at_checked(at)?;
    let (one, behind) = rest.split_first()?;
    let outer = before.iter().rev().find(|other| {
        other.direction == Direction::In
            && one.direction == Direction::In
            && (other.time, &other.place) == (one.time, &one.place)
            && other.frame.ip != one.frame.ip
    })?;
    let again = behind.iter().position(|later| {
        later.direction == Direction::Out
            && later.ifname.starts_with("vrf")
            && (&later.place, &later.frame.ip) == (&outer.place, &outer.frame.ip)
    })?;
    Some(at + 1 + again)
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::packet::{Frame, IpPacket, Transport};

    fn seen(time: i128, ifname: &str, direction: Direction, ttl: u8) -> Seen {
        let addr: IpAddr = [10, 0, 0, 1].into();
        Seen {
            time,
            place: "a".to_owned(),
            ifname: ifname.to_owned(),
            direction,
            for_other_host: false,
            frame: Frame {
                source: [0; 6],
                destination: [0; 6],
                ether_type: 0x0800,
                ip: Some(IpPacket {
                    source: addr,
                    destination: addr,
                    ttl,
                    tos: 0,
                    protocol: 4,
                    transport: Transport::Other,
                }),
                arp: None,
                length: 20,
            },
        }
    }

    #[test]
    fn what_comes_out_of_a_tunnel_is_behind_the_vrf_that_shows_the_tunnels_packet() {
        let (into, out) = (Direction::In, Direction::Out);
        let mut all = [
            seen(5, "vrf7", out, 9),
            seen(1, "e0", into, 5),
            seen(1, "tg6", into, 9),
            seen(3, "vrf7", out, 5),
        ];
        sort(&mut all);
        let names: Vec<_> = all
            .iter()
            .map(|one| (one.ifname.as_str(), one.time))
            .collect();
        assert_eq!(names, [("e0", 1), ("vrf7", 3), ("tg6", 1), ("vrf7", 5)]);
        // The same packet at a VLAN's device did not come out of anything.
        let mut all = [
            seen(1, "e0", into, 5),
            seen(1, "e0.7", into, 5),
            seen(3, "vrf7", out, 5),
        ];
        sort(&mut all);
        assert_eq!(all[1].ifname, "e0.7");
    }
}
