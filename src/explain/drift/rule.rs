//! What a rule asks of a packet and does with it, as far as Services are concerned.
//!
//! Destination, protocol and port are taken apart; of other conditions it only counts whether they are
//! left to chance, to the client's affinity, or to something else about the sender. kube-proxy writes
//! all of these as x_tables rules, as their nf_tables form, or natively.

use std::net::IpAddr;

use crate::model::Prefix;
use crate::model::netfilter::{CmpOp, Elements, Expr, MetaKey, PayloadBase, Reg, Rule, SetData};
use crate::model::netfilter::{Table, Verdict};
use crate::model::xtables::{XtMatch, XtTarget};

/// Conditions and verdict of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Facts<'a> {
    /// Destination, and whether it must not be.
    pub dst: Option<(Prefix, bool)>,
    /// IPPROTO_*
    pub protocol: Option<u8>,
    /// Destination port.
    pub dport: Option<u16>,
    /// Chance decides as well.
    pub random: bool,
    /// So does what the client had before.
    pub sticky: Sticky,
    /// So does something else.
    pub other: bool,
    /// Sources that it is about, or about all but: kube-proxy's own rules for Services name none but endpoints.
    pub sources: Vec<Prefix>,
    /// What the rule does; `None`: nothing that matters here.
    pub act: Option<Act<'a>>,
    /// A part of it is not known, by name.
    pub opaque: Option<String>,
}

/// How long it counts what a client had before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sticky {
    /// It does not.
    #[default]
    Not,
    /// It does; how long is not read.
    Unsaid,
    /// Seconds.
    Seconds(u32),
}

/// What a rule does with packets that match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act<'a> {
    /// Calls a chain.
    Jump(&'a str),
    /// Goes to a chain.
    Goto(&'a str),
    /// Goes to one of the chains of a verdict map, at random.
    Choose(&'a str),
    /// Translates the destination to one of these; without port, to the port that it had.
    Translate(Vec<(IpAddr, Option<u16>)>),
    /// Goes back to the calling chain.
    Return,
    /// Decides otherwise; what it is called.
    Ends(String),
}

/// What a register holds.
#[derive(Clone, Debug)]
enum Held<'a> {
    Daddr(usize),
    Saddr,
    /// Some bits of the source.
    Network,
    L4proto,
    Dport,
    Value(&'a [u8]),
    Number,
    /// Data of a map, chosen at random.
    Data(&'a str),
    Other,
}

/// Reads a rule of `table`.
pub(super) fn facts<'a>(table: &'a Table, rule: &'a Rule, v6: bool) -> Facts<'a> {
    let mut reader = Reader {
        table,
        v6,
        held: Vec::new(),
        facts: Facts::default(),
    };
    for expr in &rule.exprs {
        reader.expr(expr);
        if reader.facts.opaque.is_some() {
            break;
        }
    }
    reader.facts
}

struct Reader<'a> {
    table: &'a Table,
    v6: bool,
    held: Vec<(Reg, Held<'a>)>,
    facts: Facts<'a>,
}

impl<'a> Reader<'a> {
    fn hold(&mut self, reg: Reg, held: Held<'a>) {
        self.held.retain(|(known, _)| *known != reg);
        self.held.push((reg, held));
    }

    fn get(&self, reg: Reg) -> Held<'a> {
        let found = self.held.iter().find(|(known, _)| *known == reg);
        found.map_or(Held::Other, |(_, held)| held.clone())
    }

    fn expr(&mut self, expr: &'a Expr) {
        match expr {
            Expr::Meta { key, dreg } => {
                let held = match key {
                    MetaKey::L4proto => Held::L4proto,
                    _ => Held::Other,
                };
                self.hold(*dreg, held);
            }
            Expr::Payload {
                base,
                offset,
                len,
                dreg,
            } => {
                let daddr = if self.v6 { 24 } else { 16 };
                let saddr = if self.v6 { 8 } else { 12 };
                let held = match (base, *offset, *len) {
                    (PayloadBase::Network, at, len) if at == daddr => {
                        Held::Daddr(usize::try_from(len).unwrap_or(0))
                    }
                    (PayloadBase::Network, at, _) if at == saddr => Held::Saddr,
                    (PayloadBase::Network, 9, 1) if !self.v6 => Held::L4proto,
                    (PayloadBase::Transport, 2, 2) => Held::Dport,
                    _ => Held::Other,
                };
                self.hold(*dreg, held);
            }
            Expr::Cmp { op, sreg, data } => self.compare(*op, *sreg, data),
            Expr::Immediate { dreg, data } => self.hold(*dreg, Held::Value(data)),
            Expr::Numgen { dreg, .. } => self.hold(*dreg, Held::Number),
            Expr::Lookup {
                set,
                sreg,
                dreg,
                inverted,
            } => self.lookup(set, *sreg, *dreg, *inverted),
            Expr::Nat {
                source: false,
                addr_min,
                proto_min,
                ..
            } => self.translate(*addr_min, *proto_min),
            Expr::Nat { source: true, .. } | Expr::Masq { .. } => {
                self.act(Act::Ends("translates the source".to_owned()));
            }
            Expr::Redir { .. } => self.act(Act::Ends("redirects to the node itself".to_owned())),
            Expr::Reject { .. } => self.act(Act::Ends("rejects".to_owned())),
            Expr::Tproxy { .. } | Expr::Queue { .. } => {
                self.act(Act::Ends("hands the packet to a program".to_owned()));
            }
            Expr::Verdict(verdict) | Expr::Target(XtTarget::Standard(verdict)) => {
                self.verdict(verdict);
            }
            Expr::Header(header) => {
                if let Some((addr, mask, negated)) = header.dst {
                    match prefix(addr, mask) {
                        Some(prefix) => self.facts.dst = Some((prefix, negated)),
                        None => self.facts.other = true,
                    }
                }
                let src = header.src.and_then(|(addr, mask, _)| prefix(addr, mask));
                self.facts.sources.extend(src);
                match header.proto {
                    Some((protocol, false)) => self.facts.protocol = Some(protocol),
                    Some((_, true)) => self.facts.other = true,
                    None => {}
                }
                self.facts.other |= header.src.is_some()
                    || header.iif.is_some()
                    || header.oif.is_some()
                    || header.fragment.is_some();
            }
            Expr::Match(found) => self.xt_match(found),
            Expr::Target(target) => self.xt_target(target),
            Expr::Bitwise { sreg, dreg, .. } => {
                let held = match self.get(*sreg) {
                    Held::Saddr => Held::Network,
                    _ => Held::Other,
                };
                self.hold(*dreg, held);
            }
            Expr::Byteorder { dreg, .. }
            | Expr::Ct { dreg, .. }
            | Expr::Fib { dreg, .. }
            | Expr::Hash { dreg, .. }
            | Expr::Exthdr { dreg, .. }
            | Expr::Socket { dreg, .. }
            | Expr::Osf { dreg, .. }
            | Expr::Rt { dreg, .. }
            | Expr::Xfrm { dreg, .. }
            | Expr::Tunnel { dreg, .. } => self.hold(*dreg, Held::Other),
            Expr::Range { .. }
            | Expr::Limit { .. }
            | Expr::Quota { .. }
            | Expr::Connlimit { .. }
            | Expr::Inner { .. } => self.facts.other = true,
            Expr::MetaSet { .. }
            | Expr::PayloadSet { .. }
            | Expr::CtSet { .. }
            | Expr::Dynset { .. }
            | Expr::Counter(_)
            | Expr::ExthdrSet { .. }
            | Expr::Log(_)
            | Expr::Notrack
            | Expr::Objref { .. }
            | Expr::ObjrefMap { .. }
            | Expr::FlowOffload(_)
            | Expr::Last(_)
            | Expr::Dup { .. } => {}
            Expr::Synproxy { .. } => self.facts.opaque = Some("synproxy".to_owned()),
            Expr::Fwd { .. } => self.facts.opaque = Some("fwd".to_owned()),
            Expr::Other { name, .. } => self.facts.opaque = Some(name.clone()),
        }
    }

    /// The first verdict of a rule is its last expression that counts.
    fn act(&mut self, act: Act<'a>) {
        self.facts.act.get_or_insert(act);
    }

    fn verdict(&mut self, verdict: &'a Verdict) {
        match verdict {
            Verdict::Jump(chain) => self.act(Act::Jump(chain)),
            Verdict::Goto(chain) => self.act(Act::Goto(chain)),
            Verdict::Return => self.act(Act::Return),
            Verdict::Continue => {}
            Verdict::Accept => self.act(Act::Ends("accepts".to_owned())),
            Verdict::Drop => self.act(Act::Ends("drops".to_owned())),
            Verdict::Queue(_) | Verdict::Stolen | Verdict::Other(_) => {
                self.act(Act::Ends("hands the packet to a program".to_owned()));
            }
        }
    }

    fn compare(&mut self, op: CmpOp, sreg: Reg, data: &[u8]) {
        match (self.get(sreg), op, data) {
            (Held::Daddr(len), CmpOp::Eq | CmpOp::Neq, data) if data.len() == len => {
                match leading(data, self.v6) {
                    Some(prefix) => self.facts.dst = Some((prefix, op == CmpOp::Neq)),
                    None => self.facts.other = true,
                }
            }
            (Held::Saddr | Held::Network, CmpOp::Eq | CmpOp::Neq, data) => {
                self.facts.sources.extend(leading(data, self.v6));
                self.facts.other = true;
            }
            (Held::L4proto, CmpOp::Eq, [protocol]) => self.facts.protocol = Some(*protocol),
            (Held::Dport, CmpOp::Eq, [high, low]) => {
                self.facts.dport = Some(u16::from_be_bytes([*high, *low]));
            }
            _ => self.facts.other = true,
        }
    }

    fn lookup(&mut self, set: &'a str, sreg: Reg, dreg: Option<Reg>, inverted: bool) {
        let found = self.table.sets.get(set);
        let dynamic = found.is_some_and(|set| set.flags.dynamic);
        match (self.get(sreg), dreg) {
            (Held::Number, Some(0)) => self.act(Act::Choose(set)),
            (Held::Number, Some(dreg)) => self.hold(dreg, Held::Data(set)),
            (Held::Saddr, None) if dynamic && !inverted => {
                let timeout = found.map_or(0, |set| set.decl.timeout_ms / 1000);
                self.facts.sticky = match u32::try_from(timeout) {
                    Ok(0) | Err(_) => Sticky::Unsaid,
                    Ok(seconds) => Sticky::Seconds(seconds),
                };
            }
            (held, dreg) => {
                if matches!(held, Held::Saddr | Held::Network) {
                    self.sources_of(set);
                }
                if let Some(dreg) = dreg {
                    self.hold(dreg, Held::Other);
                }
                self.facts.other = true;
            }
        }
    }

    fn sources_of(&mut self, set: &str) {
        let set = self.table.sets.get(set);
        if let Some(Elements::Known(elements)) = set.map(|set| &set.elements) {
            let begin = elements.iter().filter(|element| !element.interval_end);
            let found = begin.filter_map(|element| leading(&element.key, self.v6));
            self.facts.sources.extend(found);
        }
    }

    fn translate(&mut self, addr: Option<Reg>, port: Option<Reg>) {
        let Some(addr) = addr else {
            self.act(Act::Ends("translates the port alone".to_owned()));
            return;
        };
        let found = match (self.get(addr), port.map(|port| self.get(port))) {
            (Held::Value(ip), None) => one(ip, &[], self.v6).into_iter().collect(),
            (Held::Value(ip), Some(Held::Value(port))) => {
                one(ip, port, self.v6).into_iter().collect()
            }
            (Held::Data(map), _) => self.of_map(map, port.is_some()),
            _ => Vec::new(),
        };
        if found.is_empty() {
            self.facts.opaque = Some("a destination that is not a constant".to_owned());
        } else {
            self.act(Act::Translate(found));
        }
    }

    /// Address, and port in the next word, of each of a map's elements.
    fn of_map(&self, map: &str, with_port: bool) -> Vec<(IpAddr, Option<u16>)> {
        let set = self.table.sets.get(map);
        let Some(Elements::Known(elements)) = set.map(|set| &set.elements) else {
            return Vec::new();
        };
        let width = if self.v6 { 16 } else { 4 };
        let found = elements.iter().map(|element| match &element.data {
            Some(SetData::Value(data)) => {
                let (ip, port) = data.split_at_checked(width)?;
                one(ip, if with_port { port } else { &[] }, self.v6)
            }
            _ => None,
        });
        found.collect::<Option<Vec<_>>>().unwrap_or_default()
    }

    fn xt_match(&mut self, found: &XtMatch) {
        match found {
            XtMatch::Tcp {
                sports,
                dports,
                flag_mask,
                option,
                invert,
                ..
            } => {
                self.ports(*sports, *dports, *invert);
                self.facts.other |= *flag_mask != 0 || *option != 0;
            }
            XtMatch::Udp {
                sports,
                dports,
                invert,
            } => self.ports(*sports, *dports, *invert),
            XtMatch::Comment(_) | XtMatch::Nfacct(_) => {}
            XtMatch::Statistic(_) => self.facts.random = true,
            XtMatch::Iprange { src, .. } => {
                let first = src.and_then(|(first, ..)| {
                    Prefix::new(first, if self.v6 { 128 } else { 32 }).ok()
                });
                self.facts.sources.extend(first);
                self.facts.other = true;
            }
            // XT_RECENT_CHECK and XT_RECENT_UPDATE ask, the others only note.
            XtMatch::Recent {
                check_set,
                seconds,
                invert: false,
                ..
            } => {
                if check_set & 5 != 0 {
                    self.facts.sticky = Sticky::Seconds(*seconds);
                }
            }
            XtMatch::Other { name, .. } => self.facts.opaque = Some(format!("match {name}")),
            _ => self.facts.other = true,
        }
    }

    fn ports(&mut self, sports: (u16, u16), dports: (u16, u16), invert: u8) {
        self.facts.other |= sports != (0, u16::MAX) || invert != 0;
        if dports.0 == dports.1 {
            self.facts.dport = Some(dports.0);
        } else {
            self.facts.other |= dports != (0, u16::MAX);
        }
    }

    fn xt_target(&mut self, target: &'a XtTarget) {
        match target {
            XtTarget::Dnat(range) => match range.addrs {
                Some((addr, last)) if addr == last => {
                    let port = range.ports.map(|(port, _)| port);
                    self.act(Act::Translate(vec![(addr, port)]));
                }
                _ => self.facts.opaque = Some("a range of destinations".to_owned()),
            },
            XtTarget::Reject { .. } => self.act(Act::Ends("rejects".to_owned())),
            XtTarget::Redirect(_) => {
                self.act(Act::Ends("redirects to the node itself".to_owned()));
            }
            XtTarget::Netmap(_) => self.facts.opaque = Some("a range of destinations".to_owned()),
            XtTarget::Other { name, .. } => self.facts.opaque = Some(format!("target {name}")),
            _ => {}
        }
    }
}

/// An address and the port behind it, which may be padded.
fn one(ip: &[u8], port: &[u8], v6: bool) -> Option<(IpAddr, Option<u16>)> {
    let whole = if v6 { 128 } else { 32 };
    let ip = leading(ip, v6).filter(|found| found.len() == whole)?.addr();
    let port = match port {
        [high, low, ..] => Some(u16::from_be_bytes([*high, *low])),
        _ => None,
    };
    Some((ip, port))
}

/// The prefix of these leading bytes.
fn leading(bytes: &[u8], v6: bool) -> Option<Prefix> {
    let len = u8::try_from(bytes.len().checked_mul(8)?).ok()?;
    let addr: IpAddr = if v6 {
        let mut all = [0u8; 16];
        all.get_mut(..bytes.len())?.copy_from_slice(bytes);
        all.into()
    } else {
        let mut all = [0u8; 4];
        all.get_mut(..bytes.len())?.copy_from_slice(bytes);
        all.into()
    };
    Prefix::new(addr, len).ok()
}

/// The prefix of an address under a mask, where the mask is one.
fn prefix(addr: IpAddr, mask: IpAddr) -> Option<Prefix> {
    let (ones, zeros, bits) = match mask {
        IpAddr::V4(mask) => {
            let mask = u32::from(mask);
            (mask.leading_ones(), mask.trailing_zeros(), 32)
        }
        IpAddr::V6(mask) => {
            let mask = u128::from(mask);
            (mask.leading_ones(), mask.trailing_zeros(), 128)
        }
    };
    (ones + zeros == bits).then_some(())?;
    Prefix::new(addr, u8::try_from(ones).ok()?).ok()
}
