//! Rules in the words of `iptables-save`, of iptables-nft too, which writes much of a rule as native
//! expressions and reads them back into matches.
//!
//! Source: `nft_rule_to_iptables_command_state()` of iptables 1.8.9, as far as its output tells.

use std::net::IpAddr;

use super::header::addr_from;
use super::text::{Style, verdict};
use super::{text_rare_target, text_target, text_xt};
use crate::model::netfilter::{
    BitwiseOp, CmpOp, Expr, Family, MetaKey, PayloadBase, Reg, Rule, Verdict,
};
use crate::model::packet::{TCP, UDP};
use crate::model::xtables::{HeaderMatch, XtMatch, XtTarget};

const ALL_PORTS: (u16, u16) = (0, u16::MAX);

/// What a register holds.
#[derive(Clone)]
enum Held {
    Payload {
        base: PayloadBase,
        offset: u32,
        mask: Option<Vec<u8>>,
    },
    Meta {
        key: MetaKey,
        mask: Option<Vec<u8>>,
    },
    Value,
}

/// A rule as `iptables` has it.
struct Command {
    v6: bool,
    head: HeaderMatch,
    matches: Vec<XtMatch>,
    target: String,
    held: Vec<(Reg, Held)>,
}

/// A rule behind `-A CHAIN`; `None`: it holds what `iptables` has no words for.
pub(super) fn rule(rule: &Rule, family: Family) -> Option<String> {
    let mut command = Command {
        v6: family == Family::Ip6,
        head: HeaderMatch {
            src: None,
            dst: None,
            iif: None,
            oif: None,
            proto: None,
            fragment: None,
        },
        matches: Vec::new(),
        target: String::new(),
        held: Vec::new(),
    };
    for expr in &rule.exprs {
        command.take(expr)?;
    }
    let commented = |own: &XtMatch| matches!(own, XtMatch::Comment(_));
    if let Some(comment) = &rule.comment
        && !command.matches.iter().any(commented)
    {
        command.matches.push(XtMatch::Comment(comment.clone()));
    }
    let mut words = vec![text_xt::header(&command.head)];
    words.extend(command.matches.iter().map(text_xt::condition));
    words.push(command.target);
    words.retain(|word| !word.is_empty());
    Some(words.join(" "))
}

impl Command {
    fn take(&mut self, expr: &Expr) -> Option<()> {
        match expr {
            Expr::Header(head) => self.head.clone_from(head),
            Expr::Match(XtMatch::Other { .. }) | Expr::Target(XtTarget::Other { .. }) => {
                return None;
            }
            Expr::Match(own) => self.matches.push(own.clone()),
            Expr::Target(own) => self.target = text_target::target(own),
            Expr::Counter(_) | Expr::Verdict(Verdict::Continue) => {}
            Expr::Verdict(to) => self.target = verdict(to, Style::Iptables),
            Expr::Payload {
                base, offset, dreg, ..
            } => {
                let (base, offset) = (*base, *offset);
                self.hold(
                    *dreg,
                    Held::Payload {
                        base,
                        offset,
                        mask: None,
                    },
                );
            }
            Expr::Meta { key, dreg } => self.hold(
                *dreg,
                Held::Meta {
                    key: *key,
                    mask: None,
                },
            ),
            Expr::Immediate { dreg, .. } => self.hold(*dreg, Held::Value),
            Expr::Bitwise {
                sreg,
                dreg,
                op: BitwiseOp::MaskXor { mask: own, xor },
                ..
            } if xor.iter().all(|byte| *byte == 0) => {
                let mut held = self.held(*sreg)?.clone();
                match &mut held {
                    Held::Payload { mask, .. } | Held::Meta { mask, .. } => {
                        *mask = Some(own.clone());
                    }
                    Held::Value => return None,
                }
                self.hold(*dreg, held);
            }
            Expr::Cmp { op, sreg, data } => {
                let held = self.held(*sreg)?.clone();
                self.compare(&held, *op, data)?;
            }
            Expr::Range {
                negate,
                sreg,
                from,
                to,
            } => {
                let Held::Payload {
                    base: PayloadBase::Transport,
                    offset,
                    ..
                } = self.held(*sreg)?.clone()
                else {
                    return None;
                };
                let (first, last) = (port(from)?, port(to)?);
                let (ports, invert, bit) = self.ports(offset)?;
                *ports = (first, last);
                if *negate {
                    *invert |= bit;
                }
            }
            Expr::Limit {
                rate,
                unit,
                burst,
                bytes: false,
                inverted: false,
            } => {
                let cost = unit.checked_mul(10_000)?.checked_div(*rate)?;
                self.matches.push(XtMatch::Limit {
                    cost: u32::try_from(cost).ok()?,
                    burst: *burst,
                });
            }
            Expr::Log(log) => {
                let size = log.snaplen.map(|len| ("size", len));
                let threshold = log.qthreshold.unwrap_or(0);
                self.target =
                    text_rare_target::nflog(&log.prefix, log.group.unwrap_or(0), size, threshold);
            }
            Expr::MetaSet {
                key: MetaKey::Nftrace,
                ..
            } => "-j TRACE".clone_into(&mut self.target),
            _ => return None,
        }
        Some(())
    }

    fn hold(&mut self, reg: Reg, held: Held) {
        self.held.retain(|(own, _)| *own != reg);
        self.held.push((reg, held));
    }

    fn held(&self, reg: Reg) -> Option<&Held> {
        let found = self.held.iter().find(|(own, _)| *own == reg);
        found.map(|(_, held)| held)
    }

    fn compare(&mut self, held: &Held, op: CmpOp, data: &[u8]) -> Option<()> {
        let invert = match op {
            CmpOp::Eq => Some(false),
            CmpOp::Neq => Some(true),
            _ => None,
        };
        match held {
            Held::Meta { key, mask } => self.meta(*key, mask.as_deref(), invert?, data),
            Held::Payload {
                base: PayloadBase::Network,
                offset,
                mask,
            } => self.network(*offset, mask.as_deref(), invert?, data),
            Held::Payload {
                base: PayloadBase::Transport,
                offset: 13,
                mask,
            } => {
                let mask = mask.as_ref().map_or(Some(&0xff), |mask| mask.first())?;
                let (mask, cmp) = (*mask, *data.first()?);
                let XtMatch::Tcp {
                    flag_mask,
                    flag_cmp,
                    invert: bits,
                    ..
                } = self.transport()?
                else {
                    return None;
                };
                (*flag_mask, *flag_cmp) = (mask, cmp);
                if invert? {
                    *bits |= 4;
                }
                Some(())
            }
            Held::Payload {
                base: PayloadBase::Transport,
                offset,
                mask: None,
            } => {
                // Both ports at once.
                if let (CmpOp::Eq, 0, [a, b, c, d]) = (op, offset, data) {
                    let (sport, dport) = (port(&[*a, *b])?, port(&[*c, *d])?);
                    *self.ports(0)?.0 = (sport, sport);
                    *self.ports(2)?.0 = (dport, dport);
                    return Some(());
                }
                let number = port(data)?;
                let (ports, bits, bit) = self.ports(*offset)?;
                match op {
                    CmpOp::Eq => *ports = (number, number),
                    CmpOp::Neq => {
                        *ports = (number, number);
                        *bits |= bit;
                    }
                    CmpOp::Lt => ports.1 = number.checked_sub(1)?,
                    CmpOp::Lte => ports.1 = number,
                    CmpOp::Gt => ports.0 = number.checked_add(1)?,
                    CmpOp::Gte => ports.0 = number,
                }
                Some(())
            }
            _ => None,
        }
    }

    fn meta(&mut self, key: MetaKey, mask: Option<&[u8]>, invert: bool, data: &[u8]) -> Option<()> {
        let number = || Some(u32::from_le_bytes(data.try_into().ok()?));
        match key {
            MetaKey::Iifname | MetaKey::Oifname => {
                let name: Vec<u8> = data.iter().copied().take_while(|b| *b != 0).collect();
                let mut name = String::from_utf8_lossy(&name).into_owned();
                // A name without its end stands for all that begin so.
                if data.last() != Some(&0) {
                    name.push('+');
                }
                // What `! -i +` becomes: no device has that name.
                let (name, invert) = match (name.as_str(), invert) {
                    ("INVAL/D", false) => ("+".to_owned(), true),
                    _ => (name, invert),
                };
                let side = match key {
                    MetaKey::Iifname => &mut self.head.iif,
                    _ => &mut self.head.oif,
                };
                *side = Some((name, invert));
            }
            MetaKey::L4proto => self.head.proto = Some((*data.first()?, invert)),
            MetaKey::Mark => {
                let mask = match mask {
                    Some(mask) => u32::from_le_bytes(mask.try_into().ok()?),
                    None => u32::MAX,
                };
                let mark = number()?;
                self.matches.push(XtMatch::Mark { mark, mask, invert });
            }
            MetaKey::Pkttype => {
                let kind = u32::from(*data.first()?);
                self.matches.push(XtMatch::Pkttype { kind, invert });
            }
            _ => return None,
        }
        Some(())
    }

    fn network(
        &mut self,
        offset: u32,
        mask: Option<&[u8]>,
        invert: bool,
        data: &[u8],
    ) -> Option<()> {
        let (src, dst, proto, width) = if self.v6 {
            (8, 24, 6, 16)
        } else {
            (12, 16, 9, 4)
        };
        match offset {
            6 if !self.v6 && mask == Some(&[0x1f, 0xff]) && data == [0, 0] => {
                self.head.fragment = Some(!invert);
            }
            at if at == proto && data.len() == 1 => {
                self.head.proto = Some((*data.first()?, invert));
            }
            // Both addresses at once.
            at if at == src && data.len() == 2 * width && mask.is_none() && !invert => {
                let (first, last) = data.split_at(width);
                self.network(src, None, false, first)?;
                self.network(dst, None, false, last)?;
            }
            at if at == src || at == dst => {
                let full = |bytes: &[u8]| -> Option<IpAddr> {
                    let mut bytes = bytes.to_vec();
                    bytes.resize(width, 0);
                    addr_from(&bytes)
                };
                // What is not compared is not masked.
                let whole = vec![0xff; data.len()];
                let part = (full(data)?, full(mask.unwrap_or(&whole))?, invert);
                let side = if at == src {
                    &mut self.head.src
                } else {
                    &mut self.head.dst
                };
                *side = Some(part);
            }
            _ => return None,
        }
        Some(())
    }

    /// The match on the transport header, which is made where it is not there yet.
    fn transport(&mut self) -> Option<&mut XtMatch> {
        let (protocol, _) = self.head.proto?;
        let is = |own: &XtMatch| match own {
            XtMatch::Tcp { .. } => protocol == TCP,
            XtMatch::Udp { .. } => protocol == UDP,
            _ => false,
        };
        if !self.matches.iter().any(is) {
            self.matches.push(match protocol {
                TCP => XtMatch::Tcp {
                    sports: ALL_PORTS,
                    dports: ALL_PORTS,
                    flag_mask: 0,
                    flag_cmp: 0,
                    option: 0,
                    invert: 0,
                },
                UDP => XtMatch::Udp {
                    sports: ALL_PORTS,
                    dports: ALL_PORTS,
                    invert: 0,
                },
                _ => return None,
            });
        }
        self.matches.iter_mut().find(|own| is(own))
    }

    /// Ports at an offset, and where and by which bit their negation is told.
    fn ports(&mut self, offset: u32) -> Option<(&mut (u16, u16), &mut u8, u8)> {
        match self.transport()? {
            XtMatch::Tcp {
                sports,
                dports,
                invert,
                ..
            }
            | XtMatch::Udp {
                sports,
                dports,
                invert,
            } => match offset {
                0 => Some((sports, invert, 1)),
                2 => Some((dports, invert, 2)),
                _ => None,
            },
            _ => None,
        }
    }
}

fn port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}
