//! What tc may do to packets: filters at the ingress and egress hooks of devices and at root queueing
//! disciplines, and the disciplines that may drop a single packet.
//!
//! Of filters only kinds and names are read; what a filter or program decides stays unknown. Source:
//! RTM_GETQDISC, RTM_GETTFILTER, include/uapi/linux/rtnetlink.h, pkt_cls.h and pkt_sched.h.

use std::collections::BTreeMap;

use super::error::{Error, Result};
use super::netlink::Netlink;
use super::nla::{self, Attrs, Writer};
use crate::model::tc::{Qdisc, QdiscKind};

const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
/// `sizeof(struct tcmsg)`
const HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TC_H_ROOT: u32 = 0xffff_ffff;
const TC_H_INGRESS: u32 = 0xffff_fff1;
/// TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS) and _EGRESS
const INGRESS: (&str, u32) = ("ingress", 0xffff_fff2);
const EGRESS: (&str, u32) = ("egress", 0xffff_fff3);
/// Kind of what is there and can't be decoded.
const UNDECODED: &str = "undecoded";
/// Disciplines that order and pace packets: one that comes alone gets through. Those that drop what no class
/// takes (drr, hfsc, qfq) are none of them.
const HARMLESS: [&str; 21] = [
    "noqueue",
    "mq",
    "mqprio",
    "pfifo_fast",
    "fq",
    "fq_codel",
    "codel",
    "fq_pie",
    "pie",
    "sfq",
    "sfb",
    "cake",
    "cake_mq",
    "red",
    "gred",
    "choke",
    "prio",
    "multiq",
    "htb",
    "dualpi2",
    "ets",
];
/// Of these, the ones that take filters, which choose a class or act.
const CLASSFUL: [&str; 8] = ["prio", "multiq", "htb", "hfsc", "drr", "qfq", "ets", "sfb"];

/// What tc has at one device.
#[derive(Debug, Default)]
pub struct AtDevice {
    /// Filters, each as `HOOK KIND NAME`.
    pub filters: Vec<String>,
    /// Disciplines that may drop a single packet.
    pub qdiscs: Vec<Qdisc>,
}

/// One answer to RTM_GETQDISC.
pub(super) struct Found {
    index: u32,
    handle: u32,
    parent: u32,
    kind: String,
    own: Option<QdiscKind>,
}

/// By device index.
pub fn read(socket: &mut Netlink) -> Result<BTreeMap<u32, AtDevice>> {
    const LIST: &str = "list queueing disciplines";
    let all = socket.dump(
        RTM_GETQDISC,
        &[0; HEADER],
        LIST,
        Vec::new,
        |all, kind, body| {
            if kind == RTM_NEWQDISC {
                all.push(qdisc(body));
            }
        },
    )?;
    let all: Option<Vec<Found>> = all.into_iter().collect();
    let all = all.ok_or_else(|| Error::malformed(LIST, "one of them is cut short"))?;
    let mut devices: BTreeMap<u32, AtDevice> = BTreeMap::new();
    for found in all {
        let clsact = [INGRESS, EGRESS];
        let classful = [("egress root", found.handle)];
        let parents: &[(&str, u32)] = match (found.parent, found.kind.as_str()) {
            (TC_H_INGRESS, "clsact") => &clsact,
            // A plain ingress qdisc gives the same filters for any parent, and has no egress.
            (TC_H_INGRESS, _) => &[INGRESS],
            // Without a number it was made by default, and nobody can have put a filter there.
            (_, kind) if CLASSFUL.contains(&kind) && found.handle != 0 => &classful,
            _ => &[],
        };
        let mut filters = Vec::new();
        for (hook, parent) in parents {
            filters.extend(filters_at(socket, found.index, hook, *parent)?);
        }
        filters.dedup();
        if filters.is_empty() && found.own.is_none() {
            continue;
        }
        let at = devices.entry(found.index).or_default();
        at.filters.extend(filters);
        at.qdiscs.extend(found.own.map(|kind| Qdisc {
            handle: found.handle,
            root: found.parent == TC_H_ROOT,
            kind,
        }));
    }
    Ok(devices)
}

fn filters_at(socket: &mut Netlink, index: u32, hook: &str, parent: u32) -> Result<Vec<String>> {
    let mut header = [0u8; HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[12..16].copy_from_slice(&parent.to_ne_bytes());
    socket.dump(
        RTM_GETTFILTER,
        Writer::new(&header).bytes(),
        "list tc filters",
        Vec::new,
        |filters, kind, body| {
            if kind == RTM_NEWTFILTER {
                filters.extend(filter(hook, body));
            }
        },
    )
}

/// One queueing discipline; `None` without a whole header. One without a kind is there and not known.
pub(super) fn qdisc(body: &[u8]) -> Option<Found> {
    let attrs = Attrs(body.get(HEADER..)?);
    let kind = attrs.find(TCA_KIND).map_or(UNDECODED.to_owned(), nla::text);
    let options = attrs.find(TCA_OPTIONS).unwrap_or_default();
    let parent = nla::u32_at(body, 12)?;
    let other = || Some(QdiscKind::Other(kind.clone()));
    let own = match kind.as_str() {
        _ if parent == TC_H_INGRESS && kind != UNDECODED => None,
        known if HARMLESS.contains(&known) => None,
        "blackhole" => Some(QdiscKind::Blackhole),
        "pfifo" | "bfifo" | "pfifo_head_drop" => fifo(&kind, options),
        "tbf" => tbf(options).map(QdiscKind::Tbf).or_else(other),
        "netem" => match netem_loses(options) {
            Some(true) => Some(QdiscKind::NetemLoss),
            Some(false) => None,
            None => other(),
        },
        _ => other(),
    };
    Some(Found {
        index: nla::u32_at(body, 4)?,
        handle: nla::u32_at(body, 8)?,
        parent,
        kind,
        own,
    })
}

/// What a plain queue has no room for even when it is empty: `struct tc_fifo_qopt`, bytes of `bfifo`, packets
/// of the others (`bfifo_enqueue()`, `pfifo_enqueue()`).
fn fifo(kind: &str, options: &[u8]) -> Option<QdiscKind> {
    let limit = u64::from(nla::u32_at(options, 0)?);
    let most = match (kind, limit) {
        ("bfifo", limit) => limit,
        (_, 0) => 0,
        _ => return None,
    };
    Some(QdiscKind::Fifo(kind.to_owned(), most))
}

/// Largest packet that a token bucket lets through, as `tbf_change()` computes it from `struct
/// tc_tbf_qopt`: times are in ticks of 64 ns.
fn tbf(options: &[u8]) -> Option<u64> {
    const TCA_TBF_PARMS: u16 = 1;
    const TCA_TBF_RATE64: u16 = 4;
    const TCA_TBF_PRATE64: u16 = 5;
    let attrs = Attrs(options);
    let parms = attrs.find(TCA_TBF_PARMS)?;
    // rate and peakrate are `struct tc_ratespec`, whose last word is bytes a second; then limit, buffer, mtu.
    let rate = |word: usize, wide: u16| match attrs.find(wide) {
        Some(bytes) => nla::u64_at(bytes, 0),
        None => nla::u32_at(parms, word).map(u64::from),
    };
    let bytes = |rate: u64, ticks: u32| {
        let bytes = u128::from(rate) * u128::from(ticks) * 64 / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    };
    let burst = bytes(rate(8, TCA_TBF_RATE64)?, nla::u32_at(parms, 28)?);
    let peak = rate(20, TCA_TBF_PRATE64)?;
    if peak == 0 {
        return Some(burst);
    }
    Some(burst.min(bytes(peak, nla::u32_at(parms, 32)?)))
}

/// Whether `netem` loses or damages packets; `struct tc_netem_qopt` stands before the attributes.
fn netem_loses(options: &[u8]) -> Option<bool> {
    const QOPT: usize = 24;
    const TCA_NETEM_CORRUPT: u16 = 4;
    const TCA_NETEM_LOSS: u16 = 5;
    let (limit, loss) = (nla::u32_at(options, 4)?, nla::u32_at(options, 8)?);
    let attrs = Attrs(options.get(QOPT..)?);
    let corrupt = attrs.find(TCA_NETEM_CORRUPT);
    let corrupt = corrupt.map_or(Some(0), |bytes| nla::u32_at(bytes, 0))?;
    let by_state = attrs.find(TCA_NETEM_LOSS).is_some();
    Some(limit == 0 || loss != 0 || corrupt != 0 || by_state)
}

/// One filter. A filter's chain is also announced by itself, without a handle and options: `None`.
pub(super) fn filter(hook: &str, body: &[u8]) -> Option<String> {
    let (Some(handle), Some(attrs)) = (nla::u32_at(body, 8), body.get(HEADER..).map(Attrs)) else {
        return Some(format!("{hook} {UNDECODED}"));
    };
    let kind = attrs.find(TCA_KIND).map_or(UNDECODED.to_owned(), nla::text);
    let options = attrs.find(TCA_OPTIONS);
    if handle == 0 && options.is_none_or(<[u8]>::is_empty) {
        return None;
    }
    let name = (kind == "bpf")
        .then(|| options.and_then(|options| Attrs(options).find(TCA_BPF_NAME)))
        .flatten()
        .map(nla::text);
    Some(match name {
        Some(name) => format!("{hook} {kind} {name}"),
        None => format!("{hook} {kind}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(index: u32, parent: u32, kind: &str, options: &[u8]) -> Vec<u8> {
        let mut header = [0u8; HEADER];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[8..12].copy_from_slice(&0x1_0000u32.to_ne_bytes());
        header[12..16].copy_from_slice(&parent.to_ne_bytes());
        let mut writer = Writer::new(&header);
        writer.put_text(TCA_KIND, kind).put(TCA_OPTIONS, options);
        writer.bytes().to_vec()
    }

    fn own(kind: &str, options: &[u8]) -> Option<QdiscKind> {
        let found = qdisc(&body(7, TC_H_ROOT, kind, options)).expect("a qdisc");
        assert_eq!((found.index, found.handle), (7, 0x1_0000));
        found.own
    }

    /// `tc qdisc add dev d0 root handle 1: tbf rate 1mbit burst 1500 latency 10ms`, from the recorded answer.
    #[test]
    fn a_bucket_lets_its_burst_through() {
        let line = include_str!("hostile.txt").lines();
        let mut tbf = line.filter(|line| line.starts_with("qdisc 36") && line.contains("74626600"));
        let hex = tbf
            .next()
            .expect("the answer")
            .split(' ')
            .nth(2)
            .expect("its bytes");
        let bytes = (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16));
        let bytes: Vec<u8> = bytes.map(|byte| byte.expect("a byte")).collect();
        assert_eq!(
            qdisc(&bytes).and_then(|found| found.own),
            Some(QdiscKind::Tbf(1500))
        );
    }

    /// As `netem_dump()` writes: `struct tc_netem_qopt` (latency, limit, loss, gap, duplicate, jitter), then
    /// attributes; a corruption of 0 is written, too.
    #[test]
    fn netem_counts_where_it_loses() {
        let netem = |limit: u32, loss: u32, attributes: &[(u16, &[u8])]| {
            let words = [0, limit, loss, 0, 0, 0].map(u32::to_ne_bytes);
            let mut writer = Writer::new(&words.concat());
            for (kind, payload) in attributes {
                writer.put(*kind, payload);
            }
            own("netem", writer.bytes())
        };
        let clean: (u16, &[u8]) = (4, &[0; 8]);
        assert_eq!(netem(1000, 0, &[clean]), None);
        let loses = Some(QdiscKind::NetemLoss);
        assert_eq!(netem(1000, 42, &[clean]), loses);
        assert_eq!(netem(1000, 0, &[(4, &[1, 0, 0, 0, 0, 0, 0, 0])]), loses);
        assert_eq!(netem(1000, 0, &[clean, (5, &[0; 8])]), loses);
        assert_eq!(netem(0, 0, &[clean]), loses);
        let cut = own("netem", &[0; 8]);
        assert_eq!(cut, Some(QdiscKind::Other("netem".to_owned())));
    }

    #[test]
    fn queues_are_harmless_and_unknown_kinds_are_not() {
        for kind in HARMLESS {
            assert_eq!(own(kind, &[]), None, "{kind}");
        }
        assert_eq!(own("blackhole", &[]), Some(QdiscKind::Blackhole));
        let fifo = |kind: &str, most| Some(QdiscKind::Fifo(kind.to_owned(), most));
        assert_eq!(own("bfifo", &[10, 0, 0, 0]), fifo("bfifo", 10));
        assert_eq!(own("pfifo", &[10, 0, 0, 0]), None);
        assert_eq!(own("pfifo", &[0, 0, 0, 0]), fifo("pfifo", 0));
        assert_eq!(own("drr", &[]), Some(QdiscKind::Other("drr".to_owned())));
        assert_eq!(own("etf", &[]), Some(QdiscKind::Other("etf".to_owned())));
        let ingress = qdisc(&body(7, TC_H_INGRESS, "clsact", &[])).expect("a qdisc");
        assert_eq!(ingress.own, None);
    }

    #[test]
    fn what_cant_be_decoded_stays() {
        let whole = body(7, TC_H_ROOT, "htb", &[]);
        let nameless = qdisc(&whole[..HEADER]).expect("a qdisc");
        assert_eq!(nameless.own, Some(QdiscKind::Other(UNDECODED.to_owned())));
        assert!(qdisc(&whole[..HEADER - 1]).is_none());
        let filters = [&whole[..HEADER], &whole[..4]].map(|cut| filter("ingress", cut));
        assert!(
            filters
                .iter()
                .all(|found| found.as_deref() == Some("ingress undecoded")),
            "{filters:?}"
        );
    }
}
