//! Queueing disciplines that may do more to a single packet than let it wait, as `tc qdisc` shows them.

use serde::{Deserialize, Serialize};

/// One of a device. Kinds that only order and pace packets are left out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Qdisc {
    /// Number; `0x10000` is `1:`.
    pub handle: u32,
    /// At the root of the device, so that all packets meet it; in a class of another one otherwise.
    pub root: bool,
    /// What it is.
    pub kind: QdiscKind,
}

/// Kind, with what of its settings counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QdiscKind {
    /// `netem`: some packets are lost or damaged (loss, loss state, loss gemodel, corrupt, limit 0).
    NetemLoss,
    /// `tbf`: packets larger than this, in bytes with the link-layer header, are dropped.
    Tbf(u64),
    /// `bfifo`, or `pfifo` with room for none: packets larger than this, in bytes with the link-layer header,
    /// are dropped; the name of the kind.
    Fifo(String, u64),
    /// `blackhole`: drops everything.
    Blackhole,
    /// A kind of which this program does not know what it does.
    Other(String),
}

impl Qdisc {
    /// As tc words it: `qdisc netem 1:`.
    pub fn name(&self) -> String {
        let kind = match &self.kind {
            QdiscKind::NetemLoss => "netem",
            QdiscKind::Tbf(_) => "tbf",
            QdiscKind::Blackhole => "blackhole",
            QdiscKind::Fifo(kind, _) | QdiscKind::Other(kind) => kind,
        };
        format!("qdisc {kind} {:x}:", self.handle >> 16)
    }
}
