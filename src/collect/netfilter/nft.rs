//! Tables, chains and rules of nf_tables, by nfnetlink.
//!
//! Rules are dumped chain by chain: one dump of all rules is quadratic in the kernel, which counts from the
//! first rule again for every datagram. Source: include/uapi/linux/netfilter/nf_tables.h.

use super::expr;
use super::sieve::Sieve;
use crate::collect::error::{Error, Result};
use crate::collect::netlink::Netlink;
use crate::collect::nla::{Attrs, Writer, be32, be64, text};
use crate::model::Section;
use crate::model::netfilter::{
    BaseChain, Chain, ChainKind, Expr, Family, Flowtable, Hook, Policy, Rule, Sieved,
};
use crate::model::want::Packets;
use crate::model::xtables::XtMatch;

const GET_TABLE: u16 = 0x0a01;
const GET_CHAIN: u16 = 0x0a04;
const GET_RULE: u16 = 0x0a07;
const GET_GEN: u16 = 0x0a10;
const GET_FLOWTABLE: u16 = 0x0a17;
/// `sizeof(struct nfgenmsg)`
const HEADER: usize = 4;
const NFT_TABLE_F_DORMANT: u32 = 1;

/// NFPROTO_* of a family.
pub fn family_number(family: Family) -> u8 {
    match family {
        Family::Inet => 1,
        Family::Ip => 2,
        Family::Arp => 3,
        Family::Netdev => 5,
        Family::Bridge => 7,
        Family::Ip6 => 10,
    }
}

pub(super) fn family(number: u8) -> Option<Family> {
    Some(match number {
        1 => Family::Inet,
        2 => Family::Ip,
        3 => Family::Arp,
        5 => Family::Netdev,
        7 => Family::Bridge,
        10 => Family::Ip6,
        _ => return None,
    })
}

/// A request's header for a family; 0 is all.
pub fn request(family: u8) -> Writer {
    Writer::new(&[family, 0, 0, 0])
}

/// Generation of the rules (NFTA_GEN_ID): changes with each transaction.
pub fn generation(socket: &mut Netlink) -> Result<u32> {
    let operation = "read the generation of nf_tables";
    let answer = socket.get(GET_GEN, request(0).bytes(), operation)?;
    answer
        .as_deref()
        .and_then(|body| be32(Attrs(body.get(HEADER..)?).find(1)?))
        .ok_or_else(|| Error::malformed(operation, "the answer holds none"))
}

/// Name of a table and whether it is dormant.
pub struct TableHead {
    /// Family.
    pub family: Family,
    /// Name.
    pub name: String,
    /// NFT_TABLE_F_DORMANT
    pub dormant: bool,
    /// Comment.
    pub comment: Option<String>,
}

/// All tables.
pub fn tables(socket: &mut Netlink) -> Result<Vec<TableHead>> {
    socket.dump(
        GET_TABLE,
        request(0).bytes(),
        "list nf_tables tables",
        Vec::new,
        |tables, _, body| tables.extend(table(body)),
    )
}

pub(in crate::collect) fn table(body: &[u8]) -> Option<TableHead> {
    let attrs = Attrs(body.get(HEADER..)?);
    let flags = attrs.find(2).and_then(be32).unwrap_or(0);
    Some(TableHead {
        family: family(*body.first()?)?,
        name: text(attrs.find(1)?),
        dormant: flags & NFT_TABLE_F_DORMANT != 0,
        comment: attrs.find(6).and_then(user_comment),
    })
}

/// A chain and the table it is in.
pub type ChainOf = (Family, String, Chain);
/// Chains, and the tables of those that were left out.
pub type Chains = (Vec<ChainOf>, Vec<(Family, String)>);
/// Family, table and name of a flowtable.
pub type FlowtableOf = (Family, String, String, Flowtable);

/// All chains of all tables, without their rules. `only_base` leaves out those without a hook and counts
/// them.
pub fn chains(socket: &mut Netlink, only_base: bool) -> Result<Chains> {
    let (found, left_out, damaged) = socket.dump(
        GET_CHAIN,
        request(0).bytes(),
        "list nf_tables chains",
        || (Vec::new(), Vec::new(), None),
        |(found, left_out, damaged): &mut (Vec<ChainOf>, Vec<(Family, String)>, _), _, body| {
            // Large clusters have tens of thousands that are only counted.
            if only_base && left_out.last().is_some_and(|known| is_inner(body, known)) {
                return;
            }
            match chain(body) {
                Ok((family, table, chain)) if only_base && chain.base.is_none() => {
                    // One per table is enough to know that its chains are not complete.
                    let key = (family, table);
                    if left_out.last() != Some(&key) {
                        left_out.push(key);
                    }
                }
                Ok(chain) => found.push(chain),
                Err(what) => *damaged = Some(what),
            }
        },
    )?;
    match damaged {
        None => Ok((found, left_out)),
        Some(what) => Err(Error::malformed("list nf_tables chains", what)),
    }
}

/// Whether this is a chain of that table without a hook.
fn is_inner(body: &[u8], (of, table): &(Family, String)) -> bool {
    let attrs = Attrs(body.get(HEADER..).unwrap_or_default());
    let name = attrs.find(1).and_then(|name| name.strip_suffix(&[0]));
    let same = body.first().copied().and_then(family) == Some(*of);
    same && name == Some(table.as_bytes()) && attrs.find(3).is_some() && attrs.find(4).is_none()
}

/// One chain without its rules; `None` where the table has no such chain.
pub fn chain_head(
    socket: &mut Netlink,
    family: Family,
    table: &str,
    name: &str,
) -> Result<Option<Chain>> {
    let operation = format!("read nf_tables chain {} {table} {name}", family.name());
    let mut message = request(family_number(family));
    message.put_text(1, table).put_text(3, name);
    let Some(body) = socket.get(GET_CHAIN, message.bytes(), &operation)? else {
        return Ok(None);
    };
    match chain(&body) {
        Ok((_, _, chain)) => Ok(Some(chain)),
        Err(what) => Err(Error::malformed(operation, what)),
    }
}

pub(in crate::collect) fn chain(body: &[u8]) -> std::result::Result<ChainOf, String> {
    let damaged = || "a chain without table or name".to_owned();
    let attrs = Attrs(body.get(HEADER..).ok_or_else(damaged)?);
    let number = body.first().copied().unwrap_or(0);
    let family = family(number).ok_or_else(|| format!("a chain of unknown family {number}"))?;
    let table = attrs.find(1).map(text).ok_or_else(damaged)?;
    let name = attrs.find(3).map(text).ok_or_else(damaged)?;
    let base = match attrs.find(4) {
        Some(nest) => {
            let base = base_chain(family, attrs, Attrs(nest));
            Some(base.ok_or_else(|| format!("the hook of chain {name} is not known"))?)
        }
        None => None,
    };
    let flags = attrs.find(10).and_then(be32).unwrap_or(0);
    let chain = Chain {
        handle: attrs.find(2).and_then(be64).unwrap_or(0),
        name,
        base,
        rules: Section::NotAsked,
        sieved: None,
        comment: attrs.find(12).and_then(user_comment),
        // NFT_CHAIN_BINDING
        bound: flags & 4 != 0,
    };
    Ok((family, table, chain))
}

fn base_chain(family: Family, attrs: Attrs<'_>, nest: Attrs<'_>) -> Option<BaseChain> {
    let kind = match text(attrs.find(7)?).as_str() {
        "filter" => ChainKind::Filter,
        "nat" => ChainKind::Nat,
        "route" => ChainKind::Route,
        _ => return None,
    };
    let policy = match attrs.find(5).and_then(be32) {
        Some(0) => Policy::Drop,
        Some(1) | None => Policy::Accept,
        Some(_) => return None,
    };
    let one = nest.find(3).map(text).into_iter();
    let many = Attrs(nest.find(4).unwrap_or_default()).map(|(kind, name)| device(kind, name));
    let mut devices: Vec<String> = one.chain(many).collect();
    devices.dedup();
    Some(BaseChain {
        hook: hook(family, be32(nest.find(1)?)?)?,
        priority: be32(nest.find(2)?)?.cast_signed(),
        kind,
        policy,
        devices,
        counters: attrs
            .find(8)
            .and_then(|counters| expr::counters(Attrs(counters))),
    })
}

/// NFTA_DEVICE_NAME, or NFTA_DEVICE_PREFIX (2, from 6.16 on), which stands for all names that begin so.
fn device(kind: u16, name: &[u8]) -> String {
    let name = text(name);
    if kind == 2 { format!("{name}*") } else { name }
}

/// NF_INET_*, NF_BR_*, NF_ARP_* and NF_NETDEV_* numbers.
fn hook(family: Family, number: u32) -> Option<Hook> {
    Some(match (family, number) {
        (Family::Netdev, 0) | (Family::Inet, 5) => Hook::Ingress,
        (Family::Netdev, 1) => Hook::Egress,
        (Family::Arp, 0) => Hook::Input,
        (Family::Arp, 1) => Hook::Output,
        (Family::Arp, 2) => Hook::Forward,
        (Family::Netdev | Family::Arp, _) => return None,
        (_, 0) => Hook::Prerouting,
        (_, 1) => Hook::Input,
        (_, 2) => Hook::Forward,
        (_, 3) => Hook::Output,
        (_, 4) => Hook::Postrouting,
        _ => return None,
    })
}

/// Rules of one chain, in order; of a long one those that packets can match, and what was left out.
pub fn rules(
    socket: &mut Netlink,
    family: Family,
    table: &str,
    chain: &str,
    about: Option<&Packets>,
) -> Result<(Vec<Rule>, Option<Sieved>)> {
    let operation = format!("list nf_tables rules of {} {table} {chain}", family.name());
    let mut message = request(family_number(family));
    message.put_text(1, table).put_text(2, chain);
    let sieve = socket.dump(
        GET_RULE,
        message.bytes(),
        &operation,
        || Some(Sieve::new(about, family)),
        |sieve, _, body| match (rule(family, body), sieve.as_mut()) {
            (Some(rule), Some(sieve)) => sieve.push(rule),
            _ => *sieve = None,
        },
    )?;
    sieve
        .map(Sieve::done)
        .ok_or_else(|| Error::malformed(&operation, "a rule without a handle"))
}

pub(in crate::collect) fn rule(family: Family, body: &[u8]) -> Option<Rule> {
    let attrs = Attrs(body.get(HEADER..)?);
    let mut exprs = attrs
        .find(4)
        .map(|list| expr::decode_list(list, family))
        .unwrap_or_default();
    exprs.shrink_to_fit(); // large clusters have a hundred thousand rules
    let comment = attrs
        .find(7)
        .and_then(user_comment)
        .or_else(|| comment_of(&exprs));
    Some(Rule {
        handle: be64(attrs.find(3)?)?,
        exprs,
        comment,
    })
}

/// Comment in the user data of a table, chain, rule, object or element.
pub fn user_comment(data: &[u8]) -> Option<String> {
    user_data(data, 0).map(text)
}

/// A value in user data, which is libnftnl's own list of type, length, value.
pub fn user_data(mut data: &[u8], wanted: u8) -> Option<&[u8]> {
    while let [kind, len, rest @ ..] = data {
        let (value, after) = rest.split_at_checked(usize::from(*len))?;
        if *kind == wanted {
            return Some(value);
        }
        data = after;
    }
    None
}

/// Comment of the `comment` match.
pub fn comment_of(exprs: &[Expr]) -> Option<String> {
    exprs.iter().find_map(|expr| match expr {
        Expr::Match(XtMatch::Comment(comment)) => Some(comment.clone()),
        _ => None,
    })
}

/// Flowtables of all tables, as family, table, name and devices.
pub fn flowtables(socket: &mut Netlink) -> Result<Vec<FlowtableOf>> {
    let found = socket.dump(
        GET_FLOWTABLE,
        request(0).bytes(),
        "list nf_tables flowtables",
        Vec::new,
        |found, _, body| found.extend(flowtable(body)),
    );
    match found {
        // Kernels without flowtables (before 4.16) do not know the message.
        Err(error) if matches!(error.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok(Vec::new())
        }
        other => other,
    }
}

pub(in crate::collect) fn flowtable(body: &[u8]) -> Option<FlowtableOf> {
    let attrs = Attrs(body.get(HEADER..)?);
    let hook = Attrs(attrs.find(3).unwrap_or_default());
    let devices = Attrs(hook.find(3).unwrap_or_default());
    let priority = hook.find(2).and_then(be32).unwrap_or(0);
    Some((
        family(*body.first()?)?,
        text(attrs.find(1)?),
        text(attrs.find(2)?),
        Flowtable {
            devices: devices.map(|(kind, name)| device(kind, name)).collect(),
            priority: priority.cast_signed(),
            flags: attrs.find(7).and_then(be32).unwrap_or(0),
        },
    ))
}
