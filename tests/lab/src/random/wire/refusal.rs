//! How a sender was told no, as packet sockets saw it.

use netpath::model::packet::TCP;

use super::bytes::payload_of;
use super::{Wire, transport};
use crate::capture::Seen;
use crate::packet::{IpPacket, Transport};
use crate::random::seen::Refusal;
use crate::random::wireguard::PORTS;
use crate::random::world::{Kind, Probe};

/// Ports from here on are those of clients, chosen by probes or by translation.
const CHOSEN: u16 = 32768;

/// FIN, SYN, RST and ACK.
const TOLD: u8 = 0x17;

/// Ports of VXLAN, Linux's own and IANA's, of Geneve, its own and the other one in tests (whose device may tell of its
/// IPv6 addresses at any time).
const TUNNELS: [u16; 4] = [8472, 4789, 6081, 6082];

impl Wire<'_> {
    /// The first refusal of a packet with this sequence and acknowledgment number; of any, where OUTPUT refused it
    /// and it was seen nowhere.
    pub(super) fn refusal(
        &self,
        probe: &Probe,
        seen: &[Seen],
        first: Option<u32>,
        acknowledged: Option<u32>,
    ) -> Option<Refusal> {
        seen.iter().find_map(|one| match transport(one)? {
            Transport::Icmp {
                kind,
                code,
                about: Some(about),
            } => (!self.is_about_another(probe, about, first) && !is_of_tunnel(about)).then_some(
                Refusal::Icmp {
                    v6: one.frame.innermost()?.source.is_ipv6(),
                    kind: *kind,
                    code: *code,
                },
            ),
            Transport::Tcp {
                flags,
                sequence,
                acknowledgment,
                ..
            // A late one is of an earlier connection.
            } if flags & 4 != 0 && probe.protocol == TCP => {
                let near = |first: u32| acknowledgment.wrapping_sub(first) < 3 + payload_of(probe);
                let told = flags & 0x10 != 0 && first.is_none_or(near);
                (told || Some(*sequence) == acknowledged).then_some(Refusal::Reset)
            }
            _ => None,
        })
    }

    /// Whether an error is about another packet than the probe, where such come: those about earlier probes may be
    /// late, and some are about the answer.
    fn is_about_another(&self, probe: &Probe, about: &IpPacket, first: Option<u32>) -> bool {
        let Some(earlier) = &self.earlier else {
            return false;
        };
        // Neighbour discovery and the like, which rules or routes refuse at any time.
        if about.source.is_ipv6() != probe.dst.is_ipv6() {
            return true;
        }
        // Ports may be translated; answers, and the resets of a sender that knows nothing of a connection, have other
        // numbers.
        if let (
            Transport::Tcp {
                flags, sequence, ..
            },
            TCP,
        ) = (&about.transport, probe.protocol)
        {
            let near = |first: u32| sequence.wrapping_sub(first) < 3 + payload_of(probe);
            match (probe.kind, first) {
                (Kind::Raw { flags: sent, .. }, _) => {
                    let same = first.is_none_or(|first| *sequence == first);
                    return (flags ^ sent) & TOLD != 0 || !same;
                }
                (_, Some(first)) => return !near(first),
                _ => {}
            }
        }
        if let Some((source, destination)) = about.ports() {
            let of_another = source != probe.sport && earlier.contains(&source);
            return of_another || source < CHOSEN && destination >= CHOSEN;
        }
        let sent = match probe.kind {
            Kind::Raw { icmp, .. } => icmp.0,
            _ if probe.dst.is_ipv6() => 128,
            _ => 8,
        };
        matches!(&about.transport, Transport::Icmp { kind, .. } if *kind != sent)
    }
}

/// Whether a packet is one of a tunnel: errors about these tell the tunnel's device, and not who sent into it.
fn is_of_tunnel(packet: &IpPacket) -> bool {
    match packet.transport {
        Transport::Udp { .. } => packet.ports().is_some_and(|(from, to)| {
            TUNNELS.contains(&to) || [from, to].iter().any(|port| PORTS.contains(port))
        }),
        Transport::Tunnel(_) => true,
        _ => false,
    }
}
