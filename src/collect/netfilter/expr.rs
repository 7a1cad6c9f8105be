//! Expressions of nf_tables rules, from netlink attributes.
//!
//! Source: include/uapi/linux/netfilter/nf_tables.h; numbers are in network order. An expression whose name
//! or shape is not known becomes [`Expr::Other`] with its bytes.

use super::{xt_match, xt_target};
use crate::collect::nla::{Attrs, be16_at, be32, be64, text};
use crate::model::netfilter::{
    BitwiseOp, CmpOp, Counters, CtKey, Expr, Exthdr, Family, FibResult, Log, MetaKey, PayloadBase,
    Reg, SetData, Verdict,
};

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

/// Decodes NFTA_RULE_EXPRESSIONS.
pub fn decode_list(bytes: &[u8], family: Family) -> Vec<Expr> {
    list(bytes).map(|elem| decode(elem, family)).collect()
}

/// Payloads of a list.
fn list(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    Attrs(bytes)
        .filter(|(kind, _)| *kind == NFTA_LIST_ELEM)
        .map(|(_, elem)| elem)
}

/// Expressions of a set's elements or of an element: one that is an attribute by itself, or a list.
pub fn stateful(one: Option<&[u8]>, many: Option<&[u8]>, family: Family) -> Vec<Expr> {
    let all = one.into_iter().chain(list(many.unwrap_or_default()));
    all.map(|elem| decode(elem, family)).collect()
}

fn decode(elem: &[u8], family: Family) -> Expr {
    let name = Attrs(elem)
        .find(NFTA_EXPR_NAME)
        .map(text)
        .unwrap_or_default();
    // Expressions without parameters (notrack, last) may come without data.
    let data = Attrs(elem).find(NFTA_EXPR_DATA).unwrap_or_default();
    known(&name, Args(Attrs(data)), family).unwrap_or_else(|| Expr::Other {
        name,
        data: data.to_vec(),
    })
}

#[derive(Clone, Copy)]
struct Args<'a>(Attrs<'a>);

impl<'a> Args<'a> {
    fn num(self, kind: u16) -> Option<u32> {
        be32(self.0.find(kind)?)
    }

    fn or_zero(self, kind: u16) -> u32 {
        self.num(kind).unwrap_or(0)
    }

    fn text(self, kind: u16) -> Option<String> {
        self.0.find(kind).map(text)
    }

    fn half(self, kind: u16) -> Option<u16> {
        be16_at(self.0.find(kind)?, 0)
    }

    fn byte(self, kind: u16) -> Option<u8> {
        self.0.find(kind)?.first().copied()
    }

    fn reg(self, kind: u16) -> Option<Reg> {
        register(self.num(kind)?)
    }

    /// A constant's bytes.
    fn value(self, kind: u16) -> Option<&'a [u8]> {
        Attrs(self.0.find(kind)?).find(NFTA_DATA_VALUE)
    }
}

/// `nft_parse_register()`
fn register(number: u32) -> Option<Reg> {
    let word = match number {
        0..=4 => number * 4,
        8..=23 => number - 4,
        _ => return None,
    };
    Reg::try_from(word).ok()
}

fn known(name: &str, args: Args<'_>, family: Family) -> Option<Expr> {
    Some(match name {
        "meta" => meta(args)?,
        "payload" => payload(args)?,
        "cmp" => Expr::Cmp {
            sreg: args.reg(1)?,
            op: cmp_op(args.num(2)?)?,
            data: args.value(3)?.to_vec(),
        },
        "range" => Expr::Range {
            sreg: args.reg(1)?,
            negate: match args.num(2)? {
                0 => false,
                1 => true,
                _ => return None,
            },
            from: args.value(3)?.to_vec(),
            to: args.value(4)?.to_vec(),
        },
        "bitwise" => bitwise(args)?,
        "byteorder" => Expr::Byteorder {
            sreg: args.reg(1)?,
            dreg: args.reg(2)?,
            hton: args.num(3)? == 1,
            len: args.num(4)?,
            size: args.num(5)?,
        },
        "immediate" => match data(args.0.find(2)?)? {
            SetData::Verdict(verdict) => Expr::Verdict(verdict),
            SetData::Value(data) => Expr::Immediate {
                dreg: args.reg(1)?,
                data,
            },
        },
        "lookup" => Expr::Lookup {
            set: args.text(1)?,
            sreg: args.reg(2)?,
            dreg: match args.num(3) {
                Some(number) => Some(register(number)?),
                None => None,
            },
            inverted: args.or_zero(5) & 1 != 0,
        },
        "dynset" => dynset(args, family)?,
        "ct" => ct(args)?,
        "fib" => fib(args)?,
        "numgen" => Expr::Numgen {
            dreg: args.reg(1)?,
            modulus: args.num(2)?,
            random: match args.num(3)? {
                0 => false,
                1 => true,
                _ => return None,
            },
            offset: args.or_zero(4),
        },
        "hash" => hash(args)?,
        "nat" => Expr::Nat {
            source: match args.num(1)? {
                0 => true,
                1 => false,
                _ => return None,
            },
            v6: match args.num(2)? {
                2 => false,
                10 => true,
                _ => return None,
            },
            addr_min: args.reg(3),
            addr_max: args.reg(4),
            proto_min: args.reg(5),
            proto_max: args.reg(6),
            flags: args.or_zero(7),
        },
        "masq" => Expr::Masq {
            flags: args.or_zero(1),
            proto_min: args.reg(2),
            proto_max: args.reg(3),
        },
        "redir" => Expr::Redir {
            proto_min: args.reg(1),
            proto_max: args.reg(2),
            flags: args.or_zero(3),
        },
        "reject" => Expr::Reject {
            kind: args.num(1)?,
            code: args.byte(2).unwrap_or(0),
        },
        "tproxy" => Expr::Tproxy {
            family: args.or_zero(1),
            addr: args.reg(2),
            port: args.reg(3),
        },
        "counter" => Expr::Counter(counters(args.0)?),
        "limit" => Expr::Limit {
            rate: be64(args.0.find(1)?)?,
            unit: be64(args.0.find(2)?)?,
            burst: args.or_zero(3),
            bytes: args.or_zero(4) == 1,
            inverted: args.or_zero(5) & 1 != 0,
        },
        "connlimit" => Expr::Connlimit {
            count: args.num(1)?,
            inverted: args.or_zero(2) & 1 != 0,
        },
        "quota" => Expr::Quota {
            bytes: be64(args.0.find(1)?)?,
            inverted: args.or_zero(2) & 1 != 0,
            consumed: args.0.find(4).and_then(be64).unwrap_or(0),
        },
        "log" => Expr::Log(Box::new(Log {
            group: args.half(1),
            prefix: args.text(2).unwrap_or_default(),
            snaplen: args.num(3),
            qthreshold: args.half(4),
            level: args.num(5),
            flags: args.or_zero(6),
        })),
        "queue" => Expr::Queue {
            num: args.half(1).unwrap_or(0),
            total: args.half(2).unwrap_or(1),
            bypass: args.half(3).unwrap_or(0) & 1 != 0,
            fanout: args.half(3).unwrap_or(0) & 2 != 0,
            sreg: match args.num(4) {
                Some(number) => Some(register(number)?),
                None => None,
            },
        },
        "notrack" => Expr::Notrack,
        "objref" => match args.text(4) {
            Some(set) => Expr::ObjrefMap {
                set,
                sreg: args.reg(3)?,
            },
            None => Expr::Objref {
                kind: args.num(1)?,
                name: args.text(2)?,
            },
        },
        "flow_offload" => Expr::FlowOffload(args.text(1)?),
        // When it was used comes only where it was.
        "last" => Expr::Last(match args.or_zero(1) {
            0 => None,
            _ => args.0.find(2).and_then(be64),
        }),
        "synproxy" => Expr::Synproxy {
            mss: args.half(1).unwrap_or(0),
            wscale: args.byte(2).unwrap_or(0),
            flags: args.or_zero(3),
        },
        "dup" => Expr::Dup {
            addr: args.reg(1),
            dev: args.reg(2),
        },
        "fwd" => Expr::Fwd {
            dev: args.reg(1)?,
            addr: args.reg(2),
            family: args.or_zero(3),
        },
        "exthdr" => exthdr(args)?,
        "socket" => Expr::Socket {
            key: args.num(1)?,
            dreg: args.reg(2)?,
            level: args.or_zero(3),
        },
        "rt" => Expr::Rt {
            dreg: args.reg(1)?,
            key: args.num(2)?,
        },
        "osf" => Expr::Osf {
            dreg: args.reg(1)?,
            ttl: args.byte(2).unwrap_or(0),
            flags: args.or_zero(3),
        },
        "xfrm" => Expr::Xfrm {
            dreg: args.reg(1)?,
            key: args.num(2)?,
            dir: args.byte(3).unwrap_or(0),
            spnum: args.or_zero(4),
        },
        "tunnel" => Expr::Tunnel {
            key: args.num(1)?,
            dreg: args.reg(2)?,
            mode: args.or_zero(3),
        },
        "inner" => Expr::Inner {
            kind: args.num(2)?,
            flags: args.num(3)?,
            hdrsize: args.num(4)?,
            // One expression stands in it; the kernel nests none of these.
            expr: Box::new(inner(args.0.find(5)?, family)?),
        },
        "match" => Expr::Match(xt_match::decode(
            &args.text(1)?,
            u8::try_from(args.num(2)?).ok()?,
            args.0.find(3)?,
            family == Family::Ip6,
        )),
        "target" => Expr::Target(xt_target::decode(
            &args.text(1)?,
            u8::try_from(args.num(2)?).ok()?,
            args.0.find(3)?,
            family == Family::Ip6,
        )),
        _ => return None,
    })
}

/// NFTA_EXTHDR_*
fn exthdr(args: Args<'_>) -> Option<Expr> {
    let place = Exthdr {
        op: args.or_zero(6),
        kind: args.byte(2)?,
        offset: args.or_zero(3),
        len: args.or_zero(4),
    };
    Some(match args.num(1) {
        Some(dreg) => Expr::Exthdr {
            place,
            dreg: register(dreg)?,
            present: args.or_zero(5) & 1 != 0,
        },
        None => Expr::ExthdrSet {
            place,
            sreg: match args.num(7) {
                Some(sreg) => Some(register(sreg)?),
                None => None,
            },
        },
    })
}

/// The expression in a tunnel's: loads from headers only.
fn inner(elem: &[u8], family: Family) -> Option<Expr> {
    let name = Attrs(elem).find(NFTA_EXPR_NAME).map(text)?;
    matches!(name.as_str(), "payload" | "meta").then(|| decode(elem, family))
}

/// NFTA_COUNTER_*: bytes, packets.
pub fn counters(attrs: Attrs<'_>) -> Option<Counters> {
    Some(Counters {
        bytes: be64(attrs.find(1)?)?,
        packets: be64(attrs.find(2)?)?,
    })
}

/// `struct nft_data` as attributes: bytes or a verdict.
pub fn data(bytes: &[u8]) -> Option<SetData> {
    let attrs = Attrs(bytes);
    if let Some(value) = attrs.find(NFTA_DATA_VALUE) {
        return Some(SetData::Value(value.to_vec()));
    }
    let nest = Attrs(attrs.find(NFTA_DATA_VERDICT)?);
    let code = be32(nest.find(1)?)?.cast_signed();
    let chain = || nest.find(2).map(text);
    let verdict = match code {
        -1 => Verdict::Continue,
        -3 => Verdict::Jump(chain()?),
        -4 => Verdict::Goto(chain()?),
        -5 => Verdict::Return,
        0.. => match code & 0xff {
            0 => Verdict::Drop,
            1 => Verdict::Accept,
            2 => Verdict::Stolen,
            // The number of the queue stands in the upper half.
            3 => Verdict::Queue(u16::try_from(code >> 16).ok()?),
            _ => Verdict::Other(code),
        },
        _ => Verdict::Other(code),
    };
    Some(SetData::Verdict(verdict))
}

fn meta(args: Args<'_>) -> Option<Expr> {
    let key = meta_key(args.num(2)?);
    Some(match args.num(3) {
        Some(sreg) => Expr::MetaSet {
            key,
            sreg: register(sreg)?,
        },
        None => Expr::Meta {
            key,
            dreg: args.reg(1)?,
        },
    })
}

fn meta_key(key: u32) -> MetaKey {
    match key {
        0 => MetaKey::Len,
        1 => MetaKey::Protocol,
        2 => MetaKey::Priority,
        3 => MetaKey::Mark,
        4 => MetaKey::Iif,
        5 => MetaKey::Oif,
        6 => MetaKey::Iifname,
        7 => MetaKey::Oifname,
        8 => MetaKey::Iiftype,
        9 => MetaKey::Oiftype,
        10 => MetaKey::Skuid,
        11 => MetaKey::Skgid,
        12 => MetaKey::Nftrace,
        13 => MetaKey::Rtclassid,
        15 => MetaKey::Nfproto,
        16 => MetaKey::L4proto,
        17 => MetaKey::BriIifname,
        18 => MetaKey::BriOifname,
        19 => MetaKey::Pkttype,
        20 => MetaKey::Cpu,
        21 => MetaKey::Iifgroup,
        22 => MetaKey::Oifgroup,
        23 => MetaKey::Cgroup,
        24 => MetaKey::Prandom,
        25 => MetaKey::Secpath,
        26 => MetaKey::Iifkind,
        27 => MetaKey::Oifkind,
        other => MetaKey::Other(other),
    }
}

fn payload(args: Args<'_>) -> Option<Expr> {
    let base = match args.num(2)? {
        0 => PayloadBase::LinkLayer,
        1 => PayloadBase::Network,
        2 => PayloadBase::Transport,
        3 => PayloadBase::Inner,
        4 => PayloadBase::Tunnel,
        other => PayloadBase::Other(other),
    };
    let (offset, len) = (args.num(3)?, args.num(4)?);
    Some(match args.num(5) {
        Some(sreg) => Expr::PayloadSet {
            base,
            offset,
            len,
            sreg: register(sreg)?,
        },
        None => Expr::Payload {
            base,
            offset,
            len,
            dreg: args.reg(1)?,
        },
    })
}

fn cmp_op(op: u32) -> Option<CmpOp> {
    Some(match op {
        0 => CmpOp::Eq,
        1 => CmpOp::Neq,
        2 => CmpOp::Lt,
        3 => CmpOp::Lte,
        4 => CmpOp::Gt,
        5 => CmpOp::Gte,
        _ => return None,
    })
}

fn bitwise(args: Args<'_>) -> Option<Expr> {
    // A value of a register, not a number of netlink: host order (`nft_bitwise_init_shift()`).
    let shift = || Some(u32::from_ne_bytes(*args.value(7)?.first_chunk()?));
    let op = match args.or_zero(6) {
        0 => BitwiseOp::MaskXor {
            mask: args.value(4)?.to_vec(),
            xor: args.value(5)?.to_vec(),
        },
        1 => BitwiseOp::Lshift(shift()?),
        2 => BitwiseOp::Rshift(shift()?),
        op => BitwiseOp::Register {
            op,
            sreg2: args.reg(8)?,
        },
    };
    Some(Expr::Bitwise {
        sreg: args.reg(1)?,
        dreg: args.reg(2)?,
        len: args.num(3)?,
        op,
    })
}

fn dynset(args: Args<'_>, family: Family) -> Option<Expr> {
    // One expression stands alone (7), several in a list (10).
    let exprs = stateful(args.0.find(7), args.0.find(10), family);
    Some(Expr::Dynset {
        set: args.text(1)?,
        op: args.num(3)?,
        sreg: args.reg(4)?,
        data: match args.num(5) {
            Some(number) => Some(register(number)?),
            None => None,
        },
        timeout_ms: args.0.find(6).and_then(be64),
        exprs,
    })
}

fn ct(args: Args<'_>) -> Option<Expr> {
    let key = ct_key(args.num(2)?);
    Some(match args.num(4) {
        Some(sreg) => Expr::CtSet {
            key,
            sreg: register(sreg)?,
            dir: args.byte(3),
        },
        None => Expr::Ct {
            key,
            dreg: args.reg(1)?,
            dir: args.byte(3),
        },
    })
}

fn ct_key(key: u32) -> CtKey {
    match key {
        0 => CtKey::State,
        1 => CtKey::Direction,
        2 => CtKey::Status,
        3 => CtKey::Mark,
        5 => CtKey::Expiration,
        6 => CtKey::Helper,
        7 => CtKey::L3proto,
        8 => CtKey::Src,
        9 => CtKey::Dst,
        10 => CtKey::Protocol,
        11 => CtKey::ProtoSrc,
        12 => CtKey::ProtoDst,
        13 => CtKey::Labels,
        14 => CtKey::Pkts,
        15 => CtKey::Bytes,
        16 => CtKey::Avgpkt,
        17 => CtKey::Zone,
        18 => CtKey::Eventmask,
        19 => CtKey::SrcIp,
        20 => CtKey::DstIp,
        21 => CtKey::SrcIp6,
        22 => CtKey::DstIp6,
        23 => CtKey::Id,
        other => CtKey::Other(other),
    }
}

fn fib(args: Args<'_>) -> Option<Expr> {
    let flags = args.num(3)?;
    // A flag that is not known might change what is asked.
    if flags & !0x3f != 0 {
        return None;
    }
    let flag = |bit: u32| flags & bit != 0;
    Some(Expr::Fib {
        dreg: args.reg(1)?,
        result: match args.num(2)? {
            1 => FibResult::Oif,
            2 => FibResult::Oifname,
            3 => FibResult::Addrtype,
            other => FibResult::Other(other),
        },
        saddr: flag(1),
        daddr: flag(2),
        mark: flag(4),
        iif: flag(8),
        oif: flag(16),
        present: flag(32),
    })
}

fn hash(args: Args<'_>) -> Option<Expr> {
    let jhash = match args.or_zero(7) {
        0 => Some((args.reg(1)?, args.num(3)?, args.num(5))),
        1 => None,
        _ => return None,
    };
    Some(Expr::Hash {
        dreg: args.reg(2)?,
        modulus: args.num(4)?,
        offset: args.or_zero(6),
        jhash,
    })
}
