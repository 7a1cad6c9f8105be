//! Native nf_tables expressions in words: what is in a register is remembered until it is compared.

use super::text::{Style, data, verdict};
use super::text_value::{Held, Show, bit_change, ct, meta, random, show};
use crate::model::netfilter::{BitwiseOp, CmpOp, Expr, FibResult, PayloadBase, Reg, Verdict};

/// A rule's words so far.
pub(super) struct Words {
    style: Style,
    parts: Vec<String>,
    held: Vec<(Reg, Held)>,
    protocol: Option<String>,
    /// Lower end of a range: its register, its value, and where its words begin.
    lower: Option<(Reg, String, usize)>,
}

impl Words {
    pub(super) fn new(style: Style) -> Self {
        Self {
            style,
            parts: Vec::new(),
            held: Vec::new(),
            protocol: None,
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
        self.parts.join(" ")
    }

    fn hold(&mut self, reg: Reg, nft: &str, xt: &'static str, show: Show) {
        self.held.retain(|(own, _)| *own != reg);
        let held = Held {
            nft: nft.to_owned(),
            xt,
            show,
            mask: None,
        };
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
            },
            |(_, held)| held.clone(),
        )
    }

    /// Names of all that a lookup's key is made of, from its first register on.
    fn key(&self, reg: Reg) -> String {
        let mut parts: Vec<&(Reg, Held)> =
            self.held.iter().filter(|(own, _)| *own >= reg).collect();
        parts.sort_by_key(|(own, _)| *own);
        let names: Vec<&str> = parts.iter().map(|(_, held)| held.nft.as_str()).collect();
        names.join(" . ")
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
                let (nft, xt, show) = self.payload(*base, *offset, *len);
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
                ..
            } => {
                let mut nft = format!("fib {}", if *saddr { "saddr" } else { "daddr" });
                for (on, word) in [(*mark, " . mark"), (*iif, " . iif"), (*oif, " . oif")] {
                    if on {
                        nft.push_str(word);
                    }
                }
                let (word, show) = match result {
                    FibResult::Oif => ("oif", Show::HostHex),
                    FibResult::Oifname => ("oifname", Show::Name),
                    FibResult::Addrtype => ("type", Show::AddrType),
                    FibResult::Other(_) => ("result", Show::Raw),
                };
                self.hold(*dreg, &format!("{nft} {word}"), "", show);
            }
            Expr::Numgen {
                dreg,
                modulus,
                random,
                ..
            } => {
                let kind = if *random { "random" } else { "inc" };
                self.hold(
                    *dreg,
                    &format!("numgen {kind} mod {modulus}"),
                    "",
                    Show::HostHex,
                );
            }
            Expr::Hash {
                dreg,
                modulus,
                jhash,
                ..
            } => {
                let nft = match jhash {
                    Some((reg, _, _)) => format!("jhash {} mod {modulus}", self.key(*reg)),
                    None => format!("symhash mod {modulus}"),
                };
                self.hold(*dreg, &nft, "", Show::HostHex);
            }
            Expr::Immediate { dreg, data: value } => self.hold(*dreg, &data(value), "", Show::Raw),
            Expr::Bitwise { sreg, dreg, op, .. } => {
                let mut held = self.held(*sreg);
                match op {
                    BitwiseOp::MaskXor { mask, xor } => {
                        if xor.iter().any(|byte| *byte != 0) {
                            let change = bit_change(&held.nft, mask, xor);
                            held.nft = change;
                        } else {
                            held.mask = Some(mask.clone());
                        }
                    }
                    BitwiseOp::Lshift(bits) => held.nft = format!("{} << {bits}", held.nft),
                    BitwiseOp::Rshift(bits) => held.nft = format!("{} >> {bits}", held.nft),
                    BitwiseOp::Register { .. } => held.nft = format!("({} ...)", held.nft),
                }
                self.held.retain(|(own, _)| own != dreg);
                self.held.push((*dreg, held));
            }
            Expr::Byteorder { sreg, dreg, .. } => {
                let held = self.held(*sreg);
                self.held.retain(|(own, _)| own != dreg);
                self.held.push((*dreg, held));
            }
            Expr::Cmp { op, sreg, data } => self.compare(*op, *sreg, data),
            Expr::Range {
                negate,
                sreg,
                from,
                to,
            } => {
                let held = self.held(*sreg);
                let (from, to) = (show(&held, from), show(&held, to));
                let text = match self.style {
                    Style::Iptables if !held.xt.is_empty() => {
                        let not = if *negate { "! " } else { "" };
                        format!("{not}{} {from}:{to}", held.xt)
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
            } => {
                let key = self.key(*sreg);
                match dreg {
                    Some(0) => self.parts.push(format!("{key} vmap @{set}")),
                    Some(dreg) => {
                        let nft = format!("{key} map @{set}");
                        self.held.clear();
                        self.hold(*dreg, &nft, "", Show::Raw);
                        return;
                    }
                    None => {
                        let not = if *inverted { "!= " } else { "" };
                        self.parts.push(format!("{key} {not}@{set}"));
                    }
                }
                self.held.clear();
            }
            other => self.statement(other),
        }
    }

    fn statement(&mut self, expr: &Expr) {
        let addr_port = |words: &Self, addr: &Option<Reg>, port: &Option<Reg>| {
            let name = |reg: &Option<Reg>| reg.map(|reg| words.held(reg).nft);
            match (name(addr), name(port)) {
                (Some(addr), Some(port)) if port.starts_with("reg ") => format!(" to {addr}"),
                (Some(addr), Some(port)) => format!(" to {addr}:{port}"),
                (Some(addr), None) => format!(" to {addr}"),
                (None, Some(port)) => format!(" to :{port}"),
                (None, None) => String::new(),
            }
        };
        let text = match expr {
            Expr::Verdict(Verdict::Continue) => return,
            Expr::Verdict(to) => verdict(to, self.style),
            Expr::MetaSet { key, sreg } => {
                format!("{} set {}", meta(*key).0, self.held(*sreg).nft)
            }
            Expr::CtSet { key, sreg } => {
                format!("ct {} set {}", ct(*key).0, self.held(*sreg).nft)
            }
            Expr::PayloadSet {
                base,
                offset,
                len,
                sreg,
            } => {
                let name = self.payload(*base, *offset, *len).0;
                format!("{name} set {}", self.held(*sreg).nft)
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
                addr_min,
                proto_min,
                flags,
                ..
            } => {
                let kind = if *source { "snat" } else { "dnat" };
                let random = random(*flags);
                format!("{kind}{}{random}", addr_port(self, addr_min, proto_min))
            }
            Expr::Masq {
                proto_min, flags, ..
            } => format!(
                "masquerade{}{}",
                addr_port(self, &None, proto_min),
                random(*flags)
            ),
            Expr::Redir { proto_min, .. } => {
                format!("redirect{}", addr_port(self, &None, proto_min))
            }
            Expr::Reject { kind: 1, .. } => "reject with tcp reset".to_owned(),
            Expr::Reject { code, .. } => format!("reject with code {code}"),
            Expr::Tproxy { addr, port, .. } => format!("tproxy{}", addr_port(self, addr, port)),
            Expr::Limit { inverted } => {
                let over = if *inverted { " over" } else { "" };
                format!("limit{over}")
            }
            Expr::Quota { bytes, .. } => format!("quota {bytes} bytes"),
            Expr::Log => "log".to_owned(),
            Expr::Queue { num, .. } => format!("queue to {num}"),
            Expr::Notrack => "notrack".to_owned(),
            Expr::Objref { name, .. } => format!("object \"{name}\""),
            Expr::FlowOffload(table) => format!("flow add @{table}"),
            Expr::Nop(name) | Expr::Opaque { name, .. } | Expr::Other { name, .. } => name.clone(),
            Expr::Counter(_) if self.style == Style::Nft => "counter".to_owned(),
            _ => return,
        };
        self.push(&text);
    }

    fn payload(&self, base: PayloadBase, offset: u32, len: u32) -> (String, &'static str, Show) {
        let protocol = self.protocol.as_deref().unwrap_or("th");
        let (nft, xt, show) = match (base, offset, len) {
            (PayloadBase::Network, 12, 1..=4) => ("ip saddr", "-s", Show::Addr),
            (PayloadBase::Network, 16, 1..=4) => ("ip daddr", "-d", Show::Addr),
            (PayloadBase::Network, 9, 1) => ("ip protocol", "-p", Show::Protocol),
            (PayloadBase::Network, 8, 16) => ("ip6 saddr", "-s", Show::Addr),
            (PayloadBase::Network, 24, 16) => ("ip6 daddr", "-d", Show::Addr),
            (PayloadBase::Transport, 0, 2) => {
                return (format!("{protocol} sport"), "--sport", Show::Net16);
            }
            (PayloadBase::Transport, 2, 2) => {
                return (format!("{protocol} dport"), "--dport", Show::Net16);
            }
            (base, offset, len) => {
                let word = match base {
                    PayloadBase::LinkLayer => "ll",
                    PayloadBase::Network => "nh",
                    PayloadBase::Transport => "th",
                    PayloadBase::Inner | PayloadBase::Tunnel | PayloadBase::Other(_) => "ih",
                };
                return (format!("@{word},{},{}", offset * 8, len * 8), "", Show::Raw);
            }
        };
        (nft.to_owned(), xt, show)
    }

    fn compare(&mut self, op: CmpOp, sreg: Reg, value: &[u8]) {
        let held = self.held(sreg);
        if op == CmpOp::Gte {
            self.lower = Some((sreg, show(&held, value), self.parts.len()));
        } else {
            self.held.retain(|(own, _)| *own != sreg);
        }
        let mut shown = show(&held, value);
        if held.show == Show::Protocol && op == CmpOp::Eq {
            self.protocol = Some(shown.clone());
        }
        if let (CmpOp::Lte, Some((reg, first, at))) = (op, self.lower.take_if(|_| op != CmpOp::Gte))
            && reg == sreg
        {
            let (name, to) = match (self.style, held.xt) {
                (Style::Iptables, xt) if !xt.is_empty() => (xt, ':'),
                _ => (held.nft.as_str(), '-'),
            };
            self.parts.truncate(at);
            self.parts.push(format!("{name} {first}{to}{shown}"));
            return;
        }
        let sign = match op {
            CmpOp::Eq => "",
            CmpOp::Neq => "!= ",
            CmpOp::Lt => "< ",
            CmpOp::Lte => "<= ",
            CmpOp::Gt => "> ",
            CmpOp::Gte => ">= ",
        };
        let text = match (self.style, op) {
            (Style::Iptables, CmpOp::Eq | CmpOp::Neq) if !held.xt.is_empty() => {
                if let (Some(mask), Show::HostHex) = (&held.mask, held.show) {
                    shown = format!("{shown}/{}", show(&held, mask));
                }
                let not = if op == CmpOp::Neq { "! " } else { "" };
                format!("{not}{} {shown}", held.xt)
            }
            _ => match &held.mask {
                // A flag test: any bit of the mask.
                Some(mask) if value.iter().all(|byte| *byte == 0) && op == CmpOp::Neq => {
                    format!("{} {}", held.nft, show(&held, mask))
                }
                Some(mask) if held.show != Show::Addr => {
                    format!("{} & {} {sign}{shown}", held.nft, show(&held, mask))
                }
                _ => format!("{} {sign}{shown}", held.nft),
            },
        };
        self.parts.push(text);
    }
}
