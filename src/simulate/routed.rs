//! One packet's route at one place, and nothing before or behind it: what the kernel answers to RTM_GETROUTE.
//!
//! The walk's own stages decide (`output.rs`, `input.rs`), so that what is held against the kernel is what
//! traces are made of.

use super::walk::{Next, Out, Ways};
use super::{Prepared, Sent, exchange, input, output};
use crate::model::IfIndex;
use crate::model::route::Route;
use crate::trace::{Disposition, Evidence, StepKind};
use std::net::IpAddr;

use super::Limits;

/// One way that a packet may take behind its route lookup.
///
/// Not of the library's interface: for the test that holds lookups against the kernel (`tests/lab/tests/fib`).
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq)]
pub struct Routed {
    /// Share of packets that take it.
    pub share: f64,
    /// Source address that it has.
    pub src: IpAddr,
    /// The route that was found last, where one was.
    pub route: Option<Route>,
    /// Where it goes, or how it ended.
    pub next: Onward,
}

/// What a route lookup leads to.
#[doc(hidden)]
#[derive(Clone, Debug, PartialEq)]
pub enum Onward {
    /// To this host.
    Local,
    /// Out by a device, to a gateway where there is one.
    Out {
        /// Device.
        oif: IfIndex,
        /// Gateway; `None`: the destination is on the link.
        via: Option<IpAddr>,
    },
    /// Nowhere.
    End(Disposition),
}

impl Prepared<'_> {
    /// Looks up the route of a packet: one that comes in by the device `iif`, behind PREROUTING, or else one that
    /// a socket of the namespace sends, bound to the device `oif` or not. Ways come in the kernel's order.
    ///
    /// A namespace with rules at OUTPUT gives what these make of it.
    #[doc(hidden)]
    pub fn route(
        &mut self,
        sent: &Sent,
        iif: Option<IfIndex>,
        oif: Option<IfIndex>,
    ) -> Vec<Routed> {
        let mut cx = self.cx(&Limits::default());
        let mut walk =
            exchange::first(sent.from.clone(), sent.packet.clone(), (sent.uid, sent.gid));
        walk.skb.mark = Some(sent.mark);
        let ways = match iif {
            Some(dev) => input::route_input(&mut cx, walk, dev),
            None => output::local_out(&mut cx, walk, oif),
        };
        self.index = cx.index;
        of(ways)
    }
}

fn of(ways: Ways) -> Vec<Routed> {
    let routed = ways.into_iter().map(|(walk, next)| {
        let out = |out: Out| {
            if out.local {
                return Onward::Local;
            }
            let Out { oif, via, .. } = out;
            Onward::Out { oif, via }
        };
        let next = match next {
            Next::Postrouting(way) | Next::Forward(_, way) => out(way),
            Next::LocalIn(_) => Onward::Local,
            Next::End(end) => Onward::End(end),
            other => Onward::End(Disposition::Inconclusive(vec![format!(
                "the route leads to {other:?}"
            )])),
        };
        let steps = walk.hops.iter().flat_map(|hop| &hop.steps);
        let routes = steps.filter(|step| step.kind == StepKind::Route);
        let evidence = routes.flat_map(|step| &step.evidence);
        let mut routes = evidence.filter_map(|evidence| match evidence {
            Evidence::Route { route, .. } => Some(route.clone()),
            _ => None,
        });
        Routed {
            share: walk.share,
            src: walk.skb.packet.src,
            route: routes.next_back(),
            next,
        }
    });
    routed.collect()
}
