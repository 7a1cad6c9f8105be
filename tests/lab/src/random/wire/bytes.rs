//! Packets of raw sockets, byte by byte.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use etherparse::{
    IpDscp, IpEcn, IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header,
    PacketBuilder, PacketBuilderStep, TcpHeader, checksum,
};
use netpath::model::packet::{TCP, UDP};

use crate::random::world::{Kind, Probe};

/// Acknowledged by packets that acknowledge.
pub(super) const ACK_NUMBER: u32 = 0x0a0b_0c0d;

/// Bytes behind the transport header of a raw packet.
pub(super) fn payload_of(probe: &Probe) -> u32 {
    match probe.kind {
        Kind::Raw { payload, .. } => u32::from(payload),
        Kind::Exchange | Kind::Error { .. } => 0,
    }
}

/// Sequence number of a raw packet.
pub(super) fn first_number(probe: &Probe) -> u32 {
    0x5000_0000 | u32::from(probe.sport) << 8
}

/// Source and destination of a raw packet.
pub(super) fn ends(probe: &Probe) -> Result<(IpAddr, IpAddr)> {
    let src = probe.src.context("a raw packet has a source")?;
    Ok(match probe.kind {
        Kind::Error { by, .. } => (by, src),
        Kind::Exchange | Kind::Raw { .. } => (src, probe.dst),
    })
}

/// The packet from the IP header on.
pub(super) fn of(probe: &Probe) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    match probe.kind {
        Kind::Exchange => bail!("{probe} is no raw packet"),
        Kind::Error { icmp, .. } => {
            let about = of(&probe.quoted())?;
            let (src, dst) = ends(probe)?;
            let builder = ip(src, dst, 64, 0, true)?;
            if src.is_ipv4() {
                builder
                    .icmpv4_raw(icmp.0, icmp.1, [0; 4])
                    .write(&mut out, &about)
            } else {
                builder
                    .icmpv6_raw(icmp.0, icmp.1, [0; 4])
                    .write(&mut out, &about)
            }
        }
        Kind::Raw {
            flags,
            icmp,
            ttl,
            tos,
            df,
            payload,
            ..
        } => {
            let (src, dst) = ends(probe)?;
            let payload = vec![b'x'; usize::from(payload)];
            let builder = ip(src, dst, ttl, tos, df)?;
            let rest = rest_of_icmp(probe.sport);
            match (probe.protocol, src) {
                (TCP, _) => builder
                    .tcp_header(tcp(probe, flags))
                    .write(&mut out, &payload),
                (UDP, _) => builder
                    .udp(probe.sport, probe.dport)
                    .write(&mut out, &payload),
                (_, IpAddr::V4(_)) => builder
                    .icmpv4_raw(icmp.0, icmp.1, rest)
                    .write(&mut out, &payload),
                (_, IpAddr::V6(_)) => builder
                    .icmpv6_raw(icmp.0, icmp.1, rest)
                    .write(&mut out, &payload),
            }
        }
    }
    .with_context(|| format!("make the packet of {probe}"))?;
    Ok(out)
}

/// An echo request from the ICMP header on.
pub(super) fn echo(probe: &Probe, kind: u8) -> Vec<u8> {
    let [high, low] = probe.sport.to_be_bytes();
    let mut echo = vec![kind, 0, 0, 0, high, low, 0, 1];
    // Of IPv6, the kernel writes the checksum.
    if probe.dst.is_ipv4() {
        let sum = checksum::Sum16BitWords::new().add_slice(&echo);
        echo[2..4].copy_from_slice(&sum.ones_complement().to_ne_bytes());
    }
    echo
}

fn ip(
    src: IpAddr,
    dst: IpAddr,
    ttl: u8,
    tos: u8,
    df: bool,
) -> Result<PacketBuilderStep<IpHeaders>> {
    let head = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut head = Ipv4Header::new(0, ttl, IpNumber(0), src.octets(), dst.octets())
                .context("make an IPv4 header")?;
            head.dscp = IpDscp::try_new(tos >> 2).context("make an IPv4 header")?;
            head.ecn = IpEcn::try_new(tos & 3).context("make an IPv4 header")?;
            head.dont_fragment = df;
            IpHeaders::Ipv4(head, Ipv4Extensions::default())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let head = Ipv6Header {
                traffic_class: tos,
                hop_limit: ttl,
                source: src.octets(),
                destination: dst.octets(),
                ..Ipv6Header::default()
            };
            IpHeaders::Ipv6(head, Ipv6Extensions::default())
        }
        _ => bail!("{src} and {dst} are addresses of two families"),
    };
    Ok(PacketBuilder::ip(head))
}

fn tcp(probe: &Probe, flags: u8) -> TcpHeader {
    let mut head = TcpHeader::new(probe.sport, probe.dport, first_number(probe), u16::MAX);
    head.fin = flags & 1 != 0;
    head.syn = flags & 2 != 0;
    head.rst = flags & 4 != 0;
    head.psh = flags & 8 != 0;
    head.ack = flags & 16 != 0;
    head.urg = flags & 32 != 0;
    if head.ack {
        head.acknowledgment_number = ACK_NUMBER;
    }
    head
}

/// Identifier, and number 1.
fn rest_of_icmp(id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [high, low, 0, 1]
}
