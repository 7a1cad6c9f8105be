//! x_tables matches that few rule sets have. In a [`Box`](super::XtMatch::Rare), so that the others stay small.
//!
//! Source: include/uapi/linux/netfilter/xt_*.h, netfilter_ipv4/ipt_ah.h, netfilter_ipv6/ip6t_*.h (v6.12).

use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// One of them. `u16` and `u32` pairs are ranges with both ends included; numbers are in host order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RareMatch {
    /// `ah`, `esp`, `ipcomp`: by the index of the security association.
    Spi {
        /// Which header.
        header: SpiHeader,
        /// Range.
        spis: (u32, u32),
        /// Negated.
        invert: bool,
        /// `--ahlen` (IPv6), negated; 0 and not negated: any.
        length: (u32, bool),
        /// `--ahres`, `--compres`: the reserved field must be 0.
        reserved: bool,
    },
    /// `bpf`: instructions as code, jumps and operand.
    Bpf(Vec<(u16, u8, u8, u32)>),
    /// `bpf` by the path of a pinned program.
    BpfObject(String),
    /// `cgroup`
    Cgroup {
        /// Path below the root of cgroup v2, negated.
        path: Option<(String, bool)>,
        /// net_cls class, negated.
        class: Option<(u32, bool)>,
    },
    /// `cluster`: a hash of the source picks the node.
    Cluster {
        /// Nodes.
        total: u32,
        /// Bits of those that take the packet.
        nodes: u32,
        /// Seed of the hash.
        seed: u32,
        /// Negated.
        invert: bool,
    },
    /// `connbytes`: what the connection carried so far; `from` above `to` negates the range between.
    Connbytes {
        /// First.
        from: u64,
        /// Last.
        to: u64,
        /// 0 packets, 1 bytes, 2 bytes per packet.
        what: u8,
        /// 0 original, 1 reply, 2 both.
        direction: u8,
    },
    /// `connlabel`
    Connlabel {
        /// Bit of 128.
        bit: u16,
        /// Negated.
        invert: bool,
        /// Sets the bit.
        set: bool,
    },
    /// `connlimit`: holds up to `limit` connections of the masked address; above where not `upto`.
    Connlimit {
        /// Mask.
        mask: IpAddr,
        /// Connections.
        limit: u32,
        /// `--connlimit-upto`
        upto: bool,
        /// By destination.
        daddr: bool,
    },
    /// `cpu`
    Cpu {
        /// Number.
        cpu: u32,
        /// Negated.
        invert: bool,
    },
    /// `dccp`
    Dccp {
        /// Source ports.
        sports: (u16, u16),
        /// Destination ports.
        dports: (u16, u16),
        /// Bits 1 << type.
        types: u16,
        /// Option.
        option: u8,
        /// 1 source, 2 destination, 4 types, 8 option: what is looked at.
        flags: u16,
        /// Which of these are negated.
        invert: u16,
    },
    /// `devgroup`: group, mask, negated.
    Devgroup {
        /// Of the incoming device.
        src: Option<(u32, u32, bool)>,
        /// Of the outgoing one.
        dst: Option<(u32, u32, bool)>,
    },
    /// `ecn`
    Ecn {
        /// 1 the two bits of the IP header, 0x10 ECE, 0x20 CWR: what is looked at.
        operation: u8,
        /// Which of these are negated.
        invert: u8,
        /// The two bits.
        ect: u8,
    },
    /// `helper`; an empty name is any.
    Helper {
        /// Name, or its beginning.
        name: String,
        /// Negated.
        invert: bool,
    },
    /// `ipvs`
    Ipvs {
        /// Virtual address and mask.
        vaddr: (IpAddr, IpAddr),
        /// Virtual port.
        vport: u16,
        /// Protocol.
        proto: u8,
        /// IP_VS_CONN_F_* of the forwarding method.
        method: u8,
        /// Port of the controlling connection.
        vportctl: u16,
        /// XT_IPVS_*: 1 handled by IPVS, 2 protocol, 4 address, 8 port, 0x10 direction, 0x20 method,
        /// 0x40 controlling port.
        flags: u8,
        /// Which of these are negated.
        invert: u8,
    },
    /// `l2tp`
    L2tp {
        /// Tunnel.
        tunnel: u32,
        /// Session.
        session: u32,
        /// 2 or 3.
        version: u8,
        /// 0 control, 1 data.
        kind: u8,
        /// 1 tunnel, 2 session, 4 version, 8 kind: what is looked at.
        flags: u8,
    },
    /// `osf`: by fingerprint of the sender's system.
    Osf {
        /// System.
        genre: String,
        /// NF_OSF_*: 1 genre, 2 ttl, 4 log, 8 negated.
        flags: u32,
        /// 0 all, 1 first, 2 known ones.
        log_level: u32,
        /// How ttl is compared: 0 equal, 1 at most, 2 not.
        ttl: u32,
    },
    /// `policy`: the IPsec transforms that the packet came through or will go through.
    Policy {
        /// XT_POLICY_MATCH_*: 1 in, 2 out, 4 none, 8 strict.
        flags: u16,
        /// Transforms.
        elements: Vec<PolicyElement>,
    },
    /// `quota`: matches while bytes are left.
    Quota {
        /// Bytes.
        bytes: u64,
        /// Negated.
        invert: bool,
    },
    /// `rateest`: compares rates of estimators.
    Rateest {
        /// Estimators; the second is empty where a number is compared.
        names: (String, String),
        /// XT_RATEEST_MATCH_*: 1 negated, 2 absolute, 4 relative, 8 delta, 0x10 bps, 0x20 pps.
        flags: u16,
        /// 1 equal, 2 less, 3 greater.
        mode: u16,
        /// Bytes per second of both sides.
        bps: (u32, u32),
        /// Packets per second of both sides.
        pps: (u32, u32),
    },
    /// `realm`: of the route that was found.
    Realm {
        /// Value.
        id: u32,
        /// Mask.
        mask: u32,
        /// Negated.
        invert: bool,
    },
    /// `sctp`
    Sctp {
        /// Source ports.
        sports: (u16, u16),
        /// Destination ports.
        dports: (u16, u16),
        /// 256 bits of chunk types.
        chunks: [u32; 8],
        /// 1 any of them, 2 all, 4 only these.
        how: u32,
        /// Chunk type, flags, and which flags count.
        chunk_flags: Vec<(u8, u8, u8)>,
        /// 1 source, 2 destination, 4 chunks: what is looked at.
        flags: u32,
        /// Which of these are negated.
        invert: u32,
    },
    /// `socket`: there is one that takes the packet. 1 transparent, 2 no wildcard, 4 restore its mark.
    Socket(u8),
    /// `string`: bytes in the packet.
    Text {
        /// First place looked at.
        from: u16,
        /// Last; `u16::MAX` is the end.
        to: u16,
        /// `bm` or `kmp`.
        algorithm: String,
        /// What is looked for.
        pattern: Vec<u8>,
        /// Negated.
        invert: bool,
        /// Letters of both cases.
        ignore_case: bool,
    },
    /// `tcpmss`
    Tcpmss {
        /// Range.
        mss: (u16, u16),
        /// Negated.
        invert: bool,
    },
    /// `time`
    Time(TimeMatch),
    /// `tos`: `tos & mask == value`.
    Tos {
        /// Value.
        value: u8,
        /// Mask.
        mask: u8,
        /// Negated.
        invert: bool,
    },
    /// `u32`
    U32 {
        /// All must hold.
        tests: Vec<U32Test>,
        /// Negated.
        invert: bool,
    },
    /// `eui64`: the source's lower half is made of the link-layer source.
    Eui64,
    /// `frag`
    Frag {
        /// Identification.
        ids: (u32, u32),
        /// Length.
        length: u32,
        /// IP6T_FRAG_*: 1 ids, 2 length, 4 reserved, 8 first, 0x10 more, 0x20 last.
        flags: u8,
        /// Which are negated.
        invert: u8,
    },
    /// `hbh`, `dst`: options of the hop-by-hop or destination header.
    Options {
        /// Hop-by-hop.
        hop_by_hop: bool,
        /// Length.
        length: u32,
        /// 1 length, 2 options, 4 not strict.
        flags: u8,
        /// 1 length negated.
        invert: u8,
        /// Type in the upper byte, length in the lower; 0xff any.
        options: Vec<u16>,
    },
    /// `ipv6header`
    Ipv6header {
        /// MASK_*: 128 hop-by-hop, 64 destination, 32 routing, 16 fragment, 8 ah, 4 esp, 2 none, 1 other.
        headers: u8,
        /// Negated.
        invert: u8,
        /// Others may be there too.
        soft: bool,
    },
    /// `mh`
    Mh {
        /// Types.
        types: (u8, u8),
        /// Negated.
        invert: bool,
    },
    /// `rt`: IPv6 routing header.
    Rt {
        /// Type.
        kind: u32,
        /// Segments left.
        left: (u32, u32),
        /// Length.
        length: u32,
        /// IP6T_RT_*: 1 type, 2 segments, 4 length, 8 reserved, 0x10 addresses, 0x20 not strict.
        flags: u8,
        /// Which are negated.
        invert: u8,
        /// Addresses.
        addrs: Vec<Ipv6Addr>,
    },
    /// `srh`: IPv6 segment routing header.
    Srh {
        /// Next header.
        next: u8,
        /// Length.
        length: u8,
        /// Segments left.
        left: u8,
        /// Last entry.
        last: u8,
        /// Tag.
        tag: u16,
        /// IP6T_SRH_*.
        flags: u16,
        /// Which are negated.
        invert: u16,
        /// Previous, next and last segment with their masks (revision 1).
        segments: Vec<(Ipv6Addr, Ipv6Addr)>,
    },
}

/// Header that holds an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SpiHeader {
    /// Authentication of IPv4.
    Ah,
    /// Authentication of IPv6.
    Ah6,
    /// Encryption.
    Esp,
    /// Compression.
    Ipcomp,
}

/// A transform of `policy` (`struct xt_policy_elem`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyElement {
    /// Tunnel source and mask.
    pub saddr: (IpAddr, IpAddr),
    /// Tunnel destination and mask.
    pub daddr: (IpAddr, IpAddr),
    /// Index.
    pub spi: u32,
    /// Request.
    pub reqid: u32,
    /// Protocol.
    pub proto: u8,
    /// 0 transport, 1 tunnel.
    pub mode: u8,
    /// 1 saddr, 2 daddr, 4 proto, 8 mode, 16 spi, 32 reqid: what is looked at.
    pub wanted: u8,
    /// Which are negated.
    pub invert: u8,
}

/// `time` (`struct xt_time_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimeMatch {
    /// Seconds since 1970.
    pub date_start: u32,
    /// Last second.
    pub date_stop: u32,
    /// Seconds of the day.
    pub day_start: u32,
    /// Last second of the day.
    pub day_stop: u32,
    /// Bits 1 << day.
    pub monthdays: u32,
    /// Bits 1 << day, Monday is 1.
    pub weekdays: u8,
    /// 1 the kernel's own time zone, 2 one stretch beyond midnight.
    pub flags: u8,
}

/// One comparison of `u32`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct U32Test {
    /// Number, and what it does to what stands before: 0 and, 1 shift left, 2 shift right, 3 go there and on
    /// by as much. The first is a place in the packet.
    pub location: Vec<(u32, u8)>,
    /// Ranges of which one must hold the result.
    pub values: Vec<(u32, u32)>,
}
