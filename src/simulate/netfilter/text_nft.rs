//! Native nf_tables expressions in words: what is in a register is remembered until it is compared.
//!
//! `nft` leaves out conditions that another one implies (`tcp dport` implies `meta l4proto tcp`), so
//! that they are taken back here when that other one comes.

use super::text::{data, verdict};
use super::text_field::{ct, exthdr, fib, meta, payload, raw, rt, socket, xfrm};
use super::text_set;
use super::text_value::{Held, Show, bit_change, show, swap, tcp_flag_names, width};
use crate::model::netfilter::{
    BitwiseOp, CmpOp, Elements, Expr, Family, MetaKey, PayloadBase, Reg, Set, Table, Verdict,
};

/// A rule's words so far.
pub(super) struct Words<'a> {
    pub(super) table: Option<&'a Table>,
    pub(super) parts: Vec<String>,
    held: Vec<(Reg, Held)>,
    /// 4 or 6, where the table or a condition says so.
    pub(super) network: Option<u8>,
    transport: Option<String>,
    /// Conditions on family, protocol and device type that a later one may imply: their parts.
    implied: [Option<usize>; 3],
    /// Lower end of a range: its register, its value, and where its words begin.
    lower: Option<(Reg, String, usize)>,
    /// What could not be said so that `nft` understands it.
    pub(super) lost: Vec<String>,
}

/// Positions in [`Words::implied`].
const FAMILY: usize = 0;
const TRANSPORT: usize = 1;
const DEVICE: usize = 2;

impl<'a> Words<'a> {
    pub(super) fn new(table: Option<&'a Table>) -> Self {
        Self {
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
            lower: None,
            lost: Vec::new(),
        }
    }

    /// Adds words; an empty text adds none.
    pub(super) fn push(&mut self, text: &str) {
        if !text.is_empty() {
            self.parts.push(text.to_owned());
        }
    }

    /// The line, and what of it could not be said.
    pub(super) fn done(self) -> (String, Vec<String>) {
        let said = self.parts.into_iter().filter(|part| !part.is_empty());
        (said.collect::<Vec<_>>().join(" "), self.lost)
    }

    pub(super) fn lose(&mut self, what: &str) {
        self.lost.push(what.to_owned());
    }

    fn hold(&mut self, reg: Reg, nft: &str, show: Show) {
        self.put(reg, Held::named(nft, show));
    }

    fn put(&mut self, reg: Reg, held: Held) {
        self.held.retain(|(own, _)| *own != reg);
        self.held.push((reg, held));
    }

    pub(super) fn held(&self, reg: Reg) -> Held {
        let found = self.held.iter().find(|(own, _)| *own == reg);
        found.map_or_else(
            || Held::named(&format!("reg {reg}"), Show::Raw),
            |(_, held)| held.clone(),
        )
    }

    fn is_held(&self, reg: Reg) -> bool {
        self.held.iter().any(|(own, _)| *own == reg)
    }

    /// All that a key is made of, from its first register on, and for how many words.
    fn key_parts(&self, reg: Reg, len: Option<u32>) -> Vec<(Reg, Held)> {
        let end = len.map_or(u32::MAX, |len| u32::from(reg) + len.div_ceil(4).max(1));
        let within = |own: Reg| own >= reg && u32::from(own) < end;
        let mut parts: Vec<(Reg, Held)> = self
            .held
            .iter()
            .filter(|(own, _)| within(*own))
            .cloned()
            .collect();
        parts.sort_by_key(|(own, _)| *own);
        parts
    }

    /// Its name.
    pub(super) fn key(&mut self, reg: Reg, len: Option<u32>) -> String {
        let parts = self.key_parts(reg, len);
        if parts.is_empty() {
            self.lose("a key whose parts are not known");
        }
        let names: Vec<String> = parts.iter().map(|(_, held)| key_name(held)).collect();
        names.join(" . ")
    }

    /// Takes back a condition that what comes now implies. `nft` would put it right before that, so that it
    /// must stand there.
    fn implies(&mut self, which: usize) {
        let Some(slot) = self.implied.get_mut(which) else {
            return;
        };
        let last = self.parts.iter().rposition(|part| !part.is_empty());
        if slot.is_some() && *slot == last {
            let part = slot.take().and_then(|at| self.parts.get_mut(at));
            part.map(String::clear);
        }
    }

    /// Takes back what a part of the packet implies.
    fn implied_by(&mut self, base: PayloadBase, nft: &str) {
        match base {
            PayloadBase::LinkLayer if nft.starts_with("ether") => self.implies(DEVICE),
            PayloadBase::Network if nft.starts_with("ip") => self.implies(FAMILY),
            PayloadBase::Transport if nft.starts_with("icmp") => {
                self.implies(TRANSPORT);
                self.implies(FAMILY);
            }
            PayloadBase::Transport if !nft.starts_with(['@', 't']) || nft.starts_with("tcp") => {
                self.implies(TRANSPORT);
            }
            _ => {}
        }
    }

    fn implied_by_held(&mut self, held: &Held) {
        if let Some((base, ..)) = held.place {
            self.implied_by(base, &held.nft);
        }
    }

    /// Adds a native expression.
    pub(super) fn native(&mut self, expr: &Expr) {
        match expr {
            Expr::Meta { key, dreg } => {
                let (nft, show) = meta(*key);
                if let MetaKey::Other(_) = key
                    && show == Show::Raw
                {
                    self.lose(&nft);
                }
                self.hold(*dreg, &nft, show);
            }
            Expr::Payload {
                base,
                offset,
                len,
                dreg,
            } => {
                let family = self.table.map(|table| table.family);
                let transport = self.transport.as_deref();
                let (nft, show) = payload(*base, *offset, *len, family, self.network, transport);
                let held = Held {
                    place: Some((*base, *offset, *len)),
                    raw: Some(raw(*base, *offset, *len)),
                    ..Held::named(&nft, show)
                };
                self.put(*dreg, held);
            }
            Expr::Ct { key, dreg, dir } => {
                let way = match dir {
                    Some(0) => "original ",
                    Some(_) => "reply ",
                    None => "",
                };
                let (name, show) = ct(*key);
                self.hold(*dreg, &format!("ct {way}{name}"), show);
            }
            Expr::Fib {
                dreg,
                result,
                saddr,
                daddr,
                mark,
                iif,
                oif,
                present,
            } => {
                let words = [
                    (*saddr, "saddr"),
                    (*daddr, "daddr"),
                    (*mark, "mark"),
                    (*iif, "iif"),
                    (*oif, "oif"),
                ];
                let keys: Vec<&str> = words
                    .iter()
                    .filter(|(on, _)| *on)
                    .map(|(_, w)| *w)
                    .collect();
                let (word, show) = fib(*result, *present);
                self.hold(*dreg, &format!("fib {} {word}", keys.join(" . ")), show);
            }
            Expr::Numgen {
                dreg,
                modulus,
                offset,
                random,
            } => {
                let kind = if *random { "random" } else { "inc" };
                let nft = format!("numgen {kind} mod {modulus}{}", from(*offset));
                self.hold(*dreg, &nft, Show::Host);
            }
            Expr::Hash {
                dreg,
                modulus,
                offset,
                jhash,
            } => {
                let nft = match jhash {
                    Some((reg, len, seed)) => {
                        let seed = seed.map_or_else(String::new, |seed| format!(" seed {seed:#x}"));
                        format!("jhash {} mod {modulus}{seed}", self.key(*reg, Some(*len)))
                    }
                    None => format!("symhash mod {modulus}"),
                };
                let nft = format!("{nft}{}", from(*offset));
                self.hold(*dreg, &nft, Show::Host);
            }
            Expr::Exthdr {
                place,
                dreg,
                present,
            } => {
                let (nft, show) = exthdr(place, *present);
                // Only options of TCP may be told by place.
                if place.op != 1 && nft.contains('@') {
                    self.lose("a field of an extension header that has no name");
                }
                self.hold(*dreg, &nft, show);
            }
            Expr::Socket { key, level, dreg } => {
                let (nft, show) = socket(*key, *level);
                // The kernel tells the number of a control group, `nft` wants its path.
                if *key > 2 {
                    self.lose(&nft);
                }
                self.hold(*dreg, &nft, show);
            }
            Expr::Rt { key, dreg } => {
                let (nft, show) = rt(*key, self.table.map(|table| table.family));
                self.hold(*dreg, nft, show);
            }
            Expr::Osf { dreg, ttl, flags } => {
                let ttl = match ttl {
                    1 => " ttl loose",
                    2 => " ttl skip",
                    _ => "",
                };
                let what = if flags & 1 != 0 { "version" } else { "name" };
                self.hold(*dreg, &format!("osf{ttl} {what}"), Show::Name);
            }
            Expr::Xfrm {
                key,
                dir,
                spnum,
                dreg,
            } => {
                let (nft, show) = xfrm(*key, *dir, *spnum);
                self.hold(*dreg, &nft, show);
            }
            Expr::Tunnel { key, dreg, .. } => {
                let nft = if *key == 0 {
                    "tunnel path"
                } else {
                    "tunnel id"
                };
                self.lose(nft);
                self.hold(*dreg, nft, Show::Host);
            }
            Expr::Inner { expr, .. } => {
                self.lose("an expression on a tunnel's inner packet");
                self.native(expr);
            }
            Expr::Immediate { dreg, data: value } => self.put(
                *dreg,
                Held {
                    value: Some(value.clone()),
                    ..Held::named(&data(value), Show::Raw)
                },
            ),
            Expr::Bitwise { sreg, dreg, op, .. } => {
                let held = self.held(*sreg);
                let held = self.bitwise(held, op);
                self.put(*dreg, held);
            }
            Expr::Byteorder {
                sreg, dreg, size, ..
            } => {
                let mut held = self.held(*sreg);
                // Values are compared in the other order from here on.
                held.swapped = usize::try_from(*size).unwrap_or(0);
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
                self.implied_by_held(&held);
                let not = if *negate { "!= " } else { "" };
                let text = format!(
                    "{} {not}{}-{}",
                    key_name(&held),
                    show(&held, from),
                    show(&held, to)
                );
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

    fn bitwise(&mut self, mut held: Held, op: &BitwiseOp) -> Held {
        match op {
            BitwiseOp::MaskXor { mask, xor } => {
                if xor.iter().any(|byte| *byte != 0) || held.mask.is_some() {
                    let host = held.is_host() && held.swapped == 0;
                    let name = key_name(&held);
                    held.nft = bit_change(&name, mask, xor, host);
                    held.mask = None;
                } else {
                    held.mask = Some(mask.clone());
                }
            }
            // A field of six bits, moved to the right end of its byte.
            BitwiseOp::Rshift(2)
                if held.show == Show::Dscp && held.mask.as_deref() == Some(&[0xfc]) =>
            {
                held.show = Show::DscpNumber;
                held.mask = None;
            }
            BitwiseOp::Lshift(bits) => held.nft = format!("{} << {bits}", key_name(&held)),
            BitwiseOp::Rshift(bits) => {
                held.nft = format!("{} >> {bits}", key_name(&held));
                held.mask = None;
            }
            BitwiseOp::Register { .. } => {
                self.lose("a bit operation of two registers");
                held.nft = format!("({} ...)", held.nft);
            }
        }
        held
    }

    fn set(&self, name: &str) -> Option<&'a Set> {
        self.table?.sets.get(name)
    }

    pub(super) fn key_len(&self, set: &str) -> Option<u32> {
        self.set(set).map(|set| set.key_len).filter(|len| *len > 0)
    }

    fn lookup(&mut self, set: &str, sreg: Reg, dreg: Option<Reg>, inverted: bool) {
        let key = self.key(sreg, self.key_len(set));
        let members = self.members(set, sreg);
        // What a map leads to is used by a statement, which implies nothing.
        if dreg.is_none_or(|dreg| dreg == 0) {
            let parts = self.key_parts(sreg, self.key_len(set));
            for (_, held) in parts.into_iter().rev() {
                self.implied_by_held(&held);
            }
        }
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
            let mapped = Held {
                mapped: true,
                ..Held::named(&format!("{key} map {members}"), Show::Raw)
            };
            self.put(dreg, mapped);
        }
    }

    /// A set by name; one that belongs to the rule by its elements.
    pub(super) fn members(&mut self, name: &str, sreg: Reg) -> String {
        let set = self.set(name);
        let Some((set, elements)) = set.and_then(|set| match &set.elements {
            Elements::Known(elements) if set.flags.anonymous => Some((set, elements)),
            _ => None,
        }) else {
            if set.is_some_and(|set| set.flags.anonymous) {
                self.lose("a set whose elements were not read");
            }
            return format!("@{name}");
        };
        let fields = self.key_parts(sreg, Some(set.key_len));
        let fields: Vec<(usize, Held)> = fields
            .into_iter()
            .map(|(reg, held)| (usize::from(reg.saturating_sub(sreg)) * 4, held))
            .collect();
        let (words, lost) = text_set::elements(set, elements, &fields);
        self.lost.extend(lost);
        format!("{{ {} }}", words.join(", "))
    }

    /// What a register holds, shown as what it is put into.
    pub(super) fn value(&self, reg: Reg, as_what: Show) -> String {
        let held = self.held(reg);
        match &held.value {
            Some(bytes) => {
                let shown = Held {
                    show: as_what,
                    mask: None,
                    ..held.clone()
                };
                show(&shown, bytes)
            }
            None => key_name(&held),
        }
    }

    /// ` to ADDRESS:PORT` of a translation, with its ranges.
    pub(super) fn to(
        &mut self,
        addrs: (Option<Reg>, Option<Reg>),
        ports: (Option<Reg>, Option<Reg>),
    ) -> String {
        // A map gives all at once, in registers of which only the first has words.
        if let Some(reg) = addrs.0.or(ports.0)
            && self.is_held(reg)
            && self.held(reg).mapped
        {
            let colon = if addrs.0.is_none() { ":" } else { "" };
            return format!(" to {colon}{}", self.held(reg).nft);
        }
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
            (Some(addr), Some(port)) if addr.contains("::") || addr.matches(':').count() > 2 => {
                let ends: Vec<String> = addr.split('-').map(|end| format!("[{end}]")).collect();
                format!(" to {}:{port}", ends.join("-"))
            }
            (Some(addr), Some(port)) => format!(" to {addr}:{port}"),
            (Some(addr), None) => format!(" to {addr}"),
            (None, Some(port)) => format!(" to :{port}"),
            (None, None) => String::new(),
        }
    }

    fn compare(&mut self, op: CmpOp, sreg: Reg, value: &[u8]) {
        let mut held = self.held(sreg);
        if !self.is_held(sreg) {
            self.lose("a comparison of what was not loaded");
        }
        // Under another mask than its own a field has no name.
        let whole = match held.show {
            Show::Dscp => held.mask.as_deref() == Some(&[0xfc]),
            Show::Dscp6 => held.mask.as_deref() == Some(&[0x0f, 0xc0]),
            _ => true,
        };
        if let (false, Some(raw)) = (whole, &held.raw) {
            held.nft.clone_from(raw);
            held.show = Show::Hex;
            held.place = None;
        }
        self.implied_by_held(&held);
        if let (CmpOp::Eq, None, Some(text)) = (op, &held.mask, self.several(&held, value)) {
            self.held.retain(|(own, _)| *own != sreg);
            self.parts.push(text);
            return;
        }
        let shown = show(&held, value);
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
            self.parts
                .push(format!("{} {first}-{shown}", key_name(&held)));
            return;
        }
        let text = plain(&held, op, value, &shown);
        self.parts.push(text);
    }

    /// Fields that stand side by side are compared at once by `nft`, and printed one by one.
    fn several(&mut self, held: &Held, value: &[u8]) -> Option<String> {
        let (base, mut offset, len) = held.place?;
        if !held.nft.starts_with('@') {
            return None;
        }
        let end = offset.checked_add(len)?;
        let mut rest = value;
        let mut words = Vec::new();
        while offset < end {
            let room = end - offset;
            let lens = [16, 6, 4, 2, 1].into_iter().filter(|len| *len <= room);
            let field = lens.map(|len| (len, self.payload_name(base, offset, len)));
            // Only whole fields: a shorter address would be a prefix.
            let (len, (name, how)) = field.into_iter().find(|(len, (name, how))| {
                let whole = width(*how).is_none_or(|own| u32::try_from(own) == Ok(*len));
                !name.starts_with('@') && whole
            })?;
            let (own, more) = rest.split_at_checked(usize::try_from(len).ok()?)?;
            words.push(format!("{name} {}", show(&Held::named("", how), own)));
            rest = more;
            offset += len;
        }
        Some(words.join(" "))
    }

    /// What a comparison tells about the packet, for the names of what is loaded later.
    fn learn(&mut self, held: &Held, op: CmpOp, value: &[u8]) {
        if op != CmpOp::Eq || held.mask.is_some() {
            return;
        }
        let at = Some(self.parts.len());
        let which = match (held.show, value) {
            (Show::Family, [2, ..]) | (Show::Ethertype, [8, 0]) => {
                self.network = Some(4);
                FAMILY
            }
            (Show::Family, [10, ..]) | (Show::Ethertype, [0x86, 0xdd]) => {
                self.network = Some(6);
                FAMILY
            }
            (Show::Ethertype, [8, 6]) => {
                self.network = Some(1);
                FAMILY
            }
            (Show::Protocol, [protocol]) => {
                self.transport = Some(super::text::protocol_name(*protocol));
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

    /// Takes back the family that a refusal implies.
    pub(super) fn implies_family(&mut self) {
        self.implies(FAMILY);
    }

    pub(super) fn payload_name(
        &mut self,
        base: PayloadBase,
        offset: u32,
        len: u32,
    ) -> (String, Show) {
        let family = self.table.map(|table| table.family);
        let found = payload(
            base,
            offset,
            len,
            family,
            self.network,
            self.transport.as_deref(),
        );
        self.implied_by(base, &found.0);
        found
    }

    /// A verdict; one that leads to a chain of the rule's own with its rules.
    pub(super) fn verdict(&mut self, to: &Verdict) -> String {
        let (word, name) = match to {
            Verdict::Jump(name) => ("jump", name),
            Verdict::Goto(name) => ("goto", name),
            Verdict::Stolen | Verdict::Other(_) | Verdict::Queue(_) => {
                self.lose("a verdict that nft has no word for");
                return verdict(to, super::text::Style::Nft);
            }
            _ => return verdict(to, super::text::Style::Nft),
        };
        let chain = self.table.and_then(|table| table.chains.get(name));
        let Some((table, chain)) = self.table.zip(chain.filter(|chain| chain.bound)) else {
            return verdict(to, super::text::Style::Nft);
        };
        let mut inside = Vec::new();
        for rule in chain.rules.known().into_iter().flatten() {
            let (text, lost) = super::text::nft(rule, Some(table));
            self.lost.extend(lost);
            inside.push(text);
        }
        format!("{word} {{ {}; }}", inside.join("; "))
    }
}

/// What is looked at, with the mask under which it is.
fn key_name(held: &Held) -> String {
    match (&held.mask, held.show) {
        (None, _) => held.nft.clone(),
        (Some(mask), Show::Dscp) if mask == &[0xfc] => held.nft.clone(),
        (Some(mask), Show::Dscp6) if mask == &[0x0f, 0xc0] => held.nft.clone(),
        (Some(mask), Show::Addr | Show::Addr6) => {
            let plain = Held::named("", held.show);
            format!("{} & {}", held.nft, show(&plain, mask))
        }
        (Some(mask), _) => format!("{} & {}", held.nft, bits(held, mask)),
    }
}

/// A mask, or what is compared under one.
fn bits(held: &Held, bytes: &[u8]) -> String {
    let plain = Held {
        mask: None,
        ..held.clone()
    };
    let shown = show(&plain, bytes);
    if shown.contains(',') {
        return format!("({})", shown.replace(',', " | "));
    }
    shown
}

/// A comparison.
fn plain(held: &Held, op: CmpOp, value: &[u8], shown: &str) -> String {
    let sign = match op {
        CmpOp::Eq => "",
        CmpOp::Neq => "!= ",
        CmpOp::Lt => "< ",
        CmpOp::Lte => "<= ",
        CmpOp::Gt => "> ",
        CmpOp::Gte => ">= ",
    };
    let nft = &held.nft;
    let mask = held.mask.as_ref().filter(|mask| match held.show {
        // A prefix says its mask itself.
        Show::Addr | Show::Addr6 => !is_prefix(mask),
        Show::Dscp | Show::Dscp6 => false,
        _ => true,
    });
    let Some(mask) = mask else {
        // Several flags at once are told apart from any of them.
        let flags = matches!(held.show, Show::State | Show::Status | Show::TcpFlags);
        if flags && shown.contains(',') {
            let all = shown.replace(',', " | ");
            return match op {
                CmpOp::Eq => format!("{nft} == {all}"),
                _ => format!("{nft} {sign}{all}"),
            };
        }
        return match (flags, op) {
            (true, CmpOp::Eq) => format!("{nft} == {shown}"),
            _ => format!("{nft} {sign}{shown}"),
        };
    };
    if matches!(held.show, Show::Addr | Show::Addr6) {
        let whole = Held::named("", held.show);
        let (mask, value) = (show(&whole, mask), show(&whole, value));
        return match op {
            CmpOp::Eq => format!("{nft} & {mask} == {value}"),
            _ => format!("{nft} & {mask} {sign}{value}"),
        };
    }
    let zero = value.iter().all(|byte| *byte == 0);
    let own = bits(held, mask);
    let flags = matches!(
        held.show,
        Show::State | Show::Status | Show::TcpFlags | Show::Labels
    );
    if held.show == Show::TcpFlags {
        let all = tcp_flag_names(mask);
        return match op {
            CmpOp::Neq if zero => format!("{nft} {all}"),
            CmpOp::Eq if zero => format!("{nft} ! {all}"),
            CmpOp::Eq | CmpOp::Neq => format!("{nft} {sign}{shown} / {all}"),
            _ => format!("{nft} & {own} {sign}{}", bits(held, value)),
        };
    }
    match op {
        // A flag test: any bit of the mask.
        CmpOp::Neq if zero && flags => format!("{nft} {}", show(&Held::named("", held.show), mask)),
        CmpOp::Eq if zero && flags => {
            format!("{nft} ! {}", show(&Held::named("", held.show), mask))
        }
        CmpOp::Eq => format!(
            "{nft} & {own} == {}",
            bits(held, value).trim_matches(['(', ')'])
        ),
        _ => format!(
            "{nft} & {own} {sign}{}",
            bits(held, value).trim_matches(['(', ')'])
        ),
    }
}

/// Whether all bits that are set come first.
fn is_prefix(mask: &[u8]) -> bool {
    let mut ended = false;
    mask.iter().all(|byte| {
        let fits = byte.leading_ones() == byte.count_ones() && (!ended || *byte == 0);
        ended |= *byte != 0xff;
        fits
    })
}

fn from(offset: u32) -> String {
    if offset == 0 {
        String::new()
    } else {
        format!(" offset {offset}")
    }
}

/// Reverses the bytes of a value that is compared in the other order.
pub(super) fn unswapped(held: &Held, bytes: &[u8]) -> Vec<u8> {
    if held.swapped == 0 {
        bytes.to_vec()
    } else {
        swap(bytes, held.swapped)
    }
}
