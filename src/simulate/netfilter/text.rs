//! Rules and set elements in the words of `iptables-save` and `nft list ruleset`.

use super::{header, text_nft, text_target, text_xt};
use crate::model::netfilter::{Backend, Expr, Family, Rule, Set, SetData, SetElem, Table, Verdict};

/// Whose words are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// `nft`
    Nft,
    /// `iptables-save`
    Iptables,
}

/// Words for the rules of a table: those of the tool that most likely made it.
fn style(table: &Table) -> Style {
    let names = ["filter", "nat", "mangle", "raw", "security"];
    let ip = matches!(table.family, Family::Ip | Family::Ip6);
    if table.backend == Backend::Legacy || ip && names.contains(&table.name.as_str()) {
        Style::Iptables
    } else {
        Style::Nft
    }
}

/// A rule on one line, as the tool prints it that most likely made its table.
pub(super) fn rule(rule: &Rule, table: Option<&Table>) -> String {
    let style = table.map_or(Style::Nft, style);
    let mut words = text_nft::Words::new(style, table);
    for expr in &rule.exprs {
        match expr {
            Expr::Header(head) => words.push(&text_xt::header(head)),
            Expr::Match(condition) => words.push(&text_xt::condition(condition)),
            Expr::Target(target) => words.push(&text_target::target(target)),
            other => words.native(other),
        }
    }
    let mut text = words.done();
    if style == Style::Nft
        && let Some(comment) = &rule.comment
    {
        text = format!("{text} comment \"{comment}\"");
    }
    text
}

/// A verdict; in `iptables-save` words with `-j` or `-g`.
pub(super) fn verdict(verdict: &Verdict, style: Style) -> String {
    let (xt, nft) = match verdict {
        Verdict::Accept => ("-j ACCEPT".to_owned(), "accept".to_owned()),
        Verdict::Drop => ("-j DROP".to_owned(), "drop".to_owned()),
        Verdict::Continue => (String::new(), "continue".to_owned()),
        Verdict::Return => ("-j RETURN".to_owned(), "return".to_owned()),
        Verdict::Jump(chain) => (format!("-j {chain}"), format!("jump {chain}")),
        Verdict::Goto(chain) => (format!("-g {chain}"), format!("goto {chain}")),
        Verdict::Queue(num) => (
            format!("-j NFQUEUE --queue-num {num}"),
            format!("queue to {num}"),
        ),
        Verdict::Stolen => ("-j STOLEN".to_owned(), "stolen".to_owned()),
        Verdict::Other(code) => (format!("-j verdict:{code}"), format!("verdict {code}")),
    };
    match style {
        Style::Iptables => xt,
        Style::Nft => nft,
    }
}

/// An element. Types of keys are not known, so that they are told by their lengths.
pub(super) fn element(set: &Set, elem: &SetElem) -> String {
    let mut text = match &elem.key_end {
        _ if elem.catchall => "*".to_owned(),
        Some(end) if *end != elem.key => {
            format!("{}-{}", key(set, &elem.key), key(set, end))
        }
        _ => key(set, &elem.key),
    };
    match &elem.data {
        None => {}
        Some(SetData::Verdict(to)) => {
            text = format!("{text} : {}", verdict(to, Style::Nft));
        }
        Some(SetData::Value(value)) => text = format!("{text} : {}", key_text(value)),
    }
    if let Some(comment) = &elem.comment {
        text = format!("{text} comment \"{comment}\"");
    }
    text
}

fn key(set: &Set, bytes: &[u8]) -> String {
    let lens: Vec<usize> = if set.field_lens.len() > 1 {
        let lens = set.field_lens.iter();
        lens.map(|len| usize::try_from(*len).unwrap_or(4)).collect()
    } else {
        match bytes.len() {
            len if len > 4 && len != 6 && len != 16 => guess_fields(bytes),
            len => vec![len],
        }
    };
    let mut at = 0;
    let mut fields = Vec::new();
    for len in lens {
        let field: Vec<u8> = bytes.iter().skip(at).take(len).copied().collect();
        fields.push(key_text(&field));
        at += len.next_multiple_of(4);
    }
    fields.join(" . ")
}

/// Lengths of the fields of a concatenation whose description is not kept: words that end in zeros
/// hold a protocol or a port, others an address.
fn guess_fields(bytes: &[u8]) -> Vec<usize> {
    let words = bytes.chunks(4);
    words
        .map(|word| match word {
            [_, 0, 0, 0] => 1,
            [_, _, 0, 0] => 2,
            _ => 4,
        })
        .collect()
}

/// A field of a key as the type that its length suggests: one byte is a protocol.
pub(super) fn key_text(bytes: &[u8]) -> String {
    match *bytes {
        [one] => protocol_name(one),
        ref other => data(other),
    }
}

/// Bytes as the type that their length suggests.
pub(super) fn data(bytes: &[u8]) -> String {
    match *bytes {
        [one] => one.to_string(),
        [a, b] => u16::from_be_bytes([a, b]).to_string(),
        [a, b, 0, 0] if b == 0 || a < 4 => u16::from_le_bytes([a, b]).to_string(),
        [_, _, _, _] => header::addr_from(bytes).map_or_else(String::new, |addr| addr.to_string()),
        [ref addr @ .., high, low, 0, 0] if addr.len() == 4 => {
            let port = u16::from_be_bytes([high, low]);
            let addr = header::addr_from(addr);
            addr.map_or_else(String::new, |addr| format!("{addr} . {port}"))
        }
        ref long if long.len() == 16 => {
            let name: Vec<u8> = long.iter().copied().take_while(|b| *b != 0).collect();
            if !name.is_empty() && name.len() < 16 && name.iter().all(u8::is_ascii_graphic) {
                return String::from_utf8_lossy(&name).into_owned();
            }
            header::addr_from(long).map_or_else(String::new, |addr| addr.to_string())
        }
        ref other => hex(other),
    }
}

/// Bytes in hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("0x".to_owned(), |mut text, byte| {
        let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('?');
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
        text
    })
}

/// Name of an IP protocol, or its number.
pub(crate) fn protocol_name(number: u8) -> String {
    match number {
        1 => "icmp",
        2 => "igmp",
        4 => "ipencap",
        6 => "tcp",
        17 => "udp",
        47 => "gre",
        50 => "esp",
        58 => "icmpv6",
        89 => "ospf",
        132 => "sctp",
        other => return other.to_string(),
    }
    .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_that_is_inverted_reads_over() {
        let text = |inverted| {
            let exprs = vec![Expr::Quota {
                inverted,
                bytes: 100,
                consumed: 0,
            }];
            let quota = Rule {
                handle: 1,
                exprs,
                comment: None,
            };
            rule(&quota, None)
        };
        assert_eq!(text(true), "quota over 100 bytes");
        assert_eq!(text(false), "quota 100 bytes");
    }
}
