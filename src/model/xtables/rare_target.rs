//! x_tables targets that few rule sets have. In a [`Box`](super::XtTarget::Rare), so that the others stay small.
//!
//! Source: include/uapi/linux/netfilter/xt_*.h, netfilter_ipv4/ipt_*.h, netfilter_ipv6/ip6t_*.h (v6.12).

use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::model::MacAddr;

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RareTarget {
    /// `AUDIT`: 0 accept, 1 drop, 2 reject is what the record says; the packet goes on.
    Audit(u8),
    /// `CHECKSUM`: 1 fills it in.
    Checksum(u8),
    /// `CLASSIFY`: priority, major number in the upper half.
    Classify(u32),
    /// `CLUSTERIP`: nodes share one address.
    Clusterip {
        /// 1 makes the configuration.
        flags: u32,
        /// Shared link-layer address.
        mac: MacAddr,
        /// Nodes.
        total: u16,
        /// Those that are this one.
        local: Vec<u16>,
        /// 0 source, 1 and source port, 2 and destination port.
        mode: u32,
        /// Seed.
        seed: u32,
    },
    /// `CONNSECMARK`: 1 save, 2 restore.
    Connsecmark(u8),
    /// `DSCP`: the six bits.
    Dscp(u8),
    /// `ECN`
    Ecn {
        /// 1 sets the two bits of the IP header, 0x10 ECE, 0x20 CWR.
        operation: u8,
        /// The two bits.
        ect: u8,
        /// Bit 0 ECE, bit 1 CWR.
        tcp: u8,
    },
    /// `HMARK`: the mark becomes a hash of the flow.
    Hmark {
        /// Masks of source and destination.
        masks: (IpAddr, IpAddr),
        /// Masks of the ports, or of the index.
        port_masks: (u16, u16),
        /// Ports that are set.
        ports: (u16, u16),
        /// Bits 1 << XT_HMARK_*.
        flags: u32,
        /// Protocol mask.
        protocol: u16,
        /// Seed.
        seed: u32,
        /// Results are `offset` to `offset + modulus - 1`.
        modulus: u32,
        /// First result.
        offset: u32,
    },
    /// `IDLETIMER`
    Idletimer {
        /// Seconds.
        timeout: u32,
        /// Name.
        label: String,
        /// Wakes the machine.
        alarm: bool,
    },
    /// `LED`
    Led {
        /// Trigger, without `netfilter-`.
        id: String,
        /// Milliseconds it stays on; -1 for ever.
        delay: i32,
        /// Blinks though it is on.
        always_blink: bool,
    },
    /// `LOG`
    Log {
        /// Syslog level.
        level: u8,
        /// XT_LOG_*: 1 sequence, 2 TCP options, 4 IP options, 8 uid, 0x20 link layer.
        flags: u8,
        /// Text before it.
        prefix: String,
    },
    /// `NFLOG`
    Nflog {
        /// Bytes of the packet.
        len: u32,
        /// Group.
        group: u16,
        /// Packets sent at once.
        threshold: u16,
        /// 1: `len` counts.
        flags: u16,
        /// Text before it.
        prefix: String,
    },
    /// `DNPT`, `SNPT`: the prefix of the destination or source is another's, without a memory.
    Npt {
        /// Of the destination.
        destination: bool,
        /// Prefix that is replaced, and its length.
        from: (Ipv6Addr, u8),
        /// Prefix that replaces it.
        to: (Ipv6Addr, u8),
    },
    /// `RATEEST`: feeds an estimator.
    Rateest {
        /// Name.
        name: String,
        /// 250 ms << (interval + 2).
        interval: i8,
        /// Logarithm of the time constant in intervals.
        ewma: u8,
    },
    /// `SECMARK`
    Secmark {
        /// 1 SELinux.
        mode: u8,
        /// Context.
        context: String,
    },
    /// `SYNPROXY`: answers in place of the server.
    Synproxy {
        /// NF_SYNPROXY_OPT_*: 1 mss, 2 window scale, 4 sack, 8 timestamp, 0x10 ecn.
        options: u8,
        /// Window scale.
        wscale: u8,
        /// Segment size.
        mss: u16,
    },
    /// `TCPOPTSTRIP`: options by number.
    Tcpoptstrip(Vec<u8>),
    /// `TEE`: a copy goes there.
    Tee {
        /// Gateway.
        gateway: IpAddr,
        /// Device.
        oif: Option<String>,
    },
    /// `TOS`: `tos = (tos & !mask) ^ value`.
    Tos {
        /// Value.
        value: u8,
        /// Mask.
        mask: u8,
    },
    /// `TRACE`
    Trace,
    /// `TTL`, `HL`: 0 set, 1 more, 2 less.
    Ttl {
        /// How.
        mode: u8,
        /// By or to how much.
        value: u8,
        /// `HL`
        v6: bool,
    },
}

/// `CT` (`struct xt_ct_target_info_v1`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CtTarget {
    /// XT_CT_*: 1 not tracked, 2 written as `NOTRACK`, 4 and 8 the zone of one direction, 0x10 the zone is the mark.
    pub flags: u16,
    /// Zone.
    pub zone: u16,
    /// Bits 1 << IPCT_* of events that are told; 0 all.
    pub events: u32,
    /// Likewise of expectations.
    pub expectation_events: u32,
    /// Helper; empty: none.
    pub helper: String,
    /// Timeout policy; empty: none.
    pub timeout: String,
}

impl CtTarget {
    /// Whether packets are not tracked.
    pub fn notrack(&self) -> bool {
        self.flags & 1 != 0
    }

    /// Directions, original and reply, that the zone is for (`xt_ct_flags_to_dir()`).
    pub fn directions(&self) -> (bool, bool) {
        match self.flags & 0xc {
            4 => (true, false),
            8 => (false, true),
            _ => (true, true),
        }
    }

    /// Whether the zone is the packet's mark.
    pub fn zone_is_mark(&self) -> bool {
        self.flags & 0x10 != 0
    }
}
