//! WireGuard: keys and peers of a device, as `wg show` prints them, without what is secret.
//!
//! Source: WG_CMD_GET_DEVICE, include/uapi/linux/wireguard.h (v6.12).

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::Prefix;

/// A public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PublicKey(pub [u8; 32]);

impl fmt::Display for PublicKey {
    /// In base64, as `wg` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const DIGITS: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        for three in self.0.chunks(3) {
            let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
            let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
            for at in 0..4_u32 {
                let digit = usize::try_from(bits >> (18 - 6 * at) & 63).unwrap_or(0);
                let digit = DIGITS.get(digit).copied().unwrap_or(b'=');
                let there = usize::try_from(at).is_ok_and(|at| at <= three.len());
                write!(f, "{}", char::from(if there { digit } else { b'=' }))?;
            }
        }
        Ok(())
    }
}

/// A WireGuard device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wireguard {
    /// Its own key; `None`: it has none, and sends nothing.
    pub key: Option<PublicKey>,
    /// UDP port that it listens on and sends from.
    pub port: u16,
    /// Mark of outer packets.
    pub fwmark: u32,
    /// Peers.
    pub peers: Vec<WireguardPeer>,
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardPeer {
    /// Its key.
    pub key: PublicKey,
    /// A key is shared with it beforehand.
    pub preshared: bool,
    /// Where packets for it are sent: as set, or where it was heard last.
    pub endpoint: Option<SocketAddr>,
    /// Seconds since 1970 of the last handshake; `None`: there was none yet.
    pub handshake: Option<u64>,
    /// What is sent to it, and what it may send.
    pub allowed: Vec<Prefix>,
}

impl Wireguard {
    /// The peer for an address: the one that the longest prefix belongs to (`wg_allowedips_lookup_dst()`, `_src()`).
    pub fn peer_for(&self, addr: IpAddr) -> Option<(&WireguardPeer, Prefix)> {
        let all = self.peers.iter().flat_map(|peer| {
            let fitting = peer.allowed.iter().filter(move |own| own.contains(addr));
            fitting.map(move |own| (peer, *own))
        });
        all.max_by_key(|(_, prefix)| prefix.len())
    }

    /// The peer with a key.
    pub fn peer(&self, key: PublicKey) -> Option<&WireguardPeer> {
        self.peers.iter().find(|peer| peer.key == key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_printed_as_wg_does() {
        // `printf '\\0%.0s' {1..31} | (cat; printf '\\377') | base64`
        let mut bytes = [0; 32];
        bytes[31] = 0xff;
        let text = PublicKey(bytes).to_string();
        assert_eq!(text, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAP8=");
    }
}
