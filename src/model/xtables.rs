//! x_tables matches and targets, from legacy blobs and from nft's `match` and `target` expressions.
//!
//! Source: include/uapi/linux/netfilter/xt_*.h and netfilter_ipv4/ipt_*.h (v6.12).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::conntrack::NatRange;
use super::netfilter::Verdict;

mod rare_match;
mod rare_target;

pub use rare_match::{PolicyElement, RareMatch, SpiHeader, TimeMatch, U32Test};
pub use rare_target::{CtTarget, RareTarget};

/// Conditions in the head of a legacy rule (`struct ipt_ip`, `struct ip6t_ip6`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeaderMatch {
    /// `-s`: address, mask (not always a prefix), negated.
    pub src: Option<(IpAddr, IpAddr, bool)>,
    /// `-d`.
    pub dst: Option<(IpAddr, IpAddr, bool)>,
    /// `-i`: name, a trailing `+` matches any rest; negated.
    pub iif: Option<(String, bool)>,
    /// `-o`.
    pub oif: Option<(String, bool)>,
    /// `-p`: protocol number and negated.
    pub proto: Option<(u8, bool)>,
    /// `-f` (IPv4): second and further fragments only; negated.
    pub fragment: Option<bool>,
}

/// One match extension. `u16` pairs are ranges with both ends included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XtMatch {
    /// `tcp`
    Tcp {
        /// Source ports.
        sports: (u16, u16),
        /// Destination ports.
        dports: (u16, u16),
        /// Flags that are looked at.
        flag_mask: u8,
        /// Those of them that must be set.
        flag_cmp: u8,
        /// TCP option that must be there; 0 none.
        option: u8,
        /// XT_TCP_INV_*: 1 sport, 2 dport, 4 flags, 8 option.
        invert: u8,
    },
    /// `udp`
    Udp {
        /// Source ports.
        sports: (u16, u16),
        /// Destination ports.
        dports: (u16, u16),
        /// XT_UDP_INV_*: 1 sport, 2 dport.
        invert: u8,
    },
    /// `icmp`, `icmp6`
    Icmp {
        /// Type; 255 any (IPv4).
        kind: u8,
        /// First and last code.
        codes: (u8, u8),
        /// Negated.
        invert: bool,
        /// ICMPv6.
        v6: bool,
    },
    /// `comment`
    Comment(String),
    /// `conntrack` and `state`
    Conntrack(Box<ConntrackMatch>),
    /// `addrtype`
    Addrtype {
        /// Bits 1 << RTN_* for the source; 0 not looked at.
        source: u16,
        /// The same for the destination.
        dest: u16,
        /// Source negated.
        invert_source: bool,
        /// Destination negated.
        invert_dest: bool,
        /// `--limit-iface-in`
        limit_in: bool,
        /// `--limit-iface-out`
        limit_out: bool,
    },
    /// `mark`
    Mark {
        /// Value.
        mark: u32,
        /// Mask.
        mask: u32,
        /// Negated.
        invert: bool,
    },
    /// `connmark`
    Connmark {
        /// Value.
        mark: u32,
        /// Mask.
        mask: u32,
        /// Negated.
        invert: bool,
    },
    /// `statistic`
    Statistic(Statistic),
    /// `multiport`
    Multiport {
        /// 0 source, 1 destination, 2 either.
        which: u8,
        /// Ranges.
        ports: Vec<(u16, u16)>,
        /// Negated.
        invert: bool,
    },
    /// `physdev`
    Physdev {
        /// `--physdev-in`, with mask applied by name bytes.
        physin: Option<(String, bool)>,
        /// `--physdev-out`
        physout: Option<(String, bool)>,
        /// `--physdev-is-in`: wanted value.
        is_in: Option<bool>,
        /// `--physdev-is-out`
        is_out: Option<bool>,
        /// `--physdev-is-bridged`
        is_bridged: Option<bool>,
    },
    /// `set`
    Set {
        /// Index of the set in the kernel, which `IPSET_CMD_GET_BYINDEX` names.
        index: u16,
        /// Name, where it could be asked.
        name: Option<String>,
        /// Why it has no name.
        #[serde(default)]
        unnamed: Option<String>,
        /// For each dimension: true takes the source side.
        dims: Vec<bool>,
        /// Negated.
        invert: bool,
        /// IPSET_FLAG_*: 0x20 compares counters, 0x80 looks for `nomatch` members. Bits that decide nothing
        /// are left out.
        flags: u32,
        /// Counters that are compared or left alone.
        #[serde(default)]
        counters: Option<Box<SetCounters>>,
    },
    /// `recent`
    Recent {
        /// List name.
        name: String,
        /// Seconds; 0 any.
        seconds: u32,
        /// Hits; 0 any.
        hit_count: u32,
        /// XT_RECENT_*: 1 check, 2 set, 4 update, 8 remove, 16 ttl, 32 reap.
        check_set: u8,
        /// Negated.
        invert: bool,
        /// 0 source, 1 destination.
        side: u8,
        /// Addresses are noted and looked for under this mask.
        #[serde(default)]
        mask: Option<IpAddr>,
    },
    /// `limit`: matches while the rate is not used up.
    Limit {
        /// Ten-thousandths of a second per packet.
        cost: u32,
        /// Packets at once.
        burst: u32,
    },
    /// `hashlimit`
    Hashlimit(Box<HashlimitMatch>),
    /// `iprange`
    Iprange {
        /// Source range, negated.
        src: Option<(IpAddr, IpAddr, bool)>,
        /// Destination range, negated.
        dst: Option<(IpAddr, IpAddr, bool)>,
    },
    /// `nfacct`: counts and matches.
    Nfacct(String),
    /// `mac`
    Mac {
        /// Source address.
        addr: super::MacAddr,
        /// Negated.
        invert: bool,
    },
    /// `owner`
    Owner {
        /// Uid range, negated.
        uid: Option<(u32, u32, bool)>,
        /// Gid range, negated.
        gid: Option<(u32, u32, bool)>,
        /// `--socket-exists`: wanted value.
        socket: Option<bool>,
        /// Supplementary groups count too.
        #[serde(default)]
        supplementary: bool,
    },
    /// `pkttype`
    Pkttype {
        /// 0 host, 1 broadcast, 2 multicast, 3 otherhost.
        kind: u32,
        /// Negated.
        invert: bool,
    },
    /// `length`: packet length in bytes.
    Length {
        /// Range.
        range: (u16, u16),
        /// Negated.
        invert: bool,
    },
    /// `ttl`, `hl`
    Ttl {
        /// 0 equal, 1 not equal, 2 less, 3 greater.
        mode: u8,
        /// Value.
        value: u8,
        /// `hl`
        #[serde(default)]
        v6: bool,
    },
    /// `rpfilter`
    Rpfilter {
        /// XT_RPFILTER_*: 1 loose, 2 validmark, 4 accept_local, 8 invert.
        flags: u8,
    },
    /// `dscp`
    Dscp {
        /// Value of the six bits.
        dscp: u8,
        /// Negated.
        invert: bool,
    },
    /// One of those that few rule sets have.
    Rare(Box<RareMatch>),
    /// A match that this program does not know.
    Other {
        /// Name.
        name: String,
        /// Revision.
        revision: u8,
        /// Its structure as the kernel holds it.
        data: Vec<u8>,
    },
}

/// `hashlimit` (`struct xt_hashlimit_mtinfo3`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HashlimitMatch {
    /// Table.
    pub name: String,
    /// XT_HASHLIMIT_*: 1 destination, 2 its port, 4 source, 8 its port, 0x10 above, 0x20 bytes, 0x40 rate.
    pub mode: u32,
    /// Parts of a second per packet, of which a second has `scale`; of byte rates `u32::MAX / (bytes / 16 + 1)`.
    pub average: u64,
    /// Packets or bytes at once.
    pub burst: u64,
    /// 10,000 in revisions 0 and 1, then 1,000,000.
    pub scale: u64,
    /// Buckets; 0 as many as the memory suggests.
    pub size: u32,
    /// Most entries.
    pub max: u32,
    /// Milliseconds between searches for old entries.
    pub gc_interval: u32,
    /// Milliseconds that an entry lives.
    pub expire: u32,
    /// Seconds over which a rate is measured.
    pub interval: u32,
    /// Prefix lengths of source and destination.
    pub masks: (u8, u8),
}

impl HashlimitMatch {
    /// Matches above the rate.
    pub fn inverted(&self) -> bool {
        self.mode & 0x10 != 0
    }
}

/// Counters that `set` compares or leaves alone (`struct xt_set_info_match_v4`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetCounters {
    /// 0 none, 1 equal, 2 not equal, 3 less, 4 greater; and the number of packets.
    pub packets: (u8, u64),
    /// Likewise bytes.
    pub bytes: (u8, u64),
    /// IPSET_FLAG_*: 8 counters of the member are left alone, 0x10 those of lists.
    pub left_alone: u32,
}

/// `statistic`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Statistic {
    /// Matches with a probability.
    Random {
        /// Out of 2^31 (the kernel compares 31 random bits with it).
        probability: u32,
        /// Negated.
        invert: bool,
    },
    /// Every so many packets.
    Nth {
        /// Every `every + 1`-th.
        every: u32,
        /// Packet it starts at.
        packet: u32,
        /// Negated.
        invert: bool,
    },
}

/// `conntrack` match (`struct xt_conntrack_mtinfo3`); also `state`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConntrackMatch {
    /// XT_CONNTRACK_*: 1 state, 2 proto, 4 origsrc, 8 origdst, 0x10 replsrc, 0x20 repldst,
    /// 0x40 status, 0x80 expires, 0x100 origsrc-port, 0x200 origdst-port, 0x400 replsrc-port,
    /// 0x800 repldst-port, 0x1000 direction, 0x2000 state-alias.
    pub match_flags: u16,
    /// The same bits, negated.
    pub invert_flags: u16,
    /// XT_CONNTRACK_STATE_*: 1 invalid, 2 established, 4 related, 8 new; 64 snat, 128 dnat,
    /// 0x100 untracked.
    pub state_mask: u16,
    /// IPS_*.
    pub status_mask: u16,
    /// Protocol.
    pub proto: u16,
    /// Address and mask.
    pub origsrc: Option<(IpAddr, IpAddr)>,
    /// Address and mask.
    pub origdst: Option<(IpAddr, IpAddr)>,
    /// Address and mask.
    pub replsrc: Option<(IpAddr, IpAddr)>,
    /// Address and mask.
    pub repldst: Option<(IpAddr, IpAddr)>,
    /// Port range.
    pub origsrc_port: (u16, u16),
    /// Port range.
    pub origdst_port: (u16, u16),
    /// Port range.
    pub replsrc_port: (u16, u16),
    /// Port range.
    pub repldst_port: (u16, u16),
    /// Seconds to live, range.
    pub expires: (u32, u32),
}

/// One target extension.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum XtTarget {
    /// The standard target of a legacy rule.
    Standard(Verdict),
    /// `DNAT`
    Dnat(NatRange),
    /// `SNAT`
    Snat(NatRange),
    /// `MASQUERADE`
    Masquerade(NatRange),
    /// `REDIRECT`
    Redirect(NatRange),
    /// `NETMAP`; destination in PREROUTING and OUTPUT, source elsewhere.
    Netmap(NatRange),
    /// `MARK`: `mark = (mark & !mask) ^ value`.
    Mark {
        /// Value.
        mark: u32,
        /// Mask.
        mask: u32,
    },
    /// `CONNMARK`
    Connmark {
        /// 0 set, 1 save, 2 restore.
        mode: u8,
        /// Connection-mark value.
        ctmark: u32,
        /// Connection mask.
        ctmask: u32,
        /// Packet mask.
        nfmask: u32,
        /// Bits that the value is shifted by; the other way where negative (revision 2).
        #[serde(default)]
        shift: i16,
    },
    /// `REJECT`
    Reject {
        /// IPT_* / IP6T_* reject number.
        with: u32,
        /// ICMPv6.
        v6: bool,
    },
    /// `CT`, `NOTRACK`
    Ct(Box<CtTarget>),
    /// `TPROXY`
    Tproxy {
        /// Mark value and mask.
        mark: (u32, u32),
        /// Address; unspecified: that of the incoming device.
        addr: IpAddr,
        /// Port; 0: unchanged.
        port: u16,
    },
    /// `TCPMSS`: changes only a TCP option; 0xffff clamps to the path MTU.
    Tcpmss(u16),
    /// `NFQUEUE`
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
    },
    /// `SET`: changes sets, or takes a mark from one.
    Set(Box<SetTarget>),
    /// One of those that few rule sets have.
    Rare(Box<RareTarget>),
    /// A target that this program does not know.
    Other {
        /// Name.
        name: String,
        /// Revision.
        revision: u8,
        /// Its structure as the kernel holds it.
        data: Vec<u8>,
    },
}

/// `SET` target (`struct xt_set_info_target_v3`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetTarget {
    /// `--add-set`
    pub add: Option<SetRef>,
    /// `--del-set`
    pub del: Option<SetRef>,
    /// `--map-set`
    pub map: Option<SetRef>,
    /// IPSET_FLAG_*: 1 exist, 0x100 map the mark, 0x200 the priority, 0x400 the queue.
    pub flags: u32,
    /// `--timeout` in seconds; u32::MAX: that of the set.
    pub timeout: u32,
}

/// A set that a target names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetRef {
    /// Index of the set in the kernel.
    pub index: u16,
    /// Name, where it could be asked.
    pub name: Option<String>,
    /// Why it has no name.
    pub unnamed: Option<String>,
    /// For each dimension: true takes the source side.
    pub dims: Vec<bool>,
    /// Negated (`--map-set` only).
    pub invert: bool,
}
