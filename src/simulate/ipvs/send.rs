//! Packets that IPVS sends on: a route by the server alone, OUTPUT, POSTROUTING.
//!
//! Read first: `__ip_vs_get_out_rt()`, `ip_vs_nat_send_or_cont()`, `ip_vs_route_me_harder()`,
//! `nf_nat_ipv4_local_fn()`, v6.1.

use std::net::IpAddr;

use crate::model::conntrack::Tuple;
use crate::model::netfilter::{ChainKind, Hook};
use crate::model::netns::NetNs;
use crate::simulate::Cx;
use crate::simulate::fib::{FibKey, lookup};
use crate::simulate::output::{key, reroutes_by_mark, routed};
use crate::simulate::pmtu;
use crate::simulate::skb::{CtRef, Devices};
use crate::simulate::walk::{Next, Out, Walk, Ways};
use crate::trace::{Disposition, DropReason, RejectWith, Step, StepKind};

/// How IPVS sends a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// The server, by whose address alone the route is chosen.
    pub(crate) to: IpAddr,
    /// The packet keeps its destination: the server is its next hop.
    pub(crate) direct: bool,
}

/// Sends a packet on; `seen` are the devices of the hook that it came to.
pub(crate) fn send(cx: &mut Cx<'_>, mut walk: Walk, sent: Sent, seen: Devices) -> Ways {
    if walk.skb.packet.src.is_loopback() {
        let text = "a loopback source can't leave for a server on another host";
        walk.step(Step::new(StepKind::Ipvs, text));
        return walk.end(Disposition::Dropped(DropReason::NotSpecified));
    }
    let answer = lookup(cx, &walk.ns, &FibKey::to(sent.to));
    routed(cx, walk, answer, |cx, mut walk, mut out| {
        out.iif = seen.iif;
        if sent.direct {
            out.via = out.via.or(Some(sent.to));
        }
        let before = walk.skb.packet.clone();
        if before.ttl <= 1 {
            walk.step(Step::new(StepKind::Ipvs, format!("ttl is {}", before.ttl)));
            return walk.end(Disposition::Rejected(RejectWith::TtlExceeded));
        }
        if let Err(ways) = fits(cx, &mut walk, &out) {
            return ways;
        }
        walk.skb.packet.ttl -= 1;
        walk.step(Step::new(StepKind::Ipvs, "sent on").changing(&before, &walk.skb.packet));
        let mark = walk.skb.mark;
        let by_mark = walk.netns(cx).is_some_and(reroutes_by_mark);
        let devices = Devices {
            oif: Some(out.oif),
            physin: walk.physin,
            ..Devices::default()
        };
        walk.hook(cx, Hook::Output, false, devices, |cx, walk| {
            if !(is_translated(cx, &walk) || by_mark && walk.skb.mark != mark) {
                return walk.then(Next::Postrouting(out));
            }
            // NAT's part of OUTPUT takes the other destination of the answers for a translation of its own.
            again(cx, walk, out)
        })
    })
}

/// A packet of another host that does not fit is refused (`ensure_mtu_is_adequate()`); one from here is cut up.
fn fits(cx: &Cx<'_>, walk: &mut Walk, out: &Out) -> Result<(), Ways> {
    let Some(link) = walk.link(cx, out.oif) else {
        let why = format!("device {} of {} was not read", out.oif, walk.ns);
        return Err(walk.clone().unknown(why));
    };
    let packet = &walk.skb.packet;
    let mtu = out.mtu.unwrap_or(link.mtu).min(link.mtu);
    if walk.skb.local || packet.len <= mtu || !(packet.df || packet.dst.is_ipv6()) {
        return Ok(());
    }
    let text = format!(
        "{} bytes do not fit, and fragmenting is forbidden",
        packet.len
    );
    let state = pmtu::limit(link, mtu);
    walk.step(Step::new(StepKind::Mtu, text).with(state));
    Err(walk
        .clone()
        .end(Disposition::Rejected(RejectWith::TooBig(mtu))))
}

/// Whether answers come from elsewhere than the packet was sent to, by what conntrack has, and NAT looks at that.
fn is_translated(cx: &Cx<'_>, walk: &Walk) -> bool {
    let CtRef::Entry { index, reply, .. } = walk.skb.ct else {
        return false;
    };
    let Some(flow) = walk.memory.flows.get(&walk.ns, index) else {
        return false;
    };
    let differ = |one: &Tuple, other: &Tuple| one.dst != other.src;
    let (orig, answer) = (&flow.entry.orig, &flow.entry.reply);
    let differ = if reply {
        differ(answer, orig)
    } else {
        differ(orig, answer)
    };
    let mut bases = walk.netns(cx).into_iter().flat_map(NetNs::base_chains);
    differ && bases.any(|base| base.kind == ChainKind::Nat)
}

/// Routes a packet anew by its own addresses and mark (`ip_route_me_harder()`).
fn again(cx: &mut Cx<'_>, walk: Walk, was: Out) -> Ways {
    let answer = lookup(cx, &walk.ns, &key(&walk, None, None));
    routed(cx, walk, answer, |_, walk, out| {
        walk.then(Next::Postrouting(Out {
            iif: was.iif,
            ..out
        }))
    })
}

/// Goes on behind a hook at which an answer may have got another source: such a one is routed anew
/// (`ip_vs_route_me_harder()`). `seen`: IPVS had to do with it before the hook.
pub(crate) fn reroute(cx: &mut Cx<'_>, walk: Walk, out: Out, seen: bool) -> Ways {
    let ipvs = walk.netns(cx).and_then(|ns| ns.ipvs.known()?.as_ref());
    let asked = ipvs.is_some_and(|ipvs| ipvs.sysctls.snat_reroute.known() == Some(&true));
    if seen || !walk.skb.ipvs || !asked || out.local {
        return walk.then(Next::Postrouting(out));
    }
    again(cx, walk, out)
}
