//! Sets, maps and their elements in the words of `nft`.

use super::text::{Style, hex, verdict};
use super::text_nft::Words;
use super::text_value::{Held, Show, is_host, quoted, seconds, show, swap, width};
use crate::model::netfilter::{Elements, Set, SetData, SetElem};

/// Types as `nft` numbers them (`enum datatypes`, nftables' own), with their names and how values are shown.
const TYPES: [(u32, &str, Show); 41] = [
    (2, "nf_proto", Show::Family),
    (6, "ll_addr", Show::Mac),
    (7, "ipv4_addr", Show::Addr),
    (8, "ipv6_addr", Show::Addr6),
    (9, "ether_addr", Show::Mac),
    (10, "ether_type", Show::Ethertype),
    (11, "arp_op", Show::ArpOp),
    (12, "inet_proto", Show::Protocol),
    (13, "inet_service", Show::Net),
    (14, "icmp_type", Show::IcmpType),
    (15, "tcp_flag", Show::TcpFlags),
    (16, "dccp_pkttype", Show::Net),
    (17, "mh_type", Show::Net),
    (18, "time", Show::Time),
    (19, "mark", Show::Mark),
    (20, "iface_index", Show::Index),
    (21, "iface_type", Show::DeviceType),
    (22, "realm", Show::Host),
    (23, "classid", Show::Class),
    (24, "uid", Show::Host),
    (25, "gid", Show::Host),
    (26, "ct_state", Show::State),
    (27, "ct_dir", Show::Direction),
    (28, "ct_status", Show::Status),
    (29, "icmpv6_type", Show::Icmp6Type),
    (30, "ct_label", Show::Labels),
    (31, "pkt_type", Show::PacketType),
    (32, "icmp_code", Show::Net),
    (33, "icmpv6_code", Show::Net),
    (34, "icmpx_code", Show::Net),
    (35, "devgroup", Show::Group),
    (36, "dscp", Show::DscpNumber),
    (37, "ecn", Show::Net),
    (38, "fib_addrtype", Show::AddrType),
    (39, "boolean", Show::Present),
    (40, "ct_event", Show::Host),
    (41, "ifname", Show::Name),
    (42, "igmp_type", Show::Net),
    (43, "time", Show::Host),
    (44, "hour", Show::Host),
    (45, "day", Show::Host),
];

/// Bytes of types whose values are shown as plain numbers.
fn plain_width(kind: u32) -> usize {
    match kind {
        13 => 2,
        14 | 16 | 17 | 32..=34 | 37 | 42 | 45 => 1,
        43 => 8,
        _ => 4,
    }
}

/// Types of the fields of a key, first to last.
fn kinds(number: u32) -> Vec<u32> {
    let mut kinds: Vec<u32> = (0..5).map(|at| number >> (6 * at) & 0x3f).collect();
    while kinds.last() == Some(&0) {
        kinds.pop();
    }
    kinds.reverse();
    kinds
}

/// How values of a type are shown.
pub(super) fn show_of(kind: u32) -> Show {
    let found = TYPES.iter().find(|(own, ..)| *own == kind);
    found.map_or(Show::Raw, |(_, _, show)| *show)
}

/// `type` of a declaration; `None`: a type has no name by itself.
fn type_names(number: u32) -> Option<String> {
    let kinds = kinds(number);
    let names: Option<Vec<&str>> = kinds
        .iter()
        .map(|kind| Some(TYPES.iter().find(|(own, ..)| own == kind)?.1))
        .collect();
    names
        .filter(|names| !names.is_empty())
        .map(|names| names.join(" . "))
}

/// Fields of a key whose types nobody told (snapshots of older helpers): words that end in zeros hold a protocol
/// or a port, others an address.
fn guessed(bytes: &[u8]) -> Vec<(usize, usize, Held)> {
    let one = |at, len, show| (at, len, Held::named("", show));
    match bytes.len() {
        1 => return vec![one(0, 1, Show::Protocol)],
        6 => return vec![one(0, 6, Show::Mac)],
        len if len <= 4 || len == 16 => return vec![one(0, len, Show::Raw)],
        _ => {}
    }
    let words = (0..).step_by(4).zip(bytes.chunks(4));
    words
        .map(|(at, word)| match word {
            [_, 0, 0, 0] => one(at, 1, Show::Protocol),
            [_, _, 0, 0] => one(at, 2, Show::Net),
            _ => one(at, 4, Show::Raw),
        })
        .collect()
}

/// Fields of a value: where they begin, how long they are, and how they are shown.
fn fields(set: &Set, number: u32, bytes: &[u8]) -> Vec<(usize, usize, Held)> {
    let len = bytes.len();
    let kinds = kinds(number);
    if kinds.is_empty() {
        return guessed(bytes);
    }
    if kinds.len() < 2 {
        let kind = kinds.first().copied().unwrap_or(0);
        let mut held = Held::named("", show_of(kind));
        if kind == 4 {
            held.show = if set.decl.host_order {
                Show::Host
            } else {
                Show::Net
            };
        }
        return vec![(0, len, held)];
    }
    let mut at = 0;
    let mut fields = Vec::new();
    for (number, kind) in kinds.iter().enumerate() {
        let held = Held::named("", show_of(*kind));
        let told = set
            .field_lens
            .get(number)
            .and_then(|len| usize::try_from(*len).ok());
        let len = told.unwrap_or_else(|| width(held.show).unwrap_or_else(|| plain_width(*kind)));
        fields.push((at, len, held));
        at += len.next_multiple_of(4);
    }
    fields
}

/// Elements with what they lead to, and what could not be said. `by_rule` are the fields of the key as the
/// rule loads them: where each begins, and how it is shown; empty for a set with a name.
pub(super) fn elements(
    set: &Set,
    elements: &[SetElem],
    by_rule: &[(usize, Held)],
) -> (Vec<String>, Vec<String>) {
    let mut lost = Vec::new();
    let first = elements.iter().find(|elem| !elem.catchall);
    let first = first.map_or(&[][..], |elem| elem.key.as_slice());
    let len = first.len();
    let declared = fields(set, set.decl.key_type, first);
    let by_key: Vec<(usize, usize, Held)> = if by_rule.is_empty() {
        declared
    } else {
        let ends = by_rule.iter().skip(1).map(|(at, _)| *at).chain([len]);
        let spans = by_rule.iter().zip(ends).enumerate();
        spans
            .map(|(number, ((at, held), end))| {
                let span = end.saturating_sub(*at);
                // A field of the rule may be shorter than its words.
                let known =
                    width(held.show).or_else(|| declared.get(number).map(|(_, len, _)| *len));
                let held = Held {
                    mask: None,
                    ..held.clone()
                };
                (*at, known.unwrap_or(span).min(span), held)
            })
            .collect()
    };
    let mut sorted: Vec<&SetElem> = elements.iter().filter(|elem| !elem.catchall).collect();
    sorted.sort_by(|a, b| a.key.cmp(&b.key).then(b.interval_end.cmp(&a.interval_end)));
    let mut words = Vec::new();
    for (at, elem) in sorted.iter().enumerate() {
        if elem.interval_end {
            continue;
        }
        let own;
        let fields = if by_rule.is_empty() && set.decl.key_type == 0 {
            own = guessed(&elem.key);
            &own
        } else {
            &by_key
        };
        let one = fields.len() == 1;
        let key = if set.flags.interval && one {
            // The range ends before the next key, whether that begins another or not.
            let last = match &elem.key_end {
                Some(last) => Some(last.clone()),
                None => match sorted.get(at + 1) {
                    Some(next) => before(&next.key),
                    None => Some(vec![0xff; elem.key.len()]),
                },
            };
            fields.first().map_or_else(String::new, |(_, _, held)| {
                interval(held, &elem.key, last.as_deref().unwrap_or(&elem.key))
            })
        } else {
            let end = elem.key_end.as_ref().unwrap_or(&elem.key);
            let parts = fields.iter().map(|(from, len, held)| {
                let part = |bytes: &[u8]| -> Vec<u8> {
                    bytes.iter().skip(*from).take(*len).copied().collect()
                };
                let (first, last) = (part(&elem.key), part(end));
                match first == last {
                    true if matches!(held.show, Show::TcpFlags | Show::State | Show::Status) => {
                        // Between elements stand commas already.
                        show(held, &first).replace(',', " | ")
                    }
                    true => show(held, &first),
                    false => interval(held, &first, &last),
                }
            });
            parts.collect::<Vec<_>>().join(" . ")
        };
        words.push(with_rest(set, elem, &key, &mut lost));
    }
    for elem in elements.iter().filter(|elem| elem.catchall) {
        words.push(with_rest(set, elem, "*", &mut lost));
    }
    (words, lost)
}

/// A range; numbers in host order stand in network order there.
fn interval(held: &Held, first: &[u8], last: &[u8]) -> String {
    let turned = |bytes: &[u8]| {
        if is_host(held.show) && held.swapped == 0 {
            swap(bytes, bytes.len())
        } else {
            bytes.to_vec()
        }
    };
    if held.show == Show::Name {
        return name_interval(first, last);
    }
    let (low, high) = (show(held, &turned(first)), show(held, &turned(last)));
    if low == high {
        return low;
    }
    if matches!(held.show, Show::Addr | Show::Addr6)
        && let Some(len) = prefix_len(first, last)
    {
        return format!("{low}/{len}");
    }
    format!("{low}-{high}")
}

/// A range of names: those that begin alike.
fn name_interval(first: &[u8], last: &[u8]) -> String {
    let held = Held::named("", Show::Name);
    if first == last {
        return show(&held, first);
    }
    let same = first.iter().zip(last).take_while(|(a, b)| a == b).count();
    let start: Vec<u8> = first.iter().take(same).copied().collect();
    show(&held, &start)
}

/// Length of the prefix that a range of addresses is.
fn prefix_len(first: &[u8], last: &[u8]) -> Option<u32> {
    let mut len = 0;
    let mut ended = false;
    for (low, high) in first.iter().zip(last) {
        let differ = low ^ high;
        let same = differ.leading_zeros();
        let tail = 8 - same;
        if ended && differ != 0xff {
            return None;
        }
        if differ != 0 {
            // The bits that differ are all that follow, from all zeros to all ones.
            if differ.count_ones() != tail || low & differ != 0 {
                return None;
            }
            ended = true;
        }
        len += same;
    }
    Some(len)
}

fn with_rest(set: &Set, elem: &SetElem, key: &str, lost: &mut Vec<String>) -> String {
    let mut text = key.to_owned();
    for expr in &elem.exprs {
        let mut words = Words::new(None);
        words.statement(expr);
        let (own, more) = words.done();
        lost.extend(more);
        text = format!("{text} {own}");
    }
    if let Some(timeout) = elem.timeout_ms.filter(|timeout| *timeout != 0) {
        text = format!("{text} timeout {}", seconds(timeout));
    }
    if let Some(expires) = elem.expires_ms.filter(|expires| *expires != 0) {
        text = format!("{text} expires {}", seconds(expires));
    }
    if let Some(comment) = &elem.comment {
        text = format!("{text} comment {}", quoted(comment));
    }
    match &elem.data {
        None => {}
        Some(SetData::Verdict(to)) => text = format!("{text} : {}", verdict(to, Style::Nft)),
        Some(SetData::Value(name)) if set.flags.object => {
            text = format!("{text} : {}", quoted(&String::from_utf8_lossy(name)));
        }
        Some(SetData::Value(value)) => {
            text = format!("{text} : {}", data_text(set, value));
        }
    }
    text
}

/// What a map's element leads to.
fn data_text(set: &Set, value: &[u8]) -> String {
    // Of a range both ends stand there, one behind the other.
    if set.decl.data_interval {
        let (first, last) = value.split_at(value.len() / 2);
        let held = Held::named("", show_of(set.decl.data_type));
        return interval(&held, first, last);
    }
    let parts = fields(set, set.decl.data_type, value);
    let parts = parts.iter().map(|(at, len, held)| {
        let part: Vec<u8> = value.iter().skip(*at).take(*len).copied().collect();
        // What has no type is told by its length.
        match held.show {
            Show::Raw if set.decl.data_type != 0 => hex(&part),
            _ => show(held, &part),
        }
    });
    parts.collect::<Vec<_>>().join(" . ")
}

/// One element.
pub(super) fn element(set: &Set, elem: &SetElem) -> String {
    let (words, _) = elements(set, std::slice::from_ref(elem), &[]);
    words.into_iter().next().unwrap_or_default()
}

/// Whether the types of a set's key and data have names: those that only `typeof` tells have none.
pub(super) fn has_types(set: &Set) -> bool {
    let data = set.flags.map && !set.flags.object && set.data_len != 0;
    type_names(set.decl.key_type).is_some() && (!data || type_names(set.decl.data_type).is_some())
}

/// The declaration of a set or map with a name, line by line, and what could not be said.
pub(super) fn declaration(set: &Set) -> (Vec<String>, Vec<String>) {
    let mut lost = Vec::new();
    let decl = &set.decl;
    let mut named = |number: u32, what: &str| {
        type_names(number).unwrap_or_else(|| {
            lost.push(format!("the type of the {what}, which has no name"));
            format!("type{number}")
        })
    };
    let mut head = format!("type {}", named(decl.key_type, "key"));
    if set.flags.object {
        let object = match decl.object_type {
            1 => "counter",
            2 => "quota",
            3 => "ct helper",
            4 => "limit",
            7 => "ct timeout",
            8 => "secmark",
            9 => "ct expectation",
            10 => "synproxy",
            _ => "object",
        };
        head = format!("{head} : {object}");
    } else if set.flags.map {
        let data = if set.data_len == 0 {
            "verdict".to_owned()
        } else {
            named(decl.data_type, "data")
        };
        head = format!("{head} : {data}");
    }
    let mut lines = vec![head];
    let flags = [
        (set.flags.constant, "constant"),
        (set.flags.interval, "interval"),
        (set.flags.timeout, "timeout"),
        (set.flags.dynamic, "dynamic"),
    ];
    let flags: Vec<&str> = flags
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, word)| *word)
        .collect();
    if !flags.is_empty() {
        lines.push(format!("flags {}", flags.join(",")));
    }
    for expr in &decl.exprs {
        let mut words = Words::new(None);
        words.statement(expr);
        let (text, more) = words.done();
        lost.extend(more);
        // In a declaration a counter has no numbers.
        let text = text.split(" packets 0 bytes 0").next().unwrap_or_default();
        lines.push(text.to_owned());
    }
    if decl.timeout_ms != 0 {
        lines.push(format!("timeout {}", seconds(decl.timeout_ms)));
    }
    if decl.gc_interval_ms != 0 {
        lines.push(format!(
            "gc-interval {}",
            seconds(u64::from(decl.gc_interval_ms))
        ));
    }
    if decl.policy == Some(1) {
        lines.push("policy memory".to_owned());
    }
    if decl.auto_merge {
        lines.push("auto-merge".to_owned());
    }
    if decl.size != 0 {
        lines.push(format!("size {}", decl.size));
    }
    if let Some(comment) = &decl.comment {
        lines.push(format!("comment {}", quoted(comment)));
    }
    match &set.elements {
        Elements::Known(own) if own.iter().all(|elem| elem.interval_end) => {}
        Elements::Known(own) => {
            let (words, more) = elements(set, own, &[]);
            lost.extend(more);
            lines.push(format!("elements = {{ {} }}", words.join(",\n    ")));
        }
        Elements::Missing(why) => lost.push(format!("its elements: {why}")),
        Elements::NotAsked | Elements::ByKey(_) => {
            lost.push("its elements, which were not read".to_owned());
        }
    }
    (lines, lost)
}

/// The number before, in network order.
fn before(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = bytes.to_vec();
    for byte in bytes.iter_mut().rev() {
        if let Some(less) = byte.checked_sub(1) {
            *byte = less;
            return Some(bytes);
        }
        *byte = u8::MAX;
    }
    None
}
