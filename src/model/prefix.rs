//! IP prefixes, as routes and rules hold them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// An address with a prefix length; the bits behind the length are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawPrefix", into = "RawPrefix")]
pub struct Prefix {
    addr: IpAddr,
    len: u8,
}

#[derive(Serialize, Deserialize)]
struct RawPrefix(IpAddr, u8);

impl From<Prefix> for RawPrefix {
    fn from(prefix: Prefix) -> Self {
        Self(prefix.addr, prefix.len)
    }
}

impl TryFrom<RawPrefix> for Prefix {
    type Error = PrefixError;

    fn try_from(raw: RawPrefix) -> Result<Self, Self::Error> {
        Self::new(raw.0, raw.1)
    }
}

/// Why something is not a [`Prefix`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// More bits than the address has.
    #[error("prefix length {0} is longer than the address")]
    TooLong(u8),
    /// Not ADDRESS/LENGTH.
    #[error("'{0}' is not a prefix (want ADDRESS/LENGTH)")]
    Syntax(String),
}

fn mask128(len: u8) -> u128 {
    if len == 0 {
        0
    } else {
        u128::MAX << (128 - u32::from(len.min(128)))
    }
}

fn mask32(len: u8) -> u32 {
    if len == 0 {
        0
    } else {
        u32::MAX << (32 - u32::from(len.min(32)))
    }
}

impl Prefix {
    /// The prefix of `len` bits that holds `addr`; host bits are cleared.
    pub fn new(addr: IpAddr, len: u8) -> Result<Self, PrefixError> {
        let addr = match addr {
            IpAddr::V4(v4) if len <= 32 => IpAddr::V4(Ipv4Addr::from(u32::from(v4) & mask32(len))),
            IpAddr::V6(v6) if len <= 128 => {
                IpAddr::V6(Ipv6Addr::from(u128::from(v6) & mask128(len)))
            }
            _ => return Err(PrefixError::TooLong(len)),
        };
        Ok(Self { addr, len })
    }

    /// The prefix that holds `addr` alone.
    pub fn host(addr: IpAddr) -> Self {
        let len = if addr.is_ipv4() { 32 } else { 128 };
        Self { addr, len }
    }

    /// The default route's prefix of the family of `like`.
    pub fn default_of(like: IpAddr) -> Self {
        let addr = if like.is_ipv4() {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        } else {
            IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        };
        Self { addr, len: 0 }
    }

    /// The first address.
    pub fn addr(self) -> IpAddr {
        self.addr
    }

    /// Number of leading bits that count, 0 to 32 or 128.
    // A prefix has no emptiness that `is_empty` could tell of.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> u8 {
        self.len
    }

    /// Whether `addr` is of the same family and inside.
    pub fn contains(self, addr: IpAddr) -> bool {
        match (self.addr, addr) {
            (IpAddr::V4(a), IpAddr::V4(b)) => u32::from(a) == u32::from(b) & mask32(self.len),
            (IpAddr::V6(a), IpAddr::V6(b)) => u128::from(a) == u128::from(b) & mask128(self.len),
            _ => false,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || PrefixError::Syntax(text.chars().take(60).collect());
        let (addr, len) = text.split_once('/').ok_or_else(wrong)?;
        Self::new(
            addr.parse().map_err(|_| wrong())?,
            len.parse().map_err(|_| wrong())?,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_bits_are_cleared_and_bounds_hold() {
        let prefix: Prefix = "10.244.1.7/24".parse().expect("a prefix");
        assert_eq!(prefix.to_string(), "10.244.1.0/24");
        assert!(prefix.contains("10.244.1.255".parse().expect("an address")));
        assert!(!prefix.contains("10.244.2.0".parse().expect("an address")));
        assert!(!prefix.contains("::1".parse().expect("an address")));
        let all: Prefix = "::/0".parse().expect("a prefix");
        assert!(all.contains("fd00::1".parse().expect("an address")));
        assert_eq!(
            "10.0.0.0/33".parse::<Prefix>(),
            Err(PrefixError::TooLong(33))
        );
    }
}
