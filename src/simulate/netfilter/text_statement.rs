//! Native nf_tables expressions that do something, in the words of `nft`.

use super::text_field::{ct, exthdr, meta, reject};
use super::text_nft::Words;
use super::text_value::{Show, nat_flags, quoted, seconds};
use crate::model::conntrack::TCP_STATES;
use crate::model::netfilter::{CtKey, Expr, Family, Log, ObjectState, Reg, Verdict};

impl Words<'_> {
    pub(super) fn statement(&mut self, expr: &Expr) {
        if let Expr::Reject { kind: 0, .. } = expr {
            self.implies_family();
        }
        let text = match expr {
            Expr::Verdict(Verdict::Continue) => "continue".to_owned(),
            Expr::Verdict(to) => self.verdict(to),
            Expr::MetaSet { key, sreg } => {
                let (name, show) = meta(*key);
                format!("{name} set {}", self.value(*sreg, show))
            }
            Expr::CtSet { key, sreg, dir } => {
                let (name, show) = ct(*key);
                let side = match dir {
                    Some(0) => "original ",
                    Some(1) => "reply ",
                    _ => "",
                };
                if matches!(key, CtKey::Eventmask | CtKey::Labels | CtKey::Other(_)) {
                    self.lose(&format!("ct {name} set"));
                }
                format!("ct {side}{name} set {}", self.value(*sreg, show))
            }
            Expr::PayloadSet {
                base,
                offset,
                len,
                sreg,
            } => {
                let (name, show) = self.payload_name(*base, *offset, *len);
                format!("{name} set {}", self.value(*sreg, show))
            }
            Expr::ExthdrSet { place, sreg } => {
                let (name, show) = exthdr(place, false);
                match sreg {
                    Some(sreg) => format!("{name} set {}", self.value(*sreg, show)),
                    None => format!("reset {}", exthdr(place, true).0),
                }
            }
            Expr::Dynset {
                set,
                sreg,
                op,
                data,
                timeout_ms,
                exprs,
            } => {
                let word = match op {
                    0 => "add",
                    2 => "delete",
                    _ => "update",
                };
                let mut inside = self.key(*sreg, self.key_len(set));
                if let Some(timeout) = timeout_ms.filter(|timeout| *timeout != 0) {
                    inside = format!("{inside} timeout {}", seconds(timeout));
                }
                for expr in exprs {
                    let mut own = Words::new(self.table);
                    own.statement(expr);
                    let (text, lost) = own.done();
                    self.lost.extend(lost);
                    inside = format!("{inside} {text}");
                }
                if let Some(data) = data {
                    let shown = self.data_of(set, *data);
                    inside = format!("{inside} : {shown}");
                }
                format!("{word} @{set} {{ {inside} }}")
            }
            Expr::Nat {
                source,
                v6,
                addr_min,
                addr_max,
                proto_min,
                proto_max,
                flags,
            } => {
                let kind = if *source { "snat" } else { "dnat" };
                let inet = self.table.is_some_and(|table| table.family == Family::Inet);
                let family = match (inet && addr_min.is_some(), *v6) {
                    (false, _) => "",
                    (true, false) => " ip",
                    (true, true) => " ip6",
                };
                // NF_NAT_RANGE_NETMAP
                let prefix = if flags & 64 != 0 { " prefix" } else { "" };
                let to = self.to((*addr_min, *addr_max), (*proto_min, *proto_max));
                format!("{kind}{family}{prefix}{to}{}", nat_flags(*flags))
            }
            Expr::Masq {
                proto_min,
                proto_max,
                flags,
            } => format!(
                "masquerade{}{}",
                self.to((None, None), (*proto_min, *proto_max)),
                nat_flags(*flags)
            ),
            Expr::Redir {
                proto_min,
                proto_max,
                flags,
            } => format!(
                "redirect{}{}",
                self.to((None, None), (*proto_min, *proto_max)),
                nat_flags(*flags)
            ),
            Expr::Reject { kind, code } => reject(*kind, *code, self.network),
            Expr::Tproxy { family, addr, port } => {
                let inet = self.table.is_some_and(|table| table.family == Family::Inet);
                let word = match (inet, family) {
                    (true, 2) => " ip",
                    (true, 10) => " ip6",
                    _ => "",
                };
                format!("tproxy{word}{}", self.to((*addr, None), (*port, None)))
            }
            Expr::Limit {
                rate,
                unit,
                burst,
                bytes,
                inverted,
            } => limit(*rate, *unit, *burst, *bytes, *inverted),
            Expr::Connlimit { count, inverted } => {
                let over = if *inverted { "over " } else { "" };
                format!("ct count {over}{count}")
            }
            Expr::Quota {
                inverted,
                bytes,
                consumed,
            } => quota(*bytes, *consumed, *inverted),
            Expr::Log(own) => log(own),
            Expr::Queue {
                num,
                total,
                bypass,
                fanout,
                sreg,
            } => {
                let flags = match (bypass, fanout) {
                    (true, true) => " flags bypass,fanout",
                    (true, false) => " flags bypass",
                    (false, true) => " flags fanout",
                    (false, false) => "",
                };
                let to = match (sreg, total) {
                    (Some(sreg), _) => self.value(*sreg, Show::Net),
                    (None, 0 | 1) => num.to_string(),
                    (None, total) => format!("{num}-{}", num.saturating_add(total - 1)),
                };
                format!("queue{flags} to {to}")
            }
            Expr::Notrack => "notrack".to_owned(),
            Expr::Objref { name, kind } => {
                let word = self.object_word(*kind);
                format!("{word} \"{name}\"")
            }
            Expr::ObjrefMap { set, sreg } => {
                let found = self.table.and_then(|table| table.sets.get(set));
                let kind = found.map_or(0, |set| set.decl.object_type);
                let word = self.object_word(kind);
                let key = self.key(*sreg, self.key_len(set));
                let members = self.members(set, *sreg);
                format!("{word} {key} map {members}")
            }
            Expr::FlowOffload(table) => format!("flow add @{table}"),
            Expr::Last(None) => "last".to_owned(),
            Expr::Last(Some(used)) => format!("last used {} ago", seconds(*used)),
            Expr::Synproxy { mss, wscale, flags } => synproxy(*mss, *wscale, *flags),
            Expr::Dup { addr, dev } => {
                let addr = addr.map(|reg| self.to((Some(reg), None), (None, None)));
                let dev = dev.map(|reg| self.value(reg, Show::Index));
                match (addr, dev) {
                    (Some(addr), Some(dev)) => format!("dup{addr} device {dev}"),
                    (Some(addr), None) => format!("dup{addr}"),
                    (None, dev) => format!("dup to {}", dev.unwrap_or_default()),
                }
            }
            Expr::Fwd { dev, addr, family } => self.fwd(*dev, *addr, *family),
            Expr::Counter(count) => {
                format!("counter packets {} bytes {}", count.packets, count.bytes)
            }
            other => {
                self.lose(&format!("expression {}", other.name()));
                other.name().to_owned()
            }
        };
        self.push(&text);
    }

    fn fwd(&mut self, dev: Reg, addr: Option<Reg>, family: u32) -> String {
        let dev = self.value(dev, Show::Index);
        match addr {
            None => format!("fwd to {dev}"),
            Some(reg) => {
                let word = if family == 10 { "ip6" } else { "ip" };
                let to = self.to((Some(reg), None), (None, None));
                format!("fwd {word}{to} device {dev}")
            }
        }
    }

    /// What a map's element gets, by the type of the map's data.
    fn data_of(&mut self, set: &str, reg: Reg) -> String {
        let kind = self.table.and_then(|table| table.sets.get(set));
        let kind = kind.map_or(0, |set| set.decl.data_type);
        self.value(reg, super::text_set::show_of(kind))
    }

    fn object_word(&mut self, kind: u32) -> &'static str {
        match kind {
            1 => "counter name",
            2 => "quota name",
            3 => "ct helper set",
            4 => "limit name",
            5 => "ct count name",
            7 => "ct timeout set",
            8 => "meta secmark set",
            9 => "ct expectation set",
            10 => "synproxy name",
            _ => {
                self.lose("an object whose type is not known");
                "object"
            }
        }
    }
}

/// A number of bytes in the largest unit that it is whole in.
fn in_unit(bytes: u64) -> (u64, &'static str) {
    match bytes {
        n if n > 0 && n % (1 << 20) == 0 => (n >> 20, "mbytes"),
        n if n > 0 && n % (1 << 10) == 0 => (n >> 10, "kbytes"),
        n => (n, "bytes"),
    }
}

/// `limit rate`
pub(super) fn limit(rate: u64, unit: u64, burst: u32, bytes: bool, inverted: bool) -> String {
    let over = if inverted { "over " } else { "" };
    let per = match unit {
        1 => "second".to_owned(),
        60 => "minute".to_owned(),
        3_600 => "hour".to_owned(),
        86_400 => "day".to_owned(),
        604_800 => "week".to_owned(),
        other => format!("{other} seconds"),
    };
    if bytes {
        let (rate, word) = in_unit(rate);
        let burst = match burst {
            0 => String::new(),
            burst => {
                let (burst, word) = in_unit(u64::from(burst));
                format!(" burst {burst} {word}")
            }
        };
        return format!("limit rate {over}{rate} {word}/{per}{burst}");
    }
    let burst = match burst {
        0 | 5 => String::new(),
        burst => format!(" burst {burst} packets"),
    };
    format!("limit rate {over}{rate}/{per}{burst}")
}

/// `quota`
pub(super) fn quota(bytes: u64, consumed: u64, inverted: bool) -> String {
    let over = if inverted { "over " } else { "" };
    let used = match consumed {
        0 => String::new(),
        used => {
            let (used, word) = in_unit(used);
            format!(" used {used} {word}")
        }
    };
    let (bytes, word) = in_unit(bytes);
    format!("quota {over}{bytes} {word}{used}")
}

/// `synproxy`
pub(super) fn synproxy(mss: u16, wscale: u8, flags: u32) -> String {
    let mut text = "synproxy".to_owned();
    for (bit, words) in [
        (1, format!(" mss {mss}")),
        (2, format!(" wscale {wscale}")),
        (8, " timestamp".to_owned()),
        (4, " sack-perm".to_owned()),
    ] {
        if flags & bit != 0 {
            text.push_str(&words);
        }
    }
    text
}

fn log(log: &Log) -> String {
    let mut text = "log".to_owned();
    if !log.prefix.is_empty() {
        text = format!("{text} prefix {}", quoted(&log.prefix));
    }
    if let Some(group) = log.group {
        text = format!("{text} group {group}");
    }
    if let Some(len) = log.snaplen.filter(|len| *len != 0) {
        text = format!("{text} snaplen {len}");
    }
    if let Some(threshold) = log.qthreshold.filter(|threshold| *threshold != 0) {
        text = format!("{text} queue-threshold {threshold}");
    }
    let levels = [
        "emerg", "alert", "crit", "err", "warn", "notice", "info", "debug", "audit",
    ];
    // The fifth is what nobody has to say.
    if let Some(level) = log.level.filter(|level| *level != 4) {
        let name = usize::try_from(level).ok().and_then(|at| levels.get(at));
        text = format!("{text} level {}", name.unwrap_or(&"?"));
    }
    if log.flags & 0x2f == 0x2f {
        return format!("{text} flags all");
    }
    match log.flags & 3 {
        1 => text.push_str(" flags tcp sequence"),
        2 => text.push_str(" flags tcp options"),
        3 => text.push_str(" flags tcp sequence,options"),
        _ => {}
    }
    for (bit, word) in [(4, "ip options"), (8, "skuid"), (0x20, "ether")] {
        if log.flags & bit != 0 {
            text = format!("{text} flags {word}");
        }
    }
    text
}

/// A stateful object's declaration: its kind, and what stands in braces. `None`: `nft` has no words for it.
pub(super) fn object(state: &ObjectState) -> Option<(&'static str, String)> {
    let family = |number: u16| match number {
        10 => "ip6",
        2 => "ip",
        _ => "inet",
    };
    let protocol = super::text::protocol_name;
    Some(match state {
        ObjectState::Counter(count) => (
            "counter",
            format!("packets {} bytes {}", count.packets, count.bytes),
        ),
        ObjectState::Quota {
            bytes,
            consumed,
            inverted,
        } => {
            let text = quota(*bytes, *consumed, *inverted);
            ("quota", text.strip_prefix("quota ")?.to_owned())
        }
        ObjectState::Limit {
            rate,
            unit,
            burst,
            bytes,
            inverted,
        } => {
            let text = limit(*rate, *unit, *burst, *bytes, *inverted);
            ("limit", text.strip_prefix("limit ")?.to_owned())
        }
        ObjectState::Helper {
            helper,
            family: number,
            protocol: number4,
        } => (
            "ct helper",
            format!(
                "type \"{helper}\" protocol {}; l3proto {};",
                protocol(*number4),
                family(*number)
            ),
        ),
        ObjectState::Timeout {
            family: number,
            protocol: number4,
            seconds,
        } => {
            // CTA_TIMEOUT_TCP_* have the states' numbers, CTA_TIMEOUT_UDP_* begin with 1, too.
            let names: Vec<&str> = match number4 {
                6 => [&TCP_STATES[..], &["retrans", "unack"]].concat(),
                17 => vec!["", "unreplied", "replied"],
                _ => return None,
            };
            let words: Option<Vec<String>> = seconds
                .iter()
                .filter(|(state, _)| names.get(usize::from(*state)).is_some())
                .map(|(state, seconds)| {
                    let name = names.get(usize::from(*state))?;
                    Some(format!("{name} : {seconds}"))
                })
                .collect();
            let words = words?.join(", ");
            let (protocol, family) = (protocol(*number4), family(*number));
            (
                "ct timeout",
                format!("protocol {protocol}; l3proto {family}; policy = {{ {words} }};"),
            )
        }
        ObjectState::Secmark(context) => ("secmark", format!("\"{context}\"")),
        ObjectState::Expectation(own) => (
            "ct expectation",
            format!(
                "protocol {}; dport {}; timeout {}; size {}; l3proto {};",
                protocol(own.protocol),
                own.dport,
                seconds(u64::from(own.timeout)),
                own.size,
                family(own.family)
            ),
        ),
        ObjectState::Synproxy { mss, wscale, flags } => {
            let text = synproxy(*mss, *wscale, *flags);
            ("synproxy", text.strip_prefix("synproxy ")?.to_owned())
        }
        ObjectState::Connlimit { .. } | ObjectState::Other { .. } => return None,
    })
}
