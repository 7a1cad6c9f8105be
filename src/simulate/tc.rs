//! Queueing disciplines on the way out of a device.
//!
//! Read first: `__dev_xmit_skb()`, `tbf_enqueue()`, `netem_enqueue()`, `blackhole_enqueue()`, v6.12. Packets
//! wait for each other only where there are many: what drops because a queue is full is not modelled.

use super::walk::{Walk, Ways};
use crate::model::link::Link;
use crate::model::tc::QdiscKind;
use crate::trace::{Disposition, DropReason, Evidence, Step, StepKind};

/// Bytes of an Ethernet header, which count at the queue.
const ETH_HLEN: u32 = 14;

/// The way goes on with `Ok`; it ends here with `Err`.
pub(crate) fn enqueue(mut walk: Walk, link: &Link) -> Result<Walk, Ways> {
    let ethernet = if link.mac.is_some() { ETH_HLEN } else { 0 };
    let len = u64::from(walk.skb.packet.len.saturating_add(ethernet));
    for qdisc in &link.qdiscs {
        let name = qdisc.name();
        let text = match &qdisc.kind {
            QdiscKind::NetemLoss => {
                let why = format!("{} has {name}, which loses or damages packets", link.name);
                return Err(walk.unknown(why));
            }
            QdiscKind::Other(_) => {
                let why = format!("{} has {name}, which is not modelled", link.name);
                return Err(walk.unknown(why));
            }
            QdiscKind::Tbf(most) if len <= *most => continue,
            QdiscKind::Tbf(most) => {
                format!("{name} drops what is larger than {most} bytes, its burst: this has {len}")
            }
            QdiscKind::Fifo(_, most) if len <= *most => continue,
            QdiscKind::Fifo(_, most) => {
                format!("{name} has room for {most} bytes, this has {len}")
            }
            QdiscKind::Blackhole => format!("{name} drops everything"),
        };
        if !qdisc.root {
            let why = format!(
                "whether it is sent through a class of {}: {text}",
                link.name
            );
            return Err(walk.unknown(why));
        }
        let evidence = Evidence::Link {
            dev: link.name.clone(),
            state: name,
        };
        walk.step(Step::new(StepKind::Transmit, text).with(evidence));
        return Err(walk.end(Disposition::Dropped(DropReason::QdiscDrop)));
    }
    Ok(walk)
}
