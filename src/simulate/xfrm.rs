//! XFRM (IPsec) policies: whether a packet may pass as it is.
//!
//! Read first: `xfrm_lookup_with_ifid()`, `__xfrm_policy_check()`, `xfrm_policy_match()`
//! (net/xfrm/xfrm_policy.c), `xfrm_selector_match()`, v6.12. Not modelled: transformations, policies of
//! single sockets, XFRM interfaces, `disable_policy` of IPv6 devices, and the second look at a packet that
//! POSTROUTING has translated (`nf_xfrm_me_harder()`).

use super::Cx;
use super::walk::{Walk, Ways};
use crate::model::IfIndex;
use crate::model::Section;
use crate::model::link::InetConf;
use crate::model::packet::{ICMP, ICMPV6};
use crate::model::xfrm::{Xfrm, XfrmDir, XfrmPolicy};
use crate::trace::{Disposition, DropReason, Evidence, Step, StepKind};

enum Fit {
    Yes,
    No,
    /// What would have to be known.
    Unknown(&'static str),
}

/// The way goes on with `Ok`; it ends here with `Err`. `dev` is the device that the packet came by, or
/// that it leaves by where the direction is out.
pub(crate) fn check(
    cx: &Cx<'_>,
    walk: Walk,
    dir: XfrmDir,
    dev: Option<IfIndex>,
) -> Result<Walk, Ways> {
    let Some(netns) = walk.netns(cx) else {
        return Ok(walk);
    };
    let xfrm = match &netns.xfrm {
        Section::Known(xfrm) => xfrm,
        // Helpers always send it: a file of an older version lacks it.
        Section::NotAsked => return Ok(walk),
        Section::Missing(why) => {
            let why = format!("xfrm policies of {}: {why}", walk.ns);
            return Err(walk.unknown(why));
        }
    };
    if xfrm.policies.is_empty() && !blocks_by_default(xfrm, dir) || exempt(cx, &walk, dir, dev) {
        return Ok(walk);
    }
    decide(walk, xfrm, dir, dev)
}

fn decide(mut walk: Walk, xfrm: &Xfrm, dir: XfrmDir, dev: Option<IfIndex>) -> Result<Walk, Ways> {
    // The newest stand first; of equal priority the oldest decides.
    let mut policies: Vec<&XfrmPolicy> = xfrm.policies.iter().rev().collect();
    policies.sort_by_key(|policy| (!policy.sub, policy.priority));
    for policy in policies.into_iter().filter(|policy| policy.dir == dir) {
        match fits(policy, &walk, dev) {
            Fit::No => continue,
            Fit::Unknown(what) => {
                let why = format!("whether this xfrm policy fits ({what}): {policy}");
                return Err(walk.unknown(why));
            }
            Fit::Yes => {}
        }
        let evidence = Evidence::XfrmPolicy {
            policy: policy.clone(),
        };
        if policy.block {
            unless_exempt(&walk)?;
            let step = Step::new(StepKind::Xfrm, "blocked by an xfrm policy");
            walk.step(step.with(evidence));
            return Err(walk.end(Disposition::Dropped(DropReason::XfrmPolicy)));
        }
        if policy.templates > 0 {
            let why = format!(
                "an xfrm policy wants it transformed (IPsec), which is not followed: {policy}"
            );
            return Err(walk.unknown(why));
        }
        if policy.sub {
            let why = format!("an xfrm policy of type sub fits, which is not followed: {policy}");
            return Err(walk.unknown(why));
        }
        let step = Step::new(StepKind::Xfrm, "allowed by an xfrm policy");
        walk.step(step.with(evidence));
        return Ok(walk);
    }
    if blocks_by_default(xfrm, dir) {
        unless_exempt(&walk)?;
        let what = format!(
            "an xfrm policy for it, and the default for {} is block",
            dir.name()
        );
        let step = Step::new(StepKind::Xfrm, "blocked by the default xfrm policy");
        walk.step(step.with(Evidence::Absent { what }));
        return Err(walk.end(Disposition::Dropped(DropReason::XfrmPolicy)));
    }
    Ok(walk)
}

/// Where a block would decide: devices may be exempt from IPv6 policies by `disable_policy`, which is not read.
fn unless_exempt(walk: &Walk) -> Result<(), Ways> {
    if walk.skb.packet.dst.is_ipv4() {
        return Ok(());
    }
    let why = format!(
        "an xfrm policy blocks it in {}, unless net.ipv6.conf.*.disable_policy exempts a device, which is not read",
        walk.ns
    );
    Err(walk.clone().unknown(why))
}

fn blocks_by_default(xfrm: &Xfrm, dir: XfrmDir) -> bool {
    xfrm.default.is_some_and(|default| match dir {
        XfrmDir::In => default.block_in,
        XfrmDir::Fwd => default.block_fwd,
        XfrmDir::Out => default.block_out,
        XfrmDir::Socket(_) => false,
    })
}

/// DST_NOXFRM and DST_NOPOLICY: devices (lo by default) can be exempt. Source: `__mkroute_output()`,
/// `ip_route_input_slow()`, net/ipv4/route.c.
fn exempt(cx: &Cx<'_>, walk: &Walk, dir: XfrmDir, dev: Option<IfIndex>) -> bool {
    if walk.skb.packet.dst.is_ipv6() {
        return false;
    }
    let own = dev
        .and_then(|dev| walk.link(cx, dev)?.inet)
        .unwrap_or_default();
    let all = super::input::inet_all(cx, &walk.ns).unwrap_or_default();
    let set = |conf: InetConf| match dir {
        XfrmDir::Out => conf.noxfrm,
        _ => conf.nopolicy,
    };
    set(own) || set(all)
}

fn fits(policy: &XfrmPolicy, walk: &Walk, dev: Option<IfIndex>) -> Fit {
    let (selector, packet) = (&policy.selector, &walk.skb.packet);
    let certain = selector.src.contains(packet.src)
        && selector.dst.contains(packet.dst)
        && (selector.protocol == 0 || selector.protocol == packet.protocol())
        // A packet that came by no XFRM interface has id 0.
        && policy.if_id == 0;
    if !certain {
        return Fit::No;
    }
    let mut unknown = None;
    match walk.skb.mark {
        Some(mark) if mark & policy.mark.1 != policy.mark.0 => return Fit::No,
        None if policy.mark.1 != 0 => unknown = Some("by the packet's mark"),
        _ => {}
    }
    let echo = matches!(packet.protocol(), ICMP | ICMPV6);
    for ((value, mask), port) in [
        (selector.sport, packet.sport()),
        (selector.dport, packet.dport()),
    ] {
        match port {
            _ if mask == 0 => {}
            _ if echo => unknown = Some("by the ICMP type and code"),
            Some(port) if (port ^ value) & mask != 0 => return Fit::No,
            Some(_) => {}
            None => unknown = Some("by a port that is not fixed"),
        }
    }
    match (selector.dev, policy.dir) {
        (None, _) => {}
        (Some(wanted), XfrmDir::Out) if Some(wanted) == dev => {}
        (Some(_), XfrmDir::Out) => return Fit::No,
        (Some(_), _) => unknown = Some("by its device"),
    }
    unknown.map_or(Fit::Yes, Fit::Unknown)
}
