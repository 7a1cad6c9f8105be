//! Netlink attributes: reading them from bytes, and writing the few that requests need.
//!
//! Source: `struct nlattr`, include/uapi/linux/netlink.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// NLA_F_NESTED
const NESTED: u16 = 0x8000;
/// NLA_TYPE_MASK: without NLA_F_NESTED and NLA_F_NET_BYTEORDER.
const TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 4;

/// Rounds up to the next attribute (NLA_ALIGN).
pub fn align(len: usize) -> usize {
    (len + 3) & !3
}

/// Attributes one after the other, as type and payload.
///
/// Ends at the first one whose length can't be; the kernel sends none such.
#[derive(Clone, Copy, Debug)]
pub struct Attrs<'a>(pub &'a [u8]);

#[allow(
    clippy::copy_iterator,
    reason = "a view of bytes that is looked through several times"
)]
impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (len, kind) = (u16_at(self.0, 0)?, u16_at(self.0, 2)?);
        let len = usize::from(len);
        let payload = self.0.get(HEADER..len)?;
        self.0 = self.0.get(align(len)..).unwrap_or_default();
        Some((kind & TYPE_MASK, payload))
    }
}

impl<'a> Attrs<'a> {
    /// Payload of the first attribute of this type.
    pub fn find(mut self, kind: u16) -> Option<&'a [u8]> {
        self.find_map(|(k, payload)| (k == kind).then_some(payload))
    }
}

/// A `u16` in host order at an offset.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

/// A `u32` in host order at an offset.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

/// A `u64` in host order at an offset.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_ne_bytes(*bytes))
}

/// A `u16` in network order at an offset.
pub fn be16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_be_bytes(*bytes))
}

/// A `u32` in network order.
pub fn be32(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(*bytes.first_chunk()?))
}

/// A `u64` in network order.
pub fn be64(bytes: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*bytes.first_chunk()?))
}

/// A text that ends at the first NUL or with the bytes. Bytes that are not UTF-8 are replaced.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// An address of 4 or 16 bytes.
pub fn ip(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::V4(Ipv4Addr::from(*bytes.first_chunk::<4>()?))),
        16 => Some(IpAddr::V6(Ipv6Addr::from(*bytes.first_chunk::<16>()?))),
        _ => None,
    }
}

/// Bytes of a request that is being written.
#[derive(Clone, Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// Starts with these bytes (a family's own header).
    pub fn new(header: &[u8]) -> Self {
        Self(header.to_vec())
    }

    /// Adds an attribute.
    pub fn put(&mut self, kind: u16, payload: &[u8]) -> &mut Self {
        // Requests are a few hundred bytes at most: names of 256 bytes and keys of 64.
        let len = u16::try_from(HEADER + payload.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&len.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(align(self.0.len()), 0);
        self
    }

    /// Adds a text with its NUL.
    pub fn put_text(&mut self, kind: u16, text: &str) -> &mut Self {
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.put(kind, &bytes)
    }

    /// Adds a nest.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Writer)) -> &mut Self {
        let mut inner = Writer::default();
        fill(&mut inner);
        self.put(kind | NESTED, &inner.0)
    }

    /// The bytes so far.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut writer = Writer::new(&[1, 2, 3, 4]);
        writer.put_text(1, "eth0").nest(2, |inner| {
            inner.put(3, &7u32.to_be_bytes()).put(4, &[9]);
        });
        let attrs = Attrs(&writer.bytes()[4..]);
        assert_eq!(text(attrs.find(1).expect("text")), "eth0");
        let inner = Attrs(attrs.find(2).expect("nest"));
        assert_eq!(be32(inner.find(3).expect("number")), Some(7));
        assert_eq!(inner.find(4), Some(&[9u8][..]));
        assert_eq!(inner.count(), 2);
    }

    #[test]
    fn damaged_lengths_end_the_list() {
        assert_eq!(Attrs(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(Attrs(&[200, 0, 1, 0, 1, 2]).count(), 0);
        assert_eq!(Attrs(&[4, 0]).count(), 0);
    }
}
