//! Native nf_tables expressions in words: what is in a register is remembered until it is compared.
//!
//! `nft` leaves out conditions that another one implies (`tcp dport` implies `meta l4proto tcp`), so
//! that they are taken back here when that other one comes.

use super::text::{Style, data, element, key_text, verdict};
use super::text_field::{ct, fib, meta, payload, reject};
use super::text_value::{Held, Show, bit_change, random, show, tcp_flags};
use crate::model::netfilter::{
    BitwiseOp, CmpOp, Elements, Expr, Family, MetaKey, PayloadBase, Reg, Set, SetData, SetElem,
    Table, Verdict,
};

/// A rule's words so far.
pub(super) struct Words<'a> {
    style: Style,
    table: Option<&'a Table>,
    parts: Vec<String>,
    held: Vec<(Reg, Held)>,
    /// 4 or 6, where the table or a condition says so.
    network: Option<u8>,
    transport: Option<String>,
    /// Conditions on family, protocol and device type that a later one may imply: their parts.
    implied: [Option<usize>; 3],
    /// The match that `iptables-save` has to load for ports was loaded.
    loaded: bool,
    /// Lower end of a range: its register, its value, and where its words begin.
    lower: Option<(Reg, String, usize)>,
}

/// Positions in [`Words::implied`].
const FAMILY: usize = 0;
const TRANSPORT: usize = 1;
const DEVICE: usize = 2;

impl<'a> Words<'a> {
    pub(super) fn new(style: Style, table: Option<&'a Table>) -> Self {
        Self {
            style,
            table,
            parts: Vec::new(),
            held: Vec::new(),
            network: match table.map(|table| table.family) {
                Some(Family::Ip) => Some(4),
                Some(Family::Ip6) => Some(6),
                _ => None,
            },
            transport: None,
            implied: [None; 3],
            loaded: false,
            lower: None,
        }
    }

    /// Adds words; an empty text adds none.
    pub(super) fn push(&mut self, text: &str) {
        if !text.is_empty() {
            self.parts.push(text.to_owned());
        }
    }

    /// The line.
    pub(super) fn done(self) -> String {
        let said = self.parts.into_iter().filter(|part| !part.is_empty());
        said.collect::<Vec<_>>().join(" ")
    }

    fn hold(&mut self, reg: Reg, nft: &str, xt: &'static str, show: Show) {
        self.put(
            reg,
            Held {
                nft: nft.to_owned(),
                xt,
                show,
                mask: None,
                value: None,
            },
        );
    }

    fn put(&mut self, reg: Reg, held: Held) {
        self.held.retain(|(own, _)| *own != reg);
        self.held.push((reg, held));
    }

    fn held(&self, reg: Reg) -> Held {
        let found = self.held.iter().find(|(own, _)| *own == reg);
        found.map_or_else(
            || Held {
                nft: format!("reg {reg}"),
                xt: "",
                show: Show::Raw,
                mask: None,
                value: None,
            },
            |(_, held)| held.clone(),
        )
    }

    /// All that a lookup's key is made of, from its first register on.
    fn key_parts(&self, reg: Reg) -> Vec<&Held> {
        let mut parts: Vec<&(Reg, Held)> =
            self.held.iter().filter(|(own, _)| *own >= reg).collect();
        parts.sort_by_key(|(own, _)| *own);
        parts.into_iter().map(|(_, held)| held).collect()
    }

    /// Its name.
    fn key(&self, reg: Reg) -> String {
        let parts = self.key_parts(reg);
        let names: Vec<&str> = parts.iter().map(|held| held.nft.as_str()).collect();
        names.join(" . ")
    }

    /// Takes back a condition that what comes now implies.
    fn implies(&mut self, which: usize) {
        if self.style == Style::Iptables {
            return;
        }
        let place = self.implied.get_mut(which).and_then(Option::take);
        if let Some(part) = place.and_then(|at| self.parts.get_mut(at)) {
            part.clear();
        }
    }

    /// Takes back what a part of the packet implies.
    fn implied_by(&mut self, base: PayloadBase, nft: &str) {
        match base {
            PayloadBase::LinkLayer if nft.starts_with("ether") => self.implies(DEVICE),
            PayloadBase::Network if nft.starts_with("ip") => self.implies(FAMILY),
            PayloadBase::Transport if nft.starts_with("icmp") => {
                self.implies(FAMILY);
                self.implies(TRANSPORT);
            }
            PayloadBase::Transport if !nft.starts_with(['@', 't']) || nft.starts_with("tcp") => {
                self.implies(TRANSPORT);
            }
            _ => {}
        }
    }

    /// Adds a native expression.
    pub(super) fn native(&mut self, expr: &Expr) {
        match expr {
            Expr::Meta { key, dreg } => {
                let (nft, xt, show) = meta(*key);
                self.hold(*dreg, &nft, xt, show);
            }
            Expr::Payload {
                base,
                offset,
                len,
                dreg,
            } => {
                let (network, transport) = (self.network, self.transport.as_deref());
                let (nft, xt, show) = payload(*base, *offset, *len, network, transport);
                self.implied_by(*base, &nft);
                self.hold(*dreg, &nft, xt, show);
            }
            Expr::Ct { key, dreg, dir } => {
                let way = match dir {
                    Some(0) => "original ",
                    Some(_) => "reply ",
                    None => "",
                };
                let (name, show) = ct(*key);
                self.hold(*dreg, &format!("ct {way}{name}"), "", show);
            }
            Expr::Fib {
                dreg,
                result,
                saddr,
                mark,
                iif,
                oif,
                present,
                ..
            } => {
                let mut nft = format!("fib {}", if *saddr { "saddr" } else { "daddr" });
                for (on, word) in [(*mark, " . mark"), (*iif, " . iif"), (*oif, " . oif")] {
                    if on {
                        nft.push_str(word);
                    }
                }
                let (word, show) = fib(*result, *present);
                self.hold(*dreg, &format!("{nft} {word}"), "", show);
            }
            Expr::Numgen {
                dreg,
                modulus,
                offset,
                random,
            } => {
                let kind = if *random { "random" } else { "inc" };
                let nft = format!("numgen {kind} mod {modulus}{}", from(*offset));
                self.hold(*dreg, &nft, "", Show::Host);
            }
            Expr::Opaque { name, dreg, .. } => self.hold(*dreg, name, "", Show::Host),
            Expr::Hash {
                dreg,
                modulus,
                offset,
                jhash,
            } => {
                let nft = match jhash {
                    Some((reg, _, _)) => format!("jhash {} mod {modulus}", self.key(*reg)),
                    None => format!("symhash mod {modulus}"),
                };
                let nft = format!("{nft}{}", from(*offset));
                self.hold(*dreg, &nft, "", Show::Host);
            }
            Expr::Immediate { dreg, data: value } => self.put(
                *dreg,
                Held {
                    nft: data(value),
                    xt: "",
                    show: Show::Raw,
                    mask: None,
                    value: Some(value.clone()),
                },
            ),
            Expr::Bitwise { sreg, dreg, op, .. } => {
                let mut held = self.held(*sreg);
                match op {
                    BitwiseOp::MaskXor { mask, xor } => {
                        if xor.iter().any(|byte| *byte != 0) {
                            held.nft = bit_change(&held.nft, mask, xor);
                        } else {
                            held.mask = Some(mask.clone());
                        }
                    }
                    BitwiseOp::Lshift(bits) => held.nft = format!("{} << {bits}", held.nft),
                    BitwiseOp::Rshift(bits) => held.nft = format!("{} >> {bits}", held.nft),
                    BitwiseOp::Register { .. } => held.nft = format!("({} ...)", held.nft),
                }
                self.put(*dreg, held);
            }
            Expr::Byteorder { sreg, dreg, .. } => {
                let mut held = self.held(*sreg);
                // What is compared from here on is in network order.
                if held.show == Show::Host {
                    held.show = Show::Net;
                }
                self.put(*dreg, held);
            }
            Expr::Cmp { op, sreg, data } => self.compare(*op, *sreg, data),
            Expr::Range {
                negate,
                sreg,
                from,
                to,
            } => {
                let held = self.held(*sreg);
                let (from, to) = (show(&held, from, self.style), show(&held, to, self.style));
                let text = match self.style {
                    Style::Iptables if !held.xt.is_empty() => {
                        let value = format!("{from}:{to}");
                        self.flag(held.xt, *negate, &value)
                    }
                    _ => {
                        let not = if *negate { "!= " } else { "" };
                        format!("{} {not}{from}-{to}", held.nft)
                    }
                };
                self.parts.push(text);
            }
            Expr::Lookup {
                set,
                sreg,
                dreg,
                inverted,
            } => self.lookup(set, *sreg, *dreg, *inverted),
            other => self.statement(other),
        }
    }

    fn lookup(&mut self, set: &str, sreg: Reg, dreg: Option<Reg>, inverted: bool) {
        let key = self.key(sreg);
        let members = self.members(set, sreg);
        match dreg {
            Some(0) => self.parts.push(format!("{key} vmap {members}")),
            Some(_) => {}
            None => {
                let not = if inverted { "!= " } else { "" };
                self.parts.push(format!("{key} {not}{members}"));
            }
        }
        self.held.clear();
        if let Some(dreg) = dreg.filter(|dreg| *dreg != 0) {
            self.hold(dreg, &format!("{key} map {members}"), "", Show::Raw);
        }
    }

    /// A set by name; one that belongs to the rule by its elements.
    fn members(&self, name: &str, sreg: Reg) -> String {
        let set = self.table.and_then(|table| table.sets.get(name));
        let Some((set, elements)) = set.and_then(|set| match &set.elements {
            Elements::Known(elements) if set.flags.anonymous => Some((set, elements)),
            _ => None,
        }) else {
            return format!("@{name}");
        };
        let parts = self.key_parts(sreg);
        let mut sorted: Vec<&SetElem> = elements.iter().filter(|elem| !elem.catchall).collect();
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        let words: Vec<String> = match parts.as_slice() {
            [only] => self.by_one_key(set, &sorted, only),
            _ => sorted.iter().map(|elem| element(set, elem)).collect(),
        };
        format!("{{ {} }}", words.join(", "))
    }

    /// Elements of a set whose key is one field, so that its values are shown as the field's are.
    fn by_one_key(&self, set: &Set, sorted: &[&SetElem], held: &Held) -> Vec<String> {
        let mut words = Vec::new();
        for (at, elem) in sorted.iter().enumerate() {
            if elem.interval_end {
                continue;
            }
            let first = show(held, &elem.key, self.style);
            let end = sorted.get(at + 1).filter(|next| next.interval_end);
            let last = match (&elem.key_end, end) {
                (Some(last), _) => Some(show(held, last, self.style)),
                (None, Some(end)) if set.flags.interval => {
                    before(&end.key).map(|last| show(held, &last, self.style))
                }
                _ => None,
            };
            let key = match last {
                Some(last) if last != first => format!("{first}-{last}"),
                _ => first,
            };
            words.push(match &elem.data {
                None => key,
                Some(SetData::Verdict(to)) => format!("{key} : {}", verdict(to, Style::Nft)),
                Some(SetData::Value(value)) => format!("{key} : {}", key_text(value)),
            });
        }
        words
    }

    fn statement(&mut self, expr: &Expr) {
        if let Expr::Reject { kind: 0, .. } = expr {
            self.implies(FAMILY);
        }
        let text = match expr {
            Expr::Verdict(Verdict::Continue) => return,
            Expr::Verdict(to) => verdict(to, self.style),
            Expr::MetaSet { key, sreg } => {
                let (name, _, show) = meta(*key);
                format!("{name} set {}", self.value(*sreg, show))
            }
            Expr::CtSet { key, sreg } => {
                let (name, show) = ct(*key);
                format!("ct {name} set {}", self.value(*sreg, show))
            }
            Expr::PayloadSet {
                base,
                offset,
                len,
                sreg,
            } => {
                let (network, transport) = (self.network, self.transport.as_deref());
                let (name, _, show) = payload(*base, *offset, *len, network, transport);
                self.implied_by(*base, &name);
                format!("{name} set {}", self.value(*sreg, show))
            }
            Expr::Dynset { set, sreg, op, .. } => {
                let word = match op {
                    0 => "add",
                    2 => "delete",
                    _ => "update",
                };
                format!("{word} @{set} {{ {} }}", self.key(*sreg))
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
                let to = self.to((*addr_min, *addr_max), (*proto_min, *proto_max));
                format!("{kind}{family}{to}{}", random(*flags))
            }
            Expr::Masq {
                proto_min,
                proto_max,
                flags,
            } => format!(
                "masquerade{}{}",
                self.to((None, None), (*proto_min, *proto_max)),
                random(*flags)
            ),
            Expr::Redir {
                proto_min,
                proto_max,
                flags,
            } => format!(
                "redirect{}{}",
                self.to((None, None), (*proto_min, *proto_max)),
                random(*flags)
            ),
            Expr::Reject { kind, code } => reject(*kind, *code, self.network),
            Expr::Tproxy { addr, port, .. } => {
                format!("tproxy{}", self.to((*addr, None), (*port, None)))
            }
            Expr::Limit { inverted } => match (self.style, inverted) {
                (Style::Iptables, _) => "-m limit".to_owned(),
                (Style::Nft, true) => "limit rate over ...".to_owned(),
                (Style::Nft, false) => "limit rate ...".to_owned(),
            },
            Expr::Quota {
                inverted, bytes, ..
            } => {
                let over = if *inverted { "over " } else { "" };
                format!("quota {over}{bytes} bytes")
            }
            Expr::Log if self.style == Style::Iptables => "-j LOG".to_owned(),
            Expr::Log => "log".to_owned(),
            Expr::Queue { num, .. } => format!("queue to {num}"),
            Expr::Notrack => "notrack".to_owned(),
            Expr::Objref { name, .. } => format!("object \"{name}\""),
            Expr::FlowOffload(table) => format!("flow add @{table}"),
            Expr::Nop(name) | Expr::Other { name, .. } => name.clone(),
            Expr::Counter(count) if self.style == Style::Nft => {
                format!("counter packets {} bytes {}", count.packets, count.bytes)
            }
            _ => return,
        };
        self.push(&text);
    }

    /// What a register holds, shown as what it is put into.
    fn value(&self, reg: Reg, as_what: Show) -> String {
        let held = self.held(reg);
        match &held.value {
            Some(bytes) => {
                let shown = Held {
                    show: as_what,
                    mask: None,
                    ..held.clone()
                };
                show(&shown, bytes, Style::Nft)
            }
            None => held.nft,
        }
    }

    /// ` to ADDRESS:PORT` of a translation, with its ranges.
    fn to(&self, addrs: (Option<Reg>, Option<Reg>), ports: (Option<Reg>, Option<Reg>)) -> String {
        let addr = |reg: Reg| match self.held(reg).value {
            Some(bytes) if bytes.len() == 16 => self.value(reg, Show::Addr6),
            _ => self.value(reg, Show::Addr),
        };
        let range = |pair: (Option<Reg>, Option<Reg>), word: &dyn Fn(Reg) -> String| {
            let first = word(pair.0?);
            Some(match pair.1.map(word) {
                Some(last) if last != first => format!("{first}-{last}"),
                _ => first,
            })
        };
        let port = |reg: Reg| self.value(reg, Show::Net);
        match (range(addrs, &addr), range(ports, &port)) {
            // A map gives both at once.
            (Some(addr), Some(port)) if port.starts_with("reg ") => format!(" to {addr}"),
            (Some(addr), Some(port)) if addr.contains("::") || addr.matches(':').count() > 2 => {
                format!(" to [{addr}]:{port}")
            }
            (Some(addr), Some(port)) => format!(" to {addr}:{port}"),
            (Some(addr), None) => format!(" to {addr}"),
            (None, Some(port)) => format!(" to :{port}"),
            (None, None) => String::new(),
        }
    }

    /// A flag of `iptables-save` with its value, behind the match that it needs.
    fn flag(&mut self, flag: &str, negate: bool, value: &str) -> String {
        let not = if negate { "! " } else { "" };
        // `-m mark --mark`: the match first.
        if let Some((module, flag)) = flag.split_once(" --") {
            return format!("{module} {not}--{flag} {value}");
        }
        let module = self.transport.clone().filter(|_| flag.starts_with("--"));
        match module {
            Some(protocol) if !self.loaded => {
                self.loaded = true;
                format!("-m {protocol} {not}{flag} {value}")
            }
            _ => format!("{not}{flag} {value}"),
        }
    }

    fn compare(&mut self, op: CmpOp, sreg: Reg, value: &[u8]) {
        let held = self.held(sreg);
        let shown = show(&held, value, self.style);
        if op == CmpOp::Gte {
            self.lower = Some((sreg, shown.clone(), self.parts.len()));
        } else {
            self.held.retain(|(own, _)| *own != sreg);
        }
        self.learn(&held, op, value);
        if let (CmpOp::Lte, Some((reg, first, at))) = (op, self.lower.take_if(|_| op != CmpOp::Gte))
            && reg == sreg
        {
            self.parts.truncate(at);
            let text = match (self.style, held.xt) {
                (Style::Iptables, xt) if !xt.is_empty() => {
                    self.flag(xt, false, &format!("{first}:{shown}"))
                }
                _ => format!("{} {first}-{shown}", held.nft),
            };
            self.parts.push(text);
            return;
        }
        let equal = matches!(op, CmpOp::Eq | CmpOp::Neq);
        let text = if self.style == Style::Iptables && equal && !held.xt.is_empty() {
            let value = match (&held.mask, held.show) {
                (Some(mask), Show::Mark) => {
                    format!("{shown}/{}", show(&held, mask, self.style))
                }
                (mask, Show::TcpFlags) => {
                    let mask = mask.as_ref().and_then(|mask| mask.first().copied());
                    let mask = tcp_flags(u64::from(mask.unwrap_or(u8::MAX)), self.style);
                    format!("{mask} {shown}")
                }
                _ => shown,
            };
            self.flag(held.xt, op == CmpOp::Neq, &value)
        } else {
            self.plain(&held, op, value, &shown)
        };
        self.parts.push(text);
    }

    /// A comparison in the words of `nft`.
    fn plain(&self, held: &Held, op: CmpOp, value: &[u8], shown: &str) -> String {
        let sign = match op {
            CmpOp::Eq => "",
            CmpOp::Neq => "!= ",
            CmpOp::Lt => "< ",
            CmpOp::Lte => "<= ",
            CmpOp::Gt => "> ",
            CmpOp::Gte => ">= ",
        };
        let nft = &held.nft;
        let mask = held
            .mask
            .as_ref()
            .filter(|_| !matches!(held.show, Show::Addr | Show::Addr6 | Show::Dscp));
        let Some(mask) = mask else {
            return format!("{nft} {sign}{shown}");
        };
        let bits = show(held, mask, self.style);
        let zero = value.iter().all(|byte| *byte == 0);
        match (op, held.show) {
            // A flag test: any bit of the mask.
            (CmpOp::Neq, _) if zero => format!("{nft} {bits}"),
            (CmpOp::Eq | CmpOp::Neq, Show::TcpFlags) => format!("{nft} {sign}{shown} / {bits}"),
            (CmpOp::Eq, _) => format!("{nft} & {bits} == {shown}"),
            _ => format!("{nft} & {bits} {sign}{shown}"),
        }
    }

    /// What a comparison tells about the packet, for the names of what is loaded later.
    fn learn(&mut self, held: &Held, op: CmpOp, value: &[u8]) {
        if op != CmpOp::Eq || held.mask.is_some() {
            return;
        }
        let at = Some(self.parts.len());
        let which = match (held.show, value) {
            (Show::Family, [2, ..]) => {
                self.network = Some(4);
                FAMILY
            }
            (Show::Family, [10, ..]) => {
                self.network = Some(6);
                FAMILY
            }
            (Show::Protocol | Show::NextHeader, _) => {
                self.transport = Some(show(
                    &Held {
                        show: Show::Protocol,
                        ..held.clone()
                    },
                    value,
                    self.style,
                ));
                TRANSPORT
            }
            (Show::DeviceType, [1, 0]) => DEVICE,
            _ => return,
        };
        // Only what `nft` adds by itself is taken back: `ip protocol` is typed.
        let added = [MetaKey::Nfproto, MetaKey::L4proto, MetaKey::Iiftype];
        if added.iter().any(|key| meta(*key).0 == held.nft)
            && let Some(place) = self.implied.get_mut(which)
        {
            *place = at;
        }
    }
}

fn from(offset: u32) -> String {
    if offset == 0 {
        String::new()
    } else {
        format!(" offset {offset}")
    }
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
