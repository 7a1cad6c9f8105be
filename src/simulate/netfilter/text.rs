//! Rules and set elements in the words of `iptables-save` and `nft list ruleset`.

use super::text_value::quoted;
use super::{header, text_iptables, text_nft, text_target, text_xt};
use crate::model::netfilter::{Backend, Expr, Family, Rule, Table, Verdict};

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
    if let Some(table) = table
        && style(table) == Style::Iptables
        && let Some(text) = text_iptables::rule(rule, table.family)
    {
        return text;
    }
    nft(rule, table).0
}

/// A rule in the words of `nft`, and what of it has no words there.
pub(super) fn nft(rule: &Rule, table: Option<&Table>) -> (String, Vec<String>) {
    let mut words = text_nft::Words::new(table);
    for expr in &rule.exprs {
        match expr {
            Expr::Header(head) => words.push(&text_xt::header(head)),
            Expr::Match(condition) => {
                words.lose("a match of x_tables");
                words.push(&text_xt::condition(condition));
            }
            Expr::Target(target) => {
                words.lose("a target of x_tables");
                words.push(&text_target::target(target));
            }
            other => words.native(other),
        }
    }
    let (mut text, lost) = words.done();
    if let Some(comment) = &rule.comment {
        text = format!("{text} comment {}", quoted(comment));
    }
    (text, lost)
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
    format!("0x{}", hex_bytes(bytes))
}

/// Hexadecimal digits of bytes.
pub(super) fn hex_bytes(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let digit = |half: u8| char::from_digit(u32::from(half), 16).unwrap_or('?');
        text.push(digit(byte >> 4));
        text.push(digit(byte & 15));
        text
    })
}

/// Name of an IP protocol as Debian's `/etc/protocols` has it, or its number.
pub(crate) fn protocol_name(number: u8) -> String {
    let found = PROTOCOLS.iter().find(|(own, _)| *own == number);
    found.map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

const PROTOCOLS: [(u8, &str); 55] = [
    (0, "ip"),
    (1, "icmp"),
    (2, "igmp"),
    (3, "ggp"),
    (4, "ipencap"),
    (5, "st"),
    (6, "tcp"),
    (8, "egp"),
    (9, "igp"),
    (12, "pup"),
    (17, "udp"),
    (20, "hmp"),
    (22, "xns-idp"),
    (27, "rdp"),
    (29, "iso-tp4"),
    (33, "dccp"),
    (36, "xtp"),
    (37, "ddp"),
    (38, "idpr-cmtp"),
    (41, "ipv6"),
    (43, "ipv6-route"),
    (44, "ipv6-frag"),
    (45, "idrp"),
    (46, "rsvp"),
    (47, "gre"),
    (50, "esp"),
    (51, "ah"),
    (57, "skip"),
    (58, "ipv6-icmp"),
    (59, "ipv6-nonxt"),
    (60, "ipv6-opts"),
    (73, "rspf"),
    (81, "vmtp"),
    (88, "eigrp"),
    (89, "ospf"),
    (93, "ax.25"),
    (94, "ipip"),
    (97, "etherip"),
    (98, "encap"),
    (103, "pim"),
    (108, "ipcomp"),
    (112, "vrrp"),
    (115, "l2tp"),
    (124, "isis"),
    (132, "sctp"),
    (133, "fc"),
    (135, "mobility-header"),
    (136, "udplite"),
    (137, "mpls-in-ip"),
    (138, "manet"),
    (139, "hip"),
    (140, "shim6"),
    (141, "wesp"),
    (142, "rohc"),
    (143, "ethernet"),
];

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
