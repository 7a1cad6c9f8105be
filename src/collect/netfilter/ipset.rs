//! Sets of ipset, by nfnetlink: names by index, and whole sets by name.
//!
//! Rules refer to sets by index. An attribute or flag that this file does not know may change what a set
//! holds, so that the set is not read then. Source: include/uapi/linux/netfilter/ipset/ip_set.h, protocol 7;
//! `ip_set_dump_do()`, net/netfilter/ipset/ip_set_core.c (v6.12).

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::nft::request;
use crate::collect::error::{Error, Result};
use crate::collect::netlink::Netlink;
use crate::collect::nla::{Attrs, Writer, be16_at, be32, ip, text};
use crate::model::MacAddr;
use crate::model::ipset::{
    Ipset, IpsetField, IpsetHead, IpsetKind, IpsetMember, IpsetMethod, IpsetPart,
};
use crate::model::netfilter::{Chain, Expr};
use crate::model::xtables::{XtMatch, XtTarget};

const LIST: u16 = 0x0607;
const GET_BYINDEX: u16 = 0x060f;
/// `sizeof(struct nfgenmsg)`
const HEADER: usize = 4;
const PROTOCOL: u8 = 7;
/// NLA_F_NET_BYTEORDER
const NET_BYTEORDER: u16 = 0x4000;
/// IPSET_FLAG_LIST_SETNAME
const NAMES_ONLY: u32 = 2;

// Of a command.
const ATTR_PROTOCOL: u16 = 1;
const ATTR_SETNAME: u16 = 2;
const ATTR_TYPENAME: u16 = 3;
const ATTR_REVISION: u16 = 4;
const ATTR_FAMILY: u16 = 5;
const ATTR_FLAGS: u16 = 6;
const ATTR_DATA: u16 = 7;
const ATTR_ADT: u16 = 8;
const ATTR_INDEX: u16 = 11;

// Of a set and its members.
const IP: u16 = 1;
const IP_TO: u16 = 2;
const CIDR: u16 = 3;
const PORT: u16 = 4;
const PORT_TO: u16 = 5;
const TIMEOUT: u16 = 6;
const PROTO: u16 = 7;
const CADT_FLAGS: u16 = 8;
const MARK: u16 = 10;
const MARKMASK: u16 = 11;
const BITMASK: u16 = 12;
// Of a set.
const HASHSIZE: u16 = 18;
const MAXELEM: u16 = 19;
const NETMASK: u16 = 20;
// Of members.
const ETHER: u16 = 17;
const NAME: u16 = 18;
const IP2: u16 = 20;
const CIDR2: u16 = 21;
const IFACE: u16 = 23;
const COMMENT: u16 = 26;

/// Attributes of a set that decide nothing: INITVAL, BUCKETSIZE, RESIZE, SIZE, ELEMENTS, REFERENCES, MEMSIZE.
const IDLE_OF_SETS: [u16; 7] = [17, 21, 22, 23, 24, 25, 26];
/// And of members: BYTES, PACKETS, SKBMARK, SKBPRIO, SKBQUEUE, PAD.
const IDLE_OF_MEMBERS: [u16; 6] = [24, 25, 27, 28, 29, 30];

// IPSET_FLAG_* of sets and members.
const PHYSDEV: u32 = 0x02;
const NOMATCH: u32 = 0x04;
const WITH_COUNTERS: u32 = 0x08;
const WITH_COMMENT: u32 = 0x10;
const WITH_FORCEADD: u32 = 0x20;
const WITH_SKBINFO: u32 = 0x40;
const IFACE_WILDCARD: u32 = 0x80;

/// Most members that are read of one set: some 30 MB.
pub const MOST: usize = 1 << 18;

fn command() -> Writer {
    let mut message = request(0);
    message.put(ATTR_PROTOCOL, &[PROTOCOL]);
    message
}

/// Name of the set with this index.
fn name(socket: &mut Netlink, index: u16) -> Result<String> {
    let mut message = command();
    message.put(ATTR_INDEX | NET_BYTEORDER, &index.to_be_bytes());
    let operation = format!("read the name of ipset number {index}");
    let answer = socket.get(GET_BYINDEX, message.bytes(), &operation)?;
    let found = answer.ok_or_else(|| Error::malformed(&operation, "there is no such set"))?;
    let name = Attrs(found.get(HEADER..).unwrap_or_default()).find(ATTR_SETNAME);
    let name = name.ok_or_else(|| Error::malformed(operation, "the answer holds none"))?;
    Ok(text(name))
}

/// Fills in the names of all sets that rules of these chains refer to, or why they have none. `socket`: why
/// there is none to ask.
pub fn fill_names<'a>(
    mut socket: std::result::Result<&mut Netlink, String>,
    chains: impl Iterator<Item = &'a mut Chain>,
) {
    let mut names: BTreeMap<u16, std::result::Result<String, String>> = BTreeMap::new();
    let mut fill = |index: u16, known: &mut Option<String>, unnamed: &mut Option<String>| {
        let found = names.entry(index).or_insert_with(|| match &mut socket {
            Ok(socket) => name(socket, index).map_err(|error| error.to_string()),
            Err(why) => Err(why.clone()),
        });
        *known = found.as_ref().ok().cloned();
        *unnamed = found.as_ref().err().cloned();
    };
    let rules = chains.filter_map(|chain| chain.rules.known_mut()).flatten();
    for expr in rules.flat_map(|rule| rule.exprs.iter_mut()) {
        match expr {
            Expr::Match(XtMatch::Set {
                index,
                name,
                unnamed,
                ..
            }) => fill(*index, name, unnamed),
            Expr::Target(XtTarget::Set(target)) => {
                let target = &mut **target;
                let sets = [&mut target.add, &mut target.del, &mut target.map];
                for set in sets.into_iter().flatten() {
                    fill(set.index, &mut set.name, &mut set.unnamed);
                }
            }
            _ => {}
        }
    }
}

/// Names of all sets.
pub fn names(socket: &mut Netlink) -> Result<Vec<String>> {
    let mut message = command();
    let flags = NAMES_ONLY.to_be_bytes();
    message.put(ATTR_FLAGS | NET_BYTEORDER, &flags);
    let operation = "list the names of ipsets";
    let names = socket.dump(
        LIST,
        message.bytes(),
        operation,
        Vec::new,
        |names, _, body| {
            let attrs = Attrs(body.get(HEADER..).unwrap_or_default());
            names.push(attrs.find(ATTR_SETNAME).map(text));
        },
    )?;
    let whole: Option<Vec<String>> = names.into_iter().collect();
    whole.ok_or_else(|| Error::malformed(operation, "one has none"))
}

/// A set with its members; `None`: there is none of this name.
pub fn read(socket: &mut Netlink, name: &str, most: usize) -> Result<Option<Ipset>> {
    let operation = format!("read ipset {name}");
    let mut message = command();
    message.put_text(ATTR_SETNAME, name);
    // What follows a fault is read too, and not kept: the socket is good for the next set then.
    let read = socket.dump(
        LIST,
        message.bytes(),
        &operation,
        || Ok(None),
        |read: &mut Result<Option<Ipset>>, _, body| {
            let Ok(set) = read else { return };
            let taken = take(set, body).map_err(|what| Error::malformed(&operation, what));
            let count = set.as_ref().map_or(0, |set| set.members.len());
            if let Err(error) = taken {
                *read = Err(error);
            } else if count > most {
                *read = Err(Error::TooMany {
                    operation: operation.clone(),
                    most,
                    remedy: "ask the node itself (ipset test)",
                });
            }
        },
    );
    match read {
        Err(error) if error.errno() == Some(libc::ENOENT) => Ok(None),
        Ok(set) => set,
        Err(error) => Err(error),
    }
}

/// Takes one message of a set's dump in: the first has its head, all may have members.
pub(in crate::collect) fn take(
    set: &mut Option<Ipset>,
    body: &[u8],
) -> std::result::Result<(), String> {
    let attrs = Attrs(body.get(HEADER..).unwrap_or_default());
    if attrs.find(ATTR_TYPENAME).is_some() {
        *set = Some(head(attrs)?);
    }
    let Some(set) = set else {
        return Err("it has no head".to_owned());
    };
    let members = Attrs(attrs.find(ATTR_ADT).unwrap_or_default());
    for (_, data) in members {
        set.members.push(member(&set.kind, Attrs(data))?);
    }
    Ok(())
}

/// What a lacking attribute is called.
fn lacks(what: &str) -> String {
    format!("its {what} is lacking or can't be decoded")
}

fn head(attrs: Attrs<'_>) -> std::result::Result<Ipset, String> {
    let name = attrs.find(ATTR_SETNAME).map(text);
    let kind = attrs.find(ATTR_TYPENAME).map(text);
    let kind = kind.ok_or_else(|| lacks("type"))?;
    let byte = |kind| attrs.find(kind)?.first().copied();
    let data = Attrs(attrs.find(ATTR_DATA).unwrap_or_default());
    let known = [
        IP, IP_TO, PORT, PORT_TO, TIMEOUT, CADT_FLAGS, MARKMASK, BITMASK, HASHSIZE, MAXELEM,
        NETMASK,
    ];
    let mut others = data.map(|(kind, _)| kind);
    if let Some(other) = others.find(|kind| !known.contains(kind) && !IDLE_OF_SETS.contains(kind)) {
        return Err(format!("attribute {other} of its head is not known"));
    }
    let number = |kind| data.find(kind).and_then(be32);
    let flags = number(CADT_FLAGS).unwrap_or(0);
    let unknown = flags & !(WITH_COUNTERS | WITH_COMMENT | WITH_FORCEADD | WITH_SKBINFO);
    if unknown != 0 {
        return Err(format!("flags {unknown:#x} of its head are not known"));
    }
    let port = |kind| be16_at(data.find(kind)?, 0);
    let addr = |kind| address(data.find(kind)?);
    Ok(Ipset {
        name: name.ok_or_else(|| lacks("name"))?,
        kind: IpsetKind::named(&kind).ok_or_else(|| format!("type {kind} is not known"))?,
        revision: byte(ATTR_REVISION).ok_or_else(|| lacks("revision"))?,
        v6: match byte(ATTR_FAMILY) {
            Some(0) => None,
            Some(2) => Some(false),
            Some(10) => Some(true),
            _ => return Err(lacks("family")),
        },
        head: IpsetHead {
            netmask: data.find(NETMASK).and_then(|mask| mask.first().copied()),
            bitmask: addr(BITMASK),
            markmask: number(MARKMASK),
            addrs: addr(IP).zip(addr(IP_TO)),
            ports: port(PORT).zip(port(PORT_TO)),
            timeout: number(TIMEOUT),
            hashsize: number(HASHSIZE),
            maxelem: number(MAXELEM),
            counters: flags & WITH_COUNTERS != 0,
            comment: flags & WITH_COMMENT != 0,
            skbinfo: flags & WITH_SKBINFO != 0,
            forceadd: flags & WITH_FORCEADD != 0,
        },
        members: Vec::new(),
    })
}

/// An address in its nest, IPSET_ATTR_IPADDR_IPV4 or _IPV6.
fn address(nest: &[u8]) -> Option<IpAddr> {
    Attrs(nest).find_map(|(kind, bytes)| match (kind, bytes.len()) {
        (1, 4) | (2, 16) => ip(bytes),
        _ => None,
    })
}

fn member(kind: &IpsetKind, data: Attrs<'_>) -> std::result::Result<IpsetMember, String> {
    let known = [
        IP, CIDR, PORT, TIMEOUT, PROTO, CADT_FLAGS, MARK, ETHER, NAME, IP2, CIDR2, IFACE, COMMENT,
    ];
    let mut others = data.map(|(kind, _)| kind);
    if let Some(other) =
        others.find(|kind| !known.contains(kind) && !IDLE_OF_MEMBERS.contains(kind))
    {
        return Err(format!("attribute {other} of a member is not known"));
    }
    let flags = data.find(CADT_FLAGS).and_then(be32).unwrap_or(0);
    let unknown = flags & !(PHYSDEV | NOMATCH | IFACE_WILDCARD);
    if unknown != 0 {
        return Err(format!("flags {unknown:#x} of a member are not known"));
    }
    // The first address stands in IP, the second in IP2.
    let mut addrs = [(IP, CIDR), (IP2, CIDR2)].into_iter();
    let parts = kind.fields.iter().map(|field| match field {
        IpsetField::Ip | IpsetField::Net => {
            let (addr, len) = addrs.next()?;
            let addr = address(data.find(addr)?)?;
            let whole = if addr.is_ipv4() { 32 } else { 128 };
            let len = match field {
                IpsetField::Net => *data.find(len)?.first()?,
                _ => whole,
            };
            (len <= whole).then_some(IpsetPart::Net(addr, len))
        }
        IpsetField::Port => {
            let port = be16_at(data.find(PORT)?, 0)?;
            let proto = match kind.method {
                IpsetMethod::Hash => Some(*data.find(PROTO)?.first()?),
                _ => None,
            };
            Some(IpsetPart::Port(proto, port))
        }
        IpsetField::Mac => match data.find(ETHER) {
            Some(mac) => Some(IpsetPart::Mac(Some(MacAddr(*mac.first_chunk()?)))),
            // A bitmap learns it from the first packet.
            None => (kind.method == IpsetMethod::Bitmap).then_some(IpsetPart::Mac(None)),
        },
        IpsetField::Iface => Some(IpsetPart::Iface {
            name: text(data.find(IFACE)?),
            physdev: flags & PHYSDEV != 0,
            wildcard: flags & IFACE_WILDCARD != 0,
        }),
        IpsetField::Mark => Some(IpsetPart::Mark(be32(data.find(MARK)?)?)),
        IpsetField::Set => Some(IpsetPart::Set(text(data.find(NAME)?))),
    });
    let parts: Option<Vec<IpsetPart>> = parts.collect();
    Ok(IpsetMember {
        parts: parts.ok_or_else(|| format!("a member of type {kind} can't be decoded"))?,
        nomatch: flags & NOMATCH != 0,
        timeout: data.find(TIMEOUT).and_then(be32),
        comment: data.find(COMMENT).map(text),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(hex: &str) -> std::result::Result<Ipset, String> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let byte = |pair: &[u8]| {
            let text = std::str::from_utf8(pair).expect("digits");
            u8::from_str_radix(text, 16).expect("a byte")
        };
        let bytes: Vec<u8> = digits.chunks(2).map(byte).collect();
        let mut set = None;
        take(&mut set, &bytes)?;
        Ok(set.expect("a set"))
    }

    fn members(set: &Ipset) -> Vec<String> {
        set.members.iter().map(ToString::to_string).collect()
    }

    // Bodies of IPSET_CMD_LIST's answers of a 6.18 kernel, behind the commands that made the sets.

    #[test]
    fn networks_with_timeouts_comments_and_exceptions() {
        // ipset create a hash:net timeout 600 comment
        // ipset add a 10.0.0.0/8 timeout 0 comment "all"
        // ipset add a 10.1.0.0/16 nomatch timeout 30
        let set = decoded(
            "02000000050001000700000006000200610000000d000300686173683a6e6574000000000500050002000000\
             050004000700000006000b40000000004c00078008001240000004000800134000010000050015000c000000\
             080011401884ec9c080019400000000108001a400000027c0800184000000002080006400000025808000840\
             0000001054000880280007800c000180080001000a0000000500030008000000080006400000000008001a00\
             616c6c00280007800c000180080001000a01000005000300100000000800084000000004080006400000001d",
        )
        .expect("a set");
        assert_eq!(set.kind.to_string(), "hash:net");
        assert_eq!(
            (set.name.as_str(), set.revision, set.v6),
            ("a", 7, Some(false))
        );
        let head = IpsetHead {
            timeout: Some(600),
            hashsize: Some(1024),
            maxelem: Some(65536),
            comment: true,
            ..IpsetHead::default()
        };
        assert_eq!(set.head, head);
        let expected = [
            "10.0.0.0/8 timeout 0 comment \"all\"",
            "10.1.0.0/16 nomatch timeout 29",
        ];
        assert_eq!(members(&set), expected);
    }

    #[test]
    fn three_parts_of_ipv6_with_counters() {
        // ipset create b hash:ip,port,net family inet6 counters
        // ipset add b fd00::1,udp:53,fd00:1::/64
        let text = "020000000500010007000000060002006200000015000300686173683a69702c706f72742c6e657400000000\
            050005000a000000050004000800000006000b40000100004400078008001240000004000800134000010000\
            050015000c00000008001140a794dfd5080019400000000008001a4000000578080018400000000108000840\
            0000000868000880640007801800018014000200fd0000000000000000000000000000011800148014000200\
            fd0000010000000000000000000000000600044000350000050015004000000005000700110000000c001840\
            00000000000000000c0019400000000000000000";
        let set = decoded(text).expect("a set");
        assert_eq!(set.kind.to_string(), "hash:ip,port,net");
        assert_eq!(set.v6, Some(true));
        assert!(set.head.counters);
        assert_eq!(members(&set), ["fd00::1,udp:53,fd00:1::/64"]);
        // A flag of the head that no kernel had when this was written.
        let more = decoded(&text.replace("0800084000000008", "0800084000000108"));
        assert_eq!(
            more,
            Err("flags 0x100 of its head are not known".to_owned())
        );
        // And an attribute of the member.
        let more = decoded(&text.replace("0c00194000000000", "0c00294000000000"));
        let why = "attribute 41 of a member is not known";
        assert_eq!(more, Err(why.to_owned()));
    }

    #[test]
    fn devices_and_addresses_with_link_layer_addresses() {
        // ipset create c hash:net,iface; ipset add c 10.0.0.0/8,physdev:eth0
        let set = decoded(
            "020000000500010007000000060002006300000013000300686173683a6e65742c6966616365000005000500\
             02000000050004000800000006000b40000200003c0007800800124000000400080013400001000005001500\
             0c00000008001140751676fd080019400000000008001a40000002400800184000000001300008802c000780\
             0c000180080001000a00000005000300080000000900170065746830000000000800084000000002",
        )
        .expect("a set");
        assert_eq!(members(&set), ["10.0.0.0/8,physdev:eth0"]);
        // ipset create d bitmap:ip,mac range 10.0.0.0/24
        // ipset add d 10.0.0.1,02:00:00:00:00:01; ipset add d 10.0.0.2
        let set = decoded(
            "0200000005000100070000000600020064000000120003006269746d61703a69702c6d616300000005000500\
             02000000050004000300000006000b4000030000340007800c000180080001000a0000000c00028008000100\
             0a0000ff080019400000000108001a40000008700800184000000002300008801c0007800c00018008000100\
             0a0000010a0011000200000000010000100007800c000180080001000a000002",
        )
        .expect("a set");
        assert_eq!(members(&set), ["10.0.0.1,02:00:00:00:00:01", "10.0.0.2"]);
        let range = ["10.0.0.0", "10.0.0.255"].map(|text| text.parse().expect("an address"));
        assert_eq!(set.head.addrs, Some(range.into()));
    }

    #[test]
    fn lists_ports_and_masks() {
        // ipset create e list:set; ipset add e a; ipset add e d
        let set = decoded(
            "02000000050001000700000006000200650000000d0003006c6973743a736574000000000500050000000000\
             050004000300000006000b4000040000240007800800174000000008080019400000000008001a40000000b0\
             08001840000000021c0008800c00078006001200610000000c0007800600120064000000",
        )
        .expect("a set");
        assert_eq!(
            (set.v6, members(&set)),
            (None, vec!["a".to_owned(), "d".to_owned()])
        );
        // ipset create f bitmap:port range 1-100; ipset add f 80
        let set = decoded(
            "0200000005000100070000000600020066000000100003006269746d61703a706f7274000500050000000000\
             050004000300000006000b40000500002c000780060004400001000006000540006400000800194000000000\
             08001a40000000580800184000000001100008800c0007800600044000500000",
        )
        .expect("a set");
        assert_eq!(
            (set.head.ports, members(&set)),
            (Some((1, 100)), vec!["80".to_owned()])
        );
        // ipset create g hash:ip netmask 24 skbinfo; ipset add g 10.0.0.1 skbmark 0x7
        let set = decoded(
            "02000000050001000700000006000200670000000c000300686173683a697000050005000200000005000400\
             0600000006000b40000600004c00078008001240000004000800134000010000050014001800000005001500\
             0c000000080011408c9e4721080019400000000008001a400000012008001840000000010800084000000040\
             200008801c0007800c000180080001000a0000000c001b4000000007ffffffff",
        )
        .expect("a set");
        assert_eq!((set.head.netmask, set.head.skbinfo), (Some(24), true));
        assert_eq!(members(&set), ["10.0.0.0"]);
    }

    #[test]
    fn a_type_that_is_not_known_is_named() {
        let text =
            "0200000005000100070000000600020066000000100003006269746d61703a616464720005000500000000
                    000500040003000000";
        let why = "type bitmap:addr is not known";
        assert_eq!(decoded(text), Err(why.to_owned()));
        assert_eq!(decoded("02000000"), Err("it has no head".to_owned()));
    }
}
