//! Expressions of rules and their verdicts.
//!
//! Read first: include/uapi/linux/netfilter/nf_tables.h (v6.12).

use serde::{Deserialize, Serialize};

use super::Counters;
use crate::model::xtables::{HeaderMatch, XtMatch, XtTarget};

/// Register of the nf_tables machine as the index of a 32-bit word, as the kernel's
/// `nft_parse_register()` makes it: 0 is the verdict; the 16-byte registers 1 to 4 are 4, 8, 12, 16;
/// NFT_REG32_00 to _15 are 4 to 19. Range 0 to 19.
pub type Reg = u8;

/// One expression of a rule. Constants are kept as the bytes the kernel compares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expr {
    /// Loads packet metadata.
    Meta {
        /// What.
        key: MetaKey,
        /// Where to.
        dreg: Reg,
    },
    /// Changes packet metadata.
    MetaSet {
        /// What.
        key: MetaKey,
        /// Value.
        sreg: Reg,
    },
    /// Loads bytes of the packet.
    Payload {
        /// Which header.
        base: PayloadBase,
        /// Offset in bytes in that header.
        offset: u32,
        /// Bytes.
        len: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Changes bytes of the packet.
    PayloadSet {
        /// Which header.
        base: PayloadBase,
        /// Offset in bytes.
        offset: u32,
        /// Bytes.
        len: u32,
        /// Value.
        sreg: Reg,
    },
    /// Compares a register with a constant.
    Cmp {
        /// How.
        op: CmpOp,
        /// Register.
        sreg: Reg,
        /// Constant.
        data: Vec<u8>,
    },
    /// Compares a register with a range, both ends included.
    Range {
        /// The range must not hold it.
        negate: bool,
        /// Register.
        sreg: Reg,
        /// First.
        from: Vec<u8>,
        /// Last.
        to: Vec<u8>,
    },
    /// Bit operations of `len` bytes.
    Bitwise {
        /// From.
        sreg: Reg,
        /// To.
        dreg: Reg,
        /// Bytes.
        len: u32,
        /// Which.
        op: BitwiseOp,
    },
    /// Byte order conversion.
    Byteorder {
        /// From.
        sreg: Reg,
        /// To.
        dreg: Reg,
        /// Host to network; the other way where false.
        hton: bool,
        /// Bytes.
        len: u32,
        /// Size of one number: 2, 4 or 8.
        size: u32,
    },
    /// Loads a constant.
    Immediate {
        /// Where to.
        dreg: Reg,
        /// Value.
        data: Vec<u8>,
    },
    /// A verdict.
    Verdict(Verdict),
    /// Looks a register up in a set or map.
    Lookup {
        /// Name of the set, in the same table.
        set: String,
        /// Key.
        sreg: Reg,
        /// Where a map's data goes (0 for a verdict map); `None` for a set.
        dreg: Option<Reg>,
        /// Matches where the key is absent.
        inverted: bool,
    },
    /// Adds to or updates a dynamic set; matches unless the set is full.
    Dynset {
        /// Name of the set.
        set: String,
        /// Key.
        sreg: Reg,
        /// Operation: 0 add, 1 update, 2 delete (NFT_DYNSET_OP_*).
        op: u32,
        /// What a map's element leads to.
        #[serde(default)]
        data: Option<Reg>,
        /// Milliseconds that the element lives, where the rule says so.
        #[serde(default)]
        timeout_ms: Option<u64>,
        /// Stateful expressions of the element: a limit, say, may refuse the packet.
        exprs: Vec<Expr>,
    },
    /// Loads from the conntrack entry.
    Ct {
        /// What.
        key: CtKey,
        /// Where to.
        dreg: Reg,
        /// 0 original, 1 reply; `None` where the key has no direction.
        dir: Option<u8>,
    },
    /// Changes the conntrack entry.
    CtSet {
        /// What.
        key: CtKey,
        /// Value.
        sreg: Reg,
        /// Direction that a zone is for: 0 original, 1 reply; `None`: both.
        #[serde(default)]
        dir: Option<u8>,
    },
    /// Asks the routing tables (NFTA_FIB_*).
    Fib {
        /// Where to.
        dreg: Reg,
        /// What to load.
        result: FibResult,
        /// Look up the source address.
        saddr: bool,
        /// Look up the destination address.
        daddr: bool,
        /// Take the mark into account.
        mark: bool,
        /// Restrict to the incoming device.
        iif: bool,
        /// Restrict to the outgoing device.
        oif: bool,
        /// Load 1 or 0 rather than the result (NFTA_FIB_F_PRESENT).
        present: bool,
    },
    /// A number: random, or counting up (NFT_NG_RANDOM, NFT_NG_INCREMENTAL).
    Numgen {
        /// Where to.
        dreg: Reg,
        /// Results are `offset` to `offset + modulus - 1`.
        modulus: u32,
        /// First result.
        offset: u32,
        /// Random; counting up where false.
        random: bool,
    },
    /// A hash of packet or register (jhash, symhash).
    Hash {
        /// Where to.
        dreg: Reg,
        /// Results are `offset` to `offset + modulus - 1`.
        modulus: u32,
        /// First result.
        offset: u32,
        /// Register and length that are hashed with seed, where the rule gives one; `None`: symmetric hash
        /// of the flow.
        jhash: Option<(Reg, u32, Option<u32>)>,
    },
    /// Source or destination NAT.
    Nat {
        /// Source NAT; destination NAT where false.
        source: bool,
        /// Family of the new address.
        v6: bool,
        /// First address, by register.
        addr_min: Option<Reg>,
        /// Last address.
        addr_max: Option<Reg>,
        /// First port.
        proto_min: Option<Reg>,
        /// Last port.
        proto_max: Option<Reg>,
        /// NF_NAT_RANGE_*.
        flags: u32,
    },
    /// Source NAT to an address of the outgoing device.
    Masq {
        /// First port, by register.
        proto_min: Option<Reg>,
        /// Last port.
        proto_max: Option<Reg>,
        /// NF_NAT_RANGE_*.
        flags: u32,
    },
    /// Destination NAT to this host.
    Redir {
        /// First port, by register.
        proto_min: Option<Reg>,
        /// Last port.
        proto_max: Option<Reg>,
        /// NF_NAT_RANGE_*.
        flags: u32,
    },
    /// Refuses with an answer.
    Reject {
        /// 0 ICMP unreachable, 1 TCP reset, 2 ICMPX (NFT_REJECT_*).
        kind: u32,
        /// ICMP code.
        code: u8,
    },
    /// Transparent proxying.
    Tproxy {
        /// Family: 2 or 10; 0 any.
        family: u32,
        /// Address, by register.
        addr: Option<Reg>,
        /// Port, by register.
        port: Option<Reg>,
    },
    /// Counts and matches.
    Counter(Counters),
    /// Matches while the rate is not used up.
    Limit {
        /// Packets or bytes per unit.
        rate: u64,
        /// Seconds.
        unit: u64,
        /// Packets or bytes at once.
        burst: u32,
        /// Bytes rather than packets.
        bytes: bool,
        /// Matches once the rate is used up.
        inverted: bool,
    },
    /// Matches while there are not more connections.
    Connlimit {
        /// Connections.
        count: u32,
        /// Matches above.
        inverted: bool,
    },
    /// Matches while the quota is not used up.
    Quota {
        /// Matches once it is used up.
        inverted: bool,
        /// Bytes allowed.
        bytes: u64,
        /// Bytes used up.
        consumed: u64,
    },
    /// Logs and matches.
    Log(Box<Log>),
    /// Hands the packet to a program.
    Queue {
        /// First queue.
        num: u16,
        /// Number of queues.
        total: u16,
        /// Accept where no program listens.
        bypass: bool,
        /// The queue is chosen by CPU.
        #[serde(default)]
        fanout: bool,
        /// The number of the queue, by register.
        #[serde(default)]
        sreg: Option<Reg>,
    },
    /// The packet is not tracked.
    Notrack,
    /// Refers to a stateful object; counters match always.
    Objref {
        /// Name.
        name: String,
        /// NFT_OBJECT_*.
        kind: u32,
    },
    /// The stateful object that a map leads to; breaks off the rule where it leads to none.
    ObjrefMap {
        /// Name of the map.
        set: String,
        /// Key.
        sreg: Reg,
    },
    /// Offers the flow to a flowtable and matches.
    FlowOffload(String),
    /// Notes when it was last used, and matches: milliseconds ago, where it ever was.
    Last(Option<u64>),
    /// Answers in place of the server.
    Synproxy {
        /// Segment size.
        mss: u16,
        /// Window scale.
        wscale: u8,
        /// NF_SYNPROXY_OPT_*: 1 mss, 2 window scale, 4 sack, 8 timestamp.
        flags: u32,
    },
    /// Sends a copy, and matches.
    Dup {
        /// Gateway, by register.
        addr: Option<Reg>,
        /// Index of the device, by register.
        dev: Option<Reg>,
    },
    /// Sends the packet out of another device.
    Fwd {
        /// Index of the device, by register.
        dev: Reg,
        /// Neighbour, by register.
        addr: Option<Reg>,
        /// Family of the neighbour: 2 or 10.
        family: u32,
    },
    /// Address, device and protocol conditions of a legacy rule.
    Header(Box<HeaderMatch>),
    /// An x_tables match.
    Match(XtMatch),
    /// An x_tables target.
    Target(XtTarget),
    /// Loads bytes of an extension header or option, or whether there is one.
    Exthdr {
        /// Where.
        place: Exthdr,
        /// Where to.
        dreg: Reg,
        /// Load 1 or 0 rather than the bytes (NFT_EXTHDR_F_PRESENT).
        present: bool,
    },
    /// Changes bytes of an option; without a value, removes the option.
    ExthdrSet {
        /// Where.
        place: Exthdr,
        /// Value.
        sreg: Option<Reg>,
    },
    /// Loads what belongs to the socket that takes the packet.
    Socket {
        /// NFT_SOCKET_*: 0 transparent, 1 mark, 2 wildcard, 3 control group.
        key: u32,
        /// Level of the control group.
        level: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads what belongs to the route.
    Rt {
        /// NFT_RT_*: 0 class, 1 IPv4 next hop, 2 IPv6 next hop, 3 segment size, 4 IPsec.
        key: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads the name of the sender's system.
    Osf {
        /// Where to.
        dreg: Reg,
        /// How ttl is compared: 0 equal, 1 at most, 2 not.
        ttl: u8,
        /// 1: with its version.
        flags: u32,
    },
    /// Loads what belongs to an IPsec transform.
    Xfrm {
        /// NFT_XFRM_KEY_*: 1 to 4 addresses, 5 request, 6 index.
        key: u32,
        /// 0 in, 1 out.
        dir: u8,
        /// Which transform.
        spnum: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Loads what belongs to a tunnel's metadata.
    Tunnel {
        /// NFT_TUNNEL_*: 0 whether there is a tunnel, 1 its id.
        key: u32,
        /// 0 either, 1 received, 2 to be sent.
        mode: u32,
        /// Where to.
        dreg: Reg,
    },
    /// Runs an expression on the packet inside a tunnel's packet.
    Inner {
        /// NFT_INNER_*: which tunnel.
        kind: u32,
        /// Which headers count.
        flags: u32,
        /// Length of the tunnel's header.
        hdrsize: u32,
        /// What is run.
        expr: Box<Expr>,
    },
    /// An expression that this program does not know: the rule is unknown from here on.
    Other {
        /// Name.
        name: String,
        /// Attributes as they came.
        data: Vec<u8>,
    },
}

impl Expr {
    /// Name of the kernel's expression.
    pub fn name(&self) -> &str {
        match self {
            Self::Meta { .. } | Self::MetaSet { .. } => "meta",
            Self::Payload { .. } | Self::PayloadSet { .. } => "payload",
            Self::Cmp { .. } => "cmp",
            Self::Range { .. } => "range",
            Self::Bitwise { .. } => "bitwise",
            Self::Byteorder { .. } => "byteorder",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Lookup { .. } => "lookup",
            Self::Dynset { .. } => "dynset",
            Self::Ct { .. } | Self::CtSet { .. } => "ct",
            Self::Fib { .. } => "fib",
            Self::Numgen { .. } => "numgen",
            Self::Hash { .. } => "hash",
            Self::Nat { .. } => "nat",
            Self::Masq { .. } => "masq",
            Self::Redir { .. } => "redir",
            Self::Reject { .. } => "reject",
            Self::Tproxy { .. } => "tproxy",
            Self::Counter(_) => "counter",
            Self::Limit { .. } => "limit",
            Self::Connlimit { .. } => "connlimit",
            Self::Quota { .. } => "quota",
            Self::Log(_) => "log",
            Self::Queue { .. } => "queue",
            Self::Notrack => "notrack",
            Self::Objref { .. } | Self::ObjrefMap { .. } => "objref",
            Self::FlowOffload(_) => "flow_offload",
            Self::Last(_) => "last",
            Self::Synproxy { .. } => "synproxy",
            Self::Dup { .. } => "dup",
            Self::Fwd { .. } => "fwd",
            Self::Header(_) => "header",
            Self::Match(_) => "match",
            Self::Target(_) => "target",
            Self::Exthdr { .. } | Self::ExthdrSet { .. } => "exthdr",
            Self::Socket { .. } => "socket",
            Self::Rt { .. } => "rt",
            Self::Osf { .. } => "osf",
            Self::Xfrm { .. } => "xfrm",
            Self::Tunnel { .. } => "tunnel",
            Self::Inner { .. } => "inner",
            Self::Other { name, .. } => name,
        }
    }
}

/// What is told of a packet that is logged; absent is what the rule does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Group that programs listen on; `None`: the kernel's log.
    pub group: Option<u16>,
    /// Text before it.
    pub prefix: String,
    /// Bytes of the packet.
    pub snaplen: Option<u32>,
    /// Packets sent at once.
    pub qthreshold: Option<u16>,
    /// Syslog level.
    pub level: Option<u32>,
    /// NF_LOG_*: 1 TCP sequence, 2 TCP options, 4 IP options, 8 uid, 0x20 link layer.
    pub flags: u32,
}

/// Place in an extension header or option.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exthdr {
    /// NFT_EXTHDR_OP_*: 0 IPv6 header, 1 TCP option, 2 IPv4 option, 3 SCTP chunk, 4 DCCP option.
    pub op: u32,
    /// Header or option by number.
    pub kind: u8,
    /// Bytes from its beginning.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
}

/// A verdict (NF_*, NFT_*).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Ends this base chain; later ones still run.
    Accept,
    /// Final.
    Drop,
    /// Next rule.
    Continue,
    /// Back to the calling chain.
    Return,
    /// Call a chain.
    Jump(String),
    /// Go to a chain without coming back.
    Goto(String),
    /// To a program.
    Queue(u16),
    /// Taken away: what happens is unknown.
    Stolen,
    /// A verdict this program does not know.
    Other(i32),
}

/// Header that payload offsets count from (NFT_PAYLOAD_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PayloadBase {
    /// 0: Ethernet.
    LinkLayer,
    /// 1: IP.
    Network,
    /// 2: TCP, UDP, ICMP ...
    Transport,
    /// 3: inside a tunnel.
    Inner,
    /// 4: inside the tunnel's inner packet.
    Tunnel,
    /// Something this program does not know.
    Other(u32),
}

/// Comparison (NFT_CMP_*); the bytes are compared as big-endian numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CmpOp {
    /// ==
    Eq,
    /// !=
    Neq,
    /// <
    Lt,
    /// <=
    Lte,
    /// >
    Gt,
    /// >=
    Gte,
}

/// Bit operation (NFT_BITWISE_*).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum BitwiseOp {
    /// `(x & mask) ^ xor`
    MaskXor {
        /// Mask.
        mask: Vec<u8>,
        /// Flipped afterwards.
        xor: Vec<u8>,
    },
    /// Shift left by bits, 32-bit words.
    Lshift(u32),
    /// Shift right by bits.
    Rshift(u32),
    /// With another register (6.13 and later): 2 and, 3 or, 4 xor... as numbered by the kernel.
    Register {
        /// NFT_BITWISE_*.
        op: u32,
        /// The other operand.
        sreg2: Reg,
    },
}

/// Packet metadata (NFT_META_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetaKey {
    /// Packet length in bytes.
    Len,
    /// Ethertype, network order.
    Protocol,
    /// Priority.
    Priority,
    /// Packet mark, host order.
    Mark,
    /// Incoming index, host order.
    Iif,
    /// Outgoing index, host order.
    Oif,
    /// Incoming name, 16 bytes padded with zeros.
    Iifname,
    /// Outgoing name.
    Oifname,
    /// ARPHRD of the incoming device.
    Iiftype,
    /// ARPHRD of the outgoing device.
    Oiftype,
    /// Uid of the sending socket.
    Skuid,
    /// Gid of the sending socket.
    Skgid,
    /// Trace flag.
    Nftrace,
    /// Route class.
    Rtclassid,
    /// Family: 2 or 10.
    Nfproto,
    /// Transport protocol number.
    L4proto,
    /// Incoming bridge's name.
    BriIifname,
    /// Outgoing bridge's name.
    BriOifname,
    /// Packet type: host 0, broadcast 1, multicast 2, otherhost 3.
    Pkttype,
    /// CPU.
    Cpu,
    /// Group of the incoming device.
    Iifgroup,
    /// Group of the outgoing device.
    Oifgroup,
    /// cgroup of the sending socket.
    Cgroup,
    /// Random 32 bits.
    Prandom,
    /// Has an IPsec path.
    Secpath,
    /// Kind of the incoming device, 16 bytes.
    Iifkind,
    /// Kind of the outgoing device.
    Oifkind,
    /// Any other, by number.
    Other(u32),
}

/// Part of a conntrack entry (NFT_CT_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CtKey {
    /// State bits: invalid 1, established 2, related 4, new 8, untracked 64.
    State,
    /// Direction: 0 original, 1 reply.
    Direction,
    /// IPS_* bits.
    Status,
    /// Connection mark.
    Mark,
    /// Seconds to live, in milliseconds.
    Expiration,
    /// Helper name.
    Helper,
    /// L3 protocol.
    L3proto,
    /// Source address, 4 or 16 bytes by family of the table.
    Src,
    /// Destination address.
    Dst,
    /// Transport protocol.
    Protocol,
    /// Source port.
    ProtoSrc,
    /// Destination port.
    ProtoDst,
    /// 128 label bits.
    Labels,
    /// Packets.
    Pkts,
    /// Bytes.
    Bytes,
    /// Average packet size.
    Avgpkt,
    /// Zone.
    Zone,
    /// Event mask.
    Eventmask,
    /// IPv4 source.
    SrcIp,
    /// IPv4 destination.
    DstIp,
    /// IPv6 source.
    SrcIp6,
    /// IPv6 destination.
    DstIp6,
    /// Entry id.
    Id,
    /// Any other, by number.
    Other(u32),
}

/// What `fib` loads (NFT_FIB_RESULT_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FibResult {
    /// Index of the device.
    Oif,
    /// Name of the device.
    Oifname,
    /// RTN_* of the address, as a 32-bit number in host order.
    Addrtype,
    /// Any other, by number.
    Other(u32),
}
