//! x_tables targets that few rule sets have, from the structures the kernel holds.
//!
//! Source: include/uapi/linux/netfilter/xt_*.h, netfilter_ipv4/ipt_*.h, netfilter_ipv6/ip6t_NPT.h (v6.1
//! headers). Numbers are in host order unless the header says `__be`.

use std::net::Ipv6Addr;

use super::xt_match::inet_addr;
use crate::collect::nla::{text, u16_at, u32_at};
use crate::model::MacAddr;
use crate::model::xtables::RareTarget;

/// Decodes a target; `None`: its name, revision or size is not known. `v6`: it stands in a table of IPv6.
pub fn decode(name: &str, revision: u8, data: &[u8], v6: bool) -> Option<RareTarget> {
    let byte = |at: usize| data.get(at).copied();
    let half = |at: usize| u16_at(data, at);
    let word = |at: usize| u32_at(data, at);
    Some(match (name, revision) {
        ("AUDIT", 0) => RareTarget::Audit(byte(0)?),
        ("CHECKSUM", 0) => RareTarget::Checksum(byte(0)?),
        ("CLASSIFY", 0) => RareTarget::Classify(word(0)?),
        ("CLUSTERIP", 0) => {
            let count = usize::from(half(12)?);
            let nodes: Option<Vec<_>> = data
                .get(14..46)?
                .chunks(2)
                .take(count)
                .map(|node| u16_at(node, 0))
                .collect();
            RareTarget::Clusterip {
                flags: word(0)?,
                mac: MacAddr(*data.get(4..)?.first_chunk()?),
                total: half(10)?,
                local: nodes?,
                mode: word(48)?,
                seed: word(52)?,
            }
        }
        ("CONNSECMARK", 0) => RareTarget::Connsecmark(byte(0)?),
        ("DSCP", 0) => RareTarget::Dscp(byte(0)?),
        ("ECN", 0) => RareTarget::Ecn {
            operation: byte(0)?,
            ect: byte(1)?,
            tcp: byte(2)? & 3,
        },
        ("HMARK", 0) => RareTarget::Hmark {
            masks: (inet_addr(data, 0, v6)?, inet_addr(data, 16, v6)?),
            port_masks: (half(32)?, half(34)?),
            ports: (half(36)?, half(38)?),
            flags: word(40)?,
            protocol: half(44)?,
            seed: word(48)?,
            modulus: word(52)?,
            offset: word(56)?,
        },
        ("IDLETIMER", 0 | 1) => RareTarget::Idletimer {
            timeout: word(0)?,
            label: text(data.get(4..32)?),
            alarm: revision == 1 && byte(33)? & 1 != 0,
        },
        ("LED", 0) => RareTarget::Led {
            id: {
                let id = text(data.get(..27)?);
                id.strip_prefix("netfilter-")
                    .map(str::to_owned)
                    .unwrap_or(id)
            },
            always_blink: byte(27)? != 0,
            delay: word(28)?.cast_signed(),
        },
        ("LOG", 0) => RareTarget::Log {
            level: byte(0)?,
            flags: byte(1)?,
            prefix: text(data.get(2..32)?),
        },
        ("NFLOG", 0) => RareTarget::Nflog {
            len: word(0)?,
            group: half(4)?,
            threshold: half(6)?,
            flags: half(8)?,
            prefix: text(data.get(12..76)?),
        },
        ("DNPT" | "SNPT", 0) => {
            let addr = |at: usize| Some(Ipv6Addr::from(*data.get(at..)?.first_chunk::<16>()?));
            RareTarget::Npt {
                destination: name == "DNPT",
                from: (addr(0)?, byte(32)?),
                to: (addr(16)?, byte(33)?),
            }
        }
        ("RATEEST", 0) => RareTarget::Rateest {
            name: text(data.get(..16)?),
            interval: byte(16)?.cast_signed(),
            ewma: byte(17)?,
        },
        ("SECMARK", 0) => RareTarget::Secmark {
            mode: byte(0)?,
            context: text(data.get(8..264)?),
        },
        ("SECMARK", 1) => RareTarget::Secmark {
            mode: byte(0)?,
            context: text(data.get(1..257)?),
        },
        ("SYNPROXY", 0) => RareTarget::Synproxy {
            options: byte(0)?,
            wscale: byte(1)?,
            mss: half(2)?,
        },
        ("TCPOPTSTRIP", 0) => {
            let bits = data.get(..32)?.chunks(4).map(|bits| u32_at(bits, 0));
            let words: Option<Vec<u32>> = bits.collect();
            let words = words?;
            let set = |number: &u8| {
                let word = words.get(usize::from(*number >> 5)).copied();
                word.is_some_and(|word| word >> (*number & 31) & 1 == 1)
            };
            RareTarget::Tcpoptstrip((0..=u8::MAX).filter(set).collect())
        }
        ("TEE", 1) => {
            let oif = text(data.get(16..32)?);
            RareTarget::Tee {
                gateway: inet_addr(data, 0, v6)?,
                oif: (!oif.is_empty()).then_some(oif),
            }
        }
        ("TOS", 1) => RareTarget::Tos {
            value: byte(0)?,
            mask: byte(1)?,
        },
        ("TRACE", 0) => RareTarget::Trace,
        ("TTL" | "HL", 0) => RareTarget::Ttl {
            mode: byte(0)?,
            value: byte(1)?,
            v6: name == "HL",
        },
        _ => return None,
    })
}
