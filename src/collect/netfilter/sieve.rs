//! Which rules of a long chain no packet to some destinations can match.
//!
//! kube-proxy's `KUBE-SERVICES` holds a rule per Service, of which a trace needs one or two. The others
//! are read and dropped here, so that they are neither kept nor sent. What stays in doubt is kept.

use std::net::IpAddr;

use crate::model::netfilter::{
    BitwiseOp, CmpOp, Expr, Family, PayloadBase, Reg, Rule, Set, Sieved, Verdict,
};
use crate::model::want::{Packets, Towards};
use crate::model::xtables::{HeaderMatch, XtMatch, XtTarget};

/// Shorter chains are sent whole: they may soon be wanted for another destination.
const MANY: usize = 64;
/// Most elements that are asked by key of one set.
const MOST_KEYS: usize = 64;

/// Rules as they are read, less those that can't match once there are many.
pub struct Sieve<'a> {
    about: Option<&'a Packets>,
    family: Family,
    /// Rules, and whether they may be left out.
    kept: Vec<(Rule, bool)>,
    left_out: u32,
}

impl<'a> Sieve<'a> {
    /// Keeps rules of a table of `family` that packets can match; without packets, all.
    pub fn new(about: Option<&'a Packets>, family: Family) -> Self {
        // Tables of other families see packets of both IP families, or neither.
        let about = about.filter(|_| matches!(family, Family::Ip | Family::Ip6));
        Self {
            about,
            family,
            kept: Vec::new(),
            left_out: 0,
        }
    }

    /// Takes the next rule in.
    pub fn push(&mut self, rule: Rule) {
        let idle = self
            .about
            .is_some_and(|about| can_be_left_out(&rule, self.family, about));
        if !idle || self.kept.len() < MANY && self.left_out == 0 {
            self.kept.push((rule, idle));
            return;
        }
        if self.left_out == 0 {
            let before = self.kept.len();
            self.kept.retain(|(_, idle)| !idle);
            // At most MANY rules and those that can match were kept.
            self.left_out = u32::try_from(before - self.kept.len()).unwrap_or(u32::MAX);
        }
        self.left_out = self.left_out.saturating_add(1);
    }

    /// The rules, and what is not among them.
    pub fn done(self) -> (Vec<Rule>, Option<Sieved>) {
        let rules = self.kept.into_iter().map(|(rule, _)| rule).collect();
        let sieved = self.about.filter(|_| self.left_out > 0).map(|about| {
            let mut to: Vec<IpAddr> = about.to.iter().map(|to| to.addr).collect();
            to.sort_unstable();
            to.dedup();
            Sieved {
                to,
                left_out: self.left_out,
            }
        });
        (rules, sieved)
    }
}

/// Whether a rule is surely not for any of the packets, and without effect for others' sake.
fn can_be_left_out(rule: &Rule, family: Family, about: &Packets) -> bool {
    rule.exprs.iter().all(is_plain)
        && !about
            .to
            .iter()
            .filter(|to| to.addr.is_ipv6() == (family == Family::Ip6))
            .any(|to| may_match(rule, to.addr))
        && names_destination(rule, family)
}

/// Conditions and verdicts that leave no trace where a later condition of the rule fails.
fn is_plain(expr: &Expr) -> bool {
    match expr {
        Expr::Meta { .. }
        | Expr::Payload { .. }
        | Expr::Cmp { .. }
        | Expr::Bitwise { .. }
        | Expr::Counter(_)
        | Expr::Reject { .. }
        | Expr::Header(_)
        | Expr::Match(XtMatch::Comment(_) | XtMatch::Tcp { .. } | XtMatch::Udp { .. })
        | Expr::Target(XtTarget::Reject { .. }) => true,
        Expr::Verdict(verdict) | Expr::Target(XtTarget::Standard(verdict)) => matches!(
            verdict,
            Verdict::Accept | Verdict::Drop | Verdict::Return | Verdict::Jump(_) | Verdict::Goto(_)
        ),
        _ => false,
    }
}

/// Whether the rule looks at the destination at all.
fn names_destination(rule: &Rule, family: Family) -> bool {
    let (offset, _) = place(family == Family::Ip6);
    rule.exprs.iter().any(|expr| match expr {
        Expr::Header(header) => header.dst.is_some(),
        Expr::Payload {
            base, offset: at, ..
        } => *base == PayloadBase::Network && *at == offset,
        _ => false,
    })
}

/// Offset and length of the destination in an IP header.
fn place(v6: bool) -> (u32, usize) {
    if v6 { (24, 16) } else { (16, 4) }
}

/// Whether a packet to this address can match, as far as its destination tells.
fn may_match(rule: &Rule, to: IpAddr) -> bool {
    let bytes = octets(to);
    // The register that holds the destination or its first bytes, perhaps masked.
    let mut held: Option<(Reg, Vec<u8>)> = None;
    for expr in &rule.exprs {
        match expr {
            Expr::Header(header) if !header_fits(header, &bytes) => return false,
            Expr::Payload {
                base: PayloadBase::Network,
                offset,
                len,
                dreg,
            } if *offset == place(to.is_ipv6()).0 => {
                let len = usize::try_from(*len).unwrap_or(usize::MAX);
                held = bytes.get(..len).map(|part| (*dreg, part.to_vec()));
            }
            Expr::Bitwise {
                sreg,
                dreg,
                len,
                op: BitwiseOp::MaskXor { mask, xor },
            } => {
                let own = held.take().filter(|(reg, value)| {
                    let whole = usize::try_from(*len).is_ok_and(|len| len == value.len());
                    reg == sreg && whole && mask.len() == value.len() && xor.len() == value.len()
                });
                held = own.map(|(_, value)| {
                    let pairs = value.iter().zip(mask).zip(xor);
                    (*dreg, pairs.map(|((v, m), x)| (v & m) ^ x).collect())
                });
            }
            Expr::Cmp { op, sreg, data } => {
                let Some((_, value)) = held.as_ref().filter(|(reg, _)| reg == sreg) else {
                    continue;
                };
                let Some(value) = value.get(..data.len()) else {
                    continue;
                };
                let fits = match op {
                    CmpOp::Eq => value == data.as_slice(),
                    CmpOp::Neq => value != data.as_slice(),
                    _ => true,
                };
                if !fits {
                    return false;
                }
            }
            // Anything else that writes registers may write this one.
            Expr::Meta { .. } | Expr::Payload { .. } | Expr::Bitwise { .. } => held = None,
            _ => {}
        }
    }
    true
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

/// `-d`. Source: `ip_packet_match()`, net/ipv4/netfilter/ip_tables.c.
fn header_fits(header: &HeaderMatch, to: &[u8]) -> bool {
    let Some((addr, mask, negated)) = header.dst else {
        return true;
    };
    let (addr, mask) = (octets(addr), octets(mask));
    if addr.len() != to.len() || mask.len() != to.len() {
        return true;
    }
    let triples = to.iter().zip(&mask).zip(&addr);
    let same = triples.into_iter().all(|((t, m), a)| t & m == *a);
    same != negated
}

/// Keys by which packets would be looked up in a set that is too large to send: one address or two, and
/// the protocol and the port where the set has room for them. Which fields a key has is guessed from its
/// length, since few programs say; an answer is true whether the guess was right or not.
pub fn keys(set: &Set, family: Family, about: &Packets) -> Vec<Vec<u8>> {
    if set.flags.interval || set.flags.anonymous {
        return Vec::new();
    }
    let (addresses, service) = match (family, set.key_len) {
        (Family::Ip, 4) | (Family::Ip6, 16) => (1, false),
        // ipv4_addr . inet_proto . inet_service
        (Family::Ip, 12) | (Family::Ip6, 24) => (1, true),
        // ipv4_addr . ipv4_addr . inet_proto . inet_service
        (Family::Ip, 16) | (Family::Ip6, 40) => (2, true),
        _ => return Vec::new(),
    };
    let ours = about
        .to
        .iter()
        .filter(|to| to.addr.is_ipv6() == (family == Family::Ip6));
    let ours: Vec<&Towards> = ours.collect();
    // Who sends is who is sent the answer.
    let senders = if addresses == 1 { 1 } else { ours.len() };
    let mut keys = Vec::new();
    for to in &ours {
        for from in ours.iter().take(senders) {
            let mut key = if addresses == 1 {
                Vec::new()
            } else {
                octets(from.addr)
            };
            key.extend(octets(to.addr));
            match to.service {
                // Each field is padded to a word (NFT_REG32_SIZE).
                Some((protocol, port)) if service => {
                    let [high, low] = port.to_be_bytes();
                    key.extend([protocol, 0, 0, 0, high, low, 0, 0]);
                }
                None if service => continue,
                _ => {}
            }
            keys.push(key);
        }
    }
    keys.sort_unstable();
    keys.dedup();
    keys.truncate(MOST_KEYS);
    keys
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::model::netfilter::{Counters, CtKey, Elements, MetaKey, SetFlags};

    fn packets() -> Packets {
        let to = |addr: [u8; 4], service| Towards {
            addr: Ipv4Addr::from(addr).into(),
            service,
        };
        Packets {
            to: vec![to([10, 96, 0, 7], Some((6, 80))), to([10, 244, 1, 2], None)],
        }
    }

    fn rule(handle: u64, exprs: Vec<Expr>) -> Rule {
        Rule {
            handle,
            exprs,
            comment: None,
        }
    }

    fn jump() -> Expr {
        Expr::Verdict(Verdict::Jump("KUBE-SVC".to_owned()))
    }

    /// `ip daddr ADDR`, its first bytes where there are fewer.
    fn to(addr: &[u8], op: CmpOp) -> Vec<Expr> {
        let load = Expr::Payload {
            base: PayloadBase::Network,
            offset: 16,
            len: u32::try_from(addr.len()).expect("an address"),
            dreg: 4,
        };
        let data = addr.to_vec();
        vec![load, Expr::Cmp { op, sreg: 4, data }]
    }

    fn legacy(addr: [u8; 4], mask: [u8; 4], negated: bool) -> Expr {
        Expr::Header(Box::new(HeaderMatch {
            src: None,
            dst: Some((addr.into(), mask.into(), negated)),
            iif: None,
            oif: None,
            proto: Some((6, false)),
            fragment: None,
        }))
    }

    fn is_left_out(exprs: Vec<Expr>) -> bool {
        can_be_left_out(&rule(1, exprs), Family::Ip, &packets())
    }

    #[test]
    fn rules_for_other_destinations_are_left_out() {
        let other = [10, 96, 0, 8];
        for (exprs, left_out) in [
            (to(&other, CmpOp::Eq), true),
            (to(&other, CmpOp::Neq), false),
            (to(&[10, 96, 0, 7], CmpOp::Eq), false),
            // 10.96.0.0/16 and 10.97.0.0/16 as nft loads them.
            (to(&[10, 96], CmpOp::Eq), false),
            (to(&[10, 97], CmpOp::Eq), true),
            (to(&other, CmpOp::Lt), false),
            (vec![legacy(other, [255; 4], false)], true),
            (vec![legacy(other, [255; 4], true)], false),
            (vec![legacy([10, 96, 0, 0], [255, 255, 0, 0], false)], false),
            (vec![legacy([10, 97, 0, 0], [255, 255, 0, 0], false)], true),
            // Neither is the destination.
            (vec![], false),
            (
                vec![Expr::Meta {
                    key: MetaKey::L4proto,
                    dreg: 1,
                }],
                false,
            ),
        ] {
            let shown = format!("{exprs:?}");
            let exprs = exprs
                .into_iter()
                .chain([Expr::Counter(Counters::default()), jump()]);
            assert_eq!(is_left_out(exprs.collect()), left_out, "{shown}");
        }
    }

    #[test]
    fn what_has_effects_or_is_in_doubt_is_kept() {
        let other = || to(&[10, 96, 0, 8], CmpOp::Eq);
        let with = |at: usize, expr: Expr| {
            let mut exprs = other();
            exprs.insert(at, expr);
            exprs.push(jump());
            exprs
        };
        assert!(!is_left_out(with(0, Expr::Log(Box::default()))));
        assert!(!is_left_out(with(
            2,
            Expr::Connlimit {
                count: 1,
                inverted: false
            }
        )));
        let (key, dreg, dir) = (CtKey::State, 1, None);
        assert!(!is_left_out(with(0, Expr::Ct { key, dreg, dir })));
        // The register was overwritten in between.
        let key = MetaKey::Mark;
        assert!(!is_left_out(with(1, Expr::Meta { key, dreg: 4 })));
        let masked = |mask: [u8; 4]| Expr::Bitwise {
            sreg: 4,
            dreg: 4,
            len: 4,
            op: BitwiseOp::MaskXor {
                mask: mask.to_vec(),
                xor: vec![0; 4],
            },
        };
        assert!(is_left_out(with(1, masked([255, 255, 255, 255]))));
        assert!(is_left_out(with(1, masked([255, 255, 255, 0]))));
        let mut masked_to_own = with(1, masked([255, 255, 255, 0]));
        masked_to_own[2] = Expr::Cmp {
            op: CmpOp::Eq,
            sreg: 4,
            data: vec![10, 96, 0, 0],
        };
        assert!(!is_left_out(masked_to_own));
        // IPv6 packets may meet rules of an inet table, where these bytes are none of the destination.
        let about = packets();
        assert!(Sieve::new(Some(&about), Family::Inet).about.is_none());
    }

    #[test]
    fn short_chains_are_whole_and_long_ones_keep_their_order() {
        let about = packets();
        let read = |count: u8| {
            let mut sieve = Sieve::new(Some(&about), Family::Ip);
            for last in 0..count {
                let mut exprs = to(&[10, 96, 0, last], CmpOp::Eq);
                exprs.push(jump());
                sieve.push(rule(u64::from(last) + 1, exprs));
            }
            sieve.push(rule(999, vec![jump()]));
            sieve.done()
        };
        let (short, sieved) = read(64);
        assert_eq!((short.len(), sieved), (65, None));
        let (long, sieved) = read(200);
        assert_eq!(
            long.iter().map(|rule| rule.handle).collect::<Vec<_>>(),
            [8, 999]
        );
        let sieved = sieved.expect("something was left out");
        assert_eq!(sieved.left_out, 199);
        assert_eq!(sieved.to.len(), 2);
        let mut all = Sieve::new(None, Family::Ip);
        for handle in 0..200 {
            all.push(rule(handle, to(&[1, 2, 3, 4], CmpOp::Eq)));
        }
        assert_eq!(all.done().0.len(), 200);
    }

    #[test]
    fn keys_are_made_for_fields_that_are_understood() {
        let keys = |key_len: u32, interval| {
            let set = Set {
                name: "service-ips".to_owned(),
                flags: SetFlags {
                    map: true,
                    interval,
                    ..SetFlags::default()
                },
                key_len,
                field_lens: Vec::new(),
                data_len: 0,
                decl: crate::model::netfilter::SetDecl::default(),
                elements: Elements::NotAsked,
            };
            keys(&set, Family::Ip, &packets())
        };
        assert_eq!(keys(4, false), [[10, 96, 0, 7], [10, 244, 1, 2]]);
        assert_eq!(keys(12, false), [[10, 96, 0, 7, 6, 0, 0, 0, 0, 80, 0, 0]]);
        assert_eq!(
            keys(16, false),
            [
                [10, 96, 0, 7, 10, 96, 0, 7, 6, 0, 0, 0, 0, 80, 0, 0],
                [10, 244, 1, 2, 10, 96, 0, 7, 6, 0, 0, 0, 0, 80, 0, 0],
            ]
        );
        assert_eq!(keys(8, false).len(), 0);
        assert_eq!(keys(4, true).len(), 0);
    }
}
