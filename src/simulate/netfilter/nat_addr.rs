//! Which address of a range NAT chooses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::header::addr_bytes;
use crate::model::conntrack::Tuple;

/// NF_NAT_RANGE_PERSISTENT
const PERSISTENT: u32 = 8;

/// NETMAP: the host part is kept (`netmap_tg4()`).
pub(super) fn netmap(own: IpAddr, first: IpAddr, last: IpAddr) -> IpAddr {
    match (own, first, last) {
        (IpAddr::V4(own), IpAddr::V4(first), IpAddr::V4(last)) => {
            let host = u32::from(first) ^ u32::from(last);
            IpAddr::V4(Ipv4Addr::from(
                u32::from(own) & host | u32::from(first) & !host,
            ))
        }
        (IpAddr::V6(own), IpAddr::V6(first), IpAddr::V6(last)) => {
            let host = u128::from(first) ^ u128::from(last);
            let addr = u128::from(own) & host | u128::from(first) & !host;
            IpAddr::V6(Ipv6Addr::from(addr))
        }
        _ => first,
    }
}

/// Chooses an address of a range by the flow's addresses, as the kernel does: without a secret.
///
/// Source: `find_best_ips_proto()`.
pub(super) fn spread(tuple: &Tuple, first: IpAddr, last: IpAddr, flags: u32, zone: u16) -> IpAddr {
    // The kernel hashes the address words as they lie in memory.
    let words = |addr: IpAddr| -> [u32; 4] {
        let mut bytes = [0_u8; 16];
        let octets = addr_bytes(addr);
        for (slot, byte) in bytes.iter_mut().zip(octets) {
            *slot = byte;
        }
        let all = u128::from_le_bytes(bytes);
        [0, 32, 64, 96].map(|shift| {
            let word = all >> shift & u128::from(u32::MAX);
            u32::try_from(word).unwrap_or(0)
        })
    };
    let top = usize::from(first.is_ipv6()) * 3;
    let last_word = |words: [u32; 4]| words.get(top).copied().unwrap_or(0);
    let seed = if flags & PERSISTENT == 0 {
        last_word(words(tuple.dst)) ^ u32::from(zone)
    } else {
        0
    };
    let mut hash = jhash2(words(tuple.src), seed);
    let (low, high) = (words(first), words(last));
    let mut out = [0_u32; 4];
    let mut full = false;
    for index in 0..=top {
        let at = |words: &[u32; 4]| words.get(index).copied().unwrap_or(0);
        let (min, max) = (u32::from_be(at(&low)), u32::from_be(at(&high)));
        let (min, range) = if full {
            (0, u32::MAX)
        } else {
            (min, max.wrapping_sub(min).wrapping_add(1))
        };
        // reciprocal_scale()
        let offset = (u64::from(hash) * u64::from(range)) >> 32;
        let chosen = min.wrapping_add(u32::try_from(offset).unwrap_or(0));
        full |= chosen != max;
        if let Some(slot) = out.get_mut(index) {
            *slot = chosen.to_be();
        }
        if flags & PERSISTENT == 0 {
            let dst = words(tuple.dst);
            hash ^= dst.get(index).copied().unwrap_or(0);
        }
    }
    match first {
        IpAddr::V4(_) => {
            let [word, ..] = out;
            IpAddr::from(word.to_le_bytes())
        }
        IpAddr::V6(_) => {
            let mut bytes = [0_u8; 16];
            let flat = out.into_iter().flat_map(u32::to_le_bytes);
            for (slot, byte) in bytes.iter_mut().zip(flat) {
                *slot = byte;
            }
            IpAddr::from(bytes)
        }
    }
}

/// `jhash2()` of four words, include/linux/jhash.h.
fn jhash2(key: [u32; 4], seed: u32) -> u32 {
    let start = 0xdead_beef_u32.wrapping_add(4 << 2).wrapping_add(seed);
    let [k0, k1, k2, k3] = key;
    let (mut a, mut b, mut c) = (
        start.wrapping_add(k0),
        start.wrapping_add(k1),
        start.wrapping_add(k2),
    );
    let mix = |x: &mut u32, y: u32, z: u32, rot: u32| *x = x.wrapping_sub(y) ^ z.rotate_left(rot);
    // __jhash_mix
    mix(&mut a, c, c, 4);
    c = c.wrapping_add(b);
    mix(&mut b, a, a, 6);
    a = a.wrapping_add(c);
    mix(&mut c, b, b, 8);
    b = b.wrapping_add(a);
    mix(&mut a, c, c, 16);
    c = c.wrapping_add(b);
    mix(&mut b, a, a, 19);
    a = a.wrapping_add(c);
    mix(&mut c, b, b, 4);
    b = b.wrapping_add(a);
    // __jhash_final
    a = a.wrapping_add(k3);
    let end = |x: &mut u32, y: u32, rot: u32| *x = (*x ^ y).wrapping_sub(y.rotate_left(rot));
    end(&mut c, b, 14);
    end(&mut a, c, 11);
    end(&mut b, a, 25);
    end(&mut c, b, 16);
    end(&mut a, c, 4);
    end(&mut b, a, 14);
    end(&mut c, b, 24);
    c
}
