//! Legacy x_tables, by `getsockopt(2)`: a table is one blob of entries.
//!
//! Source: include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h; layouts are those of
//! 64-bit kernels. Asking for a table that does not exist makes the kernel create it, so only those that
//! `ip_tables_names` lists are asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::IpAddr;

use super::sieve::Sieve;
use super::sockopt::{GET_ENTRIES, GET_INFO, getsockopt};
use super::xt_match::{self, inet_addr, masked_name};
use super::{nft, xt_target};
use crate::collect::error::{Error, Result};
use crate::collect::nla::{text, u16_at, u32_at, u64_at};
use crate::model::Section;
use crate::model::netfilter::{
    Backend, BaseChain, Chain, ChainKind, Counters, Expr, Family, Hook, Policy, Rule, Sieved,
    Table, Verdict,
};
use crate::model::want::Packets;
use crate::model::xtables::{HeaderMatch, XtTarget};

/// XT_TABLE_MAXNAMELEN
const NAME: usize = 32;
/// `sizeof(struct ipt_getinfo)`
const INFO: usize = 84;
/// `sizeof(struct ipt_get_entries)`: name, size, and padding up to the entries.
const ENTRIES: usize = 40;
/// `sizeof(struct xt_entry_match)` and `_target`
const EXTENSION: usize = 32;
/// Largest table read, in bytes; kube-proxy's with 10,000 Services takes 48 MB.
const MOST: usize = 256 << 20;
/// Tables from this size on are not read where nobody asks for their rules, in bytes.
const LARGE: usize = 64 << 10;
const ATTEMPTS: usize = 8;
const HOOKS: [Hook; 5] = [
    Hook::Prerouting,
    Hook::Input,
    Hook::Forward,
    Hook::Output,
    Hook::Postrouting,
];

/// Where fields of an entry are.
struct Layout {
    v6: bool,
    /// `nfcache`, behind which target_offset, next_offset, comefrom and counters follow.
    nfcache: usize,
    /// `sizeof(struct ipt_entry)`: matches start here.
    size: usize,
}

const V4: Layout = Layout {
    v6: false,
    nfcache: 84,
    size: 112,
};
const V6: Layout = Layout {
    v6: true,
    nfcache: 136,
    size: 168,
};

/// What can be told of a large table without reading it: its base chains. Their policies come with their
/// rules; until then neither decides anything. `None`: the table is small, and told best by reading it.
pub fn outline(socket: &File, v6: bool, name: &str) -> Result<Option<Table>> {
    let operation = format!("look at x_tables table {name}");
    let info = info(socket, v6, name, &operation)?;
    let damaged = || Error::malformed(&operation, "the answer is cut short");
    let size = u32_at(&info, 80).ok_or_else(damaged)? as usize;
    if size < LARGE {
        return Ok(None);
    }
    let valid = u32_at(&info, NAME).ok_or_else(damaged)?;
    let mut table = empty_table(v6, name);
    for (number, hook) in HOOKS.into_iter().enumerate() {
        if valid & (1 << number) == 0 {
            continue;
        }
        let (priority, kind) = base(name, hook);
        let chain = Chain {
            name: hook.name().to_ascii_uppercase(),
            handle: 0,
            base: Some(BaseChain {
                hook,
                priority,
                kind,
                policy: Policy::Accept,
                devices: Vec::new(),
                counters: None,
            }),
            rules: Section::NotAsked,
            sieved: None,
            comment: None,
            bound: false,
        };
        table.chains.insert(chain.name.clone(), chain);
    }
    Ok(Some(table))
}

fn info(socket: &File, v6: bool, name: &str, operation: &str) -> Result<[u8; INFO]> {
    let mut info = [0u8; INFO];
    put_name(&mut info, name);
    getsockopt(socket, v6, GET_INFO, &mut info).map_err(|error| Error::io(operation, &error))?;
    Ok(info)
}

/// A legacy table without chains.
fn empty_table(v6: bool, name: &str) -> Table {
    Table {
        backend: Backend::Legacy,
        family: if v6 { Family::Ip6 } else { Family::Ip },
        name: name.to_owned(),
        dormant: false,
        chains: BTreeMap::new(),
        chains_complete: false,
        sets: BTreeMap::new(),
        sets_complete: true,
        flowtables: BTreeMap::new(),
        objects: Vec::new(),
        comment: None,
    }
}

/// Reads a table that exists.
pub fn read(socket: &File, v6: bool, name: &str) -> Result<Blob> {
    let tool = if v6 {
        "ip6tables-legacy"
    } else {
        "iptables-legacy"
    };
    let operation = format!("read {tool} table {name}");
    for _ in 0..ATTEMPTS {
        let info = info(socket, v6, name, &operation)?;
        let damaged = || Error::malformed(&operation, "its entries can't be decoded");
        let size = u32_at(&info, 80).ok_or_else(damaged)? as usize;
        if size > MOST {
            let what = format!("it takes {size} bytes, more than {MOST}");
            return Err(Error::malformed(operation, what));
        }
        let mut bytes = vec![0u8; ENTRIES + size];
        put_name(&mut bytes, name);
        // `info` is 84 bytes long; its last four are the size.
        if let Some(field) = bytes.get_mut(NAME..NAME + 4) {
            field.copy_from_slice(&info[80..84]);
        }
        match getsockopt(socket, v6, GET_ENTRIES, &mut bytes) {
            Ok(_) => {
                return Blob::index(v6, name, &info, bytes).ok_or_else(damaged);
            }
            // The table changed its size between the two calls.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            Err(error) => return Err(Error::io(operation, &error)),
        }
    }
    Err(Error::Changing { operation })
}

fn put_name(buffer: &mut [u8], name: &str) {
    let len = name.len().min(NAME - 1);
    for (to, from) in buffer.iter_mut().zip(name.as_bytes().iter().take(len)) {
        *to = *from;
    }
}

/// Priority and type of a table's hook (`xt_table.priority`, `nf_nat_ipv4_ops`).
fn base(table: &str, hook: Hook) -> (i32, ChainKind) {
    match (table, hook) {
        ("raw", _) => (-300, ChainKind::Filter),
        ("mangle", Hook::Output) => (-150, ChainKind::Route),
        ("mangle", _) => (-150, ChainKind::Filter),
        ("nat", Hook::Prerouting | Hook::Output) => (-100, ChainKind::Nat),
        ("nat", _) => (100, ChainKind::Nat),
        ("security", _) => (50, ChainKind::Filter),
        _ => (0, ChainKind::Filter),
    }
}

/// An entry of the blob.
struct Entry<'a> {
    bytes: &'a [u8],
    target: &'a str,
    target_data: &'a [u8],
    target_offset: usize,
}

/// A table as the kernel gave it, with its chains found but their rules not decoded: a large table has
/// tens of thousands of chains, of which few are wanted. So little is kept per chain, and no name.
pub struct Blob {
    layout: Layout,
    name: String,
    bytes: Vec<u8>,
    bases: Vec<(String, Range, BaseChain)>,
    /// User chains in the order of their entries.
    users: Vec<User>,
    /// Positions in `users`, in the order of the names.
    by_name: Vec<u32>,
}

/// Where a chain's entries are: from its first to its last, which is its policy or final RETURN.
#[derive(Clone, Copy)]
struct Range {
    first: u32,
    last: u32,
}

/// A chain without a hook; `head` is the entry that bears its name.
#[derive(Clone, Copy)]
struct User {
    head: u32,
    range: Range,
}

impl Blob {
    pub(in crate::collect) fn index(
        v6: bool,
        name: &str,
        info: &[u8],
        bytes: Vec<u8>,
    ) -> Option<Self> {
        let mut blob = Self {
            layout: if v6 { V6 } else { V4 },
            name: name.to_owned(),
            bytes,
            bases: Vec::new(),
            users: Vec::new(),
            by_name: Vec::new(),
        };
        let valid = u32_at(info, NAME)?;
        // A base chain lies between its entry point and its underflow, the policy.
        for (number, hook) in HOOKS.into_iter().enumerate() {
            if valid & (1 << number) == 0 {
                continue;
            }
            let range = Range {
                first: u32_at(info, 36 + 4 * number)?,
                last: u32_at(info, 56 + 4 * number)?,
            };
            let base = blob.base(hook, range.last)?;
            let chain = hook.name().to_ascii_uppercase();
            blob.bases.push((chain, range, base));
        }
        // An ERROR entry heads a user chain, whose rules begin behind it; the last one ends the table.
        let mut user: Option<(u32, u32)> = None;
        let mut previous = 0;
        let mut offset = 0;
        while (offset as usize) < blob.entries().len() {
            let entry = blob.entry(offset)?;
            let next = offset.checked_add(u32::try_from(entry.bytes.len()).ok()?)?;
            if entry.target == "ERROR"
                && let Some((head, first)) = user.replace((offset, next))
            {
                let range = Range {
                    first,
                    last: previous,
                };
                blob.users.push(User { head, range });
            }
            previous = offset;
            offset = next;
        }
        let mut by_name: Vec<u32> = (0..u32::try_from(blob.users.len()).ok()?).collect();
        // iptables writes chains in this order, so that there is nothing to do.
        by_name.sort_by_key(|at| blob.user_name(*at));
        blob.by_name = by_name;
        Some(blob)
    }

    /// Name of a user chain by its position.
    fn user_name(&self, at: u32) -> &[u8] {
        let user = self.users.get(at as usize);
        let entry = user.and_then(|user| self.entry(user.head));
        let data = entry.map(|entry| entry.target_data).unwrap_or_default();
        let end = data.iter().position(|byte| *byte == 0);
        data.get(..end.unwrap_or(data.len())).unwrap_or_default()
    }

    fn range(&self, name: &str) -> Option<(Range, Option<&BaseChain>)> {
        if let Some((_, range, base)) = self.bases.iter().find(|(own, ..)| own == name) {
            return Some((*range, Some(base)));
        }
        let found = self
            .by_name
            .binary_search_by_key(&name.as_bytes(), |at| self.user_name(*at));
        let user = self.users.get(*self.by_name.get(found.ok()?)? as usize)?;
        Some((user.range, None))
    }

    /// Name of the chain whose first rule is at an offset.
    fn starting(&self, first: u32) -> Option<String> {
        if let Some((name, ..)) = self.bases.iter().find(|(_, range, _)| range.first == first) {
            return Some(name.clone());
        }
        let found = self
            .users
            .binary_search_by_key(&first, |user| user.range.first);
        Some(text(self.user_name(u32::try_from(found.ok()?).ok()?)))
    }

    fn entries(&self) -> &[u8] {
        self.bytes.get(ENTRIES..).unwrap_or_default()
    }

    fn entry(&self, offset: u32) -> Option<Entry<'_>> {
        let rest = self.entries().get(offset as usize..)?;
        let target_offset = usize::from(u16_at(rest, self.layout.nfcache + 4)?);
        let next = usize::from(u16_at(rest, self.layout.nfcache + 6)?);
        if next < self.layout.size || target_offset < self.layout.size {
            return None;
        }
        let bytes = rest.get(..next)?;
        let target = bytes.get(target_offset..)?;
        Some(Entry {
            bytes,
            target: extension_name(target)?,
            target_data: target.get(EXTENSION..)?,
            target_offset,
        })
    }

    fn base(&self, hook: Hook, policy: u32) -> Option<BaseChain> {
        let entry = self.entry(policy)?;
        let (priority, kind) = base(&self.name, hook);
        Some(BaseChain {
            hook,
            priority,
            kind,
            policy: match standard(entry.target_data)? {
                Standard::Verdict(Verdict::Drop) => Policy::Drop,
                _ => Policy::Accept,
            },
            devices: Vec::new(),
            counters: Some(counters(&self.layout, &entry)?),
        })
    }

    /// Names of chains that have a hook.
    pub fn base_chains(&self) -> Vec<String> {
        self.bases.iter().map(|(name, ..)| name.clone()).collect()
    }

    /// Names of all chains.
    pub fn all_chains(&self) -> impl Iterator<Item = String> {
        let users = self.by_name.iter().map(|at| text(self.user_name(*at)));
        self.base_chains().into_iter().chain(users)
    }

    /// Number of chains.
    pub fn count(&self) -> usize {
        self.bases.len() + self.users.len()
    }

    /// The table without chains.
    pub fn empty_table(&self) -> Table {
        empty_table(self.layout.v6, &self.name)
    }

    /// A chain without its rules; `None`: the table has no such chain.
    pub fn head(&self, name: &str) -> Option<Chain> {
        let (_, base) = self.range(name)?;
        Some(Chain {
            name: name.to_owned(),
            handle: 0,
            base: base.cloned(),
            rules: Section::NotAsked,
            sieved: None,
            comment: None,
            bound: false,
        })
    }

    /// A chain with its rules, of a long one those that packets can match; `None`: the table has no
    /// such chain.
    pub fn chain(&self, name: &str, about: Option<&Packets>) -> Result<Option<Chain>> {
        let (Some(mut chain), Some((range, _))) = (self.head(name), self.range(name)) else {
            return Ok(None);
        };
        let (rules, sieved) = self.rules(range, about).ok_or_else(|| {
            let operation = format!("read x_tables table {} chain {name}", self.name);
            Error::malformed(operation, "its entries can't be decoded")
        })?;
        chain.rules = Section::Known(rules);
        chain.sieved = sieved;
        Ok(Some(chain))
    }

    fn rules(&self, range: Range, about: Option<&Packets>) -> Option<(Vec<Rule>, Option<Sieved>)> {
        let mut rules = Sieve::new(about, self.family());
        let mut offset = range.first;
        let mut position = 0;
        while offset < range.last {
            let entry = self.entry(offset)?;
            let next = offset.checked_add(u32::try_from(entry.bytes.len()).ok()?)?;
            position += 1;
            rules.push(rule(self, &entry, next, position)?);
            offset = next;
        }
        Some(rules.done())
    }

    fn family(&self) -> Family {
        if self.layout.v6 {
            Family::Ip6
        } else {
            Family::Ip
        }
    }
}

/// Name of a match or target: behind its `u16` size, 29 bytes.
fn extension_name(bytes: &[u8]) -> Option<&str> {
    let name = bytes.get(2..31)?;
    let end = name
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(name.len());
    std::str::from_utf8(name.get(..end)?).ok()
}

fn counters(layout: &Layout, entry: &Entry<'_>) -> Option<Counters> {
    // Behind nfcache (4), two offsets (4), comefrom (4), aligned to 8.
    let at = layout.size - 16;
    Some(Counters {
        packets: u64_at(entry.bytes, at)?,
        bytes: u64_at(entry.bytes, at + 8)?,
    })
}

enum Standard {
    Verdict(Verdict),
    /// Offset of a chain's first rule.
    Jump(u32),
}

/// `struct xt_standard_target`: negative is a verdict - 1, XT_RETURN is -5.
fn standard(data: &[u8]) -> Option<Standard> {
    let verdict = u32_at(data, 0)?.cast_signed();
    Some(match verdict {
        0.. => Standard::Jump(verdict.cast_unsigned()),
        -1 => Standard::Verdict(Verdict::Drop),
        -2 => Standard::Verdict(Verdict::Accept),
        -5 => Standard::Verdict(Verdict::Return),
        // The upper half names the queue; `!queue` is -queue - 1, for the smallest number too.
        queue if !queue & 0xff == 3 => {
            Standard::Verdict(Verdict::Queue(u16::try_from(!queue >> 16).ok()?))
        }
        other => Standard::Verdict(Verdict::Other(other)),
    })
}

fn rule(blob: &Blob, entry: &Entry<'_>, next: u32, position: u64) -> Option<Rule> {
    let layout = &blob.layout;
    let counters = counters(layout, entry)?;
    let header = header(layout, entry.bytes)?;
    let goto =
        *entry.bytes.get(if layout.v6 { 131 } else { 82 })? & if layout.v6 { 0x04 } else { 0x02 };
    let mut exprs = vec![Expr::Header(Box::new(header))];
    let mut at = layout.size;
    while at < entry.target_offset {
        let bytes = entry.bytes.get(at..entry.target_offset)?;
        let size = usize::from(u16_at(bytes, 0)?);
        let data = bytes.get(EXTENSION..size)?;
        let (name, revision) = (extension_name(bytes)?, *bytes.get(31)?);
        exprs.push(Expr::Match(xt_match::decode(
            name, revision, data, layout.v6,
        )));
        at += size;
    }
    exprs.push(Expr::Counter(counters));
    match entry.target {
        "" => match standard(entry.target_data)? {
            Standard::Verdict(verdict) => {
                exprs.push(Expr::Target(XtTarget::Standard(verdict)));
            }
            Standard::Jump(to) => match blob.starting(to) {
                // A rule without a target falls through to the next entry.
                None if to == next => {}
                chain => exprs.push(Expr::Target(XtTarget::Standard(if goto != 0 {
                    Verdict::Goto(chain?)
                } else {
                    Verdict::Jump(chain?)
                }))),
            },
        },
        name => {
            let revision = *entry.bytes.get(entry.target_offset + 31)?;
            let target = xt_target::decode(name, revision, entry.target_data, layout.v6);
            exprs.push(Expr::Target(target));
        }
    }
    exprs.shrink_to_fit(); // large clusters have a hundred thousand rules
    Some(Rule {
        handle: position,
        comment: nft::comment_of(&exprs),
        exprs,
    })
}

/// `struct ipt_ip`, `struct ip6t_ip6`.
fn header(layout: &Layout, entry: &[u8]) -> Option<HeaderMatch> {
    const INV_IN: u8 = 0x01;
    const INV_OUT: u8 = 0x02;
    const INV_SRC: u8 = 0x08;
    const INV_DST: u8 = 0x10;
    const INV_FRAG: u8 = 0x20;
    const INV_PROTO: u8 = 0x40;
    let v6 = layout.v6;
    let width = if v6 { 16 } else { 4 };
    let names = 4 * width;
    let proto_at = names + 64;
    // IPv6 has a TOS byte before the flags.
    let flags_at = proto_at + if v6 { 3 } else { 2 };
    let (flags, invert) = (*entry.get(flags_at)?, *entry.get(flags_at + 1)?);
    let address = |index: usize, inverted: u8| {
        let addr = inet_addr(entry, index * width, v6)?;
        let mask = inet_addr(entry, (index + 2) * width, v6)?;
        let inverted = invert & inverted != 0;
        // "Not any" matches nothing, and so counts.
        Some((inverted || !unspecified(mask)).then_some((addr, mask, inverted)))
    };
    let name = |index: usize, inverted: u8| {
        let at = names + 16 * index;
        let found = masked_name(entry.get(at..at + 16)?, entry.get(at + 32..at + 48)?);
        let inverted = invert & inverted != 0;
        let any = inverted.then(|| "+".to_owned());
        Some(found.or(any).map(|name| (name, inverted)))
    };
    let proto = u8::try_from(u16_at(entry, proto_at)?).ok()?;
    // IPv6 says by a flag that the protocol counts; IPv4 by its not being 0.
    let proto_counts = if v6 { flags & 1 != 0 } else { proto != 0 };
    Some(HeaderMatch {
        src: address(0, INV_SRC)?,
        dst: address(1, INV_DST)?,
        iif: name(0, INV_IN)?,
        oif: name(1, INV_OUT)?,
        proto: proto_counts.then_some((proto, invert & INV_PROTO != 0)),
        fragment: (!v6 && flags & 1 != 0).then_some(invert & INV_FRAG != 0),
    })
}

fn unspecified(mask: IpAddr) -> bool {
    mask.is_unspecified()
}
