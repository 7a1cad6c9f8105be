//! Keys and peers of WireGuard devices, by generic netlink.
//!
//! Source: include/uapi/linux/wireguard.h, `wg_get_device_dump()` (v6.12). The kernel answers with private and preshared
//! keys, too: they are not decoded, and the buffer that held them is overwritten.

use std::net::{IpAddr, SocketAddr};

use super::error::{Error, Result};
use super::ipvs::named_family;
use super::netlink::Netlink;
use super::nla::{self, Attrs, Writer};
use crate::model::link::{Link, LinkKind};
use crate::model::wireguard::{PublicKey, Wireguard, WireguardPeer};
use crate::model::{Prefix, Section};

const WG_CMD_GET_DEVICE: u8 = 0;
/// `sizeof(struct genlmsghdr)`
const HEADER: usize = 4;

/// Fills in what the namespace's WireGuard devices hold. `open` opens a generic netlink socket there.
pub fn complete(links: &mut [Link], open: impl FnOnce() -> Result<Netlink>) {
    let mut devices: Vec<(u32, &str, &mut Section<Wireguard>)> = links
        .iter_mut()
        .filter_map(|link| match &mut link.kind {
            LinkKind::Wireguard(section) => Some((link.index.get(), link.name.as_str(), section)),
            _ => None,
        })
        .collect();
    if devices.is_empty() {
        return;
    }
    let ready = open().and_then(|mut socket| {
        let family = named_family(&mut socket, "wireguard")?;
        let missing = || {
            Error::malformed(
                "look up the generic netlink family wireguard",
                "there is none",
            )
        };
        Ok((socket, family.ok_or_else(missing)?))
    });
    match ready {
        Ok((mut socket, family)) => {
            for (index, name, section) in &mut devices {
                **section = device(&mut socket, family, *index, name).into();
            }
            socket.overwrite();
        }
        Err(error) => {
            for (_, _, section) in &mut devices {
                **section = Section::Missing(error.to_string());
            }
        }
    }
}

fn device(socket: &mut Netlink, family: u16, index: u32, name: &str) -> Result<Wireguard> {
    let operation = format!("read the peers of WireGuard device {name}");
    let mut request = Writer::new(&[WG_CMD_GET_DEVICE, 1, 0, 0]);
    request.put(1, &index.to_ne_bytes());
    socket.try_dump(
        family,
        request.bytes(),
        &operation,
        Wireguard::default,
        |device, _, payload| {
            take(device, payload)
                .ok_or_else(|| Error::malformed(&*operation, "it can't be decoded"))
        },
    )
}

/// Adds one message's part: a device with many peers, or a peer with many prefixes, comes in several.
pub(super) fn take(device: &mut Wireguard, message: &[u8]) -> Option<()> {
    for (kind, payload) in Attrs(message.get(HEADER..)?) {
        match kind {
            4 => device.key = Some(key(payload)?),
            6 => device.port = nla::u16_at(payload, 0)?,
            7 => device.fwmark = nla::u32_at(payload, 0)?,
            8 => {
                for (_, nest) in Attrs(payload) {
                    take_peer(&mut device.peers, Attrs(nest))?;
                }
            }
            _ => {}
        }
    }
    Some(())
}

fn take_peer(peers: &mut Vec<WireguardPeer>, attrs: Attrs<'_>) -> Option<()> {
    let own = key(attrs.find(1)?)?;
    if peers.last().is_none_or(|last| last.key != own) {
        peers.push(WireguardPeer {
            key: own,
            preshared: false,
            endpoint: None,
            handshake: None,
            allowed: Vec::new(),
        });
    }
    let peer = peers.last_mut()?;
    for (kind, payload) in attrs {
        match kind {
            2 => peer.preshared = payload.iter().any(|byte| *byte != 0),
            4 => peer.endpoint = Some(endpoint(payload)?),
            6 => peer.handshake = Some(nla::u64_at(payload, 0)?).filter(|seconds| *seconds > 0),
            9 => {
                for (_, nest) in Attrs(payload) {
                    let nest = Attrs(nest);
                    let addr = nla::ip(nest.find(2)?)?;
                    let len = nest.find(3)?.first().copied()?;
                    peer.allowed.push(Prefix::new(addr, len).ok()?);
                }
            }
            _ => {}
        }
    }
    Some(())
}

fn key(bytes: &[u8]) -> Option<PublicKey> {
    bytes.try_into().ok().map(PublicKey)
}

/// `struct sockaddr_in`, `struct sockaddr_in6`
fn endpoint(bytes: &[u8]) -> Option<SocketAddr> {
    let port = nla::be16_at(bytes, 2)?;
    let addr: IpAddr = match i32::from(nla::u16_at(bytes, 0)?) {
        libc::AF_INET => nla::ip(bytes.get(4..8)?)?,
        libc::AF_INET6 => nla::ip(bytes.get(8..24)?)?,
        _ => return None,
    };
    Some(SocketAddr::new(addr, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `ip link add wg0 type wireguard; wg set wg0 listen-port 51820 private-key K fwmark 0x100 peer P endpoint
    /// 192.0.2.1:51820 allowed-ips 10.1.0.0/24`, in two messages as the kernel splits what is long.
    fn messages() -> [Vec<u8>; 2] {
        let allowed = |peer: &mut Writer, addr: &[u8], len: u8| {
            peer.nest(9, |list| {
                list.nest(0, |one| {
                    one.put(1, &2_u16.to_ne_bytes()).put(2, addr).put(3, &[len]);
                });
            });
        };
        let mut first = Writer::new(&[0, 1, 0, 0]);
        first
            .put(3, &[9; 32])
            .put(4, &[1; 32])
            .put(6, &51820_u16.to_ne_bytes())
            .put(7, &0x100_u32.to_ne_bytes())
            .nest(8, |peers| {
                peers.nest(0, |peer| {
                    let mut handshake = 1_700_000_000_u64.to_ne_bytes().to_vec();
                    handshake.extend([0; 8]);
                    let mut endpoint = 2_u16.to_ne_bytes().to_vec();
                    endpoint.extend([0xca, 0x6c, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
                    peer.put(1, &[2; 32])
                        .put(2, &[0; 32])
                        .put(4, &endpoint)
                        .put(6, &handshake);
                    allowed(peer, &[10, 1, 0, 0], 24);
                });
            });
        let mut second = Writer::new(&[0, 1, 0, 0]);
        second.nest(8, |peers| {
            peers.nest(0, |peer| {
                peer.put(1, &[2; 32]);
                allowed(peer, &[10, 3, 0, 0], 16);
            });
        });
        [first.bytes().to_vec(), second.bytes().to_vec()]
    }

    #[test]
    fn a_peer_in_two_messages_is_one() {
        let mut device = Wireguard::default();
        for message in messages() {
            take(&mut device, &message).expect("it decodes");
        }
        assert_eq!(device.key, Some(PublicKey([1; 32])));
        assert_eq!((device.port, device.fwmark), (51820, 0x100));
        let [peer] = device.peers.as_slice() else {
            panic!("{device:?}");
        };
        assert!(!peer.preshared);
        assert_eq!(peer.handshake, Some(1_700_000_000));
        assert_eq!(peer.endpoint, Some("192.0.2.1:51820".parse().expect("one")));
        let allowed: Vec<String> = peer.allowed.iter().map(ToString::to_string).collect();
        assert_eq!(allowed, ["10.1.0.0/24", "10.3.0.0/16"]);
        // The private key (9s) is nowhere.
        assert!(!format!("{device:?}").contains("9, 9, 9"));
    }

    #[test]
    fn what_is_cut_short_is_refused_or_less() {
        for message in messages() {
            for len in 0..message.len() {
                let _ = take(&mut Wireguard::default(), &message[..len]);
            }
        }
    }
}
