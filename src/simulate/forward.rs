//! Packets on their way through: TTL, size, FORWARD.
//!
//! Read first: `ip_forward()`, net/ipv4/ip_forward.c, and `ip6_forward()`, net/ipv6/ip6_output.c, v6.12.

use super::skb::Devices;
use super::walk::{Out, Walk, Ways};
use super::{Cx, ipvs, pmtu, socket, xfrm};
use crate::model::IfIndex;
use crate::model::netfilter::Hook;
use crate::model::xfrm::XfrmDir;
use crate::trace::{Disposition, DropReason, Evidence, RejectWith, Step, StepKind};

/// TTL and size are checked before FORWARD sees the packet.
pub(crate) fn forward(cx: &mut Cx<'_>, walk: Walk, iif: IfIndex, out: Out) -> Ways {
    // The address is not (or no longer) this host's, but its socket has it (`ip_forward()`, `ip6_forward()`: skb->sk).
    if socket::is_found_early(cx, &walk, iif) {
        let mut walk = walk;
        let why = "net.ipv4.ip_early_demux, tcp_early_demux and udp_early_demux are taken to be on";
        let text = "a socket of this host waits for it, but the route does not lead to this host";
        let assumed = Evidence::Assumed {
            why: why.to_owned(),
        };
        walk.step(Step::new(StepKind::Forward, text).with(assumed));
        return walk.end(Disposition::Dropped(DropReason::NotSpecified));
    }
    let passed = xfrm::check(cx, walk, XfrmDir::Fwd, Some(iif))
        .and_then(|walk| xfrm::check(cx, walk, XfrmDir::Out, Some(out.oif)));
    let mut walk = match passed {
        Ok(walk) => walk,
        Err(ways) => return ways,
    };
    if walk.skb.proxy.is_some() {
        let text = "a transparent proxy's socket took it, but the route does not lead to this host";
        walk.step(Step::new(StepKind::Forward, text));
        return walk.end(Disposition::Dropped(DropReason::NotSpecified));
    }
    let before = walk.skb.packet.clone();
    if before.ttl <= 1 {
        walk.step(Step::new(
            StepKind::Forward,
            format!("ttl is {}", before.ttl),
        ));
        return walk.end(Disposition::Rejected(RejectWith::TtlExceeded));
    }
    let Some(link) = walk.link(cx, out.oif) else {
        let why = format!("device {} of {} was not read", out.oif, walk.ns);
        return walk.unknown(why);
    };
    // IPv4 takes the route's word for it even where that is more than the device's (`ip_dst_mtu_maybe_forward()`); IPv6
    // asks for that behind POSTROUTING.
    let mtu = match out.mtu {
        Some(mtu) if before.dst.is_ipv4() => mtu,
        _ => link.mtu,
    };
    if before.len > mtu {
        let evidence = pmtu::limit(link, mtu);
        let whole = before.df || before.dst.is_ipv6();
        let text = if whole {
            format!(
                "{} bytes do not fit, and fragmenting is forbidden",
                before.len
            )
        } else {
            format!("fragmented to {mtu} bytes")
        };
        walk.step(Step::new(StepKind::Mtu, text).with(evidence));
        if whole {
            return walk.end(Disposition::Rejected(RejectWith::TooBig(mtu)));
        }
        walk.skb.packet.len = mtu;
    }
    walk.skb.packet.ttl -= 1;
    let name = link.name.clone();
    let step = Step::new(StepKind::Forward, format!("{} → {name}", walk.dev(cx, iif)))
        .changing(&before, &walk.skb.packet);
    walk.step(step);
    let devices = Devices {
        iif: Some(iif),
        oif: Some(out.oif),
        physin: walk.physin,
        ..Devices::default()
    };
    let seen = walk.skb.ipvs;
    walk.hook(cx, Hook::Forward, false, devices, |cx, walk| {
        ipvs::reroute(cx, walk, out, seen)
    })
}
