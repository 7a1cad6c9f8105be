//! WireGuard devices of a network: what sets them up, handshakes before the first packet, and how to tell that their
//! threads are done.

use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netpath::collect::nla::{Attrs, Writer, u16_at, u32_at};
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::places::Places;
use super::world::World;
use crate::command::{feed, output, run};

/// UDP ports of WireGuard in tests.
pub const PORTS: RangeInclusive<u16> = 51820..=51829;

/// How long a handshake may take. Those that never come cost as much.
const HANDSHAKE: Duration = Duration::from_millis(1500);

/// Gives `wg` lines, one by one; returns what was refused. Keys go by its standard input.
pub(super) fn set(lines: &[String]) -> Result<Vec<String>> {
    let mut refused = Vec::new();
    for line in lines {
        let mut words: Vec<String> = vec!["wg".to_owned()];
        let mut input = String::new();
        let mut rest = line.split(' ');
        while let Some(word) = rest.next() {
            match word {
                "of" => {
                    let key = rest.next().unwrap_or_default().to_owned() + "\n";
                    words.push(feed(&["wg", "pubkey"], &key)?.trim().to_owned());
                }
                "private-key" | "preshared-key" => {
                    input = rest.next().unwrap_or_default().to_owned() + "\n";
                    words.extend([word.to_owned(), "/proc/self/fd/0".to_owned()]);
                }
                _ => words.push(word.to_owned()),
            }
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let done = output(&words, &input)?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            refused.push(format!("{line}: {}", said.trim()));
        }
    }
    Ok(refused)
}

/// Devices of the thread's namespace and their peers that no handshake was made with.
fn strangers() -> Result<Vec<(String, String)>> {
    let told = run(&["wg", "show", "all", "latest-handshakes"])?;
    let mut found = Vec::new();
    for line in told.lines() {
        if let [dev, key, "0"] = line.split('\t').collect::<Vec<_>>()[..] {
            found.push((dev.to_owned(), key.to_owned()));
        }
    }
    Ok(found)
}

/// Has all devices make their handshakes, one after the other: two that begin at once may both fail.
///
/// A peer that is told to keep a connection alive is sent a packet at once (`set_peer()`).
pub(super) fn shake_hands(places: &Places, world: &World) -> Result<()> {
    let with = world
        .places
        .iter()
        .filter(|place| !place.wireguard.is_empty());
    for place in with {
        places.place(&place.name)?.enter(|| {
            for (dev, key) in strangers()? {
                let keep = |seconds: &str| {
                    let words = [
                        "wg",
                        "set",
                        &dev,
                        "peer",
                        &key,
                        "persistent-keepalive",
                        seconds,
                    ];
                    run(&words)
                };
                keep("900")?;
                let end = Instant::now() + HANDSHAKE;
                while Instant::now() < end && strangers()?.contains(&(dev.clone(), key.clone())) {
                    thread::park_timeout(Duration::from_millis(5));
                }
                keep("0")?;
            }
            Ok(())
        })?;
    }
    // Whoever is not there is asked for again otherwise, while packets wait behind that.
    for place in places.all() {
        if !world.places.iter().all(|place| place.wireguard.is_empty()) {
            place.enter(|| run(&["ip", "neigh", "flush", "nud", "incomplete"]))?;
        }
    }
    Ok(())
}

/// Tells when the threads of a device are done.
pub struct Barrier {
    socket: OwnedFd,
    family: u16,
    device: u32,
    sequence: u32,
}

/// Those of a network's devices.
pub(super) fn barriers(places: &Places, world: &World) -> Result<Vec<Barrier>> {
    let mut all = Vec::new();
    for place in world
        .places
        .iter()
        .filter(|place| !place.wireguard.is_empty())
    {
        let mut devices: Vec<&str> = place
            .wireguard
            .iter()
            .filter_map(|line| line.split(' ').nth(1))
            .collect();
        devices.sort_unstable();
        devices.dedup();
        places.place(&place.name)?.enter(|| {
            // One that the kernel refused has no threads.
            for index in devices.iter().filter_map(|dev| if_nametoindex(*dev).ok()) {
                all.push(Barrier::open(index)?);
            }
            Ok(())
        })?;
    }
    Ok(all)
}

impl Barrier {
    fn open(device: u32) -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkGeneric,
        )
        .context("open a generic netlink socket")?;
        let mut own = Self {
            socket,
            family: 0,
            device,
            sequence: 0,
        };
        // CTRL_CMD_GETFAMILY of GENL_ID_CTRL, CTRL_ATTR_FAMILY_NAME and _ID
        let mut request = Writer::new(&[3, 1, 0, 0]);
        request.put_text(2, "wireguard");
        let answer = own.ask(16, 1, request.bytes())?;
        let id = answer.get(4..).and_then(|attrs| Attrs(attrs).find(1));
        own.family = id
            .and_then(|id| u16_at(id, 0))
            .context("WireGuard has no family of generic netlink")?;
        Ok(own)
    }

    /// Returns when all that was to be encrypted, sent or decrypted before has been.
    ///
    /// Removing a peer, here one that is added for that, waits for the device's work queues (`peer_remove_after_dead()`).
    pub fn wait(&mut self) -> Result<()> {
        // WG_CMD_SET_DEVICE with WGDEVICE_A_IFINDEX and _PEERS: WGPEER_A_PUBLIC_KEY, _FLAGS (REMOVE_ME)
        let mut request = Writer::new(&[1, 1, 0, 0]);
        request.put(1, &self.device.to_ne_bytes()).nest(8, |peers| {
            peers.nest(0, |peer| {
                peer.put(1, &[9; 32]);
            });
            peers.nest(0, |peer| {
                peer.put(1, &[9; 32]).put(3, &1_u32.to_ne_bytes());
            });
        });
        // NLM_F_REQUEST and NLM_F_ACK
        self.ask(self.family, 5, request.bytes()).map(drop)
    }

    /// Sends a message, and returns the first that answers it.
    fn ask(&mut self, kind: u16, flags: u16, body: &[u8]) -> Result<Vec<u8>> {
        self.sequence += 1;
        let len = u32::try_from(16 + body.len()).context("a long message")?;
        let mut message = len.to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend(flags.to_ne_bytes());
        message.extend(self.sequence.to_ne_bytes());
        message.extend([0; 4]);
        message.extend(body);
        sendto(
            self.socket.as_raw_fd(),
            &message,
            &NetlinkAddr::new(0, 0),
            MsgFlags::empty(),
        )
        .context("ask WireGuard")?;
        let mut answer = vec![0; 8192];
        let len = recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty())
            .context("hear WireGuard")?;
        answer.truncate(len);
        ensure!(
            u32_at(&answer, 8) == Some(self.sequence),
            "WireGuard answers something else"
        );
        let body = answer.get(16..).unwrap_or_default().to_vec();
        // NLMSG_ERROR, also for success
        if u16_at(&answer, 4) == Some(2) {
            let code = u32_at(&body, 0).unwrap_or(0).cast_signed();
            if code != 0 {
                bail!("WireGuard refuses: error {}", -code);
            }
        }
        Ok(body)
    }
}
