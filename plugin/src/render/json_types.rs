//! The shape of `trace -o json`, schema `netpath.trace/v1`: docs/output.md describes it.
//!
//! Fields may be added; none is removed and none changes its meaning without a new schema name.

use netpath::explain::{End, Place};
use netpath::trace::{Evidence, FieldChange};
use serde::Serialize;

use crate::run::fleet::Stats;

/// Name of the schema.
pub const SCHEMA: &str = "netpath.trace/v1";

/// The whole answer.
#[derive(Serialize)]
pub struct TraceJson<'a> {
    /// [`SCHEMA`].
    pub schema: &'static str,
    /// The question.
    pub flow: FlowJson<'a>,
    /// `delivered`, `dropped`, `rejected`, `loop`, `inconclusive` or `mixed`.
    pub verdict: &'static str,
    /// With `--probe`: the verdict of the prediction. Where probes show otherwise, `verdict` is what they show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub predicted: Option<&'static str>,
    /// Ways.
    pub branches: Vec<BranchJson<'a>>,
    /// What is wrong.
    pub findings: Vec<FindingJson<'a>>,
    /// What could not be read or decoded, and where.
    pub unknown: &'a [String],
    /// What was taken to be so without a kernel object that says it.
    pub assumed: &'a [String],
    /// How the ends were chosen.
    pub notes: &'a [String],
    /// With `--existing`: flows that stand already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub existing: Option<Vec<ExistingJson<'a>>>,
    /// With `--probe`: what was seen of real packets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub probes: Option<Vec<ProbeJson>>,
    /// With `--mtu`: the largest packets, each way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Vec<MtuJson>>,
    /// What the answer cost.
    pub stats: Stats,
}

/// One real packet or exchange, beside the prediction.
#[derive(Serialize)]
pub struct ProbeJson {
    /// `confirmed`, `seen` (where it could not be predicted) or `differs`.
    pub result: &'static str,
    /// What differs.
    pub difference: Option<String>,
    /// What its own socket saw.
    pub answer: String,
    /// It was answered.
    pub answered: bool,
    /// Microseconds until the answer.
    pub micros: u64,
    /// How often its first packet was seen to be sent: more than once where TCP had to repeat it.
    pub sent: usize,
    /// Position among the branches of the one that it took.
    pub branch: usize,
    /// Where it, or its answer, was last seen before it was lost.
    pub last_seen: Option<LastSeenJson>,
    /// Device by device.
    pub devices: Vec<ObservedJson>,
    /// What the kernels say that they dropped of it, and of its answer.
    pub dropped: Vec<DroppedJson>,
    /// Rules, devices and protocols that counted where it was lost, and how much more.
    pub counted: Vec<String>,
    /// The prediction from what was read after the probe, where that agrees with what was seen.
    pub predicted_since: Option<String>,
    /// What could not be watched.
    pub unwatched: Vec<String>,
}

/// Packets that a kernel dropped in one place for one reason.
#[derive(Serialize)]
pub struct DroppedJson {
    /// Node.
    pub node: String,
    /// Namespace.
    pub netns: String,
    /// Device that they were last at; none where they were at none yet.
    pub device: Option<String>,
    /// Which packet: as of devices.
    pub turn: usize,
    /// `enum skb_drop_reason` by name, where the kernel has one: `NETFILTER_DROP`.
    pub reason: Option<String>,
    /// Its number in that kernel.
    pub number: u32,
    /// Function that dropped it.
    pub function: Option<String>,
    /// How many packets.
    pub count: usize,
}

/// A device.
#[derive(Serialize)]
pub struct LastSeenJson {
    /// Node.
    pub node: String,
    /// Namespace.
    pub netns: String,
    /// Device.
    pub device: String,
}

/// A device, and what was seen there of a probe.
#[derive(Serialize)]
pub struct ObservedJson {
    /// Node.
    pub node: String,
    /// Namespace.
    pub netns: String,
    /// Device.
    pub device: String,
    /// `in` or `out`.
    pub direction: &'static str,
    /// Which packet: 0 the probe, 1 its answer, 2 and 3 what each side sends once connected.
    pub turn: usize,
    /// `confirmed`, `not seen`, `not seen, but behind`, `changed: ...`, `seen, not predicted`, or `seen` where its way can't be predicted (a reset that refuses is one such).
    pub met: String,
    /// Microseconds since the probe was first seen on that node.
    pub after: Option<i64>,
    /// As it was seen; as predicted where it was not.
    pub packet: PacketJson,
}

/// Conntrack entries that lead to the same place, and what becomes of their packets.
#[derive(Serialize)]
pub struct ExistingJson<'a> {
    /// One of them, as `conntrack -L` prints it.
    pub entry: String,
    /// How many there are.
    pub count: u32,
    /// Where they are.
    pub place: &'a Place,
    /// As an answer of its own.
    pub trace: TraceJson<'a>,
}

/// The question.
#[derive(Serialize)]
pub struct FlowJson<'a> {
    /// Sender.
    pub source: &'a End,
    /// Destination.
    pub destination: &'a End,
    /// `tcp`, `udp`, `icmp`, `icmpv6`, `sctp`.
    pub protocol: String,
    /// Destination port.
    pub port: Option<u16>,
    /// Source port, where it was fixed.
    pub source_port: Option<u16>,
    /// Bytes, IP header included.
    pub size: u32,
}

/// One way.
#[derive(Serialize)]
pub struct BranchJson<'a> {
    /// Share of packets, 0 to 1, four decimals.
    pub probability: f64,
    /// As that of the whole, for this branch; counts the answer in.
    pub verdict: &'static str,
    /// How the packet itself ends.
    pub disposition: DispositionJson<'a>,
    /// Namespaces in order.
    pub hops: Vec<HopJson<'a>>,
    /// The answer, where there is one.
    pub reply: Option<ReplyJson<'a>>,
    /// The client's next packet and the server's, once the answer is there; hops of those that fail.
    pub later: Vec<LaterJson<'a>>,
}

/// The way of the answer.
#[derive(Serialize)]
pub struct ReplyJson<'a> {
    /// How it ends.
    pub disposition: DispositionJson<'a>,
    /// Namespaces in order.
    pub hops: Vec<HopJson<'a>>,
}

/// The way of a packet after the answer.
#[derive(Serialize)]
pub struct LaterJson<'a> {
    /// How it ends.
    pub disposition: DispositionJson<'a>,
    /// Namespaces in order, where it fails.
    pub hops: Vec<HopJson<'a>>,
    /// Where captures see it, in order, all namespaces together.
    pub taps: Vec<PlacedTapJson<'a>>,
}

/// How a way ends.
#[derive(Serialize)]
pub struct DispositionJson<'a> {
    /// `delivered`, `leaves-cluster`, `dropped`, `rejected`, `loop` or `inconclusive`.
    pub kind: &'static str,
    /// The kernel's drop reason, what the sender is told, or what is missing.
    pub reason: Option<String>,
    /// Where it ends.
    pub node: Option<&'a str>,
    /// Namespace there.
    pub netns: Option<&'a str>,
    /// The deciding step in words.
    pub step: &'a str,
}

/// One namespace on the way.
#[derive(Serialize)]
pub struct HopJson<'a> {
    /// Node.
    pub node: &'a str,
    /// `host`, `pod NAMESPACE/NAME`, `netns NAME`.
    pub netns: &'a str,
    /// Inode of the namespace.
    pub netns_inode: u64,
    /// Device it came in by.
    #[serde(rename = "in")]
    pub iif: Option<&'a str>,
    /// Device it left by.
    #[serde(rename = "out")]
    pub oif: Option<&'a str>,
    /// The packet as it came in.
    pub packet: PacketJson,
    /// Decisions.
    pub steps: Vec<StepJson<'a>>,
    /// What captures in this namespace see, in order.
    pub taps: Vec<TapJson<'a>>,
}

/// What `tcpdump -i DEVICE` shows of the packet.
#[derive(Serialize)]
pub struct TapJson<'a> {
    /// Device.
    pub device: &'a str,
    /// `in`: the namespace receives it there; `out`: it sends it.
    pub direction: &'static str,
    /// The packet as it is there.
    pub packet: PacketJson,
}

/// The same, with its namespace.
#[derive(Serialize)]
pub struct PlacedTapJson<'a> {
    /// Node.
    pub node: &'a str,
    /// As that of a hop.
    pub netns: &'a str,
    /// What is seen there.
    #[serde(flatten)]
    pub tap: TapJson<'a>,
}

/// Headers of a packet.
#[derive(Serialize)]
pub struct PacketJson {
    /// Source address.
    pub src: String,
    /// Destination address.
    pub dst: String,
    /// Protocol by name.
    pub protocol: String,
    /// Source port; none: any free one.
    pub sport: Option<u16>,
    /// Destination port.
    pub dport: Option<u16>,
    /// Time to live.
    pub ttl: u8,
    /// Bytes.
    pub length: u32,
    /// Link-layer addresses, where it is on a link.
    pub src_mac: Option<String>,
    /// Destination link-layer address.
    pub dst_mac: Option<String>,
    /// VXLAN network identifier, where it is a tunnel's packet.
    pub vni: Option<u32>,
    /// The packet inside.
    pub inner: Option<Box<PacketJson>>,
}

/// One decision.
#[derive(Serialize)]
pub struct StepJson<'a> {
    /// Kind: docs/output.md lists them.
    pub kind: &'static str,
    /// What was decided, in words.
    pub result: &'a str,
    /// What decided.
    pub evidence: EvidenceJson<'a>,
    /// What changed in the packet.
    pub changes: &'a [FieldChange],
}

/// What decided.
#[derive(Serialize)]
pub struct EvidenceJson<'a> {
    /// On one line, with names.
    pub text: &'a str,
    /// Each object as its own tool prints it.
    pub lines: &'a [String],
    /// Each object with all its fields.
    pub objects: &'a [Evidence],
}

/// Something wrong.
#[derive(Serialize)]
pub struct FindingJson<'a> {
    /// Code.
    pub code: &'static str,
    /// `error` or `warning`.
    pub severity: &'static str,
    /// What is wrong.
    pub title: &'a str,
    /// Where.
    #[serde(rename = "where")]
    pub place: &'a Place,
    /// What shows it.
    pub evidence: &'a [String],
    /// What to do.
    pub mend: &'a str,
    /// Branches that it breaks, by position from 0.
    pub branches: &'a [usize],
}

/// One direction of `--mtu`. Sizes are bytes from the IP header on.
#[derive(Debug, Serialize)]
pub struct MtuJson {
    /// Sender and receiver.
    pub from: String,
    /// As above.
    pub to: String,
    /// `proven`, `differs`, `measured` (nothing was predicted), `nothing` (not even a small one arrives) or `untried`.
    pub result: &'static str,
    /// Largest size that is predicted to arrive.
    pub predicted: Option<u32>,
    /// What limits it: where one byte more ends.
    pub limit: Option<String>,
    /// Why there is none.
    pub unpredicted: Option<String>,
    /// Largest size that arrived.
    pub largest: Option<u32>,
    /// Larger ones are lost, and the sender is not told.
    pub black_hole: bool,
    /// What was sent, in order.
    pub tried: Vec<TriedJson>,
    /// Why no more was.
    pub untried: Option<String>,
    /// Devices that it is sent by.
    pub devices: Vec<RoomJson>,
}

/// One packet of `--mtu`.
#[derive(Debug, Serialize)]
pub struct TriedJson {
    /// Bytes.
    pub length: u32,
    /// What became of it.
    pub fate: String,
}

/// A device of `--mtu`.
#[derive(Debug, Serialize)]
pub struct RoomJson {
    /// Node.
    pub node: String,
    /// Namespace.
    pub netns: String,
    /// Device.
    pub device: String,
    /// Its MTU.
    pub mtu: u32,
    /// Bytes of tunnels' headers around the packet there.
    pub around: u32,
    /// Bytes left for the packet.
    pub room: u32,
}
