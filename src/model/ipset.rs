//! Sets of ipset, which x_tables rules ask by `-m set`.
//!
//! Source: include/uapi/linux/netfilter/ipset/ip_set.h (protocol 7), net/netfilter/ipset/ (v6.12).

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::MacAddr;

/// One set with its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ipset {
    /// Name, of at most 31 bytes.
    pub name: String,
    /// Type, as `hash:ip,port`: how it is stored and what its members consist of.
    pub kind: IpsetKind,
    /// Revision of the type.
    pub revision: u8,
    /// True: IPv6 packets only; false: IPv4 packets only; `None`: of both (NFPROTO_UNSPEC).
    pub v6: Option<bool>,
    /// How it was made.
    pub head: IpsetHead,
    /// All members, in the kernel's order.
    pub members: Vec<IpsetMember>,
}

/// A set's type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpsetKind {
    /// How it is stored.
    pub method: IpsetMethod,
    /// What a member consists of, in order; each but a mark takes one direction of a rule.
    pub fields: Vec<IpsetField>,
}

/// How a set is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpsetMethod {
    /// A range of addresses or ports.
    Bitmap,
    /// A hash table.
    Hash,
    /// Names of other sets.
    List,
}

/// A part of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpsetField {
    /// An address.
    Ip,
    /// A network.
    Net,
    /// A port, with its protocol but in `bitmap:port`.
    Port,
    /// A link-layer address.
    Mac,
    /// A device.
    Iface,
    /// A packet's mark.
    Mark,
    /// A set.
    Set,
}

/// What a set was made with. `None` and false: nothing was said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpsetHead {
    /// Addresses are cut to this prefix length.
    pub netmask: Option<u8>,
    /// Addresses are cut to these bits.
    pub bitmask: Option<IpAddr>,
    /// Marks are cut to these bits.
    pub markmask: Option<u32>,
    /// First and last address of a bitmap.
    pub addrs: Option<(IpAddr, IpAddr)>,
    /// First and last port of a bitmap.
    pub ports: Option<(u16, u16)>,
    /// Seconds that a member stays where nothing else is said; 0 for ever. `None`: members never expire.
    pub timeout: Option<u32>,
    /// Buckets of the hash table.
    pub hashsize: Option<u32>,
    /// Most members.
    pub maxelem: Option<u32>,
    /// Members have packet and byte counters.
    pub counters: bool,
    /// Members have comments.
    pub comment: bool,
    /// Members have marks and priorities for packets (`SET --map-set`).
    pub skbinfo: bool,
    /// A full set forgets members for new ones.
    pub forceadd: bool,
}

/// A member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpsetMember {
    /// Its parts, one for each field of the type.
    pub parts: Vec<IpsetPart>,
    /// It takes what fits it out of the set (IPSET_FLAG_NOMATCH).
    pub nomatch: bool,
    /// Seconds that it stays; 0: for ever. `None`: the set has no timeouts.
    pub timeout: Option<u32>,
    /// Comment.
    pub comment: Option<String>,
}

/// A part of a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum IpsetPart {
    /// Address or network, with its prefix length.
    Net(IpAddr, u8),
    /// Port with IPPROTO_*; of ICMP type and code (`type << 8 | code`). No protocol: TCP and UDP.
    Port(Option<u8>, u16),
    /// Link-layer address; `None`: that of the first packet which asks.
    Mac(Option<MacAddr>),
    /// Device.
    Iface {
        /// Its name.
        name: String,
        /// It is a bridge port (IPSET_FLAG_PHYSDEV).
        physdev: bool,
        /// The name is a start (IPSET_FLAG_IFACE_WILDCARD).
        wildcard: bool,
    },
    /// Mark.
    Mark(u32),
    /// A set, by name.
    Set(String),
}

/// Types that kernels have (v6.12).
const KINDS: [(IpsetMethod, &[IpsetField]); 16] = {
    use IpsetField::{Iface, Ip, Mac, Mark, Net, Port, Set};
    use IpsetMethod::{Bitmap, Hash, List};
    [
        (Bitmap, &[Ip]),
        (Bitmap, &[Ip, Mac]),
        (Bitmap, &[Port]),
        (Hash, &[Ip]),
        (Hash, &[Ip, Mac]),
        (Hash, &[Ip, Mark]),
        (Hash, &[Ip, Port]),
        (Hash, &[Ip, Port, Ip]),
        (Hash, &[Ip, Port, Net]),
        (Hash, &[Mac]),
        (Hash, &[Net]),
        (Hash, &[Net, Iface]),
        (Hash, &[Net, Net]),
        (Hash, &[Net, Port]),
        (Hash, &[Net, Port, Net]),
        (List, &[Set]),
    ]
};

impl IpsetKind {
    /// The type of this name; `None`: none that is known.
    pub fn named(name: &str) -> Option<Self> {
        KINDS
            .iter()
            .map(|(method, fields)| Self {
                method: *method,
                fields: fields.to_vec(),
            })
            .find(|kind| kind.to_string() == name)
    }

    /// Whether its members may be `nomatch` (IPSET_TYPE_NOMATCH).
    pub fn has_nomatch(&self) -> bool {
        self.fields.contains(&IpsetField::Net)
    }
}

impl fmt::Display for IpsetKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let method = match self.method {
            IpsetMethod::Bitmap => "bitmap",
            IpsetMethod::Hash => "hash",
            IpsetMethod::List => "list",
        };
        let words = self.fields.iter().map(|field| match field {
            IpsetField::Ip => "ip",
            IpsetField::Net => "net",
            IpsetField::Port => "port",
            IpsetField::Mac => "mac",
            IpsetField::Iface => "iface",
            IpsetField::Mark => "mark",
            IpsetField::Set => "set",
        });
        write!(f, "{method}:{}", words.collect::<Vec<_>>().join(","))
    }
}

impl IpsetMember {
    /// Its parts, as `ipset list` prints them.
    pub fn element(&self) -> String {
        let parts = self.parts.iter().map(IpsetPart::to_string);
        // An address without its link-layer address stands alone.
        let shown: Vec<String> = parts.filter(|part| !part.is_empty()).collect();
        shown.join(",")
    }
}

/// As `ipset list` prints it, but protocols by number where they have no common name.
impl fmt::Display for IpsetMember {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.element())?;
        if self.nomatch {
            f.write_str(" nomatch")?;
        }
        if let Some(seconds) = self.timeout {
            write!(f, " timeout {seconds}")?;
        }
        if let Some(comment) = &self.comment {
            write!(f, " comment {comment:?}")?;
        }
        Ok(())
    }
}

impl fmt::Display for IpsetPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Net(addr, len) if *len == if addr.is_ipv4() { 32 } else { 128 } => {
                write!(f, "{addr}")
            }
            Self::Net(addr, len) => write!(f, "{addr}/{len}"),
            Self::Port(None, port) => write!(f, "{port}"),
            Self::Port(Some(proto), port) => match proto {
                1 => write!(f, "icmp:{}/{}", port >> 8, port & 0xff),
                6 => write!(f, "tcp:{port}"),
                17 => write!(f, "udp:{port}"),
                58 => write!(f, "icmpv6:{}/{}", port >> 8, port & 0xff),
                132 => write!(f, "sctp:{port}"),
                other => write!(f, "{other}:{port}"),
            },
            Self::Mac(mac) => mac.map_or(Ok(()), |mac| write!(f, "{mac}")),
            Self::Iface {
                name,
                physdev,
                wildcard,
            } => {
                let physdev = if *physdev { "physdev:" } else { "" };
                let wildcard = if *wildcard { " wildcard" } else { "" };
                write!(f, "{physdev}{name}{wildcard}")
            }
            Self::Mark(mark) => write!(f, "{mark:#010x}"),
            Self::Set(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_have_the_names_that_ipset_gives_them() {
        for (method, fields) in KINDS {
            let kind = IpsetKind {
                method,
                fields: fields.to_vec(),
            };
            assert_eq!(IpsetKind::named(&kind.to_string()), Some(kind));
        }
        assert_eq!(IpsetKind::named("hash:ip,port,mac"), None);
    }

    #[test]
    fn members_read_as_in_ipset_list() {
        let member = |parts: Vec<IpsetPart>| IpsetMember {
            parts,
            ..IpsetMember::default()
        };
        let net = |text: &str, len| IpsetPart::Net(text.parse().unwrap(), len);
        let mut out = member(vec![net("10.0.0.0", 8), IpsetPart::Port(Some(6), 80)]);
        assert_eq!(out.to_string(), "10.0.0.0/8,tcp:80");
        out.nomatch = true;
        out.timeout = Some(30);
        out.comment = Some("a".to_owned());
        let text = "10.0.0.0/8,tcp:80 nomatch timeout 30 comment \"a\"";
        assert_eq!(out.to_string(), text);
        let bare = member(vec![net("fd00::1", 128), IpsetPart::Mac(None)]);
        assert_eq!(bare.to_string(), "fd00::1");
        let echo = member(vec![net("10.0.0.1", 32), IpsetPart::Port(Some(1), 0x800)]);
        assert_eq!(echo.to_string(), "10.0.0.1,icmp:8/0");
    }
}
