//! What one node's kernel makes of one packet, from where the packet comes in to where it leaves.

use std::net::IpAddr;

use super::{Disposition, Step};
use crate::model::NsKey;
use crate::model::packet::Packet;

/// A new packet of a kind of sender.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Namespace that it comes to.
    pub ns: NsKey,
    /// Its source, which comes in by the device that answers leave by; `None`: a socket here sends it.
    pub from: Option<IpAddr>,
    /// IPPROTO_*: 6, 17 or 132.
    pub protocol: u8,
    /// Destination address.
    pub dst: IpAddr,
    /// Destination port.
    pub dport: u16,
}

/// One way of it. Shares of all ways add up to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Passage {
    /// Share of packets that take it, 0 to 1.
    pub share: f64,
    /// The packet as it came, with the source that the kernel chose.
    pub asked: Packet,
    /// The packet as it left or ended.
    pub packet: Packet,
    /// How it ended.
    pub end: PassageEnd,
    /// Decisions in order. Rules that end a NAT chain without a translation, or return from a chain of one before
    /// it, are among them.
    pub steps: Vec<Step>,
}

/// How a node is passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PassageEnd {
    /// It leaves by this device, behind POSTROUTING.
    Leaves(String),
    /// It is for the node itself, and INPUT accepts it.
    Here,
    /// It goes no further.
    Ended(Disposition),
}
